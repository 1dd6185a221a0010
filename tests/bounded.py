"""Runs Python code in a separate process with limits on memory and time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

_AROUND = """
import resource, sys, time
{imports}
def status(what):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(what))
before, room = status("VmRSS"), status("VmSize") * 1024 + {megabytes} * 2**20
resource.setrlimit(resource.RLIMIT_AS, (room, room))
start = time.process_time()
{code}
print()
print(time.process_time() - start, (status("VmHWM") - before) / 1024)
"""


class Ran(NamedTuple):
    """What a piece of code did.

    Attributes:
        said: What it printed.
        seconds: Of the processor.
        megabytes: By which its memory grew at most.
    """

    said: str
    seconds: float
    megabytes: float


def run_bounded(imports: str, code: str, *arguments: str | Path, megabytes: int = 500, seconds: float = 60) -> Ran:
    """Run code that finds its arguments in ``sys.argv[1:]``.

    Args:
        imports: Statements before the limit.
        code: Statements under it.
        arguments: Given to the code.
        megabytes: Address space besides what the imports took.
        seconds: After which the process is ended, and the test fails.
    """
    program = _AROUND.format(imports=imports, code=code, megabytes=megabytes)
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, timeout=seconds, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    said, last = done.stdout.decode().rstrip("\n").rsplit("\n", 1)
    took, grown = map(float, last.split())
    return Ran(said.strip(), took, grown)
