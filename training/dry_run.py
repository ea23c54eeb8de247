"""`--dry_run`: what a run would take, in parameters, operations, memory and time. Nothing is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from diffusers import UNet2DModel
from model_flops import training_flops_per_image
from optimizer import moment_numbers
from torch.autograd.graph import saved_tensors_hooks

if TYPE_CHECKING:
    from image_data import ImageData
    from random_batches import Batch
    from streamed_images import StreamedImages
    from train_config import TrainConfig

    from ddpm_hub import DDPMHubPipeline

FLOAT32 = 4  # bytes


def dry_run_report(
    config: TrainConfig,
    data: ImageData | StreamedImages,
    pipeline: DDPMHubPipeline,
    seconds_per_step: float,
    processes: int,
    activation_bytes_per_image: int,
) -> str:
    """The resolved configuration as YAML, and what it takes.

    Args:
        seconds_per_step: of a few optimizer steps, as they were timed here with all processes.
        processes: how many train together.
        activation_bytes_per_image: as [`activation_bytes`] measures them.
    """
    memory = memory_estimate(config, pipeline.unet, processes, activation_bytes_per_image)
    parts = ", ".join(f"{name} {_mebibytes(size)}" for name, size in memory.items())
    images = config.max_train_steps * config.batch_size
    seen = "a stream of unknown length"
    if data.num_images is not None:
        seen = f"{images / data.num_images:.3g} epochs of {data.num_images:,} images"
    return "\n".join(
        (
            config.to_yaml(),
            f"network: {_parameters(pipeline.unet):,} parameters; {_operations(training_flops_per_image(pipeline.unet))} "
            f"an image, forward and backward.",
            f"memory: about {_mebibytes(sum(memory.values()))} in each process: {parts}. Not in it: torch itself, the work "
            f"space of its kernels, images that wait, and sampling.",
            f"steps: {config.max_train_steps:,} of {config.batch_size} images, {seen}.",
            f"time: about {_duration(config.max_train_steps * seconds_per_step)}, from a few steps of {seconds_per_step:.3g} s; "
            f"sample grids, validation, checkpoints and the judgement come on top.",
        )
    )


def memory_estimate(
    config: TrainConfig, unet: UNet2DModel, processes: int, activation_bytes_per_image: int
) -> dict[str, int]:
    """Bytes in each process when an optimizer step holds most, by what takes them, where nothing is sharded.

    Weights, gradients, moments and averages are counted; activations are measured for a few images, and scaled to the
    images that one pass of one process has.
    """
    weights = FLOAT32 * _parameters(unet)
    averages = len(config.ema_decays) + len(config.ema_stds)
    images = config.batch_size // (processes * config.gradient_accumulation_steps)
    parts = {
        "weights": weights,
        "gradients": weights,
        "the optimizer's moments": FLOAT32 * moment_numbers(config, unet),
        f"{averages} average{'s' if averages > 1 else ''}": averages * weights,
        f"activations of {images} images": images * activation_bytes_per_image,
    }
    if config.mixed_precision in ("fp16", "bf16"):
        parts[f"weights in {config.mixed_precision}"] = weights // 2
    if processes > 1:
        parts["gradients on their way between processes"] = weights
    return parts


def activation_bytes(model: torch.nn.Module, objective: Callable, batch: Batch) -> int:
    """Bytes for each image of a batch when a pass holds most of them, without the gradients of the weights.

    It is what the forward pass keeps for the backward one, and thrice the largest tensor of it: the gradients of a layer's
    output and input, and the work space of its kernel. Nothing is differentiated. What a pass keeps whatever its number of
    images (weights in low precision) is left out, if `batch` has two images or more. With gradient checkpointing, what one
    block computes again comes on top.

    Args:
        model: the network as it is trained, on its device.
        objective: called as `objective(model, batch)`; its `loss` is what would be differentiated.
        batch: a few images.
    """
    count = len(batch.pixels)
    held = _held_bytes(model, objective, batch)
    if count == 1:
        return held
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    half = type(batch)(
        **{name: None if values is None else values[: count // 2].clone() for name, values in fields.items()}
    )
    return (held - _held_bytes(model, objective, half)) // (count - count // 2)


def _held_bytes(model: torch.nn.Module, objective: Callable, batch: Batch) -> int:
    """Bytes of all tensors that the graph of one loss holds, each once, without the parameters; and thrice the largest."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept, largest = {}, 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
            if tensor.ndim and len(tensor) == len(batch.pixels):  # something of each image, and no copy of weights
                largest = max(largest, tensor.nbytes)
        return tensor.detach()  # not the tensor itself, which would hold the graph that holds it

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = objective(model, batch)
    del losses  # it lived until here, so no address was used twice
    return sum(kept.values()) + 3 * largest


def _parameters(unet: UNet2DModel) -> int:
    return sum(parameter.numel() for parameter in unet.parameters())


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB" if size >= 10 * 2**20 else f"{size / 2**20:.1f} MiB"


def _operations(count: int) -> str:
    return f"{count / 1e9:,.3g} GFLOP" if count >= 1e9 else f"{count / 1e6:,.3g} MFLOP"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
