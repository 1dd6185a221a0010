"""The description of a published data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from amsam_med.data.download import Progress
from amsam_med.data.sets.pairs import Folder, Item


class OpenPart(Protocol):
    """The pairs of one part of a data set."""

    def __call__(self, folder: Folder, part: str, check_sizes: bool = True) -> list[Item]:
        """Pairs of the part; see :func:`amsam_med.data.sets.isic2018.isic2018_datalist`."""


class Fetch(Protocol):
    """A download that goes on where it was interrupted."""

    def __call__(self, root: Folder, base_url: str = ..., progress: Progress | None = None) -> None:
        """Fetch and unpack below ``root``."""


class ImportArchive(Protocol):
    """The unpacking of an archive that a user has fetched."""

    def __call__(self, archive: Folder, root: Folder, progress: Progress | None = None) -> None:
        """Unpack ``archive`` below ``root``."""


@dataclass(frozen=True)
class DataSet:
    """A data set that is recognised by its folders.

    Attributes:
        name: Its name on the command line.
        parts: Returns the parts of it that a folder holds; empty if the folder is not this set's.
        open_part: Returns the pairs of one of these parts.
        precedence: If several sets recognise a folder, the one with the highest number is used.
        base_url: Where its archives lie; empty if they cannot be fetched without a login.
        fetch: Fetches them; None if that needs a login.
        import_archive: Takes in an archive that the user has fetched; None if there is nothing to take in.
    """

    name: str
    parts: Callable[[Path], tuple[str, ...]]
    open_part: OpenPart
    precedence: int = 0
    base_url: str = ""
    fetch: Fetch | None = None
    import_archive: ImportArchive | None = None
