"""The stages of a folder run: files are opened and read in threads, segmented, and written in threads.

On a CPU as many pictures are segmented at once as torch has threads, one picture per thread; on other devices they are
segmented in batches.

The stages call the bundle's own parts, so masks equal those of the label server and of the Python API. A file may hold
many pictures (frames, pages, slices). Each picture passes the stages on its own, and results of the whole file are
written after its last picture. Each picture is reported as soon as it is written, so a run that is killed does not
repeat it. An error in one picture does not affect the others.

Work in progress is bounded in bytes as well as in number: local copies on the temporary disk by :data:`COPIED_BYTES`,
the memory for decoding, measuring and drawing by a quarter of the machine's. A single picture may exceed the bound.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from amsam_med.boxes import Size
from amsam_med.data.dicom.web import DicomWeb
from amsam_med.data.nifti import SliceAxis
from amsam_med.data.outlines import THUMBNAIL_SIDE, thumbnail
from amsam_med.data.readers import PIXEL_LIMIT, ImageFile, Window, open_image
from amsam_med.data.results import FileResult, Labels, PackedMasks, Result
from amsam_med.errors import AmsamError, ConfigError, DataError
from amsam_med.files import sha256 as file_digest
from amsam_med.machine import is_out_of_memory
from amsam_med.measure import measure
from amsam_med.opened_model import Answer, Model, PreparedImage
from amsam_med.segment.formats import FORMATS
from amsam_med.segment.inputs import InputFile, local_copy, unpacked_bytes
from amsam_med.segment.journal import Earlier, FileFlag, Part, Picture, Row, is_inside
from amsam_med.threads import single_threaded_pool

COPIED_BYTES = 1 << 30
"""Bytes of the temporary disk that local copies may take at once, as far as their sizes are known."""
LEAST_PICTURE_BYTES = 3 << 29
"""Memory that pictures in progress may always take together; on a large machine it is a quarter of its memory."""

_BYTES_PER_PIXEL = 24  # peak per picture in progress, as measured: decoded, as network input, measured and drawn
_MOST_HELPERS = 8
_KEPT_BYTES = 4 << 20  # a decoded picture up to this size stays in memory until written; a larger one is read again
_NO_MORE_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # every later file would fail in the same way

T = TypeVar("T")
R = TypeVar("R")


class Reading(NamedTuple):
    """How files are read. Results depend on it, so it is part of the run's fingerprint.

    Attributes:
        slice_axis: As for :func:`amsam_med.data.readers.open_image`.
        window: As for :func:`amsam_med.data.readers.open_image`.
    """

    slice_axis: SliceAxis = "auto"
    window: Window | None = None


class Outcome(NamedTuple):
    """The outcome of a file that has passed all stages, or of one picture of a file that has not yet.

    Attributes:
        file: The file.
        pictures: Its pictures, if it was segmented or failed; empty if an earlier run had finished it.
        formats: Names of the formats that were written.
        taken_over: How many of the pictures an earlier run had finished.
        part: The finished picture of a file that still has unfinished ones; None when the whole file is finished.
    """

    file: InputFile
    pictures: Sequence[Picture]
    formats: Sequence[str]
    taken_over: int = 0
    part: Part | None = None


class Stages:
    """The stages that every file passes, with an opened model.

    Args:
        model: The model that segments.
        output: Folder for the results.
        formats: Names of the :data:`FORMATS` to write.
        batch_size: Pictures that the network takes at once, at most.
        reading: How files are read.
        labels: Meaning of the classes and digests of the weights, for DICOM results.
        stores: Whether DICOM results are sent back to the server that the image came from.

    Attributes:
        device: Where the network computes.
    """

    def __init__(
        self,
        model: Model,
        output: Path,
        formats: Sequence[str],
        batch_size: int,
        reading: Reading,
        labels: Labels,
        stores: bool = False,
    ) -> None:
        self._output, self._formats, self._batch_size = output, formats, batch_size
        self._reading, self._labels, self._stores = reading, labels, stores
        model.initialize()
        model.load()
        self._model, self.device = model, model.device
        self._open_files = set[_File]()
        self._memory = _Budget(max(LEAST_PICTURE_BYTES, _memory_of_machine() // 4))

    def run(
        self,
        files: Iterable[InputFile],
        earlier: Callable[[InputFile], Earlier | None],
        is_interrupted: threading.Event,
    ) -> Generator[Outcome]:
        """Yield the outcomes of all files in order; after an interrupt, only those whose batch has begun.

        The outcome of a file with several pictures is preceded by one with a ``part`` for each finished picture.

        Args:
            files: The files to segment.
            earlier: Returns what an earlier run recorded of a file; None to segment it in any case.
            is_interrupted: Set to stop after the pictures in progress.

        Raises:
            ConfigError: The output folder holds results of another file under a name, there is no room left in it, or
                the device has too little memory.
        """
        helpers = max(1, min(_MOST_HELPERS, torch.get_num_threads() // 2))
        ahead = 2 * self._batch_size
        limited = _LimitedInputs(files, COPIED_BYTES)
        # A full temporary disk can only be freed by finishing files, so every stage then drains before it takes more.
        full = limited.is_full
        try:
            # Each stage is a generator that pulls from the one before it, so the slowest one sets the pace and no queue
            # grows. The with statement closes them from the last to the first: a consumer never outlives its source.
            with (
                closing(_in_order(lambda one: self._open(one, earlier(one)), limited, helpers, ahead, full)) as opened,
                closing(_in_order(self._read, _jobs(opened), helpers, ahead, full)) as jobs,
                closing(self._predicted(jobs, is_interrupted, full)) as predicted,
                closing(_in_order(self._write, predicted, helpers, self._batch_size, full)) as done,
            ):
                for job in done:
                    if job.is_last:
                        outcome = self._close(job.file)
                        limited.release(job.file.given)
                        yield outcome
                    elif job.is_new_part:
                        yield Outcome(job.file.given, (), job.file.formats, part=job.part())
        finally:
            for file in tuple(self._open_files):
                file.close()
            self._open_files.clear()

    def _open(self, given: InputFile, earlier: Earlier | None) -> _File:
        file = _File(given, earlier, self._formats)
        self._open_files.add(file)
        with _faults_of(file):
            file.open(self._reading)
        return file

    def _read(self, job: _Job) -> _Job:
        if job.file.is_skipped or job.file.error or job.earlier:
            return job
        with job.at_work():
            self._with_memory(job, lambda: self._read_picture(job))
        return job

    def _with_memory(self, job: _Job, work: Callable[[], object]) -> None:
        """Run ``work`` on a picture once its share of memory is free; on a MemoryError once more, alone."""
        needed = _BYTES_PER_PIXEL * job.file.pixel_count(job.index)
        try:
            with self._memory.held(needed):
                work()
        except MemoryError:
            # The estimate does not know what other programs take; alone, the picture may still fit.
            try:
                with self._memory.held(self._memory.total):
                    work()
            except MemoryError:
                raise DataError(
                    f"{job.file.name_on_disk}: this machine has too little memory for it, which takes about "
                    f"{needed / 1e9:.1f} GB. Close other programs, or scale it down"
                ) from None

    def _read_picture(self, job: _Job) -> None:
        pixels = job.file.pixels(job.index)
        job.prepared = self._model.prepare(pixels)
        job.size = job.prepared.size
        job.kept = pixels if pixels.nbytes <= _KEPT_BYTES else None
        prepared = job.prepared.inputs
        if THUMBNAIL_SIDE <= prepared.shape[-1] < max(job.size):
            # Thumbnails start from the network's input: it is large enough, and cheaper to shrink than the picture.
            job.preview = (255 * prepared).round().byte().numpy()

    def _predicted(
        self, jobs: Iterator[_Job], is_interrupted: threading.Event, is_full: Callable[[], bool]
    ) -> Generator[_Job]:
        wanted = itertools.takewhile(lambda _: not is_interrupted.is_set(), jobs)
        if self.device.type == "cpu":
            # The inferer splits a batch into single images on a CPU anyway. Sent one by one, no image waits for the
            # slowest of its batch, and results do not depend on the batch size.
            workers = min(torch.get_num_threads(), self._batch_size)
            yield from _in_order(self._predict_one, wanted, workers, self._batch_size, is_full)
        while batch := list(itertools.islice(wanted, 1)):
            while len(batch) < self._batch_size and not is_full() and (more := list(itertools.islice(wanted, 1))):
                batch += more
            if readable := [job for job in batch if job.prepared]:
                self._predict(readable)
            yield from batch

    def _predict_one(self, job: _Job) -> _Job:
        if job.prepared:
            self._predict([job])
        return job

    def _predict(self, jobs: Sequence[_Job]) -> None:
        start = time.perf_counter()
        try:
            answers = self._model.predict([job.prepared for job in jobs if job.prepared])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise ConfigError(
                f"{self.device} has too little memory for batches of {self._batch_size} images; "
                "give a smaller --batch-size, and what is done stays done"
            ) from None
        for job, answer in zip(jobs, answers, strict=True):
            job.prepared, job.answer = None, answer
            job.row = replace(
                job.row,
                box_source=answer.box_source,
                box_confidence=round(answer.box_confidence, 4),
                predicted_iou=round(answer.predicted_iou, 4),
                certainty=round(answer.certainty, 4),
                box_agreement=None if answer.box_in_original is None else round(answer.box_agreement, 4),
            )
        seconds = (time.perf_counter() - start) / len(jobs)  # a batch is computed as one, so all get an equal share
        for job in jobs:
            job.seconds += seconds

    def _write(self, job: _Job) -> _Job:
        file = job.file
        if not file.is_skipped:
            if not (job.error or file.error or job.earlier):
                with job.at_work(self._output):
                    self._with_memory(job, lambda: self._write_picture(job))
            # The job itself lives until its file is finished, which may be thousands of pictures later.
            job.prepared = job.answer = job.kept = job.preview = None
            if file.take(job):
                with _faults_of(file, self._output):
                    self._write_file(file)
        return job

    def _write_picture(self, job: _Job) -> None:
        assert job.answer is not None
        mask, box_in_original = self._model.restore(job.answer), job.answer.box_in_original
        pixels = job.file.pixels(job.index) if job.kept is None else job.kept
        words = (*job.answer.flags, *job.file.flags())
        job.row = replace(job.row, measured=measure(pixels, mask, job.file.spacing_mm), flags=";".join(words))
        if box_in_original is not None:
            x1, y1, x2, y2 = (round(float(edge), 1) for edge in box_in_original)
            job.row = replace(job.row, box_x1_px=x1, box_y1_px=y1, box_x2_px=x2, box_y2_px=y2)
        result = Result(pixels, mask, box_in_original, words)
        job.mask = PackedMasks.pack(mask) if any(FORMATS[name].of_file for name in job.file.formats) else None
        job.thumbnail = thumbnail(pixels if job.preview is None else job.preview, mask)
        for name in job.file.formats:
            form = FORMATS[name]
            if form.of_picture is not None:
                job.files[form.column] = form.file(job.name)
                form.of_picture(result, self._path_of(job.files[form.column]))

    def _write_file(self, file: _File) -> None:
        """Write the results of a whole file, once all its pictures are finished."""
        if file.error or any(job.error for job in file.jobs):
            return  # a volume with missing slices would look complete
        file.jobs.sort(key=lambda job: job.index)  # writing threads finish in any order
        file.check_unchanged()
        masks = PackedMasks([job.mask for job in file.jobs if job.mask is not None])
        measured = [asdict(job.row.measured) for job in file.jobs if job.row.measured is not None]
        written: dict[str, Path] = {}
        result = FileResult(
            file.path, file.image_format, masks, measured, self._reading.slice_axis, self._labels, written
        )
        for name, form in FORMATS.items():
            if name in file.formats and form.of_file is not None and form.fits(file.image_format):
                path = self._path_of(form.file(file.given.name))
                form.of_file(result, path)
                written[name], file.files[form.column] = path, form.file(file.given.name)
        to_store = [path for path in written.values() if path.suffix == ".dcm"]
        if self._stores and to_store and file.given.kind == "dicomweb":
            DicomWeb(file.given.location).store(to_store)

    def _path_of(self, result: str) -> Path:
        """The path to which a result is written.

        Raises:
            DataError: A folder on the way there is a link.
        """
        if not is_inside(self._output, result):
            raise DataError(f"a folder of {Path(result).name} is a link, and nothing is written through one; delete it")
        return self._output / result

    def _close(self, file: _File) -> Outcome:
        """The outcome of a file, after deleting earlier results that no longer hold."""
        file.close()
        self._open_files.discard(file)
        if file.is_skipped:
            return Outcome(file.given, (), file.formats)
        pictures = file.pictures()
        kept = {result for picture in pictures for result in (picture.row.files or {}).values()}
        stale = set() if file.earlier is None else set(file.earlier.results) - kept
        if any(picture.row.error for picture in pictures):
            names = {file.given.name, *(job.name for job in file.jobs)}
            stale |= {form.file(name) for form in FORMATS.values() for name in names} - kept
        for result in stale:  # a leftover mask would pass for the result of an image that has none
            with suppress(OSError):
                if is_inside(self._output, result):
                    (self._output / result).unlink()
        return Outcome(file.given, pictures, file.formats, sum(job.earlier is not None for job in file.jobs))


class _File:
    """A file in progress: what is known of it so far, and the first error that concerns more than one picture."""

    def __init__(self, given: InputFile, earlier: Earlier | None, formats: Sequence[str]) -> None:
        self.given, self.earlier = given, earlier
        # Formats of an earlier run are written again, so that all results of a file come from the same weights.
        self.formats = tuple(dict.fromkeys((*formats, *(earlier.formats if earlier else ()))))
        self.is_skipped, self.error, self.digest, self.image_format = False, "", "", ""
        self.count = 1
        self.spacing_mm: tuple[float, float] | None = None
        self.jobs: list[_Job] = []
        self.files: dict[str, str] = {}  # results of the whole file, by column
        self.parts: dict[int, Part] = {}  # pictures that an earlier run finished, by number from 1
        self.path = Path(given.member or given.location)
        self._held = ExitStack()
        self._image: ImageFile | None = None
        self._lock = threading.Lock()
        self._requested = formats

    def open(self, reading: Reading) -> None:
        """Find out whether there is anything to do, and how many pictures the file holds."""
        self.path = self._held.enter_context(local_copy(self.given))
        self._state = _state(self.path)  # before hashing, so that a change while hashing is noticed as well
        self.digest = file_digest(self.path)
        if self.earlier is not None:
            is_same = self.earlier.sha256 == self.digest
            if not is_same and self.earlier.file != self.given.file:
                raise ConfigError(
                    f"the output folder holds results of {self.earlier.file} under the name that those of "
                    f"{self.given.file} would get; give another output folder, or --overwrite to replace them"
                )
            self.is_skipped = is_same and self.earlier.is_done and set(self._requested) <= set(self.earlier.formats)
        if not self.is_skipped:
            image = open_image(self.path, slice_axis=reading.slice_axis, window=reading.window)
            self._image = self._held.enter_context(image)
            self.count, self.image_format, self.spacing_mm = image.count, image.format, image.spacing_mm
            if (
                self.count > 1
                and self.earlier is not None
                and is_same
                and set(self.formats) == set(self.earlier.formats)
            ):
                parts = self.earlier.parts.items()
                self.parts = {number: part for number, part in parts if number <= self.count and self._is_usable(part)}

    def _is_usable(self, part: Part) -> bool:
        """Whether a recorded picture has everything that formats of whole files need."""
        if part.picture.row.measured is None:
            return False
        if not any(FORMATS[name].of_file for name in self.formats):
            return True
        return part.mask is not None and _is_mask_of(part.mask, part.picture.row)

    def flags(self) -> tuple[str, ...]:
        """Flags that hold for all pictures of the file; usually none."""
        assert self._image is not None
        found = {FileFlag.DAMAGED: bool(self._image.damage), FileFlag.BURNED_IN: self._image.is_annotated}
        return tuple(flag.value for flag, is_so in found.items() if is_so)

    def pixel_count(self, index: int) -> int:
        """The number of pixels of a picture by its header; 0 if the header is damaged."""
        assert self._image is not None
        with self._lock, suppress(DataError):
            height, width = self._image.size(index)
            # Beyond the limit the reader refuses it, which takes no memory: it need not wait for any.
            return height * width if height * width <= PIXEL_LIMIT else 0
        return 0

    @property
    def name_on_disk(self) -> str:
        """Name of the file that readers open, which is a temporary copy for archives and servers."""
        return self.path.name

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """A picture, uint8 ``(3, H, W)`` RGB."""
        assert self._image is not None
        with self._lock:  # ImageFile allows one thread at a time: it seeks in a single file handle
            return self._image.pixels(index)

    def take(self, job: _Job) -> bool:
        """Add a written picture; True if it was the last one missing."""
        with self._lock:
            self.jobs.append(job)
            return len(self.jobs) == self.count

    def check_unchanged(self) -> None:
        """Check that the file still is the one that was hashed.

        Raises:
            DataError: The file was written to while it was segmented.
        """
        if _state(self.path) != self._state:
            raise DataError(
                f"{self.path.name}: it changed while it was segmented. Segment it again when it is complete"
            )

    def pictures(self) -> list[Picture]:
        """The rows to record; a file with an error has only the row with that error."""
        self.jobs.sort(key=lambda job: job.index)
        if self.error:
            seconds = round(sum(job.seconds for job in self.jobs), 3)
            return [Picture(Row(self.given.file, image_sha256=self.digest, seconds=seconds, error=self.error))]
        return [job.picture() for job in self.jobs]

    def close(self) -> None:
        """Close the file and delete its local copy."""
        self._held.close()


class _Job:
    """One picture in progress: what is known of it so far, and its first error."""

    def __init__(self, file: _File, index: int) -> None:
        self.file, self.index = file, index
        self.earlier = file.parts.get(index + 1)  # as an earlier run finished it
        self.prepared: PreparedImage | None = None
        self.answer: Answer | None = None
        self.size: Size = (0, 0)  # (height, width) in pixels
        self.kept: NDArray[np.uint8] | None = None  # the decoded picture, (3, H, W)
        self.preview: NDArray[np.uint8] | None = None  # squashed to the network's input, (3, S, S)
        self.row = Row(file.given.file)  # filled in from stage to stage
        self.files: dict[str, str] = {}
        self.mask: bytes | None = None
        self.thumbnail: bytes | None = None
        self.seconds = 0.0
        self.error = ""
        if self.earlier is not None:
            self.mask, self.row = self.earlier.mask, replace(self.row, measured=self.earlier.picture.row.measured)

    @property
    def is_new_part(self) -> bool:
        """Whether this run has finished it and its file has further pictures."""
        is_done = not (self.earlier or self.error or self.file.error or self.file.is_skipped)
        return self.file.count > 1 and is_done

    @property
    def is_last(self) -> bool:
        """Whether it is the last picture of its file."""
        return self.index == self.file.count - 1

    @property
    def name(self) -> str:
        """Sub-folder and stem of its results."""
        if self.file.count == 1:
            return self.file.given.name
        return f"{self.file.given.name}_{self.index + 1:0{max(4, len(str(self.file.count)))}}"

    @contextmanager
    def at_work(self, output: Path | None = None) -> Iterator[None]:
        """Time a piece of work on this picture; an error in the block becomes the picture's and ends nothing else."""
        start = time.perf_counter()
        try:
            with _faults_of(self, output):
                yield
        finally:
            self.seconds += time.perf_counter() - start

    def picture(self) -> Picture:
        """The row to record, with the thumbnail."""
        if self.earlier is not None:
            row, thumbnail = self.earlier.picture
            of_file = {column: self.file.files.get(column, result) for column, result in (row.files or {}).items()}
            files = {**of_file, **self.file.files}
            return Picture(replace(row, file=self.file.given.file, files=files), thumbnail)
        number = self.index + 1 if self.file.count > 1 else None
        height, width = self.size
        row = replace(
            Row(self.file.given.file, error=self.error) if self.error else self.row,
            picture=number,
            image_sha256=self.file.digest,
            height_px=height or None,
            width_px=width or None,
            seconds=round(self.seconds, 3),
        )
        if self.error:
            return Picture(row)
        return Picture(replace(row, files={**self.files, **self.file.files}), self.thumbnail)

    def part(self) -> Part:
        """What is recorded of the picture before its whole file is finished."""
        row, thumbnail = self.picture()
        return Part(Picture(replace(row, files=dict(self.files)), thumbnail), self.mask)


