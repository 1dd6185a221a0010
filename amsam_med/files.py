"""Files on disk: atomic writing, also of JSON; removal of what killed writers left; hashing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{8}(\.\w+)?", re.DOTALL)


@contextmanager
def atomic_path(path: str | PathLike[str]) -> Iterator[Path]:
    """Lend a name beside ``path`` to write to; it becomes ``path`` when the block ends without an error.

    Readers see the old file or the whole new one. Missing folders are made; a failed block leaves nothing behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, as libraries choose the format by it.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(
    path: str | PathLike[str],
    content: Mapping[str, Any],
    *,
    sort_keys: bool = False,
    default: Callable[[Any], Any] | None = None,
) -> None:
    """Write values by name as indented JSON with a line end, as a whole or not at all.

    Args:
        path: The file.
        content: What JSON can hold, or ``default`` can turn into it.
        sort_keys: Names in alphabetical order, for files that are compared.
        default: Turns what JSON cannot hold into what it can.

    Raises:
        TypeError: A value is none of JSON's, and ``default`` is None.
    """
    text = json.dumps(content, indent=2, sort_keys=sort_keys, default=default)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def is_unfinished(name: str) -> bool:
    """Whether a file's name is a temporary one of :func:`atomic_path`."""
    return _TEMPORARY_NAME.fullmatch(name) is not None


def sweep_unfinished(file: Path) -> None:
    """Remove what killed writers of ``file`` left beside it; call it only while no other process can write it.

    Args:
        file: A file written through :func:`atomic_path`, or by an earlier version through a name that ends ``.tmp``.
    """
    unfinished = re.compile(rf"\.{re.escape(file.name)}\.([0-9a-f]{{8}}{re.escape(file.suffix)}|\d+\.tmp)")
    if file.parent.is_dir():
        for path in file.parent.iterdir():
            if unfinished.fullmatch(path.name):
                path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """The sha256 of a file in hex; always reads the file, unlike :func:`amsam_med.weights.sha256`, which caches it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
