"""The detector: boxes, files, training, and ultralytics kept quiet."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.ops import box_convert

from amsam_med.detect import yolo
from amsam_med.detect.files import DetectorWeights, read_weights, write_weights
from amsam_med.detect.yolo import TrainingOptions, YoloDetector, load_detector, save_detector, train_detector
from amsam_med.errors import ConfigError, DataError, WeightsError

SIZE = 64


class Candidates(torch.nn.Module):
    """Stands in for the network: answers with given (centre x, centre y, width, height, confidence).

    Of the mirror images, which are the second half of a batch, it answers the same mirrored, or with ``mirrored``.
    """

    def __init__(self, *candidates: list[float], mirrored: list[list[float]] | None = None) -> None:
        super().__init__()
        self.candidates = torch.tensor(candidates).T
        self.mirrored = self.candidates.clone() if mirrored is None else torch.tensor(mirrored).T
        if mirrored is None:
            self.mirrored[0] = SIZE - self.mirrored[0]
        self.seen = torch.empty(0)

    def forward(self, image: Tensor) -> tuple[Tensor, None]:
        self.seen = image
        both = torch.stack([self.candidates, self.mirrored])
        return both.repeat_interleave(len(image) // 2, dim=0), None


def items(count: int) -> list[dict[str, Tensor]]:
    """Dark images with a bright square each."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        image, label = torch.rand(3, SIZE, SIZE, generator=generator) / 4, torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
        image[:, 8 + number : 40 + number, 12:44], label[:, 8 + number : 40 + number, 12:44] = 0.9, 1
        made.append({"image": image, "label": label})
    return made


@pytest.fixture
def detector() -> YoloDetector:
    return YoloDetector("square", SIZE, min_confidence=0)


@pytest.fixture
def with_candidates(detector: YoloDetector) -> Callable[..., YoloDetector]:
    def make(*candidates: list[float], min_confidence: float = 0.05) -> YoloDetector:
        detector.network, detector.min_confidence = Candidates(*candidates), min_confidence
        return detector

    return make


def test_the_most_confident_box_wins(with_candidates: Callable[..., YoloDetector]) -> None:
    found = with_candidates([10, 10, 4, 4, 0.3], [30, 20, 20, 10, 0.8])(torch.zeros(1, 3, SIZE, SIZE))
    assert found.boxes.tolist() == [[20, 15, 40, 25]]
    assert found.confidence.tolist() == pytest.approx([0.8])
    assert found.is_detected.tolist() == [True]


def test_boxes_are_in_the_frame_of_the_image_that_was_given(with_candidates: Callable[..., YoloDetector]) -> None:
    detector = with_candidates([30, 20, 20, 10, 0.8])
    assert detector(torch.zeros(1, 3, 2 * SIZE, 2 * SIZE)).boxes.tolist() == [[40, 30, 80, 50]]
    assert detector.network.seen.shape == (2, 3, SIZE, SIZE)


def test_boxes_around_the_most_confident_one_vote_by_their_confidence(
    with_candidates: Callable[..., YoloDetector],
) -> None:
    near, far = [33, 20, 20, 10, 0.4], [10, 10, 4, 4, 0.7]
    found = with_candidates([30, 20, 20, 10, 0.8], near, far)(torch.zeros(1, 3, SIZE, SIZE))
    torch.testing.assert_close(found.boxes, torch.tensor([[21.0, 15.0, 41.0, 25.0]]))
    assert found.confidence.tolist() == pytest.approx([0.8])


def test_the_mirror_image_has_a_vote_too(detector: YoloDetector) -> None:
    detector.network = Candidates([30, 20, 20, 10, 0.3], mirrored=[[SIZE - 33, 20, 20, 10, 0.6]])
    image = torch.rand(1, 3, SIZE, SIZE)
    found = detector(image)
    torch.testing.assert_close(found.boxes, torch.tensor([[22.0, 15.0, 42.0, 25.0]]))
    assert found.confidence.tolist() == pytest.approx([0.6])
    assert torch.equal(detector.network.seen[1], image[0].flip(2))


