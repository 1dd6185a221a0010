"""Pre-train the compact base from random weights, promptable by box, point or nothing.

    python pipelines/pretrain.py --data DATA -o RUN --minutes 60

Every step shows the network eight images with two prompts each; both prompts of an image share its embedding, as in
SAM's own training. The first prompt is none at all where the image has a whole object to find, the second a jittered
box or a point on the whole or on a part. A run that is killed continues where it stopped when the same command is given
again. The result, ``RUN/tiny.safetensors``, holds the exponential average of the weights in fp16.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import NamedTuple

import click
import torch
from monai.losses import DiceCELoss
from monai.metrics import compute_dice
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from amsam_med.boxes import box_from_mask, jitter_boxes
from amsam_med.model import AmSam, build_amsam
from amsam_med.model.decoder import LOGIT_STRIDE
from pipelines.scenes import IDS, MINIMUM_AREA, Bank, Items, Scene

PROMPTS_PER_IMAGE = 2
POINT_SHARE = 0.3
BOX_JITTER = 0.07
EMA_DECAY = 0.998
IOU_WEIGHT = 0.1
CHECKPOINT_EVERY_S = 120.0


class Prompts(NamedTuple):
    """Prompts of one kind and what they ask for.

    Attributes:
        image: int64 ``(P,)``: which image of the batch each prompt belongs to.
        targets: float32 ``(P, 1, S, S)``, 0 or 1.
        boxes: float32 ``(P, 4)``, xyxy pixels of the input, or None.
        points: float32 ``(P, 1, 2)``, x and y in pixels of the input, or None.
    """

    image: Tensor
    targets: Tensor
    boxes: Tensor | None = None
    points: Tensor | None = None


def draw_prompts(scene: Scene) -> list[Prompts]:
    """Choose masks and prompts for a batch: up to one group each of no prompt, boxes and points."""
    chosen: dict[str, list[tuple[int, Tensor]]] = {"none": [], "box": [], "point": []}
    for index in range(len(scene.images)):
        for kind, target in _choose(scene.ids[index, 0], scene.whole[index]):
            chosen[kind].append((index, target))
    return [_group(kind, entries) for kind, entries in chosen.items() if entries]


def prompt_loss(network: AmSam, embedding: Tensor, prompts: Prompts, mask_loss: nn.Module) -> Tensor:
    """0.8 Dice + 0.2 cross-entropy of one group's masks, and the squared error of the predicted IoU."""
    labels = None if prompts.points is None else torch.ones(prompts.points.shape[:2], device=embedding.device)
    prediction = network.predict(embedding[prompts.image], prompts.boxes, prompts.points, labels)
    target = (functional.avg_pool2d(prompts.targets, LOGIT_STRIDE) > 0.5).float()
    is_object = (prediction.mask_logits.argmax(dim=1, keepdim=True) == 1).float()
    union = torch.maximum(is_object, target).sum(dim=(1, 2, 3)).clamp_min(1)
    iou = (is_object * target).sum(dim=(1, 2, 3)) / union
    loss: Tensor = mask_loss(prediction.mask_logits, target)
    return loss + IOU_WEIGHT * functional.mse_loss(prediction.predicted_iou[:, 1], iou)


