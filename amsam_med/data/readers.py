"""Files into arrays: one reader for every format, for images and for masks.

=============  =====================================================================================================
PNG JPEG BMP   EXIF orientation is applied. Grey, palette and CMYK become RGB; transparent pixels lie on black; of
WebP GIF TIFF  16-bit values the upper 8 bits count. ICC profiles are not applied. Pages of a TIFF are pictures;
               animations are refused; see :mod:`amsam_med.data.pictures`.
NIfTI          A slice, grey or colour, or the slices of a volume; see :mod:`amsam_med.data.nifti`.
DICOM          One frame or many; see :mod:`amsam_med.data.dicom.reader`.
=============  =====================================================================================================

:func:`open_image` reads any number of pictures from a file, one at a time; :func:`read_image` reads one. A file is
known by its first bytes, not by its suffix, except for NIfTI and for old DICOM files that have no such bytes.

Every fault is a :class:`~amsam_med.errors.DataError` of one line that names the file without its folder. Pictures of
more than ``PIXEL_LIMIT`` pixels are refused before they are decoded. Threads may read different files side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self, TypeAlias

import numpy as np
import PIL.Image
from monai.data.image_reader import ImageReader
from monai.utils.enums import MetaKeys
from numpy.typing import NDArray

from amsam_med.boxes import Size
from amsam_med.data.dicom.header import starts_as_dicom
from amsam_med.data.dicom.reader import DicomFile, is_named_dicom
from amsam_med.data.nifti import NiftiFile, SliceAxis, is_nifti
from amsam_med.data.pictures import PictureFile
from amsam_med.data.quiet import quiet_decoders
from amsam_med.errors import AmsamError, ConfigError, DataError, TooLittleMemoryError
from amsam_med.opening import open_regular

PIXEL_LIMIT = 85_000_000
"""The largest image that is decoded: room for 60-megapixel cameras, below Pillow's own alarm at 89 million pixels."""

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
IMAGE_SUFFIXES = (*PICTURE_SUFFIXES, ".nii", ".nii.gz", ".dcm", ".dicom")
"""Suffixes, in lower case, by which a folder's images are found."""

_NOT_IMAGES = ("DICOMDIR",)  # the index of a DICOM medium starts as an image does
_LONGEST_NAME, _LONGEST_DETAIL, _LONGEST_TEXT = 80, 120, 300  # characters

FilePath: TypeAlias = str | PathLike[str]
Window: TypeAlias = tuple[float, float]
"""Centre and width of the grey values to show: centre - width/2 becomes black, centre + width/2 white."""


class Image(NamedTuple):
    """An image as its file shows it.

    Attributes:
        pixels: uint8 ``(3, H, W)`` RGB.
        meta: ``format`` (for example ``"JPEG"``) and ``original_size``, (height, width) in pixels.
    """

    pixels: NDArray[np.uint8]
    meta: dict[str, Any]


class ImageFile:
    """An open file of one picture or more, made by :func:`open_image`; a context manager.

    One thread uses it at a time. A picture is decoded when it is asked for, and no other with it.

    Attributes:
        name: The file's name without its folder, fit to be shown.
        format: For example ``"JPEG"``, ``"DICOM"``, ``"NIfTI"``.
        count: How many pictures there are: DICOM frames, TIFF pages, NIfTI slices.
        part: What one of them is called: ``"frame"``, ``"page"``, ``"slice"``.
        spacing_mm: Distance in mm of neighbouring pixels (down a column, along a row), in the patient; None where the
            file does not say it, as with photographs.
        is_annotated: Whether the file says that text is burned into its pixels: perhaps the patient's name.
    """

    def __init__(self, path: Path, slice_axis: SliceAxis, window: Window | None) -> None:
        self.name = _shown_name(path)
        with _named_faults(self.name):
            self._file = open_regular(path)
            try:
                self._source = _opened(path, self._file, slice_axis, window)
            except BaseException:
                self._file.close()
                raise
        self.format, self.count, self.part = self._source.format, self._source.count, self._source.part
        self.spacing_mm: tuple[float, float] | None = self._source.spacing_mm
        self.is_annotated = isinstance(self._source, DicomFile) and self._source.is_annotated

    @property
    def damage(self) -> str:
        """What is wrong inside of a file whose pictures are shown all the same; usually nothing.

        Known of JPEGs, whose decoder goes on after damage: one line in its words. The first question costs about as
        much as decoding, in a process of its own.
        """
        return self._source.damage if isinstance(self._source, PictureFile) else ""

    def memory_bytes(self, index: int = 0) -> int:
        """About the most memory that :meth:`pixels` takes for a picture while it works, what it returns included.

        Args:
            index: Which, counted from 0.

        Raises:
            DataError: There is no such picture, or it is damaged.
        """
        height, width = self.size(index)
        return height * width * self._source.bytes_per_pixel

    def size(self, index: int = 0) -> Size:
        """(height, width) of a picture as :meth:`pixels` will show it, from its header alone.

        Args:
            index: Which, counted from 0.

        Raises:
            DataError: There is no such picture, or it is damaged.
        """
        with _named_faults(self.name):
            self._refuse_beyond(index)
            return self._source.size(index)

    def pixels(self, index: int = 0) -> NDArray[np.uint8]:
        """A picture as uint8 ``(3, H, W)`` RGB.

        Args:
            index: Which, counted from 0.

        Raises:
            DataError: There is no such picture, or it is damaged or too large.
        """
        with _named_faults(self.name):
            self._refuse_beyond(index)
            _refuse_bombs(self._source.size(index))
            return self._source.pixels(index).transpose(2, 0, 1)

    def close(self) -> None:
        """Close the file, and delete what was unpacked of it."""
        self._source.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _refuse_beyond(self, index: int) -> None:
        if not 0 <= index < self.count:
            raise DataError(f"no {self.part} {index} in it; it holds {self.count}, counted from 0")

    def _only(self) -> int:
        """0, if there is but one picture."""
        if self.count != 1:
            raise DataError(
                f"{self.name}: holds {self.count} {self.part}s; one is expected. Export the {self.part} you need as a "
                "file, or name it by its index"
            )
        return 0

    def _stored_labels(self) -> NDArray[np.uint8]:
        """The values of a mask, ``(H, W)``: palette indices where the palette is coloured."""
        with _named_faults(self.name):
            _refuse_bombs(self._source.size(0))
            if isinstance(self._source, DicomFile):
                raise DataError("a mask cannot be DICOM yet. Export it as PNG")
            if isinstance(self._source, NiftiFile):
                values = self._source.values(0)
                if values.ndim != 2:
                    raise DataError("a colour picture, not a mask. Save one channel of class ids")
                return _as_labels(values)
            return _picture_labels(self._source.upright(0))


