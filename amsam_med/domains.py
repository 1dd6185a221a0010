"""The domains that the shipped bundles are for, one entry each; whatever names one of them asks here.

What belongs to a bundle stands in its folder: its class and the codes of it for DICOM in ``configs/metadata.json``,
which views make sense and on which base it is in ``configs/train.yaml``. What belongs to the work around it stands
here: what it is called in lists, its detector, and on which data sets it is trained and measured.

Nothing is imported but the standard library: the command line asks before it loads anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

DataPart: TypeAlias = tuple[str, str | None]
"""A folder of labelled images below the data folder, and the part of it; None where it has no parts."""


@dataclass(frozen=True)
class Domain:
    """Something that is segmented.

    Attributes:
        bundle: Name of its bundle, a folder of ``bundles/``.
        things: What it outlines, in a few words for lists.
        where: In which images.
        detector: Registered name of its detector, whose file is the bundle's ``models/detector.safetensors``.
        titles: Data sets that it is measured on, by folder, as tables print them; the card is about the part ``test``
            of the first.
        examples: What its adapter, and a rival that learns from scratch, are trained on.
        validation: What is selected by; where there is none, a part of the examples is held out.
        also_learned: What detector and base have learned from besides.
        merged: Folders whose masks tell parts of a thing apart, which together are one object.
        adapter_settings: Entries of ``train.yaml`` for its adapter, which learns from all examples.
        is_on_skin: Its card also counts by skin tone and contrast.
    """

    bundle: str
    things: str
    where: str
    detector: str
    titles: Mapping[str, str]
    examples: tuple[DataPart, ...]
    validation: DataPart | None = None
    also_learned: tuple[DataPart, ...] = ()
    merged: frozenset[str] = frozenset()
    adapter_settings: Mapping[str, object] = field(default_factory=dict)
    is_on_skin: bool = False

    @property
    def data_set(self) -> str:
        """The data set that its card is about."""
        return next(iter(self.titles))


DOMAINS = (
    Domain(
        bundle="amsam_isic",
        things="skin lesions",
        where="dermoscopy",
        detector="lesion-detector",
        titles={"isic2018": "ISIC 2018"},
        examples=(("isic2018", "train"),),
        validation=("isic2018", "val"),
        also_learned=(("ham10000", None),),
        adapter_settings={"views": "mirror", "lower_rate": 5e-4, "upper_rate": 2e-4},
        is_on_skin=True,
    ),
    Domain(
        bundle="amsam_body",
        things="people",
        where="photographs",
        detector="person-detector",
        titles={"human_vikram": "Human (Vikram)", "tiktok": "TikTok body"},
        examples=(("human_vikram", "train"), ("pretrain/ccp", None)),
        merged=frozenset({"pretrain/ccp"}),  # garments
        adapter_settings={"views": "mirror", "lower_rate": 2e-4, "upper_rate": 2e-4},
    ),
)
"""The first one's bundle is used where nobody names any."""

DEFAULT_BUNDLE = DOMAINS[0].bundle


def domain_of(bundle: str) -> Domain:
    """The domain of a shipped bundle.

    Raises:
        KeyError: It has none.
    """
    return {domain.bundle: domain for domain in DOMAINS}[bundle]
