"""A real PACS as source and goal: a study is asked for over DICOMweb, segmented, and its results are stored there."""

from __future__ import annotations

import csv
import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient

from amsam_med.data.dicom.web import DicomWeb
from amsam_med.data.readers import read_mask
from amsam_med.errors import DataError
from amsam_med.segment import SegmentOptions, segment
from amsam_med.segment.inputs import list_inputs
from tests.dicom_tools import PATIENT, dciodvfy_errors, orthanc, write_source
from tests.small_bundle import DarkObjectDetector, write_small_bundle

__all__ = ["orthanc"]

pytest.importorskip("highdicom")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> SegmentOptions:
    bundle = write_small_bundle(tmp_path_factory.mktemp("bundles") / "small")
    formats, parts = ("png", "dicom-seg", "dicom-sr"), {"detector": DarkObjectDetector()}
    return SegmentOptions(str(bundle), formats=formats, device="cpu", overrides=parts)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "results.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def retrieved(server: str, like: pydicom.Dataset) -> pydicom.Dataset:
    """The instance of these identifiers as the server gives it back."""
    client = DICOMwebClient(server)
    return client.retrieve_instance(like.StudyInstanceUID, like.SeriesInstanceUID, like.SOPInstanceUID)


def stored_study(server: str, folder: Path, kinds: tuple[str, ...]) -> str:
    """Store an image of each kind in one study; its UID."""
    folder.mkdir()
    study = pydicom.uid.generate_uid()
    files = [write_source(folder / f"{kind}.dcm", kind, StudyInstanceUID=study) for kind in kinds]
    DicomWeb(server).store(files)
    return study


def test_a_study_is_segmented_and_its_results_are_stored_beside_it(
    orthanc: str, tmp_path: Path, options: SegmentOptions
) -> None:
    study = stored_study(orthanc, tmp_path / "sent", ("dermoscopic", "true color, 3 frames"))
    query = f"dicomweb:{orthanc}?StudyInstanceUID={study}"
    summary = segment([query], tmp_path / "out", replace(options, stores=True))
    assert (summary.done, summary.pictures, summary.failures) == (2, 4, [])
    rows = rows_of(tmp_path / "out")
    assert {row["file"].split("/studies/")[1].split("/")[0] for row in rows} == {study}
    assert segment([query], tmp_path / "out", options).skipped == 2  # the results in the study are no images
    seg_files = sorted({row["dicom_seg_file"] for row in rows})
    assert len(seg_files) == 2
    for file in seg_files:
        masks = [read_mask(tmp_path / "out" / row["mask_file"]) for row in rows if row["dicom_seg_file"] == file]
        kept = pydicom.dcmread(tmp_path / "out" / file)
        stored = retrieved(orthanc, kept)
        assert np.array_equal(stored.pixel_array.reshape(-1, *masks[0].shape), np.stack(masks))
        assert (stored.PatientName, stored.StudyInstanceUID) == ("Doe^Jane^Quimby", study)


def test_results_are_valid_dicom_and_refer_to_their_image(
    orthanc: str, tmp_path: Path, options: SegmentOptions
) -> None:
    study = stored_study(orthanc, tmp_path / "sent", ("VL photographic",))
    segment([f"dicomweb:{orthanc}?StudyInstanceUID={study}"], tmp_path / "out", replace(options, stores=True))
    (row,) = rows_of(tmp_path / "out")
    image = pydicom.dcmread(tmp_path / "sent" / "VL photographic.dcm")
    for column in ("dicom_seg_file", "dicom_sr_file"):
        file = tmp_path / "out" / row[column]
        assert dciodvfy_errors(file) == []
        assert image.SOPInstanceUID in str(retrieved(orthanc, pydicom.dcmread(file)))


def test_deidentified_results_do_not_tell_the_patient(tmp_path: Path, options: SegmentOptions) -> None:
    (tmp_path / "in").mkdir()
    for number in (1, 2):
        write_source(tmp_path / "in" / f"{number}.dcm", "dermoscopic", StudyInstanceUID="1.2.3")
    stripped = replace(options, deidentifies=True)
    segment([tmp_path / "in" / "1.dcm"], tmp_path / "out", stripped)
    segment([tmp_path / "in"], tmp_path / "out", stripped)  # a later run goes on with the same new identifiers
    files = sorted((tmp_path / "out").rglob("*.dcm"))
    assert len(files) == 4
    values = [value.encode() for value in PATIENT.values() if len(value) > 3]
    assert not [value for value in values for file in files if value in file.read_bytes()]
    studies = {pydicom.dcmread(file).StudyInstanceUID for file in files}
    assert len(studies) == 1
    assert "1.2.3" not in studies


def test_a_deidentified_run_has_no_name_and_no_uid_in_any_of_its_files(tmp_path: Path, options: SegmentOptions) -> None:
    source = write_source(tmp_path / "x.dcm", "dermoscopic", StudyInstanceUID="1.2.840.99.1")
    image = pydicom.dcmread(source)
    named = tmp_path / "Doe_Jane" / f"{image.SOPInstanceUID}.dcm"
    named.parent.mkdir()
    source.rename(named)
    with zipfile.ZipFile(tmp_path / "Quimby.zip", "w") as archive:
        archive.write(named, f"1.2.840.99.1/{PATIENT['PatientID']}.dcm")
    both = [named.parent, tmp_path / "Quimby.zip"]
    assert segment(both, tmp_path / "out", replace(options, deidentifies=True)).done == 2
    told = [image.SOPInstanceUID, image.StudyInstanceUID, "Doe", "Quimby", PATIENT["PatientID"]]
    told += [hashlib.sha256(uid.encode()).hexdigest()[:10] for uid in told[:2]]
    for path in (tmp_path / "out").rglob("*"):
        kept = path.relative_to(tmp_path).as_posix().encode() + (path.read_bytes() if path.is_file() else b"")
        assert not [word for word in told if word.encode() in kept], path


@pytest.mark.parametrize(("word", "is_flagged"), [("YES", True), ("NO", False), ("", False)])
def test_text_that_is_burned_into_an_image_is_flagged(
    word: str, is_flagged: bool, tmp_path: Path, options: SegmentOptions
) -> None:
    (tmp_path / "in").mkdir()
    write_source(tmp_path / "in" / "1.dcm", "true color, 3 frames", BurnedInAnnotation=word)
    summary = segment([tmp_path / "in"], tmp_path / "out", replace(options, deidentifies=True))
    flags = {"burned-in-annotation" in row["flags"].split(";") for row in rows_of(tmp_path / "out")}
    assert (summary.pictures, flags) == (3, {is_flagged})
    assert ("text is burned into its pixels" in (tmp_path / "out" / "report.html").read_text()) == is_flagged


def test_a_server_that_is_not_there_is_said_plainly(
    tmp_path: Path, options: SegmentOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's attempts
    with pytest.raises(DataError, match=r"DICOMweb server http://127\.0\.0\.1:9/x: ConnectionError"):
        segment(["dicomweb:http://127.0.0.1:9/x?StudyInstanceUID=1.2"], tmp_path / "out", options)


def test_a_study_that_is_not_there_has_no_images(orthanc: str) -> None:
    with pytest.raises(DataError, match="no images in it"):
        list_inputs([f"dicomweb:{orthanc}?StudyInstanceUID=1.2.3.4.5"])


def test_a_password_does_not_belong_into_an_address() -> None:
    with pytest.raises(DataError, match=r"put them into ~/\.netrc"):
        list_inputs(["dicomweb:http://jane:secret@127.0.0.1:9/x"])
