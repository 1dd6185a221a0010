"""Segmenting any number of images, files and folders, with a bundle's parts.

Threads read ahead and write behind; between them the network works in batches. However long the list is, only a few
batches of it are held in memory. An image that cannot be read or written becomes a row with its error, and the rest is
done. The output folder::

    masks/<sub-folder>/<stem>_segmentation.png          0 and 255 (class ids where there are several), original size
    overlays/<sub-folder>/<stem>_overlay.jpg or .png    outline and box over the image; JPEG for JPEG images
    results.csv, run.json                               see amsam_med.records

The sub-folder is the one that the image has in its input folder. Of several images that would get one name, the first
by path keeps it; ``a.png`` beside ``a.jpg`` becomes ``a.png_segmentation.png``, and if that is taken, a number follows.

A later run into the same folder skips an image whose bytes and results are as they were, if weights and settings are.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle.config_parser import ConfigParser

from amsam_med import __version__, weights
from amsam_med.bundle import model_overrides, open_bundle
from amsam_med.data.datalists import image_stem, list_images
from amsam_med.data.writers import FORMATS
from amsam_med.errors import ConfigError, DataError
from amsam_med.infer import NOT_FOUND
from amsam_med.records import Records, Row, read_run
from amsam_med.stages import InputImage, Stages, file_digest
from amsam_med.views import ViewKind

DEVICES = ("auto", "cpu", "cuda")
SHOWN_FAILURES = 5
"""How many failures a summary names; ``results.csv`` has them all."""

_FINGERPRINTED = ("input_size", "network_def", "preprocessing", "detector", "test_views", "inferer", "postprocessing")


@dataclass(frozen=True)
class SegmentOptions:
    """What ``amsam segment`` lets a user choose.

    Attributes:
        bundle: Name or folder of the bundle whose ``inference`` workflow supplies all parts.
        adapter: An adapter to use instead of the bundle's own model.
        base_weights: The base on which the adapter was trained; by default the one it names.
        detector: Name or file of a box detector, ``"none"`` for no boxes; the bundle's own by default.
        formats: Names of :data:`FORMATS`.
        device: One of :data:`DEVICES`; ``"auto"`` leaves it to the bundle.
        batch_size: Images that the network takes at once.
        overwrite: Do again what an earlier run has done.
        test_views: Views of each image to average, by :data:`amsam_med.views.ViewKind`; by default the bundle's.
        overrides: Further entries of the configuration, by id.
    """

    bundle: str = "amsam_isic"
    adapter: Path | None = None
    base_weights: Path | None = None
    detector: str | None = None
    formats: tuple[str, ...] = ("png", "overlay")
    device: str = "auto"
    batch_size: int = 8
    overwrite: bool = False
    test_views: ViewKind | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


class Step(NamedTuple):
    """One image is finished: how many of this run's images are, of how many, and which it was."""

    finished: int
    total: int
    file: str


Progress = Callable[[Step], None]


@dataclass
class SegmentSummary:
    """The outcome of a run.

    Attributes:
        output: The output folder.
        images: How many images there are in the inputs.
        done: Images segmented by this run.
        failed: Images with an error.
        skipped: Images that an earlier run had done.
        without_box: Images among the done ones for which the detector found no box.
        flagged: Images among the done ones that deserve a look; ``results.csv`` says why.
        seconds: Wall time from the first image read to the last file written; loading the weights is not in it.
        failures: (file, error) of the first :data:`SHOWN_FAILURES` failed images.
    """

    output: Path
    images: int
    done: int = 0
    failed: int = 0
    skipped: int = 0
    without_box: int = 0
    flagged: int = 0
    seconds: float = 0.0
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def finished(self) -> int:
        """Images that this run has done or failed to do."""
        return self.done + self.failed

    @property
    def is_interrupted(self) -> bool:
        """Whether images are left that the run did not reach."""
        return self.finished + self.skipped < self.images

    @property
    def images_per_second(self) -> float:
        """Images finished a second of wall time."""
        return self.finished / self.seconds if self.seconds else 0.0

    def count(self, row: Row) -> None:
        """Take in one finished image."""
        self.done += not row.error
        self.failed += bool(row.error)
        self.without_box += row.box_source == NOT_FOUND
        self.flagged += bool(row.flags)
        if row.error and len(self.failures) < SHOWN_FAILURES:
            self.failures.append((row.file, row.error))


