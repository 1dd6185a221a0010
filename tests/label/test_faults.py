"""What a server answers to wrong requests, and what it loses when it is killed: nothing."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.label_server import Server, wait_for_training

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
        ("/infer/amsam_isic?image=x", {"data": {"params": "[1]"}}, 400, "params is not what is expected"),
        ("/infer/amsam_isic?image=x", {"headers": {"Origin": "http://evil.example"}}, 403, "pages of other sites"),
        ("/reload", {}, 404, "restart the server"),
        ("/activelearning/none", {"json": {}}, 404, "no such strategy"),
        ("/train/none", {"json": {}}, 404, "there is no model 'none'"),
        ("/scoring/none", {"json": {}}, 200, ""),
    ],
)
def test_a_wrong_request_gets_a_plain_answer(
    server: Server, path: str, what: dict[str, Any], status: int, text: str
) -> None:
    found, detail = post(server, path, **what)
    assert (found, text in detail) == (status, True), detail
    assert "Traceback" not in detail


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


def test_a_huge_body_is_refused(server: Server) -> None:
    request = requests.Request("POST", f"{server.address}/infer/amsam_isic").prepare()
    request.headers["Content-Length"] = str(10**12)  # what it says is enough
    with requests.Session() as session:
        assert session.send(request, timeout=10).status_code == 413


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


def test_authentication_keeps_strangers_out(serve: Callable[..., Server], drawn: Path, tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    shutil.copytree(drawn / "images", studies)
    switched_on = {"MONAI_LABEL_AUTH_ENABLE": "true", "MONAI_LABEL_AUTH_REALM_URI": "http://127.0.0.1:9/realms/x"}
    server = serve(studies, "--models", "amsam_isic", environment=switched_on)
    try:
        assert requests.get(f"{server.address}/datastore/", timeout=10).status_code == 401
    finally:
        server.stop()
