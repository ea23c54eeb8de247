"""The training loops that `train_throughput.py` and `equal_time.py` compare.

`train_throughput.py` starts this file, a process for each loop, with a JSON object of options. It answers with one line of JSON
when it has trained two steps, and then with one for each line on its standard input: a number of steps to do.
"""

import dataclasses
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "training")]

from build_model import build_scheduler, build_unet  # noqa: E402
from config_parser import parse_config  # noqa: E402
from image_data import ImageData  # noqa: E402
from machine import measured_peak, resolve_precision  # noqa: E402
from model_flops import training_flops_per_image  # noqa: E402
from train_config import TrainConfig  # noqa: E402

IMAGES = 2048
WARM_UP_STEPS = 2
PEERS_STEPS = 50


def random_images(shape: tuple[int, int, int], classes: int) -> ImageData:
    """Pixels and classes without meaning: how fast a network trains does not depend on them."""
    own = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (IMAGES, *shape), dtype=torch.uint8, generator=own)
    labels = torch.randint(classes, (IMAGES,), generator=own) if classes else None
    return ImageData(pixels, labels, [f"class {k}" for k in range(classes)])


# --- The contenders ---


class Loop(NamedTuple):
    """A training loop that is ready to begin.

    Attributes:
        step: does one optimizer step.
        flops_per_image (`int`): floating-point operations that an image costs.
        network (`torch.nn.Module`)
        draw: `draw(count, labels, seed)` draws images from the averaged weights, `uint8`, shape (count, C, H, W); `None` of the
            floor. Our model is sampled as its configuration says, or as further arguments of its pipeline say; the others with
            DDIM in 50 steps, which both offer.
    """

    step: Callable[[], None]
    flops_per_image: int
    network: torch.nn.Module
    draw: Callable[..., torch.Tensor] | None


def ours(config: TrainConfig, data: ImageData, precision: str, device: torch.device, stack: ExitStack):
    """The step of training/train.py, with all that it does in a step: data, noise, losses, clipping, averages, the log."""
    trainer = our_trainer(config, data, precision)
    trainer.start()
    stack.callback(trainer.batches.close)

    def draw(count: int, labels: list[int] | None, seed: int, **settings) -> torch.Tensor:
        from ddpm_hub import DDPMHubPipeline

        trainer.unet.load_state_dict(trainer.averages.state(trainer.averages.names[0]), strict=False)
        pipeline = DDPMHubPipeline(trainer.unet.eval(), build_scheduler(config))
        pipeline.set_progress_bar_config(disable=True)
        options = {"class_labels": labels} if labels else {"batch_size": count}
        options |= config.sampling(bool(labels)) | settings
        return to_bytes(pipeline(**options, seed=seed, output_type="sample").images)

    return Loop(trainer.step, training_flops_per_image(trainer.unet), trainer.unet, draw)


def our_trainer(config: TrainConfig, data: ImageData, precision: str):
    from accelerate import Accelerator
    from trainer import Trainer

    from ddpm_hub import DDPMHubPipeline

    torch.manual_seed(0)
    accelerator = Accelerator(mixed_precision=precision, gradient_accumulation_steps=config.gradient_accumulation_steps)
    pipeline = DDPMHubPipeline(build_unet(config, data), build_scheduler(config))
    return Trainer(config, data, pipeline, accelerator)


def floor(config: TrainConfig, data: ImageData, precision: str, device: torch.device, stack: ExitStack):
    """Forward, backward, optimizer with our network as our trainer prepared it, on one batch that lies ready."""
    trainer = our_trainer(config, data, precision)
    trainer.averages = None
    model, optimizer, accelerator = trainer.model, trainer.optimizer, trainer.accelerator
    shape = (config.batch_size, *data.image_shape)
    images, target = (torch.randn(shape, device=device).to(memory_format=torch.channels_last) for _ in range(2))
    timesteps = torch.randint(config.num_train_timesteps, (config.batch_size,), device=device)
    labels = None if data.labels is None else data.labels[: config.batch_size].to(device)

    def step() -> None:
        prediction = model(images, timesteps, class_labels=labels, return_dict=False)[0]
        accelerator.backward(torch.nn.functional.mse_loss(prediction.float(), target))
        optimizer.step()
        optimizer.zero_grad()

    return Loop(step, training_flops_per_image(trainer.unet), trainer.unet, None)


