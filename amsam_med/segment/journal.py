"""The record of a folder run: a journal, ``results.csv`` with one row per picture, and ``run.json``.

The *journal* (``journal.sqlite``) takes all rows of a file in one transaction, after all its results are on disk. A run
that is killed at any moment loses at most the files in progress, and the next run segments exactly those.
``results.csv`` is appended to along with it, and sorted by file when the run ends. ``run.json`` is written before the
first result. It holds the run's *fingerprint*, everything that a result depends on besides its image (weights by
sha256, the network's settings, the package's version), so that a later run knows whether earlier results are current.

Each page, frame or slice of a file with several is recorded as soon as it is written (as a *part* of the file), so the
run after a killed one continues at the next page.

People send each other such folders, so their content is not trusted: ``run.json`` and the journal are checked before
they are used, paths in them may not lead out of the folder, and nothing is written through a link.

The secret from which new identifiers are made is not stored in the folder; see :func:`user_secret`.

Nothing here is held in memory for the whole run. One run at a time writes to a folder.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import platform
import re
import secrets
import sqlite3
import stat
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NamedTuple, TypeAlias

from pydantic import JsonValue, TypeAdapter, ValidationError

from amsam_med.data.tables import TableWriter, hidden, visible
from amsam_med.errors import ConfigError, DataError
from amsam_med.files import atomic_path, is_unfinished, write_json
from amsam_med.measure import Measurements
from amsam_med.schema import Record, Sha256, read_record
from amsam_med.segment.formats import FORMATS

RESULTS = "results.csv"
RUN = "run.json"
JOURNAL = "journal.sqlite"
VERB = "segment"
"""Entry ``verb`` of ``run.json``; other commands write a file of that name as well."""

_PACKAGES = ("amsam-med", "torch", "monai", "segment-anything", "ultralytics", "timm", "numpy", "pillow", "pydicom")
_FORMAT = "2"  # of the journal; raise it when columns change, and older journals are started anew
_UNFINISHED_RUN_FILE = re.compile(r"\.(results\.csv|run\.json|report\.html)\.[0-9a-f]{8}\.\w+")
_TABLES = """
    CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT);
    CREATE TABLE IF NOT EXISTS files (name PRIMARY KEY, file, sha256 TEXT, formats TEXT, is_done INTEGER);
    CREATE TABLE IF NOT EXISTS rows (
        name, picture INTEGER, file, cells, thumbnail BLOB, PRIMARY KEY (name, picture)
    );
    CREATE INDEX IF NOT EXISTS rows_by_file ON rows (file, picture);
    CREATE TABLE IF NOT EXISTS parts (
        name, picture INTEGER, row TEXT, thumbnail BLOB, mask BLOB, PRIMARY KEY (name, picture)
    );
"""
_SQLITE_SUFFIXES = ("wal", "shm", "journal")  # of the files that SQLite keeps beside a data base
_LARGEST_ENTRY = 1 << 27  # bytes of one value in the journal: a received one could fill the memory
_SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")  # ends a rollback journal that names a further file, to be deleted
_KEY_FILE = "deidentify.key"
_DELETE_IT = "delete it: then all images are done again"

Cells: TypeAlias = dict[str, str]
"""A row as the file holds it: text by column."""


class FileFlag(StrEnum):
    """Flags of a result that come from its file, beside :class:`amsam_med.infer.Flag` of the network."""

    DAMAGED = "damaged-file"
    """The file is damaged, and what could be decoded of the picture was segmented."""
    BURNED_IN = "burned-in-annotation"
    """The DICOM file says that text is burned into its pixels: perhaps the patient's name."""


