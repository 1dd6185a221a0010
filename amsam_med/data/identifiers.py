"""Whether the path of a DICOM file tells whose image it is, and the path without that."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath

import pydicom

from amsam_med.data.dicom import is_dicom
from amsam_med.data.quiet import quiet_decoders

_NAMED = ("PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName")
_NUMBERED = ("PatientID", "OtherPatientIDs", "PatientBirthDate", "AccessionNumber")
_SHORTEST = 3  # characters: shorter words stand in too many names by chance


def without_identifiers(path: Path, text: str) -> str:
    """A path as text, its parts replaced that hold the patient's name, an identifier or the date of birth.

    A folder becomes "study-" and a file "image-" with ten digits of the sha256 of the study's or the instance's UID, so
    that files of one study stay together. Other files than DICOM, and DICOM files that cannot be read, are left alone.

    Args:
        path: The file.
        text: What is to be shown of its path.
    """
    try:
        if not is_dicom(path):
            return text
        with quiet_decoders():
            tags = [*_NAMED, *_NUMBERED, "StudyInstanceUID", "SOPInstanceUID"]
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags), force=True)
            names = [word for tag in _NAMED for word in re.split(r"[\W_]+", str(dataset.get(tag, "")))]
            numbers = [re.sub(r"[\W_]+", "", str(dataset.get(tag, ""))) for tag in _NUMBERED]
            study, image = str(dataset.get("StudyInstanceUID", "")), str(dataset.get("SOPInstanceUID", path.name))
    except Exception:  # whatever is wrong with it, its reader will say so
        return text
    patterns = [re.escape(word) for word in names if len(word) >= _SHORTEST]
    patterns += [rf"(?<!\d){re.escape(word)}(?!\d)" for word in numbers if len(word) >= _SHORTEST]
    if not patterns:
        return text
    telling = re.compile("|".join(patterns), re.IGNORECASE)
    *folders, name = PurePosixPath(text).parts
    shown = [_digest("study", study) if _tells(telling, folder) else folder for folder in folders]
    suffix = "".join(PurePosixPath(name).suffixes[-1:]) if PurePosixPath(name).suffix[1:].isalpha() else ""
    shown.append(_digest("image", image) + suffix if _tells(telling, name) else name)
    return PurePosixPath(*shown).as_posix()


def _tells(telling: re.Pattern[str], part: str) -> bool:
    return bool(telling.search(part) or telling.search(re.sub(r"[\W_]+", "", part)))


def _digest(kind: str, uid: str) -> str:
    return f"{kind}-{hashlib.sha256(uid.encode()).hexdigest()[:10]}"
