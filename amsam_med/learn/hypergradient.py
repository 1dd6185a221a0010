"""Gradients of the upper level (Eq. 7-8): how the loss on D2 depends on A, directly and through W*(A).

W*(A) is approximated by one virtual SGD step from the current weights,

    W'(A) = W - ξ ∇_W L_lower(W, A),

so that, with ∂_A the partial gradient at fixed weights,

    dL_upper(W'(A), A)/dA = ∂_A L_upper(W', A) - ξ ∇²_{A,W} L_lower(W, A) ∇_{W'} L_upper(W', A).

:func:`exact` differentiates through the step, :func:`unrolled` takes the second term by finite differences, and
:func:`first_order` drops it (ξ = 0). The functions know nothing of networks or data: a loss is a callable of the two
parameter dicts, whose names are disjoint. The virtual step and the finite difference are those of DARTS (Liu et al.,
ICLR 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from amsam_med.choices import Hypergradient as Hypergradient

Parameters = Mapping[str, Tensor]
LevelLoss = Callable[[Parameters, Parameters], Tensor]
"""Loss of W and A (in this order) on one batch: a scalar with a gradient."""

FINITE_DIFFERENCE = 0.01
"""Length of the step in weight space over which the finite difference is taken (DARTS)."""


def first_order(upper_loss: LevelLoss, lower: Parameters, upper: Parameters) -> dict[str, Tensor]:
    """Eq. (8) with W*(A) taken as constant: ∂_A L_upper(W, A).

    Args:
        upper_loss: L_upper on a batch of D2.
        lower: W; not changed.
        upper: A; not changed.

    Returns:
        The gradient for each tensor of ``upper``; zero if the loss does not use it.
    """
    upper_leaves = _leaves(upper)  # copies, so that gradients on the parameters themselves are left alone
    return _gradients(upper_loss(_constants(lower), upper_leaves), upper_leaves)


def unrolled(
    lower_loss: LevelLoss, upper_loss: LevelLoss, lower: Parameters, upper: Parameters, step_size: float
) -> dict[str, Tensor]:
    """Eq. (8) through one virtual step, the mixed second derivative by a central finite difference.

    With v = ∇_{W'} L_upper and R = 0.01 / |v|,
    ∇²_{A,W} L_lower v ≈ (∂_A L_lower(W + R v, A) - ∂_A L_lower(W - R v, A)) / (2 R).

    Args:
        lower_loss: L_lower on a batch of D1.
        upper_loss: L_upper on a batch of D2.
        lower: W; left as it is.
        upper: A; left as it is.
        step_size: ξ, the learning rate of the virtual step.

    Returns:
        The gradient for each tensor of ``upper``.
    """
    lower_leaves, upper_leaves = _leaves(lower), _leaves(upper)
    slope = _gradients(lower_loss(lower_leaves, _constants(upper)), lower_leaves)
    stepped = _leaves(_moved(lower, slope, -step_size))  # W'
    # One backward pass gives both the partial gradient in A and the direction v in W'.
    gradients = _gradients(upper_loss(stepped, upper_leaves), {**stepped, **upper_leaves})
    partial, direction = {name: gradients[name] for name in upper}, {name: gradients[name] for name in lower}
    length = float(torch.stack([tensor.norm() for tensor in direction.values()]).norm())
    if length == 0.0:  # W' is at an optimum of L_upper: the second term is zero, and R would be infinite
        return partial
    radius = FINITE_DIFFERENCE / length  # so that the step in weight space has the same length for any size of v
    # Two more first-order gradients instead of a second derivative; the central difference's error is of order R².
    ahead = first_order(lower_loss, _moved(lower, direction, radius), upper)
    behind = first_order(lower_loss, _moved(lower, direction, -radius), upper)
    return {name: partial[name] - step_size * (ahead[name] - behind[name]) / (2 * radius) for name in upper}


def exact(
    lower_loss: LevelLoss, upper_loss: LevelLoss, lower: Parameters, upper: Parameters, step_size: float
) -> dict[str, Tensor]:
    """Eq. (8) through one virtual step, differentiated exactly; needs losses that can be differentiated twice.

    Args:
        lower_loss: L_lower on a batch of D1.
        upper_loss: L_upper on a batch of D2.
        lower: W; left as it is.
        upper: A; left as it is.
        step_size: ξ, the learning rate of the virtual step.

    Returns:
        The gradient for each tensor of ``upper``.
    """
    lower_leaves, upper_leaves = _leaves(lower), _leaves(upper)
    slope = _gradients(lower_loss(lower_leaves, upper_leaves), lower_leaves, is_differentiable=True)
    stepped = {name: tensor - step_size * slope[name] for name, tensor in lower_leaves.items()}
    return _gradients(upper_loss(stepped, upper_leaves), upper_leaves)


def _leaves(parameters: Parameters) -> dict[str, Tensor]:
    """The same values as new leaf tensors that require gradients."""
    return {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}


def _constants(parameters: Parameters) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in parameters.items()}


def _moved(parameters: Parameters, direction: Parameters, distance: float) -> dict[str, Tensor]:
    return {name: tensor.detach() + distance * direction[name] for name, tensor in parameters.items()}


def _gradients(loss: Tensor, parameters: Parameters, is_differentiable: bool = False) -> dict[str, Tensor]:
    """∂ loss / ∂ each parameter; zero for one that the loss does not use, such as SAM's IoU head."""
    if not loss.requires_grad:  # autograd raises if the loss uses none of the parameters
        return {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
    gradients = torch.autograd.grad(
        loss, list(parameters.values()), create_graph=is_differentiable, materialize_grads=True
    )
    return dict(zip(parameters, gradients, strict=True))
