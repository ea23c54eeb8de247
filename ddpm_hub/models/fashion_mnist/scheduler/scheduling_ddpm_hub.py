"""`DDPMHubScheduler`: the DDPM noise schedule and reverse step for diffusers, with exact coefficients.

**The timestep convention, stated once.** The paper counts t = 1…T. diffusers, and every argument named `timestep` here,
counts 0…T−1: timestep i is the paper's t = i + 1 ([`_paper_time`]). Clean data is the paper's t = 0, timestep −1.

[Ho] is Ho, Jain, Abbeel 2020, arXiv:2006.11239. This file is copied beside every model that is published: it imports its
siblings, torch and diffusers.
"""

import copy
import math
import operator
import os
import warnings
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin

from .ddpm_argument_checks import (
    LARGEST_NUMBER,
    SMALLEST_DIVISOR,
    as_timesteps,
    check_bounds,
    check_choice,
    check_fraction,
    check_integer,
    check_noise_source,
    check_ratio,
    check_tensors,
    check_timesteps,
    checked_betas,
    checked_timesteps,
    checked_variances,
    is_whole,
)
from .ddpm_equations import (
    PREDICTION_TYPES,
    conversion_weights,
    ddim_inversion_weights,
    ddim_mean_weights,
    learned_range_log_variance,
    noise_rate,
    original_sample_weights,
    posterior_mean_weights,
    posterior_variance,
    reverse_variance,
    signal_rate,
    snr,
    target_weights,
)
from .ddpm_noise_schedules import (
    BETA_SCHEDULES,
    LARGEST_FINAL_ALPHA_BAR,
    TIMESTEP_SPACINGS,
    beta_range_for,
    check_schedule,
    log_alphas_cumprod,
    make_betas,
    num_train_timesteps_for,
    rescale_zero_terminal_snr,
    spaced_timesteps,
)
from .ddpm_sample_arithmetic import (
    Number,
    add_scaled,
    broadcast_rows,
    columns_at,
    compute_dtype,
    draw_noise,
    dynamic_threshold,
    linear_combination,
    unrounded_sum,
    weighted_sum,
    weights_on,
)

# The names of published configurations, and which variance each one is. The peers' "_log" names take the logarithm and
# undo it; a configuration of a deterministic solver says None.
VARIANCE_TYPES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "analytic": "analytic",
    "learned": "learned",
    "learned_range": "learned_range",
    None: "fixed_small",
}
LEARNED_VARIANCE_TYPES = ("learned", "learned_range")

# Above this ᾱ a schedule that could have started nearer to T is refused: its first x_t is not noise.
LARGEST_START_ALPHA_BAR = 1e-2


class _StepWeights(NamedTuple):
    """The weights of one reverse step: x̂_0 = a·x_t + b·output; x_s = c·x̂_0 + d·x_t + std·z.

    Floats, or tensors that broadcast against the sample. A learned variance is computed from the two logarithms, and
    `adds_noise` is 0 on the last step and 1 before. `log_abar_t` and `log_abar_s` are what all of it comes from.
    """

    x0_from_sample: Number
    x0_from_output: Number
    mean_from_x0: Number
    mean_from_sample: Number
    std: Number
    log_variance_small: Number
    log_variance_large: Number
    adds_noise: Number
    log_abar_t: Number
    log_abar_s: Number


