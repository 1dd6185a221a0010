"""SwinUnet: a U of Swin blocks. timm's ``swin_tiny_patch4_window7_224`` goes down, timm's Swin blocks come up.

On the way up a linear layer doubles the channels and lays them out as four pixels (patch expanding), the features of
the way down join, and two Swin blocks follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import timm
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from pipelines.paper.baselines.interface import LOGIT_STRIDE, Baseline, BaselineNetwork, ImagenetNorm, Recipe, Setting

BACKBONE = "swin_tiny_patch4_window7_224"
WINDOW = 8
"""Of a 256-pixel input's features; Swin's own 7 belongs to 224 pixels."""
DECODER_DEPTH = 2


class PatchExpand(nn.Module):
    """Features ``(B, h, w, C)`` to ``(B, f h, f w, C')``, each position laid out as f x f.

    Args:
        width: C.
        new_width: C'.
        factor: f.
    """

    def __init__(self, width: int, new_width: int, factor: int = 2) -> None:
        super().__init__()
        self.expand = nn.Linear(width, factor * factor * new_width, bias=False)
        self.norm = nn.LayerNorm(new_width)
        self.factor = factor

    def forward(self, features: Tensor) -> Tensor:
        """Expand."""
        b, h, w, _ = features.shape
        f = self.factor
        wide = self.expand(features).view(b, h, w, f, f, -1)
        expanded: Tensor = self.norm(wide.permute(0, 1, 3, 2, 4, 5).reshape(b, h * f, w * f, -1))
        return expanded


class UpStage(nn.Module):
    """One step up: expand, join the features of the way down, Swin blocks.

    Args:
        width: Channels that come in; half of them go out.
        side: Of the features that go out.
        heads: Of the attention.
        window: Its side; smaller features take a smaller one.
    """

    def __init__(self, width: int, side: int, heads: int, window: int) -> None:
        super().__init__()
        half = width // 2
        self.expand = PatchExpand(width, half)
        self.join = nn.Linear(2 * half, half)
        self.blocks = nn.Sequential(
            *(
                SwinTransformerBlock(half, (side, side), heads, window_size=window, shift_size=(i % 2) * (window // 2))
                for i in range(DECODER_DEPTH)
            )
        )

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        """Join ``(B, h, w, C)`` and ``(B, 2 h, 2 w, C / 2)``: float ``(B, 2 h, 2 w, C / 2)``."""
        joined: Tensor = self.blocks(self.join(torch.cat([self.expand(deep), shallow], dim=-1)))
        return joined


class SwinUnet(BaselineNetwork):
    """The network.

    Args:
        setting: Input size, and whether the way down starts from ImageNet.
        width: Channels after the patch embedding; 96 is Swin-T's.
        depths: Blocks of the four stages down.
        heads: Of the attention of the four stages.
        window: Side of the attention's windows.
    """

    def __init__(
        self,
        setting: Setting,
        width: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = WINDOW,
    ) -> None:
        super().__init__()
        self.norm = ImagenetNorm()
        self.down = timm.create_model(
            BACKBONE,
            features_only=True,
            pretrained=setting.is_pretrained,
            img_size=setting.input_size,
            window_size=window,
            embed_dim=width,
            depths=tuple(depths),
            num_heads=tuple(heads),
        )
        sides = [setting.input_size // LOGIT_STRIDE // 2**level for level in range(3)]
        self.up = nn.ModuleList(
            UpStage(width * 2 ** (level + 1), sides[level], heads[level], window) for level in (2, 1, 0)
        )
        self.final = PatchExpand(width, width, LOGIT_STRIDE)
        self.head = nn.Linear(width, 2)
        if setting.is_pretrained:
            self.origin = "ImageNet (timm)"

    def forward(self, images: Tensor) -> Tensor:
        """Logits float ``(B, 2, S, S)``."""
        *shallow, features = self.down(self.norm(images))  # (B, h, w, C), strides 4 to 32
        for stage, skipped in zip(self.up, reversed(shallow), strict=True):
            features = stage(features, skipped)
        logits: Tensor = self.head(self.final(features))  # (B, S, S, 2)
        return logits.permute(0, 3, 1, 2)


SWIN_UNET = Baseline("SwinUnet", "Cao et al., ECCV Workshops 2022", SwinUnet, Recipe(rate=5e-4, pretrained_rate=1e-4))
