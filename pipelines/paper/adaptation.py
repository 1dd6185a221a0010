"""Alternatives to the bundles' few-shot training: which parts of the base are adapted, and how.

Each one starts from the same base and trains by AdamW on all examples, without a detector and without an upper level.
``tables/adaptation.yaml`` compares them on images on which no result is reported.
"""

from __future__ import annotations

import copy
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from monai.metrics.meandice import compute_dice
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from amsam_med.boxes import box_from_mask, full_image_box
from amsam_med.data.datalists import Item
from amsam_med.data.transforms import preprocessing
from amsam_med.keys import Keys
from amsam_med.learn import EncodedDataset, SegmentationLoss, lower_parameters, set_trainable, upper_parameters
from amsam_med.learn.levels import ENCODER, ENCODER_PARTS
from amsam_med.model import AmSam
from amsam_med.model.build import Adapted
from amsam_med.model.lora import low_rank_update
from amsam_med.views import ViewKind

BATCH_SIZE = 4
RATE, UPPER_RATE, ENCODER_RATE, LORA_RATE = 1e-3, 2e-4, 3e-4, 1e-3
WEIGHT_DECAY = 0.1
WARM_UP = 10
"""Steps of linear warm-up; afterwards the learning rates decay as in the bundles' training."""
POWER = 0.9
LAMBDA_DICE = 0.8
MARKS = (0.25, 0.5, 1.0)
"""Points of a training at which cross-halves evaluate it, as shares of its steps."""
SHARES = (0.25, 0.5, 1.0)
"""Candidates for the interpolation from the base to the trained weights in cross-halves."""

SecondPrompt = Literal["none", "prototypes", "mask", "box"]
Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Way:
    """A way to adapt.

    Attributes:
        parts: What is trained; see ``build_amsam``.
        steps: Of the optimiser.
        lora_rank: Of a low-rank update of the pointwise convolutions in the encoder's last stage; 0 for none.
        pull: Weight of the squared distance to the base in the loss, in place of weight decay.
        second_prompt: What the network is shown besides the image when the mask is drawn: a prior from prototypes of
            the examples' features (in training as well), its own first mask, or that mask's box.
        cross_halves: Train on each half first and score the other half, then train on all for the number of steps, and
            go the share of the way from the base, that the halves say.
    """

    parts: Adapted = "neck"
    steps: int = 60
    lora_rank: int = 0
    pull: float = 0.0
    second_prompt: SecondPrompt = "none"
    cross_halves: bool = False

    @property
    def needs_examples(self) -> bool:
        """Whether examples make a difference; else the base is used as it is."""
        return self.steps > 0 or self.second_prompt == "prototypes"


@dataclass(frozen=True)
class Examples:
    """Labelled images and their views, encoded below the encoder's last stage.

    Attributes:
        features: float32 ``(k, V, C, S/16, S/16)``.
        labels: uint8 ``(k, V, 1, S, S)``, 1 on the object.
    """

    features: Tensor
    labels: Tensor

    def of(self, cases: Sequence[int]) -> Examples:
        """Some of the cases."""
        return Examples(self.features[cases], self.labels[cases])


class LowRank(nn.Module):
    """Eq. (3) for a pointwise convolution: its weight ``(O, I, 1, 1)`` plus B A; at first the weight itself."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.lora_a = nn.Parameter(torch.randn(rank, weight.shape[1]).to(weight.device) / weight.shape[1] ** 0.5)
        self.lora_b = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight."""
        return weight + low_rank_update(self.lora_a, self.lora_b)[:, :, None, None]


def encode(items: Sequence[Item], network: AmSam, views: ViewKind) -> Examples:
    """Encode examples and their views once, on the network's device."""
    prepare = preprocessing(network.input_size, with_label=True)
    dataset = EncodedDataset(items, prepare, network.frozen_encoder, views=views)
    device = next(network.parameters()).device
    cases = [dataset[number] for number in range(len(dataset))]
    features, labels = (
        torch.stack([case[key] for case in cases]).to(device) for key in (Keys.IMAGE.value, Keys.LABEL.value)
    )
    count = len(items)
    return Examples(features.reshape(count, -1, *features.shape[1:]), labels.reshape(count, -1, *labels.shape[1:]))


def adapt_by(base: AmSam, examples: Examples, way: Way, seed: int) -> tuple[AmSam, str]:
    """Adapt a copy of ``base`` in a way; the network in evaluation mode, and what was chosen, as printed."""
    if way.cross_halves:
        return adapt_by_cross_halves(base, examples, way, seed)
    return adapt(base, examples, way, seed), ""


