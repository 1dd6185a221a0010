"""One cell of the paper's tables: train a system on a few examples, score it on the test images, and time it.

AM-SAM and BLO-SAM are the bundle's own training (``train.yaml``); ``adaptation`` has other ways to adapt a base, and
``baselines`` all other systems. Test images are read, squashed, scored and averaged in the same way for all. Embeddings
of a frozen base are kept on disk, so the test images go through it once for all cells; what this saves is in no
measurement of time.
"""

from __future__ import annotations

import ctypes
import gc
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from monai.utils.misc import set_determinism
from torch import Tensor, nn

from amsam_med import weights
from amsam_med.boxes import BoxDetector, Detections
from amsam_med.bundle import Expression, TrainWorkflow, open_bundle
from amsam_med.bundle_settings import paper_settings
from amsam_med.data.datalists import Item, few_shot_draw
from amsam_med.data.readers import read_image, read_mask
from amsam_med.data.transforms import prepare_image, restore_original
from amsam_med.detect.yolo import load_detector
from amsam_med.domains import DEFAULT_BUNDLE
from amsam_med.evaluate import dice_score
from amsam_med.infer import PromptInferer, predict_prompted
from amsam_med.learn.cache import EmbeddingCache
from amsam_med.model import AmSam, build_amsam
from amsam_med.model.encoders import Below
from amsam_med.weights import locate_bundle
from pipelines.paper.adaptation import Way, adapt_by, draw_masks, encode, prototype_prior
from pipelines.paper.baselines import BASELINES
from pipelines.paper.baselines.interface import BaselineNetwork, Recipe, Setting
from pipelines.paper.baselines.training import load_examples, train_baseline, trained_parameters
from pipelines.paper.store import ADAPT, AM_SAM, Cell, Identity, Measured, Store
from pipelines.paper.tasks import TASKS, Part, data_set_of, few_shot_detector, open_lists

OURS = (AM_SAM, ADAPT)
"""Methods that adapt the base itself, and take the output of its frozen encoder instead of images."""
AT_ONCE = 8
"""Test images per batch of a network."""
TIMED_IMAGES = 12
PACKAGES = ("amsam-med", "torch", "monai", "timm", "torchvision", "ultralytics", "segment-anything")

DetectorKind = Literal["none", "k-shot", "shipped"]
EpochDone = Callable[[int, AmSam], None]
"""Called after each epoch with its number, from 1, and the network in evaluation mode."""


@dataclass(frozen=True)
class Workspace:
    """Data, base, device and output folder of a run.

    Attributes:
        data: The data folder.
        output: Where results, detectors and embeddings lie.
        base: Name of the base.
        base_file: Its weights.
        input_size: Of every network that has no size of its own, in pixels.
        is_pretrained: See :class:`pipelines.paper.baselines.interface.Setting`.
        weights_folder: The same.
        device: Name of torch's device.
    """

    data: Path
    output: Path
    base: str = "tiny-general"
    base_file: Path | None = None
    input_size: int = 256
    is_pretrained: bool = False
    weights_folder: Path | None = None
    device: str = "cpu"


class Job(NamedTuple):
    """A system and its training, as a row of a table names it.

    Attributes:
        method: ``"am-sam"``, ``"adapt"``, or a name of :data:`pipelines.paper.baselines.BASELINES`.
        settings: Over the bundle's ``train.yaml``, those of a :class:`~pipelines.paper.adaptation.Way`, or over the
            baseline's recipe.
        detector: Where boxes come from.
        is_paper: Begin with ``paper.yaml`` (AM-SAM's training alone).
    """

    method: str
    settings: Mapping[str, Any]
    detector: DetectorKind = "none"
    is_paper: bool = False

    @property
    def is_trained(self) -> bool:
        """Whether examples and seeds make a difference."""
        if self.method == ADAPT:
            return Way(**self.settings).needs_examples
        return self.method == AM_SAM or self.detector == "k-shot" or BASELINES[self.method].recipe is not None


