"""Common code of DICOM segmentations and measurement reports: class meanings, algorithm, source header, file.

Both are derived from one image instance. They have its patient and study, are in separate series, and refer to it by
its SOP Instance UID; its pixels are never read.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pydicom.config import RAISE
from pydicom.datadict import dictionary_VM
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sr.coding import Code
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DermoscopicPhotographyImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
    VLEndoscopicImageStorage,
    VLMicroscopicImageStorage,
    VLPhotographicImageStorage,
    VLSlideCoordinatesMicroscopicImageStorage,
    generate_uid,
)
from pydicom.valuerep import DA, TM, validate_value

from amsam_med.data.dicom.deidentify import deidentified, without_dates
from amsam_med.data.dicom.header import read_header as read_dicom_header
from amsam_med.data.dicom.header import starts_as_dicom
from amsam_med.data.quiet import quiet_decoders
from amsam_med.data.results import Labels
from amsam_med.errors import DataError, MissingExtraError
from amsam_med.files import atomic_path
from amsam_med.opening import open_regular

PRODUCT = "AM-SAM Med"
MANUFACTURER = "The AM-SAM Med developers"

_REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns")
_MAY_BE_EMPTY = (  # type 2 in DICOM: must be present, and are empty if unknown
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
_ONLY_OF_VOLUMES = (
    *("NumberOfFrames", "FrameOfReferenceUID", "PositionReferenceIndicator"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
_PARSED: Mapping[str, Callable[[str], object]] = {
    **dict.fromkeys(("PatientBirthDate", "StudyDate"), DA),
    "StudyTime": TM,
    **dict.fromkeys(("NumberOfFrames", "SeriesNumber", "InstanceNumber"), int),
}
_OF_ANIMALS = (
    *("PatientBreedDescription", "PatientBreedCodeSequence", "BreedRegistrationSequence", "PatientSexNeutered"),
    *("ResponsiblePerson", "ResponsibleOrganization"),
)
_OF_TRIALS = ("ClinicalTrialSponsorName", "ClinicalTrialProtocolID")
_TRIAL_SUBJECTS = ("ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID")
_TRIAL_TEXTS = ("ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName")
_OF_CONTAINERS = ("IssuerOfTheContainerIdentifierSequence", "ContainerTypeCodeSequence")
_PLAIN_CHARACTER_SETS = ("ISO_IR 6", "ISO_IR 100", "ISO_IR 192")
_VALIDATED = ("AS", "CS", "DA", "DS", "DT", "IS", "LO", "SH", "TM")
_SINGLE_FRAME = (  # classes of one frame by PS3.3, so no result can refer to a frame of theirs
    *(ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation, DigitalXRayImageStorageForProcessing),
    *(DigitalMammographyXRayImageStorageForPresentation, DigitalMammographyXRayImageStorageForProcessing),
    *(CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage, UltrasoundImageStorage),
    *(SecondaryCaptureImageStorage, VLEndoscopicImageStorage, VLMicroscopicImageStorage),
    *(VLSlideCoordinatesMicroscopicImageStorage, VLPhotographicImageStorage, DermoscopicPhotographyImageStorage),
)
_SEXES = ("", "M", "F", "O")
_SERIES_OFFSET = {"SEG": 1000, "SR": 2000}  # above the series numbers that modalities assign
_SERIES_NUMBERS = 100_000  # source series numbers are taken modulo this, so that the sum fits the attribute's 31 bits


class SegmentMeaning(NamedTuple):
    """The meaning of a class, in codes that other systems know.

    Attributes:
        label: For people, up to 64 characters.
        category: Kind of property (CID 7150), for example SNOMED's "Morphologically Abnormal Structure".
        type: The property itself (CID 7151 and beyond), for example SNOMED's "Skin lesion".
    """

    label: str
    category: Code
    type: Code


SKIN_LESION = SegmentMeaning(
    "Skin lesion",
    Code("49755003", "SCT", "Morphologically Abnormal Structure"),
    Code("95324001", "SCT", "Skin lesion"),
)
"""The class of the bundle ``amsam_isic``."""

PERSON = SegmentMeaning(
    "Person", Code("91723000", "SCT", "Anatomical Structure"), Code("38266002", "SCT", "Entire body")
)
"""The class of the bundle ``amsam_body``."""


class Algorithm(NamedTuple):
    """The algorithm that made a result; DICOM classifies it as automatic, and as artificial intelligence.

    Attributes:
        version: Of the program.
        weights_sha256: Of the network's weights, 64 hexadecimal digits; used as the device's serial number.
        parameters: Further settings that the result depends on, such as a threshold.
        name: Of the algorithm.
        is_reviewed: A person has corrected or confirmed the result; DICOM calls that semi-automatic.
    """

    version: str
    weights_sha256: str = ""
    parameters: Mapping[str, str] = MappingProxyType({})
    name: str = PRODUCT
    is_reviewed: bool = False

    @property
    def all_parameters(self) -> dict[str, str]:
        """The parameters, the digest of the weights first."""
        weights = {"weights_sha256": self.weights_sha256} if self.weights_sha256 else {}
        return {**weights, **self.parameters}

    @property
    def serial_number(self) -> str:
        """What distinguishes this device from others of the same version."""
        return self.weights_sha256 or f"version {self.version}"


def dicom_labels(labels: Labels) -> tuple[list[SegmentMeaning], Algorithm]:
    """Meanings of the classes and the algorithm, in DICOM's terms."""

    def code(scheme: str, value: str, meaning: str) -> Code:
        return Code(value, scheme, meaning)

    segments = [SegmentMeaning(one.label, code(*one.category), code(*one.type)) for one in labels.segments]
    network = labels.weights.get("model") or labels.weights.get("adapter", "")
    others = {f"{role}_sha256": digest for role, digest in labels.weights.items() if digest != network}
    return segments, Algorithm(labels.version, network, others)


