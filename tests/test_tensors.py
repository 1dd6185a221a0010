"""What a state dict from a file may hold."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from amsam_med.errors import ConfigError, WeightsError
from amsam_med.tensors import refuse_non_finite, refuse_unlike

OWN = {"weight": torch.ones(2, 3), "steps": torch.tensor(4)}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_value_that_is_no_number_is_named_with_its_file(value: float, dtype: torch.dtype) -> None:
    tensor = torch.ones(2, 3, dtype=dtype)
    tensor[1, 2] = value
    with pytest.raises(WeightsError, match=r"bad\.safetensors: 1 of 6 values of 'weight' are NaN or infinite"):
        refuse_non_finite({"weight": tensor}, "bad.safetensors")


def test_a_value_that_becomes_infinite_in_the_networks_precision_is_refused() -> None:
    with pytest.raises(WeightsError, match="1 of 1 values"):
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
def test_what_is_no_plain_tensor_of_floats_is_refused(tensor: Tensor) -> None:
    with pytest.raises(WeightsError, match=r"bad: 'weight' (is not a plain tensor|holds torch\.)"):
        refuse_non_finite({"weight": tensor}, "bad")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": OWN["steps"]}, "1 tensors are missing and 0 are unknown (first: 'weight')"),
        ({**OWN, "more": OWN["weight"]}, "0 tensors are missing and 1 are unknown (first: 'more')"),
        ({**OWN, "weight": torch.ones(3, 2)}, "'weight' has the shape (3, 2); expected (2, 3)"),
        ({**OWN, "weight": torch.ones(2, 3, dtype=torch.int64)}, "'weight' holds torch.int64"),
        ({**OWN, "steps": torch.tensor(4.0)}, "'steps' holds torch.float32"),
        ({**OWN, "weight": torch.full((2, 3), torch.nan)}, "6 of 6 values"),
    ],
)
def test_another_networks_tensors_are_refused(given: dict[str, Tensor], said: str) -> None:
    with pytest.raises(WeightsError, match=re.escape(f"other.pt: {said}")):
        refuse_unlike(given, OWN, "other.pt")


def test_the_networks_own_tensors_pass_in_any_width() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        refuse_unlike({**OWN, "weight": OWN["weight"].to(dtype)}, OWN, "own.pt")


def test_a_caller_chooses_error_and_remedy() -> None:
    with pytest.raises(ConfigError, match=r"; use smaller rates$"):
        refuse_non_finite({"a": torch.tensor([torch.nan])}, "the network", "use smaller rates", ConfigError)
