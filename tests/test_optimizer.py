"""Muon: against singular values in float64, against torch's own, in parts of several processes, and what it leaves to AdamW."""

import copy
import dataclasses

import pytest
import torch
from build_model import build_unet
from image_data import load_images
from optimizer import Muon, build_optimizer, hidden_weights, orthogonalized
from torch.utils._python_dispatch import TorchDispatchMode
from train_config import TrainConfig
from two_processes import agrees_in_two_processes

RATE, DECAY = 0.01, 0.1
SHAPES = [(5, 5), (4, 9), (9, 4), (8, 3, 3, 3), (6, 20, 1, 1)]


@pytest.fixture
def weights() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]


@pytest.fixture
def matmul_precision():
    """What a test sets is set back."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


class Products(TorchDispatchMode):
    """Notes the precision that is allowed when a matrix product is computed."""

    def __init__(self):
        super().__init__()
        self.allowed = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.baddbmm):
            self.allowed.append(torch.get_float32_matmul_precision())
        return function(*args, **(kwargs or {}))


def set_gradients(parameters: list[torch.nn.Parameter], seed: int) -> None:
    own = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=own)


def copies(parameters: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]


def polynomial_of_singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """In float64, by definition: U q(S / norm) Vᵀ, with q five times the quintic of Jordan et al."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / matrix.double().norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ vh


class TestOrthogonalized:
    @pytest.mark.parametrize("spread", [0, 3])
    def test_it_is_the_polynomial_of_the_singular_values(self, spread):
        """Also where rows differ by a factor of 10^spread.

        A = X Xᵀ is rounded by 6e-8 of its norm, which is at most 1, and five applications multiply a direction by at most
        3.4445⁵ = 485: 3e-5 of a singular value of 1 for each of the ten rounded products, of which √10 by chance.
        """
        own = torch.Generator().manual_seed(1)
        shapes = [(1, 1), (1, 7), (16, 16), (16, 16), (16, 144), (40, 16), (144, 16), (3, 3)]
        matrices = [
            torch.randn(shape, generator=own) * torch.logspace(0, -spread, shape[0])[:, None] for shape in shapes
        ]
        for matrix, found in zip(matrices, orthogonalized(lambda: matrices), strict=True):
            torch.testing.assert_close(found.double(), polynomial_of_singular_values(matrix), rtol=0, atol=1e-4)

    def test_singular_values_come_near_one(self):
        """From a hundredth of the norm: the bounds are those of the polynomial on [0.01, 1], found on a grid below."""
        s = torch.linspace(0.01, 1, 100_000, dtype=torch.float64)
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        assert 0.65 < s.min() < s.max() < 1.25
        matrix = torch.randn(64, 300, generator=torch.Generator().manual_seed(0))
        (found,) = orthogonalized(lambda: [matrix])
        values = torch.linalg.svdvals(found)
        assert s.min() - 1e-3 < values.min() <= values.max() < s.max() + 1e-3

    def test_of_nothing_comes_nothing(self):
        (found,) = orthogonalized(lambda: [torch.zeros(3, 4)])
        assert torch.equal(found, torch.zeros(3, 4))
        assert list(orthogonalized(list)) == []


