"""Fill the measured parts of a bundle's model card, and draw its worst cases.

    python -m pipelines.cards.model_card --data DATA --bundle amsam_isic
    python -m pipelines.cards.model_card --data DATA --bundle amsam_body --photos PICTURES

The test images are segmented with the product from their files; scores are taken at their own size. What stands between
the markers of ``bundles/<name>/docs/README.md`` is replaced, ``eval_metrics`` in its ``metadata.json``, and
``failures.png`` beside the page: outlines only, as the photographs may not be passed on. ``--photos`` draws the same
panels over the photographs, for one's own eyes. With ``-o`` the masks and scores are kept, and a later call does not
segment again.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import AbstractPathEffect, Normal, withStroke
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch.nn.functional import one_hot

from amsam_med import weights
from amsam_med.data.datalists import Item, image_stem, open_datalist
from amsam_med.data.outlines import draw_on_axes
from amsam_med.data.readers import read_image, read_mask
from amsam_med.domains import DOMAINS, Domain
from amsam_med.evaluate import ImageScore, score_image, summarise
from amsam_med.files import atomic_path
from amsam_med.measure import measure as measurements
from amsam_med.segment.journal import Cells
from amsam_med.trust import register_bundles
from pipelines.cards.reporting import Scored, box_of, percent, score, segment_files, weights_of, write_scores
from pipelines.domains import base_of, class_name
from pipelines.markdown import table, write_block

PICTURE = "failures.png"
SHOWN = 8
COLUMNS = 4
GOOD_BOX = 0.5
"""A box with at least this IoU with the true box is not counted as the cause of a failure."""
AREA_RATIO = 1.5
SIZES = ((0.0, 5.0), (5.0, 20.0), (20.0, 100.0))
"""Groups by the share of the image that the object covers, in percent; the upper end belongs to the group."""
LOW_DICE = (0.5, 0.7)
FRAME, GROUND, OBJECT, EDGE, PREDICTION, BOX = "#888888", "#FFFFFF", "#D0D0D0", "#000000", "#D55E00", "#0072B2"
"""Okabe and Ito's orange and blue; in grey the fill, the dashes and the dots tell truth, prediction and box apart."""
DOTS_PER_INCH = 110


COPY_CORRELATION = 0.95
"""Correlation of two thumbnails from which on an image counts as a near-copy, perhaps recoloured or cropped."""
THUMBNAIL_PX = 32


class Card(NamedTuple):
    """The data on which a bundle's card reports.

    Attributes:
        folder: Of the data set whose part ``test`` is reported.
        others: Data sets and their parts on which the bundle was trained or selected, and that show such objects.
        files: Names of the weights that belong to the bundle.
        thing: The object.
        is_on_skin: Whether results are also given by skin tone and by the contrast with the skin.
    """

    folder: str
    others: tuple[tuple[str, str | None], ...]
    files: tuple[str, ...]
    thing: str
    is_on_skin: bool = False


def _card(domain: Domain) -> Card:
    selected_by = () if domain.validation is None else (domain.validation,)
    return Card(
        domain.data_set,
        (*domain.examples, *selected_by, *domain.also_learned),
        (domain.bundle, domain.detector, base_of(domain)),
        class_name(domain),
        domain.is_on_skin,
    )


CARDS = {domain.bundle: _card(domain) for domain in DOMAINS}


class Case(NamedTuple):
    """One test image.

    Attributes:
        item: Its files.
        row: Its row of ``results.csv``.
        mask: The product's mask, uint8 ``(H, W)`` of 0 and 1.
        truth: uint8 ``(H, W)`` of 0 and 1.
        scored: Dice, box and flags.
        detail: The scores of ``amsam evaluate`` at the image's own size.
        skin_tone: Individual typology angle of the skin around the true object in degrees, see :func:`typology_angle`;
            None where the image shows no skin around it.
        contrast: CIEDE2000 difference of the mean colours of the true object and the skin around it; None as above.
    """

    item: Item
    row: Cells
    mask: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    scored: Scored
    detail: ImageScore
    skin_tone: float | None = None
    contrast: float | None = None


