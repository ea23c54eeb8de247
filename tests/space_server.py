"""The demo as its visitors meet it: `python space/app.py` in a process of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from conftest import REPOSITORY

START_SECONDS = 120
STOP_SECONDS = 30
IDLE_SECONDS = 15


class SpaceServer:
    """Serves models from the beginning of a `with` statement, where it answers already, to its end.

    Args:
        models: the folders of models, or their names on the Hub, the first one first.
        folder (`Path`): for its log and for the files of its visitors; it need not exist.
        environment: further variables of its environment.

    Attributes:
        url (`str`): its address, which ends in a slash.
        log (`Path`): the file that it writes what it says to.
        temporary (`Path`): the folder of uploads and results.
        process (`subprocess.Popen`): the process itself.
    """

    def __init__(self, models: Sequence[Path | str], folder: Path, **environment: str):
        self.log, self.temporary = folder / "log.txt", folder / "gradio"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}/"
        self._environment = environment | {
            "DDPM_HUB_MODEL": ",".join(map(str, models)),
            "GRADIO_SERVER_PORT": str(self._port),
            "GRADIO_SERVER_NAME": "127.0.0.1",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": str(self.temporary),
            "CUDA_VISIBLE_DEVICES": "",
        }

    def __enter__(self) -> "SpaceServer":
        self.temporary.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "space/app.py"],
                cwd=REPOSITORY,
                env=os.environ | self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.1)
            if self.process.poll() is not None or time.monotonic() > deadline:
                self._stop()
                raise AssertionError(f"space/app.py does not serve:\n{self.said}")
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
            return True
        return False

    def _stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    @property
    def said(self) -> str:
        """Its log so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def assert_no_traceback(self) -> None:
        """Fails if anything went wrong that nobody expected."""
        assert "Traceback" not in self.said, self.said

    def becomes_idle(self) -> bool:
        """Whether it stops computing soon."""
        process, deadline = psutil.Process(self.process.pid), time.monotonic() + IDLE_SECONDS
        while time.monotonic() < deadline:
            if process.cpu_percent(interval=0.5) < 25:
                return True
        return False
