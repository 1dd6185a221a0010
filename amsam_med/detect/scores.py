"""Scores of a detector's one box per image, which is what a prompt needs; mean average precision scores all boxes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from amsam_med.boxes import BoxDetector, scale_boxes
from amsam_med.detect.labels import Samples, boxes_of_label
from amsam_med.errors import DataError
from amsam_med.keys import Keys

FOUND_IOU = 0.3
"""A box with at least this IoU is of the object, perhaps badly placed; below it, it is of something else."""
_MAD_TO_DEVIATION = 1.4826  # of a normal distribution


class BoxScores(NamedTuple):
    """Scores over the images that hold an object; an image without a detected box has an IoU of 0.

    Attributes:
        images: Number of images with an object.
        mean_iou: Mean IoU of the most confident box with the object that it fits best, in [0, 1].
        iou50: Share of images whose box has an IoU of at least 0.5.
        iou75: Share of images whose box has an IoU of at least 0.75.
        without_box: Share of images in which nothing was found.
        false_boxes: Number of images without an object in which something was found.
        edge_error: Standard deviation of the shift of an edge as a share of the object's width or height, over the
            images whose box has an IoU of at least 0.3: what :func:`amsam_med.boxes.jitter_boxes` takes. It is 1.4826
            times the median size of a shift (which a few wild boxes do not move, and which counts a bias as error); 0
            if there is no such image.
    """

    images: int
    mean_iou: float
    iou50: float
    iou75: float
    without_box: float
    false_boxes: int
    edge_error: float


def score_boxes(
    detector: BoxDetector, samples: Samples, has_instances: bool = False, batch_size: int = 16
) -> BoxScores:
    """Compare a detector's boxes with the boxes of the labels.

    Args:
        detector: On the CPU.
        samples: Prepared items, as for training.
        has_instances: Every id of a label is a separate object; the box may be of any of them.
        batch_size: Images per batch of the detector.

    Raises:
        DataError: No label holds an object.
    """
    ious, shifts = list[Tensor](), list[Tensor]()
    without_box = false_boxes = 0
    for start in range(0, len(samples), batch_size):
        items = [samples[index] for index in range(start, min(start + batch_size, len(samples)))]
        found = detector(torch.stack([item[Keys.IMAGE] for item in items]))
        for item, box, is_detected in zip(items, found.boxes, found.is_detected.tolist(), strict=True):
            truth = boxes_of_label(item[Keys.LABEL], has_instances)
            if not len(truth):
                false_boxes += is_detected
                continue
            truth_in_input = scale_boxes(truth, _size(item[Keys.LABEL]), _size(item[Keys.IMAGE]))
            iou, best = (box_iou(box[None], truth_in_input)[0] * is_detected).max(dim=0)
            ious.append(iou)
            without_box += not is_detected
            if iou >= FOUND_IOU:
                shifts.append(_edge_shifts(box, truth_in_input[best]))
    if not ious:
        raise DataError(f"None of {len(samples)} labels holds an object; a detector is measured on objects")
    iou = torch.stack(ious)
    return BoxScores(
        images=len(ious),
        mean_iou=float(iou.mean()),
        iou50=float((iou >= 0.5).float().mean()),
        iou75=float((iou >= 0.75).float().mean()),
        without_box=without_box / len(ious),
        false_boxes=false_boxes,
        edge_error=_MAD_TO_DEVIATION * float(torch.cat(shifts).abs().median()) if shifts else 0.0,
    )


def _edge_shifts(box: Tensor, truth: Tensor) -> Tensor:
    """How far the four edges of xyxy ``(4,)`` lie from the true ones, as shares of the true width and height."""
    return (box - truth) / (truth[2:] - truth[:2]).repeat(2)


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]
