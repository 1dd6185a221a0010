"""`amsam train`: what it hands on, what it refuses, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from amsam_med import cli
from amsam_med import train as train_module
from amsam_med.bundle import open_bundle
from amsam_med.cli.train import paper_settings
from amsam_med.train import TrainOptions, TrainResult

FEW = ["--shots", "4", "--epochs", "2", "--views", "none", "--input-size", "64"]


@pytest.fixture
def handed_on(monkeypatch: pytest.MonkeyPatch) -> list[TrainOptions]:
    """Options with which the verb was called, instead of a training."""
    calls: list[TrainOptions] = []

    def record(data: Path, folder: Path, options: TrainOptions, *_: Any) -> TrainResult:
        calls.append(options)
        return TrainResult(folder, folder / "adapter.safetensors", 0.5, 3, 1.0, 510_242)

    monkeypatch.setattr(train_module, "train", record)
    return calls


def words(data: Path, folder: Path, *more: str) -> list[str]:
    return ["train", "--data", str(data), "-o", str(folder), *more]


def test_a_run_ends_with_its_result_and_the_next_command(
    tiny_bundle: Path, labelled_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(labelled_folder, tmp_path / "run", "--bundle", str(tiny_bundle), *FEW)) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("best Dice on D2 ")
    assert "trained parameters  510,242" in printed.out
    assert f"--adapter {tmp_path}/run/adapter.safetensors --bundle {tiny_bundle}\n" in printed.out
    assert printed.err == ""  # no bar where nobody looks at it
    assert (tmp_path / "run" / "panel.png").is_file()


def test_the_printed_command_scores_the_adapter(
    tiny_bundle: Path, labelled_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(tiny_bundle / "base.safetensors")
    chosen = ["--bundle", str(tiny_bundle), "--base-weights", base]
    assert cli.main(words(labelled_folder, tmp_path / "run", *chosen, *FEW)) == 0
    model = capsys.readouterr().out.partition("--adapter ")[2].split()
    scoring = ["evaluate", "--data", str(labelled_folder), "-o", str(tmp_path / "scores"), "--adapter", *model]
    assert cli.main(scoring) == 0
    assert "images              6\n" in capsys.readouterr().out


def test_a_second_run_in_the_same_folder_is_refused_and_can_be_resumed(
    tiny_bundle: Path, labelled_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words(labelled_folder, tmp_path / "run", "--bundle", str(tiny_bundle), *FEW)
    assert cli.main(command) == 0
    assert cli.main(command) == 1
    assert "already holds a run; give --resume to continue it" in capsys.readouterr().err
    assert cli.main([*command, "--resume"]) == 0


def test_defaults_are_those_of_the_shipped_configuration(handed_on: list[TrainOptions], labelled_folder: Path) -> None:
    assert cli.main(words(labelled_folder, Path("run"))) == 0
    assert handed_on[0].bundle == "amsam_isic"
    assert not handed_on[0].resume
    parser = open_bundle("amsam_isic", "train")
    assert handed_on[0].overrides == {name: parser[name] for name in handed_on[0].overrides}
    assert {"shots", "seed", "prompt", "calibration", "epochs", "batch_size"} <= handed_on[0].overrides.keys()


def test_views_and_what_is_adapted_are_the_bundles_unless_they_are_given(
    handed_on: list[TrainOptions], labelled_folder: Path
) -> None:
    assert cli.main(words(labelled_folder, Path("run"), "--views", "mirror", "--adapts", "stage", "--halves")) == 0
    assert cli.main(words(labelled_folder, Path("run"))) == 0
    given, not_given = (options.overrides for options in handed_on)
    assert (given["views"], given["adapts"], given["halves"]) == ("mirror", "stage", True)
    assert not {"views", "adapts", "halves"} & not_given.keys()


def test_paper_sets_all_that_the_paper_says(handed_on: list[TrainOptions], labelled_folder: Path) -> None:
    assert cli.main(words(labelled_folder, Path("run"), "--paper", "--shots", "16", "--epochs", "100")) == 0
    chosen = handed_on[0].overrides
    assert (
        chosen.items()
        >= {
            "shots": 16,
            "epochs": 100,
            "batch_size": 1,
            "lower_rate": 5e-3,
            "upper_rate": 1e-3,
            "weight_decay": 0.1,
            "lambda_dice": 0.8,
            "hypergradient": "first-order",
            "prompt": "box",
            "calibration": "paper",
            "alpha": 0.7,
            "views": "none",
            "adapts": "decoder",
            "halves": True,
            "box_jitter": 0.0,
        }.items()
    )
    open_bundle("amsam_isic", "train", chosen)  # raises for an unknown entry


def test_the_help_says_where_the_defaults_differ_from_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help"]) == 0
    section = capsys.readouterr().out.split("Where --paper differs from the defaults:\n")[1].split("\n\n")[0]
    said = {line.split(maxsplit=1)[0]: " ".join(line.split()[1:]) for line in section.splitlines()}
    parser = open_bundle("amsam_isic", "train")
    differing = {name: value for name, value in paper_settings().items() if parser[name] != value}
    assert said == {name: f"{value} instead of {parser[name]}" for name, value in differing.items()}
    assert said


def test_what_contradicts_the_paper_is_named(labelled_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contrary = ["--epochs", "30", "--views", "all", "--calibration", "paper"]
    assert cli.main(words(labelled_folder, Path("run"), "--paper", *contrary)) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "--paper means --epochs 100, --views none; got --epochs 30, --views all." in printed
    assert "--calibration" not in printed


def test_choices_become_entries_of_the_configuration(
    handed_on: list[TrainOptions], tiny_bundle: Path, labelled_folder: Path
) -> None:
    base, detector = tiny_bundle / "base.safetensors", tiny_bundle / "models" / "detector.safetensors"
    files = ["--base-weights", str(base), "--detector", str(detector), "--cache", "kept", "--device", "cpu"]
    assert cli.main(words(labelled_folder, Path("run"), *files, "--shots", "all", "--prompt", "box+point")) == 0
    chosen = handed_on[0].overrides
    assert chosen["shots"] is None
    assert (chosen["base_file"], chosen["detector_file"]) == (str(base), str(detector))
    assert (chosen["cache_dir"], chosen["prompt"]) == ("kept", "box+point")
    assert chosen["device"] == torch.device("cpu")


def test_every_option_is_an_entry_of_the_shipped_configuration(
    handed_on: list[TrainOptions], labelled_folder: Path
) -> None:
    assert cli.main(words(labelled_folder, Path("run"), "--device", "cpu", "--prompt", "none")) == 0
    parser = open_bundle(handed_on[0].bundle, "train", handed_on[0].overrides)  # raises for an unknown entry
    assert parser["detector_file"] is None


@pytest.mark.parametrize("shots", ["1", "0", "-4", "2.5", "many"])
def test_shots_that_cannot_be_halved_are_wrong_usage(
    shots: str, labelled_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(labelled_folder, Path("run"), "--shots", shots)) == 2
    assert f"'{shots}' is neither a number of at least 2" in capsys.readouterr().err


@pytest.mark.parametrize("prompt", ["box", "box+point"])
def test_boxes_without_a_detector_are_refused_with_the_reason(
    prompt: str, labelled_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(labelled_folder, Path("run"), "--detector", "none", "--prompt", prompt)) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert f"--prompt {prompt} needs a detector" in printed
    assert "use --prompt none" in printed


def test_a_fault_of_the_data_is_one_line(
    tiny_bundle: Path, labelled_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(labelled_folder, tmp_path / "run", "--bundle", str(tiny_bundle), "--shots", "99")) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Error: shots = 99; the list has 6 examples")
    assert printed.count("\n") == 1
    assert not (tmp_path / "run").exists()
