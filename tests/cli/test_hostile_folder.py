"""`amsam segment` on a folder full of hostile files, with a few valid pictures among them."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import unicodedata
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file

from amsam_med.data.tables import read_table
from tests.small_bundle import write_picture, write_small_bundle

DEPTH = 1200
SECONDS, MEGABYTES = 60, 300
"""What the run may take beyond one that segments a single picture."""

GOOD_NAMES = (
    "a.jpg",
    "a.png",
    "two  words .png",
    "Ünïcode ☃ 病変.png",
    "-o.png",
    'quote\'s "and" more.png',
    "<img src=x onerror=alert(1)>.png",
    "new\nline.png",
    "$(touch evil).png",
    "x" * 251 + ".png",
    os.fsdecode(b"caf\xe9.png"),
    "UPPER.PNG",
)

_CHILD = """
import sys, time
from amsam_med.cli import main
code = main(sys.argv[1:])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")), "CPU:", time.process_time())
sys.exit(code)
"""
_WITHOUT_POWERS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")  # permissions bind the superuser, too


class Run(NamedTuple):
    """What a run left behind; seconds are those of the processor."""

    code: int
    printed: str
    seconds: float
    peak_mb: float
    output: Path
    rows: dict[str, list[dict[str, str]]]

    def row(self, name: str) -> dict[str, str]:
        """The only row of a file, by its place in the folder."""
        (row,) = self.rows[name]
        return row


def write_good(folder: Path) -> None:
    for number, name in enumerate(GOOD_NAMES):
        write_picture(folder / name, number)
    Image.new("RGB", (1, 1)).save(folder / "one pixel.png")
    Image.new("RGB", (30_000, 4), "white").save(folder / "wide.png")
    Image.new("RGB", (4, 30_000), "white").save(folder / "high.png")
    volume = np.full((20, 30, 3), np.nan, np.float32)
    volume[..., 1] = 7
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / "nan.nii")
    (folder / "loop").symlink_to(folder)


def write_bad(folder: Path) -> None:
    whole = write_picture(folder / "a.png", 0).read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "nothing.png").write_bytes(b"")
    (folder / "zeros.jpg").write_bytes(bytes(5000))
    for name in (b"words.jpg", b"words \xe9.jpg"):
        (folder / os.fsdecode(name)).write_text("no picture, but words\n" * 100)
    (folder / "bomb.png").write_bytes(one_bit_png(60_000))
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    made = dcmread(str(get_testdata_file("SC_rgb_small_odd.dcm", download=False)))
    made.Rows = made.Columns = 65_535
    made.save_as(folder / "absurd.dcm")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "itself.png").symlink_to(folder / "itself.png")
    os.mkfifo(folder / "pipe.png")
    shutil.copy(folder / "a.png", folder / "secret.png")
    (folder / "secret.png").chmod(0)
    (folder / "locked").mkdir(mode=0)
    (folder / "seen only").mkdir()
    write_picture(folder / "seen only" / "a.png")
    (folder / "seen only").chmod(0o444)
    shutil.copy(folder / "a.png", folder / "IM0001")
    (folder / "IM0001").chmod(0)


def write_what_is_no_file(folder: Path) -> None:
    """Files that never end when they are read, or cannot be opened at all."""
    os.mkfifo(folder / "pipe.zip")
    for name, target in {"log.zip": "/proc/kmsg", "log.png": "/proc/kmsg", "log": "/proc/kmsg"}.items():
        (folder / name).symlink_to(target)
    for name, target in {"zero.zip": "/dev/zero", "zero.png": "/dev/zero", "far.png": "x" * 300}.items():
        (folder / name).symlink_to(target)
    (folder / "system").symlink_to("/proc/self")
    place = os.getcwd()
    with socket.socket(socket.AF_UNIX) as bound:
        os.chdir(folder)  # a socket's path may have 100 characters
        bound.bind("socket.png")
        os.chdir(place)
    deep = folder.joinpath(*["d"] * DEPTH)
    subprocess.run(["mkdir", "-p", deep], check=True)
    write_picture(folder / "deep.png")
    (folder / "deep.png").rename(deep / "a.png")
    (folder / "earlier" / "masks").mkdir(parents=True)
    os.mkfifo(folder / "earlier" / "run.json")
    write_picture(folder / "earlier" / "masks" / "a.png")


def write_names_that_meet(folder: Path) -> None:
    """Files of which each would get results of another's names."""
    pages = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    pages[0].save(folder / "scan.tif", save_all=True, append_images=pages[1:])
    for name in ("scan_0001.png", "scan_0002.png", "scan_0002.jpg", "e\u0301.png", "\u00e9.png"):
        write_picture(folder / name)


