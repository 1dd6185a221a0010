"""What the paper prints: its hyper-parameters and its figure, read off the parts that the bundles build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.losses.dice import DiceCELoss
from segment_anything.modeling import PromptEncoder as SamPromptEncoder
from segment_anything.modeling.transformer import Attention
from torch import nn

from amsam_med.boxes import box_from_mask
from amsam_med.bundle import BundleParser, open_bundle
from amsam_med.cli.options import as_configured
from amsam_med.cli.train import paper_settings
from amsam_med.domains import DOMAINS
from amsam_med.model import build_amsam
from amsam_med.model.lora import LoraLinear
from amsam_med.model.prompt import PromptEncoder

EPOCHS, EXAMPLES = 3, 4


@pytest.fixture
def training(tiny_bundle: Path, labelled_folder: Path, tmp_path: Path) -> BundleParser:
    """A training with the paper's settings, but for its length."""
    few = {"shots": EXAMPLES, "epochs": EPOCHS, "dataset_dir": str(labelled_folder), "output_dir": str(tmp_path)}
    return open_bundle(tiny_bundle, "train", {**paper_settings(), **few})


def test_the_settings_are_the_papers() -> None:
    printed = {"epochs": 100, "lower_rate": 5e-3, "upper_rate": 1e-3, "weight_decay": 0.1, "lambda_dice": 0.8}
    printed |= {"alpha": 0.7, "batch_size": 1, "box_choice": "surest", "prompt": "box", "halves": True}
    printed |= {"calibration": "paper", "hypergradient": "first-order", "adapts": "decoder"}
    printed |= {"views": "none", "box_jitter": 0.0, "pull": 0.0}
    assert paper_settings() == printed


@pytest.mark.parametrize("bundle", [domain.bundle for domain in DOMAINS])
def test_what_our_training_takes_from_the_paper_is_as_printed(bundle: str) -> None:
    printed = {"rank": 4, "alpha": 0.7, "lambda_dice": 0.8, "weight_decay": 0.1, "batch_size": 1, "halves": True}
    printed |= {"calibration": "paper", "prompt": "box", "hypergradient": "first-order", "squared_pred": False}
    assert as_configured(bundle, "train.yaml").items() >= printed.items()


@pytest.mark.parametrize(("bundle", "views"), [("amsam_isic", "all"), ("amsam_body", "mirror")])
def test_where_our_training_differs_from_the_paper_it_is_as_the_method_page_says(bundle: str, views: str) -> None:
    ours = {"epochs": 30, "lower_rate": 1e-3, "upper_rate": 2e-4, "encoder_rate": 3e-4, "shots": 8, "base": "tiny"}
    ours |= {"views": views, "box_choice": "vote", "adapts": "decoder", "pull": 0.0, "input_size": 256}
    assert as_configured(bundle, "train.yaml").items() >= ours.items()


def test_what_is_set_reaches_the_network(training: BundleParser) -> None:
    chosen = {"rank": 2, "alpha": 0.4, "calibration": "learned", "prompt": "box+point"}
    for name, value in chosen.items():
        training.set_value(name, value)
    assert training.get_parsed_content("core").settings.items() >= chosen.items()


def test_the_two_levels_are_wired_as_the_paper_has_them(training: BundleParser) -> None:
    """W on D1 and A on D2; each level has its own optimiser and its own schedule, both stepped once an iteration."""
    training.set_value("hypergradient", "exact")
    prepare = training.get_parsed_content("preprocessing")
    for level, half in zip(("lower", "upper"), training.get_parsed_content("levels"), strict=True):
        dataset = training.get_parsed_content(f"{level}::dataset")
        for i, item in enumerate(half):
            assert torch.equal(dataset[i]["label"], prepare(dict(item))["label"])
    trainer = training.get_parsed_content("train::trainer")
    _, bi_level, schedule = training.get_parsed_content("train::handlers")[:3]
    assert trainer.optimizer is training.get_parsed_content("lower::optimizer")
    assert bi_level.optimizer is training.get_parsed_content("upper::optimizer")
    assert bi_level.scheduler is training.get_parsed_content("upper::scheduler")
    assert schedule.lr_scheduler is training.get_parsed_content("lower::scheduler")
    assert not schedule.epoch_level
    assert bi_level.hypergradient == "exact"
    for level in ("lower", "upper"):
        parts = [training.get_parsed_content(f"{level}::{part}") for part in ("optimizer", "scheduler")]
        assert parts[1].optimizer is parts[0]


@pytest.mark.parametrize(("level", "rate"), [("lower", 5e-3), ("upper", 1e-3)])
def test_both_levels_have_adamw_as_printed(level: str, rate: float, training: BundleParser) -> None:
    optimizer = training.get_parsed_content(f"{level}::optimizer")
    assert type(optimizer) is torch.optim.AdamW
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["weight_decay"]) == (rate, (0.9, 0.999), 0.1)


@pytest.mark.parametrize(("pull", "decay"), [(0.0, 0.1), (0.01, 0.0)])
def test_a_pull_takes_the_place_of_the_decay_of_w_alone(pull: float, decay: float, training: BundleParser) -> None:
    training.set_value("pull", pull)
    lower, upper = (training.get_parsed_content(f"{level}::optimizer") for level in ("lower", "upper"))
    assert lower.param_groups[0]["weight_decay"] == decay
    assert len(lower._optimizer_step_pre_hooks) == (pull > 0)
    assert upper.param_groups[0]["weight_decay"] == 0.1
    assert not upper._optimizer_step_pre_hooks