def typology_angle(lightness: float, yellow: float) -> float:
    """The individual typology angle in degrees (Chardon et al. 1991): arctan((L* - 50) / b*), small for dark skin."""
    return math.degrees(math.atan2(lightness - 50, yellow))


def measure(items: Sequence[Item], output: Path, bundle: str) -> list[Case]:
    """Segment images with the product and score its masks."""
    rows = segment_files([Path(item["image"]) for item in items], output / "segmented", bundle)
    cases = [_case(item, rows[image_stem(item["image"])], output / "segmented") for item in items]
    write_scores((case.scored for case in cases), output / "scores.csv")
    return cases


def _case(item: Item, row: Cells, segmented: Path) -> Case:
    mask, truth = read_mask(segmented / row["mask_file"]), read_mask(item["label"])
    ids = torch.from_numpy(mask)[None]
    as_logits = one_hot(ids[0].long(), 2).permute(2, 0, 1).float()  # (H, W, 2) -> (2, H, W)
    detail = score_image(Path(item["image"]).name, ids, torch.from_numpy(truth)[None], as_logits)
    colours = measurements(read_image(item["image"]).pixels, truth, None)
    lightness, yellow = colours.lab_l_mean_outside, colours.lab_b_mean_outside
    skin_tone = None if lightness is None or yellow is None else typology_angle(lightness, yellow)
    return Case(item, row, mask, truth, score(row, segmented, truth), detail, skin_tone, colours.delta_e_2000)


def kind_of_failure(scored: Scored, thing: str) -> str:
    """The main error of a mask, in words."""
    if scored.is_empty:
        return "nothing drawn"
    if scored.has_no_box:
        return "no box found"
    if scored.box_iou is not None and scored.box_iou < GOOD_BOX:
        return f"box misses the {thing}"
    if scored.area_percent > AREA_RATIO * scored.truth_percent:
        return "good box, too large"
    if AREA_RATIO * scored.area_percent < scored.truth_percent:
        return "good box, too small"
    return "good box, other outline"


def worst(cases: Sequence[Case], count: int = SHOWN) -> list[Case]:
    """The lowest Dice first."""
    return sorted(cases, key=lambda case: case.scored.dice)[:count]


def near_copies(items: Sequence[Item], others: Sequence[Item]) -> set[str]:
    """Stems of the images that resemble one of ``others``, by the correlation of grey thumbnails."""
    correlation = _thumbnails(items) @ _thumbnails(others).T  # (N, M)
    is_copy = np.any(correlation > COPY_CORRELATION, axis=1)
    return {image_stem(item["image"]) for item, copied in zip(items, is_copy, strict=True) if copied}


