"""The report of a folder run: counts, distributions and a gallery as one HTML file that needs nothing but itself.

The page opens from disk and asks for nothing from elsewhere; its policy forbids that as well. Everything it is told is
text: in HTML it is escaped, and what its script shows comes from JSON and never becomes markup.

Pictures are taken one by one and wait in unnamed temporary files beside the report, since counts stand above them in
the page: memory does not grow with their number, and for a moment the disk holds the gallery twice.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import itertools
import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from html import escape
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import quote

from amsam_med.data.tables import visible
from amsam_med.files import atomic_path
from amsam_med.infer import NOT_FOUND, WITHOUT_BOX, Flag
from amsam_med.segment.journal import RESULTS, FileFlag

REPORT = "report.html"
GALLERY_LIMIT = 10_000
"""How many pictures the gallery holds; of more, the flagged and failed ones come first."""
FLAG_MEANINGS = {
    Flag.NO_BOX.value: "The detector found no object, and the mask was drawn without a box.",
    Flag.BOX_MASK_DISAGREE.value: "The box and the mask are not of the same thing.",
    Flag.UNSURE_MASK.value: "Many pixels are about as likely object as background.",
    Flag.EMPTY_MASK.value: "There is no object in the mask, though a person drew a box.",
    Flag.NOTHING_FOUND.value: "The network sees no object, and the mask is empty.",
    FileFlag.DAMAGED.value: "The file is damaged; what could be decoded of the picture was segmented.",
    FileFlag.BURNED_IN.value: "The file says that text is burned into its pixels: perhaps the patient's name.",
}

_TEMPLATE = Path(__file__).parents[1] / "assets" / "report.html"
_SLOT = re.compile(r"\{\{(\w+)\}\}")
_FILE_COLUMN = "_file"  # how the name of a column ends that names a result file

Write = Callable[[str], object]


class Card(NamedTuple):
    """One picture of the report.

    Attributes:
        cells: The picture's row of ``results.csv`` as text, with the columns of :class:`.journal.Row`; more
            may come, and all are shown. ``picture`` is its number in its file, where a file holds several. Columns
            whose name ends in ``_file`` hold paths relative to the report's folder and become links.
        thumbnail: A JPEG of some 160 pixels with the outline drawn in; None where there is none.
    """

    cells: Mapping[str, str]
    thumbnail: bytes | None


class Plot(NamedTuple):
    """A distribution that the report draws.

    Attributes:
        column: The column of its numbers.
        title: What they are.
        unit: What stands at the axis.
        top: The largest possible number; the least is 0.
        sign: What follows a number in running text.
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
        facts: What made these results, by name, in this order: bundle, weights, command, date, version.
        cards: The pictures, taken once and one by one; the gallery shows them by file name.
        limit: How many pictures the gallery holds. Counts and plots are always of all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tally = Tally()
    with ExitStack() as stack:
        urgent, rest = (stack.enter_context(Shelf(path.parent)) for _ in range(2))
        for number, card in enumerate(cards):
            tally.add(card.cells)
            shelf = urgent if is_urgent(card.cells) else rest
            if urgent.count + rest.count < limit or (shelf is urgent and urgent.count < limit):
                shelf.add(number, card)
        page = _Page(title, facts, tally, urgent, rest, limit)
        with atomic_path(path) as lent, lent.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as to:
            page.write(to.write)


def is_urgent(cells: Mapping[str, str]) -> bool:
    """Whether a picture failed or is flagged."""
    return bool(cells.get("error") or _words(cells))


class Tally:
    """Counts and distributions of pictures that are seen once.

    Attributes:
        counts: How many pictures there are, by what happened to them.
        urgent: How many failed or are flagged.
        flags: How many have each word of :class:`amsam_med.infer.Flag`.
        histograms: The numbers of each of :data:`PLOTS`, by column.
    """

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("pictures", "done", "failed", "without a box", "flagged"), 0)
        self.urgent = 0
        self.flags: Counter[str] = Counter()
        self.histograms = {plot.column: Histogram(plot.top) for plot in PLOTS}

    def add(self, cells: Mapping[str, str]) -> None:
        """Take in a picture."""
        words = _words(cells)
        self.counts["pictures"] += 1
        self.counts["failed" if cells.get("error") else "done"] += 1
        self.counts["without a box"] += cells.get("box_source") == NOT_FOUND
        self.counts["flagged"] += bool(words)
        self.urgent += is_urgent(cells)
        self.flags.update(words)
        for column, histogram in self.histograms.items():
            value = _number(_told(cells).get(column, ""))
            if value is not None:
                histogram.add(value, bool(words))


