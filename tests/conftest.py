"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock

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
def ray_lock(tmp_path_factory: pytest.TempPathFactory) -> FileLock:
    """To be held where Ray runs: clusters of one machine find each other, and `make test` has several processes."""
    return FileLock(tmp_path_factory.getbasetemp().parent / "ray.lock")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle like ``amsam_isic`` with random weights at 64 pixels; its base is ``base.safetensors`` in its folder."""
    from tests.small_bundle import write_tiny_bundle

    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny_bundle", TINY_SIZE)


@pytest.fixture(scope="session")
def labelled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small synthetic dermoscopy images with masks."""
    from amsam_med.synthetic import write_dermoscopy

    folder = tmp_path_factory.mktemp("labelled")
    write_dermoscopy(folder, 6, seed=0, size=(72, 96))
    return folder
