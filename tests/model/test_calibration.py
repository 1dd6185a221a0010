"""Eq. 9-12."""

from __future__ import annotations

import pytest
import torch

from amsam_med.errors import ConfigError
from amsam_med.model import build_amsam
from amsam_med.model.calibration import (
    MaskCalibration,
    average_products,
    blend_masks,
    concatenate_products,
    hadamard_products,
)


def _decoder_output(
    b: int = 3, n: int = 2, c: int = 8, side: int = 5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """M_orig, U and H as the decoder makes them."""
    generator = torch.Generator().manual_seed(1)
    upscaled = torch.randn(b, c, side, side, generator=generator)
    vectors = torch.randn(b, n, c, generator=generator)
    return torch.einsum("bnc,bchw->bnhw", vectors, upscaled), upscaled, vectors


def test_products_equal_the_papers_loop_over_channels() -> None:
    _, upscaled, vectors = _decoder_output()
    products = hadamard_products(upscaled, vectors)
    for i in range(upscaled.shape[1]):
        expanded = upscaled[:, i : i + 1].repeat(1, vectors.shape[1], 1, 1)
        naive = expanded * vectors[:, :, i].reshape(*vectors.shape[:2], 1, 1)
        assert torch.equal(products[:, i], naive)


def test_concatenation_holds_one_product_for_each_image_and_channel() -> None:
    products = hadamard_products(*_decoder_output()[1:])
    joined = concatenate_products(products)
    assert joined.shape == (3 * 8, 2, 5, 5)
    assert torch.equal(joined[8 + 2], products[1, 2])


def test_batch_scope_is_the_mean_over_everything_and_the_same_for_all_images() -> None:
    products = hadamard_products(*_decoder_output()[1:])
    averaged = average_products(products, "batch")
    assert averaged.shape == (3, 2, 5, 5)
    torch.testing.assert_close(averaged[2], products.sum(dim=(0, 1)) / 24)


def test_both_scopes_agree_for_a_single_image() -> None:
    products = hadamard_products(*_decoder_output(b=1)[1:])
    torch.testing.assert_close(average_products(products, "image"), average_products(products, "batch"))


def test_blending_by_hand() -> None:
    assert blend_masks(torch.tensor(10.0), torch.tensor(20.0), alpha=0.7) == pytest.approx(13.0)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_one_mask_alone_may_count(alpha: float) -> None:
    original, upscaled, vectors = _decoder_output()
    expected = original if alpha else average_products(hadamard_products(upscaled, vectors), "image")
    torch.testing.assert_close(MaskCalibration("paper", alpha)(original, upscaled, vectors), expected)


def test_the_papers_share_is_the_default() -> None:
    decoded = _decoder_output()
    assert torch.equal(MaskCalibration()(*decoded), MaskCalibration("paper", alpha=0.7)(*decoded))
    settings = build_amsam("tiny", input_size=64).calibration
    assert (settings.mode, settings.alpha, settings.scope) == ("paper", 0.7, "image")


def test_a_network_is_built_with_the_share_and_the_scope_asked_for() -> None:
    calibration = build_amsam("tiny", input_size=64, alpha=0.4, calibration_scope="batch").calibration
    assert (calibration.alpha, calibration.scope) == (0.4, "batch")


def test_both_parts_of_the_masks_learn_from_the_calibrated_mask_too() -> None:
    """With alpha 0 nothing but the products of Eq. 9 is left to learn from."""
    network = build_amsam("tiny", input_size=64, alpha=0.0)
    network(torch.rand(1, 3, 64, 64)).square().mean().backward()
    decoder = network.mask_decoder
    for part in (decoder.output_hypernetworks_mlps[1].layers[0], decoder.output_upscaling[0]):
        assert part.weight.grad is not None
        assert part.weight.grad.abs().sum() > 0


def test_papers_calibration_only_rescales_the_logits_of_an_image() -> None:
    original, upscaled, vectors = _decoder_output(c=32)
    calibrated = MaskCalibration("paper", alpha=0.7)(original, upscaled, vectors)
    torch.testing.assert_close(calibrated, (0.7 + 0.3 / 32) * original, rtol=1e-4, atol=1e-5)
    assert torch.equal(calibrated.argmax(dim=1), original.argmax(dim=1))


def test_an_images_mask_does_not_depend_on_its_neighbours() -> None:
    original, upscaled, vectors = _decoder_output()
    for mode in ("paper", "learned"):
        calibration = MaskCalibration(mode, channels=8)
        together = calibration(original, upscaled, vectors)
        alone = calibration(original[1:2], upscaled[1:2], vectors[1:2])
        torch.testing.assert_close(together[1:2], alone)


def test_batch_scope_is_refused_outside_training() -> None:
    calibration = MaskCalibration("paper", scope="batch").eval()
    with pytest.raises(ConfigError, match="scope 'image'"):
        calibration(*_decoder_output())


def test_learned_calibration_starts_as_the_papers() -> None:
    decoded = _decoder_output()
    learned, paper = MaskCalibration("learned", channels=8), MaskCalibration("paper", channels=8)
    torch.testing.assert_close(learned(*decoded), paper(*decoded), rtol=1e-4, atol=1e-5)


def test_learned_calibration_can_change_the_mask() -> None:
    original, upscaled, vectors = _decoder_output()
    calibration = MaskCalibration("learned", alpha=0.1, channels=8)
    assert calibration.fusion is not None
    with torch.no_grad():
        calibration.fusion.weight[:, 0] += 5.0
    changed = calibration(original, upscaled, vectors).argmax(dim=1) != original.argmax(dim=1)
    assert changed.any()


def test_learned_calibration_receives_gradient() -> None:
    calibration = MaskCalibration("learned", channels=8)
    calibration(*_decoder_output()).square().sum().backward()
    assert calibration.fusion is not None
    assert calibration.fusion.weight.grad is not None
    assert calibration.fusion.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("mode", "alpha"), [("magic", 0.7), ("paper", 1.5)])
def test_wrong_settings_are_refused(mode: str, alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"unknown|between 0 and 1"):
        MaskCalibration(mode, alpha)  # type: ignore[arg-type]
