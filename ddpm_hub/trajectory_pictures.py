"""Pictures of how samples come about: a film strip, and an animated GIF or WebP."""

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from .ddpm_argument_checks import check_integer
from .ddpm_equations import denormalize
from .ddpm_trajectories import DDPMHubState

SMALLEST_SIDE = 64  # of an image in a picture; smaller ones are enlarged by whole numbers
GAP, CAPTION_HEIGHT, MARGIN = 4, 18, 52
HELD_MILLISECONDS = 1500  # how long an animation shows its end
# Pillow's own font has no hat to put on an x.
_ROWS = (("x_t", "sample"), ("x_0 est.", "pred_original_sample"))


def film_strip(states: Iterable[DDPMHubState], frames: int = 10) -> Image.Image:
    """The steps of a trajectory from left to right: of every image a row of x_t and one of x̂_0.

    Args:
        states (iterable of [`DDPMHubState`]): what `stream` gives; a generator is drained, and only what is shown is kept.
        frames (`int`, defaults to 10): how many steps are shown, evenly spaced, the first and the last among them.

    Returns:
        `PIL.Image.Image` in RGB, each column under the t at which the network was asked.

    Raises:
        ValueError: if there is no state, or for `frames` below 1.
    """
    chosen = chosen_states(states, frames)
    batch, _, height, width = chosen[0].sample.shape
    scale = _scale(height, width)
    height, width = height * scale, width * scale
    size = (MARGIN + len(chosen) * (width + GAP), CAPTION_HEIGHT + 2 * batch * (height + GAP))
    strip = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(strip)
    for column, state in enumerate(chosen):
        left = MARGIN + column * (width + GAP)
        pen.text((left + width / 2, CAPTION_HEIGHT / 2), f"t={state.timestep}", fill="black", anchor="mm", font_size=11)
        for row, (_, name) in enumerate(_ROWS):
            for i, image in enumerate(_pictures(getattr(state, name), scale)):
                strip.paste(image, (left, CAPTION_HEIGHT + (2 * i + row) * (height + GAP)))
    for i in range(batch):
        for row, (title, _) in enumerate(_ROWS):
            middle = CAPTION_HEIGHT + (2 * i + row) * (height + GAP) + height / 2
            pen.text((MARGIN / 2, middle), title, fill="black", anchor="mm", font_size=11)
    return strip


def save_animation(
    states: Iterable[DDPMHubState],
    path: str | Path,
    frames: int = 40,
    milliseconds: int = 80,
    columns: int | None = None,
) -> Path:
    """Writes a trajectory as an animated GIF or WebP: all images of the batch, x_t on the left and x̂_0 on the right.

    Args:
        states: as in [`film_strip`].
        path (`str` or `Path`): ends in `.gif` or `.webp`; the file is whole or not there.
        frames (`int`, defaults to 40): how many steps are shown at most.
        milliseconds (`int`, defaults to 80): how long each is shown; the last one stays.
        columns (`int`, *optional*): images in a row, by default as many as make a square.

    Raises:
        ValueError: for another ending of the name, a number that is not positive, or if there is no state.
    """
    path = Path(path)
    if path.suffix.lower() not in (".gif", ".webp"):
        raise ValueError(f"`path` is {str(path)!r}; it must end in .gif or .webp.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"`path` is {str(path)!r}: there is no folder {str(path.parent)!r}.")
    check_integer("milliseconds", milliseconds, 1, 65535)
    check_integer("columns", 1 if columns is None else columns, 1, math.inf)
    chosen = chosen_states(states, frames)
    batch = len(chosen[0].sample)
    columns = math.isqrt(batch - 1) + 1 if columns is None else min(columns, batch)
    pictures = [_frame(state, columns) for state in chosen]
    partial = path.with_name(f"{path.name}.partial")
    options = {"lossless": True} if path.suffix.lower() == ".webp" else {}
    durations = [milliseconds] * (len(pictures) - 1) + [max(milliseconds, HELD_MILLISECONDS)]
    pictures[0].save(
        partial,
        format=path.suffix[1:],
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
        **options,
    )
    partial.replace(path)
    return path


def chosen_states(states: Iterable[DDPMHubState], frames: int) -> list[DDPMHubState]:
    """At most `frames` of the states, evenly spaced by their number, the last among them."""
    check_integer("frames", frames, 1, math.inf)
    chosen, last = [], None
    for state in states:
        last = state
        count = min(frames, state.num_steps)
        wanted = {round(i * (state.num_steps - 1) / (count - 1)) for i in range(count)} if count > 1 else set()
        if state.step in wanted:
            chosen.append(state)
    if last is None:
        raise ValueError("`states` is empty: there is nothing to show.")
    return chosen if chosen and chosen[-1] is last else [*chosen[: frames - 1], last]


def _frame(state: DDPMHubState, columns: int) -> Image.Image:
    """All images of a state, x_t left and x̂_0 right."""
    batch, _, height, width = state.sample.shape
    scale = _scale(height, width)
    height, width = height * scale, width * scale
    rows, half = -(-batch // columns), columns * (width + GAP)
    frame = Image.new("RGB", (2 * half + 3 * GAP, CAPTION_HEIGHT + rows * (height + GAP)), "white")
    pen = ImageDraw.Draw(frame)
    for side, (title, name) in enumerate(_ROWS):
        left = GAP + side * (half + GAP)
        caption = f"{title}, t={state.timestep}" if side == 0 else title
        pen.text((left + half / 2, CAPTION_HEIGHT / 2), caption, fill="black", anchor="mm", font_size=11)
        for i, image in enumerate(_pictures(getattr(state, name), scale)):
            frame.paste(image, (left + i % columns * (width + GAP), CAPTION_HEIGHT + i // columns * (height + GAP)))
    return frame


def _scale(height: int, width: int) -> int:
    return max(1, -(-SMALLEST_SIDE // min(height, width)))


def _pictures(sample: torch.Tensor, scale: int) -> list[Image.Image]:
    """Images of a sample, in RGB; of channels that PIL has no mode for, the first one."""
    pixels = denormalize(sample).cpu()
    pixels = pixels[:, :3] if pixels.shape[1] in (3, 4) else pixels[:, :1].expand(-1, 3, -1, -1)
    arrays = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3).permute(0, 2, 3, 1).contiguous().numpy()
    return [Image.fromarray(array) for array in arrays]
