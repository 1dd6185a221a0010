"""The report of a folder run: counts, distributions and a gallery in one self-contained HTML file.

The page opens from disk and loads nothing from elsewhere; its content security policy forbids that as well. All values
are text: they are escaped in HTML, and what the script shows comes from JSON and never becomes markup.

Pictures are taken one by one and kept in unnamed temporary files beside the report, because the counts come before them
in the page. So memory does not grow with their number, and for a moment the disk holds the gallery twice.
"""

from __future__ import annotations

import base64
import heapq
import itertools
import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from amsam_med.data.tables import visible
from amsam_med.files import atomic_path
from amsam_med.infer import NOT_FOUND, WITHOUT_BOX, Flag
from amsam_med.pages import script, style, template
from amsam_med.segment.journal import RESULTS, FileFlag

REPORT = "report.html"
GALLERY_LIMIT = 10_000
"""The most pictures in the gallery; if there are more, flagged and failed ones have precedence."""
FLAG_MEANINGS = {
    Flag.NO_BOX.value: "The detector found no object, and the mask was drawn without a box.",
    Flag.BOX_MASK_DISAGREE.value: "The box and the mask are not of the same thing.",
    Flag.UNSURE_MASK.value: "Many pixels are about as likely object as background.",
    Flag.EMPTY_MASK.value: "There is no object in the mask, though a person drew a box.",
    Flag.NOTHING_FOUND.value: "The network sees no object, and the mask is empty.",
    FileFlag.DAMAGED.value: "The file is damaged; what could be decoded of the picture was segmented.",
    FileFlag.BURNED_IN.value: "The file says that text is burned into its pixels: perhaps the patient's name.",
}

_FILE_COLUMN = "_file"  # the names of columns with result files end so


class Card(NamedTuple):
    """One picture of the report.

    Attributes:
        cells: The picture's row of ``results.csv`` as text, with the columns of :class:`.journal.Row`; further
            columns are shown as well. ``picture`` is its number, if its file holds several. Columns whose name ends in
            ``_file`` hold paths relative to the report's folder and become links.
        thumbnail: A JPEG of about 160 pixels with the outline drawn in; None if there is no result.
    """

    cells: Mapping[str, str]
    thumbnail: bytes | None


class Plot(NamedTuple):
    """A distribution that the report draws.

    Attributes:
        column: The column of its numbers.
        title: Title of the plot.
        unit: Label of the axis.
        top: The largest possible number; the smallest is 0.
        sign: Unit that follows a number in running text.
    """

    column: str
    title: str
    unit: str
    top: float
    sign: str = ""


PLOTS = (
    Plot("area_percent", "Area of the object", "% of the image", 100, " %"),
    Plot("certainty", "Certainty of the mask", "0 to 1", 1),
    Plot("predicted_iou", "IoU predicted by the network", "0 to 1", 1),
    Plot("box_confidence", "Confidence of the box", "0 to 1", 1),
)


