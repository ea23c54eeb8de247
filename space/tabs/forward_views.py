"""What the Forward tab shows, as HTML: x_0 and x_t with the equation and the histogram, and two ways to the same x_t."""

from statistics import NormalDist

import numpy as np
from both_languages import Both
from forward_facts import GREY_LEVEL, Jump, Walk
from pictures import figure, pixels_of
from svg_plots import Series, plot
from svg_text import html_words, number_text

LARGEST_VALUE = 4.0
_BINS = 40
_NORMAL = [(k / 20, NormalDist().pdf(k / 20)) for k in range(int(-20 * LARGEST_VALUE), int(20 * LARGEST_VALUE) + 1)]


def jump_view(jump: Jump) -> str:
    """The image, its noisy self, the values of the latter, and the equation with its numbers."""
    pictures = (
        (jump.original, Both("the image x_0", "图像 x_0")),
        (jump.noisy, Both("with noise: x_t", "加噪后：x_t")),
    )
    figures = "".join(figure(pixels_of(sample)[0], words) for sample, words in pictures)
    shown = f'<div class="jump"><div class="pair">{figures}</div>{_histogram(jump)}</div>'
    return f'{shown}<div class="forward-equation">{_equation(jump)}</div>{_balance(jump)}'


def walk_view(walk: Walk, time: int) -> str:
    """x_t by single steps beside x_t in one jump, and the numbers that say that they are the same."""
    steps = Both(f"{time} steps" if time > 1 else "1 step", f"{time} 步")
    pictures = (
        (walk.stepwise, Both(f"x_t in {steps.en}", f"x_t：走 {steps.zh}")),
        (walk.jumped, Both("x_t in one jump", "x_t：一步跳到")),
    )
    figures = "".join(figure(pixels_of(sample)[0], words) for sample, words in pictures)
    same = (
        Both("✓ The same, up to rounding", "✓ 相同（仅差舍入误差）")
        if walk.is_same
        else Both("They differ", "两者不同")
    )
    numbers = (
        (same, Both("largest difference of a pixel", "像素的最大差异"), number_text(walk.difference, 2)),
        (None, Both("a grey level, for comparison", "作为对比：一个灰度级"), number_text(GREY_LEVEL, 2)),
        (Both("The merged noise is N(0, 1)", "合并后的噪声服从 N(0, 1)"), Both("its mean", "均值"), signed(walk.mean)),
        (None, Both("its variance", "方差"), f"{walk.variance:.3f}"),
        (None, Both("squares of its weights, summed", "权重的平方和"), f"{walk.squared_weights:.6f}"),
    )
    facts = "".join(
        f"{f'<tr><th colspan=2>{html_words(title)}</th></tr>' if title else ''}"
        f"<tr><td>{html_words(name)}</td><td>{value}</td></tr>"
        for title, name, value in numbers
    )
    return f'<div class="walk"><div class="pair">{figures}</div><table class="same">{facts}</table></div>'


def signed(value: float) -> str:
    """A number near 0 to three decimals."""
    return f"{value + 0.0:.3f}".replace("-", "−")


def _histogram(jump: Jump) -> str:
    counts, edges = np.histogram(jump.values, _BINS, (-LARGEST_VALUE, LARGEST_VALUE))
    density = counts / (jump.values.size * (edges[1] - edges[0]))
    return plot(
        Both("Values of x_t, and pure noise", "x_t 的取值与纯噪声"),
        [
            Series(((edges[:-1] + edges[1:]) / 2).tolist(), density.tolist(), "x_t", "bars"),
            Series(*zip(*_NORMAL, strict=True), "N(0, 1)"),
        ],
        x_label=Both("value of a pixel", "像素值"),
        y_range=(0, 1),
    )


def _equation(jump: Jump) -> str:
    """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε, and the same with the numbers at t, as MathML."""
    alpha_bar = "<msub><mover><mi>α</mi><mo>¯</mo></mover><mi>t</mi></msub>"
    x_t, x_0 = (f"<msub><mi>x</mi>{index}</msub>" for index in ("<mi>t</mi>", "<mn>0</mn>"))
    signal = f'<msqrt class="signal">{alpha_bar}</msqrt>'
    noise = f'<msqrt class="noise"><mrow><mn>1</mn><mo>−</mo>{alpha_bar}</mrow></msqrt>'
    a = f'<mn class="signal">{jump.signal_rate:.4f}</mn>'
    b = f'<mn class="noise">{jump.noise_rate:.4f}</mn>'
    rows = (
        (x_t, "=", signal, x_0, "+", noise, "<mi>ε</mi>"),
        ("", "=", a, x_0, "+", b, "<mi>ε</mi>"),
    )
    written = "".join(
        "<mtr>" + "".join(f"<mtd>{f'<mo>{cell}</mo>' if cell in ('=', '+') else cell}</mtd>" for cell in row) + "</mtr>"
        for row in rows
    )
    return f'<math display="inline"><mtable>{written}</mtable></math>'


def _balance(jump: Jump) -> str:
    """How much of the variance is the image's and how much noise, and their ratio."""
    signal, noise = jump.signal_rate**2, jump.noise_rate**2
    decibels = number_text(jump.decibels) if abs(jump.decibels) < 10 else f"{jump.decibels:.1f}".replace("-", "−")
    left, right = f"ᾱ_t = {number_text(signal, 4)}", f"1−ᾱ_t = {noise:.4f}"
    ratio = Both("signal-to-noise ratio", "信噪比")
    words = "".join(f"<span>{html_words(Both(text, text))}</span>" for text in (left, right))
    return (
        f'<div class="balance"><div class="ends">{words}</div>'
        f'<div class="bar" aria-hidden="true"><div style="width:{100 * signal:.2f}%"></div></div>'
        f"<p>{ratio.html} = <b>{number_text(jump.snr)}</b> = <b>{decibels} dB</b></p></div>"
    )
