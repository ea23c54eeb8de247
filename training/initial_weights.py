"""Fine-tuning: training begins with the weights of another model."""

import torch
from build_model import make_unet
from config_checks import image_size
from diffusers import UNet2DModel
from train_config import TrainConfig, UserError

from ddpm_hub import DDPMHubPipeline

CLASSES = "class_embedding."

# What may differ: the weights have the same shapes and meaning all the same, up to the embedding of the classes.
FREE = {"sample_size", "dropout", "num_class_embeds"}


def load_initial_model(config: TrainConfig) -> DDPMHubPipeline:
    """The model `config.init_from`, and whether it suits, as far as that can be told before the data is read.

    Raises:
        UserError: if there is no such model, it predicts something else, or its network is another one.
    """
    try:
        source = DDPMHubPipeline.from_pretrained(config.init_from)
    except (OSError, ValueError) as error:
        raise UserError(f"`init_from` is {config.init_from!r}, which cannot be loaded: {error}") from error
    theirs = source.scheduler.config.prediction_type
    if theirs != config.prediction_type:
        raise UserError(
            f"`prediction_type` is {config.prediction_type!r}, but the network of `init_from` = {config.init_from!r} "
            f"predicts {theirs!r}; add --prediction_type {theirs}."
        )
    size = image_size(config) or source.image_size
    with torch.device("meta"):
        unet = make_unet(config, (source.unet.config.in_channels, *size), classes=0)
    _check_same(config, unet, source.unet)
    return source


def copy_weights(config: TrainConfig, source: DDPMHubPipeline, unet: UNet2DModel) -> None:
    """Fills `unet` with the weights of `source`; those of the classes only where there are as many, whatever their names.

    Args:
        config (`TrainConfig`): `init_from`, for the message.
        source (`DDPMHubPipeline`): what [`load_initial_model`] returned.
        unet (`UNet2DModel`): as [`build_unet`] made it for the data.

    Raises:
        UserError: if the network for the data is another one than the model's, naming every difference.
    """
    _check_same(config, unet, source.unet)
    own, theirs = unet.state_dict(), source.unet.state_dict()
    for name, tensor in own.items():
        if not name.startswith(CLASSES) or (name in theirs and theirs[name].shape == tensor.shape):
            tensor.copy_(theirs[name])


def _check_same(config: TrainConfig, unet: UNet2DModel, source: UNet2DModel) -> None:
    here, there = (_plain(network.config) for network in (unet, source))
    names = [name for name in here if not name.startswith("_") and name not in FREE and here[name] != there[name]]
    if names:
        listed = "; ".join(f"{name} is {there[name]!r} there and {here[name]!r} here" for name in names)
        raise UserError(f"`init_from` is {config.init_from!r}, whose network is another one: {listed}.")


def _plain(values: dict) -> dict:
    """With lists in place of tuples, of which a stored configuration has none."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
