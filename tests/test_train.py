"""Runs on tiny settings: what they leave behind, and that an interrupted one ends like any other."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from amsam_med import open_model, segment
from amsam_med import train as train_module
from amsam_med.boxes import box_from_mask
from amsam_med.bundle import open_bundle, training_overrides
from amsam_med.checkpoint import read_adapter
from amsam_med.data.readers import read_mask
from amsam_med.data.transforms import restore_original
from amsam_med.errors import ConfigError, DataError, WeightsError
from amsam_med.model import AmSam
from amsam_med.model.amsam import Prediction
from amsam_med.plots import PanelRow
from amsam_med.threads import kept_threads
from amsam_med.train import TrainOptions, TrainResult, train
from tests.small_bundle import INPUT_SIZE

FILES = {
    "adapter.safetensors",
    "checkpoint.pt",
    "curves.png",
    "history.csv",
    "panel.png",
    "run.json",
    "split.json",
}
SETTINGS = {"shots": 4, "epochs": 2, "views": "none"}
ALL_THAT_IS_RANDOM = {"shots": 5, "epochs": 4, "views": "none", "box_jitter": 0.1, "seed": 7}
"""Five examples: D1 has three and D2 two, so that an epoch ends in the middle of a pass over D2."""


class Interruption(Exception):
    """Stands for a power cut."""


def run(bundle: Path, data: Path, folder: Path, resume: bool = False, **overrides: Any) -> TrainResult:
    return train(data, folder, TrainOptions(str(bundle), {**SETTINGS, **overrides}, resume))


def interrupt_after(kept: int, bundle: Path, data: Path, folder: Path, **overrides: Any) -> None:
    """Train for some epochs, and die before the next one is saved."""

    def die(epoch: int, _epochs: int, _dice: float) -> None:
        if epoch > kept:
            raise Interruption

    with pytest.raises(Interruption):
        train(data, folder, TrainOptions(str(bundle), {**SETTINGS, **overrides}), None, die)


@pytest.fixture(scope="module")
def finished(
    tiny_bundle: Path, labelled_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainResult, dict[str, list[tuple[Any, ...]]]]:
    """A run of two epochs, and what was told about it."""
    told: dict[str, list[tuple[Any, ...]]] = {"encoded": [], "epochs": []}
    result = train(
        labelled_folder,
        tmp_path_factory.mktemp("run") / "new",
        TrainOptions(str(tiny_bundle), SETTINGS),
        lambda *progress: told["encoded"].append(progress),
        lambda *progress: told["epochs"].append(progress),
    )
    return result, told


def history_of(folder: Path) -> list[dict[str, float]]:
    rows = csv.DictReader((folder / "history.csv").read_text().splitlines())
    return [{name: float(value) for name, value in row.items()} for row in rows]


def is_same_adapter(one: Path, other: Path) -> bool:
    """Whether all tensors, bit by bit, and all records are equal; safetensors orders its header anew each time."""
    tensors, others = load_file(one), load_file(other)
    is_same = tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)
    return is_same and read_adapter(one) == read_adapter(other)


def test_the_run_folder_is_complete(finished: tuple[TrainResult, Any]) -> None:
    folder = finished[0].folder
    assert {path.name for path in folder.iterdir()} == FILES
    for name in ("curves.png", "panel.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 300


def test_the_result_is_the_best_epoch_of_the_history(finished: tuple[TrainResult, Any]) -> None:
    result, told = finished
    history = history_of(result.folder)
    best = max(history, key=lambda row: row["d2_dice"])
    assert [row["epoch"] for row in history] == [1, 2]
    assert (result.best_dice, result.best_epoch) == (best["d2_dice"], best["epoch"])
    assert told["epochs"] == [(row["epoch"], 2, row["d2_dice"]) for row in history]
    assert read_adapter(result.adapter)[1]["d2_dice"] == best["d2_dice"]


def test_both_halves_are_told_while_they_are_encoded(finished: tuple[TrainResult, Any]) -> None:
    assert finished[1]["encoded"] == [(2, 2), (2, 2)]


def test_the_learning_rate_falls_to_zero_by_the_papers_schedule(finished: tuple[TrainResult, Any]) -> None:
    rates = [row["lower_rate"] for row in history_of(finished[0].folder)]
    assert rates == pytest.approx([0.001 * 0.5**0.9, 0.0])


def test_examples_and_seeds_are_on_record(finished: tuple[TrainResult, Any], labelled_folder: Path) -> None:
    split = json.loads((finished[0].folder / "split.json").read_text())
    drawn = {Path(item["image"]) for item in split["d1"] + split["d2"]}
    assert len(split["d1"]) == len(split["d2"]) == 2
    assert len(drawn) == 4
    assert drawn <= set((labelled_folder / "images").iterdir())
    assert (split["settings"]["seed"], split["settings"]["shots"]) == (0, 4)
    assert len(split["settings"]["detector_sha256"]) == 64


def test_the_run_record_says_what_a_reader_needs(finished: tuple[TrainResult, Any]) -> None:
    record = json.loads((finished[0].folder / "run.json").read_text())
    assert record["examples"] == {"d1": 2, "d2": 2}
    assert record["best_d2_dice"] == finished[0].best_dice
    assert record["trained_parameters"] == finished[0].trained_parameters == 510_242  # the paper's, with C = 1
    assert record["settings"].items() >= {"base": "tiny", "prompt": "box", "seed": 0, "epochs": 2}.items()
    assert {"torch", "monai", "amsam-med"} <= record["versions"].keys()


def test_the_adapter_is_not_where_it_started(finished: tuple[TrainResult, Any], tiny_bundle: Path) -> None:
    base, trained = load_file(tiny_bundle / "base.safetensors"), load_file(finished[0].adapter)
    shared = base.keys() & trained.keys()
    assert "prompt_encoder.no_mask_embed.weight" in shared
    unchanged = {name for name in shared if torch.equal(base[name], trained[name])}
    assert all("iou_prediction_head" in name for name in unchanged)  # no loss reaches it


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_an_interrupted_run_ends_like_any_other(
    kept: int, tiny_bundle: Path, labelled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "CHECKPOINT_EVERY", 1)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(tiny_bundle, labelled_folder, whole, **ALL_THAT_IS_RANDOM)
    interrupt_after(kept, tiny_bundle, labelled_folder, parts, **ALL_THAT_IS_RANDOM)
    assert (parts / "checkpoint.pt").exists() == (kept > 0)
    run(tiny_bundle, labelled_folder, parts, resume=True, **ALL_THAT_IS_RANDOM)
    assert (parts / "history.csv").read_bytes() == (whole / "history.csv").read_bytes()
    assert is_same_adapter(parts / "adapter.safetensors", whole / "adapter.safetensors")
    lasts = [torch.load(folder / "checkpoint.pt", weights_only=True)["adapter"] for folder in (whole, parts)]
    torch.testing.assert_close(*lasts, rtol=0, atol=0)  # also where the best epoch is an early one


def test_a_resumed_run_does_not_repeat_what_is_saved(
    tiny_bundle: Path, labelled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "CHECKPOINT_EVERY", 1)
    interrupt_after(2, tiny_bundle, labelled_folder, tmp_path, epochs=3)
    told: list[int] = []
    options = TrainOptions(str(tiny_bundle), {**SETTINGS, "epochs": 3}, resume=True)
    train(labelled_folder, tmp_path, options, None, lambda epoch, *_: told.append(epoch))
    assert told == [3]


def test_resuming_a_finished_run_changes_nothing(tiny_bundle: Path, labelled_folder: Path, tmp_path: Path) -> None:
    first = run(tiny_bundle, labelled_folder, tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in ("adapter.safetensors", "history.csv", "split.json")}
    (tmp_path / "history.csv").write_text("damaged meanwhile")
    second = run(tiny_bundle, labelled_folder, tmp_path, resume=True)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert (second.best_dice, second.best_epoch) == (first.best_dice, first.best_epoch)


def test_a_run_is_not_overwritten(finished: tuple[TrainResult, Any], tiny_bundle: Path, labelled_folder: Path) -> None:
    with pytest.raises(ConfigError, match="already holds a run; give --resume"):
        run(tiny_bundle, labelled_folder, finished[0].folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 3}, r"epochs \(2, now 3\)"),
        ({"seed": 1}, r"seed \(0, now 1\)"),
        ({"calibration": "learned"}, r"calibration \('paper', now 'learned'\)"),
    ],
)
def test_a_run_is_not_continued_with_other_settings(
    change: dict[str, Any],
    said: str,
    finished: tuple[TrainResult, Any],
    tiny_bundle: Path,
    labelled_folder: Path,
) -> None:
    with pytest.raises(ConfigError, match=rf"cannot be continued, as it differs in {said}"):
        run(tiny_bundle, labelled_folder, finished[0].folder, resume=True, **change)


def test_the_same_seed_gives_the_same_adapter(
    finished: tuple[TrainResult, Any], tiny_bundle: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    same = run(tiny_bundle, labelled_folder, tmp_path / "same")
    other = run(tiny_bundle, labelled_folder, tmp_path / "other", seed=1)
    assert is_same_adapter(same.adapter, finished[0].adapter)
    assert not is_same_adapter(other.adapter, same.adapter)


def test_the_hypergradients_differ_in_a_and_only_through_it(
    tiny_bundle: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    rates = {"lower_rate": 5e-3, "upper_rate": 1e-3}
    folders = {
        kind: run(tiny_bundle, labelled_folder, tmp_path / kind, hypergradient=kind, **rates).folder
        for kind in ("first-order", "unrolled", "exact")
    }
    # One loss alone may be the same to its last digit.
    losses = {
        kind: tuple(row[name] for row in history_of(folder)[1:] for name in ("lower_loss", "upper_loss"))
        for kind, folder in folders.items()
    }
    assert len(set(losses.values())) == 3
    assert losses["unrolled"] == pytest.approx(losses["exact"], rel=1e-2)


def test_without_prompts_no_detector_is_needed_and_no_box_is_used(
    tiny_bundle: Path, labelled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[PanelRow] = []
    monkeypatch.setattr(train_module, "draw_panel", lambda drawn, _path: rows.extend(drawn))
    result = run(tiny_bundle, labelled_folder, tmp_path, prompt="none", detector_file=None)
    assert [row.box for row in rows] == [None, None]
    assert read_adapter(result.adapter)[0]["prompt"] == "none"
    assert json.loads((tmp_path / "split.json").read_text())["settings"]["detector_sha256"] is None


class OwnBoxRun(NamedTuple):
    """A run of prompt ``own``.

    Attributes:
        result: Its outcome.
        boxes: Those of each call of the network in training mode: lower and upper step in turn.
        scored: Those of each call in evaluation mode: D2 after each epoch, and the panel.
        rows: Of its panel.
    """

    result: TrainResult
    boxes: list[Tensor | None]
    scored: list[Tensor | None]
    rows: list[PanelRow]


@pytest.fixture(scope="module")
def by_own_boxes(tiny_bundle: Path, labelled_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> OwnBoxRun:
    boxes, scored, rows, predict = [], [], [], AmSam.predict

    def noted(network: AmSam, image: Tensor, boxes_in_input: Tensor | None = None, *more: Any) -> Prediction:
        (boxes if network.training else scored).append(boxes_in_input)
        return predict(network, image, boxes_in_input, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AmSam, "predict", noted)
        patch.setattr(train_module, "draw_panel", lambda drawn, _path: rows.extend(drawn))
        result = run(tiny_bundle, labelled_folder, tmp_path_factory.mktemp("own") / "run", shots=6, prompt="own")
    return OwnBoxRun(result, boxes, scored, rows)


def test_prompt_own_shows_the_lower_level_every_other_box_and_the_upper_level_none(by_own_boxes: OwnBoxRun) -> None:
    lower, upper = by_own_boxes.boxes[::2], by_own_boxes.boxes[1::2]
    assert len(lower) == len(upper) == 6  # two epochs of three
    assert 0 < sum(box is None for box in lower) < 6
    assert all(box is None for box in upper)


def test_prompt_own_is_scored_and_shown_without_boxes(by_own_boxes: OwnBoxRun) -> None:
    assert len(by_own_boxes.scored) == 2 + 3  # all of D2 after each epoch, and each row of the panel
    assert all(box is None for box in by_own_boxes.scored)
    assert [row.box for row in by_own_boxes.rows] == [None] * 3


def test_the_boxes_that_prompt_own_learns_from_are_the_masks_moved_a_little(
    tiny_bundle: Path, labelled_folder: Path
) -> None:
    given = training_overrides(TrainOptions(str(tiny_bundle), {"prompt": "own", "shots": 4, "views": "none"}))
    parser = open_bundle(tiny_bundle, "train", {**given, "dataset_dir": str(labelled_folder)})
    assert parser.get_parsed_content("detector") is None
    lower, upper = (parser.get_parsed_content(f"{level}::dataset") for level in ("lower", "upper"))
    assert (lower.box_jitter, lower.box_dropout) == (0.1, 0.5)
    assert (upper.box_jitter, upper.box_dropout) == (0.0, 1.0)
    for item in lower:
        moved = item["box"] - box_from_mask(item["label"][0])
        assert 0 < moved.abs().max() < INPUT_SIZE / 3


def test_an_adapter_of_prompt_own_segments_as_its_network_does_and_obeys_a_drawn_box(
    by_own_boxes: OwnBoxRun, tiny_bundle: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    adapter, base = by_own_boxes.result.adapter, tiny_bundle / "base.safetensors"
    chosen = {"bundle": str(tiny_bundle), "adapter": str(adapter), "base_weights": str(base), "device": "cpu"}
    model = open_model(**chosen, overrides={"rival_margin": 0.1, "nothing_below": 0.9})  # of the bundle's own model
    assert (model.inferer.detector, model.inferer.rival_margin, model.inferer.nothing_below) == (None, None, 0.0)
    assert model.digests["detector"] is None
    assert segment(labelled_folder / "images", tmp_path, formats=("png",), **chosen).done == 6
    for path in sorted((labelled_folder / "images").iterdir()):
        image = model.prepare(path)
        with torch.no_grad(), kept_threads():
            torch.set_num_threads(1)  # as images are segmented: to the last bit
            own = model.network.predict(image.inputs[None]).mask_logits[0]
            drawn = model.network.predict(image.inputs[None], torch.tensor([[16.0, 16.0, 48.0, 32.0]])).mask_logits[0]
        assert not torch.equal(own, drawn)
        written = read_mask(tmp_path / "masks" / f"{path.stem}_segmentation.png")
        assert np.array_equal(written, restore_original(own, image.size).numpy())
        found = model.segment(path, box=(24, 18, 72, 36))  # of 96 x 72 pixels
        assert found.box_source == "user"
        assert np.array_equal(found.mask, restore_original(drawn, image.size).numpy())


def test_without_a_detector_boxes_come_from_the_masks(
    tiny_bundle: Path, labelled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[PanelRow] = []
    monkeypatch.setattr(train_module, "draw_panel", lambda drawn, _path: rows.extend(drawn))
    run(tiny_bundle, labelled_folder, tmp_path, detector_file=None)
    assert len(rows) == 2
    for row in rows:
        assert row.box == pytest.approx(box_from_mask(torch.from_numpy(row.truth)).tolist(), abs=1e-3)


def test_the_panel_shows_examples_of_d2_at_their_own_size(
    tiny_bundle: Path, labelled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[PanelRow] = []
    monkeypatch.setattr(train_module, "draw_panel", lambda drawn, _path: rows.extend(drawn))
    run(tiny_bundle, labelled_folder, tmp_path)
    d2 = json.loads((tmp_path / "split.json").read_text())["d2"]
    assert [row.name for row in rows] == [Path(item["image"]).name for item in d2]
    for row, item in zip(rows, d2, strict=True):
        assert row.image.shape == (3, 72, 96)
        assert row.prediction.shape == (72, 96)
        assert (row.truth == read_mask(item["label"])).all()


def test_two_classes_are_trained_and_scored(tiny_bundle: Path, tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for index in range(4):
        mask = Image.new("L", (32, 32))
        mask.paste(1, (2, 2, 14, 14 + index))
        mask.paste(2, (16, 16, 30, 30))
        mask.save(tmp_path / "data" / "masks" / f"{index}.png")
        mask.point(lambda value: 100 * value).convert("RGB").save(tmp_path / "data" / "images" / f"{index}.png")
    result = run(tiny_bundle, tmp_path / "data", tmp_path / "run", num_classes=2)
    assert read_adapter(result.adapter)[0]["num_classes"] == 2
    assert 0 <= result.best_dice <= 1


def test_what_a_user_can_mend_is_an_error_of_ours(tiny_bundle: Path, labelled_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shots = 99"):
        run(tiny_bundle, labelled_folder, tmp_path, shots=99)
    with pytest.raises(DataError, match="at least 2"):
        run(tiny_bundle, labelled_folder, tmp_path, shots=1)
    with pytest.raises(WeightsError, match=r"nowhere\.safetensors"):
        run(tiny_bundle, labelled_folder, tmp_path, base_file="nowhere.safetensors")
    with pytest.raises(ConfigError, match="hypergradient 'none' is unknown"):
        run(tiny_bundle, labelled_folder, tmp_path, hypergradient="none")
    assert list(tmp_path.iterdir()) == []
