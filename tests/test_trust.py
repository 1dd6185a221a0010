"""Which bundles may run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from amsam_med import cli
from amsam_med.bundle import open_bundle
from amsam_med.domains import DOMAINS
from amsam_med.errors import ConfigError, DataError
from amsam_med.trust import UntrustedBundleError, bundle_digest, is_trusted, trust, trust_file
from amsam_med.weights import bundles_folder
from tests.conftest import REPOSITORY


@pytest.fixture(autouse=True)
def nothing_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A bundle that leaves a folder behind when it is opened."""
    root = Path(shutil.copytree(REPOSITORY / "bundles" / "amsam_isic", tmp_path / "foreign"))
    config = root / "configs" / "inference.yaml"
    code = f"$__import__('os').mkdir('{tmp_path / 'PROOF'}')"
    config.write_text(config.read_text().replace("initialize:", f'odd: "{code}"\ninitialize:\n  - "$@odd"', 1))
    return root


@pytest.mark.parametrize("bundle", [domain.bundle for domain in DOMAINS])
def test_the_shipped_bundles_are_on_record_as_they_are(bundle: str):
    assert is_trusted(bundles_folder() / bundle), "run: python -m pipelines.weights.release bundles"


def test_a_copy_of_a_shipped_bundle_is_trusted_until_it_is_changed(tmp_path: Path):
    root = Path(shutil.copytree(REPOSITORY / "bundles" / "amsam_isic", tmp_path / "mine"))
    assert is_trusted(root)
    with (root / "configs" / "evaluate.yaml").open("a") as file:
        file.write("# a remark\n")
    assert not is_trusted(root)


def test_a_foreign_bundle_does_not_open(foreign: Path, tmp_path: Path):
    with pytest.raises(UntrustedBundleError, match=r"foreign.*code that runs.*--trust-bundle"):
        open_bundle(foreign, "inference")
    assert not (tmp_path / "PROOF").exists()


def test_trust_is_remembered_by_hash_and_ends_with_a_change(foreign: Path):
    trust(foreign)
    moved = foreign.rename(foreign.with_name("elsewhere"))
    open_bundle(moved, "inference")
    (moved / "scripts").mkdir()
    (moved / "scripts" / "more.py").write_text("print()")
    with pytest.raises(UntrustedBundleError):
        open_bundle(moved, "inference")


def test_trusting_twice_is_remembered_once(foreign: Path):
    trust(foreign)
    trust(foreign)
    assert [entry["sha256"] for entry in json.loads(trust_file().read_text())["bundles"]] == [bundle_digest(foreign)]


@pytest.mark.parametrize("content", ["", "{", '{"bundles": [{"sha256": "all"}]}', '{"all": true}'])
def test_a_damaged_list_of_trusted_bundles_trusts_nothing(content: str, foreign: Path):
    trust_file().parent.mkdir(parents=True)
    trust_file().write_text(content)
    with pytest.raises(ConfigError, match=r"trusted-bundles\.json.*delete"):
        is_trusted(foreign)


def test_a_configuration_that_is_none_is_refused_before_it_is_read(tmp_path: Path):
    (tmp_path / "odd" / "configs").mkdir(parents=True)
    (tmp_path / "odd" / "configs" / "metadata.json").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="no regular file"):
        bundle_digest(tmp_path / "odd")


def test_the_command_line_refuses_where_nobody_can_answer(
    foreign: Path, labelled_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["segment", str(labelled_folder / "images"), "-o", str(tmp_path / "out"), "--bundle", str(foreign)]
    assert cli.main(words) == 1
    assert "--trust-bundle" in capsys.readouterr().err
    assert not (tmp_path / "PROOF").exists()
    assert not (tmp_path / "out").exists()


def test_trust_bundle_lets_it_run_from_then_on(tiny_bundle: Path, labelled_folder: Path, tmp_path: Path):
    words = ["segment", str(labelled_folder / "images"), "-o", str(tmp_path / "out"), "--bundle", str(tiny_bundle)]
    assert cli.main(words) == 1
    assert cli.main([*words, "--trust-bundle"]) == 0
    assert cli.main([*words, "--overwrite"]) == 0
