"""The training loop, from the first step or from a checkpoint to the last."""

import math
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from checkpoints import CHECKPOINTS, Checkpoint, tidy
from diffusers import UNet2DModel
from dry_run import activation_bytes, dry_run_report
from image_data import ImageData
from output_folder import save_model
from posthoc_ema import save_snapshot
from sample_grids import draw_grid, grid_columns, grid_file, grid_image, save_image, side_by_side
from sharded_tensors import whole
from stop_signal import StopSignal
from streamed_images import StreamedImages
from train_config import TrainConfig
from trainer import Trainer
from validation import Validation
from watching import Watch

from ddpm_hub import DDPMHubPipeline


def train(
    config: TrainConfig,
    data: ImageData | StreamedImages,
    validation_data: ImageData | None,
    pipeline: DDPMHubPipeline,
    accelerator: Accelerator,
    output: Path,
    checkpoint: Checkpoint | None,
) -> tuple[dict, DDPMHubPipeline | None]:
    """Trains until the last step, or until a signal asks to stop; goes on from `checkpoint`.

    Returns:
        `dict`: what metrics.json says of the training.
        [`DDPMHubPipeline`]: the averaged weights, as they were saved in `output`; `None` if it was stopped.
    """
    trainer = Trainer(config, data, pipeline, accelerator)
    watch = Watch(config, data.image_shape[0], trainer, accelerator, output)
    validation = validation_data and Validation(config, validation_data, trainer.objective, accelerator)
    loop = _Loop(config, data, pipeline, trainer, watch, validation, accelerator, output)
    if checkpoint is not None:
        trainer.load(checkpoint)
        watch.load(checkpoint.state)
    watch.start()  # all processes meet here, and have read the checkpoint
    if checkpoint is not None and accelerator.is_main_process:
        tidy(output / CHECKPOINTS)  # a run with no step left to do saves no other, before which it would be done
    if loop.owes_grid():
        loop.publish()
    trainer.start()
    stopping = False
    try:
        with StopSignal() as stop:
            while trainer.step_count < config.max_train_steps and not stopping:
                trainer.step()
                watch.stepped()
                stopping = stop.asked()
                loop.between_steps(stopping)
            stopping = stopping or stop.asked_till_now()
    finally:
        trainer.batches.close()
    # From here on all is saved, and a signal ends the process at once.
    if stopping:
        loop.save_averaged()
        return watch.close(), None
    averaged = loop.publish()
    return watch.close(), averaged


WARM_UP_STEPS, TIMED_STEPS = 2, 3


def timed_steps(
    config: TrainConfig, data: ImageData | StreamedImages, pipeline: DDPMHubPipeline, accelerator: Accelerator
) -> str:
    """The report of a dry run, after a few steps that are forgotten."""
    trainer = Trainer(config, data, pipeline, accelerator)
    trainer.start()
    try:
        (batch, *_) = trainer.batches.next(*trainer.timesteps.draw(0))
        activations = activation_bytes(trainer.unet, trainer.objective, batch)
        trainer.batches.start(0, None)
        for step in range(WARM_UP_STEPS + TIMED_STEPS):
            if step == WARM_UP_STEPS:
                trainer.totals.state()  # waits for the device
                begun = time.perf_counter()
            trainer.step()
        trainer.totals.state()
    finally:
        trainer.batches.close()
    seconds = (time.perf_counter() - begun) / TIMED_STEPS
    return dry_run_report(config, data, pipeline, seconds, accelerator.num_processes, activations)


# The data's mean colour is that of so many images, or of fewer that together have so many values.
MEAN_OF_IMAGES, MEAN_OF_VALUES = 1000, 2**28


class _Loop:
    """What happens between steps, when it is due."""

    def __init__(self, config, data, pipeline, trainer: Trainer, watch: Watch, validation, accelerator, output: Path):
        self.config, self.data, self.pipeline, self.trainer = config, data, pipeline, trainer
        self.watch, self.validation, self.accelerator, self.output = watch, validation, accelerator, output
        pixels, _ = data.some(max(1, min(MEAN_OF_IMAGES, MEAN_OF_VALUES // math.prod(data.image_shape))))
        means = torch.stack([image.double().mean((1, 2)) for image in pixels]).mean(0)
        self.data_means = (means / torch.iinfo(pixels.dtype).max).tolist()

    def between_steps(self, stopping: bool) -> None:
        """Everything that is due after a step."""
        config, step = self.config, self.trainer.step_count
        last = step == config.max_train_steps
        if last or step % config.log_every == 0:
            self.watch.note()
        with self.watch.paused():
            if self.validation and (last or step % config.validation_every == 0):
                average = self.network(self.trainer.averages.names[0])
                self.watch.validated(self.validation.measure(average))
            if config.ema_stds and (last or step % config.ema_snapshot_every == 0):
                save_snapshot(self.output, self.trainer.averages, step, self.accelerator)
            # A grid takes a while, which a signal does not leave; the last one is drawn when all is saved.
            if self.owes_grid() and not stopping:
                self.publish()
            if last or stopping or (config.checkpoint_every and step % config.checkpoint_every == 0):
                self.trainer.save(self.output / CHECKPOINTS, self.state())

    def owes_grid(self) -> bool:
        """Whether a grid of this step is due, other than the last one, and not drawn: also where a signal came before it."""
        every, step, drawn = self.config.sample_every, self.trainer.step_count, self.watch.samples.column("step")
        is_due = every and step and step % every == 0 and step != self.config.max_train_steps
        return bool(is_due) and step not in drawn[-1:]

    def state(self) -> dict:
        data = {"num_images": self.data.num_images, "fingerprint": self.data.fingerprint}
        return {"data": data, **self.watch.state()}

    def publish(self) -> DDPMHubPipeline:
        """Saves the averaged weights and draws with them, and with the raw ones beside; to be called by every process."""
        averaged = self.save_averaged()
        columns = grid_columns(self.data.class_names)
        grids = {}
        for title, pipeline in {"raw weights": self.around(self.network(None)), "averaged weights": averaged}.items():
            samples = draw_grid(self.config, self.data.class_names, pipeline, self.accelerator)
            grids[title] = grid_image(samples, columns)
        self.watch.drawn(samples, self.data_means)
        if self.accelerator.is_main_process:
            file = self.output / grid_file(self.trainer.step_count)
            save_image(grids["averaged weights"], file)
            save_image(side_by_side(grids), file.parent / "raw_and_averaged" / file.name)
        return averaged

    def save_averaged(self) -> DDPMHubPipeline:
        pipeline = self.around(self.network(self.trainer.averages.names[0]))
        if self.accelerator.is_main_process:
            save_model(pipeline, self.output)
        return pipeline

    def network(self, average: str | None) -> UNet2DModel:
        """A network of its own with the averaged weights, or the raw ones: whole, in float32, and as users load it."""
        trainer = self.trainer
        state = {name: whole(value) for name, value in trainer.unet.state_dict().items()}
        if average is not None:
            state |= trainer.averages.state(average)
        with torch.device("meta"):
            unet = UNet2DModel.from_config(trainer.unet.config)
        unet.load_state_dict({name: value.detach().contiguous().clone() for name, value in state.items()}, assign=True)
        return unet.requires_grad_(False).eval()

    def around(self, unet: UNet2DModel) -> DDPMHubPipeline:
        pipeline = DDPMHubPipeline(unet, self.pipeline.scheduler, self.pipeline.id2label, self.pipeline.config.sampling)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline
