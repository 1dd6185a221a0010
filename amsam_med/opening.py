"""Files opened to be read; only those that end."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

from amsam_med.errors import DataError


def open_regular(path: Path) -> IO[bytes]:
    """Open a file to read it, unless it is a pipe or a device, whose opening or reading might never end.

    Raises:
        DataError: It is no regular file.
        OSError: It cannot be opened.
    """
    _refuse_irregular(path.stat())
    # it may have become another since
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
