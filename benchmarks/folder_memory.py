"""Does the memory of a folder run grow with the number of files? `amsam segment` on 100 files, and on 100,000.

    python -m benchmarks.folder_memory [--files 100000] [--few 100] [--format png,overlay] [--scratch FOLDER]

Each run is a process of its own, and what counts is the most memory that it ever had in RAM (``VmHWM`` of
``/proc/self/status``, so Linux only), from its first import to its report. The files are links to drawn pictures of
64 x 48 pixels, all in one folder, under names of their own: the run lists, reads, hashes, segments, writes and records
each of them. One thing is replaced to make it feasible: the shipped bundle's network has random weights and takes
pictures of 64 x 64 pixels instead of 256 x 256, and there is no detector. The network is the same for every batch, so
what it takes is in both figures; random masks are all flagged, which fills the report's gallery as far as it goes.

100,000 files take about half an hour on one core, and 1.5 GB in the scratch folder. The last line is
``difference N MB (limit 300)``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import torch

from amsam_med.checkpoint import save_model
from amsam_med.model import build_amsam
from amsam_med.synthetic import write_dermoscopy
from amsam_med.weights import locate_bundle

LIMIT = 300  # MB
INPUT_SIZE = 64  # pixels
DRAWN = 100  # different pictures
PICTURE_SIZE = (48, 64)  # height and width in pixels
RUN_FILES = ("report.html", "journal.sqlite", "results.csv")

_CHILD = """
import sys
from amsam_med.cli import main
code = main(sys.argv[1:])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


@click.command(context_settings={"show_default": True})
@click.option("--files", type=click.IntRange(1), default=100_000)
@click.option("--few", type=click.IntRange(1), default=100, help="Files of the run to compare with.")
@click.option("--format", "formats", default="png,overlay", help="As of `amsam segment`.")
@click.option(
    "--scratch",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Where inputs and results lie while it runs.  [default: the system's temporary folder]",
)
def main(files: int, few: int, formats: str, scratch: Path | None) -> None:
    """Print the peak memory of both runs and their difference."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        _write_bundle(folder / "bundle")
        write_dermoscopy(folder / "drawn", DRAWN, seed=0, size=PICTURE_SIZE)
        peaks = []
        for count in (few, files):
            words = ["--bundle", str(folder / "bundle"), "--detector", "none", "--device", "cpu", "--format", formats]
            images = _linked(folder / "drawn" / "images", folder / f"in_{count}", count)
            peaks.append(_peak_of([str(images), "-o", str(folder / f"out_{count}"), *words], count))
            _print_sizes(folder / f"out_{count}")
    print(f"difference {peaks[1] - peaks[0]:.0f} MB (limit {LIMIT})")


def _write_bundle(folder: Path) -> None:
    """The shipped bundle with a small input and random weights."""
    shutil.copytree(locate_bundle("amsam_isic") / "configs", folder / "configs")
    config = folder / "configs" / "inference.yaml"
    whole = config.read_text(encoding="utf-8")
    small = whole.replace("input_size: 256", f"input_size: {INPUT_SIZE}")
    assert small != whole, "the bundle no longer says input_size: 256"
    config.write_text(small, encoding="utf-8")
    torch.manual_seed(0)
    save_model(build_amsam("tiny", input_size=INPUT_SIZE), folder / "models" / "model.pt")


def _linked(drawn: Path, folder: Path, count: int) -> Path:
    """A folder of ``count`` files that takes hardly any room."""
    folder.mkdir()
    pictures = sorted(drawn.iterdir())
    for number in range(count):
        picture = pictures[number % len(pictures)]
        (folder / f"image_{number:06d}{picture.suffix}").hardlink_to(picture)
    return folder


def _peak_of(words: list[str], count: int) -> float:
    """The most memory in MB that ``amsam segment`` had."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", _CHILD, "segment", *words], stdout=subprocess.PIPE, text=True)  # noqa: S603  # a fixed list of words, no shell
    assert done.returncode == 0, f"amsam segment ended with {done.returncode}"
    counts = dict(line.rsplit(maxsplit=1) for line in done.stdout.splitlines()[:3])
    assert counts == {"done": str(count), "failed": "0", "skipped": "0"}, counts
    kilobytes = next(int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("VmHWM"))
    print(f"{count:,} files: peak {kilobytes / 1000:.0f} MB, {time.monotonic() - start:.0f} s", flush=True)
    return kilobytes / 1000


def _print_sizes(output: Path) -> None:
    sizes = [f"{name} {(output / name).stat().st_size / 1e6:.1f} MB" for name in RUN_FILES]
    print(", ".join(sizes), flush=True)


if __name__ == "__main__":
    main()
