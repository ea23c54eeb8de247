"""Samples for the eye: drawn by all processes together, and shown as one PNG."""

from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image, ImageDraw
from tqdm.auto import tqdm
from train_config import TrainConfig

from ddpm_hub import DDPMHubPipeline
from ddpm_hub.ddpm_equations import denormalize

SMALLEST_GRID_WIDTH = 480
GRID_ROWS = 8
GRID_COLUMNS = 10  # the first classes, a column each
TITLE_HEIGHT = 24


def draw(
    config: TrainConfig,
    pipeline: DDPMHubPipeline,
    accelerator: Accelerator,
    count: int,
    labels: list[int] | None,
    description: str,
) -> torch.Tensor:
    """Draws `count` samples with a progress bar; sample i comes from the seed `config.seed + i`, whichever process draws it.

    The pipeline's own settings say how: those that the configuration stores with the model.

    To be called by every process.

    Returns:
        `torch.Tensor` of `uint8`, shape (count, C, H, W), on the CPU of every process.
    """
    share = -(-count // accelerator.num_processes)
    # The last process repeats the last sample, so that all compute equally often.
    mine = [min(accelerator.process_index * share + i, count - 1) for i in range(share)]
    samples = []
    chunks = range(0, share, config.batch_size)
    with tqdm(
        total=len(chunks) * config.num_inference_steps,
        desc=description,
        unit=" steps",
        leave=False,
        disable=not accelerator.is_main_process,
    ) as bar:
        for start in chunks:
            chunk = mine[start : start + config.batch_size]
            for state in pipeline.stream(
                batch_size=len(chunk),
                class_labels=None if labels is None else [labels[i] for i in chunk],
                seed=[config.seed + i for i in chunk],
            ):
                bar.update()
            samples.append(denormalize(state.sample))
    return accelerator.gather(torch.cat(samples))[:count].cpu()


def draw_grid(
    config: TrainConfig, class_names: list[str], pipeline: DDPMHubPipeline, accelerator: Accelerator
) -> torch.Tensor:
    """Draws the samples of a grid, one class in each column; to be called by every process."""
    columns = grid_columns(class_names)
    labels = list(range(columns)) * GRID_ROWS if class_names else None
    return draw(config, pipeline, accelerator, columns * GRID_ROWS, labels, "sample grid")


def grid_columns(class_names: list[str]) -> int:
    """Columns of the sample grid: one for each class, where there are classes."""
    return min(len(class_names), GRID_COLUMNS) or GRID_COLUMNS


def grid_file(step: int) -> str:
    """Where the sample grid of a step lies in the output folder."""
    return f"samples/step_{step:06d}.png"


def grid_image(pixels: torch.Tensor, columns: int) -> Image.Image:
    """Images side by side, row by row, enlarged where they are small.

    Args:
        pixels (`torch.Tensor` of `uint8`, shape (N, C, H, W)): the images; of N-channel ones the first channel is shown.
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
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def side_by_side(grids: dict[str, Image.Image]) -> Image.Image:
    """Grids of one size next to each other, each under its title."""
    first, gap = next(iter(grids.values())), 16
    canvas = Image.new("RGB", (len(grids) * (first.width + gap) - gap, first.height + TITLE_HEIGHT), "white")
    pen = ImageDraw.Draw(canvas)
    for i, (title, grid) in enumerate(grids.items()):
        left = i * (first.width + gap)
        pen.text((left + 2, 4), title, fill="black", font_size=14)
        canvas.paste(grid.convert("RGB"), (left, TITLE_HEIGHT))
    return canvas


def save_image(image: Image.Image, path: Path) -> None:
    """Writes a PNG whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    image.save(partial, format="PNG")
    partial.replace(path)
