"""Which image goes with which mask, and which part of a data set it belongs to.

A list holds items ``{"image": path, "label": path}``. All faults of a folder are reported at once. Images without
masks are what :func:`list_images` finds.

==============  ============================================================================  ======================
set             folders                                                                       parts
==============  ============================================================================  ======================
plain           ``images`` and ``masks``: the same stem, or ``<stem>_segmentation``            none
ISIC 2018       the archives' own names, or ``train``, ``val``, ``test``, each a plain folder  train, val, test
Human (Vikram)  ``Training_Images`` and ``Ground_Truth``, or a plain folder                    train, test (last 100)
TikTok          ``segmentation_full_body_tik_tok_2615_img``, or a plain folder                 train, test (last 2000)
==============  ============================================================================  ======================
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NoReturn, TypeAlias

import numpy as np

from amsam_med.choices import Part as Part
from amsam_med.data.readers import IMAGE_SUFFIXES, image_size, is_image_file
from amsam_med.errors import ConfigError, DataError

Item: TypeAlias = dict[str, str]
"""``{"image": path, "label": path}``."""

Folder: TypeAlias = str | PathLike[str]

ISIC2018_FOLDERS = {
    "train": ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
    "val": ("ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth"),
    "test": ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth"),
}
ISIC2018_COUNTS = {"train": 2594, "val": 100, "test": 1000}
HUMAN_VIKRAM_FOLDERS = ("Training_Images", "Ground_Truth")
HUMAN_VIKRAM_TEST_COUNT = 100
TIKTOK_FOLDER = "segmentation_full_body_tik_tok_2615_img"
TIKTOK_COUNT = 2615
TIKTOK_TEST_COUNT = 2000

_PLAIN_FOLDERS = ("images", "masks")
_MASK_ENDING = "_segmentation"
_SHOWN_FAULTS = 5


def list_images(folder: Folder) -> list[Path]:
    """All images in a folder and its sub-folders, sorted; hidden files and folders are left out.

    A file counts by its suffix or, where it has another one, if it starts as DICOM does.

    Raises:
        DataError: There is no such folder, a sub-folder cannot be listed, or there are no images.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Give a folder with images")
    found: list[Path] = []
    for parent, folders, names in os.walk(root, onerror=_refuse_unlisted):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [path for name in names if is_image_file(path := Path(parent, name))]
    if not found:
        raise DataError(f"{root}: no images in it or its sub-folders; known are {', '.join(IMAGE_SUFFIXES)}")
    return sorted(found)