def highdicom() -> Any:
    """The package highdicom, imported only when needed because the import takes half a second.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import highdicom as package
    except ImportError:
        raise MissingExtraError("highdicom", "dicom") from None
    return package


@quiet_decoders()
def read_header(source: Path, secret: bytes | None = None) -> Dataset:
    """The attributes of an image instance that come before its pixels.

    Args:
        source: A DICOM file with an image of one or more frames.
        secret: De-identifies the attributes, see :func:`.deidentify.deidentified`; None leaves them as they are.

    Returns:
        The attributes; those of type 2 are always present, and empty if the file lacks them.

    Raises:
        DataError: The file is not a DICOM image, lacks an identifier, or has a value that DICOM does not allow.
    """
    header = whole_header(source)
    missing = [keyword for keyword in _REQUIRED if not header.get(keyword)]
    if missing:
        raise DataError(
            f"{source.name}: this DICOM file has no {', '.join(missing)}. Give an image as a modality sent it"
        )
    for keyword in _MAY_BE_EMPTY:
        if keyword not in header:
            setattr(header, keyword, None)
    _refuse_bad_values(source, header)
    if frames_of(header) > 1 and header.SOPClassUID in _SINGLE_FRAME:
        raise DataError(
            f"{source.name}: {frames_of(header)} frames in a DICOM class for one, {header.SOPClassUID.name}, so that "
            "no result can name a frame. Export it as a Multi-frame Secondary Capture, or choose another format"
        )
    with header_faults(source, "result"):
        _make_unicode(header)
        _drop_bad_values(header)
        _complete(header)
        if secret is not None:
            header = deidentified(header, secret)
            _complete(header)  # again, as de-identification removes parts of modules
    return header


def whole_header(path: Path) -> Dataset:
    """All public attributes of a DICOM file that come before its pixels.

    Raises:
        DataError: It is no DICOM file, or its header is damaged or beyond all limits.
    """
    try:
        with open_regular(path) as file:
            if not starts_as_dicom(file):
                raise DataError("not a DICOM file; a DICOM result needs a DICOM image as its source")
            return read_dicom_header(file).dataset
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror or type(error).__name__})") from None
    except DataError as error:
        raise DataError(f"{path.name}: {error}") from None


def frames_of(header: Dataset) -> int:
    """The number of frames of an image instance."""
    return int(header.get("NumberOfFrames") or 1)


def plain_copy(header: Dataset) -> Dataset:
    """The header as that of a single-frame secondary capture, which every tool accepts and which needs no position.

    Patient, study and equipment stay. In results derived from it, the image's own class must be restored, see
    :func:`restore_class`.
    """
    plain = copy.deepcopy(header)
    plain.SOPClassUID = SecondaryCaptureImageStorage
    for keyword in _ONLY_OF_VOLUMES:
        plain.pop(keyword, None)
    return plain


def identifiers(header: Dataset, modality: Literal["SEG", "SR"], algorithm: Algorithm) -> dict[str, Any]:
    """UIDs, numbers and equipment of a result, as arguments of highdicom's constructors.

    Results of one source series by one algorithm share a series, even across runs. Instances are always new.
    """
    made_by = [algorithm.name, algorithm.version, *map("=".join, algorithm.all_parameters.items())]
    made_by += ["reviewed"] if algorithm.is_reviewed else []
    return {
        "series_instance_uid": generate_uid(entropy_srcs=[str(header.SeriesInstanceUID), modality, *made_by]),
        "series_number": int(header.get("SeriesNumber") or 0) % _SERIES_NUMBERS + _SERIES_OFFSET[modality],
        "sop_instance_uid": generate_uid(),
        "instance_number": max(1, int(header.get("InstanceNumber") or 1)),
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": PRODUCT,
        "software_versions": algorithm.version,
        "device_serial_number": algorithm.serial_number,
    }


@contextmanager
def header_faults(source: Path, what: str) -> Iterator[None]:
    """Turn a library's exceptions about a header into a DataError.

    Only the type of the exception is shown, as its text may contain a patient's data.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{source.name}: its DICOM header does not allow a {what} ({type(error).__name__}). "
            "Check the file with dciodvfy of dicom3tools, and correct its header"
        ) from None


