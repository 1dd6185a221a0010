"""Encoders against a plain composition of the parts of timm and segment_anything."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn
from torch.nn import functional

from amsam_med.model.encoders import CompactImageEncoder, SamImageEncoder, VitSize

SMALL_VIT = VitSize(width=32, depth=2, heads=2, global_blocks=(1,))


def test_the_compact_encoder_joins_the_backbones_features_at_stride_16() -> None:
    torch.manual_seed(0)
    encoder, image = CompactImageEncoder(64).eval(), torch.rand(2, 3, 64, 64)
    as_imagenet = (image - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    with torch.no_grad():
        fine, middle, coarse = encoder.backbone(as_imagenet)  # strides 8, 16 and 32
        coarse = functional.interpolate(coarse, size=(4, 4), mode="bilinear", align_corners=False)
        joined = torch.cat([functional.avg_pool2d(fine, 2), middle, coarse], dim=1)
        torch.testing.assert_close(encoder.features(image), joined)
        first, _, second, norm = encoder.neck
        hidden = functional.gelu(functional.conv2d(joined, first.weight, first.bias))
        hidden = functional.conv2d(functional.pad(hidden, (1, 1, 1, 1)), second.weight)
        torch.testing.assert_close(encoder(image), norm(hidden))


def test_the_vit_is_sams_with_windows_of_14_positions() -> None:
    torch.manual_seed(0)
    ours = SamImageEncoder(SMALL_VIT, input_size=256).eval()  # 16 positions a side: more than a window
    for name, parameter in ours.named_parameters():
        nn.init.normal_(parameter, std=0.02 if "norm" not in name else 1.0)
    sam = ImageEncoderViT(
        img_size=256,
        embed_dim=32,
        depth=2,
        num_heads=2,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=(1,),
    ).eval()
    sam.load_state_dict(ours.state_dict())
    image = torch.rand(1, 3, 256, 256) / 255  # faint, so that the norms' epsilon counts
    with torch.no_grad():
        torch.testing.assert_close(ours(image), sam(image), rtol=1e-6, atol=1e-7)


def test_relative_positions_are_interpolated_by_their_centres() -> None:
    encoder = SamImageEncoder(SMALL_VIT, input_size=64)  # 4 positions a side: 7 relative ones
    name = "blocks.1.attn.rel_pos_h"
    table = torch.randn(15, 16, generator=torch.Generator().manual_seed(0))
    fitted = encoder.fit_positions({name: table})[name]
    at = (np.arange(7) + 0.5) * 15 / 7 - 0.5
    expected = np.stack([np.interp(at, np.arange(15), column) for column in table.T.numpy()], axis=1)
    np.testing.assert_allclose(fitted, expected, rtol=1e-5, atol=1e-6)
