"""Boxes given, found or missing, and what the outputs say about them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from amsam_med.boxes import Detections, box_from_mask, full_image_box
from amsam_med.bundle import open_bundle
from amsam_med.data.readers import read_image
from amsam_med.data.transforms import prepare_image, restore_original
from amsam_med.errors import ConfigError, WeightsError
from amsam_med.infer import Flag, PromptInferer, follow_prompts, judge_masks
from amsam_med.model import AmSam, build_amsam
from amsam_med.model.amsam import Prediction
from amsam_med.segment import SegmentOptions, segment
from amsam_med.views import ViewKind
from tests.conftest import TINY_SIZE

FOUR_IMAGES = torch.rand(4, 3, TINY_SIZE, TINY_SIZE, generator=torch.Generator().manual_seed(0))
IMAGES = FOUR_IMAGES[:3]
BOXES = torch.tensor([[4.0, 6.0, 40.0, 50.0], [10.0, 0.0, 64.0, 30.0], [0.0, 0.0, 64.0, 64.0]])


def numbers(image: Tensor) -> list[int]:
    """Which of the four images these are."""
    return [next(n for n, one in enumerate(FOUR_IMAGES) if torch.equal(one, pixels)) for pixels in image]


def detector(image: Tensor) -> Detections:
    """Finds the first two objects, and nothing in the third image."""
    boxes = torch.stack([BOXES[0], BOXES[1], full_image_box((TINY_SIZE, TINY_SIZE))])
    found = Detections(boxes, torch.tensor([0.9, 0.6, 0.0]), torch.tensor([True, True, False]))
    return Detections(*(part[numbers(image)] for part in found))


@pytest.fixture(scope="module")
def network() -> AmSam:
    torch.manual_seed(0)
    return build_amsam("tiny", input_size=TINY_SIZE).eval()


def test_detected_boxes_prompt_the_network(network: AmSam):
    found = PromptInferer(detector).predict(IMAGES, network)
    with torch.no_grad():
        with_box, without = network.predict(IMAGES, BOXES), network.predict(IMAGES)
    torch.testing.assert_close(found.mask_logits[:2], with_box.mask_logits[:2])
    torch.testing.assert_close(found.mask_logits[2], without.mask_logits[2])
    assert found.predicted_iou[2] == pytest.approx(float(without.predicted_iou[2, 1]))
    assert found.box_sources == ["detector", "detector", "not found"]
    assert found.box_agreement[2] == 1
    assert found.box_confidence.tolist() == pytest.approx([0.9, 0.6, 0.0])


def test_where_nothing_is_found_all_are_segmented_without_a_box(network: AmSam):
    found = PromptInferer(
        lambda image: detector(image)._replace(is_detected=torch.zeros(len(image), dtype=torch.bool))
    ).predict(IMAGES, network)
    with torch.no_grad():
        torch.testing.assert_close(found.mask_logits, network(IMAGES))
    assert found.box_sources == ["not found"] * 3


def test_a_given_box_goes_before_the_detector(network: AmSam):
    given = PromptInferer(detector).predict(IMAGES, network, boxes=BOXES)
    assert given.box_sources == ["user"] * 3
    assert given.boxes is not None
    assert torch.equal(given.boxes, BOXES)


def test_without_detector_or_box_the_network_works_alone(network: AmSam):
    alone = PromptInferer().predict(IMAGES, network)
    with torch.no_grad():
        torch.testing.assert_close(alone.mask_logits, network(IMAGES))
    assert alone.boxes is None
    assert alone.box_sources == ["none"] * 3


def test_a_network_without_prompt_is_not_given_a_box():
    network = build_amsam("tiny", input_size=TINY_SIZE, prompt="none").eval()
    assert PromptInferer(detector).predict(IMAGES, network).boxes is None


def test_a_network_of_its_own_boxes_is_not_given_the_detectors_but_obeys_a_persons():
    network = build_amsam("tiny", input_size=TINY_SIZE, prompt="own").eval()
    assert PromptInferer(detector).predict(IMAGES, network).box_sources == ["none"] * 3
    assert PromptInferer(detector).predict(IMAGES, network, BOXES).box_sources == ["user"] * 3


def test_no_result_keeps_a_graph(network: AmSam):
    for answer in (PromptInferer(detector).predict(IMAGES, network), follow_prompts(network, IMAGES, BOXES)):
        assert not answer.mask_logits.requires_grad
        assert not answer.predicted_iou.requires_grad


def test_the_predicted_iou_is_a_number_between_0_and_1(network: AmSam):
    trust = PromptInferer(detector).predict(IMAGES, network).predicted_iou
    assert trust.shape == (3,)
    assert bool(((trust >= 0) & (trust <= 1)).all())


def squares(*sides: int, sureness: float = 10.0) -> Tensor:
    """Logits of two masks per batch: a square from (0, 0) of each side, in logits of 16 px for an input of 64 px."""
    masks = torch.zeros(len(sides), 16, 16)
    for mask, side in zip(masks, sides, strict=True):
        mask[:side, :side] = 1
    return sureness * torch.stack([1 - masks, masks], dim=1)


@pytest.mark.parametrize(("trust", "told"), [(1.3, 1.0), (-0.2, 0.0)])
def test_the_predicted_iou_is_cut_to_0_and_1_and_a_threshold_of_0_keeps_every_mask(trust: float, told: float):
    answer = BoxFollower(squares(8, 8, 8), squares(8, 8, 8), [[trust, trust]] * 3)
    found = PromptInferer(nothing_below=0.0).predict(IMAGES, answer)  # type: ignore[arg-type]
    assert found.predicted_iou.tolist() == [told] * 3
    assert found.flags == [()] * 3


@pytest.mark.parametrize(("bottom", "is_flagged"), [(20, True), (21, False)])  # IoU 20/32 = 0.625 and 21/32 = 0.656
def test_a_box_disagrees_below_an_iou_of_65_hundredths(bottom: float, is_flagged: bool):
    boxes = torch.tensor([[0.0, 0.0, 32.0, bottom]])
    found = PromptInferer().predict(IMAGES[:1], Fixed(squares(8)), boxes)  # type: ignore[arg-type]
    assert (Flag.BOX_MASK_DISAGREE in found.flags[0]) is is_flagged


@pytest.mark.parametrize(("chance", "is_flagged"), [(0.77, True), (0.80, False)])
def test_a_mask_is_unsure_below_a_dice_of_88_hundredths(chance: float, is_flagged: bool):
    """An image that is object all over with this probability: Dice 2 p / (p + 1), 0.870 and 0.889."""
    logits = torch.tensor([1 - chance, chance]).log().view(1, 2, 1, 1).expand(1, 2, 16, 16)
    found = PromptInferer().predict(IMAGES[:1], Fixed(logits))  # type: ignore[arg-type]
    assert float(found.certainty) == pytest.approx(2 * chance / (chance + 1))
    assert (Flag.UNSURE_MASK in found.flags[0]) is is_flagged


def test_certainty_is_of_all_classes_together():
    logits = torch.zeros(1, 3, 16, 16)
    logits[0, 1, :8], logits[0, 2, 8:] = 3.0, 3.0  # two objects and no background
    chance = 1 - 1 / (2 + torch.tensor(3.0).exp())
    certainty, agreement = judge_masks(logits, Detections(BOXES[2:], torch.ones(1), torch.tensor([True])), TINY_SIZE)
    assert float(certainty) == pytest.approx(float(2 * chance / (chance + 1)), abs=0.01)
    assert float(agreement) == 1


def test_a_box_that_is_not_the_masks_disagrees():
    boxes = torch.tensor([[0.0, 0.0, 32.0, 32.0], [0.0, 0.0, 32.0, 16.0], [0.0, 0.0, 64.0, 64.0]])
    found = Detections(boxes, torch.ones(3), torch.ones(3, dtype=torch.bool))
    _, agreement = judge_masks(squares(8, 8, 0), found, TINY_SIZE)
    assert agreement.tolist() == pytest.approx([1, 0.5, 0], abs=0.07)  # edges lie between logits


def test_certainty_falls_with_the_probabilities_of_the_mask():
    by_sureness = [float(judge_masks(squares(8, sureness=s), None, TINY_SIZE)[0]) for s in (0.2, 1, 3, 30)]
    assert by_sureness == sorted(by_sureness)
    assert by_sureness[0] < 0.5
    assert by_sureness[-1] > 0.97
    certainty, agreement = judge_masks(squares(0), None, TINY_SIZE)
    assert (float(certainty), float(agreement)) == (0, 1)


def test_certainty_is_the_dice_of_mask_and_probabilities():
    logits = squares(8, 3, sureness=2) + torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    certainty, _ = judge_masks(logits, None, 16)
    chance = logits.softmax(dim=1)[:, 1]
    mask = (chance > 0.5).float()
    expected = [2 * (c * m).sum() / (c.sum() + m.sum()) for c, m in zip(chance, mask, strict=True)]
    torch.testing.assert_close(certainty, torch.stack(expected))


class Fixed(torch.nn.Module):
    """A network that answers with given logits."""

    settings: ClassVar = {"prompt": "box"}

    def __init__(self, mask_logits: Tensor) -> None:
        super().__init__()
        self.mask_logits = mask_logits

    def embed(self, image: Tensor) -> Tensor:
        return image

    def predict(self, image: Tensor, boxes: Tensor | None = None) -> Prediction:
        return Prediction(self.mask_logits[numbers(image)], torch.full((len(image), 2), 0.5))


def test_each_reason_for_a_look_has_its_flag():
    logits = torch.cat([squares(8, 0, 8), squares(8, sureness=0.3)])
    boxes = torch.tensor(
        [[0.0, 0.0, 32.0, 32.0], [0.0, 0.0, 9.0, 9.0], [30.0, 30.0, 60.0, 60.0], [0.0, 0.0, 32.0, 32.0]]
    )
    found = PromptInferer().predict(FOUR_IMAGES, Fixed(logits), boxes)  # type: ignore[arg-type]
    assert found.flags == [(), (Flag.EMPTY_MASK,), (Flag.BOX_MASK_DISAGREE,), (Flag.UNSURE_MASK,)]
    detected = PromptInferer(detector).predict(IMAGES, Fixed(squares(16, 8, 8)))  # type: ignore[arg-type]
    assert Flag.NO_BOX in detected.flags[2]
    assert Flag.BOX_MASK_DISAGREE not in detected.flags[2]  # with a box that was not used


class BoxFollower(Fixed):
    """A network that answers with other logits, and another trust in each image's, where it is given a box."""

    def __init__(self, mask_logits: Tensor, with_box: Tensor, trust: list[list[float]]) -> None:
        super().__init__(mask_logits)
        self.with_box = with_box
        self.trust = torch.tensor(trust)

    def predict(self, image: Tensor, boxes: Tensor | None = None) -> Prediction:
        logits = self.mask_logits if boxes is None else self.with_box
        trust = self.trust[numbers(image), int(boxes is None)]
        return Prediction(logits[numbers(image)], trust[:, None].expand(-1, 2))


