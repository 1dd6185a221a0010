"""The model in use for one bundle: its versions on disk, and the parts that the newest good one is made of.

Versions are folders ``0001``, ``0002``, ... beside ``current.json``, which names the one in use. That file is replaced
as a whole, and an adapter is complete before it is named, so a reader sees the old version or the new one.

A folder of studies may have been received from others, versions included. So what stands in it is checked before it is
used: records entry by entry, adapters as :mod:`amsam_med.checkpoint` does; nothing is read or written through links.
"""

from __future__ import annotations

import json
import logging
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from monai.utils.enums import MetaKeys, PostFix
from numpy.typing import NDArray
from pydantic import Field, StringConstraints
from torch import Tensor

from amsam_med import weights
from amsam_med.boxes import Size, scale_boxes
from amsam_med.bundle import model_overrides, open_bundle
from amsam_med.checkpoint import frozen_digest, read_adapter, save_adapter
from amsam_med.data.readers import read_image, read_mask
from amsam_med.data.transforms import prepare_image, restore_original
from amsam_med.data.writers import Labels
from amsam_med.errors import DataError, WeightsError
from amsam_med.evaluate import dice_score
from amsam_med.files import sha256, write_json
from amsam_med.infer import WITHOUT_BOX, PromptInferer, Segmentation, judge_masks
from amsam_med.keys import Keys
from amsam_med.model import AmSam
from amsam_med.schema import Record, read_record
from amsam_med.segment import result_labels
from amsam_med.threads import single_threaded_pool
from amsam_med.train import ADAPTER, TrainOptions, train
from amsam_med.views import MIRROR, unview_image, view_image

CURRENT, VERSION, LOCK = "current.json", "version.json", "training.lock"
LEAST_EXAMPLES = 2
"""One for each half of the bi-level training."""

_KEPT_EMBEDDINGS = 64  # 256 KiB each
_RATES = {
    "lower_rate": 2e-4,
    "upper_rate": 4e-5,
}  # a fifth of the bundle's: a handful of odd images may not unlearn it all

_VERSION_FOLDER = re.compile(r"[0-9]{4,6}")
_RECORD_BYTES = 1 << 16

Example = Mapping[str, str]
"""``{"image": path, "label": path}``."""

_log = logging.getLogger(__name__)


class Version(NamedTuple):
    """An adapter that was trained here.

    Attributes:
        number: From 1 on.
        adapter: Its file.
        d2_dice: Dice on the examples of its upper level, at their own size, in [0, 1].
        replaced_dice: Dice of the model that it was compared with, on the same examples.
        examples: How many it was trained on.
        seconds: Wall time of the training.
    """

    number: int
    adapter: Path
    d2_dice: float
    replaced_dice: float
    examples: int
    seconds: float


class _VersionRecord(Record):
    """A version as ``version.json`` and ``current.json`` hold it."""

    number: Annotated[int, Field(ge=1, le=999_999)]
    adapter: Annotated[str, StringConstraints(pattern=rf"^[0-9]{{4,6}}/{re.escape(ADAPTER)}$")]
    d2_dice: Annotated[float, Field(ge=0, le=1)]
    replaced_dice: Annotated[float, Field(ge=0, le=1)]
    examples: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0)]


class Found(NamedTuple):
    """What the model found in one picture.

    Attributes:
        mask: Class ids, uint8 ``(H, W)``.
        facts: How the network came to it: where the box is from and how sure it is, what the network thinks of its mask
            (``predicted_iou``, ``certainty``, in [0, 1]), and the flags of a result in doubt.
        box_in_original: float32 ``(4,)``, xyxy pixels of the picture; None where no box was used.
        version: Of the adapter; 0 for the model that came with the bundle.
        labels: What the classes mean and which weights drew them.
    """

    mask: NDArray[Any]
    facts: Mapping[str, Any]
    box_in_original: Tensor | None
    version: int
    labels: Labels


