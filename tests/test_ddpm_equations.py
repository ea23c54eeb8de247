"""Coefficients against 60-digit arithmetic, and the algebra between them."""

import math

import mpmath
import pytest
import scipy.stats
import torch
from mpmath import mp, mpf

from ddpm_hub import ddpm_equations as eq
from ddpm_hub import ddpm_noise_schedules as ns

SCHEDULES = [("linear", 1000), ("linear", 2000), ("scaled_linear", 1000), ("squaredcos_cap_v2", 1000),
             ("squaredcos_cap_v2", 4000)]  # fmt: skip
BETA_START, BETA_END = 1e-4, 0.02

# Largest relative error allowed in float64. log ᾱ is a running sum of T ≤ 4000 terms of one sign, each rounded once:
# at most T·2⁻⁵³ = 4.4e-13 of itself if every rounding went the same way; they do not, and 1e-12 is what is promised.
FLOAT64 = 1e-12


@pytest.fixture(autouse=True)
def sixty_digits():
    with mp.workdps(60):
        yield


def exact_betas(schedule: str, num_train: int) -> list[mpf]:
    """β_1…β_T from the definitions, with the end points as the float64 numbers they are."""
    start, end, n = mpf(BETA_START), mpf(BETA_END), num_train
    if schedule == "linear":
        return [start + (end - start) * i / (n - 1) for i in range(n)]
    if schedule == "scaled_linear":
        low, high = mpf(BETA_START**0.5), mpf(BETA_END**0.5)
        return [(low + (high - low) * i / (n - 1)) ** 2 for i in range(n)]
    alpha_bar = [mpmath.cos((mpf(i) / n + mpf("0.008")) / mpf("1.008") * mp.pi / 2) ** 2 for i in range(n + 1)]
    return [min(1 - alpha_bar[i + 1] / alpha_bar[i], mpf("0.999")) for i in range(n)]


def exact_alpha_bars(schedule: str, num_train: int) -> list[mpf]:
    """ᾱ_0…ᾱ_T."""
    products = [mpf(1)]
    for beta in exact_betas(schedule, num_train):
        products.append(products[-1] * (1 - beta))
    return products


def relative_error(value, exact: mpf) -> float:
    return float(abs(mpf(value) - exact) / abs(exact)) if exact else float(abs(mpf(value)))


def computed(schedule: str, num_train: int) -> torch.Tensor:
    return ns.log_alphas_cumprod(ns.make_betas(schedule, num_train, BETA_START, BETA_END))


