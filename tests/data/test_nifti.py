"""A NIfTI slice reads as the picture it was made from; a volume is refused."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from amsam_med.data.readers import image_size, read_image, read_mask
from amsam_med.errors import DataError

PICTURE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)  # (H, W, 3)


def save(path: Path, values: np.ndarray) -> Path:
    nibabel.Nifti1Image(values, np.eye(4)).to_filename(path)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])  # MONAI writes float32 unless told otherwise
def test_colour_in_a_fourth_axis_comes_back(tmp_path: Path, dtype: type) -> None:
    path = save(tmp_path / "a.nii.gz", PICTURE.transpose(1, 0, 2)[:, :, None].astype(dtype))
    image = read_image(path)
    np.testing.assert_array_equal(image.pixels, PICTURE.transpose(2, 0, 1))
    assert image_size(path) == image.meta["original_size"] == (2, 3)


def test_colour_as_rgb24_comes_back(tmp_path: Path) -> None:
    rgb24 = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    values = np.ascontiguousarray(PICTURE.transpose(1, 0, 2)).view(rgb24)  # (W, H, 1)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.nii", values)).pixels, PICTURE.transpose(2, 0, 1))


@pytest.mark.parametrize("extra_axes", [(), (1,), (1, 1)])
def test_eight_bit_grey_stays_as_it_is(tmp_path: Path, extra_axes: tuple[int, ...]) -> None:
    grey = PICTURE[..., 0]
    pixels = read_image(save(tmp_path / "a.nii.gz", grey.T.reshape(3, 2, *extra_axes))).pixels
    np.testing.assert_array_equal(pixels, np.broadcast_to(grey, (3, 2, 3)))


def test_other_grey_is_stretched(tmp_path: Path) -> None:
    values = np.array([[-1000.0, 0.0, 1000.0, np.nan]], np.float32)
    assert read_image(save(tmp_path / "a.nii", values.T)).pixels[0].tolist() == [[0, 128, 255, 0]]


def test_a_volume_is_refused_with_its_shape(tmp_path: Path) -> None:
    path = save(tmp_path / "ct.nii.gz", np.zeros((4, 5, 6), np.int16))
    with pytest.raises(DataError, match=r"ct\.nii\.gz: a NIfTI volume of shape \(4, 5, 6\); one slice is expected"):
        read_image(path)


def test_a_mask_may_be_stored_as_float(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 1], [0, 0, 1]])
    np.testing.assert_array_equal(read_mask(save(tmp_path / "m.nii", mask.T.astype(np.float32))), mask)
    with pytest.raises(DataError, match=r"half\.nii: holds values that are not whole numbers"):
        read_mask(save(tmp_path / "half.nii", mask.T / 2))
