"""Middleware in front of the server: checks host, origin, size and speed of every request.

A page of another site runs in the user's browser and so can reach a server that only listens on the user's machine:
through a cross-site request (``Origin``, ``Sec-Fetch-Site``), or through a host name of its own that it resolves to
this machine (DNS rebinding, ``Host``). Both are refused here for all paths of the server, and so are endless bodies.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_LIMIT = 512 << 20
"""The largest upload, in bytes."""
TEXT_LIMIT = 1 << 20
"""The largest body of any other request, in bytes."""
UPLOADS_LIMIT = 2 * BODY_LIMIT
"""The most bytes of all uploads in progress together."""
REQUESTS_AT_ONCE = 64
"""The most requests in progress; further ones are answered with status 429."""
WAIT_SECONDS = 30.0
"""Timeout for the next part of a body, and for a client to take the next part of its answer."""
LEAST_RATE = 16 << 10
"""Bytes per second that a body must have on average, after the first :data:`WAIT_SECONDS`."""

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_ANY = ("", "0.0.0.0", "::")  # addresses that mean all interfaces  # noqa: S104  # compared with, not listened on
_NAMES = ("image", "label", "id", "tag", "session_id")  # entries of a query from which MONAI Label makes paths
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"referrer-policy", b"no-referrer"),
)

_log = logging.getLogger(__name__)


class Refusal(NamedTuple):
    """Why a request is refused.

    Attributes:
        status: HTTP status.
        text: One sentence for the user.
    """

    status: int
    text: str


class Gate:
    """ASGI middleware that passes on allowed requests and refuses all others.

    Args:
        app: The application behind it.
        hosts: Allowed values of the header ``Host``; see :func:`hosts_of`.
        origins: Sites whose pages may use the server, besides its own.
        is_remote: Whether the studies are on a DICOMweb server, which viewers reach through this one.
    """

    def __init__(
        self, app: ASGIApp, hosts: Iterable[str], origins: Iterable[str] = (), is_remote: bool = False
    ) -> None:
        self.app, self.hosts, self.origins, self.is_remote = app, frozenset(hosts), frozenset(origins), is_remote
        self._under_way = self._uploaded = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        if (refusal := self._refusal(scope)) is not None:
            await _answer(send, refusal)
            return
        self._under_way += 1
        try:
            await self._pass(scope, receive, send)
        finally:
            self._under_way -= 1

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(self, receive, _is_upload(scope))
        is_answered = False

        async def answer(message: Message) -> None:
            nonlocal is_answered
            if body.refusal is not None and not is_answered:
                return  # the app's own error about half a body; the client gets the refusal instead
            if message["type"] == "http.response.start":
                is_answered = True
                own = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *((n, v) for n, v in self._headers() if n not in own)]
            # Without a timeout, clients that never read their answer could hold all places of REQUESTS_AT_ONCE.
            await asyncio.wait_for(send(message), WAIT_SECONDS)

        try:
            await self.app(scope, body.receive, answer)
        except Exception as error:
            if is_answered:
                raise
            if body.refusal is not None:
                return
            _log.exception("A request was not answered: %s", type(error).__name__)
            await _answer(send, Refusal(500, "the server could not answer this request; its log says why"))
        finally:
            self._uploaded -= body.taken
            if body.refusal is not None and not is_answered:
                await _answer(send, body.refusal)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = dict(scope["headers"])
        if (refusal := self._host_or_origin_refusal(scope, headers)) is not None:
            return refusal
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if wrong := next((name for name, value in query if name in _NAMES and _is_path(value)), None):
            return Refusal(400, f"{wrong} is a path; expected a name that GET /datastore lists")
        if scope["path"].startswith("/proxy") and not self.is_remote:
            return Refusal(404, "the studies are a folder; there is no DICOMweb server to ask")
        limit, length = BODY_LIMIT if _is_upload(scope) else TEXT_LIMIT, headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            return Refusal(413, f"the request has {int(length):,} bytes; expected at most {limit:,}")
        if self._under_way >= REQUESTS_AT_ONCE:
            return Refusal(429, f"{self._under_way} requests are being answered; ask again in a while")
        return None

    def _host_or_origin_refusal(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Refusal | None:
        """Why a request with this host or origin is refused; None if it is allowed."""
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if host not in self.hosts and host not in _own_addresses(scope):
            name = ascii(host)[1:-1][:80]
            return Refusal(
                421,
                f"this server is not called {name!r}; open it by its own address, or start it with --allow-host {name}",
            )
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin in self.origins:
            return None
        # Programs other than browsers send neither header and pass: they cannot be used by a page of another site.
        site, mode = headers.get(b"sec-fetch-site", b"none"), headers.get(b"sec-fetch-mode", b"")
        # A link on another page may lead here: the user sees the answer, and that page cannot read it.
        is_followed_link = mode == b"navigate" and scope["method"] == "GET"
        if (origin and origin not in (f"http://{host}", f"https://{host}")) or not (
            site in (b"none", b"same-origin") or is_followed_link
        ):
            return Refusal(
                403, "pages of other sites may not use this server; start it with --allow-origin for one that may"
            )
        return None

    def _headers(self) -> Iterable[tuple[bytes, bytes]]:
        others = b"cross-origin" if self.origins else b"same-origin"
        return (*_HEADERS, (b"cross-origin-resource-policy", others))


class _Body:
    """The body of a request as it comes in, with limits on its size and its slowness."""

    def __init__(self, gate: Gate, receive: Receive, is_upload: bool) -> None:
        self._gate, self._receive, self._limit = gate, receive, BODY_LIMIT if is_upload else TEXT_LIMIT
        self._start, self._is_whole = time.monotonic(), False
        self.taken = 0
        self.refusal: Refusal | None = None

    async def receive(self) -> Message:
        """The next part; a disconnect message once the rest is refused."""
        if self._is_whole:  # the app now waits for the client to disconnect, which may take any time
            return await self._receive()
        # A timeout per part is not enough: a byte every 29 seconds would keep a request open for ever.
        patience = self._start + WAIT_SECONDS + self.taken / LEAST_RATE - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, min(WAIT_SECONDS, patience)))
        except TimeoutError:
            return self._refuse(408, "the request came in too slowly; send it again")
        # Counted as received, since Content-Length may be missing or wrong.
        length = len(message.get("body", b""))
        self.taken += length
        self._gate._uploaded += length
        if self.taken > self._limit:
            return self._refuse(413, f"the request has more than {self._limit:,} bytes, which is all that is taken")
        if self._gate._uploaded > UPLOADS_LIMIT:
            return self._refuse(429, "too much is being sent at once; send it again in a while")
        self._is_whole = not message.get("more_body", False)
        return message

    def _refuse(self, status: int, text: str) -> Message:
        self.refusal = self.refusal or Refusal(status, text)
        return {"type": "http.disconnect"}


def hosts_of(address: str, port: int, named: Iterable[str] = ()) -> set[str]:
    """The values of the header ``Host`` that a server accepts.

    Args:
        address: The address that it listens on.
        port: The port that it listens on.
        named: Names or addresses that the user trusts, with or without a port.
    """
    own = _LOOPBACK if address in _ANY else (*_LOOPBACK, _bracketed(address.lower()))
    hosts = {f"{name}:{port}" for name in own} | set(own)  # some DICOMweb libraries leave the port out of Host
    for name in named:
        plain = _bracketed(name.lower())
        hosts |= {plain, f"{plain}:{port}"}
    return hosts


def _bracketed(address: str) -> str:
    try:
        return f"[{address}]" if ipaddress.ip_address(address).version == 6 else address
    except ValueError:
        return address


def _own_addresses(scope: Scope) -> Iterable[str]:
    """The IP address of this machine that the client has connected to; safe, as no site's name can be an address."""
    server: tuple[str, int | None] | None = scope.get("server")
    return () if server is None else (_bracketed(server[0]), f"{_bracketed(server[0])}:{server[1]}")


def _is_upload(scope: Scope) -> bool:
    kind = dict(scope["headers"]).get(b"content-type", b"")
    return bool(kind.lower().startswith(b"multipart/"))


def _is_path(value: str) -> bool:
    return any(part in value for part in ("/", "\\", "\0")) or value in (".", "..")


async def _answer(send: Any, refusal: Refusal) -> None:
    body = json.dumps({"detail": refusal.text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *_HEADERS]
    headers += [(b"connection", b"close")]  # so that the rest of a refused body is not waited for
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
