"""What a machine refuses, in words."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import torch

from amsam_med.errors import AmsamError, ConfigError, DataError, WeightsError
from amsam_med.machine import limits_named

HUGE = 2**50


def allocate_on_the_cpu() -> None:
    torch.empty(HUGE)


def allocate_in_numpy() -> None:
    np.empty(HUGE)


def allocate_on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has ...")


def run_out_within_a_part() -> None:
    try:
        allocate_on_a_gpu()
    except torch.OutOfMemoryError as error:
        raise RuntimeError("Failed to evaluate '$encode(...)'") from error


@pytest.mark.parametrize(
    "act",
    [allocate_on_the_cpu, allocate_in_numpy, allocate_on_a_gpu, run_out_within_a_part],
    ids=lambda act: act.__name__,
)
def test_too_little_memory_is_one_sentence_with_the_remedy(act: object) -> None:
    assert callable(act)
    with (
        pytest.raises(ConfigError, match=r"too little memory.*; give a smaller --batch-size$") as caught,
        limits_named(Path("run"), "give a smaller --batch-size"),
    ):
        act()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.ENOTDIR])
def test_a_disk_that_refuses_is_one_sentence_with_the_place(number: int) -> None:
    error = OSError(number, "what the system says", "run/history.csv")
    with (
        pytest.raises(DataError, match=r"run/history\.csv: cannot be .* \(what the system says\)"),
        limits_named(Path("run"), ""),
    ):
        raise error
    with (
        pytest.raises(DataError, match=r"^run, the temporary folder or shared memory .*: cannot be"),
        limits_named(Path("run"), ""),
    ):
        raise OSError(number, "what the system says")


def test_an_error_of_ours_is_found_where_monai_has_wrapped_it() -> None:
    with pytest.raises(WeightsError, match=r"^damaged$"), limits_named(Path("run"), ""):
        raise RuntimeError("applying transform") from WeightsError("damaged")


def test_a_defect_of_ours_stays_what_it_is() -> None:
    with pytest.raises(KeyError), limits_named(Path("run"), ""):
        raise KeyError("pred")
    assert not issubclass(KeyError, AmsamError)
