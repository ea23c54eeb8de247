"""Fine-tuning: training begins with the weights of another model."""

import dataclasses
from pathlib import Path

import torch
from build_model import CHANNELS, make_unet
from config_checks import image_size
from diffusers import UNet2DModel
from huggingface_hub import try_to_load_from_cache
from train_config import TrainConfig, UserError

from ddpm_hub import DDPMHubPipeline
from ddpm_hub.model_folder import read_model_folder

CLASSES = "class_embedding.weight"

# What may differ: the weights have the same shapes and meaning all the same, up to the embedding of the classes.
FREE = {"sample_size", "dropout", "num_class_embeds"}

# At which levels there is attention follows from the heights, which only the data say.
OF_THE_DATA = {"down_block_types", "up_block_types"}

SCHEDULE = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "rescale_betas_zero_snr")


def load_initial_model(config: TrainConfig) -> DDPMHubPipeline:
    """The model `config.init_from`, and whether it suits, as far as that can be told before the data is read.

    Raises:
        UserError: if there is no such model, it predicts something else, or its network is another one.
    """
    try:
        source = DDPMHubPipeline.from_pretrained(_expanded(config.init_from))
    except (OSError, ValueError) as error:
        raise UserError(f"`init_from` is {config.init_from!r}, which cannot be loaded: {error}") from error
    theirs = source.scheduler.config.prediction_type
    if theirs != config.prediction_type:
        raise UserError(
            f"`prediction_type` is {config.prediction_type!r}, but the network of `init_from` = {config.init_from!r} "
            f"predicts {theirs!r}; add --prediction_type {theirs}."
        )
    size, free = image_size(config), FREE
    if size is None:
        config = dataclasses.replace(config, attention_resolutions=())
        size, free = (2 ** len(config.block_out_channels),) * 2, FREE | OF_THE_DATA
    channels = CHANNELS.get(config.image_mode, source.unet.config.in_channels)
    with torch.device("meta"):
        unet = make_unet(config, (channels, *size), classes=0)
    _check_same(config, unet, source.unet, free)
    return source


def copy_weights(config: TrainConfig, source: DDPMHubPipeline, unet: UNet2DModel) -> None:
    """Fills `unet` with the weights of `source`.

    The classes have theirs where there are as many, whatever their names. Other classes all begin as the null class of the
    source, and as nothing where it had no classes: either way the network draws at first what the source draws of no class.

    Args:
        config (`TrainConfig`): `init_from`, for the message.
        source (`DDPMHubPipeline`): what [`load_initial_model`] returned.
        unet (`UNet2DModel`): as [`build_unet`] made it for the data.

    Raises:
        UserError: if the network for the data is another one than the model's, naming every difference.
    """
    _check_same(config, unet, source.unet, FREE)
    own, theirs = unet.state_dict(), source.unet.state_dict()
    for name, tensor in own.items():
        if name == CLASSES and name not in theirs:
            tensor.zero_()
        elif name == CLASSES and theirs[name].shape != tensor.shape:
            tensor.copy_(theirs[name][-1].expand_as(tensor))
        else:
            tensor.copy_(theirs[name])


def other_schedule(config: TrainConfig, source: DDPMHubPipeline) -> str | None:
    """What a person should know before weights learn another schedule than their own; `None` where it is the same."""
    theirs = source.scheduler.config
    differences = [
        f"{name} is {theirs[name]!r} there and {getattr(config, name)!r} here"
        for name in SCHEDULE
        if theirs[name] != getattr(config, name)
    ]
    return "; ".join(differences) or None


def comes_from_hub(config: TrainConfig) -> bool:
    """Whether the initial weights were a Hub repository's, as far as the Hub's cache knows: else it is a folder's name."""
    if config.init_from is None or Path(_expanded(config.init_from)).is_dir():
        return False
    try:
        return isinstance(try_to_load_from_cache(config.init_from, "model_index.json"), str)
    except ValueError:  # not the form of a repository's name
        return False


def earlier_training(config: TrainConfig) -> dict[str, float]:
    """What went into the initial weights, in all: `steps`, `images` and `seconds`; empty where their folder does not say."""
    folder = Path(_expanded(config.init_from or ""))
    if config.init_from is None or not folder.is_dir():
        return {}
    try:
        model = read_model_folder(folder)
    except (OSError, ValueError):  # a run that goes on does not need the folder any more
        return {}
    training, batch_size = model.metrics.get("training", {}), model.config.get("batch_size")
    if batch_size is None or not {"steps", "seconds"} <= training.keys():
        return {}
    steps, seconds = training["steps"], training["seconds"]
    before = training.get("earlier", {})
    own = {"steps": steps, "images": steps * batch_size, "seconds": seconds}
    return {name: value + before.get(name, 0) for name, value in own.items()}


def _expanded(model: str) -> str:
    return str(Path(model).expanduser()) if model.startswith("~") else model


def _check_same(config: TrainConfig, unet: UNet2DModel, source: UNet2DModel, free: set[str]) -> None:
    here, there = (_plain(network.config) for network in (unet, source))
    names = [name for name in here if not name.startswith("_") and name not in free and here[name] != there[name]]
    if names:
        listed = "; ".join(f"{name} is {there[name]!r} there and {here[name]!r} here" for name in names)
        raise UserError(f"`init_from` is {config.init_from!r}, whose network is another one: {listed}.")


def _plain(values: dict) -> dict:
    """With lists in place of tuples, of which a stored configuration has none."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
