"""Images and masks of every format become the arrays a viewer would show, or a message that helps."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from amsam_med.data import readers
from amsam_med.data.readers import (
    MaskReader,
    RgbReader,
    image_size,
    is_image_file,
    open_image,
    read_image,
    read_mask,
)
from amsam_med.errors import DataError
from tests.bounded import run_bounded

# MONAI's loader builds all its readers, and one of them warns that its decoder is missing.
monai_loader = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")

RED_GREEN = np.array([[[255, 0, 0]] * 4, [[0, 255, 0]] * 4], np.uint8)  # (2, 4, 3): a red row over a green one


def save(path: Path, values: np.ndarray, **options: object) -> Path:
    PIL.Image.fromarray(values).save(path, **options)
    return path


def png_without_pixels(path: Path, width: int, height: int) -> Path:
    """A PNG whose header promises ``width`` x ``height`` pixels that never come."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "gif"])
def test_lossless_pictures_come_back_as_rgb_channel_first(tmp_path: Path, suffix: str) -> None:
    image = read_image(save(tmp_path / f"a.{suffix}", RED_GREEN, **({"lossless": True} if suffix == "webp" else {})))
    np.testing.assert_array_equal(image.pixels, RED_GREEN.transpose(2, 0, 1))
    assert image.meta["original_size"] == (2, 4)
    assert image.meta["format"] == {"tif": "TIFF"}.get(suffix, suffix.upper())


def test_jpeg_is_upright_as_its_exif_says(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a viewer
    path = save(tmp_path / "phone.jpg", np.kron(RED_GREEN, np.ones((16, 16, 1), np.uint8)), exif=exif, quality=95)
    red, green, _ = read_image(path).pixels
    assert red.shape == image_size(path) == (64, 32)
    assert green[32, 4] > 200  # the green lower half is now on the left
    assert red[32, 28] > 200


def test_transparent_pixels_lie_on_black(tmp_path: Path) -> None:
    rgba = np.full((1, 2, 4), 200, np.uint8)
    rgba[0, :, 3] = (0, 255)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", rgba)).pixels[:, 0], [[0, 200]] * 3)


def test_sixteen_bit_grey_keeps_its_upper_byte(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[0, 255, 256, 65535]], np.uint16))
    np.testing.assert_array_equal(read_image(path).pixels, [[[0, 0, 1, 255]]] * 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK"])
def test_every_colour_mode_ends_as_white_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "white.tif"
    PIL.Image.new("RGB", (3, 2), "white").convert(mode).save(path)
    np.testing.assert_array_equal(read_image(path).pixels, np.full((3, 2, 3), 255))


def test_float_pixels_have_no_white_and_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.tif: grey values beyond 16 bits.*Export"):
        read_image(save(tmp_path / "a.tif", np.ones((2, 2), np.float32)))


def test_several_pages_are_refused(tmp_path: Path) -> None:
    page = PIL.Image.fromarray(RED_GREEN)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page, page])
    with pytest.raises(DataError, match=r"a\.tif: holds 3 pages"):
        read_image(tmp_path / "a.tif")


def test_pages_of_a_tiff_are_pictures_of_their_own(tmp_path: Path) -> None:
    pages = [PIL.Image.new("RGB", (4 + page, 2), (page, 0, 0)) for page in range(5)]
    for compression in ("raw", "tiff_lzw"):
        pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], compression=compression)
        with open_image(tmp_path / "a.tif") as file:
            assert (file.format, file.part, file.count, file.spacing_mm) == ("TIFF", "page", 5, None)
            for index in (3, 0, 4, 3):
                assert file.size(index) == file.pixels(index).shape[1:] == (2, 4 + index)
                assert file.pixels(index)[0].tolist() == [[index] * (4 + index)] * 2


def test_a_turned_tiff_has_the_size_that_it_is_shown_with(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.tif", RED_GREEN, exif=exif)
    assert image_size(path) == read_image(path).pixels.shape[1:] == (4, 2)
    with open_image(path) as file:
        np.testing.assert_array_equal(file.pixels(), file.pixels())
        assert file.size() == (4, 2)


def test_a_picture_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", RED_GREEN)
    for index in (-1, 1):
        with pytest.raises(DataError, match=rf"a\.png: no page {index} in it; it holds 1, counted from 0"):
            read_image(path, index)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_are_refused(tmp_path: Path, suffix: str) -> None:
    frames = [PIL.Image.fromarray(RED_GREEN), PIL.Image.fromarray(RED_GREEN[::-1]), PIL.Image.new("RGB", (4, 2))]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], duration=100)
    with pytest.raises(DataError, match=rf"a\.{suffix}: animated, 3 frames; export the one you need"):
        open_image(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"subsampling": 2}])
