"""What `amsam segment` makes of kills, Ctrl-C, full disks, locked folders, and files that change under its hands."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from amsam_med import measure
from amsam_med.errors import ConfigError
from amsam_med.model.amsam import Prediction
from amsam_med.segment import SegmentOptions, SegmentSummary, Step, segment
from amsam_med.segment.stages import _Budget
from amsam_med.synthetic import write_dermoscopy
from amsam_med.weights import sha256
from tests.cli_process import AmsamProcess, Strike, amsam
from tests.small_bundle import write_picture, write_small_bundle

PHOTOS = 16
KILLS = 4


@pytest.fixture(scope="module")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_dermoscopy(folder, PHOTOS, seed=0, size=(48, 64))
    return folder / "images"


@pytest.fixture(scope="module")
def undisturbed(photos: Path, small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run to which nothing happened."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, printed = amsam(*words_for(photos, folder / "out", small_bundle), log=folder / "log")
    assert code == 0, printed
    return folder / "out"


@pytest.fixture
def options(small_bundle: Path) -> SegmentOptions:
    return SegmentOptions(str(small_bundle), formats=("png",), device="cpu", batch_size=1)


def words_for(photos: Path, output: Path, bundle: Path, *more: str) -> list[str]:
    return ["segment", str(photos), "-o", str(output), "--bundle", str(bundle), "--device", "cpu", *more]


def rows_of(output: Path) -> list[dict[str, str]]:
    """The rows of ``results.csv``, also of a run that goes on."""
    with (output / "results.csv").open(newline="", errors="surrogateescape") as stream:
        return [row for row in csv.DictReader(stream) if row["error"] is not None]


def state_of(output: Path) -> str:
    return str(json.loads((output / "run.json").read_text())["state"])


def results_in(output: Path) -> dict[str, bytes]:
    """Masks and overlays by their path in the output folder."""
    found = [path for name in ("masks", "overlays") for path in sorted((output / name).rglob("*")) if path.is_file()]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in found}


def recorded_in(output: Path) -> dict[Path, tuple[int, int]]:
    """When and where on the disk the results were written that ``results.csv`` names."""
    paths = [output / row[column] for row in rows_of(output) for column in ("mask_file", "overlay_file")]
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in paths}


def table_without_times(output: Path) -> list[dict[str, str]]:
    return [{name: cell for name, cell in row.items() if name != "seconds"} for row in rows_of(output)]


def assert_as_undisturbed(output: Path, undisturbed: Path) -> None:
    assert len(results_in(undisturbed)) == 2 * PHOTOS
    assert results_in(output) == results_in(undisturbed)
    assert table_without_times(output) == table_without_times(undisturbed)
    assert state_of(output) == "complete"
    found, expected = ({path.relative_to(top) for path in top.rglob("*")} for top in (output, undisturbed))
    assert found == expected  # and so no temporary files


def wait_until(is_so: Callable[[], bool], process: AmsamProcess) -> None:
    end = time.monotonic() + 120
    while not is_so():
        assert process.is_running, process.printed
        assert time.monotonic() < end, process.printed
        time.sleep(0.002)


def wait_for_masks(output: Path, count: int, process: AmsamProcess) -> None:
    wait_until(lambda: len(list((output / "masks").glob("[!.]*"))) >= count, process)


# Killed


def test_a_run_that_is_killed_again_and_again_does_every_file_once(
    photos: Path, small_bundle: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    words = words_for(photos, output, small_bundle, "--batch-size", "1")
    recorded: dict[Path, tuple[int, int]] = {}
    moments = np.random.default_rng(0).integers(1, PHOTOS // KILLS, KILLS).cumsum()
    for masks in moments:
        process = AmsamProcess(words, tmp_path / "log")
        wait_for_masks(output, int(masks), process)
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert recorded.items() <= recorded_in(output).items()
        recorded = recorded_in(output)
    assert amsam(*words, log=tmp_path / "log")[0] == 0
    assert recorded.items() <= recorded_in(output).items()
    assert 0 < len(recorded) < 2 * PHOTOS
    assert_as_undisturbed(output, undisturbed)


@pytest.mark.parametrize(
    "moment",
    [
        Strike("sqlite3.connect", "journal.sqlite"),
        Strike("open", ".run.json"),
        Strike("os.rename", "run.json"),
        Strike("os.rename", "results.csv"),
        Strike("open", "/masks/."),
        Strike("os.rename", "0000_0005_segmentation.png"),
        Strike("os.rename", "0000_0005_overlay.jpg"),
        Strike("open", ".report.html"),
        Strike("os.rename", "report.html"),
    ],
)
def test_a_run_killed_before_this_system_call_is_completed_by_the_next(
    moment: Strike, photos: Path, small_bundle: Path, undisturbed: Path, tmp_path: Path
) -> None:
    words = words_for(photos, tmp_path / "out", small_bundle)
    assert AmsamProcess(words, tmp_path / "log", moment).wait() == -signal.SIGKILL
    assert amsam(*words, log=tmp_path / "log")[0] == 0
    assert_as_undisturbed(tmp_path / "out", undisturbed)


# Stopped


def test_ctrl_c_ends_with_the_summary_and_the_same_command_does_the_rest(
    photos: Path, small_bundle: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    words = words_for(photos, output, small_bundle, "--batch-size", "2")
    process = AmsamProcess(words, tmp_path / "log")
    wait_for_masks(output, 3, process)
    process.send(signal.SIGINT)
    assert process.wait() == 130
    done = len(rows_of(output))
    assert f"done              {done:>8}\n" in process.printed
    assert f"Interrupted with {PHOTOS - done} images left; the same command does them." in process.printed
    assert "Traceback" not in process.printed
    assert state_of(output) == "interrupted"
    assert len(results_in(output)) == 2 * done
    code, printed = amsam(*words, log=tmp_path / "log")
    assert (code, f"skipped           {done:>8}\n" in printed) == (0, True)
    assert_as_undisturbed(output, undisturbed)


def test_ctrl_c_while_the_network_is_loaded_leaves_nothing(photos: Path, small_bundle: Path, tmp_path: Path) -> None:
    loading = Strike("open", "model.pt", signal.SIGINT)
    process = AmsamProcess(words_for(photos, tmp_path / "out", small_bundle), tmp_path / "log", loading)
    assert process.wait() == 130
    assert process.printed.split() == ["Interrupted."]
    assert not (tmp_path / "out").exists()


def test_a_second_run_is_told_to_wait_for_the_first(photos: Path, small_bundle: Path, tmp_path: Path) -> None:
    words = words_for(photos, tmp_path / "out", small_bundle)
    first = AmsamProcess(words, tmp_path / "log")
    wait_for_masks(tmp_path / "out", 1, first)
    first.send(signal.SIGSTOP)
    code, printed = amsam(*words, log=tmp_path / "second.log")
    first.send(signal.SIGCONT)
    assert code == 1
    assert (
        printed == f"Error: another run is writing to {tmp_path / 'out'}; wait for it, or give another output folder\n"
    )
    assert first.wait() == 0
    assert len(rows_of(tmp_path / "out")) == PHOTOS


# No room


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system to make larger with :func:`resize`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a small disk is mounted, which takes root and the program mount")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "small", folder], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


def test_a_full_disk_is_named_and_with_more_room_the_same_command_goes_on(
    photos: Path, small_bundle: Path, undisturbed: Path, small_disk: Path, tmp_path: Path
) -> None:
    output = small_disk / "out"
    words = words_for(photos, output, small_bundle)
    for size in ("64k", "256k"):
        resize(small_disk, size)
        code, printed = amsam(*words, log=tmp_path / "log")
        assert code == 1
        assert printed.startswith(f"Error: {output}: cannot be written to (")
        assert "Make room, or give another output folder; what is done stays done" in printed
        assert "Traceback" not in printed
    recorded = recorded_in(output)
    resize(small_disk, "50m")
    assert amsam(*words, log=tmp_path / "log")[0] == 0
    assert recorded.items() <= recorded_in(output).items()
    assert_as_undisturbed(output, undisturbed)


def test_a_journal_that_is_damaged_within_is_named(photos: Path, small_bundle: Path, tmp_path: Path) -> None:
    words = words_for(photos, tmp_path / "out", small_bundle)
    assert amsam(*words, log=tmp_path / "log")[0] == 0
    journal = tmp_path / "out" / "journal.sqlite"
    content = bytearray(journal.read_bytes())
    content[8192:24576] = b"\xff" * 16384
    journal.write_bytes(content)
    code, printed = amsam(*words, log=tmp_path / "log")
    assert (code, "Traceback" in printed) == (1, False)
    assert printed.startswith(f"Error: {journal} cannot be used (")
    assert "delete it: then all images are done again" in printed


def test_an_archive_that_finds_no_room_to_be_unpacked_says_where(
    small_disk: Path, options: SegmentOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(small_disk))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("large.png", bytes(1 << 20))
    summary = segment([tmp_path / "a.zip"], tmp_path / "out", options)
    assert summary.failures[0][1].startswith("large.png: no room to unpack it. Make room in the system's temporary")


# The same results


@pytest.fixture
def threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads_restored")
@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_results_depend_neither_on_batches_nor_on_threads(
    batch_size: int, threads: int, photos: Path, options: SegmentOptions, undisturbed: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(threads)
    segment([photos], tmp_path / "out", replace(options, formats=("png", "overlay"), batch_size=batch_size))
    assert_as_undisturbed(tmp_path / "out", undisturbed)


# Files under one's hands


class Meddler:
    """A network that takes everything for background, and does something to the files meanwhile."""

    settings: ClassVar = {"prompt": "box"}

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action

    def embed(self, inputs: Tensor) -> Tensor:
        return inputs

    def predict(self, inputs: Tensor, boxes: Tensor | None = None) -> Prediction:
        self.action()
        sides = [side // 4 for side in inputs.shape[2:]]
        mask_logits = torch.zeros(len(inputs), 2, *sides)
        mask_logits[:, 0] = 1
        return Prediction(mask_logits, torch.ones(len(inputs), 2))


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (lambda path: write_picture(path, 99), "a.png: it changed while it was segmented"),
        (lambda path: path.unlink(), "No such file or directory"),
    ],
)
def test_a_file_that_changes_or_vanishes_while_it_is_segmented_gets_no_result(
    action: Callable[[Path], object], error: str, options: SegmentOptions, tmp_path: Path
) -> None:
    path = write_picture(tmp_path / "photos" / "a.png")
    meddled = replace(options, overrides={"network": Meddler(lambda: action(path))})
    summary = segment([tmp_path / "photos"], tmp_path / "out", meddled)
    (row,) = rows_of(tmp_path / "out")
    assert (summary.failed, row["mask_file"], results_in(tmp_path / "out")) == (1, "", {})
    assert row["error"].startswith(error)
    write_picture(path, 99)
    assert segment([tmp_path / "photos"], tmp_path / "out", options).done == 1


def test_a_file_that_vanishes_after_it_was_listed_fails_alone(
    photos: Path, options: SegmentOptions, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    last = max((tmp_path / "photos").iterdir())
    summary = run_with(lambda: last.unlink(), tmp_path / "photos", tmp_path / "out", options)
    assert (summary.done, summary.failed, summary.is_interrupted) == (PHOTOS - 1, 1, False)
    assert summary.failures == [(last.as_posix(), "No such file or directory")]


def test_of_a_folder_that_is_rewritten_meanwhile_each_result_is_that_of_its_bytes(
    photos: Path, options: SegmentOptions, undisturbed: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    files = sorted((tmp_path / "photos").iterdir())

    def rewrite() -> None:
        for path, other in zip(files, sorted(photos.iterdir(), reverse=True), strict=True):
            shutil.copyfile(other, path)

    run_with(rewrite, tmp_path / "photos", tmp_path / "out", options)
    by_digest = {sha256(path): f"masks/{path.stem}_segmentation.png" for path in photos.iterdir()}
    rows = rows_of(tmp_path / "out")
    assert len(rows) == PHOTOS
    for row in rows:
        if row["error"]:
            assert "it changed while it was segmented" in row["error"] or "not an image" in row["error"]
        else:
            expected = undisturbed / by_digest[row["image_sha256"]]
            assert (tmp_path / "out" / row["mask_file"]).read_bytes() == expected.read_bytes()
    assert sum(not row["error"] for row in rows) > PHOTOS // 2
    assert segment([tmp_path / "photos"], tmp_path / "out", options).failed == 0


def run_with(action: Callable[[], object], photos: Path, output: Path, options: SegmentOptions) -> SegmentSummary:
    """A run during which something happens once the first file is done."""

    def progress(step: Step) -> None:
        if step.finished == 1:
            action()

    return segment([photos], output, options, progress)


# Many pages


def write_pages(path: Path, count: int) -> Path:
    generator = np.random.default_rng(0)
    pages = [Image.fromarray(generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)) for _ in range(count)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    return path


def test_a_file_of_many_pages_goes_on_at_the_page_where_it_was_killed(small_bundle: Path, tmp_path: Path) -> None:
    pages = write_pages(tmp_path / "scan.tif", 40)
    words = words_for(pages, tmp_path / "out", small_bundle, "--batch-size", "1", "--format", "png,overlay,nifti")
    moment = Strike("os.rename", "scan_0030_segmentation.png")
    assert AmsamProcess(words, tmp_path / "log", moment).wait() == -signal.SIGKILL
    assert rows_of(tmp_path / "out") == []
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "masks").glob("[!.]*")}
    code, printed = amsam(*words, log=tmp_path / "log")
    assert code == 0, printed
    kept = [path for path, written in before.items() if path.stat().st_mtime_ns == written]
    assert len(kept) >= 20
    assert f"pictures          {40 - len(kept):>8}\n" in printed
    assert amsam(*words[:2], "-o", str(tmp_path / "at once"), *words[4:], log=tmp_path / "log")[0] == 0
    assert results_in(tmp_path / "out") == results_in(tmp_path / "at once")
    assert table_without_times(tmp_path / "out") == table_without_times(tmp_path / "at once")
    volumes = [(tmp_path / name / "nifti" / "scan_segmentation.nii.gz").read_bytes() for name in ("out", "at once")]
    assert volumes[0] == volumes[1]


@pytest.mark.usefixtures("threads_restored")
def test_slices_of_a_volume_are_in_order_whatever_is_done_first(options: SegmentOptions, tmp_path: Path) -> None:
    pages = write_pages(tmp_path / "scan.tif", 60)
    both = replace(options, formats=("png", "nifti"), batch_size=8)
    for threads in (1, 16):
        torch.set_num_threads(threads)
        segment([pages], tmp_path / str(threads), both)
    volumes = [(tmp_path / name / "nifti" / "scan_segmentation.nii.gz").read_bytes() for name in ("1", "16")]
    assert volumes[0] == volumes[1]


def test_of_a_file_whose_pages_have_changed_all_are_done_again(options: SegmentOptions, tmp_path: Path) -> None:
    pages = write_pages(tmp_path / "scan.tif", 8)
    once = iter([signal.SIGINT])  # a second one would end the tests
    stop = Meddler(lambda: [os.kill(os.getpid(), number) for number in once])
    stopped = replace(options, overrides={"network": stop})
    assert segment([pages], tmp_path / "out", stopped).is_interrupted
    write_pages(tmp_path / "scan.tif", 3)
    summary = segment([pages], tmp_path / "out", options)
    assert (summary.done, summary.pictures, len(rows_of(tmp_path / "out"))) == (1, 3, 3)
    assert len(results_in(tmp_path / "out")) == 3


# Told to end


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_run_that_is_told_to_end_finishes_the_batch_and_keeps_order(
    number: int, code: int, photos: Path, small_bundle: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    words = words_for(photos, output, small_bundle, "--batch-size", "2")
    process = AmsamProcess(words, tmp_path / "log")
    wait_for_masks(output, 3, process)
    process.send(number)
    assert process.wait() == code, process.printed
    done = len(rows_of(output))
    assert f"Interrupted with {PHOTOS - done} images left" in process.printed
    assert (state_of(output), (output / "report.html").is_file()) == ("interrupted", True)
    assert amsam(*words, log=tmp_path / "log")[0] == 0
    assert_as_undisturbed(output, undisturbed)


def test_a_run_under_nohup_outlives_its_terminal(photos: Path, options: SegmentOptions, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        summary = run_with(lambda: os.kill(os.getpid(), signal.SIGHUP), photos, tmp_path / "out", options)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert summary.done == PHOTOS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_copies_of_images_do_not_outlive_the_run_or_the_one_after_it(
    number: int, photos: Path, small_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "temporary").mkdir()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted(photos.iterdir()):
            archive.write(path, path.name)
    words = words_for(tmp_path / "a.zip", tmp_path / "out", small_bundle, "--batch-size", "1")
    process = AmsamProcess(words, tmp_path / "log", environment={"TMPDIR": str(tmp_path / "temporary")})
    wait_until(lambda: len(list((tmp_path / "out" / "masks" / "a").glob("[!.]*"))) >= 3, process)
    process.send(number)
    process.wait()
    left = list((tmp_path / "temporary").rglob("*.*"))
    assert bool(left) == (number == signal.SIGKILL)
    other = words_for(photos, tmp_path / "other", small_bundle)
    next_run = AmsamProcess(other, tmp_path / "log", environment={"TMPDIR": str(tmp_path / "temporary")})
    assert next_run.wait() == 0
    assert list((tmp_path / "temporary").iterdir()) == []


# Too much at once


def test_copies_of_zip_members_are_bounded_in_sum(
    options: SegmentOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amsam_med.segment.stages.COPIED_BYTES", 5 << 20)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "temporary").mkdir()
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(30):
            archive.writestr(f"{number:02}.bmp", bitmap(2 << 20))
    used: list[int] = []

    def look() -> None:
        found = [path.stat().st_size for path in (tmp_path / "temporary").rglob("*.bmp")]
        used.append(sum(found))

    watched = replace(options, batch_size=8, overrides={"network": Meddler(look)})
    assert segment([tmp_path / "a.zip"], tmp_path / "out", watched).done == 30
    assert 0 < max(used) <= 5 << 20


def bitmap(size: int) -> bytes:
    """A grey picture of so many bytes that a zip archive makes small."""
    stream = io.BytesIO()
    Image.new("L", (1024, size // 1024), 200).save(stream, "BMP")
    return stream.getvalue()


def test_pictures_in_work_are_bounded_in_memory_and_a_larger_one_is_alone() -> None:
    budget, most, lock = _Budget(100), [0, 0], threading.Lock()

    def work(size: int) -> None:
        with budget.held(size):
            with lock:
                most[0] += size
                most[1] = max(most[1], most[0] if size <= 100 else 2 * most[0] - size)
            time.sleep(0.002)
            with lock:
                most[0] -= size

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [30, 60, 500, 10, 50, 90, 40, 20] * 5))
    assert most == [0, 500]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError("can't allocate memory: x")]
)
def test_memory_that_runs_out_in_the_network_names_the_remedy_and_leaves_nothing_half(
    error: Exception, photos: Path, options: SegmentOptions, tmp_path: Path
) -> None:
    calls = itertools.count()

    def run_out() -> None:
        if next(calls) == 3:
            raise error

    short = replace(options, overrides={"network": Meddler(run_out)})
    with pytest.raises(ConfigError, match=r"cpu has too little memory for batches of 1 images; give a smaller --b"):
        segment([photos], tmp_path / "out", short)
    assert state_of(tmp_path / "out") == "failed"
    assert len(results_in(tmp_path / "out")) == len(list((tmp_path / "out").rglob("*.png")))
    assert segment([photos], tmp_path / "out", options).failed == 0


def test_a_picture_for_which_memory_is_short_is_tried_again_alone(
    options: SegmentOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_picture(tmp_path / "photos" / "a.png")
    write_picture(tmp_path / "photos" / "b.png", 40)
    real, tries = measure.measure, itertools.count()

    def short(*arguments: Any) -> object:
        if next(tries) % 2 == 0:
            raise MemoryError
        return real(*arguments)

    monkeypatch.setattr("amsam_med.segment.stages.measure", short)
    assert segment([tmp_path / "photos"], tmp_path / "out", options).done == 2
    monkeypatch.setattr("amsam_med.segment.stages.measure", lambda *_: (_ for _ in ()).throw(MemoryError()))
    summary = segment([tmp_path / "photos"], tmp_path / "none", options)
    assert summary.failed == 2
    assert "a.png: this machine has too little memory for it, which takes about" in summary.failures[0][1]


# Links


def test_results_are_not_written_through_a_link_in_a_folder_of_results(options: SegmentOptions, tmp_path: Path) -> None:
    write_picture(tmp_path / "photos" / "sub" / "a.png")
    write_picture(tmp_path / "photos" / "b.png")
    segment([tmp_path / "photos" / "b.png"], tmp_path / "out", options)
    (tmp_path / "outside").mkdir()
    (tmp_path / "out" / "masks" / "sub").symlink_to(tmp_path / "outside")
    summary = segment([tmp_path / "photos"], tmp_path / "out", options)
    assert (summary.skipped, summary.failed) == (1, 1)
    assert "is a link, and nothing is written through one" in summary.failures[0][1]
    assert list((tmp_path / "outside").iterdir()) == []
