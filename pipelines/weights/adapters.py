"""Train the adapters that the bundles carry: the bundles' own bi-level training, on all examples.

    python -m pipelines.weights.adapters isic --data DATA -o RUN
    python -m pipelines.weights.adapters body --data DATA -o RUN
    python -m pipelines.weights.release model amsam_isic RUN

The base was trained on these images, so steps are smaller and batches larger than in few-shot training. Boxes come from
the bundle's detector and are jittered by its error on other images, because its error on its own training images is too
small. A run that was killed continues where it stopped when the same command is given again.
"""

from __future__ import annotations

from pathlib import Path

import click

from amsam_med import weights
from amsam_med.data.datalists import Item
from amsam_med.detect.yolo import load_detector
from amsam_med.domains import DOMAINS, Domain
from amsam_med.train import HISTORY, TrainOptions, train
from pipelines.domains import open_part
from pipelines.weights.detectors import as_one_person

TASKS = {domain.bundle.removeprefix("amsam_"): domain for domain in DOMAINS}


def examples(domain: Domain, data: Path, run: Path) -> list[Item]:
    """Its labelled images; masks that must be made go into the run's folder."""
    found: list[Item] = []
    for folder, part in domain.examples:
        items = open_part(data, (folder, part))
        found += as_one_person(items, run / "masks") if folder in domain.merged else items
    return found


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
        "data": examples(chosen, data, output)[:limit],
        "shots": None,
        "epochs": epochs,
        "batch_size": 8,
        "box_jitter": load_detector(weights.find(chosen.detector)).edge_error,
        **chosen.adapter_settings,
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
