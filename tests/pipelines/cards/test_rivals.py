"""The box's rival: what a margin chooses, the images it is measured on, and the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from amsam_med.synthetic import write_dermoscopy
from pipelines.cards import rivals
from pipelines.cards.rivals import Answers


def test_a_margin_decides_between_the_two_masks() -> None:
    answers = Answers(np.array([0.9, 0.2]), np.array([0.5, 0.8]), np.array([-0.1, 0.3]))
    assert answers.dice(1.0) == pytest.approx(0.55)  # always the box
    assert answers.dice(0.0) == pytest.approx(0.85)
    assert answers.dice(-1.0) == pytest.approx(0.65)  # never the box


def test_the_table_has_every_margin_and_marks_the_bundles_own(tmp_path: Path) -> None:
    write_dermoscopy(tmp_path / "isic2018" / "val", 3, seed=0, size=(72, 96))
    document = tmp_path / "page.md"
    document.write_text("<!-- begin rivals amsam_isic -->\n<!-- end rivals amsam_isic -->\n")
    words = ["--data", str(tmp_path), "--bundle", "amsam_isic", "--document", str(document)]
    assert CliRunner().invoke(rivals.main, words, catch_exceptions=False).exit_code == 0
    lines = document.read_text().splitlines()
    assert "the bundle's margin is **+0.20**" in lines[1]
    assert "| margin | isic2018/val (3) |" in lines
    rows = [line for line in lines if line.startswith("|")][2:]
    assert len(rows) == len(rivals.MARGINS)
    assert rows[0].startswith("| never the box | ")
    assert [row.startswith("| **+0.20**") for row in rows].count(True) == 1


def test_people_are_those_that_pre_training_held_out_alone_and_in_groups(data_root: Path) -> None:
    groups = rivals.photos_of_people(data_root, 64)
    assert list(groups) == ["human_vikram", "pretrain/ccp", *rivals.GROUPS]
    images = {name: list(pairs()) for name, pairs in groups.items()}
    assert {name: len(pairs) for name, pairs in images.items()} == {
        "human_vikram": 12,
        "pretrain/ccp": 50,
        **dict.fromkeys(rivals.GROUPS, rivals.PASTED),
    }
    assert all(image.shape == (3, 64, 64) and mask.any() for pairs in images.values() for image, mask in pairs)
    shares = [torch.stack([mask.float().mean() for _, mask in images[name]]).mean() for name in rivals.GROUPS]
    assert shares[0] < shares[1] < shares[2]
