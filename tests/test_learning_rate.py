"""The learning rate: a function of the optimizer step alone."""

import dataclasses
import math

import pytest
from config_checks import CHOICES
from learning_rate import learning_rate
from train_config import TrainConfig

CONFIG = dataclasses.replace(TrainConfig(), learning_rate=0.5, warmup_steps=4, max_train_steps=24)


def rates(**changes) -> list[float]:
    config = dataclasses.replace(CONFIG, **changes)
    return [learning_rate(config, step) for step in range(config.max_train_steps)]


@pytest.mark.parametrize("schedule", CHOICES["lr_schedule"])
def test_it_rises_evenly_to_the_highest_rate(schedule):
    assert rates(lr_schedule=schedule)[:5] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5])


def test_constant_stays():
    assert set(rates(lr_schedule="constant")[4:]) == {0.5}


def test_linear_falls_in_equal_steps_to_zero():
    assert rates(lr_schedule="linear")[4:] == pytest.approx([0.5 * (1 - i / 20) for i in range(20)])


def test_cosine_is_half_a_wave():
    falling = rates(lr_schedule="cosine")[4:]
    assert falling == pytest.approx([0.5 * math.cos(math.pi * i / 40) ** 2 for i in range(20)])  # (1+cos 2x)/2 = cos² x
    assert learning_rate(CONFIG, 24) == pytest.approx(0)


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert rates(warmup_steps=0)[0] == 0.5


def test_a_run_that_is_all_warm_up():
    assert rates(warmup_steps=24)[-1] == 0.5
