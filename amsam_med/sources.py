"""Where the images of a run come from: files, folders, zip archives, a DICOMweb server.

:func:`list_inputs` finds them all without holding them in memory; :func:`local_copy` brings one of them to a path that
readers can open. Zip members and DICOM instances are written to the system's temporary folder for as long as they are
in hand, so an archive costs no more disk than a few of its members.

Of several files that would get results of one name, the first by path keeps it; ``a.png`` beside ``a.jpg`` becomes
``a.png_segmentation.png``, and if that is taken, a number follows. A name that the file system would not take is cut,
and ends in eight digits of its sha256. Where the path of a DICOM file tells whose it is (patient's name, identifier or
date of birth, as the file has them), that part of it is replaced by a digest of the study's or the instance's UID.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import re
import shutil
import sqlite3
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TypeAlias
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from amsam_med.data.datalists import image_stem
from amsam_med.data.identifiers import without_identifiers
from amsam_med.data.readers import IMAGE_SUFFIXES, is_image_file
from amsam_med.errors import ConfigError, DataError, MissingExtraError

ZIP_SUFFIX = ".zip"
DICOMWEB = "dicomweb:"
"""What an input begins with that names a DICOMweb server: ``dicomweb:http://host/dicom-web?StudyInstanceUID=1.2.3``."""
MEMBER_LIMIT = 2 << 30
"""The largest zip member, in bytes as it is unpacked."""
LISTED_MEMBERS = 200_000
"""The most members of one archive; their directory is held in memory while they are listed."""

_LONGEST_PART = 180  # bytes of a file name: most file systems take 255, and endings and a temporary name come on top
_MORE_ROOM = "Make room in the system's temporary folder, or name another one in the environment variable TMPDIR"
_PAGE = 500  # instances asked for at once
_NOT_IMAGES = ("SEG", "SR", "PR", "KO", "DOC", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "FID", "ANN")  # modalities

Kind: TypeAlias = Literal["file", "zip", "dicomweb", "none"]


class InputFile(NamedTuple):
    """A file to segment.

    Attributes:
        kind: How it is reached; "none" where it cannot be.
        place: Path of the file or of its archive, or address of the server.
        member: Name within the archive, or "study/series/instance".
        file: What ``results.csv`` calls it, beginning as the caller gave it.
        name: Sub-folder and stem of its results; no two files of a run have the same one.
        error: Why it cannot be read; mostly empty.
    """

    kind: Kind
    place: str
    member: str
    file: str
    name: str
    error: str = ""


class Inputs:
    """The files of a run, sorted by what they are called; they lie in a temporary data base, not in memory.

    Args:
        found: Files with the name that their results would like to have.
    """

    def __init__(self, found: Iterable[InputFile]) -> None:
        self._files = sqlite3.connect("", check_same_thread=False)  # SQLite's own temporary file
        self._files.execute("CREATE TABLE found (kind, place, member, file, name, error, UNIQUE (kind, place, member))")
        self._files.execute("CREATE TABLE files (kind, place, member, file, name, error)")
        self._files.execute("CREATE TABLE taken (name PRIMARY KEY) WITHOUT ROWID")
        self._insert("INSERT OR IGNORE INTO found VALUES (?, ?, ?, ?, ?, ?)", found)
        named = map(self._with_own_name, self._in("found"))
        self._insert("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)", named)
        self._files.execute("DROP TABLE found")

    def __len__(self) -> int:
        """How many there are."""
        return int(self._files.execute("SELECT count(*) FROM files").fetchone()[0])

    def __iter__(self) -> Iterator[InputFile]:
        """One after another, by what they are called."""
        return self._in("files")

    def _in(self, table: str) -> Iterator[InputFile]:
        for row in self._files.execute(f"SELECT * FROM {table} ORDER BY file, rowid"):
            yield InputFile._make(os.fsdecode(text) if isinstance(text, bytes) else text for text in row)

    def _insert(self, statement: str, files: Iterable[InputFile]) -> None:
        for some in _in_thousands(files):  # reading and writing one data base take turns
            self._files.executemany(statement, [[_as_stored(text) for text in file] for file in some])

    def _with_own_name(self, file: InputFile) -> InputFile:
        folder, slash, _ = file.name.rpartition("/")
        whole = folder + slash + file.file.rpartition("/")[2]
        for name in itertools.chain([file.name, whole], (f"{whole}-{n}" for n in itertools.count(2))):
            name = _short_enough(name)
            try:  # some file systems ignore case
                self._files.execute("INSERT INTO taken VALUES (?)", (_as_stored(name.casefold()),))
            except sqlite3.IntegrityError:
                continue
            return file._replace(name=name)
        raise AssertionError("names do not run out")


