"""The forward process for one image: x_t in one jump, and the same x_t one step at a time.

Every weight is the scheduler's. Time is the paper's t = 1…T; the scheduler's timestep is t − 1. Nothing is remembered
between two calls: the image, the seed and t give the result.
"""

import math
from dataclasses import dataclass

import numpy as np
import served_models
import torch
from both_languages import Both
from drawing import checked_seed
from pictures import fitted
from PIL import Image
from request_checks import InvalidRequestError, whole_number

from ddpm_hub import DDPMHubScheduler
from ddpm_hub.ddpm_equations import normalize
from ddpm_hub.ddpm_sample_arithmetic import linear_combination

LARGEST_SIDE = 64
WALKED_VALUES = 3072  # T noises are drawn for each
# The distance of two neighbouring values of 8 bits.
GREY_LEVEL = normalize(torch.tensor([0, 1], dtype=torch.uint8)).diff().item()
_HISTOGRAM_VALUES = 12_000
_BLOCK = 50  # steps whose noise is in memory at a time


@dataclass(frozen=True)
class Jump:
    """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε.

    Attributes:
        original, noisy (`torch.Tensor`): x_0 and x_t, float32, shape (1, C, H, W).
        signal_rate, noise_rate (`float`): √ᾱ_t and √(1−ᾱ_t).
        snr (`float`): ᾱ_t/(1−ᾱ_t).
        values (`numpy.ndarray`): values of x_t, of as many draws as make at least 12000; the first is `noisy`.
        draws (`int`): how many.
    """

    original: torch.Tensor
    noisy: torch.Tensor
    signal_rate: float
    noise_rate: float
    snr: float
    values: np.ndarray
    draws: int

    @property
    def decibels(self) -> float:
        """10 log₁₀ SNR; −∞ where no signal is left."""
        return 10 * math.log10(self.snr) if self.snr > 0 else -math.inf


@dataclass(frozen=True)
class Walk:
    """t single steps beside one jump with the noise that they merge to.

    Attributes:
        stepwise, jumped (`torch.Tensor`): x_t, one step at a time and in one jump, float32, shape (1, C, H, W).
        difference (`float`): the largest absolute difference of the two.
        mean, variance (`float`): of the values of the merged noise, of all walks.
        walks (`int`): how many were made, so that there are many values of a small image as well; the first is shown.
        squared_weights (`float`): the sum of the squares of the weights with which ε_1…ε_t are merged, which is the variance
            that their sum has; exactly it is 1.
    """

    stepwise: torch.Tensor
    jumped: torch.Tensor
    difference: float
    mean: float
    variance: float
    walks: int
    squared_weights: float

    @property
    def is_same(self) -> bool:
        """Whether the two differ by rounding only: by less than a hundredth of a grey level."""
        return self.difference < GREY_LEVEL / 100


def scheduler_of(model: str | None) -> DDPMHubScheduler:
    """The scheduler of a model, by its title; the paper's schedule where no model loads."""
    try:
        return served_models.pipeline(model).scheduler
    except InvalidRequestError:
        return DDPMHubScheduler()


def small(image: Image.Image, largest: float = LARGEST_SIDE) -> np.ndarray:
    """An image in at most `largest` pixels a side, its sides in proportion; a smaller one as it is.

    Returns:
        `numpy.ndarray`: uint8, shape (H, W, C).
    """
    if max(image.size) > largest:
        width, height = (max(1, int(side * largest / max(image.size))) for side in image.size)
        image = fitted(image, (height, width))
    return np.atleast_3d(np.array(image))


def jump(scheduler: DDPMHubScheduler, pixels: np.ndarray, time: object, seed: object) -> Jump:
    """x_t of an image, with the noise of a seed; the noise is the same for all t.

    Args:
        scheduler (`DDPMHubScheduler`): its T and its ᾱ_t are taken.
        pixels (`numpy.ndarray`): uint8, shape (H, W, C).
        time (`int`): t, 1 to T.
        seed (`int`): of ε.

    Raises:
        InvalidRequestError: for a t or a seed of another type or outside its range.
    """
    timestep, seed = _checked_timestep(scheduler, time), checked_seed(seed)
    original = _as_sample(pixels)
    draws = math.ceil(_HISTOGRAM_VALUES / original.numel())
    noise = torch.randn(draws, *original.shape[1:], generator=torch.Generator().manual_seed(seed))
    noisy = scheduler.add_noise(original.expand_as(noise), noise, timestep)
    signal, rest = _marginal_rates(scheduler, timestep)
    return Jump(
        original=original,
        noisy=noisy[:1],
        signal_rate=signal,
        noise_rate=rest,
        snr=scheduler.snr(timestep).item(),
        values=noisy.flatten().numpy(),
        draws=draws,
    )


