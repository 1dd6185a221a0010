"""A broken or malicious DICOMweb server leads to one plain sentence, in bounded time and memory."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from amsam_med.data.dicom import web as dicomweb
from amsam_med.data.dicom.web import DicomWeb
from amsam_med.errors import DataError
from tests.segment.test_inputs import write_dicom

pytest.importorskip("dicomweb_client", reason="dicomweb-client is not installed; it comes with the extra `dicom`")

Answer = Callable[[BaseHTTPRequestHandler], None]
MEMBER = "1.2.3/1.2.3.4/1.2.3.4.5"


class HostileServer:
    """A server on loopback that answers everything in one way.

    Attributes:
        asked: Paths and headers of the requests so far.
    """

    def __init__(self, answer: Answer) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append((self.path, dict(self.headers)))
                answer(self)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.do_GET()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients leave in the middle
        self._server.daemon_threads = True
        self._server.is_closing = threading.Event()  # ends answers that have no end of their own
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/web"

    def close(self) -> None:
        self._server.is_closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], HostileServer]]:
    running: list[HostileServer] = []

    def start(answer: Answer) -> HostileServer:
        running.append(HostileServer(answer))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicomweb, "_TIMEOUT", (2.0, 1.0))
    monkeypatch.setattr(dicomweb, "_PATIENCE", 1.0)
    monkeypatch.setattr(dicomweb, "_ANSWER_LIMIT", 1 << 20)
    monkeypatch.setattr(dicomweb, "INSTANCE_LIMIT", 4 << 20)


def sends(content: bytes, kind: str = "application/dicom+json", status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def drips(piece: bytes, pause: float, kind: str = "application/dicom+json") -> Answer:
    """An answer without an end: it goes on until the client leaves or the server is closed."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.end_headers()
        while not handler.server.is_closing.wait(pause):
            handler.wfile.write(piece)

    return answer


def listed(*uids: str, modality: Any = "XC", **more: Any) -> dict[str, Any]:
    tags = ("0020000D", "0020000E", "00080018")
    found = {tag: {"vr": "UI", "Value": [uid]} for tag, uid in zip(tags, uids, strict=True)}
    return {**found, "00080060": {"vr": "CS", "Value": [modality]}, **more}


def found_by(server: HostileServer) -> list[str]:
    return list(DicomWeb(server.address).instances({}))


GOOD = listed("1.2.3", "1.2.3.4", "1.2.3.4.5")
BAD_LISTS: dict[str, bytes] = {
    "no JSON": b"<html>",
    "a number": b"7",
    "a text": b'"x"',
    "a list of numbers": b"[1, 2]",
    "a list of lists": b"[[]]",
    "deep": b"[" * 100_000,
    "no UID": json.dumps([{}]).encode(),
    "a way up": json.dumps([listed("..", "..", "..")]).encode(),
    "a path": json.dumps([listed("1.2", "1.3", "../../../etc/passwd")]).encode(),
    "a query": json.dumps([listed("1.2", "1.3", "1.4?x=1")]).encode(),
    "a new line": json.dumps([listed("1.2", "1.3", "1.4\n")]).encode(),
    "a long UID": json.dumps([listed("1.2", "1.3", "1" * 10_000)]).encode(),
    "a UID that is a number": json.dumps([listed("1.2", "1.3", 4)]).encode(),  # type: ignore[arg-type]
    "two UIDs": json.dumps([{**GOOD, "00080018": {"vr": "UI", "Value": ["1", "2"]}}]).encode(),
    "a modality that is none": json.dumps([listed("1.2", "1.3", "1.4", modality={"x": 1})]).encode(),
    "too long": json.dumps([GOOD] * 10_000).encode(),
}


@pytest.mark.parametrize("content", BAD_LISTS.values(), ids=BAD_LISTS.keys())
def test_a_list_that_is_none_is_refused_in_one_sentence(
    content: bytes, serve: Callable[[Answer], HostileServer]
) -> None:
    with pytest.raises(DataError, match="DICOMweb server") as caught:
        found_by(serve(sends(content)))
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_a_list_that_unpacks_to_too_much_is_refused(serve: Callable[[Answer], HostileServer]) -> None:
    with pytest.raises(DataError, match="sends more than 1,048,576 bytes in one answer"):
        found_by(serve(sends(gzip.compress(b" " * (200 << 20), 1), Content_Encoding="gzip")))


@pytest.mark.parametrize(
    ("piece", "pause", "why"),
    [
        (b" ", 0.01, "DICOMweb server sends too slowly to wait for it"),
        (b" " * 65536, 0, r"DICOMweb server sends more than [\d,]+ bytes in one answer"),
        (b"", 0.001, "DICOMweb server .*: it does not answer in time"),
    ],
)
def test_an_answer_without_an_end_is_given_up(
    piece: bytes, pause: float, why: str, serve: Callable[[Answer], HostileServer]
) -> None:
    server = serve(drips(piece, pause))
    with pytest.raises(DataError, match=why):
        found_by(server)
    with pytest.raises(DataError, match=why):
        DicomWeb(server.address).instance(MEMBER)


def test_a_server_that_never_answers_is_given_up(serve: Callable[[Answer], HostileServer]) -> None:
    with pytest.raises(DataError, match="it does not answer in time"):
        found_by(serve(lambda handler: handler.server.is_closing.wait()))


