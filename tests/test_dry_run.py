"""What a run is said to take: against arithmetic, and against what real steps took."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from build_model import build_unet
from conftest import make_pipeline, run_python
from dry_run import activation_bytes, dry_run_report, memory_estimate
from train_config import TrainConfig

MEBIBYTE = 2**20


@dataclasses.dataclass(frozen=True)
class Images:
    """The fields of a batch that matter here."""

    pixels: torch.Tensor
    labels: torch.Tensor | None = None


def squared(model, batch: Images) -> torch.Tensor:
    output = model(batch.pixels)
    return (output * output).sum()  # the product keeps both of its factors


class TestActivations:
    def test_what_the_backward_pass_needs_is_counted_once(self):
        """One convolution: its input, and its output for the square. The output, 5 · 6 · 6 floats, is the largest."""
        model = torch.nn.Conv2d(2, 5, 3, padding=1)
        counted = activation_bytes(model, squared, Images(torch.randn(4, 2, 6, 6)))
        assert counted == 4 * (2 + 5 + 3 * 5) * 6 * 6  # bytes

    def test_weights_do_not_count_and_neither_does_what_is_there_once(self):
        class Scaled(torch.nn.Linear):
            def forward(self, values):
                return torch.nn.functional.linear(values, self.weight * 2)  # kept for the pixels' gradient

        model = Scaled(10, 10, bias=False)
        assert activation_bytes(model, squared, Images(torch.randn(6, 10, requires_grad=True))) == 4 * (
            10 + 10 + 3 * 10
        )

    def test_a_batch_of_one(self):
        model = torch.nn.Conv2d(2, 5, 3, padding=1)
        assert activation_bytes(model, squared, Images(torch.randn(1, 2, 6, 6))) == 4 * (2 + 5 + 3 * 5) * 6 * 6

    def test_nothing_is_trained(self):
        model = torch.nn.Conv2d(2, 5, 3, padding=1)
        activation_bytes(model, squared, Images(torch.randn(2, 2, 6, 6)))
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_checkpointing_keeps_less(self):
        torch.manual_seed(0)
        config = TrainConfig(block_out_channels=(16, 16), layers_per_block=2)
        unet = build_unet(config, SimpleNamespace(image_shape=(1, 16, 16), class_names=[])).train()

        def loss(model, batch):
            return model(batch.pixels, 3).sample.square().mean()

        batch = Images(torch.randn(2, 1, 16, 16))
        whole = activation_bytes(unet, loss, batch)
        unet.enable_gradient_checkpointing()
        assert activation_bytes(unet, loss, batch) < whole / 2


class TestMemory:
    def test_the_parts(self):
        config = TrainConfig(batch_size=24, gradient_accumulation_steps=2, ema_stds=(0.05, 0.1), mixed_precision="bf16")
        unet = torch.nn.Linear(9, 10, bias=True)  # 100 parameters
        assert memory_estimate(config, unet, processes=3, activation_bytes_per_image=1000) == {
            "weights": 400,
            "gradients": 400,
            "the optimizer's moments": 800,
            "3 averages": 1200,
            "activations of 4 images": 4000,
            "weights in bf16": 200,
            "gradients on their way between processes": 400,
        }
        plain = memory_estimate(TrainConfig(), unet, processes=1, activation_bytes_per_image=1000)
        assert list(plain) == [
            "weights",
            "gradients",
            "the optimizer's moments",
            "1 average",
            "activations of 64 images",
        ]

    def test_muon_keeps_one_moment_of_a_hidden_weight(self):
        linear = torch.nn.Linear(9, 10, bias=True)  # a weight of 90, a bias of 10
        parts = memory_estimate(TrainConfig(optimizer="muon"), linear, processes=1, activation_bytes_per_image=1000)
        assert parts["the optimizer's moments"] == 4 * (90 + 2 * 10)

    @pytest.mark.parametrize("optimizer", ["adamw", "muon"])
    def test_it_is_what_real_steps_take(self, optimizer):
        """Peak memory of a process in which the libraries were used before, so that only the steps add to it.

        Linux counts it. In the estimate there is no memory between the blocks of the allocator and no more than one kernel's
        work space: 10 to 20 % too little were measured. A quarter is what lets a person choose a machine or a batch size by it.
        """
        result = run_python("-c", MEASURE.replace("OPTIMIZER", optimizer))
        assert result.returncode == 0, result.stderr
        figures = json.loads(result.stdout)
        assert figures["taken"] > 100 * MEBIBYTE  # so that the pages of libraries do not matter
        assert figures["estimate"] == pytest.approx(figures["taken"], rel=0.25)


MEASURE = """
import json
import sys
from types import SimpleNamespace
sys.path.insert(0, "training")
import torch
from build_model import build_unet
from dry_run import activation_bytes, memory_estimate
from optimizer import build_optimizer
from train_config import TrainConfig
from dataclasses import dataclass

