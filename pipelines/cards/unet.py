"""The usual baseline: MONAI's U-Net, trained on the adapters' images for a given time.

    python -m pipelines.cards.unet --data DATA -o OUT --set isic2018 --minutes 12     # trains, then compares
    python -m pipelines.cards.unet compare --data DATA -o OUT --set isic2018          # compares again

The network is a plain U-Net (``DynUNet``) of 3.8 M parameters from random weights. It sees the same 256 x 256 pixels,
the same augmentations, hair and rulers, the same loss and the same course of learning rate and input size as the base's
pre-training. Of the exponential averages of its weights, taken eight times, the one with the best Dice on the
validation images is kept. Then it and a bundle are scored by the same functions on the test images at their own size.

A run that is killed continues where it stopped when the same command is given again.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from monai.metrics import compute_dice
from monai.networks.nets import DynUNet
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from amsam_med import weights
from amsam_med.data.datalists import Item, open_datalist
from amsam_med.data.readers import read_image, read_mask
from amsam_med.data.transforms import prepare_image, restore_original
from amsam_med.domains import DOMAINS, Domain
from amsam_med.evaluate import SCORES_TABLE, EvaluateOptions, ImageScore, evaluate, score_image, summarise
from amsam_med.files import atomic_path, write_json
from amsam_med.learn.loss import SegmentationLoss
from pipelines.cards.reporting import percent
from pipelines.markdown import table, write_block
from pipelines.weights.pretrain import STAGES, learning_rate
from pipelines.weights.restart import RestartableRun
from pipelines.weights.scenes import (
    OVERLAYS,
    SOURCES,
    Items,
    Scene,
    Source,
    add_overlays,
    augment,
    draw_overlays,
    load_source,
)

FILTERS = (32, 64, 128, 192, 256)
BATCH_SIZE = 8
PEAK_RATE = 2e-3
EMA_DECAY = 0.99
VALIDATIONS = 8
HELD_OUT = 10
"""Where a set has no validation part, every tenth of its images is for validation."""
CHECKPOINT_EVERY_S = 120.0
INPUT_SIZE = STAGES[-1][0]


class Task(NamedTuple):
    """A set to learn and its rivals.

    Attributes:
        folder: Of the data set whose part ``test`` is scored.
        shares: Sources to learn from and their shares of a batch.
        validation: The source to select by; None to hold out a part of the first source.
        bundle: Whose result stands beside the U-Net's.
    """

    folder: str
    shares: dict[str, float]
    validation: str | None
    bundle: str


def _task(domain: Domain) -> Task:
    known = {source.folder for source in SOURCES}
    learned = [part[0] if part[0] in known else "/".join(filter(None, part)) for part in domain.examples]
    validation = None if domain.validation is None else "/".join(filter(None, domain.validation))
    return Task(domain.data_set, dict.fromkeys(learned, 1 / len(learned)), validation, domain.bundle)


TASKS = {domain.data_set: _task(domain) for domain in DOMAINS}


class Images(NamedTuple):
    """Training and validation images of a task.

    Attributes:
        train: By source.
        limits: By source: the largest rotation in degrees, and the smallest part of an image's side to show.
        validation: Held out.
    """

    train: dict[str, Items]
    limits: dict[str, tuple[float, float]]
    validation: Items


def build_unet() -> DynUNet:
    """Logits of background and object at half the input's size, for sides that 32 divides."""
    strides = (2,) * len(FILTERS)
    return DynUNet(2, 3, 2, (3,) * len(FILTERS), strides, strides[1:], filters=FILTERS, norm_name="batch")


def load_images(data: Path, task: Task) -> Images:
    """Read a task's images into memory.

    Raises:
        FileNotFoundError: A folder or a mask is missing.
    """
    sources = {source.folder: source for source in SOURCES}
    sources = {folder: sources.get(folder, Source(folder)) for folder in task.shares}
    train = {folder: load_source(data, sources[folder]) for folder in task.shares}
    limits = {folder: (sources[folder].turn, sources[folder].closest) for folder in train}
    if task.validation is not None:
        like = sources[next(iter(train))]
        return Images(train, limits, load_source(data, like._replace(folder=task.validation)))
    first = next(iter(train))
    is_held_out = torch.arange(len(train[first])) % HELD_OUT == HELD_OUT - 1
    validation, train[first] = train[first].take(is_held_out), train[first].take(~is_held_out)
    return Images(train, limits, validation)