@pytest.mark.parametrize("min_confidence", [0.0, 0.9])
def test_the_surest_box_is_the_images_own_and_is_never_dropped(min_confidence: float) -> None:
    torch.manual_seed(0)
    detector = YoloDetector("square", SIZE, min_confidence=min_confidence, box_choice="surest")
    images = torch.rand(2, 3, SIZE, SIZE)
    found = detector(images)
    seen = detector.network(images)[0].mT  # (B, anchors, 5)
    best = seen[range(2), seen[..., 4].argmax(dim=1)]
    expected = box_convert(best[:, :4], "cxcywh", "xyxy").clamp(0, SIZE)
    torch.testing.assert_close(found.boxes, expected)
    torch.testing.assert_close(found.confidence, best[:, 4])
    assert found.is_detected.all()


def test_an_unknown_choice_of_the_box_is_refused() -> None:
    with pytest.raises(ConfigError, match="box_choice 'first' is unknown; expected one of vote, surest"):
        YoloDetector("square", SIZE, box_choice="first")  # type: ignore[arg-type]


def test_boxes_end_at_the_edge_of_the_image(with_candidates: Callable[..., YoloDetector]) -> None:
    found = with_candidates([60, 32, 20, 100, 0.8])(torch.zeros(1, 3, SIZE, SIZE))
    assert found.boxes.tolist() == [[50, 0, 64, 64]]


def test_an_unsure_box_is_no_detection(with_candidates: Callable[..., YoloDetector]) -> None:
    found = with_candidates([30, 20, 20, 10, 0.04])(torch.zeros(2, 3, SIZE, SIZE))
    torch.testing.assert_close(found.boxes, torch.tensor([[20.0, 15.0, 40.0, 25.0]] * 2))
    assert found.confidence.tolist() == pytest.approx([0.04] * 2)
    assert found.is_detected.tolist() == [False, False]


def test_the_whole_image_stands_in_for_a_box_outside_it(with_candidates: Callable[..., YoloDetector]) -> None:
    found = with_candidates([200, 200, 9, 9, 0.9])(torch.zeros(2, 3, SIZE, SIZE))
    assert found.boxes.tolist() == [[0, 0, 64, 64]] * 2
    assert found.confidence.tolist() == [0, 0]
    assert found.is_detected.tolist() == [False, False]


NAN, INF = float("nan"), float("inf")


NO_BOXES = [
    [NAN, 20, 20, 10, 0.9],
    [30, INF, 20, 10, 0.9],
    [30, 20, INF, 10, 0.9],
    [30, 20, -20, -10, 0.9],
    [30, 20, 0, 0, 0.9],
    [30, 20, 20, 10, NAN],
    [30, 20, 20, 10, INF],
    [1e30, 1e30, 1e30, 1e30, 0.9],
    [NAN] * 5,
]


@pytest.mark.parametrize("candidate", NO_BOXES)
def test_a_candidate_that_is_no_box_counts_for_nothing(
    candidate: list[float], with_candidates: Callable[..., YoloDetector]
) -> None:
    alone = with_candidates(candidate)(torch.zeros(2, 3, SIZE, SIZE))
    assert alone.is_detected.tolist() == [False, False]
    assert alone.boxes.tolist() == [[0, 0, SIZE, SIZE]] * 2
    assert alone.confidence.isfinite().all()


@pytest.mark.parametrize("candidate", [[NAN, 20, 20, 10, 0.9], [30, 20, 20, 10, NAN], [NAN] * 5])
def test_candidates_that_are_no_boxes_do_not_hide_one_that_is(
    candidate: list[float], with_candidates: Callable[..., YoloDetector]
) -> None:
    found = with_candidates(candidate, [30, 20, 20, 10, 0.8])(torch.zeros(1, 3, SIZE, SIZE))
    assert found.boxes.tolist() == [[20, 15, 40, 25]]
    assert found.is_detected.tolist() == [True]


