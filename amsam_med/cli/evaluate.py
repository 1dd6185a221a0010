"""``amsam evaluate``: scores of a model on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from amsam_med.cli import options
from amsam_med.cli.endings import tidy_end
from amsam_med.cli.progress import progress_bars
from amsam_med.options import EvaluateOptions

if TYPE_CHECKING:
    from amsam_med.evaluate import EvaluateResult


@click.command(no_args_is_help=True)
@options.labelled_data
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to fill.")
@options.of(EvaluateOptions)
def evaluate(data: Path, output: Path, trust_bundle: bool, **given: Any) -> None:
    """Score a model on labelled images, at the images' own size.

    No human prompt is used: the boxes are the detector's, as in `amsam segment`.

    \b
    Examples:
      amsam evaluate --data my_lesions -o scores
      amsam evaluate --data isic2018 --part test -o scores
      amsam evaluate --data my_lesions --adapter run/adapter.safetensors -o scores

    \b
    The output folder then holds:
      scores.csv    Dice, IoU, HD95 and flags of every image
      scores.json   means with 95 % bootstrap intervals, threshold Jaccard, empty masks
      scores.png    the distribution of Dice
    """  # noqa: D301  # click's mark for "do not wrap" is the character backspace itself
    from amsam_med.bundle import default_bundle
    from amsam_med.evaluate import evaluate as run

    bundle = options.trusted(given["bundle"] or default_bundle(given["adapter"]), trust_bundle)
    chosen = EvaluateOptions(**{**given, "bundle": bundle})
    with progress_bars("scoring") as (scored,), tidy_end("What was scored is lost: begin again."):
        result = run(data, output, chosen, lambda done, total: scored(done, total, ""))
    _print(result)


def _print(result: EvaluateResult) -> None:
    summary = result.summary
    low, high = (100 * bound for bound in summary.dice_interval)
    iou_low, iou_high = (100 * bound for bound in summary.iou_interval)
    rows = {
        "images": f"{summary.images}" + (f" ({result.part})" if result.part else ""),
        "Dice": f"{100 * summary.dice:.1f} % (95 % interval {low:.1f} to {high:.1f})",
        "median Dice": f"{100 * summary.dice_median:.1f} %",
        "IoU (Jaccard)": f"{100 * summary.iou:.1f} % (95 % interval {iou_low:.1f} to {iou_high:.1f})",
        "threshold Jaccard": f"{100 * summary.threshold_jaccard:.1f} %",
        "HD95": "-" if summary.hd95 is None else f"{summary.hd95:.1f} px ({summary.hd95_images} images)",
        "empty predictions": f"{summary.empty_predictions}",
        "empty truths": f"{summary.empty_truths}",
        "flagged": f"{summary.flagged}",
        "Dice at the logits": f"{100 * summary.dice_at_logits:.1f} %",
    }
    for name, text in rows.items():
        click.echo(f"{name:<20}{text}")
    click.echo(f"Scores are in {result.folder}.")
