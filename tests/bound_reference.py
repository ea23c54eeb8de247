"""A second implementation of the variational bound's terms, in numpy and from β alone."""

import numpy as np
import scipy.stats


def reference(scheduler, x_0, x_t, timestep: int, output, bits: int) -> float:
    """One image's term, in nats per dimension, from β alone: means, variances and the textbook divergence, in numpy."""
    betas = np.array(scheduler.betas.tolist())
    alpha_bars = np.concatenate([[1.0], np.cumprod(1 - betas)])
    x_0, x_t, output, t = x_0.numpy(), x_t.numpy(), output.numpy(), timestep + 1
    output, said = output[: len(x_0)], output[len(x_0) :]
    abar, before, beta = alpha_bars[t], alpha_bars[t - 1], betas[t - 1]
    estimate = {
        "epsilon": lambda: (x_t - np.sqrt(1 - abar) * output) / np.sqrt(abar),
        "sample": lambda: output,
        "v_prediction": lambda: np.sqrt(abar) * x_t - np.sqrt(1 - abar) * output,
    }[scheduler.config.prediction_type]()

    def posterior_mean(original):
        first = np.sqrt(before) * beta / (1 - abar) * original
        return first + np.sqrt(1 - beta) * (1 - before) / (1 - abar) * x_t

    later = max(t, 2)  # β̃_1 = 0 is replaced by β̃_2
    small = betas[later - 1] * (1 - alpha_bars[later - 1]) / (1 - alpha_bars[later])
    kind = scheduler.config.variance_type
    if kind == "fixed_small" or (kind == "fixed_large" and t == 1):
        variance = small
    elif kind == "fixed_large":
        variance = beta
    elif kind == "analytic":
        true_small = beta * (1 - before) / (1 - abar)
        weight = np.sqrt(before) * beta / (1 - abar)
        variance = true_small + weight**2 * scheduler.config.original_sample_variances[timestep]
    elif kind == "learned_range":
        share = (said + 1) / 2
        variance = np.exp(share * np.log(beta) + (1 - share) * np.log(small))
    else:
        variance = np.exp(said)
    if t > 1:
        kl = np.log(variance / small) + (small + (posterior_mean(x_0) - posterior_mean(estimate)) ** 2) / variance - 1
        return float(np.mean(kl / 2))
    std, half = np.sqrt(variance), 1 / (2**bits - 1)
    upper = np.where(x_0 > 1 - half, np.inf, (x_0 + half - estimate) / std)
    lower = np.where(x_0 < -1 + half, -np.inf, (x_0 - half - estimate) / std)
    # In the tail where nothing cancels
    flip = lower + upper > 0
    lower, upper = np.where(flip, -upper, lower), np.where(flip, -lower, upper)
    near, far = scipy.stats.norm.logcdf(upper), scipy.stats.norm.logcdf(lower)
    return float(np.mean(-near - np.log1p(-np.exp(far - near))))


def prior(scheduler, x_0) -> float:
    """KL(q(x_T | x_0) ‖ N(0, I)) of one image, in nats per dimension."""
    final = np.prod(1 - np.array(scheduler.betas.tolist()))
    return float(np.mean(final * x_0.numpy() ** 2 + (1 - final) - 1 - np.log(1 - final)) / 2)
