"""Files that are whole or not there, JSON, what killed writers leave, and hashes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from amsam_med import locks
from amsam_med.data import writers
from amsam_med.detect import files as detector_files
from amsam_med.files import atomic_path, is_unfinished, replace_file, sha256, sweep_unfinished, write_json
from amsam_med.segment import stages


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.png"
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert temporary.suffix == ".png"
        assert temporary.parent == target.parent
        assert not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["a.png"]


def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write_half(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        write_half(temporary)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_json_is_indented_whole_and_ends_its_last_line(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", {"b": Path("x"), "a": 1}, sort_keys=True, default=str)
    text = (tmp_path / "new" / "a.json").read_text()
    assert text == '{\n  "a": 1,\n  "b": "x"\n}\n'
    with pytest.raises(TypeError):
        write_json(tmp_path / "new" / "a.json", {"b": Path("x")})
    assert [path.read_text() for path in (tmp_path / "new").iterdir()] == [text]


def test_names_lent_are_known_as_unfinished(tmp_path: Path) -> None:
    for name in ("a.png", "a b.nii.gz", "without", ".hidden.csv", "two\nlines.png"):
        with atomic_path(tmp_path / name) as temporary:
            temporary.touch()
            assert is_unfinished(temporary.name)
        assert not is_unfinished(name)


def test_a_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    replace_file(tmp_path / "a", content := bytes(range(256)) * 9000)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_names_of_earlier_versions_are_the_same_functions() -> None:
    assert writers.atomic_path is atomic_path
    assert locks.sweep_unfinished is sweep_unfinished
    assert detector_files.replace_file is replace_file
    assert stages.file_digest is sha256


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
