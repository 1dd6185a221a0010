"""Training data of a detector: boxes from masks, and the folder of images and labels that YOLO reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import PIL.Image
import torch
from torch import Tensor
from torchvision.ops import box_convert

from amsam_med.boxes import box_from_mask, scale_boxes
from amsam_med.errors import DataError
from amsam_med.keys import Keys

HELD_OUT = 10
"""Every tenth image of a set without a validation part selects the best epoch."""

T = TypeVar("T")


class Samples(Protocol):
    """A sequence of prepared items, e.g. MONAI's ``Dataset``.

    An item holds ``image``, float32 ``(3, S, S)`` in [0, 1], prepared as it will be at inference, and ``label``,
    integer ``(1, H, W)`` of any size: 0 for background, else a class or an instance.
    """

    def __len__(self) -> int:
        """Number of items."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """One item."""
        ...


class YoloFolder(NamedTuple):
    """What :func:`write_yolo_folder` wrote.

    Attributes:
        images: The folder of images; YOLO looks for the labels in its sibling ``labels``.
        input_size: S, the side of every image in pixels.
    """

    images: Path
    input_size: int


def boxes_of_label(label: Tensor, has_instances: bool = False) -> Tensor:
    """The boxes of the objects of a label.

    Args:
        label: Integer ``(1, H, W)``, 0 for background.
        has_instances: Every id is a separate object; else all non-zero pixels together are one.

    Returns:
        float32 ``(N, 4)``, xyxy pixels of the label; ``(0, 4)`` for an empty one.
    """
    ids = torch.unique(label[label != 0]) if has_instances else []
    masks = [label[0] == number for number in ids] if has_instances else [label[0] != 0]
    boxes = [box for mask in masks if (box := box_from_mask(mask)) is not None]
    return torch.stack(boxes) if boxes else torch.zeros(0, 4)


def hold_out(items: Sequence[T]) -> tuple[list[T], list[T]]:
    """Split a list without a validation part: every tenth item is held out for validation.

    Raises:
        DataError: There are fewer than two items.
    """
    if len(items) < 2:
        raise DataError(f"{len(items)} labelled image(s) to train on; give at least 2, as one of ten is held out")
    train = [item for number, item in enumerate(items) if number % HELD_OUT]
    return train, [item for number, item in enumerate(items) if number % HELD_OUT == 0]


def write_yolo_folder(samples: Samples, folder: Path, has_instances: bool = False) -> YoloFolder:
    """Write ``folder/images`` and ``folder/labels``; an image without an object is a negative example.

    Args:
        samples: Prepared items.
        folder: Made by this function.
        has_instances: As for :func:`boxes_of_label`.

    Raises:
        DataError: There is no item, an image has another size than the first, or no label holds an object.
    """
    images, labels = folder / "images", folder / "labels"
    images.mkdir(parents=True)
    labels.mkdir()
    if not len(samples):
        raise DataError(f"The {folder.name} part has no images; give a folder with images and masks")
    input_size, object_count = samples[0][Keys.IMAGE].shape[-1], 0
    for number in range(len(samples)):
        item = samples[number]
        boxes = boxes_of_label(item[Keys.LABEL], has_instances)
        _write_image(item[Keys.IMAGE], images / f"{number:06d}.png", input_size)
        (labels / f"{number:06d}.txt").write_text(_yolo_rows(boxes, item[Keys.LABEL]))
        object_count += len(boxes)
    if not object_count:
        raise DataError(f"All masks of the {folder.name} part are empty; a detector needs objects to learn from")
    return YoloFolder(images, input_size)


def _write_image(image: Tensor, path: Path, input_size: int) -> None:
    if image.shape != (3, input_size, input_size):
        expected = f"(3, {input_size}, {input_size}) as the first"
        raise DataError(f"Image {path.stem} has shape {tuple(image.shape)}; expected {expected}. Prepare all alike")
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0)  # (3, S, S) -> (S, S, 3)
    PIL.Image.fromarray(pixels.contiguous().numpy()).save(path, compress_level=1)


def _yolo_rows(boxes: Tensor, label: Tensor) -> str:
    """One line "class centre-x centre-y width height" per box, as shares of the image's size."""
    height, width = label.shape[-2:]
    shares = box_convert(scale_boxes(boxes, (height, width), (1, 1)), "xyxy", "cxcywh")
    return "".join("0 " + " ".join(f"{share:.6f}" for share in row) + "\n" for row in shares.tolist())
