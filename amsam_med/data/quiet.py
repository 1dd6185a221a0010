"""Suppresses warnings and log records of decoders while a file is read.

pydicom and Pillow warn of what they repair, and log the traceback of every decoder that fails; both may quote the
file's content. Whether a file is usable is told by a picture or by an error of this package, never by a warning.

``warnings.catch_warnings`` replaces the filters of the whole process, so concurrent threads would undo each other's.
Instead, this module's filter stays in place and matches only in threads that are reading.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_LOGGERS = (
    "nibabel.global",
    "PIL.Image",
    "PIL.TiffImagePlugin",
    "pydicom",
    "pydicom.pixels.decoders.base",
    "pydicom.pixels.utils",
)


class _Reading(threading.local):
    """The number of nested reads of this thread.

    It serves as the module pattern of a warnings filter, and as a filter of loggers.
    """

    depth = 0

    def match(self, module: str) -> bool:
        """Whether a warning that ``module`` raised is to be ignored: it comes from a decoder at work."""
        return self.depth > 0 and not module.startswith("amsam_med")

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be logged."""
        return self.depth == 0


_reading = _Reading()
_ignored: Any = ("ignore", None, Warning, _reading, 0)
_order = threading.Lock()


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Ignore warnings and log records of other packages in this thread until the block ends."""
    _put_first()
    _reading.depth += 1
    try:
        yield
    finally:
        _reading.depth -= 1


def _put_first() -> None:
    """Put the filter before all others, even after the end of a ``catch_warnings`` block has removed it."""
    if warnings.filters and warnings.filters[0] is _ignored:
        return
    with _order:
        # Not by `warnings.filterwarnings`, which makes Python forget what was warned of once.
        filters: Any = warnings.filters
        with suppress(ValueError):
            filters.remove(_ignored)
        filters.insert(0, _ignored)


for _name in _LOGGERS:
    logging.getLogger(_name).addFilter(_reading.filter)
