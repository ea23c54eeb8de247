"""Averages of the weights: against diffusers' EMAModel, the definition of the power-function average, and themselves."""

import dataclasses
import math

import pytest
import torch
from averaged_weights import AveragedWeights, gamma_of, power_decay, warm_decay
from diffusers.training_utils import EMAModel
from train_config import TrainConfig
from two_processes import agrees_in_two_processes

EPSILON = 2.0**-24  # of float32: half a unit in the last place


def config(decays=(0.9999,), stds=()) -> TrainConfig:
    return dataclasses.replace(TrainConfig(), ema_decays=tuple(decays), ema_stds=tuple(stds))


def walk(steps: int, *shapes, dtype=torch.float32):
    """A random walk of parameters: after each step, all of them."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]
    for _ in range(steps):
        with torch.no_grad():
            for parameter in parameters:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
        yield parameters


def named(parameters) -> dict:
    return {f"p{i}": parameter for i, parameter in enumerate(parameters)}


def test_names_and_decays():
    averages = AveragedWeights(config([0.9999, 0.999], [0.05, 0.1]), {"a": torch.zeros(1)})
    assert averages.names == ["decay_0.9999", "decay_0.999", "std_0.05", "std_0.1"]
    assert averages.decay("decay_0.999", 1) == 0
    assert averages.decay("decay_0.999", 10**6) == 0.999
    assert averages.decay("std_0.05", 1) == 0
    assert averages.decay("std_0.1", 1000) == power_decay(gamma_of(0.1), 1000)


@pytest.mark.parametrize("largest", [0.0, 0.9, 0.9999])
def test_the_plain_average_is_diffusers(largest):
    """Step by step. Each rounds some 4 times in a step, numbers below 8 that lie 2ε·4 apart: in 300 steps that neither
    forgets, 300 · 4 · 4 ε at worst for each of the two. A decay that is off by one step is off by 1/300 of the distance."""
    ours = theirs = None
    for step, parameters in enumerate(walk(300, (4, 3), (5,)), 1):
        if ours is None:
            ours = AveragedWeights(config([largest]), named(parameters))
            theirs = EMAModel(parameters, decay=largest, use_ema_warmup=True, power=3 / 4, foreach=True)
        ours.update(step)
        theirs.step(parameters)
        assert ours.decay(ours.names[0], step) == theirs.cur_decay_value
        for a, b in zip(ours.state(ours.names[0]).values(), theirs.shadow_params, strict=True):
            assert (a - b).abs().max() <= 2 * 300 * 4 * 4 * EPSILON


def test_the_first_step_forgets_the_weights_before_it():
    parameter = torch.nn.Parameter(torch.full((3,), math.inf))
    averages = AveragedWeights(config([0.99], [0.1]), {"a": parameter})
    with torch.no_grad():
        parameter.copy_(torch.tensor([1.0, 2.0, 3.0]))
    for name in averages.names:
        averages.load(name, {"a": torch.zeros(3)})
    averages.update(1)
    for name in averages.names:
        assert averages.state(name)["a"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.25])
def test_the_exponent_gives_the_width(std):
    """The definition: the standard deviation of the density (γ+1) τ^γ on [0, 1], from its moments (γ+1)/(γ+1+k). They
    nearly cancel: σ² is a difference of numbers near 1, whose rounding is some 2^−52 / σ²."""
    gamma = gamma_of(std)
    mean, square = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)
    assert math.isclose(math.sqrt(square - mean**2), std, rel_tol=8 * 2**-52 / std**2)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.2888, math.nan, math.inf])
def test_a_width_that_no_profile_has(std):
    with pytest.raises(ValueError, match=r"`std` is .*; it must be above 0 and at most 0\.2887"):
        gamma_of(std)


def test_the_largest_width_is_the_mean_of_all_steps():
    assert gamma_of(12**-0.5) == pytest.approx(0, abs=1e-12)
    total = 0
    for step, (parameter,) in enumerate(walk(200, (6,), dtype=torch.float64), 1):
        if step == 1:
            averages = AveragedWeights(config([], [12**-0.5 * (1 - 1e-12)]), {"a": parameter})
        averages.update(step)
        total = total + parameter.detach()
    # 200 steps, each with roundings of numbers below 4 in float32.
    assert (averages.state(averages.names[0])["a"] - total / 200).abs().max() < 200 * 4 * EPSILON


@pytest.mark.parametrize("std", [0.05, 0.1])
def test_the_power_average_is_the_integral_of_its_definition(std):
    """θ̂(t) = (γ+1)/t^(γ+1) ∫ τ^γ θ(τ) dτ of weights that stay θ_i from i−1 to i: Σ θ_i (i^(γ+1) − (i−1)^(γ+1)) / t^(γ+1)."""
    gamma, history = gamma_of(std), []
    for step, (parameter,) in enumerate(walk(100, (6,)), 1):
        if step == 1:
            averages = AveragedWeights(config([], [std]), {"a": parameter})
        averages.update(step)
        history.append(parameter.detach().double())
        times = (torch.arange(step + 1, dtype=torch.float64) / step) ** (gamma + 1)
        expected = torch.einsum("i,ij->j", times.diff(), torch.stack(history))
        # A share 1−β is given up at each step, so that the roundings of the last 1/(1−β) < 100 steps are in it.
        assert (averages.state(averages.names[0])["a"] - expected).abs().max() < 100 * 4 * EPSILON


def test_bfloat16_is_averaged_in_float32():
    """A step of a share of 1/1000 is nothing in bfloat16, which has 8 bits."""
    parameter = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    averages = AveragedWeights(config([0.999]), {"a": parameter})
    name = averages.names[0]
    averages.load(name, {"a": torch.zeros(4)})
    averages.update(10**6)
    assert averages.state(name)["a"].dtype == torch.float32
    assert averages.state(name)["a"].tolist() == pytest.approx([0.001] * 4, rel=4 * EPSILON)


def bits(tensors) -> list[bytes]:
    return [tensor.detach().clone().view(torch.int32).numpy().tobytes() for tensor in tensors]


def test_a_state_goes_on_to_the_bit():
    for step, parameters in enumerate(walk(20, (4, 3), (5,)), 1):
        if step == 1:
            whole = AveragedWeights(config([0.9], [0.05, 0.1]), named(parameters))
        if step == 11:
            resumed = AveragedWeights(config([0.9], [0.05, 0.1]), named(parameters))
            for name in whole.names:
                resumed.load(name, {key: value.clone() for key, value in whole.state(name).items()})
        whole.update(step)
        if step >= 11:
            resumed.update(step)
    for name in whole.names:
        assert bits(whole.state(name).values()) == bits(resumed.state(name).values())


def test_what_does_not_fit_is_refused():
    averages = AveragedWeights(config(), {"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"do not have the same names: b, c\."):
        averages.load(averages.names[0], {"a": torch.zeros(2), "c": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"has 'b' of shape \[1\]; it must be \[3\]"):
        averages.load(averages.names[0], {"a": torch.ones(2), "b": torch.zeros(1)})
    assert averages.state(averages.names[0])["a"].tolist() == [0, 0]


def test_nothing_is_read_from_the_device():
    """Tensors on `meta` have no values: reading one, as a wait for the device would, is an error."""
    parameters = {"a": torch.zeros(3, device="meta"), "b": torch.zeros(2, dtype=torch.bfloat16, device="meta")}
    averages = AveragedWeights(config([0.99], [0.1]), parameters)
    averages.update(1)
    averages.update(2)


SPREAD = """
import dataclasses, sys
sys.path[:0] = ["training"]
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from averaged_weights import AveragedWeights
from train_config import TrainConfig

