"""Robustness of the product: scores on photographs that are rotated, darkened, shrunk, compressed, hairy or empty.

    python -m pipelines.cards.robustness --data DATA -o OUT          # writes, segments and scores all variants
    python -m pipelines.cards.robustness table -o OUT                # renders the records into docs/robustness.md

Every variant of every image is a file, with its mask in the same frame, and is segmented from that file by what
``amsam segment`` runs. A run that is killed continues where it stopped when the same command is given again::

    OUT/<variant>/images, OUT/<variant>/masks     the photographs and their truth
    OUT/<variant>/segmented                       as `amsam segment` leaves it
    OUT/<variant>/scores.csv                      a row per image
    OUT/robustness.json                           what was run
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from numpy.random import Generator
from PIL import Image, ImageEnhance

from amsam_med.data.datalists import Item, image_stem, open_datalist
from amsam_med.data.readers import read_mask
from amsam_med.domains import DEFAULT_BUNDLE
from amsam_med.files import atomic_path, write_json
from amsam_med.synthetic.strokes import cover, wandering_strokes
from pipelines.cards.reporting import Scored, percent, read_scores, score, segment_files, weights_of, write_scores
from pipelines.markdown import table, write_block
from pipelines.weights.scenes import largest_free_square

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/robustness.md"
UNCHANGED, NO_LESION = "unchanged", "no-lesion"
ORIENTATION_TAG = 0x0112
STORED_TURNS = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
"""How pixels are stored under each EXIF orientation, so that a reader who obeys it shows the picture upright."""
QUALITY = 95
HAIR_COLOUR = (28, 20, 18)
SKIN_MARGIN_PX = 8
"""Distance that plain skin keeps from the truth, whose outlines are drawn by hand."""
SMALLEST_SKIN_PX = 96
CIRCLE_RADIUS = 0.48
"""Of the dermatoscope's field of view, in shorter sides of the image."""


class Photo(NamedTuple):
    """A photograph and its truth in one frame.

    Attributes:
        image: RGB or grey.
        truth: ``L``, 0 and 255.
        orientation: EXIF's, how a reader must turn the pixels; the truth is as the turned image.
    """

    image: Image.Image
    truth: Image.Image
    orientation: int = 1


Change = Callable[[Photo, Generator, int], Photo | None]
"""From a photograph, randomness of its own and its number; None where the variant does not exist."""


@dataclass(frozen=True)
class Variant:
    """One kind of change.

    Attributes:
        name: Of its folder.
        what: What the table calls it.
        change: Makes it; None to copy the file.
        quality: Of the JPEG file.
    """

    name: str
    what: str
    change: Change | None
    quality: int = QUALITY


def turn_by_exif(photo: Photo, rng: Generator, number: int) -> Photo:
    """Pixels turned, with the tag that turns them back; 3, 6 and 8 one after another."""
    orientation = list(STORED_TURNS)[number % len(STORED_TURNS)]
    return photo._replace(image=photo.image.transpose(STORED_TURNS[orientation]), orientation=orientation)


def keep(photo: Photo, rng: Generator, number: int) -> Photo:
    """Change nothing but the file."""
    return photo


def resize(photo: Photo, rng: Generator, number: int, factor: float) -> Photo:
    """Scale both sides."""
    size = (round(factor * photo.image.width), round(factor * photo.image.height))
    return Photo(photo.image.resize(size, Image.Resampling.LANCZOS), photo.truth.resize(size, Image.Resampling.NEAREST))


def brighten(photo: Photo, rng: Generator, number: int, factor: float) -> Photo:
    """Multiply the display values; what exceeds white is cut off."""
    return photo._replace(image=ImageEnhance.Brightness(photo.image).enhance(factor))


def drain(photo: Photo, rng: Generator, number: int) -> Photo:
    """One channel."""
    return photo._replace(image=photo.image.convert("L"))


def cover_with_hair(photo: Photo, rng: Generator, number: int) -> Photo:
    """Fifty to ninety dark hairs across the image, roughly in one direction."""
    size = (photo.image.height, photo.image.width)
    hairs = wandering_strokes(
        rng,
        size,
        int(rng.integers(50, 91)),
        length=(0.3, 0.9),
        width=(0.004, 0.010),
        bend=0.8,
        heading=float(rng.uniform(0, 2 * np.pi)),
    )
    alpha = Image.fromarray((0.92 * 255 * cover(hairs, size).coverage).astype(np.uint8))
    return photo._replace(image=Image.composite(Image.new("RGB", photo.image.size, HAIR_COLOUR), photo.image, alpha))


