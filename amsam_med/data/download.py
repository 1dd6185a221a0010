"""Public archives onto disk: resumable, checked, unpacked without trust in their file names.

The publishers of these sets give no hashes, so what is checked is the size the server announces, the archive's own
checksums, and the number of images after unpacking.
"""

from __future__ import annotations

import http
import http.client
import os
import re
import shutil
import stat
import struct
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from http.client import HTTPMessage
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, TypeAlias

from amsam_med import files
from amsam_med.errors import DataError

_ATTEMPTS = 4
_TIMEOUT_S = 60
_WAIT_S = 2.0  # before the next attempt, longer each time
_CHUNK_BYTES = 1 << 20
_FREE_BYTES_LEFT = 1 << 28  # do not fill a disk to the brim
_LARGEST_BYTES = 1 << 35  # of a file whose size nobody has published; the largest archive of ISIC 2018 has 11 GB
_MOST_ENTRIES = 100_000  # of an archive; the largest of these sets has 5,300
_LARGEST_RATIO, _SPARED_BYTES = 100, 1 << 28  # of unpacked to packed bytes: pictures are packed already
_STRONG_ETAG = re.compile(r'"[!#-~]{1,200}"')

Folder: TypeAlias = str | PathLike[str]


class Step(NamedTuple):
    """Progress of a job: ``done`` of ``total`` bytes (None if the server does not say) of ``name``."""

    name: str
    done: int
    total: int | None


Progress: TypeAlias = Callable[[Step], None]


