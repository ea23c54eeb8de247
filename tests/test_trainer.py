"""The step: nothing in it waits for the device or writes; and what is saved is all there is."""

import builtins
import dataclasses
import re
import traceback

import pytest
import torch
from accelerate import Accelerator
from build_model import build_scheduler, build_unet
from checkpoints import newest_checkpoint
from config_parser import parse_config
from conftest import REPOSITORY
from image_data import ImageData, load_images
from model_flops import training_flops_per_image
from optimizer import Muon
from torch.utils._python_dispatch import TorchDispatchMode
from train_config import TrainConfig
from trainer import Trainer

from ddpm_hub import DDPMHubPipeline

CONFIG = dataclasses.replace(
    TrainConfig(),
    block_out_channels=(8, 16),
    batch_size=8,
    max_train_steps=40,
    warmup_steps=3,
    num_train_timesteps=8,
    num_inference_steps=2,
    beta_end=0.9,
)
BUSY = dataclasses.replace(
    CONFIG,
    timestep_sampling="importance",
    variance_type="learned_range",
    objective="hybrid",
    ema_decays=(0.99, 0.5),
    ema_stds=(0.1,),
    dropout=0.2,
    random_flip=True,
    gradient_accumulation_steps=2,
)
MUON = dataclasses.replace(BUSY, optimizer="muon")


def make_trainer(config: TrainConfig, data: ImageData | None = None) -> Trainer:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=config.gradient_accumulation_steps)
    data = data or load_images(config)
    torch.manual_seed(config.seed)
    pipeline = DDPMHubPipeline(
        build_unet(config, data), build_scheduler(config), id2label=dict(enumerate(data.class_names))
    )
    return Trainer(config, data, pipeline, accelerator)


@pytest.fixture
def start(quiet_schedule):
    """Makes trainers, and ends their threads."""
    started = []

    def make(config: TrainConfig, checkpoint=None, data=None) -> Trainer:
        trainer = make_trainer(config, data)
        if checkpoint is not None:
            trainer.load(checkpoint)
        trainer.start()
        started.append(trainer)
        return trainer

    yield make
    for trainer in started:
        trainer.batches.close()


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    optimizer = trainer.optimizer.optimizer
    found = {f"weight.{name}": p for name, p in trainer.unet.named_parameters()}
    for name, parameter in trainer.unet.named_parameters():
        found |= {f"{key}.{name}": value for key, value in optimizer.state[parameter].items()}
    for average in trainer.averages.names:
        found |= {f"{average}.{name}": value for name, value in trainer.averages.state(average).items()}
    found |= trainer.timesteps.state()
    return {name: value.detach().clone() for name, value in found.items()}


