"""What `make check` makes of a report of pip-audit."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", REPOSITORY / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _report(*vulnerabilities: dict[str, Any]) -> dict[str, Any]:
    known = {"name": "pillow", "version": "1.0", "vulns": list(vulnerabilities)}
    return {"dependencies": [known, {"name": "ours", "skip_reason": "not found"}]}


ODD = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1"], "description": ""}


def test_a_vulnerability_fails_and_is_named(audit: ModuleType) -> None:
    lines, is_safe = audit.judged(_report(ODD))
    assert not is_safe
    assert lines[0].startswith("pillow 1.0: PYSEC-1, mended in 1.1")
    assert lines[-1] == "1 of 2 packages audited, 1 known vulnerabilities"


def test_one_that_is_argued_away_passes_with_its_reason(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(audit.EXCEPTIONS, "CVE-1", "only its TIFF writer, which is not used")
    lines, is_safe = audit.judged(_report(ODD))
    assert is_safe
    assert "only its TIFF writer" in lines[0]


def test_an_audit_that_audited_nothing_says_so(audit: ModuleType) -> None:
    lines, is_safe = audit.judged({"dependencies": [{"name": "pillow", "skip_reason": "not found"}]})
    assert is_safe
    assert lines[-1].startswith("NOT AUDITED")
