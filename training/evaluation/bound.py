"""Bits per dimension by the full variational bound ([Ho] equation 5), and how well the network is calibrated, in one pass.

[Ho] is Ho, Jain, Abbeel 2020, arXiv:2006.11239. For every pair of an image and a timestep the network is called once, at
x_t drawn from q(x_t | x_0); from its answer come the term of the bound for every variance, and the error of the noise.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from random_batches import generator

from ddpm_hub import DDPMHubScheduler
from ddpm_hub.scheduling_ddpm_hub import LEARNED_VARIANCE_TYPES, VARIANCE_TYPES
from ddpm_hub.variational_bound import NATS_PER_BIT, VariationalBound
from evaluation.real_images import RealImages
from evaluation.work import Stage

TIMESTEPS_PER_UNIT = 50  # network calls between two files: seconds
PILOT_IMAGES = 4  # that say which timesteps are important
LEAST_SHARE = 0.1  # of the draws that go to all timesteps alike, so that none is left out by a small pilot
BIAS_BINS = 10  # of t, in which the mean error of the noise is kept
FIXED = ("fixed_small", "fixed_large")


class Measured:
    """A network with its scheduler, as the bound needs it.

    Args:
        unet: the network, in the precision in which it is to compute.
        scheduler (`DDPMHubScheduler`): its schedule; x̂_0 is clipped as its configuration says, so that the bound is that of
            the process which is sampled.
        dtype (`torch.dtype`): of everything but the network: float32 or float64.
    """

    def __init__(self, unet, scheduler: DDPMHubScheduler, dtype: torch.dtype = torch.float32):
        self.unet, self.scheduler, self.dtype = unet, scheduler, dtype
        self.is_learned = VARIANCE_TYPES[scheduler.config.variance_type] in LEARNED_VARIANCE_TYPES

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def __len__(self) -> int:
        return len(self.scheduler)

    @torch.no_grad()
    def call(self, images: RealImages, rows: torch.Tensor, timesteps: torch.Tensor, own: torch.Generator) -> "Answer":
        """The network at x_t of these images, with noise from `own`."""
        x_0, labels = images.as_network_sees(rows)
        noise = torch.randn(x_0.shape, generator=own).to(self.device, self.dtype)
        x_0, timesteps = x_0.to(self.device, self.dtype), timesteps.to(self.device)
        x_t = self.scheduler.add_noise(x_0, noise, timesteps)
        labelled = {} if self.unet.config.num_class_embeds is None else {"class_labels": labels.to(self.device)}
        output = self.unet(x_t.to(self.unet.dtype), timesteps, **labelled).sample.to(self.dtype)
        return Answer(self, x_0, x_t, noise, timesteps, output)


@dataclass(frozen=True)
class Answer:
    """What the network said at x_t."""

    measured: Measured
    x_0: torch.Tensor
    x_t: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    output: torch.Tensor

    @property
    def prediction(self) -> torch.Tensor:
        """Without what is said of the variance."""
        return self.output.chunk(2, dim=1)[0] if self.measured.is_learned else self.output

    def noise_error(self) -> torch.Tensor:
        """ε_θ − ε."""
        scheduler = self.measured.scheduler
        return scheduler.convert_prediction(self.prediction, self.x_t, self.timesteps, "epsilon") - self.noise

    def original_error(self) -> torch.Tensor:
        """x̂_0 − x_0, with x̂_0 bounded as sampling bounds it."""
        scheduler = self.measured.scheduler
        return scheduler.predict_original_sample(self.prediction, self.x_t, self.timesteps) - self.x_0

    def terms(self, bounds: dict[str, VariationalBound]) -> torch.Tensor:
        """The term of each variance: nats per dimension, float64, shape (B, V)."""
        found = []
        for bound in bounds.values():
            learned = VARIANCE_TYPES[bound.scheduler.config.variance_type] in LEARNED_VARIANCE_TYPES
            output = self.output if learned else self.prediction
            found.append(bound.terms(output, self.x_0, self.x_t, self.timesteps, clip_sample=True))
        return torch.stack(found, dim=1).double()


# --- Which images at which timesteps ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class EveryTimestep:
    """All T timesteps of these rows.

    Attributes:
        rows (`torch.Tensor` of `int64`, shape (n,)), num_timesteps (`int`): T, batch_size (`int`)
    """

    rows: torch.Tensor
    num_timesteps: int
    batch_size: int

    @property
    def units(self) -> int:
        return -(-len(self.rows) // self.batch_size) * -(-self.num_timesteps // TIMESTEPS_PER_UNIT)

    def size(self, unit: int) -> int:
        return sum(len(rows) for rows, _ in self.calls(unit))

    def calls(self, unit: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The rows and timesteps of one network call after another."""
        chunk, part = divmod(unit, -(-self.num_timesteps // TIMESTEPS_PER_UNIT))
        rows = self.rows[chunk * self.batch_size : (chunk + 1) * self.batch_size]
        for timestep in range(part * TIMESTEPS_PER_UNIT, min((part + 1) * TIMESTEPS_PER_UNIT, self.num_timesteps)):
            yield rows, torch.full((len(rows),), timestep)

    def weights(self, timesteps: torch.Tensor) -> torch.Tensor:
        """By which the terms at these timesteps are multiplied, so that their sum over an image has the right mean."""
        return torch.ones(len(timesteps), dtype=torch.float64)


@dataclass(frozen=True)
class ImportantTimesteps:
    """K timesteps of each row, drawn with given probabilities; each image's are spread over them (systematic sampling).

    Attributes:
        rows (`torch.Tensor` of `int64`, shape (n,)), batch_size (`int`), count (`int`): K
        probabilities (`torch.Tensor` of `float64`, shape (T,)): none of them zero; the sum is 1.
        seed (`int`)
    """

    rows: torch.Tensor
    batch_size: int
    count: int
    probabilities: torch.Tensor
    seed: int

    @property
    def units(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def size(self, unit: int) -> int:
        return len(self.rows[unit * self.batch_size : (unit + 1) * self.batch_size]) * self.count

    def calls(self, unit: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rows = self.rows[unit * self.batch_size : (unit + 1) * self.batch_size]
        start = torch.rand(len(rows), generator=generator(self.seed, "timesteps", unit), dtype=torch.float64)
        ends = self.probabilities.cumsum(0)
        for k in range(self.count):
            drawn = torch.searchsorted(ends, (start + k) / self.count * ends[-1], right=True)
            yield rows, drawn.clamp(max=len(ends) - 1)

    def weights(self, timesteps: torch.Tensor) -> torch.Tensor:
        return 1 / (self.count * self.probabilities[timesteps])


@dataclass(frozen=True)
class SomeAtEachTimestep:
    """So many rows at each of T timesteps, the next ones each time: for means over images at a timestep."""

    rows: torch.Tensor
    num_timesteps: int
    count: int
    batch_size: int

    @property
    def units(self) -> int:
        return -(-self.num_timesteps // TIMESTEPS_PER_UNIT)

    def size(self, unit: int) -> int:
        return min(TIMESTEPS_PER_UNIT, self.num_timesteps - unit * TIMESTEPS_PER_UNIT) * self.count

    def calls(self, unit: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for timestep in range(unit * TIMESTEPS_PER_UNIT, min((unit + 1) * TIMESTEPS_PER_UNIT, self.num_timesteps)):
            rows = self.rows[(torch.arange(self.count) + timestep * self.count) % len(self.rows)]
            for some in rows.split(self.batch_size):
                yield some, torch.full((len(some),), timestep)


def important_timesteps(terms: torch.Tensor, timesteps: torch.Tensor, num_timesteps: int) -> torch.Tensor:
    """Probabilities ∝ √E[L²] with the least variance of the sum (Nichol & Dhariwal 2021, arXiv:2102.09672, equation 18).

    Args:
        terms, timesteps (`torch.Tensor`, shape (P,)): of a pilot in which every timestep occurs.
        num_timesteps (`int`): T
    """
    squares = torch.zeros(num_timesteps, dtype=torch.float64).index_add_(0, timesteps, terms.square())
    root = squares.sqrt()
    # Smoothed over neighbours: a few images say little of one timestep.
    root[1:] = (
        torch.nn.functional.avg_pool1d(root[None, 1:], 9, 1, 4, count_include_pad=False)[0]
        if num_timesteps > 2
        else root[1:]
    )
    return LEAST_SHARE / num_timesteps + (1 - LEAST_SHARE) * root / root.sum()


# --- The stages -------------------------------------------------------------------------------------------------------


def error_stage(measured: Measured, images: RealImages, plan: SomeAtEachTimestep, facts: dict, seed: int) -> Stage:
    """The mean squared error of x̂_0 at each timestep."""

    def compute(unit: int) -> dict[str, torch.Tensor]:
        found = [
            (measured.call(images, rows, t, generator(seed, "analytic", unit, number)).original_error(), t)
            for number, (rows, t) in enumerate(plan.calls(unit))
        ]
        return {
            "error": torch.cat([_mean_square(error) for error, _ in found]).double(),
            "timesteps": torch.cat([t for _, t in found]),
        }

    return Stage("analytic_variance", facts, plan.units, compute, plan.size)


def original_sample_variances(errors: torch.Tensor, timesteps: torch.Tensor, num_timesteps: int) -> list[float]:
    """V_t = E‖x_0 − x̂_0‖²/d at each timestep: what [`DDPMHubScheduler`] takes for its analytic variance."""
    sums = torch.zeros(2, num_timesteps, dtype=torch.float64)
    sums[0].index_add_(0, timesteps, errors)
    sums[1].index_add_(0, timesteps, torch.ones_like(errors))
    return (sums[0] / sums[1]).tolist()


def make_bounds(
    scheduler: DDPMHubScheduler, bit_depth: int, variances: list[float] | None
) -> dict[str, VariationalBound]:
    """The bound of each variance, the model's own first.

    Args:
        scheduler (`DDPMHubScheduler`): of the model.
        bit_depth (`int`): of the data.
        variances (`list[float]`, *optional*): V_t for the analytic variance; without, it is left out unless it is the model's.
    """
    own = VARIANCE_TYPES[scheduler.config.variance_type]
    bounds = {own: VariationalBound(scheduler, bit_depth)}
    for kind in FIXED:
        if kind not in bounds:
            variant = DDPMHubScheduler.from_config(scheduler.config, variance_type=kind)
            bounds[kind] = VariationalBound(variant, bit_depth)
    if "analytic" not in bounds and variances is not None:
        variant = DDPMHubScheduler.from_config(
            scheduler.config, variance_type="analytic", original_sample_variances=variances
        )
        bounds["analytic"] = VariationalBound(variant, bit_depth)
    return bounds


def bound_stage(
    name: str, measured: Measured, images: RealImages, plan, bounds: dict[str, VariationalBound], facts: dict, seed: int
) -> Stage:
    """The terms of the bound, and the error of the noise, of each pair of an image and a timestep.

    A unit gives `rows` and `timesteps`, shape (P,); `terms`, nats per dimension of what the network sees, (P, V); `loss`, the
    mean of (ε_θ − ε)², (P,); and `bias`, the sum of ε_θ − ε in each of the `bias_bins` of t that it has, (b, C, H, W) and (b,).
    """

    def compute(unit: int) -> dict[str, torch.Tensor]:
        gathered: dict[str, list[torch.Tensor]] = {"rows": [], "timesteps": [], "terms": [], "loss": []}
        bias: dict[int, torch.Tensor] = {}
        for number, (rows, timesteps) in enumerate(plan.calls(unit)):
            answer = measured.call(images, rows, timesteps, generator(seed, name, unit, number))
            error = answer.noise_error()
            for place, one in zip(bins_of(timesteps, len(measured)).tolist(), error.double().cpu(), strict=True):
                bias[place] = bias.get(place, 0) + one
            pieces = rows, timesteps, answer.terms(bounds), _mean_square(error).double()
            for key, piece in zip(gathered, pieces, strict=True):
                gathered[key].append(piece.cpu())
        added = {"bias": torch.stack(list(bias.values())), "bias_bins": torch.tensor(list(bias))}
        return {key: torch.cat(pieces) for key, pieces in gathered.items()} | added

    return Stage(name, facts, plan.units, compute, plan.size)


def _mean_square(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.square().flatten(1).mean(dim=1)


# --- What comes of them -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BoundFigures:
    """Bits per dimension of the data.

    Attributes:
        value, standard_error (`float`): the mean over the images, and √(variance/n).
        prior (`float`): L_T.
        terms (`torch.Tensor` of `float64`, shape (T,)): the mean of L_0 … L_{T−1} at each timestep, in which a timestep that
            was not drawn counts as zero.
    """

    value: float
    standard_error: float
    prior: float
    terms: torch.Tensor

    def between(self, first: int, last: int) -> float:
        """The sum of the terms at the paper's t from `first` to `last`."""
        return self.terms[first - 1 : last].sum().item()


def bound_figures(
    rows: torch.Tensor,
    timesteps: torch.Tensor,
    terms: torch.Tensor,
    weights: torch.Tensor,
    prior: torch.Tensor,
    num_timesteps: int,
    scale: float,
) -> BoundFigures:
    """Adds up the terms of one variance.

    Args:
        rows, timesteps, terms, weights (`torch.Tensor`, shape (P,)): of each pair; terms in nats per dimension of what the
            network sees. Every row has the same number of pairs.
        prior (`torch.Tensor`, shape (n,)): L_T of each image, in the order of the rows, in the same unit.
        num_timesteps (`int`): T
        scale (`float`): the dimensions of what the network sees, over the true ones.
    """
    numbers, place = rows.unique(return_inverse=True)
    in_bits = scale / NATS_PER_BIT
    weighted = terms * weights * in_bits
    per_image = prior.double() * in_bits + torch.zeros(len(numbers), dtype=torch.float64).index_add_(0, place, weighted)
    by_timestep = torch.zeros(num_timesteps, dtype=torch.float64).index_add_(0, timesteps, weighted)
    error = per_image.std().item() / math.sqrt(len(per_image)) if len(per_image) > 1 else math.nan
    return BoundFigures(
        per_image.mean().item(), error, prior.double().mean().item() * in_bits, by_timestep / len(numbers)
    )


@dataclass(frozen=True)
class Calibration:
    """How right ε_θ is, in bins of t of equal width; a figure of a bin in which no t was drawn is NaN.

    Attributes:
        loss (`list[float]`): the mean of (ε_θ − ε)².
        bias (`list[float]`): ‖mean of ε_θ − ε‖/√d, over images and timesteps of the bin. E[ε] = 0, so this is ‖E[ε_θ]‖/√d.
        chance (`list[float]`): what that is on average if ε_θ has no bias: √(mean of (ε_θ − ε)² / number of pairs).
    """

    loss: list[float]
    bias: list[float]
    chance: list[float]


def bins_of(timesteps: torch.Tensor, num_timesteps: int) -> torch.Tensor:
    """In which of the [`BIAS_BINS`] of equal width each timestep is."""
    return timesteps * BIAS_BINS // num_timesteps


def summed_bias(units: Iterable[dict[str, torch.Tensor]]) -> torch.Tensor:
    """The sums of all units: (BIAS_BINS, d). One unit at a time is held."""
    total = None
    for unit in units:
        flat = unit["bias"].flatten(1)
        total = torch.zeros(BIAS_BINS, flat.shape[1], dtype=torch.float64) if total is None else total
        total.index_add_(0, unit["bias_bins"], flat)
    return total


def calibration(
    timesteps: torch.Tensor, loss: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor, num_timesteps: int
) -> Calibration:
    """Adds up what [`bound_stage`] gave: (P,), (P,), (P,), and [`summed_bias`], (BIAS_BINS, d)."""
    place = bins_of(timesteps, num_timesteps)

    def added(values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(BIAS_BINS, dtype=torch.float64).index_add_(0, place, values.double())

    counts = added(torch.ones_like(loss))
    mean = bias / counts[:, None]
    return Calibration(
        (added(loss * weights) / added(weights)).tolist(),
        mean.square().mean(dim=1).sqrt().tolist(),
        (added(loss).sqrt() / counts).tolist(),
    )
