"""The whole network against a plain composition of segment_anything's parts, and its properties."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from segment_anything.modeling import MaskDecoder as SamMaskDecoder
from segment_anything.modeling import PromptEncoder as SamPromptEncoder
from segment_anything.modeling import TwoWayTransformer
from torch import Tensor

from amsam_med.errors import ConfigError, DataError
from amsam_med.learn.levels import lower_parameters, set_trainable, upper_parameters
from amsam_med.model import AmSam, build_amsam
from amsam_med.model.amsam import Prediction
from amsam_med.model.build import Adapted

BOXES = torch.tensor([[4.0, 6.0, 40.0, 50.0], [10.0, 0.0, 64.0, 30.0], [0.0, 0.0, 64.0, 64.0]])


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tiny() -> AmSam:
    torch.manual_seed(0)
    return build_amsam("tiny", input_size=64).eval()


def _compose_sam(network: AmSam, images: Tensor) -> tuple[Tensor, Tensor]:
    """Masks and predicted IoU of segment_anything's own prompt encoder and decoder, one image at a time."""
    prompt_encoder = SamPromptEncoder(256, (4, 4), (64, 64), 16)
    prompt_encoder.load_state_dict(network.prompt_encoder.state_dict())
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    decoder = SamMaskDecoder(transformer_dim=256, transformer=transformer, num_multimask_outputs=1)
    decoder.load_state_dict(network.mask_decoder.state_dict())
    masks, ious = [], []
    for image in images:
        sparse, dense = prompt_encoder(points=None, boxes=None, masks=None)
        embedding = network.image_encoder(image[None])
        mask, iou = decoder.predict_masks(embedding, prompt_encoder.get_dense_pe(), sparse, dense)
        masks.append(mask)
        ious.append(iou)
    return torch.cat(masks), torch.cat(ious)


@pytest.mark.parametrize("base", ["tiny", "vit_b"])
def test_without_box_and_calibration_the_network_is_sam(base: str, images: Tensor) -> None:
    network = build_amsam(base, input_size=64, rank=0, calibration="none").eval()
    with torch.no_grad():
        torch.testing.assert_close(tuple(network.predict(images)), _compose_sam(network, images), rtol=1e-5, atol=1e-5)


