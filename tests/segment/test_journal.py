"""The journal, the table and run.json: what is recorded is kept, whole, and never mixed with what is not its own."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from amsam_med.data.tables import read_table
from amsam_med.errors import ConfigError
from amsam_med.segment.journal import (
    COLUMNS,
    Part,
    Picture,
    RecordedName,
    Records,
    Row,
    RunOutcome,
    RunSettings,
    RunState,
    read_run,
)

FINGERPRINT = {"amsam-med": "1", "weights": {"model": "abc", "detector": None}, "input_size": 256}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


def begun(folder: Path, fingerprint: dict[str, object] | None = None, overwrite: bool = False) -> Records:
    records = Records(folder, fingerprint or FINGERPRINT, overwrite)
    records.start(RunSettings("amsam segment", "amsam_isic", ("png",), 8, "cpu"))
    return records


def end(records: Records, state: RunState = "complete") -> None:
    records.finish(state)
    records.close()


def recorded(folder: Path, *files: str, **cells: object) -> None:
    """A complete run in which files were done, each with a result of its own."""
    records = begun(folder)
    for file in files:
        records.add(Path(file).stem, [done(folder, file, **cells)], ("png",))
    end(records)


def done(folder: Path, file: str, picture: int | None = None, **cells: object) -> Picture:
    number = f"_{picture:04}" if picture else ""
    result = folder / "masks" / f"{Path(file).stem}{number}_segmentation.png"
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_bytes(b"mask")
    row = Row(file, picture, "digest", files={"mask_file": result.relative_to(folder).as_posix()}, **cells)  # type: ignore[arg-type]
    return Picture(row, b"thumbnail")


def table_of(folder: Path) -> list[dict[str, str]]:
    return list(read_table(folder / "results.csv"))


def change(folder: Path, statement: str) -> None:
    """Change a journal behind everybody's back."""
    journal = sqlite3.connect(folder / "journal.sqlite")
    with journal:
        journal.execute(statement)
    journal.close()


def test_what_was_recorded_is_there_in_the_next_run(folder: Path) -> None:
    recorded(folder, "in/a.png", "in/b.png")
    records = begun(folder)
    earlier = records.earlier("a")
    assert earlier is not None
    assert (earlier.file, earlier.sha256, earlier.formats, earlier.is_done) == ("in/a.png", "digest", ("png",), True)
    assert earlier.results == {"masks/a_segmentation.png"}
    assert records.earlier("c") is None
    assert [(cells["file"], thumbnail) for cells, thumbnail in records.pictures()] == [
        ("in/a.png", b"thumbnail"),
        ("in/b.png", b"thumbnail"),
    ]
    end(records)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["gone", "empty"])
def test_a_file_whose_result_is_gone_or_empty_is_not_done(spoil: Callable[[Path], object], folder: Path) -> None:
    recorded(folder, "a.png")
    spoil(folder / "masks" / "a_segmentation.png")
    records = begun(folder)
    earlier = records.earlier("a")
    assert earlier is not None
    assert not earlier.is_done
    end(records)


def test_a_file_recorded_again_has_the_new_rows_alone(folder: Path) -> None:
    records = begun(folder)
    records.add("a", [done(folder, "a.tif", page) for page in (1, 2, 3)], ("png",))
    records.add("a", [done(folder, "a.tif", page) for page in (1, 2)], ("png",))
    end(records)
    assert [(row["file"], row["picture"]) for row in table_of(folder)] == [("a.tif", "1"), ("a.tif", "2")]


def test_the_table_is_sorted_by_file_and_by_the_number_of_the_picture(folder: Path) -> None:
    records = begun(folder)
    records.add("b", [done(folder, "b.tif", page) for page in (1, 2, 10)], ("png",))
    records.add("a", [done(folder, "a.tif")], ("png",))
    end(records)
    assert [row["file"] + row["picture"] for row in table_of(folder)] == ["a.tif", "b.tif1", "b.tif2", "b.tif10"]
    assert tuple(table_of(folder)[0]) == COLUMNS