def list_inputs(
    given: Iterable[str], is_result: Callable[[Path], bool] = lambda _: False, keeps_identifiers: bool = False
) -> Inputs:
    """All images behind what a user names, each once.

    Links to folders are followed, each folder is entered once. Hidden files and folders are left out.

    Args:
        given: Paths of files, folders and zip archives; addresses that begin with :data:`DICOMWEB`.
        is_result: Says of a folder whether it holds results of an earlier run, which are no inputs.
        keeps_identifiers: Whether paths that tell whose a DICOM image is are used as they are.

    Raises:
        DataError: One of them does not exist, or holds no images; a server does not answer.
        MissingExtraError: A server is named, and what it takes to ask it is not installed.
        ConfigError: The system's temporary folder has no room for the list.
    """
    try:
        inputs = Inputs(itertools.chain.from_iterable(_found_in(one, is_result, keeps_identifiers) for one in given))
    except sqlite3.OperationalError as error:
        raise ConfigError(f"no room for the list of inputs ({error}). {_MORE_ROOM}") from None
    if not len(inputs):
        raise DataError("no inputs; give image files, folders, zip archives, or dicomweb:URL")
    return inputs


@contextmanager
def local_copy(file: InputFile) -> Iterator[Path]:
    """A path where the file can be read until the block ends.

    Raises:
        DataError: It cannot be read, or not be unpacked safely.
        OSError: It is gone, or there is no room to unpack it.
    """
    if file.error:
        raise DataError(file.error)
    if file.kind == "file":
        yield Path(file.place)
        return
    with tempfile.TemporaryDirectory(prefix="amsam-") as folder:
        # Readers go by suffixes, and name the file in their errors.
        copy = Path(folder, _short_enough(PurePosixPath(file.member).name))
        if file.kind == "zip":
            _unpack(Path(file.place), file.member, copy)
        else:
            copy.write_bytes(DicomWeb(file.place).instance(file.member))
        yield copy


