"""What is tried: cases by group, each with a name, how it is made, and what must come of it.

A :class:`FileCase` is one bad or odd thing in a folder. Those of a group lie in one folder, each in a sub-folder of its
own, and are segmented in one run; if that run goes wrong, each is tried alone, so that the guilty ones are known.
A :class:`Case` is everything else: it runs the commands that it wants in a world of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from tests.attack.world import World

Rows: TypeAlias = Sequence[dict[str, str]]
"""Of ``results.csv``."""


class Outcome(StrEnum):
    """What may come of a file."""

    ERROR = "rows with an error and no result"
    DONE = "rows with results"
    EITHER = "rows, with an error or with results"
    NOTHING = "no row: no image, and not named like one"
    ANY = "a row or none"


@dataclass(frozen=True)
class FileCase:
    """One thing in a folder that is segmented.

    Attributes:
        group: Those of a group share a folder.
        name: What it is, in words.
        make: Makes it in an empty folder of its own.
        outcome: What must come of it.
        says: What each error must match.
        look: Looks closer at the rows of the folder.
        is_quick: Whether it is among those that every build tries.
    """

    group: str
    name: str
    make: Callable[[Path], object]
    outcome: Outcome = Outcome.ERROR
    says: str = ""
    look: Callable[[Rows], None] | None = None
    is_quick: bool = True

    @property
    def folder(self) -> str:
        """The name of its sub-folder."""
        return re.sub(r"\W+", "-", self.name).strip("-")[:80]


@dataclass(frozen=True)
class Case:
    """Something that is tried in a world of its own.

    Attributes:
        group: What it is about.
        name: What it is, in words.
        attempt: Tries it; whatever must hold is asserted there.
    """

    group: str
    name: str
    attempt: Callable[[World], None]


AnyCase: TypeAlias = FileCase | Case

CASES: dict[str, AnyCase] = {}
"""All cases by ``group: name``, in the order in which they were written down."""


def add(case: AnyCase) -> None:
    """Write a case down.

    Raises:
        AssertionError: There is one of that name.
    """
    key = f"{case.group}: {case.name}"
    assert key not in CASES, f"two cases are called {key}"
    CASES[key] = case


def case(group: str, name: str) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Write down the function below it as a :class:`Case`."""

    def write_down(attempt: Callable[[World], None]) -> Callable[[World], None]:
        add(Case(group, name, attempt))
        return attempt

    return write_down


def chosen(is_full: bool) -> dict[str, AnyCase]:
    """All cases, or those that every build tries: the files, which share a run, and the commands of the short list."""
    import tests.attack.all  # noqa: F401  # writes them down
    from tests.attack.quick import QUICK

    assert not (unknown := QUICK - CASES.keys()), f"the short list names what there is not: {sorted(unknown)}"
    return {
        key: one
        for key, one in CASES.items()
        if is_full or (one.is_quick if isinstance(one, FileCase) else key in QUICK)
    }