def open_image(path: FilePath, slice_axis: SliceAxis = "auto", window: Window | None = None) -> ImageFile:
    """Open any supported file, to read its pictures one by one.

    Only the header is read. Compressed files are unpacked onto disk when the first picture is asked for.

    Args:
        path: The file.
        slice_axis: The array axis that the slices of a NIfTI volume lie along; "auto" is the third, or the only one of
            length 1. Other formats, and NIfTI files of one slice, are as they are.
        window: Centre and width of the grey values to show, where there are more than 8 bits of grey, and in DICOM,
            whose own window it replaces; the values are those after DICOM's modality transform and NIfTI's scaling
            (Hounsfield units in CT). Pictures in colour, palettes and grey of 8 bits elsewhere than in DICOM and NIfTI
            are as they are.

    Raises:
        DataError: The file is missing, damaged, or holds no picture.
        ConfigError: The axis or the window is none.
    """
    if slice_axis not in ("auto", 0, 1, 2):
        raise ConfigError(f"slice_axis = {slice_axis!r}; expected auto, 0, 1 or 2")
    if window is not None and not (math.isfinite(window[0]) and 0 < window[1] < math.inf):
        raise ConfigError(f"window = {window}; expected a centre, and a width above 0")
    return ImageFile(Path(path), slice_axis, window)


def read_image(
    path: FilePath, index: int | None = None, slice_axis: SliceAxis = "auto", window: Window | None = None
) -> Image:
    """Read one picture of any supported file.

    Args:
        path: The file.
        index: Which of several pictures, counted from 0; by default the file must hold just one.
        slice_axis: As for :func:`open_image`.
        window: As for :func:`open_image`.

    Raises:
        DataError: The file is missing, damaged, too large, or not one image; the text names it and the way out.
        ConfigError: The axis or the window is none.
    """
    with open_image(path, slice_axis, window) as file:
        pixels = file.pixels(file._only() if index is None else index)
        return Image(pixels, {"format": file.format, "original_size": pixels.shape[1:]})


def read_mask(path: FilePath, values: Sequence[int] | None = None) -> NDArray[np.uint8]:
    """Read a mask as class ids, uint8 ``(H, W)``.

    Args:
        path: A picture of one channel, of equal channels or with a palette, or a NIfTI slice.
        values: The file's value of class 0, 1, 2, ...; ``range(5)`` where the file holds class ids 0..4. By default
            one class, written as 0/255 or 0/1.

    Raises:
        DataError: The file cannot be read, or holds values besides those (a mask saved as JPEG does).
    """
    with open_image(path) as file:
        file._only()
        stored = file._stored_labels()
        found = np.flatnonzero(np.bincount(stored.ravel()))
        with _named_faults(file.name):
            return _class_of_value(found, values)[stored]


def image_size(path: FilePath) -> Size:
    """(height, width) of an image or mask as :func:`read_image` will show it, from its header alone.

    Raises:
        DataError: The file is missing, damaged, or not one image.
    """
    with open_image(path) as file:
        return file.size(file._only())


