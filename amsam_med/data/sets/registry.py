"""All known data sets: each module of this package with a ``DATA_SET`` is one."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from amsam_med.data import sets
from amsam_med.data.sets.data_set import DataSet
from amsam_med.data.sets.pairs import Folder, Item, folder_datalist
from amsam_med.errors import DataError


def _known_sets() -> dict[str, DataSet]:
    modules = [
        importlib.import_module(f"{sets.__name__}.{found.name}") for found in pkgutil.iter_modules(sets.__path__)
    ]
    known: list[DataSet] = [module.DATA_SET for module in modules if hasattr(module, "DATA_SET")]
    return {one.name: one for one in sorted(known, key=lambda one: -one.precedence)}


def open_datalist(folder: Folder, part: str | None = None) -> list[Item]:
    """The pairs of any folder that is a known data set, or a plain one.

    Args:
        folder: The root of a data set; a plain folder named like a set (``human_vikram``) counts as that set.
        part: ``"train"``, ``"val"`` or ``"test"`` of a set that has parts; None for a plain folder.

    Raises:
        DataError: The folder is none of these, ``part`` does not fit it, or its files have faults.
    """
    root = Path(folder)
    parts = datalist_parts(root)
    if part not in (parts or (None,)):
        known = f"one of {', '.join(parts)}" if parts else "no part, as this folder has none"
        raise DataError(f"{root.name}: part {part!r} was asked for; expected {known}")
    known_set = _set_of(root)
    return folder_datalist(root) if known_set is None or part is None else known_set.open_part(root, part)


def datalist_parts(folder: Folder) -> tuple[str, ...]:
    """The parts that ``folder`` holds; empty for a plain folder, whose list is opened without a part."""
    root = Path(folder)
    known_set = _set_of(root)
    return () if known_set is None else known_set.parts(root)


def _set_of(root: Path) -> DataSet | None:
    """The data set that a folder is, if any."""
    return next((one for one in DATA_SETS.values() if one.parts(root)), None)


DATA_SETS = _known_sets()
"""By the names that the command line uses; the set that comes first has a folder that several claim."""
