"""Trains a DDPM on images.

    accelerate launch training/train.py           the embedded digits, 2 to 3 minutes on one CPU core
    accelerate launch training/train.py --config training/configs/fashion_mnist_10min.yaml
    accelerate launch training/train.py --dataset_name FOLDER_OR_HUB_ID --output_dir outputs/mine
    accelerate launch training/train.py --dry_run true …          what it takes and how long; nothing is written
    python training/train.py --help                               every option

The output folder is a pipeline (`DDPMHubPipeline.from_pretrained`), with the resolved config.yaml, metrics.json, the logs,
loss_curve.png, samples/ and checkpoints/ beside the weights. To go on after a crash, a kill or Ctrl-C, run the same command
again: it continues from the newest whole checkpoint, and what comes out is to the bit what an uninterrupted run gives
(same machine, same number of processes). SIGTERM and Ctrl-C write a checkpoint at the next step; a second one ends at once.
With --push_to_hub USER/NAME the finished model is published.

Exit status: 0 done; 1 trained and saved but not published, or failed with a message; 2 a mistake in what was given;
75 stopped by a signal with a checkpoint, so that the same command goes on; 130 stopped at once by Ctrl-C. (`accelerate launch` turns
every failure into 1 and adds a traceback of its own, unless it is told to be `--quiet`.)
"""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

from checkpoints import CHECKPOINTS, newest_checkpoint
from config_parser import parse_config
from durable_files import write_whole
from evaluation.files import remove_evaluation
from launched_script import join_processes
from output_folder import check_output, claim_output
from resume import Found, check_data, check_precision, find_run, is_finished, note_done
from stop_signal import INTERRUPTED, STOPPED
from train_config import TrainConfig, UserError

FAILED = 1


def main(argv: list[str]) -> int:
    try:
        config = parse_config(argv)
        output = check_output(config)
        found = find_run(config, output)
        if found.kind == "finished" and not found.missing and not config.dry_run:
            print(f"{output} holds this run, finished. To train it again and keep this one beside, add --resume false.")
            return 0
        return run(config, output, found)
    except UserError as error:
        if "--debug" in argv:
            raise
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: stopped before training; nothing was written.", file=sys.stderr)
        return INTERRUPTED


def run(config: TrainConfig, output: Path, found: Found) -> int:
    """Prepares everything that may be refused, then trains. Heavy imports wait until here: --help and mistakes are quick."""
    from accelerate.utils import set_seed
    from build_model import build_scheduler, build_unet, check_network
    from hub_push import prepare_push
    from image_data import load_images, load_validation
    from initial_weights import copy_weights, load_initial_model, other_schedule
    from training_loop import timed_steps

    from ddpm_hub import DDPMHubPipeline

    accelerator = make_accelerator(config, output)
    scheduler = build_scheduler(config)
    check_network(config)
    if accelerator.is_main_process and not config.dry_run:
        prepare_push(config)
    with accelerator.main_process_first():
        initial = load_initial_model(config) if config.init_from and found.kind == "fresh" else None
        data = load_images(config)
        validation = load_validation(config, data)
    if found.checkpoint is not None:
        check_data(found.checkpoint.state, data, config)
        check_precision(found.checkpoint.state, accelerator.mixed_precision, config)
    set_seed(config.seed)
    names = dict(enumerate(data.class_names))
    unet = build_unet(config, data)
    if initial is not None:
        new = copy_weights(config, initial, unet)
        if accelerator.is_main_process:
            print(f"Begins with the weights of {config.init_from}.", flush=True)
            if new:
                print(f"The network has {new:,} parameters more than that one, which add nothing at first.", flush=True)
            if (differences := other_schedule(config, initial)) is not None:
                print(f"They were trained on another schedule, and learn this one anew: {differences}.", flush=True)
        del initial  # as large as the network
    pipeline = DDPMHubPipeline(unet, scheduler, names, config.sampling(bool(names)))
    if config.dry_run:
        resolved = dataclasses.replace(config, mixed_precision=accelerator.mixed_precision)
        report = timed_steps(resolved, data, pipeline, accelerator)
        if accelerator.is_main_process:
            print(report)
        return 0
    if not accelerator.is_main_process:
        return train_and_judge(config, data, validation, pipeline, accelerator, output, found)
    with claim_output(output, config, found.in_place, found.mark):
        return train_and_judge(config, data, validation, pipeline, accelerator, output, found)


def make_accelerator(config: TrainConfig, output: Path):
    """accelerate, set up as the configuration asks."""
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration, TorchDynamoPlugin
    from machine import resolve_precision

    device = join_processes().device
    accelerator = Accelerator(
        mixed_precision=resolve_precision(config.mixed_precision, device),
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=list(config.report_to) or None,
        project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output / "trackers")),
        # Static shapes: every batch of a run has the same.
        dynamo_plugin=TorchDynamoPlugin(backend="inductor", dynamic=False) if config.compile else None,
    )
    check_launcher(config, accelerator)
    passes = accelerator.num_processes * config.gradient_accumulation_steps
    if config.batch_size % passes:
        raise UserError(
            f"`batch_size` is {config.batch_size}; it must be a multiple of {passes}, the {accelerator.num_processes} "
            f"processes times gradient_accumulation_steps = {config.gradient_accumulation_steps}."
        )
    return accelerator


