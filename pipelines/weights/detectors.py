"""Train the box detectors that the bundles carry.

    python -m pipelines.weights.detectors lesion --data DATA -o lesion.safetensors
    python -m pipelines.weights.detectors person --data DATA -o person.safetensors
    python -m pipelines.weights.detectors lesion --data DATA --epochs 0 --from old.safetensors -o new.safetensors

Without epochs it only scores. With ``--document`` the scores are also written as a table between that document's marks
for the detector.

The lesion detector learns from ISIC 2018's training part and HAM10000, and is selected on ISIC's validation part. The
person detector learns from photos of people, from portraits cut out of them, and from people pasted onto scenes without
any; every tenth image of a source, and every tenth person and scene, is held out for selection. Both also learn from
images of nothing: squares of plain skin, and scenes without people. Nothing that results are reported on is read:
neither the test part of ISIC 2018 nor the last 100 of Human (Vikram).
"""

from __future__ import annotations

import csv
import random
import tempfile
from collections.abc import Callable, Iterable, Sequence
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
from amsam_med.detect.files import read_weights
from amsam_med.detect.labels import hold_out
from amsam_med.detect.yolo import DetectorScores, TrainingOptions, TrainingProgress, save_detector, train_detector
from amsam_med.domains import DOMAINS, Domain
from amsam_med.weights import sha256
from pipelines.cards.robustness import NO_LESION, VARIANTS, write_variant
from pipelines.domains import class_name, is_upright, open_part
from pipelines.markdown import table, write_block
from pipelines.weights.scenes import with_rest_of_person

INPUT_SIZE = 192
MIN_CONFIDENCE = 0.4
"""Below this confidence, the base segments validation images better without the box, lesions and people alike."""
PASTED_SCENES = 2000
GREY_SHARE = 0.1
"""Share of the made images that are turned grey, as some photos are black and white."""
SUBJECT_SHARE = 0.25
"""Smaller people than this share of the largest one are bystanders, not what the photo shows."""
CUT_OFF_SHARE = 0.25
"""A person who covers more of the lowest row than this was cut off there by the photo's edge; feet cover less."""
PERSON = "0"
"""COCO's class of people."""

Mask = NDArray[np.uint8]


class Split(NamedTuple):
    """Items to learn from and items to select by."""

    train: list[Item]
    validation: list[Item]


class Recipe(NamedTuple):
    """How a detector is trained.

    Attributes:
        split: From the data folder, a folder for what must be made, and a seed.
        epochs: How many.
        mosaic: Share of training images composed of four.
    """

    split: Callable[[Path, Path, int], Split]
    epochs: int = 8
    mosaic: float = 0.0


KINDS = {domain.detector.removesuffix("-detector"): domain for domain in DOMAINS}


@click.command()
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--input-size", type=int, help="[default: that of --from, else 192]")
@click.option("--epochs", type=int, help="0 only scores the weights of --from.  [default: the recipe's]")
@click.option("--from", "start", type=click.Path(path_type=Path, exists=True), help="Weights to begin with.")
@click.option("--seed", default=0, show_default=True)
@click.option("--document", type=click.Path(path_type=Path, exists=True), help="Where the scores go as a table.")
def main(
    kind: str,
    data: Path,
    output: Path,
    input_size: int | None,
    epochs: int | None,
    start: Path | None,
    seed: int,
    document: Path | None,
) -> None:
    """Train a bundle's box detector and write its weights and scores."""
    domain = KINDS[kind]
    recipe = RECIPES.get(domain.detector, Recipe(partial(plain_split, domain)))
    options = TrainingOptions(
        class_name=class_name(domain),
        epochs=recipe.epochs if epochs is None else epochs,
        seed=seed,
        is_upright=is_upright(domain),
        mosaic=recipe.mosaic,
        start=start,
        min_confidence=MIN_CONFIDENCE,
    )
    input_size = input_size or (INPUT_SIZE if start is None else read_weights(start).input_size)
    with tempfile.TemporaryDirectory() as work:
        split = recipe.split(data, Path(work), seed)
        prepare = preprocessing(input_size, with_label=True, label_at="original")
        train, validation = (Dataset(items, prepare) for items in split)
        detector, scores = train_detector(train, validation, options, _print)
    save_detector(detector, output, scores)
    measured = start if start is not None and epochs == 0 else output
    text = f"`{kind}-detector`, sha256 {sha256(measured)[:12]}:\n\n{render_scores(scores)}"
    click.echo(text)
    if document is not None:
        write_block(document, f"detector {kind}", text)


def render_scores(scores: DetectorScores) -> str:
    """A table of one row."""
    box = scores.best_box
    cells = {
        "images": box.images,
        "mAP50": f"{scores.map50:.3f}",
        "mean IoU of the best box": f"{box.mean_iou:.3f}",
        "IoU ≥ 0.5": f"{100 * box.iou50:.1f} %",
        "IoU ≥ 0.75": f"{100 * box.iou75:.1f} %",
        "no box": f"{100 * box.without_box:.1f} %",
        "boxes in images of nothing": box.false_boxes,
        "edge error": f"{box.edge_error:.3f}",
    }
    return table(list(cells), [list(cells.values())])


