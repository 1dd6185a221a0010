"""A small world around a command: what it is given, where it may write, and all that it must leave alone."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.attack.kit import Kit
from tests.attack.zygote import Ended, Event, Surroundings, Zygote

SECONDS, MEGABYTES = 60, 1200
"""What a command may take, if its case says nothing else: of processor time, and beyond what its imports hold."""

_IDLE_SECONDS = 20  # without a hundredth of a second of work: it waits for something that does not come
_WRITABLE_IN_HOME = (".cache", ".config", ".local")


@dataclass(frozen=True)
class Run:
    """A command that has ended.

    Attributes:
        code: Exit code; of a killed process, the negative number of the signal; None where it did not end in time.
        printed: Both streams.
        seconds: Of wall time.
        processor_seconds: Of processor time.
        megabytes: See :class:`tests.attack.zygote.Ended`.
    """

    code: int | None
    printed: str
    seconds: float
    processor_seconds: float
    megabytes: float


class Running:
    """A command that runs.

    Args:
        zygote: Who has started it.
        process: Its number.
        log: Where it prints.
    """

    def __init__(self, zygote: Zygote, process: int, log: Path) -> None:
        self._zygote, self.process, self._log, self._began = zygote, process, log, time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._zygote.ended(self.process, 0.001) is not None

    @property
    def printed(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="surrogateescape") if self._log.exists() else ""

    def send(self, number: int) -> None:
        """Send a signal."""
        if not self.is_over:
            os.kill(self.process, number)

    def wait(self, seconds: float = SECONDS) -> Run:
        """Wait until it ends, and kill it if it does not.

        Args:
            seconds: Of wall time, where it has the processor to itself; on a busy machine it may take longer, as long
                as it computes at all.
        """
        ended, spent = self._zygote.ended(self.process, seconds), -1.0
        while ended is None and time.monotonic() - self._began < 8 * seconds and self._processor_seconds() > spent:
            spent = self._processor_seconds()
            ended = self._zygote.ended(self.process, _IDLE_SECONDS)
        code = None if ended is None else ended.code
        if ended is None:
            self._zygote.kill(self.process)
            ended = self._zygote.ended(self.process, 20) or Ended(-signal.SIGKILL, 0, 0)
        return Run(code, self.printed, time.monotonic() - self._began, ended.seconds, ended.megabytes)

    def _processor_seconds(self) -> float:
        """What it has used so far."""
        try:
            entries = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return -1.0
        return (int(entries[11]) + int(entries[12])) / os.sysconf("SC_CLK_TCK")


class World:
    """Folders of a case, with things in them that nobody may touch.

    Args:
        root: An empty folder.
        zygote: Starts commands.
        kit: Good things.

    Attributes:
        root: Holds all the others.
        input: What a command is given.
        output: Where it may write.
        home: The user's folder.
        tmp: The system's temporary folder.
        cwd: The working directory.
        proof: A file that only code in bad input would make.
        kit: See above.
        bundle: A bundle of random weights for small pictures.
    """

    def __init__(self, root: Path, zygote: Zygote, kit: Kit) -> None:
        self.root, self.kit, self.bundle, self._zygote = root, kit, kit.bundle, zygote
        self.input, self.output = root / "in", root / "out"
        self.home, self.tmp, self.cwd, self.proof = root / "home", root / "tmp", root / "cwd", root / "PROOF"
        for folder in (self.input, self.home, self.tmp, self.cwd, root / "precious"):
            folder.mkdir(parents=True)
        for path in (root / "precious" / "results.csv", self.home / ".bashrc", self.cwd / "notes.txt", root / "a.png"):
            path.write_text("leave me as I am\n")
        self._count = 0
        self._mounts: list[Path] = []

    def environment(self, **changes: str | None) -> dict[str, str]:
        """A small environment; None takes a variable away."""
        plain = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
        own = {"HOME": str(self.home), "TMPDIR": str(self.tmp), "XDG_CONFIG_HOME": str(self.home / ".config")}
        own["PYTHONIOENCODING"] = "utf-8:strict"
        return {name: value for name, value in {**plain, **own, **changes}.items() if value is not None}

    def start(
        self,
        *words: str | os.PathLike[str],
        environment: Mapping[str, str] | None = None,
        events: tuple[Event, ...] = (),
        **surroundings: Any,
    ) -> Running:
        """Start ``amsam``; ``surroundings`` are those of :class:`tests.attack.zygote.Surroundings`."""
        self._count += 1
        log = self.root.parent / f"{self.root.name}.{self._count}.log"
        given = Surroundings(
            [os.fspath(word) for word in words],
            str(self.cwd),
            self.environment() if environment is None else environment,
            str(log),
            str(log),
            events=events,
            writable=str(self.root.parent),
        )
        given = replace(given, **surroundings)
        return Running(self._zygote, self._zygote.start(given), log)

    def amsam(self, *words: str | os.PathLike[str], seconds: float = SECONDS, **surroundings: Any) -> Run:
        """Run ``amsam`` to its end."""
        return self.start(*words, **surroundings).wait(seconds)

    def fresh(self, package: Path, words: list[str], seconds: float = SECONDS) -> Run:
        """Run ``amsam`` of another package in a Python that has imported nothing."""
        code = "import sys; from amsam_med.cli import main; sys.exit(main(sys.argv[1:]))"
        environment = {**self.environment(), "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            env=environment,
            cwd=self.cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
        return Run(done.returncode, done.stdout.decode(errors="surrogateescape"), time.monotonic() - began, 0, 0)

    def segment_words(self, *more: str | os.PathLike[str], source: Path | None = None) -> list[str | os.PathLike[str]]:
        """The words that segment the input with the small bundle."""
        return ["segment", source or self.input, "-o", self.output, *self.with_bundle(), "--device", "cpu", *more]

    def with_bundle(self, bundle: Path | None = None) -> list[str | os.PathLike[str]]:
        """The words that choose a bundle and trust it."""
        return ["--bundle", bundle or self.bundle, "--trust-bundle"]

    def segment(self, *more: str | os.PathLike[str], source: Path | None = None, **surroundings: Any) -> Run:
        """Segment the input with the small bundle."""
        return self.amsam(*self.segment_words(*more, source=source), **surroundings)

    @cached_property
    def before(self) -> dict[str, str]:
        """What lies in the world but for the output; look at it before the command runs."""
        return self._listed()

    def changes(self) -> list[str]:
        """What is no longer as it was in ``before``, outside the output."""
        before, now = self.before, self._listed()
        return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))

    def small_disk(self, name: str, size: str, options: str = "") -> Path:
        """A file system of its own, taken away when the case is over.

        Raises:
            Skipped: None can be mounted here.
        """
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        if os.geteuid() != 0 or shutil.which("mount") is None:
            raise Skipped("a small disk is mounted, which takes root and the program mount")
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "small", folder]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode != 0:
            raise Skipped(f"a small disk cannot be mounted: {done.stderr.strip()}")
        self._mounts.append(folder)
        return folder

    def enlarge(self, disk: Path, size: str) -> None:
        """Give a file system that :meth:`small_disk` made another size."""
        subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)

    def close(self) -> None:
        """Take away what the case has mounted and locked."""
        for folder in self._mounts:
            subprocess.run(["umount", "-l", folder], check=False)

    def _listed(self) -> dict[str, str]:
        listed: dict[str, str] = {}
        for path in walk(self.root, self._is_free):
            with suppress(OSError):  # deeper than a path may be, or locked
                listed[os.fspath(path.relative_to(self.root))] = _identity(path)
        return listed

    def _is_free(self, path: Path) -> bool:
        """Whether anything may happen to a folder."""
        return path == self.output or (path.parent == self.home and path.name in _WRITABLE_IN_HOME)


class Skipped(Exception):
    """A case cannot be tried here."""


@contextmanager
def new_world(zygote: Zygote, kit: Kit) -> Iterator[World]:
    """A world that is gone after the block."""
    folder = tempfile.mkdtemp(prefix="attack-")
    world = World(Path(folder, "world"), zygote, kit)
    try:
        yield world
    finally:
        world.close()
        remove(Path(folder))


def walk(root: Path, is_left_out: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """All that lies in a folder, however deep; links are not followed, and what cannot be listed is passed over."""
    stack = [os.fspath(root)]
    while stack:
        with suppress(OSError), os.scandir(stack.pop()) as entries:
            for entry in entries:
                path = Path(entry.path)
                if is_left_out(path):
                    continue
                yield path
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)


def remove(root: Path) -> None:
    """Delete a folder, also where it is locked or deeper than Python's own functions go."""
    for path in [root, *walk(root)]:
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
    subprocess.run(["rm", "-rf", root], check=False)


def _identity(path: Path) -> str:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return f"link to {os.readlink(path)}"
    if not stat.S_ISREG(status.st_mode):
        return f"of kind {stat.S_IFMT(status.st_mode):o}"
    if status.st_size > 64 << 20:  # sparse ones
        return f"{status.st_size} bytes, {status.st_mtime_ns}"
    if not os.access(path, os.R_OK):
        return f"{status.st_size} bytes, {status.st_mtime_ns}"
    return hashlib.sha256(path.read_bytes()).hexdigest()
