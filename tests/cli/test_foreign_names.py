"""Paths that look like a configuration's own text stay paths: nothing in them is evaluated, looked up or split."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from amsam_med import cli

PROOF = "PROOF"
NAMES = [
    f"$__import__('os').mkdir('{PROOF}')",
    f"$[__import__('os').mkdir('{PROOF}'), '.'][1]",
    "@seed",
    "%seed",
    "a::b",
    "-o",
]
FEW = ["--shots", "4", "--epochs", "1", "--views", "none", "--input-size", "64"]


@pytest.fixture
def named(
    request: pytest.FixtureRequest, labelled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A folder of labelled images of that name, in the working directory."""
    monkeypatch.chdir(tmp_path)
    name = str(request.param)
    shutil.copytree(labelled_folder, Path(name))
    return name


@pytest.mark.parametrize("named", NAMES, indirect=True)
def test_data_and_outputs_of_any_name_are_trained_on_and_scored(named: str, tiny_bundle: Path) -> None:
    bundle = ["--bundle", str(tiny_bundle)]
    assert cli.main(["train", f"--data={named}", f"--output={named}/out", *bundle, *FEW]) == 0
    assert (Path(named) / "out" / "adapter.safetensors").is_file()
    assert cli.main(["evaluate", f"--data={named}", f"--output={named}/scores", *bundle]) == 0
    assert (Path(named) / "scores" / "scores.csv").is_file()
    assert sorted(path.name for path in Path().iterdir()) == [named]  # no PROOF, and nothing beside it


@pytest.mark.parametrize("name", NAMES[:3:2])
def test_adapters_bases_and_detectors_of_any_name_are_files(
    name: str, tiny_bundle: Path, labelled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base, found = Path(f"{name}.safetensors"), Path(f"{name}-2.safetensors")
    shutil.copy(tiny_bundle / "base.safetensors", base)
    shutil.copy(tiny_bundle / "models" / "detector.safetensors", found)
    files = [f"--base-weights={base}", f"--detector={found}", f"--bundle={tiny_bundle}"]
    data = f"--data={labelled_folder}"
    assert cli.main(["train", data, "--output=run", f"--cache={name}", *files, *FEW]) == 0
    adapter = shutil.copy("run/adapter.safetensors", f"{name}-3.safetensors")
    assert cli.main(["evaluate", data, "--output=scores", f"--adapter={adapter}", *files]) == 0
    assert not Path(PROOF).exists()
    assert Path(name).is_dir()
