"""What each part of AM-SAM adds with 4, 8 and 16 labelled images, on bases that differ in what they have seen.

    python -m pipelines.paper.fewshot run --data DATA -o RUN --set isic2018 --base tiny-general
    python -m pipelines.paper.fewshot run --data DATA -o RUN --set isic2018 --base tiny-general --rows trials -k 8
    python -m pipelines.paper.fewshot table RUN docs/few-shot.md

``run`` trains and scores cell by cell and appends a record of each to ``RUN/cells.jsonl``; what is on record is not run
again, so it can be stopped at any time, and two processes may share a folder if their data sets differ. A cell is the
bundle's own training; the images to score are encoded once for all of them. ``--rows trials`` compares settings, on
images kept for selection and never on the ones that results are reported on. ``table`` renders the records.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import click
import numpy as np
import torch
from monai.data.dataset import Dataset
from scipy.stats import ttest_rel
from torch import Tensor

from amsam_med import weights
from amsam_med.boxes import BoxDetector, Detections
from amsam_med.bundle import open_bundle
from amsam_med.bundle_settings import paper_settings
from amsam_med.data.datalists import Item, few_shot_draw, human_vikram_datalist, isic2018_datalist
from amsam_med.data.transforms import preprocessing, restore_original
from amsam_med.detect.yolo import TrainingOptions, load_detector, save_detector, train_detector
from amsam_med.evaluate import dice_score
from amsam_med.infer import predict_prompted
from amsam_med.keys import Keys
from amsam_med.learn.cache import EmbeddingCache
from amsam_med.model import AmSam, build_amsam
from amsam_med.model.encoders import Below, CompactImageEncoder, SamImageEncoder
from amsam_med.threads import set_threads
from amsam_med.weights import locate_bundle
from pipelines.markdown import write_block

INPUT_SIZE = 256
SHOTS = (4, 8, 16)
SEEDS = 5
RECORDS = "cells.jsonl"
AT_ONCE = 16
"""Images that detector and decoder take at once while scoring."""
DETECTOR_SIZE = 160
DETECTOR_EPOCHS = 14
DETECTOR_EPOCH_IMAGES = 64
"""A detector of few images sees each of them several times an epoch: less time goes into its validation."""
SELECTION_IMAGES = 150
"""Of ISIC 2018's validation part, drawn with seed 0."""
SELECTION_DRAW = 150
"""Of human_vikram's first 190 images these are drawn from in selection, and the others scored."""

Part = Literal["val", "test"]
DetectorKind = Literal["none", "k-shot", "shipped"]
Paper = dict[str, tuple[float, float, float]]


class Task(NamedTuple):
    """A data set of the table.

    Attributes:
        title: As printed.
        bundle: Whose training, and whose shipped detector.
        class_name: What a detector finds.
        is_upright: Its objects have an up side.
        paper: Dice in percent for 4, 8 and 16 examples, as the paper prints them.
    """

    title: str
    bundle: str
    class_name: str
    is_upright: bool
    paper: Paper


class Row(NamedTuple):
    """A way to train.

    Attributes:
        name: As printed.
        detector: Where boxes come from.
        changes: Entries of ``train.yaml``, over its defaults.
    """

    name: str
    detector: DetectorKind
    changes: Mapping[str, Any]