@torch.no_grad()
def validate(network: AmSam, items: Items, most: int = 32) -> dict[str, float]:
    """Mean Dice at the logits' resolution with the truth's box and without any prompt, on held-out images."""
    network.eval()
    size = network.input_size
    items = items.take(slice(0, most))
    images = functional.interpolate(items.images.float() / 255, size=(size, size), mode="bilinear", antialias=True)
    ids = functional.interpolate(items.ids.float(), size=(size, size)).to(torch.uint8)
    scores: dict[str, list[Tensor]] = {"box": [], "none": []}
    for index in range(len(items)):
        target = _largest(ids[index, 0], items.whole[index])
        if target is None:
            continue
        box = box_from_mask(target)
        assert box is not None
        embedding = network.image_encoder(images[index : index + 1])
        truth = functional.avg_pool2d(target[None, None].float(), LOGIT_STRIDE) > 0.5
        for kind, boxes in (("box", box[None]), ("none", None)):
            mask = network(embedding, boxes).argmax(dim=1, keepdim=True)
            scores[kind].append(compute_dice(mask, truth.float()))
    return {kind: float(torch.cat(values).nanmean()) for kind, values in scores.items() if values}


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up over the first 3 %, then a cosine down to 1 % of ``peak``; ``progress`` in [0, 1]."""
    if progress < 0.03:
        return peak * (0.05 + 0.95 * progress / 0.03)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class Run:
    """Everything that a restart needs, in one file.

    Args:
        folder: Where the checkpoint, the log and the result lie.
        device: Training device.
        input_size: Side of the model input in pixels.
    """

    def __init__(self, folder: Path, device: torch.device, input_size: int) -> None:
        self.folder, self.step, self.elapsed = folder, 0, 0.0
        network = build_amsam("tiny", input_size=input_size, rank=0, calibration="none", is_fused=False)
        self.network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        ema = get_ema_multi_avg_fn(EMA_DECAY)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(self.network, multi_avg_fn=ema, use_buffers=True)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3, weight_decay=0.05)
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoint(self) -> Path:
        """The restart file."""
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Write the restart file atomically."""
        state = {"step": self.step, "elapsed": self.elapsed, "rng": torch.get_rng_state()}
        for name in ("network", "average", "optimizer"):
            state[name] = getattr(self, name).state_dict()
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)

    def restore(self) -> None:
        """Continue from the restart file, if there is one."""
        if not self.checkpoint.is_file():
            return
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.step, self.elapsed = state["step"], state["elapsed"]
        torch.set_rng_state(state["rng"])
        for name in ("network", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])

    def export(self) -> Path:
        """Write the averaged weights as a base in fp16, with the backbone's branches merged."""
        network = build_amsam("tiny", input_size=self.network.input_size, rank=0, calibration="none", is_fused=False)
        network.load_state_dict(self.average.module.state_dict())
        network.image_encoder.fuse()  # the compact encoder's
        state = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
        target = self.folder / "tiny.safetensors"
        save_file(state, target.with_suffix(".tmp"), {"base": "tiny", "input_size": str(network.input_size)})
        os.replace(target.with_suffix(".tmp"), target)
        return target


def train(run: Run, bank: Bank, minutes: float, batch_size: int, peak_rate: float, validate_every: int) -> None:
    """Train until ``minutes`` of training time are spent; the learning rate follows the share that is spent."""
    mask_loss = DiceCELoss(softmax=True, to_onehot_y=True, lambda_dice=0.8, lambda_ce=0.2)
    device = next(run.network.parameters()).device
    saved, running = time.monotonic(), 0.0
    for scene in bank.scenes(batch_size, run.network.input_size, device):
        start = time.monotonic()
        progress = run.elapsed / (60 * minutes)
        if progress >= 1:
            break
        run.network.train()
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(progress, peak_rate)
        groups = draw_prompts(scene)
        embedding = run.network.image_encoder(scene.images.contiguous(memory_format=torch.channels_last))
        total = sum(len(group.image) for group in groups)
        losses = [len(g.image) / total * prompt_loss(run.network, embedding, g, mask_loss) for g in groups]
        loss = torch.stack(losses).sum()
        run.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
        run.optimizer.step()
        run.average.update_parameters(run.network)
        run.step += 1
        value = float(loss.detach())
        running = 0.98 * running + 0.02 * value if running else value
        run.elapsed += time.monotonic() - start
        if run.step % 50 == 0:
            print(f"step {run.step}  {run.elapsed / 60:.1f} min  loss {running:.4f}", flush=True)
        if run.step % validate_every == 0:
            log_validation(run, bank)
        if time.monotonic() - saved > CHECKPOINT_EVERY_S:
            run.save()
            saved = time.monotonic()


