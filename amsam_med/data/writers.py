"""Masks and overlays into files, each complete or not there at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms.transform import MapTransform
from monai.utils.enums import PostFix
from monai.utils.misc import ImageMetaKey
from numpy.typing import NDArray
from skimage.measure import find_contours
from torch import Tensor

from amsam_med.data.datalists import image_stem
from amsam_med.data.readers import read_image
from amsam_med.errors import DataError
from amsam_med.keys import Keys

Colour: TypeAlias = tuple[int, int, int]

OUTLINE_COLOURS: tuple[Colour, ...] = (
    (0, 230, 170),
    (255, 176, 0),
    (100, 143, 255),
    (220, 38, 127),
    (254, 97, 0),
    (120, 94, 240),
)
"""RGB of classes 1, 2, ... (then again from the first): apart from skin and tissue, and for the colour-blind."""

BOX_COLOUR = (255, 255, 255)
FLAG_COLOUR = (176, 0, 32)
MASK_ENDING = "_segmentation.png"
"""What follows an image's stem in the name of its mask, as in ISIC 2018."""

_PIXELS_PER_LINE_WIDTH = 320  # a line is this share of the image's longer side
_DASH_WIDTHS = 8  # a dash is as many line widths long
_SMALLEST_WORDS = 8.0  # pixels


class Result(NamedTuple):
    """What a format writes of one image.

    Attributes:
        image: The image file.
        mask: Class ids, uint8 ``(H, W)``, in the original frame.
        box_in_original: float32 ``(4,)``, xyxy pixels of the image; None where no box was used.
        flags: Words that say why the result deserves a look; mostly none.
    """

    image: Path
    mask: NDArray[np.uint8]
    box_in_original: Tensor | None
    flags: Sequence[str] = ()


class Format(NamedTuple):
    """A kind of result file.

    Attributes:
        folder: Sub-folder of the output folder.
        column: Column of ``results.csv`` that names the file.
        ending: From the image's path to what follows its stem.
        write: Writes one result, whole or not at all.
    """

    folder: str
    column: str
    ending: Callable[[Path], str]
    write: Callable[[Result, Path], None]


@contextmanager
def atomic_path(path: str | PathLike[str]) -> Iterator[Path]:
    """Lend a name beside ``path`` to write to; it becomes ``path`` when the block ends without an error.

    Readers see the old file or the whole new one. Missing folders are made; a failed block leaves nothing behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, as libraries choose the format by it.
    lent = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield lent
        os.replace(lent, path)
    finally:
        lent.unlink(missing_ok=True)


def write_mask_png(mask: NDArray[np.uint8] | Tensor, path: str | PathLike[str]) -> None:
    """Write class ids, uint8 ``(H, W)``, as 8-bit grey PNG.

    One class is written as ISIC does, 0 and 255; with ids above 1 the file holds the ids themselves.

    Raises:
        DataError: The mask has another shape or type.
    """
    ids = _checked_mask(mask)
    values = ids if ids.max(initial=0) > 1 else ids * np.uint8(255)
    with atomic_path(path) as lent:
        PIL.Image.fromarray(values).save(lent, format="PNG")


def write_overlay(
    image: NDArray[np.uint8] | Tensor,
    mask: NDArray[np.uint8] | Tensor,
    path: str | PathLike[str],
    box: tuple[float, float, float, float] | NDArray[np.float32] | Tensor | None = None,
    flags: Sequence[str] = (),
) -> None:
    """Draw the outline of each class, and the box it came from, over the image.

    A flagged result has a dashed box, and its flags on a red strip at the bottom.

    Args:
        image: uint8 ``(3, H, W)`` RGB.
        mask: Class ids, uint8 ``(H, W)``.
        path: The file; its suffix gives the format (``.png``, ``.jpg``).
        box: x1, y1, x2, y2 in pixels of the image, or None.
        flags: Words that say why the result deserves a look.

    Raises:
        DataError: Image and mask do not fit together.
    """
    pixels, ids = np.asarray(image), _checked_mask(mask)
    if pixels.shape != (3, *ids.shape) or pixels.dtype != np.uint8:
        got = f"{pixels.dtype} {pixels.shape} and a mask {ids.shape}"
        raise DataError(f"An overlay needs a uint8 image (3, H, W) and a mask (H, W) of its size; got {got}")
    line_width = max(1, round(max(ids.shape) / _PIXELS_PER_LINE_WIDTH))
    picture = PIL.Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    if box is not None:
        _draw_box(picture, [float(edge) for edge in box], max(1, line_width // 2), is_dashed=bool(flags))
    for class_id in np.flatnonzero(np.bincount(ids.ravel())[1:]) + 1:
        _draw_outline(picture, ids == class_id, OUTLINE_COLOURS[(class_id - 1) % len(OUTLINE_COLOURS)], line_width)
    if flags:
        _draw_words(picture, ", ".join(flags))
    with atomic_path(path) as lent:
        picture.save(lent, quality=92, compress_level=3)  # JPEG takes the one, PNG the other


class SaveMaskd(MapTransform):
    """:func:`write_mask_png` for an item, as ``<output_dir>/<stem of the image>_segmentation.png``.

    Args:
        keys: Key of the mask, class ids uint8 ``(1, H, W)``.
        output_dir: Folder for the masks; made if missing.
        data_root: The images' folder, whose sub-folders are kept below ``output_dir``. Without it all masks lie side
            by side, and of two images with one stem the later one wins.
    """

    def __init__(
        self, keys: KeysCollection, output_dir: str | PathLike[str], data_root: str | PathLike[str] | None = None
    ) -> None:
        super().__init__(keys)
        self.output_dir = Path(output_dir)
        self.data_root = None if data_root is None else Path(data_root)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write one item's mask and hand the item on; it must hold the ``image_meta_dict`` of its preprocessing."""
        item = dict(data)
        for key in self.key_iterator(item):
            image = Path(str(item[PostFix.meta(Keys.IMAGE.value)][ImageMetaKey.FILENAME_OR_OBJ]))
            folder = Path() if self.data_root is None else image.relative_to(self.data_root).parent
            mask = torch.as_tensor(item[key]).cpu()[0]
            write_mask_png(mask, self.output_dir / folder / f"{image_stem(image)}{MASK_ENDING}")
        return item


