"""The web demo. `python space/app.py` serves it; the model is loaded when the first page is opened."""

import gradio as gr
import inference

# Fonts of the visitor's system: the page asks no other server for anything.
FONTS = ["system-ui", "sans-serif"]
MONOSPACED = ["ui-monospace", "monospace"]

INTRODUCTION = """# ddpm_hub
Images out of noise: a denoising diffusion probabilistic model draws one small step at a time. Choose a class and watch.
"""


def open_page() -> tuple:
    """The controls' ranges, from the model; or the sentence that says what to run where there is none."""
    try:
        choices, steps = inference.class_choices(), inference.largest_steps()
    except inference.InvalidRequestError as error:
        return gr.update(), gr.update(), gr.update(interactive=False), f"**{error}**"
    return (
        gr.update(choices=choices, value=choices[0]),
        gr.update(maximum=steps, value=min(100, steps)),
        gr.update(interactive=True),
        f"Model: `{inference.model_name()}`",
    )


def generate(class_name: str, count: int, num_steps: int, seed: int, random_seed: bool):
    """Draws images of a class; streams the images on the way, the seed that was used, and the progress."""
    try:
        for frame in inference.generate(class_name, count, num_steps, seed, random_seed):
            gallery = [(image, f"seed {s}") for image, s in zip(frame.images, frame.seeds, strict=True)]
            finished = frame.step == frame.num_steps
            status = f"Done: {frame.num_steps} steps." if finished else f"Step {frame.step} of {frame.num_steps} …"
            yield gallery, frame.seeds[0], status
    except inference.InvalidRequestError as error:
        raise gr.Error(str(error), print_exception=False) from error


def build_demo() -> gr.Blocks:
    with gr.Blocks(title="ddpm_hub", analytics_enabled=False) as demo:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                class_name = gr.Dropdown([inference.ANY_CLASS], value=inference.ANY_CLASS, label="Class")
                count = gr.Slider(1, inference.LARGEST_COUNT, value=8, step=1, label="Images")
                num_steps = gr.Slider(1, 1000, value=100, step=1, label="Steps")
                seed = gr.Number(0, precision=0, minimum=0, maximum=inference.LARGEST_SEED, label="Seed")
                random_seed = gr.Checkbox(True, label="Random seed")
                with gr.Row():
                    run = gr.Button("Generate", variant="primary")
                    stop = gr.Button("Stop")
            with gr.Column(scale=2, min_width=320):
                gallery = gr.Gallery(
                    label="Samples", columns=4, height="auto", object_fit="contain", format="png", elem_id="samples"
                )
                status = gr.Markdown(elem_id="status")
        started = run.click(
            generate,
            [class_name, count, num_steps, seed, random_seed],
            [gallery, seed, status],
            api_name="generate",
            show_progress="hidden",
        )
        stop.click(lambda: "Stopped.", None, status, cancels=[started], api_visibility="private", queue=False)
        demo.load(open_page, None, [class_name, num_steps, run, status], api_visibility="private")
    return demo


def main() -> None:
    theme = gr.themes.Soft(font=FONTS, font_mono=MONOSPACED)
    build_demo().launch(theme=theme, footer_links=["api"])


if __name__ == "__main__":
    main()