@pytest.mark.parametrize(
    "name", ['a,"b";.png', "new\nline.png", "\r.png", "☃ 病.png", os.fsdecode(b"caf\xe9.png"), "=1+1.png"]
)
def test_any_name_comes_back_from_journal_and_table(name: str, folder: Path) -> None:
    recorded(folder, name, error="")
    assert [row["file"] for row in table_of(folder)] == [name]
    records = begun(folder)
    earlier = records.earlier(Path(name).stem)
    assert earlier is not None
    assert (earlier.file, earlier.is_done) == (name, True)
    end(records)


def test_rows_that_a_killed_run_had_not_yet_in_the_table_are_there_after_the_next_start(folder: Path) -> None:
    recorded(folder, "a.png", "b.png")
    table = (folder / "results.csv").read_bytes()
    (folder / "results.csv").write_bytes(table[: len(table) - 20])
    end(begun(folder))
    assert (folder / "results.csv").read_bytes() == table


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"input_size": 512}, "input_size"),
        ({"weights": {"model": "xyz", "detector": None}}, "weights.model"),
        ({"weights": {"model": "abc", "detector": "d"}, "amsam-med": "2"}, "amsam-med, weights.detector"),
        ({"test_views": "all"}, "test_views"),
    ],
)
def test_another_fingerprint_is_refused_by_the_names_of_its_changes(
    changed: dict[str, object], named: str, folder: Path
) -> None:
    recorded(folder, "a.png")
    with pytest.raises(ConfigError, match=f"made with another {named}; give another output folder, or --overwrite"):
        Records(folder, FINGERPRINT | changed, overwrite=False)
    assert len(table_of(folder)) == 1
    end(begun(folder))  # the refusal has left the folder to its own


def test_overwrite_forgets_the_results_of_another_fingerprint(folder: Path) -> None:
    recorded(folder, "a.png")
    records = begun(folder, FINGERPRINT | {"input_size": 512}, overwrite=True)
    assert records.earlier("a") is None
    assert table_of(folder) == []
    end(records)


def test_a_fingerprint_without_results_may_change(folder: Path) -> None:
    recorded(folder, "a.png", error="damaged")
    records = begun(folder, FINGERPRINT | {"input_size": 512})
    assert table_of(folder) == []
    end(records)


def test_a_journal_of_another_version_starts_over(folder: Path) -> None:
    recorded(folder, "a.png")
    change(folder, "UPDATE facts SET value = '1' WHERE name = 'format'")
    records = begun(folder)
    assert records.earlier("a") is None
    end(records)


