"""The weights registry: places, sha256, downloads."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from amsam_med import weights
from amsam_med.domains import DOMAINS
from amsam_med.errors import AmsamError, WeightsError
from amsam_med.weights import State, Weights

CONTENT = b"the public weights"


class Mirror(SimpleHTTPRequestHandler):
    """A file server that counts its requests and keeps quiet."""

    def __init__(self, *words: Any, requests: list[str], **named: Any) -> None:
        self.requests = requests
        super().__init__(*words, **named)

    def do_GET(self) -> None:
        self.requests.append(self.path)
        super().do_GET()

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture(autouse=True)
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty package, cache and environment, with one embedded and one public file to be known."""
    package = tmp_path / "checkout" / "amsam_med"
    (package / "assets").mkdir(parents=True)
    monkeypatch.setattr(weights, "_PACKAGE", package)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(weights.FOLDER_VARIABLE, raising=False)
    return tmp_path


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Weights:
    """The registry's ``vit_b`` with a content that fits into a test."""
    real = weights.known()["vit_b"]
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    small = Weights("vit_b", real.file, real.what, real.licence, sha256, len(CONTENT), real.url)
    monkeypatch.setattr(weights, "_WEIGHTS", (small,))
    return small


@pytest.fixture
def mirror(house: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A web server on this machine: its address, its folder and the requests so far."""
    folder = house / "mirror"
    folder.mkdir()
    requests: list[str] = []
    handler = partial(Mirror, requests=requests, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=partial(server.serve_forever, poll_interval=0.02), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder, requests
        server.shutdown()


def put(file: Path, content: bytes = CONTENT) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def test_the_registry_knows_these_names() -> None:
    of_domains = [*(domain.bundle for domain in DOMAINS), *(domain.detector for domain in DOMAINS)]
    embedded = ["tiny", "tiny-general", *of_domains]
    assert list(weights.known()) == [*embedded, "vit_b", "vit_l", "vit_h"]
    assert [name for name, entry in weights.known().items() if entry.is_embedded] == embedded


def test_public_weights_say_all_that_a_check_needs() -> None:
    for entry in [entry for entry in weights.known().values() if not entry.is_embedded]:
        assert re.fullmatch("[0-9a-f]{64}", entry.sha256 or "")
        assert (entry.bytes or 0) > 3e8
        assert str(entry.url).endswith(f"_{entry.md5_prefix}.pth")
        assert entry.licence == "Apache-2.0"


def test_loose_files_have_different_names() -> None:
    names = {entry.loose_file for entry in weights.known().values()}
    assert len(names) == len(weights.known())


def test_register_puts_a_file_in_its_place_and_find_finds_it(house: Path) -> None:
    place = weights.register("tiny", put(house / "new.safetensors"))
    assert place == house / "checkout" / "amsam_med" / "assets" / "tiny.safetensors"
    assert weights.find("tiny") == place
    record = json.loads((place.parent / "registry.json").read_text())
    assert record == {"tiny": {"bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}}


def test_register_takes_a_file_that_is_in_its_place_already(house: Path) -> None:
    place = put(house / "checkout" / "bundles" / "amsam_isic" / "models" / "model.pt")
    assert weights.register("amsam_isic", place) == place
    assert weights.find("amsam_isic").read_bytes() == CONTENT


def test_an_installed_package_has_its_bundles_inside(house: Path) -> None:
    assert weights.bundles_folder() == house / "checkout" / "bundles"
    inside = house / "checkout" / "amsam_med" / "bundles"
    inside.mkdir()
    assert weights.bundles_folder() == inside


def test_public_weights_cannot_be_registered(house: Path) -> None:
    with pytest.raises(WeightsError, match="vit_b is a public download"):
        weights.register("vit_b", put(house / "mine.pth"))


def test_an_embedded_file_without_a_record_is_refused(house: Path) -> None:
    put(house / "checkout" / "amsam_med" / "assets" / "tiny.safetensors")
    with pytest.raises(WeightsError, match=r"no sha256 on record.*register\('tiny', file\)"):
        weights.find("tiny")


@pytest.mark.parametrize("content", [b"another public file", CONTENT.swapcase()], ids=["other length", "same length"])
def test_a_damaged_file_is_refused_with_both_sha256(house: Path, public: Weights, content: bytes) -> None:
    put(house / "mine" / public.file, content)
    with pytest.raises(WeightsError, match="damaged") as caught:
        weights.find("vit_b", house / "mine")
    assert hashlib.sha256(content).hexdigest() in str(caught.value)
    assert str(public.sha256) in str(caught.value)


def test_a_file_that_changes_under_a_running_process_is_read_again(house: Path, public: Weights) -> None:
    file = put(house / "mine" / public.file)
    assert weights.find("vit_b", house / "mine") == file
    put(file, CONTENT.swapcase())
    with pytest.raises(WeightsError, match="damaged"):
        weights.find("vit_b", house / "mine")


def test_a_file_is_hashed_once_a_process(house: Path, public: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    file = put(house / "mine" / public.file)
    weights.find("vit_b", house / "mine")
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read twice"))
    assert weights.find("vit_b", house / "mine") == file


def test_places_are_tried_in_order(house: Path, public: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(house / "named"))
    given, named = put(house / "given" / public.file), put(house / "named" / public.file)
    cached = put(house / "cache" / "amsam-med" / "weights" / public.file)
    for expected in (given, named, cached):
        assert weights.find("vit_b", house / "given") == expected
        expected.unlink()


def test_missing_public_weights_come_with_address_command_and_folder(house: Path) -> None:
    with pytest.raises(WeightsError, match="vit_b") as caught:
        weights.find("vit_b", house / "given")
    for hint in ("sam_vit_b_01ec64.pth", "amsam weights get vit_b", "--weights-dir", "AMSAM_WEIGHTS", str(house)):
        assert hint in str(caught.value)


def test_missing_embedded_weights_are_no_download(house: Path) -> None:
    with pytest.raises(WeightsError, match=r"reinstall amsam-med, or put the file as amsam_isic\.pt"):
        weights.find("amsam_isic")


def test_a_path_of_ones_own_is_taken_as_it_is(house: Path) -> None:
    own = put(house / "own.pt", b"anything")
    assert weights.find(own) == own
    assert weights.find(str(own)) == own


def test_a_word_that_is_neither_name_nor_file_lists_the_names() -> None:
    with pytest.raises(WeightsError, match="vit_x is neither a file nor one of the weights tiny, "):
        weights.find("vit_x")


def test_get_downloads_into_the_cache_once(
    public: Weights, mirror: tuple[str, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder, requests = mirror
    put(folder / public.file)
    first = weights.get("vit_b", base_url=f"{address}/")
    assert first.read_bytes() == CONTENT
    assert first.parent == weights.cache_folder()
    seen = len(requests)
    assert weights.get("vit_b", base_url=address) == weights.find("vit_b") == first
    assert len(requests) == seen > 0


def test_get_puts_the_file_into_the_folder_asked_for(
    house: Path, public: Weights, mirror: tuple[str, Path, list[str]]
) -> None:
    address, folder, _ = mirror
    put(folder / public.file)
    assert weights.get("vit_b", house / "new" / "place", address) == house / "new" / "place" / public.file


def test_get_replaces_a_damaged_file(house: Path, public: Weights, mirror: tuple[str, Path, list[str]]) -> None:
    address, folder, _ = mirror
    put(folder / public.file)
    put(house / "place" / public.file, b"damaged")
    assert weights.get("vit_b", house / "place", address).read_bytes() == CONTENT


def test_a_download_of_other_content_is_refused_and_not_kept(
    house: Path, public: Weights, mirror: tuple[str, Path, list[str]]
) -> None:
    address, folder, _ = mirror
    put(folder / public.file, CONTENT.swapcase())
    with pytest.raises(AmsamError, match=f"expected {public.sha256}"):
        weights.get("vit_b", house / "place", address)
    assert weights.locate(public, house / "place") is None


def test_get_finds_embedded_weights_without_a_download(house: Path) -> None:
    place = weights.register("tiny", put(house / "new.safetensors"))
    assert weights.get("tiny") == place


def test_verify_tells_the_four_states_apart(house: Path) -> None:
    weights.register("tiny", put(house / "new.safetensors"))
    put(house / "given" / "amsam_isic.pt")
    put(house / "given" / "sam_vit_b_01ec64.pth")
    names = ["tiny", "amsam_isic", "vit_b", "vit_h"]
    states = [finding.state for finding in weights.verify(names, house / "given")]
    assert states == [State.OK, State.UNREGISTERED, State.DAMAGED, State.MISSING]


def test_verify_looks_at_everything_unless_told_otherwise() -> None:
    assert [finding.weights.name for finding in weights.verify()] == list(weights.known())
    with pytest.raises(WeightsError, match="no weights named 'vit_x'; the names are tiny, "):
        weights.verify(["vit_x"])


def test_the_record_of_this_checkout_fits_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    embedded = [finding for finding in weights.verify() if finding.weights.is_embedded]
    assert len(embedded) == 6
    assert [finding for finding in embedded if finding.state in (State.DAMAGED, State.UNREGISTERED)] == []
