"""Compressed files, unpacked onto disk instead of into memory, and only up to a limit."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterable, Iterator
from typing import IO

from amsam_med.errors import DataError

_BLOCK = 1 << 16  # bytes
_MOST_INFLATED = 1 << 20  # bytes at once; deflate turns one into a thousand at most


def unpacked(blocks: Iterable[bytes], limit: int) -> IO[bytes]:
    """A temporary file that holds ``blocks``, at its start; it has no name and is gone when it is closed.

    Args:
        blocks: What is unpacked, piece by piece.
        limit: The most bytes that are taken.

    Raises:
        DataError: There is more.
    """
    file = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    try:
        for block in blocks:
            if file.tell() + len(block) > limit:
                raise DataError(f"unpacks to more than {limit:,} bytes. Give it uncompressed if it is right")
            file.write(block)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


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
