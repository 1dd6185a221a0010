"""Exclusive use of an output by one process, through a lock on an open file, which the system frees when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from amsam_med.errors import ConfigError
from amsam_med.files import sweep_unfinished as sweep_unfinished


@contextmanager
def held(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock file while the block runs; afterwards the file, and empty folders created for it, are removed.

    Args:
        lock: The file, beside or inside the output.
        what: The output, for the message.

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
                    lock.unlink()  # before it is unlocked: afterwards it may be another process's
    finally:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def _locked(lock: Path, what: str) -> AbstractContextManager[object]:
    try:
        return FileLock(lock, blocking=False).acquire()
    except Timeout:
        raise ConfigError(f"another process is writing {what}; wait until it is done, or give another output") from None