class Histogram:
    """Numbers in narrow bins, from which bins to draw and the median are made without keeping the numbers.

    Args:
        top: The largest possible number; numbers outside ``[0, top]`` count as its ends.

    Attributes:
        count: How many numbers there are.
    """

    NARROW = 2000
    DRAWN = 20
    _SHARES = (0.05, 0.1, 0.2, 0.5, 1.0)

    def __init__(self, top: float) -> None:
        self.count = 0
        self._top = top
        self._all, self._doubted = [0] * self.NARROW, [0] * self.NARROW

    def add(self, value: float, is_doubted: bool) -> None:
        """Take in a number, and whether its picture is flagged."""
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
        """The end of the axis: the least of a few round shares of ``top`` that holds every number."""
        last = max((place for place, count in enumerate(self._all) if count), default=0)
        return self._top * next(share for share in self._SHARES if last < share * self.NARROW)

    def drawn_bins(self) -> list[tuple[int, int]]:
        """How many numbers, and of these how many of flagged pictures, each of the :data:`DRAWN` bins holds."""
        width = round(self.drawn_top() / self._top * self.NARROW / self.DRAWN)
        starts = range(0, width * self.DRAWN, width)
        return [(sum(self._all[at : at + width]), sum(self._doubted[at : at + width])) for at in starts]


class Shelf:
    """Cards in a temporary file without a name, each as two lines: its row as JSON, its thumbnail as base64.

    Args:
        folder: Where the file is, since it may be large.

    Attributes:
        count: How many cards there are.
    """

    def __init__(self, folder: Path) -> None:
        self.count = 0
        self._numbers: list[int] = []
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed by __exit__

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, number: int, card: Card) -> None:
        """Put a card down, under its number in the run."""
        self.count += 1
        self._numbers.append(number)
        self._file.write(_row_json(card.cells).encode("ascii") + b"\n")
        self._file.write(base64.b64encode(card.thumbnail or b"") + b"\n")

    def read(self, most: int) -> Iterator[tuple[int, str, str]]:
        """Number, row and thumbnail of the first ``most`` cards; one reader at a time."""
        self._file.seek(0)
        for number in self._numbers[:most]:
            yield number, self._file.readline().decode("ascii").rstrip(), self._file.readline().decode("ascii").rstrip()


class _Page:
    """The slots of the template and what goes into them."""

    def __init__(
        self, title: str, facts: Mapping[str, str], tally: Tally, urgent: Shelf, rest: Shelf, limit: int
    ) -> None:
        self._title, self._facts, self._tally, self._limit = title, facts, tally, limit
        self._urgent, self._rest = urgent, rest

    def write(self, write: Write) -> None:
        """Write the template, its slots filled."""
        template = _TEMPLATE.read_text(encoding="utf-8")
        fill: dict[str, Callable[[], Iterable[str]]] = {
            "title": lambda: [escape(self._title)],
            "style_hash": lambda: [_policy_hash(template, "style")],
            "script_hash": lambda: [_policy_hash(template, "script")],
            "results": lambda: [escape(RESULTS)],
            "counts": self._count_items,
            "facts": self._fact_items,
            "flags": self._flag_section,
            "plots": self._plot_section,
            "scope": self._scope,
            "pictures": self._picture_rows,
            "thumbnails": self._thumbnails,
        }
        # Text and names of slots take turns in what split returns.
        for place, part in enumerate(_SLOT.split(template)):
            for piece in fill[part]() if place % 2 else [part]:
                write(piece)

    def _kept(self) -> Iterator[tuple[int, str, str]]:
        """The gallery's cards in the order of the run."""
        return heapq.merge(self._urgent.read(self._limit), self._rest.read(self._limit - self._urgent.count))

    def _picture_rows(self) -> Iterator[str]:
        yield "["
        for place, (_, row, _) in enumerate(self._kept()):
            yield (",\n" if place else "\n") + row
        yield "\n]"

    def _thumbnails(self) -> Iterator[str]:
        for place, (_, _, thumbnail) in enumerate(self._kept()):
            if thumbnail:
                yield f'<script type="text/plain" id="t{place}">{thumbnail}</script>\n'

    def _count_items(self) -> Iterator[str]:
        for name, count in self._tally.counts.items():
            yield f"<div><dt>{escape(name)}</dt><dd>{count:,}</dd></div>\n"

    def _fact_items(self) -> Iterator[str]:
        for name, value in self._facts.items():
            tag = ("<code>", "</code>") if name.casefold() == "command" else ("", "")
            yield f"<dt>{escape(name)}</dt><dd>{tag[0]}{escape(visible(value))}{tag[1]}</dd>\n"

    def _flag_section(self) -> Iterator[str]:
        if not self._tally.flags:
            return
        yield '<section aria-labelledby="flags-title">\n<h2 id="flags-title">Flags: what deserves a look</h2>\n'
        yield '<table>\n<thead><tr><th scope="col">Flag</th><th scope="col" class="number">Pictures</th>'
        yield '<th scope="col">What it means</th></tr></thead>\n<tbody>\n'
        for word, count in self._tally.flags.most_common():
            meaning = escape(FLAG_MEANINGS.get(word, ""))
            name = escape(visible(word))
            yield f'<tr><th scope="row">{name}</th><td class="number">{count:,}</td><td>{meaning}</td></tr>\n'
        yield "</tbody></table>\n</section>"

    def _plot_section(self) -> Iterator[str]:
        plots = [(plot, self._tally.histograms[plot.column]) for plot in PLOTS]
        if not any(histogram.count for _, histogram in plots):
            return
        yield '<section aria-labelledby="plots-title">\n<h2 id="plots-title">Distributions</h2>\n'
        yield _LEGEND
        yield '<div class="plots">\n'
        yield from (_figure(plot, histogram) for plot, histogram in plots if histogram.count)
        yield "</div>\n</section>"

    def _scope(self) -> Iterator[str]:
        yield "Choose a picture to see it whole, with its numbers and files. "
        total, urgent = self._tally.counts["pictures"], self._tally.urgent
        if total > self._limit:
            is_enough = urgent <= self._limit
            chosen = (
                f"all {urgent:,} flagged and failed pictures first"
                if is_enough
                else f"{self._limit:,} of {urgent:,} flagged and failed ones"
            )
            yield f"The gallery holds {self._limit:,} of {total:,} pictures: {chosen}. "
            yield "Counts and plots are of all pictures. "
        yield f'<a href="{quote(RESULTS)}">{escape(RESULTS)}</a> has a row of every picture.'


