"""MONAI Label's tasks for a model: segmentation, prompts, training, and the choice of the next image to label."""

from __future__ import annotations

import logging
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.pathology import create_asap_annotations_xml, create_dsa_annotations_json
from numpy.typing import NDArray

from amsam_med.data.dicom.reader import is_dicom
from amsam_med.data.dicom.seg import write_dicom_seg
from amsam_med.data.dicom.shared import dicom_labels
from amsam_med.data.outlines import OUTLINE_COLOURS, simple_polygons_of
from amsam_med.data.readers import image_size
from amsam_med.data.writers import write_mask_png
from amsam_med.errors import DataError
from amsam_med.evaluate import dice_score
from amsam_med.label.datastores import DICOM, PNG
from amsam_med.label.models import Clicks, Found, LabelModel
from amsam_med.label.volumes import VOLUMES, read_label, write_volume
from amsam_med.threads import set_threads

DRAWINGS: Mapping[str, Callable[[dict[str, Any]], tuple[str, int]]] = {
    "asap": create_asap_annotations_xml,
    "dsa": create_dsa_annotations_json,
}
"""Files with polygons, by the output that a viewer of slides asks for: QuPath, and Digital Slide Archive."""
ASKED_AT_ONCE = 32
"""Images that are looked at for one question about the next one; what was found of others is remembered."""

_NO_REGION = ([0.0, 0.0], [2048.0, 2048.0])  # what MONAI Label puts in where a client names none
_TOLERANCE = 0.5  # pixels by which a polygon may leave the outline
_LEAST_POINTS = 4  # of a closed polygon

_log = logging.getLogger(__name__)


class SegmentTask(InferTask):  # type: ignore[misc]  # MONAI Label carries no types
    """Masks without a prompt: box by the detector.

    Args:
        model: What segments.
    """

    def __init__(self, model: LabelModel) -> None:
        labels = {label: number for number, label in enumerate(model.labels, start=1)}
        text = f"AM-SAM, automatic: {', '.join(model.labels)}"
        super().__init__(InferType.SEGMENTATION, labels, 2, text, {"result_extension": [PNG, *VOLUMES, DICOM]})
        self.model = model

    def is_valid(self) -> bool:
        """Always."""
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The mask's file, which the server deletes when it is sent, and what there is to say about it.

        Raises:
            DataError: The image cannot be read, or is not one picture.
        """
        start = time.perf_counter()
        path = Path(request["image"])
        found = self.find(path, request)
        params = self._params(found, request, time.perf_counter() - start)
        if (draw := DRAWINGS.get(str(request.get("output")))) is not None:
            return draw(params)[0], params
        return str(_write(found, path, _ending(request, path))), params

    def find(self, path: Path, request: Mapping[str, Any]) -> Found:
        """Segment the picture, or the part of it that a viewer of slides names."""
        if (region := _region(request, path)) is not None:
            return self.model.segment_prompted(path, Clicks(region))
        return self.model.segment(path)

    def _params(self, found: Found, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        params: dict[str, Any] = {
            "label_names": {label: number for number, label in enumerate(self.model.labels, start=1)},
            "version": found.version,
            "latencies": {"total": round(seconds, 4)},
            **found.facts,
        }
        if found.box_in_original is not None:
            params["box"] = [round(float(edge), 1) for edge in found.box_in_original]
        if request.get("output") in ("json", *DRAWINGS):  # what CVAT's detectors and QuPath draw
            colours = dict(zip(self.model.labels, OUTLINE_COLOURS, strict=False))
            drawn = {"name": "AM-SAM", "labels": colours, "elements": self._elements(found.mask)}
            params["annotations"] = [{"annotation": drawn}]
            params |= {"name": "AM-SAM", "description": self.description, "model": self.model.bundle}
        return params

    def _elements(self, mask: NDArray[np.uint8]) -> list[dict[str, Any]]:
        elements = []
        for number, label in enumerate(self.model.labels, start=1):
            if contours := simple_polygons_of(mask == number, _TOLERANCE, _LEAST_POINTS):
                elements.append({"label": label, "contours": contours})
        return elements


class ClickTask(SegmentTask):
    """Masks from a box and points: what CVAT's interactors and Slicer's prompts send.

    Args:
        model: What segments.
    """

    def __init__(self, model: LabelModel) -> None:
        super().__init__(model)
        self.type = InferType.DEEPGROW
        self.description = f"AM-SAM, by box and points: {', '.join(model.labels)}"

    def find(self, path: Path, request: Mapping[str, Any]) -> Found:
        """Segment the picture with the user's prompts, or without a prompt if there are none."""
        box = _numbers(request.get("roi"), "roi") or list(_region(request, path) or ())
        foreground, background = (_points(request.get(name), name) for name in ("foreground", "background"))
        if not (box or foreground or background):
            return self.model.segment(path)
        if box and len(box) == 6:  # Slicer's: x1, x2, y1, y2, z1, z2, in the order of its axes
            box = [min(box[:2]), min(box[2:4]), max(box[:2]), max(box[2:4])]
        if box and len(box) != 4:
            raise DataError(f"roi has {len(box)} numbers; expected x1, y1, x2, y2 in pixels")
        corners = None if not box else (box[0], box[1], box[2], box[3])
        return self.model.segment_prompted(path, Clicks(corners, foreground, background))


