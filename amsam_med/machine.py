"""Limits of the machine (memory, disk, permissions) as errors that say what to do about them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from amsam_med.errors import AmsamError, ConfigError, DataError

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",  # torch's allocator for the CPU
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Unable to allocate",  # NumPy's
)


@contextmanager
def limits_named(output: Path, less_memory: str) -> Iterator[None]:
    """Turn errors of memory and disk inside the block into errors of one plain sentence.

    MONAI wraps an error of a part or a transform into a ``RuntimeError``, so the original is looked for among its
    causes. An :class:`AmsamError` found there is raised as it is.

    Args:
        output: Where the block writes, for the message.
        less_memory: What the user can do about too little memory, for the message.

    Raises:
        ConfigError: There was not enough memory, on the CPU or a GPU.
        DataError: A file could not be read or written: no room, no permission, gone.
        AmsamError: What the block raised, also where MONAI has wrapped it.
    """
    engines = logging.getLogger("ignite.engine.engine")  # logs an error before it raises it; once is enough
    level = engines.level
    engines.setLevel(logging.CRITICAL)
    try:
        yield
    except Exception as error:
        for cause in causes(error):
            if isinstance(cause, AmsamError):
                raise cause from cause.__cause__
            if is_out_of_memory(cause):
                raise ConfigError(
                    f"this machine has too little memory for it ({_first_line(cause)}); {less_memory}"
                ) from error
            if isinstance(cause, OSError) and cause.errno is not None:
                raise DataError(_of_disk(cause, output)) from error
        raise
    finally:
        engines.setLevel(level)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up, in any of the forms in which torch and NumPy say so."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it was raised from."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _of_disk(error: OSError, output: Path) -> str:
    # An error that names no file need not be about the output: locks between processes are in shared memory.
    place = error.filename or f"{output}, the temporary folder or shared memory (/dev/shm)"
    return (
        f"{place}: cannot be read or written ({error.strerror or error}); make room, change its permissions, or give "
        "another folder"
    )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