@pytest.mark.parametrize(
    "damage",
    [lambda content: b"no data base" * 1000, lambda content: content[: len(content) // 2]],
    ids=["words", "cut"],
)
def test_a_damaged_journal_is_named_and_may_be_deleted(damage: Callable[[bytes], bytes], folder: Path) -> None:
    recorded(folder, "a.png")
    journal = folder / "journal.sqlite"
    journal.write_bytes(damage(journal.read_bytes()))
    with pytest.raises(ConfigError, match=r"journal\.sqlite cannot be used .* delete it: then all images are done"):
        Records(folder, FINGERPRINT, overwrite=False)
    journal.unlink()
    records = begun(folder)
    assert records.earlier("a") is None
    end(records)


def test_an_empty_journal_starts_over(folder: Path) -> None:
    recorded(folder, "a.png")
    (folder / "journal.sqlite").write_bytes(b"")
    records = begun(folder)
    assert records.earlier("a") is None
    end(records)


def test_a_second_run_is_refused_until_the_first_lets_go(folder: Path) -> None:
    first = begun(folder)
    with pytest.raises(ConfigError, match="another run is writing to"):
        Records(folder, FINGERPRINT, overwrite=True)
    end(first)
    end(begun(folder))


def test_half_written_results_of_a_killed_run_are_deleted_and_nothing_else(folder: Path) -> None:
    end(begun(folder), "running")  # as run.json says of a killed one
    half = folder / "masks" / "deep" / ".a_segmentation.png.0123abcd.png"
    kept = [folder / "masks" / name for name in (".keep", ".a.png", "deep/.nfs00000001", "deep/a_segmentation.png")]
    half.parent.mkdir(parents=True)
    for path in (half, *kept):
        path.write_bytes(b"half")
    end(begun(folder))
    assert not half.exists()
    assert all(path.exists() for path in kept)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's state folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def secret_of(folder: Path) -> str:
    records = begun(folder)
    try:
        return records.secret()
    finally:
        end(records)


@pytest.mark.usefixtures("state")
def test_the_secret_is_the_folders_own_for_all_its_runs(folder: Path, tmp_path: Path) -> None:
    secrets = [secret_of(place) for place in (folder, folder, tmp_path / "other")]
    assert secrets[0] == secrets[1] != secrets[2]
    assert len(secrets[0]) == 64


def test_nothing_in_the_folder_tells_the_secret(folder: Path, state: Path) -> None:
    secret = secret_of(folder)
    (key,) = [path for path in state.rglob("*") if path.is_file()]
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert secret.encode() not in kept
    assert key.read_bytes().strip() not in kept


def test_a_folder_that_another_user_has_begun_is_refused_until_the_secret_is_there(folder: Path, state: Path) -> None:
    secret = secret_of(folder)
    shutil.move(state, state.with_name("elsewhere"))
    with pytest.raises(ConfigError, match=r"made with another secret; bring .*deidentify\.key from where it was begun"):
        secret_of(folder)
    shutil.rmtree(state)
    shutil.move(state.with_name("elsewhere"), state)
    assert secret_of(folder) == secret


@pytest.mark.parametrize(
    ("content", "mode", "fault"), [("a" * 64, 0o644, "others can read"), ("short", 0o600, "not the secret")]
)
def test_a_secret_that_others_can_read_or_that_is_none_is_refused(
    content: str, mode: int, fault: str, folder: Path, state: Path
) -> None:
    secret_of(folder)
    (state / "amsam-med" / "deidentify.key").write_text(content)
    (state / "amsam-med" / "deidentify.key").chmod(mode)
    with pytest.raises(ConfigError, match=fault):
        secret_of(folder)


def test_run_json_says_how_the_run_stands(folder: Path) -> None:
    records = begun(folder)
    run = read_run(folder)
    assert run is not None
    assert run.state == "running"
    records.finish("interrupted", RunOutcome({"images": 1}, seconds=1, images_per_second=2))
    run = read_run(folder)
    assert run is not None
    assert (run.state, run.seconds, run.fingerprint) == ("interrupted", 1, FINGERPRINT)
    assert (run.command, run.settings, run.counts) == (
        "amsam segment",
        {"bundle": "amsam_isic", "formats": ["png"], "batch_size": 8, "device": "cpu"},
        {"images": 1},
    )
    records.close()


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"verb": "train"}), "\udce9"])
def test_a_run_json_of_something_else_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(os.fsencode(content))
    assert read_run(tmp_path) is None
    assert read_run(tmp_path / "nowhere") is None


def test_many_rows_pass_through_little_memory(folder: Path) -> None:
    records = begun(folder)
    for number in range(3):
        pages = [Picture(Row(f"{number}.tif", page, "digest"), b"\xff" * 2000) for page in range(1, 1001)]
        records.add(str(number), pages, ("png",))
    tracemalloc.start()
    records.finish("complete")
    assert sum(1 for _ in records.pictures()) == 3000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    records.close()
    assert peak < 2e6


# Parts


def part_of(folder: Path, page: int, mask: bytes | None = b"mask", **cells: object) -> Part:
    return Part(done(folder, "a.tif", page, **cells), mask)


def test_pages_that_were_done_are_there_in_the_next_run_and_not_in_the_table(folder: Path) -> None:
    records = begun(folder)
    for page in (1, 2):
        records.add_part("a", part_of(folder, page, certainty=0.5), ("png",))
    end(records, "interrupted")
    assert table_of(folder) == []
    records = begun(folder)
    earlier = records.earlier("a")
    assert earlier is not None
    assert (earlier.is_done, earlier.sha256, sorted(earlier.parts)) == (False, "digest", [1, 2])
    assert earlier.parts[2].picture.row.certainty == 0.5
    assert earlier.parts[2].mask == b"mask"
    assert list(records.names()) == [RecordedName("a", "a.tif", True)]
    end(records)


def test_a_page_whose_result_is_gone_is_not_done(folder: Path) -> None:
    records = begun(folder)
    for page in (1, 2):
        records.add_part("a", part_of(folder, page), ("png",))
    (folder / "masks" / "a_0001_segmentation.png").unlink()
    earlier = records.earlier("a")
    assert earlier is not None
    assert list(earlier.parts) == [2]
    assert "masks/a_0001_segmentation.png" in earlier.results
    end(records)


