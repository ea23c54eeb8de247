"""Edit: a part of an image painted anew, an image noised and drawn anew, and the way between two seeds."""

from collections.abc import AsyncIterator, Callable

import drawing
import editing
import gradio as gr
import served_models
from answers import answering
from both_languages import Both
from drawing import Drawing
from editing import INPAINTING_SAMPLERS, LARGEST_RESAMPLINGS, model_image
from example_pictures import EXAMPLES
from page import LIGHT, NETWORK, Page
from pictures import as_image, png_address
from request_checks import InvalidRequestError
from visitor_files import opened_image

from tabs.controls import class_control, count_control, sampling_controls, seed_controls
from tabs.mask_brush import REGIONS, mask_brush, mask_of_text, region
from tabs.results import Results, drawn_images

BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAICAgP///yH5BAAAAAAALAAAAAABAAEAAAICRAEAOw=="


def build(page: Page) -> None:
    """Makes the tab."""
    words = page.words
    with words(gr.Tab, label=Both("Edit", "编辑"), id="edit"), gr.Row():
        with gr.Column(scale=3, min_width=300), gr.Tabs():
            with words(gr.Tab, label=Both("Paint over", "修补"), id="inpaint"):
                inpaint = _inpainting(page)
            with words(gr.Tab, label=Both("Noise and draw anew", "加噪重绘"), id="img2img"):
                img2img = _img2img(page)
            with words(gr.Tab, label=Both("Between two seeds", "两种子插值"), id="interpolate"):
                interpolate = _interpolation(page)
        with gr.Column(scale=4, min_width=300):
            results = Results(page, "edited")
    for run, stop, function, inputs in (inpaint, img2img, interpolate):
        results.drawn_by(run, stop, function, inputs)


def _source(page: Page) -> gr.Image:
    """The image to begin with: uploaded, an example, or drawn by the model."""
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
    with gr.Row(elem_classes="examples"):
        for example in EXAMPLES:
            pick = words(gr.Button, value=example.name, size="sm", min_width=60)
            pick.click(lambda path=str(example.path): path, None, source, **LIGHT)
        draw = words(gr.Button, value=Both("Draw one", "随机生成"), size="sm", min_width=60)
    draw.click(_draw_one, page.model, source, **NETWORK | {"show_progress": "full"})
    return source


def _draw_one(model: str):
    """An image of the model's own to begin with."""
    with answering("generate") as settings:
        pipeline = served_models.pipeline(model)
        sampler, steps, _ = drawing.own_settings(pipeline)
        asked = drawing.image_drawing(model, drawing.ANY_CLASS, 1, sampler, steps, 1, drawing.random_seed())
        settings |= asked.described()
        *_, frame = drawing.frames(asked)
        return as_image(frame.sample[0])


def _settings(page: Page) -> gr.Accordion:
    return page.words(
        gr.Accordion, label=Both("Sampler, steps, guidance, seed", "采样器、步数、引导强度、种子"), open=False
    )


def _buttons(page: Page) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        run = page.words(gr.Button, value=Both("Draw", "绘制"), variant="primary", min_width=100)
        return run, page.words(gr.Button, value=Both("Stop", "停止"), min_width=100)


def _inpainting(page: Page) -> tuple[gr.Button, gr.Button, Callable, list]:
    words = page.words
    source = _source(page)
    problem = gr.HTML(elem_id="source-problem")
    brush = mask_brush(BLANK, 1, 1, elem_id="brush")
    with gr.Row(elem_classes="examples"):
        for name, label in REGIONS.items():
            pick = words(gr.Button, value=label, size="sm", min_width=60)
            pick.click(lambda model, name=name: region(name, _size(model)), page.model, brush, **LIGHT)
    class_name, count = class_control(page), count_control(page, 2)
    buttons = _buttons(page)
    with _settings(page):
        sampler, num_steps, guidance = sampling_controls(page, INPAINTING_SAMPLERS)
        resamplings = words(
            gr.Slider,
            1,
            LARGEST_RESAMPLINGS,
            value=2,
            step=1,
            label=Both("Resamplings", "重采样次数"),
            info=Both("How often each stretch of steps is taken.", "每段步进重复的次数。"),
            buttons=[],
        )
        seeds = seed_controls(page)
    for happened in (source.change, page.model.change, page.loaded.then):
        happened(_picture, [page.model, source], [brush, problem], **LIGHT)
    inputs = [page.model, source, brush, class_name, count, sampler, num_steps, resamplings, guidance, *seeds]
    return *buttons, inpaint, inputs


