"""What a noise schedule comes to: its tables, whether x_T is noise, and what to change if it is not.

Every number is computed by the package. Time is the paper's: t = 1…T.
"""

import math
import re
from dataclasses import dataclass

from both_languages import Both
from request_checks import InvalidRequestError, choice, number, whole_number
from svg_text import number_text

from ddpm_hub.ddpm_equations import noise_rate, posterior_variance, reverse_variance, signal_rate, snr
from ddpm_hub.ddpm_noise_schedules import (
    BETA_SCHEDULES,
    LARGEST_FINAL_ALPHA_BAR,
    beta_range_for,
    log_alphas_cumprod,
    make_betas,
    num_train_timesteps_for,
    rescale_zero_terminal_snr,
)
from ddpm_hub.scheduling_ddpm_hub import LARGEST_START_ALPHA_BAR

SMALLEST_STEPS, LARGEST_STEPS = 2, 4000
SMALLEST_BETA, LARGEST_BETA = 1e-7, 0.999
# Of a remedy: a count beyond it helps nobody, and is not looked for.
_LARGEST_REMEDY = 20_000
_VALUES = 11

COSINE = "squaredcos_cap_v2"
TITLES = {
    "linear": Both("linear", "线性"),
    "scaled_linear": Both("scaled linear (√β is linear)", "缩放线性（√β 为线性）"),
    COSINE: Both("cosine", "余弦"),
    "sigmoid": Both("sigmoid", "S 形（sigmoid）"),
}

GOOD, LITTLE, MUCH = "good", "little", "much"


@dataclass(frozen=True)
class Preset:
    """A schedule worth seeing: the arguments of [`schedule_facts`] and, in one sentence, why."""

    name: Both
    why: Both
    beta_schedule: str
    num_train_timesteps: int
    beta_start: float = 1e-4
    beta_end: float = 0.02


PRESETS = {
    "paper": Preset(
        Both("The paper", "论文"),
        Both(
            "Ho, Jain and Abbeel (2020): β rises from 0.0001 to 0.02 in 1000 steps.",
            "Ho、Jain、Abbeel（2020）：β 在 1000 步内从 0.0001 升到 0.02。",
        ),
        "linear",
        1000,
    ),
    "longer": Preset(
        Both("T = 2000", "T = 2000"),
        Both(
            "The paper's β in twice the steps: nothing of the image is left, but the last steps only add noise to noise.",
            "论文的 β，步数加倍：图像荡然无存，但后面的步只是在噪声上再加噪声。",
        ),
        "linear",
        2000,
    ),
    "cosine": Preset(
        Both("Cosine", "余弦"),
        Both(
            "Nichol and Dhariwal (2021): the image fades evenly, and β needs no range.",
            "Nichol 与 Dhariwal（2021）：图像均匀淡出，且无需给定 β 的范围。",
        ),
        COSINE,
        1000,
    ),
    "sigmoid": Preset(
        Both("Sigmoid", "S 形"),
        Both(
            "Xu et al. (2022): β rises slowly at both ends and fast in the middle.",
            "Xu 等（2022）：β 两端变化慢，中间变化快。",
        ),
        "sigmoid",
        1000,
    ),
    "scaled": Preset(
        Both("Scaled linear", "缩放线性"),
        Both(
            "Stable Diffusion's range, 0.00085 to 0.012: a little of the image is left in x_T (Lin et al. 2023).",
            "Stable Diffusion 的范围 0.00085 到 0.012：x_T 中仍残留少许图像（Lin 等，2023）。",
        ),
        "scaled_linear",
        1000,
        0.00085,
        0.012,
    ),
    "slip": Preset(
        Both("Slip: β to 0.002", "笔误：β 到 0.002"),
        Both(
            "The notes write 0.002 in place of 0.02: β is ten times too small, and x_T still shows the image.",
            "笔记把 0.02 写成了 0.002：β 小了十倍，x_T 里仍看得见图像。",
        ),
        "linear",
        1000,
        1e-4,
        0.002,
    ),
    "longer-slip": Preset(
        Both("Slip, T = 2000", "笔误，T = 2000"),
        Both(
            "Twice the steps do not make up for a β that is ten times too small.",
            "β 小了十倍，步数加倍也弥补不了。",
        ),
        "linear",
        2000,
        1e-4,
        0.002,
    ),
    "shortened": Preset(
        Both("T cut to 200", "T 减到 200"),
        Both(
            "A common mistake: T made smaller to save time, and β left as it was.",
            "常见错误：为了省时减小 T，却没有改 β。",
        ),
        "linear",
        200,
    ),
}


