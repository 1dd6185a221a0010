"""pydicom's own example files read as a viewer shows them."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import gdcm
import highdicom
import numpy as np
import PIL.Image
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import Decoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    VLPhotographicImageStorage,
)

from amsam_med.data.dicom import reader as dicom
from amsam_med.data.dicom.reader import is_dicom
from amsam_med.data.readers import image_size, open_image, read_image, read_mask
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


FRAMES = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)  # 105 bytes each: frames begin at odd places
COARSE = np.kron(FRAMES[:, :4, :4], np.ones((8, 8, 1), np.uint8))
UNCOMPRESSED = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
]


def new_dataset(values: np.ndarray, syntax: UID, **attributes: object) -> Dataset:
    """A multi-frame image of ``(N, H, W)`` or ``(N, H, W, 3)``; its pixels are still missing."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = values.shape[:3]
    dataset.SamplesPerPixel = values.shape[3] if values.ndim == 4 else 1
    dataset.PhotometricInterpretation = "RGB" if values.ndim == 4 else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * values.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(values.dtype.kind == "i")
    if values.ndim == 4:
        dataset.PlanarConfiguration = 0
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def write_native(path: Path, values: np.ndarray, syntax: UID, **attributes: object) -> Path:
    """An uncompressed file; with PlanarConfiguration 1 the colours of a frame follow each other."""
    dataset = new_dataset(values, syntax, **attributes)
    stored = values.transpose(0, 3, 1, 2) if dataset.get("PlanarConfiguration") else values
    if syntax == ExplicitVRBigEndian:
        stored = stored.astype(stored.dtype.newbyteorder(">"))
    content = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    is_words = syntax == ExplicitVRBigEndian and values.itemsize == 1  # written as words, whose bytes are swapped
    dataset.PixelData = np.frombuffer(content, np.uint16).byteswap().tobytes() if is_words else content
    dataset["PixelData"].VR = "OW"
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_coded(path: Path, frames: list[bytes], dataset: Dataset) -> Path:
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=True)
    return path


def by_pillow(frame: np.ndarray, format_name: str, **options: object) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(frame).save(stream, format_name, **options)
    return stream.getvalue()


def assert_as_pydicom_decodes(path: Path, count: int) -> None:
    """Colour and 8-bit grey, frame by frame and out of order."""
    dataset = pydicom.dcmread(path)
    shape = (count, dataset.Rows, dataset.Columns, dataset.SamplesPerPixel)
    expected = np.broadcast_to(dataset.pixel_array.reshape(shape), (*shape[:3], 3))
    with open_image(path) as file:
        assert file.count == count
        for index in reversed(range(count)):
            np.testing.assert_array_equal(file.pixels(index), expected[index].transpose(2, 0, 1))


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
    with pytest.raises(DataError, match=r"SC_rgb_rle_2frame\.dcm: holds 2 frames; one is expected"):
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


