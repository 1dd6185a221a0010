"""De-identification removes the patient at every depth, and files of one study still belong together."""

from __future__ import annotations

import sys
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from amsam_med.data.dicom.deidentify import deidentified, is_deidentified
from amsam_med.data.dicom.seg import write_dicom_seg
from amsam_med.data.dicom.shared import SKIN_LESION, Algorithm
from amsam_med.data.dicom.sr import MeasuredObject, dicom_measurements, write_dicom_sr
from amsam_med.errors import ConfigError, DataError, MissingExtraError
from tests.dicom_tools import PATIENT, SOURCES, dciodvfy_errors, draw_masks, write_source

SECRET = bytes(range(32))
ALGORITHM = Algorithm("0.2.0", "ab" * 32)
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")


def telling(dataset: Dataset) -> list[bytes]:
    """What must not be found in a file: values long enough not to be there by chance, and UIDs."""
    values = [str(dataset[keyword].value) for keyword in (*PATIENT, *UIDS) if keyword in dataset]
    parts = [part for value in values for part in value.split("^")]
    assert len(parts) > 30
    return [part.encode() for part in parts if len(part) > 3]


def results(folder: Path, source: Path, secret: bytes | None = SECRET) -> tuple[Path, Path]:
    """A segmentation and a report."""
    frames = int(pydicom.dcmread(source).get("NumberOfFrames") or 1)
    seg, sr = folder / "seg.dcm", folder / "sr.dcm"
    write_dicom_seg(source, draw_masks(frames), seg, [SKIN_LESION], ALGORITHM, secret)
    objects = [MeasuredObject(dicom_measurements({"area_px": 12}), frame=frames)]
    write_dicom_sr(source, objects, sr, [SKIN_LESION], ALGORITHM, seg, secret=secret)
    return seg, sr


@pytest.mark.parametrize("kind", SOURCES)
def test_no_value_of_the_patient_stays_in_the_bytes_of_a_result(tmp_path: Path, kind: str) -> None:
    source = write_source(tmp_path / "image.dcm", kind)
    secrets = telling(pydicom.dcmread(source))
    for path in results(tmp_path, source):
        written = path.read_bytes()
        assert [value for value in secrets if value in written] == []


@pytest.mark.parametrize("kind", SOURCES)
def test_results_and_images_stay_valid_with_required_attributes_empty(tmp_path: Path, kind: str) -> None:
    source = write_source(tmp_path / "image.dcm", kind)
    image = tmp_path / "clean.dcm"
    deidentified(pydicom.dcmread(source), SECRET).save_as(image, enforce_file_format=True)
    for path in (image, *results(tmp_path, source)):
        assert dciodvfy_errors(path) == []
        clean = pydicom.dcmread(path)
        assert is_deidentified(clean)
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "AccessionNumber"):
            assert clean[keyword].is_empty


def test_the_test_would_find_what_stays(tmp_path: Path) -> None:
    source = write_source(tmp_path / "image.dcm", "VL photographic")
    seg, _ = results(tmp_path, source, secret=None)
    assert b"Quimby" in seg.read_bytes()
    assert any(value in seg.read_bytes() for value in telling(pydicom.dcmread(source)))


def test_results_tell_no_date(tmp_path: Path) -> None:
    for path in results(tmp_path, write_source(tmp_path / "image.dcm", "dermoscopic")):
        dates = [element.value for element in pydicom.dcmread(path).iterall() if element.VR == "DA" and element.value]
        assert set(dates) == {"19000101"}


def test_dates_that_an_earlier_deidentification_left_are_kept(tmp_path: Path) -> None:
    source, again = write_source(tmp_path / "image.dcm", "dermoscopic"), tmp_path / "clean.dcm"
    clean = deidentified(pydicom.dcmread(source), SECRET)
    clean.StudyDate = "20190507"
    clean.save_as(again, enforce_file_format=True)
    for path in results(tmp_path, again, secret=None):
        assert pydicom.dcmread(path).StudyDate == "20190507"


