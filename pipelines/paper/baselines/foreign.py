"""FastSAM and SAM 2 through ultralytics, asked with a detector's box; nothing is trained.

Their weight files are not part of this project. They are looked for in the folder of ``--weights-dir`` under the names
that ultralytics gives them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amsam_med.detect.yolo import load_detector  # first: it keeps ultralytics from the network
from amsam_med.errors import WeightsError
from pipelines.paper.baselines.interface import Baseline, BaselineNetwork, Setting

SURE = 10.0
"""Logit of a pixel that a finished mask holds."""
OWN_SIZE = 1024
"""Side of the square that both were trained on; images are enlarged to it."""


class BoxedModel(BaselineNetwork):
    """A finished model of ultralytics with the box of a detector; without a box the mask is empty.

    Args:
        setting: Names detector and folder.
        kind: ``"FastSAM"`` or ``"SAM"``, a class of ultralytics.
        file_name: Of the weights.
    """

    def __init__(self, setting: Setting, kind: str, file_name: str) -> None:
        super().__init__()
        import ultralytics

        assert setting.detector_file is not None
        self.detector = load_detector(setting.detector_file)
        model: Any = getattr(ultralytics, kind)(str(_located(setting.weights_folder, file_name)))
        self._models = (model,)  # no submodule: its ``train`` is a training
        self.hidden_parameters = sum(parameter.numel() for parameter in model.model.parameters())
        self.origin = file_name

    def forward(self, images: Tensor) -> Tensor:
        """Logits float ``(B, 2, S, S)``."""
        found = self.detector(images)
        masks = [
            self._mask(image, box) if is_detected else image.new_zeros(image.shape[1:])
            for image, box, is_detected in zip(images, found.boxes, found.is_detected.tolist(), strict=True)
        ]
        signed = SURE * (2 * torch.stack(masks) - 1)  # (B, S, S)
        return torch.stack([-signed, signed], dim=1)

    def _mask(self, image: Tensor, box: Tensor) -> Tensor:
        """0 or 1 for each pixel, float ``(S, S)``."""
        pixels = (255 * image.permute(1, 2, 0)).round().byte().cpu().numpy()[..., ::-1].copy()  # BGR, as it asks for
        result = self._models[0](pixels, bboxes=[box.tolist()], imgsz=OWN_SIZE, verbose=False)[0]
        if result.masks is None or len(result.masks.data) == 0:
            return image.new_zeros(image.shape[1:])
        mask = result.masks.data[0].float()[None, None]
        return torch.nn.functional.interpolate(mask, image.shape[1:], mode="nearest")[0, 0].to(image.device)


def _located(folder: Path | None, file_name: str) -> Path:
    if folder is None or not (folder / file_name).is_file():
        raise WeightsError(f"{file_name} is not there; put it into a folder and name that with --weights-dir")
    return folder / file_name


def _builder(kind: str, file_name: str) -> Callable[[Setting], BaselineNetwork]:
    return partial(BoxedModel, kind=kind, file_name=file_name)


FAST_SAM = Baseline(
    "FastSAM, YOLO's box", "Zhao et al., arXiv 2306.12156", _builder("FastSAM", "FastSAM-s.pt"), None, has_box=True
)
SAM_2 = Baseline(
    "SAM 2, YOLO's box", "Ravi et al., arXiv 2408.00714", _builder("SAM", "sam2.1_t.pt"), None, has_box=True
)
