"""How commands end on SIGTERM and SIGHUP."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def tidy_end(note: str) -> Iterator[None]:
    """Leave the block by an exception on SIGTERM or SIGHUP, so that nothing half-written stays.

    SIGTERM is what ``kill``, batch systems and container engines send first, SIGHUP what a closed terminal sends; both
    would end Python at once. A handler that is set already, and signals that are ignored (``nohup``), stay as they are.

    Args:
        note: Printed on the error stream after the name of the signal.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        for one in taken:
            signal.signal(one, signal.SIG_IGN)  # a second signal would interrupt the cleaning up
        if sys.stderr is not None:
            click.echo(f"Ended by {signal.Signals(number).name}. {note}", err=True)
        raise SystemExit(128 + number)

    is_main = threading.current_thread() is threading.main_thread()  # others may not set handlers
    taken = [number for number in _ENDING if is_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
