"""Draws with a served model, step by step: what is asked for is checked first, and what comes out are pixels."""

import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import served_models
from both_languages import Both
from gpu_lease import on_gpu
from pictures import pixels_of
from request_checks import LARGEST_SEED, InvalidRequestError, choice, number, whole_number

from ddpm_hub import DDPMHubPipeline, save_animation

LARGEST_COUNT = 16
LARGEST_CALLS = 16_000  # images times steps
LARGEST_GUIDANCE = 10.0
ANY_CLASS = "any"
SAMPLERS = {
    "ddpm": "DDPM",
    "ddim": "DDIM",
    "dpm++": "DPM-Solver++ 2M",
    "sde-dpm++": "SDE-DPM-Solver++ 2M",
    "unipc": "UniPC",
}
USUAL_STEPS = 50
PREVIEW_SECONDS = 0.25
LARGEST_KEPT, LARGEST_KEPT_BYTES = 64, 2**20
SEED = Both("Seed", "随机种子")

_kept: OrderedDict[str, "Frame"] = OrderedDict()
_keeping = threading.Lock()


@dataclass(frozen=True)
class Drawing:
    """What is to be drawn, checked.

    Attributes:
        model (`str`): a name of `served_models.names()`.
        method (`str`): what streams it: a method of `DDPMHubPipeline`.
        options (`dict`): the arguments of that method.
        seeds (`list[int]`): the seed of each image.
        calls (`int`): how often an image goes through the network: what it costs.
    """

    model: str
    method: str
    options: dict
    seeds: list[int]
    calls: int

    def described(self) -> dict:
        """What a log says of it: numbers and choices, no images."""
        numbers = {name: value for name, value in self.options.items() if isinstance(value, int | float | str)}
        return {"model": served_models.title(self.model), **numbers, "first_seed": self.seeds[0]}


@dataclass(frozen=True)
class Frame:
    """What is known after a step.

    Attributes:
        step, num_steps (`int`): the number of steps done, 1 to `num_steps`.
        timestep (`int`): t = 1…T of x_t, from which the step led.
        seconds (`float`): since the first step began.
        sample (`numpy.ndarray` or `None`): what the step led to, uint8, shape (B, H, W, C); `None` between two previews.
        original (`numpy.ndarray` or `None`): x̂_0 that the network saw in x_t, likewise.
    """

    step: int
    num_steps: int
    timestep: int
    seconds: float
    sample: np.ndarray | None = field(repr=False)
    original: np.ndarray | None = field(repr=False)


def classes(pipeline: DDPMHubPipeline) -> list[str]:
    """What can be asked of a model: "any", then the names of its classes; only "any" of an unconditional one."""
    return [ANY_CLASS, *pipeline.id2label.values()]


def own_settings(pipeline: DDPMHubPipeline) -> tuple[str, int, float]:
    """The sampler, the steps and the guidance that a model is best sampled with, where it says so."""
    own = pipeline.config.sampling or {}
    steps = own.get("num_inference_steps", 100)
    return own.get("sampler", "ddpm"), min(steps, len(pipeline.scheduler)), own.get("guidance_scale", 1.0)


def class_label(pipeline: DDPMHubPipeline, class_name: object) -> int | None:
    """The number of a class, `None` for "any"."""
    allowed = classes(pipeline)
    label = allowed.index(choice(Both("Class", "类别"), class_name, allowed)) - 1
    return None if label < 0 else label


def sampling_options(
    pipeline: DDPMHubPipeline,
    class_name: object,
    sampler: object,
    num_steps: object,
    guidance: object,
    samplers: tuple[str, ...] = tuple(SAMPLERS),
) -> dict:
    """The arguments that all ways of drawing share, checked; `None` stands for the model's own.

    Where the model's own sampler is not among `samplers`, it is the first of them with 50 steps.
    """
    own, own_steps, own_guidance = own_settings(pipeline)
    label = class_label(pipeline, ANY_CLASS if class_name is None else class_name)
    if sampler is None:
        sampler = own if own in samplers else samplers[0]
    if num_steps is None:
        num_steps = own_steps if sampler == own else min(USUAL_STEPS, len(pipeline.scheduler))
    scale = number(Both("Guidance", "引导强度"), own_guidance if guidance is None else guidance, 0, LARGEST_GUIDANCE)
    return {
        "class_labels": label,
        "sampler": choice(Both("Sampler", "采样器"), sampler, samplers),
        "num_inference_steps": whole_number(Both("Steps", "步数"), num_steps, 1, len(pipeline.scheduler)),
        "guidance_scale": 1.0 if label is None else scale,
    }


def random_seed() -> int:
    """Another seed each time."""
    return secrets.randbelow(LARGEST_SEED + 1)


def checked_seed(seed: object, name: Both = SEED) -> int:
    """A seed as an `int`."""
    return whole_number(name, seed, 0, LARGEST_SEED)


