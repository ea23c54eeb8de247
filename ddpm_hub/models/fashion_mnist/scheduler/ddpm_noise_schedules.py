"""Noise schedules: β_1…β_T, what they come to, which timesteps are visited, and how to choose β and T.

[Ho] is Ho, Jain, Abbeel 2020, arXiv:2006.11239. Everything is float64. This file imports torch and its sibling
only: it is copied beside every model that is published.
"""

import math
from fractions import Fraction

import torch

from .ddpm_argument_checks import SMALLEST_DIVISOR, check_bounds, check_choice, check_integer

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")

# Above this ᾱ_T more than √ᾱ_T = 3 % of the data is left in x_T, which N(0, I), where sampling starts, does not have.
LARGEST_FINAL_ALPHA_BAR = 1e-3

# T of a schedule, a thousand times the paper's: its tables, a hundred bytes a step, are still no burden.
LARGEST_NUM_TRAIN_TIMESTEPS = 2**20


def check_schedule(beta_schedule: str, num_train_timesteps: int, beta_start: float, beta_end: float) -> None:
    """Refuses what [`make_betas`] has no schedule for, naming the argument, its value and what is allowed."""
    check_choice("beta_schedule", beta_schedule, BETA_SCHEDULES)
    check_integer("num_train_timesteps", num_train_timesteps, 1, LARGEST_NUM_TRAIN_TIMESTEPS)
    if beta_schedule != "squaredcos_cap_v2":
        check_bounds("beta_start", beta_start, SMALLEST_DIVISOR, 1)
        check_bounds("beta_end", beta_end, SMALLEST_DIVISOR, 1)
        if beta_end < beta_start:
            raise ValueError(f"`beta_end` is {beta_end}, below `beta_start` = {beta_start}; β must not fall with t.")


def make_betas(
    beta_schedule: str, num_train_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02
) -> torch.Tensor:
    """The variances β_1…β_T of the forward steps.

    - `linear`: equally spaced from β_1 = `beta_start` to β_T = `beta_end` ([Ho] section 4).
    - `scaled_linear`: √β equally spaced (the "quad" schedule of the paper's code).
    - `squaredcos_cap_v2`: ᾱ(u) = cos²((u + 0.008)/1.008 · π/2) with u = t/T, and β_t = min(1 − ᾱ_t/ᾱ_{t−1}, 0.999)
      (Nichol & Dhariwal 2021, arXiv:2102.09672, equation 17); it has no use for `beta_start` and `beta_end`.
    - `sigmoid`: β = `beta_start` + (`beta_end` − `beta_start`)/(1 + e^{−u}), u equally spaced from −6 to 6 (Xu et al. 2022,
      GeoDiff, arXiv:2203.02923).

    Returns:
        `torch.Tensor` of `float64`, shape (T,): entry i is β_{i+1}.
    """
    if beta_schedule == "linear":
        return torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)
    if beta_schedule == "scaled_linear":
        return (
            torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64)
            .square()
            .clamp(max=beta_end)
        )
    if beta_schedule == "squaredcos_cap_v2":
        # 1 − cos²(b)/cos²(a) = sin(b − a)·sin(b + a)/cos²(a): no difference of nearly equal numbers.
        angle = [(t / num_train_timesteps + 0.008) / 1.008 * math.pi / 2 for t in range(num_train_timesteps + 1)]
        width = math.sin(math.pi / 2 / 1.008 / num_train_timesteps)
        betas = [
            width * math.sin(angle[t - 1] + angle[t]) / math.cos(angle[t - 1]) ** 2
            for t in range(1, num_train_timesteps + 1)
        ]
        return torch.tensor(betas, dtype=torch.float64).clamp(max=0.999)
    if beta_schedule == "sigmoid":
        u = torch.linspace(-6, 6, num_train_timesteps, dtype=torch.float64)
        return beta_start + (beta_end - beta_start) * torch.sigmoid(u)
    raise ValueError(f"`beta_schedule` is {beta_schedule!r}; it must be one of {', '.join(map(repr, BETA_SCHEDULES))}.")


def log_alphas_cumprod(betas: torch.Tensor) -> torch.Tensor:
    """log ᾱ_t = Σ_{s=1}^{t} log(1 − β_s), with log ᾱ_0 = 0 in front.

    Args:
        betas (`torch.Tensor` of `float64`, shape (T,)): β_1…β_T.

    Returns:
        `torch.Tensor` of `float64`, shape (T + 1,): entry t is log ᾱ_t.
    """
    return torch.cat([betas.new_zeros(1), torch.log1p(-betas).cumsum(0)])


def rescale_zero_terminal_snr(log_alpha_bars: torch.Tensor) -> torch.Tensor:
    """Shifts and scales √ᾱ so that √ᾱ_T = 0 and √ᾱ_1 stays (Lin et al. 2023, arXiv:2305.08891, algorithm 1).

    Args:
        log_alpha_bars (`torch.Tensor` of `float64`, shape (T + 1,)): as [`log_alphas_cumprod`] returns them, T ≥ 2.

    Returns:
        `torch.Tensor`: the same for the new schedule; its last entry is −∞.
    """
    first, last, inner = log_alpha_bars[1], log_alpha_bars[-1], log_alpha_bars[1:]
    span = -torch.expm1((last - first) / 2)  # (√ᾱ_1 − √ᾱ_T)/√ᾱ_1
    # log √ᾱ' is taken from the end that is nearer, so that no difference of nearly equal numbers is left.
    lost = -torch.expm1((inner - first) / 2) / span
    kept = torch.exp((last - first) / 2) * torch.expm1((inner - last) / 2) / span
    log_root = first / 2 + torch.where(lost < 0.5, torch.log1p(-lost.clamp(max=0.5)), torch.log(kept))
    return torch.cat([log_alpha_bars[:1], 2 * log_root])


