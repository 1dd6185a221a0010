"""A NIfTI slice reads as the picture it was made from, a volume as its slices."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest

from amsam_med.data import nifti
from amsam_med.data.readers import image_size, open_image, read_image, read_mask
from amsam_med.errors import ConfigError, DataError

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


def test_a_volume_is_not_one_picture(tmp_path: Path) -> None:
    path = save(tmp_path / "ct.nii.gz", np.zeros((4, 5, 6), np.int16))
    with pytest.raises(DataError, match=r"ct\.nii\.gz: holds 6 slices; one is expected"):
        read_image(path)


def test_a_mask_may_be_stored_as_float(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 1], [0, 0, 1]])
    np.testing.assert_array_equal(read_mask(save(tmp_path / "m.nii", mask.T.astype(np.float32))), mask)
    with pytest.raises(DataError, match=r"half\.nii: holds values that are not whole numbers"):
        read_mask(save(tmp_path / "half.nii", mask.T / 2))


VOLUME = np.random.default_rng(0).integers(-1000, 2000, (4, 5, 6)).astype(np.int16)  # (X, Y, Z)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("axis", ["auto", 0, 1, 2])
def test_a_volume_is_read_slice_by_slice(tmp_path: Path, suffix: str, axis: nifti.SliceAxis) -> None:
    path = save(tmp_path / f"ct{suffix}", VOLUME)
    lengths = np.moveaxis(VOLUME, 2 if axis == "auto" else axis, 0)  # slices, then the axis to the right, then down
    with open_image(path, slice_axis=axis, window=(500, 3000)) as file:
        assert (file.format, file.part, file.count) == ("NIfTI", "slice", len(lengths))
        for index in (2, 0, 3):
            shown = np.rint(255 * ((lengths[index].T + 1000) / 3000))
            assert file.size(index) == shown.shape
            np.testing.assert_array_equal(file.pixels(index), np.broadcast_to(shown, (3, *shown.shape)))


def test_without_a_window_slices_are_comparable_and_rare_values_cut_off(tmp_path: Path) -> None:
    values = np.broadcast_to(np.arange(0, 100, dtype=np.float32), (20, 10, 100)).copy()
    values[0, 0, 0] = 1e6
    with open_image(save(tmp_path / "mr.nii", values)) as file:
        means = [file.pixels(index).mean() for index in range(file.count)]
        assert (np.diff(means[1:]) >= 0).all()
        assert (means[1], means[99]) == (pytest.approx(3, abs=2), pytest.approx(255, abs=2))
        across = open_image(tmp_path / "mr.nii", slice_axis=1)
        np.testing.assert_array_equal(across.pixels(3)[0, :, 5], [file.pixels(z)[0, 3, 5] for z in range(100)])
        across.close()


def test_a_volume_of_nearly_one_value_still_shows_the_others(tmp_path: Path) -> None:
    values = np.zeros((30, 30, 30), np.int16)
    values[3, 4, 5] = 7
    pixels = read_image(save(tmp_path / "mask.nii.gz", values), index=5).pixels
    assert pixels[0, 4, 3] == 255
    assert pixels.sum() == 3 * 255


def test_eight_bit_slices_stay_as_they_are_unless_a_window_is_given(tmp_path: Path) -> None:
    values = np.array([[[0, 100], [200, 255]]], np.uint8).transpose(1, 2, 0).repeat(3, axis=2)
    path = save(tmp_path / "a.nii", values)
    np.testing.assert_array_equal(read_image(path, 1).pixels[0], values[..., 1].T)
    assert read_image(path, 1, window=(100, 200)).pixels[0].tolist() == [[0, 255], [128, 255]]


def test_values_are_scaled_as_nibabel_does(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOLUME, np.eye(4))
    image.header.set_slope_inter(0.5, 100)
    image.to_filename(tmp_path / "a.nii")
    scaled = nibabel.load(tmp_path / "a.nii").get_fdata()[..., 3].T
    pixels = read_image(tmp_path / "a.nii", 3, window=(350, 1500)).pixels[0]
    np.testing.assert_array_equal(pixels, np.rint(255 * ((scaled + 400) / 1500).clip(0, 1)))


def test_big_endian_and_nifti_2_are_read(tmp_path: Path) -> None:
    nibabel.Nifti1Image(VOLUME.astype(">i2"), np.eye(4), nibabel.Nifti1Header(endianness=">")).to_filename(
        tmp_path / "big.nii"
    )
    nibabel.Nifti2Image(VOLUME, np.eye(4)).to_filename(tmp_path / "two.nii.gz")
    expected = read_image(save(tmp_path / "plain.nii", VOLUME), 4).pixels
    for name in ("big.nii", "two.nii.gz"):
        np.testing.assert_array_equal(read_image(tmp_path / name, 4).pixels, expected)


def test_a_colour_volume_is_read_slice_by_slice(tmp_path: Path) -> None:
    rgb24 = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    values = np.arange(4 * 5 * 6 * 3, dtype=np.uint8).reshape(4, 5, 6, 3)
    path = save(tmp_path / "a.nii.gz", np.ascontiguousarray(values).view(rgb24)[..., 0])
    np.testing.assert_array_equal(read_image(path, 2).pixels, values[:, :, 2].transpose(2, 1, 0))
    np.testing.assert_array_equal(read_image(path, 1, slice_axis=0).pixels, values[1].transpose(2, 1, 0))


@pytest.mark.parametrize("shape", [(4, 5, 6, 2), (4, 5, 6, 3), (4, 5, 1, 7), (2, 2, 2, 2, 3)])
def test_more_axes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"a\.nii: a NIfTI file of shape \(.*Split it into volumes of three axes"):
        open_image(save(tmp_path / "a.nii", np.zeros(shape, np.float32)))


@pytest.mark.parametrize("shape", [(1, 5, 6), (5, 1, 6), (5, 6, 1)])
def test_a_volume_with_one_axis_of_length_1_is_one_picture(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    values = np.arange(30, dtype=np.uint8).reshape(shape)
    for axis in ("auto", 0, 1, 2):
        pixels = read_image(save(tmp_path / "a.nii", values), slice_axis=axis).pixels
        np.testing.assert_array_equal(pixels[0], values.squeeze().T)


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("micron", 0.001), ("meter", 1000), ("unknown", None)])
def test_the_spacing_is_that_of_the_slice(tmp_path: Path, unit: str, factor: float | None) -> None:
    image = nibabel.Nifti1Image(VOLUME, np.diag([0.5, 0.25, 3, 1]))
    image.header.set_xyzt_units(unit)
    image.to_filename(tmp_path / "a.nii")
    for axis, (down, across) in {"auto": (0.25, 0.5), 0: (3, 0.25), 1: (3, 0.5)}.items():
        with open_image(tmp_path / "a.nii", slice_axis=axis) as file:
            expected = None if factor is None else (pytest.approx(down * factor), pytest.approx(across * factor))
            assert file.spacing_mm == expected


def test_what_is_not_finite_is_black(tmp_path: Path) -> None:
    values = np.array([[[0.0, 1.0, np.nan, np.inf, -np.inf]]], np.float32).transpose(2, 1, 0)
    assert read_image(save(tmp_path / "a.nii", values)).pixels[0].tolist() == [[0, 255, 0, 0, 0]]
    assert read_image(tmp_path / "a.nii", window=(0.5, 2)).pixels[0].tolist() == [[64, 191, 0, 0, 0]]


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5)])
def test_no_finite_value_at_all_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"a\.nii: no finite value"):
        read_image(save(tmp_path / "a.nii", np.full(shape, np.nan)), index=0)


def test_opening_neither_unpacks_nor_reads_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "ct.nii.gz", VOLUME)
    monkeypatch.setattr(nifti, "unpacked", None)
    with open_image(path) as file:
        assert (file.count, file.size(0)) == (6, (5, 4))


def test_the_unpacked_copy_is_deleted_on_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []
    genuine = nifti.unpacked
    monkeypatch.setattr(nifti, "unpacked", lambda *arguments: copies.append(genuine(*arguments)) or copies[-1])
    with open_image(save(tmp_path / "ct.nii.gz", VOLUME)) as file:
        file.pixels(0), file.pixels(1)
        assert not copies[0].closed
    assert [copy.closed for copy in copies] == [True]


def test_a_wrong_axis_or_window_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "ct.nii", VOLUME)
    with pytest.raises(ConfigError, match="slice_axis = 3"):
        open_image(path, slice_axis=3)  # type: ignore[arg-type]
    for window in ((0, 0), (0, -1), (float("nan"), 1)):
        with pytest.raises(ConfigError, match="a width above 0"):
            open_image(path, window=window)


def test_a_volume_is_no_mask_of_a_picture(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"m\.nii: holds 6 slices; one is expected"):
        read_mask(save(tmp_path / "m.nii", (VOLUME > 0).astype(np.uint8)))


@pytest.mark.parametrize("slab_bytes", [0, 1, 100, 1 << 20])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_those_of_the_array_however_many_are_read_at_once(
    tmp_path: Path, axis: int, slab_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti, "_SLAB_BYTES", slab_bytes)
    volume = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
    with save(tmp_path / "a.nii", volume).open("rb") as file:
        opened = nifti.NiftiFile(file, axis)
        for index in [0, 1, 4, 0, *range(opened.count)]:
            np.testing.assert_array_equal(opened.values(index), volume.take(index, axis=axis).T)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_that_is_cut_off_while_it_is_read_is_refused(
    tmp_path: Path, axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti, "_SLAB_BYTES", 1)
    path = save(tmp_path / "a.nii", np.zeros((64, 64, 64), np.uint8))
    with open_image(path, axis) as file:
        file.pixels(0)
        os.truncate(path, 4096)
        with pytest.raises(DataError, match=r"^a\.nii: it was cut off since it was opened"):
            file.pixels(63)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_memory_does_not_grow_with_the_volume(tmp_path: Path, axis: int) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_shape((256, 256, 1600))
    header.set_data_dtype(np.int16)
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(4))
    os.truncate(tmp_path / "a.nii", 352 + 2 * 256 * 256 * 1600)  # 210 MB, of which the disk holds a page
    tracemalloc.start()
    with open_image(tmp_path / "a.nii", axis, window=(0, 1)) as file:
        assert file.pixels(200).max() == 128
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6


def test_a_damaged_packed_volume_is_refused_at_every_slice(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.arange(3000, dtype=np.uint8).reshape(10, 10, 30))
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # of the checksum
    path.write_bytes(content)
    with open_image(path) as file:
        for index in (0, 1):
            with pytest.raises(DataError, match="CRC"):
                file.pixels(index)


def test_the_place_of_voxels_is_read_without_what_follows_the_header(tmp_path: Path) -> None:
    affine = np.diag([-2.0, 3, 4, 1])
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.uint8), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[348:356] = b"\1\0\0\0" + (2**31 - 16).to_bytes(4, "little")  # an extension of 2 GB
    (tmp_path / "a.nii").write_bytes(content)
    geometry = nifti.read_geometry(tmp_path / "a.nii")
    np.testing.assert_array_equal(geometry.affine, affine)
    assert (geometry.shape, geometry.units) == ((2, 3, 4), ("mm", "sec"))
