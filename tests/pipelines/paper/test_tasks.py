"""Data sets of the studies: what is drawn from, what is scored, and detectors of a few examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from amsam_med.data.datalists import human_vikram_datalist, isic2018_datalist
from amsam_med.detect.scores import score_boxes
from amsam_med.detect.yolo import DetectorScores, YoloDetector
from amsam_med.synthetic import write_dermoscopy
from pipelines.paper import tasks
from pipelines.paper.tasks import TASKS, few_shot_detector, open_lists


def test_selection_never_sees_what_results_are_reported_on(data_root: Path) -> None:
    for name, opener in (("isic2018", isic2018_datalist), ("human_vikram", human_vikram_datalist)):
        pool, scored = open_lists(name, data_root, "val")
        reported = {item["image"] for item in opener(data_root / name, "test")}
        for_selection = [{item["image"] for item in part} for part in (pool, scored)]
        assert len(for_selection[1]) in (150, 40)
        assert not reported & (for_selection[0] | for_selection[1])
        assert not for_selection[0] & for_selection[1]
        assert {item["image"] for item in open_lists(name, data_root, "test")[1]} == reported


def test_a_k_shot_detector_sees_the_examples_alone_and_is_trained_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dermoscopy(tmp_path / "isic2018/train", 4, seed=0, size=(72, 96))
    examples = isic2018_datalist(tmp_path / "isic2018", "train")
    seen: list[set[str]] = []

    def train_detector(train: Any, validation: Any, _options: Any) -> tuple[YoloDetector, DetectorScores]:
        seen.extend({item["image"] for item in part.data} for part in (train, validation))
        detector = YoloDetector(input_size=64)
        return detector, DetectorScores(0.0, 0.0, score_boxes(detector, validation))

    monkeypatch.setattr(tasks, "train_detector", train_detector)
    files = {few_shot_detector(examples[:2], TASKS["isic2018"], 3, tmp_path / "k2.safetensors") for _ in range(2)}
    assert seen == [{item["image"] for item in examples[:2]}] * 2
    assert [file.is_file() for file in files] == [True]
