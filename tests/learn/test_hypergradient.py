"""Upper gradients on problems whose answer is known.

The quadratic problem: L_lower(w, a) = 1/2 (w - M a)' H (w - M a), L_upper(w, a) = 1/2 |w - t|^2 + 1/2 a' C a. One
virtual step w' = w - ξ H (w - M a) has dw'/da = ξ H M, so

    dL_upper(w'(a), a)/da = C a + ξ M' H (w' - t),    and at fixed w    ∂_a L_upper(w, a) = C a.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amsam_med.learn.hypergradient import Parameters, exact, first_order, unrolled

STEP = 0.3


class Quadratic:
    """Three weights, two prompts; all matrices fixed."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(3)
        root = torch.randn(3, 3, generator=draw, dtype=torch.float64)
        self.h = root @ root.T + torch.eye(3, dtype=torch.float64)
        self.m = torch.randn(3, 2, generator=draw, dtype=torch.float64)
        self.c = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
        self.t = torch.randn(3, generator=draw, dtype=torch.float64)
        self.lower = {"w": torch.randn(3, generator=draw, dtype=torch.float64)}
        self.upper = {"a": torch.randn(2, generator=draw, dtype=torch.float64)}

    def lower_loss(self, lower: Parameters, upper: Parameters) -> Tensor:
        error = lower["w"] - self.m @ upper["a"]
        return error @ self.h @ error / 2

    def upper_loss(self, lower: Parameters, upper: Parameters) -> Tensor:
        return (lower["w"] - self.t).square().sum() / 2 + upper["a"] @ self.c @ upper["a"] / 2

    def answer(self) -> Tensor:
        w, a = self.lower["w"], self.upper["a"]
        stepped = w - STEP * self.h @ (w - self.m @ a)
        return self.c @ a + STEP * self.m.T @ self.h @ (stepped - self.t)


@pytest.fixture
def quadratic() -> Quadratic:
    return Quadratic()


def test_first_order_is_the_partial_gradient_at_fixed_weights(quadratic: Quadratic) -> None:
    gradient = first_order(quadratic.upper_loss, quadratic.lower, quadratic.upper)
    torch.testing.assert_close(gradient, {"a": quadratic.c @ quadratic.upper["a"]})


@pytest.mark.parametrize("look_ahead", [exact, unrolled])
def test_looking_ahead_gives_the_closed_form(look_ahead: type[exact], quadratic: Quadratic) -> None:
    gradient = look_ahead(quadratic.lower_loss, quadratic.upper_loss, quadratic.lower, quadratic.upper, STEP)
    torch.testing.assert_close(gradient, {"a": quadratic.answer()}, rtol=1e-7, atol=1e-9)


def test_a_scalar_example_by_hand() -> None:
    # L_lower = (w - a)^2 / 2, L_upper = w^2 / 2, w = 3, a = 1, ξ = 1/2: w' = 2 and dL_upper/da = ξ w' = 1.
    def lower_loss(lower: Parameters, upper: Parameters) -> Tensor:
        return (lower["w"] - upper["a"]) ** 2 / 2

    def upper_loss(lower: Parameters, _upper: Parameters) -> Tensor:
        return lower["w"] ** 2 / 2

    lower, upper = {"w": torch.tensor(3.0)}, {"a": torch.tensor(1.0)}
    assert float(exact(lower_loss, upper_loss, lower, upper, 0.5)["a"]) == pytest.approx(1.0)
    assert float(unrolled(lower_loss, upper_loss, lower, upper, 0.5)["a"]) == pytest.approx(1.0, abs=1e-3)
    assert float(first_order(upper_loss, lower, upper)["a"]) == 0.0


@pytest.mark.parametrize("look_ahead", [exact, unrolled])
def test_with_a_step_of_zero_looking_ahead_is_first_order(look_ahead: type[exact], quadratic: Quadratic) -> None:
    gradient = look_ahead(quadratic.lower_loss, quadratic.upper_loss, quadratic.lower, quadratic.upper, 0.0)
    torch.testing.assert_close(gradient, first_order(quadratic.upper_loss, quadratic.lower, quadratic.upper))


