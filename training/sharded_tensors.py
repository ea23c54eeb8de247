"""Tensors that FSDP may have divided among the processes: their parts, and the whole of them."""

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor, gathered in each process where it was divided."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process has of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def divided_as(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, the same in each process, moved to the device of `like` and divided as it is."""
    value = value.to(like.device)
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)  # nothing needs to be sent


def joined_as(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The tensor of which each process has a part, divided as `like` is, whose shape it has."""
    if not isinstance(like, DTensor):
        return part
    layout = {"shape": like.shape, "stride": like.stride(), "run_check": False}
    return DTensor.from_local(part, like.device_mesh, like.placements, **layout)
