"""Bundles of somebody else's: code in configurations, and configurations that are none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.attack.cases import case
from tests.attack.observe import assert_plain, assert_refused, assert_untouched
from tests.attack.weights import assert_nothing_made, segment_with
from tests.attack.world import World
from tests.small_bundle import write_picture

GROUP = "bundles"
_TOUCH = "__import__('os').system('touch PROOF')"
_IN_INFERENCE = {
    "an expression": f"evil: ${_TOUCH}\ninitialize: ['@evil']\n",
    "an import": "imports: ['$import os', \"$os.system('touch PROOF')\"]\n",
    "a call": "device: {_target_: os.system, command: touch PROOF}\n",
    "a tag of YAML": "input_size: !!python/object/apply:os.system ['touch PROOF']\n",
    "a macro": "network_def: '%/etc/passwd::root'\n",
}


def _copy(world: World, source: Path | None = None) -> Path:
    return Path(shutil.copytree(source or world.bundle, world.root / "evil_bundle"))


def _untrusted(name: str, verb: str, make: Callable[[Path], object]) -> None:
    """Write down a bundle with code that nobody has said to trust: it must be refused, and say how to trust it."""

    @case(GROUP, f"not trusted, {name}, {verb}")
    def attempt(world: World) -> None:
        bundle = _copy(world, world.kit.whole_bundle)
        make(bundle)
        write_picture(world.input / "a.png")
        source = [world.input] if verb == "segment" else ["--data", world.kit.labelled]
        _ = world.before
        run = world.amsam(verb, *source, "-o", world.output, "--bundle", bundle, "--device", "cpu")
        assert_refused(run, "--trust-bundle", seconds=30)
        assert_nothing_made(world)


def _code() -> None:
    for name, text in _IN_INFERENCE.items():

        def make(bundle: Path, text: str = text) -> None:
            path = bundle / "configs" / "inference.yaml"
            key = text.split(":", 1)[0]
            lines = [line for line in path.read_text().splitlines(keepends=True) if not line.startswith(f"{key}:")]
            path.write_text("".join(lines) + text)

        _untrusted(name, "segment", make)
        _untrusted(name, "evaluate", make)

    def in_training(bundle: Path) -> None:
        with (bundle / "configs" / "train.yaml").open("a") as file:
            file.write(f"evil: ${_TOUCH}\n")

    _untrusted("an expression", "train", in_training)
    _untrusted("as it was shipped, but in another place", "segment", lambda bundle: None)

    @case(GROUP, "not trusted, called like a shipped one in the working directory")
    def named(world: World) -> None:
        shutil.copytree(world.kit.whole_bundle, world.cwd / "amsam_isic")
        with (world.cwd / "amsam_isic" / "configs" / "inference.yaml").open("a") as file:
            file.write(f"evil: ${_TOUCH}\ninitialize: ['@evil']\n")
        write_picture(world.input / "a.png")
        _ = world.before
        run = world.amsam("segment", world.input, "-o", world.output, "--bundle", "amsam_isic", "--device", "cpu")
        assert_plain(run, (0, 1, 2))
        assert_untouched(world)

    @case(GROUP, "trusted, and then changed")
    def changed(world: World) -> None:
        bundle = _copy(world)
        assert_plain(segment_with(world, bundle=bundle), (0,))
        with (bundle / "configs" / "inference.yaml").open("a") as file:
            file.write(f"evil: ${_TOUCH}\ninitialize: ['@evil']\n")
        run = world.amsam("segment", world.input, "-o", world.root / "out2", "--bundle", bundle, "--device", "cpu")
        assert_refused(run, "--trust-bundle")
        assert not (world.cwd / "PROOF").exists()


def _damaged(name: str, file_name: str, make: Callable[[Path], object], says: str = "") -> None:
    """Write down a trusted bundle whose configuration is no configuration."""

    @case(GROUP, name)
    def attempt(world: World) -> None:
        bundle = _copy(world)
        path = bundle / "configs" / file_name
        path.unlink()
        make(path)
        run = segment_with(world, bundle=bundle)
        assert_refused(run, says or r"evil_bundle|inference\.yaml|metadata\.json", seconds=30, megabytes=900)
        assert_nothing_made(world)


def _files() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
    )
    texts = {
        "of nothing": "",
        "that is no YAML": "network: [unclosed",
        "of a list": "- a\n- b\n",
        "of a number": "7\n",
        "of null": "null\n",
        "with a tab": "network:\n\t- a\n",
        "of bytes that are no text": "\ud800",
        "without a network": "bundle_root: .\nadapter: null\n",
        "of references in a ring": "bundle_root: .\na: '@b'\nb: '@a'\nnetwork: '@a'\n",
        "of a reference to itself": "bundle_root: .\nnetwork: '@network'\n",
        "of a network that there is not": "bundle_root: .\nnetwork: {_target_: amsam_med.nobody}\n",
        "of a macro without a file": "bundle_root: .\nnetwork: '%nobody.yaml::network'\n",
        "of YAML that grows to 3 GB": bomb,
        "of 20,000 brackets": "a: " + "[" * 20_000,
    }
    for name, text in texts.items():
        low = "Low " if name in ("of nothing", "that is no YAML", "of a list") else ""
        content = text.encode("utf-8", errors="surrogatepass")
        _damaged(
            f"{low}inference.yaml {name}", "inference.yaml", lambda path, content=content: path.write_bytes(content)
        )
    for name, text in {
        "of nothing": "",
        "that is no JSON": "{",
        "of a list": "[]",
        "of a number": "7",
        "of null": "null",
        "of 100,000 brackets": "[" * 100_000,
        "of bytes that are no text": "\ud800",
    }.items():
        low = "Low " if name in ("of nothing", "that is no JSON") else ""
        content = text.encode("utf-8", errors="surrogatepass")
        _damaged(f"{low}metadata.json {name}", "metadata.json", lambda path, content=content: path.write_bytes(content))
    for name in ("inference.yaml", "metadata.json"):
        _damaged(f"{name} that is a pipe", name, lambda path: os.mkfifo(path))
        _damaged(f"{name} that is endless", name, lambda path: path.symlink_to("/dev/zero"))
        _damaged(f"{name} that is a folder", name, lambda path: path.mkdir())
    _damaged("inference.yaml that nobody may read", "inference.yaml", _locked)
    _damaged("inference.yaml that is not there", "inference.yaml", lambda path: None)

    @case(GROUP, "whose metadata name HTML for a version and a segment")
    def html(world: World) -> None:
        bundle = _copy(world)
        path = bundle / "configs" / "metadata.json"
        path.write_text(path.read_text().replace('"version": "', '"version": "<script>alert(1)</script>', 1))
        run = segment_with(world, bundle=bundle)
        assert_plain(run, (0, 1, 2))
        assert_untouched(world)
        page = world.output / "report.html"
        assert not page.exists() or "<script>alert(1)" not in page.read_text()

    for name, path in {
        "no path": "",
        "a path of 5,000 letters": "x" * 5000,
        "a path to the processes": "/proc/self",
        "code": f"${_TOUCH}",
        "a reference": "@bundle_root",
    }.items():

        @case(GROUP, f"called by {name}")
        def called(world: World, path: str = path) -> None:
            write_picture(world.input / "a.png")
            _ = world.before
            run = world.amsam("segment", world.input, "-o", world.output, "--bundle", path, "--device", "cpu")
            assert_refused(run, "bundle")
            assert_nothing_made(world)

    @case(GROUP, "C2 in a folder called by code")
    def in_code(world: World) -> None:
        bundle = world.cwd / f"${_TOUCH} or '.'"
        shutil.copytree(world.bundle, bundle)
        assert_plain(segment_with(world, bundle=bundle), (0,))
        assert_untouched(world)


def _locked(path: Path) -> None:
    path.write_text("bundle_root: .\n")
    path.chmod(0)


_code()
_files()
