"""Whatever is done to an adapter or a detector, it is refused in plain words, or gives tensors that nobody has changed.

``AMSAM_FUZZ_EXAMPLES`` says how many examples each test tries.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amsam_med.checkpoint import load_adapter, read_adapter
from amsam_med.detect.files import read_weights
from amsam_med.errors import AmsamError
from amsam_med.learn.levels import set_trainable, trainable_state
from amsam_med.model import AmSam, build_amsam
from tests.attack.kit import Kit
from tests.attack.weights import Tensors

EXAMPLES = int(os.environ.get("AMSAM_FUZZ_EXAMPLES", "60"))
bounded = settings(
    max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

CODE = "$__import__('os').system('touch PROOF')"
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 4, 64, 2**31, 2**63, 2**64, 10**30, 0.5, 1e308, float("inf"), float("nan")]),
    st.sampled_from(
        ["", "tiny", "box", "../../x", "/dev/zero", CODE, "@base", "%x", "\0", "\ud800", "9" * 5000, "x" * 20_000]
    ),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["_target_", "_args_", "rank", "base", "a"]), inner, max_size=3),
    ),
    max_leaves=6,
)
TEXTS = st.one_of(VALUES.map(json.dumps), st.sampled_from(["", "{", "[" * 50_000, "NaN", CODE, "null", "7"]))
OFFSETS = st.sampled_from([-1, 0, 1, 4, 100, 10_000, 2**31, 2**40, 2**63, 2**64])
FIELDS = st.one_of(
    st.tuples(
        st.just("dtype"), st.sampled_from(["F16", "F32", "F64", "BF16", "I8", "U8", "I64", "BOOL", "C64", "X", ""])
    ),
    st.tuples(st.just("shape"), st.lists(OFFSETS, max_size=5)),
    st.tuples(st.just("data_offsets"), st.lists(OFFSETS, max_size=3)),
    st.tuples(st.sampled_from(["dtype", "shape", "data_offsets", "more"]), VALUES),
)
PATCHES = st.tuples(st.sampled_from(["flip", "cut", "drop", "repeat", "zero"]), st.floats(0, 1), st.integers(0, 2**16))


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit(tmp_path_factory.mktemp("kit"))


@pytest.fixture(scope="module")
def network(kit: Kit) -> AmSam:
    return set_trainable(build_amsam("tiny", input_size=64, base_weights=kit.base))


@pytest.fixture(scope="module")
def adapter(kit: Kit) -> bytes:
    return kit.adapter.read_bytes()


@pytest.fixture(scope="module")
def detector(kit: Kit) -> bytes:
    return kit.detector.read_bytes()


def patched(content: bytes, patches: list[tuple[str, float, int]], end: int) -> bytes:
    """Bytes changed at relative places before ``end``."""
    made = bytearray(content)
    for kind, share, number in patches:
        at = int(share * max(0, min(end, len(made)) - 1))
        new = {
            "flip": bytes([number % 256]) + made[at + 1 :],
            "cut": b"",
            "drop": made[at + number % 32 :],
            "repeat": made[at : at + number % 64] + made[at:],
            "zero": bytes(number % 512) + made[at + number % 512 :],
        }
        made[at:] = new[kind]
    return bytes(made)


def rebuilt(
    content: bytes, texts: dict[str, str], tensors: list[tuple[int, tuple[str, Any]]], gone: list[int]
) -> bytes:
    """A file whose header says other things; the digest of the tensors goes where tensors are changed."""
    file = Tensors(content)
    file.metadata.update(texts)
    names = file.names
    for index, (field, value) in tensors:
        file.header[names[index % len(names)]][field] = value
    for index in gone:
        file.header.pop(names[index % len(names)], None)
    if tensors or gone:
        file.unsign()
    return file.content()


def _opened(path: Path, content: bytes, read: Callable[[Path], object]) -> bool:
    """Whether a file is taken; it is refused in one plain sentence, or is a defect."""
    path.write_bytes(content)
    try:
        read(path)
    except AmsamError as error:
        text = str(error)
    else:
        return True
    assert text.isprintable(), ascii(text)
    assert len(text) < 2000
    return False


def _read_both(network: AmSam, adapter: bytes) -> Callable[[Path], object]:
    """Read an adapter's header, and the whole; what is taken must be the tensors of the one that was damaged."""
    file = Tensors(adapter)

    def read(path: Path) -> None:
        read_adapter(path)
        load_adapter(network, path)
        own = trainable_state(network)
        for name in file.names:
            start, end = file.header[name]["data_offsets"]
            assert own[name].cpu().contiguous().numpy().tobytes() == bytes(file.data[start:end]), f"{name} is another"

    return read


