"""``segment``: any number of images from files, folders, archives and servers, with a bundle's parts.

Threads read ahead and write behind; between them the network computes in batches. However long the list is, only a few
batches of it are held in memory. A file that cannot be read or written becomes a row with its error, and the run goes
on. The output folder::

    masks/<sub-folder>/<stem>_segmentation.png          0 and 255 (class ids where there are several), original size
    overlays/<sub-folder>/<stem>_overlay.jpg            outline and box over the image
    contours/, nifti/, dicom_seg/, dicom_sr/            if requested; see amsam_med.segment.formats.FORMATS
    results.csv, run.json, journal.sqlite               see amsam_med.segment.journal
    report.html                                         counts and a gallery of all results

The sub-folder is the image's path within its input folder. Pictures of a file that holds several are numbered from 1:
``<stem>_0001_segmentation.png``. :mod:`amsam_med.segment.inputs` says how names are kept unique.

A later run into the same folder skips a file if its bytes, its results, the weights and the settings are unchanged.
"""

from __future__ import annotations

import importlib.util
import platform
import shlex
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from amsam_med import __version__, weights
from amsam_med.bundle import default_bundle, model_overrides, open_bundle
from amsam_med.choices import DeviceName, EngineName
from amsam_med.data.readers import FilePath
from amsam_med.data.tables import visible
from amsam_med.errors import ConfigError, MissingExtraError
from amsam_med.infer import NOT_FOUND
from amsam_med.opened_model import Model, refuse_missing_device
from amsam_med.opened_model import result_labels as result_labels
from amsam_med.options import SegmentOptions as SegmentOptions
from amsam_med.options import as_words
from amsam_med.scratch import sweep_scratch
from amsam_med.segment.formats import FORMATS
from amsam_med.segment.inputs import InputFile, Inputs, list_inputs
from amsam_med.segment.journal import JOURNAL, Earlier, Records, RunOutcome, RunSettings, RunState, read_run
from amsam_med.segment.ray import RayStages, connected
from amsam_med.segment.report import Card, write_report
from amsam_med.segment.stages import Outcome, Reading, Stages, cannot_write
from amsam_med.verbs import with_chosen
from amsam_med.weights import shipped_bundles

DEVICES: tuple[DeviceName, ...] = get_args(DeviceName)
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
REPORT = "report.html"
SHOWN_FAILURES = 5
"""How many failures a summary names; ``results.csv`` has them all."""

_COUNTS = ("images", "done", "failed", "skipped", "pictures", "without_box", "flagged")


class Step(NamedTuple):
    """Progress of a run: files finished or skipped, files in total, and the latest file."""

    finished: int
    total: int
    file: str


Progress = Callable[[Step], None]


@dataclass
class SegmentSummary:
    """The outcome of a run.

    Attributes:
        output: The output folder.
        images: How many image files there are in the inputs.
        done: Files segmented by this run.
        failed: Files with an error.
        skipped: Files that an earlier run had finished.
        pictures: Pictures segmented by this run; a file may hold several.
        without_box: Pictures among them for which the detector found no box.
        flagged: Pictures among them that have a flag; ``results.csv`` says which.
        seconds: Wall time from the first file read to the last one written, without loading the weights.
        signal_number: The signal that stopped the run; None if none did.
        failures: (file, error) of the first :data:`SHOWN_FAILURES` failed files.
    """

    output: Path
    images: int
    done: int = 0
    failed: int = 0
    skipped: int = 0
    pictures: int = 0
    without_box: int = 0
    flagged: int = 0
    seconds: float = 0.0
    signal_number: int | None = None
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def finished(self) -> int:
        """Files that this run has segmented or failed to segment."""
        return self.done + self.failed

    @property
    def is_interrupted(self) -> bool:
        """Whether the run ended before it reached all files."""
        return self.finished + self.skipped < self.images

    @property
    def images_per_second(self) -> float:
        """Pictures segmented per second of wall time."""
        return self.pictures / self.seconds if self.seconds else 0.0

    def count(self, outcome: Outcome) -> None:
        """Add the counts of one finished file."""
        rows = [picture.row for picture in outcome.pictures]
        error = next((row.error for row in rows if row.error), "")
        self.skipped += not rows
        self.done += bool(rows) and not error
        self.failed += bool(error)
        self.pictures += sum(not row.error for row in rows) - outcome.taken_over
        self.without_box += sum(row.box_source == NOT_FOUND for row in rows)
        self.flagged += sum(bool(row.flags) for row in rows)
        if error and len(self.failures) < SHOWN_FAILURES:
            self.failures.append((outcome.file.file, error))


