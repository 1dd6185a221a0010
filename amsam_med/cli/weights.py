"""``amsam weights``: list, get and verify weight files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from amsam_med import weights as registry

if TYPE_CHECKING:
    from amsam_med.data.download import Step

_folder_option = click.option(
    "--weights-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar=registry.FOLDER_VARIABLE,
    show_envvar=True,
    help="A folder of weight files.",
)
_names_argument = click.argument("names", nargs=-1, metavar="[NAME]...")


@click.group()
def weights() -> None:
    """List, get and verify weight files.

    A name is looked for in the package, in --weights-dir, and in the cache of downloads.
    """


@weights.command("list")
@_folder_option
def list_weights(weights_dir: Path | None) -> None:
    """List all weights and where they are, without reading them."""
    for entry in registry.known().values():
        path = registry.locate(entry, weights_dir)
        click.echo(f"{entry.name:16} {_megabytes(entry.bytes):>10}  {entry.what:34} {path or 'missing'}")
        click.echo(f"{'':29}licence: {entry.licence}")


@weights.command()
@_names_argument
@_folder_option
@click.option("--base-url", help="A mirror's folder that holds the files.  [default: the publisher's]")
@click.pass_context
def get(ctx: click.Context, names: tuple[str, ...], weights_dir: Path | None, base_url: str | None) -> None:
    """Download weights, by name, unless they are there already."""
    if not names:
        raise click.UsageError(f"name at least one of {', '.join(registry.known())}", ctx)
    for name in names:
        click.echo(f"{name}: {_get_one(name, weights_dir, base_url)}")


@weights.command()
@_names_argument
@_folder_option
@click.pass_context
def verify(ctx: click.Context, names: tuple[str, ...], weights_dir: Path | None) -> None:
    """Compare files with their sha256.

    Without names: all weights that are there. Exit code 1 if a file is damaged, unregistered, or named and missing.
    """
    states = registry.State
    is_faulty = False
    for entry, path, state in registry.verify(names, weights_dir):
        click.echo(f"{entry.name:16} {state:12} {path or ''}".rstrip())
        is_faulty |= state is not states.OK and (bool(names) or state is not states.MISSING)
    ctx.exit(1 if is_faulty else 0)


def _get_one(name: str, folder: Path | None, base_url: str | None) -> Path:
    with click.progressbar(length=1, label=name, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:

        def show(step: Step) -> None:
            bar.length = step.total or step.done
            bar.update(step.done - bar.pos)

        return registry.get(name, folder, base_url, show)


def _megabytes(length: int | None) -> str:
    return "?" if length is None else f"{length / 1e6:,.1f} MB"
