"""What can go wrong with a training besides its data: run folders of others, divergence, memory, disks, signals."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from amsam_med.checkpoint import read_adapter
from amsam_med.errors import ConfigError, DataError, WeightsError
from amsam_med.learn.loss import SegmentationLoss
from amsam_med.locks import held
from amsam_med.tensors import refuse_non_finite
from amsam_med.train import LOCK, TrainOptions, train
from tests.cli_process import AmsamProcess, Strike, amsam
from tests.learn.test_resume import Attack
from tests.test_train import is_same_adapter

SETTINGS = {"shots": 4, "epochs": 2, "views": "none"}
WORDS = ["--shots", "4", "--epochs", "2", "--views", "none", "--input-size", "64"]


class FailingLoss:
    """The loss of a training, which something befalls at its n-th call; each step takes two."""

    def __init__(self, calls: int, befalls: Callable[[Tensor], Tensor]) -> None:
        self.loss, self.calls, self.befalls = SegmentationLoss(), calls, befalls

    def __call__(self, mask_logits: Tensor, label: Tensor) -> Tensor:
        self.calls -= 1
        loss: Tensor = self.loss(mask_logits, label)
        return self.befalls(loss) if self.calls == 0 else loss


def run_out_of_memory(_: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total of 8 GiB")


def with_a_gradient_of_nan(loss: Tensor) -> Tensor:
    loss.register_hook(lambda gradient: gradient * float("nan"))
    return loss


def run(bundle: Path, data: Path, folder: Path, resume: bool = False, **overrides: Any) -> None:
    train(data, folder, TrainOptions(str(bundle), {**SETTINGS, **overrides}, resume))


@pytest.fixture(scope="module")
def finished(tiny_bundle: Path, labelled_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as those that are disturbed: in a process of its own, as this one may have another number of threads."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    words = ["train", "--data", labelled_folder, "-o", folder, "--bundle", tiny_bundle, *WORDS]
    code, printed = amsam(*words, log=folder.with_name("log"))
    assert code == 0, printed
    return folder


@pytest.fixture
def sent(finished: Path, tmp_path: Path) -> Path:
    """A finished run as somebody else sends it."""
    return shutil.copytree(finished, tmp_path / "sent")


def test_code_in_a_sent_checkpoint_does_not_run(
    sent: Path, tiny_bundle: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    attack: Any = Attack(tmp_path / "PROOF")
    state = torch.load(sent / "checkpoint.pt", weights_only=True)
    torch.save({**state, "record": attack}, sent / "checkpoint.pt")
    with pytest.raises(
        WeightsError, match=r"checkpoint\.pt: this checkpoint cannot be continued: damaged, or it holds"
    ):
        run(tiny_bundle, labelled_folder, sent, resume=True)
    assert not (tmp_path / "PROOF").exists()


def test_an_empty_checkpoint_is_a_fault_and_no_interruption(
    sent: Path, tiny_bundle: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    (sent / "checkpoint.pt").write_bytes(b"")
    command = ["train", "--data", labelled_folder, "-o", sent, "--bundle", tiny_bundle, *WORDS, "--resume"]
    code, printed = amsam(*command, log=tmp_path / "log")
    assert code == 1
    assert printed.startswith(f"Error: {sent}/checkpoint.pt: ")
    assert printed.count("\n") == 1


def test_what_does_not_stand_in_a_split_is_refused(sent: Path, tiny_bundle: Path, labelled_folder: Path) -> None:
    split = json.loads((sent / "split.json").read_text())
    bad = [
        "",
        "no JSON",
        "[]",
        '{"d1": []}',
        json.dumps({**split, "code": "$__import__('os')"}),
        json.dumps({**split, "d1": [{"image": 1, "label": "a"}]}),
        json.dumps({**split, "network": {"base": {"_target_": "os.system"}}}),
        json.dumps({**split, "settings": {"a b": 1}}),
        "[" * 100_000,
    ]
    for content in bad:
        (sent / "split.json").write_text(content)
        with pytest.raises(DataError, match=r"split\.json: .*; give another folder"):
            run(tiny_bundle, labelled_folder, sent, resume=True)
    (sent / "split.json").unlink()
    with pytest.raises(DataError, match=r"split\.json is missing"):
        run(tiny_bundle, labelled_folder, sent, resume=True)


def test_a_split_that_is_a_pipe_does_not_hang(sent: Path, tiny_bundle: Path, labelled_folder: Path) -> None:
    (sent / "split.json").unlink()
    os.mkfifo(sent / "split.json")
    with pytest.raises(DataError, match=r"split\.json: not a regular file"):
        run(tiny_bundle, labelled_folder, sent, resume=True)


@pytest.mark.parametrize(("shade", "said"), [(0, "masks of D1 are empty"), (255, "masks of D1 are object from edge")])
def test_masks_that_teach_nothing_are_named(
    shade: int, said: str, tiny_bundle: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(labelled_folder, tmp_path / "data")
    for path in (data / "masks").iterdir():
        with Image.open(path) as mask:
            size = mask.size
        Image.new("L", size, shade).save(path)
    with pytest.raises(DataError, match=rf"all 2 {said}.*\(synthetic_0000_000\d\.png, synthetic"):
        run(tiny_bundle, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("call", "level"), [(5, "lower"), (6, "upper")])
def test_a_training_that_diverges_says_so_and_keeps_the_best_adapter(
    call: int, level: str, tiny_bundle: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    loss = FailingLoss(call, lambda loss: loss * float("nan"))
    said = rf"diverged in epoch 2: the loss of the {level} level is nan; train with smaller learning rates \(lower_rate"
    with pytest.raises(ConfigError, match=rf"{said}.* of epoch 1, stay in .*adapter\.safetensors$"):
        run(tiny_bundle, labelled_folder, tmp_path, loss_function=loss)
    assert read_adapter(tmp_path / "adapter.safetensors")[1]["epoch"] == 1
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 2


def test_weights_that_diverge_after_the_last_loss_are_not_written(
    tiny_bundle: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    loss = FailingLoss(4, with_a_gradient_of_nan)
    with pytest.raises(ConfigError, match="diverged in epoch 1: the network holds NaN or infinity"):
        run(tiny_bundle, labelled_folder, tmp_path, loss_function=loss)
    assert {path.name for path in tmp_path.iterdir()} == {"split.json"}


@pytest.mark.parametrize("part", ["loss_function", "detector"])
def test_too_little_memory_is_one_sentence(part: str, tiny_bundle: Path, labelled_folder: Path, tmp_path: Path) -> None:
    failing = {"loss_function": FailingLoss(2, run_out_of_memory), "detector": run_out_of_memory}[part]
    with pytest.raises(ConfigError, match=r"too little memory .*; give a smaller --batch-size") as caught:
        run(tiny_bundle, labelled_folder, tmp_path / "run", **{part: failing})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "adapter.safetensors").exists()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk on which no file may grow beyond a size: it refuses as a full one does."""
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))


