"""Evaluation of a model on labelled images: scores of each image, and means with intervals.

All scores but one are computed at the images' own size. The mean Dice at the size of the logits (64 x 64 for an input
of 256) is for comparison with BLO-SAM, on which the paper builds and which reports that one.

How empty masks count: two empty masks score 1, an empty mask against an object scores 0 (MONAI's ``MeanDice``, the
workflow's key metric, leaves images with an empty truth out instead). With several classes an image's score is the mean
over the classes that its prediction or its truth holds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.metrics import compute_hausdorff_distance, compute_iou
from monai.utils.enums import PostFix
from monai.utils.misc import ImageMetaKey
from numpy.typing import ArrayLike
from torch import Tensor

from amsam_med.bundle import EvaluateWorkflow, Expression, default_bundle, model_overrides, open_bundle
from amsam_med.data.readers import FilePath
from amsam_med.data.sets.pairs import refuse_output_among
from amsam_med.data.tables import TableWriter
from amsam_med.errors import DataError
from amsam_med.files import atomic_path, write_json
from amsam_med.infer import PromptInferer
from amsam_med.keys import Keys
from amsam_med.learn.loss import resize_label
from amsam_med.locks import held, sweep_unfinished
from amsam_med.machine import limits_named
from amsam_med.options import EvaluateOptions as EvaluateOptions
from amsam_med.plots import draw_scores
from amsam_med.verbs import make_callable, with_chosen

SCORES_TABLE = "scores.csv"
SCORES_SUMMARY = "scores.json"
SCORES_PICTURE = "scores.png"
LOCK = ".evaluate.lock"
MASK_LOGITS = "mask_logits"
"""Key of an item's logits ``(C + 1, h, w)``, which are kept beside the mask made from them."""
JACCARD_THRESHOLD = 0.65
"""An IoU below it counts as 0 in the threshold Jaccard of the ISIC 2018 challenge."""
RESAMPLES = 2000
CONFIDENCE = 0.95
SURFACE_PERCENTILE = 95
_LESS_MEMORY = "leave out --test-views, or give --device cpu, or a smaller model"

Progress = Callable[[int, int], None]
"""Called after each image with (images done, all images)."""


def dice_score(prediction: Tensor, truth: Tensor) -> float:
    """Eq. (13). Twice the size of two masks' intersection over the sum of their sizes; 1 for two empty masks.

    Args:
        prediction: Any shape and dtype; non-zero pixels are the object.
        truth: The same shape.

    Returns:
        A score in [0, 1].

    Raises:
        DataError: The shapes differ.
    """
    if prediction.shape != truth.shape:
        got = f"{tuple(prediction.shape)} and {tuple(truth.shape)}"
        raise DataError(f"Dice got masks of shapes {got}; expected one shape; bring both to the same frame first")
    is_predicted, is_true = prediction != 0, truth != 0
    sizes = int(is_predicted.sum()) + int(is_true.sum())
    return 2 * int((is_predicted & is_true).sum()) / sizes if sizes else 1.0


@dataclass(frozen=True)
class ImageScore:
    """The scores of one image.

    Attributes:
        image: Name of its file.
        dice: Eq. (13), in [0, 1].
        iou: Intersection over union, in [0, 1].
        hd95: 95th percentile of the distances between the two outlines, in pixels of the image; None where a mask is
            empty.
        dice_at_logits: Dice at the size of the logits, the truth brought there by its nearest pixels.
        is_prediction_empty: No pixel of any class was predicted.
        is_truth_empty: The truth holds no object.
        flags: Words of :class:`amsam_med.infer.Flag` with ";" between them, as `amsam segment` gives them.
    """

    image: str
    dice: float
    iou: float
    hd95: float | None
    dice_at_logits: float
    is_prediction_empty: bool
    is_truth_empty: bool
    flags: str = ""


def score_image(
    image: str, prediction: Tensor, truth: Tensor, mask_logits: Tensor, flags: Sequence[str] = ()
) -> ImageScore:
    """Compare a prediction with the truth.

    Args:
        image: Name of the image's file.
        prediction: Class ids ``(1, H, W)``.
        truth: Class ids ``(1, H, W)``.
        mask_logits: float ``(C + 1, h, w)``, from which the prediction was made.
        flags: What the prediction was flagged with.
    """
    num_classes = len(mask_logits) - 1
    predicted, true = _class_masks(prediction, num_classes), _class_masks(truth, num_classes)
    truth_at_logits = resize_label(truth[None], (mask_logits.shape[-2], mask_logits.shape[-1]))[0]
    predicted_at_logits = mask_logits.argmax(dim=0, keepdim=True)
    return ImageScore(
        image=image,
        dice=_mean_dice(predicted, true),
        iou=_mean_iou(predicted, true),
        hd95=_mean_hd95(predicted, true),
        dice_at_logits=_mean_dice(
            _class_masks(predicted_at_logits, num_classes), _class_masks(truth_at_logits, num_classes)
        ),
        is_prediction_empty=not bool(predicted.any()),
        is_truth_empty=not bool(true.any()),
        flags=";".join(flags),
    )