def _thumbnails(items: Sequence[Item]) -> NDArray[np.float32]:
    """Grey middles of images, a row each, with mean 0 and length 1: ``(N, THUMBNAIL_PX**2)``."""

    def thumbnail(item: Item) -> NDArray[np.float32]:
        picture = Image.open(item["image"])
        picture.draft("L", (4 * THUMBNAIL_PX, 4 * THUMBNAIL_PX))
        square = ImageOps.fit(picture.convert("L"), (THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR)
        values = np.asarray(square, dtype=np.float32).ravel()
        values = values - values.mean()
        unit: NDArray[np.float32] = values / max(float(np.linalg.norm(values)), 1e-6)
        return unit

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.stack(list(pool.map(thumbnail, items)))


def render_results(cases: Sequence[Case], card: Card, copies: set[str]) -> str:
    """Scores of all test images, by the size of the object, and without the near-copies of other images."""
    dice = np.array([case.scored.dice for case in cases])
    low = " and ".join(f"{100 * (dice < limit).mean():.1f} % below {limit:g}" for limit in LOW_DICE)
    rows = [_result("all", cases)]
    for lower, upper in SIZES:
        group = [case for case in cases if lower < case.scored.truth_percent <= upper]
        if group:
            rows.append(_result(_size_words(card.thing, lower, upper), group))
    if card.is_on_skin:
        rows += _thirds("skin tone (ITA)", "°", "darkest", "lightest", cases, lambda case: case.skin_tone)
        rows += _thirds("contrast (ΔE00)", "", "faintest", "strongest", cases, lambda case: case.contrast)
    if copies:
        rows.append(_result("without near-copies", [case for case in cases if case.scored.image not in copies]))
    header = ["test images", "number", "Dice, %", "Jaccard, %", "Jaccard ≥ 0.65, %", "HD95, px", "empty masks"]
    words = [
        f"Of {len(cases)} images, {low} Dice; the median Dice is {100 * np.median(dice):.1f} %.",
        "Near-copies of an image of training or selection (grey thumbnails correlate above "
        f"{COPY_CORRELATION:g}): {len(copies)}.",
    ]
    return "\n\n".join([table(header, rows), " ".join(words)])


def _thirds(
    what: str, unit: str, least: str, most: str, cases: Sequence[Case], value_of: Callable[[Case], float | None]
) -> list[list[object]]:
    """A row for each third of the cases that have a value, from the lowest up."""
    known = sorted((value, number) for number, case in enumerate(cases) if (value := value_of(case)) is not None)
    thirds = [part for part in np.array_split(np.arange(len(known)), 3) if len(part)]
    rows = []
    for name, part in zip((least, "middle", most), thirds, strict=False):
        low, high = known[part[0]][0], known[part[-1]][0]
        group = [cases[known[place][1]] for place in part]
        rows.append(_result(f"{what} {low:.0f} to {high:.0f}{unit}, {name} third", group))
    return rows


def _size_words(thing: str, lower: float, upper: float) -> str:
    if lower == 0:
        return f"{thing} up to {upper:g} % of the image"
    return f"{lower:g} to {upper:g} %" if upper < 100 else f"above {lower:g} %"


def _result(name: str, cases: Sequence[Case]) -> list[object]:
    summary = summarise([case.detail for case in cases])
    return [
        name,
        summary.images,
        percent([case.detail.dice for case in cases]),
        percent([case.detail.iou for case in cases]),
        f"{100 * summary.threshold_jaccard:.1f}",
        "" if summary.hd95 is None else f"{summary.hd95:.1f}",
        summary.empty_predictions,
    ]


def render_flags(cases: Sequence[Case]) -> str:
    """How many images the product flags, and whether their masks are worse."""
    if any(case.scored.flags is None for case in cases):
        return "This version's `results.csv` has no column `flags`."
    flags = sorted({flag for case in cases for flag in (case.scored.flags or "").split(";") if flag})
    groups = [
        ("not flagged", [case for case in cases if not case.scored.is_flagged]),
        ("flagged", [case for case in cases if case.scored.is_flagged]),
        *((f"`{flag}`", [case for case in cases if flag in (case.scored.flags or "").split(";")]) for flag in flags),
    ]
    rows = []
    for name, group in groups:
        dice = np.array([case.scored.dice for case in group])
        share = f"{len(group)} ({100 * len(group) / len(cases):.1f} %)"
        below = [f"{(dice < limit).sum()}" for limit in LOW_DICE]
        rows.append([name, share, percent(dice) if len(group) else "", *below])
    return table(["", "images", "Dice, %", *(f"Dice < {limit:g}" for limit in LOW_DICE)], rows)


def render_worst(cases: Sequence[Case], thing: str) -> str:
    """The worst cases by name."""
    rows = []
    for case in worst(cases):
        scored = case.scored
        overlap = "" if scored.box_iou is None else f"{scored.box_iou:.2f}"
        flags = "not recorded" if scored.flags is None else scored.flags.replace(";", ", ")
        rows.append(
            [
                f"`{scored.image}`",
                kind_of_failure(scored, thing),
                f"{scored.dice:.2f}",
                overlap,
                f"{scored.truth_percent:.1f}",
                f"{scored.area_percent:.1f}",
                flags,
            ]
        )
    return table(["image", "failure", "Dice", "IoU of the box", f"{thing}, % of image", "mask, %", "flags"], rows)


def render_files(card: Card) -> str:
    """The bundle's weight files with their sha256, as the registry has them."""
    known = weights.known()
    rows = []
    for name in card.files:
        entry = known[name]
        rows.append([f"`{entry.file}`", entry.what, f"{(entry.bytes or 0) / 1e6:.1f}", f"`{entry.sha256}`"])
    return table(["file", "what", "MB", "sha256"], rows)


def check_weights(used: dict[str, str], card: Card) -> None:
    """Refuse results of other files than those that the card lists.

    Raises:
        click.ClickException: A sha256 differs from the registry's.
    """
    known = weights.known()
    for part, name in zip(("model", "detector"), card.files, strict=False):
        if used.get(part) != known[name].sha256:
            raise click.ClickException(
                f"the {part} in use has sha256 {used.get(part)}, the registry's {name} {known[name].sha256}; "
                "release the file first (pipelines/weights/release.py)"
            )


def draw_failures(cases: Sequence[Case], thing: str, path: Path, with_photos: bool) -> None:
    """Draw one panel per case: truth, mask and box, in the frame of the image.

    Args:
        cases: At least one.
        thing: What is outlined.
        path: The picture.
        with_photos: Draw over the photographs; otherwise on a plain ground.
    """
    rows = [cases[start : start + COLUMNS] for start in range(0, len(cases), COLUMNS)]
    ratios = [max(case.truth.shape[0] / case.truth.shape[1] for case in row) for row in rows]
    figure = Figure(figsize=(9.2, 0.5 + sum(2.2 * ratio + 0.5 for ratio in ratios)), layout="constrained")
    panels = figure.subplots(len(rows), COLUMNS, squeeze=False, height_ratios=ratios).ravel()
    for axes in panels[len(cases) :]:
        axes.set_axis_off()
    for axes, case in zip(panels, cases, strict=False):
        _draw_panel(axes, case, thing, with_photos)
    figure.legend(handles=_legend(thing, with_photos), loc="outside upper center", ncols=3, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DOTS_PER_INCH)


def _draw_panel(axes: Axes, case: Case, thing: str, with_photos: bool) -> None:
    height, width = case.truth.shape
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[], aspect="equal", anchor="N")
    axes.set_facecolor(GROUND)
    for spine in axes.spines.values():
        spine.set(color=FRAME, linewidth=0.8)
    effects: list[AbstractPathEffect] = []
    if with_photos:
        axes.imshow(read_image(case.item["image"]).pixels.transpose(1, 2, 0))
        effects = [withStroke(linewidth=3, foreground="white"), Normal()]
    else:
        axes.imshow(np.where(case.truth > 0, 0.82, 1.0), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    draw_on_axes(axes, case.truth > 0, EDGE, "solid", 1.0, effects, is_clipped=False)
    draw_on_axes(axes, case.mask > 0, PREDICTION, (0, (4, 1.5)), 1.8, effects, is_clipped=False)
    if (box := box_of(case.row)) is not None:
        x1, y1, x2, y2 = (edge - 0.5 for edge in box)  # the centre of the first pixel is at 0
        frame = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=BOX, ls=(0, (1, 1.5)), lw=1.6)
        frame.set_path_effects(effects)
        axes.add_patch(frame)
    name, scored = case.scored.image, case.scored
    axes.set_title(f"{name}\nDice {scored.dice:.2f}: {kind_of_failure(scored, thing)}", fontsize=8)


