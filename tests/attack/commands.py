"""Words, streams and environments that nobody in their right mind would give."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tests.attack.cases import case
from tests.attack.observe import assert_plain, assert_refused, assert_untouched, assert_whole
from tests.attack.world import World
from tests.attack.zygote import BROKEN, CLOSED
from tests.small_bundle import write_picture

WORDS, STREAMS, ENVIRONMENT = "words", "streams", "environment"


def _words() -> None:
    given = {
        "Low an input of 5,000 letters": ["segment", "x" * 5000, "-o", "{out}"],
        "Low an adapter of 5,000 letters": ["segment", "{in}", "-o", "{out}", "--adapter", "x" * 5000],
        "Low a folder of 5,000 letters to train on": ["train", "--data", "x" * 5000, "-o", "{out}"],
        "Low a folder of 5,000 letters to check": ["data", "check", "x" * 5000],
        "a detector of 5,000 letters": ["segment", "{in}", "-o", "{out}", "--detector", "x" * 5000],
        "weights of 5,000 letters": ["weights", "verify", "x" * 5000],
        "weights called by a path": ["weights", "get", "../../etc/passwd"],
        "no input": ["segment", "-o", "{out}"],
        "an input of nothing": ["segment", "", "-o", "{out}"],
        "an input that is not there": ["segment", "{in}/nobody.png", "-o", "{out}"],
        "an input with a line feed": ["segment", "{in}/a\nb.png", "-o", "{out}"],
        "an input of no UTF-8": ["segment", os.fsdecode(b"{in}/\xff\xfe.png"), "-o", "{out}"],
        "an input that is a pipe": ["segment", "{in}/pipe.png", "-o", "{out}"],
        "an input that is endless": ["segment", "/dev/zero", "-o", "{out}"],
        "an input that is a process' memory": ["segment", "/proc/self/mem", "-o", "{out}"],
        "an input that is words": ["segment", "{cwd}/notes.txt", "-o", "{out}"],
        "a window of no numbers": ["segment", "{in}", "-o", "{out}", "--window", "nan", "1"],
        "a window of infinity": ["segment", "{in}", "-o", "{out}", "--window", "0", "inf"],
        "a window of no width": ["segment", "{in}", "-o", "{out}", "--window", "40", "0"],
        "a batch of 0": ["segment", "{in}", "-o", "{out}", "--batch-size", "0"],
        "a format that there is not": ["segment", "{in}", "-o", "{out}", "--format", "../../x"],
        "a format of HTML": ["segment", "{in}", "-o", "{out}", "--format", "<script>"],
        "an address without a cluster": ["segment", "{in}", "-o", "{out}", "--address", "evil:1"],
        "Low a server's address that is none": ["segment", "dicomweb:http://[::1", "-o", "{out}"],
        "a server's address of nothing": ["segment", "dicomweb:", "-o", "{out}"],
        "a server's address of a file": ["segment", "dicomweb:file:///etc/passwd", "-o", "{out}"],
        "a server's address of a port that there is not": [
            "segment",
            "dicomweb:http://127.0.0.1:99999/",
            "-o",
            "{out}",
        ],
        "a server's address with a password": ["segment", "dicomweb:http://u:p@127.0.0.1:9/", "-o", "{out}"],
        "a server that is not there": ["segment", "dicomweb:http://127.0.0.1:9/dicom-web", "-o", "{out}"],
        "a server's address with line feeds": ["segment", "dicomweb:http://127.0.0.1:9/\r\nEvil: x", "-o", "{out}"],
        "shots of 1e9": ["train", "--data", "{labelled}", "-o", "{out}", "--shots", "1000000000"],
        "shots of another script": ["train", "--data", "{labelled}", "-o", "{out}", "--shots", "²"],
        "an input size of 1e9": ["train", "--data", "{labelled}", "-o", "{out}", "--input-size", "1000000000"],
        "a seed of 1e30": ["train", "--data", "{labelled}", "-o", "{out}", "--seed", str(10**30), "--shots", "4"],
        "a detector's input size of -5": [
            "detector",
            "train",
            "--data",
            "{labelled}",
            "-o",
            "{out}/d",
            "--input-size=-5",
        ],
        "a detector into a folder": ["detector", "train", "--data", "{labelled}", "-o", "{in}"],
        "a detector from a pickle": [
            "detector",
            "train",
            "--data",
            "{labelled}",
            "-o",
            "{out}/d",
            "--from",
            "{cwd}/notes.txt",
        ],
        "a new bundle over what is there": ["bundle", "new", "{cwd}"],
        "a new bundle called by an expression": ["bundle", "new", "{out}/$print(1)"],
        "a new bundle of 5,000 letters": ["bundle", "new", "x" * 5000],
        "a new bundle whose class is code": ["bundle", "new", "{out}/b", "--class-name", "$__import__('os').abort()"],
        "a new bundle of a source of 5,000 letters": ["bundle", "new", "{out}/b", "--from", "x" * 5000],
        "a new bundle with words as its detector": ["bundle", "new", "{out}/b", "--detector", "{cwd}/notes.txt"],
        "a verb that there is not": ["destroy"],
        "a mirror that is a file": ["weights", "get", "vit_b", "--base-url", "file:///etc", "--weights-dir", "{out}"],
        "a mirror that is not there": [
            "weights",
            "get",
            "tiny",
            "--base-url",
            "http://127.0.0.1:9",
            "--weights-dir",
            "{out}",
        ],
        "an archive of words to import": ["data", "import", "tiktok", "{cwd}/notes.txt", "-o", "{out}"],
    }
    for name, words in given.items():

        @case(WORDS, name)
        def attempt(world: World, words: list[str] = words) -> None:
            write_picture(world.input / "a.png")
            os.mkfifo(world.input / "pipe.png")
            places = {"{in}": world.input, "{out}": world.output, "{cwd}": world.cwd, "{labelled}": world.kit.labelled}
            filled = words
            for mark, place in places.items():
                filled = [word.replace(mark, str(place)) for word in filled]
            if filled[0] == "segment":
                filled = [*filled, *map(str, world.with_bundle()), "--device", "cpu"]
            _ = world.before
            run = world.amsam(*filled, seconds=60)
            assert_plain(run, (1, 2))
            assert_untouched(world)


def _streams() -> None:
    for name, streams in {
        "no standard output": {"stdout": CLOSED},
        "Low no standard error": {"stderr": CLOSED},
        "no standard input": {"stdin": CLOSED},
        "no stream at all": {"stdin": CLOSED, "stdout": CLOSED, "stderr": CLOSED},
        "a pipe that nobody reads": {"stdout": BROKEN},
        "Low a full device": {"stdout": "/dev/full"},
        "a full device for errors": {"stderr": "/dev/full"},
    }.items():

        @case(STREAMS, f"{name}, segment")
        def segmenting(world: World, streams: dict[str, str] = streams) -> None:
            write_picture(world.input / "a.png")
            (world.input / "b.png").write_bytes(b"words")
            _ = world.before
            run = world.segment(**streams)  # type: ignore[arg-type]
            assert "Traceback" not in run.printed, run.printed
            assert "Exception ignored" not in run.printed, run.printed
            wanted = 141 if BROKEN in streams.values() else 1  # as shells have it where the reader has gone
            assert run.code == wanted, f"exit code {run.code} and not {wanted}: {run.printed}"
            assert_untouched(world)
            assert len(assert_whole(world.output)) == 2

        @case(STREAMS, f"{name}, weights")
        def listing(world: World, streams: dict[str, str] = streams) -> None:
            run = world.amsam("weights", "list", **streams)  # type: ignore[arg-type]
            assert "Traceback" not in run.printed, run.printed
            assert "Exception ignored" not in run.printed, run.printed
            assert run.code in (0, 1, 141), f"exit code {run.code}: {run.printed}"

    @case(STREAMS, "Low no standard error, and a fault to tell of")
    def silent(world: World) -> None:
        run = world.amsam("weights", "verify", "nobody", stderr=CLOSED)
        assert run.code == 1

    @case(STREAMS, "a fault to tell of on an output that takes no umlaut")
    def ascii_only(world: World) -> None:
        write_picture(world.input / "Ünï ☃.png")
        (world.input / "病変.png").write_bytes(b"words")
        environment = world.environment(PYTHONIOENCODING="ascii", LC_ALL="C", LANG="C")
        run = world.segment(environment=environment)
        assert_plain(run, (1,), "Results are in")


def _environment() -> None:
    changes: dict[str, Callable[[World], dict[str, str | None]]] = {
        "no HOME": lambda world: {"HOME": None},
        "a HOME that is not there": lambda world: {"HOME": "/nowhere/at/all"},
        "a HOME that is a file": lambda world: {"HOME": str(world.root / "a.png")},
        "Low a TMPDIR that is not there": lambda world: {"TMPDIR": "/nowhere/at/all"},
        "Low a TMPDIR that may not be written to": lambda world: {"TMPDIR": str(_locked(world))},
        "no PATH": lambda world: {"PATH": None},
        "no language": lambda world: {"LANG": None, "LC_ALL": None},
        "a language that there is not": lambda world: {"LC_ALL": "xx_XX.KOI9"},
        "weights in a folder that is not there": lambda world: {"AMSAM_WEIGHTS": "/nowhere/at/all"},
        "weights in a folder of code": lambda world: {"AMSAM_WEIGHTS": "$__import__('os').system('touch PROOF')"},
        "a cache in a file": lambda world: {"XDG_CACHE_HOME": str(world.root / "a.png")},
        "a token with a line feed": lambda world: {"AMSAM_DICOMWEB_TOKEN": "a\r\nEvil: x"},
        "nothing but a path": lambda world: {name: None for name in world.environment() if name != "PATH"},
        "threads of no number": lambda world: {"OMP_NUM_THREADS": "many", "MKL_NUM_THREADS": "-1"},
    }
    for name, change in changes.items():

        @case(ENVIRONMENT, name)
        def attempt(world: World, change: Callable[[World], dict[str, str | None]] = change) -> None:
            write_picture(world.input / "a.png")
            changed = change(world)
            _ = world.before
            run = world.segment(environment=world.environment(**changed))
            if "TMPDIR" in changed and run.code != 0:
                assert_refused(run, "(?i)temporary folder|TMPDIR|XDG_CONFIG_HOME")  # what to name another one with
            else:
                assert_plain(run, (0,))
                assert_whole(world.output)
            assert_untouched(world)

    @case(ENVIRONMENT, "Low no temporary folder at all, an archive")
    def archive(world: World) -> None:
        import zipfile

        with zipfile.ZipFile(world.input / "a.zip", "w") as made:
            made.write(write_picture(world.root / "b.png"), "b.png")
        _ = world.before
        run = world.segment(environment=world.environment(TMPDIR=str(_locked(world))))
        assert_plain(run, (0, 1))

    @case(ENVIRONMENT, "a working directory that is gone")
    def gone(world: World) -> None:
        write_picture(world.input / "a.png")
        world.cwd = world.root / "gone"
        world.cwd.mkdir()
        assert_plain(world.segment(is_cwd_removed=True), (0, 1, 2))

    @case(ENVIRONMENT, "code in the working directory under the names of modules")
    def modules(world: World) -> None:
        write_picture(world.input / "a.png")
        for name in ("torch", "json", "monai", "sitecustomize", "amsam_med", "ultralytics"):
            (world.cwd / f"{name}.py").write_text("import os; os.system('touch PROOF')\n")
        (world.cwd / "yolov8n.yaml").write_text("nc: 99\n")
        _ = world.before
        assert_plain(world.segment(), (0,))
        assert_untouched(world)


def _locked(world: World) -> Any:
    folder = world.root / "locked"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o555)
    return folder


_words()
_streams()
_environment()
