"""Samples against closed forms: the forward chain, and the Gaussian oracle through every kind of reverse step.

For data N(m, c) the best prediction is linear in x_t and known, so every chain stays Gaussian and its mean and variance
follow from a recursion that is written here with ordinary float64 numbers and no code of the package.
"""

import itertools
import math

import pytest
import torch
from scipy import stats

from ddpm_hub import DDPMHubScheduler, estimate_original_sample_variances, fast_solver
from ddpm_hub.ddpm_fast_solvers import FAST_SOLVERS

MEAN, VARIANCE = 0.3, 0.25


def alpha_bars(num_train: int = 1000) -> list[float]:
    """ᾱ_0…ᾱ_T of the linear schedule."""
    products = [1.0]
    for i in range(num_train):
        products.append(products[-1] * (1 - (1e-4 + (0.02 - 1e-4) * i / (num_train - 1))))
    return products


def known_variance(abar: float) -> float:
    """V_t, the variance of x_0 given x_t."""
    return VARIANCE * (1 - abar) / (abar * VARIANCE + 1 - abar)


def best_original(abar, x_t):
    """E[x_0 | x_t]."""
    return MEAN + math.sqrt(abar) * VARIANCE / (abar * VARIANCE + 1 - abar) * (x_t - math.sqrt(abar) * MEAN)


def oracle(ours, x_t, timestep):
    """The best prediction, of the type that the scheduler asks for."""
    abar = ours.alphas_cumprod[int(timestep)].item()
    x_0 = best_original(abar, x_t)
    if ours.config.prediction_type == "sample":
        return x_0
    if abar == 0:
        return -x_0  # v at ᾱ = 0
    noise = (x_t - math.sqrt(abar) * x_0) / math.sqrt(1 - abar)
    return noise if ours.config.prediction_type == "epsilon" else math.sqrt(abar) * noise - math.sqrt(1 - abar) * x_0


def probability_of_normal(x: torch.Tensor, mean: float, variance: float) -> float:
    """Of a Kolmogorov-Smirnov distance from N(mean, variance) as large as that of x, or larger."""
    return stats.kstest(((x.double() - mean) / math.sqrt(variance)).numpy(), "norm").pvalue


def exact_moments(ours, variance_type: str, eta: float = 1.0) -> tuple[float, float]:
    """Mean and variance of what a schedule returns when it starts from N(0, 1)."""
    abar = [1.0, *ours.alphas_cumprod.tolist()]
    times = [t + 1 for t in ours.timesteps.tolist()] + [0]
    mean, variance = 0.0, 1.0
    for t, s in itertools.pairwise(times):
        beta = 1 - abar[t] / abar[s]
        small, weight = beta * (1 - abar[s]) / (1 - abar[t]), math.sqrt(abar[s]) * beta / (1 - abar[t])
        direction = math.sqrt(max(0.0, 1 - abar[s] - eta**2 * small) / (1 - abar[t]))
        from_x0 = math.sqrt(abar[s]) - direction * math.sqrt(abar[t])
        slope = best_original(abar[t], 1.0) - best_original(abar[t], 0.0)
        mean = from_x0 * best_original(abar[t], mean) + direction * mean
        added = {"fixed_small": small, "fixed_large": beta, "analytic": small + weight**2 * known_variance(abar[t])}
        variance = (from_x0 * slope + direction) ** 2 * variance + (eta**2 * added[variance_type] if s else 0)
    return mean, variance


def sample_moments(ours, count: int, **kwargs) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    for timestep in ours.timesteps.tolist():
        output = oracle(ours, sample, timestep)
        sample = ours.step(output, timestep, sample, generator=generator, **kwargs).prev_sample
    return sample.mean().item(), sample.var().item()


def check(moments, exact, count: int) -> None:
    """Five standard deviations: of a mean √(σ²/n), of a variance σ²√(2/n)."""
    assert abs(moments[0] - exact[0]) < 5 * math.sqrt(exact[1] / count)
    assert abs(moments[1] - exact[1]) < 5 * exact[1] * math.sqrt(2 / count)


