"""The eight flips and rotations of a square image, and what they do to boxes.

View ``k`` rotates by ``k % 4`` quarter turns (counter-clockwise) and then, for ``k >= 4``, mirrors left to right. View
0 is the image itself. A frozen encoder sees each view once, so views are augmentation at no cost per epoch.

Which views make sense depends on the object: a lesion may be turned in any way, a person is upright.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amsam_med.choices import ViewKind as ViewKind
from amsam_med.errors import ConfigError

VIEW_COUNT = 8
MIRROR = 4
VIEWS_OF_KIND: dict[ViewKind, tuple[int, ...]] = {"all": tuple(range(VIEW_COUNT)), "mirror": (0, MIRROR), "none": (0,)}


def views_of(kind: ViewKind) -> tuple[int, ...]:
    """The views of a kind; the first is the image itself.

    Raises:
        ConfigError: There is no such kind.
    """
    if kind not in VIEWS_OF_KIND:
        raise ConfigError(f"views is {kind!r}; expected one of {', '.join(VIEWS_OF_KIND)}")
    return VIEWS_OF_KIND[kind]


def view_image(image: Tensor, view: int) -> Tensor:
    """View ``view`` of ``(..., S, S)`` (images, masks, logits alike)."""
    turned = torch.rot90(image, view % 4, dims=(-2, -1))
    return turned.flip(-1) if view >= 4 else turned


def unview_image(image: Tensor, view: int) -> Tensor:
    """Undo :func:`view_image`."""
    straight = image.flip(-1) if view >= 4 else image
    return torch.rot90(straight, -(view % 4), dims=(-2, -1))


def view_boxes(boxes: Tensor, view: int, size: int) -> Tensor:
    """Boxes ``(..., 4)``, xyxy pixels of an ``size`` x ``size`` image, in the frame of its view ``view``."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    for _ in range(view % 4):  # a quarter turn counter-clockwise: (x, y) -> (y, size - x)
        x1, y1, x2, y2 = y1, size - x2, y2, size - x1
    if view >= 4:
        x1, x2 = size - x2, size - x1
    return torch.stack([x1, y1, x2, y2], dim=-1)


def unview_boxes(boxes: Tensor, view: int, size: int) -> Tensor:
    """Undo :func:`view_boxes`: a mirrored view is its own inverse, a rotated one is completed to four quarter turns."""
    return view_boxes(boxes, view if view >= 4 else -view % 4, size)