def test_a_detected_box_counts_unless_the_mask_without_it_is_trusted_much_more():
    with_box, alone = squares(8, 8, 8), squares(6, 6, 6)
    network: AmSam = BoxFollower(alone, with_box, [[0.5, 0.71], [0.5, 0.69], [0.5, 0.9]])  # type: ignore[assignment]
    found = PromptInferer(detector, rival_margin=0.2).predict(IMAGES, network)
    assert found.box_sources == ["set aside", "detector", "not found"]
    torch.testing.assert_close(found.mask_logits, torch.stack([alone[0], with_box[1], alone[2]]))
    assert found.predicted_iou.tolist() == pytest.approx([0.71, 0.5, 0.9])
    assert found.box_agreement[0] == 1
    assert Flag.BOX_MASK_DISAGREE not in found.flags[0]
    obeyed = PromptInferer(detector, rival_margin=0.2).predict(IMAGES, network, BOXES)
    torch.testing.assert_close(obeyed.mask_logits, with_box)
    plain = PromptInferer(detector).predict(IMAGES, network)
    assert plain.box_sources == ["detector", "detector", "not found"]


def test_a_mask_that_is_trusted_too_little_is_nothing_unless_a_person_drew_its_box():
    logits = squares(8, 8, 0)
    network: AmSam = BoxFollower(logits, logits, [[0.3, 0.7], [0.3, 0.5], [0.3, 0.9]])  # type: ignore[assignment]
    found = PromptInferer(nothing_below=0.6).predict(IMAGES, network)
    assert [bool((mask.argmax(dim=0) == 1).any()) for mask in found.mask_logits] == [True, False, False]
    assert found.certainty[1:].tolist() == [0, 0]
    for mask, kept in zip(found.mask_logits[1:], logits[1:], strict=True):
        assert torch.equal(mask[0], kept[0])
        assert torch.equal(mask[0] - mask[1], torch.full((16, 16), 10.0))
    assert found.flags == [(), (Flag.NOTHING_FOUND,), (Flag.NOTHING_FOUND,)]
    overruled = PromptInferer(detector, rival_margin=1.0, nothing_below=0.6).predict(IMAGES, network)
    assert overruled.box_sources == ["detector", "detector", "not found"]
    assert [Flag.NOTHING_FOUND in flags for flags in overruled.flags] == [False, True, True]
    drawn = PromptInferer(nothing_below=0.6).predict(IMAGES, network, BOXES)
    torch.testing.assert_close(drawn.mask_logits, logits)
    assert drawn.flags[2] == (Flag.EMPTY_MASK,)


