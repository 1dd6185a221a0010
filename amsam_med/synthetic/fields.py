"""Random fields and coordinates: the raw material of every structure in a synthetic image.

Lengths are shares of the image's height, so that a drawing looks alike at any size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import fft
from scipy.special import expit

Size = tuple[int, int]
"""(height, width) in pixels; stated again because ``amsam_med.boxes`` would import torch."""
Map = NDArray[np.float32]
"""One value a pixel, ``(H, W)`` float32; colours are ``(3, H, W)``."""


def grid(size: Size) -> tuple[Map, Map]:
    """Rows and columns of the pixel centres, in heights: ``(H, 1)`` in 0..1 and ``(1, W)`` in 0..W/H."""
    height, width = size
    rows = ((np.arange(height) + 0.5) / height).astype(np.float32)
    columns = ((np.arange(width) + 0.5) / height).astype(np.float32)
    return rows[:, None], columns[None, :]


def fractal_noise(rng: Generator, size: Size, coarsest: float, *, roughness: float = 3.0) -> Map:
    """Cloudy noise ``(H, W)`` of mean 0 and deviation 1.

    Args:
        rng: Source of randomness.
        size: (height, width) in pixels.
        coarsest: Wavelength of the largest structure, in heights.
        roughness: Power falls as frequency to this power; 2 is grainy, 4 is smooth.
    """

    def gain(frequency: Map) -> Map:
        relative = frequency * np.float32(coarsest)
        falling: Map = (1 + relative**2) ** np.float32(-roughness / 4)
        rising: Map = relative / (0.5 + relative)
        return falling * rising

    return _filtered_noise(rng, size, gain)


def cellular_noise(
    rng: Generator, size: Size, period: float, *, angle: float = 0.0, stretch: float = 1.0, spread: float = 0.25
) -> Map:
    """Noise of one wavelength, ``(H, W)`` of mean 0 and deviation 1: its peaks are evenly spaced, irregular cells.

    Args:
        rng: Source of randomness.
        size: (height, width) in pixels.
        period: Distance of neighbouring cells in heights; at least three pixels are used.
        angle: Direction in radians along which cells are drawn out.
        stretch: Length of a cell along ``angle`` over its width.
        spread: Bandwidth as a share of the frequency; smaller is more regular.
    """
    centre = 1 / max(period, 3 / size[0])

    def gain(frequency: Map) -> Map:
        band: Map = np.exp(-0.5 * ((frequency / np.float32(centre) - 1) / np.float32(spread)) ** 2)
        return band

    return _filtered_noise(rng, size, gain, angle, stretch)


def step(values: Map, threshold: float, softness: float) -> Map:
    """A soft threshold: 0 well below, 1 well above, 0.5 at ``threshold``."""
    softened: Map = expit((values - np.float32(threshold)) / np.float32(softness))
    return softened


def log_uniform(rng: Generator, low: float, high: float) -> float:
    """A number between ``low`` and ``high`` whose order of magnitude is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _filtered_noise(
    rng: Generator, size: Size, gain: Callable[[Map], Map], angle: float = 0.0, stretch: float = 1.0
) -> Map:
    """White noise, multiplied by ``gain`` of its frequency in cycles a height."""
    height, width = size
    rows = (fft.fftfreq(height) * height).astype(np.float32)[:, None]
    columns = (fft.rfftfreq(width) * height).astype(np.float32)[None, :]
    along = (np.cos(angle) * columns + np.sin(angle) * rows) * stretch
    across = np.cos(angle) * rows - np.sin(angle) * columns
    spectrum = fft.rfft2(rng.standard_normal(size, dtype=np.float32)) * gain(np.hypot(along, across).astype(np.float32))
    spectrum[0, 0] = 0
    field = fft.irfft2(spectrum, s=size)
    normalised: Map = (field / max(float(field.std()), 1e-12)).astype(np.float32)
    return normalised
