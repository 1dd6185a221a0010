"""A new bundle for another task, copied from an existing one: the same wiring and the same base.

A bundle is code (:mod:`amsam_med.trust`), so only a trusted bundle can be the source, and only plain values are
changed. Therefore the new bundle is trusted from the start.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from amsam_med import weights
from amsam_med.bundle import CONFIG_FILES
from amsam_med.domains import DEFAULT_BUNDLE
from amsam_med.errors import ConfigError, DataError
from amsam_med.opened_model import ANY_OBJECT
from amsam_med.schema import Name
from amsam_med.trust import refuse_untrusted, trust
from amsam_med.views import ViewKind, views_of
from amsam_med.weights import locate_bundle, shipped_bundles

LONGEST_CLASS_NAME = 64
"""Letters; DICOM's limit for the label of a segment."""

_CONFIGS = (*sorted({name for names in CONFIG_FILES.values() for name in names}), "paper.yaml", "multi_gpu_train.yaml")
_DETECTOR = "models/detector.safetensors"
_OWN_DETECTOR = f"\"$@bundle_root + '/{_DETECTOR}'\""
_LICENCES = "data_license.txt"
_OPEN = "to be filled in"


@dataclass(frozen=True)
class Task:
    """The task of a new bundle.

    Attributes:
        class_name: The object, as in "foot ulcer"; 64 letters at most, on one line.
        description: One sentence; made from ``class_name`` if it is empty.
        views: Which views of an image augment training; None for the source's. Use ``"mirror"`` for objects that are
            never upside down, such as people.
        detector: Name or file of the detector that finds the boxes. None makes a bundle that works without
            boxes (``prompt: none``), in training and inference.
    """

    class_name: str = "object"
    description: str = ""
    views: ViewKind | None = None
    detector: str | None = None


def new_bundle(folder: Path, task: Task, source: str | Path = DEFAULT_BUNDLE) -> Path:
    """Write a bundle that is ready for training; it has no model of its own and uses the source's base.

    Args:
        folder: The new bundle, whose last part is its name; it must not exist, or be empty.
        task: What it is for.
        source: Name of a shipped bundle, or folder of any whose user trusts it.

    Returns:
        ``folder``.

    Raises:
        ConfigError: The name, the class name or the description cannot be used, the folder exists, or the source is
            not trusted.
        DataError: There is no such source, or it lacks a part of what a bundle is; or the folder cannot be written.
        WeightsError: The detector is missing or no detector.
    """
    root = locate_bundle(source)
    refuse_untrusted(root)
    _refuse_unusable(folder, task)
    detector = None if task.detector is None else _detector_file(task.detector)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            made = Path(temporary) / folder.name
            _write(made, folder.name, task, root, detector)
            made.replace(folder)  # all of it or nothing; an empty folder gives way
    except OSError as error:
        raise DataError(
            f"{folder}: the bundle cannot be written ({error.strerror or error}); choose a place that can be written to"
        ) from None
    trust(folder)
    return folder


def _refuse_unusable(folder: Path, task: Task) -> None:
    try:
        TypeAdapter(Name).validate_python(folder.name)
    except ValidationError:
        raise ConfigError(
            f"{folder.name!r} cannot be a bundle's name; expected letters, digits, '.', '_' and '-', beginning with a "
            "letter or digit, 100 at most, as in foot_ulcers"
        ) from None
    if folder.name in shipped_bundles():
        raise ConfigError(
            f"{folder.name} is a shipped bundle, for which adapters of the new one would be taken; choose another name"
        )
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already; choose another name, or remove it first")
    if not task.class_name.strip() or len(task.class_name) > LONGEST_CLASS_NAME:
        raise ConfigError(
            f"the class name has {len(task.class_name)} letters; expected 1 to {LONGEST_CLASS_NAME}, as in 'foot ulcer'"
        )
    for what, text in (("class name", task.class_name), ("description", task.description)):
        # They are written into metadata.json, which MONAI parses as configuration: there these letters begin code.
        if text.startswith(("$", "@", "%")) or not text.isprintable():
            raise ConfigError(
                f"the {what} {text[:40]!r} begins with one of $ @ % or has more than one line; write plain words"
            )
    if task.views is not None:
        views_of(task.views)


def _detector_file(name_or_path: str) -> Path:
    from amsam_med.detect.yolo import load_detector  # here: it takes a second

    file = weights.find(name_or_path)
    load_detector(file)
    return file


