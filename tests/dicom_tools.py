"""DICOM images to derive results from, and tools of others to check results with.

Import the fixtures ``orthanc`` where they are used. A tool that is not installed skips its tests.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import (
    CTImageStorage,
    DermoscopicPhotographyImageStorage,
    ExplicitVRLittleEndian,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    VLPhotographicImageStorage,
    generate_uid,
)

PATIENT = {
    "PatientName": "Doe^Jane^Quimby",
    "PatientID": "MRN-4711-0815",
    "PatientBirthDate": "19561103",
    "PatientSex": "F",
    "OtherPatientIDs": "OTHER-77881",
    "PatientAddress": "12 Elm Street",
    "PatientTelephoneNumbers": "555-0142",
    "PatientComments": "allergic to latex",
    "EthnicGroup": "undisclosed",
    "AccessionNumber": "ACC20190507",
    "StudyID": "STUDY-31415",
    "StudyDate": "20190507",
    "StudyTime": "101112.271828",
    "StudyDescription": "Mole on left arm",
    "ReferringPhysicianName": "Miller^Gregory",
    "AdmissionID": "ADM-2718",
    "SeriesDescription": "dermatoscope, forearm",
    "SeriesDate": "20190507",
    "SeriesTime": "101500.271828",
    "OperatorsName": "Smith^Olivia",
    "PerformingPhysicianName": "Jones^Peter",
    "InstitutionName": "Riverside Clinic",
    "InstitutionAddress": "1 Riverside Drive",
    "StationName": "ROOM-17",
    "DeviceSerialNumber": "SN-998877",
    "ImageComments": "seen with her daughter",
    "ContentDate": "20190507",
    "ContentTime": "101600.271828",
    "AcquisitionDateTime": "20190507101530.271828",
}
"""What the source says about a patient who does not exist, and about the visit."""

SOURCES = {
    "VL photographic": (VLPhotographicImageStorage, "XC", 1),
    "dermoscopic": (DermoscopicPhotographyImageStorage, "DMS", 1),
    "secondary capture": (SecondaryCaptureImageStorage, "OT", 1),
    "true color, 3 frames": (MultiFrameTrueColorSecondaryCaptureImageStorage, "OT", 3),
    "grey, 3 frames": (MultiFrameGrayscaleByteSecondaryCaptureImageStorage, "OT", 3),
}
"""SOP class, modality and number of frames of the kinds of images that are segmented."""

SIZE = (37, 45)  # odd, so that no frame ends at a whole byte


def write_source(path: Path, kind: str, size: tuple[int, int] = SIZE, **attributes: Any) -> Path:
    """An image of one of the ``SOURCES``, as valid as its class asks for; ``attributes`` replace its own."""
    class_uid, modality, frames = SOURCES[kind]
    dataset = _common(class_uid, modality)
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.update(_of_class(class_uid, frames))
    _add_pixels(dataset, frames, size, is_grey=class_uid == MultiFrameGrayscaleByteSecondaryCaptureImageStorage)
    return _saved(dataset, path, attributes)


def write_ct(path: Path, size: tuple[int, int] = SIZE) -> Path:
    """A slice of a CT, which has a place in the patient."""
    dataset = _common(CTImageStorage, "CT")
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = generate_uid(), None
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [1, 2, 3], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [0.5, 0.5], 2
    dataset.KVP, dataset.AcquisitionNumber, dataset.PatientPosition = None, None, "HFS"
    _add_pixels(dataset, 1, size, is_grey=True)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.RescaleType = "HU"
    dataset.PixelData = bytes(2 * size[0] * size[1])
    return _saved(dataset, path, {})


def draw_masks(frames: int, classes: int = 1, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Class ids, uint8 ``(frames, H, W)``, another picture in each frame; the last of several frames is empty."""
    masks = np.random.default_rng(0).integers(0, classes + 1, (frames, *size), dtype=np.uint8)
    if frames > 1:
        masks[-1] = 0
    return masks


def frames_of_kind(kind: str) -> int:
    """How many frames the sources of a kind have."""
    return SOURCES[kind][2]


