"""``amsam detector train`` from folders to files."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amsam_med.cli import main
from amsam_med.detect.yolo import load_detector
from amsam_med.locks import held
from tests.cli_process import AmsamProcess, Strike, amsam
from tests.test_train_faults import files_of_at_most


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Three photographs of 80 x 60 pixels, each with a bright square."""
    folder = tmp_path / "labelled"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(3):
        mask = np.zeros((60, 80), np.uint8)
        mask[10 : 40 + number, 20:60] = 255
        Image.fromarray(np.stack([mask // 2 + 60] * 3, axis=-1)).save(folder / "images" / f"{number}.jpg")
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder


def test_a_folder_becomes_a_detector_with_its_scores(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "square.safetensors"
    words = ["--data", labelled, "-o", output, "--input-size", 64, "--epochs", 1, "--class-name", "square"]
    assert main(["detector", "train", *map(str, words), "--device", "cpu"]) == 0
    detector = load_detector(output)
    assert (detector.class_name, detector.input_size) == ("square", 64)
    assert json.loads(output.with_suffix(".json").read_text())["best_box"]["images"] == 1  # one of three is held out
    printed = capsys.readouterr()
    assert "epoch 1/1: loss" in printed.err
    assert "square.safetensors and square.json" in printed.out


def test_a_pickle_needs_trust(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "yolov8n.pt").write_bytes(b"code that would run")
    words = ["--data", labelled, "-o", tmp_path / "a.safetensors", "--from", tmp_path / "yolov8n.pt"]
    assert main(["detector", "train", *map(str, words)]) == 1
    assert "--trust-pickle" in capsys.readouterr().err


def test_a_folder_without_pairs_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detector", "train", "--data", str(tmp_path), "-o", str(tmp_path / "a.safetensors")]) == 1
    assert "no folder images and no masks" in capsys.readouterr().err


def words(labelled: Path, output: Path) -> list[str]:
    sizes = ["--input-size", "64", "--epochs", "1", "--device", "cpu"]
    return ["detector", "train", "--data", str(labelled), "-o", str(output), *sizes]


def refused(command: list[str], said: str, capsys: pytest.CaptureFixture[str], code: int = 1) -> None:
    assert main(command) == code
    printed = capsys.readouterr()
    assert said in " ".join(printed.err.split())
    assert "Traceback" not in printed.err


def test_masks_that_are_all_empty_are_named(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (labelled / "masks").iterdir():
        Image.new("L", (80, 60)).save(path)
    refused(words(labelled, tmp_path / "a.safetensors"), "All masks of the training part are empty", capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labelled"]


def test_one_image_is_too_few(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        (labelled / "images" / f"{number}.jpg").unlink()
        (labelled / "masks" / f"{number}.png").unlink()
    refused(words(labelled, tmp_path / "a.safetensors"), "1 labelled image(s) to train on; give at least 2", capsys)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x00" * 100, b"text"])
def test_weights_to_begin_with_that_are_none_are_named(
    content: bytes, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start.safetensors"
    start.write_bytes(content)
    refused([*words(labelled, tmp_path / "a.safetensors"), "--from", str(start)], "start.safetensors", capsys)
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.json"])
def test_an_output_that_would_not_be_a_detector_is_wrong_usage(
    name: str, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(words(labelled, tmp_path / name), "would not be read as a detector", capsys, code=2)


@pytest.mark.parametrize("given", [("--seed", "-1"), ("--seed", str(2**32)), ("--input-size", str(10**9))])
def test_numbers_out_of_range_are_wrong_usage(
    given: tuple[str, str], labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused([*words(labelled, tmp_path / "a.safetensors"), *given], "is not in the range", capsys, code=2)


def test_an_output_among_the_images_is_refused(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(words(labelled, labelled / "images" / "a.safetensors"), "lies among the images or masks", capsys)


def test_an_output_in_use_is_refused(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held(tmp_path / ".a.safetensors.lock", "it"):
        refused(words(labelled, tmp_path / "a.safetensors"), "another process is writing", capsys)


def test_a_full_disk_is_one_sentence(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with files_of_at_most(1_000_000):  # enough for the images, too little for the weights
        refused(words(labelled, tmp_path / "a.safetensors"), "cannot be read or written", capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labelled"]


@pytest.mark.parametrize(
    ("event", "path", "number"),
    [
        ("open", "/000000.txt", signal.SIGTERM),  # among the labels that are prepared
        ("open", "/000000.txt", signal.SIGINT),
        ("os.rename", "/a.safetensors", signal.SIGHUP),
        ("os.rename", "/a.safetensors", signal.SIGKILL),
    ],
)
def test_a_training_that_is_told_to_end_leaves_no_image_and_no_half_file(
    event: str, path: str, number: signal.Signals, labelled: Path, tmp_path: Path
) -> None:
    output, temporary = tmp_path / "a.safetensors", tmp_path / "temporary"
    temporary.mkdir()
    own = {"TMPDIR": str(temporary)}
    process = AmsamProcess(words(labelled, output), tmp_path / "log", Strike(event, path, number), own)
    killed = number == signal.SIGKILL
    assert process.wait() == (-number if killed else 128 + number), process.printed
    assert not output.exists()
    assert killed or not [*temporary.iterdir(), *tmp_path.glob(".*")]
    code, printed = amsam(*words(labelled, output), log=tmp_path / "log")
    assert code == 0, printed
    assert load_detector(output).input_size == 64
    assert not [*tmp_path.glob(".*")]