TASKS = {
    "isic2018": Task(
        "ISIC 2018",
        "amsam_isic",
        "lesion",
        False,
        {"BLO-SAM": (65.1, 62.3, 71.0), "AM-SAM": (66.3, 73.6, 71.9)},
    ),
    "human_vikram": Task(
        "Human (Vikram)",
        "amsam_body",
        "person",
        True,
        {"BLO-SAM": (89.1, 91.3, 92.4), "AM-SAM": (90.4, 92.9, 93.3)},
    ),
}
NO_BOX: dict[str, Any] = {"prompt": "none", "detector_file": None}
_HALVES: dict[str, Any] = {"adapts": "decoder", "halves": True, "calibration": "none"}
_ALL: dict[str, Any] = {"adapts": "neck", "halves": False, "calibration": "none"}
TABLE = (
    Row("W on halves, no box (BLO-SAM's setting)", "none", {**_HALVES, **NO_BOX}),
    Row("W on all, no box", "none", {**_HALVES, **NO_BOX, "halves": False}),
    Row("W and neck on halves, no box", "none", {**_ALL, **NO_BOX, "halves": True}),
    Row("W and neck on all, no box", "none", {**_ALL, **NO_BOX}),
    Row("W, neck and last stage on all, no box", "none", {**_ALL, **NO_BOX, "adapts": "stage"}),
    Row("W and neck on all, no box, paper's calibration", "none", {**_ALL, **NO_BOX, "calibration": "paper"}),
    Row("W and neck on all, no box, learned calibration", "none", {**_ALL, **NO_BOX, "calibration": "learned"}),
    Row("W and neck on all, k-shot detector", "k-shot", _ALL),
    Row("W and neck on all, shipped detector", "shipped", _ALL),
    Row("W on halves, k-shot detector, paper's calibration", "k-shot", {**_HALVES, "calibration": "paper"}),
    Row("W on halves, shipped detector, paper's calibration", "shipped", {**_HALVES, "calibration": "paper"}),
    Row("all of `--paper`, shipped detector", "shipped", paper_settings()),
)
"""Rows differ in what is said; the first is what the others are compared with; the last has the paper's settings."""
LEVEL = 0.05
"""Of significance, of all comparisons in a table together."""
_SHORT: dict[str, Any] = {"epochs": 30, "views": "all"}
_GENTLE: dict[str, Any] = {**_SHORT, "lower_rate": 1e-3, "upper_rate": 2e-4}
TRIALS: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "30 epochs, all views": _SHORT,
    "30 epochs, mirror views": {**_SHORT, "views": "mirror"},
    "30 epochs, all views, rates / 5": _GENTLE,
    "30 epochs, all views, rates / 20": {**_SHORT, "lower_rate": 2.5e-4, "upper_rate": 5e-5},
    "30 epochs, all views, rates / 5, jitter 0.1": {**_GENTLE, "box_jitter": 0.1},
    "30 epochs, all views, rates / 5, learned calibration": {**_GENTLE, "calibration": "learned"},
    "30 epochs, all views, batches of 4": {**_SHORT, "batch_size": 4},
}
"""Settings that were compared, each over the paper's."""


