"""Runs that are stopped, killed, starved and hurried, and files that change under their hands."""

from __future__ import annotations

import os
import shutil
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from tests.attack.cases import case
from tests.attack.files.names import pages
from tests.attack.files.pictures import coded, png, zeros_packed
from tests.attack.observe import (
    assert_no_scraps,
    assert_opens,
    assert_plain,
    assert_refused,
    assert_untouched,
    assert_whole,
)
from tests.attack.records import train_words
from tests.attack.world import Running, Skipped, World
from tests.attack.zygote import Event
from tests.small_bundle import write_picture

SIGNALS, KILLS, DISKS, CHANGES, MEMORY = "signals", "kill -9", "disks", "changing files", "memory"
PICTURES = 10

_STOPPED = {signal.SIGINT: (130,), signal.SIGTERM: (143, 130), signal.SIGHUP: (129, 130)}
"""Exit codes: 128 and the signal's number, as shells have it; or that of an interrupt."""


def _pictures(world: World, count: int = PICTURES) -> None:
    for number in range(count):
        write_picture(world.input / f"{number}.png", number)


def _archive(world: World) -> None:
    with zipfile.ZipFile(world.input / "a.zip", "w") as archive:
        for number in range(PICTURES):
            archive.write(write_picture(world.root / "x.png", number), f"{number}.png")
    (world.root / "x.png").unlink()


