"""Train the box detectors that the bundles carry.

    python pipelines/detectors.py lesion --data DATA -o lesion.safetensors
    python pipelines/detectors.py person --data DATA -o person.safetensors

The lesion detector learns from ISIC 2018's training part and is selected on its validation part. The person detector
learns from photos of people, and from people pasted onto scenes without any; every tenth image of a source, and every
tenth person and scene, is held out for selection. Nothing that results are reported on is read: neither the test part
of ISIC 2018 nor the last 100 of Human (Vikram).
"""

from __future__ import annotations

import csv
import random
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from monai.data.dataset import Dataset
from numpy.typing import NDArray
from PIL import Image

from amsam_med.data.datalists import Item, folder_datalist, human_vikram_datalist, isic2018_datalist
from amsam_med.data.transforms import preprocessing
from amsam_med.detect.labels import hold_out
from amsam_med.detect.yolo import TrainingOptions, TrainingProgress, save_detector, train_detector

PASTED_SCENES = 900
PERSON = "0"
"""COCO's class of people."""

Mask = NDArray[np.uint8]


class Split(NamedTuple):
    """Items to learn from and items to select by."""

    train: list[Item]
    validation: list[Item]


@click.command()
@click.argument("kind", type=click.Choice(["lesion", "person"]))
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--input-size", default=160, show_default=True)
@click.option("--epochs", type=int, help="[default: 8 for lesion, 12 for person]")
@click.option("--from", "start", type=click.Path(path_type=Path, exists=True), help="Weights to begin with.")
@click.option("--seed", default=0, show_default=True)
def main(
    kind: str, data: Path, output: Path, input_size: int, epochs: int | None, start: Path | None, seed: int
) -> None:
    """Train a bundle's box detector and write its weights and scores."""
    is_person = kind == "person"
    options = TrainingOptions(
        class_name=kind,
        has_instances=is_person,
        epochs=epochs or (12 if is_person else 8),
        seed=seed,
        is_upright=is_person,
        mosaic=0.3 if is_person else 0.0,
        start=start,
    )
    with tempfile.TemporaryDirectory() as work:
        split = person_split(data, Path(work), seed) if is_person else lesion_split(data)
        prepare = preprocessing(input_size, with_label=True, label_at="original", num_classes=255 if is_person else 1)
        train, validation = (Dataset(items, prepare) for items in split)
        detector, scores = train_detector(train, validation, options, _print)
    save_detector(detector, output, scores)
    click.echo(scores)


def lesion_split(data: Path) -> Split:
    """ISIC 2018's own parts."""
    return Split(isic2018_datalist(data / "isic2018", "train"), isic2018_datalist(data / "isic2018", "val"))


