"""Options that several sub-commands share, so that they mean and say the same everywhere."""

from __future__ import annotations

import sys
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
trust_bundle = click.option(
    "--trust-bundle",
    is_flag=True,
    help="Let the bundle's configuration run, now and from now on as long as it stays as it is: a bundle is code. "
    "Shipped bundles need no trust.",
)


def trusted(bundle: str, is_trusted_now: bool) -> str:
    """A bundle whose user trusts it, or is asked at the prompt; where nobody can answer, opening it is refused.

    Args:
        bundle: Name or folder.
        is_trusted_now: Whether ``--trust-bundle`` was given.
    """
    from amsam_med.bundle import locate_bundle
    from amsam_med.errors import DataError
    from amsam_med.trust import bundle_digest, is_trusted, trust

    try:
        root = locate_bundle(bundle)
    except DataError:
        return bundle  # the verb says that there is none
    if is_trusted(root):
        return bundle
    if not is_trusted_now and sys.stdin is not None and sys.stdin.isatty():
        click.echo(
            f"{root} is none of the shipped bundles. Its configuration is code that runs on this machine:", err=True
        )
        click.echo(f"  {root / 'configs'}\n  sha256 {bundle_digest(root)}", err=True)
        is_trusted_now = click.confirm("Do you trust its source? The answer yes is remembered.", err=True)
    if is_trusted_now:
        trust(root)
    return bundle
