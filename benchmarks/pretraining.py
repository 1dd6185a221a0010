"""Which encoder, input size and recipe the compact base is pre-trained with: short runs of equal CPU time.

    python -m benchmarks.pretraining encoders --data DATA -o RUNS
    python -m benchmarks.pretraining sizes --data DATA -o RUNS
    python -m benchmarks.pretraining recipes --data DATA -o RUNS --minutes 4 --document docs/embedded-models.md
    python -m benchmarks.pretraining strides --data DATA --document docs/embedded-models.md

Every row is a run of ``pipelines.weights.pretrain`` on one thread that gets the same minutes of CPU time; a run that
was stopped is continued, and a finished one is not repeated. Dice is that of held-out images, at stored size: of all
sources with a whole object (no prompt), and of parts of images with several masks (the truth's box). Milliseconds are
those of encoder and decoder for one image on one thread, as it is shipped: let nothing else run beside it. The last
line names the best. ``strides`` trains nothing: it says what the size of the logits costs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from amsam_med.data.datalists import human_vikram_datalist, isic2018_datalist
from amsam_med.data.readers import read_mask
from amsam_med.data.transforms import restore_original
from amsam_med.evaluate import dice_score
from amsam_med.model import AmSam, build_amsam
from amsam_med.model.encoders import CompactImageEncoder
from amsam_med.threads import kept_threads, set_threads
from pipelines.markdown import table, write_block
from pipelines.weights.pretrain import STAGES, Recipe

ENCODERS = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
RECIPES = {
    "the recipe": (),
    "no average of the weights": ("--ema", "0"),
    "one prompt besides none": ("--prompts", "2"),
    "five prompts": ("--prompts", "5"),
    "no second round": ("--no-second-round",),
    "no hair, no rulers": ("--no-overlays",),
    "nothing pasted": ("--no-pasted",),
    "Dice and cross-entropy 1:1": ("--lambda-dice", "0.5"),
}
FIRST_SIZE, LAST_SIZE = (size for size, _ in STAGES)
SIZES = (256, 320, 384)
GRIDS = (64, 80, 96, 128)
"""Sides of the logits: of inputs of 256, 320 and 384 px at stride 4, and of 256 px at stride 2."""
MEASURED = ("steps", "Dice, no prompt", "Dice of parts, box")


class Outcome(NamedTuple):
    """What a run reached.

    Attributes:
        steps: Of the optimiser.
        none: Mean Dice over the sources with whole objects, without a prompt, in [0, 1].
        box: Mean Dice over the sources with parts, with the truth's box.
    """

    steps: int
    none: float
    box: float


_data = click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
_output = click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the runs.")
_minutes = click.option("--minutes", default=20.0, show_default=True, help="CPU time of each run.")
_document = click.option(
    "--document", type=click.Path(path_type=Path, exists=True), help="Where the table goes, between its marks."
)


@click.group()
def main() -> None:
    """Compare encoders, input sizes, or recipes, by short runs of equal CPU time."""


@main.command()
@_data
@_output
@_minutes
@_document
def encoders(data: Path, output: Path, minutes: float, document: Path | None) -> None:
    """Encoders by timm's names, all else equal."""
    rows, reached = [], {}
    for name in ENCODERS:
        outcome = reached[name] = _run(data, output / name, minutes, ("--backbone", name))
        network = _network(name, LAST_SIZE)
        millions = sum(parameter.numel() for parameter in network.image_encoder.parameters()) / 1e6
        rows.append([f"`{name}`", f"{millions:.1f} M", f"{_milliseconds(network):.1f}", *_cells(outcome)])
    _show("encoders", ["encoder", "parameters", "ms per image", *MEASURED], rows, reached, document)


@main.command()
@_data
@_output
@_minutes
@_document
def sizes(data: Path, output: Path, minutes: float, document: Path | None) -> None:
    """Sides of the input in a run's last stage, in pixels."""
    rows, reached = [], {}
    for size in SIZES:
        folder = output / (Recipe.backbone if size == LAST_SIZE else f"size-{size}")
        outcome = reached[f"{size} px"] = _run(data, folder, minutes, ("--sizes", str(FIRST_SIZE), str(size)))
        rows.append([f"{size} px", f"{_milliseconds(_network(Recipe.backbone, size)):.1f}", *_cells(outcome)])
    _show("sizes", ["input", "ms per image", *MEASURED], rows, reached, document)


