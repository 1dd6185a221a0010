"""How much faster is few-shot training when every image is encoded once?

    python -m benchmarks.encode_once [--base vit_b] [--epochs 100] [--shots 8]

Runs the shipped training configuration twice on the same synthetic images with the same seeds: once as it is, and once
with the image encoder in every step of both levels and of validation. Views are off, so both runs see the same images;
their losses must agree to 1e-4 or the benchmark fails. Time includes encoding and excludes drawing images and building
the network. Weights are random: neither time nor equality depends on their values. The last line is ``ratio R``.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch.utils.data import Dataset

from amsam_med.boxes import box_from_mask, full_image_box
from amsam_med.bundle import Expression, TrainWorkflow, open_bundle
from amsam_med.keys import Keys
from amsam_med.synthetic import write_dermoscopy

TOLERANCE = 1e-4


class ImageDataset(Dataset[dict[str, Any]]):
    """The stand-in for ``EncodedDataset`` that keeps images: the network then encodes them in every step."""

    view_count = 1

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Callable[[Any], Any], **_options: Any) -> None:
        self._items = [transform(dict(item)) for item in data]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= len(self._items):
            raise IndexError(index)
        item = self._items[index]
        box = box_from_mask(item[Keys.LABEL][0])
        size = item[Keys.LABEL].shape[-1]
        box = full_image_box((size, size)) if box is None else box
        return {Keys.IMAGE: item[Keys.IMAGE], Keys.LABEL: item[Keys.LABEL], Keys.BOX: box}


def timed_run(data: Path, folder: Path, overrides: Mapping[str, Any]) -> tuple[float, list[dict[str, float]]]:
    """Seconds of encoding and training, and the history of losses."""
    settings = {"dataset_dir": str(data), "output_dir": str(folder), "save_whole_model": False, "detector_file": None}
    settings |= {"base_file": None, "views": "none", "device": torch.device("cpu"), **overrides}
    workflow = TrainWorkflow(open_bundle("amsam_isic", "train", settings))
    workflow.initialize()
    _ = workflow.network  # built before the clock starts
    start = time.perf_counter()
    workflow.trainer.run()  # building it encodes the data sets
    return time.perf_counter() - start, workflow.recorder.history


@click.command(context_settings={"show_default": True})
@click.option("--base", default="vit_b")
@click.option("--epochs", default=100)
@click.option("--shots", default=8)
def main(base: str, epochs: int, shots: int) -> None:
    """Print the ratio of the two training times."""
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data"
        write_dermoscopy(data, shots, seed=0)
        settings = {"base": base, "epochs": epochs, "shots": shots}
        once, history = timed_run(data, Path(name) / "once", settings)
        print(f"encoded once:        {once:8.1f} s", flush=True)
        stand_in = {
            "_target_": "benchmarks.encode_once.ImageDataset",
            "_mode_": "callable",
            "transform": "@preprocessing",
        }
        always, reference = timed_run(data, Path(name) / "always", {**settings, "encode": Expression(stand_in)})
        print(f"encoded every step:  {always:8.1f} s", flush=True)
    names = ("lower_loss", "upper_loss", "d2_dice")
    difference = max(abs(a[key] - b[key]) for a, b in zip(history, reference, strict=True) for key in names)
    print(f"largest difference of losses and D2 Dice over {epochs} epochs: {difference:.2e}")
    if difference > TOLERANCE:
        raise SystemExit(
            f"the two runs differ by {difference:.2e}, more than {TOLERANCE}: the comparison means nothing"
        )
    print(f"ratio {always / once:.1f}")


if __name__ == "__main__":
    main()