def image_stem(path: Folder) -> str:
    """The name of an image file without its suffix; "1.2.840.113", as DICOM files are often named, has none."""
    name = Path(path).name
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def open_datalist(folder: Folder, part: str | None = None) -> list[Item]:
    """The pairs of any folder that this module knows.

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
    if part is None:
        return folder_datalist(root)
    if _is_tiktok(root):
        return tiktok_datalist(root, part)
    return human_vikram_datalist(root, part) if _is_human_vikram(root) else isic2018_datalist(root, part)


def datalist_parts(folder: Folder) -> tuple[str, ...]:
    """The parts that ``folder`` holds; empty for a plain folder, whose list is opened without a part."""
    root = Path(folder)
    if _is_tiktok(root) or _is_human_vikram(root):
        return ("train", "test")
    return tuple(part for part in ISIC2018_FOLDERS if _isic2018_folders(root, part) is not None)


def folder_datalist(folder: Folder, check_sizes: bool = True) -> list[Item]:
    """All pairs of ``folder/images`` and ``folder/masks``, sorted by name.

    Args:
        folder: The folder that holds both.
        check_sizes: Whether to compare the sizes of image and mask, from the files' headers.

    Raises:
        DataError: The folder is another one, or its files have faults.
    """
    root = Path(folder)
    return _pairs(root, _PLAIN_FOLDERS, check_sizes)


def isic2018_datalist(folder: Folder, part: str, check_sizes: bool = True) -> list[Item]:
    """ISIC 2018 Task 1; with the archives' own folders the counts 2594, 100 and 1000 are checked.

    Raises:
        DataError: The part is missing or incomplete, or its files have faults.
    """
    root = Path(folder)
    folders = _isic2018_folders(root, part)
    if folders is None:
        expected = " and ".join(ISIC2018_FOLDERS.get(part, ("train, val or test as the part",)))
        raise DataError(f"{root.name}: no ISIC 2018 {part!r}; expected {expected}. Run: amsam data get isic2018")
    items = _pairs(root, folders, check_sizes)
    if folders == ISIC2018_FOLDERS[part]:
        _check_count(f"{root.name}, {part}", len(items), ISIC2018_COUNTS[part])
    return items


def human_vikram_datalist(folder: Folder, part: str, check_sizes: bool = True) -> list[Item]:
    """Vikram Shenoy's human segmentation set, sorted by number: the last 100 are the test part.

    Raises:
        DataError: The folder is another one, the part is unknown, or its files have faults.
    """
    root = _descend(Path(folder), HUMAN_VIKRAM_FOLDERS)
    names = HUMAN_VIKRAM_FOLDERS if (root / HUMAN_VIKRAM_FOLDERS[0]).is_dir() else _PLAIN_FOLDERS
    items = _pairs(root, names, check_sizes)
    return _part_by_number(root, items, part, HUMAN_VIKRAM_TEST_COUNT)


def tiktok_datalist(folder: Folder, part: str, check_sizes: bool = True) -> list[Item]:
    """Kaggle's full-body TikTok dancing set, sorted by number: the last 2,000 of 2,615 are the test part.

    Raises:
        DataError: The folder is another one or incomplete, the part is unknown, or its files have faults.
    """
    root = _descend(Path(folder) / TIKTOK_FOLDER if (Path(folder) / TIKTOK_FOLDER).is_dir() else Path(folder))
    items = _pairs(root, _PLAIN_FOLDERS, check_sizes)
    if root.name == TIKTOK_FOLDER:
        _check_count(root.name, len(items), TIKTOK_COUNT)
    return _part_by_number(root, items, part, TIKTOK_TEST_COUNT)


def few_shot_draw(items: Sequence[Item], shots: int | None, seed: int) -> list[Item]:
    """Draw ``shots`` examples at random; a larger draw with the same seed begins with the smaller one.

    Args:
        items: The list to draw from; its order plays no part.
        shots: How many; None for all of them, sorted.
        seed: The same seed and files give the same draw, on every machine and with every version of NumPy.

    Raises:
        ConfigError: ``shots`` is not between 1 and the number of items.
    """
    in_order = sorted(items, key=lambda item: item["image"])
    if shots is None:
        return in_order
    if not 1 <= shots <= len(in_order):
        raise ConfigError(
            f"shots = {shots}; the list has {len(in_order)} examples, so 1 to {len(in_order)} can be drawn"
        )
    drawn = np.random.RandomState(seed).permutation(len(in_order))[:shots]  # the one stream NumPy has frozen
    return [in_order[index] for index in drawn]


def refuse_output_among(items: Sequence[Item], output: Folder) -> None:
    """Refuse an output folder in a folder of images or masks, of which its files would become a part.

    A hidden folder among them is none of theirs: the label server keeps its trainings in one.

    Raises:
        ConfigError: It is one of theirs, or lies in one.
    """
    folder = Path(output).resolve()
    inputs = {Path(path).parent for item in items for path in item.values()}
    for taken in {given.resolve() for given in inputs}:
        is_hidden = taken in folder.parents and any(one.startswith(".") for one in folder.relative_to(taken).parts)
        if folder == taken or (taken in folder.parents and not is_hidden):
            raise ConfigError(
                f"the output {output} lies among the images or masks in {taken}, which would take it for data; give "
                "another folder"
            )


def _refuse_unlisted(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename}: this folder cannot be listed ({error.strerror}). Change its permissions")


def _pairs(root: Path, folders: tuple[str, str], check_sizes: bool) -> list[Item]:
    """Match images and masks in two folders of ``root`` by stem; every fault goes into one error."""
    missing = [name for name in folders if not (root / name).is_dir()]
    if missing:
        raise DataError(
            f"{root.name or root}: no folder {' and no '.join(missing)} in it. Give a folder that holds images and "
            "masks, or the root of ISIC 2018, Human (Vikram) or TikTok"
        )
    image_folder, mask_folder = (root / name for name in folders)
    images, faults = _by_stem(image_folder)
    masks, mask_faults = _by_stem(mask_folder)
    faults += mask_faults + [f"{path.name}: no mask" for stem, path in images.items() if stem not in masks]
    pairs = [(path, masks[stem]) for stem, path in images.items() if stem in masks]
    if check_sizes:
        faults += [fault for image, mask in pairs if (fault := _size_fault(image, mask))]
    if not images:
        faults.append(f"{image_folder.name}: no images")
    if faults:
        _raise_faults(root, faults)
    return [{"image": str(image), "label": str(mask)} for image, mask in pairs]


def _by_stem(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Image files by stem, sorted, and a fault for every stem that two files share."""
    found: dict[str, Path] = {}
    faults = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.lower().endswith(IMAGE_SUFFIXES):
            continue
        stem = image_stem(path).removesuffix(_MASK_ENDING)
        if stem in found:
            faults.append(f"{path.name}: the same stem as {found[stem].name}")
        found.setdefault(stem, path)
    return found, faults


