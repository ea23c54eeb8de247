"""What a run leaves for the eye and in numbers: sample grids, the loss curve, and the figures of metrics.json."""

import time
from pathlib import Path

import torch
from accelerate import Accelerator
from class_fidelity import class_fidelity, obstacle
from image_data import ImageData, local_folder
from machine import describe_machine
from PIL import Image
from tqdm.auto import tqdm
from train_config import TrainConfig

from ddpm_hub import DDPMHubPipeline
from ddpm_hub.ddpm_equations import denormalize

SMALLEST_GRID_WIDTH = 480
GRID_ROWS = 8
GRID_COLUMNS = 10  # the first classes, a column each


def draw(
    config: TrainConfig, pipeline: DDPMHubPipeline, count: int, labels: list[int] | None, description: str
) -> torch.Tensor:
    """Draws `count` samples with a progress bar; sample i comes from the seed `config.seed + i`.

    Returns:
        `torch.Tensor` of `uint8`, shape (count, C, H, W), on the CPU.
    """
    samples = []
    chunks = range(0, count, config.batch_size)
    with tqdm(total=len(chunks) * config.num_inference_steps, desc=description, unit=" steps", leave=False) as bar:
        for start in chunks:
            seeds = range(config.seed + start, config.seed + min(start + config.batch_size, count))
            for state in pipeline.stream(
                batch_size=len(seeds),
                class_labels=None if labels is None else labels[start : start + len(seeds)],
                num_inference_steps=config.num_inference_steps,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            ):
                bar.update()
            samples.append(denormalize(state.sample).cpu())
    return torch.cat(samples)


def draw_grid(config: TrainConfig, data: ImageData, pipeline: DDPMHubPipeline, path: Path) -> None:
    """Draws a grid of samples, one class in each column, into a PNG file."""
    columns = grid_columns(data)
    labels = list(range(columns)) * GRID_ROWS if data.class_names else None
    save_grid(draw(config, pipeline, columns * GRID_ROWS, labels, "sample grid"), path, columns)


def grid_columns(data: ImageData) -> int:
    """Columns of the sample grid: one for each class, where there are classes."""
    return min(len(data.class_names), GRID_COLUMNS) or GRID_COLUMNS


def grid_file(step: int) -> str:
    """Where the sample grid of a step lies in the output folder."""
    return f"samples/step_{step:06d}.png"


def training_report(config: TrainConfig, data: ImageData, figures: dict, accelerator: Accelerator) -> dict:
    """What metrics.json says of the training and of its last grid: facts of the run, and no path of this machine."""
    folder = local_folder(config)
    return {
        "training": {
            **figures,
            "num_images": len(data),
            "dataset": config.dataset_name if folder is None else folder.resolve().name,
            "dataset_on_hub": folder is None,
            "machine": describe_machine(accelerator.device, accelerator.num_processes),
        },
        "samples": {
            "file": grid_file(figures["steps"]),
            "num_samples": grid_columns(data) * GRID_ROWS,
            "seed": config.seed,
            "num_inference_steps": config.num_inference_steps,
            "class_in_each_column": bool(data.class_names),
        },
    }


def print_plan(config: TrainConfig, data: ImageData, pipeline: DDPMHubPipeline) -> None:
    """Says what is about to be trained, and what is left aside."""
    print(
        f"{len(data):,} images of {' × '.join(map(str, data.pixels.shape[1:]))}, {len(data.class_names)} classes; a "
        f"U-Net of {pipeline.unet.num_parameters() / 1e6:.2f} M parameters; {config.max_train_steps:,} steps of "
        f"{config.batch_size} images.",
        flush=True,
    )
    for column in data.unused_labels:
        print(f"`{column}` holds integers; --label_column {column} trains on them as classes.", flush=True)
    if reason := why_not_judged(config, data):
        print(f"The samples will not be judged: {reason}.", flush=True)


