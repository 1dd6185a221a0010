"""SSP, self-support few-shot segmentation: prototypes of the labelled images find the object's own pixels.

A ResNet's features are compared with two prototypes, foreground and background, by cosine similarity. What they are
sure of in the query gives the query's own prototypes, the background's one for each pixel by attention, and the
comparison is made again. It is trained in episodes: each image of a batch is the query of the image before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import Bottleneck, ResNet

from amsam_med.learn.loss import resize_label
from pipelines.paper.baselines.interface import Baseline, BaselineNetwork, ImagenetNorm, Recipe, Setting

TEMPERATURE = 10.0
"""Cosines become logits by this factor."""
SURE_FOREGROUND, SURE_BACKGROUND = 0.7, 0.6
FEWEST = 12
"""Pixels that count as sure where none is above the threshold."""
OWN_FOREGROUND = 0.5
"""Share of the query's own prototype in the foreground's; the rest is the support's."""
OWN_BACKGROUND, ADAPTIVE_BACKGROUND = 0.3, 0.7
"""Shares of the query's mean background and of the one drawn to each pixel by attention."""
ATTENTION_SCALE = 2.0
EPSILON = 1e-5


class Prototypes(NamedTuple):
    """What features are compared with.

    Attributes:
        foreground: float ``(1, C, 1, 1)`` or ``(1, C, h, w)``.
        background: The same.
    """

    foreground: Tensor
    background: Tensor


class SelfSupport(BaselineNetwork):
    """The network.

    Args:
        setting: Says whether the ResNet starts from ImageNet.
        layers: Blocks of its first three stages.
        width: Of its blocks; 64 is ResNet-50's.
        refinements: Further rounds of the query's own prototypes after the first.
    """

    support_foreground: Tensor
    support_background: Tensor

    def __init__(
        self, setting: Setting, layers: Sequence[int] = (3, 4, 6), width: int = 64, refinements: int = 1
    ) -> None:
        super().__init__()
        # The fourth stage is not used; one block of it is built and dropped.
        resnet = ResNet(
            Bottleneck,
            [*layers, 3 if setting.is_pretrained else 1],
            width_per_group=width,
            replace_stride_with_dilation=[False, True, True],
        )
        if setting.is_pretrained:
            resnet.load_state_dict(ResNet50_Weights.IMAGENET1K_V2.get_state_dict(progress=False, check_hash=True))
            self.origin = "ImageNet (torchvision)"
        self.norm = ImagenetNorm()
        self.features = IntermediateLayerGetter(resnet, {"layer3": "out"})
        self.refinements = refinements
        channels = 256 * Bottleneck.expansion
        self.register_buffer("support_foreground", torch.zeros(1, channels, 1, 1))
        self.register_buffer("support_background", torch.zeros(1, channels, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits float ``(B, 2, S/8, S/8)`` by the examples' prototypes, which :meth:`prepare` takes."""
        support = Prototypes(self.support_foreground, self.support_background)
        return torch.cat([self._segment(query[None], support)[-1] for query in self._embed(images)])

    def prepare(self, images: Tensor, labels: Tensor) -> None:
        """Keep the mean prototypes of the examples, a shot each."""
        shots = [
            masked_prototypes(self._embed(image[None]), label[None])
            for image, label in zip(images, labels, strict=True)
        ]
        self.support_foreground.copy_(torch.stack([shot.foreground for shot in shots]).mean(dim=0))
        self.support_background.copy_(torch.stack([shot.background for shot in shots]).mean(dim=0))

    def training_logits(self, images: Tensor, labels: Tensor) -> list[Tensor]:
        """Every round's logits of each image, supported by the image before it in the batch."""
        features = self._embed(images)
        supports = [masked_prototypes(features[i : i + 1], labels[i : i + 1]) for i in range(len(images))]
        rounds = [self._segment(features[i : i + 1], supports[i - 1]) for i in range(len(images))]
        return [torch.cat(one) for one in zip(*rounds, strict=True)]

    def _embed(self, images: Tensor) -> Tensor:
        features: Tensor = self.features(self.norm(images))["out"]  # (B, 1024, S/8, S/8)
        return features

    def _segment(self, query: Tensor, support: Prototypes) -> list[Tensor]:
        """Logits ``(1, 2, h, w)`` of ``(1, C, h, w)`` after each round, the last the best."""
        found, prototypes = [similarity(query, support)], support
        for _ in range(1 + self.refinements):
            own = self_support(query, found[-1])
            prototypes = Prototypes(
                (1 - OWN_FOREGROUND) * prototypes.foreground + OWN_FOREGROUND * own.foreground, own.background
            )
            found.append(similarity(query, prototypes))
        return found


def masked_prototypes(features: Tensor, labels: Tensor) -> Prototypes:
    """Masked average pooling: the mean feature of the object and of the rest over a batch.

    Args:
        features: float ``(B, C, h, w)``.
        labels: ``(B, 1, S, S)``, 1 for the object.
    """
    mask = resize_label(labels, (features.shape[-2], features.shape[-1]))  # (B, 1, h, w)
    return Prototypes(_mean_where(features, mask), _mean_where(features, 1 - mask))


def similarity(query: Tensor, prototypes: Prototypes) -> Tensor:
    """Ten times the cosines: logits ``(1, 2, h, w)``, background first."""
    order = (prototypes.background, prototypes.foreground)
    return TEMPERATURE * torch.stack([nn.functional.cosine_similarity(query, one) for one in order], dim=1)


def self_support(query: Tensor, logits: Tensor) -> Prototypes:
    """The query's own prototypes.

    Args:
        query: float ``(1, C, h, w)``.
        logits: float ``(1, 2, h, w)``, what is known of it so far.

    Returns:
        The foreground's ``(1, C, 1, 1)``, and the background's ``(1, C, h, w)``, one for each pixel.
    """
    chances = logits.softmax(dim=1).flatten(2)[0]  # (2, N)
    pixels = query.flatten(2)[0]  # (C, N)
    sure_background = pixels[:, _sure(chances[0], SURE_BACKGROUND)]  # (C, M)
    foreground = pixels[:, _sure(chances[1], SURE_FOREGROUND)].mean(dim=1)
    alike = nn.functional.normalize(pixels, dim=0).T @ nn.functional.normalize(sure_background, dim=0)  # (N, M)
    adaptive = sure_background @ (ATTENTION_SCALE * alike).softmax(dim=1).T  # (C, N)
    background = OWN_BACKGROUND * sure_background.mean(dim=1, keepdim=True) + ADAPTIVE_BACKGROUND * adaptive
    return Prototypes(foreground.view(1, -1, 1, 1), background.view_as(query))


def _sure(chances: Tensor, threshold: float) -> Tensor:
    """Indices of the pixels above a threshold, or of the surest few where there are none."""
    sure = (chances > threshold).nonzero().flatten()
    return sure if len(sure) else chances.topk(min(FEWEST, len(chances))).indices


def _mean_where(features: Tensor, mask: Tensor) -> Tensor:
    total = (features * mask).sum(dim=(0, 2, 3), keepdim=True)
    return total / (mask.sum() + EPSILON)


SSP = Baseline("SSP", "Fan et al., ECCV 2022", SelfSupport, Recipe(rate=3e-4, pretrained_rate=1e-4))
