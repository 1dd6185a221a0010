"""The paper's tables: cells that agree with `amsam evaluate`, restarts, comparisons, and what is printed."""

from __future__ import annotations

import csv
import json
import random
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon

from amsam_med import weights
from amsam_med.boxes import Detections
from amsam_med.bundle import TrainWorkflow, open_bundle
from amsam_med.choices import DETECTORLESS
from amsam_med.errors import ConfigError, DataError
from amsam_med.evaluate import EvaluateOptions, evaluate
from amsam_med.model.amsam import Prediction
from amsam_med.synthetic import write_dermoscopy
from pipelines.markdown import write_block
from pipelines.paper import run
from pipelines.paper.baselines import BASELINES
from pipelines.paper.baselines.sam import two_channels
from pipelines.paper.baselines.training import ViewedImages, course
from pipelines.paper.cells import Bench, Job, Workspace, run_cell, settings_of
from pipelines.paper.rendering import Entry, as_csv, as_latex, as_markdown, collect, compare_over_images, render
from pipelines.paper.store import ADAPT, AM_SAM, Cell, Identity, Measured, Store
from pipelines.paper.tables import IN_EVERY_STEP, Row, Table, read_table, table_names
from tests.conftest import REPOSITORY

QUICK: dict[str, Any] = {"epochs": 1, "views": "none"}
JOB = Job(AM_SAM, QUICK, "shipped")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a small isic2018 of synthetic images."""
    root = tmp_path_factory.mktemp("data")
    for seed, part in enumerate(("train", "val", "test")):
        write_dermoscopy(root / "isic2018" / part, 5, seed=seed, size=(72, 96))
    return root


@pytest.fixture
def workspace(data: Path, tmp_path: Path) -> Workspace:
    """Where a test's cells are run."""
    return Workspace(data, tmp_path, "tiny", weights.find("tiny"))


def identity(**changes: Any) -> Identity:
    plain = Identity("isic2018", AM_SAM, settings_of(JOB), "shipped", 4, 0, "tiny", "abc", "def", 256, False, 20)
    return replace(plain, **changes)


def cell(scores: Mapping[str, float], measured: Mapping[str, Any] | None = None, **changes: Any) -> Cell:
    made = Measured(
        dice=statistics.fmean(scores.values()),
        train_seconds=10.0,
        detector_seconds=0.0,
        milliseconds=50.0,
        peak_megabytes=100.0,
        trained_parameters=1000,
        parameters=2_000_000,
        origin="tiny",
        variant="",
        device="a processor",
        threads=1,
        is_processor_time=True,
        commit="0123456789ab",
        date="2026-01-02T03:04:05+00:00",
    )
    return Cell(identity(**changes), replace(made, **(measured or {})), scores)


def scores(mean: float, seed: int, count: int = 20) -> dict[str, float]:
    drawn = random.Random(seed)
    return {f"image{i:02}": mean + drawn.uniform(-0.1, 0.1) for i in range(count)}


def small_table() -> Table:
    rows = (
        Row("ours", JOB, "sam", "AM-SAM", is_reference=True),
        Row("theirs", Job("sam", {}), "sam", "SAM"),
        Row("not run", Job("ssp", {}), "random"),
    )
    paper = {"isic2018": {"AM-SAM": {4: 66.3}}}
    return Table("small", "A small table", ("isic2018",), (4, 8), rows, paper, "Table 3")


@pytest.fixture
def filled(tmp_path: Path) -> Store:
    """Two seeds of one row, and a system that is used as it is."""
    store = Store(tmp_path)
    for seed, mean in enumerate((0.7, 0.8)):
        store.add(cell(scores(mean, seed), seed=seed))
    theirs = cell(scores(0.5, 5), method="sam", settings={}, detector="none", detector_sha256="", shots=0)
    store.add(theirs)
    return store


