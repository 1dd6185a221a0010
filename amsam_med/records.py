"""The record of a folder run: ``results.csv``, a row an image, and ``run.json``, what made these results.

Rows are written one by one, so a killed run leaves all that it finished; a run that ends otherwise leaves them sorted
by file. ``run.json`` is there before the first result. It holds the run's *fingerprint*, everything that a result
depends on besides its image (weights by sha256, the network's settings, the package's version), so that a later run
knows whether earlier results are its own.
"""

from __future__ import annotations

import csv
import hashlib
import json
import platform
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, TypeAlias

from amsam_med.data.writers import atomic_path
from amsam_med.errors import ConfigError

RESULTS = "results.csv"
RUN = "run.json"
VERB = "segment"
"""Entry ``verb`` of ``run.json``; other verbs leave a file of that name as well."""

_PACKAGES = ("amsam-med", "torch", "monai", "segment-anything", "ultralytics", "timm", "numpy", "pillow", "pydicom")

Cells: TypeAlias = dict[str, str]
"""A row as the file holds it: text by column."""


@dataclass(frozen=True)
class Row:
    """One image's row. Numbers carry their unit in the column's name; an empty cell means that there is none.

    Attributes:
        file: The image, as the caller named it or its folder.
        image_sha256: Of the image file's bytes.
        height_px: Height of the image in pixels.
        width_px: Width of the image in pixels.
        box_x1_px: Left edge of the box in the original frame, in pixels; then top, right and bottom.
        box_y1_px: Top edge.
        box_x2_px: Right edge.
        box_y2_px: Bottom edge.
        box_source: "detector", "not found", "user" or "none".
        box_confidence: In [0, 1].
        area_px: Pixels of the object.
        area_percent: Their share of the image.
        predicted_iou: The network's own estimate of its mask's IoU, in [0, 1].
        certainty: How decided the mask's pixels are, in [0, 1]; see :class:`amsam_med.infer.Segmentation`.
        box_agreement: IoU of the box with the mask's tight box, in [0, 1]; empty where no box was used.
        flags: Words of :class:`amsam_med.infer.Flag` with ";" between them: why to look at this image again.
        seconds: Spent on this image: reading, its share of its batch, writing.
        mask_file: Relative to the output folder.
        overlay_file: Relative to the output folder.
        error: Why there is no result; then the result's columns are empty.
    """

    file: str
    image_sha256: str = ""
    height_px: int | None = None
    width_px: int | None = None
    box_x1_px: float | None = None
    box_y1_px: float | None = None
    box_x2_px: float | None = None
    box_y2_px: float | None = None
    box_source: str = ""
    box_confidence: float | None = None
    area_px: int | None = None
    area_percent: float | None = None
    predicted_iou: float | None = None
    certainty: float | None = None
    box_agreement: float | None = None
    flags: str = ""
    seconds: float = 0.0
    mask_file: str = ""
    overlay_file: str = ""
    error: str = ""

    def cells(self) -> Cells:
        """The row as text."""
        return {name: "" if value is None else str(value) for name, value in asdict(self).items()}


COLUMNS = tuple(column.name for column in fields(Row))
_FILE_COLUMNS = ("mask_file", "overlay_file")


class Records:
    """The record of a run in its output folder, and what an earlier run left there.

    Args:
        folder: The output folder.
        fingerprint: What results depend on besides their images; anything that JSON can hold.
        overwrite: Whether results of another fingerprint may be replaced.
        result_folders: Names of the sub-folders that results go to.

    Raises:
        ConfigError: The folder holds results of another fingerprint that may not be replaced, or files that no earlier
            run wrote.
    """

    def __init__(
        self, folder: Path, fingerprint: Mapping[str, Any], overwrite: bool, result_folders: Collection[str]
    ) -> None:
        self.folder = folder
        self.fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint))  # comparable with one read from a file
        earlier = read_run(folder)
        if earlier is None:
            _refuse_foreign_files(folder, result_folders)
        rows = [] if earlier is None else [row for row in _read_rows(folder / RESULTS) if _has_results(row, folder)]
        if rows and earlier is not None and (changed := _changes(earlier.get("fingerprint", {}), self.fingerprint)):
            if not overwrite:
                raise ConfigError(
                    f"{folder} holds results made with another {', '.join(changed)}; "
                    "give another output folder, or --overwrite to do all images again"
                )
            rows = []
        self._rows = rows
        self._by_file = {row[column]: row for row in rows for column in _FILE_COLUMNS if row[column]}
        self._facts: dict[str, Any] = {}
        self._stream: IO[str] | None = None

    def earlier_row(self, files: Collection[str]) -> Cells | None:
        """The row of an earlier run's result that lies in one of these files, relative to the output folder."""
        return next((self._by_file[file] for file in files if file in self._by_file), None)

    def start(self, replaced: Collection[str], facts: Mapping[str, Any]) -> None:
        """Write what is known before the first image.

        Args:
            replaced: Result files of the images to come; rows of earlier results in them are dropped.
            facts: Further entries of ``run.json``.
        """
        kept = [row for row in self._rows if not any(row[column] in replaced for column in _FILE_COLUMNS)]
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
        self._write_rows(kept)
        self._stream = (self.folder / RESULTS).open("a", newline="", encoding="utf-8", errors="surrogateescape")

    def add(self, row: Row) -> None:
        """Write one row; it is in the file when this returns."""
        assert self._stream is not None, "start() comes first"
        csv.DictWriter(self._stream, COLUMNS).writerow(row.cells())
        self._stream.flush()

    def finish(self, state: str, facts: Mapping[str, Any]) -> None:
        """Sort the rows and complete ``run.json``.

        Args:
            state: "complete", "interrupted" or "failed".
            facts: Further entries of ``run.json``: counts and times.
        """
        assert self._stream is not None, "start() comes first"
        self._stream.close()
        self._write_rows(sorted(_read_rows(self.folder / RESULTS), key=lambda row: row["file"]))
        self._facts |= {"state": state, "finished": _now(), **facts}
        self._write_run()

    def _write_run(self) -> None:
        with atomic_path(self.folder / RUN) as path:
            path.write_text(json.dumps(self._facts, indent=2) + "\n", encoding="utf-8")

    def _write_rows(self, rows: Iterable[Cells]) -> None:
        with (
            atomic_path(self.folder / RESULTS) as path,
            path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
        ):
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


def read_run(folder: Path) -> dict[str, Any] | None:
    """``run.json`` of a run of this verb in ``folder``; None where there is none."""
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return run if isinstance(run, dict) and run.get("verb") == VERB else None


def _read_rows(file: Path) -> list[Cells]:
    """All whole rows; a row that a killed run left half-written is none."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        return [row for row in csv.DictReader(stream) if tuple(row) == COLUMNS and None not in row.values()]


def _has_results(row: Cells, folder: Path) -> bool:
    files = [row[column] for column in _FILE_COLUMNS if row[column]]
    return bool(files) and all((folder / file).is_file() for file in files)


def _refuse_foreign_files(folder: Path, result_folders: Collection[str]) -> None:
    """Ground truth often lies in folders, and under names, like these: never write over files of unknown origin."""
    foreign = next((path for name in result_folders for path in (folder / name).rglob("*") if path.is_file()), None)
    other = (folder / RUN) if (folder / RUN).exists() else foreign
    if other is not None:
        raise ConfigError(
            f"{folder} holds {other.relative_to(folder).as_posix()}, which no run of `amsam {VERB}` wrote; "
            "give another output folder"
        )


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


def _digest(fingerprint: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
