"""Typed records."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from amsam_med.errors import ConfigError, DataError
from amsam_med.schema import Name, Record, checked, read_record


class Recipe(Record):
    kind: Literal["paper", "ours"]
    shots: Annotated[int, Field(ge=2, le=100)] = 8
    name: Name = "tiny"
    rate: float = 0.1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('{"kind": "theirs"}', "entry 'kind'.*'paper' or 'ours'.*got 'theirs'"),
        ('{"kind": "ours", "shots": "8"}', "entry 'shots'.*valid integer"),
        ('{"kind": "ours", "shots": true}', "entry 'shots'"),
        ('{"kind": "ours", "shots": 1}', "greater than or equal to 2"),
        ('{"kind": "ours", "code": "$1"}', "entry 'code'"),
        ('{"kind": "ours", "name": "../../etc"}', "entry 'name'"),
        ('{"kind": "ours", "rate": NaN}', "entry 'rate'"),
        ('{"kind": "ours", "rate": 1e999}', "entry 'rate'"),
        ("[]", "object"),
        ("", "JSON"),
        ("{" * 5000, "JSON"),
        (b"\xff\xfe", "JSON"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(given: str | bytes, said: str):
    with pytest.raises(ConfigError, match=f"(?s)r.json: .*{said}.*; write it again") as caught:
        checked(Recipe, given, "r.json", "write it again", ConfigError)
    assert len(str(caught.value)) < 500


def test_what_fits_is_typed_and_cannot_be_changed():
    recipe = checked(Recipe, {"kind": "paper", "rate": 2}, "r", "")
    assert (recipe.kind, recipe.shots, recipe.rate) == ("paper", 8, 2.0)
    with pytest.raises(ValueError, match="frozen"):
        recipe.shots = 9


def test_a_file_is_read_up_to_a_limit(tmp_path: Path):
    (tmp_path / "r.json").write_text('{"kind": "ours"}' + " " * 100)
    assert read_record(Recipe, tmp_path / "r.json", "").kind == "ours"
    with pytest.raises(DataError, match="more than 50 bytes"):
        read_record(Recipe, tmp_path / "r.json", "", limit=50)


def test_pipes_folders_and_missing_files_are_named(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, said in {"pipe": "not a regular file", "folder": "not a regular file", "none": "cannot be read"}.items():
        with pytest.raises(DataError, match=f"{name}: {said}"):
            read_record(Recipe, tmp_path / name, "")
