"""The bound's terms against a second implementation, closed forms, finite differences, and float64."""

import math

import numpy as np
import pytest
import torch
from bound_reference import reference

from ddpm_hub import DDPMHubScheduler
from ddpm_hub.ddpm_equations import PREDICTION_TYPES, normalize, snr_gain
from ddpm_hub.variational_bound import VariationalBound

TIMESTEPS = [0, 1, 2, 10, 500, 998, 999]
ANALYTIC = {"variance_type": "analytic", "original_sample_variances": [2e-5 * (t + 1) for t in range(1000)]}
VARIANCES = [
    {"variance_type": "fixed_small"},
    {"variance_type": "fixed_large"},
    ANALYTIC,
    {"variance_type": "learned_range"},
    {"variance_type": "learned"},
]


def draw(scheduler, bits: int = 8, timesteps=TIMESTEPS, dtype=torch.float64, seed: int = 0):
    """x_0, x_t, timesteps and a prediction that is off by a few percent, twice as wide where the variance is learned."""
    random = torch.Generator().manual_seed(seed)
    timesteps = torch.tensor(timesteps)
    shape = (len(timesteps), 2, 3, 4)
    pixels = torch.randint(2**bits, shape, generator=random, dtype=torch.int32)
    pixels[:, 0, 0, :2] = torch.tensor([0, 2**bits - 1], dtype=torch.int32)  # the bins that reach to infinity
    largest = 2**bits - 1
    x_0 = (2 * pixels.to(dtype) - largest) / largest
    noise = torch.randn(shape, generator=random, dtype=dtype)
    x_t = scheduler.add_noise(x_0, noise, timesteps)
    output = scheduler.training_target(x_0, noise, timesteps) + 0.05 * torch.randn(shape, generator=random, dtype=dtype)
    variance = torch.randn(shape, generator=random, dtype=dtype)
    if scheduler.config.variance_type == "learned":
        variance = variance * 0.1 + torch.log(scheduler.betas)[timesteps].to(dtype)[:, None, None, None]
    if scheduler.config.variance_type in ("learned", "learned_range"):
        output = torch.cat([output, variance], dim=1)
    return x_0, x_t, timesteps, output


def make(**kwargs) -> DDPMHubScheduler:
    return DDPMHubScheduler(**{"clip_sample": False} | kwargs)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("variance", VARIANCES, ids=lambda kwargs: kwargs["variance_type"])
