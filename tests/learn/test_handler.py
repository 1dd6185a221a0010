"""The two-level loop on a real MONAI trainer; D1 has three batches, D2 two."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines.trainer import SupervisedTrainer
from monai.engines.utils import PrepareBatchExtraInput
from monai.handlers.checkpoint_loader import CheckpointLoader
from monai.handlers.checkpoint_saver import CheckpointSaver
from monai.handlers.lr_schedule_handler import LrScheduleHandler
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW
from torch.optim.lr_scheduler import PolynomialLR
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from amsam_med.boxes import jitter_boxes
from amsam_med.errors import ConfigError
from amsam_med.learn import handler, hypergradient
from amsam_med.learn.handler import BiLevelHandler, SeedHandler
from amsam_med.learn.levels import lower_parameters, set_trainable, upper_parameters
from amsam_med.learn.loss import SegmentationLoss

Build = Callable[[], nn.Module]
PROMPT = "prompt_encoder.no_mask_embed.weight"
LOWER_RATE, UPPER_RATE = 5e-3, 1e-2
KINDS = ("first-order", "unrolled", "exact")


class Examples(Dataset[dict[str, Any]]):
    """``count`` fixed embeddings; boxes jittered by torch's global generator; remembers what was drawn."""

    def __init__(self, count: int, seed: int, jitter: float = 0.2) -> None:
        self.jitter = jitter
        draw = torch.Generator().manual_seed(seed)
        self.images = torch.randn(count, 4, 4, 4, generator=draw)
        self.labels = torch.randint(0, 2, (count, 1, 8, 8), generator=draw, dtype=torch.uint8)
        self.drawn: list[int] = []
        self.boxes: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.drawn.append(index)
        box = jitter_boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]]), self.jitter, (64, 64))[0]
        self.boxes.append(box)
        return {"image": self.images[index], "label": self.labels[index], "box": box}


class Run:
    """A whole training run."""

    def __init__(self, network: nn.Module, epochs: int, kind: str = "first-order", counts: tuple[int, int] = (5, 3)):
        set_trainable(network)
        self.network, self.lower_data, self.upper_data = network, Examples(counts[0], 1), Examples(counts[1], 2)
        self.lower_optimizer = AdamW(lower_parameters(network).values(), lr=LOWER_RATE, weight_decay=0.1)
        self.upper_optimizer = AdamW(upper_parameters(network).values(), lr=UPPER_RATE, weight_decay=0.1)
        self.lower_schedule = PolynomialLR(self.lower_optimizer, total_iters=12, power=0.9)
        self.upper_schedule = PolynomialLR(self.upper_optimizer, total_iters=12, power=0.9)
        self.bi_level = BiLevelHandler(
            loader(self.upper_data), self.upper_optimizer, SegmentationLoss(), kind, self.upper_schedule, seed=3
        )
        self.trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=epochs,
            train_data_loader=loader(self.lower_data),
            network=network,
            optimizer=self.lower_optimizer,
            loss_function=SegmentationLoss(),
            prepare_batch=PrepareBatchExtraInput(extra_keys={"boxes": "box"}),
            train_handlers=[
                SeedHandler(3),
                LrScheduleHandler(self.lower_schedule, print_lr=False, epoch_level=False),
                self.bi_level,
            ],
        )
        self.to_save = {
            "network": network,
            "lower_optimizer": self.lower_optimizer,
            "upper_optimizer": self.upper_optimizer,
            "lower_schedule": self.lower_schedule,
            "upper_schedule": self.upper_schedule,
            "trainer": self.trainer,
        }


def loader(data: Examples) -> DataLoader[dict[str, Any]]:
    return DataLoader(data, batch_size=2, sampler=DistributedSampler(data, num_replicas=1, rank=0, seed=9))


def prompt_of(run: Run) -> nn.Parameter:
    return upper_parameters(run.network)[PROMPT]


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


# ------------------------------------------------------------------------------------------------------- one iteration


def loss_of_all(network: nn.Module, data: Examples) -> hypergradient.LevelLoss:
    """The loss of the whole of ``data`` as one batch, written down independently of the handler."""
    items = [data[index] for index in range(len(data))]
    image, label, box = (torch.stack([item[key] for item in items]) for key in ("image", "label", "box"))

    def loss(lower: hypergradient.Parameters, upper: hypergradient.Parameters) -> Tensor:
        return SegmentationLoss()(functional_call(network, {**lower, **upper}, (image,), {"boxes": box}), label)

    return loss


