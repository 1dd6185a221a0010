"""Results of the paper's experiments: one SQLite file that can be carried to another machine and continued there.

A cell is one training (or one system used as it is) on one data set. Its key is a hash of all that decides its result:
the data set, the system with its settings, the number of examples, the seed, and the weights it stands on. Where it ran
and how long it took is recorded, and is no part of the key. Lines of JSON that earlier versions wrote are taken in
when their folder is opened.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pipelines.paper.tasks import data_set_of

AM_SAM, ADAPT = "am-sam", "adapt"
RESULTS = "results.sqlite"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cells (
    key TEXT PRIMARY KEY, identity TEXT NOT NULL, data_set TEXT NOT NULL, method TEXT NOT NULL, shots INTEGER NOT NULL,
    seed INTEGER NOT NULL, base TEXT NOT NULL, measured TEXT NOT NULL, finished TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS scores (
    key TEXT NOT NULL, image TEXT NOT NULL, dice REAL NOT NULL, PRIMARY KEY (key, image)
);
CREATE TABLE IF NOT EXISTS epochs (
    key TEXT NOT NULL, epoch INTEGER NOT NULL, dice REAL NOT NULL, PRIMARY KEY (key, epoch)
);
"""


@dataclass(frozen=True)
class Identity:
    """What decides the result of a cell.

    Attributes:
        data_set: Name of the data set whose test images are scored.
        method: ``"am-sam"``, ``"adapt"``, or a name of ``pipelines.paper.baselines.BASELINES``.
        settings: Of the training; empty for a system used as it is.
        detector: Where boxes come from: ``"none"``, ``"shipped"`` or ``"k-shot"``.
        shots: How many examples; 0 for a system used as it is.
        seed: Of draw and training; 0 for a system used as it is.
        base: Name of the base, ``""`` for a system without one.
        base_sha256: Of its weights, ``""`` without.
        detector_sha256: Of the shipped detector; ``""`` for others, whose weights follow from the rest.
        input_size: Of the network, in pixels.
        is_pretrained: Whether backbones started from published weights.
        images: How many test images there are.
    """

    data_set: str
    method: str
    settings: Mapping[str, Any]
    detector: str
    shots: int
    seed: int
    base: str
    base_sha256: str
    detector_sha256: str
    input_size: int
    is_pretrained: bool
    images: int

    @property
    def key(self) -> str:
        """Twenty hex digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:20]

    @property
    def text(self) -> str:
        """Canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Measured:
    """The results of a cell; 0 and empty texts stand for values that records of earlier versions lack.

    Attributes:
        dice: Mean over the test images at their own size, in [0, 1].
        train_seconds: From images on disk to a trained network, its encoding included, its detector not.
        detector_seconds: Training of a k-shot detector, where this cell did it.
        milliseconds: For one image, from pixels in memory to logits, the detector included; the median of several.
        peak_megabytes: The most memory that training took beyond what the process held before; on a GPU its memory.
        trained_parameters: How many numbers were trained.
        parameters: How many there are, without the detector.
        origin: Where the weights come from that training starts from.
        variant: What differs from the published system.
        chosen: What the training has chosen by itself, as printed.
        device: What it ran on.
        threads: Of the processor.
        is_processor_time: Whether times are the processor's instead of the clock's.
        commit: Of this project.
        date: When, UTC.
        versions: Of the packages that matter.
    """

    dice: float
    train_seconds: float
    detector_seconds: float = 0.0
    milliseconds: float = 0.0
    peak_megabytes: float = 0.0
    trained_parameters: int = 0
    parameters: int = 0
    origin: str = ""
    variant: str = ""
    chosen: str = ""
    device: str = ""
    threads: int = 0
    is_processor_time: bool = False
    commit: str = ""
    date: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """A finished cell.

    Attributes:
        identity: What it is.
        measured: What it came to.
        scores: Dice of each test image, by the stem of its file; empty in a record of an earlier version.
    """

    identity: Identity
    measured: Measured
    scores: Mapping[str, float]


