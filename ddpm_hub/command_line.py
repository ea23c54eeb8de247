"""`ddpm-hub`: sample, export, push, card, space and info from the command line.

Exit status: 0 done, 1 it failed, 2 a mistake in the command line. Nothing heavy is imported before a command runs, so
`--help` answers at once.
"""

import argparse
import sys
from pathlib import Path

from . import __version__

PUBLIC_HELP = "let everybody see a repository that is new (by default only you do)"
DRY_RUN_HELP = "list what would be published, and send nothing"


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except KeyboardInterrupt:
        print("ddpm-hub: stopped.", file=sys.stderr)
        return 130
    except (OSError, ValueError, RuntimeError) as error:  # refusals of this package, and of the libraries it stands on
        if options.debug:
            raise
        print(f"ddpm-hub: error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ddpm-hub",
        description="Diffusion models on the Hugging Face Hub: draw, publish, serve.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ddpm-hub {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function, summary: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n{example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(command=function)
        return sub

    sub = command(
        "sample",
        _sample,
        "draw images from a model",
        "  ddpm-hub sample outputs/digits --class_labels 3 7 --num_images 16 --output sevens_and_threes",
    )
    sub.add_argument("model", metavar="MODEL", help="a folder, or USER/NAME on the Hub (its code is not run)")
    sub.add_argument("--num_images", type=int, default=16, help="how many (default: 16)")
    sub.add_argument(
        "--class_labels", nargs="+", metavar="CLASS", help="numbers or names, taken in turn; by default any"
    )
    sub.add_argument("--num_inference_steps", type=int, default=100, help="reverse steps, at most T (default: 100)")
    sub.add_argument("--seed", type=int, default=0, help="image i comes from the seed SEED + i alone (default: 0)")
    sub.add_argument("--batch_size", type=int, default=64, help="how many are drawn at once (default: 64)")
    sub.add_argument("--revision", help="a branch or commit of a repository")
    sub.add_argument(
        "--output", type=Path, default=Path("samples"), help="a folder for the PNG files (default: samples)"
    )

    sub = command(
        "export",
        _export,
        "make a finished Hub repository of a saved model, and check it",
        "  ddpm-hub export outputs/digits --output release/digits",
    )
    sub.add_argument("folder", metavar="FOLDER", type=Path, help="a saved model, also one of diffusers' DDPMPipeline")
    sub.add_argument("--output", type=Path, help="a new folder for it; by default FOLDER itself is brought up to date")

    sub = command(
        "push", _push, "publish a saved model on the Hub", "  ddpm-hub push outputs/digits me/digits --dry_run"
    )
    sub.add_argument("folder", metavar="FOLDER", type=Path, help="a saved model")
    sub.add_argument("repo_id", metavar="USER/NAME", help="the repository, which is made if need be")
    sub.add_argument("--public", action="store_true", help=PUBLIC_HELP)
    sub.add_argument("--commit_message", help='by default "Upload the model"')
    sub.add_argument("--dry_run", action="store_true", help=DRY_RUN_HELP)

    sub = command(
        "card",
        _card,
        "write the model card of a folder (README.md)",
        "  ddpm-hub card outputs/digits --repo_id me/digits",
    )
    sub.add_argument("folder", metavar="FOLDER", type=Path, help="a saved model")
    sub.add_argument("--repo_id", metavar="USER/NAME", help="the repository that the card is for")

    sub = command(
        "space",
        _space,
        "publish the web demo of a model as a Gradio Space",
        "  ddpm-hub space me/draw --model me/digits",
    )
    sub.add_argument("repo_id", metavar="USER/NAME", help="the Space, which is made if need be")
    sub.add_argument("--model", metavar="USER/NAME", required=True, help="the model's repository on the Hub")
    sub.add_argument("--public", action="store_true", help=PUBLIC_HELP)
    sub.add_argument("--commit_message", help='by default "Upload the demo"')
    sub.add_argument("--dry_run", action="store_true", help=DRY_RUN_HELP)

    sub = command(
        "info", _info, "say what a model is and whether it loads everywhere", "  ddpm-hub info outputs/digits"
    )
    sub.add_argument("model", metavar="MODEL", help="a folder, or USER/NAME on the Hub")
    sub.add_argument("--revision", help="a branch or commit of a repository")
    return parser


def _sample(options) -> int:
    import torch
    from diffusers.utils import make_image_grid
    from tqdm.auto import tqdm

    from . import DDPMHubPipeline

    for name in ("num_images", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} is {getattr(options, name)}; it must be at least 1.")
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"--output is {str(options.output)!r}, which is a file; name a folder.")
    pipeline = DDPMHubPipeline.from_pretrained(options.model, revision=options.revision)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu").set_progress_bar_config(disable=True)
    labels = _class_labels(options.class_labels, pipeline)
    images, seeds = [], range(options.seed, options.seed + options.num_images)
    for start in tqdm(range(0, len(seeds), options.batch_size), unit=" batches"):
        chosen = seeds[start : start + options.batch_size]
        images += pipeline(
            batch_size=len(chosen),
            class_labels=labels and [labels[(start + i) % len(labels)] for i in range(len(chosen))],
            num_inference_steps=options.num_inference_steps,
            generator=[torch.Generator().manual_seed(seed) for seed in chosen],
        ).images
    options.output.mkdir(parents=True, exist_ok=True)
    for seed, image in zip(seeds, images, strict=True):
        image.save(options.output / f"seed_{seed:06d}.png")
    columns = min(len(images), max(1, round(len(images) ** 0.5)))
    filled = images[: len(images) // columns * columns]
    make_image_grid(filled, len(filled) // columns, columns).save(options.output / "grid.png")
    print(f"{options.output}: {len(images)} images, seeds {seeds[0]} to {seeds[-1]}, and grid.png.")
    return 0


def _class_labels(given: list[str] | None, pipeline) -> list[int] | None:
    if given is None:
        return None
    numbers = {name: number for number, name in pipeline.id2label.items()}
    numbers |= {str(number): number for number in pipeline.id2label if str(number) not in numbers}
    if not numbers:
        raise ValueError("--class_labels was given, but this model is unconditional; leave it out.")
    for label in given:
        if label not in numbers:
            raise ValueError(
                f"--class_labels contains {label!r}; the classes are {', '.join(pipeline.id2label.values())}."
            )
    return [numbers[label] for label in given]


def _export(options) -> int:
    from .hub import export_folder

    print(f"{export_folder(options.folder, options.output)} is a finished repository: it loads here and from the Hub.")
    return 0


def _push(options) -> int:
    from .hub import plan_push, push_folder

    if options.dry_run:
        for revision, files in plan_push(options.folder).items():
            _list_files(f"{options.repo_id}, revision {revision}", files)
        return 0
    _say_published(
        push_folder(options.folder, options.repo_id, private=not options.public, commit_message=options.commit_message)
    )
    return 0


def _card(options) -> int:
    from .model_card import write_card

    print(write_card(options.folder, options.repo_id))
    return 0


def _space(options) -> int:
    from .hub import plan_space, push_space

    if options.dry_run:
        _list_files(f"Space {options.repo_id}, with DDPM_HUB_MODEL = {options.model}", plan_space(options.model))
        return 0
    _say_published(
        push_space(options.repo_id, options.model, private=not options.public, commit_message=options.commit_message)
    )
    return 0


def _list_files(title: str, files: dict[str, int]) -> None:
    print(f"{title}: {len(files)} files, {sum(files.values()):,} bytes")
    for path, size in files.items():
        print(f"{size:>14,}  {path}")


def _say_published(publication) -> None:
    seen = "only you see it" if publication.private else "everybody sees it"
    done = "Published" if publication.changed else "Nothing has changed at"
    print(f"{done} {publication.url} ({seen}).")
    for revision, commit in sorted(publication.commits.items()):
        print(f"  {revision:<6} {commit}")


def _info(options) -> int:
    from huggingface_hub import snapshot_download

    from .ddpm_hub_layout import PUBLISHED_PATTERNS, check_folder, read_scheduler
    from .model_folder import read_model_folder

    folder = Path(options.model)
    if not folder.is_dir():
        folder = Path(snapshot_download(options.model, revision=options.revision, allow_patterns=PUBLISHED_PATTERNS))
    model, scheduler = read_model_folder(folder), read_scheduler(folder)
    channels, height, width = model.image_shape
    facts = {
        "images": f"{width} × {height}, {channels} channel{'s' if channels > 1 else ''}",
        "classes": ", ".join(model.class_names) or "none",
        "network": f"UNet2DModel, {model.num_parameters:,} parameters, {model.dtype}",
        "predicts": scheduler.config.prediction_type,
        "schedule": f"{scheduler.config.beta_schedule}, T = {len(scheduler)}, ᾱ_T = {scheduler.alphas_cumprod[-1]:.3g}",
        "variance": scheduler.config.variance_type,
    }
    for entry in model.metrics.get("evaluation", []):
        if "value" in entry:
            facts[entry["name"].lower()] = f"{entry['value']:.6g}"
    try:
        check_folder(folder)
        facts["loads"] = "with ddpm_hub, by trust_remote_code, and in plain diffusers once pushed"
    except (OSError, ValueError) as error:
        facts["does not load everywhere"] = str(error)
    width = max(map(len, facts))
    for name, fact in facts.items():
        print(f"{name:<{width}}  {fact}")
    return 0
