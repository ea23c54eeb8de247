"""Draws many samples of a model, with all processes together: for an evaluation, or as a data set.

    accelerate launch training/sample.py --model outputs/digits --num_images 50000 --output_dir outputs/digits_50k
    python training/sample.py --help                              every option

Image i depends on the settings, its class and the seed SEED + i alone. Batches are fixed, batch b has the images b·B to
(b+1)·B − 1, and the processes take them in turn: with one process or many, after any interruption, and when more images
are asked for later, the files are the same to the bit (on equal devices; on a CPU with as many threads per process). For
that the last batch is drawn whole, and what is too much of it is not kept.

The folder holds `samples.json` (all that the images depend on), `images/00000000.png` … and, once all are there,
`images/metadata.csv`, which `datasets.load_dataset("imagefolder", data_dir="FOLDER/images")` reads. The same command goes
on after a crash, a kill or Ctrl-C, and with a larger --num_images it adds images.

Exit status: 0 done; 1 it failed; 2 a mistake in the command line or the model; 130 (Ctrl-C) or 143 (SIGTERM) stopped at
once. (`accelerate launch` turns every failure into 1 and adds a traceback of its own, unless it is told to be `--quiet`.)
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from launched_script import (
    check_same_everywhere,
    from_main_process,
    in_turns,
    join_processes,
    one_line,
    run_script,
    wait_for_all,
)
from sample_options import parse_options
from train_config import UserError


def main(argv: list[str]) -> int:
    return run_script(
        "sample.py",
        argv,
        lambda: run(parse_options(argv)),
        "the images that are written stay, and the same command goes on.",
    )


def run(options: argparse.Namespace) -> int:
    """Prepares everything that may be refused, then draws. Heavy imports wait until here: --help is quick."""
    from sample_files import images_folder, write_metadata
    from sample_settings import call_arguments, check_options, chosen_classes, chosen_format, load_model, settings_of

    state = join_processes()
    try:
        check_options(options)
        pipeline = load_model(options, state.device)
        labels = chosen_classes(options, pipeline)
        options.format = chosen_format(options, pipeline)
        for batch in (0, (options.num_images - 1) // options.batch_size):  # the smallest and the largest seeds
            pipeline.stream(**call_arguments(options, labels, batch)).close()
        settings = settings_of(options, pipeline, labels)
    except (OSError, ValueError) as error:
        raise UserError(one_line(error)) from error
    check_same_everywhere(settings)
    with contextlib.ExitStack() as held:
        missing = claim(options, settings, state, held)
        begun = time.perf_counter()
        for numbers in progress(options, missing, state):
            draw(options, pipeline, labels, numbers)
        wait_for_all(state)
        if state.is_main_process:
            images = images_folder(options.output_dir)
            write_metadata(images, options.format, options.seed, labels, pipeline.id2label)
            print(summary(options, images, len(missing), time.perf_counter() - begun))
    state.destroy_process_group()
    return 0


def claim(options: argparse.Namespace, settings: dict, state, held: contextlib.ExitStack) -> list[int]:
    """Takes the output folder for this run, and gives the numbers of the missing images, the same ones in all processes.

    Raises:
        UserError: in all processes, if the folder cannot be had.
    """
    from sample_files import claimed_folder, stored_numbers

    def missing() -> list[int]:
        images = held.enter_context(claimed_folder(options.output_dir, settings))
        there = set(stored_numbers(images, options.format))
        return [number for number in range(options.num_images) if number not in there]

    return from_main_process(state, missing)


def progress(options: argparse.Namespace, missing: list[int], state) -> Iterator[list[int]]:
    """The missing images of one batch after another that this process has to draw; with a bar in the main process."""
    from tqdm.auto import tqdm

    batches: dict[int, list[int]] = {}
    for number in missing:
        batches.setdefault(number // options.batch_size, []).append(number)
    done = options.num_images - len(missing)
    with tqdm(total=options.num_images, initial=done, unit=" images", disable=not state.is_main_process) as bar:
        yield from in_turns(list(batches.values()), state, bar)


def draw(options: argparse.Namespace, pipeline, labels: list[int] | None, numbers: list[int]) -> None:
    """Draws the batch of these images, always the whole one, and writes them."""
    from sample_files import images_folder, write_images
    from sample_settings import call_arguments

    batch = numbers[0] // options.batch_size
    output_type = "pil" if options.format == "png" else "sample"
    drawn = pipeline(**call_arguments(options, labels, batch), output_type=output_type).images
    start = batch * options.batch_size
    write_images(images_folder(options.output_dir), options.format, {n: drawn[n - start] for n in numbers})


def summary(options: argparse.Namespace, images: Path, drawn: int, seconds: float) -> str:
    if not drawn:
        return f"{images} holds these {options.num_images:,} images; nothing was left to draw."
    rate = f"{drawn:,} of them drawn now in {seconds:,.1f} s, {drawn / seconds:,.1f} images/s"
    return f"{images} holds {options.num_images:,} images, {rate}."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
