"""Datastores of a MONAI Label server: a folder, or a DICOMweb server with a local folder beside it.

MONAI Label's own datastore of a folder does the bookkeeping. In addition, files are written atomically, uploads are
checked before they are stored, and segmentations are written for a DICOMweb server by this project's own writer.
"""

from __future__ import annotations

import fnmatch
import io
import json
import logging
import math
import os
import re
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException
from numpy.typing import NDArray
from pydicom.uid import DeflatedExplicitVRLittleEndian

from amsam_med.data.dicom.header import DicomHeader, read_header
from amsam_med.data.dicom.seg import write_dicom_seg
from amsam_med.data.dicom.shared import Algorithm, SegmentMeaning, highdicom
from amsam_med.data.dicom.web import DicomWeb
from amsam_med.data.readers import IMAGE_SUFFIXES, PIXEL_LIMIT, image_size
from amsam_med.data.writers import write_mask_png
from amsam_med.errors import ConfigError, DataError
from amsam_med.files import atomic_path
from amsam_med.label.index import INDEX, checked_note, plain_name, plain_tag, read_index
from amsam_med.label.volumes import VOLUMES, read_label

PNG, DICOM = ".png", ".dcm"
LABEL_ENDINGS = (PNG, ".tif", ".tiff", ".bmp", *VOLUMES)

_FRESH_SECONDS = 5.0  # for which the result of a search on a DICOMweb server is reused
_STUDY_LEVEL = ("StudyInstanceUID", "StudyDate", "PatientID", "PatientName", "AccessionNumber", "StudyDescription")
_NOTED = [
    int(pydicom.tag.Tag(name)) for name in ("ReferencedSeriesSequence", "SegmentSequence", "ContentDate", "ContentTime")
]
_UID = r"(?=[0-9.]{1,64}(/|$))[0-9]+(\.[0-9]+)*"
_MEMBER = re.compile(f"{_UID}/{_UID}/{_UID}")  # study, series, instance; checked, since they become file names
_BY_PEOPLE = ("MANUAL", "SEMIAUTOMATIC")

_log = logging.getLogger(__name__)


