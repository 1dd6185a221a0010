"""DICOM files of one or more frames, decoded to the pictures that a viewer shows.

pydicom decodes them frame by frame; MONAI's own DICOM readers return colour images in a wrong shape or refuse them.
Only attributes that describe pixels are parsed, so names, dates and identifiers of a patient never enter the program.
No attribute's value is quoted in an error: in a damaged file it might be one of those.

Colour is converted to RGB, using the upper 8 bits; palettes are looked up. Grey values pass the modality transform and
the given window, by default the file's first one; above 8 bits without a window, each frame is shown from its smallest
to its largest value. MONOCHROME1 is inverted. Transforms and windows in functional groups are used if all frames share
them. ICC profiles and overlays are not applied.
"""

from __future__ import annotations

import io
import math
import struct
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import as_pixel_options
from pydicom.tag import Tag
from pydicom.uid import (
    AllTransferSyntaxes,
    DeflatedExplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from amsam_med.boxes import Size
from amsam_med.data.decoder_process import decode_by_gdcm
from amsam_med.data.dicom.header import PixelLocation, read_header, read_syntax, starts_as_dicom, without_quotes
from amsam_med.data.pictures import count_scans, refuse_endless_scans, to_uint8, window_range
from amsam_med.data.unpacking import inflated, unpacked
from amsam_med.errors import DataError
from amsam_med.opening import open_regular

COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", "YBR_PARTIAL_422")
GREY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
DEFLATED_LIMIT = 1 << 30
"""The largest deflated file, in bytes as it is unpacked."""

_SUFFIXES = (".dcm", ".dicom")
_READ_LIMIT = 400_000  # read calls per frame, each of which may create an object of a kilobyte
_SEGMENTED_LIMIT = 1 << 16  # entries of an unpacked palette
_UNDECODABLE = "a DICOM frame that is damaged, or of a kind that no decoder here knows. Export it again, or as PNG"

_GROUPS = _SHARED_GROUPS, _FRAME_GROUPS = tuple(
    int(Tag(f"{whose}FunctionalGroupsSequence")) for whose in ("Shared", "PerFrame")
)
_PALETTE_COLOURS = ("Red", "Green", "Blue")
_PIXEL_ATTRIBUTES = [
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "ExtendedOffsetTable", "PixelSpacing"),
    *("ExtendedOffsetTableLengths", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "BurnedInAnnotation"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in _PALETTE_COLOURS),
    *(f"{colour}PaletteColorLookupTableData" for colour in _PALETTE_COLOURS),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in _PALETTE_COLOURS),
]
_WANTED = frozenset(map(int, map(Tag, _PIXEL_ATTRIBUTES)))
_PIXEL_DATA = Tag("PixelData")
_START_OF_FRAME = frozenset({*range(0xFFC0, 0xFFD0), 0xFFF7}) - {0xFFC4, 0xFFC8, 0xFFCC}
_J2K_START = b"\xff\x4f\xff\x51"


def is_named_dicom(path: Path) -> bool:
    """Whether ``path`` has a suffix of DICOM; old files lack the prefix "DICM" and have no other mark."""
    return path.suffix.lower() in _SUFFIXES


def is_dicom(path: Path) -> bool:
    """Whether ``path`` has a suffix of DICOM or begins as DICOM files do."""
    if is_named_dicom(path):
        return True
    try:
        with open_regular(path) as file:
            return starts_as_dicom(file)
    except (OSError, DataError):
        return False


