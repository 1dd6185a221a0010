"""The gate in front of the server, without a server: who may ask, how much, and how slowly."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from amsam_med.label import gate
from amsam_med.label.gate import Gate, hosts_of

HOST = "127.0.0.1:8000"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An app that reads the body and says how long it is."""
    length = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RuntimeError("the client is gone")
        length += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


def ask(
    through: Gate,
    headers: dict[str, str] | None = None,
    method: str = "GET",
    body: Iterable[bytes] = (b"",),
    pause: float = 0,
    server: tuple[str, int] = ("127.0.0.1", 8000),
) -> tuple[int, str, dict[bytes, bytes]]:
    """Status, text and headers of an answer."""
    given = {"host": HOST, **(headers or {})}
    scope = {
        "type": "http",
        "method": method,
        "path": "/info/",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "server": server,
    }
    parts, sent = [*body], []

    async def receive() -> Any:
        await asyncio.sleep(pause)
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(through(scope, receive, send))
    return sent[0]["status"], sent[1]["body"].decode(), dict(sent[0]["headers"])


@pytest.fixture
def through() -> Gate:
    return Gate(echo, hosts_of("127.0.0.1", 8000))


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST:8000", "[::1]:8000", "127.0.0.1"])
def test_this_machine_has_its_own_names(through: Gate, host: str) -> None:
    assert ask(through, {"host": host})[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "127.0.0.1:80", "127.0.0.1:8001", "127.0.0.1.evil.example:8000", ""),
        *("localhost.evil.example:8000", "evil.example:8000@127.0.0.1:8000", "0.0.0.0:8000", "10.0.0.1:8000", "\u00e4"),
    ],
)
def test_another_name_is_that_of_a_site_that_points_here(through: Gate, host: str) -> None:
    status, text, _ = ask(through, {"host": host})
    assert status == 421
    assert "--allow-host" in text


def test_a_server_for_all_addresses_is_called_by_the_one_that_was_reached() -> None:
    through = Gate(echo, hosts_of("0.0.0.0", 8000))
    reached = {"server": ("192.168.1.5", 8000)}
    assert ask(through, {"host": "192.168.1.5:8000"}, **reached)[0] == 200
    assert ask(through, {"host": "192.168.1.6:8000"}, **reached)[0] == 421
    assert ask(through, {"host": "[fe80::1]:8000"}, server=("fe80::1", 8000))[0] == 200


@pytest.mark.parametrize(
    ("named", "host", "status"),
    [
        ("label.example", "label.example:8000", 200),
        ("label.example", "Label.Example", 200),
        ("label.example:9000", "label.example:9000", 200),
        ("label.example:9000", "label.example:9001", 421),
        ("fd00::7", "[fd00::7]:8000", 200),
    ],
)
def test_a_host_may_be_named(named: str, host: str, status: int) -> None:
    assert ask(Gate(echo, hosts_of("127.0.0.1", 8000, [named])), {"host": host})[0] == status


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:8001"},
        {"origin": "http://127.0.0.1"},
        {"origin": "null"},
        {"origin": "file://"},
        {"origin": f"http://{HOST}.evil.example"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_pages_of_other_sites_may_not_ask(through: Gate, method: str, headers: dict[str, str]) -> None:
    assert ask(through, headers, method)[0] == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": f"http://{HOST}"},
        {"origin": f"https://{HOST}"},
        {"sec-fetch-site": "same-origin", "origin": f"http://{HOST}"},
        {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    ],
)
def test_its_own_page_a_viewer_and_a_link_may(through: Gate, headers: dict[str, str]) -> None:
    status, _, sent = ask(through, headers)
    assert status == 200
    assert sent[b"x-content-type-options"] == b"nosniff"
    assert sent[b"cross-origin-resource-policy"] == b"same-origin"


def test_a_followed_link_only_looks(through: Gate) -> None:
    assert ask(through, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, "POST")[0] == 403


def test_a_site_may_be_named() -> None:
    through = Gate(echo, hosts_of("127.0.0.1", 8000), ["http://viewer.example:3000"])
    assert ask(through, {"origin": "http://viewer.example:3000", "sec-fetch-site": "cross-site"})[0] == 200
    assert ask(through, {"origin": "http://viewer.example"})[0] == 403


@pytest.mark.parametrize(("kind", "limit"), [("application/json", 20), ("multipart/form-data; boundary=x", 50)])
@pytest.mark.parametrize("says", [True, False])
def test_a_body_has_an_end(through: Gate, monkeypatch: pytest.MonkeyPatch, kind: str, limit: int, says: bool) -> None:
    monkeypatch.setattr(gate, "TEXT_LIMIT", 20)
    monkeypatch.setattr(gate, "BODY_LIMIT", 50)
    length = {"content-length": str(limit + 1)} if says else {}
    assert ask(through, {"content-type": kind}, body=[b"x" * limit])[:2] == (200, str(limit))
    assert ask(through, {"content-type": kind, **length}, body=[b"x" * 10] * (limit // 10) + [b"x"])[0] == 413


def test_a_body_that_drips_is_not_waited_for(through: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "WAIT_SECONDS", 0.2)
    status, text, headers = ask(through, body=[b"x"] * 100, pause=0.05)
    assert (status, headers[b"connection"]) == (408, b"close")
    assert "too slowly" in text


def test_uploads_that_are_under_way_have_a_limit(through: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "UPLOADS_LIMIT", 20)
    assert ask(through, body=[b"x" * 10, b"x" * 11])[0] == 429
    assert [ask(through, body=[b"x" * 10])[0] for _ in range(5)] == [200] * 5


def test_requests_that_are_under_way_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "REQUESTS_AT_ONCE", 0)
    assert ask(Gate(echo, hosts_of("127.0.0.1", 8000)))[0] == 429


def test_a_defect_is_said_without_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(*_: Any) -> None:
        raise KeyError("/home/someone/secret")

    status, text, _ = ask(Gate(broken, hosts_of("127.0.0.1", 8000)))
    assert status == 500
    assert "secret" not in text
    assert "KeyError" in caplog.text


def test_web_sockets_are_closed(through: Gate) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(through({"type": "websocket", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
