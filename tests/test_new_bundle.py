"""A bundle made from another one trains, segments and is scored, and says what it does not know yet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import monai.bundle
import pytest

from amsam_med import cli
from amsam_med.bundle import open_bundle
from amsam_med.errors import AmsamError, ConfigError, DataError, WeightsError
from amsam_med.new_bundle import Task, new_bundle
from amsam_med.segment import SegmentOptions, segment
from amsam_med.trust import UntrustedBundleError, is_trusted, trust
from tests.conftest import REPOSITORY

# What MONAI says on every opened configuration.
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")

ULCERS = Task("foot ulcer")


@pytest.fixture
def source(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of 64 pixels, with all files that a bundle has."""
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "source"))
    shutil.copy(REPOSITORY / "bundles" / "amsam_isic" / "LICENSE", root)
    return root


def values_of(bundle: Path, workflow: str) -> dict[str, object]:
    parser = open_bundle(bundle, workflow)  # type: ignore[arg-type]
    names = ("prompt", "views", "detector_file", "rival_margin", "nothing_below", "network_def::prompt")
    names += ("adapts", "halves", "pull")
    return {name: parser.as_written(name) for name in names}


def test_it_trains_segments_and_is_scored(
    source: Path, labelled_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, run = tmp_path / "ulcers", tmp_path / "run"
    assert cli.main(["bundle", "new", str(bundle), "--from", str(source), "--class-name", "foot ulcer"]) == 0
    assert f"Train it with: amsam train --data DATA -o RUN --bundle {bundle}\n" in capsys.readouterr().out
    data, few = ["--data", str(labelled_folder)], ["--shots", "4", "--epochs", "2"]
    assert cli.main(["train", *data, "-o", str(run), "--bundle", str(bundle), *few]) == 0
    base = str(source / "base.safetensors")
    model = ["--bundle", str(bundle), "--adapter", str(run / "adapter.safetensors"), "--base-weights", base]
    assert cli.main(["segment", str(labelled_folder / "images"), "-o", str(tmp_path / "masks"), *model]) == 0
    assert len(list((tmp_path / "masks").rglob("*_segmentation.png"))) == 6
    assert cli.main(["evaluate", *data, "-o", str(tmp_path / "scores"), *model]) == 0
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["images"] == 6


def test_without_a_detector_no_part_of_it_looks_at_boxes(source: Path, tmp_path: Path) -> None:
    bundle = new_bundle(tmp_path / "ulcers", ULCERS, source)
    train, inference = values_of(bundle, "train"), values_of(bundle, "inference")
    assert (train["prompt"], inference["network_def::prompt"]) == ("none", "none")
    assert train["detector_file"] is inference["detector_file"] is None
    assert (train["adapts"], train["halves"], train["pull"]) == ("neck", False, 0.1)
    assert not (bundle / "models").exists()
    assert "prompt: none" in (bundle / "configs" / "paper.yaml").read_text()


def test_a_detector_comes_along(source: Path, tmp_path: Path) -> None:
    detector = source / "models" / "detector.safetensors"
    boxless = new_bundle(tmp_path / "boxless", ULCERS, source)
    bundle = new_bundle(tmp_path / "boxed", Task("foot ulcer", detector=str(detector)), boxless)
    assert (bundle / "models" / "detector.safetensors").read_bytes() == detector.read_bytes()
    parser = open_bundle(bundle, "train")
    assert parser.get_parsed_content("detector_file") == str(bundle.resolve() / "models" / "detector.safetensors")
    assert values_of(bundle, "train")["prompt"] == values_of(bundle, "inference")["network_def::prompt"] == "box"


def test_views_are_the_sources_unless_others_are_wanted(tmp_path: Path) -> None:
    people = new_bundle(tmp_path / "workers", Task("worker"), "amsam_body")
    turned = new_bundle(tmp_path / "cells", Task("cell", views="all"), "amsam_body")
    assert [values_of(bundle, "train")["views"] for bundle in (people, turned)] == ["mirror", "all"]


def test_what_was_measured_on_the_sources_model_is_left_behind(tmp_path: Path) -> None:
    bundle = new_bundle(tmp_path / "ulcers", ULCERS)
    inference = values_of(bundle, "inference")
    assert (inference["rival_margin"], inference["nothing_below"]) == (None, 0)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["eval_metrics"] == {}
    assert "lesion" not in json.dumps({key: value for key, value in metadata.items() if key != "references"})
    assert "lesion" not in (bundle / "docs" / "README.md").read_text()


def test_all_else_is_the_sources(tmp_path: Path) -> None:
    root, bundle = REPOSITORY / "bundles" / "amsam_isic", new_bundle(tmp_path / "ulcers", ULCERS)
    assert {path.name for path in (bundle / "configs").iterdir()} == {
        path.name for path in (root / "configs").iterdir()
    }
    for name in ("evaluate.yaml", "multi_gpu_train.yaml", "train.yaml", "inference.yaml"):
        ours, theirs = ((one / "configs" / name).read_text().splitlines() for one in (bundle, root))
        differing = {one.split(":")[0].strip() for one, other in zip(ours, theirs, strict=True) if one != other}
        rule = {"adapts", "halves", "pull"}
        assert differing <= {"prompt", "detector_file", "rival_margin", "nothing_below", *rule}
    assert (bundle / "LICENSE").read_bytes() == (root / "LICENSE").read_bytes()
    licences = (bundle / "docs" / "data_license.txt").read_text()
    assert licences.startswith("Images that ulcers was trained on: to be filled in.\n")
    assert (root / "docs" / "data_license.txt").read_text() in licences


@pytest.mark.filterwarnings("ignore:No hash value provided:UserWarning")
def test_its_metadata_follows_monais_schema(data_root: Path, tmp_path: Path) -> None:
    bundle = new_bundle(tmp_path / "ulcers", ULCERS)
    schema = tmp_path / "meta_schema_20240725.json"
    shutil.copy(data_root.parent / "schema" / schema.name, schema)
    monai.bundle.verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=str(schema))


