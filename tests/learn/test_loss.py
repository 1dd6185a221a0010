from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amsam_med.errors import ConfigError, DataError
from amsam_med.learn.loss import SegmentationLoss, resize_label


def naive_loss(logits: Tensor, label: Tensor, share: float) -> float:
    """Eq. 5 pixel by pixel: Dice per image and class with the smoothing 1e-5, cross-entropy per pixel."""
    probability = logits.softmax(dim=1)
    dice, ce = [], []
    for b in range(logits.shape[0]):
        for c in range(logits.shape[1]):
            p, y = probability[b, c], (label[b, 0] == c).float()
            dice.append(1 - (2 * (p * y).sum() + 1e-5) / (p.sum() + y.sum() + 1e-5))
        for row, column in torch.cartesian_prod(*map(torch.arange, label.shape[2:])):
            ce.append(-probability[b, int(label[b, 0, row, column]), row, column].log())
    return float((1 - share) * torch.stack(ce).mean() + share * torch.stack(dice).mean())


@pytest.mark.parametrize(("classes", "share"), [(1, 0.8), (1, 0.0), (2, 1.0), (3, 0.3)])
def test_the_loss_is_equation_5(classes: int, share: float) -> None:
    draw = torch.Generator().manual_seed(classes)
    logits = torch.randn(2, classes + 1, 5, 4, generator=draw)
    label = torch.randint(0, classes + 1, (2, 1, 5, 4), generator=draw, dtype=torch.uint8)
    assert float(SegmentationLoss(share)(logits, label)) == pytest.approx(naive_loss(logits, label, share), abs=1e-5)


def test_equal_logits_for_half_a_mask_give_the_value_by_hand() -> None:
    label = torch.tensor([[[[0, 1], [1, 0]]]])
    # CE = ln 2; both Dice terms are 1 - 2 * (0.5 * 2) / (0.5 * 4 + 2) = 0.5
    expected = 0.2 * 0.693147 + 0.8 * 0.5
    assert float(SegmentationLoss()(torch.zeros(1, 2, 2, 2), label)) == pytest.approx(expected, abs=1e-5)


def test_the_plain_denominator_is_the_default_and_squares_are_asked_for() -> None:
    label = torch.tensor([[[[0, 1], [1, 0]]]])
    # Squared, both Dice terms are 1 - 2 * (0.5 * 2) / (0.25 * 4 + 2) = 1/3.
    expected = 0.2 * 0.693147 + 0.8 / 3
    assert float(SegmentationLoss(squared_pred=True)(torch.zeros(1, 2, 2, 2), label)) == pytest.approx(
        expected, abs=1e-5
    )


def test_a_class_that_is_neither_there_nor_predicted_is_no_error() -> None:
    """MONAI's smoothing of both sides, 1e-5: without it in the numerator such a class would cost a whole Dice."""
    logits = torch.tensor([40.0, -40.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    assert float(SegmentationLoss(1.0)(logits, torch.zeros(1, 1, 4, 4))) == pytest.approx(0.0, abs=1e-5)


def test_each_image_has_its_own_dice() -> None:
    logits = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(4))
    label = torch.zeros(2, 1, 4, 4)
    label[0, :, :3], label[1, :, 3:, 3:] = 1, 1
    alone = [SegmentationLoss(1.0)(logits[i : i + 1], label[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(SegmentationLoss(1.0)(logits, label), torch.stack(alone).mean())


def test_certain_and_right_logits_have_no_loss() -> None:
    label = torch.randint(0, 2, (2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    logits = 50.0 * torch.cat([1 - label, label], dim=1).float()
    assert float(SegmentationLoss()(logits, label)) == pytest.approx(0.0, abs=1e-5)


def test_the_gradient_raises_the_right_class() -> None:
    logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
    label = torch.zeros(1, 1, 4, 4)
    label[..., :2] = 1
    SegmentationLoss()(logits, label).backward()
    assert logits.grad is not None
    assert (logits.grad[0, 1, :, :2] < 0).all()
    assert (logits.grad[0, 1, :, 2:] > 0).all()


def test_a_larger_label_is_brought_to_the_logits_from_the_nearest_pixels() -> None:
    label = torch.arange(8, dtype=torch.uint8).repeat(8, 1)[None, None]
    assert resize_label(label, (2, 2))[0, 0].tolist() == [[2.0, 6.0], [2.0, 6.0]]  # the pixels around 1/4 and 3/4


def test_a_label_of_four_times_the_size_has_the_same_loss() -> None:
    logits = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    label = torch.randint(0, 3, (1, 1, 4, 4), generator=torch.Generator().manual_seed(2))
    large = label.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    assert torch.equal(SegmentationLoss()(logits, large), SegmentationLoss()(logits, label))


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        SegmentationLoss(share)


def test_a_mask_of_0_and_255_is_refused_with_the_fix() -> None:
    with pytest.raises(DataError, match=r"id 255.*0 and 255 to 0 and 1"):
        SegmentationLoss()(torch.zeros(1, 2, 4, 4), torch.full((1, 1, 4, 4), 255))


def test_the_first_id_beyond_the_classes_is_refused() -> None:
    with pytest.raises(DataError, match="class id 2; expected ids 0"):
        SegmentationLoss()(torch.zeros(1, 2, 4, 4), torch.full((1, 1, 4, 4), 2))


@pytest.mark.parametrize("shape", [(1, 2, 4, 4), (2, 1, 4, 4), (1, 4, 4)])
def test_a_label_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="one channel"):
        SegmentationLoss()(torch.zeros(1, 2, 4, 4), torch.zeros(shape))