def run_tool(package: str, *command: str | Path) -> str:
    """What a program prints, or a skipped test that names the Debian package that holds it."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed; it comes with the Debian package {package}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def dciodvfy_errors(path: Path) -> list[str]:
    """What dciodvfy calls an error in a DICOM file."""
    said = run_tool("dicom3tools", "dciodvfy", "-new", path)
    assert said, "dciodvfy names at least the object it has found"
    return [line for line in said.splitlines() if line.startswith("Error")]


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The DICOMweb address of an empty Orthanc server that runs until the tests end."""
    program, plugin = shutil.which("Orthanc"), _dicomweb_plugin()
    if program is None or plugin is None:
        pytest.skip("Orthanc is not installed; it comes with the Debian packages orthanc and orthanc-dicomweb")
    folder, port = tmp_path_factory.mktemp("orthanc"), _free_port()
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(plugin)],
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log, cwd=folder)
    try:
        _wait_until_it_answers(f"http://127.0.0.1:{port}/system", server, folder / "log")
        yield f"http://127.0.0.1:{port}/dicom-web"
    finally:
        server.terminate()
        server.wait(timeout=30)


def _common(class_uid: str, modality: str) -> Dataset:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in PATIENT.items():
        setattr(dataset, keyword, value)
    dataset.SOPClassUID, dataset.Modality = class_uid, modality
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(dataset, keyword, generate_uid())
    dataset.SeriesNumber, dataset.InstanceNumber = 3, 7
    dataset.Manufacturer, dataset.ManufacturerModelName = "Maker of cameras", "Camera 1"
    dataset.SoftwareVersions = "1.0"
    dataset.PatientOrientation, dataset.Laterality = ["L", "F"], "L"
    return dataset


def _of_class(class_uid: str, frames: int) -> Dataset:
    """What one class asks for beyond the common attributes."""
    dataset = Dataset()
    is_photograph = class_uid in (VLPhotographicImageStorage, DermoscopicPhotographyImageStorage)
    if is_photograph:
        dataset.AcquisitionContextSequence = []
        dataset.LossyImageCompression = "00"
        dataset.PixelSpacing = [0.05, 0.05]
    else:
        dataset.ConversionType = "DI"
    if class_uid == DermoscopicPhotographyImageStorage:
        dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = generate_uid(), None
        dataset.AnatomicRegionSequence = [_code("14975008", "SCT", "Forearm")]
        dataset.RecognizableVisualFeatures = "NO"
        for keyword in ("LightSourcePolarization", "EmitterColorTemperature", "ContactMethod"):
            setattr(dataset, keyword, None)
        dataset.OpticalMagnificationFactor = None
    if frames > 1:
        dataset.NumberOfFrames = frames
        dataset.FrameIncrementPointer = Tag("PageNumberVector")
        dataset.PageNumberVector = list(range(1, frames + 1))
        dataset.BurnedInAnnotation = "NO"
    return dataset


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _add_pixels(dataset: Dataset, frames: int, size: tuple[int, int], is_grey: bool) -> None:
    dataset.Rows, dataset.Columns = size
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.SamplesPerPixel = 1 if is_grey else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if is_grey else "RGB"
    if is_grey:
        dataset.PresentationLUTShape, dataset.RescaleIntercept, dataset.RescaleSlope = "IDENTITY", 0, 1
        dataset.RescaleType = "US"
    else:
        dataset.PlanarConfiguration = 0
    count = frames * size[0] * size[1] * dataset.SamplesPerPixel
    dataset.PixelData = (np.arange(count + count % 2) % 251).astype(np.uint8).tobytes()


def _saved(dataset: Dataset, path: Path, attributes: dict[str, Any]) -> Path:
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    return path


def _dicomweb_plugin() -> Path | None:
    folders = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/share/orthanc/plugins")
    return next((found for folder in folders for found in sorted(Path(folder).glob("libOrthancDicomWeb.so*"))), None)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait_until_it_answers(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(150):
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(address, timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"Orthanc does not answer:\n{log.read_text()[-2000:]}")
