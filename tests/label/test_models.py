"""The model in use, its versions and its memory of pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from amsam_med.errors import DataError, WeightsError
from amsam_med.label.models import CURRENT, Clicks, LabelModel
from amsam_med.model.encoders import CompactImageEncoder


@pytest.fixture
def model(tmp_path: Path) -> LabelModel:
    return LabelModel("amsam_isic", tmp_path / "versions")


@pytest.fixture
def picture(drawn: Path) -> Path:
    return min((drawn / "images").iterdir())


def examples(drawn: Path, count: int) -> list[dict[str, str]]:
    images = sorted((drawn / "images").iterdir())[:count]
    return [{"image": str(one), "label": str(next((drawn / "masks").glob(f"{one.stem}*")))} for one in images]


def test_a_picture_is_encoded_for_the_first_click_alone(
    model: LabelModel, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    forward = CompactImageEncoder.forward
    monkeypatch.setattr(CompactImageEncoder, "forward", lambda self, image: encoded.append(1) or forward(self, image))
    masks = [model.segment_prompted(picture, Clicks(foreground=[(100 + step, 100)])).mask for step in range(3)]
    assert len(encoded) == 1
    assert masks[0].any()


def test_a_box_and_points_lie_in_the_pictures_frame(model: LabelModel, picture: Path) -> None:
    whole = model.segment(picture).mask
    rows, columns = np.nonzero(whole)
    box = (float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
    found = model.segment_prompted(picture, Clicks(box=box))
    assert 2 * (found.mask & whole).sum() / (found.mask.sum() + whole.sum()) > 0.9
    assert found.facts["box_source"] == "user"


def test_a_doubt_is_a_share(model: LabelModel, picture: Path) -> None:
    assert 0 <= model.doubt(picture) <= 1


def test_a_version_that_does_worse_is_kept_but_not_used(
    model: LabelModel, drawn: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.9, 0.95, 0.9, 0.8])  # before and after, of two trainings
    monkeypatch.setattr("amsam_med.label.models._mean_dice", lambda *_: next(scores))
    before = model.segment(picture)
    better, worse = model.learn(examples(drawn, 2)), model.learn(examples(drawn, 2))
    assert [version.number for version in model.versions()] == [1, 2]
    assert (better.number, worse.number, model.current()) == (1, 2, better)
    assert (before.version, model.segment(picture).version) == (0, 1)


def test_versions_may_lie_hidden_among_the_images(drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn / "images", tmp_path / "studies")
    pairs = examples(drawn, 2)
    inside = [{**pair, "image": str(tmp_path / "studies" / Path(pair["image"]).name)} for pair in pairs]
    model = LabelModel("amsam_isic", tmp_path / "studies" / ".amsam" / "amsam_isic", "tiny-general")
    assert model.learn(inside).number == 1


def test_one_example_is_too_few(model: LabelModel, drawn: Path) -> None:
    with pytest.raises(DataError, match="needs 2 labelled images, got 1; label more"):
        model.learn(examples(drawn, 1))


def test_a_damaged_record_is_named(model: LabelModel, picture: Path) -> None:
    model.folder.mkdir(parents=True)
    (model.folder / CURRENT).write_text(json.dumps({"number": 1})[:-1])
    with pytest.raises(WeightsError, match=r"current\.json: .*delete current\.json of amsam_isic to begin anew"):
        model.segment(picture)