def draw_scene(images: Images, shares: dict[str, float], overlays: Tensor, size: int, device: torch.device) -> Scene:
    """An augmented batch; randomness from torch's global generator."""
    folders = list(shares)
    choice = torch.multinomial(torch.tensor(list(shares.values())), BATCH_SIZE, replacement=True)
    chosen = [folders[int(index)] for index in choice]
    picks = []
    for folder in chosen:
        number = int(torch.randint(len(images.train[folder]), (1,)))
        picks.append(images.train[folder].take(slice(number, number + 1)))
    batch = Items(*(torch.cat(parts).to(device) for parts in zip(*picks, strict=True)))
    scene = augment(batch, torch.tensor([images.limits[folder] for folder in chosen]), size)
    return scene._replace(images=add_overlays(scene.images, overlays))


class Run(RestartableRun):
    """The U-Net's training: network, average of its weights and optimiser.

    Args:
        folder: Where checkpoint, log and weights lie.
        settings: What must not change from one restart to the next.
        device: Training device.
    """

    PROGRESS = ("step", "elapsed", "best_dice", "validations")

    def __init__(self, folder: Path, settings: dict[str, Any], device: torch.device) -> None:
        self.folder, self.settings, self.device = folder, settings, device
        self.step, self.elapsed, self.best_dice, self.validations = 0, 0.0, -1.0, 0
        self.network = build_unet().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        ema = get_ema_multi_avg_fn(EMA_DECAY)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(self.network, multi_avg_fn=ema, use_buffers=True)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=PEAK_RATE, weight_decay=0.05)
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def weights(self) -> Path:
        """The best average so far."""
        return self.folder / "unet.pt"

    def validate(self, items: Items) -> float:
        """Keep the averaged weights if their Dice on ``items`` is the best so far."""
        dice = mean_dice(self.average.module, items, self.device)
        self.validations += 1
        if dice > self.best_dice:
            self.best_dice = dice
            with atomic_path(self.weights) as path:
                torch.save(self.average.module.state_dict(), path)
        minutes = self.elapsed / 60
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.step, "minutes": minutes, "dice": dice}) + "\n")
        print(f"step {self.step}  {minutes:.1f} min  validation Dice {dice:.4f}, best {self.best_dice:.4f}", flush=True)
        return dice


def train(run: Run, images: Images, shares: dict[str, float], minutes: float) -> None:
    """Train for ``minutes``, validation not counted; learning rate and input size follow the time that is spent."""
    loss_function, overlays = SegmentationLoss(), draw_overlays(OVERLAYS)
    saved, total = time.monotonic(), 60 * minutes
    while run.elapsed < total:
        begun, spent = time.monotonic(), run.elapsed / total
        size = next(size for size, until in STAGES if spent < until)
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(spent, PEAK_RATE)
        scene = draw_scene(images, shares, overlays, size, run.device)
        run.network.train()
        loss = training_loss(run.network, scene, loss_function)
        run.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
        run.optimizer.step()
        run.average.update_parameters(run.network)
        run.step += 1
        run.elapsed += time.monotonic() - begun
        if run.elapsed >= (run.validations + 1) / VALIDATIONS * total:
            run.validate(images.validation)
        if time.monotonic() - saved > CHECKPOINT_EVERY_S:
            run.save()
            saved = time.monotonic()
    run.save()


def training_loss(network: nn.Module, scene: Scene, loss_function: nn.Module) -> Tensor:
    """Eq. (5) of a batch's whole objects."""
    whole = scene.whole.to(scene.ids.device)
    rows = torch.arange(len(whole), device=whole.device)[:, None, None]
    target = whole[rows, scene.ids[:, 0].long()][:, None]  # (B, 1, S, S)
    with torch.autocast(scene.images.device.type, torch.bfloat16):
        logits = network(scene.images.contiguous(memory_format=torch.channels_last))
    loss: Tensor = loss_function(logits.float(), target.to(torch.uint8))
    return loss


@torch.no_grad()
def mean_dice(network: nn.Module, items: Items, device: torch.device) -> float:
    """Mean Dice of the whole objects at 256 x 256 pixels."""
    network.eval()
    scores = []
    for start in range(0, len(items), BATCH_SIZE):
        batch = items.take(slice(start, start + BATCH_SIZE))
        size = (INPUT_SIZE, INPUT_SIZE)
        images = functional.interpolate(batch.images.float() / 255, size=size, mode="bilinear", antialias=True)
        ids = functional.interpolate(batch.ids.float(), size=size)
        truth = torch.stack([whole[own.long()] for whole, own in zip(batch.whole, ids, strict=True)]).float()
        logits = functional.interpolate(network(images.to(device)).float(), size=size, mode="bilinear")
        scores.append(compute_dice(logits.argmax(dim=1, keepdim=True).cpu(), truth, ignore_empty=False))
    return float(torch.cat(scores).mean())


