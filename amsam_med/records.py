"""The record of a folder run: a journal, ``results.csv`` with a row a picture, ``run.json``, and what is in them.

The *journal* (``journal.sqlite``) takes all rows of a file in one transaction once all its results lie on disk. A run
that is killed, at whatever moment, has lost at most the files in hand, and the next one does these and no others.
``results.csv`` grows with it, and is sorted by file when the run ends. ``run.json`` is there before the first result.
It holds the run's *fingerprint*, everything that a result depends on besides its image (weights by sha256, the
network's settings, the package's version), so that a later run knows whether earlier results are its own.

Nothing here is held in memory for the whole of a run. One run at a time writes to a folder.
"""

from __future__ import annotations

import csv
import hashlib
import json
import platform
import re
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias

from amsam_med.data.writers import FORMATS, atomic_path
from amsam_med.errors import ConfigError
from amsam_med.measure import Measurements

RESULTS = "results.csv"
RUN = "run.json"
JOURNAL = "journal.sqlite"
VERB = "segment"
"""Entry ``verb`` of ``run.json``; other verbs leave a file of that name as well."""

_PACKAGES = ("amsam-med", "torch", "monai", "segment-anything", "ultralytics", "timm", "numpy", "pillow", "pydicom")
_FORMAT = "2"  # of the journal; raise it when columns change
_LENT = re.compile(r"\..+\.[0-9a-f]{8}(\.\w+)?", re.DOTALL)
_LENT_FOR_RUN = re.compile(r"\.(results\.csv|run\.json|report\.html)\.[0-9a-f]{8}\.\w+")
_TABLES = """
    CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT);
    CREATE TABLE IF NOT EXISTS files (name PRIMARY KEY, file, sha256 TEXT, formats TEXT, is_done INTEGER);
    CREATE TABLE IF NOT EXISTS rows (
        name, picture INTEGER, file, cells, thumbnail BLOB, PRIMARY KEY (name, picture)
    );
    CREATE INDEX IF NOT EXISTS rows_by_file ON rows (file, picture);
"""

Cells: TypeAlias = dict[str, str]
"""A row as the file holds it: text by column."""


