"""Keys of a batch: MONAI's ``CommonKeys`` (an enum, so it cannot be extended) and what a box prompt adds."""

from __future__ import annotations

from enum import StrEnum

from monai.utils.enums import CommonKeys


class Keys(StrEnum):
    """Names of the entries of a batch; every member is a plain string as well."""

    IMAGE = CommonKeys.IMAGE.value
    LABEL = CommonKeys.LABEL.value
    PRED = CommonKeys.PRED.value
    BOX = "box"
    """float32 ``(B, 4)``: x1, y1, x2, y2 in pixels of the model input."""
