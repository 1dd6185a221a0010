"""Low-rank adaptation of the decoder's attention (Eq. 2-4)."""

from __future__ import annotations

import math

import torch
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn

ADAPTED_PROJECTIONS = ("q_proj", "v_proj")
"""The projections of an attention module that carry LoRA; the key projection stays as it is (Eq. 4)."""


def low_rank_update(lora_a: Tensor, lora_b: Tensor) -> Tensor:
    """Eq. (2). The weight update ΔW = B A.

    Args:
        lora_a: A, float ``(r, C_in)``.
        lora_b: B, float ``(C_out, r)``.

    Returns:
        ΔW, float ``(C_out, C_in)``, of rank r at most.
    """
    return lora_b @ lora_a


def adapted_weight(weight: Tensor, lora_a: Tensor, lora_b: Tensor) -> Tensor:
    """Eq. (3). The adapted weight Ŵ = W + B A, float ``(C_out, C_in)``; used to merge an adapter into its base."""
    return weight + low_rank_update(lora_a, lora_b)


def adapted_projection(tokens: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor) -> Tensor:
    """Eq. (4). The adapted projection Ŵ X = W X + B A X.

    Ŵ is formed first (Eq. 3): for a few hundred image tokens one product with it is faster than three.

    Args:
        tokens: X, float ``(B, N, C_in)``.
        weight: Frozen W, float ``(C_out, C_in)``.
        bias: The projection's bias, float ``(C_out,)``, or None.
        lora_a: A, float ``(r, C_in)``.
        lora_b: B, float ``(C_out, r)``.

    Returns:
        float ``(B, N, C_out)``.
    """
    return nn.functional.linear(tokens, adapted_weight(weight, lora_a, lora_b), bias)


class LoraLinear(nn.Linear):
    """A frozen linear layer with a low-rank update; at first it computes exactly what the layer did.

    The frozen weight keeps its name (``weight``, ``bias``), so that SAM's own checkpoints load without renaming.

    Args:
        layer: The layer to adapt; its parameters are taken over, not copied.
        rank: r, at least 1.
    """

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.weight, self.bias = layer.weight, layer.bias
        self.lora_a = nn.Parameter(torch.empty(rank, layer.in_features))
        self.lora_b = nn.Parameter(torch.zeros(layer.out_features, rank))  # zero: ΔW = 0 at step 0
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, tokens: Tensor) -> Tensor:
        """Project float ``(B, N, C_in)`` to ``(B, N, C_out)``."""
        return adapted_projection(tokens, self.weight, self.bias, self.lora_a, self.lora_b)


def add_lora(transformer: nn.Module, rank: int) -> None:
    """Give the query and value projections of every attention module in ``transformer`` a LoRA of ``rank``.

    In SAM's two-way transformer these are 7 attention modules, 14 layers and, at rank 4, 23,552 weights.
    """
    for attention in [module for module in transformer.modules() if isinstance(module, Attention)]:
        for name in ADAPTED_PROJECTIONS:
            setattr(attention, name, LoraLinear(getattr(attention, name), rank))
