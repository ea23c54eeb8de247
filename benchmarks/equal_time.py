"""Trains ours, the documentation's loop and lucidrains' for the same time on the same data, and compares their images.

    python benchmarks/equal_time.py --dataset zalando-datasets/fashion_mnist [--preset fashion_mnist] [--minutes 30]
        [--num_samples 1000] [--contenders ours documentation documentation_tuned lucidrains] [--output outputs/equal_time]
        [--store MODEL]

One after another, each in a process of its own with all threads. "ours" is the preset, with as many steps as should fit into the
time, so that its rate has fallen to zero at the end; the others then have the time that it really took. "documentation" is the
loop that diffusers' documentation teaches, with our U-Net and batch size: a rate of 0.0001, no classes, no average of the
weights; "documentation_tuned" the same with the preset's rate and classes and with diffusers' EMAModel; "lucidrains" the
package denoising-diffusion-pytorch, where it is installed, with as many channels (see training_contenders.py). The time is that
of training alone: reading the data, and drawing, do not count. Images are drawn from the averaged weights, where there are any,
ours as the preset says and the others with DDIM in 50 steps.

FID is of the features of the package's classifier, against all training images; beside it stands that of as many real images,
training ones and unseen ones. A contender whose images are in `--output` is not trained again. Writes a grid of each as PNG; --store
writes the table into a model's folder, where its card shows it.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "training")]

LOOPS = {
    "ours": "ours",
    "documentation": "documentation, float32",
    "documentation_tuned": "documentation, float32",
    "lucidrains": "lucidrains, float32",
}
AS_TAUGHT = (
    *("--learning_rate", "0.0001", "--ema_decays", "[0]"),
    *("--class_conditional", "false", "--guidance_scale", "1", "--fidelity_samples", "0"),
)
TIMED_STEPS = 40
CHUNK = 100  # images that are drawn, or judged, at once


def main() -> None:
    """Trains what is missing, and prints the table."""
    options = parse()
    if options.one:
        train_one(options)
        return
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.contenders:
        if not (options.output / f"{name}.safetensors").is_file():
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", name], check=True)
    from ddpm_hub.evaluation_tables import evaluation_sections

    found = compared(options)
    print(evaluation_sections({"equal_time": found})[0].table)
    if options.store:
        store(options.store, found)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="a folder, or a data set of the Hub")
    parser.add_argument("--preset", default="fashion_mnist")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--contenders", nargs="+", choices=LOOPS, default=list(LOOPS))
    parser.add_argument("--output", type=Path, default=Path("outputs/equal_time"))
    parser.add_argument("--store", type=Path)
    parser.add_argument("--one", choices=LOOPS, help=argparse.SUPPRESS)
    return parser.parse_args()


def configuration(options: argparse.Namespace, *more: str):
    """The preset on this data."""
    from config_parser import parse_config

    preset = str(REPOSITORY / "training" / "configs" / f"{options.preset}.yaml")
    return parse_config(["--config", preset, "--dataset_name", options.dataset, *more])


def train_one(options: argparse.Namespace) -> None:
    """Trains one loop for the time, draws, and writes the images with what was done."""
    from image_data import load_images
    from sample_grids import grid_image
    from training_contenders import CONTENDERS

    build, _ = CONTENDERS[LOOPS[options.one]]
    config = configuration(options, *(AS_TAUGHT if options.one == "documentation" else ()))
    seconds = 60 * options.minutes
    if options.one != "ours" and (taken := facts_of(options, "ours")):
        seconds = taken["seconds"]
    data = load_images(config)
    with ExitStack() as stack:
        if options.one == "ours":
            with ExitStack() as timed:
                steps = round(seconds / seconds_per_step(build(config, data, "no", torch.device("cpu"), timed)))
            warm_up = min(config.warmup_steps, steps)
            config = configuration(options, "--max_train_steps", str(steps), "--warmup_steps", str(warm_up))
            loop = build(config, data, "no", torch.device("cpu"), stack)
            begun = time.perf_counter()
            for _ in range(steps):
                loop.step()
        else:
            loop, steps = build(config, data, "no", torch.device("cpu"), stack), 0
            begun = time.perf_counter()
            while time.perf_counter() - begun < seconds:
                loop.step()
                steps += 1
        trained = time.perf_counter() - begun
        pixels = torch.cat(list(drawn(loop, data, options.num_samples)))
        facts = {
            "seconds": trained,
            "steps": steps,
            "images": steps * config.batch_size,
            "parameters": sum(p.numel() for p in loop.network.parameters()),
        }
        grid_image(pixels[:: max(1, len(pixels) // 80)][:80], 10).save(options.output / f"{options.one}.png")
        save_file(
            {"pixels": pixels.contiguous()}, options.output / f"{options.one}.safetensors", {"facts": json.dumps(facts)}
        )


def facts_of(options: argparse.Namespace, name: str) -> dict | None:
    """What a contender did, `None` if it has not been trained."""
    path = options.output / f"{name}.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["facts"])


def drawn(loop, data, count: int) -> Iterator[torch.Tensor]:
    """Images of classes in the proportions of the data, where the loop has classes."""
    labels = (
        None if data.labels is None else data.labels.sort().values[torch.arange(count) * len(data) // count].tolist()
    )
    for start in range(0, count, CHUNK):
        some = None if labels is None else labels[start : start + CHUNK]
        yield loop.draw(min(CHUNK, count - start), some, start)


def seconds_per_step(loop) -> float:
    """The median of some steps, after a few that warm up."""
    times = []
    for _ in range(TIMED_STEPS):
        begun = time.perf_counter()
        loop.step()
        times.append(time.perf_counter() - begun)
    return sorted(times[TIMED_STEPS // 4 :])[3 * TIMED_STEPS // 8]


def compared(options: argparse.Namespace) -> dict:
    """FID of every contender and of real images, as metrics.json has it."""
    from evaluation.distances import frechet_distance
    from evaluation.extractors import DomainExtractor
    from image_data import load_images
    from machine import describe_machine

    config = configuration(options)
    data, unseen = load_images(config), load_images(configuration(options, "--split", "test"))
    extractor = DomainExtractor(data.image_shape, torch.device("cpu"))

    def features(pixels: torch.Tensor) -> torch.Tensor:
        return torch.cat([extractor(some)[0] for some in pixels.split(CHUNK)])

    def some_of(images) -> torch.Tensor:
        rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: options.num_samples]
        return images.at(rows)[0]

    reference = features(data.at(torch.arange(len(data)))[0])
    rows = []
    for name in options.contenders:
        facts = facts_of(options, name)
        pixels = load_file(options.output / f"{name}.safetensors")["pixels"][: options.num_samples]
        done = {"parameters": facts["parameters"], "trained_on": facts["images"], "seconds": round(facts["seconds"])}
        rows.append({"images": name, **done, "fid": frechet_distance(reference, features(pixels))})
    for name, images in (("training images", data), ("unseen images", unseen)):
        rows.append({"images": name, "fid": frechet_distance(reference, features(some_of(images)))})
    return {
        "num_samples": options.num_samples,
        "against": config.split,
        "num_reference": len(data),
        "extractor": extractor.facts.name,
        "extractor_sha256": extractor.facts.sha256,
        "resize": extractor.facts.resize,
        "machine": describe_machine(torch.device("cpu")),
        "rows": rows,
    }


def store(folder: Path, found: dict) -> None:
    """Puts the table into a model's folder and its card."""
    from ddpm_hub.model_card import write_card

    file = folder / "metrics.json"
    metrics = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps(metrics | {"equal_time": found}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_card(folder)


if __name__ == "__main__":
    main()
