"""Files, folders, archives: every image once, each with a name of its own, none that leads elsewhere."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from amsam_med.errors import DataError
from amsam_med.sources import InputFile, Inputs, list_inputs, local_copy
from tests.small_bundle import write_picture


def names_in(*given: Path) -> dict[str, str]:
    """Names of the results by what the files are called."""
    return {file.file: file.name for file in list_inputs(map(str, given))}


def the_only(given: Path) -> InputFile:
    (file,) = list_inputs([str(given)])
    return file


def write_zip(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return path


def write_dicom(path: Path, **attributes: str) -> Path:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3.4"
    dataset.StudyInstanceUID = "1.2.3"
    for name, value in attributes.items():
        setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_files_of_one_name_all_get_their_own(tmp_path: Path) -> None:
    for name in ("x/a.jpg", "x/a.png", "x/A.PNG", "y/a.jpg", "y/a.jpg.png"):
        write_picture(tmp_path / name)
    names = names_in(tmp_path / "y", tmp_path / "x")
    assert {Path(file).relative_to(tmp_path).as_posix(): name for file, name in names.items()} == {
        "x/A.PNG": "A",
        "x/a.jpg": "a.jpg",
        "x/a.png": "a.png",
        "y/a.jpg": "a.jpg-2",
        "y/a.jpg.png": "a.jpg.png",
    }
    assert names == names_in(tmp_path / "x", tmp_path / "y")


def test_a_file_given_twice_is_there_once(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    write_picture(tmp_path / "sub" / "b.png")
    names = names_in(tmp_path, tmp_path / "a.png", tmp_path / "sub" / ".." / "sub")
    assert sorted(names.values()) == ["a", "sub/b"]


def test_links_to_folders_are_followed_once_also_in_a_loop(tmp_path: Path) -> None:
    write_picture(tmp_path / "archive" / "a.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "archive")
    (tmp_path / "archive" / "loop").symlink_to(tmp_path / "photos")
    assert list(names_in(tmp_path / "photos").values()) == ["link/a"]


def test_hidden_files_and_results_are_left_out(tmp_path: Path) -> None:
    for name in ("a.png", ".b.png", ".hidden/c.png", "masks/d.png"):
        write_picture(tmp_path / name)
    found = list_inputs([str(tmp_path)], is_result=lambda folder: folder.name == "masks")
    assert [file.name for file in found] == ["a"]


def test_a_folder_that_cannot_be_listed_is_a_file_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_picture(tmp_path / "a.png")
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:  # the superuser, who runs tests in a container, may list everything
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    errors = {file.name: file.error for file in list_inputs([str(tmp_path)])}
    assert errors["a"] == ""
    assert "locked: this folder cannot be listed (Permission denied)" in errors["locked"]


@pytest.mark.parametrize("name", ["Ünïcode ☃.png", "two  spaces .png", "a" * 250 + ".png", "new\nline.png"])
def test_any_file_name_gets_results_that_can_be_written(name: str, tmp_path: Path) -> None:
    write_picture(tmp_path / "photos" / name)
    result = tmp_path / f".{the_only(tmp_path / 'photos').name}_segmentation.png.0123abcd.png"
    result.write_bytes(b"")
    assert result.is_file()


def test_a_name_that_is_not_utf_8_is_kept_byte_by_byte(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    write_picture(path)
    file = the_only(tmp_path)
    assert file.name == path.stem
    with local_copy(file) as copy:
        assert copy.read_bytes() == path.read_bytes()


def test_members_of_an_archive_are_files(tmp_path: Path) -> None:
    members = {"x__a.png": b"first", "b.jpg": b"second", "notes.txt": b"", "UID": b"dicom"}
    archive = write_zip(tmp_path / "all.zip", **members)
    files = list(list_inputs([str(archive)]))
    assert [file.name for file in files] == ["all/UID", "all/b", "all/x/a"]
    with local_copy(files[2]) as copy:
        assert (copy.name, copy.read_bytes()) == ("a.png", b"first")
    assert not copy.exists()


def test_members_of_a_large_archive_come_one_after_another_without_delay(tmp_path: Path) -> None:
    many = write_zip(tmp_path / "many.zip", **{f"{n:05}.png": b"picture" for n in range(20_000)})
    files = itertools.islice(list_inputs([str(many)]), 200)
    start = time.process_time()
    for file in files:
        with local_copy(file) as copy:
            assert copy.read_bytes() == b"picture"
    assert time.process_time() - start < 3  # 20 with the archive's directory read for each


def test_an_archive_that_is_packed_anew_is_read_anew(tmp_path: Path) -> None:
    for content in (b"first", b"other one"):
        with local_copy(the_only(write_zip(tmp_path / "a.zip", **{"a.png": content}))) as copy:
            assert copy.read_bytes() == content


@pytest.mark.parametrize("name", ["../../evil.png", "/etc/evil.png", "..\\evil.png", "C:/evil.png", "x/../../evil.png"])
def test_a_member_that_leads_out_of_its_archive_is_refused(name: str, tmp_path: Path) -> None:
    file = the_only(write_zip(tmp_path / "slip.zip", **{name: b"evil"}))
    assert "its name leads out of the archive" in file.error
    assert ".." not in file.name
    assert not file.name.startswith("/")
    with pytest.raises(DataError, match="leads out"), local_copy(file):
        pass
    assert not list(tmp_path.parent.rglob("evil.png"))


def test_a_zip_bomb_is_refused_by_what_it_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amsam_med.sources.MEMBER_LIMIT", 1 << 20)
    file = the_only(write_zip(tmp_path / "bomb.zip", **{"a.png": b"\0" * (1 << 21)}))
    assert "2,097,152 bytes unpacked, at most 1,048,576 are read" in file.error


def test_a_zip_bomb_that_lies_about_its_size_unpacks_no_more_than_it_says(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "bomb.zip", **{"a.png": b"\0" * (1 << 22)})
    size = (1 << 22).to_bytes(4, "little")
    archive.write_bytes(archive.read_bytes().replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(DataError, match=r"member a\.png: cannot be unpacked"), local_copy(the_only(archive)):
        pass


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06" + b"\xff" * 18])
def test_a_broken_archive_is_a_file_with_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(content)
    assert "broken.zip: not a readable zip archive" in the_only(tmp_path).error


def test_an_archive_in_an_archive_is_not_read(tmp_path: Path) -> None:
    assert "an archive within an archive" in the_only(write_zip(tmp_path / "a.zip", **{"b.zip": b""})).error


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert "not a regular file" in the_only(tmp_path).error


def test_a_path_that_tells_the_patient_is_replaced(tmp_path: Path) -> None:
    told = {"PatientName": "Doe^Jane", "PatientID": "4711", "PatientBirthDate": "19700131"}
    for name in ("DOE_JANE/IM1.dcm", "x/4711.dcm", "x/born 1970-01-31/2.dcm", "x/IM14711.dcm"):
        write_dicom(tmp_path / "in" / name, **told)
    files = [Path(file.file).relative_to(tmp_path / "in").as_posix() for file in list_inputs([str(tmp_path / "in")])]
    study, image = (hashlib.sha256(uid.encode()).hexdigest()[:10] for uid in ("1.2.3", "1.2.3.4"))
    assert files == [f"study-{study}/IM1.dcm", "x/IM14711.dcm", f"x/image-{image}.dcm", f"x/study-{study}/2.dcm"]
    kept = list_inputs([str(tmp_path / "in" / "x")], keeps_identifiers=True)
    assert "4711" in [file.name for file in kept]


def test_many_files_are_listed_in_little_memory(tmp_path: Path) -> None:
    found = (InputFile("file", f"/archive/{n}.png", "", f"archive/{n}.png", f"{n}") for n in range(50_000))
    tracemalloc.start()
    files = Inputs(found)
    assert sum(1 for _ in files) == len(files) == 50_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6
