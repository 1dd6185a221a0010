"""Where the images of a run come from: files, folders, zip archives, a DICOMweb server.

:func:`list_inputs` finds them all without holding them in memory; :func:`local_copy` provides a path at which readers
can open one of them. Zip members and DICOM instances are written to the system's temporary folder only while they are
being segmented, so an archive costs no more disk than a few of its members.

Only regular files are opened, and none of the kernel's file systems (``/proc``, ``/sys``): reading others might never
end.

If several files would get results of the same name, the first by path keeps it; ``a.png`` beside ``a.jpg`` becomes
``a.png_segmentation.png``, and if that is taken, a number follows. ``scan_0001.png`` beside ``scan.tif`` is renamed as
well, because the pages of the latter are numbered. Names are equal if any common file system treats them as equal:
regardless of case and of Unicode normalisation. Names of results that are already in the output folder stay reserved. A
name that is too long for file systems is cut, and ends in eight digits of its sha256.

If the path of a DICOM file, or of a DICOM member of an archive, contains the patient's name, identifier or date of
birth as the file has them, that part of the path is replaced by a digest of the study's or the instance's UID; the same
folder is replaced in the paths of all other files. With a secret, UIDs in paths are replaced as well.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import itertools
import os
import re
import shutil
import sqlite3
import stat
import struct
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TypeAlias
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from amsam_med.data.dicom.identifiers import without_identifiers
from amsam_med.data.dicom.web import DicomWeb, split_address
from amsam_med.data.readers import IMAGE_SUFFIXES, is_image_file
from amsam_med.data.sets.pairs import image_stem
from amsam_med.data.tables import cut_text, visible
from amsam_med.errors import ConfigError, DataError
from amsam_med.scratch import MORE_ROOM, scratch_folder
from amsam_med.segment.journal import RecordedName

ZIP_SUFFIX = ".zip"
DICOMWEB = "dicomweb:"
"""Prefix of an input that is a DICOMweb server: ``dicomweb:http://host/dicom-web?StudyInstanceUID=1.2.3``."""
FILE_LIMIT = 64 << 30
"""The largest file that is read, in bytes."""
MEMBER_LIMIT = 2 << 30
"""The largest zip member, in bytes as it is unpacked."""
LISTED_MEMBERS = 200_000
"""The most members of one archive: zipfile holds the directory in memory while they are listed."""

_DIRECTORY_LIMIT = 64 << 20  # bytes of an archive's directory
_HEAD = 8 << 20  # bytes of a zip member in which a DICOM header is looked for
_LONGEST_PART = 180  # bytes of a file name: most file systems take 255, and endings and a temporary name come on top
_NUMBERED = re.compile(r"(.+)_[0-9]{4,}", re.DOTALL)  # names of results of a file with several pictures
_SINGLE_PICTURE_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF")  # formats of one picture per file
_KIND = re.compile(r"\.[a-z0-9]{1,5}$")  # a file's suffix
_FOLDERS_LISTED, _SHOWN_KINDS = (
    1000,
    5,
)  # in the message about an input without images: folders searched, suffixes shown
_UID = re.compile(r"(?<![0-9.])[0-9]+(?:\.[0-9]+){3,}|(?<![0-9_])[0-9]+(?:_[0-9]+){5,}")
_DIGEST = re.compile(r"(study|image)-([0-9a-f]{10})")  # what takes the place of identifying parts of paths
_USUAL_INSTANCE = 16 << 20  # bytes assumed for a DICOM instance on a server, which does not tell its size beforehand
_SHORTEST_IDENTIFYING = 3  # characters; shorter names occur in other words by chance
_MAX_IDENTIFYING_NAMES = 1000  # identifying folder names that are looked for in the typed command

Kind: TypeAlias = Literal["file", "zip", "dicomweb", "none"]


class InputFile(NamedTuple):
    """A file to segment.

    Attributes:
        kind: Where it is; "none" if it cannot be read.
        location: Path of the file or of its archive, or address of the server.
        member: Name within the archive, or "study/series/instance".
        file: Its name in ``results.csv``, beginning with the path that the caller gave.
        name: Sub-folder and stem of its results, unique within the run.
        error: Why it cannot be read; usually empty.
    """

    kind: Kind
    location: str
    member: str
    file: str
    name: str
    error: str = ""


