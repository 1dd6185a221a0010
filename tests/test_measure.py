"""Measurements of a segmented picture, against hand values, known shapes and scikit-image."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.measure import perimeter_crofton, regionprops
from skimage.morphology import convex_hull_image

from amsam_med.boxes import box_from_mask
from amsam_med.errors import DataError
from amsam_med.measure import Measurements, measure

Bytes = NDArray[np.uint8]

REPOSITORY = Path(__file__).resolve().parent.parent
SKIN = (220, 180, 160)
LESION = (110, 70, 50)
seeds = st.integers(0, 9999)


def picture(mask: Bytes, inside: tuple[int, ...] = LESION, outside: tuple[int, ...] = SKIN) -> Bytes:
    """Two flat colours: (3, H, W)."""
    colours = np.array([outside, inside], dtype=np.uint8)
    return np.ascontiguousarray(colours[(mask != 0).astype(int)].transpose(2, 0, 1))


def of(mask: Bytes, spacing_mm: tuple[float, float] | None = None) -> Measurements:
    return measure(picture(mask), mask, spacing_mm)


def canvas(height: int, width: int) -> Bytes:
    return np.zeros((height, width), dtype=np.uint8)


def ellipse(x_radius: float, y_radius: float, degrees: float = 0.0, side: int = 256) -> Bytes:
    """Pixels whose centre lies in an ellipse around the middle of a square."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    along = x * math.cos(math.radians(degrees)) + y * math.sin(math.radians(degrees))
    across = y * math.cos(math.radians(degrees)) - x * math.sin(math.radians(degrees))
    return ((along / x_radius) ** 2 + (across / y_radius) ** 2 <= 1).astype(np.uint8)


def ellipse_perimeter(a: float, b: float) -> float:
    """Ramanujan's second approximation."""
    h = ((a - b) / (a + b)) ** 2
    return math.pi * (a + b) * (1 + 3 * h / (10 + math.sqrt(4 - 3 * h)))


