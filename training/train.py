"""Trains a DDPM on images.

    accelerate launch training/train.py           the embedded digits, about 2 minutes on one CPU core
    accelerate launch training/train.py --config training/configs/fashion_mnist.yaml
    accelerate launch training/train.py --dataset_name FOLDER_OR_HUB_ID --output_dir outputs/mine
    python training/train.py --help                                       every option

The output folder is a pipeline (`DDPMHubPipeline.from_pretrained`), with the resolved config.yaml, metrics.json,
loss_curve.png and samples/ beside the weights. Ctrl-C stops at the next step and leaves the same; a second Ctrl-C stops
at once. With --push_to_hub USER/NAME the finished model is published. Exit status: 0 done, 1 trained and saved but not
published, 2 a mistake in what was given, 130 stopped by Ctrl-C. (`accelerate launch` turns every failure into 1 and adds a
traceback of its own, unless it is told to be `--quiet`.)
"""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from output_folder import check_output, claim_output, write_whole
from train_config import TrainConfig, UserError, parse_config

NOT_PUBLISHED = 1
INTERRUPTED = 130


def main(argv: list[str]) -> int:
    try:
        config = parse_config(argv)
        return run(config, check_output(config))
    except UserError as error:
        if "--debug" in argv:
            raise
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: stopped before training; nothing was written.", file=sys.stderr)
        return INTERRUPTED


def run(config: TrainConfig, output: Path) -> int:
    """Trains, then judges. Everything heavy is imported here, so that --help and mistakes answer at once."""
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from build_model import build_scheduler, build_unet
    from hub_push import prepare_push
    from image_data import load_images

    from ddpm_hub import DDPMHubPipeline

    accelerator = Accelerator(
        mixed_precision=config.mixed_precision, gradient_accumulation_steps=config.gradient_accumulation_steps
    )
    passes = accelerator.num_processes * config.gradient_accumulation_steps
    if config.batch_size % passes:
        raise UserError(
            f"`batch_size` is {config.batch_size}; it must be a multiple of {passes}, the {accelerator.num_processes} "
            f"processes times gradient_accumulation_steps = {config.gradient_accumulation_steps}."
        )
    scheduler = build_scheduler(config)
    if accelerator.is_main_process:
        prepare_push(config)
    with accelerator.main_process_first():
        data = load_images(config)
    set_seed(config.seed)
    pipeline = DDPMHubPipeline(build_unet(config, data), scheduler, id2label=dict(enumerate(data.class_names)))
    if accelerator.is_main_process:
        claim_output(output, config)
    try:
        return train_and_judge(config, data, pipeline, accelerator, output)
    except KeyboardInterrupt:
        if accelerator.is_main_process:
            print(f"train.py: stopped at once; {content(output)}.", file=sys.stderr)
        return INTERRUPTED


def train_and_judge(config: TrainConfig, data, pipeline, accelerator, output: Path) -> int:
    """Trains in all processes; the main one then writes what there is to say of the run."""
    from hub_push import push
    from train_report import judge, print_plan, training_report
    from training_loop import train

    from ddpm_hub.model_card import write_card

    if accelerator.is_main_process:
        print_plan(config, data, pipeline)
    accelerator.wait_for_everyone()
    with interrupt_flag() as interrupted:
        figures = train(config, data, pipeline, accelerator, output, interrupted)

    def record(metrics: dict) -> None:
        write_whole(output / "metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
        write_card(output)

    finished, published = figures["steps"] == config.max_train_steps, True
    if accelerator.is_main_process:
        metrics = training_report(config, data, figures, accelerator)
        record(metrics)  # judging takes a while, and may be stopped
        if finished:
            record(metrics | judge(config, data, pipeline))
            published = push(config, output)
        else:
            print(f"Stopped after {figures['steps']} steps; {output} holds the model of that step.")
    accelerator.end_training()
    if not finished:
        return INTERRUPTED
    return 0 if published else NOT_PUBLISHED


def content(output: Path) -> str:
    """What a run that was stopped at once leaves in its folder."""
    if (output / "metrics.json").exists():
        return f"{output} holds the trained model and its figures, without the judgement of its samples"
    if (output / "model_index.json").exists():
        return f"{output} holds the model of the last sample grid"
    return f"{output} holds no model yet"


@contextmanager
def interrupt_flag() -> Iterator[list]:
    """A list that is empty until Ctrl-C is pressed; the second Ctrl-C raises KeyboardInterrupt."""
    pressed = []
    before = signal.getsignal(signal.SIGINT)

    def on_interrupt(number, frame):
        pressed.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    # `make train` starts its launcher, and so this process, with SIGINT ignored: the launcher is to wait for our end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