def adapt(
    base: AmSam,
    examples: Examples,
    way: Way,
    seed: int,
    at_step: Callable[[int, AmSam], None] | None = None,
    stop: int | None = None,
) -> AmSam:
    """Train a copy of ``base`` on all examples.

    Args:
        base: Built with ``adapts="stage"``; left as it is.
        examples: What it learns from.
        way: How.
        seed: Of the order of examples and views, and of the low-rank updates.
        at_step: Called after each step with the number of steps so far and the network, in evaluation mode.
        stop: The last step that is taken; the rates are those of the whole way. None for all steps.

    Returns:
        The network in evaluation mode.
    """
    torch.manual_seed(seed)
    order = random.Random(seed)  # noqa: S311  # a draw, not cryptography
    network = set_trainable(copy.deepcopy(base))
    groups = _groups(network, way)
    parameters = [parameter for group in groups for parameter in group["params"]]
    start = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0 if way.pull else WEIGHT_DECAY)
    rising = partial(_share_of_rate, steps=way.steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rising)
    loss_function = SegmentationLoss(LAMBDA_DICE)
    prior = prototype_prior(base, examples) if way.second_prompt == "prototypes" else None
    waiting: list[int] = []
    for step in range(1, (way.steps if stop is None else stop) + 1):
        while len(waiting) < BATCH_SIZE:
            waiting += order.sample(range(len(examples.features)), len(examples.features))
        cases, waiting = waiting[:BATCH_SIZE], waiting[BATCH_SIZE:]
        views = [order.randrange(examples.features.shape[1]) for _ in cases]
        features, labels = examples.features[cases, views], examples.labels[cases, views]
        network.train()
        answer = network.predict(features, earlier_logits=None if prior is None else prior(features))
        loss = loss_function(answer.mask_logits, labels)
        if way.pull:
            loss = loss + way.pull * _squared_distance(parameters, start)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if at_step is not None:
            at_step(step, network.eval())
    return network.eval()


