"""Files into arrays: one reader for every format, for images and for masks.

=============  =====================================================================================================
PNG JPEG BMP   EXIF orientation is applied. Grey, palette and CMYK become RGB; transparent pixels lie on black; of
WebP TIFF      16-bit values the upper 8 bits count. ICC profiles are not applied. Several pages are refused.
NIfTI          One slice, grey or colour; see :mod:`amsam_med.data.nifti`.
DICOM          One frame; see :mod:`amsam_med.data.dicom`.
=============  =====================================================================================================

Every fault is a :class:`~amsam_med.errors.DataError` that names the file without its folder. Images of more than
``PIXEL_LIMIT`` pixels are refused before they are decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import PIL.Image
import PIL.ImageOps
from monai.data.image_reader import ImageReader
from monai.utils.enums import MetaKeys
from numpy.typing import NDArray

from amsam_med.boxes import Size
from amsam_med.data.dicom import dicom_size, is_dicom, read_dicom
from amsam_med.data.nifti import is_nifti, nifti_size, read_nifti, read_nifti_labels
from amsam_med.errors import DataError

PIXEL_LIMIT = 85_000_000
"""The largest image that is decoded: room for 60-megapixel cameras, below Pillow's own alarm at 89 million pixels."""

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
IMAGE_SUFFIXES = (*PICTURE_SUFFIXES, ".nii", ".nii.gz", ".dcm", ".dicom")
"""Suffixes, in lower case, by which a folder's images are found."""

_PICTURE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
_ORIENTATION_TAG = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height

FilePath: TypeAlias = str | PathLike[str]


class Image(NamedTuple):
    """An image as its file shows it.

    Attributes:
        pixels: uint8 ``(3, H, W)`` RGB.
        meta: ``format`` (for example ``"JPEG"``) and ``original_size``, (height, width) in pixels.
    """

    pixels: NDArray[np.uint8]
    meta: dict[str, Any]


def read_image(path: FilePath) -> Image:
    """Read any supported image.

    Raises:
        DataError: The file is missing, damaged, too large, or not one image; the text names it and the way out.
    """
    path = Path(path)
    with _named_faults(path):
        _refuse_bombs(path, _size(path))
        if is_dicom(path):
            pixels, format_name = read_dicom(path), "DICOM"
        elif is_nifti(path):
            pixels, format_name = read_nifti(path), "NIfTI"
        else:
            pixels, format_name = _picture_pixels(path)
    return Image(pixels.transpose(2, 0, 1), {"format": format_name, "original_size": pixels.shape[:2]})


def read_mask(path: FilePath, values: Sequence[int] | None = None) -> NDArray[np.uint8]:
    """Read a mask as class ids, uint8 ``(H, W)``.

    Args:
        path: A picture of one channel, of equal channels or with a palette, or a NIfTI slice.
        values: The file's value of class 0, 1, 2, ...; ``range(5)`` where the file holds class ids 0..4. By default
            one class, written as 0/255 or 0/1.

    Raises:
        DataError: The file cannot be read, or holds values besides those (a mask saved as JPEG does).
    """
    path = Path(path)
    with _named_faults(path):
        _refuse_bombs(path, _size(path))
        stored = _as_labels(path, read_nifti_labels(path)) if is_nifti(path) else _picture_labels(path)
    found = np.flatnonzero(np.bincount(stored.ravel()))
    return _class_of_value(path, found, values)[stored]


def image_size(path: FilePath) -> Size:
    """(height, width) of an image or mask as :func:`read_image` will show it, from its header alone.

    Raises:
        DataError: The file is missing, damaged, or not one image.
    """
    path = Path(path)
    with _named_faults(path):
        return _size(path)


class RgbReader(ImageReader):
    """:func:`read_image` for ``LoadImaged(keys="image", reader=RgbReader)``: ``(3, H, W)``, channel first.

    MONAI tries its own readers on a file for which ``read`` fails, and some of those show it wrongly or know no limit
    of size. Therefore ``read`` only notes the path, and ``get_data`` decodes: its fault is final.
    """

    def verify_suffix(self, filename: Any) -> bool:
        """Whether all files are named like images that :func:`read_image` knows."""
        return all(str(name).lower().endswith(IMAGE_SUFFIXES) for name in _as_paths(filename))

    def read(self, data: Any, **kwargs: Any) -> Path:
        """Note the path of one file."""
        paths = _as_paths(data)
        if len(paths) != 1:
            raise DataError(f"An item has {len(paths)} files for one image; give one file an item")
        return paths[0]

    def get_data(self, img: Any) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Decode: uint8 ``(C, H, W)`` and MONAI's metadata, with ``spatial_shape`` (height, width)."""
        pixels, meta = self._decode(img)
        return pixels, {
            **meta,
            MetaKeys.SPATIAL_SHAPE: np.asarray(pixels.shape[1:]),
            MetaKeys.ORIGINAL_CHANNEL_DIM: 0,
        }

    def _decode(self, path: Path) -> Image:
        return read_image(path)


class MaskReader(RgbReader):
    """:func:`read_mask` for ``LoadImaged(keys="label", reader=MaskReader())``: class ids ``(1, H, W)``.

    Args:
        values: As for :func:`read_mask`.
    """

    def __init__(self, values: Sequence[int] | None = None) -> None:
        self.values = values

    def _decode(self, path: Path) -> Image:
        mask = read_mask(path, self.values)
        return Image(mask[None], {"format": path.suffix.lstrip(".").upper(), "original_size": mask.shape})


