"""What looks like a file and is none, and what may not be read."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from tests.attack.cases import FileCase, Outcome, add
from tests.attack.files.pictures import coded

GROUP = "special files"

_PICTURE = coded("PNG")
SUFFIXES = (".png", ".dcm", ".nii.gz", ".tif")


def _link(target: str, suffix: str = ".png") -> Callable[[Path], object]:
    return lambda folder: os.symlink(target, folder / f"a{suffix}")


def _socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.open(".", os.O_RDONLY)
        os.chdir(folder)  # the path of a socket is short
        try:
            made.bind("a.png")
        finally:
            os.fchdir(here)
            os.close(here)


def _device(folder: Path) -> None:
    try:
        os.mknod(folder / "a.png", stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        os.symlink("/dev/zero", folder / "a.png")


def _locked(mode: int, name: str = "locked") -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / name).mkdir()
        (folder / name / "a.png").write_bytes(_PICTURE)
        (folder / name).chmod(mode)

    return make


def _unreadable(name: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(_PICTURE)
        (folder / name).chmod(0)

    return make


def _sparse(name: str, head: bytes = b"") -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.write(head)
            file.truncate(1 << 40)

    return make


def _chain(folder: Path) -> None:
    (folder / "0.png").write_bytes(_PICTURE)
    for number in range(1, 60):
        os.symlink(f"{number - 1}.png", folder / f"{number}.png")


def _rings(folder: Path) -> None:
    os.symlink("b.png", folder / "a.png")
    os.symlink("a.png", folder / "b.png")


def _folder_ring(folder: Path) -> None:
    (folder / "a.png").write_bytes(_PICTURE)
    for name in ("one", "two"):
        (folder / name).mkdir()
        os.symlink("..", folder / name / "up")


def _write_down() -> None:
    kinds: dict[str, tuple[Callable[[Path], object], Outcome]] = {
        "a socket": (_socket, Outcome.ERROR),
        "a device": (_device, Outcome.ERROR),
        "a link to nothing": (_link("nowhere.png"), Outcome.ERROR),
        "a link to itself": (_link("a.png"), Outcome.ERROR),
        "H5 a link to a name of 300 letters": (_link("x" * 300), Outcome.ERROR),
        "H5 a link to a path of 4,000 letters": (_link("y/" * 2000), Outcome.ERROR),
        "two links in a ring": (_rings, Outcome.ERROR),
        "60 links in a row": (_chain, Outcome.EITHER),
        "folders that lead up": (_folder_ring, Outcome.DONE),
        "a link to the null device": (_link("/dev/null"), Outcome.ERROR),
        "a link to endless noise": (_link("/dev/urandom"), Outcome.ERROR),
        "a link to a full device": (_link("/dev/full"), Outcome.ERROR),
        "a link to its own standard input": (_link("/dev/stdin"), Outcome.ERROR),
        "a link to its own memory": (_link("/proc/self/mem"), Outcome.ERROR),
        "a link to the kernel's messages": (_link("/proc/kmsg"), Outcome.ERROR),
        "a link to its environment": (_link("/proc/self/environ"), Outcome.ERROR),
        "a link to its page map": (_link("/proc/self/pagemap"), Outcome.ERROR),
        "a link to the passwords": (_link("/etc/passwd"), Outcome.ERROR),
        "a link to the processes": (_link("/proc/self/task", ""), Outcome.ANY),
        "a picture that nobody may read": (_unreadable("a.png"), Outcome.ERROR),
        "Low DICOM without a suffix that nobody may read": (_unreadable("IM0001"), Outcome.ANY),
        "a folder that nobody may enter": (_locked(0), Outcome.ERROR),
        "H5 a folder that may be listed and not entered": (_locked(0o444), Outcome.ERROR),
        "a folder that may be entered and not listed": (_locked(0o111), Outcome.ERROR),
        "a terabyte of nothing called PNG": (_sparse("a.png"), Outcome.ERROR),
        "a terabyte of nothing called NIfTI": (_sparse("a.nii"), Outcome.ERROR),
        "a terabyte of nothing called DICOM": (_sparse("a.dcm"), Outcome.ERROR),
        "an empty folder": (lambda folder: (folder / "none").mkdir(), Outcome.NOTHING),
    }
    for name, (make, outcome) in kinds.items():
        add(FileCase(GROUP, name, make, outcome))
    for suffix in SUFFIXES:
        add(FileCase(GROUP, f"a pipe called {suffix}", lambda folder, suffix=suffix: os.mkfifo(folder / f"a{suffix}")))  # type: ignore[misc]
        add(FileCase(GROUP, f"endless zeros called {suffix}", _link("/dev/zero", suffix)))


_write_down()
