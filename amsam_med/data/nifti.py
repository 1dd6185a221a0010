"""NIfTI: a picture, or a volume as pictures, slice by slice.

=====================================  ================================================================================
``(W, H)``, ``(W, H, 1)``              one grey picture
``(W, H, 1, 3)``, ``(W, H, 1, 1, 3)``  one colour picture; so is ``(W, H)`` of type RGB24
``(W, H, D)``                          D pictures along the third array axis, or those along the axis that was chosen;
                                       one picture if just one axis has the length 1
four axes and more                     refused: it is not known which of them is time
=====================================  ================================================================================

A picture is a slice of the array with its two axes swapped: the first axis runs to the right, the second down. The
affine is not applied, so a slice may look rotated or mirrored, but its mask fits the array.

8-bit grey stays as it is. Other grey is shown in the window that was given; without one, a single picture from its
smallest to its largest value, and a volume from its 0.5th to its 99.5th percentile, the same for all its slices. Values
that are not finite are black. A slice is read when it is asked for, with some of its neighbours where they lie between
each other in the file; compressed files are unpacked into a temporary file first. Files are not memory-mapped: one that
is cut off while it is read would end the whole process.
"""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias, cast

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from amsam_med.boxes import Size
from amsam_med.choices import SliceAxis as SliceAxis
from amsam_med.data.pictures import to_uint8, window_range
from amsam_med.data.unpacking import first_bytes, unpacked
from amsam_med.errors import AmsamError, DataError
from amsam_med.opening import open_regular

VOLUME_LIMIT = 4 << 30
"""The largest compressed volume, in bytes as it is unpacked."""

Values: TypeAlias = NDArray[Any]
"""Of the type that the file has, or that its scaling makes of it."""

_GZIP = b"\x1f\x8b"
_MOST_SHRINKING = 1032  # deflate's best
_SAMPLED = 1 << 22  # voxels that percentiles are taken of, and that are read at once
_SLAB_BYTES = 8 << 20  # of slices that are read together
_SHOWN_PERCENTILES = (0.5, 99.5)
_MILLIMETRES = {"mm": 1.0, "micron": 1e-3, "meter": 1e3}


class Geometry(NamedTuple):
    """The geometry of a file's voxels.

    Attributes:
        shape: Lengths of two or three axes.
        affine: float64 ``(4, 4)``, from voxels to the world.
        units: Of lengths and of time, in NIfTI's words.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    units: tuple[str, str]


def read_geometry(path: Path) -> Geometry:
    """The geometry of a file's voxels, read from its header alone.

    Raises:
        DataError: Its header is damaged.
    """
    try:
        with open_regular(path) as file:
            header = NiftiFile(file)._header
        affine, units = header.get_best_affine(), header.get_xyzt_units()
    except AmsamError as error:
        raise DataError(f"{path.name}: {error}") from None
    except Exception:  # what nibabel and gzip raise depends on what is damaged
        raise DataError(f"{path.name}: a NIfTI header without a sensible orientation. Export it again") from None
    return Geometry(tuple(header.get_data_shape()[:3]), affine, units)


def is_nifti(path: Path) -> bool:
    """Whether ``path`` is named as NIfTI."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


