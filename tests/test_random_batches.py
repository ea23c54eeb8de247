"""Randomness is a function of seed, epoch and step: the same whatever shares a batch, and each image once an epoch."""

import dataclasses

import pytest
import torch
from image_data import ImageData
from random_batches import Batch, training_batches
from train_config import TrainConfig

COUNT = 23
# Each pixel of image i has the value i, so a batch tells which images are in it.
DATA = ImageData(
    pixels=torch.arange(COUNT, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2),
    labels=torch.arange(COUNT) % 3,
    class_names=["a", "b", "c"],
)
CONFIG = dataclasses.replace(TrainConfig(), max_train_steps=12, warmup_steps=0, batch_size=8, num_inference_steps=1)


def steps(process: int = 0, processes: int = 1, **kwargs) -> list[list[Batch]]:
    config = dataclasses.replace(CONFIG, **kwargs)
    return list(training_batches(config, DATA, torch.device("cpu"), process, processes))


def joined(parts: list[Batch]) -> list[torch.Tensor]:
    return [torch.cat([getattr(part, f.name) for part in parts]) for f in dataclasses.fields(Batch)]


def test_every_image_comes_once_in_every_epoch():
    seen = torch.cat([part.pixels[:, 0, 0, 0] for parts in steps() for part in parts]).tolist()
    assert len(seen) == 12 * 8
    epochs = [seen[start : start + COUNT] for start in range(0, len(seen) - COUNT + 1, COUNT)]
    assert len(epochs) == 4
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(("processes", "parts"), [(1, 4), (2, 1), (2, 2), (4, 1)])
def test_processes_and_accumulation_share_the_same_batch(processes, parts):
    alone = [joined(batch) for batch in steps()]
    shared = [steps(p, processes, gradient_accumulation_steps=parts) for p in range(processes)]
    for step, whole in enumerate(alone):
        pieces = [shared[p][step][part] for part in range(parts) for p in range(processes)]
        for tensor, wanted in zip(joined(pieces), whole, strict=True):
            assert torch.equal(tensor, wanted)


def test_the_seed_decides():
    first, again, other = steps(), steps(), steps(seed=1)
    assert all(torch.equal(a[0].noise, b[0].noise) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a[0].noise, b[0].noise) for a, b in zip(first, other, strict=True))


def test_every_step_has_noise_of_its_own():
    noise = torch.stack([parts[0].noise for parts in steps()]).flatten(1)
    assert len(noise.unique(dim=0)) == len(noise)


def test_timesteps_are_uniform_and_labels_are_dropped_as_often_as_asked():
    parts = [part for batch in steps(max_train_steps=500, class_dropout=0.2, num_train_timesteps=10) for part in batch]
    count = 500 * 8
    timesteps = torch.cat([part.timesteps for part in parts])
    # A binomial count of n·p has standard deviation √(n·p·(1−p)); five of those.
    assert (timesteps.bincount(minlength=10) - count / 10).abs().max() < 5 * (count * 0.1 * 0.9) ** 0.5
    dropped = (torch.cat([part.labels for part in parts]) == 3).sum()
    assert abs(dropped - count * 0.2) < 5 * (count * 0.2 * 0.8) ** 0.5
    kept = [
        (p, y) for part in parts for p, y in zip(part.pixels[:, 0, 0, 0].tolist(), part.labels.tolist(), strict=True)
    ]
    assert all(y in (3, p % 3) for p, y in kept)


def test_no_labels():
    data = dataclasses.replace(DATA, labels=None, class_names=[])
    (batch,) = next(training_batches(CONFIG, data, torch.device("cpu"), 0, 1))
    assert batch.labels is None
