"""An opened model: a bundle's parts as one object that segments images.

The folder run, the label server and notebooks all use a :class:`Model`::

    model = open_model("amsam_isic")
    found = model.segment("lesion.jpg")

:meth:`Model.segment` calls :meth:`Model.prepare`, :meth:`Model.predict` and :meth:`Model.restore` one after another;
the folder run calls the three in separate threads. So masks are bit-identical everywhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias

import numpy as np
import PIL.Image
import torch
from monai.utils.enums import MetaKeys, PostFix
from numpy.typing import NDArray
from pydantic import Field, StringConstraints
from torch import Tensor

from amsam_med import __version__, weights
from amsam_med.boxes import Size, scale_boxes
from amsam_med.bundle import BundleParser, InferenceWorkflow, default_bundle, model_overrides, open_bundle
from amsam_med.data.pictures import rgb_pixels
from amsam_med.data.readers import FilePath
from amsam_med.data.results import ClassMeaning, Labels
from amsam_med.errors import AmsamError, ConfigError, DataError
from amsam_med.infer import WITHOUT_BOX, Flag, Segmentation, follow_prompts
from amsam_med.keys import Keys
from amsam_med.schema import Record, checked
from amsam_med.trust import trust
from amsam_med.views import ViewKind
from amsam_med.weights import locate_bundle

ImageLike: TypeAlias = FilePath | NDArray[np.uint8] | PIL.Image.Image
"""A file of one picture; an array uint8 ``(H, W, 3)`` RGB; or a picture that Pillow has opened."""
Box: TypeAlias = tuple[float, float, float, float]
Point: TypeAlias = tuple[float, float]

ANY_OBJECT = {"label": "object", "category": ("SCT", "85756007", "Tissue"), "type": ("SCT", "85756007", "Tissue")}
"""Meaning of a class for which the bundle gives none: DICOM codes that say no more than "object"."""
_FINGERPRINTED = ("input_size", "network_def", "preprocessing", "detector", "test_views", "inferer", "postprocessing")
_IN_MEMORY = "the image"

_Word = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class _Segment(Record):
    """What a class means: a label, and the codes of category and type as (scheme, value, meaning)."""

    label: _Word
    category: tuple[_Word, _Word, _Word]
    type: tuple[_Word, _Word, _Word]


class _Segments(Record):
    segments: Annotated[tuple[_Segment, ...], Field(min_length=1, max_length=254)]


class Clicks(NamedTuple):
    """A user's prompts, in pixels of the picture: x to the right, y down.

    Attributes:
        box: x1, y1, x2, y2; None without a box.
        foreground: (x, y) of points on the object.
        background: (x, y) of points outside it.
    """

    box: Box | None = None
    foreground: Sequence[Point] = ()
    background: Sequence[Point] = ()


class PreparedImage(NamedTuple):
    """An image in the network's input frame.

    Attributes:
        inputs: float32 ``(3, S, S)`` RGB in [0, 1]; or, after :meth:`Model.encode`, its embedding float32
            ``(256, S/16, S/16)``.
        size: (height, width) of the image itself in pixels.
        context: Further output of the bundle's preprocessing, which its postprocessing needs.
    """

    inputs: Tensor
    size: Size
    context: Mapping[Any, Any]


class Answer(NamedTuple):
    """The network's output for one image, still at the size of its logits; numbers as in :class:`SegmentedImage`.

    Attributes:
        mask_logits: float32 ``(C + 1, S/4, S/4)`` on the CPU; channel 0 is background.
        box_in_original: float32 ``(4,)``, xyxy pixels of the image; None where the mask was drawn without a box.
        box_source: One of "detector", "not found", "set aside", "user", "none".
        box_confidence: In [0, 1].
        box_agreement: In [0, 1].
        predicted_iou: In [0, 1].
        certainty: In [0, 1].
        flags: Reasons to review the result.
        context: As for :class:`PreparedImage`.
    """

    mask_logits: Tensor
    box_in_original: Tensor | None
    box_source: str
    box_confidence: float
    box_agreement: float
    predicted_iou: float
    certainty: float
    flags: tuple[Flag, ...]
    context: Mapping[Any, Any]


@dataclass(frozen=True, eq=False)
class SegmentedImage:
    """The result of segmenting an image.

    Attributes:
        mask: Class ids, uint8 ``(H, W)``, in the image's own frame and size: 0 is background, 1 the first class.
        box: x1, y1, x2, y2 in pixels of the image, x to the right and y down, with continuous edges (a box around the
            pixel at column 0, row 0 is 0, 0, 1, 1); None where the mask was drawn without a box.
        confidence: Of the detector in its box, in [0, 1]; 1 for a box that was given, 0 where none was found.
        flags: Reasons to review the result, in the words of ``results.csv``; usually none.
        box_source: Source of the box: "detector"; "user"; "not found" (the detector found none); "set aside" (the mask
            without the box had a much higher predicted IoU); "none" (the model works without boxes).
        box_agreement: IoU of the box with the tight box of the mask, in [0, 1]; 1 where no box was used.
        predicted_iou: The network's own estimate of its mask's IoU, in [0, 1].
        certainty: Dice of the mask with the probabilities it was thresholded from, in [0, 1]; high if most pixels'
            probabilities are near 0 or 1, and 0 for an empty mask.
    """

    mask: NDArray[np.uint8]
    box: Box | None
    confidence: float
    flags: tuple[Flag, ...]
    box_source: str
    box_agreement: float
    predicted_iou: float
    certainty: float


class Model(InferenceWorkflow):
    """An opened bundle that segments images; use :func:`open_model` to make one.

    Parts are built when they are first used. After that, threads may share a model.

    Args:
        parser: Of the bundle's ``inference`` workflow.
    """

    @property
    def name(self) -> str:
        """Name of the bundle."""
        return Path(self.parser.as_written("bundle_root")).name

    @cached_property
    def digests(self) -> dict[str, str | None]:
        """sha256 in hex of the weights by role (model, or base and adapter; detector); None for one not used."""
        return {role: None if file is None else weights.sha256(file) for role, file in self.weight_files().items()}

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Everything a mask depends on besides its image, as JSON values; no paths, so that folders may be moved."""
        parts = {name: self.parser.as_written(name) for name in _FINGERPRINTED}
        if isinstance(parts["network_def"], dict):
            parts["network_def"] = {key: value for key, value in parts["network_def"].items() if key != "base_weights"}
        as_json = json.dumps(parts, default=lambda part: type(part).__qualname__)
        return {"amsam-med": __version__, **json.loads(as_json), "weights": self.digests}

    @cached_property
    def labels(self) -> Labels:
        """Meanings of the classes, and digests of the weights.

        Raises:
            DataError: The bundle's metadata has them in another form.
        """
        stated = self.parser.get("_meta_", {}).get("segments") or [ANY_OBJECT]
        given = json.dumps({"segments": stated}, default=str)
        segments = [
            ClassMeaning(one.label, one.category, one.type)
            for one in checked(_Segments, given, "metadata.json", "mend the bundle").segments
        ]
        digests = {role: digest for role, digest in self.digests.items() if digest}
        return Labels(segments, "AM-SAM Med", __version__, digests)

    def load(self) -> None:
        """Build all parts now, so that errors in their files are raised before any work, and threads can share them.

        Raises:
            WeightsError: A file is missing, damaged, or of another network.
        """
        _ = self.network, self.inferer, self.device, self.preprocessing, self.postprocessing

    def segment(
        self,
        image: ImageLike,
        box: Sequence[float] | None = None,
        foreground: Sequence[Point] = (),
        background: Sequence[Point] = (),
    ) -> SegmentedImage:
        """Segment one image; without a prompt, the mask is bit-identical to that of ``amsam segment``.

        Args:
            image: A file of one picture in any supported format; an array uint8 ``(H, W, 3)`` RGB; or a PIL image.
            box: A box around the object, x1, y1, x2, y2 in pixels of the image, in place of the detector's.
            foreground: Points on the object, x and y in pixels of the image. With points the image itself is
                segmented, whatever the model's test views are.
            background: Points outside it.

        Raises:
            DataError: The file cannot be read or is not one picture, the array is none of an image, or a prompt is
                outside the image.
            ConfigError: There is a prompt, and the network was trained to take none.
            WeightsError: The network answers with NaN or infinities.
        """
        name, readable = _named(image)
        clicks = Clicks(None if box is None else _as_box(box), foreground, background)
        if clicks.box is None and not clicks.foreground and not clicks.background:
            return self.finish(self.predict([self.prepare(readable)])[0])
        if self.network.settings["prompt"] == "none":
            raise ConfigError(
                f"got a box or points, and the network of {self.name} was trained with prompt none and looks at "
                "neither; leave them out, or open another bundle or adapter"
            )
        prepared = self.prepare(readable)
        if clicks.foreground or clicks.background:
            return self.finish(self.predict_prompted(prepared, clicks, name))
        (answer,) = self.predict([prepared], self._in_input(clicks, prepared.size, name)[0])
        return self.finish(answer._replace(box_in_original=torch.tensor(clicks.box)))

    def prepare(self, image: FilePath | NDArray[np.uint8]) -> PreparedImage:
        """An image in the network's frame.

        Args:
            image: A file of one picture, or uint8 ``(3, H, W)`` RGB, as :mod:`amsam_med.data.readers` reads it.

        Raises:
            DataError: The file cannot be read or is not one picture, or the array has another shape or type.
        """
        item = dict(self.preprocessing({Keys.IMAGE.value: image if isinstance(image, np.ndarray) else str(image)}))
        inputs: Tensor = item.pop(Keys.IMAGE.value)
        known: Any = image if isinstance(image, np.ndarray) else None
        height, width = item[_META][MetaKeys.SPATIAL_SHAPE] if known is None else known.shape[1:]
        return PreparedImage(inputs, (int(height), int(width)), item)

    def predict(self, images: Sequence[PreparedImage], boxes: Tensor | None = None) -> list[Answer]:
        """Segment images in one batch; each by a detected box unless boxes are given.

        Args:
            images: B of them, not encoded.
            boxes: float32 ``(B, 4)``, xyxy pixels of the network's input.

        Raises:
            WeightsError: The network answers with NaN or infinities.
        """
        inputs = torch.stack([image.inputs for image in images]).to(self.device)  # (B, 3, S, S)
        found = self.inferer.predict(inputs, self.network, None if boxes is None else boxes.to(self.device))
        return _answers(found, images, inputs.shape[-1])

    @torch.no_grad()
    def encode(self, image: PreparedImage) -> PreparedImage:
        """The image with its embedding as inputs, for several prompts on it."""
        return image._replace(inputs=self.network.embed(image.inputs[None].to(self.device))[0])

    def predict_prompted(self, image: PreparedImage, clicks: Clicks, name: str = _IN_MEMORY) -> Answer:
        """Segment an image with a user's prompts.

        Args:
            image: Encoded or not.
            clicks: A box, points, or both.
            name: Of the image, for messages.

        Raises:
            DataError: There is no prompt, or it is outside the image.
        """
        prompts = (None if one is None else one.to(self.device) for one in self._in_input(clicks, image.size, name))
        found = follow_prompts(self.network, image.inputs[None].to(self.device), *prompts)
        (answer,) = _answers(found, [image], self.network.input_size)
        return answer._replace(box_in_original=None if clicks.box is None else torch.tensor(clicks.box))

    def restore(self, answer: Answer) -> NDArray[np.uint8]:
        """The mask of an answer in its image's own frame: class ids, uint8 ``(H, W)``."""
        item = self.postprocessing({**answer.context, Keys.PRED.value: answer.mask_logits})
        mask: NDArray[np.uint8] = item[Keys.PRED.value].numpy()[0]  # (1, H, W) -> (H, W)
        return mask

    def finish(self, answer: Answer) -> SegmentedImage:
        """An answer with its mask restored."""
        box = answer.box_in_original
        return SegmentedImage(
            mask=self.restore(answer),
            box=None if box is None else _as_box(box.tolist()),
            confidence=answer.box_confidence,
            flags=answer.flags,
            box_source=answer.box_source,
            box_agreement=answer.box_agreement,
            predicted_iou=answer.predicted_iou,
            certainty=answer.certainty,
        )

    def _in_input(self, clicks: Clicks, size: Size, name: str) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Boxes ``(1, 4)``, points ``(1, N, 2)`` and their labels ``(1, N)`` in pixels of the network's input."""
        (height, width), side = size, self.network.input_size
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


