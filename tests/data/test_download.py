"""Downloads against a local server that can break off, refuse ranges, or change its file."""

from __future__ import annotations

import hashlib
import io
import struct
import threading
import urllib.request
import zipfile
from collections.abc import Iterator
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import PIL.Image
import pytest
from click.testing import CliRunner

from amsam_med.cli import amsam
from amsam_med.data import datalists
from amsam_med.data import download as downloads
from amsam_med.data.download import Step, download, unpack
from amsam_med.data.sets import isic2018, tiktok
from amsam_med.data.sets.human_vikram import fetch_human_vikram
from amsam_med.data.sets.isic2018 import fetch_isic2018
from amsam_med.data.sets.tiktok import import_tiktok
from amsam_med.errors import DataError

CONTENT = bytes(range(256)) * 40  # 10,240 bytes


class Server(ThreadingHTTPServer):
    """Serves ``files`` by name; the knobs below make it misbehave."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"a.bin": CONTENT}
        self.knows_ranges = True
        self.tells_length = True
        self.promises = 0  # bytes more than there are
        self.length: str | None = None  # instead of a right one
        self.etag: str | None = None  # instead of a right one
        self.sends_to: str | None = None
        self.break_after: list[int] = []  # for the next requests: bytes to send before the line breaks
        self.errors: list[int] = []  # for the next requests: an HTTP status instead of a file
        self.ranges: list[str | None] = []  # what was asked for

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content = self.server.files.get(self.path.lstrip("/"))
        self.server.ranges.append(self.headers["Range"])
        if content is None or self.server.errors:
            self.send_error(404 if content is None else self.server.errors.pop(0))
            return
        if self.server.sends_to is not None:
            self.send_response(302)
            self.send_header("Location", self.server.sends_to)
            self.end_headers()
            return
        etag = self.server.etag or f'"{hashlib.md5(content).hexdigest()}"'
        start = int(self.headers["Range"][6:-1]) if self.headers["Range"] else 0
        if not self.server.knows_ranges or self.headers["If-Range"] not in (None, etag):
            start = 0
        if start >= len(content) and start:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("ETag", etag)
        if self.server.tells_length:
            right = str(len(content) - start + self.server.promises)
            self.send_header("Content-Length", right if self.server.length is None else self.server.length)
        self.end_headers()
        end = start + self.server.break_after.pop(0) if self.server.break_after else None
        self.wfile.write(content[start:end])

    def log_message(self, *arguments: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(downloads, "_WAIT_S", 0.0)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def png() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("L", (2, 2)).save(buffer, "PNG")
    return buffer.getvalue()


def leave_part(path: Path, content: bytes) -> None:
    path.with_name(f"{path.name}.part").write_bytes(content)


def test_a_file_arrives_whole_and_alone(server: Server, tmp_path: Path) -> None:
    steps: list[Step] = []
    path = download(f"{server.url}/a.bin", tmp_path / "new" / "a.bin", progress=steps.append)
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert steps[-1] == Step("a.bin", len(CONTENT), len(CONTENT))


def test_a_broken_line_is_taken_up_again_at_once(server: Server, tmp_path: Path) -> None:
    server.break_after = [4000, 3000]
    assert download(f"{server.url}/a.bin", tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=4000-", "bytes=7000-"]


def test_a_later_call_goes_on_where_the_first_was_killed(server: Server, tmp_path: Path) -> None:
    leave_part(tmp_path / "a.bin", CONTENT[:5000])
    assert download(f"{server.url}/a.bin", tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.ranges == ["bytes=5000-"]


def test_a_server_without_ranges_is_asked_from_the_start(server: Server, tmp_path: Path) -> None:
    server.knows_ranges = False
    server.break_after = [4000]
    assert download(f"{server.url}/a.bin", tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_file_that_changed_in_between_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    server.break_after = [4000, 0, 0, 0, 0]
    with pytest.raises(DataError, match="broke off after 4,000 bytes"):
        download(f"{server.url}/a.bin", tmp_path / "a.bin")
    server.break_after = []
    server.files["a.bin"] = CONTENT[::-1]
    assert download(f"{server.url}/a.bin", tmp_path / "a.bin").read_bytes() == CONTENT[::-1]


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    leave_part(tmp_path / "a.bin", CONTENT * 2)
    assert download(f"{server.url}/a.bin", tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.errors = [503, 500]
    assert download(f"{server.url}/a.bin", tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_server_that_tells_no_length_is_believed(server: Server, tmp_path: Path) -> None:
    server.tells_length = False
    assert download(f"{server.url}/a.bin", tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_wrong_hash_or_size_leaves_no_file(server: Server, tmp_path: Path) -> None:
    for wrong in ({"sha256": "0" * 64}, {"size": 5}):
        with pytest.raises(DataError, match=r"a\.bin: not the published file, got .* expected (0{64}|5 bytes)"):
            download(f"{server.url}/a.bin", tmp_path / "a.bin", **wrong)
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".etag")]


def test_a_file_that_passes_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    published = {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    (tmp_path / "a.bin").write_bytes(CONTENT)
    download(f"{server.url}/a.bin", tmp_path / "a.bin", **published)
    assert server.ranges == []
    (tmp_path / "a.bin").write_bytes(CONTENT[::-1])
    assert download(f"{server.url}/a.bin", tmp_path / "a.bin", **published).read_bytes() == CONTENT


def test_a_missing_file_and_a_dead_server_are_told_apart(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b\.bin: the server answers 404"):
        download(f"{server.url}/b.bin", tmp_path / "b.bin")
    with pytest.raises(DataError, match="broke off after 0 bytes"):
        download("http://127.0.0.1:9/a.bin", tmp_path / "a.bin")
    with pytest.raises(DataError, match="not an http or https address"):
        download("file:///etc/passwd", tmp_path / "a.bin")


def test_a_full_disk_is_foreseen(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_FREE_BYTES_LEFT", 1 << 60)
    with pytest.raises(DataError, match=r"a\.bin: needs 0\.0 GB, the disk has 0\.0 GB to spare"):
        download(f"{server.url}/a.bin", tmp_path / "a.bin")


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt", "C:evil.txt", "..\\evil.txt"])
def test_names_that_lead_out_are_refused_before_anything_is_unpacked(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.zip").write_bytes(zip_of({"good.txt": b"", name: b"evil"}))
    with pytest.raises(DataError, match="leads out of the folder"):
        unpack(tmp_path / "a.zip", tmp_path / "out" / "deep")
    assert not list((tmp_path / "out" / "deep").iterdir())


def test_links_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="'link' leads out of the folder or is a link"):
        unpack(tmp_path / "a.zip", tmp_path)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(DataError, match=r"text\.zip: not a ZIP archive"):
        unpack(tmp_path / "text.zip", tmp_path)
    (tmp_path / "flipped.zip").write_bytes(zip_of({"a.txt": b"hello"}).replace(b"hello", b"hallo"))
    with pytest.raises(DataError, match=r"flipped\.zip: a\.txt cannot be unpacked"):
        unpack(tmp_path / "flipped.zip", tmp_path)


@pytest.fixture
def isic_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The six archives of ISIC 2018 with one image each."""
    for part, (images, masks) in isic2018.FOLDERS.items():
        monkeypatch.setitem(isic2018.COUNTS, part, 1)
        server.files[f"{images}.zip"] = zip_of({f"{images}/ISIC_1.png": png(), f"{images}/LICENSE.txt": b""})
        server.files[f"{masks}.zip"] = zip_of({f"{masks}/ISIC_1_segmentation.png": png()})
    return server


