"""Which timesteps a batch trains: uniform, stratified over the batch, or by importance (Nichol & Dhariwal 2021).

Every draw is a function of the seed and the step (and, by importance, of the losses so far), whatever shares the batch.
"""

import torch
from config_checks import LOSSES_PER_TIMESTEP
from random_batches import generator
from train_config import TrainConfig


class TimestepSampler:
    """Draws the timesteps of whole batches on their device; the host reads none of them.

    - `uniform`: each t is independent and uniform on 0…T−1 ([Ho] algorithm 1, arXiv:2006.11239).
    - `stratified`: of a batch of B, one t falls into each of B equal parts of the range, in an order that is random. Each t
      alone is uniform, and the mean over a batch varies less.
    - `importance`: p_t ∝ √E[L_t²], from the last ten losses of each t, and the losses are weighted by 1/(T p_t), which keeps
      their mean (arXiv:2102.09672, equation 18). Uniform until every t has ten. A loss that is not finite is not counted. The
      share `importance_uniform_share` of the draws stays uniform, so that weights are at most 1 over it.

    Args:
        config (`TrainConfig`): `timestep_sampling`, `importance_uniform_share`, `num_train_timesteps`, `batch_size`, `seed`.
        device (`torch.device`): where the timesteps are used. CPU and GPU draw different numbers.
    """

    def __init__(self, config: TrainConfig, device: torch.device):
        self._config = config
        self._device = device
        self._real = torch.float32 if device.type == "mps" else torch.float64  # there is no float64 on MPS
        num_train = config.num_train_timesteps
        if self.needs_losses:
            # One row more than there are timesteps takes what is not to be counted.
            self._losses = torch.zeros(num_train + 1, LOSSES_PER_TIMESTEP, device=device)
            self._counts = torch.zeros(num_train + 1, dtype=torch.int64, device=device)

    @property
    def needs_losses(self) -> bool:
        """Whether [`update`] must be told the losses."""
        return self._config.timestep_sampling == "importance"

    def draw(self, step: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The timesteps of a step's whole batch.

        Args:
            step (`int`): ≥ 0.

        Returns:
            Timesteps, `int64`, shape (batch_size,), from 0 to T−1; and what each image's loss is to be multiplied by, `float32`,
            shape (batch_size,), or `None` where that is 1.
        """
        source = generator(self._config.seed, "timesteps", step, device=self._device)
        shape = (2, self._config.batch_size)
        return self._from_numbers(torch.rand(shape, generator=source, device=self._device, dtype=self._real))

    def _from_numbers(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Turns numbers that are uniform on [0, 1), two for each image, into timesteps."""
        uniform, order = numbers
        if self.needs_losses:
            return self._by_importance(uniform)
        if self._config.timestep_sampling == "stratified":
            slots = torch.arange(len(uniform), dtype=self._real, device=self._device)
            uniform = ((slots + uniform) / len(uniform)).index_select(0, order.argsort(stable=True))
        num_train = self._config.num_train_timesteps
        # Rounding can make the largest of them 1.
        return (uniform * num_train).long().clamp_(max=num_train - 1), None

    def _by_importance(self, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        probabilities = self._probabilities()
        cumulative = probabilities.cumsum(0)
        timesteps = torch.searchsorted(cumulative, uniform, right=True)  # its last entry is 1 but for roundings
        timesteps.clamp_(max=len(probabilities) - 1)
        weights = 1 / (len(probabilities) * probabilities.index_select(0, timesteps))
        return timesteps, weights.float()

    def _probabilities(self) -> torch.Tensor:
        """p_t, shape (T,)."""
        num_train = self._config.num_train_timesteps
        size = self._losses.narrow(0, 0, num_train).to(self._real).square().mean(dim=1).sqrt()
        total = size.sum()
        is_known = (self._counts.narrow(0, 0, num_train).min() >= LOSSES_PER_TIMESTEP) & (total > 0)
        uniform = torch.full_like(size, 1 / num_train)
        mixed = torch.lerp(size / total, uniform, self._config.importance_uniform_share)
        return torch.where(is_known, mixed, uniform)

    def update(self, timesteps: torch.Tensor, losses: torch.Tensor) -> None:
        """Takes the losses of a whole batch into the history, the oldest of each t giving way.

        Args:
            timesteps (`torch.Tensor` of `int64`, shape (n,)): as [`draw`] returned them, in the order of the slots, on every
                process the same.
            losses (`torch.Tensor`, shape (n,)): each image's loss before importance weights. Several of one t all count.
        """
        if not self.needs_losses:
            return
        nowhere = self._config.num_train_timesteps
        timesteps, order = torch.where(losses.isfinite(), timesteps, nowhere).sort(stable=True)
        losses = losses.index_select(0, order).to(self._losses.dtype)
        # The k-th loss of a t in this batch goes k places on in its ring. Of more than ten the last ten stay: of two that go
        # to one place a GPU would keep any.
        begin, end = (torch.searchsorted(timesteps, timesteps, right=right) for right in (False, True))
        number = torch.arange(len(timesteps), device=timesteps.device)
        place = (self._counts.index_select(0, timesteps) + number - begin) % LOSSES_PER_TIMESTEP
        is_kept = end - number <= LOSSES_PER_TIMESTEP
        flat = torch.where(is_kept, timesteps * LOSSES_PER_TIMESTEP + place, nowhere * LOSSES_PER_TIMESTEP)
        self._losses.view(-1).scatter_(0, flat, torch.where(is_kept, losses, 0.0))
        self._counts.scatter_add_(0, timesteps, torch.ones_like(timesteps))

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold: the losses, shape (T, 10), and how many there were of each t, shape (T,)."""
        if not self.needs_losses:
            return {}
        num_train = self._config.num_train_timesteps
        return {"losses": self._losses[:num_train].clone(), "counts": self._counts[:num_train].clone()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Goes on from what [`state`] returned.

        Raises:
            ValueError: if it is that of another configuration.
        """
        mine = self.state()
        if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in mine.items()}:
            raise ValueError(
                f"the saved state of the timestep sampler holds {_shapes(state)}; `timestep_sampling` = "
                f"{self._config.timestep_sampling!r} with T = {self._config.num_train_timesteps} needs {_shapes(mine)}."
            )
        for name, own in (("losses", "_losses"), ("counts", "_counts")):
            if name in state:
                getattr(self, own)[: self._config.num_train_timesteps].copy_(state[name])


def _shapes(state: dict[str, torch.Tensor]) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in state.items()) or "nothing"
