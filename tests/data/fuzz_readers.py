"""Small files of every kind, damaged in every way, given to everything that reads foreign files."""

from __future__ import annotations

import faulthandler
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit

from amsam_med.data.dicom.deidentify import deidentified
from amsam_med.data.dicom.identifiers import without_identifiers
from amsam_med.data.dicom.shared import read_header
from amsam_med.data.nifti import is_nifti, read_geometry
from amsam_med.data.readers import image_size, is_image_file, open_image, read_mask
from amsam_med.errors import AmsamError
from tests.data.test_hostile import PICTURE, SEEDS, coded, dataset, nifti, written

LONGEST = 20
"""Seconds that reading one damaged file may take."""

_OPTIONS = settings(database=None, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def _more_seeds() -> dict[str, bytes]:
    picture = PIL.Image.fromarray(PICTURE)
    text = PIL.PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "<x/>", zip=True)
    text.add_text("Comment", "words" * 20, zip=True)
    item = dataset()
    del item.PixelData
    frames = dataset(JPEGBaseline8Bit, NumberOfFrames=2)
    frames.PixelData = encapsulate([coded("JPEG")] * 2)
    nested = {"ReferencedImageSequence": Sequence([item, item]), "PatientName": "Doe^Jane", "PixelSpacing": [1, 2]}
    nifti2 = nibabel.Nifti2Image(PICTURE.astype(np.float64), np.eye(4)).to_bytes()
    return {
        "text.png": coded("PNG", pnginfo=text, icc_profile=bytes(200)),
        "moving.png": coded("PNG", save_all=True, append_images=[picture.rotate(180)]),
        "xmp.webp": coded("WEBP", xmp=b"<x/>", icc_profile=bytes(200)),
        "moving.webp": coded("WEBP", save_all=True, append_images=[picture.rotate(180)]),
        "lzw.tif": coded("TIFF", compression="tiff_lzw"),
        "jpeg.tif": coded("TIFF", PIL.Image.fromarray(np.zeros((32, 32, 3), np.uint8)), compression="jpeg"),
        "big.tif": coded("TIFF", big_tiff=True),
        "float.tif": coded("TIFF", PIL.Image.fromarray(PICTURE[..., 0].astype(np.float32))),
        "rgb24.nii": nifti(np.ascontiguousarray(PICTURE).view(np.dtype([(c, "u1") for c in "RGB"]))),
        "second.nii": nifti2,
        "implicit.dcm": written(dataset(ImplicitVRLittleEndian, **nested)),
        "big_endian.dcm": written(dataset(ExplicitVRBigEndian, **nested)),
        "deflated.dcm": written(dataset(DeflatedExplicitVRLittleEndian, **nested)),
        "frames.dcm": written(frames),
    }


ALL_SEEDS = SEEDS | _more_seeds()
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
_CHANGES = st.tuples(
    st.sampled_from(["flip", "flip", "flip", "number", "number", "cut", "drop", "repeat", "splice", "insert"]),
    st.floats(0, 1) | st.floats(0, 0.1),
    st.sampled_from(_NUMBERS) | st.integers(0, 5000),
)


def damaged(content: bytes, changes: list[tuple[str, float, int]], other: bytes) -> bytes:
    """Bytes with flips, huge lengths, cuts, repetitions and pieces of another file at relative places."""
    made = bytearray(content)
    for kind, share, number in changes:
        at = int(share * max(len(made) - 1, 0))
        size = "<L" if at % 2 else ">L"
        new = {
            "flip": bytes([number % 256]) + made[at + 1 :],
            "number": struct.pack(size, number) + made[at + 4 :],
            "insert": struct.pack(size, number) + made[at:],
            "cut": b"",
            "drop": made[at + number % 64 :],
            "repeat": made[at : at + number % 256] * (1 + number % 7) + made[at:],
            "splice": other[number % max(len(other), 1) :][:4096],
        }
        made[at:] = new[kind]
    return bytes(made)


def _looked_at(path: Path) -> None:
    with open_image(path) as file:
        for index in range(min(file.count, 3)):
            assert file.pixels(index).shape == (3, *file.size(index))
        assert isinstance(file.damage, str)


def _uses(path: Path) -> list[Callable[[], object]]:
    """All that is done with a foreign file before, while and after it is read."""
    uses: list[Callable[[], object]] = [
        lambda: is_image_file(path),
        lambda: without_identifiers(path, path.name, bytes(32)),
        lambda: image_size(path),
        lambda: _looked_at(path),
        lambda: read_mask(path),
        lambda: deidentified(read_header(path), bytes(32)),
    ]
    return [*uses, lambda: read_geometry(path)] if is_nifti(path) else uses


def use(path: Path) -> None:
    """Read the file in all ways; any problem with it must be an error of this package."""
    for one in _uses(path):
        text = _refusal(one)
        assert len(text) < 400
        assert text.isprintable()


def _refusal(one: Callable[[], object]) -> str:
    try:
        one()
    except AmsamError as error:
        return str(error)
    return ""


def fuzz(folder: Path, examples: int) -> None:
    """Read so many damaged files; the last one stays in ``folder``.

    The process ends where reading takes longer than :data:`LONGEST`, and tells where it was.
    """
    names = sorted(ALL_SEEDS)

    @settings(_OPTIONS, max_examples=examples)
    @given(st.sampled_from(names), st.lists(_CHANGES, min_size=1, max_size=6), st.sampled_from(names))
    def read(name: str, changes: list[tuple[str, float, int]], other: str) -> None:
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        path = folder / name
        path.write_bytes(damaged(ALL_SEEDS[name], changes, ALL_SEEDS[other]))
        use(path)
        path.unlink()

    read()
    faulthandler.cancel_dump_traceback_later()
