"""SAMed: LoRA on the queries and values of SAM's image encoder; prompt encoder and mask decoder are trained whole.

On a compact base, whose encoder is convolutional and has neither queries nor values, the LoRA lies on every 1 x 1
convolution of the encoder instead; the table says so.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from amsam_med.model.build import COMPACT_BASES
from pipelines.paper.baselines.interface import Baseline, BaselineNetwork, Recipe, Setting, frozen_sam, vit_blocks

RANK = 4


class LoraQueryValue(nn.Module):
    """SAM's ``qkv``, frozen, with a low-rank update of queries and values; at first it computes what it did.

    Args:
        qkv: One linear layer for queries, keys and values.
        rank: Of both updates.
    """

    def __init__(self, qkv: nn.Linear, rank: int) -> None:
        super().__init__()
        width = qkv.in_features
        self.qkv = qkv
        self.query_a, self.value_a = _down(width, rank), _down(width, rank)
        self.query_b, self.value_b = _up(width, rank), _up(width, rank)

    def forward(self, tokens: Tensor) -> Tensor:
        """Project float ``(..., C)`` to ``(..., 3 C)``."""
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        query = query + tokens @ self.query_a.T @ self.query_b.T
        value = value + tokens @ self.value_a.T @ self.value_b.T
        return torch.cat([query, key, value], dim=-1)


class LoraPointwise(nn.Module):
    """A frozen 1 x 1 convolution with a low-rank update; at first it computes what it did.

    Args:
        convolution: Without groups.
        rank: Of the update.
    """

    def __init__(self, convolution: nn.Conv2d, rank: int) -> None:
        super().__init__()
        self.convolution = convolution
        self.lora_a = _down(convolution.in_channels, rank)
        self.lora_b = _up(convolution.out_channels, rank)

    def forward(self, features: Tensor) -> Tensor:
        """Convolve float ``(B, C, h, w)``; the update is folded into the kernel, which is cheaper than two more."""
        frozen = self.convolution
        kernel = frozen.weight + (self.lora_b @ self.lora_a)[..., None, None]
        return nn.functional.conv2d(features, kernel, frozen.bias, frozen.stride)


class Samed(BaselineNetwork):
    """A base whose encoder is adapted by LoRA, and whose prompt encoder and mask decoder are trained.

    Args:
        setting: Names the base.
        rank: Of the LoRA.
    """

    def __init__(self, setting: Setting, rank: int = RANK) -> None:
        super().__init__()
        self.sam = frozen_sam(setting)
        self.sam.prompt_encoder.requires_grad_(True)
        self.sam.mask_decoder.requires_grad_(True)
        self.origin = setting.base
        if setting.base in COMPACT_BASES:
            self.variant = "convolutional encoder: LoRA on its 1 × 1 convolutions"
            _adapt_convolutions(self.sam.image_encoder, rank)
        else:
            for block in vit_blocks(self.sam):
                block.attn.qkv = LoraQueryValue(block.attn.qkv, rank)

    def forward(self, images: Tensor) -> Tensor:
        """Logits float ``(B, 2, S/4, S/4)``, with the default prompt."""
        logits: Tensor = self.sam(images)
        return logits


def _adapt_convolutions(encoder: nn.Module, rank: int) -> None:
    for module in list(encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and child.kernel_size == (1, 1) and child.groups == 1:
                setattr(module, name, LoraPointwise(child, rank))


def _down(width: int, rank: int) -> nn.Parameter:
    return nn.Parameter(nn.init.kaiming_uniform_(torch.empty(rank, width), a=math.sqrt(5)))


def _up(width: int, rank: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(width, rank))


SAMED = Baseline(
    "SAMed",
    "Zhang & Liu, arXiv 2304.13785",
    Samed,
    Recipe(optimizer="adamw", rate=5e-3, weight_decay=0.1, warm_up=250),
    has_base=True,
)