def checked_seeds(seed: object, count: int) -> list[int]:
    """The seed of each image: `seed + i` (mod 2³²)."""
    seed = checked_seed(seed)
    return [(seed + i) % (LARGEST_SEED + 1) for i in range(count)]


def checked_calls(calls: int) -> int:
    """How often an image goes through the network, if that is not too often.

    Raises:
        InvalidRequestError: if it is.
    """
    if calls > LARGEST_CALLS:
        raise InvalidRequestError(
            f"This asks for {calls} steps of an image; at most {LARGEST_CALLS}: take fewer images, steps or resamplings.",
            f"共需 {calls} 次单图像步进，上限为 {LARGEST_CALLS}：请减少图像数、步数或重采样次数。",
        )
    return calls


def checked_count(count: object) -> int:
    """How many images, as an `int`."""
    return whole_number(Both("Images", "图像数"), count, 1, LARGEST_COUNT)


def image_drawing(
    model: str | None = None,
    class_name: str | None = None,
    count: int = 8,
    sampler: str | None = None,
    num_steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
) -> Drawing:
    """New images of a class; image i comes from the seed `seed + i` (mod 2³²) alone.

    Args:
        model (`str`, *optional*): the title of a served model, by default the first.
        class_name (`str`, *optional*): one of its classes, or "any".
        count (`int`): 1 to 16 images.
        sampler, num_steps, guidance (*optional*): one of [`SAMPLERS`], 1 to T, and 0 to 10; by default the model's own.
        seed (`int`): 0 to 2³² − 1.

    Raises:
        InvalidRequestError: for a value outside its range or a model that does not load.
    """
    name = served_models.by_title(model)
    options = sampling_options(served_models.load(name), class_name, sampler, num_steps, guidance)
    count = checked_count(count)
    seeds = checked_seeds(seed, count)
    options |= {"batch_size": count, "seed": seeds}
    return Drawing(name, "stream", options, seeds, checked_calls(count * options["num_inference_steps"]))


def lease_seconds(drawing: Drawing, *_, **__) -> int:
    """How long a GPU is asked for: 50 ms for each call of the network, and 10 s to begin; two minutes at most."""
    images = drawing.options.get("batch_size") or drawing.options["count"]
    return min(120, 10 + drawing.calls // images * 50 // 1000)


@on_gpu(duration=lease_seconds)
def frames(drawing: Drawing, preview_seconds: float = PREVIEW_SECONDS) -> Iterator[Frame]:
    """Draws; gives a frame after every step, so that closing this generator ends the work within a step.

    Args:
        drawing (`Drawing`): what to draw.
        preview_seconds (`float`): a frame has pixels when this time has passed since the last that had; the first and
            the last one have them always.

    Raises:
        InvalidRequestError: at the first `next`, for what the model itself refuses.
    """
    pipeline = served_models.load(drawing.model)
    try:
        states = getattr(pipeline, drawing.method)(**drawing.options)
    except ValueError as error:
        raise InvalidRequestError(str(error), "模型拒绝了这个请求。") from error
    begun, shown = time.monotonic(), float("-inf")
    with closing(states):
        for state in states:
            now = time.monotonic()
            visible = state.step + 1 == state.num_steps or now - shown >= preview_seconds
            shown = now if visible else shown
            yield Frame(
                step=state.step + 1,
                num_steps=state.num_steps,
                timestep=state.timestep + 1,
                seconds=now - begun,
                sample=pixels_of(state.sample) if visible else None,
                original=pixels_of(state.pred_original_sample) if visible else None,
            )


def finished(asked: Drawing) -> Frame:
    """The last frame of a drawing of new images, drawn only if it was not drawn lately."""
    if (frame := kept(asked)) is None:
        *_, frame = frames(asked)
        keep(asked, frame)
    return frame


def keep(asked: Drawing, frame: Frame) -> None:
    """Keeps the last frame of a drawing: examples and links are asked for often. Of large images none is kept."""
    if asked.method == "stream" and frame.sample.nbytes <= LARGEST_KEPT_BYTES:
        with _keeping:
            _kept[_key(asked)] = frame
            if len(_kept) > LARGEST_KEPT:
                _kept.popitem(last=False)


def kept(asked: Drawing) -> Frame | None:
    """The last frame of a drawing of new images, if it was drawn lately."""
    with _keeping:
        if _key(asked) in _kept:
            _kept.move_to_end(_key(asked))
        return _kept.get(_key(asked))


def _key(asked: Drawing) -> str:
    return json.dumps([asked.model, asked.method, asked.options], sort_keys=True)


@on_gpu(duration=lease_seconds)
def animation(drawing: Drawing, path: Path) -> Path:
    """Draws again, and writes the way there as an animated WebP: x_t on the left, x̂_0 on the right."""
    pipeline = served_models.load(drawing.model)
    with closing(getattr(pipeline, drawing.method)(**drawing.options)) as states:
        return save_animation(states, path, columns=min(4, len(drawing.seeds)))
