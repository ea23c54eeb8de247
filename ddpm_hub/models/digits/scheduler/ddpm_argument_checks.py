"""Refusals: each names the argument, its value and what is allowed.

This file is copied beside every model that is published: it imports torch and the standard library only.
"""

import itertools
import math
import numbers
import operator

import torch

# Samples are computed in float32: what is larger is infinite there.
LARGEST_NUMBER = torch.finfo(torch.float32).max
# They are divided by the roots of β_1 and, for ε, of ᾱ_T; of a smaller one the quotient would soon be infinite.
SMALLEST_DIVISOR = 1e-36
# Of the images of one call, and the pixels along one of their sides.
LARGEST_BATCH = LARGEST_SIDE = 2**16
# A difference of two predictions times this is finite, and so is what an unclipped step makes of it.
LARGEST_GUIDANCE_SCALE = 1e6

_NO_NUMBERS = (TypeError, ValueError, RuntimeError, OverflowError)  # as torch says it of what makes no tensor


def check_choice(name: str, value: str | bool | None, allowed: tuple) -> None:
    # Arrays compare to arrays, and 1 to True.
    if not isinstance(value, str | bool | None) or value not in allowed:
        raise ValueError(
            f"`{name}` is {value!r}; it must be one of {', '.join(repr(a) for a in allowed if a is not None)}."
        )


def check_integer(name: str, value, smallest: int, largest: float) -> int:
    """It is returned as Python's own, whose arithmetic knows no bits."""
    if not is_whole(value) or not smallest <= operator.index(value) <= largest:
        allowed = f"from {smallest} to {largest}" if largest < math.inf else f"at least {smallest}"
        raise ValueError(f"`{name}` is {value!r}; it must be a whole number, {allowed}.")
    return operator.index(value)


def is_whole(value) -> bool:
    """Whether it is one whole number, also of NumPy or torch."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool) and getattr(value, "dtype", None) is not torch.bool


def check_bounds(name: str, value: float, low: float, high: float) -> float:
    number = _as_float(value)
    if not low < number < high:
        raise ValueError(f"`{name}` is {value!r}; it must be a number above {low:g} and below {high:g}.")
    return number


def check_ratio(name: str, value: float) -> float:
    """A number above 0, and at most 1."""
    number = _as_float(value)
    if not 0 < number <= 1:
        raise ValueError(f"`{name}` is {value!r}; it must be a number above 0 and at most 1.")
    return number


def check_fraction(name: str, value: float, meaning: str = "from 0 to 1") -> float:
    number = _as_float(value)
    if not 0 <= number <= 1:
        raise ValueError(f"`{name}` is {value!r}; it must be a number {meaning}.")
    return number


def _as_float(value) -> float:
    """A number, also of NumPy, as Python's own; NaN for what is none, which is within no bounds."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _as_numbers(name: str, values) -> torch.Tensor:
    """A tensor of its own: what the caller does with the values later changes nothing."""
    try:
        return torch.tensor(values.tolist() if hasattr(values, "tolist") else values, dtype=torch.float64)
    except _NO_NUMBERS as error:
        raise ValueError(f"`{name}` is {values!r}; it must be a list of numbers.") from error


def checked_betas(trained_betas) -> torch.Tensor:
    betas = _as_numbers("trained_betas", trained_betas)
    if betas.ndim != 1 or len(betas) == 0:
        raise ValueError(f"`trained_betas` has shape {tuple(betas.shape)}; it must be a list of at least one number.")
    if wrong := [beta for beta in betas.tolist() if not SMALLEST_DIVISOR < beta < 1]:
        raise ValueError(
            f"`trained_betas` contains {wrong[0]}; a variance of the forward step lies between {SMALLEST_DIVISOR:g} and 1."
        )
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
    if wrong := [variance for variance in variances.tolist() if not 0 <= variance < LARGEST_NUMBER]:
        raise ValueError(
            f"`original_sample_variances` contains {wrong[0]}; a variance is not negative, infinite (in float32) or NaN."
        )
    return variances


def checked_timesteps(timesteps, num_train: int) -> list[int]:
    values = timesteps.tolist() if hasattr(timesteps, "tolist") else timesteps
    whole = isinstance(values, list | tuple) and all(is_whole(t) for t in values)
    values = [operator.index(t) for t in values] if whole else None
    if not values:
        raise ValueError(f"`timesteps` is {timesteps!r}; it must be a list of at least one integer.")
    if not 0 <= min(values) <= max(values) < num_train:
        raise ValueError(f"`timesteps` runs from {min(values)} to {max(values)}; it must lie in 0…{num_train - 1}.")
    for t, s in itertools.pairwise(values):
        if s >= t:
            raise ValueError(f"`timesteps` has {s} after {t}; it must fall, with no entry twice.")
    return values


def check_tensors(**tensors) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"`{name}` is a {type(tensor).__name__}; it must be a torch.Tensor.")