def test_jpeg_is_decoded_as_pillow_does(tmp_path: Path, options: dict[str, object]) -> None:
    path = save(tmp_path / "a.jpg", np.kron(RED_GREEN, np.ones((9, 7, 1), np.uint8)), **options)
    with PIL.Image.open(path) as picture:
        np.testing.assert_array_equal(read_image(path).pixels, np.asarray(picture).transpose(2, 0, 1))


def test_sixteen_bit_tiff_takes_a_window(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", np.array([[0, 1000, 2000, 65535]], np.uint16))
    assert read_image(path).pixels[0].tolist() == [[0, 3, 7, 255]]
    assert read_image(path, window=(1000, 2000)).pixels[0].tolist() == [[0, 128, 255, 255]]
    assert read_image(save(tmp_path / "f.tif", np.array([[0.25]], np.float32)), window=(0.5, 1)).pixels[0, 0, 0] == 64


def test_opening_does_not_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", RED_GREEN)
    monkeypatch.setattr(PIL.Image.Image, "load", None)
    with open_image(path) as file:
        assert (file.count, file.size()) == (1, (2, 4))


def test_what_counts_as_an_image_file(tmp_path: Path) -> None:
    for name, content in {"a.PNG": b"", "b.gif": b"", ".c.png": b"", "d.txt": b"x" * 200, "DICOMDIR": b""}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "e.ima").write_bytes(bytes(128) + b"DICM")
    assert [path.name for path in sorted(tmp_path.iterdir()) if is_image_file(path)] == ["a.PNG", "b.gif", "e.ima"]


def test_a_phones_mpo_gives_its_photograph(tmp_path: Path) -> None:
    photograph, preview = PIL.Image.new("RGB", (8, 4), "red"), PIL.Image.new("RGB", (4, 2), "blue")
    photograph.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[preview])
    image = read_image(tmp_path / "phone.jpg")
    assert image.meta == {"format": "MPO", "original_size": (4, 8)}
    assert image.pixels[:, 2, 4].tolist() == [254, 0, 0]  # JPEG's red


@pytest.mark.parametrize("side", [9_300, 12_000, 60_000])  # below, within and above Pillow's own alarms
def test_bombs_are_refused_from_their_header(tmp_path: Path, side: int) -> None:
    with pytest.raises(DataError, match=r"bomb\.png: .* pixels, at most 85,000,000 are decoded"):
        read_image(png_without_pixels(tmp_path / "bomb.png", side, side))


def test_faults_name_the_file_without_its_folder(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:2000])
    (tmp_path / "text.png").write_text("no image")
    for name, what in {"cut.png": "cannot be decoded", "text.png": "not an image", "none.png": "no such file"}.items():
        with pytest.raises(DataError, match=f"^{name}: {what}") as caught:
            read_image(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("values", [(0, 255), (0, 1), (255,), (0,), (1,)])
def test_masks_of_one_class_are_0_255_or_0_1(tmp_path: Path, values: tuple[int, ...]) -> None:
    stored = np.resize(np.array(values, np.uint8), (3, 4))
    np.testing.assert_array_equal(read_mask(save(tmp_path / "m.png", stored)), stored > 0)


def test_masks_of_several_classes_hold_the_named_values(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", np.array([[0, 128, 255]], np.uint8))
    np.testing.assert_array_equal(read_mask(path, values=(0, 128, 255)), [[0, 1, 2]])
    ids = save(tmp_path / "ids.png", np.array([[0, 3, 2]], np.uint8))
    np.testing.assert_array_equal(read_mask(ids, values=range(4)), [[0, 3, 2]])


def test_stray_values_are_refused_with_their_list(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", np.array([[0, 2, 3, 4, 5, 6, 250, 255]], np.uint8))
    with pytest.raises(DataError, match=r"m\.png: the mask holds the values 2, 3, 4, 5, 6 and 1 more; expected 0, 255"):
        read_mask(path)


def test_masks_in_other_modes_read_alike(tmp_path: Path) -> None:
    disc = np.array([[0, 255, 255, 0]], np.uint8)
    picture = PIL.Image.fromarray(disc)
    for mode in ("1", "RGB", "RGBA", "LA", "P"):
        picture.convert(mode).save(tmp_path / f"{mode}.png")
        np.testing.assert_array_equal(read_mask(tmp_path / f"{mode}.png"), disc > 0)


def test_a_coloured_palette_gives_its_indices(tmp_path: Path) -> None:
    picture = PIL.Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode=None).convert("P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    picture.save(tmp_path / "voc.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "voc.png", values=range(3)), [[0, 1, 2]])


def test_a_palette_that_begins_with_white_is_read_by_its_colours(tmp_path: Path) -> None:
    picture = PIL.Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    picture.putpalette([255, 255, 255, 0, 0, 0])
    picture.save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), [[1, 0]])


