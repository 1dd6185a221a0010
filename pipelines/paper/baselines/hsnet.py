"""HSNet for polyps: a PVTv2-B2 encoder (timm), cross-semantic attention, two branches, four weighted predictions.

Written from the publication's description. Features of four scales become 64 channels each. Every scale but the
deepest exchanges gates with the next deeper one (cross-semantic attention); a decoder stage then runs a transformer and
a CNN branch side by side and lets each gate the other. Each stage predicts; learned weights sum the predictions, and
all five have a part in the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import timm
import torch
from timm.models import FeatureInfo
from timm.models.pvt_v2 import Block
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from pipelines.paper.baselines.interface import Baseline, BaselineNetwork, ImagenetNorm, Recipe, Setting

BACKBONE = "pvt_v2_b2"
WIDTH = 64
HEADS = 4
REDUCTIONS = (8, 4, 2, 1)
"""How much the attention of each stage's transformer branch shrinks its keys, as in PVTv2: stride 4 first."""


class CrossSemanticAttention(nn.Module):
    """Neighbouring scales gate each other: what is fine is kept where the deeper sees an object, and the reverse.

    Args:
        width: C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate_of_deep, self.gate_of_fine = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.fuse = _convolution(2 * width, width)

    def forward(self, fine: Tensor, deep: Tensor) -> Tensor:
        """Exchange ``(B, C, h, w)`` with ``(B, C, h / 2, w / 2)``: float ``(B, C, h, w)``."""
        deep = _resized(deep, fine)
        by_deep = fine * self.gate_of_deep(deep).sigmoid()
        by_fine = deep * self.gate_of_fine(fine).sigmoid()
        exchanged: Tensor = fine + self.fuse(torch.cat([by_deep, by_fine], dim=1))
        return exchanged


class HybridStage(nn.Module):
    """A transformer branch for what is far and a CNN branch for what is near, each gated by the other.

    Args:
        width: C.
        reduction: Of the attention's keys, along each axis.
    """

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.transformer = Block(width, HEADS, mlp_ratio=2.0, sr_ratio=reduction, qkv_bias=True)
        self.cnn = Bottleneck(width, width // Bottleneck.expansion)
        self.gate_of_near, self.gate_of_far = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.fuse = _convolution(2 * width, width)

    def forward(self, features: Tensor) -> Tensor:
        """Refine float ``(B, C, h, w)``."""
        b, c, h, w = features.shape
        far = self.transformer(features.flatten(2).transpose(1, 2), (h, w)).transpose(1, 2).reshape(b, c, h, w)
        near = self.cnn(features)
        gated = [far * self.gate_of_near(near).sigmoid(), near * self.gate_of_far(far).sigmoid()]
        fused: Tensor = self.fuse(torch.cat(gated, dim=1))
        return fused


class HsNet(BaselineNetwork):
    """The network.

    Args:
        setting: Says whether the encoder starts from ImageNet.
        backbone: timm's name of a network with features at stride 4, 8, 16 and 32.
        width: Channels of the decoder.
        options: Further arguments of the backbone, such as smaller widths.
    """

    def __init__(
        self, setting: Setting, backbone: str = BACKBONE, width: int = WIDTH, **options: Sequence[int]
    ) -> None:
        super().__init__()
        self.norm = ImagenetNorm()
        further: dict[str, Any] = {**options}
        self.encoder = timm.create_model(backbone, features_only=True, pretrained=setting.is_pretrained, **further)
        self.laterals = nn.ModuleList(
            _convolution(channels, width) for channels in cast(FeatureInfo, self.encoder.feature_info).channels()
        )
        self.exchanges = nn.ModuleList(CrossSemanticAttention(width) for _ in range(3))
        self.stages = nn.ModuleList(HybridStage(width, reduction) for reduction in REDUCTIONS)
        self.heads = nn.ModuleList(nn.Conv2d(width, 2, kernel_size=1) for _ in range(4))
        self.shares = nn.Parameter(torch.zeros(4))  # softmax: equal at first
        if setting.is_pretrained:
            self.origin = "ImageNet (timm)"

    def forward(self, images: Tensor) -> Tensor:
        """Logits float ``(B, 2, S/4, S/4)``: the weighted sum of the four predictions."""
        return self._weighted(self._predictions(images))

    def training_logits(self, images: Tensor, labels: Tensor) -> list[Tensor]:
        """The weighted sum, and each of the four predictions."""
        predictions = self._predictions(images)
        return [self._weighted(predictions), *predictions]

    def _predictions(self, images: Tensor) -> list[Tensor]:
        """Four times logits ``(B, 2, S/4, S/4)``, from stride 4 to 32."""
        features = self.encoder(self.norm(images))
        fine = [lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True)]
        deep = self.stages[3](fine[3])
        decoded = [deep]
        for level in (2, 1, 0):
            deep = self.stages[level](self.exchanges[level](fine[level], deep))
            decoded.insert(0, deep)
        logits = [head(stage) for head, stage in zip(self.heads, decoded, strict=True)]
        return [_resized(one, logits[0]) for one in logits]

    def _weighted(self, predictions: Sequence[Tensor]) -> Tensor:
        shares = len(predictions) * self.shares.softmax(dim=0)
        return torch.stack([share * one for share, one in zip(shares, predictions, strict=True)]).sum(dim=0)


def _convolution(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def _resized(features: Tensor, like: Tensor) -> Tensor:
    return nn.functional.interpolate(features, like.shape[-2:], mode="bilinear", align_corners=False)


HSNET = Baseline("HSNet", "Zhang et al., Comput. Biol. Med. 150, 2022", HsNet, Recipe(rate=5e-4, pretrained_rate=1e-4))
