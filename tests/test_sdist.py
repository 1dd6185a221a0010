"""The source archive is whole: whoever has nothing else can read, check and test the project."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

builder = pytest.importorskip("hatchling.builders.sdist", reason="hatchling is not installed; it comes with `dev`")
LEFT_OUT = ("*/__pycache__/*", "*.pyc")


@pytest.fixture(scope="module")
def packed() -> set[str]:
    """Paths in the archive, below its one folder."""
    return {file.distribution_path for file in builder.SdistBuilder(str(REPOSITORY)).recurse_included_files()}


def files_of(folder: str) -> Iterator[str]:
    for path in sorted((REPOSITORY / folder).rglob("*")):
        name = path.relative_to(REPOSITORY).as_posix()
        if path.is_file() and not any(fnmatch(name, pattern) for pattern in LEFT_OUT):
            yield name


@pytest.mark.parametrize("folder", ["amsam_med", "benchmarks", "bundles", "docs", "pipelines", "tests", ".ci"])
def test_the_archive_holds_every_file_of(folder: str, packed: set[str]) -> None:
    files = set(files_of(folder))
    assert files
    assert files <= packed


def test_the_archive_holds_what_builds_and_explains_it(packed: set[str]) -> None:
    names = {"CHANGELOG.md", "CONTRIBUTING.md", "Makefile"}  # README.md, LICENSE and pyproject.toml come of themselves
    assert names <= packed
    assert {Path(file).parts[0] for file in packed} <= names | {
        *("amsam_med", "benchmarks", "bundles", "docs", "pipelines", "tests"),
        *(".ci", ".gitignore"),
    }
    assert not any(fnmatch(file, pattern) for file in packed for pattern in LEFT_OUT)
