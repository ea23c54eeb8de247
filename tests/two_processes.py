"""Runs a script in two processes that torch.distributed joins."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY


def agrees_in_two_processes(script: str, folder: Path) -> None:
    """The script is run by two ranks on this machine, and must end with the line "agrees" in both.

    Args:
        script: Python; it finds the modules of `training/`, and calls `init_process_group` itself.
        folder: an empty one, for the file.
    """
    file = folder / "script.py"
    file.write_text(script, encoding="utf-8")
    port = 20000 + os.getpid() % 20000
    processes = [
        subprocess.Popen(
            [sys.executable, str(file)], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                              "PYTHONPATH": str(REPOSITORY / "training")},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for process in processes:
            out, err = process.communicate(timeout=120)
            assert out.splitlines()[-1:] == ["agrees"], err  # Gloo of torch 2.8 has a line of its own
    finally:
        for process in processes:
            process.kill()
