"""What would an archive cost? Per-image figures of `amsam segment`, and what they come to for ten million images.

    python -m benchmarks.scaling [--data DATA] [--images 400] [--files 100000] [--archive 10000000] [--scratch FOLDER]

The images are those of the test part of ISIC 2018 under DATA or AMSAM_DATA, or else drawn. An image's cost is what it
adds to a run, from a run of all images and one of a quarter of them, in CPU seconds, user and system, of all processes
that take part: starting is not in it, and a busy machine disturbs it less than a clock. For one core, run it on one::

    OMP_NUM_THREADS=1 taskset -c 1 python -m benchmarks.scaling

Listing and journal are measured without a network, on ``--files`` copies of one small picture and as many rows. Sizes
are of files as they are, not of the blocks that a file system gives them. Linux only: it reads ``/proc``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sqlite3
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image

from amsam_med.choices import EngineName
from amsam_med.data.datalists import list_images
from amsam_med.domains import DEFAULT_BUNDLE
from amsam_med.measure import Measurements
from amsam_med.segment import REPORT, SegmentOptions, Step, segment
from amsam_med.segment.formats import FORMATS
from amsam_med.segment.inputs import list_inputs
from amsam_med.segment.journal import FILE_COLUMNS, JOURNAL, RESULTS, Picture, Records, Row
from amsam_med.synthetic import write_dermoscopy

CORES = (16, 64, 256)
"""Sizes of the cluster for which wall time is worked out."""
PICTURE_FORMATS = ("png", "overlay", "contour", "nifti")
"""Formats that need no DICOM source."""


@click.command(context_settings={"show_default": True})
@click.option("--bundle", default=DEFAULT_BUNDLE, help="Name or folder.")
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), help="The data folder.  [default: AMSAM_DATA]"
)
@click.option("--images", "count", type=click.IntRange(100), default=400)
@click.option("--files", type=click.IntRange(1000), default=100_000, help="For listing and journal.")
@click.option("--archive", type=click.IntRange(1), default=10_000_000, help="Images of the archive to plan.")
@click.option(
    "--scratch",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Where inputs and results lie while it runs.  [default: the system's temporary folder]",
)
def main(bundle: str, data: Path | None, count: int, files: int, archive: int, scratch: Path | None) -> None:
    """Print costs an image, and the plan."""
    data = data or (Path(os.environ["AMSAM_DATA"]) if "AMSAM_DATA" in os.environ else None)
    source = None if data is None else data / "isic2018" / "test" / "images"
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        if source is None or not source.is_dir():
            write_dermoscopy(folder / "drawn", count, seed=0)
            source = folder / "drawn" / "images"
        images = list_images(source)[:count]
        cores = len(os.sched_getaffinity(0))
        print(f"{_processor()}, {cores} core(s) of it, {torch.get_num_threads()} torch thread(s)")
        print(f"{bundle}, {len(images)} images of {source.parent.name}, the first {_size(images[0])} pixels")
        costs = _engines(bundle, images, folder)
        kilobytes = _sizes(folder / "local", len(images))
        _again(bundle, images, folder / "local")
        listing = _listing(folder, files)
        journal = _journal(folder, folder / "local", files)
    _plan(archive, costs, kilobytes, {**journal, "list": listing})


def _engines(bundle: str, images: list[Path], folder: Path) -> dict[str, float]:
    """CPU seconds per image by engine."""
    engines: tuple[EngineName, ...] = ("local", "ray") if importlib.util.find_spec("ray") else ("local",)
    costs: dict[str, float] = {}
    for engine in engines:
        options = SegmentOptions(bundle, formats=PICTURE_FORMATS, device="cpu", engine=engine)
        costs[engine] = _cost(images, folder / engine, options)
        print(f"engine {engine}: {1000 * costs[engine]:.1f} CPU ms per image", flush=True)
    return costs


def _cost(images: list[Path], output: Path, options: SegmentOptions) -> float:
    """CPU seconds that an image more adds to a run."""
    few = images[: len(images) // 4]
    of_few = _run_seconds(few, output.with_name(f"{output.name}_few"), options)
    return (_run_seconds(images, output, options) - of_few) / (len(images) - len(few))


def _run_seconds(images: list[Path], output: Path, options: SegmentOptions) -> float:
    """CPU seconds until the last image is recorded."""
    marks = [_cpu_seconds()]

    def note(step: Step) -> None:
        if step.finished == step.total:
            marks.append(_cpu_seconds())

    summary = segment(images, output, options, note)
    assert summary.done == len(images), summary.failures
    return marks[1] - marks[0]


def _sizes(output: Path, count: int) -> dict[str, float]:
    """Kilobytes an image by what they are for."""
    folders = {name: FORMATS[name].folder for name in PICTURE_FORMATS}
    sizes = {
        name: sum(path.stat().st_size for path in (output / folder).rglob("*") if path.is_file())
        for name, folder in folders.items()
    }
    sizes |= {name: (output / name).stat().st_size for name in (JOURNAL, RESULTS)}
    for name, size in sizes.items():
        print(f"size {name}: {size / count / 1000:.2f} KB an image", flush=True)
    print(f"size {REPORT}: {(output / REPORT).stat().st_size / count / 1000:.2f} KB a picture in its gallery")
    return {name: size / count / 1000 for name, size in sizes.items()}


def _again(bundle: str, images: list[Path], output: Path) -> None:
    """What it costs to find out that all is done."""
    options = SegmentOptions(bundle, formats=PICTURE_FORMATS, device="cpu")
    seconds = []
    segment(images, output, options, lambda _: seconds.append(time.process_time()))
    print(f"done before: {1000 * (seconds[-1] - seconds[0]) / (len(images) - 1):.2f} CPU ms per image", flush=True)


def _listing(folder: Path, files: int) -> float:
    """CPU seconds to find a file."""
    picture = folder / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    content = picture.read_bytes()
    (folder / "in").mkdir()
    for number in range(files):
        (folder / "in" / f"image_{number:08d}.png").write_bytes(content)
    start, before = time.monotonic(), time.process_time()
    found = list_inputs([str(folder / "in")])
    found.prepare()
    assert len(found) == files
    cpu, wall = time.process_time() - before, time.monotonic() - start
    print(f"listing {files:,} files: {cpu:.1f} CPU s, {wall:.1f} s by the clock, {files / cpu:,.0f} files a CPU second")
    return cpu / files


def _journal(folder: Path, output: Path, files: int) -> dict[str, float]:
    """Record rows like a real one: kilobytes per row, and CPU seconds of the driver for each."""
    with closing(sqlite3.connect(output / JOURNAL)) as journal:
        cells, picture = journal.execute("SELECT cells, thumbnail FROM rows ORDER BY file LIMIT 1").fetchone()
    row = _row(json.loads(cells))
    with closing(Records(folder / "recorded", {}, overwrite=False)) as records:
        records.start()
        marks = [time.process_time()]
        for number in range(files):
            name = f"image_{number:08d}"
            records.add(name, [Picture(replace(row, file=name), picture)], PICTURE_FORMATS)
            if (number + 1) % (files // 10) == 0:
                marks.append(time.process_time())
        records.finish("complete")
        finished = time.process_time() - marks[-1]
    first, last = (1000 * (marks[i + 1] - marks[i]) / (files // 10) for i in (0, -2))
    print(f"journal: {first:.3f} CPU ms per row at first, {last:.3f} with {files:,} of them; end {finished:.1f} CPU s")
    sizes = {name: (folder / "recorded" / name).stat().st_size / files / 1000 for name in (JOURNAL, RESULTS)}
    print(", ".join(f"{name} {size:.2f} KB a row" for name, size in sizes.items()), flush=True)
    return {**sizes, "add": last / 1000, "finish": finished / files}


def _row(cells: dict[str, str]) -> Row:
    """A row from its text; numbers stay text, which is what they end as."""
    numbers: dict[str, Any] = {column.name: cells[column.name] or None for column in fields(Measurements)}
    files = {column: cells[column] for column in FILE_COLUMNS}
    facts: dict[str, Any] = {column.name: cells[column.name] or None for column in fields(Row) if column.name in cells}
    return Row(**{**facts, "measured": Measurements(**numbers), "files": files, "error": ""})


def _plan(archive: int, costs: dict[str, float], kilobytes: dict[str, float], journal: dict[str, float]) -> None:
    print(f"plan for {archive:,} images")
    for engine, seconds in costs.items():
        hours = archive * seconds / 3600
        walls = ", ".join(f"{hours / cores:.1f} h on {cores} cores" for cores in CORES)
        print(f"  engine {engine}: {hours:,.0f} core hours; {walls}")
    for name, size in kilobytes.items():
        print(f"  {name}: {archive * size / 1e6:,.0f} GB")
    steps = {"list": "list them", "add": "record them", "finish": "write the table"}
    for name, what in steps.items():
        print(f"  the driver, to {what}: {archive * journal[name] / 60:,.0f} CPU min")


def _cpu_seconds() -> float:
    """User and system seconds of this process and of all that descend from it."""
    parents, seconds = dict[int, int](), dict[int, float]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            words = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(words[1])
            seconds[int(path.parent.name)] = sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")
    family = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(seconds[member] for member in family)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _size(image: Path) -> str:
    with Image.open(image) as opened:
        return f"{opened.width} x {opened.height}"


if __name__ == "__main__":
    main()
