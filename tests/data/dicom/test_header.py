"""Headers are read as pydicom reads them, within limits of time and memory for any file."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    VLPhotographicImageStorage,
)

from amsam_med.data.dicom import header as dicom_header
from amsam_med.data.dicom.header import read_header
from amsam_med.data.quiet import quiet_decoders
from amsam_med.errors import DataError
from tests.bounded import Ran, run_bounded

EXAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
UNDEFINED = b"\xff" * 4
ITEM = b"\xfe\xff\x00\xe0"
SEQUENCE = struct.pack("<HH2s2x", 0x08, 0x1140, b"SQ")
SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"


def start(syntax: UID = ExplicitVRLittleEndian) -> bytes:
    """A file up to its first attribute."""
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(syntax) + len(syntax) % 2) + syntax.encode().ljust(
        len(syntax) + len(syntax) % 2, b"\0"
    )
    return bytes(128) + b"DICM" + meta


def read_all(content: bytes) -> Dataset:
    with quiet_decoders():
        return read_header(io.BytesIO(content)).dataset


def without_private(dataset: Dataset) -> Dataset:
    dataset.remove_private_tags()
    dataset.pop("IconImageSequence", None)
    return dataset


def test_what_is_read_is_what_pydicom_reads() -> None:
    paths = [path for path in EXAMPLES.rglob("*.dcm") if path.stat().st_size < 2e6]
    compared = 0
    for path in paths:
        with quiet_decoders():
            try:
                expected = without_private(pydicom.dcmread(path, stop_before_pixels=True, force=True))
                expected.to_json_dict(bulk_data_threshold=1 << 20, bulk_data_element_handler=str)
            except Exception:  # there are damaged ones among them
                continue
            header = read_header(io.BytesIO(path.read_bytes()))
            assert header.dataset == Dataset(expected) or "SOPClassUID" not in expected, path.name
        compared += 1
    assert compared > 60


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_what_is_wanted_is_read_and_nothing_else(syntax: UID) -> None:
    made, inner, deepest = Dataset(), Dataset(), Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    deepest.CodeValue = "x"
    inner.PurposeOfReferenceCodeSequence = [deepest] * 2
    made.SOPClassUID, made.SOPInstanceUID, made.PatientName = VLPhotographicImageStorage, "1.2.3", "Doe"
    made.ReferencedImageSequence, made.SourceImageSequence = [inner, inner], [inner] * 3
    made.PatientComments = "y" * 9_000
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=True)
    wanted = [int(Tag(keyword)) for keyword in ("PatientName", "ReferencedImageSequence")]
    header = read_header(io.BytesIO(stream.getvalue()), wanted, first_items=[int(Tag("SourceImageSequence"))])
    assert [element.keyword for element in header.dataset] == [
        *("ReferencedImageSequence", "SourceImageSequence", "PatientName")
    ]
    assert header.dataset.ReferencedImageSequence == made.ReferencedImageSequence
    assert list(header.dataset.SourceImageSequence) == [inner]
    assert header.pixels is None


def deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def long_value(length: int, rest: bytes = b"") -> bytes:
    """Deflated without ever being in memory as a whole."""
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    parts = [packer.compress(struct.pack("<HH2s2xL", 0x09, 0x1001, b"OB", length))]
    parts += [packer.compress(bytes(1 << 20)) for _ in range(length >> 20)]
    return b"".join([*parts, packer.compress(rest), packer.flush()])


def nested(depth: int, value: bytes = b"") -> bytes:
    """Sequences of defined length within each other."""
    for _ in range(depth):
        item = ITEM + struct.pack("<L", len(value)) + value
        value = SEQUENCE + struct.pack("<L", len(item)) + item
    return value


BOMBS = {
    "many empty items": start() + SEQUENCE + UNDEFINED + (ITEM + bytes(4)) * 600_000 + SEQUENCE_END,
    "empty items, of defined length": start() + SEQUENCE + struct.pack("<L", 8 * 600_000) + (ITEM + bytes(4)) * 600_000,
    "empty items, in an item": start() + nested(1, SEQUENCE + UNDEFINED + (ITEM + bytes(4)) * 600_000),
    "open items": start() + SEQUENCE + UNDEFINED + (ITEM + UNDEFINED + ITEM[:2] + b"\x0d\xe0\0\0\0\0") * 400_000,
    "empty items as UN": start()
    + struct.pack("<HH2s2x", 0x08, 0x1140, b"UN")
    + UNDEFINED
    + (ITEM + bytes(4)) * 600_000,
    "empty items, implicit": start(ImplicitVRLittleEndian)
    + struct.pack("<HH", 0x08, 0x1140)
    + UNDEFINED
    + (ITEM + bytes(4)) * 600_000,
    "many elements": start() + struct.pack("<HH2sH", 0x08, 0x1030, b"LO", 0) * 600_000,
    "deep sequences": start() + (SEQUENCE + UNDEFINED + ITEM + UNDEFINED) * 100_000,
    "deep sequences of defined length": start() + nested(3000),
    "long sequences within each other": start() + nested(60, bytes(6_000_000)),
    "3 GB, deflated": start(DeflatedExplicitVRLittleEndian) + long_value(3 << 30),
    "items, deflated": start(DeflatedExplicitVRLittleEndian)
    + deflated(SEQUENCE + UNDEFINED + (ITEM + bytes(4)) * 600_000),
    "fragments without end": start() + struct.pack("<HH2s2x", 0x60, 1, b"OB") + UNDEFINED + (ITEM + bytes(4)) * 600_000,
    "lengths that lie": start() + (SEQUENCE + b"\xf0\xff\xff\xff" + ITEM + b"\xf0\xff\xff\xff") * 100_000,
    "group 2 without end": bytes(128) + b"DICM" + struct.pack("<HH2sH", 2, 2, b"UI", 0) * 600_000,
    "no preamble": SEQUENCE + UNDEFINED + (ITEM + bytes(4)) * 600_000,
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """What became of every bomb, read for each purpose that there is."""
    folder = tmp_path_factory.mktemp("bombs")
    for number, content in enumerate(BOMBS.values()):
        (folder / f"{number}.dcm").write_bytes(content)
    code = """
