"""Measurements as structured reports, read back by highdicom and checked by dciodvfy and dcmtk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom
import pydicom
import pytest
from pydicom.sr.coding import Code

from amsam_med.data.dicom.seg import write_dicom_seg
from amsam_med.data.dicom.shared import SKIN_LESION, Algorithm
from amsam_med.data.dicom.sr import (
    MEASUREMENT_CODES,
    OWN_SCHEME,
    DicomMeasurement,
    MeasuredObject,
    dicom_measurements,
    write_dicom_sr,
)
from amsam_med.errors import DataError
from tests.dicom_tools import PATIENT, SOURCES, dciodvfy_errors, draw_masks, frames_of_kind, run_tool, write_source

ALGORITHM = Algorithm("0.2.0", "ab" * 32)
COLUMNS: dict[str, float | None] = {
    "area_px": 1200,
    "area_mm2": 3.25,
    "area_percent": 12.345,
    "equivalent_diameter_px": 39.09,
    "equivalent_diameter_mm": 2.03421,
    "perimeter_px": 130.5,
    "perimeter_mm": 6.78901,
    "compactness": 0.8855,
    "asymmetry_major": 0.0712,
    "asymmetry_minor": 0.1034,
    "border_irregularity": 1.0321,
    "red_mean_inside_u8": 101.25,
}


def write(folder: Path, kind: str, with_segmentation: bool = True, **attributes: Any) -> tuple[Path, Path | None, Path]:
    """A source, its segmentation, and a report with an object in each frame, of area 1200 and the frame's number."""
    source, segmentation = write_source(folder / "image.dcm", kind, **attributes), folder / "seg.dcm"
    frames = frames_of_kind(kind)
    if with_segmentation:
        write_dicom_seg(source, draw_masks(frames), segmentation, [SKIN_LESION], ALGORITHM)
    objects = [
        MeasuredObject(dicom_measurements({**COLUMNS, "area_px": 1200 + frame}), frame=frame)
        for frame in range(1, frames + 1)
    ]
    given = segmentation if with_segmentation else None
    write_dicom_sr(source, objects, folder / "sr.dcm", [SKIN_LESION], ALGORITHM, given)
    return source, given, folder / "sr.dcm"


@pytest.mark.parametrize("with_segmentation", [True, False])
@pytest.mark.parametrize("kind", SOURCES)
def test_dciodvfy_finds_no_error(tmp_path: Path, kind: str, with_segmentation: bool) -> None:
    _, _, path = write(tmp_path, kind, with_segmentation)
    assert dciodvfy_errors(path) == []


@pytest.mark.parametrize("kind", SOURCES)
def test_each_frame_has_a_group_that_names_its_frame_of_the_segmentation(tmp_path: Path, kind: str) -> None:
    source, segmentation, path = write(tmp_path, kind)
    image, masks = pydicom.dcmread(source), pydicom.dcmread(str(segmentation))
    groups = highdicom.sr.srread(path).content.get_planar_roi_measurement_groups()
    assert len(groups) == frames_of_kind(kind)
    for frame, group in enumerate(groups, 1):
        seen, origin = (item.ReferencedSOPSequence[0] for item in group[0].ContentSequence[-2:])
        assert seen.ReferencedSOPInstanceUID == masks.SOPInstanceUID
        shown = masks.PerFrameFunctionalGroupsSequence[seen.ReferencedFrameNumber - 1]
        assert shown.FrameContentSequence[0].InStackPositionNumber == frame
        assert origin.ReferencedSOPInstanceUID == image.SOPInstanceUID
        assert origin.get("ReferencedFrameNumber", 1) == frame
        assert group.get_measurements()[0].value == 1200 + frame


def test_a_report_without_a_segmentation_refers_to_the_image(tmp_path: Path) -> None:
    source, _, path = write(tmp_path, "true color, 3 frames", with_segmentation=False)
    groups = highdicom.sr.srread(path).content.get_image_measurement_groups()
    uid = pydicom.dcmread(source).SOPInstanceUID
    references = [group.source_images[0].ReferencedSOPSequence[0] for group in groups]
    assert [(one.ReferencedSOPInstanceUID, one.ReferencedFrameNumber) for one in references] == [
        (uid, 1),
        (uid, 2),
        (uid, 3),
    ]