def person_split(data: Path, work: Path, seed: int) -> Split:
    """Photos of people, people in the wild more often than in studios, and pasted scenes; masks go into ``work``."""
    vikram = Split(*hold_out(_as_one_person(human_vikram_datalist(data / "human_vikram", "train"), work / "vikram")))
    ccp = Split(*hold_out(_as_one_person(folder_datalist(data / "pretrain/ccp"), work / "ccp")))
    viton = Split(*hold_out(_as_one_person(folder_datalist(data / "pretrain/viton")[::10], work / "viton")))
    coco = Split(*hold_out(_people_of_coco(data / "pretrain/coco128", work / "coco")))
    cutouts = hold_out(sorted((data / "pretrain/person_cutouts/images").iterdir()))
    sceneries = hold_out(_scenes_without_people(data))
    rng, pasted = random.Random(seed), []
    for part, count in ((0, PASTED_SCENES), (1, PASTED_SCENES // 10)):
        people = [*map(_cutout, cutouts[part]), *map(_cut_out, ccp[part])]
        pasted.append(paste_scenes(people, sceneries[part], count, work / f"pasted-{part}", rng))
    return Split(
        3 * vikram.train + ccp.train[::3] + viton.train + 3 * coco.train + pasted[0],
        vikram.validation + ccp.validation[::3] + viton.validation + coco.validation + pasted[1],
    )


def paste_scenes(
    people: Sequence[Image.Image], sceneries: Sequence[Path], count: int, folder: Path, rng: random.Random
) -> list[Item]:
    """Write scenes with one to three people; mask id n is the n-th person.

    Args:
        people: RGBA, trimmed.
        sceneries: Images without people.
        count: How many scenes to write.
        folder: Where to.
        rng: Source of randomness.
    """
    folder.mkdir(parents=True)
    items = []
    for number in range(count):
        image, mask = _paste(people, Image.open(rng.choice(sceneries)).convert("RGB"), rng)
        item = {"image": str(folder / f"{number:05d}.png"), "label": str(folder / f"{number:05d}-mask.png")}
        image.save(item["image"], compress_level=1)
        mask.save(item["label"])
        items.append(item)
    return items


def _paste(people: Sequence[Image.Image], scenery: Image.Image, rng: random.Random) -> tuple[Image.Image, Image.Image]:
    mask = Image.new("L", scenery.size)
    for number in range(1, rng.choice((1, 1, 1, 2, 3)) + 1):
        person = rng.choice(people)
        height = rng.uniform(0.3, 1.3) * scenery.height  # above 1 the person is cut off, as in a portrait
        person = person.resize((max(1, round(person.width / person.height * height)), round(height)))
        if rng.random() < 0.5:
            person = person.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        place = (
            round(rng.uniform(-0.2, 1.2) * (scenery.width - person.width)),
            round(rng.uniform(0, 1) * (scenery.height - person.height)),
        )
        alpha = person.getchannel("A")
        scenery.paste(person.convert("RGB"), place, alpha)
        mask.paste(number, place, alpha.point([0] * 128 + [255] * 128))
    return scenery, mask


def _cutout(path: Path) -> Image.Image:
    person = Image.open(path).convert("RGBA")
    return person.crop(person.getchannel("A").getbbox())


def _cut_out(item: Item) -> Image.Image:
    """The person of a photo on a transparent ground, trimmed."""
    person = Image.open(item["image"]).convert("RGB")
    person.putalpha(Image.fromarray((np.asarray(Image.open(item["label"])) > 0).astype(np.uint8) * 255))
    return person.crop(person.getchannel("A").getbbox())


def _as_one_person(items: Sequence[Item], folder: Path) -> list[Item]:
    return [_with_mask(item, lambda parts: parts > 0, folder) for item in items]


def _people_of_coco(coco: Path, folder: Path) -> list[Item]:
    ids = _ids_of_people(coco)
    people = []
    for item in folder_datalist(coco):
        if known := ids.get(Path(item["image"]).stem):
            people.append(_with_mask(item, partial(_only, ids=known), folder))
    return people


def _only(mask: Mask, ids: list[int]) -> Mask:
    return np.where(np.isin(mask, ids), mask, 0)


def _scenes_without_people(data: Path) -> list[Path]:
    ids = _ids_of_people(data / "pretrain/coco128")
    of_coco = [path for path in sorted((data / "pretrain/coco128/images").iterdir()) if path.stem not in ids]
    return [*sorted((data / "pretrain/backgrounds/images").iterdir()), *of_coco]


def _ids_of_people(coco: Path) -> dict[str, list[int]]:
    """Mask ids of people by the stems of the images that show any."""
    ids: dict[str, list[int]] = {}
    with (coco / "classes.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["coco_class"] == PERSON:
                ids.setdefault(row["stem"], []).append(int(row["id"]))
    return ids


def _with_mask(item: Item, change: Callable[[Mask], NDArray[np.generic]], folder: Path) -> Item:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{Path(item['image']).stem}.png"
    Image.fromarray(change(np.asarray(Image.open(item["label"]))).astype(np.uint8)).save(path)
    return {"image": item["image"], "label": str(path)}


def _print(progress: TrainingProgress) -> None:
    if progress.map50 is not None:
        click.echo(f"epoch {progress.epoch}/{progress.epochs}: loss {progress.loss:.3f}, mAP50 {progress.map50:.3f}")


if __name__ == "__main__":
    main()
