"""Runs the cases of a group in one folder, and tells of each what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from amsam_med.segment import SHOWN_FAILURES
from tests.attack.cases import FileCase, Outcome
from tests.attack.kit import Kit
from tests.attack.observe import assert_error_row, assert_plain, assert_untouched, assert_whole, strict_rows
from tests.attack.world import Run, World, new_world
from tests.attack.zygote import Zygote
from tests.small_bundle import write_picture

GOOD = ("0-good.png", "m-good.png", "z-good.png")
"""Neighbours that must be done whatever lies between them."""
SECONDS, MEGABYTES = 240, 1500
"""What a folder of many may take."""


class _Result(NamedTuple):
    """What came of a folder: its rows, None where there is no table that can be read; and what does not hold."""

    rows: list[dict[str, str]] | None
    fault: str


class Folders:
    """The folders of all groups, each segmented once.

    Args:
        zygote: Starts commands.
        kit: Good things.
        cases: All that are tried.
    """

    def __init__(self, zygote: Zygote, kit: Kit, cases: Sequence[FileCase]) -> None:
        self._zygote, self._kit = zygote, kit
        self._cases: dict[str, list[FileCase]] = {}
        for one in cases:
            self._cases.setdefault(one.group, []).append(one)
        self._results: dict[str, _Result] = {}

    @property
    def groups(self) -> list[str]:
        """Names of all groups."""
        return list(self._cases)

    def try_together(self, group: str) -> None:
        """Segment the folder of a group.

        Raises:
            AssertionError: Something does not hold of the run as a whole.
        """
        if fault := self._result(group).fault:
            raise AssertionError(fault)

    def try_one(self, case: FileCase) -> None:
        """Look what came of a case.

        Raises:
            AssertionError: Not what must.
        """
        result = self._result(case.group)
        if result.rows is None:  # who of them is it?
            result = self._segmented([case], 60, 1000)
            assert not result.fault, result.fault
        assert result.rows is not None
        _judge(case, result.rows)

    def _result(self, group: str) -> _Result:
        if group not in self._results:
            self._results[group] = self._segmented(self._cases[group], SECONDS, MEGABYTES)
        return self._results[group]

    def _segmented(self, cases: Sequence[FileCase], seconds: float, megabytes: float) -> _Result:
        with new_world(self._zygote, self._kit) as world:
            for number, name in enumerate(GOOD):
                write_picture(world.input / name, number)
            for one in cases:
                (world.input / one.folder).mkdir()
                one.make(world.input / one.folder)
            _ = world.before
            run = world.segment("--batch-size", "4", seconds=seconds)
            rows = None
            try:
                assert_plain(run, (0, 1), "Results are in", seconds, megabytes)
                rows = [_within(world, row) for row in strict_rows(world.output / "results.csv")]
                _assert_told(run, rows)
                assert_untouched(world)
                assert_whole(world.output)
            except AssertionError as error:
                return _Result(rows, str(error))
        return _Result(rows, "")


def _within(world: World, row: dict[str, str]) -> dict[str, str]:
    return {**row, "file": row["file"].removeprefix(f"{world.input}/")}


def _assert_told(run: Run, rows: Sequence[dict[str, str]]) -> None:
    """The good neighbours are done, and each of the first faults has its line and nothing else has."""
    done = [row["file"] for row in rows if row["mask_file"]]
    assert sorted(set(GOOD) & set(done)) == sorted(GOOD), "a good neighbour is not done"
    failed = {row["file"] for row in rows if row["error"]}
    assert run.code == bool(failed), f"exit code {run.code} with {len(failed)} faults"
    assert run.printed.startswith("done "), f"a line that names no file:\n{run.printed[:500]}"
    lines = [line for line in run.printed.splitlines() if line.startswith("failed: ")]
    assert len(lines) == min(len(failed), SHOWN_FAILURES), run.printed


def _judge(case: FileCase, rows: Sequence[dict[str, str]]) -> None:
    own = [row for row in rows if row["file"].split("/")[0] == case.folder]
    errors = [row for row in own if row["error"]]
    shown = [(row["file"], row["error"], row["flags"]) for row in own[:5]]
    for row in errors:
        assert_error_row(row, case.says)
    if case.outcome is Outcome.NOTHING:
        assert not own, f"rows: {shown}"
    elif case.outcome is not Outcome.ANY:
        assert own, "no row"
    if case.outcome is Outcome.ERROR:
        assert len(errors) == len(own), f"done: {shown}"
    if case.outcome is Outcome.DONE:
        assert not errors, f"failed: {shown}"
    if case.look is not None:
        case.look(own)
