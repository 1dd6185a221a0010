"""Files of tensors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from amsam_med.errors import ConfigError, WeightsError
from amsam_med.tensors import HEADER_LIMIT, read_tensors, refuse_non_finite, refuse_other_shapes


def test_tensors_and_header_come_back(tmp_path: Path):
    save_file({"a": torch.arange(3.0)}, tmp_path / "a.safetensors", {"format": "x"})
    state, header = read_tensors(tmp_path / "a.safetensors", "copy it")
    assert torch.equal(state["a"], torch.arange(3.0))
    assert header == {"format": "x"}
    assert read_tensors(tmp_path / "a.safetensors", "copy it", header_only=True) == ({}, {"format": "x"})


@pytest.mark.parametrize("length", [0, HEADER_LIMIT + 1, 2**63 - 1, 2**64 - 1])
def test_a_header_that_is_absurdly_long_is_not_read(length: int, tmp_path: Path):
    (tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + b" " * (HEADER_LIMIT + 100))
    with pytest.raises(WeightsError, match=r"a\.safetensors cannot be read as safetensors \(a header of"):
        read_tensors(tmp_path / "a.safetensors", "copy it")


def test_a_pipe_does_not_hang_the_reader(tmp_path: Path):
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="not a regular file; copy it"):
        read_tensors(tmp_path / "a.safetensors", "copy it")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_no_numbers_are_refused(value: float, kind: torch.dtype, tmp_path: Path):
    save_file({"fine": torch.ones(2), "odd": torch.tensor([1.0, value], dtype=kind)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"a\.safetensors holds NaN or infinity \(first: 'odd'\)"):
        read_tensors(tmp_path / "a.safetensors", "copy it")


def test_an_entry_that_is_no_tensor_is_refused():
    with pytest.raises(WeightsError, match="'a', which is no tensor of plain numbers"):
        refuse_non_finite({"a": "text"}, "x.pt")


@pytest.mark.parametrize(
    "state",
    [{}, {"a": torch.ones(3)}, {"a": torch.ones(2), "b": torch.ones(1)}, {"a": torch.ones(2, dtype=torch.int64)}],
)
def test_weights_of_another_network_are_refused(state: dict[str, torch.Tensor]):
    with pytest.raises(WeightsError, match=r"x\.pt .*train it again"):
        refuse_other_shapes(state, {"a": torch.zeros(2)}, "x.pt", "train it again")


OWN = {"weight": torch.ones(2, 3), "steps": torch.tensor(4)}


def test_a_value_that_becomes_infinite_in_the_networks_precision_is_refused() -> None:
    with pytest.raises(WeightsError, match="NaN or infinity"):
        refuse_non_finite({"weight": torch.tensor([1e300], dtype=torch.float64)}, "bad")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, 3, dtype=torch.complex64),
        torch.ones(2, 3).to(torch.float8_e4m3fn),
        torch.ones(2, 3).to_sparse(),
        torch.ones(2, 3, device="meta"),
        torch.ones(1).expand(2**50),
        [1.0],
        None,
    ],
    ids=["complex", "8 bits", "sparse", "without values", "repeated", "list", "nothing"],
)
def test_what_is_no_plain_tensor_of_floats_is_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(WeightsError, match=r"bad holds 'weight'(, which is no tensor| of type torch\.)"):
        refuse_non_finite({"weight": tensor}, "bad")
    with pytest.raises(WeightsError, match=r"bad holds 'weight'(, which is no tensor| of type torch\.)"):
        refuse_other_shapes({"weight": tensor}, {"weight": torch.ones(2, 3)}, "bad", "copy it")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_the_networks_own_tensors_pass_in_any_width(kind: torch.dtype) -> None:
    refuse_other_shapes({**OWN, "weight": OWN["weight"].to(kind)}, OWN, "own.pt", "copy it")


@pytest.mark.parametrize("steps", [torch.tensor(4.0), torch.tensor(4, dtype=torch.int32), torch.tensor(True)])
def test_integers_are_of_the_networks_own_kind(steps: torch.Tensor) -> None:
    with pytest.raises(WeightsError, match="other holds steps of shape"):
        refuse_other_shapes({**OWN, "steps": steps}, OWN, "other", "copy it")


def test_a_caller_chooses_error_and_remedy() -> None:
    with pytest.raises(ConfigError, match=r"; use smaller rates$"):
        refuse_non_finite({"a": torch.tensor([torch.nan])}, "the network", "use smaller rates", ConfigError)
