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
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from sample_options import parse_options
from train_config import UserError

FAILED, MISTAKE = 1, 2


def main(argv: list[str]) -> int:
    end_on_signals()
    try:
        options = parse_options(argv)
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            warnings.simplefilter("ignore", FutureWarning)  # one library to another
            return run(options)
    except UserError as error:
        if "--debug" in argv:
            raise
        if speaks_for_its_machine():
            print(f"sample.py: error: {error}", file=sys.stderr)
        return MISTAKE
    except Exception as error:
        if "--debug" in argv:
            raise
        print(f"sample.py: error: {one_line(error)}", file=sys.stderr)
        return FAILED


def run(options: argparse.Namespace) -> int:
    """Prepares everything that may be refused, then draws. Heavy imports wait until here: --help is quick."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env
    from sample_files import images_folder, write_metadata
    from sample_settings import call_arguments, check_options, chosen_classes, chosen_format, settings_of

    from ddpm_hub import DDPMHubPipeline

    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    try:
        dtype = check_options(options, state.device)
        hub = {} if options.revision is None else {"revision": options.revision}
        pipeline = DDPMHubPipeline.from_pretrained(options.model, torch_dtype=dtype, **hub).to(state.device)
        pipeline.set_progress_bar_config(disable=True)
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


def check_same_everywhere(settings: dict) -> None:
    """Whether all processes have the same model, libraries and options: on several machines they may not.

    Raises:
        RuntimeError: naming what differs.
    """
    from accelerate.utils import gather_object

    for other in gather_object([settings]):
        if names := [name for name in settings if settings[name] != other[name]]:
            raise RuntimeError(f"the processes of this run differ in {', '.join(names)}; all must have the same.")


def claim(options: argparse.Namespace, settings: dict, state, held: contextlib.ExitStack) -> list[int]:
    """Takes the output folder for this run, and gives the numbers of the missing images, the same ones in all processes.

    Raises:
        UserError: in all processes, if the folder cannot be had.
    """
    from accelerate.utils import broadcast_object_list
    from sample_files import claimed_folder, stored_numbers

    outcome = [None]
    if state.is_main_process:
        try:
            images = held.enter_context(claimed_folder(options.output_dir, settings))
            there = set(stored_numbers(images, options.format))
            outcome = [[number for number in range(options.num_images) if number not in there]]
        except UserError as error:
            outcome = [error]
    broadcast_object_list(outcome)
    if isinstance(outcome[0], UserError):
        raise outcome[0]
    return outcome[0]


def progress(options: argparse.Namespace, missing: list[int], state) -> Iterator[list[int]]:
    """The missing images of one batch after another that this process has to draw; with a bar in the main process."""
    from tqdm.auto import tqdm

    batches: dict[int, list[int]] = {}
    for number in missing:
        batches.setdefault(number // options.batch_size, []).append(number)
    work, rank, ranks = list(batches.values()), state.process_index, state.num_processes
    done = options.num_images - len(missing)
    with tqdm(total=options.num_images, initial=done, unit=" images", disable=not state.is_main_process) as bar:
        for first in range(0, len(work), ranks):
            together = work[first : first + ranks]  # the others are about as far
            if rank < len(together):
                yield together[rank]
            bar.update(sum(map(len, together)))


def draw(options: argparse.Namespace, pipeline, labels: list[int] | None, numbers: list[int]) -> None:
    """Draws the batch of these images, always the whole one, and writes them."""
    from sample_files import images_folder, write_images
    from sample_settings import call_arguments

    batch = numbers[0] // options.batch_size
    output_type = "pil" if options.format == "png" else "sample"
    drawn = pipeline(**call_arguments(options, labels, batch), output_type=output_type).images
    start = batch * options.batch_size
    write_images(images_folder(options.output_dir), options.format, {n: drawn[n - start] for n in numbers})


def wait_for_all(state) -> None:
    """Waits until all processes are here.

    Raises:
        RuntimeError: if one of them has ended.
    """
    try:
        state.wait_for_everyone()
    except RuntimeError as error:
        raise RuntimeError("another process of this run has ended; the same command goes on.") from error


def summary(options: argparse.Namespace, images: Path, drawn: int, seconds: float) -> str:
    if not drawn:
        return f"{images} holds these {options.num_images:,} images; nothing was left to draw."
    rate = f"{drawn:,} of them drawn now in {seconds:,.1f} s, {drawn / seconds:,.1f} images/s"
    return f"{images} holds {options.num_images:,} images, {rate}."


# --- What is said, and where it ends -----------------------------------------------------------------------------------


def end_on_signals() -> None:
    """On SIGTERM and Ctrl-C the process ends at once, with 143 or 130, also while it computes or waits for others.

    A handler in Python would run when the current call of torch returns, and not at all while another process is waited
    for; a thread hears of the signal in time. No file is in a state that the end could harm.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)

    def listen() -> None:
        while (number := os.read(heard, 1)[0]) not in (signal.SIGINT, signal.SIGTERM):
            pass
        if speaks_for_its_machine():
            os.write(2, b"\nsample.py: stopped; the images that are written stay, and the same command goes on.\n")
        os._exit(128 + number)

    threading.Thread(target=listen, daemon=True).start()
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)


def speaks_for_its_machine() -> bool:
    """Whether this process tells what all processes of a machine find alike."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    if speaks_for_its_machine():
        print(f"sample.py: warning: {one_line(message)}", file=sys.stderr)


def one_line(error: Warning | Exception) -> str:
    """What a refusal says; of a failure that nobody foresaw also its kind, and how to see where it was."""
    text = " ".join(str(error).split())
    if text and isinstance(error, Warning | OSError | ValueError | RuntimeError):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
