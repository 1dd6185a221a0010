"""Adapters, detectors, bases and models that somebody else has made: code in headers, lies, numbers that are none."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tests.attack.cases import case
from tests.attack.observe import (
    assert_plain,
    assert_refused,
    assert_untouched,
    assert_whole,
)
from tests.attack.world import Run, World
from tests.small_bundle import write_picture

ADAPTERS, DETECTORS, MODELS = "adapters", "detectors", "bases and models"

Damage: TypeAlias = Callable[[bytes], bytes]
"""What becomes of a file's bytes."""


class Tensors:
    """A file of safetensors, taken apart.

    Args:
        content: Of the file.

    Attributes:
        header: As the file says it: ``__metadata__``, and type, shape and place by tensor.
        data: All tensors' bytes.
    """

    def __init__(self, content: bytes) -> None:
        length = struct.unpack("<Q", content[:8])[0]
        self.header: dict[str, Any] = json.loads(content[8 : 8 + length])
        self.data = bytearray(content[8 + length :])

    @property
    def metadata(self) -> dict[str, str]:
        """What the maker says about the file: text by name."""
        found: dict[str, str] = self.header["__metadata__"]
        return found

    @property
    def names(self) -> list[str]:
        """Of the tensors, in order."""
        return [name for name in self.header if name != "__metadata__"]

    @property
    def first(self) -> dict[str, Any]:
        """What the header says of the first tensor of more than one axis, whose shape matters."""
        entry: dict[str, Any] = next(self.header[name] for name in self.names if len(self.header[name]["shape"]) > 1)
        return entry

    def fill(self, value: float, names: list[str] | None = None) -> None:
        """Put one number everywhere in tensors of floats."""
        for name in names or self.names:
            kind = {"F32": np.float32, "F16": np.float16}.get(self.header[name]["dtype"])
            if kind is not None:
                start, end = self.header[name]["data_offsets"]
                count = (end - start) // np.dtype(kind).itemsize
                self.data[start:end] = np.full(count, value, kind).tobytes()

    def unsign(self) -> None:
        """Take the digest of the tensors away: older adapters have none, and a liar would make it fit."""
        self.metadata.pop("state_sha256", None)

    def content(self) -> bytes:
        """The file again."""
        header = json.dumps(self.header).encode()
        return struct.pack("<Q", len(header)) + header + bytes(self.data)


def edited(edit: Callable[[Tensors], object], is_noticed: bool = False) -> Damage:
    """Damage to the parts of a file.

    Args:
        edit: Does it.
        is_noticed: Whether the header still has the digest of what the tensors were.
    """

    def damage(content: bytes) -> bytes:
        file = Tensors(content)
        edit(file)
        if not is_noticed:
            file.unsign()
        return file.content()

    return damage


def settings(**changes: Any) -> Damage:
    """Change entries of an adapter's settings; ``_GONE`` takes one away."""

    def edit(file: Tensors) -> None:
        entries = {**json.loads(file.metadata["settings"]), **changes}
        file.metadata["settings"] = json.dumps({name: value for name, value in entries.items() if value is not _GONE})

    return edited(edit)


def record(**changes: Any) -> Damage:
    """Change entries of an adapter's record."""

    def edit(file: Tensors) -> None:
        file.metadata["record"] = json.dumps({**json.loads(file.metadata["record"]), **changes})

    return edited(edit)


def metadata(**changes: str | None) -> Damage:
    """Change what stands in the header besides tensors; None takes an entry away."""

    def edit(file: Tensors) -> None:
        for name, text in changes.items():
            if text is None:
                del file.metadata[name]
            else:
                file.metadata[name] = text

    return edited(edit)


def tensor(**changes: Any) -> Damage:
    """Change what the header says of the first tensor of more than one axis."""
    return edited(lambda file: file.first.update(changes))


_GONE = object()
_TOUCH = "__import__('os').system('touch PROOF')"
CODE = f"${_TOUCH}"
"""An expression of a configuration that leaves a file behind where it is evaluated."""
_CALLED = {"_target_": "os.system", "command": "touch PROOF"}


def segment_with(
    world: World, *words: str | os.PathLike[str], bundle: Path | None = None, picture: bool = True, **more: Any
) -> Run:
    """Segment a picture with weights that a case has made."""
    if picture:
        write_picture(world.input / "a.png")
    _ = world.before
    return world.amsam(
        *("segment", world.input, "-o", world.output, *world.with_bundle(bundle), "--device", "cpu", *words), **more
    )


