"""Times training loops side by side: ours, the documentation's, lucidrains' and the floor, in turn, in one process each.

    python benchmarks/train_throughput.py [--preset fashion_mnist] [--batch_size 64] [--rounds 10] [--steps 2]
        [--device cpu|cuda] [--threads N] [--processes 2] [--mixed_precision no|bf16|auto] [--optimizer adamw|muon]
        [--contenders ours floor] [--clock wall|processor] [--json FILE]

The floor is what no loop can do without: forward, backward and optimizer on a batch that lies ready, with our network, its
memory format and its precision. "documentation" is a loop as diffusers' documentation teaches it. "lucidrains" is the package
denoising-diffusion-pytorch, where it is installed (it is no dependency); its network has as many channels, not as many
parameters. Images are random. All loops run round by round, in turn, so that a machine whose speed drifts drifts for all;
ratios are of our images per second to those of a loop in the same round: the median, the least and the most. The peak is
what a large matrix product or convolution reaches (training/machine.py), measured in every round too.

On a machine that others use too, only `--clock processor --threads 1` gives ratios that mean something;
it leaves out what lucidrains' loader does in processes of its own.

With --processes 2 ours also runs as two processes, with the same batch and the same threads (or as many GPUs) in all.
"""

import argparse
import importlib.util
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / "training" / "configs"
# (channels, height, width) and classes of the presets' data.
IMAGES = {
    "smoke": ((1, 8, 8), 10),
    "digits": ((1, 8, 8), 10),
    "fashion_mnist": ((1, 28, 28), 10),
    "fashion_mnist_10min": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 0),
    "butterflies_128": ((3, 128, 128), 0),
    "celebahq_256": ((3, 256, 256), 0),
}
NAMES = ["ours", "documentation, float32", "documentation, bf16", "lucidrains, float32", "lucidrains, bf16", "floor"]
SEVERAL = "ours, several processes"