def write_result(result: Dataset, path: Path, is_dateless: bool) -> None:
    """Write a result, whole or not at all.

    Args:
        result: The dataset; without dates it is changed in place.
        path: The file, ``.dcm``.
        is_dateless: Whether dates and times are replaced by dummies, as a de-identified result requires.
    """
    if is_dateless:
        without_dates(result)
    with atomic_path(path) as temporary:
        result.save_as(temporary, enforce_file_format=True)


def restore_class(result: Dataset, class_uid: UID) -> None:
    """Replace the class of :func:`plain_copy` in references by the image's own class."""

    def restore(dataset: Dataset, element: Any) -> None:
        if element.keyword == "ReferencedSOPClassUID" and element.value == SecondaryCaptureImageStorage:
            element.value = class_uid

    result.walk(restore)


def _refuse_bad_values(source: Path, header: Dataset) -> None:
    """Refuse values that cannot be parsed, by the attributes' names: the values are a patient's and are not shown."""
    bad = [keyword for keyword, parse in _PARSED.items() if not _is_parsed(header, keyword, parse)]
    if (header.PatientSex or "") not in _SEXES:
        bad.append("PatientSex")
    if bad:
        raise DataError(f"{source.name}: DICOM does not allow the value of {', '.join(bad)}. Correct the file's header")


def _make_unicode(header: Dataset) -> None:
    """Convert texts to UTF-8 if highdicom does not support their encoding."""
    if header.get("SpecificCharacterSet") not in (None, "", *_PLAIN_CHARACTER_SETS):
        header.decode()
        header.SpecificCharacterSet = "ISO_IR 192"


def _drop_bad_values(header: Dataset) -> None:
    """Remove optional attributes whose value is not allowed, and bring dates of the old form to today's.

    Texts that are too long and UIDs with leading zeros stay, because other systems find a study by them.
    """
    for keyword in ("PatientBirthDate", "StudyDate"):  # the form with dots, of 1985, may be read but not written
        if "." in str(header.get(keyword) or ""):
            header[keyword].value = str(header.get(keyword)).replace(".", "")
    for element in list(header):
        is_needed = element.keyword in (*_REQUIRED, *_MAY_BE_EMPTY) or element.VR in ("SQ", "UI")
        if not is_needed and element.VR in _VALIDATED and not element.is_empty and not _is_allowed(element):
            del header[element.tag]


def _is_allowed(element: DataElement) -> bool:
    values = element.value if isinstance(element.value, MultiValue) else [element.value]
    most = dictionary_VM(element.tag)
    if most == "1" and len(values) > 1:
        return False
    try:
        for value in values:
            validate_value(element.VR, str(value), RAISE)
    except ValueError:
        return False
    return element.keyword != "PatientIdentityRemoved" or element.value in ("YES", "NO")


def _complete(header: Dataset) -> None:
    """Complete modules of which only some attributes are present (PS3.3 C.7.1.1 and C.7.1.3), or remove them.

    Unknown attributes become empty if the standard allows that.
    """
    if header.get("PatientIdentityRemoved") == "YES" and not (
        header.get("DeidentificationMethod") or header.get("DeidentificationMethodCodeSequence")
    ):
        header.DeidentificationMethod = "not stated in the image"
    elif "DeidentificationMethod" in header and not header.DeidentificationMethod:
        del header.DeidentificationMethod
    is_animal = header.get("PatientSpeciesDescription") or header.get("PatientSpeciesCodeSequence")
    for keyword in _OF_ANIMALS if is_animal else ():
        if keyword not in header:
            setattr(header, keyword, None)
    if header.get("ResponsiblePerson") and not header.get("ResponsiblePersonRole"):
        header.ResponsiblePerson = None
    if not header.get("ResponsiblePerson"):
        header.pop("ResponsiblePersonRole", None)
    is_trial = all(map(header.get, _OF_TRIALS)) and any(map(header.get, _TRIAL_SUBJECTS))
    if is_trial:
        for keyword in _TRIAL_TEXTS:
            if keyword not in header:
                setattr(header, keyword, None)
    else:
        for element in list(header):
            if element.keyword.startswith("ClinicalTrial"):
                del header[element.tag]
    if header.get("SpecimenDescriptionSequence"):
        for keyword in _OF_CONTAINERS:
            if keyword not in header:
                setattr(header, keyword, None)
    else:
        for keyword in ("SpecimenDescriptionSequence", "ContainerIdentifier", *_OF_CONTAINERS):
            header.pop(keyword, None)


def _is_parsed(header: Dataset, keyword: str, parse: Callable[[str], object]) -> bool:
    try:
        value = header.get(keyword)
        return value in (None, "") or parse(str(value)) is not None
    except ValueError:
        return False
