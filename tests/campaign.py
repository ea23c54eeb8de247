"""What the files `test_stress_*.py` share: how often each fault is tried, and the report of what held.

`make test` runs every campaign in its short form, `make stress` in its long form (`--stress`), where each tries more. What
is tried follows from `--stress-seed`: the same number tries the same.
"""

import importlib.metadata
import platform
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
import pytest

PROPERTY = "reliability"  # of a test's report, which also comes back from the processes of pytest-xdist


@dataclass
class Campaign:
    """One test's view: how much to try, and what to say of it.

    Attributes:
        is_long (`bool`): whether this is `make stress`.
        seed (`int`): `--stress-seed`.
    """

    is_long: bool
    seed: int
    rows: list[dict] = field(default_factory=list)

    def times(self, short: int, long: int) -> int:
        """How often to try: `short` in `make test`, `long` in `make stress`."""
        return long if self.is_long else short

    def chance(self) -> random.Random:
        """Random numbers, the same at each run."""
        return random.Random(self.seed)

    def for_all(self, times: int, **strategies) -> Callable[[Callable], Callable]:
        """Calls the decorated function at once with so many cases that Hypothesis draws, and makes a failing one small."""
        settings = hypothesis.settings(
            max_examples=times,
            deadline=None,
            database=None,
            print_blob=False,
            suppress_health_check=list(hypothesis.HealthCheck),
        )

        def run(function: Callable) -> Callable:
            hypothesis.seed(self.seed)(settings(hypothesis.given(**strategies)(function)))()
            return function

        return run

    def held(self, area: str, tried: str, times: int, what: str) -> None:
        """A row of the report, said once everything in it has been seen to hold.

        Args:
            area (`str`): Training, Hub, Loading, Scheduler and pipeline, or Space.
            tried (`str`): the fault or the input.
            times (`int`): how many of them.
            what (`str`): the promise that held in each.
        """
        self.rows.append({"area": area, "tried": tried, "times": times, "held": what})


@pytest.fixture
def campaign(request, record_property) -> Iterator[Campaign]:
    """How often to try, and where to say what held."""
    options = request.config.option
    found = Campaign(getattr(options, "stress", False), getattr(options, "stress_seed", 0))
    yield found
    for row in found.rows:
        record_property(PROPERTY, row)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("stress")
    group.addoption("--stress", action="store_true", help="the long form of tests/test_stress_*.py")
    group.addoption("--stress-seed", type=int, default=0, metavar="N", help="from which the campaigns draw (default 0)")
    group.addoption("--stress-report", type=Path, metavar="FILE", help="where the table of what held is written")


class Reporter:
    """Collects the rows of all tests, and which tests failed."""

    def __init__(self, path: Path, seed: int):
        self.path, self.seed, self.rows, self.failed = path, seed, [], []
        self.begun = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self.rows += [value for name, value in report.user_properties if name == PROPERTY]
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        packages = (f"{name} {importlib.metadata.version(name)}" for name in ("torch", "diffusers", "huggingface_hub"))
        asked = ["git", "describe", "--always", "--dirty", "--abbrev=7"]
        commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
        rows = sorted(self.rows, key=lambda row: row["area"])  # two processes say them in any order
        lines = [
            f"Seed {self.seed}, commit {commit}, {time.strftime('%Y-%m-%d', time.gmtime())}, Python {platform.python_version()}, "
            f"{', '.join(packages)}; {(time.monotonic() - self.begun) / 60:.1f} minutes.",
            "",
            "| | what was tried | times | what held |",
            "|---|---|---:|---|",
        ]
        lines += [f"| {row['area']} | {row['tried']} | {row['times']:,} | {row['held']} |" for row in rows]
        lines += ["", *(f"**Failed**: `{name}`" for name in self.failed)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    path = getattr(config.option, "stress_report", None)
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Reporter(path, config.option.stress_seed), "stress-report")