def segment(
    inputs: FilePath | Sequence[FilePath],
    output: FilePath,
    options: SegmentOptions | None = None,
    progress: Progress | None = None,
    **chosen: Any,
) -> SegmentSummary:
    """Segment image files, folders, archives, and instances on a DICOMweb server.

    Ctrl-C, SIGTERM and SIGHUP end the run after the current batch, keeping its results; a second one ends it at once.

    Args:
        inputs: Image files, zip archives, folders that are searched with their sub-folders, ``dicomweb:`` addresses;
            one or several.
        output: The output folder; created if missing. It may be inside an input folder.
        options: See :class:`amsam_med.options.SegmentOptions`.
        progress: Called after each file, in the caller's thread.
        **chosen: Fields of :class:`SegmentOptions` by name, in place of those of ``options``.

    Raises:
        DataError: An input does not exist or holds no images, a server does not answer, or there is no such bundle.
        ConfigError: An option is unknown, the output folder holds files that must not be mixed with these results, or
            there is no room left in it; or the Ray cluster is not there, does not see the output folder, or fails.
        WeightsError: The file of the model, adapter, base or detector is missing or damaged.
        MissingExtraError: A format, an input or the engine needs an extra that is not installed.
    """
    options = with_chosen(options or SegmentOptions(), chosen)
    options = replace(options, bundle=str(options.bundle or default_bundle(options.adapter)))
    inputs, output = [inputs] if isinstance(inputs, str | PathLike) else inputs, Path(output)
    _check(options)
    files = list_inputs(map(str, inputs), _is_result_folder(), options.keeps_identifiers)
    model = _model(options, is_driver=options.engine == "ray")
    model.load()  # errors in weight files are reported before the output folder is touched
    fingerprint = _fingerprint(model, options)
    summary = SegmentSummary(output, len(files))
    with (
        _cluster(options),
        _interrupts_noted(summary) as is_interrupted,
        _room_in(output),
        closing(Records(output, fingerprint, options.overwrite)) as records,
    ):
        salt = records.secret() if options.deidentifies else None
        files.prepare(records.names(), salt.encode() if salt else None)
        sweep_scratch()
        if options.engine == "ray":
            stages: Stages | RayStages = _stages_of_cluster(options, output, fingerprint, salt)
        else:
            stages = _stages(model, options, output, salt)
        settings = _settings(inputs, output, options, stages.device, files.shown)
        records.start(settings)
        state: RunState = "failed"
        start = time.monotonic()
        try:
            _run(stages, files, records, summary, options.overwrite, progress, is_interrupted)
            state = "interrupted" if summary.is_interrupted else "complete"
        finally:
            summary.seconds = time.monotonic() - start
            # After a failure, a second error while closing the records would hide the first one.
            with suppress(OSError, sqlite3.Error) if state == "failed" else _room_in(output):
                records.finish(state, _outcome(summary))
                if options.has_report:
                    _write_report(records, settings)
    return summary