def noise_picture(seed: int, size: tuple[int, int] = (48, 56)) -> tuple[Bytes, Bytes]:
    """A picture of noise, and a mask of smooth random blobs away from its edge, with at least one pixel."""
    generator = np.random.default_rng(seed)
    height = ndimage.gaussian_filter(generator.normal(size=size), generator.uniform(0.8, 4))
    mask = (height > np.quantile(height, generator.uniform(0.5, 0.95))).astype(np.uint8)
    mask[:8], mask[-8:], mask[:, :8], mask[:, -8:] = 0, 0, 0, 0
    mask[size[0] // 2, size[1] // 2] = 1
    return generator.integers(0, 256, (3, *size), dtype=np.uint8), mask


def scalars(measurements: Measurements) -> dict[str, float | None]:
    """All but the box."""
    return {name: value for name, value in asdict(measurements).items() if not name.startswith("mask_")}


# Known shapes


def test_a_disc_has_its_formulas_values() -> None:
    found = of(ellipse(100, 100))
    assert found.area_px == pytest.approx(math.pi * 100**2, rel=2e-3)
    assert found.equivalent_diameter_px == pytest.approx(200, rel=1e-3)
    assert found.perimeter_px == pytest.approx(2 * math.pi * 100, rel=2e-3)
    assert found.compactness == pytest.approx(1, abs=4e-3)
    assert found.parts == 1
    assert found.border_irregularity == 1
    assert (found.asymmetry_major, found.asymmetry_minor) == (0, 0)


def test_a_square_has_its_hand_values() -> None:
    mask = canvas(30, 40)
    mask[5:15, 20:30] = 1
    found = of(mask)
    # 10 rows and 10 columns, 19 diagonals of each direction, two crossings each
    perimeter = math.pi / 8 * (20 + 20 + (38 + 38) / math.sqrt(2))
    assert (found.area_px, found.area_percent, found.parts) == (100, 8.333, 1)
    assert (found.mask_x1_px, found.mask_y1_px, found.mask_x2_px, found.mask_y2_px) == (20, 5, 30, 15)
    assert found.perimeter_px == round(perimeter, 2) == 36.81
    assert found.compactness == round(4 * math.pi * 100 / perimeter**2, 4)
    assert found.equivalent_diameter_px == 11.28
    assert (found.asymmetry_major, found.asymmetry_minor, found.border_irregularity) == (0, 0, 1)


@pytest.mark.parametrize("degrees", [0, 10, 22.5, 30, 45, 70, 90, 135])
def test_an_ellipse_is_measured_the_same_at_every_angle(degrees: float) -> None:
    found = of(ellipse(100, 50, degrees))
    assert found.area_px == pytest.approx(math.pi * 100 * 50, rel=3e-3)
    assert found.perimeter_px == pytest.approx(ellipse_perimeter(100, 50), rel=5e-3)
    assert found.compactness == pytest.approx(4 * math.pi**2 * 5000 / ellipse_perimeter(100, 50) ** 2, rel=1e-2)
    assert found.border_irregularity == 1
    assert found.asymmetry_major == pytest.approx(0, abs=6e-3)
    assert found.asymmetry_minor == pytest.approx(0, abs=6e-3)


def test_a_triangle_misses_a_third_of_its_mirror_image() -> None:
    # Turned over at the height of its centroid, a third of its height, a triangle covers 2/3 of itself.
    mask = canvas(340, 220)
    for row in range(300):
        half = round(100 * (row + 0.5) / 300)
        mask[20 + row, 110 - half : 110 + half] = 1
    found = of(mask)
    assert found.asymmetry_major == 0
    assert found.asymmetry_minor == pytest.approx(1 / 3, abs=3e-3)
    assert found.perimeter_px == pytest.approx(200 + 2 * math.hypot(300, 100), rel=0.03)


def test_two_parts_are_counted_and_their_borders_added() -> None:
    one, two = canvas(90, 200), canvas(90, 200)
    one[20:60, 20:60] = two[20:60, 20:60] = two[20:60, 120:160] = 1
    single, double = of(one), of(two)
    assert (single.parts, double.parts) == (1, 2)
    assert single.perimeter_px is not None
    assert double.perimeter_px == pytest.approx(2 * single.perimeter_px, abs=0.01)
    assert double.border_irregularity == 1  # each part against its own hull
    assert (double.asymmetry_major, double.asymmetry_minor) == (0, 0)


def test_parts_that_touch_at_a_corner_are_one() -> None:
    mask = canvas(20, 20)
    mask[4:8, 4:8] = mask[8:12, 8:12] = 1
    assert of(mask).parts == of(mask[:, ::-1].copy()).parts == 1
    mask[8:12] = np.roll(mask[8:12], 1, axis=1)
    assert of(mask).parts == of(mask[:, ::-1].copy()).parts == 2


def test_one_pixel_has_all_measurements() -> None:
    mask = canvas(9, 9)
    mask[4, 6] = 3
    found = of(mask, (0.5, 0.5))
    assert (found.area_px, found.area_mm2, found.parts) == (1, 0.25, 1)
    assert (found.mask_x1_px, found.mask_y1_px, found.mask_x2_px, found.mask_y2_px) == (6, 4, 7, 5)
    assert found.perimeter_px == round(math.pi / 8 * (4 + 4 / math.sqrt(2)), 2)
    assert (found.asymmetry_major, found.asymmetry_minor, found.border_irregularity) == (0, 0, 1)
    assert (found.red_mean_inside_u8, found.red_std_inside_u8, found.red_mean_outside_u8) == (110, 0, 220)


@pytest.mark.parametrize("turned", [False, True])
def test_a_line_is_symmetric_and_far_from_compact(turned: bool) -> None:
    mask = canvas(20, 120)
    mask[10, 10:110] = 1
    found = of(mask.T.copy() if turned else mask)
    assert found.area_px == 100
    assert found.perimeter_px == pytest.approx(2 * 100, rel=0.06)
    assert found.compactness == pytest.approx(4 * math.pi * 100 / 200**2, rel=0.12)
    assert (found.asymmetry_major, found.asymmetry_minor, found.border_irregularity) == (0, 0, 1)


def test_a_diagonal_thread_is_not_less_than_convex() -> None:
    found = of(np.eye(50, dtype=np.uint8))
    assert found.parts == 1
    assert found.border_irregularity == 1


def test_a_full_mask_ends_at_the_pictures_edge() -> None:
    found = of(np.ones((30, 50), dtype=np.uint8), (0.1, 0.1))
    assert (found.area_percent, found.area_mm2, found.parts) == (100, 15, 1)
    assert (found.mask_x1_px, found.mask_y1_px, found.mask_x2_px, found.mask_y2_px) == (0, 0, 50, 30)
    assert found.perimeter_px == pytest.approx(160, rel=0.06)
    assert found.red_mean_inside_u8 == 110
    assert found.red_mean_outside_u8 is None
    assert found.lab_l_mean_outside is None
    assert found.delta_e_2000 is None


@pytest.mark.parametrize(("spacing_mm", "area_mm2"), [(None, None), ((0.1, 0.2), 0.0)])
def test_an_empty_mask_has_an_area_and_nothing_else(
    spacing_mm: tuple[float, float] | None, area_mm2: float | None
) -> None:
    defined = {name: value for name, value in asdict(of(canvas(8, 9), spacing_mm)).items() if value is not None}
    assert defined.pop("area_mm2", None) == area_mm2
    assert defined == {"area_px": 0, "area_percent": 0.0, "parts": 0}


def test_a_cut_counts_as_border() -> None:
    mask = canvas(60, 60)
    mask[:20, 10:50] = 1  # lies on the upper edge
    inner = np.roll(mask, 20, axis=0)
    assert of(mask).perimeter_px == of(inner).perimeter_px


def test_the_edge_of_a_hole_counts_as_border() -> None:
    mask = ellipse(100, 100)
    hole = ellipse(40, 40)
    found, full, inner = of(mask - hole), of(mask), of(hole)
    assert full.perimeter_px is not None
    assert inner.perimeter_px is not None
    assert found.perimeter_px == pytest.approx(full.perimeter_px + inner.perimeter_px, abs=0.02)
    assert found.border_irregularity == pytest.approx(1.4, abs=0.01)
    assert found.parts == 1


def test_a_star_is_more_irregular_than_its_hull() -> None:
    y, x = np.mgrid[:400, :400] - 199.5
    star = (np.hypot(y, x) < 120 * (1 + 0.3 * np.cos(9 * np.arctan2(y, x)))).astype(np.uint8)
    irregularity = of(star).border_irregularity
    assert irregularity == pytest.approx(perimeter_crofton(star) / perimeter_crofton(convex_hull_image(star)), abs=1e-4)
    assert irregularity is not None
    assert irregularity > 1.5


def test_every_class_above_background_is_the_object() -> None:
    mask = ellipse(50, 30, 20)
    several = mask * np.arange(1, 257, dtype=np.uint16).clip(1, 255).astype(np.uint8)
    assert several.max() == 176
    assert measure(picture(mask), several, None) == of(mask)


# Millimetres


def test_an_ellipse_of_pixels_that_is_a_disc_in_millimetres_is_a_disc() -> None:
    found = of(ellipse(100, 50), (0.02, 0.01))  # 100 x 0.01 mm by 50 x 0.02 mm: a radius of 1 mm
    assert found.area_mm2 == pytest.approx(math.pi, rel=2e-3)
    assert found.equivalent_diameter_mm == pytest.approx(2, rel=1e-3)
    assert found.perimeter_mm == pytest.approx(2 * math.pi, rel=3e-3)
    assert found.compactness == pytest.approx(1, abs=6e-3)
    assert found.perimeter_px == pytest.approx(ellipse_perimeter(100, 50), rel=5e-3)
    assert found.asymmetry_major == pytest.approx(0, abs=6e-3)
    assert found.asymmetry_minor == pytest.approx(0, abs=6e-3)


def test_a_rectangle_of_oblong_pixels_has_its_hand_value() -> None:
    mask = canvas(30, 40)
    mask[5:15, 5:25] = 1  # 10 rows, 20 columns, 29 diagonals of each direction; pixels are 2 mm high, 1 mm wide
    to_diagonal = math.atan(2)
    lines = 10 * 2 * to_diagonal + 20 * 1 * (math.pi / 2 - to_diagonal) + 2 * 29 * 2 / math.sqrt(5) * math.pi / 4
    assert of(mask, (2.0, 1.0)).perimeter_mm == float(f"{lines:.6g}")


def test_a_tilted_ellipse_in_millimetres_is_symmetric_although_its_pixels_are_not() -> None:
    y, x = np.mgrid[:160, :320] * np.array([0.02, 0.01])[:, None, None] - 1.6
    mask = (((x + y) / 1.8) ** 2 + ((x - y) / 0.9) ** 2 <= 1).astype(np.uint8)  # at 45° in millimetres
    in_mm, in_px = of(mask, (0.02, 0.01)), of(mask)
    assert in_mm.asymmetry_major == pytest.approx(0, abs=8e-3)
    assert in_mm.asymmetry_minor == pytest.approx(0, abs=8e-3)
    assert in_mm.perimeter_mm == pytest.approx(ellipse_perimeter(1.8, 0.9) / math.sqrt(2), rel=1.5e-2)
    assert in_mm.compactness != in_px.compactness


@given(seed=seeds, spacing=st.floats(1e-4, 10))
def test_with_square_pixels_millimetres_are_pixels_times_their_spacing(seed: int, spacing: float) -> None:
    image, mask = noise_picture(seed)
    in_px, in_mm = measure(image, mask, None), measure(image, mask, (spacing, spacing))
    assert in_mm.area_mm2 == pytest.approx(in_px.area_px * spacing**2, rel=1e-5)
    assert in_px.perimeter_px is not None
    assert in_px.equivalent_diameter_px is not None
    assert in_mm.perimeter_mm == pytest.approx(in_px.perimeter_px * spacing, rel=3e-3)
    assert in_mm.equivalent_diameter_mm == pytest.approx(in_px.equivalent_diameter_px * spacing, rel=6e-3)
    shape = ("compactness", "asymmetry_major", "asymmetry_minor", "border_irregularity")
    assert [getattr(in_mm, name) for name in shape] == pytest.approx([getattr(in_px, name) for name in shape], abs=2e-4)


def test_without_a_spacing_there_are_no_millimetres() -> None:
    found = asdict(of(ellipse(50, 30)))
    columns = [name for name in found if name.endswith(("_mm", "_mm2"))]
    assert len(columns) == 3
    assert all(found[name] is None for name in columns)


# Colours


def test_flat_colours_come_back() -> None:
    found = of(ellipse(60, 40, 20))
    names = [f"{channel}_{kind}" for kind in ("mean", "std") for channel in ("red", "green", "blue")]
    assert [getattr(found, f"{name}_inside_u8") for name in names] == [*LESION, 0, 0, 0]
    assert [getattr(found, f"{name}_outside_u8") for name in names] == [*SKIN, 0, 0, 0]


def test_white_and_black_differ_by_a_hundred() -> None:
    mask = ellipse(60, 40)
    found = measure(picture(mask, (0, 0, 0), (255, 255, 255)), mask, None)
    assert (found.lab_l_mean_inside, found.lab_l_mean_outside, found.delta_e_2000) == (0, 100, 100)


def test_equal_colours_do_not_differ_and_grey_has_no_negative_zero() -> None:
    mask = ellipse(60, 40)
    found = measure(picture(mask, (128, 128, 128), (128, 128, 128)), mask, None)
    assert str(found.delta_e_2000) == "0.0"
    assert str(found.lab_a_mean_inside) == str(found.lab_b_mean_outside) == "0.0"


def test_colours_inside_are_those_of_numpy_and_scikit_image() -> None:
    generator = np.random.default_rng(0)
    mask = ellipse(110, 70, 30)
    image = np.clip(picture(mask) + generator.normal(0, 25, (3, *mask.shape)), 0, 255).astype(np.uint8)
    found = measure(image, mask, None)
    pixels = image[:, mask != 0].astype(np.float64)
    assert found.green_mean_inside_u8 == round(pixels[1].mean(), 2)
    assert found.blue_std_inside_u8 == round(pixels[2].std(), 2)
    lab = [found.lab_l_mean_inside, found.lab_a_mean_inside, found.lab_b_mean_inside]
    assert lab == pytest.approx(rgb2lab(pixels.T / 255).mean(axis=0).tolist(), abs=0.03)


def test_the_difference_is_that_of_the_mean_colours() -> None:
    found = of(ellipse(60, 40))
    lesion, skin = (rgb2lab(np.array([colour], dtype=np.uint8) / 255)[0] for colour in (LESION, SKIN))
    assert [found.lab_l_mean_inside, found.lab_a_mean_inside] == pytest.approx(lesion[:2].tolist(), abs=0.006)
    assert found.delta_e_2000 == pytest.approx(float(deltaE_ciede2000(lesion, skin)), abs=0.006)


@pytest.mark.parametrize(("row_step", "column_step"), [(1.0, 1.0), (2.0, 1.0)])
def test_outside_is_a_ring_of_a_fortieth_to_a_tenth_of_the_diameter(row_step: float, column_step: float) -> None:
    y, x = np.mgrid[:400, :400] - 199.5
    radius = np.hypot(y * row_step, x * column_step)
    mask = (radius <= 100).astype(np.uint8)  # in steps: diameter 200, ring from 5 to 20 beyond the border
    image = picture(mask, outside=(0, 0, 0))
    image[:, (radius > 103) & (radius < 122)] = np.array(SKIN)[:, None]
    found = measure(image, mask, (row_step, column_step))
    assert (found.red_mean_outside_u8, found.red_std_outside_u8) == (220, 0)
    image[:, (radius > 110) & (radius < 115)] = 0
    assert measure(image, mask, (row_step, column_step)).red_std_outside_u8 != 0


def test_the_ring_of_a_large_object_has_none_of_the_object() -> None:
    mask = ellipse(390, 330, 20, side=900)
    found = of(mask)
    assert (found.red_mean_outside_u8, found.red_std_outside_u8) == (SKIN[0], 0)


def test_the_ring_goes_on_where_the_object_is_cut() -> None:
    mask = ellipse(60, 60)[120:].copy()
    assert of(mask).red_mean_outside_u8 == SKIN[0]


# Properties


@given(seed=seeds)
def test_references_agree_on_any_mask(seed: int) -> None:
    image, mask = noise_picture(seed)
    found = measure(image, mask, None)
    region = regionprops(mask)[0]
    box = box_from_mask(torch.from_numpy(mask))
    assert found.area_px == region.area
    assert found.equivalent_diameter_px == round(region.equivalent_diameter_area, 2)
    assert found.perimeter_px == pytest.approx(perimeter_crofton(mask, directions=4), abs=0.0051)
    assert found.parts == ndimage.label(mask, np.ones((3, 3)))[1]
    assert box is not None
    assert [found.mask_x1_px, found.mask_y1_px, found.mask_x2_px, found.mask_y2_px] == box.tolist()


def fold_on_a_fine_grid(mask: Bytes, about_major: bool) -> float:
    """Mirror a mask about a principal axis of scikit-image's, point by point, eight points a pixel's side."""
    region = regionprops(mask)[0]
    angle = region.orientation + (0 if about_major else math.pi / 2)  # from the row axis
    axis = np.array([math.cos(angle), math.sin(angle)])
    points = np.mgrid[-1 : mask.shape[0] : 0.125, -1 : mask.shape[1] : 0.125].reshape(2, -1)
    centred = points - np.array(region.centroid)[:, None]
    mirrored = 2 * np.outer(axis, axis @ centred) - centred + np.array(region.centroid)[:, None]
    here, there = (ndimage.map_coordinates(mask.astype(float), at, order=1) for at in (points, mirrored))
    return float(1 - np.minimum(here, there).sum() / here.sum())


@pytest.mark.parametrize("seed", range(8))
def test_asymmetry_is_what_mirroring_point_by_point_gives(seed: int) -> None:
    image, mask = noise_picture(seed)
    found = measure(image, mask, None)
    assert found.asymmetry_major == pytest.approx(fold_on_a_fine_grid(mask, about_major=True), abs=1e-3)
    assert found.asymmetry_minor == pytest.approx(fold_on_a_fine_grid(mask, about_major=False), abs=1e-3)


def test_a_shape_without_a_longest_axis_is_measured_the_same_when_turned() -> None:
    rows = ["10101", "10101", "01010", "11111", "11111"]  # second moments of rows and columns are equal
    mask = np.pad(np.array([list(map(int, row)) for row in rows], dtype=np.uint8), 4)
    upright, turned = of(mask), of(np.rot90(mask).copy())
    assert upright.asymmetry_major == turned.asymmetry_major == 0
    assert upright.asymmetry_minor == turned.asymmetry_minor
    assert upright.asymmetry_minor != 0


@given(seed=seeds)
def test_ratios_stay_in_their_ranges(seed: int) -> None:
    found = measure(*noise_picture(seed), None)
    assert found.asymmetry_major is not None
    assert found.asymmetry_minor is not None
    assert found.border_irregularity is not None
    assert found.compactness is not None
    assert 0 <= found.asymmetry_major <= 1
    assert 0 <= found.asymmetry_minor <= 1
    assert found.border_irregularity >= 1
    assert 0 < found.compactness < 2


@given(seed=seeds, down=st.integers(-8, 8), right=st.integers(-8, 8))
def test_moving_moves_the_box_and_changes_nothing_else(seed: int, down: int, right: int) -> None:
    image, mask = (np.pad(array, [(0, 0)] * (array.ndim - 2) + [(16, 16)] * 2) for array in noise_picture(seed))
    moved_image, moved_mask = (np.roll(array, (down, right), axis=(-2, -1)) for array in (image, mask))
    found, moved = measure(image, mask, (0.2, 0.3)), measure(moved_image, moved_mask, (0.2, 0.3))
    assert scalars(moved) == scalars(found)
    assert found.mask_x1_px is not None
    assert found.mask_y2_px is not None
    assert (moved.mask_x1_px, moved.mask_y2_px) == (found.mask_x1_px + right, found.mask_y2_px + down)


@given(seed=seeds, turns=st.integers(0, 3), is_flipped=st.booleans(), size=st.sampled_from([(48, 56), (300, 260)]))
def test_flips_and_quarter_turns_change_nothing(seed: int, turns: int, is_flipped: bool, size: tuple[int, int]) -> None:
    image, mask = noise_picture(seed, size)
    spacing_mm = (0.2, 0.3)
    turned_spacing_mm = spacing_mm[::-1] if turns % 2 else spacing_mm
    turned_image, turned_mask = (
        np.rot90(array[..., ::-1] if is_flipped else array, turns, (-2, -1)) for array in (image, mask)
    )
    found = scalars(measure(image, mask, spacing_mm))
    turned = scalars(measure(turned_image, turned_mask, turned_spacing_mm))
    assert turned == pytest.approx(found, abs=2e-4)  # a step of the last decimal of a ratio


@pytest.mark.parametrize(("a", "b", "degrees"), [(30, 30, 0), (40, 20, 30), (60, 24, 45), (50, 40, 75)])
def test_twice_the_size_is_twice_the_length(a: float, b: float, degrees: float) -> None:
    small, large = of(ellipse(a, b, degrees, 256)), of(ellipse(2 * a, 2 * b, degrees, 256))
    assert small.perimeter_px is not None
    assert small.equivalent_diameter_px is not None
    assert large.area_px == pytest.approx(4 * small.area_px, rel=1e-2)
    assert large.perimeter_px == pytest.approx(2 * small.perimeter_px, rel=1e-2)
    assert large.equivalent_diameter_px == pytest.approx(2 * small.equivalent_diameter_px, rel=5e-3)
    assert large.compactness == pytest.approx(small.compactness, rel=1e-2)


@given(seed=seeds)
def test_pixels_of_half_the_size_leave_area_and_colours(seed: int) -> None:
    image, mask = noise_picture(seed)
    fine_image, fine_mask = (array.repeat(2, axis=-2).repeat(2, axis=-1) for array in (image, mask))
    coarse, fine = measure(image, mask, (0.2, 0.3)), measure(fine_image, fine_mask, (0.1, 0.15))
    for name in ("area_mm2", "area_percent", "equivalent_diameter_mm", "red_mean_inside_u8", "red_std_inside_u8"):
        assert getattr(fine, name) == pytest.approx(getattr(coarse, name), rel=1e-5)


# Form


def test_numbers_are_rounded_to_their_decimals() -> None:
    image, mask = noise_picture(3)
    found = asdict(measure(image, mask, (0.123456789, 0.123456789)))
    decimals = {"_px": 2, "_percent": 3, "_u8": 2, "compactness": 4, "asymmetry": 4, "irregularity": 4, "lab_": 2}
    checked = {name for name in found for part, places in decimals.items() if part in name}
    for name in checked:
        places = next(places for part, places in decimals.items() if part in name)
        assert found[name] == round(found[name], places), name
    in_mm = {"area_mm2", "equivalent_diameter_mm", "perimeter_mm"}
    assert all(found[name] == float(f"{found[name]:.6g}") for name in in_mm)
    assert set(found) - checked - in_mm == {"parts", "delta_e_2000"}


def test_the_documentation_has_every_column_and_no_other() -> None:
    page = (REPOSITORY / "docs" / "measurements.md").read_text(encoding="utf-8")
    table = page.split("## Columns")[1].split("## Why")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(field.name for field in fields(Measurements))


def test_inputs_stay_as_they_are_and_may_be_read_only_views() -> None:
    image, mask = noise_picture(5)
    interleaved = np.ascontiguousarray(image.transpose(1, 2, 0))
    interleaved.flags.writeable = mask.flags.writeable = False
    assert measure(interleaved.transpose(2, 0, 1), mask, None) == measure(image, mask.copy(), None)


def test_values_are_plain_python_numbers() -> None:
    image, mask = noise_picture(7)
    found = measure(image, mask, (0.1, 0.1))
    assert all(type(getattr(found, field.name)) in (int, float) for field in fields(found))


@pytest.mark.parametrize(
    ("image", "mask", "spacing_mm", "message"),
    [
        (np.zeros((8, 9, 3), np.uint8), canvas(8, 9), None, r"uint8 \(8, 9, 3\); expected RGB as uint8 \(3, height"),
        (np.zeros((3, 8, 9)), canvas(8, 9), None, r"float64 \(3, 8, 9\); expected RGB as uint8"),
        (np.zeros((3, 0, 9), np.uint8), canvas(0, 9), None, r"uint8 \(3, 0, 9\); expected RGB as uint8"),
        (np.zeros((3, 8, 9), np.uint8), np.zeros((8, 9), bool), None, r"mask of bool \(8, 9\); expected class ids"),
        (np.zeros((3, 8, 9), np.uint8), canvas(9, 8), None, r"\(8, 9\), its mask \(9, 8\); bring the mask"),
        (np.zeros((3, 8, 9), np.uint8), canvas(8, 9), (0.1, 0.0), r"\(0.1, 0.0\) mm; expected two positive numbers"),
        (np.zeros((3, 8, 9), np.uint8), canvas(8, 9), (math.nan, 1.0), r"expected two positive numbers"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    image: Bytes, mask: Bytes, spacing_mm: tuple[float, float] | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        measure(image, mask, spacing_mm)
