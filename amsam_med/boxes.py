"""Boxes: x1, y1, x2, y2 in pixels with continuous edges.

A mask whose object fills columns ``a..b`` and rows ``c..d`` (inclusive) has the box ``(a, c, b + 1, d + 1)``, so that a
box scales with its frame by plain multiplication. Names carry the frame where two exist: ``box_in_input`` is in the
model's square input, ``box_in_original`` in the image file.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from skimage.measure import label
from torch import Tensor
from torchvision.ops import clip_boxes_to_image, masks_to_boxes

from amsam_med.choices import BoxChoice as BoxChoice

Size = tuple[int, int]
"""(height, width) in pixels."""


class Detections(NamedTuple):
    """One box per image, as a detector found it.

    Attributes:
        boxes: float32 ``(B, 4)``, xyxy pixels of the detector's input.
        confidence: float32 ``(B,)`` in 0..1.
        is_detected: bool ``(B,)``; False if the confidence is too low for the box to be used as a prompt.
    """

    boxes: Tensor
    confidence: Tensor
    is_detected: Tensor


class BoxDetector(Protocol):
    """Anything that finds the most likely object of each image."""

    def __call__(self, image: Tensor) -> Detections:
        """Find one box for each image of float32 ``(B, 3, S, S)`` in [0, 1]."""
        ...


def box_from_mask(mask: Tensor) -> Tensor | None:
    """The tight box of all non-zero pixels of ``(H, W)``, float32 ``(4,)``; None for an empty mask."""
    is_object = mask != 0
    if not bool(is_object.any()):
        return None
    first_to_last: Tensor = masks_to_boxes(is_object[None])[0]
    return first_to_last + torch.tensor([0.0, 0.0, 1.0, 1.0])


def largest_parts(mask: Tensor, share: float) -> Tensor:
    """The connected parts of a mask (corners connect) that have at least a share of the largest one's area.

    Args:
        mask: ``(H, W)`` on the CPU, the object where it is not zero.
        share: In [0, 1]; 0 keeps every part.

    Returns:
        bool ``(H, W)``.
    """
    is_object = mask != 0
    if share <= 0:
        return is_object
    part_of = label(is_object.numpy())  # type: ignore[no-untyped-call]
    areas = np.bincount(part_of.ravel())
    areas[0] = 0  # the background is no part
    return is_object & torch.from_numpy((areas >= share * areas.max())[part_of])


def full_image_box(size: Size) -> Tensor:
    """The box of a whole image of ``size`` (height, width): float32 ``(4,)``."""
    height, width = size
    return torch.tensor([0.0, 0.0, float(width), float(height)])


def scale_boxes(boxes: Tensor, from_size: Size, to_size: Size) -> Tensor:
    """Scale ``(..., 4)`` boxes from a frame of ``from_size`` (height, width) to one of ``to_size``."""
    y_scale, x_scale = to_size[0] / from_size[0], to_size[1] / from_size[1]
    return boxes * boxes.new_tensor([x_scale, y_scale, x_scale, y_scale])


def clip_boxes(boxes: Tensor, size: Size) -> Tensor:
    """Clip ``(..., 4)`` boxes to an image of ``size`` (height, width)."""
    clipped: Tensor = clip_boxes_to_image(boxes, size)
    return clipped


def jitter_boxes(boxes: Tensor, amount: float, size: Size, generator: torch.Generator | None = None) -> Tensor:
    """Move every edge of ``(B, 4)`` boxes at random, as an imperfect detector or hand would.

    Args:
        boxes: float32 ``(B, 4)``, xyxy pixels in a frame of ``size``.
        amount: Standard deviation of the shift of an edge, as a share of the box's width or height.
        size: (height, width) of the frame; the result stays inside it.
        generator: Source of randomness; torch's global one by default.

    Returns:
        float32 ``(B, 4)``; each box keeps at least one pixel of width and height.
    """
    width_height = boxes[:, 2:] - boxes[:, :2]
    noise = torch.randn(boxes.shape, generator=generator, device=boxes.device)
    moved = boxes + amount * noise * width_height.repeat(1, 2)
    ordered = torch.cat([torch.minimum(moved[:, :2], moved[:, 2:]), torch.maximum(moved[:, :2], moved[:, 2:])], dim=1)
    clipped = clip_boxes(ordered, size)
    limit = clipped.new_tensor([size[1], size[0]])
    top_left = torch.minimum(clipped[:, :2], limit - 1)
    return torch.cat([top_left, torch.maximum(clipped[:, 2:], top_left + 1)], dim=1)


def box_centres(boxes: Tensor) -> Tensor:
    """Centre points of ``(B, 4)`` boxes: ``(B, 1, 2)`` as x, y in the boxes' frame."""
    return ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None]
