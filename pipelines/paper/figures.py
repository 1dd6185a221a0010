"""The paper's figures, one command each, as PDF and PNG.

    python -m pipelines.paper.figures figure1 --data DATA -o RUN --sets isic2018  # masks over epochs
    python -m pipelines.paper.figures figure4 --data DATA -o RUN                  # panels; 7: TikTok, 8: Vikram
    python -m pipelines.paper.figures figure5 --data DATA -o RUN --sets isic2018  # Dice per epoch, AM-SAM and BLO-SAM
    python -m pipelines.paper.figures figure6 --data DATA -o RUN                  # the weight α
    python -m pipelines.paper.figures figure4 --drawn -o RUN                      # of drawn lesions

Figures 5 and 6 are drawn from images that no result is reported on, and keep their numbers in ``RUN/results.sqlite``;
1, 4, 7 and 8 train anew and show test images, or with ``--drawn`` lesions that are drawn and that anybody may publish.
Colours are Okabe and Ito's; line styles and markers differ as well, so a grey print says the same.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from amsam_med.data.readers import read_image, read_mask
from amsam_med.data.transforms import restore_original
from amsam_med.errors import AmsamError, DataError
from amsam_med.evaluate import dice_score
from amsam_med.files import atomic_path
from amsam_med.model import AmSam
from amsam_med.plots import BLUE, DOTS_PER_INCH, ORANGE
from amsam_med.synthetic import write_dermoscopy
from amsam_med.threads import set_threads
from pipelines.paper.cells import Bench, Job, Workspace, run_cell
from pipelines.paper.options import base_file, common_options
from pipelines.paper.store import AM_SAM, Cell, Store
from pipelines.paper.tasks import TASKS

BLO_SAM_JOB = Job(AM_SAM, {"prompt": "none", "calibration": "none"}, is_paper=True)
AM_SAM_JOB = Job(AM_SAM, {}, "shipped", is_paper=True)
SIDES = {"AM-SAM": AM_SAM_JOB, "BLO-SAM": BLO_SAM_JOB}
STYLES = {"AM-SAM": (BLUE, "-", "o"), "BLO-SAM": (ORANGE, "--", "s")}
EPOCHS_SHOWN = (1, 2, 5, 10, 30, 100)
EPOCHS_SCORED = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 75, 100)
FIGURE_1_SHOTS, FIGURE_5_SHOTS, FIGURE_6_SHOTS = 4, 8, 8
ALPHA_SETTINGS: dict[str, Any] = {}
"""Of figure 6, over the defaults of `amsam train`."""
PAPER_ALPHA = 0.7
ALPHAS = (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)
DRAWN = {"train": (16, 1), "test": (8, 2)}
"""Numbers of drawn lesions and their seeds, by part."""
PANEL_SETS = {"figure4": "isic2018", "figure7": "tiktok", "figure8": "human_vikram"}
RIGHT, MISSED, EXTRA = np.array([[0.3, 0.3, 0.3], [0.337, 0.706, 0.914], [0.902, 0.624, 0.0]])
"""Of a mask's pixels: in both, in the truth alone (sky blue), in the prediction alone (orange)."""
SIDE = 1.7
"""Of a picture of a panel, in inches."""


class Shown(NamedTuple):
    """A test image with what is drawn beside it.

    Attributes:
        pixels: uint8 ``(3, H, W)``.
        truth: uint8 ``(H, W)``.
        masks: By title, uint8 ``(H, W)``.
    """

    pixels: np.ndarray
    truth: np.ndarray
    masks: dict[str, np.ndarray]


def draw_set(folder: Path) -> Path:
    """Drawn lesions in the place of ISIC 2018, to learn from and to show; the same ones each time."""
    for part, (count, seed) in DRAWN.items():
        write_dermoscopy(folder / "isic2018" / part, count, seed=seed)
    return folder


