"""Pictures that Pillow decodes: PNG, JPEG, BMP, WebP, GIF, TIFF.

A TIFF of several pages holds several pictures; a phone's MPO holds one, the photograph, as the others are previews.
Animations are refused. Pages with absurd sizes or counts are refused before they are decoded.
"""

from __future__ import annotations

import io
import math
import struct
from functools import cached_property
from typing import IO

import numpy as np
import PIL.Image
import PIL.ImageOps
from numpy.typing import NDArray

from amsam_med.boxes import Size
from amsam_med.data.decoder_process import jpeg_damage
from amsam_med.errors import DataError

PAGE_LIMIT = 10_000
"""The most pages of a TIFF; each costs time to find."""
SCAN_LIMIT = 100
"""The most scans of a JPEG; progressive ones have about ten, and each one is a pass over all pixels."""

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")
_ORIENTATION_TAG = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_TIFF_TAG_LIMIT = 500_000  # of all pages
_EXIF_LIMIT = 128 << 10  # bytes; its tags may all point at the same data, and are all read
_JPEGS = ("JPEG", "MPO")
_CHECKED_BYTES = 256 << 20  # of a JPEG, at most; it goes to another process
_SCAN = b"\xff\xda"  # begins a scan and occurs nowhere in its data
_BLOCK = 1 << 20
_BAND_PIXELS = 1 << 20  # that are brought to 8 bits or to RGB at once


class PictureFile:
    """An open picture; see :class:`amsam_med.data.readers.ImageFile` for what the attributes mean.

    Args:
        file: At its start; stays open for as long as this object is used.
        window: Centre and width of the grey values to show, for more than 8 bits.

    Raises:
        DataError: It is an animation, or too large to look through.
    """

    part = "page"
    bytes_per_pixel = 16  # at most, measured: 4 in Pillow, 3 here, 4 to turn it; 6 for progressive JPEGs
    spacing_mm = None

    def __init__(self, file: IO[bytes], window: tuple[float, float] | None = None) -> None:
        self._picture = PIL.Image.open(file, formats=_FORMATS)
        self.format = str(self._picture.format)
        self.count = self._counted(file)
        self._window = window
        self._file = file
        if self.format in _JPEGS:
            refuse_endless_scans(_scans(file))

    def close(self) -> None:
        """Free the pixels."""
        self._picture.close()

    @cached_property
    def damage(self) -> str:
        """Damage inside a JPEG that is decoded nevertheless; empty for intact files and other formats."""
        if self.format not in _JPEGS:
            return ""
        self._file.seek(0)
        content = self._file.read(_CHECKED_BYTES)
        return jpeg_damage(content) if len(content) < _CHECKED_BYTES else ""

    def size(self, index: int) -> Size:
        """(height, width) of a page, upright, from its header."""
        picture = self._picture
        picture.seek(index)
        # Pillow decodes a PNG without EXIF in search of EXIF after the pixels; a header check must not. It turns the
        # size of a TIFF by itself.
        has_exif = "exif" in picture.info if self.format == "PNG" else self.format != "TIFF"
        _refuse_large_exif(picture)
        is_sideways = has_exif and picture.getexif().get(_ORIENTATION_TAG) in _SIDEWAYS
        return (picture.width, picture.height) if is_sideways else (picture.height, picture.width)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """A page as uint8 ``(H, W, 3)`` RGB.

        Raises:
            DataError: It is grey without a known white, and no window was given.
        """
        return _rgb(self.upright(index), self._window)

    def upright(self, index: int) -> PIL.Image.Image:
        """A page in its own mode, turned as its EXIF says; it changes with the next call."""
        self._picture.seek(index)
        self._picture.load()
        _refuse_large_exif(self._picture)
        PIL.ImageOps.exif_transpose(self._picture, in_place=True)
        return self._picture

    def _counted(self, file: IO[bytes]) -> int:
        if self.format == "TIFF":
            return _tiff_pages(file)
        if self.format != "MPO" and getattr(self._picture, "is_animated", False):
            frames = self._picture.n_frames  # type: ignore[attr-defined]
            raise DataError(f"animated, {frames} frames; export the one you need, for example as PNG")
        return 1


def rgb_pixels(picture: PIL.Image.Image) -> NDArray[np.uint8]:
    """A picture in memory as the same picture in a file is read: uint8 ``(H, W, 3)`` RGB, turned as its EXIF says.

    Raises:
        DataError: It is grey without a known white.
    """
    return _rgb(PIL.ImageOps.exif_transpose(picture))


