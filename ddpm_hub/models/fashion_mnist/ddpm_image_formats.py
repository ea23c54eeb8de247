"""Images as people hold them (PIL, NumPy, torch) and the samples of the model, in [−1, 1].

This file is copied beside every model that is published: it imports its siblings, torch, numpy and PIL.
"""

import numpy as np
import torch
from PIL import Image

from .ddpm_argument_checks import check_choice
from .ddpm_equations import denormalize, normalize

OUTPUT_TYPES = ("pil", "np", "pt", "sample")
PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

Images = Image.Image | np.ndarray | torch.Tensor | list


def check_output_type(output_type: str, channels: int) -> None:
    """Whether a sample of so many channels can be given in this form.

    Raises:
        ValueError: for an unknown form, or for `pil` where PIL has no mode.
    """
    check_choice("output_type", output_type, OUTPUT_TYPES)
    if output_type == "pil" and channels not in PIL_MODES:
        raise ValueError(
            f"`output_type` is 'pil', but the model has {channels} channels and PIL holds 1, 3 or 4; use 'np' or 'pt'."
        )


def decode_images(sample: torch.Tensor, output_type: str) -> list[Image.Image] | np.ndarray | torch.Tensor:
    """Turns samples of shape (B, C, H, W) in [−1, 1] into the form that [`check_output_type`] allows."""
    if output_type == "sample":
        return sample
    if output_type == "pil":
        pixels = denormalize(sample).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(p.squeeze(-1) if p.shape[-1] == 1 else p) for p in pixels]
    images = (sample.to(torch.float32) / 2 + 0.5).clamp(0, 1)
    return images if output_type == "pt" else images.permute(0, 2, 3, 1).cpu().numpy()


def encode_images(name: str, images: Images, channels: int, size: tuple[int, int]) -> torch.Tensor:
    """Turns images into samples, float32, shape (B, C, H, W), in [−1, 1].

    Args:
        name (`str`): what the argument is called.
        images: one or a list of `PIL.Image`; `numpy.ndarray` of shape (B, H, W, C), (H, W, C) or, with one channel, (H, W);
            `torch.Tensor` of shape (B, C, H, W) or (C, H, W). Values are 0 to 255 in uint8, 0 to 65535 in uint16 and from 0 to 1 in floating point,
            as the pipeline's own outputs `pil`, `np` and `pt` are.
        channels (`int`), size (`tuple[int, int]`): C, and H and W, of the model.

    Raises:
        ValueError: for another type, mode, number of channels, size or range of values.
    """
    if isinstance(images, list | tuple) and images:
        return torch.cat([encode_images(f"{name}[{i}]", image, channels, size) for i, image in enumerate(images)])
    if isinstance(images, Image.Image):
        wanted = PIL_MODES.get(channels)
        if wanted is None or images.mode != wanted:
            remedy = f"use {name}.convert({wanted!r})" if wanted else "pass an array"
            raise ValueError(
                f"`{name}` has the mode {images.mode!r}; a model of {channels} channels needs {wanted!r}: {remedy}."
            )
        images = np.asarray(images)
    values = _as_batch(name, images, channels)
    if values.shape[1] != channels or values.shape[0] == 0:
        raise ValueError(
            f"`{name}` has {values.shape[1]} channels in {values.shape[0]} images; the model has {channels}."
        )
    _check_size(name, values, size)
    if values.dtype in (torch.uint8, torch.uint16):
        return normalize(values)
    return _checked_values(name, values) * 2 - 1


