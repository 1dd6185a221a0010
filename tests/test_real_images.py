"""The embedded models on real images: a floor below which something is broken, not a figure to report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from amsam_med.data.datalists import open_datalist
from amsam_med.data.readers import read_mask
from amsam_med.evaluate import dice_score
from amsam_med.segment import SegmentOptions, segment

COUNT = 24


@pytest.mark.parametrize(
    ("folder", "part", "bundle", "floor"),
    [("isic2018", "val", "amsam_isic", 0.85), ("human_vikram", "train", "amsam_body", 0.75)],
)
def test_embedded_models_outline_real_objects(
    folder: str, part: str, bundle: str, floor: float, data_root: Path, tmp_path: Path
):
    items = open_datalist(data_root / folder, part)[:COUNT]
    summary = segment([Path(item["image"]) for item in items], tmp_path, SegmentOptions(bundle, formats=("png",)))
    assert (summary.done, summary.failed) == (COUNT, 0)
    scores = []
    for item in items:
        mask = tmp_path / "masks" / f"{Path(item['image']).stem}_segmentation.png"
        predicted, truth = (torch.tensor(read_mask(path)) for path in (mask, item["label"]))
        scores.append(dice_score(predicted, truth))
    assert np.mean(scores) > floor
