"""What the Schedule tab shows, as HTML: the verdict, x_T beside pure noise, and the plots."""

import torch
from both_languages import Both
from example_pictures import example
from pictures import figure, pixels_of
from schedule_facts import GOOD, LITTLE, MUCH, ScheduleFacts
from svg_plots import Series, plot
from svg_text import html_words

from ddpm_hub.ddpm_equations import normalize
from ddpm_hub.ddpm_sample_arithmetic import linear_combination

PICTURE = "garment_shirt"
DRAWS = 400
SIGNS = {GOOD: "✓", LITTLE: "!", MUCH: "✕"}


def verdict_box(facts: ScheduleFacts, why: Both | None = None) -> str:
    """Whether x_T is noise, and what to change if it is not: said, signed and coloured."""
    sentences = [facts.reason, facts.remedy, why]
    if facts.level == GOOD and facts.noise_from < facts.num_train_timesteps:
        sentences[1] = Both(
            f"From t = {facts.noise_from} on x_t counts as noise.", f"从 t = {facts.noise_from} 起，x_t 即可视为噪声。"
        )
    return _box(facts.level, SIGNS[facts.level], facts.answer, [one for one in sentences if one])


def refusal_box(message: Both) -> str:
    """Why settings have no schedule."""
    return _box("refused", "?", Both("No such schedule.", "没有这样的方案。"), [message])


def _box(level: str, sign: str, title: Both, sentences: list[Both]) -> str:
    lines = "".join(f"<p>{html_words(sentence)}</p>" for sentence in sentences)
    sign = f'<span class="sign" aria-hidden="true">{sign}</span>'
    return f'<div class="verdict {level}">{sign}<div><p class="answer">{html_words(title)}</p>{lines}</div></div>'


def last_samples(facts: ScheduleFacts) -> str:
    """x_T of a picture beside pure noise: one draw of each, and the mean of many, in which what is left adds up."""
    names = (
        Both("the image x_0", "图像 x_0"),
        Both("x_T of this schedule", "此方案的 x_T"),
        Both("pure noise", "纯噪声"),
        Both(f"mean of {DRAWS} x_T", f"{DRAWS} 个 x_T 的均值"),
        Both(f"mean of {DRAWS} noises", f"{DRAWS} 个噪声的均值"),
    )
    figures = "".join(figure(pixels, words) for pixels, words in zip(pixels_of(samples_of(facts)), names, strict=True))
    return f'<div class="last-samples">{figures}</div>'


def samples_of(facts: ScheduleFacts) -> torch.Tensor:
    """x_0, x_T, noise, and the means of many x_T and of many noises, shape (5, C, H, W)."""
    x_0 = normalize(torch.from_numpy(example(PICTURE).pixels)).permute(2, 0, 1)
    noise = torch.randn(2, DRAWS, *x_0.shape, generator=torch.Generator().manual_seed(0))
    x_T = linear_combination(  # noqa: N806
        facts.signal_rates[-1], x_0.expand_as(noise[0]), facts.noise_rates[-1], noise[0]
    )
    return torch.stack([x_0, x_T[0], noise[1, 0], x_T.mean(0), noise[1].mean(0)])


def schedule_plots(facts: ScheduleFacts) -> str:
    """β_t; what is left of the image; the signal-to-noise ratio; the two variances."""
    t = range(1, facts.num_train_timesteps + 1)
    x_label = Both("step t", "步 t")
    marks = [(facts.noise_from, Both("noise", "噪声"))] if facts.noise_from else []
    balance = next((time for time, ratio in zip(t, facts.snrs, strict=True) if ratio < 1), None)
    equal = [(balance, "SNR = 1")] if balance else []
    plots = [
        plot(
            Both("Noise that a step adds: β_t", "每一步加入的噪声：β_t"),
            [Series(t, facts.betas, "β_t")],
            x_label=x_label,
        ),
        plot(
            Both("What is left of the image", "图像还剩多少"),
            [
                Series(t, facts.alpha_bars, "ᾱ_t"),
                Series(t, facts.signal_rates, "√ᾱ_t"),
                Series(t, facts.noise_rates, "√(1−ᾱ_t)"),
            ],
            x_label=x_label,
            y_range=(0, 1),
        ),
        plot(
            Both("Signal-to-noise ratio ᾱ_t/(1−ᾱ_t)", "信噪比 ᾱ_t/(1−ᾱ_t)"),
            [Series(t, facts.snrs, "SNR")],
            x_label=x_label,
            log=True,
            marks=equal + marks,
        ),
        plot(
            Both("Variance: forward β_t, back β̃_t", "方差：前向 β_t，逆向 β̃_t"),
            [Series(t, facts.betas, "β_t"), Series(t, facts.posterior_variances, "β̃_t")],
            x_label=x_label,
            log=True,
        ),
    ]
    return f'<div class="plots">{"".join(plots)}</div>'