@pytest.mark.parametrize("detector", ["none", "shipped"])
def test_a_cell_scores_what_evaluate_scores(detector: Any, workspace: Workspace, data: Path, tmp_path: Path) -> None:
    bench = Bench("isic2018", workspace)
    settings = QUICK if detector == "shipped" else {**QUICK, "prompt": "none"}
    made = bench.run(Job(AM_SAM, settings, detector), 4, 0)
    overrides = {**settings, "dataset_dir": str(data / "isic2018"), "output_dir": str(tmp_path / "run"), "shots": 4}
    overrides |= {"base_file": str(workspace.base_file)} | ({} if detector == "shipped" else {"detector_file": None})
    workflow = TrainWorkflow(open_bundle("amsam_isic", "train", overrides))
    workflow.initialize()
    workflow.trainer.run()
    options = EvaluateOptions(adapter=tmp_path / "run" / "adapter.safetensors", part="test")
    summary = evaluate(data / "isic2018", tmp_path / "scores", options).summary
    assert made.measured.dice == pytest.approx(summary.dice, abs=2e-4)
    assert len(made.scores) == summary.images == 5
    assert made.measured.trained_parameters == 510_242
    assert made.measured.train_seconds > 0
    assert made.measured.milliseconds > 0


def test_what_is_on_record_is_not_run_again_not_even_elsewhere(workspace: Workspace, tmp_path: Path) -> None:
    store = Store(tmp_path)
    bench = Bench("isic2018", workspace)
    assert run_cell(bench, store, JOB, 4, 0) is not None
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "results.sqlite").rename(tmp_path / "elsewhere" / "results.sqlite")
    moved = Store(tmp_path / "elsewhere")
    assert run_cell(bench, moved, JOB, 4, 0) is None
    assert len(moved.cells()) == 1
    assert moved.cells()[0].identity == bench.identity(JOB, 4, 0)
    assert bench.identity(JOB, 4, 1) not in moved
    assert bench.identity(JOB._replace(settings={**QUICK, "alpha": 0.6}), 4, 0) not in moved


def test_a_system_used_as_it_is_has_one_cell_for_all_shots_and_seeds(workspace: Workspace) -> None:
    bench = Bench("isic2018", workspace)
    assert bench.identity(Job("sam", {}), 4, 0) == bench.identity(Job("sam", {}), 16, 3)
    assert bench.identity(Job("sam-box", {}, "k-shot"), 4, 0) != bench.identity(Job("sam-box", {}, "k-shot"), 8, 0)


@pytest.mark.parametrize(("method", "detector"), [("sam", "none"), ("sam-box", "shipped"), ("u-net", "none")])
def test_a_baseline_is_a_cell_like_any_other(method: str, detector: Any, workspace: Workspace) -> None:
    settings = {"passes": 1, "input_size": 64} if BASELINES[method].recipe else {}
    made = Bench("isic2018", workspace).run(Job(method, settings, detector), 4, 0)
    assert len(made.scores) == 5
    assert 0 <= made.measured.dice <= 1
    assert (made.measured.trained_parameters > 0) == (method == "u-net")
    assert made.identity.base == ("" if method == "u-net" else "tiny")
    assert made.identity.input_size == (64 if method == "u-net" else 256)


def test_the_encoder_in_every_step_gives_the_same_scores(workspace: Workspace) -> None:
    bench, plain = Bench("isic2018", workspace), Job(AM_SAM, {**QUICK, "prompt": "none"})
    slow = plain._replace(settings={**plain.settings, "encode": IN_EVERY_STEP})
    once, always = (bench.run(job, 4, 0) for job in (plain, slow))
    assert always.measured.dice == pytest.approx(once.measured.dice, abs=1e-4)
    assert once.identity.key != always.identity.key


def test_selection_and_report_have_cells_of_their_own(workspace: Workspace) -> None:
    shown, hidden = (Bench("isic2018", workspace, part).identity(JOB, 4, 0) for part in ("test", "val"))
    assert (shown.data_set, hidden.data_set) == ("isic2018", "isic2018/val")


@pytest.mark.parametrize("profile", ["full", "cpu"])
@pytest.mark.parametrize("name", table_names())
def test_every_table_names_what_exists(name: str, profile: str) -> None:
    table = read_table(name, profile)
    settings = [settings_of(row.job) for row in table.rows]  # raises for an unknown entry
    keys = [(row.job.method, row.job.detector, setting) for row, setting in zip(table.rows, settings, strict=True)]
    assert all(key not in keys[:i] for i, key in enumerate(keys))
    assert sum(row.is_reference for row in table.rows) == 1
    named = {row.paper for row in table.rows if row.paper}
    printed = {row for numbers in table.paper.values() for row in numbers}
    assert printed <= named


