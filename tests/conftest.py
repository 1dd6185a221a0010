"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import hypothesis
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# The same examples on every machine, and no deadline: a test may run beside a training.
hypothesis.settings.register_profile("amsam", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("amsam")

# A shell that starts the tests in the background has them ignore Ctrl-C, and what they start as well.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that read real images, and run them last."""
    for item in items:
        if "data_root" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real_images)
    items.sort(key=lambda item: item.get_closest_marker("real_images") is not None)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The data folder with real images; tests that need it are skipped where it is missing."""
    root = Path(os.environ.get("AMSAM_DATA", REPOSITORY.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"real images not found at {root}; set AMSAM_DATA to the data folder")
    return root


TINY_SIZE = 64
"""Side of the model input in tests, in pixels."""


@pytest.fixture(scope="session", autouse=True)
def own_settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A settings folder for the tests, in which trust in their bundles is remembered; processes inherit it."""
    folder = tmp_path_factory.mktemp("settings")
    os.environ["XDG_CONFIG_HOME"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle like ``amsam_isic`` with random weights at 64 pixels; its base is ``base.safetensors`` in its folder."""
    import torch
    from safetensors.torch import save_file

    from amsam_med.checkpoint import save_model
    from amsam_med.detect.yolo import YoloDetector, save_detector
    from amsam_med.model import build_amsam
    from amsam_med.trust import trust

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("bundle") / "tiny_bundle"
    shutil.copytree(REPOSITORY / "bundles" / "amsam_isic" / "configs", root / "configs")
    base = build_amsam("tiny", input_size=TINY_SIZE, rank=0, calibration="none")
    save_file(base.state_dict(), root / "base.safetensors")
    network = build_amsam("tiny", input_size=TINY_SIZE, base_weights=root / "base.safetensors")
    save_model(network, root / "models" / "model.pt")
    detector = YoloDetector(input_size=TINY_SIZE, min_confidence=0)  # it has learned nothing, and is sure of nothing
    save_detector(detector, root / "models" / "detector.safetensors")
    for name in ("inference.yaml", "train.yaml"):
        config = root / "configs" / name
        text = config.read_text().replace("input_size: 256", f"input_size: {TINY_SIZE}")
        config.write_text(text.replace("'$str(amsam_med.weights.find(@base))'", str(root / "base.safetensors")))
    trust(root)
    return root


@pytest.fixture(scope="session")
def labelled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small synthetic dermoscopy images with masks."""
    from amsam_med.synthetic import write_dermoscopy

    folder = tmp_path_factory.mktemp("labelled")
    write_dermoscopy(folder, 6, seed=0, size=(72, 96))
    return folder
