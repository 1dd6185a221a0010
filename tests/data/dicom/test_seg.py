"""Masks as DICOM segmentations, read back by highdicom, checked by dciodvfy and dcmtk."""

from __future__ import annotations

import sys
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DermoscopicPhotographyImageStorage

from amsam_med.data.dicom.seg import write_dicom_seg
from amsam_med.data.dicom.shared import PERSON, SKIN_LESION, Algorithm, SegmentMeaning
from amsam_med.errors import DataError, MissingExtraError
from tests.dicom_tools import (
    PATIENT,
    SIZE,
    SOURCES,
    dciodvfy_errors,
    draw_masks,
    frames_of_kind,
    run_tool,
    write_ct,
    write_source,
)

ALGORITHM = Algorithm("0.2.0", "ab" * 32, {"threshold": "0.5"})


def read_masks(segmentation: Path, source: Path) -> NDArray[np.uint8]:
    """Class ids, uint8 ``(N, H, W)``, by the frames of the source, as highdicom sees them."""
    header = pydicom.dcmread(source)
    read = highdicom.seg.segread(segmentation)
    if frames := int(header.get("NumberOfFrames") or 0):
        masks = read.get_pixels_by_source_frame(header.SOPInstanceUID, range(1, frames + 1), combine_segments=True)
    else:
        masks = read.get_pixels_by_source_instance([header.SOPInstanceUID], combine_segments=True)
    return np.asarray(masks, np.uint8)


def write(folder: Path, kind: str, masks: Any, classes: int = 1, **attributes: Any) -> tuple[Path, Path]:
    """A source of a kind with its segmentation."""
    source, path = write_source(folder / "image.dcm", kind, **attributes), folder / "masks" / "seg.dcm"
    write_dicom_seg(source, masks, path, (SKIN_LESION, PERSON)[:classes], ALGORITHM)
    return source, path


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("kind", SOURCES)
def test_every_mask_comes_back_under_its_frame(tmp_path: Path, kind: str, classes: int) -> None:
    masks = draw_masks(frames_of_kind(kind), classes)
    source, path = write(tmp_path, kind, masks, classes)
    np.testing.assert_array_equal(read_masks(path, source), masks)
    assert pydicom.dcmread(path).NumberOfFrames == len(masks) * classes


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("kind", SOURCES)
def test_dciodvfy_finds_no_error(tmp_path: Path, kind: str, classes: int) -> None:
    source, path = write(tmp_path, kind, draw_masks(frames_of_kind(kind), classes), classes)
    assert dciodvfy_errors(source) == []
    assert dciodvfy_errors(path) == []


def test_frames_of_a_class_that_allows_only_one_are_refused(tmp_path: Path) -> None:
    kind = "true color, 3 frames"
    source = write_source(tmp_path / "image.dcm", kind, SOPClassUID=DermoscopicPhotographyImageStorage)
    with pytest.raises(DataError, match=r"^image\.dcm: 3 frames in a DICOM class for one, Dermoscopic Photography"):
        write_dicom_seg(source, draw_masks(3), tmp_path / "seg.dcm", [SKIN_LESION], ALGORITHM)
    assert not (tmp_path / "seg.dcm").exists()


def test_dcmtk_reads_a_segmentation(tmp_path: Path) -> None:
    _, path = write(tmp_path, "true color, 3 frames", draw_masks(3))
    said = run_tool("dcmtk", "dcmdump", path)
    assert "SegmentationStorage" in said
    assert "(0062,0003) SQ" in said
    assert "W:" not in said
    assert "E:" not in said


