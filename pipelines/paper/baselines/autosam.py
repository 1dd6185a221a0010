"""AutoSAM: a small network draws the prompt from the image; SAM stays frozen.

The generator's output takes the place of SAM's dense prompt embedding. Its encoder is timm's ResNet-18 (the publication
has a HarDNet), cut at stride 16.
"""

from __future__ import annotations

from typing import cast

import timm
from timm.models import FeatureInfo
from torch import Tensor, nn

from amsam_med.model.amsam import Prediction
from amsam_med.model.build import COMPACT_BASES
from amsam_med.model.decoder import EMBEDDING_CHANNELS
from pipelines.paper.baselines.interface import (
    RANDOM_WEIGHTS,
    Baseline,
    BaselineNetwork,
    ImagenetNorm,
    Recipe,
    Setting,
    frozen_sam,
)
from pipelines.paper.baselines.sam import SAM_CLASSES, two_channels

STRIDE_16 = 3
"""Index of ResNet's features at stride 16."""


class AutoSam(BaselineNetwork):
    """A frozen base with a prompt generator.

    Args:
        setting: Names the base.
        backbone: timm's name of the generator's encoder.
    """

    def __init__(self, setting: Setting, backbone: str = "resnet18") -> None:
        super().__init__()
        self.is_compact = setting.base in COMPACT_BASES
        self.sam = frozen_sam(setting, 1 if self.is_compact else SAM_CLASSES)
        self.norm = ImagenetNorm()
        self.generator = timm.create_model(
            backbone, features_only=True, out_indices=(STRIDE_16,), pretrained=setting.is_pretrained
        )
        channels = cast(FeatureInfo, self.generator.feature_info).channels()[-1]
        self.to_prompt = nn.Conv2d(channels, EMBEDDING_CHANNELS, kernel_size=1)
        generator = "ImageNet" if setting.is_pretrained else RANDOM_WEIGHTS
        self.origin = f"{setting.base}; generator: {generator}"

    def forward(self, images: Tensor) -> Tensor:
        """Logits float ``(B, 2, S/4, S/4)``."""
        sam, normal = self.sam, self.norm(images)
        embedding = sam.embed(images if self.is_compact else normal)
        prompt = self.to_prompt(self.generator(normal)[0])  # (B, 256, S/16, S/16)
        sparse, _ = sam.prompt_encoder(len(images), None, None, None)
        decoded = sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, prompt)
        prediction = Prediction(decoded.mask_logits, decoded.predicted_iou)
        return prediction.mask_logits if self.is_compact else two_channels(prediction, None)

    def train(self, mode: bool = True) -> AutoSam:
        """Train the generator alone; the frozen base stays as it is."""
        super().train(mode)
        self.sam.eval()
        return self


AUTO_SAM = Baseline(
    "AutoSAM", "Shaharabany et al., arXiv 2306.06370", AutoSam, Recipe(rate=3e-4, weight_decay=1e-4), has_base=True
)
