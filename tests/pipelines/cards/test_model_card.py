from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from amsam_med.evaluate import ImageScore
from amsam_med.infer import Flag
from pipelines.cards import model_card, reporting
from pipelines.cards.model_card import Card, Case
from pipelines.cards.reporting import Scored
from pipelines.markdown import write_block

CARD = Card("isic2018", (), ("amsam_isic", "lesion-detector", "tiny"), "lesion")
FINE = Scored("fine", 0.95, 0.9, 0.9, 10.0, 10.0, has_no_box=False, flags="")
ROW = {"box_x1_px": "4", "box_y1_px": "6", "box_x2_px": "40", "box_y2_px": "30"}


def case(scored: Scored) -> Case:
    truth = np.zeros((48, 64), dtype=np.uint8)
    truth[8:30, 10:40] = 1
    mask = np.roll(truth, 5, axis=1)
    detail = ImageScore(scored.image, scored.dice, scored.iou, 2.0, scored.dice, scored.is_empty, False)
    return Case({"image": "a.jpg", "label": "a.png"}, ROW, mask, truth, scored, detail)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"area_percent": 0.0}, "nothing drawn"),
        ({"has_no_box": True}, "no box found"),
        ({"box_iou": 0.3}, "box misses the lesion"),
        ({"area_percent": 16.0}, "good box, too large"),
        ({"area_percent": 6.0}, "good box, too small"),
        ({"area_percent": 12.0}, "good box, other outline"),
    ],
)
def test_failures_are_called_by_their_cause(change: dict[str, object], words: str) -> None:
    assert model_card.kind_of_failure(replace(FINE, **change), "lesion") == words  # type: ignore[arg-type]


def test_results_are_given_by_the_size_of_the_object() -> None:
    sizes = (3.0, 5.0, 20.0, 20.1, 90.0)
    cases = [case(replace(FINE, truth_percent=size, dice=0.5 + size / 200)) for size in sizes]
    lines = model_card.render_results(cases, CARD, set()).splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:6]] == [
        ["| all", "5"],
        ["| lesion up to 5 % of the image", "2"],
        ["| 5 to 20 %", "1"],
        ["| above 20 %", "2"],
    ]
    assert "| 5 to 20 % | 1 | 60.0 (60.0 to 60.0) |" in lines[4]


def test_results_on_skin_are_given_by_its_tone_and_by_contrast() -> None:
    tones = (None, 40.0, 10.0, 60.0, 20.0, 50.0, -30.0)
    cases = [case(replace(FINE, dice=0.9))._replace(skin_tone=tone, contrast=5.0) for tone in tones]
    lines = model_card.render_results(cases, CARD._replace(is_on_skin=True), set()).splitlines()
    by_tone = [line.split(" | ")[:2] for line in lines if "skin tone" in line]
    assert by_tone == [
        ["| skin tone (ITA) -30 to 10°, darkest third", "2"],
        ["| skin tone (ITA) 20 to 40°, middle third", "2"],
        ["| skin tone (ITA) 50 to 60°, lightest third", "2"],
    ]
    assert sum("contrast (ΔE00) 5 to 5" in line for line in lines) == 3


def test_the_typology_angle_is_that_of_its_definition() -> None:
    assert model_card.typology_angle(70.0, 20.0) == pytest.approx(45)
    assert model_card.typology_angle(40.0, 15.0) < 0  # dark skin


def test_near_copies_are_counted_and_left_out_once_more() -> None:
    cases = [case(replace(FINE, image=name, dice=dice)) for name, dice in (("a", 1.0), ("b", 0.8))]
    text = model_card.render_results(cases, CARD, {"a"})
    assert "| without near-copies | 1 | 80.0 (80.0 to 80.0) |" in text
    assert "(grey thumbnails correlate above 0.95): 1." in text


def test_a_recoloured_copy_is_found_and_another_image_is_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first, second = (
        Image.fromarray(rng.integers(0, 200, (8, 8, 3), dtype=np.uint8)).resize((128, 128)) for _ in range(2)
    )
    recoloured = Image.fromarray((np.asarray(first) * [0.6, 0.7, 0.65] + 30).astype(np.uint8))
    items = []
    for name, picture in (("first", first), ("second", second), ("recoloured", recoloured)):
        picture.save(tmp_path / f"{name}.png")
        items.append({"image": str(tmp_path / f"{name}.png"), "label": ""})
    assert model_card.near_copies(items[:2], items[2:]) == {"first"}


def test_flags_are_compared_with_what_they_promise() -> None:
    scored = [
        replace(FINE, dice=0.9, flags=""),
        replace(FINE, dice=0.4, flags="no-box;unsure-mask"),
        replace(FINE, dice=0.6, flags="unsure-mask"),
    ]
    lines = model_card.render_flags([case(entry) for entry in scored]).splitlines()
    assert lines[2] == "| not flagged | 1 (33.3 %) | 90.0 (90.0 to 90.0) | 0 | 0 |"
    assert lines[3].startswith("| flagged | 2 (66.7 %) | 50.0 (")
    assert lines[3].endswith(" | 1 | 2 |")
    assert [line.split(" | ")[0] for line in lines[4:]] == ["| `no-box`", "| `unsure-mask`"]


