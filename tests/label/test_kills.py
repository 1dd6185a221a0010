"""A server that is killed at any moment: what it has confirmed is there when it starts again, and nothing by half.

``AMSAM_KILLS`` says how often it is killed; four times by default.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import psutil
import pytest
import requests

from amsam_med.data.readers import image_size, read_mask
from amsam_med.label.index import INDEX, read_index
from pipelines.monailabel.process import Server

KILLS = int(os.environ.get("AMSAM_KILLS", "4"))

pytestmark = pytest.mark.timeout(300 + 150 * KILLS)


class Busy(threading.Thread):
    """A client that uploads images and labels until nobody answers.

    Attributes:
        images: Names of images of which the server has said that they are kept.
        labelled: Of which it has said so of a label.
    """

    def __init__(self, server: Server, picture: bytes, mask: bytes, start: int) -> None:
        super().__init__()
        self.server, self.picture, self.mask, self.number = server, picture, mask, start
        self.images: list[str] = []
        self.labelled: list[str] = []

    def run(self) -> None:
        address = f"{self.server.address}/datastore"
        try:
            while True:
                name, self.number = f"sent{self.number}", self.number + 1
                for path, query, files, kept in (
                    ("image", {"image": name}, {"file": ("x.png", self.picture)}, self.images),
                    ("label", {"image": name, "tag": "final"}, {"label": ("x.png", self.mask)}, self.labelled),
                ):
                    answer = requests.put(f"{address}/{path}", params=query, files=files, timeout=60)
                    if answer.status_code == 200:
                        kept.append(name)
        except requests.RequestException:
            pass


def kill(server: Server) -> None:
    """As a machine does that has no memory left: the server and what it has started."""
    for process in (server.process, *psutil.Process(server.process.pid).children(recursive=True)):
        process.send_signal(signal.SIGKILL)
    server.process.wait()


def test_a_server_that_is_killed_has_kept_what_it_confirmed(
    serve: Callable[..., Server], drawn: Path, tmp_path: Path
) -> None:
    studies, pictures = tmp_path / "studies", sorted((drawn / "images").iterdir())
    studies.mkdir()
    shutil.copy(pictures[0], studies / f"first{pictures[0].suffix}")
    mask = next((drawn / "masks").glob(f"{pictures[0].stem}*"))
    png = tmp_path / "x.png"
    PIL.Image.open(pictures[0]).save(png)
    moments, images, labelled = random.Random(7), ["first"], []
    server = serve(studies, "--models", "amsam_isic", "--base", "tiny-general")
    for turn in range(KILLS):
        busy = Busy(server, png.read_bytes(), mask.read_bytes(), 1000 * turn)
        busy.start()
        if turn % 2:  # with two labels there is something to train on
            requests.post(f"{server.address}/train/amsam_isic", json={}, timeout=60)
        time.sleep(moments.uniform(0.1, 1.5) if not turn % 2 else moments.uniform(2, 20))
        kill(server)
        busy.join()
        images, labelled = images + busy.images, labelled + busy.labelled
        index = read_index(studies / INDEX)  # whole
        server.start()
        status = requests.get(f"{server.address}/datastore/?output=all", timeout=60).json()["objects"]
        info = requests.get(f"{server.address}/info/", timeout=60).json()
        assert set(images) <= status.keys(), turn
        assert {name for name in labelled if "final" not in status[name]["labels"]} == set()
        assert set(index.objects) <= status.keys()
        for version in info["train_stats"]["amsam_isic"]["versions"]:
            assert (studies / ".amsam" / "amsam_isic" / f"{version['number']:04d}" / "adapter.safetensors").is_file()
    server.stop()
    listed = [path for path in studies.iterdir() if path.suffix == ".png" and not path.name.startswith(".")]
    assert all(image_size(path) == image_size(png) for path in listed)
    kept = [path for path in (studies / "labels" / "final").iterdir() if not path.name.startswith(".")]
    assert all(read_mask(path).shape == image_size(png) for path in kept)
    assert len(listed) > KILLS


def test_a_server_that_is_told_to_end_leaves_no_temporary_files(
    serve: Callable[..., Server], drawn: Path, tmp_path: Path
) -> None:
    shutil.copytree(drawn / "images", tmp_path / "studies")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    server = serve(tmp_path / "studies", "--models", "amsam_isic", environment={"TMPDIR": str(temporary)})
    assert list(temporary.iterdir())
    server.stop()
    assert server.process.returncode == 128 + signal.SIGTERM
    assert not list(temporary.iterdir())
