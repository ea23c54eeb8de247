"""The losses against their definitions, their gradients, and who may read what."""

import dataclasses
import math

import pytest
import torch
from conftest import make_unet
from objectives import Losses, Objective
from random_batches import Batch
from train_config import TrainConfig

from ddpm_hub import DDPMHubScheduler
from ddpm_hub.ddpm_equations import PREDICTION_TYPES, normalize, original_sample_weights, snr_gain
from ddpm_hub.variational_bound import VariationalBound


class Network:
    """Predicts what it is told, and remembers what it was asked; its predictions have a gradient."""

    def __init__(self, prediction: torch.Tensor):
        self.prediction = prediction.clone().requires_grad_()

    def __call__(self, sample, timesteps, class_labels, return_dict):
        assert return_dict is False
        self.sample, self.timesteps, self.class_labels = sample, timesteps, class_labels
        return (self.prediction,)


def make(scheduler_options: dict | None = None, **options) -> tuple[Objective, DDPMHubScheduler]:
    scheduler = DDPMHubScheduler(**(scheduler_options or {}))
    if options.get("objective") == "hybrid":
        options["variance_type"] = "learned_range"  # without which the configuration is refused
    return Objective(dataclasses.replace(TrainConfig(), **options), scheduler), scheduler


def draw(timesteps, dtype=torch.uint8, channels: int = 1, weights=None, seed: int = 0) -> tuple[Batch, torch.Tensor]:
    """A batch, and numbers of the shape of a prediction of it with a learned variance."""
    random = torch.Generator().manual_seed(seed)
    shape = (len(timesteps), channels, 4, 4)
    batch = Batch(
        pixels=torch.randint(torch.iinfo(dtype).max + 1, shape, generator=random, dtype=torch.int32).to(dtype),
        labels=torch.arange(len(timesteps)),
        noise=torch.randn(shape, generator=random),
        timesteps=torch.tensor(timesteps),
        loss_weights=weights,
    )
    return batch, torch.randn(len(timesteps), 2 * channels, 4, 4, generator=random)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_simple_loss(prediction_type):
    """The squared distance to ε, x_0 or v, from their definitions in float64."""
    objective, scheduler = make({"prediction_type": prediction_type})
    batch, said = draw([0, 5, 500, 999])
    network = Network(said[:, :1])
    losses = objective(network, batch)
    assert isinstance(losses, Losses)

    x_0 = 2 * batch.pixels.double() / 255 - 1
    abar = torch.tensor(math.e, dtype=torch.float64) ** scheduler.log_alphas_cumprod[batch.timesteps + 1]
    signal, noise = (root[:, None, None, None] for root in (abar.sqrt(), (1 - abar).sqrt()))
    torch.testing.assert_close(network.sample.double(), signal * x_0 + noise * batch.noise, rtol=0, atol=2**-21)
    target = {"epsilon": batch.noise, "sample": x_0, "v_prediction": signal * batch.noise - noise * x_0}
    wanted = (network.prediction.detach() - target[prediction_type]).square().mean(dim=(1, 2, 3))
    # A mean of 16 squares of float32 numbers, each rounded a few times
    torch.testing.assert_close(losses.per_image.double(), wanted.double(), rtol=2**-20, atol=0)
    assert losses.loss.item() == pytest.approx(wanted.mean().item(), rel=2**-20)
    assert losses.per_image.dtype == torch.float32
    assert not losses.per_image.requires_grad
    losses.loss.backward()
    gradient = 2 * (network.prediction.detach() - target[prediction_type]) / said[:, :1].numel()
    torch.testing.assert_close(network.prediction.grad.double(), gradient.double(), rtol=2**-18, atol=2**-24)
    assert (network.timesteps is batch.timesteps, network.class_labels is batch.labels) == (True, True)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize(("weighting", "gamma"), [("snr", math.inf), ("min_snr", 5.0), ("min_snr", 1.0)])
def test_weights_are_those_of_the_error_of_x_0(prediction_type, weighting, gamma):
    """min(SNR, γ) ‖x_0 − x̂_0‖², in float64 through the scheduler's own conversion of the prediction."""
    options = {"min_snr_gamma": gamma} if weighting == "min_snr" else {}
    objective, scheduler = make({"prediction_type": prediction_type}, loss_weighting=weighting, **options)
    batch, said = draw([0, 3, 100, 300, 999])
    network = Network(said[:, :1])
    per_image = objective(network, batch).per_image
    x_0 = 2 * batch.pixels.double() / 255 - 1
    x_t = scheduler.add_noise(x_0, batch.noise.double(), batch.timesteps)
    estimate = scheduler.convert_prediction(network.prediction.detach().double(), x_t, batch.timesteps, "sample")
    weights = scheduler.snr(batch.timesteps).clamp(max=gamma)
    wanted = weights * (x_0 - estimate).square().mean(dim=(1, 2, 3))
    # As above, and one rounding of the weight; float64 loses 1e-16·√SNR ≤ 1e-14 in its way through x̂_0.
    torch.testing.assert_close(per_image.double(), wanted, rtol=2**-19, atol=0)


