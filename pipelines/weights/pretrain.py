"""Pre-train a compact base on ImageNet features, promptable by box, points, an earlier mask or nothing.

    python -m pipelines.weights.pretrain --data DATA -o RUN --mix tiny --minutes 150
    python -m pipelines.weights.pretrain --data DATA -o RUN --mix tiny-general --minutes 150

Every step trains on a batch of images with several prompts each, which share the image's embedding, as in SAM's own
training. One of them is the empty prompt, if the image has a whole object (the target) or no object (the target is then
an empty mask). The others are jittered boxes and points, on the whole object and on parts. A third of the steps has a
second round: a point where the first mask was wrong, and the first mask itself as prompt. A run that was killed
continues where it stopped when the same command is given again. The result, ``RUN/MIX.safetensors``, holds the
exponential average of the weights in fp16.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import click
import numpy as np
import torch
from monai.metrics import compute_dice
from safetensors.torch import save_file
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from amsam_med import weights
from amsam_med.boxes import box_from_mask, clip_boxes, jitter_boxes
from amsam_med.files import atomic_path
from amsam_med.learn.loss import SegmentationLoss
from amsam_med.model import AmSam, build_amsam
from amsam_med.model.amsam import Prediction
from amsam_med.model.decoder import LOGIT_STRIDE
from amsam_med.model.encoders import CompactImageEncoder
from amsam_med.tensors import read_tensors
from pipelines.weights.imagenet import load_imagenet_weights
from pipelines.weights.restart import RestartableRun
from pipelines.weights.scenes import FINISHES, IDS, MINIMUM_AREA, MIXES, PASTED, Bank, Items, Scene

BOX_JITTERS = (0.02, 0.05, 0.1)
POINT_SHARE = 0.3
BACKGROUND_POINT_SHARE = 0.3
"""Share of the groups of point prompts that get a background point as well, close to the object if there is room."""
NO_PROMPT_SHARE = 0.5
"""Share of the images with several parts that are also used with the empty prompt, for their whole object."""
FROZEN_STAGES = 2
"""First stages of a pretrained backbone that stay frozen, which take half of the backbone's time."""
SECOND_ROUND_SHARE = 0.35
IOU_WEIGHT = 0.25
CHECKPOINT_EVERY_S = 120.0
AVERAGE_EVERY = 4
"""Steps between two updates of the average of the weights, each of which costs as much as an optimiser step."""
LOGGED_IMAGES, LAST_IMAGES = 12, 60
"""Validation images per source, during training and at its end."""
STAGES = ((160, 0.7), (256, 1.0))
"""Input sizes in pixels and the share of the time until which each is used: most steps are at the cheaper size."""
EncoderStart = Literal["imagenet", "base", "random"]
"""Initial weights of the encoder: ImageNet's, those of the base that ``--start`` names, or random ones."""


@dataclass(frozen=True)
class Recipe:
    """The settings of a run; the defaults gave the best results.

    Attributes:
        backbone: timm's name of the encoder's network.
        encoder: Initial weights of the encoder; unless they are random, the backbone's first stages are frozen.
        start: Base whose prompt encoder and decoder are the initial weights, or empty.
        backbone_rate: Learning rate of the backbone, as a share of the others' rate.
        batch_size: Images per step.
        prompts: Most prompts per image; images with one mask get no more than two.
        peak_rate: Highest learning rate of AdamW.
        ema_decay: Decay of the exponential average of the weights per step; 0 for none.
        lambda_dice: Share of Dice in the mask loss; the rest is cross-entropy.
        has_second_round: Correct the first masks in a third of the steps.
        is_bf16: Use autocast to bfloat16; weights stay float32.
    """

    backbone: str = "tf_efficientnet_lite2"
    encoder: EncoderStart = "imagenet"
    start: str = ""
    backbone_rate: float = 0.5
    batch_size: int = 8
    prompts: int = 4
    peak_rate: float = 1e-3
    ema_decay: float = 0.998
    lambda_dice: float = 0.8
    has_second_round: bool = True
    is_bf16: bool = False


