"""`amsam evaluate`: the table that it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from amsam_med import cli
from amsam_med.cli.evaluate import _print
from amsam_med.evaluate import EvaluateResult, Summary


def words(bundle: Path, data: Path, folder: Path, *more: str) -> list[str]:
    return ["evaluate", "--data", str(data), "-o", str(folder), "--bundle", str(bundle), *more]


def test_the_table_says_what_the_file_says(
    tiny_bundle: Path, labelled_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(tiny_bundle, labelled_folder, tmp_path, "--device", "cpu")) == 0
    printed = capsys.readouterr()
    written = json.loads((tmp_path / "scores.json").read_text())
    assert "images              6\n" in printed.out
    assert f"Dice                {100 * written['dice']:.1f} % (95 % interval " in printed.out
    assert f"Scores are in {tmp_path}.\n" in printed.out
    assert printed.err == ""  # no bar where nobody looks at it


def test_the_table_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = Summary(100, 0.8, (0.75, 0.85), 0.9, 0.7, (0.65, 0.75), 0.6, 12.34, 98, 2, 0, 0.81, 7)
    _print(EvaluateResult(tmp_path, "test", summary, 0.8))
    assert capsys.readouterr().out.splitlines()[:-1] == [
        "images              100 (test)",
        "Dice                80.0 % (95 % interval 75.0 to 85.0)",
        "median Dice         90.0 %",
        "IoU (Jaccard)       70.0 % (95 % interval 65.0 to 75.0)",
        "threshold Jaccard   60.0 %",
        "HD95                12.3 px (98 images)",
        "empty predictions   2",
        "empty truths        0",
        "flagged             7",
        "Dice at the logits  81.0 %",
    ]


def test_a_part_that_the_data_has_not_is_a_fault_to_mend(
    tiny_bundle: Path, labelled_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(tiny_bundle, labelled_folder, tmp_path / "scores", "--part", "val")) == 1
    printed = capsys.readouterr().err
    assert "part 'val' was asked for; expected no part" in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize("missing", [["--part", "third"], ["--adapter", "nowhere"], ["--device", "abacus"]])
def test_a_choice_that_does_not_exist_is_wrong_usage(
    missing: list[str], tiny_bundle: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    assert cli.main(words(tiny_bundle, labelled_folder, tmp_path, *missing)) == 2
