"""The stages of a folder run in the worker processes of a Ray cluster, through Ray Data.

The driver, the process that the user started, lists the inputs and keeps the journal. It sends a few files at a time
through Ray Data. A worker opens the bundle once, passes the files through its own :class:`.stages.Stages`, writes their
results into the output folder, which all machines share, and sends back the rows to record. So results and journal are
those of a local run, and the driver's memory depends on the size of the cluster, not of the archive.

Work is sent as plain tasks, not to actors: Ray restarts a lost task anywhere, while an actor waits for resources of its
own. Files of a lost worker are segmented again; results are written whole or not at all, and an outcome counts once. A
task whose worker is lost :data:`ATTEMPTS` times is given up. Its files are then tried one by one, and a file that
crashes its worker each time fails.

Ray sees no file names: files and outcomes travel as pickled bytes, and the output of workers is not shown.
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
"""Files of one task; all of them are segmented again when its worker is lost."""
FILES_PER_CPU = 1_000
"""Files that the driver holds for each CPU of the cluster; when all are finished, it takes the next ones."""
ATTEMPTS = 3
"""How often a task is started before it is given up."""

_SECONDS_BETWEEN_POLLS = 1.0  # of a worker that asks the coordinator whether to stop, which is a remote call

_Entry: TypeAlias = tuple[InputFile, Earlier | None]


class RayStages:
    """The interface of :class:`.stages.Stages`, computed by the workers of the connected cluster.

    Args:
        open_stages: Opens the stages in a worker; it must be picklable.
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
        """Yield the outcomes of all files, in the order in which they are finished; see :meth:`.Stages.run`.

        Args:
            files: The files to segment.
            earlier: Returns what an earlier run recorded of a file; None to segment it in any case.
            is_interrupted: Set to stop after the pictures in progress.

        Raises:
            ConfigError: As for the local stages; or the cluster has no such device, a worker does not see the output
                folder or has other weights, or Ray itself fails.
        """
        from ray.exceptions import RayError

        count = _cpus_of_cluster(self.device) * FILES_PER_CPU
        entries = ((file, earlier(file)) for file in files)
        try:
            record = (self._output / RUN).read_bytes()
            setup = _Setup(uuid.uuid4().hex, self._open_stages, self._output, record, ATTEMPTS)
            dispatcher = _Dispatcher(setup, self.device, is_interrupted)
            with _progress_bars_off(), dispatcher.interrupts_passed_on():
                while not is_interrupted.is_set() and (some := list(itertools.islice(entries, count))):
                    yield from dispatcher.outcomes(some)
            if dispatcher.has_lost_workers:
                sweep(self._output)  # only now: a temporary file of a live worker looks the same
        except RayError as error:
            raise ConfigError(
                f"the Ray cluster failed ({_reason(error)}). What is done stays done; see that all nodes are up and "
                "have the same packages, and the same command does the rest"
            ) from error


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a Ray cluster while the block runs; an existing connection of this process is used and kept.

    Args:
        address: ``"auto"`` or ``"host:port"`` of a cluster; None to start one on this machine, which cannot be reached
            from other machines and ends with the block.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: The address is not valid, or no cluster answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send usage statistics
    if address is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # what makes Ray stay on loopback, on Linux too
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError("ray", "ray") from None
    if address not in (None, "auto"):
        _check_reachable(address)
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
    """Everything about a run that a worker needs besides the files."""

    run: str
    open_stages: Callable[[], Stages]
    output: Path
    record: bytes  # content of run.json: a worker that reads the same bytes sees the same output folder
    attempts: int


class _Report(NamedTuple):
    """Result of a task: outcomes of its files, and the error that ended it, if any."""

    outcomes: Sequence[Outcome]
    fault: str = ""
    is_defect: bool = False


