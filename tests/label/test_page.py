"""The server's own page, in a real browser that has no other site to ask."""

from __future__ import annotations

from pipelines.monailabel.process import Server
from tests.browser import open_browser


def test_the_page_shows_what_can_be_asked(server: Server) -> None:
    with open_browser() as browser:
        browser.driver.get(f"{server.address}/")
        browser.wait_for("document.querySelectorAll('.opblock').length > 20")
        paths = browser.texts(".opblock-summary-path")
        asked = browser.run("return performance.getEntriesByType('resource').map(one => new URL(one.name).origin)")
        assert browser.complaints() == []
    assert any("/infer/" in path for path in paths)
    assert set(asked) == {server.address}
