"""Progress on stderr for the verbs that count; a log file gets none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Counter = Callable[[int, int, str], None]
"""Called with (done, all, note)."""


@contextmanager
def progress_bars(*names: str) -> Iterator[list[Counter]]:
    """One bar per name, each with its own counter."""
    if not sys.stderr.isatty():
        yield [lambda *_: None for _ in names]
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    note = TextColumn("{task.fields[note]}", markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note)
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks = [bars.add_task(name, total=None, note="") for name in names]

        def counter(index: int) -> Counter:
            return lambda done, total, text: bars.update(tasks[index], completed=done, total=total, note=text)

        yield [counter(index) for index in range(len(names))]
