"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# The same examples on every machine, and no deadline: a test may run beside a training.
hypothesis.settings.register_profile("amsam", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("amsam")


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
