"""What a run says of itself: its plan, the figures of metrics.json, and the judgement of its samples."""

import math
import time

import torch
from accelerate import Accelerator
from class_fidelity import class_fidelity, fit_rows, largest_fit, obstacle
from dataset_tables import local_folder
from image_data import ImageData
from initial_weights import comes_from_hub, earlier_training
from machine import describe_machine
from sample_grids import GRID_ROWS, draw, grid_columns, grid_file
from streamed_images import StreamedImages
from train_config import TrainConfig

from ddpm_hub import DDPMHubPipeline

UNREADABLE = "unreadable_images.txt"


def training_report(
    config: TrainConfig, data: ImageData | StreamedImages, figures: dict, accelerator: Accelerator
) -> dict:
    """What metrics.json says of the training and of its last grid: facts of the run, and no path of this machine."""
    folder = local_folder(config)
    images = {} if data.num_images is None else {"num_images": data.num_images}
    origin = {"init_from_on_hub": comes_from_hub(config)} if config.init_from else {}
    if earlier := earlier_training(config):
        origin["earlier"] = earlier
    report = {
        "training": {
            **figures,
            **images,
            "dataset": config.dataset_name if folder is None else folder.resolve().name,
            "dataset_on_hub": folder is None,
            **origin,
            "machine": describe_machine(accelerator.device, accelerator.num_processes),
        }
    }
    if figures["steps"] == config.max_train_steps:
        report["samples"] = {
            "file": grid_file(figures["steps"]),
            "num_samples": grid_columns(data.class_names) * GRID_ROWS,
            "class_in_each_column": bool(data.class_names),
            **drawn_with(config, bool(data.class_names)),
        }
    return report


def with_judgement(metrics: dict, judgement: dict) -> dict:
    """metrics.json with what [`judge`] says in place of figures of the same type; other figures stay."""
    types = {entry["type"] for entry in judgement.get("evaluation", [])}
    kept = [entry for entry in metrics.get("evaluation", []) if entry["type"] not in types]
    return metrics | judgement | ({"evaluation": [*judgement["evaluation"], *kept]} if types else {})


def drawn_with(config: TrainConfig, has_classes: bool = True) -> dict:
    """How every sample of the run is drawn."""
    return {"seed": config.seed} | config.sampling(has_classes)


def print_plan(config: TrainConfig, data: ImageData | StreamedImages, pipeline: DDPMHubPipeline) -> None:
    """Says what is about to be trained, and what is left aside."""
    count = "Streamed images" if data.num_images is None else f"{data.num_images:,} images"
    print(
        f"{count} of {' × '.join(map(str, data.image_shape))}, {len(data.class_names)} classes; a "
        f"U-Net of {pipeline.unet.num_parameters() / 1e6:.2f} M parameters; {config.max_train_steps:,} steps of "
        f"{config.batch_size} images.",
        flush=True,
    )
    if data.unreadable:
        print(
            f"{len(data.unreadable):,} more images cannot be read and are skipped; {UNREADABLE} lists them.", flush=True
        )
    for column in data.unused_labels:
        print(f"`{column}` holds integers; --label_column {column} trains on them as classes.", flush=True)
    if reason := why_not_judged(config, data):
        print(f"The samples will not be judged: {reason}.", flush=True)


def why_not_judged(config: TrainConfig, data: ImageData | StreamedImages) -> str | None:
    """Why [`judge`] cannot do what was asked for; `None` if it can, if nothing was asked for, or if a stream has yet to tell."""
    if not config.fidelity_samples or not data.class_names or data.num_images is None:
        return None
    return obstacle(data.labels, largest_fit(math.prod(data.image_shape)))


def judge(
    config: TrainConfig, data: ImageData | StreamedImages, pipeline: DDPMHubPipeline, accelerator: Accelerator
) -> dict:
    """Draws `fidelity_samples` images, each class of the data equally often, and says how often a classifier agrees.

    To be called by every process: all of them draw.

    Returns:
        `dict`: `evaluation` and `speed` as they stand in metrics.json; neither where there are no classes or
        [`why_not_judged`] says why.
    """
    if not config.fidelity_samples or not data.class_names:
        return {}
    limit = largest_fit(math.prod(data.image_shape))
    is_stream = data.num_images is None
    real, real_labels = data.some(limit) if is_stream else (None, data.labels)
    if reason := obstacle(real_labels, limit):
        if is_stream and accelerator.is_main_process:  # of other data it was said before training
            print(f"The samples are not judged: {reason}.")
        return {}
    if not is_stream:
        real, real_labels = data.at(fit_rows(real_labels, limit))
    if real.dtype == torch.uint16:  # samples have 8 bits
        real = (real.int() / 257).round().to(torch.uint8)
    classes = real_labels.unique().tolist()
    labels = [classes[i % len(classes)] for i in range(config.fidelity_samples)]
    started = time.perf_counter()
    samples = draw(config, pipeline, accelerator, len(labels), labels, "samples to judge")
    seconds = time.perf_counter() - started
    if not accelerator.is_main_process:
        return {}
    fidelity = class_fidelity(real, real_labels, samples, torch.tensor(labels))
    print(
        f"A classifier gives {fidelity['value']:.1%} of {len(labels)} samples the class that was asked for; it is "
        f"right on {fidelity['reference']['value']:.1%} of held-out real images."
    )
    speed = {
        "what": "sampling",
        "images_per_second": round(len(labels) / seconds, 1),
        "num_inference_steps": config.num_inference_steps,
        "batch_size": min(config.batch_size, -(-len(labels) // accelerator.num_processes)),
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "machine": describe_machine(pipeline.device, accelerator.num_processes),
    }
    return {"evaluation": [fidelity | drawn_with(config)], "speed": [speed]}