def test_pages_of_another_file_or_of_other_formats_are_forgotten(folder: Path) -> None:
    records = begun(folder)
    records.add_part("a", part_of(folder, 1), ("png",))
    records.add_part("a", part_of(folder, 2), ("png", "nifti"))
    earlier = records.earlier("a")
    assert earlier is not None
    assert (earlier.formats, list(earlier.parts)) == (("png", "nifti"), [2])
    records.add("a", [done(folder, "a.tif", page) for page in (1, 2)], ("png",))
    earlier = records.earlier("a")
    assert earlier is not None
    assert (earlier.is_done, earlier.parts) == (True, {})
    end(records)


# Folders from somebody else

OUTSIDE = "keep me"


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER evil AFTER INSERT ON rows BEGIN DELETE FROM facts; END",
        "CREATE VIEW evil AS SELECT * FROM facts",
        "CREATE TABLE evil (x)",
        "ALTER TABLE rows ADD COLUMN evil",
    ],
)
def test_a_journal_with_other_tables_is_refused(statement: str, folder: Path) -> None:
    recorded(folder, "a.png")
    change(folder, statement)
    with pytest.raises(ConfigError, match=r"which no run makes.* delete it: then all images are done again"):
        begun(folder)


@pytest.mark.parametrize(
    "change_to",
    [
        "cells = replace(cells, 'masks/a_segmentation.png', '../outside.png')",
        "cells = replace(cells, 'masks/a_segmentation.png', '/etc/passwd')",
        "cells = replace(cells, 'masks/a_segmentation.png', 'masks/../../outside_segmentation.png')",
        "cells = replace(cells, 'masks/a_segmentation.png', 'masks//etc/x_segmentation.png')",
        "cells = replace(cells, 'masks/a_segmentation.png', 'journal.sqlite')",
        "cells = '[1, 2]'",
        "cells = '{}'",
        "cells = 'no JSON'",
        "cells = 7",
        "cells = replace(cells, '\"file\"', '\"evil\"')",
        "cells = '" + "[" * 100_000 + "'",
    ],
)
def test_a_row_that_no_run_writes_is_refused_before_anything_is_done_with_it(change_to: str, folder: Path) -> None:
    recorded(folder, "a.png")
    (folder.parent / "outside.png").write_text(OUTSIDE)
    change(folder, f"UPDATE rows SET {change_to}")
    with pytest.raises(ConfigError, match=r"journal\.sqlite holds what no run writes, .* delete it"):
        Records(folder, FINGERPRINT, overwrite=False).earlier("a")
    assert (folder.parent / "outside.png").read_text() == OUTSIDE


def test_a_row_cannot_name_the_result_of_another_file(folder: Path) -> None:
    recorded(folder, "a.png", "b.png")
    change(folder, "UPDATE rows SET cells = replace(cells, 'masks/a_seg', 'masks/b_seg')")
    records = begun(folder)
    with pytest.raises(ConfigError, match="holds what no run writes, of a"):
        records.earlier("a")
    end(records)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE files SET file = 7",
        "UPDATE files SET file = NULL",
        "UPDATE files SET sha256 = x'00'",
        "UPDATE files SET formats = 'exe'",
        "UPDATE files SET name = 'text'",
    ],
)
def test_entries_of_other_types_are_refused_or_unknown(statement: str, folder: Path) -> None:
    recorded(folder, "a.png")
    change(folder, statement)
    records = begun(folder)
    assert "name =" not in statement or records.earlier("a") is None
    read = (lambda: list(records.names())) if "name =" in statement else (lambda: records.earlier("a"))
    with pytest.raises(ConfigError, match="holds what no run writes"):
        read()
    end(records)


@pytest.mark.parametrize("fingerprint", ["[]", "{", "7", "[" * 100_000])
def test_settings_that_are_none_are_refused(fingerprint: str, folder: Path) -> None:
    recorded(folder, "a.png")
    change(folder, f"UPDATE facts SET value = '{fingerprint}' WHERE name = 'fingerprint'")
    with pytest.raises(ConfigError, match="holds what no run writes, of the settings"):
        Records(folder, FINGERPRINT, overwrite=False)


