"""DICOM: absurd attributes, wrong transfer syntaxes, lengths that lie, sequences without end, and no images."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG4HP41,
    UID,
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    VLPhotographicImageStorage,
)

from tests.attack.cases import FileCase, Outcome, Rows, add, case
from tests.attack.files.pictures import CUTS, Content, coded, cut
from tests.attack.files.pictures import file as picture_file
from tests.attack.observe import assert_error_row, assert_plain, assert_untouched, assert_whole
from tests.attack.world import World

GROUP = "dicom"

_PIXELS = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
_MEGAPIXELS = 81


def dataset(syntax: UID = ExplicitVRLittleEndian, **attributes: object) -> Dataset:
    """A colour photograph; ``attributes`` replace its own, None takes one away."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.SOPClassUID, made.SOPInstanceUID = VLPhotographicImageStorage, "1.2.3"
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.4", "1.2.5"
    made.Rows, made.Columns, _ = _PIXELS.shape
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation = 7, 0
    made.PixelData = _PIXELS.tobytes()
    made["PixelData"].VR = "OB"
    return _with(made, attributes)


def written(made: Dataset) -> bytes:
    """A file of Part 10."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def grey(**attributes: object) -> Dataset:
    """A picture of 16 bits of grey."""
    made = dataset(SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", PlanarConfiguration=None)
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 12, 11
    made.PixelData = (_PIXELS[..., 0].astype(np.uint16) << 4).tobytes()
    made["PixelData"].VR = "OW"
    return _with(made, attributes)


def _with(made: Dataset, attributes: Mapping[str, object]) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that the standard forbids, which is what they are here for
        for name, value in attributes.items():
            if value is None:
                delattr(made, name)
            else:
                setattr(made, name, value)
    return made


def example(name: str) -> bytes:
    """One of pydicom's own examples."""
    return Path(str(get_testdata_file(name, download=False))).read_bytes()


def empty_items(count: int) -> bytes:
    """A file whose header has a sequence of that many empty items."""
    head = written(dataset()).split(struct.pack("<HH", 0x28, 2))[0]
    return head + struct.pack("<HH2s2xL", 0x08, 0x1140, b"SQ", 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\0\0\0\0" * count


def deflated(length: int) -> bytes:
    """A small deflated file that unpacks to that many bytes in front of its pixels."""
    whole = written(dataset(DeflatedExplicitVRLittleEndian))
    start = whole.index(b"1.2.840.10008.1.2.1.99") + 22
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    private = struct.pack("<HH2s2xL", 0x0009, 0x1001, b"UN", length)
    packed = packer.compress(private) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(length >> 20))
    return whole[:start] + packed + packer.flush()


def _file(
    name: str, content: Content | Dataset, outcome: Outcome = Outcome.ERROR, file_name: str = "a.dcm", **more: Any
) -> None:
    content = written(content) if isinstance(content, Dataset) else content
    picture_file(name, content, file_name, outcome, group=GROUP, **more)


