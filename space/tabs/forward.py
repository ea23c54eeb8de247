"""Forward: an image that turns into noise, in one jump or step by step."""

import gradio as gr
import numpy as np
from answers import answering
from both_languages import Both
from drawing import random_seed
from example_pictures import EXAMPLES
from forward_facts import jump, scheduler_of, small, walk
from page import LIGHT, LIVE, Page, note
from svg_text import html_words
from visitor_files import opened_image

from ddpm_hub import DDPMHubScheduler
from tabs.forward_views import jump_view, walk_view

FIRST_TIME = 300

INTRODUCTION = note(
    "The forward process mixes an image with noise: the later t, the less is left of the image.",
    "前向过程把图像与噪声混合：t 越大，图像残留越少。",
)
TITLE = Both("One step at a time, or in one jump", "逐步走，还是一步跳到")
TEXT = Both(
    "Every single step adds a noise of its own. Merged into one ε, these noises take x_0 to the same x_t in one jump.",
    "每一步都加入各自的噪声。把这些噪声合并成一个 ε，x_0 一步就能跳到同一个 x_t。",
)


def build(page: Page) -> None:
    """Makes the tab."""
    words = page.words
    with words(gr.Tab, label=Both("Forward", "前向过程"), id="forward"), gr.Row():
        with gr.Column(scale=2, min_width=300):
            source, seed, another, time = _controls(page)
            # Inside of the tab: what lies between two tabs is counted as a tab by the page.
            pixels, scheduler = gr.State(EXAMPLES[0].pixels), gr.State(None)
        with gr.Column(scale=5, min_width=300):
            gr.HTML(INTRODUCTION)
            jumped = gr.HTML(elem_id="jumped")
            gr.HTML(f'<h2>{TITLE.html}</h2><p class="note">{html_words(TEXT)}</p>', elem_classes="part")
            walked = gr.HTML(elem_id="walked")
    inputs = [scheduler, page.model, pixels, time, seed]
    changed = [
        page.loaded.then(scheduler_and_times, page.model, [scheduler, time], **LIGHT).then,
        page.model.change(scheduler_and_times, page.model, [scheduler, time], **LIGHT).then,
        source.change(small_pixels, source, pixels, **LIGHT).then,
        another.click(random_seed, None, seed, **LIGHT).then,
    ]
    # Two events: the walk takes longer than the jump, which need not wait for it.
    for happened in (time.input, seed.input, *changed):
        happened(show_jump, inputs, jumped, **LIVE)
        happened(show_walk, inputs, walked, **LIVE)


def _controls(page: Page) -> tuple:
    words = page.words
    source = words(
        gr.Image,
        value=str(EXAMPLES[0].path),
        label=Both("Image", "图像"),
        type="filepath",
        sources=["upload", "clipboard"],
        height=200,
        buttons=[],
        elem_classes="source",
    )
    with gr.Row(elem_classes="examples pictured"):
        for example in EXAMPLES:
            pick = words(gr.Button, value=example.name, icon=str(example.path), size="sm", min_width=60)
            pick.click(lambda path=str(example.path): path, None, source, **LIGHT)
    with gr.Row(elem_classes="seed-row"):
        seed = words(gr.Number, 0, label=Both("Seed", "随机种子"), precision=0, min_width=110)
        another = words(gr.Button, value=Both("Other noise", "换一种噪声"), min_width=110, size="md")
    label = Both("t: steps of noise", "t：加噪的步数")
    info = Both("On the schedule of the model that is chosen above.", "采用上方所选模型的噪声调度。")
    time = words(gr.Slider, 1, 1000, value=FIRST_TIME, step=1, label=label, info=info, buttons=[])
    return source, seed, another, time


def small_pixels(source: str | None) -> np.ndarray | dict:
    """The pixels of an upload or an example; where there is none, what was there stays."""
    with answering("forward", quiet=True):
        return gr.skip() if source is None else small(opened_image(source))


def scheduler_and_times(model: str) -> tuple:
    """The scheduler of the model, and its t."""
    scheduler = scheduler_of(model)
    return scheduler, gr.update(maximum=len(scheduler), value=min(FIRST_TIME, len(scheduler)))


def show_jump(scheduler: DDPMHubScheduler | None, model: str, pixels: np.ndarray, time: int, seed: int) -> str | dict:
    """x_0, x_t and the equation."""
    with answering("forward", quiet=True):
        if seed is None:  # another one is being typed
            return gr.skip()
        return jump_view(jump(scheduler or scheduler_of(model), pixels, time, seed))


def show_walk(scheduler: DDPMHubScheduler | None, model: str, pixels: np.ndarray, time: int, seed: int) -> str | dict:
    """x_t by single steps beside x_t in one jump."""
    with answering("forward", quiet=True):
        if seed is None:
            return gr.skip()
        return walk_view(walk(scheduler or scheduler_of(model), pixels, time, seed), time)