def as_timesteps(name: str, timesteps, device: torch.device | None = None) -> torch.Tensor:
    """One timestep or many, as a tensor of whatever numbers they are."""
    if isinstance(timesteps, torch.Tensor):
        return timesteps.to(device)
    try:
        return torch.tensor(timesteps.tolist() if hasattr(timesteps, "tolist") else timesteps, device=device)
    except _NO_NUMBERS as error:
        raise ValueError(f"`{name}` is {timesteps!r}; it must be an integer, or a tensor of integers.") from error


def check_timesteps(
    name: str, timesteps: torch.Tensor, smallest: int, largest: int, sample: torch.Tensor | None = None
) -> None:
    """Whether they are in the schedule, and, where a sample is given, one or as many as it has rows."""
    if timesteps.is_floating_point() or timesteps.is_complex() or timesteps.dtype == torch.bool:
        raise ValueError(f"`{name}` has dtype {timesteps.dtype}; it must hold integers.")
    if sample is not None and (timesteps.ndim > 1 or timesteps.numel() not in (1, *sample.shape[:1])):
        raise ValueError(
            f"`{name}` has shape {tuple(timesteps.shape)}; it must have one entry, or one per sample: "
            f"{tuple(sample.shape[:1])}."
        )
    # Reading values from an accelerator would make the host wait for it, and a compiled graph break.
    if timesteps.device.type != "cpu" or torch.compiler.is_compiling() or not timesteps.numel():
        return
    low, high = (int(end) for end in timesteps.long().aminmax())  # torch has no smallest one of uint16
    if low < smallest or high > largest:
        raise ValueError(f"`{name}` runs from {low} to {high}; it must lie in {smallest}…{largest}.")


def check_noise_source(generator, variance_noise, sample: torch.Tensor) -> None:
    """z is drawn or given, not both; what is given looks like the sample."""
    if variance_noise is None:
        return check_generators(generator, len(sample) if sample.ndim else 1)
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


def checked_names(id2label: dict | None, num_classes: int | None) -> dict[str, str] | None:
    """The names of the classes, by their numbers as texts, for JSON has no other keys."""
    if id2label is None:
        return None
    numbers = [str(k) for k in range(num_classes or 0)]
    named = {str(k): v for k, v in id2label.items()} if isinstance(id2label, dict) else {None: None}
    if not all(k in numbers and isinstance(v, str) for k, v in named.items()):
        allowed = f"texts for 0 to {len(numbers) - 1}" if numbers else "nothing: the network knows no classes"
        raise ValueError(f"`id2label` is {id2label!r}; it may hold {allowed}.")
    return named or None


def checked_labels(class_labels, batch_size: int | None, num_classes: int | None) -> tuple[torch.Tensor | None, int]:
    """The labels as a tensor of shape (B,), or `None` for an unconditional network; and B.

    Where no class is asked for, a conditional network's are the null class, `num_classes`.
    """
    if batch_size is not None:
        batch_size = check_integer("batch_size", batch_size, 1, LARGEST_BATCH)
    if class_labels is None:
        batch_size = 1 if batch_size is None else batch_size
        return (None if num_classes is None else torch.full((batch_size,), num_classes)), batch_size
    if num_classes is None:
        raise ValueError("`class_labels` was given, but this model is unconditional; leave it out.")
    labels = class_labels.tolist() if hasattr(class_labels, "tolist") else class_labels
    if is_whole(labels):
        labels = [labels] * (1 if batch_size is None else batch_size)
    if not isinstance(labels, list | tuple) or not labels or not all(is_whole(label) for label in labels):
        raise ValueError(f"`class_labels` is {class_labels!r}; it must be an integer or a flat list of integers.")
    batch_size = len(labels) if batch_size is None else batch_size
    if len(labels) != batch_size:
        raise ValueError(
            f"`class_labels` has {len(labels)} entries for `batch_size` = {batch_size}; pass one per image."
        )
    labels = [operator.index(label) for label in labels]
    if wrong := [label for label in labels if not 0 <= label < num_classes]:
        raise ValueError(f"`class_labels` contains {wrong[0]}; the classes are 0 to {num_classes - 1}.")
    return torch.tensor(labels), batch_size


def check_guidance(scale: float, interval, class_labels, num_classes: int | None, num_train: int) -> None:
    """Whether there is something to guide by, and where."""
    if not 0 <= _as_float(scale) <= LARGEST_GUIDANCE_SCALE:
        raise ValueError(
            f"`guidance_scale` is {scale!r}; it must be a number of at least 0 and at most {LARGEST_GUIDANCE_SCALE:g}; "
            f"1 is no guidance."
        )
    lacking = "this model is unconditional" if num_classes is None else "`class_labels` is missing"
    if scale != 1 and class_labels is None:
        raise ValueError(f"`guidance_scale` is {scale!r}, but {lacking}; leave it out, or ask for classes.")
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
    if class_labels is None:
        raise ValueError(f"`guidance_interval` is {interval!r}, but {lacking}; leave it out, or ask for classes.")
    if scale == 1:
        raise ValueError(
            f"`guidance_interval` is {interval!r}, but `guidance_scale` is 1, which is no guidance anywhere; give another "
            f"scale, or leave the interval out."
        )
