"""The exception tree."""

from __future__ import annotations

import inspect

import pytest

from amsam_med import errors
from amsam_med.errors import AmsamError, ConfigError, DataError, MissingExtraError, TooLittleMemoryError, WeightsError


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (DataError, ValueError),
        (WeightsError, RuntimeError),
        (ConfigError, ValueError),
        (TooLittleMemoryError, MemoryError),
        (MissingExtraError, ImportError),
    ],
)
def test_each_error_is_ours_and_a_builtin_one(error: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(error, AmsamError)
    assert issubclass(error, builtin)


def test_the_tree_in_the_docstring_shows_every_error() -> None:
    classes = [name for name, _ in inspect.getmembers(errors, inspect.isclass)]
    assert len(classes) == 6
    assert [name for name in classes if f" {name} " not in str(errors.__doc__)] == []


def test_a_missing_extra_is_named_with_its_remedy() -> None:
    error = MissingExtraError("highdicom", "dicom")
    assert str(error) == "highdicom is not installed; it comes with: pip install 'amsam-med[dicom]'"
