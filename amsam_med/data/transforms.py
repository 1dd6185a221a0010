"""Pre- and postprocessing between an image's own frame and the model's, as flat MONAI ``Compose`` objects.

Preprocessing squashes an image of any size to ``S x S`` (without keeping its aspect ratio) with antialiasing and scales
it to [0, 1]. Postprocessing upsamples the logits to the image's size and thresholds them there, so that a mask's edge
is smooth.

Command line, server and Python API all use :func:`prepare_image` and :func:`restore_original`, for files and arrays, so
all of them give the same mask. Images are resized by Pillow in fixed point: the same bytes on every machine. Decoding
JPEG at a reduced size (Pillow's ``draft``) is faster but not used, as its pixels differ from those of the array.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose
from monai.transforms.transform import MapTransform
from monai.utils.enums import MetaKeys, PostFix
from monai.utils.misc import ImageMetaKey
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from amsam_med.boxes import Size
from amsam_med.data.readers import Image, read_image, read_mask
from amsam_med.errors import AmsamError, ConfigError, DataError
from amsam_med.keys import Keys

INPUT_SIZE = 256
"""Side of the model's square input in pixels."""

_IMAGE_META = PostFix.meta(Keys.IMAGE.value)


class Pipeline(Compose):
    """A ``Compose`` that lets an ``AmsamError`` through, where MONAI would bury it in a RuntimeError."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Apply all transforms to one item."""
        try:
            return super().__call__(*args, **kwargs)
        except RuntimeError as error:
            if isinstance(error.__cause__, AmsamError):
                raise error.__cause__ from None
            raise


def preprocessing(
    input_size: int = INPUT_SIZE,
    with_label: bool = False,
    label_at: Literal["input", "original"] = "input",
    num_classes: int = 1,
) -> Pipeline:
    """From ``{"image": path, "label": path}`` to what the network takes; plain tensors, no MetaTensor.

    The item then holds ``image`` float32 ``(3, S, S)`` in [0, 1]; ``image_meta_dict`` with ``filename_or_obj``,
    ``format`` and ``spatial_shape``, the (height, width) of the file's image; and, with a label, ``label`` uint8
    ``(1, S, S)`` or ``(1, H, W)`` of class ids.

    Args:
        input_size: S, a side of the network's input in pixels.
        with_label: Whether to read the mask as well.
        label_at: ``"input"`` squashes the label with the image; ``"original"`` keeps its pixels, for evaluation (with
            images of several sizes this asks for batches of one).
        num_classes: C. With one class, masks are 0/255 or 0/1; with more they hold the class ids 0..C.

    Raises:
        ConfigError: A setting is out of range.
    """
    if input_size < 1 or num_classes < 1 or label_at not in ("input", "original"):
        got = f"input_size={input_size}, num_classes={num_classes}, label_at={label_at!r}"
        raise ConfigError(f'preprocessing got {got}; expected two positive numbers and "input" or "original"')
    steps: list[MapTransform] = [PrepareImaged(Keys.IMAGE, input_size)]
    if with_label:
        values = range(num_classes + 1) if num_classes > 1 else None
        steps.append(PrepareLabeld(Keys.LABEL, input_size if label_at == "input" else None, values))
    return Pipeline(steps)


def postprocessing(keys: KeysCollection = Keys.PRED) -> Pipeline:
    """From ``pred``, logits ``(C+1, h, w)``, to the mask uint8 ``(1, H, W)`` of class ids in the original frame."""
    return Pipeline([RestoreOriginald(keys)])


def prepare_image(pixels: NDArray[np.uint8] | Tensor, input_size: int = INPUT_SIZE) -> Tensor:
    """An image in memory as the network's input.

    Args:
        pixels: uint8 ``(3, H, W)`` RGB.
        input_size: S, a side of the input in pixels.

    Returns:
        float32 ``(3, S, S)`` in [0, 1].

    Raises:
        DataError: ``pixels`` has another shape or type.
    """
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
        got = f"{pixels.dtype} {tuple(pixels.shape)}"
        raise DataError(f"An image in memory must be uint8 (3, H, W) RGB; got {got}. Convert it, or give a file")
    picture = PIL.Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    squashed = np.array(picture.resize((input_size, input_size), PIL.Image.Resampling.BILINEAR))
    return torch.from_numpy(squashed).permute(2, 0, 1).contiguous().float().div_(255)  # (S, S, 3) -> (3, S, S)


def prepare_label(mask: NDArray[np.uint8] | Tensor, input_size: int = INPUT_SIZE) -> Tensor:
    """Class ids uint8 ``(H, W)`` in the model's frame: uint8 ``(1, S, S)``, each pixel its nearest original one."""
    picture = PIL.Image.fromarray(np.ascontiguousarray(mask))
    squashed = np.array(picture.resize((input_size, input_size), PIL.Image.Resampling.NEAREST))
    return torch.from_numpy(squashed)[None]


def restore_original(mask_logits: Tensor, original_size: Size) -> Tensor:
    """The mask of one image in its own frame.

    The logits are upsampled and then thresholded; upsampling the mask would give jagged edges. With two channels only
    their difference is upsampled, as nothing else matters; a tie is background.

    Args:
        mask_logits: ``(C+1, h, w)``; channel 0 is background.
        original_size: (height, width) of the image in pixels.

    Returns:
        Class ids, uint8 ``(H, W)``, on the logits' device.
    """
    logits = mask_logits.float()
    if len(logits) == 2:
        return (_upsample(logits[1:] - logits[:1], original_size)[0] > 0).to(torch.uint8)
    return _upsample(logits, original_size).argmax(dim=0).to(torch.uint8)


