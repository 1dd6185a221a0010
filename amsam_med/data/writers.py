"""Masks, overlays, outlines and volumes into files, each complete or not there at all."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import nibabel
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter
import PIL.ImageFont
import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms.transform import MapTransform
from monai.utils.enums import PostFix
from monai.utils.misc import ImageMetaKey
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from skimage.measure import find_contours, label
from torch import Tensor

from amsam_med.data.datalists import image_stem
from amsam_med.data.nifti import SliceAxis, read_geometry
from amsam_med.errors import DataError
from amsam_med.files import atomic_path as atomic_path
from amsam_med.keys import Keys

if TYPE_CHECKING:
    from pydicom.sr.coding import Code

    from amsam_med.data.dicom_results import Algorithm, SegmentMeaning

Colour: TypeAlias = tuple[int, int, int]

OUTLINE_COLOURS: tuple[Colour, ...] = (
    (0, 230, 170),
    (255, 176, 0),
    (100, 143, 255),
    (220, 38, 127),
    (254, 97, 0),
    (120, 94, 240),
)
"""RGB of classes 1, 2, ... (then again from the first): apart from skin and tissue, and for the colour-blind."""

BOX_COLOUR = (255, 255, 255)
FLAG_COLOUR = (176, 0, 32)
MASK_ENDING = "_segmentation.png"
"""What follows an image's stem in the name of its mask, as in ISIC 2018."""

_PIXELS_PER_LINE_WIDTH = 320  # a line is this share of the image's longer side
_DASH_WIDTHS = 8  # a dash is as many line widths long
_SMALLEST_WORDS = 8.0  # pixels
_OUTLINE_ALPHA = [max(0, min(255, round(1024 * (0.375 - abs(share / 255 - 0.5))))) for share in range(256)]
THUMBNAIL_SIDE = 160  # pixels


class Result(NamedTuple):
    """What a format writes of one picture.

    Attributes:
        pixels: uint8 ``(3, H, W)`` RGB.
        mask: Class ids, uint8 ``(H, W)``, in the original frame.
        box_in_original: float32 ``(4,)``, xyxy pixels of the picture; None where no box was used.
        flags: Words that say why the result deserves a look; mostly none.
    """

    pixels: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    box_in_original: Tensor | None = None
    flags: Sequence[str] = ()


class PackedMasks(Sequence[NDArray[np.uint8]]):
    """Masks of a file's pictures, class ids uint8 ``(H, W)``, a hundredth of their size until one is asked for.

    Args:
        packed: Of :meth:`pack`.
    """

    def __init__(self, packed: Sequence[bytes]) -> None:
        self._packed = packed

    @staticmethod
    def pack(mask: NDArray[np.uint8]) -> bytes:
        """One mask, packed."""
        height, width = mask.shape
        return struct.pack("<II", height, width) + zlib.compress(mask.tobytes(), 1)

    def __len__(self) -> int:
        """How many pictures."""
        return len(self._packed)

    def __getitem__(self, index: Any) -> Any:
        """One mask; a slice is a sequence of masks."""
        if isinstance(index, slice):
            return PackedMasks(self._packed[index])
        packed = self._packed[index]
        return np.frombuffer(zlib.decompress(packed[8:]), np.uint8).reshape(struct.unpack("<II", packed[:8]))


class Labels(NamedTuple):
    """What the classes of a mask mean and what drew them, for formats that say so.

    Attributes:
        segments: Meaning of class 1, 2, ...: label, and the codes of category and type as (scheme, value, meaning).
        algorithm: Name of what segmented.
        version: Its version.
        weights: sha256 of its weights by role.
        deidentified_with: Salt of the identifiers that take the place of the source's; None keeps patient and study.
    """

    segments: Sequence[Mapping[str, Any]]
    algorithm: str
    version: str
    weights: Mapping[str, str]
    deidentified_with: str | None = None


class FileResult(NamedTuple):
    """What a format writes of a whole file.

    Attributes:
        source: The image file.
        image_format: Its format, for example ``"DICOM"``.
        masks: Of its pictures in order, class ids uint8 ``(H, W)``.
        measured: Measurements of its pictures in order, by column.
        slice_axis: Axis along which a volume was cut, as for :func:`amsam_med.data.readers.open_image`.
        labels: What the classes mean.
        written: Results of the file that were written before this one, by format.
    """

    source: Path
    image_format: str
    masks: PackedMasks
    measured: Sequence[Mapping[str, float | None]]
    slice_axis: SliceAxis
    labels: Labels
    written: Mapping[str, Path]