def _checked_mask(mask: NDArray[np.uint8] | Tensor) -> NDArray[np.uint8]:
    ids = np.asarray(mask)
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise DataError(f"A mask to write must be uint8 (H, W) of class ids; got {ids.dtype} {ids.shape}")
    return ids


def _draw_outline(picture: PIL.Image.Image, is_object: NDArray[np.bool_], colour: Colour, line_width: int) -> None:
    draw = PIL.ImageDraw.Draw(picture)
    closed = np.pad(is_object, 1)  # an object at the image's edge gets its outline there, too
    contours: list[NDArray[np.float64]] = find_contours(closed, 0.5)  # type: ignore[no-untyped-call]
    for contour in contours:
        points = [(float(x) - 1, float(y) - 1) for y, x in contour]
        draw.line(points, fill=colour, width=line_width, joint="curve")


def _draw_box(picture: PIL.Image.Image, box_in_original: list[float], line_width: int, is_dashed: bool) -> None:
    x1, y1, x2, y2 = box_in_original
    right, bottom = max(x1, min(x2, picture.width) - 1), max(y1, min(y2, picture.height) - 1)  # last pixels inside
    draw, edges = PIL.ImageDraw.Draw(picture), (max(x1, 0), max(y1, 0), right, bottom)
    if not is_dashed:
        draw.rectangle(edges, outline=BOX_COLOUR, width=line_width)
        return
    frame = PIL.Image.new("L", picture.size)
    PIL.ImageDraw.Draw(frame).rectangle(edges, outline=255, width=line_width)
    rows, columns = np.indices((picture.height, picture.width), sparse=True)
    is_dash = (rows + columns) // (_DASH_WIDTHS * line_width) % 2 == 0  # along either axis, dash and gap alternate
    draw.bitmap((0, 0), PIL.Image.fromarray(np.asarray(frame) * is_dash.astype(np.uint8)), fill=BOX_COLOUR)


def _draw_words(picture: PIL.Image.Image, words: str) -> None:
    """Words on a strip at the bottom, as large as fits."""
    size = max(_SMALLEST_WORDS, picture.height / 24)
    wanted = PIL.ImageFont.load_default(size).getlength(words)
    size = max(_SMALLEST_WORDS, size * min(1, 0.96 * picture.width / wanted))
    draw, font, top = PIL.ImageDraw.Draw(picture), PIL.ImageFont.load_default(size), picture.height - 1.5 * size
    draw.rectangle((0, top, picture.width, picture.height), fill=FLAG_COLOUR)
    draw.text((picture.width / 2, top + 0.75 * size), words, fill=BOX_COLOUR, font=font, anchor="mm")


def _write_overlay(result: Result, path: Path) -> None:
    # Reading the image again costs less than holding all images of a batch at full size.
    write_overlay(read_image(result.image).pixels, result.mask, path, result.box_in_original, result.flags)


FORMATS = {
    "png": Format("masks", "mask_file", lambda _: MASK_ENDING, lambda result, path: write_mask_png(result.mask, path)),
    "overlay": Format(
        "overlays",
        "overlay_file",
        lambda image: "_overlay.jpg" if image.suffix.lower() in (".jpg", ".jpeg") else "_overlay.png",
        _write_overlay,
    ),
}
"""What a folder run can write of an image, by the name that users give."""
