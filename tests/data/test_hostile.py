"""Hostile files give an image or a DataError, quickly and without much memory."""

from __future__ import annotations

import gzip
import io
import os
import resource
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    VLPhotographicImageStorage,
)

from amsam_med.data import pictures, readers
from amsam_med.data.dicom import reader as dicom
from amsam_med.data.readers import image_size, open_image, read_image
from amsam_med.errors import DataError

PICTURE = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
EXAMPLES = (
    *("SC_rgb_rle_2frame.dcm", "SC_rgb_small_odd.dcm", "SC_rgb_small_odd_jpeg.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm"),
    *("SC_rgb_jls_lossy_line.dcm", "MR_small_bigendian.dcm", "image_dfl.dcm", "SC_rgb_gdcm_KY.dcm", "badVR.dcm"),
)


def coded(format_name: str, picture: PIL.Image.Image | None = None, **options: object) -> bytes:
    stream = io.BytesIO()
    (picture or PIL.Image.fromarray(PICTURE)).save(stream, format_name, **options)
    return stream.getvalue()


def nifti(values: np.ndarray, is_packed: bool = False, **header: object) -> bytes:
    image = nibabel.Nifti1Image(values, np.eye(4))
    content = bytearray(image.to_bytes())
    start = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in header.items():
        start[name] = value
    content[:348] = start.binaryblock
    return gzip.compress(bytes(content)) if is_packed else bytes(content)


def dataset(syntax: UID = ExplicitVRLittleEndian, **attributes: object) -> Dataset:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.SOPClassUID, made.SOPInstanceUID = VLPhotographicImageStorage, "1.2.3"
    made.Rows, made.Columns, _ = PICTURE.shape
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation = 7, 0
    made.PixelData = PICTURE.tobytes() + b"\0"
    made["PixelData"].VR = "OB"
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def written(made: Dataset) -> bytes:
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def seeds() -> dict[str, bytes]:
    """Small valid files of every format."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    picture = PIL.Image.fromarray(PICTURE)
    files = {
        "a.png": coded("PNG", exif=exif),
        "16.png": coded("PNG", PIL.Image.fromarray(PICTURE[..., 0].astype(np.uint16) << 8)),
        "palette.png": coded("PNG", picture.convert("P"), transparency=3),
        "a.jpg": coded("JPEG", exif=exif),
        "progressive.jpg": coded("JPEG", progressive=True),
        "cmyk.jpg": coded("JPEG", picture.convert("CMYK")),
        "phone.jpg": coded("MPO", save_all=True, append_images=[picture]),
        "a.bmp": coded("BMP"),
        "a.webp": coded("WEBP", lossless=True, exif=exif),
        "a.gif": coded("GIF"),
        "moving.gif": coded("GIF", save_all=True, append_images=[picture.rotate(180)]),
        "a.tif": coded("TIFF", exif=exif, save_all=True, append_images=[PIL.Image.fromarray(PICTURE)]),
        "grey.nii": nifti(PICTURE[..., 0]),
        "volume.nii": nifti(PICTURE.astype(np.float32)),
        "volume.nii.gz": nifti(PICTURE.astype(np.int16), is_packed=True),
    }
    for name in EXAMPLES:
        files[name] = Path(str(get_testdata_file(name, download=False))).read_bytes()
    return files


SEEDS = seeds()


def refused(path: Path, content: bytes) -> str:
    """The text of the DataError that a file ends in."""
    path.write_bytes(content)
    text = read_or_refuse(path)
    assert text.startswith(path.name)
    return text


def read_or_refuse(path: Path) -> str:
    """Look at a file's first pictures, or at the form of its fault, whose text is handed back."""
    try:
        with open_image(path) as file:
            for index in range(min(file.count, 3)):
                pixels = file.pixels(index)
                assert pixels.dtype == np.uint8
                assert pixels.shape == (3, *file.size(index))
    except DataError as error:
        text = str(error)
    else:
        return ""
    assert text.isprintable()
    assert len(text) <= 300
    return text


