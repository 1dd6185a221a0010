"""Trained parts on disk: adapters (small, safetensors) and whole models (a bundle's ``model.pt``).

An adapter holds what few-shot training changed (LoRA, the prompt embedding A, the decoder's unfrozen parts and a
learned calibration) and, in its header, the settings of its network and the sha256 of the base it was trained on.

Adapters are sent from person to person, so they are treated as data: a header's entries must have the types and ranges
of :class:`AdapterSettings` and :class:`AdapterRecord`, with no others, before anything is built from them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, StringConstraints
from safetensors.torch import save
from torch import Tensor, nn

from amsam_med.boxes import BoxChoice
from amsam_med.errors import ConfigError, WeightsError
from amsam_med.files import atomic_path
from amsam_med.learn.hypergradient import Hypergradient
from amsam_med.learn.levels import trainable_state
from amsam_med.model import AmSam
from amsam_med.model.build import Adapted, BaseName
from amsam_med.model.calibration import CalibrationMode
from amsam_med.model.lora import LoraLinear, adapted_weight
from amsam_med.model.prompt import PromptKind
from amsam_med.schema import Record, Sha256, checked
from amsam_med.tensors import read_pickled, read_tensors, refuse_non_finite, refuse_other_shapes
from amsam_med.views import ViewKind

FORMAT = "amsam-adapter-1"
_REMEDY = "give the adapter.safetensors of an `amsam train` run, copy it again, or train it again"

Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, le=1e6)]
Count = Annotated[int, Field(ge=0, le=2**31)]
FolderName = Annotated[str, StringConstraints(pattern=r"^[^/\\\x00-\x1f\x7f]{1,255}$")]


class AdapterSettings(Record):
    """The network of an adapter: arguments of :func:`amsam_med.model.build_amsam`."""

    base: BaseName
    num_classes: Annotated[int, Field(ge=1, le=254)]
    input_size: Annotated[int, Field(ge=16, le=2048)]
    rank: Annotated[int, Field(ge=0, le=256)]
    calibration: CalibrationMode
    alpha: Share
    prompt: PromptKind
    adapts: Adapted = "decoder"
    """Adapters written before it was introduced have none."""


class AdapterRecord(Record):
    """The record of an adapter's training. Nothing is built from it; the bundle is a name to compare, never a path."""

    bundle: FolderName | None = None
    bundle_sha256: Sha256 | None = None
    detector_sha256: Sha256 | None = None
    shots: Count | None = None
    seed: Count | None = None
    epochs: Count | None = None
    batch_size: Count | None = None
    lower_rate: Rate | None = None
    upper_rate: Rate | None = None
    encoder_rate: Rate | None = None
    neck_rate: Rate | None = None
    """The encoder's rate in adapters written before it could be more than the neck."""
    weight_decay: Rate | None = None
    pull: Rate | None = None
    lambda_dice: Share | None = None
    squared_pred: bool | None = None
    hypergradient: Hypergradient | None = None
    views: ViewKind | None = None
    box_jitter: Share | None = None
    box_dropout: Share | None = None
    box_choice: BoxChoice | None = None
    halves: bool | None = None
    epoch: Count | None = None
    d2_dice: Share | None = None


class _AdapterHeader(Record):
    format: Literal["amsam-adapter-1"]
    settings: Annotated[str, StringConstraints(max_length=10_000)]
    record: Annotated[str, StringConstraints(max_length=10_000)]
    base_digest: Sha256
    state_sha256: Sha256 | None = None
    """Of the tensors; adapters written before it was introduced have none."""


def frozen_digest(network: AmSam) -> str:
    """sha256 of all frozen parameters and buffers, on which an adapter was trained."""
    trained = trainable_state(network).keys()
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if name not in trained:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_adapter(
    network: AmSam, path: Path, record: dict[str, Any] | None = None, base_digest: str | None = None
) -> None:
    """Write what training changed.

    Args:
        network: The trained network.
        path: Target, ``.safetensors``; replaced atomically.
        record: Entries of :class:`AdapterRecord`; kept in the header.
        base_digest: The network's :func:`frozen_digest` where the caller knows it; a large base takes a second to read.

    Raises:
        ConfigError: The record has other entries.
        WeightsError: A weight is NaN or infinite; the file is as it was.
    """
    checked(AdapterRecord, record or {}, "the record of an adapter", "leave the entry out", ConfigError)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in trainable_state(network).items()}
    refuse_non_finite(state, path.name)
    header = {
        "format": FORMAT,
        "settings": json.dumps(network.settings),
        "base_digest": base_digest or frozen_digest(network),
        "record": json.dumps(record or {}),
        "state_sha256": _state_digest(state),
    }
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(state, header))  # save_file would create a file that only its owner can read