def test_isic_is_fetched_once_and_can_be_opened(isic_server: Server, tmp_path: Path) -> None:
    fetch_isic2018(tmp_path, isic_server.url)
    assert datalists.datalist_parts(tmp_path) == ("train", "val", "test")
    assert len(datalists.open_datalist(tmp_path, "train")) == 1
    assert not list(tmp_path.glob("*.zip*"))
    fetch_isic2018(tmp_path, isic_server.url)
    assert len(isic_server.ranges) == 6


def test_an_incomplete_isic_archive_is_refused(isic_server: Server, tmp_path: Path) -> None:
    isic_server.files["ISIC2018_Task1_Training_GroundTruth.zip"] = zip_of({"else/a.png": png()})
    with pytest.raises(DataError, match="ISIC2018_Task1_Training_GroundTruth: 0 images; 1 were published"):
        fetch_isic2018(tmp_path, isic_server.url)


def test_human_vikram_is_fetched_once_and_can_be_opened(server: Server, tmp_path: Path) -> None:
    numbers = range(1, 103)
    images = {f"Human-Segmentation-Dataset-master/Training_Images/{number}.png": png() for number in numbers}
    masks = {f"Human-Segmentation-Dataset-master/Ground_Truth/{number}.png": png() for number in numbers}
    server.files["master.zip"] = zip_of(images | masks)
    for _ in range(2):
        fetch_human_vikram(tmp_path, server.url)
    assert server.ranges == [None]
    assert len(datalists.open_datalist(tmp_path, "train")) == 2


