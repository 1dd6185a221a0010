"""The stages of a folder run in the processes of a Ray cluster, fed by Ray Data.

The driver, the process that was started, lists the inputs and keeps the journal. It sends a few files at a time through
Ray Data; a worker process opens the bundle once, lets the files pass its own :class:`.stages.Stages`, writes
their results into the output folder, which all machines share, and sends back what there is to record. So results and
journal are those of a local run, and the driver's memory depends on the size of the cluster, not of the archive.

Plain tasks, not actors: Ray starts a lost task anywhere, while an actor waits for room of its own. What a lost worker
had in hand is done again; results appear whole or not at all, and an outcome counts once. A task whose worker is lost
:data:`ATTEMPTS` times is given up, its files are tried one by one, and one that brings its worker down each time fails.

Ray sees no names: files and outcomes travel as bytes, and nothing that a worker prints is shown.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import os
import pickle
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

from amsam_med.errors import AmsamError, ConfigError, MissingExtraError
from amsam_med.segment.inputs import InputFile
from amsam_med.segment.journal import RUN, Earlier, sweep
from amsam_med.segment.stages import Outcome, Stages
from amsam_med.threads import set_threads

FILES_PER_TASK = 32
"""Files that a worker takes at once, and does again when it is lost."""
FILES_PER_CPU = 1_000
"""Files that the driver holds for each CPU of the cluster; when all are done, it takes the next ones."""
ATTEMPTS = 3
"""How often a task is begun before it is given up."""

_SECONDS_BETWEEN_QUESTIONS = 1.0  # of a worker to the driver's board, whether to stop

_Entry: TypeAlias = tuple[InputFile, Earlier | None]


class RayStages:
    """What :class:`.stages.Stages` does, by the workers of the cluster that this process is connected to.

    Args:
        open_stages: Opens the stages in a worker; Ray pickles it.
        output: Folder for the results, as workers see it; its ``run.json`` is written before :meth:`run`.
        device: What a worker computes on: one CPU, or one GPU beside it.

    Attributes:
        device: As given.
    """

    def __init__(self, open_stages: Callable[[], Stages], output: Path, device: torch.device) -> None:
        self._open_stages, self._output, self.device = open_stages, output, device

    def run(
        self,
        files: Iterable[InputFile],
        earlier: Callable[[InputFile], Earlier | None],
        is_interrupted: threading.Event,
    ) -> Generator[Outcome]:
        """The outcomes of all files, in the order in which they are done; see :meth:`.Stages.run`.

        Args:
            files: What to segment.
            earlier: What is recorded of a file; None to do it again in any case.
            is_interrupted: Set to stop after the pictures in hand.

        Raises:
            ConfigError: As of the local stages; or the cluster has nothing to compute on, a worker does not see the
                output folder or has other weights, or Ray itself fails.
        """
        from ray.exceptions import RayError

        count = _cpus_of_cluster(self.device) * FILES_PER_CPU
        entries = ((file, earlier(file)) for file in files)
        try:
            record = (self._output / RUN).read_bytes()
            setup = _Setup(uuid.uuid4().hex, self._open_stages, self._output, record, ATTEMPTS)
            feed = _Feed(setup, self.device, is_interrupted)
            with _no_bars(), feed.interrupts_passed_on():
                while not is_interrupted.is_set() and (some := list(itertools.islice(entries, count))):
                    yield from feed.outcomes(some)
            if feed.has_lost_workers:
                sweep(self._output)
        except RayError as error:
            raise ConfigError(
                f"the Ray cluster failed ({_reason(error)}). What is done stays done; see that all nodes are up and "
                "have the same packages, and the same command does the rest"
            ) from error


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to a Ray cluster until the block ends; one that is there already is used and left.

    Args:
        address: ``"auto"`` or ``"host:port"`` of a cluster; None for one of this machine alone, which nobody else can
            reach, and which ends with the block.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: The address is none, or no cluster answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # what makes Ray stay on loopback, on Linux too
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError("ray", "ray") from None
    if address not in (None, "auto"):
        _check_answers(address)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    with _session_folder() as folder:
        try:
            _connect(address, folder)
            yield
        finally:
            ray.shutdown()
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # ray.init put its own in place


class _Setup(NamedTuple):
    """What a worker needs to know of a run besides the files."""

    run: str
    open_stages: Callable[[], Stages]
    output: Path
    record: bytes  # run.json, by which a worker knows the driver's folder
    attempts: int


class _Report(NamedTuple):
    """What a worker has done: outcomes, and why it could not go on; mostly empty."""

    outcomes: Sequence[Outcome]
    fault: str = ""
    is_defect: bool = False


class _Feed:
    """The driver's end of one run: files go out in tasks, reports come back.

    Attributes:
        has_lost_workers: Whether a task had to be begun again.
    """

    def __init__(self, setup: _Setup, device: torch.device, is_interrupted: threading.Event) -> None:
        self._setup, self._is_interrupted = setup, is_interrupted
        self._board = _put_up_board()
        self._resources = _resources(device)
        self.has_lost_workers = False

    def outcomes(self, entries: Iterable[_Entry]) -> Generator[Outcome]:
        """The outcome of each file, once; after an interrupt, of those that were in hand."""
        left = {file.name: (file, earlier) for file, earlier in entries}
        yield from self._tried(left, FILES_PER_TASK)
        yield from self._tried(left, 1)  # only one of them need have brought the worker down
        for name, (file, earlier) in left.items():
            left[name] = file._replace(error=_unsurvived(file)), earlier
        yield from self._tried(left, FILES_PER_TASK)

    @contextmanager
    def interrupts_passed_on(self) -> Iterator[None]:
        """Tell the workers of an interrupt while the driver waits for them."""
        is_over = threading.Event()

        def pass_on() -> None:
            while not is_over.wait(0.2):
                if self._is_interrupted.is_set():
                    self._board.stop.remote()  # again and again: a board that is started anew does not know

        thread = threading.Thread(target=pass_on, daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _tried(self, left: dict[str, _Entry], files_per_task: int) -> Generator[Outcome]:
        """Outcomes of files that are then no longer left."""
        import ray

        if not left or self._is_interrupted.is_set():
            return
        with closing(self._reports(list(left.values()), files_per_task)) as reports:
            for report in reports:
                for outcome in report.outcomes:
                    if left.pop(outcome.file.name, None) is not None:
                        yield outcome
                if report.fault:
                    raise RuntimeError(report.fault) if report.is_defect else ConfigError(report.fault)
        self.has_lost_workers |= ray.get(self._board.forget.remote())

    def _reports(self, entries: Sequence[_Entry], files_per_task: int) -> Generator[_Report]:
        import ray.data

        batches = (entries[begin : begin + files_per_task] for begin in range(0, len(entries), files_per_task))
        rows = [{"task": uuid.uuid4().hex, "entries": pickle.dumps(batch)} for batch in batches]
        data = ray.data.from_items(rows, override_num_blocks=len(rows))  # each a block, and so a task
        told = {"setup": self._setup, "board": self._board}
        work: Any = _work  # Ray's type of it leaves out the further arguments
        for row in data.map(work, fn_kwargs=told, **self._resources).iter_rows():
            yield pickle.loads(row["report"])  # noqa: S301  # what this run's own processes pickled


def _work(row: dict[str, Any], setup: _Setup, board: Any) -> dict[str, bytes]:
    """One task, in a worker: a pickled report of files that came pickled."""
    import ray

    attempt, is_stopped = ray.get(board.begin.remote(row["task"]))
    entries = {} if is_stopped or attempt > setup.attempts else dict(pickle.loads(row["entries"]))  # noqa: S301  # what this run's own processes pickled
    outcomes: list[Outcome] = []
    report = _Report(outcomes)
    try:
        if entries:
            found = _stages(setup).run(entries, entries.get, _Interrupt(board))
            outcomes.extend(outcome for outcome in found if outcome.part is None)  # files count as wholes here
    except AmsamError as error:
        report = report._replace(fault=str(error))
    except Exception:
        report = report._replace(fault=f"in a worker process:\n{traceback.format_exc()}", is_defect=True)
    return {"report": pickle.dumps(report)}


_opened: dict[str, Stages] = {}  # by run; a worker process holds those of its latest one


def _stages(setup: _Setup) -> Stages:
    if setup.run not in _opened:
        _opened.clear()
        set_threads(1)  # Ray gives a task one CPU
        _check_is_shared(setup)
        _opened[setup.run] = setup.open_stages()
    return _opened[setup.run]


def _check_is_shared(setup: _Setup) -> None:
    try:
        is_shared = (setup.output / RUN).read_bytes() == setup.record
    except OSError:
        is_shared = False
    if not is_shared:
        raise ConfigError(
            f"{setup.output}: the worker on {socket.gethostname()} does not see this output folder; give one on a file "
            "system that all nodes have under the same path"
        )


class _Interrupt(threading.Event):
    """A worker's view of the driver's event."""

    def __init__(self, board: Any) -> None:
        super().__init__()
        self._board, self._asked = board, time.monotonic()

    def is_set(self) -> bool:
        """Whether to stop; the driver is asked now and then."""
        import ray

        if not super().is_set() and time.monotonic() - self._asked > _SECONDS_BETWEEN_QUESTIONS:
            self._asked = time.monotonic()
            if ray.get(self._board.is_stopped.remote()):
                self.set()
        return super().is_set()


def _put_up_board() -> Any:
    """An actor by which driver and workers speak while tasks run; beside the driver, where it is safest."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Board:  # here, so that Ray ships the class itself: its process then need not import this module, and torch
        def __init__(self) -> None:
            self._begun: dict[str, int] = {}
            self._is_stopped = False
            self._was_lost = ray.get_runtime_context().was_current_actor_reconstructed

        def begin(self, task: str) -> tuple[int, bool]:
            """How often a task was begun, and whether to stop."""
            self._begun[task] = self._begun.get(task, 0) + 1
            return self._begun[task], self._is_stopped

        def forget(self) -> bool:
            """Forget all tasks; whether one was begun again."""
            was_lost = self._was_lost or any(count > 1 for count in self._begun.values())
            self._begun.clear()
            return was_lost

        def stop(self) -> None:
            self._is_stopped = True

        def is_stopped(self) -> bool:
            return self._is_stopped

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1)
    return actor.remote()