class DDPMHubScheduler(SchedulerMixin, ConfigMixin):
    """The DDPM of Ho, Jain, Abbeel (2020), arXiv:2006.11239, as a diffusers scheduler.

    Tables are float64, gathered, and rounded once to the precision in which the sample is computed: float64 for float64
    samples, float32 for all others (float16 and bfloat16 samples are rounded last). Between any two entries s < t of
    the schedule, [`step`] samples the exact posterior q(x_s | x_t, x̂_0), so fewer steps than T need no approximation
    but the network's. After [`set_timesteps`], [`step`] changes nothing in the scheduler (it may copy a table to a device
    that `set_timesteps` was not given), so threads can share one.

    Shared arguments have the names and the defaults of `diffusers.DDPMScheduler`.

    Args:
        num_train_timesteps (`int`, defaults to `1000`): T, up to 2²⁰. With `trained_betas` it is that list's length.
        beta_start (`float`, defaults to `1e-4`): β_1.
        beta_end (`float`, defaults to `0.02`): β_T.
        beta_schedule (`str`, defaults to `"linear"`): `linear`, `scaled_linear`, `squaredcos_cap_v2` or `sigmoid`.
        trained_betas (`list[float]`, *optional*): β_1…β_T, in place of a named schedule.
        variance_type (`str`, defaults to `"fixed_small"`): `fixed_small` (β̃), `fixed_large` (β), `analytic` (Bao et al.
            2022; with few steps use it with `linspace`: its last step leads from t = 1, and noise that the last step cannot
            add is missing from `trailing` schedules), `learned_range` (Nichol & Dhariwal 2021) or `learned` (the log variance itself); the last two need a
            network with twice the channels. `fixed_small_log` and `fixed_large_log` are other names of the first two.
        clip_sample (`bool`, defaults to `True`): clamp x̂_0 to ±`clip_sample_range` in every step.
        prediction_type (`str`, defaults to `"epsilon"`): what the network predicts: `epsilon`, `sample` (x_0) or
            `v_prediction`. `epsilon` needs ᾱ_T of at least 1e-36, of which float32 has the root's inverse.
        thresholding (`bool`, defaults to `False`): dynamic thresholding of x̂_0 (Saharia et al. 2022, arXiv:2205.11487),
            in place of `clip_sample`.
        dynamic_thresholding_ratio (`float`, defaults to `0.995`): the quantile of |x̂_0| that becomes the threshold.
        clip_sample_range (`float`, defaults to `1.0`): the bound of `clip_sample`.
        sample_max_value (`float`, defaults to `1.0`): the largest threshold; at 1 it is plain clipping to ±1.
        timestep_spacing (`str`, defaults to `"leading"`): which n of the T timesteps are used: `leading`, `trailing`
            or `linspace` (Lin et al. 2023, arXiv:2305.08891, table 2). The last two always start at T−1.
        steps_offset (`int`, defaults to `0`): added to `leading` timesteps.
        rescale_betas_zero_snr (`bool`, defaults to `False`): make ᾱ_T exactly 0 (Lin et al. 2023, algorithm 1). Needs
            `v_prediction` or `sample`: at ᾱ_T = 0 the noise says nothing about x_0.
        original_sample_variances (`list[float]`, *optional*): for `analytic`: V_1…V_T, the mean variance of x_0 given
            x_t per dimension, as [`estimate_original_sample_variances`] finds them.

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
        variance_type: str | None = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        original_sample_variances: list[float] | None = None,
    ):
        # Plain numbers from here on, which JSON can hold.
        self.register_to_config(**_checked_config(self.config))
        if trained_betas is not None:
            betas = checked_betas(trained_betas)
            check_choice("beta_schedule", beta_schedule, BETA_SCHEDULES)
            # The length is the fact; the stored config must not say another T (peers keep 1000 timesteps here).
            self.register_to_config(num_train_timesteps=len(betas), trained_betas=betas.tolist())
        else:
            schedule = (beta_schedule, num_train_timesteps, self.config.beta_start, self.config.beta_end)
            check_schedule(*schedule)
            self.register_to_config(num_train_timesteps=operator.index(num_train_timesteps))
            betas = make_betas(*schedule)

        # Indexed by the paper's time: entry 0 is clean data, entry T is noise.
        self._log_alphas_cumprod = log_alphas_cumprod(betas)
        if rescale_betas_zero_snr:
            if prediction_type == "epsilon" or len(betas) < 2:
                raise ValueError(
                    "`rescale_betas_zero_snr` is True, which makes x_T pure noise: no ε says anything about x_0 there. Use "
                    f"`prediction_type` = 'v_prediction' or 'sample' (it is {prediction_type!r}) and T of at least 2."
                )
            self._log_alphas_cumprod = rescale_zero_terminal_snr(self._log_alphas_cumprod)
            betas = -torch.expm1(self._log_alphas_cumprod.diff())
        if prediction_type == "epsilon" and self._log_alphas_cumprod[-1] < math.log(SMALLEST_DIVISOR):
            raise ValueError(
                f"`prediction_type` is 'epsilon', but ᾱ_T is below {SMALLEST_DIVISOR:g} at T = {len(betas)}: no ε says "
                f"anything about x_0 there. Use 'v_prediction' or 'sample', or a smaller β_T: `beta_end`, `trained_betas`."
            )
        self.betas = betas
        self.alphas = 1.0 - betas
        self.alphas_cumprod = self._log_alphas_cumprod[1:].exp()
        self._warn_if_data_is_left(self.config)

        self._variance_type = VARIANCE_TYPES[variance_type]
        self._original_sample_variances = checked_variances(original_sample_variances, self._variance_type, len(betas))
        if self._original_sample_variances is not None:
            self.register_to_config(original_sample_variances=self._original_sample_variances.tolist())  # JSON
        self._clip_range = self.config.clip_sample_range if clip_sample and not thresholding else None
        threshold = (self.config.dynamic_thresholding_ratio, self.config.sample_max_value)
        self._thresholding = threshold if thresholding else None
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(len(betas) - 1, -1, -1)
        self._steps: dict[int, _StepWeights] | None = None
        self._step_tables: dict[tuple, torch.Tensor] = {}
        self._forward_tables: dict[tuple, torch.Tensor] = {}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs,
    ) -> "DDPMHubScheduler | tuple[DDPMHubScheduler, dict]":
        """Reads a configuration from a folder or the Hub; arguments as in diffusers.

        Raises:
            OSError: if it is not there.
            ValueError: naming the file, if it describes no scheduler.
        """
        options = {"subfolder": subfolder, "return_unused_kwargs": True, **kwargs}
        try:
            config, unused = cls.load_config(pretrained_model_name_or_path, **options)
            if not isinstance(config, dict):  # diffusers would take a text for the name of another folder
                raise ValueError(f"it holds a {type(config).__name__}")
            return cls.from_config(config, return_unused_kwargs=return_unused_kwargs, **unused)
        except (AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(
                f"{cls.config_name} in {str(Path(pretrained_model_name_or_path, subfolder or ''))!r} describes no {cls.__name__} "
                f"({type(error).__name__}: {error}). Mend it, or save the scheduler again."
            ) from error

    def __len__(self) -> int:
        return len(self.betas)

    @property
    def log_alphas_cumprod(self) -> torch.Tensor:
        """log ᾱ_0…log ᾱ_T, float64, shape (T + 1,), by the paper's time: entry 0 is clean data."""
        return self._log_alphas_cumprod.clone()

    def scale_model_input(self, sample: torch.Tensor, timestep: int | torch.Tensor | None = None) -> torch.Tensor:
        """Returns `sample` unchanged: DDPM feeds x_t to the network as it is."""
        return sample

    def variant(
        self, *, timestep_spacing: str | None = None, dynamic_thresholding_ratio: float | None = None
    ) -> "DDPMHubScheduler":
        """A copy, on the same tables, that spaces its timesteps or bounds x̂_0 in another way; this one stays as it is.

        Args:
            timestep_spacing (`str`, *optional*): `leading`, `trailing` or `linspace`.
            dynamic_thresholding_ratio (`float`, *optional*): the quantile of |x̂_0| to threshold at, in place of clipping;
                without a largest threshold where the configuration has none above 1.

        Raises:
            ValueError: for a spacing that does not exist or a ratio outside (0, 1].
        """
        other, changes = copy.copy(self), {}
        if timestep_spacing is not None:
            check_choice("timestep_spacing", timestep_spacing, TIMESTEP_SPACINGS)
            changes["timestep_spacing"] = timestep_spacing
        if dynamic_thresholding_ratio is not None:
            dynamic_thresholding_ratio = check_ratio("dynamic_thresholding_ratio", dynamic_thresholding_ratio)
            largest = self.config.sample_max_value if self.config.sample_max_value > 1 else math.inf
            other._clip_range, other._thresholding = None, (dynamic_thresholding_ratio, largest)
            changes |= {"thresholding": True, "dynamic_thresholding_ratio": dynamic_thresholding_ratio,
                        "sample_max_value": largest}  # fmt: skip
        other.register_to_config(**changes)
        return other

    def _warn_if_data_is_left(self, config) -> None:
        log_final, num_train = self._log_alphas_cumprod[-1].item(), len(self.betas)
        final = math.exp(log_final)
        if final <= LARGEST_FINAL_ALPHA_BAR * (1 + 1e-9):
            return
        remedy = "take larger `trained_betas`, or more of them"
        if config.trained_betas is None:
            # log ᾱ_T is nearly proportional to T, so a count beyond all use is known without being looked for.
            if num_train * math.log(LARGEST_FINAL_ALPHA_BAR) / log_final < 1e6:
                enough = num_train_timesteps_for(config.beta_start, config.beta_end, config.beta_schedule)
                remedy = f"these β need T = {enough}"
            else:
                remedy = "these β need more than a million steps"
            if num_train > 10:
                start, end = beta_range_for(num_train, config.beta_schedule)
                remedy += f", or this T needs `beta_start` = {start:.3g} and `beta_end` = {end:.3g}"
        warnings.warn(
            f"ᾱ_T = {final:.3g} at T = {num_train}: x_T keeps {math.sqrt(final):.1%} of the data, so pure noise, where "
            f"sampling starts, is not what the network was trained on. For ᾱ_T ≤ {LARGEST_FINAL_ALPHA_BAR:g}, {remedy}.",
            stacklevel=4,  # past __init__ and register_to_config's wrapper, to the caller
        )

    # --- The schedule of the reverse process ---

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """Chooses the n timesteps that sampling visits, n distinct and falling, and computes every step's weights.

        Args:
            num_inference_steps (`int`, *optional*): n, from 1 to T, spaced by `timestep_spacing`.
            device (`str` or `torch.device`, *optional*): where `timesteps` and the tables for tensor timesteps are put.
            timesteps (`list[int]`, *optional*): the timesteps themselves, in place of their number.

        Raises:
            ValueError: if n is not in 1…T; if the spacing would start where x_t is not noise; if given timesteps are
                empty, not falling, repeated or outside 0…T−1.
        """
        num_train = len(self.betas)
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("pass one of `num_inference_steps` and `timesteps`, and not both.")
        if timesteps is None:
            num_inference_steps = check_integer("num_inference_steps", num_inference_steps, 1, num_train)
            timesteps = self._noisy_start(num_inference_steps)
        else:
            timesteps = checked_timesteps(timesteps, num_train)
        rows = self._step_weights(timesteps)
        table = torch.full((rows.shape[1], num_train), math.nan, dtype=torch.float64)
        table[:, timesteps] = rows.T
        self.num_inference_steps = len(timesteps)
        self.timesteps = torch.tensor(timesteps, device=device)
        # Half the cost of multiplying a small tensor by a number is making a tensor of the number: done here.
        firsts = rows[:, 0].clone().unbind()
        self._steps = {
            t: _StepWeights(first, *row[1:]) for t, first, row in zip(timesteps, firsts, rows.tolist(), strict=True)
        }
        home = self.timesteps.device
        self._step_tables = {(torch.float64, torch.device("cpu")): table, (torch.float32, home): table.float().to(home)}

    def previous_timestep(self, timestep: int | torch.Tensor) -> torch.Tensor:
        """The next entry of the schedule after `timestep`; −1, clean data, after the last."""
        timesteps, timestep = self.timesteps.tolist(), check_integer("timestep", timestep, 0, len(self.betas) - 1)
        if timestep not in timesteps:
            raise ValueError(
                f"`timestep` is {timestep}, which is not in the schedule; take the entries of `timesteps`."
            )
        return torch.tensor([*timesteps, -1][timesteps.index(timestep) + 1])

    def _noisy_start(self, num_inference_steps: int) -> list[int]:
        spacing, num_train = self.config.timestep_spacing, len(self.betas)
        timesteps = spaced_timesteps(spacing, num_train, num_inference_steps, self.config.steps_offset)
        start = self.alphas_cumprod[timesteps[0]].item()
        if timesteps[0] < num_train - 1 and start > LARGEST_START_ALPHA_BAR:
            raise ValueError(
                f"`num_inference_steps` = {num_inference_steps} with `timestep_spacing` = {spacing!r} starts at timestep "
                f"{timesteps[0]}, where ᾱ = {start:.3g}: x_t is not noise there. Use `timestep_spacing` = 'trailing' or "
                f"'linspace', which start at {num_train - 1}."
            )
        return timesteps

    def _step_weights(self, timesteps: list[int]) -> torch.Tensor:
        """Every weight that [`step`] applies at η = 1: float64, one row a step, in the order of [`_StepWeights`]."""
        times = _paper_time(torch.tensor(timesteps))
        following = torch.cat([times[1:], times.new_zeros(1)])  # the last step leads to clean data, t = 0
        log_t, log_s = self._log_alphas_cumprod[times], self._log_alphas_cumprod[following]
        adds_noise = torch.ones_like(log_t)
        adds_noise[-1] = 0.0  # z = 0 on the last step ([Ho] algorithm 2), by position
        fixed = "fixed_large" if self._variance_type in LEARNED_VARIANCE_TYPES else self._variance_type
        known = None if self._original_sample_variances is None else self._original_sample_variances[times - 1]
        log_large = reverse_variance("fixed_large", log_t, log_s).log()
        columns = (
            *original_sample_weights(self.config.prediction_type, log_t),
            *posterior_mean_weights(log_t, log_s),
            reverse_variance(fixed, log_t, log_s, known).sqrt() * adds_noise,
            torch.where(adds_noise > 0, posterior_variance(log_t, log_s).log(), log_large),
            log_large,
            adds_noise,
            log_t,
            log_s,
        )
        return torch.stack(columns, dim=1)

    # --- Forward process, training target, conversions ---

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε ([Ho] equation 4).

        Args:
            original_samples (`torch.Tensor`, shape (B, …)): x_0 in [−1, 1].
            noise (`torch.Tensor`, like `original_samples`): ε ~ N(0, I).
            timesteps (`torch.Tensor` of integers, shape (B,), (1,) or (), or `int`): from 0 to T−1. On an accelerator the
                range is not checked here, which would stop the pipeline; the device's own index check is what is left.

        Returns:
            `torch.Tensor`: x_t, in the shape and dtype of `original_samples`.

        Raises:
            ValueError: if shapes or dtypes do not match, or a timestep is outside 0…T−1.
        """
        check_tensors(original_samples=original_samples, noise=noise)
        weights = self._forward_weights("marginal", timesteps, original_samples)
        return weighted_sum(*weights, original_samples, noise, "noise")

    def add_noise_between(
        self, sample: torch.Tensor, noise: torch.Tensor, source: int | torch.Tensor, target: int | torch.Tensor
    ) -> torch.Tensor:
        """x_t = √(ᾱ_t/ᾱ_s) x_s + √(1−ᾱ_t/ᾱ_s) ε, the merge of all steps from s = `source` to t = `target`.

        Args:
            sample (`torch.Tensor`, shape (B, …)): x_s.
            noise (`torch.Tensor`, like `sample`): ε ~ N(0, I).
            source, target (`int` or `torch.Tensor` of shape (B,)): timesteps s ≤ t; s = −1 is clean data.
        """
        check_tensors(sample=sample, noise=noise)
        log_s, log_t = self._log_at("source", source, -1, sample), self._log_at("target", target, 0, sample)
        if bool((log_s < log_t).any()):
            raise ValueError(f"`source` is {source}, after `target` = {target}; noise is added forward in time.")
        log_ratio = torch.where(log_s == log_t, torch.zeros_like(log_t - log_s), log_t - log_s)
        return weighted_sum(*weights_on(sample, signal_rate(log_ratio), noise_rate(log_ratio)), sample, noise, "noise")

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """v = √ᾱ_t ε − √(1−ᾱ_t) x_0, with x_0 = `sample`. Arguments as in [`add_noise`]."""
        check_tensors(sample=sample, noise=noise)
        weights = self._forward_weights("v_prediction", timesteps, sample)
        return weighted_sum(*weights, sample, noise, "noise")

    def training_target(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """What the network is to predict at x_t for this scheduler's `prediction_type`. Arguments as in [`add_noise`]."""
        check_tensors(original_samples=original_samples, noise=noise)
        weights = self._forward_weights(self.config.prediction_type, timesteps, original_samples)
        return weighted_sum(*weights, original_samples, noise, "noise")

    def convert_prediction(
        self,
        model_output: torch.Tensor,
        sample: torch.Tensor,
        timesteps: torch.Tensor,
        target_type: str,
        source_type: str | None = None,
    ) -> torch.Tensor:
        """Turns a prediction of ε, x_0 or v at x_t into another.

        Args:
            model_output (`torch.Tensor`, shape (B, …)): the prediction, of `source_type` (by default `prediction_type`).
            sample (`torch.Tensor`, like `model_output`): x_t.
            timesteps (`torch.Tensor` of integers, shape (B,) or (), or `int`): t.
            target_type (`str`): `epsilon`, `sample` or `v_prediction`.
        """
        return self._converted(model_output, sample, timesteps, target_type, source_type).to(sample.dtype)

    def _converted(self, model_output, sample, timesteps, target_type: str, source_type: str | None) -> torch.Tensor:
        """[`convert_prediction`] before it is rounded to the sample's dtype."""
        check_tensors(model_output=model_output, sample=sample)
        source_type = self.config.prediction_type if source_type is None else source_type
        check_choice("target_type", target_type, PREDICTION_TYPES)
        check_choice("source_type", source_type, PREDICTION_TYPES)
        log_abar = self._log_at("timesteps", timesteps, 0, sample)
        if source_type == "epsilon" and bool((log_abar < math.log(SMALLEST_DIVISOR)).any()):
            raise ValueError("`timesteps` has an entry with ᾱ = 0, where ε says nothing about x_0; convert v or x_0.")
        weights = conversion_weights(source_type, target_type, log_abar)
        return unrounded_sum(*weights_on(sample, *weights), model_output, sample, "sample")

    def snr(self, timesteps: int | torch.Tensor) -> torch.Tensor:
        """SNR(t) = ᾱ_t/(1−ᾱ_t), float64, in the shape of `timesteps`."""
        return snr(self._log_at("timesteps", timesteps, 0))

    def posterior(
        self,
        sample: torch.Tensor,
        original_sample: torch.Tensor,
        timestep: int | torch.Tensor,
        previous: int | torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of q(x_s | x_t, x_0) for any s < t ([Ho] equations 6 and 7).

        Args:
            sample (`torch.Tensor`, shape (B, …)): x_t.
            original_sample (`torch.Tensor`, like `sample`): x_0.
            timestep, previous (`int` or `torch.Tensor` of shape (B,)): t and s; s = −1 is clean data.

        Returns:
            The mean, like `sample`, and the variance, float64, in the shape of `timestep`.
        """
        check_tensors(sample=sample, original_sample=original_sample)
        log_t, log_s = self._log_at("timestep", timestep, 0, sample), self._log_at("previous", previous, -1, sample)
        if bool((log_s <= log_t).any()):
            raise ValueError(f"`previous` is {previous}; it must be before `timestep` = {timestep}.")
        weights = weights_on(sample, *posterior_mean_weights(log_t, log_s))
        return weighted_sum(*weights, original_sample, sample, "sample"), posterior_variance(log_t, log_s)

    def _forward_weights(self, kind: str, timesteps, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights of x_0 and ε at each sample's timestep, from a table that lies on the sample's device."""
        dtype = compute_dtype(sample)
        key = (kind, dtype, sample.device)
        if key not in self._forward_tables:
            log_abar = self._log_alphas_cumprod[1:]
            pair = (
                (signal_rate(log_abar), noise_rate(log_abar)) if kind == "marginal" else target_weights(kind, log_abar)
            )
            self._forward_tables[key] = torch.stack(pair).to(dtype).to(sample.device)
        timesteps = as_timesteps("timesteps", timesteps, sample.device)
        check_timesteps("timesteps", timesteps, 0, len(self.betas) - 1, sample)
        return broadcast_rows(columns_at(self._forward_tables[key], timesteps), sample)

    def _log_at(self, name: str, timesteps, smallest: int, sample: torch.Tensor | None = None) -> torch.Tensor:
        """log ᾱ, float64, at timesteps from `smallest` (−1 for clean data) to T−1."""
        timesteps = as_timesteps(name, timesteps)
        check_timesteps(name, timesteps, smallest, len(self.betas) - 1, sample)
        return self._log_alphas_cumprod.to(timesteps.device)[_paper_time(timesteps.long())]

    # --- Reverse process ---

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        *,
        variance_noise: torch.Tensor | None = None,
        **options: float,
    ) -> DDPMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """One reverse step ([Ho] algorithm 2): from x_t to x_s, s being the next entry of the schedule.

        Args:
            model_output (`torch.Tensor`, shape (B, C, …), or (B, 2C, …) for a learned variance): the prediction at x_t.
            timestep (`int`, or `torch.Tensor` of shape (), (1,) or (B,)): t, an entry of `timesteps`, for all or for each
                sample. An accelerator's tensor is not read on the host: a time outside the schedule gives NaN there.
            sample (`torch.Tensor`, shape (B, C, …)): x_t.
            generator (`torch.Generator` or a list of B, *optional*): the source of z; with a list, image i's noise
                comes from generator i alone.
            return_dict (`bool`, defaults to `True`): an output object, or the tuple of its two fields.
            eta (`float`, defaults to `1.0`): η from 0 (DDIM, deterministic) to 1 (DDPM): the noise's standard deviation
                is multiplied by it and the mean is the one that belongs to it (arXiv:2010.02502, equation 12). It is not
                named in the signature: diffusers' pipelines hand their own default, η = 0, to any scheduler that names
                it, and would turn this DDPM into a DDIM in silence.
            variance_noise (`torch.Tensor`, like `sample`, *optional*): z itself, in place of a generator.

        Returns:
            `DDPMSchedulerOutput`: `prev_sample` (x_s) and `pred_original_sample` (x̂_0), in `sample`'s dtype.

        Raises:
            ValueError: before `set_timesteps`, at a timestep outside the schedule, or if shapes or dtypes do not match.
        """
        eta = check_fraction("eta", options.pop("eta", 1.0), "from 0 (DDIM) to 1 (DDPM)") if options else 1.0
        if options:
            raise TypeError(f"step() got unexpected arguments: {', '.join(options)}.")
        check_tensors(model_output=model_output, sample=sample)
        if generator is not None or variance_noise is not None:
            check_noise_source(generator, variance_noise, sample)
        weights = self._weights_at(timestep, sample, eta)
        x_t, output, learned = self._inputs(model_output, sample)

        # 1. x̂_0 from x_t and the prediction ([Ho] equation 15)
        pred_original = linear_combination(weights.x0_from_sample, x_t, weights.x0_from_output, output)
        pred_original = self._bounded(pred_original)

        # 2. The mean of q(x_s | x_t, x̂_0) ([Ho] equation 7); z = 0 on the last step
        if eta == 0 or (isinstance(weights.adds_noise, float) and not weights.adds_noise):
            prev_sample = linear_combination(weights.mean_from_x0, pred_original, weights.mean_from_sample, x_t)
        else:
            # 3. σ z comes first, so that the mean is added to it in place
            prev_sample = self._scaled_noise(weights, learned, eta, sample, generator, variance_noise)
            prev_sample = add_scaled(prev_sample, weights.mean_from_sample, x_t)
            prev_sample = add_scaled(prev_sample, weights.mean_from_x0, pred_original)

        # A sample of no dimension takes on the float64 of the weights.
        if prev_sample.dtype != sample.dtype or pred_original.dtype != sample.dtype:
            prev_sample, pred_original = prev_sample.to(sample.dtype), pred_original.to(sample.dtype)
        if not return_dict:
            return prev_sample, pred_original
        return DDPMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=pred_original)

    def step_inverse(
        self, model_output: torch.Tensor, timestep: int | torch.Tensor, sample: torch.Tensor
    ) -> torch.Tensor:
        """One step of DDIM inversion: from x_s back to x_t, s being the entry of the schedule after t = `timestep`.

        The step of η = 0 solved for x_t, with the prediction that the network makes for x_s at t, in place of the one
        for x_t that is not known yet (arXiv:2010.02502, section 4.3). Given the same ε it is the exact inverse.

        Args:
            model_output (`torch.Tensor`, shape (B, C, …)): the network's prediction for x_s and `timestep`.
            timestep (`int`, or `torch.Tensor` of shape (), (1,) or (B,)): t, an entry of `timesteps`.
            sample (`torch.Tensor`, like `model_output`): x_s; clean data for the last entry.

        Returns:
            `torch.Tensor`: x_t, in the dtype of `sample`.
        """
        check_tensors(model_output=model_output, sample=sample)
        weights = self._weights_at(timestep, sample, 1.0, in_double=True)
        x_s, output, _ = self._inputs(model_output, sample)
        log_t, log_s = _logarithms(weights)
        a, b = ddim_inversion_weights(log_t, log_s)
        c, d = conversion_weights(self.config.prediction_type, "epsilon", log_t)
        moved = [weight.to(x_s.dtype).to(x_s.device) for weight in (a + b * d, b * c)]
        return linear_combination(moved[0], x_s, moved[1], output).to(sample.dtype)

    def predict_original_sample(
        self, model_output: torch.Tensor, sample: torch.Tensor, timesteps: int | torch.Tensor
    ) -> torch.Tensor:
        """x̂_0 as [`step`] computes it, clipping included, for timesteps in or outside the schedule.

        Arguments as in [`convert_prediction`]; a learned variance must be split off before.
        """
        estimate = self._converted(model_output, sample, timesteps, "sample", None)
        return self._bounded(estimate).to(sample.dtype)

    def _bounded(self, pred_original: torch.Tensor) -> torch.Tensor:
        """x̂_0 clipped or thresholded as configured, in place where it can be."""
        if self._clip_range is not None:
            return torch.nn.functional.hardtanh_(pred_original, -self._clip_range, self._clip_range)
        if self._thresholding is not None:
            return dynamic_threshold(pred_original, *self._thresholding)
        return pred_original

    def _weights_at(
        self, timestep: int | torch.Tensor, sample: torch.Tensor, eta: float, in_double: bool = False
    ) -> _StepWeights:
        """The weights at η, as numbers, or as tensors in the sample's precision; in float64 with `in_double`."""
        if self._steps is None:
            raise ValueError("`step` was called before `set_timesteps`; call `set_timesteps(n)` first.")
        in_double = in_double or eta != 1  # what is computed from the table is computed in its own precision
        compiling = torch.compiler.is_compiling()
        if not compiling and isinstance(timestep, torch.Tensor) and timestep.is_cpu and timestep.numel() == 1:
            timestep = timestep.item()
        if isinstance(timestep, torch.Tensor):
            check_timesteps("timestep", timestep, 0, len(self.betas) - 1, sample)
            for t in set(timestep.tolist()) if timestep.is_cpu and not compiling else ():
                self._row(t)
            weights = self._gathered_weights(timestep, sample, in_double)
        elif compiling:
            weights = self._gathered_weights(timestep, sample, in_double)  # numbers, too: none may become a constant
        else:
            weights = self._row(timestep)
        return weights if eta == 1 else _with_eta(weights, eta, compute_dtype(sample))

    def _gathered_weights(self, timestep, sample: torch.Tensor, in_double: bool) -> _StepWeights:
        # There is no float64 on MPS.
        dtype = torch.float64 if in_double and sample.device.type != "mps" else compute_dtype(sample)
        key = (dtype, sample.device)
        if key not in self._step_tables:  # `set_timesteps` was given another device
            self._step_tables[key] = self._step_tables[torch.float64, torch.device("cpu")].to(dtype).to(sample.device)
        return _StepWeights(*broadcast_rows(columns_at(self._step_tables[key], timestep), sample))

    def _row(self, timestep: int) -> _StepWeights:
        if type(timestep) is not int:
            if not is_whole(timestep):
                raise ValueError(f"`timestep` is {timestep!r}; it must be an integer, or a tensor of integers.")
            timestep = operator.index(timestep)
        row = self._steps.get(timestep)
        if row is None:
            raise ValueError(
                f"`timestep` is {timestep}, which is not in the schedule of {self.num_inference_steps} steps set by "
                f"`set_timesteps`; take the entries of `timesteps`."
            )
        return row

    def _inputs(
        self, model_output: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """x_t, the prediction, and what the network says of a learned variance, in the precision that is computed in."""
        learned = self._variance_type in LEARNED_VARIANCE_TYPES
        if not learned and model_output.shape == sample.shape and model_output.dtype == sample.dtype == torch.float32:
            return sample, model_output, None  # the usual case comes first: it costs no more than its checks
        if learned and sample.ndim < 2:
            raise ValueError(
                f"`sample` has shape {tuple(sample.shape)}; with `variance_type` = {self.config.variance_type!r} it must have "
                f"channels: (B, C, …)."
            )
        wanted = (sample.shape[0], 2 * sample.shape[1], *sample.shape[2:]) if learned else sample.shape
        if model_output.shape != wanted:
            also = (
                f", twice the channels of `sample`: the prediction and the variance (`variance_type` = "
                f"{self.config.variance_type!r})" if learned else ", the shape of `sample`"
            )  # fmt: skip
            if not learned and sample.ndim > 1 and model_output.shape[1:2] == (2 * sample.shape[1],):
                also += "; a network with twice the channels needs `variance_type` = 'learned_range'"
            raise ValueError(f"`model_output` has shape {tuple(model_output.shape)}; it must be {tuple(wanted)}{also}.")
        if not sample.is_floating_point() or not model_output.is_floating_point():
            raise ValueError(
                f"`model_output` has dtype {model_output.dtype} and `sample` {sample.dtype}; both must be floating point."
            )
        if model_output.dtype.itemsize > sample.dtype.itemsize:
            raise ValueError(
                f"`model_output` has dtype {model_output.dtype}, more than `sample`'s {sample.dtype} can hold; convert one."
            )
        output, said = model_output.chunk(2, dim=1) if learned else (model_output, None)
        dtype = compute_dtype(sample)
        return sample.to(dtype), output.to(dtype), None if said is None else said.to(dtype)

    def _scaled_noise(self, weights: _StepWeights, learned, eta, sample, generator, variance_noise) -> torch.Tensor:
        """σ z, in a tensor of its own."""
        std = weights.std
        if learned is not None:
            if self._variance_type == "learned_range":
                learned = learned_range_log_variance(learned, weights.log_variance_small, weights.log_variance_large)
            std = torch.exp(0.5 * learned) * (weights.adds_noise * eta)
        if variance_noise is None:
            if isinstance(std, float):
                return draw_noise(sample, generator, std)
            return draw_noise(sample, generator).mul_(std)
        return variance_noise.to(compute_dtype(sample)) * std

    def _get_variance(self, t: int, predicted_variance=None, variance_type: str | None = None) -> torch.Tensor:
        """The name under which diffusers' own tests and subclasses ask for the variance of the step at t."""
        kind = VARIANCE_TYPES[variance_type or self.config.variance_type]
        if kind in LEARNED_VARIANCE_TYPES:
            raise ValueError(f"`variance_type` is {kind!r}: that variance is the network's; `step` computes it.")
        weights = self._weights_at(t, torch.empty(0), 1.0)
        known = None if self._original_sample_variances is None else self._original_sample_variances[int(t)]
        return reverse_variance(kind, *_logarithms(weights), known)


def _checked_config(config) -> dict:
    """Refuses what no schedule has, and gives the numbers of all schedules as Python's own."""
    check_choice("variance_type", config.variance_type, tuple(VARIANCE_TYPES))
    check_choice("prediction_type", config.prediction_type, PREDICTION_TYPES)
    check_choice("timestep_spacing", config.timestep_spacing, TIMESTEP_SPACINGS)
    for name in ("clip_sample", "thresholding", "rescale_betas_zero_snr"):
        check_choice(name, config[name], (True, False))
    return {
        "beta_start": check_bounds("beta_start", config.beta_start, SMALLEST_DIVISOR, 1),
        "beta_end": check_bounds("beta_end", config.beta_end, SMALLEST_DIVISOR, 1),
        "steps_offset": check_integer("steps_offset", config.steps_offset, 0, math.inf),
        "clip_sample_range": check_bounds("clip_sample_range", config.clip_sample_range, 0, LARGEST_NUMBER),
        "sample_max_value": check_bounds("sample_max_value", config.sample_max_value, 0, LARGEST_NUMBER),
        "dynamic_thresholding_ratio": check_ratio("dynamic_thresholding_ratio", config.dynamic_thresholding_ratio),
    }


def _paper_time(timestep):
    """The paper's t for a diffusers timestep (an `int` or a tensor of them)."""
    return timestep + 1


def _logarithms(weights: _StepWeights) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.as_tensor(log, dtype=torch.float64) for log in (weights.log_abar_t, weights.log_abar_s))


def _with_eta(weights: _StepWeights, eta: float, dtype: torch.dtype) -> _StepWeights:
    """Weights of η = 1, numbers or float64 tensors, turned into those of another η; tensors are rounded to `dtype`."""
    mean = ddim_mean_weights(eta, *_logarithms(weights))
    if isinstance(weights.log_abar_t, float):
        mean = [weight.item() for weight in mean]
    weights = weights._replace(mean_from_x0=mean[0], mean_from_sample=mean[1], std=weights.std * eta)
    if isinstance(weights.log_abar_t, float):
        return weights
    return _StepWeights(*(weight.to(dtype) for weight in weights))