@dataclass(frozen=True)
class ScheduleFacts:
    """The tables of a schedule, entry i at t = i + 1, and the verdict.

    Attributes:
        beta_schedule (`str`), num_train_timesteps (`int`): what was asked for; the latter is T.
        rescaled (`bool`): ᾱ_T was made 0.
        betas, alpha_bars, signal_rates, noise_rates, snrs, posterior_variances (`list[float]`): β_t, ᾱ_t, √ᾱ_t, √(1−ᾱ_t),
            ᾱ_t/(1−ᾱ_t) and β̃_t.
        level (`str`): `good`, if the package takes x_T for noise; `little`, if ᾱ_T is above its bound but not above the one
            at which it refuses to start sampling; else `much`.
        noise_from (`int` or `None`): the first t at which x_t counts as noise.
        enough_steps (`int` or `None`): the T that these β need, where the schedule is not good and there is one to speak of.
        enough_betas (`tuple[float, float]` or `None`): the β that this T needs, likewise.
    """

    beta_schedule: str
    num_train_timesteps: int
    rescaled: bool
    betas: list[float]
    alpha_bars: list[float]
    signal_rates: list[float]
    noise_rates: list[float]
    snrs: list[float]
    posterior_variances: list[float]
    level: str
    noise_from: int | None
    enough_steps: int | None
    enough_betas: tuple[float, float] | None

    @property
    def signal_left(self) -> float:
        """√ᾱ_T, the part of the image's amplitude that is left in x_T."""
        return self.signal_rates[-1]

    @property
    def answer(self) -> Both:
        """Whether x_T is noise."""
        return {
            GOOD: Both("x_T is noise.", "x_T 是噪声。"),
            LITTLE: Both("x_T is not quite noise.", "x_T 还不完全是噪声。"),
            MUCH: Both("x_T is not noise.", "x_T 不是噪声。"),
        }[self.level]

    @property
    def reason(self) -> Both:
        """How much of the image is left in x_T, in one sentence."""
        left, alpha_bar = percent(self.signal_left), number_text(self.alpha_bars[-1])
        return Both(
            f"{left} of the image's amplitude is left in it (√ᾱ_T; ᾱ_T = {alpha_bar}).",
            f"其中残留图像幅度的 {left}（即 √ᾱ_T；ᾱ_T = {alpha_bar}）。",
        )

    @property
    def verdict(self) -> Both:
        """The answer and its reason."""
        return Both(f"{self.answer.en} {self.reason.en}", f"{self.answer.zh}{self.reason.zh}")

    @property
    def remedy(self) -> Both | None:
        """What to change, in one sentence; `None` where nothing need be."""
        if self.level == GOOD:
            return None
        ways = []
        if self.enough_steps is not None:
            ways.append(Both(f"keep β and take T = {self.enough_steps}", f"保持 β，取 T = {self.enough_steps}"))
        if self.enough_betas is not None:
            start, end = (shown_beta(beta) for beta in self.enough_betas)
            kept = f"T = {self.num_train_timesteps}"
            ways.append(Both(f"keep {kept} and take β from {start} to {end}", f"保持 {kept}，取 β 从 {start} 到 {end}"))
        if not ways:
            return Both("Take more steps and larger β.", "请增大步数和 β。")
        en, zh = " or ".join(way.en for way in ways), "；或".join(way.zh for way in ways)
        return Both(f"{en[0].upper()}{en[1:]}.", f"{zh}。")

    def as_dict(self) -> dict:
        """The facts for the API, in JSON's types; `values` are those at about eleven t from 1 to T."""
        num_steps = self.num_train_timesteps
        times = sorted({round(1 + k * (num_steps - 1) / (_VALUES - 1)) for k in range(_VALUES)})
        columns = {
            "beta": self.betas,
            "alpha_bar": self.alpha_bars,
            "sqrt_alpha_bar": self.signal_rates,
            "sqrt_one_minus_alpha_bar": self.noise_rates,
            "snr": self.snrs,
            "posterior_variance": self.posterior_variances,
        }
        return {
            "beta_schedule": self.beta_schedule,
            "num_train_timesteps": num_steps,
            "beta_start": self.betas[0],
            "beta_end": self.betas[-1],
            "rescale_zero_snr": self.rescaled,
            "alpha_bar_T": self.alpha_bars[-1],
            "signal_left": self.signal_left,
            "x_T_is_noise": self.level == GOOD,
            "verdict": self.verdict.en,
            "remedy": self.remedy.en if self.remedy else None,
            "enough_steps": self.enough_steps,
            "enough_betas": list(self.enough_betas) if self.enough_betas else None,
            "values": [{"t": t} | {name: values[t - 1] for name, values in columns.items()} for t in times],
        }


