from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.cards import nothing
from pipelines.cards.nothing import Trust
from pipelines.weights import scenes

FOUR_HUNDRED = Trust(
    np.concatenate([[0.62, 0.71], np.linspace(0.8, 1, 398)]), np.concatenate([np.zeros(5), [0.5, 0.6, 0.7, 0.8, 0.9]])
)


def test_the_threshold_loses_one_object_in_four_hundred() -> None:
    assert nothing.choose(FOUR_HUNDRED) == 0.71  # 0.62 is lost, 0.71 is not
    assert FOUR_HUNDRED.lost(0.71) == pytest.approx(1 / 400)
    assert FOUR_HUNDRED.kept(0.71) == pytest.approx(2 / 10)


def test_an_empty_mask_is_lost_or_right_at_any_threshold() -> None:
    trust = Trust(np.array([0.0, 0.9]), np.array([0.0, 0.9]))
    assert (trust.lost(0), trust.kept(0)) == (0.5, 0.5)


def test_the_table_marks_what_was_chosen_and_the_curve_is_drawn(tmp_path: Path) -> None:
    text = nothing.render(FOUR_HUNDRED, "amsam_isic", "f" * 64)
    assert "400 images with an object, 10 without" in text
    assert "| **0.71** | 0.2 % | 20.0 % |" in text
    nothing.draw(FOUR_HUNDRED, tmp_path / "curve.png")
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