def _connect(address: str | None, folder: str) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:
        own: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "_temp_dir": folder}
        ray.init("local", num_cpus=_own_cpus(), **own, **quiet)
        return
    try:
        ray.init(address, **quiet)
    except ConnectionError as error:
        raise _nobody_at(address) from error


def _check_answers(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():  # also ray://, as Ray Data has to run on a machine of the cluster
        raise ConfigError(f"{address}: not an address; expected auto, or host:port of a Ray cluster's head node")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise _nobody_at(address) from error


def _nobody_at(address: str) -> ConfigError:
    return ConfigError(
        f"{address}: no Ray cluster answers there. Start one with `ray start --head --port=6379`, or give its host:port"
    )


def _resources(device: torch.device) -> dict[str, Any]:
    """What Ray is to set aside for each worker."""
    if device.type != "cuda":
        return {"num_cpus": 1}
    from ray.data import Dataset

    # Unless it is told otherwise, which earlier versions cannot be, Ray ends a process with a GPU after each task.
    is_kept = "max_calls" in inspect.signature(Dataset.map).parameters
    return {"num_gpus": 1, "max_calls": 0} if is_kept else {"num_gpus": 1}


def _cpus_of_cluster(device: torch.device) -> int:
    import ray

    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    wanted = ("CPU", "GPU") if device.type == "cuda" else ("CPU",)
    if missing := [name for name in wanted if found.get(name, 0) < 1]:
        raise ConfigError(
            f"the Ray cluster has no {missing[0]}; start nodes that have some, or choose another --device"
        )
    return int(found["CPU"])


@contextmanager
def _no_bars() -> Iterator[None]:
    from ray.data import DataContext

    context = DataContext.get_current()
    before = context.enable_progress_bars, context.print_on_execution_start
    context.enable_progress_bars = context.print_on_execution_start = False
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before


def _reason(error: Exception) -> str:
    """The line of Ray's many that names the fault."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)), type(error).__name__)


def _unsurvived(file: InputFile) -> str:
    return (
        f"{Path(file.file).name}: {ATTEMPTS} worker processes in a row ended while they had it in hand, which happens "
        "when memory runs out. Segment it alone, with --engine local"
    )


def _own_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _session_folder() -> Iterator[str]:
    """Where Ray's sockets and logs lie; the path of a socket may have about 100 characters."""
    folder = tempfile.mkdtemp(prefix="amsam-ray-", dir="/tmp" if os.path.isdir("/tmp") else None)  # noqa: S108  # mkdtemp makes the folder, for this user alone
    try:
        yield folder
    finally:
        for _ in range(20):  # what Ray has told to end may write a last line
            shutil.rmtree(folder, ignore_errors=True)
            if not os.path.exists(folder):
                break
            time.sleep(0.1)
