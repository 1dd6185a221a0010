"""The eight views of a square image."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amsam_med.boxes import box_from_mask
from amsam_med.errors import ConfigError
from amsam_med.views import VIEW_COUNT, unview_boxes, unview_image, view_boxes, view_image, views_of

views = st.integers(0, VIEW_COUNT - 1)


def test_view_0_is_the_image_itself() -> None:
    image = torch.arange(9.0).reshape(3, 3)
    assert torch.equal(view_image(image, 0), image)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (1, [[2, 4], [1, 3]]),  # a quarter turn counter-clockwise
        (2, [[4, 3], [2, 1]]),
        (4, [[2, 1], [4, 3]]),  # mirrored left to right
        (5, [[4, 2], [3, 1]]),  # turned, then mirrored
    ],
)
def test_views_by_hand(view: int, expected: list[list[int]]) -> None:
    assert view_image(torch.tensor([[1, 2], [3, 4]]), view).tolist() == expected


def test_the_eight_views_of_an_uneven_image_differ() -> None:
    image = torch.tensor([[1, 2], [3, 4]])
    assert len({tuple(view_image(image, view).flatten().tolist()) for view in range(VIEW_COUNT)}) == 8


@given(view=views, size=st.integers(1, 9))
def test_unview_undoes_view(view: int, size: int) -> None:
    image = torch.arange(2.0 * 3 * size * size).reshape(2, 3, size, size)
    assert torch.equal(unview_image(view_image(image, view), view), image)
    assert torch.equal(view_image(unview_image(image, view), view), image)


@given(view=views, size=st.integers(1, 20), seed=st.integers(0, 999))
def test_a_box_follows_its_mask_into_every_view(view: int, size: int, seed: int) -> None:
    mask = torch.rand(size, size, generator=torch.Generator().manual_seed(seed)) < 0.1
    mask[seed % size, seed // size % size] = True
    box, box_in_view = box_from_mask(mask), box_from_mask(view_image(mask, view))
    assert box is not None
    assert box_in_view is not None
    assert torch.equal(view_boxes(box, view, size), box_in_view)


@given(view=views)
def test_unview_boxes_undoes_view_boxes(view: int) -> None:
    boxes = torch.tensor([[1.0, 2.0, 5.0, 9.0], [0.0, 0.0, 10.0, 3.0]])
    assert torch.equal(unview_boxes(view_boxes(boxes, view, 10), view, 10), boxes)


@given(view=views)
def test_boxes_keep_their_leading_dimensions(view: int) -> None:
    boxes = torch.rand(2, 5, 4)
    assert view_boxes(boxes, view, 1).shape == (2, 5, 4)
    assert torch.equal(view_boxes(boxes, view, 1)[1, 3], view_boxes(boxes[1, 3], view, 1))


def test_kinds_of_views_begin_with_the_image_and_the_mirror_keeps_what_is_up() -> None:
    image = torch.tensor([[1, 2], [3, 4]])
    assert [view_image(image, view).tolist() for view in views_of("mirror")] == [[[1, 2], [3, 4]], [[2, 1], [4, 3]]]
    assert views_of("all") == tuple(range(VIEW_COUNT))
    assert views_of("none") == (0,)


@pytest.mark.parametrize("kind", ["upright", True, ""])
def test_an_unknown_kind_is_refused_with_the_known_ones(kind: str) -> None:
    with pytest.raises(ConfigError, match="expected one of all, mirror, none"):
        views_of(kind)  # type: ignore[arg-type]