def plain_split(domain: Domain, data: Path, _work: Path, _seed: int) -> Split:
    """A domain's examples, and what it is selected by; every tenth of the examples where there is nothing."""
    items = [item for part in (*domain.examples, *domain.also_learned) for item in open_part(data, part)]
    return Split(*hold_out(items)) if domain.validation is None else Split(items, open_part(data, domain.validation))


def lesion_split(data: Path, work: Path, seed: int) -> Split:
    """ISIC 2018's own parts, each with the squares of plain skin in it, which go into ``work``.

    HAM10000, whose outlines are looser, joins the training part at half its weight.
    """
    train, validation = (isic2018_datalist(data / "isic2018", part) for part in ("train", "val"))
    skin = [plain_skin(items, work / f"skin-{part}") for part, items in (("train", train), ("val", validation))]
    return Split([*2 * train, *folder_datalist(data / "ham10000"), *skin[0]], [*validation, *skin[1]])


def plain_skin(items: Sequence[Item], folder: Path) -> list[Item]:
    """Write the square of plain skin of each image that has room for one, with an empty mask, into ``folder``."""
    variant = next(variant for variant in VARIANTS if variant.name == NO_LESION)
    return [{"image": str(image), "label": str(mask)} for image, mask in write_variant(variant, items, folder)]


