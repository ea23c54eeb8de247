"""The equations of the denoising diffusion probabilistic model (DDPM), and nothing else.

Source: Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models" (2020), arXiv:2006.11239, called [Ho] below.

**Time.** The paper counts t = 1…T, and ᾱ_0 = 1 stands for clean data. Functions here take *log ᾱ* at the times they
need, so they know no index at all. The one place that turns a diffusers timestep 0…T−1 into the paper's t = timestep + 1
is `scheduling_ddpm_hub.py`; the schedules, which are what log ᾱ comes from, are in `ddpm_noise_schedules.py`.

**Precision.** Coefficients are float64 and come from log ᾱ through `expm1`, never from 1 − ᾱ, which cancels where ᾱ is
close to 1. Every function is elementwise and broadcasts; none looks at a device or a sample.

This file imports torch only: it is copied beside every model that is published.
"""

import torch

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
FIXED_VARIANCE_TYPES = ("fixed_small", "fixed_large", "analytic")


# --- Pixels and samples ---------------------------------------------------------------------------------------------


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels 0…P to a sample in [−1, 1]: x = 2p/P − 1 ([Ho] section 3.3), P = 255 for 8 bits and 65535 for 16.

    Args:
        pixels (`torch.Tensor` of `uint8` or `uint16`): any shape.

    Returns:
        `torch.Tensor` of `float32`: the same shape, each value the exact one rounded once.
    """
    if pixels.dtype not in (torch.uint8, torch.uint16):
        raise ValueError(
            f"`pixels` has dtype {pixels.dtype}; it must be torch.uint8 (values 0 to 255) or torch.uint16 (0 to 65535)."
        )
    largest = float(torch.iinfo(pixels.dtype).max)
    return pixels.to(torch.float32).mul_(2.0).sub_(largest).div_(largest)


def denormalize(sample: torch.Tensor) -> torch.Tensor:
    """The inverse of [`normalize`] for 8 bits: p = round((x + 1)·255/2), clamped to 0…255.

    Args:
        sample (`torch.Tensor`, floating point): any shape, nominally in [−1, 1].

    Returns:
        `torch.Tensor` of `uint8`: the same shape.
    """
    return sample.to(torch.float32).add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


# --- Forward process ------------------------------------------------------------------------------------------------


def signal_rate(log_alpha_bar: torch.Tensor) -> torch.Tensor:
    """√ᾱ_t, the weight of x_0 in q(x_t | x_0) ([Ho] equation 4).

    Given log(ᾱ_t/ᾱ_s) it is the weight of x_s in q(x_t | x_s): the one-step and the k-step merge are one formula.
    """
    return torch.exp(0.5 * log_alpha_bar)


def noise_rate(log_alpha_bar: torch.Tensor) -> torch.Tensor:
    """√(1 − ᾱ_t), the standard deviation of q(x_t | x_0) ([Ho] equation 4); of q(x_t | x_s) given log(ᾱ_t/ᾱ_s)."""
    return torch.sqrt(-torch.expm1(log_alpha_bar))


def snr(log_alpha_bar: torch.Tensor) -> torch.Tensor:
    """SNR(t) = ᾱ_t/(1−ᾱ_t), the signal-to-noise ratio of q(x_t | x_0) (Kingma et al. 2021, arXiv:2107.00630); ∞ at t = 0."""
    return 1 / torch.expm1(0.0 - log_alpha_bar)  # −log_alpha_bar would be −0 at t = 0, and the ratio −∞


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
    raise _unknown("prediction_type", prediction_type, PREDICTION_TYPES)


def original_sample_weights(prediction_type: str, log_alpha_bar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight of x_t, weight of the prediction) in x̂_0; the inverse of [`prediction_weights`].

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
    raise _unknown("prediction_type", prediction_type, PREDICTION_TYPES)


def prediction_weights(prediction_type: str, log_alpha_bar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight of x_t, weight of x_0) in the prediction; the inverse of [`original_sample_weights`].

    epsilon: ε = (x_t − √ᾱ x_0)/√(1−ᾱ). sample: x_0 itself. v_prediction: v = (√ᾱ x_t − x_0)/√(1−ᾱ).
    """
    zero, one = torch.zeros_like(log_alpha_bar), torch.ones_like(log_alpha_bar)
    if prediction_type == "epsilon":
        return 1 / noise_rate(log_alpha_bar), -torch.sqrt(snr(log_alpha_bar))
    if prediction_type == "sample":
        return zero, one
    if prediction_type == "v_prediction":
        return torch.sqrt(snr(log_alpha_bar)), -1 / noise_rate(log_alpha_bar)
    raise _unknown("prediction_type", prediction_type, PREDICTION_TYPES)


