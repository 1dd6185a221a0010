"""The paper's automated prompting as a MONAI inferer: a detector finds a box, which prompts the network.

A detector makes two kinds of errors: it finds a box where there is no object, or a box of only a part of one. So the
mask with the detected box is compared with the mask that the network predicts without a box (its *rival*), and a mask
may be emptied if the image seems to hold no object (:class:`PromptInferer`). A box drawn by a person is always used.

On a CPU the result of an image is bit-identical whatever the batch size and the number of threads: each image is
computed as a batch of its own in one thread, and the images of a batch are distributed over torch's threads. That is as
fast as one batch in all threads. On other devices the images of a batch are computed together.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import torch
from monai.inferers import Inferer
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.ops import box_iou

from amsam_med.boxes import BoxDetector, Detections, box_from_mask
from amsam_med.errors import ConfigError, WeightsError
from amsam_med.model import AmSam
from amsam_med.model.amsam import Prediction
from amsam_med.threads import kept_threads, single_threaded_pool
from amsam_med.views import ViewKind, unview_boxes, unview_image, view_boxes, view_image, views_of

NOT_FOUND = "not found"
"""Box source of an image in which the detector found nothing: its mask was predicted without a box."""
SET_ASIDE = "set aside"
"""Box source of an image whose detected box was not used: the mask without it has a much higher predicted IoU."""
WITHOUT_BOX = ("none", NOT_FOUND, SET_ASIDE)
"""Box sources of images whose mask was predicted without a box."""
AGREEMENT_IOU = 0.65
"""If the IoU of a box with the tight box of its mask is below this, the result is flagged: one of them is wrong.