def _words(cells: Mapping[str, str]) -> list[str]:
    """The flags of a picture, each once."""
    return list(dict.fromkeys(word.strip() for word in cells.get("flags", "").split(";") if word.strip()))


def _number(text: str) -> float | None:
    """A cell's number; None for what is empty, not finite or no number at all."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _told(cells: Mapping[str, str]) -> dict[str, str]:
    """The cells that say something: the confidence 0 of a box that is not there does not."""
    has_no_box = cells.get("box_source") in WITHOUT_BOX
    return {name: cell for name, cell in cells.items() if cell and not (has_no_box and name == "box_confidence")}


def _row_json(cells: Mapping[str, str]) -> str:
    """A card as the page's script reads it: ASCII on one line, and nothing in it ends or opens an element."""
    told = _told(cells)
    links = {name.removesuffix(_FILE_COLUMN): _link(cell) for name, cell in told.items() if name.endswith(_FILE_COLUMN)}
    shown = {name: visible(cell) for name, cell in told.items() if not name.endswith(_FILE_COLUMN)}
    return json.dumps({"cells": shown, "links": links}, separators=(",", ":")).replace("<", "\\u003c")


def _link(path: str) -> str:
    """The address of a file beside the page; no path can become a scheme or another host."""
    return "./" + quote(path, errors="surrogateescape")


