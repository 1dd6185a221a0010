"""How does the MONAI Label server bear eight clients at once? `amsam label` on real images, asked for two minutes.

    .venv-label/bin/python -m benchmarks.label_load --data DATA [--seconds 120] [--clients 8]

Each client asks for a mask without a prompt, then clicks on the same picture twice, and goes on to the next picture.
After a third of the time four images are labelled and a training is started, as a person would. Printed are the median
and the 95th percentile of the answers before and during the training, what went wrong, and the server's memory
(``VmRSS`` of ``/proc``, so Linux only) after ten seconds and at the end. The last line is the ratio of the medians.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import requests

from amsam_med.data.datalists import open_datalist
from pipelines.monailabel.process import Server, wait_for_training

WARM_SECONDS, ANSWER_SECONDS = 10.0, 60.0
LABELS = 4
NO_ANSWER = 0
"""Status of a request that was refused, cut off or not answered in time."""
MODEL, CLICKS = "amsam_isic", "amsam_isic_interactive"


class Answer(NamedTuple):
    """One request.

    Attributes:
        kind: ``"mask"``, ``"first click"`` or ``"next click"``.
        start: Seconds of the monotonic clock.
        seconds: Until the answer was here.
        status: Of HTTP, or :data:`NO_ANSWER`.
    """

    kind: str
    start: float
    seconds: float
    status: int


@click.command(context_settings={"show_default": True})
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True, file_okay=False), envvar="AMSAM_DATA", required=True
)
@click.option("--seconds", type=click.IntRange(30), default=120)
@click.option("--clients", type=click.IntRange(1), default=8)
@click.option("--images", type=click.IntRange(LABELS + 1), default=40, help="Of isic2018/val.")
def main(data: Path, seconds: int, clients: int, images: int) -> None:
    """Print latencies, errors and memory."""
    items = open_datalist(data / "isic2018", "val")[:images]
    with tempfile.TemporaryDirectory() as scratch:
        studies = Path(scratch) / "studies"
        studies.mkdir()
        for item in items:
            shutil.copy(item["image"], studies)
        server = Server(studies, "--models", MODEL)
        try:
            answers, training, memory = _run(server, items, seconds, clients)
        finally:
            server.stop()
    _report(answers, training, memory, clients)


def _run(
    server: Server, items: Sequence[dict[str, str]], seconds: int, clients: int
) -> tuple[list[Answer], tuple[float, float], tuple[float, float]]:
    """All answers, when the training began and ended, and the memory in MB after the start and at the end."""
    answers: list[Answer] = []
    until = time.monotonic() + seconds
    names = [Path(item["image"]).stem for item in items]
    places = [client * len(names) // clients for client in range(clients)]  # no two at one picture
    threads = [
        threading.Thread(target=_ask, args=(server, names[place:] + names[:place], until, answers)) for place in places
    ]
    for thread in threads:
        thread.start()
    time.sleep(WARM_SECONDS)
    warm = _resident(server.process.pid)
    time.sleep(max(0.0, seconds / 3 - WARM_SECONDS))
    began, ended = _train(server.client(), items[:LABELS])
    for thread in threads:
        thread.join()
    return answers, (began, ended), (warm, _resident(server.process.pid))


def _ask(server: Server, names: Sequence[str], until: float, answers: list[Answer]) -> None:
    """A client: a mask, two clicks, the next picture."""
    while True:
        for name in names:
            for kind, model, prompt in (
                ("mask", MODEL, {}),
                ("first click", CLICKS, {"foreground": [[200, 150]]}),
                ("next click", CLICKS, {"foreground": [[200, 150]], "background": [[5, 5]]}),
            ):
                start = time.monotonic()
                if start >= until:
                    return
                try:
                    status = requests.post(
                        f"{server.address}/infer/{model}",
                        params={"image": name, "output": "image"},
                        data={"params": json.dumps(prompt)},
                        timeout=ANSWER_SECONDS,
                    ).status_code
                except requests.RequestException:
                    status = NO_ANSWER
                answers.append(Answer(kind, start, time.monotonic() - start, status))


def _train(client: Any, items: Sequence[dict[str, str]]) -> tuple[float, float]:
    """Label, train, and wait for the end; when both were."""
    for item in items:
        client.save_label(Path(item["image"]).stem, item["label"], "final", {})
    began = time.monotonic()
    client.train_start(MODEL, {})
    status = wait_for_training(client)["status"]
    ended = time.monotonic()
    print(f"training: {status} after {ended - began:.0f} s")
    return began, ended


def _report(
    answers: Sequence[Answer], training: tuple[float, float], memory: tuple[float, float], clients: int
) -> None:
    began, ended = training
    before = [one for one in answers if one.start < began]
    during = [one for one in answers if began <= one.start < ended]
    errors = sum(one.status != 200 for one in answers)
    lost = sum(one.status == NO_ANSWER for one in answers)
    print(f"{len(answers)} requests of {clients} clients; {errors} errors, {lost} of them without an answer")
    for kind in ("mask", "first click", "next click"):
        print(f"{kind}: {_latency(before, kind)}; during the training {_latency(during, kind)}")
    print(f"memory of the server: {memory[0]:.0f} MB after {WARM_SECONDS:.0f} s, {memory[1]:.0f} MB at the end")
    medians = [statistics.median(one.seconds for one in some) for some in (during, before)]
    print(f"ratio of the medians, during the training to before: {medians[0] / medians[1]:.2f}")


def _latency(answers: Sequence[Answer], kind: str) -> str:
    times = [1000 * one.seconds for one in answers if one.kind == kind]
    if len(times) < 2:
        return f"{len(times)} answers"
    return f"median {statistics.median(times):.0f} ms, 95 % within {statistics.quantiles(times, n=20)[-1]:.0f} ms"


def _resident(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


if __name__ == "__main__":
    main()
