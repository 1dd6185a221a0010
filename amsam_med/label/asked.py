"""What a client may ask for, entry by entry; the rest of a request is left out before anything sees it.

MONAI Label puts whatever a client sends into one dictionary, from which it also takes what is its own: an image's path,
a folder to import modules from, environment variables of a training. Viewers send entries that mean nothing here, so
unknown ones are dropped rather than refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints

from amsam_med.errors import DataError
from amsam_med.schema import Record, checked

Method = Literal["infer", "batch_infer", "train", "scoring", "activelearning"]

_Word = Annotated[str, StringConstraints(max_length=200)]
_Switch = Annotated[bool, Field(strict=False)]  # viewers also send 1 and "true"


class _Asked(Record):
    model_config = ConfigDict(extra="ignore")


class _Infer(_Asked):
    """A mask of one image. Prompts are read number by number where they are used."""

    model: _Word
    image: Annotated[str, StringConstraints(max_length=4096)] = ""
    output: _Word | None = None
    result_extension: _Word | list[_Word] | None = None
    save_label: _Switch = False
    label_tag: _Word = "original"
    roi: Any = None
    foreground: Any = None
    background: Any = None
    location: Any = None
    size: Any = None


class _BatchInfer(_Infer):
    """Masks of many images, which are kept as drafts."""

    images: Literal["all", "labeled", "unlabeled"] | Annotated[list[_Word], Field(max_length=400)] = "all"
    max_batch_size: Annotated[int, Field(ge=0)] = 0


class _Train(_Asked):
    """A training on all final labels."""

    model: _Word


class _Scoring(_Asked):
    """Scores of all images."""

    method: _Word
    y: _Word = "final"
    y_pred: _Word = "original"


class _ActiveLearning(_Asked):
    """The next image."""

    strategy: _Word
    label_tag: _Word | None = None
    client_id: _Word | None = None


_RECORDS: Mapping[Method, type[_Asked]] = {
    "infer": _Infer,
    "batch_infer": _BatchInfer,
    "train": _Train,
    "scoring": _Scoring,
    "activelearning": _ActiveLearning,
}


def asked(method: Method, request: object) -> dict[str, Any]:
    """What a request asks for, as plain values.

    Args:
        method: What is to be done.
        request: What MONAI Label made of it.

    Raises:
        DataError: An entry is missing, or of another type than it must be.
    """
    if not isinstance(request, Mapping):
        raise DataError("the request is not what is expected there; send a JSON object")
    return checked(_RECORDS[method], dict(request), "the request", "send it again").model_dump(exclude_unset=True)
