"""Good things, made once: bundles, weights and labelled images that cases damage copies of."""

from __future__ import annotations

import os
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from tests.small_bundle import INPUT_SIZE, write_small_bundle, write_tiny_bundle


class Kit:
    """What cases need, each made when it is first asked for.

    Args:
        root: An empty folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @cached_property
    def bundle(self) -> Path:
        """A bundle for small pictures, without a detector."""
        return write_small_bundle(self._root / "small")

    @cached_property
    def whole_bundle(self) -> Path:
        """A bundle with detector and configuration of trainings; ``base.safetensors`` is its base."""
        return write_tiny_bundle(self._root / "tiny")

    @cached_property
    def base(self) -> Path:
        """The base that the adapter belongs to."""
        return self.whole_bundle / "base.safetensors"

    @cached_property
    def detector(self) -> Path:
        """A detector that has learned nothing."""
        return self.whole_bundle / "models" / "detector.safetensors"

    @cached_property
    def adapter(self) -> Path:
        """An adapter of the base, as training leaves it."""
        return self.adapter_of()

    def adapter_of(self, name: str = "adapter", **settings: Any) -> Path:
        """An adapter of a network with other settings, on the same base."""
        from amsam_med.checkpoint import save_adapter
        from amsam_med.learn.levels import set_trainable
        from amsam_med.model import build_amsam

        path = self._root / f"{name}.safetensors"
        if not path.exists():
            network = build_amsam("tiny", **{"input_size": INPUT_SIZE, "base_weights": self.base, **settings})
            save_adapter(set_trainable(network), path, {"shots": 8, "epoch": 1, "d2_dice": 0.5})
        return path

    @cached_property
    def labelled(self) -> Path:
        """Six small pictures with masks: ``images/`` and ``masks/``."""
        folder, noise = self._root / "labelled", np.random.default_rng(0)
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True)
        for number in range(6):
            pixels = noise.integers(180, 256, (48, 64, 3), dtype=np.uint8)
            mask = np.zeros((48, 64), np.uint8)
            mask[10 + number : 36, 14 : 50 - number] = 255
            pixels[mask > 0] //= 3
            PIL.Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
            PIL.Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
        return folder

    @cached_property
    def package(self) -> Path:
        """A copy of the package and its bundles, to be damaged; ``PYTHONPATH`` for a process of its own."""
        top = Path(__file__).resolve().parents[2]
        folder = self._root / "package"
        for name in ("amsam_med", "bundles"):
            shutil.copytree(top / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        return folder

    def copy_of_package(self, target: Path) -> Path:
        """Another copy of it, with hard links to what nobody changes in place."""
        shutil.copytree(self.package, target, copy_function=os.link)
        return target
