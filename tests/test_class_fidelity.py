"""The judge: right on the real digits, not to be fooled by noise or by labels that were mixed up."""

import dataclasses

import pytest
import torch
from class_fidelity import class_fidelity
from image_data import load_images
from train_config import TrainConfig


@pytest.fixture(scope="module")
def digits():
    return [load_images(dataclasses.replace(TrainConfig(), split=split)) for split in ("train", "test")]


def share(digits, samples, labels) -> float:
    return class_fidelity(digits[0].pixels, digits[0].labels, samples, labels)["class_fidelity"]


def test_real_digits_that_it_never_saw(digits):
    assert share(digits, digits[1].pixels, digits[1].labels) > 0.9


def test_labels_that_are_off_by_one(digits):
    assert share(digits, digits[1].pixels, (digits[1].labels + 1) % 10) < 0.05


def test_noise_is_right_by_chance_at_most(digits):
    noise = torch.randint(256, (300, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    # Whatever it says of noise, balanced labels agree in a tenth; five standard deviations of a share of 300.
    assert share(digits, noise, torch.arange(300) % 10) < 0.1 + 5 * (0.1 * 0.9 / 300) ** 0.5
