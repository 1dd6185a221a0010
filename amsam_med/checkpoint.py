"""Trained parts on disk: adapters (small, safetensors) and whole models (a bundle's ``model.pt``).

An adapter holds what few-shot training changed (LoRA, the prompt embedding A, the decoder's unfrozen parts and a
learned calibration) and, in its header, the settings of its network and the sha256 of the base it was trained on.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from amsam_med.data.writers import atomic_path
from amsam_med.errors import WeightsError
from amsam_med.learn.levels import trainable_state
from amsam_med.model import AmSam
from amsam_med.model.lora import LoraLinear, adapted_weight

FORMAT = "amsam-adapter-1"


def frozen_digest(network: AmSam) -> str:
    """sha256 of all frozen parameters and buffers: what an adapter was trained on top of."""
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
        record: Anything JSON can hold about the run (bundle, shots, seed, Dice on D2); kept in the header.
        base_digest: The network's :func:`frozen_digest` where the caller knows it; a large base takes a second to read.
    """
    header = {
        "format": FORMAT,
        "settings": json.dumps(network.settings),
        "base_digest": base_digest or frozen_digest(network),
        "record": json.dumps(record or {}),
    }
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in trainable_state(network).items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(state, header))  # save_file would make a file that only its owner can read


def read_adapter(path: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The header of an adapter: its network's settings, its run's record, and the digest of its base.

    Raises:
        WeightsError: The file is missing, damaged, or not an adapter.
    """
    header = _open_adapter(path)[1]
    return json.loads(header["settings"]), json.loads(header["record"]), header["base_digest"]


def load_adapter(network: AmSam, path: Path) -> None:
    """Put an adapter into a network built with the adapter's settings on the adapter's base.

    Raises:
        WeightsError: The adapter is missing or damaged, or the network's settings or base differ from its own.
    """
    state, header = _open_adapter(path)
    settings = json.loads(header["settings"])
    different = sorted(key for key in settings if settings[key] != network.settings.get(key))
    if different:
        raise WeightsError(
            f"{path.name} was trained with "
            + ", ".join(f"{key}={settings[key]!r} (this network: {network.settings.get(key)!r})" for key in different)
            + "; build the network with the adapter's settings"
        )
    if header["base_digest"] != frozen_digest(network):
        raise WeightsError(
            f"{path.name} was trained on other weights of base {settings['base']!r} than the ones in use; "
            "use the base it was trained on, or train the adapter again"
        )
    own = trainable_state(network)
    if own.keys() != state.keys():
        name = sorted(own.keys() ^ state.keys())[0]
        raise WeightsError(f"{path.name} holds other parts than this network trains (first: {name}); train it again")
    network.load_state_dict({**network.state_dict(), **state})


def save_model(network: nn.Module, path: Path) -> None:
    """Write a whole network as a MONAI bundle's ``model.pt``: fp16 tensors under the key ``model``; atomic."""
    state = {name: tensor.detach().cpu().half() for name, tensor in network.state_dict().items()}
    with atomic_path(path) as temporary:
        torch.save({"model": state}, temporary)


def load_model(network: nn.Module, path: Path) -> None:
    """Load a bundle's ``model.pt``, strictly and without running anything that the file may hold.

    Raises:
        WeightsError: The file is missing, damaged, or of another network.
    """
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; train the bundle first, or fetch its weights")
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model"])
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(
            f"{path} does not hold this network ({reason}); fetch it again or train the bundle"
        ) from error


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


def _open_adapter(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise WeightsError(f"adapter {path} does not exist; `amsam train` writes one as RUN/adapter.safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except Exception as error:
        raise WeightsError(f"{path.name} cannot be read as an adapter ({error}); copy or train it again") from error
    if header.get("format") != FORMAT:
        raise WeightsError(
            f"{path.name} is a weight file of another kind (format {header.get('format')!r}, expected {FORMAT!r}); "
            "give the adapter.safetensors of an `amsam train` run"
        )
    return state, header