class PrepareImaged(MapTransform):
    """:func:`read_image` and :func:`prepare_image` for an item.

    Replaces ``LoadImaged(reader=RgbReader)`` and a resize: it saves a MetaTensor (3 ms per image), and MONAI's loader
    warns about decoders that are not installed and not needed.

    Args:
        keys: Key of the image: a path, or uint8 ``(3, H, W)`` RGB in memory.
        input_size: S, a side of the network's input in pixels.
    """

    def __init__(self, keys: KeysCollection, input_size: int = INPUT_SIZE) -> None:
        super().__init__(keys)
        self.input_size = input_size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Put float32 ``(3, S, S)`` in the image's place, and what is known of its file into ``image_meta_dict``."""
        item = dict(data)
        for key in self.key_iterator(item):
            image, name = _load(item[key])
            item[_IMAGE_META] = {
                ImageMetaKey.FILENAME_OR_OBJ: name,
                MetaKeys.SPATIAL_SHAPE: np.asarray(image.pixels.shape[1:]),
                "format": image.meta["format"],
            }
            item[key] = prepare_image(image.pixels, self.input_size)
        return item


class PrepareLabeld(MapTransform):
    """:func:`read_mask` and :func:`prepare_label` for an item, after a check that the mask has its image's size.

    Args:
        keys: Key of the label, a path.
        input_size: S in pixels; None leaves the label in the original frame.
        values: As for :func:`read_mask`.
    """

    def __init__(
        self, keys: KeysCollection, input_size: int | None = INPUT_SIZE, values: Sequence[int] | None = None
    ) -> None:
        super().__init__(keys)
        self.input_size = input_size
        self.values = values

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Put uint8 ``(1, S, S)`` or ``(1, H, W)`` in the label's place; the image must have been prepared before."""
        item = dict(data)
        for key in self.key_iterator(item):
            mask = read_mask(item[key], self.values)
            _check_same_size(Path(item[key]).name, mask.shape, _original_size(item))
            item[key] = (
                torch.from_numpy(mask)[None] if self.input_size is None else prepare_label(mask, self.input_size)
            )
        return item


class RestoreOriginald(MapTransform):
    """:func:`restore_original` for an item: logits ``(C+1, h, w)`` become a uint8 ``(1, H, W)`` mask.

    The mask is a MetaTensor with the image's metadata, so that ``SaveImaged`` names its file after the image's.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Restore one item, which must hold the ``image_meta_dict`` that :func:`preprocessing` gave it."""
        item = dict(data)
        for key in self.key_iterator(item):
            mask = restore_original(torch.as_tensor(item[key]), _original_size(item))
            item[key] = MetaTensor(mask[None], meta=dict(item[_IMAGE_META]))
        return item


class LogitsToMaskd(MapTransform):
    """The masks and the label of an item at the size of the logits, one channel per class, for MONAI's ``MeanDice``.

    Logits ``(C+1, h, w)`` become float32 ``(C, h, w)`` of 0 and 1, and class ids ``(1, H, W)`` of the label become the
    same, each pixel from its nearest. The background has no channel, so score with ``include_background=True``.

    Args:
        keys: Key of the logits.
        label_key: Key of the label.
    """

    def __init__(self, keys: KeysCollection, label_key: str = Keys.LABEL) -> None:
        super().__init__(keys)
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Threshold one item; of equal logits the class with the lowest id wins."""
        item = dict(data)
        for key in self.key_iterator(item):
            logits, label = torch.as_tensor(item[key]), torch.as_tensor(item[self.label_key])
            size = (logits.shape[-2], logits.shape[-1])
            label_at_logits = interpolate(label[None].float(), size=size, mode="nearest-exact")[0, 0]  # (h, w)
            item[key] = _class_channels(logits.argmax(dim=0), len(logits) - 1)
            item[self.label_key] = _class_channels(label_at_logits, len(logits) - 1)
        return item


def _class_channels(ids: Tensor, num_classes: int) -> Tensor:
    """Class ids ``(h, w)`` as float32 ``(C, h, w)``, without the background."""
    classes = torch.arange(1, num_classes + 1, device=ids.device)
    return (ids == classes[:, None, None]).float()


def _original_size(item: Mapping[Hashable, Any]) -> Size:
    height, width = item[_IMAGE_META][MetaKeys.SPATIAL_SHAPE]
    return int(height), int(width)


def _upsample(logits: Tensor, size: Size) -> Tensor:
    return interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


def _load(image: Any) -> tuple[Image, str]:
    """An image and its name, from a path or from memory."""
    if isinstance(image, str | PathLike):
        return read_image(image), str(image)
    return Image(np.asarray(image), {"format": "memory"}), ""


def _check_same_size(name: str, mask_size: Sequence[int], image_size: Sequence[int]) -> None:
    if list(mask_size) != list(image_size):
        got, expected = (f"{width} x {height}" for height, width in (mask_size, image_size))
        raise DataError(f"{name}: the mask is {got} pixels, its image {expected}. Give the mask of this very image")
