"""Shared code of the reporting scripts: segmenting a folder with the product, and scoring its masks.

Scores are taken from the mask files that ``amsam segment`` writes, at the size of the masks; means, intervals and Dice
are those of :mod:`amsam_med.evaluate`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torchvision.ops import box_iou

from amsam_med.boxes import box_from_mask
from amsam_med.data.datalists import image_stem
from amsam_med.data.readers import read_mask
from amsam_med.data.tables import read_table
from amsam_med.evaluate import bootstrap_interval, dice_score
from amsam_med.files import atomic_path
from amsam_med.infer import NOT_FOUND
from amsam_med.segment import SegmentOptions, segment
from amsam_med.segment.journal import RESULTS, Cells, read_run

Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class Scored:
    """One segmented image with its scores.

    Attributes:
        image: Stem of its file.
        dice: In [0, 1].
        iou: Intersection over union, in [0, 1].
        box_iou: Of the box that the network was given with the box of the truth, in [0, 1]; None without either.
        truth_percent: Share of the image that the object truly covers, in percent.
        area_percent: Share of the image that the mask covers, in percent.
        has_no_box: The detector found nothing, and the mask was drawn without a box.
        flags: The product's own doubts, joined by ";"; None where its table has no such column.
    """

    image: str
    dice: float
    iou: float
    box_iou: float | None
    truth_percent: float
    area_percent: float
    has_no_box: bool
    flags: str | None

    @property
    def is_flagged(self) -> bool:
        """Whether the product doubts its mask."""
        return bool(self.flags)

    @property
    def is_empty(self) -> bool:
        """Whether the mask is empty."""
        return self.area_percent == 0


def segment_files(images: Sequence[Path], output: Path, bundle: str) -> dict[str, Cells]:
    """Segment with the product, skipping what an earlier call has done; rows of ``results.csv`` by image stem.

    Raises:
        click.ClickException: An image could not be segmented.
    """
    summary = segment(images, output, SegmentOptions(bundle=bundle, formats=("png",)))
    if summary.failed or summary.is_interrupted:
        fault = "; ".join(f"{file}: {error}" for file, error in summary.failures) or "the run was interrupted"
        raise click.ClickException(f"{summary.failed} of {summary.images} images were not segmented: {fault}")
    return {image_stem(row["file"]): row for row in read_table(output / RESULTS)}


def score(row: Cells, output: Path, truth: Mask) -> Scored:
    """Compare a mask of :func:`segment_files` with the truth, uint8 ``(H, W)`` of 0 and 1."""
    dice = dice_score(torch.from_numpy(read_mask(output / row["mask_file"])), torch.from_numpy(truth))
    return Scored(
        image=image_stem(row["file"]),
        dice=dice,
        iou=dice / (2 - dice),  # the same for two masks, whatever they are
        box_iou=box_overlap(box_of(row), truth),
        truth_percent=100 * float((truth > 0).mean()),
        area_percent=float(row["area_percent"]),
        has_no_box=row["box_source"] == NOT_FOUND,
        flags=row.get("flags"),
    )


def box_of(row: Cells) -> tuple[float, float, float, float] | None:
    """The box of a row, xyxy pixels of the image; None where the network worked without one."""
    edges = [row[f"box_{edge}_px"] for edge in ("x1", "y1", "x2", "y2")]
    if not all(edges):
        return None
    x1, y1, x2, y2 = map(float, edges)
    return x1, y1, x2, y2


def box_overlap(box: tuple[float, float, float, float] | None, truth: Mask) -> float | None:
    """IoU of a box with the box of the truth; None if there is no box or nothing true."""
    true_box = box_from_mask(torch.from_numpy(truth))
    if box is None or true_box is None:
        return None
    return float(box_iou(torch.tensor([box]), true_box[None]))


def write_scores(scores: Iterable[Scored], path: Path) -> None:
    """Write a table that :func:`read_scores` reads."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[column.name for column in fields(Scored)])
        writer.writeheader()
        for entry in scores:
            writer.writerow({**asdict(entry), "flags": "unknown" if entry.flags is None else entry.flags})


def read_scores(path: Path) -> list[Scored]:
    """Read what :func:`write_scores` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Scored(
                image=row["image"],
                dice=float(row["dice"]),
                iou=float(row["iou"]),
                box_iou=float(row["box_iou"]) if row["box_iou"] else None,
                truth_percent=float(row["truth_percent"]),
                area_percent=float(row["area_percent"]),
                has_no_box=row["has_no_box"] == "True",
                flags=None if row["flags"] == "unknown" else row["flags"],
            )
            for row in csv.DictReader(file)
        ]


def weights_of(output: Path) -> dict[str, str]:
    """The sha256 of the files that a segmentation run used, by their part: ``model`` and ``detector``."""
    run = read_run(output)
    if run is None:
        raise click.ClickException(f"{output} holds no run of amsam segment; run this script without `table` first")
    found = run.fingerprint["weights"]
    return {part: str(sha256) for part, sha256 in found.items() if sha256} if isinstance(found, dict) else {}


def percent(values: ArrayLike, digits: int = 1, sign: str = "") -> str:
    """The mean of shares in percent, with its 95 % bootstrap interval: ``87.6 (86.1 to 89.0)``."""
    shares = np.asarray(values, dtype=np.float64)
    # A small negative number would be shown as -0.0 but for the addition.
    found: tuple[float, ...] = (shares.mean(), *bootstrap_interval(shares))
    mean, low, high = (round(100 * value, digits) + 0.0 for value in found)
    form = f"{sign}.{digits}f"
    return f"{mean:{form}} ({low:{form}} to {high:{form}})"
