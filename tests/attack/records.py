"""Records of earlier runs that somebody has damaged, or made: run.json, journal, split, checkpoint, history."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.attack.cases import case
from tests.attack.observe import (
    assert_no_scraps,
    assert_opens,
    assert_plain,
    assert_refused,
    assert_untouched,
    assert_whole,
)
from tests.attack.weights import Pickled
from tests.attack.world import World
from tests.small_bundle import write_picture

SEGMENT, TRAIN = "records of segment", "records of train"


def _again(name: str, damage: Callable[[World], object], *, changes_input: bool = False) -> None:
    """Write down a second run into a folder whose record was damaged after the first."""

    @case(SEGMENT, name)
    def attempt(world: World) -> None:
        write_picture(world.input / "a.png", 1)
        write_picture(world.input / "b.png", 2)
        first = world.segment()
        assert first.code == 0, first.printed
        if changes_input:
            write_picture(world.input / "a.png", 3)
        damage(world)
        _ = world.before
        run = world.segment(seconds=40)
        assert_plain(run, (0, 1, 2), seconds=40)
        assert_untouched(world)
        if run.code == 0:
            rows = assert_whole(world.output)
            assert len(rows) == 2
            assert not any(row["error"] for row in rows)
        else:
            assert_refused(run)


def _write(name: str, content: bytes) -> Callable[[World], object]:
    def damage(world: World) -> None:
        path = world.output / name
        path.unlink(missing_ok=True)
        path.write_bytes(content)

    return damage


def _replace(name: str, make: Callable[[Path, World], object]) -> Callable[[World], object]:
    def damage(world: World) -> None:
        path = world.output / name
        path.unlink(missing_ok=True)
        make(path, world)

    return damage


def _sql(*statements: str) -> Callable[[World], object]:
    def damage(world: World) -> None:
        journal = sqlite3.connect(world.output / "journal.sqlite")
        for statement in statements:
            journal.execute(statement)
        journal.commit()
        journal.close()

    return damage


def _cells(**changes: Any) -> Callable[[World], object]:
    """Change cells of all rows in the journal."""

    def damage(world: World) -> None:
        journal = sqlite3.connect(world.output / "journal.sqlite")
        for rowid, cells in journal.execute("SELECT rowid, cells FROM rows").fetchall():
            entries = {
                **json.loads(cells),
                **{name: str(value).format(world=world.root) for name, value in changes.items()},
            }
            journal.execute("UPDATE rows SET cells = ? WHERE rowid = ?", (json.dumps(entries), rowid))
        journal.commit()
        journal.close()

    return damage


def _of_segment() -> None:
    for name, content in {
        "is nothing": b"",
        "is cut": b'{"verb": "segment", "sta',
        "is a list": b"[]",
        "is no text": b"\xff\xfe\x00",
        "is 200,000 brackets": b"[" * 200_000,
        "is 70 MB of spaces": b" " * (70 << 20) + b"{}",
        "has a state of HTML": b'{"verb": "segment", "state": "<script>alert(1)</script>"}',
        "has a verb that is a list": b'{"verb": ["segment"]}',
    }.items():
        _again(f"run.json that {name}", _write("run.json", content))
    for name, content in {
        "is nothing": b"",
        "is words": b"no journal, but words " * 100,
        "is cut": b"SQLite format 3\0" + bytes(100),
    }.items():
        _again(f"journal that {name}", _write("journal.sqlite", content))
    makers: dict[str, Callable[[Path, World], object]] = {
        "that is a pipe": lambda path, world: os.mkfifo(path),
        "that is a folder": lambda path, world: path.mkdir(),
        "that is a link to nothing": lambda path, world: path.symlink_to("nowhere"),
        "that is a link to something precious": lambda path, world: path.symlink_to(
            world.root / "precious/results.csv"
        ),
    }
    for kind in ("run.json", "journal.sqlite", "results.csv", "report.html"):
        for name, make in makers.items():
            _again(f"{kind} {name}", _replace(kind, make))
    outside = {"up": "../precious/results.csv", "an absolute path": "{world}/precious/results.csv"}
    for name, path in outside.items():
        _again(f"journal whose stale result is {name}", _cells(mask_file=path), changes_input=True)
    _again("journal whose cells are no JSON", _sql("UPDATE rows SET cells = 'words'"))
    _again("journal whose cells are a list", _sql("UPDATE rows SET cells = '[]'"))
    _again("journal whose cells are a number", _sql("UPDATE rows SET cells = 7"))
    _again("journal whose cells are null", _sql("UPDATE rows SET cells = NULL"))
    _again("journal whose cells are HTML", _cells(flags="<script>alert(1)</script>", box_source="<img src=x>"))
    _again("M8 journal whose cells are formulas", _cells(flags="=1+1", box_source="@SUM(1)"))
    _again("journal whose thumbnails are words", _sql("UPDATE rows SET thumbnail = '<script>alert(1)</script>'"))
    _again("journal whose digests are numbers", _sql("UPDATE files SET sha256 = 7, formats = 8, is_done = 'yes'"))
    _again("journal whose formats lead out", _sql("UPDATE files SET formats = '../../evil,png'"), changes_input=True)
    _again("journal whose fingerprint is no JSON", _sql("UPDATE facts SET value = '{' WHERE name = 'fingerprint'"))
    _again("journal whose fingerprint is a list", _sql("UPDATE facts SET value = '[]' WHERE name = 'fingerprint'"))
    _again("journal of another make", _sql("UPDATE facts SET value = '99' WHERE name = 'format'"))
    _again("journal with a trigger that deletes", _sql(
        "CREATE TRIGGER evil AFTER INSERT ON files BEGIN DELETE FROM rows; END"))  # fmt: skip
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i, i, i, '{}', NULL FROM n"
    _again("journal whose rows are a view without end", _sql(
        "DROP TABLE rows", f"CREATE VIEW rows (name, picture, file, cells, thumbnail) AS {endless}"))  # fmt: skip
    _again("journal without tables", _sql("DROP TABLE rows", "DROP TABLE files", "DROP TABLE facts"))


def train_words(world: World, *more: str) -> list[str | os.PathLike[str]]:
    """The words of a short training."""
    kit = world.kit
    chosen = ("--shots", "4", "--epochs", "1", "--input-size", "64", "--views", "none", "--device", "cpu")
    return ["train", "--data", kit.labelled, "-o", world.output, *world.with_bundle(kit.whole_bundle), *chosen, *more]


def trained(world: World) -> Path:
    """A finished run, made once; the folder is not to be changed."""
    kept = world.kit.labelled.parent / "trained"
    if not kept.exists():
        run = world.amsam(*train_words(world), seconds=200)
        assert run.code == 0, run.printed
        shutil.move(world.output, kept)
    return kept


def _resumed(name: str, damage: Callable[[Path], object], says: str = "") -> None:
    """Write down a run that is resumed after its record was damaged; it goes on, or says plainly that it cannot."""

    @case(TRAIN, name)
    def attempt(world: World) -> None:
        shutil.copytree(trained(world), world.output)
        damage(world.output)
        _ = world.before
        run = world.amsam(*train_words(world, "--resume"), seconds=100)
        if run.code == 0 and not says:
            assert_plain(run, (0,), seconds=100)
            assert_opens(world.output)
        else:
            assert_refused(run, says, seconds=100)
        assert_untouched(world)
        assert_no_scraps(world.output)


def _of_train() -> None:
    def file(name: str, content: bytes) -> Callable[[Path], object]:
        return lambda folder: (folder / name).write_bytes(content)

    @case(TRAIN, "as they must be")
    def good(world: World) -> None:
        shutil.copytree(trained(world), world.output)
        assert_plain(world.amsam(*train_words(world, "--resume"), seconds=100), (0,), seconds=100)

    for name, content in {
        "nothing": b"",
        "no JSON": b"{",
        "a list": b"[]",
        "null": b"null",
        "nothing in it": b"{}",
        "settings that are a list": b'{"d1": [], "d2": [], "network": [], "settings": []}',
        "200,000 brackets": b"[" * 200_000,
        "no text": b"\xff\xfe",
    }.items():
        _resumed(f"M11 split.json of {name}", file("split.json", content), says=r"split\.json")
    for name, content in {
        "nothing": b"",
        "words": b"no checkpoint, but words",
        "a pickle of code": pickle.dumps(Pickled()),
    }.items():
        _resumed(f"M11 checkpoint.pt of {name}", file("checkpoint.pt", content), says=r"checkpoint\.pt")
    _resumed("M11 checkpoint.pt that is cut", _cut_checkpoint, says=r"checkpoint\.pt")
    for name, value in {
        "a number": 7, "a list": [1], "nothing in it": {}, "a history of words": {"record": {"history": "words"}},
        "tensors of another network": {"adapter": {"evil": None}},
    }.items():  # fmt: skip
        _resumed(f"checkpoint.pt of {name}", _checkpoint(value), r"checkpoint\.pt")
    _resumed("history.csv of words", file("history.csv", b"words,\xff\n=1+1"))
    _resumed("adapter.safetensors of words", file("adapter.safetensors", b"words"))
    _resumed("an unfinished checkpoint of a killed run", file(".checkpoint.pt.0badf00d.pt", b"half"))


def _cut_checkpoint(folder: Path) -> None:
    path = folder / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-5000])


def _checkpoint(value: Any) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        import torch

        whole = torch.load(folder / "checkpoint.pt", weights_only=True)
        is_part = isinstance(value, dict) and value
        torch.save({**whole, **value} if is_part else value, folder / "checkpoint.pt")

    return damage


_of_segment()
_of_train()
