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


def dynamic_threshold(sample: torch.Tensor, ratio: float, largest: float) -> torch.Tensor:
    """x/s clamped to ±1, s the quantile of |x| in each sample, from 1 to `largest` (arXiv:2205.11487, section 2.3)."""
    magnitude = sample.flatten(1).abs().quantile(ratio, dim=1).clamp(1, max(1.0, largest))
    magnitude = magnitude.reshape(-1, *(1,) * (sample.ndim - 1))
    return (sample / magnitude).clamp(-1, 1)


def broadcast_rows(weights: torch.Tensor, sample: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Rows of shape (), (1,) or (B,), each shaped so that it broadcasts against a sample of shape (B, …)."""
    if weights.ndim == 1:
        return tuple(weights)
    if weights.shape[1] not in (1, *sample.shape[:1]) or weights.ndim > 2:
        raise ValueError(
            f"`timesteps` has shape {tuple(weights.shape[1:])}; it must have one entry, or one per sample: "
            f"{tuple(sample.shape[:1])}."
        )
    return tuple(weights.reshape(*weights.shape, *(1,) * (sample.ndim - 1)))


def weights_on(sample: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """float64 weights, rounded once, on the sample's device and broadcasting against it."""
    return broadcast_rows(torch.stack(weights).to(compute_dtype(sample)).to(sample.device), sample)


def weighted_sum(weight_a, weight_b, a: torch.Tensor, b: torch.Tensor, name: str) -> torch.Tensor:
    """weight_a·a + weight_b·b in a's shape and dtype."""
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(
            f"`{name}` has shape {tuple(b.shape)} and dtype {b.dtype}; the sample it goes with has {tuple(a.shape)} and "
            f"{a.dtype}."
        )
    if not a.is_floating_point():
        raise ValueError(f"the samples have dtype {a.dtype}; they must be floating point.")
    dtype = compute_dtype(a)
    return linear_combination(weight_a, a.to(dtype), weight_b, b.to(dtype)).to(a.dtype)
