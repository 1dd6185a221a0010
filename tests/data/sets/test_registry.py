"""A data set is one file, which the registry finds and the command line offers."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from amsam_med.cli.data import data
from amsam_med.data.sets.registry import DATA_SETS, datalist_parts, open_datalist
from amsam_med.data.sets.tiktok import FOLDER
from amsam_med.errors import DataError
from tests.data.sets.test_pairs import fill_plain


def choices_of(command: str) -> set[str]:
    """What a sub-command of ``amsam data`` takes as a name."""
    argument = data.commands[command].params[0]
    assert isinstance(argument.type, click.Choice)
    return set(argument.type.choices)


def test_every_file_of_a_set_is_found() -> None:
    assert set(DATA_SETS) == {"isic2018", "human-vikram", "tiktok"}
    assert all(one.name == name for name, one in DATA_SETS.items())


def test_the_command_line_offers_what_can_be_fetched_and_taken_in() -> None:
    assert choices_of("get") == {name for name, one in DATA_SETS.items() if one.fetch and one.base_url}
    assert choices_of("import") == {name for name, one in DATA_SETS.items() if one.import_archive}


def test_of_two_sets_in_one_folder_the_one_of_higher_precedence_has_it(tmp_path: Path) -> None:
    fill_plain(tmp_path / "val", "a")
    assert datalist_parts(tmp_path) == ("val",)
    fill_plain(tmp_path / FOLDER, "a")
    assert datalist_parts(tmp_path) == ("train", "test")
    with pytest.raises(DataError, match="the published set has 2,615"):
        open_datalist(tmp_path, "train")
