"""Bundles of random weights at 64 px, with and without a detector to load, and pictures for them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from amsam_med.boxes import Detections, box_from_mask, full_image_box
from amsam_med.checkpoint import save_model
from amsam_med.model import build_amsam
from amsam_med.trust import trust

INPUT_SIZE = 64
_CONFIGS = Path(__file__).resolve().parent.parent / "bundles" / "amsam_isic" / "configs"
_CHANGES = {
    "input_size: 256": f"input_size: {INPUT_SIZE}",
    "  - $import amsam_med.detect.yolo\n": "",
    "detector_file: \"$@bundle_root + '/models/detector.safetensors'\"": "detector_file: null",
    "detector: '$amsam_med.detect.yolo.load_detector(amsam_med.weights.verified(@detector_file), "
    "box_choice=@box_choice).to(@device) "
    "if @detector_file else None'": "detector: null",
}


class DarkObjectDetector:
    """The box of the pixels darker than half; one that is not there becomes the full image's."""

    def __call__(self, image: Tensor) -> Detections:
        boxes = [box_from_mask(pixels.mean(dim=0) < 0.5) for pixels in image]
        is_detected = torch.tensor([box is not None for box in boxes])
        full = full_image_box((image.shape[2], image.shape[3]))
        return Detections(
            torch.stack([full if box is None else box for box in boxes]), is_detected.float(), is_detected
        )


def write_small_bundle(folder: Path, seed: int = 0) -> Path:
    (folder / "configs").mkdir(parents=True)
    shutil.copy(_CONFIGS / "metadata.json", folder / "configs")
    text = (_CONFIGS / "inference.yaml").read_text()
    for old, new in _CHANGES.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "configs" / "inference.yaml").write_text(_keeping_every_mask(text))
    trust(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_model(build_amsam("tiny", input_size=INPUT_SIZE), folder / "models" / "model.pt")
    return folder


def write_tiny_bundle(root: Path, input_size: int = INPUT_SIZE) -> Path:
    """A whole bundle like ``amsam_isic``, with a detector that has learned nothing; its base lies in its folder."""
    from amsam_med.detect.yolo import YoloDetector, save_detector  # here: it takes a second

    torch.manual_seed(0)
    shutil.copytree(_CONFIGS, root / "configs")
    base = build_amsam("tiny", input_size=input_size, rank=0, calibration="none")
    save_file(base.state_dict(), root / "base.safetensors")
    network = build_amsam("tiny", input_size=input_size, base_weights=root / "base.safetensors")
    save_model(network, root / "models" / "model.pt")
    detector = YoloDetector(input_size=input_size, min_confidence=0)  # it is sure of nothing
    save_detector(detector, root / "models" / "detector.safetensors")
    for name in ("inference.yaml", "train.yaml"):
        config = root / "configs" / name
        text = config.read_text().replace("input_size: 256", f"input_size: {input_size}")
        text = _keeping_every_mask(text)
        config.write_text(text.replace("'$str(amsam_med.weights.find(@base))'", str(root / "base.safetensors")))
    trust(root)
    return root


def _keeping_every_mask(text: str) -> str:
    """A configuration that keeps masks of any trust: of what it trusts, a network of random weights knows nothing."""
    return re.sub(r"^nothing_below: .*$", "nothing_below: 0", text, flags=re.MULTILINE)


def write_picture(path: Path, shade: int = 30, size: tuple[int, int] = (80, 48)) -> Path:
    """A noisy bright picture, (width, height) in pixels, with an object in its middle: a quarter to three quarters."""
    width, height = size
    pixels = np.random.default_rng(shade).integers(200, 256, (height, width, 3), dtype=np.uint8)
    pixels[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = shade
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path
