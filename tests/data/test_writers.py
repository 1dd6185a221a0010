"""Masks and overlays are written whole or not at all, and read back as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from skimage.segmentation import find_boundaries

from amsam_med.data.outlines import BOX_COLOUR, FLAG_COLOUR, OUTLINE_COLOURS
from amsam_med.data.readers import read_image, read_mask
from amsam_med.data.writers import SaveMaskd, write_mask_png, write_overlay
from amsam_med.errors import DataError

GREY = np.full((3, 40, 60), 90, np.uint8)


def test_one_class_is_written_as_isic_does(tmp_path: Path) -> None:
    write_mask_png(torch.tensor([[0, 1]], dtype=torch.uint8), tmp_path / "m.png")
    picture = PIL.Image.open(tmp_path / "m.png")
    assert picture.mode == "L"
    np.testing.assert_array_equal(picture, [[0, 255]])
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), [[0, 1]])


def test_several_classes_are_written_as_ids(tmp_path: Path) -> None:
    write_mask_png(np.array([[0, 2, 1]], np.uint8), tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", values=range(3)), [[0, 2, 1]])


def test_an_empty_mask_is_black(tmp_path: Path) -> None:
    write_mask_png(np.zeros((2, 2), np.uint8), tmp_path / "m.png")
    np.testing.assert_array_equal(PIL.Image.open(tmp_path / "m.png"), np.zeros((2, 2)))


@pytest.mark.parametrize("wrong", [np.zeros((1, 2, 2), np.uint8), np.zeros((2, 2), np.float32)])
def test_what_is_no_mask_is_not_written(tmp_path: Path, wrong: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"uint8 \(H, W\) of class ids; got"):
        write_mask_png(wrong, tmp_path / "m.png")
    assert not list(tmp_path.iterdir())


def test_an_overlay_draws_outlines_and_leaves_the_inside(tmp_path: Path) -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 10:30], mask[10:30, 40:50] = 1, 2
    write_overlay(GREY, mask, tmp_path / "o.png")
    shown = read_image(tmp_path / "o.png").pixels.transpose(1, 2, 0)
    is_drawn, on_border = (shown != 90).any(axis=-1), find_boundaries(mask, mode="thick")
    assert is_drawn.any()
    assert not (is_drawn & ~on_border).any()
    for class_id in (1, 2):
        is_border = on_border & (mask == class_id)
        np.testing.assert_array_equal(np.unique(shown[is_border], axis=0), [OUTLINE_COLOURS[class_id - 1]])


@pytest.mark.parametrize("side", [1, 2, 400])
def test_an_object_of_any_size_is_outlined(tmp_path: Path, side: int) -> None:
    mask = np.zeros((900, 1400), np.uint8)
    mask[3 : 3 + side, -side:] = 1
    write_overlay(np.full((3, *mask.shape), 90, np.uint8), mask, tmp_path / "o.png")
    shown = read_image(tmp_path / "o.png").pixels.transpose(1, 2, 0)
    assert (shown[3, -side:] == OUTLINE_COLOURS[0]).all()
    assert (shown[3 + side // 2, 1400 - side] == OUTLINE_COLOURS[0]).all()
    assert (shown[200, 1200] == 90).all()
    assert (shown[3 + side + 9 :] == 90).all()


def test_an_object_at_the_edge_is_outlined_there(tmp_path: Path) -> None:
    write_overlay(GREY, np.ones((40, 60), np.uint8), tmp_path / "o.png")
    shown = read_image(tmp_path / "o.png").pixels.transpose(1, 2, 0)
    for y, x in ((0, 30), (39, 30), (20, 0), (20, 59)):
        assert tuple(shown[y, x]) == OUTLINE_COLOURS[0]


def test_a_box_has_its_last_pixels_inside(tmp_path: Path) -> None:
    write_overlay(GREY, np.zeros((40, 60), np.uint8), tmp_path / "o.png", box=torch.tensor([5.0, 6.0, 60.0, 40.0]))
    is_drawn = (read_image(tmp_path / "o.png").pixels == np.array(BOX_COLOUR)[:, None, None]).all(axis=0)
    rows, columns = np.nonzero(is_drawn)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (5, 6, 60, 40)


def test_a_flagged_result_has_a_dashed_box_and_words_at_the_bottom(tmp_path: Path) -> None:
    grey, empty, box = np.full((3, 200, 240), 90, np.uint8), np.zeros((200, 240), np.uint8), (20.0, 10.0, 220.0, 150.0)
    write_overlay(grey, empty, tmp_path / "plain.png", box)
    write_overlay(grey, empty, tmp_path / "flagged.png", box, ("no-box", "unsure-mask"))
    plain, flagged = (read_image(tmp_path / name).pixels.transpose(1, 2, 0) for name in ("plain.png", "flagged.png"))
    is_box, is_dash = ((shown[:160] == BOX_COLOUR).all(axis=-1) for shown in (plain, flagged))
    assert not (is_dash & ~is_box).any()
    assert 0.4 < is_dash.sum() / is_box.sum() < 0.6
    is_strip = (flagged[190:] == FLAG_COLOUR).all(axis=-1)
    assert 0.5 < is_strip.mean() < 0.98  # the rest is words
    assert not (plain == FLAG_COLOUR).all(axis=-1).any()


@pytest.mark.parametrize("size", [(3, 5), (16, 400), (3000, 40)])
def test_flags_are_written_on_images_of_any_shape(size: tuple[int, int], tmp_path: Path) -> None:
    write_overlay(np.full((3, *size), 90, np.uint8), np.ones(size, np.uint8), tmp_path / "o.png", flags=("empty-mask",))
    assert (read_image(tmp_path / "o.png").pixels[:, -1] == np.array(FLAG_COLOUR)[:, None]).all(axis=0).any()


def test_lines_grow_with_the_image(tmp_path: Path) -> None:
    shares = []
    for scale in (1, 8):
        mask = np.zeros((160 * scale, 160 * scale), np.uint8)
        mask[: 80 * scale] = 1
        write_overlay(np.full((3, *mask.shape), 90, np.uint8), mask, tmp_path / "o.png")
        shares.append(float((read_image(tmp_path / "o.png").pixels[0] != 90).mean()))
    assert shares[1] == pytest.approx(shares[0] / 2, rel=0.3)  # 1 pixel of 160, 4 of 1280


def test_an_overlay_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got uint8 \(3, 40, 60\) and a mask \(60, 40\)"):
        write_overlay(GREY, np.zeros((60, 40), np.uint8), tmp_path / "o.png")


@pytest.mark.parametrize(("data_root", "file"), [(None, "a_segmentation.png"), ("in", "sub/a_segmentation.png")])
def test_an_items_mask_is_saved_under_its_images_name(data_root: str | None, file: str, tmp_path: Path) -> None:
    item = {
        "pred": torch.tensor([[[0, 1], [1, 0]]], dtype=torch.uint8),
        "image_meta_dict": {"filename_or_obj": str(tmp_path / "in" / "sub" / "a.jpg")},
    }
    root = None if data_root is None else tmp_path / data_root
    assert SaveMaskd("pred", tmp_path / "out", root)(item) == item
    np.testing.assert_array_equal(read_mask(tmp_path / "out" / file), [[0, 1], [1, 0]])