def test_terms_agree_with_a_second_implementation(variance, prediction_type, bits):
    """The reference forms 1 − ᾱ ≥ 1e-4 from ᾱ: 1e-16·T·1e4 = 1e-9 of each variance, if all roundings went one way."""
    scheduler = make(prediction_type=prediction_type, **variance)
    x_0, x_t, timesteps, output = draw(scheduler, bits)
    found = VariationalBound(scheduler, bits).terms(output, x_0, x_t, timesteps)
    assert found.dtype == torch.float64
    rows = zip(x_0, x_t, timesteps.tolist(), output, strict=True)
    wanted = torch.tensor([reference(scheduler, *row, bits) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variance", VARIANCES, ids=lambda kwargs: kwargs["variance_type"])
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_float32_is_near_float64(variance, schedule):
    """Of the mean's difference δ, in posterior standard deviations, 2⁻²²√SNR(s) is lost (x_t, x_0 and x̂_0 are of size 1,

    up to 4, and rounded four times), so δ²/2 loses |δ| times it. The variance's part keeps 2⁻²² of itself. The decoder,
    whose distance in standard deviations is rounded likewise, has the slope |m| ≤ 16 here.
    """
    scheduler = make(beta_schedule=schedule, **variance)
    x_0, x_t, timesteps, output = draw(scheduler, dtype=torch.float32, timesteps=[0, 1, 1, 1, 2, 3, 10, 500, 990])
    bound = VariationalBound(scheduler)
    found = bound.terms(output, x_0, x_t, timesteps)
    assert found.dtype == torch.float32
    exact = bound.terms(*(tensor.double() for tensor in (output, x_0, x_t)), timesteps)
    log_abar = scheduler.log_alphas_cumprod
    signal = (1 / torch.expm1(-log_abar[timesteps.clamp(min=1)])).sqrt()
    deviation = (2 * exact).sqrt() + 1
    allowed = 2**-22 * (signal * deviation + 1 + exact)
    allowed[timesteps == 0] = 2**-22 * 16 * signal[0]
    assert ((found.double() - exact).abs() <= allowed).all(), (found.double() - exact, allowed)
    assert (allowed < 1e-3).all()


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_perfect_network_on_gaussian_data(prediction_type):
    """Data N(0, c): x̂_0 = E[x_0 | x_t] errs by V_t = c(1−ᾱ)/(cᾱ + 1−ᾱ), so E[L_{t−1}] = ½(SNR(s) − SNR(t)) V_t."""
    c, count = 0.25, 200_000
    scheduler = make(prediction_type=prediction_type)
    log_abar = scheduler.log_alphas_cumprod
    random = torch.Generator().manual_seed(0)
    for timestep in (1, 20, 300, 999):
        abar = log_abar[timestep + 1].exp()
        known = c * (1 - abar) / (c * abar + 1 - abar)
        x_0 = 0.5 * torch.randn(1, 1, count, generator=random, dtype=torch.float64)
        noise = torch.randn(x_0.shape, generator=random, dtype=torch.float64)
        t = torch.tensor([timestep])
        x_t = scheduler.add_noise(x_0, noise, t)
        estimate = abar.sqrt() * c / (c * abar + 1 - abar) * x_t
        output = scheduler.convert_prediction(estimate, x_t, t, prediction_type, source_type="sample")
        found = VariationalBound(scheduler).terms(output, x_0, x_t, t).item()
        wanted = (0.5 * snr_gain(log_abar[timestep + 1], log_abar[timestep]) * known).item()
        # The square of a Gaussian has a relative standard deviation of √2; five of the mean's.
        assert found == pytest.approx(wanted, rel=5 * math.sqrt(2 / count))


def test_the_right_variance_has_the_lowest_bound():
    """For the network above, β̃ + w²V_t, `analytic`, is the minimum: ½ log(σ²/β̃), and no other variance is below it."""
    c, t = 0.25, torch.tensor([50])
    abar = make().alphas_cumprod
    known = (c * (1 - abar) / (c * abar + 1 - abar)).tolist()
    scheduler = make(variance_type="analytic", original_sample_variances=known)
    random = torch.Generator().manual_seed(0)
    x_0 = 0.5 * torch.randn(1, 1, 100_000, generator=random, dtype=torch.float64)
    x_t = scheduler.add_noise(x_0, torch.randn(x_0.shape, generator=random, dtype=torch.float64), t)
    output = scheduler.convert_prediction(
        c * abar[50].sqrt() / (c * abar[50] + 1 - abar[50]) * x_t, x_t, t, "epsilon", "sample"
    )
    found = {
        kind: VariationalBound(make(variance_type=kind) if kind != "analytic" else scheduler).terms(output, x_0, x_t, t)
        for kind in ("fixed_small", "fixed_large", "analytic")
    }
    log_abar = scheduler.log_alphas_cumprod
    wanted = 0.5 * torch.log1p(snr_gain(log_abar[51], log_abar[50]) * known[50])
    # The mean of δ² errs by √(2/n) of it; five of those.
    assert found["analytic"].item() == pytest.approx(wanted.item(), rel=5 * math.sqrt(2 / 1e5))
    assert found["analytic"] < min(found["fixed_small"], found["fixed_large"])


def test_the_prior():
    scheduler = make()
    x_0 = normalize(torch.arange(256, dtype=torch.uint8).reshape(2, 1, 8, 16))
    abar = np.prod(1 - np.array(scheduler.betas.tolist()))
    wanted = (abar * x_0.double() ** 2 + (1 - abar) - 1 - math.log1p(-abar)) / 2
    found = VariationalBound(scheduler).prior(x_0.double())
    torch.testing.assert_close(found, wanted.mean(dim=(1, 2, 3)), rtol=1e-9, atol=0)
    torch.testing.assert_close(VariationalBound(scheduler).prior(x_0).double(), found, rtol=2**-20, atol=0)
    zero = make(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert VariationalBound(zero).prior(x_0).tolist() == [0, 0]


class TestGradient:
    @pytest.mark.parametrize("bits", [8, 16])
    @pytest.mark.parametrize("variance", ["fixed_large", "learned_range"])
    def test_finite_differences(self, variance, bits):
        scheduler = make(variance_type=variance)
        x_0, x_t, timesteps, output = draw(scheduler, bits)
        bound = VariationalBound(scheduler, bits)
        assert torch.autograd.gradcheck(lambda o: bound.terms(o, x_0, x_t, timesteps), output.requires_grad_())

    def test_it_stops_at_the_mean(self):
        scheduler = make(variance_type="learned_range")
        x_0, x_t, timesteps, output = draw(scheduler)
        grads = []
        for stop in (False, True):
            leaf = output.clone().requires_grad_()
            bound = VariationalBound(scheduler)
            terms = bound.terms(leaf, x_0, x_t, timesteps, stop_gradient_at_mean=stop)
            grads.append(torch.autograd.grad(terms.sum(), leaf)[0].chunk(2, dim=1))
        (mean, variance), (stopped_mean, stopped_variance) = grads
        assert (mean != 0).all()
        assert (stopped_mean == 0).all()
        assert torch.equal(variance, stopped_variance)
        assert (variance.flatten(1).abs().sum(1) > 0).all()

    def test_the_variance_finds_its_minimum(self):
        """At Σ = β̃ + (μ̃ − μ)² the derivative by Σ is 0: below it negative, above it positive."""
        scheduler = make(variance_type="learned_range")
        timesteps = torch.tensor([1, 30, 600])
        x_0, x_t, _, output = draw(scheduler, timesteps=timesteps.tolist())
        log_t, log_s = (scheduler.log_alphas_cumprod[timesteps + k][:, None, None, None] for k in (1, 0))
        estimate = scheduler.convert_prediction(output[:, :2], x_t, timesteps, "sample")
        best = torch.log1p(snr_gain(log_t, log_s) * (x_0 - estimate).square())
        width = torch.log(torch.expm1(log_t) / torch.expm1(log_s))
        for shift, sign in ((-1e-3, -1), (1e-3, 1)):
            leaf = torch.cat([output[:, :2], 2 * (best + shift) / width - 1], dim=1).requires_grad_()
            VariationalBound(scheduler).terms(leaf, x_0, x_t, timesteps).sum().backward()
            assert (leaf.grad[:, 2:].sign() == sign).all()

    def test_it_is_finite_for_a_network_that_knows_nothing(self):
        scheduler = make(variance_type="learned_range", beta_schedule="squaredcos_cap_v2")
        x_0, x_t, timesteps, output = draw(scheduler, dtype=torch.float32)
        leaf = (30 * output).bfloat16().requires_grad_()
        terms = VariationalBound(scheduler).terms(leaf, x_0, x_t, timesteps)
        terms.sum().backward()
        assert terms.isfinite().all()
        assert leaf.grad.isfinite().all()


def test_clipping_is_that_of_the_sampler():
    scheduler = make(clip_sample=True)
    x_0, x_t, timesteps, output = draw(scheduler)
    bound = VariationalBound(scheduler)
    far = output + 30 / (1 + timesteps[:, None, None, None])
    clipped = bound.terms(far, x_0, x_t, timesteps, clip_sample=True)
    estimate = scheduler.convert_prediction(far, x_t, timesteps, "sample").clamp(-1, 1)
    inside = scheduler.convert_prediction(estimate, x_t, timesteps, "epsilon", "sample")
    # Through ε and back: 1e-16·√SNR, at most 1e2
    torch.testing.assert_close(clipped, bound.terms(inside, x_0, x_t, timesteps), rtol=1e-9, atol=1e-12)
    assert (bound.terms(far, x_0, x_t, timesteps) > clipped).all()


class TestAccelerator:
    def test_the_host_never_waits(self):
        """Tensors on the device "meta" have shapes and no values: whatever read one on the host would fail here."""
        bound = VariationalBound(make(variance_type="learned_range"))
        x_0 = torch.empty(2, 1, 8, 8, device="meta")
        output = torch.empty(2, 2, 8, 8, device="meta")
        timesteps = torch.empty(2, dtype=torch.int64, device="meta")
        terms = bound.terms(output, x_0, x_0, timesteps, stop_gradient_at_mean=True)
        assert (terms.shape, terms.device.type) == ((2,), "meta")
        with pytest.raises(RuntimeError, match="meta tensors"):
            terms.max().item()

    def test_what_it_computes_is_the_same(self):
        """The way without reading timesteps, which a compiled graph takes, too."""
        scheduler = make(variance_type="learned_range", beta_schedule="squaredcos_cap_v2")
        bound = VariationalBound(scheduler)
        x_0, x_t, timesteps, output = draw(scheduler)
        results = []
        for terms in (bound.terms, torch.compile(bound.terms, fullgraph=True, backend="eager")):
            leaf = (30 * output).requires_grad_()
            found = terms(leaf, x_0, x_t, timesteps)
            results.append((found.detach(), torch.autograd.grad(found.sum(), leaf)[0]))
        for there, here in zip(*results, strict=True):
            torch.testing.assert_close(there, here, rtol=1e-14, atol=0)


def test_zero_terminal_snr():
    scheduler = make(prediction_type="v_prediction", rescale_betas_zero_snr=True, variance_type="learned_range")
    x_0, x_t, timesteps, output = draw(scheduler)
    assert VariationalBound(scheduler).terms(output, x_0, x_t, timesteps).isfinite().all()


def test_a_single_step(quiet_schedule):
    scheduler = make(trained_betas=[0.5])
    x_0, x_t, timesteps, output = draw(scheduler, timesteps=[0, 0])
    found = VariationalBound(scheduler).terms(output, x_0, x_t, timesteps)
    estimate = scheduler.convert_prediction(output, x_t, timesteps, "sample")
    assert found.isfinite().all()
    # A decoder much wider than its bins: the density at x_0, of variance β_1, times the bin; the outer bins aside
    log_density = -0.5 * (x_0 - estimate).square() / 0.5 - 0.5 * math.log(2 * math.pi * 0.5) + math.log(2 / 255)
    inner = x_0.abs() < 1
    assert inner.float().mean() > 0.8
    wide = VariationalBound(scheduler).terms(output, x_0 * 0.5, x_t, timesteps)
    log_density = log_density + 0.5 * ((x_0 - estimate).square() - (0.5 * x_0 - estimate).square()) / 0.5
    torch.testing.assert_close(wide, -log_density.mean(dim=(1, 2, 3)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": torch.zeros(7, 2, 3, 4)}, r"`model_output` has shape \(7, 2, 3, 4\); it must be \(7, 4, 3, 4\)"),
        ({"x_t": torch.zeros(7, 2, 3, 5)}, r"`sample` has shape \(7, 2, 3, 5\); it must be \(7, 2, 3, 4\)"),
        ({"timesteps": torch.tensor([3])}, r"`timesteps` has shape \(1,\); it must be \(7,\), one per image"),
        ({"timesteps": torch.arange(994, 1001)}, r"`timesteps` runs from 994 to 1000; it must lie in 0…999"),
        ({"timesteps": torch.zeros(7)}, "`timesteps` has dtype torch.float32"),
    ],
)
def test_mistakes(change, message):
    scheduler = make(variance_type="learned_range")
    x_0, x_t, timesteps, output = draw(scheduler)
    given = {"output": output, "x_t": x_t, "timesteps": timesteps} | change
    with pytest.raises(ValueError, match=message):
        VariationalBound(scheduler).terms(given["output"], x_0, given["x_t"], given["timesteps"])


def test_settings_that_cannot_work():
    with pytest.raises(ValueError, match=r"`bit_depth` is 0; .* from 1 to 16"):
        VariationalBound(make(), bit_depth=0)
    nothing = make(variance_type="analytic", original_sample_variances=[0.0] * 1000)
    with pytest.raises(ValueError, match="`original_sample_variances` starts with 0"):
        VariationalBound(nothing)
