"""A NIfTI file with one slice: ``(W, H)``, ``(W, H, 1)`` grey, ``(W, H, 1, 3)`` or RGB24 colour.

The picture is the array with its axes swapped; the affine is not applied, as a photograph has none that means anything.
"""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from amsam_med.boxes import Size
from amsam_med.data.dicom import to_uint8
from amsam_med.errors import DataError


def is_nifti(path: Path) -> bool:
    """Whether ``path`` is named as NIfTI."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def nifti_size(path: Path) -> Size:
    """(height, width) of the slice in ``path``, from the header alone.

    Raises:
        DataError: ``path`` holds a volume.
    """
    width, height = _one_slice(path).shape[:2]
    return height, width


def read_nifti(path: Path) -> NDArray[np.uint8]:
    """The slice in ``path`` as uint8 ``(H, W, 3)`` RGB; grey of another type is stretched from smallest to largest.

    Raises:
        DataError: ``path`` holds a volume, or colours beyond 0..255.
    """
    values = _values(path)
    if values.shape[-1] == 3:
        colours = values.astype(np.uint8)
        if not np.array_equal(colours, values):
            raise DataError(f"{path.name}: colours that are not whole numbers of 0..255. Export it as 8-bit PNG")
        return colours
    if values.dtype != np.uint8:
        values = to_uint8(values, float(np.nanmin(values)), float(np.nanmax(values)))
    return np.repeat(values.astype(np.uint8), 3, axis=-1)


def read_nifti_labels(path: Path) -> NDArray[np.generic]:
    """The slice in ``path`` as ``(H, W)`` in the file's own type.

    Raises:
        DataError: ``path`` holds a volume or a colour picture.
    """
    values = _values(path)
    if values.shape[-1] != 1:
        raise DataError(f"{path.name}: a colour picture, not a mask. Save one channel of class ids")
    return values[..., 0]


def _one_slice(path: Path) -> SpatialImage:
    volume = nibabel.load(path)
    assert isinstance(volume, SpatialImage)  # nibabel's promise for the suffix .nii
    shape = volume.shape
    if len(shape) < 2 or (shape[2:] != (1, 3) and any(length != 1 for length in shape[2:])):
        raise DataError(
            f"{path.name}: a NIfTI volume of shape {shape}; one slice is expected, (W, H), (W, H, 1) or (W, H, 1, 3). "
            "Export the slices you need as files; a slice axis is not supported yet"
        )
    return volume


def _values(path: Path) -> NDArray[np.generic]:
    """``(H, W, 1)`` or ``(H, W, 3)`` in the file's type."""
    values = np.asanyarray(_one_slice(path).dataobj)
    if values.dtype.names:  # RGB24: a record of three bytes a pixel
        values = np.stack([values[name] for name in values.dtype.names[:3]], axis=-1)
    channels = 3 if values.size == 3 * values.shape[0] * values.shape[1] else 1
    return values.reshape(*values.shape[:2], channels).transpose(1, 0, 2)
