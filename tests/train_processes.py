"""Real processes of training/train.py, or another script, that start at once: forks of one that has imported everything.

`python tests/train_processes.py` is that process: it reads a command a line, forks, and says the process number. A fork has
its own session, files and environment, and is killed, waited for and judged like any other process.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass
class Result:
    """What a run left, of the first process where there are several."""

    returncode: int
    stdout: str
    stderr: str

    def error(self, script: str, status: int = 2) -> str:
        """The one line that is said of an error."""
        assert self.returncode == status, self.stderr
        assert "Traceback" not in self.stderr
        (line,) = [line for line in self.stderr.splitlines() if line.startswith(f"{script}: error: ")]
        return line


class TrainServer:
    """Starts runs; to be closed at the end. `environment` is that of all of them, from their first instruction on."""

    def __init__(self, **environment: str):
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
            env=os.environ | environment,
        )  # fmt: skip
        self._folder = tempfile.TemporaryDirectory()
        self._count = 0

    def close(self) -> None:
        self._process.communicate()
        self._folder.cleanup()

    def ask(self, **command) -> int:
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self, *arguments, script: str = "train", processes: int = 1, patch: str = "", **environment: str
    ) -> "Run":
        """Starts train.py, `sample` or `evaluate`; `patch` is executed first in each of its processes, which together make one run."""
        together = {}
        if processes > 1:
            with socket.socket() as server:
                server.bind(("127.0.0.1", 0))
                port = server.getsockname()[1]
            together = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}  # fmt: skip
        self._count += 1
        run = Run(self, Path(self._folder.name) / str(self._count), [])
        for rank in range(processes):
            output = run.output(rank)
            output.mkdir(parents=True)
            os.mkfifo(output / "started")
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            pid = self.ask(
                script=script,
                arguments=[str(a) for a in arguments],
                environment=together | ranks | environment,
                output=str(output),
                patch=patch,
            )
            run.pids.append(pid)
        return run

    def run(self, *arguments, **options) -> Result:
        """[`start`], and waits for its end."""
        return self.start(*arguments, **options).wait()


@dataclass
class Run:
    """A run of one or more processes."""

    server: TrainServer
    folder: Path
    pids: list[int]
    codes: dict[int, int] = field(default_factory=dict)

    def output(self, rank: int) -> Path:
        return self.folder / str(rank)

    def signal(self, number: int, rank: int | None = None) -> None:
        """Sends a signal to all processes that still run, or to one."""
        for pid in self.pids if rank is None else [self.pids[rank]]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def end_of(self, rank: int) -> int:
        """Waits for one process; its exit status."""
        if rank not in self.codes:
            self.codes[rank] = self.server.ask(wait=self.pids[rank])
        return self.codes[rank]

    def wait(self) -> Result:
        codes = [self.end_of(rank) for rank in range(len(self.pids))]
        first = self.output(0)
        worst = next((code for code in codes if code), 0)
        return Result(worst, (first / "stdout").read_text(), (first / "stderr").read_text())

    def wait_for(self, file: str) -> None:
        """Waits until a patch of the first process opened `file` (`started`) in its output folder for writing."""
        with (self.output(0) / file).open() as fifo:
            fifo.read()


def serve() -> None:
    """The process that forks."""
    sys.path[:0] = [str(REPOSITORY / "training")]
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import diffusers  # noqa: F401
    import evaluate
    import evaluation.report  # noqa: F401
    import hub_push  # noqa: F401
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    import sample
    import sample_settings  # noqa: F401
    import sklearn.svm  # noqa: F401
    import train
    import training_loop  # noqa: F401

    import ddpm_hub.model_card  # noqa: F401

    for line in sys.stdin:
        command = json.loads(line)
        if "wait" in command:
            _, status = os.waitpid(command["wait"], 0)
            print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            _become(command)
            _exit_as({"train": train, "sample": sample, "evaluate": evaluate}[command["script"]].main, command)
        print(json.dumps(pid), flush=True)


def _become(command: dict) -> None:
    """Gives the fork its own session, files and environment."""
    os.setsid()
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(Path(command["output"]) / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(command["environment"], TRAIN_OUTPUT=command["output"])
    signal.signal(signal.SIGINT, signal.default_int_handler)

    import torch

    torch.set_num_threads(1)


def _exit_as(main, command: dict) -> None:
    """Ends the fork as the script would end."""
    import traceback

    status = 1
    try:
        exec(command["patch"], {"__name__": "patch"})
        status = main(command["arguments"])
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:  # what the interpreter does with it at the end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