class TestImages:
    """The images on which results are reported.

    Args:
        items: Pairs of image and mask.
        embeddings: Folder that keeps embeddings between runs.
    """

    __test__ = False  # no test, whatever pytest makes of its name

    def __init__(self, items: Sequence[Item], embeddings: Path) -> None:
        self.items, self.embeddings = items, embeddings
        self._pixels: dict[int, Tensor] = {}
        self._encoded: dict[str, Tensor] = {}
        self._boxes: dict[Path, Detections] = {}

    def images(self, input_size: int) -> Tensor:
        """All of them, uint8 ``(N, 3, S, S)``; a quarter of the memory of what :meth:`batch` makes of them."""
        if input_size not in self._pixels:
            squashed = [prepare_image(read_image(item["image"]).pixels, input_size) for item in self.items]
            self._pixels[input_size] = torch.stack([(255 * image).round().byte() for image in squashed])
        return self._pixels[input_size]

    def batch(self, some: slice, input_size: int) -> Tensor:
        """Images float ``(B, 3, S, S)`` in [0, 1], the same numbers as :func:`prepare_image` gives."""
        return self.images(input_size)[some].float().div_(255)

    def encoded(self, workspace: Workspace) -> Tensor:
        """Features float ``(N, C, S/16, S/16)`` by a workspace's base, which its networks take instead of images."""
        key = f"{workspace.base} {workspace.base_file} {workspace.input_size}"
        if key not in self._encoded:
            network = build_amsam(workspace.base, input_size=workspace.input_size, base_weights=workspace.base_file)
            cache = EmbeddingCache(Below(network.image_encoder, "stage").to(workspace.device), self.embeddings, AT_ONCE)
            parts = [cache.get(self.batch(some, workspace.input_size)) for some in self._slices()]
            self._encoded[key] = torch.cat(parts)
        return self._encoded[key]

    def boxes(self, detector_file: Path, workspace: Workspace) -> Detections:
        """One box per image, xyxy pixels of the model input; each detector looks once."""
        if detector_file not in self._boxes:
            detector: BoxDetector = load_detector(detector_file).to(workspace.device)
            found = [detector(self.batch(some, workspace.input_size).to(workspace.device)) for some in self._slices()]
            joined = Detections(*map(torch.cat, zip(*found, strict=True)))
            self._boxes[detector_file] = Detections(*(part.cpu() for part in joined))
        return self._boxes[detector_file]

    def score(self, logits_of: Callable[[slice], Tensor]) -> dict[str, float]:
        """Dice of each image at its own size, by the stem of its file.

        Args:
            logits_of: Logits float ``(B, 2, h, w)`` of a slice of the images.
        """
        scores: dict[str, float] = {}
        for some in self._slices():
            with torch.no_grad():
                batch = logits_of(some).float().cpu()
            for item, logits in zip(self.items[some], batch, strict=True):
                truth = torch.from_numpy(read_mask(item["label"]))
                mask = restore_original(logits, (truth.shape[0], truth.shape[1]))
                scores[Path(item["image"]).stem] = dice_score(mask, truth)
        return scores

    def _slices(self) -> Iterator[slice]:
        return (slice(start, start + AT_ONCE) for start in range(0, len(self.items), AT_ONCE))


class Trained(NamedTuple):
    """A network ready for use.

    Attributes:
        network: In evaluation mode.
        predict: Logits float ``(B, 2, h, w)`` of a slice of the test images.
        predict_pixels: The same of images float ``(B, 3, S, S)`` in [0, 1], detector included.
        input_size: Of those images.
        chosen: What the training has chosen by itself, as printed; empty for nothing.
    """

    network: nn.Module
    predict: Callable[[slice], Tensor]
    predict_pixels: Callable[[Tensor], Tensor]
    input_size: int
    chosen: str = ""