def test_a_negative_margin_keeps_the_box_only_where_it_is_trusted_more():
    with_box, alone = squares(8, 8, 8), squares(6, 6, 6)
    network: AmSam = BoxFollower(alone, with_box, [[0.9, 0.8], [0.9, 0.7], [0.5, 0.9]])  # type: ignore[assignment]
    found = PromptInferer(detector, rival_margin=-0.15).predict(IMAGES, network)
    assert found.box_sources == ["set aside", "detector", "not found"]


@pytest.mark.parametrize(("name", "share"), [("rival_margin", -1.1), ("rival_margin", 1.5), ("nothing_below", -0.1)])
def test_a_threshold_out_of_range_is_refused(name: str, share: float):
    with pytest.raises(ConfigError, match=f"{name} is {share}"):
        PromptInferer(**{name: share})  # type: ignore[arg-type]


def test_a_mask_without_a_box_cannot_disagree(network: AmSam):
    assert not any(Flag.BOX_MASK_DISAGREE in flags for flags in PromptInferer().predict(IMAGES, network).flags)


@pytest.mark.parametrize("views", ["mirror", "all"])
def test_views_make_the_answer_the_same_for_an_image_and_its_mirror_image(views: ViewKind, network: AmSam):
    inferer = PromptInferer(dark_object, views)
    images = IMAGES.clone()
    images[:, :, 10:30, 5:40] = 0
    seen, mirrored = (inferer.predict(batch, network) for batch in (images, images.flip(-1)))
    torch.testing.assert_close(mirrored.mask_logits.flip(-1), seen.mask_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mirrored.predicted_iou, seen.predicted_iou, rtol=1e-4, atol=1e-4)
    assert seen.boxes is not None
    assert seen.boxes.tolist() == [pytest.approx([5, 10, 40, 30])] * 3
    assert not torch.allclose(PromptInferer(dark_object).predict(images, network).mask_logits, seen.mask_logits)