def test_every_baseline_stands_in_the_papers_tables() -> None:
    assert {row.job.method for row in read_table("table1_tiktok").rows} == {AM_SAM, *BASELINES}
    assert read_table("table1_tiktok").paper["tiktok"]["SSP"] == {4: 58.9, 8: 76.5}


def test_the_cpu_profile_says_what_it_changes() -> None:
    row = next(row for row in read_table("table3_isic", "cpu").rows if row.name == "DeepLabV3")
    assert (row.job.settings["input_size"], row.remark) == (128, "128 px")


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="no table 'table9'; expected one of adaptation, few-shot, no-detector, ours"):
        read_table("table9")


def test_a_comparison_is_wilcoxons_over_images_of_shared_seeds() -> None:
    reference = [cell(scores(0.7, seed), seed=seed) for seed in (0, 1)]
    other = [cell(scores(0.6, seed + 10), seed=seed) for seed in (1, 2)]
    p, difference = compare_over_images(other, reference)
    names = sorted(reference[1].scores)
    expected = np.array([other[0].scores[name] - reference[1].scores[name] for name in names])
    assert p == pytest.approx(wilcoxon(expected).pvalue)
    assert difference == pytest.approx(100 * expected.mean())
    assert compare_over_images(reference, reference) == (1.0, 0.0)
    assert compare_over_images([cell(scores(0.6, 9), seed=7)], reference) == (None, None)
    assert compare_over_images([replace(one, scores={}) for one in reference], reference) == (None, None)


def few_shot_cells(table: Table, dice: Mapping[str, Sequence[float]], shots: int = 4) -> list[Cell]:
    """A cell for each row's name and Dice, without the scores of images."""
    cells = []
    for name, values in dice.items():
        job = next(row.job for row in table.rows if row.name == name)
        plain = identity(settings=settings_of(job), detector=job.detector, shots=shots)
        cells += [Cell(replace(plain, seed=seed), Measured(one, 10.0), {}) for seed, one in enumerate(values)]
    return cells


def test_rows_that_differ_over_the_draws_are_marked(tmp_path: Path) -> None:
    table, store = read_table("few-shot"), Store(tmp_path)
    first, better, unsure, few = (row.name for row in table.rows[:4])
    base = (0.50, 0.60, 0.70, 0.60, 0.55)
    gains = {first: (0.0,) * 5, better: (0.10, 0.11, 0.10, 0.09, 0.10), unsure: (0.10, -0.11, 0.1, -0.09, 0.01)}
    dice = {name: [one + gain for one, gain in zip(base, added, strict=True)] for name, added in gains.items()}
    store.add(*few_shot_cells(table, {**dice, few: [0.7, 0.8]}))
    lines, columns = collect(table, store, "tiny", (4,))
    text = as_markdown(table, lines, columns, "tiny")
    assert f"| **{first}** | 59.0 ± 7.4 (5) [65.1] | - [89.1] |" in text
    assert f"| {better} | 69.0 ± 7.4 (5) ▲" in text
    assert f"| {unsure} | 59.2 ± 12.4 (5) = | - |" in text
    assert f"| {few} | 75.0 ± 7.1 (2) | - |" in text
    assert "paired t-tests over the draws of examples with Holm's correction over the table" in text


def test_the_more_is_compared_the_less_is_called_different(tmp_path: Path) -> None:
    table, store = read_table("few-shot"), Store(tmp_path)
    first, *others = (row.name for row in table.rows)
    base = (0.50, 0.60, 0.70, 0.60, 0.55)
    near = [dice + 0.01 * seed + 0.005 for seed, dice in enumerate(base)]
    store.add(*few_shot_cells(table, {first: base, others[0]: near}))
    assert collect(table, store, "tiny", (4,))[0][1].entries["isic2018", 4].differs  # p = 0.02
    store.add(*few_shot_cells(table, dict.fromkeys(others, near)))
    lines, _ = collect(table, store, "tiny", (4,))  # the smallest of nine p values must be below 0.05 / 9
    assert len(lines) == 10
    assert not any(line.entries["isic2018", 4].differs for line in lines)


