"""pydicom's own example files read as a viewer shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import ExplicitVRLittleEndian, VLPhotographicImageStorage

from amsam_med.data.dicom import is_dicom
from amsam_med.data.readers import image_size, read_image, read_mask
from amsam_med.errors import DataError


def example(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


def write_grey(path: Path, values: np.ndarray, **attributes: object) -> Path:
    """A minimal grey image of uint8 or uint16 ``(H, W)``."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = VLPhotographicImageStorage
    dataset.SOPInstanceUID = "1.2.3"
    dataset.PatientName = "Doe^Jane"
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * values.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.PixelData = values.tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def grey_of(path: Path) -> list[int]:
    pixels = read_image(path).pixels
    assert (pixels == pixels[:1]).all()
    values: list[int] = pixels[0].ravel().tolist()
    return values


# Colour bars: red at the top, then green, blue, black, grey levels, white.
@pytest.mark.parametrize(
    "name",
    ["SC_rgb_rle.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_ybr_full_422_uncompressed.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm"],
)
def test_colour_in_every_encoding_shows_the_same_bars(name: str) -> None:
    image = read_image(example(name))
    assert image.meta == {"format": "DICOM", "original_size": (100, 100)}
    rows = image.pixels[:, [5, 25, 45, 95], 50].T.astype(int)
    assert np.abs(rows - [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]).max() <= 5


def test_the_upper_byte_of_sixteen_bit_colour_counts() -> None:
    np.testing.assert_array_equal(read_image(example("SC_rgb_rle_16bit.dcm")).pixels[:, 5, 50], [255, 0, 0])


def test_a_palette_is_looked_up() -> None:
    dataset = pydicom.dcmread(example("examples_palette.dcm"))
    index = int(dataset.pixel_array[200, 300])
    red_table = np.frombuffer(dataset.RedPaletteColorLookupTableData, np.uint16)
    assert read_image(example("examples_palette.dcm")).pixels[0, 200, 300] == red_table[index] >> 8


def test_eight_bits_without_a_window_stay_as_they_are(tmp_path: Path) -> None:
    assert grey_of(write_grey(tmp_path / "a.dcm", np.array([[3, 100, 200]], np.uint8))) == [3, 100, 200]


def test_more_bits_without_a_window_are_stretched(tmp_path: Path) -> None:
    assert grey_of(write_grey(tmp_path / "a.dcm", np.array([[1000, 1500, 2000]], np.uint16))) == [0, 128, 255]


def test_the_window_decides_what_is_black_and_white(tmp_path: Path) -> None:
    values = np.array([[0, 950, 1000, 1050, 65535]], np.uint16)
    path = write_grey(tmp_path / "a.dcm", values, WindowCenter=1000, WindowWidth=100, VOILUTFunction="LINEAR_EXACT")
    assert grey_of(path) == [0, 0, 128, 255, 255]


def test_a_window_wider_than_the_data_leaves_it_pale(tmp_path: Path) -> None:
    values = np.array([[900, 1100]], np.uint16)
    path = write_grey(tmp_path / "a.dcm", values, WindowCenter=1000, WindowWidth=2000, VOILUTFunction="LINEAR_EXACT")
    assert grey_of(path) == [115, 140]  # 900/2000 and 1100/2000 of 255


def test_a_sigmoid_window_and_a_rescale_are_applied(tmp_path: Path) -> None:
    window = {"WindowCenter": 0, "WindowWidth": 100, "VOILUTFunction": "SIGMOID"}
    path = write_grey(
        tmp_path / "a.dcm", np.array([[0, 1000, 2000]], np.uint16), RescaleSlope=1, RescaleIntercept=-1000, **window
    )
    assert grey_of(path) == [0, 128, 255]


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    values = np.array([[0, 255]], np.uint8)
    assert grey_of(write_grey(tmp_path / "a.dcm", values, PhotometricInterpretation="MONOCHROME1")) == [255, 0]


def test_several_frames_are_refused() -> None:
    with pytest.raises(DataError, match=r"SC_rgb_rle_2frame\.dcm: this DICOM file holds 2 frames; one is expected"):
        read_image(example("SC_rgb_rle_2frame.dcm"))


def test_a_report_without_a_picture_is_refused() -> None:
    with pytest.raises(DataError, match=r"test-SR\.dcm: this DICOM file holds no image"):
        read_image(example("test-SR.dcm"))


def test_a_missing_decoder_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "is_available", False)
    with pytest.raises(DataError, match=r"no decoder for JPEG-LS Lossy.*amsam-med\[dicom\]"):
        read_image(example("SC_rgb_jls_lossy_line.dcm"))


def test_damaged_files_are_refused_without_patient_data(tmp_path: Path) -> None:
    whole = write_grey(tmp_path / "a.dcm", np.zeros((64, 64), np.uint8)).read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[:-3000])
    with pytest.raises(DataError, match=r"cut\.dcm: ") as caught:
        read_image(tmp_path / "cut.dcm")
    assert "Doe" not in str(caught.value)


def test_size_comes_from_the_header() -> None:
    assert image_size(example("SC_rgb_small_odd.dcm")) == (3, 3)


def test_dicom_is_known_without_its_suffix(tmp_path: Path) -> None:
    bare = tmp_path / "1.2.840.113"
    bare.write_bytes(example("SC_rgb_rle.dcm").read_bytes())
    assert is_dicom(bare)
    assert not is_dicom(Path(__file__))
    assert read_image(bare).meta["format"] == "DICOM"


def test_a_dicom_mask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.dcm: a mask cannot be DICOM yet"):
        read_mask(write_grey(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8)))
