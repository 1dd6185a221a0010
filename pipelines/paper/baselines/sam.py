"""SAM as it is: nothing trained, asked with its default prompt or with a detector's box.

SAM's own checkpoints have four masks: the first for a clear prompt, three more for a vague one, of which the one that
SAM trusts most counts. The compact bases have two, background and object. SAM's ViT sees normalised pixels here, as
it was trained to; the few-shot methods on it do not, after their publications.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amsam_med.boxes import BoxDetector, Detections
from amsam_med.detect.yolo import load_detector
from amsam_med.infer import predict_prompted
from amsam_med.model.amsam import Prediction
from amsam_med.model.build import COMPACT_BASES
from pipelines.paper.baselines.interface import Baseline, BaselineNetwork, ImagenetNorm, Setting, frozen_sam

SAM_CLASSES = 3
"""Object classes of a decoder that takes all four heads of SAM's checkpoints."""
SOURCE = "Kirillov et al., ICCV 2023"


class ZeroShotSam(BaselineNetwork):
    """The base with a prompt.

    Args:
        setting: Names base and detector.
        detector: Finds boxes; None for the default prompt.
    """

    def __init__(self, setting: Setting, detector: BoxDetector | None) -> None:
        super().__init__()
        self.is_compact = setting.base in COMPACT_BASES
        self.sam = frozen_sam(setting, 1 if self.is_compact else SAM_CLASSES)
        self.norm = None if self.is_compact else ImagenetNorm()
        self.detector = detector
        self.origin = setting.base

    def forward(self, images: Tensor) -> Tensor:
        """Logits float ``(B, 2, S/4, S/4)``."""
        found = None if self.detector is None else self.detector(images)
        inputs = images if self.norm is None else self.norm(images)
        prediction = predict_prompted(self.sam, inputs, found)
        return prediction.mask_logits if self.is_compact else two_channels(prediction, found)


def two_channels(prediction: Prediction, found: Detections | None) -> Tensor:
    """SAM's mask as logits of background (zero) and object, float ``(B, 2, h, w)``.

    Args:
        prediction: Of SAM's four masks.
        found: With a box the first mask counts, without one the most trusted of the other three.
    """
    best = 1 + prediction.predicted_iou[:, 1:].argmax(dim=1)  # (B,)
    if found is not None:
        best = torch.where(found.is_detected.to(best.device), 0, best)
    chosen = prediction.mask_logits[torch.arange(len(best), device=best.device), best]
    return torch.stack([torch.zeros_like(chosen), chosen], dim=1)


def _build(setting: Setting) -> ZeroShotSam:
    return ZeroShotSam(setting, None)


def _build_with_box(setting: Setting) -> ZeroShotSam:
    assert setting.detector_file is not None
    return ZeroShotSam(setting, load_detector(setting.detector_file))


SAM = Baseline("SAM, default prompt", SOURCE, _build, None, has_base=True)
SAM_WITH_BOX = Baseline("SAM, YOLO's box", SOURCE, _build_with_box, None, has_base=True, has_box=True)
