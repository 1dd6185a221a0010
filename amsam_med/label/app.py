"""The app that a MONAI Label server runs: models, trainers, strategies and scoring over one folder of images."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelError, MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First

from amsam_med import __version__
from amsam_med.data.dicom.shared import Algorithm, dicom_labels
from amsam_med.errors import AmsamError, ConfigError
from amsam_med.label.asked import asked
from amsam_med.label.datastores import DICOM, DicomWebStudies, FolderStudies
from amsam_med.label.index import plain_tag
from amsam_med.label.models import LabelModel, own_folder
from amsam_med.label.server import as_dicom, is_address, local_folder
from amsam_med.label.tasks import (
    BatchTask,
    ClickTask,
    DiceScoring,
    DoubtScoring,
    DoubtStrategy,
    FewShotTrainTask,
    RandomStrategy,
    SegmentTask,
)
from amsam_med.weights import shipped_bundles

VERSIONS_FOLDER = ".amsam"
"""Where the trained versions are kept within a folder of studies, unless another place is given."""


class AmSamLabelApp(MONAILabelApp):  # type: ignore[misc]  # MONAI Label carries no types
    """AM-SAM for MONAI Label.

    Args:
        app_dir: The app's folder.
        studies: A folder of images, or the address of a DICOMweb server.
        conf: ``models``: names of bundles with commas, by default all that are shipped. ``base``: name of a base to
            begin with, untrained, instead of the bundles' own models. ``versions``: folder for trained versions.
            ``device``: as for ``amsam segment``. With a DICOMweb server: ``query``, a JSON object that says which
            of its images, and ``folder``, which keeps images and labels that were asked for. With a folder:
            ``links``, "true" if its images may be links out of it.

    Raises:
        ConfigError: There is no such bundle, or the folder's list of images is damaged.
        DataError: The DICOMweb server does not answer.
        WeightsError: The folder of trained versions is a link.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str] | None = None) -> None:
        conf = conf or {}
        names = [name.strip() for name in conf.get("models", ",".join(shipped_bundles())).split(",") if name.strip()]
        if unknown := [name for name in names if name not in shipped_bundles()]:
            raise ConfigError(f"unknown model {', '.join(unknown)}; known are {', '.join(shipped_bundles())}")
        self._folder = Path(conf.get("folder") or local_folder(studies)) if is_address(studies) else Path(studies)
        folder = Path(conf["versions"]) if conf.get("versions") else own_folder(self._folder / VERSIONS_FOLDER)
        base, device, cache = conf.get("base") or None, conf.get("device", "auto"), Path(app_dir) / "embeddings"
        self._models = {name: LabelModel(name, folder / name, base, device, cache / name) for name in names}
        description = "Few-shot segmentation: label a few images, train, review the rest"
        super().__init__(app_dir, studies, dict(conf), name="AM-SAM Med", description=description, version=__version__)

    def init_datastore(self) -> Datastore:
        """A folder, or a DICOMweb server."""
        if not is_address(self.studies):
            return FolderStudies(
                self._folder,
                settings.MONAI_LABEL_DATASTORE_FILE_EXT,
                settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
                settings.MONAI_LABEL_DATASTORE_READ_ONLY,
                self.conf.get("links") == "true",
            )
        meanings = [meaning for model in self._models.values() for meaning in dicom_labels(model.meanings)[0]]
        query = json.loads(self.conf.get("query", "{}"))
        return DicomWebStudies(self.studies, query, self._folder, meanings, Algorithm(__version__))

    def init_infers(self) -> dict[str, InferTask]:
        """Each model by itself, and by clicks."""
        tasks: dict[str, InferTask] = {name: SegmentTask(model) for name, model in self._models.items()}
        return tasks | {f"{name}_interactive": ClickTask(model) for name, model in self._models.items()}

    def init_trainers(self) -> dict[str, TrainTask]:
        """One trainer per model."""
        return {name: FewShotTrainTask(model) for name, model in self._models.items()}

    def init_strategies(self) -> dict[str, Strategy]:
        """The first, any, and one per model; ``doubt`` is that of the first model."""
        doubts = {f"doubt_{name}": DoubtStrategy(model) for name, model in self._models.items()}
        return {"random": RandomStrategy(), "first": First(), "doubt": next(iter(doubts.values())), **doubts}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """Dice of first drafts with what a person made of them, and each model's doubt."""
        return {"dice": DiceScoring(), **{f"doubt_{name}": DoubtScoring(model) for name, model in self._models.items()}}

    def init_batch_infer(self) -> BatchTask:
        """One image after another."""
        return BatchTask()

    def sessions(self) -> _NoSessions:
        """None: they would keep uploads, which belong to no study."""
        return _NoSessions()

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """As MONAI Label's, for images of the datastore and uploads alone.

        Raises:
            DataError: An entry of the request is of another type than it must be.
            ImageNotFoundException: There is no such image.
        """
        given, studies = asked("infer", request), datastore or self.datastore()
        image = given.get("image", "")
        if not _is_upload(image) and not self._has(image, studies):
            raise ImageNotFoundException(f"there is no image {image[:60]!r}; GET /datastore lists those there are")
        if given.get("save_label"):
            plain_tag(given.setdefault("label_tag", "original"))
        given |= {"result_extension": DICOM} if as_dicom.get() else {}
        result: dict[str, Any] = super().infer(given, studies)
        return result

    def batch_infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Masks of many images, kept as drafts.

        Raises:
            DataError: An entry of the request is of another type than it must be.
        """
        with self._plain_end():
            result: dict[str, Any] = super().batch_infer(asked("batch_infer", request), datastore)
            return result

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        """As MONAI Label's.

        Raises:
            DataError: An entry of the request is of another type than it must be; or there are too few labels.
        """
        with self._plain_end():
            result: dict[str, Any] = super().train(asked("train", request))
            return result

    def scoring(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """As MONAI Label's.

        Raises:
            DataError: An entry of the request is of another type than it must be.
        """
        with self._plain_end():
            result: dict[str, Any] = super().scoring(asked("scoring", request), datastore)
            return result

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """As MONAI Label's.

        Raises:
            DataError: An entry of the request is of another type than it must be.
        """
        result: dict[str, Any] = super().next_sample(asked("activelearning", request))
        return result

    def infer_wsi(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """What viewers of slides ask: a picture as any other, whatever its ending."""
        return self.infer(request, datastore)

    def refuse_unknown(self, request: Mapping[str, Any]) -> None:
        """Refuse what names a model or a method that there is not, before it waits for its turn.

        Raises:
            MONAILabelException: There is none of that name.
        """
        named = {"model": {*self._trainers, *self._infers}, "method": {*self._scoring_methods}}
        for kind, known in named.items():
            if kind in request and request[kind] not in known:
                text = f"there is no {kind} {request[kind][:60]!r}; known are {', '.join(sorted(known))}"
                raise MONAILabelException(MONAILabelError.INVALID_INPUT, text)

    def _has(self, image: str, datastore: Datastore) -> bool:
        return "/" not in image and "\\" not in image and image in datastore.list_images()

    @contextmanager
    def _plain_end(self) -> Iterator[None]:
        """In a process of its own, whose last lines clients are shown, end without a traceback."""
        try:
            yield
        except AmsamError as error:
            if self._server_mode:
                raise
            raise SystemExit(str(error)) from None


class _NoSessions:
    def get_session(self, *_: object, **__: object) -> None:
        raise MONAILabelException(MONAILabelError.INVALID_INPUT, "this server keeps no sessions; name an image")


def _is_upload(image: str) -> bool:
    """Whether a path is one of the server's temporary files, whose names nobody can guess."""
    return os.path.isabs(image) and Path(image).resolve().parent == Path(tempfile.gettempdir()).resolve()
