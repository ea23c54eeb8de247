"""The network and the scheduler that a configuration and its data ask for."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING

import torch
from config_checks import SET_BY, attention_levels, image_size
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from train_config import TrainConfig, UserError

from ddpm_hub import DDPMHubScheduler

if TYPE_CHECKING:
    from image_data import ImageData
    from streamed_images import StreamedImages

CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}


def build_unet(config: TrainConfig, data: ImageData | StreamedImages) -> UNet2DModel:
    """A `UNet2DModel` whose channels and size follow the data, with one class embedding more than there are classes.

    Its output has the data's channels, and as many more for a learned variance.

    Raises:
        UserError: if the images cannot be halved as often as `block_out_channels` asks, if no level has a height of
            `attention_resolutions`, or if the network cannot compute on the images.
    """
    classes = len(data.class_names)
    _try_out(config, data.image_shape, classes)
    return start_from_zero(make_unet(config, data.image_shape, classes))


def start_from_zero(unet: UNet2DModel) -> UNet2DModel:
    """Zeroes the last layer of the network and of each residual and attention block, which then begin as the identity.

    So Ho et al. initialise theirs (arXiv:2006.11239, their public code); diffusers does not. A network trained for minutes
    gains most.
    """
    last = [unet.conv_out]
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            last.append(module.conv2)
        elif isinstance(module, Attention):
            last.append(module.to_out[0])
    for layer in last:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return unet


def check_network(config: TrainConfig) -> None:
    """Tells what is wrong with the network before the data is read, with a size and channels that fit where they are not
    known yet.

    Raises:
        UserError: if `unet_options` has what `UNet2DModel` does not take, or the network cannot compute.
    """
    arguments = set(inspect.signature(UNet2DModel.__init__).parameters) - {"self"}
    for name in config.unet_options:
        if name not in arguments:
            raise UserError(
                f"`unet_options` has {name!r}, which UNet2DModel does not take; it takes "
                f"{', '.join(sorted(arguments - SET_BY.keys()))}."
            )
    # 8 pixels at the lowest level: enough for whatever is not about the size.
    size = image_size(config) or (8 * 2 ** (len(config.block_out_channels) - 1),) * 2
    if image_size(config) is None:
        config = dataclasses.replace(config, attention_resolutions=())
    _try_out(config, (CHANNELS.get(config.image_mode, 3), *size), classes=0)


def make_unet(config: TrainConfig, image_shape: tuple[int, int, int], classes: int) -> UNet2DModel:
    """As a configuration and images of this shape, (channels, height, width), ask for it, with diffusers' own first weights."""
    channels, height, width = image_shape
    has_attention = attention_levels(config, height, width)
    options = dict(config.unet_options)
    if options.get("time_embedding_type") == "learned":
        options["num_train_timesteps"] = config.num_train_timesteps
    return UNet2DModel(
        sample_size=height if height == width else (height, width),
        in_channels=channels,
        out_channels=2 * channels if config.variance_type == "learned_range" else channels,
        layers_per_block=config.layers_per_block,
        block_out_channels=config.block_out_channels,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in has_attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(has_attention)),
        norm_num_groups=config.norm_num_groups,
        dropout=config.dropout,
        num_class_embeds=classes + 1 if classes else None,
        attention_head_dim=config.attention_head_dim,
        **options,
    )


def _try_out(config: TrainConfig, image_shape: tuple[int, int, int], classes: int) -> None:
    """Computes once on an image of the right shape without content, so that what the network cannot do is told early.

    On the `meta` device a pass of any network takes a fraction of a second, no memory and no random numbers.
    """
    _, height, width = image_shape
    attention_levels(config, height, width)
    try:
        with torch.device("meta"), torch.no_grad():
            unet = make_unet(config, image_shape, classes).eval()
            images, labels = torch.empty(1, *image_shape), torch.zeros(1, dtype=torch.long) if classes else None
            unet(images, torch.zeros(1, dtype=torch.long), class_labels=labels)
    except Exception as error:  # whatever the layers cannot do, they say in errors of their own
        reason = " ".join(str(error).split()).rstrip(".")
        options = f" and `unet_options` is {config.unet_options}" if config.unet_options else ""
        raise UserError(
            f"`block_out_channels` is {list(config.block_out_channels)}{options}, a network that cannot compute on "
            f"{width}×{height} images: {type(error).__name__}: {reason}."
        ) from error


def build_scheduler(config: TrainConfig) -> DDPMHubScheduler:
    """The scheduler to train and to sample with. Sampling starts at T−1 whatever the number of steps (`trailing`)."""
    try:
        return DDPMHubScheduler(
            num_train_timesteps=config.num_train_timesteps,
            beta_schedule=config.beta_schedule,
            beta_start=config.beta_start,
            beta_end=config.beta_end,
            rescale_betas_zero_snr=config.rescale_betas_zero_snr,
            prediction_type=config.prediction_type,
            variance_type=config.variance_type,
            timestep_spacing="trailing",
        )
    except ValueError as error:  # its messages name the argument, which has the same name here
        raise UserError(str(error)) from error
