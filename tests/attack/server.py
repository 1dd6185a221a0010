"""The label server, from outside: what pages of other sites, odd clients and received folders try.

It has its own environment and its own tests in ``tests/label``; here stands a case for each thing that went wrong once.
They are tried where ``make label-env`` has made the environment.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.attack.cases import case
from tests.attack.weights import CODE, settings
from tests.attack.world import Skipped, World
from tests.small_bundle import write_picture

GROUP = "label server"
TORCHS_OWN = "torchinductor_"
"""How the folder is called that torch makes for its compiler in the temporary folder; it stays empty."""
PYTHON_VARIABLE = "AMSAM_LABEL_PYTHON"
"""Environment variable: the Python of the label server's environment; that of ``make label-env`` by default."""

_START_SECONDS, _ANSWER_SECONDS = 120, 30
_BOUNDARY = "frontier"


class Served:
    """A running server over the input of a world.

    Args:
        world: Its input holds images.
        log: Where it writes.
        port: Of the loopback interface.
        process: The server.
    """

    def __init__(self, world: World, log: Path, port: int, process: subprocess.Popen[bytes]) -> None:
        self.world, self.log, self.port, self.process = world, log, port, process

    def ask(
        self, method: str, path: str, body: bytes = b"", seconds: float = _ANSWER_SECONDS, **headers: str
    ) -> tuple[int, bytes]:
        """Status and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def put_file(self, path: str, part: str, name: str, content: bytes) -> tuple[int, bytes]:
        """Upload a file as a form."""
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{part}"; filename="{name}"\r\n\r\n'.encode()
        body = head + content + f"\r\n--{_BOUNDARY}--\r\n".encode()
        return self.ask("PUT", path, body, Content_Type=f"multipart/form-data; boundary={_BOUNDARY}")


@contextmanager
def served(world: World, *words: str) -> Iterator[Served]:
    """A server; it is ended, and must have written no traceback.

    Raises:
        Skipped: There is no environment for it.
    """
    python, port, log = _python(), _free_port(), world.root.parent / f"server-{time.monotonic_ns()}.log"
    code = "import sys; from amsam_med.cli import main; sys.exit(main(sys.argv[1:]))"
    given = ["label", "--studies", str(world.input), "--port", str(port), "--models", "amsam_isic", "--device", "cpu"]
    top = str(Path(__file__).resolve().parents[2])
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [python, "-c", code, *given, *words],
            env={**world.environment(), "PYTHONPATH": top, "OMP_NUM_THREADS": "1"},
            cwd=world.cwd,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    server = Served(world, log, port, process)
    try:
        _wait(server)
        yield server
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert "Traceback" not in log.read_text(errors="replace"), log.read_text(errors="replace")[-1500:]


def _python() -> str:
    if importlib.util.find_spec("monailabel"):
        return sys.executable
    top = Path(__file__).resolve().parents[2]
    path = Path(os.environ.get(PYTHON_VARIABLE) or top / ".venv-label" / "bin" / "python")
    if not path.exists():
        raise Skipped(f"no environment of the label server: make label-env, or name its Python in {PYTHON_VARIABLE}")
    return str(path)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait(server: Served) -> None:
    until = time.monotonic() + _START_SECONDS
    while True:
        try:
            if server.ask("GET", "/info/", seconds=5)[0] == 200:
                return
        except OSError:
            pass
        log = server.log.read_text(errors="replace")[-1500:]
        assert server.process.poll() is None, f"the server has ended:\n{log}"
        assert time.monotonic() < until, f"the server does not answer:\n{log}"
        time.sleep(0.3)


def _server_case(name: str) -> Callable[[Callable[[Served], None]], None]:
    """Write down what is tried of a running server over two pictures."""

    def write_down(attempt: Callable[[Served], None]) -> None:
        @case(GROUP, name)
        def tried(world: World) -> None:
            for number in range(2):
                write_picture(world.input / f"{number}.png", number)
            _ = world.before
            with served(world) as server:
                attempt(server)
                assert server.ask("GET", "/info/")[0] == 200, "it does not answer any more"
            # All but the studies, where labels and models are kept; a training that was killed keeps its own folder.
            changed = [path for path in world.changes() if not path.startswith(("in", f"tmp/{TORCHS_OWN}"))]
            assert not changed, f"written outside of the studies: {changed[:5]}"

    return write_down


@_server_case("H2 requests of other hosts and of pages of other sites")
def _foreign(server: Served) -> None:
    for method, path in (("GET", "/info/"), ("GET", "/datastore/?output=all"), ("DELETE", "/datastore/?id=0")):
        assert server.ask(method, path, Host="evil.example")[0] in (400, 403, 421), f"{method} by another host"
        assert server.ask(method, path, Origin="http://evil.example")[0] == 403, f"{method} of another site"
    assert (server.world.input / "0.png").is_file()


@_server_case("H1 labels whose data lie in other files")
def _detached(server: Served) -> None:
    for place in ("/proc/self/fd/7", "/etc/passwd", "LIST\n/etc/passwd"):
        header = f"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 9 9\nencoding: raw\ndata file: {place}\n\n".encode()
        status, said = server.put_file("/datastore/label?image=0&tag=final", "label", "x.nrrd", header)
        assert 400 <= status < 500, said


@_server_case("M12 a batch of all images")
def _batch(server: Served) -> None:
    status, said = server.ask("POST", "/batch/infer/amsam_isic", b"{}", Content_Type="application/json")
    assert status < 500, said


@_server_case("Low identifiers of 400 letters, and ways out of the folder")
def _identifiers(server: Served) -> None:
    for name in ("x" * 400, "../../precious/results", "%2Fetc%2Fpasswd", "..%5C..%5Cx", "a%00b", "%ff"):
        for method, path in (
            ("POST", f"/infer/amsam_isic?image={name}"),
            ("GET", f"/datastore/image?image={name}"),
            ("DELETE", f"/datastore/?id={name}"),
        ):
            status, said = server.ask(method, path)
            assert 400 <= status < 500, f"{method} {path[:60]}: {status} {said[:200]!r}"
    for body in (b"{", b"[" * 100_000, b"\xff"):
        status, said = server.ask("POST", "/train/amsam_isic", body, Content_Type="application/json")
        assert 400 <= status < 500, f"{body[:30]!r}: {status} {said[:200]!r}"


@case(GROUP, "C1 a received folder with an adapter of code among its versions")
def _received(world: World) -> None:
    write_picture(world.input / "a.png")
    run = world.input / ".amsam" / "amsam_isic" / "0001"
    run.mkdir(parents=True)
    evil = settings(rank=f"{CODE} or 4")(world.kit.adapter.read_bytes())
    facts = {"number": 1, "adapter": "0001/adapter.safetensors", "d2_dice": 0.9, "replaced_dice": 0.8}
    facts |= {"examples": 4, "seconds": 7.5}
    (run / "adapter.safetensors").write_bytes(evil)
    for path in (run / "version.json", run.parent / "current.json"):
        path.write_text(json.dumps(facts))
    _ = world.before
    try:
        with served(world) as server:
            server.ask("POST", "/infer/amsam_isic?image=a", b"", seconds=60)
    except AssertionError as error:
        if "the server has ended" not in str(error) or "Traceback" in str(error):
            raise
    assert not list(world.root.rglob("PROOF")), "code from the folder has run"


@case(GROUP, "kill -9, and again")
def _killed(world: World) -> None:
    for number in range(2):
        write_picture(world.input / f"{number}.png", number)
    _ = world.before
    with served(world) as server:
        server.process.kill()
        server.process.wait()
    with served(world) as server:
        assert server.ask("GET", "/datastore/?output=all")[0] == 200
    left = [path.name for path in world.tmp.iterdir() if not path.name.startswith(TORCHS_OWN)]
    assert not left, "the temporary files of the killed one are still there"
