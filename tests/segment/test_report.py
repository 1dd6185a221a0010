"""The report of a run: what it counts, what it keeps from running, and how it behaves in a real browser."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from PIL import Image

from amsam_med.data.tables import hidden, visible
from amsam_med.infer import Flag
from amsam_med.segment.journal import COLUMNS
from amsam_med.segment.report import PLOTS, Card, Histogram, Tally, write_report
from tests.browser import Browser, open_browser

FACTS = {"bundle": "amsam_isic", "command": "amsam segment photos -o out"}
HOSTILE = (
    "</script><script>document.title='run'</script>.png",
    "<img src=x onerror=\"document.title='run'\">.png",
    "javascript:document.title='run'.png",
    "\"quoted\" & 'quoted' #1? 100%.png",
    "two\nlines\tand a tab.png",
    "<!--<script>.png",
    "α − 皮膚 😀 \u202egnp.png",
    "{{facts}} ${title} \\u003c.png",
    "not UTF-8 \udcff.png",
)
"""File names that would run as code, end an element or lead elsewhere if they were taken for markup or addresses."""


def picture_bytes(colour: str = "red", size: tuple[int, int] = (40, 30), kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, kind)
    return stream.getvalue()


THUMBNAIL = picture_bytes()


def card(file: str, *, thumbnail: bytes | None = THUMBNAIL, **columns: Any) -> Card:
    return Card({"file": file} | {name: str(value) for name, value in columns.items()}, thumbnail)


def some_cards() -> list[Card]:
    """Five done, two of them flagged, one failed; file, area, certainty and confidence have different orders."""
    return [
        card("in/a2.png", area_percent=30.0, certainty=0.9, box_source="detector", box_confidence=0.7),
        card("in/a10.png", area_percent=10.0, certainty=0.95, box_source="detector", box_confidence=0.9),
        card("in/b.png", area_percent=20.0, certainty=0.5, box_source="not found", box_confidence=0.0,
             flags="no-box;unsure-mask"),
        card("in/C.png", area_percent=5.0, certainty=0.6, box_source="detector", box_confidence=0.8,
             flags="unsure-mask"),
        card("in/d.png", thumbnail=None, error="d.png: <b>broken</b> data"),
        card("in/e.png", area_percent=99.0, certainty=0.99, box_source="none", box_confidence=0.0),
    ]  # fmt: skip


def rows_of(page: Path) -> list[dict[str, Any]]:
    """What the page's script is given."""
    text = page.read_text(encoding="utf-8")
    match = re.search('<script type="application/json" id="pictures">(.*?)</script>', text, re.DOTALL)
    assert match is not None
    rows: list[dict[str, Any]] = json.loads(match[1])
    return rows


def files_of(page: Path) -> list[str]:
    return [row["cells"]["file"] for row in rows_of(page)]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "out" / "report.html"
    write_report(path, "A run", FACTS, some_cards())
    return path


# ---- without a browser


