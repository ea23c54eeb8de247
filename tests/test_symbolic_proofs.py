"""The derivations of the notes, proved with SymPy, and the code evaluated against what they end in."""

import math

import pytest
import sympy as sp
import torch

from ddpm_hub import ddpm_equations as eq

alpha, abar_s, x_0, x_t, x_s, eps, k = sp.symbols("alpha abar_s x_0 x_t x_s epsilon k", positive=True)
beta, abar_t = 1 - alpha, alpha * abar_s  # β_t = 1 − α_t, ᾱ_t = α_t ᾱ_s
# Numbers for α and ᾱ_s at which the code is compared with a proved expression: rationals that float64 holds.
POINTS = [(0.75, 0.5), (0.984375, 0.9375), (0.5, 0.0078125)]


def is_zero(expression) -> bool:
    return sp.simplify(sp.expand(expression)) == 0


def check_code(expressions, function) -> None:
    """The code's weights equal the proved expressions at several points, to float64 (a handful of roundings)."""
    for a, s in POINTS:
        log_t, log_s = (torch.tensor(math.log(v), dtype=torch.float64) for v in (a * s, s))
        for value, expression in zip(function(log_t, log_s), expressions, strict=True):
            exact = float(expression.subs({alpha: sp.Rational(a), abar_s: sp.Rational(s)}))
            assert value.item() == pytest.approx(exact, rel=1e-14)


def test_two_step_merge():
    """√α_t (√α_{t−1} x + √(1−α_{t−1}) z_1) + √(1−α_t) z_2: mean and variance of one Gaussian step."""
    a, b = sp.symbols("alpha_t alpha_tm1", positive=True)
    mean = sp.sqrt(a) * sp.sqrt(b)
    variance = (sp.sqrt(a) * sp.sqrt(1 - b)) ** 2 + sp.sqrt(1 - a) ** 2
    assert is_zero(mean - sp.sqrt(a * b))
    assert is_zero(variance - (1 - a * b))


def test_k_step_merge_by_induction():
    """If k steps give (√p, 1 − p), one step of α more gives (√(αp), 1 − αp); and one step is (√α, 1 − α)."""
    p = sp.symbols("p", positive=True)
    weight, variance = sp.sqrt(p), 1 - p  # the hypothesis, for p = ∏α
    assert is_zero(sp.sqrt(alpha) * weight - sp.sqrt(alpha * p))
    assert is_zero(sp.sqrt(alpha) ** 2 * variance + (1 - alpha) - (1 - alpha * p))
    assert is_zero(variance.subs(p, alpha) - beta)
    check_code((sp.sqrt(alpha), sp.sqrt(beta)), lambda t, s: (eq.signal_rate(t - s), eq.noise_rate(t - s)))


def test_scaling_and_sum_of_gaussians():
    """c·N(μ, σ²) = N(cμ, c²σ²), and densities of a sum convolve: both from the characteristic function."""
    u, c, m1, m2, s1, s2 = sp.symbols("u c mu_1 mu_2 sigma_1 sigma_2", positive=True)

    def characteristic(m, variance, at):
        return sp.exp(sp.I * m * at - variance * at**2 / 2)

    assert is_zero(
        sp.log(characteristic(m1, s1**2, c * u) / characteristic(c * m1, (c * s1) ** 2, u)).expand(force=True)
    )
    product = characteristic(m1, s1**2, u) * characteristic(m2, s2**2, u)
    assert sp.simplify(product / characteristic(m1 + m2, s1**2 + s2**2, u)) == 1


