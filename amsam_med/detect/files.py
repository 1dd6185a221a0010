"""A detector on disk: fp16 safetensors with a header, or ultralytics' pickles if the user trusts them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, StringConstraints
from safetensors.torch import save
from torch import Tensor

from amsam_med.errors import ConfigError, WeightsError
from amsam_med.files import replace_file as replace_file
from amsam_med.schema import Record, checked
from amsam_med.tensors import read_tensors, refuse_non_finite

FORMAT = "amsam-detector"
FORMAT_VERSION = "1"
PICKLES = (".pt", ".pth")
MIN_CONFIDENCE = 0.05
"""Default of detectors whose file does not set it."""
_HALF_LIMIT = torch.finfo(torch.float16).max


_REMEDY = "give a file of `amsam detector train`, copy it again, or train it again"
_Remark = Annotated[str, StringConstraints(max_length=200)]
_Share = Annotated[float, Field(strict=False, ge=0, le=1)]


class _DetectorHeader(Record):
    """A detector's header; safetensors allows only text as values, so numbers are parsed."""

    format: Literal["amsam-detector"]
    version: Literal["1"]
    class_name: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    nc: Annotated[int, Field(strict=False, ge=1, le=1000)]
    input_size: Annotated[int, Field(strict=False, ge=64, le=2048, multiple_of=32)]
    edge_error: _Share = 0.0
    min_confidence: _Share = MIN_CONFIDENCE
    model: _Remark = ""
    ultralytics: _Remark = ""


class DetectorWeights(NamedTuple):
    """The content of a file of weights.

    Attributes:
        state: The network's state dict, with ultralytics' names.
        class_name: The class that it detects; the first one if there are several.
        class_count: The number of classes.
        input_size: Side of the square that it was trained on, in pixels.
        edge_error: See :class:`amsam_med.detect.scores.BoxScores`; 0 if it was not measured.
        min_confidence: In [0, 1]; segmentation is better without a box than with one of lower confidence.
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
        ConfigError: The file is a pickle, and ``trust_pickle`` is False.
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


def write_weights(weights: DetectorWeights, path: Path, model: str = "", ultralytics: str = "") -> None:
    """Write weights as fp16 safetensors, atomically.

    Args:
        weights: The weights.
        path: Target, ``.safetensors``; its folder is created if missing.
        model: Which network it is, for people to read.
        ultralytics: The version that trained it, for people to read.
    """
    header = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "class_name": weights.class_name,
        "nc": str(weights.class_count),
        "input_size": str(weights.input_size),
        "edge_error": f"{weights.edge_error:.6g}",
        "min_confidence": f"{weights.min_confidence:.6g}",
        "model": model,
        "ultralytics": ultralytics,
    }
    replace_file(path, save({name: compact(tensor) for name, tensor in weights.state.items()}, header))


def compact(tensor: Tensor) -> Tensor:
    """A copy for storage: floats as fp16, cut at its range; step counters as they are."""
    tensor = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensor.clamp(-_HALF_LIMIT, _HALF_LIMIT).half() if tensor.is_floating_point() else tensor


def _read_safetensors(path: Path) -> DetectorWeights:
    state, entries = read_tensors(path, _REMEDY)
    got = (entries.get("format"), entries.get("version"))
    if got != (FORMAT, FORMAT_VERSION):
        found = f"format {ascii(got[0])[:80]}, version {ascii(got[1])[:80]}"
        raise WeightsError(f"{path.name} has {found}; expected {FORMAT!r}, version {FORMAT_VERSION!r}. {_REMEDY}")
    header = checked(_DetectorHeader, dict(entries), f"{path.name}, its header", _REMEDY, WeightsError)
    measured = header.edge_error, header.min_confidence
    return DetectorWeights(state, header.class_name, header.nc, header.input_size, *measured)


def _read_pickle(path: Path) -> DetectorWeights:
    # The pickle imports ultralytics. amsam_med.detect.yolo, which calls this, has imported it without its side effects.
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        network = (checkpoint.get("ema") or checkpoint["model"]).float()
        input_size = int(checkpoint["train_args"]["imgsz"])
        refuse_non_finite(network.state_dict(), path.name)
        return DetectorWeights(network.state_dict(), str(network.names[0]), len(network.names), input_size)
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(f"{path.name} is not a checkpoint of ultralytics ({error!r}); give one, or train") from error
