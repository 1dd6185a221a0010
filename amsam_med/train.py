"""Few-shot bi-level training: a folder of labelled examples in, a run folder with an adapter out.

The run folder holds::

    adapter.safetensors   the best weights by Dice on D2, with the settings they need
    checkpoint.pt         everything a resumed run needs to end with the same weights
    split.json            which examples were drawn, their halves D1 and D2, and the settings of the run
    history.csv           losses, Dice on D2 and learning rate after every epoch
    curves.png, panel.png plots of the history, and examples with their masks
    run.json              versions, settings, times and the result
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.utils.enums import PostFix
from monai.utils.misc import ImageMetaKey
from torch import Tensor

from amsam_med import weights
from amsam_med.boxes import box_from_mask, scale_boxes
from amsam_med.bundle import TrainWorkflow, open_bundle, training_overrides
from amsam_med.checkpoint import Adapter, frozen_digest, load_adapter, save_adapter, save_model
from amsam_med.data.readers import FilePath, read_image
from amsam_med.data.sets.check import refuse_useless_masks
from amsam_med.data.sets.pairs import refuse_output_among
from amsam_med.data.transforms import preprocessing, restore_original
from amsam_med.errors import ConfigError, DataError
from amsam_med.evaluate import score_image
from amsam_med.files import atomic_path, write_json
from amsam_med.infer import PromptInferer
from amsam_med.keys import Keys
from amsam_med.learn.handler import UPPER_LOSS
from amsam_med.learn.levels import trainable_state
from amsam_med.learn.resume import read_checkpoint
from amsam_med.locks import held, sweep_unfinished
from amsam_med.machine import limits_named
from amsam_med.model import AmSam
from amsam_med.options import TrainOptions as TrainOptions
from amsam_med.plots import PanelRow, draw_curves, draw_panel
from amsam_med.schema import Name, Record, read_record
from amsam_med.tensors import refuse_non_finite
from amsam_med.verbs import make_callable

CHECKPOINT = "checkpoint.pt"
ADAPTER = "adapter.safetensors"
HISTORY = "history.csv"
SPLIT = "split.json"
RUN = "run.json"
CURVES, PANEL, MODEL = "curves.png", "panel.png", "model.pt"
LOCK = ".lock"
"""Lock file of a run in progress; removed afterwards."""
CHECKPOINT_EVERY = 5
"""Epochs between two checkpoints."""
_RATES = ("lower_rate", "upper_rate")
_NEW_RUN = "give another folder, or delete this one to begin again"
_LESS_MEMORY = "give a smaller --batch-size, --views none, a smaller --input-size or base, or --device cpu"

EpochProgress = Callable[[int, int, float], None]
"""Called after each epoch with (epoch, epochs, Dice on D2)."""


class Example(Record):
    """An image and its mask: their paths, in which bytes that are not UTF-8 are escaped."""

    image: str
    label: str


class Split(Record):
    """``split.json``: everything that a resumed run must have in common with the interrupted one.

    Attributes:
        d1: Examples of the lower level.
        d2: Examples of the upper level.
        network: Settings of the network.
        settings: Settings of the run, as its bundle names them.
    """

    d1: list[Example]
    d2: list[Example]
    network: dict[Name, str | int | float | bool | None]
    settings: dict[Name, str | int | float | bool | None]


class RunRecorder:
    """Ignite handler that keeps the record of a run: split, history, best adapter, checkpoints.

    Attach it last: what it checkpoints after an epoch must include that epoch's steps of both schedulers.

    Args:
        folder: The run folder.
        network: The network in training, unwrapped.
        evaluator: Scores D2 after every epoch, before this handler sees the epoch.
        levels: D1 and D2, lists of ``{"image": path, "label": path}``.
        parts: What a checkpoint holds besides the adapter, the trainer and this record: optimisers, schedulers.
        settings: Written into the adapter's header.
        resume: Continue from ``checkpoint.pt`` where there is one.
        save_whole_model: Leave ``model.pt`` with the best weights too, for the bundle's inference.
        is_active: False in all but one of several processes, as only one may write the run folder.
        progress: Called after every epoch.
    """

    def __init__(
        self,
        folder: str | Path,
        network: AmSam,
        evaluator: SupervisedEvaluator,
        levels: tuple[list[dict[str, str]], list[dict[str, str]]],
        parts: Mapping[str, Any],
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
        save_whole_model: bool = True,
        is_active: bool = True,
        progress: EpochProgress | None = None,
    ) -> None:
        self.folder, self.network, self.evaluator, self.levels = Path(folder), network, evaluator, levels
        self.parts, self.settings, self.resume, self.progress = dict(parts), dict(settings), resume, progress
        self.save_whole_model, self.is_active = save_whole_model, is_active
        self.history: list[dict[str, float]] = []
        self._losses: list[tuple[float, float]] = []
        self._base_digest = ""

    @property
    def best_dice(self) -> float:
        """The best Dice on D2 so far; -1 before the first epoch."""
        return max((row["d2_dice"] for row in self.history), default=-1.0)

    @property
    def best_epoch(self) -> int:
        """The first epoch with the best Dice on D2; 0 before the first epoch."""
        return next((int(row["epoch"]) for row in self.history if row["d2_dice"] == self.best_dice), 0)

    def attach(self, engine: SupervisedTrainer) -> None:
        """Record the run of ``engine``.

        Raises:
            ConfigError: The run to continue has other examples or settings than this one.
            DataError: Its ``split.json`` is missing or damaged.
            WeightsError: Its checkpoint is damaged, or does not fit this run.
        """
        saved = {**self.parts, "adapter": Adapter(self.network), "record": self, "trainer": engine}
        if self.resume:
            self._refuse_other_settings()
            if (self.folder / CHECKPOINT).is_file():
                state = read_checkpoint(self.folder / CHECKPOINT, saved, int(engine.state.max_epochs or 0))
                engine.add_event_handler(Events.STARTED, lambda _: Checkpoint.load_objects(saved, state))
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect_losses)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        if self.is_active:
            every = Events.EPOCH_COMPLETED(
                lambda _, epoch: epoch % CHECKPOINT_EVERY == 0 or epoch == engine.state.max_epochs
            )
            engine.add_event_handler(every, lambda _: self._save_checkpoint(saved))
            engine.add_event_handler(Events.COMPLETED, self._finish)

    def __call__(self, engine: Engine) -> None:
        """Record an epoch, and keep its weights if their Dice on D2 is the best so far.

        Raises:
            ConfigError: The training has diverged; what was written before stays as it is.
        """
        refuse_non_finite(trainable_state(self.network), *self._divergence(engine, "the network"), ConfigError)
        lower, upper = (sum(losses) / len(losses) for losses in zip(*self._losses, strict=True))
        self._losses.clear()
        dice = float(self.evaluator.state.metrics[self.evaluator.state.key_metric_name])
        is_best = dice > self.best_dice
        rate = float(self.parts["lower_optimizer"].param_groups[0]["lr"])
        self.history.append(
            {"epoch": engine.state.epoch, "lower_loss": lower, "upper_loss": upper, "d2_dice": dice, "lower_rate": rate}
        )
        if self.is_active:
            if is_best:
                record = {**self.settings, "epoch": engine.state.epoch, "d2_dice": dice}
                save_adapter(self.network, self.folder / ADAPTER, record, self._base_digest)
            self._write_history()
        if self.progress is not None:
            self.progress(engine.state.epoch, int(engine.state.max_epochs or 0), dice)

    def state_dict(self) -> dict[str, Any]:
        """The history so far."""
        return {"history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the history of an interrupted run."""
        self.history = list(state["history"])

    def _start(self, _engine: Engine) -> None:
        if self.is_active:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._base_digest = frozen_digest(self.network)
            write_json(self.folder / SPLIT, self._identity())

    def _identity(self) -> dict[str, Any]:
        """Everything that a resumed run must have in common with the interrupted one."""
        d1, d2 = ([{key: _as_text(item[key]) for key in ("image", "label")} for item in level] for level in self.levels)
        return {"d1": d1, "d2": d2, "network": self.network.settings, "settings": self.settings}

    def _refuse_other_settings(self) -> None:
        path = self.folder / SPLIT
        if not path.exists():
            if (self.folder / CHECKPOINT).exists():
                raise DataError(f"{path} is missing, so that nobody knows which run {CHECKPOINT} is of; {_NEW_RUN}")
            return
        before = read_record(Split, path, _NEW_RUN).model_dump()
        now = json.loads(json.dumps(self._identity()))
        different = [
            f"{name} ({before[part].get(name)!r}, now {now[part].get(name)!r})"
            for part in ("network", "settings")
            for name in sorted(before[part].keys() | now[part].keys())
            if before[part].get(name) != now[part].get(name)
        ]
        if not different and (before["d1"], before["d2"]) != (now["d1"], now["d2"]):
            different = ["the examples (other files, or the data folder was moved)"]
        if different:
            raise ConfigError(
                f"the run in {self.folder} cannot be continued, as it differs in {', '.join(different)}; "
                "give the options it was started with, or another folder"
            )

    def _collect_losses(self, engine: Engine) -> None:
        output: Any = engine.state.output
        first = output[0] if isinstance(output, list) else output
        lower, upper = float(first["loss"]), engine.state.metrics.get(UPPER_LOSS)
        for loss, level in ((lower, "lower"), (upper, "upper")):
            if loss is not None and not math.isfinite(loss):
                what, remedy = self._divergence(engine, f"the loss of the {level} level")
                raise ConfigError(f"{what} is {loss}; {remedy}")
        self._losses.append((lower, float("nan") if upper is None else float(upper)))

    def _divergence(self, engine: Engine, what: str) -> tuple[str, str]:
        """How a message about it begins and ends."""
        rates = ", ".join(f"{name} {self.settings[name]}" for name in _RATES if name in self.settings)
        kept = f"; the best weights so far, of epoch {self.best_epoch}, stay in {self.folder / ADAPTER}"
        return (
            f"the training has diverged in epoch {engine.state.epoch}: {what}",
            f"train with smaller learning rates ({rates or ', '.join(_RATES)}; --paper's are larger than the defaults)"
            + (kept if self.history else ""),
        )

    def _write_history(self) -> None:
        with atomic_path(self.folder / HISTORY) as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.history[0]))
            writer.writeheader()
            writer.writerows(self.history)

    def _save_checkpoint(self, saved: Mapping[str, Any]) -> None:
        content = io.BytesIO()  # written by us, since torch reports a full disk as an error of its file format
        torch.save({name: part.state_dict() for name, part in saved.items()}, content)
        with atomic_path(self.folder / CHECKPOINT) as path:
            path.write_bytes(content.getbuffer())

    def _finish(self, _engine: Engine) -> None:
        """Load the best weights into the network, and write the whole model if the bundle asks for it."""
        self._write_history()  # a run resumed after its last epoch has no further epoch that would write it
        load_adapter(self.network, self.folder / ADAPTER)
        if self.save_whole_model:
            save_model(self.network, self.folder / MODEL)


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a run.

    Attributes:
        folder: The run folder.
        adapter: The best weights.
        best_dice: Dice on D2 of the best epoch, at the size of the logits (64 x 64), in [0, 1].
        best_epoch: That epoch, counted from 1.
        seconds: Wall time of encoding and training.
        trained_parameters: How many numbers were trained.
    """

    folder: Path
    adapter: Path
    best_dice: float
    best_epoch: int
    seconds: float
    trained_parameters: int


def train(
    data: FilePath,
    folder: FilePath,
    options: TrainOptions | None = None,
    encode_progress: Callable[[int, int], None] | None = None,
    epoch_progress: EpochProgress | None = None,
    **chosen: Any,
) -> TrainResult:
    """Train an adapter on a folder of labelled images.

    Args:
        data: A folder that ``data.datalists.open_datalist`` knows.
        folder: The run folder; created if missing.
        options: See :class:`amsam_med.options.TrainOptions`.
        encode_progress: Called with (encoded, all) while images are encoded, for each half in turn.
        epoch_progress: Called after each epoch.
        **chosen: Fields of :class:`TrainOptions`, and further entries of the bundle's training configuration, by name
            (``shots=8``, ``lower_rate=5e-4``), in place of those of ``options``.

    Raises:
        ConfigError: There is to be no detector for a network that looks at boxes; the folder holds a finished or an
            interrupted run and ``resume`` is not set; another process trains in it; the training diverges; or there is
            too little memory.
        DataError: The data cannot be used, or the folder cannot be written to.
        WeightsError: The base or the detector is missing or damaged, or the checkpoint to resume cannot be used.
    """
    options = _with_chosen(options or TrainOptions(), chosen)
    data, folder = Path(data), Path(folder)
    with limits_named(folder, _LESS_MEMORY), held(folder / LOCK, f"the run in {folder}"):
        if (folder / HISTORY).exists() and not options.resume:
            raise ConfigError(f"{folder} already holds a run; give --resume to continue it, or another folder")
        for name in (CHECKPOINT, ADAPTER, HISTORY, SPLIT, RUN, CURVES, PANEL, MODEL):
            sweep_unfinished(folder / name)
        return _train(data, folder, options, encode_progress, epoch_progress)


def _with_chosen(options: TrainOptions, chosen: Mapping[str, Any]) -> TrainOptions:
    own = {one.name: chosen[one.name] for one in fields(options) if one.name in chosen}
    own |= {"bundle": str(own["bundle"])} if "bundle" in own else {}  # run.json cannot hold a Path
    entries = {name: value for name, value in chosen.items() if name not in own}
    entries = {name: str(value) if isinstance(value, os.PathLike) else value for name, value in entries.items()}
    return replace(options, **{**own, "overrides": {**own.get("overrides", options.overrides), **entries}})


def _train(
    data: Path,
    folder: Path,
    options: TrainOptions,
    encode_progress: Callable[[int, int], None] | None,
    epoch_progress: EpochProgress | None,
) -> TrainResult:
    start = time.monotonic()
    asked = training_overrides(options)
    parser = open_bundle(
        options.bundle,
        "train",
        {
            **asked,
            "dataset_dir": str(data),
            "output_dir": str(folder),
            "resume": options.resume,
            "save_whole_model": False,
            "encode_progress": encode_progress,
            "epoch_progress": epoch_progress,
        },
    )
    workflow = TrainWorkflow(parser)
    workflow.initialize()
    num_classes = int(workflow.network.settings["num_classes"])
    for name, half in zip(("D1", "D2"), workflow.levels, strict=True):
        refuse_output_among(half, folder)
        refuse_useless_masks(half, name, num_classes)
    trainer: SupervisedTrainer = workflow.trainer
    recorder: RunRecorder = workflow.recorder
    trainer.run()
    trained = sum(parameter.numel() for parameter in recorder.network.parameters() if parameter.requires_grad)
    seconds = time.monotonic() - start
    result = TrainResult(folder, folder / ADAPTER, recorder.best_dice, recorder.best_epoch, seconds, trained)
    draw_curves(recorder.history, folder / CURVES)
    draw_panel(_panel_rows(recorder.levels[1][: options.panel_images], workflow), folder / PANEL)
    write_json(folder / RUN, _summary(result, options.bundle, asked, recorder, workflow))
    return result


def _panel_rows(items: Sequence[Mapping[str, str]], workflow: TrainWorkflow) -> list[PanelRow]:
    """Segment examples as inference does, with the trained network."""
    network, inferer = workflow.network, PromptInferer(workflow.detector)
    prepare = preprocessing(network.input_size, True, "original", int(network.settings["num_classes"]))
    return [_panel_row(prepare(dict(item)), network.eval(), inferer) for item in items]


def _panel_row(item: Mapping[str, Any], network: AmSam, inferer: PromptInferer) -> PanelRow:
    truth: Tensor = item[Keys.LABEL]  # uint8 (1, H, W)
    size, input_size = (truth.shape[-2], truth.shape[-1]), (network.input_size, network.input_size)
    boxes = None
    # As D2 was scored: without a detector by the label's box, but for a network that makes its own.
    is_by_label = inferer.detector is None and network.settings["prompt"] != "own"
    if is_by_label and (box_in_original := box_from_mask(truth[0])) is not None:
        boxes = scale_boxes(box_in_original, size, input_size)[None]
    device = next(network.parameters()).device
    found = inferer.predict(item[Keys.IMAGE][None].to(device), network, None if boxes is None else boxes.to(device))
    mask_logits = found.mask_logits[0].cpu()
    mask = restore_original(mask_logits, size)[None]
    box = None if found.boxes is None else tuple(scale_boxes(found.boxes[0], input_size, size).tolist())
    path = Path(item[PostFix.meta(Keys.IMAGE.value)][ImageMetaKey.FILENAME_OR_OBJ])
    dice = score_image(path.name, mask, truth, mask_logits).dice
    return PanelRow(_as_text(path.name), read_image(path).pixels, truth[0].numpy(), mask[0].numpy(), box, dice)


def _summary(
    result: TrainResult, bundle: str, asked: Mapping[str, Any], recorder: RunRecorder, workflow: TrainWorkflow
) -> dict[str, Any]:
    packages = ("amsam-med", "torch", "monai", "segment-anything", "ultralytics", "timm")
    return {
        "bundle": bundle,
        "asked": {name: value if _is_plain(value) else str(value) for name, value in asked.items()},
        "settings": {**recorder.network.settings, **recorder.settings},
        "examples": {"d1": len(recorder.levels[0]), "d2": len(recorder.levels[1])},
        "best_d2_dice": result.best_dice,
        "best_epoch": result.best_epoch,
        "seconds": round(result.seconds, 2),
        "trained_parameters": result.trained_parameters,
        "base_sha256": weights.sha256(Path(workflow.base_file)),
        "versions": {package: version(package) for package in packages},
    }


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _as_text(path: str) -> str:
    """A path as text; bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


make_callable(__name__)
