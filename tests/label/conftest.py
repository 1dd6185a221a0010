"""A running MONAI Label server; where MONAI Label is not installed, nothing of this folder is collected."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from amsam_med.synthetic import write_dermoscopy
from pipelines.monailabel.process import Server

collect_ignore_glob = [] if importlib.util.find_spec("monailabel") else ["test_*.py"]


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., Server]]:
    """Start servers; all are stopped when the tests end."""
    servers: list[Server] = []

    def start(studies: Path | str, *options: str, **given: Any) -> Server:
        servers.append(Server(studies, *options, **given))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn lesions: ``images/`` and ``masks/``."""
    folder = tmp_path_factory.mktemp("drawn")
    write_dermoscopy(folder, 6, seed=3)
    return folder


@pytest.fixture(scope="session")
def server(serve: Callable[..., Server], drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server over six drawn lesions, none of them labelled, with the shipped model."""
    studies = tmp_path_factory.mktemp("served") / "studies"
    shutil.copytree(drawn / "images", studies)
    return serve(studies, "--models", "amsam_isic")
