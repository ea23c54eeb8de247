"""Where a drawing is shown: progress, x_t and x̂_0, and the images at the end."""

from collections.abc import AsyncIterator, Callable

import drawing
import gradio as gr
from answers import answering
from both_languages import Both
from drawing import Drawing, Frame
from page import LIGHT, NETWORK, Page
from pictures import as_image, enlarged

from tabs.streaming import WAITING, conclude, finished, frames, panels, progress


class Results:
    """The components that a drawing fills.

    Args:
        page (`Page`): where they stand.
        name (`str`): begins their `elem_id`s.
    """

    def __init__(self, page: Page, name: str):
        self.status = gr.HTML(elem_id=f"{name}-status", elem_classes="status")
        self.live = gr.HTML(panels(), elem_id=f"{name}-live")
        self.gallery = page.words(
            gr.Gallery,
            label=Both("The images", "生成的图像"),
            show_label=False,
            columns=4,
            height="auto",
            format="png",
            buttons=["download", "fullscreen"],
            elem_id=f"{name}-images",
            elem_classes="images",
        )

    def drawn_by(self, run: gr.Button, stop: gr.Button, function: Callable, inputs: list) -> None:
        """Has a button fill them by `function(*inputs)`, a generator of (live, gallery, status), and another one stop it."""
        draws([run.click], stop, function, inputs, [self.live, self.gallery, self.status], self.status)


def draws(triggers: list, stop: gr.Button, function: Callable, inputs: list, outputs: list, status: gr.HTML) -> None:
    """The events of a drawing: it waits for its turn, is drawn, can be stopped, and says how it ended."""
    started = gr.on(triggers, lambda: WAITING, None, status, **LIGHT).then(function, inputs, outputs, **NETWORK)
    # Said after the run has ended: a preview that was still on its way would write over what the button itself says.
    started.then(conclude, status, status, **LIGHT)
    stop.click(None, None, None, cancels=[started], **LIGHT)


async def drawn_images(action: str, make: Callable[[], Drawing]) -> AsyncIterator[tuple]:
    """Draws what `make()` asks for; streams x_t and x̂_0, then the images, and the progress."""
    try:
        with answering(action) as settings:
            asked = make()
            settings |= asked.described()
            yield panels(), None, gr.skip()
            async with frames(asked) as drawn:
                async for frame in drawn:
                    # Not for every step: a page that cannot keep up with what it is told shows none of it.
                    if frame.sample is not None and frame.step < frame.num_steps:
                        yield panels(frame), gr.skip(), progress(frame)
            drawing.keep(asked, frame)
            yield panels(frame), captioned(frame, asked), finished(frame)
    except gr.Error as error:
        yield gr.skip(), gr.skip(), f"<p>{error.message}</p>"
        raise


def captioned(frame: Frame, asked: Drawing) -> list[tuple]:
    """What a gallery shows: the images, each under its seed; those between two seeds under their share of the second."""
    last = len(frame.sample) - 1
    if asked.method == "stream_interpolate":
        captions = [f"{i / last:.0%}" for i in range(last + 1)]
    else:
        captions = [str(seed) for seed in asked.seeds]
    return [(enlarged(as_image(pixels)), text) for pixels, text in zip(frame.sample, captions, strict=True)]
