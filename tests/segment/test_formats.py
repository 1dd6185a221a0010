"""Every format of a run on files of many pictures: as many results as there should be, in place, read by others."""

from __future__ import annotations

import csv
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from amsam_med import cli
from amsam_med.data.nifti import SliceAxis
from amsam_med.model.amsam import Prediction
from amsam_med.segment import SegmentOptions, segment
from amsam_med.segment.formats import FORMATS
from tests.dicom_tools import write_source
from tests.small_bundle import write_picture, write_small_bundle

SIZE = (48, 64)  # height and width of pages and frames, in pixels
FRAMES = 3
VOLUME = (40, 30, 20)
CUBOID = (slice(10, 30), slice(8, 22), slice(5, 15))
AFFINE = np.array([[0.0, 2, 0, -7], [3, 0, 0, 5], [0, 0, 4, 11], [0, 0, 0, 1]])
PICTURES = {"pages": FRAMES, "frames": FRAMES, "volume": VOLUME[2]}
AREA = "42798000"  # of SNOMED CT
LEAST_OVERLAP = 0.6  # IoU; the network's pixels are four of its input's


class DarkNetwork:
    """A network to which what is darker than half is an object."""

    settings: ClassVar = {"prompt": "box"}

    def embed(self, inputs: Tensor) -> Tensor:
        return inputs

    def predict(self, inputs: Tensor, boxes: Tensor | None = None) -> Prediction:
        dark = 0.5 - inputs.mean(dim=1, keepdim=True)  # (B, 1, S, S)
        dark = torch.nn.functional.avg_pool2d(dark, 4)
        return Prediction(20 * torch.cat([-dark, dark], dim=1), torch.ones(len(inputs), 2))


def draw_blocks() -> NDArray[np.uint8]:
    """Bright pictures ``(FRAMES, H, W, 3)`` with a dark block that wanders to the right."""
    pictures = np.full((FRAMES, *SIZE, 3), 230, np.uint8)
    for number in range(FRAMES):
        pictures[number, 12:36, 4 + 12 * number : 28 + 12 * number] = 20
    return pictures


def write_inputs(folder: Path) -> None:
    """A TIFF, a DICOM and a NIfTI file of several pictures, and an archive of the three."""
    folder.mkdir()
    pages = [Image.fromarray(picture) for picture in draw_blocks()]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    write_source(folder / "frames.dcm", "true color, 3 frames", SIZE, PixelData=draw_blocks().tobytes())
    volume = np.full(VOLUME, 100, np.int16)
    volume[CUBOID] = -100
    nibabel.save(nibabel.Nifti1Image(volume, AFFINE), folder / "volume.nii.gz")
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for name in ("pages.tif", "frames.dcm", "volume.nii.gz"):
            archive.write(folder / name, f"deep/{name}")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture(scope="module")
