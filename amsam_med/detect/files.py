"""A detector on disk: fp16 safetensors with a header, and ultralytics' pickles for those who trust them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from amsam_med.errors import ConfigError, WeightsError

FORMAT = "amsam-detector"
FORMAT_VERSION = "1"
PICKLES = (".pt", ".pth")
MIN_CONFIDENCE = 0.05
"""Of detectors that nobody chose one for."""
_HALF_LIMIT = torch.finfo(torch.float16).max


class DetectorWeights(NamedTuple):
    """What a file of weights holds.

    Attributes:
        state: The network's state dict, with ultralytics' names.
        class_name: What it finds; the first one if there are several.
        class_count: How many kinds of objects it tells apart.
        input_size: Side of the square that it was trained on, in pixels.
        edge_error: How far it puts edges from where they are, see :class:`amsam_med.detect.scores.BoxScores`; 0 where
            nobody measured it.
        min_confidence: Boxes that it is less sure of are worth less than none, in [0, 1].
    """

    state: Mapping[str, Tensor]
    class_name: str
    class_count: int
    input_size: int
    edge_error: float = 0.0
    min_confidence: float = MIN_CONFIDENCE


def read_weights(path: Path, trust_pickle: bool = False) -> DetectorWeights:
    """Read a file of :func:`write_weights`, or an ultralytics checkpoint.

    Args:
        path: ``.safetensors``, or ``.pt`` with ``trust_pickle``.
        trust_pickle: Whether code in a pickle may run.

    Raises:
        WeightsError: The file is missing, damaged or of another kind.
        ConfigError: A pickle was given without trust.
    """
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; `amsam detector train` writes such a file")
    if path.suffix not in PICKLES:
        return _read_safetensors(path)
    if not trust_pickle:
        raise ConfigError(
            f"{path.name} is a pickle: reading it can run any code that its maker put in. If you trust its source, say "
            "so with trust_pickle=True (--trust-pickle); files of `amsam detector train` need no trust"
        )
    return _read_pickle(path)


def write_weights(weights: DetectorWeights, path: Path, **remarks: str) -> None:
    """Write weights as fp16 safetensors, atomically.

    Args:
        weights: The weights.
        path: Target, ``.safetensors``; its folder is made if missing.
        **remarks: More for the header, for people to read.
    """
    header = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "class_name": weights.class_name,
        "nc": str(weights.class_count),
        "input_size": str(weights.input_size),
        "edge_error": f"{weights.edge_error:.6g}",
        "min_confidence": f"{weights.min_confidence:.6g}",
        **remarks,
    }
    replace_file(path, save({name: compact(tensor) for name, tensor in weights.state.items()}, header))


def compact(tensor: Tensor) -> Tensor:
    """A copy for storage: floats as fp16, cut at its range; step counters as they are."""
    tensor = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensor.clamp(-_HALF_LIMIT, _HALF_LIMIT).half() if tensor.is_floating_point() else tensor


def replace_file(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_safetensors(path: Path) -> DetectorWeights:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except Exception as error:
        raise WeightsError(f"{path.name} cannot be read as safetensors ({error}); copy or train it again") from error
    got = (header.get("format"), header.get("version"))
    if got != (FORMAT, FORMAT_VERSION):
        expected = f"expected {FORMAT!r}, version {FORMAT_VERSION}"
        raise WeightsError(f"{path.name} has format {got[0]!r}, version {got[1]}; {expected}. Give a detector's file")
    try:
        measured = float(header.get("edge_error", 0.0)), float(header.get("min_confidence", MIN_CONFIDENCE))
        return DetectorWeights(state, header["class_name"], int(header["nc"]), int(header["input_size"]), *measured)
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{path.name} has a damaged header ({error!r}); copy or train it again") from error


def _read_pickle(path: Path) -> DetectorWeights:
    # The pickle imports ultralytics; amsam_med.detect.yolo, which asks for it, has done that already and quietly.
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        network = (checkpoint.get("ema") or checkpoint["model"]).float()
        input_size = int(checkpoint["train_args"]["imgsz"])
        return DetectorWeights(network.state_dict(), str(network.names[0]), len(network.names), input_size)
    except Exception as error:
        raise WeightsError(f"{path.name} is not a checkpoint of ultralytics ({error!r}); give one, or train") from error
