"""Attributes that results take from their source, and a real server that stores source, segmentation and report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from amsam_med.data.dicom.seg import write_dicom_seg
from amsam_med.data.dicom.shared import SKIN_LESION, Algorithm, frames_of, header_faults, read_header
from amsam_med.data.dicom.sr import MeasuredObject, dicom_measurements, write_dicom_sr
from amsam_med.errors import DataError
from tests.dicom_tools import SOURCES, draw_masks, frames_of_kind, orthanc, write_source

__all__ = ["orthanc"]  # a fixture; pytest finds it here

ALGORITHM = Algorithm("0.2.0", "ab" * 32)


def store(server: str, folder: Path, kind: str) -> tuple[list[Dataset], list[Dataset]]:
    """A source, its segmentation and its report as they are on disk, and as the server gives them back."""
    client = pytest.importorskip("dicomweb_client").DICOMwebClient(server)
    source, seg, sr = (folder / name for name in ("image.dcm", "seg.dcm", "sr.dcm"))
    write_source(source, kind)
    frames = frames_of_kind(kind)
    write_dicom_seg(source, draw_masks(frames), seg, [SKIN_LESION], ALGORITHM)
    objects = [MeasuredObject(dicom_measurements({"area_px": 9}), frame=frame) for frame in range(1, frames + 1)]
    write_dicom_sr(source, objects, sr, [SKIN_LESION], ALGORITHM, seg)
    stored = [pydicom.dcmread(path) for path in (source, seg, sr)]
    client.store_instances(stored)
    back = [client.retrieve_instance(one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID) for one in stored]
    found = client.search_for_instances(study_instance_uid=stored[0].StudyInstanceUID)
    assert len(found) == 3
    return stored, back


@pytest.mark.parametrize("kind", SOURCES)
def test_orthanc_gives_back_what_it_was_sent(orthanc: str, tmp_path: Path, kind: str) -> None:
    (image, seg, sr), (image_back, seg_back, sr_back) = store(orthanc, tmp_path, kind)
    np.testing.assert_array_equal(image_back.pixel_array, image.pixel_array)
    np.testing.assert_array_equal(seg_back.pixel_array, seg.pixel_array)
    masks = draw_masks(frames_of_kind(kind))
    np.testing.assert_array_equal(seg_back.pixel_array.reshape(masks.shape), masks)
    assert sr_back.ContentSequence == sr.ContentSequence


def test_orthanc_shows_single_frames_of_a_segmentation(orthanc: str, tmp_path: Path) -> None:
    (_, seg, _), _ = store(orthanc, tmp_path, "true color, 3 frames")
    client = pytest.importorskip("dicomweb_client").DICOMwebClient(orthanc)
    metadata = client.retrieve_instance_metadata(seg.StudyInstanceUID, seg.SeriesInstanceUID, seg.SOPInstanceUID)
    found = Dataset.from_json(metadata, bulk_data_uri_handler=lambda _: b"")
    assert found.NumberOfFrames == 3
    assert found.SegmentSequence[0].SegmentLabel == "Skin lesion"
    numbers = [
        group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        for group in found.PerFrameFunctionalGroupsSequence
    ]
    assert numbers == [1, 2, 3]


def test_a_header_has_all_that_every_instance_has(tmp_path: Path) -> None:
    source = write_source(tmp_path / "image.dcm", "grey, 3 frames", StudyID=None, PatientBirthDate=None)
    header = read_header(source)
    assert header.StudyID is None
    assert header.PatientBirthDate is None
    assert frames_of(header) == 3
    assert "PixelData" not in header


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.dcm").write_text("not DICOM" * 30)
    with pytest.raises(DataError, match=r"text\.dcm: not a DICOM file"):
        read_header(tmp_path / "text.dcm")
    bare = write_source(tmp_path / "bare.dcm", "VL photographic", StudyInstanceUID=None, Rows=None)
    with pytest.raises(DataError, match=r"bare\.dcm: this DICOM file has no StudyInstanceUID, Rows"):
        read_header(bare)


def test_a_value_that_dicom_does_not_allow_is_named_and_not_shown(tmp_path: Path) -> None:
    source = write_source(tmp_path / "image.dcm", "VL photographic")
    wrong = source.read_bytes().replace(b"19561103", b"1956-Nov").replace(b"CS\x02\x00F ", b"CS\x02\x00X ")
    source.write_bytes(wrong)
    with pytest.raises(DataError, match=r"image\.dcm: .* value of PatientBirthDate, PatientSex") as caught:
        read_header(source)
    assert "1956" not in str(caught.value)


def test_a_number_of_frames_that_is_none_is_refused() -> None:
    with pytest.raises(DataError, match=r"badVR\.dcm: DICOM does not allow the value of NumberOfFrames"):
        read_header(Path(str(get_testdata_file("badVR.dcm", download=False))))


def test_what_a_library_says_about_a_header_is_not_repeated() -> None:
    def fail() -> None:
        with header_faults(Path("folder/image.dcm"), "segmentation"):
            raise ValueError("Doe^Jane is not valid")

    with pytest.raises(DataError, match=r"^image\.dcm: its DICOM header .* a segmentation \(ValueError\)") as caught:
        fail()
    assert "Doe" not in str(caught.value)
