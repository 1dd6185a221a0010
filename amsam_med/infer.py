"""From images to masks with a box found on the way: the paper's automated prompting as a MONAI inferer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from monai.inferers import Inferer
from torch import Tensor

from amsam_med.boxes import BoxDetector
from amsam_med.model import AmSam

FULL_IMAGE = "full image"
"""Source of a box that stands in for one the detector did not find."""


class Segmentation(NamedTuple):
    """The masks of B images, and how the network came to them.

    Attributes:
        mask_logits: float32 ``(B, C + 1, S/4, S/4)``.
        predicted_iou: float32 ``(B,)``: the network's estimate of its mask's IoU, the mean over object classes, in
            [0, 1].
        boxes: float32 ``(B, 4)``, xyxy pixels of the model input; None where no box was used.
        box_confidence: float32 ``(B,)`` in [0, 1]; 1 for a given box, 0 for none or the full image.
        box_sources: One of "detector", "full image", "user" or "none" an image.
    """

    mask_logits: Tensor
    predicted_iou: Tensor
    boxes: Tensor | None
    box_confidence: Tensor
    box_sources: list[str]


class PromptInferer(Inferer):
    """Boxes given by the caller, or found by the detector; then the network.

    Args:
        detector: Finds one box an image; None to work without boxes unless they are given.
    """

    def __init__(self, detector: BoxDetector | None = None) -> None:
        super().__init__()
        self.detector = detector

    def __call__(  # type: ignore[override]  # MONAI's inferers take any callable; this one asks for a box's network
        self, inputs: Tensor, network: AmSam, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Mask logits float ``(B, C + 1, S/4, S/4)`` for MONAI's evaluators; arguments as for :meth:`predict`."""
        return self.predict(inputs, network, *args, **kwargs).mask_logits

    @torch.no_grad()
    def predict(self, inputs: Tensor, network: AmSam, boxes: Tensor | None = None) -> Segmentation:
        """Segment images.

        Args:
            inputs: RGB float ``(B, 3, S, S)`` in [0, 1].
            network: The network, in evaluation mode.
            boxes: Boxes from the caller, float ``(B, 4)``, xyxy pixels of the model input.
        """
        count = inputs.shape[0]
        if network.settings["prompt"] == "none" or (boxes is None and self.detector is None):
            boxes, confidence, sources = None, torch.zeros(count), ["none"] * count
        elif boxes is not None:
            confidence, sources = torch.ones(count), ["user"] * count
        else:
            assert self.detector is not None
            found = self.detector(inputs)
            boxes, confidence = found.boxes, found.confidence
            sources = ["detector" if is_detected else FULL_IMAGE for is_detected in found.is_detected.tolist()]
        prediction = network.predict(inputs, boxes)
        trust = prediction.predicted_iou[:, 1:].mean(dim=1).clamp(0, 1)
        return Segmentation(prediction.mask_logits, trust, boxes, confidence, sources)