def _legend(thing: str, with_photos: bool) -> list[Patch | Line2D]:
    inside = "none" if with_photos else OBJECT
    return [
        Patch(facecolor=inside, edgecolor=EDGE, label=f"truth: the {thing}"),
        Line2D([], [], color=PREDICTION, ls=(0, (4, 1.5)), lw=1.8, label="mask of the model"),
        Line2D([], [], color=BOX, ls=(0, (1, 1.5)), lw=1.6, label="box of the detector"),
    ]


def write_card(cases: Sequence[Case], card: Card, copies: set[str], document: Path) -> None:
    """Fill the blocks of a card and draw the picture beside it."""
    blocks: dict[str, Callable[[], str]] = {
        "results": lambda: render_results(cases, card, copies),
        "flags": lambda: render_flags(cases),
        "worst": lambda: render_worst(cases, card.thing),
        "files": lambda: render_files(card),
    }
    for name, render in blocks.items():
        write_block(document, name, render())
    draw_failures(worst(cases), card.thing, document.parent / PICTURE, with_photos=False)


METRICS = {"test_images": ("number", 1), "mean_dice": ("Dice, %", 100), "mean_iou": ("Jaccard, %", 100)}
"""Entries of ``eval_metrics``: the column of the card's results, and what its number is divided by."""


