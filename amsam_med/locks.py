"""What one process holds alone: an output, or a folder of temporary files that goes with it.

Both rest on locks of open files, which the system lets go of when a process ends, however it ends.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from amsam_med.errors import ConfigError

_YOUNG_S = 60.0
"""Age up to which a temporary folder may be one whose maker has not locked it yet."""


@contextmanager
def held(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock file while the block runs; afterwards it is gone, and so are folders made for it that are empty.

    Args:
        lock: The file, beside or in what it stands for.
        what: What it stands for, for the message.

    Raises:
        ConfigError: Another process holds it.
        OSError: Its folder cannot be made or written to.
    """
    made = [folder for folder in lock.parents if not folder.exists()]  # the innermost first
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(lock, what):
            try:
                yield
            finally:
                with suppress(OSError):
                    lock.unlink()  # before it is let go: afterwards it may be another's
    finally:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def sweep_unfinished(file: Path) -> None:
    """Remove what killed writers of ``file`` left beside it; call it where the output is held.

    Args:
        file: A file written by :func:`amsam_med.data.writers.atomic_path` or
            :func:`amsam_med.detect.files.replace_file`.
    """
    unfinished = re.compile(rf"\.{re.escape(file.name)}\.([0-9a-f]{{8}}{re.escape(file.suffix)}|\d+\.tmp)")
    if file.parent.is_dir():
        for path in file.parent.iterdir():
            if unfinished.fullmatch(path.name):
                path.unlink(missing_ok=True)


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A folder for temporary files that is gone after the block; that of a killed process goes with the next call.

    Args:
        prefix: Start of its name, which tells whose it is.
    """
    _sweep(prefix)
    with tempfile.TemporaryDirectory(prefix=prefix) as folder, FileLock(Path(folder) / ".lock", blocking=False):
        yield Path(folder)


def _locked(lock: Path, what: str) -> AbstractContextManager[object]:
    try:
        return FileLock(lock, blocking=False).acquire()
    except Timeout:
        raise ConfigError(f"another process is writing {what}; wait until it is done, or give another output") from None


def _sweep(prefix: str) -> None:
    """Remove this user's folders of that prefix which nobody holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError, Timeout):
            facts = folder.lstat()  # a link of that name is none of ours
            is_own = stat.S_ISDIR(facts.st_mode) and (not hasattr(os, "geteuid") or facts.st_uid == os.geteuid())
            if is_own and time.time() - facts.st_mtime > _YOUNG_S:
                with FileLock(folder / ".lock", blocking=False):
                    shutil.rmtree(folder, ignore_errors=True)