def test_the_copy_of_a_trusted_bundle_is_trusted_and_no_other_is_made(source: Path, tmp_path: Path) -> None:
    assert is_trusted(new_bundle(tmp_path / "ulcers", ULCERS, source))
    with (source / "configs" / "train.yaml").open("a") as file:
        file.write("more: '$print(1)'\n")
    with pytest.raises(UntrustedBundleError, match="--trust-bundle"):
        new_bundle(tmp_path / "others", ULCERS, source)
    assert not (tmp_path / "others").exists()


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("a b", "'a b' cannot be a bundle's name; expected letters"),
        ("", "cannot be a bundle's name"),
        ("amsam_body", "amsam_body is a shipped bundle.*choose another name"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(name: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=match):
        new_bundle(tmp_path / name if name else Path(), ULCERS)


@pytest.mark.parametrize("text", ["$print(1)", "@device", "%train.yaml::run", "two\nlines", "x" * 65, " "])
def test_a_class_name_that_is_no_plain_word_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the class name"):
        new_bundle(tmp_path / "ulcers", Task(text))


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert new_bundle(tmp_path / "empty", ULCERS) == tmp_path / "empty"
    with pytest.raises(ConfigError, match="empty exists already; choose another name, or remove it first"):
        new_bundle(tmp_path / "empty", ULCERS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_a_source_that_is_none_is_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is neither a shipped bundle \(amsam_body, amsam_isic\)"):
        new_bundle(tmp_path / "ulcers", ULCERS, "nowhere")
    (source / "LICENSE").unlink()
    with pytest.raises(DataError, match=r"bundle source: LICENSE cannot be read .*take a shipped bundle"):
        new_bundle(tmp_path / "ulcers", ULCERS, source)
    assert not list(tmp_path.glob("*ulcers*"))


def test_a_source_with_another_configuration_is_named(source: Path, tmp_path: Path) -> None:
    for name, old, new, match in (
        ("train.yaml", "\nprompt: box\n", "\n", r"train\.yaml has 0 lines with the entry 'prompt'; expected one"),
        ("metadata.json", "network_data_format", "format", r"metadata\.json has not what a network's output needs"),
    ):
        file = source / "configs" / name
        kept = file.read_text()
        file.write_text(kept.replace(old, new))
        trust(source)
        with pytest.raises(DataError, match=match):
            new_bundle(tmp_path / "ulcers", ULCERS, source)
        file.write_text(kept)


def test_a_file_that_is_no_detector_is_refused(source: Path, tmp_path: Path) -> None:
    for file in (tmp_path / "nowhere.safetensors", source / "base.safetensors"):
        with pytest.raises(WeightsError):
            new_bundle(tmp_path / "ulcers", Task("foot ulcer", detector=str(file)), source)
    assert not (tmp_path / "ulcers").exists()


def test_without_an_adapter_it_asks_for_one(source: Path, labelled_folder: Path, tmp_path: Path) -> None:
    bundle = new_bundle(tmp_path / "ulcers", ULCERS, source)
    with pytest.raises(AmsamError, match=r"model\.pt does not exist; give an adapter"):
        segment([labelled_folder / "images"], tmp_path / "masks", SegmentOptions(bundle=str(bundle)))


def test_boxes_without_a_detector_are_refused_when_it_is_trained(
    source: Path, labelled_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = new_bundle(tmp_path / "ulcers", ULCERS, source)
    command = ["train", "--data", str(labelled_folder), "-o", str(tmp_path / "run"), "--bundle", str(bundle)]
    assert cli.main([*command, "--prompt", "box"]) == 2
    assert "--prompt box needs a detector" in capsys.readouterr().err
