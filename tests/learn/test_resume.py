"""Checkpoints from anybody: taken up as they were left, or refused in a sentence; nothing in them runs."""

from __future__ import annotations

import copy
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from ignite.engine import Engine
from torch import Tensor

from amsam_med.errors import WeightsError
from amsam_med.learn.resume import read_checkpoint

EPOCHS, STEPS = 3, 2


class Part(NamedTuple):
    """Anything with a state."""

    state: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        return self.state


def parts(steps: int = 0) -> dict[str, Any]:
    """A run in miniature after some steps of W, float ``(2, 3)``."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=EPOCHS * STEPS, power=0.9)
    for _ in range(steps):
        weight.square().sum().backward()
        optimizer.step()
        scheduler.step()
    trainer = Engine(lambda *_: None)
    trainer.state.epoch_length, trainer.state.max_epochs, trainer.state.iteration = STEPS, EPOCHS, steps
    row = {"lower_loss": 0.5, "upper_loss": 0.25, "d2_dice": 0.75, "lower_rate": 0.1}
    history = [{"epoch": epoch, **row} for epoch in range(1, steps // STEPS + 1)]
    adapter = {"weight": weight.detach().clone()}
    return {
        "lower_optimizer": optimizer,
        "lower_scheduler": scheduler,
        "adapter": Part(adapter),
        "record": Part({"history": history}),
        "trainer": trainer,
    }


@pytest.fixture
def state() -> dict[str, Any]:
    """What a run leaves after two epochs."""
    return copy.deepcopy({name: part.state_dict() for name, part in parts(4).items()})


def refuse(path: Path) -> str:
    with pytest.raises(WeightsError, match="delete the file, and --resume begins with the first epoch again") as caught:
        read_checkpoint(path, parts(), EPOCHS)
    assert str(caught.value).count("\n") == 0
    return str(caught.value)


def test_what_a_run_left_is_taken_up(state: dict[str, Any], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "checkpoint.pt")
    read = read_checkpoint(tmp_path / "checkpoint.pt", parts(), EPOCHS)
    assert read.keys() == state.keys()
    assert read["trainer"]["iteration"] == 4
    assert torch.equal(read["adapter"]["weight"], state["adapter"]["weight"])


def put(*keys: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one entry."""

    def change(state: dict[str, Any]) -> None:
        at: Any = state
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = to

    return change


def trained_on(state: dict[str, Any], epochs: int) -> None:
    """Claim some epochs, in trainer and history alike."""
    rows = state["record"]["history"]
    state["record"]["history"] = [{**rows[0], "epoch": epoch} for epoch in range(1, epochs + 1)]
    state["trainer"]["iteration"] = STEPS * epochs


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("record"), "expected lower_optimizer, lower_scheduler, adapter, record, trainer"),
        (put("more", to=1), "has the entries"),
        (put("adapter", to=[1]), "holds no tensors by name"),
        (put("adapter", "weight", to=torch.full((2, 3), torch.nan)), "NaN or infinity (first: 'weight')"),
        (put("adapter", "weight", to=torch.ones(3, 3)), "of shape (3, 3) and type torch.float32, expected (2, 3)"),
        (put("adapter", "weight", to=torch.ones(1, 1).expand(2**30, 2**20)), "which is no tensor of plain numbers"),
        (put("adapter", "weight", to="ones"), "which is no tensor of plain numbers"),
        (put("adapter", "other", to=torch.ones(1)), "holds the unknown part 'other'"),
        (put("lower_optimizer", "state", to=[1]), "lower_optimizer.state is no dictionary"),
        (put("lower_optimizer", "state", 7, to={}), "lower_optimizer.state has an entry 7"),
        (put("lower_optimizer", "state", "0", to={}), "lower_optimizer.state has an entry '0'"),
        (put("lower_optimizer", "state", 0, "exp_avg", to=torch.full((2, 3), torch.inf)), "NaN or infinity"),
        (put("lower_optimizer", "state", 0, "exp_avg", to=torch.ones(3, 2)), "has the shape (3, 2)"),
        (put("lower_optimizer", "state", 0, "exp_avg", to=None), "which is no tensor of plain numbers"),
        (put("lower_optimizer", "param_groups", to=[]), "lower_optimizer.param_groups is a list; expected 1 entries"),
        (put("lower_optimizer", "param_groups", 0, "lr", to=float("nan")), "lower_optimizer.param_groups.0.lr is nan"),
        (put("lower_optimizer", "param_groups", 0, "lr", to="0.1"), "lr is '0.1'; expected a number"),
        (put("lower_optimizer", "param_groups", 0, "evil", to=1), "lower_optimizer.param_groups.0 has the entries"),
        (put("lower_scheduler", "last_epoch", to=1.5), "lower_scheduler.last_epoch is 1.5"),
        (put("lower_scheduler", "last_epoch", to=10**400), "lower_scheduler.last_epoch is a huge number"),
        (put("lower_scheduler", "base_lrs", to=[0.1, 0.1]), "lower_scheduler.base_lrs is a list"),
        (put("record", "history", to=[]), "a history of 0 epochs"),
        (put("record", "history", 0, "epoch", to=2), "a history of 2 epochs"),
        (put("record", "history", 0, "d2_dice", to=1.5), "entry 'history.0.d2_dice'"),
        (put("record", "history", 0, "lower_loss", to=float("nan")), "entry 'history.0.lower_loss'"),
        (put("record", "history", 0, "=HYPERLINK()", to=1), "entry 'history.0.=HYPERLINK()'"),
        (put("trainer", "iteration", to=3), "3 steps of 2 an epoch"),
        (put("trainer", "iteration", to=5), "5 steps of 2 an epoch"),
        (lambda state: trained_on(state, 4), "8 steps of 2 an epoch, and a history of 4 epochs in a run of 3"),
        (put("lower_optimizer", "state", 1, to={}), "lower_optimizer.state has an entry 1"),
        (put("lower_optimizer", "param_groups", 0, "amsgrad", to=1), "amsgrad is 1; expected False"),
        (put("trainer", "iteration", to=-4), "entry 'iteration'"),
        (put("trainer", "epoch_length", to=0), "entry 'epoch_length'"),
        (put("trainer", "max_epochs", to=99), "in a run of 3"),
        (put("trainer", "max_epochs", to=True), "entry 'max_epochs'"),
    ],
)
def test_a_state_that_does_not_fit_the_run_is_named(
    change: Callable[[dict[str, Any]], None], said: str, state: dict[str, Any], tmp_path: Path
) -> None:
    change(state)
    torch.save(state, tmp_path / "checkpoint.pt")
    assert said in refuse(tmp_path / "checkpoint.pt")


