from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from amsam_med.errors import ConfigError, DataError
from amsam_med.learn.levels import (
    lower_groups,
    lower_parameters,
    pulled_to_start,
    set_trainable,
    split_levels,
    trainable_state,
    upper_parameters,
)
from amsam_med.model import build_amsam

Build = Callable[[], nn.Module]
SPLIT_OF_EIGHT = ([4, 1, 5, 2], [0, 3, 7, 6])


def test_what_is_adapted_of_the_encoder_has_a_rate_of_its_own() -> None:
    network = build_amsam("tiny", input_size=64, adapts="stage")
    decoder, encoder = lower_groups(network, 1e-3, 2e-4)
    assert (decoder["lr"], encoder["lr"]) == (1e-3, 2e-4)
    in_encoder = {id(one) for one in network.image_encoder.parameters()}
    assert {id(one) for one in encoder["params"]} < in_encoder
    assert not {id(one) for one in decoder["params"]} & in_encoder
    assert len(decoder["params"]) + len(encoder["params"]) == len(lower_parameters(network))
    assert len(lower_groups(build_amsam("tiny", input_size=64), 1e-3, 2e-4)) == 1


def test_the_lower_level_owns_lora_the_five_decoder_parts_and_the_calibration(toy_network: Build) -> None:
    names = set(lower_parameters(toy_network()))
    roots = {".".join(name.split(".")[:2]) for name in names}
    assert roots == {
        "mask_decoder.transformer",
        "mask_decoder.iou_token",
        "mask_decoder.mask_tokens",
        "mask_decoder.output_upscaling",
        "mask_decoder.output_hypernetworks_mlps",
        "mask_decoder.iou_prediction_head",
        "calibration.fusion",
    }
    in_transformer = {name.split(".")[-1] for name in names if "transformer" in name}
    assert in_transformer == {"lora_a", "lora_b"}


def test_a_pull_is_the_gradient_of_the_squared_distance_to_the_start() -> None:
    draw = torch.Generator().manual_seed(0)
    target = torch.randn(6, generator=draw)
    start = torch.randn(6, generator=draw)
    pulled, written_out = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    by_hook = pulled_to_start(torch.optim.AdamW([pulled], lr=0.1, weight_decay=0.0), 0.3)
    by_loss = torch.optim.AdamW([written_out], lr=0.1, weight_decay=0.0)
    for _ in range(5):
        for optimizer, parameter, pull in ((by_hook, pulled, 0.0), (by_loss, written_out, 0.3)):
            optimizer.zero_grad()
            loss = ((parameter - target) ** 2).sum() + pull * ((parameter - start) ** 2).sum()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(pulled, written_out)
    assert not torch.allclose(pulled, start)


def test_what_no_loss_reaches_is_not_pulled_either() -> None:
    """As SAM's IoU head, of which Eq. 5 says nothing."""
    reached, unreached = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = pulled_to_start(torch.optim.AdamW([reached, unreached], lr=0.1, weight_decay=0.0), 0.3)
    reached.square().sum().backward()
    optimizer.step()
    assert unreached.grad is None
    assert unreached.tolist() == [1.0, 1.0]
    assert not reached.equal(unreached)


def test_no_pull_leaves_the_optimizer_as_it_is_and_a_negative_one_is_refused() -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    assert pulled_to_start(optimizer, 0.0) is optimizer
    assert not optimizer._optimizer_step_pre_hooks
    with pytest.raises(ConfigError, match="pull is -1"):
        pulled_to_start(optimizer, -1)


def test_the_upper_level_owns_the_prompt_embedding_alone(toy_network: Build) -> None:
    network = toy_network()
    upper = upper_parameters(network)
    assert list(upper) == ["prompt_encoder.no_mask_embed.weight"]
    assert upper["prompt_encoder.no_mask_embed.weight"] is network.prompt_encoder["no_mask_embed"].weight


def test_set_trainable_lets_exactly_both_levels_require_gradients(toy_network: Build) -> None:
    network = toy_network()
    network.image_encoder.requires_grad_(False)
    network.calibration.requires_grad_(False)  # must come back
    set_trainable(network)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == lower_parameters(network).keys() | upper_parameters(network).keys()
    assert "prompt_encoder.corner_embed.weight" not in trained


def test_a_frozen_encoder_keeps_its_statistics_when_the_trainer_asks_for_training_mode(toy_network: Build) -> None:
    network = toy_network()
    set_trainable(network)
    assert not network.image_encoder.training
    before = network.image_encoder[1].running_mean.clone()
    network.train()
    network(torch.rand(2, 3, 64, 64))
    assert torch.equal(network.image_encoder[1].running_mean, before)
    assert network.mask_decoder.training


def test_set_trainable_twice_is_set_trainable_once(toy_network: Build) -> None:
    network = toy_network()
    set_trainable(network)
    set_trainable(network)
    assert len(network.image_encoder._forward_pre_hooks) == 1


def test_a_part_without_parameters_follows_the_training_mode(toy_network: Build) -> None:
    network = toy_network()
    network.calibration = nn.ModuleDict({"fusion": nn.Dropout(1.0)})
    set_trainable(network)
    network.train()
    assert network(torch.rand(1, 4, 4, 4)).abs().max() == 0  # everything dropped: in training mode


def test_an_adapter_stores_a_copy_of_both_levels(toy_network: Build) -> None:
    network = toy_network()
    state = trainable_state(network)
    assert state.keys() == lower_parameters(network).keys() | upper_parameters(network).keys()
    kept = state["prompt_encoder.no_mask_embed.weight"].clone()
    with torch.no_grad():
        network.prompt_encoder["no_mask_embed"].weight.add_(1)
    assert torch.equal(state["prompt_encoder.no_mask_embed.weight"], kept)
    assert not any(tensor.requires_grad for tensor in state.values())


@pytest.mark.parametrize("use", [lower_parameters, upper_parameters, set_trainable, trainable_state])
def test_a_network_without_levels_is_refused(use: Callable[[nn.Module], object]) -> None:
    with pytest.raises(ConfigError, match="build it with build_amsam"):
        use(nn.Linear(2, 2))


def test_unfrozen_decoder_parts_without_lora_are_refused(toy_network: Build) -> None:
    network = toy_network()
    del network.mask_decoder["transformer"]
    with pytest.raises(ConfigError, match="no LoRA weights"):
        lower_parameters(network)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_halves_share_no_item_and_miss_none(count: int) -> None:
    first, second = split_levels(range(count), seed=7)
    assert sorted(first + second) == list(range(count))
    assert len(first) == (count + 1) // 2


def test_both_levels_may_have_all_examples() -> None:
    first, second = split_levels(range(5), 7, halves=False)
    assert first == second
    assert first is not second
    assert sorted(first) == list(range(5))
    assert split_levels(["only"], 0, halves=False) == (["only"], ["only"])
    with pytest.raises(DataError, match="label at least one image"):
        split_levels([], 0, halves=False)


def test_the_seed_alone_decides_the_halves() -> None:
    draws = {tuple(split_levels(range(8), seed)[0]) for seed in range(20)}
    assert len(draws) > 10
    assert split_levels(range(8), 3) == split_levels(list(range(8)), 3)
    assert split_levels(range(8), 0) == SPLIT_OF_EIGHT  # a later version repeats a run of this one


def test_one_example_cannot_be_split() -> None:
    with pytest.raises(DataError, match="at least 2"):
        split_levels(["only"], seed=0)
