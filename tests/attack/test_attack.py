"""Every case of the attack as a test; ``AMSAM_ATTACK=full`` tries those, too, that are not for every build."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.attack.cases import CASES, FileCase, chosen
from tests.attack.trial import Trial, is_full
from tests.attack.world import Skipped

_CHOSEN = chosen(is_full())
_GROUPS = list(dict.fromkeys(one.group for one in _CHOSEN.values() if isinstance(one, FileCase)))
FINDINGS = (*(f"C{n}" for n in range(1, 4)), *(f"H{n}" for n in range(1, 7)), *(f"M{n}" for n in range(1, 13)), "Low")
"""What the first attack found, by severity; a case's name begins with what it keeps from coming back."""


@pytest.fixture(scope="module")
def trial() -> Iterator[Trial]:
    with Trial(_CHOSEN) as running:
        yield running


@pytest.mark.parametrize("group", _GROUPS)
def test_a_folder_of_them_all_is_done_but_for_those_that_cannot_be(group: str, trial: Trial) -> None:
    trial.together(group)


@pytest.mark.parametrize("key", _CHOSEN)
def test_it_ends_in_a_result_or_in_plain_words(key: str, trial: Trial) -> None:
    try:
        trial.alone(key)
    except Skipped as why:
        pytest.skip(str(why))


def test_there_are_at_least_150_kinds_for_every_build() -> None:
    assert len(chosen(is_full=False)) >= 150
    assert len(chosen(is_full=True)) >= 220


@pytest.mark.parametrize("finding", FINDINGS)
def test_every_finding_has_its_case(finding: str) -> None:
    assert any(finding in key.split() for key in CASES)
