"""The terms of the variational bound on −log p(x_0) ([Ho] equation 5), for training and for bits per dimension.

[Ho] is Ho, Jain, Abbeel 2020, arXiv:2006.11239. Timesteps count as in `scheduling_ddpm_hub.py`: timestep i is the paper's
t = i + 1.
"""

import math

import torch

from .ddpm_argument_checks import check_integer, check_timesteps
from .ddpm_equations import (
    discretized_gaussian_log_likelihood,
    gaussian_kl,
    log_variance_range,
    original_sample_weights,
    posterior_variance,
    snr_gain,
)
from .ddpm_sample_arithmetic import broadcast_rows, columns_at, compute_dtype, linear_combination
from .scheduling_ddpm_hub import LEARNED_VARIANCE_TYPES, VARIANCE_TYPES, DDPMHubScheduler

NATS_PER_BIT = math.log(2)


class VariationalBound:
    """The bound's terms for a scheduler's schedule, prediction type and variance, over all T steps.

    With L_{t−1} as [`terms`] gives it and L_T from [`prior`], E[Σ_t L_{t−1}] + L_T bounds −log p(x_0) from above, in nats
    per dimension. Coefficients are float64 and rounded once to the precision of the samples (float32, or float64 for
    float64 samples); of two variances the logarithm of the ratio is kept, and of two means the difference, so nothing
    cancels where the distributions are nearly the same.

    **The decoder's variance.** β̃_1 is 0, which is no variance for the decoder p(x_0 | x_1). With `fixed_small` and
    `fixed_large` it is β̃_2, and β̃_2 is the lower end of `learned_range` at t = 1, as in the code of both papers, so that
    figures compare. `analytic` has V_1, its own formula at β̃_1 = 0.

    Args:
        scheduler (`DDPMHubScheduler`): not changed.
        bit_depth (`int`, defaults to `8`): bits of a pixel, 8 or 16: the width of the decoder's bins.

    Raises:
        ValueError: for another `bit_depth`, or an `analytic` variance that leaves the decoder none (V_1 = 0).
    """

    def __init__(self, scheduler: DDPMHubScheduler, bit_depth: int = 8):
        check_integer("bit_depth", bit_depth, 1, 16)
        self.scheduler = scheduler
        self.bit_depth = bit_depth
        self._variance_type = VARIANCE_TYPES[scheduler.config.variance_type]
        # Entry 0 is clean data, the paper's t = 0.
        self._log_abar = scheduler.log_alphas_cumprod
        self._tables = {(torch.float64, torch.device("cpu")): self._coefficients()}

    def _coefficients(self) -> torch.Tensor:
        """float64, one column for each timestep.

        The rows: x̂_0's weights of x_t and of the prediction, SNR(s) − SNR(t), log β̃, log(β/β̃), the log of the fixed
        variance over β̃, and 1 where the term is the decoder's.
        """
        log_t, log_s = self._log_abar[1:], self._log_abar[:-1]
        gain, width = snr_gain(log_t, log_s), log_variance_range(log_t, log_s)
        log_small = posterior_variance(log_t, log_s).log()
        log_beta_1 = (-torch.expm1(log_t[0])).log()
        # t = 1, where x_s is x_0 and β̃ is 0: see the class. With T = 1 there is no β̃_2.
        gain[0] = 0.0
        log_small[0] = log_small[1] if len(log_t) > 1 else log_beta_1
        width[0] = log_beta_1 - log_small[0]
        fixed = torch.zeros_like(gain)
        if self._variance_type == "fixed_large":
            fixed[1:] = width[1:]
        elif self._variance_type == "analytic":
            known = torch.tensor(self.scheduler.config.original_sample_variances, dtype=torch.float64)
            if known[0] == 0:
                raise ValueError(
                    "`original_sample_variances` starts with 0, a decoder of no variance; V_1 must be above 0."
                )
            fixed = torch.log1p(gain * known)
            fixed[0] = known[0].log() - log_small[0]
        is_decoder = torch.zeros_like(gain)
        is_decoder[0] = 1.0
        weights = original_sample_weights(self.scheduler.config.prediction_type, log_t)
        return torch.stack([*weights, gain, log_small, width, fixed, is_decoder])

    def terms(
        self,
        model_output: torch.Tensor,
        original_samples: torch.Tensor,
        sample: torch.Tensor,
        timesteps: torch.Tensor,
        stop_gradient_at_mean: bool = False,
        clip_sample: bool = False,
    ) -> torch.Tensor:
        """L_{t−1} = KL(q(x_{t−1} | x_t, x_0) ‖ p(x_{t−1} | x_t)), and L_0 = −log p(x_0 | x_1) at t = 1, of each image.

        Differentiable in the network's output, the variance included. Reads no value on the host, unless `clip_sample`.

        Args:
            model_output (`torch.Tensor`, shape (B, C, …), or (B, 2C, …) for a learned variance): the prediction at x_t.
            original_samples (`torch.Tensor`, floating point, shape (B, C, …)): x_0, as `normalize` makes it of pixels.
            sample (`torch.Tensor`, like `original_samples`): x_t, what the network saw.
            timesteps (`torch.Tensor` of integers, shape (B,)): 0…T−1.
            stop_gradient_at_mean (`bool`, defaults to `False`): train the variance alone, as in L_hybrid (Nichol & Dhariwal
                2021, arXiv:2102.09672, section 3.1).
            clip_sample (`bool`, defaults to `False`): bound x̂_0 as the scheduler's `step` does: the bound of what is
                sampled. Without it the gradient reaches predictions outside of [−1, 1], as training needs.

        Returns:
            `torch.Tensor`, shape (B,): nats per dimension, float32, or float64 for float64 samples. In float32 the means
            differ by at most about 2⁻²²·√SNR(t−1) posterior standard deviations from what they would be without rounding.

        Raises:
            ValueError: if the shapes do not match, or, on the CPU, a timestep is outside 0…T−1.
        """
        x_0, x_t, output, learned = self._inputs(model_output, original_samples, sample, timesteps)
        rows = broadcast_rows(columns_at(self._table(x_0), timesteps), x_0)
        from_sample, from_output, gain, log_small, width, fixed, is_decoder = rows
        if clip_sample:
            estimate = self.scheduler.predict_original_sample(output, x_t, timesteps)
        else:
            estimate = linear_combination(from_sample, x_t, from_output, output)
        if stop_gradient_at_mean:
            estimate = estimate.detach()
        log_ratio = fixed
        if self._variance_type == "learned_range":
            log_ratio = (learned + 1) / 2 * width
        elif self._variance_type == "learned":
            log_ratio = learned - log_small
        divergence = _mean_of_each(gaussian_kl(gain * (x_0 - estimate).square(), log_ratio))
        log_variance = log_small + log_ratio
        if not x_0.is_cpu or torch.compiler.is_compiling():
            # The host must not read which images are at t = 1, so the decoder judges all.
            return torch.where(is_decoder.flatten() > 0, self._decoder_term(x_0, estimate, log_variance), divergence)
        at_first = (timesteps == 0).nonzero().flatten()
        if not len(at_first):
            return divergence
        chosen = (tensor.expand(len(x_0), *tensor.shape[1:])[at_first] for tensor in (x_0, estimate, log_variance))
        return divergence.index_copy(0, at_first, self._decoder_term(*chosen))

    def _decoder_term(self, x_0: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        return -_mean_of_each(discretized_gaussian_log_likelihood(x_0, mean, log_variance, self.bit_depth))

    def prior(self, original_samples: torch.Tensor) -> torch.Tensor:
        """L_T = KL(q(x_T | x_0) ‖ N(0, I)) of each image, in nats per dimension; no network has a part in it.

        Args:
            original_samples (`torch.Tensor`, floating point, shape (B, …)): x_0.

        Returns:
            `torch.Tensor`, shape (B,).
        """
        dtype = compute_dtype(original_samples)
        final = self._log_abar[-1].exp()
        ratio = (final / (1 - final)).to(dtype), -torch.log1p(-final).to(dtype)
        snr, log_ratio = (weight.to(original_samples.device) for weight in ratio)
        kl = gaussian_kl(snr * original_samples.to(dtype).square(), log_ratio)
        return _mean_of_each(kl)

    def _table(self, sample: torch.Tensor) -> torch.Tensor:
        key = (sample.dtype, sample.device)
        if key not in self._tables:
            self._tables[key] = self._tables[torch.float64, torch.device("cpu")].to(sample.dtype).to(sample.device)
        return self._tables[key]

    def _inputs(self, model_output, original_samples, sample, timesteps):
        """x_0, x_t, the prediction and what the network says of the variance, in the precision that is computed in."""
        is_learned = self._variance_type in LEARNED_VARIANCE_TYPES
        batch, channels, *size = original_samples.shape
        wanted = (batch, channels * (2 if is_learned else 1), *size)
        if tuple(model_output.shape) != wanted:
            raise ValueError(
                f"`model_output` has shape {tuple(model_output.shape)}; it must be {wanted} for `original_samples` of shape "
                f"{tuple(original_samples.shape)} and `variance_type` = {self._variance_type!r}."
            )
        if sample.shape != original_samples.shape:
            raise ValueError(
                f"`sample` has shape {tuple(sample.shape)}; it must be {tuple(original_samples.shape)}, the shape of "
                f"`original_samples`."
            )
        if timesteps.shape != (batch,):
            raise ValueError(f"`timesteps` has shape {tuple(timesteps.shape)}; it must be ({batch},), one per image.")
        check_timesteps("timesteps", timesteps, 0, len(self._log_abar) - 2)
        dtype = compute_dtype(original_samples)
        output, learned = model_output.to(dtype).chunk(2, dim=1) if is_learned else (model_output.to(dtype), None)
        return original_samples.to(dtype), sample.to(dtype), output, learned


def _mean_of_each(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.mean(dim=tuple(range(1, tensor.ndim)))
