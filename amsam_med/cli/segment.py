"""``amsam segment``: masks for images, folders, archives and DICOM."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from amsam_med.choices import FormatName
from amsam_med.cli import options
from amsam_med.cli.endings import tidy_end
from amsam_med.options import NO_PICTURES, SegmentOptions

if TYPE_CHECKING:
    from amsam_med.segment import Progress, SegmentSummary, Step

FORMAT_NAMES: tuple[FormatName, ...] = get_args(FormatName)
"""Of amsam_med.segment.formats.FORMATS, which --help need not load."""


def _format_names(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(word.strip() for word in value.split(",")))
    if unknown := [name for name in names if name not in (*FORMAT_NAMES, NO_PICTURES)]:
        known = ", ".join((*FORMAT_NAMES, NO_PICTURES))
        raise click.BadParameter(f"unknown {', '.join(map(repr, unknown))}; known are {known}")
    return tuple(name for name in names if name != NO_PICTURES)


def _existing(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if value.startswith("dicomweb:"):
            continue
        shown = repr(value if len(value) <= 200 else f"{value[:100]}...{value[-60:]}")
        try:
            os.stat(value)
        except FileNotFoundError:
            raise click.BadParameter(f"path {shown} does not exist.") from None
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise click.BadParameter(f"path {shown} cannot be used: {why}.") from None
    return values


@click.command(no_args_is_help=True)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True, callback=_existing)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for the results; made if missing.",
)
@options.of(
    SegmentOptions,
    formats={"callback": _format_names, "default": ",".join(SegmentOptions.formats), "show_default": True},
)
@click.pass_context
def segment(ctx: click.Context, /, inputs: tuple[str, ...], output: Path, trust_bundle: bool, **given: Any) -> None:
    """Segment images, folders, archives and DICOM.

    A detector finds the object in each image and its box prompts the network: there is nothing to click. INPUT is an
    image file (PNG, JPEG, TIFF, BMP, WebP, GIF, NIfTI, DICOM), a zip archive of such, a folder, which is searched with
    its sub-folders, or a query to a DICOMweb server. Frames, pages and slices are pictures of their own.

    \b
    Examples:
      amsam segment photo.jpg -o out
      amsam segment photos/ more/scan.dcm -o out --format png
      amsam segment photos/ -o out --adapter run/adapter.safetensors
      amsam segment studies/ -o out --format png,dicom-seg,dicom-sr
      amsam segment "dicomweb:http://127.0.0.1:8042/dicom-web?StudyInstanceUID=1.2.3" \\
          -o out --format dicom-seg --store

    \b
    The output folder then holds:
      report.html                             all results to look at, filter and sort
      masks/SUBFOLDER/NAME_segmentation.png   0 and 255, in the image's own size
      overlays/SUBFOLDER/NAME_overlay.jpg     outline and box over the image
      contours/, nifti/, dicom_seg/, dicom_sr/  where they are asked for
      results.csv                             box, measurements, confidence, flags or error of every picture
      run.json                                weights, settings, versions, counts
      journal.sqlite                          what is done, for the next run

    Look at the images that are flagged: there the detector found nothing, box and mask disagree, or the mask is unsure
    or empty. Their overlays say so in words and have a dashed box.

    The same command again goes on where it was stopped, however that was: files that are done are skipped. Files that
    cannot be read are listed with their error and do not stop the others. Of files with one name, as a.jpg and a.png,
    the first keeps it and the next is written as a.png_segmentation.png.

    Exit codes: 0 all images done, 1 some failed or a fault to mend, 2 wrong usage, 130 stopped by Ctrl-C, 143 by
    SIGTERM, 129 by SIGHUP (the batch in hand is finished and all results are kept), 141 if nobody reads what it prints.
    """  # noqa: D301  # click's mark for "do not wrap" is the character backspace itself
    from amsam_med.bundle import default_bundle
    from amsam_med.errors import DataError
    from amsam_med.segment import segment as run

    bundle = options.trusted(given["bundle"] or default_bundle(given["adapter"]), trust_bundle)
    chosen = SegmentOptions(**{**given, "bundle": bundle})
    if chosen.address is not None and chosen.engine != "ray":
        raise click.UsageError("--address is that of a Ray cluster; give --engine ray as well", ctx)
    try:
        with _progress_bar() as progress, tidy_end("The same command goes on where this one was."):
            summary = run(inputs, output, chosen, progress)
    except DataError as error:  # of the inputs or the bundle; what is wrong with an image is in its row
        raise click.UsageError(str(error), ctx) from error
    _print(summary)
    stopped = 128 + (summary.signal_number or signal.SIGINT)
    ctx.exit(stopped if summary.is_interrupted else 1 if summary.failed else 0)


@contextmanager
def _progress_bar() -> Iterator[Progress | None]:
    """A bar on stderr if a person is looking at it; a log file gets none."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    current = TextColumn("{task.fields[file]}", markup=False)  # names may hold [brackets]
    with Bars(*columns, current, console=Console(stderr=True)) as bars:
        task = bars.add_task("", total=None, rate="", file="loading the network")

        def show(step: Step) -> None:
            if step.finished == 1:
                bars.reset(task, total=step.total)  # the clock starts after the network is loaded
            speed = bars.tasks[0].speed
            bars.update(
                task,
                completed=step.finished,
                rate=f"{speed:.1f} images/s" if speed else "",
                file=step.file.encode(errors="replace").decode(),
            )

        yield show


def _print(summary: SegmentSummary) -> None:
    numbers = {
        "done": str(summary.done),
        "failed": str(summary.failed),
        "skipped": str(summary.skipped),
        "without a box": str(summary.without_box),
        "flagged": str(summary.flagged),
        "seconds": f"{summary.seconds:.1f}",
        "images/s": f"{summary.images_per_second:.1f}",
    }
    if summary.pictures != summary.done:
        numbers["pictures"] = str(summary.pictures)
    for name, number in numbers.items():
        click.echo(f"{name:<18}{number:>8}")
    if summary.skipped:
        click.echo(f"{summary.skipped} of {summary.images} images were done before; --overwrite does them again.")
    if summary.flagged:
        click.echo(f"{summary.flagged} images deserve a look: the column flags of results.csv says why.")
    click.echo(f"Results are in {_shown(summary.output)}.")
    for file, error in summary.failures:
        click.echo(f"failed: {_shown(file)}: {error}", err=True)
    if summary.failed > len(summary.failures):
        table = _shown(summary.output / "results.csv")
        click.echo(f"and {summary.failed - len(summary.failures)} more; see {table}", err=True)
    if summary.is_interrupted:
        left = summary.images - summary.finished - summary.skipped
        click.echo(f"Interrupted with {left} images left; the same command does them.", err=True)


def _shown(path: Path | str) -> str:
    """A path on one line, without control characters and characters that a terminal cannot show."""
    return "".join(character if character.isprintable() else "?" for character in str(path))