@dataclass(frozen=True)
class Row:
    """One picture's row. Column names contain the unit of their numbers; an empty cell means that there is no value.

    Attributes:
        file: The file, as the caller named it or its folder.
        picture: Number of the picture in its file, from 1; None for a file's only one.
        image_sha256: Of the file's bytes.
        height_px: Height of the picture in pixels.
        width_px: Width of the picture in pixels.
        box_x1_px: Left edge of the box in the original frame, in pixels; then top, right and bottom.
        box_y1_px: Top edge.
        box_x2_px: Right edge.
        box_y2_px: Bottom edge.
        box_source: "detector", "not found", "user" or "none".
        box_confidence: In [0, 1].
        measured: Size, shape and colour of the object; its fields are columns.
        predicted_iou: The network's own estimate of its mask's IoU, in [0, 1].
        certainty: How decided the mask's pixels are, in [0, 1]; see :class:`amsam_med.infer.Segmentation`.
        box_agreement: IoU of the box with the mask's tight box, in [0, 1]; empty where no box was used.
        flags: Words of :class:`amsam_med.infer.Flag` and :class:`FileFlag`, joined by ";": reasons for a second look.
        seconds: Spent on this picture: reading, its share of the batch, writing.
        files: Result files by column, relative to the output folder; columns of :data:`FORMATS`.
        error: Why there is no result; the result's columns are then empty.
    """

    file: str
    picture: int | None = None
    image_sha256: str = ""
    height_px: int | None = None
    width_px: int | None = None
    box_x1_px: float | None = None
    box_y1_px: float | None = None
    box_x2_px: float | None = None
    box_y2_px: float | None = None
    box_source: str = ""
    box_confidence: float | None = None
    measured: Measurements | None = None
    predicted_iou: float | None = None
    certainty: float | None = None
    box_agreement: float | None = None
    flags: str = ""
    seconds: float = 0.0
    files: Mapping[str, str] | None = None
    error: str = ""

    def cells(self) -> Cells:
        """The row as text, in the order of :data:`COLUMNS`."""
        facts = {**asdict(self), **(asdict(self.measured) if self.measured else {}), **(self.files or {})}
        return {name: "" if facts.get(name) is None else str(facts[name]) for name in COLUMNS}


FILE_COLUMNS = tuple(form.column for form in FORMATS.values())
_FORMAT_OF = {form.column: form for form in FORMATS.values()}
_EXPANDED_COLUMNS = {"measured": tuple(column.name for column in fields(Measurements)), "files": FILE_COLUMNS}
COLUMNS = tuple(name for column in fields(Row) for name in _EXPANDED_COLUMNS.get(column.name, (column.name,)))
"""Columns of ``results.csv``."""


class Picture(NamedTuple):
    """A picture's row and its thumbnail for the report.

    Attributes:
        row: As in ``results.csv``.
        thumbnail: A small JPEG with the outline; None if there is no result.
    """

    row: Row
    thumbnail: bytes | None = None


class Part(NamedTuple):
    """A finished picture of a file that still has unfinished ones.

    Attributes:
        picture: Its row and thumbnail.
        mask: As packed by :meth:`amsam_med.data.results.PackedMasks.pack`; None if no format of whole files needs it.
    """

    picture: Picture
    mask: bytes | None


class RecordedName(NamedTuple):
    """A name that is in use for results in the folder.

    Attributes:
        name: Sub-folder and stem.
        file: The file whose results have this name, as the run called it.
        is_numbered: Whether numbers follow the name, because the file holds several pictures.
    """

    name: str
    file: str
    is_numbered: bool


@dataclass(frozen=True)
class RunSettings:
    """What a run was asked to do.

    Attributes:
        command: The equivalent command line.
        bundle: Name or folder of the bundle.
        formats: Names of the formats.
        batch_size: Images per batch of the network.
        device: Torch's name of the device.
    """

    command: str
    bundle: str
    formats: tuple[str, ...]
    batch_size: int
    device: str

    def entries(self) -> dict[str, Any]:
        """The entries of ``run.json``."""
        settings = asdict(self)
        return {"command": settings.pop("command"), "settings": settings}


@dataclass(frozen=True)
class RunOutcome:
    """The outcome of a run.

    Attributes:
        counts: Numbers of files and pictures, by outcome.
        seconds: Wall time.
        images_per_second: Pictures segmented per second of wall time.
    """

    counts: Mapping[str, int]
    seconds: float
    images_per_second: float


RunState: TypeAlias = Literal["running", "complete", "interrupted", "failed"]


class RunRecord(Record):
    """``run.json`` as ``segment`` writes it."""

    verb: Literal["segment"]
    state: RunState
    started: str
    command: str = ""
    settings: dict[str, JsonValue] | None = None
    digest: Sha256
    fingerprint: dict[str, JsonValue]
    versions: dict[str, str]
    finished: str = ""
    counts: dict[str, int] | None = None
    seconds: float = 0
    images_per_second: float = 0