def dark_object(image: Tensor) -> Detections:
    boxes = torch.stack([box_from_mask(pixels.sum(dim=0) == 0) for pixels in image])  # type: ignore[misc]
    return Detections(boxes, torch.full((len(image),), 0.5), torch.ones(len(image), dtype=torch.bool))


def test_boxes_of_views_count_by_their_confidence(network: AmSam):
    answers = [
        Detections(torch.tensor([[8.0, 0.0, 32.0, 16.0]]), torch.tensor([0.75]), torch.tensor([True])),
        Detections(torch.tensor([[64.0 - 40, 0.0, 64.0, 20.0]]), torch.tensor([0.25]), torch.tensor([True])),
    ]
    found = PromptInferer(lambda image: answers.pop(0), "mirror").predict(IMAGES[:1], network)
    assert found.boxes is not None
    assert found.boxes.tolist() == [[6.0, 0.0, 34.0, 17.0]]
    assert found.box_confidence.tolist() == [0.75]


def test_an_object_that_no_view_shows_is_not_found(network: AmSam):
    nothing = Detections(full_image_box((TINY_SIZE, TINY_SIZE))[None], torch.zeros(1), torch.tensor([False]))
    found = PromptInferer(lambda image: nothing, "mirror").predict(IMAGES[:1], network)
    assert found.box_sources == ["not found"]
    assert found.boxes is not None
    assert bool(found.boxes.isfinite().all())


