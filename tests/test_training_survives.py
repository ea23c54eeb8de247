"""Runs that are stopped, starved of disk or fed with nonsense, beside runs that nothing happened to.

What `kill -9` leaves at any moment is in test_stress_training.py.
"""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from checkpoints import newest_checkpoint
from safetensors.torch import load_file
from train_runs import AT_STEP, BUSY, SMALL, assert_same, result_of, signalled

from ddpm_hub import DDPMHubPipeline


@pytest.fixture(scope="module")
def quiet_runs(trains, tmp_path_factory) -> dict[int, Path]:
    """A run to which nothing happened, by its number of processes."""
    folders = {}
    for processes in (1, 2):
        folders[processes] = tmp_path_factory.mktemp("quiet") / "run"
        done = trains.run(*BUSY, "--output_dir", folders[processes], processes=processes)
        assert done.returncode == 0, done.stderr
    return folders


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    @pytest.mark.parametrize("processes", [1, 2])
    def test_the_first_one_saves_and_the_same_command_goes_on(self, trains, tmp_path, quiet_runs, number, processes):
        stopped = tmp_path / "stopped"
        patch = signalled(17, number, rank=processes - 1)  # one of them: all must stop
        result = trains.run(*BUSY, "--output_dir", stopped, processes=processes, patch=patch)
        assert result.returncode == 75, result.stderr
        assert "Traceback" not in result.stderr
        assert "the same command goes on" in result.stdout
        step = newest_checkpoint(stopped / "checkpoints").step
        assert 17 <= step <= 19
        assert DDPMHubPipeline.from_pretrained(stopped)(num_inference_steps=1).images
        resumed = trains.run(*BUSY, "--output_dir", stopped, processes=processes)
        assert resumed.returncode == 0
        assert f"Going on from step {step}." in resumed.stdout
        assert "OMP_NUM_THREADS" not in resumed.stdout, "with other threads it would not end the same"
        assert_same(stopped, quiet_runs[processes])

    @pytest.mark.parametrize("step", [10, 12])
    def test_where_a_grid_or_the_end_is_due(self, trains, tmp_path, step):
        """A signal in the very step of a grid, and in the last one: the grid is made up for, and the run ended, later."""
        arguments = [*SMALL, "--sample_every", "5"]
        stopped = trains.run(*arguments, "--output_dir", tmp_path / "stopped", patch=signalled(step))
        assert stopped.returncode == 75, stopped.stderr
        assert newest_checkpoint(tmp_path / "stopped" / "checkpoints").step == step
        for folder in ("stopped", "quiet"):
            assert trains.run(*arguments, "--output_dir", tmp_path / folder).returncode == 0
        assert len(list((tmp_path / "quiet" / "samples").glob("*.png"))) == 3
        assert_same(tmp_path / "stopped", tmp_path / "quiet")

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
    def test_the_second_one_ends_at_once(self, trains, tmp_path, number, status):
        twice = AT_STEP.format(
            step=5, rank=0, act=f"os.kill(os.getpid(), {int(number)}); os.kill(os.getpid(), {int(number)})"
        )
        result = trains.run(*SMALL, "--output_dir", tmp_path / "run", patch=twice)
        assert result.returncode == status
        assert "Traceback" not in result.stderr


def test_what_was_being_deleted_goes_though_no_step_is_left(trains, tmp_path):
    """Killed after its last checkpoint, in the middle of deleting an older one."""
    arguments = [*SMALL, "--output_dir", tmp_path / "run"]
    assert trains.run(*arguments, patch=signalled(12)).returncode == 75
    left = tmp_path / "run" / "checkpoints" / ".deleted-0123456789abcdef"
    left.mkdir()
    (left / "model.safetensors").write_bytes(bytes(1000))
    assert trains.run(*arguments).returncode == 0
    assert [path.name for path in left.parent.iterdir()] == ["step_00000012"]


@pytest.fixture(scope="module")
def quiet(trains, tmp_path_factory) -> Path:
    """A small run to which nothing happened."""
    folder = tmp_path_factory.mktemp("quiet") / "run"
    assert trains.run(*SMALL, "--checkpoint_every", "3", "--output_dir", folder).returncode == 0
    return folder


