from __future__ import annotations

from importlib import metadata
from pathlib import Path

import click
import pytest
import skimage.data
import timm
import torch
from torch.nn import functional

from pipelines.weights import imagenet

EGYPTIAN_CAT, ESPRESSO = 285, 967
"""Of ImageNet's thousand classes."""


@pytest.mark.parametrize("name", imagenet.SHA256)
@pytest.mark.parametrize(("picture", "expected"), [("chelsea", EGYPTIAN_CAT), ("coffee", ESPRESSO)])
def test_the_weights_know_what_a_picture_shows(name: str, picture: str, expected: int) -> None:
    network = timm.create_model(name).eval()
    imagenet.load_imagenet_weights(network, name)
    pixels = torch.from_numpy(getattr(skimage.data, picture)()).permute(2, 0, 1)[None].float() / 255
    image = functional.interpolate(pixels, (256, 256), mode="bilinear", antialias=True)
    with torch.no_grad():
        chances = network((image - 0.5) / 0.5).softmax(dim=1)[0]
    assert int(chances.argmax()) == expected
    assert float(chances[expected]) > 0.5


def test_a_network_without_weights_and_a_missing_package_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(click.ClickException, match="no ImageNet weights of 'repvit_m0_9'"):
        imagenet.imagenet_state("repvit_m0_9")

    def not_installed(package: str) -> None:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "files", not_installed)
    with pytest.raises(click.ClickException, match=r"amsam-med\[pretrain\]"):
        imagenet.imagenet_state("tf_efficientnet_lite0")


def test_another_file_than_the_known_one_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "other.pth").write_bytes(b"something else")
    monkeypatch.setattr(imagenet, "_file_of", lambda name: tmp_path / "other.pth")
    with pytest.raises(click.ClickException, match="sha256"):
        imagenet.imagenet_state("tf_efficientnet_lite0")
