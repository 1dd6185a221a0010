"""Zip archives: slips, links, secrets, bombs, nests, and directories that lie."""

from __future__ import annotations

import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.attack.cases import FileCase, Outcome, Rows, add
from tests.attack.files.dicom import dataset, written
from tests.attack.files.pictures import CUTS, Content, coded, cut
from tests.attack.files.pictures import file as picture_file

GROUP = "archives"

_PICTURE = coded("PNG")


def zipped(members: Mapping[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive of these members."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", how) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def with_name(content: bytes, old: str, new: bytes) -> bytes:
    """The archive with a member called otherwise, in as many bytes, which :mod:`zipfile` would not write."""
    assert len(old) == len(new)
    return content.replace(old.encode(), new)


def _file(name: str, content: Content, outcome: Outcome = Outcome.ERROR, file_name: str = "a.zip", **more: Any) -> None:
    picture_file(name, content, file_name, outcome, group=GROUP, **more)


def _paths() -> None:
    for name, member in {
        "up": "../../PROOF.png",
        "up in its middle": "a/../../../PROOF.png",
        "to the root": "/tmp/PROOF.png",
        "up as Windows has it": "..\\..\\PROOF.png",
        "to a drive": "C:PROOF.png",
        "to a share": "\\\\server\\PROOF.png",
    }.items():
        _file(f"a member that leads {name}", zipped({member: _PICTURE}), says="leads out")
    for name, member, outcome in (
        ("NUL in its name", b"PROOF\0.png", Outcome.ANY),
        ("a name of no UTF-8", b"caf\xe9\xff\xfe.png", Outcome.EITHER),
        ("a line feed in its name", b"new\nline_.png", Outcome.EITHER),
        ("a formula for its name", b"=1+cmd|A0.png", Outcome.EITHER),
        ("HTML for its name", b"<img src=x>.png", Outcome.EITHER),
    ):
        made = with_name(zipped({"x" * len(member): _PICTURE}), "x" * len(member), member)
        _file(f"a member with {name}", made, outcome)
    _file("a member 1,000 folders deep", zipped({"d/" * 1000 + "a.png": _PICTURE}), Outcome.EITHER)
    _file("a member whose name has 60,000 bytes", zipped({"n" * 60_000 + ".png": _PICTURE}), Outcome.EITHER)
    _file("two members of one name", _twice(), Outcome.EITHER)
    _file("members that differ in case alone", zipped({"a.png": _PICTURE, "A.PNG": _PICTURE}), Outcome.DONE)
    _file("a hidden member, and one of a Mac's own", zipped({".a.png": _PICTURE, "__MACOSX/._a.png": b""}), Outcome.ANY)
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    _file("a member that is a link", stream.getvalue())

    def is_hidden(rows: Rows) -> None:
        assert not [row for row in rows if "Quimby" in "".join(row.values())], "the path still tells whose it is"

    told = {"Quimby_Jane.dcm": written(dataset(PatientName="Quimby^Jane"))}
    _file("H3 a member called by its patient", zipped(told), Outcome.DONE, look=is_hidden)


def _twice() -> bytes:
    return with_name(zipped({"a.png": _PICTURE, "b.png": coded("PNG")}), "b.png", b"a.png")


def _packing() -> None:
    plain = zipped({"a.png": _PICTURE})
    secret = bytearray(plain)
    for at in (6, plain.index(b"PK\1\2") + 8):
        secret[at] |= 1
    _file("an encrypted member", bytes(secret), says="encrypted")
    _file("an archive in it", zipped({"b.zip": plain}), Outcome.ANY)
    _file("an archive in it, called a picture", zipped({"b.png": plain}))
    _file("bzip2", zipped({"a.png": _PICTURE}, zipfile.ZIP_BZIP2), Outcome.DONE)
    _file("LZMA", zipped({"a.png": _PICTURE}, zipfile.ZIP_LZMA), Outcome.DONE)
    unknown = bytearray(plain)
    for at in (8, plain.index(b"PK\1\2") + 10):
        unknown[at : at + 2] = struct.pack("<H", 97)
    _file("a packing that nobody knows", bytes(unknown))
    _file("a wrong checksum", plain.replace(struct.pack("<L", zlib.crc32(_PICTURE)), b"\1\2\3\4"))
    damaged = bytearray(zipped({"a.png": _PICTURE}))
    damaged[200:240] = bytes(40)
    _file("damaged within", bytes(damaged))
    for place, share in CUTS.items():
        _file(f"cut {place}", cut(plain, share), Outcome.EITHER if share == -1 else Outcome.ERROR)
    _file("a program before it", b"#!/bin/sh\ntouch PROOF\n" + plain, Outcome.DONE)
    _file("nothing in it", zipped({}), Outcome.ANY)
    _file("folders alone in it", zipped({"a/": b"", "b/c/": b""}), Outcome.ANY)
    _file("words in it", zipped({"a.txt": b"words"}), Outcome.ANY)
    _file("words called archive", b"no archive, but words " * 50)
    _file("nothing called archive", b"")
    _file("a comment of 65,535 bytes", _with_comment(), Outcome.DONE)
    _file("a picture called archive", _PICTURE)
    _file("an archive called picture", plain, file_name="a.png")
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../../PROOF"), io.BytesIO())
    _file("a tar called archive", tar.getvalue())
    add(FileCase(GROUP, "a folder called archive", lambda folder: (folder / "a.zip").mkdir(), Outcome.ANY))


def _with_comment() -> bytes:
    stream = io.BytesIO(zipped({"a.png": _PICTURE}))
    with zipfile.ZipFile(stream, "a") as archive:
        archive.comment = b"=cmd<script>" * 5000
    return stream.getvalue()


def _bombs() -> None:
    size = 50 << 20
    bomb = zipped({"zeros.png": bytes(size)})
    _file("zeros of 50 MB called picture", bomb)
    _file("the same, that promises 4 GB", bomb.replace(struct.pack("<L", size), struct.pack("<L", 0xF0000000)))
    _file("the same, that promises 9 bytes", bomb.replace(struct.pack("<L", size), struct.pack("<L", 9)))
    _file("20,000 empty members", lambda: zipped({f"{n:05}.txt": b"" for n in range(20_000)}), Outcome.ANY)
    entries = bytearray(zipped({"a.png": _PICTURE}))
    end = entries.rindex(b"PK\5\6")
    entries[end + 8 : end + 12] = b"\xff\xff\xff\xff"
    _file("a directory of 65,535 members that are not there", bytes(entries), Outcome.EITHER)
    entries[end + 12 : end + 20] = b"\xff" * 8
    _file("a directory at the end of the world", bytes(entries))
    start = bytearray(zipped({"a.png": _PICTURE}))
    at = start.index(b"PK\1\2") + 42
    start[at : at + 4] = struct.pack("<L", 0xFFFFFF00)
    _file("a member far behind the end", bytes(start))
    _file("200 members of the same bytes", _overlapping(200), Outcome.EITHER)


def _overlapping(count: int) -> bytes:
    """A directory whose entries all lead to one member of 5 MB."""
    plain = zipped({"a0000.png": bytes(5 << 20)})
    start, end = plain.index(b"PK\1\2"), plain.rindex(b"PK\5\6")
    entries = b"".join(plain[start:end].replace(b"a0000", f"a{n:04}".encode()) for n in range(count))
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(entries), start, 0)
    return plain[:start] + entries + tail


def _irregular() -> None:
    def link(target: str) -> Any:
        return lambda folder: os.symlink(target, folder / "a.zip")

    more: dict[str, Any] = {
        "H5 a pipe called archive": lambda folder: os.mkfifo(folder / "a.zip"),
        "H5 the kernel's messages called archive": link("/proc/kmsg"),
        "H6 endless zeros called archive": link("/dev/zero"),
        "a terminal called archive": link("/dev/tty"),
        "a dangling link called archive": link("nowhere.zip"),
        "a link to itself called archive": link("a.zip"),
        "a process' memory called archive": link("/proc/self/mem"),
        "a terabyte of nothing called archive": _sparse,
    }
    for name, make in more.items():
        add(FileCase(GROUP, name, make))


def _sparse(folder: Path) -> None:
    with (folder / "a.zip").open("wb") as file:
        file.truncate(1 << 40)


_paths()
_packing()
_bombs()
_irregular()