@bounded
@given(patches=st.lists(PATCHES, min_size=1, max_size=4), is_in_header=st.booleans())
def test_no_bytes_of_an_adapter_can_be_changed_unnoticed(
    patches: list[tuple[str, float, int]], is_in_header: bool, adapter: bytes, network: AmSam, tmp_path: Path
) -> None:
    end = 8 + struct.unpack("<Q", adapter[:8])[0] if is_in_header else len(adapter)
    _opened(tmp_path / "a.safetensors", patched(adapter, patches, end), _read_both(network, adapter))


@bounded
@given(
    texts=st.dictionaries(st.sampled_from(["format", "settings", "record", "base_digest", "state_sha256", "x"]), TEXTS),
    tensors=st.lists(st.tuples(st.integers(0, 99), FIELDS), max_size=3),
    gone=st.lists(st.integers(0, 99), max_size=2),
)
def test_no_header_of_an_adapter_leads_to_anything_but_refusal_or_its_own_tensors(
    texts: dict[str, str],
    tensors: list[tuple[int, tuple[str, Any]]],
    gone: list[int],
    adapter: bytes,
    network: AmSam,
    tmp_path: Path,
) -> None:
    _opened(tmp_path / "a.safetensors", rebuilt(adapter, texts, tensors, gone), _read_both(network, adapter))
    assert not Path("PROOF").exists()


@bounded
@given(
    changes=st.dictionaries(
        st.sampled_from(
            ["base", "rank", "input_size", "num_classes", "alpha", "prompt", "calibration", "_target_", "x"]
        ),
        VALUES,
        min_size=1,
        max_size=3,
    )
)
def test_no_settings_of_an_adapter_lead_to_anything_but_refusal_or_the_right_types(
    changes: dict[str, Any], adapter: bytes, tmp_path: Path
) -> None:
    entries = {**json.loads(Tensors(adapter).metadata["settings"]), **changes}
    content = rebuilt(adapter, {"settings": json.dumps(entries)}, [], [])
    if _opened(tmp_path / "a.safetensors", content, read_adapter):
        found = read_adapter(tmp_path / "a.safetensors")[0]
        assert "_target_" not in found
        assert all(not str(value).startswith(("$", "@", "%")) for value in found.values())
        assert type(found["rank"]) is type(found["input_size"]) is type(found["num_classes"]) is int
        assert found["rank"] <= 10_000
        assert found["input_size"] <= 10_000
    assert not Path("PROOF").exists()


@bounded
@given(
    texts=st.dictionaries(
        st.sampled_from(["format", "version", "class_name", "nc", "input_size", "edge_error", "min_confidence", "x"]),
        st.one_of(TEXTS, st.sampled_from(["-1", "0", "64", "1e9", "nan", "inf", "1000000000"])),
    ),
    tensors=st.lists(st.tuples(st.integers(0, 999), FIELDS), max_size=3),
    gone=st.lists(st.integers(0, 999), max_size=2),
)
def test_no_header_of_a_detector_leads_to_anything_but_refusal_or_finite_tensors(
    texts: dict[str, str],
    tensors: list[tuple[int, tuple[str, Any]]],
    gone: list[int],
    detector: bytes,
    tmp_path: Path,
) -> None:
    def read(path: Path) -> None:
        found = read_weights(path)
        assert 0 < found.input_size <= 10_000
        assert 0 <= found.min_confidence <= 1
        assert all(torch.isfinite(one).all() for one in found.state.values() if one.is_floating_point())

    _opened(tmp_path / "d.safetensors", rebuilt(detector, texts, tensors, gone), read)


@bounded
@given(patches=st.lists(PATCHES, min_size=1, max_size=4), is_in_header=st.booleans())
def test_no_bytes_of_a_detector_lead_to_anything_but_refusal_or_weights(
    patches: list[tuple[str, float, int]], is_in_header: bool, detector: bytes, tmp_path: Path
) -> None:
    end = 8 + struct.unpack("<Q", detector[:8])[0] if is_in_header else len(detector)
    _opened(tmp_path / "d.safetensors", patched(detector, patches, end), read_weights)
