"""Med-SA: bottleneck adapters in every block of SAM's image encoder; the mask decoder is trained.

In a block one adapter follows the attention and one lies beside the MLP. On a compact base the block's depthwise
convolution, which mixes positions, stands for the attention, and its pair of 1 x 1 convolutions for the MLP; the table
says so.
"""

from __future__ import annotations

from typing import Any

from timm.models.repvit import RepViTBlock
from torch import Tensor, nn

from amsam_med.model.build import COMPACT_BASES
from pipelines.paper.baselines.interface import Baseline, BaselineNetwork, Recipe, Setting, frozen_sam, vit_blocks

SHRINK = 4
MLP_SCALE = 0.5


class Adapter(nn.Module):
    """Down to a quarter, GELU, and up again; at first it adds nothing.

    Args:
        width: C.
        is_convolutional: For features ``(B, C, h, w)`` instead of tokens ``(..., C)``.
    """

    def __init__(self, width: int, is_convolutional: bool = False) -> None:
        super().__init__()
        narrow = max(1, width // SHRINK)
        layer: Any = (lambda a, b: nn.Conv2d(a, b, 1)) if is_convolutional else nn.Linear
        self.down, self.act, self.up = layer(width, narrow), nn.GELU(), layer(narrow, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, features: Tensor) -> Tensor:
        """The adapter's own contribution, of the shape of its input."""
        contribution: Tensor = self.up(self.act(self.down(features)))
        return contribution


class Followed(nn.Module):
    """A frozen mixer of positions, followed by an adapter with a skip."""

    def __init__(self, mixer: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.mixer, self.adapter = mixer, adapter

    def forward(self, features: Tensor) -> Tensor:
        """Mix, then adapt."""
        mixed: Tensor = self.mixer(features)
        adapted: Tensor = mixed + self.adapter(mixed)
        return adapted


class Flanked(nn.Module):
    """A frozen mixer of channels with an adapter beside it, scaled by a half."""

    def __init__(self, mixer: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.mixer, self.adapter = mixer, adapter

    def forward(self, features: Tensor) -> Tensor:
        """Both see the same input."""
        adapted: Tensor = self.mixer(features) + MLP_SCALE * self.adapter(features)
        return adapted


class MedSa(BaselineNetwork):
    """A base with adapters in its encoder.

    Args:
        setting: Names the base.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.sam = frozen_sam(setting)
        self.sam.mask_decoder.requires_grad_(True)
        self.origin = setting.base
        if setting.base in COMPACT_BASES:
            self.variant = "convolutional encoder: adapters in its RepViT blocks"
            _adapt_convolutions(self.sam.image_encoder)
        else:
            for block in vit_blocks(self.sam):
                width = block.attn.qkv.in_features
                block.attn = Followed(block.attn, Adapter(width))
                block.mlp = Flanked(block.mlp, Adapter(width))

    def forward(self, images: Tensor) -> Tensor:
        """Logits float ``(B, 2, S/4, S/4)``, with the default prompt."""
        logits: Tensor = self.sam(images)
        return logits


def _adapt_convolutions(encoder: nn.Module) -> None:
    blocks: list[Any] = [module for module in encoder.modules() if isinstance(module, RepViTBlock)]
    for block in blocks:  # whose parts are exchanged for modules of other classes
        width = block.channel_mixer.conv2.out_channels
        block.token_mixer = Followed(block.token_mixer, Adapter(width, is_convolutional=True))
        block.channel_mixer = Flanked(block.channel_mixer, Adapter(width, is_convolutional=True))


MED_SA = Baseline(
    "Med-SA",
    "Wu et al., arXiv 2304.12620",
    MedSa,
    Recipe(optimizer="adam", rate=1e-4, weight_decay=0.0),
    has_base=True,
)