class DicomWeb:
    """A DICOMweb server, by dicomweb-client.

    User and password are looked up in ``~/.netrc``; a bearer token in the environment variable
    ``AMSAM_DICOMWEB_TOKEN`` goes with every request.

    Args:
        address: Its base address, ``http://host:port/dicom-web``.

    Raises:
        MissingExtraError: dicomweb-client is not installed.
        DataError: The address holds a password, which would end up in tables and logs.
    """

    def __init__(self, address: str) -> None:
        try:
            from dicomweb_client.api import DICOMwebClient
        except ImportError:
            raise MissingExtraError("dicomweb-client", "dicom") from None
        if "@" in urlsplit(address).netloc:
            raise DataError("a DICOMweb address with user and password in it; put them into ~/.netrc instead")
        token = os.environ.get("AMSAM_DICOMWEB_TOKEN")
        self.address = address
        self._client: Any = DICOMwebClient(address, headers={"Authorization": f"Bearer {token}"} if token else None)

    def instances(self, query: dict[str, str]) -> Iterator[str]:
        """All images that fit a query, page by page, as "study/series/instance".

        Raises:
            DataError: The server does not answer, or refuses.
        """
        return (member for member, modality in self._search(query) if modality not in _NOT_IMAGES)

    def segmentations(self, query: dict[str, str]) -> Iterator[str]:
        """All DICOM segmentations that fit a query, page by page, as "study/series/instance".

        Raises:
            DataError: The server does not answer, or refuses.
        """
        return (member for member, modality in self._search({**query, "Modality": "SEG"}) if modality == "SEG")

    def instance(self, member: str) -> bytes:
        """One instance as a DICOM file, in the encoding that the server has it in.

        Raises:
            DataError: The server does not answer, or refuses.
        """
        import io

        study, series, instance = member.split("/")
        with self._named_faults():
            dataset = self._client.retrieve_instance(study, series, instance, media_types=(("application/dicom", "*"),))
        stream = io.BytesIO()
        dataset.save_as(stream, enforce_file_format=True)
        return stream.getvalue()

    def store(self, files: Iterable[Path]) -> None:
        """Send DICOM files to the server.

        Raises:
            DataError: The server does not answer, or refuses one.
        """
        import pydicom

        with self._named_faults():
            answer = self._client.store_instances([pydicom.dcmread(path) for path in files])
        if answer.get("FailedSOPSequence"):
            raise DataError(f"{self.address} refused to store the results; its log says why")

    def _search(self, query: dict[str, str]) -> Iterator[tuple[str, str]]:
        """Instances as "study/series/instance", and the modality of each."""
        for start in itertools.count(0, _PAGE):
            with self._named_faults():
                page = self._client.search_for_instances(
                    search_filters=query, limit=_PAGE, offset=start, fields=["Modality"]
                )
            for one in page:
                member = "/".join(_value(one, tag) for tag in ("0020000D", "0020000E", "00080018"))
                yield member, _value(one, "00080060")
            if len(page) < _PAGE:
                return

    @contextmanager
    def _named_faults(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # all that requests raises is an OSError
            answer = getattr(error, "response", None)
            what = type(error).__name__ if answer is None else f"it answers {answer.status_code} {answer.reason}"
            raise DataError(
                f"DICOMweb server {self.address}: {what}. Check the address, that it is up, and ~/.netrc or "
                "AMSAM_DICOMWEB_TOKEN if it asks who you are"
            ) from None


def _found_in(given: str, is_result: Callable[[Path], bool], keeps_identifiers: bool) -> Iterator[InputFile]:
    if given.startswith(DICOMWEB):
        found = _instances(given)
    elif Path(given).is_dir():
        found = _in_folder(Path(given), is_result)
    elif Path(given).exists():
        found = _in_file(Path(given), Path(Path(given).name))
    else:
        raise DataError(f"{given}: no such file or folder. Check the path")
    if (first := next(found, None)) is None:
        known = ", ".join((*IMAGE_SUFFIXES, ZIP_SUFFIX))
        raise DataError(f"{given}: no images in it besides results of earlier runs; known are {known}")
    for file in itertools.chain([first], found):
        yield file if keeps_identifiers or file.kind != "file" else _without_identifiers(file)


def _without_identifiers(file: InputFile) -> InputFile:
    path = Path(file.place)
    return file._replace(file=without_identifiers(path, file.file), name=without_identifiers(path, file.name))


def _in_folder(root: Path, is_result: Callable[[Path], bool]) -> Iterator[InputFile]:
    entered = set[tuple[int, int]]()
    unlisted: list[OSError] = []
    for parent, folders, names in os.walk(root, onerror=unlisted.append, followlinks=True):
        place = Path(parent)
        with suppress(OSError):
            status = place.stat()
            if (status.st_dev, status.st_ino) in entered:  # a link to a folder that is, or will be, entered otherwise
                folders.clear()
                continue
            entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not is_result(place / name))
        for name in names:
            path = place / name
            if name.startswith("."):
                continue
            if name.lower().endswith(ZIP_SUFFIX) or is_image_file(path):
                yield from _in_file(path, path.relative_to(root))
    for error in unlisted:
        folder = Path(str(error.filename))
        why = f"{folder.name}: this folder cannot be listed ({error.strerror}). Give yourself the right to read it"
        yield InputFile("none", str(folder), "", folder.as_posix(), folder.relative_to(root).as_posix(), why)


def _in_file(path: Path, relative: Path) -> Iterator[InputFile]:
    if path.name.lower().endswith(ZIP_SUFFIX):
        yield from _in_archive(path, relative)
        return
    place = os.path.abspath(path)
    name = (relative.parent / image_stem(path)).as_posix()
    if not stat.S_ISREG(os.stat(path).st_mode if path.exists() else stat.S_IFREG):  # a pipe would never end
        yield InputFile("none", place, "", path.as_posix(), name, f"{path.name}: not a regular file. Leave it out")
        return
    yield InputFile("file", place, "", path.as_posix(), name)