def person_split(data: Path, work: Path, seed: int) -> Split:
    """Photos of people in the wild and in studios, portraits cut out of them, and pasted scenes.

    All people of a photo are one object, as in the masks of Human (Vikram). New images and masks go into ``work``.
    """
    vikram = Split(*hold_out(as_one_person(human_vikram_datalist(data / "human_vikram", "train"), work / "vikram")))
    ccp = Split(*hold_out(as_one_person(folder_datalist(data / "pretrain/ccp"), work / "ccp")))
    studio = Split(*hold_out(_studio_people(folder_datalist(data / "pretrain/viton")[::2], work / "studio")))
    coco = Split(*hold_out(_people_of_coco(data / "pretrain/coco128", work / "coco")))
    cutouts = hold_out(sorted((data / "pretrain/person_cutouts/images").iterdir()))
    sceneries = hold_out(scenes_without_people(data))
    rng, pasted, portraits = random.Random(seed), [], []  # noqa: S311  # a draw, not cryptography
    for part, count in ((0, PASTED_SCENES), (1, PASTED_SCENES // 10)):
        people = [*map(_cutout, cutouts[part]), *map(_cut_out, ccp[part]), *map(_cut_out, studio[part])]
        pasted.append(paste_scenes(people, sceneries[part], count, work / f"pasted-{part}", rng))
        others = [item for number, item in enumerate(ccp[part]) if number % 3]
        portraits.append(cut_portraits(others, work / f"portraits-{part}", rng))
    nobody = [_without_people(paths, work / f"nobody-{part}") for part, paths in enumerate(sceneries)]
    return Split(
        4 * vikram.train
        + ccp.train[::3]
        + studio.train[::5]
        + 3 * coco.train
        + pasted[0]
        + portraits[0]
        + 2 * nobody[0],
        vikram.validation
        + ccp.validation[::3]
        + studio.validation[::5]
        + coco.validation
        + pasted[1]
        + portraits[1]
        + nobody[1],
    )


RECIPES = {"lesion-detector": Recipe(lesion_split), "person-detector": Recipe(person_split, epochs=12, mosaic=0.3)}
"""Splits of detectors that need more than :func:`plain_split`."""


def paste_scenes(
    people: Sequence[Image.Image], sceneries: Sequence[Path], count: int, folder: Path, rng: random.Random
) -> list[Item]:
    """Write scenes with one to three people of about the same height, who are one object.

    Args:
        people: RGBA, trimmed.
        sceneries: Images without people.
        count: How many scenes to write.
        folder: Where to.
        rng: Source of randomness.
    """
    return _write_items(
        (_paste(people, Image.open(rng.choice(sceneries)).convert("RGB"), rng) for _ in range(count)), folder, rng
    )


def cut_portraits(items: Sequence[Item], folder: Path, rng: random.Random) -> list[Item]:
    """Write head-and-shoulder to half-body portraits, in upright to wide frames, cut out of full-length photos.

    Args:
        items: Photos of one standing person each.
        folder: Where to.
        rng: Source of randomness.
    """
    return _write_items((_portrait(item, rng) for item in items), folder, rng)


def _write_items(pairs: Iterable[tuple[Image.Image, Image.Image]], folder: Path, rng: random.Random) -> list[Item]:
    folder.mkdir(parents=True)
    items = []
    for number, (image, mask) in enumerate(pairs):
        item = {"image": str(folder / f"{number:05d}.png"), "label": str(folder / f"{number:05d}-mask.png")}
        is_grey = rng.random() < GREY_SHARE
        (image.convert("L") if is_grey else image).save(item["image"], compress_level=1)
        mask.save(item["label"])
        items.append(item)
    return items


def _paste(people: Sequence[Image.Image], scenery: Image.Image, rng: random.Random) -> tuple[Image.Image, Image.Image]:
    mask = Image.new("L", scenery.size)
    scale = 0.2 * 10 ** rng.random()  # 0.2 to 2 heights of the scene: from passers-by down the street to portraits
    room = (1 - scale) * scenery.height
    top = rng.uniform(0, room) if room > 0 else rng.uniform(-0.05, 0.3) * scenery.height  # who is cut keeps a head
    centre = rng.uniform(0.15, 0.85) * scenery.width
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        person = rng.choice(people)
        height = rng.uniform(0.85, 1.15) * scale * scenery.height
        person = person.resize((max(1, round(person.width / person.height * height)), round(height)))
        if rng.random() < 0.5:
            person = person.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        alpha = person.getchannel("A")
        is_cut_off = np.asarray(alpha)[-1].mean() > CUT_OFF_SHARE * 255
        stands_at = max(top, scenery.height - person.height) if is_cut_off else top  # half a person does not float
        place = round(centre - person.width / 2), round(stands_at)
        scenery.paste(person.convert("RGB"), place, alpha)
        mask.paste(255, place, alpha.point([0] * 128 + [255] * 128))
        centre += rng.choice((-1, 1)) * rng.uniform(0.5, 1.2) * person.width  # the next one stands beside
    return scenery, mask


def _portrait(item: Item, rng: random.Random) -> tuple[Image.Image, Image.Image]:
    image, mask = Image.open(item["image"]).convert("RGB"), Image.open(item["label"])
    is_person = np.asarray(mask) > 0
    rows = np.flatnonzero(is_person.any(axis=1))
    shown = rng.uniform(0.25, 0.65) * len(rows)  # of the person, from the hair down
    top = max(0.0, rows[0] - rng.uniform(0, 0.35) * shown)
    height = rows[0] + shown - top
    width = min(image.width, height * 0.6 * 3 ** rng.random())  # width over height from 0.6 to 1.8
    head = np.flatnonzero(is_person[rows[0] : rows[0] + max(1, round(0.15 * len(rows)))].any(axis=0)).mean()
    left = min(max(0.0, head - rng.uniform(0.25, 0.75) * width), image.width - width)
    window = round(left), round(top), round(left + width), round(top + height)
    return image.crop(window), Image.fromarray(is_person.astype(np.uint8) * 255).crop(window)


def _cutout(path: Path) -> Image.Image:
    person = Image.open(path).convert("RGBA")
    return person.crop(person.getchannel("A").getbbox())


def _cut_out(item: Item) -> Image.Image:
    """The person of a photo on a transparent ground, trimmed."""
    person = Image.open(item["image"]).convert("RGB")
    person.putalpha(Image.fromarray((np.asarray(Image.open(item["label"])) > 0).astype(np.uint8) * 255))
    return person.crop(person.getchannel("A").getbbox())


def as_one_person(items: Sequence[Item], folder: Path) -> list[Item]:
    """Every id of a mask is a part of the person; photos whose person was not marked are left out."""
    marked = [item for item in items if np.asarray(Image.open(item["label"])).any()]
    return [_with_mask(item, lambda parts: parts > 0, folder) for item in marked]


def _studio_people(items: Sequence[Item], folder: Path) -> list[Item]:
    """People before a plain wall, with the necks and hems that the machine-made masks leave out."""
    return [_with_mask(item, partial(_before_wall, photo=item["image"]), folder) for item in items]


def _before_wall(parts: Mask, photo: str) -> NDArray[np.bool_]:
    return with_rest_of_person(np.asarray(Image.open(photo).convert("RGB")), parts) > 0


def _people_of_coco(coco: Path, folder: Path) -> list[Item]:
    ids = _ids_of_people(coco)
    people = []
    for item in folder_datalist(coco):
        if known := ids.get(Path(item["image"]).stem):
            people.append(_with_mask(item, partial(_subjects, ids=known), folder))
    return people


def _subjects(mask: Mask, ids: list[int]) -> NDArray[np.bool_]:
    """The people whom a photo is about: the largest one, and those who are not much smaller."""
    areas = np.bincount(mask.ravel(), minlength=max(ids) + 1)
    largest = max(areas[number] for number in ids)
    return np.isin(mask, [number for number in ids if areas[number] >= SUBJECT_SHARE * largest])


def scenes_without_people(data: Path) -> list[Path]:
    """Backgrounds, and COCO's photos that show nobody."""
    ids = _ids_of_people(data / "pretrain/coco128")
    of_coco = [path for path in sorted((data / "pretrain/coco128/images").iterdir()) if path.stem not in ids]
    return [*sorted((data / "pretrain/backgrounds/images").iterdir()), *of_coco]


def _without_people(photos: Sequence[Path], folder: Path) -> list[Item]:
    """Photos that show nobody, with empty masks."""
    folder.mkdir(parents=True)
    items = []
    for photo in photos:
        mask = folder / f"{photo.stem}.png"
        Image.new("L", Image.open(photo).size).save(mask)
        items.append({"image": str(photo), "label": str(mask)})
    return items


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
