r"""CSV tables with untrusted text, such as file names: always valid UTF-8, and no cell is read as a formula.

:func:`visible` escapes what hides or breaks a line: control and format characters (right-to-left marks among them) as
``\x0a`` or ``\u202e``, bytes of a name that are not UTF-8 as ``\xe9``, the backslash itself as ``\\``. A spreadsheet
takes a cell that begins with one of ``= + - @`` for a formula; such a cell, unless it is a number, gets an apostrophe
in front, and so does one that begins with an apostrophe. :func:`read_table` undoes both: names come back as they were.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import IO

_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # categories of characters that are invisible, or move others
_JOINERS = "\u200c\u200d"  # allowed, as words of several scripts and emojis need them
_ESCAPED = re.compile(r"\\(?:\\|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
_FORMULA = re.compile("['=+\\-@\uff1d\uff0b\uff0d\uff20]")  # the wide forms are formulas in some languages
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?")
_FORMULA_AFTER_SEMICOLON = re.compile(";(?=\\s*[\"'=+\\-@\uff1d\uff0b\uff0d\uff20])")


def visible(text: str) -> str:
    """The text on one line of valid UTF-8, with invisible characters escaped."""
    return "".join(map(_visible, text))


def hidden(text: str) -> str:
    """The inverse of :func:`visible`."""
    return _ESCAPED.sub(lambda found: _hidden(found[0]), text)


def cut_text(text: str, most: int = 200) -> str:
    """A text for a message: visible, and without its middle where it is very long."""
    text = visible(text)
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-(most // 2 - 3) :]}"


def safe_cell(value: object) -> str:
    """A value as a cell of a table; None becomes an empty cell."""
    text = "" if value is None else visible(str(value))
    # Where a comma is the decimal sign, spreadsheets end a cell at a semicolon, and the next may be a formula.
    text = _FORMULA_AFTER_SEMICOLON.sub(r"\\x3b", text)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def plain_cell(cell: str) -> str:
    """The inverse of :func:`safe_cell`."""
    return hidden(cell.removeprefix("'"))


class TableWriter:
    """Writes rows as comma-separated values.

    Args:
        stream: Opened with ``newline=""`` and UTF-8.
        columns: Their names.
    """

    def __init__(self, stream: IO[str], columns: Sequence[str]) -> None:
        self._writer, self._columns = csv.writer(stream), columns

    def write_header(self) -> None:
        """Write the names of the columns."""
        self._writer.writerow(self._columns)

    def write_rows(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Write rows, each with a value for every column; a missing one is empty."""
        self._writer.writerows([safe_cell(row.get(name)) for name in self._columns] for row in rows)


def read_table(path: str | PathLike[str]) -> Iterator[dict[str, str]]:
    """The rows of a table that :class:`TableWriter` wrote, with the original text."""
    with open(path, newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            yield {name: plain_cell(cell or "") for name, cell in row.items() if name is not None}


def _visible(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable() or character in _JOINERS or unicodedata.category(character) not in _HIDDEN:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _hidden(escaped: str) -> str:
    if escaped == "\\\\":
        return "\\"
    code = int(escaped[2:], 16)
    return chr(code + 0xDC00 if escaped[1] == "x" and code >= 0x80 else min(code, 0x10FFFF))
