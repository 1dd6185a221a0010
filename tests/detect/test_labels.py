"""Masks become boxes and a YOLO folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from amsam_med.detect.labels import boxes_of_label, hold_out, write_yolo_folder
from amsam_med.errors import DataError


def item(size: int = 64, is_empty: bool = False) -> dict[str, Any]:
    """An image with one object whose label has half the image's size: rows 4..7, columns 8..23 of 32."""
    label = torch.zeros(1, size // 2, size // 2, dtype=torch.uint8)
    label[:, 4:8, 8:24] = 0 if is_empty else 255
    return {"image": torch.rand(3, size, size), "label": label}


def test_all_nonzero_pixels_are_one_object() -> None:
    label = torch.zeros(1, 10, 20, dtype=torch.uint8)
    label[0, 1:3, 4:6], label[0, 7, 15] = 1, 2
    assert boxes_of_label(label).tolist() == [[4, 1, 16, 8]]


def test_each_instance_has_its_own_box() -> None:
    label = torch.zeros(1, 10, 20, dtype=torch.uint8)
    label[0, 1:3, 4:6], label[0, 7, 15] = 9, 2
    assert boxes_of_label(label, has_instances=True).tolist() == [[15, 7, 16, 8], [4, 1, 6, 3]]


@pytest.mark.parametrize("has_instances", [False, True])
def test_an_empty_label_has_no_box(has_instances: bool) -> None:
    assert boxes_of_label(torch.zeros(1, 4, 4, dtype=torch.uint8), has_instances).shape == (0, 4)


def test_labels_are_shares_of_the_image_whatever_the_masks_size(tmp_path: Path) -> None:
    write_yolo_folder([item()], tmp_path / "training")
    row = (tmp_path / "training/labels/000000.txt").read_text().split()
    assert [float(number) for number in row] == [0, 16 / 32, 6 / 32, 16 / 32, 4 / 32]


def test_an_empty_mask_is_an_example_without_object(tmp_path: Path) -> None:
    write_yolo_folder([item(), item(is_empty=True)], tmp_path / "training")
    assert (tmp_path / "training/labels/000001.txt").read_text() == ""


def test_images_are_written_as_the_network_will_see_them(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    written = write_yolo_folder([{**item(), "image": pixels / 255}], tmp_path / "training")
    read = np.asarray(Image.open(written.images / "000000.png"))
    assert np.array_equal(read.transpose(2, 0, 1), pixels.numpy())


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([], "training part has no images"),
        ([item(is_empty=True)], "masks of the training part are empty"),
        ([item(), item(size=96)], r"shape \(3, 96, 96\); expected \(3, 64, 64\)"),
    ],
)
def test_unusable_parts_are_refused(items: list[dict[str, Any]], text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=text):
        write_yolo_folder(items, tmp_path / "training")


def test_every_tenth_is_held_out() -> None:
    train, held_out = hold_out(range(21))
    assert held_out == [0, 10, 20]
    assert sorted(train + held_out) == list(range(21))


def test_one_image_cannot_be_split() -> None:
    with pytest.raises(DataError, match="at least 2"):
        hold_out(["only"])
