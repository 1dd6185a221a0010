"""The model of one bundle on the label server: its trained versions on disk, and the opened model of the current one.

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
from numpy.typing import NDArray
from pydantic import Field, StringConstraints
from torch import Tensor

from amsam_med import weights
from amsam_med.bundle import TrainWorkflow, open_bundle
from amsam_med.checkpoint import frozen_digest, read_adapter, save_adapter
from amsam_med.data.readers import read_mask
from amsam_med.data.results import Labels
from amsam_med.errors import DataError, WeightsError
from amsam_med.evaluate import dice_score
from amsam_med.files import sha256, write_json
from amsam_med.opened_model import Answer, Model, PreparedImage, open_model
from amsam_med.opened_model import Clicks as Clicks
from amsam_med.schema import Record, read_record
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

_OF_PROMPTED = ("box_source", "predicted_iou", "certainty")  # facts of a mask that a person asked for
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
        facts: Source and confidence of the box, the mask's ``predicted_iou`` and ``certainty`` in [0, 1], and the flags
            of a doubtful result.
        box_in_original: float32 ``(4,)``, xyxy pixels of the picture; None where no box was used.
        version: Of the adapter; 0 for the model that came with the bundle.
        labels: Meanings of the classes and digests of the weights.
    """

    mask: NDArray[Any]
    facts: Mapping[str, Any]
    box_in_original: Tensor | None
    version: int
    labels: Labels


class LabelModel:
    """The model of one bundle, with segmentation and training.

    Args:
        bundle: Name or folder.
        folder: Where the versions are kept; created if missing.
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
        self.meanings = Model(open_bundle(bundle, "inference")).labels
        self.labels = [segment.label for segment in self.meanings.segments]
        self._in_use: tuple[int, Model] | None = None  # with the number of its version
        self._lock = threading.Lock()
        self._untrained_adapter: Path | None = None
        self._looked_at: dict[Path, tuple[int, str]] = {}  # an adapter's time of change, and what is wrong with it
        self._encoded: OrderedDict[str, PreparedImage] = OrderedDict()
        # A single thread computes, with one of torch's threads: results equal those of the command line, and a
        # concurrent training on the other cores does not slow both down many times over.
        self._pool = single_threaded_pool(1)

    def current(self) -> Version | None:
        """The version in use; None if it is the initial model.

        Raises:
            WeightsError: The record of it is malformed, or leads elsewhere.
        """
        path = self.folder / CURRENT
        if not path.is_symlink() and not path.exists():
            return None
        return self._version(path, f"delete {CURRENT} of {self.bundle} to begin anew")

    def segment(self, path: Path) -> Found:
        """Segment a picture without a prompt; the mask is bit-identical to that of ``amsam segment``.

        Raises:
            DataError: The file is not one picture.
        """
        return self._pool.submit(self._segment, path).result()

    def segment_prompted(self, path: Path, clicks: Clicks) -> Found:
        """Segment a picture with a user's prompts; it is encoded once, however many clicks follow.

        Raises:
            DataError: The file is not one picture, there is no prompt, or a point is outside the picture.
        """
        return self._pool.submit(self._segment_prompted, path, clicks).result()

    def doubt(self, path: Path) -> float:
        """The uncertainty of the model about a picture, 0..1.

        The mean of three values, each subtracted from 1: the mask's certainty, the detector's confidence, and the Dice
        between the masks of the picture and of its mirror image. With ``predicted_iou`` instead of the certainty, it
        follows the true Dice less closely.
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
            with FileLock(lock, blocking=False):  # the system releases the lock of a killed process
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
            if not (folder / VERSION).exists():  # the base without training, or an interrupted training
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
        """What is wrong with an adapter; usually empty. It is looked at once, unless it changes."""
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
        number, model = self._newest()
        (answer,) = model.predict([model.prepare(path)])
        return Found(model.restore(answer), _facts(answer), answer.box_in_original, number, model.labels)

    def _segment_prompted(self, path: Path, clicks: Clicks) -> Found:
        number, model = self._newest()
        answer = model.predict_prompted(self._encode(path, model), clicks, path.name)
        facts = {name: fact for name, fact in _facts(answer).items() if name in _OF_PROMPTED}
        return Found(model.restore(answer), facts, answer.box_in_original, number, model.labels)

    def _doubt(self, path: Path) -> float:
        _, model = self._newest()
        image = model.prepare(path)
        mirror_image = image._replace(inputs=view_image(image.inputs[None], MIRROR)[0])
        (seen,), (mirrored,) = (model.predict([one]) for one in (image, mirror_image))
        masks = (seen.mask_logits, unview_image(mirrored.mask_logits[None], MIRROR)[0])
        agreement = dice_score(*(logits.argmax(dim=0) != 0 for logits in masks))
        confidence = seen.box_confidence if model.inferer.detector is not None else 1.0
        return round(1 - (seen.certainty + confidence + agreement) / 3, 4)

    def _newest(self) -> tuple[int, Model]:
        """The version in use and its model; what is running keeps those it has."""
        with self._lock:
            version = self.current()
            number = 0 if version is None else version.number
            if self._in_use is None or self._in_use[0] != number:
                self._in_use = number, self._open(self._adapter())
            return self._in_use

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
            network = TrainWorkflow(parser).network
            save_adapter(network, path, {"bundle": self.bundle, "shots": 0}, frozen_digest(network))
            self._untrained_adapter = path
        return self._untrained_adapter

    def _open(self, adapter: Path | None) -> Model:
        return open_model(self.bundle, adapter=adapter, device=self.device)

    def _next_folder(self) -> Path:
        taken = [int(path.name) for path in self.folder.iterdir() if _VERSION_FOLDER.fullmatch(path.name)]
        return self.folder / f"{max(taken, default=0) + 1:04d}"

    def _encode(self, path: Path, model: Model) -> PreparedImage:
        """A picture as its embedding, which is the same for all versions."""
        digest = sha256(path)
        with self._lock:
            if digest in self._encoded:
                self._encoded.move_to_end(digest)
                return self._encoded[digest]
        encoded = model.encode(model.prepare(path))
        with self._lock:
            self._encoded[digest] = encoded
            while len(self._encoded) > _KEPT_EMBEDDINGS:
                self._encoded.popitem(last=False)
            return self._encoded[digest]


def own_folder(path: Path) -> Path:
    """The folder, created if missing.

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


def _mean_dice(model: Model, examples: Sequence[Example]) -> float:
    """Mean Dice at the images' own size, segmented as in use: without a human prompt."""
    scores = []
    for item in examples:
        mask, truth = model.segment(item["image"]).mask, read_mask(item["label"])
        scores.append(dice_score(torch.from_numpy(mask != 0), torch.from_numpy(truth != 0)))
    return sum(scores) / len(scores)


def _facts(answer: Answer) -> dict[str, Any]:
    return {
        "box_source": answer.box_source,
        "box_confidence": round(answer.box_confidence, 4),
        "predicted_iou": round(answer.predicted_iou, 4),
        "certainty": round(answer.certainty, 4),
        "flags": [str(flag) for flag in answer.flags],
    }
