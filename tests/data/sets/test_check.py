"""Every file of a list is read; errors are reported and do not stop the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from amsam_med.data.sets.check import check_items


def save_pair(folder: Path, name: str, mask: np.ndarray) -> dict[str, str]:
    item = {"image": str(folder / f"{name}.jpg"), "label": str(folder / f"{name}.png")}
    PIL.Image.new("RGB", mask.shape[::-1]).save(item["image"])
    PIL.Image.fromarray(mask).save(item["label"])
    return item


def test_counts_sizes_and_shares_are_told(tmp_path: Path) -> None:
    half = np.repeat(np.array([[0, 255]], np.uint8), 3, axis=0)
    items = [save_pair(tmp_path, "a", half), save_pair(tmp_path, "b", np.zeros((5, 4), np.uint8))]
    findings = check_items(items)
    assert (findings.pair_count, findings.empty_mask_count, findings.faults) == (2, 1, [])
    assert (findings.smallest, findings.largest) == ((3, 2), (5, 4))
    assert findings.object_share == pytest.approx(0.25)


def test_a_fault_does_not_stop_the_rest(tmp_path: Path) -> None:
    noisy = save_pair(tmp_path, "noisy", np.array([[0, 7]], np.uint8))
    whole = save_pair(tmp_path, "whole", np.array([[0, 1]], np.uint8))
    findings = check_items([noisy, {"image": "gone.jpg", "label": "gone.png"}, whole])
    assert findings.pair_count == 1
    assert [fault.split(":")[0] for fault in findings.faults] == ["noisy.png", "gone.jpg"]


def test_class_ids_are_allowed_up_to_the_number_of_classes(tmp_path: Path) -> None:
    item = save_pair(tmp_path, "a", np.array([[0, 7]], np.uint8))
    assert check_items([item], num_classes=7).faults == []
    assert len(check_items([item], num_classes=6).faults) == 1


def test_an_empty_list_has_no_sizes() -> None:
    findings = check_items([])
    assert (findings.pair_count, findings.smallest, findings.largest) == (0, None, None)
