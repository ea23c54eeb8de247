"""diffusers' fast solvers, with settings that are right for a DDPM's schedule.

This file is copied beside every model that is published: it imports its siblings, torch and diffusers.
"""

import math

import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .ddpm_argument_checks import check_integer
from .ddpm_noise_schedules import spaced_timesteps
from .scheduling_ddpm_hub import LEARNED_VARIANCE_TYPES, DDPMHubScheduler

FAST_SOLVERS = ("dpm++", "sde-dpm++", "unipc")
ADDS_NOISE = "sde-dpm++"  # the one that is not deterministic

# Solvers step in λ = log(√ᾱ/√(1−ᾱ)), which is unbounded where ᾱ_T nears 0 (cosine, zero terminal SNR). There an error δ
# of ε becomes δ/√ᾱ in x̂_0; at λ = −5.1, √ᾱ = 0.006, x_t is noise and the factor is bounded.
SMALLEST_LAMBDA = -5.1


def fast_solver(scheduler: DDPMHubScheduler, name: str = "dpm++") -> SchedulerMixin:
    """A stock solver for a network that was trained with `scheduler`; 10 to 30 steps are its range.

    Stock `from_config` leaves a solver that saturates every pixel for a cosine ε-model: λ is unbounded, and nothing
    clips x̂_0. Here λ is bounded, x̂_0 is clipped as `scheduler` clips it, the last step ends at clean data, and the steps
    are even in λ where λ is bounded by itself.

    Args:
        scheduler (`DDPMHubScheduler`): of any fixed variance, which a solver does not use. A network with a learned variance
            needs its second half of the channels cut off first, and `variance_type` = "fixed_small".
        name (`str`): `dpm++` (DPM-Solver++ 2M, Lu et al. 2022, arXiv:2211.01095), `sde-dpm++` (SDE-DPM-Solver++ 2M, the
            same paper: as many steps of the reverse SDE, each with noise) or `unipc` (Zhao et al. 2023, arXiv:2302.04867).

    Returns:
        `DPMSolverMultistepScheduler` or `UniPCMultistepScheduler`: call its `set_timesteps` and `step` as in diffusers.

    Raises:
        ValueError: for an unknown name, a learned variance, or a clipping range that the stock solver cannot have.
    """
    if name not in FAST_SOLVERS:
        raise ValueError(f"`name` is {name!r}; it must be one of {', '.join(map(repr, FAST_SOLVERS))}.")
    if scheduler.config.variance_type in LEARNED_VARIANCE_TYPES:
        raise ValueError(
            f"`variance_type` is {scheduler.config.variance_type!r}; a solver takes the prediction alone. Cut "
            f"the network's second half of the channels off, and use a scheduler with `variance_type` = 'fixed_small'."
        )
    return solver_of_predictions(scheduler, name)


def solver_of_predictions(scheduler: DDPMHubScheduler, name: str) -> SchedulerMixin:
    """[`fast_solver`] for whoever hands it the prediction alone, also of a network with a learned variance."""
    config = scheduler.config
    if config.clip_sample and not config.thresholding and config.clip_sample_range != 1:
        raise ValueError(
            f"`clip_sample_range` is {config.clip_sample_range}; diffusers' solvers clip at 1 only. Use `clip_sample` = "
            f"False, or this scheduler with `eta` = 0."
        )
    final = scheduler.alphas_cumprod[-1].item()
    unbounded = final == 0 or math.log(final / (1 - final)) / 2 < SMALLEST_LAMBDA
    settings = {
        "final_sigmas_type": "zero",
        "lower_order_final": True,
        "timestep_spacing": "trailing",
        "thresholding": config.thresholding or config.clip_sample,
    }
    if not config.thresholding:
        settings["sample_max_value"] = 1.0  # the threshold is then 1 in every sample: plain clipping
    # The keys that are this package's own are left out: stock classes would log them, all T numbers.
    config = {key: value for key, value in config.items() if key not in ("variance_type", "original_sample_variances")}
    if config["beta_schedule"] == "sigmoid":  # which the solvers do not know
        settings["trained_betas"] = scheduler.betas.tolist()
    if name == "unipc":
        return UniPCMultistepScheduler.from_config(config, **settings)
    algorithm = "sde-dpmsolver++" if name == ADDS_NOISE else "dpmsolver++"
    settings |= {"algorithm_type": algorithm, "solver_order": 2}
    settings |= {"lambda_min_clipped": SMALLEST_LAMBDA} if unbounded else {"use_lu_lambdas": True}
    return DPMSolverMultistepScheduler.from_config(config, **settings)


def set_solver_timesteps(solver: SchedulerMixin, num_inference_steps: int) -> None:
    """Chooses exactly n timesteps of a [`fast_solver`], and makes it ready for a first step.

    The solvers' own "trailing" puts one more at −1 for 62 of the n up to T = 1000, and the last of more than 222 at −1 where
    λ is bounded: there they are given, or cut.

    Raises:
        ValueError: if n is not from 1 to the number of timesteps whose λ is within the bound.
    """
    bounded = getattr(solver.config, "lambda_min_clipped", -math.inf) > -math.inf
    last = int((solver.lambda_t >= solver.config.lambda_min_clipped).sum()) if bounded else len(solver.alphas_cumprod)
    check_integer("num_inference_steps", num_inference_steps, 1, last)
    if bounded:
        solver.set_timesteps(timesteps=spaced_timesteps("trailing", last, num_inference_steps, 0))
    else:
        solver.set_timesteps(num_inference_steps)
        solver.sigmas = torch.cat([solver.sigmas[:num_inference_steps], solver.sigmas[-1:]])
        solver.timesteps = solver.timesteps[:num_inference_steps]
        solver.num_inference_steps = num_inference_steps
