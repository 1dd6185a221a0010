"""The dermatoscope's camera: its light, its round field of view, its colours, blur and noise."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from amsam_med.synthetic.fields import Map, Size, grid, step

GAMMA = 2.1


def field_of_view(rng: Generator, size: Size) -> Map:
    """What the lens lets through, ``(H, W)`` in 0..1: all of it, or a circle that leaves dark corners."""
    rows, columns = grid(size)
    aspect = size[1] / size[0]
    corner = 0.5 * np.hypot(1, aspect)
    radius = rng.uniform(0.80, 0.97) * corner if rng.random() < 0.25 else 2 * corner
    distance = np.hypot(rows - 0.5 - rng.normal(0, 0.015), columns - 0.5 * aspect - rng.normal(0, 0.02))
    return step(-distance, -radius, rng.uniform(0.003, 0.015))


def photograph(picture: Map, rng: Generator, view: Map) -> NDArray[np.uint8]:
    """Take the photo.

    Args:
        picture: ``(3, H, W)`` float32, linear RGB under even white light.
        rng: Source of randomness.
        view: ``(H, W)`` float32 in 0..1, from ``field_of_view``.

    Returns:
        ``(3, H, W)`` uint8, RGB for display.
    """
    size = (picture.shape[1], picture.shape[2])
    lit = picture * _balance(rng) * _light(rng, size)
    exposed = lit * _exposure(rng, lit) * (0.004 + 0.996 * view)
    blur = rng.uniform(0.0012, 0.0030) * size[0]
    sharp = ndimage.gaussian_filter(exposed, (0, blur, blur))
    display = _saturated(np.clip(sharp, 0, 1) ** np.float32(1 / GAMMA), rng.uniform(1.0, 1.35))
    display += _sensor_noise(rng, size)
    return (np.clip(display, 0, 1) * 255 + 0.5).astype(np.uint8)


def _balance(rng: Generator) -> Map:
    """White balance, ``(3, 1, 1)``: cameras differ from pink to yellow to grey-blue."""
    warmth, pinkness = rng.normal(0, 0.08), rng.normal(0, 0.04)
    gains = np.exp([warmth + pinkness, -pinkness, -warmth + pinkness])
    return gains.astype(np.float32)[:, None, None]


def _exposure(rng: Generator, lit: Map) -> np.float32:
    """A factor that brings the image part of the way to a middle brightness, as automatic exposure does."""
    brightness = float(np.quantile(lit.max(axis=0)[::4, ::4], 0.7))
    return np.float32((rng.uniform(0.45, 0.85) / brightness) ** 0.45)


def _light(rng: Generator, size: Size) -> Map:
    """Brightness ``(H, W)`` about 1 that falls off from a point near the middle, and across the image."""
    rows, columns = grid(size)
    down, right = rows - rng.normal(0.5, 0.1), columns - rng.normal(0.5, 0.1) * size[1] / size[0]
    slope = rng.normal(0, 0.08, 2)
    falloff = rng.choice([0.15, 0.55], p=[0.6, 0.4]) * rng.uniform(0.3, 1.2)
    light: Map = np.exp(slope[0] * down + slope[1] * right - falloff * (down**2 + right**2)).astype(np.float32)
    return light


def _saturated(display: Map, amount: float) -> Map:
    """Colours moved away from grey, as a camera's picture style does; 1 changes nothing."""
    grey = display.mean(axis=0)
    saturated: Map = grey + np.float32(amount) * (display - grey)
    return saturated


def _sensor_noise(rng: Generator, size: Size) -> Map:
    """Noise ``(3, H, W)`` as a JPEG leaves it: fine in brightness, blurred and weaker in colour."""
    amount = rng.uniform(0.004, 0.011)
    brightness = ndimage.gaussian_filter(rng.standard_normal(size, dtype=np.float32), 0.6)
    colour = ndimage.gaussian_filter(rng.standard_normal((3, *size), dtype=np.float32), (0, 1.6, 1.6))
    noise: Map = np.float32(amount) * (2 * brightness + 1.5 * colour)
    return noise