def test_lines_of_json_of_earlier_versions_are_cells(tmp_path: Path) -> None:
    table = read_table("few-shot")
    row = next(one for one in table.rows if one.paper == "AM-SAM")
    plain = {"set": "isic2018", "shots": 8, "seed": 1, "base": "tiny", "base_sha256": "abc", "images": 20, "dice": 0.7}
    settings = {name: value for name, value in settings_of(row.job).items() if name != "rank"}
    few_shot = {**plain, "part": "test", "row": "as it was called", "detector": "shipped", "settings": settings}
    few_shot |= {"detector_sha256": "def", "d2_dice": 0.8, "best_epoch": 5, "train_seconds": 9.0, "seconds": 11.0}
    way = read_table("adaptation").rows[1]
    adapted = {**plain, "way": "W", "settings": settings_of(way.job), "chosen": "", "train_seconds": 9.0}
    (tmp_path / "cells.jsonl").write_text(json.dumps(few_shot) + "\n", encoding="utf-8")
    (tmp_path / "adaptation.jsonl").write_text(json.dumps(adapted) + "\n", encoding="utf-8")
    for _ in range(2):  # opened again, they are taken in once
        found = Store(tmp_path).cells()
        assert {(one.identity.method, one.identity.data_set) for one in found} == {
            (AM_SAM, "isic2018"),
            (ADAPT, "isic2018/val"),
        }
        assert len(found) == 2
    document = tmp_path / "page.md"
    document.write_text("<!-- begin few-shot -->\n<!-- end few-shot -->\n", encoding="utf-8")
    render(table, Store(tmp_path), "tiny", tmp_path / "tables", document=document)
    text = document.read_text(encoding="utf-8")
    assert f"| {row.name} | - [66.3] | 70.0 (1) [73.6] | - [71.9] | - [90.4] | - [92.9] | - [93.3] |" in text
    assert "1 cells, 1 of them with neither date nor machine on record; sha256 of the base abc." in text
    lines, _ = collect(read_table("adaptation"), Store(tmp_path), "tiny", (8,))
    assert [(line.row.name, line.entries["isic2018", 8].mean) for line in lines] == [(way.name, 70.0)]


