"""What samples depend on: the model that a script draws with, and the options of `sample.py`, checked and completed by it."""

import argparse
import hashlib
import os
from pathlib import Path

import diffusers
import torch
from huggingface_hub import try_to_load_from_cache

import ddpm_hub
from ddpm_hub import DDPMHubPipeline
from ddpm_hub.command_line import class_numbers
from ddpm_hub.ddpm_argument_checks import check_choice, check_integer
from ddpm_hub.ddpm_image_formats import PIL_MODES
from ddpm_hub.ddpm_network_calls import keep_freed_memory
from ddpm_hub.ddpm_samplers import make_sampler
from ddpm_hub.ddpm_sampling_settings import SETTINGS, USUAL, settings_for_call

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = ("png", "npy")
ANY_CLASS = "any"
_OWN = ("timestep_spacing", "dynamic_thresholding_ratio", "fast")


def check_options(options: argparse.Namespace) -> None:
    """Whether the options that are `sample.py`'s own can be, as far as that needs no model.

    Raises:
        ValueError: naming the option, its value and what is allowed.
    """
    check_integer("num_images", options.num_images, 1, float("inf"))
    if options.format is not None:
        check_choice("format", options.format, FORMATS)


def load_model(options: argparse.Namespace, device: torch.device) -> DDPMHubPipeline:
    """The model that a script draws with, on `device`, without a progress bar of its own.

    Raises:
        ValueError: naming the option, its value and what is allowed.
        OSError: if there is no such model.
    """
    check_integer("batch_size", options.batch_size, 1, float("inf"))
    check_choice("mixed_precision", options.mixed_precision, tuple(DTYPES))
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", options.mixed_precision):
        raise ValueError(
            f"`mixed_precision` is {options.mixed_precision!r}, while accelerate is set to {asked!r}; add "
            f"--mixed_precision {asked}, or set accelerate to 'no'."
        )
    if options.mixed_precision == "fp16" and device.type == "cpu":
        raise ValueError("`mixed_precision` is 'fp16', which is for GPUs; on a CPU it must be one of 'no', 'bf16'.")
    if options.revision is not None and Path(options.model).is_dir():
        raise ValueError(f"`revision` is {options.revision!r}, but {options.model!r} is a folder; leave it out.")
    hub = {} if options.revision is None else {"revision": options.revision}
    pipeline = DDPMHubPipeline.from_pretrained(options.model, torch_dtype=DTYPES[options.mixed_precision], **hub)
    pipeline.set_progress_bar_config(disable=True)
    if device.type == "cpu":
        keep_freed_memory()
    return pipeline.to(device)


def chosen_classes(options: argparse.Namespace, pipeline: DDPMHubPipeline) -> list[int] | None:
    """The classes that the images have in turn; `None` for none.

    Raises:
        ValueError: for a class that the model does not have.
    """
    given = options.class_labels
    if given is None:
        return list(pipeline.id2label) or None
    if ANY_CLASS not in given:
        return class_numbers(given, pipeline)
    if len(given) > 1:
        raise ValueError(f"`class_labels` is {' '.join(given)!r}; {ANY_CLASS!r} stands alone, or is left out.")
    return None


def chosen_format(options: argparse.Namespace, pipeline: DDPMHubPipeline) -> str:
    """The format of the files; where none is given, by the number of channels.

    Raises:
        ValueError: for PNG where it cannot hold the channels.
    """
    channels = pipeline.unet.config.in_channels
    if options.format == "png" and channels not in PIL_MODES:
        raise ValueError(
            f"`format` is 'png', but the model has {channels} channels and a PNG file 1, 3 or 4; it must be 'npy'."
        )
    return options.format or ("png" if channels in PIL_MODES else "npy")


def call_arguments(options: argparse.Namespace, labels: list[int] | None, batch: int) -> dict:
    """The arguments of the pipeline for batch number `batch`."""
    numbers = range(batch * options.batch_size, (batch + 1) * options.batch_size)
    return {
        "batch_size": len(numbers),
        "class_labels": None if labels is None else [labels[number % len(labels)] for number in numbers],
        "seed": [options.seed + number for number in numbers],
        **{name: getattr(options, name) for name in (*SETTINGS, *_OWN)},
    }


def settings_of(options: argparse.Namespace, pipeline: DDPMHubPipeline, labels: list[int] | None) -> dict:
    """All that the images depend on, for `samples.json`; after a call of the pipeline has checked it."""
    given = {name: getattr(options, name) for name in SETTINGS}
    chosen = settings_for_call(pipeline.config.sampling, given, labels is not None, USUAL)
    scheduler = pipeline.scheduler.variant(timestep_spacing=options.timestep_spacing)
    sampler = make_sampler(scheduler, chosen.sampler, chosen.num_inference_steps, chosen.eta)
    resolved = {"num_inference_steps": len(sampler.timesteps), "eta": getattr(sampler, "eta", None)}
    return {
        "model": options.model,
        **identity(options.model, options.revision),
        "batch_size": options.batch_size,
        "seed": options.seed,
        "class_labels": labels,
        **vars(chosen) | resolved,
        **{name: getattr(options, name) for name in _OWN},
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "device": pipeline.device.type,
        "format": options.format,
        "versions": {module.__name__: module.__version__ for module in (ddpm_hub, diffusers, torch)},
    }


def identity(model: str, revision: str | None) -> dict:
    """Which model it is: the `commit` of a repository that was just loaded, and the `sha256` of the files that decide."""
    is_local = Path(model).is_dir()
    folder = Path(model) if is_local else _cached(model, revision)
    return {
        "commit": None if is_local else folder.name,
        "sha256": {name: _sha256(folder / name) for name in _deciding_files(folder)},
    }


def _cached(repo_id: str, revision: str | None) -> Path:
    """Where the cache has a repository that was just loaded: a folder named like its commit."""
    return Path(try_to_load_from_cache(repo_id, "model_index.json", revision=revision)).parent


def _deciding_files(folder: Path) -> list[str]:
    """The files of a model that decide what it draws."""
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shards = sorted(folder.glob("unet/diffusion_pytorch_model-*-of-*.safetensors"))
    names = [path.relative_to(folder).as_posix() for path in ([weights] if weights.exists() else shards)]
    return ["scheduler/scheduler_config.json", "unet/config.json", *names]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
