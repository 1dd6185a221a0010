"""Draw and write synthetic dermoscopy images with their masks."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amsam_med.errors import ConfigError
from amsam_med.synthetic.artefacts import add_bubbles, add_glints, add_hair, add_ink, add_ruler
from amsam_med.synthetic.camera import field_of_view, photograph
from amsam_med.synthetic.fields import Size
from amsam_med.synthetic.lesion import lesion_shape, with_lesion
from amsam_med.synthetic.skin import healthy_skin
from amsam_med.synthetic.tissue import colour_of

SMALLEST = 32
"""Fewest rows and columns: below, no structure of a lesion is left."""
JPEG_QUALITY = 92


class SyntheticImage(NamedTuple):
    """A drawn image and the truth about it.

    Attributes:
        pixels: uint8 ``(3, H, W)``, RGB.
        mask: uint8 ``(H, W)``, 1 on the lesion, 0 elsewhere.
    """

    pixels: NDArray[np.uint8]
    mask: NDArray[np.uint8]


def draw_dermoscopy(seed: int, size: Size = (384, 512), *, has_lesion: bool = True) -> SyntheticImage:
    """Draw one image.

    Args:
        seed: 0 or more; decides everything, the same on every run.
        size: (height, width) in pixels, each at least 32.
        has_lesion: Whether there is a lesion; without it, the same skin is drawn bare and the mask is empty.

    Raises:
        ConfigError: ``seed`` is negative or ``size`` too small.
    """
    _check(seed, size)
    # A stream of its own for each part: whatever one part draws, the others stay as they are.
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(10)]
    tissue = healthy_skin(streams[0], size)
    view = field_of_view(streams[1], size)
    mask = np.zeros(size, dtype=np.uint8)
    if has_lesion:
        shape = lesion_shape(streams[2], size)
        tissue = with_lesion(tissue, streams[3], shape)
        mask[shape.mask & (view > 0.5)] = 1
    picture = colour_of(tissue)
    for stream, add in zip(streams[4:9], (add_ink, add_ruler, add_hair, add_bubbles, add_glints), strict=True):
        picture = add(picture, stream)
    return SyntheticImage(photograph(picture, streams[9], view), mask)


def write_dermoscopy(folder: Path | str, count: int, seed: int, *, size: Size = (384, 512)) -> list[dict[str, str]]:
    """Write ``count`` images with lesions as ``images/NAME.jpg`` and their masks as ``masks/NAME.png`` (0 and 255).

    Image ``k`` of a ``seed`` is the same however many are written, and two seeds share no image.

    Args:
        folder: Where to write; created if missing. Files of the same name are overwritten.
        count: Number of images, 0 or more.
        seed: 0 or more.
        size: (height, width) in pixels of each image.

    Returns:
        A MONAI data list: paths under ``folder``, one dict of ``"image"`` and ``"label"`` an image, sorted by name.

    Raises:
        ConfigError: ``count`` or ``seed`` is negative, or ``size`` too small.
    """
    _check(seed, size)
    if count < 0:
        raise ConfigError(f"count is {count}; expected the number of images to write, 0 or more")
    images, masks = Path(folder) / "images", Path(folder) / "masks"
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    items = []
    for index in range(count):
        name = f"synthetic_{seed:04d}_{index:04d}"
        drawn = draw_dermoscopy(int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]), size)
        item = {"image": str(images / f"{name}.jpg"), "label": str(masks / f"{name}.png")}
        Image.fromarray(drawn.pixels.transpose(1, 2, 0)).save(item["image"], quality=JPEG_QUALITY)
        Image.fromarray(drawn.mask * np.uint8(255)).save(item["label"])
        items.append(item)
    return items


def _check(seed: int, size: Size) -> None:
    if seed < 0:
        raise ConfigError(f"seed is {seed}; expected a whole number of 0 or more")
    if min(size) < SMALLEST:
        raise ConfigError(f"size is {size[0]} x {size[1]} pixels; expected at least {SMALLEST} x {SMALLEST}")