@dataclass(frozen=True)
class Earlier:
    """What an earlier run recorded of a file.

    Attributes:
        file: The file, as that run called it.
        sha256: Of its bytes.
        formats: Names of the formats that were written.
        results: Its result files, relative to the output folder.
        is_done: Whether all its pictures were segmented and all their results still exist.
        parts: The finished pictures of an unfinished file, by number from 1.
    """

    file: str
    sha256: str
    formats: tuple[str, ...]
    results: frozenset[str]
    is_done: bool
    parts: Mapping[int, Part] = field(default_factory=dict)


class Records:
    """The record of a run in its output folder, including what earlier runs left there. All threads may read it.

    Attributes:
        folder: The output folder.
        fingerprint: As read back from JSON.
        state: State of the run.
        started: Time of the start in UTC; empty before :meth:`start`.

    Args:
        folder: The output folder; created if missing.
        fingerprint: What results depend on besides their images; anything that JSON can hold.
        overwrite: Whether results of another fingerprint may be replaced.

    Raises:
        ConfigError: The folder holds results of another fingerprint that may not be replaced, files that no earlier
            run wrote, links, or a journal that cannot be used; or another run is writing to it.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], overwrite: bool) -> None:
        self.folder = folder
        self.fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint))  # comparable with one read from a file
        run = read_run(folder)
        if run is None:
            _refuse_foreign_files(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_links(folder)
        self._lock = threading.Lock()
        self._journal = _open_journal(folder)
        self.state: RunState = "running"
        self.started = ""
        self._facts: dict[str, Any] = {}  # the entries of run.json
        self._stream: IO[str] | None = None
        try:
            self._check_fingerprint(overwrite)
        except BaseException:
            self.close()
            raise
        # Safe only here: the open journal keeps other runs out, so nobody is writing these files any more.
        for path in folder.glob(".*"):
            if _UNFINISHED_RUN_FILE.fullmatch(path.name):
                path.unlink(missing_ok=True)
        if run is not None and run.state == "running":  # it was killed; runs that ended left nothing half-written
            sweep(folder)

    def earlier(self, name: str) -> Earlier | None:
        """What is recorded of the file whose results have this name.

        Raises:
            ConfigError: The journal holds an entry that no run writes.
        """
        key = (_stored(name),)
        with self._lock:
            found = self._journal.execute(
                "SELECT file, sha256, formats, is_done FROM files WHERE name = ?", key
            ).fetchone()
            if found is None:
                return None
            rows = self._journal.execute("SELECT cells FROM rows WHERE name = ?", key).fetchall()
            parts = self._journal.execute(
                "SELECT picture, row, thumbnail, mask FROM parts WHERE name = ?", key
            ).fetchall()
        with self._checked(name):
            file, sha256, formats, is_done = _checked_file(found)
            results = {cells[column] for cells in map(_cells, rows) for column in FILE_COLUMNS if cells[column]}
            all_parts = {number: _part(number, *rest) for number, *rest in parts}
            of_parts = {number: set((part.picture.row.files or {}).values()) for number, part in all_parts.items()}
            results = results.union(*of_parts.values())
            if any(not _is_result_of(name, result) for result in results):
                raise ValueError("a result that is another file's")
        # The journal alone is not enough: results may have been deleted since, or emptied by a power cut.
        whole = {result for result in results if _is_whole(self.folder / result)}
        kept = {number: part for number, part in all_parts.items() if of_parts[number] <= whole}
        return Earlier(file, sha256, formats, frozenset(results), is_done and whole == results, kept)

    def names(self) -> Iterator[RecordedName]:
        """All names that results have here."""
        cursor = self._journal.execute(
            "SELECT name, file, EXISTS (SELECT 1 FROM rows WHERE rows.name = files.name AND picture > 0) OR "
            "EXISTS (SELECT 1 FROM parts WHERE parts.name = files.name) FROM files"
        )
        for name, file, is_numbered in cursor:
            with self._checked("a file"):
                yield RecordedName(_loaded(name), _loaded(file), bool(is_numbered))

    def start(self, settings: RunSettings | None = None) -> None:
        """Write ``run.json`` and the table as they are before the first image.

        Args:
            settings: What the run was asked to do; None to leave it out.
        """
        self.started = _now()
        self._facts = {
            "verb": VERB,
            "state": self.state,
            "started": self.started,
            **({} if settings is None else settings.entries()),
            "digest": _digest(self.fingerprint),
            "fingerprint": self.fingerprint,
            "versions": {"python": platform.python_version()} | {package: version(package) for package in _PACKAGES},
        }
        self._write_run()
        self._write_rows()
        self._stream = (self.folder / RESULTS).open("a", newline="", encoding="utf-8")

    def add(self, name: str, pictures: Sequence[Picture], formats: Iterable[str]) -> None:
        """Record all pictures of one file, replacing earlier entries; they are on disk when this returns."""
        assert self._stream is not None, "start() comes first"
        rows = [picture.row for picture in pictures]
        is_done = not any(row.error for row in rows)
        entry = (_stored(name), _stored(rows[0].file), rows[0].image_sha256, ",".join(formats), is_done)
        stored = [
            (_stored(name), row.picture or 0, _stored(row.file), _as_json(row.cells()), picture.thumbnail)
            for row, picture in zip(rows, pictures, strict=True)
        ]
        with self._transaction():
            self._journal.execute("DELETE FROM rows WHERE name = ?", (_stored(name),))
            self._journal.execute("DELETE FROM parts WHERE name = ?", (_stored(name),))
            self._journal.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", entry)
            self._journal.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", stored)
        # The table may lose this row or have it twice after a kill: it is written anew from the journal at each start.
        TableWriter(self._stream, COLUMNS).write_rows(row.cells() for row in rows)
        self._stream.flush()

    def add_part(self, name: str, part: Part, formats: Iterable[str]) -> None:
        """Record one picture of a file with several, once its results are on disk; :meth:`add` completes the file."""
        row = part.picture.row
        key, formats = _stored(name), ",".join(formats)
        files = {column: visible(result) for column, result in (row.files or {}).items()}
        content = json.dumps(asdict(replace(row, file="", files=files)))
        with self._transaction():
            # Parts of another version of the file, or written in other formats, cannot be mixed with this one.
            is_same = self._journal.execute(
                "SELECT 1 FROM files WHERE name = ? AND sha256 = ? AND formats = ? AND NOT is_done",
                (key, row.image_sha256, formats),
            ).fetchone()
            if is_same is None:
                self._journal.execute("DELETE FROM parts WHERE name = ?", (key,))
                entry = (key, _stored(row.file), row.image_sha256, formats, False)
                self._journal.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", entry)
            stored = (key, row.picture, content, part.picture.thumbnail, part.mask)
            self._journal.execute("INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?)", stored)

    def pictures(self) -> Iterator[tuple[Cells, bytes | None]]:
        """All recorded pictures, sorted by file and number: rows as text, and thumbnails."""
        cursor = self._journal.execute("SELECT cells, thumbnail FROM rows ORDER BY file, picture")
        for cells, thumbnail in cursor:
            with self._checked("a picture"):
                row = _cells((cells,))
                if not isinstance(thumbnail, bytes | None):
                    raise ValueError("a thumbnail that is none")
            yield row, thumbnail

    def finish(self, state: RunState, outcome: RunOutcome | None = None) -> None:
        """Sort the rows and complete ``run.json``.

        Args:
            state: How the run ended.
            outcome: Counts and times; None to leave them out.
        """
        assert self._stream is not None, "start() comes first"
        self._stream.close()
        self._write_rows()
        self.state = state
        self._facts |= {"state": state, "finished": _now(), **({} if outcome is None else asdict(outcome))}
        self._write_run()

    def secret(self) -> str:
        """The secret from which new identifiers are made: the same for all runs of this user into this folder.

        It is derived from the user's secret and a random mark stored in the folder; the mark alone reveals nothing.

        Raises:
            ConfigError: The folder's new identifiers were made by another user or on another machine, or with a secret
                that an earlier version stored in the folder; or the user's secret can be neither read nor created.
        """
        found = dict(self._journal.execute("SELECT name, value FROM facts WHERE name IN ('mark', 'check', 'salt')"))
        if "salt" in found:
            raise ConfigError(
                f"{self.folder} was de-identified by an earlier version, which left the secret in it; give another "
                "output folder, and do not hand on this one's journal.sqlite"
            )
        mark = str(found.get("mark") or secrets.token_hex(16))
        made = hmac.new(user_secret(), mark.encode(), "sha256").hexdigest()
        check = hashlib.sha256(f"check {made}".encode()).hexdigest()
        if found.get("check", check) != check:
            raise ConfigError(
                f"the new identifiers in {self.folder} were made with another secret; bring {_key_file()} from where "
                "it was begun, or give another output folder"
            )
        with self._transaction():
            self._journal.executemany("INSERT OR IGNORE INTO facts VALUES (?, ?)", (("mark", mark), ("check", check)))
        return made

    def close(self) -> None:
        """Close the journal, so that other runs may write to the folder."""
        if self._stream is not None:
            self._stream.close()
        self._journal.close()

    def _check_fingerprint(self, overwrite: bool) -> None:
        found = dict(self._journal.execute("SELECT name, value FROM facts"))
        is_known = found.get("format") == _FORMAT
        with self._checked("the settings"):
            earlier = json.loads(found.get("fingerprint", "{}"))
            if not isinstance(earlier, dict):
                raise ValueError("no settings")
        has_results = self._journal.execute("SELECT 1 FROM files WHERE is_done LIMIT 1").fetchone() is not None
        if is_known and earlier == self.fingerprint:
            return
        if is_known and has_results and not overwrite:
            raise ConfigError(
                f"{self.folder} holds results made with another {', '.join(_changes(earlier, self.fingerprint))}; "
                "give another output folder, or --overwrite to do all images again"
            )
        with self._transaction():
            self._journal.execute("DELETE FROM rows")
            self._journal.execute("DELETE FROM files")
            self._journal.execute("DELETE FROM parts")
            facts = {"format": _FORMAT, "fingerprint": json.dumps(self.fingerprint)}
            self._journal.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", facts.items())

    @contextmanager
    def _checked(self, entry: str) -> Iterator[None]:
        """Turn errors in an entry of the journal into a refusal: no run of ours writes such an entry."""
        try:
            yield
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"{self.folder / JOURNAL} holds what no run writes, of {visible(entry)}. If it came from somebody "
                f"else, {_DELETE_IT}"
            ) from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._journal:
            self._journal.execute("BEGIN")
            yield

    def _write_run(self) -> None:
        write_json(self.folder / RUN, self._facts)

    def _write_rows(self) -> None:
        with atomic_path(self.folder / RESULTS) as path, path.open("w", newline="", encoding="utf-8") as stream:
            writer = TableWriter(stream, COLUMNS)
            writer.write_header()
            writer.write_rows(cells for cells, _ in self.pictures())


def read_run(folder: Path) -> RunRecord | None:
    """``run.json`` of ``segment`` in ``folder``; None if there is none, or one that no run writes."""
    path = folder / RUN
    try:
        if path.is_symlink():
            return None
        return read_record(RunRecord, path, "delete it")
    except (OSError, DataError, ValueError, RecursionError):
        return None


def sweep(folder: Path) -> None:
    """Delete half-written results of killed processes: files with the temporary names of :func:`atomic_path`."""
    for name in dict.fromkeys(form.folder for form in FORMATS.values()):
        for parent, folders, names in os.walk(folder / name):  # links are not followed
            folders[:] = [one for one in folders if not one.startswith(".")]
            for one in names:
                if is_unfinished(one):
                    Path(parent, one).unlink(missing_ok=True)


def is_inside(folder: Path, result: str) -> bool:
    """Whether no folder between ``folder`` and ``result`` is a link, which could lead out of ``folder``."""
    place = folder
    for part in PurePosixPath(result).parent.parts:
        place = place / part
        if place.is_symlink():
            return False
    return True


def user_secret() -> bytes:
    """This user's secret for new identifiers: 32 random bytes that are never written into an output folder.

    They are stored in ``deidentify.key`` in the folder ``amsam-med`` of the user's state (``XDG_STATE_HOME``, by
    default ``~/.local/state``), readable by this user alone, and created on first use. To continue a folder on another
    machine, copy this file there.

    Raises:
        ConfigError: The file is readable by others, is damaged, or can be neither read nor created.
    """
    path = _key_file()
    try:
        if not path.exists():
            _make_key(path)
        with path.open("rb") as file:
            status, content = os.fstat(file.fileno()), file.read(65).strip()
    except OSError as error:
        raise ConfigError(
            f"{path}: the secret for new identifiers cannot be read or made ({error.strerror or error}). Make this "
            "folder writable, or name another one in the environment variable XDG_STATE_HOME"
        ) from None
    if os.name == "posix" and stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(f"{path}: others can read this secret; take that right from them (chmod 600)")
    if not re.fullmatch(rb"[0-9a-f]{64}", content):
        raise ConfigError(f"{path}: not the secret that was written there; bring back a copy of it, or delete it")
    return bytes.fromhex(content.decode())


def _key_file() -> Path:
    named = os.environ.get("XDG_STATE_HOME", "")
    try:
        folder = Path(named) if os.path.isabs(named) else Path.home() / ".local" / "state"
    except RuntimeError:
        raise ConfigError(
            "there is no home folder to keep the secret for new identifiers in; name a folder in the environment "
            "variable XDG_STATE_HOME"
        ) from None
    return folder / "amsam-med" / _KEY_FILE


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w") as file:
            file.write(f"{secrets.token_hex(32)}\n")
            file.flush()
            os.fsync(descriptor)
        # A link fails if the file exists, while a rename would replace it: of two first runs, both use the same secret.
        with suppress(FileExistsError):
            os.link(made, path)
    finally:
        made.unlink(missing_ok=True)


def _open_journal(folder: Path) -> sqlite3.Connection:
    _refuse_foreign_journal(folder)
    journal = sqlite3.connect(folder / JOURNAL, timeout=1, isolation_level=None, check_same_thread=False)
    try:
        journal.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST_ENTRY)
        journal.execute("PRAGMA trusted_schema = OFF")
        # Exclusive: one run per folder, and no shared memory, which network file systems do not have.
        journal.execute("PRAGMA locking_mode = EXCLUSIVE")
        _refuse_foreign_tables(journal)
        journal.execute("PRAGMA journal_mode = WAL")
        journal.execute("PRAGMA synchronous = NORMAL")
        journal.executescript(_TABLES)
        journal.execute("BEGIN IMMEDIATE")  # takes the exclusive lock now, not at the first result
        journal.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        journal.close()
        if "locked" in str(error):
            raise ConfigError(
                f"another run is writing to {folder}; wait for it, or give another output folder"
            ) from None
        raise ConfigError(f"{folder / JOURNAL} cannot be used ({error}). If it is damaged, {_DELETE_IT}") from None
    return journal


def _refuse_links(folder: Path) -> None:
    """Refuse links in the places that are written to: in a received folder they could lead results anywhere."""
    names = (
        *dict.fromkeys(form.folder for form in FORMATS.values()),
        JOURNAL,
        *(f"{JOURNAL}-{end}" for end in _SQLITE_SUFFIXES),
    )
    if linked := next((name for name in names if (folder / name).is_symlink()), None):
        raise ConfigError(
            f"{folder / linked} is a link, and nothing is written through one; delete it, or give another output folder"
        )


def _refuse_foreign_journal(folder: Path) -> None:
    # Before SQLite opens them: it would wait for a pipe, and delete the file that a super-journal names.
    for path in (folder / JOURNAL, *(folder / f"{JOURNAL}-{end}" for end in _SQLITE_SUFFIXES)):
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(path.lstat().st_mode):
                raise ConfigError(f"{path} is no file; delete it, or give another output folder")
    path = folder / f"{JOURNAL}-journal"
    if path.exists():
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - len(_SUPER_JOURNAL)))
            if file.read() == _SUPER_JOURNAL:
                raise ConfigError(f"{path} names a further file, which no run writes; delete it")


def _refuse_foreign_tables(journal: sqlite3.Connection) -> None:
    """Refuse other tables, views and triggers, which could make our statements do something else."""
    schema = "SELECT type, name, tbl_name, sql FROM sqlite_schema"
    expected = sqlite3.connect(":memory:")
    try:
        expected.executescript(_TABLES)
        known = set(expected.execute(schema))
    finally:
        expected.close()
    if foreign := next((one for one in journal.execute(schema) if one not in known), None):
        what = visible(f"{foreign[0]} {foreign[1]}")
        raise sqlite3.DatabaseError(f"it holds the {what[:60]}, which no run makes")


def _refuse_foreign_files(folder: Path) -> None:
    """Refuse files that no run wrote: ground truth is often stored in folders, and under names, like these."""
    folders = dict.fromkeys(form.folder for form in FORMATS.values())
    foreign = next((path for name in folders for path in (folder / name).rglob("*") if path.is_file()), None)
    other = (folder / RUN) if os.path.lexists(folder / RUN) else foreign
    if other is not None:
        raise ConfigError(
            f"{folder} holds {other.relative_to(folder).as_posix()}, which no run of `amsam {VERB}` wrote; "
            "give another output folder"
        )


def _is_whole(result: Path) -> bool:
    """Whether a result exists and is not empty: after a power cut, some file systems keep the name but no bytes."""
    try:
        status = result.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0


def _changes(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the entries that differ; nested entries as ``outer.inner``."""
    changed = []
    for name in sorted(earlier.keys() | now.keys()):
        before, after = earlier.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            changed += [f"{name}.{inner}" for inner in _changes(before, after)]
        elif before != after:
            changed.append(name)
    return changed


