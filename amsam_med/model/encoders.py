"""Image encoders: SAM's ViT at any input size, and a compact convolutional one.

An encoder turns RGB images float ``(B, 3, S, S)`` in [0, 1] into embeddings float ``(B, 256, S/16, S/16)`` and does its
own normalisation, so that every caller passes the same plain images. It consists of parts, of which few-shot training
may adapt the last and encodes only once with those below: ``features`` float ``(B, C, S/16, S/16)`` and ``neck``, two
convolutions; the compact encoder computes its features by its ``trunk`` and its last ``stage``.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, cast

import timm
import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.common import LayerNorm2d
from timm.layers.norm_act import BatchNormAct2d
from timm.models import FeatureInfo
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from amsam_med.model.decoder import EMBEDDING_CHANNELS
from amsam_med.model.prompt import PATCH

COMPACT_BACKBONE = "tf_efficientnet_lite2"
"""timm's name of the compact encoder's network."""
FINE_END, TRUNK_END = 3, 5
"""Of a backbone's seven blocks: the third ends at stride 8, the fifth, and with it the trunk, at stride 16."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VitSize(NamedTuple):
    """The sizes in which SAM's three encoders differ."""

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]


class SamImageEncoder(ImageEncoderViT):
    """SAM's ViT built for square inputs of ``input_size`` pixels.

    Pixels are used as they are in [0, 1] (no mean, no standard deviation), as in SAMed and BLO-SAM, on which the paper
    builds.

    Args:
        size: Width, depth, heads and global blocks of the ViT.
        input_size: A multiple of 16; SAM's own is 1024.

    Attributes:
        feature_channels: C of the features.
    """

    def __init__(self, size: VitSize, input_size: int) -> None:
        super().__init__(
            img_size=input_size,
            patch_size=PATCH,
            embed_dim=size.width,
            depth=size.depth,
            num_heads=size.heads,
            out_chans=EMBEDDING_CHANNELS,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=size.global_blocks,
        )
        self.input_size = input_size
        self.feature_channels = size.width

    def forward(self, image: Tensor) -> Tensor:
        """Embed float ``(B, 3, S, S)`` in [0, 1] as float ``(B, 256, S/16, S/16)``."""
        embedding: Tensor = self.neck(self.features(image))
        return embedding

    def features(self, image: Tensor) -> Tensor:
        """The blocks' output, before the neck: float ``(B, C, S/16, S/16)``."""
        tokens = self.patch_embed(image) + self.pos_embed  # (B, h, w, C)
        for block in self.blocks:
            tokens = block(tokens)
        features: Tensor = tokens.permute(0, 3, 1, 2)
        return features

    def fit_positions(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Interpolate position tables of a checkpoint made at another input size.

        Args:
            state: The encoder's part of a SAM checkpoint, names relative to the encoder.

        Returns:
            The same tensors, the absolute table and the global blocks' relative tables resized to this encoder's.
        """
        own = self.state_dict()
        fitted = dict(state)
        for name, table in state.items():
            if name not in own or own[name].shape == table.shape:
                continue
            if name == "pos_embed":
                fitted[name] = _resize_grid(table, own[name].shape[1])
            elif name.endswith(("rel_pos_h", "rel_pos_w")):
                fitted[name] = _resize_line(table, own[name].shape[0])
        return fitted


class CompactImageEncoder(nn.Module):
    """A small convolutional encoder: a timm backbone whose stride 8, 16 and 32 features are joined at stride 16.

    Args:
        input_size: Side of the model input in pixels, a multiple of 32.
        is_fused: Build the backbone with its batch norms merged into its convolutions, as it is shipped; False for
            training it from the start.
        backbone_name: timm's name of a network of the EfficientNet family.

    Attributes:
        trunk_channels: C of the trunk's features.
        feature_channels: C of the features.
    """

    def __init__(self, input_size: int = 256, is_fused: bool = True, backbone_name: str = COMPACT_BACKBONE) -> None:
        super().__init__()
        backbone = timm.create_model(backbone_name, features_only=True, out_indices=(-3, -2, -1), pretrained=False)
        self.input_size = input_size
        self.backbone: Any = backbone
        if is_fused:
            self.fuse().train()
        self._fine_channels, middle, coarse = cast(FeatureInfo, backbone.feature_info).channels()
        self._fine_end, self._trunk_end = FINE_END, TRUNK_END  # TorchScript knows no constants of modules
        self.trunk_channels = self._fine_channels + middle
        self.feature_channels = self.trunk_channels + coarse
        self.neck = nn.Sequential(
            nn.Conv2d(self.feature_channels, EMBEDDING_CHANNELS, kernel_size=1),
            nn.GELU(),
            nn.Conv2d(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(EMBEDDING_CHANNELS),
        )
        self.pixel_mean: Tensor  # here and not in the class, whose annotations TorchScript cannot read
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Embed float ``(B, 3, S, S)`` in [0, 1] as float ``(B, 256, S/16, S/16)``."""
        embedding: Tensor = self.neck(self.features(image))
        return embedding

    def features(self, image: Tensor) -> Tensor:
        """The backbone's output, before the neck: float ``(B, C, S/16, S/16)``."""
        return self.stage(self.trunk(image))

    def trunk(self, image: Tensor) -> Tensor:
        """The backbone's output before its last stage: float ``(B, C', S/16, S/16)``."""
        x = (image - self.pixel_mean) / self.pixel_std
        x = self.backbone.bn1(self.backbone.conv_stem(x))
        fine = x
        for number, block in enumerate(self.backbone.blocks):  # TorchScript cannot slice them
            if number < self._trunk_end:
                x = block(x)
            if number + 1 == self._fine_end:
                fine = functional.avg_pool2d(x, kernel_size=2)
        return torch.cat([fine, x], dim=1)

    def stage(self, trunk: Tensor) -> Tensor:
        """The features computed from the output of :meth:`trunk`."""
        coarse = trunk[:, self._fine_channels :]
        for number, block in enumerate(self.backbone.blocks):
            if number >= self._trunk_end:
                coarse = block(coarse)
        coarse = functional.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        return torch.cat([trunk, coarse], dim=1)

    def fuse(self) -> CompactImageEncoder:
        """Merge the backbone's parallel branches and batch norms into its convolutions, in place: fewer operations.

        Returns:
            The encoder itself, in evaluation mode, computing the same function as before.
        """
        self.eval()
        self.backbone = reparameterize_model(self.backbone)
        _merge_batch_norms(self.backbone)
        return self


class Below(nn.Module):
    """An encoder without its last part, which encodes images once if that part is trained.

    Args:
        encoder: The whole encoder.
        part: ``"neck"`` or ``"stage"``: where to stop.
    """

    def __init__(self, encoder: SamImageEncoder | CompactImageEncoder, part: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.part = part

    def forward(self, image: Tensor) -> Tensor:
        """Features or trunk float ``(B, C, S/16, S/16)`` of float ``(B, 3, S, S)`` in [0, 1]."""
        if self.part == "stage" and isinstance(self.encoder, CompactImageEncoder):
            return self.encoder.trunk(image)
        return self.encoder.features(image)


def _merge_batch_norms(module: nn.Module) -> None:
    """Multiply each batch norm into the convolution that its module applies just before it, in place.

    timm's blocks name their layers in the order in which they apply them; what lies between a convolution and its norm
    is an identity.
    """
    convolution: tuple[str, nn.Conv2d] | None = None
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            convolution = name, child
        elif isinstance(child, nn.BatchNorm2d) and convolution is not None:
            setattr(module, convolution[0], fuse_conv_bn_eval(convolution[1], child))
            setattr(module, name, child.act if isinstance(child, BatchNormAct2d) else nn.Identity())
            convolution = None
        elif not isinstance(child, nn.Identity):
            _merge_batch_norms(child)
            convolution = None


def _resize_grid(table: Tensor, side: int) -> Tensor:
    """Absolute positions ``(1, h, w, C)`` to ``(1, side, side, C)``."""
    resized = functional.interpolate(table.permute(0, 3, 1, 2), size=(side, side), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def _resize_line(table: Tensor, length: int) -> Tensor:
    """Relative positions ``(L, C)`` to ``(length, C)``."""
    return functional.interpolate(table.T[None], size=length, mode="linear", align_corners=False)[0].T