class TestDamage:
    @pytest.fixture
    def run(self, trains, tmp_path) -> Path:
        """A run that was stopped, with two checkpoints."""
        folder = tmp_path / "run"
        assert (
            trains.run(*SMALL, "--checkpoint_every", "3", "--output_dir", folder, patch=signalled(8)).returncode == 75
        )
        assert len(list((folder / "checkpoints").iterdir())) == 2
        return folder

    @pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
    def test_a_truncated_checkpoint_is_passed_over(self, trains, run, quiet, file):
        before, newest = sorted((run / "checkpoints").iterdir())
        with (newest / file).open("r+b") as opened:
            opened.truncate(100)
        result = trains.run(*SMALL, "--checkpoint_every", "3", "--output_dir", run)
        assert result.returncode == 0, result.stderr
        assert newest.name in result.stderr
        assert file in result.stderr
        assert f"step {int(before.name.split('_')[1])}" in result.stdout
        assert_same(run, quiet)

    def test_another_config_is_refused_by_key(self, trains, run):
        before = result_of(run)
        result = trains.run(*SMALL, "--checkpoint_every", "3", "--learning_rate", "0.5", "--output_dir", run)
        assert result.returncode == 2
        assert "learning_rate" in result.stderr
        assert "0.001" in result.stderr
        assert "--resume false" in result.stderr
        assert result_of(run) == before

    def test_a_full_disk_ends_the_run_and_keeps_the_last_good_checkpoint(self, trains, tmp_path):
        small = tmp_path / "small"
        small.mkdir()
        # One checkpoint of this network takes 0.7 MB; the third one does not fit beside the two that are kept.
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2100k", "tmpfs", small], check=True)
        try:
            arguments = [*SMALL, "--checkpoint_every", "3", "--checkpoints_kept", "5", "--output_dir", small / "Run"]
            result = trains.run(*arguments)
            assert result.returncode == 1
            assert "Traceback" not in result.stderr
            assert "No space left" in result.stderr
            checkpoint = newest_checkpoint(small / "Run" / "checkpoints")
            assert str(checkpoint.folder) in result.stderr
            subprocess.run(["mount", "-o", "remount,size=20m", small], check=True)
            assert trains.run(*arguments).returncode == 0
        finally:
            subprocess.run(["umount", small], check=True)


class TestNotFinite:
    POISON = """
import objectives, torch
call, count = objectives.Objective.__call__, [0]
def poisoned(self, model, batch):
    losses = call(self, model, batch)
    count[0] += 1
    if count[0] in {steps}:
        return losses._replace(loss=losses.loss * {factor})
    return losses
objectives.Objective.__call__ = poisoned
"""

    def test_a_step_is_skipped_and_counted(self, trains, tmp_path):
        """Twelve steps of which two are skipped: the optimizer has taken ten, and what it holds is finite."""
        patch = self.POISON.format(steps="(4, 7)", factor="float('nan')")
        result = trains.run(*SMALL, "--output_dir", tmp_path / "run", patch=patch)
        assert result.returncode == 0, result.stderr
        lines = (tmp_path / "run" / "loss_log.csv").read_text().splitlines()
        skipped = lines[0].split(",").index("skipped_steps")
        assert [int(line.split(",")[skipped]) for line in lines[1:]] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2]
        optimizer = load_file(max((tmp_path / "run" / "checkpoints").iterdir()) / "optimizer.safetensors")
        assert {value.item() for name, value in optimizer.items() if name.startswith("step.")} == {10}
        assert all(torch.isfinite(value).all() for value in optimizer.values())

    @pytest.mark.parametrize("processes", [1, 2])
    def test_too_many_in_a_row_end_the_run(self, trains, tmp_path, processes):
        patch = self.POISON.format(steps="range(6, 100)", factor="float('inf')")
        flags = ["--max_skipped_steps", "3", "--checkpoint_every", "2", "--output_dir", tmp_path / "run"]
        result = trains.run(*SMALL, *flags, patch=patch, processes=processes)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        assert "3 steps in a row, up to step 8," in result.stderr
        assert "at t from " in result.stderr
        assert "step_00000006" in result.stderr  # nothing bad enters the weights, so this one is good


@pytest.fixture(scope="module")
def undivided(tmp_path_factory) -> Path:
    """For a run of each way of sampling, which the first test that needs it makes."""
    return tmp_path_factory.mktemp("undivided")


