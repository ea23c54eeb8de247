"""The posterior in numbers, against Bayes' rule worked out with 50 digits, and what the Reverse tab makes of it."""

import json
import math
from itertools import pairwise

import gradio as gr
import numpy as np
import posterior_facts
import pytest
import torch
from conftest import make_pipeline
from mpmath import mp, mpf, sqrt
from posterior_facts import posterior_example, reverse_std, weight_curves
from request_checks import InvalidRequestError
from tabs import reverse

from ddpm_hub import DDPMHubScheduler

LINEAR = DDPMHubScheduler()
COSINE = DDPMHubScheduler(beta_schedule="squaredcos_cap_v2")
ZERO_SNR = DDPMHubScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
TIMES = [(1, 0), (2, 1), (2, 0), (3, 1), (100, 99), (500, 300), (999, 3), (1000, 999), (1000, 1), (1000, 0)]


def facts_of(scheduler, t, s=None):
    return posterior_facts.posterior_facts(scheduler, t, s)


def completed_square(scheduler: DDPMHubScheduler, t: int, s: int) -> dict:
    """The facts for s > 0 from the β alone: the exponents of q(x_t|x_s) and q(x_s|x_0) added, the square completed."""
    with mp.workdps(50):
        alphas = [1 - mpf(beta) for beta in scheduler.betas.tolist()]
        abar_s, alpha = mp.fprod(alphas[:s]), mp.fprod(alphas[s:t])
        linear_x0, linear_xt = sqrt(abar_s) / (1 - abar_s), sqrt(alpha) / (1 - alpha)
        precision = 1 / (1 - abar_s) + alpha / (1 - alpha)
        return {
            "t": t,
            "s": s,
            "weight_x0": linear_x0 / precision,
            "weight_xt": linear_xt / precision,
            "variance": 1 / precision,
            "std": sqrt(1 / precision),
            "alpha_bar_t": abar_s * alpha,
            "alpha_bar_s": abar_s,
            "snr_t": abar_s * alpha / (1 - abar_s * alpha),
            "snr_s": abar_s / (1 - abar_s),
            "precision": precision,
            "linear_weight_x0": linear_x0,
            "linear_weight_xt": linear_xt,
        }


# --- The numbers ---


