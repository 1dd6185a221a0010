"""A toy network with the parameter names of AM-SAM, small enough to train in milliseconds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


class ToyAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width))
        self.lora_a = nn.Parameter(torch.randn(2, width))
        self.lora_b = nn.Parameter(torch.zeros(width, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ (self.weight + self.lora_b @ self.lora_a).T)


class ToyNetwork(nn.Module):
    """Embeddings float ``(B, 4, h, w)`` and boxes ``(B, 4)`` to two masks ``(B, 2, h, w)``."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.image_encoder = nn.Sequential(nn.Conv2d(3, width, 16, stride=16), nn.BatchNorm2d(width))
        self.prompt_encoder = nn.ModuleDict(
            {"no_mask_embed": nn.Embedding(1, width), "corner_embed": nn.Linear(4, width)}
        )
        self.mask_decoder = nn.ModuleDict(
            {
                "transformer": nn.ModuleDict({"q_proj": ToyAttention(width)}),
                "iou_token": nn.Embedding(1, width),
                "mask_tokens": nn.Embedding(2, width),
                "output_upscaling": nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU()),
                "output_hypernetworks_mlps": nn.ModuleList([nn.Linear(width, width) for _ in range(2)]),
                "iou_prediction_head": nn.Linear(width, 2),  # not used by forward
            }
        )
        self.calibration = nn.ModuleDict({"fusion": nn.Conv2d(2, 2, 1)})

    def forward(self, image: Tensor, boxes: Tensor | None = None) -> Tensor:
        embedding = self.image_encoder(image) if image.shape[1] == 3 else image
        decoder = self.mask_decoder
        prompted = embedding + self.prompt_encoder["no_mask_embed"].weight[0, :, None, None]
        if boxes is not None:
            prompted = prompted + self.prompt_encoder["corner_embed"](boxes / 64)[:, :, None, None]
        tokens = decoder["transformer"]["q_proj"](decoder["mask_tokens"].weight + decoder["iou_token"].weight)
        mlps = zip(decoder["output_hypernetworks_mlps"], tokens, strict=True)
        vectors = torch.stack([mlp(token) for mlp, token in mlps])
        masks = torch.einsum("nc,bchw->bnhw", vectors, decoder["output_upscaling"](prompted))
        return self.calibration["fusion"](masks)


@pytest.fixture
def toy_network() -> Callable[[], ToyNetwork]:
    """Builds equal networks."""

    def build() -> ToyNetwork:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            return ToyNetwork()

    return build
