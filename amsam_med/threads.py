"""The number of torch's threads on a CPU; only this file sets it.

Torch keeps part of this setting per Python thread and part per process, so a temporary change must be undone.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


def set_threads(count: int) -> None:
    """Let torch compute with ``count`` threads from now on."""
    torch.set_num_threads(count)


@contextmanager
def kept_threads() -> Iterator[None]:
    """Restore torch's number of threads after a block that may change it."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def single_threaded_pool(workers: int) -> ThreadPoolExecutor:
    """A pool of threads that each compute with one thread of torch.

    Every Python thread that calls torch gets its own team of torch's threads, so several of them would use more threads
    than there are cores. The pool's setting partly applies to the whole process, so use the pool inside
    :func:`kept_threads` if the caller continues with torch.
    """
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