# --- The notes' advice: ᾱ_T ≈ 0 must come out of β and T ----------------------------------------------------------------


def beta_range_for(
    num_train_timesteps: int, beta_schedule: str = "linear", final_alpha_bar: float = 4e-5
) -> tuple[float, float]:
    """Given T, the range of β, in the paper's proportion of 1 to 200, that brings ᾱ_T down to `final_alpha_bar`.

    Args:
        num_train_timesteps (`int`): T, at least 2.
        beta_schedule (`str`): `linear`, `scaled_linear` or `sigmoid`.
        final_alpha_bar (`float`): ᾱ_T; 4e-5 is the paper's (1e-4 to 0.02 at T = 1000).

    Returns:
        `tuple[float, float]`: `beta_start` and `beta_end`.

    Raises:
        ValueError: for an argument outside its range, or if no β_T below 1 is large enough.
    """
    check_integer("num_train_timesteps", num_train_timesteps, 1, LARGEST_NUM_TRAIN_TIMESTEPS)
    _check_advice(beta_schedule, final_alpha_bar)

    def log_final(beta_end: float) -> float:
        return log_alphas_cumprod(make_betas(beta_schedule, num_train_timesteps, beta_end / 200, beta_end))[-1].item()

    low, high = 0.0, 1 - 1e-9
    if num_train_timesteps < 2 or log_final(high) > math.log(final_alpha_bar):
        raise ValueError(
            f"`num_train_timesteps` is {num_train_timesteps}: with so few steps no β below 1 brings ᾱ_T to "
            f"{final_alpha_bar:g} under the schedule {beta_schedule!r}; take more steps or give `trained_betas`."
        )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if log_final(middle) <= math.log(final_alpha_bar) else (middle, high)
    return high / 200, high


def num_train_timesteps_for(
    beta_start: float,
    beta_end: float,
    beta_schedule: str = "linear",
    final_alpha_bar: float = LARGEST_FINAL_ALPHA_BAR,
) -> int:
    """Given the range of β, the smallest T with ᾱ_T ≤ `final_alpha_bar`.

    Args:
        beta_start, beta_end (`float`): β_1 and β_T, between 0 and 1.
        beta_schedule (`str`): `linear`, `scaled_linear` or `sigmoid`.
        final_alpha_bar (`float`): the ᾱ_T that is small enough.

    Raises:
        ValueError: for an argument outside its range, or if no T up to 2²⁰ is enough.
    """
    check_schedule(beta_schedule, 1, beta_start, beta_end)
    _check_advice(beta_schedule, final_alpha_bar)

    def enough(num_train: int) -> bool:
        log_final = log_alphas_cumprod(make_betas(beta_schedule, num_train, beta_start, beta_end))[-1]
        return log_final.item() <= math.log(final_alpha_bar)

    low, high = 0, 1
    while not enough(high):
        if high == LARGEST_NUM_TRAIN_TIMESTEPS:
            raise ValueError(
                f"`beta_start` is {beta_start} and `beta_end` {beta_end}: even T = {high} leaves ᾱ_T above "
                f"{final_alpha_bar:g} under the schedule {beta_schedule!r}; take larger β."
            )
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _check_advice(beta_schedule: str, final_alpha_bar: float) -> None:
    check_choice("beta_schedule", beta_schedule, tuple(s for s in BETA_SCHEDULES if s != "squaredcos_cap_v2"))
    check_bounds("final_alpha_bar", final_alpha_bar, 0, 1)


# --- Which timesteps are visited ----------------------------------------------------------------------------------------


def spaced_timesteps(spacing: str, num_train_timesteps: int, num_inference_steps: int, steps_offset: int) -> list[int]:
    """n of the timesteps 0…T−1, falling, in exact rational arithmetic rounded half to even.

    The spacings are those of Lin et al. 2023 (arXiv:2305.08891), table 2; 1 ≤ n ≤ T. A single step of `linspace` is taken
    at T−1, where x is noise.
    """
    num_train, num_steps = num_train_timesteps, num_inference_steps
    if spacing == "trailing":
        return [round(Fraction(num_train * k, num_steps)) - 1 for k in range(num_steps, 0, -1)]
    if spacing == "linspace":
        if num_steps == 1:
            return [num_train - 1]
        return [round(Fraction((num_train - 1) * k, num_steps - 1)) for k in range(num_steps - 1, -1, -1)]
    if spacing != "leading":
        raise ValueError(
            f"`timestep_spacing` is {spacing!r}; it must be one of {', '.join(map(repr, TIMESTEP_SPACINGS))}."
        )
    stride = num_train // num_steps
    timesteps = [k * stride + steps_offset for k in range(num_steps - 1, -1, -1)]
    if not 0 <= timesteps[-1] <= timesteps[0] < num_train:
        raise ValueError(
            f"`steps_offset` is {steps_offset}; with {num_steps} steps it puts the schedule at "
            f"{timesteps[0]}…{timesteps[-1]}, outside 0…{num_train - 1}."
        )
    return timesteps
