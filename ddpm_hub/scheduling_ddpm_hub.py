"""`DDPMHubScheduler`: the DDPM noise schedule and reverse step for diffusers, with exact coefficients.

**The timestep convention, stated once.** The paper counts t = 1…T. diffusers, and every argument named `timestep` here,
counts 0…T−1: timestep i is the paper's t = i + 1 ([`_paper_time`]). Clean data is the paper's t = 0, "timestep −1".

This file is copied beside every model that is published: it imports its sibling `ddpm_equations`, torch and diffusers.
"""

import math
import warnings
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from .ddpm_equations import (
    BETA_SCHEDULES,
    PREDICTION_TYPES,
    VARIANCE_TYPES,
    log_alphas_cumprod,
    make_betas,
    noise_rate,
    original_sample_weights,
    posterior_mean_weights,
    posterior_variance,
    signal_rate,
    target_weights,
)

TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")

# Above this ᾱ, √ᾱ > 0.03 of the data's mean is left in "pure noise", which a start from N(0, I) does not have.
LARGEST_FINAL_ALPHA_BAR = 1e-3
# Above this ᾱ, a schedule that could have started nearer to T is refused: its first x_t is not noise.
LARGEST_START_ALPHA_BAR = 1e-2


@dataclass(frozen=True, slots=True)
class _StepWeights:
    """The weights of one reverse step: x̂_0 = a·x_t + b·output; x_s = c·x̂_0 + d·x_t + std·z."""

    x0_from_sample: float
    x0_from_output: float
    mean_from_x0: float
    mean_from_sample: float
    std: float


