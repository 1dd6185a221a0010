"""The two-level loop on MONAI's ``SupervisedTrainer`` (Eq. 6-8), and its seeds.

The trainer's own step on a batch of D1 is the lower level, unchanged. After each of them, :class:`BiLevelHandler` takes
one upper step on the next batch of D2. What the handler does in iteration i depends only on i and the weights. So a run
resumed from a checkpoint of an epoch's end (network, both optimisers, both schedulers, trainer) ends with the same
numbers, if the loader of D1 has a ``DistributedSampler``, whose epoch MONAI's engines set, and a :class:`SeedHandler`
is attached for other random numbers.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import torch
import torch.distributed
from ignite.engine import Engine, Events
from monai.engines.trainer import SupervisedTrainer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from amsam_med.errors import ConfigError
from amsam_med.learn.hypergradient import Hypergradient, LevelLoss, Parameters, exact, first_order, unrolled
from amsam_med.learn.levels import lower_parameters, upper_parameters

UPPER_LOSS = "upper_loss"
"""Key of the last upper loss in ``engine.state.metrics``."""


class BiLevelHandler:
    """Ignite handler: one upper step, on A and D2, after each lower step of a trainer.

    Attach it to a ``SupervisedTrainer`` whose optimiser holds W. The upper step runs the network as the trainer does
    (with its ``prepare_batch`` and its inferer, which gets a plain function instead of the network), does not touch the
    gradients of W, and writes the loss on D2 before the step to ``engine.state.metrics["upper_loss"]``.

    D2 is used in full, pass after pass; with a shuffling sampler in ``upper_loader`` each pass has its own order.
    Several processes share D2 through a ``DistributedSampler`` and step with the mean of their hypergradients.

    Args:
        upper_loader: Batches of D2; their number may differ from D1's.
        optimizer: The optimiser of A and of no other parameter.
        loss_function: L_upper of ``(mask_logits, label)``; the lower level's is the trainer's own.
        hypergradient: ``"first-order"`` takes W as constant; ``"unrolled"`` and ``"exact"`` look through one virtual
            SGD step on the trainer's batch, by finite difference or by double differentiation.
        scheduler: Learning rate schedule of ``optimizer``, stepped here once per iteration; the lower level's belongs
            in MONAI's ``LrScheduleHandler(epoch_level=False)``.
        prepare_batch: As in MONAI's engines; the trainer's own by default.
        seed: Seed for drawing batches of D2, including the jitter of boxes.

    Raises:
        ConfigError: An unknown hypergradient, or an empty ``upper_loader``.
    """

    def __init__(
        self,
        upper_loader: DataLoader[Any],
        optimizer: torch.optim.Optimizer,
        loss_function: Callable[[Tensor, Tensor], Tensor],
        hypergradient: Hypergradient = "first-order",
        scheduler: LRScheduler | None = None,
        prepare_batch: Callable[..., Any] | None = None,
        seed: int = 0,
    ) -> None:
        if hypergradient not in get_args(Hypergradient):
            choices = ", ".join(get_args(Hypergradient))
            raise ConfigError(f"hypergradient {hypergradient!r} is unknown; expected one of {choices}")
        self.optimizer = optimizer
        self.loss_function = loss_function
        self.hypergradient = hypergradient
        self.scheduler = scheduler
        self.prepare_batch = prepare_batch
        self._upper_batches = _NumberedBatches(upper_loader, seed)
        self._lower: dict[str, nn.Parameter] = {}
        self._upper: dict[str, nn.Parameter] = {}
        self._lower_batch: Any = None
        self._lower_rate = 0.0

    def attach(self, engine: SupervisedTrainer) -> None:
        """Take an upper step after each iteration of ``engine``.

        When the engine starts, it raises :class:`ConfigError` if the optimisers do not hold exactly A and W, or the
        network lacks one of the two.
        """
        engine.add_event_handler(Events.STARTED, self._check)  # engines attach handlers before they have a network
        engine.add_event_handler(Events.ITERATION_STARTED, self._remember_lower_step)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: SupervisedTrainer) -> None:
        """Take one upper step."""
        lower, upper = self._lower, self._upper
        upper_loss = _RecordedLoss(
            self._level_loss(engine, self._upper_batches.take(engine.state.iteration - 1), self.loss_function)
        )
        gradients = _averaged_over_ranks(self._gradients(engine, upper_loss, lower, upper))
        for name, parameter in upper.items():
            parameter.grad = gradients[name]  # replaces the gradient that the trainer's backward pass left on A
        self.optimizer.step()
        # The trainer's optimiser does not hold A and so would never clear its gradient.
        self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler is not None:
            self.scheduler.step()
        self._lower_batch = None  # frees the batch before the next one is loaded
        engine.state.metrics[UPPER_LOSS] = upper_loss.value

    def _check(self, engine: SupervisedTrainer) -> None:
        network = _unwrapped(engine.network)
        # Looked up once: walking through a network's names costs as much as a tenth of a step.
        self._lower, self._upper = lower_parameters(network), upper_parameters(network)
        _check_optimizers(self._lower, self._upper, lower=engine.optimizer, upper=self.optimizer)

    def _remember_lower_step(self, engine: SupervisedTrainer) -> None:
        # Kept from before the step: afterwards the batch is decollated and the rate may be the next iteration's.
        self._lower_batch = engine.state.batch
        self._lower_rate = float(engine.optimizer.param_groups[0]["lr"])

    def _gradients(
        self, engine: SupervisedTrainer, upper_loss: LevelLoss, lower: Parameters, upper: Parameters
    ) -> dict[str, Tensor]:
        if self.hypergradient == "first-order":
            return first_order(upper_loss, lower, upper)
        lower_loss = self._level_loss(engine, self._lower_batch, engine.loss_function)
        look_ahead = unrolled if self.hypergradient == "unrolled" else exact
        return look_ahead(lower_loss, upper_loss, lower, upper, self._lower_rate)

    def _level_loss(
        self, engine: SupervisedTrainer, batch: Any, loss_function: Callable[[Tensor, Tensor], Tensor]
    ) -> LevelLoss:
        """The loss of one batch as a function of W and A."""
        prepare_batch = self.prepare_batch or engine.prepare_batch
        prepared = prepare_batch(batch, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        inputs, label, args, kwargs = prepared if len(prepared) == 4 else (*prepared, (), {})
        # W and A go by the network's own names, without the prefix of DistributedDataParallel.
        network = _unwrapped(engine.network)

        def level_loss(lower: Parameters, upper: Parameters) -> Tensor:
            def run_network(*network_args: Any, **network_kwargs: Any) -> Any:
                return functional_call(network, {**lower, **upper}, network_args, network_kwargs)

            mask_logits = engine.inferer(inputs, run_network, *args, **kwargs)
            return loss_function(mask_logits, label).mean()

        return level_loss


class SeedHandler:
    """Ignite handler: reseed torch's global generators at the start of each epoch, from (seed, epoch) alone.

    So an epoch's random numbers, such as the jitter of boxes, do not depend on whether the run was resumed before it.

    Args:
        seed: 0 or more.

    Raises:
        ConfigError: A negative seed.
    """

    def __init__(self, seed: int) -> None:
        _check_seed(seed)
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Reseed at each epoch of ``engine``."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed the generators for the epoch that begins."""
        torch.manual_seed(_mixed_seed(self.seed, engine.state.epoch))


