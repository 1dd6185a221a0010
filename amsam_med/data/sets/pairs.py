"""Pairs of images and masks from two folders, and few-shot draws from their list.

A list holds items ``{"image": path, "label": path}``. All faults of a folder are reported at once. Images without
masks are what :func:`list_images` finds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NoReturn, TypeAlias

import numpy as np

from amsam_med.data.readers import IMAGE_SUFFIXES, image_size, is_image_file
from amsam_med.errors import ConfigError, DataError

Item: TypeAlias = dict[str, str]
"""``{"image": path, "label": path}``."""

Folder: TypeAlias = str | PathLike[str]

PLAIN_FOLDERS = ("images", "masks")
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


def folder_datalist(folder: Folder, check_sizes: bool = True) -> list[Item]:
    """All pairs of ``folder/images`` and ``folder/masks``, sorted by name.

    Args:
        folder: The folder that holds both.
        check_sizes: Whether to compare the sizes of image and mask, from the files' headers.

    Raises:
        DataError: The folder is another one, or its files have faults.
    """
    root = Path(folder)
    return pairs_in(root, PLAIN_FOLDERS, check_sizes)


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
    drawn = np.random.RandomState(seed).permutation(len(in_order))[:shots]  # its numbers never change between versions
    return [in_order[index] for index in drawn]


def refuse_output_among(items: Sequence[Item], output: Folder) -> None:
    """Refuse an output folder inside a folder of images or masks, where its files would be listed as data.

    Hidden folders are allowed, as they are not listed: the label server keeps its trainings in one.

    Raises:
        ConfigError: The output is a folder of images or masks, or is inside one.
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


def pairs_in(root: Path, folders: tuple[str, str], check_sizes: bool) -> list[Item]:
    """Match images and masks in two folders of ``root`` by stem; every fault goes into one error.

    Raises:
        DataError: A folder is missing, or files have faults.
    """
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


def descend(root: Path, names: Sequence[str] = PLAIN_FOLDERS) -> Path:
    """The one sub-folder of ``root`` that holds ``names`` (archives wrap their content), else ``root``."""
    inner = [folder for folder in sorted(root.glob("*/")) if all((folder / name).is_dir() for name in names)]
    return inner[0] if len(inner) == 1 and not (root / names[0]).is_dir() else root


def check_count(name: str, got: int, expected: int) -> None:
    """Refuse a set that is not whole.

    Raises:
        DataError: There is another number of pairs than was published.
    """
    if got != expected:
        raise DataError(f"{name}: {got:,} pairs; the published set has {expected:,}. Extract the archives again")


def part_by_number(root: Path, items: list[Item], part: str, test_count: int) -> list[Item]:
    """A part of a set whose test part are the last ``test_count`` images by the numbers in their names.

    Raises:
        DataError: The part is neither train nor test, or there are too few pairs.
    """
    if part not in ("train", "test"):
        raise DataError(f"{root.name}: part {part!r} was asked for; expected train or test")
    if len(items) <= test_count:
        raise DataError(f"{root.name}: {len(items)} pairs; more than {test_count} are expected, as those are the test")
    by_number = sorted(items, key=lambda item: [int(digits) for digits in re.findall(r"\d+", Path(item["image"]).stem)])
    return by_number[-test_count:] if part == "test" else by_number[:-test_count]