def draw_epochs(bench: Bench, path: Path, images: int, seed: int) -> list[Path]:
    """Figure 1: the masks of both methods after some epochs, one image in two rows.

    Args:
        bench: Of the test images.
        path: Without suffix.
        images: How many.
        seed: Of the training, and of the choice of images.
    """
    chosen = random.Random(seed).sample(range(len(bench.test.items)), images)  # noqa: S311  # a draw, not cryptography
    shown = {name: [_blank(bench, one) for one in chosen] for name in SIDES}
    for name, job in SIDES.items():
        detector = bench.detector_file(job.detector, FIGURE_1_SHOTS, seed)

        def keep(epoch: int, network: AmSam, detector: Path | None = detector, name: str = name) -> None:
            if epoch in EPOCHS_SHOWN:
                for one, picture in zip(chosen, shown[name], strict=True):
                    logits = bench.am_sam_logits(network, detector, slice(one, one + 1))
                    picture.masks[f"epoch {epoch}"] = _restored(logits, picture.truth)

        with torch.no_grad():
            bench.test.encoded(bench.workspace)
        bench.train(job, FIGURE_1_SHOTS, seed, detector, _without_gradients(keep))
    rows = [(name, shown[name][i]) for i in range(images) for name in SIDES]
    return _draw_grid(rows, path)


def draw_panels(bench: Bench, path: Path, images: int, seed: int, shots: int) -> list[Path]:
    """Figures 4, 7 and 8: image, truth, BLO-SAM and AM-SAM on images drawn with a seed."""
    chosen = random.Random(seed).sample(range(len(bench.test.items)), images)  # noqa: S311  # a draw, not cryptography
    shown = [_blank(bench, one) for one in chosen]
    for name in ("BLO-SAM", "AM-SAM"):
        job = SIDES[name]
        detector = bench.detector_file(job.detector, shots, seed)
        trained = bench.train(job, shots, seed, detector)
        for one, picture in zip(chosen, shown, strict=True):
            with torch.no_grad():
                picture.masks[name] = _restored(trained.predict(slice(one, one + 1)), picture.truth)
    return _draw_grid([("", picture) for picture in shown], path)


def draw_convergence(bench: Bench, store: Store, path: Path, seeds: int) -> list[Path]:
    """Figure 5: Dice per epoch of both methods, mean and range over seeds."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, job in SIDES.items():
        curves = [learning_curve(bench, store, job, FIGURE_5_SHOTS, seed) for seed in range(seeds)]
        epochs = sorted(set(curves[0]).intersection(*curves))
        values = 100 * np.array([[curve[epoch] for epoch in epochs] for curve in curves])
        colour, line, marker = STYLES[name]
        axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, lw=0)
        axes.plot(epochs, values.mean(axis=0), color=colour, ls=line, marker=marker, ms=3, label=name)
    title = f"{TASKS[bench.name].title}, {FIGURE_5_SHOTS} examples, {seeds} seed{'s'[: seeds > 1]}"
    axes.set(xlabel="epoch", ylabel=f"Dice on {len(bench.test.items)} validation images, %", title=title, xlim=(0, 101))
    axes.legend(frameon=False, loc="lower right")
    return _finish(figure, [axes], path)


def learning_curve(bench: Bench, store: Store, job: Job, shots: int, seed: int) -> dict[int, float]:
    """Dice in [0, 1] on the bench's images after some epochs; taken from the record where it is there."""
    identity = bench.identity(job, shots, seed)
    if curve := store.curve(identity):
        return curve
    detector, found = bench.detector_file(job.detector, shots, seed), dict[int, float]()

    def note(epoch: int, network: AmSam) -> None:
        if epoch in EPOCHS_SCORED:
            scores = bench.test.score(lambda some: bench.am_sam_logits(network, detector, some))
            found[epoch] = statistics.fmean(scores.values())

    bench.test.encoded(bench.workspace)
    bench.train(job, shots, seed, detector, _without_gradients(note))
    store.add_curve(identity, found)
    return found