def card_metrics(document: Path) -> dict[str, float]:
    """The scores of all test images, as the card's table of results has them.

    Raises:
        click.ClickException: The card has no such table.
    """
    block = document.read_text(encoding="utf-8").partition("<!-- begin results -->")[2].partition("<!-- end")[0]
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in block.strip().splitlines()]
    row = next((dict(zip(lines[0], line, strict=True)) for line in lines if line[0] == "all"), None)
    if row is None:
        raise click.ClickException(f"{document} has no results of all test images; measure the bundle first")
    numbers = {name: float(row[column].split()[0]) / divisor for name, (column, divisor) in METRICS.items()}
    return {name: int(number) if name == "test_images" else round(number, 4) for name, number in numbers.items()}


def write_metrics(bundle: Path) -> None:
    """Copy the card's scores into the bundle's metadata; all other lines of ``metadata.json`` are unchanged.

    Raises:
        click.ClickException: Card or metadata lack the place.
    """
    metadata, metrics = bundle / "configs/metadata.json", card_metrics(bundle / "docs/README.md")
    rendered = json.dumps({"eval_metrics": metrics}, indent=4)[1:-1].strip()
    text = metadata.read_text(encoding="utf-8")
    changed, count = re.subn(r'"eval_metrics": \{[^{}]*\}', rendered, text)
    if count != 1:
        raise click.ClickException(f"{metadata} has {count} entries eval_metrics; expected one without any inside")
    with atomic_path(metadata) as temporary:
        temporary.write_text(changed, encoding="utf-8")


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--bundle", type=click.Choice(list(CARDS)), required=True)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="Keeps masks and scores.  [default: none]"
)
@click.option(
    "--photos",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also draw the panels over the photographs, into this folder; keep them out of the repository.",
)
def main(data: Path, bundle: str, output: Path | None, photos: Path | None) -> None:
    """Measure a bundle on its test images and fill its model card."""
    card = CARDS[bundle]
    with ExitStack() as stack:
        folder = output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        items = open_datalist(data / card.folder, "test")
        cases = measure(items, folder, bundle)
        check_weights(weights_of(folder / "segmented"), card)
    others = [item for name, part in card.others for item in open_datalist(data / name, part)]
    document = weights.bundles_folder() / bundle / "docs/README.md"
    write_card(cases, card, near_copies(items, others), document)
    write_metrics(document.parent.parent)
    register_bundles()
    click.echo(f"{document}: Dice {percent([case.scored.dice for case in cases])}")
    if photos is not None:
        draw_failures(worst(cases), card.thing, photos / f"{bundle}-{PICTURE}", with_photos=True)


if __name__ == "__main__":
    main()