@pytest.mark.parametrize("scheduler", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize(("t", "s"), [times for times in TIMES if times[1]])
def test_the_facts_are_those_of_bayes(scheduler, t, s):
    # |log ᾱ| is at most 20, so that half of its last place is 1.8e-15; a difference of two is at least the smallest β,
    # 4.1e-5 (cosine). That is 9e-11 of it; all other roundings are thousands of times smaller.
    facts = facts_of(scheduler, t, s).as_dict()
    expected = completed_square(scheduler, t, s)
    assert facts.keys() == expected.keys()
    for name, value in expected.items():
        assert facts[name] == pytest.approx(float(value), rel=1e-10), name


@pytest.mark.parametrize("scheduler", [LINEAR, COSINE, ZERO_SNR], ids=["linear", "cosine", "zero SNR"])
@pytest.mark.parametrize(("t", "s"), TIMES)
def test_x_s_of_the_posterior_has_the_marginal_of_x_s(scheduler, t, s):
    # With x_t ~ q(x_t|x_0): the mean is (w_0 + w_t √ᾱ_t) x_0, the variance w_t² (1−ᾱ_t) + β̃. About ten roundings of 1.1e-16,
    # and one of ᾱ, which 1 − ᾱ here, unlike in the product, makes 1.1e-16 of 1.
    facts = facts_of(scheduler, t, s)
    mean = facts.weight_x0 + facts.weight_xt * math.sqrt(facts.alpha_bar_t)
    variance = facts.weight_xt**2 * (1 - facts.alpha_bar_t) + facts.variance
    assert mean == pytest.approx(math.sqrt(facts.alpha_bar_s), rel=2e-15)
    assert variance == pytest.approx(1 - facts.alpha_bar_s, abs=1e-15, rel=2e-15)


@pytest.mark.parametrize("t", [1, 2, 600, 1000])
@pytest.mark.parametrize("scheduler", [LINEAR, COSINE, ZERO_SNR], ids=["linear", "cosine", "zero SNR"])
def test_at_s_0_it_is_x_0_itself(scheduler, t):
    facts = facts_of(scheduler, t, 0)
    assert (facts.weight_x0, facts.weight_xt, facts.variance, facts.std, facts.alpha_bar_s) == (1, 0, 0, 0, 1)
    assert (facts.snr_s, facts.precision, facts.linear_weight_x0) == (math.inf, math.inf, math.inf)
    assert all(math.copysign(1, value) == 1 for value in vars(facts).values())  # no page shows −0
    example = posterior_example(scheduler, t, 0, 0.25, -2.5)
    assert (example.posterior.mean, example.posterior.stdev) == (0.25, 0)
    assert (example.prior.mean, example.prior.stdev) == (0.25, 0)


def test_without_s_it_is_the_step_before():
    assert facts_of(LINEAR, 500) == facts_of(LINEAR, 500, 499)
    assert facts_of(LINEAR, 500.0, 499.0) == facts_of(LINEAR, 500)  # JSON may carry 500 as 500.0


@pytest.mark.parametrize(("t", "s"), TIMES)
def test_the_dictionary_is_json(t, s):
    facts = facts_of(LINEAR, t, s)
    told = json.loads(json.dumps(facts.as_dict(), allow_nan=False))
    assert {name: math.inf if value is None else value for name, value in told.items()} == vars(facts)


@pytest.mark.parametrize("gap", [1, 300, 1000])
def test_the_curves_are_the_facts_at_every_t(gap):
    times, weights_x0, weights_xt = weight_curves(COSINE, gap)
    assert times == list(range(gap, 1001))
    for i in {0, len(times) // 2, len(times) - 1}:
        facts = facts_of(COSINE, times[i], times[i] - gap)
        # torch's exp of a long tensor may end in another last place
        assert (weights_x0[i], weights_xt[i]) == pytest.approx((facts.weight_x0, facts.weight_xt), rel=1e-15)


# --- The example of one number ---


@pytest.mark.parametrize(("t", "s"), [times for times in TIMES if times[1]])
def test_the_posterior_is_the_product_of_what_x_0_and_x_t_say(t, s):
    # log p + log l − log q is the same everywhere, x_t being where x_0 puts it, so that no density is 0. The exponents are
    # below 10, and of a variance, so of an exponent, 9e-11 is lost (see above): for each of the three below 1e-9.
    example = posterior_example(COSINE, t, s, 0.7, 0.7 * math.sqrt(facts_of(COSINE, t).alpha_bar_t))
    q = example.posterior
    logs = [
        sum(math.log(one.pdf(x)) for one in (example.prior, example.likelihood)) - math.log(q.pdf(x))
        for x in q.mean + q.stdev * np.linspace(-2, 2, 9)
    ]
    assert np.ptp(logs) <= 3e-9


def test_the_mean_is_the_schedulers_own():
    example = posterior_example(LINEAR, 400, 100, -0.5, 2.0)
    x_t, x_0 = torch.tensor([2.0], dtype=torch.float64), torch.tensor([-0.5], dtype=torch.float64)
    mean, variance = LINEAR.posterior(x_t, x_0, 399, 99)  # diffusers' timesteps are t − 1
    assert example.posterior.mean == pytest.approx(mean.item(), rel=1e-15)
    assert example.posterior.variance == pytest.approx(variance.item(), rel=1e-15)


def test_where_no_data_is_left_x_t_says_nothing():
    example = posterior_example(ZERO_SNR, 1000, 500, 0.5, 3.0)
    assert example.likelihood is None
    assert (example.posterior.mean, example.posterior.stdev) == (example.prior.mean, example.prior.stdev)


@pytest.mark.parametrize(("t", "s"), [(2, 1), (600, 300), (1000, 999)])
def test_the_points_of_a_density_hold_its_peak_and_all_of_its_mass(t, s):
    # Beyond 5 σ there is 6e-7 of the mass, and the wider points there add at most their distance, 1/15, times the density,
    # 1.5e-6/σ, with σ = 0.006 at t = 2.
    posterior = posterior_example(LINEAR, t, s, 0.7, 0.6).posterior
    positions, values = posterior_facts.density_points(posterior, -4, 4)
    assert max(values) == pytest.approx(posterior.pdf(posterior.mean), rel=1e-6)
    assert (positions[0], positions[-1]) == (-4, 4)
    assert len(positions) <= 242
    assert np.trapezoid(values, positions) == pytest.approx(1, abs=2e-5)


def test_a_point_mass_has_no_density():
    with pytest.raises(ValueError, match="standard deviation 0"):
        posterior_facts.density_points(posterior_example(LINEAR, 5, 0, 0, 0).posterior, -4, 4)


# --- The noise that sampling adds ---


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "analytic"])
def test_the_noise_is_the_one_that_the_scheduler_adds(variance_type):
    known = {"original_sample_variances": np.linspace(0.01, 0.5, 1000).tolist()} if variance_type == "analytic" else {}
    scheduler = DDPMHubScheduler(variance_type=variance_type, timestep_spacing="trailing", clip_sample=False, **known)
    scheduler.set_timesteps(10)
    times = [*(scheduler.timesteps + 1).tolist(), 0]
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    for t, s in pairwise(times):
        added = scheduler.step(zero, t - 1, zero, variance_noise=one).prev_sample.item()
        assert reverse_std(scheduler, t, s) == pytest.approx(added, rel=1e-15)
    assert reverse_std(scheduler, times[-2], 0) == 0


