"""Every random number of a training run, as a function of the seed, the epoch and the step alone.

Whole batches are drawn and then divided, so the numbers do not depend on how many processes and accumulation steps
share a batch, or on what was drawn before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from image_data import ImageData
from train_config import TrainConfig


@dataclass(frozen=True)
class Batch:
    """The part of a batch that one process handles in one pass, on its device.

    Attributes:
        pixels (`torch.Tensor` of `uint8`, shape (B, C, H, W))
        labels (`torch.Tensor` of `int64`, shape (B,), *optional*): K, the null class, where the label was dropped.
        noise (`torch.Tensor` of `float32`, like `pixels`)
        timesteps (`torch.Tensor` of `int64`, shape (B,)): 0…T−1.
    """

    pixels: torch.Tensor
    labels: torch.Tensor | None
    noise: torch.Tensor
    timesteps: torch.Tensor


def training_batches(
    config: TrainConfig, data: ImageData, device: torch.device, process_index: int, num_processes: int
) -> Iterator[list[Batch]]:
    """For each optimizer step, this process's `gradient_accumulation_steps` batches ([Ho] algorithm 1, lines 2 to 4)."""
    count, size = len(data), config.batch_size
    parts = config.gradient_accumulation_steps
    share = size // (num_processes * parts)

    @lru_cache(maxsize=2)
    def order(epoch: int) -> torch.Tensor:
        return torch.randperm(count, generator=_generator(config.seed, "order", epoch))

    for step in range(config.max_train_steps):
        first, last = step * size // count, ((step + 1) * size - 1) // count
        begin = step * size - first * count
        rows = torch.cat([order(epoch) for epoch in range(first, last + 1)])[begin : begin + size]
        generator = _generator(config.seed, "step", step)
        timesteps = torch.randint(config.num_train_timesteps, (size,), generator=generator)
        noise = torch.randn((size, *data.pixels.shape[1:]), generator=generator)
        dropped = torch.rand(size, generator=generator) < config.class_dropout
        labels = None if data.labels is None else data.labels[rows].masked_fill(dropped, len(data.class_names))
        batches = []
        for part in range(parts):
            start = (part * num_processes + process_index) * share
            mine = slice(start, start + share)
            batches.append(
                Batch(
                    pixels=data.pixels[rows[mine]].to(device),
                    labels=None if labels is None else labels[mine].to(device),
                    noise=noise[mine].to(device),
                    timesteps=timesteps[mine].to(device),
                )
            )
        yield batches


def _generator(seed: int, purpose: str, number: int) -> torch.Generator:
    entropy = [seed, int.from_bytes(purpose.encode(), "little"), number]
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
