"""The scheduler: its coefficients in every dtype, its schedules of timesteps, its refusals, and the Gaussian oracle."""

import itertools
import re

import mpmath
import pytest
import torch
from mpmath import mp, mpf

from ddpm_hub import DDPMHubScheduler

# One rounding of the coefficient and one of each product and sum in float32 (2⁻²⁴ = 6e-8 each): at most 4 in a row.
FLOAT32 = 3e-7


def scheduler(**kwargs) -> DDPMHubScheduler:
    return DDPMHubScheduler(**{"timestep_spacing": "trailing", "clip_sample": False} | kwargs)


def exact_alpha_bars(num_train: int = 1000) -> list[mpf]:
    """ᾱ_0…ᾱ_T of the linear schedule, in 60 digits."""
    start, end = mpf(1e-4), mpf(0.02)
    products = [mpf(1)]
    for i in range(num_train):
        products.append(products[-1] * (1 - (start + (end - start) * i / (num_train - 1))))
    return products


@pytest.fixture(autouse=True)
def sixty_digits():
    with mp.workdps(60):
        yield


class TestCoefficientsThatAreApplied:
    """Each coefficient is read off the method itself: one input is 1, the others are 0."""

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, FLOAT32)])
    def test_add_noise_and_velocity(self, dtype, tolerance):
        abar, timesteps = exact_alpha_bars(), torch.arange(1000)
        one, zero = torch.ones(1000, 1, dtype=dtype), torch.zeros(1000, 1, dtype=dtype)
        ours = scheduler()
        signal = ours.add_noise(one, zero, timesteps)
        noise = ours.add_noise(zero, one, timesteps)
        velocity_x0 = ours.get_velocity(one, zero, timesteps)
        velocity_noise = ours.get_velocity(zero, one, timesteps)
        for t in range(1, 1001):
            root, rest = mpmath.sqrt(abar[t]), mpmath.sqrt(1 - abar[t])
            for value, exact in ((signal, root), (noise, rest), (velocity_x0, -rest), (velocity_noise, root)):
                assert abs(mpf(value[t - 1].item()) / exact - 1) < tolerance, t

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_low_precision_gets_noise_at_every_timestep(self, dtype):
        """Peers cast ᾱ to the sample's dtype before 1 − ᾱ, and the first timesteps get no noise at all."""
        abar, timesteps = exact_alpha_bars(), torch.arange(1000)
        noise = scheduler().add_noise(torch.zeros(1000, 1, dtype=dtype), torch.ones(1000, 1, dtype=dtype), timesteps)
        ulp = torch.finfo(dtype).eps
        for t in range(1, 1001):
            assert abs(mpf(noise[t - 1].item()) / mpmath.sqrt(1 - abar[t]) - 1) < ulp, t

    @pytest.mark.parametrize("num_steps", [1, 3, 61, 600, 1000])
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, FLOAT32)])
    def test_step(self, num_steps, dtype, tolerance):
        """The mean of every step of every kind of schedule: weights of x_t and ε, against 60 digits."""
        abar, ours = exact_alpha_bars(), scheduler()
        ours.set_timesteps(num_steps)
        times = [t + 1 for t in ours.timesteps.tolist()] + [0]
        one, zero = torch.ones(1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
        for t, s in itertools.pairwise(times):
            beta = 1 - abar[t] / abar[s]
            from_x0 = mpmath.sqrt(abar[s]) * beta / (1 - abar[t])
            from_xt = mpmath.sqrt(abar[t] / abar[s]) * (1 - abar[s]) / (1 - abar[t])
            exact_original = 1 / mpmath.sqrt(abar[t])
            exact_noise = -mpmath.sqrt(1 - abar[t]) / mpmath.sqrt(abar[t])
            variance = beta * (1 - abar[s]) / (1 - abar[t])
            a, original = ours.step(zero, t - 1, one, generator=torch.Generator().manual_seed(0), return_dict=False)
            b, noise = ours.step(one, t - 1, zero, generator=torch.Generator().manual_seed(0), return_dict=False)
            z, _ = ours.step(zero, t - 1, zero, generator=torch.Generator().manual_seed(0), return_dict=False)
            drawn = torch.randn(1, 1, dtype=dtype, generator=torch.Generator().manual_seed(0)).item()
            assert abs(mpf(original.item()) / exact_original - 1) < tolerance
            assert abs(mpf(noise.item()) / exact_noise - 1) < tolerance
            std = mpmath.sqrt(variance)
            assert abs(mpf(z.item()) - std * mpf(drawn)) <= tolerance * std * abs(mpf(drawn))
            # The sums are compared on the scale of their terms.
            scale = abs(from_x0 * exact_original) + from_xt + std * abs(mpf(drawn))
            assert abs(mpf(a.item()) - (from_x0 * exact_original + from_xt + std * drawn)) < tolerance * scale
            assert abs(mpf(b.item()) - (from_x0 * exact_noise + std * drawn)) < tolerance * scale


class TestTimesteps:
    @pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading"])
    def test_every_number_of_steps(self, spacing):
        """n distinct, falling timesteps inside 0…T−1, for every n; the first is noise, or the number is refused."""
        ours, refused = scheduler(timestep_spacing=spacing), []
        for n in range(1, 1001):
            if spacing == "leading" and ours.alphas_cumprod[(n - 1) * (1000 // n)] > 1e-2:
                with pytest.raises(ValueError, match="'trailing'"):
                    ours.set_timesteps(n)
                refused.append(n)
                continue
            ours.set_timesteps(n)
            timesteps = ours.timesteps.tolist()
            assert len(timesteps) == n
            assert all(t > s for t, s in itertools.pairwise(timesteps))
            assert 0 <= timesteps[-1] <= timesteps[0] < 1000
            if spacing != "leading":
                assert timesteps[0] == 999
        assert {1, 501, 600} <= set(refused) or spacing != "leading"

    def test_spacings_are_those_of_the_field(self):
        """Lin et al. 2023, table 2, for T = 1000 and 10 steps."""
        wanted = {
            "leading": [900, 800, 700, 600, 500, 400, 300, 200, 100, 0],
            "trailing": [999, 899, 799, 699, 599, 499, 399, 299, 199, 99],
            "linspace": [999, 888, 777, 666, 555, 444, 333, 222, 111, 0],
        }
        for spacing, timesteps in wanted.items():
            ours = scheduler(timestep_spacing=spacing)
            ours.set_timesteps(10)
            assert ours.timesteps.tolist() == timesteps

    def test_given_betas_say_how_many_timesteps_there_are(self, quiet_schedule):
        ours = scheduler(trained_betas=[0.1, 0.2, 0.3])
        assert len(ours) == ours.config.num_train_timesteps == 3
        ours.set_timesteps(3)
        assert ours.timesteps.tolist() == [2, 1, 0]


class TestStep:
    @pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
    @pytest.mark.parametrize("spacing", ["trailing", "linspace"])
    def test_the_last_step_adds_no_noise(self, variance_type, spacing):
        ours = scheduler(variance_type=variance_type, timestep_spacing=spacing)
        ours.set_timesteps(7)
        sample, output = torch.randn(2, 1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
        last = int(ours.timesteps[-1])
        results = [ours.step(output, last, sample).prev_sample for _ in range(2)]
        assert torch.equal(*results)
        assert torch.equal(results[0], ours.step(output, last, sample).pred_original_sample)

    def test_an_image_depends_on_its_own_generator_alone(self):
        ours = scheduler()
        ours.set_timesteps(10)
        sample = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        generators = [torch.Generator().manual_seed(i) for i in range(3)]
        together = ours.step(sample, 999, sample, generator=generators).prev_sample
        alone = ours.step(sample[1:2], 999, sample[1:2], generator=[torch.Generator().manual_seed(1)]).prev_sample
        assert torch.equal(together[1:2], alone)

    def test_it_changes_nothing_in_the_scheduler(self):
        ours = scheduler()
        ours.set_timesteps(10)
        before = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in vars(ours).items()}
        sample = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        for t in ours.timesteps:
            sample = ours.step(sample, t, sample).prev_sample
        assert vars(ours).keys() == before.keys()
        for key, value in vars(ours).items():
            same = torch.equal(value, before[key]) if isinstance(value, torch.Tensor) else value == before[key]
            assert same, key

    def test_clipping_bounds_the_original_sample(self):
        ours = scheduler(clip_sample=True, clip_sample_range=0.5)
        ours.set_timesteps(10)
        big = torch.full((1, 1, 2, 2), 9.0)
        assert ours.step(-big, 999, big).pred_original_sample.max() == 0.5

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_the_dtype_is_kept(self, dtype):
        ours = scheduler()
        ours.set_timesteps(4)
        sample = torch.zeros(1, 1, 2, 2, dtype=dtype)
        assert ours.step(sample, 999, sample).prev_sample.dtype == dtype
        assert ours.add_noise(sample, sample, torch.tensor([5])).dtype == dtype


class TestGaussianOracle:
    """For data N(0, c) with c = 0.25 the best prediction is known, and then what every chain must return.

    E[x_0 | x_t] = √ᾱ c x_t / (ᾱ c + 1 − ᾱ), and the rest follows from x_t = √ᾱ x_0 + √(1−ᾱ) ε. Every step is linear,
    so the variance of the result has a closed form, which is computed here in 60 digits from x_T ~ N(0, 1).
    """

    SPREAD = mpf("0.25")
    COUNT = 200_000

    @classmethod
    def predict(cls, ours: DDPMHubScheduler, x_t: torch.Tensor, timestep: int) -> torch.Tensor:
        abar, c = ours.alphas_cumprod[timestep].item(), float(cls.SPREAD)
        x_0 = abar**0.5 * c / (abar * c + 1 - abar) * x_t
        noise = (x_t - abar**0.5 * x_0) / (1 - abar) ** 0.5
        velocity = abar**0.5 * noise - (1 - abar) ** 0.5 * x_0
        return {"epsilon": noise, "sample": x_0, "v_prediction": velocity}[ours.config.prediction_type]

    @classmethod
    def exact_variance(cls, times: list[int], variance_type: str) -> mpf:
        abar, c, variance = exact_alpha_bars(), cls.SPREAD, mpf(1)
        for t, s in itertools.pairwise([*times, 0]):
            beta = 1 - abar[t] / abar[s]
            gain = mpmath.sqrt(abar[s]) * beta / (1 - abar[t]) * mpmath.sqrt(abar[t]) * c / (abar[t] * c + 1 - abar[t])
            gain += mpmath.sqrt(abar[t] / abar[s]) * (1 - abar[s]) / (1 - abar[t])
            added = beta * (1 - abar[s]) / (1 - abar[t]) if variance_type == "fixed_small" else beta
            variance = gain**2 * variance + (added if s else 0)
        return variance

    @pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
    @pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
    @pytest.mark.parametrize("num_steps", [10, 50, 1000])
    def test_the_variance_of_the_samples(self, num_steps, variance_type, prediction_type):
        ours = scheduler(prediction_type=prediction_type, variance_type=variance_type)
        ours.set_timesteps(num_steps)
        generator = torch.Generator().manual_seed(0)
        count = self.COUNT if num_steps < 1000 else self.COUNT // 10
        sample = torch.randn(count, generator=generator, dtype=torch.float64)
        for timestep in ours.timesteps.tolist():
            output = self.predict(ours, sample, timestep)
            sample = ours.step(output, timestep, sample, generator=generator).prev_sample
        exact = float(self.exact_variance([t + 1 for t in ours.timesteps.tolist()], variance_type))
        # The sample variance of n normal numbers has standard deviation σ²·√(2/n); five of those.
        assert abs(sample.var().item() - exact) < 5 * exact * (2 / count) ** 0.5

    def test_the_known_variances(self):
        """What the closed form gives for 10, 50 and 1000 steps: too narrow, too wide, and right in the end."""
        for variance_type, wanted in (("fixed_small", (0.104, 0.196, 0.246)), ("fixed_large", (0.359, 0.268, 0.251))):
            for num_steps, variance in zip((10, 50, 1000), wanted, strict=True):
                ours = scheduler(timestep_spacing="linspace")
                ours.set_timesteps(num_steps)
                times = [t + 1 for t in ours.timesteps.tolist()]
                assert abs(float(self.exact_variance(times, variance_type)) - variance) < 6e-4


class TestConfiguration:
    def test_it_survives_saving(self, tmp_path):
        ours = scheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")
        ours.save_pretrained(tmp_path)
        loaded = DDPMHubScheduler.from_pretrained(tmp_path)
        for key in (key for key in ours.config if not key.startswith("_")):
            assert loaded.config[key] == ours.config[key]
        assert torch.equal(loaded.alphas_cumprod, ours.alphas_cumprod)

    def test_shared_defaults_are_those_of_diffusers(self):
        """Values left at a default are not passed on by `from_config`, so another default would change silently."""
        from diffusers import DDPMScheduler

        stock, ours = DDPMScheduler().config, DDPMHubScheduler().config
        shared = {k for k in ours if k in stock and not k.startswith("_")}
        assert {k: ours[k] for k in shared} == {k: stock[k] for k in shared}

    @pytest.mark.parametrize("kwargs", [{"beta_end": 0.002}, {"num_train_timesteps": 200}])
    def test_a_schedule_that_keeps_the_data_warns_and_the_remedies_work(self, kwargs):
        with pytest.warns(UserWarning, match=r"ᾱ_T = 0\.\d+ at T = ") as caught:
            scheduler(**kwargs)
        assert caught[0].filename == __file__
        text = str(caught[0].message)
        enough = int(re.search(r"these β need T = (\d+)", text)[1])
        start, end = (float(re.search(rf"`{name}` = ([\d.e-]*\d)", text)[1]) for name in ("beta_start", "beta_end"))
        scheduler(**kwargs | {"num_train_timesteps": enough})  # warnings are errors in the tests
        scheduler(**kwargs | {"beta_start": start, "beta_end": end})
        with pytest.warns(UserWarning, match="ᾱ_T"):
            scheduler(**kwargs | {"num_train_timesteps": enough - 1})

    def test_given_betas_that_keep_the_data_warn(self):
        with pytest.warns(UserWarning, match="larger `trained_betas`"):
            scheduler(trained_betas=[0.1] * 9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scheduler(num_train_timesteps=0), "`num_train_timesteps` is 0; it must be a whole number, at least 1"),
        (lambda: scheduler(beta_start=0.0), "`beta_start` is 0.0"),
        (lambda: scheduler(beta_end=1.0), "`beta_end` is 1.0"),
        (lambda: scheduler(beta_start=float("nan")), "`beta_start` is nan"),
        (lambda: scheduler(beta_start=0.02, beta_end=1e-4), "`beta_end` is 0.0001, below `beta_start`"),
        (lambda: scheduler(beta_schedule="cosine"), "`beta_schedule` is 'cosine'.*'squaredcos_cap_v2'"),
        (lambda: scheduler(variance_type="fixed_smal"), "`variance_type` is 'fixed_smal'.*'fixed_small'"),
        (lambda: scheduler(prediction_type="eps"), "`prediction_type` is 'eps'.*'epsilon'"),
        (lambda: scheduler(timestep_spacing="even"), "`timestep_spacing` is 'even'.*'trailing'"),
        (lambda: scheduler(trained_betas=[]), "`trained_betas` has shape"),
        (lambda: scheduler(trained_betas=[0.1, 1.5]), "`trained_betas` contains 1.5"),
        (lambda: scheduler(trained_betas=[0.1, float("nan")]), "`trained_betas` contains nan"),
        (lambda: scheduler(trained_betas=[0.2, 0.1]), "`trained_betas` falls"),
        (lambda: scheduler(clip_sample=True, clip_sample_range=0.0), "`clip_sample_range` is 0.0"),
        (lambda: scheduler().set_timesteps(0), "`num_inference_steps` is 0; it must be a whole number, from 1 to 1000"),
        (
            lambda: scheduler().set_timesteps(1001),
            "`num_inference_steps` is 1001; it must be a whole number, from 1 to 1000",
        ),
        (lambda: scheduler(timestep_spacing="leading").set_timesteps(600), "timestep 599, where ᾱ = 0.0259"),
        (lambda: scheduler(timestep_spacing="leading", steps_offset=1).set_timesteps(1000), "`steps_offset` is 1"),
        (lambda: scheduler().step(torch.zeros(1), 999, torch.zeros(1)), "before `set_timesteps`"),
        (lambda: stepped(998), "`timestep` is 998, which is not in the schedule of 10 steps"),
        (lambda: stepped(999, torch.zeros(2, 1)), r"`model_output` has shape \(2, 1\)"),
        (lambda: noised(torch.tensor([1000])), "`timesteps` runs from 1000 to 1000; it must lie in 0…999"),
        (lambda: noised(torch.tensor([-1])), "`timesteps` runs from -1"),
        (lambda: noised(torch.tensor([0.5])), "`timesteps` has dtype torch.float32"),
        (lambda: noised(torch.tensor([1, 2, 3])), r"`timesteps` has shape \(3,\)"),
        (lambda: noised(torch.tensor([1]), torch.zeros(1, 2)), r"`noise` has shape \(1, 2\)"),
    ],
)
def test_what_cannot_work_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def stepped(timestep, output=None):
    ours = scheduler()
    ours.set_timesteps(10)
    sample = torch.zeros(1, 1)
    return ours.step(sample if output is None else output, timestep, sample)


def noised(timesteps, noise=None):
    sample = torch.zeros(1, 1)
    return scheduler().add_noise(sample, sample if noise is None else noise, timesteps)