def conversion_weights(
    source_type: str, target_type: str, log_alpha_bar: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight of the prediction, weight of x_t) in another kind of prediction at the same x_t.

    With σ = √(1−ᾱ): v = (ε − σ x_t)/√ᾱ and ε = √ᾱ v + σ x_t; from and to x_0, [`prediction_weights`] and
    [`original_sample_weights`].
    """
    if source_type == target_type and source_type in PREDICTION_TYPES:
        return torch.ones_like(log_alpha_bar), torch.zeros_like(log_alpha_bar)
    if target_type == "sample":
        return original_sample_weights(source_type, log_alpha_bar)[::-1]
    if source_type == "sample":
        return prediction_weights(target_type, log_alpha_bar)[::-1]
    if (source_type, target_type) == ("epsilon", "v_prediction"):
        return torch.exp(-0.5 * log_alpha_bar), -torch.sqrt(torch.expm1(-log_alpha_bar))
    if (source_type, target_type) == ("v_prediction", "epsilon"):
        return signal_rate(log_alpha_bar), noise_rate(log_alpha_bar)
    unknown = source_type if source_type not in PREDICTION_TYPES else target_type
    raise _unknown("prediction_type", unknown, PREDICTION_TYPES)


def snr_loss_weight(
    prediction_type: str, log_alpha_bar: torch.Tensor, largest_snr: float = float("inf")
) -> torch.Tensor:
    """What the squared error of the prediction is multiplied by so that the squared error of x_0 weighs min(SNR, γ).

    With x_0's error being b times the prediction's ([`original_sample_weights`]) this is min(SNR, γ)·b²: for epsilon
    min(SNR, γ)/SNR, for sample min(SNR, γ), for v_prediction min(SNR, γ)/(SNR + 1). γ = `largest_snr` is min-SNR-γ of Hang
    et al. 2023 (arXiv:2303.09556, section 3.4). Without it the loss is that of ε, whatever is predicted.
    """
    _, from_prediction = original_sample_weights(prediction_type, log_alpha_bar)
    return snr(log_alpha_bar).clamp(max=largest_snr) * from_prediction.square()


# --- Posterior q(x_s | x_t, x_0) for any s < t; [Ho] equations 6 and 7 at s = t − 1 -----------------------------------


def posterior_precision(log_abar_t: torch.Tensor, log_abar_s: torch.Tensor) -> torch.Tensor:
    """A = α/β + 1/(1−ᾱ_s) = (1−ᾱ_t)/(β (1−ᾱ_s)) with α = ᾱ_t/ᾱ_s and β = 1 − α; infinite at s = 0."""
    return 1 / posterior_variance(log_abar_t, log_abar_s)


def posterior_linear_weights(log_abar_t: torch.Tensor, log_abar_s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight of x_0, weight of x_t) in B = √ᾱ_s x_0/(1−ᾱ_s) + √α x_t/β; the posterior mean is B/A."""
    log_ratio = log_abar_t - log_abar_s
    return (
        torch.exp(0.5 * log_abar_s) / -torch.expm1(log_abar_s),
        torch.exp(0.5 * log_ratio) / -torch.expm1(log_ratio),
    )