def test_numbers_names_and_units_come_back(tmp_path: Path) -> None:
    _, _, path = write(tmp_path, "dermoscopic")
    group = highdicom.sr.srread(path).content.get_planar_roi_measurement_groups()[0]
    found = {(item.name.value, item.unit.value): item.value for item in group.get_measurements()}
    expected = {(name.value, unit.value): COLUMNS[column] for column, (name, unit) in MEASUREMENT_CODES.items()} | {
        ("42798000", "{pixels}"): 1201
    }
    assert found == pytest.approx(expected)
    assert len(found) == 11
    assert group.finding_type == SKIN_LESION.type
    assert group.finding_category == SKIN_LESION.category


def test_the_device_that_observed_is_the_algorithm(tmp_path: Path) -> None:
    _, _, path = write(tmp_path, "VL photographic")
    report = highdicom.sr.srread(path)
    attributes = report.content.get_observer_contexts()[0].observer_identifying_attributes
    assert attributes.name == "AM-SAM Med"
    assert attributes.serial_number == "ab" * 32
    assert (report.CompletionFlag, report.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    assert report.PatientName == PATIENT["PatientName"]
    scheme = report.CodingSchemeIdentificationSequence[0]
    assert scheme.CodingSchemeDesignator == OWN_SCHEME


def test_dcmtk_reads_the_content(tmp_path: Path) -> None:
    _, _, path = write(tmp_path, "grey, 3 frames")
    said = run_tool("dcmtk", "dsrdump", path)
    assert 'NUM:(,,"Area")="1201.0" ({pixels},UCUM,"pixels")' in said
    assert said.count("Referenced Segmentation Frame") == 3


def test_an_object_is_tracked_by_the_same_uid_in_every_report(tmp_path: Path) -> None:
    source, segmentation, path = write(tmp_path, "true color, 3 frames")
    objects = [MeasuredObject(dicom_measurements(COLUMNS), frame=2)]
    write_dicom_sr(source, objects, tmp_path / "second.dcm", [SKIN_LESION], ALGORITHM, segmentation)
    first, second = (
        [group.tracking_uid for group in highdicom.sr.srread(file).content.get_planar_roi_measurement_groups()]
        for file in (path, tmp_path / "second.dcm")
    )
    assert len(set(first)) == 3
    assert second == [first[1]]


def test_columns_that_are_empty_or_have_no_code_are_passed_over() -> None:
    columns = {"area_px": 0, "area_mm2": None, "perimeter_px": float("nan"), "red_mean_inside_u8": 3.0}
    assert dicom_measurements(columns) == [
        DicomMeasurement(Code("42798000", "SCT", "Area"), 0, Code("{pixels}", "UCUM", "pixels"))
    ]


def test_codes_are_unique_and_fit_into_their_attributes() -> None:
    pairs = [(name.value, unit.value) for name, unit in MEASUREMENT_CODES.values()]
    assert len(set(pairs)) == len(pairs) == 11
    for code in (code for pair in MEASUREMENT_CODES.values() for code in pair):
        assert len(code.value) <= 16
        assert len(code.meaning) <= 64


def test_objects_that_are_not_in_the_image_are_refused(tmp_path: Path) -> None:
    source, segmentation, path = write(tmp_path, "grey, 3 frames")
    numbers = dicom_measurements(COLUMNS)
    infinite = [numbers[0]._replace(value=float("inf"))]
    wrong = {
        r"image\.dcm: a measurement report needs at least one measured object": [],
        r"image\.dcm: got frame 4 and class 1; the image has 3 frames": [MeasuredObject(numbers, frame=4)],
        r"image\.dcm: got frame 1 and class 2; .* and 1 classes": [MeasuredObject(numbers, segment=2)],
        r"image\.dcm: a measured object needs one or more finite numbers": [MeasuredObject(infinite)],
        r"image\.dcm: a measured object needs one or more": [MeasuredObject([])],
    }
    for words, objects in wrong.items():
        with pytest.raises(DataError, match=words):
            write_dicom_sr(source, objects, tmp_path / "bad.dcm", [SKIN_LESION], ALGORITHM, segmentation)
    assert path.exists()
    assert not (tmp_path / "bad.dcm").exists()


def test_a_segmentation_of_another_image_is_refused(tmp_path: Path) -> None:
    _, segmentation, _ = write(tmp_path, "VL photographic")
    other = write_source(tmp_path / "other.dcm", "VL photographic")
    objects = [MeasuredObject(dicom_measurements(COLUMNS))]
    with pytest.raises(DataError, match=r"seg\.dcm: a segmentation of another image"):
        write_dicom_sr(other, objects, tmp_path / "sr2.dcm", [SKIN_LESION], ALGORITHM, segmentation)
    with pytest.raises(DataError, match=r"other\.dcm: not a DICOM segmentation"):
        write_dicom_sr(other, objects, tmp_path / "sr2.dcm", [SKIN_LESION], ALGORITHM, other)
