"""``amsam detector``: train box detectors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from amsam_med.cli import options
from amsam_med.cli.endings import tidy_end

if TYPE_CHECKING:
    from amsam_med.data.sets.pairs import Item
    from amsam_med.detect.yolo import DetectorScores, TrainingProgress

_OTHER_KINDS = (".pt", ".pth", ".json")
"""Suffixes of pickles, and of the scores that are written beside the weights."""
_folder = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group()
def detector() -> None:
    """Train box detectors.

    A detector finds the object in an image; its box prompts the segmentation network in place of clicks.
    """


@detector.command(no_args_is_help=True)
@click.option(
    "--data", "folders", type=_folder, required=True, multiple=True, help="Labelled images; may be given repeatedly."
)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="A .safetensors file."
)
@click.option(
    "--validation",
    type=_folder,
    help="Labelled images that select the best epoch.  [default: every tenth image of --data]",
)
@click.option(
    "--from",
    "start",
    metavar="CHECKPOINT",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Weights to begin with: another detector, or ultralytics' yolov8n.pt.  [default: random]",
)
@click.option("--trust-pickle", is_flag=True, help="Allow a .pt file for --from: reading one can run any code in it.")
@click.option("--class-name", default="object", show_default=True, help="What the detector finds; kept in the file.")
@click.option("--classes", type=click.IntRange(1, 255), default=1, show_default=True, help="Class ids in the masks.")
@click.option("--instances", is_flag=True, help="Each id in a mask is an object of its own, not all of them one.")
@click.option("--upright", is_flag=True, help="Objects have an up side, as people have: no vertical flips.")
@click.option(
    "--mosaic",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of training images composed of four; helps where objects may be small.",
)
@click.option("--epochs", type=click.IntRange(min=0), default=8, show_default=True, help="0 only measures --from.")
@click.option(
    "--input-size",
    type=click.IntRange(64, 2048),
    default=256,
    show_default=True,
    help="Side in pixels to which images are squashed; a multiple of 32.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@options.device
def train(
    folders: tuple[Path, ...],
    output: Path,
    validation: Path | None,
    start: Path | None,
    trust_pickle: bool,
    class_name: str,
    classes: int,
    instances: bool,
    upright: bool,
    mosaic: float,
    epochs: int,
    input_size: int,
    batch_size: int,
    seed: int,
    device: str,
) -> None:
    """Train a detector (YOLOv8n) on the boxes of masks.

    A folder holds images/ and masks/, or is the root of ISIC 2018, Human (Vikram) or TikTok, of which the training part
    is taken. The box of an image is that of all non-zero pixels of its mask; an image with an empty mask teaches what
    is no object.

    \b
    Examples:
      amsam detector train --data lesions/ -o lesion.safetensors
      amsam detector train --data isic2018/ --validation isic2018/ -o lesion.safetensors --class-name lesion
      amsam detector train --data mine/ --from lesion.safetensors -o mine.safetensors --epochs 20

    Beside the weights a JSON file tells how good the best epoch is on the validation images: mean average precision of
    all boxes; the share of images whose one best box, the later prompt, has an IoU of at least 0.5 and 0.75; and how
    far the edges of that box are off.

    1,600 images at 256 pixels take one to two minutes an epoch on two cores. The network and its weights are under
    AGPL-3.0, as ultralytics is.
    """  # noqa: D301  # click's mark for "do not wrap" is the character backspace itself
    from monai.data.dataset import Dataset

    from amsam_med.data.sets.pairs import refuse_output_among
    from amsam_med.data.transforms import preprocessing
    from amsam_med.detect.labels import hold_out
    from amsam_med.detect.yolo import TrainingOptions, save_detector, train_detector
    from amsam_med.files import sweep_unfinished
    from amsam_med.locks import held
    from amsam_med.machine import limits_named

    options = TrainingOptions(
        class_name=class_name,
        has_instances=instances,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        device=device,
        is_upright=upright,
        mosaic=mosaic,
        start=start,
        trust_pickle=trust_pickle,
    )
    if output.suffix in _OTHER_KINDS:
        raise click.BadParameter(
            f"{output.name} would not be read as a detector; give a name.safetensors", param_hint="-o"
        )
    items = [item for folder in folders for item in _items(folder, "train")]
    learned, selecting = (items, _items(validation, "val")) if validation else hold_out(items)
    refuse_output_among([*learned, *selecting], output.parent)
    prepare = preprocessing(input_size, with_label=True, label_at="original", num_classes=classes)
    lock = output.with_name(f".{output.name}.lock")
    with (
        limits_named(output, "give a smaller --batch-size or --input-size, or --device cpu"),
        held(lock, str(output)),
        tidy_end("Nothing was written; the training begins anew."),
        _progress() as show,
    ):
        for written in (output, output.with_suffix(".json")):
            sweep_unfinished(written)
        trained, scores = train_detector(Dataset(learned, prepare), Dataset(selecting, prepare), options, show)
        save_detector(trained, output, scores)
    _print(scores, output)


def _items(folder: Path, part: str) -> list[Item]:
    """A plain folder's pairs, or a part of a known data set."""
    from amsam_med.data.sets.registry import datalist_parts, open_datalist

    return open_datalist(folder, part if datalist_parts(folder) else None)


@contextmanager
def _progress() -> Iterator[Callable[[TrainingProgress], None]]:
    """A line per epoch, and below them a bar if a person is looking at it."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bars:
        task = bars.add_task("preparing images", total=None)

        def show(progress: TrainingProgress) -> None:
            epoch = f"epoch {progress.epoch}/{progress.epochs}"
            bars.update(task, description=epoch, completed=progress.step, total=progress.steps)
            if progress.map50 is not None:
                click.echo(f"{epoch}: loss {progress.loss:.3f}, mAP50 {progress.map50:.3f}", err=True)

        yield show


def _print(scores: DetectorScores, output: Path) -> None:
    best_box = scores.best_box
    click.echo(f"mAP50 {scores.map50:.3f}, mAP50-95 {scores.map50_95:.3f} on {best_box.images} validation images")
    click.echo(
        f"best box: mean IoU {best_box.mean_iou:.3f}; IoU at least 0.5 in {best_box.iou50:.1%} of the images, at least "
        f"0.75 in {best_box.iou75:.1%}; no box in {best_box.without_box:.1%}"
    )
    click.echo(f"its edges are off by {best_box.edge_error:.1%} of the object's width or height (standard deviation)")
    click.echo(f"Written: {output} and {output.with_suffix('.json').name}.")
