"""One set of words for an option, an entry of a bundle and an argument."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any, get_args

import click
import pytest

from amsam_med import boxes, choices, cli, segment, views
from amsam_med.bundle_settings import as_configured
from amsam_med.data import datalists, nifti
from amsam_med.data.sets import isic2018
from amsam_med.learn import hypergradient
from amsam_med.model import build, calibration, prompt
from amsam_med.segment.formats import FORMATS
from amsam_med.weights import shipped_bundles

OF_OPTION = {
    "adapts": choices.Adapted,
    "base": choices.BaseName,
    "box_choice": choices.BoxChoice,
    "calibration": choices.CalibrationMode,
    "device": choices.DeviceName,
    "engine": choices.EngineName,
    "hypergradient": choices.Hypergradient,
    "part": choices.Part,
    "prompt": choices.PromptKind,
    "slice_axis": choices.SliceAxis,
    "test_views": choices.ViewKind,
    "views": choices.ViewKind,
}
"""Types by the name of an option, and of a bundle's entry."""
IN_ONE_PLACE = {("get", "name"), ("import", "name")}
"""Arguments whose words nothing else has: data sets that can be fetched, or unpacked."""


def commands(command: click.Command) -> Iterator[click.Command]:
    yield command
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        yield from commands(inner)


def all_commands() -> Iterator[click.Command]:
    for place, _ in cli.COMMANDS.values():
        module, _, attribute = place.partition(":")
        yield from commands(getattr(import_module(module), attribute))


def test_every_choice_of_the_command_line_is_that_of_its_type() -> None:
    offered = [
        (str(command.name), str(option.name), option.type.choices)
        for command in all_commands()
        for option in command.params
        if isinstance(option.type, click.Choice)
    ]
    for command, name, words in offered:
        if (command, name) not in IN_ONE_PLACE:
            assert sorted(map(str, words)) == sorted(map(str, get_args(OF_OPTION[name]))), f"{command} {name}"
    assert {name for command, name, _ in offered if (command, name) not in IN_ONE_PLACE} == set(OF_OPTION)


@pytest.mark.parametrize("bundle", shipped_bundles())
def test_what_a_bundle_says_is_one_of_them(bundle: str) -> None:
    says = as_configured(bundle, "train.yaml")
    named = {name: value for name, value in says.items() if name in OF_OPTION}
    assert {"adapts", "base", "calibration", "hypergradient", "prompt", "views"} <= named.keys()
    for name, value in named.items():
        assert value in get_args(OF_OPTION[name]), name


def test_other_tables_have_the_same_words() -> None:
    assert get_args(choices.FormatName) == tuple(FORMATS)
    assert get_args(choices.ViewKind) == tuple(views.VIEWS_OF_KIND)
    assert get_args(choices.DeviceName) == segment.DEVICES
    assert get_args(choices.EngineName) == segment.ENGINES
    assert set(get_args(choices.BaseName)) == {*build.COMPACT_BASES, *build.VIT_SIZES}
    assert set(get_args(choices.Part)) == set(isic2018.FOLDERS)


def test_the_modules_that_act_on_them_hand_them_on() -> None:
    owners: dict[Any, tuple[str, ...]] = {
        boxes: ("BoxChoice",),
        build: ("Adapted", "BaseName"),
        calibration: ("CalibrationMode", "CalibrationScope"),
        datalists: ("Part",),
        hypergradient: ("Hypergradient",),
        nifti: ("SliceAxis",),
        prompt: ("PromptKind",),
        views: ("ViewKind",),
    }
    for module, names in owners.items():
        for name in names:
            assert getattr(module, name) is getattr(choices, name)


def test_they_load_nothing() -> None:
    code = "import sys; import amsam_med.choices; print(*[m for m in sys.modules if m.startswith('amsam_med')])"
    done = subprocess.run([sys.executable, "-c", code + "; assert 'torch' not in sys.modules"], capture_output=True)
    assert done.stdout.split() == [b"amsam_med", b"amsam_med.choices"]
    assert done.returncode == 0
