"""Scores by hand values, against MONAI's and naive ones, and through a bundle's evaluate workflow."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from ignite.engine import Engine
from monai.metrics import compute_dice
from torch import Tensor

from amsam_med.boxes import Detections
from amsam_med.bundle import open_bundle
from amsam_med.errors import ConfigError, DataError, WeightsError
from amsam_med.evaluate import (
    EvaluateOptions,
    ImageScore,
    ScoreHandler,
    bootstrap_interval,
    dice_score,
    evaluate,
    score_image,
    summarise,
)

LEFT = torch.tensor([[1, 1, 0, 0]] * 4)
"""The left half of 4 x 4 pixels."""
TOP = LEFT.T
EMPTY = torch.zeros(4, 4, dtype=torch.long)

masks = st.lists(st.booleans(), min_size=12, max_size=12).map(lambda pixels: torch.tensor(pixels).reshape(3, 4))


def sure_logits(ids: Tensor, num_classes: int = 1) -> Tensor:
    """Logits ``(C + 1, h, w)`` that decide for class ids ``(h, w)``."""
    return 10.0 * (ids == torch.arange(num_classes + 1)[:, None, None]).float()


def score(prediction: Tensor, truth: Tensor, num_classes: int = 1) -> ImageScore:
    return score_image("a.png", prediction[None], truth[None], sure_logits(prediction, num_classes))


def image_score(dice: float, iou: float, hd95: float | None = None, is_truth_empty: bool = False) -> ImageScore:
    return ImageScore("a.png", dice, iou, hd95, dice, is_prediction_empty=hd95 is None, is_truth_empty=is_truth_empty)


def test_dice_of_two_halves_that_share_a_quarter_is_a_half() -> None:
    assert dice_score(LEFT, TOP) == 0.5  # 2 * 4 / (8 + 8)
    assert dice_score(LEFT, LEFT[:, :1].expand(4, 4)) == 2 * 8 / (8 + 16)


def test_dice_of_empty_masks() -> None:
    assert dice_score(EMPTY, EMPTY) == 1.0
    assert dice_score(LEFT, EMPTY) == dice_score(EMPTY, LEFT) == 0.0


def test_dice_counts_what_is_not_zero() -> None:
    assert dice_score(255 * LEFT, 0.5 * LEFT) == 1.0


@given(masks, masks)
def test_dice_is_symmetric_and_1_for_equal_masks_alone(one: Tensor, other: Tensor) -> None:
    assert dice_score(one, other) == dice_score(other, one)
    assert 0 <= dice_score(one, other) <= 1
    assert (dice_score(one, other) == 1) == torch.equal(one, other)


@given(masks, masks)
def test_dice_agrees_with_sets_of_pixels_and_with_monai(one: Tensor, other: Tensor) -> None:
    ones, others = ({tuple(pixel) for pixel in mask.nonzero().tolist()} for mask in (one, other))
    naive = 2 * len(ones & others) / (len(ones) + len(others)) if ones or others else 1.0
    monai = compute_dice(one[None, None], other[None, None], ignore_empty=False)
    assert dice_score(one, other) == pytest.approx(naive)
    assert dice_score(one, other) == pytest.approx(float(monai))


def test_dice_refuses_masks_of_two_frames() -> None:
    with pytest.raises(DataError, match=r"shapes \(4, 4\) and \(2, 4\).*same frame"):
        dice_score(LEFT, LEFT[:2])


def test_an_image_is_scored_at_its_own_size_and_at_the_logits() -> None:
    scored = score_image("a.png", LEFT[None], TOP[None], sure_logits(torch.tensor([[1, 0], [1, 0]])))
    assert scored.dice == 0.5
    assert scored.iou == pytest.approx(4 / 12)
    assert scored.dice_at_logits == 0.5
    assert not scored.is_prediction_empty
    assert not scored.is_truth_empty


def test_the_truth_reaches_the_logits_by_its_nearest_pixels() -> None:
    truth = torch.zeros(8, 8, dtype=torch.uint8)
    truth[2, 2] = 1  # of each block of 4 x 4 pixels, nearest-exact takes the one at (2, 2)
    scored = score_image("a.png", truth[None], truth[None], sure_logits(torch.tensor([[1, 0], [0, 0]])))
    assert scored.dice_at_logits == 1.0


def test_hd95_is_in_pixels() -> None:
    one, other = torch.zeros(9, 9, dtype=torch.uint8), torch.zeros(9, 9, dtype=torch.uint8)
    one[1, 1] = other[4, 5] = 1
    assert score(one, other).hd95 == pytest.approx(5.0)  # 3, 4, 5


@pytest.mark.parametrize(("prediction", "truth"), [(EMPTY, LEFT), (LEFT, EMPTY), (EMPTY, EMPTY)])
def test_hd95_is_not_defined_for_an_empty_mask(prediction: Tensor, truth: Tensor) -> None:
    scored = score(prediction, truth)
    assert scored.hd95 is None
    assert scored.is_prediction_empty == (not prediction.any())
    assert scored.is_truth_empty == (not truth.any())
    assert scored.dice == scored.iou == scored.dice_at_logits == float(torch.equal(prediction, truth))


def test_classes_are_scored_apart_and_those_in_neither_mask_are_left_out() -> None:
    truth = LEFT + 2 * (1 - LEFT)  # 1 on the left, 2 on the right; 3 is nowhere
    prediction = torch.where(TOP == 1, truth, 1)  # right at the top, 1 below
    scored = score(prediction, truth, num_classes=3)
    assert scored.dice == pytest.approx((2 * 8 / (12 + 8) + 2 * 4 / (4 + 8)) / 2)
    assert scored.iou == pytest.approx((8 / 12 + 4 / 8) / 2)
    assert scored.dice_at_logits == scored.dice


def test_a_class_that_was_only_predicted_scores_0() -> None:
    prediction = LEFT + 2 * (1 - LEFT)
    assert score(prediction, LEFT, num_classes=2).dice == 0.5
    assert score(prediction, LEFT, num_classes=2).hd95 == 0.0  # of class 1, which both hold


@given(masks, masks)
def test_iou_and_dice_say_the_same_of_one_class(one: Tensor, other: Tensor) -> None:
    scored = score(one.long(), other.long())
    assert scored.iou == pytest.approx(scored.dice / (2 - scored.dice))


def test_a_summary_by_hand() -> None:
    scores = [image_score(1.0, 1.0, 2.0), image_score(0.8, 0.66, 4.0), image_score(0.0, 0.0, is_truth_empty=True)]
    summary = summarise(scores)
    assert summary.images == 3
    assert summary.dice == pytest.approx(0.6)
    assert summary.dice_median == 0.8
    assert summary.iou == summary.threshold_jaccard == pytest.approx(1.66 / 3)
    assert (summary.hd95, summary.hd95_images) == (3.0, 2)
    assert (summary.empty_predictions, summary.empty_truths) == (1, 1)


def test_an_iou_below_the_threshold_counts_as_0() -> None:
    summary = summarise([image_score(0.79, 0.649), image_score(0.79, 0.65)])
    assert summary.threshold_jaccard == pytest.approx(0.325)
    assert summary.hd95 is None


def test_no_images_have_no_summary() -> None:
    with pytest.raises(DataError, match="no images to score"):
        summarise([])


def test_the_interval_of_equal_values_is_a_point() -> None:
    assert bootstrap_interval([0.25] * 7) == (0.25, 0.25)


def test_the_interval_is_a_function_of_values_and_seed() -> None:
    values = np.random.default_rng(0).random(50)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)


def test_the_interval_is_the_percentile_bootstrap() -> None:
    values = np.random.default_rng(0).beta(6, 2, 40)
    expected = scipy.stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile").confidence_interval
    assert bootstrap_interval(values) == pytest.approx(expected, abs=0.01)
    assert bootstrap_interval(values)[0] < values.mean() < bootstrap_interval(values)[1]


def test_the_handler_scores_each_item_and_writes_both_files(tmp_path: Path) -> None:
    handler = ScoreHandler(tmp_path / "new", {"part": "test"})
    pairs = {"a.png": (LEFT, TOP), "b.png": (LEFT, LEFT), "c.png": (EMPTY, LEFT)}
    batch = [{"image_meta_dict": {"filename_or_obj": f"/data/{name}"}} for name in pairs]
    output = [{"pred": p[None], "label": t[None], "mask_logits": sure_logits(p)} for p, t in pairs.values()]
    engine = Engine(lambda _engine, _batch: output)
    handler.attach(engine)
    engine.run([batch])
    rows = list(csv.DictReader((tmp_path / "new" / "scores.csv").read_text().splitlines()))
    written = json.loads((tmp_path / "new" / "scores.json").read_text())
    assert [(row["image"], row["dice"]) for row in rows] == [("a.png", "0.5"), ("b.png", "1.0"), ("c.png", "0.0")]
    assert rows[2]["hd95"] == ""
    assert written["dice"] == handler.summary.dice == 0.5
    assert written["record"] == {"part": "test"}


def test_flags_stand_beside_the_scores_of_their_image(tiny_bundle: Path, labelled_folder: Path, tmp_path: Path) -> None:
    summary = evaluate(labelled_folder, tmp_path, EvaluateOptions(str(tiny_bundle), test_views="mirror")).summary
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    parts = open_bundle(tiny_bundle, "inference", {"test_views": "mirror"})
    network, inferer, prepare = (parts.get_parsed_content(name) for name in ("network", "inferer", "preprocessing"))
    for row in rows:
        item = prepare({"image": str(labelled_folder / "images" / row["image"])})
        assert row["flags"] == ";".join(inferer.predict(item["image"][None], network).flags[0])
    assert summary.flagged == sum(bool(row["flags"]) for row in rows) > 0
    assert json.loads((tmp_path / "scores.json").read_text())["record"]["test_views"] == "mirror"


def test_a_second_run_of_the_engine_starts_afresh(tmp_path: Path) -> None:
    handler = ScoreHandler(tmp_path)
    batch = [{"image_meta_dict": {"filename_or_obj": "a.png"}}]
    output = [{"pred": LEFT[None], "label": LEFT[None], "mask_logits": sure_logits(LEFT)}]
    engine = Engine(lambda _engine, _batch: output)
    handler.attach(engine)
    engine.run([batch])
    engine.run([batch])
    assert handler.summary.images == 1


def test_evaluating_a_bundle_agrees_with_monais_mean_dice(
    tiny_bundle: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    result = evaluate(
        labelled_folder, tmp_path, EvaluateOptions(str(tiny_bundle)), lambda done, total: told.append((done, total))
    )
    assert told == [(done, 6) for done in range(1, 7)]
    assert result.part is None
    assert result.summary.empty_truths == 0
    assert result.summary.dice > 0
    assert result.summary.dice == pytest.approx(result.mean_dice, abs=1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {"scores.csv", "scores.json", "scores.png"}


def test_the_record_says_what_was_scored_and_names_no_folder(
    tiny_bundle: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    evaluate(labelled_folder, tmp_path, EvaluateOptions(str(tiny_bundle), detector="none"))
    record = json.loads((tmp_path / "scores.json").read_text())["record"]
    assert record["dataset"] == labelled_folder.name
    assert record["bundle"] == tiny_bundle.name
    assert record["detector"] is None
    assert record["network"]["input_size"] == 64
    assert str(tiny_bundle.parent) not in (tmp_path / "scores.json").read_text()


def test_the_network_sees_no_box_without_a_detector(tiny_bundle: Path, labelled_folder: Path, tmp_path: Path) -> None:
    options = EvaluateOptions(str(tiny_bundle))
    with_boxes = evaluate(labelled_folder, tmp_path / "a", options).summary
    without = evaluate(labelled_folder, tmp_path / "b", EvaluateOptions(str(tiny_bundle), detector="none")).summary
    assert with_boxes.dice_at_logits != without.dice_at_logits


def test_a_wrong_choice_is_an_error_of_ours(tiny_bundle: Path, labelled_folder: Path, tmp_path: Path) -> None:
    bundle = str(tiny_bundle)
    with pytest.raises(DataError, match="part 'test' was asked for"):
        evaluate(labelled_folder, tmp_path, EvaluateOptions(bundle, part="test"))
    with pytest.raises(WeightsError, match="neither a file nor one of the weights"):
        evaluate(labelled_folder, tmp_path, EvaluateOptions(bundle, detector="nowhere"))
    with pytest.raises(ConfigError, match="no entry 'inpt_size'"):
        evaluate(labelled_folder, tmp_path, EvaluateOptions(bundle, overrides={"inpt_size": 3}))
    assert list(tmp_path.iterdir()) == []


def run_out_of_memory(image: Tensor) -> Detections:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total of 8 GiB")


def test_too_little_memory_is_one_sentence_and_no_scores_are_written(
    tiny_bundle: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    options = EvaluateOptions(str(tiny_bundle), overrides={"detector": run_out_of_memory})
    with pytest.raises(ConfigError, match="too little memory") as caught:
        evaluate(labelled_folder, tmp_path / "scores", options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "scores").exists()


def test_a_model_of_nan_is_an_error_and_no_scores_are_written(
    tiny_bundle: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    model = torch.load(tiny_bundle / "models" / "model.pt", weights_only=True)
    model["mask_decoder.mask_tokens.weight"].fill_(torch.nan)
    torch.save(model, tmp_path / "model.pt")
    options = EvaluateOptions(str(tiny_bundle), overrides={"model_file": str(tmp_path / "model.pt")})
    with pytest.raises(WeightsError, match=r"NaN or infini"):
        evaluate(labelled_folder, tmp_path / "scores", options)
    assert not (tmp_path / "scores").exists()


def test_an_image_that_cannot_be_read_is_named(tiny_bundle: Path, labelled_folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(labelled_folder, tmp_path / "data")
    image = sorted((data / "images").iterdir())[0]
    image.write_bytes(image.read_bytes()[:400])
    with pytest.raises(DataError, match=image.name):
        evaluate(data, tmp_path / "scores", EvaluateOptions(str(tiny_bundle)))


@pytest.mark.parametrize("inner", ["images", "masks/scores"])
def test_an_output_among_the_data_is_refused(inner: str, tiny_bundle: Path, labelled_folder: Path) -> None:
    with pytest.raises(ConfigError, match="lies among the images or masks"):
        evaluate(labelled_folder, labelled_folder / inner, EvaluateOptions(str(tiny_bundle)))


def test_an_output_that_cannot_be_written_to_is_named(tiny_bundle: Path, labelled_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be read or written"):
        evaluate(labelled_folder, tmp_path / "file" / "scores", EvaluateOptions(str(tiny_bundle)))


def test_what_a_killed_evaluation_left_is_swept(tiny_bundle: Path, labelled_folder: Path, tmp_path: Path) -> None:
    (tmp_path / ".scores.csv.0badf00d.csv").write_text("half")
    (tmp_path / "notes.txt").write_text("mine")
    evaluate(labelled_folder, tmp_path, EvaluateOptions(str(tiny_bundle)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "scores.csv", "scores.json", "scores.png"]