def documentation(config: TrainConfig, data: ImageData, precision: str, device: torch.device, stack: ExitStack):
    """What diffusers' documentation teaches, on our U-Net, without its resizing and its flips, and with its EMAModel.

    Rate, warm-up, number of steps, batch size and classes are the configuration's; with `ema_decays` = [0] there is no EMAModel.
    """
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel
    from torch.utils.data import DataLoader
    from tqdm.auto import tqdm

    accelerator = Accelerator(mixed_precision=precision)
    torch.manual_seed(0)
    # That loop knows no learned variance.
    simple = {"variance_type": "fixed_small", "objective": "simple", "vlb_weight": TrainConfig.vlb_weight}
    unet = build_unet(dataclasses.replace(config, **simple), data)
    scheduler = DDPMScheduler(config.num_train_timesteps, beta_schedule="linear")
    loader = DataLoader(PillowImages(data), batch_size=config.batch_size, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=config.learning_rate)
    rate = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, config.max_train_steps)
    model, optimizer, loader, rate = accelerator.prepare(unet, optimizer, loader, rate)
    ema = None
    if any(config.ema_decays):
        ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)
        ema.to(device)
    batches = endless(loader)
    bar = stack.enter_context(tqdm())

    def step() -> None:
        clean, labels = next(batches)
        noise = torch.randn(clean.shape, device=clean.device)
        timesteps = torch.randint(0, config.num_train_timesteps, (clean.shape[0],), device=clean.device)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        with accelerator.accumulate(model):
            classes = labels if data.class_names else None
            predicted = model(noisy, timesteps, class_labels=classes, return_dict=False)[0]
            loss = torch.nn.functional.mse_loss(predicted, noise)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            if ema:
                ema.step(model.parameters())
            bar.update(1)
        bar.set_postfix(loss=loss.detach().item(), lr=rate.get_last_lr()[0])

    @torch.no_grad()
    def draw(count: int, labels: list[int] | None, seed: int) -> torch.Tensor:
        from diffusers import DDIMScheduler

        if ema:
            ema.copy_to(unet.parameters())
        sampler = DDIMScheduler.from_config(scheduler.config)
        sampler.set_timesteps(PEERS_STEPS)
        x = torch.randn((count, *data.image_shape), generator=torch.Generator().manual_seed(seed)).to(device)
        classes = None if labels is None else torch.tensor(labels, device=device)
        for timestep in sampler.timesteps:
            x = sampler.step(unet(x, timestep, class_labels=classes, return_dict=False)[0], timestep, x).prev_sample
        return to_bytes(x)

    return Loop(step, training_flops_per_image(unet), unet, draw)


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Images in [−1, 1] as `uint8`."""
    return images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu()


class PillowImages(torch.utils.data.Dataset):
    """Images as a data set gives them, which become numbers from −1 to 1 one by one."""

    def __init__(self, data: ImageData):
        from PIL import Image

        mode = {1: "L", 3: "RGB", 4: "RGBA"}[data.image_shape[0]]
        rows = data.at(torch.arange(len(data)))[0].permute(0, 2, 3, 1).contiguous().numpy()
        self.images = [Image.fromarray(row.squeeze(-1) if mode == "L" else row, mode=None) for row in rows]
        self.labels = torch.zeros(len(data), dtype=torch.int64) if data.labels is None else data.labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        import numpy as np

        pixels = torch.from_numpy(np.array(self.images[index]))
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        return pixels.contiguous().float().div(255).sub(0.5).div(0.5), self.labels[index]


def endless(loader) -> Iterator:
    while True:
        yield from loader


def lucidrains(config: TrainConfig, data: ImageData, precision: str, device: torch.device, stack: ExitStack):
    """denoising-diffusion-pytorch's Trainer, with its defaults beside the batch and the rate, and a U-Net of as many channels at
    each level."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(0)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    for number, image in enumerate(PillowImages(data).images):
        image.save(folder / f"{number}.png")
    channels, size = data.image_shape[0], data.image_shape[1]
    first, *_ = config.block_out_channels
    unet = Unet(dim=first, dim_mults=tuple(c // first for c in config.block_out_channels), channels=channels)
    trainer = Trainer(
        GaussianDiffusion(unet, image_size=size, sampling_timesteps=PEERS_STEPS),
        str(folder),
        train_batch_size=config.batch_size,
        train_lr=config.learning_rate,
        save_and_sample_every=10**9,
        results_folder=str(folder / "results"),
        calculate_fid=False,
        augment_horizontal_flip=False,
        convert_image_to={1: "L", 3: "RGB", 4: "RGBA"}[channels],
        amp=precision != "no",
        mixed_precision_type="bf16",
    )

    def step() -> None:
        trainer.train_num_steps = trainer.step + 1
        trainer.train()

    with FlopCounterMode(display=False) as counter:
        step()

    def draw(count: int, labels: list[int] | None, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return to_bytes(trainer.ema.ema_model.sample(batch_size=count) * 2 - 1)

    return Loop(step, counter.get_total_flops() // config.batch_size, unet, draw)


CONTENDERS: dict[str, tuple[Callable, str | None]] = {
    # The loop, and the precision of its network; None for what the configuration asks for.
    "ours": (ours, None),
    "ours, several processes": (ours, None),
    "documentation, float32": (documentation, "no"),
    "documentation, bf16": (documentation, "bf16"),
    "lucidrains, float32": (lucidrains, "no"),
    "lucidrains, bf16": (lucidrains, "bf16"),
    "floor": (floor, None),
}


def peak_bytes(device: torch.device) -> int:
    """The most memory that was held: on a GPU what tensors took, else all that the process took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def work(options: dict, orders: Iterator[str], answer: Callable[[dict], None]) -> None:
    device = torch.device(options["device"])
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        device = torch.device("cuda", torch.cuda.current_device())
    torch.set_num_threads(options["threads"])
    clock = {"wall": time.perf_counter, "processor": time.process_time}[options["clock"]]
    if options["name"] == "peak":
        answer({})
        for _ in orders:
            answer({name: measured_peak(device, getattr(torch, name), clock) for name in ("float32", "bfloat16")})
        return
    config = parse_config(options["arguments"])
    data = random_images(tuple(options["shape"]), options["classes"])
    build, precision = CONTENDERS[options["name"]]
    precision = precision or resolve_precision(config.mixed_precision, device)
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    with ExitStack() as stack:
        loop = build(config, data, precision, device, stack)
        for _ in range(WARM_UP_STEPS):
            loop.step()
        parameters = sum(p.numel() for p in loop.network.parameters())
        answer(
            {
                "flops_per_image": loop.flops_per_image,
                "parameters": parameters,
                "precision": precision,
                "batch": config.batch_size,
            }
        )
        for order in orders:
            synchronize()
            begun = clock()
            for _ in range(int(order)):
                loop.step()
            synchronize()
            answer({"seconds": clock() - begun, "peak_bytes": peak_bytes(device)})


def main() -> None:
    options = json.loads(sys.argv[1])
    # What libraries print goes to the standard error, so that the answers are alone.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(values: dict) -> None:
        print(json.dumps(values), file=answers, flush=True)

    if options["device"] == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    work(options, iter(sys.stdin.readline, ""), answer)


if __name__ == "__main__":
    main()
