"""MONAI Label's server with our app, closed to what does not belong to the studies.

MONAI Label answers a wrong request with status 500 and a traceback, and takes any path that the server can read for an
image's name. Here, wrong requests get a status of 4xx with a sentence, names of images may not be paths, and bodies
have a limit. Settings of MONAI Label itself (``MONAI_LABEL_*`` environment variables) hold as ever.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import tempfile
import types
from collections.abc import Mapping
from contextlib import ExitStack
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from amsam_med.data.readers import IMAGE_SUFFIXES
from amsam_med.errors import AmsamError, ConfigError, MissingExtraError
from amsam_med.sources import DicomWeb

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

as_dicom: ContextVar[bool] = ContextVar("as_dicom", default=False)
"""Whether the request that is being answered asked for a DICOM segmentation by MONAI Label's ``output=dicom_seg``."""
BODY_LIMIT = 512 << 20
"""Bytes that a request may have."""

_MAIN = """\
from amsam_med.label.server import import_monailabel

import_monailabel()

from amsam_med.label.app import AmSamLabelApp as AmSamLabelApp
"""
SIGNATURES = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]
"""Of tokens that are taken; all are checked by the realm's public key."""
_NAMES = ("image", "label", "id", "tag", "session_id")  # of a query, that may end up in a path


def serve(
    studies: str, conf: Mapping[str, str], host: str = "127.0.0.1", port: int = 8000, log_level: str = "info"
) -> None:
    """Run the server until it is interrupted.

    Args:
        studies: A folder of images, or the address of a DICOMweb server, which may hold a query:
            ``http://127.0.0.1:8042/dicom-web?Modality=XC``.
        conf: As for :class:`amsam_med.label.app.AmSamLabelApp`.
        host: Address to listen on; the default can be reached from this machine alone.
        port: Port to listen on.
        log_level: Of uvicorn.

    Raises:
        MissingExtraError: MONAI Label is not installed.
        ConfigError: The folder of studies is not there.
        DataError: The DICOMweb server does not answer.
    """
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="amsam-label-"))
        stack.callback(setattr, tempfile, "tempdir", tempfile.tempdir)
        tempfile.tempdir = scratch  # uploads go where nothing else lies
        studies, conf = _located(studies, conf)
        app_folder = Path(scratch) / "app"
        app_folder.mkdir()
        (app_folder / "main.py").write_text(_MAIN, encoding="utf-8")
        os.environ.update(_settings(studies, conf, port, app_folder))
        import_monailabel()
        import uvicorn

        uvicorn.run(guarded_app(), host=host, port=port, log_level=log_level)


def local_folder(address: str) -> Path:
    """Where images, labels and versions of a DICOMweb server's studies are kept, unless another place is given."""
    return Path.home() / ".amsam" / "label" / re.sub(r"[^\w.-]+", "_", address.split("://", 1)[1].rstrip("/"))


def import_monailabel() -> None:
    """Make MONAI Label importable beside pydicom 3, which has no longer a module that it imports one name from.

    Raises:
        MissingExtraError: It is not installed.
    """
    name = "pydicom._storage_sopclass_uids"
    if name not in sys.modules:
        stand_in = types.ModuleType(name)
        vars(stand_in)["SegmentationStorage"] = "1.2.840.10008.5.1.4.1.1.66.4"
        sys.modules[name] = stand_in
    try:
        importlib.import_module("monailabel.config")
    except ModuleNotFoundError as error:
        raise MissingExtraError("monailabel", "label") from error


def guarded_app() -> ASGIApp:
    """MONAI Label's FastAPI app; what is wrong with a request is said in its answer."""
    from fastapi import HTTPException, Request
    from fastapi.responses import JSONResponse
    from monailabel.app import app
    from monailabel.config import settings
    from monailabel.interfaces.exception import MONAILabelException
    from requests import RequestException

    app.user_middleware.clear()  # MONAI Label lets the pages of all sites use the server; viewers are no pages
    _serve_own_pages(app)
    _name_algorithms()

    def refused(status: int, text: str) -> JSONResponse:
        return JSONResponse({"detail": text}, status_code=status)

    async def amsam_error(_: Request, error: AmsamError) -> JSONResponse:
        return refused(422, str(error))

    async def unknown_name(_: Request, error: MONAILabelException) -> JSONResponse:
        return refused(404, str(error.msg))

    async def not_json(_: Request, error: json.JSONDecodeError) -> JSONResponse:
        return refused(400, f"params is not JSON: {error}")

    async def misshapen(_: Request, error: TypeError | ValueError) -> JSONResponse:
        return refused(400, f"the request is not what is expected there: {error}")

    async def missing(_: Request, error: FileNotFoundError) -> JSONResponse:
        return refused(404, f"this machine has no {Path(str(error.filename)).name}")

    async def unreachable(_: Request, error: RequestException) -> JSONResponse:
        return refused(502, f"another server does not answer ({type(error).__name__}); check that it is up")

    async def refusal(_: Request, error: HTTPException) -> JSONResponse:
        return refused(400 if error.status_code == 500 else error.status_code, str(error.detail))

    app.add_exception_handler(AmsamError, amsam_error)
    app.add_exception_handler(MONAILabelException, unknown_name)
    app.add_exception_handler(json.JSONDecodeError, not_json)
    app.add_exception_handler(TypeError, misshapen)
    app.add_exception_handler(ValueError, misshapen)
    app.add_exception_handler(FileNotFoundError, missing)
    app.add_exception_handler(RequestException, unreachable)
    app.add_exception_handler(HTTPException, refusal)
    return _Guard(app, is_address(str(settings.MONAI_LABEL_STUDIES)))