def log_validation(run: Run, bank: Bank) -> None:
    """Validate the averaged weights on the held-out part of every source and append the scores to the log."""
    network: AmSam = run.average.module  # type: ignore[assignment]
    scores = {name: validate(network, items) for name, items in bank.validation.items()}
    with (run.folder / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": run.step, "minutes": run.elapsed / 60, "dice": scores}) + "\n")
    for name, score in scores.items():
        print(f"    {name:20} " + "  ".join(f"{kind} {value:.3f}" for kind, value in score.items()), flush=True)


@click.command(context_settings={"show_default": True})
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--minutes", default=60.0, help="Training time; loading and validation come on top.")
@click.option("--batch-size", default=8, help="Images a step, with two prompts each.")
@click.option("--input-size", default=256)
@click.option("--learning-rate", "peak_rate", default=1e-3)
@click.option("--validate-every", default=500, help="Steps between validations.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
@click.option("--seed", default=0)
def main(
    data: Path,
    output: Path,
    minutes: float,
    batch_size: int,
    input_size: int,
    peak_rate: float,
    validate_every: int,
    device: str,
    seed: int,
) -> None:
    """Pre-train the compact base on the folders under DATA."""
    torch.manual_seed(seed)
    run = Run(output, torch.device(device), input_size)
    run.restore()
    bank = Bank(data)
    print({name: len(items) for name, items in bank.train.items()}, f"from step {run.step}", flush=True)
    train(run, bank, minutes, batch_size, peak_rate, validate_every)
    log_validation(run, bank)
    run.save()
    print(run.export())


def _choose(ids: Tensor, whole: Tensor) -> list[tuple[str, Tensor]]:
    """Kinds of prompts and bool ``(S, S)`` targets for one image."""
    areas = torch.bincount(ids.flatten().long(), minlength=IDS)
    parts = [int(i) for i in torch.nonzero(areas[1:] >= MINIMUM_AREA).flatten() + 1]
    target_of_whole = whole.to(ids.device)[ids.long()]
    has_whole = bool(target_of_whole.sum() >= MINIMUM_AREA)
    choices = [("none", target_of_whole)] if has_whole else []
    while parts and len(choices) < PROMPTS_PER_IMAGE:
        kind = "point" if float(torch.rand(1)) < POINT_SHARE else "box"
        ask_whole = has_whole and (len(parts) == 1 or float(torch.rand(1)) < 0.4)
        part = parts[int(torch.randint(len(parts), (1,)))]
        choices.append((kind, target_of_whole if ask_whole else ids == part))
    return choices


def _group(kind: str, entries: list[tuple[int, Tensor]]) -> Prompts:
    """Batch the prompts of one kind."""
    targets = torch.stack([target for _, target in entries])
    image = torch.tensor([index for index, _ in entries], device=targets.device)
    size = (targets.shape[-2], targets.shape[-1])
    boxes = points = None
    if kind == "box":
        tight = torch.stack([_certain_box(target) for target in targets])
        boxes = jitter_boxes(tight, BOX_JITTER, size)
    if kind == "point":
        points = torch.stack([_random_point(target) for target in targets])[:, None]
    return Prompts(image, targets[:, None].float(), boxes, points)


def _certain_box(target: Tensor) -> Tensor:
    box = box_from_mask(target)
    assert box is not None, "targets have at least MINIMUM_AREA pixels"
    return box


def _random_point(target: Tensor) -> Tensor:
    """A random pixel of a mask, as x and y in continuous coordinates."""
    rows_columns = torch.nonzero(target)
    row, column = rows_columns[int(torch.randint(len(rows_columns), (1,)))]
    return torch.stack([column, row]).float() + 0.5


def _largest(ids: Tensor, whole: Tensor) -> Tensor | None:
    """The whole object where there is one, else the largest part; None if all are too small."""
    target = whole[ids.long()]
    if target.sum() >= MINIMUM_AREA:
        return target
    areas = torch.bincount(ids.flatten().long(), minlength=IDS)
    areas[0] = 0
    return ids == int(areas.argmax()) if int(areas.max()) >= MINIMUM_AREA else None


if __name__ == "__main__":
    main()