def open_model(
    bundle: FilePath | None = None,
    *,
    adapter: FilePath | None = None,
    base_weights: FilePath | None = None,
    detector: FilePath | None = None,
    device: str = "auto",
    test_views: ViewKind | None = None,
    trust_bundle: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> Model:
    """Open a bundle as a model that segments images, with its weights loaded.

    Args:
        bundle: Name of a shipped bundle (``"amsam_isic"`` for skin lesions, ``"amsam_body"`` for people), or the folder
            of any; by default the one the adapter was trained with, else ``"amsam_isic"``.
        adapter: An ``adapter.safetensors`` to use instead of the bundle's own model.
        base_weights: The base on which the adapter was trained; by default the one it names.
        detector: Name or file of a box detector, ``"none"`` for no boxes; the bundle's own by default.
        device: ``"auto"`` leaves it to the bundle; else a device of torch's: ``"cpu"``, ``"cuda"``.
        test_views: Views of each image to average, by :data:`amsam_med.views.ViewKind`; by default the bundle's.
        trust_bundle: Let the bundle's configuration run, now and from now on as long as it stays as it is: a bundle is
            code. Shipped bundles need no trust.
        overrides: Further entries of the configuration, by id.

    Raises:
        ConfigError: The bundle is not trusted, there is no such device, or an override names no entry.
        DataError: There is no such bundle, or its configuration cannot be read.
        WeightsError: Model, adapter, base or detector are missing, damaged, or do not belong together.
    """
    refuse_missing_device(device)
    chosen = str(bundle or default_bundle(adapter))
    if trust_bundle:
        trust(locate_bundle(chosen))
    options = model_overrides(adapter, base_weights, detector, device, test_views)
    model = Model(open_bundle(chosen, "inference", {**options, **(overrides or {})}))
    model.load()
    return model


def refuse_missing_device(device: str) -> None:
    """Refuse a device that torch does not know or does not find.

    Raises:
        ConfigError: This is one.
    """
    if device == "auto":
        return
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ConfigError(f"got device={device!r}; expected auto, cpu or cuda") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, and torch finds none; use auto or cpu, or install torch for CUDA")


def result_labels(parser: BundleParser, salt: str | None = None) -> Labels:
    """Meanings of the classes of an opened inference bundle, and digests of its weights.

    Args:
        parser: Of ``inference.yaml``.
        salt: Of the identifiers of de-identified results; None keeps the source's.
    """
    return Model(parser).labels._replace(deidentified_with=salt)


_META = PostFix.meta(Keys.IMAGE.value)


def _answers(found: Segmentation, images: Sequence[PreparedImage], side: int) -> list[Answer]:
    """The network's answers image by image; ``side`` is that of its input in pixels."""
    mask_logits, boxes = found.mask_logits.cpu(), None if found.boxes is None else found.boxes.cpu()
    answers = []
    for index, image in enumerate(images):
        box = None
        if boxes is not None and found.box_sources[index] not in WITHOUT_BOX:
            box = scale_boxes(boxes[index], (side, side), image.size)
        answers.append(
            Answer(
                mask_logits=mask_logits[index],
                box_in_original=box,
                box_source=found.box_sources[index],
                box_confidence=float(found.box_confidence[index]),
                box_agreement=float(found.box_agreement[index]),
                predicted_iou=float(found.predicted_iou[index]),
                certainty=float(found.certainty[index]),
                flags=found.flags[index],
                context=image.context,
            )
        )
    return answers


def _named(image: ImageLike) -> tuple[str, FilePath | NDArray[np.uint8]]:
    """An image's name for messages, and its file or its pixels uint8 ``(3, H, W)``."""
    if isinstance(image, str | os.PathLike):
        return Path(image).name, image
    if isinstance(image, PIL.Image.Image):
        name = Path(str(getattr(image, "filename", ""))).name or _IN_MEMORY
        try:
            return name, rgb_pixels(image).transpose(2, 0, 1)
        except AmsamError as error:
            raise DataError(f"{name}: {error}") from None
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow says of damaged files
            raise DataError(f"{name}: cannot be decoded ({error}). Export it again, for example as PNG") from None
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise DataError(
            f"an array must be uint8 (H, W, 3) RGB; got {pixels.dtype} {tuple(pixels.shape)}. Convert it, or give a "
            "file or a PIL image"
        )
    return _IN_MEMORY, pixels.transpose(2, 0, 1)


def _as_box(edges: Sequence[float]) -> Box:
    if len(edges) != 4:
        raise DataError(f"a box has {len(edges)} numbers; expected x1, y1, x2, y2 in pixels of the image")
    x1, y1, x2, y2 = (float(edge) for edge in edges)
    return x1, y1, x2, y2