@pytest.mark.parametrize("kind", KINDS)
def test_an_upper_step_follows_the_hypergradient_at_the_trained_weights(kind: str, toy_network: Build) -> None:
    run = Run(toy_network(), epochs=1, kind=kind, counts=(2, 2))
    run.lower_data.jitter = run.upper_data.jitter = 0.0
    seen: list[dict[str, Tensor]] = []
    run.upper_optimizer.register_step_pre_hook(lambda *_: seen.append({PROMPT: prompt_of(run).grad.clone()}))
    run.upper_optimizer.register_step_pre_hook(lambda *_: seen.append(state_of(run.network)))
    run.trainer.run()
    (gradient, state), network = seen, toy_network()
    lower, upper = {name: state[name] for name in lower_parameters(network)}, {PROMPT: state[PROMPT]}
    lower_loss, upper_loss = loss_of_all(network, run.lower_data), loss_of_all(network, run.upper_data)
    expected = {
        "first-order": lambda: hypergradient.first_order(upper_loss, lower, upper),
        "unrolled": lambda: hypergradient.unrolled(lower_loss, upper_loss, lower, upper, LOWER_RATE),
        "exact": lambda: hypergradient.exact(lower_loss, upper_loss, lower, upper, LOWER_RATE),
    }[kind]()
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["unrolled", "exact"])
def test_the_hypergradient_that_was_asked_for_is_taken(
    kind: str, toy_network: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two agree to within the other test's tolerance, so that one cannot tell them apart."""
    taken: list[str] = []
    for name in ("unrolled", "exact"):

        def noted(*given: Any, name: str = name) -> Any:
            taken.append(name)
            return getattr(hypergradient, name)(*given)

        monkeypatch.setattr(handler, name, noted)
    Run(toy_network(), epochs=1, kind=kind, counts=(2, 2)).trainer.run()
    assert taken == [kind]


def test_the_three_hypergradients_differ(toy_network: Build) -> None:
    prompts = []
    for kind in KINDS:
        run = Run(toy_network(), epochs=2, kind=kind)
        run.trainer.run()
        prompts.append(state_of(run.network)[PROMPT])
    assert not torch.equal(prompts[0], prompts[2])
    assert not torch.equal(prompts[1], prompts[2])
    torch.testing.assert_close(prompts[1], prompts[2], rtol=1e-2, atol=1e-3)


def test_an_iteration_moves_both_levels_and_nothing_else(toy_network: Build) -> None:
    run = Run(toy_network(), epochs=1, counts=(2, 2))
    before = state_of(run.network)
    run.trainer.run()
    moved = {name for name, tensor in state_of(run.network).items() if not torch.equal(tensor, before[name])}
    trainable = lower_parameters(run.network).keys() | upper_parameters(run.network).keys()
    assert moved == {name for name in trainable if "iou_prediction_head" not in name}  # no loss sees the IoU head


def test_the_lower_step_is_the_trainers_own(toy_network: Build) -> None:
    with_upper, without_upper = (Run(toy_network(), epochs=1, counts=(2, 2)) for _ in range(2))
    without_upper.trainer.remove_event_handler(without_upper.bi_level, Events.ITERATION_COMPLETED)
    for run in (with_upper, without_upper):
        run.trainer.run()
    one, other = (lower_parameters(run.network) for run in (with_upper, without_upper))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(prompt_of(with_upper), prompt_of(without_upper))


def test_no_gradient_stays_on_the_prompt_embedding(toy_network: Build) -> None:
    run = Run(toy_network(), epochs=1)
    run.trainer.run()
    assert prompt_of(run).grad is None


def test_training_lowers_the_loss_on_both_halves(toy_network: Build) -> None:
    run = Run(toy_network(), epochs=4)
    losses = [loss_of_all(run.network, data) for data in (run.lower_data, run.upper_data)]
    before = [loss({}, {}).item() for loss in losses]
    run.trainer.run()
    assert losses[0]({}, {}).item() < before[0]
    assert losses[1]({}, {}).item() < before[1]


def test_the_upper_loss_is_recorded_after_every_iteration(toy_network: Build) -> None:
    run, recorded = Run(toy_network(), epochs=2), []
    run.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: recorded.append(engine.state.metrics["upper_loss"])
    )
    run.trainer.run()
    assert len(set(recorded)) == 6
    assert all(0 < loss < 5 for loss in recorded)


