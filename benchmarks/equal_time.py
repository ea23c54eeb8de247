"""Trains ours, the documentation's loop and lucidrains' for the same time on the same data, and compares their images.

    python benchmarks/equal_time.py --dataset zalando-datasets/fashion_mnist [--preset fashion_mnist] [--minutes 30]
        [--num_samples 1000] [--contenders ours documentation documentation_tuned lucidrains] [--output outputs/equal_time]
        [--store MODEL]

One after another, each in a process of its own with OMP_NUM_THREADS threads, and all in the precision that the preset's
`mixed_precision` means on this machine. "ours" is the preset; "documentation" the loop that diffusers' documentation teaches,
with our U-Net: 16 images a step, a rate of at most 0.0001 after 500 steps of warm-up, no classes, no average of the weights;
"documentation_tuned" the same with the preset's batch, rate, warm-up and classes and with diffusers' EMAModel; "lucidrains" the
package denoising-diffusion-pytorch with its defaults and as many channels (see training_contenders.py), which has to be
installed (`pip install denoising-diffusion-pytorch==2.3.4`).

The time is that of training alone: reading the data, and drawing, do not count. Of loops whose rate falls, as many steps are done
as should fit into it, so that the rate is zero at the end; the others train for as long as ours really took. The others draw with
DDIM in 50 steps, which both packages offer; ours draws as its preset says, and in a second row as the others do, without guidance.

FID is of the features of the package's classifier, against all training images; beside it stands that of as many real images,
training ones and unseen ones. A contender whose images are in `--output` is not trained again; images of other options, or from
another machine, are refused. Writes a grid of each as PNG; --store writes the table into a model's folder, where its card shows it.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "training")]


class Contender(NamedTuple):
    """A loop of training_contenders.py and what it is given.

    Attributes:
        loop (`str`): the function there that builds it.
        training (`str`): how it trains, for the table, beside its rate and its batch.
        arguments (`tuple[str, ...]`): of the configuration, beside the preset.
        falls (`bool`): whether its rate falls to zero at the end of a number of steps.
        warmup_steps (`int`, *optional*): the preset's where it is not given; at most all steps.
    """

    loop: str
    training: str
    arguments: tuple[str, ...] = ()
    falls: bool = True
    warmup_steps: int | None = None


PEERS_DEFAULTS = ("--batch_size", "16", "--learning_rate", "0.0001")  # of both
AS_TAUGHT = (
    *PEERS_DEFAULTS,
    *("--ema_decays", "[0]", "--fidelity_samples", "0"),
    *("--class_conditional", "false", "--guidance_scale", "1", "--guidance_interval", "null"),
)
CONTENDERS = {
    "ours": Contender("ours", "classes, averaged weights"),
    "documentation": Contender("documentation", "AdamW, no classes, no average", AS_TAUGHT, warmup_steps=500),
    "documentation_tuned": Contender("documentation", "AdamW, classes, averaged weights"),
    "lucidrains": Contender("lucidrains", "Adam, no classes, averaged weights", PEERS_DEFAULTS, falls=False),
}
AS_THE_OTHERS = "ours, drawn as the others"
TIMED_STEPS = 40
CHUNK = 100  # images that are drawn, or judged, at once


def main() -> None:
    """Trains what is missing, and prints the table."""
    options = parse()
    if options.one:
        train_one(options)
        return
    if "lucidrains" in options.contenders and not importlib.util.find_spec("denoising_diffusion_pytorch"):
        sys.exit(
            "`--contenders` has lucidrains, but denoising-diffusion-pytorch is not installed: `pip install "
            "denoising-diffusion-pytorch==2.3.4`, or name the other contenders."
        )
    if configuration(options).init_from:
        sys.exit(
            f"`--preset` is {options.preset!r}, which begins with another model's weights; all begin from nothing here."
        )
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.contenders:
        if facts_of(options, name) is None:
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", name], check=True)
    from ddpm_hub.evaluation_tables import evaluation_sections

    found = compared(options)
    print(evaluation_sections({"equal_time": found})[0].table)
    if options.store:
        store(options.store, found)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--preset", default="fashion_mnist")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--output", type=Path, default=Path("outputs/equal_time"))
    parser.add_argument("--store", type=Path)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    return parser.parse_args()


def configuration(options: argparse.Namespace, *more: str):
    """The preset on the data set of the command line."""
    from config_parser import parse_config

    preset = str(REPOSITORY / "training" / "configs" / f"{options.preset}.yaml")
    return parse_config(["--config", preset, "--dataset_name", options.dataset, *more])


def asked(options: argparse.Namespace) -> dict:
    """What all contenders must have in common."""
    from machine import describe_machine

    own = {name: getattr(options, name) for name in ("dataset", "preset", "minutes", "num_samples")}
    return own | {"precision": precision_of(options), "machine": describe_machine(torch.device("cpu"))}


def precision_of(options: argparse.Namespace) -> str:
    """What accelerate calls the precision of all of them: `no` is float32."""
    from machine import resolve_precision

    return resolve_precision(configuration(options).mixed_precision, torch.device("cpu"))


def train_one(options: argparse.Namespace) -> None:
    """Trains one loop for the time, draws, and writes the images with what was done."""
    import training_contenders
    from image_data import load_images
    from sample_grids import grid_image

    contender, precision = CONTENDERS[options.one], precision_of(options)
    build = getattr(training_contenders, contender.loop)
    config, seconds = configuration(options, *contender.arguments), 60 * options.minutes
    if options.one != "ours" and (taken := facts_of(options, "ours")):
        seconds = taken["seconds"]
    data, device = load_images(config), torch.device("cpu")
    with ExitStack() as stack:
        steps = None
        if contender.falls:
            with ExitStack() as timed:
                steps = round(seconds / seconds_per_step(build(config, data, precision, device, timed)))
            warmup_steps = min(contender.warmup_steps or config.warmup_steps, steps)
            length = ("--max_train_steps", str(steps), "--warmup_steps", str(warmup_steps))
            config = configuration(options, *contender.arguments, *length)
        loop, done = build(config, data, precision, device, stack), 0
        begun = time.perf_counter()
        while done < steps if steps else time.perf_counter() - begun < seconds:
            loop.step()
            done += 1
        trained = time.perf_counter() - begun
        facts = {
            "seconds": trained,
            "trained_on": done * config.batch_size,
            "parameters": sum(p.numel() for p in loop.network.parameters()),
            "training": trained_in_words(options.one, config, precision),
        }
        plainly = f"DDIM, {training_contenders.PEERS_STEPS} steps, without guidance"
        if options.one == "ours":
            settings = {
                "sampler": "ddim",
                "num_inference_steps": training_contenders.PEERS_STEPS,
                "guidance_scale": 1,
                "guidance_interval": None,
            }
            drawn_by = {"ours": (drawn_in_words(config), {}), AS_THE_OTHERS: (plainly, settings)}
        else:
            drawn_by = {options.one: (plainly, {})}
        pixels = {name: torch.cat(list(drawn(loop, data, options, more))) for name, (_, more) in drawn_by.items()}
        facts["drawn"] = {name: words for name, (words, _) in drawn_by.items()}
        mine = pixels[options.one]
        grid_image(mine[:: max(1, len(mine) // 80)][:80], 10).save(options.output / f"{options.one}.png")
        save_file(
            {name: images.contiguous() for name, images in pixels.items()},
            options.output / f"{options.one}.safetensors",
            {"facts": json.dumps(facts), "asked": json.dumps(asked(options))},
        )


def trained_in_words(name: str, config, precision: str) -> str:
    """How a contender was trained."""
    parts = [f"rate {config.learning_rate}", f"{config.batch_size} images a step", CONTENDERS[name].training]
    if name == "ours":
        parts.insert(2, {"adamw": "AdamW", "muon": "Muon and AdamW"}[config.optimizer])
    return ", ".join((*parts, "float32" if precision == "no" else precision))


def drawn_in_words(config) -> str:
    """How the preset draws."""
    from ddpm_hub.evaluation_tables import drawn_with

    return drawn_with(config.sampling(config.class_conditional)).replace("`", "")  # the table makes Markdown of it


def facts_of(options: argparse.Namespace, name: str) -> dict | None:
    """What a contender did, `None` if it has not been trained.

    Ends the program if it was trained otherwise than is asked for now.
    """
    path = options.output / f"{name}.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    earlier, now = json.loads(metadata.get("asked", "{}")), asked(options)
    if changed := [key for key in now if earlier.get(key) != now[key]]:
        sys.exit(
            f"{path} was made with other options ({', '.join(f'{key}: {earlier.get(key)}' for key in changed)}); choose another "
            f"`--output`, or remove that file."
        )
    return json.loads(metadata["facts"])


def drawn(loop, data, options: argparse.Namespace, settings: dict) -> Iterator[torch.Tensor]:
    """Images of classes in the proportions of the data, where the loop has classes."""
    count = options.num_samples
    labels = None
    if data.labels is not None:
        labels = data.labels.sort().values[torch.arange(count) * len(data) // count].tolist()
    for start in range(0, count, CHUNK):
        some = None if labels is None else labels[start : start + CHUNK]
        yield loop.draw(min(CHUNK, count - start), some, start, **settings)


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
        pixels, ways = load_file(options.output / f"{name}.safetensors"), facts.pop("drawn")
        for images, drawn_with in ways.items():
            fid = frechet_distance(reference, features(pixels[images]))
            rows.append({"images": images, **facts, "drawn": drawn_with, "fid": fid})
    for name, images in (("training images", data), ("unseen images", unseen)):
        rows.append({"images": name, "fid": frechet_distance(reference, features(some_of(images)))})
    return {
        "num_samples": options.num_samples,
        "against": config.split,
        "num_reference": len(data),
        "extractor": extractor.facts.name,
        "extractor_sha256": extractor.facts.sha256,
        "resize": extractor.facts.resize,
        "machine": asked(options)["machine"],
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
