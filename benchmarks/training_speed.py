"""How much faster than its relatives does AM-SAM train on SAM's own ViT-B? Seconds to train from four images.

    python -m benchmarks.training_speed [--base vit_b] [--shots 4] [--passes 2]

The weights are random and the images are drawn, neither of which changes how long a step takes; one thread computes,
and the processor's time counts. AM-SAM's training is run to its end, with our defaults and with the paper's settings.
Of the others, which run the encoder in every step, a few of their 100 passes over the examples are run and multiplied.
The last line is the ratio of the fastest of them to AM-SAM's defaults.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click

from amsam_med.data.datalists import open_datalist
from amsam_med.synthetic import write_dermoscopy
from amsam_med.threads import set_threads
from pipelines.paper.baselines import BASELINES
from pipelines.paper.baselines.interface import Setting
from pipelines.paper.baselines.training import load_examples, train_baseline
from pipelines.paper.cells import Bench, Job, Workspace
from pipelines.paper.store import AM_SAM
from pipelines.paper.tables import IN_EVERY_STEP

RELATIVES = ("samed", "med-sa", "autosam")
BLO_SAM = {"prompt": "none", "calibration": "none"}


@click.command(context_settings={"show_default": True})
@click.option("--base", default="vit_b")
@click.option("--shots", type=click.IntRange(2), default=4)
@click.option("--passes", type=click.IntRange(1), default=2, help="That are run of a relative's 100.")
def main(base: str, shots: int, passes: int) -> None:
    """Print the seconds of each and the ratio."""
    set_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        for part in ("train", "test"):
            write_dermoscopy(Path(scratch) / "isic2018" / part, shots, seed=0)
        bench = Bench("isic2018", Workspace(Path(scratch), Path(scratch) / "run", base))
        ours = _am_sam(bench, {}, shots)
        print(f"AM-SAM, our defaults: {ours:.0f} s")
        print(f"AM-SAM, the paper's settings: {_am_sam(bench, {}, shots, is_paper=True):.0f} s")
        print(f"BLO-SAM, encoded once: {_am_sam(bench, BLO_SAM, shots, is_paper=True):.0f} s")
        slow = {**BLO_SAM, "encode": IN_EVERY_STEP}
        few, twice = (_am_sam(bench, {**slow, "epochs": n * passes}, shots, is_paper=True) for n in (1, 2))
        others = [few + (100 / passes - 1) * (twice - few)]  # what is done once counts once
        print(f"BLO-SAM, encoder in every step: {others[0]:.0f} s")
        for name in RELATIVES:
            others.append(_relative(name, base, Path(scratch), shots, passes))
            print(f"{BASELINES[name].title}: {others[-1]:.0f} s")
    print(f"the fastest that runs the encoder in every step, to our defaults: {min(others) / ours:.1f}")


def _am_sam(bench: Bench, settings: Mapping[str, object], shots: int, is_paper: bool = False) -> float:
    """Seconds from images on disk to a trained network; no detector, whose boxes cost some milliseconds an image."""
    job = Job(AM_SAM, {"prompt": "none", **settings}, is_paper=is_paper)
    start = time.process_time()
    bench.train(job, shots, seed=0)
    return time.process_time() - start


def _relative(name: str, base: str, data: Path, shots: int, passes: int) -> float:
    """Seconds of a whole training, from those of a few passes."""
    recipe = BASELINES[name].recipe
    assert recipe is not None
    network = BASELINES[name].build(Setting(base))
    images, labels = load_examples(open_datalist(data / "isic2018", "train")[:shots], Setting().input_size)
    start = time.process_time()
    train_baseline(network, images, labels, replace(recipe, passes=passes))
    return (time.process_time() - start) * recipe.passes / passes


if __name__ == "__main__":
    main()