def test_names_and_uids_inside_of_sequences_go_too() -> None:
    inner, middle, outer = Dataset(), Dataset(), Dataset()
    inner.PatientName, inner.ReferencedSOPInstanceUID = "Doe^Jane", "1.2.3.4"
    middle.RadiopharmaceuticalInformationSequence = Sequence([inner])  # the table says nothing about it
    outer.SharedFunctionalGroupsSequence = Sequence([middle])
    outer.SOPInstanceUID = "1.2.3.4"
    clean = deidentified(outer, SECRET)
    deep = clean.SharedFunctionalGroupsSequence[0].RadiopharmaceuticalInformationSequence[0]
    assert not deep.PatientName
    assert deep.ReferencedSOPInstanceUID == clean.SOPInstanceUID != "1.2.3.4"
    assert outer.SOPInstanceUID == inner.ReferencedSOPInstanceUID == "1.2.3.4"


def test_private_attributes_overlays_and_curves_are_removed() -> None:
    dataset, item = Dataset(), Dataset()
    for one in (dataset, item):
        one.private_block(0x0009, "MAKER", create=True).add_new(1, "LO", "Doe^Jane")
    dataset.SharedFunctionalGroupsSequence = Sequence([item])
    dataset.add_new(0x6000_3000, "OW", b"\1\1")
    dataset.add_new(0x6002_4000, "LT", "Doe^Jane")
    dataset.add_new(0x5000_3000, "OW", b"\1\1")
    clean = deidentified(dataset, SECRET)
    assert [element.tag for element in clean.iterall() if element.tag.group in (0x0009, 0x5000, 0x6000, 0x6002)] == []


def test_uids_depend_on_the_old_one_and_on_the_secret_alone() -> None:
    first, second = Dataset(), Dataset()
    first.StudyInstanceUID = second.StudyInstanceUID = "1.2.3"
    first.SeriesInstanceUID = "1.2.4"
    one, two = deidentified(first, SECRET), deidentified(second, SECRET)
    assert one.StudyInstanceUID == two.StudyInstanceUID
    assert one.StudyInstanceUID not in ("1.2.3", one.SeriesInstanceUID)
    assert deidentified(first, SECRET[::-1]).StudyInstanceUID != one.StudyInstanceUID
    assert one.StudyInstanceUID.is_valid


def test_uids_of_the_standard_itself_stay() -> None:
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.4"
    dataset.FrameOfReferenceUID = "1.2.840.10008.1.4.1.1"
    clean = deidentified(dataset, SECRET)
    assert (clean.SOPClassUID, clean.FrameOfReferenceUID) == (dataset.SOPClassUID, dataset.FrameOfReferenceUID)


def test_results_refer_to_the_image_that_is_deidentified_with_the_same_secret(tmp_path: Path) -> None:
    source = write_source(tmp_path / "image.dcm", "true color, 3 frames")
    image = deidentified(pydicom.dcmread(source), SECRET)
    for path in results(tmp_path, source):
        result = pydicom.dcmread(path)
        uids = {element.value for element in result.iterall() if element.keyword == "ReferencedSOPInstanceUID"}
        assert image.SOPInstanceUID in uids
        assert result.StudyInstanceUID == image.StudyInstanceUID


def test_a_report_is_refused_as_its_text_may_say_anything(tmp_path: Path) -> None:
    _, report = results(tmp_path, write_source(tmp_path / "image.dcm", "VL photographic"))
    with pytest.raises(DataError, match="a structured report cannot be de-identified by rules"):
        deidentified(pydicom.dcmread(report), SECRET)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ConfigError, match="has 8 bytes; give 16 or more random ones"):
        deidentified(Dataset(), b"password")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dicomanonymizer.dicomfields_selector", None)
    with pytest.raises(MissingExtraError, match=r"dicom-anonymizer is not installed.*amsam-med\[dicom\]"):
        deidentified(Dataset(), SECRET)