def some_times(num_train: int) -> list[int]:
    """The paper's t: the first ones, where 1 − ᾱ would cancel, the last ones, and some between."""
    return [1, 2, 3, 5, 10, 50, num_train // 2, num_train - 1, num_train]


@pytest.mark.parametrize(("schedule", "num_train"), SCHEDULES)
class TestAgainstExactArithmetic:
    def test_betas(self, schedule, num_train):
        betas = ns.make_betas(schedule, num_train, BETA_START, BETA_END).tolist()
        assert len(betas) == num_train
        exact = exact_betas(schedule, num_train)
        assert max(relative_error(b, e) for b, e in zip(betas, exact, strict=True)) < FLOAT64

    def test_forward_marginal(self, schedule, num_train):
        log_abar, exact = computed(schedule, num_train), exact_alpha_bars(schedule, num_train)
        for t in range(1, num_train + 1):
            assert relative_error(eq.signal_rate(log_abar[t]).item(), mpmath.sqrt(exact[t])) < FLOAT64
            assert relative_error(eq.noise_rate(log_abar[t]).item(), mpmath.sqrt(1 - exact[t])) < FLOAT64

    def test_posterior_between_any_two_times(self, schedule, num_train):
        log_abar, abar = computed(schedule, num_train), exact_alpha_bars(schedule, num_train)
        for t in some_times(num_train):
            for s in {0, t - 1, t // 2, t // 3}:
                ratio, beta = abar[t] / abar[s], 1 - abar[t] / abar[s]
                exact = (
                    mpmath.sqrt(abar[s]) * beta / (1 - abar[t]),
                    mpmath.sqrt(ratio) * (1 - abar[s]) / (1 - abar[t]),
                    beta * (1 - abar[s]) / (1 - abar[t]),
                    beta,
                )
                values = (
                    *eq.posterior_mean_weights(log_abar[t], log_abar[s]),
                    eq.posterior_variance(log_abar[t], log_abar[s]),
                    eq.reverse_variance("fixed_large", log_abar[t], log_abar[s]),
                )
                for value, wanted in zip(values, exact, strict=True):
                    assert relative_error(value.item(), wanted) < FLOAT64, (t, s)

    def test_terms_of_the_bound(self, schedule, num_train):
        log_abar, abar = computed(schedule, num_train), exact_alpha_bars(schedule, num_train)
        for t in some_times(num_train)[1:]:
            for s in {t - 1, t // 2}:
                snr_t, snr_s = (abar[i] / (1 - abar[i]) for i in (t, s))
                beta, small = 1 - abar[t] / abar[s], (1 - abar[t] / abar[s]) * (1 - abar[s]) / (1 - abar[t])
                values = eq.snr_gain(log_abar[t], log_abar[s]), eq.log_variance_range(log_abar[t], log_abar[s])
                for value, wanted in zip(values, (snr_s - snr_t, mpmath.log(beta / small)), strict=True):
                    assert relative_error(value.item(), wanted) < FLOAT64, (t, s)

    def test_loss_weights(self, schedule, num_train):
        log_abar, abar = computed(schedule, num_train), exact_alpha_bars(schedule, num_train)
        for t in some_times(num_train):
            ratio = abar[t] / (1 - abar[t])
            for largest in (mpf(5), mpmath.inf):
                cut = min(ratio, largest)
                exact = {"epsilon": cut / ratio, "sample": cut, "v_prediction": cut / (ratio + 1)}
                for prediction_type, wanted in exact.items():
                    value = eq.snr_loss_weight(prediction_type, log_abar[t], float(largest))
                    assert relative_error(value.item(), wanted) < FLOAT64, (prediction_type, t)

    def test_original_sample_from_every_prediction(self, schedule, num_train):
        log_abar, abar = computed(schedule, num_train), exact_alpha_bars(schedule, num_train)
        for t in some_times(num_train):
            signal, noise = mpmath.sqrt(abar[t]), mpmath.sqrt(1 - abar[t])
            exact = {"epsilon": (1 / signal, -noise / signal), "sample": (0, 1), "v_prediction": (signal, -noise)}
            for prediction_type, weights in exact.items():
                values = eq.original_sample_weights(prediction_type, log_abar[t])
                for value, wanted in zip(values, weights, strict=True):
                    assert relative_error(value.item(), mpf(wanted)) < FLOAT64, (prediction_type, t)


@pytest.mark.parametrize("prediction_type", eq.PREDICTION_TYPES)
def test_the_original_sample_is_the_inverse_of_the_target(prediction_type):
    log_abar = computed("linear", 1000)[1:]
    x_0, noise = torch.randn(2, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_t = eq.signal_rate(log_abar) * x_0 + eq.noise_rate(log_abar) * noise
    a, b = eq.target_weights(prediction_type, log_abar)
    c, d = eq.original_sample_weights(prediction_type, log_abar)
    recovered = c * x_t + d * (a * x_0 + b * noise)
    # ε is divided by √ᾱ_T = 6e-3, so a rounding of 1.1e-16 in x_t of size 4 can grow to 1.4e-13.
    torch.testing.assert_close(recovered, x_0, rtol=0, atol=5e-13)


def test_the_last_step_returns_the_original_sample_exactly():
    log_abar = computed("squaredcos_cap_v2", 1000)
    weight_x0, weight_xt = eq.posterior_mean_weights(log_abar[1:], log_abar[0])
    assert (weight_x0 == 1).all()
    assert (weight_xt == 0).all()
    assert (eq.posterior_variance(log_abar[1:], log_abar[0]) == 0).all()


def test_pixels_survive_the_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8)
    sample = eq.normalize(pixels)
    assert sample[0] == -1
    assert sample[255] == 1
    exact = torch.tensor([float(mpf(2) * p / 255 - 1) for p in range(256)], dtype=torch.float64)
    # One division of integers that float32 holds exactly: correctly rounded, half a unit in the last place.
    torch.testing.assert_close(sample.double(), exact, rtol=2**-24, atol=0)
    assert torch.equal(eq.denormalize(sample), pixels)


def test_pixels_of_16_bits():
    pixels = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    sample = eq.normalize(pixels)
    assert sample.dtype == torch.float32
    assert (sample[0], sample[65535]) == (-1, 1)
    exact = (2 * torch.arange(65536, dtype=torch.float64) - 65535) / 65535
    # As with 8 bits; and so neighbours, 3e-5 apart, stay apart.
    torch.testing.assert_close(sample.double(), exact, rtol=2**-24, atol=0)
    assert (sample.diff() > 0).all()


def test_clean_data_has_no_noise():
    log_abar = computed("linear", 1000)
    assert eq.snr(log_abar[0]) == math.inf
    assert eq.snr_gain(log_abar[1], log_abar[0]) == math.inf
    assert eq.log_variance_range(log_abar[1], log_abar[0]) == math.inf


@pytest.mark.parametrize("log_ratio", [-3.0, -1e-3, 1e-7, 0.0, 0.25, 5.0])
@pytest.mark.parametrize("difference", [0.0, 1e-3, 1.0, 30.0])
def test_the_divergence_of_two_gaussians(log_ratio, difference):
    """∫ q log(q/p) by quadrature; and float32 keeps what a difference of two logarithms would lose."""
    log_ratio = torch.tensor(log_ratio)
    ratio = mpmath.exp(mpf(log_ratio.item()))
    squared = torch.tensor(difference).square()
    mean = mpmath.sqrt(mpf(squared.item()))

    def integrand(x):
        log_density_ratio = (mpf(log_ratio.item()) - x**2 + (x - mean) ** 2 / ratio) / 2
        return mpmath.npdf(x) * log_density_ratio

    with mp.workdps(30):
        exact = mpmath.quad(integrand, [-20, -5, 0, 5, 20])
    assert eq.gaussian_kl(squared.double(), log_ratio.double()).item() == pytest.approx(
        float(exact), rel=1e-12, abs=1e-16
    )
    # Each of ρ + expm1(−ρ) and e^{−ρ}δ² is rounded a few times: 2⁻²² of |ρ| and of the second.
    allowed = 2**-22 * (abs(log_ratio.item()) + float(exact))
    assert abs(eq.gaussian_kl(squared, log_ratio).item() - float(exact)) <= allowed


CENTERS = [0.0, 1e-4, 0.01, 0.29, 1.0, -1.0, 3.3, 10.0, -30.0, 300.0, 2700.0]
HALF_WIDTHS = [1e-25, 1e-7, 1e-5, 1e-3, 5e-3, 0.013, 0.0133, 0.02, 0.1, 0.23, 0.24, 0.53, 1.0, 3.0, 10.0, 100.0]


def exact_interval(m: float, w: float) -> tuple[mpf, mpf, mpf]:
    """log(Φ(m + w) − Φ(m − w)) and its derivatives by m and w, in 60 digits, in the tail where nothing cancels."""
    near, far = (abs(mpf(m)) - mpf(w)), (abs(mpf(m)) + mpf(w))
    mass = (mpmath.erfc(near / mpmath.sqrt(2)) - mpmath.erfc(far / mpmath.sqrt(2))) / 2
    by_m = (mpmath.npdf(far) - mpmath.npdf(near)) / mass * mpmath.sign(m)
    return mpmath.log(mass), by_m, (mpmath.npdf(far) + mpmath.npdf(near)) / mass


@pytest.mark.parametrize(("dtype", "meeting"), [(torch.float32, 0.23), (torch.float64, 0.0132)])
def test_the_mass_of_an_interval_and_its_derivatives(dtype, meeting):
    """The formulas meet at w = 0.23 (float32) and 0.0132, where each may be off by about ε/w = 5e-7 and 1.7e-14.

    Four of that are allowed, relative to log p, which is rounded itself; derivatives by w divide it by w once more.
    """
    m, w = torch.meshgrid(torch.tensor(CENTERS, dtype=dtype), torch.tensor(HALF_WIDTHS, dtype=dtype), indexing="ij")
    m, w = m.flatten().requires_grad_(), w.flatten().requires_grad_()
    value = eq.log_normal_interval(m, w)
    value.sum().backward()
    allowed = 4 * torch.finfo(dtype).eps / meeting
    steepest = allowed / meeting
    for i in range(len(m)):
        exact = exact_interval(m[i].item(), w[i].item())
        for found, wanted, most in zip(
            (value[i], m.grad[i], w.grad[i]), exact, (allowed, steepest, steepest), strict=True
        ):
            assert abs(mpf(found.item()) - wanted) <= most * (1 + abs(wanted)), (m[i], w[i])


def test_the_logarithm_of_the_distribution_function():
    x = torch.tensor([-1e4, -300.0, -10.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 6.0, 40.0], requires_grad=True)
    value = eq.log_normal_cdf(x)
    value.sum().backward()
    for i in range(len(x)):
        mass = mpmath.ncdf(mpf(x[i].item()))
        # 4 ulp of erfc(x)e^{x²}, and roundings of x²/2
        assert abs(value[i].item() - mpmath.log(mass)) <= 2**-20 * (1 + abs(mpmath.log(mass)))
        # As much, and beyond 0, where e^{−x²/2} is computed, the rounding of its exponent
        slope, exponent = mpmath.npdf(x[i].item()) / mass, max(0.0, x[i].item()) ** 2 / 2
        assert abs(x.grad[i].item() - slope) <= 2**-20 * (1 + exponent) * (slope + mpf(10) ** -30)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("mean", [0.0, 0.123, -1.0, 1.7])
@pytest.mark.parametrize("std", [1e-3, 7.4e-3, 0.3])
def test_the_bins_of_the_decoder_hold_all(bits, mean, std):
    """The masses of all pixels add up to 1, and each is that of its bin."""
    largest = 2**bits - 1
    pixels = (2 * torch.arange(largest + 1, dtype=torch.float64) - largest) / largest
    log_variance = torch.tensor(2 * math.log(std), dtype=torch.float64)
    found = eq.discretized_gaussian_log_likelihood(pixels, torch.tensor(mean, dtype=torch.float64), log_variance, bits)
    assert found.isfinite().all()
    assert found.exp().sum().item() == pytest.approx(1, rel=1e-12)
    edges = ((2 * torch.arange(1, largest + 1, dtype=torch.float64) - largest - 1) / largest - mean) / std
    cumulative = [0.0, *scipy.stats.norm.cdf(edges.numpy()), 1.0]
    wanted = torch.tensor(cumulative, dtype=torch.float64).diff()
    # A difference of numbers up to 1 that are rounded, at edges that are rounded at a density of up to 1/std
    torch.testing.assert_close(found.exp(), wanted, rtol=0, atol=3e-16 / std)


def test_the_decoder_of_a_pixel_far_away_is_finite_with_its_derivatives():
    pixels = torch.tensor([-1.0, -0.2, 0.2, 1.0]).repeat(5, 1)
    mean = torch.tensor([-1e4, -2.0, 0.0, 2.0, 1e4])[:, None].repeat(1, 4).requires_grad_()
    log_variance = torch.full_like(pixels, math.log(5.45e-5)).requires_grad_()
    value = eq.discretized_gaussian_log_likelihood(pixels, mean, log_variance, 8)
    value.sum().backward()
    assert value.isfinite().all()
    assert mean.grad.isfinite().all()
    assert log_variance.grad.isfinite().all()
    assert (mean.grad[0, 1:] > 0).all()
    assert (mean.grad[-1, :-1] < 0).all()


def test_samples_outside_the_range_are_clamped_not_wrapped():
    assert eq.denormalize(torch.tensor([-7.0, -1.0, 1.0, 7.0])).tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ns.make_betas("cosine", 10, 1e-4, 0.02), "`beta_schedule` is 'cosine'.*squaredcos_cap_v2"),
        (lambda: eq.target_weights("eps", torch.tensor(-1.0)), "`prediction_type` is 'eps'.*epsilon"),
        (lambda: eq.original_sample_weights("eps", torch.tensor(-1.0)), "`prediction_type` is 'eps'.*epsilon"),
        (
            lambda: eq.reverse_variance("small", torch.tensor(-2.0), torch.tensor(-1.0)),
            "`variance_type`.*fixed_small",
        ),
        (lambda: eq.normalize(torch.zeros(2)), "`pixels` has dtype torch.float32.*uint8.*uint16"),
        (lambda: eq.normalize(torch.zeros(2, dtype=torch.int32)), "`pixels` has dtype torch.int32"),
        (lambda: eq.snr_loss_weight("eps", torch.tensor(-1.0)), "`prediction_type` is 'eps'.*epsilon"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(call, message):
    with pytest.raises(ValueError, match=message):
        call()
