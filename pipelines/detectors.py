"""Train the two box detectors that the bundles carry, from random weights.

    python pipelines/detectors.py lesion --data DATA -o detectors/lesion.safetensors
    python pipelines/detectors.py person --data DATA -o detectors/person.safetensors

The lesion detector learns from ISIC 2018's training part and is selected on its validation part. The person detector
learns from photos of people and from people pasted onto scenes without any; every tenth image of a source is held out
for selection. Nothing that the project reports on is read: not isic2018/test, not the last 100 of human_vikram.
"""

from __future__ import annotations

import argparse
import csv
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from amsam_med.detect.labels import ImageAndMask, image_mask_pairs

VIKRAM_TRAIN = 190
"""human_vikram is sorted by number; what follows the first 190 is its test part."""
HELD_OUT = 10
"""Every tenth image of a source selects the best epoch."""
PASTED_SCENES = 900
PERSON_OF_COCO = "0"


class Split(NamedTuple):
    """Images to learn from and images to select by."""

    train: list[ImageAndMask]
    validation: list[ImageAndMask]


def lesion_split(data: Path) -> Split:
    """ISIC 2018 as the challenge cut it."""
    return Split(image_mask_pairs(data / "isic2018/train"), image_mask_pairs(data / "isic2018/val"))


def person_split(data: Path, work: Path, seed: int) -> Split:
    """Photos of people, weighted towards people in the wild, and pasted scenes written into ``work``."""
    vikram = _hold_out(_as_one_person(image_mask_pairs(data / "human_vikram")[:VIKRAM_TRAIN], work / "vikram"))
    ccp = _hold_out(_as_one_person(image_mask_pairs(data / "pretrain/ccp"), work / "ccp"))
    viton = _hold_out(_as_one_person(image_mask_pairs(data / "pretrain/viton")[::10], work / "viton"))
    coco = _hold_out(_people_of_coco(data / "pretrain/coco128", work / "coco"))
    cutouts = sorted((data / "pretrain/person_cutouts/images").iterdir())
    pasted = _hold_out(
        paste_scenes(
            people=[*map(_cutout, cutouts), *(_cut_out(pair) for pair in ccp.train)],
            sceneries=[Image.open(path).convert("RGB") for path in _scenes_without_people(data)],
            count=PASTED_SCENES,
            folder=work / "pasted",
            rng=random.Random(seed),
        )
    )
    train = 3 * vikram.train + ccp.train[::3] + viton.train + 3 * coco.train + pasted.train
    validation = vikram.validation + ccp.validation[::3] + viton.validation + coco.validation + pasted.validation
    return Split(train, validation)


def paste_scenes(
    people: list[Image.Image], sceneries: list[Image.Image], count: int, folder: Path, rng: random.Random
) -> list[ImageAndMask]:
    """Write ``count`` scenes with one to three pasted people; mask id ``n`` is the ``n``-th person."""
    return [_write(*_paste_scene(people, rng.choice(sceneries), rng), folder, f"{n:05d}") for n in range(count)]


def _paste_scene(people: list[Image.Image], scenery: Image.Image, rng: random.Random) -> tuple[Image.Image, np.ndarray]:
    width, height = scenery.size
    image, mask = scenery.copy(), Image.new("L", scenery.size)
    for number in range(1, rng.choice((1, 1, 1, 2, 3)) + 1):
        person = rng.choice(people)
        share = rng.uniform(0.3, 1.3)  # of the scene's height; above 1 the person is cut off, as in a portrait
        size = (max(1, round(person.width / person.height * share * height)), round(share * height))
        person = person.resize(size)
        if rng.random() < 0.5:
            person = person.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        place = (round(rng.uniform(-0.2, 1.2) * (width - size[0])), round(rng.uniform(0, 1) * (height - size[1])))
        alpha = person.getchannel("A")
        image.paste(person.convert("RGB"), place, alpha)
        mask.paste(number, place, alpha.point(lambda value: 255 * (value > 127)))
    return image, np.asarray(mask)


def _cutout(path: Path) -> Image.Image:
    """A person on a transparent ground, trimmed."""
    person = Image.open(path).convert("RGBA")
    return person.crop(person.getchannel("A").getbbox())


def _cut_out(pair: ImageAndMask) -> Image.Image:
    """The person of a photo on a transparent ground, trimmed."""
    person, mask = Image.open(pair.image).convert("RGB"), Image.open(pair.mask)
    person.putalpha(Image.fromarray(np.where(np.asarray(mask) > 0, 255, 0).astype(np.uint8)))
    return person.crop(person.getchannel("A").getbbox())


def _scenes_without_people(data: Path) -> list[Path]:
    coco = data / "pretrain/coco128"
    with_people = _ids_of_people(coco)
    without = [path for path in sorted((coco / "images").iterdir()) if path.stem not in with_people]
    return [*sorted((data / "pretrain/backgrounds/images").iterdir()), *without]


def _ids_of_people(coco: Path) -> dict[str, list[int]]:
    ids: dict[str, list[int]] = {}
    with (coco / "classes.csv").open() as file:
        for row in csv.DictReader(file):
            if row["coco_class"] == PERSON_OF_COCO:
                ids.setdefault(row["stem"], []).append(int(row["id"]))
    return ids


def _people_of_coco(coco: Path, folder: Path) -> list[ImageAndMask]:
    people = _ids_of_people(coco)
    return [
        _with_mask(pair, lambda ids, known=people[pair.image.stem]: np.where(np.isin(ids, known), ids, 0), folder)
        for pair in image_mask_pairs(coco)
        if pair.image.stem in people
    ]


def _as_one_person(pairs: list[ImageAndMask], folder: Path) -> list[ImageAndMask]:
    return [_with_mask(pair, lambda parts: parts > 0, folder) for pair in pairs]


def _with_mask(pair: ImageAndMask, change: Callable[[np.ndarray], np.ndarray], folder: Path) -> ImageAndMask:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{pair.image.stem}.png"
    Image.fromarray(change(np.asarray(Image.open(pair.mask))).astype(np.uint8)).save(path)
    return ImageAndMask(pair.image, path)


def _write(image: Image.Image, mask: np.ndarray, folder: Path, name: str) -> ImageAndMask:
    folder.mkdir(parents=True, exist_ok=True)
    pair = ImageAndMask(folder / f"{name}-image.png", folder / f"{name}-mask.png")
    image.save(pair.image, compress_level=1)
    Image.fromarray(mask).save(pair.mask)
    return pair


def _hold_out(pairs: list[ImageAndMask]) -> Split:
    return Split(
        [pair for n, pair in enumerate(pairs) if n % HELD_OUT], [pair for n, pair in enumerate(pairs) if not n % HELD_OUT]
    )