def _rgb(picture: PIL.Image.Image, window: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """An upright picture as uint8 ``(H, W, 3)``."""
    colours = np.empty((picture.height, picture.width, 3), np.uint8)
    rows = max(1, _BAND_PIXELS // picture.width)
    for top in range(0, picture.height, rows):  # as a whole, every step would be a copy of 4 bytes per pixel
        bottom = min(top + rows, picture.height)
        colours[top:bottom] = _colours(picture.crop((0, top, picture.width, bottom)), window)
    return colours


def _colours(picture: PIL.Image.Image, window: tuple[float, float] | None) -> NDArray[np.uint8]:
    """A picture as ``(H, W, 3)``, or ``(H, W, 1)`` where it is grey of more than 8 bits."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return _eight_bits(np.asarray(picture), window)[..., None]
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        on_black = PIL.Image.new("RGBA", layer.size, (0, 0, 0, 255))
        picture = PIL.Image.alpha_composite(on_black, layer)
    return np.asarray(picture.convert("RGB"))


def to_uint8(values: NDArray[np.generic], low: float, high: float) -> NDArray[np.uint8]:
    """Map ``low..high`` of an array of any shape linearly to 0..255, cutting off what lies outside.

    What is not finite becomes 0. If ``low`` is ``high``, everything does.
    """
    shown = np.zeros(values.shape, np.uint8)
    if high == low:
        return shown
    per_row = max(math.prod(values.shape[1:]), 1)
    rows = max(1, _BAND_PIXELS // per_row)
    for top in range(0, len(values), rows):  # as a whole, it would be 8 bytes per pixel, several times over
        band = values[top : top + rows]
        with np.errstate(all="ignore"):
            shares = (band.astype(np.float64) - low) / (high - low)
            if values.dtype.kind == "f":
                shares[~np.isfinite(band)] = 0
            shares = np.nan_to_num(shares, copy=False).clip(0, 1)
        shown[top : top + rows] = np.rint(255 * shares)
    return shown


def window_range(window: tuple[float, float]) -> tuple[float, float]:
    """The values that become black and white in a window of (centre, width): DICOM's LINEAR_EXACT.

    https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.11.2.html
    """
    centre, width = window
    return centre - width / 2, centre + width / 2


def refuse_endless_scans(scans: int) -> None:
    """Refuse a JPEG of so many scans that decoding it would not end.

    Raises:
        DataError: There are more than ``SCAN_LIMIT``.
    """
    if scans > SCAN_LIMIT:
        raise DataError(f"a JPEG of {scans} scans; at most {SCAN_LIMIT} are decoded. Export it again as PNG")


def count_scans(coded: bytes) -> int:
    """How many scans a JPEG in memory has, previews in its header included."""
    return coded.count(_SCAN)


def _scans(file: IO[bytes]) -> int:
    place = file.tell()
    file.seek(0)
    scans, end = 0, b""
    while block := file.read(_BLOCK):
        scans += count_scans(end + block)
        end = block[-1:]
    file.seek(place)
    return scans


def _tiff_pages(file: IO[bytes]) -> int:
    """How many pages a TIFF has.

    Pillow's own count compares every page with all before it, and reads the tags of all.
    """
    place = file.tell()
    file.seek(0)
    order = "<" if file.read(2) == b"II" else ">"
    is_big = struct.unpack(f"{order}H", file.read(2))[0] == 43
    count_of, tag_bytes, offset_of = ("Q", 20, "Q") if is_big else ("H", 12, "L")
    file.seek(8 if is_big else 4)
    seen = set[int]()
    tags = 0
    while (offset := _number(file, order + offset_of)) and offset not in seen:
        seen.add(offset)
        file.seek(offset)
        here = _number(file, order + count_of)
        tags += here
        if len(seen) > PAGE_LIMIT or tags > _TIFF_TAG_LIMIT:
            raise DataError(f"a TIFF of more than {PAGE_LIMIT:,} pages, or damaged. Split it")
        file.seek(here * tag_bytes, io.SEEK_CUR)
    file.seek(place)
    return max(len(seen), 1)


def _number(file: IO[bytes], kind: str) -> int:
    try:
        return int(struct.unpack(kind, file.read(struct.calcsize(kind)))[0])
    except struct.error:
        raise DataError("a TIFF whose list of pages is cut off. Copy or export it again") from None


def _refuse_large_exif(picture: PIL.Image.Image) -> None:
    # ImageMagick writes EXIF into PNGs as text, two characters a byte
    length = max(len(picture.info.get("exif") or b""), len(picture.info.get("Raw profile type exif") or "") // 2)
    if length > _EXIF_LIMIT:
        raise DataError(f"{length:,} bytes of EXIF, at most {_EXIF_LIMIT:,} are read. Export it without metadata")


def _eight_bits(values: NDArray[np.generic], window: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Grey ``(H, W)`` of more than 8 bits: the window, or the upper byte of 16 bits."""
    if window is not None:
        return to_uint8(values, *window_range(window))
    if values.dtype.kind == "f" or int(values.min()) < 0 or int(values.max()) > 65535:
        raise DataError("grey values beyond 16 bits have no fixed white. Export it with 8 or 16 bits, or give a window")
    return (values.astype(np.uint16) >> 8).astype(np.uint8)
