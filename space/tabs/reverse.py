"""Reverse: what is known of x_s between x_t and x_0, and the way of one sample step by step."""

import time
from collections.abc import AsyncIterator

import drawing
import gradio as gr
import served_models
from answers import answering
from both_languages import Both
from drawing import PREVIEW_SECONDS
from page import LIGHT, Page, note
from posterior_facts import LARGEST_X0, LARGEST_XT, checked_times, posterior_example, weight_curves
from request_checks import InvalidRequestError, whole_number
from trajectories import Trajectory, TrajectoryKeeper, trajectory_drawing

from tabs.controls import class_control, sampling_controls, seed_controls
from tabs.posterior_views import density_plot, mean_equations, precision_equations, weight_plot
from tabs.results import draws
from tabs.streaming import finished, frames, panels, progress
from tabs.trajectory_views import film_strip, moment_view

SECONDS_KEPT = 3600  # of a drawing that nobody looks at

LATEX = [{"left": "$$", "right": "$$", "display": True}]

POSTERIOR = Both("The posterior", "后验分布")
POSTERIOR_TEXT = note(
    "Once xₜ and x₀ are known, any xₛ between them is normal: its mean mixes the two, its variance needs neither.",
    "已知 xₜ 与 x₀ 时，其间任一 xₛ 服从正态分布：均值由两者线性组合而成，方差与两者的取值无关。",
)
WAY = Both("One sample's way", "一个样本的历程")
WAY_TEXT = note(
    "When images are drawn nobody knows x₀: the network's estimate x̂₀ takes its place, and xₛ is drawn from the posterior.",
    "生成图像时 x₀ 未知：以网络的估计 x̂₀ 代替它，再从后验分布中采样 xₛ。",
)
DRAW_AGAIN = note("This drawing is no longer kept: draw one again.", "该样本已不再保留：请重新采样。")


def build(page: Page) -> None:
    """Makes the tab."""
    with page.words(gr.Tab, label=Both("Reverse", "逆向过程"), id="reverse") as tab:
        _heading(POSTERIOR, POSTERIOR_TEXT)
        _posterior(page, tab)
        _heading(WAY, WAY_TEXT)
        _way(page)


def _heading(title: Both, text: str) -> None:
    gr.HTML(f"<h2>{title.html}</h2>{text}", elem_classes="part")


# --- The posterior ---


def _posterior(page: Page, tab: gr.Tab) -> None:
    words = page.words
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            t = words(gr.Slider, 1, 1000, value=600, step=1, label=Both("t: where we are", "t：当前时刻"), buttons=[])
            s = words(
                gr.Slider, 0, 999, value=300, step=1, label=Both("s: where the step leads", "s：目标时刻"), buttons=[]
            )
            single = gr.Checkbox(False, label="s = t − 1")
            label = Both("x₀: a clean pixel", "x₀：干净的像素值")
            x_0 = words(gr.Slider, -LARGEST_X0, LARGEST_X0, value=0.8, step=0.01, label=label, buttons=[])
            label = Both("xₜ: with noise", "xₜ：加噪后的值")
            x_t = words(gr.Slider, -LARGEST_XT, LARGEST_XT, value=-1.2, step=0.01, label=label, buttons=[])
        with gr.Column(scale=5, min_width=300):
            with gr.Row():
                with gr.Column(min_width=300):
                    densities = gr.HTML(elem_classes="densities")
                with gr.Column(min_width=300):
                    weights = gr.HTML()
            with gr.Row():
                mean = _equations(Both("Mean and variance", "均值与方差"))
                precision = _equations(Both("By completing the square", "由配方法得到"))
    views = [mean, precision, densities, weights]
    live = LIGHT | {"trigger_mode": "always_last"}
    inputs = [page.model, t, s, single, x_0, x_t]
    t.input(t_moved, inputs, [s, *views], **live)
    s.input(s_moved, inputs, [t, *views], **live)
    single.input(t_moved, inputs, [s, *views], **live)
    for value in (x_0, x_t):
        value.input(posterior_views, [page.model, t, s, x_0, x_t], views, **live)
    gr.on([tab.select, page.model.change], of_model, [page.model, t, s, x_0, x_t], [t, s, *views], **LIGHT)


def of_model(model: str | None, t: int | None, s: int | None, x_0: float | None, x_t: float | None) -> list:
    """Another schedule: how far t and s go, and what is shown of them."""
    try:
        num_train = len(served_models.pipeline(model).scheduler)
    except InvalidRequestError:
        return [gr.skip()] * 6
    t = num_train if t is None else min(t, num_train)
    s = t - 1 if s is None else min(s, t - 1)
    sliders = gr.update(maximum=num_train, value=t), gr.update(maximum=num_train - 1, value=s)
    return [*sliders, *posterior_views(model, t, s, x_0, x_t)]


