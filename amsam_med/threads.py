"""How many threads of torch compute on a CPU: the one place that sets them.

Torch keeps a part of this number for each thread of Python and a part for the whole process, so whoever changes it for
a while puts it back.
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
    """Put torch's number of threads back after a block that may change it."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def single_threaded_pool(workers: int) -> ThreadPoolExecutor:
    """A pool of threads, each of which computes with one thread of torch.

    A thread that calls torch gets a team of torch's threads of its own: with several of both there would be more at
    work than there are cores. What the pool's threads set holds in part for the process, so use the pool inside
    :func:`kept_threads` where the caller goes on with torch.
    """
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