class FewShotTrainTask(TrainTask):  # type: ignore[misc]  # MONAI Label carries no types
    """Bi-level training on the labels there are; a better adapter is in use from the next request on.

    Args:
        model: What learns.
    """

    def __init__(self, model: LabelModel) -> None:
        super().__init__(f"AM-SAM, few-shot training of {model.bundle}")
        self.model = model

    def stats(self) -> dict[str, Any]:
        """The version in use and all that were trained."""
        versions = self.model.versions()
        used = self.model.current()
        return {
            "version": 0 if used is None else used.number,
            "best_metric": None if used is None else used.d2_dice,
            "versions": [{**version._asdict(), "adapter": version.adapter.name} for version in versions],
        }

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train on all final labels.

        Raises:
            DataError: There are too few labels, or one cannot be used.
        """
        set_threads(max(1, torch.get_num_threads() - 1))  # one core is left for the server's answers
        with tempfile.TemporaryDirectory() as scratch:
            examples = [_example(pair, Path(scratch), index) for index, pair in enumerate(datastore.datalist())]
            _log.info("Training on %d labelled images", len(examples))
            version = self.model.learn(examples, _log_epoch)
        used = self.model.current()
        is_used = used is not None and used.number == version.number
        _log.info(
            "Version %d: Dice on D2 %.4f, before %.4f, %.1f s: %s",
            *(version.number, version.d2_dice, version.replaced_dice, version.seconds),
            "in use from now on" if is_used else "kept, but not put in use",
        )
        return {**version._asdict(), "adapter": version.adapter.name, "is_used": is_used}


class BatchTask:
    """Masks of many images, one after another, kept as drafts; MONAI Label's own needs a GPU."""

    def __call__(
        self, request: Mapping[str, Any], datastore: Datastore, infer: Callable[..., dict[str, Any]]
    ) -> dict[str, Any]:
        """What there is to say about each mask, by image; empty for an image that cannot be read.

        Args:
            request: With ``images`` (all, labeled, unlabeled, or names), ``max_batch_size`` (0 for all) and
                ``label_tag``.
            datastore: Where images are and masks are kept.
            infer: Segments one image.
        """
        chosen, tag = request.get("images", "all"), request.get("label_tag", "original")
        given = {"labeled": datastore.get_labeled_images, "unlabeled": datastore.get_unlabeled_images}
        images = sorted(chosen if isinstance(chosen, list) else given.get(chosen, datastore.list_images)())
        found: dict[str, Any] = {}
        for image in images[: request.get("max_batch_size") or None]:
            try:
                result = infer({**request, "image": image, "save_label": True, "label_tag": tag}, datastore)
            except DataError as error:
                _log.warning("%s", error)
                found[image] = {}
                continue
            Path(result.pop("file")).unlink(missing_ok=True)
            found[image] = result
        return found


class RandomStrategy(Strategy):  # type: ignore[misc]  # MONAI Label carries no types
    """A random unlabelled image, with a lower probability for images that were chosen recently."""

    def __init__(self) -> None:
        super().__init__("Any image without a label")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The image's id and its weight; None when all are labelled."""
        images = sorted(datastore.get_unlabeled_images(request.get("label_tag")))
        if not images:
            return None
        notes = [datastore.get_image_info(image).get("strategy", {}).get(request["strategy"], {}) for image in images]
        weights = [max(1, int(time.time()) - note.get("ts", 0)) for note in notes]
        ((image, weight),) = random.choices(list(zip(images, weights, strict=True)), weights)  # noqa: S311  # a draw, not cryptography
        return {"id": image, "weight": weight}


class DoubtStrategy(Strategy):  # type: ignore[misc]  # MONAI Label carries no types
    """The unlabelled image with the highest uncertainty of the model.

    Args:
        model: What doubts.
    """

    def __init__(self, model: LabelModel) -> None:
        super().__init__(f"The image that {model.bundle} is least sure of")
        self.model = model
        self._doubts: dict[tuple[str, int], float] = {}

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The image's id and its doubt in [0, 1] as weight; None when all are labelled."""
        images = sorted(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels")))
        used = self.model.current()
        number = 0 if used is None else used.number
        unknown = [image for image in images if (image, number) not in self._doubts]
        for image in random.Random(0).sample(unknown, min(ASKED_AT_ONCE, len(unknown))):  # noqa: S311  # a draw, not cryptography
            self._doubts[image, number] = _doubt(self.model, datastore, image)
        known = [(self._doubts[image, number], image) for image in images if (image, number) in self._doubts]
        if not known:
            return None
        doubt, image = max(known)
        return {"id": image, "weight": doubt}


class DiceScoring(ScoringMethod):  # type: ignore[misc]  # MONAI Label carries no types
    """The agreement of first drafts with the labels that a person made of them: their Dice."""

    def __init__(self) -> None:
        super().__init__("Dice of drafts with final labels")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, float]:
        """Dice by image, where there are both; kept in the datastore's information of each."""
        tags, scores = (request.get("y", "final"), request.get("y_pred", "original")), {}
        for image in sorted(datastore.list_images()):
            labels = [datastore.get_label_uri(image, tag) for tag in tags]
            if not all(labels):
                continue
            try:
                masks = [torch.from_numpy(read_label(Path(label)) != 0) for label in labels]
                scores[image] = round(float(dice_score(*masks)), 4)
            except DataError as error:
                _log.warning("%s", error)
                continue
            datastore.update_image_info(image, {"dice": scores[image]})
        return scores