class Clicks(NamedTuple):
    """What a person pointed at, in pixels of the picture: x to the right, y down.

    Attributes:
        box: x1, y1, x2, y2; None for none.
        foreground: (x, y) of points on the object.
        background: (x, y) of points beside it.
    """

    box: tuple[float, float, float, float] | None = None
    foreground: Sequence[tuple[float, float]] = ()
    background: Sequence[tuple[float, float]] = ()


class _Parts(NamedTuple):
    """An opened inference bundle."""

    version: int
    labels: Labels
    network: AmSam
    inferer: PromptInferer
    prepare: Callable[[Mapping[str, Any]], dict[Any, Any]]
    restore: Callable[[Mapping[Any, Any]], dict[Any, Any]]


class LabelModel:
    """The model of one bundle, and how it learns from labels.

    Args:
        bundle: Name or folder.
        folder: Where the versions are kept; made where it is missing.
        base: Name of the base to begin with, untrained; None for the bundle's own model.
        device: As for ``amsam segment``.
        cache_folder: Keeps images as training encodes them; within ``folder`` by default.
    """

    def __init__(
        self,
        bundle: str,
        folder: Path,
        base: str | None = None,
        device: str = "auto",
        cache_folder: Path | None = None,
    ) -> None:
        self.bundle, self.folder, self.base, self.device = bundle, folder, base, device
        self._cache_folder = cache_folder or folder / "embeddings"
        self.meanings = result_labels(open_bundle(bundle, "inference"))
        self.labels = [str(segment["label"]) for segment in self.meanings.segments]
        self._parts: _Parts | None = None
        self._lock = threading.Lock()
        self._untrained_adapter: Path | None = None
        self._looked_at: dict[Path, tuple[int, str]] = {}  # an adapter's time of change, and what is wrong with it
        self._embeddings: OrderedDict[str, tuple[Tensor, Size]] = OrderedDict()
        # One thread computes, with one of torch's: results are those of the command line, and a training beside it on
        # the cores left does not slow both down many times over.
        self._pool = single_threaded_pool(1)

    def current(self) -> Version | None:
        """The version in use; None while it is the model to begin with.

        Raises:
            WeightsError: The record of it is malformed, or leads elsewhere.
        """
        path = self.folder / CURRENT
        if not path.is_symlink() and not path.exists():
            return None
        return self._version(path, f"delete {CURRENT} of {self.bundle} to begin anew")

    def segment(self, path: Path) -> Found:
        """Segment a picture without a prompt: the mask that ``amsam segment`` draws, bit for bit.

        Raises:
            DataError: The file is not one picture.
        """
        return self._pool.submit(self._segment, path).result()

    def segment_prompted(self, path: Path, clicks: Clicks) -> Found:
        """Segment what a person points at; a picture is encoded once, however many clicks there are.

        Raises:
            DataError: The file is not one picture, there is no prompt, or a point is outside the picture.
        """
        return self._pool.submit(self._segment_prompted, path, clicks).result()

    def doubt(self, path: Path) -> float:
        """How unsure the model is of a picture, 0..1.

        The mean of three: what the mask lacks in certainty, the detector in confidence, and the masks of the picture
        and of its mirror image in Dice with each other. With ``predicted_iou`` in place of the certainty it follows the
        true Dice less closely.
        """
        return self._pool.submit(self._doubt, path).result()

    def learn(self, examples: Sequence[Example], progress: Callable[[int, int, float], None] | None = None) -> Version:
        """Train a new version; it is put in use unless the present model does better on D2.

        Args:
            examples: Images and their masks.
            progress: Called after each epoch with (epoch, epochs, Dice on D2).

        Returns:
            The new version, in use or not: ``current()`` tells.

        Raises:
            DataError: There are too few examples, one cannot be used, or another process trains this model.
        """
        if len(examples) < LEAST_EXAMPLES:
            raise DataError(f"training needs {LEAST_EXAMPLES} labelled images, got {len(examples)}; label more images")
        own_folder(self.folder)
        lock = self.folder / LOCK
        if lock.is_symlink() or (lock.exists() and not lock.is_file()):
            raise WeightsError(f"{LOCK} of {self.bundle} is not a file of its own; delete it")
        try:
            with FileLock(lock, blocking=False):  # the system lets go of a killed process' lock
                return self._learn(examples, progress)
        except Timeout:
            raise DataError(f"{self.bundle} is being trained by another process; try again when it is done") from None

    def _learn(self, examples: Sequence[Example], progress: Callable[[int, int, float], None] | None) -> Version:
        run = self._next_folder()
        overrides: dict[str, Any] = {"data": [dict(item) for item in examples], "shots": None, **_RATES}
        overrides |= {} if self.base is None else {"base": self.base}
        overrides |= {"cache_dir": str(own_folder(self._cache_folder))}
        result = train(run.parent, run, TrainOptions(self.bundle, overrides), epoch_progress=progress)
        held_out = json.loads((run / "split.json").read_text(encoding="utf-8"))["d2"]
        before, after = (_mean_dice(self._open(adapter), held_out) for adapter in (self._adapter(), run / ADAPTER))
        version = Version(
            int(run.name), run / ADAPTER, round(after, 4), round(before, 4), len(examples), round(result.seconds, 1)
        )
        facts = {**version._asdict(), "adapter": f"{run.name}/{ADAPTER}"}
        write_json(run / VERSION, facts, default=str)
        if after >= before:
            write_json(self.folder / CURRENT, facts, default=str)
        return version

    def versions(self) -> list[Version]:
        """All versions that were trained here, in order; the log names those that cannot be used."""
        found = []
        for folder in self._version_folders():
            if not (folder / VERSION).exists():  # the base without training, or a training that was ended
                continue
            try:
                version = self._version(folder / VERSION, "delete the folder")
                if version.number != int(folder.name):
                    raise WeightsError(f"{VERSION}: its number is {version.number}; delete the folder")
            except WeightsError as error:
                self._say_once(folder, str(error))
                continue
            if not (fault := self._fault(version.adapter)):
                found.append(version)
            else:
                self._say_once(folder, fault)
        return found

    def _version(self, path: Path, remedy: str) -> Version:
        """The version that a record in this folder names."""
        for place in (self.folder, path.parent, path):
            if place.is_symlink():
                raise WeightsError(f"{place.name}: a link, which may lead anywhere; {remedy}")
        record = read_record(_VersionRecord, path, remedy, WeightsError, _RECORD_BYTES)
        if int(record.adapter.split("/")[0]) != record.number:
            raise WeightsError(f"{path.name}: version {record.number} names the adapter of another; {remedy}")
        adapter = self.folder / record.adapter
        if adapter.parent.is_symlink() or adapter.is_symlink() or not adapter.is_file():
            raise WeightsError(f"{path.name}: {record.adapter} is not a file of its own; {remedy}")
        return Version(**{**record.model_dump(), "adapter": adapter})

    def _fault(self, adapter: Path) -> str:
        """What is wrong with an adapter; mostly empty. It is looked at once, unless it changes."""
        changed = adapter.stat().st_mtime_ns
        if self._looked_at.get(adapter, (0, ""))[0] != changed:
            try:
                read_adapter(adapter)
                self._looked_at[adapter] = changed, ""
            except WeightsError as error:
                self._looked_at[adapter] = changed, str(error)
        return self._looked_at[adapter][1]

    def _say_once(self, folder: Path, fault: str) -> None:
        if self._looked_at.get(folder, (0, ""))[1] != fault:
            self._looked_at[folder] = 0, fault
            _log.warning("Version %s of %s is left out: %s", folder.name, self.bundle, fault)

    def _version_folders(self) -> list[Path]:
        if self.folder.is_symlink() or not self.folder.is_dir():
            return []
        named = (path for path in self.folder.iterdir() if _VERSION_FOLDER.fullmatch(path.name))
        return sorted(
            (path for path in named if path.is_dir() and not path.is_symlink()), key=lambda one: int(one.name)
        )

    def _segment(self, path: Path) -> Found:
        parts = self._newest()
        item = parts.prepare({Keys.IMAGE.value: str(path)})
        size = _original_size(item)
        image = item[Keys.IMAGE.value][None].to(next(parts.network.parameters()).device)
        found = parts.inferer.predict(image, parts.network)
        item[Keys.PRED.value] = found.mask_logits[0].cpu()
        mask = parts.restore(item)[Keys.PRED.value].numpy()[0]
        box = None
        if found.boxes is not None and found.box_sources[0] not in WITHOUT_BOX:
            box = scale_boxes(found.boxes[0].cpu(), (parts.network.input_size,) * 2, size)
        return Found(mask, _facts(found), box, parts.version, parts.labels)

    @torch.no_grad()
    def _segment_prompted(self, path: Path, clicks: Clicks) -> Found:
        parts = self._newest()
        embedding, size = self._embedding(path, parts)
        side = parts.network.input_size
        boxes, points, point_labels = _in_model_frame(clicks, size, side, path.name)
        prediction = parts.network.predict(embedding, boxes, points, point_labels)
        certainty, _ = judge_masks(prediction.mask_logits, None, side)
        trust = float(prediction.predicted_iou[:, 1:].mean().clamp(0, 1))
        facts = {"box_source": "user", "predicted_iou": round(trust, 4), "certainty": round(float(certainty), 4)}
        mask = restore_original(prediction.mask_logits[0].cpu(), size).numpy()
        box = None if clicks.box is None else torch.tensor(clicks.box)
        return Found(mask, facts, box, parts.version, parts.labels)

    def _doubt(self, path: Path) -> float:
        parts = self._newest()
        image = parts.prepare({Keys.IMAGE.value: str(path)})[Keys.IMAGE.value][None]
        image = image.to(next(parts.network.parameters()).device)
        seen, mirrored = (parts.inferer.predict(view, parts.network) for view in (image, view_image(image, MIRROR)))
        masks = (seen.mask_logits.argmax(dim=1), unview_image(mirrored.mask_logits, MIRROR).argmax(dim=1))
        agreement = dice_score(masks[0] != 0, masks[1] != 0)
        confidence = float(seen.box_confidence) if parts.inferer.detector is not None else 1.0
        return round(1 - (float(seen.certainty) + confidence + agreement) / 3, 4)

    def _newest(self) -> _Parts:
        """The parts of the version in use; what is running keeps those it has."""
        with self._lock:
            version = self.current()
            number = 0 if version is None else version.number
            if self._parts is None or self._parts.version != number:
                self._parts = self._open(self._adapter())._replace(version=number)
            return self._parts

    def _adapter(self) -> Path | None:
        """The adapter in use; None for the bundle's own model."""
        version = self.current()
        if version is not None or self.base is None:
            return version and version.adapter
        return self._untrained(self.base)

    def _untrained(self, base: str) -> Path:
        """The base without training, as an adapter that changes nothing.

        It is written once by each process: one that lies there may have come with the folder.
        """
        if self._untrained_adapter is None:
            path = own_folder(own_folder(self.folder) / "0000") / ADAPTER
            base_file = weights.find(base)
            parser = open_bundle(self.bundle, "train", {"base": base, "base_file": str(base_file)})
            network: AmSam = parser.get_parsed_content("core")
            save_adapter(network, path, {"bundle": self.bundle, "shots": 0}, frozen_digest(network))
            self._untrained_adapter = path
        return self._untrained_adapter

    def _open(self, adapter: Path | None) -> _Parts:
        parser = open_bundle(self.bundle, "inference", model_overrides(adapter, device=self.device))
        ids = ("network", "inferer", "preprocessing", "postprocessing")
        return _Parts(0, result_labels(parser), *(parser.get_parsed_content(id) for id in ids))

    def _next_folder(self) -> Path:
        taken = [int(path.name) for path in self.folder.iterdir() if _VERSION_FOLDER.fullmatch(path.name)]
        return self.folder / f"{max(taken, default=0) + 1:04d}"

    def _embedding(self, path: Path, parts: _Parts) -> tuple[Tensor, Size]:
        """The embedding float ``(1, 256, S/16, S/16)`` of a picture, the same for all versions, and its size."""
        digest = sha256(path)
        with self._lock:
            if digest in self._embeddings:
                self._embeddings.move_to_end(digest)
                return self._embeddings[digest]
        pixels = read_image(path).pixels
        device = next(parts.network.parameters()).device
        embedding = parts.network.embed(prepare_image(pixels, parts.network.input_size)[None].to(device))
        with self._lock:
            self._embeddings[digest] = embedding, (pixels.shape[1], pixels.shape[2])
            while len(self._embeddings) > _KEPT_EMBEDDINGS:
                self._embeddings.popitem(last=False)
            return self._embeddings[digest]


