"""Weights as they come from files: one bounded way to open a file of tensors, and what a network may be given of it."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from amsam_med.errors import WeightsError

HEADER_LIMIT = 2**20
"""The longest header of a safetensors file that is read, in bytes; ours have some 30,000."""
_LENGTH_BYTES = 8  # a safetensors file begins with the length of its header


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
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would never end
            raise WeightsError(f"{path.name} is not a regular file; {remedy}")
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if not 0 < length <= min(HEADER_LIMIT, status.st_size):
            raise WeightsError(
                f"{path.name} cannot be read as safetensors (a header of {length:,} bytes, a file of "
                f"{status.st_size:,}; at most {HEADER_LIMIT:,} are read); {remedy}"
            )
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            names = () if header_only else file.keys()
            state = {name: file.get_tensor(name) for name in names}
    except WeightsError:
        raise
    except Exception as error:  # safetensors' own, the system's, and torch's of types that it does not know
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path.name} cannot be read as safetensors ({reason}); {remedy}") from None
    refuse_non_finite(state, path.name)
    return state, header


def refuse_non_finite(state: Mapping[str, object], name: str) -> None:
    """Let only weights pass that a network can compute with.

    Args:
        state: Tensors by name.
        name: Of their file, for the message.

    Raises:
        WeightsError: An entry is no tensor, or holds NaN or infinity.
    """
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise WeightsError(f"{name} holds {ascii(key)[:80]}, which is no tensor; fetch the file again")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise WeightsError(
                f"{name} holds NaN or infinity (first: {ascii(key)[:80]}), which no network can compute with; "
                "fetch the file again, or train it again with a smaller rate"
            )


def refuse_other_shapes(state: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str, remedy: str) -> None:
    """Let only weights pass that are those of a network: the same names and shapes, floats where it has floats.

    Args:
        state: Tensors by name, from a file.
        own: The network's.
        name: Of the file, for the message.
        remedy: What the user can do.

    Raises:
        WeightsError: They differ.
    """
    if different := sorted(own.keys() ^ state.keys()):
        has = "lacks" if different[0] in own else "holds the unknown"
        raise WeightsError(f"{name} {has} part {ascii(different[0])[:80]} ({len(different)} differ); {remedy}")
    for key, tensor in state.items():
        if tensor.shape != own[key].shape or tensor.is_floating_point() != own[key].is_floating_point():
            raise WeightsError(
                f"{name} holds {key} of shape {tuple(tensor.shape)} and type {tensor.dtype}, expected "
                f"{tuple(own[key].shape)} and {own[key].dtype}; {remedy}"
            )
