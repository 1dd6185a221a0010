"""Writers of masks, overlays, outlines and volumes; each file is written atomically."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Hashable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import PIL.Image
import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms.transform import MapTransform
from monai.utils.enums import PostFix
from monai.utils.misc import ImageMetaKey
from numpy.typing import NDArray
from torch import Tensor

from amsam_med.data.nifti import read_geometry
from amsam_med.data.outlines import classes_of, draw_overlay, polygons_of
from amsam_med.data.results import FileResult
from amsam_med.data.sets.pairs import image_stem
from amsam_med.errors import DataError
from amsam_med.files import atomic_path as atomic_path
from amsam_med.keys import Keys

MASK_ENDING = "_segmentation.png"
"""What follows an image's stem in the name of its mask, as in ISIC 2018."""


def write_mask_png(mask: NDArray[np.uint8] | Tensor, path: str | PathLike[str]) -> None:
    """Write class ids, uint8 ``(H, W)``, as 8-bit grey PNG.

    One class is written as ISIC does, 0 and 255; with ids above 1 the file holds the ids themselves.

    Raises:
        DataError: The mask has another shape or type.
    """
    ids = _checked_mask(mask)
    values = ids if ids.max(initial=0) > 1 else ids * np.uint8(255)
    with atomic_path(path) as temporary:
        # Run-length coding is quickest, and a mask has little else than runs to compress.
        PIL.Image.fromarray(values).save(temporary, format="PNG", compress_type=zlib.Z_RLE)


def write_contour(mask: NDArray[np.uint8], path: str | PathLike[str]) -> None:
    """Write the outlines of class ids, uint8 ``(H, W)``, as GeoJSON: one MultiPolygon per class, with its holes.

    Coordinates are pixels of the picture, x to the right and y down; the first pixel covers 0 to 1. Outlines run
    half-way between the centres of the last pixels inside and the first ones outside, as scikit-image's
    ``find_contours`` draws them. QuPath reads such files.
    """
    ids = _checked_mask(mask)
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "MultiPolygon", "coordinates": polygons_of(ids == class_id)},
            "properties": {"class": class_id, "area_px": int(np.count_nonzero(ids == class_id))},
        }
        for class_id in classes_of(ids)
    ]
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")


def write_nifti(result: FileResult, path: str | PathLike[str]) -> None:
    """Write the class ids of a whole file as NIfTI, uint8.

    For a NIfTI image the result has its shape, affine and units, so that both overlap in a viewer; for other formats it
    is ``(W, H, number of pictures)`` with a pixel as unit.

    Raises:
        DataError: The pictures of the file have several sizes.
    """
    if len({mask.shape for mask in result.masks}) > 1:
        raise DataError(f"{result.source.name}: pictures of several sizes do not fit into one NIfTI file")
    slices = np.stack([mask.T for mask in result.masks], axis=-1)  # (W, H, N)
    if result.image_format == "NIfTI":
        source = read_geometry(result.source)
        axis = 2 if result.slice_axis == "auto" else result.slice_axis
        volume = np.moveaxis(slices, -1, axis) if len(result.masks) > 1 else slices
        header = nibabel.Nifti1Header()  # type: ignore[no-untyped-call]
        header.set_data_dtype(np.uint8)  # type: ignore[no-untyped-call]  # a new header's is float32
        header.set_xyzt_units(*source.units)  # type: ignore[no-untyped-call]
        image = nibabel.Nifti1Image(volume.reshape(source.shape), source.affine, header)  # type: ignore[no-untyped-call]
    else:
        image = nibabel.Nifti1Image(slices, np.eye(4))  # type: ignore[no-untyped-call]
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))  # the same bytes every time


def write_overlay(
    image: NDArray[np.uint8] | Tensor,
    mask: NDArray[np.uint8] | Tensor,
    path: str | PathLike[str],
    box: tuple[float, float, float, float] | NDArray[np.float32] | Tensor | None = None,
    flags: Sequence[str] = (),
) -> None:
    """Draw the outline of each class, and the box it came from, over the image.

    A flagged result has a dashed box, and its flags on a red strip at the bottom.

    Args:
        image: uint8 ``(3, H, W)`` RGB.
        mask: Class ids, uint8 ``(H, W)``.
        path: The file; its suffix gives the format (``.png``, ``.jpg``).
        box: x1, y1, x2, y2 in pixels of the image, or None.
        flags: Reasons to review the result.

    Raises:
        DataError: Image and mask do not fit together.
    """
    pixels, ids = np.asarray(image), _checked_mask(mask)
    if pixels.shape != (3, *ids.shape) or pixels.dtype != np.uint8:
        got = f"{pixels.dtype} {pixels.shape} and a mask {ids.shape}"
        raise DataError(f"An overlay needs a uint8 image (3, H, W) and a mask (H, W) of its size; got {got}")
    picture = draw_overlay(pixels, ids, None if box is None else [float(edge) for edge in box], flags)
    with atomic_path(path) as temporary:
        picture.save(temporary, quality=92, compress_level=3)  # JPEG takes the one, PNG the other


class SaveMaskd(MapTransform):
    """:func:`write_mask_png` for an item, as ``<output_dir>/<stem of the image>_segmentation.png``.

    Args:
        keys: Key of the mask, class ids uint8 ``(1, H, W)``.
        output_dir: Folder for the masks; created if missing.
        data_root: The images' folder, whose sub-folders are kept below ``output_dir``. Without it all masks lie side
            by side, and of two images with one stem the later one wins.
    """

    def __init__(
        self, keys: KeysCollection, output_dir: str | PathLike[str], data_root: str | PathLike[str] | None = None
    ) -> None:
        super().__init__(keys)
        self.output_dir = Path(output_dir)
        self.data_root = None if data_root is None else Path(data_root)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write one item's mask and hand the item on; it must hold the ``image_meta_dict`` of its preprocessing."""
        item = dict(data)
        for key in self.key_iterator(item):
            image = Path(str(item[PostFix.meta(Keys.IMAGE.value)][ImageMetaKey.FILENAME_OR_OBJ]))
            folder = Path() if self.data_root is None else image.relative_to(self.data_root).parent
            mask = torch.as_tensor(item[key]).cpu()[0]
            write_mask_png(mask, self.output_dir / folder / f"{image_stem(image)}{MASK_ENDING}")
        return item


def _checked_mask(mask: NDArray[np.uint8] | Tensor) -> NDArray[np.uint8]:
    ids = np.asarray(mask)
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise DataError(f"A mask to write must be uint8 (H, W) of class ids; got {ids.dtype} {ids.shape}")
    return ids