class Bench:
    """Runs the cells of one data set.

    Args:
        name: A key of :data:`TASKS`.
        workspace: Where data and results are, and on which base.
        part: ``"test"``, or ``"val"`` for selection and for curves over epochs: images that no result is reported on.
    """

    def __init__(self, name: str, workspace: Workspace, part: Part = "test") -> None:
        self.name, self.task, self.workspace, self.part = name, TASKS[name], workspace, part
        self.pool, scored = open_lists(name, workspace.data, part)
        self.test = TestImages(scored, workspace.output / "embeddings")
        self.base_sha256 = "" if workspace.base_file is None else weights.sha256(workspace.base_file)

    def identity(self, job: Job, shots: int, seed: int) -> Identity:
        """What a cell is, before it is run."""
        workspace = self.workspace
        has_base = job.method in OURS or BASELINES[job.method].has_base
        shipped = job.detector == "shipped"
        return Identity(
            data_set=data_set_of(self.name, self.part),
            method=job.method,
            settings=settings_of(job),
            detector=job.detector,
            shots=shots if job.is_trained else 0,
            seed=seed if job.is_trained else 0,
            base=workspace.base if has_base else "",
            base_sha256=self.base_sha256 if has_base else "",
            detector_sha256=weights.sha256(self._shipped_detector()) if shipped else "",
            input_size=self._input_size(job),
            is_pretrained=workspace.is_pretrained and not has_base,
            images=len(self.test.items),
        )

    def run(self, job: Job, shots: int, seed: int) -> Cell:
        """Train, score and time a cell."""
        identity = self.identity(job, shots, seed)
        detector_start = clock(self.workspace.device)
        detector_file = self.detector_file(job.detector, identity.shots, identity.seed)
        detector_seconds = clock(self.workspace.device) - detector_start
        self._warm_up(job, detector_file)
        with _Watch(self.workspace.device) as watch:
            trained = self.train(job, identity.shots, identity.seed, detector_file)
        scores = self.test.score(trained.predict)
        network = trained.network
        baseline = network if isinstance(network, BaselineNetwork) else None
        measured = Measured(
            dice=statistics.fmean(scores.values()),
            train_seconds=round(watch.seconds, 2) if job.is_trained else 0.0,
            detector_seconds=round(detector_seconds, 2) if job.detector == "k-shot" else 0.0,
            milliseconds=round(self._milliseconds(trained), 2),
            peak_megabytes=round(watch.megabytes, 1),
            trained_parameters=sum(one.numel() for one in trained_parameters(network)) if job.is_trained else 0,
            parameters=_count(network),
            origin=self.workspace.base if baseline is None else baseline.origin,
            variant="" if baseline is None else baseline.variant,
            chosen=trained.chosen,
            device=_device_name(self.workspace.device),
            threads=torch.get_num_threads(),
            is_processor_time=is_processor_time(self.workspace.device),
            commit=_commit(),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={package: version(package) for package in PACKAGES},
        )
        return Cell(identity, measured, scores)

    def train(
        self,
        job: Job,
        shots: int,
        seed: int,
        detector_file: Path | None = None,
        epoch_done: EpochDone | None = None,
    ) -> Trained:
        """Train a system, or build one that is used as it is.

        Args:
            job: What to train.
            shots: How many examples.
            seed: Of draw and training.
            detector_file: Weights of the detector; None for no boxes.
            epoch_done: Called after each epoch (AM-SAM's training alone).
        """
        if job.method == AM_SAM:
            return self._train_am_sam(job, shots, seed, detector_file, epoch_done)
        if job.method == ADAPT:
            return self._adapt(Way(**job.settings), shots, seed)
        return self._train_baseline(job, shots, seed, detector_file)

    def am_sam_logits(self, network: AmSam, detector_file: Path | None, some: slice) -> Tensor:
        """AM-SAM's logits of test images, by their kept embeddings."""
        device = next(network.parameters()).device
        found = None if detector_file is None else self.test.boxes(detector_file, self.workspace)
        found = found and Detections(*(part[some].to(device) for part in found))
        return predict_prompted(network, self.test.encoded(self.workspace)[some].to(device), found).mask_logits

    def _train_am_sam(
        self, job: Job, shots: int, seed: int, detector_file: Path | None, epoch_done: EpochDone | None
    ) -> Trained:
        workspace = self.workspace

        def note(epoch: int, _epochs: int, _dice: float) -> None:
            assert epoch_done is not None
            epoch_done(epoch, recorder.network.eval())
            recorder.network.train()

        with tempfile.TemporaryDirectory() as folder:
            settings = {
                **_overrides(job),
                "data": list(self.pool),
                "output_dir": folder,
                "save_whole_model": False,
                "shots": shots,
                "seed": seed,
                "base": workspace.base,
                "base_file": None if workspace.base_file is None else str(workspace.base_file),
                "input_size": workspace.input_size,
                "device": torch.device(workspace.device),
                "detector_file": None if detector_file is None else str(detector_file),
                "epoch_progress": None if epoch_done is None else note,
            }
            workflow = TrainWorkflow(open_bundle(self.task.bundle, "train", settings))
            workflow.initialize()
            trainer, recorder = workflow.trainer, workflow.recorder
            trainer.run()
        network = recorder.network.eval()
        inferer = PromptInferer(workflow.detector)
        return Trained(
            network,
            lambda some: self.am_sam_logits(network, detector_file, some),
            lambda images: inferer.predict(images, network).mask_logits,
            workspace.input_size,
            f"epoch {recorder.best_epoch}",
        )

    def _adapt(self, way: Way, shots: int, seed: int) -> Trained:
        workspace = self.workspace
        base = build_amsam(
            workspace.base,
            input_size=workspace.input_size,
            calibration="none",
            adapts="stage",
            base_weights=workspace.base_file,
        )
        base.to(workspace.device).eval()
        network, chosen, prior = base, "", None
        if way.needs_examples:
            drawn = few_shot_draw(self.pool, shots, seed)
            examples = encode(drawn, base, "mirror" if self.task.is_upright else "all")
            network, chosen = adapt_by(base, examples, way, seed)
            prior = prototype_prior(base, examples) if way.second_prompt == "prototypes" else None

        def predict(features: Tensor) -> Tensor:
            return draw_masks(network, features.to(workspace.device), way.second_prompt, prior)

        return Trained(
            network,
            lambda some: predict(self.test.encoded(workspace)[some]),
            lambda images: predict(network.frozen_encoder(images)),
            workspace.input_size,
            chosen,
        )

    def _train_baseline(self, job: Job, shots: int, seed: int, detector_file: Path | None) -> Trained:
        workspace, input_size = self.workspace, self._input_size(job)
        set_determinism(seed)
        setting = Setting(
            workspace.base,
            workspace.base_file,
            input_size,
            workspace.is_pretrained,
            detector_file,
            workspace.weights_folder,
        )
        network = BASELINES[job.method].build(setting).to(workspace.device).eval()
        if (recipe := recipe_of(job)) is not None:
            images, labels = load_examples(few_shot_draw(self.pool, shots, seed), input_size)
            train_baseline(network, images, labels, recipe, seed=seed, is_pretrained=workspace.is_pretrained)
        return Trained(
            network,
            lambda some: network(self.test.batch(some, input_size).to(workspace.device)),
            network,
            input_size,
        )

    def _input_size(self, job: Job) -> int:
        recipe = recipe_of(job)
        return self.workspace.input_size if recipe is None or recipe.input_size is None else recipe.input_size

    def _shipped_detector(self) -> Path:
        return locate_bundle(self.task.bundle) / "models" / "detector.safetensors"

    def detector_file(self, kind: DetectorKind, shots: int, seed: int) -> Path | None:
        """The weights of a detector, trained if they must be; None for no boxes."""
        if kind == "none":
            return None
        if kind == "shipped":
            return self._shipped_detector()
        suffix = "" if self.part == "test" else f"-{self.part}"  # other images are drawn from
        file = self.workspace.output / "detectors" / f"{self.name}{suffix}-k{shots}-seed{seed}.safetensors"
        return few_shot_detector(few_shot_draw(self.pool, shots, seed), self.task, seed, file)

    def _warm_up(self, job: Job, detector_file: Path | None) -> None:
        """Read and encode the test images before anything is timed or weighed."""
        if job.method in OURS:
            self.test.encoded(self.workspace)
            if detector_file is not None:
                self.test.boxes(detector_file, self.workspace)
        else:
            self.test.images(self._input_size(job))

    def _milliseconds(self, trained: Trained) -> float:
        """The median time of one image alone; the first is not counted."""
        times = []
        for index in range(min(TIMED_IMAGES, len(self.test.items)) + 1):
            one = index % len(self.test.items)
            image = self.test.batch(slice(one, one + 1), trained.input_size).to(self.workspace.device)
            start = clock(self.workspace.device)
            with torch.no_grad():
                trained.predict_pixels(image).cpu()
            times.append(1000 * (clock(self.workspace.device) - start))
        return statistics.median(times[1:])