def segment(
    inputs: Sequence[Path], output: Path, options: SegmentOptions | None = None, progress: Progress | None = None
) -> SegmentSummary:
    """Segment files and folders of images.

    Ctrl-C ends the run after the batch in hand, with its results kept; a second Ctrl-C ends it at once.

    Args:
        inputs: Image files, and folders that are searched with their sub-folders.
        output: The output folder; made where it is missing. It may lie in an input folder.
        options: See :class:`SegmentOptions`.
        progress: Called after each image, in the caller's thread.

    Raises:
        DataError: An input does not exist or holds no images, or there is no such bundle.
        ConfigError: An option is unknown, or the output folder holds files that must not be mixed with these results.
        WeightsError: Model, adapter, base or detector are not at hand.
    """
    options = options or SegmentOptions()
    _check(options)
    images = find_images(inputs)
    parser = open_bundle(options.bundle, "inference", _overrides(options))
    stages = Stages(parser, output, options.formats, options.batch_size)
    records = Records(output, _fingerprint(parser), options.overwrite, [form.folder for form in FORMATS.values()])
    to_do = [image for image in images if options.overwrite or not _is_done(image, records, options.formats)]
    summary = SegmentSummary(output, len(images), skipped=len(images) - len(to_do))
    replaced = {image.result_file(name) for image in to_do for name in FORMATS}
    records.start(replaced, _settings(inputs, output, options, stages.device))
    start, state = time.monotonic(), "failed"
    try:
        with _interrupts_noted() as is_interrupted, closing(stages.run(to_do, is_interrupted)) as rows:
            for row in rows:
                records.add(row)
                summary.count(row)
                if progress is not None:
                    progress(Step(summary.finished, len(to_do), row.file))
        state = "interrupted" if summary.is_interrupted else "complete"
    finally:
        summary.seconds = time.monotonic() - start
        records.finish(state, _outcome(summary))
    return summary


def find_images(inputs: Sequence[Path]) -> list[InputImage]:
    """All images of files and folders, each once, sorted by path.

    Results of earlier runs that lie in an input folder are left out.

    Raises:
        DataError: An input does not exist or holds no images.
    """
    found: dict[str, tuple[Path, Path]] = {}
    for given in inputs:
        for path in _images_of(given):
            relative = path.relative_to(given) if given.is_dir() else Path(path.name)
            found.setdefault(os.path.abspath(path), (path, relative))
    if not found:
        raise DataError("no inputs; give image files or folders")
    images, taken = [], set[str]()
    for path, relative in sorted(found.values(), key=lambda pair: pair[0].as_posix()):
        whole = relative.as_posix()
        names = itertools.chain(
            [(relative.parent / image_stem(path)).as_posix(), whole], (f"{whole}-{n}" for n in itertools.count(2))
        )
        name = next(name for name in names if name.casefold() not in taken)  # some file systems ignore case
        taken.add(name.casefold())
        images.append(InputImage(path, path.as_posix(), name))
    return images


@contextmanager
def _interrupts_noted() -> Iterator[threading.Event]:
    """Let the first Ctrl-C set an event, and the second one do what it did before."""
    is_interrupted = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield is_interrupted  # only the main thread may set handlers; a job in the background ignores Ctrl-C
        return

    def note(*_: object) -> None:
        is_interrupted.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield is_interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _check(options: SegmentOptions) -> None:
    if unknown := [name for name in options.formats if name not in FORMATS]:
        raise ConfigError(f"unknown format {', '.join(unknown)}; known are {', '.join(FORMATS)}")
    if not options.formats or options.batch_size < 1 or options.device not in DEVICES:
        got = f"formats={options.formats}, batch_size={options.batch_size}, device={options.device!r}"
        raise ConfigError(f"got {got}; expected a format, a positive batch size, and one of {', '.join(DEVICES)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, and torch finds none; use auto or cpu, or install torch for CUDA")


