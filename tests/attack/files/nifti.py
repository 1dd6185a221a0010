"""NIfTI: cut, absurd, of odd numbers, and packed without end."""

from __future__ import annotations

import gzip
import struct
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from tests.attack.cases import Outcome
from tests.attack.files.pictures import CUTS, cut
from tests.attack.files.pictures import file as picture_file

GROUP = "nifti"

_VALUES = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.float32)


def nifti(values: NDArray[Any], **header: object) -> bytes:
    """A file of NIfTI-1 whose header says what it is told to."""
    content = bytearray(nibabel.Nifti1Image(values, np.eye(4), dtype=values.dtype).to_bytes())
    start = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in header.items():
        start[name] = value
    content[:348] = start.binaryblock
    return bytes(content)


def _file(name: str, content: bytes, outcome: Outcome = Outcome.ERROR, file_name: str = "a.nii", **more: Any) -> None:
    picture_file(name, content, file_name, outcome, group=GROUP, **more)


def _headers() -> None:
    absurd = {
        "a negative side": {"dim": [3, -5, 4, 3, 1, 1, 1, 1]},
        "three sides of 32,767": {"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]},
        "seven sides of 32,767": {"dim": [7, *[32767] * 7]},
        "seven sides of 0": {"dim": [7, 0, 0, 0, 0, 0, 0, 0]},
        "no side": {"dim": [0, 1, 1, 1, 1, 1, 1, 1]},
        "nine sides": {"dim": [9, 2, 2, 2, 2, 2, 2, 2]},
        "bits for numbers": {"datatype": 1},
        "numbers that nobody knows": {"datatype": 12345},
        "values before the file": {"vox_offset": -1},
        "values at no number": {"vox_offset": np.nan},
        "values at infinity": {"vox_offset": np.inf},
        "values at 1e20": {"vox_offset": 1e20},
        "an offset that is no number": {"scl_slope": 2, "scl_inter": np.nan},
        "the magic of a pair of files": {"magic": b"ni1"},
    }
    for name, header in absurd.items():
        content = nifti(_VALUES, **header)
        _file(f"header of {name}", content)
        _file(f"packed header of {name}", gzip.compress(content), file_name="a.nii.gz")
    for name, header in {
        "a header of 2^31 - 1 bytes": {"sizeof_hdr": 2**31 - 1},
        "a slope of infinity": {"scl_slope": np.inf},
        "a slope of 0": {"scl_slope": 0},
        "spacings that are no numbers": {"pixdim": [1, np.nan, -1, 0, 1, 1, 1, 1]},
        "units that nobody knows": {"xyzt_units": 7},
    }.items():
        _file(f"header of {name}", nifti(_VALUES, **header), Outcome.EITHER)


def _values() -> None:
    nothing = np.full((20, 24, 3), np.nan, np.float32)
    some = nothing.copy()
    some[..., 1] = 7
    infinite = _VALUES.copy()
    infinite[3:9, 3:9] = np.inf
    coloured = np.zeros((20, 24, 1), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    arrays = {
        "nothing but NaN": nothing,
        "a slice of numbers between NaN": some,
        "infinity": infinite,
        "complex numbers of 64 bits": _VALUES.astype(np.complex64),
        "complex numbers of 128 bits": _VALUES.astype(np.complex128),
        "whole numbers of 64 bits": _VALUES.astype(np.int64) << 40,
        "one value": np.zeros((20, 24, 2), np.int16),
        "the largest floats": np.where(_VALUES > 127, 1.7e308, -1.7e308),
        "RGB": coloured,
        "four dimensions": np.zeros((9, 9, 2, 3), np.uint8),
        "five dimensions": np.zeros((9, 9, 2, 3, 2), np.uint8),
        "five dimensions of which two are 1": np.zeros((9, 9, 2, 1, 1), np.uint8),
        "one dimension": np.zeros(50, np.uint8),
        "one voxel": np.zeros((1, 1, 1), np.uint8),
        "30,000 by 1 by 1 voxels": np.zeros((30_000, 1, 1), np.uint8),
    }
    for name, values in arrays.items():
        _file(f"of {name}", nifti(values), Outcome.EITHER)
    _file("of floats of 128 bits", nifti(np.zeros((20, 24, 3), np.complex128), datatype=1536), Outcome.EITHER)
    _file(
        "with an affine of NaN",
        nifti(_VALUES, sform_code=1, srow_x=np.nan, srow_y=np.nan, srow_z=np.inf),
        Outcome.EITHER,
    )
    _file("with an affine of zeros", nifti(_VALUES, sform_code=1, srow_x=0, srow_y=0, srow_z=0), Outcome.EITHER)
    _file("of version 2", nibabel.Nifti2Image(_VALUES, np.eye(4)).to_bytes(), Outcome.EITHER)
    swapped = nibabel.Nifti1Image(_VALUES.astype(">f4"), np.eye(4), nibabel.Nifti1Header(endianness=">"))
    _file("of the other byte order", swapped.to_bytes(), Outcome.EITHER)


def _packed() -> None:
    whole = nifti(_VALUES)
    packed = gzip.compress(whole)
    for place, share in CUTS.items():
        _file(f"cut {place}", cut(whole, share))
        _file(f"packed and cut {place}", cut(packed, share), file_name="a.nii.gz")
    bomb = gzip.compress(bytes(50_000_000)) * 20
    promise = nifti(_VALUES, dim=[3, 20000, 20000, 3, 1, 1, 1, 1])
    for name, content, outcome in (
        ("packed twice", gzip.compress(packed), Outcome.ERROR),
        ("not packed, and called so", whole, Outcome.EITHER),
        ("with a gigabyte packed behind it", packed + bomb, Outcome.EITHER),
        ("of a gigabyte of zeros, packed", bomb, Outcome.ERROR),
        ("packed, that promises 4.8 GB", gzip.compress(promise), Outcome.ERROR),
        ("packed, that promises 4.8 GB and begins to hold it", gzip.compress(promise) + bomb, Outcome.ERROR),
        ("packed, with a wrong checksum", packed[:-8] + bytes(4) + packed[-4:], Outcome.ERROR),
        ("packed, with words behind it", packed + b"words", Outcome.EITHER),
        ("of words, packed", gzip.compress(b"words " * 500), Outcome.ERROR),
        ("of nothing, packed", gzip.compress(b""), Outcome.ERROR),
    ):
        _file(name, content, outcome, "a.nii.gz")
    extended = bytearray(whole)
    extended[348:352] = b"\1\0\0\0"
    extension = struct.pack("<ll", 2**31 - 8, 6)
    _file("with an extension of 2 GB", bytes(extended[:352]) + extension + bytes(extended[352:]), Outcome.EITHER)


_headers()
_values()
_packed()