def _equations(title: Both) -> gr.Markdown:
    with gr.Column(min_width=300, elem_classes="equations"):
        gr.HTML(f"<h3>{title.html}</h3>", padding=False)
        return gr.Markdown(latex_delimiters=LATEX, min_height=208)


def t_moved(
    model: str | None, t: int | None, s: int | None, single: bool, x_0: float | None, x_t: float | None
) -> list:
    """s, which stays below t, and what is shown of both."""
    if None in (t, s):
        return [gr.skip()] * 5
    s = t - 1 if single else min(s, t - 1)
    return [s, *posterior_views(model, t, s, x_0, x_t)]


def s_moved(
    model: str | None, t: int | None, s: int | None, single: bool, x_0: float | None, x_t: float | None
) -> list:
    """t, which stays above s, and what is shown of both."""
    if None in (t, s):
        return [gr.skip()] * 5
    t = s + 1 if single else max(t, s + 1)
    return [t, *posterior_views(model, t, s, x_0, x_t)]


def posterior_views(model: str | None, t: int, s: int, x_0: float | None, x_t: float | None) -> list:
    """The equations and the plots; `None` is a number that is being typed."""
    if None in (t, s, x_0, x_t):
        return [gr.skip()] * 4
    with answering("posterior", quiet=True):
        scheduler = served_models.pipeline(model).scheduler
        t, s = checked_times(scheduler, t, s)
        example = posterior_example(scheduler, t, s, x_0, x_t)
        curves = weight_curves(scheduler, t - s)
        return [
            mean_equations(example),
            precision_equations(example.facts),
            density_plot(example),
            weight_plot(example.facts, curves),
        ]


# --- One sample's way ---


def _way(page: Page) -> None:
    words = page.words
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            controls = [class_control(page), *sampling_controls(page, takes_own=False)]
            seed, random_seed = seed_controls(page)
            with gr.Row():
                run = words(gr.Button, value=Both("Draw one sample", "生成一个样本"), variant="primary")
                stop = words(gr.Button, value=Both("Stop", "停止"))
        with gr.Column(scale=5, min_width=300):
            status = gr.HTML(elem_classes=["status", "way-status"])
            live = gr.HTML(panels(), elem_classes="way-live")
            film = gr.HTML(visible=False)
            label = Both("Step by step: from noise to the image", "逐步查看：从噪声到图像")
            scrubber = words(
                gr.Slider, 1, 60, value=1, step=1, label=label, visible=False, buttons=[], elem_classes="scrubber"
            )
            moment = gr.HTML(visible=False)
    kept = gr.State(None, time_to_live=SECONDS_KEPT)
    outputs = [live, film, scrubber, moment, kept, seed, status]
    draws([run.click], stop, draw, [page.model, *controls, seed, random_seed], outputs, status)
    scrubber.input(moment_at, [kept, scrubber], moment, trigger_mode="always_last", **LIGHT)


async def draw(
    model: str, class_name: str, sampler: str, num_steps: int, guidance: float, seed: int, random_seed: bool
) -> AsyncIterator[tuple]:
    """Draws one sample; streams x_t and x̂_0 on the way, then shows all of it."""
    try:
        with answering("trajectory") as settings:
            seed = drawing.random_seed() if random_seed else seed
            asked = trajectory_drawing(model, class_name, sampler, num_steps, guidance, seed)
            settings |= asked.described()
            hidden = gr.update(visible=False)
            yield gr.update(value=panels(), visible=True), hidden, hidden, hidden, None, seed, gr.skip()
            keeper, shown = TrajectoryKeeper(asked), float("-inf")
            async with frames(asked, preview_seconds=0) as drawn:
                async for frame in drawn:
                    keeper.add(frame)
                    if frame.step < frame.num_steps and time.monotonic() - shown >= PREVIEW_SECONDS:
                        yield panels(frame), *[gr.skip()] * 5, progress(frame)
                        shown = time.monotonic()
            yield *_film(keeper.trajectory()), gr.skip(), finished(frame)
    except gr.Error as error:
        yield *[gr.skip()] * 6, f"<p>{error.message}</p>"
        raise


def _film(way: Trajectory) -> tuple:
    """The film strip, and the step in its middle."""
    count = len(way.moments)
    middle = (count + 1) // 2
    return (
        gr.update(visible=False),
        gr.update(value=film_strip(way), visible=True),
        gr.update(maximum=count, value=middle, visible=count > 1),
        gr.update(value=moment_view(way, middle), visible=True),
        way,
    )


def moment_at(way: Trajectory | None, number: int) -> str:
    """What is shown of a kept step."""
    with answering("moment", quiet=True):
        if way is None:
            return DRAW_AGAIN
        return moment_view(way, whole_number(Both("Step", "步"), number, 1, len(way.moments)))
