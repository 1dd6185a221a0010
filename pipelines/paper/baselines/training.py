"""One trainer for all baselines: MONAI's, with AM-SAM's loss, views and seeds.

All k examples are learned from, and the last weights are taken: none of these methods has AM-SAM's two halves, and to
hold examples out for choosing an epoch would cost half of what there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import PrepareBatchExtraInput, SupervisedTrainer
from monai.handlers import LrScheduleHandler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from amsam_med.data.datalists import Item
from amsam_med.data.transforms import preprocessing
from amsam_med.keys import Keys
from amsam_med.learn import SeedHandler, SegmentationLoss, ViewSampler
from amsam_med.views import ViewKind, view_image, views_of
from pipelines.paper.baselines.interface import BaselineNetwork, Recipe

SCHEDULE_POWER = 0.9
WARM_UP_SHARE = 0.25
"""A warm-up takes no more of a run than this, however short the run is."""

Progress = Callable[[int, float], None]
"""Called after each pass with (passes done, mean loss)."""


class ViewedImages(Dataset[dict[str, Any]]):
    """Examples in memory, each in all views; what :class:`amsam_med.learn.ViewSampler` draws from.

    Args:
        images: float ``(k, 3, S, S)`` in [0, 1].
        labels: uint8 ``(k, 1, S, S)``.
        views: Which views.
    """

    def __init__(self, images: Tensor, labels: Tensor, views: ViewKind) -> None:
        self.images, self.labels, self.views = images, labels, views_of(views)
        self.view_count = len(self.views)

    def __len__(self) -> int:
        return len(self.images) * self.view_count

    def __getitem__(self, item: int) -> dict[str, Any]:
        index, position = divmod(item, self.view_count)
        view = self.views[position]
        return {
            Keys.IMAGE: view_image(self.images[index], view).contiguous(),
            Keys.LABEL: view_image(self.labels[index], view).contiguous(),
        }


class SupervisedLogits(nn.Module):
    """What the trainer steps: a :meth:`~pipelines.paper.baselines.interface.BaselineNetwork.training_logits`."""

    def __init__(self, baseline: BaselineNetwork) -> None:
        super().__init__()
        self.baseline = baseline

    def forward(self, images: Tensor, labels: Tensor) -> list[Tensor]:
        """All logits of a batch that have a part in the loss."""
        return self.baseline.training_logits(images, labels)


class DeepLoss(nn.Module):
    """The mean of Eq. (5) over a list of logits, each at its own size."""

    def __init__(self, lambda_dice: float) -> None:
        super().__init__()
        self.loss = SegmentationLoss(lambda_dice)

    def forward(self, logits: Sequence[Tensor], label: Tensor) -> Tensor:
        """Eq. (5) of ``(B, 2, h, w)`` logits and ``(B, 1, S, S)`` class ids."""
        return torch.stack([self.loss(one, label) for one in logits]).mean()


def load_examples(items: Sequence[Item], input_size: int) -> tuple[Tensor, Tensor]:
    """Images float ``(k, 3, S, S)`` in [0, 1] and labels uint8 ``(k, 1, S, S)``."""
    prepare = preprocessing(input_size, with_label=True)
    loaded = [prepare(dict(item)) for item in items]
    return torch.stack([item[Keys.IMAGE] for item in loaded]), torch.stack([item[Keys.LABEL] for item in loaded])


def train_baseline(
    network: BaselineNetwork,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    seed: int = 0,
    is_pretrained: bool = False,
    progress: Progress | None = None,
) -> BaselineNetwork:
    """Train a network on examples, in place.

    Args:
        network: On the device to train on; what it does not train has no gradient.
        images: float ``(k, 3, S, S)`` in [0, 1].
        labels: uint8 ``(k, 1, S, S)``.
        recipe: How.
        seed: Of order and views.
        is_pretrained: Whether a backbone started from published weights, which asks for the lower rate.
        progress: Called after every pass.

    Returns:
        The network in evaluation mode, which has seen the examples as they are.
    """
    device = next(network.parameters()).device
    dataset = ViewedImages(images, labels, recipe.views)
    batch_size = min(recipe.batch_size, len(images))
    sampler = ViewSampler(dataset, seed=seed)  # type: ignore[arg-type]  # all it asks for is the number of views
    loader = DataLoader(dataset, batch_size, sampler=sampler, drop_last=True)
    optimizer = _optimizer(network, recipe, is_pretrained)
    schedule = LambdaLR(optimizer, course(recipe.passes * len(loader), recipe.warm_up))
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=recipe.passes,
        train_data_loader=loader,
        network=SupervisedLogits(network),
        optimizer=optimizer,
        loss_function=DeepLoss(recipe.lambda_dice),
        prepare_batch=PrepareBatchExtraInput({"labels": Keys.LABEL.value}),
        # MONAI names the old class of torch's schedules.
        train_handlers=[
            SeedHandler(seed),
            LrScheduleHandler(schedule, print_lr=False, epoch_level=False),  # type: ignore[arg-type]
        ],
        decollate=False,
    )
    if progress is not None:
        _report_to(trainer, progress)
    trainer.run()
    network.eval()
    with torch.no_grad():
        network.prepare(images.to(device), labels.to(device))
    return network


def trained_parameters(network: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that training moves."""
    return (parameter for parameter in network.parameters() if parameter.requires_grad)


def course(iterations: int, warm_up: int) -> Callable[[int], float]:
    """Linear warm-up, then (1 - i / N)^0.9, as SAMed has it: the share of the first rate at each iteration.

    Args:
        iterations: N of the run.
        warm_up: Iterations that are wished for; no more than a quarter of the run is given.
    """
    rising = min(warm_up, math.floor(WARM_UP_SHARE * iterations))

    def share(iteration: int) -> float:
        if iteration < rising:
            return (iteration + 1) / rising
        left = max(0.0, 1 - (iteration - rising) / max(1, iterations - rising))
        return math.pow(left, SCHEDULE_POWER)

    return share


def _optimizer(network: nn.Module, recipe: Recipe, is_pretrained: bool) -> torch.optim.Optimizer:
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    rate = recipe.pretrained_rate if is_pretrained and recipe.pretrained_rate is not None else recipe.rate
    return kind(list(trained_parameters(network)), lr=rate, weight_decay=recipe.weight_decay)


def _report_to(trainer: SupervisedTrainer, progress: Progress) -> None:
    losses: list[float] = []

    def collect(engine: Engine) -> None:
        output: Any = engine.state.output
        losses.append(float(output["loss"]))

    def report(engine: Engine) -> None:
        progress(engine.state.epoch, sum(losses) / len(losses))
        losses.clear()

    trainer.add_event_handler(Events.ITERATION_COMPLETED, collect)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, report)
