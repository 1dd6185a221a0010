"""A DICOM file with one frame, as the picture a viewer shows.

pydicom decodes; MONAI's own DICOM readers give colour images in a wrong shape or refuse them. Only the attributes
that describe pixels are parsed, so names, dates and identifiers of a patient never enter the program.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut

from amsam_med.boxes import Size
from amsam_med.errors import DataError

COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", "YBR_PARTIAL_422")
GREY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
_SUFFIXES = (".dcm", ".dicom")
_PIXEL_ATTRIBUTES = [
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "ExtendedOffsetTable"),
    *("ExtendedOffsetTableLengths", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "RedPaletteColorLookupTableDescriptor"),
    *("GreenPaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableDescriptor"),
    *("RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData"),
    *("SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData"),
    *("SegmentedBluePaletteColorLookupTableData", "PixelData"),
]


def is_dicom(path: Path) -> bool:
    """Whether ``path`` is named as DICOM, or has no suffix and starts as DICOM does."""
    if path.suffix.lower() in _SUFFIXES:
        return True
    if path.suffix.strip(".").isalpha() or not path.is_file():  # "1.2.840.113" has the suffix ".113"
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def dicom_size(path: Path) -> Size:
    """(height, width) of the picture in ``path``, from the header alone.

    Raises:
        DataError: ``path`` has several frames or no picture.
    """
    return _checked_size(path, pydicom.dcmread(path, specific_tags=_PIXEL_ATTRIBUTES[:3], stop_before_pixels=True))


def read_dicom(path: Path) -> NDArray[np.uint8]:
    """The picture in ``path`` as uint8 ``(H, W, 3)`` RGB.

    Colour is brought to RGB, palettes are looked up, grey values pass the modality transform and the first VOI window
    (or, above 8 bits without a window, are stretched from their smallest to their largest), and MONOCHROME1 is
    inverted.

    Raises:
        DataError: ``path`` has several frames, no picture, or a kind of colour that is not known.
    """
    dataset = pydicom.dcmread(path, specific_tags=list(_PIXEL_ATTRIBUTES))
    _checked_size(path, dataset)
    if "PixelData" not in dataset:
        raise DataError(f"{path.name}: this DICOM file carries no pixel data. Give a file that holds an image")
    _refuse_undecodable(path, dataset)
    kind = str(dataset.get("PhotometricInterpretation"))
    if kind in COLOUR:
        return _colour(dataset.pixel_array, bits=dataset.BitsStored)
    if kind == PALETTE:
        looked_up = apply_color_lut(dataset.pixel_array, dataset)
        return _colour(looked_up, bits=8 * looked_up.dtype.itemsize)
    if kind in GREY:
        return np.repeat(_grey(dataset)[..., None], 3, axis=-1)
    known = ", ".join((*COLOUR, PALETTE, *GREY))
    raise DataError(f"{path.name}: DICOM colours of the kind {kind!r} are not known; expected one of {known}")


def to_uint8(values: NDArray[np.generic], low: float, high: float) -> NDArray[np.uint8]:
    """Map ``low..high`` of an array of any shape linearly to 0..255, cutting off what lies outside."""
    if high == low:
        return np.zeros(values.shape, np.uint8)
    shares = (np.nan_to_num(values.astype(np.float64), nan=low) - low) / (high - low)
    rounded: NDArray[np.uint8] = np.rint(255 * shares.clip(0, 1)).astype(np.uint8)
    return rounded


def _checked_size(path: Path, dataset: Dataset) -> Size:
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise DataError(
            f"{path.name}: this DICOM file holds {frames} frames; one is expected. Export the frame you need as a file"
        )
    if not dataset.get("Rows") or not dataset.get("Columns"):
        raise DataError(f"{path.name}: this DICOM file holds no image (no Rows or Columns). Give a file with an image")
    return int(dataset.Rows), int(dataset.Columns)


def _refuse_undecodable(path: Path, dataset: Dataset) -> None:
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None or not get_decoder(syntax).is_available:
        name = f"for {syntax.name}" if syntax else "as the file names no transfer syntax"
        raise DataError(
            f"{path.name}: no decoder {name}. More come with: pip install 'amsam-med[dicom]'; or export it as PNG"
        )


def _colour(pixels: NDArray[np.generic], bits: int) -> NDArray[np.uint8]:
    as_uint8: NDArray[np.uint8] = np.right_shift(pixels, max(bits - 8, 0)).astype(np.uint8)
    return as_uint8


def _grey(dataset: Dataset) -> NDArray[np.uint8]:
    values = apply_modality_lut(dataset.pixel_array, dataset)
    shown = apply_voi_lut(values, dataset)
    grey = to_uint8(shown, *_shown_range(shown, dataset))
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _shown_range(shown: NDArray[np.generic], dataset: Dataset) -> tuple[float, float]:
    """The values that mean black and white after the VOI transform."""
    if dataset.get("VOILUTSequence"):
        return 0.0, 2.0 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    if dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        with np.errstate(over="ignore"):  # a sigmoid window meets exp() of a huge number
            black, white = apply_voi_lut(np.array([-1e12, 1e12]), dataset)
        return float(black), float(white)
    if shown.dtype.kind == "u" and dataset.BitsStored <= 8:
        return 0.0, 2.0**dataset.BitsStored - 1
    return float(shown.min()), float(shown.max())