def schedule_facts(
    beta_schedule: object,
    num_train_timesteps: object,
    beta_start: object = 1e-4,
    beta_end: object = 0.02,
    rescale_zero_snr: object = False,
) -> ScheduleFacts:
    """The facts of a schedule.

    Args:
        beta_schedule (`str`): one of the package's `BETA_SCHEDULES`.
        num_train_timesteps (`int`): T, 2 to 4000.
        beta_start, beta_end (`float`): β_1 ≤ β_T, 1e-7 to 0.999; the cosine schedule does not look at them.
        rescale_zero_snr (`bool`): make ᾱ_T = 0.

    Raises:
        InvalidRequestError: for a value of another type or outside its range.
    """
    kind = choice(Both("The schedule", "方案"), beta_schedule, BETA_SCHEDULES)
    num_steps = whole_number(Both("T", "T"), num_train_timesteps, SMALLEST_STEPS, LARGEST_STEPS)
    start, end = (1e-4, 0.02) if kind == COSINE else _checked_betas(beta_start, beta_end)
    if not isinstance(rescale_zero_snr, bool):
        raise InvalidRequestError("Rescaling must be true or false.", "“重标度”必须为 true 或 false。")

    betas = make_betas(kind, num_steps, start, end)
    logs = log_alphas_cumprod(betas)
    if rescale_zero_snr:
        logs = rescale_zero_terminal_snr(logs)
        betas = reverse_variance("fixed_large", logs[1:], logs[:-1])
    now, before = logs[1:], logs[:-1]
    alpha_bars = now.exp().tolist()
    level = GOOD if alpha_bars[-1] <= LARGEST_FINAL_ALPHA_BAR else LITTLE
    level = MUCH if alpha_bars[-1] > LARGEST_START_ALPHA_BAR else level
    bad = level != GOOD
    return ScheduleFacts(
        beta_schedule=kind,
        num_train_timesteps=num_steps,
        rescaled=rescale_zero_snr,
        betas=betas.tolist(),
        alpha_bars=alpha_bars,
        signal_rates=signal_rate(now).tolist(),
        noise_rates=noise_rate(now).tolist(),
        snrs=snr(now).tolist(),
        posterior_variances=posterior_variance(now, before).abs().tolist(),  # at t = 1 it is −0
        level=level,
        noise_from=next((t for t, left in enumerate(alpha_bars, 1) if left <= LARGEST_FINAL_ALPHA_BAR), None),
        enough_steps=_enough_steps(kind, num_steps, start, end, now[-1].item()) if bad else None,
        enough_betas=_enough_betas(kind, num_steps) if bad else None,
    )


def _checked_betas(beta_start: object, beta_end: object) -> tuple[float, float]:
    start = number(Both("β_1", "β_1"), beta_start, SMALLEST_BETA, LARGEST_BETA)
    end = number(Both("β_T", "β_T"), beta_end, SMALLEST_BETA, LARGEST_BETA)
    if end < start:
        raise InvalidRequestError(
            f"β_T = {end:g} is below β_1 = {start:g}; β must not fall with t.",
            f"β_T = {end:g} 小于 β_1 = {start:g}；β 不能随 t 减小。",
        )
    return start, end


def _enough_steps(kind: str, num_steps: int, start: float, end: float, log_final: float) -> int | None:
    # log ᾱ_T is nearly proportional to T, so a count beyond all use is known without being looked for.
    if kind == COSINE or num_steps * math.log(LARGEST_FINAL_ALPHA_BAR) / log_final > _LARGEST_REMEDY:
        return None
    return num_train_timesteps_for(start, end, kind)


def _enough_betas(kind: str, num_steps: int) -> tuple[float, float] | None:
    """The range for this T, to three digits; the package aims far below its bound, so rounding does no harm."""
    if kind == COSINE:
        return None
    try:
        start, end = (float(f"{beta:.3g}") for beta in beta_range_for(num_steps, kind))
    except ValueError:  # with so few steps no β below 1 is large enough
        return None
    return (start, end) if end <= LARGEST_BETA else None


def percent(part: float) -> str:
    """A part of the whole for readers: `59.2 %`, `0.64 %`; `0 %` where it is 0, and `< 0.01 %` where it is nearly."""
    if 0 < part < 1e-4:
        return "< 0.01 %"
    return f"{number_text(100 * part, 3 if part >= 0.01 else 2)} %"


def shown_beta(beta: float) -> str:
    """A β as one types it: `0.0001`, `3e-5`."""
    return re.sub("e-0", "e-", f"{beta:.3g}")
