"""Tables of results as Markdown, LaTeX and CSV.

A cell holds the mean Dice in percent over the seeds and its sample standard deviation. The p-value is that of
Wilcoxon's signed-rank test over the test images, each image's Dice averaged over the seeds that both rows have, against
the reference row; a few seeds alone could not be significant.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from amsam_med.errors import DataError
from amsam_med.files import atomic_path
from pipelines.paper.cells import TASKS, settings_of
from pipelines.paper.store import Cell, Store
from pipelines.paper.tables import Row, Table

SHOWN = 0.05
"""The smallest difference in points that a table's one decimal can show; below it rows count as equal."""
Key = tuple[str, int]
"""A data set and a number of examples: a column."""


@dataclass(frozen=True)
class Entry:
    """What stands in one place of a table.

    Attributes:
        mean: Dice in percent, mean over seeds; None where nothing was run.
        deviation: Sample standard deviation over seeds; None below two.
        seeds: How many.
        p: Against the reference row; None without one, or for the reference itself.
        difference: To the reference, in points; None as for ``p``.
        paper: The paper's number; None where it has none.
    """

    mean: float | None = None
    deviation: float | None = None
    seeds: int = 0
    p: float | None = None
    difference: float | None = None
    paper: float | None = None

    @property
    def differs(self) -> bool:
        """Whether it is surely another number than the reference, and by as much as the table shows."""
        return self.p is not None and self.p < 0.05 and self.difference is not None and abs(self.difference) >= SHOWN


@dataclass(frozen=True)
class Line:
    """A rendered row.

    Attributes:
        row: The table's row.
        entries: By column.
        cells: All its finished cells.
    """

    row: Row
    entries: Mapping[Key, Entry]
    cells: Sequence[Cell]


def render(table: Table, store: Store, base: str, folder: Path, shots: Sequence[int] | None = None) -> list[Path]:
    """Write ``NAME-BASE.md``, ``.tex`` and ``.csv``.

    Args:
        table: What to render.
        store: Where its cells are.
        base: Of the rows that stand on one; rows without a base belong to every base's table.
        folder: Where the files go; made where it is missing.
        shots: Columns; the table's by default.

    Raises:
        DataError: Nothing of the table is on record.
    """
    lines, columns = collect(table, store, base, tuple(shots or table.shots))
    if not lines:
        raise DataError(
            f"{store.path} holds nothing of {table.name} on {base}; run it without --render-only, or give the --output "
            "and --base of a run"
        )
    contents = {".md": as_markdown(table, lines, columns, base), ".tex": as_latex(table, lines, columns, base)}
    contents[".csv"] = as_csv(lines)
    paths = []
    for suffix, text in contents.items():
        paths.append(folder / f"{table.name}-{base}{suffix}")
        with atomic_path(paths[-1]) as path:
            path.write_text(text, encoding="utf-8")
    return paths


def collect(table: Table, store: Store, base: str, shots: Sequence[int]) -> tuple[list[Line], list[Key]]:
    """The rows that have cells, and the columns."""
    found = [
        cell for cell in store.cells() if cell.identity.base in (base, "") and cell.identity.data_set in table.sets
    ]
    _refuse_mixtures(found)
    columns = [(name, count) for name in table.sets for count in shots]
    by_row = {row.name: _of_row(row, found, columns) for row in table.rows}
    reference = by_row.get(table.reference.name, {}) if table.reference else {}
    lines = []
    for row in table.rows:
        own = by_row[row.name]
        if not any(own.values()):
            continue
        is_other = not row.is_reference
        entries = {
            key: _entry(own[key], reference.get(key, []) if is_other else [], _paper(table, row, key))
            for key in columns
        }
        cells = {cell.identity.key: cell for some in own.values() for cell in some}
        lines.append(Line(row, entries, list(cells.values())))
    return lines, columns


