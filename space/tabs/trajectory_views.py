"""What the Reverse tab shows of a sample's way: a film strip, and one step with its numbers."""

import numpy as np
import served_models
from both_languages import Both
from drawing import SAMPLERS
from page import note
from pictures import as_image, png_address
from posterior_facts import posterior_facts, reverse_std
from svg_text import number_text
from trajectories import Moment, Trajectory

COLUMNS = 9  # of a film strip, before the result

_X_T, _X_S, _ORIGINAL = "x<sub>t</sub>", "x<sub>s</sub>", "x̂<sub>0</sub>"


def film_strip(trajectory: Trajectory) -> str:
    """x_t over x̂_0 of some of the moments, from noise to the result, which is larger, as HTML."""
    moments = trajectory.moments
    chosen = [moments[round(i)] for i in np.linspace(0, len(moments) - 1, min(COLUMNS, len(moments)))]
    cells = [f'<div><i class="symbol">{name}</i></div>' for name in (_X_T, _ORIGINAL, "t")]
    for moment in chosen:
        cells += [
            _image(moment.sample, f"x_t, t = {moment.t}"),
            _image(moment.original, f"x̂_0, t = {moment.t}"),
            f"<span>{moment.t}</span>",
        ]
    cells += [_image(chosen[-1].following, "x_0"), "<span>0</span>"]
    label = 'role="group" aria-label="x_t, x̂_0" tabindex="0"'
    return f'<div class="film" {label} style="--columns: {len(chosen)}">{"".join(cells)}</div>'


def moment_view(trajectory: Trajectory, number: int) -> str:
    """A kept moment, counted from 1: its pictures, as the equation that leads to x_s where that is known, as HTML."""
    moment = trajectory.moments[number - 1]
    title = Both(
        f"Step {moment.step} of {trajectory.num_steps}: from t = {moment.t} to s = {moment.s}",
        f"第 {moment.step} 步（共 {trajectory.num_steps} 步）：从 t = {moment.t} 到 s = {moment.s}",
    )
    if trajectory.draws_from_posterior:
        terms, remark = _equation(trajectory, moment), ""
    else:
        terms = [
            _term(f'<i class="symbol">{_X_T}</i>', _image(moment.sample, f"x_t, t = {moment.t}")),
            _term(f'<i class="symbol">{_ORIGINAL}</i>', _image(moment.original, f"x̂_0, t = {moment.t}")),
        ]
        sampler = SAMPLERS[trajectory.drawing.options["sampler"]]
        remark = note(
            f"{sampler} does not draw from the posterior: it combines x̂₀, xₜ and what noise it adds, if any, in another way.",
            f"{sampler} 不从后验分布中采样，而是以另一种方式组合 x̂₀、xₜ 以及所加的噪声（若有）。",
        )
    return f'<p class="moment-title">{title.html}</p><div class="moment">{"".join(terms)}</div>{remark}'


def _equation(trajectory: Trajectory, moment: Moment) -> list[str]:
    """x_s = w_0 x̂_0 + w_t x_t + σ z, each with its picture."""
    scheduler = served_models.load(trajectory.drawing.model).scheduler
    facts = posterior_facts(scheduler, moment.t, moment.s)
    std = reverse_std(scheduler, moment.t, moment.s)
    if moment.s == 0:
        noise = Both("the last step adds no noise", "最后一步不加噪声")
    elif std is None:
        noise = Both("fresh noise; the network says σ pixel by pixel", "新的噪声；σ 由网络逐像素给出")
    else:
        noise = Both("fresh noise<br>z ~ N(0, 1)", "新的噪声<br>z ~ N(0, 1)")
    sigma = "σ" if std is None else number_text(std)
    return [
        _term(f'<i class="symbol">{_X_S}</i> =', _image(moment.following, f"x_s, s = {moment.s}")),
        _term(
            f'{number_text(facts.weight_x0)} · <i class="symbol">{_ORIGINAL}</i>',
            _image(moment.original, f"x̂_0, t = {moment.t}"),
        ),
        _term(
            f'+ {number_text(facts.weight_xt)} · <i class="symbol">{_X_T}</i>',
            _image(moment.sample, f"x_t, t = {moment.t}"),
        ),
        _term(f'+ {sigma} · <i class="symbol">z</i>', f'<div class="noise">{noise.html}</div>'),
    ]


def _term(formula: str, picture: str) -> str:
    return f"<figure><figcaption>{formula}</figcaption>{picture}</figure>"


def _image(pixels: np.ndarray, alt: str) -> str:
    return f'<img class="pixels" src="{png_address(as_image(pixels))}" alt="{alt}">'
