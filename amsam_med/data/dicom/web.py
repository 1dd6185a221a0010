"""A client of DICOMweb servers: searches, images, results. Answers are validated and bounded in size and time."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import IO, Annotated, Any
from urllib.parse import SplitResult, urljoin, urlsplit

from pydantic import Field, StringConstraints

from amsam_med.data.tables import cut_text, visible
from amsam_med.errors import AmsamError, DataError, MissingExtraError
from amsam_med.schema import Record, checked
from amsam_med.scratch import MORE_ROOM, scratch_folder

INSTANCE_LIMIT = 2 << 30
"""The largest instance that is fetched, in bytes."""
LISTED_INSTANCES = 1_000_000
"""The most instances that a query may find."""

_PAGE = 500  # instances per request of a search
_NOT_IMAGES = ("SEG", "SR", "PR", "KO", "DOC", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "FID", "ANN")  # modalities
_ANSWER_LIMIT = 64 << 20  # bytes of an answer other than an instance
_SLOWEST, _PATIENCE = 64 << 10, 60.0  # least bytes per second of an answer, checked after so many seconds
_TIMEOUT = (
    10.0,
    60.0,
)  # seconds to connect, and between two pieces of an answer: a slow trickle never reaches the latter
_Uid = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=64)]


def split_address(address: str) -> SplitResult:
    """The parts of an address.

    Raises:
        DataError: It is not a valid address.
    """
    try:
        return urlsplit(address)
    except ValueError as error:
        raise DataError(
            f"{cut_text(address)}: not an address ({visible(str(error))}). Give, for example, "
            "dicomweb:http://127.0.0.1:8042/dicom-web?Modality=XC"
        ) from None


class _Attribute(Record, extra="ignore"):
    """An attribute of DICOM JSON of which the first value is used."""

    values: list[str] = Field(alias="Value", default=[], max_length=100)


class _UidAttribute(Record, extra="ignore"):
    values: list[_Uid] = Field(alias="Value", min_length=1, max_length=1)


class _Found(Record, extra="ignore"):
    """An instance in a server's answer to a search."""

    study: _UidAttribute = Field(alias="0020000D")
    series: _UidAttribute = Field(alias="0020000E")
    instance: _UidAttribute = Field(alias="00080018")
    modality: _Attribute = Field(alias="00080060", default=_Attribute())


class DicomWeb:
    """A DICOMweb server, through dicomweb-client. Answers are validated and bounded in size and time.

    User and password are looked up in ``~/.netrc``; a bearer token in the environment variable
    ``AMSAM_DICOMWEB_TOKEN`` is sent with every request. So redirections to other servers, which would receive it, are
    refused.

    Args:
        address: Its base address, ``http://host:port/dicom-web``.

    Raises:
        MissingExtraError: dicomweb-client is not installed.
        DataError: The address is not valid, or contains a password, which would end up in tables and logs.
    """

    def __init__(self, address: str) -> None:
        try:
            from dicomweb_client.api import DICOMwebClient
        except ImportError:
            raise MissingExtraError("dicomweb-client", "dicom") from None
        if "@" in split_address(address).netloc:
            raise DataError("a DICOMweb address with user and password in it; put them into ~/.netrc instead")
        token = os.environ.get("AMSAM_DICOMWEB_TOKEN")
        self.address = address
        self._session = _bounded_session()
        with self._named_faults():
            self._client: Any = DICOMwebClient(
                address,
                session=self._session,
                headers={"Authorization": f"Bearer {token}"} if token else None,
                timeout=_TIMEOUT,
            )
        self._client.set_http_retry_params(retry=False)  # the session does that

    def instances(self, query: dict[str, str]) -> Iterator[str]:
        """All images that match a query, page by page, as "study/series/instance".

        Raises:
            DataError: The server does not answer, or refuses.
        """
        return (member for member, modality in self._search(query) if modality not in _NOT_IMAGES)

    def segmentations(self, query: dict[str, str]) -> Iterator[str]:
        """All DICOM segmentations that match a query, page by page, as "study/series/instance".

        Raises:
            DataError: The server does not answer, or refuses.
        """
        return (member for member, modality in self._search({**query, "Modality": "SEG"}) if modality == "SEG")

    def instance(self, member: str) -> bytes:
        """One instance as a DICOM file, in the encoding that the server has it in.

        Raises:
            DataError: The server does not answer, refuses, or sends something else.
        """
        with scratch_folder() as folder:
            self.fetch(member, folder / "instance")
            return (folder / "instance").read_bytes()

    def fetch(self, member: str, copy: Path) -> None:
        """Write one instance to a file, as :meth:`instance` returns it.

        Raises:
            DataError: The server does not answer, refuses, or sends something else.
        """
        study, series, instance = member.split("/")
        url = f"{self.address.rstrip('/')}/studies/{study}/series/{series}/instances/{instance}"
        # Any transfer syntax, so that the server need not transcode the image.
        accepted = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
        # Streamed to disk instead of through dicomweb-client: an instance may have gigabytes.
        with self._named_faults(), tempfile.TemporaryFile(dir=copy.parent) as body:
            with self._session.get(url, headers=accepted, stream=True, timeout=_TIMEOUT) as answer:
                answer.raise_for_status()
                for piece in _pieces(answer, INSTANCE_LIMIT):
                    body.write(piece)
                kind = str(answer.headers.get("Content-Type", ""))
            body.flush()
            _write_first_part(body, kind, copy)

    def store(self, files: Iterable[Path]) -> None:
        """Send DICOM files to the server.

        Raises:
            DataError: The server does not answer, or refuses one.
        """
        import pydicom

        sent = [pydicom.dcmread(path) for path in files]
        with self._named_faults():
            answer = self._client.store_instances(sent)
        if answer.get("FailedSOPSequence"):
            raise DataError(f"{self.address} refused to store the results; its log says why")

    def _search(self, query: dict[str, str]) -> Iterator[tuple[str, str]]:
        """Instances as "study/series/instance", and the modality of each."""
        before: list[tuple[str, str]] = []
        for start in itertools.count(0, _PAGE):
            with self._named_faults():
                page = self._client.search_for_instances(
                    search_filters=query, limit=_PAGE, offset=start, fields=["Modality"]
                )
                found = [self._checked(one) for one in page]
            if found == before:  # a server without paging answers every request with the same list, and would never end
                return
            if start > LISTED_INSTANCES:
                raise DataError(
                    f"DICOMweb server {self.address} finds more than {LISTED_INSTANCES:,} instances; ask for less"
                )
            yield from found
            if len(page) < _PAGE:
                return
            before = found

    def _checked(self, answer: Any) -> tuple[str, str]:
        name = f"DICOMweb server {self.address} lists an instance"
        one = checked(_Found, answer if isinstance(answer, dict) else {}, name, "see what it answers to a search")
        member = "/".join(attribute.values[0] for attribute in (one.study, one.series, one.instance))
        return member, (one.modality.values or [""])[0]

    @contextmanager
    def _named_faults(self) -> Iterator[None]:
        try:
            yield
        except AmsamError:
            raise
        except Exception as error:  # dicomweb-client and requests raise nearly anything for a malformed answer
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise DataError(f"no room for what the DICOMweb server sends. {MORE_ROOM}") from None
            # Only status and reason are quoted, escaped and cut, since the server chooses them.
            answer = getattr(error, "response", None)
            what = type(error).__name__ if answer is None else f"it answers {answer.status_code} {answer.reason}"
            what = "it does not answer in time" if answer is None and "timed out" in str(error) else what
            raise DataError(
                f"DICOMweb server {self.address}: {visible(what)[:100]}. Check the address, that it is up, and "
                "~/.netrc or AMSAM_DICOMWEB_TOKEN if it asks who you are"
            ) from None


