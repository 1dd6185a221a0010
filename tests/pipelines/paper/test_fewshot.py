"""The few-shot table: cells that agree with `amsam evaluate`, records that are not made twice, and what is printed."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from amsam_med import weights
from amsam_med.bundle import open_bundle
from amsam_med.cli.train import paper_settings
from amsam_med.data.datalists import few_shot_draw, folder_datalist, human_vikram_datalist, isic2018_datalist
from amsam_med.detect.scores import score_boxes
from amsam_med.detect.yolo import DetectorScores, YoloDetector
from amsam_med.evaluate import EvaluateOptions, evaluate
from amsam_med.model import build_amsam
from amsam_med.model.encoders import CompactImageEncoder
from amsam_med.synthetic import write_dermoscopy
from pipelines.markdown import write_block
from pipelines.paper import fewshot
from pipelines.paper.fewshot import NO_BOX, SHOTS, TABLE, TASKS, TRIALS, Field, Row, Study
from tests.conftest import REPOSITORY

QUICK = {"epochs": 1, "views": "none"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a small isic2018 of synthetic images."""
    root = tmp_path_factory.mktemp("data")
    for seed, part in enumerate(("train", "val", "test")):
        write_dermoscopy(root / "isic2018" / part, 5, seed=seed, size=(72, 96))
    return root


def study(data: Path, folder: Path) -> Study:
    return Study("isic2018", data, folder, "test", "tiny", weights.find("tiny"))


def record(**changes: Any) -> dict[str, Any]:
    plain = {"set": "isic2018", "part": "test", "row": TABLE[0].name, "detector": "none", "shots": 4, "seed": 0}
    measured = {"images": 400, "dice": 0.5, "seconds": 3.0, "settings": {"epochs": 3}, "detector_sha256": None}
    return {**plain, **measured, "base": "tiny-general", "base_sha256": "0123456789abcdef", **changes}


@pytest.mark.parametrize("detector", ["none", "shipped"])
def test_a_cell_scores_what_evaluate_scores(detector: str, labelled_folder: Path, tmp_path: Path) -> None:
    items, base_file = folder_datalist(labelled_folder), weights.find("tiny")
    detector_file = weights.find("lesion-detector") if detector == "shipped" else None
    settings = {**QUICK, "shots": 4, "prompt": "box" if detector_file else "none", "base_file": str(base_file)}
    settings["detector_file"] = None if detector_file is None else str(detector_file)
    trained = fewshot.train_cell("amsam_isic", items, tmp_path / "run", settings)
    field = Field(items, build_amsam("tiny", base_weights=base_file).image_encoder, tmp_path / "embeddings")
    scores = field.dice(trained.network, None if detector_file is None else field.boxes(detector_file))
    options = EvaluateOptions(adapter=tmp_path / "run" / "adapter.safetensors")
    summary = evaluate(labelled_folder, tmp_path / "scores", options).summary
    assert len(scores) == summary.images == 6
    assert statistics.fmean(scores) == pytest.approx(summary.dice, abs=2e-4)
    assert len(set(scores)) > 1


def test_what_is_on_record_is_not_run_again(data: Path, tmp_path: Path) -> None:
    rows = [Row("plain", "none", {**NO_BOX, **QUICK})]
    first = list(study(data, tmp_path).run(rows, [4], [0]))
    again = list(study(data, tmp_path).run(rows, [4], [0, 1]))
    other = list(study(data, tmp_path).run([rows[0]._replace(changes={**rows[0].changes, "epochs": 2})], [4], [0]))
    assert [(made["seed"], made["settings"]["epochs"]) for made in first + again + other] == [(0, 1), (1, 1), (0, 2)]
    assert fewshot.read_records(tmp_path) == first + again + other
    assert first[0]["images"] == 5
    assert 0 < first[0]["dice"] < 1
    assert first[0]["base_sha256"] == weights.known()["tiny"].sha256


