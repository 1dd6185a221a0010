"""Threads of torch: set in one place, put back, and one for each worker of a pool."""

from __future__ import annotations

import pytest
import torch

from amsam_med.threads import kept_threads, set_threads, single_threaded_pool


def test_what_a_block_changes_is_put_back_also_after_an_error() -> None:
    before = torch.get_num_threads()

    def change_and_fail() -> None:
        set_threads(before + 2)
        assert torch.get_num_threads() == before + 2
        raise KeyError

    with pytest.raises(KeyError), kept_threads():
        change_and_fail()
    assert torch.get_num_threads() == before


def test_workers_compute_with_one_thread_each() -> None:
    before = torch.get_num_threads()
    with kept_threads():
        set_threads(3)
        with single_threaded_pool(2) as pool:
            assert [*pool.map(lambda _: torch.get_num_threads(), range(4))] == [1, 1, 1, 1]
    assert torch.get_num_threads() == before
