"""Clients of the stand-in for the Hub: processes of their own, in which lines are run, and which must not leak a token."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import REPOSITORY
from hub_server import HubServer

# Lines arrive on the standard input and answers leave by what was the standard output; all else is written to a log.
# Waiting between attempts is left out, in huggingface_hub and here. One thread, so that processes round alike.
WORKER = """
import json, os, sys, time, traceback

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ddpm_hub":
            raise ImportError("ddpm_hub is not installed here")

def outcome(function, *arguments, **options):
    try:
        return str(function(*arguments, **options))
    except Exception as error:
        chain, texts = error, []
        while chain is not None:
            texts.append(f"{type(chain).__name__}: {chain}")
            chain = chain.__cause__ or chain.__context__
        shown["texts"] += texts
        return texts[0]

def pixels(pipeline, **options):
    options.setdefault("num_inference_steps", 4)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(batch_size=2, generator=generators, output_type="np", **options).images.tolist()

if sys.argv[1] == "absent":
    sys.meta_path.insert(0, Absent())
time.sleep = lambda seconds: None
answers_to = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
import torch
shown = {"texts": []}
names = {"outcome": outcome, "shown": shown, "pixels": pixels, "torch": torch}
for line in sys.stdin:
    asked = json.loads(line)
    os.environ["HF_TOKEN"] = asked["token"]
    shown["texts"], reply = [], {}
    names |= asked["values"] | {"answer": None}
    try:
        exec(asked["lines"], names)
        reply["answer"] = names["answer"]
    except BaseException:
        reply["error"] = traceback.format_exc()
    print(json.dumps(reply | shown), file=answers_to, flush=True)
"""


class Client:
    """A Python process that knows one Hub; lines run in it one after another, and keep their names.

    At the end of its block no token is in what it printed, answered, raised, left in its folder, or published.

    Args:
        hub (`HubServer`): the Hub.
        folder (`Path`): where its cache lies, empty for a first visit, and whatever else it writes.
        package (`bool`): whether `ddpm_hub` can be imported.
        token (`str`, *optional*): HF_TOKEN, where [`run`] is given none.
    """

    def __init__(self, hub: HubServer, folder: Path, token: str = "", package: bool = True, **environment: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.hub, self.folder, self.token = hub, folder, token
        self.answers: list[str] = []
        self.errors = (folder / "stderr.txt").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, "present" if package else "absent"],
            cwd=REPOSITORY,
            env=os.environ | hub.environment(token, folder / "home") | {"OMP_NUM_THREADS": "1"} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def run(self, lines: str, token: str | None = None, **values: Any) -> Any:
        """Runs lines, with the values as names, and returns what they call `answer`."""
        asked = {"lines": lines, "token": self.token if token is None else token, "values": values}
        self.process.stdin.write(json.dumps(asked, default=str) + "\n")
        self.process.stdin.flush()
        text = self.process.stdout.readline()
        self.answers.append(text)
        if not text:
            raise EOFError(f"the client has ended:\n{self.printed()}")
        reply = json.loads(text)
        assert "error" not in reply, reply["error"]
        return reply["answer"]

    def printed(self) -> str:
        return (self.folder / "stderr.txt").read_text(encoding="utf-8")

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind, *exception) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()
        self.errors.close()
        if kind is None:
            check_no_token(self.hub, self.folder, "\n".join(self.answers))


def check_no_token(hub: HubServer, folder: Path, *texts: str) -> None:
    """No token of the Hub's is in the files of a folder, in texts, or in what is published."""
    places = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    places |= {f"text {number}": text.encode() for number, text in enumerate(texts)}
    for (_, repo_id), repository in hub.repos.items():
        for commit in repository.commits:
            places |= {f"{repo_id} {commit.id} {path}": content for path, content in commit.files.items()}
            places[f"{repo_id} {commit.id}"] = f"{commit.title}\n{commit.message}".encode()
        places[f"{repo_id} variables"] = json.dumps(repository.variables).encode()
    leaks = [place for place, content in places.items() for token in hub.tokens if token.encode() in content]
    assert leaks == []
