"""Fine-tuning: training begins with the weights of another model."""

import dataclasses
import re
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

UP_LAYER = re.compile(r"(up_blocks\.\d+\.(?:resnets|attentions))\.(\d+)\.(.+)")

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


def copy_weights(config: TrainConfig, source: DDPMHubPipeline, unet: UNet2DModel) -> int:
    """Fills `unet` with the weights of `source`.

    Layers and attention that only `unet` has keep the weights that it was made with, which add nothing, so that it draws at first
    what the source draws (the idea is that of Net2Net, arXiv:1511.05641).

    The classes have theirs where there are as many, whatever their names. Other classes all begin as the null class of the
    source, and as nothing where it had no classes: either way the network draws at first what the source draws of no class.

    Args:
        config (`TrainConfig`): `init_from`, for the message.
        source (`DDPMHubPipeline`): what [`load_initial_model`] returned.
        unet (`UNet2DModel`): as [`build_unet`] made it for the data.

    Returns:
        `int`: how many parameters belong to layers and attention that the source has not.

    Raises:
        UserError: if the network for the data is another one than the model's, and not a larger one, naming every difference.
    """
    _check_same(config, unet, source.unet, FREE)
    own, theirs = unet.state_dict(), source.unet.state_dict()
    more_layers = unet.config.layers_per_block - source.unet.config.layers_per_block
    origins = {name: _name_in_source(name, more_layers) for name in own}
    if lost := theirs.keys() - set(origins.values()) - {CLASSES}:
        # Blocks with attention heed `downsample_type` and `upsample_type`, and those without do not.
        raise UserError(
            f"`init_from` is {config.init_from!r}, whose network has weights that have no place in this one: {min(lost)}; "
            f"leave `attention_resolutions` as it was there."
        )
    new = [name for name, origin in origins.items() if origin not in theirs and name != CLASSES]
    for name, tensor in own.items():
        if name == CLASSES and name not in theirs:
            tensor.zero_()
        elif name == CLASSES and theirs[name].shape != tensor.shape:
            tensor.copy_(theirs[name][-1].expand_as(tensor))
        elif origins[name] in theirs:
            tensor.copy_(theirs[origins[name]])
        # A new layer is to hand on what the layer before it gives.
        elif name.endswith("conv_shortcut.weight"):
            torch.nn.init.dirac_(tensor)
        elif name.endswith("conv_shortcut.bias"):
            tensor.zero_()
    return sum(own[name].numel() for name in new)


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


def _name_in_source(name: str, more_layers: int) -> str | None:
    """What the source calls the weights `name`, if it has them; `None` for a layer that is new on the way up.

    On the way down new layers come last. On the way up each layer is also given what one on the way down has found, the last
    first. The first is wider than the others, so new ones come second: what the new ones on the way down have found goes to the
    first and to them, and the rest have the same as before.
    """
    found = UP_LAYER.fullmatch(name)
    if found is None or int(found[2]) == 0:
        return name
    layer = int(found[2]) - more_layers
    return f"{found[1]}.{layer}.{found[3]}" if layer > 0 else None


def _check_same(config: TrainConfig, unet: UNet2DModel, source: UNet2DModel, free: set[str]) -> None:
    here, there = (_plain(network.config) for network in (unet, source))
    names = [
        name for name in here if not (name.startswith("_") or name in free or _holds(name, here[name], there[name]))
    ]
    if names:
        listed = "; ".join(f"{name} is {there[name]!r} there and {here[name]!r} here" for name in names)
        raise UserError(f"`init_from` is {config.init_from!r}, whose network is another one: {listed}.")


def _holds(name: str, here: object, there: object) -> bool:
    """Whether a network with the setting `here` can begin as one with the setting `there`."""
    if name == "layers_per_block":
        return here >= there
    if name in OF_THE_DATA and len(here) == len(there):
        return all(own in (other, f"Attn{other}") for own, other in zip(here, there, strict=True))
    return here == there


def _plain(values: dict) -> dict:
    """With lists in place of tuples, of which a stored configuration has none."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
