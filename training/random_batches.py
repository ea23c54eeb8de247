"""Every random number of a training run, as a function of the seed, the epoch and the step alone.

Whole batches are drawn and then divided, so the numbers do not depend on how many processes and accumulation steps
share a batch, or on what was drawn before. What the processor does for a batch runs ahead in a thread of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from read_ahead import ReadAhead

if TYPE_CHECKING:
    from image_data import ImageData
    from streamed_images import StreamedImages
    from train_config import TrainConfig

# Slots of a batch whose noise is drawn together: a process draws at most two blocks more than it needs.
NOISE_BLOCK = 16


@dataclass(frozen=True)
class Batch:
    """The part of a batch that one process handles in one pass, on its device.

    Attributes:
        pixels (`torch.Tensor` of `uint8` or `uint16`, shape (B, C, H, W)): cut out and mirrored.
        labels (`torch.Tensor` of `int64`, shape (B,), *optional*): K, the null class, where the label was dropped.
        noise (`torch.Tensor` of `float32`, like `pixels`)
        timesteps (`torch.Tensor` of `int64`, shape (B,)): 0…T−1.
        loss_weights (`torch.Tensor` of `float32`, shape (B,), *optional*): by which each image's loss is multiplied.
    """

    pixels: torch.Tensor
    labels: torch.Tensor | None
    noise: torch.Tensor
    timesteps: torch.Tensor
    loss_weights: torch.Tensor | None


def generator(seed: int, purpose: str, *numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for each purpose and numbers (step, epoch, …, each ≥ 0).

    Args:
        seed (`int`): ≥ 0.
        purpose (`str`): what the numbers are for; different purposes give independent numbers.
        numbers (`int`): steps, epochs, blocks; ≥ 0.
        device (`torch.device`): where the numbers are drawn. CPU and GPU draw different numbers from the same state.
    """
    entropy = [seed, int.from_bytes(purpose.encode(), "little"), *numbers]
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(state >> np.uint64(1)))