def assert_nothing_made(world: World) -> None:
    """A refusal comes before anything is written."""
    assert_untouched(world)
    left = [path.name for path in world.output.rglob("*")] if world.output.exists() else []
    assert not left, f"refused, and yet it has written {left[:5]}"


def _adapter(name: str, damage: Damage, says: str = "") -> None:
    """Write down an adapter that must be refused before anything is written."""

    @case(ADAPTERS, name)
    def attempt(world: World) -> None:
        path = world.root / "evil.safetensors"
        path.write_bytes(damage(world.kit.adapter.read_bytes()))
        run = segment_with(world, "--adapter", path, "--base-weights", world.kit.base)
        assert_refused(run, says or "evil.safetensors", seconds=30, megabytes=700)
        assert_nothing_made(world)


def _code() -> None:
    for key in ("rank", "input_size", "base", "calibration", "prompt", "alpha", "num_classes"):
        _adapter(f"C1 code in {key}", settings(**{key: f"${_TOUCH} or 4"}))
        _adapter(f"C1 a call in {key}", settings(**{key: _CALLED}))
    for name, value in {
        "a reference": "@bundle_root",
        "a reference that leads nowhere": "@nobody",
        "a macro": "%inference.yaml",
        "a file for a macro": "%/etc/passwd::root",
        "a list of code": [f"${_TOUCH}"],
        "code within a dictionary": {"a": {"b": f"${_TOUCH}"}},
        "a component that is disabled": {**_CALLED, "_disabled_": False},
        "a component called by its mode": {"_target_": "builtins.eval", "_mode_": "callable", "_args_": [_TOUCH]},
        "a class by its dotted name": {"_target_": "torch.load", "f": "/etc/passwd"},
    }.items():
        _adapter(f"C1 {name} in calibration", settings(calibration=value))
    _adapter("C1 code for all settings", metadata(settings=f"${_TOUCH}"))
    _adapter("C1 code in an entry that there is not", settings(network_def=f"${_TOUCH}"))
    _adapter("C1 another network in an entry that there is not", settings(_target_="os.system", command="touch PROOF"))
    _adapter("C1 weights in an entry that there is not", settings(base_weights="/etc/passwd"))
    _adapter("C1 imports in an entry that there is not", settings(imports=["$import os"]))

    @case(ADAPTERS, "C1 code in rank, evaluated")
    def evaluated(world: World) -> None:
        damaged = settings(rank=f"${_TOUCH} or 4")(world.kit.adapter.read_bytes())
        (world.root / "evil.safetensors").write_bytes(damaged)
        _ = world.before
        words = ("--adapter", world.root / "evil.safetensors", "--base-weights", world.kit.base, "--device", "cpu")
        bundle = world.with_bundle(world.kit.whole_bundle)
        run = world.amsam("evaluate", "--data", world.kit.labelled, "-o", world.output, *bundle, *words)
        assert_refused(run, "evil.safetensors")
        assert_nothing_made(world)

    for name, damage in {
        "code for a bundle": record(bundle=f"${_TOUCH}"),
        "a path for a bundle": record(bundle="../../evil"),
        "code in a note": record(note=f"${_TOUCH}", _target_="os.system"),
    }.items():

        @case(ADAPTERS, f"C1 {name} in its record")
        def attempt(world: World, damage: Damage = damage) -> None:
            (world.root / "evil.safetensors").write_bytes(damage(world.kit.adapter.read_bytes()))
            run = segment_with(world, "--adapter", world.root / "evil.safetensors", "--base-weights", world.kit.base)
            assert_plain(run, (0, 1, 2))
            assert_untouched(world)


