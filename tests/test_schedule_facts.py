"""Schedules: their tables against 40-digit arithmetic, the verdict against the scheduler's own, and remedies that work."""

import json
import math
import re
import warnings
import xml.etree.ElementTree as ElementTree

import mpmath
import pytest
from both_languages import Both
from mpmath import mp, mpf
from request_checks import InvalidRequestError
from schedule_facts import (
    COSINE,
    GOOD,
    LARGEST_BETA,
    LARGEST_STEPS,
    LITTLE,
    MUCH,
    PRESETS,
    SMALLEST_BETA,
    TITLES,
    percent,
    schedule_facts,
    shown_beta,
)
from tabs import schedule, schedule_views

from ddpm_hub import DDPMHubScheduler
from ddpm_hub.ddpm_noise_schedules import BETA_SCHEDULES, LARGEST_FINAL_ALPHA_BAR


def of_preset(key: str):
    preset = PRESETS[key]
    return schedule_facts(preset.beta_schedule, preset.num_train_timesteps, preset.beta_start, preset.beta_end)


def exact_betas(kind: str, num_steps: int, start: float, end: float) -> list[mpf]:
    """β_1…β_T from the papers' formulas."""
    start, end = mpf(start), mpf(end)
    if kind == "linear":
        return [start + (end - start) * i / (num_steps - 1) for i in range(num_steps)]
    if kind == "scaled_linear":
        roots = mpmath.sqrt(start), mpmath.sqrt(end)
        return [(roots[0] + (roots[1] - roots[0]) * i / (num_steps - 1)) ** 2 for i in range(num_steps)]
    if kind == "sigmoid":
        return [start + (end - start) / (1 + mpmath.exp(6 - mpf(12) * i / (num_steps - 1))) for i in range(num_steps)]
    alpha_bar = [mpmath.cos((mpf(t) / num_steps + mpf("0.008")) / mpf("1.008") * mpmath.pi / 2) ** 2
                 for t in range(num_steps + 1)]  # fmt: skip
    return [min(1 - alpha_bar[t] / alpha_bar[t - 1], mpf("0.999")) for t in range(1, num_steps + 1)]


class TestTables:
    @pytest.mark.parametrize("kind", BETA_SCHEDULES)
    @pytest.mark.parametrize("num_steps", [2, 7, 1000])
    def test_against_forty_digits(self, kind, num_steps):
        with mp.workdps(40):
            betas = exact_betas(kind, num_steps, 1e-4, 0.02)
            alpha_bars = [mpf(1)]
            for beta in betas:
                alpha_bars.append(alpha_bars[-1] * (1 - beta))
            now, before = alpha_bars[1:], alpha_bars[:-1]
            exact = {
                "betas": betas,
                "alpha_bars": now,
                "signal_rates": [mpmath.sqrt(a) for a in now],
                "noise_rates": [mpmath.sqrt(1 - a) for a in now],
                "snrs": [a / (1 - a) for a in now],
                "posterior_variances": [b * (1 - s) / (1 - t) for b, s, t in zip(betas, before, now, strict=True)],
            }
            facts = schedule_facts(kind, num_steps, 1e-4, 0.02)
            for name, values in exact.items():
                computed = getattr(facts, name)
                assert len(computed) == num_steps
                # log ᾱ_t is a float64 sum of up to 1000 terms, at most 20 in all: 1000 roundings of 20 · 1.1e-16.
                assert computed == pytest.approx([float(value) for value in values], rel=2e-12, abs=0), name

    def test_first_posterior_variance_is_zero(self):
        assert math.copysign(1, schedule_facts("linear", 10).posterior_variances[0]) == 1
        assert schedule_facts("linear", 10).posterior_variances[0] == 0

    def test_rescaled(self):
        facts = schedule_facts("linear", 1000, 1e-4, 0.02, True)
        scheduler = DDPMHubScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
        assert facts.alpha_bars[-1] == facts.snrs[-1] == 0
        assert facts.betas[-1] == 1
        assert facts.betas == pytest.approx(scheduler.betas.tolist(), rel=1e-12)
        assert facts.alpha_bars == scheduler.alphas_cumprod.tolist()
        assert all(math.isfinite(value) for value in facts.posterior_variances)

    def test_cosine_looks_at_no_betas(self):
        assert schedule_facts(COSINE, 100, None, "x") == schedule_facts(COSINE, 100)