class Store:
    """The file of results.

    Args:
        folder: Where ``results.sqlite`` lies; created if missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / RESULTS
        with self._open() as connection:
            connection.executescript(_SCHEMA)
        self.add(*_earlier_cells(folder))

    def __contains__(self, identity: Identity) -> bool:
        """Whether the cell is finished."""
        with self._open() as connection:
            return connection.execute("SELECT 1 FROM cells WHERE key = ?", (identity.key,)).fetchone() is not None

    def add(self, *cells: Cell) -> None:
        """Record finished cells, all or none; one that is there already stays."""
        rows, scores = [], []
        for cell in cells:
            one, key, measured = cell.identity, cell.identity.key, cell.measured
            row = (key, one.text, one.data_set, one.method, one.shots, one.seed, one.base)
            rows.append((*row, json.dumps(asdict(measured)), measured.date))
            scores += [(key, *score) for score in cell.scores.items()]
        with self._open() as connection:
            connection.executemany("INSERT OR IGNORE INTO cells VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            connection.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?, ?)", scores)

    def add_curve(self, identity: Identity, dice: Mapping[int, float]) -> None:
        """Record the Dice after some epochs of a training, by the number of the epoch."""
        with self._open() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO epochs VALUES (?, ?, ?)",
                [(identity.key, epoch, value) for epoch, value in dice.items()],
            )

    def cells(self) -> list[Cell]:
        """All finished cells, the oldest first."""
        with self._open() as connection:
            rows = connection.execute("SELECT key, identity, measured FROM cells ORDER BY finished, key").fetchall()
            return [
                Cell(
                    Identity(**json.loads(identity)),
                    _measured(json.loads(measured)),
                    dict(connection.execute("SELECT image, dice FROM scores WHERE key = ? ORDER BY image", (key,))),
                )
                for key, identity, measured in rows
            ]

    def curve(self, identity: Identity) -> dict[int, float]:
        """What :meth:`add_curve` recorded; empty for nothing."""
        with self._open() as connection:
            rows = connection.execute("SELECT epoch, dice FROM epochs WHERE key = ? ORDER BY epoch", (identity.key,))
            return dict(rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection for one transaction; other processes wait for each other."""
        connection = sqlite3.connect(self.path, timeout=60)
        try:
            with connection:
                yield connection
        finally:
            connection.close()


def _measured(record: Mapping[str, Any]) -> Measured:
    known = {column.name for column in fields(Measured)}
    return Measured(**{name: value for name, value in record.items() if name in known})


def _earlier_cells(folder: Path) -> Iterator[Cell]:
    """The cells of ``cells.jsonl`` (few-shot table and trials) and of ``adaptation.jsonl``, a line of JSON each."""
    for name, read in (("cells.jsonl", _of_few_shot), ("adaptation.jsonl", _of_adaptation)):
        if (file := folder / name).is_file():
            yield from (read(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines())


def _of_few_shot(record: Mapping[str, Any]) -> Cell:
    is_shipped = record["detector"] == "shipped"
    identity = _earlier_identity(record, data_set_of(record["set"], record["part"]), AM_SAM)
    identity = replace(
        identity,
        settings={"rank": 4, **record["settings"]},  # the rank was the same for all, and not said
        detector=record["detector"],
        detector_sha256=record["detector_sha256"] if is_shipped else "",
    )
    return Cell(identity, Measured(record["dice"], record["train_seconds"], chosen=f"epoch {record['best_epoch']}"), {})


def _of_adaptation(record: Mapping[str, Any]) -> Cell:
    identity = _earlier_identity(record, data_set_of(record["set"], "val"), ADAPT)
    return Cell(identity, Measured(record["dice"], record["train_seconds"], chosen=record["chosen"]), {})


def _earlier_identity(record: Mapping[str, Any], data_set: str, method: str) -> Identity:
    return Identity(
        data_set=data_set,
        method=method,
        settings=record["settings"],
        detector="none",
        shots=record["shots"],
        seed=record["seed"],
        base=record["base"],
        base_sha256=record["base_sha256"],
        detector_sha256="",
        input_size=256,
        is_pretrained=False,
        images=record["images"],
    )