@dataclass
class Images:
    pixels: torch.Tensor

def loss(model, batch):
    return model(batch.pixels, 3).sample.square().mean()

def memory(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))

def steps(config, number):
    torch.manual_seed(0)
    unet = build_unet(config, SimpleNamespace(image_shape=(3, 32, 32), class_names=[])).train()
    averages = [parameter.detach().clone() for parameter in unet.parameters()]
    optimizer = build_optimizer(config, unet)
    images = Images(torch.randn(config.batch_size // config.gradient_accumulation_steps, 3, 32, 32))
    for _ in range(number):
        for _ in range(config.gradient_accumulation_steps):
            loss(unet, images).backward()
        optimizer.step()
        optimizer.zero_grad()
    return unet, averages, optimizer

torch.set_num_threads(1)
steps(TrainConfig(block_out_channels=(8, 16), batch_size=2, optimizer="OPTIMIZER"), 1)
before = memory("VmRSS")
config = TrainConfig(block_out_channels=(64, 128, 128), layers_per_block=2, attention_resolutions=(16,),
                     attention_head_dim=32, batch_size=8, gradient_accumulation_steps=2, optimizer="OPTIMIZER")
unet, averages, optimizer = steps(config, 2)
taken = memory("VmHWM") - before
for_one = activation_bytes(unet, loss, Images(torch.randn(4, 3, 32, 32)))
print(json.dumps({"taken": taken, "estimate": sum(memory_estimate(config, unet, 1, for_one).values())}))
"""


class TestReport:
    def report(self, num_images: int | None = 1000, seconds: float = 0.5, **values) -> str:
        config = TrainConfig(**{"max_train_steps": 500, "batch_size": 64} | values)
        data = SimpleNamespace(num_images=num_images)
        return dry_run_report(config, data, make_pipeline(), seconds, 1, activation_bytes_per_image=MEBIBYTE)

    def test_it_begins_with_the_whole_configuration(self):
        assert self.report().startswith(TrainConfig(max_train_steps=500, batch_size=64).to_yaml())

    def test_the_figures(self):
        unet = make_pipeline().unet
        count = sum(parameter.numel() for parameter in unet.parameters())
        report = self.report()
        assert f"network: {count:,} parameters; " in report
        # 64 images of 1 MiB; the weights' 5 copies come to 20 bytes a parameter.
        assert f"memory: about {64 + 20 * count / MEBIBYTE:.0f} MiB in each process: weights" in report
        assert "activations of 64 images 64 MiB. Not in it: " in report
        assert "steps: 500 of 64 images, 32 epochs of 1,000 images." in report
        assert "time: about 4 minutes, from a few steps of 0.5 s; " in report

    def test_the_number_of_images_of_a_stream_is_not_known(self):
        assert "steps: 500 of 64 images, a stream of unknown length." in self.report(num_images=None)

    @pytest.mark.parametrize(
        ("seconds", "shown"), [(0.01, "5 seconds"), (2, "17 minutes"), (20, "2.8 hours"), (2000, "11.6 days")]
    )
    def test_times_are_shown_in_units_that_people_read(self, seconds, shown):
        assert f"time: about {shown}, " in self.report(seconds=seconds)
