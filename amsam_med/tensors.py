"""Files of tensors: opened within limits, and checked before a network gets them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from amsam_med.errors import AmsamError, DataError, WeightsError
from amsam_med.opening import open_regular

HEADER_LIMIT = 2**20
"""The longest header of a safetensors file that is read, in bytes; ours have some 30,000."""
_LENGTH_BYTES = 8  # a safetensors file begins with the length of its header
_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # our networks have no 8-bit floats


def read_tensors(path: Path, remedy: str, header_only: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header of a safetensors file.

    Args:
        path: The file.
        remedy: What the user can do where it cannot be read, for the message.
        header_only: Whether to leave the tensors on disk; then there are none.

    Raises:
        WeightsError: The file is not there, damaged, or its header is absurdly long; a tensor holds NaN or infinity.
    """
    try:
        with open_regular(path) as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            size = os.fstat(stream.fileno()).st_size
        if not 0 < length <= min(HEADER_LIMIT, size):
            raise WeightsError(
                f"{path.name} cannot be read as safetensors (a header of {length:,} bytes, a file of "
                f"{size:,}; at most {HEADER_LIMIT:,} are read); {remedy}"
            )
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            names = () if header_only else file.keys()
            state = {name: file.get_tensor(name) for name in names}
    except WeightsError:
        raise
    except DataError:
        raise WeightsError(f"{path.name} is not a regular file; {remedy}") from None
    except Exception as error:  # safetensors' own, the system's, and torch's of types that it does not know
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path.name} cannot be read as safetensors ({reason}); {remedy}") from None
    refuse_non_finite(state, path.name)
    return state, header


def read_pickled(path: Path, remedy: str) -> object:
    """The content of a file in torch's own format; no code in it is run.

    Args:
        path: The file.
        remedy: What the user can do where it cannot be read, for the message.

    Raises:
        WeightsError: The file is damaged, or holds other things than tensors and plain values.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on pickles that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything on damaged files
        is_code = "Unsupported" in str(error) or "Weights only load failed" in str(error)
        first = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        reason = "damaged, or it holds other things than tensors" if is_code else first
        raise WeightsError(f"{path.name} cannot be read as weights ({reason}); {remedy}") from None


def refuse_non_finite(
    state: Mapping[str, object],
    name: str,
    remedy: str = "fetch the file again, or train it again with a smaller rate",
    error: type[AmsamError] = WeightsError,
) -> None:
    """Refuse weights that are not finite real numbers.

    Args:
        state: Tensors by name. Integers may have any value; floats must be finite as float32.
        name: Of their file, for the message.
        remedy: What the user can do, for the message.
        error: The kind of error to raise.

    Raises:
        WeightsError: An entry is no dense tensor of real numbers, or holds NaN or infinity; or ``error``, where given.
    """
    for key, value in state.items():
        tensor = _plain(key, value, name, remedy, error)
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.detach().float()).all()):
            raise error(
                f"{name} holds NaN or infinity (first: {ascii(key)[:80]}), which no network can compute with; {remedy}"
            )


def refuse_other_shapes(state: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str, remedy: str) -> None:
    """Refuse weights that do not fit a network: names and shapes must be equal, floats may have any width.

    Args:
        state: Tensors by name, from a file.
        own: The network's.
        name: Of the file, for the message.
        remedy: What the user can do.

    Raises:
        WeightsError: They differ.
    """
    if not isinstance(state, Mapping):
        raise WeightsError(f"{name} holds no tensors by name; {remedy}")
    if different := sorted(map(str, own.keys() ^ state.keys())):
        has = "lacks" if different[0] in own else "holds the unknown"
        raise WeightsError(f"{name} {has} part {ascii(different[0])[:80]} ({len(different)} differ); {remedy}")
    for key, tensor in state.items():
        _plain(key, tensor, name, remedy, WeightsError)
        is_other_kind = tensor.dtype != own[key].dtype and not (
            tensor.is_floating_point() and own[key].is_floating_point()
        )
        if tensor.shape != own[key].shape or is_other_kind:
            raise WeightsError(
                f"{name} holds {key} of shape {tuple(tensor.shape)} and type {tensor.dtype}, expected "
                f"{tuple(own[key].shape)} and {own[key].dtype}; {remedy}"
            )


def _plain(key: str, value: object, name: str, remedy: str, error: type[AmsamError]) -> Tensor:
    """The value, if it is a dense tensor of real numbers whose entries do not share memory; otherwise an error.

    With a stride of 0, a few bytes of a checkpoint can claim to be a tensor of any size.
    """
    is_tensor = (
        isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_quantized or value.is_meta)
    )
    if not isinstance(value, Tensor) or not is_tensor or value.nbytes > value.untyped_storage().nbytes():
        raise error(f"{name} holds {ascii(key)[:80]}, which is no tensor of plain numbers; {remedy}")
    if value.is_complex() or (value.is_floating_point() and value.dtype not in _REAL):
        kind = f"of type {value.dtype}; expected floats of 16 to 64 bits"
        raise error(f"{name} holds {ascii(key)[:80]} {kind}; {remedy}")
    return value