def _write(folder: Path, name: str, task: Task, root: Path, detector: Path | None) -> None:
    (folder / "configs").mkdir(parents=True)
    (folder / "docs").mkdir()
    entries = _entries(task)
    for file in _CONFIGS:
        text = _read(root / "configs" / file, root.name)
        for key, value in entries.get(file, {}).items():
            text = _with_entry(text, key, value, f"bundle {root.name}: configs/{file}")
        (folder / "configs" / file).write_text(text, encoding="utf-8")
    metadata = _metadata(_read(root / "configs" / "metadata.json", root.name), name, task, root.name)
    (folder / "configs" / "metadata.json").write_text(
        json.dumps(metadata, indent=4, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (folder / "LICENSE").write_text(_read(root / "LICENSE", root.name), encoding="utf-8")
    (folder / "docs" / _LICENCES).write_text(_licences(root / "docs" / _LICENCES, name, root.name), encoding="utf-8")
    (folder / "docs" / "README.md").write_text(_readme(name, metadata, root.name, detector), encoding="utf-8")
    if detector is not None:
        (folder / _DETECTOR).parent.mkdir()
        shutil.copyfile(detector, folder / _DETECTOR)


_WITHOUT_DETECTOR = {"adapts": "neck", "halves": "false", "pull": "0.1"}
"""How a task without a detector is trained: what measured best on two of them (docs/few-shot.md#without-a-detector)."""


def _entries(task: Task) -> Mapping[str, Mapping[str, str]]:
    """The entries that differ from the source, by file, in YAML."""
    # Without a detector, training would use the labels' boxes, which do not exist at inference.
    prompt, detector = ("none", "null") if task.detector is None else ("box", _OWN_DETECTOR)
    views = {} if task.views is None else {"views": task.views}
    rule = _WITHOUT_DETECTOR if task.detector is None else {}
    return {
        "train.yaml": {"prompt": prompt, "detector_file": detector, **rule, **views},
        "paper.yaml": {"prompt": prompt},
        # The two thresholds were measured on the source's model and are not valid for another.
        "inference.yaml": {
            "  prompt": prompt,
            "detector_file": detector,
            "rival_margin": "null",
            "nothing_below": "0",
        },
    }


def _with_entry(text: str, key: str, value: str, where: str) -> str:
    """A configuration with the value of the entry ``key`` (with its indentation) replaced, and nothing else changed."""
    changed, count = re.subn(rf"^{key}: .*$", lambda _: f"{key}: {value}", text, flags=re.MULTILINE)
    if count != 1:
        raise DataError(
            f"{where} has {count} lines with the entry {key.strip()!r}; expected one: take a shipped bundle as the "
            f"source ({', '.join(shipped_bundles())})"
        )
    return changed


def _metadata(text: str, name: str, task: Task, source: str) -> dict[str, Any]:
    thing = task.class_name
    try:
        metadata: dict[str, Any] = json.loads(text)
        output = metadata["network_data_format"]["outputs"]["pred"]
        output["channel_def"] = {"0": "background", "1": thing}
        metadata |= {
            "version": "0.1.0",
            "changelog": {"0.1.0": f"made from {source}"},
            "name": name,
            "task": f"Segmentation: {thing}",
            "description": task.description or f"AM-SAM, trained on a few labelled images of one class: {thing}.",
            "authors": _OPEN,
            "copyright": _OPEN,
            "data_source": _OPEN,
            "data_type": "RGB images",
            "label_classes": f"single channel: 0 background, 1 {thing}",
            "pred_classes": f"two channels of logits: channel 0 background, channel 1 {thing}",
            "segments": [{**ANY_OBJECT, "label": thing}],  # the user can fill in the right codes
            "eval_metrics": {},
            "intended_use": "Research and education only; not a medical device.",
        }
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"bundle {source}: metadata.json has not what a network's output needs ({error!r}); take a shipped bundle "
            f"as the source ({', '.join(shipped_bundles())})"
        ) from None
    return metadata


def _read(path: Path, source: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"bundle {source}: {path.name} cannot be read ({error}); take a shipped bundle as the source "
            f"({', '.join(shipped_bundles())})"
        ) from None


def _licences(of_source: Path, name: str, source: str) -> str:
    own = f"Images that {name} was trained on: {_OPEN}.\n"
    if not of_source.is_file():
        return own
    return f"{own}\nThe base comes from {source}, which says:\n\n{_read(of_source, source)}"


def _readme(name: str, metadata: Mapping[str, Any], source: str, detector: Path | None) -> str:
    boxes = (
        "It has no detector: the network works without boxes (`prompt: none`), in training and inference."
        if detector is None
        else f"Its boxes come from `{_DETECTOR}`."
    )
    return f"""# Model overview

{metadata["description"]}

This bundle was made from `{source}`. {boxes} It holds no model of its own yet: train it, and use the adapter. Nothing
was measured; write here what it is for, on which images it was trained and tested, under which licence these are, and
what it cannot do. `configs/metadata.json` has entries that are "{_OPEN}".

**For research and education; not a medical device.**

# Commands

The bundle is a folder; give its path. Where it lies on another machine, its user is asked once for trust.

```bash
amsam train --data DATA -o RUN --bundle {name}
amsam segment IMAGES -o MASKS --bundle {name} --adapter RUN/adapter.safetensors
amsam evaluate --data DATA -o SCORES --bundle {name} --adapter RUN/adapter.safetensors
```

`python -m monai.bundle run training` leaves a `model.pt` in the run's folder. As `models/model.pt` it is the bundle's
own model, and `--adapter` can be left out.

# License

Configurations and documentation: see `LICENSE`. The base was learned from images under non-commercial and research
licences, and so are weights that begin with it.
"""
