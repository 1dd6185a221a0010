"""A folder of studies that came from others: its index, its links, its versions."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from amsam_med.errors import ConfigError, DataError, WeightsError
from amsam_med.label.index import INDEX
from amsam_med.label.models import CURRENT, LOCK, VERSION, LabelModel
from amsam_med.label.server import import_monailabel
from amsam_med.train import ADAPTER

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # MONAI Label's, of distutils
    import_monailabel()
    from amsam_med.label.datastores import FolderStudies
    from amsam_med.label.tasks import BatchTask, DiceScoring, RandomStrategy

ENDINGS = ["*.png", "*.jpg", "*.nii.gz"]
FACTS = {"number": 1, "adapter": f"0001/{ADAPTER}", "d2_dice": 0.9, "replaced_dice": 0.8, "examples": 4, "seconds": 7.5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, and a secret beside the folder that they are in."""
    (tmp_path / "studies").mkdir()
    for name in ("a", "b"):
        PIL.Image.new("L", (7, 5)).save(tmp_path / "studies" / f"{name}.png")
    PIL.Image.new("L", (7, 5), 255).save(tmp_path / "secret.png")
    return tmp_path / "studies"


@pytest.fixture
def opened(folder: Path) -> Callable[..., FolderStudies]:
    return lambda **how: FolderStudies(folder, ENDINGS, is_watched=False, **how)


def listed(**objects: Any) -> str:
    content = {"name": "x", "description": "x", "images_dir": ".", "labels_dir": "labels", "objects": objects}
    return json.dumps(content)


def image(ext: str = ".png", labels: dict[str, Any] | None = None, **info: Any) -> dict[str, Any]:
    return {"image": {"ext": ext, "info": info}, "labels": labels or {}}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "invalid JSON"),
        ("[1]", "object"),
        ("[" * 100_000, "damaged"),
        (listed(**{"../secret": image()}), "objects.../secret"),
        (listed(**{"a/../../secret": image()}), "should match pattern"),
        (listed(**{"/etc/passwd": image()}), "should match pattern"),
        (listed(**{"a\n": image()}), "should match pattern"),
        (listed(a=image(ext="/../../secret.png")), "objects.a.image.ext"),
        (listed(a=image(ext=".p/g")), "objects.a.image.ext"),
        (listed(a=image(labels={"../..": {"ext": ".png"}})), "objects.a.labels"),
        (listed(a=image(labels={"..": {"ext": ".png"}})), "objects.a.labels"),
        (listed(a=image(labels={"final": {"ext": "../x.png"}})), "objects.a.labels.final.ext"),
        (listed(a=image(strategy=5)), "'strategy'"),
        (listed(a=image(strategy={"random": {"ts": "soon"}})), "objects.a.image.info"),
        (listed(a=image(note="x" * 100_000)), "at most 65,536"),
        (listed(a={**image(), "code": "x"}), "objects.a.code"),
        (listed().replace('"."', '"/etc"'), "images_dir"),
        (
            listed().replace('"labels"', '"../.."', 1).replace('"labels_dir": "labels"', '"labels_dir": "/tmp"'),
            "labels_dir",
        ),
        (listed(a=image()).replace('"ext"', '"exec"'), "exec"),
        (listed(a=image(x=1)).replace("1}", "NaN}"), "no finite number"),
        (listed(a=image(x=1)).replace("1}", '"\\ud800"}'), "damaged"),
    ],
)
def test_an_index_that_says_what_it_may_not_is_named(
    folder: Path, opened: Callable[..., FolderStudies], content: str, text: str
) -> None:
    (folder / INDEX).write_text(content)
    with pytest.raises(ConfigError, match=r"datastore_v2\.json in .* is damaged \(.*delete it") as caught:
        opened()
    assert any(part in str(caught.value) for part in text.split("|")), caught.value


