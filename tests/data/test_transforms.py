"""Pre- and postprocessing by hand-computed values, and through MONAI's own classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, decollate_batch
from monai.metrics import DiceMetric
from monai.transforms import Compose, SaveImaged

from amsam_med.data.transforms import (
    LogitsToMaskd,
    postprocessing,
    prepare_image,
    prepare_label,
    preprocessing,
    restore_original,
)
from amsam_med.errors import ConfigError, DataError


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, str]:
    """A 6 x 4 image (height 4), left half black and right half white, and the mask of its right half."""
    half = np.zeros((4, 6), np.uint8)
    half[:, 3:] = 255
    item = {"image": str(tmp_path / "a.png"), "label": str(tmp_path / "a_mask.png")}
    PIL.Image.fromarray(np.stack([half] * 3, axis=-1)).save(item["image"])
    PIL.Image.fromarray(half).save(item["label"])
    return item


def logits_of(mask: torch.Tensor) -> torch.Tensor:
    """Sure logits ``(2, h, w)`` of a mask ``(h, w)``."""
    return torch.stack([torch.zeros(mask.shape), 20.0 * mask - 10])


def test_an_item_is_squashed_into_plain_tensors(pair: dict[str, str]) -> None:
    item = preprocessing(input_size=12, with_label=True)(pair)
    assert type(item["image"]) is type(item["label"]) is torch.Tensor
    assert item["image"].shape == (3, 12, 12)
    assert item["image"].dtype == torch.float32
    assert item["label"].shape == (1, 12, 12)
    assert item["label"].dtype == torch.uint8
    assert item["image_meta_dict"]["spatial_shape"].tolist() == [4, 6]
    np.testing.assert_array_equal(item["image"][0] > 0.5, item["label"][0])


def test_the_label_can_stay_in_the_original_frame(pair: dict[str, str]) -> None:
    label = preprocessing(input_size=12, with_label=True, label_at="original")(pair)["label"]
    np.testing.assert_array_equal(label, [[[0, 0, 0, 1, 1, 1]] * 4])


def test_an_image_in_memory_gives_the_same_input_as_its_file(pair: dict[str, str]) -> None:
    pixels = np.asarray(PIL.Image.open(pair["image"])).transpose(2, 0, 1)
    from_file = preprocessing(input_size=16)({"image": pair["image"]})["image"]
    from_memory = preprocessing(input_size=16)({"image": torch.from_numpy(pixels.copy())})["image"]
    assert torch.equal(from_file, from_memory)
    assert torch.equal(from_file, prepare_image(pixels, 16))


def test_an_image_of_the_right_size_is_only_scaled_to_one() -> None:
    pixels = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(prepare_image(pixels, 16), pixels / 255)


def test_squashing_is_antialiased() -> None:
    stripes = np.zeros((3, 64, 64), np.uint8)
    stripes[:, :, ::2] = 255  # finer than the input can show: without antialiasing black or white, with it grey
    inner = prepare_image(stripes, 16)[:, :, 1:-1]
    assert (inner - 0.5).abs().max() < 0.01


def test_squashing_is_bilinear() -> None:
    """Pillow's fixed point and torch's floating point agree to a grey value."""
    pixels = torch.randint(0, 256, (3, 40, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = torch.nn.functional.interpolate(pixels[None].float(), (16, 16), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(prepare_image(pixels, 16) * 255, plain, rtol=0, atol=1.01)


def test_the_input_has_256_pixels_a_side_by_default(pair: dict[str, str]) -> None:
    assert prepare_image(np.zeros((3, 2, 2), np.uint8)).shape == (3, 256, 256)
    assert preprocessing()(pair)["image"].shape == (3, 256, 256)


@pytest.mark.parametrize("size", [8, 32])
def test_a_label_takes_the_nearest_pixel(size: int) -> None:
    mask = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    expected = torch.nn.functional.interpolate(mask[None, None].float(), size=(size, size), mode="nearest-exact")[0]
    assert torch.equal(prepare_label(mask, size), expected.to(torch.uint8))


def test_the_logits_are_upsampled_and_not_the_mask() -> None:
    # By hand: the edge lies where the line from -1 to 3 crosses zero, a quarter of the way from pixel to pixel.
    logits = torch.tensor([[[0.0, 0.0]], [[-1.0, 3.0]]])
    assert restore_original(logits, (1, 8)).tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]]


def test_a_tie_is_background() -> None:
    assert restore_original(torch.ones(2, 2, 2), (3, 3)).sum() == 0


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_two_channels_are_decided_as_the_argmax_of_upsampled_logits(height: int, width: int, seed: int) -> None:
    logits = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(seed))
    upsampled = torch.nn.functional.interpolate(logits[None].double(), size=(height, width), mode="bilinear")[0]
    clear = (upsampled[0] - upsampled[1]).abs() > 1e-5
    mask = restore_original(logits, (height, width))
    assert mask.dtype == torch.uint8
    assert torch.equal(mask[clear], upsampled.argmax(0).to(torch.uint8)[clear])


def test_several_classes_give_their_ids() -> None:
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 1], [2, 3]]), 4).permute(2, 0, 1) * 5.0
    np.testing.assert_array_equal(restore_original(logits, (2, 4)), [[0, 0, 1, 1], [2, 2, 3, 3]])


def test_half_precision_logits_are_upsampled_in_float32() -> None:
    logits = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(restore_original(logits, (50, 70)), restore_original(logits.float(), (50, 70)))


def test_a_batch_goes_in_and_a_file_comes_out(pair: dict[str, str], tmp_path: Path) -> None:
    loader = DataLoader(Dataset([pair] * 2, preprocessing(input_size=16, with_label=True)), batch_size=2)
    batch = next(iter(loader))
    batch["pred"] = torch.stack([logits_of(label[0].float()) for label in batch["label"]])
    names = {"output_dir": tmp_path / "out", "output_postfix": "seg", "output_ext": ".png", "separate_folder": False}
    write_mask = SaveImaged("pred", **names, output_dtype=np.uint8, scale=255, resample=False)
    write_mask.set_options(write_kwargs={"reverse_indexing": False})
    for item in decollate_batch(batch):
        mask = Compose([postprocessing(), write_mask])(item)["pred"]
        np.testing.assert_array_equal(mask, np.array([[[0, 0, 0, 1, 1, 1]] * 4]))
    np.testing.assert_array_equal(PIL.Image.open(tmp_path / "out" / "a_seg.png"), [[0, 0, 0, 255, 255, 255]] * 4)


def test_a_bundle_config_can_name_the_pipelines(pair: dict[str, str]) -> None:
    config = {
        "before": {"_target_": "amsam_med.data.transforms.preprocessing", "input_size": 8},
        "after": {"_target_": "amsam_med.data.transforms.postprocessing"},
    }
    parser = ConfigParser(config)
    item = parser.get_parsed_content("before")({"image": pair["image"]})
    item["pred"] = logits_of(torch.ones(2, 2))
    assert isinstance(parser.get_parsed_content("before"), Compose)
    assert parser.get_parsed_content("after")(item)["pred"].shape == (1, 4, 6)


def test_a_data_fault_comes_through_a_pipeline_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^none\.png: no such file"):
        preprocessing()({"image": tmp_path / "none.png"})


def test_a_mask_of_another_size_is_refused(pair: dict[str, str]) -> None:
    PIL.Image.new("L", (5, 4)).save(pair["label"])
    with pytest.raises(DataError, match=r"a_mask\.png: the mask is 5 x 4 pixels, its image 6 x 4"):
        preprocessing(with_label=True)(pair)


def test_arrays_of_another_layout_are_refused() -> None:
    for wrong in (np.zeros((4, 6, 3), np.uint8), np.zeros((3, 4, 6), np.float32), np.zeros((3, 0, 6), np.uint8)):
        with pytest.raises(DataError, match=r"uint8 \(3, H, W\) RGB; got"):
            prepare_image(wrong)


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"input_size": 0}, {"num_classes": 0}, {"label_at": "output"}):
        with pytest.raises(ConfigError, match=f"{next(iter(settings))}="):
            preprocessing(**settings)


def test_a_real_mask_survives_the_way_in_and_back(data_root: Path) -> None:
    images = sorted((data_root / "isic2018" / "val" / "images").iterdir())[:5]
    assert images
    for path in images:
        pair = {"image": path, "label": path.parent.parent / "masks" / f"{path.stem}.png"}
        small = preprocessing(input_size=256, with_label=True)(pair)["label"][0].float()
        truth = preprocessing(with_label=True, label_at="original")(pair)["label"][0]
        mask = restore_original(logits_of(small), tuple(truth.shape))
        assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.98


def test_logits_and_label_meet_at_the_size_of_the_logits() -> None:
    label = torch.zeros(1, 8, 8, dtype=torch.uint8)
    label[0, :, 4:] = 1
    item = LogitsToMaskd("pred")({"pred": logits_of(torch.tensor([[0, 1], [1, 1]])), "label": label})
    assert item["pred"].tolist() == [[[0, 1], [1, 1]]]
    assert item["label"].tolist() == [[[0, 1], [0, 1]]]


def test_a_label_is_scored_by_the_pixels_nearest_to_the_centres_of_the_logits() -> None:
    label = torch.zeros(1, 8, 8, dtype=torch.uint8)
    label[0, :, 2] = label[0, :, 6] = 1  # the pixels around 1/4 and 3/4, as the loss has them
    item = LogitsToMaskd("pred")({"pred": torch.zeros(2, 2, 2), "label": label})
    assert item["label"].tolist() == [[[1, 1], [1, 1]]]


def test_each_class_gets_a_channel_and_the_background_none() -> None:
    ids = torch.tensor([[0, 1], [2, 2]])
    logits = (ids == torch.arange(3)[:, None, None]).float()
    item = LogitsToMaskd("pred")({"pred": logits, "label": ids[None]})
    assert item["pred"].tolist() == item["label"].tolist() == [[[0, 1], [0, 0]], [[0, 0], [1, 1]]]


def test_monais_dice_of_several_classes_is_their_mean() -> None:
    truth, prediction = torch.tensor([[1, 1], [2, 2]]), torch.tensor([[1, 0], [2, 2]])
    logits = (prediction == torch.arange(3)[:, None, None]).float()
    item = LogitsToMaskd("pred")({"pred": logits, "label": truth[None]})
    metric = DiceMetric(include_background=True)
    metric([item["pred"]], [item["label"]])
    assert metric.aggregate().item() == pytest.approx((2 / 3 + 1) / 2)


def test_equal_logits_are_background_at_the_logits_as_well() -> None:
    item = LogitsToMaskd("pred")({"pred": torch.zeros(2, 4, 4), "label": torch.ones(1, 4, 4)})
    assert not item["pred"].any()
