"""One image's way through a folder run: read in a thread, segmented in a batch, written in a thread.

The stages are the bundle's own parts, so masks are those of every other face. A fault of one image stays with it.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from monai.bundle.config_parser import ConfigParser
from monai.utils.enums import MetaKeys, PostFix
from torch import Tensor

from amsam_med.boxes import Size, scale_boxes
from amsam_med.data.writers import FORMATS, Result
from amsam_med.errors import AmsamError, ConfigError
from amsam_med.infer import NOT_FOUND, PromptInferer
from amsam_med.keys import Keys
from amsam_med.model import AmSam
from amsam_med.records import Row

_IMAGE_META = PostFix.meta(Keys.IMAGE.value)
_MOST_HELPERS = 8

T = TypeVar("T")
R = TypeVar("R")


class InputImage(NamedTuple):
    """An image to segment.

    Attributes:
        path: The file.
        file: What ``results.csv`` calls it: its path, beginning as the caller gave it.
        name: Sub-folder and stem of its results; no two images of a run have the same one.
    """

    path: Path
    file: str
    name: str

    def result_file(self, format_name: str) -> str:
        """Path of its result in one format, relative to the output folder."""
        form = FORMATS[format_name]
        return f"{form.folder}/{self.name}{form.ending(self.path)}"


class Stages:
    """The parts of an opened inference bundle as stages that images pass.

    Args:
        parser: The bundle.
        output: Folder for the results.
        formats: Names of the :data:`FORMATS` to write.
        batch_size: Images that the network takes at once.

    Attributes:
        device: Where the network computes.
    """

    def __init__(self, parser: ConfigParser, output: Path, formats: Sequence[str], batch_size: int) -> None:
        self._output, self._formats, self._batch_size = output, formats, batch_size
        if "initialize" in parser:
            parser.get_parsed_content("initialize")
        self.device: torch.device = parser.get_parsed_content("device")
        self._preprocessing = parser.get_parsed_content("preprocessing")
        self._postprocessing = parser.get_parsed_content("postprocessing")
        self._network: AmSam = parser.get_parsed_content("network")
        self._inferer: PromptInferer = parser.get_parsed_content("inferer")

    def run(self, images: Iterable[InputImage], is_interrupted: threading.Event) -> Generator[Row]:
        """The rows of all images in order; after an interrupt, those of the batches begun before it."""
        threads = torch.get_num_threads()
        helpers = max(1, min(_MOST_HELPERS, threads // 4))
        # All share the cores; torch's threads wait in busy loops, so each one too many costs a core.
        torch.set_num_threads(max(1, threads - 2 * helpers))
        try:
            with closing(_in_order(self._read, map(_Job, images), helpers, 2 * self._batch_size)) as jobs:
                predicted = self._predict_batches(jobs, is_interrupted)
                with closing(_in_order(self._write, predicted, helpers, self._batch_size)) as rows:
                    yield from rows
        finally:
            torch.set_num_threads(threads)

    def _read(self, job: _Job) -> _Job:
        with job.at_work():
            job.facts["image_sha256"] = file_digest(job.image.path)
            job.item = self._preprocessing({Keys.IMAGE.value: str(job.image.path)})
            job.facts["height_px"], job.facts["width_px"] = job.original_size
        return job

    def _predict_batches(self, jobs: Iterator[_Job], is_interrupted: threading.Event) -> Iterator[_Job]:
        while batch := list(itertools.islice(jobs, self._batch_size)):
            if is_interrupted.is_set():
                return
            if readable := [job for job in batch if not job.error]:
                self._predict(readable)
            yield from batch

    def _predict(self, jobs: Sequence[_Job]) -> None:
        start = time.perf_counter()
        images = torch.stack([job.item.pop(Keys.IMAGE.value) for job in jobs]).to(self.device)  # (B, 3, S, S)
        try:
            found = self._inferer.predict(images, self._network)
        except torch.OutOfMemoryError:
            raise ConfigError(
                f"{self.device} has too little memory for batches of {len(jobs)} images; "
                "give a smaller --batch-size, and what is done stays done"
            ) from None
        mask_logits, boxes = found.mask_logits.cpu(), None if found.boxes is None else found.boxes.cpu()
        for index, job in enumerate(jobs):
            job.item[Keys.PRED.value] = mask_logits[index]
            job.facts["box_source"] = found.box_sources[index]
            job.facts["box_confidence"] = round(float(found.box_confidence[index]), 4)
            job.facts["predicted_iou"] = round(float(found.predicted_iou[index]), 4)
            job.facts["certainty"] = round(float(found.certainty[index]), 4)
            job.flags = found.flags[index]
            if boxes is not None and found.box_sources[index] != NOT_FOUND:
                job.facts["box_agreement"] = round(float(found.box_agreement[index]), 4)
                height, width = images.shape[2:]
                job.box_in_original = scale_boxes(boxes[index], (height, width), job.original_size)
        seconds = (time.perf_counter() - start) / len(jobs)
        for job in jobs:
            job.seconds += seconds

    def _write(self, job: _Job) -> Row:
        if not job.error:
            with job.at_work():
                self._write_results(job)
        image_facts: dict[str, Any] = {"file": job.image.file, "seconds": round(job.seconds, 3)}
        if not job.error:
            return Row(**image_facts, **job.facts)
        for name in FORMATS:  # nothing may pass for the result of an image that has none
            with suppress(OSError):
                (self._output / job.image.result_file(name)).unlink()
        known = {key: job.facts[key] for key in ("image_sha256", "height_px", "width_px") if key in job.facts}
        return Row(**image_facts, **known, error=job.error)

    def _write_results(self, job: _Job) -> None:
        mask = self._postprocessing(job.item)[Keys.PRED.value].numpy()[0]  # (1, H, W) -> (H, W)
        area = int(np.count_nonzero(mask))
        job.facts |= {"area_px": area, "area_percent": round(100 * area / mask.size, 3), "flags": ";".join(job.flags)}
        if job.box_in_original is not None:
            edges = [round(float(edge), 1) for edge in job.box_in_original]
            job.facts |= zip(("box_x1_px", "box_y1_px", "box_x2_px", "box_y2_px"), edges, strict=True)
        for name, form in FORMATS.items():
            file = job.image.result_file(name)
            # A format that an earlier run wrote is written again, so that all results of an image are of one kind.
            if name in self._formats or (self._output / file).exists():
                form.write(Result(job.image.path, mask, job.box_in_original, job.flags), self._output / file)
                job.facts[form.column] = file


def file_digest(path: Path) -> str:
    """The sha256 of a file in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _Job:
    """One image on its way: what is known of it so far, and the first error."""

    def __init__(self, image: InputImage) -> None:
        self.image = image
        self.item: dict[Any, Any] = {}
        self.box_in_original: Tensor | None = None
        self.flags: tuple[str, ...] = ()
        self.facts: dict[str, Any] = {}  # fields of Row
        self.seconds = 0.0
        self.error = ""

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Time a piece of work on this image alone; its fault is this image's and ends nothing else."""
        start = time.perf_counter()
        try:
            yield
        except Exception as error:  # whatever it is, the other images are to be done
            self.error = _reason(error)
        finally:
            self.seconds += time.perf_counter() - start

    @property
    def original_size(self) -> Size:
        """(height, width) in pixels."""
        height, width = self.item[_IMAGE_META][MetaKeys.SPATIAL_SHAPE]
        return int(height), int(width)


def _in_order(function: Callable[[T], R], items: Iterable[T], workers: int, depth: int) -> Generator[R]:
    """``map`` in threads: results in the order of ``items``, of which ``depth`` are in work or waiting ahead."""
    ahead: deque[Future[R]] = deque()
    # Each thread that calls torch has a team of torch's threads of its own: the network's is enough.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) > depth:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _reason(error: Exception) -> str:
    if isinstance(error, AmsamError):
        return str(error)
    return (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
