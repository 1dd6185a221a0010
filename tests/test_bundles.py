"""The MONAI bundles: every verb that the documentation names, on tiny settings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from PIL import Image

from amsam_med import weights
from amsam_med.bundle import config_files, default_bundle, locate_bundle, model_overrides, open_bundle, shipped_bundles
from amsam_med.checkpoint import save_adapter
from amsam_med.detect.yolo import YoloDetector, save_detector
from amsam_med.domains import DOMAINS
from amsam_med.errors import AmsamError, ConfigError, DataError, WeightsError
from amsam_med.model import build_amsam
from amsam_med.trust import bundle_digest, trust
from amsam_med.weights import sha256
from pipelines.cards.model_card import card_metrics
from tests.conftest import REPOSITORY

# What MONAI says on every opened configuration, and torch on the trace that MONAI's export makes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]

BUNDLES = tuple(domain.bundle for domain in DOMAINS)
SCHEMA = "meta_schema_20240725.json"


def _files(root: Path, *names: str) -> list[str]:
    return [str(root / "configs" / name) for name in names]


def _workflow(root: Path, name: str, settings: dict[str, object]) -> ConfigWorkflow:
    return ConfigWorkflow(
        config_file=config_files(root, name),
        meta_file=_files(root, "metadata.json")[0],
        logging_file=False,
        workflow_type="train" if name == "train" else "inference",
        bundle_root=str(root),
        **settings,
    )


def _training_settings(data: Path, output: Path) -> dict[str, object]:
    return {"dataset_dir": str(data), "output_dir": str(output), "shots": 4, "epochs": 2, "views": "none"}


def test_all_bundles_are_found_by_name():
    assert shipped_bundles() == sorted(BUNDLES)


OF_THE_TASK = {"train.yaml": ["views"], "inference.yaml": ["rival_margin", "nothing_below"]}
"""Settings in which the bundles may differ: which way is up, and what is too uncertain to be anything."""


@pytest.mark.parametrize(
    "name", ["train.yaml", "evaluate.yaml", "inference.yaml", "multi_gpu_train.yaml", "paper.yaml"]
)
def test_the_bundles_share_one_wiring(name: str):
    first, *others = (
        (REPOSITORY / "bundles" / bundle / "configs" / name).read_text().splitlines() for bundle in BUNDLES
    )
    assert others
    for lines in others:
        differing = [one.split(":")[0] for one, other in zip(first, lines, strict=True) if one != other]
        assert set(differing) <= set(OF_THE_TASK.get(name, ()))


@pytest.mark.parametrize("bundle", BUNDLES)
def test_bundles_hold_no_python_and_all_that_a_bundle_needs(bundle: str):
    root = REPOSITORY / "bundles" / bundle
    assert (root / "docs" / "README.md").is_file()
    assert (root / "LICENSE").is_file()
    assert "ISIC 2018" in (root / "docs" / "data_license.txt").read_text()
    assert not list(root.rglob("*.py"))


@pytest.mark.parametrize("bundle", BUNDLES)
def test_metadata_follows_monais_schema(bundle: str, data_root: Path, tmp_path: Path):
    schema = data_root.parent / "schema" / SCHEMA
    copy = tmp_path / SCHEMA
    copy.write_bytes(schema.read_bytes())
    metadata = REPOSITORY / "bundles" / bundle / "configs" / "metadata.json"
    monai.bundle.verify_metadata(meta_file=str(metadata), filepath=str(copy), hash_val=_md5(copy), hash_type="md5")


@pytest.mark.parametrize("bundle", BUNDLES)
def test_metadata_has_the_figures_of_the_card(bundle: str):
    root = REPOSITORY / "bundles" / bundle
    metrics = json.loads((root / "configs" / "metadata.json").read_text())["eval_metrics"]
    assert metrics == card_metrics(root / "docs" / "README.md")  # else: python -m pipelines.weights.release bundles
    assert 0.5 < metrics["mean_iou"] < metrics["mean_dice"] < 1


@pytest.mark.parametrize("workflow", ["train", "inference"])
def test_workflows_have_all_properties(workflow: str, tiny_bundle: Path, labelled_folder: Path, tmp_path: Path):
    data = labelled_folder if workflow == "train" else labelled_folder / "images"
    settings = {"dataset_dir": str(data), "output_dir": str(tmp_path)} | ({"shots": 4} if workflow == "train" else {})
    opened = _workflow(tiny_bundle, workflow, settings)
    opened.initialize()
    assert opened.check_properties() == []


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_network_fits_the_shapes_that_the_metadata_promises(
    bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # any working folder will do
    root = REPOSITORY / "bundles" / bundle
    monai.bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=_files(root, "metadata.json")[0],
        config_file=_files(root, "inference.yaml")[0],
        bundle_root=str(root),
    )


# Shapes are fixed in a trace, on purpose.
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_exported_trace_computes_the_same_logits(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monai.bundle.ckpt_export(
        net_id="network_def",
        filepath="model.ts",
        bundle_root=str(tiny_bundle),  # its models/model.pt and configs/metadata.json are found there
        config_file=_files(tiny_bundle, "inference.yaml")[0],
        use_trace=True,
        input_shape=[1, 3, 64, 64],
    )
    image = torch.rand(2, 3, 64, 64)
    network = open_bundle(tiny_bundle, "inference").get_parsed_content("network")
    traced = torch.jit.load(tmp_path / "model.ts")
    with torch.no_grad():
        torch.testing.assert_close(traced(image[:1]), network(image[:1]))


def test_training_leaves_an_adapter_and_a_model_that_inference_can_use(
    tiny_bundle: Path, labelled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monai.bundle.run(
        run_id="training",
        config_file=_files(tiny_bundle, "train.yaml"),
        meta_file=_files(tiny_bundle, "metadata.json")[0],
        bundle_root=str(tiny_bundle),
        **_training_settings(labelled_folder, tmp_path),
    )
    assert {"adapter.safetensors", "checkpoint.pt", "history.csv", "model.pt", "split.json"} <= set(
        os.listdir(tmp_path)
    )
    by_model = open_bundle(tiny_bundle, "inference", {"model_file": str(tmp_path / "model.pt")})
    overrides = model_overrides(tmp_path / "adapter.safetensors", base_weights=tiny_bundle / "base.safetensors")
    by_adapter = open_bundle(tiny_bundle, "inference", overrides)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        one, other = (parser.get_parsed_content("network")(image) for parser in (by_model, by_adapter))
    torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)  # model.pt is fp16


def test_evaluating_writes_scores(
    tiny_bundle: Path, labelled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monai.bundle.run(
        run_id="evaluating",
        config_file=_files(tiny_bundle, "inference.yaml", "evaluate.yaml"),
        meta_file=_files(tiny_bundle, "metadata.json")[0],
        bundle_root=str(tiny_bundle),
        dataset_dir=str(labelled_folder),
        output_dir=str(tmp_path),
    )
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (tmp_path / "scores.csv").read_text().count("\n") == 1 + 6
    assert 0 <= scores["dice"] <= 1


def test_inference_writes_a_mask_of_each_images_own_size(
    tiny_bundle: Path, labelled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    root = Path(os.path.relpath(tiny_bundle))  # a relative one as well
    monai.bundle.run(
        run_id="inference",
        config_file=_files(root, "inference.yaml"),
        meta_file=_files(root, "metadata.json")[0],
        bundle_root=str(root),
        dataset_dir=str(labelled_folder / "images"),
        output_dir=str(tmp_path),
    )
    assert not list(elsewhere.iterdir())
    masks = sorted(tmp_path.glob("*_segmentation.png"))
    images = sorted((labelled_folder / "images").iterdir())
    assert len(masks) == len(images) == 6
    for mask, image in zip(masks, images, strict=True):
        with Image.open(mask) as written, Image.open(image) as source:
            assert written.size == source.size
            assert set(np.unique(written)) <= {0, 255}


def test_two_processes_train_one_adapter(tiny_bundle: Path, labelled_folder: Path, tmp_path: Path):
    settings = _training_settings(labelled_folder, tmp_path)
    files = str(_files(tiny_bundle, "train.yaml", "multi_gpu_train.yaml"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    command += ["monai.bundle", "run", "training", "--config_file", files, "--bundle_root", str(tiny_bundle)]
    command += ["--meta_file", _files(tiny_bundle, "metadata.json")[0]]
    command += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "adapter.safetensors").is_file()
    assert (tmp_path / "history.csv").read_text().count("\n") == 1 + 2


def test_an_adapter_is_used_with_the_shipped_bundle_it_was_trained_with(tmp_path: Path):
    network = build_amsam("tiny", input_size=64)
    save_adapter(network, tmp_path / "a.safetensors", {"bundle": "amsam_body"})
    assert default_bundle(tmp_path / "a.safetensors") == "amsam_body"


def test_an_adapter_cannot_choose_a_bundle_that_is_not_shipped(tmp_path: Path):
    save_adapter(build_amsam("tiny", input_size=64), tmp_path / "a.safetensors", {"bundle": "somebodys"})
    with pytest.raises(
        WeightsError, match=r"'somebodys', which is not one of the shipped.*give its folder with --bundle"
    ):
        default_bundle(tmp_path / "a.safetensors")


def test_an_adapter_of_another_shipped_bundle_is_refused(tmp_path: Path):
    save_adapter(build_amsam("tiny", input_size=64), tmp_path / "a.safetensors", {"bundle": "amsam_body"})
    with pytest.raises(WeightsError, match=r"with bundle amsam_body, not with amsam_isic; leave out --bundle, or give"):
        open_bundle("amsam_isic", "inference", model_overrides(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("configured", [{}, {"bundle_sha256": "0" * 64}])
def test_an_adapter_of_a_bundle_of_ones_own_is_refused_with_a_shipped_one(configured: dict[str, str], tmp_path: Path):
    record = {"bundle": "foot_ulcers", **configured}
    save_adapter(build_amsam("tiny", input_size=64), tmp_path / "a.safetensors", record)
    with pytest.raises(
        WeightsError,
        match=r"with bundle 'foot_ulcers'.*, not with amsam_isic .*give the folder of .*--bundle",
    ):
        open_bundle("amsam_isic", "inference", model_overrides(tmp_path / "a.safetensors"))


def test_an_adapter_may_be_used_with_the_same_configuration_under_another_name(tmp_path: Path):
    root = REPOSITORY / "bundles" / "amsam_isic"
    record = {"bundle": "copied", "bundle_sha256": bundle_digest(root)}
    save_adapter(build_amsam("tiny", base_weights=weights.find("tiny")), tmp_path / "a.safetensors", record)
    open_bundle("amsam_isic", "inference", model_overrides(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("detector", ["other", "none"])
def test_an_adapter_with_another_detector_than_its_own_is_refused(detector: str, tiny_bundle: Path, tmp_path: Path):
    base, own = tiny_bundle / "base.safetensors", tiny_bundle / "models" / "detector.safetensors"
    network = build_amsam("tiny", input_size=64, base_weights=base)
    save_adapter(network, tmp_path / "a.safetensors", {"detector_sha256": sha256(own)})
    open_bundle(tiny_bundle, "inference", model_overrides(tmp_path / "a.safetensors", base))
    save_detector(YoloDetector(input_size=64), tmp_path / "other.safetensors")
    given = "none" if detector == "none" else str(tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"boxes of the detector of sha256 .*its detector as --detector"):
        open_bundle(tiny_bundle, "inference", model_overrides(tmp_path / "a.safetensors", base, given))


def test_an_adapter_that_looks_at_no_box_needs_no_detector(tiny_bundle: Path, tmp_path: Path):
    base = tiny_bundle / "base.safetensors"
    network = build_amsam("tiny", input_size=64, base_weights=base, prompt="none")
    save_adapter(network, tmp_path / "a.safetensors", {"detector_sha256": "0" * 64})
    open_bundle(tiny_bundle, "inference", model_overrides(tmp_path / "a.safetensors", base))


def test_an_adapter_of_a_bundle_that_has_changed_since_is_refused(tiny_bundle: Path, tmp_path: Path):
    network = build_amsam("tiny", input_size=64, base_weights=tiny_bundle / "base.safetensors")
    save_adapter(network, tmp_path / "a.safetensors", {"bundle": "tiny_bundle", "bundle_sha256": "0" * 64})
    overrides = model_overrides(tmp_path / "a.safetensors", base_weights=tiny_bundle / "base.safetensors")
    with pytest.raises(
        WeightsError, match=r"a\.safetensors was trained with bundle 'tiny_bundle' of configuration 0000"
    ):
        open_bundle(tiny_bundle, "inference", overrides)


@pytest.mark.parametrize(
    "text", ["$__import__('os').mkdir('PROOF')", "@bundle_root", "%train.yaml::run", "a::b#c", "$"]
)
def test_a_text_from_outside_is_that_text_and_never_configuration(
    text: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    parser = open_bundle(
        tiny_bundle, "train", {"dataset_dir": text, "train::trainer::max_epochs": text, "seed": [text]}
    )
    assert parser.get_parsed_content("dataset_dir") == text
    assert parser.get_parsed_content("train::trainer::max_epochs") == text
    assert parser.get_parsed_content("seed") == [text]
    assert parser.as_written("dataset_dir") == text
    assert not list(tmp_path.iterdir())


def test_a_dictionary_from_outside_is_not_built(tiny_bundle: Path):
    given = {"_target_": "os.getcwd"}
    assert open_bundle(tiny_bundle, "train", {"cache_dir": given}).get_parsed_content("cache_dir") == given


@pytest.mark.parametrize("content", ["", "[", "- a list", "'text'"])
def test_a_bundle_whose_configuration_is_no_configuration_is_named(content: str, tiny_bundle: Path, tmp_path: Path):
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "odd"))
    (root / "configs" / "inference.yaml").write_text(content)
    trust(root)
    with pytest.raises(AmsamError, match="odd"):
        open_bundle(root, "inference").get_parsed_content("network")


def test_a_part_that_a_foreign_bundle_cannot_build_is_named(tiny_bundle: Path, tmp_path: Path):
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "odd"))
    with (root / "configs" / "inference.yaml").open("a") as file:
        file.write("odd: '$nothing.here'\n")
    trust(root)
    with pytest.raises(ConfigError, match=r"bundle odd: its part 'odd' cannot be built .*nothing"):
        open_bundle(root, "inference").get_parsed_content("odd")


def test_an_exchanged_detector_of_a_shipped_bundle_is_noticed_when_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(REPOSITORY / "bundles", tmp_path / "bundles")
    monkeypatch.setattr("amsam_med.weights.bundles_folder", lambda: tmp_path / "bundles")
    models = [tmp_path / "bundles" / bundle / "models" for bundle in BUNDLES]
    shutil.copy(models[1] / "detector.safetensors", models[0] / "detector.safetensors")
    parser = open_bundle(tmp_path / "bundles" / "amsam_isic", "inference")
    with pytest.raises(WeightsError, match=r"detector\.safetensors is damaged or other weights than lesion-detector"):
        parser.get_parsed_content("detector")


def test_unknown_bundles_and_entries_are_refused_by_name(tiny_bundle: Path):
    with pytest.raises(DataError, match="amsam_isic"):
        locate_bundle("amsam_heart")
    with pytest.raises(ConfigError, match="colour"):
        open_bundle(tiny_bundle, "inference", {"colour": "red"})


def test_a_bundle_without_its_model_says_so(tiny_bundle: Path):
    parser = open_bundle(tiny_bundle, "inference", {"model_file": str(tiny_bundle / "models" / "nowhere.pt")})
    with pytest.raises(RuntimeError, match="does not exist") as caught:
        parser.get_parsed_content("network")
    assert isinstance(caught.value, WeightsError) or isinstance(caught.value.__cause__, WeightsError)


def test_settings_of_a_bundles_network_are_the_defaults_of_build_amsam(tiny_bundle: Path):
    network = open_bundle(tiny_bundle, "inference").get_parsed_content("network_def")
    assert network.settings == build_amsam("tiny", input_size=64).settings


def _md5(path: Path) -> str:
    import hashlib

    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