@torch.no_grad()
def score_unet(network: nn.Module, items: Sequence[Item], device: torch.device) -> list[ImageScore]:
    """Score a U-Net on images at their own size, from and into their frame as the product does it."""
    network.eval()
    scores = []
    for item in items:
        truth = torch.from_numpy(read_mask(item["label"]))
        inputs = prepare_image(read_image(item["image"]).pixels, INPUT_SIZE)[None].to(device)
        logits = network(inputs)[0].float().cpu()
        mask = restore_original(logits, (truth.shape[0], truth.shape[1]))
        scores.append(score_image(Path(item["image"]).name, mask[None], truth[None], logits))
    return scores


def compare(data: Path, output: Path, task: Task, device: torch.device) -> str:
    """Score the U-Net and the bundle on the test images: a Markdown table; all scores go to ``compare.json``.

    Raises:
        click.ClickException: There is no trained U-Net in ``output``.
    """
    if not (output / "unet.pt").is_file():
        raise click.ClickException(f"{output} holds no unet.pt; train first")
    state = torch.load(output / "checkpoint.pt", map_location="cpu", weights_only=True)
    network = build_unet()
    network.load_state_dict(torch.load(output / "unet.pt", map_location="cpu", weights_only=True))
    folder = data / task.folder
    of_unet = score_unet(network.to(device), open_datalist(folder, "test"), device)
    options = EvaluateOptions(bundle=task.bundle, part="test", device="cuda" if device.type == "cuda" else "cpu")
    result = evaluate(folder, output / "bundle", options)
    of_bundle = read_dice(output / "bundle" / SCORES_TABLE)
    differences = [of_bundle[entry.image] - entry.dice for entry in of_unet]
    name = Path(task.bundle).name
    record = {
        "set": task.folder,
        "minutes": state["settings"]["minutes"],
        "steps": state["step"],
        "validation_dice": state["best_dice"],
        "unet_sha256": weights.sha256(output / "unet.pt"),
        "unet": asdict(summarise(of_unet)),
        "bundle": {"name": name, **asdict(result.summary)},
        "dice": {entry.image: {"unet": entry.dice, "bundle": of_bundle[entry.image]} for entry in of_unet},
    }
    write_json(output / "compare.json", record)
    unet, bundle = summarise(of_unet), result.summary
    header = ["", "images", "Dice, %", "Jaccard, %", "median Dice, %", "empty masks"]
    rows = [
        [f"U-Net, {state['settings']['minutes']:g} min", unet.images, percent([entry.dice for entry in of_unet])],
        [name, bundle.images, percent(list(of_bundle.values()))],
    ]
    for row, summary in zip(rows, (unet, bundle), strict=True):
        row += [f"{100 * summary.iou:.1f}", f"{100 * summary.dice_median:.1f}", summary.empty_predictions]
    rows.append([f"{name} − U-Net, paired", len(differences), percent(differences, sign="+"), "", "", ""])
    return table(header, rows)


def read_dice(scores: Path) -> dict[str, float]:
    """Dice by image, as ``amsam evaluate`` wrote it."""
    with scores.open(newline="", encoding="utf-8") as file:
        return {row["image"]: float(row["dice"]) for row in csv.DictReader(file)}


@click.command(context_settings={"show_default": True})
@click.argument("verb", type=click.Choice(["train", "compare"]), default="train")
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--set", "set_name", type=click.Choice(list(TASKS)), required=True)
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=12.0, help="Training time.")
@click.option("--bundle", help="Whose result to compare with.  [default: the set's own]", show_default=False)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
@click.option("--seed", default=0)
@click.option(
    "--document", type=click.Path(path_type=Path, exists=True), help="Where the table goes, between its marks."
)
def main(
    verb: str,
    data: Path,
    output: Path,
    set_name: str,
    minutes: float,
    bundle: str | None,
    device: str,
    seed: int,
    document: Path | None,
) -> None:
    """Train a U-Net and compare it with a bundle on the test images."""
    task = TASKS[set_name] if bundle is None else TASKS[set_name]._replace(bundle=bundle)
    if verb == "train":
        torch.manual_seed(seed)
        run = Run(output, {"set": set_name, "minutes": minutes, "seed": seed}, torch.device(device))
        run.restore()
        images = load_images(data, task)
        counts = {folder: len(items) for folder, items in images.train.items()}
        parameters = sum(parameter.numel() for parameter in run.network.parameters())
        print(f"{parameters:,} parameters; {counts} and {len(images.validation)} for validation", flush=True)
        train(run, images, task.shares, minutes)
    text = compare(data, output, task, torch.device(device))
    print(text)
    if document is not None:
        write_block(document, f"unet {set_name}", text)


if __name__ == "__main__":
    main()