def test_a_run_of_an_earlier_version_is_not_run_again(workspace: Workspace, tmp_path: Path) -> None:
    bench, job = Bench("isic2018", workspace, "val"), Job(ADAPT, {"parts": "decoder", "steps": 1})
    wanted = bench.identity(job, 2, 0)
    record = {"set": "isic2018", "way": "W", "settings": settings_of(job), "shots": 2, "seed": 0, "base": "tiny"}
    record |= {"base_sha256": bench.base_sha256, "images": 5, "dice": 0.5, "chosen": "", "train_seconds": 1.0}
    (tmp_path / "adaptation.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    assert wanted in Store(tmp_path)
    assert run_cell(bench, Store(tmp_path), job, 2, 0) is None


@pytest.mark.parametrize("name", ["few-shot", "trials", "adaptation", "no-detector"])
def test_the_document_has_the_marks(name: str, tmp_path: Path) -> None:
    document = Path(shutil.copy(REPOSITORY / "docs" / "few-shot.md", tmp_path / "page.md"))
    write_block(document, name, "new content")
    assert "new content" in document.read_text(encoding="utf-8")


def test_rows_without_a_detector_take_no_box() -> None:
    rows = read_table("few-shot").rows
    assert all((settings_of(row.job)["prompt"] in DETECTORLESS) == (row.job.detector == "none") for row in rows)


def test_a_table_prints_means_deviations_and_the_papers_numbers(filled: Store) -> None:
    lines, columns = collect(small_table(), filled, "tiny", (4, 8))
    text = as_markdown(small_table(), lines, columns, "tiny")
    values = [100 * made.measured.dice for made in filled.cells() if made.identity.method == AM_SAM]
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    assert f"| **ours** | {mean:.1f} ± {deviation:.1f} (2) [66.3] | - |" in text
    theirs = 100 * next(made.measured.dice for made in filled.cells() if made.identity.method == "sam")
    assert f"| theirs | {theirs:.1f} ▼ | {theirs:.1f} |" in text
    assert "not run" not in text
    assert "3 cells, 2026-01-02, on a processor, 1 thread; times are the processor's; commit 0123456789ab" in text


def test_latex_and_csv_say_the_same(filled: Store) -> None:
    lines, columns = collect(small_table(), filled, "tiny", (4,))
    rows = list(csv.DictReader(as_csv(lines).splitlines()))
    assert [row["row"] for row in rows] == ["ours", "theirs"]
    assert rows[0]["paper_percent"] == "66.3"
    assert float(rows[1]["p"]) < 0.001
    latex = as_latex(small_table(), lines, columns, "tiny")
    assert latex.count(r"\\") == 3
    assert "than ``ours'' (Wilcoxon" in latex
    assert rf"theirs & ${float(rows[1]['dice_percent']):.1f}^{{\ast}}$ \\" in latex


def test_cells_of_two_test_sets_are_not_mixed(filled: Store) -> None:
    filled.add(cell(scores(0.5, 1, count=3), seed=4, images=3))
    with pytest.raises(DataError, match=r"the cells of isic2018 differ in images \(20, 3\)"):
        collect(small_table(), filled, "tiny", (4,))


@pytest.mark.parametrize("changes", [{"base_sha256": "another"}, {"detector_sha256": "another"}])
def test_cells_of_other_weights_are_not_mixed(changes: dict[str, str], filled: Store) -> None:
    filled.add(cell(scores(0.5, 1), seed=4, **changes))
    with pytest.raises(DataError, match=f"the cells of isic2018 differ in {next(iter(changes))}"):
        collect(small_table(), filled, "tiny", (4,))


def test_an_empty_place_is_no_number() -> None:
    assert Entry().mean is None
    assert not Entry().differs


@pytest.mark.parametrize(
    ("p", "difference", "differs"), [(1e-9, 0.06, True), (1e-9, -0.06, True), (1e-9, 0.04, False), (0.06, 3.0, False)]
)
def test_a_difference_counts_if_it_is_sure_and_can_be_seen(p: float, difference: float, differs: bool) -> None:
    assert Entry(70.0, 1.0, 3, p, difference).differs is differs


def test_the_command_runs_renders_and_is_done_the_second_time(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["table3_isic", "--data", str(data), "-o", str(tmp_path), "--base", "tiny", "--device", "cpu"]
    words += ["--seeds", "1", "--shots", "4", "8", "--rows", "SAM, default prompt"]
    run.main(words)
    assert capsys.readouterr().out.startswith("isic2018 k=0 seed 0, SAM, default prompt: Dice ")
    run.main(words)
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in written] == [f"table3_isic-tiny.{suffix}" for suffix in ("md", "tex", "csv")]
    assert "SAM, default prompt" in written[0].read_text(encoding="utf-8")


def test_a_missing_data_set_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder tiktok"):
        run.main(["table1_tiktok", "--data", str(data), "-o", str(tmp_path), "--base", "tiny"])
    with pytest.raises(DataError, match="no row is left"):
        run.main(["table3_isic", "--data", str(data), "-o", str(tmp_path), "--base", "tiny", "--rows", "nothing"])


def test_a_table_of_which_nothing_is_on_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"results\.sqlite holds nothing of table3_isic on tiny; run it"):
        run.main(["table3_isic", "-o", str(tmp_path), "--base", "tiny", "--render-only"])
    assert not (tmp_path / "tables").exists()


def test_sams_mask_follows_the_prompt() -> None:
    logits = torch.arange(4.0)[None, :, None, None].expand(2, 4, 1, 1)
    prediction = Prediction(logits, torch.tensor([[0.9, 0.1, 0.5, 0.3]] * 2))
    found = Detections(torch.zeros(2, 4), torch.ones(2), torch.tensor([True, False]))
    assert two_channels(prediction, None)[:, 1].flatten().tolist() == [2, 2]
    assert two_channels(prediction, found)[:, 1].flatten().tolist() == [0, 2]
    assert not two_channels(prediction, found)[:, 0].any()


def test_the_rate_rises_then_falls_to_nothing() -> None:
    share = course(100, warm_up=250)  # no more than a quarter of the run
    assert [share(0), share(24)] == [pytest.approx(1 / 25), pytest.approx(1.0)]
    assert share(25) == 1
    assert share(100) == 0
    assert all(share(i) > share(i + 1) for i in range(25, 100))


def test_views_turn_images_and_labels_alike() -> None:
    images = torch.rand(2, 3, 8, 8)
    viewed = ViewedImages(images, (images[:, :1] > 0.5).to(torch.uint8), "all")
    assert len(viewed) == 16
    for item in (viewed[i] for i in range(len(viewed))):
        assert torch.equal(item["label"], (item["image"][:1] > 0.5).to(torch.uint8))