def test_a_network_that_says_the_variance_leaves_none_to_tell():
    scheduler = DDPMHubScheduler(variance_type="learned_range")
    assert reverse_std(scheduler, 500, 400) is None
    assert reverse_std(scheduler, 500, 0) == 0


# --- Requests that are refused ---


@pytest.mark.parametrize(
    ("t", "s", "english", "chinese"),
    [
        (0, None, "t is 0; it must be a whole number from 1 to 1000.", "t为 0；它必须是 1 到 1000 的整数。"),
        (1001, 1, "t is 1001; it must be a whole number from 1 to 1000.", None),
        (1.5, 1, "t is 1.5; it must be a whole number from 1 to 1000.", None),
        (math.nan, 1, "t is nan; it must be a whole number from 1 to 1000.", None),
        (math.inf, 1, "t is inf; it must be a whole number from 1 to 1000.", None),
        (True, 0, "t is True; it must be a whole number from 1 to 1000.", None),
        ("7", 1, "t is '7'; it must be a whole number from 1 to 1000.", None),
        (None, 1, "t is empty; it must be a whole number from 1 to 1000.", None),
        ([7], 1, "t is of type list; it must be a whole number from 1 to 1000.", None),
        (7, 7, "s is 7; it must be a whole number from 0 to 6.", "s为 7；它必须是 0 到 6 的整数。"),
        (7, 8, "s is 8; it must be a whole number from 0 to 6.", None),
        (7, -1, "s is -1; it must be a whole number from 0 to 6.", None),
        (7, 0.5, "s is 0.5; it must be a whole number from 0 to 6.", None),
        (7, False, "s is False; it must be a whole number from 0 to 6.", None),
        (7, "", "s is empty; it must be a whole number from 0 to 6.", None),
        (1, 1, "s is 1; it must be a whole number from 0 to 0.", None),
    ],
)
def test_times_that_are_refused(t, s, english, chinese):
    asked = [lambda: facts_of(LINEAR, t, s), lambda: posterior_example(LINEAR, t, s, 0, 0)]
    if s is not None:
        asked.append(lambda: reverse_std(LINEAR, t, s))
    for ask in asked:
        with pytest.raises(InvalidRequestError) as caught:
            ask()
        assert str(caught.value) == english
        assert chinese in (None, caught.value.message.zh)


