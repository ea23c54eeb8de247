"""The controls that ways of drawing share: class, number of images, sampler, steps, guidance and seed.

The values are those of the link that the page was opened with, where a control is `linked`, or else the model's own.
"""

import drawing
import gradio as gr
import served_models
from both_languages import Both
from drawing import ANY_CLASS, LARGEST_COUNT, LARGEST_GUIDANCE, SAMPLERS, USUAL_STEPS
from page import Page
from request_checks import InvalidRequestError

SAMPLER_CHOICES = [(title, name) for name, title in SAMPLERS.items()]

ANY_TITLE = "any · 任意"

# What a link says, and how its text is read.
LINK = {"model": str, "class": str, "count": int, "sampler": str, "steps": int, "guidance": float, "seed": int}


def of_link(opened: dict | None, name: str, otherwise=None):
    """What a link says; it is checked where it is used."""
    try:
        return LINK[name](opened[name])
    except (KeyError, TypeError, ValueError):
        return otherwise


def class_control(page: Page, linked: bool = False) -> gr.Dropdown:
    """The class, out of those of the model."""
    # Custom values: Gradio knows the classes of the model only on a page that has loaded.
    control = page.words(
        gr.Dropdown, [(ANY_TITLE, ANY_CLASS)], value=ANY_CLASS, label=Both("Class", "类别"), allow_custom_value=True
    )

    def choices(model: str | None, opened: dict | None) -> dict:
        try:
            allowed = drawing.classes(served_models.pipeline(model))
            named = [(ANY_TITLE if name == ANY_CLASS else name, name) for name in allowed]
        except InvalidRequestError:
            return gr.skip()
        asked = of_link(opened, "class") if linked else None
        return gr.update(choices=named, value=asked if asked in allowed else ANY_CLASS)

    page.when_model_is_known(choices, control, with_link=True)
    return control


def count_control(page: Page, value: int = 8, smallest: int = 1, linked: bool = False) -> gr.Slider:
    """The number of images."""
    label = Both("Images", "图像数")
    control = page.words(gr.Slider, smallest, LARGEST_COUNT, value=value, step=1, label=label, buttons=[])
    if linked:
        page.when_model_is_known(lambda _, opened: of_link(opened, "count", gr.skip()), control, with_link=True)
    return control


def sampling_controls(
    page: Page, samplers: tuple[str, ...] = tuple(SAMPLERS), linked: bool = False, takes_own: bool = True
) -> tuple:
    """Sampler, steps and guidance, as the model is best sampled.

    Args:
        page (`Page`): where they stand.
        samplers: those to choose from; the model's own, if it is among them, else the first one with 50 steps.
        linked (`bool`): whether a link says otherwise.
        takes_own (`bool`): whether the model's own sampler comes first; else it is the first of `samplers`.
    """
    words = page.words
    allowed = [choice for choice in SAMPLER_CHOICES if choice[1] in samplers]
    sampler = words(gr.Dropdown, allowed, value=samplers[0], label=Both("Sampler", "采样器"), filterable=False)
    num_steps = words(
        gr.Slider,
        1,
        1000,
        value=USUAL_STEPS,
        step=1,
        label=Both("Steps", "步数"),
        info=Both("Fewer are faster, more are finer.", "步数少则快，步数多则细。"),
        buttons=[],
    )
    guidance = words(
        gr.Slider,
        0,
        LARGEST_GUIDANCE,
        value=1,
        step=0.1,
        label=Both("Guidance", "引导强度"),
        info=Both("1 is none; more is more typical and less varied.", "1 为不引导；越大越典型，但多样性越低。"),
        buttons=[],
    )

    def own(model: str | None, opened: dict | None) -> tuple:
        try:
            pipeline = served_models.pipeline(model)
        except InvalidRequestError:
            return gr.skip(), gr.skip(), gr.skip()
        name, steps, scale = drawing.own_settings(pipeline)
        largest = len(pipeline.scheduler)
        if name not in samplers or not takes_own:
            name, steps = samplers[0], min(USUAL_STEPS, largest)
        if linked:
            name = asked if (asked := of_link(opened, "sampler")) in samplers else name
            steps, scale = of_link(opened, "steps", steps), of_link(opened, "guidance", scale)
        return name, gr.update(maximum=largest, value=steps), scale

    page.when_model_is_known(own, [sampler, num_steps, guidance], with_link=True)
    return sampler, num_steps, guidance


def seed_controls(page: Page, linked: bool = False) -> tuple[gr.Number, gr.Checkbox]:
    """The seed, and whether another one is taken each time."""
    words = page.words
    info = Both("The same seed draws the same images.", "相同的种子生成相同的图像。")
    seed = words(gr.Number, 0, label=Both("Seed", "随机种子"), info=info)
    is_random = words(gr.Checkbox, True, label=Both("Another seed each time", "每次换一个种子"))

    def asked(_, opened: dict | None) -> tuple:
        seed = of_link(opened, "seed")
        return (gr.skip(), gr.skip()) if seed is None else (seed, False)

    if linked:
        page.when_model_is_known(asked, [seed, is_random], with_link=True)
    return seed, is_random
