"""The demo, with the embedded weights and few epochs."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from amsam_med.demo import SHOWN, run_demo
from amsam_med.errors import ConfigError


def _linked_files(page: Path) -> list[Path]:
    links: list[str] = []

    class Collector(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            links.extend(value for name, value in attrs if tag == "img" and name == "src" and value)

    Collector().feed(page.read_text())
    return [page.parent / link for link in links]


def test_the_demo_leaves_a_page_whose_pictures_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    result = run_demo(Path("demo"), epochs=2, test_images=SHOWN, tell=told.append)
    pictures = _linked_files(result.page)
    assert len(pictures) == SHOWN + 4
    assert all(picture.is_file() for picture in pictures)
    assert len(told) == 4
    assert result.segmented.done == SHOWN
    # The embedded model knows lesions: on synthetic ones it must do far better than chance.
    assert result.before.summary.dice > 0.6


def test_the_demo_never_removes_a_strangers_files(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"thesis\.txt"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.txt").is_file()
