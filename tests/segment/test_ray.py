"""A Ray cluster of two nodes gives what one process gives, and loses nothing when it loses a worker."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from PIL import Image

from amsam_med.bundle import Expression
from amsam_med.errors import ConfigError, MissingExtraError
from amsam_med.segment import SegmentOptions, Step, segment
from amsam_med.segment import ray as ray_engine
from tests.small_bundle import write_picture, write_small_bundle

pytest.importorskip("ray", reason="Ray is not installed; it comes with the extra `ray`")

# Ray copies settings of its own that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

PICTURES = 12
DARK = 5
"""The shade of the picture on which something is to happen."""

_ON_DARK = (
    "$lambda item, os=__import__('os'), data=__import__('amsam_med.data.transforms').data: "
    "(item['image'].min() < 6 and {}) or data.transforms.preprocessing(64)(item)"
)
_DIE = "os.kill(os.getpid(), 9)"


class TwoNodes:
    """A cluster of this machine: a head and one more, a CPU each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        quickly = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000}  # a lost node is missed
        self._cluster: Any = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": quickly},
        )
        self.address = str(self._cluster.address)

    def add_second(self) -> None:
        self._second = self._cluster.add_node(num_cpus=1)

    def kill_second(self) -> None:
        self._cluster.remove_node(self._second, allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module", autouse=True)
def no_other_cluster(ray_lock: FileLock) -> Iterator[None]:
    with ray_lock:
        yield


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[TwoNodes]:
    """Connected once, so that workers live on from test to test."""
    nodes = TwoNodes()
    with ray_engine.connected(nodes.address):  # before there is another node that it could be connected to
        nodes.add_second()
        yield nodes
    nodes.shutdown()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_small_bundle(tmp_path_factory.mktemp("bundles") / "small"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, one of them dark, some in an archive; and a file that is broken."""
    folder = tmp_path_factory.mktemp("in") / "photos"
    for number in range(PICTURES - 3):
        write_picture(folder / "sub" / f"{number}.png", DARK if number == 3 else 20 + number)
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        for number in range(2):
            archive.write(write_picture(folder.parent / f"{number}.png", 50 + number), f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"half")
    pages = [Image.new("RGB", (20, 30), colour) for colour in ("white", "grey", "#202020")]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    return folder


@pytest.fixture
def options(bundle: str, two_nodes: TwoNodes) -> SegmentOptions:
    return SegmentOptions(bundle, has_report=False, device="cpu", engine="ray", address=two_nodes.address)


@pytest.fixture(scope="module")
def local(photos: Path, bundle: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a local run leaves."""
    output = tmp_path_factory.mktemp("local") / "out"
    summary = segment([photos], output, SegmentOptions(bundle, has_report=False, device="cpu"))
    assert (summary.done, summary.failed) == (PICTURES, 1)
    return output


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file a task, so that a run has a middle."""
    monkeypatch.setattr(ray_engine, "FILES_PER_TASK", 1)


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "results.csv").open(newline="") as stream:
        return [{**row, "seconds": ""} for row in csv.DictReader(stream)]


def results_of(output: Path) -> dict[str, bytes]:
    folders = [output / "masks", output / "overlays"]
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_same(output: Path, local: Path) -> None:
    assert rows_of(output) == rows_of(local)
    assert results_of(output) == results_of(local)
    assert len(results_of(local)) == 2 * (PICTURES + 2)  # three pages in one


def at_first_outcome(action: Callable[[], None]) -> Callable[[Step], None]:
    def progress(step: Step) -> None:
        if step.finished == 1:
            action()

    return progress


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("127.0.0.1:1", "no Ray cluster answers there"),
        ("nonsense", "expected auto, or host:port"),
        ("ray://127.0.0.1:10001", "expected auto, or host:port"),
    ],
)
def test_an_address_without_a_cluster_is_refused(
    address: str, text: str, photos: Path, tmp_path: Path, bundle: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{address}: .*{text}"):
        segment([photos], tmp_path / "out", SegmentOptions(bundle, engine="ray", address=address))
    assert not (tmp_path / "out").exists()


def test_results_and_table_are_those_of_a_local_run(
    photos: Path, tmp_path: Path, options: SegmentOptions, local: Path
) -> None:
    summary = segment([photos], tmp_path / "out", options)
    assert (summary.done, summary.failed, summary.skipped) == (PICTURES, 1, 0)
    assert_same(tmp_path / "out", local)


def test_nothing_is_lost_with_a_process_and_what_it_left_half_written_is_removed(
    photos: Path, tmp_path: Path, options: SegmentOptions, local: Path, small_tasks: None
) -> None:
    half = tmp_path / "out" / "masks" / ".3_segmentation.png.0123abcd.png"
    die_once = _ON_DARK.format(f"not os.path.exists('{tmp_path}/died') and (os.mkdir('{tmp_path}/died'), {_DIE})")
    left_half = at_first_outcome(lambda: write_picture(half) and None)
    summary = segment(
        [photos], tmp_path / "out", replace(options, overrides={"preprocessing": Expression(die_once)}), left_half
    )
    assert (tmp_path / "died").exists()
    assert (summary.done, summary.failed) == (PICTURES, 1)
    assert_same(tmp_path / "out", local)


def test_a_file_that_no_worker_survives_fails_alone(
    photos: Path, tmp_path: Path, options: SegmentOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "ATTEMPTS", 1)
    die = _ON_DARK.format(_DIE)
    summary = segment([photos], tmp_path / "out", replace(options, overrides={"preprocessing": Expression(die)}))
    assert (summary.done, summary.failed) == (PICTURES - 1, 2)
    (error,) = (row["error"] for row in rows_of(tmp_path / "out") if row["file"].endswith("3.png"))
    assert error.startswith("3.png: 1 worker processes in a row ended while they had it in hand")
    assert not (tmp_path / "out" / "masks" / "sub" / "3_segmentation.png").exists()


def test_ctrl_c_keeps_what_is_done_and_the_local_engine_goes_on(
    photos: Path, tmp_path: Path, options: SegmentOptions, local: Path, small_tasks: None
) -> None:
    interrupt = at_first_outcome(lambda: os.kill(os.getpid(), signal.SIGINT))
    summary = segment([photos], tmp_path / "out", options, interrupt)
    assert summary.is_interrupted
    assert 1 <= summary.finished < PICTURES
    again = segment([photos], tmp_path / "out", replace(options, engine="local", address=None))
    assert again.skipped == summary.done
    assert_same(tmp_path / "out", local)


def test_a_run_by_ray_goes_on_from_a_local_one_through_several_windows(
    photos: Path, tmp_path: Path, options: SegmentOptions, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "FILES_PER_CPU", 3)
    shutil.copytree(local, tmp_path / "out")
    (tmp_path / "out" / "masks" / "sub" / "0_segmentation.png").unlink()
    summary = segment([photos], tmp_path / "out", options)
    assert (summary.done, summary.failed, summary.skipped) == (1, 1, PICTURES - 1)
    assert_same(tmp_path / "out", local)


def test_a_fault_that_befalls_all_files_ends_the_run_with_its_message(
    photos: Path, tmp_path: Path, options: SegmentOptions
) -> None:
    full = _ON_DARK.format("(_ for _ in ()).throw(__import__('amsam_med.errors').errors.ConfigError('no room left'))")
    with pytest.raises(ConfigError, match=r"^no room left$"):
        segment([photos], tmp_path / "out", replace(options, overrides={"preprocessing": Expression(full)}))


def test_a_defect_of_ours_keeps_its_traceback(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    broken = replace(options, overrides={"detector": Expression("$lambda image: 1 / 0")})
    with pytest.raises(RuntimeError, match=r"in a worker process:\n(.|\n)*ZeroDivisionError"):
        segment([photos], tmp_path / "out", broken)


def test_an_output_folder_that_workers_do_not_see_is_named(
    photos: Path, tmp_path: Path, options: SegmentOptions
) -> None:
    own = os.open(tmp_path, os.O_RDONLY)  # its number means something to this process alone
    try:
        with pytest.raises(ConfigError, match=r"/out: the worker on .* does not see this output folder"):
            segment([photos], Path(f"/proc/self/fd/{own}/out"), options)
    finally:
        os.close(own)


def test_a_worker_with_another_version_is_refused(
    photos: Path, tmp_path: Path, options: SegmentOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amsam_med.opened_model.__version__", "0")
    with pytest.raises(ConfigError, match="would segment with another amsam-med; install the same version"):
        segment([photos], tmp_path / "out", options)


def test_without_a_gpu_in_the_cluster_there_is_none_to_use(
    photos: Path, tmp_path: Path, options: SegmentOptions
) -> None:
    with pytest.raises(ConfigError, match="the Ray cluster has no GPU"):
        segment([photos], tmp_path / "out", replace(options, device="cuda"))


def test_a_missing_ray_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, photos: Path, tmp_path: Path, bundle: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"amsam-med\[ray\]"):
        segment([photos], tmp_path / "out", SegmentOptions(bundle, engine="ray"))
    assert not (tmp_path / "out").exists()


def fail(row: dict[str, Any], **_: Any) -> dict[str, Any]:
    raise OSError("no such node")


def test_a_fault_of_the_cluster_is_told_in_a_line(
    photos: Path, tmp_path: Path, options: SegmentOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "_work", fail)
    with pytest.raises(ConfigError, match=r"^the Ray cluster failed \(\w+Error: .*\)\. What is done stays done"):
        segment([photos], tmp_path / "out", options)


def test_nothing_is_lost_with_a_machine(
    photos: Path, tmp_path: Path, options: SegmentOptions, local: Path, small_tasks: None, two_nodes: TwoNodes
) -> None:
    summary = segment([photos], tmp_path / "out", options, at_first_outcome(two_nodes.kill_second))
    assert (summary.done, summary.failed) == (PICTURES, 1)
    assert_same(tmp_path / "out", local)