def _settings() -> None:
    for name, value in {"text": "four", "a list": [4], "nothing": None, "true": True, "a half": 4.5}.items():
        _adapter(f"rank of {name}", settings(rank=value))
    for name, value in {
        "-1": -1, "1e9": 10**9, "1e30": 10**30, "1e400": float("inf"), "NaN": float("nan"),
    }.items():  # fmt: skip
        _adapter(f"rank of {name}", settings(rank=value))
        _adapter(f"input size of {name}", settings(input_size=value))
        _adapter(f"classes of {name}", settings(num_classes=value))
    for value in (float("nan"), float("inf"), 1e308, -1, "0.7"):
        _adapter(f"alpha of {value!r}", settings(alpha=value))
    for name, value in {
        "up": "../../base", "an absolute path": "/etc/passwd", "an address": "http://127.0.0.1:9/x", "nothing": "",
        "a device": "/dev/zero", "a million letters": "x" * 1_000_000, "NUL": "a\0b", "HTML": "<script>alert(1)",
        "a line feed": "tiny\nError: all is well", "an escape sequence": "\x1b]0;title\x07",
    }.items():  # fmt: skip
        _adapter(f"base of {name}", settings(base=value))
    _adapter("calibration that there is not", settings(calibration="magic"))
    _adapter("prompt that there is not", settings(prompt="words"))
    _adapter("without a rank", settings(rank=_GONE))
    _adapter("without a base", settings(base=_GONE))
    _adapter("with settings that nobody knows", settings(colour="red"))
    for name, text in {
        "are no JSON": "{", "are nothing": "", "are a list": "[]", "are a number": "7", "are null": "null",
        "are NaN": "NaN", "are 100,000 brackets": "[" * 100_000, "name a key twice": '{"rank": 4, "rank": 5}',
    }.items():  # fmt: skip
        _adapter(f"whose settings {name}", metadata(settings=text))
        if name not in ("are NaN", "name a key twice"):
            _adapter(f"whose record {name.replace('are', 'is')}", metadata(record=text))
    for name in ("settings", "record", "base_digest", "format"):
        _adapter(f"without {name}", metadata(**{name: None}))
    _adapter("of a format that is to come", metadata(format="amsam-adapter-99"))
    _adapter("whose format is code", metadata(format=f"${_TOUCH}"))
    _adapter("of another base", metadata(base_digest="0" * 64), "base")
    _adapter("whose base is called by HTML", metadata(base_digest="<b>"))


def _tensors() -> None:
    _adapter("of NaN", edited(lambda file: file.fill(float("nan"))))
    _adapter("of one tensor of infinity", edited(lambda file: file.fill(float("inf"), file.names[-1:])))
    _adapter("of another shape", edited(lambda file: file.first.update(shape=[*file.first["shape"], 1])))
    _adapter("of another type", tensor(dtype="I32"))
    _adapter("of a type that there is not", tensor(dtype="X99"))
    _adapter("of a shape of 2^62", tensor(shape=[2**62]))
    _adapter("of a shape below 0", tensor(shape=[-1]))
    _adapter("of a tensor behind the end", tensor(data_offsets=[0, 2**40]))
    _adapter("of a tensor that ends before it begins", tensor(data_offsets=[64, 0]))
    _adapter("without its first tensor", edited(lambda file: file.header.pop(file.names[0])))
    _adapter("without tensors", edited(_without_tensors))
    _adapter("with a tensor more", edited(_with_one_more))
    _adapter("Low with a byte of a tensor changed", edited(_flipped, is_noticed=True))
    for name, place in (("after 4 bytes", 4), ("in its header", 200), ("in its tensors", -500), ("by a byte", -1)):
        _adapter(f"cut {name}", lambda content, place=place: content[:place])
    for name, length in (("2^63", 2**63), ("100 GB", 10**11), ("more than the file", 10**7), ("0", 0)):
        _adapter(
            f"whose header promises {name} bytes",
            lambda content, length=length: struct.pack("<Q", length) + content[8:],
        )
    for name, made in {
        "of nothing": b"",
        "of words": b"no adapter, but words " * 100,
        "that is a pickle": pickle.dumps(Pickled()),
        "whose header is no JSON": struct.pack("<Q", 100) + b"x" * 200,
        "whose header is 50 MB of spaces": struct.pack("<Q", 50 << 20) + b"{}" + b" " * ((50 << 20) - 2),
        "whose header is 90,000 brackets": struct.pack("<Q", 90_000) + b"[" * 90_000,
    }.items():
        _adapter(name, lambda content, made=made: made)
    _adapter("with bytes behind its end", lambda content: content + b"PK\3\4" + bytes(500))


class Pickled:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch PROOF",)


def _without_tensors(file: Tensors) -> None:
    for name in file.names:
        del file.header[name]
    file.data.clear()


def _with_one_more(file: Tensors) -> None:
    end = len(file.data)
    file.header["evil"] = {"dtype": "F32", "shape": [2], "data_offsets": [end, end + 8]}
    file.data += bytes(8)


