"""Checkpoints of interrupted runs, read as data and compared with the run that is to be continued.

A run folder may come from somebody else. No code in its checkpoint is run, nothing is unpacked beyond the file's own
size, and no state is loaded into a part that it does not fit.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from amsam_med.errors import WeightsError
from amsam_med.schema import Record, checked
from amsam_med.tensors import refuse_non_finite, refuse_other_shapes

REMEDY = "delete the file, and --resume begins with the first epoch again"
_LARGEST_NUMBER = 2**53
_SPARE_BYTES, _COPIES = 2**26, 16
"""A checkpoint holds the trained weights, two moments of each, and a history: three copies and a little."""


class Epoch(Record):
    """A row of the history.

    Attributes:
        epoch: Counted from 1.
        lower_loss: Mean loss on D1.
        upper_loss: Mean loss on D2; NaN where nothing trains the upper level.
        d2_dice: Dice on D2 after the epoch, in [0, 1].
        lower_rate: The lower level's learning rate after the epoch.
    """

    epoch: PositiveInt
    lower_loss: float
    upper_loss: Annotated[float, Field(allow_inf_nan=True)]
    d2_dice: Annotated[float, Field(ge=0, le=1)]
    lower_rate: NonNegativeFloat


class History(Record):
    """The state of a run's recorder."""

    history: list[Epoch]


class Progress(Record):
    """The state of a run's trainer, as ignite keeps it: all counted over the whole run."""

    epoch_length: PositiveInt
    iteration: PositiveInt
    max_epochs: PositiveInt


def read_checkpoint(path: Path, parts: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """The states in a checkpoint, each known to fit its part.

    Args:
        path: The file.
        parts: What is to be restored, by name: ``"adapter"`` has only tensors, ``"trainer"`` is the engine, and
            ``"record"`` has a history; all others are optimisers, schedulers and the like. Each is in its state at the
            start of the run.
        epochs: The run's number of epochs.

    Returns:
        A state for each part, for its ``load_state_dict``.

    Raises:
        WeightsError: The file is damaged, holds more than plain values and tensors, or is of another run.
    """
    own = {name: part.state_dict() for name, part in parts.items()}
    limit = _SPARE_BYTES + _COPIES * sum(tensor.nbytes for tensor in own["adapter"].values())
    state = _load(path, limit)
    _refuse_other_keys(path, "", state, own)
    _refuse_other_tensors(path, state["adapter"], own["adapter"])
    for name in own.keys() - {"adapter", "record", "trainer"}:
        if isinstance(parts[name], torch.optim.Optimizer):
            _refuse_other_optimizer(path, name, state[name], own[name], parts[name])
        else:
            _refuse_other_values(path, name, state[name], own[name])
    progress = checked(Progress, dict(state["trainer"]), str(path), REMEDY, WeightsError)
    history = checked(History, dict(state["record"]), str(path), REMEDY, WeightsError).history
    done, rest = divmod(progress.iteration, progress.epoch_length)
    if (
        rest
        or progress.max_epochs != epochs
        or done > epochs
        or [row.epoch for row in history] != [*range(1, done + 1)]
    ):
        got = f"{progress.iteration} steps of {progress.epoch_length} an epoch, and a history of {len(history)} epochs"
        raise _fault(path, f"{got} in a run of {epochs}")
    return state


def _load(path: Path, limit: int) -> dict[str, Any]:
    """The content of a file that torch wrote, of at most ``limit`` bytes."""
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise _fault(path, f"more than {limit:,} bytes, which no checkpoint of this run has")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch packs nothing; what is packed may be a bomb
            members = archive.infolist()
            is_plain = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not is_plain or sum(member.file_size for member in members) > len(content):
            raise _fault(path, "packed otherwise than torch does")
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # of torch, pickle and zip alike: what a damaged file leads to is without end
        raise _fault(path, "damaged, or it holds other things than numbers") from error
    return state


def _refuse_other_optimizer(path: Path, name: str, got: Any, own: Any, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimiser's state that does not fit: its groups must equal ours, its tensors the parameters' shapes.

    Our own optimiser has no state per parameter before its first step, so it cannot be compared with that.
    """
    _refuse_other_keys(path, name, got, own)
    _refuse_other_values(path, f"{name}.param_groups", got["param_groups"], own["param_groups"])
    parameters: list[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not isinstance(got["state"], dict):
        raise _fault(path, f"{name}.state is no dictionary")
    for index, kept in got["state"].items():
        if type(index) is not int or not 0 <= index < len(parameters) or not isinstance(kept, dict):
            raise _fault(
                path, f"{name}.state has an entry {_short(index)}; expected numbers of {len(parameters)} tensors"
            )
        tensors = {f"{name}.state.{index}.{_short(key)}": value for key, value in kept.items()}
        refuse_non_finite(tensors, str(path), REMEDY)
        for key, value in tensors.items():
            if value.shape not in ((), parameters[index].shape):
                shapes = f"{tuple(value.shape)}; expected {tuple(parameters[index].shape)}"
                raise _fault(path, f"{key} has the shape {shapes}")


def _refuse_other_values(path: Path, where: str, got: Any, own: Any) -> None:
    """Refuse values that differ from ours in kind or structure, or are not finite.

    The recursion follows our values, not the file's, whose nesting may have any depth.
    """
    if isinstance(own, Mapping):
        _refuse_other_keys(path, where, got, own)
        for key in own:
            _refuse_other_values(path, f"{where}.{key}", got[key], own[key])
    elif isinstance(own, list | tuple):
        if not isinstance(got, list | tuple) or len(got) != len(own):
            raise _fault(path, f"{where} is {_short(got)}; expected {len(own)} entries")
        for number, (one, ours) in enumerate(zip(got, own, strict=True)):
            _refuse_other_values(path, f"{where}.{number}", one, ours)
    elif isinstance(own, Tensor):
        _refuse_other_tensors(path, {where: got}, {where: own})
    elif isinstance(own, int | float) and not isinstance(own, bool):
        is_number = isinstance(got, int | float) and not isinstance(got, bool) and abs(got) <= _LARGEST_NUMBER
        if not is_number or not math.isfinite(got) or (isinstance(own, int) and not isinstance(got, int)):
            raise _fault(path, f"{where} is {_short(got)}; expected a number as {own!r}")
    elif type(got) is not type(own) or (isinstance(own, str) and got != own):
        raise _fault(path, f"{where} is {_short(got)}; expected {own!r}")


def _refuse_other_tensors(path: Path, got: Any, own: Mapping[str, Tensor]) -> None:
    refuse_other_shapes(got, own, str(path), REMEDY)
    refuse_non_finite(got, str(path), REMEDY)


def _refuse_other_keys(path: Path, where: str, got: Any, own: Mapping[str, Any]) -> None:
    if not isinstance(got, dict) or got.keys() != own.keys():
        names = ", ".join(map(_short, got)) if isinstance(got, dict) and len(got) <= len(own) + 1 else _short(got)
        place = f"{where} has" if where else "has"
        raise _fault(path, f"{place} the entries {names or 'none'}; expected {', '.join(map(str, own))}")


def _short(value: Any) -> str:
    if isinstance(value, str | int | float | bool | type(None)):
        text = repr(value) if not isinstance(value, int) or abs(value) <= _LARGEST_NUMBER else "a huge number"
        return text if len(text) <= 60 else f"{text[:57]}..."
    return f"a {type(value).__name__}"


def _fault(path: Path, what: str) -> WeightsError:
    return WeightsError(f"{path}: this checkpoint cannot be continued: {what}; {REMEDY}")