def write_report(
    path: Path, title: str, facts: Mapping[str, str], cards: Iterable[Card], *, limit: int = GALLERY_LIMIT
) -> None:
    """Write the report of a run, whole or not at all.

    Args:
        path: The file, in the output folder that the cards' paths are relative to.
        title: The page's heading.
        facts: What made these results, by name: bundle, weights, command, date, version; shown in this order.
        cards: The pictures, iterated over once; the gallery shows them in this order.
        limit: The most pictures in the gallery. Counts and plots are always of all pictures.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tally = Tally()
    with ExitStack() as stack:
        urgent, rest = (stack.enter_context(CardFile(path.parent)) for _ in range(2))
        for number, card in enumerate(cards):
            tally.add(card.cells)
            card_file = urgent if is_urgent(card.cells) else rest
            if urgent.count + rest.count < limit or (card_file is urgent and urgent.count < limit):
                card_file.add(number, card)
        pieces = _pieces(title, facts, tally, urgent, rest, limit)
        with (
            atomic_path(path) as temporary,
            temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as to,
        ):
            to.writelines(pieces)


def is_urgent(cells: Mapping[str, str]) -> bool:
    """Whether a picture failed or is flagged."""
    return bool(cells.get("error") or _words(cells))


class Tally:
    """Counts and distributions of pictures, in one pass over them.

    Attributes:
        counts: Numbers of pictures by outcome.
        urgent: Number of pictures that failed or are flagged.
        flags: Number of pictures by flag of :class:`amsam_med.infer.Flag`.
        histograms: Histograms of :data:`PLOTS`, by column.
    """

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("pictures", "done", "failed", "without a box", "flagged"), 0)
        self.urgent = 0
        self.flags: Counter[str] = Counter()
        self.histograms = {plot.column: Histogram(plot.top) for plot in PLOTS}

    def add(self, cells: Mapping[str, str]) -> None:
        """Count a picture."""
        words = _words(cells)
        self.counts["pictures"] += 1
        self.counts["failed" if cells.get("error") else "done"] += 1
        self.counts["without a box"] += cells.get("box_source") == NOT_FOUND
        self.counts["flagged"] += bool(words)
        self.urgent += is_urgent(cells)
        self.flags.update(words)
        for column, histogram in self.histograms.items():
            value = _number(_meaningful_cells(cells).get(column, ""))
            if value is not None:
                histogram.add(value, bool(words))


class Histogram:
    """A histogram of narrow bins, from which wider bins and the median are computed without keeping the numbers.

    Args:
        top: The largest possible number; numbers outside ``[0, top]`` count as its ends.

    Attributes:
        count: The number of values added.
    """

    NARROW = 2000
    DRAWN = 20
    _SHARES = (0.05, 0.1, 0.2, 0.5, 1.0)

    def __init__(self, top: float) -> None:
        self.count = 0
        self._top = top
        self._all, self._doubted = [0] * self.NARROW, [0] * self.NARROW

    def add(self, value: float, is_doubted: bool) -> None:
        """Add a value, and whether its picture is flagged."""
        share = min(max(value / self._top, 0.0), 1.0)
        place = min(int(share * self.NARROW), self.NARROW - 1)
        self.count += 1
        self._all[place] += 1
        self._doubted[place] += is_doubted

    def median(self) -> float:
        """The median, to half a narrow bin (0.025% of ``top``)."""
        sums = itertools.accumulate(self._all)
        place = next(place for place, below in enumerate(sums) if 2 * below >= self.count)
        return (place + 0.5) * self._top / self.NARROW

    def drawn_top(self) -> float:
        """The end of the axis: the smallest of a few round shares of ``top`` that covers every value."""
        last = max((place for place, count in enumerate(self._all) if count), default=0)
        return self._top * next(share for share in self._SHARES if last < share * self.NARROW)

    def drawn_bins(self) -> list[tuple[int, int]]:
        """Number of values, and number of flagged pictures among them, for each of the :data:`DRAWN` bins."""
        width = round(self.drawn_top() / self._top * self.NARROW / self.DRAWN)
        starts = range(0, width * self.DRAWN, width)
        return [(sum(self._all[at : at + width]), sum(self._doubted[at : at + width])) for at in starts]


class CardFile:
    """Cards in an unnamed temporary file, two lines per card: its row as JSON and its thumbnail as base64.

    Args:
        folder: Where to put the file: the output folder, as the system's temporary folder may be too small.

    Attributes:
        count: The number of cards.
    """

    def __init__(self, folder: Path) -> None:
        self.count = 0
        self._numbers: list[int] = []
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed by __exit__

    def __enter__(self) -> CardFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, number: int, card: Card) -> None:
        """Append a card with its number in the run."""
        self.count += 1
        self._numbers.append(number)
        self._file.write(_row_json(card.cells).encode("ascii") + b"\n")
        self._file.write(base64.b64encode(card.thumbnail or b"") + b"\n")

    def read(self, most: int) -> Iterator[tuple[int, str, str]]:
        """Number, row and thumbnail of the first ``most`` cards; one reader at a time."""
        self._file.seek(0)
        for number in self._numbers[:most]:
            yield number, self._file.readline().decode("ascii").rstrip(), self._file.readline().decode("ascii").rstrip()


@dataclass(frozen=True)
class _FlagRow:
    word: str
    count: int
    meaning: str


def _pieces(
    title: str, facts: Mapping[str, str], tally: Tally, urgent: CardFile, rest: CardFile, limit: int
) -> Iterator[str]:
    """The page piece by piece, so that the gallery need not fit into memory."""

    def kept() -> Iterator[tuple[int, str, str]]:
        """The gallery's cards in the order of the run."""
        return heapq.merge(urgent.read(limit), rest.read(limit - urgent.count))

    return template("report").generate(
        title=title,
        style=style("report"),
        script=script("report"),
        results=RESULTS,
        counts=tally.counts,
        facts={name: visible(value) for name, value in facts.items()},
        flags=[
            _FlagRow(visible(word), count, FLAG_MEANINGS.get(word, "")) for word, count in tally.flags.most_common()
        ],
        plots=[_figure(plot, tally.histograms[plot.column]) for plot in PLOTS if tally.histograms[plot.column].count],
        scope=_scope(tally, limit),
        # JSON in which no element can end or begin, and base64: neither is HTML.
        pictures=(Markup(row) for _, row, _ in kept()),  # noqa: S704
        thumbnails=((f"t{place}", thumbnail) for place, (_, _, thumbnail) in enumerate(kept()) if thumbnail),
    )


