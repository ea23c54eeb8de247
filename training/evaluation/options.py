"""The command line of `evaluate.py`; imports nothing heavy, so that `--help` is instant."""

import argparse
from pathlib import Path

from config_checks import UserError
from launched_script import ScriptParser
from output_folder import read_config
from train_config import TrainConfig

PARTS = ("bound", "samples", "steps", "guidance")
EXTRACTORS = ("auto", "domain", "inception", "dinov2")
# The full run: the whole test split, and as many samples as papers draw.
ALL = 10**12
FULL = {"bound_images": ALL, "num_samples": 50_000, "study_samples": 10_000, "reference_images": ALL}
SUBSETS = {"bound_images": 128, "num_samples": 2000, "study_samples": 500, "reference_images": 50_000}
STEPS = (5, 10, 20, 50, 100)
# What describes the data, by the names of TrainConfig; what is not given is as in the config.yaml of the model's run.
DATA = ("dataset_name", "dataset_config", "image_column", "label_column", "image_mode", "resolution", "cache_dir")
# What is only said there.
_OF_THE_RUN = ("unreadable_images",)

_DESCRIPTION = (
    "Says how good a model is: bits per dimension, FID, KID, precision and recall, copies of training images, class fidelity, "
    "calibration. The same command goes on after an interruption."
)
_EXAMPLE = """example:
  accelerate launch training/evaluate.py --model outputs/digits
  accelerate launch training/evaluate.py --model USER/NAME --dataset zalando-datasets/fashion_mnist --output_dir outputs/judged"""


def parse_options(argv: list[str]) -> argparse.Namespace:
    """Reads the command line.

    Raises:
        UserError: for an option that does not exist, is missing, or has no number where one is due.
    """
    parser = ScriptParser("evaluate.py", _DESCRIPTION, _EXAMPLE)
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="FOLDER_OR_REPO",
        help="a folder, or USER/NAME on the Hub (its code is not run)",
    )
    add("--revision", help="a branch or commit of a repository")
    add("--output_dir", metavar="FOLDER",
        help="where figures and plots go (default: the model's folder; outputs/evaluation/NAME for a repository)")  # fmt: skip
    add("--parts", nargs="+", choices=PARTS, help="what to measure (default: all that applies)")
    add(
        "--full",
        action="store_true",
        help="all unseen images for the bound, 50,000 samples, 10,000 for a row of a table, where no number is given",
    )
    add("--batch_size", type=int, default=64, metavar="B", help="images that a process handles at once (default: 64)")
    add("--seed", type=int, default=0, help="of all noise; sample i has SEED + i (default: 0)")
    add("--mixed_precision", default="no", metavar="no|bf16|fp16", help="what the network computes in (default: no)")
    add("--debug", action="store_true", help="show the traceback of an error")
    _add_data(parser.add_argument_group("data", "by default those of the run that trained the model"))
    _add_bound(parser.add_argument_group("bound"))
    _add_samples(parser.add_argument_group("samples"))
    return parser.parse_args(argv)


def _add_data(group) -> None:
    add = group.add_argument
    add("--dataset", dest="dataset_name", metavar="FOLDER_OR_ID", help="a folder, or a data set of the Hub")
    add("--dataset_config", metavar="NAME", help="of a data set with several")
    add("--split", default="test", help="real images that were not trained on (default: test)")
    add("--train_split", help="those that were (default: the run's, else train)")
    add("--image_column", metavar="NAME")
    add("--label_column", metavar="NAME")
    add("--image_mode", metavar="L|RGB|RGBA", help="convert the images")
    add(
        "--resolution", type=int, nargs="+", metavar="N", help="scale the images to N×N, or to H W, as the training did"
    )
    add("--padding", type=int, default=0, metavar="P",
        help="black pixels around the data on every side that the network was trained with; they are no dimensions of the data, "
        "and are cut off samples")  # fmt: skip
    add("--cache_dir", metavar="FOLDER", help="where decoded images and features are kept")


def _add_bound(group) -> None:
    add = group.add_argument
    add("--bound_images", type=int, metavar="N", help="images of the split, evenly spaced (default: 128)")
    add("--timesteps_per_image", type=int, metavar="K",
        help="a quick estimate: K timesteps of each image, the important ones more often (default: all T)")  # fmt: skip
    add("--analytic_images", type=int, default=64, metavar="N",
        help="training images for each timestep of the analytic variance; 0 leaves it out (default: 64)")  # fmt: skip
    add("--float64", action="store_true", help="compute the bound in float64")