def as_markdown(table: Table, lines: Sequence[Line], columns: Sequence[Key], base: str) -> str:
    """Dice, cost, and what there is to know about both."""
    titles = [_column_title(table, key) for key in columns]
    dice = [["", *titles], ["---", *["---:"] * len(columns)]]
    dice += [[_name(line), *[_cell(line.entries[key], line.row.job.is_trained) for key in columns]] for line in lines]
    counts = sorted({count for _, count in columns})
    heads = [*[f"s, k = {count}" for count in counts], *COST_TITLES]
    cost = [["", *heads], ["---", *["---:"] * len(heads)]]
    cost += [[_name(line), *[_seconds(line, count) for count in counts], *_costs(line)] for line in lines]
    parts = [
        f"# {table.title}, base `{base}`",
        _explanation(table, lines),
        _markdown_table(dice),
        "## What it costs",
        COST_NOTE,
        _markdown_table(cost),
        _provenance(lines),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_latex(table: Table, lines: Sequence[Line], columns: Sequence[Key], base: str) -> str:
    """The table of Dice for a paper; needs the package booktabs."""
    head = " & ".join(["Method", *[_tex(_column_title(table, key)) for key in columns]])
    rows = [
        " & ".join([_tex(_name(line)), *[_tex_cell(line.entries[key]) for key in columns]]) + r" \\" for line in lines
    ]
    caption = _tex(f"{table.title}, base {base}: Dice in %, mean and standard deviation over seeds.")
    if table.reference is not None:
        against = _tex(table.reference.name)
        caption += rf" $^{{\ast}}$: another score than ``{against}'' (Wilcoxon's signed-rank test, $p < 0.05$)."
    body = [r"\toprule", head + r" \\", r"\midrule", *rows, r"\bottomrule"]
    layout = "l" + "r" * len(columns)
    opening = [r"\begin{table}", rf"\caption{{{caption}}}", rf"\begin{{tabular}}{{{layout}}}"]
    return "\n".join([*opening, *body, r"\end{tabular}", r"\end{table}"]) + "\n"


def as_csv(lines: Sequence[Line]) -> str:
    """One line a row, data set and number of examples; empty where there is nothing to say."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["row", "set", "shots", "dice_percent", "std_percent", "seeds", "p", "difference_percent", "paper_percent"]
    )
    for line in lines:
        for (name, count), entry in line.entries.items():
            numbers = (entry.mean, entry.deviation, entry.seeds, entry.p, entry.difference, entry.paper)
            cells = ["" if number is None else f"{number:.6g}" for number in numbers]
            writer.writerow([line.row.name, name, count, *cells])
    return stream.getvalue()


COST_TITLES = ("trained parameters", "parameters", "ms an image", "MB to train", "starts from")
COST_NOTE = (
    "Seconds to train, from images on disk to a trained network: the median of all seeds; in square brackets a k-shot "
    "detector's own training. Milliseconds for one image in memory, detector and encoder included. Memory beyond what "
    "the process held before training, the most of all cells."
)


def _refuse_mixtures(cells: Sequence[Cell]) -> None:
    """Raise for cells that must not stand in one table."""
    for what in ("images", "base_sha256"):
        kinds: dict[str, set[object]] = {}
        for cell in cells:
            value = getattr(cell.identity, what)
            kinds.setdefault(cell.identity.data_set, set()).update({value} if value else ())
        for name, values in kinds.items():
            if len(values) > 1:
                raise DataError(
                    f"the cells of {name} differ in {what} ({', '.join(map(str, sorted(values, key=str)))}); "
                    "keep each in a folder of its own"
                )


def _of_row(row: Row, cells: Sequence[Cell], columns: Sequence[Key]) -> dict[Key, list[Cell]]:
    """The cells of a row in each column; a system used as it is stands in all columns of its data set."""
    settings = settings_of(row.job)
    own = [cell for cell in cells if _belongs(row, settings, cell)]
    return {
        (name, count): [cell for cell in own if cell.identity.data_set == name and cell.identity.shots in (0, count)]
        for name, count in columns
    }


def _belongs(row: Row, settings: Mapping[str, object], cell: Cell) -> bool:
    """Whether a cell was run for such a row: the same system, detector and settings."""
    identity, job = cell.identity, row.job
    return (identity.method, identity.detector, dict(identity.settings)) == (job.method, job.detector, settings)


def _entry(cells: Sequence[Cell], reference: Sequence[Cell], paper: float | None) -> Entry:
    if not cells:
        return Entry(paper=paper)
    values = [100 * cell.measured.dice for cell in cells]
    deviation = statistics.stdev(values) if len(values) > 1 else None
    p, difference = compare(cells, reference) if reference else (None, None)
    return Entry(statistics.fmean(values), deviation, len(values), p, difference, paper)


def compare(cells: Sequence[Cell], reference: Sequence[Cell]) -> tuple[float | None, float | None]:
    """Wilcoxon's p over images against the reference, and the difference of the means in points.

    Seeds that only one of both has are left out; a system used as it is is compared with all of the reference's seeds.
    """
    seeds = {cell.identity.seed for cell in reference}
    if any(cell.identity.shots for cell in cells):
        seeds &= {cell.identity.seed for cell in cells}
        cells = [cell for cell in cells if cell.identity.seed in seeds]
    reference = [cell for cell in reference if cell.identity.seed in seeds]
    if not cells or not reference:
        return None, None
    differences = _mean_scores(cells) - _mean_scores(reference)
    p = 1.0 if not differences.any() else float(wilcoxon(differences).pvalue)
    return p, 100 * float(differences.mean())


def _mean_scores(cells: Sequence[Cell]) -> NDArray[np.float64]:
    """Dice of each image ``(N,)``, mean over the cells; images in the order of their names."""
    names = sorted(cells[0].scores)
    mean: NDArray[np.float64] = np.array([[cell.scores[name] for name in names] for cell in cells]).mean(axis=0)
    return mean


def _paper(table: Table, row: Row, key: Key) -> float | None:
    name, count = key
    return table.paper.get(name, {}).get(row.paper, {}).get(count) if row.paper else None


def _column_title(table: Table, key: Key) -> str:
    name, count = key
    return f"k = {count}" if len(table.sets) == 1 else f"{TASKS[name].title}, k = {count}"


def _name(line: Line) -> str:
    variants = {cell.measured.variant for cell in line.cells if cell.measured.variant}
    remarks = [line.row.remark, *sorted(variants)]
    said = "; ".join(remark for remark in remarks if remark)
    name = f"{line.row.name} ({said})" if said else line.row.name
    return f"**{name}**" if line.row.is_reference else name


def _cell(entry: Entry, is_trained: bool) -> str:
    if entry.mean is None:
        return "-" if entry.paper is None else f"- [{entry.paper}]"
    text = f"{entry.mean:.1f}"
    if entry.deviation is not None:
        text += f" ± {entry.deviation:.1f}"
    if is_trained:
        text += f" ({entry.seeds})"
    return text + _mark(entry) + ("" if entry.paper is None else f" [{entry.paper}]")


def _mark(entry: Entry) -> str:
    """Against the reference: better or worse, and how surely."""
    if entry.p is None or entry.difference is None:
        return ""
    if not entry.differs:
        return " ="
    arrow = "▲" if entry.difference > 0 else "▼"
    return f" {arrow}" if entry.p < 0.001 else f" {arrow} p = {entry.p:.3f}"


def _tex_cell(entry: Entry) -> str:
    if entry.mean is None:
        return "--"
    deviation = "" if entry.deviation is None else rf" \pm {entry.deviation:.1f}"
    star = r"^{\ast}" if entry.differs else ""
    return rf"${entry.mean:.1f}{deviation}{star}$"


def _seconds(line: Line, count: int) -> str:
    measured = [cell.measured for cell in line.cells if cell.identity.shots == count]
    if not measured:
        return "-"
    detector = [one.detector_seconds for one in measured if one.detector_seconds > 1]
    time = f"{statistics.median(one.train_seconds for one in measured):.0f}"
    return f"{time} [{statistics.median(detector):.0f}]" if detector else time


def _costs(line: Line) -> list[str]:
    measured = [cell.measured for cell in line.cells]
    last = measured[-1]
    trained = any(one.train_seconds for one in measured)
    return [
        f"{last.trained_parameters:,}" if trained else "-",
        f"{last.parameters / 1e6:.1f} M",
        f"{statistics.median(one.milliseconds for one in measured):.0f}",
        f"{max(one.peak_megabytes for one in measured):.0f}" if trained else "-",
        last.origin,
    ]


def _explanation(table: Table, lines: Sequence[Line]) -> str:
    images = {(cell.identity.data_set, cell.identity.images) for line in lines for cell in line.cells}
    counts = ", ".join(f"{count} images of {TASKS[name].title}" for name, count in sorted(images))
    text = f"Mean Dice in % over {counts} at their own size, ± standard deviation over seeds (how many)."
    if table.reference is not None:
        text += (
            f" Against **{table.reference.name}**, by Wilcoxon's signed-rank test over images: ▲ better, ▼ worse "
            "(p < 0.001 where no p is given), = no difference to be sure of (p ≥ 0.05) or to be seen "
            f"(less than {SHOWN} points)."
        )
    if table.where:
        text += f" In square brackets: the paper's number on SAM's ViT-B ({table.where})."
    return text


def _provenance(lines: Sequence[Line]) -> str:
    measured = [cell.measured for line in lines for cell in line.cells]
    devices = sorted({f"{one.device}, {one.threads} thread{'s'[: one.threads > 1]}" for one in measured})
    commits, dates = sorted({one.commit for one in measured}), sorted(one.date[:10] for one in measured)
    bases = sorted({cell.identity.base_sha256[:12] for line in lines for cell in line.cells if cell.identity.base})
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    clocks = "times are the processor's" if all(one.is_processor_time for one in measured) else "times are the clock's"
    return (
        f"{len(measured)} cells, {when}, on {'; '.join(devices)}; {clocks}; commit {', '.join(commits)}; "
        f"sha256 of the base {', '.join(bases)}."
    )


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _tex(text: str) -> str:
    plain = text.replace("**", "")
    for sign, written in (("&", r"\&"), ("%", r"\%"), ("_", r"\_"), ("×", r"$\times$"), ("—", "--")):
        plain = plain.replace(sign, written)
    return plain
