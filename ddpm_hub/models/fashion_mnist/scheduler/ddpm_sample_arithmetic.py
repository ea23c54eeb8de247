"""Arithmetic on samples: weights are numbers, or tensors that broadcast; low precision is computed in float32.

This file imports torch only: it is copied beside every model that is published.
"""

import torch

Number = float | torch.Tensor


def compute_dtype(sample: torch.Tensor) -> torch.dtype:
    """Where the arithmetic happens: float64 samples stay float64, all others are computed in float32."""
    return torch.float64 if sample.dtype == torch.float64 else torch.float32


def linear_combination(a: Number, x: torch.Tensor, b: Number, y: torch.Tensor) -> torch.Tensor:
    """a·x + b·y in a new tensor."""
    if isinstance(b, float):
        return torch.mul(x, a).add_(y, alpha=b)
    return torch.addcmul(a * x, b, y)


def add_scaled(x: torch.Tensor, b: Number, y: torch.Tensor) -> torch.Tensor:
    """x + b·y, in place where b is a number."""
    return x.add_(y, alpha=b) if isinstance(b, float) else torch.addcmul(x, b, y)


def draw_noise(
    sample: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None, std: float = 1.0
) -> torch.Tensor:
    """std·z with z ~ N(0, I), in the sample's shape, on its device, in the precision it is computed in.

    The caller has checked the generators. With a list, row i comes from generator i alone. A generator of another device draws there, and the noise is copied.
    """
    noise = torch.empty_like(sample, dtype=compute_dtype(sample), memory_format=torch.contiguous_format)
    if generator is None:
        return noise.normal_(0.0, std)
    if isinstance(generator, torch.Generator):
        return _fill(noise, generator, std)
    # Generators of one other device, as seeds give them on the CPU, fill one tensor there, which is copied once.
    devices = {one.device for one in generator}
    drawn = torch.empty(noise.shape, dtype=noise.dtype, device=devices.pop()) if len(devices) == 1 else noise
    for row, row_generator in zip(drawn, generator, strict=True):
        _fill(row, row_generator, std)
    return drawn.to(noise.device)


def _fill(noise: torch.Tensor, generator: torch.Generator, std: float) -> torch.Tensor:
    if generator.device == noise.device:
        return noise.normal_(0.0, std, generator=generator)
    drawn = torch.empty(noise.shape, dtype=noise.dtype, device=generator.device)
    return noise.copy_(drawn.normal_(0.0, std, generator=generator))


def dynamic_threshold(sample: torch.Tensor, ratio: float, largest: float) -> torch.Tensor:
    """x/s clamped to ±1; s is each sample's quantile of |x|, from 1 to `largest` (arXiv:2205.11487, section 2.3)."""
    if not sample.numel():
        return sample  # there is no quantile of nothing
    rows = sample.abs().reshape(sample.shape[0] if sample.ndim else 1, -1)
    magnitude = _upper_quantile(rows, ratio).clamp(min=1.0).clamp(max=largest)
    return (sample / magnitude.reshape((*sample.shape[:1], *(1,) * (sample.ndim - 1)))).clamp(-1, 1)


def _upper_quantile(rows: torch.Tensor, ratio: float) -> torch.Tensor:
    """Of each row, between its two order statistics: `torch.quantile`, which sorts all of a row where the top is enough."""
    position = ratio * (rows.shape[1] - 1)
    below = int(position)
    top = rows.topk(rows.shape[1] - below, dim=1).values
    return torch.lerp(top[:, -1], top[:, max(0, top.shape[1] - 2)], position - below)


def broadcast_rows(weights: torch.Tensor, sample: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Rows of shape (), (1,) or (B,), each shaped so that it broadcasts against a sample of shape (B, …)."""
    if weights.ndim == 1:
        return tuple(weights)
    rows = weights.shape[1:] if sample.ndim else ()  # a single number has no rows
    return tuple(weights.reshape((len(weights), *rows, *(1,) * (sample.ndim - 1))))


def columns_at(table: torch.Tensor, columns: int | torch.Tensor) -> torch.Tensor:
    """The columns of a table, by number.

    A tensor of numbers is not read on the host, as plain indexing by one element reads it; and torch.compile makes no
    constant of a number.
    """
    if not isinstance(columns, torch.Tensor):
        columns = torch.full((1,), columns, dtype=torch.int64, device=table.device)
    return table.index_select(1, columns.reshape(-1).long())


def weights_on(sample: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """float64 weights, rounded once, on the sample's device and broadcasting against it."""
    return broadcast_rows(torch.stack(weights).to(compute_dtype(sample)).to(sample.device), sample)


def weighted_sum(weight_a, weight_b, a: torch.Tensor, b: torch.Tensor, name: str) -> torch.Tensor:
    """weight_a·a + weight_b·b in a's shape and dtype."""
    return unrounded_sum(weight_a, weight_b, a, b, name).to(a.dtype)


def unrounded_sum(weight_a, weight_b, a: torch.Tensor, b: torch.Tensor, name: str) -> torch.Tensor:
    """[`weighted_sum`] in the precision that it is computed in."""
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(
            f"`{name}` has shape {tuple(b.shape)} and dtype {b.dtype}; the sample it goes with has {tuple(a.shape)} and "
            f"{a.dtype}."
        )
    if not a.is_floating_point():
        raise ValueError(f"the samples have dtype {a.dtype}; they must be floating point.")
    dtype = compute_dtype(a)
    return linear_combination(weight_a, a.to(dtype), weight_b, b.to(dtype))
