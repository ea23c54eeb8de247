"""How long an evaluation takes, from one timed call of the network and of the extractor: told before it begins."""

from collections.abc import Callable

import torch

from ddpm_hub.ddpm_sampling_settings import SamplingSettings
from evaluation.context import Context
from evaluation.measure import guidance_settings, steps_settings
from evaluation.options import FULL
from evaluation.work import seconds_of


def estimate(context: Context) -> str:
    """A sentence for this run and one for the full one. Work that is done already is not taken off."""
    options, state = context.options, context.state
    batch = options.batch_size
    network = seconds_of(lambda: _call(context, batch), state.device)
    looking = seconds_of(lambda: _look(context, batch), state.device) if set(context.parts) - {"bound"} else 0.0
    timestep_images, drawn, looked_at = _amounts(context, {name: getattr(options, name) for name in FULL})
    full = _amounts(context, options.numbers_of_full_run)

    def seconds(amounts: tuple[int, int, int]) -> float:
        return ((amounts[0] + amounts[1]) * network + amounts[2] * looking) / batch / state.num_processes

    said = (
        f"{timestep_images + drawn:,} network calls on images and {looked_at:,} of the extractor, measured at "
        f"{batch / network:,.0f} and {batch / looking:,.0f} images/s"
        if looking
        else f"{timestep_images + drawn:,} network calls on images, measured at {batch / network:,.0f} images/s"
    )
    count = f" with {state.num_processes} processes" if state.num_processes > 1 else ""
    full_run = "" if options.full else f" The full run (--full): about {_said(seconds(full))}."
    return f"About {_said(seconds((timestep_images, drawn, looked_at)))}{count}: {said}.{full_run}"


def _call(context: Context, batch: int) -> object:
    unet = context.pipeline.unet
    labels = None if context.pipeline.num_classes is None else torch.zeros(batch, dtype=torch.long, device=unet.device)
    x = torch.zeros(batch, unet.config.in_channels, *context.pipeline.image_size, device=unet.device, dtype=unet.dtype)
    with torch.no_grad():
        return unet(x, torch.zeros(batch, device=unet.device), class_labels=labels).sample


def _look(context: Context, batch: int) -> object:
    return context.extractor(torch.zeros(batch, *context.train.image_shape, dtype=torch.uint8))


def _amounts(context: Context, numbers: dict[str, int]) -> tuple[int, int, int]:
    """Images × network calls for the bound and for samples, and images that the extractor looks at."""
    num_timesteps, options, parts = len(context.pipeline.scheduler), context.options, context.parts
    bound = drawn = looked_at = 0
    if "bound" in parts:
        count = min(numbers["bound_images"], len(context.held))
        bound = count * (options.timesteps_per_image or num_timesteps) + options.analytic_images * num_timesteps
    if set(parts) - {"bound"}:
        splits = (context.train, context.held) if "samples" in parts else (context.train,)
        looked_at += sum(min(len(each), numbers["reference_images"]) for each in splits)
    if "samples" in parts:
        drawn += numbers["num_samples"] * _calls(context.settings, num_timesteps)
        looked_at += 2 * numbers["num_samples"]
    tables: dict[str, Callable] = {"steps": steps_settings, "guidance": guidance_settings}
    for part in tables.keys() & set(parts):
        rows = tables[part](context)
        drawn += numbers["study_samples"] * sum(_calls(row, num_timesteps) for row in rows)
        looked_at += numbers["study_samples"] * len(rows)
    return bound, drawn, looked_at


def _calls(settings: SamplingSettings, num_timesteps: int) -> int:
    low, high = settings.guidance_interval or (0, num_timesteps - 1)
    guided = 0 if settings.guidance_scale == 1 else (high + 1 - low) / num_timesteps
    return round(settings.num_inference_steps * (1 + guided))


def _said(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
