"""Tables of results as Markdown, LaTeX and CSV.

A cell holds the mean Dice in percent over the seeds and its sample standard deviation. What differs from the reference
row is tested over the images, each image's Dice averaged over the seeds that both rows have (Wilcoxon's signed-rank
test; a few seeds alone could not be significant), or over the draws of examples, as the table says.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ttest_rel, wilcoxon

from amsam_med.errors import DataError
from amsam_med.files import atomic_path
from pipelines.markdown import table as markdown_table
from pipelines.markdown import write_block
from pipelines.paper.cells import settings_of
from pipelines.paper.store import Cell, Store
from pipelines.paper.tables import Row, Table
from pipelines.paper.tasks import TASKS

SHOWN = 0.05
"""The smallest difference in points that a table's one decimal can show; below it rows count as equal."""
LEAST_DRAWS = 5
"""With fewer draws of examples nothing is tested over them."""
Key = tuple[str, int]
"""A data set and a number of examples: a column."""
Compared = tuple[float | None, float | None]
"""The p of a difference from the reference, and the difference in points; None for what is not known."""
UNKNOWN: Compared = (None, None)


@dataclass(frozen=True)
class Entry:
    """One entry of a table.

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


def render(
    table: Table,
    store: Store,
    base: str,
    folder: Path,
    shots: Sequence[int] | None = None,
    document: Path | None = None,
) -> list[Path]:
    """Write ``NAME-BASE.md``, ``.tex`` and ``.csv``.

    Args:
        table: What to render.
        store: Where its cells are.
        base: Of the rows that stand on one; rows without a base belong to every base's table.
        folder: Where the files go; created if missing.
        shots: Columns; the table's by default.
        document: A document with marks of the table's name, between which its Dice goes as well.

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
    if document is not None:
        write_block(document, table.name, dice_as_markdown(table, lines, columns, base))
    return paths


def collect(table: Table, store: Store, base: str, shots: Sequence[int]) -> tuple[list[Line], list[Key]]:
    """The rows that have cells, and the columns."""
    found = [
        cell
        for cell in store.cells()
        if cell.identity.base in (base, "") and table.set_of(cell.identity.data_set) is not None
    ]
    _refuse_mixtures(found)
    columns = [(name, count) for name in table.sets for count in shots]
    by_row = {row.name: _of_row(table, row, found, columns) for row in table.rows}
    reference = by_row.get(table.reference.name, {}) if table.reference else {}
    lines: list[Line] = []
    compare = compare_over_draws if table.compared_over == "draws" else compare_over_images
    for row in table.rows:
        own = by_row[row.name]
        if not any(own.values()):
            continue
        is_other = not row.is_reference
        entries = {
            key: _entry(
                own[key], compare(own[key], reference.get(key, [])) if is_other else UNKNOWN, _paper(table, row, key)
            )
            for key in columns
        }
        cells = {cell.identity.key: cell for some in own.values() for cell in some}
        lines.append(Line(row, entries, list(cells.values())))
    return (_corrected(lines) if table.compared_over == "draws" else lines), columns


def as_markdown(table: Table, lines: Sequence[Line], columns: Sequence[Key], base: str) -> str:
    """Dice, cost, and what there is to know about both."""
    counts = sorted({count for _, count in columns})
    heads = [*[f"s, k = {count}" for count in counts], *COST_TITLES]
    cost = [[_name(line), *[_seconds(line, count) for count in counts], *_costs(line)] for line in lines]
    parts = [
        f"# {table.title}, base `{base}`",
        _explanation(table, lines),
        _dice_table(table, lines, columns),
        "## What it costs",
        COST_NOTE,
        markdown_table(["", *heads], cost),
        _provenance(lines),
    ]
    return "\n\n".join(parts) + "\n"


def dice_as_markdown(table: Table, lines: Sequence[Line], columns: Sequence[Key], base: str) -> str:
    """Dice and what there is to know about it, for a document of its own words."""
    parts = [f"Base `{base}`. {_explanation(table, lines)}", _dice_table(table, lines, columns), _provenance(lines)]
    return "\n\n".join(parts)


