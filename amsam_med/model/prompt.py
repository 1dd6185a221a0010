"""Prompts: boxes and points as sparse embeddings, and the learned prompt embedding A."""

from __future__ import annotations

from typing import get_args

import torch
from segment_anything.modeling import PromptEncoder as SamPromptEncoder
from torch import Tensor

from amsam_med.boxes import box_centres
from amsam_med.choices import PromptKind as PromptKind
from amsam_med.errors import ConfigError
from amsam_med.model.decoder import EMBEDDING_CHANNELS

PATCH = 16
"""Input pixels per position of the image embedding, along each axis."""


class PromptEncoder(SamPromptEncoder):
    """SAM's prompt encoder; its ``no_mask_embed`` is the paper's learned prompt embedding A (Eq. 7).

    Args:
        input_size: Side of the square model input in pixels.
        kind: ``"box"`` and ``"own"`` embed the box's corners, ``"box+point"`` its centre as well, ``"none"`` ignores
            boxes.

    Raises:
        ConfigError: An unknown kind.
    """

    def __init__(self, input_size: int = 256, kind: PromptKind = "box") -> None:
        if kind not in get_args(PromptKind):
            raise ConfigError(f"prompt {kind!r} is unknown; expected one of {', '.join(get_args(PromptKind))}")
        grid = input_size // PATCH
        super().__init__(
            embed_dim=EMBEDDING_CHANNELS,
            image_embedding_size=(grid, grid),
            input_image_size=(input_size, input_size),
            mask_in_chans=16,
        )
        self.kind = kind

    def forward(  # a batch of images instead of a batch of prompts
        self,
        batch_size: int,
        boxes: Tensor | None,
        points: Tensor | None,
        point_labels: Tensor | None,
        earlier_logits: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embed the prompts of B images.

        Args:
            batch_size: B.
            boxes: float ``(B, 4)``, xyxy pixels of the model input with continuous edges, or None.
            points: float ``(B, N, 2)``, x and y in pixels of the model input, or None.
            point_labels: ``(B, N)``: 1 foreground, 0 background, -1 padding; goes with ``points``.
            earlier_logits: float ``(B, 1, S/4, S/4)``, object minus background of a mask to improve; it takes the
                place of the prompt embedding A, as in SAM.

        Returns:
            Sparse embeddings float ``(B, N', 256)`` and dense embeddings float ``(B, 256, S/16, S/16)``.
        """
        if self.kind == "none":
            boxes = None
        if self.kind == "box+point" and boxes is not None:
            points, point_labels = _with_box_centres(boxes, points, point_labels)
        sparse, dense = super().forward(
            # SAM addresses pixels by index and adds 0.5 itself; our coordinates are continuous.
            points=None if points is None or point_labels is None else (points - 0.5, point_labels),
            boxes=None if boxes is None else boxes - boxes.new_tensor([0.0, 0.0, 1.0, 1.0]),
            masks=earlier_logits,
        )
        return sparse.expand(batch_size, -1, -1), dense.expand(batch_size, -1, -1, -1)


def _with_box_centres(boxes: Tensor, points: Tensor | None, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Add each box's centre to its image's points, as foreground."""
    centres = box_centres(boxes)
    foreground = torch.ones(boxes.shape[0], 1, device=boxes.device)
    if points is None or labels is None:
        return centres, foreground
    return torch.cat([points, centres], dim=1), torch.cat([labels.to(foreground), foreground], dim=1)