def test_an_index_that_is_damaged_later_is_told_in_the_log(
    folder: Path, opened: Callable[..., FolderStudies], caplog: pytest.LogCaptureFixture
) -> None:
    studies = opened()
    (folder / INDEX).write_text(listed(**{"../secret": image()}))
    os.utime(folder / INDEX, (1, 1))
    studies.refresh()
    assert sorted(studies.list_images()) == ["a", "b"]
    assert "is damaged" in caplog.text


def test_an_index_names_pictures_alone(folder: Path, opened: Callable[..., FolderStudies]) -> None:
    """NumPy's files may hold code that runs when they are loaded."""
    (folder / "labels" / "final").mkdir(parents=True)
    np.save(folder / "labels" / "final" / "a.npy", np.zeros(3))
    np.save(folder / "c.npy", np.zeros(3))
    (folder / INDEX).write_text(
        listed(
            a=image(labels={"final": {"ext": ".npy"}}), c=image(".npy"), labels=image(""), datastore_v2=image(".json")
        )
    )
    studies = opened()
    assert sorted(studies.list_images()) == ["a", "b"]
    assert studies.get_label_uri("a", "final") == ""


@pytest.mark.parametrize("name", ["labels", "labels/final", "labels/original", ".lock", INDEX])
def test_places_that_are_written_to_may_not_be_links(
    folder: Path, tmp_path: Path, opened: Callable[..., FolderStudies], name: str
) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="is a link or another thing"):
        opened()


def test_links_out_of_the_folder_are_left_out(
    folder: Path, tmp_path: Path, opened: Callable[..., FolderStudies], caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "labels" / "final").mkdir(parents=True)
    (folder / "labels" / "final" / "a.png").symlink_to(tmp_path / "secret.png")
    (folder / "labels" / "own").symlink_to(tmp_path)
    for name in ("c.png", "../studies/d.png"):
        (folder / name).symlink_to(tmp_path / "secret.png")
    (folder / "e.png").symlink_to("a.png")
    (folder / INDEX).write_text(listed(d=image(labels={"final": {"ext": ".png"}})))
    studies = opened()
    assert sorted(studies.list_images()) == ["a", "b", "e"]
    assert studies.get_label_uri("a", "final") == studies.get_image_uri("d") == ""
    assert studies.datalist() == []
    assert "'c.png' is left out: a link out of the folder" in caplog.text
    assert sorted(opened(follows_links=True).list_images()) == ["a", "b", "c", "d", "e"]


def test_names_that_cannot_be_shown_are_left_out(folder: Path, opened: Callable[..., FolderStudies]) -> None:
    for name in (b"\xff.png", b"a\nb.png", b".hidden.png", b"x\x1b[2J.png"):
        PIL.Image.new("L", (7, 5)).save(os.fsdecode(os.path.join(os.fsencode(folder), name)), format="PNG")
    (folder / "folder.png").mkdir()
    (folder / "<img src=x onerror=alert(1)>.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "a.png.png").write_bytes((folder / "a.png").read_bytes())
    names = sorted(opened().list_images())
    assert names == ["<img src=x onerror=alert(1)>", "a", "a.png", "b"]
    assert sorted(opened().list_images()) == names  # the index can be read again


def test_removing_a_link_leaves_what_it_leads_to(
    folder: Path, tmp_path: Path, opened: Callable[..., FolderStudies]
) -> None:
    (tmp_path / "precious.png").mkdir()
    (folder / "c.png").symlink_to(tmp_path / "secret.png")
    studies = opened(follows_links=True)
    studies.remove_image("c")
    assert not (folder / "c.png").is_symlink()
    assert (tmp_path / "secret.png").is_file()
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(tmp_path / "precious.png")
    studies.remove_image("a")
    assert (tmp_path / "precious.png").is_dir()


def test_a_folder_that_is_called_like_an_image_is_not_removed(
    folder: Path, opened: Callable[..., FolderStudies]
) -> None:
    studies = opened()
    (folder / "a.png").unlink()
    (folder / "a.png").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        studies.remove_image("a")


def test_nothing_is_written_through_a_link(folder: Path, tmp_path: Path, opened: Callable[..., FolderStudies]) -> None:
    studies = opened()
    (folder / "new.png").symlink_to(tmp_path / "written.png")
    with pytest.raises(DataError, match="there is an image 'new' already"):
        studies.add_image("new", str(tmp_path / "secret.png"), {})
    (folder / "labels" / "own").symlink_to(tmp_path)
    (tmp_path / "a.png").write_bytes(b"precious")
    with pytest.raises(DataError, match="nothing is written or removed through links"):
        studies.save_label("a", str(tmp_path / "secret.png"), "own", {})
    assert not (tmp_path / "written.png").exists()
    assert (tmp_path / "a.png").read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["x" * 400, "ü" * 100, "a/b", "..", ".x", "a\0b", "a\nb", "\ud800"])
