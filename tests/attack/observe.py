"""What must hold of every run, whatever it was given."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import Any

import PIL.Image

from tests.attack.world import MEGABYTES, SECONDS, Run, World, walk

CODES = (0, 1, 2, 130)
"""Exit codes that the help of the commands names."""
RESULTS = ("mask_file", "overlay_file", "contour_file", "nifti_file", "dicom_seg_file", "dicom_sr_file")

_OURS_AND_NOT_A_FAULT = re.compile(r"Traceback|Exception ignored|Fatal Python|Segmentation fault|most recent call last")
_MOST_PRINTED, _LONGEST_LINE = 40_000, 5000
_BEGINS_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_PLAIN_PATH = re.compile(r"[\w ./()-]+", re.ASCII)


def assert_plain(
    run: Run,
    codes: Container[int | None] = CODES,
    says: str = "",
    seconds: float = SECONDS,
    megabytes: float = MEGABYTES,
) -> None:
    """A run ends, soon, with a code that it may end with, in plain words and without much memory.

    Args:
        run: That has ended.
        codes: It may end with.
        says: What it prints somewhere, as a regular expression.
        seconds: Of processor time at most.
        megabytes: At most.
    """
    assert run.code is not None, f"it did not end in {run.seconds:.0f} s; printed:\n{run.printed[-1000:]}"
    if _OURS_AND_NOT_A_FAULT.search(run.printed):
        *_, last = filter(str.strip, run.printed.splitlines())
        raise AssertionError(f"a traceback, exit code {run.code}, at its end: {last[:500]}")
    shown = f"{run.seconds:.0f} s, {run.megabytes:.0f} MB, printed:\n{run.printed[-1500:]}"
    assert run.code in codes, f"exit code {run.code} and not {codes}; {shown}"
    spent = run.processor_seconds
    assert spent <= seconds, f"it takes {spent:.0f} s of the processor, more than {seconds:.0f}; {shown}"
    assert run.megabytes <= megabytes, f"it takes {run.megabytes:.0f} MB, more than {megabytes:.0f}; {shown}"
    assert len(run.printed) <= _MOST_PRINTED, f"it prints {len(run.printed):,} characters; {shown}"
    assert all(len(line) <= _LONGEST_LINE for line in run.printed.splitlines()), f"a line without end; {shown}"
    assert re.search(says, run.printed, re.DOTALL), f"does not say {says!r}; {shown}"


def assert_refused(run: Run, says: str = "", **bounds: float) -> None:
    """A run ends with a single plain message, and exit code 1 or 2."""
    assert_plain(run, (1, 2), says, **bounds)
    lines = [line for line in run.printed.splitlines() if line.strip()]
    messages = [line for line in lines if not line.startswith(("Usage:", "Try '"))]
    assert [line[:7] for line in messages] == ["Error: "], f"not one plain message:\n{run.printed}"


def assert_untouched(world: World) -> None:
    """All but the output is as it was before, nothing is left in the temporary folder, no planted code has run."""
    planted = [str(path) for path in walk(world.root) if path.name == "PROOF"]
    assert not planted, f"code from the input has run: {planted}"
    changes = world.changes()
    assert not changes, f"written, changed or left outside the output: {changes[:5]}"


def assert_whole(output: Path, states: Container[str] = ("complete",)) -> list[dict[str, str]]:
    """Everything in an output folder opens, belongs to one row, and the table is safe to open; its rows.

    Args:
        output: Of ``amsam segment``.
        states: That ``run.json`` may tell of.
    """
    facts = json.loads((output / "run.json").read_bytes().decode("utf-8", errors="strict"))
    assert facts["state"] in states, f"run.json says {facts['state']!r}"
    rows = strict_rows(output / "results.csv")
    page = output / "report.html"
    assert not page.exists() or page.read_text(encoding="utf-8").rstrip().endswith("</html>")
    named = Counter(row[column] for row in rows for column in RESULTS[:2] if row[column])
    assert not (twice := [name for name, count in named.items() if count > 1]), f"two pictures share {twice}"
    found = [path for folder in ("masks", "overlays") for path in _files(output / folder)]
    assert len(found) == len(named), f"{len(found)} masks and overlays lie there, the table names {len(named)}"
    for name in named:
        assert not _PLAIN_PATH.fullmatch(name) or (output / name).is_file(), f"{name} is not there"
    assert_no_scraps(output)
    assert_opens(output)
    return rows


def assert_no_scraps(folder: Path) -> None:
    """Nothing half-written, and no temporary name."""
    scraps = [path for path in _files(folder) if path.name.startswith(".") and not path.name.endswith((".png", ".jpg"))]
    scraps += [
        path for path in _files(folder) if path.name.startswith(".") and re.search(r"\.[0-9a-f]{8}\.", path.name)
    ]
    scraps += [path for path in _files(folder) if path.name.endswith((".tmp", ".part", "-wal", "-shm", "-journal"))]
    assert not scraps, f"left behind: {[path.name for path in scraps[:5]]}"


def assert_opens(folder: Path) -> None:
    """Every file of a known kind is whole."""
    for path in _files(folder):
        try:
            _open(path)
        except Exception as error:
            raise AssertionError(f"{path.name} is not whole: {error!r}") from error


def strict_rows(table: Path) -> list[dict[str, str]]:
    """The rows of a table, which must be valid UTF-8, well-formed, and harmless in a spreadsheet."""
    text = table.read_bytes().decode("utf-8", errors="strict")
    header, *lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    assert all(len(line) == len(header) for line in lines), "rows of another length than the header"
    for line in lines:
        for cell in line:
            assert not cell.startswith(_BEGINS_FORMULA) or _is_number(cell), f"a cell begins a formula: {cell[:60]!r}"
    return [dict(zip(header, line, strict=True)) for line in lines]


def assert_error_row(row: dict[str, str], says: str = "") -> None:
    """A row tells of a fault in one plain sentence, and names no results."""
    error = row["error"]
    assert error, "no error"
    assert error.isprintable(), f"not on one plain line: {error!r}"
    assert len(error) <= 600, f"{len(error)} characters: {error[:200]}..."
    assert re.search(says, error), f"does not say {says!r}: {error}"
    assert not [row[column] for column in RESULTS if row.get(column)], "results of a picture that has none"


def _open(path: Path) -> Any:
    if path.suffix in (".png", ".jpg"):
        with PIL.Image.open(path) as picture:
            return picture.load()
    if path.suffix in (".json", ".geojson"):
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix == ".pt":
        import torch

        return torch.load(path, map_location="cpu", weights_only=True)
    if path.suffix == ".csv":
        return list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8")), strict=True))
    if path.suffix == ".dcm":
        import pydicom

        return pydicom.dcmread(path)
    return path.stat()


def _files(folder: Path) -> list[Path]:
    return [path for path in walk(folder) if path.is_file()]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