def scheduler(**kwargs) -> DDPMHubScheduler:
    return DDPMHubScheduler(**{"timestep_spacing": "linspace", "clip_sample": False} | kwargs)


def analytic(**kwargs) -> DDPMHubScheduler:
    variances = [known_variance(abar) for abar in alpha_bars()[1:]]
    return scheduler(variance_type="analytic", original_sample_variances=variances, **kwargs)


class TestForward:
    COUNT = 50_000

    @pytest.fixture(scope="class")
    @classmethod
    def chain(cls) -> dict[int, torch.Tensor]:
        """x_t at some t, one step of q(x_t | x_{t−1}) at a time from x_0 = 0.7, by `add_noise_between`."""
        ours, generator = scheduler(), torch.Generator().manual_seed(0)
        sample, kept = torch.full((cls.COUNT,), 0.7, dtype=torch.float64), {}
        for timestep in range(1000):
            noise = torch.randn(cls.COUNT, generator=generator, dtype=torch.float64)
            sample = ours.add_noise_between(sample, noise, timestep - 1, timestep)
            if timestep in (0, 9, 299, 999):
                kept[timestep] = sample
        return kept

    @pytest.mark.parametrize("timestep", [0, 9, 299, 999])
    def test_one_step_at_a_time_is_one_jump(self, chain, timestep):
        abar = alpha_bars()[timestep + 1]
        exact = math.sqrt(abar) * 0.7, 1 - abar
        check((chain[timestep].mean().item(), chain[timestep].var().item()), exact, self.COUNT)
        # p > 1e-4: once in ten thousand seeds a right chain fails, and this seed is fixed.
        assert probability_of_normal(chain[timestep], exact[0], exact[1]) > 1e-4

    def test_the_jump(self):
        ours, generator = scheduler(), torch.Generator().manual_seed(1)
        noise = torch.randn(self.COUNT, generator=generator, dtype=torch.float64)
        x_t = ours.add_noise(torch.full_like(noise, 0.7), noise, 299)
        abar = alpha_bars()[300]
        assert probability_of_normal(x_t, math.sqrt(abar) * 0.7, 1 - abar) > 1e-4

    def test_the_check_can_fail(self, chain):
        abar = alpha_bars()[300]
        wrong = math.sqrt(abar) * 0.7 + 0.03  # three hundredths to the side
        assert probability_of_normal(chain[299], wrong, 1 - abar) < 1e-4


class TestReverse:
    @pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
    @pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading"])
    @pytest.mark.parametrize("num_steps", [5, 10, 50, 1000])
    def test_every_prediction_type_spacing_and_number_of_steps(self, prediction_type, spacing, num_steps):
        ours = scheduler(prediction_type=prediction_type, timestep_spacing=spacing)
        ours.set_timesteps(num_steps)
        count = 100_000 if num_steps < 1000 else 20_000
        check(sample_moments(ours, count), exact_moments(ours, "fixed_small"), count)

    @pytest.mark.parametrize("name", ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "analytic"])
    @pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
    def test_every_fixed_variance_and_eta(self, name, eta):
        ours = analytic() if name == "analytic" else scheduler(variance_type=name)
        ours.set_timesteps(20)
        check(sample_moments(ours, 100_000, eta=eta), exact_moments(ours, name.removesuffix("_log"), eta), 100_000)

    @pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
    def test_zero_terminal_snr(self, prediction_type):
        ours = scheduler(prediction_type=prediction_type, rescale_betas_zero_snr=True)
        ours.set_timesteps(50)
        check(sample_moments(ours, 100_000), exact_moments(ours, "fixed_small"), 100_000)

    @pytest.mark.parametrize("learned", ["learned", "learned_range"])
    def test_a_network_that_learned_the_analytic_variance(self, learned):
        """The second half of the channels carries what makes the variance the analytic one."""
        ours, best = scheduler(variance_type=learned), analytic()
        ours.set_timesteps(20)
        best.set_timesteps(20)
        abar, generator = alpha_bars(), torch.Generator().manual_seed(0)
        sample = torch.randn(100_000, 1, generator=generator, dtype=torch.float64)
        times = [t + 1 for t in ours.timesteps.tolist()] + [0]
        for t, s in itertools.pairwise(times):
            beta = 1 - abar[t] / abar[s]
            small = beta * (1 - abar[s]) / (1 - abar[t])
            weight = math.sqrt(abar[s]) * beta / (1 - abar[t])
            wanted = small + weight**2 * known_variance(abar[t])
            said = math.log(wanted)
            if learned == "learned_range":
                said = 2 * (said - math.log(small or wanted)) / (math.log(beta) - math.log(small or beta / 2)) - 1
            output = torch.cat([oracle(ours, sample, t - 1), torch.full_like(sample, said)], dim=1)
            sample = ours.step(output, t - 1, sample, generator=generator).prev_sample
        check((sample.mean().item(), sample.var().item()), exact_moments(best, "analytic"), 100_000)