@pytest.mark.parametrize("syntax", UNCOMPRESSED, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("planar", [0, 1])
def test_uncompressed_colour_comes_back_frame_by_frame(tmp_path: Path, syntax: UID, planar: int) -> None:
    path = write_native(tmp_path / "a.dcm", FRAMES, syntax, PlanarConfiguration=planar)
    with open_image(path) as file:
        for index in (2, 0, 1):
            np.testing.assert_array_equal(file.pixels(index), FRAMES[index].transpose(2, 0, 1))
    assert_as_pydicom_decodes(path, 3)


@pytest.mark.parametrize("syntax", UNCOMPRESSED, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_uncompressed_grey_comes_back_frame_by_frame(tmp_path: Path, syntax: UID, kind: str) -> None:
    path = write_native(tmp_path / "a.dcm", FRAMES[..., 0], syntax, PhotometricInterpretation=kind)
    with open_image(path) as file:
        for index in (1, 2, 0):
            shown = FRAMES[index, ..., 0] if kind == "MONOCHROME2" else 255 - FRAMES[index, ..., 0]
            np.testing.assert_array_equal(file.pixels(index), np.broadcast_to(shown, (3, 5, 7)))


@pytest.mark.parametrize("kind", ["YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("syntax", UNCOMPRESSED[:3], ids=lambda syntax: syntax.name)
def test_uncompressed_ybr_becomes_rgb(tmp_path: Path, syntax: UID, kind: str) -> None:
    values = np.random.default_rng(1).integers(0, 256, (2, 4, 6, 3), np.uint8)
    attributes = {"PhotometricInterpretation": kind}
    if kind == "YBR_FULL_422":  # Y Y B R for two pixels
        dataset = new_dataset(values, ExplicitVRLittleEndian, **attributes)
        dataset.PixelData = values.reshape(2, 4, 3, 6)[..., :4].tobytes()
        dataset.save_as(path := tmp_path / "a.dcm", enforce_file_format=True)
    else:
        path = write_native(tmp_path / "a.dcm", values, syntax, **attributes)
    assert_as_pydicom_decodes(path, 2)


@pytest.mark.parametrize("syntax", UNCOMPRESSED[:3], ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32])
def test_grey_of_more_bits_is_windowed_after_its_rescale(tmp_path: Path, syntax: UID, dtype: type) -> None:
    values = np.array([[[0, 500, 1000]]], dtype)
    path = write_native(tmp_path / "a.dcm", values, syntax, RescaleSlope=2, RescaleIntercept=-1000)
    assert read_image(path).pixels[0].tolist() == [[0, 128, 255]]
    assert read_image(path, window=(0, 4000)).pixels[0].tolist() == [[64, 128, 191]]


def test_a_window_replaces_that_of_the_file_and_leaves_colour(tmp_path: Path) -> None:
    grey = write_grey(tmp_path / "a.dcm", np.array([[0, 100, 200]], np.uint16), WindowCenter=1, WindowWidth=1)
    assert read_image(grey, window=(100, 200)).pixels[0].tolist() == [[0, 128, 255]]
    colour = example("SC_rgb_rle.dcm")
    np.testing.assert_array_equal(read_image(colour, window=(1, 1)).pixels, read_image(colour).pixels)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEGLSNearLossless], ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("frames", [COARSE, COARSE[..., 0]], ids=["colour", "grey"])
def test_what_pydicom_encodes_comes_back(tmp_path: Path, syntax: UID, frames: np.ndarray) -> None:
    dataset = new_dataset(frames, ExplicitVRLittleEndian)
    options = {"jls_error": 2} if syntax == JPEGLSNearLossless else {}
    plugin = "pydicom" if syntax == RLELossless else "pyjpegls"  # gdcm ends the process here
    dataset.compress(syntax, frames, encoding_plugin=plugin, generate_instance_uid=False, **options)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert_as_pydicom_decodes(tmp_path / "a.dcm", 3)
    if not options:
        pixels = read_image(tmp_path / "a.dcm", index=1).pixels
        assert (pixels == frames[1].transpose(2, 0, 1) if frames.ndim == 4 else pixels[0] == frames[1]).all()


@pytest.mark.parametrize("kind", ["RGB", "YBR_RCT"])
def test_jpeg_2000_comes_back(tmp_path: Path, kind: str) -> None:
    dataset = new_dataset(FRAMES, JPEG2000Lossless, PhotometricInterpretation=kind)
    coded = [by_pillow(frame, "JPEG2000", no_jp2=True, mct=int(kind == "YBR_RCT")) for frame in FRAMES]
    path = write_coded(tmp_path / "a.dcm", coded, dataset)
    assert_as_pydicom_decodes(path, 3)
    np.testing.assert_array_equal(read_image(path, index=2).pixels, FRAMES[2].transpose(2, 0, 1))


def test_jpeg_2000_of_sixteen_bits_comes_back(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(1, 8, 8)
    coded = [by_pillow(values[0], "JPEG2000", no_jp2=True)]
    path = write_coded(tmp_path / "a.dcm", coded, new_dataset(values, JPEG2000Lossless))
    assert_as_pydicom_decodes_grey(path, values[0])


def assert_as_pydicom_decodes_grey(path: Path, values: np.ndarray) -> None:
    np.testing.assert_array_equal(pydicom.dcmread(path).pixel_array, values)
    shares = (values - values.min()) / np.ptp(values.astype(float))
    np.testing.assert_array_equal(read_image(path).pixels[0], np.rint(255 * shares))


@pytest.mark.parametrize("subsampling", [0, 1])
def test_jpeg_baseline_is_decoded_as_pydicom_does(tmp_path: Path, subsampling: int) -> None:
    kind = "YBR_FULL_422" if subsampling else "YBR_FULL"
    coded = [by_pillow(frame, "JPEG", quality=90, subsampling=subsampling) for frame in COARSE]
    dataset = new_dataset(COARSE, JPEGBaseline8Bit, PhotometricInterpretation=kind)
    assert_as_pydicom_decodes(write_coded(tmp_path / "a.dcm", coded, dataset), 3)


@pytest.mark.parametrize(
    "kind", [gdcm.TransferSyntax.JPEGLosslessProcess14, gdcm.TransferSyntax.JPEGLosslessProcess14_1]
)
@pytest.mark.parametrize(
    "values", [FRAMES[:1, :4, :6], FRAMES[:1, :4, :6, 0].astype(np.uint16) * 250], ids=["colour", "16 bits"]
)
def test_jpeg_lossless_is_decoded_apart(tmp_path: Path, kind: int, values: np.ndarray) -> None:
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(write_native(tmp_path / "plain.dcm", values, ExplicitVRLittleEndian)))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(kind))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(tmp_path / "a.dcm"))
    assert writer.Write()
    assert pydicom.dcmread(tmp_path / "a.dcm").file_meta.TransferSyntaxUID.name.startswith("JPEG Lossless")
    if values.ndim == 4:
        assert_as_pydicom_decodes(tmp_path / "a.dcm", 1)
    else:
        assert_as_pydicom_decodes_grey(tmp_path / "a.dcm", values[0])