def batch_noise(
    seed: int, step: int, slots: range, shape: tuple[int, int, int], device: torch.device | str
) -> torch.Tensor:
    """Standard normal noise of some slots of a step's batch: `float32`, shape (len(slots), C, H, W), on the device."""
    blocks = range(slots.start // NOISE_BLOCK, -(-slots.stop // NOISE_BLOCK))
    noise = torch.empty((len(blocks) * NOISE_BLOCK, *shape), device=device)
    for part, block in zip(noise.split(NOISE_BLOCK), blocks, strict=True):
        part.normal_(generator=generator(seed, "noise", step, block, device=device))
    first = slots.start - blocks.start * NOISE_BLOCK
    return noise[first : first + len(slots)]


def cut_windows(
    pixels: torch.Tensor, corners: torch.Tensor, mirrored: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """A window of each image, mirrored left to right where asked.

    Args:
        pixels (`torch.Tensor` of `uint8` or `uint16`, shape (B, C, h, w)).
        corners (`torch.Tensor` of `int64`, shape (B, 2)): top and left of each window, on the same device.
        mirrored (`torch.Tensor` of `bool`, shape (B,)): likewise.
        height, width (`int`): of the windows.

    Returns:
        `torch.Tensor`, shape (B, C, height, width).
    """
    count, channels = pixels.shape[:2]
    device = pixels.device
    rows = corners[:, :1] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(count, -1)
    columns = corners[:, 1:] + torch.where(mirrored[:, None], width - 1 - columns, columns)
    images, channel = torch.arange(count, device=device), torch.arange(channels, device=device)
    # torch has few operations on unsigned 16 bits; the same bits are moved as signed ones.
    bits = pixels.view(torch.int16) if pixels.dtype == torch.uint16 else pixels
    bits = bits[
        images[:, None, None, None], channel[None, :, None, None], rows[:, None, :, None], columns[:, None, None]
    ]
    return bits.view(pixels.dtype)


class ShuffledRows:
    """The rows of images that can be read in any order: permuted in each epoch, and batches cross epochs.

    Args:
        data (`ImageData`): N images.
        seed (`int`): of the permutations.
        start (`int`): how many images came before.
    """

    def __init__(self, data: ImageData, seed: int, start: int):
        self._data, self._next = data, start
        self._order = lru_cache(maxsize=2)(
            lambda epoch: torch.randperm(len(data), generator=generator(seed, "order", epoch))
        )

    def take(self, count: int) -> torch.Tensor:
        """The next rows: `int64`, shape (count,)."""
        size = len(self._data)
        first, last = self._next // size, (self._next + count - 1) // size
        begin = self._next - first * size
        self._next += count
        return torch.cat([self._order(epoch) for epoch in range(first, last + 1)])[begin : begin + count]

    def load(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        labels = self._data.labels
        return self._data.fetch(rows), None if labels is None else labels[rows]

    def position(self) -> dict:
        return {}

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class _HostPart:
    """What a part of a batch is made of, on the CPU: pixels with the margin, labels, corners and mirrored images."""

    pixels: torch.Tensor
    labels: torch.Tensor | None
    corners: torch.Tensor | None
    mirrored: torch.Tensor | None


class Batches:
    """This process's parts of the batches, step by step ([Ho] arXiv:2006.11239, algorithm 1, lines 2 to 4).

    Args:
        config (`TrainConfig`): `batch_size` is that of all processes and parts together, which must divide it.
        data (`ImageData` or `StreamedImages`): the images.
        device (`torch.device`): where the parts are to be.
        process_index, num_processes (`int`): which process this is, and of how many.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: ImageData | StreamedImages,
        device: torch.device | str,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self._config, self._data, self._device = config, data, torch.device(device)
        self._maker = _PartMaker(config, data, self._device, process_index, num_processes)
        self._ahead: ReadAhead | None = None
        self._source = None
        self._step, self._position = 0, {}

    def start(self, step: int, position: dict | None = None) -> None:
        """Begins, or begins again, with the batch of `step`.

        Args:
            step (`int`): the next optimizer step, from 0.
            position (`dict`, *optional*): what [`position`] said then. By default it is found from the step, which takes long
                where images are streamed: all that came before are read again.
        """
        self.close()
        seed, before = self._config.seed, step * self._config.batch_size
        if self._data.num_images is None:
            source = self._data.reader(seed, position, before, self._maker.process)
        else:
            source = ShuffledRows(self._data, seed, before)
        self._step, self._position, self._source = step, source.position(), source
        make = self._maker.make
        self._ahead = ReadAhead(lambda number: (make(source, step + number), source.position()))

    def next(self, timesteps: torch.Tensor, loss_weights: torch.Tensor | None = None) -> list[Batch]:
        """This process's `gradient_accumulation_steps` parts of the next step's batch.

        Args:
            timesteps (`torch.Tensor` of `int64`, shape (batch_size,)): of the whole batch, on the device.
            loss_weights (`torch.Tensor` of `float32`, shape (batch_size,), *optional*): likewise.

        Raises:
            Whatever went wrong when the images were read.
        """
        if self._ahead is None:
            raise RuntimeError("Batches.start comes before Batches.next.")
        parts, self._position = self._ahead.next()
        batches = []
        for number, part in enumerate(parts):
            slots = self._maker.slots(number)
            pixels = self._finish(part)
            labels = None if part.labels is None else part.labels.to(self._device, non_blocking=True)
            noise = batch_noise(self._config.seed, self._step, slots, pixels.shape[1:], self._device)
            weights = None if loss_weights is None else loss_weights[slots.start : slots.stop]
            batches.append(Batch(pixels, labels, noise, timesteps[slots.start : slots.stop], weights))
        self._step += 1
        return batches

    def position(self) -> dict:
        """Where the next batch begins, for [`start`] to resume: JSON-able, and empty unless images are streamed."""
        return self._position

    def close(self) -> None:
        """Ends the thread. [`start`] may follow."""
        if self._ahead is not None:
            self._ahead.close()
            self._source.close()
            self._ahead = None

    def _finish(self, part: _HostPart) -> torch.Tensor:
        """Pixels on the device, cut out and mirrored there."""
        pixels = part.pixels.to(self._device, non_blocking=True)
        if part.corners is None and part.mirrored is None:
            return pixels
        _, height, width = self._data.image_shape
        count = len(pixels)
        corners = torch.zeros(count, 2, dtype=torch.int64) if part.corners is None else part.corners
        mirrored = torch.zeros(count, dtype=torch.bool) if part.mirrored is None else part.mirrored
        corners, mirrored = (t.to(self._device, non_blocking=True) for t in (corners, mirrored))
        return cut_windows(pixels, corners, mirrored, height, width)


class _PartMaker:
    """The work of the thread: whole batches are drawn, of which this process loads its own slots."""

    def __init__(self, config: TrainConfig, data, device: torch.device, process: int, processes: int):
        self._config, self._data, self._pinned = config, data, device.type == "cuda"
        self.process, self._processes = process, processes
        self._share = config.batch_size // (processes * config.gradient_accumulation_steps)

    def slots(self, part: int) -> range:
        """The slots of the whole batch that are a part of this process."""
        first = (part * self._processes + self.process) * self._share
        return range(first, first + self._share)

    def make(self, source, step: int) -> list[_HostPart]:
        """This process's parts of the batch of `step`, the next of `source`."""
        config, size, margin = self._config, self._config.batch_size, self._data.margin
        taken = source.take(size)
        dropped = torch.rand(size, generator=generator(config.seed, "dropout", step)) < config.class_dropout
        corners = mirrored = None
        if margin:
            corners = torch.randint(margin + 1, (size, 2), generator=generator(config.seed, "crop", step))
        if config.random_flip:
            mirrored = torch.rand(size, generator=generator(config.seed, "flip", step)) < 0.5
        parts = []
        for number in range(config.gradient_accumulation_steps):
            mine = slice(self.slots(number).start, self.slots(number).stop)
            pixels, labels = source.load(taken[mine])
            if labels is not None:
                labels = labels.masked_fill(dropped[mine], len(self._data.class_names))
            tensors = [pixels, labels, *(None if t is None else t[mine] for t in (corners, mirrored))]
            if self._pinned:
                tensors = [None if t is None else t.pin_memory() for t in tensors]
            parts.append(_HostPart(*tensors))
        return parts