def look_through_dermatoscope(photo: Photo, rng: Generator, number: int) -> Photo | None:
    """Black outside a circle; what it hides of the lesion is not asked for."""
    width, height = photo.image.size
    rows, columns = np.mgrid[:height, :width] + 0.5
    radius = CIRCLE_RADIUS * min(width, height)
    inside = np.clip(radius + 0.5 - np.hypot(rows - height / 2, columns - width / 2), 0, 1)
    field = Image.fromarray((255 * inside).astype(np.uint8))
    truth = Image.fromarray(np.where(inside >= 0.5, np.asarray(photo.truth), 0).astype(np.uint8))
    if truth.getbbox() is None:
        return None
    return Photo(Image.composite(photo.image, Image.new("RGB", photo.image.size), field), truth)


def crop_to_lesion(photo: Photo, rng: Generator, number: int) -> Photo | None:
    """The lesion touches all four borders."""
    box = photo.truth.getbbox()
    return None if box is None else Photo(photo.image.crop(box), photo.truth.crop(box))


def crop_to_skin(photo: Photo, rng: Generator, number: int) -> Photo | None:
    """The largest square without lesion, if there is one of 96 pixels."""
    box = largest_free_square(np.asarray(photo.truth) > 0, SKIN_MARGIN_PX)
    if box is None or box[2] - box[0] < SMALLEST_SKIN_PX:
        return None
    return Photo(photo.image.crop(box), photo.truth.crop(box))


VARIANTS = (
    Variant(UNCHANGED, "unchanged", None),
    Variant("exif", "turned, with EXIF orientation 3, 6, 8", turn_by_exif),
    Variant("jpeg-20", "JPEG quality 20", keep, quality=20),
    Variant("half", "half size", partial(resize, factor=0.5)),
    Variant("double", "double size", partial(resize, factor=2.0)),
    Variant("darker", "brightness −30 %", partial(brighten, factor=0.7)),
    Variant("brighter", "brightness +30 %", partial(brighten, factor=1.3)),
    Variant("grey", "grey, one channel", drain),
    Variant("hair", "heavy hair", cover_with_hair),
    Variant("vignette", "dermatoscope's black circle", look_through_dermatoscope),
    Variant("tight-crop", "cropped to the lesion's borders", crop_to_lesion),
    Variant(NO_LESION, "plain skin, no lesion", crop_to_skin),
)