class TestRunsThatMustAgree:
    """Step by step, not only at the end: the losses of each step, before rounding can grow."""

    def losses(self, folder: Path) -> torch.Tensor:
        rows = (folder / "loss_log.csv").read_text().splitlines()[1:]
        return torch.tensor([[float(value or "nan") for value in row.split(",")] for row in rows])

    @pytest.mark.parametrize(("flags", "processes"), [(["--gradient_accumulation_steps", "8"], 1), ([], 2),
                                                      (["--gradient_accumulation_steps", "2"], 2)])  # fmt: skip
    @pytest.mark.parametrize("sampling", ["uniform", "stratified", "importance"])
    def test_a_batch_can_be_divided(self, trains, tmp_path, undivided, flags, processes, sampling):
        common = [*SMALL, "--timestep_sampling", sampling, "--num_train_timesteps", "8", "--beta_end", "0.95"]
        whole = undivided / sampling
        if not whole.exists():
            assert trains.run(*common, "--output_dir", whole).returncode == 0
        divided = trains.run(*common, *flags, "--output_dir", tmp_path / "divided", processes=processes)
        assert divided.returncode == 0, divided.stderr
        whole, other = self.losses(whole), self.losses(tmp_path / "divided")
        # The same sums in another order: float32 rounding, 6e-8 of each of some hundred operations, which twelve steps of
        # AdamW with a rate of 1e-3 do not make larger than 1e-4.
        torch.testing.assert_close(whole, other, rtol=1e-4, atol=1e-5, equal_nan=True)

    def test_with_muon_too(self, trains, tmp_path):
        for processes in (1, 2):
            run = trains.run(
                *SMALL, "--optimizer", "muon", "--output_dir", tmp_path / str(processes), processes=processes
            )
            assert run.returncode == 0, run.stderr
        one, two = (self.losses(tmp_path / str(processes)) for processes in (1, 2))
        # As above; Muon multiplies the rounding of a direction in which there is next to no gradient by at most 485.
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5, equal_nan=True)

    def test_the_order_is_that_of_the_seed(self, trains, tmp_path):
        for seed in (0, 1):
            assert trains.run(*SMALL, "--seed", seed, "--output_dir", tmp_path / str(seed)).returncode == 0
        assert not torch.equal(self.losses(tmp_path / "0"), self.losses(tmp_path / "1"))


def test_a_finished_run_is_left_as_it_is(trains, tmp_path):
    arguments = [*SMALL, "--output_dir", tmp_path / "run"]
    assert trains.run(*arguments).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    result = trains.run(*arguments)
    assert result.returncode == 0
    assert "--resume false" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    again = trains.run(*arguments, "--resume", "false")
    assert again.returncode == 0
    assert_same(tmp_path / "run", tmp_path / "run.1")


def test_a_data_set_that_shrank_is_refused(trains, tmp_path):
    import datasets

    whole = datasets.load_dataset("training/data/digits", split="train[:64]")
    folder = tmp_path / "data"
    whole.save_to_disk(folder)
    arguments = [*SMALL, "--dataset_name", folder, "--output_dir", tmp_path / "run"]
    assert trains.run(*arguments, patch=signalled(5)).returncode == 75
    for file in folder.iterdir():
        os.remove(file)
    whole.select(range(60)).save_to_disk(folder)
    result = trains.run(*arguments)
    assert result.returncode == 2
    assert "`dataset_name`" in result.stderr
    assert "64" in result.stderr
    assert "60" in result.stderr


def test_metrics_count_all_sessions(trains, tmp_path):
    """Seconds go on where they were; a figure of the last session alone would flatter the run."""
    arguments = [*SMALL, "--output_dir", tmp_path / "run"]
    assert trains.run(*arguments, patch=signalled(6)).returncode == 75
    before = newest_checkpoint(tmp_path / "run" / "checkpoints").state["seconds"]
    assert trains.run(*arguments).returncode == 0
    training = json.loads((tmp_path / "run" / "metrics.json").read_text())["training"]
    assert training["steps"] == 12
    assert training["seconds"] >= round(before, 1)


@pytest.mark.parametrize(("flags", "environment", "message"), [
    (["--mixed_precision", "fp16"], {}, "`mixed_precision` is 'fp16', which no CPU trains in"),
    ([], {"ACCELERATE_MIXED_PRECISION": "bf16"}, "add --mixed_precision bf16, or set accelerate to 'no'"),
    (["--compile", "true"], {}, "Add --compile false"),
    ([], {"ACCELERATE_DYNAMO_BACKEND": "inductor"}, "set its dynamo_backend to 'no'"),
    ([], {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "`gradient_accumulation_steps` is 1, while accelerate is set to 4"),
])  # fmt: skip
def test_a_launcher_that_asks_for_something_else_is_refused(trains, tmp_path, flags, environment, message):
    result = trains.run(*SMALL, *flags, "--output_dir", tmp_path / "run", **environment)
    assert result.returncode == 2
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_processes_that_would_not_work_together_are_refused(trains, tmp_path):
    """Without a GPU accelerate takes no notice of the others, and each would train the whole model in the same folder."""
    result = trains.run(*SMALL, "--output_dir", tmp_path / "run", processes=2, ACCELERATE_USE_CPU="false")
    assert result.returncode == 2
    assert "WORLD_SIZE is 2, but" in result.stderr
    assert "put ACCELERATE_USE_CPU=true before the command" in result.stderr
    assert not (tmp_path / "run").exists()