def test_a_batch_never_mixes_patients(tiny: AmSam, images: Tensor) -> None:
    with torch.no_grad():
        together = tiny(images, BOXES)
        alone = torch.cat([tiny(images[i : i + 1], BOXES[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_lora_at_step_zero_changes_nothing(images: Tensor) -> None:
    adapted, plain = build_amsam("tiny", input_size=64), build_amsam("tiny", input_size=64, rank=0)
    state = adapted.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    with torch.no_grad():
        torch.testing.assert_close(adapted.eval()(images, BOXES), plain.eval()(images, BOXES))


def test_an_embedding_stands_in_for_its_image(tiny: AmSam, images: Tensor) -> None:
    with torch.no_grad():
        assert torch.equal(tiny(tiny.image_encoder(images), BOXES), tiny(images, BOXES))


@pytest.mark.parametrize(("base", "adapts"), [("tiny", "neck"), ("tiny", "stage"), ("vit_b", "neck")])
def test_what_is_encoded_below_the_adapted_parts_stands_in_for_its_image(
    base: str, adapts: Adapted, images: Tensor
) -> None:
    network = set_trainable(build_amsam(base, input_size=64, adapts=adapts)).eval()
    with torch.no_grad():
        encoded = network.frozen_encoder(images)
        assert encoded.shape[0] == 3
        assert encoded.shape[2:] == (4, 4)
        assert torch.equal(network(encoded, BOXES), network(images, BOXES))
    network(encoded, BOXES).square().mean().backward()
    adapted = [parameter for name, parameter in lower_parameters(network).items() if name.startswith("image_encoder.")]
    assert adapted
    assert all(parameter.grad is not None for parameter in adapted)


def test_a_network_trains_of_its_encoder_what_it_is_asked_to() -> None:
    networks = {adapts: build_amsam("tiny", input_size=64, adapts=adapts) for adapts in get_args(Adapted)}
    trained = {adapts: lower_parameters(network).keys() for adapts, network in networks.items()}
    encoder = networks["stage"].image_encoder
    neck = {f"image_encoder.neck.{name}" for name, _ in encoder.neck.named_parameters()}
    assert trained["neck"] == trained["decoder"] | neck
    assert networks["decoder"].frozen_encoder is networks["decoder"].image_encoder

    # The trunk is what the stage's gradients do not reach.
    encoder.requires_grad_(True)
    encoder.trunk(torch.rand(1, 3, 64, 64)).sum().backward()
    above = {name for name, parameter in encoder.named_parameters() if parameter.grad is None}
    assert trained["stage"] == trained["decoder"] | {f"image_encoder.{name}" for name in above}


def test_parts_that_a_base_has_not_are_refused() -> None:
    with pytest.raises(ConfigError, match="adapts 'all'"):
        build_amsam("tiny", adapts="all")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="base vit_b has no last stage"):
        build_amsam("vit_b", adapts="stage")


def test_box_point_and_their_absence_give_different_masks(tiny: AmSam, images: Tensor) -> None:
    point, label = torch.full((3, 1, 2), 20.0), torch.ones(3, 1)
    with torch.no_grad():
        results = [
            tiny(images),
            tiny(images, BOXES),
            tiny(images, None, point, label),
            tiny(images, BOXES, point, label),
        ]
    assert all(not torch.allclose(a, b) for i, a in enumerate(results) for b in results[:i])


def test_prompt_none_ignores_boxes_and_box_plus_point_adds_the_centre(tiny: AmSam, images: Tensor) -> None:
    state = tiny.state_dict()
    networks = {kind: build_amsam("tiny", input_size=64, prompt=kind).eval() for kind in ("none", "box+point")}
    for network in networks.values():
        network.load_state_dict(state)
    centres = ((BOXES[:, :2] + BOXES[:, 2:]) / 2)[:, None]
    with torch.no_grad():
        torch.testing.assert_close(networks["none"](images, BOXES), tiny(images))
        by_hand = tiny(images, BOXES, centres, torch.ones(3, 1))
        torch.testing.assert_close(networks["box+point"](images, BOXES), by_hand)
        beside, not_on_it = torch.full((3, 1, 2), 60.0), torch.zeros(3, 1)
        by_hand = tiny(images, BOXES, torch.cat([beside, centres], dim=1), torch.tensor([[0.0, 1.0]]).expand(3, -1))
        torch.testing.assert_close(networks["box+point"](images, BOXES, beside, not_on_it), by_hand)


class PaintsItsPrompt:
    """Decodes the box that it is shown, and otherwise what it is told to see; trusts each as it is told.

    Args:
        first: ``(B, h, w)``: the masks without a box, bool or the logits of the object.
        trusted: Predicted IoU by rank of the pass: no box, tight box, box of the largest parts; each ``(B,)``.
    """

    def __init__(self, first: Tensor, trusted: list[list[float]]) -> None:
        self.first, self.trusted = first, trusted
        self.seen: list[Tensor | None] = []

    def __call__(self, embedding: Tensor, boxes: Tensor | None = None, *_: object) -> Prediction:
        inside = self.first
        if boxes is not None:
            inside = torch.zeros(len(boxes), 64, 64, dtype=torch.bool)
            for mask, (x1, y1, x2, y2) in zip(inside, boxes.round().long().tolist(), strict=True):
                mask[y1:y2, x1:x2] = True
            stride = 64 // self.first.shape[-1]
            inside = inside[:, ::stride, ::stride]
        trust = torch.tensor(self.trusted[len(self.seen)])
        self.seen.append(boxes)
        logits = torch.where(inside, 5.0, -5.0) if inside.dtype == torch.bool else inside
        # The background's mask is trusted where the object's is not: it must not count.
        return Prediction(torch.stack([-logits, logits], dim=1), torch.stack([1 - trust, trust], dim=1))


def first_masks() -> Tensor:
    """Three images of 64 x 64: an object with a speck far away, one alone, and nothing."""
    masks = torch.zeros(3, 64, 64, dtype=torch.bool)
    masks[0, 8:24, 8:24] = masks[0, 60:62, 60:62] = masks[1, 10:30, 20:50] = True
    return masks


def own_box_network(paints: PaintsItsPrompt, monkeypatch: pytest.MonkeyPatch) -> AmSam:
    network = build_amsam("tiny", input_size=64, prompt="own").eval()
    monkeypatch.setattr(network, "_decode", paints)
    return network


def test_prompt_own_draws_again_with_the_boxes_of_its_first_mask(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    paints = PaintsItsPrompt(first_masks(), [[0.5, 0.5, -0.1], [0.4, 0.4, 0.9], [0.7, 0.3, 0.9]])
    prediction = own_box_network(paints, monkeypatch).predict(images)
    nothing, tight, largest = paints.seen
    assert nothing is None
    assert tight[:2].tolist() == [[8, 8, 62, 62], [20, 10, 50, 30]]
    assert largest[:2].tolist() == [[8, 8, 24, 24], [20, 10, 50, 30]]
    masks = prediction.mask_logits.argmax(dim=1) == 1
    assert masks[0].sum() == 16 * 16  # the largest part's box is trusted most
    assert masks[1].equal(first_masks()[1])  # no box is
    assert not masks[2].any()  # an empty mask has no box, however much its answer is trusted
    assert prediction.predicted_iou[:, 1].tolist() == pytest.approx([0.7, 0.5, -0.1])


def test_the_own_box_is_that_of_the_mask_at_the_inputs_size(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    first = torch.full((1, 16, 16), -3.0)
    first[0, 4:8, 4:8] = 1.0  # between logits of -3 and 1 the edge lies a quarter of a step within the object
    paints = PaintsItsPrompt(first, [[0.5]] * 3)
    own_box_network(paints, monkeypatch).predict(images[:1])
    assert paints.seen[1].tolist() == [[17.0, 17.0, 31.0, 31.0]]


def test_the_own_box_is_around_the_objects_of_all_classes(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the network trusts is their mean."""
    logits = torch.zeros(1, 3, 64, 64)
    logits[0, 0], logits[0, 1, 8:16, 8:16], logits[0, 2, 30:40, 20:24] = 1, 5, 5
    trusted = [torch.tensor([[0.9, 0.5, 0.5]]), torch.tensor([[0.9, 0.8, 0.0]]), torch.tensor([[0.0, 0.6, 0.6]])]
    seen: list[Tensor | None] = []

    def answer(_embedding: Tensor, boxes: Tensor | None = None) -> Prediction:
        seen.append(boxes)
        return Prediction(logits * len(seen), trusted[len(seen) - 1])

    network = build_amsam("tiny", input_size=64, num_classes=2, prompt="own").eval()
    monkeypatch.setattr(network, "_decode", answer)
    prediction = network.predict(images[:1])
    assert seen[1].tolist() == [[8.0, 8.0, 24.0, 40.0]]
    assert torch.equal(prediction.mask_logits, logits * 3)


def test_prompt_own_obeys_a_prompt_and_is_silent_in_training(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"points": BOXES[:, None, :2], "point_labels": torch.ones(3, 1)}
    for given in ({"boxes": BOXES}, points, {"earlier_logits": torch.zeros(3, 1, 16, 16)}):
        paints = PaintsItsPrompt(first_masks(), [[0.5, 0.5, 0.5]])
        own_box_network(paints, monkeypatch).predict(images, **given)
        assert len(paints.seen) == 1
    paints = PaintsItsPrompt(first_masks(), [[0.5, 0.5, 0.5]])
    own_box_network(paints, monkeypatch).train().predict(images)
    assert paints.seen == [None]


def test_an_image_prompts_itself_whoever_is_beside_it(images: Tensor) -> None:
    torch.manual_seed(0)
    network = build_amsam("tiny", input_size=64, prompt="own").eval()
    with torch.no_grad():
        together, alone = network.predict(images), network.predict(images[1:2])
    torch.testing.assert_close(together.mask_logits[1:2], alone.mask_logits, rtol=1e-4, atol=1e-4)


def test_several_classes_give_one_mask_more(images: Tensor) -> None:
    network = build_amsam("tiny", input_size=64, num_classes=3)
    assert network(images).shape == (3, 4, 16, 16)
    assert network.predict(images).predicted_iou.shape == (3, 4)


def test_vit_b_trains_510242_parameters() -> None:
    network = build_amsam("vit_b", input_size=64)
    trained = {**lower_parameters(network), **upper_parameters(network)}
    assert sum(parameter.numel() for parameter in trained.values()) == 510_242


def test_every_trained_parameter_of_the_mask_path_receives_gradient(images: Tensor) -> None:
    network = build_amsam("tiny", input_size=64, calibration="learned")
    network(images, BOXES).square().mean().backward()
    trained = {**lower_parameters(network), **upper_parameters(network)}
    without = {name for name, p in trained.items() if p.grad is None}
    assert {name.split(".")[1] for name in without} == {"iou_prediction_head"}


def test_a_wrong_image_size_names_the_right_one(tiny: AmSam) -> None:
    with pytest.raises(DataError, match=r"\(B, 3, 64, 64\)"):
        tiny(torch.rand(1, 3, 96, 96))


@pytest.mark.parametrize(("base", "size"), [("tiny", 72), ("vit_b", 40), ("resnet", 64), ("vit_b", 0)])
def test_unknown_bases_and_sizes_are_refused(base: str, size: int) -> None:
    with pytest.raises(ConfigError, match=r"multiple of|unknown"):
        build_amsam(base, input_size=size)