def test_bits_are_as_highdicom_packs_them(tmp_path: Path) -> None:
    mask = draw_masks(1)
    source, path = write(tmp_path, "VL photographic", mask, PixelSpacing=None)
    theirs = highdicom.seg.Segmentation(
        source_images=[pydicom.dcmread(source)],
        pixel_array=mask,
        segmentation_type="BINARY",
        segment_descriptions=highdicom.seg.segread(path).SegmentSequence,
        series_instance_uid="1.2",
        series_number=1,
        sop_instance_uid="1.3",
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="n",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=False,
    )
    ours = pydicom.dcmread(path)
    assert ours.PixelData[: mask.size // 8] == theirs.PixelData[: mask.size // 8]
    mine, hers = (one.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence for one in (ours, theirs))
    assert mine == hers


def test_patient_and_study_are_carried_over_and_pixels_are_not_needed(tmp_path: Path) -> None:
    source, path = write(tmp_path, "dermoscopic", draw_masks(1))
    image, result = pydicom.dcmread(source), pydicom.dcmread(path)
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "StudyID", "StudyDate"):
        assert result[keyword].value == PATIENT[keyword]
    assert result.StudyInstanceUID == image.StudyInstanceUID
    assert result.FrameOfReferenceUID == image.FrameOfReferenceUID
    assert result.SeriesInstanceUID != image.SeriesInstanceUID
    assert result.ReferencedSeriesSequence[0].SeriesInstanceUID == image.SeriesInstanceUID
    del image.PixelData
    image.save_as(source)
    write_dicom_seg(source, draw_masks(1), path, [SKIN_LESION], ALGORITHM)
    assert pydicom.dcmread(path).PixelData == result.PixelData


def test_a_segment_says_what_it_is_and_what_made_it(tmp_path: Path) -> None:
    _, path = write(tmp_path, "VL photographic", draw_masks(1))
    segment = highdicom.seg.segread(path).get_segment_description(1)
    assert segment.segmented_property_type == SKIN_LESION.type
    assert segment.segmented_property_category == SKIN_LESION.category
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    algorithm = segment.algorithm_identification[0]
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == "123110"
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("AM-SAM Med", "0.2.0")
    assert algorithm.AlgorithmParameters == f"weights_sha256={'ab' * 32},threshold=0.5"


@pytest.mark.parametrize("kind", ["VL photographic", "grey, 3 frames"])
def test_empty_masks_give_a_valid_segmentation(tmp_path: Path, kind: str) -> None:
    masks = np.zeros((frames_of_kind(kind), *SIZE), np.uint8)
    source, path = write(tmp_path, kind, masks)
    assert not read_masks(path, source).any()
    assert dciodvfy_errors(path) == []


def test_frames_may_come_one_after_another_and_one_may_come_alone(tmp_path: Path) -> None:
    masks = draw_masks(3)
    source, path = write(tmp_path, "true color, 3 frames", (mask for mask in masks))
    np.testing.assert_array_equal(read_masks(path, source), masks)
    source, path = write(tmp_path, "secondary capture", masks[0])
    np.testing.assert_array_equal(read_masks(path, source), masks[:1])


def test_a_slice_keeps_its_place_in_the_patient(tmp_path: Path) -> None:
    source, path, mask = write_ct(tmp_path / "ct.dcm"), tmp_path / "seg.dcm", draw_masks(1)
    write_dicom_seg(source, mask, path, [SKIN_LESION], ALGORITHM)
    frame = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence[0]
    assert frame.PlanePositionSequence[0].ImagePositionPatient == [1, 2, 3]
    np.testing.assert_array_equal(read_masks(path, source), mask)
    assert dciodvfy_errors(path) == []


def test_slices_of_a_volume_keep_their_places_in_whatever_order_they_lie(tmp_path: Path) -> None:
    masks, (orientation, measures) = draw_masks(3), (Dataset(), Dataset())
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.5], 2
    shared, places = Dataset(), [Dataset() for _ in masks]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([orientation]), Sequence([measures])
    for place, z in zip(places, (4, 0, 2), strict=True):
        place.PlanePositionSequence = Sequence([Dataset()])
        place.PlanePositionSequence[0].ImagePositionPatient = [0, 0, z]
    groups = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": places}
    source, path = write(tmp_path, "grey, 3 frames", masks, FrameOfReferenceUID="1.2.3", **groups)
    np.testing.assert_array_equal(read_masks(path, source), masks)
    found = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    heights = [group.PlanePositionSequence[0].ImagePositionPatient[2] for group in found]
    frames = [group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber for group in found]
    assert sorted(zip(frames, heights, strict=True)) == [(1, 4), (2, 0), (3, 2)]


