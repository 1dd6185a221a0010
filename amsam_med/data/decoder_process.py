"""Two decoders in a separate process: gdcm, which may crash, and libjpeg, which reports damage on stderr only.

On some damaged frames gdcm ends its process by an uncaught C++ exception, and one file must not end a run of thousands.
For a JPEG that is damaged inside, libjpeg decodes what it can and reports the damage only on stderr, which belongs to
the whole process; Pillow drops even that. So both run in a process that may end, and whose output is read. It starts
with the first image that needs it, serves all threads one after another, and ends with the program.

Run as a script, this file is that process. It imports nothing of the package.
"""

from __future__ import annotations

import atexit
import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

TIME_LIMIT = 60.0
"""Seconds for a frame."""

_DAMAGES = ("Corrupt JPEG data", "Premature end of JPEG")
_LENGTHS = struct.Struct("<QQ")  # of a message's two parts: JSON, and bytes


class _Served:
    """The process, and the lock by which threads take turns."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None


_served = _Served()


def decode_by_gdcm(coded: bytes, syntax: str, options: dict[str, Any]) -> tuple[NDArray[np.generic], str]:
    """Decode one frame.

    Args:
        coded: The frame as its file holds it.
        syntax: UID of its transfer syntax.
        options: What pydicom's decoders want to know, besides offsets.

    Returns:
        Stored values ``(H, W)`` or ``(H, W, 3)``, and their photometric interpretation.

    Raises:
        RuntimeError: gdcm cannot decode it, or ended, or took too long.
    """
    answer, pixels = _asked({"syntax": syntax, "options": options}, coded)
    if "shape" not in answer:
        raise RuntimeError("gdcm cannot decode this frame")
    return np.frombuffer(pixels, answer["dtype"]).reshape(answer["shape"]), str(answer["kind"])


def jpeg_damage(coded: bytes) -> str:
    """Damage that libjpeg reports in a JPEG that it decodes nevertheless; usually an empty string.

    It detects data that end too early or are too long, and invalid codes: a damaged stretch nearly always, a single
    wrong bit in one of six cases.

    Args:
        coded: The file.

    Returns:
        One line in libjpeg's words; also empty if OpenCV, through which it is called, is not installed.
    """
    try:
        answer, _ = _asked({"jpeg": True}, coded)
    except RuntimeError:
        return ""
    return str(answer.get("said", ""))


def _asked(head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    with _served.turn:
        process = _running()
        assert process.stdin is not None
        assert process.stdout is not None
        watchdog = threading.Timer(TIME_LIMIT, process.kill)
        watchdog.start()
        try:
            _send(process.stdin, head, body)
            return _receive(process.stdout)
        except (OSError, EOFError):
            _stop()
            raise RuntimeError("the decoder ended") from None
        finally:
            watchdog.cancel()


def _running() -> subprocess.Popen[bytes]:
    if _served.process is None or _served.process.poll() is not None:
        _stop()
        _served.process = subprocess.Popen(  # noqa: S603  # a fixed list of words, no shell
            [sys.executable, "-P", __file__],  # -P: this folder has modules named like others
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    return _served.process


def _stop() -> None:
    process, _served.process = _served.process, None
    if process is not None:
        process.kill()
        process.communicate()


def _leave_to_parent() -> None:
    """After a fork: forget the process, which belongs to the parent, and the lock, which another thread may hold."""
    if _served.process is not None:
        _served.process.returncode = 0  # it is not ours to wait for
    _served.__init__()  # type: ignore[misc]


def _send(pipe: IO[bytes], head: dict[str, Any], body: bytes) -> None:
    text = json.dumps(head).encode()
    pipe.write(_LENGTHS.pack(len(text), len(body)) + text)
    pipe.write(body)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    text, body = (_exactly(pipe, length) for length in _LENGTHS.unpack(_exactly(pipe, _LENGTHS.size)))
    head: dict[str, Any] = json.loads(text)
    return head, body


def _exactly(pipe: IO[bytes], length: int) -> bytes:
    received = pipe.read(length)
    if len(received) < length:
        raise EOFError
    return received


def _answer(head: dict[str, Any], coded: bytes) -> tuple[dict[str, Any], bytes]:
    return ({"said": _said_by_libjpeg(coded)}, b"") if "jpeg" in head else _decoded_by_gdcm(head, coded)


def _said_by_libjpeg(coded: bytes) -> str:
    try:
        import cv2
    except ImportError:
        return ""
    with tempfile.TemporaryFile() as output:
        before = os.dup(2)
        os.dup2(output.fileno(), 2)
        try:
            # Decoding at an eighth of the size is fastest, and still reads all codes.
            cv2.imdecode(np.frombuffer(coded, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
        except cv2.error:  # too large for it, or not a JPEG as it knows them
            return ""
        finally:
            os.dup2(before, 2)
            os.close(before)
        output.seek(0)
        lines = output.read(1 << 16).decode("ascii", errors="replace").splitlines()
    return next((line.strip()[:100] for line in lines if line.startswith(_DAMAGES)), "")


def _decoded_by_gdcm(head: dict[str, Any], coded: bytes) -> tuple[dict[str, Any], bytes]:
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    try:
        pixels, properties = get_decoder(UID(head["syntax"])).as_array(
            encapsulate([coded]), index=0, decoding_plugin="gdcm", **head["options"]
        )
    except Exception:  # whatever the reason, the caller can only say that the frame is damaged
        return {}, b""
    kind = str(properties["photometric_interpretation"])
    return {"shape": pixels.shape, "dtype": pixels.dtype.str, "kind": kind}, pixels.tobytes()


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what decoders print is no answer
    while True:
        try:
            _send(answers, *_answer(*_receive(sys.stdin.buffer)))
        except (EOFError, OSError):
            return


if __name__ == "__main__":
    _serve()
else:
    atexit.register(_stop)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_leave_to_parent)
