"""U-Nets: MONAI's plain one, and the nnU-Net-like ``DynUNet`` that ``pipelines/cards/unet.py`` trains for long."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import UNet
from torch import Tensor, nn

from pipelines.cards.unet import build_unet
from pipelines.paper.baselines.interface import Baseline, BaselineNetwork, Recipe, Setting

CHANNELS = (32, 64, 128, 256, 256)


class PlainNetwork(BaselineNetwork):
    """Any network from images to two channels.

    Args:
        network: It normalises by itself or not at all.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits float ``(B, 2, h, w)``."""
        logits: Tensor = self.network(images)
        return logits


def build_plain_unet(_setting: Setting, channels: Sequence[int] = CHANNELS) -> PlainNetwork:
    """A U-Net with residual units; logits at the input's size."""
    return PlainNetwork(UNet(2, 3, 2, channels, (2,) * (len(channels) - 1), num_res_units=2, norm="batch"))


def build_dynamic_unet(_setting: Setting) -> PlainNetwork:
    """nnU-Net's building plan; logits at half the input's size."""
    return PlainNetwork(build_unet())


U_NET = Baseline("U-Net", "Ronneberger et al., MICCAI 2015", build_plain_unet, Recipe())
DYN_UNET = Baseline("DynUNet", "Isensee et al., Nature Methods 2021", build_dynamic_unet, Recipe())
