"""Vikram Shenoy's human segmentation set: 290 people, of which the last 100 by number are the test part."""

from __future__ import annotations

from pathlib import Path

from amsam_med.data.download import Progress, fetch_and_unpack
from amsam_med.data.sets.data_set import DataSet
from amsam_med.data.sets.pairs import PLAIN_FOLDERS, Folder, Item, descend, pairs_in, part_by_number
from amsam_med.errors import DataError

URL = "https://github.com/VikramShenoy97/Human-Segmentation-Dataset/archive/refs/heads"
FOLDERS = ("Training_Images", "Ground_Truth")
TEST_COUNT = 100


def human_vikram_datalist(folder: Folder, part: str, check_sizes: bool = True) -> list[Item]:
    """Vikram Shenoy's human segmentation set, sorted by number: the last 100 are the test part.

    Raises:
        DataError: The folder is another one, the part is unknown, or its files have faults.
    """
    root = descend(Path(folder), FOLDERS)
    names = FOLDERS if (root / FOLDERS[0]).is_dir() else PLAIN_FOLDERS
    items = pairs_in(root, names, check_sizes)
    return part_by_number(root, items, part, TEST_COUNT)


def fetch_human_vikram(root: Folder, base_url: str = URL, progress: Progress | None = None) -> None:
    """Fetch and unpack Vikram Shenoy's human segmentation set (the repository's master branch).

    Args:
        root: The folder to fill; open it with :func:`human_vikram_datalist`.
        base_url: Where ``master.zip`` lies.
        progress: As for :func:`amsam_med.data.download.download`.

    Raises:
        DataError: See :func:`amsam_med.data.download.download`; or images and masks do not match.
    """
    root = Path(root)
    try:
        human_vikram_datalist(root, "test")
    except DataError:  # not there, or unpacked in part
        fetch_and_unpack(f"{base_url}/master.zip", root, progress)
        human_vikram_datalist(root, "test")


def human_vikram_parts(root: Path) -> tuple[str, ...]:
    """Both parts, if the folder is this set's: by the names of the archive's folders, or as a plain one by its own."""
    folded = root.resolve().name.lower().replace("-", "_")
    is_plain = all((root / name).is_dir() for name in PLAIN_FOLDERS)
    has_own_folders = all((descend(root, FOLDERS) / name).is_dir() for name in FOLDERS)
    is_named_plain = is_plain and folded in ("human_vikram", "human_segmentation_dataset")
    return ("train", "test") if has_own_folders or is_named_plain else ()


DATA_SET = DataSet(
    "human-vikram", human_vikram_parts, human_vikram_datalist, precedence=1, base_url=URL, fetch=fetch_human_vikram
)
