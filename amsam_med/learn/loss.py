"""The segmentation loss of both levels (Eq. 5)."""

from __future__ import annotations

from monai.losses.dice import DiceCELoss
from torch import Tensor, nn
from torch.nn import functional

from amsam_med.errors import ConfigError, DataError


class SegmentationLoss(nn.Module):
    """Eq. (5). L = (1 - λ) CE + λ Dice, on a softmax over the background and C classes.

    The loss is computed at the size of the logits (a quarter of the model input), as in the methods that the paper
    builds on (SAMed, BLO-SAM); the label is resized to it first.

    Args:
        lambda_dice: λ, the weight of the Dice part, in [0, 1].
        squared_pred: Square probabilities and label in the denominator of Dice (sum p² + sum g²), as the code of the
            methods that the paper builds on does; Eq. 5 does not say which.

    Raises:
        ConfigError: λ outside [0, 1].
    """

    def __init__(self, lambda_dice: float = 0.8, squared_pred: bool = False) -> None:
        super().__init__()
        if not 0 <= lambda_dice <= 1:
            raise ConfigError(
                f"lambda_dice is {lambda_dice}; it shares the loss between Dice and cross-entropy and must lie between "
                "0 and 1 (the paper: 0.8)"
            )
        self.loss = DiceCELoss(
            include_background=True,
            to_onehot_y=True,
            softmax=True,
            squared_pred=squared_pred,
            lambda_dice=lambda_dice,
            lambda_ce=1 - lambda_dice,
        )

    def forward(self, mask_logits: Tensor, label: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            mask_logits: float ``(B, C + 1, h, w)``, the background first.
            label: ``(B, 1, H, W)``, any numeric dtype, class ids 0..C.

        Returns:
            float scalar.

        Raises:
            DataError: The shapes do not belong together, or the label holds an id above C.
        """
        _check_shapes(mask_logits, label)
        _check_class_ids(label, mask_logits.shape[1] - 1)
        label_at_logits = resize_label(label, (mask_logits.shape[-2], mask_logits.shape[-1]))  # (B, 1, h, w)
        loss: Tensor = self.loss(mask_logits, label_at_logits.to(mask_logits.dtype))
        return loss


def resize_label(label: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``(B, 1, H, W)`` class ids to ``size`` (h, w) by nearest neighbour; float32 ``(B, 1, h, w)``."""
    return functional.interpolate(label.float(), size=size, mode="nearest-exact")


def _check_shapes(mask_logits: Tensor, label: Tensor) -> None:
    is_logits = mask_logits.ndim == 4 and mask_logits.shape[1] >= 2
    is_label = label.ndim == 4 and label.shape[1] == 1 and label.shape[0] == mask_logits.shape[0]
    if not (is_logits and is_label):
        raise DataError(
            f"the loss got mask logits of shape {tuple(mask_logits.shape)} and a label of shape {tuple(label.shape)}; "
            "expected (B, C + 1, h, w) with C >= 1 and (B, 1, H, W) class ids; give the label one channel, not one-hot"
        )


def _check_class_ids(label: Tensor, num_classes: int) -> None:
    highest = int(label.max())
    if highest > num_classes:
        raise DataError(
            f"the label holds class id {highest}; expected ids 0 (background) to {num_classes}; "
            "map the mask's values to class ids first (a mask of 0 and 255 to 0 and 1), or build the network with "
            f"num_classes={highest}"
        )