def test_a_name_that_no_file_can_have_is_refused(
    folder: Path, tmp_path: Path, opened: Callable[..., FolderStudies], name: str
) -> None:
    with pytest.raises(DataError, match="cannot be the name of an image"):
        opened().add_image(name, str(tmp_path / "secret.png"), {})


@pytest.mark.parametrize("tag", ["", "..", "a/b", "x" * 100, "é", "a b", None])
def test_a_tag_is_one_word(folder: Path, tmp_path: Path, opened: Callable[..., FolderStudies], tag: Any) -> None:
    with pytest.raises(DataError, match="cannot be a tag of labels"):
        opened().save_label("a", str(tmp_path / "secret.png"), tag, {})


@pytest.mark.parametrize(
    "note",
    [[1], 5, {"x": float("nan")}, {"x": "\ud800"}, {"x": "y" * 100_000}, {"strategy": 5}, {"strategy": {"random": 1}}],
)
def test_a_note_that_would_poison_the_index_is_not_kept(
    folder: Path, opened: Callable[..., FolderStudies], note: Any
) -> None:
    studies = opened()
    deep: Any = {}
    for _ in range(1000):
        deep = {"x": deep}
    for one in (note, deep):
        with pytest.raises(DataError):
            studies.update_image_info("a", one)
    assert sorted(opened().list_images()) == ["a", "b"]


def test_the_random_image_is_one_even_if_all_were_just_chosen(
    folder: Path, opened: Callable[..., FolderStudies]
) -> None:
    studies = opened()
    for name in ("a", "b"):
        studies.update_image_info(name, {"strategy": {"random": {"ts": int(time.time()) + 5, "client_id": "x"}}})
    chosen = RandomStrategy()({"strategy": "random"}, studies)
    assert chosen is not None
    assert chosen["id"] in ("a", "b")


def test_dice_of_drafts_needs_no_loader_that_guesses(folder: Path, opened: Callable[..., FolderStudies]) -> None:
    for tag, value in (("final", 255), ("original", 255)):
        (folder / "labels" / tag).mkdir(parents=True, exist_ok=True)
        PIL.Image.new("L", (7, 5), value).save(folder / "labels" / tag / "a.png")
    (folder / "labels" / "final" / "b.png").write_bytes(b"rubbish")
    PIL.Image.new("L", (7, 5)).save(folder / "labels" / "original" / "b.png")
    studies = opened()
    assert DiceScoring()({}, studies) == {"a": 1.0}
    assert studies.get_image_info("a")["dice"] == 1.0


def test_a_batch_without_a_gpu_looks_at_each_image(
    folder: Path, tmp_path: Path, opened: Callable[..., FolderStudies]
) -> None:
    def infer(request: dict[str, Any], _: Any) -> dict[str, Any]:
        if request["image"] == "b":
            raise DataError("b: damaged")
        (tmp_path / "result.png").write_bytes(b"x")
        return {"file": str(tmp_path / "result.png"), "label": "a", "params": {}}

    found = BatchTask()({"model": "m", "max_batch_size": 5}, opened(), infer)
    assert found == {"a": {"label": "a", "params": {}}, "b": {}}
    assert not (tmp_path / "result.png").exists()


@pytest.fixture
def model(tmp_path: Path) -> LabelModel:
    return LabelModel("amsam_isic", tmp_path / "versions")


