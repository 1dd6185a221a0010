"""A DICOMweb server that means harm: what it lists, sends and leads to."""

from __future__ import annotations

import http.server
import itertools
import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pydicom
import pytest
from fastapi import HTTPException

from amsam_med.data.dicom.shared import SKIN_LESION, Algorithm
from amsam_med.errors import DataError
from amsam_med.label.server import import_monailabel
from tests.dicom_tools import write_source

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # MONAI Label's, of distutils
    import_monailabel()
    from amsam_med.label import routes
    from amsam_med.label.datastores import DicomWebStudies

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@pytest.fixture
def hostile() -> Iterator[Callable[[Answer], str]]:
    """Start a server that answers everything in one way; its address."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with suppress(ConnectionError):
                    answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/dicom-web"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def say(content: bytes, kind: str = "application/dicom+json", status: int = 200, **headers: str) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def listing(*uids: Any) -> bytes:
    tags = ("0020000D", "0020000E", "00080018")
    return json.dumps([{tag: {"vr": "UI", "Value": [uid]} for tag, uid in zip(tags, uids, strict=True)}]).encode()


def studies(address: str, folder: Path) -> DicomWebStudies:
    return DicomWebStudies(address, {}, folder, [SKIN_LESION], Algorithm("0"))


def files(folder: Path) -> set[str]:
    own = ("datastore_v2.json", ".lock", "labels", "labels/final", "labels/original")
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} - set(own)


@pytest.mark.parametrize(
    "uids",
    [
        *(("1.2", "../../outside", "1.3"), ("1.2", "1.4", "../../../outside"), ("../..", "1.4", "1.3")),
        *(("1.2", "/etc/passwd", "1.3"), ("1.2", "..", "1.3"), ("1.2", "", ""), ("1.2", "1.4\n", "1.3")),
        *(("1.2", "<script>", "1.3"), ("1.2", "1" * 5000, "1.3"), ("1.2", {}, "1.3"), ("1.2", None, "1.3")),
        *(("1.2", "1.4\0", "1.3"), ("1.2", "1.4/../x", "1.3"), ("1.2", ["1.4"], "1.3"), ("1.2", "datastore_v2", "1.3")),
    ],
)
def test_uids_become_no_paths(hostile: Callable[[Answer], str], tmp_path: Path, uids: tuple[Any, ...]) -> None:
    folder = tmp_path / "kept"
    with suppress(DataError):
        opened = studies(hostile(say(listing(*uids))), folder)
        assert opened.list_images() == []
        assert opened.get_image_uri(str(uids[1])) == ""
    assert files(tmp_path) <= {"kept"} | {f"kept/{name}" for name in ("datastore_v2.json", ".lock", "labels")} | {
        "kept/labels/final",
        "kept/labels/original",
    }


def test_a_segmentation_that_is_none_is_left_out(hostile: Callable[[Answer], str], tmp_path: Path) -> None:
    """Images are listed well; what comes as their segmentation is rubbish."""
    write_source(tmp_path / "x.dcm", "VL photographic")
    image = pydicom.dcmread(tmp_path / "x.dcm")
    uids = (image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID)
    known = json.loads(listing(*map(str, uids)))
    drawn = [
        {**json.loads(listing(str(uids[0]), "1.2.9", f"1.2.9.{n}"))[0], "00080060": {"Value": ["SEG"]}} for n in (1, 2)
    ]

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        if "Modality=SEG" in handler.path:
            say(json.dumps([drawn]).encode())(handler)
        elif "/instances/" in handler.path:
            say(b"--x\r\n\r\nrubbish\r\n--x--", 'multipart/related; type="application/dicom"; boundary=x')(handler)
        else:
            say(json.dumps(known).encode())(handler)

    with suppress(DataError):  # such a server cannot be used; nothing else may happen
        assert studies(hostile(answer), tmp_path / "kept").datalist() == []


@pytest.mark.parametrize(
    "path",
    [
        *("../instances", "..%2f..%2fsystem", "studies/../../tools/shutdown", "tools/execute-script", "system", ""),
        *("//evil.example/studies", "@evil.example/studies", "studies?x=y", "studies#x", "studies/.", "studies//1.2"),
        *(
            "qido/../system",
            "wado/../../x",
            "studies/1.2 HTTP/1.1\r\nX: y",
            "studies/\0",
            "http://evil.example/studies",
        ),
    ],
)
def test_the_proxy_leads_to_studies_alone(
    hostile: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    asked: list[str] = []
    address = hostile(lambda handler: asked.append(handler.path))
    monkeypatch.setattr(routes.settings, "MONAI_LABEL_STUDIES", address)
    with pytest.raises(HTTPException, match="not an address of DICOMweb"):
        routes._asked_on(path)
    assert asked == []


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("text/html", "application/octet-stream"),
        ("image/svg+xml", "application/octet-stream"),
        ("application/xhtml+xml", "application/octet-stream"),
        ("application/dicom+json", "application/dicom+json"),
        (
            'multipart/related; type="application/dicom"; boundary=x',
            'multipart/related; type="application/dicom"; boundary=x',
        ),
        ("image/jpeg", "image/jpeg"),
    ],
)
def test_the_proxy_hands_no_page_on(
    hostile: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch, kind: str, shown: str
) -> None:
    address = hostile(say(b"<script>alert(1)</script>", kind, **{"Set-Cookie": "x=y", "Refresh": "0; url=/"}))
    monkeypatch.setattr(routes.settings, "MONAI_LABEL_STUDIES", address)
    answer = routes._asked_on("qido/studies")
    assert answer.headers["content-type"] == shown
    assert set(answer.headers) == {"content-type", "content-length"}


def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in itertools.repeat(None, 2000):
        handler.wfile.write(bytes(1 << 20))


def dripping(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in itertools.repeat(None, 200):
        handler.wfile.write(b"x" * 70_000)
        time.sleep(0.05)


@pytest.mark.parametrize("answer", [endless, dripping, say(b"", status=302, Location="http://127.0.0.1:9/studies")])
def test_the_proxy_waits_for_no_end_and_follows_nowhere(
    hostile: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    monkeypatch.setattr(routes, "BODY_LIMIT", 8 << 20)
    monkeypatch.setattr(routes, "PROXY_SECONDS", 0.5)
    monkeypatch.setattr(routes.settings, "MONAI_LABEL_STUDIES", hostile(answer))
    start = time.monotonic()
    with pytest.raises(HTTPException, match="DICOMweb server sends") as caught:
        routes._asked_on("studies")
    assert caught.value.status_code == 502
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("content", [b"null", b"5", b'"x"', b"[1]", b"[null]", b"{}", b"[[]]", b"rubbish", b"[" * 5000])
def test_a_list_that_is_none_lists_nothing(hostile: Callable[[Answer], str], tmp_path: Path, content: bytes) -> None:
    with suppress(DataError):
        assert studies(hostile(say(content)), tmp_path / "kept").list_images() == []
