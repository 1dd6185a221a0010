"""Adapters and whole models on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from amsam_med.bundle import model_overrides, open_bundle
from amsam_med.checkpoint import (
    Adapter,
    load_adapter,
    load_model,
    merge_lora,
    read_adapter,
    save_adapter,
    save_model,
)
from amsam_med.errors import WeightsError
from amsam_med.model import AmSam, build_amsam
from amsam_med.tensors import read_tensors
from tests.conftest import TINY_SIZE

IMAGE = torch.rand(2, 3, TINY_SIZE, TINY_SIZE, generator=torch.Generator().manual_seed(0))


def _network(base: Path, **settings: object) -> AmSam:
    return build_amsam("tiny", input_size=TINY_SIZE, base_weights=base, **settings).eval()  # type: ignore[arg-type]


def _trained(base: Path, **settings: object) -> AmSam:
    """A network whose LoRA and prompt embedding have moved."""
    network = _network(base, **settings)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("lora_b") or "no_mask_embed" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return network


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    torch.manual_seed(0)
    save_file(build_amsam("tiny", input_size=TINY_SIZE, rank=0, calibration="none").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "a.safetensors"
    save_adapter(_trained(base), path, {"bundle": "amsam_isic"})
    return path


@pytest.mark.parametrize("settings", [{"calibration": "paper"}, {"calibration": "learned"}, {"adapts": "stage"}])
def test_an_adapter_brings_back_what_was_trained(base: Path, tmp_path: Path, settings: dict[str, str]):
    trained = _trained(base, **settings)
    save_adapter(trained, tmp_path / "a.safetensors", {"shots": 8})
    fresh = _network(base, **settings)
    load_adapter(fresh, tmp_path / "a.safetensors")
    with torch.no_grad():
        assert torch.equal(fresh(IMAGE), trained(IMAGE))
    written, record, _ = read_adapter(tmp_path / "a.safetensors")
    assert written == trained.settings
    assert record == {"shots": 8}


def test_an_adapter_is_small_beside_its_base(base: Path, tmp_path: Path):
    save_adapter(_trained(base), tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_size < base.stat().st_size / 10


def test_an_adapter_of_other_settings_is_refused_by_name(base: Path, tmp_path: Path):
    save_adapter(_trained(base, alpha=0.5), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"alpha=0\.5 \(this network: 0\.7\)"):
        load_adapter(_network(base), tmp_path / "a.safetensors")


def test_an_adapter_on_another_base_is_refused(base: Path, tmp_path: Path):
    save_adapter(_trained(base), tmp_path / "a.safetensors")
    other = _network(base)
    with torch.no_grad():
        next(other.image_encoder.parameters()).add_(0.01)
    with pytest.raises(WeightsError, match="other weights of base 'tiny'"):
        load_adapter(other, tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [b"", b"no adapter"])
def test_damaged_and_missing_adapters_are_refused(base: Path, tmp_path: Path, content: bytes):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\.safetensors cannot be read"):
        read_adapter(tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="amsam train"):
        read_adapter(tmp_path / "nowhere.safetensors")


def test_a_base_is_not_taken_for_an_adapter(base: Path):
    with pytest.raises(WeightsError, match="another kind"):
        read_adapter(base)


RUNS_CODE = "$__import__('pathlib').Path('PROOF').touch() or 4"


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"rank": RUNS_CODE}},
        {"settings": {"input_size": RUNS_CODE}},
        {"settings": {"calibration": {"_target_": "os.system", "command": "touch PROOF"}}},
        {"settings": {"base": "../../tiny"}},
        {"settings": {"base": "@bundle_root"}},
        {"settings": {"input_size": 10**9}},
        {"settings": {"rank": 4.5}},
        {"settings": {"alpha": float("nan")}},
        {"settings": {"more": 1}},
        {"settings": {"prompt": None}},
        {"record": {"bundle": "/tmp/bundle"}},
        {"record": {"bundle": "..\\\\bundle"}},
        {"record": {"bundle": RUNS_CODE, "_target_": "os.system"}},
        {"record": {"d2_dice": "<b>"}},
        {"base_digest": "none"},
        {"more": "text"},
    ],
)
def test_what_an_adapter_says_is_checked_before_anything_is_made_of_it(
    adapter: Path, base: Path, tmp_path: Path, change: dict[str, object], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    path = _with_header(adapter, tmp_path / "a.safetensors", change)
    for reader in (
        read_adapter,
        lambda file: model_overrides(file, base),
        lambda file: load_adapter(nn.Module(), file),
    ):
        with pytest.raises(WeightsError, match=r"a\.safetensors, its (header|settings|record).*train it again"):
            reader(path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_values_of_an_adapter_enter_a_bundle_as_they_are(tiny_bundle: Path, tmp_path: Path):
    save_adapter(_trained(tiny_bundle / "base.safetensors", alpha=0.5), tmp_path / "a.safetensors")
    parser = open_bundle(
        tiny_bundle, "inference", model_overrides(tmp_path / "a.safetensors", tiny_bundle / "base.safetensors")
    )
    assert parser.get_parsed_content("network").settings["alpha"] == 0.5
    assert parser.as_written("network_def")["input_size"] == "@input_size"


def test_a_flipped_byte_in_an_adapters_tensors_is_noticed(adapter: Path, base: Path, tmp_path: Path):
    path, content = tmp_path / "a.safetensors", bytearray(adapter.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\.safetensors is damaged"):
        load_adapter(_network(base), path)


def test_an_adapter_without_a_digest_of_its_tensors_still_opens(adapter: Path, base: Path, tmp_path: Path):
    path = _with_header(adapter, tmp_path / "a.safetensors", {"state_sha256": None})
    load_adapter(_network(base), path)


def test_tensors_of_another_shape_are_named(adapter: Path, base: Path, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    state, header = read_tensors(adapter, "")
    name = next(name for name in state if name.endswith("lora_a"))
    save_file({**state, name: torch.zeros(1, 1)}, path, header)
    with pytest.raises(WeightsError, match=rf"holds {name} of shape \(1, 1\).*expected"):
        load_adapter(_network(base), path)


def test_weights_that_are_no_numbers_are_never_written_over_good_ones(base: Path, tmp_path: Path):
    save_adapter(_trained(base), path := tmp_path / "a.safetensors")
    before, broken = path.read_bytes(), _trained(base)
    with torch.no_grad():
        next(parameter for name, parameter in broken.named_parameters() if name.endswith("lora_b")).fill_(torch.nan)
    with pytest.raises(WeightsError, match="NaN"):
        save_adapter(broken, path)
    assert path.read_bytes() == before


def test_an_empty_model_file_and_one_of_nan_are_named(base: Path, tmp_path: Path):
    (tmp_path / "empty.pt").touch()
    network = _network(base)
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    save_model(network, tmp_path / "nan.pt")
    for name, said in {"empty.pt": "cannot be read as weights", "nan.pt": "NaN or infinity"}.items():
        with pytest.raises(WeightsError, match=rf"{name}.*{said}"):
            load_model(_network(base), tmp_path / name)


def _with_header(adapter: Path, path: Path, change: dict[str, object]) -> Path:
    """An adapter whose header says something else: entries of its JSON parts, or whole entries; None takes one out."""
    state, header = read_tensors(adapter, "")
    for name, value in change.items():
        if isinstance(value, dict):
            header[name] = json.dumps({**json.loads(header[name]), **value})
        elif value is None:
            del header[name]
        else:
            header[name] = str(value)
    save_file(state, path, header)
    return path


def test_a_failed_save_leaves_the_old_adapter(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "a.safetensors"
    save_adapter(_trained(base), target)
    before = target.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("amsam_med.checkpoint.save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_adapter(_network(base), target)
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_whole_model_is_kept_in_half_precision(base: Path, tmp_path: Path):
    trained, fresh = _trained(base), _network(base)
    save_model(trained, tmp_path / "model.pt")
    load_model(fresh, tmp_path / "model.pt")
    with torch.no_grad():
        torch.testing.assert_close(fresh(IMAGE), trained(IMAGE), rtol=0.02, atol=0.02)
    half = torch.load(tmp_path / "model.pt", weights_only=True)
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}


def test_a_model_of_another_network_or_with_code_in_it_is_refused(base: Path, tmp_path: Path):
    save_model(build_amsam("tiny", input_size=TINY_SIZE, num_classes=2), tmp_path / "other.pt")
    torch.save({"model": Path("code would run here")}, tmp_path / "code.pt")
    for name, said in {"other.pt": "does not hold this network", "code.pt": "holds other things than tensors"}.items():
        with pytest.raises(WeightsError, match=said):
            load_model(_network(base), tmp_path / name)


def test_merging_lora_keeps_the_function_and_removes_the_layers(base: Path):
    network = _trained(base)
    with torch.no_grad():
        before = network(IMAGE)
        merged = merge_lora(network)
        torch.testing.assert_close(merged(IMAGE), before, rtol=1e-4, atol=1e-5)
    assert not [name for name in merged.state_dict() if "lora" in name]


def test_the_adapter_object_saves_and_restores_the_trained_parts(base: Path):
    trained, fresh = _trained(base), _network(base)
    Adapter(fresh).load_state_dict(Adapter(trained).state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(IMAGE), trained(IMAGE))