class _Budget:
    """A bound on bytes in use at once; a request above the bound is granted when nothing else is in use."""

    def __init__(self, total: int) -> None:
        self.total, self._used, self._changed = total, 0, threading.Condition()

    @contextmanager
    def held(self, wanted: int) -> Iterator[None]:
        """Reserve bytes while the block runs, after waiting for them to become free.

        A thread that holds bytes never waits for more, so waiting cannot end in a deadlock.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + wanted <= self.total)
            self._used += wanted
        try:
            yield
        finally:
            with self._changed:
                self._used -= wanted
                self._changed.notify_all()


class _LimitedInputs:
    """Files one after another, and whether the next one would exceed the limit of local copies.

    It never blocks: the one thread that pulls files through the stages would then wait for itself. It only says that it
    is full, and the stages finish what they have. Not safe for several threads.
    """

    def __init__(self, files: Iterable[InputFile], limit: int) -> None:
        self._files, self._limit, self._used = iter(files), limit, 0
        self._sizes: dict[str, int] = {}  # by name
        self._next: InputFile | None = next(self._files, None)
        self._next_size = 0 if self._next is None else unpacked_bytes(self._next)

    def __iter__(self) -> Iterator[InputFile]:
        while (file := self._next) is not None:
            if self._next_size:
                self._sizes[file.name] = self._next_size
                self._used += self._next_size
            self._next = next(self._files, None)
            self._next_size = 0 if self._next is None else unpacked_bytes(self._next)
            yield file

    def is_full(self) -> bool:
        """Whether the next file's copy would exceed the limit together with those that exist."""
        # A single file above the limit passes when it is alone; otherwise the run could not go on.
        return self._used > 0 and self._used + self._next_size > self._limit

    def release(self, file: InputFile) -> None:
        """Note that the copy of a file is gone."""
        self._used -= self._sizes.pop(file.name, 0)


