"""Outputs that one process holds, and what killed processes leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amsam_med.data.writers import atomic_path
from amsam_med.errors import ConfigError
from amsam_med.locks import held, scratch_folder, sweep_unfinished

HOLDER = """
import sys, time
from pathlib import Path
from amsam_med.locks import held, scratch_folder
with held(Path(sys.argv[1]), "it"), scratch_folder("amsam-test-") as folder:
    (folder / "image.png").write_text("a patient")
    print(folder, flush=True)
    time.sleep(60)
"""


def start_holder(lock: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_what_another_process_holds_is_refused_and_a_kill_lets_go_of_it(tmp_path: Path) -> None:
    lock = tmp_path / "run" / ".lock"
    process, _ = start_holder(lock)
    with pytest.raises(ConfigError, match="another process is writing the run"), held(lock, "the run"):
        pass
    kill(process)
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


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint.pt"
    (tmp_path / ".checkpoint.pt.1234.tmp").touch()
    with atomic_path(target) as unfinished:
        unfinished.touch()
        kept = [
            tmp_path / name for name in ("checkpoint.pt.old", ".checkpoint.pt.notes.pt", ".history.csv.0a1b2c3d.csv")
        ]
        for path in kept:
            path.touch()
        sweep_unfinished(target)
        assert sorted(tmp_path.iterdir()) == sorted(kept)
        unfinished.touch()


def test_a_killed_process_scratch_folder_goes_with_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    process, left = start_holder(tmp_path / "lock")
    os.utime(left, times=(time.time() - 3600,) * 2)
    with scratch_folder("amsam-test-") as other:
        assert (left / "image.png").exists()  # its process is alive
        assert other != left
    kill(process)
    with scratch_folder("amsam-test-"):
        assert not left.exists()
    assert not other.exists()


def test_a_link_of_that_name_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").touch()
    (tmp_path / "amsam-test-link").symlink_to(tmp_path / "elsewhere")
    with scratch_folder("amsam-test-"):
        pass
    assert (tmp_path / "elsewhere" / "precious").exists()