def adapt_by_cross_halves(base: AmSam, examples: Examples, way: Way, seed: int) -> tuple[AmSam, str]:
    """Let trainings on each half of the examples say how long to train on all, and how far to go from the base.

    Of all candidates within one standard error of the best by Dice on the half that was not trained on, the gentlest is
    taken; the base itself is one.

    Returns:
        The network in evaluation mode, and what was chosen.
    """
    count = len(examples.features)
    drawn = random.Random(seed).sample(range(count), count)  # noqa: S311  # a draw, not cryptography
    scores: dict[tuple[float, float], list[float]] = {}
    for trained, judged in ((drawn[::2], drawn[1::2]), (drawn[1::2], drawn[::2])):
        half = replace(way, steps=max(1, way.steps // 2), second_prompt="none", cross_halves=False)
        _score_on_the_way(base, examples.of(trained), examples.of(judged), half, seed, scores)
    mark, share = gentlest(scores)
    if mark == 0:
        return copy.deepcopy(base).eval(), "the base"
    network = adapt(base, examples, way, seed, stop=round(mark * way.steps))
    return interpolate_weights(base, network, share), f"{mark:g} of the steps, {share:g} of the way"


def gentlest(scores: Mapping[tuple[float, float], Sequence[float]]) -> tuple[float, float]:
    """The first candidate whose paired difference from the best is within one standard error.

    Args:
        scores: Dice of the same images for each candidate (share of the steps, share of the way), gentlest first.
    """
    best = max(scores, key=lambda candidate: statistics.fmean(scores[candidate]))
    for candidate, dices in scores.items():
        lost = [theirs - ours for theirs, ours in zip(scores[best], dices, strict=True)]
        error = statistics.stdev(lost) / len(lost) ** 0.5 if len(lost) > 1 else 0.0
        if statistics.fmean(lost) <= error:
            return candidate
    return best


def interpolate_weights(base: AmSam, trained: AmSam, share: float) -> AmSam:
    """A network a share of the way from the base to the trained weights, in evaluation mode."""
    network = copy.deepcopy(trained)
    own = base.state_dict()
    network.load_state_dict(
        {
            name: torch.lerp(own[name].float(), value.float(), share).to(value.dtype) if name in own else value
            for name, value in trained.state_dict().items()
        }
    )
    return network.eval()


def prototype_prior(network: AmSam, examples: Examples) -> Logits:
    """Mask logits from the mean features of the examples' objects and grounds, as a prompt.

    The prior is the difference of the cosines with both means, with the scale and offset that fit the examples best.

    Returns:
        A function of features float ``(B, C, S/16, S/16)`` to logits float ``(B, 1, S/4, S/4)``.
    """
    grid = network.input_size // 16
    with torch.no_grad():
        embedding = functional.normalize(network.embed(examples.features[:, 0]), dim=1)
        truth = functional.adaptive_avg_pool2d((examples.labels[:, 0] > 0).float(), grid)
        of_object, of_ground = (
            functional.normalize((embedding * cover).sum(dim=(0, 2, 3)), dim=0) for cover in (truth, 1 - truth)
        )
    direction = of_object - of_ground

    def likeness(embeddings: Tensor) -> Tensor:
        return torch.einsum("bchw,c->bhw", functional.normalize(embeddings, dim=1), direction)[:, None]

    of_examples = likeness(embedding)
    scale, offset = torch.tensor(10.0, requires_grad=True), torch.tensor(0.0, requires_grad=True)
    fit = torch.optim.LBFGS([scale, offset], max_iter=50)

    def closure() -> Tensor:
        fit.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(scale * of_examples + offset, truth)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    fit.step(closure)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def prior(features: Tensor) -> Tensor:
        logits = scale * likeness(network.embed(features)) + offset
        return functional.interpolate(logits, scale_factor=4.0, mode="bilinear", align_corners=False)

    return prior


@torch.no_grad()
def draw_masks(network: AmSam, features: Tensor, second_prompt: SecondPrompt, prior: Logits | None = None) -> Tensor:
    """Mask logits float ``(B, C + 1, S/4, S/4)`` of features, with a second prompt where a way has one."""
    if prior is not None:
        return network.predict(features, earlier_logits=prior(features)).mask_logits
    first = network.predict(features).mask_logits
    if second_prompt == "mask":
        return network.predict(features, earlier_logits=first[:, 1:] - first[:, :1]).mask_logits
    if second_prompt == "box":
        size = (network.input_size, network.input_size)
        masks = functional.interpolate(first, size=size, mode="bilinear", align_corners=False).argmax(dim=1)
        boxes = [box_from_mask(mask) for mask in masks]
        whole = full_image_box(size).to(masks.device)
        return network.predict(features, torch.stack([whole if box is None else box for box in boxes])).mask_logits
    return first


def _groups(network: AmSam, way: Way) -> list[dict[str, Any]]:
    """What a way trains, by rate; all else is frozen."""
    parts = ENCODER_PARTS[way.parts]
    lower = lower_parameters(network)
    of_encoder = [part for name, part in lower.items() if parts and name.startswith(parts)]
    groups: list[dict[str, Any]] = [
        {"params": [part for name, part in lower.items() if not name.startswith(ENCODER)], "lr": RATE},
        {"params": [*upper_parameters(network).values()], "lr": UPPER_RATE},
        {"params": of_encoder, "lr": ENCODER_RATE},
    ]
    for parameter in network.image_encoder.parameters():
        parameter.requires_grad_(False)
    for parameter in of_encoder:
        parameter.requires_grad_(True)
    if way.lora_rank:
        updates = []
        for name, module in [*network.image_encoder.named_modules()]:
            is_pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
            if is_pointwise and f"{ENCODER}{name}.".startswith(ENCODER_PARTS["stage"][1:]):
                update = LowRank(module.weight, way.lora_rank)
                parametrize.register_parametrization(module, "weight", update)
                updates += [*update.parameters()]
        groups.append({"params": updates, "lr": LORA_RATE})
    return [group for group in groups if group["params"]]


def _share_of_rate(step: int, steps: int) -> float:
    rising, falling = min(1.0, (step + 1) / WARM_UP), 1 - step / max(1, steps)
    return rising * float(falling**POWER)


def _squared_distance(parameters: Sequence[Tensor], start: Sequence[Tensor]) -> Tensor:
    return torch.stack([((now - before) ** 2).sum() for now, before in zip(parameters, start, strict=True)]).sum()


def _score_on_the_way(
    base: AmSam,
    trained: Examples,
    judged: Examples,
    way: Way,
    seed: int,
    scores: dict[tuple[float, float], list[float]],
) -> None:
    """Append the Dice of each judged case for every candidate, the base first, then by time and by share of the way."""
    marks = {max(1, round(mark * way.steps)): mark for mark in MARKS}
    scores.setdefault((0.0, 0.0), []).extend(_dice(base, judged))

    def look(step: int, network: AmSam) -> None:
        if step in marks:
            for share in SHARES:
                dices = _dice(interpolate_weights(base, network, share), judged)
                scores.setdefault((marks[step], share), []).extend(dices)

    adapt(base, trained, way, seed, look)


@torch.no_grad()
def _dice(network: AmSam, examples: Examples) -> list[float]:
    """Dice of each case, the mean over its views, at the size of the model input."""
    dices = []
    for features, labels in zip(examples.features, examples.labels, strict=True):
        logits = network.eval().predict(features).mask_logits
        size = (labels.shape[-2], labels.shape[-1])
        masks = functional.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(dim=1)
        dices.append(float(compute_dice(masks[:, None], labels > 0, ignore_empty=False).mean()))
    return dices