class FolderStudies(LocalDatastore):  # type: ignore[misc]  # MONAI Label carries no types
    """A folder of images, with labels of the same names in ``labels/TAG/``.

    The folder may come from somebody else. Its index is checked before it is used, images and labels that are links to
    files outside the folder are left out, and nothing is written or removed through a link.

    Args:
        folder: The folder.
        endings: Patterns of the names of images and labels.
        is_watched: Whether added and removed files are noticed while the server runs.
        is_read_only: Whether the index is not written at the start.
        follows_links: Whether images may be links to files outside the folder.

    Raises:
        ConfigError: The index of the folder is damaged, or a path that the server writes to is a link.
    """

    _config_ts: float

    def __init__(
        self,
        folder: Path,
        endings: Sequence[str],
        is_watched: bool = True,
        is_read_only: bool = False,
        follows_links: bool = False,
    ) -> None:
        self._root, self._follows_links = folder.resolve(), follows_links
        self._left_out: set[str] = set()
        for name in (".lock", INDEX, "labels", *(f"labels/{tag.value}" for tag in DefaultLabelTag)):
            place = folder / name
            is_kind = place.is_dir() if name.startswith("labels") else place.is_file()
            if place.is_symlink() or (place.exists() and not is_kind):
                raise ConfigError(f"{name} in {folder} is a link or another thing than the server makes; remove it")
        super().__init__(str(folder), extensions=endings, auto_reload=is_watched, read_only=is_read_only)

    def get_image_uri(self, image_id: str) -> str:
        """The image's file; empty for an unknown one, and for a link out of the folder."""
        path = str(super().get_image_uri(image_id))
        return path if path and self._is_inside(Path(path)) else ""

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """The label's file; empty for an unknown one, and for a link out of the folder."""
        path = str(super().get_label_uri(label_id, label_tag))
        return path if path and self._is_inside(Path(path)) else ""

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Pairs of image and final label."""
        pairs: list[dict[str, Any]] = super().datalist(full_path)
        return [pair for pair in pairs if all(self._is_inside(self._root / path) for path in pair.values())]

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Store an upload.

        Raises:
            DataError: It is not an image, an image of that name exists, or the name is not a plain file name.
        """
        path = Path(image_filename)
        if not path.name.lower().endswith(IMAGE_SUFFIXES):
            raise DataError(f"the upload ends in {path.suffix!r}; expected one of {', '.join(IMAGE_SUFFIXES)}")
        name = plain_name(image_id or self._to_id(path.name)[0])
        ending = self._to_id(path.name)[1]
        kept = self._root / f"{name}{ending}"
        if name in self.list_images() or kept.exists() or kept.is_symlink():
            raise DataError(f"there is an image {name!r} already; give another name, or remove it first")
        image_size(path)  # reads the header only, and raises for a file that is not an image
        note = {**self._checked_note(image_info, name), "ts": int(time.time()), "name": kept.name}
        with FileLock(self._lock_file):
            with atomic_path(kept) as temporary:
                shutil.copyfile(image_filename, temporary)
            self._datastore.objects[name] = ImageLabelModel(image=DataModel(info=note, ext=ending))
            self._update_datastore_file(lock=False)
        return name

    def remove_image(self, image_id: str) -> None:
        """Remove an image and its labels; if it is a link, only the link.

        Raises:
            ImageNotFoundException: There is no such image.
            DataError: It is not a file.
        """
        image = self._datastore.objects.get(image_id)
        if image is None:
            raise ImageNotFoundException(f"there is no image {image_id!r}; GET /datastore lists those there are")
        for tag in list(image.labels):
            self.remove_label(image_id, tag)
        self._unlink(self._root / f"{image_id}{image.image.ext}")

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label; if it is a link, only the link.

        Raises:
            LabelNotFoundException: There is no such label.
            DataError: It is not a file.
        """
        label = self._datastore.label(label_id, label_tag)
        if label is None:
            raise LabelNotFoundException(f"there is no label {label_tag!r} of {label_id!r}")
        self._unlink(self._root / "labels" / label_tag / f"{label_id}{label.ext}")

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store a label, replacing an earlier one atomically.

        Raises:
            ImageNotFoundException: There is no such image.
            DataError: The label cannot be read, or has another size than its image.
        """
        self._checked_label(image_id, Path(label_filename), label_tag)
        note = dict(_mapping(label_info or {}))
        # The polygons of the drawn mask are left out of the note, as the mask itself is stored.
        if isinstance(params := note.get("params"), Mapping):
            note["params"] = {name: value for name, value in params.items() if name != "annotations"}
        note = self._checked_note(note, image_id)
        ending = next(ending for ending in LABEL_ENDINGS if label_filename.lower().endswith(ending))
        path = self._own_place(self._root / "labels" / label_tag / f"{image_id}{ending}")
        info = {**note, "ts": int(time.time()), "name": path.name}
        with FileLock(self._lock_file):
            labels = self._datastore.objects[image_id].labels
            before = labels.get(label_tag)
            with atomic_path(path) as temporary:
                shutil.copyfile(label_filename, temporary)
            labels[label_tag] = DataModel(info=info, ext=ending)
            self._update_datastore_file(lock=False)
            # Last, after the index names the new file: a killed process leaves both files, never none.
            if before is not None and before.ext != ending:
                path.with_name(f"{image_id}{before.ext}").unlink(missing_ok=True)
        return image_id

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to the note of an image.

        Raises:
            ImageNotFoundException: There is no such image.
            DataError: The note holds other than plain values, or is too long.
        """
        known = self._datastore.objects.get(image_id)
        self._checked_note({**(known.image.info if known else {}), **_mapping(info)}, image_id)
        super().update_image_info(image_id, info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to the note of a label.

        Raises:
            LabelNotFoundException: There is no such label.
            DataError: The note holds other than plain values, or is too long.
        """
        known = self._datastore.label(label_id, label_tag)
        self._checked_note({**(known.info if known else {}), **_mapping(info)}, label_id)
        super().update_label_info(label_id, label_tag, info)

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """MONAI Label's archive of the data set, always at one path: each archive replaces the one before.

        Raises:
            DataError: No image is labelled yet.
        """
        if not self.datalist():
            raise DataError("there is no labelled image yet; label one, then fetch the data set")
        archive = Path(tempfile.gettempdir()) / "dataset.zip"
        os.replace(super().get_dataset_archive(limit_cases), archive)
        return str(archive)

    def _checked_label(self, image_id: str, path: Path, tag: str) -> NDArray[np.uint8]:
        """Class ids ``(H, W)`` of a label, after checking that it has its image's size."""
        image = self.get_image_uri(image_id)
        if not image:
            raise ImageNotFoundException(f"there is no image {image_id!r}; GET /datastore lists those there are")
        plain_tag(tag)
        if not path.name.lower().endswith(LABEL_ENDINGS):
            raise DataError(f"the label ends in {path.suffix!r}; expected one of {', '.join(LABEL_ENDINGS)}")
        return read_label(path, image_size(image))

    def _checked_note(self, note: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
        return checked_note(_mapping(note or {}), name, Path(self._datastore_config_path))

    def _to_id(self, file: str) -> tuple[str, str]:
        """Name and ending of a file; MONAI Label's own method also removes the ending from the middle of a name."""
        ending = str(super()._to_id(file)[1])
        return (file[: -len(ending)], ending) if ending and file.endswith(ending) else (file, "")

    def _list_files(self, path: str, patterns: Sequence[str]) -> dict[str, str]:
        """Names of images or labels in a folder: only files that lie in it and whose names are printable."""
        if not self._is_inside(Path(path)):
            self._leave_out(Path(path), "a link out of the folder of studies")
            return {}
        found = {}
        for name in super()._list_files(path, patterns):
            if name.startswith("."):
                continue
            if not name.isprintable():  # names that are not UTF-8 have lone surrogates, which JSON cannot carry
                self._leave_out(Path(path) / name, "a name that cannot be shown; rename it")
            elif not self._is_inside(Path(path) / name):
                self._leave_out(Path(path) / name, "a link out of the folder of studies; copy it, or --follow-links")
            elif not (Path(path) / name).is_dir():
                found[name] = name
        return found

    def _is_listed(self, name: str, image: ImageLabelModel) -> bool:
        """Whether an image has one of the allowed endings; labels with other endings are removed from it."""
        known = [*self._extensions, *(f"*{ending}" for ending in (*LABEL_ENDINGS, DICOM))]
        for tag, label in list(image.labels.items()):
            if not any(fnmatch.fnmatchcase(f"{name}{label.ext}", pattern) for pattern in known):
                del image.labels[tag]
        return any(fnmatch.fnmatchcase(f"{name}{image.image.ext}", pattern) for pattern in self._extensions)

    def _leave_out(self, path: Path, why: str) -> None:
        if str(path) not in self._left_out:
            self._left_out.add(str(path))
            _log.warning("%s is left out: %s", ascii(path.name), why)

    def _remove_non_existing(self) -> int:
        """As MONAI Label's, and also removes images and labels that are links out of the folder."""
        removed = int(super()._remove_non_existing())
        for name, image in list(self._datastore.objects.items()):
            if not self._is_inside(self._root / f"{name}{image.image.ext}"):
                del self._datastore.objects[name]
                removed += 1
            for tag, label in list(image.labels.items()):
                if not self._is_inside(self._root / "labels" / tag / f"{name}{label.ext}"):
                    del image.labels[tag]
                    removed += 1
        return removed

    def _is_inside(self, path: Path) -> bool:
        return self._follows_links or path.resolve().is_relative_to(self._root)

    def _own_place(self, path: Path) -> Path:
        """The path itself, after checking that its folder is not a link; for paths to be written or removed."""
        if path.parent != self._root and path.parent.is_symlink():
            raise DataError(f"labels/{path.parent.name} is a link; nothing is written or removed through links")
        return path

    def _unlink(self, path: Path) -> None:
        if not path.is_symlink() and path.is_dir():
            raise DataError(f"{path.name} is a folder; remove it yourself")
        self._own_place(path).unlink(missing_ok=True)
        self.refresh()

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        """Read the index if it has changed. A damaged one is an error at the start, and a warning in the log later."""
        path = Path(self._datastore_config_path)
        with FileLock(self._lock_file):
            changed = path.lstat().st_mtime if path.is_symlink() or path.exists() else self._config_ts
            if changed == self._config_ts:
                return
            try:
                index = LocalDatastoreModel.model_validate(read_index(path).model_dump())
                index.objects = {name: image for name, image in index.objects.items() if self._is_listed(name, image)}
                self._datastore = index
            except ConfigError as error:
                if throw_exception:
                    raise
                _log.warning("%s", error)
            self._datastore.base_path = self._datastore_path
            self._config_ts = changed

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Write the index atomically: a killed process leaves the old one or the new one."""
        guard: AbstractContextManager[Any] = FileLock(self._lock_file) if lock else nullcontext()
        path = Path(self._datastore_config_path)
        with guard:
            content = self._datastore.model_dump(exclude={"base_path"})
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(content, indent=2, default=str), encoding="utf-8")
            self._config_ts = path.stat().st_mtime


class DicomWebStudies(FolderStudies):
    """The images of a DICOMweb server.

    An image's id is its series' UID, or its instance's UID if the series has several images. Final labels are stored on
    the server as segmentations that a person has reviewed, and such segmentations on the server count as labels.
    Segmentations by an algorithm alone do not.

    Args:
        address: Base address of the server.
        query: Attributes of DICOMweb that select the images; ``{}`` for all.
        folder: Local folder for labels and for images that were requested.
        meanings: Meaning of classes 1, 2, ...
        algorithm: The algorithm that made the drafts.

    Raises:
        DataError: The server does not answer, or refuses.
    """

    def __init__(
        self,
        address: str,
        query: Mapping[str, str],
        folder: Path,
        meanings: Sequence[SegmentMeaning],
        algorithm: Algorithm,
    ) -> None:
        self._server, self._query = DicomWeb(address), dict(query)
        self._meanings, self._algorithm = meanings, algorithm._replace(is_reviewed=True)
        self._members: dict[str, str] = {}
        self._reviewed: dict[str, tuple[str, str]] = {}  # by image: when, and "study/series/instance" of a label
        self._known_segmentations: set[str] = set()
        self._listed_at = -_FRESH_SECONDS
        self._lock = threading.RLock()
        self._left_out: set[str] = set()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        super().__init__(folder, [f"*{ending}" for ending in (DICOM, *LABEL_ENDINGS)], is_watched=False)
        self._list()

    def name(self) -> str:
        """The server's address."""
        return self._server.address

    def list_images(self) -> list[str]:
        """Ids of all images that the query finds."""
        self._list()
        return list(self._members)

    def get_image_uri(self, image_id: str) -> str:
        """The image's file, fetched from the server if it is not in the folder; empty for an unknown id."""
        self._list()
        if image_id not in self._members:
            return ""
        path = Path(self._datastore.image_path()) / f"{image_id}{DICOM}"
        with self._lock:
            if image_id not in self._datastore.objects or not path.is_file():
                with atomic_path(path) as temporary:
                    temporary.write_bytes(self._server.instance(self._members[image_id]))
                image = DataModel(ext=DICOM, info={"name": path.name, **self._uids(image_id)})
                self._datastore.objects[image_id] = ImageLabelModel(image=image)
                self._update_datastore_file()
        return str(path.resolve())

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """An image's UIDs and note."""
        self._list()
        known: dict[str, Any] = super().get_image_info(image_id)
        return {**(self._uids(image_id) if image_id in self._members else {}), **known}

    def get_labeled_images(self, label_tag: str | None = None, labels: Sequence[str] | None = None) -> list[str]:
        """Images with a final label, here or on the server."""
        self._list()
        here = set(super().get_labeled_images(label_tag, labels))
        return [image for image in self._members if image in here or image in self._reviewed]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: Sequence[str] | None = None) -> list[str]:
        """Images without a final label."""
        labelled = set(self.get_labeled_images(label_tag, labels))
        return [image for image in self._members if image not in labelled]

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Pairs of image and final label; a newer label on the server replaces the one here."""
        self._list()
        for image, (_, member) in self._reviewed.items():
            own = self._datastore.label(image, DefaultLabelTag.FINAL)
            if own is None or own.info.get("SOPInstanceUID") != member.rsplit("/", 1)[1]:
                self._fetch_label(image, member)
        pairs: list[dict[str, Any]] = super().datalist(full_path)
        return pairs

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store a label; a final one is sent to the server first.

        Raises:
            ImageNotFoundException: There is no such image.
            DataError: The label does not fit, or the server does not take it.
        """
        info = dict(label_info or {})
        # The server first: if it refuses, the label must not look as if it were stored there.
        if label_tag == DefaultLabelTag.FINAL:
            mask = self._checked_label(image_id, Path(label_filename), label_tag)
            source = Path(self.get_image_uri(image_id))
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / f"label{DICOM}"
                write_dicom_seg(source, mask, path, self._meanings_of(mask, info), self._algorithm)
                self._server.store([path])
                info["SOPInstanceUID"] = str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)
        return super().save_label(image_id, label_filename, label_tag, info)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Not supported.

        Raises:
            DataError: Always.
        """
        raise DataError("the images are those of a DICOMweb server; store new ones there")

    def remove_image(self, image_id: str) -> None:
        """Not supported.

        Raises:
            DataError: Always.
        """
        raise DataError("the images are those of a DICOMweb server; remove them there")

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a draft; final labels are on the server.

        Raises:
            DataError: The label is a final one.
        """
        if label_tag == DefaultLabelTag.FINAL:
            raise DataError("final labels are segmentations on the DICOMweb server; remove them there")
        super().remove_label(label_id, label_tag)

    def json(self) -> dict[str, Any]:
        """MONAI Label's index, including images that have not been fetched yet."""
        self._list()
        content: dict[str, Any] = super().json()
        unseen = {image: ImageLabelModel(image=DataModel(ext=DICOM, info=self._uids(image))) for image in self._members}
        return {
            **content,
            "objects": {image: model.model_dump() for image, model in unseen.items()} | content["objects"],
        }

    def _list(self) -> None:
        """Search the server for images and labels, unless the last search was a moment ago."""
        with self._lock:
            if time.monotonic() - self._listed_at < _FRESH_SECONDS:
                return
            self._init_from_datastore_file()  # a training runs in another process and may have fetched labels
            found = [member for member in self._server.instances(self._query) if self._is_member(member)]
            of_series = Counter(member.rsplit("/", 1)[0] for member in found)
            self._members = {}
            for member in found:
                study_and_series, instance = member.rsplit("/", 1)
                series = study_and_series.rsplit("/", 1)[1]
                self._members[series if of_series[study_and_series] == 1 else instance] = member
            by_instance = {member.rsplit("/", 1)[1]: image for image, member in self._members.items()}
            narrowed = {name: value for name, value in self._query.items() if name in _STUDY_LEVEL}
            segmentations = {one for one in self._server.segmentations(narrowed) if self._is_member(one)}
            # Only new ones are read: the search does not tell who made a segmentation, its header does.
            for member in segmentations - self._known_segmentations:
                self._note(member, by_instance)
            self._known_segmentations = segmentations
            self._reviewed = {image: noted for image, noted in self._reviewed.items() if noted[1] in segmentations}
            self._listed_at = time.monotonic()

    def _is_member(self, member: str) -> bool:
        """Whether "study/series/instance" are valid UIDs; a server may send anything, and they become file names."""
        is_one = bool(_MEMBER.fullmatch(member))
        if not is_one:
            self._leave_out(Path(ascii(member[:200])), "its UIDs are none")
        return is_one

    def _note(self, member: str, by_instance: Mapping[str, str]) -> None:
        """Remember a segmentation on the server if a person made or reviewed it and it is of one of the images."""
        content = self._server.instance(member)
        try:
            header = read_header(io.BytesIO(content), _NOTED).dataset
            instances = [
                str(instance.ReferencedSOPInstanceUID)
                for series in header.get("ReferencedSeriesSequence") or []
                for instance in series.get("ReferencedInstanceSequence") or []
            ]
            kinds = {str(segment.get("SegmentAlgorithmType")) for segment in header.get("SegmentSequence") or []}
            when = f"{header.get('ContentDate', '')}{header.get('ContentTime', '')}"
        except Exception as error:  # pydicom parses values on access, and raises nearly anything for damaged ones
            _log.warning("The segmentation %s is left out: %s", member, error)
            return
        if len(instances) == 1 and instances[0] in by_instance and kinds and kinds <= set(_BY_PEOPLE):
            image = by_instance[instances[0]]
            self._reviewed[image] = max(self._reviewed.get(image, ("", "")), (when, member))

    def _fetch_label(self, image: str, member: str) -> None:
        """Fetch a label from the server; one that cannot be read becomes a warning in the log."""
        self.get_image_uri(image)
        instance = self._members[image].rsplit("/", 1)[1]
        try:
            content = self._server.instance(member)
            _refuse_bombs(read_header(io.BytesIO(content)))
            read = highdicom().seg.segread(io.BytesIO(content))
            (mask,) = read.get_pixels_by_source_instance(
                [instance], combine_segments=True, ignore_spatial_locations=True, skip_overlap_checks=True
            )
            with tempfile.TemporaryDirectory() as scratch:
                label = Path(scratch) / f"label{PNG}"
                write_mask_png(mask.astype(np.uint8), label)
                info = {"SOPInstanceUID": member.rsplit("/", 1)[1]}
                super().save_label(image, str(label), DefaultLabelTag.FINAL.value, info)
        except Exception as error:  # as above
            _log.warning("The segmentation %s is no label: %s", member, error)

    def _uids(self, image_id: str) -> dict[str, str]:
        names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        return dict(zip(names, self._members[image_id].split("/"), strict=True))

    def _meanings_of(self, mask: NDArray[np.uint8], info: Mapping[str, Any]) -> list[SegmentMeaning]:
        """Meanings of a label's classes: by the names that the viewer sent with it, otherwise in order."""
        named = {meaning.label: meaning for meaning in self._meanings}
        given = info.get("label_info")
        names = [str(one.get("name")) for one in given if isinstance(one, Mapping)] if isinstance(given, list) else []
        chosen = [named[name] for name in names if name in named] or list(self._meanings)
        if (count := max(1, int(mask.max(initial=0)))) > len(chosen):
            raise DataError(f"the label holds class {count}; known are {', '.join(named)}")
        return chosen[:count]


def _refuse_bombs(header: DicomHeader) -> None:
    """Refuse a segmentation that would take far more memory than its file has bytes."""
    if header.syntax == DeflatedExplicitVRLittleEndian:
        raise DataError("it is compressed as a whole; store it without")
    sides = [int(header.dataset.get(name) or 1) for name in ("Rows", "Columns", "NumberOfFrames")]
    if math.prod(sides) > PIXEL_LIMIT:
        raise DataError(f"it has {math.prod(sides):,} pixels, at most {PIXEL_LIMIT:,} are decoded")


def _mapping(given: object) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise DataError("a note must be a mapping; send a JSON object")
    return given
