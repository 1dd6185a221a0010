"""``amsam demo``: everything once, on synthetic images."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(context_settings={"show_default": True})
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), default="demo", help="Folder to fill."
)
@click.option("--epochs", type=click.IntRange(min=1), default=100, help="Epochs of the adapter's training.")
def demo(output: Path, epochs: int) -> None:
    """Draw synthetic dermoscopy, segment it, train on eight images, and show the result on a page.

    Needs no network and no data: the model is embedded and the images are drawn. An earlier demo in the same folder is
    replaced.

    \b
    Example:
      amsam demo -o demo        then open demo/index.html
    """  # noqa: D301  # click's mark for "do not wrap" is the character backspace itself
    from rich.console import Console

    from amsam_med.demo import run_demo

    console = Console(stderr=True)
    result = run_demo(output, epochs, tell=lambda step: console.print(f"[bold]{step}[/bold] ..."))
    before, after = result.before.summary.dice, result.after.summary.dice
    click.echo(
        f"Dice on {result.before.summary.images} unseen synthetic images: {before:.3f} before, {after:.3f} after"
    )
    click.echo(f"adapter trained in {result.trained.seconds:.1f} s, everything in {result.seconds:.1f} s")
    click.echo(f"open {result.page}")