def encode_mask(mask: Images, count: int, size: tuple[int, int]) -> torch.Tensor:
    """What is to be painted, as a `torch.Tensor` of `bool`, shape (1 or B, 1, H, W).

    Args:
        mask: one or a list of `PIL.Image`, `numpy.ndarray` of shape (H, W) or (B, H, W), or `torch.Tensor` of shape
            (B, 1, H, W), (B, H, W) or (H, W). White (`True`, 1, 255) is painted, black is kept; half and above counts as white.
        count (`int`): B, the number of images.
        size (`tuple[int, int]`): H and W of the images.

    Raises:
        ValueError: for another type, number, size or range.
    """
    if isinstance(mask, list | tuple) and mask:
        mask = torch.cat([encode_mask(one, 1, size) for one in mask])
    elif isinstance(mask, Image.Image):
        # "L" is 8 bits: of 16, or of fractions, PIL would keep what lies from 0 to 255 and clip the rest.
        mask = np.asarray(mask if mask.mode.startswith(("I", "F")) else mask.convert("L"))
    if not isinstance(mask, np.ndarray | torch.Tensor):
        raise ValueError(
            f"`mask` is a {type(mask).__name__}; it must be a PIL image, an array, a tensor, or a list of them."
        )
    values = _as_tensor("mask", mask)
    if values.ndim in (2, 3, 4):
        _check_size("mask", values, size)
        values = values.reshape(-1, 1, *size)
    if values.ndim != 4 or len(values) not in (1, count) or (mask.ndim == 4 and mask.shape[1] != 1):
        raise ValueError(
            f"`mask` has shape {tuple(mask.shape)}; it must be (H, W), or one such mask for each of {count} images."
        )
    if values.dtype == torch.bool:
        return values
    if values.dtype in (torch.uint8, torch.uint16):
        numbers = values.to(torch.int32)
        white = torch.iinfo(values.dtype).max if numbers.max() > 1 else 1  # a mask of 0 and 1 is one, too
        return numbers * 2 >= white
    return _checked_values("mask", values) >= 0.5


def _as_batch(name: str, images: Images, channels: int) -> torch.Tensor:
    """Images of one array or tensor, as (B, C, H, W)."""
    if isinstance(images, np.ndarray):
        if images.ndim == 2 and channels == 1:
            images = images[..., None]
        if images.ndim in (3, 4):
            return _as_tensor(name, images[None] if images.ndim == 3 else images).movedim(-1, 1)
    elif isinstance(images, torch.Tensor) and images.ndim in (3, 4):
        return (images[None] if images.ndim == 3 else images).detach()
    what = f"has shape {tuple(images.shape)}" if hasattr(images, "shape") else f"is a {type(images).__name__}"
    raise ValueError(
        f"`{name}` {what}; it must be a PIL image, an array of shape (B, H, W, C), a tensor of shape (B, C, H, W), or a list."
    )


def _as_tensor(name: str, values: np.ndarray | torch.Tensor) -> torch.Tensor:
    """A tensor of its own, of an array in any order of its bytes and rows."""
    if isinstance(values, torch.Tensor):
        return values.detach()
    if values.dtype.kind not in "buif":
        raise ValueError(f"`{name}` has dtype {values.dtype}; it must hold numbers.")
    dtype = np.float64 if values.dtype == np.longdouble else values.dtype.newbyteorder("=")
    return torch.tensor(np.ascontiguousarray(values.astype(dtype, copy=False)))


def _check_size(name: str, values: torch.Tensor, size: tuple[int, int]) -> None:
    if tuple(values.shape[-2:]) != size:
        (height, width), (rows, columns) = size, values.shape[-2:]
        raise ValueError(
            f"`{name}` is {columns} wide and {rows} high; the model's images are {width}×{height}: resize it to that."
        )


def _checked_values(name: str, values: torch.Tensor) -> torch.Tensor:
    """Floating-point values in [0, 1], float32."""
    if not values.is_floating_point():
        raise ValueError(
            f"`{name}` has dtype {values.dtype}; it must be uint8 (0 to 255), uint16 (0 to 65535) or floating point (0 to 1)."
        )
    values = values.to(torch.float32)  # torch has no smallest one of some dtypes
    low, high = values.min().item(), values.max().item()
    if not 0 <= low <= high <= 1:  # also of NaN
        raise ValueError(
            f"`{name}` has values from {low:.4g} to {high:.4g}; in floating point they must lie in 0…1. Of x in [−1, 1] take "
            f"(x + 1)/2, of 0 to 255 convert to uint8."
        )
    return values