class _Dispatcher:
    """The driver's side of a run: sends files as tasks and takes in their reports.

    Attributes:
        has_lost_workers: Whether a task had to be started again.
    """

    def __init__(self, setup: _Setup, device: torch.device, is_interrupted: threading.Event) -> None:
        self._setup, self._is_interrupted = setup, is_interrupted
        self._coordinator = _start_coordinator()
        self._resources = _resources(device)
        self.has_lost_workers = False

    def outcomes(self, entries: Iterable[_Entry]) -> Generator[Outcome]:
        """Yield the outcome of each file once; after an interrupt, only of files in progress."""
        left = {file.name: (file, earlier) for file, earlier in entries}
        yield from self._tried(left, FILES_PER_TASK)
        yield from self._tried(left, 1)  # of a given-up task, probably a single file brought the worker down
        # What is still left crashes workers. With an error the stages do not open it, but its row is written as usual.
        for name, (file, earlier) in left.items():
            left[name] = file._replace(error=_crash_message(file)), earlier
        yield from self._tried(left, FILES_PER_TASK)

    @contextmanager
    def interrupts_passed_on(self) -> Iterator[None]:
        """Pass an interrupt on to the workers while the driver waits for them."""
        is_over = threading.Event()

        def pass_on() -> None:
            while not is_over.wait(0.2):
                if self._is_interrupted.is_set():
                    self._coordinator.stop.remote()  # repeatedly, as a restarted coordinator has lost its state

        thread = threading.Thread(target=pass_on, daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _tried(self, left: dict[str, _Entry], files_per_task: int) -> Generator[Outcome]:
        """Yield outcomes of the files in ``left``, removing each from it."""
        import ray

        if not left or self._is_interrupted.is_set():
            return
        with closing(self._reports(list(left.values()), files_per_task)) as reports:
            for report in reports:
                for outcome in report.outcomes:
                    # A task that was started again may report a file for the second time.
                    if left.pop(outcome.file.name, None) is not None:
                        yield outcome
                if report.fault:
                    raise RuntimeError(report.fault) if report.is_defect else ConfigError(report.fault)
        self.has_lost_workers |= ray.get(self._coordinator.forget.remote())

    def _reports(self, entries: Sequence[_Entry], files_per_task: int) -> Generator[_Report]:
        import ray.data

        batches = (entries[begin : begin + files_per_task] for begin in range(0, len(entries), files_per_task))
        rows = [{"task": uuid.uuid4().hex, "entries": pickle.dumps(batch)} for batch in batches]
        data = ray.data.from_items(rows, override_num_blocks=len(rows))  # one block per row, and so one task
        arguments = {"setup": self._setup, "coordinator": self._coordinator}
        work: Any = _work  # Ray's type of it leaves out the further arguments
        for row in data.map(work, fn_kwargs=arguments, **self._resources).iter_rows():
            yield pickle.loads(row["report"])  # noqa: S301  # what this run's own processes pickled


def _work(row: dict[str, Any], setup: _Setup, coordinator: Any) -> dict[str, bytes]:
    """Run one task in a worker: unpickle its files, segment them, and return a pickled report."""
    import ray

    attempt, is_stopped = ray.get(coordinator.begin.remote(row["task"]))
    entries = {} if is_stopped or attempt > setup.attempts else dict(pickle.loads(row["entries"]))  # noqa: S301  # what this run's own processes pickled
    outcomes: list[Outcome] = []
    report = _Report(outcomes)
    try:
        if entries:
            found = _stages(setup).run(entries, entries.get, _Interrupt(coordinator))
            # Single pictures are left out: only the driver writes the journal, and a lost task is repeated as a whole.
            outcomes.extend(outcome for outcome in found if outcome.part is None)
    except AmsamError as error:
        report = report._replace(fault=str(error))
    except Exception:
        report = report._replace(fault=f"in a worker process:\n{traceback.format_exc()}", is_defect=True)
    return {"report": pickle.dumps(report)}


_opened: dict[str, Stages] = {}  # by run: opening loads the weights, so a worker keeps those of its latest run


def _stages(setup: _Setup) -> Stages:
    if setup.run not in _opened:
        _opened.clear()
        set_threads(1)  # Ray starts one worker per CPU; more threads would compete with the others
        _check_output_is_shared(setup)
        _opened[setup.run] = setup.open_stages()
    return _opened[setup.run]


def _check_output_is_shared(setup: _Setup) -> None:
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
    """The driver's interrupt event as a worker sees it, polled through the coordinator."""

    def __init__(self, coordinator: Any) -> None:
        super().__init__()
        self._coordinator, self._polled = coordinator, time.monotonic()

    def is_set(self) -> bool:
        """Whether to stop; asks the coordinator at most once per :data:`_SECONDS_BETWEEN_POLLS`."""
        import ray

        if not super().is_set() and time.monotonic() - self._polled > _SECONDS_BETWEEN_POLLS:
            self._polled = time.monotonic()
            if ray.get(self._coordinator.is_stopped.remote()):
                self.set()
        return super().is_set()


def _start_coordinator() -> Any:
    """Start the actor that counts attempts at tasks and passes interrupts on to workers.

    It runs on the driver's node, since the run ends anyway if that node is lost.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # A local class is pickled by value: the actor's process then need not import this module, and torch with it.
    class Coordinator:
        def __init__(self) -> None:
            self._begun: dict[str, int] = {}
            self._is_stopped = False
            self._was_lost = ray.get_runtime_context().was_current_actor_reconstructed

        def begin(self, task: str) -> tuple[int, bool]:
            """Count an attempt at a task; returns the number of attempts so far, and whether to stop."""
            self._begun[task] = self._begun.get(task, 0) + 1
            return self._begun[task], self._is_stopped

        def forget(self) -> bool:
            """Forget all tasks; returns whether one was started more than once."""
            # A restarted coordinator has lost its counts, so it must assume that a worker was lost with it.
            was_lost = self._was_lost or any(count > 1 for count in self._begun.values())
            self._begun.clear()
            return was_lost

        def stop(self) -> None:
            self._is_stopped = True

        def is_stopped(self) -> bool:
            return self._is_stopped

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(Coordinator).options(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1)
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
        raise _no_cluster_error(address) from error


def _check_reachable(address: str) -> None:
    """Refuse an address where nothing listens, which Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():  # also ray://, as Ray Data has to run on a machine of the cluster
        raise ConfigError(f"{address}: not an address; expected auto, or host:port of a Ray cluster's head node")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster_error(address) from error


def _no_cluster_error(address: str) -> ConfigError:
    return ConfigError(
        f"{address}: no Ray cluster answers there. Start one with `ray start --head --port=6379`, or give its host:port"
    )


def _resources(device: torch.device) -> dict[str, Any]:
    """The resources that Ray reserves for each worker."""
    if device.type != "cuda":
        return {"num_cpus": 1}
    from ray.data import Dataset

    # By default Ray ends a GPU worker after each task, and the bundle would be opened again for the next one. Earlier
    # versions of Ray have no option against it.
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
def _progress_bars_off() -> Iterator[None]:
    from ray.data import DataContext

    context = DataContext.get_current()
    before = context.enable_progress_bars, context.print_on_execution_start
    context.enable_progress_bars = context.print_on_execution_start = False
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before


def _reason(error: Exception) -> str:
    """The line that names the error, out of the many that Ray prints."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)), type(error).__name__)


def _crash_message(file: InputFile) -> str:
    return (
        f"{Path(file.file).name}: {ATTEMPTS} worker processes in a row ended while they had it in hand, which happens "
        "when memory runs out. Segment it alone, with --engine local"
    )


def _own_cpus() -> int:
    """CPUs that this process may use; in containers and batch jobs fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _session_folder() -> Iterator[str]:
    """A folder for Ray's sockets and logs, below /tmp where possible: a socket's path may have about 100 characters."""
    folder = tempfile.mkdtemp(prefix="amsam-ray-", dir="/tmp" if os.path.isdir("/tmp") else None)  # noqa: S108  # mkdtemp makes the folder, for this user alone
    try:
        yield folder
    finally:
        for _ in range(20):  # processes that Ray has told to end may still write a last line
            shutil.rmtree(folder, ignore_errors=True)
            if not os.path.exists(folder):
                break
            time.sleep(0.1)
