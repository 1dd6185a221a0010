"""The server as its clients meet it: MONAI Label's own, and the requests that CVAT, Slicer, OHIF and QuPath send."""

from __future__ import annotations

import json
import shutil
import time
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import SimpleITK

from amsam_med.data.readers import read_mask
from amsam_med.evaluate import dice_score
from amsam_med.segment import SegmentOptions, segment
from pipelines.monailabel.process import Server, wait_for_training

UNSEEN = 40

pytestmark = [  # MONAI Label's client leaves its sockets open
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    return server.client()


@pytest.fixture(scope="module")
def picture(server: Server) -> Path:
    return min(path for path in server.studies.iterdir() if path.suffix in (".png", ".jpg"))


def test_it_tells_what_it_offers(client: Any) -> None:
    info = client.info()
    assert {name: model["type"] for name, model in info["models"].items()} == {
        "amsam_isic": "segmentation",
        "amsam_isic_interactive": "deepgrow",
    }
    assert set(info["strategies"]) == {"random", "first", "doubt", "doubt_amsam_isic"}
    assert set(info["scoring"]) == {"dice", "doubt_amsam_isic"}
    assert list(info["trainers"]) == ["amsam_isic"]
    assert info["labels"] == ["Skin lesion"]


@pytest.mark.parametrize("strategy", ["first", "random", "doubt"])
def test_it_names_the_next_image(client: Any, server: Server, strategy: str) -> None:
    sample = client.next_sample(strategy, {})
    assert Path(sample["path"]).parent == server.studies
    assert Path(sample["path"]).stem == sample["id"]


def test_a_mask_is_that_of_the_command_line(client: Any, server: Server, picture: Path, tmp_path: Path) -> None:
    segment([picture], tmp_path / "out", SegmentOptions(formats=("png",), has_report=False))
    expected = (tmp_path / "out" / "masks" / f"{picture.stem}_segmentation.png").read_bytes()
    by_id, _ = client.infer("amsam_isic", picture.stem, {})
    by_file, _ = client.infer("amsam_isic", "", {}, file=str(picture))
    assert Path(by_id).read_bytes() == Path(by_file).read_bytes() == expected


def test_cvats_detector_gets_polygons(client: Any, picture: Path) -> None:
    mask_file, params = client.infer("amsam_isic", "", {"output": "json"}, file=str(picture))
    mask = read_mask(mask_file)
    (element,) = params["annotations"][0]["annotation"]["elements"]
    assert element["label"] == "Skin lesion"
    drawn = PIL.Image.new("L", mask.shape[::-1])
    for contour in element["contours"]:
        PIL.ImageDraw.Draw(drawn).polygon([tuple(point) for point in contour], fill=1)
    assert 2 * (np.asarray(drawn) & mask).sum() / (np.asarray(drawn).sum() + mask.sum()) > 0.98


def test_cvats_interactor_gets_a_mask(client: Any, picture: Path) -> None:
    whole = read_mask(client.infer("amsam_isic", picture.stem, {})[0])
    y, x = (int(edge) for edge in np.argwhere(whole).mean(axis=0))
    params = {"output": "mask", "foreground": [[x, y]], "background": [[2, 2]], "roi": tight_box(whole)}
    mask = read_mask(client.infer("amsam_isic_interactive", "", params, file=str(picture))[0])
    assert mask.shape == whole.shape
    assert mask[y, x] == 1
    assert mask[2, 2] == 0


@pytest.mark.parametrize("ending", [".nrrd", ".nii.gz"])
def test_slicer_and_ohif_get_a_volume_of_one_slice(client: Any, picture: Path, ending: str) -> None:
    png, _ = client.infer("amsam_isic", picture.stem, {})
    file, _ = client.infer("amsam_isic", picture.stem, {"result_extension": ending, "result_dtype": "uint8"})
    volume = SimpleITK.ReadImage(file)
    assert file.endswith(ending)
    assert volume.GetPixelID() == SimpleITK.sitkUInt8
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(volume)[0], read_mask(png))


