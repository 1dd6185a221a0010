"""``amsam train``: adapt a model to a few labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from amsam_med.cli import options
from amsam_med.cli.endings import tidy_end
from amsam_med.cli.progress import progress_bars

_file = click.Path(exists=True, dir_okay=False, path_type=Path)
_DIGITS = 9
"""Of a number of examples, at most."""


def paper_settings() -> dict[str, Any]:
    """What ``--paper`` sets: entries of ``train.yaml`` by name."""
    import yaml

    from amsam_med.weights import bundles_folder

    text = (bundles_folder() / "amsam_isic" / "configs" / "paper.yaml").read_text(encoding="utf-8")
    settings: dict[str, Any] = yaml.safe_load(text)
    return settings


def _parse_shots(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """A number of examples; None for all."""
    if value == "all":
        return None
    if not (value.isascii() and value.isdigit()) or len(value) > _DIGITS or int(value) < 2:
        text = f"{value[:20]!r} is neither a number of at least 2 (half train the decoder, half the prompt) nor all"
        raise click.BadParameter(text, ctx, param)
    return int(value)


@click.command(no_args_is_help=True)
@options.labelled_data
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="The run folder.")
@click.option(
    "--shots",
    metavar="K|all",
    callback=_parse_shots,
    default="8",
    show_default=True,
    help="How many examples to draw; the paper has 4, 8 and 16.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of the draw and the training."
)
@click.option(
    "--base",
    type=click.Choice(["tiny", "tiny-general", "vit_b", "vit_l", "vit_h"]),
    default="tiny",
    show_default=True,
    help="tiny and tiny-general (which saw no dermoscopy) are embedded; `amsam weights get` fetches SAM's own.",
)
@click.option("--base-weights", type=_file, help="Weights of the base.  [default: the ones of that name]")
@click.option(
    "--bundle", default="amsam_isic", show_default=True, metavar="NAME|PATH", help="Whose configuration to run."
)
@options.trust_bundle
@options.detector
@click.option(
    "--prompt",
    type=click.Choice(["box", "box+point", "none"]),
    default="box",
    show_default=True,
    help="What of the box the network sees; +point adds its centre.",
)
@click.option(
    "--calibration",
    type=click.Choice(["none", "paper", "learned"]),
    default="paper",
    show_default=True,
    help="Of the masks, by Hadamard products (Eq. 9-12); the paper's only rescales logits, learned trains the fusion.",
)
@click.option(
    "--hypergradient",
    type=click.Choice(["first-order", "unrolled", "exact"]),
    default="first-order",
    show_default=True,
    help="How the upper level (Eq. 7-8) looks through the lower one: not at all (fastest), or through one step of it.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=30, show_default=True, help="Passes over D1.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Of both levels; the paper has 1."
)
@click.option(
    "--views",
    type=click.Choice(["all", "mirror", "none"]),
    help="What augments: the eight flips and rotations, the left-right mirror alone (people), or nothing.  "
    "[default: the bundle's]",
)
@click.option(
    "--adapts",
    type=click.Choice(["decoder", "neck", "stage"]),
    help="What is adapted: the mask decoder, as in the paper; also the encoder's neck, its two last convolutions; or "
    "also the encoder's last stage.  [default: the bundle's]",
)
@click.option(
    "--halves/--all-examples",
    default=None,
    help="Cut the examples into D1 and D2, as in the paper, or give both levels all of them.  [default: the bundle's]",
)
@click.option("--paper", is_flag=True, help="The paper's settings instead of ours; see below.")
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), help="Keep embeddings there between runs.")
@click.option(
    "--input-size", type=click.IntRange(16, 2048), default=256, show_default=True, help="Model input in pixels."
)
@options.device
@click.option("--resume", is_flag=True, help="Continue an interrupted run in the same folder.")
def train(
    data: Path,
    output: Path,
    shots: int | None,
    seed: int,
    base: str,
    base_weights: Path | None,
    bundle: str,
    trust_bundle: bool,
    detector: str | None,
    prompt: str,
    calibration: str,
    hypergradient: str,
    epochs: int,
    batch_size: int,
    views: str | None,
    adapts: str | None,
    halves: bool | None,
    paper: bool,
    cache: Path | None,
    input_size: int,
    device: str,
    resume: bool,
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
    Where --paper differs from the defaults:
      epochs                  100 instead of 30
      lower_rate              0.005 instead of 0.001
      upper_rate              0.001 instead of 0.0002
      views                   none instead of all

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
    if paper:
        _refuse_contradictions(click.get_current_context())
    from amsam_med import weights
    from amsam_med.train import TrainOptions
    from amsam_med.train import train as run

    overrides: dict[str, Any] = {
        "shots": shots,
        "seed": seed,
        "base": base,
        "prompt": prompt,
        "calibration": calibration,
        "hypergradient": hypergradient,
        "epochs": epochs,
        "batch_size": batch_size,
        "cache_dir": None if cache is None else str(cache),
        "input_size": input_size,
    }
    of_bundle = {"views": views, "adapts": adapts, "halves": halves}
    overrides |= {name: value for name, value in of_bundle.items() if value is not None}
    if paper:
        overrides |= paper_settings()
    if base_weights is not None:
        overrides["base_file"] = str(base_weights)
    if device != "auto":
        import torch

        overrides["device"] = torch.device(device)
    if prompt == "none":
        overrides["detector_file"] = None
    elif detector == "none":
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


def _refuse_contradictions(context: click.Context) -> None:
    """Refuse options given beside ``--paper`` that say something else."""
    given = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    contradictions = {
        name: value for name, value in paper_settings().items() if name in given and context.params[name] != value
    }
    if contradictions:
        words = [f"--{name.replace('_', '-')}" for name in contradictions]
        got, means = (
            ", ".join(f"{word} {value}" for word, value in zip(words, values, strict=True))
            for values in ([context.params[name] for name in contradictions], contradictions.values())
        )
        raise click.UsageError(f"--paper means {means}; got {got}. Leave out these options, or --paper")
