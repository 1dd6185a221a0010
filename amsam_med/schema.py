"""Validation of files, headers and requests: exact keys, types and ranges, checked before they are used.

Code that reads such data defines a subclass of :class:`Record` and parses it with :func:`checked` or
:func:`read_record`. Invalid data is refused as a whole, in one sentence that names the entry.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from amsam_med.errors import AmsamError, DataError
from amsam_med.opening import open_regular

RECORD_LIMIT = 64 * 2**20
"""The largest file that is read as a record, in bytes."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A digest in hex."""
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""A plain name, as of bundles, bases and classes: it cannot be a path or a configuration expression."""

_LONGEST_VALUE, _NAMED_FAULTS = 60, 3


class Record(BaseModel):
    """A record of typed entries: no conversion between types, no unknown keys, no infinity, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=BaseModel)


def checked(
    kind: type[Kind], given: str | bytes | dict[str, Any], name: str, remedy: str, error: type[AmsamError] = DataError
) -> Kind:
    """Parse a record.

    Args:
        kind: What is expected.
        given: JSON, or entries that are Python values already.
        name: Of the file or the part of it, for the message.
        remedy: What the user can do, for the message.
        error: The kind of error to raise.

    Raises:
        AmsamError: An entry is missing, unknown, of another type or out of its range, or the text is no JSON.
    """
    try:
        return kind.model_validate_json(given) if isinstance(given, str | bytes) else kind.model_validate(given)
    except ValidationError as fault:
        raise error(f"{name}: {_described(fault)}; {remedy}") from None


def read_record(
    kind: type[Kind], path: Path, remedy: str, error: type[AmsamError] = DataError, limit: int = RECORD_LIMIT
) -> Kind:
    """The record in a JSON file.

    Args:
        kind: What is expected.
        path: The file; it must be a regular one.
        remedy: As for :func:`checked`.
        error: As for :func:`checked`.
        limit: The most bytes that are read.

    Raises:
        AmsamError: As for :func:`checked`; or the file cannot be read, or is larger.
    """
    try:
        with open_regular(path) as file:
            content = file.read(limit + 1)
    except DataError:
        raise error(f"{path.name}: not a regular file; {remedy}") from None
    except OSError as fault:
        raise error(f"{path.name}: cannot be read ({fault.strerror or fault}); {remedy}") from None
    if len(content) > limit:
        raise error(f"{path.name}: more than {limit:,} bytes; {remedy}")
    return checked(kind, content, path.name, remedy, error)


def _described(fault: ValidationError) -> str:
    """The first faults on one line: where, what it must be, what it is."""
    faults = fault.errors(include_url=False)
    return ", ".join(_one(one) for one in faults[:_NAMED_FAULTS]) + (", ..." if len(faults) > _NAMED_FAULTS else "")


def _one(fault: Any) -> str:
    where = _short(".".join(map(str, fault["loc"])))
    got = "" if fault["type"] in ("missing", "json_invalid") else f" (got {_short(_seen(fault['input']))})"
    message = str(fault["msg"])
    text = f"{message[0].lower()}{message[1:]}{got}"
    return f"entry {where!r}: {text}" if where else text


def _seen(value: object) -> str:
    try:
        return ascii(value)
    except RecursionError:  # lists within lists, a thousand deep
        return f"{type(value).__name__}, nested too deep"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
