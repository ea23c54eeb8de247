"""Refusals: each names the argument, its value and what is allowed.

This file is copied beside every model that is published: it imports torch and the standard library only.
"""

import itertools
import math
import numbers
import operator

import torch


def check_choice(name: str, value: str | None, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(
            f"`{name}` is {value!r}; it must be one of {', '.join(repr(a) for a in allowed if a is not None)}."
        )


def check_integer(name: str, value, smallest: int, largest: float) -> None:
    if not is_whole(value) or not smallest <= operator.index(value) <= largest:
        allowed = f"from {smallest} to {largest}" if largest < math.inf else f"at least {smallest}"
        raise ValueError(f"`{name}` is {value!r}; it must be a whole number, {allowed}.")


def is_whole(value) -> bool:
    """Whether it is one whole number, also of NumPy or torch."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def check_bounds(name: str, value: float, low: float, high: float) -> None:
    if not _is_number(value) or not low < value < high:
        raise ValueError(
            f"`{name}` is {value!r}; it must be a number above {low}"
            + (f" and below {high:g}." if high < math.inf else ".")
        )


def check_fraction(name: str, value: float, meaning: str = "from 0 to 1") -> None:
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` is {value!r}; it must be a number {meaning}.")


def _is_number(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _as_numbers(name: str, values) -> torch.Tensor:
    try:
        return torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`{name}` is {values!r}; it must be a list of numbers.") from error


def checked_betas(trained_betas) -> torch.Tensor:
    betas = _as_numbers("trained_betas", trained_betas)
    if betas.ndim != 1 or len(betas) == 0:
        raise ValueError(f"`trained_betas` has shape {tuple(betas.shape)}; it must be a list of at least one number.")
    if wrong := [beta for beta in betas.tolist() if not 0 < beta < 1]:
        raise ValueError(f"`trained_betas` contains {wrong[0]}; a variance of the forward step lies between 0 and 1.")
    if bool((betas.diff() < 0).any()):
        t = int((betas.diff() < 0).nonzero()[0])
        raise ValueError(
            f"`trained_betas` falls from {betas[t]} to {betas[t + 1]} at entry {t + 1}; β must not fall with t."
        )
    return betas


def checked_variances(variances, variance_type: str, num_train: int) -> torch.Tensor | None:
    if variances is None and variance_type != "analytic":
        return None
    if variances is None:
        raise ValueError(
            "`original_sample_variances` is None; `variance_type` = 'analytic' needs them. Estimate them from data with "
            "`ddpm_hub.estimate_original_sample_variances`."
        )
    variances = _as_numbers("original_sample_variances", variances)
    if variances.shape != (num_train,):
        raise ValueError(
            f"`original_sample_variances` has shape {tuple(variances.shape)}; it must be a list of T = {num_train} numbers."
        )
    if wrong := [variance for variance in variances.tolist() if not 0 <= variance < math.inf]:
        raise ValueError(
            f"`original_sample_variances` contains {wrong[0]}; a variance is not negative, infinite or NaN."
        )
    return variances


def checked_timesteps(timesteps, num_train: int) -> list[int]:
    values = timesteps.tolist() if hasattr(timesteps, "tolist") else timesteps
    whole = isinstance(values, list | tuple) and all(
        hasattr(t, "__index__") and not isinstance(t, bool) for t in values
    )
    values = [operator.index(t) for t in values] if whole else None
    if not values:
        raise ValueError(f"`timesteps` is {timesteps!r}; it must be a list of at least one integer.")
    if not 0 <= min(values) <= max(values) < num_train:
        raise ValueError(f"`timesteps` runs from {min(values)} to {max(values)}; it must lie in 0…{num_train - 1}.")
    for t, s in itertools.pairwise(values):
        if s >= t:
            raise ValueError(f"`timesteps` has {s} after {t}; it must fall, with no entry twice.")
    return values


def check_timesteps(name: str, timesteps: torch.Tensor, smallest: int, largest: int) -> None:
    if timesteps.is_floating_point() or timesteps.is_complex() or timesteps.dtype == torch.bool:
        raise ValueError(f"`{name}` has dtype {timesteps.dtype}; it must hold integers.")
    # Reading values from an accelerator would make the host wait for it, and a compiled graph break.
    if timesteps.device.type != "cpu" or torch.compiler.is_compiling() or not timesteps.numel():
        return
    low, high = int(timesteps.min()), int(timesteps.max())
    if low < smallest or high > largest:
        raise ValueError(f"`{name}` runs from {low} to {high}; it must lie in {smallest}…{largest}.")


def check_noise_source(generator, variance_noise, sample: torch.Tensor) -> None:
    """z is drawn or given, not both; what is given looks like the sample."""
    if variance_noise is None:
        return check_generators(generator, len(sample))
    if generator is not None:
        raise ValueError("`generator` and `variance_noise` were both given; the noise comes from one of them.")
    if not isinstance(variance_noise, torch.Tensor) or variance_noise.shape != sample.shape:
        shape = (
            tuple(variance_noise.shape) if isinstance(variance_noise, torch.Tensor) else type(variance_noise).__name__
        )
        raise ValueError(
            f"`variance_noise` has shape {shape}; it must be {tuple(sample.shape)}, the shape of `sample`."
        )
    if not variance_noise.is_floating_point():
        raise ValueError(f"`variance_noise` has dtype {variance_noise.dtype}; it must be floating point.")
    return None


def check_generators(generator, batch_size: int) -> None:
    """A `torch.Generator`, a list of one per image, or `None`."""
    if generator is None or isinstance(generator, torch.Generator):
        return
    if not isinstance(generator, list) or not all(isinstance(g, torch.Generator) for g in generator):
        raise ValueError(f"`generator` is {generator!r}; it must be a torch.Generator, or a list of one per image.")
    if len(generator) != batch_size:
        raise ValueError(
            f"`generator` has {len(generator)} entries for a batch of {batch_size}; pass one, or one per image."
        )
    if len({id(g) for g in generator}) != len(generator):
        raise ValueError(
            "`generator` holds one generator more than once; image i would depend on the images before it."
        )


def checked_labels(class_labels, batch_size: int | None, num_classes: int | None) -> tuple[torch.Tensor | None, int]:
    """The labels as a tensor of shape (B,), or `None` for an unconditional network; and B.

    Where no class is asked for, a conditional network's are the null class, `num_classes`.
    """
    if batch_size is not None:
        check_integer("batch_size", batch_size, 1, math.inf)
    if class_labels is None:
        batch_size = 1 if batch_size is None else batch_size
        return (None if num_classes is None else torch.full((batch_size,), num_classes)), batch_size
    if num_classes is None:
        raise ValueError("`class_labels` was given, but this model is unconditional; leave it out.")
    try:
        labels = torch.as_tensor(class_labels)
    except (TypeError, ValueError, RuntimeError):
        labels = torch.empty(0)
    flat = labels.ndim <= 1 and labels.numel() > 0
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if isinstance(class_labels, list | tuple):
        whole = whole and not any(isinstance(label, bool) for label in class_labels)
    if not flat or not whole:
        raise ValueError(f"`class_labels` is {class_labels!r}; it must be an integer or a flat list of integers.")
    labels = labels.long()
    if labels.ndim == 0:
        labels = labels.expand(1 if batch_size is None else batch_size)
    batch_size = len(labels) if batch_size is None else batch_size
    if len(labels) != batch_size:
        raise ValueError(
            f"`class_labels` has {len(labels)} entries for `batch_size` = {batch_size}; pass one per image."
        )
    wrong = [label for label in labels.tolist() if not 0 <= label < num_classes]
    if wrong:
        raise ValueError(f"`class_labels` contains {wrong[0]}; the classes are 0 to {num_classes - 1}.")
    return labels, batch_size


def check_guidance(scale: float, interval, class_labels, num_classes: int | None, num_train: int) -> None:
    """Whether there is something to guide by, and where."""
    if not _is_number(scale) or not 0 <= scale < math.inf:
        raise ValueError(f"`guidance_scale` is {scale!r}; it must be a number of at least 0; 1 is no guidance.")
    if scale != 1 and class_labels is None:
        why = "this model is unconditional" if num_classes is None else "`class_labels` is missing"
        raise ValueError(f"`guidance_scale` is {scale!r}, but {why}; leave it out, or ask for classes.")
    if interval is None:
        return
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        raise ValueError(
            f"`guidance_interval` is {interval!r}; it must be the smallest and the largest guided timestep."
        )
    for bound in interval:
        check_integer("guidance_interval", bound, 0, num_train - 1)
    if interval[0] > interval[1]:
        raise ValueError(f"`guidance_interval` is {interval!r}; the smaller timestep comes first.")
    if scale == 1:
        raise ValueError(
            f"`guidance_interval` is {interval!r}, but `guidance_scale` is 1, which is no guidance anywhere."
        )
