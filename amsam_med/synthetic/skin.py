"""Healthy skin: its tone, mottling, freckles, furrows, pores and small vessels."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from amsam_med.synthetic.fields import Map, Size, cellular_noise, fractal_noise, log_uniform, step
from amsam_med.synthetic.strokes import cover, wandering_strokes
from amsam_med.synthetic.tissue import Tissue

FITZPATRICK_MELANIN = (0.08, 0.16, 0.28, 0.50, 0.85, 1.30)
"""Melanin density of the six skin types of Fitzpatrick, I to VI."""
FITZPATRICK_SHARES = (0.20, 0.22, 0.20, 0.15, 0.13, 0.10)


def healthy_skin(rng: Generator, size: Size) -> Tissue:
    """A patch of skin of a random tone, without a lesion."""
    tone = float(rng.choice(FITZPATRICK_MELANIN, p=FITZPATRICK_SHARES) * rng.uniform(0.85, 1.2))
    flush = log_uniform(rng, 0.15, 0.5)
    relief = _relief(rng, size)
    melanin = tone * (1 + 0.06 * fractal_noise(rng, size, 0.5)) + _freckles(rng, size, tone) + 0.035 * relief
    blood = flush * (1 + 0.13 * fractal_noise(rng, size, 0.5, roughness=3.8)) + 0.025 * relief
    blood += 0.5 * _vessels(rng, size)
    nothing = np.zeros(size, dtype=np.float32)
    return Tissue(melanin.astype(np.float32), blood.astype(np.float32), nothing, nothing)


def _freckles(rng: Generator, size: Size, tone: float) -> Map:
    """Blurred brown spots of several sizes; many on sun-damaged skin, hardly any elsewhere."""
    amount = rng.choice([0.02, 0.07, 0.16], p=[0.5, 0.35, 0.15]) * (0.6 + tone)
    spots = step(cellular_noise(rng, size, rng.uniform(0.07, 0.13), spread=0.5), 1.4, 0.3)
    specks = step(cellular_noise(rng, size, 0.035, spread=0.4), 1.9, 0.25)
    patches = step(fractal_noise(rng, size, 0.4), 0.2, 0.6)
    freckles: Map = (amount * (spots + 0.7 * specks) * patches).astype(np.float32)
    return freckles


def _relief(rng: Generator, size: Size) -> Map:
    """Crossing furrows and pores, as a change of density of about one: positive where the skin looks darker."""
    angle = rng.uniform(0, np.pi)
    period = rng.uniform(0.018, 0.030)
    furrows = cellular_noise(rng, size, period, angle=angle, stretch=3.5, spread=0.5)
    crossing = cellular_noise(rng, size, period, angle=angle + rng.uniform(0.9, 1.6), stretch=3.5, spread=0.5)
    pores = step(cellular_noise(rng, size, 0.040, spread=0.3), 1.5, 0.25)
    grain = fractal_noise(rng, size, 0.02, roughness=2.0)
    relief: Map = rng.uniform(0.15, 0.8) * (np.maximum(furrows, crossing) - 0.5) + 0.6 * grain - 0.8 * pores
    return relief


def _vessels(rng: Generator, size: Size) -> Map:
    """A few thin, winding vessels, ``(H, W)`` in 0..1; most skins show none."""
    if rng.random() >= 0.35:
        return np.zeros(size, dtype=np.float32)
    count = int(rng.integers(1, 7))
    strokes = wandering_strokes(rng, size, count, length=(0.1, 0.35), width=(0.003, 0.006), bend=1.6)
    return cover(strokes, size).coverage * step(fractal_noise(rng, size, 0.2), -0.3, 0.4)
