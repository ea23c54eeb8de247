"""Sums on the device, against the same means by hand; and the tables on disk."""

import csv
import dataclasses
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from train_config import TrainConfig
from train_log import NotFiniteError, StepTotals, Table

CONFIG = dataclasses.replace(TrainConfig(), num_train_timesteps=10, num_inference_steps=1, max_skipped_steps=3)


def add(totals: StepTotals, step: int, timesteps, losses, norm: float) -> None:
    totals.add(step, torch.tensor(timesteps), torch.tensor(losses, dtype=torch.float32), torch.tensor(norm))


@pytest.fixture
def totals() -> StepTotals:
    return StepTotals(CONFIG, Accelerator(cpu=True))


class TestStepTotals:
    def test_means_by_quartile_of_t(self, totals):
        random = np.random.default_rng(0)
        steps = [(random.integers(0, 10, 16), random.random(16), random.random()) for _ in range(7)]
        for number, (t, losses, norm) in enumerate(steps):
            add(totals, number + 1, t.tolist(), losses.tolist(), norm)
        read = totals.read()
        t, losses = np.concatenate([s[0] for s in steps]), np.concatenate([s[1] for s in steps])
        # Sums of some hundred float32 numbers of order 1: 1e-7 each, some 1e-6 together.
        assert read["loss"] == pytest.approx(losses.mean(), rel=1e-5)
        for quartile in range(4):
            inside = (t >= 10 * quartile / 4) & (t < 10 * (quartile + 1) / 4)
            assert read[f"loss_q{quartile + 1}"] == pytest.approx(losses[inside].mean(), rel=1e-5)
        assert read["grad_norm"] == pytest.approx(np.mean([s[2] for s in steps]), rel=1e-5)
        assert read["skipped_steps"] == 0

    def test_of_draws_by_importance_the_means_are_those_of_a_uniform_t(self, totals):
        """t = 0 is drawn four times as often as its share, and weighs a quarter."""
        timesteps, losses = torch.tensor([0, 0, 0, 0, 1, 9]), torch.tensor([8.0, 8.0, 8.0, 8.0, 2.0, 5.0])
        weights = torch.tensor([0.25, 0.25, 0.25, 0.25, 1.0, 1.0])
        totals.add(1, timesteps, losses, torch.tensor(1.0), weights)
        read = totals.read()
        # (8 + 2 + 5)/3 and (8 + 2)/2, of numbers that float32 has exactly.
        assert (read["loss"], read["loss_q1"], read["loss_q4"]) == (5, 5, 5)

    def test_reading_begins_anew(self, totals):
        add(totals, 1, [0], [5.0], 1.0)
        totals.read()
        add(totals, 2, [9], [7.0], 3.0)
        read = totals.read()
        assert (read["loss"], read["loss_q4"], read["grad_norm"]) == (7, 7, 3)
        assert math.isnan(read["loss_q1"])

    def test_a_skipped_step_is_counted_and_left_out(self, totals):
        add(totals, 1, [0, 9], [1.0, 2.0], 1.0)
        add(totals, 2, [0, 9], [math.nan, 50.0], math.nan)
        add(totals, 3, [0, 9], [3.0, 4.0], 3.0)
        read = totals.read()
        assert (read["loss"], read["grad_norm"], read["skipped_steps"]) == (2.5, 2, 1)

    def test_too_many_in_a_row_name_the_step_and_the_range_of_t(self, totals):
        add(totals, 1, [9, 9], [1.0, 1.0], 1.0)
        for step in (2, 3, 4):
            add(totals, step, [step, 9], [math.inf, 1.0], math.nan)
        add(totals, 5, [0, 9], [1.0, 2.0], 1.0)
        with pytest.raises(NotFiniteError, match=r"3 steps in a row, up to step 4, .* at t from 2 to 4"):
            totals.read()

    def test_where_only_the_gradient_is_not_finite_every_t_is_suspect(self, totals):
        for step in (1, 2, 3):
            add(totals, step, [step, 8], [1.0, 1.0], math.inf)
        with pytest.raises(NotFiniteError, match="t from 1 to 8"):
            totals.read()

    def test_what_was_skipped_before_is_not_suspect(self, totals):
        add(totals, 1, [0, 9], [1.0, 1.0], math.inf)
        add(totals, 2, [0, 9], [1.0, 1.0], 1.0)
        for step in (3, 4, 5):
            add(totals, step, [step, 9], [math.nan, 1.0], math.nan)
        add(totals, 6, [0, 9], [1.0, 1.0], math.nan)
        add(totals, 7, [0, 9], [1.0, 1.0], 1.0)
        with pytest.raises(NotFiniteError, match=r"4 steps in a row, up to step 6, .* t from 3 to 5"):
            totals.read()

    def test_a_process_whose_losses_are_finite_is_not_suspect(self, totals):
        rows = []
        for losses in ([math.nan, 1.0], [1.0, 1.0]):
            other = StepTotals(CONFIG, Accelerator(cpu=True))
            for step in (1, 2, 3):
                add(other, step, [5, 8] if math.isnan(losses[0]) else [0, 9], losses, math.nan)
            rows += other.state()
        totals.load(rows)
        with pytest.raises(NotFiniteError, match="t from 5 to 5"):
            totals.read()

    def test_fewer_in_a_row_go_on(self, totals):
        for step in range(1, 20):
            add(totals, step, [1], [1.0], math.nan if step % 3 else 1.0)
        assert totals.read()["skipped_steps"] == 13

    def test_saving_in_the_middle_changes_nothing(self, totals):
        other = StepTotals(CONFIG, Accelerator(cpu=True))
        for step in (1, 2, 3):
            add(totals, step, [step, 9], [0.1 * step, math.nan if step == 2 else 1.0], math.nan if step == 2 else 0.3)
            if step == 2:
                other.load(totals.state())
                assert other.state() == totals.state()
        add(other, 3, [3, 9], [0.1 * 3, 1.0], 0.3)
        assert other.read() == pytest.approx(totals.read(), rel=0, nan_ok=True)

    def test_sums_of_two_processes_are_kept_by_one(self, totals):
        add(totals, 1, [0], [1.0], 1.0)
        (row,) = totals.state()
        totals.load([row, row])  # the same again from a second process
        add(totals, 2, [0], [4.0], 1.0)
        assert totals.read()["loss"] == 2  # (1 + 1 + 4) / 3


class TestTable:
    def test_appended_lines_and_the_whole_are_the_same_file(self, tmp_path):
        table = Table(tmp_path / "log.csv", ("step", "loss"))
        table.save()
        for step, loss in [(1, 0.1), (2, math.nan), (3, 1e-30)]:
            table.add(step, loss)
            table.append()
        appended = (tmp_path / "log.csv").read_bytes()
        table.save()
        assert (tmp_path / "log.csv").read_bytes() == appended
        with (tmp_path / "log.csv").open() as file:
            assert list(csv.DictReader(file)) == [{"step": "1", "loss": "0.1"}, {"step": "2", "loss": ""},
                                                  {"step": "3", "loss": "1e-30"}]  # fmt: skip

    def test_the_last_row_by_name_without_what_is_missing(self, tmp_path):
        table = Table(tmp_path / "log.csv", ("step", "loss", "other"))
        table.add(5, 2.0, math.inf)
        assert table.last() == {"loss": 2.0}
        assert table.column("other") == [None]
