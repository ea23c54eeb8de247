"""The scheduler: its coefficients in every dtype, its timesteps, its parts against each other, and its refusals."""

import concurrent.futures
import copy
import inspect
import itertools
import math
import pickle
import re
from decimal import Decimal
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
import torch._dynamo.testing
from conftest import make_unet
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from mpmath import mp, mpf

from ddpm_hub import DDPMHubScheduler
from ddpm_hub.ddpm_noise_schedules import num_train_timesteps_for
from ddpm_hub.ddpm_sample_arithmetic import dynamic_threshold

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

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_low_precision_is_the_exact_result_rounded(self, dtype):
        """Every coefficient of `get_velocity` and `step` within one unit in the last place of the sample's type."""
        abar, timesteps = exact_alpha_bars(), torch.arange(1000)
        one, zero = torch.ones(1000, 1, dtype=dtype), torch.zeros(1000, 1, dtype=dtype)
        ours, ulp = scheduler(), torch.finfo(dtype).eps
        ours.set_timesteps(1000)
        velocity = ours.get_velocity(one, zero, timesteps), ours.get_velocity(zero, one, timesteps)
        for t in range(1, 1001):
            root, rest = mpmath.sqrt(abar[t]), mpmath.sqrt(1 - abar[t])
            beta = 1 - abar[t] / abar[t - 1]
            from_x0 = mpmath.sqrt(abar[t - 1]) * beta / (1 - abar[t])
            from_xt = mpmath.sqrt(abar[t] / abar[t - 1]) * (1 - abar[t - 1]) / (1 - abar[t])
            a, b, z = one[:1], zero[:1], zero[:1]
            of_sample, original = ours.step(b, t - 1, a, return_dict=False, variance_noise=z)
            of_output, noise = ours.step(a, t - 1, b, return_dict=False, variance_noise=z)
            of_noise = ours.step(b, t - 1, b, variance_noise=a).prev_sample
            pairs = [
                (velocity[0][t - 1], -rest),
                (velocity[1][t - 1], root),
                (original, 1 / root),
                (noise, -rest / root),
                (of_sample, from_x0 / root + from_xt),
                (of_output, -from_x0 * rest / root),
            ]
            if t > 1:
                pairs.append((of_noise, mpmath.sqrt(beta * (1 - abar[t - 1]) / (1 - abar[t]))))
            for value, exact in pairs:
                if abs(exact) > torch.finfo(dtype).tiny:  # below it float16 has fewer digits
                    assert abs(mpf(value.item()) / exact - 1) < ulp, t

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