def _run(
    stages: Stages | RayStages,
    files: Inputs,
    records: Records,
    summary: SegmentSummary,
    overwrite: bool,
    progress: Progress | None,
    is_interrupted: threading.Event,
) -> None:
    def earlier(file: InputFile) -> Earlier | None:
        found = records.earlier(file.name)
        # With overwrite nothing is skipped, but the earlier results are still known, so that stale ones are deleted.
        return replace(found, is_done=False, file=file.file, parts={}) if found and overwrite else found

    with closing(stages.run(files, earlier, is_interrupted)) as outcomes:
        for outcome in outcomes:
            if outcome.part is not None:
                records.add_part(outcome.file.name, outcome.part, outcome.formats)
                continue
            if outcome.pictures:
                records.add(outcome.file.name, outcome.pictures, outcome.formats)
            summary.count(outcome)
            if progress is not None:
                progress(Step(summary.finished + summary.skipped, len(files), outcome.file.file))


@contextmanager
def _interrupts_noted(summary: SegmentSummary) -> Iterator[threading.Event]:
    """Make the first Ctrl-C, SIGTERM or SIGHUP set an event, and restore the previous handlers for the second."""
    is_interrupted = threading.Event()
    before: dict[signal.Signals, Any] = {}

    def note(number: int, _: object) -> None:
        summary.signal_number = number
        is_interrupted.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():  # Python allows signal handlers nowhere else
        names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
        found = {number: signal.getsignal(number) for name in names if (number := getattr(signal, name, None))}
        # Ignored signals stay ignored: a background job ignores Ctrl-C, and nohup ignores SIGHUP.
        before |= {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}
        for number in before:
            signal.signal(number, note)
    try:
        yield is_interrupted
    finally:
        restore()


def _check(options: SegmentOptions) -> None:
    if unknown := [name for name in options.formats if name not in FORMATS]:
        raise ConfigError(f"unknown format {', '.join(unknown)}; known are {', '.join(FORMATS)}")
    if options.batch_size < 1 or options.device not in DEVICES:
        got = f"batch_size={options.batch_size}, device={options.device!r}"
        raise ConfigError(f"got {got}; expected a positive batch size, and one of {', '.join(DEVICES)}")
    if options.engine not in ENGINES:
        raise ConfigError(f"unknown engine {options.engine!r}; known are {', '.join(ENGINES)}")
    if options.address is not None and options.engine != "ray":
        raise ConfigError("the address is that of a Ray cluster; give --engine ray as well")
    if options.engine == "local":
        refuse_missing_device(options.device)
    is_dicom = any(FORMATS[name].sources == ("DICOM",) for name in options.formats)
    if is_dicom and importlib.util.find_spec("highdicom") is None:
        raise MissingExtraError("highdicom", "dicom")
    if options.stores and not is_dicom:
        raise ConfigError("storing back sends DICOM results; ask for the formats dicom-seg or dicom-sr as well")


def _is_result_folder() -> Callable[[Path], bool]:
    """A function that tells whether a folder holds results of an earlier run, which are not inputs."""
    names = {form.folder for form in FORMATS.values()}
    is_output = cache(lambda folder: read_run(folder) is not None)
    return lambda folder: folder.name in names and is_output(folder.parent)


@contextmanager
def _room_in(output: Path) -> Iterator[None]:
    """Turn errors of writing to the output folder into one plain sentence."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        what = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise cannot_write(output, what) from error
    except sqlite3.DatabaseError as error:
        raise ConfigError(
            f"{output / JOURNAL} cannot be used ({error}). If it is damaged, delete it: then all images are done again"
        ) from error


def _cluster(options: SegmentOptions) -> AbstractContextManager[None]:
    return connected(options.address) if options.engine == "ray" else nullcontext()


def _stages(model: Model, options: SegmentOptions, output: Path, salt: str | None) -> Stages:
    labels = model.labels._replace(deidentified_with=salt)
    reading = Reading(options.slice_axis, options.window)
    return Stages(model, output, options.formats, options.batch_size, reading, labels, options.stores)


def _stages_of_cluster(
    options: SegmentOptions, output: Path, fingerprint: Mapping[str, Any], salt: str | None
) -> RayStages:
    """Stages for workers, whose working directory differs from the driver's: paths become absolute."""
    device: DeviceName = "cuda" if options.device == "cuda" else "cpu"  # Ray hides GPUs that were not requested
    elsewhere = replace(
        options,
        bundle=_known_or_absolute(options.bundle, shipped_bundles()),
        adapter=options.adapter and Path(options.adapter).absolute(),
        base_weights=options.base_weights and Path(options.base_weights).absolute(),
        detector=_known_or_absolute(options.detector, ["none", *weights.known()]),
        device=device,
    )
    output = output.absolute()
    return RayStages(partial(_stages_elsewhere, elsewhere, output, fingerprint, salt), output, torch.device(device))