class Format(NamedTuple):
    """A kind of result file; written for each picture, or once for a file with all its pictures.

    Attributes:
        folder: Sub-folder of the output folder.
        column: Column of ``results.csv`` that names the file.
        ending: What follows the name in the file's.
        of_picture: Writes one picture's result, whole or not at all.
        of_file: Writes that of a whole file.
        sources: Formats of the image files that it can be written for; empty for all.
    """

    folder: str
    column: str
    ending: str
    of_picture: Callable[[Result, Path], None] | None = None
    of_file: Callable[[FileResult, Path], None] | None = None
    sources: tuple[str, ...] = ()

    def file(self, name: str) -> str:
        """Path of the result with this sub-folder and stem, relative to the output folder."""
        return f"{self.folder}/{name}{self.ending}"

    def fits(self, image_format: str) -> bool:
        """Whether there is such a result of an image file of this format."""
        return not self.sources or image_format in self.sources


def write_mask_png(mask: NDArray[np.uint8] | Tensor, path: str | PathLike[str]) -> None:
    """Write class ids, uint8 ``(H, W)``, as 8-bit grey PNG.

    One class is written as ISIC does, 0 and 255; with ids above 1 the file holds the ids themselves.

    Raises:
        DataError: The mask has another shape or type.
    """
    ids = _checked_mask(mask)
    values = ids if ids.max(initial=0) > 1 else ids * np.uint8(255)
    with atomic_path(path) as lent:
        # Runs of one value are all there is to compress.
        PIL.Image.fromarray(values).save(lent, format="PNG", compress_type=zlib.Z_RLE)


def write_contour(mask: NDArray[np.uint8], path: str | PathLike[str]) -> None:
    """Write the outlines of class ids, uint8 ``(H, W)``, as GeoJSON: a MultiPolygon a class, with its holes.

    Coordinates are pixels of the picture, x to the right and y down; the first pixel covers 0 to 1. Outlines run
    half-way between the centres of the last pixels inside and the first ones outside, as scikit-image's
    ``find_contours`` draws them. QuPath reads such files.
    """
    ids = _checked_mask(mask)
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "MultiPolygon", "coordinates": _polygons(ids == class_id)},
            "properties": {"class": class_id, "area_px": int(np.count_nonzero(ids == class_id))},
        }
        for class_id in _classes(ids)
    ]
    with atomic_path(path) as lent:
        lent.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")


