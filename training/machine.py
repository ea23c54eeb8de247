"""What a figure was measured on, without a word about whose machine it is."""

import platform
from pathlib import Path

import torch


def describe_machine(device: torch.device, processes: int = 1) -> dict:
    """The model of the GPU or CPU, how many devices or threads all processes use together, and torch's version.

    Returns:
        `dict`: `name` (left out where the system does not tell), `devices` or `threads`, `torch`.
    """
    if device.type == "cuda":
        name, count = torch.cuda.get_device_name(device), {"devices": processes}
    else:
        name, count = cpu_name(), {"threads": torch.get_num_threads() * processes}
    return ({"name": name} if name else {}) | count | {"torch": torch.__version__}


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's model as the system names it; at least its architecture; empty where neither is known."""
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()
