"""Tables in Markdown, and the parts of a document that a command writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from amsam_med.files import atomic_path


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; columns of numbers are set to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    marks = ["---:" if _are_numbers(column) else "---" for column in zip(*cells, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, marks, *cells])


def _are_numbers(column: Sequence[str]) -> bool:
    return any(column) and all(cell[:1] in "0123456789+-" for cell in column)  # "" is in every string


def write_block(document: Path, name: str, content: str) -> None:
    """Replace what stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` in a document.

    Raises:
        click.ClickException: The document does not hold each marker once, in this order.
    """
    text = document.read_text(encoding="utf-8")
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise click.ClickException(f"{document.name} must hold {begin} and then {end}, each once; put them in")
    before, rest = text.split(begin)
    with atomic_path(document) as path:
        path.write_text(f"{before}{begin}\n{content.strip()}\n{end}{rest.split(end)[1]}", encoding="utf-8")