@dataclass(frozen=True)
class Row:
    """One picture's row. Numbers carry their unit in the column's name; an empty cell means that there is none.

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
        flags: Words of :class:`amsam_med.infer.Flag` with ";" between them: why to look at this picture again.
        seconds: Spent on this picture: reading, its share of its batch, writing.
        files: Result files by column, relative to the output folder; columns of :data:`FORMATS`.
        error: Why there is no result; then the result's columns are empty.
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
_IN_PLACE = {"measured": tuple(column.name for column in fields(Measurements)), "files": FILE_COLUMNS}
COLUMNS = tuple(name for column in fields(Row) for name in _IN_PLACE.get(column.name, (column.name,)))
"""Columns of ``results.csv``."""


class Picture(NamedTuple):
    """A picture's row and how the report shows it.

    Attributes:
        row: As in ``results.csv``.
        thumbnail: A small JPEG with the outline; None where there is no result.
    """

    row: Row
    thumbnail: bytes | None = None


class Earlier(NamedTuple):
    """What an earlier run has recorded of a file.

    Attributes:
        file: What it was called.
        sha256: Of its bytes.
        formats: Names of the formats that were written.
        results: Its result files, relative to the output folder.
        is_done: Whether all its pictures were, and all their results are still there.
    """

    file: str
    sha256: str
    formats: tuple[str, ...]
    results: frozenset[str]
    is_done: bool


class Records:
    """The record of a run in its output folder, and what an earlier run left there. All threads may read it.

    Args:
        folder: The output folder; made where it is missing.
        fingerprint: What results depend on besides their images; anything that JSON can hold.
        overwrite: Whether results of another fingerprint may be replaced.

    Raises:
        ConfigError: The folder holds results of another fingerprint that may not be replaced, or files that no earlier
            run wrote; or another run is writing to it.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], overwrite: bool) -> None:
        self.folder = folder
        self.fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint))  # comparable with one read from a file
        run = read_run(folder)
        if run is None:
            _refuse_foreign_files(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._journal = _open_journal(folder)
        self._facts: dict[str, Any] = {}
        self._stream: IO[str] | None = None
        try:
            self._check_fingerprint(overwrite)
        except ConfigError:
            self.close()
            raise
        for path in folder.glob(".*"):
            if _LENT_FOR_RUN.fullmatch(path.name):
                path.unlink(missing_ok=True)
        if run is not None and run.get("state") == "running":
            sweep(folder)

    def earlier(self, name: str) -> Earlier | None:
        """What is recorded of the file whose results have this name."""
        with self._lock:
            found = self._journal.execute(
                "SELECT file, sha256, formats, is_done FROM files WHERE name = ?", (_stored(name),)
            ).fetchone()
            rows = self._journal.execute("SELECT cells FROM rows WHERE name = ?", (_stored(name),)).fetchall()
        if found is None:
            return None
        results = frozenset(cells[column] for cells in map(_cells, rows) for column in FILE_COLUMNS if cells[column])
        is_done = bool(found[3]) and all(_is_whole(self.folder / result) for result in results)
        return Earlier(_loaded(found[0]), found[1], tuple(filter(None, found[2].split(","))), results, is_done)

    def start(self, facts: Mapping[str, Any]) -> None:
        """Write what is known before the first image; ``facts`` are further entries of ``run.json``."""
        self._facts = {
            "verb": VERB,
            "state": "running",
            "started": _now(),
            **facts,
            "digest": _digest(self.fingerprint),
            "fingerprint": self.fingerprint,
            "versions": {"python": platform.python_version()} | {package: version(package) for package in _PACKAGES},
        }
        self._write_run()
        self._write_rows()
        self._stream = (self.folder / RESULTS).open("a", newline="", encoding="utf-8", errors="surrogateescape")

    def add(self, name: str, pictures: Sequence[Picture], formats: Iterable[str]) -> None:
        """Record all pictures of one file, in place of what was recorded of it; they are on disk when this returns."""
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
            self._journal.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", entry)
            self._journal.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", stored)
        csv.DictWriter(self._stream, COLUMNS).writerows(row.cells() for row in rows)
        self._stream.flush()

    def pictures(self) -> Iterator[tuple[Cells, bytes | None]]:
        """All that is recorded, by file and picture: rows as text, and thumbnails."""
        cursor = self._journal.execute("SELECT cells, thumbnail FROM rows ORDER BY file, picture")
        for cells, thumbnail in cursor:
            yield _cells((cells,)), thumbnail

    def finish(self, state: str, facts: Mapping[str, Any]) -> None:
        """Sort the rows and complete ``run.json``.

        Args:
            state: "complete", "interrupted" or "failed".
            facts: Further entries of ``run.json``: counts and times.
        """
        assert self._stream is not None, "start() comes first"
        self._stream.close()
        self._write_rows()
        self._facts |= {"state": state, "finished": _now(), **facts}
        self._write_run()

    @property
    def salt(self) -> str:
        """A secret of this folder, the same for all its runs: what new identifiers are made with."""
        with self._transaction():
            self._journal.execute("INSERT OR IGNORE INTO facts VALUES ('salt', ?)", (secrets.token_hex(16),))
        found = self._journal.execute("SELECT value FROM facts WHERE name = 'salt'").fetchone()
        return str(found[0])

    @property
    def facts(self) -> Mapping[str, Any]:
        """The entries of ``run.json`` as they are now."""
        return self._facts

    def close(self) -> None:
        """Let other runs write to the folder."""
        if self._stream is not None:
            self._stream.close()
        self._journal.close()

    def _check_fingerprint(self, overwrite: bool) -> None:
        found = dict(self._journal.execute("SELECT name, value FROM facts"))
        is_known = found.get("format") == _FORMAT
        earlier = json.loads(found.get("fingerprint", "{}"))
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
            facts = {"format": _FORMAT, "fingerprint": json.dumps(self.fingerprint)}
            self._journal.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", facts.items())

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._journal:
            self._journal.execute("BEGIN")
            yield

    def _write_run(self) -> None:
        with atomic_path(self.folder / RUN) as path:
            path.write_text(json.dumps(self._facts, indent=2) + "\n", encoding="utf-8")

    def _write_rows(self) -> None:
        with (
            atomic_path(self.folder / RESULTS) as path,
            path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
        ):
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(cells for cells, _ in self.pictures())


def read_run(folder: Path) -> dict[str, Any] | None:
    """``run.json`` of a run of this verb in ``folder``; None where there is none."""
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return run if isinstance(run, dict) and run.get("verb") == VERB else None


def sweep(folder: Path) -> None:
    """Delete the results that a killed process left half-written: names that :func:`atomic_path` lent."""
    for name in dict.fromkeys(form.folder for form in FORMATS.values()):
        for path in (folder / name).rglob(".*"):
            if _LENT.fullmatch(path.name):
                path.unlink(missing_ok=True)


def _open_journal(folder: Path) -> sqlite3.Connection:
    journal = sqlite3.connect(folder / JOURNAL, timeout=1, isolation_level=None, check_same_thread=False)
    try:
        # Exclusive: one run a folder, and no shared memory, which network file systems do not have.
        journal.execute("PRAGMA locking_mode = EXCLUSIVE")
        journal.execute("PRAGMA journal_mode = WAL")
        journal.execute("PRAGMA synchronous = NORMAL")
        journal.executescript(_TABLES)
        journal.execute("BEGIN IMMEDIATE")
        journal.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        journal.close()
        if "locked" in str(error):
            raise ConfigError(
                f"another run is writing to {folder}; wait for it, or give another output folder"
            ) from None
        raise ConfigError(
            f"{folder / JOURNAL} cannot be used ({error}). If it is damaged, delete it: then all images are done again"
        ) from None
    return journal


def _refuse_foreign_files(folder: Path) -> None:
    """Ground truth often lies in folders, and under names, like these: never write over files of unknown origin."""
    folders = dict.fromkeys(form.folder for form in FORMATS.values())
    foreign = next((path for name in folders for path in (folder / name).rglob("*") if path.is_file()), None)
    other = (folder / RUN) if (folder / RUN).exists() else foreign
    if other is not None:
        raise ConfigError(
            f"{folder} holds {other.relative_to(folder).as_posix()}, which no run of `amsam {VERB}` wrote; "
            "give another output folder"
        )


def _is_whole(result: Path) -> bool:
    """Whether a result is there; after a power cut, some file systems have its name without its bytes."""
    try:
        return result.stat().st_size > 0
    except OSError:
        return False


def _changes(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the entries that differ, those of nested entries with a dot."""
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
    cells: Cells = json.loads(row[0])
    return cells


def _stored(text: str) -> bytes:
    """Text for the journal; bytes, as SQLite takes no lone surrogates, and they sort as the text does."""
    return text.encode("utf-8", errors="surrogateescape")


def _loaded(stored: bytes) -> str:
    return stored.decode("utf-8", errors="surrogateescape")


def _digest(fingerprint: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
