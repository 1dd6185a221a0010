"""The weights registry: every weight file by name, where it is searched for, and the sha256 it must have.

Some files are embedded in the package or its bundles; their sha256 is in ``assets/registry.json``, which
:func:`register` writes. SAM's own files are public downloads, listed below. Only :func:`get` uses the network.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pydantic import PositiveInt, RootModel

from amsam_med import files
from amsam_med.data.download import Progress, download
from amsam_med.domains import DOMAINS
from amsam_med.errors import DataError, WeightsError
from amsam_med.folders import user_folder
from amsam_med.schema import Name, Record, Sha256, read_record

FOLDER_VARIABLE = "AMSAM_WEIGHTS"
"""Environment variable that names a folder of weight files."""

_PACKAGE = Path(__file__).resolve().parent
_RESEARCH = "research and education only (learned from CC BY-NC and research-use images)"
_YOLO = f"AGPL-3.0 (Ultralytics YOLOv8n); {_RESEARCH}"


@dataclass(frozen=True)
class Weights:
    """One weight file.

    Attributes:
        name: What users call it.
        file: The file's name; with its folder (``assets/...`` or ``bundles/...``) where it is embedded.
        what: One line on what it holds.
        licence: The terms under which it may be used.
        sha256: In hex; None as long as an embedded file has not been registered.
        bytes: Length of the file; None as long as an embedded file has not been registered.
        url: Address of a public file; None for an embedded one.
        md5_prefix: The hex in the publisher's file name. It starts the file's MD5 and not its sha256, so loaders that
            compare such a prefix with a sha256 (``torch.hub``'s ``check_hash``) refuse the right file.
    """

    name: str
    file: str
    what: str
    licence: str
    sha256: str | None = None
    bytes: int | None = None
    url: str | None = None
    md5_prefix: str | None = None

    @property
    def is_embedded(self) -> bool:
        """Whether the file comes with the package."""
        return self.url is None

    @property
    def loose_file(self) -> str:
        """The file's name in a local folder or the cache, where the files of all models lie side by side."""
        return f"{self.name}{Path(self.file).suffix}" if self.is_embedded else self.file


class _Registered(Record):
    bytes: PositiveInt
    sha256: Sha256


class _Registry(RootModel[dict[Name, _Registered]]):
    """What ``assets/registry.json`` holds."""


class State(StrEnum):
    """What a look at a weight file found."""

    OK = "ok"
    MISSING = "missing"
    DAMAGED = "damaged"
    UNREGISTERED = "unregistered"


class Finding(NamedTuple):
    """Where a weight file lies (None: nowhere) and in which state."""

    weights: Weights
    path: Path | None
    state: State


def _sam(size: str, md5_prefix: str, sha256: str, length: int) -> Weights:
    file = f"sam_vit_{size}_{md5_prefix}.pth"
    url = f"https://dl.fbaipublicfiles.com/segment_anything/{file}"
    return Weights(
        f"vit_{size}", file, f"Segment Anything, ViT-{size.upper()}", "Apache-2.0", sha256, length, url, md5_prefix
    )


_WEIGHTS = (
    Weights("tiny", "assets/tiny.safetensors", "compact promptable base network", _RESEARCH),
    Weights("tiny-general", "assets/tiny-general.safetensors", "the same, without dermoscopy: for studies", _RESEARCH),
    *(
        Weights(one.bundle, f"bundles/{one.bundle}/models/model.pt", f"{one.things} in {one.where}", _RESEARCH)
        for one in DOMAINS
    ),
    *(
        Weights(one.detector, f"bundles/{one.bundle}/models/detector.safetensors", f"boxes of {one.things}", _YOLO)
        for one in DOMAINS
    ),
    # The full MD5 of vit_b, for comparison with its file name: 01ec64d29a2fca3f0661936605ae66f8.
    _sam("b", "01ec64", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912", 375_042_383),
    _sam("l", "0b3195", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622", 1_249_524_607),
    _sam("h", "4b8939", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e", 2_564_550_879),
)


def known() -> dict[str, Weights]:
    """All weights by name, the embedded ones with the sha256 and length on record."""
    record = _read_record()
    return {
        weights.name: replace(weights, **found.model_dump()) if (found := record.get(weights.name)) else weights
        for weights in _WEIGHTS
    }


def find(name_or_path: str | Path, folder: Path | None = None) -> Path:
    """The verified file of a name, or the file of a path.

    A name is looked for in the package, in ``folder``, in the folder that ``AMSAM_WEIGHTS`` names, and in the user's
    cache; the first file found must have the right sha256. A caller's own file is taken as it is.

    Args:
        name_or_path: A name of :func:`known`, or the path of an existing file (``./tiny`` where a name would match).
        folder: A folder of weight files.

    Raises:
        WeightsError: The file is missing, damaged or unregistered; the text says how to get it.
    """
    weights = known().get(str(name_or_path))
    if weights is None:
        return _own_file(Path(name_or_path))
    path, state = look(weights, folder)[1:]
    if path is None or state is not State.OK:
        raise WeightsError(_explain(weights, path, state, folder))
    return path


def verified(file: str | Path) -> Path:
    """A weight file that a bundle names, after a look at its sha256 if it is an embedded one.

    Args:
        file: Any file. One that is not embedded is taken as it is.

    Raises:
        WeightsError: An embedded file is damaged or was exchanged.
    """
    path = Path(file)
    for entry in known().values():
        if entry.is_embedded and path.resolve() == _embedded_place(entry).resolve():
            return find(entry.name)
    return path


def locate(weights: Weights, folder: Path | None = None) -> Path | None:
    """The first file there is for ``weights``, not verified; None where there is none."""
    return next((place for place in _places(weights, folder) if place.is_file()), None)


def look(weights: Weights, folder: Path | None = None) -> Finding:
    """Find and verify one weight file; never raises for what it finds."""
    path = locate(weights, folder)
    return Finding(weights, path, State.MISSING if path is None else _state(weights, path))


def verify(names: Sequence[str] = (), folder: Path | None = None) -> list[Finding]:
    """Look at the weights of these names, or at all of them.

    Raises:
        WeightsError: A name is unknown.
    """
    return [look(_named(name), folder) for name in names or known()]


def get(
    name: str,
    folder: Path | None = None,
    base_url: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download weights unless they are there already.

    Args:
        name: A name of :func:`known`.
        folder: Where to put the file; the folder ``AMSAM_WEIGHTS`` names, else the user's cache, by default.
        base_url: Address of a mirror's folder that holds the file; the publisher's by default.
        progress: Called after every mebibyte.

    Raises:
        WeightsError: The name is unknown, or the weights are embedded, not there, and no mirror is given.
        AmsamError: The download fails or is not the expected file.
    """
    weights = _named(name)
    if weights.is_embedded and (base_url is None or weights.sha256 is None):
        return find(name, folder)
    target = (folder or _named_folder() or cache_folder()) / weights.loose_file
    if target.is_file() and _state(weights, target) is State.OK:
        return target
    url = weights.url if base_url is None else f"{base_url.rstrip('/')}/{weights.loose_file}"
    assert url is not None
    return download(url, target, weights.bytes, weights.sha256, progress)


def register(name: str, file: Path) -> Path:
    """Put a new embedded weight file in its place and record its sha256 (for pipelines, in a checkout).

    Args:
        name: An embedded weights' name.
        file: The new file; it may already lie in its place.

    Returns:
        The file's place in the package or its bundles.

    Raises:
        WeightsError: The name is unknown or not an embedded one, or there is no such file.
    """
    weights = _named(name)
    if not weights.is_embedded:
        raise WeightsError(f"{name} is a public download with a fixed sha256; only embedded weights are registered")
    if not file.is_file():
        raise WeightsError(f"cannot register {name}: there is no file {file}")
    target = _embedded_place(weights)
    if not (target.exists() and target.samefile(file)):
        with files.atomic_path(target) as temporary:
            shutil.copyfile(file, temporary)
    record = _read_record() | {name: _Registered(bytes=target.stat().st_size, sha256=sha256(target))}
    plain = {name: entry.model_dump() for name, entry in record.items()}
    files.write_json(_record_file(), plain, sort_keys=True)
    return target


def sha256(path: Path) -> str:
    """The sha256 of a file in hex, read once a process as long as length and time stay the same."""
    status = path.stat()
    return _sha256_once(path.resolve(), status.st_size, status.st_mtime_ns)


def cache_folder() -> Path:
    """Where downloaded weights are kept for this user.

    Raises:
        ConfigError: The user has no home folder.
    """
    return user_folder("cache") / "weights"


def bundles_folder() -> Path:
    """The folder of the bundles: inside an installed package, beside the package in a checkout."""
    installed = _PACKAGE / "bundles"
    return installed if installed.is_dir() else _PACKAGE.parent / "bundles"


def locate_bundle(name_or_path: str | Path) -> Path:
    """The folder of a bundle.

    Args:
        name_or_path: The name of a shipped bundle, or the path of any bundle's folder.

    Raises:
        DataError: There is no bundle of that name and none in that folder.
    """
    for root in (bundles_folder() / str(name_or_path), Path(name_or_path)):
        with suppress(OSError, ValueError):  # a name that no file can have
            if (root / "configs" / "metadata.json").is_file():
                return root.resolve()
    raise DataError(
        f"{str(name_or_path)[:200]} is neither a shipped bundle ({', '.join(shipped_bundles())}) nor a folder with "
        "configs/metadata.json; give one of the names, or the path of a MONAI bundle"
    )


def shipped_bundles() -> list[str]:
    """Names of the bundles that come with the package."""
    return sorted(metadata.parent.parent.name for metadata in bundles_folder().glob("*/configs/metadata.json"))


def _named(name: str) -> Weights:
    weights = known().get(name)
    if weights is None:
        raise WeightsError(f"there are no weights named {name!r}; the names are {', '.join(known())}")
    return weights


def _own_file(path: Path) -> Path:
    if not path.is_file():
        raise WeightsError(f"{path} is neither a file nor one of the weights {', '.join(known())}")
    return path


def _places(weights: Weights, folder: Path | None) -> list[Path]:
    embedded = [_embedded_place(weights)] if weights.is_embedded else []
    folders = [place for place in (folder, _named_folder(), cache_folder()) if place is not None]
    return embedded + [place / weights.loose_file for place in folders]


def _embedded_place(weights: Weights) -> Path:
    top, rest = weights.file.split("/", maxsplit=1)
    return (bundles_folder() if top == "bundles" else _PACKAGE / top) / rest


def _named_folder() -> Path | None:
    name = os.environ.get(FOLDER_VARIABLE)
    return Path(name) if name else None


def _state(weights: Weights, path: Path) -> State:
    if weights.sha256 is None:
        return State.UNREGISTERED
    is_right = path.stat().st_size == weights.bytes and sha256(path) == weights.sha256
    return State.OK if is_right else State.DAMAGED


@cache
def _sha256_once(path: Path, size: int, modified_ns: int) -> str:  # size and time are there to key the cache
    return files.sha256(path)


def _explain(weights: Weights, path: Path | None, state: State, folder: Path | None) -> str:
    if path is None:
        looked_in = ", ".join(str(place.parent) for place in _places(weights, folder))
        return f"weights {weights.name} ({weights.what}) not found in {looked_in}; {_remedy(weights)}"
    if state is State.UNREGISTERED:
        return (
            f"{path} has no sha256 on record; amsam_med.weights.register({weights.name!r}, file) records a trusted file"
        )
    return (
        f"{path} is damaged or other weights than {weights.name}: {path.stat().st_size} bytes, sha256 {sha256(path)}; "
        f"expected {weights.bytes} bytes, sha256 {weights.sha256}. Delete it, then {_remedy(weights)}"
    )


def _remedy(weights: Weights) -> str:
    place = f"a folder, named with --weights-dir or {FOLDER_VARIABLE}"
    if weights.is_embedded:
        return f"reinstall amsam-med, or put the file as {weights.loose_file} into {place}"
    return f"run 'amsam weights get {weights.name}', or put the file from {weights.url} into {place}"


def _record_file() -> Path:
    return _PACKAGE / "assets" / "registry.json"


def _read_record() -> dict[str, _Registered]:
    file = _record_file()
    if not file.is_file():
        return {}
    return read_record(_Registry, file, "reinstall amsam-med", WeightsError).root
