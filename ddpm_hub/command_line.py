"""`ddpm-hub`: sample, export, push, card, space and info from the command line.

Exit status: 0 done, 1 it failed, 2 a mistake in the command line, 130 stopped by Ctrl-C. Nothing heavy is imported before
a command runs, so `--help` answers at once.
"""

import argparse
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from . import __version__

DEFAULT_STEPS = 100
LARGEST_SEED = 2**63 - 1  # what torch takes, and far from where SEED + i would not
LARGEST_LISTING = 20  # of class names
PUBLIC_HELP = "let everybody see a repository that is new (by default only its owner does)"
DRY_RUN_HELP = "list what would be published, and send nothing"
DEBUG_HELP = "show the traceback of an error"
MODEL_HELP = "a folder, or USER/NAME on the Hub (its code is not run)"


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    with warnings.catch_warnings():  # restores how they are shown
        warnings.showwarning = _show_warning
        warnings.simplefilter("ignore", FutureWarning)  # one library to another
        try:
            return options.command(options)
        except KeyboardInterrupt:
            print("ddpm-hub: stopped.", file=sys.stderr)
            return 130
        except Exception as error:
            if options.debug:
                raise
            print(f"ddpm-hub: error: {_one_line(error)}", file=sys.stderr)
            return 1


def _one_line(error: Exception) -> str:
    """What a refusal says; of a failure that nobody foresaw also its kind, and how to see where it was."""
    text = " ".join(str(error).split())
    if text and isinstance(error, OSError | ValueError | RuntimeError):
        return text
    return f"{type(error).__name__}: {text} (run `ddpm-hub --debug …` to see where)"


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"ddpm-hub: warning: {message}", file=sys.stderr)


# --- What can be asked ---


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ddpm-hub",
        description="Diffusion models on the Hugging Face Hub: draw, publish, serve.",
        epilog="example:\n  ddpm-hub sample outputs/digits --num_images 4\n\n`ddpm-hub COMMAND --help` says more of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ddpm-hub {__version__}")
    parser.add_argument("--debug", action="store_true", help=DEBUG_HELP)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_sample, _add_export, _add_push, _add_card, _add_space, _add_info):
        add(commands)
    return parser


def _command(commands, name: str, function: Callable, summary: str, example: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # Where it was not given, what stood before the command counts.
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=DEBUG_HELP)
    parser.set_defaults(command=function)
    return parser


