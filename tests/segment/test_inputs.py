"""Files, folders, archives: every image once, each with a name of its own, none that leads elsewhere."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
import tracemalloc
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from amsam_med.errors import DataError
from amsam_med.segment.inputs import InputFile, Inputs, list_inputs, local_copy
from amsam_med.segment.journal import RecordedName
from tests.small_bundle import write_picture


def names_in(*given: Path) -> dict[str, str]:
    """Names of the results by what the files are called."""
    return {file.file: file.name for file in list_inputs(map(str, given))}


def the_only(given: Path) -> InputFile:
    (file,) = list_inputs([str(given)])
    return file


def write_zip(path: Path, **members: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
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
    monkeypatch.setattr("amsam_med.segment.inputs.MEMBER_LIMIT", 1 << 20)
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
    def found() -> Iterator[InputFile]:
        return (InputFile("file", f"/archive/{n}.png", "", f"archive/{n}.png", f"{n}") for n in range(50_000))

    list(Inputs(found()))  # Python's own table of names grows once, at a moment that depends on what ran before
    tracemalloc.start()
    files = Inputs(found())
    assert sum(1 for _ in files) == len(files) == 50_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6


def prepared(*given: Path, recorded: tuple[RecordedName, ...] = (), secret: bytes | None = None) -> Inputs:
    files = list_inputs(map(str, given))
    files.prepare(recorded, secret)
    return files


def write_pages(path: Path, count: int = 2) -> Path:
    pages = [Image.new("RGB", (8, 8))] * count
    pages[0].save(path, format="TIFF", save_all=True, append_images=pages[1:])
    return path


@pytest.mark.parametrize("several", ["scan.tif", "scan.png", "Scan.tif", "scan"])
def test_the_pages_of_a_file_do_not_get_the_name_of_another_file(several: str, tmp_path: Path) -> None:
    write_pages(tmp_path / several)
    if several == "scan":
        write_dicom(tmp_path / several)
    write_picture(tmp_path / "scan_0001.png")
    names = {Path(file).name: name for file, name in names_in(tmp_path).items()}
    stem = Path(several).stem
    assert names in (
        {several: stem, "scan_0001.png": "scan_0001.png"},
        {several: several, "scan_0001.png": "scan_0001"},
    )


def test_names_of_pages_are_kept_apart_in_archives_and_across_inputs(tmp_path: Path) -> None:
    pages = write_pages(tmp_path / "x.tif").read_bytes()
    archive = write_zip(tmp_path / "z.zip", **{"scan.tif": pages, "scan_0001.png": b"\x89PNG"})
    assert sorted(names_in(archive).values()) == ["z/scan", "z/scan_0001.png"]
    (tmp_path / "a").mkdir()
    write_pages(tmp_path / "a" / "scan.tif")
    write_picture(tmp_path / "b" / "scan_0001.png")
    assert sorted(names_in(tmp_path / "b", tmp_path / "a").values()) == ["scan", "scan_0001.png"]


def test_a_single_picture_leaves_numbers_to_others(tmp_path: Path) -> None:
    for name in ("ISIC.png", "ISIC_0024306.png", "IMG.jpg", "IMG_0001.jpg"):
        write_picture(tmp_path / name)
    assert sorted(names_in(tmp_path).values()) == ["IMG", "IMG_0001", "ISIC", "ISIC_0024306"]


def test_a_file_that_arrives_later_gives_way_to_results_that_are_there(tmp_path: Path) -> None:
    write_pages(tmp_path / "scan.tif")
    for name in ("scan_0001.png", "a.jpg", "a.bmp", "A.png"):
        write_picture(tmp_path / name)

    def names(*recorded: RecordedName) -> set[str]:
        return {file.name for file in prepared(tmp_path, recorded=recorded)}

    folder = tmp_path.as_posix()
    first = RecordedName("scan_0001", f"{folder}/scan_0001.png", False), RecordedName("a", "moved/a.jpg", False)
    assert names(*first) == {"scan_0001", "scan.tif", "a", "a.bmp", "A.png"}
    first = RecordedName("scan", f"{folder}/scan.tif", True), RecordedName("A", f"{folder}/A.png", False)
    assert names(*first) == {"scan", "scan_0001.png", "A", "a.bmp", "a.jpg"}


def test_letters_written_in_two_ways_are_one_name(tmp_path: Path) -> None:
    for name in ("e\u0301.png", "\u00e9.jpg", "\u00c9.bmp"):
        write_picture(tmp_path / name)
    keys = {unicodedata.normalize("NFC", name).casefold() for name in names_in(tmp_path).values()}
    assert len(keys) == 3


TOLD = {"PatientName": "Doe^Jane", "PatientID": "471147", "PatientBirthDate": "19700131"}


def test_what_a_zip_member_tells_of_the_patient_is_replaced_everywhere(tmp_path: Path) -> None:
    source = write_dicom(tmp_path / "x.dcm", **TOLD).read_bytes()
    members = {"Doe_Jane/471147.dcm": source, "Doe_Jane/b.png": b"\x89PNG", "Doe_Jane/c.zip": b"", "plain.png": b""}
    archive = write_zip(tmp_path / "in" / "Jane_Doe.zip", **members)
    files = prepared(tmp_path / "in")
    assert len(files) == 4
    for file in files:
        told = file.file + file.name + file.error
        assert not any(word in told for word in ("Doe", "Jane", "471147")), file
    assert not any(word in files.shown(str(archive)) for word in ("Doe", "Jane"))
    assert "Jane_Doe" not in files.shown("Jane_Doe results")
    kept = list_inputs([str(archive)], keeps_identifiers=True)
    assert any("471147" in file.name for file in kept)


def test_the_typed_path_is_shown_without_the_patient(tmp_path: Path) -> None:
    write_dicom(tmp_path / "Doe, Jane" / "1.dcm", **TOLD)
    files = prepared(tmp_path / "Doe, Jane")
    assert "Doe" not in files.shown(f"{tmp_path}/Doe, Jane/")
    assert files.shown(str(tmp_path)) == str(tmp_path)
    assert files.shown("dicomweb:http://h/x?PatientName=Doe^Jane&Modality=XC") == (
        "dicomweb:http://h/x?PatientName=...&Modality=XC"
    )


def test_with_a_secret_no_name_holds_a_uid_or_what_could_be_reckoned_from_one(tmp_path: Path) -> None:
    write_dicom(tmp_path / "in" / "1.2.840.113.7" / "1.2.3.4.5.dcm", **TOLD)
    write_dicom(tmp_path / "in" / "471147.dcm", **TOLD)
    plain = {file.name for file in prepared(tmp_path / "in")}
    told = {"1.2.840", "1.2.3.4", *(name.partition("-")[2] for name in plain if "image-" in name)}
    first, again, other = (
        {file.file + file.name for file in prepared(tmp_path / "in", secret=secret)} for secret in (b"1", b"1", b"2")
    )
    assert first == again
    assert not first & other
    assert not any(word in text for word in told for text in first)


def test_an_archive_with_a_directory_that_fills_the_memory_is_refused(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", **{"a.png": b"x"})
    content = bytearray(archive.read_bytes())
    end = content.rfind(b"PK\5\6")
    content[end + 12 : end + 16] = (1 << 30).to_bytes(4, "little")
    archive.write_bytes(content)
    assert "its directory has 1,073,741,824 bytes" in the_only(archive).error


@pytest.mark.parametrize("address", ["http://[::1", "http://", "ftp://h/x", "x" * 5000])
def test_an_address_that_is_none_is_said_shortly(address: str) -> None:
    with pytest.raises(DataError, match="not an address") as caught:
        list_inputs([f"dicomweb:{address}"])
    assert len(str(caught.value)) < 500