def draw_alphas(benches: Sequence[Bench], store: Store, path: Path, seeds: int) -> list[Path]:
    """Figure 6: Dice over the weight α of Eq. 12, mean and standard deviation over seeds; the paper's α is marked."""
    figure = Figure(figsize=(3.6 * len(benches), 3.2), layout="constrained")
    all_axes = list(figure.subplots(1, len(benches), squeeze=False)[0])
    for axes, bench, (colour, line, marker) in zip(all_axes, benches, STYLES.values(), strict=False):
        means, deviations = [], []
        for alpha in ALPHAS:
            job = Job(AM_SAM, {**ALPHA_SETTINGS, "alpha": alpha}, "shipped")
            dice = [100 * _cell(bench, store, job, FIGURE_6_SHOTS, seed).measured.dice for seed in range(seeds)]
            means.append(statistics.fmean(dice))
            deviations.append(statistics.stdev(dice) if seeds > 1 else 0.0)
        axes.axvline(PAPER_ALPHA, color="#555555", ls=":", lw=1)
        axes.errorbar(ALPHAS, means, deviations, color=colour, ls=line, marker=marker, ms=4, capsize=3)
        axes.margins(y=0.15)  # so that the words find room above
        place = (PAPER_ALPHA, 0.98)
        axes.annotate("the paper's ", place, xycoords=("data", "axes fraction"), ha="right", va="top", fontsize=8)
        axes.set(xlabel="α, weight of the uncalibrated mask", title=TASKS[bench.name].title)
    all_axes[0].set_ylabel("Dice on validation images, %")
    figure.suptitle(f"{FIGURE_6_SHOTS} examples, {seeds} seed{'s'[: seeds > 1]}")
    return _finish(figure, all_axes, path)


def _cell(bench: Bench, store: Store, job: Job, shots: int, seed: int) -> Cell:
    run_cell(bench, store, job, shots, seed)
    key = bench.identity(job, shots, seed).key
    return next(cell for cell in store.cells() if cell.identity.key == key)


def _blank(bench: Bench, index: int) -> Shown:
    item = bench.test.items[index]
    return Shown(read_image(item["image"]).pixels, read_mask(item["label"]), {})


def _restored(logits: Tensor, truth: np.ndarray) -> np.ndarray:
    return restore_original(logits[0].float().cpu(), (truth.shape[0], truth.shape[1])).numpy()


def _without_gradients(told: Callable[[int, AmSam], None]) -> Callable[[int, AmSam], None]:
    def tell(epoch: int, network: AmSam) -> None:
        with torch.no_grad():
            told(epoch, network)

    return tell