def _as_json(cells: Cells) -> str:
    return json.dumps(cells)  # ASCII, which lone surrogates survive


def _cells(row: Sequence[Any]) -> Cells:
    """The cells of a row of the journal.

    Raises:
        ValueError: They are not those of a row, or name a result that is not in its folder.
    """
    cells: Cells = json.loads(row[0])
    if not isinstance(cells, dict) or any(not isinstance(cell, str) for cell in cells.values()):
        raise ValueError("no row")
    if cells.keys() != set(COLUMNS):
        raise ValueError("other columns")
    _check_results({column: cells[column] for column in FILE_COLUMNS if cells[column]})
    return cells


def _check_results(results: Mapping[str, str]) -> None:
    for column, result in results.items():
        form = _FORMAT_OF[column]
        parts = result.split("/")
        is_plain = len(parts) > 1 and not any(part in ("", ".", "..") or "\0" in part for part in parts)
        if not is_plain or parts[0] != form.folder or not result.endswith(form.ending):
            raise ValueError("a result elsewhere")


def _is_result_of(name: str, result: str) -> bool:
    """Whether a result belongs to the file whose results have this name."""
    for form in FORMATS.values():
        start, end = form.file(name).removesuffix(form.ending), form.ending
        if result.startswith(start) and result.endswith(end) and len(result) >= len(start) + len(end):
            return re.fullmatch(r"(_\d{4,})?", result[len(start) : len(result) - len(end)]) is not None
    return False