@main.command()
@_data
@_output
@_minutes
@_document
def recipes(data: Path, output: Path, minutes: float, document: Path | None) -> None:
    """The recipe, and what each of its parts is worth."""
    reached = {}
    for name, options in RECIPES.items():
        folder = output / (Recipe.backbone if not options else "_".join(options).strip("-"))
        reached[name] = _run(data, folder, minutes, options)
    rows = [[name, *_cells(outcome)] for name, outcome in reached.items()]
    _show("recipes", ["recipe", *MEASURED], rows, reached, document)


@main.command()
@_data
@_document
def strides(data: Path, document: Path | None) -> None:
    """The best Dice that logits of a size can reach: of masks that are averaged onto that grid and brought back."""
    header, rows = ["logits"], [[f"{side} x {side}"] for side in GRIDS]
    ours = {
        "isic2018/val": isic2018_datalist(data / "isic2018", "val"),
        "human_vikram, train": human_vikram_datalist(data / "human_vikram", "train"),
    }
    for name, items in ours.items():
        header.append(f"{name}, {len(items)} masks")
        ceilings = torch.tensor([_ceilings(read_mask(Path(item["label"]))) for item in items]).mean(dim=0).tolist()
        for row, ceiling in zip(rows, ceilings, strict=True):
            row.append(f"{ceiling:.4f}")
    text = table(header, rows)
    print(text)
    if document is not None:
        write_block(document, "strides", text)


def _ceilings(ids: NDArray[np.uint8]) -> list[float]:
    """Dice in [0, 1] of a mask ``(H, W)`` with itself on each of the :data:`GRIDS`."""
    truth = torch.from_numpy(ids > 0)
    pixels = truth[None, None].float()
    dices = []
    for side in GRIDS:
        share = functional.interpolate(pixels, size=(side, side), mode="area")
        mask = restore_original(torch.cat([1 - share, share], dim=1)[0], (truth.shape[0], truth.shape[1]))
        dices.append(dice_score(mask, truth))
    return dices


def _show(
    what: str, header: list[str], rows: list[list[str]], reached: Mapping[str, Outcome], document: Path | None
) -> None:
    """Print the table and the best row's name, and put the table into a document."""
    text = table(header, rows)
    print(text)
    if document is not None:
        write_block(document, what, text)
    best = max(reached, key=lambda name: reached[name].none + reached[name].box)
    print(f"best by the sum of both: {best}")


def _run(data: Path, folder: Path, minutes: float, options: tuple[str, ...]) -> Outcome:
    """Do a run or what is left of it, or read what it did."""
    log = folder / "log.jsonl"
    if not log.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pipelines.weights.pretrain", "--data", str(data), "-o", str(folder)]
        command += ["--cpu-time", "--minutes", str(minutes), "--validate-every", "1000000", *options]
        with (folder / "log.txt").open("a") as output:
            subprocess.run(command, check=True, stdout=output, env={**os.environ, "OMP_NUM_THREADS": "1"})  # noqa: S603  # a fixed list of words, no shell
    last = json.loads(log.read_text().splitlines()[-1])
    scores = [score for by_question in last["dice"].values() for score in by_question.items()]
    none = [dice["none"] for question, dice in scores if question == "whole"]
    box = [dice["box"] for question, dice in scores if question == "parts"]
    return Outcome(last["step"], sum(none) / len(none), sum(box) / len(box))


def _network(backbone: str, size: int) -> AmSam:
    """A network as it is used: its encoder's branches and norms merged."""
    network = build_amsam("tiny", input_size=size, rank=0, calibration="none")
    network.image_encoder = CompactImageEncoder(size, backbone_name=backbone)
    return network.eval().to(memory_format=torch.channels_last)


@torch.no_grad()
def _milliseconds(network: AmSam, rounds: int = 25) -> float:
    """Of the median image with a box, on one thread."""
    size = network.input_size
    image = torch.rand(1, 3, size, size).contiguous(memory_format=torch.channels_last)
    box = torch.tensor([[0.2, 0.2, 0.8, 0.8]]) * size
    seconds = []
    with kept_threads():
        set_threads(1)
        for _ in range(rounds):
            start = time.perf_counter()
            network(image, box)
            seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def _cells(outcome: Outcome) -> list[str]:
    return [f"{outcome.steps:,}", f"{outcome.none:.3f}", f"{outcome.box:.3f}"]


if __name__ == "__main__":
    main()
