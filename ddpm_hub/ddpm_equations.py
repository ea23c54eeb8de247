"""The equations of the denoising diffusion probabilistic model (DDPM), and nothing else.

Source: Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models" (2020), arXiv:2006.11239, called [Ho] below.

**Time.** The paper counts t = 1…T, and ᾱ_0 = 1 stands for clean data. Functions here take *log ᾱ* at the times they
need, so they know no index at all; [`log_alphas_cumprod`] returns T + 1 entries, and entry t is the paper's t. The one
place that turns a diffusers timestep 0…T−1 into the paper's t = timestep + 1 is `scheduling_ddpm_hub.py`.

**Precision.** Coefficients are float64 and come from log ᾱ through `expm1`, never from 1 − ᾱ, which cancels where ᾱ is
close to 1. Every function is elementwise and broadcasts; none looks at a device or a sample.

This file imports torch and math only: it is copied beside every model that is published.
"""

import math

import torch

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
VARIANCE_TYPES = ("fixed_small", "fixed_large")


# --- Pixels and samples ---------------------------------------------------------------------------------------------


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels 0…255 to a sample in [−1, 1]: x = 2p/255 − 1 ([Ho] section 3.3).

    Args:
        pixels (`torch.Tensor` of `uint8`): any shape.

    Returns:
        `torch.Tensor` of `float32`: the same shape.
    """
    if pixels.dtype != torch.uint8:
        raise ValueError(f"`pixels` has dtype {pixels.dtype}; it must be torch.uint8 (values 0 to 255).")
    return pixels.to(torch.float32).mul_(2.0).sub_(255.0).div_(255.0)


def denormalize(sample: torch.Tensor) -> torch.Tensor:
    """The inverse of [`normalize`]: p = round((x + 1)·255/2), clamped to 0…255.

    Args:
        sample (`torch.Tensor`, floating point): any shape, nominally in [−1, 1].

    Returns:
        `torch.Tensor` of `uint8`: the same shape.
    """
    return sample.to(torch.float32).add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


# --- Noise schedules ------------------------------------------------------------------------------------------------


def make_betas(beta_schedule: str, num_train_timesteps: int, beta_start: float, beta_end: float) -> torch.Tensor:
    """The variances β_1…β_T of the forward steps.

    - `linear`: equally spaced from β_1 = `beta_start` to β_T = `beta_end` ([Ho] section 4).
    - `scaled_linear`: √β equally spaced (the "quad" schedule of the paper's code).
    - `squaredcos_cap_v2`: ᾱ(u) = cos²((u + 0.008)/1.008 · π/2) with u = t/T, and β_t = min(1 − ᾱ_t/ᾱ_{t−1}, 0.999)
      (Nichol & Dhariwal 2021, arXiv:2102.09672, equation 17); it has no use for `beta_start` and `beta_end`.

    Returns:
        `torch.Tensor` of `float64`, shape (T,): entry i is β_{i+1}.
    """
    if beta_schedule == "linear":
        return torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)
    if beta_schedule == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64).square()
    if beta_schedule == "squaredcos_cap_v2":
        # 1 − cos²(b)/cos²(a) = sin(b − a)·sin(b + a)/cos²(a): no difference of nearly equal numbers.
        angle = [(t / num_train_timesteps + 0.008) / 1.008 * math.pi / 2 for t in range(num_train_timesteps + 1)]
        width = math.sin(math.pi / 2 / 1.008 / num_train_timesteps)
        betas = [
            width * math.sin(angle[t - 1] + angle[t]) / math.cos(angle[t - 1]) ** 2
            for t in range(1, num_train_timesteps + 1)
        ]
        return torch.tensor(betas, dtype=torch.float64).clamp(max=0.999)
    raise ValueError(f"`beta_schedule` is {beta_schedule!r}; it must be one of {', '.join(BETA_SCHEDULES)}.")


def log_alphas_cumprod(betas: torch.Tensor) -> torch.Tensor:
    """log ᾱ_t = Σ_{s=1}^{t} log(1 − β_s), with log ᾱ_0 = 0 in front.

    Args:
        betas (`torch.Tensor` of `float64`, shape (T,)): β_1…β_T.

    Returns:
        `torch.Tensor` of `float64`, shape (T + 1,): entry t is log ᾱ_t.
    """
    return torch.cat([betas.new_zeros(1), torch.log1p(-betas).cumsum(0)])


# --- Forward process ------------------------------------------------------------------------------------------------


def signal_rate(log_alpha_bar: torch.Tensor) -> torch.Tensor:
    """√ᾱ_t, the weight of x_0 in q(x_t | x_0) ([Ho] equation 4).

    Given log(ᾱ_t/ᾱ_s) it is the weight of x_s in q(x_t | x_s): the one-step and the k-step merge are one formula.
    """
    return torch.exp(0.5 * log_alpha_bar)


def noise_rate(log_alpha_bar: torch.Tensor) -> torch.Tensor:
    """√(1 − ᾱ_t), the standard deviation of q(x_t | x_0) ([Ho] equation 4); of q(x_t | x_s) given log(ᾱ_t/ᾱ_s)."""
    return torch.sqrt(-torch.expm1(log_alpha_bar))


# --- What the network predicts: the target and its inverse, side by side ----------------------------------------------


def target_weights(prediction_type: str, log_alpha_bar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight of x_0, weight of ε) of the training target.

    epsilon: ε ([Ho] equation 14). sample: x_0. v_prediction: v = √ᾱ ε − √(1−ᾱ) x_0 (Salimans & Ho 2022,
    arXiv:2202.00512, appendix D).
    """
    zero, one = torch.zeros_like(log_alpha_bar), torch.ones_like(log_alpha_bar)
    if prediction_type == "epsilon":
        return zero, one
    if prediction_type == "sample":
        return one, zero
    if prediction_type == "v_prediction":
        return -noise_rate(log_alpha_bar), signal_rate(log_alpha_bar)
    raise ValueError(f"`prediction_type` is {prediction_type!r}; it must be one of {', '.join(PREDICTION_TYPES)}.")


def original_sample_weights(prediction_type: str, log_alpha_bar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight of x_t, weight of the network's output) in x̂_0, the inverse of [`target_weights`].

    epsilon: x_0 = (x_t − √(1−ᾱ) ε)/√ᾱ ([Ho] equation 15). sample: x_0 itself. v_prediction: x_0 = √ᾱ x_t − √(1−ᾱ) v.
    """
    zero, one = torch.zeros_like(log_alpha_bar), torch.ones_like(log_alpha_bar)
    if prediction_type == "epsilon":
        # √(1−ᾱ)/√ᾱ = √(1/ᾱ − 1)
        return torch.exp(-0.5 * log_alpha_bar), -torch.sqrt(torch.expm1(-log_alpha_bar))
    if prediction_type == "sample":
        return zero, one
    if prediction_type == "v_prediction":
        return signal_rate(log_alpha_bar), -noise_rate(log_alpha_bar)
    raise ValueError(f"`prediction_type` is {prediction_type!r}; it must be one of {', '.join(PREDICTION_TYPES)}.")


# --- Posterior q(x_s | x_t, x_0) for any s < t; [Ho] equations 6 and 7 at s = t − 1 -----------------------------------


def posterior_mean_weights(log_abar_t: torch.Tensor, log_abar_s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight of x_0, weight of x_t) in the mean of q(x_s | x_t, x_0).

    √ᾱ_s β_{t|s}/(1−ᾱ_t) and √α_{t|s} (1−ᾱ_s)/(1−ᾱ_t), where α_{t|s} = ᾱ_t/ᾱ_s and β_{t|s} = 1 − α_{t|s}. At s = 0
    they are exactly 1 and 0.
    """
    log_ratio = log_abar_t - log_abar_s
    noise_t = torch.expm1(log_abar_t)
    weight_x0 = torch.exp(0.5 * log_abar_s) * (torch.expm1(log_ratio) / noise_t)
    weight_xt = torch.exp(0.5 * log_ratio) * (torch.expm1(log_abar_s) / noise_t)
    return weight_x0, weight_xt


def posterior_variance(variance_type: str, log_abar_t: torch.Tensor, log_abar_s: torch.Tensor) -> torch.Tensor:
    """The variance that the reverse step from t to s adds ([Ho] section 3.2).

    fixed_small: β̃ = β_{t|s} (1−ᾱ_s)/(1−ᾱ_t), exact where x_0 is known. fixed_large: β_{t|s}, the upper bound.
    """
    beta = -torch.expm1(log_abar_t - log_abar_s)
    if variance_type == "fixed_small":
        return beta * (torch.expm1(log_abar_s) / torch.expm1(log_abar_t))
    if variance_type == "fixed_large":
        return beta
    raise ValueError(f"`variance_type` is {variance_type!r}; it must be one of {', '.join(VARIANCE_TYPES)}.")
