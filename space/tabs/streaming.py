"""A drawing as it comes about: x_t and x̂_0 side by side, the step, and the time that is left."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager

import drawing
import gradio as gr
from both_languages import Both
from drawing import PREVIEW_SECONDS, Drawing, Frame
from pictures import png_address, sheet

WAITING = f'<p class="under-way">{Both("Waiting for a free place …", "正在等待空位……").html}</p>'
_STOPPED = Both("Stopped.", "已停止。").html


@asynccontextmanager
async def frames(asked: Drawing, preview_seconds: float = PREVIEW_SECONDS) -> AsyncIterator[AsyncIterator[Frame]]:
    """The frames of a drawing, computed in a thread; whoever leaves waits for the step under way, and no longer."""
    async with aclosing(_in_a_thread(drawing.frames(asked, preview_seconds))) as drawn:
        yield drawn


async def _in_a_thread(drawn: Iterator[Frame]) -> AsyncIterator[Frame]:
    try:
        while frame := await _next(drawn):
            yield frame
    finally:
        drawn.close()


async def _next(drawn: Iterator[Frame]) -> Frame | None:
    """The next frame, `None` after the last one.

    Stop cancels this wait at any time, and a generator that is running cannot be closed: the step is waited for.
    """
    step = asyncio.ensure_future(asyncio.to_thread(next, drawn, None))
    try:
        return await asyncio.shield(step)
    finally:
        await asyncio.wait([step])


def panels(frame: Frame | None = None) -> str:
    """x_t and x̂_0 of a frame, as HTML; empty frames before there is one."""
    captions = (
        ("x<sub>t</sub>", Both("what there is: noise that is taken away", "当前样本：噪声逐步被去除")),
        ("x̂<sub>0</sub>", Both("what the network takes it to become", "网络对最终图像的估计")),
    )
    arrays = (None, None) if frame is None else (frame.sample, frame.original)
    figures = [
        f'<figure>{_picture(pixels, symbol)}<figcaption><b class="symbol">{symbol}</b> {text.html}</figcaption></figure>'
        for (symbol, text), pixels in zip(captions, arrays, strict=True)
    ]
    return f'<div class="panels">{"".join(figures)}</div>'


def _picture(pixels, symbol: str) -> str:
    if pixels is None:
        return '<div class="empty"></div>'
    plain = symbol.replace("<sub>", "_").replace("</sub>", "")
    image = sheet(pixels)
    return (
        f'<img class="pixels" width="{image.width}" height="{image.height}" src="{png_address(image)}" alt="{plain}">'
    )


def progress(frame: Frame) -> str:
    """The step and the time that is left, as HTML."""
    left = frame.seconds / frame.step * (frame.num_steps - frame.step)
    text = Both(
        f"Step {frame.step} of {frame.num_steps}, {left:.1f} s left",
        f"第 {frame.step} 步，共 {frame.num_steps} 步，剩余 {left:.1f} 秒",
    )
    bar = f'<progress max="{frame.num_steps}" value="{frame.step}" aria-label="{frame.step}/{frame.num_steps}"></progress>'
    return f'<p class="under-way">{text.html}</p>{bar}'


def finished(frame: Frame, en: str = "", zh: str = "") -> str:
    """What the page says after the last step, as HTML."""
    text = Both(
        f"Done: {frame.num_steps} steps in {frame.seconds:.1f} s{en}.",
        f"完成：{frame.num_steps} 步，用时 {frame.seconds:.1f} 秒{zh}。",
    )
    return f"<p>{text.html}</p>"


def conclude(status: str) -> str | dict:
    """What the page says after a run: what the run said last, if that was an end."""
    return f"<p>{_STOPPED}</p>" if 'class="under-way"' in status else gr.skip()