def posterior_mean_weights(log_abar_t: torch.Tensor, log_abar_s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight of x_0, weight of x_t) in the mean of q(x_s | x_t, x_0) ([Ho] equation 7).

    √ᾱ_s β/(1−ᾱ_t) and √α (1−ᾱ_s)/(1−ᾱ_t), where α = ᾱ_t/ᾱ_s and β = 1 − α. At s = 0 they are exactly 1 and 0.
    """
    log_ratio = log_abar_t - log_abar_s
    noise_t = torch.expm1(log_abar_t)
    weight_x0 = torch.exp(0.5 * log_abar_s) * (torch.expm1(log_ratio) / noise_t)
    weight_xt = torch.exp(0.5 * log_ratio) * (torch.expm1(log_abar_s) / noise_t)
    return weight_x0, weight_xt


def posterior_mean_weights_epsilon(
    log_abar_t: torch.Tensor, log_abar_s: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight of x_t, weight of ε) in the same mean: 1/√α and −β/(√α √(1−ᾱ_t)) ([Ho] equation 11)."""
    log_ratio = log_abar_t - log_abar_s
    weight_xt = torch.exp(-0.5 * log_ratio)
    return weight_xt, weight_xt * torch.expm1(log_ratio) / noise_rate(log_abar_t)


def posterior_variance(log_abar_t: torch.Tensor, log_abar_s: torch.Tensor) -> torch.Tensor:
    """β̃ = β (1−ᾱ_s)/(1−ᾱ_t), the variance of q(x_s | x_t, x_0) ([Ho] equation 7)."""
    return -torch.expm1(log_abar_t - log_abar_s) * (torch.expm1(log_abar_s) / torch.expm1(log_abar_t))


# --- Variance of the reverse step -------------------------------------------------------------------------------------


def reverse_variance(
    variance_type: str,
    log_abar_t: torch.Tensor,
    log_abar_s: torch.Tensor,
    original_sample_variance: torch.Tensor | None = None,
) -> torch.Tensor:
    """The variance that the reverse step from t to s adds to the posterior mean.

    - `fixed_small`: β̃, right where x_0 is known ([Ho] section 3.2).
    - `fixed_large`: β = 1 − ᾱ_t/ᾱ_s, right for data of unit variance ([Ho] section 3.2).
    - `analytic`: β̃ + w²·V_t, right on average over the data: w is the weight of x_0 in the posterior mean and V_t =
      `original_sample_variance` the mean variance of x_0 given x_t, per dimension. This is theorem 1 of Bao et al. 2022
      (arXiv:2201.06503) at the DDPM's λ² = β̃; [`variance_from_score_norm`] gives V_t in the paper's terms.
    """
    if variance_type == "fixed_small":
        return posterior_variance(log_abar_t, log_abar_s)
    if variance_type == "fixed_large":
        return -torch.expm1(log_abar_t - log_abar_s)
    if variance_type == "analytic":
        weight_x0, _ = posterior_mean_weights(log_abar_t, log_abar_s)
        return posterior_variance(log_abar_t, log_abar_s) + weight_x0.square() * original_sample_variance
    raise _unknown("variance_type", variance_type, FIXED_VARIANCE_TYPES)


def variance_from_score_norm(score_norm: torch.Tensor, log_alpha_bar: torch.Tensor) -> torch.Tensor:
    """V_t = (1−ᾱ_t)/ᾱ_t · (1 − (1−ᾱ_t) Γ_t), the mean variance of x_0 given x_t, per dimension.

    Γ_t = E‖∇ log q_t(x_t)‖²/d is the mean squared norm of the score per dimension (Bao et al. 2022, theorem 1).
    """
    return torch.expm1(-log_alpha_bar) * (1 + torch.expm1(log_alpha_bar) * score_norm)


def learned_range_log_variance(
    interpolation: torch.Tensor, log_variance_small: torch.Tensor, log_variance_large: torch.Tensor
) -> torch.Tensor:
    """log Σ = v log β + (1−v) log β̃ with v = (`interpolation` + 1)/2 (Nichol & Dhariwal 2021, equation 15).

    `interpolation` is the network's second half, nominally in [−1, 1].
    """
    return log_variance_small + (interpolation + 1) / 2 * (log_variance_large - log_variance_small)


