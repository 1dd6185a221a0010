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
from amsam_med.model.amsam import CENTRAL_SHARES, Prediction, _mean_dice_with_others
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


class Decoder:
    """Stands in for the decoder: draws what it is told to draw, with the trust that it is told to have.

    Args:
        masks: bool ``(K, B, S, S)``, in the order of the candidates: no box, own box, boxes around the centre.
        trusted: Predicted IoU ``(K, B)``.
    """

    def __init__(self, masks: Tensor, trusted: Tensor) -> None:
        self.masks, self.trusted = masks, trusted
        self.boxes: list[Tensor | None] = []

    def __call__(self, embedding: Tensor, boxes: Tensor | None = None, *_: object) -> Prediction:
        turn = len(self.boxes)
        self.boxes.append(boxes)
        logits, trust = torch.where(self.masks[turn], 5.0, -5.0), self.trusted[turn]
        # The background's mask is trusted where the object's is not: it must not count.
        return Prediction(torch.stack([-logits, logits], dim=1), torch.stack([1 - trust, trust], dim=1))


CANDIDATES = 2 + len(CENTRAL_SHARES)


def own_network(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> AmSam:
    network = build_amsam("tiny", input_size=64, prompt="own").eval()
    monkeypatch.setattr(network, "_decode", decoder)
    return network


def candidates() -> Tensor:
    """Candidate masks of three images: an object with a speck far away, one alone, and nothing."""
    masks = torch.zeros(CANDIDATES, 3, 64, 64, dtype=torch.bool)
    masks[:, 0, 8:24, 8:24] = masks[0, 0, 60:62, 60:62] = masks[:, 1, 10:30, 20:50] = True
    return masks


def test_prompt_own_tries_no_box_the_box_of_its_first_mask_and_boxes_around_the_centre(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(candidates(), torch.full((CANDIDATES, 3), 0.5))
    own_network(decoder, monkeypatch).predict(images)
    nothing, own, *central = decoder.boxes
    assert nothing is None
    assert own[:2].tolist() == [[8, 8, 24, 24], [20, 10, 50, 30]]  # the speck is no large part
    for share, box in zip(CENTRAL_SHARES, central, strict=True):
        half = 32 * share
        torch.testing.assert_close(box, torch.tensor([[32 - half, 32 - half, 32 + half, 32 + half]]).expand(3, 4))


def test_prompt_own_takes_the_mask_of_the_highest_agreement_times_trust(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks, trusted = candidates(), torch.full((CANDIDATES, 3), 0.5)
    masks[4, 0] = masks[4, 1] = False
    masks[4, :2, 40:60, 40:60] = True  # alone in what it sees, however much it is trusted
    trusted[4] = 0.9
    trusted[3, 0] = 0.6  # among those that agree, the most trusted
    masks[3, 0, 24:26, 8:24] = True
    trusted[1, 2] = 0.9  # nothing was found, so this candidate had no box
    prediction = own_network(Decoder(masks, trusted), monkeypatch).predict(images)
    found = prediction.mask_logits.argmax(dim=1) == 1
    assert found[0].equal(masks[3, 0])
    assert found[1].equal(masks[0, 1])
    assert not found[2].any()
    assert prediction.predicted_iou[:, 1].tolist() == pytest.approx([0.6, 0.5, 0.5])


def test_agreement_is_the_mean_dice_with_the_other_masks() -> None:
    masks = torch.zeros(3, 1, 1, 8, dtype=torch.bool)
    masks[0, ..., :4] = masks[1, ..., 2:6] = masks[2, ..., :2] = True
    # Dice: 4 / 8 of the first two, 4 / 6 of first and third, 0 of second and third
    expected = [(1 / 2 + 2 / 3) / 2, 1 / 4, 1 / 3]
    assert _mean_dice_with_others(masks)[:, 0].tolist() == pytest.approx(expected)
    assert _mean_dice_with_others(0 * masks).tolist() == [[0.0], [0.0], [0.0]]


def test_prompt_own_obeys_a_prompt_and_is_silent_in_training(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ({"boxes": BOXES}, {"points": BOXES[:, None, :2], "point_labels": torch.ones(3, 1)}):
        decoder = Decoder(candidates(), torch.full((CANDIDATES, 3), 0.5))
        own_network(decoder, monkeypatch).predict(images, **given)
        assert len(decoder.boxes) == 1
    decoder = Decoder(candidates(), torch.full((CANDIDATES, 3), 0.5))
    own_network(decoder, monkeypatch).train().predict(images)
    assert decoder.boxes == [None]


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
