"""What lies between the skin and the camera: hair, a ruler, ink, gel bubbles and glints."""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from amsam_med.synthetic.fields import Map, Size, cellular_noise, fractal_noise, grid, log_uniform, step
from amsam_med.synthetic.strokes import Stroke, cover, line, wandering_strokes
from amsam_med.synthetic.tissue import blend

HAIR_COLOURS = np.array(
    [[0.015, 0.010, 0.009], [0.040, 0.022, 0.015], [0.11, 0.06, 0.035], [0.30, 0.20, 0.11], [0.55, 0.52, 0.48]],
    dtype=np.float32,
)
"""Black, dark brown, brown, blond and grey, linear RGB."""
RULER_COLOUR = np.array([0.045, 0.035, 0.035], dtype=np.float32)
INK_COLOUR = np.array([0.10, 0.045, 0.24], dtype=np.float32)
LETTER_M = ((0, 0, 0, 0.026), (0, 0.026, 0.01, 0.012), (0.01, 0.012, 0.02, 0.026), (0.02, 0.026, 0.02, 0))
"""The four lines of an M, as x, y, x, y in heights."""
LIGHT = np.ones(3, dtype=np.float32)


def add_hair(picture: Map, rng: Generator) -> Map:
    """Curved, tapering hairs of one person's colour, with a faint shadow; half of the skins have none."""
    size = (picture.shape[1], picture.shape[2])
    most = int(rng.choice([0, 8, 34], p=[0.5, 0.3, 0.2]))
    count = int(rng.integers(most // 3, most + 1))
    thickness = rng.uniform(0.003, 0.008)
    hairs = wandering_strokes(
        rng,
        size,
        count,
        length=(0.15, 0.9),
        width=(0.6 * thickness, 1.3 * thickness),
        bend=rng.uniform(0.3, 1.6),
        heading=rng.uniform(0, 2 * np.pi),
    )
    shade = rng.choice(len(HAIR_COLOURS), p=[0.3, 0.3, 0.2, 0.12, 0.08])
    drawn = cover(hairs, size)
    tone = rng.uniform(0.8, 1.4, max(count, 1)).astype(np.float32)[drawn.owner] * (1 + 0.9 * drawn.middle)
    shadow = ndimage.gaussian_filter(np.roll(drawn.coverage, 1, axis=0), 0.004 * size[0])
    return blend(picture * (1 - 0.2 * shadow), HAIR_COLOURS[shade][:, None, None] * tone, 0.92 * drawn.coverage)


def add_ruler(picture: Map, rng: Generator) -> Map:
    """A millimetre scale below the lesion, in four of ten images, printed faint or dark."""
    if rng.random() >= 0.4:
        return picture
    size = (picture.shape[1], picture.shape[2])
    opacity = rng.uniform(0.6, 0.95)
    return blend(picture, RULER_COLOUR, opacity * cover(scale_marks(rng, size), size).coverage)


def add_ink(picture: Map, rng: Generator) -> Map:
    """A surgeon's violet hatching in one corner, in one of ten images; it rubs off along the skin's relief."""
    if rng.random() >= 0.1:
        return picture
    size = (picture.shape[1], picture.shape[2])
    corner = rng.integers(0, 2, 2) * [0.9, size[1] / size[0] - 0.1] + 0.05
    strokes = wandering_strokes(rng, size, 26, length=(0.08, 0.22), width=(0.003, 0.008), bend=0.4)
    moved = [Stroke(s.points - s.points.mean(0) + corner + rng.normal(0, 0.05, 2), s.width) for s in strokes]
    rubbed = step(fractal_noise(rng, size, 0.03, roughness=2.0), -0.5, 0.4)
    return blend(picture, INK_COLOUR, 0.8 * cover(moved, size).coverage * rubbed)


def add_bubbles(picture: Map, rng: Generator) -> Map:
    """Air in the immersion gel: bright rings with a dark inner edge, mostly away from the middle."""
    size = (picture.shape[1], picture.shape[2])
    rows, columns = grid(size)
    aspect = size[1] / size[0]
    for _ in range(int(rng.choice([0, 1, 2, 5], p=[0.65, 0.15, 0.12, 0.08]))):
        turn, radius = rng.uniform(0, 2 * np.pi), log_uniform(rng, 0.007, 0.05)
        down = rows - 0.5 - rng.uniform(0.32, 0.5) * math.sin(turn)
        right = columns - 0.5 * aspect - rng.uniform(0.32, 0.5) * aspect * math.cos(turn)
        across = np.hypot(down * rng.uniform(0.8, 1.25), right) / radius
        lit = 0.6 + 0.4 * np.cos(np.arctan2(down, right) - rng.uniform(0, 2 * np.pi))
        picture = picture * (1 - 0.45 * _ring(across, 0.88, 0.07)) * (1 + 0.08 * step(-across, -0.8, 0.03))
        picture = blend(picture, LIGHT, 0.8 * lit * _ring(across, 1.0, 0.045))
    return picture


def add_glints(picture: Map, rng: Generator) -> Map:
    """Specks of reflected light on dry skin, in one of four images."""
    if rng.random() >= 0.25:
        return picture
    size = (picture.shape[1], picture.shape[2])
    specks = step(cellular_noise(rng, size, 0.014, spread=0.5), 2.6, 0.15) * step(
        fractal_noise(rng, size, 0.3), 0.6, 0.3
    )
    return blend(picture, LIGHT, 0.55 * specks)


def scale_marks(rng: Generator, size: Size) -> list[Stroke]:
    """A bar with eleven long and ten short ticks and the letters MM under its left end."""
    aspect = size[1] / size[0]
    length, weight = rng.uniform(0.75, 0.9), rng.uniform(0.004, 0.006)
    tilt = rng.normal(0, 0.08)
    start = np.array([rng.uniform(0.86, 0.92), rng.uniform(0.06, max(aspect - length - 0.05, 0.07))])
    along, up = np.array([np.sin(tilt), np.cos(tilt)]), np.array([-np.cos(tilt), np.sin(tilt)])

    def mark(x0: float, y0: float, x1: float, y1: float) -> Stroke:
        from_point, to_point = start + x0 * along + y0 * up, start + x1 * along + y1 * up
        return line((from_point[0], from_point[1]), (to_point[0], to_point[1]), weight)

    heights = [0.028 if k % 10 == 0 else 0.020 - 0.008 * (k % 2) for k in range(21)]
    ticks = [mark(k * length / 20, 0, k * length / 20, height) for k, height in enumerate(heights)]
    letters = [mark(x + a, b - 0.055, x + c, d - 0.055) for x in (0.0, 0.032) for a, b, c, d in LETTER_M]
    return [mark(0, 0, length, 0), *ticks, *letters]


def _ring(across: Map, radius: float, width: float) -> Map:
    """A soft ring, ``(H, W)`` in 0..1, at ``radius`` of the distance map ``across``."""
    ring: Map = np.exp(-(((across - np.float32(radius)) / np.float32(width)) ** 2))
    return ring
