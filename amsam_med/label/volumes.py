"""Labels as volume viewers send them: one slice of class ids, in NRRD or NIfTI.

A header of either format may name another file for the pixels, which an imaging library would open, whatever it is; and
it may promise more pixels than fit into memory. So headers are parsed here entry by entry: only known entries are
allowed, and no more pixels are unpacked than the header promised.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import nibabel
import numpy as np
import SimpleITK
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray
from pydantic import Field

from amsam_med.boxes import Size
from amsam_med.data.readers import PIXEL_LIMIT, image_size, read_mask
from amsam_med.errors import DataError
from amsam_med.opening import open_regular
from amsam_med.schema import Record, checked

VOLUMES = (".nrrd", ".nii.gz", ".nii")
"""Endings of the formats that are read and written here."""

_HEADER_BYTES, _OFFSET_BYTES = 1 << 18, 1 << 20  # of a header; from a NIfTI's start to its pixels
_NIFTI_HEADER_BYTES = 348
_MAGIC = re.compile(rb"NRRD000[1-5]")
_TYPES: dict[str, str] = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    "float": "f4",
    "double": "f8",
}
_DESCRIPTIONS = {  # fields that say what the pixels mean, which is of no matter for a label of a picture
    *("content", "number", "space", "space dimension", "space units", "space origin", "space directions"),
    *("measurement frame", "spacings", "thicknesses", "axis mins", "axismins", "axis maxs", "axismaxs"),
    *("centers", "centerings", "labels", "units", "kinds", "sample units", "sampleunits"),
    *("min", "max", "old min", "oldmin", "old max", "oldmax"),
}
_REMEDY = "save the label again, as one file with the pixels in it"


class _Nrrd(Record):
    """The fields of a NRRD header that say how its pixels are stored."""

    type: Literal[tuple(_TYPES)]  # type: ignore[valid-type]  # mypy wants the words themselves
    dimension: Annotated[int, Field(ge=2, le=4)]
    sizes: Annotated[list[Annotated[int, Field(ge=1, le=PIXEL_LIMIT)]], Field(min_length=2, max_length=4)]
    encoding: Literal["raw", "gzip", "gz"]
    endian: Literal["little", "big"] = "little"


def read_label(path: Path, size: Size | None = None) -> NDArray[np.uint8]:
    """Class ids ``(H, W)`` of a label that a viewer sends: a picture, or a volume of one slice.

    Args:
        path: The file; its name's ending says which format it must have.
        size: (height, width) that it must have; another one is refused before the pixels are decoded.

    Raises:
        DataError: It cannot be read, has several slices or another size, or its pixels lie in another file.
    """
    name = path.name.lower()
    if not name.endswith(VOLUMES):
        _expect(image_size(path), size)
        return read_mask(path)
    try:
        with _opened(path) as file:
            ids = _nrrd(file, size) if name.endswith(".nrrd") else _nifti(file, name.endswith(".gz"), size)
    except (OSError, EOFError, zlib.error):
        raise _damaged(_ending(name)) from None
    with np.errstate(invalid="ignore"):  # NaN has no whole number
        label: NDArray[np.uint8] = ids.astype(np.uint8)
    if not np.array_equal(ids, label):
        raise DataError("the label holds values that are not whole numbers of 0 to 255; send class ids")
    return label


def _opened(path: Path) -> IO[bytes]:
    try:
        return open_regular(path)
    except DataError:
        raise DataError(f"{path.name}: not a regular file; {_REMEDY}") from None


def write_volume(mask: NDArray[np.uint8], path: Path) -> None:
    """Class ids uint8 ``(H, W)`` as a volume of one slice; its format by the name's ending."""
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(mask[None]), str(path), useCompression=True)  # (1, H, W)


def _nrrd(file: IO[bytes], size: Size | None) -> NDArray[Any]:
    """Pixels ``(H, W)`` of a NRRD file that holds both header and pixels."""
    header = _nrrd_header(file)
    if len(header.sizes) != header.dimension:
        raise DataError(f".nrrd: {header.dimension} dimensions, but {len(header.sizes)} sizes; {_REMEDY}")
    shape = _one_slice(header.sizes[::-1])  # the fastest axis comes first
    _expect(shape, size)
    kind = np.dtype(_TYPES[header.type]).newbyteorder("<" if header.endian == "little" else ">")
    needed = math.prod(shape) * kind.itemsize
    content = file.read(needed) if header.encoding == "raw" else _unzipped(file, needed)
    return _pixels(content, kind, shape, ".nrrd")


