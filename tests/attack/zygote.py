"""A process that has imported everything once and forks an ``amsam`` for each line it is told: a start costs no second.

A child ends as ``amsam`` from a shell does. It is waited for here, as only a parent is told how much memory it had.
Lines are JSON; nothing but their answers is written to the pipe.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import gc
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
CLOSED, BROKEN = "closed", "broken"
"""What a stream may be besides a path: closed from the start, or a pipe that nobody reads."""

_PRELOADED = (
    *(
        "amsam_med.segment",
        "amsam_med.train",
        "amsam_med.evaluate",
        "amsam_med.detect.yolo",
        "amsam_med.data.sets.check",
    ),
    *(f"amsam_med.cli.{name}" for name in ("segment", "train", "evaluate", "detector", "data", "weights", "info")),
    *("rich.progress", "highdicom", "dicomweb_client.api", "monai.engines", "monai.handlers"),
)
_NEW_MOUNTS, _BIND, _RECURSIVE, _PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000
_MOUNT_SETATTR, _AT_CWD, _AT_RECURSIVE = 442, -100, 0x8000
_SHARED_MEMORY = b"/dev/shm"  # locks between threads and processes are made there
_FILE_POWERS = 1 << 1 | 1 << 2  # DAC_OVERRIDE and DAC_READ_SEARCH: with them no permission binds


@dataclass(frozen=True)
class Event:
    """Something that happens in a process just before one of its system calls.

    Attributes:
        event: One of Python's audit events, as ``"open"`` or ``"os.rename"``.
        path: Part of the path that the event is about.
        action: ``"signal NUMBER"``, ``"sleep SECONDS"`` (each time), ``"remove PATH"`` or ``"truncate PATH"``.
    """

    event: str
    path: str
    action: str


@dataclass(frozen=True)
class Surroundings:
    """What a process finds around it.

    Attributes:
        words: What follows ``amsam``.
        cwd: Working directory.
        environment: All its variables.
        stdout: Path of a file, :data:`CLOSED` or :data:`BROKEN`.
        stderr: The same.
        stdin: The same.
        megabytes: Address space beyond that of a process that has only imported everything.
        limits: Of the module ``resource`` by name, as ``{"RLIMIT_NOFILE": 64}``.
        events: What happens to it.
        is_bound_by_permissions: Whether the superuser gives up reading and writing what is not allowed to anybody.
        is_cwd_removed: Whether the working directory is deleted before the command begins.
        writable: The only folder that can be written to, where the system lets the superuser see to that: what a defect
            would delete or overwrite is then not that of the machine.
    """

    words: Sequence[str]
    cwd: str
    environment: Mapping[str, str]
    stdout: str
    stderr: str
    stdin: str = os.devnull
    megabytes: int = 4000
    limits: Mapping[str, int] = field(default_factory=dict)
    events: Sequence[Event] = ()
    is_bound_by_permissions: bool = True
    is_cwd_removed: bool = False
    writable: str = ""


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: Exit code; of a killed process, the negative number of the signal.
        megabytes: The most memory that it, or a process of its own, held beyond what all had when it began.
        seconds: Of processor time.
    """

    code: int
    megabytes: float
    seconds: float


