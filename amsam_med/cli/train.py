"""``amsam train``: adapt a model to a few labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from amsam_med.bundle_settings import paper_settings as paper_settings
from amsam_med.cli import options
from amsam_med.cli.endings import tidy_end
from amsam_med.cli.progress import progress_bars
from amsam_med.domains import DEFAULT_BUNDLE
from amsam_med.errors import ConfigError
from amsam_med.options import TrainOptions, described

_DIGITS = 9
"""Of a number of examples, at most."""


def _shots(ctx: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
    if value in (None, "all"):
        return value
    if not (value.isascii() and value.isdigit()) or len(value) > _DIGITS or int(value) < 2:
        text = f"{value[:20]!r} is neither a number of at least 2 (half train the decoder, half the prompt) nor all"
        raise click.BadParameter(text, ctx, param)
    return int(value)


@click.command(no_args_is_help=True)
@options.labelled_data
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="The run folder.")
@options.of(TrainOptions, "bundle", bundle={"is_eager": True})
@options.of(
    TrainOptions, *(one.name for one in described(TrainOptions) if one.name != "bundle"), shots={"callback": _shots}
)
@click.pass_context
def train(context: click.Context, /, data: Path, output: Path, trust_bundle: bool, **given: Any) -> None:
    """Adapt a model to a few labelled images, by bi-level training.

    The image encoder stays frozen and sees each image once; half of the examples (D1) train the decoder's LoRA and
    heads, the other half (D2) the prompt embedding. The best epoch by Dice on D2 is kept.

    \b
    Examples:
      amsam train --data my_lesions -o run
      amsam train --data isic2018 -o run --shots 16 --seed 3 --calibration learned
      amsam train --data isic2018 -o run --shots 16 --seed 3 --calibration learned --resume

    \b
    Where --paper differs from the defaults of amsam_isic:
      epochs                  100 instead of 30
      lower_rate              0.005 instead of 0.001
      upper_rate              0.001 instead of 0.0002
      views                   none instead of all
      box_choice              surest instead of vote

    Our rates and epochs were chosen on the compact bases. For SAM's ViT bases, whose decoder starts further from the
    task, --paper is the better first try.

    \b
    The run folder then holds:
      adapter.safetensors     for `amsam segment --adapter` and `amsam evaluate --adapter`
      history.csv, curves.png losses and Dice of every epoch
      panel.png               examples of D2 with truth and prediction
      split.json, run.json    which examples were drawn, all settings
      checkpoint.pt           for --resume
    """  # noqa: D301  # click's mark for "do not wrap" is the character backspace itself
    from amsam_med.bundle import training_overrides
    from amsam_med.train import train as run

    chosen = TrainOptions(**given)
    try:
        entries = training_overrides(chosen)
    except ConfigError as error:
        raise click.UsageError(str(error), context) from error
    options.trusted(chosen.bundle, trust_bundle)
    with (
        progress_bars("encoding", "training") as (encoded, trained),
        tidy_end("With --resume the same command goes on from the last checkpoint."),
    ):
        result = run(
            data,
            output,
            chosen,
            lambda done, total: encoded(done, total, ""),
            lambda epoch, total, dice: trained(epoch, total, f"Dice on D2 {dice:.3f}"),
        )
    click.echo(f"best Dice on D2     {100 * result.best_dice:.1f} % (epoch {result.best_epoch}, at the logits' size)")
    click.echo(f"trained parameters  {result.trained_parameters:,}")
    click.echo(f"seconds             {result.seconds:.1f}")
    is_without_boxes = entries.get("detector_file", "") is None
    used = {
        "--bundle": None if chosen.bundle == DEFAULT_BUNDLE else chosen.bundle,
        "--base-weights": chosen.base_weights,
        "--detector": None if is_without_boxes else chosen.detector,
    }
    words = [f"{flag} {value}" for flag, value in used.items() if value is not None]
    click.echo(" ".join(["Use it with: amsam segment IMAGES -o OUT --adapter", str(result.adapter), *words]))
