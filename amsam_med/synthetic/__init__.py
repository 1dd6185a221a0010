"""Synthetic dermoscopy images whose masks are known, for the demo and the tests.

Nothing is copied from a real image. Skin is built from what gives it its colour: maps of melanin and blood absorb light
(``tissue``), ``skin`` and ``lesion`` fill those maps, ``artefacts`` lays hair, rulers, ink and gel bubbles on top, and
``camera`` photographs the result. A seed decides everything.
"""

from amsam_med.synthetic.dermoscopy import SyntheticImage, draw_dermoscopy, write_dermoscopy

__all__ = ["SyntheticImage", "draw_dermoscopy", "write_dermoscopy"]
