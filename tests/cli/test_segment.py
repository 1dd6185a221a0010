"""`amsam segment`: exit codes, messages and what it prints."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from filelock import FileLock

from amsam_med import cli
from amsam_med.cli.segment import FORMAT_NAMES
from amsam_med.segment import SegmentOptions, Step
from amsam_med.segment.formats import FORMATS
from tests.small_bundle import write_picture, write_small_bundle


@pytest.fixture(scope="module")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_small_bundle(tmp_path_factory.mktemp("bundles") / "small"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(3):
        write_picture(tmp_path / "photos" / f"{number}.png", 20 + number)
    return tmp_path / "photos"


def test_a_folder_is_segmented_and_summed_up(
    photos: Path, tmp_path: Path, small_bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["segment", str(photos), "-o", str(tmp_path / "out"), "--bundle", small_bundle]) == 0
    printed = capsys.readouterr()
    words = dict(line.rsplit(maxsplit=1) for line in printed.out.splitlines()[:7])
    assert list(words) == ["done", "failed", "skipped", "without a box", "flagged", "seconds", "images/s"]
    assert (words["done"], words["failed"], words["skipped"]) == ("3", "0", "0")
    assert printed.err == ""  # no bar where nobody looks at it
    assert (
        len(list((tmp_path / "out" / "masks").iterdir())) == len(list((tmp_path / "out" / "overlays").iterdir())) == 3
    )


def test_a_second_run_says_how_many_were_skipped(
    photos: Path, tmp_path: Path, small_bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["segment", str(photos), "-o", str(tmp_path / "out"), "--bundle", small_bundle, "--format", "png"]
    assert cli.main(words) == 0
    assert not (tmp_path / "out" / "overlays").exists()
    capsys.readouterr()
    assert cli.main(words) == 0
    assert "3 of 3 images were done before; --overwrite does them again." in capsys.readouterr().out
    assert cli.main([*words, "--overwrite"]) == 0


@pytest.fixture
def no_other_cluster(ray_lock: FileLock) -> Iterator[None]:
    with ray_lock:
        yield


@pytest.mark.usefixtures("no_other_cluster")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # it copies settings of its own that it has deprecated
def test_ray_starts_for_the_run_and_leaves_nothing_behind(
    photos: Path, tmp_path: Path, small_bundle: str, capfd: pytest.CaptureFixture[str]
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed; it comes with the extra `ray`")
    words = ["segment", str(photos), "-o", str(tmp_path / "out"), "--bundle", small_bundle, "--engine", "ray"]
    before = signal.getsignal(signal.SIGTERM), set(Path("/tmp").glob("amsam-ray-*"))
    assert cli.main(words) == 0
    printed = capfd.readouterr()
    assert printed.out.startswith("done                     3\n")
    assert printed.err == ""
    assert "--engine ray" in json.loads((tmp_path / "out" / "run.json").read_text())["command"]
    assert not ray.is_initialized()
    assert (signal.getsignal(signal.SIGTERM), set(Path("/tmp").glob("amsam-ray-*"))) == before


def test_flagged_images_are_counted_and_the_table_is_named(
    photos: Path, tmp_path: Path, small_bundle: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("amsam_med.infer.SURE_DICE", 1.1)  # nothing is sure enough
    words = ["segment", str(photos), "-o", str(tmp_path / "out"), "--bundle", small_bundle, "--test-views", "mirror"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "flagged                  3\n" in printed
    assert "3 images deserve a look: the column flags of results.csv says why." in printed
    assert "--test-views mirror" in json.loads((tmp_path / "out" / "run.json").read_text())["command"]


def test_a_broken_file_is_named_and_gives_exit_code_1(
    photos: Path, tmp_path: Path, small_bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.jpg").write_bytes(b"half")
    assert cli.main(["segment", str(photos), "-o", str(tmp_path / "out"), "--bundle", small_bundle]) == 1
    assert f"failed: {(photos / 'broken.jpg').as_posix()}: broken.jpg: not an image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (["--format", "png,gif"], "unknown 'gif'; known are png, overlay, contour"),
        (["--bundle", "amsam_heart"], "amsam_heart is neither a shipped bundle"),
        (["nowhere.png"], "'nowhere.png' does not exist"),
        (["--device", "tpu"], "'tpu' is not one of"),
        (["--test-views", "top"], "'top' is not one of"),
        (["--batch-size", "0"], "0 is not in the range"),
        (["--engine", "spark"], "'spark' is not one of"),
        (["--address", "auto"], "--address is that of a Ray cluster"),
    ],
)
def test_wrong_usage_exits_with_2(
    change: list[str], text: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["segment", str(photos), "-o", str(tmp_path / "out"), *change]) == 2
    assert text in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_no_input_no_output_and_an_empty_folder_are_wrong_usage(
    tmp_path: Path, small_bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["segment", "-o", str(tmp_path / "out")]) == 2
    assert cli.main(["segment", str(tmp_path)]) == 2
    assert cli.main(["segment", str(tmp_path), "-o", str(tmp_path / "out"), "--bundle", small_bundle]) == 2
    assert "no images in it" in capsys.readouterr().err


def test_results_of_other_origin_are_a_fault_to_mend(
    photos: Path, tmp_path: Path, small_bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_picture(tmp_path / "out" / "masks" / "0_segmentation.png")
    assert cli.main(["segment", str(photos), "-o", str(tmp_path / "out"), "--bundle", small_bundle]) == 1
    assert capsys.readouterr().err.endswith("no run of `amsam segment` wrote; give another output folder\n")


def test_an_interrupt_exits_with_130_and_says_what_is_left(
    photos: Path, tmp_path: Path, small_bundle: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(step: Step) -> None:
        if step.finished == 1:
            os.kill(os.getpid(), signal.SIGINT)

    for number in range(6):
        write_picture(photos / f"{number}.png")
    monkeypatch.setattr("amsam_med.cli.segment._progress_bar", lambda: nullcontext(interrupt))
    words = ["segment", str(photos), "-o", str(tmp_path / "out"), "--bundle", small_bundle, "--batch-size", "1"]
    assert cli.main(words) == 130
    left = re.search(r"Interrupted with (\d) images left; the same command does them.", capsys.readouterr().err)
    assert left is not None
    assert 1 <= int(left[1]) <= 8


def test_a_terminal_gets_a_bar(
    photos: Path, tmp_path: Path, small_bundle: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    write_picture(photos / "[red]x.png")  # not markup
    assert cli.main(["segment", str(photos), "-o", str(tmp_path / "out"), "--bundle", small_bundle]) == 0
    drawn = capsys.readouterr().err
    assert "4/4" in drawn
    assert "[red]x.png" in drawn


def test_the_formats_of_the_help_are_those_there_are() -> None:
    assert tuple(FORMATS) == FORMAT_NAMES
    assert SegmentOptions().formats == FORMAT_NAMES[:2]


def test_the_help_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["segment", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "  amsam segment photos/ -o out --adapter run/adapter.safetensors\n" in printed
    assert "Exit codes: 0" in printed
