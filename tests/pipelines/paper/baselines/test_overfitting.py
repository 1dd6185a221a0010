"""Every baseline learns two images by heart, through the trainer that the tables use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor

from amsam_med import weights
from amsam_med.data.transforms import restore_original
from amsam_med.errors import WeightsError
from amsam_med.evaluate import dice_score
from amsam_med.model import build
from amsam_med.model.encoders import VitSize
from pipelines.paper.baselines import BASELINES
from pipelines.paper.baselines.autosam import AutoSam
from pipelines.paper.baselines.deeplab import DeepLabV3
from pipelines.paper.baselines.hsnet import HsNet
from pipelines.paper.baselines.interface import BaselineNetwork, Setting
from pipelines.paper.baselines.med_sa import MedSa
from pipelines.paper.baselines.sam import ZeroShotSam
from pipelines.paper.baselines.samed import Samed
from pipelines.paper.baselines.ssp import SelfSupport, self_support
from pipelines.paper.baselines.swin_unet import SwinUnet
from pipelines.paper.baselines.training import train_baseline
from pipelines.paper.baselines.unet import build_dynamic_unet, build_plain_unet

SIZE = 64
SETTING = Setting(base="tiny", input_size=SIZE)
VIT = SETTING._replace(base="vit_b")

SMALL: dict[str, tuple[Callable[[], BaselineNetwork], dict[str, object]]] = {
    "samed": (lambda: Samed(VIT), {"passes": 50}),
    "med-sa": (lambda: MedSa(VIT), {"passes": 50, "rate": 1e-3}),
    "autosam": (lambda: AutoSam(SETTING, "resnet10t"), {"passes": 100, "rate": 1e-3}),
    "deeplab": (lambda: DeepLabV3(SETTING, (1, 1, 1, 1), width=16, stages=2), {"passes": 60}),
    "swin-unet": (lambda: SwinUnet(SETTING, 24, (2, 2, 2, 2), (1, 2, 4, 8), window=4), {"passes": 60, "rate": 2e-3}),
    "hsnet": (lambda: HsNet(SETTING, "pvt_v2_b0", 16, depths=(1, 1, 1, 1)), {"passes": 60, "rate": 2e-3}),
    "ssp": (lambda: SelfSupport(SETTING, (1, 1, 1), width=8), {"passes": 35}),
    "u-net": (lambda: build_plain_unet(SETTING, (8, 16, 32)), {"passes": 60, "rate": 5e-3}),
    "dyn-unet": (lambda: build_dynamic_unet(SETTING), {"passes": 40}),
}


def two_images(size: int = SIZE) -> tuple[Tensor, Tensor]:
    """A dark disc and a dark ellipse, large enough for masks drawn at a quarter of the input's size."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    disc = (rows - 0.1) ** 2 + columns**2 < 0.5
    ellipse = (rows + 0.2) ** 2 / 0.3 + (columns - 0.1) ** 2 / 0.6 < 1
    labels = torch.stack([disc, ellipse])[:, None].to(torch.uint8)
    noise = torch.rand(2, 3, size, size, generator=generator)
    return 0.8 - 0.5 * labels + 0.2 * noise, labels


@pytest.fixture
def examples() -> tuple[Tensor, Tensor]:
    """Two small images with their labels."""
    return two_images()


@pytest.fixture(autouse=True)
def small_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ViT of SAM's kind of two blocks, one of them with windows."""
    monkeypatch.setitem(build.VIT_SIZES, "vit_b", VitSize(width=64, depth=2, heads=2, global_blocks=(1,)))