def _images_of(given: Path) -> list[Path]:
    if not given.is_dir():
        if not given.exists():
            raise DataError(f"{given}: no such file or folder. Check the path")
        return [given]
    is_output = cache(lambda folder: read_run(folder) is not None)
    names = {form.folder for form in FORMATS.values()}

    def is_result(path: Path) -> bool:
        above = itertools.takewhile(lambda folder: folder != given, path.parents)
        return any(folder.name in names and is_output(folder.parent) for folder in above)

    images = [path for path in list_images(given) if not is_result(path)]
    if not images:
        raise DataError(f"{given}: no images in it besides results of earlier runs")
    return images


def _overrides(options: SegmentOptions) -> dict[str, Any]:
    chosen = model_overrides(
        options.adapter, options.base_weights, options.detector, options.device, options.test_views
    )
    return {**chosen, **options.overrides}


def _fingerprint(parser: ConfigParser) -> dict[str, Any]:
    """What a result depends on besides its image; no paths, so that folders may be moved."""
    parts = {name: parser.get(name) for name in _FINGERPRINTED}
    if isinstance(parts["network_def"], dict):
        parts["network_def"] = {key: value for key, value in parts["network_def"].items() if key != "base_weights"}
    as_json = json.dumps(parts, default=lambda part: type(part).__qualname__)
    is_adapted = bool(_content(parser, "adapter"))
    ids = {"base": "network_def::base_weights", "adapter": "adapter"} if is_adapted else {"model": "model_file"}
    files = {name: _content(parser, id) for name, id in {**ids, "detector": "detector_file"}.items()}
    digests = {name: weights.sha256(Path(file)) if file else None for name, file in files.items()}
    return {"amsam-med": __version__, **json.loads(as_json), "weights": digests}


def _content(parser: ConfigParser, id: str) -> Any:
    return parser.get_parsed_content(id) if id in parser else None


def _is_done(image: InputImage, records: Records, formats: Sequence[str]) -> bool:
    row = records.earlier_row([image.result_file(name) for name in FORMATS])
    if row is None:
        return False
    try:
        is_same = row["image_sha256"] == file_digest(image.path)
    except OSError:
        return False  # the run itself says what is wrong
    if not is_same and row["file"] != image.file:
        raise ConfigError(
            f"{records.folder} holds results of {row['file']} under the name that those of {image.file} would get; "
            "give another output folder, or --overwrite to replace them"
        )
    return is_same and all(row[FORMATS[name].column] == image.result_file(name) for name in formats)


def _settings(inputs: Sequence[Path], output: Path, options: SegmentOptions, device: torch.device) -> dict[str, Any]:
    words = ["amsam", "segment", *map(str, inputs), "-o", str(output), "--bundle", options.bundle]
    words += ["--adapter", str(options.adapter)] if options.adapter else []
    words += ["--base-weights", str(options.base_weights)] if options.base_weights else []
    words += ["--detector", options.detector] if options.detector else []
    words += ["--format", ",".join(options.formats), "--device", options.device]
    words += ["--test-views", options.test_views] if options.test_views else []
    words += ["--batch-size", str(options.batch_size), *(["--overwrite"] if options.overwrite else [])]
    chosen = {"bundle": options.bundle, "formats": options.formats, "batch_size": options.batch_size}
    return {"command": shlex.join(words), "settings": {**chosen, "device": str(device)}}


def _outcome(summary: SegmentSummary) -> dict[str, Any]:
    numbers = {name: value for name, value in asdict(summary).items() if isinstance(value, int)}
    return {
        "counts": numbers,
        "seconds": round(summary.seconds, 2),
        "images_per_second": round(summary.images_per_second, 2),
    }