def test_unrolled_agrees_with_exact_where_the_loss_is_not_quadratic() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(16, 2, generator=draw).double(), torch.randn(16, generator=draw).double()
    lower = {"v": torch.randn(4, generator=draw).double(), "m": torch.randn(2, 4, generator=draw).double()}
    upper = {"a": torch.randn(4, generator=draw).double()}

    def loss(lower: Parameters, upper: Parameters) -> Tensor:
        return (torch.tanh(x @ lower["m"] + upper["a"]) @ lower["v"] - y).square().mean()

    by_difference, by_calculus = (look(loss, loss, lower, upper, 0.2)["a"] for look in (unrolled, exact))
    torch.testing.assert_close(by_difference, by_calculus, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(first_order(loss, lower, upper)["a"], by_calculus, rtol=1e-2)


def test_the_finite_difference_is_over_a_hundredth_in_the_space_of_all_weights() -> None:
    """For a (u^3 + w^3) / 6 it differs from the derivative by R^2 (v_u^3 + v_w^3) / 6, with R = 0.01 / |v|."""

    def lower_loss(lower: Parameters, upper: Parameters) -> Tensor:
        return upper["a"] * (lower["u"] ** 3 + lower["w"] ** 3) / 6

    def upper_loss(lower: Parameters, _upper: Parameters) -> Tensor:
        return 3 * lower["u"] + 4 * lower["w"]  # v = (3, 4)

    lower = {"u": torch.tensor(1.0, dtype=torch.float64), "w": torch.tensor(2.0, dtype=torch.float64)}
    upper = {"a": torch.tensor(1.0, dtype=torch.float64)}
    by_difference, by_calculus = (look(lower_loss, upper_loss, lower, upper, STEP)["a"] for look in (unrolled, exact))
    radius = 0.01 / 5
    assert float(by_calculus - by_difference) == pytest.approx(STEP * radius**2 * (3**3 + 4**3) / 6, rel=1e-4)


def test_weights_and_prompts_are_left_as_they_were(quadratic: Quadratic) -> None:
    w, a = quadratic.lower["w"].clone(), quadratic.upper["a"].clone()
    leaves = ({"w": quadratic.lower["w"].requires_grad_()}, {"a": quadratic.upper["a"].requires_grad_()})
    for look_ahead in (exact, unrolled):
        look_ahead(quadratic.lower_loss, quadratic.upper_loss, *leaves, STEP)
    first_order(quadratic.upper_loss, *leaves)
    assert torch.equal(leaves[0]["w"], w)
    assert torch.equal(leaves[1]["a"], a)
    assert leaves[0]["w"].grad is None
    assert leaves[1]["a"].grad is None


@pytest.mark.parametrize("look_ahead", [exact, unrolled])
def test_a_weight_that_no_loss_uses_changes_nothing(look_ahead: type[exact], quadratic: Quadratic) -> None:
    lower = {**quadratic.lower, "iou_head": torch.ones(5, dtype=torch.float64)}
    gradient = look_ahead(quadratic.lower_loss, quadratic.upper_loss, lower, quadratic.upper, STEP)
    torch.testing.assert_close(gradient, {"a": quadratic.answer()}, rtol=1e-7, atol=1e-9)


def test_a_prompt_that_the_loss_does_not_use_has_gradient_zero(quadratic: Quadratic) -> None:
    upper = {**quadratic.upper, "unused": torch.ones(2, dtype=torch.float64)}
    assert first_order(quadratic.upper_loss, quadratic.lower, upper)["unused"].tolist() == [0.0, 0.0]


def test_unrolled_is_finite_where_the_upper_loss_is_flat_in_the_weights(quadratic: Quadratic) -> None:
    def flat(_lower: Parameters, upper: Parameters) -> Tensor:
        return upper["a"].sum()

    gradient = unrolled(quadratic.lower_loss, flat, quadratic.lower, quadratic.upper, STEP)
    assert gradient["a"].tolist() == [1.0, 1.0]
