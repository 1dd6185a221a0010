"""The routes of the server: the useful ones of MONAI Label, with one-sentence answers to invalid requests.

MONAI Label answers an invalid request with status 500 and a traceback, and has routes that are not needed here: logs,
model files, upload sessions, reloading. Only the functions named here are served, one at a time in a separate thread,
so that the event loop serves connections while an image is segmented.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import json
import os
import re
import time
import types
from collections.abc import Callable, Coroutine, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

import jwt
import requests
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from monailabel import app as monailabel_app
from monailabel.config import settings
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    infer,
    info,
    login,
    ohif,
    scoring,
    train,
    wsi_infer,
)
from monailabel.endpoints.user import auth
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks import utils as tasks
from monailabel.utils.async_tasks.task import AsyncTask
from pydantic import ValidationError
from requests import HTTPError, RequestException

from amsam_med.errors import AmsamError, DataError
from amsam_med.label.asked import asked
from amsam_med.label.gate import BODY_LIMIT
from amsam_med.label.server import as_dicom
from amsam_med.label.tasks import ASKED_AT_ONCE

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

SERVED = (info, infer, wsi_infer, batch_infer, train, activelearning, scoring, datastore, ohif)
"""Parts of MONAI Label whose addresses there are."""
SIGNATURES = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]
"""Of tokens that are taken; all are checked by the realm's public key."""
WAITING_TASKS, KEPT_TASKS = 4, 50
"""Trainings, batches or scorings of one kind that may wait for their turn; and those whose end is remembered."""
PROXY_SECONDS = 120.0
"""For which an answer of the DICOMweb server is waited for."""

_DICOMWEB_PATH = re.compile(r"(studies|series|instances)(/[A-Za-z0-9][A-Za-z0-9.,_-]*)*")
_SENT_ON = re.compile(  # kinds of answers that no browser takes for a page
    r"(application/(dicom|dicom\+json|json|octet-stream)|multipart/related|image/(?!svg)[\w.+-]+|video/[\w.+-]+)(;.*)?"
)
_FOLDERS = re.compile(r"""(?<![\w.])/(?:[^\s/:;,'"()]+/)+""")
_LONGEST_TEXT = 300


def routed_app() -> FastAPI:
    """The app with all addresses that are served."""
    app: FastAPI = FastAPIOffline(
        docs_url="/", redoc_url="/docs", title=settings.MONAI_LABEL_PROJECT_NAME, lifespan=monailabel_app.lifespan
    )
    app.add_middleware(_DicomOutput)
    app.mount("/static", StaticFiles(directory=monailabel_app.static_dir), name="static")
    turn = asyncio.Lock()
    routers = [_taking_turns(module.router, turn) for module in SERVED]
    if settings.MONAI_LABEL_AUTH_ENABLE:
        routers.append(_taking_turns(login.router, asyncio.Lock()))
    for router in (*routers, _proxy()):
        app.include_router(router, prefix=settings.MONAI_LABEL_API_STR)
    app.add_api_route("/favicon.ico", _favicon, include_in_schema=False)
    _mend_monailabel()
    _answer_plainly(app)
    return app


