"""Labels in formats of volumes: what their headers may say, and how much is unpacked for them."""

from __future__ import annotations

import gzip
import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from amsam_med.errors import DataError
from amsam_med.label.volumes import read_label, write_volume

MASK = (np.arange(35).reshape(5, 7) % 3).astype(np.uint8)
FIELDS = {"type": "uint8", "dimension": "3", "sizes": "7 5 1", "encoding": "raw"}


def nrrd(pixels: bytes = MASK.tobytes(), /, end: str = "\n", **fields: str) -> bytes:
    given = {**FIELDS, **{name.replace("_", " "): value for name, value in fields.items()}}
    lines = ["NRRD0004", *(f"{name}: {value}" for name, value in given.items()), "", ""]
    return end.join(lines).encode() + pixels


def nifti(content: bytes = MASK.tobytes(), **changed: tuple[str, int, object]) -> bytes:
    """A NIfTI-1 file; ``changed`` are (struct code, offset, value) of header entries."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 7, 5, 1, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 2, 8)
    struct.pack_into("<8f", header, 76, *[1.0] * 8)
    struct.pack_into("<f", header, 108, 352.0)
    header[344:348] = b"n+1\0"
    for code, offset, value in changed.values():
        struct.pack_into(f"<{code}", header, offset, *(value if isinstance(value, tuple) else (value,)))
    return bytes(header) + content


@pytest.mark.parametrize("ending", [".nrrd", ".nii.gz", ".nii"])
def test_what_is_written_is_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x{ending}"
    write_volume(MASK, path)
    np.testing.assert_array_equal(read_label(path, (5, 7)), MASK)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64])
@pytest.mark.parametrize("ending", [".nrrd", ".nii.gz"])
def test_other_libraries_files_are_read_as_they_read_them(tmp_path: Path, kind: type, ending: str) -> None:
    path = tmp_path / f"x{ending}"
    for volume in (MASK[None], MASK):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(volume.astype(kind)), str(path), useCompression=True)
        np.testing.assert_array_equal(
            read_label(path), np.squeeze(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))))
        )


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_header_may_describe_what_it_holds(tmp_path: Path, end: str) -> None:
    described = nrrd(end=end, space="left-posterior-superior", kinds="domain domain domain", endian="big")
    start, rest = described.split(end.encode(), 1)
    (tmp_path / "x.nrrd").write_bytes(end.encode().join([start, b"# a remark", b"Segment0_Name:=a: b", rest]))
    np.testing.assert_array_equal(read_label(tmp_path / "x.nrrd"), MASK)


@pytest.mark.parametrize("ending", [".nrrd", ".nii", ".nii.gz"])
@pytest.mark.parametrize("target", ["/proc/self/fd/7", "/etc/passwd", "PIPE", "LIST", "x%d.raw 1 2 1", "other.raw"])
def test_pixels_in_another_file_are_refused_unopened(tmp_path: Path, ending: str, target: str) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would never end
    (tmp_path / "other.raw").write_bytes(MASK.tobytes())
    target = target.replace("PIPE", str(tmp_path / "pipe"))
    path = tmp_path / f"x{ending}"
    for name in ("data_file", "datafile", "DATA_FILE"):
        path.write_bytes(nrrd(b"", **{name: target}))
        with pytest.raises(DataError, match=r"is not taken|not of that format"):
            read_label(path)
    path.write_bytes(b"NDims = 2\nDimSize = 7 5\nElementType = MET_UCHAR\nElementDataFile = " + target.encode() + b"\n")
    with pytest.raises(DataError, match="not of that format"):
        read_label(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (nrrd(sizes="100000 100000 1"), "input should be less than|at most 85,000,000 are decoded"),
        (nrrd(sizes="30000 30000 1"), "at most 85,000,000 are decoded"),
        (nrrd(sizes="99999999999999999999 5 1"), "entry 'sizes.0'"),
        (nrrd(sizes="-7 5 1"), "entry 'sizes.0'"),
        (nrrd(sizes="7 5 2"), "expected one slice"),
        (nrrd(sizes="7 5"), "3 dimensions, but 2 sizes"),
        (nrrd(dimension="1e9"), "entry 'dimension'"),
        (nrrd(type="block"), "entry 'type'"),
        (nrrd(encoding="text"), "entry 'encoding'"),
        (nrrd(encoding="bzip2"), "entry 'encoding'"),
        (nrrd(byte_skip="-1"), "field 'byte skip' is not taken"),
        (nrrd(line_skip="9"), "field 'line skip' is not taken"),
        (nrrd(content="a\rdata file: /etc/passwd"), "control character"),
        (nrrd().replace(b"type: uint8\n", b"type: uint8\ntype: double\n"), "'type' is not taken"),
        (nrrd().replace(b"type: uint8\n", b""), "entry 'type'"),
        (nrrd(b"\0"), "damaged or not of that format"),
        (nrrd(b"rubbish", encoding="gzip"), "damaged or not of that format"),
        (nrrd(gzip.compress(MASK.tobytes())[:-12], encoding="gzip"), "damaged or not of that format"),
        (nrrd(np.full(35, np.nan, "<f4").tobytes(), type="float"), "not whole numbers of 0 to 255"),
        (b"NRRD0004\n" + b"#" * (1 << 20), "damaged or not of that format"),
        (b"", "damaged or not of that format"),
    ],
)
def test_a_nrrd_that_lies_is_refused(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "x.nrrd").write_bytes(content)
    with pytest.raises(DataError, match=text):
        read_label(tmp_path / "x.nrrd")


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"magic": ("4s", 344, b"ni1\0")}, "not in one file"),
        ({"magic": ("4s", 344, b"\0\0\0\0")}, "not of that format"),
        ({"size": ("i", 0, 540)}, "not of that format"),
        ({"dim": ("8h", 40, (3, 32767, 32767, 32767, 1, 1, 1, 1))}, "expected one slice"),
        ({"dim": ("8h", 40, (3, -7, 5, 1, 1, 1, 1, 1))}, "expected one slice"),
        ({"dim": ("8h", 40, (3, 7, 5, 3, 1, 1, 1, 1))}, "expected one slice"),
        ({"type": ("2h", 70, (128, 24))}, "not of that format"),
        ({"type": ("2h", 70, (1792, 128))}, "not of that format"),
        ({"offset": ("f", 108, 1e30)}, "not of that format"),
        ({"offset": ("f", 108, float("nan"))}, "not of that format"),
        ({"offset": ("f", 108, 400.0)}, "damaged"),
        ({"slope": ("2f", 112, (1e38, 1e38))}, "not whole numbers"),
    ],
)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_nifti_that_lies_is_refused(
    tmp_path: Path, ending: str, changed: dict[str, tuple[str, int, object]], text: str
) -> None:
    pack: Callable[[bytes], bytes] = gzip.compress if ending.endswith(".gz") else bytes
    (tmp_path / f"x{ending}").write_bytes(pack(nifti(**changed)))
    (tmp_path / "x.img").write_bytes(MASK.tobytes())
    with pytest.raises(DataError, match=text):
        read_label(tmp_path / f"x{ending}")


@pytest.mark.parametrize("ending", [".nrrd", ".nii.gz"])
def test_a_bomb_is_unpacked_up_to_what_its_header_promised(tmp_path: Path, ending: str) -> None:
    bomb = MASK.tobytes() + bytes(600 << 20)
    content = nrrd(gzip.compress(bomb, 1), encoding="gzip") if ending == ".nrrd" else gzip.compress(nifti(bomb), 1)
    del bomb
    (tmp_path / f"x{ending}").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.testing.assert_array_equal(read_label(tmp_path / f"x{ending}"), MASK)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize("ending", [".nrrd", ".nii.gz", ".png"])
def test_another_size_is_refused_before_the_pixels_are_decoded(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x{ending}"
    if ending == ".png":
        import PIL.Image

        PIL.Image.fromarray(np.zeros((4000, 4000), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:200])  # a header alone
    else:
        path.write_bytes(gzip.compress(nifti(b"")) if ending == ".nii.gz" else nrrd(b""))
    with pytest.raises(DataError, match="send one of that size"):
        read_label(path, (9, 9))


def test_a_pipe_is_no_label(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.nrrd")
    with pytest.raises(DataError, match="not a regular file"):
        read_label(tmp_path / "x.nrrd")
