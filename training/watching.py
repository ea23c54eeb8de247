"""What can be watched while a model is trained: the bar, the tables and plots on disk, and trackers."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from learning_rate import learning_rate
from loss_plot import save_loss_plot
from machine import measured_peak
from model_flops import training_flops_per_image
from tqdm.auto import tqdm
from train_config import TrainConfig
from train_log import QUARTILES, Table
from trainer import Trainer

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LOSSES = ("loss", *(f"loss_q{quartile + 1}" for quartile in range(QUARTILES)))  # q1: the least noise
# Numbers before the bar, which gets what is left: a terminal of 80 columns has room for them, where they are not longer than usual.
BAR = "{percentage:.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining} {rate_fmt}{postfix}] {bar}"


class Watch:
    """The record of a run, the same in every process; the main one shows and writes it.

    `loss_log.csv` has a line for each `log_every` steps with means over them, `validation_log.csv` one for each validation,
    `sample_log.csv` one for each grid. They hold nothing that depends on the clock, so that runs can be compared.
    """

    def __init__(self, config: TrainConfig, channels: int, trainer: Trainer, accelerator: Accelerator, output: Path):
        self.config, self.trainer, self.accelerator, self.output = config, trainer, accelerator, output
        averages = [f"ema_{name}" for name in trainer.averages.names]
        self.losses = Table(
            output / "loss_log.csv", ("step", *LOSSES, "grad_norm", "learning_rate", "skipped_steps", *averages)
        )
        self.validation = Table(output / "validation_log.csv", ("step", *LOSSES))
        means = [f"{whose}_mean_{c}" for c in range(channels) for whose in ("sample", "data")]
        self.samples = Table(output / "sample_log.csv", ("step", *means))
        self.seconds, self._trained_seconds, self._trained_images = 0.0, 0.0, 0
        self._flops = training_flops_per_image(trainer.unet)
        self._interval_start = None

    def start(self) -> None:
        """Begins to measure time, and shows the bar."""
        accelerator, config = self.accelerator, self.config
        peak = measured_peak(accelerator.device, DTYPES[accelerator.mixed_precision])
        peak = torch.tensor(peak, device=accelerator.device)
        self._peak = accelerator.reduce(peak, "sum").item()  # measured by all at once, as they will compute
        self._bar = tqdm(
            total=config.max_train_steps * config.batch_size,
            initial=self.trainer.step_count * config.batch_size,
            unit=" images",
            unit_scale=True,
            bar_format=BAR,
            disable=not accelerator.is_main_process,
        )
        if accelerator.is_main_process:
            for table in (self.losses, self.validation, self.samples):
                table.save()
        self._begun = self._interval_start = time.perf_counter()
        self._interval_first, self._interval_paused = self.trainer.step_count, 0.0

    def stepped(self) -> None:
        self._bar.update(self.config.batch_size)

    def note(self) -> None:
        """Closes an interval of steps: the only place that waits for the device."""
        trainer, step = self.trainer, self.trainer.step_count
        values = trainer.totals.read()
        decays = [trainer.averages.decay(name, step) for name in trainer.averages.names]
        rate = learning_rate(self.config, step - 1)
        self.losses.add(step, *(values[n] for n in LOSSES), values["grad_norm"], rate, values["skipped_steps"], *decays)
        now = time.perf_counter()
        seconds = now - self._interval_start - self._interval_paused
        images = (step - self._interval_first) * self.config.batch_size
        self._trained_seconds, self._trained_images = self._trained_seconds + seconds, self._trained_images + images
        self._interval_start, self._interval_first, self._interval_paused = now, step, 0.0
        speed = {"images_per_second": images / seconds, "share_of_peak": images / seconds * self._flops / self._peak}
        skipped = [f"skipped={values['skipped_steps']}"] if values["skipped_steps"] else []
        shown = f"loss={values['loss']:.3f}", f"grad={values['grad_norm']:.2f}", f"peak={speed['share_of_peak']:.0%}"
        self._bar.set_postfix_str(", ".join([*skipped, *shown]))
        self._publish(self.losses, "train", speed)

    def validated(self, losses: list[float]) -> None:
        self.validation.add(self.trainer.step_count, *losses)
        self._publish(self.validation, "validation")

    def drawn(self, samples: torch.Tensor, data_means: list[float]) -> None:
        """Notes the mean of each channel of samples (uint8, (N, C, H, W)) beside that of the data, both in [0, 1]."""
        means = (samples.double().mean((0, 2, 3)) / 255).tolist()
        self.samples.add(self.trainer.step_count, *(v for pair in zip(means, data_means, strict=True) for v in pair))
        self._publish(self.samples, "samples")
        if self.accelerator.is_main_process:
            label = f"{self.config.objective} loss of {self.config.prediction_type}"
            save_loss_plot(self.losses, self.validation, label, self.output / "loss_curve.png")

    def _publish(self, table: Table, group: str, more: dict[str, float] | None = None) -> None:
        if self.accelerator.is_main_process:
            table.append()
        values = table.last() | (more or {})
        self.accelerator.log({f"{group}/{name}": v for name, v in values.items()}, step=self.trainer.step_count)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not training's: grids, validation, checkpoints."""
        begun = time.perf_counter()
        yield
        self._interval_paused += time.perf_counter() - begun

    def close(self) -> dict:
        """Closes the bar.

        Returns:
            `dict`: what metrics.json says of the training: steps, seconds with all grids and of all sessions, images per
            second without them, the share of the measured peak, and the mean loss of the last interval.
        """
        self._bar.close()
        figures = {"steps": self.trainer.step_count, "seconds": round(self._elapsed(), 1)}
        if self._trained_seconds:
            speed = self._trained_images / self._trained_seconds
            figures |= {
                "images_per_second": round(speed, 1),
                "share_of_peak": round(speed * self._flops / self._peak, 3),
            }
        if self.losses.rows and (loss := self.losses.column("loss")[-1]) is not None:
            figures["loss"] = loss
        return figures

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self._begun

    def state(self) -> dict:
        """What a checkpoint holds of the record."""
        tables = {"losses": self.losses.rows, "validation": self.validation.rows, "samples": self.samples.rows}
        speed = {"trained_seconds": self._trained_seconds, "trained_images": self._trained_images}
        return {"tables": tables, "seconds": self._elapsed(), **speed}

    def load(self, state: dict) -> None:
        for name, rows in state["tables"].items():
            getattr(self, name).rows = rows
        self.seconds = state["seconds"]
        self._trained_seconds, self._trained_images = state["trained_seconds"], state["trained_images"]
