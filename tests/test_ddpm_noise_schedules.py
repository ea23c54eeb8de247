"""Schedules against 60-digit arithmetic, the advice about ᾱ_T, and the spacings for every number of steps."""

import itertools
import math

import mpmath
import pytest
import torch
from mpmath import mp, mpf

from ddpm_hub import ddpm_noise_schedules as ns
from ddpm_hub.ddpm_equations import noise_rate, posterior_mean_weights, posterior_variance, signal_rate


@pytest.fixture(autouse=True)
def sixty_digits():
    with mp.workdps(60):
        yield


def relative_error(value: float, exact: mpf) -> float:
    return float(abs(mpf(value) / exact - 1)) if exact else abs(value)


def test_sigmoid():
    start, end, n = mpf(1e-4), mpf(0.02), 1000
    exact = [start + (end - start) / (1 + mpmath.exp(6 - mpf(12) * i / (n - 1))) for i in range(n)]
    betas = ns.make_betas("sigmoid", n, 1e-4, 0.02).tolist()
    # u = −6…6 is rounded to 4.4e-16, which e^u makes a relative error of the same size.
    assert max(relative_error(b, e) for b, e in zip(betas, exact, strict=True)) < 2e-15


class TestZeroTerminalSNR:
    T = 1000

    def exact(self) -> list[mpf]:
        """ᾱ' of Lin et al., algorithm 1, on the linear schedule."""
        start, end = mpf(1e-4), mpf(0.02)
        roots = [mpf(1)]
        for i in range(self.T):
            roots.append(roots[-1] * mpmath.sqrt(1 - (start + (end - start) * i / (self.T - 1))))
        scale = roots[1] / (roots[1] - roots[-1])
        return [mpf(1), *(((r - roots[-1]) * scale) ** 2 for r in roots[1:])]

    def computed(self) -> torch.Tensor:
        return ns.rescale_zero_terminal_snr(ns.log_alphas_cumprod(ns.make_betas("linear", self.T)))

    def test_every_marginal(self):
        exact, log_abar = self.exact(), self.computed()
        for t in range(1, self.T + 1):
            assert relative_error(signal_rate(log_abar[t]).item(), mpmath.sqrt(exact[t])) < 1e-12, t
            assert relative_error(noise_rate(log_abar[t]).item(), mpmath.sqrt(1 - exact[t])) < 1e-12, t

    def test_the_ends(self):
        log_abar, before = self.computed(), ns.log_alphas_cumprod(ns.make_betas("linear", self.T))
        assert log_abar[-1] == -math.inf
        assert log_abar[1] == before[1]
        assert (log_abar.diff() < 0).all()

    def test_the_first_reverse_step_is_finite(self):
        log_abar = self.computed()
        weight_x0, weight_xt = posterior_mean_weights(log_abar[-1], log_abar[-2])
        assert weight_xt == 0
        assert weight_x0 == signal_rate(log_abar[-2])
        assert posterior_variance(log_abar[-1], log_abar[-2]) == -torch.expm1(log_abar[-2])


class TestAdvice:
    @pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "sigmoid"])
    @pytest.mark.parametrize("num_train", [20, 200, 1000, 4000])
    def test_the_range_for_a_number_of_steps(self, schedule, num_train):
        start, end = ns.beta_range_for(num_train, schedule, final_alpha_bar=1e-4)
        assert 0 < start < end < 1
        final = ns.log_alphas_cumprod(ns.make_betas(schedule, num_train, start, end))[-1].exp().item()
        assert final == pytest.approx(1e-4, rel=1e-6)

    def test_the_paper_is_what_the_default_gives(self):
        """1e-4 to 0.02 at T = 1000 leave ᾱ_T = 4.04e-5, and 4e-5 is asked for: the same range to a part in a thousand."""
        start, end = ns.beta_range_for(1000)
        assert (start, end) == (pytest.approx(1e-4, rel=2e-3), pytest.approx(0.02, rel=2e-3))

    @pytest.mark.parametrize(
        ("end", "schedule"), [(0.02, "linear"), (0.002, "linear"), (0.02, "scaled_linear"), (0.5, "linear")]
    )
    def test_the_number_of_steps_for_a_range(self, end, schedule):
        enough = ns.num_train_timesteps_for(1e-4, end, schedule)
        finals = [ns.log_alphas_cumprod(ns.make_betas(schedule, n, 1e-4, end))[-1].exp() for n in (enough - 1, enough)]
        assert finals[1] <= ns.LARGEST_FINAL_ALPHA_BAR < finals[0]

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: ns.beta_range_for(1000, "squaredcos_cap_v2"), "`beta_schedule` is 'squaredcos_cap_v2'"),
            (lambda: ns.beta_range_for(1000, "linear", 2.0), "`final_alpha_bar` is 2.0"),
            (lambda: ns.beta_range_for(1000.5), "`num_train_timesteps` is 1000.5"),
            (lambda: ns.num_train_timesteps_for(0.0, 0.0), "`beta_start` is 0.0"),
            (lambda: ns.num_train_timesteps_for(float("nan"), 0.5), "`beta_start` is nan"),
            (lambda: ns.num_train_timesteps_for(0.02, 1e-4), "`beta_end` is 0.0001, below `beta_start`"),
            (lambda: ns.num_train_timesteps_for(1e-4, 0.02, "linear", 0.0), "`final_alpha_bar` is 0.0"),
        ],
    )
    def test_mistakes_are_refused(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()

    def test_too_few_steps_are_refused(self):
        with pytest.raises(ValueError, match="`num_train_timesteps` is 1: with so few steps no β"):
            ns.beta_range_for(1)


@pytest.mark.parametrize("num_train", [1, 7, 50, 1000])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_every_number_of_steps_is_distinct_falling_and_starts_at_noise(spacing, num_train):
    for n in range(1, num_train + 1):
        timesteps = ns.spaced_timesteps(spacing, num_train, n, 0)
        assert len(timesteps) == n
        assert all(t > s for t, s in itertools.pairwise(timesteps))
        assert timesteps[0] == num_train - 1
        assert timesteps[-1] >= 0


def test_an_unknown_spacing_is_refused():
    with pytest.raises(ValueError, match="`timestep_spacing` is 'even'"):
        ns.spaced_timesteps("even", 10, 5, 0)