def test_the_recorded_upper_loss_is_that_before_the_step(toy_network: Build) -> None:
    run = Run(toy_network(), epochs=1, counts=(2, 2))
    run.lower_data.jitter = run.upper_data.jitter = 0.0
    seen: list[dict[str, Tensor]] = []
    run.upper_optimizer.register_step_pre_hook(lambda *_: seen.append(state_of(run.network)))
    run.trainer.run()
    (state,), network = seen, toy_network()
    lower = {name: state[name] for name in lower_parameters(network)}
    before = loss_of_all(network, run.upper_data)(lower, {PROMPT: state[PROMPT]})
    assert run.trainer.state.metrics["upper_loss"] == pytest.approx(before.item(), rel=1e-6)


def test_each_level_has_its_own_loss_and_the_upper_one_may_prepare_batches_in_its_own_way(toy_network: Build) -> None:
    run, used = Run(toy_network(), epochs=1, kind="exact", counts=(2, 2)), []

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **named: used.append(name) or function(*given, **named)

    run.trainer.loss_function = noted("lower loss", run.trainer.loss_function)
    run.bi_level.loss_function = noted("upper loss", run.bi_level.loss_function)
    run.bi_level.prepare_batch = noted("prepare", run.trainer.prepare_batch)
    run.trainer.run()
    # The lower loss also in the virtual step; both of the upper step's batches are prepared by the handler.
    assert {name: used.count(name) for name in used} == {"lower loss": 2, "upper loss": 1, "prepare": 2}


def test_both_rates_follow_their_own_polynomial(toy_network: Build) -> None:
    run = Run(toy_network(), epochs=2)
    run.trainer.run()
    share = (1 - 6 / 12) ** 0.9  # 6 of 12 iterations
    assert run.lower_optimizer.param_groups[0]["lr"] == pytest.approx(LOWER_RATE * share)
    assert run.upper_optimizer.param_groups[0]["lr"] == pytest.approx(UPPER_RATE * share)


# ----------------------------------------------------------------------------------------------------- order and seeds


def test_monai_tells_the_sampler_of_d1_the_epoch_from_the_first_on(toy_network: Build) -> None:
    run = Run(toy_network(), epochs=2)
    run.trainer.run()
    sampler = DistributedSampler(run.lower_data, num_replicas=1, rank=0, seed=9)
    for epoch, drawn in ((1, run.lower_data.drawn[:5]), (2, run.lower_data.drawn[5:])):
        sampler.set_epoch(epoch)
        assert drawn == list(sampler)


def test_every_pass_uses_all_of_d2_in_its_own_order(toy_network: Build) -> None:
    run = Run(toy_network(), epochs=8)  # 24 iterations: 12 passes of D2
    run.trainer.run()
    passes = [run.upper_data.drawn[start : start + 3] for start in range(0, 36, 3)]
    assert len(run.upper_data.drawn) == 36
    assert all(sorted(indices) == [0, 1, 2] for indices in passes)
    assert len({tuple(indices) for indices in passes}) > 2


@pytest.mark.parametrize("counts", [(2, 7), (7, 2)])
def test_d1_and_d2_may_differ_in_number(counts: tuple[int, int], toy_network: Build) -> None:
    run = Run(toy_network(), epochs=4, counts=counts)
    run.trainer.run()
    assert run.upper_schedule.last_epoch == run.trainer.state.iteration
    assert set(run.upper_data.drawn) == set(range(counts[1]))


def test_drawing_from_d2_changes_no_random_number_elsewhere(toy_network: Build) -> None:
    boxes = []
    for count in (1, 3):
        run = Run(toy_network(), epochs=2, counts=(5, count))
        run.trainer.run()
        boxes.append(torch.stack(run.lower_data.boxes))
    assert torch.equal(*boxes)


def test_random_numbers_drawn_elsewhere_change_no_batch_of_d2(toy_network: Build) -> None:
    boxes = []
    for count in (0, 5):
        run = Run(toy_network(), epochs=2)
        run.trainer.add_event_handler(Events.ITERATION_STARTED, lambda _, count=count: torch.rand(count))
        run.trainer.run()
        boxes.append(torch.stack(run.upper_data.boxes))
    assert torch.equal(*boxes)


def test_jitter_differs_between_passes(toy_network: Build) -> None:
    run = Run(toy_network(), epochs=4, counts=(2, 2))
    run.trainer.run()
    assert len({tuple(box.tolist()) for box in run.upper_data.boxes}) == 8
    assert len({tuple(box.tolist()) for box in run.lower_data.boxes}) == 8


def test_an_epochs_random_numbers_depend_on_the_seed_and_the_epoch_alone() -> None:
    drawn = {}
    for seed, epoch, noise in ((1, 1, 0), (1, 1, 5), (1, 2, 0), (2, 1, 0)):
        engine = Engine(lambda *_: None)
        SeedHandler(seed).attach(engine)
        engine.state.epoch = epoch
        torch.rand(noise)
        engine.fire_event(Events.EPOCH_STARTED)
        drawn[seed, epoch, noise] = float(torch.rand(1))
    assert drawn[1, 1, 0] == drawn[1, 1, 5]
    assert len(set(drawn.values())) == 3