def test_an_image_is_answered_alike_in_any_batch(detector: YoloDetector) -> None:
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    together = detector(images)
    for number, image in enumerate(images):
        alone = detector(image[None])
        torch.testing.assert_close(alone.boxes[0], together.boxes[number], rtol=0, atol=1e-3)
        torch.testing.assert_close(alone.confidence[0], together.confidence[number])


def test_the_detector_stays_frozen_and_in_evaluation_mode(detector: YoloDetector) -> None:
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    torch.nn.Sequential(detector).train()
    detector(torch.rand(2, 3, SIZE, SIZE))
    assert not any(module.training for module in detector.modules())
    assert not any(parameter.requires_grad for parameter in detector.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in detector.state_dict().items())


def test_building_leaves_torchs_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    YoloDetector(input_size=SIZE)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 64, 32)])
def test_other_shapes_than_square_rgb_are_refused(shape: tuple[int, ...], detector: YoloDetector) -> None:
    with pytest.raises(DataError, match=re.escape(str(shape))):
        detector(torch.zeros(shape))


@pytest.mark.parametrize(
    "settings",
    [
        {"input_size": 100},
        {"input_size": 32},
        {"input_size": 10**9},
        {"min_confidence": 1.5},
        {"edge_error": NAN},
        {"edge_error": -1},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    name, value = next(iter(settings.items()))
    with pytest.raises(ConfigError, match=f"{name} = {value}"):
        YoloDetector(**settings)


def test_a_saved_detector_finds_what_it_found(detector: YoloDetector, tmp_path: Path) -> None:
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    save_detector(detector, tmp_path / "new" / "square.safetensors")
    loaded = load_detector(str(tmp_path / "new" / "square.safetensors"), min_confidence=0)
    assert (loaded.class_name, loaded.input_size) == ("square", SIZE)
    torch.testing.assert_close(loaded(image).confidence, detector(image).confidence, rtol=1e-2, atol=1e-6)


def test_a_file_is_small_and_says_what_it_is(detector: YoloDetector, tmp_path: Path) -> None:
    path = tmp_path / "square.safetensors"
    save_detector(detector, path)
    assert path.stat().st_size < 6.3e6
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert header["format"] == "amsam-detector"
    assert header["model"] == "yolov8n.yaml"


def test_what_was_measured_is_kept_in_the_file_and_earlier_files_have_none(tmp_path: Path) -> None:
    detector = YoloDetector("square", SIZE, min_confidence=0.4, edge_error=0.0375)
    save_detector(detector, tmp_path / "new.safetensors")
    loaded = load_detector(tmp_path / "new.safetensors")
    assert (loaded.edge_error, loaded.min_confidence) == (0.0375, 0.4)
    assert load_detector(tmp_path / "new.safetensors", min_confidence=0.1).min_confidence == 0.1
    with safe_open(tmp_path / "new.safetensors", "pt") as file:
        header = {name: text for name, text in file.metadata().items() if name not in ("edge_error", "min_confidence")}
        save_file({name: file.get_tensor(name) for name in file.keys()}, tmp_path / "old.safetensors", header)  # noqa: SIM118
    loaded = load_detector(tmp_path / "old.safetensors")
    assert (loaded.edge_error, loaded.min_confidence) == (0, 0.05)


def test_a_fused_detector_finds_the_same(detector: YoloDetector) -> None:
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after training: fresh ones do nothing
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    before = detector.network(images)[0]
    after = detector.fuse().network(images)[0]
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in detector.modules())
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_values_beyond_half_precision_are_cut_and_not_lost(detector: YoloDetector, tmp_path: Path) -> None:
    weights = DetectorWeights({"large": torch.tensor([1e6, -1e6])}, "square", 1, SIZE)
    write_weights(weights, tmp_path / "large.safetensors")
    assert read_weights(tmp_path / "large.safetensors").state["large"].tolist() == [65504, -65504]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.safetensors does not exist"):
        load_detector(tmp_path / "none.safetensors")


def test_a_cut_file_is_refused(detector: YoloDetector, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    save_detector(detector, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"cut\.safetensors cannot be read"):
        load_detector(path)


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors", {"format": "amsam-adapter-1"})
    with pytest.raises(WeightsError, match="format 'amsam-adapter-1'"):
        load_detector(tmp_path / "other.safetensors")


def test_a_damaged_header_is_refused(tmp_path: Path) -> None:
    save_file({}, tmp_path / "bad.safetensors", {"format": "amsam-detector", "version": "1", "nc": "one"})
    with pytest.raises(WeightsError, match="entry 'nc'"):
        load_detector(tmp_path / "bad.safetensors")


def test_loading_is_strict(detector: YoloDetector, tmp_path: Path) -> None:
    state = dict(list(detector.network.state_dict().items())[:-1])
    write_weights(DetectorWeights(state, "square", 1, SIZE), tmp_path / "less.safetensors")
    with pytest.raises(WeightsError, match="does not hold a yolov8n"):
        load_detector(tmp_path / "less.safetensors")


def test_a_detector_of_many_classes_is_refused(detector: YoloDetector, tmp_path: Path) -> None:
    write_weights(DetectorWeights(detector.network.state_dict(), "dog", 80, SIZE), tmp_path / "dogs.safetensors")
    with pytest.raises(WeightsError, match="finds 80 classes"):
        load_detector(tmp_path / "dogs.safetensors")


@pytest.mark.parametrize(
    ("name", "value"),
    [("model.0.conv.weight", NAN), ("model.22.cv2.0.0.bn.bias", INF), ("model.0.bn.running_var", -1.0)],
)
def test_a_detector_that_cannot_answer_is_refused_when_it_is_opened(
    name: str, value: float, detector: YoloDetector, tmp_path: Path
) -> None:
    state = {key: tensor.clone() for key, tensor in detector.network.state_dict().items()}
    state[name].fill_(value)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "bad.safetensors", HEADER)
    with pytest.raises(WeightsError, match=r"bad\.safetensors holds NaN or infinity"):
        load_detector(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("size", ["1000000000", "-1", "7", "0", "100"])
def test_an_absurd_input_size_is_refused_when_the_file_is_opened(
    size: str, detector: YoloDetector, tmp_path: Path
) -> None:
    save_file(detector.network.state_dict(), tmp_path / "bad.safetensors", {**HEADER, "input_size": size})
    with pytest.raises(WeightsError, match=r"bad\.safetensors.*input_size"):
        load_detector(tmp_path / "bad.safetensors")


HEADER = {"format": "amsam-detector", "version": "1", "class_name": "square", "nc": "1", "input_size": str(SIZE)}


def pickle(path: Path, detector: YoloDetector) -> Path:
    """What ultralytics' own training writes."""
    detector.network.names = {0: "square"}  # type: ignore[assignment]
    torch.save({"ema": None, "model": detector.network.half(), "train_args": {"imgsz": SIZE}}, path)
    return path


def test_a_pickle_is_not_opened_without_trust(tmp_path: Path) -> None:
    (tmp_path / "yolov8n.pt").write_bytes(b"code that would run")
    with pytest.raises(ConfigError, match="can run any code"):
        load_detector(tmp_path / "yolov8n.pt")


def test_a_trusted_pickle_becomes_a_detector(detector: YoloDetector, tmp_path: Path) -> None:
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    expected = detector(image).confidence
    loaded = load_detector(pickle(tmp_path / "square.pt", detector), min_confidence=0, trust_pickle=True)
    assert (loaded.class_name, loaded.input_size) == ("square", SIZE)
    torch.testing.assert_close(loaded(image).confidence, expected, rtol=1e-2, atol=1e-6)


def test_a_trusted_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"model": None}, tmp_path / "empty.pt")
    with pytest.raises(WeightsError, match=r"empty\.pt is not a checkpoint"):
        load_detector(tmp_path / "empty.pt", trust_pickle=True)


