"""A crash of gdcm does not end our process, and libjpeg's messages about a JPEG are captured."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.encaps import get_frame
from pydicom.pixels.utils import as_pixel_options

from amsam_med.data import decoder_process
from amsam_med.data.decoder_process import decode_by_gdcm, jpeg_damage
from amsam_med.data.readers import read_image
from amsam_med.errors import DataError

LOSSLESS = str(get_testdata_file("SC_rgb_jpeg_gdcm.dcm", download=False))


def decode(change: bytes = b"") -> np.ndarray:
    dataset = pydicom.dcmread(LOSSLESS)
    options = {**as_pixel_options(dataset), "pixel_keyword": "PixelData", "pixel_vr": "OB"}
    coded = get_frame(dataset.PixelData, 0, number_of_frames=1)
    pixels, kind = decode_by_gdcm(change + coded[len(change) :], dataset.file_meta.TransferSyntaxUID, options)
    assert kind == "RGB"
    return pixels


def test_it_decodes_as_pydicom_does_in_this_process() -> None:
    np.testing.assert_array_equal(decode(), pydicom.dcmread(LOSSLESS).pixel_array)


def test_a_frame_that_it_cannot_decode_is_told() -> None:
    with pytest.raises(RuntimeError, match="cannot decode this frame"):
        decode(change=b"no JPEG at all")
    assert decode().shape == (100, 100, 3)


def test_its_end_is_a_fault_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suicide = tmp_path / "suicide.py"
    suicide.write_text("import os, sys\nsys.stdin.buffer.read(16)\nos.abort()\n")
    decoder_process._stop()
    with monkeypatch.context() as patch:
        patch.setattr(decoder_process, "__file__", str(suicide))
        with pytest.raises(DataError, match=r"SC_rgb_jpeg_gdcm\.dcm: a DICOM frame that is damaged"):
            read_image(LOSSLESS)
    assert read_image(LOSSLESS).pixels.shape == (3, 100, 100)


def test_it_is_stopped_when_it_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text("import time\ntime.sleep(60)\n")
    decoder_process._stop()
    monkeypatch.setattr(decoder_process, "__file__", str(sleeper))
    monkeypatch.setattr(decoder_process, "TIME_LIMIT", 0.5)
    with pytest.raises(RuntimeError, match="the decoder ended"):
        decode()


def test_the_process_is_started_once() -> None:
    decode()
    first = decoder_process._served.process
    decode()
    assert decoder_process._served.process is first


@pytest.fixture(scope="module")
def jpeg() -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    PIL.Image.fromarray(noise).resize((600, 400)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def test_a_whole_jpeg_has_no_damage(jpeg: bytes) -> None:
    assert jpeg_damage(jpeg) == ""


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("content", [bytes(512), b"\xa7\x31" * 256])
def test_a_damaged_stretch_of_a_jpeg_is_heard_of(jpeg: bytes, place: float, content: bytes) -> None:
    at = int(place * len(jpeg))
    said = jpeg_damage(jpeg[:at] + content + jpeg[at + len(content) :])
    assert said.startswith("Corrupt JPEG data")


def test_an_early_end_is_heard_of(jpeg: bytes) -> None:
    assert jpeg_damage(jpeg[: len(jpeg) // 2] + b"\xff\xd9") == "Corrupt JPEG data: premature end of data segment"


def test_what_pillow_will_refuse_is_not_judged(jpeg: bytes) -> None:
    assert [jpeg_damage(content) for content in (b"", b"words", jpeg[:30], jpeg[: len(jpeg) // 2])] == [""] * 4