def test_a_server_that_knows_no_pages_is_asked_twice(serve: Callable[[Answer], HostileServer]) -> None:
    server = serve(sends(json.dumps([GOOD] * 600).encode()))
    assert set(found_by(server)) == {MEMBER}
    assert len(server.asked) == 2


def test_pages_without_an_end_are_given_up(
    serve: Callable[[Answer], HostileServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicomweb, "LISTED_INSTANCES", 2000)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        start = len(server.asked) * 500
        page = [listed("1.2", "1.3", f"1.4.{number}") for number in range(start, start + 500)]
        sends(json.dumps(page).encode())(handler)

    server = serve(answer)
    with pytest.raises(DataError, match="finds more than 2,000 instances; ask for less"):
        found_by(server)


TARGETS = ("http://localhost:1/x", "https://127.0.0.1/x", "file:///etc/passwd", "//h/x", "ftp://h")


@pytest.mark.parametrize("target", TARGETS)
def test_a_redirection_to_another_server_is_not_followed(
    target: str, serve: Callable[[Answer], HostileServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMSAM_DICOMWEB_TOKEN", "secret")
    server = serve(sends(b"", status=302, Location=target))
    for ask in (lambda: found_by(server), lambda: DicomWeb(server.address).instance(MEMBER)):
        with pytest.raises(DataError, match="leads on to another server"):
            ask()
    assert len(server.asked) == 2


def test_redirections_in_a_circle_end(serve: Callable[[Answer], HostileServer]) -> None:
    server = serve(sends(b"x" * 1000, status=302, Location="/web/again"))
    with pytest.raises(DataError, match="it answers 302"):
        found_by(server)
    assert len(server.asked) < 10


def test_a_redirection_with_an_endless_body_ends(serve: Callable[[Answer], HostileServer]) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", "/web/again")
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(bytes(1 << 16))

    with pytest.raises(DataError, match="sends more than"):
        DicomWeb(serve(answer).address).instance(MEMBER)


@pytest.mark.parametrize("status", [401, 404, 500])
def test_a_refusal_is_said_with_its_number(status: int, serve: Callable[[Answer], HostileServer]) -> None:
    with pytest.raises(DataError, match=f"it answers {status}"):
        found_by(serve(sends(b"no", "text/html", status)))


def test_a_reason_that_would_move_the_terminal_is_shown_escaped(serve: Callable[[Answer], HostileServer]) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 404 \x1b[2Jgone" + b"x" * 5000 + b"\r\n\r\n")

    with pytest.raises(DataError, match=r"it answers 404 \\x1b\[2Jgone") as caught:
        found_by(serve(answer))
    assert len(str(caught.value)) < 400


def parts(*contents: bytes, boundary: str = "b") -> bytes:
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    return b"".join(head + content + b"\r\n" for content in contents) + f"--{boundary}--".encode()


MULTIPART = 'multipart/related; type="application/dicom"; boundary=b'


@pytest.mark.parametrize("kind", [MULTIPART, MULTIPART.replace("=b", '="b"'), "application/dicom"])
def test_an_instance_comes_byte_by_byte(kind: str, serve: Callable[[Answer], HostileServer], tmp_path: Path) -> None:
    file = write_dicom(tmp_path / "a.dcm").read_bytes()
    content = file if kind == "application/dicom" else parts(file, b"another")
    assert DicomWeb(serve(sends(content, kind)).address).instance(MEMBER) == file


BAD_INSTANCES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", MULTIPART),
    "a page": (b"<html>", "text/html"),
    "JSON": (b"[]", "application/dicom+json"),
    "no DICOM": (parts(b"x" * 1000), MULTIPART),
    "no part": (b"x" * 1000, MULTIPART),
    "no end of a header": (b"--b\r\n" + b"x" * 200_000, MULTIPART),
    "many empty parts": (parts(*[b""] * 50_000), MULTIPART),
    "no boundary": (parts(b"x"), "multipart/related"),
    "a boundary of nothing": (parts(b"x"), 'multipart/related; boundary=""'),
    "a boundary that is no text": (parts(b"x"), "multipart/related; boundary*=utf-8''%ff"),
    "a kind that is none": (b"x" * 1000, ";;;\x1b[2J"),
}


@pytest.mark.parametrize(("content", "kind"), BAD_INSTANCES.values(), ids=BAD_INSTANCES.keys())
def test_what_is_no_instance_is_refused(
    content: bytes, kind: str, serve: Callable[[Answer], HostileServer], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="where a DICOM file is expected"):
        DicomWeb(serve(sends(content, kind)).address).fetch(MEMBER, tmp_path / "copy")


def test_an_instance_that_is_too_large_is_given_up(serve: Callable[[Answer], HostileServer]) -> None:
    with pytest.raises(DataError, match="sends more than 4,194,304 bytes"):
        DicomWeb(serve(drips(bytes(1 << 16), 0, MULTIPART)).address).instance(MEMBER)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"[", "application/dicom+json"),
        (b"7", "application/json"),
        (b"<x", "application/dicom+xml"),
        (b" " * (2 << 20), "text/html"),
        (b'{"00081198": {"vr": "SQ", "Value": [{}]}}', "application/dicom+json"),
    ],
)
def test_an_answer_to_storing_that_is_none_or_a_refusal_is_said(
    content: bytes, kind: str, serve: Callable[[Answer], HostileServer], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"DICOMweb server|refused to store the results"):
        DicomWeb(serve(sends(content, kind)).address).store([write_dicom(tmp_path / "a.dcm")])
