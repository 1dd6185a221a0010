"""Compressed files, unpacked onto disk instead of into memory, and only as far as they are needed.

All copies that exist at one time, in any thread, share a limit: a thread that needs room waits until other copies are
closed. The holder of a copy may itself be waiting for that thread, so waiting ends when nothing has been closed for a
while, and the copy is then made up to a second, larger limit.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from amsam_med.errors import DataError

TOGETHER_LIMIT = 2 << 30
"""Bytes that copies may have together; one that is larger waits until it is alone."""
STALLED_LIMIT = 8 << 30
"""Bytes that copies may have together where waiting has led to nothing."""
STALL_SECONDS = 20.0
"""How long nothing must have been closed before one who waits goes on."""

_BLOCK = 1 << 16  # bytes
_MOST_INFLATED = 1 << 20  # bytes at once; deflate turns one into a thousand at most
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Room:
    """The disk space that the copies of this process take."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._changed = threading.Condition()
        self.held = 0

    def take(self, size: int) -> None:
        """Wait for room.

        Raises:
            DataError: There is none, and will be none.
        """
        with self._changed:
            while self.held and self.held + size > TOGETHER_LIMIT:
                if self._changed.wait(STALL_SECONDS):
                    continue
                if self.held + size > STALLED_LIMIT:
                    raise DataError(
                        f"unpacks to {size:,} bytes while other files hold {self.held:,} unpacked, at most "
                        f"{STALLED_LIMIT:,} together. Close some first, or give it uncompressed"
                    )
                break
            self.held += size

    def give_back(self, size: int) -> None:
        with self._changed:
            self.held = max(self.held - size, 0)  # after a fork, copies of the parent are closed, too
            self._changed.notify_all()


_room = _Room()


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Reserve room for an unpacked copy on the temporary disk while the block runs.

    Raises:
        DataError: Other copies take all the room, and are not closed.
    """
    _room.take(size)
    try:
        yield
    finally:
        _room.give_back(size)


def unpacked(blocks: Iterable[bytes], size: int) -> IO[bytes]:
    """A temporary file that holds the first bytes of ``blocks``, at its start; it is gone when it is closed.

    Args:
        blocks: What is unpacked, piece by piece.
        size: The most bytes that are taken; for so many, there must be room.

    Raises:
        DataError: There is no room.
    """
    file = _Copy(size)
    try:
        left = size
        for block in blocks:
            file.write(block[:left])
            left -= min(len(block), left)
            if not left:
                break
        file.seek(0)
    except BaseException as error:
        file.abandon()
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise DataError(
                "no room to unpack it. Make room in the system's temporary folder, or name another one in the "
                "environment variable TMPDIR"
            ) from None
        raise
    return file


class _Copy(io.BufferedRandom):
    """A temporary file without a name that gives its room back when it is closed."""

    def __init__(self, size: int) -> None:
        self._size = 0
        raw: Any = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed with this object)
        super().__init__(raw)
        try:
            _room.take(size)
        except BaseException:
            self.close()
            raise
        self._size = size

    def close(self) -> None:
        size, self._size = self._size, 0
        try:
            super().close()
        finally:
            if size:
                _room.give_back(size)

    def abandon(self) -> None:
        """Close it without what was not yet written: the disk may be full."""
        self.raw.close()
        with suppress(OSError, ValueError):
            self.close()


def inflated(file: IO[bytes]) -> Iterator[bytes]:
    """What follows in ``file``, as raw deflate unpacks it.

    Raises:
        DataError: It ends too early.
        zlib.error: It is damaged.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    while not inflater.eof and (block := inflater.unconsumed_tail or file.read(_BLOCK)):
        yield inflater.decompress(block, _MOST_INFLATED)
    yield inflater.flush()  # a match that began before a limit and ends behind it
    if not inflater.eof:
        raise DataError("ends before its compressed content does; it was cut off. Copy or export it again")


def first_bytes(file: IO[bytes], count: int) -> Iterator[bytes]:
    """The next ``count`` bytes of ``file``, piece by piece.

    Raises:
        DataError: It ends too early.
    """
    while count:
        block = file.read(min(count, 16 * _BLOCK))
        if not block:
            raise DataError(f"ends {count:,} bytes too early; it was cut off. Copy or export it again")
        count -= len(block)
        yield block


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_room.reset)  # the copies are the parent's, and so may be the lock