def _scope(tally: Tally, limit: int) -> str:
    """A sentence on which pictures the gallery holds, if it does not hold all."""
    total, urgent = tally.counts["pictures"], tally.urgent
    if total <= limit:
        return ""
    chosen = (
        f"all {urgent:,} flagged and failed pictures first"
        if urgent <= limit
        else f"{limit:,} of {urgent:,} flagged and failed ones"
    )
    held = f"The gallery holds {limit:,} of {total:,} pictures: {chosen}. "
    return held + "Counts and plots are of all pictures. "


def _words(cells: Mapping[str, str]) -> list[str]:
    """The flags of a picture, each once."""
    return list(dict.fromkeys(word.strip() for word in cells.get("flags", "").split(";") if word.strip()))


def _number(text: str) -> float | None:
    """A cell's number; None if it is empty, not finite or not a number."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _meaningful_cells(cells: Mapping[str, str]) -> dict[str, str]:
    """The cells that carry information: not the empty ones, nor the confidence of a box that was not used."""
    has_no_box = cells.get("box_source") in WITHOUT_BOX
    return {name: cell for name, cell in cells.items() if cell and not (has_no_box and name == "box_confidence")}


def _row_json(cells: Mapping[str, str]) -> str:
    """A card as JSON for the page's script: ASCII on one line, without "<", so that it cannot end the element."""
    told = _meaningful_cells(cells)
    links = {name.removesuffix(_FILE_COLUMN): _link(cell) for name, cell in told.items() if name.endswith(_FILE_COLUMN)}
    shown = {name: visible(cell) for name, cell in told.items() if not name.endswith(_FILE_COLUMN)}
    return json.dumps({"cells": shown, "links": links}, separators=(",", ":")).replace("<", "\\u003c")


def _link(path: str) -> str:
    """The relative address of a file beside the page; "./" keeps a path from being read as a scheme or a host."""
    return "./" + quote(path, errors="surrogateescape")


_WIDTH, _HEIGHT = 320.0, 190.0  # of a plot, in SVG units
_LEFT, _RIGHT, _TOP, _BASE = 58.0, 300.0, 24.0, 150.0  # of the area between its axes
_DIVISIONS = 5  # of the horizontal axis
_MOST_STEPS = 5  # of the vertical axis


@dataclass(frozen=True)
class _Line:
    kind: str
    x1: str
    y1: str
    x2: str
    y2: str


@dataclass(frozen=True)
class _Text:
    words: str
    x: str
    y: str
    anchor: str = "start"


@dataclass(frozen=True)
class _Bar:
    kind: str
    x: str
    y: str
    width: str
    height: str


@dataclass(frozen=True)
class _BinRow:
    span: str
    count: int
    flagged: int


