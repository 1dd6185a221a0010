"""Opening files for reading, only if they are regular files: reading a pipe or a device may never end."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

from amsam_med.errors import DataError


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading; a pipe or a device is refused, as opening or reading it might never end.

    Raises:
        DataError: It is not a regular file.
        OSError: It cannot be opened.
    """
    _refuse_irregular(path.stat())
    # Checked again on the open descriptor, as the path may have been replaced since.
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _refuse_irregular(os.fstat(number))
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def _refuse_irregular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise DataError("not a file of its own kind: a folder, a pipe or a device. Give the path of an image")