def run_cell(bench: Bench, store: Store, job: Job, shots: int, seed: int) -> Cell | None:
    """Run a cell unless it is on record; the cell if it was run."""
    if bench.identity(job, shots, seed) in store:
        return None
    cell = bench.run(job, shots, seed)
    store.add(cell)
    return cell


def recipe_of(job: Job) -> Recipe | None:
    """How a baseline is trained; None for our own trainings, and for systems that are used as they are."""
    recipe = None if job.method in OURS else BASELINES[job.method].recipe
    return None if recipe is None else replace(recipe, **job.settings)


def _overrides(job: Job) -> dict[str, Any]:
    """A job's settings as entries of ``train.yaml``; its own ``encode`` is a part to build."""
    settings = {**(paper_settings() if job.is_paper else {}), **job.settings}
    return settings | ({"encode": Expression(settings["encode"])} if "encode" in settings else {})


def settings_of(job: Job) -> dict[str, Any]:
    """Every setting of a training, the defaults included: a changed default is another cell."""
    if job.method == ADAPT:
        return asdict(Way(**job.settings))
    if job.method != AM_SAM:
        recipe = recipe_of(job)
        return {} if recipe is None else asdict(recipe)
    parser = open_bundle(DEFAULT_BUNDLE, "train", _overrides(job))
    return {name: parser.as_written(name) for name in (*paper_settings(), "rank")} | dict(job.settings)