def write_bad_archives(folder: Path) -> None:
    (folder / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    with zipfile.ZipFile(folder / "slip.zip", "w") as archive:
        archive.writestr("../../slipped.png", (folder / "a.png").read_bytes())
        archive.write(folder / "a.png", "good.png")
    size = 50 << 20
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.png", bytes(size))
    promised = (folder / "bomb.zip").read_bytes().replace(struct.pack("<L", size), struct.pack("<L", 0xF0000000))
    (folder / "promise.zip").write_bytes(promised)


def one_bit_png(side: int) -> bytes:
    """A black picture of ``side`` by ``side`` pixels, valid to its last byte."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer, rows = zlib.compressobj(1), bytes(100 * (side // 8 + 1))
    packed = b"".join(packer.compress(rows) for _ in range(side // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def run_segment(folder: Path, output: Path, bundle: Path) -> Run:
    prefix = _WITHOUT_POWERS if os.geteuid() == 0 and shutil.which("setpriv") else ()
    words = ["segment", str(folder), "-o", str(output), "--bundle", str(bundle), "--device", "cpu"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}  # as where the locale is not C
    done = subprocess.run(
        [*prefix, sys.executable, "-c", _CHILD, *words], capture_output=True, timeout=250, check=False, env=environment
    )
    printed = (done.stdout + done.stderr).decode(errors="surrogateescape")
    spent = re.search(r"VmHWM:\s+(\d+) kB\s+CPU: ([\d.]+)", printed)
    assert spent is not None, printed
    rows: dict[str, list[dict[str, str]]] = {}
    for row in read_table(output / "results.csv"):
        rows.setdefault(row["file"].removeprefix(f"{folder.as_posix()}/"), []).append(row)
    return Run(done.returncode, printed, float(spent[2]), int(spent[1]) / 1000, output, rows)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A run on one good picture, and one on the hostile folder with its output in it."""
    top = tmp_path_factory.mktemp("hostile")
    bundle = write_small_bundle(top / "bundle")
    write_picture(top / "calm" / "a.png", 0)
    hostile = top / "hostile"
    hostile.mkdir()
    write_good(hostile)
    write_bad(hostile)
    write_bad_archives(hostile)
    write_what_is_no_file(hostile)
    write_names_that_meet(hostile)
    try:
        return run_segment(top / "calm", top / "out", bundle), run_segment(
            hostile, hostile / os.fsdecode(b"out \xe9"), bundle
        )
    finally:
        for name in ("locked", "seen only"):
            (hostile / name).chmod(0o755)  # so that it can be deleted
        subprocess.run(["rm", "-r", hostile / "d", hostile / os.fsdecode(b"out \xe9") / "masks" / "d"], check=False)


ERRORS = {
    "absurd.dcm": "absurd.dcm: 1 frames of 65535 x 65535 pixels are promised, and the file is too short for them",
    "bomb.png": "bomb.png: far more pixels, at most 85,000,000 are decoded",
    "bomb.zip/zeros.png": "zeros.png: not an image of a known format or damaged",
    "broken.zip": "broken.zip: not a readable zip archive",
    "gone.png": "No such file or directory",
    "itself.png": "Too many levels of symbolic links",
    "locked": "locked: this folder cannot be listed (Permission denied)",
    "moving.gif": "moving.gif: animated, 2 frames",
    "nothing.png": "nothing.png: not an image of a known format or damaged",
    "pipe.png": "pipe.png: not a regular file",
    "promise.zip/zeros.png": "promise.zip, member zeros.png: 4,026,531,840 bytes unpacked",
    "secret.png": "Permission denied",
    "slip.zip/../../slipped.png": "slip.zip, member slipped.png: its name leads out of the archive",
    "IM0001": "Permission denied",
    "seen only/a.png": "Permission denied",
    "pipe.zip": "pipe.zip: not a regular file",
    "log.zip": "log.zip: not a regular file",
    "log.png": "log.png: not a regular file",
    "zero.zip": "zero.zip: not a regular file",
    "zero.png": "zero.png: not a regular file",
    "socket.png": "socket.png: not a regular file",
    "far.png": "File name too long",
    "system": "system: this folder cannot be listed (it belongs to the system)",
    "/".join(("d",) * DEPTH) + "/a.png": "it lies too many folders deep",
    "truncated.png": "truncated.png: cannot be decoded",
    "words.jpg": "words.jpg: not an image of a known format or damaged",
    "zeros.jpg": "zeros.jpg: not an image of a known format or damaged",
    os.fsdecode(b"words \xe9.jpg"): "words ?.jpg: not an image of a known format or damaged",
}
MEETING = ("scan.tif", "scan_0001.png", "scan_0002.png", "scan_0002.jpg", "e\u0301.png", "\u00e9.png")
OTHER_GOOD = (*MEETING, "earlier/masks/a.png", "one pixel.png", "wide.png", "high.png", "nan.nii", "slip.zip/good.png")


def test_every_bad_file_has_a_row_with_a_plain_error(runs: tuple[Run, Run]) -> None:
    errors = {name: rows[0]["error"] for name, rows in runs[1].rows.items() if rows[0]["error"]}
    assert errors.keys() == ERRORS.keys()
    assert all(errors[name].startswith(start) for name, start in ERRORS.items()), errors
    assert all(error.isprintable() for error in errors.values())
    assert not any(runs[1].row(name)["mask_file"] for name in ERRORS)


def test_every_good_file_is_done_and_has_a_mask_of_its_own(runs: tuple[Run, Run]) -> None:
    run = runs[1]
    assert run.rows.keys() == {*GOOD_NAMES, *OTHER_GOOD, *ERRORS}
    masks = [row["mask_file"] for name in (*GOOD_NAMES, *OTHER_GOOD) for row in run.rows[name]]
    assert len(set(masks)) == len(masks) == len(GOOD_NAMES) + len(OTHER_GOOD) + 3  # pages and slices
    found = [path.relative_to(run.output).as_posix() for path in (run.output / "masks").rglob("*") if path.is_file()]
    assert sorted(found) == sorted(masks)
    assert (run.row("a.jpg")["mask_file"], run.row("a.png")["mask_file"]) == (
        "masks/a_segmentation.png",
        "masks/a.png_segmentation.png",
    )


@pytest.mark.parametrize(("name", "size"), [("one pixel.png", (1, 1)), ("wide.png", (30_000, 4)), ("-o.png", (80, 48))])
def test_masks_of_odd_pictures_have_their_size(name: str, size: tuple[int, int], runs: tuple[Run, Run]) -> None:
    with Image.open(runs[1].output / runs[1].row(name)["mask_file"]) as mask:
        assert mask.size == size


def test_the_run_ends_with_1_a_summary_and_no_traceback(runs: tuple[Run, Run]) -> None:
    run = runs[1]
    assert run.code == 1
    assert "Traceback" not in run.printed
    assert "Results are in" in run.printed
    done, failed = len(GOOD_NAMES) + len(OTHER_GOOD), len(ERRORS)
    assert f"done              {done:>8}\nfailed            {failed:>8}\n" in run.printed
    assert json.loads((run.output / "run.json").read_text())["counts"]["failed"] == failed


def test_time_and_memory_are_bounded(runs: tuple[Run, Run]) -> None:
    calm, hostile = runs
    assert calm.code == 0
    assert hostile.seconds - calm.seconds < SECONDS
    assert hostile.peak_mb - calm.peak_mb < MEGABYTES


def test_nothing_is_written_outside_the_output_folder(runs: tuple[Run, Run]) -> None:
    top = runs[1].output.parents[1]
    assert not list(top.parent.rglob("*slipped*"))
    assert not list(top.rglob("evil"))
    assert not list(runs[1].output.rglob(".*"))


def test_names_are_text_in_the_report(runs: tuple[Run, Run]) -> None:
    page = (runs[1].output / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "\\u003cimg src=x onerror=alert(1)>.png" in page
    assert "%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E_segmentation.png" in page
    assert "new\\\\x0aline.png" in page
    assert "caf%E9_segmentation.png" in page


def test_no_file_gets_the_name_of_anothers_page(runs: tuple[Run, Run]) -> None:
    run = runs[1]
    pages = [row["mask_file"] for row in run.rows["scan.tif"]]
    assert pages == ["masks/scan_0001_segmentation.png", "masks/scan_0002_segmentation.png"]
    for page in pages:
        with Image.open(run.output / page) as mask:
            assert mask.size == (20, 20)
    keys = [unicodedata.normalize("NFD", name).casefold() for name in map(str, (run.output / "masks").rglob("*"))]
    assert len(set(keys)) == len(keys)


def test_the_table_is_valid_utf_8_and_one_line_a_row(runs: tuple[Run, Run]) -> None:
    table = (runs[1].output / "results.csv").read_text(encoding="utf-8", errors="strict")
    assert len(table.splitlines()) == 1 + sum(map(len, runs[1].rows.values()))
    assert "caf\\xe9.png" in table