Chosen on 200 validation images of ISIC 2018 and 190 training images of Human (Vikram), to find masks with a Dice below
0.7 and to spare those of 0.85 and more: at 0.7, seven of 130 good masks of people are flagged instead of two; at 0.6,
only half as many bad masks are found.
"""
SURE_DICE = 0.88
"""Below this certainty (see :class:`Segmentation`) a mask is flagged; chosen as :data:`AGREEMENT_IOU` was."""


SURE_LOGIT = 10.0
"""Logit of the background minus that of any object in a mask that was emptied."""


class Flag(StrEnum):
    """Why a result should be reviewed. The words are written into files; do not change them.

    Doubt in a mask is judged by its pixels' probabilities and not by ``predicted_iou``: the head that predicts it is
    trained in the compact bases only, and where a base comes with a new head for two masks (SAM's ViTs) it means
    nothing. For the same reason each bundle sets ``rival_margin`` and ``nothing_below`` for its own model.
    """

    NO_BOX = "no-box"
    """The detector found no object, and the mask was drawn without a box."""
    BOX_MASK_DISAGREE = "box-mask-disagree"
    """The box and the mask do not fit each other."""
    UNSURE_MASK = "unsure-mask"
    """Many pixels have a probability near one half."""
    EMPTY_MASK = "empty-mask"
    """There is no object in the mask, though a person drew a box."""
    NOTHING_FOUND = "nothing-found"
    """The network sees no object: the mask is empty."""


class Segmentation(NamedTuple):
    """The masks of B images, and how they were obtained.

    Attributes:
        mask_logits: float32 ``(B, C + 1, S/4, S/4)``.
        predicted_iou: float32 ``(B,)``: the network's estimate of its mask's IoU, the mean over object classes, in
            [0, 1].
        certainty: float32 ``(B,)`` in [0, 1]: Dice of the mask with the probabilities it was thresholded from (all
            objects together); 1 if every pixel's probability is 0 or 1, 0 for an empty mask.
        boxes: float32 ``(B, 4)``, xyxy pixels of the model input; None if no box was used. The boxes of images whose
            source is "not found" or "set aside" were not used.
        box_confidence: float32 ``(B,)`` in [0, 1]; 1 for a given box, 0 without one.
        box_sources: One of "detector", "not found", "set aside", "user" or "none" for each image.
        box_agreement: float32 ``(B,)``: IoU of the box with the mask's tight box; 1 where no box was used, 0 for an
            empty mask.
        flags: Reasons to review each image, in the order of :class:`Flag`; usually none.
    """

    mask_logits: Tensor
    predicted_iou: Tensor
    certainty: Tensor
    boxes: Tensor | None
    box_confidence: Tensor
    box_sources: list[str]
    box_agreement: Tensor
    flags: list[tuple[Flag, ...]]


class PromptInferer(Inferer):
    """Segment images with boxes from the caller or the detector.

    Args:
        detector: Finds one box per image; None to work without boxes unless they are given.
        views: Which views of an image are segmented; their boxes and mask logits are averaged. The time grows with the
            number of views.
        rival_margin: Segment images with a detected box a second time without it (another pass through the decoder
            only), and keep the mask without the box if its predicted IoU is higher by at least this margin. A negative
            margin prefers the mask without the box: it is kept unless the other one's predicted IoU is higher by more
            than its absolute value. None to segment such images only with the box.
        nothing_below: An image holds nothing, and its mask is emptied, if the predicted IoU in [0, 1] of the mask
            without a box is below this, unless a person has drawn the box; 0 keeps every mask. The mask without a box
            decides, because the network was trained to predict an empty mask only if it is given no box.

    Attributes:
        latest: The complete result of the last call of the inferer; None before the first.

    Raises:
        ConfigError: There are no such views, or ``rival_margin`` or ``nothing_below`` is out of range.
    """

    def __init__(
        self,
        detector: BoxDetector | None = None,
        views: ViewKind = "none",
        rival_margin: float | None = None,
        nothing_below: float = 0.0,
    ) -> None:
        super().__init__()
        for name, share, least in (("rival_margin", rival_margin or 0.0, -1), ("nothing_below", nothing_below, 0)):
            if not least <= share <= 1:
                raise ConfigError(
                    f"{name} is {share}; it is compared with predicted IoUs; give a number from {least} to 1"
                )
        self.detector = detector
        self.views = views_of(views)
        self.rival_margin = rival_margin
        self.nothing_below = nothing_below
        self.latest: Segmentation | None = None

    def __call__(  # type: ignore[override]  # MONAI's inferers take any callable; this one asks for a box's network
        self, inputs: Tensor, network: AmSam, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Mask logits float ``(B, C + 1, S/4, S/4)`` for MONAI's evaluators; arguments as for :meth:`predict`."""
        self.latest = self.predict(inputs, network, *args, **kwargs)
        return self.latest.mask_logits

    def predict(self, inputs: Tensor, network: AmSam, boxes: Tensor | None = None) -> Segmentation:
        """Segment images.

        Args:
            inputs: RGB float ``(B, 3, S, S)`` in [0, 1].
            network: The network, in evaluation mode.
            boxes: Boxes from the caller, float ``(B, 4)``, xyxy pixels of the model input.

        Raises:
            WeightsError: The network returns NaN or infinities, from which an empty mask would be made.
        """
        threads = torch.get_num_threads()
        if inputs.device.type != "cpu" or (threads == 1 and len(inputs) == 1):
            return self._predict(inputs, network, boxes)
        # Convolutions choose their kernels by shape and thread count, and the last bits of a result with them. So each
        # image is a batch of one in one thread, whoever calls and however many images there are.
        singles = torch.split(inputs, 1)
        of_single = [None] * len(singles) if boxes is None else torch.split(boxes, 1)
        with kept_threads(), single_threaded_pool(min(threads, len(singles))) as pool:
            return _concatenated(list(pool.map(self._predict, singles, [network] * len(singles), of_single)))

    @torch.no_grad()
    def _predict(self, inputs: Tensor, network: AmSam, boxes: Tensor | None) -> Segmentation:
        count = inputs.shape[0]
        kind = network.settings["prompt"]
        if kind == "none" or (boxes is None and (kind == "own" or self.detector is None)):
            found, sources = None, ["none"] * count
        elif boxes is not None:
            found, sources = _user_boxes(boxes), ["user"] * count
        else:
            found = self._detect(inputs)
            sources = ["detector" if is_detected else NOT_FOUND for is_detected in found.is_detected.tolist()]
        # Where the detector finds nothing, the mask is without a box anyway and there is nothing to compare.
        has_rival = self.rival_margin is not None and "detector" in sources
        prediction, *rival = self._segment(inputs, network, [found, None] if has_rival else [found])
        if not all(bool(answer.isfinite().all()) for answer in prediction):
            raise WeightsError(
                "the network answers with values that are NaN or infinite, so its weights are damaged, or were trained "
                "until they diverged; look at them with `amsam weights verify`, or train the adapter again"
            )
        without_box = _mean_predicted_iou(rival[0] if rival else prediction)
        if found is not None and self.rival_margin is not None and rival:
            is_better = without_box > _mean_predicted_iou(prediction) + self.rival_margin
            is_aside = found.is_detected.to(is_better.device) & is_better
            pairs = zip(rival[0], prediction, strict=True)
            prediction = Prediction(*(_select(is_aside, *answers) for answers in pairs))
            found = found._replace(is_detected=found.is_detected & ~is_aside)
            sources = [SET_ASIDE if aside else source for aside, source in zip(is_aside, sources, strict=True)]
        trust = _mean_predicted_iou(prediction)
        mask_logits = self._empty_uncertain_masks(prediction.mask_logits, without_box, sources)
        return _with_checks(mask_logits, trust, found, sources, inputs.shape[-1])

    def _empty_uncertain_masks(self, mask_logits: Tensor, trust: Tensor, sources: list[str]) -> Tensor:
        """Empty the masks whose predicted IoU is too low for them to show an object."""
        is_nothing = (trust.cpu() < self.nothing_below) & torch.tensor([source != "user" for source in sources])
        if not bool(is_nothing.any()):
            return mask_logits
        # Logits, not masks, are emptied: whoever averages, resizes or thresholds them later gets the background.
        background = mask_logits[:, :1]
        emptied = torch.cat([background, (background - SURE_LOGIT).expand_as(mask_logits[:, 1:])], dim=1)
        return _select(is_nothing, emptied, mask_logits)

    def _detect(self, inputs: Tensor) -> Detections:
        """One box per image: the mean over the views, weighted by confidence."""
        assert self.detector is not None
        if len(self.views) == 1:
            return self.detector(inputs)
        size = inputs.shape[-1]
        found = [self.detector(view_image(inputs, view)) for view in self.views]
        boxes = torch.stack([unview_boxes(one.boxes, view, size) for view, one in zip(self.views, found, strict=True)])
        confidence = torch.stack([one.confidence for one in found])  # (V, B); 0 where nothing was found
        is_detected = torch.stack([one.is_detected for one in found]).any(dim=0)
        mean = (confidence[..., None] * boxes).sum(dim=0) / confidence.sum(dim=0).clamp(min=1e-12)[:, None]
        return Detections(mean, confidence.amax(dim=0), is_detected)

    def _segment(self, inputs: Tensor, network: AmSam, prompts: Sequence[Detections | None]) -> list[Prediction]:
        """The mean over the views, for each of several prompts; every view is encoded once."""
        seen: list[list[Prediction]] = [[] for _ in prompts]
        for view in self.views:
            embedding = network.embed(view_image(inputs, view))
            for found, answers in zip(prompts, seen, strict=True):
                in_view = found and found._replace(boxes=view_boxes(found.boxes, view, inputs.shape[-1]))
                answer = predict_prompted(network, embedding, in_view)
                answers.append(answer._replace(mask_logits=unview_image(answer.mask_logits, view)))
        return [Prediction(*(torch.stack(part).mean(dim=0) for part in zip(*answers, strict=True))) for answers in seen]


def predict_prompted(network: AmSam, inputs: Tensor, found: Detections | None) -> Prediction:
    """Predict masks with a box for images in which one was found, and without a box for the others.

    Args:
        network: The network.
        inputs: Images or their embeddings, as for ``network.predict``.
        found: One box per image, xyxy pixels of the model input; None for no boxes at all.
    """
    if found is None or not bool(found.is_detected.any()):
        return network.predict(inputs)
    if bool(found.is_detected.all()):
        return network.predict(inputs, found.boxes)
    # The network takes boxes for all images of a batch or for none. So the two groups are decoded separately, which
    # decodes no image twice, and put back in order.
    embedding, is_detected = network.embed(inputs), found.is_detected
    with_box = network.predict(embedding[is_detected], found.boxes[is_detected])
    without = network.predict(embedding[~is_detected])
    order = torch.cat([is_detected.nonzero(), (~is_detected).nonzero()]).flatten().argsort()
    return Prediction(*(torch.cat(parts)[order] for parts in zip(with_box, without, strict=True)))


@torch.no_grad()
def follow_prompts(
    network: AmSam,
    inputs: Tensor,
    boxes: Tensor | None = None,
    points: Tensor | None = None,
    point_labels: Tensor | None = None,
) -> Segmentation:
    """Segment what a person points at, with a box, with points, or with both.

    Args:
        network: The network, in evaluation mode.
        inputs: B images or their embeddings, as for ``network.predict``.
        boxes: float ``(B, 4)``, xyxy pixels of the model input.
        points: float ``(B, N, 2)``, x and y in pixels of the model input.
        point_labels: ``(B, N)``: 1 on the object, 0 beside it.
    """
    prediction = network.predict(inputs, boxes, points, point_labels)
    found = None if boxes is None else _user_boxes(boxes)
    sources = ["user"] * inputs.shape[0]
    return _with_checks(prediction.mask_logits, _mean_predicted_iou(prediction), found, sources, network.input_size)


def judge_masks(mask_logits: Tensor, found: Detections | None, input_size: int) -> tuple[Tensor, Tensor]:
    """Certainty of masks and their agreement with the boxes; see :class:`Segmentation` for both.

    Args:
        mask_logits: float ``(B, C + 1, h, w)``.
        found: One box per image, xyxy pixels of the model input; None for no boxes.
        input_size: S in pixels, the size at which masks and boxes are compared.

    Returns:
        Certainty and box agreement, float32 ``(B,)`` each, on the CPU.
    """
    logits = interpolate(mask_logits.float(), (input_size, input_size), mode="bilinear", align_corners=False)
    is_object = logits.argmax(dim=1) != 0  # (B, S, S)
    object_chance = 1 - logits.softmax(dim=1)[:, 0]
    shared = (object_chance * is_object).sum(dim=(1, 2))
    certainty = 2 * shared / (object_chance.sum(dim=(1, 2)) + is_object.sum(dim=(1, 2))).clamp(min=1e-6)
    if found is None:
        return certainty.cpu(), torch.ones(len(logits))
    tight = [box_from_mask(mask) for mask in is_object.cpu()]  # one transfer instead of a synchronisation per mask
    agreement = [
        0.0 if own is None else float(box_iou(box[None], own[None]))
        for box, own in zip(found.boxes.cpu(), tight, strict=True)
    ]
    return certainty.cpu(), torch.tensor(agreement).where(found.is_detected.cpu(), 1.0)


def _user_boxes(boxes: Tensor) -> Detections:
    """Boxes ``(B, 4)`` of a person as detections with confidence 1."""
    count = len(boxes)
    return Detections(boxes, torch.ones(count), torch.ones(count, dtype=torch.bool, device=boxes.device))


def _with_checks(
    mask_logits: Tensor, trust: Tensor, found: Detections | None, sources: list[str], input_size: int
) -> Segmentation:
    """The segmentation with certainty, agreement and flags; arguments as for :class:`Segmentation`."""
    certainty, agreement = judge_masks(mask_logits, found, input_size)
    flags = [_flags(*facts) for facts in zip(sources, certainty.tolist(), agreement.tolist(), strict=True)]
    boxes, confidence = (None, torch.zeros(len(sources))) if found is None else (found.boxes, found.confidence)
    return Segmentation(mask_logits, trust, certainty, boxes, confidence, sources, agreement, flags)


def _concatenated(parts: Sequence[Segmentation]) -> Segmentation:
    """The results of several batches as those of one."""
    boxes = [part.boxes for part in parts if part.boxes is not None]
    return Segmentation(
        mask_logits=torch.cat([part.mask_logits for part in parts]),
        predicted_iou=torch.cat([part.predicted_iou for part in parts]),
        certainty=torch.cat([part.certainty for part in parts]),
        boxes=torch.cat(boxes) if boxes else None,
        box_confidence=torch.cat([part.box_confidence for part in parts]),
        box_sources=[source for part in parts for source in part.box_sources],
        box_agreement=torch.cat([part.box_agreement for part in parts]),
        flags=[flags for part in parts for flags in part.flags],
    )


def _mean_predicted_iou(prediction: Prediction) -> Tensor:
    """The mean predicted IoU of the objects' masks, float ``(B,)`` in [0, 1]."""
    return prediction.object_iou.clamp(0, 1)


def _select(is_first: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Select each of B entries from one of two tensors ``(B, ...)`` by bool ``(B,)``."""
    return torch.where(is_first.to(first.device).view(-1, *[1] * (first.ndim - 1)), first, second)


def _flags(box_source: str, certainty: float, box_agreement: float) -> tuple[Flag, ...]:
    is_empty = certainty == 0
    reasons = {
        Flag.NO_BOX: box_source == NOT_FOUND,
        Flag.BOX_MASK_DISAGREE: box_agreement < AGREEMENT_IOU and not is_empty,
        Flag.UNSURE_MASK: certainty < SURE_DICE and not is_empty,
        Flag.EMPTY_MASK: is_empty and box_source == "user",
        Flag.NOTHING_FOUND: is_empty and box_source != "user",
    }
    return tuple(flag for flag, is_given in reasons.items() if is_given)