class NiftiFile:
    """An open NIfTI file; see :class:`amsam_med.data.readers.ImageFile` for what the attributes mean.

    Args:
        file: At its start; stays open for as long as this object is used.
        slice_axis: The array axis that slices of a volume lie along; a file of one slice is one picture anyway.
        window: Centre and width of the grey values to show.

    Raises:
        DataError: The header is damaged, or what it describes is no picture and no volume.
    """

    format = "NIfTI"
    part = "slice"
    bytes_per_pixel = 32  # at most, measured: 6 for int16, 25 for float64

    def __init__(
        self, file: IO[bytes], slice_axis: SliceAxis = "auto", window: tuple[float, float] | None = None
    ) -> None:
        self._file = file
        self._is_packed = file.read(2) == _GZIP
        self._header = self._read_header()
        self._stored_shape = tuple(int(length) for length in self._header.get_data_shape())
        self._shape, self._has_colour_axis = _volume_shape(self._stored_shape)
        self._dtype = _stored_type(self._header)
        self._refuse_absurd_size()
        self._axis = _chosen_axis(self._shape, slice_axis)
        self._plane = tuple(axis for axis in range(3) if axis != self._axis)
        self.count = self._shape[self._axis]
        self.spacing_mm = self._spacing()
        self._scaling = self._header.get_slope_inter()
        self._window = window
        self._shown_range: tuple[float, float] | None = None
        self._copy: IO[bytes] | None = None
        self._slab: tuple[range, Values] = range(0), np.empty(0)

    def close(self) -> None:
        """Delete the unpacked copy."""
        if self._copy is not None:
            self._copy.close()

    def size(self, index: int) -> Size:
        """(height, width) of every slice."""
        return self._shape[self._plane[1]], self._shape[self._plane[0]]

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """A slice as uint8 ``(H, W, 3)`` RGB.

        Raises:
            DataError: The file is cut off, has colours beyond 0..255, or no finite value.
        """
        values = self.values(index)
        if values.ndim == 3:
            colours = values.astype(np.uint8) if values.dtype.kind != "f" else _whole(values)
            if not np.array_equal(colours, values):
                raise DataError("colours that are not whole numbers of 0..255. Export it as 8-bit PNG")
            return colours
        if self._window is not None or values.dtype != np.uint8:
            if self._shown_range is None:
                self._shown_range = window_range(self._window) if self._window else self._full_range()
            values = to_uint8(values, *self._shown_range)
        return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=-1)

    def values(self, index: int) -> Values:
        """A slice as the file means it, ``(H, W)``, or ``(H, W, 3)`` where it is in colour.

        Raises:
            DataError: The file is cut off.
        """
        return self._scaled(self._stored_slice(index).swapaxes(0, 1))

    def _read_header(self) -> Any:
        self._file.seek(0)
        with gzip.open(self._file) if self._is_packed else nullcontext(self._file) as content:
            block = content.read(Nifti2Header.sizeof_hdr)
        kind = Nifti2Header if _may_contain(Nifti2Header, block) else Nifti1Header
        if len(block) < kind.sizeof_hdr or not _may_contain(kind, block):
            raise DataError("not a NIfTI file, or cut off in its header. Copy or export it again")
        # Unchecked, because nibabel's check prints what it repairs, and repairs too much.
        header: Any = cast(Any, kind)(block[: kind.sizeof_hdr], check=False)
        if bytes(header["magic"]).rstrip(b"\0")[:3] in (b"ni1", b"ni2"):
            raise DataError("a NIfTI header whose values are in a file of their own. Save both as one .nii")
        return header

    def _refuse_absurd_size(self) -> None:
        offset = float(self._header["vox_offset"])
        if not offset >= 0 or not offset.is_integer() or offset > VOLUME_LIMIT:
            raise DataError("damaged: its header says nothing sensible of where values begin. Export it again")
        self._offset = int(offset) or self._header.single_vox_offset
        self._end = self._offset + math.prod(self._stored_shape) * self._dtype.itemsize
        length = self._file.seek(0, io.SEEK_END)
        if self._end > (length * _MOST_SHRINKING if self._is_packed else length):
            raise DataError(
                f"its header promises {self._end:,} bytes, the file has {length:,}; it was cut off, or damaged. "
                "Copy or export it again"
            )
        if self._is_packed and self._end > VOLUME_LIMIT:
            raise DataError(f"unpacks to {self._end:,} bytes, at most {VOLUME_LIMIT:,}. Give it uncompressed, as .nii")

    def _spacing(self) -> tuple[float, float] | None:
        unit = _MILLIMETRES.get(_length_unit(self._header))
        across, down = (float(self._header["pixdim"][1 + axis]) for axis in self._plane)
        if unit is None or not (0 < across < math.inf and 0 < down < math.inf):
            return None
        return down * unit, across * unit

    def _stored_slice(self, index: int) -> Values:
        """A slice as stored: ``(X, Y)``, ``(X, Z)`` or ``(Y, Z)``, colours last."""
        x, y, _ = self._shape
        if self._has_colour_axis:
            return self._read(0, 3 * x * y).reshape((x, y, 3), order="F")
        if self._axis == 2:
            return self._read(index * x * y, x * y).reshape((x, y), order="F")
        indices, slab = self._slab
        if index not in indices:
            self._slab = range(0), slab[:0]  # frees the old slab before the new one is read
            indices, slab = self._slab = self._slab_from(index)
        return slab[:, indices.index(index)] if self._axis == 1 else slab[indices.index(index)]

    def _slab_from(self, index: int) -> tuple[range, Values]:
        """Neighbouring slices along the first or the second axis: ``(x, Y, Z)`` or ``(X, y, Z)``.

        Their voxels are interleaved in the file, so reading one slice takes as long as reading several.
        """
        x, y, z = self._shape
        most = max(1, _SLAB_BYTES * self.count // (self._dtype.itemsize * x * y * z))
        indices = range(index, min(index + most, self.count))
        if self._axis == 1:
            slab = np.empty((x, len(indices), z), self._dtype, order="F")
            for plane in range(z):
                rows = self._read((plane * y + indices.start) * x, x * len(indices))
                slab[..., plane] = rows.reshape((x, len(indices)), order="F")
            return indices, slab
        slab = np.empty((len(indices), y * z), self._dtype, order="F")
        at_once = _SLAB_BYTES // (self._dtype.itemsize * x)
        if at_once == 0:  # rows so long that reading them whole would be most of the work
            for row in range(y * z):
                slab[:, row] = self._read(row * x + index, len(indices))
        else:
            for row in range(0, y * z, at_once):
                part = slab[:, row : row + at_once]
                whole = self._read(row * x, x * part.shape[1]).reshape((x, part.shape[1]), order="F")
                part[:] = whole[indices.start : indices.stop]
        return indices, slab.reshape((len(indices), y, z), order="F")

    def _read(self, first: int, count: int) -> Values:
        """Voxels that follow each other in the file."""
        if self._is_packed and self._copy is None:
            self._unpack()
        voxels: Values = np.empty(count, self._dtype)
        source = self._copy or self._file
        source.seek(self._offset + first * self._dtype.itemsize)
        if cast(io.BufferedReader, source).readinto(voxels.view(np.uint8).data) < voxels.nbytes:
            raise DataError("it was cut off since it was opened. Copy or export it again")
        return voxels

    def _unpack(self) -> None:
        self._file.seek(0)
        with ExitStack() as undo, gzip.open(self._file) as content:
            copy = undo.enter_context(unpacked(first_bytes(cast(IO[bytes], content), self._end), self._end))
            content.read(1)  # the end of a file brings its checksum
            undo.pop_all()
        self._copy = copy

    def _scaled(self, stored: Values) -> Values:
        if stored.dtype.names:  # RGB24: a record of three bytes per pixel
            return np.stack([stored[name] for name in stored.dtype.names[:3]], axis=-1)
        with np.errstate(all="ignore"):
            scaled: Values = apply_read_scaling(np.array(stored), *self._scaling)
        return scaled

    def _full_range(self) -> tuple[float, float]:
        """The values of black and white; the same along every axis."""
        if self.count == 1:
            return _limits([self.values(0)])
        size = math.prod(self._shape)
        step = math.ceil(size / _SAMPLED)
        while math.gcd(step, self._shape[0]) > 1:  # otherwise all samples might be from the same column
            step += 1
        sample = _finite(np.concatenate([self._scaled(block[-at % step :: step]) for at, block in self._blocks()]))
        if sample.size:
            low, high = np.percentile(sample, _SHOWN_PERCENTILES)
            if low < high:
                return float(low), float(high)
        # nearly all one value, for example a mask
        return _limits(self._scaled(block) for _, block in self._blocks())

    def _blocks(self) -> Iterator[tuple[int, Values]]:
        """All voxels, and where each block of them begins."""
        size = math.prod(self._shape)
        return ((at, self._read(at, min(_SAMPLED, size - at))) for at in range(0, size, _SAMPLED))


def _may_contain(kind: Any, block: bytes) -> bool:
    return bool(kind.may_contain_header(block))


def _volume_shape(shape: tuple[int, ...]) -> tuple[tuple[int, int, int], bool]:
    """Three lengths, and whether three colours follow."""
    if len(shape) < 2 or any(length < 1 for length in shape):
        raise DataError(f"a NIfTI file of shape {shape}; a picture has at least two axes, each of length 1 or more")
    is_colour = shape[2:] in ((1, 3), (1, 1, 3))
    if not is_colour and any(length != 1 for length in shape[3:]):
        raise DataError(
            f"a NIfTI file of shape {shape}; a picture (W, H), (W, H, 1, 3) or a volume (W, H, D) is expected. "
            "Split it into volumes of three axes"
        )
    return (shape[0], shape[1], shape[2] if len(shape) > 2 else 1), is_colour


def _chosen_axis(shape: tuple[int, int, int], slice_axis: SliceAxis) -> int:
    thin = [axis for axis in range(3) if shape[axis] == 1]
    if len(thin) == 1:
        return thin[0]
    return 2 if slice_axis == "auto" or shape[2] == 1 else slice_axis


def _stored_type(header: Any) -> np.dtype[Any]:
    try:
        stored: np.dtype[Any] = header.get_data_dtype()
    except Exception:  # nibabel's own errors and KeyError
        raise DataError(f"NIfTI values of the unknown type {int(header['datatype'])}. Save them as int16") from None
    if stored.itemsize == 0 or not (stored.names or stored.kind in "iuf"):
        raise DataError(f"NIfTI values of the type {stored}; expected whole or real numbers, or RGB24")
    return stored


def _length_unit(header: Any) -> str:
    try:
        return str(header.get_xyzt_units()[0])
    except KeyError:
        return "unknown"


def _whole(values: Values) -> NDArray[np.uint8]:
    whole: NDArray[np.uint8] = np.nan_to_num(values, nan=0).clip(0, 255).astype(np.uint8)
    return whole


def _finite(values: Values) -> Values:
    return values[np.isfinite(values)] if values.dtype.kind == "f" else values.ravel()


def _limits(blocks: Iterable[Values]) -> tuple[float, float]:
    """The smallest and the largest finite value; blocks are looked at one after another."""
    low, high = math.inf, -math.inf
    for block in map(_finite, blocks):
        if block.size:
            low, high = min(low, float(block.min())), max(high, float(block.max()))
    if low > high:
        raise DataError("no finite value in it. Export it again")
    return low, high
