"""The demo's result as one web page: text, commands, tables and figures, readable without a server or JavaScript."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from amsam_med.errors import DataError
from amsam_med.pages import style, template

PAGE_NAME = "index.html"
NUMBER = r"[-+\u2212]?[\d.,]+( ?\u00b1 ?[\d.,]+)?( ?(%|s|ms|px|min))?|[-\u2013\u2014]"
"""A cell that counts as a number: minus may be a hyphen or the real sign; a dash stands for a missing number."""


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        path: The picture file: inside the page's folder, absolute or relative to that folder.
        caption: What the figure shows, printed below it.
        alt: What a reader who cannot see the picture should know; not empty.
    """

    path: Path | str
    caption: str
    alt: str


@dataclass(frozen=True)
class Table:
    """A table; cells that are numbers are set right-aligned.

    Attributes:
        headers: One a column.
        rows: Rows of as many cells as there are headers; the first cell names the row.
        caption: Printed above the table; empty for none.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order.

    Attributes:
        title: The heading.
        text: Plain text; blank lines separate paragraphs.
        pictures: Figures, set side by side where there is room.
        table: A table, if any.
        command: The shell command that produced the results, if any; may have several lines.
    """

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    table: Table | None = None
    command: str | None = None


def write_demo_page(
    folder: Path | str, sections: Sequence[Section], *, title: str = "AM-SAM Med", lead: str = "", footer: str = ""
) -> Path:
    """Write ``index.html``, which needs nothing but the pictures beside it.

    Args:
        folder: Where to write; created if missing. It can be moved or zipped as a whole, since links are relative.
        sections: The page's content, in order. All text is escaped.
        title: The page's heading.
        lead: One paragraph below the heading; empty for none.
        footer: One paragraph at the end; empty for none.

    Returns:
        The path of the page.

    Raises:
        DataError: A picture is missing, lies outside ``folder`` or has no alternative text, or a table has no headers
            or a row of another length.
    """
    folder = Path(folder)
    page = template("demo").render(
        style=style("demo"),
        title=title,
        lead=lead,
        sections=[_shown_section(folder, section) for section in sections],
        footer=footer,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PAGE_NAME
    path.write_text(page, encoding="utf-8", newline="\n")
    return path


class _Figure(NamedTuple):
    link: str
    alt: str
    caption: str


class _ShownTable(NamedTuple):
    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_number: Sequence[bool]  # by column


class _ShownSection(NamedTuple):
    title: str
    paragraphs: Sequence[str]
    figures: Sequence[_Figure]
    table: _ShownTable | None
    command: str


def _shown_section(folder: Path, section: Section) -> _ShownSection:
    """A section as the template shows it."""
    figures = [_Figure(_relative_link(folder, picture), picture.alt, picture.caption) for picture in section.pictures]
    table = None if section.table is None else _shown_table(section.table)
    return _ShownSection(section.title, _paragraphs(section.text), figures, table, (section.command or "").strip())


def _paragraphs(text: str) -> list[str]:
    """Plain ``text`` as paragraphs, split at blank lines."""
    return [" ".join(block.split()) for block in re.split(r"\n\s*\n", text.strip()) if block]


def _relative_link(folder: Path, picture: Picture) -> str:
    """The picture's address relative to the page, quoted for an attribute."""
    path = (folder / picture.path).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise DataError(f"picture {picture.path} lies outside {folder}; copy it there, so that the folder can be moved")
    if not path.is_file():
        raise DataError(f"picture {path} does not exist; write it before the page")
    if not picture.alt.strip():
        raise DataError(f"picture {picture.path} has no alternative text; say in `alt` what it shows")
    return quote(path.relative_to(folder.resolve()).as_posix())


def _shown_table(table: Table) -> _ShownTable:
    if not table.headers:
        raise DataError(f"table {table.caption!r} has no headers; expected one for each column")
    for row in table.rows:
        if len(row) != len(table.headers):
            raise DataError(
                f"table {table.caption!r} has a row of {len(row)} cells, {list(row)}; "
                f"expected {len(table.headers)}, one for each of {list(table.headers)}"
            )
    is_number = [all(_is_number(row[column]) for row in table.rows) for column in range(len(table.headers))]
    return _ShownTable(table.caption, table.headers, table.rows, is_number)


def _is_number(cell: str) -> bool:
    """Whether a cell reads as a number, with or without sign, deviation (plus-minus) and unit."""
    return re.fullmatch(NUMBER, cell.strip()) is not None
