"""De-identification of DICOM attributes by the Basic Application Confidentiality Profile, PS3.15 Annex E.

The package dicom-anonymizer provides table E.1-1 of the standard. The table is applied here, because that package only
processes the outermost level of a dataset: UIDs and names inside sequences would remain.
"""

from __future__ import annotations

import copy
import hmac
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, generate_uid

from amsam_med.data.quiet import quiet_decoders
from amsam_med.errors import ConfigError, DataError, MissingExtraError

SHORTEST_SECRET = 16
"""The shortest secret in bytes; with fewer, the original UIDs could be found by brute force."""

_Action: TypeAlias = Literal["remove", "empty", "empty or date", "dummy", "uid", "inside"]

_TABLE = "dicomfields_2026c"  # the edition of the standard
_ACTIONS: Mapping[str, _Action] = {  # if the table allows several actions, the one that leaves least
    "X_TAGS": "remove",
    "X_Z_TAGS": "remove",
    "X_D_TAGS": "remove",
    "X_Z_D_TAGS": "remove",
    "Z_TAGS": "empty",
    "Z_D_TAGS": "empty or date",
    "D_TAGS": "dummy",
    "U_TAGS": "uid",
    "X_Z_U_STAR_TAGS": "inside",
}
_NEEDED: Mapping[BaseTag, _Action] = {  # required in dermoscopic images, although the table would allow removing them
    Tag("AcquisitionContextSequence"): "empty",
    Tag("DeviceSerialNumber"): "dummy",
}
_STANDARD_ROOT = "1.2.840.10008."  # UIDs that DICOM itself gives: classes, syntaxes, well-known frames of reference
_DUMMIES = {"DA": "19000101", "TM": "000000", "DT": "19000101000000", "AS": "000Y", "DS": "0", "IS": "0", "OB": b"\0\0"}
_DUMMY_TEXT = "REMOVED"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_NUMBERS = ("FD", "FL", "SL", "SS", "UL", "US")
_METHOD = "PS3.15 E.1 basic profile; pixels not cleaned"


class _Rules(NamedTuple):
    """Table E.1-1: the action for each attribute, and the repeating groups that are removed as a whole."""

    actions: Mapping[BaseTag, _Action]
    groups: frozenset[int]


@quiet_decoders()
def deidentified(dataset: Dataset, secret: bytes) -> Dataset:
    """A copy of the dataset, de-identified by the Basic Application Confidentiality Profile at every depth.

    Attributes of table E.1-1 are removed if it allows that, else emptied, else given a dummy value; private attributes,
    curves and overlays are removed. Each UID is replaced by a keyed digest of it: files of a study stay together,
    within a run and between runs, and the original UIDs cannot be found without the secret.

    Pixels are not inspected, although by PS3.3 C.7.1.1 "Patient Identity Removed" is a statement about them as well. So
    an image with pixels that declares burned-in text (Burned In Annotation) is refused. Its header alone, from which
    results are derived, is accepted: masks and measurements contain none of the text.

    Args:
        dataset: An image or its header; it is not changed.
        secret: Random bytes that are kept apart from the results, such as ``secrets.token_bytes(32)``.

    Returns:
        A copy with Patient Identity Removed and the method's code (113100, DCM).

    Raises:
        DataError: The dataset is a report, whose text no table can clean, or an image with text burned in.
        ConfigError: The secret is shorter than :data:`SHORTEST_SECRET`.
        MissingExtraError: dicom-anonymizer is not installed.
    """
    if len(secret) < SHORTEST_SECRET:
        raise ConfigError(
            f"the secret for de-identifying has {len(secret)} bytes; give {SHORTEST_SECRET} or more random ones"
        )
    if "ContentSequence" in dataset:
        raise DataError("a structured report cannot be de-identified by rules; de-identify the image that it is about")
    has_pixels = any(keyword in dataset for keyword in _PIXELS)
    if has_pixels and str(dataset.get("BurnedInAnnotation") or "").strip().upper() == "YES":
        raise DataError(
            "text is burned into this image, perhaps the patient's name, and no pixels are cleaned here. Black it out "
            "with another program first, and set Burned In Annotation to NO"
        )
    clean = copy.deepcopy(dataset)
    _clean(clean, _rules(), secret)
    if isinstance(getattr(dataset, "file_meta", None), FileMetaDataset):
        clean.file_meta = _file_meta(dataset.file_meta, clean)
    _mark(clean)
    return clean