@contextmanager
def little(seconds: float = 10, megabytes: float = 300) -> Iterator[None]:
    """Fails if the block takes long, or raises the most memory that this process ever had.

    Time is the processor's, so that what else the machine does is not counted.
    """
    start, most = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.process_time() - start < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < megabytes * 1024


@pytest.mark.parametrize("name", SEEDS)
def test_every_cut_ends_in_an_image_or_a_data_error(tmp_path: Path, name: str) -> None:
    whole, path = SEEDS[name], tmp_path / name
    places = sorted({*range(0, min(len(whole), 400), 7), *np.linspace(0, len(whole) - 1, 40, dtype=int).tolist()})
    with little(seconds=30):
        for place in places:
            path.write_bytes(whole[:place])
            read_or_refuse(path)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.gif", "a.nii", "a.nii.gz", "a.dcm"])
@pytest.mark.parametrize("content", [b"", b"\0", b"no image, but words\n" * 50, bytes(5000)])
def test_empty_files_and_words_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    with little():
        refused(tmp_path / name, content)


def test_pixels_that_no_one_has_are_refused_from_the_header(tmp_path: Path) -> None:
    side = 60_000
    chunk = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    start = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + chunk + struct.pack(">I", zlib.crc32(b"IHDR" + chunk))
    )
    jpeg = bytearray(coded("JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    tiff = bytearray(coded("TIFF"))
    for tag in (256, 257):
        at = tiff.index(struct.pack("<HHL", tag, 4, 1))
        tiff[at + 8 : at + 12] = struct.pack("<L", side)
    gif = bytearray(coded("GIF"))
    gif[6:10] = struct.pack("<HH", side, side)
    files = {"a.png": start + SEEDS["a.png"][33:], "a.jpg": bytes(jpeg), "a.tif": bytes(tiff), "a.gif": bytes(gif)}
    with little(seconds=2):
        for name, content in files.items():
            assert "at most 85,000,000 are decoded" in refused(tmp_path / name, content)


def test_many_pages_are_refused_and_a_ring_of_pages_ends(tmp_path: Path) -> None:
    pages = 200_000
    empty = b"".join(struct.pack("<HL", 0, 8 + 6 * (page + 1)) for page in range(pages))
    page = coded("TIFF")
    ring = bytearray(page)
    entries = struct.unpack_from("<H", ring, struct.unpack_from("<L", ring, 4)[0])[0]
    at = struct.unpack_from("<L", ring, 4)[0] + 2 + 12 * entries
    ring[at : at + 4] = ring[4:8]
    with little():
        refused(tmp_path / "many.tif", b"II*\0" + struct.pack("<L", 8) + empty)
        (tmp_path / "ring.tif").write_bytes(bytes(ring))
        with open_image(tmp_path / "ring.tif") as file:
            assert file.count == 1
            np.testing.assert_array_equal(file.pixels(), PICTURE.transpose(2, 0, 1))


def test_a_jpeg_of_endless_scans_is_refused(tmp_path: Path) -> None:
    whole = coded("JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    scan = whole[last:-2]
    with little():
        text = refused(tmp_path / "a.jpg", whole[:-2] + scan * 1000 + whole[-2:])
    assert "scans; at most 100 are decoded" in text


def test_exif_that_reads_the_same_bytes_again_and_again_is_refused(tmp_path: Path) -> None:
    tags = 20_000
    data = 8 + 2 + 12 * tags
    length = 1_000_000
    entries = b"".join(struct.pack("<HHLL", 0x9000 + tag % 4096, 1, length, data) for tag in range(tags))
    exif = b"II*\0" + struct.pack("<LH", 8, tags) + entries + bytes(length)
    with little():
        assert "bytes of EXIF" in refused(tmp_path / "a.png", coded("PNG", exif=exif))


@pytest.mark.parametrize("shape", [(1, 1), (4, 30_000), (30_000, 4)])
@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "TIFF", "BMP"])
def test_very_small_and_very_long_pictures_are_read(tmp_path: Path, shape: tuple[int, int], format_name: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(coded(format_name, PIL.Image.new("RGB", shape[::-1], "white")))
    with little():
        assert read_image(path).pixels.shape == (3, *shape)
        assert image_size(path) == shape


@pytest.mark.parametrize(
    "attributes",
    [
        {"Rows": 65535, "Columns": 65535},
        {"NumberOfFrames": 2_000_000_000},
        {"NumberOfFrames": -1},
        {"BitsAllocated": 65535, "BitsStored": 65535},
        {"BitsAllocated": 64, "BitsStored": 64},
        {"BitsAllocated": 12},
        {"BitsStored": 0},
        {"SamplesPerPixel": 65535},
        {"SamplesPerPixel": 0},
        {"PhotometricInterpretation": "MONOCHROME2"},
        {"PhotometricInterpretation": ""},
        {"PlanarConfiguration": 7},
        {"PixelRepresentation": 9},
        {"Rows": 0},
    ],
)
def test_absurd_dicom_headers_are_refused(tmp_path: Path, attributes: dict[str, object]) -> None:
    with little(seconds=2):
        refused(tmp_path / "a.dcm", written(dataset(**attributes)))


@pytest.mark.parametrize("bits", [{"BitsAllocated": 32, "BitsStored": 32}, {"BitsAllocated": 8, "BitsStored": 8}])
def test_frames_without_end_are_refused_where_they_are_compressed(tmp_path: Path, bits: dict[str, int]) -> None:
    made = dataset(JPEGBaseline8Bit, NumberOfFrames=2_000_000_000, **bits)
    made.PixelData = encapsulate([coded("JPEG")])
    with little(seconds=2):
        assert "2,000,000,000 frames" in refused(tmp_path / "a.dcm", written(made))


@pytest.mark.parametrize(
    ("syntax", "frame"),
    [
        (JPEGBaseline8Bit, coded("JPEG", PIL.Image.new("RGB", (9000, 9000)))),
        (JPEG2000Lossless, b"\xff\x4f\xff\x51" + struct.pack(">HHLLLL", 47, 0, 60000, 60000, 0, 0) + bytes(60)),
        (JPEGLSLossless, b"\xff\xd8\xff\xf7" + struct.pack(">HBHHB", 17, 8, 60000, 60000, 3) + bytes(60)),
        (JPEGBaseline8Bit, b"\xff\xd8" + b"\xff\xe0\x00\x02" * 5000),
        (JPEGBaseline8Bit, b"\xff\xd8" + b"\xff" * 5000),
    ],
)
def test_a_frame_of_another_size_than_its_header_is_refused(tmp_path: Path, syntax: UID, frame: bytes) -> None:
    made = dataset(syntax)
    made.PixelData = encapsulate([frame])
    with little(seconds=2):
        assert "of another size" in refused(tmp_path / "a.dcm", written(made))


def test_a_deflated_bomb_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom, "DEFLATED_LIMIT", 20_000_000)
    made = dataset(DeflatedExplicitVRLittleEndian, PixelData=bytes(40_000_000))
    content = written(made)
    assert len(content) < 100_000
    with little(seconds=5, megabytes=100):
        assert "bytes, at most 20,000,000. Give it" in refused(tmp_path / "a.dcm", content)


@pytest.mark.parametrize("depth", [50, 100_000])
def test_sequences_within_sequences_end(tmp_path: Path, depth: int) -> None:
    head = written(dataset()).split(struct.pack("<HH", 0x28, 2))[0]
    nested = (struct.pack("<HH2s2xL", 0x08, 0x1140, b"SQ", 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * depth
    with little():
        refused(tmp_path / "a.dcm", head + nested)


def test_sequences_of_endless_items_end(tmp_path: Path) -> None:
    head = written(dataset()).split(struct.pack("<HH", 0x28, 2))[0]
    items = b"\xfe\xff\x00\xe0\0\0\0\0" * 1_000_000
    endless = struct.pack("<HH2s2xL", 0x08, 0x1140, b"SQ", 0xFFFFFFFF) + items
    with little(seconds=30, megabytes=1500):
        refused(tmp_path / "a.dcm", head + endless)


def test_fragments_without_end_are_refused(tmp_path: Path) -> None:
    made = dataset(JPEGBaseline8Bit, NumberOfFrames=2)
    made.PixelData = encapsulate([coded("JPEG")] * 2, has_bot=False)
    content = written(made)
    end = content.rindex(b"\xfe\xff\xdd\xe0")
    with little():
        refused(tmp_path / "a.dcm", content[:end] + b"\xfe\xff\x00\xe0\0\0\0\0" * 1_000_000 + content[end:])


def test_a_palette_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    made = dataset(SamplesPerPixel=1, PhotometricInterpretation="PALETTE COLOR", PixelData=bytes(100))
    words = np.array([0, 1, 0, *([1, 65535, 7, 1, 65535, 9] * 20_000)], np.uint16)
    for colour in ("Red", "Green", "Blue"):
        setattr(made, f"{colour}PaletteColorLookupTableDescriptor", [0, 0, 16])
        setattr(made, f"Segmented{colour}PaletteColorLookupTableData", words.tobytes())
    with little():
        assert "palette" in refused(tmp_path / "a.dcm", written(made))


def with_value(content: bytes, keyword: str, value: bytes) -> bytes:
    """A DICOM file in which the value of a short text is another one."""
    tag = pydicom.tag.Tag(keyword)
    at = content.index(struct.pack("<HH", tag.group, tag.element))
    length = struct.unpack_from("<H", content, at + 6)[0]
    return content[: at + 6] + struct.pack("<H", len(value)) + value + content[at + 8 + length :]


@pytest.mark.parametrize(
    "broken",
    [
        "PhotometricInterpretation",
        "NumberOfFrames",
        "PixelSpacing",
        "WindowCenter",
        "RescaleSlope",
        "TransferSyntaxUID",
    ],
)
@pytest.mark.parametrize("cut", [0, 20])
def test_no_text_quotes_a_value(tmp_path: Path, broken: str, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    grey = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelData": bytes(100)}
    shown = {"WindowCenter": 1, "WindowWidth": 1, "RescaleSlope": 1, "RescaleIntercept": 0, "PixelSpacing": [1, 1]}
    made = dataset(**grey, **shown, NumberOfFrames=1, PatientName="Secret^Name", PatientID="SECRET")
    whole = with_value(written(made), broken, b"Secret^Name!")
    (tmp_path / "a.dcm").write_bytes(whole[: len(whole) - cut])
    text = read_or_refuse(tmp_path / "a.dcm")
    assert "secret" not in (text + caplog.text).lower()
    assert text.startswith("a.dcm: ") or broken == "PixelSpacing"  # which is not needed to show a picture


def test_a_file_name_is_shown_on_one_line_and_short(tmp_path: Path) -> None:
    for name, shown in {
        "a" * 100 + "b" * 100 + ".png": "a" * 40 + "..." + "b" * 36 + ".png",
        "a\nb.png": "a?b.png",
    }.items():
        (tmp_path / name).write_bytes(b"words")
        assert read_or_refuse(tmp_path / name).startswith(f"{shown}: not an image")


@pytest.mark.parametrize(
    "header",
    [
        {"dim": [3, -5, 4, 3, 1, 1, 1, 1]},
        {"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]},
        {"dim": [7, 0, 0, 0, 0, 0, 0, 0]},
        {"dim": [0, 1, 1, 1, 1, 1, 1, 1]},
        {"dim": [7, 2, 2, 2, 2, 2, 2, 2]},
        {"datatype": 1},
        {"datatype": 32},
        {"datatype": 12345},
        {"vox_offset": -1},
        {"vox_offset": np.nan},
        {"vox_offset": np.inf},
        {"vox_offset": 1e20},
        {"scl_slope": 2, "scl_inter": np.nan},
        {"magic": b"ni1"},
    ],
)
@pytest.mark.parametrize("is_packed", [False, True])
def test_absurd_nifti_headers_are_refused(tmp_path: Path, header: dict[str, object], is_packed: bool) -> None:
    content = nifti(PICTURE.astype(np.float32), is_packed, **header)
    with little(seconds=2):
        refused(tmp_path / ("a.nii.gz" if is_packed else "a.nii"), content)


def test_nifti_spacings_that_make_no_sense_are_none(tmp_path: Path) -> None:
    for pixdim in ([1, 0, 1, 1, 1, 1, 1, 1], [1, np.nan, 1, 1, 1, 1, 1, 1], [1, -2, 1, 1, 1, 1, 1, 1]):
        (tmp_path / "a.nii").write_bytes(nifti(PICTURE, pixdim=pixdim, xyzt_units=2))
        with open_image(tmp_path / "a.nii") as file:
            assert file.spacing_mm is None


def test_values_beyond_all_bounds_are_shown(tmp_path: Path) -> None:
    values = np.array([[[-1.7e308, 0, 1.7e308]]]).transpose(2, 1, 0)
    (tmp_path / "a.nii").write_bytes(nifti(values))
    assert read_image(tmp_path / "a.nii").pixels.shape == (3, 1, 3)


def test_a_packed_volume_is_unpacked_no_further_than_it_promises(tmp_path: Path) -> None:
    content = nifti(PICTURE)
    bomb = tmp_path / "bomb.nii.gz"
    bomb.write_bytes(gzip.compress(content) + gzip.compress(bytes(50_000_000)) * 40)
    with little(seconds=2, megabytes=50):
        assert read_image(bomb, 0).pixels.shape == (3, 11, 9)
    promise = nifti(PICTURE, is_packed=True, dim=[3, 30000, 30000, 3, 1, 1, 1, 1])
    with little(seconds=2, megabytes=50):
        assert "promises" in refused(tmp_path / "a.nii.gz", promise)


def test_a_packed_volume_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amsam_med.data.nifti.VOLUME_LIMIT", 500)
    text = refused(tmp_path / "a.nii.gz", nifti(PICTURE, is_packed=True))
    assert "at most 500. Give it uncompressed" in text


def test_a_damaged_byte_in_a_packed_volume_is_found(tmp_path: Path) -> None:
    content = bytearray(nifti(np.arange(3000, dtype=np.uint8).reshape(10, 10, 30), is_packed=True))
    content[-8] ^= 1  # of the checksum
    refused(tmp_path / "a.nii.gz", bytes(content))


def test_folders_pipes_and_what_is_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.dcm")
    for name in ("folder.png", "pipe.dcm", "none.png"):
        with pytest.raises(DataError, match=f"^{name}: no"):
            open_image(tmp_path / name)
    assert not readers.is_image_file(tmp_path / "pipe")


def mutated(content: bytes, changes: list[tuple[str, float, int]], other: bytes) -> bytes:
    """Bytes with flips, cuts, repetitions and splices at relative places."""
    made = bytearray(content)
    for kind, share, number in changes:
        at = int(share * max(len(made) - 1, 0))
        new = {
            "flip": bytes([number % 256]) + made[at + 1 :],
            "cut": b"",
            "drop": made[at + number % 32 :],
            "repeat": made[at : at + number % 64] + made[at:],
            "splice": other[number % max(len(other), 1) :],
        }
        made[at:] = new[kind]
    return bytes(made)


CHANGES = st.tuples(
    st.sampled_from(["flip", "flip", "flip", "cut", "drop", "repeat", "splice"]),
    st.floats(0, 1),
    st.one_of(st.sampled_from([0, 255, 127, 128]), st.integers(0, 5000)),
)


@settings(max_examples=1500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(SEEDS)),
    changes=st.lists(CHANGES, min_size=1, max_size=6),
    other=st.sampled_from(sorted(SEEDS)),
)
def test_no_damage_leads_to_anything_but_an_image_or_a_data_error(
    tmp_path: Path, name: str, changes: list[tuple[str, float, int]], other: str
) -> None:
    path = tmp_path / name
    path.write_bytes(mutated(SEEDS[name], changes, SEEDS[other]))
    with little(seconds=20, megabytes=2000):
        read_or_refuse(path)


def test_the_limits_are_what_the_documentation_says() -> None:
    assert (readers.PIXEL_LIMIT, pictures.SCAN_LIMIT, pictures.PAGE_LIMIT) == (85_000_000, 100, 10_000)
