"""Says how good a model is, in numbers that can be trusted, and writes them into its card.

    accelerate launch training/evaluate.py --model outputs/digits
    accelerate launch training/evaluate.py --model USER/NAME --dataset FOLDER_OR_ID --output_dir outputs/judged
    python training/evaluate.py --help                            every option

Bits per dimension by the full variational bound, for every variance; FID, KID, precision, recall, density and coverage of
samples, between those of real images and of noise; copies of training images; class fidelity; calibration of the network;
quality by steps and by guidance. Subsets by default, with the time that they and the full run (--full) take printed first.

The folder gets metrics.json (docs/EVALUATION.md says what its keys mean), evaluation.md, plots/*.png and, where it is a
model's, a new README.md; `evaluation/` in it holds the pieces that are done, from which the same command goes on after a
crash, a kill or Ctrl-C, and may be removed. The processes share the pieces, and the figures are of all of them together: with
one process or many they are the same to the last digit (on equal devices; on a CPU with as many threads per process).

Exit status: 0 done; 1 it failed; 2 a mistake in what was given; 130 (Ctrl-C) or 143 (SIGTERM) stopped at once.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import sys
from datetime import timedelta
from pathlib import Path

from evaluation.options import complete, parse_options
from launched_script import (
    check_same_everywhere,
    from_main_process,
    join_processes,
    one_line,
    run_script,
    wait_for_all,
)
from train_config import UserError

PATIENCE = timedelta(days=1)
NOTED = "card.sha256"


def main(argv: list[str]) -> int:
    return run_script(
        "evaluate.py", argv, lambda: run(parse_options(argv)), "what is done stays, and the same command goes on."
    )


def run(options: argparse.Namespace) -> int:
    """Prepares everything that may be refused, then measures. Heavy imports wait until here: --help is quick."""
    from evaluation.report import read_metrics, summary, write_report

    # The main process compares the sets of features by itself, which may take longer than the usual ten minutes.
    state = join_processes(timeout=PATIENCE)
    context, output = prepare(options, state)
    fingerprints = {"data": context.held.data.fingerprint, "training data": context.train.data.fingerprint}
    check_same_everywhere({**context.identity, **context.facts, **fingerprints, **vars(options)})
    descriptor = from_main_process(state, lambda: claim(output))
    from_main_process(state, lambda: read_metrics(output, context.identity))
    if state.is_main_process:
        print(f"{output}: {', '.join(context.parts)}.", flush=True)
    tell_time(context)
    bound, samples, tables = measure(context)
    if state.is_main_process:
        if is_own := is_own_card(output):
            note_card(output)
        metrics = write_report(context, output, bound, samples, tables)
        card = write_card_of(output, is_own)
        print(f"{summary(metrics)}\n{output / 'evaluation.md'}, metrics.json and plots/ have all of it{card}.")
        os.close(descriptor)
    wait_for_all(state)
    state.destroy_process_group()
    return 0


def prepare(options: argparse.Namespace, state):
    """The model and the data, checked, and the output folder.

    Raises:
        UserError: naming what cannot be.
    """
    from evaluation.context import Context, read_data, work_folder
    from evaluation.work import Work
    from sample_settings import identity, load_model

    try:
        check_numbers(options)
        pipeline = load_model(options, state.device)
        which = identity(options.model, options.revision)
    except (OSError, ValueError) as error:
        raise UserError(one_line(error)) from error
    is_local = Path(options.model).is_dir()
    name = Path("outputs", "evaluation", Path(options.model).name)
    output = Path(options.output_dir or (options.model if is_local else name)).expanduser()
    check_not_anothers(output, options, which)
    held, train = read_data(options, pipeline, state)
    context = Context(options, pipeline, which, held, train, Work(work_folder(output), state), state)
    try:
        of_samples = set(context.parts) - {"bound"}
        complete(options, context.extractor.num_features if of_samples and not options.no_fid else None)
        check_counts(context)
        if of_samples:
            context.settings  # noqa: B018
        if "steps" in context.parts:
            from evaluation.measure import steps_settings

            steps_settings(context)
        if "guidance" in context.parts:
            from evaluation.measure import guidance_settings

            guidance_settings(context)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(one_line(error)) from error
    return context, output


def check_not_anothers(output: Path, options: argparse.Namespace, which: dict) -> None:
    """Whether the output folder is no model's, or this one's.

    Raises:
        UserError: if its card would tell the figures of another model.
    """
    from sample_settings import identity

    if not (output / "model_index.json").is_file() or output.resolve() == Path(options.model).expanduser().resolve():
        return
    try:
        if identity(str(output), None)["sha256"] == which["sha256"]:
            return
    except OSError:  # of a model that is not whole
        pass
    raise UserError(
        f"`--output_dir` is {str(output)!r}, which holds another model, whose card would tell the figures of this one. Choose "
        f"another folder."
    )


def check_numbers(options: argparse.Namespace) -> None:
    """What numbers may be, before anything is loaded; `--full` takes the place of the subsets.

    Raises:
        ValueError: naming the option, its value and what is allowed.
    """
    from ddpm_hub.ddpm_argument_checks import check_integer

    smallest = {"num_samples": 4, "study_samples": 4, "bound_images": 2, "reference_images": 4, "neighbors": 1, "padding": 0,
                "analytic_images": 0, "seed": 0, "timesteps_per_image": 1}  # fmt: skip
    for name, least in smallest.items():
        if getattr(options, name) is not None:
            check_integer(name, getattr(options, name), least, float("inf"))
    if options.float64 and options.mixed_precision != "no":
        raise ValueError(
            f"`float64` contradicts `mixed_precision` = {options.mixed_precision!r}; leave one of them out."
        )


def check_counts(context) -> None:
    """Whether there are images enough for every figure of samples, before any is drawn.

    Raises:
        UserError: naming the option, and how many it takes.
    """
    from evaluation.distances import KID_BLOCKS

    options = context.options
    if "bound" in context.parts and len(context.held) < 2:
        raise UserError(
            f"`--split {context.held.split}` has one image, of which there is no standard error; take more."
        )
    if not set(context.parts) - {"bound"}:
        return
    features = context.extractor.num_features
    least = max(2 * KID_BLOCKS, options.neighbors + 1, 0 if options.no_fid else features + 1)
    counts = {"--num_samples": options.num_samples} if "samples" in context.parts else {}
    counts |= {"--study_samples": options.study_samples} if {"steps", "guidance"} & set(context.parts) else {}
    splits = {"--train_split": context.train} | ({"--split": context.held} if "samples" in context.parts else {})
    for option, images in splits.items():
        counts[f"{option} {images.split}"] = min(len(images), options.reference_images)
    for option, count in counts.items():
        if count < least:
            why = f"the covariance of {features} features" if least == features + 1 else "its distances"
            remedy = (
                ", take an --extractor with fewer features, or leave FID out with --no_fid"
                if least == features + 1
                else ""
            )
            raise UserError(
                f"`{option}` has {count} images, too few for {why}: there must be {least}. Take more{remedy}."
            )


def claim(output: Path) -> int:
    """Takes the output folder for this run; ends with the process at the latest.

    Raises:
        UserError: if another run evaluates there, or nothing can be written.
    """
    from durable_files import lock
    from evaluation.context import work_folder

    try:
        folder = work_folder(output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".written").write_text("", encoding="utf-8")
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"`--output_dir` is {str(output)!r}, which cannot be written: {error.strerror}. Choose another folder."
        ) from error
    if not lock(descriptor, fcntl.LOCK_EX):
        raise UserError(
            f"`--output_dir` is {str(output)!r}, where another evaluation runs; wait for its end, or stop it."
        )
    return descriptor


def tell_time(context) -> None:
    """Prints what the run will take, and the full one, by a timed call of the network and of the extractor."""
    from evaluation.plan import estimate

    if context.is_main:
        print(estimate(context), flush=True)
    context.state.wait_for_everyone()


def measure(context):
    """All parts, one after another, in all processes."""
    from evaluation.measure import guidance_settings, measure_bound, measure_samples, measure_table, steps_settings

    bound = measure_bound(context) if "bound" in context.parts else None
    samples = measure_samples(context) if "samples" in context.parts else None
    tables = {}
    for part, settings in (("steps", steps_settings), ("guidance", guidance_settings)):
        if part in context.parts:
            tables[f"quality_by_{part}"] = measure_table(context, part, settings(context))
    return bound, samples, tables


def is_own_card(output: Path) -> bool:
    """Whether README.md is what this package wrote, or is not there: nobody's text is lost if it is written anew.

    Either it is the card that an evaluation has noted, or what the folder's own files give, by the name it has in it.
    """
    from ddpm_hub.model_card import render_card

    card = output / "README.md"
    if not (output / "model_index.json").is_file() or not card.exists():
        return True
    try:
        written = card.read_text(encoding="utf-8")
        if noted_card(output) == sha256(written):
            return True
        name = re.search(r'from_pretrained\(("(?:[^"\\]|\\.)*")', written)
        rendered = render_card(output, name=json.loads(name[1])) if name else None
        return rendered is not None and rendered.content.rstrip("\n") == written.rstrip("\n")
    except (OSError, ValueError):
        return False


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def noted_card(output: Path) -> str | None:
    """The hash of the card that was last found to be this package's."""
    from evaluation.context import work_folder

    path = work_folder(output) / NOTED
    return path.read_text(encoding="utf-8") if path.exists() else None


def note_card(output: Path) -> None:
    """Remembers the card: an interruption may come between new plots, which a card lists, and the new card."""
    from durable_files import write_whole
    from evaluation.context import work_folder

    card = output / "README.md"
    if card.exists():
        write_whole(work_folder(output) / NOTED, sha256(card.read_text(encoding="utf-8")))


def write_card_of(output: Path, is_own: bool) -> str:
    """Puts the figures into the card of the folder, where it is a model's and not of somebody's hand; what there is to say."""
    from ddpm_hub.model_card import write_card

    if not (output / "model_index.json").is_file():
        return ""
    if not is_own:
        return "; README.md was edited and is left as it is (`ddpm-hub card` writes a new one)"
    write_card(output)
    note_card(output)
    return ", and so has the card, README.md"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
