"""The validation loss: the same images, noise and t each time, whoever asks and however many share the work."""

import dataclasses

import pytest
import torch
from accelerate import Accelerator
from build_model import build_scheduler, build_unet
from image_data import ImageData
from objectives import Objective
from train_config import TrainConfig
from validation import Validation

CONFIG = dataclasses.replace(TrainConfig(), block_out_channels=(8, 16), batch_size=8)


def make_data(count: int) -> ImageData:
    pixels = torch.randint(256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageData(pixels=pixels, labels=torch.arange(count) % 3, class_names=["a", "b", "c"])


class Perfect:
    """A network that knows the noise: its loss is zero."""

    def __init__(self, answer):
        self.answer = answer

    def eval(self):
        return self

    def train(self):
        return self

    def __call__(self, x_t, timesteps, class_labels=None, return_dict=False):
        return (self.answer(x_t, timesteps),)


def measure(model, count: int = 50, config: TrainConfig = CONFIG) -> list[float]:
    accelerator = Accelerator(cpu=True)
    objective = Objective(config, build_scheduler(config))
    return Validation(config, make_data(count), objective, accelerator).measure(model)


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return build_unet(CONFIG, make_data(5))


def test_it_is_the_same_each_time_and_for_every_batch_size(unet):
    first, again = measure(unet), measure(unet)
    assert first == again
    # Other batches, other rounding: float32 of order 1 through some hundred operations.
    assert measure(unet, config=dataclasses.replace(CONFIG, batch_size=7)) == pytest.approx(first, rel=1e-5)


def test_a_network_that_says_zero_has_the_mean_square_of_the_noise():
    """E[ε²] = 1; the mean of n = 300·64 squares of N(0, 1) has the standard deviation √(2/n) = 0.0102: five of those."""
    values = measure(Perfect(lambda x_t, t: torch.zeros_like(x_t)), count=300)
    assert values[0] == pytest.approx(1, abs=0.051)
    assert all(value == pytest.approx(1, abs=0.102) for value in values[1:])  # a quarter of the images each


def test_quartiles_are_those_of_t_and_weigh_the_same():
    values = measure(
        Perfect(lambda x_t, t: torch.where(t < 500, 0.0, 1e3)[:, None, None, None].expand_as(x_t)), count=100
    )
    whole, *quartiles = values
    assert max(quartiles[:2]) < 2
    assert min(quartiles[2:]) > 1e5
    assert whole == pytest.approx(sum(quartiles) / 4, rel=1e-4)


def test_every_t_comes_once_where_there_are_as_many_images():
    seen = []
    measure(Perfect(lambda x_t, t: seen.extend(t.tolist()) or torch.zeros_like(x_t)), count=1000)
    assert sorted(seen) == list(range(1000))
    assert seen != sorted(seen)


def test_the_network_is_measured_without_drop_out():
    config = dataclasses.replace(CONFIG, dropout=0.5)
    torch.manual_seed(0)
    unet = build_unet(config, make_data(5)).train()
    assert measure(unet, config=config) == measure(unet, config=config)
    assert unet.training
