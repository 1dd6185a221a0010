"""An output that one process holds alone, by the lock of an open file: the system lets go of it when a process ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from amsam_med.errors import ConfigError
from amsam_med.files import sweep_unfinished as sweep_unfinished


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


def _locked(lock: Path, what: str) -> AbstractContextManager[object]:
    try:
        return FileLock(lock, blocking=False).acquire()
    except Timeout:
        raise ConfigError(f"another process is writing {what}; wait until it is done, or give another output") from None
