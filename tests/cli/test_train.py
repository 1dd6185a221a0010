"""`amsam train`: what it hands on, what it refuses, and what it prints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from amsam_med import cli
from amsam_med import train as train_module
from amsam_med.bundle import open_bundle, training_overrides
from amsam_med.cli.train import paper_settings
from amsam_med.errors import ConfigError, DataError
from amsam_med.train import TrainOptions, TrainResult, train
from amsam_med.trust import trust

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


def test_only_what_was_given_overrides_the_bundle(handed_on: list[TrainOptions], labelled_folder: Path) -> None:
    few = ["--views", "mirror", "--adapts", "stage", "--halves", "--epochs", "30"]
    assert cli.main(words(labelled_folder, Path("run"), *few)) == 0
    assert cli.main(words(labelled_folder, Path("run"))) == 0
    given = {"views": "mirror", "adapts": "stage", "halves": True, "epochs": 30}
    assert training_overrides(handed_on[0]) == given
    assert handed_on[1] == TrainOptions("amsam_isic")


@pytest.fixture
def own_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that wants other things than the shipped ones."""
    root = shutil.copytree(tiny_bundle, tmp_path / "own_bundle")
    file = root / "configs" / "train.yaml"
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**content, **OWN}, sort_keys=False))
    trust(root)
    return root


OWN = {"epochs": 2, "views": "none", "calibration": "learned", "shots": 4, "input_size": 64, "halves": False}


def test_a_bundle_is_trained_as_it_says(own_bundle: Path, labelled_folder: Path, tmp_path: Path) -> None:
    assert cli.main(words(labelled_folder, tmp_path / "run", "--bundle", str(own_bundle), "--seed", "3")) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["asked"] == {"seed": 3}
    assert record["settings"].items() >= OWN.items()


def test_the_help_shows_the_values_of_the_bundle(own_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--bundle", str(own_bundle), "--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "Passes over D1. [x>=1] [default: 2]" in words
    assert "[default: all-examples]" in words
    assert cli.main(["train", "--bundle", "nowhere", "--help"]) == 0
    assert "Passes over D1. [x>=1] [default: the bundle's]" in " ".join(capsys.readouterr().out.split())


def test_paper_is_the_bundles_own(
    handed_on: list[TrainOptions], own_bundle: Path, labelled_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_bundle / "configs" / "paper.yaml").write_text("epochs: 41\n")
    trust(own_bundle)
    assert cli.main(words(labelled_folder, Path("run"), "--paper", "--bundle", str(own_bundle))) == 0
    assert training_overrides(handed_on[0]) == {"epochs": 41}
    (own_bundle / "configs" / "paper.yaml").unlink()
    trust(own_bundle)
    assert cli.main(words(labelled_folder, Path("run"), "--paper", "--bundle", str(own_bundle))) == 1
    assert "has no configs/paper.yaml; copy it from a shipped bundle" in capsys.readouterr().err


def test_paper_sets_all_that_the_paper_says(handed_on: list[TrainOptions], labelled_folder: Path) -> None:
    assert cli.main(words(labelled_folder, Path("run"), "--paper", "--shots", "16", "--epochs", "100")) == 0
    chosen = training_overrides(handed_on[0])
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
            "box_choice": "surest",
        }.items()
    )
    open_bundle("amsam_isic", "train", chosen)  # raises for an unknown entry


def test_the_help_says_where_the_defaults_differ_from_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help"]) == 0
    _, _, after = capsys.readouterr().out.partition("Where --paper differs from the defaults of amsam_isic:\n")
    section = after.split("\n\n")[0]
    said = {line.split(maxsplit=1)[0]: " ".join(line.split()[1:]) for line in section.splitlines()}
    parser = open_bundle("amsam_isic", "train")
    ours = {name: parser.get_parsed_content(name) for name in paper_settings()}
    differing = {name: value for name, value in paper_settings().items() if ours[name] != value}
    assert said == {name: f"{value} instead of {ours[name]}" for name, value in differing.items()}
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
    chosen = training_overrides(handed_on[0])
    assert chosen["shots"] is None
    assert (chosen["base_file"], chosen["detector_file"]) == (str(base), str(detector))
    assert (chosen["cache_dir"], chosen["prompt"]) == ("kept", "box+point")
    assert chosen["device"] == torch.device("cpu")


def test_every_option_is_an_entry_of_the_shipped_configuration(
    handed_on: list[TrainOptions], labelled_folder: Path
) -> None:
    assert cli.main(words(labelled_folder, Path("run"), "--device", "cpu", "--prompt", "none")) == 0
    parser = open_bundle(handed_on[0].bundle, "train", training_overrides(handed_on[0]))  # raises for an unknown entry
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
    assert "use --prompt own or none" in printed


@pytest.mark.parametrize(
    ("prompt", "has_detector", "is_refused"),
    [(None, False, True), ("box+point", False, True), ("none", False, False), ("box", True, False)],
)
def test_a_bundle_without_a_detector_is_not_trained_on_boxes_by_either_face(
    prompt: str | None, has_detector: bool, is_refused: bool, own_bundle: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    config = own_bundle / "configs" / "train.yaml"
    if not has_detector:
        config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "detector_file": None}))
    trust(own_bundle)
    given, typed = ({}, []) if prompt is None else ({"prompt": prompt}, ["--prompt", prompt])
    # A folder of images that does not exist: what is not refused gets that far.
    with pytest.raises(ConfigError if is_refused else DataError, match="needs a detector" if is_refused else "nowhere"):
        train(tmp_path / "nowhere", tmp_path / "run", bundle=own_bundle, **given)
    if is_refused:
        assert cli.main(words(labelled_folder, tmp_path / "run", "--bundle", str(own_bundle), *typed)) == 2
        assert not (tmp_path / "run").exists()


def test_paper_is_an_option_from_python_too(own_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--paper means --epochs 100; got --epochs 30"):
        train(tmp_path, tmp_path / "run", bundle=own_bundle, paper=True, epochs=30)


def test_a_fault_of_the_data_is_one_line(
    tiny_bundle: Path, labelled_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(labelled_folder, tmp_path / "run", "--bundle", str(tiny_bundle), "--shots", "99")) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Error: shots = 99; the list has 6 examples")
    assert printed.count("\n") == 1
    assert not (tmp_path / "run").exists()
