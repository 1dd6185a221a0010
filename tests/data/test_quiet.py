"""Decoders are quiet in the thread that reads, and only there."""

from __future__ import annotations

import logging
import threading
import warnings
from pathlib import Path

import PIL.Image
import pydicom
import pytest
from pydicom.data import get_testdata_file

from amsam_med.data.quiet import quiet_decoders
from amsam_med.data.readers import read_image


def warn_as(module: str) -> None:
    warnings.warn_explicit("mended", UserWarning, f"{module}.py", 1, module=module)


def test_other_packages_do_not_warn_while_a_file_is_read() -> None:
    with quiet_decoders():
        warn_as("pydicom.misc")
        warn_as("PIL.Image")
    with pytest.warns(UserWarning, match="mended"):
        warn_as("pydicom.misc")


def test_our_own_warnings_stay() -> None:
    with quiet_decoders(), pytest.raises(UserWarning, match="mended"):
        warn_as("amsam_med.data.readers")


def test_a_filter_set_before_or_since_does_not_come_first() -> None:
    with quiet_decoders():
        pass
    warnings.simplefilter("error")
    with quiet_decoders():
        warn_as("pydicom.misc")


def test_other_threads_still_warn() -> None:
    raised: list[BaseException] = []

    def warn_elsewhere() -> None:
        try:
            warn_as("pydicom.misc")
        except UserWarning as warning:
            raised.append(warning)

    with quiet_decoders():
        thread = threading.Thread(target=warn_elsewhere)
        thread.start()
        thread.join()
    assert len(raised) == 1


def test_pydicom_logs_only_outside_of_reading(caplog: pytest.LogCaptureFixture) -> None:
    with quiet_decoders():
        logging.getLogger("pydicom").warning("while reading")
    logging.getLogger("pydicom").warning("otherwise")
    assert caplog.messages == ["otherwise"]


def test_a_file_that_makes_pydicom_warn_is_read_without(tmp_path: Path) -> None:
    path = str(get_testdata_file("SC_rgb_jpeg.dcm", download=False))
    with pytest.warns(UserWarning, match="Expected explicit VR"):
        pydicom.dcmread(path)
    assert read_image(path).pixels.shape == (3, 256, 256)


def test_threads_read_side_by_side(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    path = str(get_testdata_file("SC_rgb_jpeg.dcm", download=False))
    faults: list[BaseException] = []

    def read_many() -> None:
        try:
            for _ in range(20):
                read_image(path), read_image(tmp_path / "a.png")
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=read_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