def _size(model: str) -> tuple[int, int]:
    with answering("mask", quiet=True):
        return served_models.pipeline(model).image_size


def _picture(model: str, source: dict | None) -> tuple:
    """The image as the model takes it, under the brush, where the mask begins anew; or why it cannot be taken."""
    try:
        size = served_models.pipeline(model).image_size
        fitted = model_image(served_models.pipeline(model), opened_image(source)) if source else None
    except InvalidRequestError as error:
        return gr.skip(), f'<p role="alert">{error.message.html}</p>'
    picture = png_address(fitted) if fitted else BLANK
    return gr.update(value=region("nothing", size), picture=picture, rows=size[0], columns=size[1]), ""


async def inpaint(
    model: str,
    source: dict | None,
    mask: str,
    class_name: str,
    count: int,
    sampler: str,
    num_steps: int,
    resamplings: int,
    guidance: float,
    seed: int,
    random_seed: bool,
) -> AsyncIterator[tuple]:
    """Paints what the mask covers."""

    def asked() -> Drawing:
        image, size = opened_image(source), served_models.pipeline(model).image_size
        chosen = drawing.random_seed() if random_seed else seed
        return editing.inpainting_drawing(
            model, image, mask_of_text(mask, size), class_name, count, sampler, num_steps, resamplings, guidance, chosen
        )

    async for update in drawn_images("inpaint", asked):
        yield update


def _img2img(page: Page) -> tuple[gr.Button, gr.Button, Callable, list]:
    source = _source(page)
    strength = page.words(
        gr.Slider,
        0.01,
        1,
        value=0.5,
        step=0.01,
        label=Both("Strength", "强度"),
        info=Both("How much noise: at 1 nothing of the image is left.", "加噪程度：为 1 时原图完全消失。"),
        buttons=[],
    )
    class_name, count = class_control(page), count_control(page, 4)
    buttons = _buttons(page)
    with _settings(page):
        sampling = sampling_controls(page)
        seeds = seed_controls(page)
    return *buttons, img2img, [page.model, source, strength, class_name, count, *sampling, *seeds]


async def img2img(
    model: str,
    source: dict | None,
    strength: float,
    class_name: str,
    count: int,
    sampler: str,
    num_steps: int,
    guidance: float,
    seed: int,
    random_seed: bool,
) -> AsyncIterator[tuple]:
    """Adds noise to an image and draws it anew from there."""

    def asked() -> Drawing:
        chosen = drawing.random_seed() if random_seed else seed
        return editing.img2img_drawing(
            model, opened_image(source), strength, class_name, count, sampler, num_steps, guidance, chosen
        )

    async for update in drawn_images("img2img", asked):
        yield update


def _interpolation(page: Page) -> tuple[gr.Button, gr.Button, Callable, list]:
    words = page.words
    with gr.Row():
        first = words(gr.Number, 1, label=Both("First seed", "第一个种子"), min_width=100)
        second = words(gr.Number, 2, label=Both("Second seed", "第二个种子"), min_width=100)
    class_name, count = class_control(page), count_control(page, 8, smallest=2)
    buttons = _buttons(page)
    with _settings(page):
        sampling = sampling_controls(page)
    return *buttons, interpolate, [page.model, first, second, class_name, count, *sampling]


async def interpolate(
    model: str,
    first: int,
    second: int,
    class_name: str,
    count: int,
    sampler: str,
    num_steps: int,
    guidance: float,
) -> AsyncIterator[tuple]:
    """Draws a row of images from one seed to another."""

    def asked() -> Drawing:
        return editing.interpolation_drawing(model, first, second, class_name, count, sampler, num_steps, guidance)

    async for update in drawn_images("interpolate", asked):
        yield update