def check_launcher(config: TrainConfig, accelerator) -> None:
    """What `accelerate config`, `accelerate launch` and the environment ask for, where it would be ignored or misunderstood.

    Raises:
        UserError: naming the option of this script that does the same.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", accelerator.mixed_precision):
        raise UserError(
            f"`mixed_precision` is {config.mixed_precision!r}, while accelerate is set to {asked!r}; add --mixed_precision "
            f"{asked}, or set accelerate to 'no'."
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("`mixed_precision` is 'fp16', which no CPU trains in; add --mixed_precision bf16, or no.")
    if accelerator.state.dynamo_plugin.backend.value == "INDUCTOR" and accelerator.device.type == "cpu":
        # PyTorch 2.13 makes most of its gradients zero, without a word (docs/TRAINING_SPEED.md).
        raise UserError(
            f"`compile` is {config.compile} and accelerate's dynamo_backend 'inductor', but a U-Net that PyTorch compiles for a "
            f"CPU learns wrongly. Add --compile false; if accelerate itself asks for it, set its dynamo_backend to 'no'."
        )
    if accelerator.gradient_accumulation_steps != config.gradient_accumulation_steps:
        raise UserError(
            f"`gradient_accumulation_steps` is {config.gradient_accumulation_steps}, while accelerate is set to "
            f"{accelerator.gradient_accumulation_steps}; set both to the same."
        )
    if accelerator.distributed_type == "FSDP" and not accelerator.is_fsdp2:
        raise UserError("accelerate is set to FSDP version 1, which hides the weights; choose fsdp_version 2.")


def train_and_judge(config: TrainConfig, data, validation, pipeline, accelerator, output: Path, found: Found) -> int:
    """Trains in all processes, and says how it ended."""
    from machine import idle_processors
    from train_log import NotFiniteError
    from train_report import print_plan
    from training_loop import train

    accelerator.wait_for_everyone()  # nobody looks at the folder before it is claimed
    try:
        if found.kind == "finished":
            return finish(config, data, None, accelerator, output, found.missing)
        if accelerator.is_main_process:
            print_plan(config, data, pipeline)
            if found.checkpoint is not None:
                print(f"Going on from step {found.checkpoint.step:,}.", flush=True)
            elif hint := idle_processors(accelerator.device):
                print(hint, flush=True)
        accelerator.init_trackers(config.tracker_project, {key: str(value) for key, value in vars(config).items()})
        figures, averaged = train(config, data, validation, pipeline, accelerator, output, found.checkpoint)
        if averaged is None:
            if accelerator.is_main_process:
                print(
                    f"Stopped after {figures['steps']:,} steps with a checkpoint; the same command goes on from there."
                )
            accelerator.end_training()
            return STOPPED
        return finish(config, data, (figures, averaged), accelerator, output, missing=("judging", "publishing"))
    except KeyboardInterrupt:
        if accelerator.is_main_process:
            print(f"train.py: stopped at once; {content(config, output)}.", file=sys.stderr)
        return INTERRUPTED
    except (NotFiniteError, OSError) as error:
        if accelerator.is_main_process:
            print(f"train.py: training ended: {error}; {content(config, output)}.", file=sys.stderr)
        return FAILED


def finish(
    config: TrainConfig, data, trained: tuple | None, accelerator, output: Path, missing: tuple[str, ...]
) -> int:
    """What comes after the last step: the figures, the judgement of the samples, and publishing.

    Args:
        trained (`tuple`, *optional*): what [`train`] returned; without it, an earlier run is completed.
        missing (`tuple[str, ...]`): of `judging` and `publishing`, what is not done.
    """
    from hub_push import push
    from train_report import UNREADABLE, judge, training_report, with_judgement

    from ddpm_hub import DDPMHubPipeline
    from ddpm_hub.model_card import write_card

    main = accelerator.is_main_process

    def record(metrics: dict) -> None:
        write_whole(output / "metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
        write_card(output)

    if trained is None:
        metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
        stored = DDPMHubPipeline.from_pretrained(output)
        stored.unet.to(accelerator.device)
        # It may now be sampled in another way.
        sampling = config.sampling(bool(data.class_names))
        pipeline = DDPMHubPipeline(stored.unet, stored.scheduler, stored.id2label, sampling)
        pipeline.set_progress_bar_config(disable=True)
        if main:
            pipeline.save_config(output)
    else:
        figures, pipeline = trained
        metrics = training_report(config, data, figures, accelerator)
        if main:
            remove_evaluation(output)
            record(metrics)  # judging takes a while, and may be stopped
    if main and data.unreadable:
        write_whole(output / UNREADABLE, "\n".join(data.unreadable) + "\n")
    if "judging" in missing:
        judgement = judge(config, data, pipeline, accelerator)
        if main:
            record(with_judgement(metrics, judgement))
            note_done(config, output, "judging")
    published = True
    if main:
        published = push(config, output)
        if published:
            note_done(config, output, "publishing")
    accelerator.end_training()
    return 0 if published else FAILED


def content(config: TrainConfig, output: Path) -> str:
    """What a run that has ended early leaves in its folder."""
    checkpoint = newest_checkpoint(output / CHECKPOINTS)
    if is_finished(output, config.max_train_steps):
        return f"{output} holds the trained model and its figures, without the judgement of its samples"
    if checkpoint is not None:
        return f"the last good checkpoint is {checkpoint.folder}, and the same command goes on from there"
    return f"{output} holds no checkpoint yet"


if __name__ == "__main__":
    # `make train` starts its launcher, and so this process, with SIGINT ignored: the launcher is to wait for our end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
