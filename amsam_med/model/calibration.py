"""Mask calibration by Hadamard products (Eq. 9-12).

For one image, Eq. 9-11 reduce to ``M_orig / c``: the mean over channels of the products is the dot product that made
``M_orig``, divided by the number of channels. So with ``scope="image"`` the paper's calibration multiplies the logits
by ``alpha + (1 - alpha) / c`` (0.709 for alpha = 0.7, c = 32): the softmax, the loss and their gradients change, the
argmax never does. ``mode="learned"`` replaces the mean by a small trained map that starts as the mean and can change
the mask.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from amsam_med.choices import CalibrationMode as CalibrationMode
from amsam_med.choices import CalibrationScope as CalibrationScope
from amsam_med.errors import ConfigError


def hadamard_products(upscaled: Tensor, mask_vectors: Tensor) -> Tensor:
    """Eq. (9). R_i = U_i ∘ H_i for every channel i.

    Args:
        upscaled: U, float ``(b, c, h, w)``.
        mask_vectors: H, float ``(b, n, c)``, one vector per mask.

    Returns:
        float ``(b, c, n, h, w)``.
    """
    return upscaled[:, :, None] * mask_vectors.transpose(1, 2)[..., None, None]


def concatenate_products(products: Tensor) -> Tensor:
    """Eq. (10). R = Concat(R_1, ..., R_c): float ``(b, c, n, h, w)`` to ``(b * c, n, h, w)``."""
    return products.flatten(0, 1)


def average_products(products: Tensor, scope: CalibrationScope) -> Tensor:
    """Eq. (11). The mean of R over its first dimension.

    Args:
        products: float ``(b, c, n, h, w)`` from :func:`hadamard_products`.
        scope: ``"image"`` averages each image's c products; ``"batch"`` all b * c, as printed in the paper, and then
            repeats the result for every image. The two are equal for b = 1.

    Returns:
        M_new, float ``(b, n, h, w)``.
    """
    if scope == "image":
        return products.mean(dim=1)
    mean = concatenate_products(products).mean(dim=0, keepdim=True)
    return mean.expand(products.shape[0], -1, -1, -1)


def blend_masks(original: Tensor, new: Tensor, alpha: float) -> Tensor:
    """Eq. (12). M = alpha * M_orig + (1 - alpha) * M_new, all float ``(b, n, h, w)``."""
    return alpha * original + (1 - alpha) * new


class MaskCalibration(nn.Module):
    """The calibration at the end of the mask decoder.

    Args:
        mode: ``"none"`` leaves the logits alone, ``"paper"`` is Eq. 9-12, ``"learned"`` fuses the channels of R with a
            3 x 3 convolution that starts as the mean of Eq. 11.
        alpha: The weight of the original mask, in [0, 1].
        scope: See :func:`average_products`; ``"batch"`` mixes the masks of a batch and so works in training only.
        channels: c, the channels of the upscaled embedding.

    Raises:
        ConfigError: An unknown mode or scope, or alpha outside [0, 1].
    """

    def __init__(
        self, mode: CalibrationMode = "paper", alpha: float = 0.7, scope: CalibrationScope = "image", channels: int = 32
    ) -> None:
        super().__init__()
        if mode not in get_args(CalibrationMode) or scope not in get_args(CalibrationScope):
            raise ConfigError(
                f"calibration {mode!r} with scope {scope!r} is unknown; the mode is one of "
                f"{', '.join(get_args(CalibrationMode))}, the scope one of {', '.join(get_args(CalibrationScope))}"
            )
        if not 0 <= alpha <= 1:
            raise ConfigError(f"alpha is {alpha}; it weighs two masks and must lie between 0 and 1 (the paper: 0.7)")
        self.mode, self.alpha, self.scope = mode, alpha, scope
        self.fusion = _mean_convolution(channels) if mode == "learned" else None

    def forward(self, original: Tensor, upscaled: Tensor, mask_vectors: Tensor) -> Tensor:
        """Calibrate mask logits.

        Args:
            original: M_orig, float ``(b, n, h, w)``.
            upscaled: U, float ``(b, c, h, w)``.
            mask_vectors: H, float ``(b, n, c)``.

        Returns:
            M_final, float ``(b, n, h, w)``.

        Raises:
            ConfigError: ``scope="batch"`` outside training, where one patient's mask would depend on another's.
        """
        if self.mode == "none":
            return original
        if self.scope == "batch" and not self.training:
            raise ConfigError("calibration scope 'batch' mixes the images of a batch; use scope 'image' for inference")
        products = hadamard_products(upscaled, mask_vectors)  # (b, c, n, h, w)
        if self.fusion is None:
            return blend_masks(original, average_products(products, self.scope), self.alpha)
        b, c, n, h, w = products.shape
        fused = self.fusion(products.transpose(1, 2).reshape(b * n, c, h, w))
        return blend_masks(original, fused.view(b, n, h, w), self.alpha)


def _mean_convolution(channels: int) -> nn.Conv2d:
    """A 3 x 3 convolution to one channel that computes the mean over channels."""
    convolution = nn.Conv2d(channels, 1, kernel_size=3, padding=1, bias=False)
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[:, :, 1, 1] = 1 / channels
    return convolution
