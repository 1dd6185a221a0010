"""Runs ``amsam`` in separate processes, which tests kill, stop or starve; they share one import of torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("pytest", "amsam_med.segment", "amsam_med.train", "amsam_med.detect.yolo", "rich.progress"),
        *("amsam_med.cli.segment", "amsam_med.cli.train", "amsam_med.cli.detector", "tests.cli_process"),
    ]
)


class Strike(NamedTuple):
    """A moment in the life of a process, and what happens to it then.

    Attributes:
        event: One of Python's audit events, as ``"open"`` or ``"os.rename"``; they come before the system call.
        path: Part of the path that the event is about.
        signal_number: The signal.
    """

    event: str
    path: str
    signal_number: int = signal.SIGKILL


class AmsamProcess:
    """A running ``amsam``.

    Args:
        words: What follows ``amsam``.
        log: File for what it prints, both streams.
        struck: Where to send itself a signal, once; None for nowhere.
        environment: Variables that it has besides its parent's.
    """

    def __init__(
        self,
        words: Iterable[str | Path],
        log: Path,
        struck: Strike | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._log = log
        told = [str(word) for word in words], str(log), struck, dict(environment or {})
        self._process = _CONTEXT.Process(target=_main, args=told)
        self._process.start()

    @property
    def is_running(self) -> bool:
        return self._process.is_alive()

    def send(self, signal_number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, signal_number)

    def wait(self) -> int:
        """The exit code; of a killed process, the negative number of the signal."""
        self._process.join(120)
        assert self._process.exitcode is not None, self.printed
        return self._process.exitcode

    @property
    def printed(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="surrogateescape") if self._log.exists() else ""


def amsam(*words: str | Path, log: Path) -> tuple[int, str]:
    """Run ``amsam`` to its end; exit code and what it printed."""
    process = AmsamProcess(words, log)
    return process.wait(), process.printed


def _main(words: list[str], log: str, struck: Strike | None, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    tempfile.tempdir = None  # what the imports have found is not what this process would
    from amsam_med.cli import main

    stream = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(stream, descriptor)
    if struck is not None:
        _await(struck)
    sys.exit(main(words))


def _await(strike: Strike) -> None:
    is_over = False

    def look(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal is_over
        if not is_over and event == strike.event and any(strike.path in str(argument) for argument in arguments):
            is_over = True
            os.kill(os.getpid(), strike.signal_number)

    sys.addaudithook(look)