def download(
    url: str,
    path: Folder,
    size: int | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download ``url`` to ``path``, continuing where an earlier call was interrupted.

    Unfinished bytes are kept in ``<path>.part``. If the server does not support ranges, the download starts again. The
    file gets its own name when it is complete and has passed the checks; an existing file that passes is not fetched.

    Args:
        url: An http or https address.
        path: The file to make; missing folders are made, too.
        size: Its published size in bytes, if there is one.
        sha256: Its published hash, if there is one.
        progress: Called after every mebibyte.

    Raises:
        DataError: The server cannot be reached, refuses, sends us elsewhere than to http or from https to http, or
            sends more than it should; the disk is too small; or the file is not the published one.
    """
    path = Path(path)
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{url}: not an http or https address. Check the address of the mirror")
    if path.is_file() and (size is None or path.stat().st_size == size) and sha256 in (None, _sha256(path, sha256)):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    _fetch(url, part, size, progress)
    _check(part, path.name, size, sha256)
    os.replace(part, path)
    _validator_file(part).unlink(missing_ok=True)
    return path


def unpack(archive: Path, root: Folder, progress: Progress | None = None) -> None:
    """Unpack a ZIP below ``root``, after a check of all its names and of the free space.

    Raises:
        DataError: The archive is damaged, encrypted, too large for the disk, or unpacks to far more than pictures do;
            or it has a name that leads out of ``root``, or a link.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    with opened_archive(archive) as content:
        members = content.infolist()
        for member in members:
            _refuse_unsafe(archive.name, member)
        total, done = sum(member.file_size for member in members), 0
        _refuse_bomb(archive, len(members), total)
        _check_space(archive.name, root, total)
        for member in members:
            _extract(content, member, root, archive.name)
            done += member.file_size
            if progress:
                progress(Step(f"unpack {archive.name}", done, total))


def fetch_and_unpack(url: str, root: Path, progress: Progress | None) -> None:
    """:func:`download` an archive into ``root`` and :func:`unpack` it there; the archive goes."""
    archive = download(url, root / url.rsplit("/", maxsplit=1)[-1], progress=progress)
    unpack(archive, root, progress)
    archive.unlink()


def _fetch(url: str, part: Path, size: int | None, progress: Progress | None) -> None:
    """Bring ``part`` to its full length, in several attempts if the line breaks."""
    name = part.name.removesuffix(".part")
    failures, reason, furthest = 0, "", _length(part)
    while failures < _ATTEMPTS:
        try:
            if _append(url, part, name, size, progress):
                return
            reason = "the connection broke"
        except DataError:
            raise
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise DataError(f"{url}: the server answers {error.code} {error.reason}. Check the address") from error
            if error.code < 500:  # the part is longer than the file: it began with another one
                part.unlink(missing_ok=True)
            reason = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        except ValueError as error:  # no such address
            raise DataError(f"{url}: not an address ({error}). Check it") from error
        # Progress resets the count of failures; a download that starts again and gets no further counts as one.
        failures, furthest = (0, _length(part)) if _length(part) > furthest else (failures + 1, furthest)
        time.sleep(failures * _WAIT_S)
    raise DataError(f"{url}: broke off after {_length(part):,} bytes ({reason}). Run it again; it goes on from there")


def _append(url: str, part: Path, name: str, size: int | None, progress: Progress | None) -> bool:
    """One request; True when ``part`` has the length that the server announced."""
    start = _length(part)
    if start and start == size:
        return True
    most = _LARGEST_BYTES if size is None else size
    with _OPENER.open(_request(url, part, start), timeout=_TIMEOUT_S) as response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        length = str(response.headers.get("Content-Length") or "")
        total = start + int(length) if re.fullmatch("[0-9]{1,15}", length) else size
        _check_space(name, part.parent, (total or 0) - start)
        etag = str(response.headers.get("ETag") or "")
        _validator_file(part).write_text(etag if _STRONG_ETAG.fullmatch(etag) else "", encoding="ascii")
        with part.open("ab" if start else "wb") as file:
            while chunk := response.read(_CHUNK_BYTES):
                _check_space(name, part.parent, len(chunk))  # a server that tells no length, or a wrong one
                file.write(chunk)
                if file.tell() > most:
                    break
                if progress:
                    progress(Step(name, file.tell(), total))
    if _length(part) > most:
        part.unlink()
        limit = f"got more than {most:,}, expected {most:,} bytes"
        raise DataError(f"{name}: not the published file, {limit} at most. Try again, or another mirror")
    return total is None or _length(part) >= total


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects that are followed: to http or https, and from https only to https."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """The request of the new address.

        Raises:
            DataError: It is of another kind, or less safe than the one that was asked for.
        """
        allowed = ("https://",) if req.full_url.startswith("https://") else ("http://", "https://")
        if not newurl.lower().startswith(allowed):
            where = f"the server sends us to {newurl[:200]}, which is not safe"
            raise DataError(f"{req.full_url}: {where}. Try another mirror")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_Redirects)


def _request(url: str, part: Path, start: int) -> urllib.request.Request:
    """Ask for the bytes from ``start``, provided the server still has the file that ``part`` began with."""
    headers = {"User-Agent": "amsam-med"}
    kept = _validator_file(part)
    validator = kept.read_text("ascii", "replace") if start and kept.exists() else ""
    if start:
        headers["Range"] = f"bytes={start}-"
    if _STRONG_ETAG.fullmatch(validator):  # a weak tag is no promise of equal bytes
        headers["If-Range"] = validator
    return urllib.request.Request(url, headers=headers)  # noqa: S310  # the scheme was checked, and redirects are


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _validator_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _check(part: Path, name: str, size: int | None, sha256: str | None) -> None:
    got_size = part.stat().st_size
    got_hash = _sha256(part, sha256)
    if (size is not None and got_size != size) or got_hash != sha256:
        part.unlink()
        got, expected = (got_hash, sha256) if size in (None, got_size) else (f"{got_size:,}", f"{size:,} bytes")
        raise DataError(f"{name}: not the published file, got {got}, expected {expected}. Try again, or another mirror")


def _sha256(path: Path, expected: str | None) -> str | None:
    """The file's hash, or None where none is expected."""
    return None if expected is None else files.sha256(path)


def _check_space(name: str, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free - _FREE_BYTES_LEFT
    if needed > free:
        raise DataError(
            f"{name}: needs {needed / 1e9:.1f} GB, the disk has {max(free, 0) / 1e9:.1f} GB to spare. "
            "Make room, or choose a folder on another disk"
        )


def opened_archive(archive: Path) -> zipfile.ZipFile:
    """A ZIP to read.

    Raises:
        DataError: It is damaged, or no ZIP.
    """
    try:
        return zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise DataError(
            f"{archive.name}: not a ZIP archive or damaged ({error}). Delete it and fetch it again"
        ) from error


def _refuse_unsafe(archive_name: str, member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or ":" in member.filename or is_link:
        raise DataError(
            f"{archive_name}: the entry {member.filename!r} leads out of the folder or is a link. Nothing was "
            "unpacked; fetch the archive from its publisher"
        )


def _refuse_bomb(archive: Path, count: int, total: int) -> None:
    packed = archive.stat().st_size
    if count > _MOST_ENTRIES or total > _SPARED_BYTES + _LARGEST_RATIO * packed:
        raise DataError(
            f"{archive.name}: {count:,} entries of {total / 1e9:.1f} GB in an archive of {packed / 1e9:.3f} GB, which "
            "no set of pictures has. Nothing was unpacked; fetch the archive from its publisher"
        )


def _extract(content: zipfile.ZipFile, member: zipfile.ZipInfo, root: Path, archive_name: str) -> None:
    target = root / member.filename.replace("\\", "/")
    try:
        if member.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            return
        with content.open(member) as packed, files.atomic_path(target) as unfinished, unfinished.open("wb") as file:
            shutil.copyfileobj(packed, file, _CHUNK_BYTES)
            if file.tell() != member.file_size:
                raise zipfile.BadZipFile(f"{file.tell():,} bytes instead of {member.file_size:,}")
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, zlib.error) as error:
        raise DataError(
            f"{archive_name}: {member.filename} cannot be unpacked ({error}). Delete it and fetch it again"
        ) from error
