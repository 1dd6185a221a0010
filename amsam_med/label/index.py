"""MONAI Label's list of images and labels, ``datastore_v2.json``: what it may say, and what may be noted in it.

The list lies in the folder of studies and may have come with it from others. MONAI Label makes paths of its names, and
hands what it notes to clients and to its own strategies; so both are checked, when they are read and when they come in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints

from amsam_med.errors import ConfigError, DataError
from amsam_med.schema import RECORD_LIMIT, Record, checked, read_record

INDEX = "datastore_v2.json"
"""MONAI Label's list of images and labels, in the folder of studies."""
LONGEST_NAME = 180
"""Bytes of an image's name: most file systems take 255, and endings and a temporary name come on top."""
NOTE_LIMIT = 1 << 16
"""Bytes of what is noted of one image or label."""

_DEEPEST = 20  # lists and mappings within each other
_CONTROL = r"\x00-\x1f\x7f"
_Name = Annotated[str, StringConstraints(pattern=rf"^[^/\\{_CONTROL}]{{1,255}}$")]
_Tag = Annotated[str, StringConstraints(pattern=rf"^[^./\\{_CONTROL}][^/\\{_CONTROL}]{{0,99}}$")]
_TAG = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class NextSample(Record):
    """When a strategy chose an image, and for whom."""

    ts: Annotated[int, Field(ge=0, le=1 << 40)]
    client_id: Annotated[str, StringConstraints(max_length=200)] | None = None


def _noted(value: dict[str, Any]) -> dict[str, Any]:
    """A note of plain values: text, finite numbers, lists and mappings, not too deep and not too many.

    Raises:
        ValueError: It is another thing.
    """
    if not isinstance(value, dict) or _depth(value) > _DEEPEST:
        raise ValueError(f"a note must be a mapping of plain values, at most {_DEEPEST} deep")
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError):
        raise ValueError("a note holds what is no text and no finite number") from None
    if len(text) > NOTE_LIMIT:
        raise ValueError(f"a note has {len(text):,} bytes, at most {NOTE_LIMIT:,} are kept")
    for chosen in value["strategy"].values() if isinstance(value.get("strategy"), dict) else ():
        NextSample.model_validate(chosen)
    if not isinstance(value.get("strategy", {}), dict):
        raise ValueError("the entry 'strategy' is kept for MONAI Label's strategies")
    return value


def _depth(value: object) -> int:
    """How many lists and mappings are within each other; counting ends where there are too many."""
    level, deep = [value], 0
    while level and deep <= _DEEPEST:
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        deep += 1
    return deep


class _File(Record):
    ext: Annotated[str, StringConstraints(pattern=r"^(\.[A-Za-z0-9]{1,10}){0,3}$")] = ""
    info: Annotated[dict[str, Any], AfterValidator(_noted), Field(default_factory=dict)]


class _Image(Record):
    image: _File
    labels: Annotated[dict[_Tag, _File], Field(default_factory=dict)]


class Index(Record):
    """The list: images by their names, and the labels of each by their tags.

    Attributes:
        name: Of the data set.
        description: Of the data set.
        images_dir: The folder of studies itself.
        labels_dir: Where labels are, a folder for each tag.
        objects: The images. A name with its ending is a file of that folder: no path, no ``..``.
    """

    name: Annotated[str, StringConstraints(max_length=1000)]
    description: Annotated[str, StringConstraints(max_length=10_000)]
    images_dir: Literal["."]
    labels_dir: Literal["labels"]
    objects: Annotated[dict[_Name, _Image], Field(default_factory=dict)]


def read_index(path: Path) -> Index:
    """The list in a folder of studies.

    Raises:
        ConfigError: It is damaged, or says what it may not.
    """
    try:
        if path.is_symlink():
            raise ConfigError(f"{path.name}: a link, which may lead anywhere; delete it")
        return read_record(Index, path, "delete it", ConfigError)
    except (ConfigError, RecursionError) as error:
        reason = str(error).removeprefix(f"{path.name}: ").removesuffix("; delete it")
        raise ConfigError(
            f"{INDEX} in {path.parent} is damaged ({reason}); delete it. Images and labels are found again by their "
            "names"
        ) from None


def checked_note(note: Mapping[str, Any], name: str, index: Path) -> dict[str, Any]:
    """What is to be noted of an image or a label.

    Args:
        note: The note.
        name: Of the image, for the message.
        index: The list that it will be kept in, for its length.

    Raises:
        DataError: It holds other things than plain values, or there is too much of it.
    """
    if index.is_file() and index.stat().st_size > RECORD_LIMIT // 2:
        raise DataError(f"{INDEX} has {index.stat().st_size:,} bytes; no more notes are kept in it")
    return checked(_File, {"info": dict(note)}, f"the note of {name[:60]!r}", "send less, and plain values").info


def plain_name(name: str) -> str:
    """The name of a new image.

    Raises:
        DataError: It cannot be the name of a file, or is too long for one.
    """
    is_plain = re.fullmatch(rf"[^./\\{_CONTROL}][^/\\{_CONTROL}]*", name) and name.isprintable()
    if not is_plain or len(name.encode(errors="replace")) > LONGEST_NAME:
        raise DataError(
            f"{name[:60]!r} cannot be the name of an image; give letters, digits, dots and dashes, at most "
            f"{LONGEST_NAME}"
        )
    return name


def plain_tag(tag: object) -> str:
    """The name of a kind of labels.

    Raises:
        DataError: It is no plain word.
    """
    if not isinstance(tag, str) or not _TAG.fullmatch(tag):
        raise DataError(f"{str(tag)[:60]!r} cannot be a tag of labels; give 'final', 'original', or one word")
    return tag
