"""HTML pages from the templates in ``assets/``; all values are escaped as text.

``assets/page.css`` is the style of all pages; ``assets/<name>.css`` is what one of them has besides.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

_ASSETS = Path(__file__).parent / "assets"


def template(name: str) -> Template:
    """``assets/<name>.html``; an undefined variable in it is an error."""
    return _environment().get_template(f"{name}.html")


def style(name: str) -> Markup:
    """The style of a page, for its ``<style>``."""
    return Markup("\n") + _asset("page.css") + _asset(f"{name}.css")


def script(name: str) -> Markup:
    """The script of a page, for its ``<script>``."""
    return Markup("\n") + _asset(f"{name}.js")


def policy_hash(element: str) -> str:
    """The sha256 in base64 by which a page's policy allows its one ``<style>`` or ``<script>`` and no other.

    Source: Content Security Policy Level 3, section 2.3.1 (hash-source).
    """
    return "sha256-" + base64.b64encode(hashlib.sha256(element.encode()).digest()).decode("ascii")


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(_ASSETS)
    found = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"policy_hash": policy_hash, "thousands": "{:,}".format}
    return found


def _asset(name: str) -> Markup:
    """A file of this package, which contains nothing from outside and so need not be escaped."""
    return Markup((_ASSETS / name).read_text(encoding="utf-8"))  # noqa: S704