def _as_paths(files: Any) -> list[Path]:
    return [Path(files)] if isinstance(files, str | PathLike) else [Path(file) for file in files]


@contextmanager
def _named_faults(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises into a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path.name}: no such file. Check the path") from None
    except PIL.UnidentifiedImageError:
        known = "PNG, JPEG, BMP, WebP, TIFF, NIfTI (.nii, .nii.gz) and DICOM (.dcm)"
        raise DataError(f"{path.name}: not an image of a known format or damaged; known are {known}") from None
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        raise _bomb(path, "far more") from None
    except Exception as error:  # decoders raise nearly anything on damaged bytes: SyntaxError, struct.error, EOFError
        detail = str(error).replace(str(path), path.name) or type(error).__name__
        raise DataError(f"{path.name}: cannot be decoded ({detail}). Export it again, for example as PNG") from error


def _refuse_bombs(path: Path, size: Size) -> None:
    if size[0] * size[1] > PIXEL_LIMIT:
        raise _bomb(path, f"{size[1]} x {size[0]}")


def _bomb(path: Path, size: str) -> DataError:
    return DataError(f"{path.name}: {size} pixels, at most {PIXEL_LIMIT:,} are decoded. Scale it down or cut it")


def _size(path: Path) -> Size:
    if is_dicom(path):
        return dicom_size(path)
    if is_nifti(path):
        return nifti_size(path)
    with PIL.Image.open(path, formats=_PICTURE_FORMATS) as picture:
        # Pillow decodes a PNG without EXIF in search of EXIF after the pixels; a header check must not.
        has_exif = picture.format != "PNG" or "exif" in picture.info
        is_sideways = has_exif and picture.getexif().get(_ORIENTATION_TAG) in _SIDEWAYS
        return (picture.width, picture.height) if is_sideways else (picture.height, picture.width)


@contextmanager
def _upright_picture(path: Path) -> Iterator[PIL.Image.Image]:
    with PIL.Image.open(path, formats=_PICTURE_FORMATS) as picture:
        pages = getattr(picture, "n_frames", 1)
        if pages > 1 and picture.format != "MPO":  # a phone's MPO: the photograph, then previews of it
            raise DataError(f"{path.name}: holds {pages} pages or frames; one is expected. Export the one you need")
        PIL.ImageOps.exif_transpose(picture, in_place=True)
        yield picture


def _picture_pixels(path: Path) -> tuple[NDArray[np.uint8], str]:
    with _upright_picture(path) as picture:
        if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
            return _grey_pixels(path, np.asarray(picture)), str(picture.format)
        if picture.has_transparency_data:
            layer = picture.convert("RGBA")
            on_black = PIL.Image.new("RGBA", layer.size, (0, 0, 0, 255))
            picture_rgb = PIL.Image.alpha_composite(on_black, layer).convert("RGB")
        else:
            picture_rgb = picture.convert("RGB")
        return np.asarray(picture_rgb), str(picture.format)


def _grey_pixels(path: Path, values: NDArray[np.generic]) -> NDArray[np.uint8]:
    if values.dtype.kind == "f" or int(values.min()) < 0 or int(values.max()) > 65535:
        raise DataError(f"{path.name}: grey values beyond 16 bits have no fixed white. Export it with 8 or 16 bits")
    return np.repeat((values.astype(np.uint16) >> 8).astype(np.uint8)[..., None], 3, axis=-1)


def _picture_labels(path: Path) -> NDArray[np.uint8]:
    """The stored values of a mask picture, ``(H, W)``: palette indices where the palette is coloured."""
    if is_dicom(path):
        raise DataError(f"{path.name}: a mask cannot be DICOM yet. Export it as PNG")
    with _upright_picture(path) as picture:
        if picture.mode == "P" and _is_equal_channels(np.asarray(picture.convert("RGB"))):
            picture = picture.convert("RGB")
        values = np.asarray(picture)
    if values.ndim == 2:
        return _as_labels(path, values)
    colours, alpha = (values[..., :3], values[..., 3:]) if values.shape[-1] > 2 else (values[..., :1], values[..., 1:])
    if not _is_equal_channels(colours) or not (alpha == 255).all():
        raise DataError(f"{path.name}: a colour picture, not a mask. Export it as PNG with one channel of class ids")
    return _as_labels(path, colours[..., 0])


def _is_equal_channels(values: NDArray[np.generic]) -> bool:
    return bool((values == values[..., :1]).all())


def _as_labels(path: Path, values: NDArray[np.generic]) -> NDArray[np.uint8]:
    labels = values.astype(np.uint8, copy=False)
    if values.dtype != np.uint8 and not np.array_equal(labels, values):
        raise DataError(f"{path.name}: holds values that are not whole numbers of 0..255. Save class ids as 8-bit PNG")
    return labels


def _class_of_value(path: Path, found: NDArray[np.intp], values: Sequence[int] | None) -> NDArray[np.uint8]:
    """A table of 256 class ids, after a check that it covers all values found."""
    if values is None:
        values = (0, 1) if 1 in found else (0, 255)
    stray = [str(value) for value in found if value not in values]
    if stray:
        shown = ", ".join(stray[:5]) + (f" and {len(stray) - 5} more" if len(stray) > 5 else "")
        raise DataError(
            f"{path.name}: the mask holds the values {shown}; expected {', '.join(map(str, values))} only. "
            "Save masks as PNG (JPEG blurs them), without resampling; for class ids 0..C set the number of classes"
        )
    table = np.zeros(256, np.uint8)
    table[list(values)] = np.arange(len(values))
    return table