def test_training_reports_every_step_and_measures_the_result(tmp_path: Path) -> None:
    steps: list[yolo.TrainingProgress] = []
    options = TrainingOptions("square", epochs=2, batch_size=2, device="cpu")
    detector, scores = train_detector(items(4), items(2), options, steps.append)
    assert [(s.epoch, s.step, s.steps, s.map50 is None) for s in steps] == [
        (epoch, step, 2, is_step) for epoch in (1, 2) for step, is_step in ((1, True), (2, True), (2, False))
    ]
    assert all(0 < s.loss < 100 for s in steps)
    assert (detector.class_name, detector.input_size, scores.best_box.images) == ("square", SIZE, 2)
    save_detector(detector, tmp_path / "square.safetensors", scores)
    assert '"map50"' in (tmp_path / "square.json").read_text()


def test_without_epochs_given_weights_are_measured_and_kept(detector: YoloDetector, tmp_path: Path) -> None:
    save_detector(detector, tmp_path / "given.safetensors")
    options = TrainingOptions("square", epochs=0, device="cpu", start=tmp_path / "given.safetensors")
    measured, scores = train_detector([], items(3), options)
    expected = detector.network.state_dict()
    assert all(torch.equal(tensor, expected[name].half()) for name, tensor in _halves(measured).items())
    assert scores.best_box.images == 3
    assert 0 <= scores.map50 <= 1
    assert measured.edge_error == scores.best_box.edge_error


