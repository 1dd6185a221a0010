"""``amsam bundle``: make a bundle for a task of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from amsam_med.choices import ViewKind
from amsam_med.cli import options
from amsam_med.domains import DEFAULT_BUNDLE


@click.group()
def bundle() -> None:
    """Make a bundle for a task of your own.

    A bundle is a folder with all that a model is but its images: configurations, metadata, weights, documentation. Two
    are shipped (`amsam info` lists them); a new one begins as a copy of one of them.
    """


@bundle.command(no_args_is_help=True)
@click.argument("folder", metavar="NAME", type=click.Path(path_type=Path))
@click.option(
    "--from", "source", metavar="NAME|PATH", default=DEFAULT_BUNDLE, show_default=True, help="The bundle to begin with."
)
@options.trust_bundle
@click.option("--class-name", default="object", show_default=True, help="What is outlined, as in 'foot ulcer'.")
@click.option("--description", default="", help="One sentence for the metadata.  [default: made of the class name]")
@click.option(
    "--views",
    type=click.Choice(get_args(ViewKind)),
    help="What augments training: all eight flips and turns, the mirror image alone for what is never upside down, or "
    "nothing.  [default: the source's]",
)
@click.option(
    "--detector",
    metavar="NAME|FILE|none",
    default="none",
    show_default=True,
    help="Finds the boxes; its file is copied. Without one the network works without boxes (--prompt none).",
)
def new(
    folder: Path,
    source: str,
    trust_bundle: bool,
    class_name: str,
    description: str,
    views: ViewKind | None,
    detector: str,
) -> None:
    """Write the bundle NAME, a new folder, that can be trained at once.

    It has the configurations of the bundle that it is made from, its base, and metadata of its own; no model yet. As it
    is made here from a trusted bundle, it is trusted on this machine.

    \b
    Example: foot ulcers, from eight photographs with masks
      amsam bundle new ulcers --class-name "foot ulcer"
      amsam train --data PHOTOS -o run --bundle ulcers
      amsam segment IMAGES -o masks --bundle ulcers --adapter run/adapter.safetensors
      amsam evaluate --data TEST -o scores --bundle ulcers --adapter run/adapter.safetensors

    \b
    With boxes, of a detector trained on more images:
      amsam detector train --data PHOTOS -o ulcer.safetensors --class-name ulcer
      amsam bundle new ulcers --class-name "foot ulcer" --detector ulcer.safetensors

    \b
    People, cars and trees are never upside down:
      amsam bundle new workers --from amsam_body --class-name worker

    docs/README.md in the new folder and a few entries of its configs/metadata.json are yours to fill in.
    """  # noqa: D301  # click's mark for "do not wrap" is the character backspace itself
    from amsam_med.new_bundle import Task, new_bundle

    wanted = None if detector == "none" else detector
    task = Task(class_name, description, views, wanted)
    made = new_bundle(folder, task, options.trusted(source, trust_bundle))
    boxes = "no detector: works without boxes (prompt none)" if wanted is None else "boxes of its own detector"
    click.echo(f"{made}: {class_name}, from {source}; {boxes}")
    click.echo(f"Train it with: amsam train --data DATA -o RUN --bundle {made}")
