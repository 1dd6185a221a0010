"""What the pictures of a run show."""

from __future__ import annotations

from pathlib import Path

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from amsam_med import plots
from amsam_med.plots import PanelRow, draw_curves, draw_panel, draw_scores

HISTORY = [
    {"epoch": epoch, "lower_loss": 1 / epoch, "upper_loss": 2 / epoch, "d2_dice": dice}
    for epoch, dice in enumerate([0.1, 0.7, 0.7, 0.6], start=1)
]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were drawn, before they become files."""
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "_save", lambda figure, _path: drawn.append(figure))
    return drawn


def row(prediction: NDArray[np.uint8], box: plots.Box | None = (10.0, 10.0, 30.0, 20.0)) -> PanelRow:
    """A black 40 x 60 image whose truth is a rectangle."""
    truth = np.zeros((40, 60), np.uint8)
    truth[10:20, 10:30] = 1
    return PanelRow("a.png", np.zeros((3, 40, 60), np.uint8), truth, prediction, box, 0.5)


def texts(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    return [axes.get_title(), *([text.get_text() for text in legend.get_texts()] if legend else [])]


def share(picture: Path, colour: str) -> float:
    """The share of a picture's pixels that have a colour."""
    with Image.open(picture) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    return float((np.abs(pixels - 255 * np.array(matplotlib.colors.to_rgb(colour))).max(axis=-1) < 12).mean())


def test_curves_show_the_history(figures: list[Figure]) -> None:
    draw_curves(HISTORY, "curves.png")
    loss_axes, dice_axes = figures[0].axes
    lower, upper = loss_axes.get_lines()
    np.testing.assert_allclose(lower.get_xydata(), [[e["epoch"], e["lower_loss"]] for e in HISTORY])
    np.testing.assert_allclose(upper.get_xydata(), [[e["epoch"], e["upper_loss"]] for e in HISTORY])
    np.testing.assert_allclose(dice_axes.get_lines()[0].get_ydata(), [0.1, 0.7, 0.7, 0.6])


def test_the_levels_differ_without_colour(figures: list[Figure]) -> None:
    draw_curves(HISTORY, "curves.png")
    lower, upper = figures[0].axes[0].get_lines()
    assert lower.get_linestyle() != upper.get_linestyle()


def test_the_first_best_epoch_has_the_star(figures: list[Figure]) -> None:
    draw_curves(HISTORY, "curves.png")
    star = figures[0].axes[1].get_lines()[1]
    assert np.asarray(star.get_xydata()).tolist() == [[2, 0.7]]
    assert "best: 0.700, epoch 2" in texts(figures[0].axes[1])


def test_one_epoch_is_a_visible_point(figures: list[Figure]) -> None:
    draw_curves(HISTORY[:1], "curves.png")
    assert [line.get_marker() for line in figures[0].axes[0].get_lines()] == ["o", "o"]


def test_scores_say_mean_and_interval(figures: list[Figure]) -> None:
    draw_scores([0.2, 0.4, 0.9], (0.25, 0.75), "scores.png")
    assert texts(figures[0].axes[0]) == ["3 images", "95% interval 0.250 to 0.750", "mean 0.500"]


def test_a_panel_has_three_pictures_a_row(figures: list[Figure]) -> None:
    draw_panel([row(np.zeros((40, 60), np.uint8))] * 2, "panel.png")
    titles = [axes.get_title() for axes in figures[0].axes]
    assert titles == ["a.png", "truth", "prediction, Dice 0.500"] * 2


def test_a_box_encloses_its_pixels(figures: list[Figure]) -> None:
    draw_panel([row(np.zeros((40, 60), np.uint8))], "panel.png")
    (frame,) = figures[0].axes[2].patches
    assert frame.get_bbox().extents.tolist() == [9.5, 9.5, 29.5, 19.5]  # matplotlib's pixel 10 begins at 9.5


def test_outline_and_box_are_drawn_where_there_are_any(tmp_path: Path) -> None:
    empty = np.zeros((40, 60), np.uint8)
    full = np.ones((40, 60), np.uint8)
    draw_panel([row(empty, box=None)], tmp_path / "empty.png")
    draw_panel([row(full)], tmp_path / "full.png")
    shares = {name: share(tmp_path / name, plots.PREDICTION_COLOUR) for name in ("empty.png", "full.png")}
    assert shares["full.png"] > 2 * shares["empty.png"] > 0  # the legend has the colour as well
    assert share(tmp_path / "empty.png", plots.TRUTH_COLOUR) > 2 * shares["empty.png"]


def test_several_classes_get_an_outline_each(figures: list[Figure]) -> None:
    prediction = np.zeros((40, 60), np.uint8)
    prediction[:, :20], prediction[:, 40:] = 1, 3
    draw_panel([row(prediction)], "panel.png")
    assert len(figures[0].axes[2].collections) == 1 + 2  # the truth's, and two predicted


def test_pictures_are_files_of_some_size(tmp_path: Path) -> None:
    draw_curves(HISTORY, tmp_path / "new" / "curves.png")
    draw_scores([1.0], (1.0, 1.0), tmp_path / "new" / "scores.png")
    pictures = sorted((tmp_path / "new").iterdir())
    assert [path.name for path in pictures] == ["curves.png", "scores.png"]
    for path in pictures:
        with Image.open(path) as picture:
            assert min(picture.size) >= 500
