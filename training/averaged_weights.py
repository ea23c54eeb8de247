"""Averages of the weights over training: plain with warm-up, and power-function ([Ka] arXiv:2312.02696, section 3.1).

Both follow θ̂ ← β θ̂ + (1 − β) θ after each optimizer step, and differ in β of that step. Each average takes one float32
copy of the parameters.
"""

import math

import torch
from config_checks import LARGEST_EMA_STD
from sharded_tensors import divided_as, joined_as, own_part, whole
from train_config import TrainConfig


def gamma_of(std: float) -> float:
    """The exponent γ ≥ 0 of the profile τ^γ whose relative width is `std`: [Ka] appendix C, solved for γ.

    σ² = (γ + 1) / ((γ + 2)² (γ + 3)) falls strictly for γ ≥ 0, and is below 1 / (γ + 2)²: so γ lies between 0 and 1/σ.
    """
    if not 0 < std <= LARGEST_EMA_STD:
        raise ValueError(
            f"`std` is {std!r}; it must be above 0 and at most {LARGEST_EMA_STD:.4f}, of the mean of all steps."
        )
    low, high = 0.0, 1 / std
    while low < (middle := (low + high) / 2) < high:
        if (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > std**2:
            low = middle
        else:
            high = middle
    return low


def warm_decay(largest: float, step: int) -> float:
    """β after optimizer step 1, 2, …: min(largest, 1 − step^(−3/4)), zero at the first, as the weights before it are noise.

    What diffusers' `EMAModel(use_ema_warmup=True, power=3/4)` takes.
    """
    return min(largest, 1 - step**-0.75)


def power_decay(gamma: float, step: int) -> float:
    """β_γ(t) = (1 − 1/t)^(γ + 1) after optimizer step t = 1, 2, … ([Ka] section 3.1)."""
    return 0.0 if step == 1 else math.exp((gamma + 1) * math.log1p(-1 / step))


class AveragedWeights:
    """Several averages of the same parameters.

    Args:
        config (`TrainConfig`): `ema_decays` and `ema_stds`.
        parameters (`dict` of `torch.Tensor`): the parameters by name, in any floating point type; no buffers. They may be
            `DTensor`s, of which each process averages its own part.
    """

    def __init__(self, config: TrainConfig, parameters: dict[str, torch.Tensor]):
        self._parameters = dict(parameters)
        self.decays = {f"decay_{decay!r}": decay for decay in config.ema_decays}
        self.stds = {f"std_{std!r}": std for std in config.ema_stds}
        self._gammas = {name: gamma_of(std) for name, std in self.stds.items()}
        # float32 also of bfloat16: in 8 bits of precision, a step of a share below 1/512 is lost.
        self._averages = {name: [part.to(torch.float32, copy=True) for part in self._parts()] for name in self.names}

    @property
    def names(self) -> list[str]:
        """`decay_0.9999`, `std_0.05`, …: the first one is what is sampled and saved."""
        return [*self.decays, *self.stds]

    def decay(self, name: str, step: int) -> float:
        """β of an average after the optimizer's step number `step` = 1, 2, …"""
        if name in self.decays:
            return warm_decay(self.decays[name], step)
        return power_decay(self._gammas[name], step)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Adds what the parameters are after the optimizer's step number `step` = 1, 2, … The device is not waited for."""
        parts = [part.float() for part in self._parts()]  # themselves, where they are float32
        for name in self.names:
            torch._foreach_lerp_(self._averages[name], parts, 1 - self.decay(name, step))

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """An average as whole float32 tensors by the parameters' names. Of `DTensor`s every process must ask for it.

        Where nothing is spread over processes, these are the averages themselves and no copies.
        """
        return {
            key: whole(joined_as(average, parameter))
            for (key, parameter), average in zip(self._parameters.items(), self._averages[name], strict=True)
        }

    @torch.no_grad()
    def load(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """Takes over what [`state`] gave. Of `DTensor`s every process must do so.

        Raises:
            ValueError: if names or shapes are not those of the parameters.
        """
        if odd := sorted(self._parameters.keys() ^ tensors.keys()):
            raise ValueError(f"`tensors` and the parameters do not have the same names: {', '.join(odd[:5])}.")
        for key, parameter in self._parameters.items():
            if tensors[key].shape != parameter.shape:
                raise ValueError(
                    f"`tensors` has {key!r} of shape {list(tensors[key].shape)}; it must be {list(parameter.shape)}."
                )
        for (key, parameter), average in zip(self._parameters.items(), self._averages[name], strict=True):
            average.copy_(own_part(divided_as(tensors[key], parameter)))

    def _parts(self) -> list[torch.Tensor]:
        """What this process has of each parameter, sharing its memory. Asked for anew each time: FSDP may move it."""
        return [own_part(parameter.detach()) for parameter in self._parameters.values()]
