"""A DICOMweb server that means harm: answers without end, without sense, and with names that lead elsewhere."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.attack.cases import case
from tests.attack.files.dicom import dataset, deflated, written
from tests.attack.observe import assert_plain, assert_untouched, assert_whole
from tests.attack.world import World

GROUP = "DICOMweb"
PAGE = 500
_BOUNDARY = "frontier"
_UIDS = ("1.2.4", "1.2.5", "1.2.3")


@dataclass(frozen=True)
class Answer:
    """What a server says.

    Attributes:
        body: In pieces, which may have no end.
        kind: Its media type.
        status: Of HTTP.
        headers: More of them.
    """

    body: Callable[[], Iterator[bytes]]
    kind: str = "application/dicom+json"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def instances(*uids: tuple[Any, Any, Any], modality: Any = "XC") -> Answer:
    """What a search finds."""
    tags = ("0020000D", "0020000E", "00080018")
    found = [
        {tag: {"vr": "UI", "Value": [uid]} for tag, uid in zip(tags, one, strict=True)}
        | {"00080060": {"vr": "CS", "Value": [modality]}}
        for one in uids
    ]
    return plain(json.dumps(found).encode())


def plain(body: bytes, kind: str = "application/dicom+json", status: int = 200, **headers: str) -> Answer:
    """A body of known bytes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(lambda: iter([body]), kind, status, named)


def multipart(content: bytes) -> Answer:
    """An instance as a server sends it."""
    head = f"--{_BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    kind = f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}'
    return plain(head + content + f"\r\n--{_BOUNDARY}--\r\n".encode(), kind)


@contextmanager
def serving(search: Answer, instance: Answer, later: Answer | None = None) -> Iterator[str]:
    """A server on the loopback interface; its address.

    Args:
        search: Its answer to a search.
        instance: Its answer to who asks for an instance.
        later: Its answer to further searches; the first one's by default.
    """
    searches = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal searches
            is_search = self.path.split("?")[0].endswith("/instances")
            answer = (search if not searches or later is None else later) if is_search else instance
            searches += is_search
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.kind)
            self.send_header("Connection", "close")
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for piece in answer.body():
                    if is_over.is_set():
                        return
                    self.wfile.write(piece)
            except OSError:  # who asked has gone
                return

        def log_message(self, *arguments: object) -> None:
            """Keep the output clean."""

    is_over = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"dicomweb:http://127.0.0.1:{server.server_port}/dicom-web"
        finally:
            is_over.set()
            server.shutdown()
            thread.join()


def _endless(piece: bytes) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        for _ in range(1_000_000):  # bounded, and far more than anybody should take
            yield piece

    return pieces


def _silent() -> Iterator[bytes]:
    for _ in range(400):
        threading.Event().wait(0.5)
        yield b" "


def _bomb() -> Iterator[bytes]:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    for _ in range(2000):
        yield packer.compress(bytes(1 << 20))
    yield packer.flush()


def _later(make: Callable[[], Answer]) -> Answer:
    """A multipart answer that is made when it is asked for."""
    kind = f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}'
    return Answer(lambda: make().body(), kind)


def _attack(name: str, search: Answer, instance: Answer | None = None, **more: Any) -> None:
    @case(GROUP, name)
    def attempt(world: World) -> None:
        _ = world.before
        seconds = more.get("seconds", 60)
        with serving(search, instance or multipart(written(dataset())), more.get("later")) as address:
            run = world.amsam(*world.segment_words()[:1], address, *world.segment_words()[2:], seconds=seconds)
        assert_plain(run, (0, 1, 2), seconds=seconds, megabytes=700)
        assert_untouched(world)
        if run.code == 0 or "Results are in" in run.printed:
            assert_whole(world.output)


