"""Folders become lists of pairs, or one message with all their faults."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import PIL.Image
import pytest

from amsam_med.data.datalists import (
    datalist_parts,
    few_shot_draw,
    folder_datalist,
    human_vikram_datalist,
    image_stem,
    isic2018_datalist,
    list_images,
    open_datalist,
    tiktok_datalist,
)
from amsam_med.data.sets import isic2018, tiktok
from amsam_med.errors import ConfigError, DataError


def fill(folder: Path, names: Iterable[str], size: tuple[int, int] = (4, 3)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        PIL.Image.new("L", size).save(folder / name)
    return folder


def fill_plain(root: Path, stems: Iterable[object]) -> Path:
    stems = list(stems)
    fill(root / "images", [f"{stem}.jpg" for stem in stems])
    fill(root / "masks", [f"{stem}.png" for stem in stems])
    return root


def stems_of(items: list[dict[str, str]]) -> list[str]:
    assert all(Path(item["label"]).is_file() for item in items)
    return [Path(item["image"]).stem for item in items]


def test_a_plain_folder_is_sorted_and_matched_by_stem(tmp_path: Path) -> None:
    fill(tmp_path / "images", ["b.jpg", "a.PNG", ".hidden.png"])
    fill(tmp_path / "masks", ["a_segmentation.png", "b.png", "orphan.png"])
    (tmp_path / "images" / "LICENSE.txt").touch()
    items = folder_datalist(tmp_path)
    assert [(Path(item["image"]).name, Path(item["label"]).name) for item in items] == [
        ("a.PNG", "a_segmentation.png"),
        ("b.jpg", "b.png"),
    ]


def test_all_faults_come_at_once_and_five_are_named(tmp_path: Path) -> None:
    fill(tmp_path / "images", [f"{name}.png" for name in "abcdef"])
    fill(tmp_path / "images", ["a.jpg"])
    fill(tmp_path / "masks", ["a.png"], size=(3, 4))
    with pytest.raises(DataError, match="7 faults") as caught:
        folder_datalist(tmp_path)
    text = str(caught.value)
    assert "a.png: the same stem as a.jpg" in text
    assert "e.png: no mask; and 2 more" in text
    assert "one mask of the same name and size" in text


def test_a_mask_of_another_size_is_found_in_the_headers(tmp_path: Path) -> None:
    fill(tmp_path / "images", ["a.png"])
    fill(tmp_path / "masks", ["a.png"], size=(3, 4))
    with pytest.raises(DataError, match=r"1 fault .*a\.png: 3 x 4 pixels, its image has 4 x 3"):
        folder_datalist(tmp_path)
    assert len(folder_datalist(tmp_path, check_sizes=False)) == 1


def test_a_broken_header_is_one_of_the_faults(tmp_path: Path) -> None:
    fill_plain(tmp_path, "ab")
    (tmp_path / "images" / "b.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"1 fault .*b\.jpg: not an image"):
        folder_datalist(tmp_path)


def test_a_wrong_folder_is_told_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder images and no masks in it"):
        open_datalist(tmp_path)
    fill(tmp_path / "images", [])
    fill(tmp_path / "masks", [])
    with pytest.raises(DataError, match="images: no images"):
        open_datalist(tmp_path)


def test_isic_is_known_by_its_archives_names_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "ISIC2018_Task1-2_Validation_Input", ["ISIC_1.jpg", "ISIC_2.jpg"])
    fill(tmp_path / "ISIC2018_Task1_Validation_GroundTruth", ["ISIC_1_segmentation.png", "ISIC_2_segmentation.png"])
    assert datalist_parts(tmp_path) == ("val",)
    with pytest.raises(DataError, match="val: 2 pairs; the published set has 100"):
        open_datalist(tmp_path, "val")
    monkeypatch.setitem(isic2018.COUNTS, "val", 2)
    assert stems_of(open_datalist(tmp_path, "val")) == ["ISIC_1", "ISIC_2"]


def test_isic_may_be_plain_folders_of_any_count(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        fill_plain(tmp_path / part, [part])
        assert stems_of(isic2018_datalist(tmp_path, part)) == stems_of(open_datalist(tmp_path, part)) == [part]


def test_a_part_must_be_named_where_there_are_parts_and_only_there(tmp_path: Path) -> None:
    fill_plain(tmp_path / "set" / "train", "a")
    fill_plain(tmp_path / "plain", "a")
    with pytest.raises(DataError, match="part None was asked for; expected one of train"):
        open_datalist(tmp_path / "set")
    with pytest.raises(DataError, match="part 'test' was asked for; expected no part"):
        open_datalist(tmp_path / "plain", "test")
    with pytest.raises(DataError, match="no ISIC 2018 'test'; expected ISIC2018_Task1-2_Test_Input and"):
        isic2018_datalist(tmp_path / "set", "test")


@pytest.mark.parametrize("wrapper", ["", "Human-Segmentation-Dataset-master"])
def test_human_vikram_is_sorted_by_number_and_ends_with_the_test(tmp_path: Path, wrapper: str) -> None:
    numbers = range(1, 104)
    fill(tmp_path / wrapper / "Training_Images", [f"{number}.jpg" for number in numbers])
    fill(tmp_path / wrapper / "Ground_Truth", [f"{number}.png" for number in numbers])
    assert datalist_parts(tmp_path) == ("train", "test")
    assert stems_of(open_datalist(tmp_path, "train")) == ["1", "2", "3"]
    assert stems_of(open_datalist(tmp_path, "test")) == [str(number) for number in range(4, 104)]


def test_human_vikram_in_plain_folders_is_known_by_its_name(tmp_path: Path) -> None:
    root = fill_plain(tmp_path / "human_vikram", range(1, 103))
    assert stems_of(open_datalist(root, "train")) == stems_of(human_vikram_datalist(root, "train")) == ["1", "2"]
    with pytest.raises(DataError, match="expected train or test"):
        human_vikram_datalist(root, "val")


def test_too_few_pairs_for_the_test_part_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 pairs; more than 100 are expected"):
        human_vikram_datalist(fill_plain(tmp_path, "12"), "test")


@pytest.mark.parametrize("nesting", [tiktok.FOLDER, f"{tiktok.FOLDER}/{tiktok.FOLDER}"])
def test_tiktok_is_known_by_its_folder(tmp_path: Path, nesting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktok, "TEST_COUNT", 3)
    fill_plain(tmp_path / nesting, [f"{number:05d}" for number in range(5)])
    with pytest.raises(DataError, match="5 pairs; the published set has 2,615"):
        open_datalist(tmp_path, "test")
    monkeypatch.setattr(tiktok, "COUNT", 5)
    assert stems_of(open_datalist(tmp_path, "train")) == ["00000", "00001"]
    assert stems_of(tiktok_datalist(tmp_path, "test")) == ["00002", "00003", "00004"]


ITEMS = [{"image": f"{number:02d}.png", "label": ""} for number in range(20)]


def test_a_draw_depends_on_seed_and_names_and_not_on_order() -> None:
    assert few_shot_draw(ITEMS, 4, seed=1) == few_shot_draw(ITEMS[::-1], 4, seed=1)
    assert few_shot_draw(ITEMS, 4, seed=1) != few_shot_draw(ITEMS, 4, seed=2)
    assert [item["image"] for item in few_shot_draw(ITEMS, 4, seed=0)] == ["18.png", "01.png", "19.png", "08.png"]


def test_a_larger_draw_begins_with_the_smaller() -> None:
    assert few_shot_draw(ITEMS, 16, seed=3)[:4] == few_shot_draw(ITEMS, 4, seed=3)


def test_all_means_the_sorted_list() -> None:
    assert few_shot_draw(ITEMS[::-1], None, seed=0) == ITEMS


@pytest.mark.parametrize("shots", [0, 21])
def test_an_impossible_draw_is_refused(shots: int) -> None:
    with pytest.raises(ConfigError, match=f"shots = {shots}; the list has 20 examples"):
        few_shot_draw(ITEMS, shots, seed=0)


def test_the_real_sets_have_their_known_counts(data_root: Path) -> None:
    assert len(open_datalist(data_root / "isic2018", "val")) == 400
    train, test = (open_datalist(data_root / "human_vikram", part) for part in ("train", "test"))
    assert (len(train), len(test)) == (190, 100)
    assert not {item["image"] for item in train} & {item["image"] for item in test}


def test_images_are_listed_with_those_of_sub_folders_sorted(tmp_path: Path) -> None:
    fill(tmp_path, ["b.JPG", "a.png", ".hidden.png", "._a.png"])
    fill(tmp_path / "sub" / "deeper", ["c.tiff", "d.gif"])
    fill(tmp_path / ".thumbnails", ["a.png"])
    for name in ("notes.txt", "LICENSE", "table.csv"):
        (tmp_path / name).write_text("x" * 200)
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["a.png", "b.JPG", "sub/deeper/c.tiff", "sub/deeper/d.gif"]


def test_dicom_files_without_their_suffix_are_listed(tmp_path: Path) -> None:
    for name in ("IM0001", "1.2.840.113", "DICOMDIR", "scan.dcm", "scan.ima", ".hidden"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    assert [path.name for path in list_images(tmp_path)] == ["1.2.840.113", "IM0001", "scan.dcm", "scan.ima"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images in it or its sub-folders"):
        list_images(tmp_path)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        list_images(tmp_path / "nowhere")


def test_the_stem_of_an_image_is_what_is_before_a_known_suffix() -> None:
    names = ["a.png", "a.b.JPG", "scan.nii.gz", "1.2.840.113", "IM0001"]
    assert [image_stem(f"folder/{name}") for name in names] == ["a", "a.b", "scan", "1.2.840.113", "IM0001"]
