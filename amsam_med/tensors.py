"""Tensors from a file, looked at before a network takes them as weights.

A loader that accepts what fits by name and shape still accepts NaN, infinities, complex numbers, and values that become
infinite in the network's own precision; such a network answers every image with an empty mask.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from amsam_med.errors import AmsamError, WeightsError

_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What weights are kept in; 8-bit floats are compressed forms that our networks do not read."""


def refuse_non_finite(
    state: Mapping[str, Tensor],
    name: str,
    remedy: str = "fetch it again, or train it again",
    error: type[AmsamError] = WeightsError,
) -> None:
    """Refuse a state dict that holds anything but tensors of finite numbers.

    Args:
        state: Tensors by name. Integers and booleans may have any value; floats must be finite as float32, which is
            what networks compute in.
        name: Of the file, for the message.
        remedy: What the user can do, for the message.
        error: The kind of error to raise.

    Raises:
        WeightsError: An entry is no dense real tensor, or holds NaN or an infinity. Or ``error``, where given.
    """
    for key, tensor in state.items():
        _refuse_unplain(key, tensor, name, remedy, error)
        if tensor.is_floating_point() and not bool((is_finite := tensor.detach().float().isfinite()).all()):
            raise error(
                f"{name}: {int((~is_finite).sum()):,} of {tensor.numel():,} values of {key!r} are NaN or infinite; a "
                f"network with them answers nothing; {remedy}"
            )


def refuse_unlike(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    name: str,
    remedy: str = "give a file of this network",
    error: type[AmsamError] = WeightsError,
) -> None:
    """Refuse a state dict that is not, tensor by tensor, one of a given network, or holds a value that is not finite.

    Args:
        state: Tensors by name, from a file.
        expected: The network's own. Floats of a file may be wider or narrower than the network's, integers may not.
        name: As for :func:`refuse_non_finite`.
        remedy: As for :func:`refuse_non_finite`.
        error: As for :func:`refuse_non_finite`.

    Raises:
        WeightsError: Names, shapes or kinds of numbers differ, or see :func:`refuse_non_finite`.
    """
    if not isinstance(state, Mapping):
        raise error(f"{name}: holds no tensors by name; {remedy}")
    missing, unknown = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing or unknown:
        first = sorted(map(str, missing or unknown))[0]
        raise error(
            f"{name}: {len(missing)} tensors are missing and {len(unknown)} are unknown (first: {first!r}); {remedy}"
        )
    for key, tensor in state.items():
        own = expected[key]
        _refuse_unplain(key, tensor, name, remedy, error)
        if tensor.shape != own.shape:
            shapes = f"the shape {tuple(tensor.shape)}; expected {tuple(own.shape)}"
            raise error(f"{name}: {key!r} has {shapes}; {remedy}")
        if tensor.dtype != own.dtype and not (tensor.is_floating_point() and own.is_floating_point()):
            raise error(f"{name}: {key!r} holds {tensor.dtype} values; expected {own.dtype}; {remedy}")
    refuse_non_finite(state, name, remedy, error)


def _refuse_unplain(key: str, tensor: object, name: str, remedy: str, error: type[AmsamError]) -> None:
    """Refuse what is no dense tensor of real numbers, each with a place of its own in memory.

    A few bytes of a checkpoint may claim to be a tensor of any size, all of whose entries are the same number.
    """
    if (
        not isinstance(tensor, Tensor)
        or tensor.layout != torch.strided
        or tensor.is_quantized
        or tensor.is_meta
        or tensor.nbytes > tensor.untyped_storage().nbytes()
    ):
        raise error(f"{name}: {key!r} is not a plain tensor; {remedy}")
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype not in _REAL):
        raise error(f"{name}: {key!r} holds {tensor.dtype} values; expected floats of 16 to 64 bits; {remedy}")
