"""The web demo: `python space/app.py` serves it."""

import contextlib
import logging
import os
import sys
from pathlib import Path
from urllib.parse import urlencode

import gradio as gr
import served_models
import torch
from answers import BUSY, MEANINGLESS, AnsweringBlocks
from both_languages import Both
from endpoints import add_endpoints
from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware import Middleware
from fastapi.responses import JSONResponse
from gpu_lease import ON_ZERO_GPU
from guard import Guard
from page import DRAWINGS_AT_A_TIME, LANGUAGES, LIGHT, Page, Words
from request_checks import InvalidRequestError
from tabs import edit, equations, forward, generate, model, reverse, schedule
from tool_answers import WithoutMessages, shorten_refusals

# Fonts of the visitor's system: the page asks no other server for anything.
FONTS = ["system-ui", "sans-serif"]
MONOSPACED = ["ui-monospace", "monospace"]

LARGEST_UPLOAD = "8mb"
LARGEST_QUEUE = 64
LARGEST_SESSIONS = 500  # half a MB each
FOLDER = Path(__file__).parent
TABS = (generate, forward, reverse, schedule, edit, equations, model)

TITLE = Both("Images out of noise", "从噪声到图像")
INTRODUCTION = Both(
    "A diffusion model begins with noise and takes a little of it away at every step, until an image is left.",
    "扩散模型从噪声出发，每一步去除一点噪声，最终得到图像。",
)

# The language is that of the page from the first word on, for readers of screens as well.
IN_LANGUAGE = "(language) => { document.documentElement.lang = language; return [language]; }"


def build_demo() -> gr.Blocks:
    """The page and its API."""
    # Previews are files as well; nobody asks for one that is an hour old.
    with AnsweringBlocks(title="ddpm_hub", analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        add_endpoints()  # first: what the tabs do privately must not take their names
        words = Words()
        with gr.Row(elem_id="top"):
            with gr.Column(scale=3, min_width=300):
                gr.HTML(f"<h1>{TITLE.html}</h1><p>{INTRODUCTION.html}</p>", elem_id="introduction")
            titles = [served_models.title(name) for name in served_models.names()]
            label = Both("Model", "模型")
            chosen = words(gr.Dropdown, titles, value=titles[0], label=label, filterable=False, min_width=160)
            language = gr.Radio(LANGUAGES, value="en", label="Language / 语言", elem_id="language", min_width=200)
        problem = gr.HTML(elem_id="problem")
        asked, link = gr.State(None), gr.Textbox(visible="hidden")
        loaded = demo.load(opened, None, [language, chosen, asked, link], **LIGHT)
        loaded.then(None, language, None, js=IN_LANGUAGE, **LIGHT)
        page = Page(demo, words, language, chosen, loaded, asked, link)
        with gr.Tabs():
            for tab in TABS:
                tab.build(page)
        language.change(words.in_language, language, words.components, js=IN_LANGUAGE, **LIGHT)
        page.when_model_is_known(check_model, problem)
        page.fill()
    return demo


def theme() -> gr.themes.Base:
    """Quiet: the pictures are what one looks at."""
    return gr.themes.Base(
        primary_hue="indigo", neutral_hue="slate", radius_size="sm", font=FONTS, font_mono=MONOSPACED
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_title_text_weight="600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        slider_color="*primary_600",
        slider_color_dark="*primary_400",
    )


def check_model(model: str) -> str:
    """What to do where a model does not load, as HTML; nothing where it does."""
    try:
        served_models.pipeline(model)
    except InvalidRequestError as error:
        return f'<p role="alert">{error.message.html}</p>'
    return ""


def opened(request: gr.Request) -> tuple:
    """The language that the visitor's browser asks for, and what the link says."""
    query = dict(request.query_params)
    preferred = query.get("lang") or request.headers.get("accept-language", "")
    language = "zh" if preferred.lower().startswith("zh") else "en"
    titles = [served_models.title(name) for name in served_models.names()]
    model = query["model"] if query.get("model") in titles else gr.skip()
    # What a link says of a model that is not here is refused when it is drawn, and not meant for those that are.
    here = query.get("model", titles[0]) in titles
    asked = {name: value for name, value in query.items() if here or name == "seed"}
    return language, model, asked, urlencode(query) if "seed" in query else ""


async def refusal(request: Request, error: HTTPException) -> JSONResponse:
    """What a visitor hears whom the server itself turns away; where the queue is full, what to do."""
    detail = BUSY if error.status_code == 503 else error.detail
    return JSONResponse({"detail": detail}, error.status_code, error.headers)


async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
    """What a caller hears whose request has not the form that Gradio wants; FastAPI itself would send all of it back."""
    return JSONResponse({"detail": f"{MEANINGLESS.en} {MEANINGLESS.zh}"}, 422)


def main() -> None:
    """Serves the page until it is stopped."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger().handlers[0].addFilter(WithoutMessages())
    for noisy in ("httpx", "httpx2", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Gradio's own figures of its requests are a table that it would make anew at each of them.
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(sys.maxsize)
    # Drawings share the cores. Each one with a team of threads for all of them is slower, even alone: on a core that another
    # team has, OpenMP's threads sleep between two operations.
    torch.set_num_threads(max(1, torch.get_num_threads() // DRAWINGS_AT_A_TIME))
    demo = build_demo()
    # The first visitor need not wait for it. On ZeroGPU all: its processes are copies of this one.
    for name in served_models.names()[: None if ON_ZERO_GPU else 1]:
        with contextlib.suppress(InvalidRequestError):  # the page says it, and the log has it
            served_models.load(name)
    demo.queue(max_size=LARGEST_QUEUE, api_open=False)
    demo.launch(
        theme=theme(),
        css_paths=[FOLDER / "page.css"],
        footer_links=["api"],
        max_file_size=LARGEST_UPLOAD,
        allowed_paths=[str(FOLDER / "example_images")],
        app_kwargs={
            "exception_handlers": {HTTPException: refusal, RequestValidationError: malformed},
            "middleware": [Middleware(Guard)],
        },
        state_session_capacity=LARGEST_SESSIONS,
        enable_monitoring=False,
        mcp_server=True,
        run_history=False,
        ssr_mode=False,
        prevent_thread_lock=True,
    )
    shorten_refusals(demo.mcp_server_obj.mcp_server)
    demo.block_thread()


if __name__ == "__main__":
    main()