@pytest.mark.parametrize("size", [100, 10_000, 3_000_000])
def test_a_full_disk_is_one_sentence_and_leaves_whole_files(
    size: int, tiny_bundle: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"cannot be read or written .*; make room"), files_of_at_most(size):
        run(tiny_bundle, labelled_folder, tmp_path / "run")
    left = {path.name for path in (tmp_path / "run").glob("*")}
    assert left <= {"split.json", "adapter.safetensors", "history.csv"}
    run(tiny_bundle, labelled_folder, tmp_path / "run", resume=True)
    refuse_non_finite({}, str(read_adapter(tmp_path / "run" / "adapter.safetensors")))


@pytest.mark.parametrize("name", ["file/run", "file", "n" * 300])
def test_a_folder_that_cannot_be_made_is_named_before_any_work(
    name: str, tiny_bundle: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be read or written"):
        run(tiny_bundle, labelled_folder, tmp_path / name)


def test_a_folder_in_use_is_refused(tiny_bundle: Path, labelled_folder: Path, tmp_path: Path) -> None:
    with held(tmp_path / LOCK, "it"), pytest.raises(ConfigError, match="another process is writing the run in"):
        run(tiny_bundle, labelled_folder, tmp_path)


@pytest.mark.parametrize("inner", ["images", "masks/run"])
def test_an_output_among_the_data_is_refused(inner: str, tiny_bundle: Path, labelled_folder: Path) -> None:
    before = sorted(labelled_folder.rglob("*"))
    with pytest.raises(ConfigError, match="lies among the images or masks"):
        run(tiny_bundle, labelled_folder, labelled_folder / inner)
    assert sorted(labelled_folder.rglob("*")) == before


def test_what_a_killed_run_left_is_swept(tiny_bundle: Path, labelled_folder: Path, tmp_path: Path) -> None:
    left = [".checkpoint.pt.0123abcd.pt", ".adapter.safetensors.0123abcd.safetensors", ".split.json.0123abcd.json"]
    for name in left:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".notes.0123abcd.txt").touch()
    run(tiny_bundle, labelled_folder, tmp_path)
    assert [path.name for path in tmp_path.glob(".*")] == [".notes.0123abcd.txt"]


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("adapter.safetensors", signal.SIGTERM),
        ("checkpoint.pt", signal.SIGHUP),
        ("history.csv", signal.SIGKILL),
        ("checkpoint.pt", signal.SIGKILL),
    ],
)
def test_a_run_that_is_told_to_end_goes_on_to_the_same_adapter(
    path: str, number: signal.Signals, finished: Path, tiny_bundle: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    command = ["train", "--data", labelled_folder, "-o", tmp_path / "run", "--bundle", tiny_bundle, *WORDS]
    process = AmsamProcess(command, tmp_path / "log", Strike("os.rename", f"/{path}", number))
    assert process.wait() == (-9 if number == signal.SIGKILL else 128 + number), process.printed
    if number != signal.SIGKILL:
        assert process.printed.startswith(f"Ended by {number.name}. With --resume the same command goes on")
        assert not [*(tmp_path / "run").glob(".*")]
    code, printed = amsam(*command, "--resume", log=tmp_path / "log")
    assert code == 0, printed
    assert is_same_adapter(tmp_path / "run" / "adapter.safetensors", finished / "adapter.safetensors")
    assert not [*(tmp_path / "run").glob(".*")]


NAMES = ["$a$_$\\frac$.png", "图像.png", "<b>&.png", "=1+1.png", "a b%c@d::e.png", os.fsdecode(b"\xff.png")]


def test_images_of_any_name_are_trained_on_and_resumed(
    tiny_bundle: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for source, name in zip(sorted((labelled_folder / kind).iterdir()), NAMES, strict=True):
            with Image.open(source) as picture:
                picture.save(tmp_path / "data" / kind / name, "PNG")
    for resume in (False, True):
        run(tiny_bundle, tmp_path / "data", tmp_path / "run", resume, shots=6)
    split = (tmp_path / "run" / "split.json").read_bytes().decode("utf-8")
    assert r"/\\xff.png" in split
