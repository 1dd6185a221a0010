"""Scores of the one box that becomes the prompt."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amsam_med.boxes import Detections
from amsam_med.detect.scores import score_boxes
from amsam_med.errors import DataError


class Fixed:
    """Finds the given boxes, one call after the other; None is no detection."""

    def __init__(self, *boxes: list[float] | None) -> None:
        self.boxes = list(boxes)

    def __call__(self, image: Tensor) -> Detections:
        taken, self.boxes = self.boxes[: len(image)], self.boxes[len(image) :]
        is_detected = torch.tensor([box is not None for box in taken])
        boxes = torch.tensor([box or [0.0, 0.0, 64.0, 64.0] for box in taken])
        return Detections(boxes, is_detected.float(), is_detected)


def item(*objects: tuple[int, int, int, int]) -> dict[str, Tensor]:
    """A 64 px image whose 32 px label holds boxes x1, y1, x2, y2."""
    label = torch.zeros(1, 32, 32, dtype=torch.uint8)
    for number, (x1, y1, x2, y2) in enumerate(objects, start=1):
        label[0, y1:y2, x1:x2] = number
    return {"image": torch.zeros(3, 64, 64), "label": label}


def test_shares_are_counted_over_images_with_an_object() -> None:
    detector = Fixed([0, 0, 20, 20], [0, 0, 20, 12], [40, 40, 60, 60], None, [0, 0, 5, 5], None)
    scores = score_boxes(detector, [*[item((0, 0, 10, 10))] * 4, item(), item()], batch_size=4)
    assert scores.images == 4
    assert scores.mean_iou == pytest.approx((1 + 0.6 + 0 + 0) / 4)
    assert (scores.iou50, scores.iou75, scores.without_box, scores.false_boxes) == (0.5, 0.25, 0.25, 1)


def test_the_edge_error_is_the_deviation_of_edges_in_shares_of_the_object() -> None:
    noise = 0.05 * torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    boxes = [[10 + 20 * a, 4 + 40 * b, 30 + 20 * c, 44 + 40 * d] for a, b, c, d in noise.tolist()]
    samples = [item((5, 2, 15, 22))] * 400  # in a 64 px image it is 10, 4, 30, 44
    assert score_boxes(Fixed(*boxes), samples).edge_error == pytest.approx(0.05, rel=0.05)


def test_boxes_of_something_else_and_wild_ones_do_not_count_as_edge_error() -> None:
    shifted, elsewhere, wild = [22.0, 18.0, 42.0, 38.0], [0.0, 0.0, 9.0, 9.0], [20.0, 20.0, 40.0, 64.0]
    samples = [item((10, 10, 20, 20))] * 5  # in a 64 px image it is 20, 20, 40, 40; each edge is off by a tenth
    assert score_boxes(Fixed(*[shifted] * 3, elsewhere, None), samples).edge_error == pytest.approx(0.14826)
    assert score_boxes(Fixed(*[shifted] * 4, wild), samples).edge_error == pytest.approx(0.14826)
    assert score_boxes(Fixed(elsewhere), samples[:1]).edge_error == 0


def test_a_full_image_stand_in_earns_nothing() -> None:
    assert score_boxes(Fixed(None), [item((0, 0, 32, 32))]).mean_iou == 0


def test_any_instance_is_a_right_answer() -> None:
    two = item((0, 0, 10, 10), (20, 20, 30, 30))
    assert score_boxes(Fixed([40, 40, 60, 60]), [two], has_instances=True).mean_iou == 1
    assert score_boxes(Fixed([0, 0, 60, 60]), [two]).mean_iou == 1


def test_without_objects_there_is_nothing_to_measure() -> None:
    with pytest.raises(DataError, match="None of 1 labels"):
        score_boxes(Fixed(None), [item()])