def test_the_same_seed_gives_the_same_detector() -> None:
    options = TrainingOptions(epochs=1, batch_size=2, seed=5, device="cpu")
    first, second = (train_detector(items(2), items(1), options)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_training_leaves_the_process_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environment, threads = dict(os.environ), torch.get_num_threads()
    train_detector(items(2), items(1), TrainingOptions(epochs=1, batch_size=2, device="cpu"))
    assert not any(tmp_path.iterdir())
    assert dict(os.environ) == environment
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_training_goes_on_from_given_weights(detector: YoloDetector, tmp_path: Path) -> None:
    own = detector.network.state_dict()
    state = {name: torch.full_like(tensor, 2) if "cv3" in name else tensor + 1 for name, tensor in own.items()}
    write_weights(DetectorWeights(state, "square", 1, SIZE), tmp_path / "start.safetensors")
    yolo._start_from(detector.network, tmp_path / "start.safetensors", trust_pickle=False)
    assert all(
        torch.equal(tensor, state[name].half().float()) for name, tensor in detector.network.state_dict().items()
    )


def test_a_training_does_not_start_from_what_is_no_number(detector: YoloDetector, tmp_path: Path) -> None:
    state = {
        name: torch.full_like(tensor, NAN) if "conv" in name else tensor
        for name, tensor in detector.network.state_dict().items()
    }
    save_file(state, tmp_path / "start.safetensors", HEADER)
    options = TrainingOptions(epochs=1, device="cpu", start=tmp_path / "start.safetensors")
    with pytest.raises(WeightsError, match=r"start\.safetensors holds NaN or infinity"):
        train_detector(items(2), items(1), options)


def nan_loss(self: Any, batch: Any, preds: Any = None) -> Any:
    loss, parts = LOSS(self, batch, preds)
    return loss * NAN, parts


def no_memory(self: Any, batch: Any, preds: Any = None) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


LOSS = yolo.DetectionModel.loss


@pytest.mark.parametrize(
    ("befalls", "said"),
    [(nan_loss, "the training has diverged: the loss of epoch 1 is nan; train with"), (no_memory, "too little memory")],
)
def test_a_training_that_fails_says_why_and_leaves_nothing(
    befalls: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(yolo.DetectionModel, "loss", befalls)
    with pytest.raises(ConfigError, match=said):
        train_detector(items(2), items(1), TrainingOptions(epochs=2, batch_size=2, device="cpu"))
    assert not any(tmp_path.iterdir())


def test_a_class_head_of_other_classes_is_left_out(detector: YoloDetector, tmp_path: Path) -> None:
    head = {name: tensor.clone() for name, tensor in detector.network.state_dict().items() if ".cv3." in name}
    state = {name: tensor + 1 for name, tensor in detector.network.state_dict().items()}
    state["model.22.cv3.0.2.weight"] = torch.zeros(80, 80, 1, 1)
    write_weights(DetectorWeights(state, "dog", 80, SIZE), tmp_path / "dogs.safetensors")
    yolo._start_from(detector.network, tmp_path / "dogs.safetensors", trust_pickle=False)
    after = detector.network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in head.items())
    assert torch.equal(after["model.0.conv.weight"], state["model.0.conv.weight"].half().float())


def test_weights_of_another_network_cannot_start_a_training(tmp_path: Path) -> None:
    write_weights(DetectorWeights({"a": torch.zeros(1)}, "square", 1, SIZE), tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"it lacks model\.0\.conv\.weight"):
        train_detector(items(2), items(1), TrainingOptions(start=tmp_path / "other.safetensors", device="cpu"))


@pytest.mark.parametrize(
    "options",
    [{"epochs": 0}, {"batch_size": 0}, {"mosaic": 2.0}, {"device": "tpu"}],
    ids=lambda options: next(iter(options)),
)
def test_options_out_of_range_are_refused_before_any_work(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))} ?="):
        train_detector([], [], TrainingOptions(**options))


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="finds no GPU"):
        train_detector(items(2), items(1), TrainingOptions(device="cuda"))


