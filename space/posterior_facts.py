"""What is known of x_s once x_t and x_0 are: the posterior q(x_s | x_t, x_0) of any two times 0 ≤ s < t ≤ T, in numbers.

All formulas are those of `ddpm_hub.ddpm_equations`, on the model's own log ᾱ. Time is the paper's: t = 1…T, and s = 0 is
clean data.
"""

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
import torch
from both_languages import Both
from request_checks import number, whole_number

from ddpm_hub import DDPMHubScheduler
from ddpm_hub.ddpm_equations import (
    noise_rate,
    original_sample_weights,
    posterior_linear_weights,
    posterior_mean_weights,
    posterior_precision,
    posterior_variance,
    reverse_variance,
    signal_rate,
    snr,
)
from ddpm_hub.scheduling_ddpm_hub import LEARNED_VARIANCE_TYPES, VARIANCE_TYPES

LARGEST_X0 = 1.0
LARGEST_XT = 3.0

_T, _S = Both("t", "t"), Both("s", "s")


@dataclass(frozen=True)
class PosteriorFacts:
    """The posterior q(x_s | x_t, x_0), which is normal: its mean is linear in x_0 and x_t, its variance knows neither.

    Attributes:
        t, s (`int`): 0 ≤ s < t ≤ T.
        weight_x0, weight_xt (`float`): of x_0 and of x_t in the mean μ̃ ([Ho] equation 7).
        variance, std (`float`): β̃ and its square root; 0 at s = 0.
        alpha_bar_t, alpha_bar_s (`float`): ᾱ, 1 at s = 0.
        snr_t, snr_s (`float`): ᾱ/(1−ᾱ); ∞ at s = 0.
        precision (`float`): A = 1/β̃; ∞ at s = 0.
        linear_weight_x0, linear_weight_xt (`float`): of x_0 and of x_t in B, where μ̃ = B/A; the first is ∞ at s = 0.
    """

    t: int
    s: int
    weight_x0: float
    weight_xt: float
    variance: float
    std: float
    alpha_bar_t: float
    alpha_bar_s: float
    snr_t: float
    snr_s: float
    precision: float
    linear_weight_x0: float
    linear_weight_xt: float

    def as_dict(self) -> dict[str, int | float | None]:
        """All of it by name; `None` stands for ∞, which JSON does not know."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


@dataclass(frozen=True)
class PosteriorExample:
    """The posterior of one number, and the two that it comes from by Bayes: it is their product, made a density.

    Attributes:
        facts (`PosteriorFacts`): the weights and the variance.
        x_0, x_t (`float`): the chosen numbers.
        posterior (`NormalDist`): q(x_s | x_t, x_0); at s = 0 its standard deviation is 0: a point mass at x_0.
        prior (`NormalDist`): q(x_s | x_0), likewise.
        likelihood (`NormalDist` or `None`): q(x_t | x_s) as a density of x_s; `None` where x_t says nothing (ᾱ_t = 0).
    """

    facts: PosteriorFacts
    x_0: float
    x_t: float
    posterior: NormalDist
    prior: NormalDist
    likelihood: NormalDist | None


def checked_times(scheduler: DDPMHubScheduler, t: object, s: object = None) -> tuple[int, int]:
    """t and s as `int`s; `None` for s is t − 1.

    Raises:
        InvalidRequestError: unless t is a whole number from 1 to T and s one from 0 to t − 1.
    """
    t = whole_number(_T, t, 1, len(scheduler))
    return t, t - 1 if s is None else whole_number(_S, s, 0, t - 1)


def posterior_facts(scheduler: DDPMHubScheduler, t: int, s: int | None = None) -> PosteriorFacts:
    """The posterior of two times; errors as in [`checked_times`].

    Args:
        scheduler (`DDPMHubScheduler`): whose noise schedule it is.
        t (`int`): 1 to T.
        s (`int`, *optional*): 0 to t − 1; by default t − 1, which is the one of [Ho].
    """
    t, s = checked_times(scheduler, t, s)
    log_t, log_s = (scheduler.log_alphas_cumprod[time] for time in (t, s))
    variance = posterior_variance(log_t, log_s)
    values = (
        *posterior_mean_weights(log_t, log_s),
        variance,
        variance.sqrt(),
        log_t.exp(),
        log_s.exp(),
        snr(log_t),
        snr(log_s),
        posterior_precision(log_t, log_s),
        *posterior_linear_weights(log_t, log_s),
    )
    # None is negative, but at s = 0 there are zeros of either sign, and so are their inverses.
    return PosteriorFacts(t, s, *(abs(value.item()) for value in values))


def posterior_example(scheduler: DDPMHubScheduler, t: int, s: int | None, x_0: float, x_t: float) -> PosteriorExample:
    """The posterior of one number, for a picture.

    Args:
        scheduler, t, s: as in [`posterior_facts`].
        x_0 (`float`): −1 to 1.
        x_t (`float`): −3 to 3.

    Raises:
        InvalidRequestError: for a value outside its range.
    """
    facts = posterior_facts(scheduler, t, s)
    x_0 = number(Both("x_0", "x_0"), x_0, -LARGEST_X0, LARGEST_X0)
    x_t = number(Both("x_t", "x_t"), x_t, -LARGEST_XT, LARGEST_XT)
    log_t, log_s = (scheduler.log_alphas_cumprod[time] for time in (facts.t, facts.s))
    # x_s from x_t and ε is the formula of x_0 from x_t and ε, over the steps between.
    scale, spread = (abs(weight.item()) for weight in original_sample_weights("epsilon", log_t - log_s))
    return PosteriorExample(
        facts,
        x_0,
        x_t,
        posterior=NormalDist(facts.weight_x0 * x_0 + facts.weight_xt * x_t, facts.std),
        prior=NormalDist(signal_rate(log_s).item() * x_0, abs(noise_rate(log_s).item())),
        likelihood=NormalDist(scale * x_t, spread) if math.isfinite(scale) else None,
    )


def density_points(distribution: NormalDist, low: float, high: float, count: int = 121) -> tuple[list, list]:
    """Positions from `low` to `high` and the density there, at most 2·`count`: however narrow, the peak is among them.

    Raises:
        ValueError: for a point mass, which has no density.
    """
    if not distribution.stdev:
        raise ValueError("`distribution` has standard deviation 0: a point mass has no density.")
    around = distribution.mean + distribution.stdev * np.linspace(-5, 5, count)
    positions = np.union1d(np.linspace(low, high, count), around[(low <= around) & (around <= high)]).tolist()
    return positions, [distribution.pdf(x) for x in positions]


def weight_curves(scheduler: DDPMHubScheduler, gap: int = 1) -> tuple[list[int], list[float], list[float]]:
    """Every t with s = t − `gap`, and the weights of x_0 and of x_t in the posterior mean there.

    Raises:
        InvalidRequestError: unless `gap` is a whole number from 1 to T.
    """
    gap = whole_number(Both("t − s", "t − s"), gap, 1, len(scheduler))
    log_abar = scheduler.log_alphas_cumprod
    weights = posterior_mean_weights(log_abar[gap:], log_abar[:-gap])
    return list(range(gap, len(log_abar))), *(weight.abs().tolist() for weight in weights)


def reverse_std(scheduler: DDPMHubScheduler, t: int, s: int) -> float | None:
    """σ of the noise that this model's DDPM adds to the posterior mean from t to s, by its `variance_type`.

    It is 0 at s = 0 ([Ho] algorithm 2), and `None` where the network says it pixel by pixel. Errors as in
    [`checked_times`].
    """
    t, s = checked_times(scheduler, t, s)
    kind = VARIANCE_TYPES[scheduler.config.variance_type]
    if s == 0:
        return 0.0
    if kind in LEARNED_VARIANCE_TYPES:
        return None
    known = scheduler.config.original_sample_variances
    known = None if known is None else torch.tensor(known[t - 1], dtype=torch.float64)
    log_t, log_s = (scheduler.log_alphas_cumprod[time] for time in (t, s))
    return reverse_variance(kind, log_t, log_s, known).sqrt().item()
