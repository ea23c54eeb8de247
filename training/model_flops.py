"""How much arithmetic a training step takes: counted, not estimated."""

import torch
from diffusers import UNet2DModel
from torch.utils.flop_counter import FlopCounterMode


def training_flops_per_image(unet: UNet2DModel) -> int:
    """Floating-point operations of the forward and backward pass of one image, additions and multiplications both counted.

    Convolutions, matrix products and attention are counted, on the meta device: nothing is computed.
    """
    config = unet.config
    with torch.device("meta"):
        copy = UNet2DModel.from_config(config).train()
        height, width = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size
        image = torch.empty(1, config.in_channels, height, width)
        labels = torch.zeros(1, dtype=torch.long) if config.num_class_embeds else None
        with FlopCounterMode(display=False) as counter:
            copy(image, torch.zeros(1), class_labels=labels, return_dict=False)[0].sum().backward()
    return counter.get_total_flops()