class TestPosterior:
    # log q(x_s | x_t, x_0) up to terms without x_s: Bayes, with the two Gaussians of the forward process
    exponent = -(
        (x_t - sp.sqrt(alpha) * x_s) ** 2 / beta + (x_s - sp.sqrt(abar_s) * x_0) ** 2 / (1 - abar_s)
    ) / 2  # fmt: skip
    precision = sp.expand(-2 * exponent).coeff(x_s, 2)
    linear = sp.expand(-2 * exponent).coeff(x_s, 1) / -2

    def test_completing_the_square(self):
        assert is_zero(self.precision - (alpha / beta + 1 / (1 - abar_s)))
        assert is_zero(self.linear - (sp.sqrt(alpha) * x_t / beta + sp.sqrt(abar_s) * x_0 / (1 - abar_s)))
        rest = self.exponent + self.precision * (x_s - self.linear / self.precision) ** 2 / 2
        assert is_zero(sp.diff(rest, x_s))

    def test_precision_in_closed_form(self):
        assert is_zero(self.precision - (1 - abar_t) / (beta * (1 - abar_s)))
        check_code((self.precision,), lambda t, s: (eq.posterior_precision(t, s),))

    def test_linear_term(self):
        check_code([sp.expand(self.linear).coeff(v) for v in (x_0, x_t)], eq.posterior_linear_weights)

    def test_the_variance(self):
        variance = beta * (1 - abar_s) / (1 - abar_t)
        assert is_zero(1 / self.precision - variance)
        assert is_zero(variance - (sp.sqrt(1 - alpha) * sp.sqrt(1 - abar_s) / sp.sqrt(1 - abar_t)) ** 2)
        check_code((variance,), lambda t, s: (eq.posterior_variance(t, s),))

    def test_the_mean_from_x_0(self):
        weights = (sp.sqrt(abar_s) * beta / (1 - abar_t), sp.sqrt(alpha) * (1 - abar_s) / (1 - abar_t))
        assert is_zero(self.linear / self.precision - weights[0] * x_0 - weights[1] * x_t)
        check_code(weights, eq.posterior_mean_weights)

    def test_the_mean_from_the_noise(self):
        original = (x_t - sp.sqrt(1 - abar_t) * eps) / sp.sqrt(abar_t)
        mean = (self.linear / self.precision).subs(x_0, original)
        weights = (1 / sp.sqrt(alpha), -beta / (sp.sqrt(alpha) * sp.sqrt(1 - abar_t)))
        assert is_zero(mean - weights[0] * x_t - weights[1] * eps)
        check_code(weights, eq.posterior_mean_weights_epsilon)

    def test_it_reproduces_the_marginal(self):
        """∫ q(x_s | x_t, x_0) q(x_t | x_0) dx_t = q(x_s | x_0): mean √ᾱ_s x_0 and variance 1 − ᾱ_s."""
        w0, wt = sp.sqrt(abar_s) * beta / (1 - abar_t), sp.sqrt(alpha) * (1 - abar_s) / (1 - abar_t)
        assert is_zero(w0 + wt * sp.sqrt(abar_t) - sp.sqrt(abar_s))
        assert is_zero(wt**2 * (1 - abar_t) + 1 / self.precision - (1 - abar_s))


class TestPredictions:
    noisy = sp.sqrt(abar_t) * x_0 + sp.sqrt(1 - abar_t) * eps
    velocity = sp.sqrt(abar_t) * eps - sp.sqrt(1 - abar_t) * x_0

    def test_x_0_from_the_noise(self):
        assert is_zero((self.noisy - sp.sqrt(1 - abar_t) * eps) / sp.sqrt(abar_t) - x_0)

    def test_x_0_and_noise_from_the_velocity(self):
        assert is_zero(sp.sqrt(abar_t) * self.noisy - sp.sqrt(1 - abar_t) * self.velocity - x_0)
        assert is_zero(sp.sqrt(1 - abar_t) * self.noisy + sp.sqrt(abar_t) * self.velocity - eps)

    @pytest.mark.parametrize("source", eq.PREDICTION_TYPES)
    @pytest.mark.parametrize("target", eq.PREDICTION_TYPES)
    def test_every_conversion(self, source, target):
        values = {"epsilon": eps, "sample": x_0, "v_prediction": self.velocity}
        for a, s in POINTS:
            numbers = {alpha: sp.Rational(a), abar_s: sp.Rational(s)}
            log_t = torch.tensor(math.log(a * s), dtype=torch.float64)
            from_prediction, from_sample = (w.item() for w in eq.conversion_weights(source, target, log_t))
            difference = from_prediction * values[source] + from_sample * self.noisy - values[target]
            for symbol in (x_0, eps):
                # Weights of size up to 1/√ᾱ = 16, each rounded a few times
                assert abs(float(sp.expand(difference.subs(numbers)).coeff(symbol))) < 1e-13


