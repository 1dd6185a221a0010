"""Measurements as a DICOM structured report by template TID 1500, which viewers and data bases can read.

Names and units of measurements have codes of SNOMED and UCUM if they exist, and otherwise codes of this project. All
are in the table :data:`MEASUREMENT_CODES`; ``docs/measurements.md`` says how each measurement is computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import SegmentationStorage, generate_uid

from amsam_med.data.dicom.shared import (
    MANUFACTURER,
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
    whole_header,
    write_result,
)
from amsam_med.data.quiet import quiet_decoders
from amsam_med.errors import DataError

OWN_SCHEME = "99AMSAM"
"""Coding scheme of this project's own codes; DICOM reserves the prefix 99 for private schemes."""

IMAGING_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")

_AREA, _DIAMETER = Code("42798000", "SCT", "Area"), Code("81827009", "SCT", "Diameter")
_PERIMETER = Code("131191004", "SCT", "Perimeter")
_PIXELS, _PERCENT = Code("{pixels}", "UCUM", "pixels"), Code("%", "UCUM", "Percent")
_MM, _MM2 = Code("mm", "UCUM", "millimeter"), Code("mm2", "UCUM", "square millimeter")
_RATIO = Code("{ratio}", "UCUM", "ratio")

MEASUREMENT_CODES: Mapping[str, tuple[Code, Code]] = {
    "area_px": (_AREA, _PIXELS),
    "area_mm2": (_AREA, _MM2),
    "area_percent": (Code("AREA_FRACTION", OWN_SCHEME, "Area of the object per area of the image"), _PERCENT),
    "equivalent_diameter_px": (_DIAMETER, _PIXELS),
    "equivalent_diameter_mm": (_DIAMETER, _MM),
    "perimeter_px": (_PERIMETER, _PIXELS),
    "perimeter_mm": (_PERIMETER, _MM),
    "compactness": (Code("COMPACTNESS", OWN_SCHEME, "Compactness: 4 pi area per perimeter squared"), _RATIO),
    "asymmetry_major": (Code("ASYMMETRY_MAJOR", OWN_SCHEME, "Asymmetry about the major axis"), _RATIO),
    "asymmetry_minor": (Code("ASYMMETRY_MINOR", OWN_SCHEME, "Asymmetry about the minor axis"), _RATIO),
    "border_irregularity": (
        Code("BORDER_IRREG", OWN_SCHEME, "Border irregularity: perimeter per hull perimeter"),
        _RATIO,
    ),
}
"""Name and unit of a measurement, by the column of the results' table that holds it."""

_KIND = "report"


class DicomMeasurement(NamedTuple):
    """One number of a report.

    Attributes:
        name: What is measured.
        value: Finite.
        unit: In UCUM.
    """

    name: Code
    value: float
    unit: Code


class MeasuredObject(NamedTuple):
    """Measurements of one object in one frame.

    Attributes:
        measurements: One or more numbers.
        segment: Its class, 1, 2, ...
        frame: Its frame in the source, 1, 2, ...
    """

    measurements: Sequence[DicomMeasurement]
    segment: int = 1
    frame: int = 1


def dicom_measurements(columns: Mapping[str, float | None]) -> list[DicomMeasurement]:
    """Columns of the results' table as coded numbers.

    Args:
        columns: Values by column. Columns without an entry in :data:`MEASUREMENT_CODES`, such as colours, are left
            out, and so are values that are None or not finite.

    Returns:
        The numbers in the order of the table of codes.
    """
    known = [(name, unit, columns.get(column)) for column, (name, unit) in MEASUREMENT_CODES.items()]
    return [
        DicomMeasurement(name, value, unit) for name, unit, value in known if value is not None and math.isfinite(value)
    ]


@quiet_decoders()
def write_dicom_sr(
    source: Path,
    objects: Sequence[MeasuredObject],
    path: Path,
    segments: Sequence[SegmentMeaning],
    algorithm: Algorithm,
    segmentation: Path | None = None,
    procedure: Code = IMAGING_PROCEDURE,
    secret: bytes | None = None,
) -> None:
    """Write a Comprehensive SR with a group of measurements for each object.

    Args:
        source: The DICOM file that was measured.
        objects: One or more; the finding of each is its segment's type.
        path: The file to write, ``.dcm``.
        segments: The meaning of classes 1, 2, ...
        algorithm: The algorithm that made the masks; it is also the report's observer.
        segmentation: The file that :func:`amsam_med.data.dicom.seg.write_dicom_seg` wrote for this source, with the
            same secret; the groups then refer to its frames.
        procedure: The imaging procedure.
        secret: De-identifies the result, see :func:`amsam_med.data.dicom.deidentify.deidentified`.

    Raises:
        DataError: There are no objects, an object names a frame or a class that does not exist, the segmentation
            belongs to another image, or the source's header is not usable.
        MissingExtraError: highdicom, or with a secret dicom-anonymizer, is not installed.
    """
    package = highdicom()
    header = read_header(source, secret)
    _check_objects(source, objects, header, len(segments))
    plain = plain_copy(header)
    masks = None if segmentation is None else _Segmentation(segmentation, header)
    groups = [_group(package, header, plain, one, segments[one.segment - 1], algorithm, masks) for one in objects]
    content = _content(package, groups, algorithm, procedure)
    with header_faults(source, _KIND):
        report = package.sr.ComprehensiveSR(
            evidence=[plain] if masks is None else [plain, masks.header],
            content=content,
            is_complete=True,
            coding_schemes=[_own_scheme(package)],
            series_description=f"{PRODUCT} measurements",
            **identifiers(header, "SR", algorithm),
        )
    restore_class(report, header.SOPClassUID)
    write_result(report, path, is_dateless=secret is not None)