def _attributes() -> None:
    for name, changes in {
        "65,535 rows and columns": {"Rows": 65535, "Columns": 65535},
        "no rows": {"Rows": 0},
        "rows that are missing": {"Rows": None},
        "two thousand million frames": {"NumberOfFrames": 2_000_000_000},
        "-1 frames": {"NumberOfFrames": -1},
        "65,535 bits": {"BitsAllocated": 65535, "BitsStored": 65535},
        "64 bits": {"BitsAllocated": 64, "BitsStored": 64},
        "12 bits allocated": {"BitsAllocated": 12},
        "no bits stored": {"BitsStored": 0},
        "more bits stored than allocated": {"BitsStored": 32, "HighBit": 31},
        "65,535 samples": {"SamplesPerPixel": 65535},
        "no samples": {"SamplesPerPixel": 0},
        "grey of three samples": {"PhotometricInterpretation": "MONOCHROME2"},
        "no photometric interpretation": {"PhotometricInterpretation": ""},
        "a photometric interpretation of HTML": {"PhotometricInterpretation": "<B>X</B>"},
        "seventh planar configuration": {"PlanarConfiguration": 7},
        "ninth pixel representation": {"PixelRepresentation": 9},
        "no pixels": {"PixelData": None},
        "too few pixels": {"PixelData": bytes(100)},
    }.items():
        outcome = Outcome.EITHER if "stored" in name or "planar" in name else Outcome.ERROR
        _file(f"of {name}", dataset(**changes), outcome)
    for name, picture in {
        "a window of no width": grey(WindowCenter=40, WindowWidth=0),
        "a window of negative width": grey(WindowCenter=40, WindowWidth=-5),
        "a slope of 0": grey(RescaleSlope=0, RescaleIntercept=0),
        "a slope of 1e300": grey(RescaleSlope="1e300", RescaleIntercept="-1e300"),
        "a hundred windows": grey(WindowCenter=["40"] * 100, WindowWidth=["80"] * 100),
        "spacings below 0": grey(PixelSpacing=[-1, -1]),
        "a patient of 10,000 characters": dataset(PatientName="A" * 10_000),
        "a patient named like HTML": dataset(PatientName="<script>alert(1)</script>", PatientID="../../x"),
        "a character set that there is not": dataset(SpecificCharacterSet="ISO 2022 IR 999"),
        "burnt-in words": dataset(BurnedInAnnotation="YES"),
    }.items():
        _file(f"with {name}", picture, Outcome.EITHER)
    whole = written(grey(RescaleSlope="1.0", RescaleIntercept="0.0", NumberOfFrames="1"))
    for keyword, element in (("slope", (0x28, 0x1053)), ("frame count", (0x28, 0x8))):
        at = whole.index(struct.pack("<HH", *element))
        length = struct.unpack_from("<H", whole, at + 6)[0]
        for words in (b"nan ", b"$(x)"):
            broken = whole[: at + 6] + struct.pack("<H", 4) + words + whole[at + 8 + length :]
            _file(f"whose {keyword} is {words.decode().strip()}", broken, Outcome.EITHER)


def _syntaxes() -> None:
    plain = written(dataset())
    uid = b"1.2.840.10008.1.2.1\0"

    def called(syntax: bytes) -> bytes:
        at = plain.index(uid) - 2
        made = plain[:at] + struct.pack("<H", len(syntax)) + syntax + plain[at + 2 + len(uid) :]
        group = made.index(struct.pack("<HH2sH", 2, 0, b"UL", 4)) + 8
        length = struct.unpack_from("<L", made, group)[0] + len(syntax) - len(uid)
        return made[:group] + struct.pack("<L", length) + made[group + 4 :]

    for name, syntax in {
        "implicit": ImplicitVRLittleEndian,
        "big endian": ExplicitVRBigEndian,
        "deflated": DeflatedExplicitVRLittleEndian,
        "JPEG": JPEGBaseline8Bit,
        "JPEG 2000": JPEG2000Lossless,
        "JPEG-LS": JPEGLSLossless,
        "RLE": RLELossless,
        "a film": MPEG4HP41,
        "nobody's": "1.2.3.4.5",
        "a path": "../../../../etc/passwd",
        "nothing": "",
    }.items():
        padded = syntax.encode() + b"\0" * (len(syntax) % 2)
        outcome = Outcome.EITHER if name in ("implicit", "nothing") else Outcome.ERROR
        _file(f"plain, and called {name}", called(padded), outcome)
    large = coded("JPEG", PIL.Image.new("L", (9000, 9000)))
    for name, syntax, frame in (
        (f"a JPEG of {_MEGAPIXELS} megapixels", JPEGBaseline8Bit, large),
        ("a JPEG of 5,000 empty segments", JPEGBaseline8Bit, b"\xff\xd8" + b"\xff\xe0\0\2" * 5000),
        ("words for a JPEG", JPEGBaseline8Bit, b"words " * 50),
        ("a JPEG 2000 of 60,000 squared", JPEG2000Lossless,
         b"\xff\x4f\xff\x51" + struct.pack(">HHLLLL", 47, 0, 60000, 60000, 0, 0) + bytes(60)),
        ("a JPEG-LS of 60,000 squared", JPEGLSLossless,
         b"\xff\xd8\xff\xf7" + struct.pack(">HBHHB", 17, 8, 60000, 60000, 3) + bytes(60)),
        ("an RLE of 255 segments", RLELossless, struct.pack("<16L", 255, *range(64, 79)) + bytes(100)),
        ("an RLE that repeats without end", RLELossless, struct.pack("<16L", 3, *([64] * 15)) + b"\x81\0" * 50_000),
    ):  # fmt: skip
        made = dataset(syntax)
        made.PixelData = encapsulate([frame])
        _file(f"with {name}", made)
    made = dataset(JPEGBaseline8Bit, NumberOfFrames=2)
    made.PixelData = encapsulate([coded("JPEG")] * 2, has_bot=False)
    content = written(made)
    end = content.rindex(b"\xfe\xff\xdd\xe0")
    fragments = content[:end] + b"\xfe\xff\x00\xe0\0\0\0\0" * 300_000 + content[end:]
    _file("of 300,000 empty fragments", fragments, Outcome.EITHER)


