"""Boxes given, found or missing, and what the outputs say about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from amsam_med.boxes import Detections, full_image_box
from amsam_med.bundle import open_bundle
from amsam_med.data.readers import read_image
from amsam_med.data.transforms import prepare_image, restore_original
from amsam_med.infer import PromptInferer
from amsam_med.model import AmSam, build_amsam
from amsam_med.segment import SegmentOptions, segment
from tests.conftest import TINY_SIZE

IMAGES = torch.rand(3, 3, TINY_SIZE, TINY_SIZE, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[4.0, 6.0, 40.0, 50.0], [10.0, 0.0, 64.0, 30.0], [0.0, 0.0, 64.0, 64.0]])


def detector(image: Tensor) -> Detections:
    """Finds the first two objects, and nothing in the third image."""
    boxes = torch.stack([BOXES[0], BOXES[1], full_image_box((TINY_SIZE, TINY_SIZE))])[: len(image)]
    return Detections(boxes, torch.tensor([0.9, 0.6, 0.0]), torch.tensor([True, True, False]))


@pytest.fixture(scope="module")
def network() -> AmSam:
    torch.manual_seed(0)
    return build_amsam("tiny", input_size=TINY_SIZE).eval()


def test_detected_boxes_prompt_the_network(network: AmSam):
    found = PromptInferer(detector).predict(IMAGES, network)
    with torch.no_grad():
        assert torch.equal(found.mask_logits, network(IMAGES, detector(IMAGES).boxes))
    assert found.box_sources == ["detector", "detector", "full image"]
    assert found.box_confidence.tolist() == pytest.approx([0.9, 0.6, 0.0])


def test_a_given_box_goes_before_the_detector(network: AmSam):
    given = PromptInferer(detector).predict(IMAGES, network, boxes=BOXES)
    assert given.box_sources == ["user"] * 3
    assert given.boxes is BOXES


def test_without_detector_or_box_the_network_works_alone(network: AmSam):
    alone = PromptInferer().predict(IMAGES, network)
    with torch.no_grad():
        assert torch.equal(alone.mask_logits, network(IMAGES))
    assert alone.boxes is None
    assert alone.box_sources == ["none"] * 3


def test_a_network_without_prompt_is_not_given_a_box():
    network = build_amsam("tiny", input_size=TINY_SIZE, prompt="none").eval()
    assert PromptInferer(detector).predict(IMAGES, network).boxes is None


def test_the_predicted_iou_is_a_number_between_0_and_1(network: AmSam):
    trust = PromptInferer(detector).predict(IMAGES, network).predicted_iou
    assert trust.shape == (3,)
    assert bool(((trust >= 0) & (trust <= 1)).all())


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
