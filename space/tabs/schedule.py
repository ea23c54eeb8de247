"""Schedule: β_1…β_T, what they come to, and whether x_T is noise."""

import gradio as gr
from answers import answering
from both_languages import Both
from page import LIVE, Page, note
from request_checks import InvalidRequestError
from schedule_facts import (
    LARGEST_STEPS,
    PRESETS,
    SMALLEST_STEPS,
    TITLES,
    Preset,
    ScheduleFacts,
    schedule_facts,
)

from tabs.schedule_views import last_samples, refusal_box, schedule_plots, verdict_box

FIRST = PRESETS["paper"]

INTRODUCTION = note(
    "Sampling starts from pure noise, so the forward process must end in noise: β and T decide together whether it does.",
    "采样从纯噪声开始，因此前向过程必须以噪声结束：这由 β 与 T 共同决定。",
)


def build(page: Page) -> None:
    """Makes the tab."""
    words = page.words
    with words(gr.Tab, label=Both("Schedule", "噪声调度"), id="schedule"):
        gr.HTML(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                choices = _choices({key: preset.name for key, preset in PRESETS.items()})
                preset = words(gr.Radio, value="paper", choices=choices, label=Both("Examples", "示例"))
                controls = _controls(page)
            with gr.Column(scale=5, min_width=300):
                verdict = gr.HTML(elem_id="verdict")
                with gr.Row(elem_id="mend"):
                    mend_betas = words(
                        gr.Button, value=Both("Mend β for this T", "为此 T 修正 β"), size="sm", interactive=False
                    )
                    mend_steps = words(
                        gr.Button, value=Both("Mend T for these β", "为此 β 修正 T"), size="sm", interactive=False
                    )
                samples = gr.HTML()
                plots = gr.HTML()
    views = [verdict, mend_betas, mend_steps, samples, plots]
    for control in controls:
        control.input(moved, controls, [preset, *views], **LIVE)
    preset.input(chosen, preset, [*controls, *views], **LIVE)
    mend_betas.click(mended_betas, controls, [preset, *controls, *views], **LIVE)
    mend_steps.click(mended_steps, controls, [preset, *controls, *views], **LIVE)
    # As the page is opened it shows the first example, which nobody need compute.
    verdict.value, *_, samples.value, plots.value = shown(_facts(FIRST), FIRST.why)


def _controls(page: Page) -> list:
    """The arguments of `schedule_facts`, in its order."""
    words = page.words
    label = Both("How β rises", "β 的变化方式")
    kind = words(gr.Dropdown, value=FIRST.beta_schedule, choices=_choices(TITLES), label=label, filterable=False)
    label = Both("T: the number of steps", "T：步数")
    num_steps = words(gr.Slider, SMALLEST_STEPS, LARGEST_STEPS, value=1000, step=1, label=label, buttons=[])
    with gr.Row():
        ends = [
            words(gr.Number, beta, label=label, step=1e-4, min_width=110)
            for beta, label in (
                (FIRST.beta_start, Both("β at t = 1", "t = 1 时的 β")),
                (FIRST.beta_end, Both("β at t = T", "t = T 时的 β")),
            )
        ]
    label = Both("Shift √ᾱ so that ᾱ = 0 at t = T", "平移 √ᾱ，使 t = T 时 ᾱ = 0")
    info = Both("For networks that predict v or x₀ (Lin et al. 2023).", "用于预测 v 或 x₀ 的网络（Lin 等，2023）。")
    rescaled = words(gr.Checkbox, False, label=label, info=info)
    return [kind, num_steps, *ends, rescaled]


def _choices(names: dict[str, Both]) -> Both:
    return Both(*([(getattr(name, lang), key) for key, name in names.items()] for lang in ("en", "zh")))


def _facts(preset: Preset) -> ScheduleFacts:
    return schedule_facts(*_settings(preset))


def moved(*settings) -> tuple:
    """What there is to see of other settings; they are no example any more."""
    with answering("schedule", quiet=True):
        try:
            return None, *shown(schedule_facts(*settings))
        except InvalidRequestError as error:  # numbers are refused while they are typed
            return None, refusal_box(error.message), gr.skip(), gr.skip(), gr.skip(), gr.skip()


def chosen(key: str) -> tuple:
    """The settings of an example, and what there is to see."""
    with answering("schedule", quiet=True):
        preset = PRESETS[key]
        return *_settings(preset), *shown(_facts(preset), preset.why)


def _settings(preset: Preset) -> tuple:
    return preset.beta_schedule, preset.num_train_timesteps, preset.beta_start, preset.beta_end, False


def shown(facts: ScheduleFacts, why: Both | None = None) -> tuple:
    """The views of a schedule."""
    return (
        verdict_box(facts, why),
        gr.update(interactive=facts.enough_betas is not None),
        gr.update(interactive=facts.enough_steps is not None and facts.enough_steps <= LARGEST_STEPS),
        last_samples(facts),
        schedule_plots(facts),
    )


def mended_betas(kind: str, num_steps: int, start: float, end: float, rescaled: bool) -> tuple:
    """The same T with the β that it needs."""
    with answering("schedule", quiet=True):
        betas = schedule_facts(kind, num_steps, start, end, rescaled).enough_betas or (start, end)
        settings = kind, num_steps, *betas, rescaled
        return None, *settings, *shown(schedule_facts(*settings))


def mended_steps(kind: str, num_steps: int, start: float, end: float, rescaled: bool) -> tuple:
    """The same β with the T that they need."""
    with answering("schedule", quiet=True):
        steps = schedule_facts(kind, num_steps, start, end, rescaled).enough_steps or num_steps
        settings = kind, steps, start, end, rescaled
        return None, *settings, *shown(schedule_facts(*settings))