def test_a_k_shot_detector_sees_the_drawn_images_alone_and_is_trained_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[set[str], set[str]]] = []

    def train_detector(train: Any, validation: Any, _options: Any) -> tuple[YoloDetector, DetectorScores]:
        seen.append(tuple({item["image"] for item in part.data} for part in (train, validation)))  # type: ignore[arg-type]
        detector = YoloDetector(input_size=64)
        return detector, DetectorScores(0.0, 0.0, score_boxes(detector, validation))

    monkeypatch.setattr(fewshot, "train_detector", train_detector)
    rows = [Row(name, "k-shot", {**QUICK, "calibration": name}) for name in ("none", "paper")]
    records = list(study(data, tmp_path).run(rows, [4], [3]))
    drawn = {item["image"] for item in few_shot_draw(isic2018_datalist(data / "isic2018", "train"), 4, seed=3)}
    assert seen == [(drawn, drawn)]
    assert len({made["detector_sha256"] for made in records}) == 1
    assert (tmp_path / "detectors" / "isic2018-test-k4-seed3.json").is_file()


def test_selection_never_sees_what_results_are_reported_on(data_root: Path) -> None:
    for name in TASKS:
        pool, scored = fewshot.open_lists(name, data_root, "val")
        opener = isic2018_datalist if name == "isic2018" else human_vikram_datalist
        reported = {item["image"] for item in opener(data_root / name, "test")}
        for_selection = [{item["image"] for item in part} for part in (pool, scored)]
        assert len(for_selection[1]) in (150, 40)
        assert not reported & (for_selection[0] | for_selection[1])
        assert not for_selection[0] & for_selection[1]
        assert {item["image"] for item in fewshot.open_lists(name, data_root, "test")[1]} == reported


@pytest.mark.parametrize("row", [*TABLE, *fewshot.trial_rows()], ids=lambda row: f"{row.name}, {row.detector}")
def test_rows_change_entries_of_the_training_alone(row: Row) -> None:
    parser = open_bundle("amsam_isic", "train", row.changes)  # raises for an unknown entry
    assert (parser.as_written("prompt") == "none") == (row.detector == "none")


def test_the_table_prints_means_deviations_and_missing_seeds() -> None:
    records = [record(seed=seed, dice=dice) for seed, dice in enumerate((0.5, 0.6, 0.7, 0.6, 0.6))]
    records += [record(row=TABLE[2].name, shots=8, dice=0.7), record(row=TABLE[2].name, shots=8, dice=0.8, seed=1)]
    lines = fewshot.render_table(records).splitlines()
    assert lines[0].startswith("**ISIC 2018**, mean Dice in % over 400 images")
    assert "base `tiny-general` (sha256 0123456789ab)" in lines[0]
    assert f"| {TABLE[0].name} | 60.0 ± 7.1 | - | - |" in lines
    assert f"| {TABLE[2].name} | - | 75.0 ± 7.1 (2) | - |" in lines
    assert "| *AM-SAM, as the paper prints it (SAM ViT-B)* | *66.3* | *73.6* | *71.9* |" in lines
    assert len([line for line in lines if line.startswith("|")]) == 2 + 2 + 2


def test_rows_that_differ_from_the_first_are_marked() -> None:
    base = (0.50, 0.60, 0.70, 0.60, 0.55)
    gains = {TABLE[1].name: (0.10, 0.11, 0.10, 0.09, 0.10), TABLE[2].name: (0.10, -0.11, 0.1, -0.09, 0.01)}
    records = [record(seed=seed, dice=dice) for seed, dice in enumerate(base)]
    for row, added in gains.items():
        records += [record(row=row, seed=seed, dice=base[seed] + gain) for seed, gain in enumerate(added)]
    lines = fewshot.render_table(records).splitlines()
    assert f"| {TABLE[1].name} | 69.0 ± 7.4† | - | - |" in lines
    assert f"| {TABLE[2].name} | 59.2 ± 12.4 | - | - |" in lines


