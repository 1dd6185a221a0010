"""What every baseline is: a network from images to two-channel logits, and a recipe to train it by.

A baseline's file holds its network and one :class:`Baseline`, which ``BASELINES`` of this package names. The runner
builds the network for a :class:`Setting`, trains it with :func:`~pipelines.paper.baselines.training.train_baseline`
unless it has no recipe, and scores its logits as it scores AM-SAM's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from amsam_med.model import AmSam, build_amsam
from amsam_med.model.encoders import IMAGENET_MEAN, IMAGENET_STD, SamImageEncoder
from amsam_med.views import ViewKind

LOGIT_STRIDE = 4
"""Input pixels per logit, along each axis, of networks that may choose: as SAM's."""
RANDOM_WEIGHTS = "random weights"


class Setting(NamedTuple):
    """What a network is built for.

    Attributes:
        base: Name of the SAM-like base, for those that stand on one.
        base_file: Its weights; None for random ones.
        input_size: S, the side of the square input in pixels.
        is_pretrained: Take the published weights of a backbone; they are downloaded by timm or torchvision.
        detector_file: Weights of the box detector, for those that ask for boxes.
        weights_folder: Where files of other projects lie, such as FastSAM's.
    """

    base: str = "tiny-general"
    base_file: Path | None = None
    input_size: int = 256
    is_pretrained: bool = False
    detector_file: Path | None = None
    weights_folder: Path | None = None


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, beside what all share (trainer, loss, examples, seeds).

    Attributes:
        passes: Over the examples; the paper has 100.
        batch_size: Two by default, the least that batch normalisation can do with.
        optimizer: Betas are torch's own.
        rate: The first learning rate, for random weights and for parts added to a frozen base.
        pretrained_rate: The first learning rate where a backbone starts from published weights; None for the same.
        weight_decay: Of the optimiser.
        warm_up: Iterations of linear warm-up, at most a quarter of the run.
        lambda_dice: Of Eq. 5.
        views: Augmentation, see :mod:`amsam_med.views`; the same eight views that AM-SAM has.
        input_size: Side of the input in pixels; None for the table's.
    """

    passes: int = 100
    batch_size: int = 2
    optimizer: Literal["adam", "adamw"] = "adamw"
    rate: float = 1e-3
    pretrained_rate: float | None = None
    weight_decay: float = 0.01
    warm_up: int = 0
    lambda_dice: float = 0.8
    views: ViewKind = "all"
    input_size: int | None = None


class BaselineNetwork(nn.Module):
    """Images float ``(B, 3, S, S)`` in [0, 1] to logits float ``(B, 2, h, w)``, background first; h = w is free.

    Attributes:
        origin: Where the weights that training starts from come from, as a table says it.
        variant: What differs from the published network, as a table says it; empty for nothing.
        hidden_parameters: How many numbers there are beside the module's own parameters.
    """

    origin: str = RANDOM_WEIGHTS
    variant: str = ""
    hidden_parameters: int = 0

    def prepare(self, images: Tensor, labels: Tensor) -> None:
        """Take in all examples once training is over.

        Args:
            images: float ``(k, 3, S, S)`` in [0, 1].
            labels: uint8 ``(k, 1, S, S)``.
        """

    def training_logits(self, images: Tensor, labels: Tensor) -> list[Tensor]:
        """All logits ``(B, 2, h, w)`` that have a part in the loss; sizes may differ.

        Args:
            images: float ``(B, 3, S, S)`` in [0, 1].
            labels: ``(B, 1, S, S)``, for networks that look at labelled images.
        """
        return [self(images)]


class Baseline(NamedTuple):
    """An entry of the tables.

    Attributes:
        title: As printed.
        source: Publication.
        build: Makes the network.
        recipe: How it is trained; None for a network that is used as it is.
        has_base: It stands on the SAM-like base of the table.
        has_box: It asks for a detector's box.
    """

    title: str
    source: str
    build: Callable[[Setting], BaselineNetwork]
    recipe: Recipe | None
    has_base: bool = False
    has_box: bool = False


def frozen_sam(setting: Setting, num_classes: int = 1) -> AmSam:
    """The base without anything of AM-SAM's, no parameter of it trained.

    Args:
        setting: Names the base.
        num_classes: C of the mask decoder; 3 takes all four heads of SAM's own checkpoints.
    """
    sam = build_amsam(
        setting.base,
        num_classes=num_classes,
        input_size=setting.input_size,
        rank=0,
        calibration="none",
        base_weights=setting.base_file,
    )
    return sam.requires_grad_(False)


def vit_blocks(sam: AmSam) -> Iterable[Any]:
    """The transformer blocks of a base with SAM's ViT, whose parts a baseline may exchange; they carry no types."""
    assert isinstance(sam.image_encoder, SamImageEncoder)
    blocks: Iterable[Any] = sam.image_encoder.blocks
    return blocks


class ImagenetNorm(nn.Module):
    """Images in [0, 1] as ImageNet's backbones (and SAM as published) take them."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise float ``(B, 3, S, S)``."""
        return (images - self.mean) / self.deviation