def why_not_judged(config: TrainConfig, data: ImageData) -> str | None:
    """Why [`judge`] cannot do what was asked for; `None` if it can, or if nothing was asked for."""
    return obstacle(data.labels) if config.fidelity_samples and data.labels is not None else None


def judge(config: TrainConfig, data: ImageData, pipeline: DDPMHubPipeline) -> dict:
    """Draws `fidelity_samples` images, each class of the data equally often, and says how often a classifier agrees.

    Returns:
        `dict`: `evaluation` and `speed` as they stand in metrics.json; neither where there are no classes or
        [`why_not_judged`] says why.
    """
    if not config.fidelity_samples or data.labels is None or why_not_judged(config, data):
        return {}
    classes = data.labels.unique().tolist()
    labels = [classes[i % len(classes)] for i in range(config.fidelity_samples)]
    started = time.perf_counter()
    samples = draw(config, pipeline, len(labels), labels, "samples to judge")
    seconds = time.perf_counter() - started
    fidelity = class_fidelity(data.pixels, data.labels, samples, torch.tensor(labels))
    print(
        f"A classifier gives {fidelity['value']:.1%} of {len(labels)} samples the class that was asked for; it is "
        f"right on {fidelity['reference']['value']:.1%} of held-out real images."
    )
    speed = {
        "what": "sampling",
        "images_per_second": round(len(labels) / seconds, 1),
        "num_inference_steps": config.num_inference_steps,
        "batch_size": min(config.batch_size, len(labels)),
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "machine": describe_machine(pipeline.device),
    }
    settings = {"seed": config.seed, "num_inference_steps": config.num_inference_steps}
    return {"evaluation": [fidelity | settings], "speed": [speed]}


class LossLog:
    """The mean loss of every interval of steps, over all processes; read from the device once per interval."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator):
        self.steps: list[int] = []
        self.losses: list[float] = []
        self._interval = max(1, config.max_train_steps // 200)
        self._label = f"mean squared error of {config.prediction_type}"
        self._accelerator = accelerator
        self._sum = torch.zeros((), device=accelerator.device)

    def add(self, loss: torch.Tensor) -> None:
        self._sum += loss

    def end_step(self, step: int) -> bool:
        """Closes the interval that ends with this step, if one does."""
        if step % self._interval:
            return False
        self.steps.append(step)
        self.losses.append(self._accelerator.reduce(self._sum, "mean").item() / self._interval)
        self._sum.zero_()
        return True

    def save(self, folder: Path) -> None:
        """Draws loss_curve.png; nothing before the first interval has ended."""
        if self.losses:
            save_loss_curve(self.steps, self.losses, self._label, folder / "loss_curve.png")


def save_grid(pixels: torch.Tensor, path: Path, columns: int) -> None:
    """Writes images as one PNG, row by row.

    Args:
        pixels (`torch.Tensor` of `uint8`, shape (N, C, H, W)): the images; of N-channel ones the first channel is shown.
        path (`Path`): the file.
        columns (`int`): images in a row.
    """
    count, channels, height, width = pixels.shape
    if channels not in (1, 3, 4):
        pixels, channels = pixels[:, :1], 1
    rows, gap = -(-count // columns), 1
    canvas = torch.full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=torch.uint8)
    for i, image in enumerate(pixels):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = image
    image = Image.fromarray(canvas.permute(1, 2, 0).squeeze(-1).numpy())
    scale = -(-SMALLEST_GRID_WIDTH // image.width)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(path)


def save_loss_curve(steps: list[int], losses: list[float], label: str, path: Path) -> None:
    """Draws the training loss over optimizer steps, as it was and smoothed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="#b8c4d6", linewidth=1, label="mean of each interval")
    windows = [losses[max(0, i - 5) : i + 6] for i in range(len(losses))]
    axes.plot(steps, [sum(w) / len(w) for w in windows], color="#1f4e8c", linewidth=2, label="moving average")
    axes.set(xlabel="optimizer step", ylabel=label, yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=120)