def test_tiktok_is_imported_from_its_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktok, "COUNT", 2)
    monkeypatch.setattr(tiktok, "TEST_COUNT", 1)
    folder = f"{tiktok.FOLDER}/{tiktok.FOLDER}"
    files = {f"{folder}/{kind}/{stem}.png": png() for kind in ("images", "masks") for stem in "12"}
    (tmp_path / "archive.zip").write_bytes(zip_of(files | {"df.csv": b""}))
    import_tiktok(tmp_path / "archive.zip", tmp_path / "tiktok")
    assert len(datalists.open_datalist(tmp_path / "tiktok", "train")) == 1


def test_tiktok_without_its_archive_explains_the_login(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.zip: no such file\. Log in at https://www\.kaggle\.com"):
        import_tiktok(tmp_path / "none.zip", tmp_path)
    (tmp_path / "other.zip").write_bytes(zip_of({"a.png": png()}))
    with pytest.raises(DataError, match=r"other\.zip: holds no folder segmentation_full_body"):
        import_tiktok(tmp_path / "other.zip", tmp_path / "tiktok")
    assert not (tmp_path / "tiktok").exists()


def test_the_command_line_fetches_and_checks(isic_server: Server, tmp_path: Path) -> None:
    run = CliRunner()
    got = run.invoke(amsam, ["data", "get", "isic2018", "-o", str(tmp_path), "--base-url", isic_server.url])
    assert (got.exit_code, "isic2018 is complete" in got.output) == (0, True)
    checked = run.invoke(amsam, ["data", "check", str(tmp_path)])
    assert checked.exit_code == 0
    assert "val: 1 pairs\n  size: 2 x 2 pixels\n" in checked.output
    assert "1 masks empty" in checked.output


def test_the_command_line_exits_1_for_faults_and_2_for_usage(tmp_path: Path) -> None:
    run = CliRunner()
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        PIL.Image.new("L", (2, 2), 7).save(tmp_path / folder / "a.png")
    checked = run.invoke(amsam, ["data", "check", str(tmp_path)])
    assert (checked.exit_code, "fault: a.png: the mask holds the values 7" in checked.output) == (1, True)
    imported = run.invoke(amsam, ["data", "import", "tiktok", "none.zip", "-o", str(tmp_path)])
    assert (imported.exit_code, "Log in at" in imported.output) == (1, True)
    assert run.invoke(amsam, ["data", "get", "mnist", "-o", str(tmp_path)]).exit_code == 2
    assert run.invoke(amsam, ["data", "check", str(tmp_path / "none")]).exit_code == 2


def test_a_server_that_always_promises_more_than_it_sends_is_given_up(server: Server, tmp_path: Path) -> None:
    server.promises = 5
    with pytest.raises(DataError, match="broke off after"):
        download(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert len(server.ranges) < 20


@pytest.mark.parametrize("tells_length", [True, False])
def test_a_body_that_is_longer_than_the_published_file_is_cut_off(
    tells_length: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_CHUNK_BYTES", 1000)
    monkeypatch.setattr(downloads, "_LARGEST_BYTES", 5000)
    server.tells_length = tells_length
    for size in (4000, None):
        with pytest.raises(DataError, match=r"a\.bin: not the published file, got more than [45],000"):
            download(f"{server.url}/a.bin", tmp_path / "a.bin", size)
        assert not (tmp_path / "a.bin.part").exists()


@pytest.mark.parametrize("length", ["-1", "many", "9" * 400, ""])
def test_a_length_that_is_no_number_is_none(length: str, server: Server, tmp_path: Path) -> None:
    server.length = length
    assert download(f"{server.url}/a.bin", tmp_path / "a.bin").read_bytes()[:1000] == CONTENT[:1000]


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://127.0.0.1/a.bin", "data:text/plain,evil"])
def test_a_server_cannot_send_us_to_other_kinds_of_addresses(address: str, server: Server, tmp_path: Path) -> None:
    server.sends_to = address
    with pytest.raises(DataError, match=r"the server (sends us to|answers 302)"):
        download(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert not (tmp_path / "a.bin").exists()


def test_https_is_not_left_for_http() -> None:
    asked = urllib.request.Request("https://publisher.example/a.zip")
    to = "http://publisher.example/a.zip"
    with pytest.raises(DataError, match="sends us to http://"):
        downloads._Redirects().redirect_request(asked, io.BytesIO(), 302, "Found", HTTPMessage(), to)


@pytest.mark.parametrize("address", ["http://[::1", "http://127.0.0.1:99999/", "http://127.0.0.1:port/", "http://ä b/"])
def test_an_address_that_is_none_is_named(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_WAIT_S", 0.0)
    with pytest.raises(DataError, match=r"not an address|broke off"):
        download(address, tmp_path / "a.bin")


@pytest.mark.parametrize("etag", ['"a\x85b"', "W/" + '"weak"', "x" * 500, '"' + "é" * 20 + '"'])
def test_a_foreign_mark_of_the_file_is_not_sent_back(etag: str, server: Server, tmp_path: Path) -> None:
    server.etag, server.break_after = etag, [4000]
    assert download(f"{server.url}/a.bin", tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_SPARED_BYTES", 0)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.png", bytes(1 << 24))
    with pytest.raises(DataError, match=r"bomb\.zip: 1 entries of 0\.0 GB .* no set of pictures has"):
        unpack(tmp_path / "bomb.zip", tmp_path / "out")
    assert [*(tmp_path / "out").iterdir()] == []


def test_more_entries_than_any_set_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_MOST_ENTRIES", 3)
    (tmp_path / "a.zip").write_bytes(zip_of({f"{number}.txt": b"" for number in range(4)}))
    with pytest.raises(DataError, match=r"a\.zip: 4 entries"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_an_entry_that_lies_about_its_size_leaves_no_file(tmp_path: Path) -> None:
    content = zip_of({"a.png": b"hello"})
    sizes = struct.pack("<LL", 5, 5)
    for lie in (struct.pack("<LL", 5, 2), struct.pack("<LL", 5, 500), struct.pack("<LL", 2, 5)):
        (tmp_path / "a.zip").write_bytes(content.replace(sizes, lie))
        with pytest.raises(DataError, match=r"a\.zip: "):
            unpack(tmp_path / "a.zip", tmp_path / "out")
        assert [*(tmp_path / "out").iterdir()] == []


def test_encrypted_and_unknown_packing_is_named(tmp_path: Path) -> None:
    content = bytearray(zip_of({"a.png": b"hello"}))
    central = content.index(b"PK\x01\x02")
    for offset, value in ((8, 1), (10, 97)):  # the flag of encryption; a method of packing that nobody has
        changed = bytearray(content)
        changed[central + offset] = changed[offset - 2] = value
        (tmp_path / "a.zip").write_bytes(changed)
        with pytest.raises(DataError, match=r"a\.zip: a\.png cannot be unpacked"):
            unpack(tmp_path / "a.zip", tmp_path / "out")
        assert [*(tmp_path / "out").iterdir()] == []


def test_a_file_that_is_also_a_folder_is_a_fault_of_the_archive(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_of({"a": b"file", "a/b.png": b"inside"}))
    with pytest.raises(DataError, match=r"a\.zip: a/b\.png cannot be unpacked"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
