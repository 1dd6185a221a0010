"""Ways to adapt: what each trains and leaves, what halves choose, and what is printed."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from amsam_med import weights
from amsam_med.data.datalists import folder_datalist
from amsam_med.model import AmSam, build_amsam
from amsam_med.synthetic import write_dermoscopy
from pipelines.paper import adaptation
from pipelines.paper.adaptation import (
    WAYS,
    Examples,
    Study,
    Way,
    adapt,
    adapt_by_cross_halves,
    draw_masks,
    encode,
    gentlest,
    interpolate_weights,
    prototype_prior,
    read_records,
    render,
)


@pytest.fixture(scope="module")
def base() -> AmSam:
    return build_amsam("tiny", calibration="none", adapts="stage", base_weights=weights.find("tiny")).eval()


@pytest.fixture(scope="module")
def examples(base: AmSam, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    folder = tmp_path_factory.mktemp("examples")
    write_dermoscopy(folder, 4, seed=3, size=(72, 96))
    return encode(folder_datalist(folder), base, "mirror", folder / "embeddings")


def changed(before: AmSam, after: AmSam) -> set[str]:
    """The parts whose weights a training has changed; what it has added is not among them."""
    old = before.state_dict()
    new = {name.replace(".parametrizations.weight.original", ".weight"): v for name, v in after.state_dict().items()}
    names = {name for name, value in old.items() if not torch.equal(value, new[name])}
    parts = ("image_encoder.backbone.blocks.5", "image_encoder.backbone.blocks.6", "image_encoder.neck")
    found = {part for part in parts if any(name.startswith(part) for name in names)}
    others = {name.split(".")[0] for name in names if not name.startswith(parts)}
    return found | others


@pytest.mark.parametrize(
    ("way", "encoder_parts"),
    [
        (Way("decoder", steps=1), set()),
        (Way("neck", steps=1), {"image_encoder.neck"}),
        (Way("neck", steps=1, lora_rank=2), {"image_encoder.neck"}),
        (
            Way("stage", steps=1),
            {"image_encoder.neck", "image_encoder.backbone.blocks.5", "image_encoder.backbone.blocks.6"},
        ),
    ],
)
def test_a_way_trains_what_it_says(base: AmSam, examples: Examples, way: Way, encoder_parts: set[str]) -> None:
    before = {name: value.clone() for name, value in base.state_dict().items()}
    trained = adapt(base, examples, way, seed=0)
    assert changed(base, trained) == {"mask_decoder", "prompt_encoder", *encoder_parts}
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    updates = [value for name, value in trained.state_dict().items() if "image_encoder" in name and "lora_b" in name]
    assert bool(updates) == bool(way.lora_rank)
    assert all(bool(update.any()) for update in updates)


def test_a_pull_keeps_weights_nearer_to_the_base(base: AmSam, examples: Examples) -> None:
    def distance(way: Way) -> float:
        trained = adapt(base, examples, way, seed=0).state_dict()
        return sum(float((trained[name].float() - value.float()).norm()) for name, value in base.state_dict().items())

    assert distance(Way(steps=3, pull=1000.0)) < distance(Way(steps=3))


def test_of_what_the_halves_cannot_tell_apart_the_gentlest_is_taken() -> None:
    base, middle, end = (0.0, 0.0), (0.5, 1.0), (1.0, 1.0)
    assert gentlest({base: [0.5, 0.6, 0.7, 0.8], middle: [0.6, 0.7, 0.8, 0.9], end: [0.6, 0.7, 0.8, 0.9]}) == middle
    assert gentlest({base: [0.5, 0.9, 0.7, 0.8], middle: [0.6, 0.8, 0.8, 0.8], end: [0.1, 0.1, 0.1, 0.1]}) == base
    assert gentlest({base: [0.5], end: [0.6]}) == end


def test_cross_halves_judge_each_half_by_the_training_on_the_other(
    base: AmSam, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(adaptation, "adapt", lambda base, few, way, seed, at_step=None: seen.append(few.features))
    monkeypatch.setattr(
        adaptation, "_dice", lambda network, few: seen.append(few.features) or [0.5] * len(few.features)
    )
    network, chosen = adapt_by_cross_halves(base, examples, Way(steps=4, cross_halves=True), seed=0)
    assert chosen == "the base"
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in base.state_dict().items())
    judged, trained, judged_then, trained_then = seen
    assert torch.equal(judged, trained_then)
    assert torch.equal(trained, judged_then)
    assert len(judged) + len(trained) == len(examples.features)
    assert not any(torch.equal(one, other) for one, other in itertools.product(judged, trained))


def test_cross_halves_go_as_far_as_they_choose(
    base: AmSam, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = Way(steps=4, cross_halves=True)
    monkeypatch.setattr(adaptation, "gentlest", lambda scores: (0.5, 0.25))
    network, chosen = adapt_by_cross_halves(base, examples, way, seed=0)
    states: list[AmSam] = []
    adapt(base, examples, way, 0, lambda step, now: states.append(interpolate_weights(base, now, 0.25)))
    assert chosen == "0.5 of the steps, 0.25 of the way"
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in states[1].state_dict().items())


def test_a_share_of_the_way(base: AmSam, examples: Examples) -> None:
    trained = adapt(base, examples, Way(steps=1), seed=0)
    name = "mask_decoder.output_upscaling.0.weight"
    start, half, end = (interpolate_weights(base, trained, share).state_dict()[name] for share in (0.0, 0.5, 1.0))
    assert torch.equal(start, base.state_dict()[name])
    assert torch.equal(end, trained.state_dict()[name])
    assert torch.allclose(half, (start + end) / 2)


def test_prototypes_tell_object_from_ground(base: AmSam, examples: Examples) -> None:
    prior = prototype_prior(base, examples)(examples.features[:, 0])
    truth = torch.nn.functional.adaptive_avg_pool2d((examples.labels[:, 0] > 0).float(), prior.shape[-1])
    assert prior.shape == (4, 1, 64, 64)
    assert prior[truth > 0.9].mean() > 0 > prior[truth < 0.1].mean()


def test_second_prompts_change_the_mask(base: AmSam, examples: Examples) -> None:
    features = examples.features[:, 0]
    plain, mask, box = (draw_masks(base, features, prompt) for prompt in ("none", "mask", "box"))
    assert plain.shape == mask.shape == box.shape == (4, 2, 64, 64)
    assert not torch.equal(plain, mask)
    assert not torch.equal(plain, box)


def test_what_is_on_record_is_not_run_again(tmp_path: Path) -> None:
    for seed, part in enumerate(("train", "val")):
        write_dermoscopy(tmp_path / "isic2018" / part, 4, seed=seed, size=(72, 96))
    ways = {"W": Way("decoder", steps=1), "none: the base as it is": WAYS["none: the base as it is"]}
    study = Study("isic2018", tmp_path, tmp_path / "run", "tiny", weights.find("tiny"))
    study.folder.mkdir(exist_ok=True)
    first = [*study.run(ways, [2], [0])]
    again = [*study.run(ways, [2], [0, 1])]
    assert [(made["way"], made["seed"]) for made in first + again] == [(way, seed) for seed in (0, 1) for way in ways]
    assert read_records(study.folder) == first + again
    assert first[1]["dice"] == again[1]["dice"] > 0  # the base needs no draw
    assert first[0]["images"] == 4


def record(**changes: Any) -> dict[str, Any]:
    plain = {"set": "isic2018", "way": "W", "settings": asdict(WAYS["W"]), "shots": 4, "seed": 0}
    return {**plain, "base": "tiny", "base_sha256": "0123456789abcdef", "images": 150, "dice": 0.5, **changes}


def test_the_best_of_a_column_is_bold() -> None:
    neck = {"way": "W and neck", "settings": asdict(WAYS["W and neck"])}
    draws = [record(), record(seed=1, dice=0.6), record(seed=2, dice=0.55)]
    text = render([*draws, record(**neck, dice=0.7)])
    assert "| W | **55.0 ± 5.0** |" in text
    assert "| W and neck | 70.0 (1) |" in text
    assert "| **65.0 ± 5.0** |" in render([*draws, *({**one, **neck, "dice": one["dice"] + 0.1} for one in draws)])
    assert "0123456789ab" in text
    assert "150 images, k = 4" in text


@pytest.mark.parametrize("changes", [{"base_sha256": "another"}, {"settings": {**asdict(WAYS["W"]), "steps": 1}}])
def test_records_that_do_not_belong_together_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"bases|settings"):
        render([record(), record(seed=1, **changes)])
