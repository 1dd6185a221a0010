"""YOLOv8n as box detector: the most confident box of an image becomes the prompt, as in the paper's Figure 2.

By default the box is refined by voting: it becomes the confidence-weighted mean of the boxes that overlap it, in the
image and in its mirror image (Gidaris and Komodakis 2015).

This is the only file that imports ultralytics, which is licensed under AGPL-3.0. All other code uses the protocol
:class:`amsam_med.boxes.BoxDetector`.

By default, ultralytics keeps settings and fonts in the user's home, checks for updates, sends usage statistics,
installs missing packages and prints a lot. None of that happens here: :func:`_switched_off` imports it with all that
disabled, and :class:`_Training` runs none of its integrations.
"""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.ops import box_convert, box_iou

from amsam_med.boxes import BoxChoice, Detections, clip_boxes, full_image_box, scale_boxes
from amsam_med.detect.files import MIN_CONFIDENCE, DetectorWeights, compact, read_weights, write_weights
from amsam_med.detect.labels import Samples, YoloFolder, write_yolo_folder
from amsam_med.detect.scores import BoxScores, score_boxes
from amsam_med.errors import ConfigError, DataError, WeightsError
from amsam_med.files import write_json
from amsam_med.keys import Keys
from amsam_med.machine import limits_named
from amsam_med.scratch import scratch_folder
from amsam_med.tensors import refuse_non_finite, refuse_other_shapes
from amsam_med.threads import kept_threads
from amsam_med.views import MIRROR, view_boxes


@contextmanager
def _kept_environment() -> Iterator[None]:
    """Restore the environment variables after the block: ultralytics sets OMP_NUM_THREADS=1, which children inherit."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _switched_off() -> Iterator[None]:
    """Import ultralytics offline, silent and without the user's home, and undo its changes to this process.

    Its switches are read once, at import; if a caller has imported it before, the caller's switches apply.
    """
    with (
        tempfile.TemporaryDirectory(prefix="amsam-ultralytics-") as settings,
        _kept_environment(),
        warnings.catch_warnings(),
        np.printoptions(),
    ):
        off = {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "0", "YOLO_VERBOSE": "0", "YOLO_CONFIG_DIR": settings}
        os.environ.update(off)
        originals = PIL.Image.open, torch.save
        yield
        # Its replacements look for a HEIF package, and repeat a failed save. The rest of this process expects the
        # originals.
        PIL.Image.open, torch.save = originals
    torch.set_printoptions(profile="default")  # type: ignore[no-untyped-call]


with _switched_off():
    import ultralytics
    from ultralytics.models.yolo.detect import DetectionTrainer
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils import ROOT, YAML
    from ultralytics.utils.torch_utils import unset_deterministic

ARCHITECTURE = "yolov8n"
VOTING_IOU = 0.65
"""Boxes with at least this IoU with the most confident one take part in voting; chosen on validation images."""
STRIDE = 32
"""Stride of YOLOv8's coarsest features: input sizes are multiples of it."""
MAX_INPUT_SIZE = 2048
"""The largest input size in pixels; a file's header that asks for more could exhaust the memory."""
_LESS_MEMORY = "give a smaller --batch-size or --input-size, or --device cpu"
_CLASS_HEAD = ".cv3."  # in the names of parameters whose shapes depend on the number of classes
_STABILITY_HINT = "train with a larger --batch-size, another --seed"
_REMEDY = "copy it again, or make one with `amsam detector train`"