class TestAnalyticVariance:
    @pytest.mark.parametrize("num_steps", [2, 5, 10, 50, 1000])
    def test_the_variance_is_that_of_the_data_for_any_number_of_steps(self, num_steps):
        ours = analytic()
        ours.set_timesteps(num_steps)
        mean, variance = exact_moments(ours, "analytic")
        # Sampling error aside. V_1 = 1e-4 is what the last step cannot add; x_T has a mean of √ᾱ_T·0.3 that N(0, 1) lacks.
        assert abs(variance - VARIANCE) < 5e-4
        assert abs(mean - MEAN) < 5e-3
        count = 400_000 if num_steps < 1000 else 20_000
        check(sample_moments(ours, count), (mean, variance), count)

    @pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
    def test_the_estimate_from_data(self, prediction_type, quiet_schedule):
        ours = DDPMHubScheduler(
            num_train_timesteps=40, beta_start=2e-3, beta_end=0.4, prediction_type=prediction_type, clip_sample=False
        )
        generator = torch.Generator().manual_seed(0)
        samples = MEAN + math.sqrt(VARIANCE) * torch.randn(4000, 64, generator=generator, dtype=torch.float64)
        variances = estimate_original_sample_variances(
            ours, lambda x, t: oracle(ours, x, t[0]), samples, batch_size=1000, generator=generator, show_progress=False
        )
        for variance, abar in zip(variances, ours.alphas_cumprod.tolist(), strict=True):
            exact = known_variance(abar)
            assert abs(variance - exact) < 5 * exact * math.sqrt(2 / 64_000)
        better = DDPMHubScheduler.from_config(
            ours.config, variance_type="analytic", original_sample_variances=variances
        )
        assert better.config.original_sample_variances == variances

    def test_it_survives_saving(self, tmp_path):
        ours = analytic()
        ours.save_pretrained(tmp_path)
        loaded = DDPMHubScheduler.from_pretrained(tmp_path)
        ours.set_timesteps(10)
        loaded.set_timesteps(10)
        sample = torch.randn(4, 1, generator=torch.Generator().manual_seed(0))
        steps = [s.step(sample, 999, sample, torch.Generator().manual_seed(1)).prev_sample for s in (ours, loaded)]
        assert torch.equal(*steps)