class Prompts(NamedTuple):
    """Prompts of one kind with their target masks.

    Attributes:
        image: int64 ``(P,)``: which image of the batch each prompt belongs to.
        targets: float32 ``(P, 1, S, S)``, 0 or 1.
        boxes: float32 ``(P, 4)``, xyxy pixels of the input, or None.
        points: float32 ``(P, N, 2)``, x and y in pixels of the input, or None.
        labels: int64 ``(P, N)``: 1 foreground, 0 background; goes with ``points``.
        earlier_logits: float32 ``(P, 1, S/4, S/4)``: a mask to improve, or None.
    """

    image: Tensor
    targets: Tensor
    boxes: Tensor | None = None
    points: Tensor | None = None
    labels: Tensor | None = None
    earlier_logits: Tensor | None = None


def draw_prompts(scene: Scene, most: int) -> list[Prompts]:
    """Draw target masks and prompts for a batch: up to one group of each kind.

    The kinds are the empty prompt, boxes and points for images with objects; and for images without any, the empty
    prompt and false boxes, such as a detector may give.
    """
    kinds = ("none", "nothing", "false box", "box", "point")
    chosen: dict[str, list[tuple[int, Tensor]]] = {kind: [] for kind in kinds}
    for index in range(len(scene.images)):
        if scene.is_empty[index]:
            nothing = torch.zeros_like(scene.ids[index, 0], dtype=torch.bool)
            chosen["nothing"].append((index, nothing))
            chosen["false box"].append((index, nothing))
            continue
        for kind, target in _choose(scene.ids[index, 0], scene.whole[index], most):
            chosen[kind].append((index, target))
    return [_group(kind, entries) for kind, entries in chosen.items() if entries]


def predict(network: AmSam, embedding: Tensor, prompts: Prompts) -> Prediction:
    """Predict masks for one group of prompts from the batch's embeddings, in float32."""
    prediction = network.predict(
        embedding[prompts.image], prompts.boxes, prompts.points, prompts.labels, prompts.earlier_logits
    )
    return Prediction(prediction.mask_logits.float(), prediction.predicted_iou.float())


def prompt_loss(prediction: Prediction, prompts: Prompts, mask_loss: nn.Module) -> Tensor:
    """Dice and cross-entropy of one group's masks, plus the squared error of the predicted IoU.

    Either all or none of a group's targets are empty. For empty targets Dice is not informative: they have only the
    cross-entropy, and a true IoU of 0, so that the network learns to predict a low IoU there. For false boxes only the
    predicted IoU is trained: a person who draws a box shall get a mask.
    """
    target = _at_logits(prompts.targets)
    is_object = (prediction.mask_logits.argmax(dim=1, keepdim=True) == 1).float()
    union = torch.maximum(is_object, target).sum(dim=(1, 2, 3)).clamp_min(1)
    iou = (is_object * target).sum(dim=(1, 2, 3)) / union
    doubt = IOU_WEIGHT * functional.mse_loss(prediction.predicted_iou[:, 1], iou)
    if target.any():
        loss: Tensor = doubt + mask_loss(prediction.mask_logits, target)
        return loss
    if prompts.boxes is not None:
        return doubt
    return doubt + functional.cross_entropy(prediction.mask_logits, target[:, 0].long())


