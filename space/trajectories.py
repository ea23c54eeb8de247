"""The way of one sample, step by step, as pixels: what a film strip shows, and what a visitor walks through."""

from contextlib import closing
from dataclasses import dataclass, field

import drawing
import numpy as np
import served_models
import torch
from drawing import Drawing, Frame
from pictures import pixels_of

from ddpm_hub.ddpm_noise_sources import DrawnNoise, seeded
from ddpm_hub.ddpm_sampling_settings import SETTINGS, USUAL, settings_for_call

LARGEST_KEPT = 60
LARGEST_BYTES = 2 * 2**20  # of the pixels of a trajectory: large images are kept less often


@dataclass(frozen=True)
class Moment:
    """One step: the network was given x_t and took it for a noisy x̂_0, and the sampler went on to x_s.

    Attributes:
        step (`int`): 1 to the number of steps.
        t, s (`int`): the paper's times, t = 1…T; s is the t of the next step, and 0 after the last one.
        sample, original, following (`numpy.ndarray`): x_t, x̂_0 and x_s, uint8, shape (H, W, C).
    """

    step: int
    t: int
    s: int
    sample: np.ndarray = field(repr=False)
    original: np.ndarray = field(repr=False)
    following: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Trajectory:
    """Attributes:
    drawing (`Drawing`): what was drawn.
    num_steps (`int`): how many steps there were.
    moments (`list[Moment]`): at most [`LARGEST_KEPT`] of them, evenly spaced, the first and the last among them.
    """

    drawing: Drawing
    num_steps: int
    moments: list[Moment] = field(repr=False)

    @property
    def draws_from_posterior(self) -> bool:
        """Whether each x_s has the mean of q(x_s | x_t, x̂_0): other samplers, and other η, combine x̂_0 and x_t differently."""
        given = dict.fromkeys(SETTINGS) | {"sampler": self.drawing.options["sampler"]}
        stored = served_models.load(self.drawing.model).config.sampling
        settings = settings_for_call(stored, given, False, USUAL)
        return settings.sampler == "ddpm" and settings.eta in (None, 1)


def trajectory_drawing(
    model: str | None = None,
    class_name: str | None = None,
    sampler: str | None = "ddpm",
    num_steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
) -> Drawing:
    """One image, drawn; arguments and errors as of `drawing.image_drawing`."""
    return drawing.image_drawing(model, class_name, 1, sampler, num_steps, guidance, seed)


def trajectory(
    model: str | None = None,
    class_name: str | None = None,
    sampler: str | None = "ddpm",
    num_steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
) -> Trajectory:
    """The way of one sample; arguments and errors as of `drawing.image_drawing`."""
    keeper = TrajectoryKeeper(trajectory_drawing(model, class_name, sampler, num_steps, guidance, seed))
    with closing(drawing.frames(keeper.drawing, preview_seconds=0)) as frames:
        for frame in frames:
            keeper.add(frame)
    return keeper.trajectory()


class TrajectoryKeeper:
    """Makes a [`Trajectory`] of frames, of which it keeps some.

    Args:
        drawing (`Drawing`): of one image, from `trajectory_drawing`.
    """

    def __init__(self, drawing: Drawing):
        self.drawing = drawing
        self._times: list[int] = []
        self._steps: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
        self._sample = self._wanted = None

    def add(self, frame: Frame) -> None:
        """The next frame of `drawing.frames(drawing, preview_seconds=0)`; none may be left out."""
        if self._sample is None:
            self._sample = _noise(self.drawing, frame.sample.shape)
            count = min(LARGEST_KEPT, LARGEST_BYTES // (3 * frame.sample.nbytes))
            self._wanted = kept_steps(frame.num_steps, count)
        self._times.append(frame.timestep)
        if frame.step in self._wanted:
            self._steps.append((frame.step, self._sample, frame.original[0], frame.sample[0]))
        self._sample = frame.sample[0]

    def trajectory(self) -> Trajectory:
        """What was kept, once all frames were added."""
        times = [*self._times, 0]
        moments = [Moment(step, times[step - 1], times[step], *pixels) for step, *pixels in self._steps]
        return Trajectory(self.drawing, len(self._times), moments)


def kept_steps(num_steps: int, count: int) -> set[int]:
    """`count` of the steps 1 to `num_steps`, at least two, evenly spaced, the first and the last among them."""
    return {round(step) for step in np.linspace(1, num_steps, min(num_steps, max(count, 2)))}


def _noise(drawing: Drawing, shape: tuple[int, ...]) -> np.ndarray:
    """x_T as pixels, shape (H, W, C): what the pipeline draws from the seed before the first step; no frame has it."""
    _, height, width, channels = shape
    sample = DrawnNoise(seeded(drawing.seeds, None, 1)).draw(torch.empty(1, channels, height, width))
    return pixels_of(sample)[0]
