"""The commands that documents and docstrings state."""

from __future__ import annotations

import re

from tests.conftest import REPOSITORY

PLACES = ("*.md", "docs/**/*.md", "bundles/*/docs/README.md", "pipelines/**/*.py", "benchmarks/**/*.py")


def test_every_stated_command_names_a_module() -> None:
    files = {file for place in PLACES for file in REPOSITORY.glob(place) if file.name != "CHANGELOG.md"}
    stated = [
        (file.name, name)
        for file in files
        for name in re.findall(r"python -m ((?:pipelines|benchmarks)(?:\.\w+)+)", file.read_text(encoding="utf-8"))
    ]
    assert len(stated) > 80
    assert [(file, name) for file, name in stated if not (REPOSITORY / f"{name.replace('.', '/')}.py").is_file()] == []
    assert [file.name for file in files if re.search(r"python (pipelines|benchmarks)/", file.read_text("utf-8"))] == []