def mean_dice(network: BaselineNetwork, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        masks = [restore_original(logits, labels.shape[-2:]) for logits in network(images)]
    return sum(dice_score(mask, label[0]) for mask, label in zip(masks, labels, strict=True)) / len(labels)


@pytest.mark.parametrize("name", SMALL)
def test_two_images_are_learned_by_heart(name: str) -> None:
    build_network, changes = SMALL[name]
    examples = two_images(2 * SIZE if name == "ssp" else SIZE)  # its features are at an eighth of the size
    torch.manual_seed(0)
    network = build_network()
    recipe = replace(BASELINES[name].recipe, views="none", **changes)
    train_baseline(network, *examples, recipe)
    assert mean_dice(network, *examples) >= 0.95


def test_every_baseline_that_is_trained_is_tested_here() -> None:
    assert {name for name, baseline in BASELINES.items() if baseline.recipe is not None} == SMALL.keys()


@pytest.mark.parametrize("kind", [Samed, MedSa])
@pytest.mark.parametrize("setting", [SETTING, VIT], ids=["compact", "vit"])
def test_adaptation_starts_from_the_base_and_leaves_it_alone(
    kind: type[Samed] | type[MedSa], setting: Setting, examples: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(0)
    network = kind(setting).eval()
    torch.manual_seed(0)
    plain = kind(setting)  # the same random base, before anything is trained
    frozen = {name: value.clone() for name, value in network.named_parameters() if not value.requires_grad}
    before = network(examples[0])
    assert torch.allclose(before, plain.eval()(examples[0]))
    recipe = replace(BASELINES["samed"].recipe, passes=2, views="none")
    train_baseline(network, *examples, recipe)
    after = dict(network.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert any(name.startswith("sam.image_encoder") for name in frozen)
    assert not torch.allclose(network(examples[0]), before)
    assert bool(network.variant) == (setting is SETTING)


@pytest.mark.parametrize("name", ["deeplab", "swin-unet", "hsnet", "ssp", "u-net", "dyn-unet"])
def test_the_full_size_gives_two_channels(name: str) -> None:
    network = BASELINES[name].build(Setting(input_size=128)).eval()
    with torch.no_grad():
        logits = network(torch.rand(1, 3, 128, 128))
    assert logits.shape[:2] == (1, 2)
    assert logits.shape[-1] in (16, 32, 64, 128)
    assert bool(logits.isfinite().all())
    assert network.origin == "random weights"


def test_every_block_of_the_real_vit_is_adapted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.VIT_SIZES, "vit_b", VitSize(width=96, depth=12, heads=12, global_blocks=(2, 5, 8, 11)))
    encoder = Samed(VIT).sam.image_encoder
    assert isinstance(encoder, ImageEncoderViT)
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert trained == {
        f"blocks.{block}.attn.qkv.{part}_{end}" for block in range(12) for part in ("query", "value") for end in "ab"
    }


@pytest.mark.parametrize(
    "kind", [lambda setting: ZeroShotSam(setting, None), lambda setting: AutoSam(setting, "resnet10t")]
)
@pytest.mark.parametrize("setting", [SETTING, VIT], ids=["compact", "vit"])
def test_a_base_used_as_it_is_has_background_and_object(
    kind: Callable[[Setting], BaselineNetwork], setting: Setting, examples: tuple[Tensor, Tensor]
) -> None:
    network = kind(setting).eval()
    with torch.no_grad():
        logits = network(examples[0])
    assert logits.shape == (2, 2, SIZE // 4, SIZE // 4)
    assert bool(logits[:, 0].any()) == (setting is SETTING)  # SAM's own masks have no background: it is zero
    assert not any(parameter.requires_grad for parameter in network.sam.parameters())


def test_the_surest_pixels_stand_in_where_none_is_sure() -> None:
    torch.manual_seed(0)
    query = torch.rand(1, 4, 6, 6)
    undecided = self_support(query, torch.zeros(1, 2, 6, 6))
    assert undecided.foreground.shape == (1, 4, 1, 1)
    assert undecided.background.shape == (1, 4, 6, 6)
    logits = torch.stack([-(query[:, 0] - 0.5), query[:, 0] - 0.5], dim=1) * 100
    sure = query[0][:, query[0, 0] > 0.51].mean(dim=1)
    assert torch.allclose(self_support(query, logits).foreground.flatten(), sure, atol=0.1)


def test_files_of_other_projects_are_asked_for_by_name(tmp_path: Path) -> None:
    setting = Setting(detector_file=weights.find("lesion-detector"), weights_folder=tmp_path)
    with pytest.raises(WeightsError, match=r"FastSAM-s\.pt is not there"):
        BASELINES["fastsam"].build(setting)


@pytest.mark.parametrize("min_confidence", [0, 1])
def test_fastsam_has_a_mask_where_there_is_a_box(
    min_confidence: float, tmp_path: Path, examples: tuple[Tensor, Tensor]
) -> None:
    import ultralytics

    ultralytics.YOLO("yolov8n-seg.yaml", task="segment").save(tmp_path / "FastSAM-s.pt")  # has learned nothing
    setting = SETTING._replace(detector_file=weights.find("lesion-detector"), weights_folder=tmp_path)
    network = BASELINES["fastsam"].build(setting).eval()
    network.detector.min_confidence = min_confidence
    logits = network(examples[0])
    assert logits.shape == (2, 2, SIZE, SIZE)
    assert network.hidden_parameters > 3_000_000
    assert torch.equal(logits[:, 0], -logits[:, 1])
    if min_confidence:
        assert bool((logits[:, 1] < 0).all())