class Inputs:
    """The files of a run, sorted by path, in a temporary data base instead of in memory.

    Args:
        found: Files with the preferred names of their results.
        keeps_identifiers: Whether paths that identify a patient are used as they are.
    """

    def __init__(self, found: Iterable[InputFile], keeps_identifiers: bool = False) -> None:
        self._keeps_identifiers, self._is_prepared = keeps_identifiers, False
        self._secret: bytes | None = None
        self._files = sqlite3.connect("", check_same_thread=False)  # SQLite's own temporary file
        self._files.execute(
            "CREATE TABLE found (kind, location, member, file, name, error, UNIQUE (kind, location, member))"
        )
        self._files.execute("CREATE TABLE files (kind, location, member, file, name, error)")
        self._files.execute("CREATE TABLE replaced (path PRIMARY KEY, part) WITHOUT ROWID")
        self._files.execute("CREATE TABLE recorded (key PRIMARY KEY, name, file, is_numbered) WITHOUT ROWID")
        self._files.execute("CREATE TABLE taken (key PRIMARY KEY, kind, location, member) WITHOUT ROWID")
        self._insert("INSERT OR IGNORE INTO found VALUES (?, ?, ?, ?, ?, ?)", found)

    def prepare(self, recorded: Iterable[RecordedName] = (), secret: bytes | None = None) -> None:
        """Give every file its shown path and a unique name of its results; call it once, before iterating.

        Args:
            recorded: Names that are in use for results in the output folder.
            secret: Key of the digests that replace UIDs in paths; None leaves UIDs as they are.

        Raises:
            ConfigError: The system's temporary folder is full.
        """
        # In two passes: only after all headers are read is it known which folders identify a patient.
        self._secret = secret
        with _room_for_list():
            rows = ([_as_stored(_key(one.name)), *map(_as_stored, one[:2]), one.is_numbered] for one in recorded)
            self._files.executemany("INSERT OR REPLACE INTO recorded VALUES (?, ?, ?, ?)", rows)
            if self._keeps_identifiers:
                cleaned = self._in("found")
            else:
                self._files.execute("CREATE TABLE cleaned (kind, location, member, file, name, error)")
                clean = (self._cleaned(file) for file in self._in("found"))
                self._insert("INSERT INTO cleaned VALUES (?, ?, ?, ?, ?, ?)", clean)
                has_replaced = self._files.execute("SELECT 1 FROM replaced LIMIT 1").fetchone() is not None
                cleaned = map(self._as_its_folder, self._in("cleaned")) if has_replaced else self._in("cleaned")
                if secret is not None:
                    cleaned = (_without_uids(file, secret) for file in cleaned)
            named = map(self._with_own_name, cleaned)
            self._insert("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)", named)
            self._is_prepared = True
            self._files.execute("DROP TABLE found")

    def shown(self, word: str) -> str:
        """A word of the command with the identifying parts of these files' paths replaced, as ``run.json`` shows it."""
        if self._keeps_identifiers:
            return word
        if word.startswith(DICOMWEB):
            return _shown_address(word, has_uids=self._secret is None)
        parts = PurePosixPath(Path(word).as_posix()).parts
        word = self._with_replaced(parts) if parts else word
        identifying = self._files.execute("SELECT path, part FROM replaced LIMIT ?", (_MAX_IDENTIFYING_NAMES,))
        for path, part in identifying:
            name = PurePosixPath(_as_text(path))
            for told in (name.name, name.stem):
                if len(told) >= _SHORTEST_IDENTIFYING:
                    word = word.replace(told, _as_text(part))
        return word if self._secret is None else _text_without_uids(word, self._secret)

    def __len__(self) -> int:
        """The number of files."""
        table = "files" if self._is_prepared else "found"
        return int(self._files.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608  # one of our own tables' names

    def __iter__(self) -> Iterator[InputFile]:
        """Iterate over the files, sorted by path."""
        if not self._is_prepared:
            self.prepare()
        return self._in("files")

    def _in(self, table: str) -> Iterator[InputFile]:
        for row in self._files.execute(f"SELECT * FROM {table} ORDER BY file, rowid"):  # noqa: S608  # one of our own tables' names
            yield InputFile._make(map(_as_text, row))

    def _insert(self, statement: str, files: Iterable[InputFile]) -> None:
        # In portions, since ``files`` may read from this very data base: reading and writing then alternate.
        for some in _in_thousands(files):
            self._files.executemany(statement, [[_as_stored(text) for text in file] for file in some])

    def _cleaned(self, file: InputFile) -> InputFile:
        """The file with identifying parts of its path replaced; the parts are noted for files in the same folders."""
        with _header_of(file) as path:
            if path is None:
                return file
            shown, name = without_identifiers(path, file.file), without_identifiers(path, file.name)
        if shown != file.file:
            before, after = PurePosixPath(file.file).parts, PurePosixPath(shown).parts
            for count, (old, new) in enumerate(zip(before, after, strict=False), start=1):
                if old != new:
                    row = _as_stored(PurePosixPath(*before[:count]).as_posix()), _as_stored(new)
                    self._files.execute("INSERT OR IGNORE INTO replaced VALUES (?, ?)", row)
        return file._replace(file=shown, name=name)

    def _as_its_folder(self, file: InputFile) -> InputFile:
        """The file with the folders replaced that another file's header has shown to identify a patient."""
        before = PurePosixPath(file.file).parts
        after = PurePosixPath(self._with_replaced(before)).parts
        changed = [index for index, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
        folders = file.name.split("/")
        for index in changed:
            at = index - len(before) + len(folders)  # the name has no leading folders, so both are aligned at the end
            if 0 <= at < len(folders) - 1:
                folders[at] = after[index]
            if file.kind == "none":  # names and errors of unreadable files contain the path in other forms
                folders = [folder.replace(before[index], after[index]) for folder in folders]
                file = file._replace(error=file.error.replace(before[index], after[index]))
        return file._replace(file=PurePosixPath(*after).as_posix(), name="/".join(folders)) if changed else file

    def _with_replaced(self, parts: tuple[str, ...]) -> str:
        shown = []
        for count, part in enumerate(parts, start=1):
            path = _as_stored(PurePosixPath(*parts[:count]).as_posix())
            found = self._files.execute("SELECT part FROM replaced WHERE path = ?", (path,)).fetchone()
            shown.append(part if found is None else _as_text(found[0]))
        return PurePosixPath(*shown).as_posix()

    def _with_own_name(self, file: InputFile) -> InputFile:
        folder, slash, _ = file.name.rpartition("/")
        whole = folder + slash + file.file.rpartition("/")[2]
        for name in itertools.chain([file.name, whole], (f"{whole}-{n}" for n in itertools.count(2))):
            name = _shortened(name)
            if self._is_free(name, file):
                taken = map(_as_stored, (_key(name), file.kind, file.location, file.member))
                self._files.execute("INSERT INTO taken VALUES (?, ?, ?, ?)", tuple(taken))
                return file._replace(name=name)
        raise AssertionError("names do not run out")

    def _is_free(self, name: str, file: InputFile) -> bool:
        """Whether no other file's results can get a name that this file's results would get from ``name``."""
        key = _key(name)
        if self._first("SELECT 1 FROM taken WHERE key = ?", key):
            return False
        recorded = self._first("SELECT name, file FROM recorded WHERE key = ?", key)
        if recorded is not None and recorded != (name, _as_text(recorded[1])):
            return False
        if recorded is not None and recorded[1].rpartition("/")[2] != file.file.rpartition("/")[2]:
            return (
                False  # the same file name in another folder may be the same file; its sha256 decides when it is read
            )
        if numbered := _NUMBERED.fullmatch(key):
            if self._first("SELECT 1 FROM recorded WHERE key = ? AND is_numbered", numbered[1]):
                return False
            other = self._first("SELECT kind, location, member FROM taken WHERE key = ?", numbered[1])
            if other is not None and _may_hold_several(*other):
                return False
        return not (self._has_numbers(key) and _may_hold_several(file.kind, file.location, file.member))

    def _has_numbers(self, key: str) -> bool:
        """Whether a name is in use that numbered pictures of a file with this name would get."""
        ends = _as_stored(f"{key}_0"), _as_stored(f"{key}_:")  # ":" follows "9": a range that the index can search
        for table in ("taken", "recorded"):
            found = self._files.execute(f"SELECT key FROM {table} WHERE key >= ? AND key < ?", ends)  # noqa: S608  # one of our own tables' names
            if any(_NUMBERED.fullmatch(text) and text.rpartition("_")[0] == key for (text,) in _texts(found)):
                return True
        return False

    def _first(self, query: str, key: str) -> tuple[str, ...] | None:
        found = self._files.execute(query, (_as_stored(key),)).fetchone()
        return None if found is None else tuple(map(_as_text, found))


def list_inputs(
    given: Iterable[str], is_result: Callable[[Path], bool] = lambda _: False, keeps_identifiers: bool = False
) -> Inputs:
    """List all images that the user's inputs hold, each once.

    Links to folders are followed, and each folder is entered once. Hidden files and folders are left out.

    Args:
        given: Paths of files, folders and zip archives; addresses that begin with :data:`DICOMWEB`.
        is_result: Returns whether a folder holds results of an earlier run, which are not inputs.
        keeps_identifiers: Whether paths that identify a patient are used as they are.

    Raises:
        DataError: An input does not exist or holds no images, or a server does not answer.
        MissingExtraError: An input is a server, and dicomweb-client is not installed.
        ConfigError: The system's temporary folder has no room for the list.
    """
    with _room_for_list():
        inputs = Inputs(itertools.chain.from_iterable(_found_in(one, is_result) for one in given), keeps_identifiers)
    if not len(inputs):
        raise DataError("no inputs; give image files, folders, zip archives, or dicomweb:URL")
    return inputs


@contextmanager
def local_copy(file: InputFile) -> Iterator[Path]:
    """A path at which the file can be read while the block runs.

    Raises:
        DataError: It cannot be read, or cannot be unpacked safely.
        OSError: It no longer exists, or there is no room to unpack it.
    """
    if file.error:
        raise DataError(file.error)
    if file.kind == "file":
        yield Path(file.location)
        return
    with scratch_folder() as folder:
        # The copy keeps the member's name: readers recognise some formats by suffix, and name the file in errors.
        copy = folder / _shortened(PurePosixPath(file.member).name)
        if file.kind == "zip":
            _unpack(Path(file.location), file.member, copy)
        else:
            DicomWeb(file.location).fetch(file.member, copy)
        yield copy


def unpacked_bytes(file: InputFile) -> int:
    """Bytes of the temporary disk that a local copy will take, as far as that is known beforehand."""
    if file.kind == "zip" and not file.error:
        with suppress(Exception):  # the same error is reported when the member is unpacked
            return _archive_of(Path(file.location)).getinfo(file.member).file_size
    return _USUAL_INSTANCE if file.kind == "dicomweb" else 0


def _found_in(given: str, is_result: Callable[[Path], bool]) -> Iterator[InputFile]:
    if given.startswith(DICOMWEB):
        found = _instances(given)
    else:
        try:
            is_folder = stat.S_ISDIR(os.stat(given).st_mode)
        except (OSError, ValueError) as error:
            is_missing = isinstance(error, FileNotFoundError | ValueError)
            what = "no such file or folder" if is_missing else getattr(error, "strerror", None) or str(error)
            raise DataError(f"{cut_text(given)}: {what}. Check the path") from None
        path = Path(given)
        found = _in_folder(path, is_result) if is_folder else _in_file(path, Path(path.name), is_asked=True)
    if (first := next(found, None)) is None:
        raise DataError(f"{cut_text(given)}: no images in it{_describe_contents(given, is_result)}")
    yield first
    yield from found


def _describe_contents(given: str, is_result: Callable[[Path], bool]) -> str:
    """For the message about an input without images: what it holds, and what to give instead."""
    known = f"known are {', '.join((*IMAGE_SUFFIXES, ZIP_SUFFIX))}, and DICOM under any name"
    if given.startswith(DICOMWEB):
        return "; the server has no instance that fits the query. Check its UIDs, or ask for less"
    root = Path(given)
    if not root.is_dir():
        return f"; {known}. Pack images into it, or give their folder"
    is_left_out, kinds = False, Counter[str]()
    for parent, folders, names in itertools.islice(os.walk(root), _FOLDERS_LISTED):
        results = [name for name in folders if is_result(Path(parent, name))]
        is_left_out |= bool(results)
        folders[:] = [name for name in folders if name not in results]
        # Longer "suffixes" are not shown: after the last dot may stand a part of a patient's name.
        kinds.update(kind[0] if (kind := _KIND.search(name.lower())) else "without a suffix" for name in names)
    by_count = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    held = [f"{count} {kind}" for kind, count in by_count[:_SHOWN_KINDS]]
    if len(kinds) > _SHOWN_KINDS:
        held.append("others")
    files = "1 file" if kinds.total() == 1 else f"{kinds.total():,} files"
    what = f"{files} of other kinds ({', '.join(held)})" if held else "no files"
    results_too = ", and results of earlier runs, which are left out" if is_left_out else ""
    return f"; found {what}{results_too}. Give a folder with images ({known}), or an image of another name by its path"


def _in_folder(root: Path, is_result: Callable[[Path], bool]) -> Iterator[InputFile]:
    entered = set[tuple[int, int]]()
    waiting = [root]
    while waiting:
        location = waiting.pop()
        try:
            status = location.stat()
            if (
                status.st_dev,
                status.st_ino,
            ) in entered:  # a link to a folder that was entered by another path, or a loop
                continue
            entered.add((status.st_dev, status.st_ino))
            if _is_on_system_device(status):
                raise OSError(errno.EPERM, "it belongs to the system")
            with os.scandir(location) as entries:
                found = sorted((entry.name, _is_folder(entry)) for entry in entries if not entry.name.startswith("."))
        except OSError as error:
            why = (
                f"{location.name}: this folder cannot be listed ({error.strerror}). Give yourself the right to read it"
            )
            yield InputFile("none", str(location), "", location.as_posix(), location.relative_to(root).as_posix(), why)
            continue
        folders = [location / name for name, is_folder in found if is_folder]
        waiting += reversed([folder for folder in folders if not is_result(folder)])
        for name, is_folder in found:
            if not is_folder:
                yield from _in_file(location / name, (location / name).relative_to(root))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere, or in a circle
        return False


def _in_file(path: Path, relative: Path, is_asked: bool = False) -> Iterator[InputFile]:
    """The images at a path, judged by name and first bytes; a file that the user has named counts as an image."""
    is_archive = path.name.lower().endswith(ZIP_SUFFIX)
    is_named = is_asked or is_archive or path.name.lower().endswith(IMAGE_SUFFIXES)
    try:
        status = os.stat(path)
        fault = _fault_of(path.name, status)
    except OSError as error:
        status, fault = None, error.strerror or str(error)
    is_unseen = status is None or not os.access(path, os.R_OK)
    if not is_named and fault and not (is_unseen and not Path(path.name).suffix[1:].isalpha()):
        return
    # An unreadable file without a suffix may be DICOM, and must appear in the table with its error, not vanish.
    if not is_named and not fault and is_unseen:
        if Path(path.name).suffix[1:].isalpha():
            return
        fault = os.strerror(errno.EACCES)
    location, name = os.path.abspath(path), (relative.parent / image_stem(path)).as_posix()
    if fault:
        yield InputFile("none", location, "", path.as_posix(), name, fault)
    elif is_archive:
        yield from _in_archive(path, relative)
    elif is_named or is_image_file(path):
        yield InputFile("file", location, "", path.as_posix(), name)


def _fault_of(name: str, status: os.stat_result) -> str:
    """Why a file must not be opened; usually empty. Reading anything but a regular file may never end."""
    if not stat.S_ISREG(status.st_mode) or _is_on_system_device(status):
        return f"{name}: not a regular file. Leave it out"
    if status.st_size == 0:  # files of /proc report size 0 and may be endless, so size 0 is refused before reading
        kind = (
            "a readable zip archive" if name.lower().endswith(ZIP_SUFFIX) else "an image of a known format or damaged"
        )
        return f"{name}: not {kind} (it is empty). Copy or export it again"
    if status.st_size > FILE_LIMIT:
        return f"{name}: {status.st_size:,} bytes, at most {FILE_LIMIT:,} are read. Split it"
    return ""


def _is_on_system_device(status: os.stat_result) -> bool:
    return status.st_dev in _system_devices()


@lru_cache(maxsize=1)
def _system_devices() -> frozenset[int]:
    """Device numbers of the kernel's file systems, in which reading a file may block or never end."""
    devices = set[int]()
    for location in ("/proc", "/sys"):
        with suppress(OSError):
            if os.path.ismount(location):
                devices.add(os.stat(location).st_dev)
    return frozenset(devices)


def _in_archive(path: Path, relative: Path) -> Iterator[InputFile]:
    location, folder = os.path.abspath(path), relative.with_suffix("").as_posix()

    def refused(what: str, member: str = "") -> InputFile:
        label = f"{path.as_posix()}/{member}" if member else path.as_posix()
        return InputFile("none", location, member, label, f"{folder}/{_plain(member)}" if member else folder, what)

    try:
        _refuse_large_directory(path)
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
            yield InputFile("zip", location, member.filename, f"{path.as_posix()}/{member.filename}", name)


def _member_fault(path: Path, member: zipfile.ZipInfo) -> str:
    """Why a member must not be unpacked; usually empty."""
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


def _refuse_large_directory(path: Path) -> None:
    """Refuse an archive whose directory would fill the memory; zipfile reads it as a whole.

    Source: APPNOTE.TXT, PKWARE, sections 4.3.14 to 4.3.16.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - (1 << 16) - 22 - 20))
        tail = file.read()
        end = tail.rfind(b"PK\5\6")
        if end < 0 or len(tail) < end + 22:
            return  # not a zip file, which zipfile reports
        (length,) = struct.unpack_from("<L", tail, end + 12)
        if length == 0xFFFFFFFF and end >= 20 and tail[end - 20 : end - 16] == b"PK\6\7":
            file.seek(min(struct.unpack_from("<Q", tail, end - 12)[0], size))
            record = file.read(56)
            length = struct.unpack_from("<Q", record, 40)[0] if len(record) == 56 else 0
        if length > _DIRECTORY_LIMIT:
            raise DataError(f"its directory has {length:,} bytes, at most {_DIRECTORY_LIMIT:,} are read")


def _archive_of(path: Path) -> zipfile.ZipFile:
    status = path.stat()
    return _opened_archive(str(path), status.st_size, status.st_mtime_ns)


def _unpack(archive: Path, member: str, copy: Path) -> None:
    try:
        with _archive_of(archive).open(member) as packed, copy.open("wb") as unpacked:
            # zipfile never unpacks more than the size in the directory, and that size was checked against MEMBER_LIMIT.
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DataError(f"{PurePosixPath(member).name}: no room to unpack it. {MORE_ROOM}") from None
    except Exception as error:
        raise DataError(
            f"member {PurePosixPath(member).name}: cannot be unpacked ({visible(str(error) or type(error).__name__)}). "
            "Pack the archive again"
        ) from None


@lru_cache(
    maxsize=4
)  # more than one: reading threads may have begun the next archive before the last one's members end
def _opened_archive(path: str, size: int, modified_ns: int) -> zipfile.ZipFile:
    """An open archive, shared by all threads: reading its directory for each member would take quadratic time.

    Size and time of change are arguments so that a changed archive is opened anew.
    """
    return zipfile.ZipFile(path)


def _instances(given: str) -> Iterator[InputFile]:
    url = split_address(given.removeprefix(DICOMWEB))
    if url.scheme not in ("http", "https") or not url.netloc:
        raise DataError(
            f"{cut_text(given)}: not an address. Give, for example, dicomweb:http://127.0.0.1:8042/dicom-web?Modality=XC"
        )
    query = dict(parse_qsl(url.query))
    server = DicomWeb(urlunsplit((url.scheme, url.netloc, url.path, "", "")))
    for member in server.instances(query):
        study, series, instance = member.split("/")
        label = f"{server.address}/studies/{study}/series/{series}/instances/{instance}"
        yield InputFile("dicomweb", server.address, member, label, member)


def _shown_address(given: str, has_uids: bool) -> str:
    """An address with the values of its query hidden, which may identify a patient, except UIDs and modalities."""
    try:
        url = urlsplit(given.removeprefix(DICOMWEB))
    except ValueError:
        return DICOMWEB
    kept: tuple[str, ...] = ("Modality", "ModalitiesInStudy")
    kept += ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID") if has_uids else ()
    query = "&".join(f"{name}={value if name in kept else '...'}" for name, value in parse_qsl(url.query))
    return DICOMWEB + urlunsplit((url.scheme, url.netloc, url.path, query, ""))


@contextmanager
def _header_of(file: InputFile) -> Iterator[Path | None]:
    """A path at which the DICOM header of a file can be read; None if it is not DICOM."""
    if file.kind == "file":
        yield Path(file.location)
        return
    head = b""
    if file.kind == "zip" and not file.error:
        # Errors are suppressed here since reading the member reports them.
        with suppress(Exception), _archive_of(Path(file.location)).open(file.member) as packed:
            head = packed.read(132)
            is_named = PurePosixPath(file.member).suffix.lower() in (".dcm", ".dicom")
            head = head + packed.read(_HEAD) if is_named or head[128:] == b"DICM" else b""
    if not head:
        yield None
        return
    with scratch_folder() as folder:
        path = folder / "header.dcm"
        path.write_bytes(head)
        yield path


def _may_hold_several(kind: str, location: str, member: str) -> bool:
    """Whether a file may hold several pictures, judged by its first bytes."""
    head = b""
    with suppress(Exception):  # an unreadable file gets no results, so its name does not matter
        if kind == "file":
            with open(location, "rb") as file:
                head = file.read(132)
        elif kind == "zip":
            with _archive_of(Path(location)).open(member) as packed:
                head = packed.read(132)
    return kind == "dicomweb" or (
        bool(head) and (head[128:] == b"DICM" or not head.startswith(_SINGLE_PICTURE_SIGNATURES))
    )


def _without_uids(file: InputFile, secret: bytes) -> InputFile:
    """The file with UIDs, and unkeyed digests of UIDs, in its paths replaced by digests keyed with the secret."""
    if file.kind == "dicomweb":
        kinds, uids = ("study", "series", "image"), file.member.split("/")
        name = "/".join(f"{kind}-{_keyed(uid, secret)}" for kind, uid in zip(kinds, uids, strict=True))
        return file._replace(file=f"{file.location}/{name}", name=name)
    shown, name, error = (_text_without_uids(text, secret) for text in (file.file, file.name, file.error))
    return file._replace(file=shown, name=name, error=error)


def _text_without_uids(text: str, secret: bytes) -> str:
    text = _DIGEST.sub(lambda found: f"{found[1]}-{_keyed(found[2], secret)}", text)
    return _UID.sub(lambda found: f"uid-{_keyed(found[0], secret)}", text)


def _keyed(uid: str, secret: bytes) -> str:
    return hmac.new(secret, uid.encode("utf-8", errors="surrogateescape"), "sha256").hexdigest()[:10]


@contextmanager
def _room_for_list() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise ConfigError(f"no room for the list of inputs ({error}). {MORE_ROOM}") from None


def _key(name: str) -> str:
    """A name as file systems compare it that ignore case (Windows, macOS) or Unicode normalisation (macOS)."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def _shortened(name: str) -> str:
    """The name with each part cut to what file systems allow; a cut part ends in a digest of the whole part."""
    return "/".join(_short_part(part) for part in name.split("/"))


def _short_part(part: str) -> str:
    encoded = os.fsencode(part)
    if len(encoded) <= _LONGEST_PART:
        return part
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if part.lower().endswith(suffix)), "")
    kept = encoded[: _LONGEST_PART - 9 - len(suffix)].decode("utf-8", errors="ignore")
    return f"{kept}-{hashlib.sha256(encoded).hexdigest()[:8]}{part[len(part) - len(suffix) :]}"


def _plain(member: str) -> str:
    """A member's name without path separators and dots that could lead out of a folder."""
    return re.sub(r"[^\w.-]+", "_", member.replace("..", "_")).strip("._") or "member"


def _as_stored(text: str) -> str | bytes:
    """A text as SQLite takes it: bytes if it has lone surrogates, which stand for names that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text)
    return text


def _as_text(stored: Any) -> str:
    return os.fsdecode(stored) if isinstance(stored, bytes) else str(stored)


def _texts(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[str, ...]]:
    return (tuple(map(_as_text, row)) for row in rows)


def _in_thousands(items: Iterable[InputFile]) -> Iterator[list[InputFile]]:
    iterator = iter(items)
    while some := list(itertools.islice(iterator, 1000)):
        yield some
