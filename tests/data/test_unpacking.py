"""What is compressed is unpacked onto disk, and no further than allowed."""

from __future__ import annotations

import io
import zlib

import pytest

from amsam_med.data.unpacking import first_bytes, inflated, unpacked
from amsam_med.errors import DataError


def deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def test_the_content_comes_back_from_disk() -> None:
    content = bytes(range(256)) * 5000
    with unpacked(inflated(io.BytesIO(deflated(content))), limit=len(content)) as file:
        assert file.read() == content


def test_a_bomb_is_stopped_at_the_limit() -> None:
    blocks = (bytes(1000) for _ in iter(int, 1))  # without end
    with pytest.raises(DataError, match="unpacks to more than 5,500 bytes"):
        unpacked(blocks, limit=5_500)
    assert next(blocks) == bytes(1000)


def test_an_early_end_is_told() -> None:
    with pytest.raises(DataError, match="ends before its compressed content does"):
        unpacked(inflated(io.BytesIO(deflated(bytes(range(200)))[:-20])), limit=1000)
    with pytest.raises(DataError, match="ends 3 bytes too early"):
        unpacked(first_bytes(io.BytesIO(b"seven .."[:7]), 10), limit=1000)