@dataclass(frozen=True)
class _Figure:
    """A plot as the template draws it, in SVG units; ``rows`` are a table for screen readers."""

    title: str
    unit: str
    said: str
    width: str
    height: str
    lines: Sequence[_Line]
    texts: Sequence[_Text]
    bars: Sequence[_Bar]
    median: _Line
    rows: Sequence[_BinRow]


def _figure(plot: Plot, histogram: Histogram) -> _Figure:
    bins, median = histogram.drawn_bins(), f"{histogram.median():.3g}"
    said = f"{_pictures(histogram.count)}, median {median}{plot.sign}, {sum(doubted for _, doubted in bins):,} flagged"
    lines, texts = _axes(plot, histogram.drawn_top(), max(count for count, _ in bins))
    return _Figure(
        plot.title,
        plot.unit,
        said,
        f"{_WIDTH:g}",
        f"{_HEIGHT:g}",
        lines,
        texts,
        _bars(bins),
        _median_line(histogram),
        _bin_rows(histogram),
    )


def _axes(plot: Plot, top: float, most: int) -> tuple[list[_Line], list[_Text]]:
    lines, texts = [], []
    for count in range(0, _steps_top(most) + 1, _round_step(most)):
        y = _BASE - (_BASE - _TOP) * count / _steps_top(most)
        lines.append(_Line("grid", f"{_LEFT:g}", f"{y:.1f}", f"{_RIGHT:g}", f"{y:.1f}"))
        texts.append(_Text(f"{count:,}", f"{_LEFT - 6:g}", f"{y + 4:.1f}", "end"))
    for division in range(_DIVISIONS + 1):
        x = _LEFT + (_RIGHT - _LEFT) * division / _DIVISIONS
        texts.append(_Text(f"{top * division / _DIVISIONS:.4g}", f"{x:.1f}", f"{_BASE + 15:g}", "middle"))
    texts.append(_Text(plot.unit, f"{(_LEFT + _RIGHT) / 2:g}", f"{_BASE + 33:g}", "middle"))
    texts.append(_Text("pictures", "0", f"{_TOP - 12:g}"))
    lines.append(_Line("axis", f"{_LEFT:g}", f"{_BASE:g}", f"{_RIGHT:g}", f"{_BASE:g}"))
    return lines, texts


def _bars(bins: Sequence[tuple[int, int]]) -> list[_Bar]:
    scale = (_BASE - _TOP) / _steps_top(max(count for count, _ in bins))
    width = (_RIGHT - _LEFT) / len(bins)
    return [
        _Bar(
            kind,
            f"{_LEFT + place * width + 0.5:.1f}",
            f"{_BASE - count * scale:.1f}",
            f"{width - 1:.1f}",
            f"{count * scale:.1f}",
        )
        for place, counts in enumerate(bins)
        for kind, count in zip(("bar", "bar doubt"), counts, strict=True)
        if count
    ]


def _median_line(histogram: Histogram) -> _Line:
    x = _LEFT + (_RIGHT - _LEFT) * histogram.median() / histogram.drawn_top()
    return _Line("median", f"{x:.1f}", f"{_TOP - 6:g}", f"{x:.1f}", f"{_BASE:g}")


def _bin_rows(histogram: Histogram) -> list[_BinRow]:
    width = histogram.drawn_top() / histogram.DRAWN
    return [
        _BinRow(f"{place * width:.4g} to {(place + 1) * width:.4g}", count, doubted)
        for place, (count, doubted) in enumerate(histogram.drawn_bins())
        if count
    ]


def _pictures(count: int) -> str:
    return f"{count:,} picture" + ("s" if count != 1 else "")


def _round_step(most: int) -> int:
    """The smallest of 1, 2, 5, 10, ... that reaches ``most`` in :data:`_MOST_STEPS` steps."""
    magnitude = 1
    while 5 * magnitude * _MOST_STEPS < most:
        magnitude *= 10
    return next(digit * magnitude for digit in (1, 2, 5) if digit * magnitude * _MOST_STEPS >= most)


def _steps_top(most: int) -> int:
    """Where the vertical axis ends: the first step at or above ``most``."""
    step = _round_step(most)
    return max(step, -(-most // step) * step)