def test_the_bound_of_all_timesteps_is_in_bits_per_dimension():
    """The mean of the losses over all t is Σ_t L_{t−1}/ln 2."""
    options = {"variance_type": "learned_range", "num_train_timesteps": 200, "beta_end": 0.1}
    objective, scheduler = make(options, objective="vlb")
    batch, said = draw(list(range(200)))
    with torch.no_grad():
        network = Network(torch.cat([batch.noise + 0.1 * said[:, :1], said[:, 1:]], dim=1))
        losses = objective(network, batch)
        x_0 = (2 * batch.pixels.double() - 255) / 255
        x_t = scheduler.add_noise(x_0, batch.noise.double(), batch.timesteps)
        terms = VariationalBound(scheduler).terms(network.prediction.double(), x_0, x_t, batch.timesteps)
    # Float32's part of the largest term: see test_variational_bound.py
    assert losses.loss.item() == pytest.approx(terms.sum().item() / math.log(2), rel=1e-4)
    torch.testing.assert_close(losses.per_image.mean(), losses.loss)


def test_the_weights_that_the_docstring_names():
    _, scheduler = make()
    log_abar = scheduler.log_alphas_cumprod
    _, from_output = original_sample_weights("epsilon", log_abar[2:])
    weights = 0.5 * snr_gain(log_abar[2:], log_abar[1:-1]) * from_output.square()
    scale = 1000 / math.log(2)
    assert (f"{weights.median() * scale:.1f}", f"{weights[0] * scale:.0f}") == ("9.9", "865")
    assert (f"{weights.median():.3f}", f"{weights[0]:.1f}") == ("0.007", "0.6")
    assert all(word in Objective.__doc__ for word in ("9.9", "865", "0.007", "0.6"))


class TestBothLosses:
    def losses_and_gradient(self, batch, said, **options):
        objective, _ = make({"variance_type": "learned_range"}, **options)
        network = Network(said)
        losses = objective(network, batch)
        return losses, *torch.autograd.grad(losses.loss, network.prediction)[0].chunk(2, dim=1)

    def test_the_bound_trains_the_variance_alone(self):
        batch, said = draw([0, 1, 400, 999], channels=2)
        simple, simple_mean, simple_variance = self.losses_and_gradient(batch, said, objective="simple")
        bound, bound_mean, bound_variance = self.losses_and_gradient(batch, said, objective="vlb")
        hybrid, mean, variance = self.losses_and_gradient(batch, said, objective="hybrid", vlb_weight=0.25)
        torch.testing.assert_close(hybrid.per_image, simple.per_image + 0.25 * bound.per_image)
        assert torch.equal(mean, simple_mean)
        assert (simple_variance == 0).all()
        assert (bound_mean != 0).all()
        torch.testing.assert_close(variance, 0.25 * bound_variance)

    def test_the_bound_trains_the_mean_too(self):
        batch, said = draw([0, 1, 400, 999], channels=2)
        simple, simple_mean, _ = self.losses_and_gradient(batch, said, objective="simple")
        bound, bound_mean, bound_variance = self.losses_and_gradient(batch, said, objective="vlb")
        both, mean, variance = self.losses_and_gradient(batch, said, objective="simple_and_vlb", vlb_weight=0.25)
        torch.testing.assert_close(both.per_image, simple.per_image + 0.25 * bound.per_image)
        torch.testing.assert_close(mean, simple_mean + 0.25 * bound_mean)
        torch.testing.assert_close(variance, 0.25 * bound_variance)

    @pytest.mark.parametrize("both", ["hybrid", "simple_and_vlb"])
    def test_weights_by_snr_are_no_part_of_the_bound(self, both):
        batch, said = draw([0, 400])
        results = {}
        for weighting in ("none", "min_snr"):
            for objective in ("simple", both):
                losses, *_ = self.losses_and_gradient(batch, said, objective=objective, loss_weighting=weighting)
                results[weighting, objective] = losses.per_image.double()
        bounds = [results[w, both] - results[w, "simple"] for w in ("none", "min_snr")]
        torch.testing.assert_close(*bounds, rtol=0, atol=2**-21 * results["none", both].max().item())
        assert results["none", "simple"][0] != results["min_snr", "simple"][0]