def leave_process_group() -> None:
    """Leave ``torch.distributed``: the last step of a run in several processes.

    ``destroy_process_group`` alone leaves gloo's threads running, because ``DistributedDataParallel`` still holds the
    group. A thread that frees a tensor while Python shuts down aborts the process (SIGABRT) after a successful run. So
    the group's last reference is dropped at exit, when nothing else of the run is in use; that waits for its threads.
    """
    last_reference = [torch.distributed.group.WORLD]
    torch.distributed.destroy_process_group()

    @atexit.register
    def release() -> None:
        gc.collect()  # trainer and network reference each other, and the network holds the group
        last_reference.clear()


class _NumberedBatches:
    """The batches of a loader, pass after pass, each a pure function of (seed, number).

    torch's global CPU generator is seeded for each draw and restored afterwards: drawing here changes no random number
    elsewhere, and random numbers drawn elsewhere change no batch.
    """

    def __init__(self, loader: DataLoader[Any], seed: int) -> None:
        _check_seed(seed)
        if len(loader) == 0:
            raise ConfigError(
                "the loader of D2 has no batch; expected at least one: use a batch size of at most the size of D2, or "
                "drop_last=False"
            )
        self.loader, self.seed = loader, seed
        self._iterator: Iterator[Any] = iter(())
        self._next_number = -1

    def take(self, number: int) -> Any:
        """Batch ``number``, counted from 0 across passes."""
        pass_number, position = divmod(number, len(self.loader))
        if position == 0 or number != self._next_number:
            self._open(pass_number)
            # Resumed in the middle of a pass: a loader cannot start there, so earlier batches are drawn and dropped.
            for skipped in range(number - position, number):
                self._draw(skipped)
        self._next_number = number + 1
        return self._draw(number)

    def _open(self, pass_number: int) -> None:
        set_epoch = getattr(self.loader.sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(pass_number)
        with _seeded_aside(_mixed_seed(self.seed, pass_number * len(self.loader))):
            self._iterator = iter(self.loader)  # torch draws the seeds of the workers here, so it must be seeded, too

    def _draw(self, number: int) -> Any:
        with _seeded_aside(_mixed_seed(self.seed, number)):
            return next(self._iterator)


class _RecordedLoss:
    """A level's loss that keeps its last value, so that recording it costs no further forward pass."""

    def __init__(self, loss: LevelLoss) -> None:
        self.loss = loss
        self.value = float("nan")

    def __call__(self, lower: Parameters, upper: Parameters) -> Tensor:
        loss = self.loss(lower, upper)
        self.value = float(loss.detach())
        return loss


def _unwrapped(network: nn.Module) -> nn.Module:
    return network.module if isinstance(network, DistributedDataParallel) else network


def _check_optimizers(
    of_w: Parameters, of_a: Parameters, lower: torch.optim.Optimizer, upper: torch.optim.Optimizer
) -> None:
    in_lower, in_upper = _held_by(lower), _held_by(upper)
    of_lower, of_upper = {id(parameter) for parameter in of_w.values()}, {id(parameter) for parameter in of_a.values()}
    if in_upper != of_upper or in_lower != of_lower:
        raise ConfigError(
            f"the optimisers hold {len(in_lower)} (lower) and {len(in_upper)} (upper) tensors; expected exactly W, "
            f"{len(of_lower)} tensors, and A, {len(of_upper)}; build them from lower_parameters(network).values() and "
            "upper_parameters(network).values()"
        )


def _held_by(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _averaged_over_ranks(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean over all processes, each with its own batch; unchanged without ``torch.distributed``."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return dict(gradients)
    averaged = {name: gradient.contiguous() for name, gradient in gradients.items()}
    for gradient in averaged.values():
        torch.distributed.all_reduce(gradient)  # a sum, because gloo has no mean
        gradient /= torch.distributed.get_world_size()
    return averaged


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ConfigError(f"the seed is {seed}; expected 0 or more")


def _mixed_seed(seed: int, number: int) -> int:
    """A 64-bit seed for step ``number``, unrelated to that of any other seed or step."""
    # Not seed + number: then step 1 of seed 0 and step 0 of seed 1 would draw the same numbers.
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])


@contextmanager
def _seeded_aside(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator inside the block and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs' generators
        yield