torch.set_num_threads(1)
dist.init_process_group("gloo")
config = dataclasses.replace(TrainConfig(), ema_decays=(0.9,), ema_stds=(0.1,))

def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.SiLU(), torch.nn.Linear(3, 7))  # 3 and 7: uneven parts

plain, spread = network(), network()
fully_shard(spread, mesh=init_device_mesh("cpu", (dist.get_world_size(),)), reshard_after_forward=True)
averages = []
for model in (plain, spread):
    averages.append(AveragedWeights(config, dict(model.named_parameters())))
for step in range(1, 6):
    for model in (plain, spread):
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if model is spread:
                    noise = torch.distributed.tensor.distribute_tensor(noise, parameter.device_mesh, parameter.placements)
                parameter += noise
    for each in averages:
        each.update(step)
for name in averages[0].names:
    one, two = (each.state(name) for each in averages)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one), name  # whole, and the same
    assert all(type(value) is torch.Tensor for value in two.values())
    averages[1].load(name, {key: value + 1 for key, value in one.items()})
    assert all(torch.equal(one[key] + 1, value) for key, value in averages[1].state(name).items())
dist.destroy_process_group()
print("agrees")
"""


def test_parameters_that_are_spread_over_processes(tmp_path):
    """FSDP2 with two processes, against one network that is whole in each."""
    agrees_in_two_processes(SPREAD, tmp_path)


@pytest.mark.parametrize("step", [1, 2, 3, 10, 1000, 10**7])
def test_decays_by_their_formulas(step):
    assert warm_decay(0.9999, step) == min(0.9999, 1 - (1 + (step - 1)) ** (-3 / 4))
    assert power_decay(6.94, step) == pytest.approx((1 - 1 / step) ** 7.94, rel=1e-14 * 8)
