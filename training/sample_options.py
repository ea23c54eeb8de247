"""The command line of `sample.py`; imports nothing heavy, so that `--help` is instant."""

import argparse

from launched_script import ScriptParser

_DESCRIPTION = (
    "Draws many samples of a model, with all processes together. The same command goes on after an interruption."
)
_EXAMPLE = """example:
  accelerate launch training/sample.py --model outputs/digits --num_images 50000 --output_dir outputs/digits_50k"""


def parse_options(argv: list[str]) -> argparse.Namespace:
    """Reads the command line. The values are checked where they are used.

    Raises:
        UserError: for an option that does not exist, is missing, or has no number where one is due.
    """
    parser = ScriptParser("sample.py", _DESCRIPTION, _EXAMPLE)
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="FOLDER_OR_REPO",
        help="a folder, or USER/NAME on the Hub (its code is not run)",
    )
    add("--revision", help="a branch or commit of a repository")
    add("--num_images", required=True, type=int, metavar="N", help="how many; a larger number later adds images")
    add("--output_dir", required=True, metavar="FOLDER", help="where samples.json and images/ go")
    add("--batch_size", type=int, default=64, metavar="B",
        help="how many one process draws at once; every batch is drawn whole, also the last one (default: 64)")  # fmt: skip
    add("--seed", type=int, default=0, help="image i comes from the seed SEED + i (default: 0)")
    add("--class_labels", nargs="+", metavar="CLASS",
        help="names or numbers, taken in turn: image i is of class i modulo their number; `any` leaves the class open "
        "(default: all classes of the model in turn)")  # fmt: skip
    _add_sampling(parser)
    add("--mixed_precision", default="no", metavar="no|bf16|fp16", help="what the network computes in (default: no)")
    add("--format", metavar="png|npy",
        help="npy: float32 in [-1, 1], shape (C, H, W) (default: png for 1, 3 or 4 channels, else npy)")  # fmt: skip
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling", "as in DDPMHubPipeline; what is left out is as the model has it")
    add = group.add_argument
    add("--sampler", metavar="NAME", help="ddpm, ddim, dpm++, sde-dpm++ or unipc")
    add("--num_inference_steps", type=int, metavar="N", help="reverse steps, from 1 to T")
    add("--eta", type=float, help="η of ddpm and ddim, from 0 to 1")
    add("--guidance_scale", type=float, metavar="W", help="w of classifier-free guidance; 1 is none")
    add("--guidance_interval", type=int, nargs=2, metavar=("LOW", "HIGH"), help="the timesteps that are guided")
    add("--timestep_spacing", metavar="NAME", help="leading, trailing or linspace, for ddpm and ddim")
    add("--dynamic_thresholding_ratio", type=float, metavar="P", help="the quantile of |x_0| that x_0 is divided by")
    add("--fast", action="store_true", help="compile the network: about a minute first, then faster")
