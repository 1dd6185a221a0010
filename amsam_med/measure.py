"""Measurements of one segmented picture: size, shape, border and colour of its object.

The object is every pixel whose class id is above 0. Its shape is measured on its *runs*, the stretches of object in
each row: area, box, moments, parts and perimeter follow from a few numbers per row, whatever the picture's size.
Lengths and shapes are in millimetres if the pixel spacing is known, so pixels need not be square.
``docs/measurements.md`` says in plain words what each number means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.color import deltaE_ciede2000, rgb2lab

from amsam_med.errors import DataError

SKIN_GAP = 1 / 40
"""Width of the band just outside the border that counts as neither object nor skin, in equivalent diameters."""

SKIN_BAND = 3 / 40
"""Width of the band of surrounding skin that follows the gap, in equivalent diameters."""

_FOLD_POINTS = 160  # sampling points along each principal axis when the object is folded
_RING_CELLS = 2**14  # cells of the grid on which the ring is laid out, at most (about)
_LEVELS_PER_BIN = 8  # of red, green and blue; colours of one bin share their conversion to CIELAB
_PIXELS_PER_BLOCK = 2**20  # of colours binned at once: bounds the memory

Pitch: TypeAlias = tuple[float, float]
"""(height, width) of one pixel, in millimetres, or in pixels where the spacing is unknown."""


@dataclass(frozen=True)
class Measurements:
    """What is measured of one picture; each field is a column, with its unit in its name.

    A field is None where it is undefined: every ``_mm`` without a spacing; all but ``area_*`` and ``parts`` of an empty
    mask; colours outside where no ring of skin is in the picture.

    Attributes:
        area_px: Pixels of the object.
        area_percent: Their share of the picture, 0..100.
        area_mm2: Their area.
        mask_x1_px: Left edge of the tight box, a continuous edge as in :mod:`amsam_med.boxes`.
        mask_y1_px: Top edge.
        mask_x2_px: Right edge, behind the last column of the object.
        mask_y2_px: Bottom edge, behind the last row.
        parts: Connected parts; pixels that touch at a corner are connected.
        equivalent_diameter_px: Diameter of the disc of the same area.
        equivalent_diameter_mm: The same in millimetres.
        perimeter_px: Length of the border, that of holes and of cuts at the picture's edge included.
        perimeter_mm: The same in millimetres.
        compactness: 4 π area / perimeter², 1 for a disc, smaller for anything else.
        asymmetry_major: Share of the area that is not covered when the object is mirrored about its major axis, 0..1.
        asymmetry_minor: The same for the minor axis.
        border_irregularity: Perimeter over the perimeter of the convex hulls of the parts, 1 or more.
        red_mean_inside_u8: Mean red of the object, 0..255; then the standard deviation, then green and blue.
        red_std_inside_u8: Population standard deviation.
        green_mean_inside_u8: See red.
        green_std_inside_u8: See red.
        blue_mean_inside_u8: See red.
        blue_std_inside_u8: See red.
        red_mean_outside_u8: The same for the ring of skin around the object.
        red_std_outside_u8: See red.
        green_mean_outside_u8: See red.
        green_std_outside_u8: See red.
        blue_mean_outside_u8: See red.
        blue_std_outside_u8: See red.
        lab_l_mean_inside: Mean CIELAB lightness L* of the object (sRGB, D65, 2°), 0..100.
        lab_a_mean_inside: Mean a*, green (below 0) to red.
        lab_b_mean_inside: Mean b*, blue (below 0) to yellow.
        lab_l_mean_outside: The same for the ring of skin.
        lab_a_mean_outside: See a* inside.
        lab_b_mean_outside: See b* inside.
        delta_e_2000: CIEDE2000 difference of the two mean colours.
    """

    area_px: int
    area_percent: float
    area_mm2: float | None = None
    mask_x1_px: int | None = None
    mask_y1_px: int | None = None
    mask_x2_px: int | None = None
    mask_y2_px: int | None = None
    parts: int = 0
    equivalent_diameter_px: float | None = None
    equivalent_diameter_mm: float | None = None
    perimeter_px: float | None = None
    perimeter_mm: float | None = None
    compactness: float | None = None
    asymmetry_major: float | None = None
    asymmetry_minor: float | None = None
    border_irregularity: float | None = None
    red_mean_inside_u8: float | None = None
    red_std_inside_u8: float | None = None
    green_mean_inside_u8: float | None = None
    green_std_inside_u8: float | None = None
    blue_mean_inside_u8: float | None = None
    blue_std_inside_u8: float | None = None
    red_mean_outside_u8: float | None = None
    red_std_outside_u8: float | None = None
    green_mean_outside_u8: float | None = None
    green_std_outside_u8: float | None = None
    blue_mean_outside_u8: float | None = None
    blue_std_outside_u8: float | None = None
    lab_l_mean_inside: float | None = None
    lab_a_mean_inside: float | None = None
    lab_b_mean_inside: float | None = None
    lab_l_mean_outside: float | None = None
    lab_a_mean_outside: float | None = None
    lab_b_mean_outside: float | None = None
    delta_e_2000: float | None = None


def measure(image: NDArray[np.uint8], mask: NDArray[np.uint8], spacing_mm: tuple[float, float] | None) -> Measurements:
    """Measure the object of one segmented picture.

    Args:
        image: RGB, uint8 ``(3, H, W)``.
        mask: Class ids, uint8 ``(H, W)``, in the image's frame; all ids above 0 are the object.
        spacing_mm: Distance of neighbouring rows, then of neighbouring columns, in millimetres (the order of DICOM's
            Pixel Spacing); None where it is unknown.

    Returns:
        Rounded numbers, equal as text on every machine: px and u8 to two decimals, mm and mm² to six significant
        digits, per cent to three decimals, ratios to four, CIELAB and its difference to two.

    Raises:
        DataError: Image or mask has another shape or type, their sizes differ, or the spacing is not positive.
    """
    _check(image, mask, spacing_mm)
    box = _tight_box(mask)
    if box is None:
        return Measurements(area_px=0, area_percent=0.0, area_mm2=None if spacing_mm is None else 0.0)
    is_object = mask[box] != 0
    runs = _runs(is_object)
    shape = _shape(is_object, runs, box, mask.size, spacing_mm)
    return replace(shape, **_colours(image, mask, box, runs, spacing_mm or (1.0, 1.0)))


def _check(image: NDArray[np.uint8], mask: NDArray[np.uint8], spacing_mm: tuple[float, float] | None) -> None:
    if image.ndim != 3 or image.shape[0] != 3 or image.size == 0 or image.dtype != np.uint8:
        raise DataError(f"got an image of {image.dtype} {image.shape}; expected RGB as uint8 (3, height, width)")
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise DataError(f"got a mask of {mask.dtype} {mask.shape}; expected class ids as uint8 (height, width)")
    if image.shape[1:] != mask.shape:
        raise DataError(f"the image is {image.shape[1:]}, its mask {mask.shape}; bring the mask to the image's size")
    if spacing_mm is not None and not all(0 < side < math.inf for side in spacing_mm):
        raise DataError(f"got a pixel spacing of {spacing_mm} mm; expected two positive numbers, or None if unknown")


_Box: TypeAlias = tuple[slice, slice]  # rows, columns
_ColourFields: TypeAlias = dict[str, Any]  # what `replace` takes; all values are float


def _tight_box(mask: NDArray[np.uint8]) -> _Box | None:
    rows, columns = np.flatnonzero(mask.max(axis=1)), np.flatnonzero(mask.max(axis=0))
    if rows.size == 0:
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


class _Runs(NamedTuple):
    """The object as stretches of each row, sorted by row, then by column; int64 ``(R,)`` each.

    Attributes:
        row: The row.
        start: First column of the stretch.
        stop: The column behind its last.
    """

    row: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]

    @property
    def area(self) -> int:
        """Pixels of the object."""
        return int((self.stop - self.start).sum())


def _runs(is_object: NDArray[np.bool_]) -> _Runs:
    """The runs of bool ``(h, w)``."""
    height, width = is_object.shape
    framed = np.zeros((height, width + 2), dtype=bool)  # background at both ends: every run begins and ends
    framed[:, 1:-1] = is_object
    flat = framed.ravel()
    row, column = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), width + 2)
    return _Runs(row[::2], column[::2], column[1::2])


def _shape(
    is_object: NDArray[np.bool_], runs: _Runs, box: _Box, pixels: int, spacing_mm: tuple[float, float] | None
) -> Measurements:
    """All that does not need colours; see :class:`Measurements`."""
    pitch = spacing_mm or (1.0, 1.0)
    in_mm = None if spacing_mm is None else pitch[0] * pitch[1]
    outline = _outline(runs)
    perimeter = _crofton_length(outline.crossings, pitch)
    asymmetry_major, asymmetry_minor = _asymmetries(is_object, runs, pitch)
    return Measurements(
        area_px=runs.area,
        area_percent=round(100 * runs.area / pixels, 3),
        area_mm2=None if in_mm is None else _significant(runs.area * in_mm),
        mask_x1_px=box[1].start,
        mask_y1_px=box[0].start,
        mask_x2_px=box[1].stop,
        mask_y2_px=box[0].stop,
        parts=outline.parts,
        equivalent_diameter_px=round(_disc_diameter(runs.area), 2),
        equivalent_diameter_mm=None if in_mm is None else _significant(_disc_diameter(runs.area * in_mm)),
        perimeter_px=round(_crofton_length(outline.crossings, (1.0, 1.0)), 2),
        perimeter_mm=None if in_mm is None else _significant(perimeter),
        compactness=round(4 * math.pi * runs.area * pitch[0] * pitch[1] / perimeter**2, 4),
        asymmetry_major=round(asymmetry_major, 4),
        asymmetry_minor=round(asymmetry_minor, 4),
        border_irregularity=round(max(1.0, perimeter / _crofton_length(outline.hull_crossings, pitch)), 4),
    )


def _significant(value: float) -> float:
    return float(f"{value:.6g}")


def _disc_diameter(area: float) -> float:
    return math.sqrt(4 * area / math.pi)


class _Crossings(NamedTuple):
    """How often the border is crossed by lines through the pixels' centres, all lines of a direction together."""

    rows: int
    columns: int
    diagonals: int  # of both directions