def test_the_more_is_compared_the_less_is_called_different() -> None:
    first, other = TABLE[0].name, TABLE[1].name
    base = (0.50, 0.60, 0.70, 0.60, 0.55)
    near = [record(row=other, seed=seed, dice=dice + 0.01 * seed + 0.005) for seed, dice in enumerate(base)]
    cells = {(first, 4): [record(seed=seed, dice=dice) for seed, dice in enumerate(base)], (other, 4): near}
    assert fewshot.differing_cells(cells) == {(other, 4)}  # p = 0.02
    more = {(row.name, 4): near for row in TABLE[1:]}  # the smallest of eleven p values must be below 0.05 / 11
    assert fewshot.differing_cells({**cells, **more}) == set()


def test_records_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="come from 2 bases"):
        fewshot.render_table([record(), record(seed=1, base_sha256="other")])
    with pytest.raises(ValueError, match="differ in settings"):
        fewshot.render_table([record(), record(seed=1, settings={"epochs": 4})])


def test_trials_have_a_column_for_each_data_set_and_detector() -> None:
    first, second = list(TRIALS)[:2]
    records = [
        record(part="val", row=first, shots=8, detector="shipped", dice=0.6),
        record(part="val", row=second, shots=8, detector="k-shot", dice=0.4),
        record(part="test", row=first, shots=8, detector="shipped", dice=0.9),
    ]
    lines = fewshot.render_trials(records).splitlines()
    assert lines[0].endswith("| ISIC 2018, shipped, k = 8 | ISIC 2018, k-shot, k = 8 |")
    assert lines[2:] == [f"| {first} | 60.0 (1) | - |", f"| {second} | - | 40.0 (1) |"]


@pytest.mark.parametrize("name", ["few-shot", "trials"])
def test_the_document_has_the_marks(name: str, tmp_path: Path) -> None:
    document = shutil.copy(REPOSITORY / "docs" / "few-shot.md", tmp_path / "page.md")
    write_block(document, name, "new content")
    assert "new content" in document.read_text(encoding="utf-8")


def test_the_papers_numbers_are_there_for_every_number_of_shots() -> None:
    assert {len(values) for task in TASKS.values() for values in task.paper.values()} == {len(SHOTS)}
    assert TABLE[-1].changes == paper_settings()


def test_boxes_of_a_field_are_found_once(labelled_folder: Path, tmp_path: Path) -> None:
    field = Field(folder_datalist(labelled_folder)[:2], CompactImageEncoder(256), tmp_path)
    found = field.boxes(weights.find("lesion-detector"))
    assert found.boxes.shape == (2, 4)
    assert field.boxes(weights.find("lesion-detector")) is found


def test_the_commands_run_cells_and_render_them(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fewshot, "TABLE", (TABLE[0]._replace(changes={**TABLE[0].changes, **QUICK}),))
    words = ["run", "--data", str(data), "-o", str(tmp_path), "--set", "isic2018", "--base", "tiny", "-k", "4"]
    ran = CliRunner().invoke(fewshot.main, [*words, "--seeds", "1"], catch_exceptions=False)
    assert ran.exit_code == 0
    assert ran.output.startswith(f"isic2018 k=4 seed 0, {TABLE[0].name} [none]: Dice ")
    document = tmp_path / "page.md"
    document.write_text("<!-- begin few-shot -->\n<!-- end few-shot -->\n")
    rendered = CliRunner().invoke(fewshot.main, ["table", str(tmp_path), str(document)], catch_exceptions=False)
    assert rendered.exit_code == 0
    dice = f"{100 * fewshot.read_records(tmp_path)[0]['dice']:.1f}"
    assert f"| {TABLE[0].name} | {dice} (1) | - | - |\n" in document.read_text()
    assert CliRunner().invoke(fewshot.main, [*words, "--only", "nothing"]).exit_code == 2