def walk(scheduler: DDPMHubScheduler, pixels: np.ndarray, time: object, seed: object) -> Walk:
    """The same x_t twice: by t single steps, and by one jump with the noise of all of them merged.

    The noise of step s is the same for every t ≥ s. An image of many values is made smaller, for its noise is drawn t
    times. Arguments and errors as in [`jump`].
    """
    timestep, seed = _checked_timestep(scheduler, time), checked_seed(seed)
    height, width, channels = pixels.shape
    if pixels.size > WALKED_VALUES:
        side = max(height, width) * math.sqrt(WALKED_VALUES / pixels.size)
        pixels = small(Image.fromarray(pixels.squeeze() if channels == 1 else pixels), side)
    original = _as_sample(pixels)
    walks = max(1, WALKED_VALUES // original.numel())
    original = original.expand(walks, -1, -1, -1)
    kept, added = _step_rates(scheduler, timestep)
    weights = _merging_weights(scheduler, timestep)

    generator, stepwise, merged = torch.Generator().manual_seed(seed), original, torch.zeros(original.shape)
    for first in range(0, timestep + 1, _BLOCK):
        # Blocks are drawn whole, so that ε_s is the same whatever t is.
        noises = torch.randn(_BLOCK, *original.shape, generator=generator)[: timestep + 1 - first]
        for s, noise in enumerate(noises, first):
            stepwise = linear_combination(kept[s], stepwise, added[s], noise)
        part = weights[first : first + len(noises)].float()
        merged += (part @ noises.flatten(1)).view_as(merged)
    jumped = scheduler.add_noise(original, merged, timestep)
    return Walk(
        stepwise=stepwise[:1],
        jumped=jumped[:1],
        difference=(stepwise - jumped).abs().max().item(),
        mean=merged.mean().item(),
        variance=merged.var(correction=0).item(),
        walks=walks,
        squared_weights=weights.square().sum().item(),
    )


def _checked_timestep(scheduler: DDPMHubScheduler, time: object) -> int:
    return whole_number(Both("t", "t"), time, 1, len(scheduler)) - 1


def _as_sample(pixels: np.ndarray) -> torch.Tensor:
    return normalize(torch.from_numpy(pixels)).permute(2, 0, 1).unsqueeze(0)


def _marginal_rates(scheduler: DDPMHubScheduler, timestep: int) -> tuple[float, float]:
    """√ᾱ_t and √(1−ᾱ_t): what is left of 1 without noise, and of noise 1 without an image."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    return scheduler.add_noise(one, zero, timestep).item(), scheduler.add_noise(zero, one, timestep).item()


def _step_rates(scheduler: DDPMHubScheduler, timestep: int) -> tuple[list[float], list[float]]:
    """√α_s and √β_s for each step s up to t, in float32, as `add_noise_between` applies them to a sample."""
    target = torch.arange(timestep + 1)
    one, zero = torch.ones(len(target)), torch.zeros(len(target))
    kept = scheduler.add_noise_between(one, zero, target - 1, target)
    return kept.tolist(), scheduler.add_noise_between(zero, one, target - 1, target).tolist()


def _merging_weights(scheduler: DDPMHubScheduler, timestep: int) -> torch.Tensor:
    """The weight of each ε_s in the one ε of the jump: √(ᾱ_t/ᾱ_s) √β_s/√(1−ᾱ_t), float64, shape (t,)."""
    source = torch.arange(timestep + 1)
    one, zero = torch.ones(len(source), dtype=torch.float64), torch.zeros(len(source), dtype=torch.float64)
    added = scheduler.add_noise_between(zero, one, source - 1, source)
    kept = scheduler.add_noise_between(one, zero, source, torch.full_like(source, timestep))
    return kept * added / scheduler.add_noise(zero, one, timestep)