def test_what_is_adapted_of_the_encoder_is_trained_at_its_own_rate_on_what_lies_below(training: BundleParser) -> None:
    training.set_value("adapts", "neck")
    training.set_value("encoder_rate", 7e-4)
    encoder = training.get_parsed_content("core").image_encoder
    assert training.get_parsed_content("lower::dataset")[0]["image"].shape[0] == encoder.feature_channels
    groups = training.get_parsed_content("lower::optimizer").param_groups
    assert [group["lr"] for group in groups] == [5e-3, 7e-4]


def test_every_draw_follows_the_seed_and_the_levels_draw_apart(training: BundleParser) -> None:
    training.set_value("seed", 5)
    seeds = [training.get_parsed_content(f"{part}::sampler").seed for part in ("train", "upper")]
    reseeding, bi_level = training.get_parsed_content("train::handlers")[:2]
    assert (*seeds, reseeding.seed, bi_level._upper_batches.seed) == (5, 6, 5, 5)


@pytest.mark.parametrize(("level", "rate"), [("lower", 5e-3), ("upper", 1e-3)])
def test_the_rates_fall_in_every_step_by_the_papers_power(level: str, rate: float, training: BundleParser) -> None:
    scheduler: Any = training.get_parsed_content(f"{level}::scheduler")
    steps = EPOCHS * EXAMPLES // 2
    for step in range(steps):
        assert scheduler.get_last_lr()[0] == pytest.approx(rate * (1 - step / steps) ** 0.9)
        scheduler.optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr()[0] == 0


def test_each_level_has_half_of_the_examples(training: BundleParser) -> None:
    lower, upper = training.get_parsed_content("levels")
    assert len(lower) == len(upper) == EXAMPLES // 2
    assert not {item["image"] for item in lower} & {item["image"] for item in upper}
    assert [len(training.get_parsed_content(f"{level}::dataset")) for level in ("lower", "upper")] == [2, 2]  # no views


@pytest.mark.parametrize("squared", [False, True])
def test_the_loss_is_monais_with_the_papers_share(squared: bool, training: BundleParser) -> None:
    training.set_value("squared_pred", squared)
    logits = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    label = (logits[:, :1] > 0.3).float()
    expected = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=squared, lambda_dice=0.8, lambda_ce=0.2)
    for of_level in ("train::trainer", "train::handlers"):
        part = training.get_parsed_content(of_level)
        loss = part.loss_function if of_level == "train::trainer" else part[1].loss_function
        torch.testing.assert_close(loss(logits, label), expected(logits, label))


def test_the_best_epoch_on_d2_is_kept(training: BundleParser) -> None:
    recorder = training.get_parsed_content("train::recorder")
    evaluator = training.get_parsed_content("validate::evaluator")
    assert recorder.evaluator is evaluator
    assert training.as_written("val_interval") == 1  # none is passed over
    scored = [evaluator.data_loader.dataset[i]["index"] for i in range(len(evaluator.data_loader.dataset))]
    assert scored == [0, 1]  # each image of D2 once, without views
    assert training.get_parsed_content("validate::key_metric")["d2_dice"].metric_fn.include_background  # all classes
    assert evaluator.data_loader.dataset.dataset is training.get_parsed_content("upper::dataset")


def test_queries_and_values_have_lora_and_keys_have_none() -> None:
    network = build_amsam("tiny", input_size=64)
    attentions = [part for part in network.mask_decoder.transformer.modules() if isinstance(part, Attention)]
    assert len(attentions) == 7
    for attention in attentions:
        kinds = {name: type(layer) for name, layer in attention.named_children()}
        assert kinds == {"q_proj": LoraLinear, "k_proj": nn.Linear, "v_proj": LoraLinear, "out_proj": nn.Linear}


def test_the_box_of_a_mask_is_the_box_that_sam_would_get() -> None:
    """SAM's box names the first and the last pixel of an object, ours where the object begins and ends."""
    ours = PromptEncoder(input_size=64)
    sam = SamPromptEncoder(256, (4, 4), (64, 64), 16)
    sam.load_state_dict(ours.state_dict())
    mask = torch.zeros(64, 64)
    mask[6:50, 4:40] = 1
    box = box_from_mask(mask)
    assert box is not None
    sparse, dense = ours(1, box[None], None, None)
    expected, default = sam(points=None, boxes=torch.tensor([[4.0, 6.0, 39.0, 49.0]]), masks=None)
    torch.testing.assert_close(sparse, expected)
    assert torch.equal(dense, default)


def test_a_point_in_the_middle_of_a_pixel_is_the_point_that_sam_would_get() -> None:
    ours = PromptEncoder(input_size=64)
    sam = SamPromptEncoder(256, (4, 4), (64, 64), 16)
    sam.load_state_dict(ours.state_dict())
    labels = torch.tensor([[1.0, 0.0]])
    sparse, _ = ours(1, None, torch.tensor([[[10.5, 20.5], [30.5, 7.5]]]), labels)
    expected, _ = sam(points=(torch.tensor([[[10.0, 20.0], [30.0, 7.0]]]), labels), boxes=None, masks=None)
    torch.testing.assert_close(sparse, expected)


def test_an_earlier_mask_takes_the_place_of_the_prompt_embedding_as_in_sam() -> None:
    ours = PromptEncoder(input_size=64)
    sam = SamPromptEncoder(256, (4, 4), (64, 64), 16)
    sam.load_state_dict(ours.state_dict())
    earlier = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    _, dense = ours(2, None, None, None, earlier)
    _, expected = sam(points=None, boxes=None, masks=earlier)
    torch.testing.assert_close(dense, expected)


def test_the_prompt_embedding_is_added_at_every_position() -> None:
    network = build_amsam("tiny", input_size=64)
    _, dense = network.prompt_encoder(2, None, None, None)
    vector = network.prompt_encoder.no_mask_embed.weight[0]
    assert torch.equal(dense, vector.view(1, 256, 1, 1).expand(2, 256, 4, 4))
