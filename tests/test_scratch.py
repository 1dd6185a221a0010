"""Temporary folders, and what killed processes leave of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from amsam_med.scratch import scratch_folder

HOLDER = """
import time
from amsam_med.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "image.png").write_text("a patient")
    print(folder, flush=True)
    time.sleep(60)
"""


def start_holder() -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_killed_process_scratch_folder_goes_with_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    process, left = start_holder()
    with scratch_folder() as other:
        assert (left / "image.png").exists()  # its process is alive
        assert other != left
    process.kill()
    process.communicate()
    with scratch_folder():
        assert not left.exists()
    assert not other.exists()


def test_a_link_of_that_name_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").touch()
    (tmp_path / "amsam-run-link").symlink_to(tmp_path / "elsewhere")
    with scratch_folder():
        pass
    assert (tmp_path / "elsewhere" / "precious").exists()
