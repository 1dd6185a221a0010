"""From images to masks with a box found on the way: the paper's automated prompting as a MONAI inferer.

A detector errs in two ways: it boxes what is no object, and it boxes a part of one. So its box has a rival, the mask
that the network draws without any box, and an image may hold nothing at all (:class:`PromptInferer`). Boxes that a
person has drawn have no rival: they are obeyed.

On a CPU the result of an image is that of the image alone, bit for bit, whatever is segmented beside it and on however
many cores: each image is a batch of its own, in one thread; the images of a batch are shared out to as many threads as
torch has. That is as fast as one batch in all threads. On other devices the images of a batch are computed at once.
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
"""Source of the box of an image in which the detector found nothing: its mask was drawn without one."""
SET_ASIDE = "set aside"
"""Source of the box of an image whose detected box was not used: the network trusts the mask without it much more."""
WITHOUT_BOX = ("none", NOT_FOUND, SET_ASIDE)
"""Sources of images whose mask was drawn without a box."""
AGREEMENT_IOU = 0.65
"""Below this IoU of a box with the tight box of the mask that it led to, one of the two is wrong.

Chosen on 200 validation images of ISIC 2018 and 190 training images of Human (Vikram), to find masks with a Dice below
0.7 and to spare those from 0.85 on: at 0.7, seven of 130 good masks of people are flagged instead of two; at 0.6, half
as many bad ones are found.
"""
SURE_DICE = 0.88
"""Below this certainty (see :class:`Segmentation`) a mask is flagged; chosen as :data:`AGREEMENT_IOU` was."""


SURE_LOGIT = 10.0
"""By how much the background's logit exceeds that of any object in a mask that was emptied."""


class Flag(StrEnum):
    """Why a result deserves a look. The words stand in files; do not change them.

    Doubt in a mask is judged by the probabilities that it is cut from, and not by ``predicted_iou``: the head of that
    number is trained in the compact bases only, and where a base comes with a new head for two masks (SAM's ViTs) it
    means nothing. For the same reason a bundle says whether there is a rival, and what is nothing, for its own model.
    """

    NO_BOX = "no-box"
    """The detector found no object, and the mask was drawn without a box."""
    BOX_MASK_DISAGREE = "box-mask-disagree"
    """The box and the mask are not of the same thing."""
    UNSURE_MASK = "unsure-mask"
    """Many pixels are about as likely object as background."""
    EMPTY_MASK = "empty-mask"
    """There is no object in the mask, though a person drew a box."""
    NOTHING_FOUND = "nothing-found"
    """The network sees no object: the mask is empty."""