class TestMuon:
    def test_as_torch_has_it(self, weights):
        """torch.optim.Muon takes matrices alone and iterates in bfloat16, whose rounding is 4e-3: of the updates, which have a
        size, less than a tenth may differ."""
        pytest.importorskip("torch.optim._muon", reason="torch has Muon since 2.9")
        reference = [torch.nn.Parameter(weight.detach().flatten(1).clone()) for weight in weights]
        ours = Muon(weights, [], RATE, DECAY)
        theirs = torch.optim.Muon(reference, lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
        for step in range(4):
            before = [weight.detach().flatten(1).clone() for weight in weights]
            for weight, other in zip(weights, reference, strict=True):
                other.data.copy_(weight.detach().flatten(1))
            set_gradients(weights, step)
            for weight, other in zip(weights, reference, strict=True):
                other.grad = weight.grad.flatten(1).clone()
            ours.step()
            theirs.step()
            for old, weight, other in zip(before, weights, reference, strict=True):
                wanted = other.detach() - old
                assert (weight.detach().flatten(1) - other.detach()).norm() < 0.1 * wanted.norm()

    def test_a_step_by_hand(self, weights):
        """The second of two, in float64, so that momentum and the look ahead count."""
        start = [weight.detach().double() for weight in weights]
        optimizer = Muon(weights, [], RATE, DECAY)
        averages = [torch.zeros_like(value) for value in start]
        for seed in (0, 1):
            set_gradients(weights, seed)
            optimizer.step()
            for number, weight in enumerate(weights):
                gradient = weight.grad.double()
                averages[number] = 0.95 * averages[number] + 0.05 * gradient
                ahead = (0.05 * gradient + 0.95 * averages[number]).flatten(1)
                step = polynomial_of_singular_values(ahead) * 0.2 * max(ahead.shape) ** 0.5
                start[number] = start[number] * (1 - RATE * DECAY) - RATE * step.view(weight.shape)
        for weight, value in zip(weights, start, strict=True):
            # Two steps of rate 0.01 · 0.2 · √27, off by 1e-4 each as above, and float32's rounding of weights of about 1.
            torch.testing.assert_close(weight.double(), value, rtol=0, atol=4e-6)

    def test_its_products_are_not_in_lower_precision(self, weights, matmul_precision):
        """Where TF32 is allowed, which a CPU has not: so what is allowed is looked at while they are computed."""
        set_gradients(weights, 0)
        torch.set_float32_matmul_precision("high")
        with Products() as products:
            Muon(weights, [], RATE, DECAY).step()
        assert set(products.allowed) == {"highest"}
        assert torch.get_float32_matmul_precision() == "high"

    def test_the_layout_in_memory_does_not_matter(self):
        torch.manual_seed(0)
        plain = torch.nn.Parameter(torch.randn(8, 6, 3, 3))
        last = torch.nn.Parameter(plain.detach().clone(memory_format=torch.channels_last))
        gradient = torch.randn(8, 6, 3, 3)
        for parameter in (plain, last):
            optimizer = Muon([parameter], [], RATE, DECAY)
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
            optimizer.step()
        assert torch.equal(plain, last)
        assert last.is_contiguous(memory_format=torch.channels_last)

    def test_the_others_move_as_adamw_moves_them(self, weights):
        torch.manual_seed(1)
        others = [torch.nn.Parameter(torch.randn(7)), torch.nn.Parameter(torch.randn(11, 4))]
        alone = copies(others)
        both, adamw = Muon(weights, others, RATE, DECAY), torch.optim.AdamW(
            alone, lr=RATE, weight_decay=DECAY, fused=True
        )  # fmt: skip
        for step in range(3):
            set_gradients(weights, step)
            set_gradients(others, 100 + step)
            set_gradients(alone, 100 + step)
            both.step()
            adamw.step()
        assert all(torch.equal(one, two) for one, two in zip(others, alone, strict=True))
        assert all("exp_avg" not in both.state[weight] for weight in weights)

    def test_gradients_are_there_after_a_step(self, weights):
        set_gradients(weights, 0)
        before = [weight.grad for weight in weights]
        values = [gradient.clone() for gradient in before]
        Muon(weights, [], RATE, DECAY).step()
        assert all(weight.grad is gradient for weight, gradient in zip(weights, before, strict=True))
        assert all(torch.equal(weight.grad, value) for weight, value in zip(weights, values, strict=True))

    @pytest.mark.parametrize("at", [0, 1])
    def test_a_skipped_step_leaves_everything_as_it_is(self, weights, at):
        others = [torch.nn.Parameter(torch.ones(4))]
        again, others_again = copies(weights), copies(others)
        skipping, plain = Muon(weights, others, RATE, DECAY), Muon(again, others_again, RATE, DECAY)

        def step(optimizer, parameters, seed):
            set_gradients(parameters, seed)
            optimizer.found_inf, optimizer.grad_scale = torch.tensor(0.0), None
            optimizer.step()

        for seed in range(3):
            if seed == at:
                set_gradients([*weights, *others], 99)
                weights[1].grad[0, 0], others[0].grad[0] = torch.nan, torch.inf
                skipping.found_inf, skipping.grad_scale = torch.tensor(1.0), None
                skipping.step()
                assert all(parameter.isfinite().all() for parameter in [*weights, *others])
            step(skipping, [*weights, *others], seed)
            step(plain, [*again, *others_again], seed)
        for one, two in zip([*weights, *others], [*again, *others_again], strict=True):
            assert torch.equal(one, two)

    @pytest.mark.parametrize("unscaled", [True, False], ids=["unscaled before", "by the optimizer"])
    def test_the_scaler_of_fp16_skips_and_goes_on(self, weights, unscaled):
        others = [torch.nn.Parameter(torch.ones(4))]
        optimizer = Muon(weights, others, RATE, DECAY)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for bad in (True, False):
            before = copies([*weights, *others])
            factor = torch.inf if bad else 1.0
            loss = sum((parameter**2).sum() for parameter in [*weights, *others]) * factor
            scaler.scale(loss).backward()
            if unscaled:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            if not bad:
                average = optimizer.state[weights[0]]["momentum_buffer"]
                torch.testing.assert_close(average, 0.05 * 2 * before[0].detach())
            optimizer.zero_grad()
            same = [torch.equal(one, two) for one, two in zip([*weights, *others], before, strict=True)]
            assert same == [bad] * len(same)
            assert scaler.get_scale() == 2.0  # halved once

    def test_its_state_can_be_copied_and_loaded(self, weights):
        others = [torch.nn.Parameter(torch.ones(4))]
        optimizer = Muon(weights, others, RATE, DECAY)
        set_gradients([*weights, *others], 0)
        optimizer.step()
        again, others_again = copies(weights), copies(others)
        loaded = Muon(again, others_again, RATE, DECAY)
        loaded.load_state_dict(copy.deepcopy(optimizer).state_dict())
        for held in (optimizer, loaded):
            set_gradients([p for group in held.param_groups for p in group["params"]], 1)
            held.step()
        assert all(torch.equal(one, two) for one, two in zip([*weights, *others], [*again, *others_again], strict=True))


class TestWhichWeights:
    CONFIG = TrainConfig(block_out_channels=(8, 16), attention_resolutions=(4,))

    def test_those_inside_the_network(self):
        unet = build_unet(self.CONFIG, load_images(self.CONFIG))
        chosen = set(map(id, hidden_weights(unet)))
        names = {name for name, parameter in unet.named_parameters() if id(parameter) in chosen}
        left = {name for name, parameter in unet.named_parameters() if parameter.ndim > 1} - names
        assert left == {"conv_in.weight", "conv_out.weight", "class_embedding.weight"}
        assert all(dict(unet.named_parameters())[name].ndim in (2, 4) for name in names)
        assert "mid_block.attentions.0.to_q.weight" in names
        assert "down_blocks.0.resnets.0.conv1.weight" in names

    def test_all_parameters_are_moved_once(self):
        unet = build_unet(self.CONFIG, load_images(self.CONFIG))
        for name in ("adamw", "muon"):
            optimizer = build_optimizer(dataclasses.replace(self.CONFIG, optimizer=name), unet)
            held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
            assert sorted(held) == sorted(map(id, unet.parameters()))
            assert isinstance(optimizer, Muon) == (name == "muon")

    def test_a_network_without_hidden_weights(self):
        network = torch.nn.GroupNorm(2, 4)
        optimizer = build_optimizer(dataclasses.replace(self.CONFIG, optimizer="muon"), network)
        set_gradients(list(network.parameters()), 0)
        optimizer.step()
        assert not torch.equal(network.bias, torch.zeros(4))


DIVIDED = """
import dataclasses, sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from optimizer import build_optimizer
from sharded_tensors import whole
from train_config import TrainConfig

torch.set_num_threads(1)
dist.init_process_group("gloo")
config = dataclasses.replace(TrainConfig(), optimizer="muon")

def network():
    torch.manual_seed(0)
    # 3 and 7: uneven parts
    return torch.nn.Sequential(torch.nn.Conv2d(3, 7, 2), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(28, 3))

plain, divided = network(), network()
fully_shard(divided, mesh=init_device_mesh("cpu", (dist.get_world_size(),)), reshard_after_forward=True)
optimizers = [build_optimizer(config, model) for model in (plain, divided)]
images = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(5))  # the same in both processes
for step in range(4):
    skipped = step == 2
    for model, optimizer in zip((plain, divided), optimizers):
        loss = model(images).square().mean()
        (loss * (torch.nan if skipped else 1)).backward()
        optimizer.found_inf, optimizer.grad_scale = torch.tensor(float(skipped)), None
        optimizer.step()
        optimizer.zero_grad()
for one, two in zip(plain.parameters(), divided.parameters()):
    torch.testing.assert_close(one, whole(two), rtol=1e-5, atol=1e-6)
    for key, value in optimizers[0].state[one].items():
        torch.testing.assert_close(value, whole(optimizers[1].state[two][key]), rtol=1e-5, atol=1e-6)
        assert value.isfinite().all()
dist.destroy_process_group()
print("agrees")
"""


def test_parameters_that_are_divided_among_processes(tmp_path):
    """FSDP2 with two processes, against one network that is whole in each."""
    agrees_in_two_processes(DIVIDED, tmp_path)