def second_round(prompts: Prompts, prediction: Prediction) -> Prompts:
    """The same prompts with the first mask as mask prompt, and one more point where that mask is wrong."""
    logits = prediction.mask_logits.detach()
    earlier = logits[:, 1:] - logits[:, :1]
    target = _at_logits(prompts.targets)
    error = ((earlier > 0) != target.bool()).float().flatten(1)
    cell = torch.multinomial(error + 1e-6, 1)  # without any error, multinomial would have no weights to draw by
    label = target.flatten(1).gather(1, cell).long()
    width = target.shape[-1]
    point = LOGIT_STRIDE * (torch.stack([cell % width, cell // width], dim=2).float() + 0.5)
    is_first = prompts.points is None or prompts.labels is None
    points = point if is_first else torch.cat([prompts.points, point], dim=1)  # type: ignore[list-item]
    labels = label if is_first else torch.cat([prompts.labels, label], dim=1)  # type: ignore[list-item]
    return prompts._replace(points=points, labels=labels, earlier_logits=earlier)


class DiceByPrompt(NamedTuple):
    """Mean Dice for the same targets with three kinds of prompts, each in [0, 1]."""

    box: float
    point: float
    none: float


@torch.no_grad()
def validate(network: AmSam, items: Items, most: int = 32) -> dict[str, DiceByPrompt]:
    """Mean Dice at the images' stored size with the true box, one centre point, and no prompt.

    Args:
        network: A base.
        items: Held-out images of one source.
        most: Number of images, from the first.

    Returns:
        ``"whole"`` for images with a whole object; ``"parts"`` for images with several masks, of which the largest and
        the median one by area are the targets.
    """
    network.eval()
    size = network.input_size
    items = items.take(slice(0, most))
    images = functional.interpolate(items.images.float() / 255, size=(size, size), mode="bilinear", antialias=True)
    scores: dict[str, list[Tensor]] = {}
    for index in range(len(items)):
        questions = _questions(items.ids[index, 0], items.whole[index])
        # One embedding for all prompts of an image.
        embedding = network.image_encoder(images[index : index + 1]) if questions else None
        for name, target in questions:
            assert embedding is not None
            to_input = size / target.shape[-1]
            boxes, points = to_input * _box_of_target(target)[None], to_input * interior_point(target)[None, None]
            foreground = torch.ones(1, 1)
            answers = (
                network(embedding, boxes),
                network(embedding, None, points, foreground),
                network(embedding),
            )
            truth = target[None, None].float()
            dice = [compute_dice(_mask(answer, target.shape[-1]), truth).nan_to_num(0.0) for answer in answers]
            scores.setdefault(name, []).append(torch.cat(dice).flatten())
    return {name: DiceByPrompt(*torch.stack(values).mean(dim=0).tolist()) for name, values in scores.items()}


def _mask(mask_logits: Tensor, side: int) -> Tensor:
    """Logits ``(1, 2, h, w)`` to a mask int64 ``(1, 1, side, side)``."""
    return functional.interpolate(mask_logits, size=(side, side), mode="bilinear").argmax(dim=1, keepdim=True)


def interior_point(target: Tensor) -> Tensor:
    """The pixel of a bool ``(S, S)`` mask that is farthest from its border: float32 ``(2,)``, x and y."""
    # Not the centroid, which may lie outside a curved object. Padded, as an object may touch the image's edge.
    depth = ndimage.distance_transform_edt(np.pad(target.cpu().numpy(), 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return torch.tensor([column + 0.5, row + 0.5], dtype=torch.float32)


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up over the first 3 %, then a cosine down to 1 % of ``peak``; ``progress`` in [0, 1]."""
    if progress < 0.03:
        return peak * (0.05 + 0.95 * progress / 0.03)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class Run(RestartableRun):
    """A base's training: network, average of its weights and optimiser.

    Args:
        folder: Folder of the checkpoint, the log and the result.
        name: Name of the base, and of the result's file.
        recipe: Settings of the run.
        device: Training device.
        input_size: Side of the model input in pixels; may differ between restarts.
    """

    PROGRESS = ("step", "elapsed")
    network: AmSam

    def __init__(self, folder: Path, name: str, recipe: Recipe, device: torch.device, input_size: int) -> None:
        self.folder, self.name, self.recipe, self.step, self.elapsed = folder, name, recipe, 0, 0.0
        self.settings = {"base": name, **asdict(recipe)}
        self.network = self._build(input_size).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        ema = exponential_average(recipe.ema_decay**AVERAGE_EVERY)  # the decay is per step, updates are rarer
        self.average = AveragedModel(self.network, multi_avg_fn=ema, use_buffers=True)
        features = list(self.network.image_encoder.backbone.parameters())
        others = [p for name, p in self.network.named_parameters() if ".backbone." not in name]
        groups = [{"params": features, "share": recipe.backbone_rate}, {"params": others, "share": 1.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.peak_rate, weight_decay=0.05, fused=True)
        folder.mkdir(parents=True, exist_ok=True)

    def _build(self, input_size: int) -> AmSam:
        network = build_amsam("tiny", input_size=input_size, rank=0, calibration="none", is_fused=False)
        # A finished base has its batch norms merged into convolutions, so it is trained further without them.
        network.image_encoder = CompactImageEncoder(input_size, self.recipe.encoder == "base", self.recipe.backbone)
        return network

    def begin(self) -> None:
        """Load the initial weights: ImageNet's for the backbone, and an earlier base's for prompts and decoder."""
        if self.recipe.encoder == "imagenet":
            load_imagenet_weights(self.network.image_encoder.backbone, self.recipe.backbone)
        if self.recipe.start:
            own, old = self.network.state_dict(), read_tensors(weights.find(self.recipe.start), "fetch it again")[0]
            left_out = () if self.recipe.encoder == "base" else ("image_encoder.",)
            taken = {key: tensor for key, tensor in old.items() if not key.startswith(left_out)}
            self.network.load_state_dict({**own, **taken})
            print(f"{len(taken)} tensors of {self.recipe.start}", flush=True)
        self.average.module.load_state_dict(self.network.state_dict())

    def train_mode(self) -> None:
        """Training mode, except for the frozen first stages of a pretrained backbone."""
        self.network.train()
        for stage in self._frozen():
            stage.requires_grad_(False).eval()

    def _frozen(self) -> list[nn.Module]:
        if self.recipe.encoder == "random":
            return []
        backbone: Any = self.network.image_encoder.backbone
        return [backbone.conv_stem, backbone.bn1, *backbone.blocks[:FROZEN_STAGES]]

    def restore(self) -> None:
        """Continue from the restart file, if there is one."""
        if not self.checkpoint.is_file():
            self.begin()
        super().restore()
        # Loading replaces the groups' settings; restart files of earlier versions are not of a fused optimiser.
        for group in self.optimizer.param_groups:
            group["fused"] = True

    def export(self) -> Path:
        """Write the averaged weights as a base in fp16, with the backbone's branches merged."""
        network = self._build(self.network.input_size)
        network.load_state_dict(self.average.module.state_dict())
        network.image_encoder.fuse()
        state = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
        target = self.folder / f"{self.name}.safetensors"
        with atomic_path(target) as path:
            save_file(state, path, {"base": self.name, "input_size": str(network.input_size)})
        return target


def exponential_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """An update for ``AveragedModel`` whose window grows with the run.

    After n updates it spans about n/9 of them, at most 1 / (1 - decay): so a short run is not averaged with its random
    initial weights.
    """

    def update(averaged: Any, current: Any, count: Any) -> None:
        reach = min(decay, (1 + float(count)) / (10 + float(count)))
        get_ema_multi_avg_fn(reach)(averaged, current, count)  # type: ignore[no-untyped-call]

    return update


def train(
    run: Run, bank: Bank, minutes: float, until: float, validate_every: int, clock: Callable[[], float] = time.monotonic
) -> None:
    """Train until the share ``until`` of ``minutes`` has passed; the learning rate follows the share that has passed.

    Args:
        run: The run to train.
        bank: Source of images.
        minutes: Length of the whole training.
        until: In [0, 1].
        validate_every: Steps between validations.
        clock: Returns seconds; with ``time.process_time``, single-threaded runs are comparable on a shared machine.
    """
    recipe = run.recipe
    mask_loss = SegmentationLoss(recipe.lambda_dice)
    device = next(run.network.parameters()).device
    saved, begun = time.monotonic(), clock()
    running, spent = 0.0, run.elapsed
    for scene in bank.scenes(recipe.batch_size, run.network.input_size, device):
        if run.elapsed >= 60 * minutes * until:
            break
        if not (groups := draw_prompts(scene, recipe.prompts)):
            continue  # no object in the batch is large enough to be a target
        run.train_mode()
        for group in run.optimizer.param_groups:
            group["lr"] = group["share"] * learning_rate(run.elapsed / (60 * minutes), recipe.peak_rate)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.is_bf16):
            loss = _step_loss(run.network, scene.images, groups, recipe.has_second_round, mask_loss)
        run.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
        run.optimizer.step()
        run.step += 1
        if run.step % AVERAGE_EVERY == 0:
            run.average.update_parameters(run.network)
        value = float(loss.detach())
        running = 0.98 * running + 0.02 * value if running else value
        run.elapsed = spent + clock() - begun
        if run.step % 50 == 0:
            print(f"step {run.step}  {run.elapsed / 60:.1f} min  loss {running:.4f}", flush=True)
        if run.step % validate_every == 0 or time.monotonic() - saved > CHECKPOINT_EVERY_S:
            pause = clock()  # validation and saving do not count as training time
            if run.step % validate_every == 0:
                log_validation(run, bank)
            run.save()
            saved = time.monotonic()
            begun += clock() - pause


def _step_loss(
    network: AmSam, images: Tensor, groups: list[Prompts], has_second_round: bool, mask_loss: nn.Module
) -> Tensor:
    """Mean loss over all prompts of a batch, and over both rounds where there are two."""
    embedding = network.image_encoder(images.contiguous(memory_format=torch.channels_last))
    total = sum(len(group.image) for group in groups)
    is_twice = has_second_round and float(torch.rand(1)) < SECOND_ROUND_SHARE
    losses = []
    for group in groups:
        share = len(group.image) / total
        prediction = predict(network, embedding, group)
        losses.append(share * prompt_loss(prediction, group, mask_loss))
        if is_twice and group.targets.any():
            again = second_round(group, prediction)
            losses.append(share * prompt_loss(predict(network, embedding, again), again, mask_loss))
    return torch.stack(losses).sum() / (2 if is_twice else 1)


def log_validation(run: Run, bank: Bank, most: int = LOGGED_IMAGES) -> None:
    """Validate the averaged weights on ``most`` held-out images of every source and append the scores to the log."""
    network: AmSam = run.average.module  # type: ignore[assignment]
    scores = {folder: validate(network, items, most) for folder, items in bank.validation.items()}
    plain = {folder: {name: asked._asdict() for name, asked in score.items()} for folder, score in scores.items()}
    with (run.folder / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": run.step, "minutes": run.elapsed / 60, "dice": plain}) + "\n")
    for folder, score in scores.items():
        for name, asked in score.items():
            print(f"    {folder:20} {name:6} box {asked.box:.3f}  point {asked.point:.3f}  none {asked.none:.3f}")
    print(end="", flush=True)


@click.command(context_settings={"show_default": True})
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--mix", type=click.Choice(list(MIXES)), default="tiny", help="The base, which decides its images.")
@click.option("--minutes", default=150.0, help="Training time, without loading and validation.")
@click.option("--cpu-time", is_flag=True, help="Count minutes of CPU time instead of the wall clock's.")
@click.option("--input-size", type=int, help="One size from first to last.  [default: 160 px, then 256 px]")
@click.option("--backbone", default=Recipe.backbone, help="timm's name of the encoder's network.")
@click.option(
    "--encoder",
    type=click.Choice(get_args(EncoderStart)),
    default=Recipe.encoder,
    help="Initial weights of the encoder: ImageNet's, those of --start, or random ones.",
)
@click.option("--start", default=Recipe.start, help="Base with the initial prompt encoder and mask decoder.")
@click.option("--backbone-rate", default=Recipe.backbone_rate, help="Share of the learning rate for the backbone.")
@click.option("--sizes", nargs=2, type=int, default=tuple(size for size, _ in STAGES), help="Pixels, first and last.")
@click.option("--batch-size", default=Recipe.batch_size, help="Images per step.")
@click.option("--prompts", default=Recipe.prompts, help="Most prompts per image.")
@click.option("--learning-rate", default=Recipe.peak_rate)
@click.option("--ema", default=Recipe.ema_decay, help="Decay of the average of the weights; 0 for none.")
@click.option("--lambda-dice", default=Recipe.lambda_dice)
@click.option("--second-round/--no-second-round", default=Recipe.has_second_round)
@click.option("--overlays/--no-overlays", default=True, help="Hair and rulers over some of the images.")
@click.option("--pasted/--no-pasted", default=True, help="People and objects pasted onto other photos.")
@click.option("--bf16/--no-bf16", default=Recipe.is_bf16)
@click.option("--validate-every", default=1000, help="Steps between validations.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
@click.option("--seed", default=0)
def main(
    data: Path,
    output: Path,
    mix: str,
    minutes: float,
    cpu_time: bool,
    input_size: int | None,
    backbone: str,
    encoder: EncoderStart,
    start: str,
    backbone_rate: float,
    sizes: tuple[int, int],
    batch_size: int,
    prompts: int,
    learning_rate: float,
    ema: float,
    lambda_dice: float,
    second_round: bool,
    overlays: bool,
    pasted: bool,
    bf16: bool,
    validate_every: int,
    device: str,
    seed: int,
) -> None:
    """Pre-train a compact base on the folders under DATA."""
    if encoder == "base" and not start:
        raise click.UsageError("--encoder base goes on with a base's own encoder; name the base with --start")
    torch.manual_seed(seed)
    recipe = Recipe(
        backbone,
        encoder,
        start,
        backbone_rate,
        batch_size,
        prompts,
        learning_rate,
        ema,
        lambda_dice,
        second_round,
        bf16,
    )

    def with_pasted(shares: dict[str, float]) -> dict[str, float]:
        return shares if pasted else {**shares, PASTED: 0.0}

    bank = Bank(data, with_pasted(MIXES[mix]), with_overlays=overlays)
    print({name: len(items) for name, items in bank.train.items()}, flush=True)
    stages = [(size, until) for size, (_, until) in zip(sizes, STAGES, strict=True)]
    for size, until in [(input_size, 1.0)] if input_size else stages:
        run = Run(output, mix, recipe, torch.device(device), size)
        run.restore()
        print(f"{size} px from step {run.step}", flush=True)
        if until == 1.0:
            bank.use_shares(with_pasted(FINISHES.get(mix, MIXES[mix])))
        train(run, bank, minutes, until, validate_every, time.process_time if cpu_time else time.monotonic)
        run.save()
    log_validation(run, bank, LAST_IMAGES)
    print(run.export())


def _choose(ids: Tensor, whole: Tensor, most: int) -> list[tuple[str, Tensor]]:
    """Kinds of prompts and bool ``(S, S)`` targets for one image."""
    areas = torch.bincount(ids.flatten().long(), minlength=IDS)
    parts = (torch.nonzero(areas[1:] >= MINIMUM_AREA).flatten() + 1).tolist()
    target_of_whole = whole.to(ids.device)[ids.long()]
    has_whole = bool(target_of_whole.sum() >= MINIMUM_AREA)
    is_asked = has_whole and (len(parts) == 1 or float(torch.rand(1)) < NO_PROMPT_SHARE)
    choices = [("none", target_of_whole)] if is_asked else []
    # With one part, the part is the whole. With several, half of the images also have the whole as target of a prompt.
    order = [parts[i] for i in torch.randperm(len(parts)).tolist()]
    targets = [target_of_whole] if has_whole and (len(parts) == 1 or float(torch.rand(1)) < 0.5) else []
    if not (has_whole and len(parts) == 1):
        targets += [ids == part for part in order]
    for target in targets[: most - len(choices)]:
        choices.append(("point" if float(torch.rand(1)) < POINT_SHARE else "box", target))
    return choices


def _group(kind: str, entries: list[tuple[int, Tensor]]) -> Prompts:
    """Combine the prompts of one kind into one group."""
    targets = torch.stack([target for _, target in entries])
    image = torch.tensor([index for index, _ in entries], device=targets.device)
    prompts = Prompts(image, targets[:, None].float())
    size = (targets.shape[-2], targets.shape[-1])
    if kind == "box":
        tight = torch.stack([_box_of_target(target) for target in targets]).to(targets.device)
        jitter = BOX_JITTERS[int(torch.randint(len(BOX_JITTERS), (1,)))]
        return prompts._replace(boxes=jitter_boxes(tight, jitter, size))
    if kind == "false box":
        corners = size[1] * torch.rand(len(entries), 2, 2, device=targets.device).sort(dim=1).values
        corners[:, 1] = torch.maximum(corners[:, 1], corners[:, 0] + 0.15 * size[1])
        return prompts._replace(boxes=clip_boxes(corners.flatten(1), size))
    if kind == "point":
        pixel = torch.multinomial(prompts.targets.flatten(1), 1)
        labels = torch.ones_like(pixel)
        if float(torch.rand(1)) < BACKGROUND_POINT_SHARE:
            pixel = torch.cat([pixel, _background_pixels(prompts.targets)], dim=1)
            labels = torch.cat([labels, torch.zeros_like(labels)], dim=1)
        points = torch.stack([pixel % size[1], pixel // size[1]], dim=2).float() + 0.5
        return prompts._replace(points=points, labels=labels)
    return prompts


def _background_pixels(targets: Tensor) -> Tensor:
    """A background pixel for each mask ``(P, 1, S, S)``, near the object where there is one: int64 ``(P, 1)``."""
    reach = targets.shape[-1] // 8 * 2 + 1
    near = targets
    # One axis after the other: the maximum over a square at a fraction of the cost.
    for side in ((reach, 1), (1, reach)):
        near = functional.max_pool2d(near, side, stride=1, padding=(side[0] // 2, side[1] // 2))
    return torch.multinomial(((near - targets) + 1e-4 * (1 - targets) + 1e-9).flatten(1), 1)


def _box_of_target(target: Tensor) -> Tensor:
    box = box_from_mask(target)
    assert box is not None, "targets have at least MINIMUM_AREA pixels"
    return box


def _at_logits(targets: Tensor) -> Tensor:
    """Masks ``(P, 1, S, S)`` at the logits' resolution by majority vote: float ``(P, 1, S/4, S/4)``, 0 or 1."""
    return (functional.avg_pool2d(targets, LOGIT_STRIDE) > 0.5).float()


def _questions(ids: Tensor, whole: Tensor) -> list[tuple[str, Tensor]]:
    """Target masks with their names: the whole object and, if there are several parts, the largest and the median."""
    areas = torch.bincount(ids.flatten().long(), minlength=IDS)
    areas[0] = 0
    parts = sorted(torch.nonzero(areas >= MINIMUM_AREA).flatten().tolist(), key=lambda part: -int(areas[part]))
    target = whole[ids.long()]
    questions = [("whole", target)] if target.sum() >= MINIMUM_AREA else []
    if len(parts) > 1:
        questions += [("parts", ids == parts[0]), ("parts", ids == parts[len(parts) // 2])]
    return questions


if __name__ == "__main__":
    main()
