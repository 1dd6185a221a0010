"""``amsam train``: adapt a model to a few labelled images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click

from amsam_med.bundle_settings import as_configured
from amsam_med.bundle_settings import paper_settings as paper_settings
from amsam_med.choices import Adapted, BaseName, BoxChoice, CalibrationMode, Hypergradient, PromptKind, ViewKind
from amsam_med.cli import options
from amsam_med.cli.endings import tidy_end
from amsam_med.cli.progress import progress_bars

_file = click.Path(exists=True, dir_okay=False, path_type=Path)
_of_bundle = partial(click.option, cls=options.BundleOption)
_DIGITS = 9
"""Of a number of examples, at most."""


def _parse_shots(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A number of examples; None for all, or where none is given."""
    if value in (None, "all"):
        return None
    if not (value.isascii() and value.isdigit()) or len(value) > _DIGITS or int(value) < 2:
        text = f"{value[:20]!r} is neither a number of at least 2 (half train the decoder, half the prompt) nor all"
        raise click.BadParameter(text, ctx, param)
    return int(value)


@click.command(no_args_is_help=True)
@options.labelled_data
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="The run folder.")
@click.option(
    "--bundle",
    default="amsam_isic",
    show_default=True,
    metavar="NAME|PATH",
    is_eager=True,
    help="Whose configuration to run; the defaults below are its own.",
)
@options.trust_bundle
@_of_bundle(
    "--shots", metavar="K|all", callback=_parse_shots, help="How many examples to draw; the paper has 4, 8 and 16."
)
@_of_bundle("--seed", type=click.IntRange(0, 2**31 - 1), help="Of the draw and the training.")
@_of_bundle(
    "--base",
    type=click.Choice(get_args(BaseName)),
    help="tiny and tiny-general (which saw no dermoscopy) are embedded; `amsam weights get` fetches SAM's own.",
)
@click.option("--base-weights", type=_file, help="Weights of the base.  [default: the ones of that name]")
@options.detector
@_of_bundle(
    "--prompt",
    type=click.Choice(get_args(PromptKind)),
    help="What of the box the network sees; +point adds its centre.",
)
@_of_bundle(
    "--calibration",
    type=click.Choice(get_args(CalibrationMode)),
    help="Of the masks, by Hadamard products (Eq. 9-12); the paper's only rescales logits, learned trains the fusion.",
)
@_of_bundle(
    "--hypergradient",
    type=click.Choice(get_args(Hypergradient)),
    help="How the upper level (Eq. 7-8) looks through the lower one: not at all (fastest), or through one step of it.",
)
@_of_bundle("--epochs", type=click.IntRange(min=1), help="Passes over D1.")
@_of_bundle("--batch-size", type=click.IntRange(min=1), help="Of both levels; the paper has 1.")
@_of_bundle(
    "--views",
    type=click.Choice(get_args(ViewKind)),
    help="What augments: the eight flips and rotations, the left-right mirror alone (people), or nothing.",
)
@_of_bundle(
    "--adapts",
    type=click.Choice(get_args(Adapted)),
    help="What is adapted: the mask decoder, as in the paper; also the encoder's neck, its two last convolutions; or "
    "also the encoder's last stage.",
)
@_of_bundle(
    "--halves/--all-examples",
    default=None,
    help="Cut the examples into D1 and D2, as in the paper, or give both levels all of them.",
)
@_of_bundle(
    "--box-choice",
    type=click.Choice(get_args(BoxChoice)),
    help="The detector's boxes vote on one, of the image and its mirror image, which it must be sure of; or its surest "
    "box counts as it is, as in the paper.",
)
@_of_bundle(
    "--squared-dice/--plain-dice",
    "squared_pred",
    default=None,
    help="Square the terms of the Dice loss's denominator, as the code of the paper's ancestors does, or leave them as "
    "they are; the paper does not say.",
)
@click.option("--paper", is_flag=True, help="The paper's settings instead of ours; see below.")
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), help="Keep embeddings there between runs.")
@_of_bundle("--input-size", type=click.IntRange(16, 2048), help="Model input in pixels.")
@options.device
@click.option("--resume", is_flag=True, help="Continue an interrupted run in the same folder.")
@click.pass_context
def train(
    context: click.Context,
    /,
    data: Path,
    output: Path,
    bundle: str,
    trust_bundle: bool,
    base_weights: Path | None,
    detector: str | None,
    paper: bool,
    cache: Path | None,
    device: str,
    resume: bool,
    **_of_the_bundle: Any,
) -> None:
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
    overrides: dict[str, Any] = {name: value for name, value in options.typed(context).items() if name in _OF_BUNDLE}
    if paper:
        settings = paper_settings(bundle)
        _refuse_contradictions(overrides, settings)
        overrides |= settings
    from amsam_med import weights
    from amsam_med.train import TrainOptions
    from amsam_med.train import train as run

    configured = as_configured(bundle, "train.yaml")
    prompt = overrides.get("prompt") or configured.get("prompt")
    if cache is not None:
        overrides["cache_dir"] = str(cache)
    if base_weights is not None:
        overrides["base_file"] = str(base_weights)
    if device != "auto":
        import torch

        overrides["device"] = torch.device(device)
    if prompt == "none":
        overrides["detector_file"] = None
    elif detector == "none" or (detector is None and configured.get("detector_file", "") is None):
        raise click.UsageError(
            f"--prompt {prompt} needs a detector: without one, training would see boxes that `amsam segment` has not; "
            "use --prompt none, or a detector of your own (amsam detector train)"
        )
    elif detector is not None:
        overrides["detector_file"] = str(weights.find(detector))
    with (
        progress_bars("encoding", "training") as (encoded, trained),
        tidy_end("With --resume the same command goes on from the last checkpoint."),
    ):
        result = run(
            data,
            output,
            TrainOptions(options.trusted(bundle, trust_bundle), overrides, resume),
            lambda done, total: encoded(done, total, ""),
            lambda epoch, total, dice: trained(epoch, total, f"Dice on D2 {dice:.3f}"),
        )
    click.echo(f"best Dice on D2     {100 * result.best_dice:.1f} % (epoch {result.best_epoch}, at the logits' size)")
    click.echo(f"trained parameters  {result.trained_parameters:,}")
    click.echo(f"seconds             {result.seconds:.1f}")
    chosen = {"--bundle": bundle, "--base-weights": base_weights, "--detector": None if prompt == "none" else detector}
    words = [f"{name} {value}" for name, value in chosen.items() if value not in (None, "amsam_isic")]
    click.echo(" ".join(["Use it with: amsam segment IMAGES -o OUT --adapter", str(result.adapter), *words]))


_OF_BUNDLE = frozenset(str(option.name) for option in train.params if isinstance(option, options.BundleOption))
"""Entries of ``train.yaml`` that have an option; only those that were given override the bundle."""


def _refuse_contradictions(given: Mapping[str, Any], paper: Mapping[str, Any]) -> None:
    """Refuse options given beside ``--paper`` that say something else."""
    contradictions = [name for name in paper if name in given and given[name] != paper[name]]
    if contradictions:
        words = [f"--{name.replace('_', '-')}" for name in contradictions]
        got, means = (
            ", ".join(f"{word} {values[name]}" for word, name in zip(words, contradictions, strict=True))
            for values in (given, paper)
        )
        raise click.UsageError(f"--paper means {means}; got {got}. Leave out these options, or --paper")
