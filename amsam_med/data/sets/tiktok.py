"""Kaggle's full-body TikTok dancing set: 2,615 people, of which the last 2,000 by number are the test part."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from amsam_med.data.download import Progress, opened_archive, unpack
from amsam_med.data.sets.data_set import DataSet
from amsam_med.data.sets.pairs import PLAIN_FOLDERS, Folder, Item, check_count, descend, pairs_in, part_by_number
from amsam_med.errors import DataError

PAGE = "https://www.kaggle.com/datasets/tapakah68/segmentation-full-body-tiktok-dancing-dataset"
FOLDER = "segmentation_full_body_tik_tok_2615_img"
COUNT = 2615
TEST_COUNT = 2000


def tiktok_datalist(folder: Folder, part: str, check_sizes: bool = True) -> list[Item]:
    """Kaggle's full-body TikTok dancing set, sorted by number: the last 2,000 of 2,615 are the test part.

    Raises:
        DataError: The folder is another one or incomplete, the part is unknown, or its files have faults.
    """
    root = descend(Path(folder) / FOLDER if (Path(folder) / FOLDER).is_dir() else Path(folder))
    items = pairs_in(root, PLAIN_FOLDERS, check_sizes)
    if root.name == FOLDER:
        check_count(root.name, len(items), COUNT)
    return part_by_number(root, items, part, TEST_COUNT)


def import_tiktok(archive: Folder, root: Folder, progress: Progress | None = None) -> None:
    """Unpack Kaggle's TikTok dancing archive, which a login of yours has to fetch.

    Args:
        archive: The ZIP from ``PAGE``.
        root: The folder to fill; open it with :func:`tiktok_datalist`.
        progress: As for :func:`amsam_med.data.download.download`.

    Raises:
        DataError: The archive is missing, damaged or another one, or its images and masks do not match.
    """
    archive = Path(archive)
    if not archive.is_file():
        raise DataError(f"{archive.name}: no such file. Log in at {PAGE}, download the ZIP, and give its path")
    with opened_archive(archive) as content:
        if not any(FOLDER in PurePosixPath(name).parts for name in content.namelist()):
            raise DataError(f"{archive.name}: holds no folder {FOLDER}. Give the ZIP with {COUNT} images from {PAGE}")
    unpack(archive, root, progress)
    tiktok_datalist(root, "test")


def tiktok_parts(root: Path) -> tuple[str, ...]:
    """Both parts, if the folder is this set's or holds its folder."""
    is_tiktok = FOLDER in (root.resolve().name, *(path.name for path in root.glob(f"{FOLDER}/")))
    return ("train", "test") if is_tiktok else ()


DATA_SET = DataSet("tiktok", tiktok_parts, tiktok_datalist, precedence=2, import_archive=import_tiktok)