def own_folder(path: Path) -> Path:
    """The folder, made where it is missing.

    Raises:
        WeightsError: It is a link, or a file.
    """
    try:
        if path.is_symlink() or not stat.S_ISDIR(path.stat().st_mode):
            raise WeightsError(
                f"{path.name} is not a folder of its own; remove it, or name another place with --versions"
            )
    except FileNotFoundError:
        path.mkdir(parents=True, exist_ok=True)
    return path


def _mean_dice(parts: _Parts, examples: Sequence[Example]) -> float:
    """Mean Dice at the images' own size, segmented as in use: without a human prompt."""
    scores = []
    for item in examples:
        prepared = parts.prepare({Keys.IMAGE.value: item["image"]})
        image = prepared[Keys.IMAGE.value][None].to(next(parts.network.parameters()).device)
        logits = parts.inferer.predict(image, parts.network).mask_logits[0].cpu()
        mask = restore_original(logits, _original_size(prepared))
        scores.append(dice_score(mask != 0, torch.from_numpy(read_mask(item["label"]) != 0)))
    return sum(scores) / len(scores)


def _original_size(item: Mapping[Any, Any]) -> Size:
    height, width = item[PostFix.meta(Keys.IMAGE.value)][MetaKeys.SPATIAL_SHAPE]
    return int(height), int(width)