def _nrrd_header(file: IO[bytes]) -> _Nrrd:
    """The header up to its empty line. Lines end in LF or CR LF: other readers end one at a single CR, too."""
    text = file.read(_HEADER_BYTES)
    end = re.search(rb"\r?\n\r?\n", text)
    lines = [] if end is None else re.split(rb"\r?\n", text[: end.start()])
    if end is None or not _MAGIC.fullmatch(lines[0]):
        raise _damaged(".nrrd")
    if any(b"\r" in line or b"\0" in line for line in lines):
        raise DataError(f".nrrd: a control character in the header; {_REMEDY}")
    file.seek(end.end())
    fields: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.decode("utf-8", errors="replace").partition(": ")
        if line.startswith(b"#") or ":=" in name:
            continue  # a remark; a key of the writer's own
        name = name.strip().lower()
        if not colon or name in fields or name not in (*_Nrrd.model_fields, *_DESCRIPTIONS):
            raise DataError(f".nrrd: the header's field {name[:30]!r} is not taken; {_REMEDY}")
        fields[name] = value.strip()
    stored: dict[str, Any] = {name: value.lower() for name, value in fields.items() if name in _Nrrd.model_fields}
    for name in {"dimension", "sizes"} & stored.keys():
        numbers = [int(word) if re.fullmatch(r"[0-9]{1,10}", word) else word for word in stored[name].split()]
        stored[name] = numbers[0] if name == "dimension" and len(numbers) == 1 else numbers
    return checked(_Nrrd, stored, ".nrrd", _REMEDY)


def _nifti(file: IO[bytes], is_zipped: bool, size: Size | None) -> NDArray[Any]:
    """Pixels ``(H, W)`` of a NIfTI-1 file that holds both header and pixels."""
    stream: IO[bytes] = gzip.GzipFile(fileobj=file) if is_zipped else file  # type: ignore[assignment]
    ending = ".nii.gz" if is_zipped else ".nii"
    start = stream.read(_NIFTI_HEADER_BYTES)
    if _NIFTI_HEADER_BYTES not in (int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")):
        raise _damaged(ending)
    try:
        header: Any = nibabel.Nifti1Header(start)  # type: ignore[no-untyped-call]
        kind, sizes, offset = header.get_data_dtype(), header.get_data_shape(), float(header["vox_offset"])
        slope, intercept = header.get_slope_inter()
    except (nibabel.spatialimages.HeaderDataError, WrapStructError, ValueError, KeyError, OverflowError):
        raise _damaged(ending) from None
    if header["magic"].item() != b"n+1":  # a pair names its second file by its own name; Analyze has no name for it
        raise DataError(f"{ending}: header and pixels are not in one file; {_REMEDY}")
    if not _NIFTI_HEADER_BYTES <= offset <= _OFFSET_BYTES or kind.kind not in "iuf":
        raise _damaged(ending)
    if len(sizes) < 2 or len(sizes) > 5 or min(sizes) < 1 or math.prod(map(int, sizes)) > PIXEL_LIMIT:
        raise DataError(f"{ending}: the label has shape {tuple(map(int, sizes))}; expected one slice")
    shape = _one_slice([int(side) for side in sizes[::-1]])
    _expect(shape, size)
    stream.read(int(offset) - _NIFTI_HEADER_BYTES)
    values = _pixels(stream.read(math.prod(shape) * kind.itemsize), kind, shape, ending)
    with np.errstate(all="ignore"):  # what is no class id then is refused
        return values if slope is None else values * slope + intercept


def _one_slice(sizes: Sequence[int]) -> Size:
    """(H, W) of axes of which the others have length 1."""
    if math.prod(sizes) > PIXEL_LIMIT:
        raise DataError(f"the label has {math.prod(sizes):,} pixels, at most {PIXEL_LIMIT:,} are decoded; cut it")
    left = list(sizes)
    while len(left) > 2 and 1 in (left[0], left[-1]):
        left.pop(0 if left[0] == 1 else -1)
    if len(left) != 2:
        raise DataError(f"the label has shape {tuple(sizes)}; expected one slice")
    return left[0], left[1]


def _expect(shape: Size, size: Size | None) -> None:
    if size is not None and tuple(shape) != tuple(size):
        raise DataError(f"the label has (H, W) {tuple(shape)}, its image {tuple(size)}; send one of that size")


def _pixels(content: bytes, kind: np.dtype[Any], shape: Size, ending: str) -> NDArray[Any]:
    if len(content) < math.prod(shape) * kind.itemsize:
        raise _damaged(ending)
    return np.frombuffer(content, kind).reshape(shape)


def _unzipped(file: IO[bytes], needed: int) -> bytes:
    with gzip.GzipFile(fileobj=file) as stream:
        return stream.read(needed)


def _damaged(ending: str) -> DataError:
    return DataError(f"{ending}: the label is damaged or not of that format; send it again")


def _ending(name: str) -> str:
    return next(ending for ending in VOLUMES if name.endswith(ending))
