"""The data sets of the studies: what examples are drawn from, what is scored, and a box detector of a few examples."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from monai.data.dataset import Dataset

from amsam_med.data.datalists import Item, few_shot_draw, open_datalist
from amsam_med.data.transforms import preprocessing
from amsam_med.detect.yolo import TrainingOptions, save_detector, train_detector
from pipelines.domains import MEASURED, class_name, is_upright

SELECTION_IMAGES = 150
"""The most that are scored of a validation part, drawn with seed 0."""
DETECTOR_SIZE = 160
DETECTOR_EPOCHS = 14
DETECTOR_EPOCH_IMAGES = 64
"""A detector of few images sees each of them several times an epoch: less time goes into its validation."""

Part = Literal["val", "test"]
"""Images that results are reported on, or others, for selection and for curves over epochs."""


class Task(NamedTuple):
    """A data set; it lies in a folder of its name in the data folder.

    Attributes:
        title: As printed.
        bundle: Whose training, and whose shipped detector.
        class_name: What a detector finds.
        is_upright: Its objects have an up side.
        drawn_in_selection: Of a set without a validation part: how many of the training images examples are drawn from
            in selection; the others are scored. None for a set that has one.
    """

    title: str
    bundle: str
    class_name: str
    is_upright: bool
    drawn_in_selection: int | None = None


def task_of(data_set: str) -> Task:
    """The task of a data set that a domain is measured on."""
    domain = MEASURED[data_set]
    has_validation = domain.validation is not None and domain.validation[0] == data_set
    drawn = None if has_validation else DRAWN_IN_SELECTION[data_set]
    return Task(domain.titles[data_set], domain.bundle, class_name(domain), is_upright(domain), drawn)


DRAWN_IN_SELECTION = {"human_vikram": 150, "tiktok": 500}
"""How many of a set's training images examples are drawn from in selection, where it has no validation part."""
TASKS = {data_set: task_of(data_set) for data_set in MEASURED}
"""The paper's three data sets."""


def data_set_of(name: str, part: Part) -> str:
    """A data set and its part, as the identity of a cell says it."""
    return name if part == "test" else f"{name}/{part}"


def open_lists(name: str, data: Path, part: Part) -> tuple[list[Item], list[Item]]:
    """Items to draw examples from, and items to score.

    Args:
        name: A key of :data:`TASKS`.
        data: The data folder.
        part: Which images are scored.
    """
    pool = open_datalist(data / name, "train")
    if part == "test":
        return pool, open_datalist(data / name, "test")
    if (drawn := TASKS[name].drawn_in_selection) is not None:
        return pool[:drawn], pool[drawn:]
    scored = open_datalist(data / name, "val")
    return pool, few_shot_draw(scored, min(SELECTION_IMAGES, len(scored)), seed=0)


def few_shot_detector(examples: list[Item], task: Task, seed: int, file: Path) -> Path:
    """Train a detector from random weights on the examples alone, unless its file is there.

    There is nothing else to select its best epoch by than the examples themselves.
    """
    if not file.is_file():
        prepare = preprocessing(DETECTOR_SIZE, with_label=True, label_at="original")
        repeats = max(1, DETECTOR_EPOCH_IMAGES // len(examples))
        options = TrainingOptions(
            task.class_name, epochs=DETECTOR_EPOCHS, batch_size=4, seed=seed, is_upright=task.is_upright
        )
        detector, scores = train_detector(Dataset(examples * repeats, prepare), Dataset(examples, prepare), options)
        save_detector(detector, file, scores)
    return file