def _dice_table(table: Table, lines: Sequence[Line], columns: Sequence[Key]) -> str:
    rows = [[_name(line), *[_cell(line.entries[key], line.row.job.is_trained) for key in columns]] for line in lines]
    return markdown_table(["", *[_column_title(table, key) for key in columns]], rows)


def as_latex(table: Table, lines: Sequence[Line], columns: Sequence[Key], base: str) -> str:
    """The table of Dice for a paper; needs the package booktabs."""
    head = " & ".join(["Method", *[_tex(_column_title(table, key)) for key in columns]])
    rows = [
        " & ".join([_tex(_name(line)), *[_tex_cell(line.entries[key]) for key in columns]]) + r" \\" for line in lines
    ]
    caption = _tex(f"{table.title}, base {base}: Dice in %, mean and standard deviation over seeds.")
    if table.reference is not None:
        against, test = _tex(table.reference.name), TESTS[table.compared_over]
        caption += rf" $^{{\ast}}$: another score than ``{against}'' ({test}, $p < 0.05$)."
    body = [r"\toprule", head + r" \\", r"\midrule", *rows, r"\bottomrule"]
    layout = "l" + "r" * len(columns)
    opening = [r"\begin{table}", rf"\caption{{{caption}}}", rf"\begin{{tabular}}{{{layout}}}"]
    return "\n".join([*opening, *body, r"\end{tabular}", r"\end{table}"]) + "\n"


def as_csv(lines: Sequence[Line]) -> str:
    """One line per row, data set and number of examples; empty where there is nothing to say."""
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


TESTS = {
    "images": "Wilcoxon's signed-rank test",
    "draws": "paired t-tests over the draws of examples with Holm's correction over the table",
}
COST_TITLES = ("trained parameters", "parameters", "ms per image", "MB to train", "starts from")
COST_NOTE = (
    "Seconds to train, from images on disk to a trained network: the median of all seeds; in square brackets a k-shot "
    "detector's own training. Milliseconds for one image in memory, detector and encoder included. Memory beyond what "
    "the process held before training, the most of all cells."
)


def _refuse_mixtures(cells: Sequence[Cell]) -> None:
    """Raise for cells that must not stand in one table."""
    for what in ("images", "base_sha256", "detector_sha256"):
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


def _of_row(table: Table, row: Row, cells: Sequence[Cell], columns: Sequence[Key]) -> dict[Key, list[Cell]]:
    """The cells of a row in each column; a system used as it is stands in all columns of its data set."""
    settings = settings_of(row.job)
    own = [cell for cell in cells if _belongs(row, settings, cell)]
    return {
        (name, count): [
            cell for cell in own if table.set_of(cell.identity.data_set) == name and cell.identity.shots in (0, count)
        ]
        for name, count in columns
    }


def _belongs(row: Row, settings: Mapping[str, object], cell: Cell) -> bool:
    """Whether a cell was run for such a row: the same system, detector and settings."""
    identity, job = cell.identity, row.job
    return (identity.method, identity.detector, dict(identity.settings)) == (job.method, job.detector, settings)


def _entry(cells: Sequence[Cell], compared: Compared, paper: float | None) -> Entry:
    if not cells:
        return Entry(paper=paper)
    values = [100 * cell.measured.dice for cell in cells]
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Entry(statistics.fmean(values), deviation, len(values), *compared, paper)


def compare_over_images(cells: Sequence[Cell], reference: Sequence[Cell]) -> Compared:
    """Wilcoxon's p over images against the reference, and the difference of the means in points.

    Seeds that only one of both has are left out; a system used as it is is compared with all of the reference's seeds,
    and all seeds with a reference that is used as it is. Cells without the scores of their images are not compared.
    """
    cells, reference = ([cell for cell in some if cell.scores] for some in (cells, reference))
    seeds = {cell.identity.seed for cell in reference}
    if all(cell.identity.shots for cell in (*cells, *reference)):
        seeds &= {cell.identity.seed for cell in cells}
        cells, reference = ([cell for cell in some if cell.identity.seed in seeds] for some in (cells, reference))
    if not cells or not reference:
        return UNKNOWN
    differences = _mean_scores(cells) - _mean_scores(reference)
    p = 1.0 if not differences.any() else float(wilcoxon(differences).pvalue)
    return p, 100 * float(differences.mean())


