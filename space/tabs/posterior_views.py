"""What the Reverse tab shows of a posterior: the equations with their numbers, and two plots."""

from math import nan

from both_languages import Both
from page import note
from posterior_facts import PosteriorExample, PosteriorFacts, density_points
from svg_plots import Series, plot
from svg_text import number_text

LEFT, RIGHT = -4.0, 4.0  # of the densities; x_t is at most 3

_POSTERIOR, _PRIOR, _LIKELIHOOD = "q(x_s|x_t, x_0)", "q(x_s|x_0)", "q(x_t|x_s)"
_FACTOR_0 = r"\frac{\sqrt{\bar\alpha_s}\,\beta_{t|s}}{1-\bar\alpha_t}"
_FACTOR_T = r"\frac{\sqrt{\alpha_{t|s}}\,(1-\bar\alpha_s)}{1-\bar\alpha_t}"
_PRECISION = r"\frac{\alpha_{t|s}}{\beta_{t|s}} + \frac{1}{1-\bar\alpha_s}"
_EXPONENTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")

BAYES = note(
    "q(xₛ|x₀) is what x₀ says of xₛ, and q(xₜ|xₛ) what xₜ says of it. Their product, made a density, is the posterior.",
    "q(xₛ|x₀) 是 x₀ 给出的信息，q(xₜ|xₛ) 是 xₜ 给出的信息；两者之积归一化后即为后验分布。",
)
POINT_MASS = note(
    "At s = 0 the variance is 0: x₀ itself is known, and all mass lies there, drawn as a line without a top.",
    "s = 0 时方差为 0：x₀ 已知，全部概率集中在 x₀ 处，画为一条无限高的线。",
)


def mean_equations(example: PosteriorExample) -> str:
    """The mean and the variance as they are written, each factor with its number, as Markdown with LaTeX."""
    facts = example.facts
    w_0, w_t, x_0, x_t = map(_latex, (facts.weight_x0, facts.weight_xt, example.x_0, example.x_t))
    return _aligned(
        rf"\tilde\mu &= {_braced(_FACTOR_0, 'w_0', w_0)}\,x_0 + {_braced(_FACTOR_T, 'w_t', w_t)}\,x_t",
        rf"&= {w_0}\cdot{_factor(x_0)} + {w_t}\cdot{_factor(x_t)}",
        rf"&= \boldsymbol{{{_latex(example.posterior.mean)}}}",
        r"\tilde\beta &= \frac{\beta_{t|s}\,(1-\bar\alpha_s)}{1-\bar\alpha_t}"
        rf" = {_latex(facts.variance)},\quad \tilde\sigma = {_latex(facts.std)}",
        r"\alpha_{t|s} &= \bar\alpha_t/\bar\alpha_s,\quad \beta_{t|s} = 1-\alpha_{t|s}",
    )


def precision_equations(facts: PosteriorFacts) -> str:
    """Where they come from: the square completed, and what the schedule says at t and s, as Markdown with LaTeX."""
    b_0, b_t = _latex(facts.linear_weight_x0), _latex(facts.linear_weight_xt)
    return _aligned(
        rf"A &= {_PRECISION} = {_latex(facts.precision)},\quad \tilde\beta = \frac1A",
        r"B &= \frac{\sqrt{\bar\alpha_s}}{1-\bar\alpha_s}\,x_0 + \frac{\sqrt{\alpha_{t|s}}}{\beta_{t|s}}\,x_t",
        rf"&= {b_0}\,x_0 + {b_t}\,x_t,\quad \tilde\mu = \frac BA",
        *(
            rf"\bar\alpha_{{{time}}} &= {_latex(alpha_bar)},\quad \mathrm{{SNR}}({time}) = {_latex(snr)}"
            for time, alpha_bar, snr in (
                (facts.t, facts.alpha_bar_t, facts.snr_t),
                (facts.s, facts.alpha_bar_s, facts.snr_s),
            )
        ),
    )


def _aligned(*lines: str) -> str:
    return r"$$\begin{aligned}" + r" \\[1.5ex] ".join(lines) + r"\end{aligned}$$"


def _braced(formula: str, name: str, value: str) -> str:
    return rf"\underbrace{{{formula}}}_{{\textstyle {name} = {value}}}"


def _latex(value: float) -> str:
    """`number_text`, in LaTeX."""
    mantissa, _, power = number_text(value).replace("−", "-").replace("∞", r"\infty").partition("·10")
    return rf"{mantissa}\cdot10^{{{power.translate(_EXPONENTS)}}}" if power else mantissa


def _factor(text: str) -> str:
    return f"({text})" if text.startswith("-") else text


def density_plot(example: PosteriorExample) -> str:
    """The posterior between what x_0 says of x_s and what x_t says of it, as HTML."""
    mean, std = example.posterior.mean, example.posterior.stdev
    named = [(_POSTERIOR, example.posterior), (_PRIOR, example.prior), (_LIKELIHOOD, example.likelihood)]
    series = [
        Series(*density_points(distribution, LEFT, RIGHT), name)
        for name, distribution in named
        if distribution is not None and distribution.stdev
    ]
    y_range = None
    if std:
        inside = density_points(example.posterior, max(LEFT, mean - std), min(RIGHT, mean + std))
        series.append(Series(*inside, "μ̃ ± σ̃", "area"))
    else:
        highest = 1.2 * max([0.1, *(value for one in series for value in one.values)])
        y_range = (0.0, highest)
        series.insert(0, Series([LEFT, mean, mean, RIGHT], [nan, 0, 2 * highest, nan], _POSTERIOR))
    marks = [(example.x_0, "x_0"), (example.x_t, "x_t"), (mean, "μ̃")]
    title = Both("The density of x_s", "x_s 的概率密度")
    return plot(title, series, x_label="x_s", y_range=y_range, marks=marks) + (BAYES if std else POINT_MASS)


def weight_plot(facts: PosteriorFacts, curves: tuple[list, list, list]) -> str:
    """The two weights at every t, the distance to s being the same, as HTML; `curves` are those of `weight_curves`."""
    times, weights_x0, weights_xt = curves
    before = list(range(1, times[0]))  # there is no s so far below them
    gaps = [nan] * len(before)
    series = [Series(before + times, gaps + weights_x0, "w_0"), Series(before + times, gaps + weights_xt, "w_t")]
    distance = facts.t - facts.s
    return plot(
        Both(f"The weights at s = t − {distance}", f"s = t − {distance} 时的权重"),
        series,
        x_label="t",
        marker=facts.t,
        y_range=(0.0, 1.0),
    ) + note(
        "The nearer xₛ is to clean data, the more x₀ weighs; a short step far from it leaves xₜ nearly as it is.",
        "xₛ 越接近干净数据，x₀ 的权重越大；远离干净数据时，一小步几乎不改变 xₜ。",
    )
