"""The training loop: [Ho] algorithm 1 with AdamW, and averaged weights. [Ho] is arXiv:2006.11239."""

import time
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from image_data import ImageData
from output_folder import save_model
from random_batches import Batch, training_batches
from tqdm.auto import tqdm
from train_config import TrainConfig
from train_report import LossLog, draw_grid, grid_file

from ddpm_hub import DDPMHubPipeline, DDPMHubScheduler
from ddpm_hub.ddpm_equations import normalize


def diffusion_loss(model: UNet2DModel, scheduler: DDPMHubScheduler, batch: Batch) -> torch.Tensor:
    """L_simple ([Ho] equation 14) for the scheduler's prediction type: the mean squared error of the prediction."""
    x_0 = normalize(batch.pixels)
    x_t = scheduler.add_noise(x_0, batch.noise, batch.timesteps)
    target = scheduler.training_target(x_0, batch.noise, batch.timesteps)
    prediction = model(x_t, batch.timesteps, class_labels=batch.labels, return_dict=False)[0]
    return torch.nn.functional.mse_loss(prediction.float(), target)


def optimizer_step(
    config: TrainConfig, model, optimizer, scheduler: DDPMHubScheduler, parts: list[Batch], accelerator: Accelerator
) -> torch.Tensor:
    """One step of the optimizer on all parts of a batch; returns this process's mean loss, on its device."""
    mean_loss = torch.zeros((), device=accelerator.device)
    for batch in parts:
        with accelerator.accumulate(model):
            loss = diffusion_loss(model, scheduler, batch)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        mean_loss += loss.detach() / len(parts)
    return mean_loss


def train(
    config: TrainConfig,
    data: ImageData,
    pipeline: DDPMHubPipeline,
    accelerator: Accelerator,
    output: Path,
    interrupted: list,
) -> dict:
    """Trains until the last step, or until `interrupted` is no longer empty in any process.

    Afterwards `pipeline` holds the averaged weights and computes with them what it computes when it is loaded from
    `output`, where they are saved.

    Returns:
        `dict`: the steps done, the seconds that took with all grids, images per second without them, and the mean loss of
        the last interval, if one was completed.
    """
    unet, device = pipeline.unet.to(accelerator.device).train(), accelerator.device
    optimizer = torch.optim.AdamW(
        unet.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    # Not prepared by accelerate, which would advance it once per process: it counts optimizer steps.
    learning_rate = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, config.max_train_steps)
    ema = EMAModel(unet.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=3 / 4, foreach=True)
    model, optimizer = accelerator.prepare(unet, optimizer)

    log = LossLog(config, accelerator)
    step, started, publishing = 0, time.perf_counter(), 0.0
    bar = tqdm(
        total=config.max_train_steps * config.batch_size,
        desc="training",
        unit=" images",
        unit_scale=True,
        disable=not accelerator.is_main_process,
    )
    for parts in training_batches(config, data, device, accelerator.process_index, accelerator.num_processes):
        log.add(optimizer_step(config, model, optimizer, pipeline.scheduler, parts, accelerator))
        learning_rate.step()
        ema.step(unet.parameters())
        step += 1
        bar.update(config.batch_size)
        if log.end_step(step):
            bar.set_postfix(loss=f"{log.losses[-1]:.4f}")
        last = step == config.max_train_steps or any_process(accelerator, bool(interrupted))
        if last or (config.sample_every and step % config.sample_every == 0):
            paused = time.perf_counter()
            if accelerator.is_main_process:
                publish(config, data, pipeline, ema, output, step)
                log.save(output)
            accelerator.wait_for_everyone()
            publishing += time.perf_counter() - paused
        if last:
            break
    bar.close()
    ema.copy_to(unet.parameters())
    # prepare() put the mixed precision into `unet` itself.
    accelerator.unwrap_model(model, keep_fp32_wrapper=False).eval()
    seconds = time.perf_counter() - started
    figures = {
        "steps": step,
        "seconds": round(seconds, 1),
        "images_per_second": round(step * config.batch_size / (seconds - publishing), 1),
    }
    return figures | ({"loss": log.losses[-1]} if log.losses else {})


def publish(
    config: TrainConfig, data: ImageData, pipeline: DDPMHubPipeline, ema: EMAModel, output: Path, step: int
) -> None:
    """Saves and draws the averaged weights; the network in training is left as it was."""
    unet = pipeline.unet
    ema.store(unet.parameters())
    ema.copy_to(unet.parameters())
    unet.eval()
    save_model(pipeline, output)
    draw_grid(config, data, pipeline, output / grid_file(step))
    unet.train()
    ema.restore(unet.parameters())


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set in any process: all must leave the loop at the same step."""
    return accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum").item() > 0