def cannot_write(output: Path, what: str) -> ConfigError:
    """The error for an output folder that cannot be written to; ``what`` is the reason in the system's words."""
    return ConfigError(
        f"{output}: cannot be written to ({what}). Make room, or give another output folder; what is done stays done, "
        "and the same command does the rest"
    )


def _jobs(files: Iterable[_File]) -> Iterator[_Job]:
    for file in files:
        for index in range(file.count):
            yield _Job(file, index)


@contextmanager
def _faults_of(work: _File | _Job, output: Path | None = None) -> Iterator[None]:
    """Record an error with its file or picture, unless it would hit all others as well: then it ends the run."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # decoders raise nearly anything; one bad file must not end a run of thousands
        if output is not None and isinstance(error, OSError) and error.errno in _NO_MORE_WRITES:
            raise cannot_write(output, error.strerror or str(error)) from None
        file = work if isinstance(work, _File) else work.file
        if is_out_of_memory(error) and not isinstance(error, MemoryError):
            error = MemoryError()
        # Readers name the file as it is on disk, which may contain the patient's name; rows have the replaced name.
        work.error = _reason(error).replace(file.name_on_disk, Path(file.given.file).name)


def _in_order(
    function: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    depth: int,
    is_full: Callable[[], bool] = lambda: False,
) -> Generator[R]:
    """``map`` in threads with results in the order of ``items``, of which at most ``depth`` are taken ahead.

    While ``is_full`` returns True, results are handed on before another item is taken.
    """
    ahead: deque[Future[R]] = deque()
    iterator = iter(items)
    with single_threaded_pool(workers) as pool:  # each thread with torch's own team would be more threads than cores
        try:
            while True:
                while ahead and (len(ahead) > depth or is_full()):
                    yield ahead.popleft().result()
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                ahead.append(pool.submit(function, item))
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _is_mask_of(packed: bytes, row: Row) -> bool:
    """Whether the bytes are a packed mask of its picture's size; never unpacks more than that.

    A journal may come from somebody else, and a few bytes of zlib can unpack to gigabytes.
    """
    if len(packed) < 8 or struct.unpack("<II", packed[:8]) != (row.height_px, row.width_px):
        return False
    count = (row.height_px or 0) * (row.width_px or 0)
    unpacker = zlib.decompressobj()
    try:
        return count <= PIXEL_LIMIT and len(unpacker.decompress(packed[8:], count + 1)) == count and unpacker.eof
    except zlib.error:
        return False


def _memory_of_machine() -> int:
    """The memory of the machine, or of the container that this process runs in, in bytes; 0 if unknown."""
    found = []  # in a container, sysconf still reports the whole machine's memory
    with suppress(OSError, ValueError):
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    with suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found, default=0)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "this machine has too little memory for it. Close other programs, or give a smaller --batch-size"
    if isinstance(error, RecursionError):
        return "it lies too many folders deep. Move it up"
    if isinstance(error, AmsamError):
        return str(error)
    return (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
