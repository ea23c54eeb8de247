"""What test_stress_training.py does to runs and their files (patches, a C library, disks, damage), and with what it compares."""

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from image_sets import picture
from train_processes import Result, Run, TrainServer
from train_runs import AT_STEP, BUSY, assert_same

# A checkpoint takes 4 MB. Importance sampling begins within these few steps.
RUN = [*BUSY, "--block_out_channels", "[16,32]", "--max_train_steps", "14", "--checkpoint_every", "3", "--sample_every", "0",
       "--validation_every", "5", "--ema_snapshot_every", "6", "--num_train_timesteps", "6", "--beta_end", "0.98"]  # fmt: skip

# A patch that counts three kinds of moments in one process: changes and syncs of the disk, tensors that are written, and
# layers of the network that are computed. At a chosen one of them the process is sent a signal. It notes how many there were
# in all, and that it has met the other processes.
MOMENTS = """
import json, os, signal, sys
import durable_files, torch, train

counts = dict.fromkeys(("disk", "tensors", "layers"), 0)
fsync, pieces, run, meet = os.fsync, durable_files._tensor_pieces, train.run, train.make_accelerator
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")

def reach(kind):
    counts[kind] += 1
    if kind == {kind!r} and counts[kind] == {moment} and os.environ.get("RANK", "0") == "{rank}":
        os.kill(os.getpid(), {number})

def audit(event, arguments):
    if event in CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
        reach("disk")

def counted_fsync(file):
    reach("disk")
    fsync(file)

def counted_pieces(tensor):
    reach("tensors")
    yield from pieces(tensor)

def told_run(*arguments):
    status = run(*arguments)
    with open(os.environ["TRAIN_OUTPUT"] + "/moments", "w") as file:
        json.dump(counts, file)
    return status

def told_meet(*arguments):
    accelerator = meet(*arguments)
    open(os.environ["TRAIN_OUTPUT"] + "/met", "w").close()
    return accelerator

sys.addaudithook(audit)
os.fsync, durable_files._tensor_pieces, train.run, train.make_accelerator = counted_fsync, counted_pieces, told_run, told_meet
torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: reach("layers"))
"""


def at_moment(kind: str, moment: int, number: int, rank: int = 0) -> str:
    """Process `rank` is sent a signal at its `moment`-th moment of a kind, `disk`, `tensors` or `layers`; at 0, none."""
    return MOMENTS.format(kind=kind, moment=moment, number=int(number), rank=rank)


# The clock of a process goes back by `seconds_back`. What is preloaded takes the place of the C library's own.
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

long long seconds_back = 0;

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec -= seconds_back;
    return status;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    int status = clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return status;
}

time_t time(time_t *place) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (place) *place = precise.tv_sec;
    return precise.tv_sec;
}
"""


def clock_library(folder: Path) -> Path:
    """[`CLOCK`], compiled in the folder, for `LD_PRELOAD`."""
    (folder / "clock.c").write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "clock.so", folder / "clock.c", "-ldl"], check=True)
    return folder / "clock.so"


# A patch that sets the clock back by days at once, and by thirty more once a step is reached.
GOES_BACK = """
import ctypes
seconds_back = ctypes.c_longlong.in_dll(ctypes.CDLL(None), "seconds_back")
seconds_back.value = {days} * 86400
""" + AT_STEP.format(step=9, rank=0, act="seconds_back.value += 30 * 86400")

# A patch that spoils a number of one process's share of a batch.
SPOILT = """
import os, random_batches
batch_noise = random_batches.batch_noise
def spoilt(seed, step, *rest):
    noise = batch_noise(seed, step, *rest)
    if step == {step} and os.environ.get("RANK", "0") == "{rank}":
        noise[0, 0, 0, 0] = float("{value}")
    return noise
random_batches.batch_noise = spoilt
"""

# The first process tells that it has come to a step, and waits until it may go on.
HALT = AT_STEP.format(
    step=5,
    rank=0,
    act='out = os.environ["TRAIN_OUTPUT"]; os.mkfifo(out + "/go"); open(out + "/started", "w").close(); '
    'open(out + "/go").read()',
)


@contextmanager
def disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own in the folder, where this user may mount one."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], check=False).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


DAMAGES = {
    "missing": None,
    "empty": lambda content: b"",
    "one byte": lambda content: content[:1],
    "half": lambda content: content[: len(content) // 2],
    "without its last byte": lambda content: content[:-1],
    "with one byte more": lambda content: content + b"\0",
    "zeros": lambda content: bytes(len(content)),
    "turned around": lambda content: content[::-1],
}
EXTRAS = ("notes.txt", "model.safetensors.bak", ".nfs000000000000", "average_0.5.safetensors", "deeper/state.json")


def write_damaged(file: Path, damage: str) -> bytes:
    """Damages a file; returns what it held."""
    content, change = file.read_bytes(), DAMAGES[damage]
    file.unlink()
    if change is not None:
        file.write_bytes(change(content))
    return content


def change_images(images: list, labels: list[int], change: str, first: int, second: int) -> tuple[list, list[int]]:
    """A data set of which something is other than before."""
    images, labels = list(images), list(labels)
    if change == "other pixels":
        images[first] = picture(seed=100 + first)
    elif change == "another class":
        labels[first] = 1 - labels[first]
    elif change == "another order":
        images[first], images[second] = images[second], images[first]
    elif change == "one less":
        del images[first], labels[first]
    else:
        images.append(picture(seed=100))
        labels.append(0)
    return images, labels


@dataclass
class Quiet:
    """Runs to which nothing happened, by their number of processes; each is made when it is first asked for."""

    trains: TrainServer
    base: Path

    def folder(self, processes: int = 1) -> Path:
        folder = self.base / str(processes)
        if not folder.exists():
            arguments = [*RUN, "--output_dir", folder]
            run = self.trains.start(*arguments, processes=processes, patch=at_moment("disk", 0, signal.SIGKILL))
            done = run.wait()
            assert done.returncode == 0, done.stderr
            for rank in range(processes):
                shutil.copy(run.output(rank) / "moments", self.base / f"moments_{processes}_{rank}")
        return folder

    def moments(self, processes: int, rank: int) -> dict[str, int]:
        """How many moments of each kind a process had."""
        self.folder(processes)
        return json.loads((self.base / f"moments_{processes}_{rank}").read_text())


def assert_told(result: Result, *words: str) -> None:
    """It failed with a message that has these words, and without a traceback."""
    assert result.returncode in (1, 2), result.stderr
    assert "Traceback" not in result.stderr
    assert [word for word in words if word not in result.stderr] == [], result.stderr


def assert_goes_on(trains, folder: Path, quiet: Path, processes: int = 1) -> Result:
    """The same command ends well, and as if nothing had happened."""
    result = trains.run(*RUN, "--output_dir", folder, processes=processes)
    assert result.returncode == 0, result.stderr
    assert_same(folder, quiet)
    return result


def end_like_the_launcher(run: Run, victim: int) -> None:
    """Waits for the process that is hit. The others end by themselves, or are ended if they have never met it."""
    run.end_of(victim)
    for rank in set(range(len(run.pids))) - {victim}:
        if not (run.output(victim) / "met").exists():
            run.signal(signal.SIGTERM, rank)
        run.end_of(rank)