class TestVerdict:
    def test_the_slip(self):
        facts = of_preset("slip")
        assert facts.level == MUCH
        assert facts.alpha_bars[-1] == pytest.approx(0.35, abs=0.005)
        assert facts.answer.en == "x_T is not noise."
        assert facts.reason.en.startswith("59.1 % of the image's amplitude")
        assert facts.remedy.en == "Keep β and take T = 6575 or keep T = 1000 and take β from 0.0001 to 0.02."
        assert facts.remedy.zh == "保持 β，取 T = 6575；或保持 T = 1000，取 β 从 0.0001 到 0.02。"

    def test_the_slip_with_twice_the_steps(self):
        assert of_preset("longer-slip").alpha_bars[-1] == pytest.approx(0.12, abs=0.005)
        assert of_preset("longer-slip").level == MUCH

    def test_the_paper(self):
        facts = of_preset("paper")
        assert facts.level == GOOD
        assert facts.remedy is None
        assert facts.alpha_bars[-1] == pytest.approx(4.0358e-5, rel=1e-4)

    def test_the_other_examples(self):
        levels = {key: of_preset(key).level for key in PRESETS}
        assert levels == {
            "paper": GOOD,
            "longer": GOOD,
            "cosine": GOOD,
            "sigmoid": GOOD,
            "scaled": LITTLE,
            "slip": MUCH,
            "longer-slip": MUCH,
            "shortened": MUCH,
        }

    @pytest.mark.parametrize("kind", BETA_SCHEDULES)
    @pytest.mark.parametrize("num_steps", [2, 11, 200, 1000, LARGEST_STEPS])
    @pytest.mark.parametrize("betas", [(1e-4, 0.02), (1e-4, 0.002), (0.00085, 0.012), (0.3, 0.9)])
    def test_is_the_schedulers_own(self, kind, num_steps, betas):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            # Of v: where nothing at all is left of x_0, ε is refused.
            DDPMHubScheduler(num_steps, *betas, beta_schedule=kind, prediction_type="v_prediction")
        assert (schedule_facts(kind, num_steps, *betas).level == GOOD) == (not warned)

    def test_noise_from(self):
        facts = of_preset("paper")
        assert (
            facts.alpha_bars[facts.noise_from - 1] <= LARGEST_FINAL_ALPHA_BAR < facts.alpha_bars[facts.noise_from - 2]
        )
        assert of_preset("slip").noise_from is None


class TestRemedy:
    @pytest.mark.parametrize("kind", ["linear", "scaled_linear", "sigmoid"])
    @pytest.mark.parametrize("num_steps", [8, 20, 200, 1000, 3999])
    @pytest.mark.parametrize("betas", [(1e-4, 4e-4), (1e-6, 1e-3)])
    def test_makes_it_good(self, kind, num_steps, betas):
        facts = schedule_facts(kind, num_steps, *betas)
        assert facts.level != GOOD
        assert schedule_facts(kind, num_steps, *facts.enough_betas).level == GOOD
        for beta in facts.enough_betas:
            assert float(shown_beta(beta)) == beta
            assert shown_beta(beta) in facts.remedy.en

    @pytest.mark.parametrize("key", ["scaled", "shortened"])
    def test_steps_are_the_fewest(self, key):
        preset, steps = PRESETS[key], of_preset(key).enough_steps
        betas = preset.beta_start, preset.beta_end
        assert schedule_facts(preset.beta_schedule, steps, *betas).level == GOOD
        assert schedule_facts(preset.beta_schedule, steps - 1, *betas).level != GOOD

    def test_where_no_beta_is_large_enough(self):
        facts = schedule_facts("linear", 3, 0.1, 0.2)
        assert facts.enough_betas is None
        assert facts.remedy.en == f"Keep β and take T = {facts.enough_steps}."

    def test_where_nothing_helps(self):
        facts = schedule_facts("linear", 2, SMALLEST_BETA, SMALLEST_BETA)
        assert facts.enough_steps is facts.enough_betas is None
        assert facts.remedy.en == "Take more steps and larger β."


class TestRequests:
    @pytest.mark.parametrize("steps", [1, 0, -5, LARGEST_STEPS + 1, 10.5, True, "1000", None, math.nan, math.inf, [10]])
    def test_refuses_steps(self, steps):
        with pytest.raises(InvalidRequestError, match=r"^T is .*; it must be a whole number from 2 to 4000\.$"):
            schedule_facts("linear", steps)

    @pytest.mark.parametrize("beta", [0, -1e-4, 1, 2.5, 1e-9, math.nan, math.inf, "0.1", None, True, {}])
    def test_refuses_betas(self, beta):
        with pytest.raises(InvalidRequestError, match=r"^β_1 is .*; it must be a number from 1e-07 to 0\.999\.$"):
            schedule_facts("linear", 100, beta, 0.5)
        with pytest.raises(InvalidRequestError, match=r"^β_T is "):
            schedule_facts("linear", 100, 1e-7, beta)

    def test_refuses_falling_betas(self):
        with pytest.raises(InvalidRequestError, match=r"^β_T = 0.001 is below β_1 = 0.02; β must not fall with t\.$"):
            schedule_facts("linear", 100, 0.02, 0.001)

    @pytest.mark.parametrize("kind", ["quadratic", "", None, 3, "Linear", ["linear"]])
    def test_refuses_other_schedules(self, kind):
        with pytest.raises(InvalidRequestError, match="must be one of linear, scaled_linear"):
            schedule_facts(kind, 100)

    @pytest.mark.parametrize("rescale", [None, 1, "yes"])
    def test_refuses_other_switches(self, rescale):
        with pytest.raises(InvalidRequestError, match="true or false"):
            schedule_facts("linear", 100, 1e-4, 0.02, rescale)

    def test_messages_are_in_chinese_as_well(self):
        with pytest.raises(InvalidRequestError) as caught:
            schedule_facts("linear", 1)
        assert caught.value.message.zh == "T为 1；它必须是 2 到 4000 的整数。"

    def test_whole_floats_of_json(self):
        assert schedule_facts("linear", 100.0) == schedule_facts("linear", 100)