def test_a_table_without_flags_says_so() -> None:
    assert "no column" in model_card.render_flags([case(replace(FINE, flags=None))])


def test_the_worst_come_first() -> None:
    cases = [case(replace(FINE, image=f"i{n}", dice=n / 20)) for n in (12, 3, 17, 5, 9, 2, 4, 8, 11, 1)]
    assert [entry.scored.image for entry in model_card.worst(cases, 3)] == ["i1", "i2", "i3"]
    lines = model_card.render_worst(cases, "lesion").splitlines()
    assert len(lines) == 2 + model_card.SHOWN
    assert lines[2].startswith("| `i1` | good box, other outline | 0.05 | 0.90 | 10.0 | 10.0 |")


def test_files_are_listed_with_the_registrys_sha256() -> None:
    from amsam_med import weights

    text = model_card.render_files(CARD)
    assert all(str(weights.known()[name].sha256) in text for name in CARD.files)


def test_results_of_other_weights_are_refused() -> None:
    from amsam_med import weights

    known = weights.known()
    right = {"model": str(known["amsam_isic"].sha256), "detector": str(known["lesion-detector"].sha256)}
    model_card.check_weights(right, CARD)
    with pytest.raises(click.ClickException, match="the detector in use has sha256 0"):
        model_card.check_weights({**right, "detector": "0"}, CARD)


def test_the_picture_of_failures_is_small_and_shows_no_photograph(tmp_path: Path) -> None:
    cases = [case(replace(FINE, image=f"i{n}", dice=n / 10)) for n in range(6)]  # there is no file a.jpg to show
    model_card.draw_failures(cases, "lesion", tmp_path / "failures.png", with_photos=False)
    assert (tmp_path / "failures.png").stat().st_size < 300_000
    with Image.open(tmp_path / "failures.png") as picture:
        assert picture.width > 800
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 10


def test_a_case_is_measured_as_the_product_sees_it(labelled_folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    from amsam_med.data.datalists import folder_datalist
    from amsam_med.evaluate import EvaluateOptions, evaluate

    cases = model_card.measure(folder_datalist(labelled_folder), tmp_path / "out", str(tiny_bundle))
    expected = evaluate(labelled_folder, tmp_path / "scores", EvaluateOptions(bundle=str(tiny_bundle)))
    assert np.mean([entry.detail.dice for entry in cases]) == pytest.approx(expected.summary.dice, abs=1e-6)
    assert np.mean([entry.scored.dice for entry in cases]) == pytest.approx(expected.summary.dice, abs=1e-6)
    assert np.mean([entry.scored.iou for entry in cases]) == pytest.approx(expected.summary.iou, abs=1e-6)
    assert reporting.read_scores(tmp_path / "out/scores.csv") == [entry.scored for entry in cases]


def test_the_overlap_of_boxes_is_their_iou() -> None:
    truth = np.zeros((20, 20), dtype=np.uint8)
    truth[0:10, 0:10] = 1
    assert reporting.box_overlap((0, 0, 10, 10), truth) == pytest.approx(1)
    assert reporting.box_overlap((5, 0, 15, 10), truth) == pytest.approx(1 / 3)
    assert reporting.box_overlap((10, 10, 20, 20), truth) == 0
    assert reporting.box_overlap(None, truth) is None


def test_shares_never_show_a_negative_zero() -> None:
    assert reporting.percent([-0.0001, -0.0001], sign="+") == "+0.0 (+0.0 to +0.0)"


def test_a_document_without_its_markers_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("<!-- begin a -->\n")
    with pytest.raises(click.ClickException, match="each once"):
        write_block(document, "a", "text")


@pytest.mark.parametrize("bundle", list(model_card.CARDS))
def test_the_shipped_cards_have_all_markers(bundle: str) -> None:
    from amsam_med import weights

    text = (weights.bundles_folder() / bundle / "docs/README.md").read_text()
    for name in ("results", "flags", "worst", "files"):
        assert text.count(f"<!-- begin {name} -->") == text.count(f"<!-- end {name} -->") == 1
    assert all(f"`{flag}`" in text for flag in Flag)
    assert "Not a medical device" in text


def test_the_metadata_get_the_cards_figures_and_keep_all_else(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "configs").mkdir()
    card, metadata = tmp_path / "docs" / "README.md", tmp_path / "configs" / "metadata.json"
    cases = [case(replace(FINE, dice=dice, iou=dice / 2)) for dice in (0.8, 0.9)]
    results = model_card.render_results(cases, CARD, set())
    card.write_text(f"<!-- begin results -->\n{results}\n<!-- end results -->\n")
    for before in ("{}", '{\n        "mean_dice": 0.1\n    }'):
        metadata.write_text(f'{{\n    "a": [1, 2],\n    "eval_metrics": {before},\n    "b": {{}}\n}}\n')
        model_card.write_metrics(tmp_path)
        text = metadata.read_text()
        assert text.startswith('{\n    "a": [1, 2],\n    "eval_metrics": {\n        "test_images": 2,\n')
        assert json.loads(text)["eval_metrics"] == {"test_images": 2, "mean_dice": 0.85, "mean_iou": 0.425}


def test_a_card_without_results_is_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing measured")
    with pytest.raises(click.ClickException, match=r"README\.md has no results of all test images; measure the bundle"):
        model_card.card_metrics(tmp_path / "README.md")
