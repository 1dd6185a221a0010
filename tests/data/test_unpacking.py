"""Compressed files are unpacked onto disk, up to the limit."""

from __future__ import annotations

import io
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from amsam_med.data import unpacking
from amsam_med.data.unpacking import first_bytes, inflated, room_for, unpacked
from amsam_med.errors import DataError
from tests.bounded import run_bounded


def deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def test_the_content_comes_back_from_disk() -> None:
    content = bytes(range(256)) * 5000
    with unpacked(inflated(io.BytesIO(deflated(content))), len(content)) as file:
        assert file.read() == content


@pytest.mark.parametrize("length", [0, 1, 257, 1 << 20, (1 << 20) + 100, 5_000_000])
def test_content_of_every_length_is_inflated_to_its_end(length: int) -> None:
    assert b"".join(inflated(io.BytesIO(deflated(bytes(length))))) == bytes(length)


def test_a_bomb_is_stopped_at_what_is_needed() -> None:
    blocks = (bytes(1000) for _ in iter(int, 1))  # without end
    with unpacked(blocks, 5_500) as file:
        assert len(file.read()) == 5_500
    assert next(blocks) == bytes(1000)


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "TOGETHER_LIMIT", 1000)
    monkeypatch.setattr(unpacking, "STALLED_LIMIT", 1500)
    monkeypatch.setattr(unpacking, "STALL_SECONDS", 0.2)


@pytest.mark.usefixtures("little_room")
def test_copies_of_many_threads_never_hold_more_than_the_limit() -> None:
    most = 0

    def use(_: int) -> None:
        nonlocal most
        with unpacked([bytes(300)], 300):
            most = max(most, unpacking._room.held)
            time.sleep(0.005)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(use, range(60)))
    assert 300 < most <= 1000
    assert unpacking._room.held == 0


@pytest.mark.usefixtures("little_room")
def test_one_that_is_larger_than_the_limit_waits_until_it_is_alone() -> None:
    with ThreadPoolExecutor(1) as pool:
        with room_for(900):
            waiting = pool.submit(lambda: unpacked([bytes(5)], 1400).close())
            time.sleep(0.05)
            assert not waiting.done()
        waiting.result(5)


@pytest.mark.usefixtures("little_room")
def test_nobody_waits_for_ever_for_what_is_not_closed() -> None:
    with unpacked([b""], 900), unpacked([b""], 500):
        assert unpacking._room.held == 1400
        with pytest.raises(DataError, match="unpacks to 200 bytes while other files hold 1,400 unpacked"):
            unpacked([b""], 200)


@pytest.mark.usefixtures("little_room")
def test_room_comes_back_whatever_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="ends 7 bytes too early"):
        unpacked(first_bytes(io.BytesIO(), 7), 7)
    monkeypatch.setattr("tempfile.tempdir", "/no such folder")
    with pytest.raises(OSError, match="No such file"):
        unpacked([b""], 7)
    assert unpacking._room.held == 0


def test_a_full_disk_is_told() -> None:
    imports = (
        "import signal; from amsam_med.data.unpacking import _room, unpacked; from amsam_med.errors import DataError"
    )
    code = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))
try:
    unpacked([bytes(10**6)], 10**6)
except DataError as error:
    print(error, _room.held)
"""
    assert run_bounded(imports, code).said.startswith("no room to unpack it. Make room")


def test_an_early_end_is_told() -> None:
    with pytest.raises(DataError, match="ends before its compressed content does"):
        unpacked(inflated(io.BytesIO(deflated(bytes(range(200)))[:-20])), 1000)
    with pytest.raises(DataError, match="ends 3 bytes too early"):
        unpacked(first_bytes(io.BytesIO(b"seven .."[:7]), 10), 1000)
