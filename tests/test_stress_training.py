"""Training that is killed, stopped, starved, damaged and deceived: it ends as if nothing had happened, or says why not.

Every run here has the same arguments, and what is left of it is compared with what a run leaves that nothing happened to.
"""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import datasets
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from checkpoints import CHECKPOINTS, MANIFEST, newest_checkpoint
from image_data import load_images
from image_sets import config, encoded, picture, save_parquet
from resume import check_data
from safetensors.torch import load_file
from stop_signal import STOPPED
from train_config import UserError
from train_faults import (
    DAMAGES,
    EXTRAS,
    GOES_BACK,
    HALT,
    RUN,
    SPOILT,
    Quiet,
    assert_goes_on,
    assert_told,
    at_moment,
    change_images,
    clock_library,
    disk,
    end_like_the_launcher,
    write_damaged,
)
from train_processes import TrainServer
from train_runs import AT_STEP, assert_same, signalled

from ddpm_hub import DDPMHubPipeline

AREA = "Training"


@pytest.fixture(scope="module")
def trains(tmp_path_factory) -> Iterator[TrainServer]:
    """Starts runs whose clock can be set."""
    server = TrainServer(LD_PRELOAD=str(clock_library(tmp_path_factory.mktemp("clock"))))
    yield server
    server.close()


@pytest.fixture(scope="module")
def quiet(trains, tmp_path_factory) -> Quiet:
    return Quiet(trains, tmp_path_factory.mktemp("quiet"))


# --- Any moment --------------------------------------------------------------------------------------------------------


KINDS = (
    "disk",
    "tensors",
    "layers",
)  # a change or a sync on the disk, within a checkpoint's tensors, a layer of the network