def test_an_input_size_that_does_not_fit_the_network_is_refused() -> None:
    odd = {"image": torch.zeros(3, 100, 100), "label": torch.ones(1, 100, 100, dtype=torch.uint8)}
    with pytest.raises(ConfigError, match="input_size = 100"):
        train_detector([odd], [odd], TrainingOptions(device="cpu"))


def test_parts_of_different_sizes_are_refused() -> None:
    large = {"image": torch.zeros(3, 96, 96), "label": torch.ones(1, 96, 96, dtype=torch.uint8)}
    with pytest.raises(DataError, match="64 px for training and 96 px for validation"):
        train_detector(items(2), [large], TrainingOptions(device="cpu"))


def _halves(detector: YoloDetector) -> dict[str, Tensor]:
    state = detector.network.state_dict()
    return {name: tensor.half() for name, tensor in state.items() if tensor.is_floating_point()}


QUIET = """
import os, socket, sys
import cv2, torch  # these set variables of their own
before = dict(os.environ)

def refuse(*arguments, **named):
    print("CONNECTS", arguments)
    raise OSError("no network in this test")

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, refuse)

from amsam_med.detect.yolo import TrainingOptions, YoloDetector, train_detector
options = TrainingOptions(epochs=1, batch_size=2, device="cpu")
label = torch.zeros(1, 64, 64, dtype=torch.uint8)
label[:, 8:40, 12:44] = 1
item = {"image": torch.rand(3, 64, 64), "label": label}
train_detector([item] * 2, [item], options)
YoloDetector(input_size=64)(torch.rand(1, 3, 64, 64))
print("INTEGRATIONS", [name for name in sys.modules if name.startswith("ultralytics.utils.callbacks.")])
print("CHANGED", {k for k in before.keys() | os.environ.keys() if before.get(k) != os.environ.get(k)})
"""


def test_ultralytics_touches_neither_home_nor_network_and_says_nothing(tmp_path: Path) -> None:
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    gone = ("PYTEST_CURRENT_TEST", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "YOLO_CONFIG_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in gone}
    environment |= {"HOME": str(home), "TMPDIR": str(scratch), "ULTRALYTICS_API_KEY": "ul_" + "0" * 40}
    environment["MPLCONFIGDIR"] = str(tmp_path / "matplotlib")  # MONAI imports it, and it keeps a list of fonts
    command = [sys.executable, "-c", QUIET]
    done = subprocess.run(command, capture_output=True, text=True, cwd=scratch, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    expected = "INTEGRATIONS ['ultralytics.utils.callbacks.base']\nCHANGED set()\n"
    assert done.stdout == expected
    said = [line for line in done.stderr.splitlines() if "building the font cache" not in line]  # if it takes long
    assert not said
    assert [*home.rglob("*"), *scratch.rglob("*")] == []