def _flipped(file: Tensors) -> None:
    file.data[len(file.data) // 2] ^= 0x10


def _irregular() -> None:
    @case(ADAPTERS, "that is as it must be")
    def good(world: World) -> None:
        assert_plain(segment_with(world, "--adapter", world.kit.adapter, "--base-weights", world.kit.base), (0,))
        assert_untouched(world)
        assert_whole(world.output)

    makers: dict[str, Callable[[World, Path], object]] = {
        "that is a pipe": lambda world, path: os.mkfifo(path),
        "that is a folder": lambda world, path: path.mkdir(),
        "that is a link to endless zeros": lambda world, path: path.symlink_to("/dev/zero"),
        "that is a link to itself": lambda world, path: path.symlink_to(path),
        "that is a detector": lambda world, path: path.write_bytes(world.kit.detector.read_bytes()),
        "that is a base": lambda world, path: path.write_bytes(world.kit.base.read_bytes()),
        "of another rank": lambda world, path: _claim(world.kit.adapter_of("rank8", rank=8), path, rank=4),
        "of another network": lambda world, path: _claim(
            world.kit.adapter_of("learned", calibration="learned"), path, calibration="paper"
        ),
    }
    for name, make in makers.items():

        @case(ADAPTERS, name)
        def attempt(world: World, make: Callable[[World, Path], object] = make) -> None:
            path = world.root / "evil.safetensors"
            make(world, path)
            run = segment_with(world, "--adapter", path, "--base-weights", world.kit.base)
            assert_refused(run, "evil.safetensors", seconds=30, megabytes=700)
            assert_nothing_made(world)

    for verb in ("segment", "evaluate"):

        @case(ADAPTERS, f"C2 a path of code, {verb}")
        def coded(world: World, verb: str = verb) -> None:
            name = f"${_TOUCH} or 'x'.safetensors"
            (world.cwd / name).write_bytes(world.kit.adapter.read_bytes())
            source = [world.input] if verb == "segment" else ["--data", world.kit.labelled]
            write_picture(world.input / "a.png")
            _ = world.before
            bundle = world.with_bundle(world.kit.whole_bundle)
            words = ("-o", world.output, *bundle, "--device", "cpu", "--base-weights", world.kit.base)
            run = world.amsam(verb, *source, *words, "--adapter", name)
            assert_plain(run, (0,))
            assert_untouched(world)

    @case(ADAPTERS, "C2 a path of a reference")
    def referred(world: World) -> None:
        (world.cwd / "@bundle_root").mkdir()
        (world.cwd / "@bundle_root" / "a.safetensors").write_bytes(world.kit.adapter.read_bytes())
        run = segment_with(world, "--adapter", "@bundle_root/a.safetensors", "--base-weights", world.kit.base)
        assert_plain(run, (0,))
        assert_untouched(world)


def _claim(source: Path, target: Path, **said: Any) -> None:
    target.write_bytes(settings(**said)(source.read_bytes()))


def _detectors() -> None:
    def detector(name: str, damage: Damage, says: str = "") -> None:
        @case(DETECTORS, name)
        def attempt(world: World) -> None:
            path = world.root / "evil.safetensors"
            path.write_bytes(damage(world.kit.detector.read_bytes()))
            run = segment_with(world, "--detector", path, bundle=world.kit.whole_bundle)
            assert_refused(run, says or "evil.safetensors", seconds=40, megabytes=700)
            assert_nothing_made(world)

    for name, text in {
        "1e9": "1000000000", "-1": "-1", "0": "0", "no number": "wide", "a half": "64.5", "65": "65",
        "code": f"${_TOUCH}", "1e30": str(10**30), "5,000 digits": "9" * 5000,
    }.items():  # fmt: skip
        low = "Low " if name in ("1e9", "-1") else ""
        detector(f"{low}input size of {name}", metadata(input_size=text))
    for name, text in {"1e9": "1000000000", "0": "0", "-1": "-1", "no number": "many"}.items():
        detector(f"classes of {name}", metadata(nc=text))
    for name, text in {"NaN": "nan", "infinity": "inf", "2": "2", "no number": "high"}.items():
        detector(f"confidence of {name}", metadata(min_confidence=text))
        detector(f"edge error of {name}", metadata(edge_error=text.replace("2", "-1")))
    for name in ("format", "version", "class_name", "nc", "input_size"):
        detector(f"without {name}", metadata(**{name: None}))
    detector("of a version that is to come", metadata(version="99"))
    detector("of NaN", edited(lambda file: file.fill(float("nan"))))
    detector("whose boxes are not finite", edited(lambda file: file.fill(float("inf"), file.names[-12:])))
    detector("of another shape", edited(lambda file: file.first.update(shape=file.first["shape"][::-1])))
    detector("of a shape of 2^62", tensor(shape=[2**62]))
    detector("without its first tensor", edited(lambda file: file.header.pop(file.names[0])))
    detector("without tensors", edited(_without_tensors))
    detector("with a tensor more", edited(_with_one_more))

    for name, text in {"HTML": "<script>alert(1)</script>", "code": f"${_TOUCH}", "lines": "a\nb\x1b[31m"}.items():

        @case(DETECTORS, f"whose class is called by {name}")
        def attempt(world: World, text: str = text) -> None:
            damaged = metadata(class_name=text)(world.kit.detector.read_bytes())
            (world.root / "evil.safetensors").write_bytes(damaged)
            run = segment_with(world, "--detector", world.root / "evil.safetensors", bundle=world.kit.whole_bundle)
            assert_plain(run, (0, 1, 2))
            assert_untouched(world)

    makers: dict[str, Callable[[World, Path], object]] = {
        "that is a pickle": lambda world, path: path.write_bytes(pickle.dumps(Pickled())),
        "that is an adapter": lambda world, path: path.write_bytes(world.kit.adapter.read_bytes()),
        "that is a pipe": lambda world, path: os.mkfifo(path),
        "that is endless": lambda world, path: path.symlink_to("/dev/zero"),
        "cut in the middle": lambda world, path: path.write_bytes(world.kit.detector.read_bytes()[:100_000]),
        "of nothing": lambda world, path: path.write_bytes(b""),
    }
    for name, make in makers.items():
        for suffix in (".safetensors", ".pt") if name == "that is a pickle" else (".safetensors",):

            @case(DETECTORS, f"{name}, called {suffix}")
            def given(world: World, make: Callable[[World, Path], object] = make, suffix: str = suffix) -> None:
                path = world.root / f"evil{suffix}"
                make(world, path)
                run = segment_with(world, "--detector", path, bundle=world.kit.whole_bundle)
                assert_refused(run, "evil", seconds=40, megabytes=700)
                assert_nothing_made(world)

    @case(DETECTORS, "C2 a path of code")
    def coded(world: World) -> None:
        name = f"${_TOUCH} or 'x'.safetensors"
        (world.cwd / name).write_bytes(world.kit.detector.read_bytes())
        assert_plain(segment_with(world, "--detector", name, bundle=world.kit.whole_bundle), (0,))
        assert_untouched(world)

    @case(DETECTORS, "M4 swapped for another in a shipped bundle")
    def swapped(world: World) -> None:
        package = world.kit.copy_of_package(world.root / "package")
        models = package / "bundles" / "amsam_isic" / "models"
        (models / "detector.safetensors").unlink()
        other = package / "bundles" / "amsam_body" / "models" / "detector.safetensors"
        (models / "detector.safetensors").write_bytes(other.read_bytes())
        write_picture(world.input / "a.png")
        words = ["segment", str(world.input), "-o", str(world.output), "--device", "cpu"]
        run = world.fresh(package, words, seconds=200)
        assert_refused(run, r"detector\.safetensors", seconds=200)
        assert not world.output.exists()


def _models() -> None:
    def model(name: str, make: Callable[[World, Path], object]) -> None:
        @case(MODELS, name)
        def attempt(world: World) -> None:
            bundle = _bundle_copy(world)
            path = bundle / "models" / "model.pt"
            path.unlink()
            make(world, path)
            run = segment_with(world, bundle=bundle)
            assert_refused(run, r"model\.pt", seconds=40, megabytes=900)
            assert_nothing_made(world)

    def saved(value: Any) -> Callable[[World, Path], object]:
        import torch

        return lambda world, path: torch.save(value, path)

    model("Low model of nothing", lambda world, path: path.write_bytes(b""))
    model("model that is a pickle of code", lambda world, path: path.write_bytes(pickle.dumps(Pickled())))
    model("model that is an archive with a pickle of code", lambda world, path: _zip_with_code(path))
    model("model of words", lambda world, path: path.write_text("no model, but words"))
    model("model cut in the middle", lambda world, path: path.write_bytes(_model_of(world)[:300_000]))
    model("model that is a pipe", lambda world, path: os.mkfifo(path))
    model("model that is endless", lambda world, path: path.symlink_to("/dev/zero"))
    model("model that is a number", lambda world, path: saved(7)(world, path))
    model("model without the model", lambda world, path: saved({"other": {}})(world, path))
    model("model that is a list", lambda world, path: saved({"model": [1, 2]})(world, path))
    model("M5 model of NaN", _model_of_nan)
    model("M5 model of one NaN", lambda world, path: _model_of_nan(world, path, 1))
    model("model of infinity", lambda world, path: _model_of_nan(world, path, value=float("inf")))

    def base(name: str, make: Callable[[World, Path], object], suffix: str = ".safetensors") -> None:
        @case(MODELS, name)
        def attempt(world: World) -> None:
            path = world.root / f"evil{suffix}"
            make(world, path)
            run = segment_with(world, "--adapter", world.kit.adapter, "--base-weights", path)
            assert_refused(run, f"evil|{world.kit.adapter.name}", seconds=40, megabytes=900)
            assert_nothing_made(world)

    base("base of nothing", lambda world, path: path.write_bytes(b""))
    base("base that is a pickle of code", lambda world, path: path.write_bytes(pickle.dumps(Pickled())), ".pth")
    base("base that is an archive with a pickle of code", lambda world, path: _zip_with_code(path), ".pth")
    base("base that is an adapter", lambda world, path: path.write_bytes(world.kit.adapter.read_bytes()))
    base("base of NaN", _base_of_nan)
    base("base cut in the middle", lambda world, path: path.write_bytes(world.kit.base.read_bytes()[:500_000]))
    base("base that is a pipe", lambda world, path: os.mkfifo(path))

    @case(MODELS, "C2 a base whose path is code")
    def coded(world: World) -> None:
        name = f"${_TOUCH} or 'x'.safetensors"
        (world.cwd / name).write_bytes(world.kit.base.read_bytes())
        assert_plain(segment_with(world, "--adapter", world.kit.adapter, "--base-weights", name), (0,))
        assert_untouched(world)


def _bundle_copy(world: World) -> Path:
    import shutil

    return Path(shutil.copytree(world.bundle, world.root / "evil_bundle"))


def _model_of(world: World) -> bytes:
    return (world.bundle / "models" / "model.pt").read_bytes()


def _model_of_nan(world: World, path: Path, count: int | None = None, value: float = float("nan")) -> None:
    import torch

    state: Mapping[str, Any] = torch.load(world.bundle / "models" / "model.pt", weights_only=True)
    for name, one in state.items():
        if one.is_floating_point() and "running" not in name:
            if count is None:
                one.fill_(value)
            elif "mask_decoder" in name and one.numel() > count:
                one.view(-1)[:count] = value
                break
    torch.save(dict(state), path)


def _base_of_nan(world: World, path: Path) -> None:
    file = Tensors(world.kit.base.read_bytes())
    file.header.setdefault("__metadata__", {})
    file.fill(float("nan"))
    path.write_bytes(file.content())


def _zip_with_code(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Pickled()))
        archive.writestr("archive/version", "3")
        archive.writestr("archive/byteorder", "little")


def _registry() -> None:
    for name, text in {
        "is cut": '{"tiny": {"byt', "is nothing": "", "is a list": "[]", "is of words": "words",
        "says text for a length": '{"tiny": {"bytes": "many", "sha256": "00"}}',
        "says a path more": '{"tiny": {"bytes": 1, "sha256": "' + "0" * 64 + '", "file": "/etc/passwd"}}',
        "is 100,000 brackets": "[" * 100_000,
    }.items():  # fmt: skip
        for verb in ("list", "verify"):
            low = "Low " if name in ("is cut", "is nothing") else ""

            @case(MODELS, f"{low}registry that {name}, {verb}")
            def attempt(world: World, text: str = text, verb: str = verb) -> None:
                package = world.kit.copy_of_package(world.root / "package")
                registry = package / "amsam_med" / "assets" / "registry.json"
                registry.unlink()
                registry.write_text(text)
                run = world.fresh(package, ["weights", verb], seconds=60)
                assert_refused(run, r"registry\.json")


_code()
_settings()
_tensors()
_irregular()
_detectors()
_models()
_registry()
