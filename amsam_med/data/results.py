"""Results of a picture or a file, and the description of a result format."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from amsam_med.data.nifti import SliceAxis


class Result(NamedTuple):
    """The result of one picture, from which formats write files.

    Attributes:
        pixels: uint8 ``(3, H, W)`` RGB.
        mask: Class ids, uint8 ``(H, W)``, in the original frame.
        box_in_original: float32 ``(4,)``, xyxy pixels of the picture; None where no box was used.
        flags: Reasons to review the result; usually none.
    """

    pixels: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    box_in_original: Tensor | None = None
    flags: Sequence[str] = ()


class PackedMasks(Sequence[NDArray[np.uint8]]):
    """Masks of a file's pictures, class ids uint8 ``(H, W)``, compressed to about a hundredth until they are accessed.

    Args:
        packed: Of :meth:`pack`.
    """

    def __init__(self, packed: Sequence[bytes]) -> None:
        self._packed = packed

    @staticmethod
    def pack(mask: NDArray[np.uint8]) -> bytes:
        """One mask, packed."""
        height, width = mask.shape
        return struct.pack("<II", height, width) + zlib.compress(mask.tobytes(), 1)

    def __len__(self) -> int:
        """How many pictures."""
        return len(self._packed)

    def __getitem__(self, index: Any) -> Any:
        """One mask; a slice is a sequence of masks."""
        if isinstance(index, slice):
            return PackedMasks(self._packed[index])
        packed = self._packed[index]
        return np.frombuffer(zlib.decompress(packed[8:]), np.uint8).reshape(struct.unpack("<II", packed[:8]))


@dataclass(frozen=True)
class ClassMeaning:
    """The meaning of a class, in codes that its bundle states.

    Attributes:
        label: For people.
        category: Kind of thing, as (scheme, value, meaning).
        type: The thing itself, in the same form.
    """

    label: str
    category: tuple[str, str, str]
    type: tuple[str, str, str]


class Labels(NamedTuple):
    """Meanings of a mask's classes and the algorithm, for formats that store them.

    Attributes:
        segments: Meaning of class 1, 2, ...
        algorithm: Name of the algorithm.
        version: Its version.
        weights: sha256 of its weights by role.
        deidentified_with: Salt of the identifiers that take the place of the source's; None keeps patient and study.
    """

    segments: Sequence[ClassMeaning]
    algorithm: str
    version: str
    weights: Mapping[str, str]
    deidentified_with: str | None = None


class FileResult(NamedTuple):
    """The results of a whole file, from which formats write one file.

    Attributes:
        source: The image file.
        image_format: Its format, for example ``"DICOM"``.
        masks: Of its pictures in order, class ids uint8 ``(H, W)``.
        measured: Measurements of its pictures in order, by column.
        slice_axis: Axis along which a volume was cut, as for :func:`amsam_med.data.readers.open_image`.
        labels: What the classes mean.
        written: Results of the file that were written before this one, by format.
    """

    source: Path
    image_format: str
    masks: PackedMasks
    measured: Sequence[Mapping[str, float | None]]
    slice_axis: SliceAxis
    labels: Labels
    written: Mapping[str, Path]


class Format(NamedTuple):
    """A kind of result file, written for each picture, or once per file with all its pictures.

    Attributes:
        folder: Sub-folder of the output folder.
        column: Column of ``results.csv`` that names the file.
        ending: What follows the name in the file's.
        of_picture: Writes one picture's result, whole or not at all.
        of_file: Writes the result of a whole file.
        sources: Formats of image files for which it can be written; empty for all.
    """

    folder: str
    column: str
    ending: str
    of_picture: Callable[[Result, Path], None] | None = None
    of_file: Callable[[FileResult, Path], None] | None = None
    sources: tuple[str, ...] = ()

    def file(self, name: str) -> str:
        """Path of the result with this sub-folder and stem, relative to the output folder."""
        return f"{self.folder}/{name}{self.ending}"

    def fits(self, image_format: str) -> bool:
        """Whether this result can be written for an image file of this format."""
        return not self.sources or image_format in self.sources