def test_the_page_counts_pictures_and_flags(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    counts = dict(re.findall(r"<dt>([\w ]+)</dt><dd>([\d,]+)</dd>", text))
    assert counts == {"pictures": "6", "done": "5", "failed": "1", "without a box": "1", "flagged": "2"}
    flags = re.findall(r'<th scope="row">([\w-]+)</th><td class="number">(\d+)</td><td>([^<]+)</td>', text)
    assert [flag[:2] for flag in flags] == [("unsure-mask", "2"), ("no-box", "1")]
    assert "amsam segment photos -o out" in text
    assert "For research and education; not a medical device." in text
    assert "<noscript>" in text


def test_the_columns_that_the_page_knows_are_those_of_the_results() -> None:
    known = {"file", "flags", "error", "box_source", "mask_file", "overlay_file", *(plot.column for plot in PLOTS)}
    assert known <= set(COLUMNS)


def test_every_flag_is_explained(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", "A run", {}, [card("a.png", flags=";".join(Flag))])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    for flag in Flag:
        assert re.search(rf'<th scope="row">{flag}</th><td class="number">1</td><td>\w', text), flag


def test_the_script_is_told_cells_and_links(page: Path, tmp_path: Path) -> None:
    write_report(
        tmp_path / "report.html", "A run", {}, [Card({"file": "a", "new_mm2": "3", "odd_file": "x/y z#"}, None)]
    )
    assert rows_of(tmp_path / "report.html") == [
        {"cells": {"file": "a", "new_mm2": "3"}, "links": {"odd": "./x/y%20z%23"}}
    ]
    assert files_of(page) == [one.cells["file"] for one in some_cards()]


def test_a_box_that_is_not_there_has_no_confidence(page: Path) -> None:
    has_confidence = {row["cells"]["file"]: "box_confidence" in row["cells"] for row in rows_of(page)}
    assert [file for file, has in has_confidence.items() if has] == ["in/a2.png", "in/a10.png", "in/C.png"]
    assert "Confidence of the box, 0 to 1: 3 pictures" in page.read_text(encoding="utf-8")


def test_thumbnails_are_numbered_like_rows(page: Path) -> None:
    found = re.findall('<script type="text/plain" id="t([0-9]+)">([^<]*)</script>', page.read_text(encoding="utf-8"))
    assert [int(number) for number, _ in found] == [0, 1, 2, 3, 5]
    assert {base64.b64decode(data) for _, data in found} == {THUMBNAIL}


def test_all_text_is_escaped(tmp_path: Path) -> None:
    name, path = "<script>'x'</script> \"&", tmp_path / "report.html"
    write_report(path, name, {name: name, "command": name}, [card(name, flags=name, error=name, mask_file=name)])
    text = path.read_text(encoding="utf-8")
    assert name not in text
    assert text.count(escape(name)) == 6  # title, heading, a fact's name, two values, a flag
    assert rows_of(path)[0]["cells"]["error"] == name


@pytest.mark.parametrize("name", HOSTILE)
def test_any_file_name_comes_back_from_the_page(tmp_path: Path, name: str) -> None:
    write_report(tmp_path / "report.html", "A run", {}, [card(name, mask_file=name)])
    assert [hidden(file) for file in files_of(tmp_path / "report.html")] == [name]
    (row,) = rows_of(tmp_path / "report.html")
    assert re.fullmatch(r"\./[\w.~/%-]+", row["links"]["mask"], re.ASCII)


@pytest.mark.parametrize("path", ["//example.org/a.png", "javascript:alert(1)", "/etc/hosts"])
def test_no_path_becomes_another_host_or_a_scheme(tmp_path: Path, path: str) -> None:
    write_report(tmp_path / "report.html", "A run", {}, [card("a.png", mask_file=path)])
    (row,) = rows_of(tmp_path / "report.html")
    assert row["links"]["mask"].startswith("./")
    assert ":" not in row["links"]["mask"]


def test_the_policy_allows_this_style_and_this_script_only(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text
    assert not re.search(r"https?:|@import|url\(|<[^>]+ (style|on\w+)=", text)


def test_above_the_limit_flagged_and_failed_pictures_come_first(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", "A run", {}, some_cards(), limit=4)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert files_of(tmp_path / "report.html") == ["in/a2.png", "in/b.png", "in/C.png", "in/d.png"]
    assert "The gallery holds 4 of 6 pictures: all 3 flagged and failed pictures first." in text
    assert "<dt>pictures</dt><dd>6</dd>" in text
    assert "Area of the object, % of the image: 5 pictures" in text


def test_a_gallery_may_be_too_small_for_all_flagged_pictures(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", "A run", {}, some_cards(), limit=2)
    assert files_of(tmp_path / "report.html") == ["in/b.png", "in/C.png"]
    assert "The gallery holds 2 of 6 pictures: 2 of 3 flagged and failed ones." in (tmp_path / "report.html").read_text(
        encoding="utf-8"
    )


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    thumbnail, count = os.urandom(20_000), 2_000
    cards = (card(f"{number}.png", thumbnail=thumbnail, area_percent=1.0) for number in range(count))
    tracemalloc.start()
    try:
        write_report(tmp_path / "report.html", "A run", {}, cards)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "report.html").stat().st_size > 50e6
    assert peak < 5e6


def test_a_fault_on_the_way_leaves_the_earlier_report(page: Path) -> None:
    before = page.read_bytes()

    def cards() -> Iterator[Card]:
        yield from some_cards()
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        write_report(page, "A run", FACTS, cards())
    assert page.read_bytes() == before
    assert list(page.parent.iterdir()) == [page]


def test_a_run_without_pictures_has_a_report(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", "A run", {}, [])
    assert rows_of(tmp_path / "report.html") == []
    assert "Distributions" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_histogram_counts_and_knows_its_median() -> None:
    histogram = Histogram(1)
    for value in (0.0, 0.26, 0.27, 0.52, 1.0):
        histogram.add(value, is_doubted=value > 0.5)
    bins = histogram.drawn_bins()
    assert {place: counts for place, counts in enumerate(bins) if counts != (0, 0)} == {
        0: (1, 0), 5: (2, 0), 10: (1, 1), 19: (1, 1)
    }  # fmt: skip
    assert histogram.median() == pytest.approx(0.27, abs=0.0005)


def test_small_areas_get_a_shorter_axis() -> None:
    histogram = Histogram(100)
    for value in (0.1, 1.3, 4.9):
        histogram.add(value, is_doubted=False)
    assert histogram.drawn_top() == 5
    assert [place for place, (count, _) in enumerate(histogram.drawn_bins()) if count] == [0, 5, 19]


def test_cells_that_are_no_numbers_are_not_drawn() -> None:
    tally = Tally()
    for cell in ("", "nan", "inf", "many", "12.5"):
        tally.add({"file": "a.png", "area_percent": cell})
    assert tally.histograms["area_percent"].count == 1
    assert tally.counts["pictures"] == 5


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def opened(browser: Browser, page: Path) -> Iterator[Browser]:
    """The browser with the page of :func:`some_cards`; nothing that a test does there may show in the console."""
    browser.open(page)
    yield browser
    assert browser.complaints() == []


def names(browser: Browser) -> list[str]:
    """Files of the shown cards, in order."""
    return browser.texts(".card .name")


def test_the_page_shows_every_picture(opened: Browser) -> None:
    assert names(opened) == ["a2.png", "a10.png", "b.png", "C.png", "d.png", "e.png"]
    assert opened.texts("#found") == ["6 pictures"]
    assert opened.texts(".card .error") == ["d.png: <b>broken</b> data"]
    opened.wait_for("[...document.querySelectorAll('.card img')].every(image => image.naturalWidth === 40)")


@pytest.mark.parametrize(
    ("button", "expected"),
    [
        ("Flagged 2", ["b.png", "C.png"]),
        ("unsure-mask 2", ["b.png", "C.png"]),
        ("no-box 1", ["b.png"]),
        ("No detection 1", ["b.png"]),
        ("Failed 1", ["d.png"]),
    ],
)
def test_a_filter_shows_its_pictures(opened: Browser, button: str, expected: Sequence[str]) -> None:
    opened.click("#filters button", button)
    assert names(opened) == expected
    assert opened.texts("#found") == [f"{len(expected)} of 6 pictures"]
    assert button in opened.texts("#filters [aria-pressed=true]")


def test_search_and_area_narrow_the_gallery(opened: Browser) -> None:
    opened.fill("#search", "A")
    assert names(opened) == ["a2.png", "a10.png"]
    opened.fill("#area-from", "15")
    opened.fill("#area-to", "50")
    assert names(opened) == ["a2.png"]
    opened.click("#clear")
    assert len(names(opened)) == 6


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("Area", ["C.png", "a10.png", "b.png", "a2.png", "e.png", "d.png"]),
        ("Certainty", ["b.png", "C.png", "a2.png", "a10.png", "e.png", "d.png"]),
        ("Box confidence", ["a2.png", "C.png", "a10.png", "b.png", "d.png", "e.png"]),
    ],
)
def test_pictures_sort_up_and_down_with_numberless_ones_last(opened: Browser, column: str, expected: list[str]) -> None:
    with_number = 3 if column == "Box confidence" else 5
    opened.fill("#sort", column)
    assert names(opened) == expected
    opened.click("#direction")
    assert names(opened) == expected[:with_number][::-1] + expected[with_number:]


def test_the_full_view_opens_walks_and_closes_by_keyboard(opened: Browser) -> None:
    opened.run("document.querySelectorAll('.card')[1].focus()")
    opened.press("ENTER")
    assert opened.run("return document.getElementById('view').open")
    assert opened.texts("#view-title") == ["in/a10.png"]
    opened.press("ARROW_RIGHT")
    opened.press("ARROW_RIGHT")
    opened.press("ARROW_LEFT")
    assert opened.texts("#view-title, #view-place") == ["in/b.png", "3 of 6"]
    opened.press("ESCAPE")
    opened.wait_for("!document.getElementById('view').open")
    opened.wait_for("document.activeElement === document.querySelectorAll('.card')[2]")


def test_the_full_view_ends_where_the_shown_pictures_end(opened: Browser) -> None:
    opened.click("#filters button", "Flagged")
    opened.click(".card", "b.png")
    opened.press("ARROW_LEFT")
    opened.click("#next")
    assert opened.texts("#view-title, #view-place") == ["in/C.png", "2 of 2"]
    assert opened.run("return document.activeElement.id") == "close"
    opened.press("ENTER")
    opened.wait_for("document.activeElement === document.querySelectorAll('.card')[1]")


def test_the_full_view_of_a_failed_picture_says_why(opened: Browser) -> None:
    opened.click(".card", "Failed")
    assert opened.texts("#view .error") == ["d.png: <b>broken</b> data"]
    assert opened.texts("#stage") == ["There is no result of this picture."]


def test_every_control_has_a_name(opened: Browser) -> None:
    nameless = opened.run(
        "return [...document.querySelectorAll('button, input, select')].filter(one =>"
        " !(one.textContent.trim() || one.ariaLabel || one.labels?.length)).map(one => one.outerHTML)"
    )
    assert nameless == []
    assert len(opened.texts("button")) > 10


def test_hostile_names_show_as_text_lead_to_files_and_run_nothing(browser: Browser, tmp_path: Path) -> None:
    overlay, page = picture_bytes("blue", (64, 48), "PNG"), tmp_path / "report.html"
    for name in HOSTILE:
        file = tmp_path / "overlays" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(overlay)
    cards = [card(name, overlay_file=f"overlays/{name}", flags=name, area_percent=1.0) for name in HOSTILE]
    write_report(page, "A run", {name: name for name in HOSTILE}, cards)
    browser.open(page)
    browser.click(".card")
    titles = []
    for _ in HOSTILE:
        browser.wait_for("document.querySelector('#stage img').naturalWidth === 64")
        titles += browser.texts("#view-title")
        browser.press("ARROW_RIGHT")
    assert sorted(titles) == sorted(visible(name) for name in HOSTILE)
    assert set(browser.texts(".flag")) == set(titles)
    assert browser.run("return document.title") == "A run"
    assert browser.run("return document.querySelectorAll('script:not([type])').length") == 1
    assert browser.complaints() == []


def test_a_newline_in_a_name_is_seen(browser: Browser, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", "A run", {}, [card("two\nlines.png"), card("scan.dcm", area_px=1)])
    browser.open(tmp_path / "report.html")
    assert names(browser) == ["scan.dcm", "two\\x0alines.png"]


def test_pictures_of_one_file_are_told_apart(browser: Browser, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", "A run", {}, [card("scan.dcm", picture=number) for number in (10, 9)])
    browser.open(tmp_path / "report.html")
    assert names(browser) == ["scan.dcm · picture 9", "scan.dcm · picture 10"]


def test_a_missing_overlay_gives_way_to_the_thumbnail(browser: Browser, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", "A run", {}, [card("a.png", overlay_file="gone.png"), card("b.png")])
    browser.open(tmp_path / "report.html")
    browser.click(".card", "a.png")
    browser.wait_for("document.querySelector('#stage img.small')?.naturalWidth === 40")
    assert browser.texts("#stage p") == ["The overlay file is not beside this page. This is its thumbnail."]
    browser.press("ARROW_RIGHT")
    assert browser.texts("#stage p") == ["There is no overlay file of this picture. This is its thumbnail."]


def test_the_page_does_not_scroll_sideways_on_a_phone(browser: Browser, page: Path) -> None:
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.open(page)
        assert browser.run("return document.documentElement.scrollWidth") == 360
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_ten_thousand_pictures_stay_usable(browser: Browser, tmp_path: Path) -> None:
    path, flags = tmp_path / "report.html", ("", "", "", "unsure-mask")
    thumbnail = THUMBNAIL + os.urandom(3500)
    cards = (
        card(f"in/{number}.jpg", thumbnail=thumbnail, area_percent=number % 997 / 10, flags=flags[number % 4])
        for number in range(10_000)
    )
    both = sum("77" in str(number) for number in range(3, 10_000, 4))
    start = time.perf_counter()
    write_report(path, "A run", {}, cards)
    print(f"\nwritten in {time.perf_counter() - start:.1f} s, {path.stat().st_size / 1e6:.1f} MB")
    browser.open(path)
    paint = browser.run("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
    print(f"first paint after {paint:.0f} ms")
    for name, script, found in (
        ("filter", "document.querySelectorAll('#filters button')[1].click()", 2500),
        ("search", "search.value = '77'; search.dispatchEvent(new Event('input'))", both),
        ("sort", "sort.value = 'area_percent'; sort.dispatchEvent(new Event('change'))", both),
        ("clear", "document.getElementById('clear').click()", 10_000),
    ):
        elements = "const [search, sort] = ['search', 'sort'].map(id => document.getElementById(id));"
        clock = "const start = performance.now(); {}; document.body.offsetHeight; return performance.now() - start"
        print(f"{name}: {browser.run(elements + clock.format(script)):.0f} ms")
        assert browser.texts("#found")[0].startswith(f"{found:,} ")
        assert 0 < len(names(browser)) <= 100
    assert browser.complaints() == []


def test_pages_turn_and_the_full_view_walks_across_them(browser: Browser, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", "A run", {}, (card(f"{number}.png") for number in range(100)))
    browser.open(tmp_path / "report.html")
    assert browser.texts("#found") == ["100 pictures; 1 to 60 are shown"]
    browser.run("document.querySelectorAll('.card')[59].focus()")
    browser.press("ENTER")
    browser.press("ARROW_RIGHT")
    browser.press("ESCAPE")
    browser.wait_for("document.activeElement.textContent.startsWith('60.png')")
    assert browser.texts("#found") == ["100 pictures; 61 to 100 are shown"]
    browser.click(".pages button", "«")
    assert names(browser)[0] == "0.png"
