"""The web demo. `python space/app.py` serves it; the model is loaded when the first page is opened."""

import asyncio
import html
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import gradio as gr
import inference

# Fonts of the visitor's system: the page asks no other server for anything.
FONTS = ["system-ui", "sans-serif"]
MONOSPACED = ["ui-monospace", "monospace"]

VISITORS_AT_ONCE = 4  # further ones wait for their turn

INTRODUCTION = """# Images out of noise
A diffusion model begins with noise and takes a little of it away at every step, until an image is left.
Choose a class, press **Generate** and watch."""

WAITING = "Waiting for a free place …"
UNDER_WAY = "Step "

# Gradio's gallery scrolls inside a box of fixed height and has fewer columns on a phone; here all images are seen at
# once, and small ones keep their pixels sharp.
CSS = """
.gradio-container { width: 100% !important; max-width: 1160px !important; margin: auto !important; }
#samples .grid-wrap { max-height: none; min-height: 0; height: auto; overflow: visible; }
#samples .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)); grid-auto-rows: auto; gap: 8px; }
#samples .thumbnail-item { aspect-ratio: 1; height: auto; }
#samples img { image-rendering: pixelated; }
#status { font-variant-numeric: tabular-nums; min-height: 52px; }
#status progress { appearance: none; display: block; width: 100%; height: 6px; margin-top: 6px; border: 0; }
#status progress::-webkit-progress-bar { background: var(--border-color-primary); border-radius: 3px; }
#status progress::-webkit-progress-value { background: var(--color-accent); border-radius: 3px; }
#status progress::-moz-progress-bar { background: var(--color-accent); }
"""


def open_page() -> tuple:
    """The controls' ranges, from the model; or the sentence that says what to run where there is none."""
    try:
        choices, steps, own = inference.class_choices(), inference.largest_steps(), inference.default_steps()
    except inference.InvalidRequestError as error:
        return gr.skip(), gr.skip(), gr.update(interactive=False), html.escape(str(error))
    return (
        gr.update(choices=choices, value=choices[0]),
        gr.update(maximum=steps, value=own),
        gr.update(interactive=True),
        f"Ready. Model: {html.escape(Path(inference.model_name()).name)}",
    )


async def generate(class_name: str, count: int, num_steps: int, seed: int, random_seed: bool) -> AsyncIterator[tuple]:
    """Draws images of a class; streams the images on the way, the first image's seed, and the progress."""
    frames = inference.generate(class_name, count, num_steps, seed, random_seed)
    try:
        while frame := await _next(frames):
            if frame.images:
                yield frame.images, frame.seeds[0], _describe(frame)
        return
    except inference.InvalidRequestError as error:
        refusal = str(error)
    except Exception:
        logging.getLogger(__name__).exception("the images could not be drawn")
        refusal = "The model failed to draw these images; the server's log says why."
    finally:
        frames.close()
    yield gr.skip(), gr.skip(), html.escape(refusal)
    raise gr.Error(refusal, print_exception=False)


async def _next(frames: Iterator[inference.Frame]) -> inference.Frame | None:
    """The next frame, computed in a thread; `None` after the last one.

    Stop cancels this wait at any time, and a generator that is running cannot be closed: the step is waited for.
    """
    step = asyncio.ensure_future(asyncio.to_thread(next, frames, None))
    try:
        return await asyncio.shield(step)
    finally:
        await asyncio.wait([step])


def _describe(frame: inference.Frame) -> str:
    if frame.step < frame.num_steps:
        bar = f'<progress max="{frame.num_steps}" value="{frame.step}"></progress>'
        return f"{UNDER_WAY}{frame.step} of {frame.num_steps}{bar}"
    first, last = frame.seeds[0], frame.seeds[-1]
    return f"Done in {frame.num_steps} steps, from seed {first}" + (f" to {last}." if first != last else ".")


def _conclude(status: str):
    """What the page says after a run: what the run said last, if that was an end."""
    return "Stopped." if status.startswith((WAITING, UNDER_WAY)) else gr.skip()


def build_demo() -> gr.Blocks:
    # Previews are files as well; nobody asks for one that is an hour old.
    with gr.Blocks(title="ddpm_hub", analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                # Custom values: Gradio knows the classes of the model only on a page that has loaded, not in its API.
                class_name = gr.Dropdown(
                    [inference.ANY_CLASS], value=inference.ANY_CLASS, label="Class", allow_custom_value=True
                )
                count = gr.Slider(1, inference.LARGEST_COUNT, value=8, step=1, label="Images", buttons=[])
                num_steps = gr.Slider(
                    1, 1000, value=100, step=1, label="Steps", info="Fewer are faster, more are finer.", buttons=[]
                )
                seed = gr.Number(0, label="Seed", info="The same seed draws the same images.")
                random_seed = gr.Checkbox(True, label="Random seed")
                with gr.Row():
                    run = gr.Button("Generate", variant="primary", interactive=False, min_width=100)
                    stop = gr.Button("Stop", min_width=100)
            with gr.Column(scale=5, min_width=300):
                status = gr.HTML("Loading the model …", elem_id="status", padding=False)
                gallery = gr.Gallery(
                    label="Samples",
                    show_label=False,
                    height="auto",
                    format="png",
                    buttons=["download", "fullscreen"],
                    elem_id="samples",
                )
        at_once = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
        started = run.click(lambda: WAITING, None, status, **at_once).then(
            generate,
            [class_name, count, num_steps, seed, random_seed],
            [gallery, seed, status],
            api_name="generate",
            show_progress="hidden",
            concurrency_limit=VISITORS_AT_ONCE,
        )
        # Said after the run has ended: a preview that was still on its way would write over what the button itself says.
        started.then(_conclude, status, status, **at_once)
        stop.click(None, None, None, cancels=[started], **at_once)
        demo.load(open_page, None, [class_name, num_steps, run, status], **at_once)
    return demo


def main() -> None:
    theme = gr.themes.Soft(font=FONTS, font_mono=MONOSPACED)
    build_demo().launch(theme=theme, css=CSS, footer_links=[])


if __name__ == "__main__":
    main()
