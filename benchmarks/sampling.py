"""Times sampling side by side: ours, diffusers' DDPMPipeline, lucidrains' sampler and the network alone, in one run.

    python benchmarks/sampling.py [--preset digits] [--batch_sizes 1 16 64] [--steps 20] [--rounds 15] [--device cpu|cuda]
        [--threads N] [--clock wall|processor] [--contenders ours "ours, fast" …] [--json FILE]

All but lucidrains draw with the same U-Net and weights (the preset's, unconditional, random: speed does not depend on them),
DDPM with the same number of steps, from noise to float32 arrays. "floor" is as many calls of the network and nothing else, as
diffusers runs it; "floor, fast" the same calls of the network that `fast=True` compiles. "lucidrains" is the package
denoising-diffusion-pytorch, where it is installed (it is no dependency), with as many channels, not as many parameters.

Each contender is a process of its own. In each round every one draws one batch, in turn, back and forth, so that a machine
whose speed drifts drifts for all; ratios are taken within a round, and their median, least and most are told. On a machine that
others use too, `--clock processor --threads 1` is steadier: it counts the time that the cores spent. The peak is what a large
matrix product or convolution reaches (training/machine.py), measured in every round too; memory is the most that the process
held at any time, above what it held before the network was first called.
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / "training" / "configs"
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "training")]
# (channels, height, width) of the presets' data.
IMAGES = {
    "digits": (1, 8, 8),
    "fashion_mnist": (1, 28, 28),
    "fashion_mnist_10min": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "butterflies_128": (3, 128, 128),
}
NAMES = ["DDPMPipeline", "ours", "ours, fast", "lucidrains", "floor", "floor, fast"]


# --- The contenders: each returns what draws one batch ------------------------------------------------------------------


def ours(folder: Path, batch: int, steps: int, device: str, fast: bool = False) -> Callable[[], object]:
    from ddpm_hub import DDPMHubPipeline

    pipeline = DDPMHubPipeline.from_pretrained(folder).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline(batch, num_inference_steps=steps, sampler="ddpm", output_type="np", fast=fast)


def ours_fast(folder: Path, batch: int, steps: int, device: str) -> Callable[[], object]:
    return ours(folder, batch, steps, device, fast=True)


def ddpm_pipeline(folder: Path, batch: int, steps: int, device: str) -> Callable[[], object]:
    from diffusers import DDPMPipeline, DDPMScheduler

    pipeline = DDPMPipeline(read_unet(folder), DDPMScheduler(timestep_spacing="leading")).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline(batch, num_inference_steps=steps, output_type="np")


def lucidrains(folder: Path, batch: int, steps: int, device: str) -> Callable[[], object]:
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    config = read_unet(folder).config
    first, *_ = config.block_out_channels
    mults = tuple(c // first for c in config.block_out_channels)
    unet = Unet(dim=first, dim_mults=mults, channels=config.in_channels)
    diffusion = GaussianDiffusion(unet, image_size=config.sample_size, timesteps=steps).to(device)
    return lambda: diffusion.sample(batch_size=batch).permute(0, 2, 3, 1).cpu().numpy()


def floor(folder: Path, batch: int, steps: int, device: str, fast: bool = False) -> Callable[[], object]:
    unet = read_unet(folder).to(device)
    sample = torch.randn(batch, unet.config.in_channels, *size_of(unet), device=device)
    times = [torch.full((batch,), t, device=device) for t in range(steps)]
    network = unet
    if fast:
        from ddpm_hub.ddpm_network_calls import CompiledNetwork

        network = CompiledNetwork(unet)

    @torch.no_grad()
    def call() -> torch.Tensor:
        for t in range(steps):
            output = network(sample, times[t], None) if fast else network(sample, t, return_dict=False)[0]
        return output.cpu()

    return call


def floor_fast(folder: Path, batch: int, steps: int, device: str) -> Callable[[], object]:
    return floor(folder, batch, steps, device, fast=True)


def read_unet(folder: Path):
    from diffusers import UNet2DModel

    return UNet2DModel.from_pretrained(folder, subfolder="unet", use_safetensors=True).eval()


def size_of(unet) -> tuple[int, int]:
    size = unet.config.sample_size
    return (size, size) if isinstance(size, int) else tuple(size)


CONTENDERS = {
    "DDPMPipeline": ddpm_pipeline,
    "ours": ours,
    "ours, fast": ours_fast,
    "lucidrains": lucidrains,
    "floor": floor,
    "floor, fast": floor_fast,
}


def work(options: dict) -> None:
    """A contender's process: it answers every line of its input with what one batch took."""
    torch.set_num_threads(options["threads"])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed
    device, clock = options["device"], time.perf_counter if options["clock"] == "wall" else time.process_time
    if options["name"] == "peak":
        from machine import measured_peak

        draw, flops = None, 0
    else:
        make = CONTENDERS[options["name"]]
        draw = make(Path(options["folder"]), options["batch"], options["steps"], device)
    before = resident(device)
    if draw is not None:
        # What is counted is not compiled: the operations of "floor" stand for those of the others.
        flops = 0 if options["name"].endswith("fast") else flops_of(draw)
        for _ in range(2):
            draw()
    print(json.dumps({"flops": flops}), file=answers, flush=True)
    for _ in sys.stdin:
        if draw is None:
            print(json.dumps({"peak": measured_peak(torch.device(device), torch.float32)}), file=answers, flush=True)
            continue
        if device == "cuda":
            torch.cuda.synchronize()
        begun = clock()
        draw()
        if device == "cuda":
            torch.cuda.synchronize()
        answer = {"seconds": clock() - begun, "bytes": most_resident(device) - before}
        print(json.dumps(answer), file=answers, flush=True)


