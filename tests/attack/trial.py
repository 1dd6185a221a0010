"""Tries cases: those of files by folders, all others in worlds of their own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from tests.attack.cases import AnyCase, Case, FileCase
from tests.attack.folders import Folders
from tests.attack.kit import Kit
from tests.attack.world import new_world, remove
from tests.attack.zygote import Zygote

FULL_VARIABLE = "AMSAM_ATTACK"
"""Environment variable; ``full`` tries all cases and not only those for every build."""


def is_full() -> bool:
    """Whether all cases are asked for."""
    return os.environ.get(FULL_VARIABLE) == "full"


class Trial:
    """Tries cases, and ends all that it has started when it is closed; a context manager.

    Args:
        cases: By name.
    """

    def __init__(self, cases: Mapping[str, AnyCase]) -> None:
        self.cases = cases
        self._held = ExitStack()

    @property
    def groups(self) -> list[str]:
        """Names of the groups of files, each of which is one folder."""
        return list(dict.fromkeys(one.group for one in self.cases.values() if isinstance(one, FileCase)))

    def together(self, group: str) -> None:
        """Segment the folder of a group.

        Raises:
            AssertionError: Something does not hold of the run as a whole.
        """
        self._folders.try_together(group)

    def alone(self, key: str) -> None:
        """Try one case.

        Raises:
            AssertionError: Something does not hold.
            Skipped: It cannot be tried here.
        """
        case = self.cases[key]
        if isinstance(case, FileCase):
            self._folders.try_one(case)
            return
        assert isinstance(case, Case)
        with new_world(self._zygote, self._kit) as world:
            case.attempt(world)

    def close(self) -> None:
        """End everything."""
        self._held.close()

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def _zygote(self) -> Zygote:
        return self._held.enter_context(Zygote())

    @cached_property
    def _folders(self) -> Folders:
        of_files = [one for one in self.cases.values() if isinstance(one, FileCase)]
        return Folders(self._zygote, self._kit, of_files)

    @cached_property
    def _kit(self) -> Kit:
        folder = Path(tempfile.mkdtemp(prefix="attack-kit-"))
        self._held.callback(remove, folder)
        os.environ.setdefault("XDG_CONFIG_HOME", str(folder / "settings"))  # trust in bundles is remembered there
        return Kit(folder)
