"""How much a prompt is worth to a base: Dice with the truth's box, one centre point and no prompt, source by source.

    python -m pipelines.prompts --data DATA --base tiny
    python -m pipelines.prompts --data DATA --base tiny-general

The images are those that pre-training held out. Where an image holds several masks, its largest and its median part are
asked for one at a time, so that only the prompt says which is meant.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch

from amsam_med import weights
from amsam_med.model import build_amsam
from amsam_med.model.build import COMPACT_BASES
from pipelines.pretrain import validate
from pipelines.scenes import MIXES, Bank


@click.command(context_settings={"show_default": True})
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--base", type=click.Choice(COMPACT_BASES), default="tiny")
@click.option("--base-weights", type=click.Path(path_type=Path, exists=True), help="Another file of that base.")
@click.option("--most", default=60, help="Images a source.")
def main(data: Path, base: str, base_weights: Path | None, most: int) -> None:
    """Print the table of one base."""
    torch.manual_seed(0)
    file = base_weights or weights.find(base)
    network = build_amsam(base, rank=0, calibration="none", base_weights=file)
    print(f"`{base}`, sha256 {weights.sha256(file)[:12]}\n")
    print("| held-out images of | asked for | images | box | centre point | no prompt | gain of the box |")
    print("|---|---|---|---|---|---|---|")
    for folder, items in Bank(data, MIXES[base], with_overlays=False).validation.items():
        for question, asked in validate(network, items, most).items():
            dice = f"{asked.box:.3f} | {asked.point:.3f} | {asked.none:.3f}"
            count = min(most, len(items))
            print(f"| {folder} | {question} | {count} | {dice} | {asked.box - asked.none:+.3f} |", flush=True)


if __name__ == "__main__":
    main()