# -------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_run_ends_with_the_same_bits(kind: str, stop: int, toy_network: Build, tmp_path: Path) -> None:
    whole = Run(toy_network(), epochs=4, kind=kind)
    whole.trainer.run()
    first = Run(toy_network(), epochs=stop, kind=kind)
    CheckpointSaver(str(tmp_path), first.to_save, save_interval=1).attach(first.trainer)
    first.trainer.run()
    torch.manual_seed(stop)  # another process has another random state
    second = Run(toy_network(), epochs=4, kind=kind)
    CheckpointLoader(str(tmp_path / f"checkpoint_epoch={stop}.pt"), second.to_save).attach(second.trainer)
    second.trainer.run()
    assert second.trainer.state.iteration == 12
    expected, resumed = state_of(whole.network), state_of(second.network)
    assert [name for name in expected if not torch.equal(expected[name], resumed[name])] == []


# ------------------------------------------------------------------------------------------------- processes, refusals


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_hypergradients_are_averaged_over_processes(toy_network: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    for _ in range(2):
        run = Run(toy_network(), epochs=1, counts=(2, 2))
        run.upper_optimizer.register_step_pre_hook(lambda _, *__, run=run: seen.append(prompt_of(run).grad.clone()))
        run.trainer.run()
        # for the second run: as if another process had found a gradient of ones
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.add_(1.0))
    torch.testing.assert_close(seen[1], (seen[0] + 1) / 2)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_wrapped_for_several_processes_trains_alike(kind: str, toy_network: Build) -> None:
    plain, wrapped = (Run(toy_network(), epochs=2, kind=kind) for _ in range(2))
    wrapped.trainer.network = DistributedDataParallel(wrapped.network, find_unused_parameters=True)
    for run in (plain, wrapped):
        run.trainer.run()
    torch.testing.assert_close(state_of(plain.network), state_of(wrapped.network))


def test_an_unknown_hypergradient_is_refused(toy_network: Build) -> None:
    with pytest.raises(ConfigError, match="first-order, unrolled, exact"):
        Run(toy_network(), epochs=1, kind="second-order")


@pytest.mark.parametrize(("lower", "upper"), [("lower", "lower"), ("upper", "upper"), ("upper", "lower")])
def test_optimizers_of_other_parameters_are_refused(lower: str, upper: str, toy_network: Build) -> None:
    run = Run(toy_network(), epochs=1)
    optimizers = {"lower": run.lower_optimizer, "upper": run.upper_optimizer}
    run.trainer.optimizer, run.bi_level.optimizer = optimizers[lower], optimizers[upper]
    with pytest.raises(ConfigError, match=r"upper_parameters\(network\)"):
        run.trainer.run()


def test_a_loader_without_a_batch_is_refused(toy_network: Build) -> None:
    run = Run(toy_network(), epochs=1)
    empty = DataLoader(run.upper_data, batch_size=8, drop_last=True)
    with pytest.raises(ConfigError, match="drop_last=False"):
        BiLevelHandler(empty, run.upper_optimizer, SegmentationLoss())


@pytest.mark.parametrize(
    "refuse", [SeedHandler, lambda seed: BiLevelHandler(loader(Examples(2, 0)), None, None, seed=seed)]
)
def test_a_negative_seed_is_refused(refuse: Callable[[int], object]) -> None:
    with pytest.raises(ConfigError, match="0 or more"):
        refuse(-1)


RUN_IN_A_PROCESS = """
import atexit, pathlib, sys
import torch, torch.distributed
from amsam_med.learn.handler import leave_process_group

def runs_gloo():
    return any("gloo" in name.read_text() for name in pathlib.Path("/proc/self/task").glob("*/comm"))

def run():
    network = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    network.of_a_cycle = network
    network(torch.rand(1, 2)).sum().backward()
    print(runs_gloo())
    leave_process_group()

atexit.register(lambda: print(runs_gloo()))  # called after what run() registers
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
run()
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="lists threads as Linux does")
def test_no_thread_of_the_process_group_outlives_python(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN_IN_A_PROCESS, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "False"]


def test_the_hypergradient_is_of_first_order_by_default(toy_network: Build) -> None:
    run = Run(toy_network(), epochs=1)
    assert BiLevelHandler(loader(run.upper_data), run.upper_optimizer, SegmentationLoss()).hypergradient == KINDS[0]
