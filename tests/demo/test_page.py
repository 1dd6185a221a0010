"""The demo page: well-formed, escaped, self-contained, and its pictures are there."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from amsam_med.demo.page import Picture, Section, Table, write_demo_page
from amsam_med.errors import DataError

VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = "<script>alert('x')</script> & \"quoted\" $title ${body}"


class Page(HTMLParser):
    """A parsed page that notes every element and refuses tags that do not match."""

    def __init__(self, path: Path) -> None:
        """Parse the file at ``path``."""
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        assert len(dict(attrs)) == len(attrs), f"an attribute of <{tag}> is given twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close the innermost element, which must be this one."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note text under the element it stands in."""
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of all elements ``tag``."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one picture whose name needs quoting in a link."""
    (tmp_path / "figures").mkdir()
    Image.fromarray(np.zeros((4, 6, 3), dtype=np.uint8)).save(tmp_path / "figures" / "a #1 100%.png")
    return tmp_path


@pytest.fixture
def picture() -> Picture:
    """The picture in ``folder``."""
    return Picture("figures/a #1 100%.png", "A caption", "A black rectangle")


def test_the_page_is_index_html_in_the_folder(tmp_path: Path) -> None:
    path = write_demo_page(tmp_path / "new", [Section("One")])
    assert path == tmp_path / "new" / "index.html"
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>\n")


def test_a_full_page_is_well_formed_and_in_order(folder: Path, picture: Picture) -> None:
    table = Table(["Network", "Dice"], [["before", "0.61"], ["after", "0.91"]], "Overlap")
    sections = [Section("First", "Text", [picture], table, "amsam demo"), Section("Second"), Section("Third")]
    page = Page(write_demo_page(folder, sections, title="Title", lead="Lead", footer="Foot"))
    assert page.texts["h1"] == ["Title"]
    assert page.texts["h2"] == ["First", "Second", "Third"]
    assert page.texts["figcaption"] == ["A caption"]
    assert page.texts["code"] == ["amsam demo"]
    assert page.texts["caption"] == ["Overlap"]
    assert page.texts["p"] == ["Lead", "Text", "Foot"]


def test_all_text_is_escaped(folder: Path) -> None:
    picture = Picture("figures/a #1 100%.png", HOSTILE, HOSTILE)
    section = Section(HOSTILE, HOSTILE, [picture], Table([HOSTILE], [[HOSTILE]], HOSTILE), HOSTILE)
    page = Page(write_demo_page(folder, [section] * 3, title=HOSTILE, lead=HOSTILE, footer=HOSTILE))
    assert page.all("script") == []
    for tag in ("title", "h1", "h2", "p", "a", "figcaption", "caption", "th", "code"):
        assert set(page.texts[tag]) == {HOSTILE}, tag
    assert {image["alt"] for image in page.all("img")} == {HOSTILE}


def test_every_picture_link_leads_to_a_file_in_the_folder(folder: Path, picture: Picture) -> None:
    page = Page(write_demo_page(folder, [Section("One", pictures=[picture])]))
    links = [image["src"] for image in page.all("img")] + [anchor["href"] for anchor in page.all("a")]
    assert len(links) == 2
    for link in links:
        assert link is not None
        assert link == "figures/a%20%231%20100%25.png"
        assert (folder / unquote(link)).is_file()


def test_an_absolute_path_in_the_folder_becomes_a_relative_link(folder: Path, picture: Picture) -> None:
    absolute = Picture(folder / picture.path, picture.caption, picture.alt)
    page = Page(write_demo_page(folder, [Section("One", pictures=[absolute])]))
    assert page.all("img")[0]["src"] == "figures/a%20%231%20100%25.png"


def test_the_page_asks_for_nothing_from_elsewhere(folder: Path, picture: Picture) -> None:
    path = write_demo_page(folder, [Section("One", "Text", [picture])])
    page = Page(path)
    assert page.all("script") == page.all("link") == []
    assert not any(word in path.read_text(encoding="utf-8") for word in ("http:", "https:", "@import", "url("))


def test_contents_link_to_every_section(tmp_path: Path) -> None:
    page = Page(write_demo_page(tmp_path, [Section(name) for name in "abc"]))
    identifiers = [section["id"] for section in page.all("section")]
    assert len(set(identifiers)) == 3
    assert [anchor["href"] for anchor in page.all("a")] == [f"#{identifier}" for identifier in identifiers]


def test_blank_lines_separate_paragraphs(tmp_path: Path) -> None:
    page = Page(write_demo_page(tmp_path, [Section("One", "\nfirst line\nsame\n\n \nsecond\n")]))
    assert page.texts["p"] == ["first line same", "second"]


def test_a_command_keeps_its_lines(tmp_path: Path) -> None:
    page = Page(write_demo_page(tmp_path, [Section("One", command="amsam train \\\n    --shots 10\n")]))
    assert page.texts["code"] == ["amsam train \\\n    --shots 10"]


def test_columns_of_numbers_are_right_aligned(tmp_path: Path) -> None:
    table = Table(["a", "b", "c"], [["x", "0.61 ± 0.2", "1"], ["y", "\u22123.5 %", "many"], ["z", "\u2013", "2 px"]])
    page = Page(write_demo_page(tmp_path, [Section("One", table=table)]))
    assert [head.get("class") for head in page.all("th")[:3]] == [None, "number", None]
    assert [cell.get("class") for cell in page.all("td")] == ["number", None] * 3


def test_both_colour_schemes_are_served(tmp_path: Path) -> None:
    path = write_demo_page(tmp_path, [])
    assert {"name": "color-scheme", "content": "light dark"} in Page(path).all("meta")
    assert "(prefers-color-scheme: dark)" in path.read_text(encoding="utf-8")


def test_a_missing_picture_is_refused_and_no_page_is_written(folder: Path) -> None:
    with pytest.raises(DataError, match=r"picture .*none\.png does not exist; write it before the page"):
        write_demo_page(folder, [Section("One", pictures=[Picture("none.png", "", "alt")])])
    assert not (folder / "index.html").exists()


def test_a_picture_outside_the_folder_is_refused(folder: Path, picture: Picture) -> None:
    inner = folder / "inner"
    with pytest.raises(DataError, match="lies outside"):
        write_demo_page(inner, [Section("One", pictures=[Picture(f"../{picture.path}", "", "alt")])])


def test_a_picture_without_alternative_text_is_refused(folder: Path, picture: Picture) -> None:
    with pytest.raises(DataError, match="has no alternative text"):
        write_demo_page(folder, [Section("One", pictures=[Picture(picture.path, "A caption", " ")])])


@pytest.mark.parametrize(
    ("table", "complaint"),
    [(Table(["a", "b"], [["only one"]]), "has a row of 1 cells"), (Table([], [[]]), "has no headers")],
)
def test_a_ragged_table_is_refused(tmp_path: Path, table: Table, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        write_demo_page(tmp_path, [Section("One", table=table)])
