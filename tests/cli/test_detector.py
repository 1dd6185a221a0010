"""``amsam detector train`` from folders to files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amsam_med.cli import main
from amsam_med.detect.yolo import load_detector


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
