"""What the demo computes: a model is loaded once, samples are drawn step by step. No interface code."""

import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ddpm_hub import DDPMHubPipeline

# Absolute: the name of a folder that is missing must not be taken for a repository on the Hub.
DEFAULT_MODEL = Path(__file__).resolve().parent.parent / "outputs" / "digits"
LARGEST_COUNT = 16
LARGEST_SEED = 2**32 - 1
ANY_CLASS = "any"
PREVIEW_SECONDS = 0.25
SMALLEST_SIDE = 224

_loaded: dict[str, DDPMHubPipeline] = {}
_loading = threading.Lock()


class InvalidRequestError(ValueError):
    """A request that cannot be served; the message is one sentence for the visitor."""


@dataclass(frozen=True)
class Frame:
    """What is known after a step.

    Attributes:
        step (`int`): the number of steps done, 1 to `num_steps`.
        num_steps (`int`): the number of steps asked for.
        seeds (`list[int]`): the seed of each image.
        images (`list[PIL.Image.Image]` or `None`): x_t, enlarged; `None` between two previews; the finished images when
            `step == num_steps`.
    """

    step: int
    num_steps: int
    seeds: list[int]
    images: list[Image.Image] | None


def model_name() -> str:
    """What is served, a folder or a Hub repository: the environment variable DDPM_HUB_MODEL, or `make train`'s folder."""
    return os.environ.get("DDPM_HUB_MODEL") or str(DEFAULT_MODEL)


def load_pipeline() -> DDPMHubPipeline:
    """The served model, loaded at the first call; a failure is not remembered, so the model may arrive later.

    Raises:
        InvalidRequestError: if there is no model (and what to run), or if it is damaged.
    """
    name = model_name()
    with _loading:
        if name not in _loaded:
            try:
                pipeline = DDPMHubPipeline.from_pretrained(name)
            except Exception as error:  # a damaged file surfaces as whatever the library that reads it raises
                logging.getLogger(__name__).warning("%s does not load: %s", name, error)
                if (Path(name) / "model_index.json").is_file():
                    advice = f"The model at {name} is damaged: run `make train` again, or copy its folder whole."
                elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
                    advice = f"The model {name} does not load from the Hub: set the secret HF_TOKEN if it is private."
                else:
                    advice = f"No trained model at {name}: run `make train`, or set DDPM_HUB_MODEL to a model's folder."
                raise InvalidRequestError(advice) from error
            pipeline.set_progress_bar_config(disable=True)
            _loaded[name] = pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
        return _loaded[name]


def class_choices() -> list[str]:
    """What a visitor can ask for: "any", then the names of the classes; only "any" for an unconditional model."""
    return [ANY_CLASS, *load_pipeline().id2label.values()]


def largest_steps() -> int:
    """T, the most steps that can be asked for."""
    return len(load_pipeline().scheduler)


def default_steps() -> int:
    """What the model is best sampled with, where it says so."""
    return (load_pipeline().config.sampling or {}).get("num_inference_steps", min(100, largest_steps()))


def generate(class_name: str, count: int, num_steps: int, seed: int, random_seed: bool) -> Iterator[Frame]:
    """Draws images; yields a frame after every step, so that closing this generator ends the work within a step.

    Args:
        class_name (`str`): one of [`class_choices`].
        count (`int`): 1 to 16 images; image i comes from the seed `seed + i` (mod 2³²) alone.
        num_steps (`int`): 1 to T reverse steps.
        seed (`int`): 0 to 2³² − 1; not looked at with `random_seed`.
        random_seed (`bool`): take a fresh seed in place of `seed`.

    Raises:
        InvalidRequestError: at the first `next`, for a value outside its range or a model that does not load.
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
    shown = float("-inf")
    with contextlib.closing(states):
        for state in states:
            done = state.step + 1
            images = None
            if done == num_steps or time.monotonic() - shown >= PREVIEW_SECONDS:
                images = [_enlarge(image) for image in pipeline.decode(state.sample)]
                shown = time.monotonic()
            yield Frame(done, num_steps, seeds, images)


def _whole_number(name: str, value: float | None, smallest: int, largest: int) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    whole = whole or (isinstance(value, float) and value.is_integer())  # JSON may carry 7 as 7.0
    if not whole or not smallest <= value <= largest:
        given = "empty" if value is None else value
        raise InvalidRequestError(f"{name} is {given}; it must be a whole number from {smallest} to {largest}.")
    return int(value)


def _enlarge(image: Image.Image) -> Image.Image:
    """Whole multiples of a pixel, so that small images are seen, and downloaded, as they are."""
    factor = max(1, -(-SMALLEST_SIDE // min(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
