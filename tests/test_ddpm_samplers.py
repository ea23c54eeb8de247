"""The samplers by name: the data of which everything is known, and what they refuse."""

import itertools
import math

import pytest
import torch
from conftest import make_unet
from diffusers import UNet2DModel
from test_scheduler_statistics import VARIANCE, alpha_bars, exact_moments, known_variance, oracle

from ddpm_hub import DDPMHubPipeline, DDPMHubScheduler, fast_solver
from ddpm_hub.ddpm_fast_solvers import FAST_SOLVERS, set_solver_timesteps
from ddpm_hub.ddpm_noise_sources import DrawnNoise
from ddpm_hub.ddpm_samplers import SAMPLERS, make_sampler


class Given:
    """A source of noise that is known."""

    def __init__(self, noise: torch.Tensor):
        self._noise = noise

    def draw(self, like: torch.Tensor) -> torch.Tensor:
        assert like.shape == self._noise.shape
        return self._noise


class Oracle(UNet2DModel):
    """The best prediction of ε for data N(0.3, 0.25 I), in a real U-Net's clothes."""

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        return (oracle(self.known, sample.double(), timestep).to(sample.dtype),)


def oracle_pipeline(**options) -> DDPMHubPipeline:
    config = {k: v for k, v in make_unet(num_class_embeds=None, size=64).config.items() if not k.startswith("_")}
    config["out_channels"] = 2 if options.get("variance_type") == "learned_range" else 1
    scheduler = DDPMHubScheduler(clip_sample=False, timestep_spacing="trailing", **options)
    unet = Oracle(**config)
    unet.known = scheduler
    pipeline = DDPMHubPipeline(unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def known_variances() -> list[float]:
    return [known_variance(abar) for abar in alpha_bars()[1:]]


class TestTheGaussianOracle:
    """Data of which everything is known, through the whole pipeline."""

    @pytest.mark.parametrize("steps", [10, 50, 1000])
    @pytest.mark.parametrize(
        ("variance", "eta"),
        [("fixed_small", 1.0), ("fixed_large", 1.0), ("analytic", 1.0), ("fixed_small", 0.0), ("fixed_large", 0.5)],
    )
    def test_ddpm_and_ddim_have_the_moments_that_their_steps_give(self, variance, eta, steps):
        known = {"original_sample_variances": known_variances()} if variance == "analytic" else {}
        pipeline = oracle_pipeline(variance_type=variance, **known)
        pipeline.scheduler.set_timesteps(steps)
        mean, exact = exact_moments(pipeline.scheduler, variance, eta)
        images = pipeline(5, num_inference_steps=steps, seed=0, eta=eta, output_type="sample").images
        # 20,480 values: standard errors of √(v/n) and v√(2/n); four of each, once in 16,000 draws.
        assert abs(images.mean().item() - mean) < 4 * (exact / images.numel()) ** 0.5
        assert abs(images.var().item() - exact) < 4 * exact * (2 / images.numel()) ** 0.5

    @pytest.mark.parametrize("sampler", ["dpm++", "unipc"])
    def test_the_solvers_near_the_data_with_the_square_of_the_steps(self, sampler):
        """Both are linear here: the variance they give is that of x_T times the square of a number, without chance."""
        pipeline = oracle_pipeline()
        x_t = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
        errors = []
        for steps in (10, 20, 40):
            images = pipeline(sample=x_t, sampler=sampler, num_inference_steps=steps, output_type="sample").images
            errors.append(abs((images.var() / x_t.var()).item() / VARIANCE - 1))
        assert errors[2] < 0.03
        # Second order: 16 times less for four times the steps, once the steps are small; 10 are not yet.
        assert errors[0] > 8 * errors[2]

    def test_the_solver_with_noise_nears_the_data_with_the_square_of_the_steps(self):
        """Linear, too: x_0 = c + a·x_T + Σ b_i·z_i. Row 0 has x_T = 1, row i has z_i = 1, the last has neither, which is c; so
        a² + Σ b_i² is the variance of what is drawn, without chance."""
        pipeline = oracle_pipeline()
        errors = []
        for steps in (20, 40, 80):
            sampler = make_sampler(pipeline.scheduler, "sde-dpm++", steps)
            x, *noises = torch.eye(steps + 2)[: steps + 1].reshape(steps + 1, -1, 1, 1, 1)
            for index, t in enumerate(sampler.timesteps):
                sampler.begin(index)
                x, _ = sampler.step(pipeline.unet(x, t)[0], index, x, Given(noises[index]))
            drawn = x.flatten().double()
            errors.append(abs((drawn[:-1] - drawn[-1]).square().sum().item() / VARIANCE - 1))
        assert errors[2] < 0.01
        # Second order, as above; with noise 20 steps are about as exact as 10 without.
        assert errors[0] > 8 * errors[2]

    def test_the_solver_with_noise_draws_from_the_posterior_of_a_known_image(self):
        """Of a network that sees x_0 each of its steps is q(x_s given x_t, x_0), which the DDPM has, from the same noise."""
        scheduler = DDPMHubScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False)
        own = torch.Generator().manual_seed(0)
        x_0, x = torch.rand(2, 1, 4, 4, generator=own) - 0.5, torch.randn(2, 1, 4, 4, generator=own)
        sampler = make_sampler(scheduler, "sde-dpm++", 8)
        bars = [scheduler.alphas_cumprod[t].item() for t in sampler.timesteps] + [1.0]
        for index, (bar, bar_s) in enumerate(itertools.pairwise(bars)):
            z = torch.randn(x.shape, generator=own)
            between, merged = bar / bar_s, (1 - bar_s) / (1 - bar)
            mean = math.sqrt(bar_s) * (1 - between) / (1 - bar) * x_0 + math.sqrt(between) * merged * x
            sampler.begin(index)
            x, estimate = sampler.step(x_0, index, x, Given(z))
            assert torch.equal(estimate, x_0)
            # float32 rounding of numbers up to about 4, and the solver's of log and exp.
            torch.testing.assert_close(x, mean + math.sqrt(merged * (1 - between)) * z, rtol=0, atol=2e-5)
        assert torch.equal(x, x_0)

    @pytest.mark.parametrize("sampler", ["dpm++", "sde-dpm++", "unipc"])
    def test_a_learned_variance_is_cut_off(self, sampler):
        """A network with twice the channels and the same prediction: the same samples."""
        pipeline, learned = oracle_pipeline(), oracle_pipeline(variance_type="learned_range")
        plain = type(learned.unet).forward
        learned.unet.forward = lambda *a, **k: (lambda out: (torch.cat([out, torch.full_like(out, 0.3)], 1),))(
            plain(learned.unet, *a, **k)[0]
        )
        options = {"seed": 1, "num_inference_steps": 5, "sampler": sampler, "output_type": "sample"}
        assert torch.equal(pipeline(1, **options).images, learned(1, **options).images)