def _in_archive(path: Path, relative: Path) -> Iterator[InputFile]:
    place, folder = os.path.abspath(path), relative.with_suffix("").as_posix()

    def refused(what: str, member: str = "") -> InputFile:
        label = f"{path.as_posix()}/{member}" if member else path.as_posix()
        return InputFile("none", place, member, label, f"{folder}/{_plain(member)}" if member else folder, what)

    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
    except Exception as error:  # damaged directories raise whatever they lead to
        yield refused(f"{path.name}: not a readable zip archive ({error or type(error).__name__}). Pack it again")
        return
    if len(members) > LISTED_MEMBERS:
        yield refused(f"{path.name}: {len(members):,} members, at most {LISTED_MEMBERS:,} are read. Unpack it")
        return
    for member in members:
        parts = PurePosixPath(member.filename).parts
        if fault := _member_fault(path, member):
            yield refused(fault, member.filename)
        elif any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        elif member.filename.lower().endswith(IMAGE_SUFFIXES) or "." not in parts[-1]:
            name = (PurePosixPath(folder) / PurePosixPath(member.filename).parent / image_stem(parts[-1])).as_posix()
            yield InputFile("zip", place, member.filename, f"{path.as_posix()}/{member.filename}", name)


def _member_fault(path: Path, member: zipfile.ZipInfo) -> str:
    """Why a member is not to be unpacked; mostly empty."""
    name = PurePosixPath(member.filename)
    called = f"{path.name}, member {name.name}"
    if name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in member.filename:
        return f"{called}: its name leads out of the archive. Pack the archive again"
    if name.suffix.lower() == ZIP_SUFFIX:
        return f"{called}: an archive within an archive is not read. Unpack the outer one"
    if member.flag_bits & 1:
        return f"{called}: it is encrypted. Unpack the archive first"
    if member.file_size > MEMBER_LIMIT:
        return f"{called}: {member.file_size:,} bytes unpacked, at most {MEMBER_LIMIT:,} are read. Unpack it"
    return ""


def _unpack(archive: Path, member: str, copy: Path) -> None:
    try:
        status = archive.stat()
        opened = _opened_archive(str(archive), status.st_size, status.st_mtime_ns)
        with opened.open(member) as packed, copy.open("wb") as unpacked:
            # zipfile stops at the size that the directory promises, and the directory's is checked.
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DataError(f"{PurePosixPath(member).name}: no room to unpack it. {_MORE_ROOM}") from None
    except Exception as error:
        raise DataError(
            f"{archive.name}, member {PurePosixPath(member).name}: cannot be unpacked "
            f"({error or type(error).__name__}). Pack the archive again"
        ) from None


@lru_cache(maxsize=1)
def _opened_archive(path: str, size: int, modified_ns: int) -> zipfile.ZipFile:
    """An archive whose directory is read once for all its members, by whatever threads; a changed one is another."""
    return zipfile.ZipFile(path)


def _instances(given: str) -> Iterator[InputFile]:
    url = urlsplit(given.removeprefix(DICOMWEB))
    if url.scheme not in ("http", "https") or not url.netloc:
        raise DataError(
            f"{given}: not an address. Give, for example, dicomweb:http://127.0.0.1:8042/dicom-web?Modality=XC"
        )
    query = dict(parse_qsl(url.query))
    server = DicomWeb(urlunsplit((url.scheme, url.netloc, url.path, "", "")))
    for member in server.instances(query):
        study, series, instance = member.split("/")
        label = f"{server.address}/studies/{study}/series/{series}/instances/{instance}"
        yield InputFile("dicomweb", server.address, member, label, member)


def _value(instance: Any, tag: str) -> str:
    values = instance.get(tag, {}).get("Value") or [""]
    return str(values[0])


def _short_enough(name: str) -> str:
    """The name with each part cut to what file systems take; a cut part ends in a digest of the whole one."""
    return "/".join(_short_part(part) for part in name.split("/"))


def _short_part(part: str) -> str:
    encoded = os.fsencode(part)
    if len(encoded) <= _LONGEST_PART:
        return part
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if part.lower().endswith(suffix)), "")
    kept = encoded[: _LONGEST_PART - 9 - len(suffix)].decode("utf-8", errors="ignore")
    return f"{kept}-{hashlib.sha256(encoded).hexdigest()[:8]}{part[len(part) - len(suffix) :]}"


def _plain(member: str) -> str:
    """A member's name as one that leads nowhere."""
    return re.sub(r"[^\w.-]+", "_", member.replace("..", "_")).strip("._") or "member"


def _as_stored(text: str) -> str | bytes:
    """SQLite takes no lone surrogates, which stand for the bytes of names that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text)
    return text


def _in_thousands(items: Iterable[InputFile]) -> Iterator[list[InputFile]]:
    iterator = iter(items)
    while some := list(itertools.islice(iterator, 1000)):
        yield some