def is_image_file(path: Path) -> bool:
    """Whether a file counts as an image: by its suffix or, where it has another one, if it starts as DICOM does.

    A file that cannot be looked into counts as one where it has no suffix of letters, as DICOM files often have none;
    its reader will say why it cannot.
    """
    if path.name.startswith(".") or path.name in _NOT_IMAGES:
        return False
    if path.name.lower().endswith(IMAGE_SUFFIXES):
        return True
    try:
        with open_regular(path) as file:
            return starts_as_dicom(file)
    except DataError:
        return False
    except OSError as error:
        return not path.suffix[1:].isalpha() and not isinstance(error, FileNotFoundError)


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


def _opened(
    path: Path, file: IO[bytes], slice_axis: SliceAxis, window: Window | None
) -> DicomFile | NiftiFile | PictureFile:
    # A TIFF that also starts as DICOM is a slide scanner's, and goes by its name.
    is_tiff = path.name.lower().endswith((".tif", ".tiff"))
    if is_named_dicom(path) or (starts_as_dicom(file) and not is_tiff):
        return DicomFile(file, window)
    return NiftiFile(file, slice_axis, window) if is_nifti(path) else PictureFile(file, window)


def _shown_name(path: Path) -> str:
    """A file's name on one line, and cut in its middle where it is very long."""
    name = "".join(character if character.isprintable() else "?" for character in path.name)
    half = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]}...{name[-half:]}"


@contextmanager
def _named_faults(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a DataError that names the file."""
    try:
        with quiet_decoders():
            yield
    except MemoryError:  # of which the file is not the cause
        raise TooLittleMemoryError(
            f"{name}: this machine has too little memory to read it. Close other programs, or scale it down"
        ) from None
    except Exception as error:  # decoders raise nearly anything on damaged bytes: SyntaxError, struct.error, EOFError
        text = " ".join(f"{name}: {_fault(error)}".split())
        raise DataError(text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 3]}...") from None


def _fault(error: Exception) -> str:
    if isinstance(error, AmsamError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "no such file. Check the path"
    if isinstance(error, PIL.UnidentifiedImageError):
        known = "PNG, JPEG, BMP, WebP, GIF, TIFF, NIfTI (.nii, .nii.gz) and DICOM (.dcm)"
        return f"not an image of a known format or damaged; known are {known}"
    if isinstance(error, PIL.Image.DecompressionBombError):
        return _bomb("far more")
    if isinstance(error, OSError) and error.strerror:  # the system's, not a decoder's
        return f"cannot be read ({error.strerror})"
    detail = str(error) or type(error).__name__
    printable = "".join(character if character.isprintable() else " " for character in detail)
    return f"cannot be decoded ({printable[:_LONGEST_DETAIL]}). Export it again, for example as PNG"


def _refuse_bombs(size: Size) -> None:
    if size[0] * size[1] > PIXEL_LIMIT:
        raise DataError(_bomb(f"{size[1]} x {size[0]}"))


def _bomb(size: str) -> str:
    return f"{size} pixels, at most {PIXEL_LIMIT:,} are decoded. Scale it down or cut it"


def _picture_labels(picture: PIL.Image.Image) -> NDArray[np.uint8]:
    if picture.mode == "P" and _is_equal_channels(np.asarray(picture.convert("RGB"))):
        picture = picture.convert("RGB")
    values = np.asarray(picture)
    if values.ndim == 2:
        return _as_labels(values)
    colours, alpha = (values[..., :3], values[..., 3:]) if values.shape[-1] > 2 else (values[..., :1], values[..., 1:])
    if not _is_equal_channels(colours) or not (alpha == 255).all():
        raise DataError("a colour picture, not a mask. Export it as PNG with one channel of class ids")
    return _as_labels(colours[..., 0])


def _is_equal_channels(values: NDArray[np.generic]) -> bool:
    return bool((values == values[..., :1]).all())


def _as_labels(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    with np.errstate(invalid="ignore"):  # NaN has no whole number
        labels = values.astype(np.uint8, copy=False)
    if values.dtype != np.uint8 and not np.array_equal(labels, values):
        raise DataError("holds values that are not whole numbers of 0..255. Save class ids as 8-bit PNG")
    return labels


def _class_of_value(found: NDArray[np.intp], values: Sequence[int] | None) -> NDArray[np.uint8]:
    """A table of 256 class ids, after a check that it covers all values found."""
    if values is None:
        values = (0, 1) if 1 in found else (0, 255)
    stray = [str(value) for value in found if value not in values]
    if stray:
        shown = ", ".join(stray[:5]) + (f" and {len(stray) - 5} more" if len(stray) > 5 else "")
        raise DataError(
            f"the mask holds the values {shown}; expected {', '.join(map(str, values))} only. "
            "Save masks as PNG (JPEG blurs them), without resampling; for class ids 0..C set the number of classes"
        )
    table = np.zeros(256, np.uint8)
    table[list(values)] = np.arange(len(values))
    return table
