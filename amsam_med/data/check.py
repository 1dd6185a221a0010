"""A look at every file of a data list before anything is trained on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from amsam_med.boxes import Size
from amsam_med.data.datalists import Item
from amsam_med.data.readers import read_image, read_mask
from amsam_med.errors import DataError


@dataclass
class Findings:
    """What a list of pairs holds.

    Attributes:
        pair_count: How many pairs were read without a fault.
        smallest: (height, width) in pixels of the image with the fewest pixels; None before the first pair.
        largest: The same with the most pixels.
        empty_mask_count: Masks without any object.
        object_share: Mean share of object pixels, 0..1.
        faults: One line a file that cannot be used.
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
        items: As :mod:`amsam_med.data.datalists` lists them.
        num_classes: C; with one class masks are 0/255 or 0/1, with more they hold class ids 0..C.
    """
    values = range(num_classes + 1) if num_classes > 1 else None
    findings = Findings()
    for item in items:
        try:
            _add_pair(findings, item, values)
        except DataError as error:
            findings.faults.append(str(error))
    return findings


def _add_pair(findings: Findings, item: Item, values: Sequence[int] | None) -> None:
    size: Size = read_image(item["image"]).meta["original_size"]
    share = float((read_mask(item["label"], values) > 0).mean())
    findings.object_share += (share - findings.object_share) / (findings.pair_count + 1)  # a running mean
    findings.pair_count += 1
    findings.empty_mask_count += share == 0
    findings.smallest = min(findings.smallest or size, size, key=lambda sides: sides[0] * sides[1])
    findings.largest = max(findings.largest or size, size, key=lambda sides: sides[0] * sides[1])