class TestDDIM:
    eta = sp.symbols("eta", nonnegative=True)
    small = beta * (1 - abar_s) / (1 - abar_t)

    def mean(self, eta):
        noise = (x_t - sp.sqrt(abar_t) * x_0) / sp.sqrt(1 - abar_t)
        return sp.sqrt(abar_s) * x_0 + sp.sqrt(1 - abar_s - eta**2 * self.small) * noise

    def test_eta_1_is_the_posterior(self):
        # 1 − ᾱ_s − β̃ is a perfect square, which SymPy is told: α(1−ᾱ_s)²/(1−ᾱ_t)
        assert is_zero(1 - abar_s - self.small - alpha * (1 - abar_s) ** 2 / (1 - abar_t))
        direction = sp.sqrt(alpha) * (1 - abar_s) / sp.sqrt(1 - abar_t)
        noise = (x_t - sp.sqrt(abar_t) * x_0) / sp.sqrt(1 - abar_t)
        mean = sp.sqrt(abar_s) * x_0 + direction * noise
        assert is_zero(mean - TestPosterior.linear / TestPosterior.precision)

    @pytest.mark.parametrize("value", [0.0, 0.25, 0.75, 1.0])
    def test_the_code_has_its_weights(self, value):
        mean = sp.expand(self.mean(sp.Rational(value)))
        check_code([mean.coeff(x_0), mean.coeff(x_t)], lambda t, s: eq.ddim_mean_weights(value, t, s))

    def test_every_eta_keeps_the_marginal(self):
        """The mean's weight of x_0 and the variance are those of q(x_s | x_0), whatever η."""
        direction = sp.sqrt(1 - abar_s - self.eta**2 * self.small)
        # x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε has exactly the noise that the direction uses.
        assert is_zero(direction**2 + self.eta**2 * self.small - (1 - abar_s))

    def test_the_inversion_solves_the_deterministic_step(self):
        step = (self.mean(0)).subs(x_0, (x_t - sp.sqrt(1 - abar_t) * eps) / sp.sqrt(abar_t))
        (solution,) = sp.solve(sp.Eq(x_s, sp.expand(step)), x_t)
        weights = (sp.sqrt(alpha), sp.sqrt(1 - abar_t) - sp.sqrt(alpha) * sp.sqrt(1 - abar_s))
        assert is_zero(solution - weights[0] * x_s - weights[1] * eps)
        check_code(weights, eq.ddim_inversion_weights)


class TestOptimalVariance:
    def test_theorem_1_of_analytic_dpm_at_the_ddpm(self):
        """λ² + (√((1−ᾱ_t)/α) − √(1−ᾱ_s−λ²))² (1 − (1−ᾱ_t)Γ) at λ² = β̃ is β̃ + w² V, w the weight of x_0."""
        gamma = sp.symbols("Gamma", positive=True)
        small = beta * (1 - abar_s) / (1 - abar_t)
        root = sp.sqrt(alpha) * (1 - abar_s) / sp.sqrt(1 - abar_t)  # √(1−ᾱ_s−β̃), see TestDDIM
        theorem = small + (sp.sqrt((1 - abar_t) / alpha) - root) ** 2 * (1 - (1 - abar_t) * gamma)
        known = (1 - abar_t) / abar_t * (1 - (1 - abar_t) * gamma)
        weight = sp.sqrt(abar_s) * beta / (1 - abar_t)
        assert is_zero(theorem - (small + weight**2 * known))
        value = known.subs(gamma, sp.Rational(3, 4))
        check_code((value,), lambda t, s: (eq.variance_from_score_norm(torch.tensor(0.75, dtype=torch.float64), t),))
        variance = small + weight**2 * sp.Rational(1, 8)
        eighth = torch.tensor(0.125, dtype=torch.float64)
        check_code((variance,), lambda t, s: (eq.reverse_variance("analytic", t, s, eighth),))

    def test_fixed_large_is_right_for_unit_variance(self):
        """Data N(0, 1) has V = 1 − ᾱ_t, and then β̃ + w² V is β."""
        small = beta * (1 - abar_s) / (1 - abar_t)
        weight = sp.sqrt(abar_s) * beta / (1 - abar_t)
        assert is_zero(small + weight**2 * (1 - abar_t) - beta)


def test_snr():
    check_code((abar_t / (1 - abar_t),), lambda t, s: (eq.snr(t),))