class DDPMHubScheduler(SchedulerMixin, ConfigMixin):
    """The DDPM of Ho, Jain, Abbeel (2020), arXiv:2006.11239, as a diffusers scheduler.

    Tables are float64, gathered, and rounded once to the precision in which the sample is computed: float64 for float64
    samples, float32 for all others (float16 and bfloat16 samples are rounded last). Between any two entries s < t of
    the schedule, [`step`] samples the exact posterior q(x_s | x_t, x̂_0), so fewer steps than T need no approximation
    but the network's. After [`set_timesteps`], [`step`] changes nothing in the scheduler.

    Shared arguments have the names and the defaults of `diffusers.DDPMScheduler`.

    Args:
        num_train_timesteps (`int`, defaults to `1000`): T. With `trained_betas` it is that list's length.
        beta_start (`float`, defaults to `1e-4`): β_1.
        beta_end (`float`, defaults to `0.02`): β_T.
        beta_schedule (`str`, defaults to `"linear"`): `linear`, `scaled_linear` or `squaredcos_cap_v2`.
        trained_betas (`list[float]`, *optional*): β_1…β_T, in place of a named schedule.
        variance_type (`str`, defaults to `"fixed_small"`): `fixed_small` (β̃) or `fixed_large` (β).
        clip_sample (`bool`, defaults to `True`): clamp x̂_0 to ±`clip_sample_range` in every step.
        prediction_type (`str`, defaults to `"epsilon"`): what the network predicts: `epsilon`, `sample` (x_0) or
            `v_prediction`.
        clip_sample_range (`float`, defaults to `1.0`): the bound of `clip_sample`.
        timestep_spacing (`str`, defaults to `"leading"`): which n of the T timesteps are used: `leading`, `trailing`
            or `linspace` (Lin et al. 2023, arXiv:2305.08891, table 2). `trailing` always starts at T−1.
        steps_offset (`int`, defaults to `0`): added to `leading` timesteps.

    Raises:
        ValueError: for an argument that is outside its range, naming it, its value and what is allowed.
    """

    _compatibles: ClassVar = [e.name for e in KarrasDiffusionSchedulers]
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        clip_sample_range: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
    ):
        _check_choice("beta_schedule", beta_schedule, BETA_SCHEDULES)
        _check_choice("variance_type", variance_type, VARIANCE_TYPES)
        _check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        _check_choice("timestep_spacing", timestep_spacing, TIMESTEP_SPACINGS)
        if clip_sample and not 0 < clip_sample_range < math.inf:
            raise ValueError(f"`clip_sample_range` is {clip_sample_range}; it must be a positive number.")

        if trained_betas is not None:
            betas = torch.as_tensor(trained_betas, dtype=torch.float64)
            # The length is the fact; the stored config must not say another T (peers keep 1000 timesteps here).
            self.register_to_config(num_train_timesteps=len(betas), trained_betas=betas.tolist())
            _check_betas("trained_betas", betas)
        else:
            if num_train_timesteps < 1:
                raise ValueError(f"`num_train_timesteps` is {num_train_timesteps}; it must be at least 1.")
            if beta_schedule != "squaredcos_cap_v2":
                for name, beta in (("beta_start", beta_start), ("beta_end", beta_end)):
                    if not 0 < beta < 1:
                        raise ValueError(f"`{name}` is {beta}; a variance of the forward step lies between 0 and 1.")
                if beta_end < beta_start:
                    raise ValueError(
                        f"`beta_end` is {beta_end}, below `beta_start` = {beta_start}; β must not fall with t."
                    )
            betas = make_betas(beta_schedule, num_train_timesteps, beta_start, beta_end)

        self.betas = betas
        self.alphas = 1.0 - betas
        # Indexed by the paper's time: entry 0 is clean data, entry T is noise.
        self._log_alphas_cumprod = log_alphas_cumprod(betas)
        self.alphas_cumprod = self._log_alphas_cumprod[1:].exp()
        final = self.alphas_cumprod[-1].item()
        if final > LARGEST_FINAL_ALPHA_BAR:
            # log ᾱ_T grows in proportion to T where the range of β stays.
            enough = math.ceil(len(betas) * math.log(LARGEST_FINAL_ALPHA_BAR) / math.log(final))
            warnings.warn(
                f"ᾱ_T = {final:.3g} at T = {len(betas)}: x_T keeps {math.sqrt(final):.1%} of the data, so pure noise, "
                f"where sampling starts, is not what the network was trained on. ᾱ_T ≤ {LARGEST_FINAL_ALPHA_BAR:g} needs "
                f"about T = {enough} with these β, or a larger `beta_end`.",
                stacklevel=3,  # past register_to_config's wrapper, to the caller
            )

        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(len(betas) - 1, -1, -1)
        self._steps: dict[int, _StepWeights] | None = None

    def __len__(self) -> int:
        return len(self.betas)

    def scale_model_input(self, sample: torch.Tensor, timestep: int | torch.Tensor | None = None) -> torch.Tensor:
        """Returns `sample` unchanged: DDPM feeds x_t to the network as it is."""
        return sample

    # --- The schedule of the reverse process ---

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Chooses the n timesteps that sampling visits, n distinct and falling, and computes every step's weights.

        Args:
            num_inference_steps (`int`): n, from 1 to T.
            device (`str` or `torch.device`, *optional*): where `timesteps` is put.

        Raises:
            ValueError: if n is not in 1…T, or if the spacing would start where x_t is not noise.
        """
        num_train = len(self.betas)
        if not 1 <= num_inference_steps <= num_train:
            raise ValueError(
                f"`num_inference_steps` is {num_inference_steps}; it must be from 1 to {num_train}, the number of "
                f"training timesteps."
            )
        timesteps = _spaced_timesteps(
            self.config.timestep_spacing, num_train, num_inference_steps, self.config.steps_offset
        )
        start = self.alphas_cumprod[timesteps[0]].item()
        if timesteps[0] < num_train - 1 and start > LARGEST_START_ALPHA_BAR:
            raise ValueError(
                f"`num_inference_steps` = {num_inference_steps} with `timestep_spacing` = "
                f"{self.config.timestep_spacing!r} starts at timestep {timesteps[0]}, where ᾱ = {start:.3g}: x_t is not "
                f"noise there. Use `timestep_spacing` = 'trailing', which starts at {num_train - 1}."
            )
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor(timesteps, device=device)
        self._steps = self._step_weights(timesteps)

    def _step_weights(self, timesteps: list[int]) -> dict[int, "_StepWeights"]:
        """Every weight that [`step`] applies, by timestep, as Python floats (float64)."""
        times = torch.tensor([_paper_time(t) for t in timesteps])
        following = torch.cat([times[1:], times.new_zeros(1)])  # the last step leads to clean data, t = 0
        log_t, log_s = self._log_alphas_cumprod[times], self._log_alphas_cumprod[following]
        std = posterior_variance(self.config.variance_type, log_t, log_s).sqrt()
        std[-1] = 0.0  # z = 0 on the last step ([Ho] algorithm 2), by position
        columns = (
            *original_sample_weights(self.config.prediction_type, log_t),
            *posterior_mean_weights(log_t, log_s),
            std,
        )
        rows = torch.stack(columns, dim=1).tolist()
        return {t: _StepWeights(*row) for t, row in zip(timesteps, rows, strict=True)}

    # --- Forward process and training target ---

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.IntTensor
    ) -> torch.Tensor:
        """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε ([Ho] equation 4).

        Args:
            original_samples (`torch.Tensor`, shape (B, …)): x_0 in [−1, 1].
            noise (`torch.Tensor`, shape (B, …)): ε ~ N(0, I).
            timesteps (`torch.IntTensor`, shape (B,) or ()): from 0 to T−1.

        Returns:
            `torch.Tensor`: x_t, in the shape and dtype of `original_samples`.
        """
        log_abar = self._log_alpha_bar(timesteps)
        return _weighted_sum(signal_rate(log_abar), original_samples, noise_rate(log_abar), noise)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.IntTensor) -> torch.Tensor:
        """v = √ᾱ_t ε − √(1−ᾱ_t) x_0, with x_0 = `sample`. Arguments as in [`add_noise`]."""
        weight_x0, weight_noise = target_weights("v_prediction", self._log_alpha_bar(timesteps))
        return _weighted_sum(weight_x0, sample, weight_noise, noise)

    def training_target(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.IntTensor
    ) -> torch.Tensor:
        """What the network is to predict at x_t for this scheduler's `prediction_type`. Arguments as in [`add_noise`]."""
        weight_x0, weight_noise = target_weights(self.config.prediction_type, self._log_alpha_bar(timesteps))
        return _weighted_sum(weight_x0, original_samples, weight_noise, noise)

    def _log_alpha_bar(self, timesteps: torch.Tensor) -> torch.Tensor:
        timesteps = torch.as_tensor(timesteps, device="cpu")
        if timesteps.is_floating_point() or timesteps.is_complex():
            raise ValueError(f"`timesteps` has dtype {timesteps.dtype}; it must hold integers.")
        if timesteps.numel() and not 0 <= timesteps.min() <= timesteps.max() < len(self.betas):
            raise ValueError(
                f"`timesteps` runs from {timesteps.min()} to {timesteps.max()}; it must lie in 0…{len(self.betas) - 1}."
            )
        return self._log_alphas_cumprod[_paper_time(timesteps)]

    # --- Reverse process ---

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """One reverse step ([Ho] algorithm 2): from x_t to x_s, s being the next entry of the schedule.

        Args:
            model_output (`torch.Tensor`, shape (B, …)): the network's prediction at x_t.
            timestep (`int` or 0-d `torch.Tensor`): t, an entry of `timesteps`.
            sample (`torch.Tensor`, shape (B, …)): x_t.
            generator (`torch.Generator` or a list of B, *optional*): the source of z; with a list, image i's noise
                comes from generator i alone.
            return_dict (`bool`, defaults to `True`): an output object, or the tuple of its two fields.

        Returns:
            `DDPMSchedulerOutput`: `prev_sample` (x_s) and `pred_original_sample` (x̂_0), in `sample`'s dtype.

        Raises:
            ValueError: before `set_timesteps`, at a timestep outside the schedule, or if the shapes differ.
        """
        weights = self._weights_at(timestep)
        if model_output.shape != sample.shape:
            raise ValueError(
                f"`model_output` has shape {tuple(model_output.shape)} and `sample` {tuple(sample.shape)}; they must be "
                f"equal."
            )
        compute_dtype = _compute_dtype(sample.dtype)
        x_t, output = sample.to(compute_dtype), model_output.to(compute_dtype)

        # 1. x̂_0 from x_t and the prediction ([Ho] equation 15)
        pred_original = torch.mul(x_t, weights.x0_from_sample).add_(output, alpha=weights.x0_from_output)
        if self.config.clip_sample:
            pred_original.clamp_(-self.config.clip_sample_range, self.config.clip_sample_range)

        # 2. The mean of q(x_s | x_t, x̂_0) ([Ho] equation 7)
        prev_sample = torch.mul(pred_original, weights.mean_from_x0).add_(x_t, alpha=weights.mean_from_sample)

        # 3. Plus σ z, except on the last step
        if weights.std > 0:
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=compute_dtype)
            prev_sample.add_(noise, alpha=weights.std)

        prev_sample, pred_original = prev_sample.to(sample.dtype), pred_original.to(sample.dtype)
        if not return_dict:
            return prev_sample, pred_original
        return DDPMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=pred_original)

    def _weights_at(self, timestep: int | torch.Tensor) -> "_StepWeights":
        if self._steps is None:
            raise ValueError("`step` was called before `set_timesteps`; call `set_timesteps(n)` first.")
        try:
            return self._steps[int(timestep)]
        except KeyError:
            raise ValueError(
                f"`timestep` is {int(timestep)}, which is not in the schedule of {self.num_inference_steps} steps set by "
                f"`set_timesteps`; take the entries of `timesteps`."
            ) from None


