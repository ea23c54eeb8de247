"""The forward process of one image: the chain is the jump, the merged noise is N(0, I), and what is refused."""

import math
import re
import xml.etree.ElementTree as ElementTree

import forward_facts
import numpy as np
import pytest
import torch
from example_pictures import EXAMPLES, FOLDER, example
from forward_facts import GREY_LEVEL, LARGEST_SIDE, jump, scheduler_of, small, walk
from PIL import Image
from request_checks import LARGEST_SEED, InvalidRequestError
from tabs import forward, forward_views

from ddpm_hub import DDPMHubScheduler

T = 1000
TIMES = (1, 2, 49, 50, 51, 300, 999, T)
PAPER = DDPMHubScheduler()
SCHEDULERS = {
    "paper": PAPER,
    "cosine": DDPMHubScheduler(beta_schedule="squaredcos_cap_v2"),
    "zero SNR": DDPMHubScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
}


def pixels(height: int = 6, width: int = 5, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, channels), np.uint8)


def sample() -> np.ndarray:
    """x_0 of `pixels()`, float64, shape (1, C, H, W)."""
    return 2 * pixels().astype(float).transpose(2, 0, 1)[None] / 255 - 1


def paper_alpha_bars() -> np.ndarray:
    """ᾱ_0…ᾱ_T by a plain product."""
    return np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, T))])


