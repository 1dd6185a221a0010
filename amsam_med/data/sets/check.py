"""Checks of every file of a data list before training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from amsam_med.boxes import Size
from amsam_med.data.readers import read_image, read_mask
from amsam_med.data.sets.pairs import Item
from amsam_med.errors import DataError

_SHOWN_NAMES = 5


@dataclass
class Findings:
    """Counts, sizes and errors of a list of pairs.

    Attributes:
        pair_count: How many pairs were read without a fault.
        smallest: (height, width) in pixels of the image with the fewest pixels; None before the first pair.
        largest: The same with the most pixels.
        empty_mask_count: Masks without any object.
        object_share: Mean share of object pixels, 0..1.
        faults: One line per file that cannot be used.
    """

    pair_count: int = 0
    smallest: Size | None = None
    largest: Size | None = None
    empty_mask_count: int = 0
    object_share: float = 0.0
    faults: list[str] = field(default_factory=list)


def check_items(items: Iterable[Item], num_classes: int = 1) -> Findings:
    """Decode every image and mask; faults are collected, not raised.

    Args:
        items: As :mod:`amsam_med.data.sets` lists them.
        num_classes: C; with one class masks are 0/255 or 0/1, with more they hold class ids 0..C.
    """
    findings = Findings()
    for item in items:
        try:
            _add_pair(findings, item, _values(num_classes))
        except DataError as error:
            findings.faults.append(str(error))
    return findings


def refuse_useless_masks(items: Sequence[Item], what: str, num_classes: int = 1) -> None:
    """Refuse examples from which nothing can be learned: no mask holds an object, or none holds background.

    Masks are read until both have been seen, for which one mask is usually enough.

    Args:
        items: Examples that serve one purpose.
        what: Their name, for the message.
        num_classes: As for :func:`check_items`.

    Raises:
        DataError: All masks are empty, or all are full; or one cannot be read.
    """
    has_object = has_background = False
    for item in items:
        mask = read_mask(item["label"], _values(num_classes))
        has_object |= bool(mask.any())
        has_background |= not mask.all()
        if has_object and has_background:
            return
    names = [Path(item["label"]).name for item in items]
    listed = ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
    if not has_object:
        raise DataError(
            f"all {len(items)} masks of {what} are empty ({listed}); an object must be marked in at least one. Look "
            "whether these are the right files and the object is not 0, or draw others with --seed or more --shots"
        )
    raise DataError(
        f"all {len(items)} masks of {what} are object from edge to edge ({listed}); at least one must hold background. "
        "Look whether these are the right files, and whether 0 is the background in them"
    )


def _values(num_classes: int) -> Sequence[int] | None:
    return range(num_classes + 1) if num_classes > 1 else None


def _add_pair(findings: Findings, item: Item, values: Sequence[int] | None) -> None:
    size: Size = read_image(item["image"]).meta["original_size"]
    share = float((read_mask(item["label"], values) > 0).mean())
    findings.object_share += (share - findings.object_share) / (findings.pair_count + 1)  # a running mean
    findings.pair_count += 1
    findings.empty_mask_count += share == 0
    findings.smallest = min(findings.smallest or size, size, key=lambda sides: sides[0] * sides[1])
    findings.largest = max(findings.largest or size, size, key=lambda sides: sides[0] * sides[1])