class TestTimestepTensors:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_each_sample_may_have_its_own_time(self, dtype):
        ours = scheduler(clip_sample=True)
        ours.set_timesteps(10)
        generator = torch.Generator().manual_seed(0)
        sample, output, noise = torch.randn(3, 4, 1, 5, 5, generator=generator).to(dtype)
        times = torch.tensor([999, 499, 99, 499])
        together = ours.step(output, times, sample, variance_noise=noise)
        for i, t in enumerate(times.tolist()):
            one = slice(i, i + 1)
            alone = ours.step(output[one], t, sample[one], variance_noise=noise[one])
            # The same products, which one path fuses with the sum and the other does not: two roundings.
            close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
            torch.testing.assert_close(together.prev_sample[one], alone.prev_sample, **close)
            torch.testing.assert_close(together.pred_original_sample[one], alone.pred_original_sample, **close)

    def test_the_last_step_of_one_sample_adds_no_noise_to_it(self):
        ours = scheduler()
        ours.set_timesteps(10)
        sample, times = torch.zeros(2, 1), torch.tensor([999, 99])
        moved = ours.step(sample, times, sample, torch.Generator().manual_seed(0)).prev_sample
        assert moved[0] != 0
        assert moved[1] == 0

    @pytest.mark.parametrize(
        "timestep", [499, torch.tensor(499), torch.tensor([499]), np.int64(499), torch.tensor(499, dtype=torch.int32)]
    )
    def test_one_time_in_any_form(self, timestep):
        ours = scheduler()
        ours.set_timesteps(10)
        sample = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        wanted = ours.step(sample, 499, sample, torch.Generator().manual_seed(1)).prev_sample
        assert torch.equal(ours.step(sample, timestep, sample, torch.Generator().manual_seed(1)).prev_sample, wanted)

    @pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
    def test_eta_with_a_time_for_each_sample(self, eta):
        ours = scheduler()
        ours.set_timesteps(10)
        sample, output, noise = torch.randn(3, 2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
        together = ours.step(output, torch.tensor([999, 199]), sample, eta=eta, variance_noise=noise).prev_sample
        for i, t in enumerate((999, 199)):
            one = slice(i, i + 1)
            alone = ours.step(output[one], t, sample[one], eta=eta, variance_noise=noise[one]).prev_sample
            torch.testing.assert_close(together[one], alone, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("eta", [0.0, 0.5])
    def test_the_weights_of_eta_and_of_the_inversion_are_exact_for_each_sample(self, eta):
        """They are differences of nearly equal numbers, and must not be taken between numbers rounded to float32."""
        abar, ours, t = exact_alpha_bars(), scheduler(prediction_type="sample"), torch.arange(1000)
        ours.set_timesteps(1000)
        one, zero = torch.ones(1000, 1), torch.zeros(1000, 1)
        from_x0 = ours.step(one, t, zero, eta=eta, variance_noise=zero).prev_sample
        from_xt = ours.step(zero, t, one, eta=eta, variance_noise=zero).prev_sample
        noise_weight = scheduler()
        noise_weight.set_timesteps(1000)
        inverse = noise_weight.step_inverse(one, t, zero), noise_weight.step_inverse(zero, t, one)
        for i in range(1, 1001):
            beta = 1 - abar[i] / abar[i - 1]
            small = beta * (1 - abar[i - 1]) / (1 - abar[i])
            direction = mpmath.sqrt((1 - abar[i - 1] - mpf(eta) ** 2 * small) / (1 - abar[i])) if i > 1 else mpf(0)
            exact = mpmath.sqrt(abar[i - 1]) - direction * mpmath.sqrt(abar[i])
            root = mpmath.sqrt(abar[i] / abar[i - 1])
            pairs = [
                (from_x0, exact),
                (inverse[0], mpmath.sqrt(1 - abar[i]) - root * mpmath.sqrt(1 - abar[i - 1])),
                (inverse[1], root),
            ]
            for value, wanted in pairs if i == 1 else [*pairs, (from_xt, direction)]:
                assert abs(mpf(value[i - 1].item()) / wanted - 1) < FLOAT32, i

    def test_uint8_timesteps_are_integers_too(self):
        ours, sample = scheduler(), torch.ones(1, 1)
        small = ours.add_noise(sample, sample, torch.tensor([200], dtype=torch.uint8))
        assert torch.equal(small, ours.add_noise(sample, sample, torch.tensor([200])))


class TestOneStepTwice:
    """The public parts against each other."""

    def test_eta_1_is_the_step(self):
        ours = scheduler()
        ours.set_timesteps(10)
        sample = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        first, second = (
            ours.step(sample, 499, sample, torch.Generator().manual_seed(1), **k).prev_sample for k in ({}, {"eta": 1})
        )
        assert torch.equal(first, second)

    @pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
    def test_inversion_undoes_the_deterministic_step(self, prediction_type):
        """With the network's answer unchanged, x_t comes back, to the last steps as well."""
        ours = scheduler(prediction_type=prediction_type)
        ours.set_timesteps(10)
        x_t, noise = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for t in ours.timesteps.tolist():
            answer = ours.convert_prediction(noise, x_t, t, prediction_type, "epsilon")
            x_s = ours.step(answer, t, x_t, eta=0).prev_sample
            same_noise = ours.convert_prediction(noise, x_s, t, prediction_type, "epsilon")
            # √(ᾱ_t/ᾱ_s) takes back what 1/√ᾱ_t of up to 157 put on a rounding of 1e-16.
            torch.testing.assert_close(ours.step_inverse(same_noise, t, x_s), x_t, rtol=0, atol=1e-12)

    def test_the_posterior_is_the_mean_of_the_step(self):
        ours = scheduler(prediction_type="sample")
        ours.set_timesteps(timesteps=[700, 300, 20])
        x_t, x_0 = torch.randn(2, 2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        mean, variance = ours.posterior(x_t, x_0, 700, 300)
        without_noise = ours.step(x_0, 700, x_t, variance_noise=torch.zeros_like(x_t)).prev_sample
        with_noise = ours.step(x_0, 700, x_t, variance_noise=torch.ones_like(x_t)).prev_sample
        torch.testing.assert_close(without_noise, mean, rtol=0, atol=1e-14)
        torch.testing.assert_close(with_noise - mean, variance.sqrt().expand_as(mean), rtol=0, atol=1e-14)
        clean, nothing = ours.posterior(x_t, x_0, torch.tensor([700, 3]), torch.tensor([-1, -1]))
        assert torch.equal(clean, x_0)
        assert torch.equal(nothing, torch.zeros(2, dtype=torch.float64))

    def test_noise_in_two_jumps_has_the_variance_of_one(self):
        ours = scheduler()
        one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        signal = ours.add_noise_between(ours.add_noise(one, zero, 99), zero, 99, 499)
        first = ours.add_noise_between(ours.add_noise(zero, one, 99), zero, 99, 499)
        second = ours.add_noise_between(zero, one, 99, 499)
        torch.testing.assert_close(signal, ours.add_noise(one, zero, 499), rtol=1e-14, atol=0)
        torch.testing.assert_close((first**2 + second**2).sqrt(), ours.add_noise(zero, one, 499), rtol=1e-13, atol=0)
        assert torch.equal(ours.add_noise_between(one, one, 99, 99), one)

    def test_snr(self):
        ours, abar = scheduler(), exact_alpha_bars()
        for t, value in enumerate(ours.snr(torch.arange(1000)).tolist(), start=1):
            assert abs(mpf(value) / (abar[t] / (1 - abar[t])) - 1) < 1e-12
        assert scheduler(prediction_type="sample", rescale_betas_zero_snr=True).snr(999) == 0

    def test_every_conversion_and_back(self):
        ours = scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
        x_0, noise = torch.randn(2, 1000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        t = torch.arange(1000)
        x_t, v = ours.add_noise(x_0, noise, t), ours.get_velocity(x_0, noise, t)
        torch.testing.assert_close(ours.convert_prediction(v, x_t, t, "sample"), x_0, rtol=0, atol=1e-14)
        torch.testing.assert_close(ours.convert_prediction(v, x_t, t, "epsilon"), noise, rtol=0, atol=1e-14)
        # x_0 and ε are read off x_t, whose rounding is divided by √(1−ᾱ_1) = 0.01, or by √ᾱ_{T−1} = 6e-5.
        torch.testing.assert_close(ours.convert_prediction(x_0, x_t, t, "epsilon", "sample"), noise, rtol=0, atol=1e-13)
        torch.testing.assert_close(
            ours.convert_prediction(x_0, x_t, t, "v_prediction", "sample"), v, rtol=0, atol=1e-13
        )
        early = slice(0, 999)
        x_0_again = ours.convert_prediction(noise[early], x_t[early], t[early], "sample", "epsilon")
        torch.testing.assert_close(x_0_again, x_0[early], rtol=0, atol=1e-10)

    def test_training_targets(self):
        x_0, noise, t = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 10, 500, 999])
        targets = {
            name: scheduler(prediction_type=name).training_target(x_0, noise, t)
            for name in ("epsilon", "sample", "v_prediction")
        }
        assert torch.equal(targets["epsilon"], noise)
        assert torch.equal(targets["sample"], x_0)
        assert torch.equal(targets["v_prediction"], scheduler().get_velocity(x_0, noise, t))

    def test_predict_original_sample_is_what_step_returns(self):
        ours = scheduler(clip_sample=True)
        ours.set_timesteps(10)
        sample, output = torch.randn(2, 2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        estimate = ours.predict_original_sample(output, sample, 499)
        torch.testing.assert_close(estimate, ours.step(output, 499, sample).pred_original_sample, rtol=0, atol=1e-14)

    def test_dynamic_thresholding(self):
        """Saharia et al., section 2.3: s is the quantile of |x̂_0|, at least 1 and at most the largest; x̂_0 clamped, over s."""
        ours = scheduler(
            prediction_type="sample", thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=3.0
        )
        ours.set_timesteps(10)
        output = torch.stack([torch.linspace(-2, 2, 101), torch.linspace(-9, 9, 101), torch.linspace(-0.5, 0.5, 101)])
        estimate = ours.step(output, 499, output).pred_original_sample
        # |x| is evenly spaced from 0 to its largest value, each twice but for 0: the 0.9 quantile is 0.9 of the largest.
        for row, threshold in zip(range(3), (1.8, 3.0, 1.0), strict=True):
            torch.testing.assert_close(estimate[row], (output[row] / threshold).clamp(-1, 1), rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("ratio", [0.001, 0.5, 0.995, 1.0])
    @pytest.mark.parametrize("pixels", [1, 2, 7, 1000])
    def test_the_threshold_is_the_quantile_of_each_row(self, ratio, pixels):
        """As NumPy has it; 40 roundings of float64 are allowed for its other way of interpolating."""
        rows = 3 * torch.randn(3, pixels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        thresholds = np.quantile(rows.abs().numpy(), ratio, axis=1).clip(1, 2)
        expected = (rows / torch.from_numpy(thresholds)[:, None]).clamp(-1, 1)
        torch.testing.assert_close(dynamic_threshold(rows, ratio, largest=2.0), expected, rtol=1e-14, atol=0)


class TestLearnedVariance:
    @pytest.mark.parametrize("said", [-1.0, 0.0, 1.0])
    def test_the_range(self, said):
        """β̃ at −1, β at 1, their geometric mean at 0: against exact arithmetic."""
        ours, abar = scheduler(variance_type="learned_range"), exact_alpha_bars()
        ours.set_timesteps(timesteps=[499, 99])
        sample = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
        output = torch.cat([sample, torch.full_like(sample, said)], dim=1)
        moved = ours.step(output, 499, sample, variance_noise=torch.ones_like(sample)).prev_sample
        beta = 1 - abar[500] / abar[100]
        small = beta * (1 - abar[100]) / (1 - abar[500])
        exact = mpmath.sqrt({-1.0: small, 0.0: mpmath.sqrt(small * beta), 1.0: beta}[said])
        assert abs(mpf(moved[0, 0, 0, 0].item()) / exact - 1) < 1e-12

    def test_the_last_step_adds_no_noise(self):
        for kind in ("learned", "learned_range"):
            ours = scheduler(variance_type=kind)
            ours.set_timesteps(5)
            sample = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
            output, last = torch.cat([sample, sample], dim=1), int(ours.timesteps[-1])
            state = ours.step(output, last, sample)
            assert torch.equal(state.prev_sample, state.pred_original_sample)
            both = ours.step(output, torch.tensor([last, last]), sample)
            assert torch.equal(both.prev_sample, both.pred_original_sample)


class TestSharing:
    def test_threads_share_one_scheduler(self):
        ours = scheduler(clip_sample=True)
        ours.set_timesteps(100)

        def chain(seed: int) -> torch.Tensor:
            generator = torch.Generator().manual_seed(seed)
            sample = torch.randn(4, 1, 8, 8, generator=generator)
            for t in ours.timesteps:
                sample = ours.step(sample * 0.5, t, sample, generator=generator).prev_sample
            return sample

        alone = [chain(seed) for seed in range(8)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            together = list(pool.map(chain, list(range(8)) * 5))
        for i, sample in enumerate(together):
            assert torch.equal(sample, alone[i % 8])

    @pytest.mark.parametrize("kwargs", [{}, {"variance_type": "learned_range"}, {"thresholding": True}])
    def test_step_compiles_whole_and_once_for_all_times(self, kwargs):
        ours = scheduler(clip_sample=True, **kwargs)
        ours.set_timesteps(20)
        torch.compiler.reset()
        compiled = torch.compile(
            lambda output, t, sample, noise: ours.step(output, t, sample, return_dict=False, variance_noise=noise),
            fullgraph=True,
            backend="eager",
        )
        counter = torch._dynamo.testing.CompileCounter()
        counted = torch.compile(
            lambda output, t, sample: ours.step(output, t, sample, return_dict=False), fullgraph=True, backend=counter
        )
        sample, noise = torch.randn(2, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        output = torch.cat([sample, sample], dim=1) if "variance_type" in kwargs else sample
        for t in ours.timesteps:
            wanted = ours.step(output, t, sample, return_dict=False, variance_noise=noise)
            for value, exact in zip(compiled(output, t, sample, noise), wanted, strict=True):
                torch.testing.assert_close(value, exact, rtol=1e-5, atol=1e-6)
            counted(output, t, sample)
        assert counter.frame_count == 1

    def test_numbers_as_times_do_not_compile_again_and_again(self):
        ours = scheduler()
        ours.set_timesteps(20)
        torch.compiler.reset()
        counter = torch._dynamo.testing.CompileCounter()
        compiled = torch.compile(
            lambda t, sample: ours.step(sample, t, sample).prev_sample, fullgraph=True, backend=counter
        )
        for t in ours.timesteps.tolist():
            compiled(t, torch.zeros(2, 1, 4, 4))
        assert counter.frame_count <= 2  # one for a constant, and one for all numbers after the first

    def test_add_noise_compiles_whole(self):
        ours = scheduler()
        x_0, noise = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        compiled = torch.compile(ours.add_noise, fullgraph=True, backend="eager")
        for t in (torch.tensor([0, 5, 999]), torch.tensor([1, 2, 3])):
            torch.testing.assert_close(compiled(x_0, noise, t), ours.add_noise(x_0, noise, t))

    @pytest.mark.parametrize("kwargs", [{}, {"variance_type": "learned_range"}, {"thresholding": True}])
    def test_the_host_never_waits_for_an_accelerator(self, kwargs):
        """Tensors on the device "meta" have shapes and no values: whatever read one on the host would fail here."""
        ours = scheduler(clip_sample=True, **kwargs)
        ours.set_timesteps(20)
        sample = torch.empty(2, 1, 8, 8, device="meta")
        output = torch.empty(2, 2 if "variance_type" in kwargs else 1, 8, 8, device="meta")
        for timestep in (999, torch.empty(2, dtype=torch.int64, device="meta")):
            for eta in (0.0, 0.5, 1.0):
                state = ours.step(output, timestep, sample, eta=eta)
                assert (state.prev_sample.device.type, state.prev_sample.shape) == ("meta", sample.shape)
            assert ours.step_inverse(output, timestep, sample).device.type == "meta"
            assert ours.add_noise(sample, sample, timestep).device.type == "meta"
        with pytest.raises(RuntimeError, match="meta tensors"):
            sample.max().item()

    def test_copies_are_independent(self):
        ours = scheduler()
        ours.set_timesteps(10)
        for other in (copy.copy(ours), copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            other.set_timesteps(3)
            assert ours.num_inference_steps == 10
            assert len(ours.timesteps) == 10


class TestInterchange:
    @pytest.mark.parametrize(
        "stock", [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler]
    )
    @pytest.mark.parametrize(
        "kwargs",
        [
            {"beta_schedule": "linear"},
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
            {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
        ],
    )
    def test_there_and_back(self, stock, kwargs, quiet_schedule):
        theirs = stock(**kwargs, num_train_timesteps=1000)
        ours = DDPMHubScheduler.from_config(theirs.config)
        # Theirs are float32 products of up to 1000 factors: 1000 roundings of 6e-8 at most.
        torch.testing.assert_close(theirs.alphas_cumprod.double(), ours.alphas_cumprod, rtol=6e-5, atol=1e-9)
        back = stock.from_config(ours.config)
        assert torch.equal(back.alphas_cumprod, theirs.alphas_cumprod)
        assert back.config.prediction_type == theirs.config.prediction_type

    def test_options_of_the_peer_are_heard(self):
        theirs = DDPMScheduler(rescale_betas_zero_snr=True, thresholding=True, prediction_type="v_prediction")
        ours = DDPMHubScheduler.from_config(theirs.config)
        assert ours.alphas_cumprod[-1] == 0
        ours.set_timesteps(10)
        assert ours.step(torch.ones(1, 4), 900, torch.full((1, 4), 9.0)).pred_original_sample.abs().max() <= 1

    def test_steps_are_those_of_the_peer_where_it_is_right(self):
        """Every tenth of 1000 leading steps, to the peer's own float32 error (4e-4 of a coefficient)."""
        theirs, ours = DDPMScheduler(clip_sample=False), DDPMHubScheduler(clip_sample=False)
        theirs.set_timesteps(100)
        ours.set_timesteps(100)
        assert theirs.timesteps.tolist() == ours.timesteps.tolist()
        sample, output = torch.randn(2, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        for t in ours.timesteps:
            a, b = (
                s.step(output, t, sample, generator=torch.Generator().manual_seed(3)).prev_sample
                for s in (theirs, ours)
            )
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))

    def test_a_pipeline_that_looks_for_eta_does_not_make_a_ddim_of_it(self):
        """diffusers' pipelines pass their own η = 0 to every scheduler whose `step` names it; a DDPM must stay one."""
        assert "eta" not in inspect.signature(DDPMHubScheduler.step).parameters
        assert "generator" in inspect.signature(DDPMHubScheduler.step).parameters
        with pytest.raises(TypeError, match="etta"):
            stepped(999, etta=0.0)

    def test_it_serves_the_pipeline_of_the_peer(self):
        unet = make_unet(num_class_embeds=None)
        images = []
        for one in (DDPMScheduler(), DDPMHubScheduler()):
            pipeline = DDPMPipeline(unet, one)
            pipeline.set_progress_bar_config(disable=True)
            generator = torch.Generator().manual_seed(0)
            images.append(pipeline(batch_size=2, num_inference_steps=50, generator=generator, output_type="np").images)
        # Fifty steps, each with the peer's float32 error of up to 4e-4 of a coefficient at small t
        np.testing.assert_allclose(images[0], images[1], atol=1e-3)

    @pytest.mark.parametrize("name", ["fixed_small", "fixed_large"])
    def test_the_variance_under_the_name_of_the_peer(self, name):
        theirs, ours = DDPMScheduler(variance_type=name), DDPMHubScheduler(variance_type=name)
        theirs.set_timesteps(10)
        ours.set_timesteps(10)
        for t in ours.timesteps[:-1].tolist():
            assert ours._get_variance(t).item() == pytest.approx(theirs._get_variance(t).item(), rel=1e-3)

    def test_variances_given_as_a_tensor_are_saved(self, tmp_path):
        analytic(torch.full((1000,), 0.1)).save_pretrained(tmp_path)
        assert DDPMHubScheduler.from_pretrained(tmp_path).config.original_sample_variances[0] == pytest.approx(0.1)

    def test_given_timesteps_and_what_comes_before(self):
        ours = scheduler()
        ours.set_timesteps(timesteps=[100, 87, 50, 1, 0])
        assert [ours.previous_timestep(t).item() for t in ours.timesteps] == [87, 50, 1, 0, -1]
        assert ours.num_inference_steps == 5


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
        (
            lambda: scheduler(num_train_timesteps=0),
            "`num_train_timesteps` is 0; it must be a whole number, from 1 to 1048576",
        ),
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
        (lambda: scheduler(num_train_timesteps=2.5), "`num_train_timesteps` is 2.5; it must be a whole number"),
        (lambda: scheduler(num_train_timesteps=True), "`num_train_timesteps` is True"),
        (lambda: scheduler(num_train_timesteps="10"), "`num_train_timesteps` is '10'"),
        (lambda: scheduler(steps_offset=-1), "`steps_offset` is -1"),
        (lambda: scheduler(steps_offset=1.5), "`steps_offset` is 1.5"),
        (lambda: scheduler(sample_max_value=0), "`sample_max_value` is 0"),
        (lambda: scheduler(dynamic_thresholding_ratio=1.5), "`dynamic_thresholding_ratio` is 1.5"),
        (
            lambda: scheduler(rescale_betas_zero_snr=True),
            "`rescale_betas_zero_snr` is True.*'v_prediction' or 'sample'",
        ),
        (lambda: scheduler(variance_type="analytic"), "`original_sample_variances` is None.*estimate_original_sample"),
        (lambda: analytic([0.1] * 9), r"`original_sample_variances` has shape \(9,\); it must be a list of T = 1000"),
        (lambda: analytic([-0.1] * 1000), "`original_sample_variances` contains -0.1; a variance is not negative"),
        (lambda: analytic([float("nan")] * 1000), "`original_sample_variances` contains nan"),
        (lambda: scheduler(clip_sample="no"), "`clip_sample` is 'no'; it must be one of True"),
        (lambda: scheduler(thresholding="no"), "`thresholding` is 'no'"),
        (lambda: scheduler(rescale_betas_zero_snr=2), "`rescale_betas_zero_snr` is 2"),
        (lambda: scheduler(original_sample_variances=[1.0] * 3), r"`original_sample_variances` has shape \(3,\)"),
        (
            lambda: scheduler(original_sample_variances="x"),
            "`original_sample_variances` is 'x'; it must be a list of numbers",
        ),
        (lambda: scheduler(trained_betas=[0.5, 0.999], beta_schedule="nope"), "`beta_schedule` is 'nope'"),
        (lambda: scheduler(trained_betas="abc"), "`trained_betas` is 'abc'; it must be a list of numbers"),
        (lambda: scheduler(trained_betas=[0.1, None]), "`trained_betas` is"),
        (lambda: scheduler(beta_start="1e-4"), "`beta_start` is '1e-4'; it must be a number above 1e-36 and below 1"),
        (lambda: scheduler(beta_end=None), "`beta_end` is None"),
        (lambda: scheduler(clip_sample_range=None), "`clip_sample_range` is None"),
        (lambda: scheduler(dynamic_thresholding_ratio="x"), "`dynamic_thresholding_ratio` is 'x'"),
        (lambda: scheduler().set_timesteps(timesteps=[True, False]), "`timesteps` is \\[True, False\\]"),
        (lambda: scheduler().set_timesteps(timesteps={900, 5}), "`timesteps` is .*it must be a list"),
        (lambda: scheduler().set_timesteps(timesteps=5), "`timesteps` is 5; it must be a list"),
        (lambda: scheduler().set_timesteps(timesteps=torch.tensor([3.0, 2.0])), "`timesteps` is tensor"),
        (lambda: stepped(999, eta="1"), "`eta` is '1'"),
        (lambda: stepped(999, eta=0.0, generator=3), "`generator` is 3"),
        (lambda: stepped(99, variance_noise=torch.zeros(2, 2)), "`variance_noise` has shape"),
        (
            lambda: stepped(999, variance_noise=torch.zeros(1, 1, dtype=torch.int64)),
            "`variance_noise` has dtype torch.int64",
        ),
        (lambda: stepped(999, variance_noise=[0.0]), "`variance_noise` has shape list"),
        (lambda: stepped(999, variance_noise=torch.zeros(1, 1), generator=torch.Generator()), "were both given"),
        (lambda: twice_the_same_generator(), "`generator` holds one generator more than once"),
        (lambda: stepped(torch.tensor([[999, 899]]), torch.zeros(2, 1), torch.zeros(2, 1)), "`timestep` has shape"),
        (
            lambda: scheduler().convert_prediction(torch.zeros(1), torch.zeros(1), 9999, "epsilon"),
            "`timesteps` runs from 9999",
        ),
        (lambda: scheduler().previous_timestep(1000), "`timestep` is 1000; it must be a whole number, from 0 to 999"),
        (lambda: scheduler(trained_betas=0.1), "`trained_betas` has shape"),
        (lambda: scheduler(trained_betas=[[0.1]]), "`trained_betas` has shape"),
        (lambda: scheduler(trained_betas=[0.0, 0.1]), "`trained_betas` contains 0.0"),
        (lambda: scheduler().set_timesteps(2.5), "`num_inference_steps` is 2.5"),
        (lambda: scheduler().set_timesteps(True), "`num_inference_steps` is True"),
        (lambda: scheduler().set_timesteps(), "pass one of `num_inference_steps` and `timesteps`"),
        (lambda: scheduler().set_timesteps(3, timesteps=[5]), "and not both"),
        (lambda: scheduler().set_timesteps(timesteps=[]), "`timesteps` is \\[\\]; it must be a list of at least one"),
        (lambda: scheduler().set_timesteps(timesteps=[5.5]), "`timesteps` is \\[5.5\\]"),
        (
            lambda: scheduler().set_timesteps(timesteps=[1000, 5]),
            "`timesteps` runs from 5 to 1000; it must lie in 0…999",
        ),
        (lambda: scheduler().set_timesteps(timesteps=[5, -1]), "`timesteps` runs from -1"),
        (lambda: scheduler().set_timesteps(timesteps=[5, 5]), "`timesteps` has 5 after 5; it must fall"),
        (lambda: scheduler().set_timesteps(timesteps=[5, 9]), "`timesteps` has 9 after 5; it must fall"),
        (lambda: stepped(900.7), "`timestep` is 900.7; it must be an integer"),
        (lambda: stepped(True), "`timestep` is True"),
        (lambda: stepped("999"), "`timestep` is '999'"),
        (lambda: stepped(torch.tensor(999.0)), "`timestep` is 999.0"),
        (lambda: stepped(torch.tensor([999, 998]), torch.zeros(2, 1), torch.zeros(2, 1)), "`timestep` is 998"),
        (
            lambda: stepped(torch.tensor([999, 899]), torch.zeros(3, 1), torch.zeros(3, 1)),
            r"`timestep` has shape \(2,\)",
        ),
        (lambda: stepped(999, torch.zeros(1, 1, dtype=torch.int64)), "`model_output` has dtype torch.int64"),
        (lambda: stepped(999, torch.zeros(1, 1, dtype=torch.float64)), "more than `sample`'s torch.float32 can hold"),
        (lambda: stepped(999, torch.zeros(1, 2)), "needs `variance_type` = 'learned_range'"),
        (lambda: stepped(999, variance_type="learned_range"), r"must be \(1, 2\), twice the channels of `sample`"),
        (lambda: stepped(999, eta=1.5), "`eta` is 1.5; it must be a number from 0"),
        (lambda: stepped(999, eta=-0.5), "`eta` is -0.5"),
        (lambda: stepped(999, generator=[torch.Generator()] * 2), "`generator` has 2 entries for a batch of 1"),
        (lambda: stepped(999, generator=[None]), "`generator` is .*it must be a torch.Generator"),
        (lambda: stepped(999, generator=7), "`generator` is 7"),
        (lambda: stepped(999, variance_noise=torch.zeros(2, 2)), "`variance_noise` has shape"),
        (lambda: scheduler().posterior(torch.zeros(1), torch.zeros(1), 5, 5), "`previous` is 5; it must be before"),
        (lambda: scheduler().posterior(torch.zeros(1), torch.zeros(1), 1000, 5), "`timestep` runs from 1000"),
        (lambda: scheduler().add_noise_between(torch.zeros(1), torch.zeros(1), 9, 5), "`source` is 9, after `target`"),
        (lambda: scheduler().snr(-1), "`timesteps` runs from -1"),
        (
            lambda: scheduler().convert_prediction(torch.zeros(1), torch.zeros(1), 5, "noise"),
            "`target_type` is 'noise'",
        ),
        (lambda: zero_snr_to_v(), "`timesteps` has an entry with ᾱ = 0"),
        (lambda: noised(torch.tensor([True])), "`timesteps` has dtype torch.bool"),
        (
            lambda: noised(torch.tensor([1]), torch.zeros(1, 1, dtype=torch.float64)),
            "`noise` has .* dtype torch.float64",
        ),
        (
            lambda: noised(torch.tensor([1]), *[torch.zeros(1, 1, dtype=torch.uint8)] * 2),
            "the samples have dtype torch.uint8",
        ),
        (lambda: noised(torch.tensor([1000])), "`timesteps` runs from 1000 to 1000; it must lie in 0…999"),
        (lambda: noised(torch.tensor([-1])), "`timesteps` runs from -1"),
        (lambda: noised(torch.tensor([0.5])), "`timesteps` has dtype torch.float32"),
        (lambda: noised(torch.tensor([1, 2, 3])), r"`timesteps` has shape \(3,\)"),
        (lambda: noised(torch.tensor([1]), torch.zeros(1, 2)), r"`noise` has shape \(1, 2\)"),
        (lambda: scheduler(beta_schedule=np.zeros(2)), "`beta_schedule` is array"),
        (lambda: scheduler(clip_sample=np.zeros(0)), "`clip_sample` is array"),
        (lambda: scheduler(num_train_timesteps=10**14), "`num_train_timesteps` is 1[0]+; .* from 1 to 1048576"),
        (lambda: scheduler(beta_start=1e-40, beta_end=1e-40), "`beta_start` is 1e-40; it must be a number above 1e-36"),
        (lambda: scheduler(beta_schedule="squaredcos_cap_v2", beta_end=None), "`beta_end` is None"),
        (lambda: scheduler(clip_sample_range=10**400), "`clip_sample_range` is 1[0]+; .* below 3.4"),
        (lambda: scheduler(sample_max_value=1e300), "`sample_max_value` is 1e\\+300; .* below 3.4"),
        (lambda: scheduler(trained_betas=[10**400]), "`trained_betas` is"),
        (lambda: scheduler(trained_betas=np.array([0.1 + 1j])), "`trained_betas` is array"),
        (lambda: scheduler(beta_start=0.5, beta_end=0.9), "`prediction_type` is 'epsilon', but ᾱ_T is below 1e-36"),
        (lambda: analytic([1e300] * 1000), "`original_sample_variances` contains 1e\\+300; .* infinite"),
        (lambda: scheduler().set_timesteps(timesteps=[torch.tensor(5), torch.tensor(0.5)]), "`timesteps` is"),
        (lambda: scheduler().previous_timestep(None), "`timestep` is None"),
        (lambda: scheduler().snr("x"), "`timesteps` is 'x'; it must be an integer, or a tensor of integers"),
        (lambda: noised(2**70), "`timesteps` is 1180591620717411303424"),
        (
            lambda: scheduler().posterior(torch.zeros(1), torch.zeros(1), torch.tensor([9, 8]), 5),
            "`timestep` has shape",
        ),
        (lambda: noised(5, sample=[0.0], noise=[0.0]), "`original_samples` is a list; it must be a torch.Tensor"),
        (lambda: stepped(999, output=0.5), "`model_output` is a float; it must be a torch.Tensor"),
        (lambda: stepped(np.array([999, 899])), "`timestep` is array"),
        (lambda: stepped(999, eta=Decimal(1)), "`eta` is Decimal"),
        (
            lambda: stepped(999, torch.zeros(3), torch.zeros(3), variance_type="learned"),
            r"`sample` has shape \(3,\); .* must have channels",
        ),
    ],
)
def test_what_cannot_work_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def stepped(timestep, output=None, sample=None, variance_type="fixed_small", **kwargs):
    ours = scheduler(variance_type=variance_type)
    ours.set_timesteps(10)
    sample = torch.zeros(1, 1) if sample is None else sample
    return ours.step(sample if output is None else output, timestep, sample, **kwargs)


def twice_the_same_generator():
    generator = torch.Generator()
    return stepped(999, torch.zeros(2, 1), torch.zeros(2, 1), generator=[generator, generator])


def noised(timesteps, noise=None, sample=None):
    sample = torch.zeros(1, 1) if sample is None else sample
    return scheduler().add_noise(sample, sample if noise is None else noise, timesteps)


def analytic(variances):
    return scheduler(variance_type="analytic", original_sample_variances=variances)


def zero_snr_to_v():
    ours = scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    return ours.convert_prediction(torch.zeros(1), torch.zeros(1), 999, "v_prediction", "epsilon")


def test_numbers_of_any_kind_are_saved_as_plain_ones(tmp_path, quiet_schedule):
    kinds = {
        "num_train_timesteps": np.uint8(20),
        "beta_start": np.float32(0.25),
        "beta_end": Fraction(1, 2),
        "steps_offset": torch.tensor(0),
        "sample_max_value": 2,
    }
    made = scheduler(**kinds)
    made.save_pretrained(tmp_path)
    assert torch.equal(DDPMHubScheduler.from_pretrained(tmp_path).betas, made.betas)
    assert torch.equal(made.betas, torch.linspace(0.25, 0.5, 20, dtype=torch.float64))


def test_lists_that_are_given_stay_the_callers(quiet_schedule):
    """Also an array that nobody may write to; what is done with it later changes no schedule."""
    betas = torch.tensor([0.1, 0.2], dtype=torch.float64)
    made, frozen = scheduler(trained_betas=betas), np.array([0.1, 0.2])
    betas.zero_()
    frozen.flags.writeable = False
    assert torch.equal(scheduler(trained_betas=frozen).betas, made.betas)
    assert made.betas.tolist() == [0.1, 0.2]


@pytest.mark.parametrize("number", [np.int8(100), np.uint8(100), torch.tensor(100), torch.tensor([100])])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_a_number_of_steps_of_any_kind(number, spacing):
    made, wanted = scheduler(timestep_spacing=spacing), scheduler(timestep_spacing=spacing)
    made.set_timesteps(number)
    wanted.set_timesteps(100)
    assert torch.equal(made.timesteps, wanted.timesteps)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_times_of_every_integer_dtype(dtype):
    made, times = scheduler(), torch.tensor([5, 999])
    assert torch.equal(made.snr(times.to(dtype)), made.snr(times))
    with pytest.raises(ValueError, match="`timesteps` runs from 5 to 1000"):
        made.snr(torch.tensor([5, 1000]).to(dtype))


@pytest.mark.parametrize("timestep", [999, torch.tensor([999])])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0, 4), (0, 3)])
@pytest.mark.parametrize("thresholding", [False, True])
def test_samples_of_every_shape(timestep, shape, thresholding):
    made, sample = scheduler(thresholding=thresholding), torch.ones(shape)
    made.set_timesteps(10)
    for result in made.step(sample, timestep, sample, torch.Generator(), return_dict=False):
        assert (result.shape, result.dtype) == (shape, torch.float32)
    assert made.add_noise(sample, sample, timestep).shape == shape


def test_betas_next_to_1_stay_below_it(quiet_schedule):
    """√β and its square round up to 1, of which no image is left and no logarithm."""
    nearly = math.nextafter(1, 0)
    made = DDPMHubScheduler(2, 0.1, nearly, "scaled_linear", prediction_type="sample")
    assert made.betas[-1] == nearly
    assert bool(torch.isfinite(made.log_alphas_cumprod).all())


def test_betas_that_no_count_is_enough_for():
    with pytest.raises(ValueError, match="`beta_start` is 1e-12 and `beta_end` 1e-12: even T = 1048576 leaves"):
        num_train_timesteps_for(1e-12, 1e-12)
    with pytest.warns(UserWarning, match="these β need more than a million steps"):
        scheduler(beta_start=1e-30, beta_end=1e-30)