def write_variant(variant: Variant, items: Sequence[Item], folder: Path) -> list[tuple[Path, Path]]:
    """Write what is not there yet; pairs of image and mask, without the images for which there is no such variant."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pairs = pool.map(lambda number, item: _write_one(variant, number, item, folder), count(), items)
        return [pair for pair in pairs if pair is not None]


def _write_one(variant: Variant, number: int, item: Item, folder: Path) -> tuple[Path, Path] | None:
    source, stem = Path(item["image"]), image_stem(item["image"])
    suffix = source.suffix if variant.change is None else ".jpg"
    image, mask = folder / "images" / f"{stem}{suffix}", folder / "masks" / f"{stem}.png"
    if image.is_file() and mask.is_file():
        return image, mask
    photo = Photo(Image.open(source).convert("RGB"), Image.fromarray(255 * read_mask(item["label"])))
    if variant.change is not None:
        seed = zlib.crc32(f"{variant.name}/{stem}".encode())
        changed = variant.change(photo, np.random.default_rng(seed), number)
        if changed is None:
            return None
        photo = changed
    with atomic_path(mask) as path:
        photo.truth.save(path)
    with atomic_path(image) as path:
        if variant.change is None:
            shutil.copyfile(source, path)
        else:
            exif = Image.Exif()
            exif[ORIENTATION_TAG] = photo.orientation
            photo.image.save(path, quality=variant.quality, exif=exif)
    return image, mask


def run_variant(variant: Variant, items: Sequence[Item], folder: Path, bundle: str) -> list[Scored]:
    """Write, segment and score one variant."""
    pairs = write_variant(variant, items, folder)
    if not pairs:
        raise click.ClickException(f"no image has the variant {variant.name!r}; give more images")
    rows = segment_files([image for image, _ in pairs], folder / "segmented", bundle)
    scores = [score(rows[image_stem(image)], folder / "segmented", read_mask(mask)) for image, mask in pairs]
    write_scores(scores, folder / "scores.csv")
    return scores


def render(output: Path) -> str:
    """The records as Markdown: what was run, and two tables.

    Raises:
        click.ClickException: A variant is missing, or variants were segmented with different weights.
    """
    if missing := [variant.name for variant in VARIANTS if not (output / variant.name / "scores.csv").is_file()]:
        raise click.ClickException(f"{output} lacks {', '.join(missing)}; finish the run, then render its table")
    used = [weights_of(output / variant.name / "segmented") for variant in VARIANTS]
    if any(weights != used[0] for weights in used):
        raise click.ClickException(f"{output} was segmented with several weights; run again into an empty folder")
    record = json.loads((output / "robustness.json").read_text(encoding="utf-8"))
    scores = {variant.name: read_scores(output / variant.name / "scores.csv") for variant in VARIANTS}
    plain = scores.pop(NO_LESION)
    rows = [_row(variant, scores) for variant in VARIANTS if variant.name != NO_LESION]
    weights = ", ".join(f"{part} `{sha256}`" for part, sha256 in used[0].items())
    return "\n\n".join(
        [
            f"Command: `{record['command']}`, bundle `{record['bundle']}`, {record['images']} images of isic2018/test. "
            f"Weights (sha256): {weights}.",
            table(
                ["variant", "images", "Dice, %", "Jaccard, %", "Dice − unchanged", "empty", "no box", "flagged"], rows
            ),
            "Plain skin: the mask should be empty, and the image flagged.",
            table(
                ["variant", "images", "flagged", "no box", "empty masks", "mean area of the mask, % of the image"],
                [_row_of_skin(plain)],
            ),
        ]
    )


def _row(variant: Variant, scores: dict[str, list[Scored]]) -> list[object]:
    of_variant, before = scores[variant.name], {entry.image: entry.dice for entry in scores[UNCHANGED]}
    difference = [entry.dice - before[entry.image] for entry in of_variant]
    return [
        variant.what,
        len(of_variant),
        percent([entry.dice for entry in of_variant]),
        f"{100 * np.mean([entry.iou for entry in of_variant]):.1f}",
        "" if variant.name == UNCHANGED else percent(difference, sign="+"),
        sum(entry.is_empty for entry in of_variant),
        sum(entry.has_no_box for entry in of_variant),
        _share_flagged(of_variant),
    ]


def _row_of_skin(plain: Sequence[Scored]) -> list[object]:
    return [
        "plain skin",
        len(plain),
        _share_flagged(plain),
        f"{100 * np.mean([entry.has_no_box for entry in plain]):.1f} %",
        f"{100 * np.mean([entry.is_empty for entry in plain]):.1f} %",
        f"{np.mean([entry.area_percent for entry in plain]):.1f}",
    ]


def _share_flagged(scores: Sequence[Scored]) -> str:
    if any(entry.flags is None for entry in scores):
        return "not recorded"
    return f"{100 * np.mean([entry.is_flagged for entry in scores]):.1f} %"


@click.command()
@click.argument("verb", type=click.Choice(["run", "table"]), default="run")
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Needed to run.")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--bundle", default=DEFAULT_BUNDLE, show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many images.  [default: all]")
@click.option("--document", type=click.Path(path_type=Path, dir_okay=False, exists=True), default=DOCUMENT)
def main(verb: str, data: Path | None, output: Path, bundle: str, limit: int | None, document: Path) -> None:
    """Measure a bundle on changed photographs, or render the table of such a run."""
    if verb == "table":
        write_block(document, "robustness", render(output))
        click.echo(f"{document}: written")
        return
    if data is None:
        raise click.UsageError("--data is needed to run; give the data folder")
    items = open_datalist(data / "isic2018", "test")[:limit]
    words = ["python -m pipelines.cards.robustness --data DATA -o OUT"]
    words += [f"--bundle {Path(bundle).name}"] if bundle != DEFAULT_BUNDLE else []
    words += [f"--limit {limit}"] if limit is not None else []
    record = {"command": " ".join(words), "bundle": Path(bundle).name, "images": len(items)}
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "robustness.json", record)
    for variant in VARIANTS:
        scores = run_variant(variant, items, output / variant.name, bundle)
        dice = "" if variant.name == NO_LESION else f", Dice {percent([entry.dice for entry in scores])}"
        click.echo(f"{variant.what}: {len(scores)} images{dice}")


if __name__ == "__main__":
    main()
