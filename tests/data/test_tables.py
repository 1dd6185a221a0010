"""Untrusted names in tables are valid UTF-8 and no formulas, and are read back unchanged."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amsam_med.data.tables import TableWriter, cut_text, hidden, plain_cell, read_table, safe_cell, visible

FORMULAS = ("=1+1", "+1+1", "-1+cmd|' /C calc'!A0", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "'=1", "\uff1d1", "-", "=")
NAMES = (
    *FORMULAS,
    "caf\udce9.png",
    "a\\b.png",
    "\\xe9",
    "a\u202egnp.exe",
    "x;=1+1.png",
    'x; "=1".png',
    "病変 é.png",
    "",
)


@given(st.text(st.characters(exclude_categories=()), max_size=30))
def test_any_text_comes_back(text: str) -> None:
    assert hidden(visible(text)) == plain_cell(safe_cell(text)) == text


@given(st.binary(max_size=30))
def test_any_name_of_a_file_becomes_one_line_of_utf_8(name: bytes) -> None:
    shown = visible(os.fsdecode(name))
    assert len(shown.encode("utf-8").splitlines()) <= 1
    assert os.fsencode(hidden(shown)) == name


@pytest.mark.parametrize("text", FORMULAS)
def test_what_a_spreadsheet_takes_for_a_formula_does_not_begin_a_cell(text: str) -> None:
    assert safe_cell(text)[0] not in "=+-@\t\r\n\uff1d"
    assert safe_cell(f"a;{text}").replace("\\x3b", "").count(";") <= 1


@pytest.mark.parametrize("number", [-1, -0.25, 1e-7, -3e20, 0, 12])
def test_numbers_stay_numbers(number: float) -> None:
    assert float(safe_cell(number)) == number


def test_a_separator_of_other_countries_leads_to_no_formula() -> None:
    assert safe_cell('x;=1+1; "+2".png') == 'x\\x3b=1+1\\x3b "+2".png'
    assert safe_cell("no-box;unsure-mask") == "no-box;unsure-mask"


def test_a_table_gives_back_every_name(tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = TableWriter(stream, ("file", "area"))
        writer.write_header()
        writer.write_rows({"file": name, "area": number} for number, name in enumerate(NAMES))
    assert [row["file"] for row in read_table(tmp_path / "t.csv")] == list(NAMES)
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8", errors="strict") as stream:
        assert [row["area"] for row in csv.DictReader(stream)] == [str(number) for number, _ in enumerate(NAMES)]


def test_a_long_text_loses_its_middle() -> None:
    assert cut_text("x" * 5000) == "x" * 100 + "..." + "x" * 97
    assert cut_text("a\n") == "a\\x0a"
