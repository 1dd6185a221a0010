"""`amsam label` in a separate process, for tests, benchmarks and the pictures of the documentation."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from pathlib import Path
from typing import Any

START_SECONDS = 120
_RUN = "import sys; from amsam_med.cli import main; sys.exit(main(sys.argv[1:]))"


class Server:
    """A running ``amsam label``.

    Args:
        studies: Its folder, or a DICOMweb server's address.
        options: Of the command line.
        environment: Variables besides those of this process.
        log: File for its output; beside the folder by default.

    Attributes:
        studies: Its folder.
        address: Where it answers.
        log: Where it writes.
        process: The process.

    Raises:
        RuntimeError: It does not start.
    """

    def __init__(
        self, studies: Path | str, *options: str, environment: dict[str, str] | None = None, log: Path | None = None
    ) -> None:
        self.studies, self._options, self._environment = Path(studies), options, environment or {}
        self._given = str(studies)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self.log = log or self.studies.parent / f"{self.studies.name}.log"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        words = [sys.executable, "-c", _RUN, "label", "--studies", self._given, *self._options]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(  # noqa: S603  # a fixed list of words, no shell
                [*words, "--port", str(self._port)], stdout=log, stderr=log, env={**os.environ, **self._environment}
            )
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.kill()
                raise RuntimeError(f"the server does not start:\n{self.log.read_text()}")
            time.sleep(0.2)

    def stop(self) -> None:
        """End it as a service manager does."""
        self.process.terminate()
        self.process.wait(timeout=30)

    def client(self) -> Any:
        """MONAI Label's own client."""
        from amsam_med.label.server import import_monailabel

        import_monailabel()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the client's, of the module cgi
            from monailabel.client import MONAILabelClient

        return MONAILabelClient(self.address, tmpdir=str(self.log.parent))

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/info/", timeout=2) as answer:  # noqa: S310  # our own server on this machine
                return bool(answer.status == 200)
        except OSError as error:
            return getattr(error, "code", None) == 401  # it asks who we are


def wait_for_training(client: Any, seconds: float = 240) -> dict[str, Any]:
    """The status of the last training, once it is over.

    Raises:
        TimeoutError: It takes longer than ``seconds``.
    """
    until = time.monotonic() + seconds
    while (status := client.train_status())["status"] in ("SUBMITTED", "RUNNING"):
        if time.monotonic() > until:
            raise TimeoutError(f"the training does not end within {seconds} s")
        time.sleep(0.5)
    return dict(status)