def _whole(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """The type of an argument that is a whole number."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < minimum or (maximum is not None and value > maximum):
            allowed = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {allowed}")
        return value

    return parse


def _add_sample(commands) -> None:
    example = "ddpm-hub sample outputs/digits --class_labels 3 7 --num_images 16 --output sevens_and_threes"
    parser = _command(commands, "sample", _sample, "draw images from a model", example)
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--num_images", type=_whole(1), default=16, metavar="N", help="how many (default: 16)")
    parser.add_argument(
        "--class_labels",
        nargs="+",
        metavar="CLASS",
        help="names or numbers, taken in turn: image i is of class i modulo their number; by default any",
    )
    parser.add_argument(
        "--num_inference_steps",
        type=_whole(1),
        metavar="N",
        help=f"steps, at most the T of the model (default: the model's own; else {DEFAULT_STEPS} of ddpm)",
    )
    parser.add_argument(
        "--sampler", metavar="NAME", help="ddpm, ddim, dpm++, sde-dpm++ or unipc (default: the model's own)"
    )
    parser.add_argument(
        "--guidance_scale", type=float, metavar="W", help="of the classes; 1 is none (default: the model's own)"
    )
    parser.add_argument(
        "--guidance_interval",
        type=_whole(0),
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="the smallest and the largest timestep that are guided (default: the model's own)",
    )
    parser.add_argument(
        "--seed",
        type=_whole(0, LARGEST_SEED),
        default=0,
        help="image i comes from the seed SEED + i alone (default: 0)",
    )
    parser.add_argument(
        "--batch_size", type=_whole(1), default=64, metavar="N", help="how many are drawn at once (default: 64)"
    )
    parser.add_argument("--revision", help="a branch or commit of a repository")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("samples"),
        metavar="FOLDER",
        help="where the PNG files go: seed_N.png for each image, and grid.png of all (default: samples)",
    )


def _add_export(commands) -> None:
    example = "ddpm-hub export outputs/digits --output release/digits"
    summary = "make a finished Hub repository of a saved model, and check it"
    parser = _command(commands, "export", _export, summary, example)
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="a saved model, also one of diffusers' DDPMPipeline"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="a new folder for what would be published; by default the model's own is brought up to date",
    )
    parser.add_argument(
        "--float16", action="store_true", help="store the weights of the new folder in half as many bytes"
    )


def _add_push(commands) -> None:
    example = "ddpm-hub push outputs/digits me/digits --dry_run"
    parser = _command(commands, "push", _push, "publish a saved model on the Hub", example)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a saved model")
    parser.add_argument("repo_id", metavar="USER/NAME", help="the repository, which is made if need be")
    _add_publishing_options(parser, "Upload the model")


def _add_card(commands) -> None:
    example = "ddpm-hub card outputs/digits --repo_id me/digits"
    summary = "write the model card of a folder: README.md, in place of the one that is there"
    parser = _command(commands, "card", _card, summary, example)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a saved model")
    parser.add_argument("--repo_id", metavar="USER/NAME", help="the repository that the card is for")


def _add_space(commands) -> None:
    example = "ddpm-hub space me/draw --model me/digits"
    parser = _command(commands, "space", _space, "publish the web demo of a model as a Gradio Space", example)
    parser.add_argument("repo_id", metavar="USER/NAME", help="the Space, which is made if need be")
    parser.add_argument("--model", metavar="USER/NAME", required=True, help="the model's repository on the Hub")
    _add_publishing_options(parser, "Upload the demo")


def _add_publishing_options(parser: argparse.ArgumentParser, commit_message: str) -> None:
    parser.add_argument("--public", action="store_true", help=PUBLIC_HELP)
    parser.add_argument("--commit_message", metavar="TEXT", help=f'by default "{commit_message}"')
    parser.add_argument("--dry_run", action="store_true", help=DRY_RUN_HELP)


def _add_info(commands) -> None:
    summary = "say what a model is and whether it loads everywhere"
    parser = _command(commands, "info", _info, summary, "ddpm-hub info outputs/digits")
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--revision", help="a branch or commit of a repository")


# --- Drawing ---


def _sample(options) -> int:
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"--output is {str(options.output)!r}, which is a file; name a folder.")
    _check_revision(options)
    import torch

    from . import DDPMHubPipeline
    from .model_card import possible_steps

    pipeline = DDPMHubPipeline.from_pretrained(options.model, revision=options.revision)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    labels = class_numbers(options.class_labels, pipeline)
    steps = options.num_inference_steps
    if steps is None and options.sampler is None and pipeline.config.sampling is None:
        steps = possible_steps(pipeline.scheduler, DEFAULT_STEPS)
    images, taken, last = [], [0], options.num_images - 1
    for start in range(0, options.num_images, options.batch_size):
        numbers = range(start, min(start + options.batch_size, options.num_images))
        pipeline.set_progress_bar_config(leave=False, desc=f"images {start} to {numbers[-1]} of 0 to {last}")
        images += pipeline(
            batch_size=len(numbers),
            class_labels=labels and [labels[i % len(labels)] for i in numbers],
            num_inference_steps=steps,
            sampler=options.sampler,
            guidance_scale=options.guidance_scale,
            guidance_interval=options.guidance_interval,
            seed=options.seed + start,
            callback_on_step_end=lambda _, step, timestep, tensors: taken.append(step),
        ).images
        options.output.mkdir(parents=True, exist_ok=True)
        for i in numbers:
            images[i].save(options.output / f"seed_{options.seed + i:06d}.png")
    _grid(images).save(options.output / "grid.png")
    count = f"{len(images)} image{'s' if last else ''}"
    seeds = f"seed{'s' if last else ''} {options.seed}" + (f" to {options.seed + last}" if last else "")
    steps = max(taken) + 1
    print(f"{options.output}: {count}, {seeds}, in {steps} step{'s' if steps > 1 else ''} each, and grid.png.")
    return 0


def _check_revision(options) -> None:
    if options.revision is not None and Path(options.model).is_dir():
        raise ValueError(f"--revision is {options.revision!r}, but {options.model!r} is a folder; leave it out.")


def class_numbers(given: list[str] | None, pipeline) -> list[int] | None:
    """The classes of `--class_labels`, which are names or numbers, as numbers.

    Raises:
        ValueError: for a class that the model does not have.
    """
    if given is None:
        return None
    names = list(pipeline.id2label.values())
    numbers = {str(number): number for number in pipeline.id2label}
    numbers |= {name: number for number, name in pipeline.id2label.items()}
    if not numbers:
        raise ValueError("--class_labels was given, but this model is unconditional; leave it out.")
    for label in given:
        if label not in numbers:
            raise ValueError(
                f"--class_labels contains {label!r}; the classes are {_listing(names)}, or their numbers, 0 to {len(names) - 1}."
            )
    return [numbers[label] for label in given]


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - LARGEST_LISTING:,} more" if len(names) > LARGEST_LISTING else ""
    return ", ".join(names[:LARGEST_LISTING]) + more


def _grid(images: list):
    """All images in a square, row by row; what is left of it stays black."""
    from PIL import Image

    columns = math.isqrt(len(images) - 1) + 1
    rows = -(-len(images) // columns)
    width, height = images[0].size
    grid = Image.new(images[0].mode, (columns * width, rows * height))
    for i, image in enumerate(images):
        grid.paste(image, (i % columns * width, i // columns * height))
    return grid


# --- Publishing ---


def _export(options) -> int:
    from .hub import export_folder

    made = export_folder(options.folder, options.output, options.float16)
    print(f"{made} is a finished repository: it loads here and from the Hub.")
    return 0


def _push(options) -> int:
    from .hub import plan_push, push_folder

    if options.dry_run:
        for revision, files in plan_push(options.folder, options.repo_id).items():
            _list_files(f"{options.repo_id}, revision {revision}", files)
        print("Nothing was sent.")
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
        title = f"Space {options.repo_id}, with DDPM_HUB_MODEL = {options.model}"
        _list_files(title, plan_space(options.repo_id, options.model))
        print("Nothing was sent.")
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
    seen = "only its owner sees it" if publication.private else "everybody sees it"
    done = "Published" if publication.changed else "Nothing has changed at"
    print(f"{done} {publication.url} ({seen}).")
    for revision, commit in sorted(publication.commits.items()):
        print(f"  {revision:<6} {commit}")


# --- Looking ---


def _info(options) -> int:
    from .ddpm_hub_layout import check_folder

    _check_revision(options)
    folder = _fetched(options.model, options.revision)
    problem = None
    try:
        check_folder(folder)
    except (OSError, ValueError) as error:
        problem = error
    try:
        facts = _facts(folder)
    except (OSError, ValueError) as error:
        raise problem or error from None
    if problem is None:
        facts["loads"] = "with ddpm_hub, by trust_remote_code, and in plain diffusers once pushed"
    width = max(map(len, facts))
    for name, fact in facts.items():
        print(f"{name:<{width}}  {fact}")
    if problem is not None:
        raise problem
    return 0


def _fetched(model: str, revision: str | None) -> Path:
    """The folder of a model, which is in the cache where the Hub has it."""
    from huggingface_hub import snapshot_download

    from .ddpm_hub_layout import PUBLISHED_PATTERNS

    if Path(model).is_dir():
        return Path(model)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise FileNotFoundError(f"MODEL is {model!r}: there is no such folder.")
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(PUBLISHED_PATTERNS)))
    except OSError as error:
        raise OSError(f"MODEL is {model!r}: no such folder is here, and the Hub gave no such model: {error}") from error


def _facts(folder: Path) -> dict[str, str]:
    from .ddpm_hub_layout import read_scheduler
    from .model_folder import read_model_folder

    model, scheduler = read_model_folder(folder), read_scheduler(folder)
    channels, height, width = model.image_shape
    schedule = "trained_betas" if scheduler.config.trained_betas is not None else scheduler.config.beta_schedule
    facts = {
        "images": f"{width} × {height}, {channels} channel{'s' if channels > 1 else ''}",
        "classes": f"{len(model.class_names)}: {_listing(model.class_names)}" if model.class_names else "none",
        "network": f"UNet2DModel, {model.num_parameters:,} parameters, {model.dtype}",
        "predicts": scheduler.config.prediction_type,
        "schedule": f"{schedule}, T = {len(scheduler)}, ᾱ_T = {scheduler.alphas_cumprod[-1]:.3g}",
        "variance": scheduler.config.variance_type or "fixed_small",
    }
    for entry in model.metrics.get("evaluation", []):
        if "value" in entry:
            facts[entry["name"].lower()] = f"{entry['value']:.6g}"
    return facts