class Segmentation(NamedTuple):
    """The masks of B images, and how the network came to them.

    Attributes:
        mask_logits: float32 ``(B, C + 1, S/4, S/4)``.
        predicted_iou: float32 ``(B,)``: the network's estimate of its mask's IoU, the mean over object classes, in
            [0, 1].
        certainty: float32 ``(B,)`` in [0, 1]: Dice of the mask with the probabilities that it is cut from (all objects
            together); 1 for pixels that are all decided, 0 for an empty mask.
        boxes: float32 ``(B, 4)``, xyxy pixels of the model input; None where no box was used. Images whose source is
            "not found" or "set aside" were segmented without theirs.
        box_confidence: float32 ``(B,)`` in [0, 1]; 1 for a given box, 0 without one.
        box_sources: One of "detector", "not found", "set aside", "user" or "none" for each image.
        box_agreement: float32 ``(B,)``: IoU of the box with the mask's tight box; 1 where no box was used, 0 for an
            empty mask.
        flags: An image's reasons for a second look, in the order of :class:`Flag`; mostly none.
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
    """Boxes given by the caller, or found by the detector; then the network.

    Args:
        detector: Finds one box an image; None to work without boxes unless they are given.
        views: Which views of an image are segmented; their boxes and mask logits are averaged. More than the image
            itself cost as many times its time.
        rival_margin: Segment images with a detected box without it, too (a second pass through the decoder, none
            through the encoder), and keep that mask where its predicted IoU is higher by this much: with a box, which
            may be that of a part, the network is more careful. Below 0 it is kept unless the mask with the box is
            trusted by as much more. None for no rival.
        nothing_below: Predicted IoU in [0, 1] of the mask without a box (the rival's, where there is one) below which
            there is nothing in an image, and its mask is emptied unless a person has drawn its box; 0 keeps every mask.
            Without a box the network has learned to see nothing; with one it has learned to obey.

    Attributes:
        latest: What the last call of the inferer returned the logits of; None before the first.

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
            WeightsError: The network answers an image with NaN or infinities; its mask would be empty and say nothing.
        """
        threads = torch.get_num_threads()
        if inputs.device.type != "cpu" or (threads == 1 and len(inputs) == 1):
            return self._predict(inputs, network, boxes)
        singles = torch.split(inputs, 1)
        of_single = [None] * len(singles) if boxes is None else torch.split(boxes, 1)
        with kept_threads(), single_threaded_pool(min(threads, len(singles))) as pool:
            return _joined(list(pool.map(self._predict, singles, [network] * len(singles), of_single)))

    @torch.no_grad()
    def _predict(self, inputs: Tensor, network: AmSam, boxes: Tensor | None) -> Segmentation:
        count = inputs.shape[0]
        kind = network.settings["prompt"]
        if kind == "none" or (boxes is None and (kind == "own" or self.detector is None)):
            found, sources = None, ["none"] * count
        elif boxes is not None:
            found, sources = _drawn(boxes), ["user"] * count
        else:
            found = self._detect(inputs)
            sources = ["detector" if is_detected else NOT_FOUND for is_detected in found.is_detected.tolist()]
        has_rival = self.rival_margin is not None and "detector" in sources
        prediction, *rival = self._segment(inputs, network, [found, None] if has_rival else [found])
        if not all(bool(answer.isfinite().all()) for answer in prediction):
            raise WeightsError(
                "the network answers with values that are NaN or infinite, so its weights are damaged, or were trained "
                "until they diverged; look at them with `amsam weights verify`, or train the adapter again"
            )
        without_box = _trust(rival[0] if rival else prediction)
        if found is not None and self.rival_margin is not None and rival:
            is_better = without_box > _trust(prediction) + self.rival_margin
            is_aside = found.is_detected.to(is_better.device) & is_better
            pairs = zip(rival[0], prediction, strict=True)
            prediction = Prediction(*(_chosen(is_aside, *answers) for answers in pairs))
            found = found._replace(is_detected=found.is_detected & ~is_aside)
            sources = [SET_ASIDE if aside else source for aside, source in zip(is_aside, sources, strict=True)]
        trust = _trust(prediction)
        mask_logits = self._without_nothing(prediction.mask_logits, without_box, sources)
        return _judged(mask_logits, trust, found, sources, inputs.shape[-1])

    def _without_nothing(self, mask_logits: Tensor, trust: Tensor, sources: list[str]) -> Tensor:
        """Empty the masks that the network trusts too little for them to be of anything."""
        is_nothing = (trust.cpu() < self.nothing_below) & torch.tensor([source != "user" for source in sources])
        if not bool(is_nothing.any()):
            return mask_logits
        background = mask_logits[:, :1]
        emptied = torch.cat([background, (background - SURE_LOGIT).expand_as(mask_logits[:, 1:])], dim=1)
        return _chosen(is_nothing, emptied, mask_logits)

    def _detect(self, inputs: Tensor) -> Detections:
        """One box an image: the mean over the views, each as sure as it is confident."""
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
    """Masks with the box where one was found, and with the default prompt elsewhere.

    Args:
        network: The network.
        inputs: Images or their embeddings, as for ``network.predict``.
        found: A box an image, xyxy pixels of the model input; None for no boxes at all.
    """
    if found is None or not bool(found.is_detected.any()):
        return network.predict(inputs)
    if bool(found.is_detected.all()):
        return network.predict(inputs, found.boxes)
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
    """Masks of what a person points at, with a box, with points, or with both.

    Args:
        network: The network, in evaluation mode.
        inputs: B images or their embeddings, as for ``network.predict``.
        boxes: float ``(B, 4)``, xyxy pixels of the model input.
        points: float ``(B, N, 2)``, x and y in pixels of the model input.
        point_labels: ``(B, N)``: 1 on the object, 0 beside it.
    """
    prediction = network.predict(inputs, boxes, points, point_labels)
    found = None if boxes is None else _drawn(boxes)
    sources = ["user"] * inputs.shape[0]
    return _judged(prediction.mask_logits, _trust(prediction), found, sources, network.input_size)


def judge_masks(mask_logits: Tensor, found: Detections | None, input_size: int) -> tuple[Tensor, Tensor]:
    """How decided masks are, and whether they agree with their boxes; see :class:`Segmentation` for both.

    Args:
        mask_logits: float ``(B, C + 1, h, w)``.
        found: A box an image, xyxy pixels of the model input; None for no boxes.
        input_size: S in pixels, at which the masks are compared with the boxes.

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
    tight = [box_from_mask(mask) for mask in is_object.cpu()]
    agreement = [
        0.0 if own is None else float(box_iou(box[None], own[None]))
        for box, own in zip(found.boxes.cpu(), tight, strict=True)
    ]
    return certainty.cpu(), torch.tensor(agreement).where(found.is_detected.cpu(), 1.0)


def _drawn(boxes: Tensor) -> Detections:
    """Boxes ``(B, 4)`` of a person, who is sure of them."""
    count = len(boxes)
    return Detections(boxes, torch.ones(count), torch.ones(count, dtype=torch.bool, device=boxes.device))


def _judged(
    mask_logits: Tensor, trust: Tensor, found: Detections | None, sources: list[str], input_size: int
) -> Segmentation:
    """Masks with what in them is in doubt; arguments as of :class:`Segmentation` and :func:`judge_masks`."""
    certainty, agreement = judge_masks(mask_logits, found, input_size)
    flags = [_flags(*facts) for facts in zip(sources, certainty.tolist(), agreement.tolist(), strict=True)]
    boxes, confidence = (None, torch.zeros(len(sources))) if found is None else (found.boxes, found.confidence)
    return Segmentation(mask_logits, trust, certainty, boxes, confidence, sources, agreement, flags)


def _joined(parts: Sequence[Segmentation]) -> Segmentation:
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


def _trust(prediction: Prediction) -> Tensor:
    """The mean predicted IoU of the objects' masks, float ``(B,)`` in [0, 1]."""
    return prediction.predicted_iou[:, 1:].mean(dim=1).clamp(0, 1)


def _chosen(is_first: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """For each of B entries one of two ``(B, ...)``, by bool ``(B,)``."""
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
