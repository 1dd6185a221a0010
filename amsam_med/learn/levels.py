"""The two levels of training: which parameters and which half of the examples belong to each (Eq. 6-8).

The lower level trains W, the LoRA weights and the unfrozen parts of the mask decoder, on D1 (Eq. 6). If a network
adapts the last parts of its encoder, these belong to W as well, which goes beyond the paper. The upper level trains A,
the prompt embedding, on D2 (Eq. 7-8). Everything else is frozen. Only this file decides that; parameters are identified
by their names in :class:`amsam_med.model.AmSam`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from amsam_med.errors import ConfigError, DataError

Item = TypeVar("Item")
Network = TypeVar("Network", bound=nn.Module)

PROMPT_EMBEDDING = "prompt_encoder.no_mask_embed.weight"
"""A: float ``(1, 256)``, added at every position of the image embedding."""
LORA_SUFFIXES = (".lora_a", ".lora_b")
DECODER_PARTS = (
    "mask_decoder.iou_token.",
    "mask_decoder.mask_tokens.",
    "mask_decoder.output_upscaling.",
    "mask_decoder.output_hypernetworks_mlps.",
    "mask_decoder.iou_prediction_head.",
)
"""Parts of the decoder that are trained as a whole, beside the LoRA weights inside its transformer."""
CALIBRATION = "calibration."
ENCODER = "image_encoder."
ENCODER_PARTS = {
    "decoder": (),
    "neck": ("image_encoder.neck.",),
    "stage": ("image_encoder.neck.", "image_encoder.backbone.blocks.5.", "image_encoder.backbone.blocks.6."),
}
"""Parts of the encoder that are trained, by the entry ``adapts`` of the network's ``settings``."""


def lower_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Eq. (6). W, the parameters of the lower level, by name in the network's order.

    Raises:
        ConfigError: The network has no LoRA weights.
    """
    prefixes = (*DECODER_PARTS, CALIBRATION, *ENCODER_PARTS[_adapts(network)])
    lower = {
        name: parameter
        for name, parameter in network.named_parameters()
        if name.endswith(LORA_SUFFIXES) or name.startswith(prefixes)
    }
    if not any(name.endswith(LORA_SUFFIXES) for name in lower):
        raise ConfigError(
            f"{type(network).__name__} has no LoRA weights (no parameter ends in {' or '.join(LORA_SUFFIXES)}); "
            "build it with build_amsam(rank=4), and hand over the network itself, not a wrapper around it"
        )
    return lower


def lower_groups(network: nn.Module, rate: float, encoder_rate: float) -> list[dict[str, Any]]:
    """W as an optimiser's groups: the decoder at ``rate``, and the trained parts of the encoder at ``encoder_rate``.

    Hypergradients that look through a lower step use the first group's rate for all of W.

    Raises:
        ConfigError: As for :func:`lower_parameters`.
    """
    lower = lower_parameters(network)
    groups = [
        {"params": [parameter for name, parameter in lower.items() if not name.startswith(ENCODER)], "lr": rate},
        {"params": [parameter for name, parameter in lower.items() if name.startswith(ENCODER)], "lr": encoder_rate},
    ]
    return [group for group in groups if group["params"]]


def pulled_to_start(optimizer: Optimizer, pull: float) -> Optimizer:
    """Regularise an optimiser by ``pull`` times the squared distance of its parameters to their present values.

    So weights that the few examples do not determine stay as in the base. The distance's gradient is added before each
    step, so the reported loss remains Eq. (5).

    Args:
        optimizer: The lower level's, before the first step and before a run is resumed.
        pull: 0 or more; 0 changes nothing.

    Returns:
        The optimiser, so that a configuration can build it in one expression.

    Raises:
        ConfigError: A negative pull.
    """
    if pull < 0:
        raise ConfigError(f"pull is {pull}; expected 0 (off) or more: a negative one would drive W away from the base")
    if pull == 0:
        return optimizer
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    start = [parameter.detach().clone() for parameter in parameters]

    def add_gradient(_optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        for parameter, origin in zip(parameters, start, strict=True):
            if parameter.grad is not None:  # a parameter outside the step's graph is not moved by the optimiser either
                parameter.grad.add_(parameter.detach() - origin, alpha=2 * pull)

    optimizer.register_step_pre_hook(add_gradient)
    return optimizer


def upper_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Eq. (7). A, the parameter of the upper level, by name.

    Raises:
        ConfigError: The network has no prompt embedding.
    """
    upper = {name: parameter for name, parameter in network.named_parameters() if name == PROMPT_EMBEDDING}
    if not upper:
        raise ConfigError(
            f"{type(network).__name__} has no prompt embedding A (no parameter is named {PROMPT_EMBEDDING}); "
            "build it with build_amsam, and hand over the network itself, not a wrapper around it"
        )
    return upper


def set_trainable(network: Network) -> Network:
    """Make exactly W and A require gradients, and keep parts without either (the image encoder) in evaluation mode.

    A trainer calls ``network.train()`` before every step; a forward pre-hook returns a frozen part to evaluation mode
    before it runs, so that its batch statistics do not change.

    Returns:
        The network, so that a configuration can build the prepared network in one expression.

    Raises:
        ConfigError: The network has no prompt embedding or no LoRA weights.
    """
    trainable = lower_parameters(network).keys() | upper_parameters(network).keys()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trainable)
    for child in network.children():
        parameters = list(child.parameters())  # a part without any, such as a fixed calibration, is not frozen
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            child.eval()
            # Called again for a network that is trained a second time; one hook is enough.
            if _stay_in_evaluation not in child._forward_pre_hooks.values():
                child.register_forward_pre_hook(_stay_in_evaluation)
    return network


def trainable_state(network: nn.Module) -> dict[str, Tensor]:
    """Copies of W and A on the CPU by name, which is what an adapter stores.

    Raises:
        ConfigError: The network has no prompt embedding or no LoRA weights.
    """
    trained = {**lower_parameters(network), **upper_parameters(network)}
    return {name: parameter.detach().cpu().clone().contiguous() for name, parameter in trained.items()}


def split_levels(items: Sequence[Item], seed: int, halves: bool = True) -> tuple[list[Item], list[Item]]:
    """Draw the examples of the two levels: D1 for the lower and D2 for the upper one.

    Split cases, not views of cases: with a view of a D1 image in D2, the upper level would be trained on an image that
    W has already seen.

    Args:
        items: The examples; the same items in the same order give the same halves.
        seed: Seed of the draw.
        halves: Give each level one half, as in the paper. False gives both levels all examples, which goes beyond it: W
            learns from twice as many, but Dice on D2 is then measured on images that W has seen.

    Returns:
        D1 and D2; with an odd count, D1 has one item more.

    Raises:
        DataError: Fewer than two items for halves, or none at all.
    """
    if len(items) < (2 if halves else 1):
        raise DataError(
            f"got {len(items)} example(s); expected at least 2, because half of them train the decoder (D1) and the "
            "other half the prompt embedding (D2); label at least one more image"
            if halves
            else "got no example; label at least one image"
        )
    drawn = list(items)
    random.Random(seed).shuffle(drawn)  # noqa: S311  # a reproducible draw, not cryptography
    if not halves:
        return drawn, list(drawn)
    middle = (len(drawn) + 1) // 2
    return drawn[:middle], drawn[middle:]


def _adapts(network: nn.Module) -> str:
    settings = getattr(network, "settings", {})
    return str(settings.get("adapts", "decoder")) if isinstance(settings, dict) else "decoder"


def _stay_in_evaluation(module: nn.Module, _inputs: Any) -> None:
    module.eval()