def _wait(until: Callable[[], bool], running: Running, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert not running.is_over, f"it has ended: {running.printed}"
        assert time.monotonic() < end, f"nothing happens in {seconds:.0f} s: {running.printed}"
        time.sleep(0.005)


def _masks(world: World) -> int:
    return len([path for path in world.output.rglob("*_segmentation.png") if not path.name.startswith(".")])


def _after(world: World) -> None:
    """The same command does the rest, and nothing of the first is left."""
    run = world.segment("--batch-size", "1", seconds=120)
    assert_plain(run, (0,), seconds=120)
    assert_untouched(world)
    assert len([row for row in assert_whole(world.output) if not row["error"]]) == PICTURES


def _signals() -> None:
    for number, codes in _STOPPED.items():
        name = signal.Signals(number).name
        low = "" if number == signal.SIGINT else "M3 "
        for kind, fill in (("a folder", _pictures), ("an archive", _archive)):

            @case(SIGNALS, f"{low}{name} while {kind} is segmented")
            def segmenting(
                world: World, number: int = number, codes: Any = codes, fill: Callable[[World], None] = fill
            ) -> None:
                fill(world)
                _ = world.before
                event = Event("os.rename", "3_segmentation.png", f"signal {number}")
                run = world.segment("--batch-size", "1", events=(event,))
                assert_plain(run, codes, "same command")
                assert_untouched(world)
                rows = assert_whole(world.output, ("interrupted",))
                assert 0 < len(rows) < PICTURES
                assert (world.output / "report.html").is_file()
                _after(world)

        @case(SIGNALS, f"{low}{name} while the network is loaded")
        def loading(world: World, number: int = number, codes: Any = codes) -> None:
            _pictures(world, 1)
            _ = world.before
            run = world.segment(events=(Event("open", "model.pt", f"signal {number}"),))
            assert_plain(run, codes)
            assert_untouched(world)
            assert not world.output.exists()

        @case(SIGNALS, f"{low}{name} while trained")
        def training(world: World, number: int = number, codes: Any = codes) -> None:
            world.kit.labelled  # noqa: B018  # made before the world is looked at
            _ = world.before
            event = Event("os.rename", "history.csv", f"signal {number}")
            run = world.amsam(*train_words(world), events=(event,))
            assert_plain(run, codes)
            assert_untouched(world)
            assert_no_scraps(world.output)
            assert_opens(world.output)

        @case(SIGNALS, f"{low}{name} while a detector is trained")
        def detecting(world: World, number: int = number, codes: Any = codes) -> None:
            words = _detector_words(world, "50")
            _ = world.before
            running = world.start(*words)
            _wait(lambda: "epoch 1/" in running.printed, running, 100)
            running.send(number)
            assert_plain(running.wait(40), codes)
            assert_untouched(world)
            assert not list(world.output.rglob("*"))

    @case(SIGNALS, "M3 SIGTERM twice")
    def twice(world: World) -> None:
        _pictures(world, 40)
        running = world.start(*world.segment_words("--batch-size", "1"))
        _wait(lambda: _masks(world) > 1, running)
        running.send(signal.SIGTERM)
        running.send(signal.SIGTERM)
        assert running.wait(30).code in (143, 130, -15)
        assert "Traceback" not in running.printed

    @case(SIGNALS, "SIGPIPE: the reader of its output has gone")
    def broken(world: World) -> None:
        _pictures(world, 2)
        _ = world.before
        run = world.segment(stdout="broken")
        assert run.code in (0, 1, 141, -13), run.printed
        assert "Traceback" not in run.printed
        assert_untouched(world)
        assert_whole(world.output)

    @case(SIGNALS, "SIGSTOP and SIGCONT, and a second run into the folder")
    def second(world: World) -> None:
        _pictures(world)
        _ = world.before
        running = world.start(*world.segment_words("--batch-size", "1"))
        _wait(lambda: _masks(world) > 0, running)
        running.send(signal.SIGSTOP)
        try:
            assert_refused(world.segment(), "another run is writing")
        finally:
            running.send(signal.SIGCONT)
        assert_plain(running.wait(), (0,))
        assert_untouched(world)
        assert len(assert_whole(world.output)) == PICTURES


def _detector_words(world: World, epochs: str) -> list[str | os.PathLike[str]]:
    data = world.kit.labelled
    chosen = ("--epochs", epochs, "--input-size", "64", "--batch-size", "4", "--device", "cpu")
    return ["detector", "train", "--data", data, "--validation", data, "-o", world.output / "d.safetensors", *chosen]


def _kills() -> None:
    moments = {
        "the journal is opened": Event("sqlite3.connect", "journal.sqlite", "signal 9"),
        "run.json is there": Event("os.rename", "run.json", "signal 9"),
        "a mask is written": Event("open", "/masks/.", "signal 9"),
        "a mask is there": Event("os.rename", "5_segmentation.png", "signal 9"),
        "an overlay is there": Event("os.rename", "5_overlay.jpg", "signal 9"),
        "the report is written": Event("open", ".report.html", "signal 9"),
    }
    for name, event in moments.items():

        @case(KILLS, f"segment, before {name}")
        def segmenting(world: World, event: Event = event) -> None:
            _pictures(world)
            _ = world.before
            assert world.segment("--batch-size", "1", events=(event,)).code == -signal.SIGKILL
            _after(world)

    @case(KILLS, "M3 segment, with an archive's members unpacked, which the next run clears away")
    def unpacked(world: World) -> None:
        _archive(world)
        _ = world.before
        event = Event("os.rename", "3_segmentation.png", "signal 9")
        assert world.segment("--batch-size", "1", events=(event,)).code == -signal.SIGKILL
        _after(world)

    @case(KILLS, "segment, three times at random")
    def random(world: World) -> None:
        _kill_at_random(world, 3)

    @case(KILLS, "segment, 20 times at random")
    def often(world: World) -> None:
        for _ in range(20):
            _kill_at_random(world, 1)
            shutil.rmtree(world.output)

    @case(KILLS, "M10 segment, within a file of many pages, whose first pages are not done again")
    def within(world: World) -> None:
        (world.input / "a.tif").write_bytes(pages(PICTURES))
        event = Event("os.rename", "a_0007_segmentation.png", "signal 9")
        assert world.segment("--batch-size", "1", events=(event,)).code == -signal.SIGKILL
        first = world.output / "masks" / "a_0001_segmentation.png"
        before = first.stat().st_mtime_ns
        _after(world)
        assert first.stat().st_mtime_ns == before, "the first page was done again"

    @case(KILLS, "Low train, while a checkpoint is written, and resumed")
    def training(world: World) -> None:
        for event in (Event("os.rename", "checkpoint.pt", "signal 9"), Event("os.rename", "adapter", "signal 9")):
            world.output = world.root / f"out-{event.path}"
            run = world.amsam(*train_words(world), events=(event,), seconds=120)
            assert run.code == -signal.SIGKILL, run.printed
            again = world.amsam(*train_words(world, "--resume"), seconds=120)
            assert_plain(again, (0,), seconds=120)
            assert_no_scraps(world.output)
            assert_opens(world.output)

    @case(KILLS, "train, at random, five times, and resumed to the same adapter")
    def resumed(world: World) -> None:
        words = train_words(world)
        words[words.index("--epochs") + 1] = "12"
        undisturbed = world.amsam(*words, seconds=200)
        assert undisturbed.code == 0, undisturbed.printed
        whole = (world.output / "adapter.safetensors").read_bytes()
        world.output = world.root / "out2"
        words[words.index("-o") + 1] = world.output
        noise = np.random.default_rng(0)
        for _ in range(5):
            running = world.start(*words, *(["--resume"] if world.output.exists() else []))
            time.sleep(float(noise.uniform(1, undisturbed.seconds)))
            running.send(signal.SIGKILL)
            running.wait(20)
        assert_plain(world.amsam(*words, "--resume", seconds=200), (0,), seconds=200)
        assert (world.output / "adapter.safetensors").read_bytes() == whole

    @case(KILLS, "detector train, and again")
    def detecting(world: World) -> None:
        running = world.start(*_detector_words(world, "50"))
        _wait(lambda: "epoch 2/" in running.printed, running, 100)
        running.send(signal.SIGKILL)
        running.wait(20)
        left = [path.name for path in world.output.rglob("*") if path.suffix != ".lock"]
        assert not left, f"half a detector: {left}"
        assert_plain(world.amsam(*_detector_words(world, "1"), seconds=120), (0,), seconds=120)
        assert_no_scraps(world.output)
        assert_opens(world.output)
        assert not list(world.tmp.iterdir()), "the temporary folder of the killed one is still there"

    @case(KILLS, "evaluate, and again")
    def evaluating(world: World) -> None:
        words = ("evaluate", "--data", world.kit.labelled, "-o", world.output, "--device", "cpu")
        words = (*words, *world.with_bundle(world.kit.whole_bundle))
        run = world.amsam(*words, events=(Event("os.rename", "scores", "signal 9"),), seconds=120)
        assert run.code == -signal.SIGKILL, run.printed
        assert_plain(world.amsam(*words, seconds=120), (0,), seconds=120)
        assert_no_scraps(world.output)
        assert_opens(world.output)


def _kill_at_random(world: World, kills: int) -> None:
    if not list(world.input.iterdir()):
        _pictures(world)
    _ = world.before
    noise = np.random.default_rng(kills)
    for _ in range(kills):
        running = world.start(*world.segment_words("--batch-size", "1"))
        masks = _masks(world) + int(noise.integers(0, 3))
        end = time.monotonic() + 60
        while not running.is_over and _masks(world) <= masks and time.monotonic() < end:
            time.sleep(0.002)
        running.send(signal.SIGKILL)
        running.wait(20)
    _after(world)


def _disks() -> None:
    for size in ("64k", "200k"):

        @case(DISKS, f"segment into {size}")
        def small(world: World, size: str = size) -> None:
            _pictures(world)
            disk = world.small_disk("disk", size)
            world.output = disk / "out"
            run = world.segment()
            assert_refused(run, "Make room")
            world.enlarge(disk, "20m")  # SQLite keeps a log beside a journal for which there was no room
            assert_plain(world.segment(), (0,))
            assert len(assert_whole(world.output)) == PICTURES

    @case(DISKS, "M11 train into 200k")
    def training(world: World) -> None:
        disk = world.small_disk("disk", "200k")
        world.output = disk / "out"
        run = world.amsam(*train_words(world), seconds=120)
        assert_refused(run, "(?i)space|room", seconds=120)
        assert_no_scraps(world.output)

    @case(DISKS, "M11 train into 2m, where the checkpoint does not fit")
    def nearly(world: World) -> None:
        disk = world.small_disk("disk", "2m")
        world.output = disk / "out"
        run = world.amsam(*train_words(world), seconds=120)
        assert run.code == 0 or assert_refused(run, "(?i)space|room", seconds=120) is None
        assert_no_scraps(world.output)

    @case(DISKS, "evaluate into 8k")
    def evaluating(world: World) -> None:
        disk = world.small_disk("disk", "8k")
        words = ("evaluate", "--data", world.kit.labelled, "-o", disk / "out", "--device", "cpu")
        run = world.amsam(*words, *world.with_bundle(world.kit.whole_bundle), seconds=120)
        assert_refused(run, "(?i)space|room", seconds=120)

    @case(DISKS, "detector train into 200k")
    def detecting(world: World) -> None:
        disk = world.small_disk("disk", "200k")
        world.output = disk / "out"
        run = world.amsam(*_detector_words(world, "1"), seconds=120)
        assert_plain(run, (1,), "(?i)space|room", seconds=120)  # after the line of an epoch
        assert_no_scraps(world.output)

    for verb in ("segment", "detector"):

        @case(DISKS, f"a temporary folder of 16k, {verb}")
        def temporary(world: World, verb: str = verb) -> None:
            _archive(world)
            disk = world.small_disk("small-tmp", "16k")
            environment = world.environment(TMPDIR=str(disk))
            words = world.segment_words() if verb == "segment" else _detector_words(world, "1")
            run = world.amsam(*words, environment=environment, seconds=120)
            assert_plain(run, (1,), "(?i)space|room", seconds=120)

    @case(DISKS, "an output folder that may not be written to")
    def locked(world: World) -> None:
        _pictures(world, 2)
        world.output.mkdir()
        world.output.chmod(0o555)
        _ = world.before
        assert_refused(world.segment(), "out")
        assert_untouched(world)

    @case(DISKS, "a disk that may only be read")
    def read_only(world: World) -> None:
        import subprocess

        _pictures(world, 2)
        disk = world.small_disk("disk", "1m")
        done = subprocess.run(["mount", "-o", "remount,ro", disk], capture_output=True)
        if done.returncode != 0:
            raise Skipped("a disk cannot be made read-only here")
        world.output = disk / "out"
        assert_refused(world.segment(), "disk")

    @case(DISKS, "files of at most 20,000 bytes")
    def short(world: World) -> None:
        _pictures(world, 3)
        _ = world.before
        run = world.segment(limits={"RLIMIT_FSIZE": 20_000})
        assert_plain(run, (1,))
        assert_untouched(world)

    @case(DISKS, "at most 64 open files")
    def few(world: World) -> None:
        _pictures(world, 30)
        _ = world.before
        run = world.segment("--batch-size", "16", limits={"RLIMIT_NOFILE": 64})
        assert_plain(run, (0, 1))
        assert_untouched(world)

    @case(DISKS, "a slow one: each file takes 30 ms to open")
    def slow(world: World) -> None:
        _pictures(world, 6)
        _ = world.before
        run = world.segment(events=(Event("open", str(world.root), "sleep 0.03"),))
        assert_plain(run, (0,))
        assert_untouched(world)
        assert len(assert_whole(world.output)) == 6

    for name, place in {
        "within the input": "in/out",
        "that is the input": "in",
        "within a folder of the input that is not there yet": "in/a/b/c",
    }.items():

        @case(DISKS, f"an output {name}")
        def within(world: World, place: str = place) -> None:
            _pictures(world, 3)
            originals = {path: path.read_bytes() for path in world.input.iterdir()}
            world.output = world.root / place
            for _ in range(2):
                assert_plain(world.segment(), (0,))
            assert all(path.read_bytes() == content for path, content in originals.items())
            assert len(assert_whole(world.output)) == 3

    for name, make in {
        "is a file": lambda path: path.write_bytes(b"precious"),
        "is a link to nothing": lambda path: path.symlink_to("nowhere"),
        "is a link to itself": lambda path: path.symlink_to(path.name),
        "is a pipe": os.mkfifo,
    }.items():

        @case(DISKS, f"an output that {name}")
        def odd(world: World, make: Callable[[Path], object] = make) -> None:
            _pictures(world, 1)
            make(world.root / "odd")
            world.output = world.root / "odd"
            run = world.segment()
            if run.code != 0:
                assert_refused(run, "odd")
            assert_plain(run, (0, 1, 2))

    for name, path in {
        "below a file": "a.png/out",
        "among the processes": "/proc/out",
        "of 5,000 letters": "x" * 5000,
        "of 300 letters": "x" * 300,
        "of 3,000 folders": "d/" * 1900,
    }.items():

        @case(DISKS, f"Low an output {name}" if "letters" in name else f"an output {name}")
        def nowhere(world: World, path: str = path) -> None:
            _pictures(world, 1)
            world.output = Path(path) if path.startswith("/") else world.root / path
            run = world.segment()
            if run.code != 0:
                assert_refused(run)
            assert_plain(run, (0, 1, 2))

    @case(DISKS, "Low an output that is no path at all")
    def empty(world: World) -> None:
        _pictures(world, 1)
        world.output = world.root / "unused"
        _ = world.before
        run = world.amsam("segment", world.input, "-o", "", *world.with_bundle(), "--device", "cpu")
        assert_plain(run, (1, 2))
        assert_untouched(world)


def _changes() -> None:
    @case(CHANGES, "a picture that is gone while it is segmented")
    def gone(world: World) -> None:
        _pictures(world, 4)
        victim = world.input / "2.png"
        run = world.segment("--batch-size", "1", events=(Event("os.rename", "run.json", f"remove {victim}"),))
        assert_plain(run, (0, 1))
        rows = assert_whole(world.output)
        assert len(rows) == 4

    @case(CHANGES, "a picture that is emptied while it is segmented")
    def emptied(world: World) -> None:
        _pictures(world, 4)
        victim = world.input / "1.png"
        run = world.segment("--batch-size", "1", events=(Event("open", "0_segmentation", f"truncate {victim}"),))
        assert_plain(run, (0, 1))
        assert len(assert_whole(world.output)) == 4

    @case(CHANGES, "H5 a volume that is emptied while it is read")
    def volume(world: World) -> None:
        values = np.random.default_rng(0).integers(0, 999, (256, 256, 60), dtype=np.int16)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), world.input / "a.nii")
        write_picture(world.input / "b.png")
        victim = world.input / "a.nii"
        event = Event("open", "a_0001_segmentation", f"truncate {victim}")
        run = world.segment("--batch-size", "1", events=(event,))
        assert_plain(run, (0, 1), "Results are in")
        rows = assert_whole(world.output)
        assert [row for row in rows if row["file"].endswith("b.png") and not row["error"]]

    @case(CHANGES, "an archive that is emptied while it is read")
    def archive(world: World) -> None:
        _archive(world)
        victim = world.input / "a.zip"
        event = Event("open", "0_segmentation", f"truncate {victim}")
        run = world.segment("--batch-size", "1", events=(event,))
        assert_plain(run, (0, 1), "Results are in")
        assert len(assert_whole(world.output)) == PICTURES

    @case(CHANGES, "an input folder that is gone before it is read")
    def folder(world: World) -> None:
        _pictures(world, 4)
        (world.input / "sub").mkdir()
        write_picture(world.input / "sub" / "a.png")
        event = Event("open", "model.pt", f"remove {world.input / 'sub' / 'a.png'}")
        run = world.segment(events=(event,))
        assert_plain(run, (0, 1))

    @case(CHANGES, "a result that is gone is made again")
    def result(world: World) -> None:
        _pictures(world, 3)
        assert world.segment().code == 0
        (world.output / "masks" / "1_segmentation.png").unlink()
        (world.output / "overlays" / "2_overlay.jpg").write_bytes(b"")
        assert_plain(world.segment(), (0,), "done +2")
        assert_whole(world.output)

    @case(CHANGES, "an output folder that is deleted meanwhile")
    def deleted(world: World) -> None:
        _pictures(world, 30)
        running = world.start(*world.segment_words("--batch-size", "1"))
        _wait(lambda: _masks(world) > 1, running)
        shutil.rmtree(world.output, ignore_errors=True)
        assert_plain(running.wait(60), (0, 1))

    @case(CHANGES, "two runs into two folders at once")
    def two(world: World) -> None:
        _pictures(world, 6)
        _ = world.before
        first = world.start(*world.segment_words())
        world.output = world.root / "out"
        second = world.amsam("segment", world.input, "-o", world.output / "2", *world.with_bundle(), "--device", "cpu")
        assert_plain(second, (0, 1, 2))
        assert_plain(first.wait(), (0, 1))

    @case(CHANGES, "two runs into one folder at once")
    def one(world: World) -> None:
        _pictures(world, 6)
        _ = world.before
        runs = [world.start(*world.segment_words()) for _ in range(2)]
        ended = [running.wait() for running in runs]
        assert {run.code for run in ended} in ({0}, {0, 1}), [run.printed for run in ended]
        for run in ended:
            assert_plain(run, (0, 1), "another run is writing|Results are in")
        assert_untouched(world)
        assert len(assert_whole(world.output)) == 6


