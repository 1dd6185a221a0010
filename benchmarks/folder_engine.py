"""What does a folder cost beyond its network? `amsam segment` on images, beside the network alone on the same images.

    python -m benchmarks.folder_engine [--data DATA] [--images 200] [--rounds 5] [--format png,overlay]

The images are those of the test part of ISIC 2018 under DATA or AMSAM_DATA, or else drawn. *Network alone*: they are
read and squashed beforehand, and the bundle's inferer (box and mask) takes them in batches of 8, as the engine does;
nothing is written. *Folder*: from the first file opened to the last one written and recorded. Both in one process, by
turns, on all cores; the median of the rounds' ratios counts. Let nothing else run beside it. The last line is
``ratio R`` (limit 1.15).
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import click
import torch

from amsam_med.data.datalists import list_images
from amsam_med.domains import DEFAULT_BUNDLE
from amsam_med.opened_model import open_model
from amsam_med.segment import SegmentOptions, segment
from amsam_med.synthetic import write_dermoscopy

BATCH_SIZE = 8
LIMIT = 1.15


@click.command(context_settings={"show_default": True})
@click.option("--bundle", default=DEFAULT_BUNDLE, help="Name or folder.")
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), help="The data folder.  [default: AMSAM_DATA]"
)
@click.option("--images", "count", type=click.IntRange(BATCH_SIZE), default=200)
@click.option("--rounds", type=click.IntRange(1), default=5)
@click.option("--format", "formats", default="png,overlay", help="As of `amsam segment`.")
def main(bundle: str, data: Path | None, count: int, rounds: int, formats: str) -> None:
    """Print seconds of the network alone and of the folder, and their ratio."""
    data = data or (Path(os.environ["AMSAM_DATA"]) if "AMSAM_DATA" in os.environ else None)
    folder = None if data is None else data / "isic2018" / "test" / "images"
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if folder is None or not folder.is_dir():
            write_dermoscopy(scratch / "drawn", count, seed=0)
            folder = scratch / "drawn" / "images"
        images = list_images(folder)[:count]
        options = SegmentOptions(bundle, formats=tuple(formats.split(",")), device="cpu", batch_size=BATCH_SIZE)
        print(f"{bundle}, {len(images)} images of {folder.parent.name}, {torch.get_num_threads()} threads, {formats}")
        alone, whole = [], []
        for turn in range(rounds):
            alone.append(_network_alone(bundle, images))
            summary = segment(images, scratch / f"out{turn}", options)
            assert summary.done == len(images), summary.failures
            whole.append(summary.seconds)
            print(f"network alone {alone[-1]:.2f} s, folder {whole[-1]:.2f} s", flush=True)
    per_image = [1000 * statistics.median(seconds) / len(images) for seconds in (alone, whole)]
    ratio = statistics.median(folder / network for network, folder in zip(alone, whole, strict=True))
    print(f"an image: network alone {per_image[0]:.1f} ms, folder {per_image[1]:.1f} ms (limit {LIMIT} times)")
    print(f"ratio {ratio:.3f}")


def _network_alone(bundle: str, images: list[Path]) -> float:
    model = open_model(bundle, device="cpu")
    network, inferer = model.network, model.inferer
    inputs = torch.stack([model.prepare(path).inputs for path in images])
    inferer.predict(inputs[:BATCH_SIZE], network)
    start = time.perf_counter()
    for batch in torch.split(inputs, BATCH_SIZE):
        inferer.predict(batch, network)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