def write_version(model: LabelModel, number: int, /, **facts: Any) -> Path:
    """A version whose adapter is the base without training."""
    model.base = "tiny-general"
    folder = model.folder / f"{number:04d}"
    folder.mkdir(parents=True)
    (folder / ADAPTER).write_bytes(model._untrained("tiny-general").read_bytes())
    content = {**FACTS, "number": number, "adapter": f"{number:04d}/{ADAPTER}", **facts}
    (folder / VERSION).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "facts",
    [
        {"adapter": "../../secret/adapter.safetensors"},
        {"adapter": "/etc/passwd"},
        {"adapter": f"0001/{ADAPTER}"},
        {"adapter": f"0002/../0001/{ADAPTER}"},
        {"number": 1},
        {"number": "2"},
        {"number": True},
        {"number": 10**30},
        {"d2_dice": "$__import__('os').system('id')"},
        {"d2_dice": None},
        {"d2_dice": 7},
        {"bundle": "../other"},
        {"_target_": "os.system"},
        {"examples": [[]]},
    ],
)
def test_a_malformed_version_is_left_out_and_the_others_are_there(
    model: LabelModel, caplog: pytest.LogCaptureFixture, facts: dict[str, Any]
) -> None:
    write_version(model, 1)
    write_version(model, 2, **facts)
    write_version(model, 3)
    assert [version.number for version in model.versions()] == [1, 3]
    assert [version.number for version in model.versions()] == [1, 3]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("Version 0002 of amsam_isic is left out: ")


def test_a_version_with_a_damaged_adapter_is_left_out(model: LabelModel) -> None:
    write_version(model, 1)
    (write_version(model, 2) / ADAPTER).write_bytes(b"rubbish")
    (write_version(model, 3) / ADAPTER).unlink()
    (model.folder / "0004").mkdir()
    (model.folder / "0004" / VERSION).mkdir()
    (model.folder / "²").mkdir()
    assert [version.number for version in model.versions()] == [1]


@pytest.mark.parametrize("name", ["0001", f"0001/{ADAPTER}", f"0001/{VERSION}", CURRENT, ""])
def test_versions_are_not_read_through_links(model: LabelModel, tmp_path: Path, name: str) -> None:
    folder = write_version(model, 1)
    (model.folder / CURRENT).write_text((folder / VERSION).read_text())
    assert model.current() == model.versions()[0]
    place = model.folder / name
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    if name != CURRENT:
        assert model.versions() == []
    if name != f"0001/{VERSION}":
        with pytest.raises(WeightsError, match=r"link|not a file of its own"):
            model.current()


@pytest.mark.parametrize(
    "content", ['{"number": 1', "[]", json.dumps({**FACTS, "adapter": "../x/adapter.safetensors"})]
)
def test_the_version_in_use_is_not_guessed(model: LabelModel, content: str) -> None:
    write_version(model, 1)
    (model.folder / CURRENT).write_text(content)
    with pytest.raises(WeightsError, match=r"current\.json: .*delete current\.json of amsam_isic to begin anew"):
        model.current()
    assert [version.number for version in model.versions()] == [1]


def test_a_base_that_came_with_the_folder_is_not_used(model: LabelModel, tmp_path: Path) -> None:
    planted = model.folder / "0000" / ADAPTER
    planted.parent.mkdir(parents=True)
    planted.write_bytes(b"planted")
    assert model._untrained("tiny-general").read_bytes() != b"planted"


@pytest.mark.parametrize("name", ["", "0000", LOCK, "embeddings"])
def test_a_training_writes_through_no_link(model: LabelModel, tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").write_text("precious")
    if name:
        model.folder.mkdir()
    (model.folder / name).symlink_to(tmp_path / "elsewhere")
    model.base = "tiny-general"
    with pytest.raises(WeightsError, match="of its own"):
        model._untrained("tiny-general") if name == "0000" else model.learn([{"image": "x", "label": "x"}] * 2)
    assert (tmp_path / "elsewhere").read_text() == "precious"
