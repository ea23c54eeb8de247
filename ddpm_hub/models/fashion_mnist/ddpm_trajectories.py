"""The ways through the noise levels, step by step: down, down with known pixels, and up again.

Each is a generator of [`DDPMHubState`] and returns the last sample. A tensor that is sent to it takes the place of the
sample; the sample itself, as it was, changes nothing. This file is copied beside every model that is published: it
imports its siblings and torch.
"""

from collections.abc import Generator
from dataclasses import dataclass

import torch

from .ddpm_network_calls import NetworkCalls
from .ddpm_noise_sources import NoiseSource
from .ddpm_samplers import DDPMSampler, SolverSampler


@dataclass(frozen=True, slots=True)
class DDPMHubState:
    """What sampling knows after one reverse step.

    Attributes:
        step (`int`): 0…`num_steps` − 1, the number of the step that was just taken.
        timestep (`int`): t, the timestep (0…T−1) at which the network was called.
        sample (`torch.Tensor`, float32, shape (B, C, H, W)): x_s, the state that the step led to; after the last step
            it is the result.
        pred_original_sample (`torch.Tensor`, like `sample`): x̂_0, what the network took x_t to be a noisy version of.
        num_steps (`int`): how many steps there are.
    """

    step: int
    timestep: int
    sample: torch.Tensor
    pred_original_sample: torch.Tensor
    num_steps: int


Trajectory = Generator[DDPMHubState, torch.Tensor | None, torch.Tensor]


def denoise(
    network: NetworkCalls,
    sampler: DDPMSampler | SolverSampler,
    noise: NoiseSource,
    sample: torch.Tensor,
    start: int = 0,
) -> Trajectory:
    """From x_t, t = `sampler.timesteps[start]`, down to clean data ([Ho] algorithm 2)."""
    sampler.begin(start)
    num_steps = len(sampler.timesteps) - start
    for step in range(num_steps):
        timestep = sampler.timesteps[start + step]
        with torch.no_grad():
            sample, pred_original = sampler.step(network(sample, timestep), start + step, sample, noise)
        version = sample._version
        given = yield DDPMHubState(step, timestep, sample, pred_original, num_steps)
        # diffusers' callbacks give back all they got: what is as it was takes nobody's place.
        if given is not None and (given is not sample or sample._version != version):
            sample = checked_replacement(given, sample)
            sampler.replaced()
    return sample


def repaint(
    network: NetworkCalls,
    sampler: DDPMSampler,
    noise: NoiseSource,
    known: torch.Tensor,
    mask: torch.Tensor,
    moves: list[tuple[int, int]],
) -> Trajectory:
    """From pure noise down to clean data, with known pixels (Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1).

    After each step the known pixels are those of q(x_s | x_0). Going back up is one draw of q(x_t | x_s), exact over any
    number of steps: x_t = √(ᾱ_t/ᾱ_s) x_s + √(1−ᾱ_t/ᾱ_s) ε.

    Args:
        known (`torch.Tensor`, shape (B, C, H, W)): x_0 of the known pixels.
        mask (`torch.Tensor` of `bool`, broadcasts against it): where it is to be painted.
        moves (`list[tuple[int, int]]`): as of [`repaint_moves`].
    """
    last, times = len(sampler.timesteps), sampler.timesteps
    num_steps, step = sum(after > before for before, after in moves), 0
    sample = noise.draw(known)
    for before, after in moves:
        if after < before:
            sample = sampler.add_noise_between(sample, noise.draw(sample), times[before], times[after])
            continue
        with torch.no_grad():
            painted, pred_original = sampler.step(network(sample, times[before]), before, sample, noise)
        noisy = known if after == last else sampler.add_noise(known, noise.draw(known), after)
        sample, pred_original = torch.where(mask, painted, noisy), torch.where(mask, pred_original, known)
        given = yield DDPMHubState(step, times[before], sample, pred_original, num_steps)
        sample = sample if given is None else checked_replacement(given, sample)
        step += 1
    return sample


def repaint_moves(num_steps: int, resamplings: int, jump_length: int) -> list[tuple[int, int]]:
    """The walk through the levels 0…n (n is clean data): (i, i + 1) is a reverse step, (i, i − j) a jump back by j.

    At each j-th level before the last step the j steps that led there are taken `resamplings` times in all; of fewer than
    j + 1 steps, all but the last are.
    """
    moves: list[tuple[int, int]] = []
    jump_length = max(1, min(jump_length, num_steps - 1))
    for level in range(1, num_steps + 1):
        moves.append((level - 1, level))
        if level < num_steps and (num_steps - 1 - level) % jump_length == 0 and level >= jump_length:
            block = [(i, i + 1) for i in range(level - jump_length, level)]
            moves += [(level, level - jump_length), *block] * (resamplings - 1)
    return moves


def invert(network: NetworkCalls, sampler: DDPMSampler, sample: torch.Tensor, start: int = 0) -> Trajectory:
    """From clean data up to x_t, t = `sampler.timesteps[start]`, by DDIM inversion (arXiv:2010.02502, section 4.3)."""
    num_steps = len(sampler.timesteps) - start
    for step in range(num_steps):
        index = len(sampler.timesteps) - 1 - step
        timestep = sampler.timesteps[index]
        with torch.no_grad():
            output = network(sample, timestep)
            pred_original = sampler.predict_original(output, index, sample)
            sample = sampler.step_inverse(output, index, sample)
        given = yield DDPMHubState(step, timestep, sample, pred_original, num_steps)
        sample = sample if given is None else checked_replacement(given, sample)
    return sample


def checked_replacement(given: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """What takes the place of a sample, in its precision and on its device."""
    if not isinstance(given, torch.Tensor) or given.shape != sample.shape or not given.is_floating_point():
        what = (
            f"has shape {tuple(given.shape)} and dtype {given.dtype}" if isinstance(given, torch.Tensor) else "is none"
        )
        raise ValueError(
            f"`sample`, which a callback or `send` put in place of another, {what}; it must be a floating-point tensor of "
            f"shape {tuple(sample.shape)}."
        )
    return given.detach().to(sample)