class DoubtScoring(ScoringMethod):  # type: ignore[misc]  # MONAI Label carries no types
    """The model's doubt of every image, for review; kept in the datastore's information of each.

    Args:
        model: What doubts.
    """

    def __init__(self, model: LabelModel) -> None:
        super().__init__(f"How unsure {model.bundle} is of each image, 0 to 1")
        self.model = model

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Doubts by image; one that cannot be read has 1."""
        doubts = {}
        for image in sorted(datastore.list_images()):
            doubts[image] = _doubt(self.model, datastore, image)
            datastore.update_image_info(image, {"amsam": {"doubt": doubts[image]}})
        mean = sum(doubts.values()) / len(doubts) if doubts else None
        return {"doubt": doubts, "mean": mean}


def _doubt(model: LabelModel, datastore: Datastore, image: str) -> float:
    try:
        return model.doubt(Path(datastore.get_image_uri(image)))
    except DataError as error:
        _log.warning("%s", error)
        return 1.0


def _log_epoch(epoch: int, epochs: int, dice: float) -> None:
    _log.info("Epoch %d/%d, Dice on D2 %.4f", epoch, epochs, dice)


def _region(request: Mapping[str, Any], path: Path) -> tuple[float, float, float, float] | None:
    """The part of the picture that a viewer of slides asks about, x1, y1, x2, y2; None for all of it."""
    place, extent = (_numbers(request.get(name), name) for name in ("location", "size"))
    if len(place) != 2 or len(extent) != 2 or min(extent) <= 0 or (place, extent) == _NO_REGION:
        return None
    height, width = image_size(path)
    x1, y1, x2, y2 = place[0], place[1], min(place[0] + extent[0], width), min(place[1] + extent[1], height)
    return None if (x1, y1, x2, y2) == (0, 0, width, height) else (x1, y1, x2, y2)


def _ending(request: Mapping[str, Any], path: Path) -> str:
    """Kind of the result's file: what was asked for, else one that fits the image's."""
    asked = request.get("result_extension")
    if asked in (PNG, *VOLUMES, DICOM):
        return str(asked)
    if asked and not isinstance(asked, list):
        raise DataError(f"result_extension is {asked[:60]!r}; expected one of {', '.join((PNG, *VOLUMES, DICOM))}")
    return next((ending for ending in VOLUMES if path.name.endswith(ending)), PNG)


def _write(found: Found, source: Path, ending: str) -> Path:
    """A file with the mask: PNG and DICOM as ``amsam segment`` writes them, or a volume of one slice with class ids."""
    if ending == DICOM and not is_dicom(source):
        raise DataError(f"a DICOM segmentation refers to a DICOM image, which {source.name} is not; ask for {PNG}")
    with tempfile.NamedTemporaryFile(suffix=ending, delete=False) as temporary:
        path = Path(temporary.name)
    if ending == PNG:
        write_mask_png(found.mask, path)
    elif ending == DICOM:
        write_dicom_seg(source, found.mask, path, *dicom_labels(found.labels))
    else:
        write_volume(found.mask, path)
    return path


def _example(pair: Mapping[str, str], scratch: Path, index: int) -> dict[str, str]:
    """A pair as training reads it; a label in one of ITK's formats becomes a PNG."""
    label = Path(pair["label"])
    if label.name.endswith(VOLUMES):
        mask = read_label(label)
        label = scratch / f"{index}{PNG}"
        write_mask_png((mask != 0).astype(np.uint8), label)
    return {"image": pair["image"], "label": str(label)}


def _numbers(given: object, name: str) -> list[float]:
    if given is None:
        return []
    if not isinstance(given, Sequence) or isinstance(given, str) or not all(_is_number(one) for one in given):
        raise DataError(f"{name} is {ascii(given)[:60]}; expected a list of numbers in pixels")
    return [float(one) for one in given]


def _points(given: object, name: str) -> list[tuple[float, float]]:
    """(x, y) of each point; viewers of volumes send (x, y, z)."""
    if given is None:
        return []
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise DataError(f"{name} is {ascii(given)[:60]}; expected a list of points [x, y] in pixels")
    points = [_numbers(point, name) for point in given]
    if any(len(point) not in (2, 3) for point in points):
        raise DataError(f"{name} holds a point that has not two or three numbers; expected [x, y] in pixels")
    return [(point[0], point[1]) for point in points]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
