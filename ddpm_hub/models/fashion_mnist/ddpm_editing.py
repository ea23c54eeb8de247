"""Editing with the weights of a DDPM: img2img, inpaint, interpolate, invert, reconstruct.

A part of `DDPMHubPipeline`. This file is copied beside every model that is published: it imports its siblings and torch.
"""

import math
import numbers

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

from .ddpm_argument_checks import LARGEST_BATCH, check_fraction, check_integer
from .ddpm_image_formats import Images, encode_images, encode_mask
from .ddpm_noise_sources import LARGEST_SEED, InterpolatedNoise
from .ddpm_sampling_settings import SamplingSettings
from .ddpm_trajectories import Trajectory, denoise, invert, repaint, repaint_moves

# A walk back and forth through all T levels would take T times the resamplings.
_FEWER_STEPS = SamplingSettings("ddpm", 100)
_DETERMINISTIC = SamplingSettings("ddim", 50)
_LARGEST_RESAMPLINGS = 1000  # a hundred times the paper's; the whole walk is written down before its first step
_OUTPUT = ("output_type", "return_dict", "callback_on_step_end", "callback_on_step_end_tensor_inputs")


class DDPMEditing:
    """The editing methods of [`DDPMHubPipeline`]; every one takes the options of its `__call__` by name."""

    def img2img(
        self,
        image: Images,
        strength: float = 0.5,
        *,
        batch_size: int | None = None,
        **options,
    ) -> ImagePipelineOutput | tuple:
        """SDEdit (Meng et al. 2022, arXiv:2108.01073): noise is added up to a level, and taken away again.

        Args:
            image: one or B images of the model's size: `PIL.Image`, `numpy.ndarray` of shape (H, W, C) or (B, H, W, C),
                `torch.Tensor` of shape (B, C, H, W), or a list; uint8, or floating point from 0 to 1.
            strength (`float`, defaults to 0.5): how much noise, as a share of T, from 0 (the image itself) to 1 (nothing of it
                is left); the sampler starts at its first step at or below that.
            batch_size (`int`, *optional*): how many pictures to make of one image.
            options: `class_labels`, `num_inference_steps`, `sampler`, `seed`, `output_type`, `return_dict`,
                `callback_on_step_end`, … as in [`__call__`].

        Raises:
            ValueError: for an argument outside its range, before the network is called.
        """
        output = self._output_options(options)
        return self._drain(*self._img2img(image, strength, batch_size, options), **output)

    def stream_img2img(
        self, image: Images, strength: float = 0.5, *, batch_size: int | None = None, **options
    ) -> Trajectory:
        """[`img2img`] step by step, as [`stream`]; nothing comes out at strength 0."""
        return self._img2img(image, strength, batch_size, options)[0]

    def _img2img(self, image, strength, batch_size, options: dict):
        strength = check_fraction("strength", strength)
        original = self._repeated(self._encode("image", image), batch_size)
        call = self._prepare(len(original), options)
        start = self._level(call, strength)
        return self._from_level(call, original, start), len(call.sampler.timesteps) - start

    @staticmethod
    def _from_level(call, original: torch.Tensor, start: int) -> Trajectory:
        if start == len(call.sampler.timesteps):
            return original
        sample = call.sampler.add_noise(original, call.noise.draw(original), start)
        return (yield from denoise(call.network, call.sampler, call.noise, sample, start))

    def inpaint(
        self,
        image: Images,
        mask: Images,
        *,
        resamplings: int = 5,
        jump_length: int = 10,
        batch_size: int | None = None,
        **options,
    ) -> ImagePipelineOutput | tuple:
        """RePaint (Lugmayr et al. 2022, arXiv:2201.09865): what the mask covers is painted, the rest stays as it is.

        Going forward again, from x_s to x_t, is one exact draw from q(x_t | x_s), whatever the number of steps between.

        Args:
            image: the known pixels, as in [`img2img`].
            mask: white (`True`, 1, 255) where to paint: `PIL.Image`, `numpy.ndarray` of shape (H, W) or (B, H, W), or
                `torch.Tensor` of shape (H, W), (B, H, W) or (B, 1, H, W).
            resamplings (`int`, defaults to 5): how often each stretch of `jump_length` steps is taken, so that what is
                painted agrees with what is known, 1 (once) to 1000. The network is called nearly that many times more often.
            jump_length (`int`, defaults to 10): j, at least 1.
            batch_size, options: as in [`img2img`]. The sampler is `ddpm` or
                `ddim`: the model's own, or `ddpm` with 100 steps.

        Raises:
            ValueError: for an argument outside its range, before the network is called.
        """
        output = self._output_options(options)
        return self._drain(*self._inpaint(image, mask, resamplings, jump_length, batch_size, options), **output)

    def stream_inpaint(
        self,
        image: Images,
        mask: Images,
        *,
        resamplings: int = 5,
        jump_length: int = 10,
        batch_size: int | None = None,
        **options,
    ) -> Trajectory:
        """[`inpaint`] step by step, as [`stream`]."""
        return self._inpaint(image, mask, resamplings, jump_length, batch_size, options)[0]

    def _inpaint(self, image, mask, resamplings, jump_length, batch_size, options: dict):
        resamplings = check_integer("resamplings", resamplings, 1, _LARGEST_RESAMPLINGS)
        jump_length = check_integer("jump_length", jump_length, 1, math.inf)
        known = self._repeated(self._encode("image", image), batch_size)
        mask = encode_mask(mask, len(known), self.image_size).to(known.device)
        call = self._prepare(len(known), options, usual=_FEWER_STEPS, samplers=("ddpm", "ddim"))
        moves = repaint_moves(len(call.sampler.timesteps), resamplings, jump_length)
        states = repaint(call.network, call.sampler, call.noise, known, mask, moves)
        return states, sum(after > before for before, after in moves)

    def interpolate(
        self,
        first: int | Images,
        second: int | Images,
        count: int = 8,
        timestep: int | None = None,
        *,
        seed: int | None = None,
        **options,
    ) -> ImagePipelineOutput | tuple:
        """A row of images that lead from one to another, the ends included.

        Between two seeds all noise of the two calls is mixed spherically, x_T and that of every step: the ends are what
        each seed gives alone. Between two images x_t is mixed linearly at a chosen t, as in [Ho] section 4.3: both are taken
        there with the same noise, and all go on with the same noise, so that the ends are what [`img2img`] makes of them.

        Args:
            first, second: two seeds (`int`), or two images as in [`img2img`].
            count (`int`, defaults to 8): how many images, at least 2; image i has the weight i/(count − 1).
            timestep (`int`, *optional*): t, from 0 to T−1, for images and only for those; the nearest step of the sampler is
                taken. Small t mixes the images, large t what they show.
            seed (`int`, *optional*): of the noise, for images and only for those; by default another one each time.
            options: as in [`img2img`]; one class for all, or one for each.

        Raises:
            ValueError: for an argument outside its range, before the network is called.
        """
        output = self._output_options(options)
        return self._drain(*self._interpolate(first, second, count, timestep, seed, options), **output)

    def stream_interpolate(
        self, first, second, count: int = 8, timestep: int | None = None, *, seed: int | None = None, **options
    ) -> Trajectory:
        """[`interpolate`] step by step, as [`stream`]."""
        return self._interpolate(first, second, count, timestep, seed, options)[0]

    def _interpolate(self, first, second, count, timestep, seed, options: dict):
        count = check_integer("count", count, 2, LARGEST_BATCH)
        weights = torch.linspace(0, 1, count, dtype=torch.float64)
        if options.pop("generator", None) is not None:
            raise ValueError("`generator` was given; the noise of an interpolation comes from seeds.")
        if isinstance(first, numbers.Integral):
            for name, value in (("first", first), ("second", second)):
                check_integer(name, value, 0, LARGEST_SEED)
            if timestep is not None or seed is not None:
                name, value = ("timestep", timestep) if timestep is not None else ("seed", seed)
                raise ValueError(f"`{name}` is {value}, but `first` is a seed; it goes with two images. Leave it out.")
            noise = InterpolatedNoise(*(torch.Generator().manual_seed(int(s)) for s in (first, second)), weights)
            call = self._prepare(count, options, noise=noise)
            shape = (count, self.unet.config.in_channels, *self.image_size)
            sample = noise.draw(torch.empty(shape, device=call.device))
            return denoise(call.network, call.sampler, noise, sample), len(call.sampler.timesteps)
        ends = [self._encode(name, image) for name, image in (("first", first), ("second", second))]
        for name, end in zip(("first", "second"), ends, strict=True):
            if len(end) != 1:
                raise ValueError(f"`{name}` holds {len(end)} images; an interpolation leads from one to another.")
        if timestep is None:
            raise ValueError("`timestep` is missing: two images are mixed in x_t; give t, say half of T.")
        timestep = check_integer("timestep", timestep, 0, len(self.scheduler) - 1)
        if seed is not None:
            check_integer("seed", seed, 0, LARGEST_SEED)
        generator = torch.Generator()
        _ = generator.seed() if seed is None else generator.manual_seed(int(seed))
        noise = InterpolatedNoise(generator, generator, weights)
        call = self._prepare(count, options, noise=noise)
        times = call.sampler.timesteps
        start = min(range(len(times)), key=lambda i: abs(times[i] - timestep))
        return self._between(call, ends, weights, start), len(times) - start

    @staticmethod
    def _between(call, ends: list[torch.Tensor], weights: torch.Tensor, start: int) -> Trajectory:
        noise = call.noise.draw(ends[0].expand(len(weights), -1, -1, -1))
        # Mixing the images and adding the same noise to each is mixing the noisy images.
        rows = weights.to(ends[0]).reshape(-1, 1, 1, 1)
        mixed = torch.where(rows == 1, ends[1], torch.lerp(ends[0], ends[1], rows))
        sample = call.sampler.add_noise(mixed, noise, start)
        return (yield from denoise(call.network, call.sampler, call.noise, sample, start))

    def invert(self, image: Images, strength: float = 1.0, **options) -> torch.Tensor:
        """The noise that DDIM leads to an image from: DDIM inversion (arXiv:2010.02502, section 4.3).

        `pipeline(sample=pipeline.invert(image), sampler="ddim", num_inference_steps=50)` leads back; how nearly, is in
        docs/SAMPLING.md by the number of steps, which must be the same both ways.

        Args:
            image: as in [`img2img`].
            strength (`float`, defaults to 1.0): up to which share of T, from 0 (x_0) to 1 (x_T).
            options: `class_labels`, `num_inference_steps` (50 by default) and others, as in [`__call__`].

        Returns:
            `torch.Tensor` of float32, shape (B, C, H, W).

        Raises:
            ValueError: for an argument outside its range, before the network is called.
        """
        states, total, _ = self._invert(image, strength, options)
        return self._drain(states, total, "sample", return_dict=False)[0]

    def _invert(self, image, strength, options: dict):
        strength = check_fraction("strength", strength)
        original = self._encode("image", image)
        # What is stored for samples, guidance and noise, would lead the way back elsewhere.
        given = {name: value for name, value in options.items() if value is not None}
        options = {"guidance_scale": 1.0, "eta": 0.0} | given
        call = self._prepare(len(original), options, usual=_DETERMINISTIC, samplers=("ddim",))
        if call.sampler.eta:
            raise ValueError(f"`eta` is {call.sampler.eta}; an inversion has no noise. Leave it out.")
        start = self._level(call, strength)
        return invert(call.network, call.sampler, original, start), len(call.sampler.timesteps) - start, (call, start)

    def reconstruct(
        self,
        image: Images,
        strength: float = 1.0,
        **options,
    ) -> ImagePipelineOutput | tuple:
        """What the model makes of an image on the way to noise and back: [`invert`], and DDIM from there.

        Arguments as in [`invert`] and [`img2img`]; the callback sees the way up and the way back.
        """
        output = self._output_options(options)
        up, total, (call, start) = self._invert(image, strength, options)

        def both() -> Trajectory:
            sample = yield from up
            return (yield from denoise(call.network, call.sampler, call.noise, sample, start))

        return self._drain(both(), 2 * total, **output)

    # --- What they share ---

    def _output_options(self, options: dict) -> dict:
        """Takes out of the options what says how the result is given."""
        output = {name: options.pop(name) for name in _OUTPUT if name in options}
        self._check_output_type(output.get("output_type", "pil"))
        return output

    def _level(self, call, strength: float) -> int:
        """At which of the sampler's timesteps the noise has its share `strength` of T; past the last one for none."""
        times = call.sampler.timesteps
        highest = round(strength * len(self.scheduler)) - 1
        if strength == 0:
            return len(times)
        if strength == 1:
            return 0
        return next((i for i, t in enumerate(times) if t <= highest), len(times) - 1)

    def _encode(self, name: str, image: Images) -> torch.Tensor:
        return encode_images(name, image, self.unet.config.in_channels, self.image_size).to(self._execution_device)

    @staticmethod
    def _repeated(images: torch.Tensor, batch_size: int | None) -> torch.Tensor:
        if batch_size is None:
            return images
        batch_size = check_integer("batch_size", batch_size, 1, LARGEST_BATCH)
        if len(images) not in (1, batch_size):
            raise ValueError(
                f"`batch_size` is {batch_size}, but `image` holds {len(images)}; leave it out, or pass one."
            )
        return images.expand(batch_size, -1, -1, -1).contiguous()  # at strength 0 it is what the caller gets