def _checked_file(found: Sequence[Any]) -> tuple[str, str, tuple[str, ...], bool]:
    file, sha256, formats, is_done = found
    names = tuple(filter(None, str(formats).split(",")))
    if not isinstance(sha256, str) or any(name not in FORMATS for name in names):
        raise ValueError("no file")
    return _loaded(file), sha256, names, bool(is_done)


def _part(number: object, row: object, thumbnail: object, mask: object) -> Part:
    """A part from its columns in the journal.

    Raises:
        ValueError: They are not those of a part.
    """
    if not isinstance(row, str) or not isinstance(thumbnail, bytes | None) or not isinstance(mask, bytes | None):
        raise ValueError("no part")
    try:
        read = _ROW.validate_json(row, strict=True)
    except ValidationError:
        raise ValueError("no row of a part") from None
    files = {column: hidden(result) for column, result in (read.files or {}).items()}
    _check_results(files)
    if read.picture != number or read.error:
        raise ValueError("another picture")
    return Part(Picture(replace(read, files=files), thumbnail), mask)


_ROW = TypeAdapter(Row)


def _stored(text: str) -> bytes:
    """Text as bytes for the journal: SQLite refuses lone surrogates, and UTF-8 bytes sort as the text does."""
    return text.encode("utf-8", errors="surrogateescape")


def _loaded(stored: Any) -> str:
    if not isinstance(stored, bytes):
        raise TypeError("no text")
    return stored.decode("utf-8", errors="surrogateescape")


def _digest(fingerprint: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
