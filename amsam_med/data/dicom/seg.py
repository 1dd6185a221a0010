"""Masks as a DICOM Segmentation: one bit per pixel, and a frame for every class and every frame of the image.

highdicom writes the object. For photographs and captures, which have no position in the patient, it supports only a
single frame. There it makes everything but the frames, which are added here, each referring to its frame of the source.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from amsam_med.data.dicom.shared import (
    PRODUCT,
    Algorithm,
    SegmentMeaning,
    frames_of,
    header_faults,
    highdicom,
    identifiers,
    plain_copy,
    read_header,
    restore_class,
    write_result,
)
from amsam_med.data.outlines import OUTLINE_COLOURS
from amsam_med.data.quiet import quiet_decoders
from amsam_med.errors import DataError

_LONGEST_LABEL = 64  # characters of the value representation LO
_PLACEHOLDER_SIDE = 8  # pixels: side of the placeholder frame that highdicom gets, replaced afterwards
_MEASURES = ("PixelSpacing", "SliceThickness")
_KIND = "segmentation"


@quiet_decoders()
def write_dicom_seg(
    source: Path,
    masks: NDArray[np.uint8] | Iterable[NDArray[np.uint8]],
    path: Path,
    segments: Sequence[SegmentMeaning],
    algorithm: Algorithm,
    secret: bytes | None = None,
) -> None:
    """Write masks as a DICOM Segmentation that refers to their image.

    Every class has a frame for every frame of the image, even if it is empty. Patient and study are the image's.

    Args:
        source: The DICOM file that was segmented, of one or more frames.
        masks: Class ids, uint8 ``(H, W)`` for one frame, ``(N, H, W)``, or one ``(H, W)`` after another; 0 is
            background.
        path: The file to write, ``.dcm``.
        segments: The meaning of classes 1, 2, ...
        algorithm: The algorithm that made the masks.
        secret: De-identifies the result, see :func:`amsam_med.data.dicom.deidentify.deidentified`.

    Raises:
        DataError: Masks do not fit the image or the meanings, or the image's header is not usable.
        MissingExtraError: highdicom, or with a secret dicom-anonymizer, is not installed.
    """
    package = highdicom()
    _check_segments(segments)
    header = read_header(source, secret)
    if "TotalPixelMatrixColumns" in header:
        raise DataError(f"{source.name}: a whole-slide image, whose tiles are no frames. Give photographs or captures")
    frames = _checked(masks, header, source, len(segments))
    make = partial(_built, package, source, segments, algorithm)
    if _has_positions(header):
        segmentation = make(header, np.stack(list(frames)))
    else:
        segmentation = _without_positions(make, header, frames, len(segments))
    write_result(segmentation, path, is_dateless=secret is not None)


def _check_segments(segments: Sequence[SegmentMeaning]) -> None:
    if not segments:
        raise DataError("a DICOM segmentation needs the meaning of at least one class")
    for segment in segments:
        if not 0 < len(segment.label) <= _LONGEST_LABEL:
            raise DataError(f"a segment's label has 1 to {_LONGEST_LABEL} characters; got {segment.label!r}")


def _checked(
    masks: NDArray[np.uint8] | Iterable[NDArray[np.uint8]], header: Dataset, source: Path, classes: int
) -> Iterator[NDArray[np.uint8]]:
    wanted, count = frames_of(header), 0
    for mask in [masks] if isinstance(masks, np.ndarray) and masks.ndim == 2 else masks:
        count += 1
        if mask.dtype != np.uint8 or mask.shape != (header.Rows, header.Columns):
            size = f"({header.Rows}, {header.Columns})"
            raise DataError(f"{source.name}: a mask must be uint8 {size}, as its image; got {mask.dtype} {mask.shape}")
        if mask.max(initial=0) > classes:
            raise DataError(f"{source.name}: a mask holds class {mask.max()}, and meanings are given for {classes}")
        if count <= wanted:
            yield mask
    if count != wanted:
        raise DataError(f"{source.name}: {count} masks for {wanted} frames; give one mask for each frame")


def _has_positions(header: Dataset) -> bool:
    """Whether each frame has a position in the patient, as in CT and unlike photographs."""
    if "FrameOfReferenceUID" not in header:
        return False
    shared = header.get("SharedFunctionalGroupsSequence")
    if not shared:
        needed = ("ImagePositionPatient", "ImageOrientationPatient", *_MEASURES)
        is_alone = "NumberOfFrames" not in header and all(header.get(keyword) for keyword in needed)
        return is_alone and _is_orthogonal(header.ImageOrientationPatient)
    places = [group.get("PlanePositionSequence") for group in header.get("PerFrameFunctionalGroupsSequence") or []]
    known = [tuple(place[0].ImagePositionPatient) for place in places if place and "ImagePositionPatient" in place[0]]
    is_whole = "PlaneOrientationSequence" in shared[0] and all(map(_measures(shared).get, _MEASURES))
    return is_whole and len(set(known)) == frames_of(header)


def _is_orthogonal(orientation: Sequence[float]) -> bool:
    """Whether six numbers are two unit vectors at a right angle."""
    if len(orientation) != 6:
        return False
    vectors = np.asarray([float(number) for number in orientation]).reshape(2, 3)
    return bool(np.allclose(vectors @ vectors.T, np.eye(2), atol=1e-3))


def _measures(shared: Sequence[Dataset]) -> Dataset:
    sequence = shared[0].get("PixelMeasuresSequence")
    return sequence[0] if sequence else Dataset()


def _without_positions(
    make: Callable[[Dataset, NDArray[np.uint8]], Any],
    header: Dataset,
    frames: Iterator[NDArray[np.uint8]],
    classes: int,
) -> Any:
    """The segmentation of an image whose frames have no position in the patient."""
    placeholder = plain_copy(header)
    placeholder.Rows = placeholder.Columns = _PLACEHOLDER_SIDE
    if not all(map(placeholder.get, _MEASURES)):  # highdicom cannot read its own spacing without a thickness
        placeholder.pop("PixelSpacing", None)
    segmentation = make(placeholder, np.zeros((1, _PLACEHOLDER_SIDE, _PLACEHOLDER_SIDE), np.uint8))
    if header.get("SpecimenDescriptionSequence"):
        segmentation.copy_specimen_information(header)
    if "FrameOfReferenceUID" in header:
        segmentation.FrameOfReferenceUID = header.FrameOfReferenceUID
        segmentation.PositionReferenceIndicator = header.get("PositionReferenceIndicator")
    segmentation.PatientOrientation = header.get("PatientOrientation")  # type 2 where frames have no place in space
    restore_class(segmentation, header.SOPClassUID)
    _set_frames(segmentation, header, classes)
    segmentation.PixelData = _packed(frames, classes)
    return segmentation


def _built(
    package: Any,
    source: Path,
    segments: Sequence[SegmentMeaning],
    algorithm: Algorithm,
    header: Dataset,
    pixels: NDArray[np.uint8],
) -> Any:
    descriptions = _descriptions(package, segments, algorithm)
    reviewed = ", reviewed" if algorithm.is_reviewed else ""
    with header_faults(source, _KIND):
        return package.seg.Segmentation(
            source_images=[header],
            pixel_array=pixels,
            segmentation_type=package.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=descriptions,
            omit_empty_frames=False,
            content_label="AMSAM",
            content_description=f"Segmentation by {algorithm.name}{reviewed}",
            series_description=f"{PRODUCT} {_KIND}{reviewed}",
            **identifiers(header, "SEG", algorithm),
        )


def _descriptions(package: Any, segments: Sequence[SegmentMeaning], algorithm: Algorithm) -> list[Any]:
    identification = package.AlgorithmIdentificationSequence(
        name=algorithm.name,
        family=package.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
        version=algorithm.version,
        source=PRODUCT,
        parameters=algorithm.all_parameters or None,
    )
    kinds = package.seg.SegmentAlgorithmTypeValues
    return [
        package.seg.SegmentDescription(
            segment_number=number,
            segment_label=segment.label,
            segmented_property_category=segment.category,
            segmented_property_type=segment.type,
            algorithm_type=kinds.SEMIAUTOMATIC if algorithm.is_reviewed else kinds.AUTOMATIC,
            algorithm_identification=identification,
            display_color=package.color.CIELabColor.from_rgb(*OUTLINE_COLOURS[(number - 1) % len(OUTLINE_COLOURS)]),
        )
        for number, segment in enumerate(segments, 1)
    ]


def _set_frames(segmentation: Dataset, header: Dataset, classes: int) -> None:
    """Replace the placeholder's frames by one for each frame of the source and, within it, each class."""
    pattern = segmentation.PerFrameFunctionalGroupsSequence[0]
    numbers = range(1, frames_of(header) + 1)
    groups = [
        _frame(pattern, frame, number, is_among_several=len(numbers) > 1)
        for frame in numbers
        for number in range(1, classes + 1)
    ]
    segmentation.PerFrameFunctionalGroupsSequence = groups
    segmentation.DimensionIndexSequence.append(_position_dimension(segmentation))
    segmentation.NumberOfFrames = len(groups)
    segmentation.Rows, segmentation.Columns = header.Rows, header.Columns


