"""Ways to adapt: what each trains and leaves, what halves choose, and how its cells are scored."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from amsam_med import weights
from amsam_med.data.datalists import folder_datalist
from amsam_med.model import AmSam, build_amsam
from amsam_med.synthetic import write_dermoscopy
from pipelines.paper import adaptation
from pipelines.paper.adaptation import (
    Examples,
    Way,
    adapt,
    adapt_by_cross_halves,
    draw_masks,
    encode,
    gentlest,
    interpolate_weights,
    prototype_prior,
)
from pipelines.paper.cells import Bench, Job, Workspace
from pipelines.paper.store import ADAPT


@pytest.fixture(scope="module")
def base() -> AmSam:
    return build_amsam("tiny", calibration="none", adapts="stage", base_weights=weights.find("tiny")).eval()


@pytest.fixture(scope="module")
def examples(base: AmSam, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    folder = tmp_path_factory.mktemp("examples")
    write_dermoscopy(folder, 4, seed=3, size=(72, 96))
    return encode(folder_datalist(folder), base, "mirror")


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
    assert len(states) == way.steps
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in states[1].state_dict().items())


def test_a_training_stops_where_it_is_told_and_is_the_whole_one_until_then(base: AmSam, examples: Examples) -> None:
    steps: list[dict[str, torch.Tensor]] = []

    def keep(_step: int, network: AmSam) -> None:
        steps.append({name: value.clone() for name, value in network.state_dict().items()})

    adapt(base, examples, Way(steps=3), 0, keep)
    stopped = adapt(base, examples, Way(steps=3), 0, keep, stop=2)
    assert len(steps) == 3 + 2
    assert all(torch.equal(value, steps[1][name]) for name, value in stopped.state_dict().items())


def test_cross_halves_train_no_further_than_they_choose(
    base: AmSam, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops: list[int | None] = []

    def note(base: AmSam, *_: object, stop: int | None = None) -> AmSam:
        stops.append(stop)
        return base

    monkeypatch.setattr(adaptation, "adapt", note)
    monkeypatch.setattr(adaptation, "gentlest", lambda scores: (0.5, 1.0))
    adapt_by_cross_halves(base, examples, Way(steps=8, cross_halves=True), seed=0)
    assert stops == [None, None, 4]


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


@pytest.mark.parametrize("way", [Way(steps=0), Way("decoder", steps=1), Way(steps=1, second_prompt="prototypes")])
def test_a_way_is_a_cell_like_any_other(way: Way, tmp_path: Path) -> None:
    for seed, part in enumerate(("train", "val")):
        write_dermoscopy(tmp_path / "isic2018" / part, 4, seed=seed, size=(72, 96))
    bench = Bench("isic2018", Workspace(tmp_path, tmp_path / "run", "tiny", weights.find("tiny")), "val")
    job = Job(ADAPT, asdict(way))
    made = bench.run(job, 2, 1)
    assert made.identity.data_set == "isic2018/val"
    assert made.identity.settings == asdict(way)
    assert (made.identity.shots, made.identity.seed) == ((2, 1) if way.steps else (0, 0))
    assert (made.measured.trained_parameters > 0) == bool(way.steps)
    assert len(made.scores) == 4
    assert 0 < made.measured.dice < 1
