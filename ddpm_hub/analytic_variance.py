"""Estimates what the analytic variance needs: how much x_0 still varies once x_t is known, for every timestep."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from .ddpm_argument_checks import check_integer

if TYPE_CHECKING:
    from .scheduling_ddpm_hub import DDPMHubScheduler


@torch.no_grad()
def estimate_original_sample_variances(
    scheduler: "DDPMHubScheduler",
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    samples: torch.Tensor,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
    show_progress: bool = True,
) -> list[float]:
    """V_t = E‖x_0 − x̂_0(x_t, t)‖²/d for every timestep: the input of `variance_type = "analytic"`.

    Bao et al. 2022 (arXiv:2201.06503, theorem 1) write the optimal variance with Γ_t = E‖∇ log q_t(x_t)‖²/d, the mean
    squared norm of the score. Since a conditional mean is orthogonal to its error, (1−ᾱ_t) Γ_t = 1 − E‖ε − ε̂‖²/d, and
    V_t = (1−ᾱ_t)/ᾱ_t · E‖ε − ε̂‖²/d is the same quantity. It is measured in this form since 1 − (1−ᾱ_t) Γ_t is a difference
    of nearly equal numbers at large t, where few-step sampling needs it most; here the relative sampling error is
    √(2/(n·d)) at every t, n = `batch_size`. For a network that errs, V_t includes its error, and is then the variance
    that is optimal for its mean (Bao et al. 2022b, arXiv:2206.07309).

    Store the result in the scheduler's configuration, with which it is saved:

        variances = estimate_original_sample_variances(scheduler, predict, images)
        scheduler = DDPMHubScheduler.from_config(
            scheduler.config, variance_type="analytic", original_sample_variances=variances
        )

    Args:
        scheduler (`DDPMHubScheduler`): the schedule, the prediction type and the clipping of x̂_0; not changed.
        predict (`Callable`): the network: from x_t, shape (n, …), and timesteps, shape (n,), to its prediction, like x_t.
        samples (`torch.Tensor`, floating point, shape (N, …)): data in [−1, 1]; each timestep takes the next n of them.
        batch_size (`int`): n, the samples for each timestep.
        generator (`torch.Generator`, *optional*): the source of the noise, on the device of `samples`.
        show_progress (`bool`): a progress bar over the T network calls.

    Returns:
        `list[float]`: V_1…V_T, none above the variance of the data by more than the sampling error.

    Raises:
        ValueError: if there are no samples, or `batch_size` is below 1.
    """
    from diffusers.utils.torch_utils import randn_tensor
    from tqdm.auto import tqdm

    if len(samples) == 0 or not samples.is_floating_point():
        raise ValueError(
            f"`samples` has shape {tuple(samples.shape)} and dtype {samples.dtype}; floating-point data is needed."
        )
    if not bool(samples.isfinite().all()):
        raise ValueError("`samples` holds NaN or infinity; data in [−1, 1] is needed.")
    check_integer("batch_size", batch_size, 1, math.inf)
    rows = torch.arange(batch_size, device=samples.device)
    variances = []
    for timestep in tqdm(range(len(scheduler)), desc="analytic variance", disable=not show_progress):
        x_0 = samples[(rows + timestep * batch_size) % len(samples)]
        timesteps = torch.full((batch_size,), timestep, device=samples.device)
        noise = randn_tensor(x_0.shape, generator=generator, device=x_0.device, dtype=x_0.dtype)
        x_t = scheduler.add_noise(x_0, noise, timesteps)
        estimate = scheduler.predict_original_sample(predict(x_t, timesteps), x_t, timesteps)
        variances.append((x_0 - estimate).double().square().mean())
    return torch.stack(variances).tolist()
