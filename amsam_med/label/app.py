"""The app that a MONAI Label server runs: models, trainers, strategies and scoring over one folder of images."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
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
from monailabel.tasks.activelearning.random import Random
from monailabel.tasks.scoring.dice import Dice

from amsam_med import __version__
from amsam_med.bundle import shipped_bundles
from amsam_med.data.dicom_results import Algorithm
from amsam_med.data.writers import dicom_labels
from amsam_med.errors import ConfigError
from amsam_med.label.datastores import DICOM, DicomWebStudies, FolderStudies
from amsam_med.label.models import LabelModel
from amsam_med.label.server import as_dicom, is_address, local_folder
from amsam_med.label.tasks import ClickTask, DoubtScoring, DoubtStrategy, FewShotTrainTask, SegmentTask

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
            of its images, and ``folder``, which keeps images and labels that were asked for.

    Raises:
        ConfigError: There is no such bundle, or the folder's list of images is damaged.
        DataError: The DICOMweb server does not answer.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str] | None = None) -> None:
        conf = conf or {}
        names = [name.strip() for name in conf.get("models", ",".join(shipped_bundles())).split(",") if name.strip()]
        if unknown := [name for name in names if name not in shipped_bundles()]:
            raise ConfigError(f"unknown model {', '.join(unknown)}; known are {', '.join(shipped_bundles())}")
        self._folder = Path(conf.get("folder") or local_folder(studies)) if is_address(studies) else Path(studies)
        folder = Path(conf.get("versions") or self._folder / VERSIONS_FOLDER)
        base, device = conf.get("base") or None, conf.get("device", "auto")
        self._models = {name: LabelModel(name, folder / name, base, device) for name in names}
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
            )
        meanings = [meaning for model in self._models.values() for meaning in dicom_labels(model.meanings)[0]]
        query = json.loads(self.conf.get("query", "{}"))
        return DicomWebStudies(self.studies, query, self._folder, meanings, Algorithm(__version__))

    def init_infers(self) -> dict[str, InferTask]:
        """Each model by itself, and by clicks."""
        tasks: dict[str, InferTask] = {name: SegmentTask(model) for name, model in self._models.items()}
        return tasks | {f"{name}_interactive": ClickTask(model) for name, model in self._models.items()}

    def init_trainers(self) -> dict[str, TrainTask]:
        """One trainer a model."""
        return {name: FewShotTrainTask(model) for name, model in self._models.items()}

    def init_strategies(self) -> dict[str, Strategy]:
        """MONAI Label's own two, and one a model; ``doubt`` is that of the first model."""
        doubts = {f"doubt_{name}": DoubtStrategy(model) for name, model in self._models.items()}
        return {"random": Random(), "first": First(), "doubt": next(iter(doubts.values())), **doubts}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """Dice of first drafts with what a person made of them, and each model's doubt."""
        return {"dice": Dice(), **{f"doubt_{name}": DoubtScoring(model) for name, model in self._models.items()}}

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """As MONAI Label's, for images of the datastore and uploads alone.

        Raises:
            ImageNotFoundException: There is no such image.
        """
        image = request.get("image")
        if isinstance(image, str) and not _is_upload(image) and not self._has(image, datastore or self.datastore()):
            raise ImageNotFoundException(f"there is no image {image!r}; GET /datastore lists those there are")
        given = {**request, "label_tag": _tag(request)} | ({"result_extension": DICOM} if as_dicom.get() else {})
        result: dict[str, Any] = super().infer(given, datastore)
        return result

    def infer_wsi(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """What viewers of slides ask: a picture as any other, whatever its ending."""
        return self.infer(request, datastore)

    def bundle_path(self, model: str | None) -> None:
        """Of MONAI Label's own bundles, of which there are none here.

        Raises:
            MONAILabelException: There is no trainer of that name; asked before a training is queued.
        """
        if model is not None and model not in (*self._trainers, *self._infers):
            known = ", ".join(self._trainers)
            raise MONAILabelException(MONAILabelError.INVALID_INPUT, f"there is no model {model!r}; known are {known}")

    def _has(self, image: str, datastore: Datastore) -> bool:
        return "/" not in image and "\\" not in image and image in datastore.list_images()


def _is_upload(image: str) -> bool:
    """Whether a path is one of the server's temporary files, whose names nobody can guess."""
    return os.path.isabs(image) and Path(image).resolve().parent == Path(tempfile.gettempdir()).resolve()


def _tag(request: Mapping[str, Any]) -> str:
    tag = str(request.get("label_tag", "original"))
    return tag if tag.isidentifier() else "original"
