"""The domains of the shipped bundles, one entry each; all code that names a domain reads it from here.

A bundle's own properties are in its folder: its class and DICOM codes in ``configs/metadata.json``, its views and its
base in ``configs/train.yaml``. This file has everything around it: its name in lists, its detector, and the data sets
on which it is trained and evaluated.

Only the standard library is imported, because the command line needs this before it loads anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

DataPart: TypeAlias = tuple[str, str | None]
"""A folder of labelled images below the data folder, and the part of it; None where it has no parts."""


@dataclass(frozen=True)
class Domain:
    """A kind of object to segment, with its bundle and data sets.

    Attributes:
        bundle: Name of its bundle, a folder of ``bundles/``.
        things: The objects, in a few words for lists.
        where: The kind of images.
        detector: Registered name of its detector, whose file is the bundle's ``models/detector.safetensors``.
        titles: Titles in tables of the data sets it is evaluated on, by folder; the model card reports the part
            ``test`` of the first.
        examples: Training images of its adapter, and of the U-Net that is compared with it.
        validation: Images for model selection; if empty, a part of the examples is held out.
        also_learned: Further training images of its detector and base.
        merged: Folders whose masks have separate ids for parts of one object.
        adapter_settings: Entries of ``train.yaml`` for its adapter, which is trained on all examples.
        is_on_skin: Whether its card also reports results by skin tone and contrast.
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
        merged=frozenset({"pretrain/ccp"}),  # its ids are garments
        adapter_settings={"views": "mirror", "lower_rate": 2e-4, "upper_rate": 2e-4},
    ),
)
"""The first one's bundle is the default."""

DEFAULT_BUNDLE = DOMAINS[0].bundle


def domain_of(bundle: str) -> Domain:
    """The domain of a shipped bundle.

    Raises:
        KeyError: It has none.
    """
    return {domain.bundle: domain for domain in DOMAINS}[bundle]