class _Segmentation:
    """A segmentation, and which of its frames belongs to which frame of the source.

    Args:
        path: The segmentation.
        source: The header of its image.
    """

    def __init__(self, path: Path, source: Dataset) -> None:
        self.header = whole_header(path)
        self._name = path.name
        if self.header.get("SOPClassUID") != SegmentationStorage:
            raise DataError(f"{path.name}: not a DICOM segmentation. Give the file that was written for this image")
        shared = self.header.SharedFunctionalGroupsSequence[0]
        self._frames = {}
        for number, group in enumerate(self.header.PerFrameFunctionalGroupsSequence, 1):
            reference = group.DerivationImageSequence[0].SourceImageSequence[0]
            if reference.ReferencedSOPInstanceUID != source.SOPInstanceUID:
                raise DataError(f"{path.name}: a segmentation of another image than the one that was measured")
            # With a single class, the segment may stand once for all frames.
            owner = group if "SegmentIdentificationSequence" in group else shared
            segment = owner.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            self._frames[int(reference.get("ReferencedFrameNumber") or 1), int(segment)] = number

    def frame(self, one: MeasuredObject) -> int:
        """The number of the frame that shows an object's class."""
        try:
            return self._frames[one.frame, one.segment]
        except KeyError:
            raise DataError(
                f"{self._name}: no frame for segment {one.segment} of the image's frame {one.frame}"
            ) from None


def _check_objects(source: Path, objects: Sequence[MeasuredObject], header: Dataset, classes: int) -> None:
    if not objects:
        raise DataError(f"{source.name}: a measurement report needs at least one measured object")
    for one in objects:
        if not 1 <= one.frame <= frames_of(header) or not 1 <= one.segment <= classes:
            got = f"frame {one.frame} and class {one.segment}"
            raise DataError(
                f"{source.name}: got {got}; the image has {frames_of(header)} frames, and {classes} classes"
            )
        if not one.measurements or not all(math.isfinite(number.value) for number in one.measurements):
            raise DataError(f"{source.name}: a measured object needs one or more finite numbers")


def _group(
    package: Any,
    header: Dataset,
    plain: Dataset,
    one: MeasuredObject,
    meaning: SegmentMeaning,
    algorithm: Algorithm,
    masks: _Segmentation | None,
) -> Any:
    sr = package.sr
    frames = [one.frame] if frames_of(header) > 1 else None
    common = {
        "tracking_identifier": _tracking(package, header, one, meaning),
        "finding_type": meaning.type,
        "finding_category": meaning.category,
        "algorithm_id": sr.AlgorithmIdentification(
            name=algorithm.name,
            version=algorithm.version,
            parameters=[f"{key}={value}" for key, value in algorithm.all_parameters.items()] or None,
        ),
        "measurements": [sr.Measurement(name=name, value=value, unit=unit) for name, value, unit in one.measurements],
    }
    if masks is None:
        image = sr.SourceImageForMeasurementGroup(plain.SOPClassUID, plain.SOPInstanceUID, frames)
        return sr.MeasurementsAndQualitativeEvaluations(source_images=[image], **common)
    region = sr.ReferencedSegmentationFrame(
        sop_class_uid=masks.header.SOPClassUID,
        sop_instance_uid=masks.header.SOPInstanceUID,
        frame_number=masks.frame(one),
        segment_number=one.segment,
        source_image=sr.SourceImageForSegmentation(plain.SOPClassUID, plain.SOPInstanceUID, frames),
    )
    del region[0].ReferencedSOPSequence[0].ReferencedSegmentNumber  # not beside a frame's number: PS3.3, table 10-3
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_segment=region, **common)


def _tracking(package: Any, header: Dataset, one: MeasuredObject, meaning: SegmentMeaning) -> Any:
    """The tracking identifier, equal for one object in every report about it."""
    place = (str(header.SOPInstanceUID), f"frame {one.frame}", f"segment {one.segment}")
    return package.sr.TrackingIdentifier(
        uid=generate_uid(entropy_srcs=list(place)), identifier=f"{meaning.label}, {place[1]}"
    )


def _content(package: Any, groups: Sequence[Any], algorithm: Algorithm, procedure: Code) -> Any:
    sr = package.sr
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[algorithm.name, algorithm.version, algorithm.weights_sha256]),
        name=algorithm.name,
        manufacturer_name=MANUFACTURER,
        model_name=PRODUCT,
        serial_number=algorithm.serial_number,
    )
    observer = sr.ObserverContext(observer_type=Code("121007", "DCM", "Device"), observer_identifying_attributes=device)
    return sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=procedure,
        imaging_measurements=groups,
    )


def _own_scheme(package: Any) -> Any:
    return package.coding_schemes.CodingSchemeIdentificationItem(
        designator=OWN_SCHEME, name=f"Codes of {PRODUCT}", responsible_organization=MANUFACTURER
    )