class YoloDetector(nn.Module):
    """Find the most confident box of each image.

    Frozen and always in evaluation mode. By default the network sees each image and its mirror image, and the result is
    the confidence-weighted mean of all boxes that overlap the most confident one.

    Args:
        class_name: The class that it detects.
        input_size: Side of the square that the network was trained on, in pixels; a multiple of 32 from 64 to 2048.
        min_confidence: Boxes with a lower confidence do not count as detections, in [0, 1].
        edge_error: Standard deviation of the error of a box's edges on images that it was not trained on, as a share of
            the box's width or height; 0 if it is not known.
        box_choice: ``"vote"`` as above; ``"surest"`` takes the most confident box of the image itself, as in the paper,
            and always uses it: ``min_confidence`` is then 0.

    Raises:
        ConfigError: ``input_size``, ``min_confidence``, ``edge_error`` or ``box_choice`` is out of range.
    """

    def __init__(
        self,
        class_name: str = "object",
        input_size: int = 256,
        min_confidence: float = MIN_CONFIDENCE,
        edge_error: float = 0.0,
        box_choice: BoxChoice = "vote",
    ) -> None:
        super().__init__()
        _check_input_size(input_size)
        if not 0 <= min_confidence <= 1:
            raise ConfigError(f"min_confidence = {min_confidence}; expected a number from 0 to 1")
        if not 0 <= edge_error < math.inf:
            raise ConfigError(f"edge_error = {edge_error}; expected a share of a box's size, 0 or more")
        if box_choice not in get_args(BoxChoice):
            raise ConfigError(f"box_choice {box_choice!r} is unknown; expected one of {', '.join(get_args(BoxChoice))}")
        self.class_name = class_name
        self.input_size = input_size
        self.box_choice = box_choice
        self.min_confidence = min_confidence if box_choice == "vote" else 0.0
        self.edge_error = edge_error
        self.network = _build_network().requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> YoloDetector:
        """Stay in evaluation mode, whatever a surrounding module is set to."""
        super().train(False)
        return self

    def fuse(self) -> YoloDetector:
        """Merge batch norms into the convolutions and store weights channels-last; in place, and not reversible.

        The boxes stay the same except for rounding, and a CPU takes nine tenths of the time.
        """
        self.network.fuse(verbose=False)  # type: ignore[operator]
        return self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Detections:
        """Find one box in each image; the whole image's box if no candidate is finite and inside the image.

        Args:
            image: RGB float32 ``(B, 3, S, S)`` in [0, 1]; resized where S is not the detector's own input size.

        Raises:
            DataError: ``image`` has another shape.
        """
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] != image.shape[3]:
            raise DataError(f"The detector got an image of shape {tuple(image.shape)}; expected (B, 3, S, S)")
        size, own_size = (image.shape[2], image.shape[3]), (self.input_size, self.input_size)
        if size != own_size:
            image = interpolate(image, own_size, mode="bilinear", antialias=True)
        candidates, confidences = self._candidates(image)
        # Damaged weights may give NaN, which argmax would take for the highest confidence.
        is_box = candidates.isfinite().all(dim=2) & confidences.isfinite()
        candidates, confidences = candidates.where(is_box[..., None], 0.0), confidences.where(is_box, 0.0)
        choose = _vote if self.box_choice == "vote" else _surest
        chosen = [choose(*of_image) for of_image in zip(candidates, confidences, strict=True)]
        confidence = confidences.amax(dim=1)
        boxes = clip_boxes(scale_boxes(torch.stack(chosen), own_size, size), size)
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        confidence = confidence.where(has_area, 0.0)
        return Detections(
            boxes=torch.where(has_area[:, None], boxes, full_image_box(size).to(boxes)),
            confidence=confidence,
            is_detected=has_area & (confidence >= self.min_confidence),
        )

    def _candidates(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes float ``(B, N, 4)``, xyxy, and confidences ``(B, N)``; for voting, half are from the mirror image."""
        has_mirror = self.box_choice == "vote"
        found = self.network(torch.cat([image, image.flip(3)]) if has_mirror else image)[0].mT  # (B or 2B, anchors, 5)
        boxes, confidences = box_convert(found[..., :4], "cxcywh", "xyxy"), found[..., 4]
        if not has_mirror:
            return boxes, confidences
        seen, mirrored = boxes.chunk(2)
        candidates = torch.cat([seen, view_boxes(mirrored, MIRROR, self.input_size)], dim=1)
        return candidates, torch.cat(confidences.chunk(2), dim=1)


def _surest(candidates: Tensor, confidences: Tensor) -> Tensor:
    """The most confident ``(4,)`` of the boxes ``(N, 4)``."""
    return candidates[int(confidences.argmax())]


def _vote(candidates: Tensor, confidences: Tensor) -> Tensor:
    """The mean ``(4,)`` of the boxes ``(N, 4)`` around the most confident one, weighted by confidences ``(N,)``."""
    best = int(confidences.argmax())
    is_near = box_iou(candidates[best, None], candidates)[0] >= VOTING_IOU
    is_near[best] = True  # a box without area has no IoU even with itself
    votes = confidences * is_near
    mean: Tensor = (votes[:, None] * candidates).sum(dim=0) / votes.sum().clamp(min=1e-12)
    return mean


class DetectorScores(NamedTuple):
    """Scores of a detector on the validation part.

    Attributes:
        map50: Mean average precision of all boxes at an IoU of 0.5.
        map50_95: The same, averaged over IoUs from 0.5 to 0.95.
        best_box: Scores of the one box per image that serves as prompt.
    """

    map50: float
    map50_95: float
    best_box: BoxScores


class TrainingProgress(NamedTuple):
    """Progress of a training, after a step or after the validation of an epoch.

    Attributes:
        epoch: Counted from 1.
        epochs: Number of epochs in total.
        step: Counted from 1 within the epoch.
        steps: Steps per epoch.
        loss: Mean over this epoch so far.
        map50: On the validation part; None until the epoch is finished.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    map50: float | None


class TrainingOptions(NamedTuple):
    """Settings of :func:`train_detector`.

    Attributes:
        class_name: The class that the detector finds.
        has_instances: Every id of a label is a separate object; else all its non-zero pixels are one object.
        epochs: Passes over the training part; the epoch with the best validation is kept. With 0, ``start`` is only
            scored.
        batch_size: Images per step.
        seed: Of the random weights, the order and the augmentation.
        device: "auto", "cpu" or "cuda".
        is_upright: Objects are never upside down (people): no vertical flips.
        mosaic: Share of training images composed of four, for small objects; none in the last quarter of the epochs.
        start: Initial weights instead of random ones; their class head is left out if it has other classes.
        trust_pickle: ``start`` may be an ultralytics ``.pt`` file, which can run code when it is read.
        min_confidence: Of the trained detector, see :class:`YoloDetector`.
    """

    class_name: str = "object"
    has_instances: bool = False
    epochs: int = 8
    batch_size: int = 16
    seed: int = 0
    device: str = "auto"
    is_upright: bool = False
    mosaic: float = 0.0
    start: Path | None = None
    trust_pickle: bool = False
    min_confidence: float = MIN_CONFIDENCE


def load_detector(
    path: str | Path,
    min_confidence: float | None = None,
    trust_pickle: bool = False,
    box_choice: BoxChoice = "vote",
) -> YoloDetector:
    """Read a detector, strictly, and fuse it for speed; :func:`save_detector` cannot write a fused one.

    Args:
        path: A file that :func:`save_detector` wrote, or an ultralytics ``.pt`` of a YOLOv8n with one class.
        min_confidence: As for :class:`YoloDetector`; by default the file's own.
        trust_pickle: ``path`` may be a ``.pt`` file, which can run code when it is read.
        box_choice: As for :class:`YoloDetector`.

    Raises:
        WeightsError: The file is missing, damaged, or of another network.
        ConfigError: A ``.pt`` file was given without ``trust_pickle``.
    """
    path = Path(path)
    weights = read_weights(path, trust_pickle)
    what = f"it does not hold a {ARCHITECTURE} with one class"
    if weights.class_count != 1:
        got = f"{path.name} finds {weights.class_count} classes"
        raise WeightsError(f"{got}; expected one. It can start a training (`amsam detector train --from`) instead")
    min_confidence = weights.min_confidence if min_confidence is None else min_confidence
    try:
        of_file = weights.class_name, weights.input_size, min_confidence, weights.edge_error
        detector = YoloDetector(*of_file, box_choice)
    except ConfigError as error:
        raise WeightsError(f"{path.name}: {error}; {_REMEDY}") from None
    refuse_other_shapes(weights.state, detector.network.state_dict(), path.name, f"{what}; {_REMEDY}")
    detector.network.load_state_dict(weights.state)
    detector.fuse()
    # After fusing, because a negative variance of a batch norm becomes NaN only then.
    refuse_non_finite(detector.network.state_dict(), path.name, _REMEDY)
    return detector


def save_detector(detector: YoloDetector, path: Path, scores: DetectorScores | None = None) -> None:
    """Write a detector as fp16 safetensors (6 MB), and its scores beside it as JSON; both replaced atomically."""
    assert not detector.network.is_fused(), "a fused detector lacks tensors of its file; copy the file"  # type: ignore[operator]
    state = detector.network.state_dict()
    measured = detector.edge_error, detector.min_confidence
    weights = DetectorWeights(state, detector.class_name, 1, detector.input_size, *measured)
    write_weights(weights, path, model=f"{ARCHITECTURE}.yaml", ultralytics=ultralytics.__version__)
    if scores is not None:
        plain = {**scores._asdict(), "best_box": scores.best_box._asdict()}
        write_json(path.with_suffix(".json"), plain)


def train_detector(
    train: Samples,
    validation: Samples,
    options: TrainingOptions | None = None,
    on_progress: Callable[[TrainingProgress], None] | None = None,
) -> tuple[YoloDetector, DetectorScores]:
    """Train a detector on the boxes of masks, with ultralytics' own trainer in a temporary folder.

    The same seed, items and machine give the same detector; torch, NumPy and Python are seeded on the way.

    Args:
        train: Prepared items to train on; their image size becomes the detector's input size.
        validation: Prepared items of the same size, to select the best epoch and to score it.
        options: All further settings.
        on_progress: Called after every step and epoch.

    Raises:
        DataError: A part is empty or holds no object, or images differ in size.
        ConfigError: A setting is out of range, there is no such device, the training diverges, or memory runs out.
        WeightsError: ``options.start`` is of another network, or holds values that are not finite.
    """
    options = options or TrainingOptions()
    _check_options(options)
    if len(train):
        _check_input_size(train[0][Keys.IMAGE].shape[-1])  # before all images are written
    network = _build_network(options.seed)
    if options.start is not None:
        _start_from(network, options.start, options.trust_pickle)
    with scratch_folder() as folder, limits_named(folder, _LESS_MEMORY), _kept_environment():
        parts = [
            write_yolo_folder(samples, folder / name, options.has_instances)
            for name, samples in (("training", train if options.epochs else validation), ("validation", validation))
        ]
        if parts[1].input_size != parts[0].input_size:
            sizes = f"{parts[0].input_size} px for training and {parts[1].input_size} px for validation"
            raise DataError(f"The images have {sizes}; prepare both parts for one input size")
        training = _Training(network, parts[0], parts[1], options, on_progress or (lambda progress: None))
        if options.epochs:
            training.train()  # type: ignore[no-untyped-call]
        else:
            training.measure()
    detector = YoloDetector(options.class_name, parts[0].input_size, options.min_confidence)
    if not training.best_state:  # no epoch had a fitness that is a number
        raise _divergence("the validation", options)
    detector.network.load_state_dict(training.best_state)
    map50, map50_95 = (training.best_metrics[f"metrics/{name}(B)"] for name in ("mAP50", "mAP50-95"))
    best_box = score_boxes(detector, validation, options.has_instances)
    detector.edge_error = best_box.edge_error
    return detector, DetectorScores(map50, map50_95, best_box)


class _Training(DetectionTrainer):
    """Ultralytics' trainer on a given network and folders, keeping the best weights in memory.

    Its name avoids the word "Trainer", for which ultralytics would load its platform and logging integrations.
    """

    ema: Any  # ultralytics sets these to None first
    metrics: Any
    model: Any
    loss: Any
    tloss: Any

    def __init__(
        self,
        network: nn.Module,
        train: YoloFolder,
        validation: YoloFolder,
        options: TrainingOptions,
        on_progress: Callable[[TrainingProgress], None],
    ) -> None:
        self._data: dict[str, Any] = {
            "path": train.images.parents[1],
            "train": str(train.images),
            "val": str(validation.images),
            "names": {0: options.class_name},
            "nc": 1,
            "channels": 3,
        }
        self._options = options
        self._on_progress = on_progress
        self._step = 0
        self.best_state: Mapping[str, Tensor] = {}
        self.best_metrics: Mapping[str, float] = {}
        with kept_threads():  # ultralytics sets torch's threads to the number of cores less one
            super().__init__(overrides=_ultralytics_settings(train, options))
        self.model = network

    def measure(self) -> None:
        """Validate the weights as they are, as if they were those of an epoch."""
        try:
            self._setup_train()  # type: ignore[no-untyped-call]
            batch = self.preprocess_batch(next(iter(self.train_loader)))
            # A validation reads the epoch's number and loss, which no training step has set here.
            self.epoch, (loss, self.loss_items) = 0, self.ema.ema.loss(batch)
            self.loss = loss.sum()
            self.metrics, self.fitness = self.validate()  # type: ignore[no-untyped-call]
            self.save_model()
        finally:
            unset_deterministic()  # type: ignore[no-untyped-call]

    def get_dataset(self) -> dict[str, Any]:
        """Return the data without ultralytics' check, which looks for a font and downloads it."""
        return self._data

    def setup_model(self) -> None:
        """Do nothing: the network was given."""

    def run_callbacks(self, event: str) -> None:
        """Report progress only: the callbacks of ultralytics are usage statistics and loggers."""
        if event == "on_train_epoch_start":
            self._step = 0
        elif event == "on_train_batch_end":
            self._step += 1
            self._refuse_divergence()
            self._report(None)
        elif event == "on_fit_epoch_end":
            self._report(self.metrics["metrics/mAP50(B)"])

    def _handle_nan_recovery(self, epoch: int) -> bool:
        """Do nothing: ultralytics would look for a checkpoint, a pickle; here a NaN ends the training instead."""
        return False

    def _refuse_divergence(self) -> None:
        if not bool(self.loss.isfinite()):
            raise _divergence(f"the loss of epoch {self.epoch + 1} is {float(self.loss.detach())}", self._options)

    def save_model(self) -> bool:
        """Keep the best weights (their moving average) in memory instead of writing a pickle."""
        if self.best_fitness == self.fitness:
            average = self.ema.ema.state_dict()
            refuse_non_finite(average, f"the detector after epoch {self.epoch + 1}", _STABILITY_HINT, ConfigError)
            self.best_state = {name: compact(tensor) for name, tensor in average.items()}
            self.best_metrics = dict(self.metrics)
        return True

    def final_eval(self) -> None:
        """Do nothing: the best epoch is validated already, and ultralytics' own step reads a checkpoint file."""

    def _report(self, map50: float | None) -> None:
        loss = float(sum(self.tloss.values()))
        position = (self.epoch + 1, self.epochs, self._step, len(self.train_loader))
        self._on_progress(TrainingProgress(*position, loss, map50))


def _divergence(what: str, options: TrainingOptions) -> ConfigError:
    start = "" if options.start is None else f", from other weights than {options.start.name}"
    return ConfigError(f"the training has diverged: {what}; {_STABILITY_HINT}{start}")


def _ultralytics_settings(train: YoloFolder, options: TrainingOptions) -> dict[str, Any]:
    return {
        "model": f"{ARCHITECTURE}.yaml",
        "data": "given.yaml",  # unused, as is `model`, but not allowed to be empty
        "save_dir": str(train.images.parent / "run"),
        "imgsz": train.input_size,
        "epochs": max(1, options.epochs),
        "batch": options.batch_size,
        # Else ultralytics accumulates gradients up to 64 images per optimiser step, and few-shot sets have few of them.
        "nbs": options.batch_size,
        "seed": options.seed,
        "device": "0" if _device(options.device) == "cuda" else "cpu",
        "workers": 0,
        "mosaic": options.mosaic,
        "close_mosaic": max(1, options.epochs // 4),
        "flipud": 0.0 if options.is_upright else 0.5,
        "amp": False,  # ultralytics' check of it downloads a network and an image
        "plots": False,
        "verbose": False,
    }


def _build_network(seed: int = 0) -> nn.Module:
    """YOLOv8n for one class with seeded random weights; torch's own random state is left alone."""
    # A dict, because for a name ultralytics would first look for such a file in the working directory.
    layers = YAML.load(ROOT / "cfg/models/v8/yolov8.yaml")  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = DetectionModel(  # type: ignore[no-untyped-call]
            {**layers, "scale": ARCHITECTURE[-1]}, ch=3, nc=1, verbose=False
        )
    return network


def _start_from(network: nn.Module, path: Path, trust_pickle: bool) -> None:
    state = read_weights(path, trust_pickle).state
    own = network.state_dict()
    fitting = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
    lacking = [name for name in own if name not in fitting and _CLASS_HEAD not in name]
    if lacking:
        raise WeightsError(f"{path.name} is not a {ARCHITECTURE} (it lacks {lacking[0]}); start from another file")
    if any(name not in fitting for name in own):  # other classes: a head of which only some tensors fit is useless
        fitting = {name: tensor for name, tensor in fitting.items() if _CLASS_HEAD not in name}
    refuse_non_finite(fitting, path.name)
    network.load_state_dict(fitting, strict=False)


def _check_options(options: TrainingOptions) -> None:
    fewest_epochs = 1 if options.start is None else 0
    if options.epochs < fewest_epochs or options.batch_size < 1 or not 0 <= options.mosaic <= 1:
        got = f"epochs={options.epochs}, batch_size={options.batch_size}, mosaic={options.mosaic}"
        raise ConfigError(f"{got}; expected whole numbers from 1 (0 epochs with given weights), and a mosaic of 0 to 1")
    _device(options.device)


def _check_input_size(input_size: int) -> None:
    if not 2 * STRIDE <= input_size <= MAX_INPUT_SIZE or input_size % STRIDE:
        raise ConfigError(
            f"input_size = {input_size}; expected a multiple of {STRIDE} from {2 * STRIDE} to "
            f"{MAX_INPUT_SIZE}, such as 256"
        )


def _device(name: str) -> str:
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device = {name!r}; expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda', but torch finds no GPU here; use auto or cpu")
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
