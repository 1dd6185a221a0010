"""Tables as the files in this folder say them: which rows, on which data sets, with how many examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from amsam_med.errors import ConfigError
from pipelines.paper.baselines import BASELINES
from pipelines.paper.cells import OURS, Job
from pipelines.paper.tasks import TASKS, Part, data_set_of

FOLDER = Path(__file__).resolve().parent
NUMBERS = FOLDER / "paper_numbers.yaml"
PROFILES = ("full", "cpu")
SEEDS = 5


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: As printed.
        job: What is run.
        group: Which rows belong together when a run is cut into parts.
        paper: Name of the row in ``paper_numbers.yaml``; empty where the paper has none.
        is_reference: The row with which the others are compared.
        remark: What the profile changed, as printed; empty for nothing.
    """

    name: str
    job: Job
    group: str
    paper: str = ""
    is_reference: bool = False
    remark: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Of its file.
        title: As printed.
        sets: Data sets, keys of :data:`pipelines.paper.tasks.TASKS`.
        shots: Numbers of examples.
        rows: In order.
        paper: By data set, row and shots: the paper's Dice in percent.
        where: Where the paper has them.
        part: Which images are scored.
        seeds: How many a run has by default.
        compared_over: What differences from the reference row are tested over: the images, by Wilcoxon's signed-rank
            test of their means over seeds; or the draws of examples, by paired t-tests with Holm's correction over the
            table.
    """

    name: str
    title: str
    sets: tuple[str, ...]
    shots: tuple[int, ...]
    rows: tuple[Row, ...]
    paper: Mapping[str, Mapping[str, Mapping[int, float]]] = field(default_factory=dict)
    where: str = ""
    part: Part = "test"
    seeds: int = SEEDS
    compared_over: Literal["images", "draws"] = "images"

    def set_of(self, data_set: str) -> str | None:
        """Which of the table's sets the identity of a cell means; None for none of them."""
        return next((name for name in self.sets if data_set_of(name, self.part) == data_set), None)

    @property
    def reference(self) -> Row | None:
        """The row with which the others are compared."""
        return next((row for row in self.rows if row.is_reference), None)


def table_names() -> list[str]:
    """All tables there are files for."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith(("paper_", "rows_")))


def read_table(name: str, profile: str = "full") -> Table:
    """Read ``pipelines/paper/tables/NAME.yaml``.

    Args:
        name: Of :func:`table_names`.
        profile: ``"full"``, or ``"cpu"`` for what a row's ``cpu`` entry changes.

    Raises:
        ConfigError: There is no such table, or its file asks for what does not exist.
    """
    if name not in table_names():
        raise ConfigError(f"there is no table {name!r}; expected one of {', '.join(table_names())}")
    content = _read(FOLDER / f"{name}.yaml")
    rows = content.get("rows") or _read(FOLDER / f"rows_{content['rows_of']}.yaml")["rows"]
    numbers = [_read(NUMBERS)[one] for one in content.get("paper", ())]
    return Table(
        name=name,
        title=content["title"],
        sets=tuple(_known(one, TASKS, "data set") for one in content["sets"]),
        shots=tuple(content["shots"]),
        rows=tuple(_row(entry, profile) for entry in rows),
        paper={key: value for one in numbers for key, value in one.items() if key in TASKS},
        where="; ".join(one["where"] for one in numbers),
        **{name: content[name] for name in ("part", "seeds", "compared_over") if name in content},
    )


def _row(entry: Mapping[str, Any], profile: str) -> Row:
    method = _known(entry["method"], {*OURS, *BASELINES}, "method")
    changed = entry.get("cpu", {}) if profile == "cpu" else {}
    settings = {**entry.get("settings", {}), **changed}
    if not entry.get("encode_once", True):
        settings["encode"] = IN_EVERY_STEP
    job = Job(method, settings, entry.get("detector", "none"), entry.get("like_paper", False))
    remark = ", ".join(_remark(name, value) for name, value in changed.items())
    return Row(entry["name"], job, entry["group"], entry.get("paper", ""), entry.get("is_reference", False), remark)


IN_EVERY_STEP = {
    "_target_": "benchmarks.encode_once.ImageDataset",
    "_mode_": "callable",
    "transform": "@preprocessing",
}
"""Over ``train.yaml``'s ``encode``: keep images, so that the encoder runs in every step, as BLO-SAM's own code does."""


def _remark(name: str, value: object) -> str:
    return f"{value} px" if name == "input_size" else f"{name} = {value}"


def _known(name: str, names: Mapping[str, object] | set[str], what: str) -> str:
    if name not in names:
        raise ConfigError(f"{what} {name!r} is unknown; expected one of {', '.join(sorted(names))}")
    return name


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content
