"""The network and the scheduler that a configuration and its data ask for."""

from diffusers import UNet2DModel
from image_data import ImageData
from train_config import TrainConfig, UserError

from ddpm_hub import DDPMHubScheduler


def build_unet(config: TrainConfig, data: ImageData) -> UNet2DModel:
    """A `UNet2DModel` whose channels and size follow the data, with one class embedding more than there are classes.

    Raises:
        UserError: if the images cannot be halved as often as `block_out_channels` asks.
    """
    channels, height, width = data.pixels.shape[1:]
    levels = len(config.block_out_channels)
    _check_halving(levels, height, width)
    has_attention = [height >> level in config.attention_resolutions for level in range(levels)]
    return UNet2DModel(
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
    )


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
