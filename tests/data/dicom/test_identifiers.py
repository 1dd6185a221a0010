"""Identifying parts of paths are replaced, and other paths are left unchanged."""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, VLPhotographicImageStorage

from amsam_med.data.dicom.identifiers import without_identifiers

STUDY, IMAGE = "1.2.840.99.1", "1.2.840.99.1.7.3"


def shown(folder: Path, text: str, secret: bytes | None = None, **attributes: object) -> str:
    """A path as it is shown for a file with these attributes."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SpecificCharacterSet = "ISO_IR 192"
    made.SOPClassUID, made.SOPInstanceUID, made.StudyInstanceUID = VLPhotographicImageStorage, IMAGE, STUDY
    made.SeriesInstanceUID = f"{STUDY}.7"
    for name, value in attributes.items():
        setattr(made, name, value)
    made.save_as(folder / "any.dcm", enforce_file_format=True)
    return without_identifiers(folder / "any.dcm", text, secret)


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("Li^Wu", ["liwu.dcm", "Wu_Li.dcm", "WuLi3.dcm", "scan-LI-2.dcm", "wu.dcm", "li4.dcm"]),
        ("Wang^Dong=王^东", ["王东.dcm", "扫描王东2.dcm", "dong_wang.dcm", "东王.dcm", "王-1.dcm"]),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", ["山田.dcm", "x太郎.dcm", "やまだ.dcm"]),
        ("Müller^Jörg", ["müller.dcm", unicodedata.normalize("NFD", "Müller.dcm"), "Mueller.dcm", "MULLER1.dcm"]),
        ("Ångström^Bø", ["angstrom.dcm", "aangstroem.dcm", "BØ.dcm", "bo.dcm"]),
        ("Straßer^Max", ["STRASSER.dcm", "straßer.dcm"]),
    ],
)
def test_names_are_found_however_they_are_written(tmp_path: Path, name: str, texts: list[str]) -> None:
    hidden = f"image-{hashlib.sha256(IMAGE.encode()).hexdigest()[:10]}.dcm"
    assert {text: shown(tmp_path, text, PatientName=name) for text in texts} == dict.fromkeys(texts, hidden)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "03.11.1956",
            "19561103",
            "1956-11-03",
            "3.11.1956",
            "11-03-1956",
            "03111956",
            "56_11_03",
            "031156",
            "x3-11-56",
        ),
        *("3Nov1956", "03-NOV-1956", "November 3, 1956", "1956nov03"),
    ],
)
def test_dates_of_birth_are_found_however_they_are_written(tmp_path: Path, text: str) -> None:
    assert shown(tmp_path, f"{text}/a.dcm", PatientBirthDate="19561103").startswith("study-")


@pytest.mark.parametrize(
    "text", ["MRN-4711.dcm", "mrn4711_2.dcm", "x 4711 MRN4711.dcm", "A0077.dcm", "77-5", "0099123"]
)
def test_every_number_of_a_patient_is_found(tmp_path: Path, text: str) -> None:
    other = Dataset()
    other.PatientID = "99123"
    numbers = {"PatientID": "MRN-4711", "OtherPatientIDs": ["A0077", "00775"], "OtherPatientIDsSequence": [other]}
    assert shown(tmp_path, text, **numbers).startswith("image-")


@pytest.mark.parametrize(
    "text", ["IM_0001.dcm", "lisa/wurst.dcm", "1956/series3/11.dcm", "x/64711.dcm", "olive.dcm", "1.2.840.99.1.7.3"]
)
def test_other_paths_are_shown_as_they_are(tmp_path: Path, text: str) -> None:
    attributes = {"PatientName": "Li^Wu", "PatientID": "4711", "PatientBirthDate": "19561103"}
    assert shown(tmp_path, text, **attributes) == text


@pytest.mark.parametrize("text", [f"{STUDY}/{IMAGE}.dcm", f"a{STUDY}.7/{IMAGE}", "1_2_840_99_1/1-2-840-99-1-7-3.dcm"])
def test_uids_are_identifiers_where_results_are_deidentified(tmp_path: Path, text: str) -> None:
    folder, name = shown(tmp_path, text, secret=bytes(32)).split("/")
    assert folder.startswith("study-")
    assert name.startswith("image-")
    assert hashlib.sha256(IMAGE.encode()).hexdigest()[:10] not in name
    assert shown(tmp_path, text, secret=bytes(31) + b"1") != f"{folder}/{name}"


def test_an_open_file_will_do_and_others_than_dicom_are_left_alone(tmp_path: Path) -> None:
    shown(tmp_path, "a", PatientName="Doe^Jane")
    with (tmp_path / "any.dcm").open("rb") as file:
        assert without_identifiers(file, "x/doe.dcm").startswith("x/image-")
    (tmp_path / "b").write_bytes(b"Doe^Jane")
    for path in (tmp_path / "b", tmp_path / "none", tmp_path):
        assert without_identifiers(path, "doe") == "doe"


def test_a_name_in_an_undeclared_character_set_is_found(tmp_path: Path) -> None:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID, made.PatientName = VLPhotographicImageStorage, IMAGE, b"M\xc3\xbcller^A"
    made.save_as(tmp_path / "any.dcm", enforce_file_format=True)
    assert without_identifiers(tmp_path / "any.dcm", "muller.dcm").startswith("image-")