def test_an_object_that_one_view_shows_is_found(network: AmSam):
    seen = Detections(torch.tensor([[8.0, 0.0, 32.0, 16.0]]), torch.tensor([0.5]), torch.tensor([True]))
    unseen = Detections(full_image_box((TINY_SIZE, TINY_SIZE))[None], torch.zeros(1), torch.tensor([False]))
    answers = [seen, unseen]
    found = PromptInferer(lambda image: answers.pop(0), "mirror").predict(IMAGES[:1], network)
    assert (found.box_sources, found.boxes.tolist()) == (["detector"], seen.boxes.tolist())


def test_unknown_views_are_refused():
    with pytest.raises(ConfigError, match="'top'; expected one of"):
        PromptInferer(detector, "top")  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_images_result_is_its_own_bit_for_bit(threads: int, network: AmSam):
    together = PromptInferer(detector).predict(IMAGES, network)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for order in ([2, 0, 1], [1], [0, 2]):
            found = PromptInferer(detector).predict(IMAGES[order], network)
            assert torch.equal(found.mask_logits, together.mask_logits[order])
            assert torch.equal(found.certainty, together.certainty[order])
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_as_a_monai_inferer_it_returns_the_logits(network: AmSam):
    inferer = PromptInferer(detector)
    assert torch.equal(inferer(IMAGES, network), inferer.predict(IMAGES, network).mask_logits)


def test_command_line_bundle_and_arrays_give_the_same_mask(tiny_bundle: Path, labelled_folder: Path, tmp_path: Path):
    options = SegmentOptions(bundle=str(tiny_bundle), formats=("png",), batch_size=1)
    segment([labelled_folder / "images"], tmp_path / "cli", options)
    settings = {"dataset_dir": str(labelled_folder / "images"), "output_dir": str(tmp_path / "bundle")}
    parser = open_bundle(tiny_bundle, "inference", settings)
    parser.get_parsed_content("evaluator").run()
    network, inferer = (parser.get_parsed_content(name) for name in ("network", "inferer"))
    for path in sorted((labelled_folder / "images").iterdir()):
        pixels = read_image(path).pixels
        logits = inferer(prepare_image(pixels, TINY_SIZE)[None], network)[0]
        by_array = restore_original(logits, (pixels.shape[1], pixels.shape[2])) * 255
        name = f"{path.stem}_segmentation.png"
        for file in (tmp_path / "cli" / "masks" / name, tmp_path / "bundle" / name):
            assert np.array_equal(read_image(file).pixels[0], by_array), file


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("count", [1, 3])
def test_a_network_that_answers_no_numbers_is_an_error_and_never_an_empty_mask(
    value: float, count: int, network: AmSam
) -> None:
    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken.mask_decoder.mask_tokens.weight.fill_(value)
    with pytest.raises(WeightsError, match="values that are NaN or infinite, so its weights are damaged"):
        PromptInferer().predict(IMAGES[:count], broken)
