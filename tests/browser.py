"""Headless Chromium for tests of web pages: the installed one, without a download; its console is recorded.

Debian has it in the packages ``chromium`` and ``chromium-driver``; where they are missing, tests are skipped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DRIVER = "chromedriver"
# Containers give little shared memory and no GPU.
ARGUMENTS = ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--window-size=1280,900")


class Browser:
    """A running browser with one page.

    Args:
        driver: Selenium's driver of it.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path) -> None:
        """Load a file; console messages of earlier pages are dropped."""
        self.complaints()
        self.driver.get(page.absolute().as_uri())

    def run(self, script: str, *arguments: object) -> Any:
        """What a script returns; its arguments are in ``arguments``."""
        return self.driver.execute_script(script, *arguments)

    def texts(self, selector: str) -> list[str]:
        """The text of all elements that a CSS selector names, shown or not."""
        texts: list[str] = self.run(
            "return [...document.querySelectorAll(arguments[0])].map(one => one.textContent)", selector
        )
        return texts

    def click(self, selector: str, text: str = "") -> None:
        """Click the first element that a CSS selector names and that holds ``text``."""
        found = [one for one in self.driver.find_elements("css selector", selector) if text in one.text]
        assert found, f"no {selector} with {text!r}"
        found[0].click()

    def fill(self, selector: str, text: str) -> None:
        """Type into a field, in place of what it held; choose from a list."""
        field = self.driver.find_element("css selector", selector)
        if field.tag_name != "select":
            field.clear()
        field.send_keys(text)

    def press(self, key: str) -> None:
        """Press a key of :class:`selenium.webdriver.Keys`, by name, where the focus is."""
        from selenium.webdriver import Keys

        self.driver.switch_to.active_element.send_keys(getattr(Keys, key))

    def wait_for(self, condition: str, seconds: float = 10) -> None:
        """Wait until a JavaScript expression is true; fails after some seconds."""
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, seconds, 0.05).until(lambda _: self.run(f"return Boolean({condition})"), condition)

    def complaints(self) -> list[str]:
        """Console messages since the last call: errors, violations of the page's policy, warnings."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser")]


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start Chromium; end it, and all that it started, with the block. Skips the test where it is missing."""
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which(DRIVER)
    if binary is None or driver is None:
        pytest.skip(f"{'chromium' if binary is None else 'chromium-driver'} is not installed (a Debian package)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (a Python package)")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (*ARGUMENTS, *(["--no-sandbox"] if os.geteuid() == 0 else [])):  # root may not use the sandbox
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield Browser(running)
    finally:
        running.quit()