class Signals:
    """Signals at moments that chance chooses, of each kind in turn, to the processes in turn."""

    def __init__(self, trains: TrainServer, quiet: Quiet, chance: random.Random, number: int):
        self.trains, self.quiet, self.chance, self.number = trains, quiet, chance, number
        self.starts = 0
        self.hits = Counter()  # by the kind, and whether another process than the first was hit

    def hit(self, folder: Path, processes: int) -> bool:
        """One start of the run, of which one process is sent a signal at some moment; whether all ended well."""
        self.starts += 1
        victim = self.starts % processes  # all but the first write nothing
        kind = KINDS[self.starts // processes % 3] if victim == 0 else "layers"
        moment = self.chance.randrange(1, self.quiet.moments(processes, victim)[kind])
        patch = at_moment(kind, moment, self.number, victim)
        run = self.trains.start(*RUN, "--output_dir", folder, processes=processes, patch=patch)
        end_like_the_launcher(run, victim)
        print(f"{self.number} at {kind} {moment} of process {victim}: {run.codes}")
        code, said = run.end_of(victim), (run.output(victim) / "stderr").read_text()
        assert code in (0, -self.number, STOPPED), said  # whatever it goes on from, it gets as far as the signal
        assert "Traceback" not in said
        if code:
            self.hits[kind, victim > 0] += 1
        return not any(run.codes.values())


def assert_good(folder: Path, step: int) -> int:
    """What lies there is whole and not older than `step`; the step of the newest checkpoint."""
    found = newest_checkpoint(folder / CHECKPOINTS)
    if (folder / "model_index.json").exists():
        DDPMHubPipeline.from_pretrained(folder)
    assert step == 0 or found.step >= step
    return found.step if found else 0


def goes_through(signals: Signals, folder: Path, processes: int, times: int) -> None:
    """A run that is sent signals until there were so many in all, if it does not end before."""
    step, done = 0, False
    while signals.hits.total() < times and not done:
        done = signals.hit(folder, processes)
        step = assert_good(folder, step)
    assert_goes_on(signals.trains, folder, signals.quiet.folder(processes), processes)
    assert list(folder.rglob(".*")) == []  # nothing half written, nothing half deleted


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_any_moment(trains, tmp_path, quiet, campaign, capsys, number):
    """Signals in a row, some in a run that goes on after others; whenever one run is done, another begins."""
    times = campaign.times(*{signal.SIGKILL: (3, 25), signal.SIGTERM: (1, 10)}[number])
    signals = Signals(trains, quiet, random.Random(campaign.seed + number), number)
    runs = 0
    for processes, until in ((1, times - times * 2 // 5), (2, times)):
        while signals.hits.total() < until:
            runs += 1
            goes_through(signals, tmp_path / str(runs), processes, until)
    assert "is passed over" not in capsys.readouterr().err
    if campaign.is_long:
        assert set(signals.hits) == {(kind, False) for kind in KINDS} | {("layers", True)}
    tensors, second = signals.hits["tensors", False], signals.hits["layers", True]
    campaign.held(
        AREA,
        f"{number.name} at a random write, sync or layer, of the only process or of one of two: {tensors} within the tensors of "
        f"a checkpoint, {second} of the second process",
        times,
        "the same command goes on; bitwise the same end; no leftovers",
    )


def test_a_clock_that_goes_back(trains, tmp_path, quiet, campaign):
    """By days before the start, so that all that lies there is of the future, and by days more in the middle."""
    days = [campaign.chance().randrange(1, 4000) for _ in range(campaign.times(1, 3))]
    for number, first in enumerate(days):
        folder = tmp_path / str(number)
        stopped = trains.run(*RUN, "--output_dir", folder, patch=signalled(4 + number))
        assert stopped.returncode == STOPPED, stopped.stderr
        seconds = newest_checkpoint(folder / CHECKPOINTS).state["seconds"]
        result = trains.run(*RUN, "--output_dir", folder, patch=GOES_BACK.format(days=first))
        assert result.returncode == 0, result.stderr
        assert_same(folder, quiet.folder())
        training = json.loads((folder / "metrics.json").read_text())["training"]
        assert training["seconds"] >= round(seconds, 1)
        assert training["images_per_second"] > 0
    what = "bitwise the same end; the seconds that are counted only grow"
    campaign.held(AREA, "the clock set back by days, between two starts and in the middle", len(days), what)


def test_a_number_in_one_batch_that_is_not_finite(trains, tmp_path, campaign):
    chance, times = campaign.chance(), campaign.times(1, 4)
    for number in range(times):
        processes, value = 1 + number % 2, ("nan", "inf", "-inf")[number % 3]
        patch = SPOILT.format(step=chance.randrange(14), rank=chance.randrange(processes), value=value)
        folder = tmp_path / str(number)
        result = trains.run(*RUN, "--output_dir", folder, patch=patch, processes=processes)
        assert result.returncode == 0, result.stderr
        rows = [line.split(",") for line in (folder / "loss_log.csv").read_text().splitlines()]
        assert rows[-1][rows[0].index("skipped_steps")] == "1"
        checkpoint = newest_checkpoint(folder / CHECKPOINTS)
        for file in checkpoint.folder.glob("*.safetensors"):
            assert all(torch.isfinite(tensor).all() for tensor in load_file(file).values()), file
        steps = {v.item() for name, v in checkpoint.tensors("optimizer").items() if name.startswith("step.")}
        assert steps == {13}
    what = "that step is skipped by all processes and counted; nothing else becomes NaN"
    campaign.held(AREA, "NaN or infinity in one batch", times, what)


# --- What lies on the disk ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(trains, tmp_path_factory) -> Path:
    """A run that was stopped, with two checkpoints; to be copied."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert trains.run(*RUN, "--output_dir", folder, patch=signalled(8)).returncode == STOPPED
    assert len(list((folder / CHECKPOINTS).iterdir())) == 2
    return folder


@pytest.fixture
def checkpoints(stopped, tmp_path) -> Path:
    """Two checkpoints; tests damage the newer one."""
    return Path(shutil.copytree(stopped / CHECKPOINTS, tmp_path / CHECKPOINTS))


def assert_passed_over(checkpoints: Path, file: Path, capsys) -> None:
    """The older one is found, and a line says which file of the newer one is the reason."""
    assert newest_checkpoint(checkpoints).folder == min(checkpoints.iterdir())
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert file.parent.name in warning
    assert file.name in warning or file.name == MANIFEST  # in which the name of another file may be damaged


def test_damaged_files_of_a_checkpoint(trains, tmp_path, quiet, stopped, checkpoints, campaign, capsys):
    files = sorted(max(checkpoints.iterdir()).iterdir())
    for file in files:
        for damage in DAMAGES:
            content = write_damaged(file, damage)
            assert_passed_over(checkpoints, file, capsys)
            file.write_bytes(content)
    tried = [(file, damage) for file in files for damage in DAMAGES]
    for number, (file, damage) in enumerate(campaign.chance().sample(tried, campaign.times(0, 4))):
        folder = tmp_path / str(number)
        shutil.copytree(stopped, folder)
        damaged = folder / CHECKPOINTS / file.parent.name / file.name
        write_damaged(damaged, damage)
        if number % 2:  # the older one as well: from the beginning
            write_damaged(min((folder / CHECKPOINTS).iterdir()) / file.name, damage)
        assert str(damaged.parent) in assert_goes_on(trains, folder, quiet.folder()).stderr
    what = "passed over with a line that names it; the run goes on from the one before; bitwise the same end"
    campaign.held(AREA, "each file of a checkpoint: cut, longer, missing, zeroed, reversed", len(tried), what)


def test_flipped_bits_of_a_checkpoint(checkpoints, campaign, capsys):
    newer = newest_checkpoint(checkpoints)
    files = sorted(newer.folder.iterdir())
    times = 0

    def try_bit(file: Path, position: int, bit: int) -> None:
        nonlocal times
        times += 1
        content = file.read_bytes()
        damaged = bytearray(content)
        damaged[position] ^= 1 << bit
        file.write_bytes(damaged)
        try:
            assert_passed_over(checkpoints, file, capsys)
        finally:
            file.write_bytes(content)

    for file in files:
        size = file.stat().st_size
        for position in (0, 7, 8, 9, size // 2, size - 2, size - 1):
            try_bit(file, position, campaign.chance().randrange(8))

    place = st.floats(0, 1, exclude_max=True)

    @campaign.for_all(campaign.times(40, 1000), file=st.sampled_from(files), place=place, bit=st.integers(0, 7))
    def anywhere(file: Path, place: float, bit: int) -> None:
        try_bit(file, int(place * file.stat().st_size), bit)

    what = "never read as if nothing were; the one before is found"
    campaign.held(AREA, "one bit flipped in a file of a checkpoint", times, what)


def test_extra_files_beside_a_checkpoint(trains, tmp_path, quiet, stopped, campaign):
    """Of other programs, beside checkpoints and in them; what has a checkpoint's name and no manifest is passed over."""
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    checkpoints = folder / CHECKPOINTS
    state = newest_checkpoint(checkpoints).state
    places = [checkpoints, *checkpoints.iterdir(), checkpoints / "step_00000013"]
    for place in places:
        for name in EXTRAS:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(b"{}")
    assert newest_checkpoint(checkpoints).state == state
    for _ in range(campaign.times(0, 1)):
        assert_goes_on(trains, folder, quiet.folder())
    assert {path.name for path in checkpoints.iterdir()} >= {Path(name).parts[0] for name in EXTRAS}
    what = "not read, not deleted beside checkpoints; bitwise the same end"
    campaign.held(AREA, "extra files in and beside checkpoints", len(places) * len(EXTRAS), what)


def test_a_disk_that_fills(trains, tmp_path, quiet, campaign):
    """30 MB, less what others take of it, so that it is full at some moment: from the first file to the last checkpoint."""
    taken = [0, *(campaign.chance().randrange(31_000_000) for _ in range(4))][: campaign.times(1, 5)]
    for number, others in enumerate(taken):
        with disk(tmp_path / str(number), 30) as small:
            (small / "others").write_bytes(bytes(others))
            flags = ["--checkpoint_every", "2", "--checkpoints_kept", "20"]
            result = trains.run(*RUN, *flags, "--output_dir", small / "run")
            assert_told(result, "No space left")
            checkpoint = newest_checkpoint(small / "run" / CHECKPOINTS)
            assert checkpoint is None or str(checkpoint.folder) in result.stderr
            subprocess.run(["mount", "-o", "remount,size=200m", small], check=True)
            assert_goes_on(trains, small / "run", quiet.folder())
    what = "a message; the last good checkpoint is whole; with room, the same command ends bitwise the same"
    campaign.held(AREA, "a disk of 30 MB that fills up", len(taken), what)


def test_a_folder_that_becomes_read_only(trains, tmp_path, quiet, campaign):
    """As a file system does of which the disk has failed, at some step; then it is mended."""
    chance, times = campaign.chance(), campaign.times(1, 3)
    for number in range(times):
        with disk(tmp_path / str(number), 60) as place:
            arguments = [*RUN, "--output_dir", place / "run"]
            remount = f'__import__("subprocess").run(["mount", "-o", "remount,ro", "{place}"], check=True)'
            patch = AT_STEP.format(step=chance.randrange(1, 15), rank=0, act=remount)
            assert_told(trains.run(*arguments, patch=patch), "Read-only file system")
            assert_told(trains.run(*arguments), "`output_dir` is", "Read-only file system")
            subprocess.run(["mount", "-o", "remount,rw", place], check=True)
            assert_goes_on(trains, place / "run", quiet.folder())
    what = "a message; refused while it is so; writable again, the same command ends bitwise the same"
    campaign.held(AREA, "an output folder that becomes read-only in the middle", times, what)


# --- Two runs in one folder --------------------------------------------------------------------------------------------


def test_two_runs_in_one_folder(trains, tmp_path, quiet, campaign):
    others = ([], ["--resume", "false"], ["--seed", "1"], ["--max_train_steps", "99", "--resume", "false"])
    first = trains.start(*RUN, "--output_dir", tmp_path / "run", patch=HALT)
    first.wait_for("started")
    for flags in others:
        second = trains.run(*RUN, *flags, "--output_dir", tmp_path / "run")
        assert_told(second, "where another process is training")
    (first.output(0) / "go").write_text("")
    assert first.wait().returncode == 0
    assert_same(tmp_path / "run", quiet.folder())
    times = campaign.times(0, 3)
    for number in range(times):
        folder = tmp_path / str(number)
        both = [trains.start(*RUN, "--output_dir", folder) for _ in range(2)]
        results = sorted((run.wait() for run in both), key=lambda result: result.returncode)
        assert results[0].returncode == 0, results[0].stderr
        assert_told(results[1], "where another process is training")
        assert_same(folder, quiet.folder())
    what = "the second is refused by name; the first ends bitwise the same"
    campaign.held(AREA, "a second run in the folder of a first", len(others) + times, what)


# --- The data ----------------------------------------------------------------------------------------------------------


def replace_while_read(trains, folder: Path, quiet: Path) -> None:
    """A run goes on with the images it began with; started again it is refused, until it is given the old file back."""
    digits = shutil.copytree("training/data/digits", folder / "digits")
    file, old, new = digits / "train-00000-of-00001.parquet", folder / "old", folder / "new"
    shutil.copy(file, old)
    table = datasets.Dataset.from_parquet(str(file), cache_dir=str(folder / "cache"))
    table.select([*range(40), *range(len(table) - 1, 39, -1)]).to_parquet(new)
    arguments = [*RUN, "--dataset_name", digits, "--output_dir", folder / "run"]
    act = f'os.replace("{new}", "{file}"); os.kill(os.getpid(), {int(signal.SIGTERM)})'
    first = trains.run(*arguments, patch=AT_STEP.format(step=8, rank=0, act=act))
    assert first.returncode == STOPPED, first.stderr
    assert_told(trains.run(*arguments), "`dataset_name` is", "not the same ones in the same order")
    shutil.copy(old, file)
    assert trains.run(*arguments).returncode == 0
    assert_same(folder / "run", quiet)


def test_a_data_file_that_changes(trains, tmp_path, quiet, campaign):
    """Replaced by one of another time, later or earlier; what is decoded is what lies there, and what was begun is refused."""
    images, labels = [picture(seed=number) for number in range(6)], [0, 1, 0, 1, 0, 1]
    folder = tmp_path / "data"
    file = save_parquet(folder, images, labels) / "train-0.parquet"
    original, stat = file.read_bytes(), file.stat()
    begun = load_images(config(folder))
    state = {"data": {"num_images": begun.num_images, "fingerprint": begun.fingerprint}}
    times = campaign.times(6, 60)
    changes = st.sampled_from(("other pixels", "another class", "another order", "one less", "one more"))
    pairs = st.permutations(range(6)).map(lambda order: order[:2])

    # Two files of one time are the same one to the package `datasets`, whose own cache comes before ours.
    days = itertools.count(1)

    @campaign.for_all(times, change=changes, pair=pairs, direction=st.sampled_from((-1, 1)))
    def replaced(change: str, pair: list[int], direction: int) -> None:
        changed = change_images(images, labels, change, *pair)
        save_parquet(folder, *changed)
        seconds = direction * next(days) * 86400
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + seconds * 10**9))
        data = load_images(config(folder))
        expected = np.stack([np.asarray(image)[None] for image in changed[0]])
        np.testing.assert_array_equal(data.fetch(torch.arange(len(data))).numpy(), expected)
        assert data.labels.tolist() == changed[1]
        with pytest.raises(UserError, match=r"`dataset_name` is .* when this run began"):
            check_data(state, data, config(folder))
        file.write_bytes(original)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        check_data(state, load_images(config(folder)), config(folder))

    runs = campaign.times(0, 1)
    for _ in range(runs):
        replace_while_read(trains, tmp_path, quiet.folder())
    what = "the images that lie there are read, never those decoded before; the run that began on others is refused"
    campaign.held(AREA, "a Parquet file replaced: pixels, classes, order, count", times + runs, what)


def test_unreadable_images(trains, tmp_path, campaign):
    """One in a hundred: refused with how many, or trained on the others as if these were all."""
    chance, count = campaign.chance(), campaign.times(200, 600)
    broken = dict.fromkeys(chance.sample(range(count), count // 100))
    content = encoded(picture(size=(64, 64)))
    for number, row in enumerate(broken):
        broken[row] = ({"bytes": content[: len(content) // 2], "path": None}, None, {"bytes": b"", "path": None},
                       {"bytes": b"no image", "path": None})[number % 4]  # fmt: skip
    images = [broken.get(row, picture(seed=row)) for row in range(count)]
    labels = [row % 2 for row in range(count)]
    save_parquet(tmp_path / "broken", images, labels)
    rest = [row for row in range(count) if row not in broken]
    save_parquet(tmp_path / "whole", [images[row] for row in rest], [labels[row] for row in rest])
    with pytest.raises(
        UserError, match=rf"image {min(broken)} .*In all, {len(broken)} of {count} images cannot be read"
    ):
        load_images(config(tmp_path / "broken"))
    skipping = load_images(config(tmp_path / "broken", unreadable_images="skip"))
    assert skipping.fingerprint == load_images(config(tmp_path / "whole")).fingerprint
    for _ in range(campaign.times(0, 1)):
        arguments = [*RUN, "--split", "train", "--validation_split", "train[:40]", "--output_dir"]
        refused = trains.run(*arguments, tmp_path / "refused", "--dataset_name", tmp_path / "broken")
        assert_told(refused, f"{len(broken)} of {count} images cannot be read", "--unreadable_images skip")
        for name in ("broken", "whole"):
            flags = ["--dataset_name", tmp_path / name, "--unreadable_images", "skip"]
            assert trains.run(*arguments, tmp_path / f"{name}_run", *flags).returncode == 0
        assert len((tmp_path / "broken_run" / "unreadable_images.txt").read_text().splitlines()) == len(broken)
    what = "refused with their number; skipped, it is the data set without them"
    campaign.held(AREA, "1 % of the images cannot be read", len(broken), what)