def test_learned_range_is_the_geometric_interpolation():
    """Σ = exp(v log β + (1−v) log β̃), v = (o + 1)/2: β at o = 1, β̃ at o = −1, √(β β̃) at o = 0."""
    small, large = torch.tensor(0.01, dtype=torch.float64).log(), torch.tensor(0.04, dtype=torch.float64).log()
    for output, wanted in ((-1.0, 0.01), (1.0, 0.04), (0.0, 0.02)):
        variance = eq.learned_range_log_variance(torch.tensor(output, dtype=torch.float64), small, large).exp()
        assert variance.item() == pytest.approx(wanted, rel=1e-14)


class TestBound:
    def test_the_divergence(self):
        """∫ q log(q/p) is an expectation under q of a polynomial: E[x] = m_1, E[x²] = m_1² + σ_1²."""
        x, m1, m2, s1, s2 = sp.symbols("x mu_1 mu_2 sigma_1 sigma_2", positive=True)
        log_ratio = sp.log(s2 / s1) - (x - m1) ** 2 / (2 * s1**2) + (x - m2) ** 2 / (2 * s2**2)
        moments = {0: 1, 1: m1, 2: m1**2 + s1**2}
        polynomial = sp.Poly(sp.expand(log_ratio), x)
        kl = sum(c * moments[power] for (power,), c in polynomial.terms())
        rho, squared = sp.log(s2**2 / s1**2), (m1 - m2) ** 2 / s1**2
        formula = (rho + sp.exp(-rho) - 1 + sp.exp(-rho) * squared) / 2
        assert is_zero(sp.expand_log(kl - formula, force=True))
        point = {m1: sp.Rational(3, 4), m2: sp.Rational(1, 2), s1: sp.Rational(1, 2), s2: 2}
        numbers = [torch.tensor(float(value.subs(point)), dtype=torch.float64) for value in (squared, rho)]
        assert eq.gaussian_kl(*numbers).item() == pytest.approx(float(kl.subs(point)), rel=1e-14)

    def test_the_means_differ_by_the_gain_of_signal(self):
        """(μ̃ − μ_θ)²/β̃ = (SNR(s) − SNR(t)) (x_0 − x̂_0)²."""
        weight = sp.sqrt(abar_s) * beta / (1 - abar_t)
        small = beta * (1 - abar_s) / (1 - abar_t)
        gain = abar_s / (1 - abar_s) - abar_t / (1 - abar_t)
        assert is_zero(weight**2 / small - gain)
        check_code((gain,), lambda t, s: (eq.snr_gain(t, s),))

    def test_the_range_of_the_variance(self):
        small = beta * (1 - abar_s) / (1 - abar_t)
        assert is_zero(beta / small - (1 + beta * abar_s / (1 - abar_s)))
        check_code((sp.log(beta / small),), lambda t, s: (eq.log_variance_range(t, s),))

    @pytest.mark.parametrize("prediction_type", eq.PREDICTION_TYPES)
    def test_the_weight_of_the_error_of_x_0(self, prediction_type):
        ratio, cut = abar_t / (1 - abar_t), sp.Rational(5, 4)
        wanted = {"epsilon": 1 / ratio, "sample": 1, "v_prediction": 1 / (ratio + 1)}[prediction_type]
        for a, s in POINTS:
            log_t, numbers = math.log(a * s), {alpha: sp.Rational(a), abar_s: sp.Rational(s)}
            exact = (sp.Min(ratio, cut) * wanted).subs(numbers)
            value = eq.snr_loss_weight(prediction_type, torch.tensor(log_t, dtype=torch.float64), float(cut))
            assert value.item() == pytest.approx(float(exact), rel=1e-14)

    def test_the_series_of_a_narrow_interval(self):
        """log of the mean of e^{−wmu − w²u²/2} over u in (−1, 1), to w⁴; the next term is at most y⁶/315, y = w·max(1, |m|)."""
        w, m, u = sp.symbols("w m u")
        terms = sp.series(sp.exp(-w * m * u - w**2 * u**2 / 2), w, 0, 7).removeO()
        series = sp.expand(sp.series(sp.log(sp.integrate(sp.expand(terms), (u, -1, 1)) / 2), w, 0, 7).removeO())
        assert is_zero(series.coeff(w, 2) - (m**2 - 1) / 6)
        assert is_zero(series.coeff(w, 4) + (m**4 + 4 * m**2 - 2) / 180)
        following = sp.lambdify(m, series.coeff(w, 6))
        largest = max(abs(following(at / 100)) / max(1, at / 100) ** 6 for at in range(5000))
        assert 1 / largest == pytest.approx(315)