def decodable_examples() -> list[Path]:
    """pydicom's own files of 8-bit grey without a window, and of colour."""
    found = []
    for path in sorted(example("MR_small.dcm").parent.glob("*.dcm")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        kind, bits = dataset.get("PhotometricInterpretation", ""), dataset.get("BitsStored")
        if bits == 8 and "WindowCenter" not in dataset and (kind == "MONOCHROME2" or kind[:3] in ("RGB", "YBR")):
            found.append(path)
    assert len(found) > 25
    return found


@pytest.mark.filterwarnings("ignore")  # pydicom's, for the comparison; that we raise none is tested in test_quiet.py
@pytest.mark.parametrize("path", decodable_examples(), ids=lambda path: path.name)
def test_every_example_is_decoded_as_pydicom_does(path: Path) -> None:
    count = int(pydicom.dcmread(path, stop_before_pixels=True).get("NumberOfFrames", 1))
    assert_as_pydicom_decodes(path, count)


@pytest.mark.parametrize(
    "name", ["SC_rgb_rle_2frame.dcm", "SC_ybr_full_422_uncompressed.dcm", "examples_ybr_color.dcm"]
)
def test_colour_is_decoded_as_highdicom_does(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = highdicom.imread(example(name))
    with open_image(example(name)) as file:
        for index in range(0, file.count, 11):
            frame = expected.get_frame(index + 1, dtype=np.uint8)
            np.testing.assert_array_equal(file.pixels(index), frame.transpose(2, 0, 1))


def test_only_the_frame_asked_for_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    genuine = dicom.get_frame

    def counting(*arguments: object, **options: object) -> bytes:
        asked.append(arguments[1])
        return genuine(*arguments, **options)

    monkeypatch.setattr(dicom, "get_frame", counting)
    with open_image(example("examples_ybr_color.dcm")) as file:
        assert (file.count, file.size(7), asked) == (30, (240, 320), [])
        file.pixels(17)
    assert asked == [17]


def test_a_palette_of_sixteen_bit_indices_is_looked_up(tmp_path: Path) -> None:
    values = np.array([[[0, 1, 2]]], np.uint16)
    tables = {
        f"{colour}PaletteColorLookupTable{what}": content
        for colour, table in {"Red": [0, 255, 7], "Green": [9, 0, 8], "Blue": [1, 2, 3]}.items()
        for what, content in {
            "Descriptor": [3, 0, 16],
            "Data": (np.array(table, np.uint16) << 8).tobytes(),
        }.items()
    }
    path = write_native(
        tmp_path / "a.dcm", values, ExplicitVRLittleEndian, PhotometricInterpretation="PALETTE COLOR", **tables
    )
    assert read_image(path).pixels[:, 0].tolist() == [[0, 255, 7], [9, 0, 8], [1, 2, 3]]


def spaced(**measures: object) -> Dataset:
    item = Dataset()
    item.PixelMeasuresSequence = Sequence([Dataset()])
    for name, value in measures.items():
        setattr(item.PixelMeasuresSequence[0], name, value)
    return item


@pytest.mark.parametrize(
    ("attributes", "spacing"),
    [
        ({"PixelSpacing": [0.5, 0.25]}, (0.5, 0.25)),
        ({"SharedFunctionalGroupsSequence": Sequence([spaced(PixelSpacing=[0.2, 0.1])])}, (0.2, 0.1)),
        ({"PerFrameFunctionalGroupsSequence": Sequence([spaced(PixelSpacing=[0.3, 0.4])] * 2)}, (0.3, 0.4)),
        ({"ImagerPixelSpacing": [0.1, 0.1], "NominalScannedPixelSpacing": [0.1, 0.1]}, None),
        ({"PixelSpacing": [0, 0.25]}, None),
        ({"PixelSpacing": None}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("is_undefined", [False, True])
def test_the_spacing_is_that_in_the_patient(
    tmp_path: Path, attributes: dict[str, object], spacing: tuple[float, float] | None, is_undefined: bool
) -> None:
    dataset = pydicom.dcmread(write_native(tmp_path / "a.dcm", FRAMES, ExplicitVRLittleEndian, **attributes))
    for name in attributes:
        if name.endswith("Sequence"):
            dataset[name].is_undefined_length = is_undefined
    dataset.save_as(tmp_path / "b.dcm")
    with open_image(tmp_path / "b.dcm") as file:
        assert file.spacing_mm == spacing


def test_what_all_frames_share_is_used(tmp_path: Path) -> None:
    item = Dataset()
    item.PixelValueTransformationSequence, item.FrameVOILUTSequence = Sequence([Dataset()]), Sequence([Dataset()])
    item.PixelValueTransformationSequence[0].RescaleSlope = 1
    item.PixelValueTransformationSequence[0].RescaleIntercept = -1000
    item.FrameVOILUTSequence[0].WindowCenter, item.FrameVOILUTSequence[0].WindowWidth = 0, 401
    values = np.array([[[800, 1000, 1300]]], np.uint16)
    shared = Sequence([item])
    path = write_native(tmp_path / "a.dcm", values, ExplicitVRLittleEndian, SharedFunctionalGroupsSequence=shared)
    assert read_image(path).pixels[0].tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("name", ["scan.ima", "1.2.840.10008", "photo.jpg", "IM0001", "notes.txt"])
def test_dicom_is_known_by_how_it_starts(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(example("SC_rgb_rle.dcm").read_bytes())
    assert is_dicom(path)
    with open_image(path) as file:
        assert (file.format, file.part, file.count) == ("DICOM", "frame", 1)


def test_a_file_without_preamble_is_dicom_by_its_suffix(tmp_path: Path) -> None:
    for syntax in UNCOMPRESSED[:3]:
        path = write_native(tmp_path / "whole.dcm", FRAMES, syntax)
        dataset = pydicom.dcmread(path)
        del dataset.file_meta
        encoding = (syntax.is_implicit_VR, syntax.is_little_endian)
        dataset.save_as(tmp_path / "bare.dcm", implicit_vr=encoding[0], little_endian=encoding[1])
        np.testing.assert_array_equal(read_image(tmp_path / "bare.dcm", 1).pixels, FRAMES[1].transpose(2, 0, 1))


def test_the_unpacked_copy_of_a_deflated_file_is_deleted(tmp_path: Path) -> None:
    path = write_native(tmp_path / "a.dcm", FRAMES, DeflatedExplicitVRLittleEndian)
    with path.open("rb") as raw:
        file = dicom.DicomFile(raw)
        assert file._copy is None  # until a frame is asked for
        file.pixels(0)
        copy = file._copy
        assert copy is not None
        file.close()
    assert copy.closed


@pytest.mark.parametrize(("value", "is_annotated"), [("YES", True), ("NO", False), ("", False)])
def test_text_that_is_burned_in_is_told(tmp_path: Path, value: str, is_annotated: bool) -> None:
    path = write_grey(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8), BurnedInAnnotation=value)
    with open_image(path) as file:
        assert file.is_annotated == is_annotated
