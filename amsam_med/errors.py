"""Every error that AM-SAM Med raises on purpose.

The tree::

    AmsamError                  errors that a caller can fix; the text names the thing, what was expected, and the fix
    ├── DataError               an image, a mask, a folder or a data list       (also ValueError)
    ├── WeightsError            a weight file: missing, damaged, of another model (also RuntimeError)
    ├── ConfigError             settings that are unknown or contradict         (also ValueError)
    ├── TooLittleMemoryError    the machine has too little memory               (also MemoryError)
    └── MissingExtraError       an optional dependency is not installed         (also ImportError)

The command line prints the text of an ``AmsamError`` without a traceback; anything else is a defect of ours.
"""

from __future__ import annotations


class AmsamError(Exception):
    """Base of all errors that a user can fix."""


class DataError(AmsamError, ValueError):
    """An image, mask, folder or data list cannot be used as it is."""


class WeightsError(AmsamError, RuntimeError):
    """A weight file is missing, damaged, or belongs to another model."""


class ConfigError(AmsamError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""


class TooLittleMemoryError(AmsamError, MemoryError):
    """The machine has too little memory for what was asked; the input may be right."""


class MissingExtraError(AmsamError, ImportError):
    """An optional dependency is needed and not installed.

    Args:
        package: The package that failed to import.
        extra: The extra of ``amsam-med`` that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; it comes with: pip install 'amsam-med[{extra}]'")
