"""An option is said once: the command line has the fields of the options, with their defaults, and nothing else."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

from amsam_med import evaluate, segment, train
from amsam_med.bundle_settings import as_configured
from amsam_med.cli.evaluate import evaluate as evaluate_command
from amsam_med.cli.segment import segment as segment_command
from amsam_med.cli.train import train as train_command
from amsam_med.domains import DOMAINS
from amsam_med.options import EvaluateOptions, SegmentOptions, TrainOptions, as_words, described

VERBS = [
    (segment_command, SegmentOptions, {"inputs", "output"}),
    (evaluate_command, EvaluateOptions, {"data", "output"}),
    (train_command, TrainOptions, {"data", "output"}),
]
FROM_PYTHON_ALONE = {"overrides", "panel_images"}


@pytest.mark.parametrize(("command", "options", "arguments"), VERBS)
def test_the_command_line_has_the_fields_and_nothing_else(
    command: click.Command, options: type, arguments: set[str]
) -> None:
    names = {one.name for one in fields(options)} - FROM_PYTHON_ALONE
    assert {one.name for one in described(options)} == names
    assert {str(one.name) for one in command.params} == names | arguments | {"trust_bundle"}


@pytest.mark.parametrize(("command", "options", "arguments"), VERBS)
def test_what_is_not_typed_is_the_fields_own_default(
    command: click.Command, options: type, arguments: set[str], tmp_path: Path
) -> None:
    given = ["--data", str(tmp_path)] if "data" in arguments else [str(tmp_path)]
    context = command.make_context("amsam", [*given, "-o", "out"])
    parsed = {name: value for name, value in context.params.items() if name not in arguments | {"trust_bundle"}}
    assert options(**parsed) == options()


@pytest.mark.parametrize(("command", "options", "arguments"), VERBS)
def test_the_help_says_what_the_field_says(
    command: click.Command, options: type, arguments: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    context = click.Context(command, info_name="amsam", terminal_width=200, max_content_width=200)
    printed = "".join(command.get_help(context).split())
    for one in described(options):
        assert "".join(one.option.help.split()) in printed, one.name
        assert one.flags.split("/")[0] in printed


def test_entries_of_the_bundle_are_those_of_its_configuration() -> None:
    configured = as_configured(DOMAINS[0].bundle, "train.yaml")
    entries = [one for one in described(TrainOptions) if one.option.kind == "entry"]
    assert len(entries) > 10
    assert {one.name for one in entries} <= configured.keys()
    assert {one.default for one in entries} == {None}  # the bundle decides


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"window": (40.0, 400.0), "slice_axis": 2, "formats": ()},
        {"has_report": False, "stores": True, "bundle": "b"},
    ],
)
def test_what_was_asked_can_be_typed_again(given: dict[str, Any], tmp_path: Path) -> None:
    options = SegmentOptions(**given)
    context = segment_command.make_context("amsam", [str(tmp_path), "-o", "out", *as_words(options)])
    typed = {name: value for name, value in context.params.items() if name in {one.name for one in fields(options)}}
    assert SegmentOptions(**typed) == options


def test_options_stay_where_they_were_imported_from() -> None:
    assert segment.SegmentOptions is SegmentOptions
    assert evaluate.EvaluateOptions is EvaluateOptions
    assert train.TrainOptions is TrainOptions