def noises_of(walks: int, shape: tuple, seed: int) -> np.ndarray:
    """ε_1…ε_T as [`walk`] draws them, in blocks of 50 steps."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randn(50, walks, *shape, generator=generator) for _ in range(T // 50)]).double().numpy()


class TestJump:
    @pytest.mark.parametrize("time", TIMES)
    def test_is_the_equation(self, time):
        alpha_bar = paper_alpha_bars()[time]
        result = jump(PAPER, pixels(), time, 3)
        assert result.signal_rate == pytest.approx(math.sqrt(alpha_bar), rel=1e-9)
        assert result.noise_rate == pytest.approx(math.sqrt(1 - alpha_bar), rel=1e-9)
        assert result.snr == pytest.approx(alpha_bar / (1 - alpha_bar), rel=1e-9)
        assert result.decibels == pytest.approx(10 * math.log10(alpha_bar / (1 - alpha_bar)))
        assert result.original.numpy() == pytest.approx(sample(), abs=1e-6)

    def test_noise_is_the_same_at_all_times(self):
        results = [jump(PAPER, pixels(), time, 3) for time in (1, 300, T)]
        noises = [(r.noisy - r.signal_rate * r.original) / r.noise_rate for r in results]
        # At t = 1 the noise is divided by 0.01: a rounding of 6e-8 becomes 6e-6.
        assert torch.allclose(noises[0], noises[1], atol=3e-5)
        assert torch.allclose(noises[1], noises[2], atol=3e-5)

    def test_seeds_matter(self):
        assert not torch.equal(jump(PAPER, pixels(), 300, 0).noisy, jump(PAPER, pixels(), 300, 1).noisy)
        assert torch.equal(jump(PAPER, pixels(), 300, 1).noisy, jump(PAPER, pixels(), 300, 1).noisy)

    def test_values_tend_to_the_normal_distribution(self):
        values = jump(PAPER, example("garment_sneaker").pixels, T, 0).values
        assert values.size >= 12_000
        # Standard errors of mean and variance are 1/√n and √(2/n): at most 0.009 and 0.013.
        assert abs(values.mean()) < 0.04
        assert abs(values.var() - 1) < 0.06

    def test_no_signal_at_all(self):
        result = jump(SCHEDULERS["zero SNR"], pixels(), T, 0)
        assert (result.signal_rate, result.noise_rate, result.snr, result.decibels) == (0, 1, 0, -math.inf)


class TestWalk:
    @pytest.mark.parametrize("time", TIMES)
    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_chain_is_the_jump(self, time, name):
        result = walk(SCHEDULERS[name], pixels(), time, 5)
        # u = 2⁻²⁴. A step makes an error of at most 4u(|x| + |ε|): two products, a sum, two rounded weights; |x| and |ε| stay
        # below 6; later steps multiply it by √α ≤ 1. The merged noise is a sum of t products in blocks of 50, which errs by
        # at most (50 + t/50)u Σ|w_s ε_s| ≤ (50 + t/50)u √(Σε_s²) ≤ (50 + t/50)u · 1.5√t.
        bound = 2**-24 * (4 * 12 * (time + 1) + (50 + time / 50) * 1.5 * math.sqrt(time))
        assert result.difference <= bound
        assert result.difference == pytest.approx((result.stepwise - result.jumped).abs().max().item(), abs=bound)
        assert result.is_same

    @pytest.mark.parametrize("time", [1, 3, 50, 51, 300, T])
    def test_against_a_chain_in_double_precision(self, time):
        result = walk(PAPER, pixels(), time, 5)
        betas = np.linspace(1e-4, 0.02, T)
        noises = noises_of(result.walks, (1, 6, 5), 5)
        x = sample()
        for s in range(time):
            x = np.sqrt(1 - betas[s]) * x + np.sqrt(betas[s]) * noises[s, :1]
        bound = 2**-24 * 4 * 12 * (time + 1)  # as above, without the merged noise
        assert np.abs(result.stepwise.numpy() - x).max() <= bound

    @pytest.mark.parametrize("time", [1, 2, 40])
    def test_steps_are_those_of_add_noise_between(self, time):
        result, walks = walk(PAPER, pixels(), time, 5), forward_facts.WALKED_VALUES // 30
        noises = torch.from_numpy(noises_of(walks, (1, 6, 5), 5)).float()
        x = result.jumped.new_tensor(sample())
        for s in range(time):
            x = PAPER.add_noise_between(x, noises[s, :1], s - 1, s)
        assert torch.allclose(result.stepwise, x, atol=2**-24 * 4 * 12 * (time + 1), rtol=0)

    @pytest.mark.parametrize("name", SCHEDULERS)
    @pytest.mark.parametrize("time", TIMES)
    def test_weights_are_those_of_one_noise(self, time, name):
        assert walk(SCHEDULERS[name], pixels(), time, 0).squared_weights == pytest.approx(1, abs=1e-12)

    def test_weights_against_the_formula(self):
        alpha_bars, t = paper_alpha_bars(), 300
        betas = np.linspace(1e-4, 0.02, T)[:t]
        exact = np.sqrt(alpha_bars[t] / alpha_bars[1 : t + 1] * betas / (1 - alpha_bars[t]))
        assert forward_facts._merging_weights(PAPER, t - 1).numpy() == pytest.approx(exact, rel=1e-9)

    @pytest.mark.parametrize("time", [1, 300, T])
    @pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (64, 64, 3)])
    def test_merged_noise_is_standard_normal(self, time, shape):
        result = walk(PAPER, pixels(*shape), time, 11)
        values = result.walks * result.stepwise.numel()
        assert values > 2000
        # Five standard errors of a mean and of a variance.
        assert abs(result.mean) < 5 / math.sqrt(values)
        assert abs(result.variance - 1) < 5 * math.sqrt(2 / values)

    def test_only_large_images_are_made_smaller(self):
        assert walk(PAPER, pixels(28, 28), 5, 0).stepwise.shape == (1, 1, 28, 28)
        assert walk(PAPER, pixels(64, 64, 3), 5, 0).stepwise.shape == (1, 3, 32, 32)
        assert walk(PAPER, pixels(64, 8, 3), 5, 0).stepwise.shape == (1, 3, 64, 8)

    def test_a_wrong_jump_is_seen(self, monkeypatch):
        right = forward_facts._merging_weights
        monkeypatch.setattr(forward_facts, "_merging_weights", lambda *arguments: right(*arguments).square())
        result = walk(PAPER, pixels(), 300, 0)
        assert result.difference > 0.1
        assert not result.is_same


class TestRequests:
    @pytest.mark.parametrize("function", [jump, walk])
    @pytest.mark.parametrize("time", [0, -1, T + 1, 1.5, True, None, "3", math.nan, [1]])
    def test_refuses_times(self, function, time):
        with pytest.raises(InvalidRequestError, match=r"^t is .*; it must be a whole number from 1 to 1000\.$"):
            function(PAPER, pixels(), time, 0)

    @pytest.mark.parametrize("function", [jump, walk])
    @pytest.mark.parametrize("seed", [-1, LARGEST_SEED + 1, 0.5, None, "0", False, math.inf])
    def test_refuses_seeds(self, function, seed):
        with pytest.raises(InvalidRequestError, match=r"[Ss]eed is "):
            function(PAPER, pixels(), 1, seed)

    def test_largest_seed(self):
        jump(PAPER, pixels(), 1, LARGEST_SEED)
        walk(PAPER, pixels(), 1, float(LARGEST_SEED))

    def test_t_of_a_shorter_schedule(self):
        short = DDPMHubScheduler(100, 1e-3, 0.2)
        walk(short, pixels(), 100, 0)
        with pytest.raises(InvalidRequestError, match="from 1 to 100"):
            walk(short, pixels(), 101, 0)

    def test_papers_schedule_where_no_model_loads(self, monkeypatch, tmp_path):
        monkeypatch.setenv("DDPM_HUB_MODEL", str(tmp_path / "none"))
        assert torch.equal(scheduler_of(None).betas, PAPER.betas)


class TestPictures:
    @pytest.mark.parametrize(
        ("size", "mode", "shape"),
        [
            ((8, 8), "L", (8, 8, 1)),
            ((64, 64), "RGB", (64, 64, 3)),
            ((65, 65), "RGB", (64, 64, 3)),
            ((640, 320), "L", (32, 64, 1)),
            ((2000, 3), "RGB", (1, 64, 3)),
            ((1, 500), "L", (64, 1, 1)),
        ],
    )
    def test_small(self, size, mode, shape):
        result = small(Image.new(mode, size, 77 if mode == "L" else (77, 77, 77)))
        assert result.shape == shape
        assert result.dtype == np.uint8
        assert (result == 77).all()

    def test_examples(self):
        assert len(EXAMPLES) == 7
        notice = (FOLDER / "LICENSES.txt").read_text(encoding="utf-8")
        for one in EXAMPLES:
            assert max(one.image.size) <= LARGEST_SIDE
            assert np.array_equal(small(one.image), one.pixels)
            assert one.pixels.flags.writeable
            assert one.path.name in notice
        assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 40_000
        assert {one.path for one in EXAMPLES} == set(FOLDER.glob("*.png"))

    def test_an_example_by_its_name(self):
        assert example("digit_3").pixels.shape == (8, 8, 1)
        for wrong in ("../page", "", None, 3):
            with pytest.raises(InvalidRequestError, match="must be one of garment_sneaker"):
                example(wrong)

    def test_a_grey_level(self):
        assert pytest.approx(2 / 255) == GREY_LEVEL


class TestViews:
    @pytest.mark.parametrize("time", [1, 300, T])
    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_are_well_formed_in_both_languages(self, time, name):
        jumped = forward_views.jump_view(jump(SCHEDULERS[name], pixels(8, 8, 3), time, 0))
        walked = forward_views.walk_view(walk(SCHEDULERS[name], pixels(8, 8, 3), time, 0), time)
        for view in (jumped, walked):
            closed = re.sub(r"(<img [^>]*)>", r"\1/>", view).replace("colspan=2", "")
            ElementTree.fromstring(f"<div>{closed}</div>")
            assert view.count('lang="en"') == view.count('lang="zh"') > 0
        assert "nan" not in jumped + walked
        assert "✓ The same" in walked

    def test_numbers_of_the_equation(self):
        view = forward_views.jump_view(jump(PAPER, pixels(), 300, 0))
        alpha_bar = paper_alpha_bars()[300]
        assert f">{math.sqrt(alpha_bar):.4f}</mn>" in view
        assert f">{math.sqrt(1 - alpha_bar):.4f}</mn>" in view
        assert "−1.83 dB" in view

    def test_a_seed_that_is_being_typed(self):
        for shown in (forward.show_jump, forward.show_walk):
            assert shown(PAPER, None, pixels(), 300, None) == {"__type__": "update"}

    def test_a_picture_that_was_taken_away(self):
        assert forward.small_pixels(None) == {"__type__": "update"}
