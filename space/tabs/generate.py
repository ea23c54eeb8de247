"""Generate: images of a class, and how they come out of noise."""

import html
from collections.abc import AsyncIterator
from urllib.parse import parse_qsl, urlencode

import drawing
import gradio as gr
import served_models
from answers import answering
from both_languages import Both
from drawing import Drawing
from page import NETWORK, Page
from request_checks import InvalidRequestError, whole_number
from visitor_files import result_file

from tabs.controls import LINK, class_control, count_control, of_link, sampling_controls, seed_controls
from tabs.results import Results, captioned, drawn_images, draws
from tabs.streaming import finished, panels


def build(page: Page) -> None:
    """Makes the tab."""
    words = page.words
    with words(gr.Tab, label=Both("Generate", "生成"), id="generate"), gr.Row():
        with gr.Column(scale=2, min_width=300):
            controls = [class_control(page, linked=True), count_control(page, linked=True)]
            controls += sampling_controls(page, linked=True)
            seed, random_seed = seed_controls(page, linked=True)
            with gr.Row():
                run = words(gr.Button, value=Both("Generate", "生成"), variant="primary")
                stop = words(gr.Button, value=Both("Stop", "停止"))
            examples = words(
                gr.Dataset,
                components=[gr.Textbox(visible=False)],
                samples=[[""]],
                label=Both("Examples", "示例"),
                type="index",
                elem_id="examples",
            )
        with gr.Column(scale=5, min_width=300):
            results = Results(page, "samples")
            link = gr.HTML(elem_id="link")
            drawn = gr.State(None)  # inside the tab: Gradio miscounts tabs that have others beside them
            animate = words(
                gr.Button, value=Both("Show the way there as an animation", "生成过程动画"), interactive=False
            )
            animation = words(
                gr.Image,
                label=Both("x_t and x̂_0, animated WebP", "x_t 与 x̂_0，WebP 动画"),
                type="filepath",
                interactive=False,
                visible=False,
                buttons=["download"],
                elem_id="animation",
            )
    inputs = [page.model, *controls, seed, random_seed]
    outputs = [results.live, results.gallery, results.status, seed, link, drawn, animate, animation]
    draws([run.click], stop, generate, inputs, outputs, results.status)
    draws([page.link.change], stop, generate_link, [page.link], outputs, results.status)
    page.when_model_is_known(example_names, examples)
    page.when_model_is_known(ready, [results.status, run], with_link=True)
    chosen = [*controls, seed, random_seed, *outputs]
    draws([examples.click], stop, example, [page.model, examples], chosen, results.status)
    animate.click(animated, drawn, animation, **NETWORK | {"show_progress": "full"})


def ready(model: str, opened: dict | None) -> tuple:
    """Whether there is a model to ask; what a link asks for is under way, and says itself how far it is."""
    try:
        served_models.pipeline(model)
    except InvalidRequestError:
        return "", gr.update(interactive=False)
    said = gr.skip() if "seed" in (opened or {}) else f"<p>{Both('Ready.', '就绪。').html}</p>"
    return said, gr.update(interactive=True)


async def generate(
    model: str, class_name: str, count: int, sampler: str, num_steps: int, guidance: float, seed: int, random_seed: bool
) -> AsyncIterator[tuple]:
    """Draws images of a class; streams x_t and x̂_0 on the way, then the images, their link and the settings."""
    chosen = drawing.random_seed() if random_seed else seed
    asked: list[Drawing] = []

    def make() -> Drawing:
        asked.append(drawing.image_drawing(model, class_name, count, sampler, num_steps, guidance, chosen))
        return asked[0]

    begun = (chosen, "", None, gr.update(interactive=False), gr.update(visible=False))
    async for update in drawn_images("generate", make):
        yield *update, *begun
        begun = (gr.skip(),) * 5
    yield *(gr.skip(),) * 4, link_to(asked[0]), asked[0], gr.update(interactive=True), gr.skip()


async def generate_link(link: str) -> AsyncIterator[tuple]:
    """Draws what the address of the page asks for."""
    asked = dict(parse_qsl(link))
    values = [of_link(asked, name, {"count": 8}.get(name)) for name in LINK]
    async for update in generate(*values, random_seed=False):
        yield update


def _examples(model: str | None) -> list[Drawing]:
    """What is worth seeing of a model: some classes in the model's own way, and few steps beside many."""
    pipeline = served_models.pipeline(model)
    names = drawing.classes(pipeline)
    some = names[1 :: max(1, len(names) // 4)][:4] or names
    asked = [drawing.image_drawing(model, name, seed=number) for number, name in enumerate(some)]
    steps = [min(few, len(pipeline.scheduler)) for few in (5, 100)]
    return asked + [drawing.image_drawing(model, some[0], sampler="ddpm", num_steps=few) for few in steps]


def _class_name(asked: Drawing) -> str:
    label = asked.options["class_labels"]
    return drawing.classes(served_models.load(asked.model))[0 if label is None else label + 1]


def example_names(model: str) -> dict:
    """The examples of a model, each in a few words."""
    try:
        asked = _examples(model)
    except InvalidRequestError:
        return gr.skip()
    names = [
        f"{_class_name(one)} · {drawing.SAMPLERS[one.options['sampler']]} · {one.options['num_inference_steps']}"
        for one in asked
    ]
    return gr.update(samples=[[name] for name in names])


async def example(model: str, number: int) -> AsyncIterator[tuple]:
    """An example's settings and images; they are drawn once and kept."""
    with answering("example", quiet=True):
        examples = _examples(model)
        asked = examples[whole_number(Both("The example", "示例"), number, 0, len(examples) - 1)]
    options, seed = asked.options, asked.seeds[0]
    steps, scale = options["num_inference_steps"], options["guidance_scale"]
    controls = (_class_name(asked), len(asked.seeds), options["sampler"], steps, scale, seed, False)
    rest = gr.skip(), link_to(asked), asked, gr.update(interactive=True), gr.update(visible=False)
    if frame := drawing.kept(asked):
        yield *controls, panels(frame), captioned(frame, asked), finished(frame), *rest
        return
    async for update in drawn_images("example", lambda: asked):
        yield *controls, *update, *rest


def link_to(asked: Drawing) -> str:
    """A link to the page that draws these images again, as HTML."""
    options = asked.options
    values = (
        served_models.title(asked.model),
        _class_name(asked),
        len(asked.seeds),
        options["sampler"],
        options["num_inference_steps"],
        options["guidance_scale"],
        asked.seeds[0],
    )
    query = html.escape(urlencode(dict(zip(LINK, values, strict=True))))
    text = Both("Link that draws these images again", "重现这些图像的链接").html
    copy = Both("copy", "复制").html
    script = "navigator.clipboard.writeText(this.previousElementSibling.href)"
    return f'<a href="?{query}">{text}</a> <button type="button" class="copy" onclick="{script}">{copy}</button>'


def animated(drawn: Drawing | None) -> dict:
    """The last drawing once more, as an animated WebP."""
    with answering("animation") as settings:
        if drawn is None:  # the page was open for long, or the server began anew
            raise InvalidRequestError(
                "These images are no longer kept: draw them again.", "这些图像已不再保留：请重新生成。"
            )
        settings |= drawn.described()
        path = drawing.animation(drawn, result_file(f"{drawn.seeds[0]}.webp"))
        return gr.update(value=str(path), visible=True)