def _in_model_frame(
    clicks: Clicks, size: Size, side: int, name: str
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Boxes ``(1, 4)``, points ``(1, N, 2)`` and their labels ``(1, N)`` in pixels of the model input."""
    height, width = size
    if clicks.box is None and not clicks.foreground and not clicks.background:
        raise DataError(f"{name}: got no prompt; give a box (roi), or points (foreground, background)")
    placed = [*clicks.foreground, *clicks.background]
    if any(not (0 <= x <= width and 0 <= y <= height) for x, y in placed):
        raise DataError(f"{name}: a point is outside the picture of {width} x {height} pixels; points are (x, y)")
    boxes = points = point_labels = None
    if clicks.box is not None:
        x1, y1, x2, y2 = clicks.box
        if not (x1 < x2 and y1 < y2 and x2 > 0 and y2 > 0 and x1 < width and y1 < height):
            raise DataError(
                f"{name}: the box {list(clicks.box)} is empty or outside; expected x1, y1, x2, y2 in pixels"
            )
        boxes = scale_boxes(torch.tensor([clicks.box], dtype=torch.float32), size, (side, side))
    if placed:
        points = torch.tensor([placed], dtype=torch.float32) * torch.tensor([side / width, side / height])
        point_labels = torch.tensor([[1] * len(clicks.foreground) + [0] * len(clicks.background)])
    return boxes, points, point_labels


def _facts(found: Segmentation) -> dict[str, Any]:
    return {
        "box_source": found.box_sources[0],
        "box_confidence": round(float(found.box_confidence[0]), 4),
        "predicted_iou": round(float(found.predicted_iou[0]), 4),
        "certainty": round(float(found.certainty[0]), 4),
        "flags": [str(flag) for flag in found.flags[0]],
    }