@pytest.mark.parametrize(
    ("x_0", "x_t", "message"),
    [
        (1.01, 0, "x_0 is 1.01; it must be a number from -1 to 1."),
        (-1.01, 0, "x_0 is -1.01; it must be a number from -1 to 1."),
        (math.nan, 0, "x_0 is nan; it must be a number from -1 to 1."),
        ("0", 0, "x_0 is '0'; it must be a number from -1 to 1."),
        (None, 0, "x_0 is empty; it must be a number from -1 to 1."),
        (True, 0, "x_0 is True; it must be a number from -1 to 1."),
        (0, 3.01, "x_t is 3.01; it must be a number from -3 to 3."),
        (0, -math.inf, "x_t is -inf; it must be a number from -3 to 3."),
        (0, {}, "x_t is of type dict; it must be a number from -3 to 3."),
    ],
)
def test_numbers_that_are_refused(x_0, x_t, message):
    with pytest.raises(InvalidRequestError) as caught:
        posterior_example(LINEAR, 500, 200, x_0, x_t)
    assert str(caught.value) == message


@pytest.mark.parametrize("gap", [0, 1001, -1, 1.5, None, "1", True])
def test_distances_that_are_refused(gap):
    with pytest.raises(InvalidRequestError, match="must be a whole number from 1 to 1000"):
        weight_curves(LINEAR, gap)


def test_the_ends_of_the_ranges_are_served():
    for x_0, x_t in ((-1, -3), (1, 3)):
        assert posterior_example(LINEAR, 1000, 0, x_0, x_t).posterior.mean == x_0


# --- The page ---


@pytest.fixture
def model(tmp_path, monkeypatch) -> None:
    make_pipeline().save_pretrained(tmp_path)
    monkeypatch.setenv("DDPM_HUB_MODEL", str(tmp_path))


@pytest.mark.usefixtures("model")
def test_t_and_s_move_each_other():
    assert reverse.t_moved(None, 200, 300, False, 0, 0)[0] == 199
    assert reverse.t_moved(None, 500, 300, False, 0, 0)[0] == 300
    assert reverse.t_moved(None, 500, 300, True, 0, 0)[0] == 499
    assert reverse.s_moved(None, 200, 300, False, 0, 0)[0] == 301
    assert reverse.s_moved(None, 500, 300, False, 0, 0)[0] == 500
    assert reverse.s_moved(None, 500, 300, True, 0, 0)[0] == 301
    assert reverse.s_moved(None, 1, 999, False, 0, 0)[0] == 1000


@pytest.mark.usefixtures("model")
def test_the_equations_have_the_numbers():
    mean, precision, densities, weights = reverse.posterior_views(None, 600, 300, 0.8, -1.2)
    facts = facts_of(LINEAR, 600, 300)
    assert f"w_0 = {facts.weight_x0:.3f}" in mean
    assert f"w_t = {facts.weight_xt:.3f}" in mean
    assert r"\tilde\beta = \frac1A" in precision
    assert densities.count("<svg") == weights.count("<svg") == 2  # one inside the other
    assert "s = t − 300" in weights
    assert r"\infty" in reverse.posterior_views(None, 600, 0, 0.8, -1.2)[1]


@pytest.mark.usefixtures("model")
def test_a_number_that_is_being_typed_changes_nothing_and_a_wrong_one_is_refused():
    for views in (
        reverse.t_moved(None, None, 3, False, 0, 0),
        reverse.s_moved(None, 5, None, False, 0, 0),
        reverse.posterior_views(None, 5, 3, None, 0),
    ):
        assert all(view == gr.skip() for view in views)
    with pytest.raises(gr.Error, match="t is 1001"):
        reverse.t_moved(None, 1001, 3, False, 0, 0)
