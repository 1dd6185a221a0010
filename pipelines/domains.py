"""Facts about a domain beyond its entry in :mod:`amsam_med.domains`: its bundle's settings, and its images."""

from __future__ import annotations

import json
from pathlib import Path

from amsam_med.bundle_settings import as_configured
from amsam_med.data.datalists import Item, open_datalist
from amsam_med.domains import DOMAINS, DataPart, Domain
from amsam_med.weights import locate_bundle

MEASURED = {data_set: domain for domain in DOMAINS for data_set in domain.titles}
"""Domains by the data sets on which they are evaluated."""


def class_name(domain: Domain) -> str:
    """What the bundle's first class is called."""
    metadata = json.loads((locate_bundle(domain.bundle) / "configs" / "metadata.json").read_text(encoding="utf-8"))
    return str(metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["1"])


def is_upright(domain: Domain) -> bool:
    """Whether its things have an up side: the bundle then trains on fewer views than all."""
    return bool(as_configured(domain.bundle, "train.yaml")["views"] != "all")


def base_of(domain: Domain) -> str:
    """Name of the base that its bundle is trained on."""
    return str(as_configured(domain.bundle, "train.yaml")["base"])


def open_part(data: Path, part: DataPart) -> list[Item]:
    """The labelled images of a part of a data set.

    Raises:
        DataError: It is not there, or has faults.
    """
    return open_datalist(data / part[0], part[1])