def log_variance_range(log_abar_t: torch.Tensor, log_abar_s: torch.Tensor) -> torch.Tensor:
    """log(β/β̃) = log(1 + β ᾱ_s/(1−ᾱ_s)), how far the two fixed variances are apart; infinite at s = 0."""
    return torch.log1p(-torch.expm1(log_abar_t - log_abar_s) * snr(log_abar_s))


# --- The variational bound ([Ho] equation 5), in nats -----------------------------------------------------------------


def gaussian_kl(squared_difference: torch.Tensor, log_variance_ratio: torch.Tensor) -> torch.Tensor:
    """KL(N(μ_1, σ_1²) ‖ N(μ_2, σ_2²)) = ½(ρ + e^{−ρ} − 1 + e^{−ρ} δ²), elementwise.

    Args:
        squared_difference (`torch.Tensor`): δ² = (μ_1 − μ_2)²/σ_1².
        log_variance_ratio (`torch.Tensor`): ρ = log(σ_2²/σ_1²). Both are taken as ratios, not as two logarithms and two
            means, so that float32 loses nothing where the distributions are close.
    """
    return 0.5 * (
        log_variance_ratio + torch.expm1(-log_variance_ratio) + torch.exp(-log_variance_ratio) * squared_difference
    )


def snr_gain(log_abar_t: torch.Tensor, log_abar_s: torch.Tensor) -> torch.Tensor:
    """SNR(s) − SNR(t) = β SNR(s)/(1−ᾱ_t); infinite at s = 0.

    It is w²/β̃, w being x_0's weight in the posterior mean: with reverse variance β̃ the KL term of the bound is
    ½(SNR(s) − SNR(t))(x_0 − x̂_0)² (Kingma et al. 2021, arXiv:2107.00630, equation 13).
    """
    return torch.expm1(log_abar_t - log_abar_s) * snr(log_abar_s) / torch.expm1(log_abar_t)


def discretized_gaussian_log_likelihood(
    sample: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor, bit_depth: int
) -> torch.Tensor:
    """log of the mass that N(mean, σ²) has in the bin of a pixel, elementwise ([Ho] equation 13).

    The bins are 2/P wide, P = 2^bits − 1, around the values of [`normalize`]; the first and the last reach to ∓∞. Values
    and derivatives are finite and exact to a few roundings in every tail.

    Args:
        sample (`torch.Tensor`, floating point): x_0, values of [`normalize`].
        mean, log_variance (`torch.Tensor`): broadcast against it.
        bit_depth (`int`): bits of a pixel.
    """
    half_bin = 1 / (2**bit_depth - 1)
    scale = torch.exp(-0.5 * log_variance)
    distance, half_width = (sample - mean) * scale, half_bin * scale
    lowest, highest = sample < -1 + half_bin, sample > 1 - half_bin
    outer = log_normal_cdf(half_width + torch.where(lowest, distance, -distance))
    return torch.where(lowest | highest, outer, log_normal_interval(distance, half_width))


_ROOT_HALF = 0.5**0.5
_LOG_ROOT_2_PI = 0.9189385332046727


def log_normal_cdf(x: torch.Tensor) -> torch.Tensor:
    """log Φ(x). Unlike `torch.special.log_ndtr` its derivative, too, is right in the tail."""
    # Not clamp, whose derivative at 0 itself is 1 or 0, by the version of torch.
    tail, rest = torch.where(x < 0, x, 0.0), torch.where(x < 0, 0.0, x)
    log_tail = torch.log(0.5 * torch.special.erfcx(-tail * _ROOT_HALF)) - 0.5 * tail.square()
    return torch.where(x < 0, log_tail, torch.log1p(-0.5 * torch.erfc(rest * _ROOT_HALF)))


