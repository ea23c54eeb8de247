"""How the layers of a network compute fastest in training, with what comes out the same but for rounding.

What each of these gains is in docs/TRAINING_SPEED.md.
"""

import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D


def place_for_training(unet: UNet2DModel, accelerator: Accelerator) -> UNet2DModel:
    """The same network in training mode on the device, laid out and computing as is fastest there."""
    # Convolutions are fastest where the channels of a pixel lie together, on CPUs and GPUs alike. FSDP takes no such weights.
    layout = torch.contiguous_format if accelerator.distributed_type == "FSDP" else torch.channels_last
    unet = unet.to(accelerator.device, memory_format=layout).train()
    in_bfloat16 = accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16"
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            # In training mode diffusers' block copies the input of its shortcut into the slow format, and back again in the
            # backward pass. That is all the mode changes: its drop-out is a module of its own, which stays in training.
            module.training = False
        elif isinstance(module, Attention) and in_bfloat16:
            module.set_processor(AttentionInFloat32())
        elif isinstance(module, torch.nn.GroupNorm) and in_bfloat16:
            module.register_forward_pre_hook(_planes_apart)
            module.register_forward_hook(_channels_together)
    return unet


class AttentionInFloat32(AttnProcessor2_0):
    """Scaled dot-product attention and its linear layers without autocast, in the weights' own precision, which is float32 in
    training: on a CPU the backward pass in bf16 is slower."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        with torch.autocast(hidden_states.device.type, enabled=False):
            states = hidden_states.to(attn.to_q.weight.dtype)
            found = super().__call__(attn, states, encoder_hidden_states, attention_mask, temb)
        return found.to(hidden_states.dtype)


def _planes_apart(norm: torch.nn.GroupNorm, images: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """In the usual layout: on a CPU that of channels last is slower in bf16, even with both copies."""
    return (images[0].contiguous() if images[0].dtype == torch.bfloat16 else images[0],)


def _channels_together(norm: torch.nn.GroupNorm, _: tuple, normed: torch.Tensor) -> torch.Tensor:
    return normed.contiguous(memory_format=torch.channels_last) if normed.dim() == 4 else normed
