"""ISIC 2018 Task 1: lesions in dermoscopy, with the archives' own names or as ``train``, ``val`` and ``test``."""

from __future__ import annotations

from pathlib import Path

from amsam_med.data.download import Progress, fetch_and_unpack
from amsam_med.data.readers import IMAGE_SUFFIXES
from amsam_med.data.sets.data_set import DataSet
from amsam_med.data.sets.pairs import PLAIN_FOLDERS, Folder, Item, check_count, pairs_in
from amsam_med.errors import DataError

URL = "https://isic-archive.s3.amazonaws.com/challenges/2018"
FOLDERS: dict[str, tuple[str, str]] = {
    "train": ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
    "val": ("ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth"),
    "test": ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth"),
}
COUNTS: dict[str, int] = {"train": 2594, "val": 100, "test": 1000}


def isic2018_datalist(folder: Folder, part: str, check_sizes: bool = True) -> list[Item]:
    """ISIC 2018 Task 1; with the archives' own folders the counts 2594, 100 and 1000 are checked.

    Raises:
        DataError: The part is missing or incomplete, or its files have faults.
    """
    root = Path(folder)
    folders = _isic2018_folders(root, part)
    if folders is None:
        expected = " and ".join(FOLDERS.get(part, ("train, val or test as the part",)))
        raise DataError(f"{root.name}: no ISIC 2018 {part!r}; expected {expected}. Run: amsam data get isic2018")
    items = pairs_in(root, folders, check_sizes)
    if folders == FOLDERS[part]:
        check_count(f"{root.name}, {part}", len(items), COUNTS[part])
    return items


def fetch_isic2018(root: Folder, base_url: str = URL, progress: Progress | None = None) -> None:
    """Fetch and unpack ISIC 2018 Task 1 (about 13 GB), part by part; what is complete already is left alone.

    Args:
        root: The folder to fill; open it with :func:`isic2018_datalist`.
        base_url: Where the archives lie; a mirror has the same file names.
        progress: As for :func:`amsam_med.data.download.download`.

    Raises:
        DataError: See :func:`~amsam_med.data.download.download`; or a folder has another number of images than
            published.
    """
    root = Path(root)
    for part, folders in FOLDERS.items():
        for folder in folders:
            if _image_count(root / folder) != COUNTS[part]:
                fetch_and_unpack(f"{base_url}/{folder}.zip", root, progress)
            _check_image_count(root / folder, COUNTS[part])


def isic2018_parts(root: Path) -> tuple[str, ...]:
    """The parts of ISIC 2018 that a folder holds."""
    return tuple(part for part in FOLDERS if _isic2018_folders(root, part) is not None)


def _isic2018_folders(root: Path, part: str) -> tuple[str, str] | None:
    plain = (f"{part}/{PLAIN_FOLDERS[0]}", f"{part}/{PLAIN_FOLDERS[1]}")
    for folders in (FOLDERS.get(part, plain), plain):
        if all((root / name).is_dir() for name in folders):
            return folders
    return None


def _image_count(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    return sum(path.name.lower().endswith(IMAGE_SUFFIXES) and path.name[0] != "." for path in folder.iterdir())


def _check_image_count(folder: Path, expected: int) -> None:
    if _image_count(folder) != expected:
        raise DataError(
            f"{folder.name}: {_image_count(folder)} images; {expected} were published. Run the command again"
        )


DATA_SET = DataSet("isic2018", isic2018_parts, isic2018_datalist, base_url=URL, fetch=fetch_isic2018)
