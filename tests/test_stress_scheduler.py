"""A campaign against the scheduler: whatever is asked, a finite answer of the right shape, or a `ValueError`.

Hypothesis draws configurations, shapes, dtypes, times and seeds, and in half of the cases makes one argument
odd. What is answered is then held against what is promised of every answer.
"""

import functools
import json
import math

import numpy as np
import torch
from hypothesis import strategies as st
from odd_cases import DTYPES, INTEGERS, Answers, Asked, Seeds, any_tensor, odd_values, random_state, spoiled

from ddpm_hub import DDPMHubScheduler
from ddpm_hub.ddpm_noise_schedules import BETA_SCHEDULES, TIMESTEP_SPACINGS
from ddpm_hub.scheduling_ddpm_hub import VARIANCE_TYPES

AREA = "Scheduler and pipeline"


def noise(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- Configurations ---

betas = st.floats(1e-35, 1, exclude_max=True) | st.floats(1e-5, 0.3) | st.floats(0.2, 0.99)
positive = st.floats(1e-35, 3e38) | st.floats(0.5, 4)
numbers = st.floats() | st.integers() | odd_values
WRONG = {
    "num_train_timesteps": st.sampled_from([10**7, 10**14, 2.0]) | odd_values,
    "beta_start": numbers,
    "beta_end": numbers,
    "clip_sample_range": numbers,
    "sample_max_value": numbers,
    "dynamic_thresholding_ratio": numbers,
    "trained_betas": st.lists(numbers, max_size=3) | odd_values,
    "original_sample_variances": st.lists(numbers, max_size=3) | odd_values,
    "steps_offset": numbers,
}


@st.composite
def configurations(draw) -> Asked:
    """Keys of the scheduler, all of their range, one of them odd in half of the cases."""
    given = draw(
        st.fixed_dictionaries(
            {"num_train_timesteps": st.integers(1, 4) | st.integers(1, 1000)},
            optional={
                "beta_schedule": st.sampled_from(BETA_SCHEDULES),
                "trained_betas": st.lists(betas, min_size=1, max_size=9).map(sorted),
                "variance_type": st.sampled_from(list(VARIANCE_TYPES)),
                "clip_sample": st.booleans(),
                "prediction_type": st.sampled_from(["epsilon", "sample", "v_prediction"]),
                "thresholding": st.booleans(),
                "dynamic_thresholding_ratio": st.floats(0, 1, exclude_min=True),
                "clip_sample_range": positive,
                "sample_max_value": positive,
                "timestep_spacing": st.sampled_from(TIMESTEP_SPACINGS),
                "steps_offset": st.integers(0, 2),
                "rescale_betas_zero_snr": st.booleans(),
            },
        )
    )
    if draw(st.booleans()):
        given["beta_start"], given["beta_end"] = sorted(draw(st.tuples(betas, betas)))
    num_train = len(given["trained_betas"]) if "trained_betas" in given else given["num_train_timesteps"]
    if given.get("variance_type") == "analytic":
        variance = draw(st.floats(0, 3e38) | st.floats(0, 1))
        given["original_sample_variances"] = [variance] * num_train
    return draw(spoiled(given, WRONG))


def test_every_configuration_is_a_schedule_or_refused(campaign, quiet_schedule):
    answers, times = Answers(), campaign.times(250, 2000)

    @campaign.for_all(times, asked=configurations(), steps=st.integers(1, 6), seed=st.integers(0, 99))
    def _(asked, steps, seed):
        made = answers.of(DDPMHubScheduler, asked, may_refuse=True)
        if made is not None:
            check_tables(made)
            check_saved(made)
            check_forward(made, seed)
            asked = Asked(
                {"num_inference_steps": min(steps, len(made)), "steps_offset": None, "timestep_spacing": None}
            )
            if answers.of(
                lambda num_inference_steps, **_: made.set_timesteps(num_inference_steps) or True, asked, True
            ):
                check_walk(made, seed)

    assert answers.given > times / 3
    campaign.held(
        AREA, "a scheduler's configuration, one key odd in half of them", times,
        "a refusal that names the key, or falling ᾱ, the same after saving, and finite samples over a whole walk",
    )  # fmt: skip


def check_tables(made: DDPMHubScheduler) -> None:
    log_abar = made.log_alphas_cumprod
    assert log_abar.shape == (len(made) + 1,)
    assert log_abar.dtype == made.betas.dtype == torch.float64
    assert log_abar[0] == 0
    assert bool((log_abar.diff() < 0).all())
    assert bool(torch.isfinite(log_abar[:-1]).all())
    assert bool(((made.betas > 0) & (made.betas <= 1)).all())


def check_saved(made: DDPMHubScheduler) -> None:
    again = DDPMHubScheduler.from_config(json.loads(made.to_json_string()))
    assert torch.equal(again.log_alphas_cumprod, made.log_alphas_cumprod)
    assert all(value == again.config[key] for key, value in made.config.items() if not key.startswith("_"))


def check_forward(made: DDPMHubScheduler, seed: int) -> None:
    """The methods that need no schedule of steps, at the ends and in the middle."""
    times = torch.tensor([0, len(made) // 2, len(made) - 1])
    x, z = noise(3, 2, 2, seed=seed), noise(3, 2, 2, seed=seed + 1)
    results = [made.add_noise(x, z, times), made.get_velocity(x, z, times), made.training_target(x, z, times)]
    results += [made.add_noise_between(x, z, -1, times), *made.posterior(x, z, times, -1), made.snr(times)]
    for source in ("sample", "v_prediction"):
        results += [
            made.convert_prediction(x, z, times, kind, source) for kind in ("sample", "v_prediction", "epsilon")
        ]
    results.append(made.predict_original_sample(x, z, times))
    for result in results:
        assert bool(torch.isfinite(result).all())
        assert len(result) == 3


def check_walk(made: DDPMHubScheduler, seed: int) -> None:
    times = made.timesteps.tolist()
    assert len(times) == made.num_inference_steps
    assert times == sorted(set(times), reverse=True)
    assert 0 <= times[-1] <= times[0] < len(made)
    double = made.config.variance_type in ("learned", "learned_range")
    sample, generator = noise(2, 3, 2, seed=seed), torch.Generator().manual_seed(seed)
    for t in times:
        # The half that says the variance is nominally in [−1, 1].
        output = noise(2, 6 if double else 3, 2, seed=seed + t).clamp(-1, 1)
        sample, estimate = made.step(output, t, sample, generator, return_dict=False)
        assert bool(torch.isfinite(sample).all() & torch.isfinite(estimate).all())
        if made.config.clip_sample and not made.config.thresholding:
            assert estimate.abs().max() <= made.config.clip_sample_range


# --- The scheduler's methods ---

SCHEDULES = {
    "epsilon": {},
    "v_prediction": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "sample": {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2", "clip_sample": False},
    "thresholding": {"thresholding": True, "sample_max_value": 2.0, "variance_type": "fixed_large"},
    "analytic": {"variance_type": "analytic", "original_sample_variances": [0.2] * 1000},
    "learned_range": {"variance_type": "learned_range"},
    "learned": {"variance_type": "learned"},
}
STEPS = 5


@functools.cache
def scheduler(name: str) -> DDPMHubScheduler:
    made = DDPMHubScheduler(**{"timestep_spacing": "trailing"} | SCHEDULES[name])
    made.set_timesteps(STEPS)
    return made


METHODS = {
    "add_noise": ("original_samples", "noise", "timesteps"),
    "add_noise_between": ("sample", "noise", "source", "target"),
    "get_velocity": ("sample", "noise", "timesteps"),
    "training_target": ("original_samples", "noise", "timesteps"),
    "convert_prediction": ("model_output", "sample", "timesteps", "target_type", "source_type"),
    "predict_original_sample": ("model_output", "sample", "timesteps"),
    "posterior": ("sample", "original_sample", "timestep", "previous"),
    "step": ("model_output", "timestep", "sample"),
    "step_inverse": ("model_output", "timestep", "sample"),
}
KINDS = st.sampled_from(["epsilon", "sample", "v_prediction"])


@st.composite
def forms_of_times(draw, times: list[int], batch: int | None):
    """One of the times, or one for each sample, as a number or in any tensor that can hold it."""
    many = batch and draw(st.booleans())
    chosen = [draw(st.sampled_from(times)) for _ in range(batch if many else 1)]
    low, high = min(chosen), max(chosen)
    dtype = draw(st.sampled_from([d for d in INTEGERS if torch.iinfo(d).min <= low and high <= torch.iinfo(d).max]))
    one = chosen[0]
    forms = [one, np.int64(one), torch.tensor(one, dtype=dtype), torch.tensor([one], dtype=dtype)]
    return torch.tensor(chosen, dtype=dtype) if many else draw(st.sampled_from(forms))


@st.composite
def calls(draw) -> tuple[str, str, Asked]:
    """A schedule, a method, and its arguments."""
    name, method = draw(st.sampled_from(sorted(SCHEDULES))), draw(st.sampled_from(sorted(METHODS)))
    shape = draw(st.lists(st.integers(0, 3), max_size=5))
    doubled = needs_channels(name, method) and len(shape) > 1
    batch = shape[0] if shape else None
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99))
    x, z = noise(*shape, dtype=dtype, seed=seed), noise(*shape, dtype=dtype, seed=seed + 1)
    visited = scheduler(name).timesteps.tolist() if method.startswith("step") else list(range(5, 1000))
    values = {
        **dict.fromkeys(("sample", "original_samples"), st.just(x)),
        **dict.fromkeys(("noise", "original_sample"), st.just(z)),
        "model_output": st.just(torch.cat([z, z.clamp(-1, 1)], dim=1) if doubled else z),
        **dict.fromkeys(("timestep", "timesteps", "target"), forms_of_times(visited, batch)),
        **dict.fromkeys(("source", "previous"), st.just(-1) | forms_of_times([0, 1, 4], batch)),
        "target_type": KINDS,
        "source_type": st.sampled_from([None, "sample", "v_prediction"]),
    }
    given = {argument: draw(values[argument]) for argument in METHODS[method]}
    if method == "step":
        seeds = st.just(tuple(range(seed, seed + batch))) if batch else st.nothing()
        source = st.fixed_dictionaries({"generator": st.builds(Seeds, st.just(seed) | seeds)})
        source |= st.fixed_dictionaries({"variance_noise": st.just(noise(*shape, seed=seed + 2))})
        given |= {"eta": draw(st.sampled_from([1.0, 0.5, 0, np.float32(0.25)]))} | draw(source)
    wrong = any_tensor | st.integers() | st.lists(st.integers(-1, 1000), max_size=3) | odd_values
    return name, method, draw(spoiled(given, dict.fromkeys(given, wrong)))


def needs_channels(name: str, method: str) -> bool:
    return name.startswith("learned") and method in ("step", "step_inverse")


def ask(name: str, method: str, **arguments) -> tuple[torch.Tensor, ...]:
    given = {key: value.generators() if isinstance(value, Seeds) else value for key, value in arguments.items()}
    result = getattr(scheduler(name), method)(**given, **{"return_dict": False} if method == "step" else {})
    return result if isinstance(result, tuple) else (result,)


def test_every_call_of_the_scheduler_is_answered_or_refused(campaign):
    answers, times = Answers(), campaign.times(500, 6000)

    @campaign.for_all(times, case=calls())
    def _(case):
        name, method, asked = case
        state = random_state()
        without_channels = needs_channels(name, method) and getattr(asked.arguments["sample"], "ndim", 0) < 2
        results = answers.of(functools.partial(ask, name, method), asked, may_refuse=without_channels)
        if results is None:
            return
        given = asked.arguments
        drawn_anywhere = (
            method == "step" and given["eta"] != 0 and given.get("generator", given.get("variance_noise")) is None
        )
        assert drawn_anywhere or random_state() == state
        like = given["original_samples"] if "original_samples" in given else given["sample"]
        for result in results:
            assert bool(torch.isfinite(result).all())
        assert [result.shape for result in results[: 2 if method == "step" else 1]] == [like.shape] * len(
            results[: 2 if method == "step" else 1]
        )
        assert all(
            result.dtype == (torch.float64 if method == "posterior" and i else like.dtype)
            for i, result in enumerate(results)
        )
        if asked.odd is None:
            check_rows(name, method, asked.arguments, results, len(like) if like.ndim else 0)

    assert answers.given > times / 3
    campaign.held(
        AREA, "a call of a method of the scheduler: 7 schedules, 0 to 5 dimensions, every dtype, one argument odd in half", times,
        "a refusal that names an argument, or a finite sample in shape and dtype; the same again, and for each row alone",
    )  # fmt: skip


def check_rows(name: str, method: str, given: dict, results: tuple[torch.Tensor, ...], batch: int) -> None:
    """The same again; each row as it is alone; NaN in the first stays there."""
    for result, again in zip(results, ask(name, method, **given), strict=True):
        assert torch.equal(result, again)
    if batch < 2 or isinstance(given.get("generator", Seeds(())).numbers, int):
        return
    for i in range(batch):
        alone = ask(name, method, **{key: row_of(value, i, batch) for key, value in given.items()})
        for result, one in zip(results, alone, strict=True):
            assert torch.equal(row_of(result, i, batch), one)
    broken = ask(name, method, **{key: with_nan(value) for key, value in given.items()})
    for result, one in zip(results, broken, strict=True):
        assert not result.ndim or torch.equal(result[1:], one[1:])


def row_of(value, i: int, batch: int):
    if isinstance(value, Seeds):
        return Seeds((value.numbers[i],))
    return value[i : i + 1] if isinstance(value, torch.Tensor) and value.shape[:1] == (batch,) else value


def with_nan(value):
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    value = value.clone()
    value[0] = math.nan
    return value
