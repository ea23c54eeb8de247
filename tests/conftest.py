"""Shared parts of the tests: tiny real networks, and processes that are started as a user starts them."""

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

# Before anything is imported that looks them up. Tiny networks gain nothing from a second thread, and lose much where other
# tests use the cores; the processes that tests start inherit it. Tests leave the user's caches alone.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="ddpm_hub_tests_")
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
# A shell without job control starts what it puts into the background with Ctrl-C ignored, and Python then leaves it so.
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
from campaign import campaign, pytest_addoption, pytest_configure  # noqa: F401 - pytest finds them here
from diffusers import UNet2DModel
from filelock import FileLock
from train_processes import TrainServer

from ddpm_hub import DDPMHubPipeline, DDPMHubScheduler

REPOSITORY = Path(__file__).resolve().parent.parent


def make_unet(channels: int = 1, num_class_embeds: int | None = 4, size=8) -> UNet2DModel:
    """A real U-Net of two levels and random weights, the same ones at each call."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        num_class_embeds=num_class_embeds,
    ).eval()


def make_pipeline(**kwargs) -> DDPMHubPipeline:
    """A pipeline around [`make_unet`] with three classes."""
    names = {0: "zero", 1: "one", 2: "two"} if kwargs.get("num_class_embeds", 4) else None
    pipeline = DDPMHubPipeline(make_unet(**kwargs), DDPMHubScheduler(timestep_spacing="trailing"), id2label=names)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs this interpreter in a fresh process, in the repository's folder."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no process of `make test` is left with one at the end."""
    first = ["test_train", "test_training_survives"]
    items.sort(key=lambda item: first.index(item.path.stem) if item.path.stem in first else len(first))


@pytest.fixture(scope="session")
def default_run(tmp_path_factory, worker_id) -> Path:
    """The output folder of the default training run, started as `make train` starts it; all processes of pytest share it."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    folder = shared / "digits"
    with FileLock(shared / "digits.lock"):
        if not (folder / "stdout.txt").exists():
            command = Path(sys.executable).with_name("accelerate")
            result = run_python(str(command), "launch", "training/train.py", "--output_dir", str(folder))
            assert result.returncode == 0, result.stderr
            (folder / "stdout.txt").write_text(result.stdout, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def trains() -> Iterator[TrainServer]:
    """Starts runs of train.py, in processes of their own."""
    server = TrainServer()
    yield server
    server.close()


@pytest.fixture(scope="module")  # while it is open, the process has a running event loop
def browser():
    """The system's Chromium or Chrome, else Playwright's own; where none is found, the tests fail."""
    from playwright.sync_api import sync_playwright

    flags = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
    system = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=system, args=[*flags.split(), "--disable-component-update"]
        )
        yield browser
        browser.close()


@pytest.fixture
def quiet_schedule():
    """For schedules that are short on purpose: silences the scheduler's warning about ᾱ_T, and no other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="ᾱ_T = ")
        yield