# diffusers 0.42 gives its solvers' tables to NumPy in a way that NumPy 2 deprecates.
class TestFastSolvers:
    @pytest.mark.parametrize("name", FAST_SOLVERS)
    @pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
    @pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
    def test_the_known_answer(self, name, schedule, prediction_type):
        """A solver of order 2 is near the data's variance at 50 steps; x_T's mean is the rest."""
        ours = scheduler(beta_schedule=schedule, prediction_type=prediction_type)
        solver = fast_solver(ours, name)
        solver.set_timesteps(50)
        own = torch.Generator().manual_seed(0)
        sample = torch.randn(20_000, 1, 1, 1, generator=own, dtype=torch.float64)
        drawn = {"generator": own} if name == "sde-dpm++" else {}
        for timestep in solver.timesteps:
            sample = solver.step(oracle(ours, sample, timestep), timestep, sample, **drawn).prev_sample
        assert abs(sample.mean().item() - MEAN) < 5 * math.sqrt(VARIANCE / 20_000) + 5e-3
        assert abs(sample.var().item() - VARIANCE) < 5 * VARIANCE * math.sqrt(2 / 20_000) + 0.02 * VARIANCE

    @pytest.mark.parametrize("name", ["dpm++", "unipc"])
    def test_a_cosine_network_that_errs_does_not_saturate(self, name):
        """An error of 0.01 in ε; x̂_0 = x_t/√ᾱ − … makes 200 of it at T−1, and stock settings never come back."""
        from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

        stock = {"dpm++": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}[name]
        ours = DDPMHubScheduler(beta_schedule="squaredcos_cap_v2")
        saturated = {}
        for kind, solver in (("stock", stock.from_config(ours.config)), ("ours", fast_solver(ours, name))):
            solver.set_timesteps(20)
            sample = torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
            for timestep in solver.timesteps:
                output = oracle(ours, sample, timestep) + 0.01
                sample = solver.step(output, timestep, sample).prev_sample
            saturated[kind] = (sample.abs() >= 0.999).float().mean().item()
        exact = stats.norm.sf(0.999, MEAN, math.sqrt(VARIANCE)) + stats.norm.cdf(-0.999, MEAN, math.sqrt(VARIANCE))
        assert saturated["stock"] > 0.9
        assert saturated["ours"] < 2 * exact

    def test_a_bounded_start_keeps_the_error_small_without_clipping(self):
        """The error δ = 0.01 of ε is δ/√ᾱ = 1.6 of x̂_0 at λ = −5.1, and 200 where stock settings begin."""
        from diffusers import DPMSolverMultistepScheduler

        ours = scheduler(beta_schedule="squaredcos_cap_v2")
        means = []
        for solver in (DPMSolverMultistepScheduler.from_config(ours.config), fast_solver(ours)):
            solver.set_timesteps(20)
            sample = torch.randn(1000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
            for timestep in solver.timesteps:
                sample = solver.step(oracle(ours, sample, timestep) + 0.01, timestep, sample).prev_sample
            means.append(abs(sample.mean().item() - MEAN))
        assert means[0] > 10 * means[1]

    @pytest.mark.parametrize("name", FAST_SOLVERS)
    @pytest.mark.parametrize("kind", ["sigmoid", "analytic"])
    def test_schedules_and_variances_that_stock_classes_do_not_know(self, name, kind):
        ours = analytic() if kind == "analytic" else scheduler(beta_schedule="sigmoid")
        solver = fast_solver(ours, name)
        torch.testing.assert_close(solver.alphas_cumprod.double(), ours.alphas_cumprod, rtol=6e-5, atol=1e-9)
        assert "original_sample_variances" not in solver.config

    @pytest.mark.parametrize("learned", ["learned", "learned_range"])
    def test_a_learned_variance_is_refused(self, learned):
        with pytest.raises(ValueError, match=f"`variance_type` is '{learned}'; a solver"):
            fast_solver(scheduler(variance_type=learned))

    def test_what_a_stock_solver_cannot_do_is_refused(self):
        with pytest.raises(ValueError, match=r"`name` is 'euler'; it must be one of 'dpm\+\+', 'sde-dpm\+\+', 'unipc'"):
            fast_solver(scheduler(), "euler")
        with pytest.raises(ValueError, match=r"`clip_sample_range` is 2\.0"):
            fast_solver(scheduler(clip_sample=True, clip_sample_range=2.0))