def read_adapter(path: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The header of an adapter: its network's settings, its run's record, and the digest of its base.

    The settings are all those of :class:`AdapterSettings`; of the record's entries there are those that were written.

    Raises:
        WeightsError: The file is missing, damaged, not an adapter, or has a header that is not valid.
    """
    settings, record, header = _parsed(path, _open_adapter(path, header_only=True)[1])
    return settings.model_dump(), record.model_dump(exclude_unset=True), header.base_digest


def load_adapter(network: AmSam, path: Path) -> None:
    """Put an adapter into a network built with the adapter's settings on the adapter's base.

    Raises:
        WeightsError: The adapter is missing or damaged, or the network's settings or base differ from its own.
    """
    state, entries = _open_adapter(path)
    parsed, _, header = _parsed(path, entries)
    settings = parsed.model_dump()
    different = sorted(key for key in settings if settings[key] != network.settings.get(key))
    if different:
        raise WeightsError(
            f"{path.name} was trained with "
            + ", ".join(f"{key}={settings[key]!r} (this network: {network.settings.get(key)!r})" for key in different)
            + "; build the network with the adapter's settings"
        )
    if header.base_digest != (in_use := frozen_digest(network)):
        raise WeightsError(
            f"{path.name} was trained on other weights of base {settings['base']!r} than the ones in use (digests "
            f"{header.base_digest[:12]} and {in_use[:12]}); give the file of its base, which came with the version of "
            "amsam-med that trained it, as --base-weights, or train the adapter again"
        )
    refuse_other_shapes(state, trainable_state(network), path.name, "train it again")
    if header.state_sha256 not in (None, _state_digest(state)):
        raise WeightsError(f"{path.name} is damaged: its weights are not those that were written; {_REMEDY}")
    network.load_state_dict({**network.state_dict(), **state})


def save_model(network: nn.Module, path: Path) -> None:
    """Write a whole network as a MONAI bundle's ``model.pt``: fp16 tensors by name; atomic."""
    state = {name: tensor.detach().cpu().half() for name, tensor in network.state_dict().items()}
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_model(network: nn.Module, path: Path) -> None:
    """Load a bundle's ``model.pt``, strictly and without running anything that the file may hold.

    Raises:
        WeightsError: The file is missing, damaged, or of another network.
    """
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; give an adapter of the bundle (--adapter), or fetch its weights")
    what = f"{path} does not hold this network: it"
    content = read_pickled(path, "fetch it again or train the bundle")
    state = content.get("model", content) if isinstance(content, dict) else None  # older files have the key
    if not isinstance(state, dict):
        raise WeightsError(f"{what} has no tensors by name; fetch it again or train the bundle")
    refuse_other_shapes(state, network.state_dict(), what, "fetch it again")
    refuse_non_finite(state, str(path))
    network.load_state_dict(state)


def merge_lora(network: AmSam) -> AmSam:
    """Fold every LoRA into its weight (Eq. 3), in place: the same function in plain layers, e.g. for export."""
    for module in list(network.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, LoraLinear):
                plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
                with torch.no_grad():
                    plain.weight.copy_(adapted_weight(layer.weight, layer.lora_a, layer.lora_b))
                plain.bias = layer.bias
                setattr(module, name, plain)
    network.settings["rank"] = 0
    return network


class Adapter:
    """The trained parts of a network as one thing to save and restore, for MONAI's checkpoint handlers.

    Args:
        network: The network whose trained parts are meant.
    """

    def __init__(self, network: AmSam) -> None:
        self.network = network

    def state_dict(self) -> dict[str, Tensor]:
        """Name to tensor of all trained parts."""
        return trainable_state(self.network)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put trained parts back."""
        self.network.load_state_dict({**self.network.state_dict(), **state})


def _open_adapter(path: Path, header_only: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.exists():
        raise WeightsError(f"adapter {path} does not exist; `amsam train` writes one as RUN/adapter.safetensors")
    state, header = read_tensors(path, _REMEDY, header_only)
    if header.get("format") != FORMAT:
        raise WeightsError(
            f"{path.name} is a weight file of another kind (format {ascii(header.get('format'))[:80]}, expected "
            f"{FORMAT!r}); give the adapter.safetensors of an `amsam train` run"
        )
    return state, header


def _parsed(path: Path, entries: dict[str, str]) -> tuple[AdapterSettings, AdapterRecord, _AdapterHeader]:
    name = path.name
    header = checked(_AdapterHeader, dict(entries), f"{name}, its header", _REMEDY, WeightsError)
    settings = checked(AdapterSettings, header.settings, f"{name}, its settings", _REMEDY, WeightsError)
    return settings, checked(AdapterRecord, header.record, f"{name}, its record", _REMEDY, WeightsError), header


def _state_digest(state: dict[str, Tensor]) -> str:
    """sha256 of tensors: their names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