def _add_samples(group) -> None:
    add = group.add_argument
    add("--num_samples", type=int, metavar="N", help="(default: 2000, or twice as many as features if that is more)")
    add("--study_samples", type=int, metavar="N",
        help="for each row of the tables (default: 500, or twice as many as features if that is more)")  # fmt: skip
    add("--steps", type=int, nargs="+", metavar="N", help="rows of that table (default: 5 10 20 50 100, up to T)")
    add("--samplers", nargs="+", metavar="NAME", help="in that table (default: the model's own and ddpm)")
    add("--guidance", type=float, nargs="+", default=[1, 1.5, 2, 3, 5], metavar="W",
        help="rows of that table (default: 1 1.5 2 3 5)")  # fmt: skip
    add(
        "--sampler",
        metavar="NAME",
        help="ddpm, ddim, dpm++, sde-dpm++ or unipc (default, as for the next four: as the model has it)",
    )
    add("--num_inference_steps", type=int, metavar="N")
    add("--eta", type=float)
    add("--guidance_scale", type=float, metavar="W")
    add("--guidance_interval", type=int, nargs=2, metavar=("LOW", "HIGH"))
    add("--extractor", default="auto", choices=EXTRACTORS,
        help="whose features are compared: the package's own classifier for 8×8 and 28×28 grey images, Inception-v3, or "
        "DINOv2 (default: the first where there is one, else inception)")  # fmt: skip
    add("--extractor_weights", metavar="PATH_OR_REPO", help="for inception a file, for dinov2 a folder or repository")
    add("--reference_images", type=int, metavar="N",
        help="of each split at most, evenly spaced (default: 50000)")  # fmt: skip
    add(
        "--neighbors",
        type=int,
        default=5,
        metavar="K",
        help="k of precision, recall, density and coverage (default: 5)",
    )
    add("--no_fid", action="store_true", help="leave FID out, where there are too few images for it")


def data_config(options: argparse.Namespace, split: str, has_classes: bool = True) -> TrainConfig:
    """How the images of a split are read, with their classes where the model has any.

    Raises:
        UserError: if no data set is named, neither here nor by the model's run.
    """
    stored = trained_with(options)
    given = {name: getattr(options, name) for name in DATA}
    if given["resolution"] is not None:
        size = given["resolution"]
        if len(size) > 2:
            raise UserError(f"`--resolution` is {size}; it must be one number, or height and width.")
        given["resolution"] = size[0] if len(size) == 1 else tuple(size)
    same_data = given["dataset_name"] in (None, stored.get("dataset_name"))
    known = {name: stored.get(name) for name in DATA} if same_data else {"resolution": stored.get("resolution")}
    known["resolution"] = tuple(known["resolution"]) if isinstance(known["resolution"], list) else known["resolution"]
    values = {name: given[name] if given[name] is not None else known.get(name) for name in DATA}
    values |= {name: stored.get(name) for name in _OF_THE_RUN}
    if values["dataset_name"] is None:
        raise UserError(
            "`--dataset` is needed: the model does not say what it was trained on. Name a folder or a data set."
        )
    return TrainConfig(
        split=split,
        class_conditional=has_classes,
        **{name: value for name, value in values.items() if value is not None},
    )


def train_split(options: argparse.Namespace) -> str:
    stored = trained_with(options)
    is_of_run = options.dataset_name in (None, stored.get("dataset_name"))
    return options.train_split or (stored.get("split", "train") if is_of_run else "train")


def trained_with(options: argparse.Namespace) -> dict:
    """The configuration of the run that trained the model, where its folder holds it."""
    return read_config(Path(options.model).expanduser()) or {}


def complete(options: argparse.Namespace, num_features: int | None) -> None:
    """Fills in the numbers that were not given; with --full those of the full run.

    Args:
        num_features (`int`, *optional*): of the extractor, of which a covariance takes more images; `None` where there is none.
    """
    given = {name: getattr(options, name) for name in FULL}
    options.numbers_of_full_run = {name: given[name] or usual for name, usual in FULL.items()}
    for name, usual in (FULL if options.full else SUBSETS).items():
        if getattr(options, name) is None:
            least = 2 * (num_features or 0) if name in ("num_samples", "study_samples") else 0
            setattr(options, name, max(usual, least))