def options(bundle: Path) -> SegmentOptions:
    return SegmentOptions(str(bundle), formats=tuple(FORMATS), device="cpu", overrides={"network": DarkNetwork()})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs") / "files"
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def output(inputs: Path, options: SegmentOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "out"
    summary = segment([inputs], folder, options)
    assert (summary.done, summary.failed, summary.pictures) == (6, 0, 2 * sum(PICTURES.values())), summary.failures
    return folder


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "results.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def masks_of(output: Path, name: str) -> NDArray[np.uint8]:
    """The PNG masks of a file in order, ``(N, H, W)`` of 0 and 1."""
    paths = sorted((output / "masks").glob(f"{name}_*_segmentation.png"))
    assert len(paths) == PICTURES[Path(name).name]
    return np.stack([np.asarray(Image.open(path)) for path in paths]) // 255


def overlap(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """IoU of two masks."""
    return float((found.astype(bool) & expected).sum() / (found.astype(bool) | expected).sum())


def test_there_are_as_many_results_of_each_format_as_pictures_or_files(output: Path) -> None:
    pictures, files, dicom = 2 * sum(PICTURES.values()), 2 * len(PICTURES), 2
    expected = {"png": pictures, "overlay": pictures, "contour": pictures}
    expected |= {"nifti": files, "dicom-seg": dicom, "dicom-sr": dicom}
    found = {name: sum(path.is_file() for path in (output / form.folder).rglob("*")) for name, form in FORMATS.items()}
    assert found == expected


def test_each_picture_has_a_row_and_each_result_is_named_there(output: Path) -> None:
    rows = rows_of(output)
    for name, count in PICTURES.items():
        mine = [row for row in rows if Path(row["file"]).name.startswith(name) and "all.zip" not in row["file"]]
        assert [row["picture"] for row in mine] == [str(number) for number in range(1, count + 1)]
        assert mine[-1]["mask_file"] == f"masks/{name}_{count:04}_segmentation.png"
    named = {row[form.column] for row in rows for form in FORMATS.values() if row[form.column]}
    found = [path for form in FORMATS.values() for path in (output / form.folder).rglob("*") if path.is_file()]
    assert named == {path.relative_to(output).as_posix() for path in found}


@pytest.mark.parametrize("name", ["pages", "frames"])
def test_masks_of_pages_and_frames_lie_on_their_objects(name: str, output: Path) -> None:
    masks = masks_of(output, name)
    assert masks.shape == (FRAMES, *SIZE)
    for mask, picture in zip(masks, draw_blocks(), strict=True):
        assert overlap(mask, picture[..., 0] < 128) > LEAST_OVERLAP


@pytest.mark.parametrize("name", PICTURES)
def test_members_of_an_archive_give_what_the_files_themselves_give(name: str, output: Path) -> None:
    loose = sorted((output / "masks").glob(f"{name}_*"))
    packed = sorted((output / "masks" / "all" / "deep").glob(f"{name}_*"))
    assert len(loose) == PICTURES[name]
    assert [path.name for path in loose] == [path.name for path in packed]
    assert [path.read_bytes() for path in loose] == [path.read_bytes() for path in packed]
    volumes = [output / "nifti" / folder / f"{name}_segmentation.nii.gz" for folder in ("", "all/deep")]
    assert volumes[0].read_bytes() == volumes[1].read_bytes()


@pytest.mark.parametrize("axis", ["auto", 0, 1, 2])
def test_a_segmented_volume_lies_on_its_source_whatever_the_slices(
    axis: SliceAxis, inputs: Path, options: SegmentOptions, tmp_path: Path
) -> None:
    chosen = replace(options, formats=("png", "nifti"), slice_axis=axis)
    place = 2 if axis == "auto" else axis
    assert segment([inputs / "volume.nii.gz"], tmp_path, chosen).pictures == VOLUME[place]
    image = nibabel.load(tmp_path / "nifti" / "volume_segmentation.nii.gz")
    found, expected = np.asarray(image.dataobj), np.zeros(VOLUME, bool)
    expected[CUBOID] = True
    assert (found.dtype, found.shape) == (np.uint8, VOLUME)
    np.testing.assert_array_equal(image.affine, AFFINE)
    assert overlap(found, expected) > LEAST_OVERLAP
    for number in range(VOLUME[place]):
        mask = np.asarray(Image.open(tmp_path / "masks" / f"volume_{number + 1:04}_segmentation.png"))
        np.testing.assert_array_equal(mask.T // 255, found.take(number, axis=place))


@pytest.mark.parametrize("name", ["pages", "frames"])
def test_pages_and_frames_become_slices_of_a_volume(name: str, output: Path) -> None:
    volume = nibabel.load(output / "nifti" / f"{name}_segmentation.nii.gz")
    np.testing.assert_array_equal(np.asarray(volume.dataobj).T, masks_of(output, name))


@pytest.mark.parametrize("folder", ["", "all/deep/"])
def test_a_dicom_segmentation_holds_the_masks_by_frame(folder: str, inputs: Path, output: Path) -> None:
    source = pydicom.dcmread(inputs / "frames.dcm", stop_before_pixels=True)
    read = highdicom.seg.segread(output / "dicom_seg" / f"{folder}frames_seg.dcm")
    masks = read.get_pixels_by_source_frame(source.SOPInstanceUID, range(1, FRAMES + 1), combine_segments=True)
    np.testing.assert_array_equal(masks, masks_of(output, f"{folder}frames"))


@pytest.mark.parametrize("folder", ["", "all/deep/"])
def test_a_dicom_report_measures_each_frame(folder: str, output: Path) -> None:
    content = highdicom.sr.srread(output / "dicom_sr" / f"{folder}frames_sr.dcm").content
    groups = content.get_planar_roi_measurement_groups()
    measured = [one for group in groups for one in group.get_measurements()]
    areas = [int(one.value) for one in measured if (one.name.value, one.unit.value) == (AREA, "{pixels}")]
    assert areas == masks_of(output, f"{folder}frames").sum(axis=(1, 2)).tolist()


@pytest.mark.parametrize("name", ["pages", "all/deep/frames", "volume"])
def test_outlines_and_overlays_fit_their_pictures(name: str, output: Path) -> None:
    for number, mask in enumerate(masks_of(output, name), 1):
        with Image.open(output / "overlays" / f"{name}_{number:04}_overlay.jpg") as overlay:
            assert overlay.size == mask.shape[::-1]
        outline = json.loads((output / "contours" / f"{name}_{number:04}_contour.geojson").read_text())
        assert sum(one["properties"]["area_px"] for one in outline["features"]) == mask.sum()
        corners = [
            corner for one in outline["features"] for polygon in one["geometry"]["coordinates"] for corner in polygon[0]
        ]
        if mask.any():
            rows, columns = np.nonzero(mask)
            assert np.min(corners, axis=0).tolist() == [columns.min(), rows.min()]
            assert np.max(corners, axis=0).tolist() == [columns.max() + 1, rows.max() + 1]


def test_pages_of_several_sizes_fit_all_formats_but_a_volume(options: SegmentOptions, tmp_path: Path) -> None:
    pages = [Image.new("RGB", size, "white") for size in ((30, 20), (20, 30))]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    summary = segment([tmp_path / "pages.tif"], tmp_path / "out", options)
    text = "pages.tif: pictures of several sizes do not fit into one NIfTI file"
    assert [error for _, error in summary.failures] == [text]
    assert not [path for path in (tmp_path / "out").rglob("*pages*") if path.is_file()]
    others = tuple(name for name in FORMATS if name != "nifti")
    assert segment([tmp_path / "pages.tif"], tmp_path / "other", replace(options, formats=others)).pictures == 2


def test_the_command_line_takes_all_formats_at_once_and_the_table_alone(tmp_path: Path, bundle: Path) -> None:
    write_picture(tmp_path / "a.png")
    words = ["segment", str(tmp_path / "a.png"), "--bundle", str(bundle), "--device", "cpu", "--format"]
    every = "png,overlay,contour,nifti,dicom-seg,dicom-sr,csv"
    assert cli.main([*words, every, "-o", str(tmp_path / "all")]) == 0
    assert cli.main([*words, "csv", "-o", str(tmp_path / "table")]) == 0
    always = {"results.csv", "run.json", "report.html", "journal.sqlite"}
    assert {path.name for path in (tmp_path / "table").iterdir()} == always
    folders = {"masks", "overlays", "contours", "nifti"}  # a PNG file has no DICOM results
    assert {path.name for path in (tmp_path / "all").iterdir()} == always | folders