def _lengths() -> None:
    plain = written(dataset())
    at = plain.index(struct.pack("<HH2s", 0x7FE0, 0x10, b"OB")) + 8
    for name, length in {"2^31 bytes": 2**31, "no known length": 0xFFFFFFFF, "0 bytes": 0}.items():
        _file(f"pixels of {name}", plain[:at] + struct.pack("<L", length) + plain[at + 4 :], Outcome.EITHER)
    head, tail = plain.split(struct.pack("<HH", 0x28, 2), 1)
    tail = struct.pack("<HH", 0x28, 2) + tail
    odd = {
        "a private element of 4 GB": struct.pack("<HH2s2xL", 0x0011, 0x1001, b"UN", 0xFFFFFFF0),
        "an element of a kind that there is not": struct.pack("<HH2sH", 0x0011, 0x1001, b"??", 4) + b"word",
        "a sequence that never ends": struct.pack("<HH2s2xL", 0x08, 0x1140, b"SQ", 0xFFFFFFFF),
        "an end of a sequence that never began": b"\xfe\xff\xdd\xe0\0\0\0\0",
    }
    for name, element in odd.items():
        _file(f"with {name}", head + element + tail, Outcome.EITHER)
    item = struct.pack("<HH2s2xL", 0x08, 0x1140, b"SQ", 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    _file("of 50 sequences within sequences", head + item * 50)
    _file("of 100,000 sequences within sequences", lambda: head + item * 100_000)
    words = np.array([0, 1, 0, *([1, 65535, 7, 1, 65535, 9] * 20_000)], np.uint16)
    palette = dataset(SamplesPerPixel=1, PhotometricInterpretation="PALETTE COLOR", PixelData=bytes(2240))
    for colour in ("Red", "Green", "Blue"):
        setattr(palette, f"{colour}PaletteColorLookupTableDescriptor", [0, 0, 16])
        setattr(palette, f"Segmented{colour}PaletteColorLookupTableData", words.tobytes())
    _file("with a palette that unpacks without end", palette, says="palette")


def _truncations() -> None:
    kinds = {
        "plain": written(dataset()),
        "RLE": example("MR_small_RLE.dcm"),
        "JPEG": example("SC_rgb_small_odd_jpeg.dcm"),
        "deflated": example("image_dfl.dcm"),
    }
    for kind, whole in kinds.items():
        for place, share in CUTS.items():
            outcome = Outcome.EITHER if share in (-1, 0.9) else Outcome.ERROR
            _file(f"{kind}, cut {place}", cut(whole, share), outcome)


def _no_images() -> None:
    plain = written(dataset())
    _file("nothing but a preamble", bytes(128) + b"DICM")
    _file("without its preamble", plain[132:], Outcome.EITHER)
    _file("of words", b"no DICOM, but words " * 50)
    _file("a report", dataset(SOPClassUID=BasicTextSRStorage, Rows=None, Columns=None, PixelData=None, Modality="SR"))
    pdf = dataset(SOPClassUID=EncapsulatedPDFStorage, Rows=None, Columns=None, PixelData=None)
    pdf.EncapsulatedDocument, pdf.MIMETypeOfEncapsulatedDocument = b"%PDF-1.7 ", "application/pdf"
    _file("an encapsulated PDF", pdf)
    _file("called DICOMDIR", plain, Outcome.NOTHING, "DICOMDIR")
    _file("without a suffix", plain, Outcome.DONE, "IM000001")
    _file("Low damaged, and without a suffix", bytes(128) + b"DICM" + b"\xff" * 40, Outcome.ERROR, "IM000001")
    _file("a TIFF behind a preamble of DICOM", _tiff_with_preamble(), Outcome.EITHER, "slide.tif")
    _file("with an executable in its preamble", b"MZ" + bytes(126) + plain[128:], Outcome.DONE)


def _tiff_with_preamble() -> bytes:
    made = bytearray(coded("TIFF"))
    made[128:132] = b"DICM"
    return bytes(made)


@case("dicom, alone", "H6 a header of 1,000,000 empty items")
def _of_many_items(world: World) -> None:
    _segment_alone(world, empty_items(1_000_000), processor_seconds=20, megabytes=600)


@case("dicom, alone", "H6 a deflated file that unpacks to 300 MB")
def _of_many_bytes(world: World) -> None:
    _segment_alone(world, deflated(300 << 20), processor_seconds=20, megabytes=250)


@case("dicom, alone", "H6 a deflated file that unpacks to 3 GB")
def _of_far_too_many_bytes(world: World) -> None:
    _segment_alone(world, deflated(3 << 30), processor_seconds=60, megabytes=250)


def _segment_alone(world: World, content: bytes, processor_seconds: float, megabytes: float) -> None:
    (world.input / "a.dcm").write_bytes(content)
    (world.input / "b.dcm").write_bytes(written(dataset()))
    _ = world.before
    run = world.segment(seconds=200)
    assert_plain(run, (1,), "Results are in", seconds=200, megabytes=megabytes)
    assert run.processor_seconds < processor_seconds, f"{run.processor_seconds:.0f} s of the processor"
    assert_untouched(world)
    first, second = assert_whole(world.output)
    assert_error_row(first)
    assert not second["error"]


def _identifiers() -> None:
    """Paths that tell whose image it is."""
    told = {
        "the name": ("Quimby_Jane.dcm", {"PatientName": "Quimby^Jane"}),
        "M7 a name of two letters": ("Li Wu.dcm", {"PatientName": "Li^Wu"}),
        "M7 a name of two ideographs": ("王伟.dcm", {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "王^伟"}),
        "M7 a name whose umlaut is two characters": (
            "Mu\u0308ller.dcm",
            {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Müller^Eva"},
        ),
        "M7 a date of birth with points": ("03.11.1956.dcm", {"PatientName": "A^B", "PatientBirthDate": "19561103"}),
        "M7 a date of birth as other countries have it": (
            "born 11-03-1956.dcm",
            {"PatientName": "A^B", "PatientBirthDate": "19561103"},
        ),
        "the number": ("MRN4711.dcm", {"PatientName": "A^B", "PatientID": "MRN4711"}),
    }
    for name, (file_name, attributes) in told.items():
        stem = file_name.removesuffix(".dcm")

        def is_hidden(rows: Rows, stem: str = stem) -> None:
            assert not [row for row in rows if stem in "".join(row.values())], "the path still tells whose it is"

        made = written(dataset(**attributes))
        add(
            FileCase(
                "identifiers",
                name,
                lambda folder, made=made, file_name=file_name: (folder / file_name).write_bytes(made),  # type: ignore[misc]
                Outcome.DONE,
                look=is_hidden,
            )
        )


@case("identifiers", "H4 a typed path that tells the name")
def _typed(world: World) -> None:
    folder = world.input / "Quimby_Jane"
    folder.mkdir()
    (folder / "Quimby_Jane.dcm").write_bytes(written(dataset(PatientName="Quimby^Jane")))
    _segment_unnamed(world, "Quimby", source=folder / "Quimby_Jane.dcm")


@case("identifiers", "M6 a file called by its UID, de-identified")
def _called_by_uid(world: World) -> None:
    uid = "1.2.826.0.1.3680043.8.498.471147114711"
    (world.input / f"{uid}.dcm").write_bytes(written(dataset(SOPInstanceUID=uid)))
    _segment_unnamed(world, uid, "--deidentify", "--format", "png,dicom-seg")
    secrets = [path for path in world.output.rglob("*") if path.is_file() and b"salt" in path.read_bytes()]
    assert not secrets, f"what makes the new identifiers lies beside the results: {secrets}"


def _segment_unnamed(world: World, word: str, *options: str, source: Path | None = None) -> None:
    """Segment; afterwards no result may hold a word, in its name or within."""
    _ = world.before
    assert_plain(world.segment(*options, source=source), (0,), "Results are in")
    assert_whole(world.output)
    results = [path for path in world.output.rglob("*") if path.is_file()]
    assert results
    telling = [path for path in results if word in str(path.relative_to(world.output))]
    telling += [path for path in results if word.encode() in path.read_bytes()]
    assert not telling, f"they still tell: {telling}"


_attributes()
_syntaxes()
_lengths()
_truncations()
_no_images()
_identifiers()