class DicomFile:
    """An open DICOM file; see :class:`amsam_med.data.readers.ImageFile` for what the attributes mean.

    ``spacing_mm`` is PixelSpacing, or that of the functional groups (of the first frame, if frames have their own).
    ImagerPixelSpacing and NominalScannedPixelSpacing are not used: they are distances on a detector or on film, where
    the patient's image is magnified.

    Args:
        file: At its start; it must stay open while this object is used. A deflated file is unpacked when the first
            frame is requested.
        window: Centre and width of the grey values to show, after the modality transform.

    Raises:
        DataError: The header is damaged, or the file holds no picture.
    """

    format = "DICOM"
    part = "frame"
    bytes_per_pixel = 32  # upper bound of the memory while decoding; measured: 5 for 8-bit grey, 27 for JPEG

    def __init__(self, file: IO[bytes], window: tuple[float, float] | None = None) -> None:
        self._window = window
        self._packed = file
        self._copy: IO[bytes] | None = None
        try:
            with without_quotes("a DICOM header that cannot be read; damaged, or no DICOM. Copy or export it again"):
                self._open(file)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Delete the unpacked copy."""
        if self._copy is not None:
            self._copy.close()

    @property
    def is_annotated(self) -> bool:
        """Whether the file says that text is burned into its pixels."""
        return str(self._dataset.get("BurnedInAnnotation") or "").strip().upper() == "YES"

    def size(self, index: int) -> Size:
        """(height, width) of every frame."""
        return self._rows, self._columns

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """A frame as uint8 ``(H, W, 3)`` RGB.

        Raises:
            DataError: It is damaged, or there is no decoder for it.
        """
        with without_quotes(_UNDECODABLE):
            self._refuse_undecodable()
            if self._kind in COLOUR:
                return _upper_bits(self._decoded(index, samples=3), self._dataset.BitsStored)
            stored = self._decoded(index, samples=1)
            if self._kind == PALETTE:
                return self._looked_up(stored)
            return np.repeat(self._grey(stored)[..., None], 3, axis=-1)

    def _open(self, file: IO[bytes]) -> None:
        header = read_header(file, _WANTED, first_items=_GROUPS)
        self._file, self._syntax, self._dataset = _BoundedFile(file), header.syntax, header.dataset
        self._share_groups()
        self._rows, self._columns = (int(self._dataset.get(name) or 0) for name in ("Rows", "Columns"))
        if not self._rows or not self._columns:
            raise DataError("this DICOM file holds no image (no Rows or Columns). Give a file with an image")
        self._kind = str(self._dataset.get("PhotometricInterpretation"))
        self.count = int(self._dataset.get("NumberOfFrames") or 1)
        self.spacing_mm = self._spacing()
        self._find_pixel_data(header.pixels)
        self._refuse_absurd_count()

    def _share_groups(self) -> None:
        """Copy shared transforms and windows of enhanced files to where single-frame files have them."""
        shared = _first_item(self._dataset, _SHARED_GROUPS)
        for group in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in (shared.get(group) or [])[:1]:
                for element in item:
                    if element.tag in _WANTED and element.tag not in self._dataset:
                        self._dataset.add(element)

    def _spacing(self) -> tuple[float, float] | None:
        sources = (self._dataset, _first_item(self._dataset, _SHARED_GROUPS), _first_item(self._dataset, _FRAME_GROUPS))
        for source in sources:
            measures = (source.get("PixelMeasuresSequence") or [source])[0]
            spacing = _two_lengths(measures.get("PixelSpacing"))
            if spacing is not None:
                return spacing
        return None

    def _find_pixel_data(self, pixels: PixelLocation | None) -> None:
        """Store where the value of PixelData begins and how long it is."""
        if pixels is None:
            raise DataError("this DICOM file carries no pixel data. Give a file that holds an image")
        if pixels.tag != _PIXEL_DATA:
            raise DataError("this DICOM file holds real numbers instead of a picture. Export it with whole numbers")
        self._pixel_vr, self._start = pixels.vr, pixels.start
        if self._syntax == DeflatedExplicitVRLittleEndian:
            self._length = pixels.length or 0
            return
        left = self._file.length - self._start  # a file that was cut off has less than its header says
        self._length = left if pixels.length is None else min(pixels.length, left)

    def _content(self) -> _BoundedFile:
        """The file, or its unpacked copy if it is deflated."""
        if self._syntax == DeflatedExplicitVRLittleEndian and self._copy is None:
            end = self._start + self._length
            if end > DEFLATED_LIMIT:
                raise DataError(f"unpacks to {end:,} bytes, at most {DEFLATED_LIMIT:,}. Give it uncompressed")
            read_syntax(self._packed)  # leaves the file where its deflated part begins
            self._copy = unpacked(inflated(self._packed), end)
            self._file = _BoundedFile(self._copy)
        return self._file

    def _refuse_absurd_count(self) -> None:
        is_encapsulated = self._syntax in AllTransferSyntaxes and self._syntax.is_encapsulated
        # Least bytes per frame: a fragment's tag and length, or the pixels' bits, a third less in YBR_FULL_422.
        samples, bits = (int(self._dataset.get(name) or 1) for name in ("SamplesPerPixel", "BitsAllocated"))
        pixel_bits = samples * bits * 2 // 3 if self._kind == "YBR_FULL_422" else samples * bits
        least = 8 if is_encapsulated else math.ceil(self._rows * self._columns * max(pixel_bits, 1) / 8)
        if self.count < 1 or self.count * least > self._length:
            raise DataError(
                f"{self.count:,} frames of {self._columns} x {self._rows} pixels are promised, and the file is too "
                "short for them; it was cut off, or damaged. Copy or export it again"
            )

    def _refuse_undecodable(self) -> None:
        try:
            if get_decoder(self._syntax).is_available:
                return
        except NotImplementedError:
            pass
        name = self._syntax.name if self._syntax in AllTransferSyntaxes else "its transfer syntax"
        raise DataError(f"no decoder for {name}. More come with: pip install 'amsam-med[dicom]'; or export it as PNG")

    def _decoded(self, index: int, samples: int) -> NDArray[np.generic]:
        """Stored values ``(H, W)`` or RGB ``(H, W, 3)``."""
        if self._kind not in (*COLOUR, *GREY, PALETTE) or self._dataset.get("SamplesPerPixel") != samples:
            known = ", ".join((*COLOUR, PALETTE, *GREY))
            raise DataError(f"DICOM colours of a kind that is not known; expected one of {known}. Export it as PNG")
        options = {**as_pixel_options(self._dataset), "pixel_keyword": "PixelData", "pixel_vr": self._pixel_vr}
        content = self._content()
        content.restart(self._start)
        if self._syntax.is_encapsulated:
            pixels, kind = self._decompressed(content, index, options)
        else:
            pixels, kind = _values_and_kind(get_decoder(self._syntax), cast(Any, content), index=index, **options)
        if samples == 3 and kind != "RGB":
            raise DataError("DICOM colours that are not brought to RGB. Export it as PNG")
        return pixels

    def _decompressed(
        self, content: _BoundedFile, index: int, options: dict[str, Any]
    ) -> tuple[NDArray[np.generic], str]:
        offsets = options.pop("extended_offsets", None)
        coded = get_frame(cast(Any, content), index, extended_offsets=offsets, number_of_frames=self.count)
        self._refuse_other_size(coded)
        options["number_of_frames"] = 1  # decoders get a file of this frame alone
        decoder = get_decoder(self._syntax)
        ours = [plugin for plugin in decoder.available_plugins if plugin != "gdcm"]
        for plugin in ours:
            with suppress(Exception):  # the next decoder may support what this one does not
                return _values_and_kind(decoder, encapsulate([coded]), index=0, decoding_plugin=plugin, **options)
        if "gdcm" not in decoder.available_plugins or (ours and self._syntax not in JPEG2000TransferSyntaxes):
            # For other syntaxes gdcm supports no more than they do, except that it decodes the rest of damaged frames.
            raise DataError(_UNDECODABLE)
        return decode_by_gdcm(coded, self._syntax, options)

    def _refuse_other_size(self, coded: bytes) -> None:
        """Refuse a frame whose own header gives another size than the file's: decoders allocate memory by it."""
        if self._syntax == RLELossless:  # RLE frames have no size of their own
            return
        # Without the end marker, pyjpegls takes many seconds and gigabytes.
        is_cut = self._syntax in JPEGLSTransferSyntaxes and not coded[-16:].rstrip(b"\0").endswith(b"\xff\xd9")
        if is_cut or _coded_size(coded) != (self._rows, self._columns, self._dataset.SamplesPerPixel):
            raise DataError("a DICOM frame that is damaged, or of another size than the header says. Export it again")
        if coded.startswith(b"\xff\xd8"):
            refuse_endless_scans(count_scans(coded))

    def _looked_up(self, stored: NDArray[np.generic]) -> NDArray[np.uint8]:
        _refuse_endless_palette(self._dataset)
        colours = apply_color_lut(_all_values(stored.dtype), self._dataset)[..., :3]
        looked_up: NDArray[np.uint8] = _upper_bits(colours, bits=8 * colours.dtype.itemsize)[_as_index(stored)]
        return looked_up

    def _grey(self, stored: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Grey ``(H, W)``. Up to 16 bits, every possible value is transformed once, and pixels are looked up."""
        is_short = stored.dtype.itemsize <= 2
        values = self._transformed(_all_values(stored.dtype) if is_short else stored)
        # Only values that occur in the frame may set the range from smallest to largest.
        present = values
        if is_short:
            is_present = np.zeros(values.shape, bool)
            is_present[_as_index(stored)] = True
            present = values[is_present]
        grey = to_uint8(values, *self._shown_range(present, is_unsigned=values.dtype.kind == "u"))
        grey = 255 - grey if self._kind == "MONOCHROME1" else grey
        shown: NDArray[np.uint8] = grey[_as_index(stored)] if is_short else grey
        return shown

    def _transformed(self, stored: NDArray[np.generic]) -> NDArray[np.generic]:
        with np.errstate(all="ignore"):
            values = apply_modality_lut(stored, self._dataset)
            shown = values if self._window else apply_voi_lut(values, self._dataset)
        return cast(NDArray[np.generic], shown)

    def _shown_range(self, present: NDArray[np.generic], is_unsigned: bool) -> tuple[float, float]:
        """The values of black and white after the VOI transform."""
        dataset = self._dataset
        if self._window is not None:
            return window_range(self._window)
        if dataset.get("VOILUTSequence"):
            return 0.0, 2.0 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
        if dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
            # The ends of the window function, whichever of DICOM's functions it is, found by values far outside.
            with np.errstate(over="ignore"):  # exp() of a huge number, if it is a sigmoid
                black, white = apply_voi_lut(np.array([-1e12, 1e12]), dataset)
            return float(black), float(white)
        if is_unsigned and dataset.BitsStored <= 8:
            return 0.0, 2.0**dataset.BitsStored - 1
        return float(present.min()), float(present.max())


class _BoundedFile:
    """A file that allocates no more memory than it has bytes, and limits the number of read calls.

    pydicom allocates what a damaged length promises, and makes an object of every fragment.
    """

    def __init__(self, file: IO[bytes]) -> None:
        place = file.tell()
        self._file = file
        self.length = file.seek(0, io.SEEK_END)
        self.restart(place)
        self.seek, self.tell = file.seek, file.tell

    def restart(self, place: int) -> None:
        """Seek to ``place`` and reset the count of read calls."""
        self._file.seek(place)
        self._left = _READ_LIMIT

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes."""
        self._left -= 1
        if self._left < 0:
            raise DataError("a DICOM file of too many pieces to read; it is damaged, or not a picture. Export it anew")
        rest = max(self.length - self._file.tell(), 0)
        return self._file.read(rest if size < 0 else min(size, rest))


def _first_item(dataset: Dataset, sequence: int) -> Dataset:
    """The first item of a sequence; empty where there is none."""
    items = dataset.get(sequence)
    return items.value[0] if items is not None and items.value else Dataset()


def _values_and_kind(decoder: Decoder, source: Any, **options: Any) -> tuple[NDArray[np.generic], str]:
    """Decoded values, and their photometric interpretation."""
    pixels, properties = decoder.as_array(source, **options)
    return pixels, str(properties["photometric_interpretation"])


def _two_lengths(value: Any) -> tuple[float, float] | None:
    """A pair of positive finite lengths; None for any other value."""
    try:
        row, column = (float(length) for length in value)
    except (TypeError, ValueError):
        return None
    return (row, column) if 0 < row < math.inf and 0 < column < math.inf else None


def _coded_size(coded: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and samples in a frame's own header; None if it is not JPEG of any kind.

    Frame headers: ITU-T T.81 B.2.2 (JPEG, and T.87 for JPEG-LS); ITU-T T.800 A.5.1 (JPEG 2000 and HTJ2K).
    """
    if coded.startswith(b"\xff\xd8"):
        place = 2
        while place + 10 <= len(coded):
            marker, length = struct.unpack_from(">HH", coded, place)
            if marker in _START_OF_FRAME:
                rows, columns, samples = struct.unpack_from(">HHB", coded, place + 5)
                return rows, columns, samples
            place += 1 if marker == 0xFFFF else 2 + length
        return None
    start = coded.find(_J2K_START, 0, 4096)  # some programs wrap the code stream into a JP2 file
    if start < 0 or start + 42 > len(coded):
        return None
    right, bottom, left, top = struct.unpack_from(">4L", coded, start + 8)
    return bottom - top, right - left, struct.unpack_from(">H", coded, start + 40)[0]


def _refuse_endless_palette(dataset: Dataset) -> None:
    """Refuse a segmented palette that unpacks to more entries than a palette can have.

    https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.7.9.2.html
    """
    for colour in _PALETTE_COLOURS:
        data = dataset.get(f"Segmented{colour}PaletteColorLookupTableData") or b""
        wide = dataset[f"{colour}PaletteColorLookupTableDescriptor"].value[2] > 8
        order = "<" if dataset.original_encoding[1] else ">"
        words = np.frombuffer(data, f"{order}u2" if wide else "u1", len(data) // (2 if wide else 1))
        place, entries = 0, 0
        while place + 1 < words.size:
            kind, length = int(words[place]), int(words[place + 1])
            entries += length
            if kind > 1 or entries > _SEGMENTED_LIMIT:  # kind 2 repeats other segments, and so can grow without bound
                raise DataError("a DICOM palette that is damaged, or packed as none is read. Export it as PNG")
            place += 2 + (length if kind == 0 else 1)


def _all_values(stored: np.dtype[np.generic]) -> NDArray[np.generic]:
    """Every value of a type of up to 16 bits, in the order of :func:`_as_index`."""
    unsigned = np.dtype(f"u{stored.itemsize}")
    return np.arange(1 << 8 * stored.itemsize).astype(unsigned).view(stored.newbyteorder("="))


def _as_index(stored: NDArray[np.generic]) -> NDArray[Any]:
    native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    return native.view(np.dtype(f"u{stored.dtype.itemsize}"))


def _upper_bits(pixels: NDArray[np.generic], bits: int) -> NDArray[np.uint8]:
    as_uint8: NDArray[np.uint8] = np.right_shift(cast(Any, pixels), max(bits - 8, 0)).astype(np.uint8)
    return as_uint8