def compare_over_draws(cells: Sequence[Cell], reference: Sequence[Cell]) -> Compared:
    """The p of a paired t-test over the seeds that both have, which drew the same examples, and the difference."""
    ours, theirs = ({cell.identity.seed: cell.measured.dice for cell in some} for some in (cells, reference))
    pairs = [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    if len(pairs) < LEAST_DRAWS:
        return UNKNOWN
    first, second = np.array(pairs).T
    p = 1.0 if (first == second).all() else float(ttest_rel(first, second).pvalue)
    return p, 100 * float((first - second).mean())


def _corrected(lines: Sequence[Line]) -> list[Line]:
    """Lines with Holm's adjusted p: the chance of any false difference in the table stays below the level."""
    found = sorted(
        (entry.p, line.row.name, key) for line in lines for key, entry in line.entries.items() if entry.p is not None
    )
    adjusted: dict[tuple[str, Key], float] = {}
    largest = 0.0
    for rank, (p, name, key) in enumerate(found):
        largest = max(largest, min(1.0, p * (len(found) - rank)))
        adjusted[name, key] = largest
    return [
        replace(
            line,
            entries={key: replace(entry, p=adjusted.get((line.row.name, key))) for key, entry in line.entries.items()},
        )
        for line in lines
    ]


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
    measured = [cell.measured for cell in line.cells if cell.measured.device]  # earlier records say nothing of this
    if not measured:
        return ["-"] * len(COST_TITLES)
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
    cells = [cell for line in lines for cell in line.cells]
    images = {(table.set_of(cell.identity.data_set) or "", cell.identity.images) for cell in cells}
    which = "" if table.part == "test" else ", kept for selection,"
    counts = ", ".join(f"{count} images of {TASKS[name].title}" for name, count in sorted(images))
    text = f"Mean Dice in % over {counts}{which} at their own size, ± standard deviation over seeds (how many)."
    if table.reference is not None and any(entry.p is not None for line in lines for entry in line.entries.values()):
        over = " over images" if table.compared_over == "images" else ""
        text += (
            f" Against **{table.reference.name}**, by {TESTS[table.compared_over]}{over}: ▲ better, ▼ worse "
            "(p < 0.001 where no p is given), = no difference to be sure of (p ≥ 0.05) or to be seen "
            f"(less than {SHOWN} points)."
        )
    if table.where:
        text += f" In square brackets: the paper's number on SAM's ViT-B ({table.where})."
    return text


def _provenance(lines: Sequence[Line]) -> str:
    cells = [cell for line in lines for cell in line.cells]
    measured = [cell.measured for cell in cells if cell.measured.device]
    said = [f"{len(cells)} cells"]
    if len(measured) < len(cells):
        said[0] += f", {len(cells) - len(measured)} of them with neither date nor machine on record"
    if measured:
        devices = sorted({f"{one.device}, {one.threads} thread{'s'[: one.threads > 1]}" for one in measured})
        commits, dates = sorted({one.commit for one in measured}), sorted(one.date[:10] for one in measured)
        when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
        said[0] += f", {when}, on {'; '.join(devices)}"
        whose = "the processor's" if all(one.is_processor_time for one in measured) else "the clock's"
        said += [f"times are {whose}", f"commit {', '.join(commits)}"]
    bases = sorted({cell.identity.base_sha256[:12] for cell in cells if cell.identity.base})
    return "; ".join([*said, f"sha256 of the base {', '.join(bases)}"]) + "."


def _tex(text: str) -> str:
    plain = text.replace("**", "")
    for sign, written in (("&", r"\&"), ("%", r"\%"), ("_", r"\_"), ("×", r"$\times$"), ("—", "--")):
        plain = plain.replace(sign, written)
    return plain
