"""Times one reverse step: ours, diffusers' DDPMScheduler, and the floor, in turn, in one process.

    python benchmarks/scheduler_step.py [--device cpu|cuda] [--rounds 30] [--json FILE]

The floor is what no scheduler can do without: one noise draw and one pass over the data, x_s = a·x_t + σ·z, with its
weights at hand. The three are timed round by round, in turn, so that a machine whose speed drifts drifts for all; the
table gives the median time of a step and the median of the ratios within a round.
"""

import argparse
import json
import logging
import platform
import statistics
import time
from collections.abc import Callable

import diffusers
import torch
from diffusers import DDPMScheduler

from ddpm_hub import DDPMHubScheduler

SHAPES = [(1, 1, 32, 32), (1, 3, 32, 32), (4, 3, 32, 32), (16, 1, 32, 32), (1, 3, 128, 128), (16, 3, 32, 32),
          (64, 3, 32, 32), (1, 3, 256, 256), (4, 3, 256, 256)]  # fmt: skip
STEPS = 50
SECONDS_PER_ROUND = 0.02


def sampler(scheduler, model_output: torch.Tensor, sample: torch.Tensor) -> Callable[[], None]:
    """All steps of a schedule but the last, with the loop and the timesteps that a diffusers pipeline has."""
    scheduler.set_timesteps(STEPS, device=sample.device)
    timesteps = scheduler.timesteps[:-1]

    def run() -> None:
        for t in timesteps:
            scheduler.step(model_output, t, sample, return_dict=False)

    return run


def floor(sample: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        for _ in range(STEPS - 1):
            torch.add(sample, torch.randn(sample.shape, device=sample.device), alpha=0.1)

    return run


def seconds_per_step(run: Callable[[], None], repeats: int, device: str) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / (repeats * (STEPS - 1))


def measure(shape: tuple[int, ...], device: str, rounds: int) -> dict:
    generator = torch.Generator().manual_seed(0)
    sample, model_output = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    contenders = {
        "ours": sampler(DDPMHubScheduler(), model_output, sample),
        "diffusers": sampler(DDPMScheduler(), model_output, sample),
        "floor": floor(sample),
    }
    repeats = {}
    for name, run in contenders.items():
        seconds_per_step(run, 1, device)  # warm-up
        repeats[name] = max(1, round(SECONDS_PER_ROUND / (seconds_per_step(run, 1, device) * (STEPS - 1))))
    times = [{n: seconds_per_step(run, repeats[n], device) for n, run in contenders.items()} for _ in range(rounds)]
    return {
        "shape": shape,
        "kib": sample.numel() * 4 / 1024,
        **{f"{name}_us": 1e6 * statistics.median(t[name] for t in times) for name in contenders},
        "ours_over_floor": statistics.median(t["ours"] / t["floor"] for t in times),
        "ours_over_diffusers": statistics.median(t["ours"] / t["diffusers"] for t in times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    machine = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine()
    about = {"torch": torch.__version__, "diffusers": diffusers.__version__, "threads": torch.get_num_threads(),
             "device": f"{arguments.device} ({machine})", "steps": STEPS, "rounds": arguments.rounds}  # fmt: skip
    print("  ".join(f"{key} {value}" for key, value in about.items()))
    print(
        f"{'shape':>18} {'KiB':>8} {'ours µs':>10} {'diffusers µs':>13} {'floor µs':>10} {'ours/floor':>11} {'ours/diffusers':>15}"
    )
    rows = []
    for shape in SHAPES:
        row = measure(shape, arguments.device, arguments.rounds)
        rows.append(row)
        print(f"{'×'.join(map(str, shape)):>18} {row['kib']:8.0f} {row['ours_us']:10.1f} {row['diffusers_us']:13.1f} "
              f"{row['floor_us']:10.1f} {row['ours_over_floor']:11.2f} {row['ours_over_diffusers']:15.2f}")  # fmt: skip
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(about | {"rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
