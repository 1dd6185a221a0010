"""Variants and sizes: which network is built under which name, and which weights it starts from."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from torch import Tensor

from amsam_med.choices import Adapted as Adapted
from amsam_med.choices import BaseName as BaseName
from amsam_med.errors import ConfigError, WeightsError
from amsam_med.model.amsam import AmSam
from amsam_med.model.calibration import CalibrationMode, CalibrationScope, MaskCalibration
from amsam_med.model.decoder import UPSCALED_CHANNELS, MaskDecoder
from amsam_med.model.encoders import CompactImageEncoder, SamImageEncoder, VitSize
from amsam_med.model.prompt import PATCH, PromptEncoder, PromptKind
from amsam_med.tensors import read_pickled, read_tensors, refuse_non_finite

VIT_SIZES = {
    "vit_b": VitSize(width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)),
    "vit_l": VitSize(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
    "vit_h": VitSize(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
}
COMPACT_BASES = ("tiny", "tiny-general")
"""One network under two names, for two sets of weights: the second was not trained on dermoscopy."""
COMPACT_INPUT_MULTIPLE = 32
"""The compact encoder halves its input five times."""
CLASS_HEADS = ("mask_decoder.mask_tokens", "mask_decoder.output_hypernetworks_mlps", "mask_decoder.iou_prediction_head")
"""Parts whose shapes depend on the number of classes: taken from a base where they fit, new where they do not."""
ADDITIONS = (".lora_a", ".lora_b", "calibration.")
"""Parts that AM-SAM adds to a base and that no base checkpoint holds."""
_ENCODER = "image_encoder."


def build_amsam(
    base: str = "tiny",
    *,
    num_classes: int = 1,
    input_size: int = 256,
    rank: int = 4,
    calibration: CalibrationMode = "paper",
    calibration_scope: CalibrationScope = "image",
    alpha: float = 0.7,
    prompt: PromptKind = "box",
    adapts: Adapted = "decoder",
    base_weights: str | Path | None = None,
    is_fused: bool = True,
) -> AmSam:
    """Build an AM-SAM network.

    Args:
        base: ``"tiny"`` or ``"tiny-general"`` (compact encoder, about 9 M parameters), or SAM's ``"vit_b"``,
            ``"vit_l"``, ``"vit_h"``.
        num_classes: Object classes; the network returns one mask more, for the background.
        input_size: Side of the square model input in pixels, a multiple of 16 (compact bases: 32).
        rank: Rank of the decoder's LoRA; 0 leaves it out.
        calibration: ``"paper"`` (Eq. 9-12), ``"learned"`` or ``"none"``.
        calibration_scope: ``"image"``, or ``"batch"`` for the paper's letter in training batches of more than one.
        alpha: Weight of the uncalibrated mask in Eq. 12.
        prompt: How a box is given to the prompt encoder: ``"box"``, ``"box+point"`` or ``"none"``; or ``"own"``: for an
            image without a box the network makes boxes itself.
        adapts: What few-shot training adapts: ``"decoder"``, as in the paper; ``"neck"``, which is the decoder and the
            encoder's neck; or, for the compact bases, ``"stage"``, which is both and the encoder's last stage.
        base_weights: A SAM checkpoint (``.pth``) or a base of ours (``.safetensors``); None for random weights.
        is_fused: For the compact bases: inference form of the backbone; False only to pre-train it.

    Returns:
        The network in training mode, all parameters trainable; see ``learn.levels.set_trainable``.

    Raises:
        ConfigError: An unknown base, an input size that it cannot take, or an unknown part to adapt.
        WeightsError: ``base_weights`` is missing, damaged, or of another network.
    """
    if adapts not in get_args(Adapted):
        raise ConfigError(f"adapts {adapts!r} is unknown; expected one of {', '.join(get_args(Adapted))}")
    if adapts == "stage" and base not in COMPACT_BASES:
        raise ConfigError(f"base {base} has no last stage to adapt; expected adapts decoder or neck")
    network = AmSam(
        image_encoder=_build_encoder(base, input_size, is_fused),
        prompt_encoder=PromptEncoder(input_size, prompt),
        mask_decoder=MaskDecoder(num_classes, rank),
        calibration=MaskCalibration(calibration, alpha, calibration_scope, UPSCALED_CHANNELS),
        settings={
            "base": base,
            "num_classes": num_classes,
            "input_size": input_size,
            "rank": rank,
            "calibration": calibration,
            "alpha": alpha,
            "prompt": prompt,
            "adapts": adapts,
        },
    )
    if base_weights is not None:
        load_base(network, Path(base_weights))
    return network


def load_base(network: AmSam, path: Path) -> None:
    """Load a base into ``network``: everything except what AM-SAM adds and heads of another number of classes.

    Args:
        network: The network to fill.
        path: A SAM checkpoint (``.pth``) or a base of ours (``.safetensors``).

    Raises:
        WeightsError: The file is missing, damaged, or holds another network.
    """
    state = _read_state(path)
    if isinstance(network.image_encoder, SamImageEncoder):
        state = _fit_encoder(network.image_encoder, state)
    own = network.state_dict()
    new_heads = {k for k in own if k.startswith(CLASS_HEADS) and (k not in state or state[k].shape != own[k].shape)}
    additions = {k for k in own if k.startswith(ADDITIONS[-1]) or k.endswith(ADDITIONS[:-1])}
    # A head is loaded as a whole or not at all: part of a hypernetwork for another number of classes is useless.
    is_head_new = bool(new_heads)
    usable = {k: v for k, v in state.items() if not (is_head_new and k.startswith(CLASS_HEADS))}
    expected = {k for k in own if k not in additions and not (is_head_new and k.startswith(CLASS_HEADS))}
    missing, unexpected = sorted(expected - usable.keys()), sorted(usable.keys() - expected)
    wrong_shape = sorted(k for k in expected & usable.keys() if usable[k].shape != own[k].shape)
    if missing or unexpected or wrong_shape:
        raise WeightsError(
            f"{path.name} does not hold this network: {len(missing)} tensors missing, {len(unexpected)} unknown, "
            f"{len(wrong_shape)} of another shape (first: {(missing + unexpected + wrong_shape)[0]}); "
            "use the base's own checkpoint, or choose the matching --base"
        )
    network.load_state_dict({**own, **usable})


def _build_encoder(base: str, input_size: int, is_fused: bool) -> SamImageEncoder | CompactImageEncoder:
    if base not in COMPACT_BASES and base not in VIT_SIZES:
        raise ConfigError(f"base {base!r} is unknown; expected {', '.join([*COMPACT_BASES, *VIT_SIZES])}")
    multiple = COMPACT_INPUT_MULTIPLE if base in COMPACT_BASES else PATCH
    if input_size < multiple or input_size % multiple:
        raise ConfigError(
            f"input size {input_size} does not fit base {base}: it must be a positive multiple of {multiple}; "
            f"use {max(multiple, round(input_size / multiple) * multiple)}"
        )
    if base in COMPACT_BASES:
        return CompactImageEncoder(input_size, is_fused)
    return SamImageEncoder(VIT_SIZES[base], input_size)


def _fit_encoder(encoder: SamImageEncoder, state: dict[str, Tensor]) -> dict[str, Tensor]:
    inner = {k.removeprefix(_ENCODER): v for k, v in state.items() if k.startswith(_ENCODER)}
    return {**state, **{_ENCODER + k: v for k, v in encoder.fit_positions(inner).items()}}


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"weight file {path} does not exist; `amsam weights list` shows what is at hand")
    if path.suffix not in (".pth", ".pt"):
        return read_tensors(path, "fetch it again")[0]
    state = read_pickled(path, "fetch it again")
    if not isinstance(state, dict):
        raise WeightsError(f"{path.name} holds no tensors by name; use the base's own checkpoint")
    refuse_non_finite(state, path.name)
    return state