def log_normal_interval(center: torch.Tensor, half_width: torch.Tensor) -> torch.Tensor:
    """log(Φ(m + w) − Φ(m − w)), without the difference: m = `center`, w = `half_width` > 0, which broadcast.

    Three formulas, each where it is exact:

    - the interval holds 0: ½ erf((w + m)/√2) + ½ erf((w − m)/√2);
    - it does not: with a = |m| − w, b = |m| + w, Q = 1 − Φ, log Q(a) + log(1 − Q(b)/Q(a)), where the exponents of the
      scaled erfc, Q(x) = ½ erfcx(x/√2) e^{−x²/2}, leave −2w|m| and no difference;
    - w and w|m| are small, so that 1 − Q(b)/Q(a) would cancel: the density at m times 2w, times the mean over u in (−1, 1)
      of e^{−wmu − w²u²/2}, whose logarithm is w²(m² − 1)/6 − w⁴(m⁴ + 4m² − 2)/180 + ….

    The next term of that series is at most (w·max(1, |m|))⁶/315, and the second formula's rounding about ε/w; they meet at
    w = (315 ε)^{1/7}.
    """
    m, w = torch.broadcast_tensors(center.abs(), half_width)
    is_narrow = w * m.clamp(min=1.0) < (315 * torch.finfo(m.dtype).eps) ** (1 / 7)

    # Each formula is given harmless numbers where it is not used: torch.where multiplies infinite derivatives by 0.
    m_n, w_n = torch.where(is_narrow, m, 0.0).square(), torch.where(is_narrow, w, 1.0)
    series = w_n.square() / 6 * (m_n - 1 - w_n.square() / 30 * (m_n.square() + 4 * m_n - 2))
    narrow = series + torch.log(2 * w_n) - _LOG_ROOT_2_PI - 0.5 * m_n

    w = torch.where(is_narrow, 1.0, w)
    inside = torch.log(0.5 * (torch.erf((w + m) * _ROOT_HALF) + torch.erf((w - m).clamp(min=0.0) * _ROOT_HALF)))

    near = torch.where(m < w, 0.0, m - w)
    scaled_near, scaled_far = (torch.special.erfcx(x * _ROOT_HALF) for x in (near, near + 2 * w))
    log_ratio = torch.log(scaled_far / scaled_near) - 2 * w * (near + w)
    outside = torch.log(0.5 * scaled_near) - 0.5 * near.square() + torch.log(-torch.expm1(log_ratio))

    return torch.where(is_narrow, narrow, torch.where(m < w, inside, outside))


# --- The DDIM family: η = 1 is the DDPM, η = 0 is deterministic ---------------------------------------------------------


def ddim_mean_weights(
    eta: float, log_abar_t: torch.Tensor, log_abar_s: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight of x_0, weight of x_t) in √ᾱ_s x_0 + √(1−ᾱ_s−η²β̃) ε with ε = (x_t − √ᾱ_t x_0)/√(1−ᾱ_t).

    Song et al. 2020 (arXiv:2010.02502), equations 12 and 16. At η = 1 these are [`posterior_mean_weights`].
    """
    if eta == 1:
        return posterior_mean_weights(log_abar_t, log_abar_s)
    direction = torch.sqrt(-torch.expm1(log_abar_s) - eta**2 * posterior_variance(log_abar_t, log_abar_s))
    weight_xt = direction / noise_rate(log_abar_t)
    return signal_rate(log_abar_s) - weight_xt * signal_rate(log_abar_t), weight_xt


def ddim_inversion_weights(log_abar_t: torch.Tensor, log_abar_s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight of x_s, weight of ε) in x_t, the step of η = 0 solved for where it came from.

    √(ᾱ_t/ᾱ_s) and √(1−ᾱ_t) − √(ᾱ_t/ᾱ_s) √(1−ᾱ_s).
    """
    weight_xs = torch.exp(0.5 * (log_abar_t - log_abar_s))
    return weight_xs, noise_rate(log_abar_t) - weight_xs * noise_rate(log_abar_s)


def _unknown(name: str, value: str, allowed: tuple[str, ...]) -> ValueError:
    return ValueError(f"`{name}` is {value!r}; it must be one of {', '.join(map(repr, allowed))}.")