def test_results_of_one_series_share_a_series_over_runs(tmp_path: Path) -> None:
    source, path = write(tmp_path, "VL photographic", draw_masks(1))
    again, other = tmp_path / "again.dcm", tmp_path / "other.dcm"
    write_dicom_seg(source, draw_masks(1), again, [SKIN_LESION], ALGORITHM)
    write_dicom_seg(source, draw_masks(1), other, [SKIN_LESION], ALGORITHM._replace(weights_sha256="cd" * 32))
    first, second, third = map(pydicom.dcmread, (path, again, other))
    assert first.SeriesInstanceUID == second.SeriesInstanceUID != third.SeriesInstanceUID
    assert first.SOPInstanceUID != second.SOPInstanceUID


def test_names_in_other_scripts_are_kept(tmp_path: Path) -> None:
    _, path = write(tmp_path, "VL photographic", draw_masks(1), PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう")
    assert pydicom.dcmread(path).PatientName.ideographic == "山田^太郎"


def test_unusual_values_are_kept_and_said_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of what this test makes
        source = write_source(tmp_path / "image.dcm", "VL photographic", PatientName="Jane", PatientID="Doe" * 30)
    path = tmp_path / "seg.dcm"
    write_dicom_seg(source, draw_masks(1), path, [SKIN_LESION], ALGORITHM)
    assert b"Jane" in path.read_bytes()
    assert b"DoeDoe" in path.read_bytes()
    said = caplog.text + "".join(capfd.readouterr())
    assert "Jane" not in said
    assert "DoeDoe" not in said


def test_attributes_that_may_be_empty_may_be_missing(tmp_path: Path) -> None:
    gone = dict.fromkeys(("PatientID", "PatientBirthDate", "AccessionNumber", "StudyDate", "SeriesNumber"))
    _, path = write(tmp_path, "VL photographic", draw_masks(1), **gone)
    assert pydicom.dcmread(path).PatientID == ""
    assert dciodvfy_errors(path) == []


def test_large_images_take_a_few_times_their_mask(tmp_path: Path) -> None:
    source = write_source(tmp_path / "image.dcm", "VL photographic", Rows=6000, Columns=10000, PixelData=None)
    mask, path = np.ones((6000, 10000), np.uint8), tmp_path / "seg.dcm"
    tracemalloc.start()
    write_dicom_seg(source, mask, path, [SKIN_LESION], ALGORITHM)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * mask.nbytes
    assert path.stat().st_size < mask.size / 8 + 10_000


def test_masks_that_do_not_fit_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    source, path = write_source(tmp_path / "image.dcm", "true color, 3 frames"), tmp_path / "seg.dcm"
    wrong = {
        r"image\.dcm: 2 masks for 3 frames": draw_masks(2),
        r"image\.dcm: 4 masks for 3 frames": draw_masks(4),
        r"image\.dcm: a mask must be uint8 \(37, 45\).*got uint8 \(37, 46\)": draw_masks(3, size=(37, 46)),
        r"image\.dcm: a mask must be uint8 .*got bool": draw_masks(3).astype(bool),
        r"image\.dcm: a mask holds class 2, and meanings are given for 1": draw_masks(3, 2),
    }
    for words, masks in wrong.items():
        with pytest.raises(DataError, match=words):
            write_dicom_seg(source, masks, path, [SKIN_LESION], ALGORITHM)
    assert not path.exists()


def test_a_meaning_needs_a_label(tmp_path: Path) -> None:
    source = write_source(tmp_path / "image.dcm", "VL photographic")
    for segments in ([], [SegmentMeaning("", *SKIN_LESION[1:])], [SegmentMeaning("a" * 65, *SKIN_LESION[1:])]):
        with pytest.raises(DataError, match=r"needs the meaning of at least one class|1 to 64 characters"):
            write_dicom_seg(source, draw_masks(1), tmp_path / "seg.dcm", segments, ALGORITHM)


def test_a_whole_slide_is_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path / "image.dcm", "VL photographic", TotalPixelMatrixColumns=4000)
    with pytest.raises(DataError, match=r"image\.dcm: a whole-slide image"):
        write_dicom_seg(source, draw_masks(1), tmp_path / "seg.dcm", [SKIN_LESION], ALGORITHM)


def test_a_missing_highdicom_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(MissingExtraError, match=r"highdicom is not installed.*amsam-med\[dicom\]"):
        write_dicom_seg(tmp_path / "a.dcm", draw_masks(1), tmp_path / "b.dcm", [SKIN_LESION], ALGORITHM)