@pytest.mark.parametrize(
    "row", ["{}", "[]", "7", '{"file": "", "picture": 2}', '{"file": "", "picture": 1, "error": "x"}']
)
def test_a_part_that_no_run_writes_is_refused(row: str, folder: Path) -> None:
    records = begun(folder)
    records.add_part("a", part_of(folder, 1), ("png",))
    end(records)
    change(folder, f"UPDATE parts SET row = '{row}'")
    records = begun(folder)
    with pytest.raises(ConfigError, match="holds what no run writes, of a"):
        records.earlier("a")
    end(records)


def test_a_giant_entry_is_not_read_into_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(folder, "a.png")
    change(folder, "UPDATE rows SET thumbnail = zeroblob(3000000)")
    monkeypatch.setattr("amsam_med.segment.journal._LARGEST_ENTRY", 2_000_000)
    with pytest.raises((ConfigError, sqlite3.DatabaseError), match="too big"):
        begun(folder)


@pytest.mark.parametrize(
    "name", ["journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm", "journal.sqlite-journal", "masks", "nifti"]
)
def test_nothing_is_written_through_a_link_out_of_the_folder(name: str, folder: Path) -> None:
    recorded(folder, "a.png")
    target = folder.parent / "outside"
    shutil.rmtree(folder / "masks")
    target.mkdir() if "." not in name else target.write_text(OUTSIDE)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    with pytest.raises(ConfigError, match="is a link, and nothing is written through one"):
        Records(folder, FINGERPRINT, overwrite=True)
    assert target.is_dir() or target.read_text() == OUTSIDE


@pytest.mark.parametrize("name", ["run.json", "results.csv"])
def test_a_link_in_the_place_of_a_file_that_is_written_is_replaced_or_refused(name: str, folder: Path) -> None:
    recorded(folder, "a.png")
    target = folder.parent / "outside"
    target.write_bytes((folder / name).read_bytes())
    before = target.read_bytes()
    (folder / name).unlink()
    (folder / name).symlink_to(target)
    if name == "run.json":
        with pytest.raises(ConfigError, match=r"holds run\.json, which no run"):
            begun(folder)
    else:
        end(begun(folder))
        assert not (folder / name).is_symlink()
    assert target.read_bytes() == before


def test_a_result_that_is_a_link_counts_as_gone(folder: Path) -> None:
    recorded(folder, "a.png")
    result = folder / "masks" / "a_segmentation.png"
    result.rename(folder.parent / "outside.png")
    result.symlink_to(folder.parent / "outside.png")
    records = begun(folder)
    earlier = records.earlier("a")
    assert earlier is not None
    assert not earlier.is_done
    end(records)


def test_a_rollback_journal_that_would_delete_another_file_is_refused(folder: Path) -> None:
    recorded(folder, "a.png")
    outside = folder.parent / "outside"
    outside.write_text(OUTSIDE)
    name = str(outside).encode()
    tail = name + len(name).to_bytes(4, "big") + (sum(name) & 0xFFFFFFFF).to_bytes(4, "big")
    (folder / "journal.sqlite-journal").write_bytes(bytes(512) + tail + bytes.fromhex("d9d505f920a163d7"))
    with pytest.raises(ConfigError, match="names a further file, which no run writes"):
        Records(folder, FINGERPRINT, overwrite=False)
    assert outside.read_text() == OUTSIDE


@pytest.mark.parametrize(
    "change_to",
    [
        {"state": "evil"},
        {"fingerprint": []},
        {"digest": "short"},
        {"unknown": 1},
        {"verb": "segment", "command": 7},
        {"counts": {"images": "many"}},
    ],
)
def test_a_run_json_that_no_run_writes_is_none(change_to: dict[str, object], folder: Path) -> None:
    recorded(folder, "a.png")
    run = json.loads((folder / "run.json").read_text())
    assert read_run(folder) is not None
    (folder / "run.json").write_text(json.dumps(run | change_to))
    assert read_run(folder) is None


def test_a_run_json_that_does_not_end_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.json")
    assert read_run(tmp_path) is None
    (tmp_path / "run.json").unlink()
    (tmp_path / "run.json").symlink_to("/dev/zero")
    assert read_run(tmp_path) is None