def _draw_grid(rows: Sequence[tuple[str, Shown]], path: Path) -> list[Path]:
    """A row for each image (and method), a column for each mask."""
    titles = list(rows[0][1].masks)
    ratio = float(np.median([shown.truth.shape[0] / shown.truth.shape[1] for _, shown in rows]))
    columns = 2 + len(titles)
    figure = Figure(figsize=(SIDE * columns, (SIDE * ratio + 0.25) * len(rows) + 0.4), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_of_row, (name, shown) in zip(grid, rows, strict=True):
        axes_of_row[0].imshow(shown.pixels.transpose(1, 2, 0))
        axes_of_row[0].set_ylabel(name, fontsize=9)
        axes_of_row[1].imshow(shown.truth, cmap="gray", vmin=0, vmax=1)
        for axes, title in zip(axes_of_row[2:], titles, strict=True):
            _draw_mask(axes, shown.masks[title], shown.truth)
        for axes in axes_of_row:
            axes.set(xticks=[], yticks=[])
    for axes, title in zip(grid[0], ("image", "truth", *titles), strict=True):
        axes.text(0.5, 1.2, title, transform=axes.transAxes, ha="center", fontsize=9)
    kinds = {"right": RIGHT, "missed": MISSED, "too much": EXTRA}
    handles = [Patch(color=tuple(colour), label=label) for label, colour in kinds.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return _save(figure, path)


def _draw_mask(axes: Axes, mask: np.ndarray, truth: np.ndarray) -> None:
    """What is right, missed and too much on white, with the Dice above; the truth's outline stays in a grey print."""
    picture = np.ones((*mask.shape, 3))
    is_mask, is_truth = mask != 0, truth != 0
    picture[is_mask & is_truth], picture[~is_mask & is_truth], picture[is_mask & ~is_truth] = RIGHT, MISSED, EXTRA
    axes.imshow(picture)
    if is_truth.any() and not is_truth.all():
        axes.contour(is_truth, levels=[0.5], colors="black", linewidths=0.7)
    dice = dice_score(torch.from_numpy(mask), torch.from_numpy(truth))
    axes.set_title(f"{100 * dice:.1f}", fontsize=8, pad=2)


def _finish(figure: Figure, all_axes: Sequence[Axes], path: Path) -> list[Path]:
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#DDDDDD", lw=0.6)
        axes.set_axisbelow(True)
    return _save(figure, path)


def _save(figure: Figure, path: Path) -> list[Path]:
    """As PDF with text that stays text, and as PNG."""
    written = [path.with_name(f"{path.name}{suffix}") for suffix in (".pdf", ".png")]
    with mpl.rc_context({"pdf.fonttype": 42}):
        for one in written:
            with atomic_path(one) as temporary:
                figure.savefig(temporary, dpi=DOTS_PER_INCH, format=one.suffix[1:])
    return written


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.paper.figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common_options()],
    )
    parser.add_argument("figure", choices=["figure1", "figure5", "figure6", *PANEL_SETS])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="the data folder")
    source.add_argument("--drawn", action="store_true", help="draw lesions instead (figures 1 and 4)")
    parser.add_argument("--documents", type=Path, help="where the figure goes (default: OUTPUT/figures)")
    parser.add_argument("--sets", nargs="+", choices=list(TASKS), help="data sets (default: the figure's)")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 (figures 5 and 6)")
    parser.add_argument("--seed", type=int, default=0, help="of the training that figures 1, 4, 7 and 8 show")
    parser.add_argument("--images", type=int, default=4, help="rows of panels (figure 1: 2)")
    parser.add_argument("--shots", type=int, default=8, help="examples (figures 4, 7 and 8)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what the command line asks for."""
    options = parse(arguments)
    if options.drawn and options.figure not in ("figure1", "figure4"):
        raise DataError(f"{options.figure} is not made of drawn lesions; give --data")
    set_threads(options.threads)
    workspace = Workspace(
        data=draw_set(options.output / "drawn") if options.drawn else options.data,
        output=options.output,
        base=options.base,
        base_file=base_file(options),
        device=options.device,
    )
    store, folder = Store(options.output), options.documents or options.output / "figures"
    for path in _draw(options, workspace, store, folder):
        print(path)


def _draw(options: argparse.Namespace, workspace: Workspace, store: Store, folder: Path) -> list[Path]:
    name = options.figure
    sets = options.sets or [PANEL_SETS.get(name, "isic2018")]
    if name == "figure6":
        benches = [Bench(one, workspace, "val") for one in options.sets or ("isic2018", "human_vikram")]
        return draw_alphas(benches, store, folder / f"{name}-{workspace.base}", options.seeds)
    written = []
    for one in sets:
        path = folder / f"{name}-{'drawn' if options.drawn else one}-{workspace.base}"
        if name == "figure5":
            written += draw_convergence(Bench(one, workspace, "val"), store, path, options.seeds)
        elif name == "figure1":
            written += draw_epochs(Bench(one, workspace), path, min(2, options.images), options.seed)
        else:
            written += draw_panels(Bench(one, workspace), path, options.images, options.seed, options.shots)
    return written


if __name__ == "__main__":
    try:
        main()
    except AmsamError as error:
        sys.exit(f"error: {error}")