def write_nifti(result: FileResult, path: str | PathLike[str]) -> None:
    """Write the class ids of a whole file as NIfTI, uint8.

    Of a NIfTI image the result has its shape, affine and units, so that both lie on each other in a viewer; of others
    it is ``(W, H, number of pictures)`` with a pixel as unit.

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
    with atomic_path(path) as lent:
        lent.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))  # the same bytes every time


def thumbnail(pixels: NDArray[np.uint8], mask: NDArray[np.uint8], side: int = THUMBNAIL_SIDE) -> bytes:
    """A small JPEG of a picture with the outline of what was found.

    Args:
        pixels: uint8 ``(3, h, w)`` RGB: the picture at any size, also squashed.
        mask: Class ids, uint8 ``(H, W)``, in the picture's frame, whose shape the thumbnail gets.
        side: Length of its longer side in pixels, at most.
    """
    height, width = mask.shape
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = PIL.Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    small = picture.resize(size, PIL.Image.Resampling.BILINEAR, reducing_gap=1.0)
    ids = np.asarray(PIL.Image.fromarray(mask).resize(size, PIL.Image.Resampling.NEAREST))
    canvas = np.array(small)
    for class_id in _classes(ids):
        inside = np.pad(ids == class_id, 1)
        core = inside[1:-1, 1:-1] & inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        canvas[(ids == class_id) & ~core] = OUTLINE_COLOURS[(class_id - 1) % len(OUTLINE_COLOURS)]
    stream = io.BytesIO()
    PIL.Image.fromarray(canvas).save(stream, format="JPEG", quality=80, subsampling=0)  # thin lines keep their colour
    return stream.getvalue()


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
        flags: Words that say why the result deserves a look.

    Raises:
        DataError: Image and mask do not fit together.
    """
    pixels, ids = np.asarray(image), _checked_mask(mask)
    if pixels.shape != (3, *ids.shape) or pixels.dtype != np.uint8:
        got = f"{pixels.dtype} {pixels.shape} and a mask {ids.shape}"
        raise DataError(f"An overlay needs a uint8 image (3, H, W) and a mask (H, W) of its size; got {got}")
    line_width = max(1, round(max(ids.shape) / _PIXELS_PER_LINE_WIDTH))
    canvas = np.array(pixels.transpose(1, 2, 0), order="C")
    for class_id in _classes(ids):
        _draw_outline(canvas, ids == class_id, OUTLINE_COLOURS[(class_id - 1) % len(OUTLINE_COLOURS)], line_width)
    picture = PIL.Image.fromarray(canvas)
    if box is not None:
        _draw_box(picture, [float(edge) for edge in box], max(1, line_width // 2), is_dashed=bool(flags))
    if flags:
        _draw_words(picture, ", ".join(flags))
    with atomic_path(path) as lent:
        picture.save(lent, quality=92, compress_level=3)  # JPEG takes the one, PNG the other


class SaveMaskd(MapTransform):
    """:func:`write_mask_png` for an item, as ``<output_dir>/<stem of the image>_segmentation.png``.

    Args:
        keys: Key of the mask, class ids uint8 ``(1, H, W)``.
        output_dir: Folder for the masks; made if missing.
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


def _classes(ids: NDArray[np.uint8]) -> list[int]:
    """The classes that a mask holds, without the background."""
    largest = int(ids.max(initial=0))
    return [class_id for class_id in range(1, largest + 1) if class_id == largest or (ids == class_id).any()]


def _polygons(is_object: NDArray[np.bool_]) -> list[list[list[list[float]]]]:
    """The parts of an object: each its outer ring and those of its holes, (x, y) in pixels, closed."""
    polygons = []
    parts, count = label(is_object, return_num=True, connectivity=1)  # type: ignore[no-untyped-call]
    for number, (rows, columns) in enumerate(find_objects(parts, max_label=count), start=1):
        part = np.pad(parts[rows, columns] == number, 1)
        contours: list[NDArray[np.float64]] = find_contours(part, 0.5)  # type: ignore[no-untyped-call]
        shift = np.array([columns.start - 0.5, rows.start - 0.5])  # of the padding, and from centres to edges
        rings = [(contour[:, ::-1] + shift).round(2).tolist() for contour in contours]
        outer = max(range(len(rings)), key=lambda index: np.ptp(contours[index], axis=0).prod())
        polygons.append([rings[outer], *(ring for index, ring in enumerate(rings) if index != outer)])
    return polygons


def _draw_outline(canvas: NDArray[np.uint8], is_object: NDArray[np.bool_], colour: Colour, line_width: int) -> None:
    """A line half inside and half outside the object, on uint8 ``(H, W, 3)``; closed at the canvas's edge, too."""
    margin = 2 * line_width
    rows, columns = (np.flatnonzero(is_object.any(axis=axis)) for axis in (1, 0))
    top, left = int(rows[0]), int(columns[0])
    framed = np.pad(is_object[top : rows[-1] + 1, left : columns[-1] + 1], margin)
    # Where a window of twice the line's width is half object and half not, there is the border.
    share = PIL.Image.fromarray(framed.view(np.uint8) * np.uint8(255)).filter(PIL.ImageFilter.BoxBlur(line_width))
    alpha = np.array(share.point(_OUTLINE_ALPHA))
    around = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    alpha[framed & ~np.pad(around, 1)] = 255  # the border itself: all that there is of an object too thin for a line
    above, before = max(0, margin - top), max(0, margin - left)  # what the margin has beyond the canvas
    drawn = canvas[top + above - margin :, left + before - margin :]
    alpha = alpha[above:, before:][: drawn.shape[0], : drawn.shape[1]]
    at = np.nonzero(alpha)
    share_of_line = alpha[at][:, None] / 255
    drawn[at] = np.rint(share_of_line * colour + (1 - share_of_line) * drawn[at])


def _draw_box(picture: PIL.Image.Image, box_in_original: list[float], line_width: int, is_dashed: bool) -> None:
    x1, y1, x2, y2 = box_in_original
    right, bottom = max(x1, min(x2, picture.width) - 1), max(y1, min(y2, picture.height) - 1)  # last pixels inside
    draw, edges = PIL.ImageDraw.Draw(picture), (max(x1, 0), max(y1, 0), right, bottom)
    if not is_dashed:
        draw.rectangle(edges, outline=BOX_COLOUR, width=line_width)
        return
    frame = PIL.Image.new("L", picture.size)
    PIL.ImageDraw.Draw(frame).rectangle(edges, outline=255, width=line_width)
    rows, columns = np.indices((picture.height, picture.width), sparse=True)
    is_dash = (rows + columns) // (_DASH_WIDTHS * line_width) % 2 == 0  # along either axis, dash and gap alternate
    draw.bitmap((0, 0), PIL.Image.fromarray(np.asarray(frame) * is_dash.astype(np.uint8)), fill=BOX_COLOUR)


def _draw_words(picture: PIL.Image.Image, words: str) -> None:
    """Words on a strip at the bottom, as large as fits."""
    size = max(_SMALLEST_WORDS, picture.height / 24)
    wanted = PIL.ImageFont.load_default(size).getlength(words)
    size = max(_SMALLEST_WORDS, size * min(1, 0.96 * picture.width / wanted))
    draw, font, top = PIL.ImageDraw.Draw(picture), PIL.ImageFont.load_default(size), picture.height - 1.5 * size
    draw.rectangle((0, top, picture.width, picture.height), fill=FLAG_COLOUR)
    draw.text((picture.width / 2, top + 0.75 * size), words, fill=BOX_COLOUR, font=font, anchor="mm")


def _write_overlay(result: Result, path: Path) -> None:
    write_overlay(result.pixels, result.mask, path, result.box_in_original, result.flags)


def _write_dicom_seg(result: FileResult, path: Path) -> None:
    from amsam_med.data.dicom_seg import write_dicom_seg

    write_dicom_seg(result.source, result.masks, path, *dicom_labels(result.labels), secret=_secret(result.labels))


def _write_dicom_sr(result: FileResult, path: Path) -> None:
    from amsam_med.data.dicom_sr import MeasuredObject, dicom_measurements, write_dicom_sr

    objects = [
        MeasuredObject(dicom_measurements(measured), frame=frame) for frame, measured in enumerate(result.measured, 1)
    ]
    segments, algorithm = dicom_labels(result.labels)
    segmentation = result.written.get("dicom-seg")
    write_dicom_sr(result.source, objects, path, segments, algorithm, segmentation, secret=_secret(result.labels))


def dicom_labels(labels: Labels) -> tuple[list[SegmentMeaning], Algorithm]:
    """What classes mean and what drew them, in DICOM's terms."""
    from pydicom.sr.coding import Code

    from amsam_med.data.dicom_results import Algorithm, SegmentMeaning

    def code(scheme: str, value: str, meaning: str) -> Code:
        return Code(value, scheme, meaning)

    segments = [SegmentMeaning(one["label"], code(*one["category"]), code(*one["type"])) for one in labels.segments]
    network = labels.weights.get("model") or labels.weights.get("adapter", "")
    others = {f"{role}_sha256": digest for role, digest in labels.weights.items() if digest != network}
    return segments, Algorithm(labels.version, network, others)


def _secret(labels: Labels) -> bytes | None:
    return None if labels.deidentified_with is None else labels.deidentified_with.encode()


FORMATS = {
    "png": Format("masks", "mask_file", MASK_ENDING, lambda result, path: write_mask_png(result.mask, path)),
    "overlay": Format("overlays", "overlay_file", "_overlay.jpg", _write_overlay),
    "contour": Format(
        "contours", "contour_file", "_contour.geojson", lambda result, path: write_contour(result.mask, path)
    ),
    "nifti": Format("nifti", "nifti_file", "_segmentation.nii.gz", of_file=write_nifti),
    "dicom-seg": Format("dicom_seg", "dicom_seg_file", "_seg.dcm", of_file=_write_dicom_seg, sources=("DICOM",)),
    "dicom-sr": Format("dicom_sr", "dicom_sr_file", "_sr.dcm", of_file=_write_dicom_sr, sources=("DICOM",)),
}
"""What a folder run can write, by the name that users give; written in this order."""