def _bounded_session() -> Any:
    """A session with one server: no redirection to others, answers bounded, a few retries while it is busy."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util.retry import Retry

    class Bounded(HTTPAdapter):
        def send(self, request: requests.PreparedRequest, stream: bool = False, *args: Any, **settings: Any) -> Any:
            answer: Any = super().send(request, True, *args, **settings)
            if not stream or answer.is_redirect:  # streamed answers are bounded where they are read
                with answer:  # closes the connection even if reading is given up
                    answer._content = b"".join(_pieces(answer, _ANSWER_LIMIT))
                    answer._content_consumed = True
            return answer

    class OneServer(requests.Session):
        def get_redirect_target(self, resp: Any) -> str | None:
            target = super().get_redirect_target(resp)
            here, there = split_address(resp.url), split_address(urljoin(resp.url, target or ""))
            if target is not None and (here.scheme, here.netloc) != (there.scheme, there.netloc):
                raise DataError(
                    f"DICOMweb server {here.netloc}: it leads on to another server, {visible(there.netloc)[:80]!r}; "
                    "give that one's address if it is right"
                )
            return target

    tries = Retry(
        total=4,
        connect=0,
        read=0,
        other=0,
        status_forcelist=(408, 429, 503, 504),
        allowed_methods=("GET",),
        backoff_factor=1,
        respect_retry_after_header=False,  # the server could make us wait a year
        raise_on_status=False,
    )
    session = OneServer()
    session.max_redirects = 5
    for scheme in ("http://", "https://"):
        session.mount(scheme, Bounded(max_retries=tries))
    return session


def _pieces(answer: Any, limit: int) -> Iterator[bytes]:
    """The body of an answer, bounded in size and time."""
    start, size = time.monotonic(), 0
    # read1 returns what has arrived. read would wait for a whole block, which a slow server may never complete.
    while piece := answer.raw.read1(1 << 16, decode_content=True):
        size += len(piece)
        if size > limit:
            raise DataError(f"the DICOMweb server sends more than {limit:,} bytes in one answer")
        if time.monotonic() - start > _PATIENCE + size / _SLOWEST:
            raise DataError("the DICOMweb server sends too slowly to wait for it")
        yield piece


def _write_first_part(body: IO[bytes], content_type: str, copy: Path) -> None:
    """Write the DICOM file of an answer, which is its body, or the first part of a multipart body."""
    header = Message()
    header["Content-Type"] = content_type
    kind, boundary = header.get_content_type(), header.get_param("boundary")
    size = os.fstat(body.fileno()).st_size
    refused = DataError(f"the DICOMweb server sends {visible(kind)[:60]!r} where a DICOM file is expected")
    if size == 0:
        raise refused
    # Mapped, not read, for the same reason.
    with mmap.mmap(body.fileno(), size, access=mmap.ACCESS_READ) as content, copy.open("wb") as file:
        start, end = 0, size
        if kind == "multipart/related" and isinstance(boundary, str) and boundary:
            marker = f"--{boundary}".encode("utf-8", errors="replace")
            head = content.find(marker)
            start = content.find(b"\r\n\r\n", head, head + (1 << 16)) + 4 if head >= 0 else 3
            end = content.find(b"\r\n" + marker, start)
            end = size if end < 0 else end
        elif kind != "application/dicom":
            raise refused
        if start == 3 or content[start + 128 : start + 132] != b"DICM":
            raise refused
        for place in range(start, end, 1 << 20):
            file.write(content[place : min(end, place + (1 << 20))])
