"""Options that several sub-commands share, so that they mean and say the same everywhere."""

from __future__ import annotations

from pathlib import Path

import click

_file = click.Path(exists=True, dir_okay=False, path_type=Path)

labelled_data = click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Labelled images: a folder with images/ and masks/, ISIC 2018, Human (Vikram) or TikTok.",
)
adapter = click.option(
    "--adapter", type=_file, help="An adapter that `amsam train` wrote, instead of the bundle's own model."
)
adapters_base = click.option(
    "--base-weights", type=_file, help="The base that the adapter was trained on.  [default: the one it names]"
)
detector = click.option("--detector", metavar="NAME|FILE|none", help="Finds the boxes.  [default: the bundle's]")
device = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
test_views = click.option(
    "--test-views",
    type=click.Choice(["none", "mirror", "all"]),  # of amsam_med.views.ViewKind
    help="Average over the image and its mirror image (twice the time), or all eight flips and turns (eight times).  "
    "[default: the bundle's, which is none]",
)