class TestForTheAPI:
    @pytest.mark.parametrize("num_steps", [2, 5, 11, 12, 1000, LARGEST_STEPS])
    @pytest.mark.parametrize("rescale", [False, True])
    def test_is_json(self, num_steps, rescale):
        said = json.loads(
            json.dumps(schedule_facts("linear", num_steps, 1e-4, 0.02, rescale).as_dict(), allow_nan=False)
        )
        times = [row["t"] for row in said["values"]]
        assert times[0] == 1
        assert times[-1] == num_steps
        assert times == sorted(set(times))
        assert len(times) == min(11, num_steps)

    def test_says_what_the_page_says(self):
        facts = of_preset("slip")
        said = facts.as_dict()
        assert said["alpha_bar_T"] == facts.alpha_bars[-1] == said["values"][-1]["alpha_bar"]
        assert said["signal_left"] == pytest.approx(math.sqrt(said["alpha_bar_T"]))
        assert said["x_T_is_noise"] is False
        assert said["enough_steps"] == 6575
        assert said["enough_betas"] == pytest.approx([1e-4, 0.02], rel=0.01)
        assert said["verdict"] == facts.verdict.en
        assert said["values"][0]["posterior_variance"] == 0


class TestWords:
    @pytest.mark.parametrize(
        ("part", "text"), [(0.5914, "59.1 %"), (1, "100 %"), (0.00636, "0.64 %"), (5e-5, "< 0.01 %"), (0, "0 %")]
    )
    def test_percent(self, part, text):
        assert percent(part) == text

    def test_every_schedule_has_a_title(self):
        assert set(TITLES) == set(BETA_SCHEDULES)

    @pytest.mark.parametrize("key", PRESETS)
    def test_views_are_well_formed_in_both_languages(self, key):
        facts = of_preset(key)
        box = schedule_views.verdict_box(facts, PRESETS[key].why)
        for view in (box, schedule_views.last_samples(facts), schedule_views.schedule_plots(facts)):
            ElementTree.fromstring(re.sub(r"(<img [^>]*)>", r"\1/>", view))
            assert view.count('lang="en"') == view.count('lang="zh"') > 0
        assert f'class="verdict {facts.level}"' in box
        assert schedule_views.SIGNS[facts.level] in box

    def test_the_level_is_said_and_signed_as_well_as_coloured(self):
        assert len(set(schedule_views.SIGNS.values())) == 3
        assert len({of_preset(key).answer.en for key in ("paper", "scaled", "slip")}) == 3


class TestTab:
    def test_refusals_are_shown_where_the_verdict_is(self):
        preset, verdict, *rest = schedule.moved("linear", 1000, 1e-4, None, False)
        assert preset is None
        assert "refused" in verdict
        assert "β<sub>T</sub> is empty" in verdict
        assert all(update == {"__type__": "update"} for update in rest)

    def test_mending(self):
        slip = ("linear", 1000, 1e-4, 0.002, False)
        _, kind, steps, start, end, rescaled, *_ = schedule.mended_betas(*slip)
        assert schedule_facts(kind, steps, start, end, rescaled).level == GOOD
        assert steps == 1000
        short = ("linear", 200, 1e-4, 0.02, False)
        assert schedule.mended_steps(*short)[1:6] == ("linear", 683, 1e-4, 0.02, False)

    def test_mending_what_is_good_changes_nothing(self):
        good = ("linear", 1000, 1e-4, 0.02, False)
        assert schedule.mended_betas(*good)[1:6] == good
        assert schedule.mended_steps(*good)[1:6] == good

    def test_x_T_of_the_slip_shows_the_image_and_the_papers_does_not(self):  # noqa: N802
        def correlation(key: str) -> float:
            x_0, x_T, *_ = schedule_views.samples_of(of_preset(key))  # noqa: N806
            return float(
                (x_0 - x_0.mean()).flatten() @ (x_T - x_T.mean()).flatten() / x_0.std() / x_T.std() / x_0.numel()
            )

        assert correlation("slip") > 0.3
        assert abs(correlation("paper")) < 0.1

    def test_choices_are_in_both_languages(self):
        names = schedule._choices(TITLES)
        assert isinstance(names, Both)
        assert [key for _, key in names.en] == [key for _, key in names.zh] == list(TITLES)
        assert LARGEST_BETA < 1