def _stages_elsewhere(
    options: SegmentOptions, output: Path, fingerprint: Mapping[str, Any], salt: str | None
) -> Stages:
    model = _model(options)
    # Every node has its own installation; without this check, results of one run could come from different weights.
    if (found := _fingerprint(model, options)) != fingerprint:
        differing = ", ".join(name for name in fingerprint if found.get(name) != fingerprint[name])
        raise ConfigError(
            f"the worker on {platform.node()} would segment with another {differing}; install the same version of "
            "amsam-med and the same weights on all nodes"
        )
    return _stages(model, options, output, salt)


def _known_or_absolute(name_or_path: FilePath | None, known: Sequence[str]) -> str | None:
    if name_or_path is None or str(name_or_path) in known:
        return None if name_or_path is None else str(name_or_path)
    return str(Path(name_or_path).absolute())


def _model(options: SegmentOptions, is_driver: bool = False) -> Model:
    """The model, whose parts are not built yet; a Ray driver does not compute and so needs no GPU."""
    device = "cpu" if is_driver else options.device
    chosen = model_overrides(options.adapter, options.base_weights, options.detector, device, options.test_views)
    return Model(open_bundle(str(options.bundle), "inference", {**chosen, **options.overrides}))


def _fingerprint(model: Model, options: SegmentOptions) -> dict[str, Any]:
    """Everything that a result depends on besides its image."""
    reading = {"slice_axis": options.slice_axis, "window": options.window, "deidentified": options.deidentifies}
    return {**model.fingerprint, **reading}


def _settings(
    inputs: Sequence[FilePath],
    output: Path,
    options: SegmentOptions,
    device: torch.device,
    shown: Callable[[str], str],
) -> RunSettings:
    words = ["amsam", "segment", *map(str, inputs), "-o", str(output), *as_words(options)]
    words = [_as_utf8(shown(word)) for word in words]
    bundle = _as_utf8(shown(str(options.bundle)))
    return RunSettings(shlex.join(words), bundle, options.formats, options.batch_size, str(device))


def _as_utf8(word: str) -> str:
    """A word of the command with bytes that are not UTF-8 escaped, since run.json must be valid UTF-8."""
    return visible(word) if any("\ud800" <= character <= "\udfff" for character in word) else word


def _outcome(summary: SegmentSummary) -> RunOutcome:
    counts = {name: getattr(summary, name) for name in _COUNTS}
    return RunOutcome(counts, round(summary.seconds, 2), round(summary.images_per_second, 2))


def _write_report(records: Records, settings: RunSettings) -> None:
    fingerprint = records.fingerprint
    facts = {
        "Bundle": settings.bundle,
        "Command": settings.command,
        "Weights": ", ".join(f"{role} {digest[:12]}" for role, digest in fingerprint["weights"].items() if digest),
        "Version": f"AM-SAM Med {__version__}",
        "Started": records.started,
        "State": records.state,
    }
    cards = (Card(cells, thumbnail) for cells, thumbnail in records.pictures())
    write_report(records.folder / REPORT, "Segmented images", facts, cards)
