"""The demo's result as one web page: text, commands, tables and figures, readable without a server or JavaScript."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote

from amsam_med.errors import DataError

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
        folder: Where to write; made if missing. It can be moved or zipped as a whole, since links are relative.
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
    body = "\n".join(_section(folder, number, section) for number, section in enumerate(sections, start=1))
    page = PAGE.substitute(
        title=escape(title),
        style=STYLE,
        lead=f'<p class="lead">{escape(lead)}</p>' if lead else "",
        contents=_contents(sections),
        body=body,
        footer=f"<footer><p>{escape(footer)}</p></footer>" if footer else "",
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PAGE_NAME
    path.write_text(page, encoding="utf-8", newline="\n")
    return path


def _contents(sections: Sequence[Section]) -> str:
    """Links to the sections; none where there is little to choose from."""
    if len(sections) < 3:
        return ""
    links = "".join(
        f'<li><a href="#section-{number}">{escape(section.title)}</a></li>'
        for number, section in enumerate(sections, start=1)
    )
    return f'<nav aria-label="Contents"><ol>{links}</ol></nav>'


def _section(folder: Path, number: int, section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>", *_paragraphs(section.text)]
    if section.pictures:
        figures = "\n".join(_figure(folder, picture) for picture in section.pictures)
        parts.append(f'<div class="figures">\n{figures}\n</div>')
    if section.table is not None:
        parts.append(_table(section.table))
    if section.command:
        parts.append(f'<pre class="command"><code>{escape(section.command.strip())}</code></pre>')
    content = "\n".join(parts)
    return f'<section id="section-{number}">\n{content}\n</section>'


def _paragraphs(text: str) -> list[str]:
    """Plain ``text`` as paragraphs, split at blank lines."""
    blocks = re.split(r"\n\s*\n", text.strip())
    return [f"<p>{escape(' '.join(block.split()))}</p>" for block in blocks if block]


def _figure(folder: Path, picture: Picture) -> str:
    link, alt = _relative_link(folder, picture), escape(picture.alt)
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>"
    return f'<figure><a href="{link}"><img src="{link}" alt="{alt}"></a>{caption}</figure>'


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


def _table(table: Table) -> str:
    if not table.headers:
        raise DataError(f"table {table.caption!r} has no headers; expected one for each column")
    for row in table.rows:
        if len(row) != len(table.headers):
            raise DataError(
                f"table {table.caption!r} has a row of {len(row)} cells, {list(row)}; "
                f"expected {len(table.headers)}, one for each of {list(table.headers)}"
            )
    is_number = [all(_is_number(row[column]) for row in table.rows) for column in range(len(table.headers))]
    heads = "".join(
        f'<th scope="col"{_number_class(numeric)}>{escape(header)}</th>'
        for header, numeric in zip(table.headers, is_number, strict=True)
    )
    rows = "\n".join(_row(row, is_number) for row in table.rows)
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    # Wide tables scroll in a box of their own, which the keyboard can reach, rather than widening the page.
    label = escape(table.caption or "Table")
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{label}"><table>{caption}\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def _row(cells: Sequence[str], is_number: Sequence[bool]) -> str:
    name, *values = cells
    data = "".join(
        f"<td{_number_class(numeric)}>{escape(cell)}</td>" for cell, numeric in zip(values, is_number[1:], strict=True)
    )
    return f'<tr><th scope="row"{_number_class(is_number[0])}>{escape(name)}</th>{data}</tr>'


def _is_number(cell: str) -> bool:
    """Whether a cell reads as a number, with or without sign, deviation (plus-minus) and unit."""
    return re.fullmatch(NUMBER, cell.strip()) is not None


def _number_class(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<header>
<h1>$title</h1>
$lead
$contents
</header>
<main>
$body
</main>
$footer
</body>
</html>
""")

STYLE = """
:root { --paper: #fdfcfa; --ink: #24211f; --quiet: #6b635d; --rule: #e4ddd6; --wash: #f5f1ec; --accent: #9a4a32; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #191716; --ink: #e9e4df; --quiet: #a39a92; --rule: #37322e; --wash: #23201e; --accent: #e39b80; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 3.5rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 1.0625rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1, h2 { font-family: Charter, "Iowan Old Style", Georgia, "Times New Roman", serif; font-weight: 600;
  line-height: 1.2; text-wrap: balance; }
h1 { font-size: 2.4rem; margin: 0 0 0.75rem; letter-spacing: -0.01em; }
h2 { font-size: 1.5rem; margin: 0 0 0.75rem; }
p { max-width: 42rem; margin: 0 0 1rem; }
a { color: var(--accent); text-underline-offset: 0.15em; }
.lead { font-size: 1.2rem; color: var(--quiet); }
nav ol { display: flex; flex-wrap: wrap; gap: 0.25rem 1.5rem; list-style: none; margin: 1.25rem 0 0; padding: 0; }
section { margin-top: 2.75rem; padding-top: 2.25rem; border-top: 1px solid var(--rule); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: 1.5rem;
  margin: 1.5rem 0; }
figure { margin: 0; }
figure a { display: block; }
img { display: block; width: 100%; height: auto; border-radius: 4px; background: var(--wash); }
figcaption, caption { color: var(--quiet); font-size: 0.9rem; line-height: 1.45; text-align: left; }
figcaption { margin-top: 0.5rem; }
caption { margin-bottom: 0.5rem; }
.table { overflow-x: auto; margin: 1.5rem 0; }
table { border-collapse: collapse; min-width: min(32rem, 100%); }
th, td { padding: 0.5rem 1.75rem 0.5rem 0; border-bottom: 1px solid var(--rule); text-align: left; }
thead th { font-size: 0.9rem; color: var(--quiet); font-weight: 500; border-bottom: 2px solid var(--ink); }
th:last-child, td:last-child { padding-right: 0; }
tbody th { font-weight: 500; min-width: 8.5rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { overflow-x: auto; margin: 1.5rem 0 0; padding: 0.9rem 1.1rem; background: var(--wash);
  border-left: 3px solid var(--accent); border-radius: 0 4px 4px 0; font-size: 0.9rem; line-height: 1.5; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
footer { margin-top: 3.5rem; padding-top: 1.25rem; border-top: 1px solid var(--rule); color: var(--quiet);
  font-size: 0.9rem; }
@media print { body { padding: 0; max-width: none; } section, figure { break-inside: avoid; } nav { display: none; } }
""".strip()