def _size_fault(image: Path, mask: Path) -> str | None:
    try:
        sizes = image_size(image), image_size(mask)
    except DataError as error:
        return str(error)
    if sizes[0] == sizes[1]:
        return None
    image_text, mask_text = (f"{width} x {height}" for height, width in sizes)
    return f"{mask.name}: {mask_text} pixels, its image has {image_text}"


def _raise_faults(root: Path, faults: list[str]) -> NoReturn:
    shown = "; ".join(faults[:_SHOWN_FAULTS])
    rest = f"; and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
    raise DataError(
        f"{root.name or root}: {len(faults)} fault{'s' if len(faults) > 1 else ''} in this folder: {shown}{rest}. "
        "Every image needs one mask of the same name and size; mend or remove these files"
    )


def _isic2018_folders(root: Path, part: str) -> tuple[str, str] | None:
    plain = (f"{part}/{_PLAIN_FOLDERS[0]}", f"{part}/{_PLAIN_FOLDERS[1]}")
    for folders in (ISIC2018_FOLDERS.get(part, plain), plain):
        if all((root / name).is_dir() for name in folders):
            return folders
    return None


def _is_human_vikram(root: Path) -> bool:
    folded = root.resolve().name.lower().replace("-", "_")
    is_plain = all((root / name).is_dir() for name in _PLAIN_FOLDERS)
    has_own_folders = all((_descend(root, HUMAN_VIKRAM_FOLDERS) / name).is_dir() for name in HUMAN_VIKRAM_FOLDERS)
    return has_own_folders or (is_plain and folded in ("human_vikram", "human_segmentation_dataset"))


def _is_tiktok(root: Path) -> bool:
    return TIKTOK_FOLDER in (root.resolve().name, *(path.name for path in root.glob(f"{TIKTOK_FOLDER}/")))


def _descend(root: Path, names: Sequence[str] = _PLAIN_FOLDERS) -> Path:
    """The one sub-folder of ``root`` that holds ``names`` (archives wrap their content), else ``root``."""
    inner = [folder for folder in sorted(root.glob("*/")) if all((folder / name).is_dir() for name in names)]
    return inner[0] if len(inner) == 1 and not (root / names[0]).is_dir() else root


def _check_count(name: str, got: int, expected: int) -> None:
    if got != expected:
        raise DataError(f"{name}: {got:,} pairs; the published set has {expected:,}. Extract the archives again")


def _part_by_number(root: Path, items: list[Item], part: str, test_count: int) -> list[Item]:
    if part not in ("train", "test"):
        raise DataError(f"{root.name}: part {part!r} was asked for; expected train or test")
    if len(items) <= test_count:
        raise DataError(f"{root.name}: {len(items)} pairs; more than {test_count} are expected, as those are the test")
    by_number = sorted(items, key=lambda item: [int(digits) for digits in re.findall(r"\d+", Path(item["image"]).stem)])
    return by_number[-test_count:] if part == "test" else by_number[:-test_count]