class TestTimesteps:
    @pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
    @pytest.mark.parametrize("name", FAST_SOLVERS)
    def test_solvers_take_exactly_the_steps_that_are_asked_for(self, schedule, name):
        """The stock ones take one more for 62 of the n, or end at −1."""
        solver = fast_solver(DDPMHubScheduler(beta_schedule=schedule), name)
        for n in (1, 2, 10, 61, 103, 222, 223, 500, 995):
            set_solver_timesteps(solver, n)
            times = solver.timesteps.tolist()
            assert len(times) == len(solver.sigmas) - 1 == solver.num_inference_steps == n
            assert times == sorted(times, reverse=True)
            assert 0 <= times[-1] <= times[0] <= 999
            assert solver.sigmas[-1] == 0

    def test_more_steps_than_the_bound_of_lambda_leaves_are_refused(self):
        with pytest.raises(ValueError, match="`num_inference_steps` is 1000; it must be a whole number, from 1 to 996"):
            make_sampler(DDPMHubScheduler(beta_schedule="squaredcos_cap_v2"), "dpm++", 1000)

    def test_usual_steps(self):
        scheduler = DDPMHubScheduler(timestep_spacing="trailing")
        assert {name: len(make_sampler(scheduler, name).timesteps) for name in SAMPLERS} == {
            "ddpm": 1000, "ddim": 50, "dpm++": 20, "sde-dpm++": 20, "unipc": 20,
        }  # fmt: skip

    def test_a_start_in_the_middle_goes_on_as_if_it_had_been_reached(self):
        """With the exact ε of one image every sampler that adds no noise leads from anywhere to that image."""
        scheduler = DDPMHubScheduler(timestep_spacing="trailing", clip_sample=False)
        x_0, noise = torch.rand(1, 1, 4, 4) - 0.5, torch.randn(1, 1, 4, 4)
        for name in set(SAMPLERS) - {"sde-dpm++"}:
            sampler = make_sampler(scheduler, name, 10, None if name != "ddpm" else 0.0)
            sampler.begin(6)
            x_t = sampler.add_noise(x_0, noise, 6)
            for index in range(6, 10):
                x_t, estimate = sampler.step(noise, index, x_t, DrawnNoise(None))
                # x̂_0 = (x_t − σ ε)/√ᾱ, √ᾱ ≥ 0.3 here: float32 rounding, and the solvers' of log and exp.
                torch.testing.assert_close(estimate, x_0, rtol=0, atol=2e-5)
            torch.testing.assert_close(x_t, x_0, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dpm",), "`sampler` is 'dpm'; it must be one of 'ddpm', 'ddim', 'dpm[+][+]', 'sde-dpm[+][+]', 'unipc'"),
        (("ddim", 0), "`num_inference_steps` is 0"),
        (("unipc", 1001), "`num_inference_steps` is 1001; it must be a whole number, from 1 to 1000"),
        (("ddim", 10, 1.5), r"`eta` is 1.5; it must be a number from 0 \(DDIM\) to 1 \(DDPM\)"),
        (("ddim", 10, math.nan), "`eta` is nan"),
        (("dpm++", 10, 0.5), "`eta` is 0.5, but `sampler` = 'dpm[+][+]' adds no noise; use 'ddpm' or 'ddim'"),
        (("sde-dpm++", 10, 0), "`eta` is 0.0, but `sampler` = 'sde-dpm[+][+]' has its own noise; use 'ddpm' or 'ddim'"),
    ],
)
def test_what_does_not_exist(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_sampler(DDPMHubScheduler(), *arguments)
