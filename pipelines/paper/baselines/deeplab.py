"""DeepLabV3 with a dilated ResNet-50: torchvision's backbone and head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models import ResNet50_Weights
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from pipelines.paper.baselines.interface import Baseline, BaselineNetwork, ImagenetNorm, Recipe, Setting

RESNET_50 = (3, 4, 6, 3)
FIRST_STAGE_CHANNELS = 256


class DeepLabV3(BaselineNetwork):
    """Atrous spatial pyramid pooling over a ResNet at stride 8.

    Args:
        setting: Says whether the backbone starts from ImageNet.
        layers: Blocks of the ResNet's four stages.
        width: Of the blocks; 64 is ResNet's.
        stages: How many of the four are used.
    """

    def __init__(
        self, setting: Setting, layers: Sequence[int] = RESNET_50, width: int = 64, stages: int = len(RESNET_50)
    ) -> None:
        super().__init__()
        backbone = ResNet(
            Bottleneck, list(layers), width_per_group=width, replace_stride_with_dilation=[False, True, True]
        )
        if setting.is_pretrained:
            backbone.load_state_dict(ResNet50_Weights.IMAGENET1K_V2.get_state_dict(progress=False, check_hash=True))
            self.origin = "ImageNet (torchvision)"
        self.norm = ImagenetNorm()
        self.backbone = IntermediateLayerGetter(backbone, {f"layer{stages}": "out"})
        self.head: nn.Module = DeepLabHead(FIRST_STAGE_CHANNELS * 2 ** (stages - 1), 2)

    def forward(self, images: Tensor) -> Tensor:
        """Logits float ``(B, 2, S/4, S/4)``."""
        logits = self.head(self.backbone(self.norm(images))["out"])  # (B, 2, S/8, S/8)
        return nn.functional.interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=False)


DEEPLAB = Baseline("DeepLabV3", "Chen et al., arXiv 1706.05587", DeepLabV3, Recipe(pretrained_rate=1e-4))
