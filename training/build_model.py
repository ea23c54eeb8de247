"""The network and the scheduler that a configuration and its data ask for."""

import torch
from diffusers import UNet2DModel
from image_data import ImageData
from train_config import TrainConfig, UserError

from ddpm_hub import DDPMHubScheduler

HEAD_CHANNELS = 8  # of each attention head


def build_unet(config: TrainConfig, data: ImageData) -> UNet2DModel:
    """A `UNet2DModel` whose channels and size follow the data, with one class embedding more than there are classes.

    Raises:
        UserError: if the images cannot be halved as often as `block_out_channels` asks, if no level has a height of
            `attention_resolutions`, or if the network cannot compute on the images.
    """
    channels, height, width = data.pixels.shape[1:]
    levels = len(config.block_out_channels)
    _check_halving(levels, height, width)
    heights = [height >> level for level in range(levels)]
    for asked in config.attention_resolutions:
        if asked not in heights:
            raise UserError(
                f"`attention_resolutions` is {list(config.attention_resolutions)}, but no level of the U-Net has height "
                f"{asked}; the heights are {', '.join(map(str, heights))}."
            )
    has_attention = [height in config.attention_resolutions for height in heights]
    _check_heads(config, has_attention)
    unet = UNet2DModel(
        sample_size=height if height == width else (height, width),
        in_channels=channels,
        out_channels=channels,
        layers_per_block=config.layers_per_block,
        block_out_channels=config.block_out_channels,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in has_attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(has_attention)),
        norm_num_groups=config.norm_num_groups,
        dropout=config.dropout,
        num_class_embeds=len(data.class_names) + 1 if data.class_names else None,
        attention_head_dim=HEAD_CHANNELS,
    )
    _try_out(unet, config)
    return unet


def _check_heads(config: TrainConfig, has_attention: list[bool]) -> None:
    """The middle, which has the channels of the last level, always has attention."""
    attending = [c for c, a in zip(config.block_out_channels, [*has_attention[:-1], True], strict=True) if a]
    if min(attending) < HEAD_CHANNELS:
        raise UserError(
            f"`block_out_channels` is {list(config.block_out_channels)}; the last level and those with attention must "
            f"have at least {HEAD_CHANNELS} channels, the width of an attention head."
        )


def _try_out(unet: UNet2DModel, config: TrainConfig) -> None:
    """Computes once on two images, so that what the network cannot do is told before anything is trained or moved."""
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    labels = torch.zeros(2, dtype=torch.long) if unet.config.num_class_embeds else None
    try:
        with torch.no_grad():  # in eval mode, in which drop-out takes no random numbers
            images = torch.zeros(2, unet.config.in_channels, height, width)
            unet.eval()(images, torch.zeros(2, dtype=torch.long), class_labels=labels)
    except Exception as error:  # whatever the layers cannot do, they say in errors of their own
        raise UserError(
            f"`block_out_channels` is {list(config.block_out_channels)}, a network that cannot compute on {width}×{height} "
            f"images: {' '.join(str(error).split())}."
        ) from error


def _check_halving(levels: int, height: int, width: int) -> None:
    possible = 1
    while height % 2**possible == 0 and width % 2**possible == 0:
        possible += 1
    if levels > possible:
        factor = 2 ** (levels - 1)
        fitting = max(factor, round(height / factor) * factor)
        raise UserError(
            f"`block_out_channels` has {levels} levels, which halve the images {levels - 1} times, but {width}×{height} "
            f"images can be halved {possible - 1} times. Use at most {possible} levels, or --resolution {fitting}."
        )


def build_scheduler(config: TrainConfig) -> DDPMHubScheduler:
    """The scheduler to train and to sample with. Sampling starts at T−1 whatever the number of steps (`trailing`)."""
    try:
        return DDPMHubScheduler(
            num_train_timesteps=config.num_train_timesteps,
            beta_schedule=config.beta_schedule,
            beta_start=config.beta_start,
            beta_end=config.beta_end,
            prediction_type=config.prediction_type,
            variance_type=config.variance_type,
            timestep_spacing="trailing",
        )
    except ValueError as error:  # its messages name the argument, which has the same name here
        raise UserError(str(error)) from error