class Field:
    """Images to score on, encoded once.

    Args:
        items: Pairs of image and mask.
        encoder: The base's image encoder.
        folder: Where its features are kept between runs.
    """

    def __init__(self, items: Sequence[Item], encoder: SamImageEncoder | CompactImageEncoder, folder: Path) -> None:
        prepare = preprocessing(INPUT_SIZE, with_label=True, label_at="original")
        loaded = [prepare(dict(item)) for item in items]
        self.images = torch.stack([item[Keys.IMAGE] for item in loaded])
        self.truths: list[Tensor] = [item[Keys.LABEL][0] for item in loaded]
        self.features = EmbeddingCache(Below(encoder, "stage"), folder).get(self.images)
        self._found: dict[Path, Detections] = {}

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.truths)

    def boxes(self, detector_file: Path) -> Detections:
        """A box an image, xyxy pixels of the model input; each detector looks once."""
        if detector_file not in self._found:
            detector: BoxDetector = load_detector(detector_file)
            found = [detector(images) for images in torch.split(self.images, AT_ONCE)]
            self._found[detector_file] = Detections(*map(torch.cat, zip(*found, strict=True)))
        return self._found[detector_file]

    def dice(self, network: AmSam, boxes: Detections | None) -> list[float]:
        """Dice of each image at its own size, as ``amsam evaluate`` takes it.

        Args:
            network: In evaluation mode.
            boxes: As from :meth:`boxes`; None for no box.
        """

        def draw(features: Tensor, some: slice) -> Tensor:
            given = boxes and Detections(*(part[some] for part in boxes))
            return predict_prompted(network, features, given).mask_logits

        return self.score(draw)

    @torch.no_grad()
    def score(self, draw: Callable[[Tensor, slice], Tensor]) -> list[float]:
        """As :meth:`dice`, of mask logits float ``(B, C + 1, h, w)`` that a function makes of features and places."""
        scores: list[float] = []
        for start in range(0, len(self), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            for mask_logits, truth in zip(draw(self.features[some], some), self.truths[some], strict=True):
                size = (truth.shape[0], truth.shape[1])
                scores.append(dice_score(restore_original(mask_logits, size), truth))
        return scores


class Trained(NamedTuple):
    """A trained network, in evaluation mode with its best weights, and the best Dice on D2 with its epoch."""

    network: AmSam
    best_dice: float
    best_epoch: int


def open_lists(name: str, data: Path, part: Part) -> tuple[list[Item], list[Item]]:
    """Items to draw examples from, and items to score on.

    Args:
        name: A key of :data:`TASKS`.
        data: The data folder.
        part: ``"test"`` for the images that results are reported on, ``"val"`` for others.
    """
    folder = data / name
    if name == "isic2018":
        scored = isic2018_datalist(folder, part)
        if part == "val":
            scored = few_shot_draw(scored, min(SELECTION_IMAGES, len(scored)), seed=0)
        return isic2018_datalist(folder, "train"), scored
    first = human_vikram_datalist(folder, "train")
    if part == "val":
        return first[:SELECTION_DRAW], first[SELECTION_DRAW:]
    return first, human_vikram_datalist(folder, "test")


def train_cell(bundle: str, items: Sequence[Item], folder: Path, settings: Mapping[str, Any]) -> Trained:
    """Run a bundle's training.

    Args:
        bundle: Its name or folder.
        items: Examples are drawn from these.
        folder: The run folder, for the adapter.
        settings: Entries of ``train.yaml``.
    """
    parser = open_bundle(
        bundle, "train", {"data": list(items), "output_dir": str(folder), "save_whole_model": False, **settings}
    )
    parser.get_parsed_content("initialize")
    trainer, recorder = (parser.get_parsed_content(f"train::{part}") for part in ("trainer", "recorder"))
    trainer.run()
    return Trained(recorder.network.eval(), recorder.best_dice, recorder.best_epoch)


def few_shot_detector(examples: Sequence[Item], task: Task, seed: int, file: Path) -> Path:
    """Train a detector from random weights on the examples alone, unless its file is there.

    There is nothing else to select its best epoch by than the examples themselves.
    """
    if not file.is_file():
        prepare = preprocessing(DETECTOR_SIZE, with_label=True, label_at="original")
        repeats = max(1, DETECTOR_EPOCH_IMAGES // len(examples))
        options = TrainingOptions(
            task.class_name, epochs=DETECTOR_EPOCHS, batch_size=4, seed=seed, is_upright=task.is_upright
        )
        detector, scores = train_detector(
            Dataset([*examples] * repeats, prepare), Dataset(list(examples), prepare), options
        )
        save_detector(detector, file, scores)
    return file


class Study:
    """The cells of one data set on one base.

    Args:
        name: A key of :data:`TASKS`.
        data: The data folder.
        folder: Where records, detectors and embeddings are kept.
        part: See :func:`open_lists`.
        base: Name of the base.
        base_file: Its weights.
    """

    def __init__(self, name: str, data: Path, folder: Path, part: Part, base: str, base_file: Path) -> None:
        self.name, self.task, self.folder, self.part = name, TASKS[name], folder, part
        self.base, self.base_file, self.base_sha256 = base, base_file, weights.sha256(base_file)
        self.cache = folder / "embeddings"
        self.pool, scored = open_lists(name, data, part)
        encoder = build_amsam(base, input_size=INPUT_SIZE, base_weights=base_file).image_encoder
        self.field = Field(scored, encoder, self.cache)

    def run(self, rows: Sequence[Row], shots: Iterable[int], seeds: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Run what is not on record, and yield each new record when it is written."""
        done = {_identity(record) for record in read_records(self.folder)}
        for count in shots:
            for seed in seeds:
                for row in rows:
                    cell = self._cell(row, count, seed)
                    if _identity(cell) not in done:
                        record = {**cell, **self._measure(row, cell)}
                        with (self.folder / RECORDS).open("a", encoding="utf-8") as file:
                            file.write(json.dumps(record) + "\n")
                        yield record

    def _cell(self, row: Row, shots: int, seed: int) -> dict[str, Any]:
        """What a cell is, before it is run."""
        parser = open_bundle(self.task.bundle, "train", row.changes)
        detector = self._detector_file(row.detector, shots, seed)
        return {
            "set": self.name,
            "part": self.part,
            "row": row.name,
            "detector": row.detector,
            "shots": shots,
            "seed": seed,
            "settings": {name: parser.as_written(name) for name in paper_settings()},
            "base": self.base,
            "base_sha256": self.base_sha256,
            "detector_sha256": None if detector is None else weights.sha256(detector),
        }

    def _measure(self, row: Row, cell: Mapping[str, Any]) -> dict[str, Any]:
        shots, seed, start = cell["shots"], cell["seed"], time.monotonic()
        detector = self._detector_file(row.detector, shots, seed)
        settings: dict[str, Any] = {
            **row.changes,
            "shots": shots,
            "seed": seed,
            "base": self.base,
            "base_file": str(self.base_file),
            "cache_dir": str(self.cache),
            "detector_file": None if detector is None else str(detector),
        }
        with tempfile.TemporaryDirectory() as run:
            trained = train_cell(self.task.bundle, self.pool, Path(run), settings)
        train_seconds = time.monotonic() - start
        scores = self.field.dice(trained.network, None if detector is None else self.field.boxes(detector))
        return {
            "images": len(scores),
            "dice": statistics.fmean(scores),
            "d2_dice": trained.best_dice,
            "best_epoch": trained.best_epoch,
            "train_seconds": round(train_seconds, 2),
            "seconds": round(time.monotonic() - start, 2),
            "versions": {package: version(package) for package in ("amsam-med", "torch", "monai", "ultralytics")},
        }

    def _detector_file(self, kind: DetectorKind, shots: int, seed: int) -> Path | None:
        if kind == "none":
            return None
        if kind == "shipped":
            return locate_bundle(self.task.bundle) / "models" / "detector.safetensors"
        file = self.folder / "detectors" / f"{self.name}-{self.part}-k{shots}-seed{seed}.safetensors"
        return few_shot_detector(few_shot_draw(self.pool, shots, seed), self.task, seed, file)


def trial_rows() -> tuple[Row, ...]:
    """Every trial with the shipped detector and with one of the same few images."""
    return tuple(
        Row(name, detector, {**paper_settings(), **changes})
        for name, changes in TRIALS.items()
        for detector in ("shipped", "k-shot")
    )


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All records of a folder, in the order in which they were written."""
    file = folder / RECORDS
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def _identity(record: Mapping[str, Any]) -> str:
    names = ("set", "part", "row", "detector", "shots", "seed", "settings", "base_sha256", "detector_sha256")
    return json.dumps([record[name] for name in names], sort_keys=True)


def render_table(records: Sequence[Mapping[str, Any]]) -> str:
    """The rows of :data:`TABLE` on the images that results are reported on, one table a data set.

    Raises:
        ValueError: The records come from several bases or settings.
    """
    found = [record for record in records if record["part"] == "test"]
    return "\n\n".join(
        _render_set(task, [record for record in found if record["set"] == name])
        for name, task in TASKS.items()
        if any(record["set"] == name for record in found)
    )


def render_trials(records: Sequence[Mapping[str, Any]]) -> str:
    """The trials on the images for selection, one column for each data set and detector; empty if there are none."""
    found = [record for record in records if record["part"] == "val" and record["row"] in TRIALS]
    shots = sorted({record["shots"] for record in found})
    columns = [
        (name, detector, count)
        for name in TASKS
        for detector in ("shipped", "k-shot")
        for count in shots
        if any(_column(record) == (name, detector, count) for record in found)
    ]
    if not columns:
        return ""
    titles = [f"{TASKS[name].title}, {detector}, k = {count}" for name, detector, count in columns]
    lines = _header("settings, over the paper's", titles)
    for trial in TRIALS:
        cells = [
            [record for record in found if record["row"] == trial and _column(record) == column] for column in columns
        ]
        if any(cells):
            lines.append(_line(trial, [_mean_and_deviation(cell) for cell in cells]))
    return "\n".join(lines)


def _render_set(task: Task, records: Sequence[Mapping[str, Any]]) -> str:
    bases = {(record["base"], record["base_sha256"]) for record in records}
    if len(bases) != 1:
        raise ValueError(f"the records of {task.title} come from {len(bases)} bases; render each folder on its own")
    base, digest = bases.pop()
    seconds = [record["seconds"] for record in records]
    lines = [
        f"**{task.title}**, mean Dice in % over {records[0]['images']} images at their own size, mean ± standard "
        f"deviation over seeds; base `{base}` (sha256 {digest[:12]}); a cell took {statistics.fmean(seconds):.0f} s.",
        "",
        *_header("", [f"k = {count}" for count in SHOTS]),
    ]
    cells = {
        (row.name, count): [record for record in records if (record["row"], record["shots"]) == (row.name, count)]
        for row in TABLE
        for count in SHOTS
    }
    differing = differing_cells(cells)
    for row in TABLE:
        keys = [(row.name, count) for count in SHOTS]
        if any(cells[key] for key in keys):
            marks = ["†" if key in differing else "" for key in keys]
            texts = [_mean_and_deviation(cells[key]) + mark for key, mark in zip(keys, marks, strict=True)]
            lines.append(_line(row.name, texts))
    lines += [
        _line(f"*{method}, as the paper prints it (SAM ViT-B)*", [f"*{value}*" for value in values])
        for method, values in task.paper.items()
    ]
    return "\n".join(lines)


def differing_cells(cells: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]) -> set[tuple[str, int]]:
    """Cells of row and number of examples that differ from the first row's with as many.

    Paired t-tests over the seeds that both have, since both drew the same examples; Holm's correction over all of them.
    """
    first = TABLE[0].name
    found: list[tuple[float, tuple[str, int]]] = []
    for (name, count), records in cells.items():
        ours, theirs = ({record["seed"]: record["dice"] for record in cell} for cell in (records, cells[first, count]))
        seeds = sorted(ours.keys() & theirs.keys())
        if name != first and len(seeds) >= SEEDS:
            pairs = np.array([(ours[seed], theirs[seed]) for seed in seeds])
            found.append((float(ttest_rel(pairs[:, 0], pairs[:, 1]).pvalue), (name, count)))
    found.sort()
    differing = set()
    for rank, (p_value, key) in enumerate(found):
        if not p_value <= LEVEL / (len(found) - rank):
            break
        differing.add(key)
    return differing


def _mean_and_deviation(records: Sequence[Mapping[str, Any]]) -> str:
    """Percent, and how many seeds there are where they are not all."""
    states = {
        _identity({**record, "seed": 0} | ({"detector_sha256": None} if record["detector"] == "k-shot" else {}))
        for record in records
    }
    if len(states) > 1:
        raise ValueError(f"records of {records[0]['row']!r} differ in settings, base or detector; keep one state")
    by_seed = {record["seed"]: 100 * record["dice"] for record in records}
    if not by_seed:
        return "-"
    values = list(by_seed.values())
    seeds = "" if len(values) == SEEDS else f" ({len(values)})"
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{deviation}{seeds}"


def _column(record: Mapping[str, Any]) -> tuple[str, str, int]:
    return record["set"], record["detector"], record["shots"]


def _header(first: str, titles: Sequence[str]) -> list[str]:
    return [_line(first, titles), "|---|" + "---:|" * len(titles)]


def _line(first: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"


@click.group()
def main() -> None:
    """The few-shot table, and the trials behind the defaults."""


@main.command(context_settings={"show_default": True})
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--set", "name", type=click.Choice(list(TASKS)), required=True)
@click.option("--rows", type=click.Choice(["table", "trials"]), default="table")
@click.option("--only", multiple=True, help="Only rows of these names.")
@click.option("--detector", type=click.Choice(["none", "k-shot", "shipped"]), help="Only rows with this detector.")
@click.option("-k", "--shots", type=int, multiple=True, default=SHOTS)
@click.option("--seeds", default=SEEDS, help="How many, from 0.")
@click.option("--base", default="tiny-general")
@click.option("--base-weights", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--threads", default=1, help="Of torch.")
def run(
    data: Path,
    output: Path,
    name: str,
    rows: str,
    only: tuple[str, ...],
    detector: str | None,
    shots: tuple[int, ...],
    seeds: int,
    base: str,
    base_weights: Path | None,
    threads: int,
) -> None:
    """Run the cells of a data set: those of the table on its test part, trials on images for selection."""
    set_threads(threads)
    output.mkdir(parents=True, exist_ok=True)
    offered = TABLE if rows == "table" else trial_rows()
    if unknown := set(only) - {row.name for row in offered}:
        raise click.BadParameter(f"no rows named {', '.join(sorted(unknown))}", param_hint="--only")
    chosen = [row for row in offered if (not only or row.name in only) and detector in (None, row.detector)]
    part: Part = "test" if rows == "table" else "val"
    study = Study(name, data, output, part, base, base_weights or weights.find(base))
    for record in study.run(chosen, shots, range(seeds)):
        what = f"{name} k={record['shots']} seed {record['seed']}, {record['row']} [{record['detector']}]"
        click.echo(f"{what}: Dice {100 * record['dice']:.1f}, epoch {record['best_epoch']}, {record['seconds']:.0f} s")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("document", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def table(folder: Path, document: Path) -> None:
    """Render the records of FOLDER into DOCUMENT, between its marks."""
    records = read_records(folder)
    for name, content in (("few-shot", render_table(records)), ("trials", render_trials(records))):
        if content:
            write_block(document, name, content)


if __name__ == "__main__":
    main()