def test_a_photograph_is_no_mask(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png: a colour picture, not a mask"):
        read_mask(save(tmp_path / "a.png", RED_GREEN))


@monai_loader
def test_monai_loads_channel_first_with_metadata(tmp_path: Path) -> None:
    item = {"image": save(tmp_path / "a.png", RED_GREEN), "label": save(tmp_path / "m.png", RED_GREEN[..., 0])}
    load = Compose(
        [
            LoadImaged("image", reader=RgbReader, ensure_channel_first=True),
            LoadImaged("label", reader=MaskReader()),
            EnsureChannelFirstd("label"),
        ]
    )
    loaded = load(item)
    assert loaded["image"].shape == (3, 2, 4)
    assert loaded["label"].shape == (1, 2, 4)
    assert loaded["image"].meta["spatial_shape"].tolist() == [2, 4]
    assert loaded["image"].meta["filename_or_obj"] == str(tmp_path / "a.png")


@monai_loader
def test_monai_reads_a_reader_named_in_a_config_and_the_second_result(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", RED_GREEN)
    load = LoadImaged("image", reader="amsam_med.data.readers.RgbReader", image_only=False)
    loaded = load({"image": path})
    assert loaded["image_meta_dict"]["spatial_shape"].tolist() == [2, 4]


@monai_loader
def test_monai_cannot_fall_back_to_a_reader_without_our_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PIXEL_LIMIT", 7)  # RED_GREEN has 8, and MONAI's own PILReader would take it
    with pytest.raises(DataError, match="at most 7"):
        LoadImaged("image", reader=RgbReader)({"image": save(tmp_path / "a.png", RED_GREEN)})


def test_real_masks_and_images_agree_in_size(data_root: Path) -> None:
    images = sorted((data_root / "human_vikram" / "images").iterdir())[:5]
    assert images
    for path in images:
        mask = read_mask(data_root / "human_vikram" / "masks" / f"{path.stem}.png")
        assert read_image(path).pixels.shape[1:] == mask.shape == image_size(path)
        assert set(np.unique(mask)) == {0, 1}


def test_a_jpeg_that_is_damaged_inside_is_shown_and_says_so(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    PIL.Image.fromarray(noise).resize((600, 400)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    half = len(content) // 2
    (tmp_path / "b.jpg").write_bytes(content[:half] + bytes(300) + content[half + 300 :])
    (tmp_path / "c.png").write_bytes((tmp_path / "a.jpg").read_bytes())
    for name, damage in {"a.jpg": "", "b.jpg": "Corrupt JPEG data", "c.png": ""}.items():
        with open_image(tmp_path / name) as file:
            assert file.pixels().shape == (3, 400, 600)
            assert file.damage.startswith(damage)
            assert bool(file.damage) == bool(damage)


def test_real_jpegs_have_no_damage(data_root: Path) -> None:
    paths = sorted((data_root / "ham10000").rglob("*.jpg"))[::60]
    assert len(paths) >= 40
    for path in paths:
        with open_image(path) as file:
            assert file.damage == ""


def test_too_little_memory_is_not_the_fault_of_the_picture(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (8000, 8000)).save(tmp_path / "a.png")
    imports = "from amsam_med.data.readers import open_image\nfrom amsam_med.errors import TooLittleMemoryError"
    code = """
with open_image(sys.argv[1]) as file:
    try:
        file.pixels()
    except TooLittleMemoryError as error:
        print(isinstance(error, MemoryError), file.memory_bytes(), error)
"""
    said = run_bounded(imports, code, tmp_path / "a.png", megabytes=200).said
    assert said.startswith("True 1024000000 a.png: this machine has too little memory to read it. Close other")


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_what_cannot_be_looked_into_counts_as_an_image_where_dicom_may_have_such_a_name(tmp_path: Path) -> None:
    for name in ("IM0001", "1.2.840.113", "notes.txt", "longer", "gone"):
        os.symlink({"longer": "a" * 300, "gone": "nowhere"}.get(name, name), tmp_path / name)
    found = [name for name in os.listdir(tmp_path) if is_image_file(tmp_path / name)]
    assert sorted(found) == ["1.2.840.113", "IM0001", "longer"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_without_a_suffix_counts_as_an_image(tmp_path: Path) -> None:
    (tmp_path / "IM0001").touch(mode=0)
    assert is_image_file(tmp_path / "IM0001")