def is_deidentified(dataset: Dataset) -> bool:
    """Whether the dataset says that the patient's identity was removed by the basic profile."""
    codes = dataset.get("DeidentificationMethodCodeSequence") or []
    return dataset.get("PatientIdentityRemoved") == "YES" and any(code.get("CodeValue") == "113100" for code in codes)


def without_dates(dataset: Dataset) -> None:
    """Replace every date and time by the same dummy, in place: the date of a result reveals that of the examination."""

    def hide(_: Dataset, element: DataElement) -> None:
        if element.VR in ("DA", "TM", "DT") and element.value:
            element.value = _DUMMIES[element.VR]

    dataset.walk(hide)
    dataset.LongitudinalTemporalInformationModified = "REMOVED"


def _clean(dataset: Dataset, rules: _Rules, secret: bytes) -> None:
    for tag in list(dataset.keys()):
        # Private attributes may contain anything; the repeating groups are curves and overlays.
        if tag.is_private or tag.group & 0xFF00 in rules.groups:
            del dataset[tag]
            continue
        element = dataset[tag]
        action = rules.actions.get(tag, "inside")
        if action == "remove" or (action == "dummy" and element.VR == "SQ"):
            del dataset[tag]
        elif action in ("empty", "empty or date", "dummy"):
            element.value = _value_for(element, action)
        elif action == "uid":
            element.value = _new_uids(element.value, secret)
        elif element.VR == "SQ":
            for item in element.value:
                _clean(item, rules, secret)


def _rules() -> _Rules:
    try:
        from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector as table
    except ImportError:
        raise MissingExtraError("dicom-anonymizer", "dicom") from None
    rows = table(_TABLE)
    actions = {
        BaseTag(tag[0] << 16 | tag[1]): action
        for name, action in _ACTIONS.items()
        for tag in rows[name]
        if len(tag) == 2
    }
    groups = frozenset(tag[0] & tag[2] for name in _ACTIONS for tag in rows[name] if len(tag) == 4)
    return _Rules(actions | dict(_NEEDED), groups)


def _value_for(element: DataElement, action: _Action) -> object:
    if element.VR == "SQ":
        return Sequence()
    is_date = element.VR in ("DA", "TM", "DT")
    if element.is_empty or action == "empty" or (action == "empty or date" and not is_date):
        return None
    return 0 if element.VR in _NUMBERS else _DUMMIES.get(element.VR, _DUMMY_TEXT)


def _new_uids(value: object, secret: bytes) -> object:
    if isinstance(value, MultiValue):
        return [_new_uid(str(uid), secret) for uid in value]
    return _new_uid(str(value), secret) if value else value


def _new_uid(uid: str, secret: bytes) -> UID:
    if uid.startswith(_STANDARD_ROOT):
        return UID(uid)  # class and syntax UIDs identify nobody, and no reader would understand others
    return generate_uid(entropy_srcs=[hmac.new(secret, uid.encode(), "sha256").hexdigest()])


def _file_meta(old: FileMetaDataset, clean: Dataset) -> FileMetaDataset:
    """File meta information with only what is needed to read the file; the rest names applications and instances."""
    meta = FileMetaDataset()
    for keyword in ("MediaStorageSOPClassUID", "TransferSyntaxUID"):
        if keyword in old:
            setattr(meta, keyword, old[keyword].value)
    if "SOPInstanceUID" in clean:
        meta.MediaStorageSOPInstanceUID = clean.SOPInstanceUID
    return meta


def _mark(dataset: Dataset) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
    code.CodeMeaning = "Basic Application Confidentiality Profile"
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = _METHOD
    dataset.DeidentificationMethodCodeSequence = Sequence([code])
    dataset.LongitudinalTemporalInformationModified = "REMOVED"
