"""Studies on a DICOMweb server: a real Orthanc in front, `amsam label` behind; its client and OHIF's requests."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import highdicom
import numpy as np
import pydicom
import pytest
import requests
import SimpleITK
from dicomweb_client.api import DICOMwebClient

from amsam_med.cli import main
from amsam_med.data.dicom.seg import write_dicom_seg
from amsam_med.data.dicom.shared import SKIN_LESION, Algorithm
from amsam_med.data.dicom.web import DicomWeb
from amsam_med.data.readers import read_image, read_mask
from amsam_med.data.writers import write_mask_png
from amsam_med.segment import SegmentOptions, segment
from pipelines.monailabel.process import Server, wait_for_training
from tests.browser import open_browser
from tests.dicom_tools import dciodvfy_errors, orthanc, write_source

__all__ = ["orthanc"]  # a fixture

pytestmark = [  # MONAI Label's client leaves its sockets open
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Clinic(NamedTuple):
    """An Orthanc with one study, and the server that labels it.

    Attributes:
        server: `amsam label`.
        orthanc: Address of the DICOMweb server.
        images: Files that were stored, by id: five images in series of their own, two in one series.
        masks: True masks, by id.
    """

    server: Server
    orthanc: str
    images: dict[str, Path]
    masks: dict[str, Path]


@pytest.fixture(scope="module")
def clinic(
    orthanc: str, serve: Callable[..., Server], drawn: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Clinic]:
    folder, study, shared = tmp_path_factory.mktemp("clinic"), pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
    images, masks = {}, {}
    for number, picture in enumerate(sorted((drawn / "images").iterdir())):
        path = folder / f"{number}.dcm"
        write_source(
            path, "VL photographic", StudyInstanceUID=study, **({"SeriesInstanceUID": shared} if number > 3 else {})
        )
        dataset = pydicom.dcmread(path)
        pixels = read_image(picture).pixels  # (3, H, W)
        dataset.Rows, dataset.Columns = pixels.shape[1:]
        content = pixels.transpose(1, 2, 0).tobytes()
        dataset.PixelData = content + b"\0" * (len(content) % 2)
        dataset.save_as(path)
        image = str(dataset.SOPInstanceUID if number > 3 else dataset.SeriesInstanceUID)
        images[image], masks[image] = path, next((drawn / "masks").glob(f"{picture.stem}*"))
    DicomWeb(orthanc).store(images.values())
    options = ("--models", "amsam_isic", "--base", "tiny-general", "--folder", str(folder / "kept"))
    server = serve(f"{orthanc}?StudyInstanceUID={study}", *options, log=folder / "log")
    yield Clinic(server, orthanc, images, masks)
    server.stop()


@pytest.fixture(scope="module")
def client(clinic: Clinic) -> Any:
    return clinic.server.client()


def segmentations_of(clinic: Clinic, image: str) -> list[pydicom.Dataset]:
    """All DICOM segmentations on the server that refer to an image."""
    uid = pydicom.dcmread(clinic.images[image]).SOPInstanceUID
    found = (DicomWeb(clinic.orthanc).instance(one) for one in DicomWeb(clinic.orthanc).segmentations({}))
    read = [highdicom.seg.segread(io.BytesIO(content)) for content in found]
    return [
        one
        for one in read
        if one.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == uid
    ]


def test_images_are_those_of_the_query(clinic: Clinic, client: Any) -> None:
    listed = client.info()["datastore"]
    sample = client.next_sample("doubt", {})
    assert (listed["total"], listed["completed"]) == (len(clinic.images), 0)
    assert set(client.datastore()["objects"]) == set(clinic.images)
    assert sample["id"] in clinic.images
    assert Path(sample["path"]).read_bytes()[128:132] == b"DICM"


def test_a_mask_is_that_of_the_command_line(clinic: Clinic, serve: Callable[..., Server], tmp_path: Path) -> None:
    image, path = next(iter(clinic.images.items()))
    segment([path], tmp_path / "out", SegmentOptions(formats=("png", "dicom-seg"), has_report=False))
    server = serve(clinic.orthanc, "--models", "amsam_isic", "--folder", str(tmp_path / "kept"), log=tmp_path / "log")
    mask, _ = server.client().infer("amsam_isic", image, {})
    query = {"image": image, "output": "dicom_seg"}  # what OHIF's plug-in asks for
    params = {"params": '{"label_info": [{"name": "Skin lesion"}]}'}
    answer = requests.post(f"{server.address}/infer/amsam_isic", params=query, data=params, timeout=60)
    server.stop()
    assert Path(mask).read_bytes() == next((tmp_path / "out" / "masks").iterdir()).read_bytes()
    ours = pydicom.dcmread(io.BytesIO(answer.content))
    theirs = pydicom.dcmread(next((tmp_path / "out" / "dicom_seg").iterdir()))
    assert answer.headers["content-type"] == "application/dicom"
    assert (ours.PixelData, ours.SeriesInstanceUID) == (theirs.PixelData, theirs.SeriesInstanceUID)
    assert ours.SegmentSequence == theirs.SegmentSequence


def test_ohif_gets_its_volume(clinic: Clinic) -> None:
    image = next(iter(clinic.images))
    params = {"params": '{"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": false}'}
    query = {"image": image, "output": "image"}
    answer = requests.post(f"{clinic.server.address}/infer/amsam_isic", params=query, data=params, timeout=60)
    file = clinic.server.log.with_name("answer.nrrd")
    file.write_bytes(answer.content)
    assert SimpleITK.ReadImage(str(file)).GetSize()[:2] == read_image(clinic.images[image]).pixels.shape[:0:-1]


def test_viewers_reach_the_dicomweb_server_through_this_one(clinic: Clinic) -> None:
    study = pydicom.dcmread(next(iter(clinic.images.values()))).StudyInstanceUID
    through = DICOMwebClient(f"{clinic.server.address}/proxy/dicom")
    assert len(through.search_for_instances(study)) >= len(clinic.images)


def test_a_final_label_is_stored_as_a_persons_segmentation(clinic: Clinic, client: Any, tmp_path: Path) -> None:
    image, truth = next(iter(clinic.masks.items()))
    label_info = {"label_info": [{"name": "Skin lesion", "idx": 1}]}
    assert client.save_label(image, str(truth), "final", label_info)["label"] == image
    (stored,) = segmentations_of(clinic, image)
    (segment_description,) = stored.SegmentSequence
    source = pydicom.dcmread(clinic.images[image])
    assert segment_description.SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert (segment_description.SegmentLabel, stored.SeriesDescription) == (
        "Skin lesion",
        "AM-SAM Med segmentation, reviewed",
    )
    assert (stored.PatientID, stored.StudyInstanceUID) == (source.PatientID, source.StudyInstanceUID)
    np.testing.assert_array_equal(stored.pixel_array, read_mask(truth))
    stored.save_as(tmp_path / "stored.dcm")
    assert dciodvfy_errors(tmp_path / "stored.dcm") == []


def test_a_label_that_does_not_fit_is_not_stored(clinic: Clinic, client: Any, tmp_path: Path) -> None:
    image = list(clinic.images)[1]
    write_mask_png(np.zeros((5, 7), np.uint8), tmp_path / "small.png")
    files = {"label": ("small.png", (tmp_path / "small.png").read_bytes())}
    url = f"{clinic.server.address}/datastore/label"
    answer = requests.put(url, params={"image": image, "tag": "final"}, files=files, timeout=60)
    assert answer.status_code == 422
    assert "the label has (H, W) (5, 7), its image" in answer.json()["detail"]
    assert segmentations_of(clinic, image) == []


def test_training_takes_people_s_segmentations_from_the_server_and_no_others(clinic: Clinic, tmp_path: Path) -> None:
    others = [image for image in clinic.images if not segmentations_of(clinic, image)]
    reviewed = Algorithm("0", name="Another workstation", is_reviewed=True)
    algorithms = (reviewed, reviewed, reviewed, Algorithm("0", name="Another algorithm"))
    for number, (image, algorithm) in enumerate(zip(others, algorithms, strict=False)):
        path = tmp_path / f"{number}.dcm"
        write_dicom_seg(clinic.images[image], read_mask(clinic.masks[image]), path, [SKIN_LESION], algorithm)
        DicomWeb(clinic.orthanc).store([path])
    server = clinic.server
    server.stop()
    server.start()  # a label that was saved before is still one
    client = server.client()
    assert client.info()["datastore"]["completed"] == 4
    assert client.next_sample("first", {})["id"] in others[3:]
    client.train_start("amsam_isic", {})
    status = wait_for_training(client)
    assert status["status"] == "DONE", "\n".join(status["details"])
    assert client.info()["train_stats"]["amsam_isic"]["versions"][0]["examples"] == 4
    kept = server.log.with_name("kept") / "labels" / "final" / f"{others[0]}.png"
    np.testing.assert_array_equal(read_mask(kept), read_mask(clinic.masks[others[0]]))


def test_ohif_shows_the_study_with_its_segmentations(clinic: Clinic) -> None:
    """The real viewer, which comes with MONAI Label, in a real browser."""
    study = pydicom.dcmread(next(iter(clinic.images.values()))).StudyInstanceUID
    with open_browser() as browser:
        browser.driver.get(f"{clinic.server.address}/ohif/viewer?StudyInstanceUIDs={study}")
        browser.wait_for("document.body?.innerText.includes('AM-SAM Med segmentation, reviewed')", seconds=60)
        browser.wait_for("document.querySelector('canvas')", seconds=60)
        shown = browser.run("return document.body?.innerText")
    assert shown.count("dermatoscope, forearm") >= len(clinic.images) - 1  # two share a series


@pytest.mark.parametrize(
    ("method", "path", "text"),
    [
        ("PUT", "/datastore/image?image=new", "store new ones there"),
        ("DELETE", "/datastore/image?id={image}", "remove them there"),
        ("DELETE", "/datastore/label?id={image}&tag=final", "remove them there"),
    ],
)
def test_the_server_stays_the_owner(clinic: Clinic, method: str, path: str, text: str) -> None:
    files = {"file": ("new.png", b"x")} if method == "PUT" else None
    image = next(iter(clinic.images))
    answer = requests.request(method, clinic.server.address + path.format(image=image), files=files, timeout=60)
    assert (answer.status_code, text in answer.json()["detail"]) == (422, True)


def test_a_server_that_is_not_there_is_said_at_the_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's attempts
    assert main(["label", "--studies", "http://127.0.0.1:9/dicom-web"]) == 1
    assert "http://127.0.0.1:9/dicom-web: ConnectionError" in capsys.readouterr().err


def test_a_folder_keeps_its_labels_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["label", "--studies", str(tmp_path), "--folder", str(tmp_path)]) == 1
    assert "--folder is for a DICOMweb server" in capsys.readouterr().err