class Attack:
    """A pickle that makes a file when it is opened."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("where", ["adapter", "history", "trainer", "whole"])
def test_code_in_a_checkpoint_does_not_run(where: str, state: dict[str, Any], tmp_path: Path) -> None:
    attack: Any = Attack(tmp_path / "PROOF")
    changed = {"adapter": put("adapter", "weight", to=attack), "history": put("record", "history", to=[attack])}
    changed.get(where, put("trainer", "iteration", to=attack))(state)
    torch.save(attack if where == "whole" else state, tmp_path / "checkpoint.pt")
    assert "damaged, or it holds other things than numbers" in refuse(tmp_path / "checkpoint.pt")
    (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps(attack))
    refuse(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "PROOF").exists()
    pickle.loads(pickle.dumps(attack))
    assert (tmp_path / "PROOF").exists()  # the attack is a real one


@pytest.mark.parametrize("length", [0, 1, 100, 2000, -1000, -1])
def test_a_cut_file_is_refused(length: int, state: dict[str, Any], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "checkpoint.pt")
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(whole[:length])
    refuse(tmp_path / "checkpoint.pt")


def test_a_packed_checkpoint_is_not_unpacked(state: dict[str, Any], tmp_path: Path) -> None:
    content = io.BytesIO()
    torch.save(state, content)
    with (
        zipfile.ZipFile(content) as plain,
        zipfile.ZipFile(tmp_path / "checkpoint.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name) if name.endswith("pkl") else bytes(1 << 22))
    assert "packed otherwise than torch does" in refuse(tmp_path / "checkpoint.pt")


def test_members_that_share_their_bytes_are_not_read(state: dict[str, Any], tmp_path: Path) -> None:
    """A list of members that all name the same bytes is a bomb without packing."""
    torch.save(state, tmp_path / "checkpoint.pt")
    with zipfile.ZipFile(tmp_path / "checkpoint.pt", "a") as archive:
        archive.writestr("more", bytes(1 << 12))
        for number in range(8):
            again = copy.copy(archive.getinfo("more"))
            again.filename = f"more{number}"
            archive.filelist.append(again)
    assert "packed otherwise than torch does" in refuse(tmp_path / "checkpoint.pt")


def test_a_checkpoint_larger_than_the_run_needs_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "checkpoint.pt").open("wb") as file:
        file.truncate(1 << 40)
    assert "which no checkpoint of this run has" in refuse(tmp_path / "checkpoint.pt")


def test_flipped_bytes_never_end_in_another_error(state: dict[str, Any], tmp_path: Path) -> None:
    path, generator = tmp_path / "checkpoint.pt", torch.Generator().manual_seed(0)
    torch.save(state, path)
    whole = path.read_bytes()
    places: Tensor = torch.randint(len(whole), (200,), generator=generator)
    for place in places.tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with suppress(WeightsError):
            read_checkpoint(path, parts(), EPOCHS)