def assert_equal(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


class Readings(TorchDispatchMode):
    """Counts what `.item()`, `bool()`, `float()` and `int()` of a tensor call.

    Not those of `check_timesteps`, which looks at tensors on the CPU alone, where nothing is to be waited for.
    """

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            self.count += all(frame.name != "check_timesteps" for frame in traceback.extract_stack(limit=30))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("config", [CONFIG, BUSY, MUON], ids=["plain", "busy", "muon"])
def test_no_number_is_read_and_nothing_is_written_in_a_step(start, monkeypatch, config):
    trainer = start(config)
    trainer.step()  # tables are made and moved to the device in the first

    def refuse(*arguments, **named):
        raise AssertionError("something was written")

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(builtins, "print", refuse)
    with Readings() as readings:
        trainer.step()
    assert readings.count == 0


def test_a_reading_would_be_seen():
    with Readings() as readings:
        torch.ones(()).item()
    assert readings.count == 1


@pytest.mark.parametrize("config", [CONFIG, BUSY, MUON], ids=["plain", "busy", "muon"])
@pytest.mark.parametrize("at", [0, 1, 25])
def test_from_a_checkpoint_it_goes_on_as_if_it_had_not_stopped(start, tmp_path, config, at):
    whole = start(config)
    for _ in range(at):
        whole.step()
    whole.save(tmp_path / "checkpoints", {})
    other = start(dataclasses.replace(config), newest_checkpoint(tmp_path / "checkpoints"))
    assert other.step_count == at
    if at:
        assert_equal(everything(other), everything(whole))
    # At step 25 every t has its ten losses, so that those of the checkpoint decide which t come next.
    for _ in range(3):
        whole.step()
        other.step()
    assert_equal(everything(other), everything(whole))
    assert other.totals.state() == whole.totals.state()


def first_part() -> list[str]:
    """What `make reference` gives its first part beside the preset."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert "$(call PART,.yaml $(FIRST))" in makefile
    return re.search("^FIRST = (.*)$", makefile, flags=re.MULTILINE)[1].split()


@pytest.mark.parametrize("flags", [first_part(), []], ids=["of the shipped model", "of its preset by now"])
def test_the_first_fifty_steps_repeat_bitwise(start, tmp_path, flags):
    """Also with a stop among them. The images are noise: whether sums are rounded alike does not depend on what is in them."""
    own = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (2048, 1, 28, 28), dtype=torch.uint8, generator=own)
    labels = torch.randint(10, (2048,), generator=own)
    config = parse_config(["--config", str(REPOSITORY / "training" / "configs" / "fashion_mnist.yaml"), *flags])
    data = ImageData(pixels, labels, [f"class {k}" for k in range(10)])
    first = start(config, data=data)
    for _ in range(50):
        first.step()
    second = start(config, data=data)
    for _ in range(20):
        second.step()
    second.save(tmp_path / "checkpoints", {})
    third = start(config, newest_checkpoint(tmp_path / "checkpoints"), data)
    for _ in range(30):
        third.step()
    assert first.step_count == third.step_count == 50
    assert_equal(everything(third), everything(first))


def adamw_of(named: dict[str, torch.nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """torch's plain one."""
    return torch.optim.AdamW(named.values(), lr=rate, weight_decay=CONFIG.weight_decay, foreach=False, fused=False)


def muon_of(named: dict[str, torch.nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """Of which test_optimizer.py says that it is right."""
    outside = {"conv_in.weight", "conv_out.weight", "class_embedding.weight"}
    by_adamw = {name for name, parameter in named.items() if parameter.ndim == 1 or name in outside}
    matrices = [named[name] for name in named.keys() - by_adamw]
    return Muon(matrices, [named[name] for name in by_adamw], rate, CONFIG.weight_decay)


@pytest.mark.parametrize(("optimizer", "made"), [("adamw", adamw_of), ("muon", muon_of)], ids=["adamw", "muon"])
def test_the_weights_move_as_the_optimizer_says(start, optimizer, made):
    """One step by hand, on the gradient of the same loss."""
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    trainer, reference = start(config), make_trainer(config)
    timesteps, weights = reference.timesteps.draw(0)
    reference.batches.start(0, None)
    (batch,) = reference.batches.next(timesteps, weights)
    reference.batches.close()
    reference.objective(reference.unet, batch).loss.backward()
    torch.nn.utils.clip_grad_norm_(reference.unet.parameters(), CONFIG.max_grad_norm)
    named = dict(reference.unet.named_parameters())
    made(named, CONFIG.learning_rate / CONFIG.warmup_steps).step()
    trainer.step()
    for name, ours in trainer.unet.named_parameters():
        # The first step of Adam is lr·g/(|g| + 1e-8): a rounding of g that small may change it by a share of lr; lr is 3e-4.
        torch.testing.assert_close(ours, named[name], rtol=1e-5, atol=1e-6, msg=name)


def test_flops_are_those_of_the_convolutions():
    """By hand: a convolution of k×k on H×W takes 2·k²·C_in·C_out·H·W forward, and twice that backward."""
    unet = build_unet(CONFIG, load_images(CONFIG))
    counted = {}

    def count(module, inputs, output):
        if isinstance(module, torch.nn.Conv2d):
            counted[module] = 2 * module.weight.numel() * output.shape[2] * output.shape[3]
        elif isinstance(module, torch.nn.Linear):
            counted[module] = 2 * module.weight.numel() * output.numel() // output.shape[-1]

    for module in unet.modules():
        module.register_forward_hook(count)
    unet(torch.zeros(1, 1, 8, 8), torch.zeros(1), class_labels=torch.zeros(1, dtype=torch.long))
    # The first layers pass no gradient on to the image and to the sinusoids of t; attention in the middle comes on top.
    assert 2.9 * sum(counted.values()) < training_flops_per_image(unet) < 3.1 * sum(counted.values())