def _paper_time(timestep):
    """The paper's t for a diffusers timestep (an `int` or a tensor of them)."""
    return timestep + 1


def _spaced_timesteps(spacing: str, num_train: int, num_steps: int, offset: int) -> list[int]:
    """The n timesteps of a spacing, falling, in exact rational arithmetic rounded half to even."""
    if spacing == "trailing":
        return [round(Fraction(num_train * k, num_steps)) - 1 for k in range(num_steps, 0, -1)]
    if spacing == "linspace":
        if num_steps == 1:
            return [num_train - 1]  # one step can only start at noise
        return [round(Fraction((num_train - 1) * k, num_steps - 1)) for k in range(num_steps - 1, -1, -1)]
    stride = num_train // num_steps
    timesteps = [k * stride + offset for k in range(num_steps - 1, -1, -1)]
    if not 0 <= timesteps[-1] <= timesteps[0] < num_train:
        raise ValueError(
            f"`steps_offset` is {offset}; with {num_steps} steps it puts the schedule at {timesteps[0]}…{timesteps[-1]}, "
            f"outside 0…{num_train - 1}."
        )
    return timesteps


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Where the arithmetic happens: float64 samples stay float64, all others are computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _weighted_sum(weight_a: torch.Tensor, a: torch.Tensor, weight_b: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """weight_a·a + weight_b·b with one weight per sample, in a's shape and dtype; float64 weights are rounded once."""
    if a.shape != b.shape:
        raise ValueError(f"the sample has shape {tuple(a.shape)} and the noise {tuple(b.shape)}; they must be equal.")
    if weight_a.ndim and weight_a.shape != a.shape[:1]:
        raise ValueError(
            f"`timesteps` has shape {tuple(weight_a.shape)}; it must have one entry per sample, {tuple(a.shape[:1])}."
        )
    dtype = _compute_dtype(a.dtype)

    def per_sample(weight: torch.Tensor) -> torch.Tensor:
        return weight.to(dtype).to(a.device).reshape(weight.shape + (1,) * (a.ndim - 1 if weight.ndim else 0))

    return (per_sample(weight_a) * a.to(dtype) + per_sample(weight_b) * b.to(dtype)).to(a.dtype)


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"`{name}` is {value!r}; it must be one of {', '.join(map(repr, allowed))}.")


def _check_betas(name: str, betas: torch.Tensor) -> None:
    if betas.ndim != 1 or len(betas) == 0:
        raise ValueError(f"`{name}` has shape {tuple(betas.shape)}; it must be a list of at least one number.")
    if not bool(((betas > 0) & (betas < 1)).all()):
        raise ValueError(
            f"`{name}` has entries outside (0, 1) or NaN; a variance of the forward step lies between 0 and 1."
        )
    if bool((betas.diff() < 0).any()):
        raise ValueError(f"`{name}` falls at some t; β must not fall with t.")
