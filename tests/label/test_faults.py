"""What a server answers to wrong requests, and what it loses when it is killed: nothing."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from pipelines.monailabel.process import Server, wait_for_training

DETACHED = b"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 9 9\nencoding: raw\ndata file: /proc/self/fd/7\n\n"

pytestmark = [  # MONAI Label's client leaves its sockets open
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def post(server: Server, path: str, **what: Any) -> tuple[int, str]:
    """Status and detail of an answer."""
    answer = requests.post(f"{server.address}{path}", timeout=60, **what)
    return answer.status_code, str(answer.json().get("detail", ""))


@pytest.mark.parametrize(
    ("path", "what", "status", "text"),
    [
        ("/infer/amsam_isic?image=nothing", {}, 404, "there is no image 'nothing'"),
        ("/infer/amsam_isic", {}, 400, "Neither Image nor File"),
        ("/infer/none?image=x", {}, 404, "x"),
        ("/infer/amsam_isic?image=../../etc/passwd", {}, 400, "image is a path"),
        ("/infer/amsam_isic?image=%2Fetc%2Fpasswd", {}, 400, "image is a path"),
        ("/infer/amsam_isic?image=x", {"data": {"params": '{"image": "/etc/passwd"}'}}, 404, "no image '/etc/passwd'"),
        ("/infer/amsam_isic?image=x", {"data": {"params": "{not json"}}, 400, "params is not JSON"),
        ("/infer/amsam_isic?image=x", {"data": {"params": "[1]"}}, 400, "the request is not what is expected"),
        ("/infer/amsam_isic?image=x", {"headers": {"Origin": "http://evil.example"}}, 403, "pages of other sites"),
        ("/reload", {}, 404, "Not Found"),
        ("/logs/", {}, 404, "Not Found"),
        ("/session/x", {}, 404, "Not Found"),
        ("/model/amsam_isic", {}, 404, "Not Found"),
        ("/infer/amsam_isic?session_id=x", {}, 404, "keeps no sessions"),
        ("/train/amsam_isic?run_sync=true", {}, 400, "leave run_sync out"),
        ("/infer/amsam_isic?image=x", {"headers": {"Host": "evil.example:8000"}}, 421, "evil.example:8000"),
        ("/proxy/dicom/qido/studies", {}, 404, "the studies are a folder"),
        ("/activelearning/none", {"json": {}}, 404, "no such strategy"),
        ("/train/none", {"json": {}}, 404, "there is no model 'none'"),
        ("/infer/amsam_isic?image=x", {"data": {"params": "[" * 5000}}, 400, "nested too deep"),
        ("/infer/amsam_isic?image=x", {"data": {"params": '{"model": {}}'}}, 422, "entry 'model'"),
        ("/infer/amsam_isic", {"files": {"file": ("x." + "y" * 300, b"x")}}, 400, "cannot be that of a file"),
        ("/infer/amsam_isic", {"files": {"file": ("x.png", b"x"), "label": ("x.bin", b"x")}}, 422, "scribbles are not"),
        ("/batch/infer/amsam_isic", {"json": {"images": 5}}, 422, "entry 'images"),
        ("/batch/infer/none", {"json": {}}, 404, "there is no model 'none'"),
        ("/scoring/none", {"json": {}}, 404, "there is no method 'none'"),
    ],
)
def test_a_wrong_request_gets_a_plain_answer(
    server: Server, path: str, what: dict[str, Any], status: int, text: str
) -> None:
    found, detail = post(server, path, **what)
    assert (found, text in detail) == (status, True), detail
    assert "Traceback" not in detail


@pytest.mark.parametrize(
    "path", ["/ohif/..", "/ohif/%2e%2e", "/ohif/%00", "/static/..%2f..%2fapp.py", "/ohif/" + "x" * 300]
)
def test_a_page_that_is_none_is_no_file_of_this_machine(server: Server, path: str) -> None:
    request = requests.Request("GET", server.address).prepare()
    request.url = server.address + path  # as it is: the library would resolve the dots
    with requests.Session() as session:
        answer = session.send(request, timeout=60)
    assert answer.status_code in (200, 404)
    assert "def " not in answer.text or "<html" in answer.text.lower()


def test_a_batch_on_a_cpu_segments_its_images(server: Server) -> None:
    url = f"{server.address}/batch/infer/amsam_isic"
    body = {"max_batch_size": 2, "device": "cuda", "multi_gpu": True, "gpus": "all", "max_workers": 4}
    answer = requests.post(url, params={"run_sync": True}, json=body, timeout=120)
    kept = {path.stem for path in (server.studies / "labels" / "original").iterdir()}
    assert (answer.status_code, len(answer.json())) == (200, 2), answer.text
    assert kept == answer.json().keys()


def test_what_a_task_does_not_know_does_not_reach_its_process(server: Server) -> None:
    """MONAI Label would import modules from a folder that the client names, and set a variable of the environment."""
    body = {"bundle_path": "/tmp", "gpus": "0; x", "y": "final", "model": "amsam_isic"}
    answer = requests.post(f"{server.address}/scoring/dice", json=body, timeout=60)
    requests.delete(f"{server.address}/scoring/", timeout=60)
    request = answer.json()["request"]
    assert {**request, "gpus": "all"} == {"method": "dice", "y": "final", "gpus": "all"}


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"roi": [1, 2, 3]}, "roi has 3 numbers"),
        ({"roi": "all"}, "expected a list of numbers"),
        ({"roi": [50, 50, 10, 10]}, "is empty or outside"),
        ({"foreground": [[-5, 3]]}, "a point is outside the picture"),
        ({"foreground": [[1]]}, "expected [x, y]"),
        ({"foreground": [["a", "b"]]}, "expected a list of numbers"),
        ({"result_extension": "../../x"}, "result_extension is '../../x'"),
    ],
)
def test_a_wrong_prompt_is_explained(server: Server, params: dict[str, Any], text: str) -> None:
    image = min(path.stem for path in server.studies.iterdir() if path.suffix in (".png", ".jpg"))
    status, detail = post(server, f"/infer/amsam_isic_interactive?image={image}", data={"params": json.dumps(params)})
    assert (status, text in detail) == (422, True), detail


def test_a_corrupt_upload_is_named(server: Server) -> None:
    status, detail = post(server, "/infer/amsam_isic", files={"file": ("broken.jpg", b"\xff\xd8\xff" + bytes(50))})
    assert status == 422
    assert "not an image of a known format or damaged" in detail


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "..\\outside"])
def test_nothing_is_written_outside_the_studies(server: Server, name: str) -> None:
    def files() -> set[Path]:
        return {path for path in server.studies.parent.rglob("*") if path.suffix != ".log"}

    before = files()
    for path, part, query in (("image", "file", {"image": name}), ("label", "label", {"image": name, "tag": "final"})):
        url = f"{server.address}/datastore/{path}"
        answer = requests.put(url, params=query, files={part: ("x.png", b"x")}, timeout=10)
        assert answer.status_code == 400
    assert files() == before


@pytest.mark.parametrize(
    ("file", "image", "text"),
    [
        ("..", None, "the upload ends in ''"),
        ("new.exe", None, "expected one of"),
        ("new.png", ".hidden", "cannot be the name of an image"),
        ("new.png", None, "not an image of a known format or damaged"),
        ("{known}", None, "there is an image '{name}' already"),
    ],
)
def test_an_upload_is_looked_at_before_it_is_kept(server: Server, file: str, image: str | None, text: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in server.studies.parent.rglob("*.*") if path.suffix != ".log"}
    known = min(path for path in server.studies.iterdir() if path.suffix in (".png", ".jpg"))
    files = {"file": (file.format(known=known.name), b"x")}
    answer = requests.put(f"{server.address}/datastore/image", params={"image": image}, files=files, timeout=10)
    after = {path: path.stat().st_mtime_ns for path in server.studies.parent.rglob("*.*") if path.suffix != ".log"}
    assert (answer.status_code, text.format(name=known.stem) in answer.json()["detail"]) == (422, True), answer.text
    assert after == before


def test_a_good_upload_is_an_image_from_then_on(server: Server, drawn: Path) -> None:
    picture = min((drawn / "images").iterdir())
    files = {"file": (picture.name, picture.read_bytes())}
    sent = requests.put(f"{server.address}/datastore/image", params={"image": "sent.in"}, files=files, timeout=10)
    answered, _ = post(server, "/infer/amsam_isic?image=sent.in&output=json")
    kept = (server.studies / f"sent.in{picture.suffix}").read_bytes()
    requests.delete(f"{server.address}/datastore/image", params={"id": "sent.in"}, timeout=10)
    assert (sent.json(), answered, kept) == ({"image": "sent.in"}, 200, picture.read_bytes())


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("x.png", b"x", "not an image of a known format or damaged"),
        ("x.nrrd", b"x", "damaged or not of that format"),
        ("x.nrrd", DETACHED, "field 'data file' is not taken"),
        ("x.exe", b"x", "expected one of .png"),
    ],
)
def test_a_label_is_looked_at_before_it_is_kept(server: Server, name: str, content: bytes, text: str) -> None:
    image = min(path.stem for path in server.studies.iterdir() if path.suffix in (".png", ".jpg"))
    url = f"{server.address}/datastore/label"
    answer = requests.put(url, params={"image": image, "tag": "final"}, files={"label": (name, content)}, timeout=10)
    assert (answer.status_code, text in answer.json()["detail"]) == (422, True), answer.text


def test_no_request_makes_the_server_stumble(server: Server) -> None:
    """Every address that the server offers, with all kinds of rubbish: none is answered with a status of 5xx."""
    paths = requests.get(f"{server.address}/openapi.json", timeout=10).json()["paths"]
    bodies: list[dict[str, Any]] = [
        {},
        {"json": [1, "x"]},
        {"json": {"image": 5, "model": None, "strategy": [], "y": {}, "max_workers": "x"}},
        {"data": {"params": "[]", "info": "[3]", "wsi": "[]"}},
        {"data": {"params": "null", "info": "{}", "wsi": "{"}},
        {"files": dict.fromkeys(("file", "label", "files"), ("x.png", b"rubbish"))},
    ]
    image = min(path.stem for path in server.studies.iterdir() if path.suffix in (".png", ".jpg"))
    stumbled = []
    for path, methods in paths.items():
        names = re.findall(r"{(\w+)}", path)
        for method, body, value in itertools.product(methods, bodies, ("rubbish", image)):
            if method == "delete" and value == image:
                continue
            wanted = [one["name"] for one in methods[method].get("parameters", []) if one["in"] == "query"]
            if path.startswith(("/train", "/scoring", "/batch")):  # runs in the background, if at all
                value = "rubbish"
            url = server.address + path.format(**dict.fromkeys(names, value))
            answer = requests.request(method, url, params=dict.fromkeys(wanted, value), timeout=60, **body)
            if answer.status_code >= 500:
                stumbled.append((method, path, body, value, answer.text[:200]))
    assert len(paths) > 15
    assert stumbled == []


def test_a_huge_body_is_refused(server: Server) -> None:
    request = requests.Request("POST", f"{server.address}/infer/amsam_isic").prepare()
    request.headers["Content-Length"] = str(10**12)  # what it says is enough
    with requests.Session() as session:
        assert session.send(request, timeout=10).status_code == 413


def test_a_body_that_does_not_say_how_huge_it_is_is_cut_off(server: Server) -> None:
    def body() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.png"\r\n\r\n'
        yield from itertools.repeat(bytes(1 << 20), 600)

    form = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = requests.post(f"{server.address}/infer/amsam_isic", data=body(), headers=form, timeout=120)
    assert (answer.status_code, requests.get(f"{server.address}/info/", timeout=10).status_code) == (413, 200)


def test_a_killed_training_leaves_labels_and_model_as_they_were(
    serve: Callable[..., Server], drawn: Path, tmp_path: Path
) -> None:
    studies = tmp_path / "studies"
    shutil.copytree(drawn / "images", studies)
    server = serve(studies, "--models", "amsam_isic", "--base", "tiny-general")
    client = server.client()
    images = sorted(path.stem for path in (drawn / "images").iterdir())[:4]
    for image in images:
        client.save_label(image, str(next((drawn / "masks").glob(f"{image}*"))), "final", {})
    client.train_start("amsam_isic", {})
    assert wait_for_training(client)["status"] == "DONE"
    kept = (studies / ".amsam" / "amsam_isic" / "0001" / "adapter.safetensors").read_bytes()
    answers: list[int] = []
    client.train_start("amsam_isic", {})
    for _ in range(5):  # while it trains
        answers.append(post(server, f"/infer/amsam_isic?image={images[0]}&output=json")[0])
        time.sleep(0.3)
    for process in (server.process, *children(server.process.pid)):
        process.send_signal(signal.SIGKILL)
    server.process.wait()
    server.start()
    info = server.client().info()
    server.stop()
    assert answers == [200] * 5
    assert info["train_stats"]["amsam_isic"]["version"] == 1
    assert info["datastore"]["completed"] == 4
    assert (studies / ".amsam" / "amsam_isic" / "0001" / "adapter.safetensors").read_bytes() == kept


def children(process: int) -> list[Any]:
    import psutil

    return list(psutil.Process(process).children(recursive=True))


def test_eight_clients_at_once_are_all_answered(server: Server) -> None:
    images = sorted(path.stem for path in server.studies.iterdir() if path.suffix in (".png", ".jpg"))
    answers: list[int] = []

    def ask(number: int) -> None:
        for turn in range(4):
            model = ("amsam_isic", "amsam_isic_interactive")[turn % 2]
            params = {"data": {"params": json.dumps({"foreground": [[20, 20]]} if turn % 2 else {})}}
            image = images[(number + turn) % len(images)]
            answers.append(post(server, f"/infer/{model}?image={image}&output=json", **params)[0])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 32