def _memory() -> None:
    @case(MEMORY, "M2 four pictures of 84 megapixels")
    def large(world: World) -> None:
        side = 9165
        for number in range(4):
            packed = zeros_packed(((side // 8 + 1) * side >> 20) + 1 << 20)
            (world.input / f"{number}.png").write_bytes(png(side, side, packed, bits=1, colour=0))
        _ = world.before
        run = world.segment(seconds=400, megabytes=6000)
        assert_plain(run, (0, 1), seconds=400, megabytes=2500)
        assert_untouched(world)
        assert len(assert_whole(world.output)) == 4

    @case(MEMORY, "M2 a file of eight pages of 84 megapixels")
    def of_pages(world: World) -> None:
        import PIL.Image

        page = PIL.Image.new("1", (9165, 9165))
        content = coded("TIFF", page, save_all=True, append_images=[page] * 7, compression="group4")
        (world.input / "a.tif").write_bytes(content)
        _ = world.before
        run = world.segment(seconds=590, megabytes=6000)
        assert_plain(run, (0, 1), seconds=590, megabytes=2500)
        assert_untouched(world)

    @case(MEMORY, "M2 eight pictures of 24 megapixels, eight at once")
    def several(world: World) -> None:
        side = 4900
        for number in range(8):
            packed = zeros_packed(((side // 8 + 1) * side >> 20) + 1 << 20)
            (world.input / f"{number}.png").write_bytes(png(side, side, packed, bits=1, colour=0))
        _ = world.before
        run = world.segment("--batch-size", "8", seconds=240, megabytes=6000)
        assert_plain(run, (0,), seconds=240, megabytes=1500)
        assert_untouched(world)

    @case(MEMORY, "M2 too little for a picture is not said to be the picture's fault")
    def too_little(world: World) -> None:
        packed = zeros_packed(64 << 20)
        (world.input / "a.png").write_bytes(png(7000, 7000, packed, bits=8, colour=0))
        write_picture(world.input / "b.png")
        _ = world.before
        run = world.segment(megabytes=300)
        assert_plain(run, (0, 1))
        assert not any(words in run.printed for words in ("damaged", "Export it again", "MemoryError"))
        assert_untouched(world)

    @case(MEMORY, "M1 an archive of 20 members of 100 MB, a temporary folder of 1 GB")
    def members(world: World) -> None:
        with zipfile.ZipFile(world.input / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(20):
                archive.writestr(f"{number}.png", bytes(100 << 20))
        disk = world.small_disk("small-tmp", "1g")
        run = world.segment(environment=world.environment(TMPDIR=str(disk)), seconds=200)
        assert_plain(run, (1,), "Results are in", seconds=200)
        errors = [row["error"] for row in assert_whole(world.output)]
        assert not [error for error in errors if "room" in error], "more was unpacked at once than there is room"


_signals()
_kills()
_disks()
_changes()
_memory()
