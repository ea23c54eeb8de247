"""Long computations in pieces that are kept: shared by the processes, and continued after an interruption.

A stage is a list of units. What each gives is a file of tensors, whole or not there, in a folder that is named by all that the
stage depends on; so nothing is computed twice, and nothing of other settings is taken for one's own.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from durable_files import PARTIAL, write_tensors
from launched_script import from_main_process, in_turns, wait_for_all


@dataclass(frozen=True)
class Stage:
    """Attributes:
    name (`str`): of its folder and its progress bar.
    facts (`dict`): all that its results depend on, for JSON.
    units (`int`): how many pieces there are.
    compute (`Callable[[int], dict[str, torch.Tensor]]`): what unit i gives; it depends on i alone.
    size (`Callable[[int], int]`): how many items unit i has, for the bar.
    """

    name: str
    facts: dict
    units: int
    compute: Callable[[int], dict[str, torch.Tensor]]
    size: Callable[[int], int] = lambda unit: 1


class Work:
    """The folder of all stages.

    Args:
        folder (`Path`): where the results are kept, seen by all processes.
        state (`accelerate.PartialState`): of the processes that share the work.
    """

    def __init__(self, folder: Path, state):
        self._folder, self._state = folder, state

    @property
    def is_main(self) -> bool:
        return self._state.is_main_process

    def from_main(self, make: Callable[[], object]):
        """What `make` returns in the main process, in all of them."""
        return from_main_process(self._state, make)

    def run(self, stage: Stage) -> "Results":
        """Computes what is missing, in all processes together; to be called by each."""
        from tqdm.auto import tqdm

        results = Results(self._folder / f"{stage.name}-{digest(stage.facts)}", stage.units)
        missing = self.from_main(lambda: results.prepare(stage.facts))
        sizes = [stage.size(unit) for unit in range(stage.units)]
        done = sum(sizes) - sum(sizes[unit] for unit in missing)
        shown = self._state.is_main_process and bool(missing)
        with tqdm(total=sum(sizes), initial=done, desc=stage.name.replace("_", " "), disable=not shown) as bar:
            for unit in in_turns(missing, self._state, bar, lambda unit: sizes[unit]):
                tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in stage.compute(unit).items()}
                write_tensors(results.path(unit), tensors, {"sha256": content_hash(tensors)})
        wait_for_all(self._state)
        return results


class Results:
    """The files of a stage that is done."""

    def __init__(self, folder: Path, units: int):
        self._folder, self._units = folder, units

    def path(self, unit: int) -> Path:
        return self._folder / f"{unit:06d}.safetensors"

    def prepare(self, facts: dict) -> list[int]:
        """Makes the folder, with the facts in it; the units that are missing."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob(f"*{PARTIAL}"):  # by killed processes
            left.unlink()
        (self._folder / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return [unit for unit in range(self._units) if read_checked(self.path(unit), {}) is None]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        from safetensors.torch import load_file

        return (load_file(self.path(unit)) for unit in range(self._units))  # they were checked

    def joined(self, *names: str) -> list[torch.Tensor]:
        """Each of these tensors, of all units one after another."""
        parts = [[tensors[name] for name in names] for tensors in self]
        return [torch.cat(pieces) for pieces in zip(*parts, strict=True)]


def content_hash(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of the tensors, with their names."""
    hashed = hashlib.sha256()
    for name in sorted(tensors):
        hashed.update(name.encode())
        hashed.update(tensors[name].detach().cpu().contiguous().numpy())
    return hashed.hexdigest()


def read_checked(path: Path, metadata: dict[str, str]) -> dict[str, torch.Tensor] | None:
    """The tensors of a file, if they are those that were written with this metadata; `None`, with a message, if it is damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        reason = None if said == metadata | {"sha256": content_hash(tensors)} else "its hash differs"
    except (SafetensorError, OSError) as error:
        reason = str(error)
    if reason is None:
        return tensors
    print(f"{path} is damaged ({reason}); it is computed again.", file=sys.stderr, flush=True)
    return None


def digest(facts: dict) -> str:
    """A short name for facts that JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, after one that warms up."""
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun
