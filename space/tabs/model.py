"""Model: what the chosen model is, how good it is, and its card."""

import html

import gradio as gr
from both_languages import Both
from model_facts import ModelFacts, model_facts
from page import LIGHT, Page
from request_checks import InvalidRequestError

from ddpm_hub.evaluation_tables import value_and_reference

# As the cards of the Hub have it.
DELIMITERS = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]


def build(page: Page) -> None:
    """Makes the tab."""
    words = page.words
    with words(gr.Tab, label=Both("Model", "模型"), id="model") as tab:
        facts = gr.HTML(elem_id="model-facts")
        plots = words(
            gr.Gallery,
            label=Both("Plots of its training and evaluation", "训练与评估图"),
            columns=2,
            height="auto",
            object_fit="contain",
            buttons=["download", "fullscreen"],
            elem_id="model-plots",
            elem_classes="images",
        )
        card = gr.Markdown(elem_id="model-card", latex_delimiters=DELIMITERS)
    gr.on([tab.select, page.model.change], _shown, page.model, [facts, plots, card], **LIGHT)


def _shown(model: str) -> tuple:
    try:
        known = model_facts(model)
    except InvalidRequestError as error:
        return f"<p>{error.message.html}</p>", gr.update(value=None, visible=False), ""
    plots = [(str(path), path.stem.replace("_", " ")) for path in known.plots]
    return _table(known), gr.update(value=plots, visible=bool(plots)), known.card or NO_CARD


NO_CARD = "This model has no card. 该模型没有模型卡。"


def _table(known: ModelFacts) -> str:
    """The facts as an HTML table, in both languages."""
    color = {1: Both("greyscale", "灰度"), 3: Both("colour", "彩色")}.get(known.channels)
    color = color.html if color else f"{known.channels}"
    names = html.escape(", ".join(known.classes[1:]))
    sampling = f"{html.escape(known.sampler)}, {known.num_steps}, w = {known.guidance:g}"
    if known.guidance_interval:
        sampling += " ({} ≤ t ≤ {})".format(*known.guidance_interval)
    rows = [
        (Both("Model", "模型"), html.escape(known.title)),
        (Both("Images", "图像"), f"{known.width} × {known.height}, {color}"),
        (Both("Classes", "类别"), f"{len(known.classes) - 1}{': ' if names else ''}{names}"),
        (Both("Parameters of the network", "网络参数量"), f"{known.num_parameters:,}"),
        (Both("T", "T"), f"{known.num_train_timesteps:,}"),
        (Both("Best sampled with (sampler, steps, guidance)", "推荐采样（采样器、步数、引导强度）"), sampling),
    ]
    rows += [
        (Both(*[html.escape(str(entry["name"]))] * 2), html.escape(value_and_reference(entry)))
        for entry in known.metrics.get("evaluation", [])
        if {"name", "value"} <= entry.keys()
    ]
    cells = "".join(f'<tr><th scope="row">{name.html}</th><td>{value}</td></tr>' for name, value in rows)
    return f'<table class="facts">{cells}</table>'
