"""What the demo computes: a model is loaded once, samples are drawn step by step. No interface code."""

import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image

from ddpm_hub import DDPMHubPipeline

DEFAULT_MODEL = "outputs/digits"
LARGEST_COUNT = 16
LARGEST_SEED = 2**32 - 1
ANY_CLASS = "any"
PREVIEW_SECONDS = 0.25
SMALLEST_SIDE = 224

_loaded: dict[str, DDPMHubPipeline] = {}
_loading = threading.Lock()


class InvalidRequestError(ValueError):
    """A request that cannot be served; the message is for the visitor."""


@dataclass(frozen=True)
class Frame:
    """What is known after some steps.

    Attributes:
        step (`int`): the number of steps done, of `num_steps`.
        images (`list[PIL.Image.Image]`): x_t on the way; the finished images when `step == num_steps`.
        seeds (`list[int]`): the seed of each image.
    """

    step: int
    num_steps: int
    images: list[Image.Image]
    seeds: list[int]


def model_name() -> str:
    """The folder or Hub repository that is served: the environment variable DDPM_HUB_MODEL, or the default run's."""
    return os.environ.get("DDPM_HUB_MODEL", DEFAULT_MODEL)


def load_pipeline() -> DDPMHubPipeline:
    """The served model, loaded at the first call.

    Raises:
        InvalidRequestError: in one sentence, what to run where there is no model.
    """
    name = model_name()
    with _loading:
        if name not in _loaded:
            try:
                pipeline = DDPMHubPipeline.from_pretrained(name)
            except (OSError, ValueError) as error:
                raise InvalidRequestError(
                    f"There is no trained model at {name!r}: run `make train`, or set DDPM_HUB_MODEL to a model's folder."
                ) from error
            pipeline.set_progress_bar_config(disable=True)
            _loaded[name] = pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
        return _loaded[name]


def class_choices() -> list[str]:
    """What a visitor can ask for: the names of the classes, after "any"; only that for an unconditional model."""
    return [ANY_CLASS, *load_pipeline().id2label.values()]


def largest_steps() -> int:
    """T, the most steps that can be asked for."""
    return len(load_pipeline().scheduler)


def generate(class_name: str, count: int, num_steps: int, seed: int, random_seed: bool) -> Iterator[Frame]:
    """Draws images; yields a frame now and then, and the finished one last.

    Args:
        class_name (`str`): one of [`class_choices`].
        count (`int`): 1 to 16 images; image i comes from the seed `seed + i` alone.
        num_steps (`int`): 1 to T reverse steps.
        seed (`int`): 0 to 2³² − 1.
        random_seed (`bool`): take a fresh seed in place of `seed`.

    Raises:
        InvalidRequestError: for a value outside its range.
    """
    pipeline = load_pipeline()
    choices = class_choices()
    if class_name not in choices:
        raise InvalidRequestError(f"Class is {class_name!r}; it must be one of {', '.join(choices)}.")
    count = _whole_number("Images", count, 1, LARGEST_COUNT)
    num_steps = _whole_number("Steps", num_steps, 1, largest_steps())
    seed = random.randrange(LARGEST_SEED + 1) if random_seed else _whole_number("Seed", seed, 0, LARGEST_SEED)

    seeds = [(seed + i) % (LARGEST_SEED + 1) for i in range(count)]
    label = choices.index(class_name) - 1
    states = pipeline.stream(
        batch_size=count,
        class_labels=None if label < 0 else label,
        num_inference_steps=num_steps,
        generator=[torch.Generator().manual_seed(s) for s in seeds],
    )
    shown = 0.0
    for state in states:
        done = state.step + 1
        if done == num_steps or time.monotonic() - shown >= PREVIEW_SECONDS:
            shown = time.monotonic()
            yield Frame(done, num_steps, [_enlarge(image) for image in pipeline.decode(state.sample)], seeds)


def _whole_number(name: str, value, smallest: int, largest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or int(value) != value:
        raise InvalidRequestError(f"{name} is {value!r}; it must be a whole number from {smallest} to {largest}.")
    if not smallest <= value <= largest:
        raise InvalidRequestError(f"{name} is {value}; it must be from {smallest} to {largest}.")
    return int(value)


def _enlarge(image: Image.Image) -> Image.Image:
    """Whole multiples of a pixel, so that small images are seen as they are."""
    factor = max(1, -(-SMALLEST_SIDE // min(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