class Zygote:
    """The process, from the side of who tells it; a context manager."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.attack.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            env=environment,
        )
        self._ended: dict[int, Ended] = {}
        self._running: set[int] = set()
        self._base_kb: dict[int, int] = {}

    def start(self, surroundings: Surroundings) -> int:
        """Start a process; its number."""
        self._tell(json.dumps(dataclasses.asdict(surroundings)))
        while True:
            answer = self._answer(120)
            assert answer is not None, "the zygote does not answer"
            if "started" in answer:
                self._running.add(answer["started"])
                self._ended.pop(answer["started"], None)  # the system gives numbers again
                return int(answer["started"])

    def ended(self, process: int, seconds: float) -> Ended | None:
        """How a process ended; None if it has not within ``seconds``."""
        until = time.monotonic() + seconds
        while process not in self._ended and (left := until - time.monotonic()) > 0:
            self._answer(left)
        return self._ended.get(process)

    def kill(self, process: int) -> None:
        """End a process and all that it has started."""
        if process in self._running:
            os.killpg(process, signal.SIGKILL)

    def close(self) -> None:
        """End everything."""
        for process in tuple(self._running):
            self.kill(process)
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def _answer(self, seconds: float) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return None
        line = b""
        while not line.endswith(b"\n"):  # unbuffered, so that select() tells the truth
            some = os.read(self._process.stdout.fileno(), 1)
            assert some, "the zygote has ended"
            line += some
        answer: dict[str, Any] = json.loads(line)
        if "began" in answer:
            self._base_kb[answer["began"]] = answer["kb"]
        if "ended" in answer:
            self._running.discard(answer["ended"])
            grown = answer["kb"] - self._base_kb.pop(answer["ended"])
            self._ended[answer["ended"]] = Ended(answer["code"], max(0, grown) / 1024, answer["seconds"])
        return answer


def _serve() -> Surroundings:
    """Fork for each line and report each end; in the forks, what they are to be."""
    answers, children = os.dup(1), 0
    os.dup2(2, 1)
    _preload()
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page of what has been imported
    while True:
        if select.select([0], [], [], 0.01)[0]:
            line = b""
            while not line.endswith(b"\n"):
                some = os.read(0, 1 << 16)
                if not some:
                    os._exit(0)
                line += some
            if (child := os.fork()) == 0:
                _tell(answers, began=os.getpid(), kb=_status_kb("VmRSS"))
                os.close(answers)
                return _surroundings(json.loads(line))
            children += 1
            _tell(answers, started=child)
        while children:
            child, status, spent = os.wait4(-1, os.WNOHANG)
            if child == 0:
                break
            children -= 1
            seconds = spent.ru_utime + spent.ru_stime
            _tell(answers, ended=child, code=os.waitstatus_to_exitcode(status), kb=spent.ru_maxrss, seconds=seconds)


def _tell(answers: int, **answer: Any) -> None:
    os.write(answers, json.dumps(answer).encode() + b"\n")  # short, and so in one piece


def _preload() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _PRELOADED:
            with contextlib.suppress(ImportError):  # an extra
                importlib.import_module(name)


def _surroundings(told: dict[str, Any]) -> Surroundings:
    return Surroundings(**{**told, "events": [Event(**event) for event in told["events"]]})


def _enter(given: Surroundings) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(given.environment)
    for number, name in ((0, given.stdin), (1, given.stdout), (2, given.stderr)):
        _connect(number, name)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if given.writable and os.geteuid() == 0:
        _confine(os.fsencode(given.writable))
    os.chdir(given.cwd)
    if given.is_cwd_removed:
        os.rmdir(given.cwd)
    if given.is_bound_by_permissions and os.geteuid() == 0:
        _give_up_file_powers()
    address_space = _status_kb("VmSize") * 1024 + given.megabytes * (1 << 20)
    for name, value in {"RLIMIT_CORE": 0, "RLIMIT_AS": address_space, **given.limits}.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if given.events:
        _await(given.events)
    tempfile.tempdir = None  # what the imports have found is not what this process would
    sys.argv = ["amsam", *given.words]


def _connect(number: int, name: str) -> None:
    stream = ("stdin", "stdout", "stderr")[number]
    if name == CLOSED:  # as Python does when it finds a stream closed
        os.close(number)
        setattr(sys, stream, None)
        setattr(sys, f"__{stream}__", None)
        return
    if name == BROKEN:
        reader, opened = os.pipe()
        os.close(reader)
    else:
        opened = os.open(name, os.O_RDONLY if number == 0 else os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    os.dup2(opened, number)
    os.close(opened)


def _confine(writable: bytes) -> None:
    """See all but one folder and the shared memory as read-only, in this process and those that it starts."""
    libc = ctypes.CDLL(None)
    if libc.unshare(_NEW_MOUNTS) or libc.mount(b"none", b"/", None, _PRIVATE | _RECURSIVE, None):
        return  # not allowed here, as in most containers
    kept = (writable, _SHARED_MEMORY)
    for path in kept:
        libc.mount(path, path, None, _BIND | _RECURSIVE, None)
    for path, is_read_only in ((b"/", 1), *((path, 0) for path in kept)):
        attributes = (ctypes.c_uint64 * 4)(is_read_only, 1 - is_read_only, 0, 0)  # to set, to clear, ...
        libc.syscall(_MOUNT_SETATTR, _AT_CWD, path, _AT_RECURSIVE, attributes, ctypes.sizeof(attributes))


def _give_up_file_powers() -> None:
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # third version of the call, this process
    powers = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then their upper halves
    libc.capget(header, powers)
    for index in range(3):
        powers[index] &= ~_FILE_POWERS
    libc.capset(header, powers)


def _await(events: Sequence[Event]) -> None:
    done = set[Event]()

    def look(name: str, arguments: tuple[object, ...]) -> None:
        for event in events:
            if event in done or name != event.event or not any(event.path in str(one) for one in arguments):
                continue
            verb, _, rest = event.action.partition(" ")
            if verb == "sleep":
                time.sleep(float(rest))
                continue
            done.add(event)
            if verb == "signal":
                os.kill(os.getpid(), int(rest))
            elif verb == "remove":
                os.unlink(rest)
            else:
                os.truncate(rest, 0)

    sys.addaudithook(look)


def _run(words: Sequence[str]) -> int:
    from amsam_med.cli import main

    try:
        return main(list(words))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1


def _leave(code: int) -> None:
    """Python's own end without the work of letting go of every module: threads, functions at exit, buffers."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:  # as Python does
        if sys.stderr is not None:
            sys.stderr.write(f"Exception ignored in: {sys.stdout!r}\n{type(error).__name__}: {error}\n")
        code = 120
    with contextlib.suppress(OSError):
        if sys.stderr is not None:
            sys.stderr.flush()
    os._exit(code)


def _status_kb(entry: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(entry):
            return int(line.split()[1])
    raise AssertionError(entry)


if __name__ == "__main__":
    _enter(plan := _serve())
    _leave(_run(plan.words))