class _DicomOutput:
    """Has MONAI Label answer ``output=dicom_seg`` with a file that is one already; its own converter is not used."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        if scope["type"] == "http" and scope["path"].startswith("/infer/") and ("output", "dicom_seg") in query:
            as_dicom.set(True)
            query = [(name, "image" if name == "output" else value) for name, value in query]
            scope = {**scope, "query_string": urlencode(query).encode()}
        await self.app(scope, receive, send)


def _taking_turns(router: APIRouter, turn: asyncio.Lock) -> APIRouter:
    """The same addresses; what answers them runs in a thread, one request at a time."""

    def in_turn(endpoint: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
        @functools.wraps(endpoint)
        async def answer(**values: Any) -> Any:
            async with turn:
                return await asyncio.to_thread(_ended, endpoint(**values))

        return answer

    served = APIRouter()
    for route in router.routes:
        assert isinstance(route, APIRoute)
        served.add_api_route(
            route.path,
            in_turn(route.endpoint),
            methods=list(route.methods),
            summary=route.summary,
            tags=list(route.tags),
            deprecated=route.deprecated,
            include_in_schema=route.include_in_schema,
        )
    return served


def _ended(answer: Coroutine[Any, Any, Any]) -> Any:
    """The result of a function of MONAI Label that is declared ``async`` but never awaits anything."""
    try:
        answer.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("an address of MONAI Label waits for something")


async def _favicon() -> FileResponse:
    return FileResponse(Path(monailabel_app.static_dir) / "favicon.ico", media_type="image/x-icon")


def _proxy() -> APIRouter:
    """The DICOMweb server behind this one, for viewers in browsers: its studies, and nothing else of that machine."""
    router, known = APIRouter(), Depends(auth.RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
    router.add_api_route("/proxy/dicom/{path:path}", _asked_on, include_in_schema=False, dependencies=[known])
    return router


def _asked_on(path: str) -> Response:
    """The DICOMweb server's answer, bounded in size and time; it may not send the request on to another address."""
    path = re.sub(r"^(wado|qido|stow)/", "", path)
    if not _DICOMWEB_PATH.fullmatch(path):
        raise HTTPException(404, "not an address of DICOMweb; expected studies, and what is in them")
    token = os.environ.get("AMSAM_DICOMWEB_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    address = f"{settings.MONAI_LABEL_STUDIES.rstrip('/')}/{path}"
    until, content = time.monotonic() + PROXY_SECONDS, bytearray()
    with requests.get(address, headers=headers, stream=True, timeout=(10, 30), allow_redirects=False) as answer:
        if answer.is_redirect:
            raise HTTPException(502, "the DICOMweb server sends the request on to another address")
        for piece in answer.iter_content(1 << 16):
            content += piece
            if len(content) > BODY_LIMIT or time.monotonic() > until:
                raise HTTPException(502, "the DICOMweb server sends too much, or too slowly")
        kind = answer.headers.get("content-type", "")
    kind = kind if _SENT_ON.fullmatch(kind) else "application/octet-stream"
    return Response(bytes(content), answer.status_code, media_type=kind)


def _mend_monailabel() -> None:
    """Replace harmful behaviour inside MONAI Label's own functions."""
    auth.jwt = types.SimpleNamespace(decode=_claims)
    auth.from_token = functools.partial(_user_of, auth.from_token)
    infer.binary_to_image = _no_scribbles
    ohif.get_ohif = _ohif_page
    AsyncTask.run = staticmethod(functools.partial(_run_task, AsyncTask.run))
    AsyncTask.status = staticmethod(functools.partial(_task_status, AsyncTask.status))
    AsyncTask.stop = staticmethod(lambda method, stop=AsyncTask.stop: _shown_task(stop(method)))


def _claims(token: str, key: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a token says, if the realm has signed it for this server, and for now.

    Raises:
        InvalidTokenError: It has not. MONAI Label leaves the kinds of signature open and does not ask for whom it is.
    """
    claims: dict[str, Any] = jwt.decode(
        token, key, algorithms=SIGNATURES, options={**options, "require": ["exp"], "verify_aud": False}
    )
    meant = claims.get("aud", [])
    parties = {claims["azp"]} if "azp" in claims else set()
    parties |= {meant} if isinstance(meant, str) else set(meant)
    if parties and settings.MONAI_LABEL_AUTH_CLIENT_ID not in parties:
        raise jwt.InvalidAudienceError("the token is for another application")
    return claims


def _user_of(from_token: Callable[[str], Any], token: str) -> Any:
    try:
        return from_token(token)
    except (ValidationError, AttributeError, TypeError, KeyError, ValueError):  # a token without a name or roles
        raise jwt.InvalidTokenError("the token names no user with a role") from None


def _no_scribbles(*_: object, **__: object) -> str:
    raise DataError("scribbles are not taken; send a box (roi), or points (foreground, background)")


def _ohif_page(path: str) -> FileResponse:
    """A file of the viewer; for its own addresses, of which there are no files, its page."""
    folder = Path(monailabel_app.static_dir) / "ohif"
    file = folder / path
    is_file = bool(path) and "/" not in path and "\0" not in path and len(path) < 200 and file.is_file()
    return FileResponse(file if is_file else folder / "index.html")


def _run_task(
    run: Callable[..., Any],
    method: Any,
    request: Mapping[str, Any] | None = None,
    params: object = None,
    force_sync: bool = False,
    enqueue: bool = False,
) -> Any:
    """A training, batch or scoring, with the entries that it knows and no others; a few may wait for their turn.

    Raises:
        DataError: An entry of the request is of another type than it must be.
        MONAILabelException: There is no such model or method.
        HTTPException: It would keep all others waiting.
    """
    request = request or {}
    if not isinstance(params, dict | None):
        raise DataError("the request is not what is expected there; send a JSON object")
    named = {kind: request[kind] for kind in ("model", "method") if kind in request}
    given = {name: one.value if isinstance(one, Enum) else one for name, one in {**request, **(params or {})}.items()}
    given = asked(method, {**given, **named})
    app = app_instance()
    app.refuse_unknown(given)
    if force_sync and (method == "train" or _images_of(given, app) > ASKED_AT_ONCE):
        raise HTTPException(400, "this takes longer than others can wait; leave run_sync out, and ask for its end")
    listed = tasks.tasks(method)
    if not force_sync and sum(one["status"] in ("SUBMITTED", "RUNNING") for one in listed) > WAITING_TASKS:
        return None, f"{WAITING_TASKS} are waiting already; start another one when one of them has ended"
    del listed[: max(0, len(listed) - KEPT_TASKS)]
    return run(method, given, None, force_sync, enqueue)


def _task_status(status: Callable[..., Any], *given: Any, **more: Any) -> Any:
    found, why = status(*given, **more)
    return ([_shown_task(one) for one in found] if isinstance(found, list) else _shown_task(found)), why


def _shown_task(task: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A task as clients see it: the last lines of its process are without the folders of this machine."""
    if task is None:
        return None
    return {**task, "details": [_FOLDERS.sub("", line) for line in task.get("details", ())]}


def _images_of(given: Mapping[str, Any], app: Any) -> int:
    named = given.get("images")
    count = len(named) if isinstance(named, list) else len(app.datastore().list_images())
    return min(count, given.get("max_batch_size") or count)


def _answer_plainly(app: FastAPI) -> None:
    """Answer invalid requests with one sentence, without paths of this machine."""

    def on(kind: type[Exception], answer: Callable[[Any], tuple[int, str]]) -> None:
        async def handle(_: Request, error: Exception) -> JSONResponse:
            status, text = answer(error)
            headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
            return JSONResponse({"detail": _shown(text)}, status_code=status, headers=headers)

        app.add_exception_handler(kind, handle)

    on(AmsamError, lambda error: (422, str(error)))
    on(MONAILabelException, lambda error: (404, str(error.msg)))
    on(json.JSONDecodeError, lambda error: (400, f"params is not JSON: {error}"))
    on(RequestValidationError, lambda error: (422, _first_fault(error)))
    for misshapen in (TypeError, ValueError):
        on(misshapen, lambda error: (400, f"the request is not what is expected there: {error}"))
    on(RecursionError, lambda error: (400, "the request is nested too deep"))
    on(MemoryError, lambda error: (413, "the request takes more memory than this machine has"))
    on(RequestException, _unreachable)
    on(OSError, _system_fault)
    on(HTTPException, lambda error: (400 if error.status_code == 500 else error.status_code, str(error.detail)))


def _first_fault(error: RequestValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _unreachable(error: RequestException) -> tuple[int, str]:
    if isinstance(error, HTTPError) and error.response is not None and error.response.status_code < 500:
        return 401, "the realm does not know this user and password"
    return 502, f"another server does not answer ({type(error).__name__}); check that it is up"


def _system_fault(error: OSError) -> tuple[int, str]:
    if isinstance(error, FileNotFoundError):
        return 404, f"this machine has no {Path(str(error.filename)).name}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 507, "the disk of this server is full"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return 403, "the server has no right to write there"
    return 400, f"a name in the request cannot be that of a file ({error.strerror})"


def _shown(text: str) -> str:
    """A message on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_TEXT else f"{line[: _LONGEST_TEXT - 3]}..."