def _searches() -> None:
    one = instances(_UIDS)

    @case(GROUP, "as it must be")
    def good(world: World) -> None:
        with serving(one, multipart(written(dataset()))) as address:
            run = world.amsam(*world.segment_words()[:1], address, *world.segment_words()[2:])
        assert_plain(run, (0,))
        assert len(assert_whole(world.output)) == 1

    for name, body in {
        "HTML": b"<html><script>alert(1)</script></html>",
        "nothing": b"",
        "a dictionary": b"{}",
        "a number": b"7",
        "null": b"null",
        "a list of numbers": b"[1, 2, 3]",
        "a list of lists": b"[[], []]",
        "no JSON": b"[{",
        "no text": b"\xff\xfe\x00",
        "200,000 brackets": b"[" * 200_000,
        "instances without identifiers": b"[{}]",
        "values that are numbers": b'[{"0020000D": 7}]',
        "values that are no list": b'[{"0020000D": {"vr": "UI", "Value": "1.2"}}]',
    }.items():
        _attack(f"a search that finds {name}", plain(body))
    for name, uid in {
        "up": "../../../PROOF",
        "to the root": "/tmp/PROOF",
        "up, encoded": "..%2f..%2fPROOF",
        "through a formula": "=1+1",
        "through HTML": "<img src=x onerror=alert(1)>",
        "through a line feed": "1.2\r\nEvil: x",
        "through NUL": "1.2\0",
        "through 5,000 digits": "1." + "2" * 5000,
        "to another server": "@127.0.0.1:9/x",
        "nowhere": "",
    }.items():
        _attack(f"an identifier that leads {name}", instances((uid, "1.2.5", "1.2.3"), ("1.2.4", "1.2.5", uid)))
    _attack("a modality that is a list", instances(_UIDS, modality=["XC"]))
    page = instances(*[("1.2.4", "1.2.5", f"1.2.{number}") for number in range(PAGE)])
    _attack("a search whose pages never end", page, plain(b"", status=404), seconds=60)
    many = [("1.2.4", "1.2.5", f"1.2.{number}") for number in range(30_000)]
    _attack("a search of one page of 30,000", instances(*many), plain(b"", status=404), seconds=300)
    _attack("a search whose answer never ends", Answer(_endless(b" " * (1 << 16))), seconds=60)
    _attack("a search whose answer drips", Answer(_silent), seconds=100)
    packed = Answer(_bomb, headers={"Content-Encoding": "gzip"})
    _attack("a search whose answer unpacks to 2 GB", packed, seconds=60)
    for status in (301, 302, 307):
        for name, place in {
            "a file": "file:///etc/passwd",
            "itself": "/dicom-web/instances",
            "nowhere": "http://127.0.0.1:9/",
            "no address": "http://[::1",
        }.items():
            answer = plain(b"", status=status, Location=place)
            _attack(f"a search that leads to {name}, {status}", answer)
    for status in (204, 401, 403, 404, 418, 500, 503):
        _attack(f"a search answered by {status}", plain(b"<b>no</b>", "text/html", status))


def _instances() -> None:
    one = instances(_UIDS)
    for name, answer in {
        "HTML": plain(b"<html></html>", "text/html"),
        "nothing": plain(b"", "multipart/related"),
        "a part without an end": plain(b"--frontier\r\n\r\n", f"multipart/related; boundary={_BOUNDARY}"),
        "a boundary of nothing": plain(b"--\r\n\r\n", "multipart/related; boundary="),
        "words": multipart(b"no DICOM, but words"),
        "no bytes": multipart(b""),
        "another image": multipart(written(dataset(SOPInstanceUID="9.9.9"))),
        "a bomb, deflated": _later(lambda: multipart(deflated(300 << 20))),
        "a refusal": plain(b"", status=403),
        "its end too early": plain(written(dataset()), "multipart/related", Content_Length="10000000"),
        "a way to a file": plain(b"", status=302, Location="file:///etc/passwd"),
    }.items():
        _attack(f"an instance that is {name}", one, answer)
    endless = Answer(_endless(bytes(1 << 16)), f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}')
    _attack("an instance that never ends", one, endless, seconds=100)


_searches()
_instances()
