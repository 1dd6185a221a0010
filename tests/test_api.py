"""What somebody with a notebook sees: the package's own names, and a page about them that is true."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import amsam_med
from tests.conftest import REPOSITORY


def test_importing_the_package_loads_no_torch() -> None:
    script = (
        "import sys, amsam_med; dir(amsam_med); "
        "print([name for name in ('torch', 'monai', 'numpy', 'amsam_med.errors') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [name for name in amsam_med.__all__ if name != "__version__"])
def test_every_public_name_is_there_and_explained(name: str) -> None:
    assert name in dir(amsam_med)
    assert inspect.getdoc(getattr(amsam_med, name))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'segmnet'"):
        _ = amsam_med.segmnet


def test_a_verb_is_a_call_and_stays_a_module() -> None:
    from amsam_med import segment
    from amsam_med.segment import SegmentOptions
    from amsam_med.segment import segment as function

    assert inspect.ismodule(segment)
    assert segment.SegmentOptions is SegmentOptions
    assert callable(segment)
    assert inspect.signature(segment) == inspect.signature(function)


def test_parts_of_a_bundle_are_fetched_in_one_module() -> None:
    files = [file for root in ("amsam_med", "benchmarks", "pipelines") for file in (REPOSITORY / root).rglob("*.py")]
    assert len(files) > 150
    fetching = [file.name for file in files if "get_parsed_content(" in file.read_text(encoding="utf-8")]
    assert fetching == ["bundle.py"]


def test_the_page_about_python_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = doctest.testfile(str(REPOSITORY / "docs" / "python.md"), module_relative=False)
    assert results.attempted > 20
    assert results.failed == 0
