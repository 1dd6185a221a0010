"""Antialiased strokes of varying width: hairs, vessels, ink and ruler marks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from amsam_med.synthetic.fields import Map, Size

Points = NDArray[np.float64]


class Stroke(NamedTuple):
    """One line.

    Attributes:
        points: ``(N, 2)`` corners as row, column in heights.
        width: ``(N,)`` width of the line at each corner, in heights.
    """

    points: Points
    width: Points


class Cover(NamedTuple):
    """Where strokes lie.

    Attributes:
        coverage: ``(H, W)`` float32, the share of a pixel that is covered, 0..1.
        middle: ``(H, W)`` float32, 1 on the centre line of a stroke, 0 at its edge and outside.
        owner: ``(H, W)`` int64, index of the stroke nearest to a covered pixel; 0 elsewhere.
    """

    coverage: Map
    middle: Map
    owner: NDArray[np.int64]


def cover(strokes: list[Stroke], size: Size) -> Cover:
    """Rasterise ``strokes`` on an image of ``size``: a pixel finds the nearest of points set densely on all lines."""
    coverage, middle = np.zeros(size, dtype=np.float32), np.zeros(size, dtype=np.float32)
    owner = np.zeros(size, dtype=np.int64)
    if not strokes:
        return Cover(coverage, middle, owner)
    dense = [_resampled(stroke, size[0]) for stroke in strokes]
    points = np.concatenate([points for points, _ in dense])
    half_width = np.concatenate([width for _, width in dense]) / 2
    index = np.repeat(np.arange(len(dense)), [len(points) for points, _ in dense])
    near = _pixels_near(points, float(half_width.max()) + 1, size)
    distance, nearest = KDTree(points).query(near + 0.5)
    rows, columns = near.T
    # A line thinner than a pixel covers it only in part, however close it passes.
    thinness = np.minimum(2 * half_width[nearest], 1)
    coverage[rows, columns] = np.clip(np.maximum(half_width[nearest], 0.5) + 0.5 - distance, 0, 1) * thinness
    middle[rows, columns] = np.clip(1 - distance / np.maximum(half_width[nearest], 0.5), 0, 1)
    owner[rows, columns] = index[nearest]
    return Cover(coverage, middle, owner)


def line(start: tuple[float, float], end: tuple[float, float], width: float) -> Stroke:
    """A straight stroke between two (row, column) points, all in heights."""
    return Stroke(np.array([start, end], dtype=np.float64), np.full(2, width))


def wandering_strokes(
    rng: Generator,
    size: Size,
    count: int,
    *,
    length: tuple[float, float],
    width: tuple[float, float],
    bend: float,
    heading: float | None = None,
) -> list[Stroke]:
    """Curved strokes that taper towards one end.

    Args:
        rng: Source of randomness.
        size: (height, width) in pixels.
        count: Number of strokes.
        length: Shortest and longest stroke, in heights.
        width: Thinnest and thickest stroke, in heights.
        bend: Deviation of a stroke's total turn, in radians.
        heading: Common direction in radians; each stroke has its own where this is None.
    """
    strokes = []
    along = np.linspace(0, 1, 24)
    for _ in range(count):
        direction = rng.uniform(0, 2 * np.pi) if heading is None else heading + rng.normal(0, 0.45)
        turn = direction + bend * (rng.normal() * (along - 0.5) + 0.35 * rng.normal() * np.sin(2 * np.pi * along))
        steps = np.stack([np.sin(turn), np.cos(turn)], axis=1) * rng.uniform(*length) / len(along)
        path = np.cumsum(steps, axis=0)
        middle = rng.uniform(0, 1, size=2) * [1, size[1] / size[0]]
        taper = np.clip(3 * (1 - along), 0.15, 1) * np.clip(0.5 + 6 * along, 0, 1)
        strokes.append(Stroke(path - path.mean(axis=0) + middle, rng.uniform(*width) * taper))
    return strokes


def _resampled(stroke: Stroke, height: int) -> tuple[Points, Points]:
    """Points and widths in pixels, set 0.4 pixels apart along the stroke."""
    corners = stroke.points * height
    walked = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    stops = np.linspace(0, walked[-1], int(walked[-1] / 0.4) + 2)
    points = np.stack([np.interp(stops, walked, corners[:, 0]), np.interp(stops, walked, corners[:, 1])], axis=1)
    return points, np.interp(stops, walked, stroke.width * height)


def _pixels_near(points: Points, reach: float, size: Size) -> NDArray[np.int64]:
    """Row and column ``(K, 2)`` of the pixels within about ``reach`` pixels of a point; the rest need no look-up."""
    row, column = np.floor(points).astype(np.int64).T
    is_inside = (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
    on_lines = np.zeros(size, dtype=bool)
    on_lines[row[is_inside], column[is_inside]] = True
    near: NDArray[np.int64] = np.argwhere(ndimage.maximum_filter(on_lines, 2 * int(np.ceil(reach)) + 1))
    return near