@pytest.mark.parametrize("objective", ["simple", "vlb", "hybrid", "simple_and_vlb"])
def test_importance_weights_are_no_part_of_what_is_reported(objective):
    weights = torch.tensor([0.5, 2.0, 0.0])
    losses = {}
    for given in (None, weights):
        ours, _ = make({"variance_type": "learned_range"}, objective=objective)
        batch, said = draw([1, 20, 900], weights=given)
        losses[given is None] = ours(Network(said), batch)
    assert torch.equal(losses[True].per_image, losses[False].per_image)
    torch.testing.assert_close(losses[True].loss, losses[True].per_image.mean())
    torch.testing.assert_close(losses[False].loss, (weights * losses[True].per_image).mean())


def test_pixels_of_16_bits_have_a_decoder_of_16_bits():
    """At t = 1, bins that are 257 times narrower: log₂ 257 = 8 bits more, where the density is flat across a bin."""
    objective, scheduler = make({"variance_type": "fixed_large"}, objective="vlb")
    pixels = torch.full((1, 1, 4, 4), 100, dtype=torch.uint8)
    noise = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = []
    for scaled in (pixels, (pixels.int() * 257).to(torch.uint16)):
        batch = Batch(scaled, None, noise, torch.tensor([0]), None)
        network = Network(noise)
        found.append(objective(network, batch).per_image.item() / len(scheduler))
        assert network.class_labels is None
    wide, narrow = found
    std = math.sqrt(VariationalBound(scheduler)._table(torch.zeros(1))[3, 0].exp().item())
    wanted = [-math.log2(math.erf(half / std / math.sqrt(2))) for half in (1 / 255, 1 / 65535)]
    # x̂_0 = x_0 but for roundings of x_t, 6e-8, which are 1e-5 standard deviations
    assert found == pytest.approx(wanted, abs=1e-5)
    assert narrow - wide == pytest.approx(math.log2(257), abs=0.2)


def test_only_the_network_is_in_low_precision():
    """A bfloat16 prediction is compared with a float32 target, and at t = 1 the network is shown the noise."""
    objective, _ = make()
    batch, said = draw([0, 1])
    network = Network(said[:, :1].bfloat16())
    losses = objective(network, batch)
    assert (losses.loss.dtype, network.sample.dtype) == (torch.float32, torch.float32)
    wanted = (said[:, :1].bfloat16().float() - batch.noise).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses.per_image, wanted)
    assert (network.sample[0] != normalize(batch.pixels)[0]).all()
    losses.loss.backward()
    assert network.prediction.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("objective", ["simple", "vlb", "hybrid", "simple_and_vlb"])
def test_every_loss_falls_with_a_real_network(objective):
    ours, _ = make({"variance_type": "learned_range"}, objective=objective, vlb_weight=0.001)
    unet = make_unet()
    unet.conv_out = torch.nn.Conv2d(8, 2, 3, padding=1)
    pixels = torch.zeros(8, 1, 8, 8, dtype=torch.uint8)
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    batch = Batch(pixels, torch.arange(8) % 3, noise, torch.arange(0, 1000, 125) + 1, None)
    optimizer = torch.optim.Adam(unet.parameters(), lr=3e-3)
    found = []
    for _ in range(30):
        losses = ours(unet, batch)
        optimizer.zero_grad()
        losses.loss.backward()
        optimizer.step()
        found.append(losses.loss.item())
    assert found[-1] < 0.7 * found[0]
    assert unet.conv_out.weight.grad[1].abs().sum() > 0 or objective == "simple"


@pytest.mark.parametrize("objective", ["simple", "vlb", "hybrid", "simple_and_vlb"])
def test_the_host_never_waits_for_an_accelerator(objective):
    """Tensors on the device "meta" have shapes and no values: whatever read one on the host would fail here."""
    weighting = "none" if objective == "vlb" else "min_snr"
    ours, _ = make({"variance_type": "learned_range"}, objective=objective, loss_weighting=weighting)
    batch = Batch(
        pixels=torch.empty(2, 1, 8, 8, dtype=torch.uint8, device="meta"),
        labels=None,
        noise=torch.empty(2, 1, 8, 8, device="meta"),
        timesteps=torch.empty(2, dtype=torch.int64, device="meta"),
        loss_weights=torch.empty(2, device="meta"),
    )
    prediction = torch.empty(2, 2, 8, 8, device="meta")
    for _ in range(2):
        losses = ours(lambda *_, **__: (prediction,), batch)
    assert (losses.loss.device.type, losses.per_image.shape) == ("meta", (2,))
    with pytest.raises(RuntimeError, match="meta tensors"):
        losses.loss.item()
