"""Eq. 2-4."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling import TwoWayTransformer
from torch import nn

from amsam_med.model.decoder import MaskDecoder
from amsam_med.model.lora import LoraLinear, adapted_projection, adapted_weight, add_lora, low_rank_update


def test_low_rank_update_equals_the_hand_computed_product() -> None:
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0], [0.0]])
    assert low_rank_update(a, b).tolist() == [[3.0, 6.0], [4.0, 8.0], [0.0, 0.0]]


def test_the_update_is_the_plain_product_at_any_rank() -> None:
    """No factor alpha / r, as other implementations have beside the product: Eq. 2 has none."""
    a, b = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[3.0, 1.0], [4.0, 2.0]])
    assert low_rank_update(a, b).tolist() == [[3.0, 7.0], [4.0, 10.0]]


def test_the_update_is_added_to_the_weight() -> None:
    weight, a, b = torch.tensor([[10.0, 20.0]]), torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])
    assert adapted_weight(weight, a, b).tolist() == [[13.0, 26.0]]


def test_low_rank_update_never_exceeds_its_rank() -> None:
    a, b = torch.randn(3, 20), torch.randn(30, 3)
    assert torch.linalg.matrix_rank(low_rank_update(a, b)) == 3


def test_projection_equals_multiplying_by_the_adapted_weight() -> None:
    tokens, weight, bias = torch.randn(2, 5, 8), torch.randn(6, 8), torch.randn(6)
    a, b = torch.randn(4, 8), torch.randn(6, 4)
    naive = tokens @ adapted_weight(weight, a, b).T + bias
    torch.testing.assert_close(adapted_projection(tokens, weight, bias, a, b), naive, rtol=1e-4, atol=1e-4)


def test_at_step_zero_lora_changes_nothing() -> None:
    layer, tokens = nn.Linear(8, 6), torch.randn(2, 5, 8)
    assert torch.equal(LoraLinear(layer, rank=4)(tokens), layer(tokens))


def test_the_frozen_parameters_are_taken_over() -> None:
    layer = nn.Linear(8, 6)
    adapted = LoraLinear(layer, rank=4)
    assert adapted.weight is layer.weight
    assert adapted.bias is layer.bias


def test_a_starts_as_uniform_as_a_linear_layer_does() -> None:
    """Within 1 / sqrt(C_in), as in LoRA's own code."""
    torch.manual_seed(0)
    largest = LoraLinear(nn.Linear(400, 4), rank=50).lora_a.abs().max().item()
    assert largest == pytest.approx(1 / 20, rel=0.01)


def test_only_b_receives_gradient_at_step_zero() -> None:
    adapted = LoraLinear(nn.Linear(8, 6), rank=4)
    adapted(torch.randn(2, 5, 8)).square().sum().backward()
    assert adapted.lora_b.grad is not None
    assert adapted.lora_b.grad.abs().sum() > 0
    assert adapted.lora_a.grad is not None
    assert adapted.lora_a.grad.abs().sum() == 0  # dA = B^T ... and B = 0


def test_sams_transformer_gets_fourteen_layers_and_23552_weights() -> None:
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    add_lora(transformer, rank=4)
    layers = [module for module in transformer.modules() if isinstance(module, LoraLinear)]
    assert len(layers) == 14
    assert sum(layer.lora_a.numel() + layer.lora_b.numel() for layer in layers) == 23_552


def test_the_decoders_lora_has_the_papers_rank_by_default() -> None:
    ranks = {module.lora_a.shape[0] for module in MaskDecoder().modules() if isinstance(module, LoraLinear)}
    assert ranks == {4}