@dataclass(frozen=True)
class Summary:
    """The scores of a set of images.

    Attributes:
        images: How many.
        dice: Mean Dice at the images' own size, in [0, 1].
        dice_interval: The 95% bootstrap interval of that mean.
        dice_median: Median Dice.
        iou: Mean IoU, in [0, 1].
        iou_interval: The 95% bootstrap interval of that mean.
        threshold_jaccard: Mean IoU in which an IoU below 0.65 counts as 0 (ISIC 2018, task 1).
        hd95: Mean HD95 in pixels over the images for which it is defined; None if there is none.
        hd95_images: How many those are.
        empty_predictions: Images for which nothing was predicted.
        empty_truths: Images whose truth is empty.
        dice_at_logits: Mean Dice at the size of the logits.
        flagged: Images that were flagged for a look.
    """

    images: int
    dice: float
    dice_interval: tuple[float, float]
    dice_median: float
    iou: float
    iou_interval: tuple[float, float]
    threshold_jaccard: float
    hd95: float | None
    hd95_images: int
    empty_predictions: int
    empty_truths: int
    dice_at_logits: float
    flagged: int


def summarise(scores: Sequence[ImageScore]) -> Summary:
    """The scores of a set of images.

    Raises:
        DataError: There are no images.
    """
    if not scores:
        raise DataError("there are no images to score; expected at least one image with its mask")
    dice, iou = np.array([score.dice for score in scores]), np.array([score.iou for score in scores])
    distances = [score.hd95 for score in scores if score.hd95 is not None]
    return Summary(
        images=len(scores),
        dice=float(dice.mean()),
        dice_interval=bootstrap_interval(dice),
        dice_median=float(np.median(dice)),
        iou=float(iou.mean()),
        iou_interval=bootstrap_interval(iou),
        threshold_jaccard=float(np.where(iou < JACCARD_THRESHOLD, 0.0, iou).mean()),
        hd95=float(np.mean(distances)) if distances else None,
        hd95_images=len(distances),
        empty_predictions=sum(score.is_prediction_empty for score in scores),
        empty_truths=sum(score.is_truth_empty for score in scores),
        dice_at_logits=float(np.mean([score.dice_at_logits for score in scores])),
        flagged=sum(bool(score.flags) for score in scores),
    )


