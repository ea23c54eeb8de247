"""Coefficients against 60-digit arithmetic, and the algebra between them."""

import mpmath
import pytest
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
        (lambda: eq.normalize(torch.zeros(2)), "`pixels` has dtype torch.float32"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(call, message):
    with pytest.raises(ValueError, match=message):
        call()
