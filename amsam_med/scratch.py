"""Temporary folders for copies of images, which are removed even after a process was killed.

Each process has one folder at a time and holds a lock on it, which ends with the process, however that ends. So later
processes recognise abandoned folders and remove them.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from amsam_med.errors import DataError

if sys.platform != "win32":
    import fcntl

MORE_ROOM = "Make room in the system's temporary folder, or name another one in the environment variable TMPDIR"

_PREFIX = "amsam-run-"

_lock = threading.Lock()
_folders: dict[tuple[int, str], tuple[str, int | None, int]] = {}  # by process and place: path, its lock, uses


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder for the block; before, folders of killed processes are removed.

    Raises:
        DataError: No temporary folder is writable.
    """
    try:
        key = os.getpid(), tempfile.gettempdir()
        with _lock:
            folder, held, uses = _folders.get(key) or (*_made(key[1]), 0)
            _folders[key] = folder, held, uses + 1
        own = tempfile.mkdtemp(dir=folder)
    except OSError as error:
        raise DataError(f"no temporary folder ({error.strerror or error}). {MORE_ROOM}") from None
    try:
        yield Path(own)
    finally:
        shutil.rmtree(own, ignore_errors=True)
        with _lock:
            folder, held, uses = _folders.pop(key)
            if uses > 1:
                _folders[key] = folder, held, uses - 1
            else:
                shutil.rmtree(folder, ignore_errors=True)
                if held is not None:
                    os.close(held)


def sweep_scratch() -> None:
    """Delete the folders of killed processes of this user."""
    if sys.platform == "win32":  # no such locks there
        return
    with suppress(OSError):
        place = tempfile.gettempdir()
        for name in os.listdir(place):
            folder = Path(place, name)
            if not name.startswith(_PREFIX):
                continue
            with suppress(OSError):
                status = folder.lstat()
                if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                    held = _held(folder)
                    if held is not None:  # nobody else holds it any more
                        shutil.rmtree(folder, ignore_errors=True)
                        os.close(held)


def _made(place: str) -> tuple[str, int | None]:
    sweep_scratch()
    while True:
        folder = tempfile.mkdtemp(prefix=_PREFIX, dir=place)
        if sys.platform == "win32":
            return folder, None
        with suppress(FileNotFoundError):  # swept in the moment between
            if (held := _held(Path(folder))) is not None:
                if os.path.exists(folder):
                    return folder, held
                os.close(held)


def _held(folder: Path) -> int | None:
    """A lock on a folder; None if another process has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