for path in sorted(Path(sys.argv[1]).iterdir(), key=lambda path: int(path.stem)):
    for purpose, use in {"list": listed, "open": opened, "derive": derived}.items():
        began = time.process_time()
        try:
            use(path)
        except DataError as error:
            pass
        print(path.stem, purpose, time.process_time() - began, status("VmHWM") // 1024)
"""
    imports = """
from pathlib import Path
from amsam_med.data.dicom import reader as dicom
from amsam_med.data.dicom.reader import DicomFile
from amsam_med.data.dicom.shared import read_header
from amsam_med.data.dicom.identifiers import without_identifiers
from amsam_med.errors import DataError
dicom.DEFLATED_LIMIT = 100 << 20  # to be gentle to the disk
def listed(path): return without_identifiers(path, "a")
def opened(path):
    with path.open("rb") as file: return DicomFile(file).close()
def derived(path): return read_header(path)
"""
    return run_bounded(imports, code, folder, megabytes=900, seconds=300)


def test_no_header_takes_long_or_much_memory(ran: Ran) -> None:
    lines = [line.split() for line in ran.said.splitlines()]
    assert len(lines) == 3 * len(BOMBS)
    slow = [line for line in lines if float(line[2]) > 15]
    assert not slow
    assert ran.megabytes < 400, ran.said


@pytest.mark.parametrize("name", ["many empty items", "deep sequences", "long sequences within each other"])
def test_the_fault_names_the_limit(name: str) -> None:
    with pytest.raises(DataError, match=r"a DICOM header of more than [0-9,]+ (elements|bytes|sequences)"):
        read_all(BOMBS[name])


def test_the_limits_are_far_beyond_what_modalities_send() -> None:
    assert (dicom_header.PIECE_LIMIT, dicom_header.DEPTH_LIMIT) == (300_000, 64)
    frame = Dataset()
    frame.PlanePositionSequence, frame.FrameContentSequence = [Dataset()], [Dataset()]
    frame.PlanePositionSequence[0].ImagePositionPatient = [1, 2, 3]
    frame.FrameContentSequence[0].StackID = "1"
    made = Dataset()
    made.PerFrameFunctionalGroupsSequence = [frame] * 5000
    stream = io.BytesIO()
    made.save_as(stream, implicit_vr=False, little_endian=True)
    assert len(read_all(start() + stream.getvalue()).PerFrameFunctionalGroupsSequence) == 5000
