"""SAM's mask decoder for a batch of images with one prompt each, with LoRA in its attention."""

from __future__ import annotations

from typing import NamedTuple

import torch
from segment_anything.modeling import MaskDecoder as SamMaskDecoder
from segment_anything.modeling import TwoWayTransformer
from torch import Tensor

from amsam_med.model.lora import add_lora

EMBEDDING_CHANNELS = 256
UPSCALED_CHANNELS = EMBEDDING_CHANNELS // 8
LOGIT_STRIDE = 4
"""Input pixels per mask logit, along each axis."""


class DecoderOutput(NamedTuple):
    """The decoder's output for B images.

    Attributes:
        mask_logits: M_orig, float ``(B, n, h, w)``; h = w = a quarter of the input size.
        upscaled: U, float ``(B, c, h, w)``: the upscaled image embedding.
        mask_vectors: H, float ``(B, n, c)``: the hypernetworks' output, one vector per mask token.
        predicted_iou: float ``(B, n)``: the decoder's own estimate of each mask's IoU.
    """

    mask_logits: Tensor
    upscaled: Tensor
    mask_vectors: Tensor
    predicted_iou: Tensor


class MaskDecoder(SamMaskDecoder):
    """SAM's decoder (Eq. 1 in its attention) with classes + 1 mask tokens, all of whose masks are returned.

    SAM's own forward pass is written for one image with many prompts and repeats the image embeddings once for each
    prompt; given B images with a prompt each it would make B x B pairs. This one pairs image i with prompt i.

    Args:
        num_classes: Object classes C; there are n = C + 1 mask tokens, token 0 for the background.
        rank: Rank of the LoRA on the query and value projections; 0 for none.
    """

    def __init__(self, num_classes: int = 1, rank: int = 4) -> None:
        super().__init__(
            num_multimask_outputs=num_classes,
            transformer=TwoWayTransformer(depth=2, embedding_dim=EMBEDDING_CHANNELS, mlp_dim=2048, num_heads=8),
            transformer_dim=EMBEDDING_CHANNELS,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        )
        if rank:
            add_lora(self.transformer, rank)

    def forward(  # one prompt per image instead of many prompts for one image
        self, image_embedding: Tensor, image_position: Tensor, sparse_prompt: Tensor, dense_prompt: Tensor
    ) -> DecoderOutput:
        """Decode the masks of B images.

        Args:
            image_embedding: float ``(B, 256, h/4, w/4)``.
            image_position: Positional encoding, float ``(1, 256, h/4, w/4)``.
            sparse_prompt: Embedded box corners and points, float ``(B, N, 256)``; N may be 0.
            dense_prompt: float ``(B, 256, h/4, w/4)``: the prompt embedding A at every position.
        """
        tokens = self._output_tokens(image_embedding.shape[0], sparse_prompt)
        source = image_embedding + dense_prompt
        b, c, h, w = source.shape
        token_output, source = self.transformer(source, image_position.expand(b, -1, -1, -1), tokens)

        upscaled = self.output_upscaling(source.transpose(1, 2).reshape(b, c, h, w))  # (B, 32, 4h, 4w)
        mask_vectors = self._mask_vectors(token_output[:, 1 : 1 + self.num_mask_tokens])
        mask_logits = torch.einsum("bnc,bchw->bnhw", mask_vectors, upscaled)
        return DecoderOutput(mask_logits, upscaled, mask_vectors, self.iou_prediction_head(token_output[:, 0]))

    def _output_tokens(self, batch_size: int, sparse_prompt: Tensor) -> Tensor:
        learned = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        return torch.cat([learned.expand(batch_size, -1, -1), sparse_prompt], dim=1)

    def _mask_vectors(self, mask_tokens: Tensor) -> Tensor:
        """Float ``(B, n, 256)`` mask tokens to H, float ``(B, n, c)``."""
        networks = self.output_hypernetworks_mlps
        return torch.stack([network(mask_tokens[:, i]) for i, network in enumerate(networks)], dim=1)
