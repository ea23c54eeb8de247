"""The loss on images that are not trained on, with the same t and the same noise each time."""

import torch
from accelerate import Accelerator
from image_data import ImageData
from objectives import Objective
from random_batches import Batch, generator
from train_config import TrainConfig
from train_log import QUARTILES


class Validation:
    """Measures `model` on the validation images; t covers 0…T−1 evenly, whatever their number.

    The images are divided among the processes; the result is the same in each.
    """

    def __init__(self, config: TrainConfig, data: ImageData, objective: Objective, accelerator: Accelerator):
        self._config, self._data, self._objective, self._accelerator = config, data, objective, accelerator
        count = len(data)
        spread = (torch.arange(count) * config.num_train_timesteps + config.num_train_timesteps // 2) // count
        self._timesteps = spread[torch.randperm(count, generator=generator(config.seed, "validation order"))]

    @torch.no_grad()
    def measure(self, model) -> list[float]:
        """The mean loss, and its mean in each quartile of t (NaN where no image falls)."""
        accelerator, config = self._accelerator, self._config
        per_process = -(-len(self._data) // accelerator.num_processes)
        first = accelerator.process_index * per_process
        sums = torch.zeros(2, QUARTILES, dtype=torch.float64)
        # Every process computes as often as the others, who may wait for it: the last rows are repeated, and not counted.
        for start in range(first, first + per_process, config.batch_size):
            rows = torch.arange(start, min(start + config.batch_size, first + per_process))
            counted = rows < len(self._data)
            batch = self._batch(rows.clamp(max=len(self._data) - 1))
            losses = self._objective(model, batch).per_image.double().cpu()
            quartile = batch.timesteps.cpu() * QUARTILES // config.num_train_timesteps
            sums[0].index_add_(0, quartile, losses * counted)
            sums[1].index_add_(0, quartile, counted.double())
        sums = accelerator.reduce(sums.to(accelerator.device), "sum").cpu()
        return [(sums[0].sum() / sums[1].sum()).item(), *(sums[0] / sums[1]).tolist()]

    def _batch(self, rows: torch.Tensor) -> Batch:
        device, labels = self._accelerator.device, self._data.labels
        noise = [
            torch.randn(self._data.image_shape, generator=generator(self._config.seed, "validation noise", row))
            for row in rows.tolist()
        ]
        return Batch(
            pixels=self._data.fetch(rows).to(device),
            labels=None if labels is None else labels[rows].to(device),
            noise=torch.stack(noise).to(device),
            timesteps=self._timesteps[rows].to(device),
            loss_weights=None,
        )
