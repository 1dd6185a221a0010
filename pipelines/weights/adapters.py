"""Train the adapters that the bundles carry: the bundles' own bi-level training, on all examples.

    python -m pipelines.weights.adapters isic --data DATA -o RUN
    python -m pipelines.weights.adapters body --data DATA -o RUN
    python -m pipelines.weights.release model amsam_isic RUN

The base has seen these images already, so steps are smaller and batches larger than in few-shot training. Boxes come
from the bundle's detector and are moved as it errs on images that it has not learned from: on those that it has
learned from it errs too little. A run that is killed continues where it stopped when the same command is given again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from amsam_med import weights
from amsam_med.data.datalists import Item, folder_datalist, human_vikram_datalist, isic2018_datalist
from amsam_med.detect.yolo import load_detector
from amsam_med.train import HISTORY, TrainOptions, train
from pipelines.weights.detectors import as_one_person


class Task(NamedTuple):
    """What a bundle's adapter is trained with.

    Attributes:
        bundle: The bundle.
        detector: Registered name of its detector.
        examples: The labelled images, from the data folder; masks that must be made go into the run's folder.
        settings: Entries of the training configuration.
    """

    bundle: str
    detector: str
    examples: Callable[[Path, Path], list[Item]]
    settings: dict[str, Any]


def lesions(data: Path, _run: Path) -> list[Item]:
    """ISIC 2018's training part."""
    return isic2018_datalist(data / "isic2018", "train")


def people(data: Path, run: Path) -> list[Item]:
    """Human (Vikram)'s training part, and clothing photos, whose garments together are a person."""
    clothing = as_one_person(folder_datalist(data / "pretrain/ccp"), run / "masks")
    return [*human_vikram_datalist(data / "human_vikram", "train"), *clothing]


TASKS = {
    "isic": Task("amsam_isic", "lesion-detector", lesions, {"views": "mirror", "lower_rate": 5e-4, "upper_rate": 2e-4}),
    "body": Task("amsam_body", "person-detector", people, {"views": "mirror", "lower_rate": 2e-4, "upper_rate": 2e-4}),
}


@click.command(context_settings={"show_default": True})
@click.argument("task", type=click.Choice(list(TASKS)))
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--epochs", default=6)
@click.option("--limit", type=int, help="Only the first so many examples, for a try.")
def main(task: str, data: Path, output: Path, epochs: int, limit: int | None) -> None:
    """Train a bundle's adapter on all of its examples."""
    chosen = TASKS[task]
    overrides = {
        "data": chosen.examples(data, output)[:limit],
        "shots": None,
        "epochs": epochs,
        "batch_size": 8,
        "box_jitter": load_detector(weights.find(chosen.detector)).edge_error,
        **chosen.settings,
    }
    result = train(
        data,
        output,
        TrainOptions(chosen.bundle, overrides, resume=(output / HISTORY).exists()),
        epoch_progress=lambda epoch, total, dice: print(f"epoch {epoch}/{total}: Dice on D2 {dice:.4f}", flush=True),
    )
    print(f"best Dice on D2 {result.best_dice:.4f} in epoch {result.best_epoch}, {result.seconds:.0f} s")


if __name__ == "__main__":
    main()