def _frame(pattern: Dataset, source_frame: int, number: int, is_among_several: bool) -> Dataset:
    group = copy.deepcopy(pattern)
    content = group.FrameContentSequence[0]
    content.StackID, content.InStackPositionNumber = "1", source_frame
    content.DimensionIndexValues = [number, source_frame]
    if is_among_several:
        group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = source_frame
    if "SegmentIdentificationSequence" in group:  # otherwise all frames share it
        group.SegmentIdentificationSequence[0].ReferencedSegmentNumber = number
    return group


def _position_dimension(segmentation: Dataset) -> Dataset:
    dimension = Dataset()
    dimension.DimensionOrganizationUID = segmentation.DimensionIndexSequence[0].DimensionOrganizationUID
    dimension.DimensionIndexPointer = Tag("InStackPositionNumber")
    dimension.FunctionalGroupPointer = Tag("FrameContentSequence")
    dimension.DimensionDescriptionLabel = "Frame of the source image"
    return dimension


def _packed(frames: Iterable[NDArray[np.uint8]], classes: int) -> bytes:
    """All frames as bits, the first pixel in the lowest bit, with no gap between frames (PS3.5, 8.1.1)."""
    # Frame by frame, since masks of a whole file as booleans would take eight times the memory of the result.
    packed, left_over = bytearray(), np.empty(0, np.bool_)
    for mask in frames:
        for number in range(1, classes + 1):
            bits = (mask == number).ravel()
            if left_over.size:
                bits = np.concatenate([left_over, bits])
            whole = bits.size // 8 * 8
            packed += np.packbits(bits[:whole], bitorder="little").data
            left_over = bits[whole:].copy()  # a view would keep the whole frame's bits alive
    packed += np.packbits(left_over, bitorder="little").data
    return bytes(packed) + b"\0" * (len(packed) % 2)
