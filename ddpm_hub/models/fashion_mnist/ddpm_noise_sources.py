"""Where the noise of a call comes from: generators, or two of them with everything between.

This file is copied beside every model that is published: it imports its siblings and torch.
"""

import math

import torch

from .ddpm_argument_checks import check_generators, check_integer
from .ddpm_sample_arithmetic import draw_noise

LARGEST_SEED = 2**63 - 1  # what torch takes


class DrawnNoise:
    """Noise of a `torch.Generator`, of one generator per image, or of torch's own."""

    def __init__(self, generator: torch.Generator | list[torch.Generator] | None):
        self._generator = generator

    def draw(self, like: torch.Tensor) -> torch.Tensor:
        """z ~ N(0, I) in the shape and on the device of `like`, float32."""
        return draw_noise(like, self._generator)

    def for_step(self, like: torch.Tensor) -> dict:
        """The arguments with which the scheduler's `step` takes its noise from here."""
        return {"generator": self._generator}


class InterpolatedNoise:
    """Row i is the noise of two generators, mixed spherically with weight i: the same two draws for all rows.

    Mixed so, noise stays noise: sin((1−λ)θ)/sin θ · z_1 + sin(λθ)/sin θ · z_2, θ the angle between z_1 and z_2 (Shoemake
    1985; Song et al. 2020, arXiv:2010.02502, appendix D.5). At λ = 0 and 1 it is z_1 and z_2 to the bit.

    Args:
        first, second (`torch.Generator`): of z_1 and z_2; the same object for one draw that all rows share.
        weights (`torch.Tensor`, float64, shape (B,)): λ of each row.
    """

    def __init__(self, first: torch.Generator, second: torch.Generator, weights: torch.Tensor):
        self._first, self._second, self._weights = first, second, weights

    def draw(self, like: torch.Tensor) -> torch.Tensor:
        first = draw_noise(like[:1], self._first)
        if self._second is self._first:
            return first.expand_as(like).contiguous()
        return slerp(first, draw_noise(like[:1], self._second), self._weights)

    def for_step(self, like: torch.Tensor) -> dict:
        return {"variance_noise": self.draw(like)}


NoiseSource = DrawnNoise | InterpolatedNoise


def slerp(first: torch.Tensor, second: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Spherical interpolation of two tensors of shape (1, …), a row for each weight; float64 weights, rounded once.

    Where the two point in one direction, or in opposite ones, it is linear.
    """
    a, b = first.flatten().double(), second.flatten().double()
    cosine = (torch.dot(a, b) / (a.norm() * b.norm())).clamp(-1, 1).item()
    angle, rows = math.acos(cosine), weights.double()
    if math.sin(angle) < 1e-6:
        pair = (1 - rows, rows)
    else:
        pair = ((1 - rows) * angle).sin() / math.sin(angle), (rows * angle).sin() / math.sin(angle)
        # sin θ/sin θ is 1, whatever the two functions round to.
        pair = (torch.where(rows == 0, 1.0, pair[0]), torch.where(rows == 1, 1.0, pair[1]))
    shape = (-1, *(1,) * (first.ndim - 1))
    w_a, w_b = (torch.where(rows == end, 0.0, w).reshape(shape).to(first) for w, end in zip(pair, (1, 0), strict=True))
    return w_a * first + w_b * second


def seeded(seed: int | list[int] | None, generator, batch_size: int) -> torch.Generator | list[torch.Generator] | None:
    """The generators of a call: those that are given, or one of the CPU for each image's seed.

    Args:
        seed (`int` or `list[int]`, *optional*): a list has one for each image; of a number s, image i has s + i.
        generator: a `torch.Generator`, a list of one per image, or `None`.
        batch_size (`int`): B.

    Raises:
        ValueError: if both are given, if there are fewer seeds than images, or for what is no seed.
    """
    if seed is None:
        check_generators(generator, batch_size)
        return generator
    if generator is not None:
        raise ValueError("`seed` and `generator` were both given; the noise comes from one of them.")
    if hasattr(seed, "tolist"):  # of NumPy or torch
        seed = seed.tolist()
    seeds = list(seed) if isinstance(seed, list | tuple | range) else None
    if seeds is None:
        check_integer("seed", seed, 0, LARGEST_SEED - batch_size)
        seeds = [int(seed) + i for i in range(batch_size)]
    for one in seeds:
        check_integer("seed", one, 0, LARGEST_SEED)
    if len(seeds) != batch_size:
        raise ValueError(f"`seed` has {len(seeds)} entries for {batch_size} images; pass one per image, or a number.")
    return [torch.Generator().manual_seed(int(one)) for one in seeds]