def _serve_own_pages(app: Any) -> None:
    """Pages of the API that need no other site."""
    from fastapi_offline import FastAPIOffline

    pages = FastAPIOffline(docs_url="/", redoc_url="/docs", title=app.title, openapi_url=app.openapi_url)
    replaced = {"/", "/docs"}
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") not in replaced]
    app.router.routes.extend(route for route in pages.router.routes if getattr(route, "path", "") != app.openapi_url)


def _name_algorithms() -> None:
    """Say which signatures of a token count: MONAI Label leaves that open, and PyJWT 2 refuses to guess."""
    import jwt
    from monailabel.endpoints.user import auth

    auth.jwt = types.SimpleNamespace(decode=partial(jwt.decode, algorithms=SIGNATURES))


class _Guard:
    """Refuses names that are paths, and bodies without end."""

    def __init__(self, app: ASGIApp, is_remote: bool) -> None:
        self.app, self.is_remote = app, is_remote

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if wrong := next((name for name, value in query if name in _NAMES and _is_path(value)), None):
            await _answer(send, 400, f"{wrong} is a path; expected a name that GET /datastore lists")
            return
        headers = dict(scope["headers"])
        if scope["method"] != "GET" and _is_foreign(headers):
            await _answer(send, 403, "pages of other sites may not use this server")
            return
        if scope["path"].rstrip("/") == "/reload":
            await _answer(send, 404, "restart the server to load its app anew")
            return
        if scope["path"].startswith("/proxy") and not self.is_remote:
            await _answer(send, 404, "the studies are a folder; there is no DICOMweb server to ask")
            return
        if scope["path"].startswith("/infer/") and ("output", "dicom_seg") in query:
            as_dicom.set(True)
            query = [(name, "image" if name == "output" else value) for name, value in query]
            scope = {**scope, "query_string": urlencode(query).encode()}
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > BODY_LIMIT:
            await _answer(send, 413, f"the request has {int(length):,} bytes; expected at most {BODY_LIMIT:,}")
            return
        await self.app(scope, _limited(receive), send)


def _is_foreign(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser sends this for a page of another site."""
    origin = headers.get(b"origin", b"")
    return origin not in (b"", b"http://" + headers.get(b"host", b""), b"https://" + headers.get(b"host", b""))


def _limited(receive: Receive) -> Receive:
    taken = 0

    async def limited() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > BODY_LIMIT:
            return {"type": "http.disconnect"}  # a body whose length was not said before
        return message

    return limited


async def _answer(send: Send, status: int, text: str) -> None:
    body = json.dumps({"detail": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _is_path(value: str) -> bool:
    return any(part in value for part in ("/", "\\", "\0")) or value in (".", "..")


def is_address(studies: str) -> bool:
    """Whether studies are those of a DICOMweb server."""
    return studies.startswith(("http://", "https://"))


def _located(studies: str, conf: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
    """Studies without their query, and all that the app is told."""
    if not is_address(studies):
        if not Path(studies).is_dir():
            raise ConfigError(
                f"{studies}: no such folder; give a folder of images, or the address of a DICOMweb server"
            )
        return str(Path(studies).resolve()), conf
    url = urlsplit(studies)
    address, query = urlunsplit((url.scheme, url.netloc, url.path.rstrip("/"), "", "")), dict(parse_qsl(url.query))
    next(DicomWeb(address).instances({**query}), None)  # says what is wrong with it before anything starts
    return address, {"folder": str(local_folder(address)), **conf, "query": json.dumps(query)}


def _settings(studies: str, conf: Mapping[str, str], port: int, app_folder: Path) -> dict[str, str]:
    """MONAI Label's settings; what the user's environment has of them comes first."""
    here = str(Path(__file__).parents[2])
    chosen = {
        "MONAI_LABEL_APP_DIR": str(app_folder),
        "MONAI_LABEL_STUDIES": studies,
        "MONAI_LABEL_APP_CONF": json.dumps(dict(conf)),
        "MONAI_LABEL_SERVER_PORT": str(port),
        "TMPDIR": str(app_folder.parent),
        "PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH", "")))),
    }
    endings = [f"*{ending}" for suffix in IMAGE_SUFFIXES for ending in (suffix, suffix.upper())]
    defaults = {
        "MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps(endings),
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",  # a look at all images after each one would take the CPU
        "MONAI_LABEL_PROJECT_NAME": "AM-SAM Med, MONAI Label",
        "MONAI_LABEL_SESSIONS": "false",
        "MONAI_LABEL_TRACKING_ENABLED": "false",
    }
    return {name: os.environ.get(name, value) for name, value in defaults.items()} | chosen
