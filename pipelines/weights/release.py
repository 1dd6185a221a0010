"""Put trained weights into their place in the package, with their sha256 on record.

    python -m pipelines.weights.release base tiny RUN/tiny.safetensors
    python -m pipelines.weights.release detector amsam_isic detectors/lesion.safetensors
    python -m pipelines.weights.release model amsam_isic RUN
    python -m pipelines.weights.release plain amsam_isic
    python -m pipelines.weights.release bundles

``model`` takes the run folder of a bundle's training and stores its best weights as the bundle's ``models/model.pt``;
``plain`` stores the base there as it is;
``bundles`` copies the figures of both model cards into the bundles' metadata, and records the sha256 of the shipped
bundles' configurations, after a change of theirs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from amsam_med import weights
from amsam_med.checkpoint import load_adapter, read_adapter, save_model
from amsam_med.domains import DOMAINS
from amsam_med.model import AmSam, build_amsam
from amsam_med.model.build import COMPACT_BASES
from amsam_med.trust import register_bundles

LARGEST = 25 * 1000**2
"""Bytes that a weight file in the repository may have."""
BASE = "tiny"
"""Of both bundles."""
DETECTORS = {domain.bundle: domain.detector for domain in DOMAINS}


@click.group()
def main() -> None:
    """Put trained weights into their place in the package."""


@main.command()
@click.argument("name", type=click.Choice(COMPACT_BASES))
@click.argument("file", type=click.Path(path_type=Path, exists=True))
def base(name: str, file: Path) -> None:
    """Release a pre-trained base; adapters trained on another base stop fitting."""
    build_amsam(name, base_weights=file)  # refuses a file that is not one
    _release(name, file)


@main.command()
@click.argument("bundle", type=click.Choice(list(DETECTORS)))
@click.argument("file", type=click.Path(path_type=Path, exists=True))
def detector(bundle: str, file: Path) -> None:
    """Release a bundle's box detector."""
    from amsam_med.detect.yolo import load_detector

    load_detector(file)
    _release(DETECTORS[bundle], file)


@main.command()
@click.argument("bundle", type=click.Choice(list(DETECTORS)))
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
def model(bundle: str, run: Path) -> None:
    """Release the best weights of a run as a bundle's model."""
    adapter = run / "adapter.safetensors"
    settings, record, _ = read_adapter(adapter)
    network = build_amsam(**settings, base_weights=weights.find(settings["base"]))
    load_adapter(network, adapter)
    _release_model(bundle, network)
    print(f"epoch {record['epoch']}, Dice on D2 {record['d2_dice']:.4f}")


@main.command()
@click.argument("bundle", type=click.Choice(list(DETECTORS)))
def plain(bundle: str) -> None:
    """Release the base itself as a bundle's model."""
    network = build_amsam(BASE, base_weights=weights.find(BASE))  # its LoRA is zero, so it computes what the base does
    _release_model(bundle, network)


@main.command()
def bundles() -> None:
    """Record the configurations of the shipped bundles as they are now: these run without being asked for trust."""
    from pipelines.cards.model_card import write_metrics  # here: it draws as well

    for bundle in DETECTORS:
        write_metrics(weights.bundles_folder() / bundle)
    register_bundles()


def _release_model(bundle: str, network: AmSam) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt"
        save_model(network, file)
        _release(bundle, file)


def _release(name: str, file: Path) -> None:
    if file.stat().st_size > LARGEST:
        raise click.ClickException(f"{file} has {file.stat().st_size} bytes, more than {LARGEST}; store it in fp16")
    place = weights.register(name, file)
    print(f"{name}: {place} ({place.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