def flops_of(draw: Callable[[], object]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        draw()
    return counter.get_total_flops()


def resident(device: str) -> int:
    if device == "cuda":
        return torch.cuda.memory_allocated()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def most_resident(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- The comparison -----------------------------------------------------------------------------------------------------


class Contender:
    def __init__(self, name: str, options: dict, log: Path):
        self.name, self.log = name, log
        command = [sys.executable, __file__, "--worker", json.dumps(options | {"name": name})]
        environment = os.environ | {"OMP_NUM_THREADS": str(options["threads"])}
        with log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            print(self.log.read_text(encoding="utf-8", errors="replace"), file=sys.stderr)
            raise SystemExit(f"sampling.py: {self.name} ended; what it said is above.")
        return json.loads(line)

    def do(self) -> dict:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(names: list[str], options: dict, rounds: int) -> tuple[dict[str, list[dict]], dict[str, int]]:
    """What each contender measured in each round, and its floating-point operations for a batch."""
    with tempfile.TemporaryDirectory() as folder:
        contenders = []
        try:
            for number, name in enumerate(["peak", *names]):
                contenders.append(Contender(name, options, Path(folder) / f"{number}.log"))
                contenders[-1].answer_about = contenders[-1].answer()  # one after another: they warm up
            measured: dict[str, list[dict]] = {c.name: [] for c in contenders}
            for number in range(rounds):
                for contender in contenders if number % 2 == 0 else contenders[::-1]:
                    measured[contender.name].append(contender.do())
            return measured, {c.name: c.answer_about["flops"] for c in contenders}
        finally:
            for contender in contenders:
                contender.close()


def summarize(names: list[str], measured: dict, flops: dict, options: dict) -> list[dict]:
    """A row for each contender: medians, and ratios round by round."""
    rows = []
    for name in names:
        seconds = [one["seconds"] for one in measured[name]]
        its_floor = "floor, fast" if name.endswith("fast") else "floor"
        row = {
            "batch": options["batch"],
            "contender": name,
            "images_per_second": options["batch"] / statistics.median(seconds),
            "share_of_peak": statistics.median(
                flops[name if not name.endswith("fast") else "floor"] / s / p["peak"]
                for s, p in zip(seconds, measured["peak"], strict=True)
            ),
            "mib": max(one["bytes"] for one in measured[name]) / 2**20,
        }
        if "DDPMPipeline" in names:
            row["over_ddpm_pipeline"] = spread(
                [p["seconds"] / s for p, s in zip(measured["DDPMPipeline"], seconds, strict=True)]
            )
        if its_floor in names and name not in (its_floor, "lucidrains"):
            row["above_floor"] = spread(
                [s / f["seconds"] - 1 for f, s in zip(measured[its_floor], seconds, strict=True)]
            )
        rows.append(row)
    return rows


def spread(values: list[float]) -> dict:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def table(rows: list[dict]) -> str:
    lines = [
        "| batch | | images/s | × DDPMPipeline (least–most) | above its floor (least–most) | of peak | memory |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        ratio, above = row.get("over_ddpm_pipeline"), row.get("above_floor")
        told = f"{ratio['median']:.2f} ({ratio['least']:.2f}–{ratio['most']:.2f})" if ratio else ""
        over = f"{above['median']:+.1%} ({above['least']:+.0%} – {above['most']:+.0%})" if above else ""
        lines.append(
            f"| {row['batch']} | {row['contender']} | {row['images_per_second']:.1f} | {told} | {over} "
            f"| {row['share_of_peak']:.0%} | {row['mib']:.0f} MiB |"
        )
    return "\n".join(lines)


def chosen(names: list[str]) -> list[str]:
    for name in names:
        if name not in NAMES:
            raise SystemExit(f"sampling.py: --contenders has {name!r}; it takes {', '.join(map(repr, NAMES))}.")
    if "lucidrains" in names and importlib.util.find_spec("denoising_diffusion_pytorch") is None:
        print("lucidrains is left out: denoising-diffusion-pytorch is not installed.", file=sys.stderr)
        names = [name for name in names if name != "lucidrains"]
    return names


def save_model(preset: str, folder: Path) -> None:
    """The preset's U-Net, unconditional and with random weights, as a saved pipeline."""
    from build_model import build_scheduler, build_unet
    from config_parser import parse_config
    from image_data import ImageData

    from ddpm_hub import DDPMHubPipeline

    config = parse_config(["--config", str(CONFIGS / f"{preset}.yaml"), "--prediction_type", "epsilon"])
    data = ImageData(torch.zeros(1, *IMAGES[preset], dtype=torch.uint8), None, [])
    torch.manual_seed(0)
    DDPMHubPipeline(build_unet(config, data), build_scheduler(config)).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="digits", choices=IMAGES, help="of training/configs")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--steps", type=int, default=20, help="of each batch")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", default="wall", choices=("wall", "processor"))
    parser.add_argument("--contenders", nargs="+", default=NAMES, help="some of " + ", ".join(map(repr, NAMES)))
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(json.loads(arguments.worker))
    if arguments.clock == "processor" and (arguments.device != "cpu" or arguments.threads != 1):
        parser.error("--clock processor goes with --device cpu and --threads 1: waiting threads use the cores too")
    names, rows, peaks = chosen(arguments.contenders), [], []
    with tempfile.TemporaryDirectory() as folder:
        save_model(arguments.preset, Path(folder))
        for batch in arguments.batch_sizes:
            options = {"folder": folder, "batch": batch} | {
                key: getattr(arguments, key) for key in ("steps", "device", "threads", "clock")
            }
            measured, flops = measure(names, options, arguments.rounds)
            peaks += [one["peak"] for one in measured["peak"]]
            rows += summarize(names, measured, flops, options)
            print(f"batch {batch}: {arguments.rounds} rounds", file=sys.stderr)
    machine = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine()
    print(
        f"{arguments.preset}, {arguments.steps} steps, {arguments.threads} threads, torch {torch.__version__}, "
        f"{arguments.device} ({machine}), peak {statistics.median(peaks) / 1e9:.0f} GFLOP/s; {arguments.rounds} rounds, "
        f"{arguments.clock} clock\n\n{table(rows)}"
    )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(vars(arguments) | {"rows": rows}, indent=2), encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
