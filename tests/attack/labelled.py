"""Labelled folders to train on, to score and to check, with something wrong in them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image

from tests.attack.cases import case
from tests.attack.files.pictures import coded, png
from tests.attack.observe import assert_opens, assert_plain, assert_refused, assert_untouched
from tests.attack.records import train_words
from tests.attack.world import Run, World

GROUP = "labelled folders"
VERBS = ("check", "train", "evaluate", "detector")

Damage = Callable[[Path], object]


def _run(world: World, verb: str, data: Path) -> Run:
    whole = world.with_bundle(world.kit.whole_bundle)
    words: dict[str, list[str | os.PathLike[str]]] = {
        "check": ["data", "check", data],
        "train": ["train", "--data", data, *train_words(world)[3:]],
        "evaluate": ["evaluate", "--data", data, "-o", world.output, *whole, "--device", "cpu"],
        "detector": [
            *("detector", "train", "--data", data, "-o", world.output / "d.safetensors", "--validation", data),
            *("--epochs", "1", "--input-size", "64", "--batch-size", "4", "--device", "cpu"),
        ],
    }
    return world.amsam(*words[verb], seconds=150)


def _write_down(
    name: str,
    damage: Damage,
    verbs: tuple[str, ...] = VERBS,
    may_pass: bool = False,
) -> None:
    for verb in verbs:

        @case(GROUP, f"{name}, {verb}")
        def attempt(world: World, verb: str = verb) -> None:
            data = Path(shutil.copytree(world.kit.labelled, world.root / "data"))
            damage(data)
            _ = world.before
            run = _run(world, verb, data)
            if may_pass:
                assert_plain(run, (0, 1, 2), seconds=150)
            elif verb == "check":
                assert_plain(run, (1, 2), seconds=60)
            else:
                assert_refused(run, seconds=150)
            assert_untouched(world)
            if world.output.exists():
                assert_opens(world.output)


def _mask(value: int, size: tuple[int, int] = (64, 48)) -> Callable[[Path], None]:
    def damage(data: Path) -> None:
        for path in (data / "masks").iterdir():
            PIL.Image.new("L", size, value).save(path)

    return damage


def _image(content: bytes) -> Damage:
    return lambda data: (data / "images" / "2.png").write_bytes(content)


def _cases() -> None:
    _write_down("an image of words", _image(b"no image, but words"))
    _write_down("an image cut in the middle", _image(coded("PNG")[:3000]))
    _write_down("an image that is a bomb", _image(png(60_000, 60_000, b"x")))
    _write_down("an image of nothing", _image(b""), ("check", "train"))
    _write_down("a mask of words", lambda data: (data / "masks" / "2.png").write_bytes(b"words"))
    _write_down("a mask of another size", lambda data: PIL.Image.new("L", (9, 9)).save(data / "masks" / "2.png"))
    _write_down("a mask of colours", _coloured)
    _write_down("a mask that is a pipe", lambda data: _instead(data / "masks" / "2.png", os.mkfifo))
    _write_down("an image that is endless", lambda data: _instead(data / "images" / "2.png", _endless))
    _write_down("an image without a mask", lambda data: (data / "masks" / "2.png").unlink(), ("check", "train"))
    _write_down("no images", lambda data: [path.unlink() for path in (data / "images").iterdir()])
    _write_down("no folder of masks", lambda data: shutil.rmtree(data / "masks"))
    _write_down("one image", lambda data: [path.unlink() for path in data.rglob("[1-5].png")], ("train",))
    _write_down("a name of HTML", lambda data: _renamed(data, "<script>alert(1)<b>.png"), may_pass=True)
    _write_down(
        "a name of code", lambda data: _renamed(data, "$__import__('os').system('touch PROOF').png"), may_pass=True
    )
    _write_down("a name of no UTF-8", lambda data: _renamed(data, os.fsdecode(b"caf\xe9.png")), may_pass=True)
    _write_down("a name of a formula", lambda data: _renamed(data, "=1+1.png"), may_pass=True)

    for name, value in (("black", 0), ("white", 255)):

        @case(GROUP, f"M11 masks that are all {name}, train")
        def alike(world: World, value: int = value) -> None:
            data = Path(shutil.copytree(world.kit.labelled, world.root / "data"))
            _mask(value)(data)
            _ = world.before
            run = _run(world, "train", data)
            assert_plain(run, (0, 1, 2), "(?i)mask|empty|object|black|white|background", seconds=150)
            assert_untouched(world)

    for verb in ("train", "evaluate", "detector", "check"):

        @case(GROUP, f"C2 a folder called by code, {verb}")
        def coded_data(world: World, verb: str = verb) -> None:
            name = "$__import__('os').system('touch PROOF') or 'x'"
            shutil.copytree(world.kit.labelled, world.cwd / name)
            _ = world.before
            assert_plain(_run(world, verb, Path(name)), (0,), seconds=150)
            assert_untouched(world)

    for verb in ("train", "evaluate"):

        @case(GROUP, f"C2 an output called by code, {verb}")
        def coded_output(world: World, verb: str = verb) -> None:
            world.output = Path("$__import__('os').system('touch PROOF') or 'x'")
            run = _run(world, verb, world.kit.labelled)
            assert_plain(run, (0,), seconds=150)
            assert not (world.cwd / "PROOF").exists()
            assert (world.cwd / world.output / ("adapter.safetensors" if verb == "train" else "scores.csv")).is_file()

    @case(GROUP, "C2 an output called by a reference, train")
    def referred(world: World) -> None:
        world.output = Path("@bundle_root")
        assert_plain(_run(world, "train", world.kit.labelled), (0,), seconds=150)
        assert (world.cwd / "@bundle_root" / "adapter.safetensors").is_file()

    @case(GROUP, "C2 a cache called by code, train")
    def cached(world: World) -> None:
        _ = world.before
        name = "$__import__('os').system('touch PROOF') or 'x'"
        run = world.amsam(*train_words(world, "--cache", name), seconds=150)
        assert_plain(run, (0,), seconds=150)
        assert not (world.cwd / "PROOF").exists()
        assert (world.cwd / name).is_dir()


def _coloured(data: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(data / "masks" / "2.png")


def _instead(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _renamed(data: Path, name: str) -> None:
    for kind in ("images", "masks"):
        (data / kind / "2.png").rename(data / kind / name)


_cases()
