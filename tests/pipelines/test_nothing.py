from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import nothing, scenes
from pipelines.nothing import Evidence, Seen

OBJECTS = Seen(np.concatenate([[0.62, 0.71], np.linspace(0.8, 0.99, 198)]), np.array([False, True, *[True] * 198]))
NOTHING = Seen(
    np.array([0.0] * 5 + [0.5, 0.6, 0.7, 0.75, 0.9]), np.array([False] * 5 + [True, False, False, True, True])
)
EVIDENCE = Evidence(OBJECTS, NOTHING)


def test_the_thresholds_lose_one_object_in_two_hundred() -> None:
    chosen = nothing.choose(EVIDENCE)
    assert chosen == (0.71, 0.99)  # 0.62 has no box and is lost, 0.71 has one and is not
    assert EVIDENCE.lost(chosen) == pytest.approx(1 / 200)
    assert EVIDENCE.kept(chosen) == pytest.approx(2 / 10)
    assert EVIDENCE.kept((0.71, 0.71)) == pytest.approx(2 / 10)
    assert EVIDENCE.kept((0.62, 0.62)) == pytest.approx(3 / 10)


def test_an_image_without_a_box_meets_the_second_threshold_alone() -> None:
    seen = Seen(np.array([0.5, 0.5, 0.9]), np.array([True, False, False]))
    assert [seen.kept(pair) for pair in ((0.4, 0.4), (0.4, 0.6), (0.6, 0.95))] == pytest.approx([1, 2 / 3, 0])


def test_an_empty_mask_is_lost_or_right_at_any_threshold() -> None:
    seen = Seen(np.array([0.0, 0.9]), np.array([True, True]))
    evidence = Evidence(seen, seen)
    assert (evidence.lost((0, 0)), evidence.kept((0, 0))) == (0.5, 0.5)


def test_the_table_marks_what_was_chosen_and_the_curve_is_drawn(tmp_path: Path) -> None:
    text = nothing.render(EVIDENCE, "amsam_isic", "f" * 64, "e" * 64)
    assert "200 images with an object, of which 99.5 % get a box, 10 without, of which 30.0 % do" in text
    assert "| **0.71** | **0.99** | 0.5 % | 20.0 % |" in text
    nothing.draw(EVIDENCE, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width > 300


def test_the_held_out_images_are_those_that_a_bank_validates_on(tmp_path: Path) -> None:
    folder = tmp_path / "pretrain/ccp"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
        for number in range(16):
            Image.fromarray(np.full((8, 8), number, np.uint8)).save(folder / name / f"{number:02}.png")
    source = scenes.Source("pretrain/ccp")
    paths = scenes.held_out(tmp_path, source)
    validation, train = scenes._split(16, scenes.HELD_OUT)
    items = scenes.load_source(tmp_path, source)
    assert [int(path.stem) for path in paths] == items.ids[validation].flatten(1)[:, 0].tolist()
    assert len(paths) == 12
    assert sorted([*validation.tolist(), *train.tolist()]) == list(range(16))