def test_qupath_gets_polygons(client: Any, server: Server, picture: Path) -> None:
    whole = read_mask(client.infer("amsam_isic", picture.stem, {})[0])
    _, answer = client.wsi_infer("amsam_isic", picture.stem, output="asap")
    document = xml.etree.ElementTree.fromstring(answer)
    (polygon, *_) = document.iterfind("Annotations/Annotation")
    points = [(float(one.attrib["X"]), float(one.attrib["Y"])) for one in polygon.iterfind("Coordinates/Coordinate")]
    drawn = PIL.Image.new("L", whole.shape[::-1])
    PIL.ImageDraw.Draw(drawn).polygon(points, fill=1)
    assert polygon.attrib["PartOfGroup"] == "Skin lesion"
    assert 2 * (np.asarray(drawn) & whole).sum() / (np.asarray(drawn).sum() + whole.sum()) > 0.95


def test_qupaths_rectangle_is_a_box(client: Any, picture: Path) -> None:
    whole = read_mask(client.infer("amsam_isic", picture.stem, {})[0])
    x1, y1, x2, y2 = tight_box(whole)
    by_box = client.infer("amsam_isic_interactive", picture.stem, {"roi": [x1, y1, x2, y2], "output": "json"})[1]
    region = {"location": [x1, y1], "size": [x2 - x1, y2 - y1]}
    by_region = json.loads(client.wsi_infer("amsam_isic", picture.stem, region, output="json")[1])
    assert by_region["annotations"][0]["annotation"]["elements"] == by_box["annotations"][0]["annotation"]["elements"]


def test_digital_slide_archive_gets_its_elements(client: Any, picture: Path) -> None:
    answer = json.loads(client.wsi_infer("amsam_isic", picture.stem, output="dsa")[1])
    assert {element["group"] for element in answer["elements"]} == {"Skin lesion"}


def test_labels_are_saved_and_given_back(client: Any, server: Server, drawn: Path, picture: Path) -> None:
    mask = next((drawn / "masks").glob(f"{picture.stem}*"))
    label = client.save_label(picture.stem, str(mask), "final", {})
    assert label["label"] == picture.stem
    file = client.download_label(picture.stem, "final")
    np.testing.assert_array_equal(read_mask(file), read_mask(mask))


def test_a_training_with_one_label_says_what_is_missing(client: Any) -> None:
    client.train_start("amsam_isic", {})
    status = wait_for_training(client)
    assert status["status"] == "ERROR"
    assert "training needs 2 labelled images, got 1; label more images" in "\n".join(status["details"])


def tight_box(mask: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def test_four_labels_make_it_better(serve: Callable[..., Server], data_root: Path, tmp_path: Path) -> None:
    """The story: label four images, press train, and the rest is segmented better than before."""
    images = sorted((data_root / "isic2018" / "val" / "images").iterdir())[: 4 + UNSEEN]
    studies = tmp_path / "studies"
    studies.mkdir()
    for image in images:
        shutil.copy(image, studies)
    server = serve(studies, "--models", "amsam_isic", "--base", "tiny-general")
    client = server.client()
    masks = {image.stem: next((data_root / "isic2018" / "val" / "masks").glob(f"{image.stem}*")) for image in images}
    before = mean_dice(client, images[4:], masks)
    for image in images[:4]:
        client.save_label(image.stem, str(masks[image.stem]), "final", {})
    start = time.monotonic()
    client.train_start("amsam_isic", {})
    assert wait_for_training(client)["status"] == "DONE"
    seconds = time.monotonic() - start
    after = mean_dice(client, images[4:], masks)
    server.stop()
    print(f"four labels: Dice on {UNSEEN} unseen images {before:.4f} before, {after:.4f} after, in {seconds:.0f} s")
    assert after > before


def mean_dice(client: Any, images: list[Path], masks: dict[str, Path]) -> float:
    import torch

    scores = []
    for image in images:
        found = read_mask(client.infer("amsam_isic", image.stem, {})[0])
        scores.append(dice_score(torch.from_numpy(found), torch.from_numpy(read_mask(masks[image.stem]))))
    return sum(scores) / len(scores)
