"""Bits per dimension against a second implementation, against data whose bound is known, and by drawn timesteps."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from bound_reference import prior, reference
from conftest import make_unet
from diffusers import UNet2DModel
from evaluation import bound as b
from evaluation.real_images import RealImages
from image_data import ImageData
from random_batches import generator

from ddpm_hub import DDPMHubScheduler
from ddpm_hub.ddpm_equations import normalize
from ddpm_hub.variational_bound import VariationalBound

pytestmark = pytest.mark.usefixtures("quiet_schedule")


def real_images(pixels: torch.Tensor, padding: int = 0) -> RealImages:
    labels = torch.arange(len(pixels)) % 3
    return RealImages(ImageData(pixels, labels, ["a", "b", "c"], fingerprint="x"), "made", "test", padding)


def some_pixels(count: int, size: int = 8) -> torch.Tensor:
    return torch.randint(256, (count, 1, size, size), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def run(measured: b.Measured, images: RealImages, plan, bounds, seed: int = 3) -> dict[str, torch.Tensor]:
    """All units of a stage, joined."""
    stage = b.bound_stage("bound", measured, images, plan, bounds, {}, seed)
    units = [stage.compute(unit) for unit in range(stage.units)]
    found = {name: torch.cat([unit[name] for unit in units]) for name in ("rows", "timesteps", "terms", "loss")}
    return found | {"bias": b.summed_bias(units)}


def figures(
    found, plan, images, bounds, number: int = 0, num_timesteps: int = 20, scale: float = 1.0
) -> b.BoundFigures:
    bound = list(bounds.values())[number]
    priors = bound.prior(images.as_network_sees(torch.arange(len(images)))[0])
    weights = plan.weights(found["timesteps"])
    terms = found["terms"][:, number]
    return b.bound_figures(found["rows"], found["timesteps"], terms, weights, priors, num_timesteps, scale)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("learned", [False, True])
def test_the_whole_bound_agrees_with_a_second_implementation(learned, prediction_type):
    """A real network in float64, every image and timestep by itself, for every variance; the noise is the same.

    The issue allows 1e-5 bits. Pixels are rounded to float32 before they become samples, 3e-8, and x̂_0 is compared with
    them at most √SNR(1)/2 = 50 times magnified; the terms add up to 1e2 at most.
    """
    size, count, num_timesteps = 8, 5, 20
    kind = "learned_range" if learned else "fixed_large"
    scheduler = DDPMHubScheduler(
        num_train_timesteps=num_timesteps, beta_end=0.3, prediction_type=prediction_type, clip_sample=False,
        variance_type=kind,
    )  # fmt: skip
    unet = make_unet(size=size).double()
    if learned:
        torch.manual_seed(0)
        last = unet.conv_out
        unet.conv_out = torch.nn.Conv2d(last.in_channels, 2, 3, padding=1).double()
        unet.register_to_config(out_channels=2)
    images = real_images(some_pixels(count, size))
    measured = b.Measured(unet, scheduler, torch.float64)
    variances = [0.01 * (t + 1) for t in range(num_timesteps)]
    bounds = b.make_bounds(scheduler, 8, variances)
    assert list(bounds) == [kind, *[k for k in ("fixed_small", "fixed_large") if k != kind], "analytic"]
    plan = b.EveryTimestep(torch.arange(count), num_timesteps, batch_size=2)
    found = run(measured, images, plan, bounds)

    x_0, labels = images.as_network_sees(torch.arange(count))
    for number, bound in enumerate(bounds.values()):
        nats = torch.tensor([prior(scheduler, x) for x in x_0.double()], dtype=torch.float64)
        by_timestep = torch.zeros(num_timesteps, dtype=torch.float64)
        for unit in range(plan.units):
            for call, (rows, timesteps) in enumerate(plan.calls(unit)):
                own = generator(3, "bound", unit, call)
                noise = torch.randn(x_0[rows].shape, generator=own).double()
                for place, (row, t) in enumerate(zip(rows.tolist(), timesteps.tolist(), strict=True)):
                    abar = np.prod(1 - np.array(scheduler.betas.tolist())[: t + 1])
                    x = x_0[row].double()
                    x_t = np.sqrt(abar) * x + np.sqrt(1 - abar) * noise[place]
                    with torch.no_grad():
                        output = unet(x_t[None], t, class_labels=labels[row][None]).sample[0]
                    if learned and not bound.scheduler.config.variance_type.startswith("learned"):
                        output = output[:1]
                    term = reference(bound.scheduler, x, x_t, t, output, 8)
                    nats[row] += term
                    by_timestep[t] += term / count
        wanted = nats / math.log(2)
        got = figures(found, plan, images, bounds, number)
        assert got.value == pytest.approx(wanted.mean().item(), abs=1e-6)
        assert got.standard_error == pytest.approx(wanted.std().item() / count**0.5, abs=1e-6)
        torch.testing.assert_close(got.terms, by_timestep / math.log(2), rtol=1e-6, atol=1e-7)
        assert got.value == pytest.approx(got.prior + got.terms.sum().item(), rel=1e-12)
        assert got.between(2, num_timesteps) == pytest.approx(got.terms[1:].sum().item(), rel=1e-12)


class LinearDenoiser(UNet2DModel):
    """The best ε for normal data of mean 0: linear in x_t."""

    def forward(self, sample, timestep, class_labels=None):
        abar = self.alphas_cumprod[timestep][:, None, None, None]
        noise = (1 - abar).sqrt() * sample / (abar * self.variance + 1 - abar)
        return type("Output", (), {"sample": noise})


def linear_denoiser(scheduler, variance: float) -> LinearDenoiser:
    made = make_unet(num_class_embeds=None)
    network = LinearDenoiser(**{k: v for k, v in made.config.items() if not k.startswith("_")}).double()
    network.alphas_cumprod, network.variance = scheduler.alphas_cumprod, variance
    return network


def test_normal_data_have_their_entropy_and_a_gap_that_is_known():
    """Pixels x_0 of variance s², rounded to 8 bits, and the ε that is best for N(0, s²).

    x̂_0 = a·x_t with a = √ᾱ s²/(ᾱ s² + 1 − ᾱ), so E(x_0 − x̂_0)² = (1 − a√ᾱ)² s² + a² (1 − ᾱ) whatever the distribution of
    the pixels, and every divergence has a closed expectation. The decoder's is a sum over 256 levels and a quadrature over
    ε. The whole is the entropy of the pixels and a gap, which is what T steps of this process lose, above 0.
    """
    num_timesteps, std = 100, 0.2
    scheduler = DDPMHubScheduler(num_train_timesteps=num_timesteps, beta_start=1e-3, beta_end=0.2, clip_sample=False)
    levels = (2 * np.arange(256) - 255) / 255
    masses = np.diff(
        scipy.stats.norm.cdf(np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]]), scale=std)
    )
    variance = float(masses @ levels**2)
    entropy = float(scipy.stats.entropy(masses, base=2))

    betas = np.array(scheduler.betas.tolist())
    abars = np.concatenate([[1.0], np.cumprod(1 - betas)])
    weight = np.sqrt(abars) * variance / (abars * variance + 1 - abars)
    errors = (1 - weight * np.sqrt(abars)) ** 2 * variance + weight**2 * (1 - abars)
    known = errors[1:].tolist()  # V_t, for the analytic variance
    expected = (abars[-1] * variance - abars[-1] - np.log1p(-abars[-1])) / 2
    for t in range(2, num_timesteps + 1):
        small = betas[t - 1] * (1 - abars[t - 1]) / (1 - abars[t])
        gain = abars[t - 1] * betas[t - 1] ** 2 / (1 - abars[t]) ** 2 / small
        expected += np.log1p(gain * known[t - 1]) / 2
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    decoder = 0.0
    for node, part in zip(nodes, weights / weights.sum(), strict=True):
        mean = weight[1] * (np.sqrt(abars[1]) * levels + np.sqrt(1 - abars[1]) * node)
        sigma = np.sqrt(known[0])
        upper = np.where(levels == 1, np.inf, (levels + 1 / 255 - mean) / sigma)
        lower = np.where(levels == -1, -np.inf, (levels - 1 / 255 - mean) / sigma)
        swap = lower + upper > 0
        lower, upper = np.where(swap, -upper, lower), np.where(swap, -lower, upper)
        near, far = scipy.stats.norm.logcdf(upper), scipy.stats.norm.logcdf(lower)
        decoder -= part * (masses @ (near + np.log1p(-np.exp(far - near))))
    bits = (expected + decoder) / math.log(2)
    assert entropy < bits < entropy + 0.2

    own = np.random.default_rng(0)
    pixels = torch.from_numpy(own.choice(256, p=masses, size=(300, 1, 8, 8))).to(torch.uint8)
    images = RealImages(ImageData(pixels, None, []), "normal", "test", 0)
    measured = b.Measured(linear_denoiser(scheduler, variance), scheduler, torch.float64)
    bounds = b.make_bounds(scheduler, 8, known)
    plan = b.EveryTimestep(torch.arange(300), num_timesteps, 100)
    found = run(measured, images, plan, bounds)
    got = figures(found, plan, images, bounds, list(bounds).index("analytic"), num_timesteps)
    assert got.standard_error < 0.02
    assert got.value == pytest.approx(bits, abs=4 * got.standard_error)
    # V_t is what the analytic stage measures: 64 pixels of 300 images, √(2/19200) = 1 % of it; four times that.
    stage_plan = b.SomeAtEachTimestep(torch.arange(300), num_timesteps, 300, 100)
    stage = b.error_stage(measured, images, stage_plan, {}, 0)
    units = [stage.compute(unit) for unit in range(stage.units)]
    errors, timesteps = (torch.cat([unit[name] for unit in units]) for name in ("error", "timesteps"))
    measured_variances = b.original_sample_variances(errors, timesteps, num_timesteps)
    assert measured_variances == pytest.approx(known, rel=0.04)


def test_drawn_timesteps_have_the_same_mean():
    """Over many draws the estimate from 3 of 20 timesteps is that from all; and the draws follow the probabilities."""
    num_timesteps, count = 20, 40
    scheduler = DDPMHubScheduler(num_train_timesteps=num_timesteps, beta_end=0.3)
    measured = b.Measured(make_unet(), scheduler)
    images = real_images(some_pixels(count))
    bounds = b.make_bounds(scheduler, 8, None)
    every = b.EveryTimestep(torch.arange(count), num_timesteps, 40)
    found = run(measured, images, every, bounds)
    whole = figures(found, every, images, bounds)
    probabilities = b.important_timesteps(found["terms"][:, 0], found["timesteps"], num_timesteps)
    assert probabilities.sum().item() == pytest.approx(1)
    assert probabilities.min() >= b.LEAST_SHARE / num_timesteps
    values = []
    for seed in range(60):
        plan = b.ImportantTimesteps(torch.arange(count), 40, 3, probabilities, seed)
        values.append(figures(run(measured, images, plan, bounds, seed), plan, images, bounds).value)
    values = np.array(values)
    # Four standard errors of the mean of 60, and of the one draw of noise in the whole.
    spread = values.std() / 60**0.5
    assert values.mean() == pytest.approx(whole.value, abs=4 * math.hypot(spread, 0.02 * whole.value / count**0.5))
    drawn = torch.zeros(num_timesteps)
    for seed in range(300):
        plan = b.ImportantTimesteps(torch.arange(count), 40, 3, probabilities, seed)
        for _, timesteps in plan.calls(0):
            drawn += timesteps.bincount(minlength=num_timesteps)
    shares = (drawn / drawn.sum()).double()
    # Shares of 36,000 draws: standard deviation at most √(p/36000) (spread draws vary less).
    assert ((shares - probabilities).abs() < 5 * (probabilities / 36_000).sqrt()).all()


def test_the_padding_counts_for_no_dimension():
    """The same nats over 6·6 dimensions in place of 8·8 are more bits for each: the padding flatters by 64/36."""
    scheduler = DDPMHubScheduler(num_train_timesteps=20, beta_end=0.3)
    measured = b.Measured(make_unet(), scheduler)
    pixels = some_pixels(4, 6)
    padded = torch.nn.functional.pad(pixels, [1] * 4)
    inner, outer = real_images(pixels, padding=1), real_images(padded)
    bounds = b.make_bounds(scheduler, 8, None)
    plan = b.EveryTimestep(torch.arange(4), 20, 4)
    assert torch.equal(inner.as_network_sees(torch.arange(4))[0], outer.as_network_sees(torch.arange(4))[0])
    flattered = figures(run(measured, outer, plan, bounds), plan, outer, bounds)
    honest = figures(run(measured, inner, plan, bounds), plan, inner, bounds, scale=64 / 36)
    assert honest.value == pytest.approx(flattered.value * 64 / 36, rel=1e-6)
    assert honest.value > flattered.value


class TestCalibration:
    """The loss, and the mean error, of the noise."""

    def test_a_network_without_bias_shows_what_chance_makes(self):
        """And one whose every answer is off by the same 0.05 shows that."""
        scheduler = DDPMHubScheduler(num_train_timesteps=20, beta_end=0.3, clip_sample=False)
        own = np.random.default_rng(0)
        pixels = torch.from_numpy((own.normal(0, 0.2, (200, 1, 8, 8)) * 127.5 + 127.5).round().clip(0, 255)).to(
            torch.uint8
        )
        images = RealImages(ImageData(pixels, None, []), "normal", "test", 0)
        plan = b.EveryTimestep(torch.arange(200), 20, 200)
        bounds = {"fixed_small": VariationalBound(scheduler)}
        network = linear_denoiser(scheduler, 0.04)
        for shift in (0.0, 0.05):
            inner = network.forward
            network.forward = lambda *a, inner=inner, shift=shift, **k: type(
                "Output", (), {"sample": inner(*a, **k).sample + shift}
            )
            found = run(b.Measured(network, scheduler, torch.float64), images, plan, bounds)
            got = b.calibration(found["timesteps"], found["loss"], plan.weights(found["timesteps"]), found["bias"], 20)
            network.forward = inner
            for loss, bias, chance in zip(got.loss, got.bias, got.chance, strict=True):
                # 2 timesteps of 200 images: the mean error has 64 numbers of variance loss/400 about the shift.
                assert chance == pytest.approx((loss / 400) ** 0.5, rel=1e-9)
                assert bias == pytest.approx(math.hypot(shift, (max(loss - shift**2, 0) / 400) ** 0.5), rel=0.5)
                assert (bias > 2 * chance) == (shift > 0) or chance > shift / 2

    def test_the_loss_is_that_of_the_answers(self):
        scheduler = DDPMHubScheduler(num_train_timesteps=20, beta_end=0.3)
        unet, images = make_unet(), real_images(some_pixels(2))
        plan = b.EveryTimestep(torch.arange(2), 20, 2)
        found = run(b.Measured(unet, scheduler), images, plan, b.make_bounds(scheduler, 8, None))
        got = b.calibration(found["timesteps"], found["loss"], plan.weights(found["timesteps"]), found["bias"], 20)
        losses = []
        for call, (rows, timesteps) in enumerate(plan.calls(0)):
            x_0 = normalize(images.data.pixels[rows])
            noise = torch.randn(x_0.shape, generator=generator(3, "bound", 0, call))
            x_t = scheduler.add_noise(x_0, noise, timesteps)
            with torch.no_grad():
                losses.append(
                    (unet(x_t, timesteps, class_labels=images.data.labels[rows]).sample - noise).square().mean()
                )
        by_bin = torch.stack(losses).view(10, 2).mean(1)
        torch.testing.assert_close(torch.tensor(got.loss), by_bin, rtol=1e-5, atol=0)


def test_the_bound_is_that_of_the_clipped_process():
    """Sampling clips x̂_0 where the configuration says so; of a network that predicts x_0 itself, that is its answer, clipped."""
    clipped = DDPMHubScheduler(num_train_timesteps=20, beta_end=0.3, prediction_type="sample")
    unet, images = make_unet().double(), real_images(some_pixels(2))
    with torch.no_grad():
        unet.conv_out.bias += 1.1  # most of its answers are outside of [−1, 1]
    plan = b.EveryTimestep(torch.arange(2), 20, 2)
    found = run(b.Measured(unet, clipped, torch.float64), images, plan, b.make_bounds(clipped, 8, None))
    x_0 = images.as_network_sees(torch.arange(2))[0].double()
    for call, (rows, timesteps) in enumerate(plan.calls(0)):
        noise = torch.randn(x_0.shape, generator=generator(3, "bound", 0, call)).double()
        x_t = clipped.add_noise(x_0, noise, timesteps)
        with torch.no_grad():
            output = unet(x_t, timesteps, class_labels=images.data.labels[rows]).sample
        assert (output > 1).double().mean() > 0.5
        for row in range(2):
            wanted = reference(clipped, x_0[row], x_t[row], call, output[row].clamp(-1, 1), 8)
            assert found["terms"][2 * call + row, 0].item() == pytest.approx(wanted, rel=1e-6)