def bootstrap_interval(values: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of a mean (Efron 1979).

    Args:
        values: ``(n,)``; each is drawn as often as any other.
        resamples: How many sets of n are drawn with replacement.
        seed: The same seed and values give the same interval.
    """
    array = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(array), size=(resamples, len(array)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(array[drawn].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


class ScoreHandler:
    """Ignite handler that scores what a MONAI evaluator predicts, and writes ``scores.csv`` and ``scores.json``.

    The evaluator's postprocessing must leave ``pred`` and ``label``, class ids ``(1, H, W)`` in the original frame, and
    ``mask_logits`` ``(C + 1, h, w)`` in its output, and ``image_meta_dict`` in the batch.

    Args:
        output_dir: Folder for the two files; created if missing.
        record: What else ``scores.json`` should say, such as which data and which model were used.
        inferer: The evaluator's own, which has the flags of the latest images.
    """

    def __init__(
        self,
        output_dir: str | Path,
        record: Mapping[str, Any] | None = None,
        inferer: PromptInferer | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.record = dict(record or {})
        self.inferer = inferer
        self.scores: list[ImageScore] = []

    @property
    def summary(self) -> Summary:
        """The scores of all images so far."""
        return summarise(self.scores)

    def attach(self, engine: Engine) -> None:
        """Score every run of ``engine``."""
        engine.add_event_handler(Events.STARTED, lambda _: self.scores.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, lambda _: self.write())

    def __call__(self, engine: Engine) -> None:
        """Score the batch that the engine has just finished."""
        batch: Any = engine.state.batch  # decollated, as the output is
        output: Any = engine.state.output
        latest = None if self.inferer is None else self.inferer.latest
        flags: list[tuple[str, ...]] = [()] * len(batch) if latest is None else [*latest.flags]
        for given, made, why in zip(batch, output, flags, strict=True):
            name = Path(str(given[PostFix.meta(Keys.IMAGE.value)][ImageMetaKey.FILENAME_OR_OBJ])).name
            prediction, truth, mask_logits = (_plain(made[key]) for key in (Keys.PRED, Keys.LABEL, MASK_LOGITS))
            self.scores.append(score_image(name, prediction, truth, mask_logits, why))

    def write(self) -> None:
        """Write both files."""
        with atomic_path(self.output_dir / SCORES_TABLE) as path:
            _write_table(self.scores, path)
        content = {**asdict(self.summary), "record": self.record}
        write_json(self.output_dir / SCORES_SUMMARY, content)


@dataclass(frozen=True)
class EvaluateResult:
    """The outcome of an evaluation.

    Attributes:
        folder: Where the files lie.
        part: The part of the data set that was scored; None for a folder without parts.
        summary: The scores of all images.
        mean_dice: MONAI's ``MeanDice``: the mean Dice of the images whose truth is not empty.
    """

    folder: Path
    part: str | None
    summary: Summary
    mean_dice: float


def evaluate(
    data: FilePath,
    output: FilePath,
    options: EvaluateOptions | None = None,
    progress: Progress | None = None,
    **chosen: Any,
) -> EvaluateResult:
    """Score a model on a folder of labelled images.

    Args:
        data: A folder that ``data.datalists.open_datalist`` knows.
        output: Folder for ``scores.csv``, ``scores.json`` and ``scores.png``; files of an earlier run are replaced.
        options: See :class:`amsam_med.options.EvaluateOptions`.
        progress: Called after each image.
        **chosen: Fields of :class:`EvaluateOptions` by name, in place of those of ``options``.

    Raises:
        ConfigError: The output lies among the images or masks, another process writes to it, or there is too little
            memory.
        DataError: The data cannot be used, or the output cannot be written to.
        WeightsError: The file of the model, adapter, base or detector is missing or damaged.
    """
    options = with_chosen(options or EvaluateOptions(), chosen)
    data, output = Path(data), Path(output)
    with limits_named(output, _LESS_MEMORY), held(output / LOCK, f"the scores in {output}"):
        for name in (SCORES_TABLE, SCORES_SUMMARY, SCORES_PICTURE):
            sweep_unfinished(output / name)
        return _evaluate(data, output, options, progress)


def _evaluate(data: Path, output: Path, options: EvaluateOptions, progress: Progress | None) -> EvaluateResult:
    workflow = EvaluateWorkflow(
        open_bundle(options.bundle or default_bundle(options.adapter), "evaluate", _overrides(data, output, options))
    )
    refuse_output_among(workflow.data, output)
    workflow.initialize()
    scores: ScoreHandler = workflow.scores
    evaluator = workflow.evaluator
    if progress is not None:
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, _report_to, progress)
    evaluator.run()
    summary = scores.summary
    draw_scores([score.dice for score in scores.scores], summary.dice_interval, output / SCORES_PICTURE)
    mean_dice = float(evaluator.state.metrics[evaluator.state.key_metric_name])
    return EvaluateResult(output, workflow.part, summary, mean_dice)


def _overrides(data: Path, output: Path, options: EvaluateOptions) -> dict[str, Any]:
    overrides: dict[str, Any] = {"dataset_dir": str(data), "output_dir": str(output)}
    overrides["handlers"] = Expression("$[@scores]")  # StatsHandler is for log files; here it would only warn of none
    overrides |= model_overrides(
        options.adapter, options.base_weights, options.detector, options.device, options.test_views
    )
    if options.part is not None:
        overrides["part"] = options.part
    return {**overrides, **options.overrides}


def _report_to(engine: Engine, progress: Progress) -> None:
    progress(engine.state.iteration, engine.state.epoch_length or 0)


def _plain(tensor: Tensor) -> Tensor:
    """Without MONAI's metadata, on the CPU, where distances between outlines are computed."""
    return torch.as_tensor(tensor.detach().cpu().numpy())


def _class_masks(ids: Tensor, num_classes: int) -> Tensor:
    """Class ids ``(1, H, W)`` as bool ``(C, H, W)``, without the background."""
    return ids == torch.arange(1, num_classes + 1)[:, None, None]


def _mean_dice(predicted: Tensor, true: Tensor) -> float:
    """Mean over the classes that either of bool ``(C, H, W)`` holds; 1 if there is none."""
    is_held = _holds_any(predicted) | _holds_any(true)
    scores = [dice_score(*pair) for pair in zip(predicted[is_held], true[is_held], strict=True)]
    return float(np.mean(scores)) if scores else 1.0


def _mean_iou(predicted: Tensor, true: Tensor) -> float:
    """Mean over the classes that either of bool ``(C, H, W)`` holds; 1 if there is none."""
    is_held = _holds_any(predicted) | _holds_any(true)
    if not bool(is_held.any()):
        return 1.0
    return float(compute_iou(predicted[None, is_held], true[None, is_held], ignore_empty=False).mean())


def _mean_hd95(predicted: Tensor, true: Tensor) -> float | None:
    """Mean over the classes that both of bool ``(C, H, W)`` hold, in pixels; None if there is none."""
    is_in_both = _holds_any(predicted) & _holds_any(true)
    if not bool(is_in_both.any()):
        return None
    with warnings.catch_warnings():  # MONAI calls its own deprecated argument
        warnings.filterwarnings("ignore", "monai.metrics.utils get_mask_edges", FutureWarning)
        distances = compute_hausdorff_distance(
            predicted[None, is_in_both], true[None, is_in_both], include_background=True, percentile=SURFACE_PERCENTILE
        )
    return float(distances.mean())


def _holds_any(masks: Tensor) -> Tensor:
    return masks.flatten(start_dim=1).any(dim=1)


def _write_table(scores: Iterable[ImageScore], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = TableWriter(file, [column.name for column in fields(ImageScore)])
        writer.write_header()
        writer.write_rows(asdict(score) for score in scores)


make_callable(__name__)
