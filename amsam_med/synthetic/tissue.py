"""From pigments to colour: light that melanin and blood leave over.

The absorption follows Beer and Lambert's law, with one coefficient for each of the camera's three channels: melanin
absorbs blue more than red, blood absorbs green and blue, and melanin deep in the dermis looks blue-grey, because the
tissue above it scatters short wavelengths back (the Tyndall effect, here a veil over the surface colour).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from amsam_med.synthetic.fields import Map

BLOODLESS = np.array([0.95, 0.90, 0.85], dtype=np.float32)
MELANIN_ABSORPTION = np.array([1.00, 1.40, 1.85], dtype=np.float32)
BLOOD_ABSORPTION = np.array([0.12, 1.00, 0.85], dtype=np.float32)
BLUE_VEIL = np.array([0.13, 0.15, 0.20], dtype=np.float32)
SCAR = np.array([0.62, 0.45, 0.40], dtype=np.float32)


@dataclass
class Tissue:
    """What a patch of skin holds; every map is ``(H, W)`` float32.

    Attributes:
        melanin: Optical density in red light, 0 and more.
        blood: Optical density in green light, 0 and more.
        veil: Share of light scattered back above deep melanin, 0..1.
        scar: Share of white, regressed tissue, 0..1.
    """

    melanin: Map
    blood: Map
    veil: Map
    scar: Map


def colour_of(tissue: Tissue) -> Map:
    """The colour of ``tissue`` under white light: ``(3, H, W)`` float32, linear RGB in 0..1."""
    density = np.maximum(tissue.melanin, 0) * MELANIN_ABSORPTION[:, None, None]
    density += np.maximum(tissue.blood, 0) * BLOOD_ABSORPTION[:, None, None]
    colour: Map = BLOODLESS[:, None, None] * np.exp(-density)
    return blend(blend(colour, SCAR, tissue.scar), BLUE_VEIL, tissue.veil)


def blend(picture: Map, colour: Map, opacity: Map) -> Map:
    """Lay a ``colour``, ``(3,)`` or ``(3, H, W)``, over a ``(3, H, W)`` picture with ``opacity`` ``(H, W)`` in 0..1."""
    layer = colour if colour.ndim == 3 else colour[:, None, None]
    return picture + opacity * (layer - picture)
