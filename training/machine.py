"""What a figure was measured on, without a word about whose machine it is; and what that machine reaches."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch


def available_threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def idle_processors(device: torch.device) -> str | None:
    """How to use the processors that are left over, where a CPU computes with fewer threads than it has processors.

    `accelerate launch` gives each process one thread unless it is told otherwise, and does not say so.

    Returns:
        `str`: one sentence; `None` if nothing is left over.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of this run on this machine; torchrun sets it
    threads, processors = torch.get_num_threads(), available_threads()
    each = processors // processes
    if device.type != "cpu" or each <= threads:
        return None
    return (
        f"Computes with {processes * threads} of {processors} processors; OMP_NUM_THREADS={each} before the command uses "
        f"{processes * each}."
    )


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's model as the system names it; at least its architecture; empty where neither is known."""
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()


def is_of_amd(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether AMD made the CPU, as the system says."""
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else platform.processor()
    return "AuthenticAMD" in text


def resolve_precision(mixed_precision: str, device: torch.device) -> str:
    """`auto` as `bf16` where the device computes faster in it, else `no`; everything else as it is.

    That is decided by what the device is and not by timing it, so that all processes of a run, and the run that resumes it,
    agree. A GPU must have bfloat16 of its own, not emulated. A CPU of Intel must have AMX, its matrix unit: with AVX-512 BF16
    alone a training step takes longer there than in float32, while on one of AMD it takes less (docs/TRAINING_SPEED.md).
    Other devices were not tried, and stay with float32.
    """
    if mixed_precision != "auto":
        return mixed_precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if device.type != "cpu":
        return "no"
    is_faster = torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and is_of_amd())
    return "bf16" if is_faster else "no"


def measured_peak(device: torch.device, dtype: torch.dtype, clock: Callable[[], float] | None = None) -> float:
    """FLOP/s that a large matrix product or a large 3×3 convolution reaches on the device, whichever is more.

    Additions and multiplications both count. Each is repeated for a quarter of a second, with as many threads as PyTorch has
    now, and the fastest time is taken. No random number of the process is used up. `clock` gives seconds, by default those of
    the wall; what is divided by a peak must be timed by the same.
    """
    side, (images, channels, size) = (8192, (64, 512, 32)) if device.type == "cuda" else (1024, (8, 128, 32))
    clock = clock or time.perf_counter
    own = torch.Generator(device).manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=own, device=device).to(dtype)

    a, b = numbers(side, side), numbers(side, side)
    x, kernel = numbers(images, channels, size, size), numbers(channels, channels, 3, 3)
    x, kernel = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, kernel))
    with torch.no_grad():
        product = 2 * side**3 / _fastest(lambda: torch.mm(a, b), device, clock)
        convolution = (
            2 * 9 * images * channels**2 * size**2 / _fastest(lambda: torch.conv2d(x, kernel, padding=1), device, clock)
        )
    return max(product, convolution)


def _fastest(run: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    """Seconds of the fastest of as many runs as begin within a quarter of a second."""
    fastest, end = float("inf"), None
    while end is None or clock() < end:
        _synchronize(device)
        begun = clock()
        run()
        _synchronize(device)
        done = clock()
        if end is None:  # the first run warms up
            end = done + 0.25
        else:
            fastest = min(fastest, done - begun)
    return fastest


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
