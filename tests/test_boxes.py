"""Box geometry."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from amsam_med.boxes import (
    box_centres,
    box_from_mask,
    clip_boxes,
    full_image_box,
    jitter_boxes,
    largest_parts,
    scale_boxes,
)

sides = st.integers(min_value=1, max_value=24)


def tight_box(mask: Tensor) -> Tensor:
    box = box_from_mask(mask)
    assert box is not None
    return box


def test_a_box_ends_after_its_last_pixel() -> None:
    mask = torch.zeros(10, 12, dtype=torch.uint8)
    mask[2:5, 3:9] = 1  # rows 2..4, columns 3..8
    box = tight_box(mask)
    assert box.tolist() == [3.0, 2.0, 9.0, 5.0]
    assert box.dtype == torch.float32


def test_one_pixel_has_a_box_of_one_by_one() -> None:
    mask = torch.zeros(4, 4)
    mask[0, 3] = 255
    assert torch.equal(tight_box(mask), torch.tensor([3.0, 0.0, 4.0, 1.0]))


def test_small_parts_of_a_mask_can_be_left_out() -> None:
    mask = torch.zeros(20, 20, dtype=torch.uint8)
    mask[1:11, 1:11], mask[14:18, 14:19], mask[19, 0] = 1, 2, 1  # 100, 20 and 1 pixels
    assert largest_parts(mask, 0.0).equal(mask != 0)
    for share, area in ((0.01, 121), (0.2, 120), (0.21, 100), (1.0, 100)):
        assert int(largest_parts(mask, share).sum()) == area
    assert not largest_parts(0 * mask, 0.5).any()


def test_parts_that_touch_are_one_part_whatever_their_classes() -> None:
    mask = torch.zeros(12, 12, dtype=torch.uint8)
    mask[0:3, 0:3], mask[3:5, 3:5], mask[0:3, 3:5] = 1, 1, 2  # 9, 4 (by a corner and by a side) and 6 pixels
    assert int(largest_parts(mask, 1.0).sum()) == 19
    mask[0:3, 3:5] = 0
    assert int(largest_parts(mask, 1.0).sum()) == 13  # corners touch


def test_an_empty_mask_has_no_box() -> None:
    assert box_from_mask(torch.zeros(5, 7)) is None


@given(height=sides, width=sides)
def test_a_full_mask_has_the_box_of_the_full_image(height: int, width: int) -> None:
    assert torch.equal(tight_box(torch.ones(height, width)), full_image_box((height, width)))


@given(height=sides, width=sides, seed=st.integers(0, 999))
def test_the_box_is_tight(height: int, width: int, seed: int) -> None:
    mask = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < 0.1
    mask[seed % height, seed % width] = True
    x1, y1, x2, y2 = tight_box(mask).int().tolist()
    inside = mask[y1:y2, x1:x2]
    assert inside.sum() == mask.sum()
    assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


@given(factor=st.integers(1, 5), height=sides, width=sides, seed=st.integers(0, 999))
def test_a_box_scales_as_its_mask_does(factor: int, height: int, width: int, seed: int) -> None:
    mask = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < 0.2
    mask[seed % height, seed % width] = True
    large = mask.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    scaled = scale_boxes(tight_box(mask), (height, width), (height * factor, width * factor))
    assert torch.equal(scaled, tight_box(large))


def test_scaling_treats_height_and_width_apart() -> None:
    box_in_original = torch.tensor([[100.0, 30.0, 300.0, 60.0]])
    box_in_input = scale_boxes(box_in_original, (120, 400), (256, 256))
    assert torch.equal(box_in_input, torch.tensor([[64.0, 64.0, 192.0, 128.0]]))
    assert torch.allclose(scale_boxes(box_in_input, (256, 256), (120, 400)), box_in_original)


def test_clipping_cuts_at_the_edges_and_nowhere_else() -> None:
    boxes = torch.tensor([[-5.0, 2.0, 30.0, 99.0], [1.0, 2.0, 3.0, 4.0]])
    assert clip_boxes(boxes, (10, 20)).tolist() == [[0.0, 2.0, 20.0, 10.0], [1.0, 2.0, 3.0, 4.0]]


@given(amount=st.floats(0, 3), height=st.integers(2, 40), width=st.integers(2, 40), seed=st.integers(0, 999))
def test_jittered_boxes_stay_inside_and_keep_a_pixel(amount: float, height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(16, 2, 2, generator=generator) * torch.tensor([width, height])
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    x1, y1, x2, y2 = jitter_boxes(boxes, amount, (height, width), generator).unbind(1)
    assert min(x1.min(), y1.min()) >= 0
    assert x2.max() <= width
    assert y2.max() <= height
    assert min((x2 - x1).min(), (y2 - y1).min()) > 1 - 1e-5  # (x1 + 1) - x1 is 1 up to float32's rounding


def test_no_jitter_leaves_a_box_as_it_is() -> None:
    boxes = torch.tensor([[1.0, 2.0, 9.0, 7.0]])
    assert torch.equal(jitter_boxes(boxes, 0.0, (10, 10)), boxes)


def test_jitter_is_as_large_as_it_says() -> None:
    boxes = torch.tensor([[400.0, 450.0, 600.0, 550.0]]).repeat(4000, 1)
    shift = jitter_boxes(boxes, 0.1, (1000, 1000), torch.Generator().manual_seed(0)) - boxes
    assert shift.std(dim=0).tolist() == pytest.approx([20.0, 10.0, 20.0, 10.0], rel=0.05)


def test_jitter_follows_its_generator() -> None:
    boxes = torch.tensor([[10.0, 10.0, 30.0, 30.0]])
    first, again, other = (
        jitter_boxes(boxes, 0.2, (40, 40), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_centres_are_points_of_x_and_y() -> None:
    boxes = torch.tensor([[0.0, 10.0, 4.0, 20.0], [1.0, 1.0, 2.0, 3.0]])
    assert box_centres(boxes).tolist() == [[[2.0, 15.0]], [[1.5, 2.0]]]
