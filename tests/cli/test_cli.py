"""The command line's frame: help, exit codes, laziness, and the commands `weights` and `info`."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import amsam_med
from amsam_med import cli, weights
from amsam_med.errors import DataError


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes `amsam info` raise an error of one's choice."""

    def fail_with(error: BaseException) -> None:
        @click.command()
        def broken() -> None:
            raise error

        monkeypatch.setattr("amsam_med.cli.info.info", broken)

    return fail_with


@pytest.fixture
def empty_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that serves as cache, so that no test sees this user's weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(weights.FOLDER_VARIABLE, raising=False)
    return tmp_path


def test_help_lists_every_command_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, (_, short_help) in cli.COMMANDS.items():
        assert f"  {name} " in printed
        assert short_help in printed


def test_help_imports_no_subcommand_and_nothing_heavy() -> None:
    code = (
        "import sys; from amsam_med.cli import main; main(['--help'])\n"
        "print('LOADED', *[m for m in sys.modules if m.startswith(('torch', 'monai', 'numpy', 'amsam_med'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED amsam_med amsam_med.errors amsam_med.cli"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_of_the_table_is_there_and_explains_itself(name: str) -> None:
    module, _, attribute = cli.COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert command.help
    assert cli.main([name, "--help"]) == 0


def test_version_is_the_package_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"amsam, version {amsam_med.__version__}\n"


@pytest.mark.parametrize(
    "words", [["no-such-command"], ["--no-such-option"], ["weights", "list", "stray"], ["weights", "get"]]
)
def test_wrong_usage_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert "Usage: amsam" in capsys.readouterr().err


def test_a_fault_of_the_users_is_one_line_and_exit_code_1(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(DataError("a.png is empty"))
    assert cli.main(["info"]) == 1
    assert capsys.readouterr() == ("", "Error: a.png is empty\n")


@pytest.mark.parametrize("words", [["data", "check", "x" * 5000], ["--" + "x" * 5000], ["x" * 5000]])
def test_a_message_that_quotes_a_word_without_end_is_shortened(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    printed = capsys.readouterr().err
    assert "Usage: amsam" in printed
    assert " ... " in printed
    assert max(map(len, printed.splitlines())) < 4100


def test_an_empty_word_is_refused_and_the_one_before_it_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["segment", "photos", "--bundle", ""]) == 2
    assert "the word after --bundle is empty" in capsys.readouterr().err


def test_a_path_deeper_than_python_can_make_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["segment", "photos", "-o", "d/" * 1900]) == 2
    assert "has 1,900 folders, one in another, more than 500; give a shorter one" in capsys.readouterr().err


def test_debugging_shows_the_traceback(
    failing: Callable[[BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "1")
    failing(DataError("a.png is empty"))
    with pytest.raises(DataError, match=r"a\.png is empty"):
        cli.main(["info"])


def test_a_defect_of_ours_keeps_its_traceback(failing: Callable[[BaseException], None]) -> None:
    failing(KeyError("oops"))
    with pytest.raises(KeyError, match="oops"):
        cli.main(["info"])


def test_an_interrupt_exits_with_130(failing: Callable[[BaseException], None]) -> None:
    failing(KeyboardInterrupt())
    assert cli.main(["info"]) == 130


def test_what_a_command_returns_is_no_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amsam_med.cli.info.info", click.command()(lambda: 7))
    assert cli.main(["info"]) == 0


def test_a_click_runner_sees_the_same_exit_code(failing: Callable[[BaseException], None]) -> None:
    failing(DataError("a.png is empty"))
    result = CliRunner().invoke(cli.amsam, ["info"])
    assert result.exit_code == 1
    assert "a.png is empty" in result.output


def test_weights_list_names_all_and_says_what_is_missing(
    empty_places: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["weights", "list"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "licence:" not in line]
    assert [row.split()[0] for row in rows] == list(weights.known())
    assert next(row for row in rows if row.startswith("vit_h")).endswith(" missing")


def test_weights_verify_fails_for_what_is_named_and_missing(
    empty_places: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["weights", "verify", "vit_b"]) == 1
    assert capsys.readouterr().out.split() == ["vit_b", "missing"]


def test_weights_verify_fails_for_a_damaged_file(empty_places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (empty_places / "sam_vit_b_01ec64.pth").write_bytes(b"half a download")
    assert cli.main(["weights", "verify", "--weights-dir", str(empty_places)]) == 1
    assert "vit_b            damaged" in capsys.readouterr().out


def test_weights_get_of_an_unknown_name_lists_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["weights", "get", "vit_x"]) == 1
    assert capsys.readouterr().err.startswith("Error: there are no weights named 'vit_x'; the names are tiny, ")


def test_info_as_json_says_what_a_bug_report_needs(empty_places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["amsam-med"] == amsam_med.__version__
    assert facts["weights"]["vit_b"] == {"state": "missing", "file": None}
    assert "cpu" in facts["hardware"]["devices"]
    assert facts["folders"]["weights"] == str(empty_places / "amsam-med" / "weights")


def test_info_for_people_says_the_same(empty_places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    assert f"  amsam-med        {amsam_med.__version__}\n" in printed
    assert "  vit_b            state missing\n" in printed
