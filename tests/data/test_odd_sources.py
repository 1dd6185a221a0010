"""Results of images with unusual headers are valid, de-identified or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from amsam_med.data.dicom.deidentify import deidentified
from amsam_med.errors import DataError
from tests.data.dicom.test_deidentify import SECRET, results
from tests.dicom_tools import dciodvfy_errors, write_source


def of(**attributes: Any) -> Dataset:
    made = Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


FRAME = {"FrameOfReferenceUID": "1.2.3.9", "PositionReferenceIndicator": ""}
SKEWED = {"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}
SIZES = {"PixelSpacing": [0.1, 0.1], "SliceThickness": "1"}
BASIC = of(CodeValue="113100", CodingSchemeDesignator="DCM", CodeMeaning="Basic Application Confidentiality Profile")
ODD: dict[str, dict[str, Any]] = {
    "identity removed, nobody knows how": {"PatientIdentityRemoved": "YES"},
    "identity removed, method empty": {"PatientIdentityRemoved": "YES", "DeidentificationMethod": ""},
    "identity removed, with a code": {
        "PatientIdentityRemoved": "YES",
        "DeidentificationMethodCodeSequence": [BASIC],
    },
    "identity removed, in small letters": {"PatientIdentityRemoved": "yes"},
    "identity not removed": {"PatientIdentityRemoved": "NO"},
    "text burned in": {"BurnedInAnnotation": "YES"},
    "Japanese": {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎"},
    "Russian": {"SpecificCharacterSet": "ISO_IR 144", "PatientName": "\u0418\u0432\u0430\u043d"},
    "no character set": {"SpecificCharacterSet": None},
    "nothing known": dict.fromkeys(("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate"), ""),
    "a date of ACR-NEMA": {"StudyDate": "2019.05.07"},
    "numbers below zero": {"InstanceNumber": -5, "SeriesNumber": -7},
    "largest numbers": {"InstanceNumber": 2**31 - 1, "SeriesNumber": 2**31 - 1},
    "one frame": {"NumberOfFrames": 1},
    "frame of reference without a place": FRAME,
    "axes that are not at a right angle": FRAME | SKEWED | SIZES,
    "a dog": {"PatientSpeciesDescription": "Canine", "ResponsiblePerson": "Doe^J"},
    "a dog with an owner": {
        "PatientSpeciesDescription": "Canine",
        "ResponsiblePerson": "Doe^J",
        "ResponsiblePersonRole": "OWNER",
    },
    "a trial": {
        "ClinicalTrialSponsorName": "Sponsor",
        "ClinicalTrialProtocolID": "P1",
        "ClinicalTrialSubjectID": "17",
    },
    "a trial of which only the sponsor is known": {"ClinicalTrialSponsorName": "Sponsor"},
    "an age that is none": {"PatientAge": "45"},
    "two descriptions": {"StudyDescription": "one\\two"},
    "specimens that are not described": {"ContainerIdentifier": "c", "SpecimenDescriptionSequence": []},
    "other identifiers": {"OtherPatientIDsSequence": [of(PatientID="X1", TypeOfPatientID="TEXT")]},
    "compressed with loss": {"LossyImageCompression": "01"},
}


@pytest.mark.filterwarnings("ignore:.*value.*:UserWarning")  # of pydicom, while the odd image is made
@pytest.mark.parametrize("oddity", ODD)
@pytest.mark.parametrize("kind", ["VL photographic", "secondary capture"])
def test_results_of_odd_images_are_valid(tmp_path: Path, kind: str, oddity: str) -> None:
    source = write_source(tmp_path / "image.dcm", kind, **ODD[oddity])
    for secret in (None, SECRET):
        for path in results(tmp_path, source, secret):
            assert dciodvfy_errors(path) == [], secret


def test_a_patient_s_name_is_the_same_in_another_character_set(tmp_path: Path) -> None:
    source = write_source(tmp_path / "image.dcm", "VL photographic", **ODD["Japanese"])
    for path in results(tmp_path, source, secret=None):
        assert pydicom.dcmread(path).PatientName == "Yamada^Tarou=山田^太郎"


def test_an_image_with_text_burned_in_is_not_called_deidentified(tmp_path: Path) -> None:
    source = write_source(tmp_path / "image.dcm", "VL photographic", BurnedInAnnotation="YES")
    with pytest.raises(DataError, match="text is burned into this image"):
        deidentified(pydicom.dcmread(source), SECRET)
    for path in results(tmp_path, source):
        assert pydicom.dcmread(path).PatientIdentityRemoved == "YES"