class Contender:
    """The process, or the processes, of one training loop."""

    def __init__(self, name: str, options: dict, processes: int, log: Path):
        self.name, self.log = name, log
        options = options | {"name": name, "threads": max(1, options["threads"] // processes)}
        shared = os.environ | {"OMP_NUM_THREADS": str(options["threads"])}
        if processes > 1:
            shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
        self.processes = []
        with log.open("w", encoding="utf-8") as errors:
            for rank in range(processes):
                ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
                command = [sys.executable, str(Path(__file__).with_name("training_contenders.py")), json.dumps(options)]
                self.processes.append(
                    subprocess.Popen(command, env=shared | ranks, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                     stderr=errors, text=True)
                )  # fmt: skip

    def answers(self) -> list[dict]:
        lines = [process.stdout.readline() for process in self.processes]
        if not all(lines):
            print(self.log.read_text(encoding="utf-8", errors="replace"), file=sys.stderr)
            raise SystemExit(f"train_throughput.py: {self.name} ended; what it said is above.")
        return [json.loads(line) for line in lines]

    def do(self, steps: int) -> list[dict]:
        for process in self.processes:
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
        return self.answers()

    def close(self) -> None:
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def measure(names: list[str], options: dict, processes: int, rounds: int, steps: int) -> list[dict]:
    """What each loop and the peak measured in each round; the order turns round from one to the next."""
    with tempfile.TemporaryDirectory() as folder:
        contenders = []
        try:
            for number, name in enumerate(["peak", *names]):
                count = processes if name == SEVERAL else 1
                contenders.append(Contender(name, options, count, Path(folder) / f"{number}.log"))
            about = {c.name: c.answers()[0] for c in contenders}
            measured = []
            for number in range(rounds):
                turn = contenders if number % 2 == 0 else contenders[::-1]
                answers = {c.name: c.do(steps) for c in turn}
                measured.append(one_round(answers, about, steps))
                print(f"round {number + 1} of {rounds}", file=sys.stderr)
        finally:
            for contender in contenders:
                contender.close()
    return [{"name": name, **about[name], "rounds": [r[name] for r in measured]} for name in ["peak", *names]]


def one_round(answers: dict[str, list[dict]], about: dict[str, dict], steps: int) -> dict[str, dict]:
    measured = {"peak": answers["peak"][0]}
    for name, ranks in answers.items():
        if name != "peak":
            seconds = max(rank["seconds"] for rank in ranks)
            measured[name] = {
                "images_per_second": steps * about[name]["batch"] / seconds,
                "peak_bytes": sum(rank["peak_bytes"] for rank in ranks),
            }
    return measured


def summarize(measured: list[dict]) -> list[dict]:
    """One row for each loop: medians, and ratios pair by pair."""
    peak, *loops = measured
    ours = next((loop for loop in loops if loop["name"] == "ours"), None)
    rows = []
    for loop in loops:
        speeds = [r["images_per_second"] for r in loop["rounds"]]
        row = {
            "loop": loop["name"],
            "precision": loop["precision"],
            "parameters": loop["parameters"],
            "images_per_second": statistics.median(speeds),
            "gflops": statistics.median(speeds) * loop["flops_per_image"] / 1e9,
            "peak_mib": max(r["peak_bytes"] for r in loop["rounds"]) / 2**20,
        }
        for dtype in ("float32", "bfloat16"):
            shares = [
                speed * loop["flops_per_image"] / p[dtype] for speed, p in zip(speeds, peak["rounds"], strict=True)
            ]
            row[f"share_of_{dtype}_peak"] = statistics.median(shares)
        if ours is not None:
            ratios = [r["images_per_second"] / s for r, s in zip(ours["rounds"], speeds, strict=True)]
            row["ours_over_it"] = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    lines = [
        "| loop | precision | parameters | images/s | ours ÷ it (least–most) | GFLOP/s | of float32 peak | of bf16 peak | memory |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        ratio = row.get("ours_over_it")
        told = "" if ratio is None else f"{ratio['median']:.2f} ({ratio['least']:.2f}–{ratio['most']:.2f})"
        precision = {"no": "float32"}.get(row["precision"], row["precision"])
        lines.append(
            f"| {row['loop']} | {precision} | {row['parameters'] / 1e6:.2f} M | {row['images_per_second']:.1f} | {told} "
            f"| {row['gflops']:.0f} | {row['share_of_float32_peak']:.0%} | {row['share_of_bfloat16_peak']:.0%} "
            f"| {row['peak_mib']:.0f} MiB |"
        )
    return "\n".join(lines)


def chosen(arguments: argparse.Namespace) -> list[str]:
    names = arguments.contenders
    for name in names:
        if name not in NAMES:
            raise SystemExit(f"train_throughput.py: --contenders has {name!r}; it takes {', '.join(map(repr, NAMES))}.")
    if importlib.util.find_spec("denoising_diffusion_pytorch") is None:
        left_out = [name for name in names if name.startswith("lucidrains")]
        names = [name for name in names if name not in left_out]
        if left_out:
            print("lucidrains is left out: denoising-diffusion-pytorch is not installed.", file=sys.stderr)
    return [*names, SEVERAL] if arguments.processes > 1 else names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="fashion_mnist", choices=IMAGES, help="of training/configs")
    parser.add_argument("--batch_size", type=int, help="images per step of each loop; by default the preset's")
    parser.add_argument("--mixed_precision", help="of ours and the floor; by default the preset's")
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "muon"), help="of ours and the floor; "
                        "documentation's is AdamW, lucidrains' Adam")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=2, help="of each loop in each round")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each loop, over its processes")
    parser.add_argument("--processes", type=int, default=1, help="of a further run of ours, if more than 1")
    parser.add_argument("--contenders", nargs="+", default=NAMES, help="some of " + ", ".join(map(repr, NAMES)))
    parser.add_argument("--clock", default="wall", choices=("wall", "processor"), help="processor: the time that the cores "
                        "spent, over all threads; where others use them too, with --threads 1, on a CPU")  # fmt: skip
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.clock == "processor" and (arguments.device != "cpu" or arguments.threads != 1):
        parser.error("--clock processor goes with --device cpu and --threads 1: waiting threads use the cores too")
    if arguments.processes > arguments.threads and arguments.device == "cpu":
        parser.error(
            f"--processes {arguments.processes} needs at least as many --threads, which is {arguments.threads}"
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the loops are ended too

    (shape, classes), flags = IMAGES[arguments.preset], []
    for name in ("batch_size", "mixed_precision", "optimizer"):
        if getattr(arguments, name) is not None:
            flags += [f"--{name}", str(getattr(arguments, name))]
    options = {
        "arguments": ["--config", str(CONFIGS / f"{arguments.preset}.yaml"), *flags],
        "shape": shape, "classes": classes, "device": arguments.device, "threads": arguments.threads,
        "clock": arguments.clock,
    }  # fmt: skip
    measured = measure(chosen(arguments), options, arguments.processes, arguments.rounds, arguments.steps)
    rows, peaks = summarize(measured), measured[0]["rounds"]
    peak = {dtype: statistics.median(p[dtype] for p in peaks) for dtype in ("float32", "bfloat16")}
    machine = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine()
    about = {"torch": torch.__version__, "device": f"{arguments.device} ({machine})", "peak_gflops":
             {dtype: value / 1e9 for dtype, value in peak.items()}, **vars(arguments)}  # fmt: skip
    print(f"{arguments.preset}, {measured[1]['batch']} images a step, {arguments.threads} threads, torch {torch.__version__}, "
          f"{about['device']}; peak {peak['float32'] / 1e9:.0f} GFLOP/s in float32, {peak['bfloat16'] / 1e9:.0f} in bf16; "
          f"{arguments.rounds} rounds of {arguments.steps} steps, {arguments.clock} clock\n\n{table(rows)}")  # fmt: skip
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(about | {"rows": rows, "measured": measured}, file, indent=2)


if __name__ == "__main__":
    main()
