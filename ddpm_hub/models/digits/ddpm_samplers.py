"""The samplers by name: each leads from x_t to x_s by one prediction of the network.

This file is copied beside every model that is published: it imports its siblings, torch and diffusers.
"""

import copy

import torch

from .ddpm_argument_checks import check_choice, check_fraction, check_integer
from .ddpm_fast_solvers import ADDS_NOISE, FAST_SOLVERS, set_solver_timesteps, solver_of_predictions
from .ddpm_noise_sources import NoiseSource
from .scheduling_ddpm_hub import DDPMHubScheduler

SAMPLERS = ("ddpm", "ddim", *FAST_SOLVERS)
# Where nobody says how many: DDPM takes every step that was trained.
_USUAL_STEPS = {"ddim": 50} | dict.fromkeys(FAST_SOLVERS, 20)


class DDPMSampler:
    """The scheduler's own reverse step: DDPM at η = 1, DDIM at η = 0, and all between.

    Attributes:
        timesteps (`list[int]`): t of each step, none after a smaller one.
        eta (`float`): η.
    """

    def __init__(self, scheduler: DDPMHubScheduler, num_inference_steps: int, eta: float):
        self._scheduler = copy.copy(scheduler)  # set_timesteps must not disturb another call
        self._scheduler.set_timesteps(num_inference_steps)
        self.eta = eta
        self.timesteps: list[int] = self._scheduler.timesteps.tolist()

    def begin(self, index: int) -> None:
        """Says at which of the timesteps the next step is; every step is alone here."""

    def replaced(self) -> None:
        """Says that another sample took the place of what the last step led to."""

    def step(self, output: torch.Tensor, index: int, sample: torch.Tensor, noise: NoiseSource) -> tuple:
        """(x_s, x̂_0) from the network's output for `sample` = x_t, t = `timesteps[index]`."""
        drawn = {} if self.eta == 0 else noise.for_step(sample)
        return self._scheduler.step(output, self.timesteps[index], sample, return_dict=False, eta=self.eta, **drawn)

    def add_noise(self, original: torch.Tensor, noise: torch.Tensor, index: int) -> torch.Tensor:
        """x_t from x_0, t = `timesteps[index]`."""
        return self._scheduler.add_noise(original, noise, self.timesteps[index])

    def add_noise_between(self, sample: torch.Tensor, noise: torch.Tensor, source: int, target: int) -> torch.Tensor:
        """x_t from x_s by the merge of all steps between; `source` and `target` are timesteps."""
        return self._scheduler.add_noise_between(sample, noise, source, target)

    def step_inverse(self, output: torch.Tensor, index: int, sample: torch.Tensor) -> torch.Tensor:
        """x_t from x_s by DDIM inversion, t = `timesteps[index]`."""
        return self._scheduler.step_inverse(output, self.timesteps[index], sample)

    def predict_original(self, output: torch.Tensor, index: int, sample: torch.Tensor) -> torch.Tensor:
        """x̂_0, were `sample` x_t, t = `timesteps[index]`."""
        prediction = output[:, : sample.shape[1]].to(sample.dtype)
        return self._scheduler.predict_original_sample(prediction, sample, self.timesteps[index])


class SolverSampler:
    """A multistep solver of diffusers; attributes and methods as in [`DDPMSampler`]."""

    def __init__(self, scheduler: DDPMHubScheduler, name: str, num_inference_steps: int):
        self._adds_noise = name == ADDS_NOISE
        self._solver = solver_of_predictions(scheduler, name)
        set_solver_timesteps(self._solver, num_inference_steps)
        self.timesteps: list[int] = self._solver.timesteps.tolist()

    def begin(self, index: int) -> None:
        self._solver.set_begin_index(index)

    def step(self, output: torch.Tensor, index: int, sample: torch.Tensor, noise: NoiseSource) -> tuple:
        prediction = output[:, : sample.shape[1]].to(sample.dtype)  # the rest is a learned variance, of no use here
        drawn = {"variance_noise": noise.draw(sample)} if self._adds_noise else {}
        (following,) = self._solver.step(prediction, self.timesteps[index], sample, return_dict=False, **drawn)
        return following, self._solver.model_outputs[-1].clone()  # the solver needs its own again

    def replaced(self) -> None:
        self._solver.last_sample = None  # UniPC would correct what is there by where it had been itself

    def add_noise(self, original: torch.Tensor, noise: torch.Tensor, index: int) -> torch.Tensor:
        # The solver's own time is finer than `timesteps`, which the network is asked at.
        self._solver.set_begin_index(index)
        return self._solver.add_noise(original, noise, self._solver.timesteps[index : index + 1])


def make_sampler(
    scheduler: DDPMHubScheduler, name: str = "ddpm", num_inference_steps: int | None = None, eta: float | None = None
) -> DDPMSampler | SolverSampler:
    """A sampler for one call: it shares no state that changes with another.

    Args:
        scheduler (`DDPMHubScheduler`): the network's.
        name (`str`): one of [`SAMPLERS`].
        num_inference_steps (`int`, *optional*): n, from 1 to T; by default T for `ddpm`, 50 for `ddim`, and 20.
        eta (`float`, *optional*): η of `ddpm` and `ddim`; by default 1 and 0.

    Raises:
        ValueError: for an unknown name, an n or η outside its range, or η for a solver.
    """
    check_choice("sampler", name, SAMPLERS)
    num_train = len(scheduler)
    steps = min(_USUAL_STEPS.get(name, num_train), num_train) if num_inference_steps is None else num_inference_steps
    steps = check_integer("num_inference_steps", steps, 1, num_train)
    if eta is not None:
        eta = check_fraction("eta", eta, "from 0 (DDIM) to 1 (DDPM)")
    if name not in FAST_SOLVERS:
        return DDPMSampler(scheduler, steps, eta if eta is not None else 1.0 if name == "ddpm" else 0.0)
    if num_train < 2:
        raise ValueError(f"`sampler` is {name!r}, which needs T of at least 2; use 'ddpm'.")
    if eta is not None and (eta or name == ADDS_NOISE):
        does = "has its own noise" if name == ADDS_NOISE else "adds no noise"
        raise ValueError(f"`eta` is {eta!r}, but `sampler` = {name!r} {does}; use 'ddpm' or 'ddim', or leave it out.")
    return SolverSampler(scheduler, name, steps)
