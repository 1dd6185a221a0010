"""Outputs that one process holds, and what killed processes leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from amsam_med.errors import ConfigError
from amsam_med.locks import held

HOLDER = """
import sys, time
from pathlib import Path
from amsam_med.locks import held
with held(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_what_another_process_holds_is_refused_and_a_kill_lets_go_of_it(tmp_path: Path) -> None:
    lock = tmp_path / "run" / ".lock"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(ConfigError, match="another process is writing the run"), held(lock, "the run"):
        pass
    process.kill()
    process.communicate()
    with held(lock, "the run"):
        assert lock.exists()
    assert not lock.exists()


def test_folders_that_were_made_for_nothing_are_gone_again(tmp_path: Path) -> None:
    with pytest.raises(KeyError), held(tmp_path / "a" / "b" / ".lock", "it"):
        raise KeyError
    assert [*tmp_path.iterdir()] == []
    with held(tmp_path / "a" / "b" / ".lock", "it"):
        (tmp_path / "a" / "b" / "result").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "result"]
