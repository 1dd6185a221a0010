"""Dice of a base by kind of prompt: the true box, one centre point and no prompt, for each source of images.

    python -m pipelines.cards.prompts --data DATA --base tiny --document docs/embedded-models.md
    python -m pipelines.cards.prompts --data DATA --base tiny-general --document docs/embedded-models.md

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
from pipelines.markdown import table, write_block
from pipelines.weights.pretrain import validate
from pipelines.weights.scenes import MIXES, Bank

HEADER = ("held-out images of", "asked for", "images", "box", "centre point", "no prompt", "gain of the box")


@click.command(context_settings={"show_default": True})
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--base", type=click.Choice(COMPACT_BASES), default="tiny")
@click.option("--base-weights", type=click.Path(path_type=Path, exists=True), help="Another file of that base.")
@click.option("--most", default=60, help="Images a source.")
@click.option(
    "--document", type=click.Path(path_type=Path, exists=True), help="Where the table goes, between its marks."
)
def main(data: Path, base: str, base_weights: Path | None, most: int, document: Path | None) -> None:
    """Print the table of one base."""
    torch.manual_seed(0)
    file = base_weights or weights.find(base)
    network = build_amsam(base, rank=0, calibration="none", base_weights=file)
    rows = []
    for folder, items in Bank(data, MIXES[base], with_overlays=False).validation.items():
        for question, asked in validate(network, items, most).items():
            dice = [f"{value:.3f}" for value in asked]
            rows.append([folder, question, min(most, len(items)), *dice, f"{asked.box - asked.none:+.3f}"])
    text = f"`{base}`, sha256 {weights.sha256(file)[:12]}:\n\n{table(HEADER, rows)}"
    print(text)
    if document is not None:
        write_block(document, f"prompts {base}", text)


if __name__ == "__main__":
    main()