def _policy_hash(template: str, tag: str) -> str:
    """What the page's policy calls the one ``tag`` that may take effect: its sha256, in base64.

    Source: Content Security Policy Level 3, section 2.3.1 (hash-source).
    """
    match = re.search(f"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
    assert match is not None, f"the template has no <{tag}>"
    return "sha256-" + base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode("ascii")


_WIDTH, _HEIGHT = 320.0, 190.0  # of a plot, in units of its own
_LEFT, _RIGHT, _TOP, _BASE = 58.0, 300.0, 24.0, 150.0  # of the area between its axes
_DIVISIONS = 5  # of the horizontal axis
_MOST_STEPS = 5  # of the vertical axis

_LEGEND = """<p class="legend quiet">
<span><svg class="plot" viewBox="0 0 20 16" aria-hidden="true">
<rect class="bar" x="1" y="1" width="18" height="14"/></svg>all pictures</span>
<span><svg class="plot" viewBox="0 0 20 16" aria-hidden="true">
<rect class="bar doubt" x="1" y="1" width="18" height="14"/></svg>of these, flagged</span>
<span><svg class="plot" viewBox="0 0 20 16" aria-hidden="true">
<line class="median" x1="10" y1="0" x2="10" y2="16"/></svg>median</span>
</p>
"""


def _figure(plot: Plot, histogram: Histogram) -> str:
    bins, median = histogram.drawn_bins(), f"{histogram.median():.3g}"
    said = f"{_pictures(histogram.count)}, median {median}{plot.sign}, {sum(doubted for _, doubted in bins):,} flagged"
    label = escape(f"{plot.title}, {plot.unit}: {said}")
    return (
        f'<figure>\n<figcaption>{escape(plot.title)}<span class="quiet">{said}</span></figcaption>\n'
        f'<svg class="plot" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{label}">\n'
        f"{_axes(plot, histogram.drawn_top(), max(count for count, _ in bins))}\n"
        f"{_bars(bins)}\n{_median_line(histogram)}\n</svg>\n{_bin_table(plot, histogram)}\n</figure>\n"
    )


def _axes(plot: Plot, top: float, most: int) -> str:
    step = _round_step(most)
    parts = []
    for count in range(0, _steps_top(most) + 1, step):
        y = _BASE - (_BASE - _TOP) * count / _steps_top(most)
        parts.append(f'<line class="grid" x1="{_LEFT:g}" y1="{y:.1f}" x2="{_RIGHT:g}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6:g}" y="{y + 4:.1f}" text-anchor="end">{count:,}</text>')
    for division in range(_DIVISIONS + 1):
        x = _LEFT + (_RIGHT - _LEFT) * division / _DIVISIONS
        value = f"{top * division / _DIVISIONS:.4g}"
        parts.append(f'<text x="{x:.1f}" y="{_BASE + 15:g}" text-anchor="middle">{value}</text>')
    middle = (_LEFT + _RIGHT) / 2
    parts.append(f'<text x="{middle:g}" y="{_BASE + 33:g}" text-anchor="middle">{escape(plot.unit)}</text>')
    parts.append(f'<text x="0" y="{_TOP - 12:g}">pictures</text>')
    parts.append(f'<line class="axis" x1="{_LEFT:g}" y1="{_BASE:g}" x2="{_RIGHT:g}" y2="{_BASE:g}"/>')
    return "\n".join(parts)


def _bars(bins: Sequence[tuple[int, int]]) -> str:
    scale = (_BASE - _TOP) / _steps_top(max(count for count, _ in bins))
    width = (_RIGHT - _LEFT) / len(bins)
    return "\n".join(
        f'<rect class="{name}" x="{_LEFT + place * width + 0.5:.1f}" y="{_BASE - count * scale:.1f}" '
        f'width="{width - 1:.1f}" height="{count * scale:.1f}"/>'
        for place, counts in enumerate(bins)
        for name, count in zip(("bar", "bar doubt"), counts, strict=True)
        if count
    )


def _median_line(histogram: Histogram) -> str:
    x = _LEFT + (_RIGHT - _LEFT) * histogram.median() / histogram.drawn_top()
    return f'<line class="median" x1="{x:.1f}" y1="{_TOP - 6:g}" x2="{x:.1f}" y2="{_BASE:g}"/>'


def _bin_table(plot: Plot, histogram: Histogram) -> str:
    """The plot in numbers, for readers who do not see it."""
    width = histogram.drawn_top() / histogram.DRAWN
    rows = "".join(
        f'<tr><th scope="row">{place * width:.4g} to {(place + 1) * width:.4g}</th>'
        f'<td class="number">{count:,}</td><td class="number">{doubted:,}</td></tr>\n'
        for place, (count, doubted) in enumerate(histogram.drawn_bins())
        if count
    )
    heads = "".join(f'<th scope="col" class="number">{head}</th>' for head in ("Pictures", "Flagged"))
    return (
        f'<details><summary>Numbers</summary>\n<table><thead><tr><th scope="col">{escape(plot.unit)}</th>{heads}'
        f"</tr></thead>\n<tbody>\n{rows}</tbody></table></details>"
    )


def _pictures(count: int) -> str:
    return f"{count:,} picture" + ("s" if count != 1 else "")


def _round_step(most: int) -> int:
    """The least of 1, 2, 5, 10, ... that counts to ``most`` in :data:`_MOST_STEPS` steps."""
    magnitude = 1
    while 5 * magnitude * _MOST_STEPS < most:
        magnitude *= 10
    return next(digit * magnitude for digit in (1, 2, 5) if digit * magnitude * _MOST_STEPS >= most)


def _steps_top(most: int) -> int:
    """Where the vertical axis ends: the first step at or above ``most``."""
    step = _round_step(most)
    return max(step, -(-most // step) * step)
