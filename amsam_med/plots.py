"""Plots of a run: training curves, panels of masks, distributions of scores.

Colours are those of Okabe and Ito, which colour-blind people tell apart; line styles differ as well, so that a grey
print says the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import NamedTuple, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, withStroke
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import LineStyleType
from numpy.typing import NDArray

from amsam_med.data.outlines import classes_of, draw_on_axes
from amsam_med.files import atomic_path

FilePath: TypeAlias = str | PathLike[str]
Box: TypeAlias = tuple[float, float, float, float]

BLUE, ORANGE, GREEN, LIGHT_BLUE = "#0072B2", "#D55E00", "#009E73", "#9ECAE9"
TRUTH_COLOUR, PREDICTION_COLOUR, BOX_COLOUR = "#F0E442", "#56B4E9", "#FFFFFF"
"""Light colours: outlines lie on skin and tissue, over a dark edge of their own."""
DOTS_PER_INCH = 150
BINS = 20


class PanelRow(NamedTuple):
    """One image of a panel.

    Attributes:
        name: What to call the image.
        image: uint8 ``(3, H, W)`` RGB.
        truth: Class ids, uint8 ``(H, W)``.
        prediction: Class ids, uint8 ``(H, W)``.
        box: x1, y1, x2, y2 in pixels of the image: the prompt; None where there was none.
        dice: Of the prediction, in [0, 1].
    """

    name: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    box: Box | None
    dice: float


def draw_curves(history: Sequence[Mapping[str, float]], path: FilePath) -> None:
    """Draw the losses of both levels and the Dice on D2 over the epochs.

    Args:
        history: One mapping per epoch with ``epoch``, ``lower_loss``, ``upper_loss`` and ``d2_dice``.
        path: The picture; its suffix gives the format.
    """
    figure = Figure(figsize=(7.2, 5.4), layout="constrained")
    loss_axes, dice_axes = figure.subplots(2, 1, sharex=True)
    epochs, marker = _column(history, "epoch"), "o" if len(history) == 1 else None
    loss_axes.plot(epochs, _column(history, "lower_loss"), color=BLUE, marker=marker, label="lower level: W on D1")
    loss_axes.plot(
        epochs, _column(history, "upper_loss"), color=ORANGE, ls="--", marker=marker, label="upper level: A on D2"
    )
    loss_axes.set(ylabel="loss, Eq. (5)", ylim=(0, None))
    loss_axes.legend(frameon=False)
    _draw_dice(dice_axes, epochs, _column(history, "d2_dice"), marker)
    for axes in (loss_axes, dice_axes):
        _quieten(axes)
    _save(figure, path)


def draw_panel(rows: Sequence[PanelRow], path: FilePath) -> None:
    """Draw images with the true and the predicted outlines, one image per row.

    Args:
        rows: At least one image.
        path: The picture; its suffix gives the format.
    """
    ratio = float(np.median([row.image.shape[1] / row.image.shape[2] for row in rows]))
    figure = Figure(figsize=(9.6, 0.6 + len(rows) * (3.2 * ratio + 0.25)), layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for axes_of_row, row in zip(grid, rows, strict=True):
        _draw_row(axes_of_row, row)
    handles = [
        Line2D([], [], color=TRUTH_COLOUR, lw=3, label="truth"),
        Line2D([], [], color=PREDICTION_COLOUR, lw=3, ls="--", label="prediction"),
        Line2D([], [], color=BOX_COLOUR, lw=2, ls=":", label="box"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, facecolor="#808080", labelcolor="white")
    _save(figure, path)


def draw_scores(dice: Sequence[float], interval: tuple[float, float], path: FilePath) -> None:
    """Draw the distribution of the Dice scores of a set of images.

    Args:
        dice: One score per image, in [0, 1].
        interval: Of their mean.
        path: The picture; its suffix gives the format.
    """
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.hist(dice, bins=BINS, range=(0, 1), color=LIGHT_BLUE, edgecolor="white")
    mean = float(np.mean(dice))
    axes.axvspan(*interval, color=ORANGE, alpha=0.3, lw=0, label=f"95% interval {interval[0]:.3f} to {interval[1]:.3f}")
    axes.axvline(mean, color=ORANGE, ls="--", label=f"mean {mean:.3f}")
    axes.set(xlabel="Dice", ylabel="images", xlim=(0, 1), title=f"{len(dice)} image{'s' if len(dice) != 1 else ''}")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, loc="upper left")
    _quieten(axes)
    _save(figure, path)


def _draw_dice(axes: Axes, epochs: list[float], dice: list[float], marker: str | None) -> None:
    best = int(np.argmax(dice))
    axes.plot(epochs, dice, color=GREEN, marker=marker)
    axes.plot(epochs[best], dice[best], marker="*", color="black", ms=12, ls="", label=_best_label(epochs, dice, best))
    axes.set(xlabel="epoch", ylabel="Dice on D2", ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, loc="lower right" if dice[best] > 0.4 else "upper right")


def _best_label(epochs: list[float], dice: list[float], best: int) -> str:
    return f"best: {dice[best]:.3f}, epoch {epochs[best]:.0f}"


def _draw_row(axes_of_row: Sequence[Axes], row: PanelRow) -> None:
    pixels = row.image.transpose(1, 2, 0)  # (3, H, W) -> (H, W, 3)
    for axes in axes_of_row:
        axes.imshow(pixels)
        axes.set(xticks=[], yticks=[])
    image_axes, truth_axes, prediction_axes = axes_of_row
    image_axes.set_title(row.name, fontsize=9, parse_math=False)  # a file's name may hold dollar signs
    truth_axes.set_title("truth", fontsize=9)
    prediction_axes.set_title(f"prediction, Dice {row.dice:.3f}", fontsize=9)
    _outline(truth_axes, row.truth, TRUTH_COLOUR, "solid")
    _outline(prediction_axes, row.truth, TRUTH_COLOUR, "solid")
    _outline(prediction_axes, row.prediction, PREDICTION_COLOUR, "dashed")
    if row.box is not None:
        _draw_box(prediction_axes, row.box)


def _outline(axes: Axes, ids: NDArray[np.uint8], colour: str, style: LineStyleType) -> None:
    """Draw the outline of every class of ``(H, W)``."""
    for class_id in classes_of(ids):
        dark_edge = [withStroke(linewidth=3, foreground="black"), Normal()]
        draw_on_axes(axes, ids == class_id, colour, style, 1.8, dark_edge)


def _draw_box(axes: Axes, box_in_original: Box) -> None:
    x1, y1, x2, y2 = (edge - 0.5 for edge in box_in_original)  # the centre of the first pixel is at 0
    frame = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=BOX_COLOUR, ls=":", lw=1.5)
    axes.add_patch(frame)


def _column(history: Sequence[Mapping[str, float]], name: str) -> list[float]:
    return [row[name] for row in history]


def _quieten(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", lw=0.6)
    axes.set_axisbelow(True)


def _save(figure: Figure, path: FilePath) -> None:
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # An image's name may contain characters that the font lacks; matplotlib draws boxes and warns.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        figure.savefig(temporary, dpi=DOTS_PER_INCH)
