"""``amsam data``: fetch, import and check data sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from amsam_med.data.download import Progress
    from amsam_med.data.sets.check import Findings

_SHOWN_FAULTS = 5
_out_option = click.option(
    "-o",
    "--output",
    "root",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder to fill; made if missing.",
)


@click.group()
def data() -> None:
    """Download and inspect data sets.

    Exit codes: 0 done, 1 a fault of the data or the network, 2 wrong usage.
    """


@data.command()
@click.argument("name", type=click.Choice(["isic2018", "human-vikram"]))
@_out_option
@click.option(
    "--base-url", metavar="URL", help="A mirror's folder that holds the archives.  [default: the publisher's]"
)
def get(name: str, root: Path, base_url: str | None) -> None:
    """Download a public data set; an interrupted download goes on.

    isic2018: ISIC 2018 Task 1, 3,694 images, about 13 GB (CC BY-NC).

    human-vikram: Vikram Shenoy's human segmentation, 290 images.
    """
    from amsam_med.data.sets.registry import DATA_SETS

    data_set = DATA_SETS[name]
    assert data_set.fetch is not None
    with _progress_bar() as progress:
        data_set.fetch(root, base_url=(base_url or data_set.base_url).rstrip("/"), progress=progress)
    click.echo(f"{name} is complete in {root}. Look at it with: amsam data check {root}")


@data.command("import")
@click.argument("name", type=click.Choice(["tiktok"]))
@click.argument("archive", type=click.Path(path_type=Path))
@_out_option
def import_(name: str, archive: Path, root: Path) -> None:
    """Unpack a data set that asks for a login.

    tiktok: log in to Kaggle, open the data set tapakah68/segmentation-full-body-tiktok-dancing-dataset, download its
    ZIP, and give the path of that file here.
    """
    from amsam_med.data.sets.registry import DATA_SETS

    import_archive = DATA_SETS[name].import_archive
    assert import_archive is not None
    with _progress_bar() as progress:
        import_archive(archive, root, progress)
    click.echo(f"{name} is complete in {root}. Look at it with: amsam data check {root}")


@data.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--part", help="train, val or test; all parts by default.")
@click.option("--classes", "num_classes", type=click.IntRange(1, 255), default=1, show_default=True)
def check(folder: Path, part: str | None, num_classes: int) -> None:
    """Read every image and mask of FOLDER and report counts, sizes and faults.

    FOLDER holds images/ and masks/, or is the root of ISIC 2018, Human (Vikram) or TikTok.
    """
    from rich.progress import track

    from amsam_med.data.sets.check import check_items
    from amsam_med.data.sets.registry import datalist_parts, open_datalist

    fault_count = 0
    for chosen in [part] if part else datalist_parts(folder) or [None]:
        items = open_datalist(folder, chosen)
        findings = check_items(track(items, chosen or folder.name, transient=True), num_classes)
        _print_findings(chosen or folder.name, findings)
        fault_count += len(findings.faults)
    if fault_count:
        raise click.exceptions.Exit(1)


def _print_findings(name: str, findings: Findings) -> None:
    click.echo(f"{name}: {findings.pair_count} pairs")
    if findings.smallest and findings.largest:
        sizes = [f"{width} x {height}" for height, width in (findings.smallest, findings.largest)]
        click.echo(
            f"  sizes: {sizes[0]} to {sizes[1]} pixels" if sizes[0] != sizes[1] else f"  size: {sizes[0]} pixels"
        )
        click.echo(
            f"  object: {findings.object_share:.1%} of an image on average; {findings.empty_mask_count} masks empty"
        )
    for fault in findings.faults[:_SHOWN_FAULTS]:
        click.echo(f"  fault: {fault}", err=True)
    if len(findings.faults) > _SHOWN_FAULTS:
        click.echo(f"  and {len(findings.faults) - _SHOWN_FAULTS} more faults", err=True)


@contextmanager
def _progress_bar() -> Iterator[Progress]:
    """A bar for each file that a download or an archive reports on."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    from amsam_med.data.download import Step

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, TimeRemainingColumn()) as bars:
        tasks = {}

        def show(step: Step) -> None:
            if step.name not in tasks:
                tasks[step.name] = bars.add_task(step.name)
            bars.update(tasks[step.name], completed=step.done, total=step.total)

        yield show