class _Outline(NamedTuple):
    parts: int
    crossings: _Crossings
    hull_crossings: _Crossings  # of the convex hulls of the parts, each by itself


def _outline(runs: _Runs) -> _Outline:
    """Parts and border, from the runs and those they touch in the next row."""
    upper, lower = _touching(runs)

    def overlap(shift: int) -> int:
        start = np.maximum(runs.start[upper], runs.start[lower] + shift)
        stop = np.minimum(runs.stop[upper], runs.stop[lower] + shift)
        return int(np.maximum(stop - start, 0).sum())

    # Along a line, the border is crossed twice for each of its pixels that has no object pixel as next one.
    crossings = _Crossings(
        2 * runs.row.size, 2 * (runs.area - overlap(0)), 2 * (2 * runs.area - overlap(-1) - overlap(1))
    )
    links = coo_array((np.ones(upper.size, dtype=bool), (upper, lower)), shape=(runs.row.size, runs.row.size))
    parts, part = connected_components(links, directed=False)
    return _Outline(int(parts), crossings, _hull_crossings(runs, part))


def _touching(runs: _Runs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of all pairs of runs in neighbouring rows that touch, at least at a corner."""
    stride = int(runs.stop.max()) + 2  # so that keys of different rows stay apart
    start_key, stop_key = runs.row * stride + runs.start, runs.row * stride + runs.stop
    first = np.searchsorted(stop_key, start_key + stride, side="left")
    count = np.searchsorted(start_key, stop_key + stride, side="right") - first
    upper = np.repeat(np.arange(runs.row.size), count)
    before = np.cumsum(count) - count
    return upper, np.arange(upper.size) + np.repeat(first - before, count)


def _hull_crossings(runs: _Runs, part: NDArray[np.int32]) -> _Crossings:
    """Two crossings for every line between the outermost ones that meet a part."""
    by_part = np.argsort(part, kind="stable")
    first_of_part = np.flatnonzero(np.diff(part[by_part], prepend=-1))

    def lines(lowest: NDArray[np.int64], highest: NDArray[np.int64]) -> int:
        low = np.minimum.reduceat(lowest[by_part], first_of_part)
        high = np.maximum.reduceat(highest[by_part], first_of_part)
        return int((high - low + 1).sum())

    row, start, last = runs.row, runs.start, runs.stop - 1
    diagonals = lines(row + start, row + last) + lines(row - last, row - start)
    return _Crossings(2 * lines(row, row), 2 * lines(start, last), 2 * diagonals)


def _crofton_length(crossings: _Crossings, pitch: Pitch) -> float:
    """Crofton's formula with four directions: half the integral over all lines of how often they cross the border.

    Each direction stands for the angles nearest to it, also where pixels are not square; after Lehmann and Legland,
    "Efficient N-Dimensional surface estimation using Crofton formula and run-length encoding", Insight Journal 2012.
    For square pixels this is ``skimage.measure.perimeter_crofton(mask, directions=4)``.
    """
    height, width = pitch
    angle_to_diagonal = math.atan2(height, width)
    along_rows = crossings.rows * height * angle_to_diagonal
    along_columns = crossings.columns * width * (math.pi / 2 - angle_to_diagonal)
    along_diagonals = crossings.diagonals * height * width / math.hypot(height, width) * math.pi / 4
    return (along_rows + along_columns + along_diagonals) / 2


def _asymmetries(is_object: NDArray[np.bool_], runs: _Runs, pitch: Pitch) -> tuple[float, float]:
    """Fold the object at its major and at its minor axis: the shares, 0..1, that do not meet.

    The principal axes go through the centroid. The mask is read on a grid along them, linearly between the centres of
    pixels, so that mirroring is turning the grid over. After Stoecker, Li and Moss, "Automatic detection of asymmetry
    in skin tumors", Computerized Medical Imaging and Graphics 16, 1992.
    """
    centroid, angle = _principal_axes(runs, pitch)
    major = np.array([math.sin(angle or 0), math.cos(angle or 0)])  # (y, x), of length 1 in the pitch's unit
    axes = np.stack([np.array([major[1], -major[0]]), major])
    ends = np.concatenate([np.stack([runs.row, edge], axis=1) for edge in (runs.start, runs.stop - 1)])
    reach = np.abs((ends - centroid) * pitch @ axes.T).max(axis=0) + math.hypot(*pitch)
    to_pixels = (2 * reach / _FOLD_POINTS)[None, :] * axes.T / np.array(pitch)[:, None]
    corner = centroid + 0.5 - to_pixels @ np.full(2, _FOLD_POINTS / 2)  # of the grid; edges, as Pillow counts
    framed = np.pad(is_object, 1).astype(np.uint8) * np.uint8(255)  # what lies beyond the box is background
    (yy, yx), (xy, xx) = to_pixels
    coefficients = (xx, xy, corner[1] + 1, yx, yy, corner[0] + 1)
    grid = PIL.Image.fromarray(framed).transform(
        (_FOLD_POINTS, _FOLD_POINTS), PIL.Image.Transform.AFFINE, coefficients, PIL.Image.Resampling.BILINEAR
    )
    folded = np.asarray(grid).astype(np.float64)
    about_major, about_minor = (
        float(np.abs(folded - mirrored).sum() / (2 * folded.sum())) for mirrored in (folded[::-1], folded[:, ::-1])
    )
    # Without a longest direction the axes have no names: the smaller comes first, however the picture is turned.
    if angle is None:
        return min(about_major, about_minor), max(about_major, about_minor)
    return about_major, about_minor


def _principal_axes(runs: _Runs, pitch: Pitch) -> tuple[NDArray[np.float64], float | None]:
    """The centroid (row, column) in pixels, and the angle of the major axis from x to y; None if all are as long.

    Sums of pixels are whole numbers, and exact.
    """
    count, row, a, b = runs.stop - runs.start, runs.row, runs.start - 1, runs.stop - 1
    column_sum = (b * (b + 1) - a * (a + 1)) // 2
    column_square_sum = (b * (b + 1) * (2 * b + 1) - a * (a + 1) * (2 * a + 1)) // 6
    area, y, x = runs.area, int((row * count).sum()), int(column_sum.sum())
    yy = (area * int((row * row * count).sum()) - y * y) * pitch[0] ** 2
    xx = (area * int(column_square_sum.sum()) - x * x) * pitch[1] ** 2
    xy = (area * int((row * column_sum).sum()) - y * x) * pitch[0] * pitch[1]
    is_round = math.hypot(xx - yy, 2 * xy) <= 1e-9 * (xx + yy)
    return np.array([y / area, x / area]), None if is_round else math.atan2(2 * xy, xx - yy) / 2


def _colours(image: NDArray[np.uint8], mask: NDArray[np.uint8], box: _Box, runs: _Runs, pitch: Pitch) -> _ColourFields:
    """The colour fields of :class:`Measurements`."""
    skin_box, is_skin = _ring_of_skin(mask, box, _disc_diameter(runs.area * pitch[0] * pitch[1]), pitch)
    inside = _Pixels(*(channel[box][mask[box] != 0] for channel in image))
    outside = _Pixels(*(channel[skin_box][is_skin] for channel in image))
    lab_inside = _mean_lab(inside)
    fields = _colour_fields(inside, lab_inside, "inside")
    if outside.red.size == 0:
        return fields
    lab_outside = _mean_lab(outside)
    difference = float(deltaE_ciede2000(lab_inside, lab_outside))  # type: ignore[no-untyped-call]
    return fields | _colour_fields(outside, lab_outside, "outside") | {"delta_e_2000": _decimals(difference, 2)}


def _ring_of_skin(mask: NDArray[np.uint8], box: _Box, diameter: float, pitch: Pitch) -> tuple[_Box, NDArray[np.bool_]]:
    """A window of the picture and bool ``(h, w)`` of the ring of skin in it.

    The ring is laid out on a grid of cells, single pixels in small pictures: a cell of the ring has no object pixel.
    """
    gap = max(SKIN_GAP * diameter, max(pitch))
    reach = gap + max(SKIN_BAND * diameter, 2 * max(pitch))
    rows, columns = (
        slice(max(0, side.start - math.ceil(reach / step)), side.stop + math.ceil(reach / step))
        for side, step in zip(box, pitch, strict=True)
    )
    inside = mask[rows, columns]
    side = math.sqrt(inside.size * pitch[0] * pitch[1] / _RING_CELLS)  # cells are about square, whatever pixels are
    edges = [_cell_edges(size, side / step) for size, step in zip(inside.shape, pitch, strict=True)]
    has_object = inside != 0
    for axis, edge in enumerate(edges):
        has_object = np.logical_or.reduceat(has_object, edge[:-1], axis=axis)
    cell = [step * size / (edge.size - 1) for step, size, edge in zip(pitch, inside.shape, edges, strict=True)]
    distance = ndimage.distance_transform_edt(~has_object, sampling=cell)
    is_ring = (distance > gap) & (distance <= reach)
    return (rows, columns), is_ring.repeat(np.diff(edges[0]), axis=0).repeat(np.diff(edges[1]), axis=1)


def _cell_edges(size: int, cell: float) -> NDArray[np.intp]:
    """Cut ``size`` pixels into cells of about ``cell`` pixels, the same ones when the pixels are flipped.

    With an odd number of cells no cut falls half-way between two pixels, so rounding is the same from both ends.
    """
    cells = min(size, math.ceil(size / max(cell, 1)) | 1)
    return np.rint(np.linspace(0, size, cells + 1)).astype(np.intp)


class _Pixels(NamedTuple):
    """Some pixels of a picture, uint8 ``(N,)`` each."""

    red: NDArray[np.uint8]
    green: NDArray[np.uint8]
    blue: NDArray[np.uint8]


def _colour_fields(pixels: _Pixels, lab: NDArray[np.float64], where: str) -> _ColourFields:
    fields: _ColourFields = {}
    for name, channel in pixels._asdict().items():
        mean, deviation = _mean_and_deviation(channel)
        fields |= {f"{name}_mean_{where}_u8": round(mean, 2), f"{name}_std_{where}_u8": round(deviation, 2)}
    return fields | {f"lab_{axis}_mean_{where}": _decimals(float(lab[index]), 2) for index, axis in enumerate("lab")}


def _mean_and_deviation(channel: NDArray[np.uint8]) -> tuple[float, float]:
    """From whole numbers, so that the order of summation does not matter."""
    count, total = channel.size, int(channel.sum(dtype=np.int64))
    squares = int(np.square(channel, dtype=np.uint16).sum(dtype=np.int64))
    return total / count, math.sqrt(count * squares - total * total) / count


def _mean_lab(pixels: _Pixels) -> NDArray[np.float64]:
    """Mean CIELAB of pixels, float64 ``(3,)``.

    Colours are gathered in bins, and each bin's colour is converted once: its centre, moved by what all pixels together
    are off theirs. The error is the curvature of CIELAB within a bin, and the time does not grow with the colours.
    """
    side = 256 // _LEVELS_PER_BIN
    counts = np.zeros(side**3, dtype=np.int64)
    for begin in range(0, pixels.red.size, _PIXELS_PER_BLOCK):
        block = (channel[begin : begin + _PIXELS_PER_BLOCK] // _LEVELS_PER_BIN for channel in pixels)
        red, green, blue = (channel.astype(np.uint16) for channel in block)
        counts += np.bincount((red * side + green) * side + blue, minlength=side**3)
    used = np.flatnonzero(counts)
    share = counts[used] / pixels.red.size
    colours = np.stack(np.unravel_index(used, (side, side, side)), axis=1) * float(_LEVELS_PER_BIN)  # (bins, 3)
    colours += [channel.mean() for channel in pixels] - share @ colours
    mean: NDArray[np.float64] = share @ rgb2lab((colours / 255).clip(0, 1))
    return mean


def _decimals(value: float, decimals: int) -> float:
    return round(value, decimals) + 0.0  # no "-0.0" in a table
