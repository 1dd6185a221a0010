"""MONAI Label's server with this project's app, restricted to what the studies need.

``routes.py`` has its routes, ``gate.py`` checks who may send which requests. MONAI Label's own settings
(``MONAI_LABEL_*`` environment variables) are still used; a settings file is not read.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import tempfile
import types
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from amsam_med import weights
from amsam_med.data.dicom.web import DicomWeb
from amsam_med.data.readers import IMAGE_SUFFIXES
from amsam_med.errors import ConfigError, MissingExtraError
from amsam_med.scratch import scratch_folder, sweep_scratch

if TYPE_CHECKING:
    from starlette.types import ASGIApp

as_dicom: ContextVar[bool] = ContextVar("as_dicom", default=False)
"""Whether the request that is being answered asked for a DICOM segmentation by MONAI Label's ``output=dicom_seg``."""
HEAD_SECONDS = 20.0
"""For which the head of a request is waited for."""
CONNECTIONS = 256
"""That may be open at once."""

_MAIN = """\
from amsam_med.label.server import import_monailabel

import_monailabel()

from amsam_med.label.app import AmSamLabelApp as AmSamLabelApp
"""


def serve(
    studies: str,
    conf: Mapping[str, str],
    host: str = "127.0.0.1",
    port: int = 8000,
    log_level: str = "info",
    allowed_hosts: Sequence[str] = (),
    allowed_origins: Sequence[str] = (),
) -> None:
    """Run the server until it is interrupted.

    Args:
        studies: A folder of images, or the address of a DICOMweb server, which may hold a query:
            ``http://127.0.0.1:8042/dicom-web?Modality=XC``.
        conf: As for :class:`amsam_med.label.app.AmSamLabelApp`.
        host: Address to listen on; the default can be reached from this machine alone.
        port: Port to listen on.
        log_level: Of uvicorn.
        allowed_hosts: Names or addresses that clients may call it by, besides its own.
        allowed_origins: Sites whose pages may use it, besides its own.

    Raises:
        MissingExtraError: MONAI Label is not installed.
        ConfigError: The folder of studies is not there, or its list of images is damaged.
        DataError: The DICOMweb server does not answer.
    """
    with ExitStack() as stack:
        sweep_scratch()  # removes uploads that a killed server has left
        scratch = str(stack.enter_context(scratch_folder()))
        stack.callback(setattr, tempfile, "tempdir", tempfile.tempdir)
        tempfile.tempdir = scratch  # uploads are stored in a folder without other files
        studies, conf = _located(studies, _absolute(conf))
        app_folder = Path(scratch) / "app"
        app_folder.mkdir()
        (app_folder / "main.py").write_text(_MAIN, encoding="utf-8")
        os.environ.update(_settings(studies, conf, port, app_folder))
        # MONAI Label reads settings from a file .env where it is started, and Python modules for its trainings: neither
        # may be one that came with a folder of studies.
        stack.callback(os.chdir, Path.cwd())
        os.chdir(app_folder)
        import_monailabel()
        import uvicorn
        from monailabel.interfaces.utils.app import app_instance

        from amsam_med.label.gate import hosts_of

        app = guarded_app(hosts_of(host, port, allowed_hosts), allowed_origins)
        app_instance()  # raises errors of the studies before the server starts
        uvicorn.run(
            app,
            host=host,
            port=port,
            log_level=log_level,
            http=_patient_protocol(),
            ws="none",
            proxy_headers=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
        )


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


def guarded_app(hosts: Iterable[str], origins: Iterable[str] = ()) -> ASGIApp:
    """MONAI Label's addresses behind a gate.

    Args:
        hosts: What clients may call this server; see :func:`amsam_med.label.gate.hosts_of`.
        origins: Sites whose pages may use it, besides its own.
    """
    from monailabel.config import settings
    from starlette.middleware.cors import CORSMiddleware

    from amsam_med.label.gate import Gate
    from amsam_med.label.routes import routed_app

    app: ASGIApp = routed_app()
    if trusted := [origin.lower().rstrip("/") for origin in origins]:
        app = CORSMiddleware(
            app, allow_origins=trusted, allow_credentials=True, allow_methods=["*"], allow_headers=["*"]
        )
    return Gate(app, hosts, trusted, is_address(str(settings.MONAI_LABEL_STUDIES)))


def _patient_protocol() -> type:
    """The HTTP protocol of uvicorn with a timeout for the head of a request."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Patient(H11Protocol):  # type: ignore[misc]  # uvicorn is not there when types are checked
        _wait: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._watch()

        def _watch(self) -> None:
            """Run a timer until a head is complete; further parts of it do not reset the timer."""
            is_waiting = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
            if is_waiting and self._wait is None:
                self._wait = self.loop.call_later(HEAD_SECONDS, self.transport.abort)
            elif not is_waiting and self._wait is not None:
                self._wait.cancel()
                self._wait = None

    return Patient


def is_address(studies: str) -> bool:
    """Whether studies are those of a DICOMweb server."""
    return studies.startswith(("http://", "https://"))


def _absolute(conf: Mapping[str, str]) -> Mapping[str, str]:
    """The same with paths that hold wherever the server works."""
    if folder := os.environ.get(weights.FOLDER_VARIABLE):
        os.environ[weights.FOLDER_VARIABLE] = os.path.abspath(folder)
    places = {name: os.path.abspath(conf[name]) for name in ("versions", "folder") if conf.get(name)}
    if (base := conf.get("base")) and base not in weights.known():
        places["base"] = os.path.abspath(base)
    return {**conf, **places}


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
    next(DicomWeb(address).instances({**query}), None)  # raises errors of the server before anything starts
    return address, {"folder": str(local_folder(address)), **conf, "query": json.dumps(query)}


def _settings(studies: str, conf: Mapping[str, str], port: int, app_folder: Path) -> dict[str, str]:
    """MONAI Label's settings; what the user's environment has of them comes first."""
    searched = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    chosen = {
        "MONAI_LABEL_APP_DIR": str(app_folder),
        "MONAI_LABEL_STUDIES": studies,
        "MONAI_LABEL_APP_CONF": json.dumps(dict(conf)),
        "MONAI_LABEL_SERVER_PORT": str(port),
        "TMPDIR": str(app_folder.parent),
        "PYTHONPATH": os.pathsep.join(os.path.abspath(place) for place in searched if place),
        "PYTHONSAFEPATH": "1",  # a training must import installed modules only, none from the folder of studies
        "MONAI_LABEL_SESSIONS": "false",
    }
    endings = [f"*{ending}" for suffix in IMAGE_SUFFIXES for ending in (suffix, suffix.upper())]
    defaults = {
        "MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps(endings),
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",  # scoring all images after each label would take the CPU
        "MONAI_LABEL_PROJECT_NAME": "AM-SAM Med, MONAI Label",
        "MONAI_LABEL_TRACKING_ENABLED": "false",
    }
    return {name: os.environ.get(name, value) for name, value in defaults.items()} | chosen