def clock(device: str) -> float:
    """Seconds, of which only differences matter: CPU time for one thread, as other programs do not affect it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.process_time() if is_processor_time(device) else time.monotonic()


def is_processor_time(device: str) -> bool:
    """Whether :func:`clock` counts the processor's time."""
    return device == "cpu" and torch.get_num_threads() == 1


class _Watch:
    """Seconds and peak memory beyond that at the start; on a CPU as counted by Linux, and 0 on other systems."""

    def __init__(self, device: str) -> None:
        self.device, self.is_cuda = device, device.startswith("cuda")
        self.seconds = self.megabytes = 0.0

    def __enter__(self) -> _Watch:
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated() / 2**20
        else:
            _reset_peak()
            self._before = _status("VmRSS")
        self._start = clock(self.device)
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = clock(self.device) - self._start
        peak = torch.cuda.max_memory_allocated() / 2**20 if self.is_cuda else _status("VmHWM")
        self.megabytes = max(0.0, peak - self._before)


def _reset_peak() -> None:
    """Reset Linux's count of the peak, after returning free memory to the system."""
    path = Path("/proc/self/clear_refs")
    if not path.exists():
        return
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
    path.write_text("5", encoding="ascii")


def _status(name: str) -> float:
    """A size of this process in MiB."""
    path = Path("/proc/self/status")
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), 0.0)


def _count(network: nn.Module) -> int:
    detectors = {id(one) for name, part in network.named_children() if name == "detector" for one in part.parameters()}
    hidden = network.hidden_parameters if isinstance(network, BaselineNetwork) else 0
    return hidden + sum(one.numel() for one in network.parameters() if id(one) not in detectors)


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # fixed words, no shell
    return asked.stdout.strip() or "unknown"
