"""The demo: the whole project on synthetic dermoscopy, on a machine without network or data.

It draws images with known masks, segments them with the embedded model, trains an adapter on eight of them, scores the
others before and after, and leaves the pictures with a page that shows them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from amsam_med.demo.page import Picture, Section, Table, write_demo_page
from amsam_med.errors import ConfigError
from amsam_med.evaluate import EvaluateOptions, EvaluateResult, evaluate
from amsam_med.segment import SegmentOptions, SegmentSummary, segment
from amsam_med.synthetic import write_dermoscopy
from amsam_med.train import TrainOptions, TrainResult, train

SHOTS = 8
TEST_IMAGES = 24
SHOWN = 6
TRAIN_SEED, TEST_SEED = 1, 2
PARTS = ("data", "segmented", "run", "before", "after")
"""What the demo writes beside its page."""
DATA_PARTS = {"train", "test"}
"""What it writes into the first of these folders."""

Step = Callable[[str], None]
"""Told what the demo does next."""


@dataclass(frozen=True)
class DemoResult:
    """The outcome of the demo.

    Attributes:
        page: The page that shows everything.
        segmented: The folder run with the embedded model.
        trained: The training of the adapter.
        before: Scores of the embedded model on images that it was not trained on.
        after: Scores of the adapter on the same images.
        seconds: Wall time of all of it.
    """

    page: Path
    segmented: SegmentSummary
    trained: TrainResult
    before: EvaluateResult
    after: EvaluateResult
    seconds: float


def run_demo(folder: Path, epochs: int = 100, test_images: int = TEST_IMAGES, tell: Step = print) -> DemoResult:
    """Run the demo.

    Args:
        folder: Where to write; what an earlier demo left there is replaced.
        epochs: Epochs of the adapter's training; the paper's 100.
        test_images: How many images are segmented and scored, at least as many as the page shows.
        tell: Told what comes next.

    Raises:
        ConfigError: ``folder`` holds other files than a demo's.
        WeightsError: An embedded weight file is missing or damaged.
    """
    start = time.monotonic()
    _clear(folder)
    tell(f"drawing {SHOTS + test_images} synthetic dermoscopy images")
    write_dermoscopy(folder / "data" / "train", SHOTS, TRAIN_SEED)
    write_dermoscopy(folder / "data" / "test", test_images, TEST_SEED)
    tell(f"segmenting {test_images} images with the embedded model")
    segmented = segment([folder / "data" / "test" / "images"], folder / "segmented", SegmentOptions())
    tell(f"training an adapter on {SHOTS} images, {epochs} epochs")
    options = TrainOptions(overrides={"shots": SHOTS, "epochs": epochs})
    trained = train(folder / "data" / "train", folder / "run", options)
    tell("scoring before and after")
    before = evaluate(folder / "data" / "test", folder / "before")
    after = evaluate(folder / "data" / "test", folder / "after", EvaluateOptions(adapter=trained.adapter))
    seconds = time.monotonic() - start
    page = write_demo_page(
        folder,
        [
            _segmented_section(folder, segmented),
            _trained_section(trained, epochs),
            _scored_section(before, after),
        ],
        title="AM-SAM Med: demo",
        lead="Skin lesions outlined without a click, and a model adapted with eight labelled images. "
        "All pictures are synthetic: they show that everything works, not how well it works on patients.",
        footer=f"Made in {seconds:.0f} seconds. For research and education; not a medical device.",
    )
    return DemoResult(page, segmented, trained, before, after, seconds)


def _clear(folder: Path) -> None:
    """Remove an earlier demo, and nothing else."""
    if not folder.exists():
        return
    foreign = sorted({entry.name for entry in folder.iterdir()} - {*PARTS, "index.html"})
    if (folder / "data").is_dir():  # a name that others use, too
        foreign += sorted(f"data/{name}" for name in {entry.name for entry in (folder / "data").iterdir()} - DATA_PARTS)
    if foreign:
        raise ConfigError(f"{folder} holds {foreign[0]}, which is not the demo's; give an empty or a new folder")
    for part in PARTS:
        shutil.rmtree(folder / part, ignore_errors=True)


def _segmented_section(folder: Path, segmented: SegmentSummary) -> Section:
    overlays = sorted((folder / "segmented" / "overlays").iterdir())[:SHOWN]
    return Section(
        title="Segmented without a prompt",
        text="The embedded model looked for a box in each image and outlined the lesion in it: "
        f"{segmented.images} images, {segmented.without_box} of them without a detection, which were outlined "
        "without a box. Masks and a table of areas, boxes and confidences lie beside the overlays.",
        pictures=[
            Picture(
                path.relative_to(folder), path.stem, f"Synthetic lesion {number} with the outline that the model drew"
            )
            for number, path in enumerate(overlays, start=1)
        ],
        command="amsam segment data/test/images -o segmented",
    )


def _trained_section(trained: TrainResult, epochs: int) -> Section:
    return Section(
        title="Adapted with eight labelled images",
        text=f"Half of the images trained the decoder's weights, the other half the prompt embedding: "
        f"{trained.trained_parameters:,} numbers, {epochs} epochs, {trained.seconds:.0f} seconds. The best epoch "
        f"reached a Dice of {trained.best_dice:.3f} on the second half.",
        pictures=[
            Picture(Path("run/curves.png"), "Losses and Dice", "Curves of both losses and of Dice over the epochs"),
            Picture(Path("run/panel.png"), "Truth and prediction", "Training images with truth and prediction"),
        ],
        command=f"amsam train --data data/train -o run --shots {SHOTS} --epochs {epochs}",
    )


def _scored_section(before: EvaluateResult, after: EvaluateResult) -> Section:
    rows = [
        [
            name,
            *(f"{100 * value:.1f}" for value in (score.dice, *score.dice_interval, score.iou)),
            str(score.empty_predictions),
        ]
        for name, score in (("embedded model", before.summary), ("adapter of 8 images", after.summary))
    ]
    return Section(
        title="Before and after",
        text=f"{before.summary.images} images that no training saw, scored at their own size. The embedded model knows "
        "skin lesions already, so there is little to gain here: an adapter is for what it does not know yet.",
        pictures=[
            Picture(Path(name) / "scores.png", f"Dice {name}", f"Histogram of Dice {name} training")
            for name in ("before", "after")
        ],
        table=Table(["model", "Dice %", "95 % from", "to", "IoU %", "empty masks"], rows),
        command="amsam evaluate --data data/test -o before\n"
        "amsam evaluate --data data/test --adapter run/adapter.safetensors -o after",
    )
