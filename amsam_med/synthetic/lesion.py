"""A pigmented lesion: an irregular, asymmetric shape with a soft border, and the pigments inside it."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from amsam_med.synthetic.fields import Map, Size, cellular_noise, fractal_noise, grid, log_uniform, step
from amsam_med.synthetic.tissue import Tissue

BORDER_DENSITY = 0.3
"""The mask ends where pigment falls below this share of its full density: readers draw the outer border."""


class LesionShape(NamedTuple):
    """Where a lesion lies.

    Attributes:
        depth: ``(H, W)`` float32: 0 on the border, 1 at the centre, negative outside.
        density: ``(H, W)`` float32: share of the full pigment, 0..1, falling softly across the border.
        mask: ``(H, W)`` bool: the lesion as a reader would outline it; one piece, without holes.
    """

    depth: Map
    density: Map
    mask: NDArray[np.bool_]


def lesion_shape(rng: Generator, size: Size) -> LesionShape:
    """An ellipse, bent by noise at every scale, near the middle of the image."""
    radius = log_uniform(rng, 0.13, 0.36)
    softness = log_uniform(rng, 0.035, 0.16)
    distance, angle = _warped_polar(rng, size, radius)
    depth = 1 - distance / (radius * _outline(rng, angle))
    depth += log_uniform(rng, 0.015, 0.09) * fractal_noise(rng, size, 0.4 * radius, roughness=rng.uniform(2.8, 3.6))
    density = step(depth, 0, softness)
    return LesionShape(depth.astype(np.float32), density, _reader_mask(density))


def with_lesion(skin: Tissue, rng: Generator, shape: LesionShape) -> Tissue:
    """``skin`` with the pigments of a lesion of this ``shape``."""
    size = shape.mask.shape
    has_little_pigment = rng.random() < 0.12
    strength = rng.uniform(0.25, 0.4) if has_little_pigment else log_uniform(rng, 0.6, 2.4)
    redness = rng.uniform(0.35, 0.7) if has_little_pigment else rng.uniform(0.0, 0.3)
    regression = _region(rng, shape, chance=0.25, threshold=1.0)
    pigment = strength * shape.density * _mottling(rng, shape) * _structure(rng, shape) * (1 - 0.7 * regression)
    pigment += rng.uniform(0.7, 2.0) * _region(rng, shape, chance=0.5, threshold=0.7)
    pigment += rng.uniform(0.5, 1.2) * _dots(rng, shape)
    veil = rng.uniform(0.35, 0.65) * _region(rng, shape, chance=0.18, threshold=0.4, softness=0.45)
    blood = redness * shape.density * (1 + 0.3 * fractal_noise(rng, size, 0.3, roughness=3.8))
    return replace(
        skin,
        melanin=skin.melanin + np.maximum(pigment, 0).astype(np.float32),
        blood=skin.blood + np.maximum(blood, 0).astype(np.float32),
        veil=veil * np.clip(pigment, 0, 1),
        scar=0.3 * regression,
    )


def _warped_polar(rng: Generator, size: Size, radius: float) -> tuple[Map, Map]:
    """Distance in heights and angle in radians from the lesion's centre, on a plane that is squeezed and warped."""
    rows, columns = grid(size)
    aspect = size[1] / size[0]
    sway = radius * rng.uniform(0.03, 0.11)
    down = rows - (0.5 + rng.normal(0, 0.045)) + sway * fractal_noise(rng, size, 1.6 * radius, roughness=5.0)
    right = (
        columns - (0.5 * aspect + rng.normal(0, 0.06)) + sway * fractal_noise(rng, size, 1.6 * radius, roughness=5.0)
    )
    tilt, squeeze = rng.uniform(0, np.pi), np.sqrt(rng.uniform(1.0, 1.8))
    along = (np.cos(tilt) * right + np.sin(tilt) * down) / squeeze
    across = (np.cos(tilt) * down - np.sin(tilt) * right) * squeeze
    return np.hypot(along, across).astype(np.float32), np.arctan2(across, along).astype(np.float32)


def _outline(rng: Generator, angle: Map) -> Map:
    """Radius by ``angle`` relative to a circle of 1: lobes of every order, down to a fringe of streaks in some."""
    orders = np.arange(1, 65)
    decay = rng.uniform(1.3, 2.2)
    amplitude = rng.uniform(0.06, 0.20) * orders**-decay
    if rng.random() < 0.2:
        amplitude[20:] += rng.uniform(0.004, 0.009)
    turn = np.linspace(-np.pi, np.pi, 1441)
    waves = np.cos(orders[:, None] * turn + rng.uniform(0, 2 * np.pi, (64, 1)))
    outline: Map = np.interp(angle, turn, np.exp(amplitude @ waves)).astype(np.float32)
    return outline


def _reader_mask(density: Map) -> NDArray[np.bool_]:
    """The largest piece of the lesion, outlined smoothly and filled."""
    outlined = ndimage.gaussian_filter(density, 0.012 * density.shape[0]) > BORDER_DENSITY
    pieces, _ = ndimage.label(outlined)
    areas = np.bincount(pieces.ravel())
    areas[0] = 0
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(pieces == areas.argmax())
    return filled


def _mottling(rng: Generator, shape: LesionShape) -> Map:
    """Slow and fine changes of pigment, about 1; the rim is often lighter, sometimes darker, than the middle."""
    size = shape.mask.shape
    slow = rng.uniform(0.08, 0.30) * fractal_noise(rng, size, 0.35, roughness=3.8)
    fine = rng.uniform(0.04, 0.12) * fractal_noise(rng, size, 0.04, roughness=2.2)
    towards_middle = rng.uniform(-0.25, 0.7) * (np.clip(shape.depth, 0, 1) - 0.4)
    mottling: Map = np.maximum(1 + slow + fine + towards_middle, 0.25)
    return mottling


def _structure(rng: Generator, shape: LesionShape) -> Map:
    """A pigment network, globules, or neither, as a factor of the pigment of about 1."""
    size = shape.mask.shape
    kind = rng.choice(["network", "globules", "none"], p=[0.5, 0.3, 0.2])
    contrast = rng.uniform(0.25, 0.6) * step(fractal_noise(rng, size, 0.4), -0.5, 0.5)
    if kind == "network":
        holes = step(cellular_noise(rng, size, rng.uniform(0.018, 0.030), spread=0.22), 0.35, 0.3)
        return 1 + contrast * (0.5 - 1.4 * holes)
    if kind == "globules":
        globules = step(cellular_noise(rng, size, rng.uniform(0.025, 0.045), spread=0.3), 0.9, 0.2)
        return 1 + contrast * (1.8 * globules - 0.4)
    return np.ones(size, dtype=np.float32)


def _region(rng: Generator, shape: LesionShape, *, chance: float, threshold: float, softness: float = 0.25) -> Map:
    """A cloudy part of the lesion's inside, ``(H, W)`` in 0..1; empty unless ``chance`` has it."""
    size = shape.mask.shape
    if rng.random() >= chance:
        return np.zeros(size, dtype=np.float32)
    clouds = fractal_noise(rng, size, 0.6, roughness=4.2)
    return step(clouds, threshold, softness) * step(shape.depth, 0.25, 0.08) * shape.density


def _dots(rng: Generator, shape: LesionShape) -> Map:
    """Small dark dots, ``(H, W)`` in 0..1, in patches."""
    size = shape.mask.shape
    dots = step(cellular_noise(rng, size, 0.028, spread=0.4), 2.1, 0.12)
    patches = step(fractal_noise(rng, size, 0.25), rng.uniform(0.3, 2.5), 0.2)
    return dots * patches * shape.density
