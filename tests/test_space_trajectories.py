"""The way of one sample as the demo keeps it, against the pipeline's own stream: a real tiny model, no browser."""

import asyncio
import itertools
from contextlib import aclosing, closing

import drawing
import gradio as gr
import numpy as np
import pytest
import served_models
import torch
import trajectories
from conftest import make_pipeline, make_unet
from posterior_facts import posterior_facts, reverse_std
from request_checks import InvalidRequestError
from tabs import reverse
from trajectories import kept_steps, trajectory, trajectory_drawing

from ddpm_hub import DDPMHubPipeline, DDPMHubScheduler
from ddpm_hub.ddpm_equations import denormalize

REQUEST = {"class_name": "one", "sampler": "ddpm", "num_steps": 5, "guidance": 1, "seed": 7}


@pytest.fixture
def served(tmp_path, monkeypatch) -> None:
    """A tiny model, which the demo serves."""
    serve(make_pipeline(), tmp_path, monkeypatch)


def serve(pipeline: DDPMHubPipeline, folder, monkeypatch) -> None:
    pipeline.save_pretrained(folder)
    monkeypatch.setenv("DDPM_HUB_MODEL", str(folder))


def own_states(num_steps: int, sampler: str = "ddpm") -> list:
    """What the pipeline itself streams for [`REQUEST`]."""
    options = {"class_labels": 1, "sampler": sampler, "num_inference_steps": num_steps, "seed": [7]}
    return list(make_pipeline().stream(batch_size=1, **options))


def pixels(sample: torch.Tensor) -> np.ndarray:
    return denormalize(sample)[0].permute(1, 2, 0).numpy()


def network_calls() -> list:
    """A list that grows by one entry at each call of the served network: its input."""
    calls = []
    unet = served_models.pipeline().unet
    unet.register_forward_pre_hook(lambda _, arguments, named: calls.append([*arguments, *named.values()][0]), with_kwargs=True)  # fmt: skip
    return calls


# --- What is kept ---


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++", "sde-dpm++", "unipc"])
@pytest.mark.usefixtures("served")
def test_every_step_is_the_pipelines_own(sampler):
    way, own = trajectory(**REQUEST | {"sampler": sampler}), own_states(5, sampler)
    assert way.num_steps == len(way.moments) == 5
    assert [moment.step for moment in way.moments] == [1, 2, 3, 4, 5]
    assert [moment.t for moment in way.moments] == [state.timestep + 1 for state in own]
    assert [moment.s for moment in way.moments] == [*[state.timestep + 1 for state in own[1:]], 0]
    before = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    for moment, state in zip(way.moments, own, strict=True):
        assert moment.sample.dtype == np.uint8
        np.testing.assert_array_equal(moment.sample, pixels(before))
        np.testing.assert_array_equal(moment.original, pixels(state.pred_original_sample))
        np.testing.assert_array_equal(moment.following, pixels(state.sample))
        before = state.sample


@pytest.mark.usefixtures("served")
def test_the_first_x_t_is_what_the_network_is_given():
    calls = network_calls()
    way = trajectory(**REQUEST | {"num_steps": 1})
    assert len(calls) == 1
    np.testing.assert_array_equal(way.moments[0].sample, pixels(calls[0]))


@pytest.mark.usefixtures("served")
def test_of_many_steps_sixty_are_kept_the_first_and_the_last_among_them():
    way, own = trajectory(**REQUEST | {"num_steps": 150}), own_states(150)
    steps = [moment.step for moment in way.moments]
    assert (way.num_steps, len(steps), steps[0], steps[-1]) == (150, 60, 1, 150)
    assert set(np.diff(steps)) == {2, 3}
    for moment in way.moments:
        np.testing.assert_array_equal(moment.original, pixels(own[moment.step - 1].pred_original_sample))
        np.testing.assert_array_equal(moment.following, pixels(own[moment.step - 1].sample))
        if moment.step > 1:
            np.testing.assert_array_equal(moment.sample, pixels(own[moment.step - 2].sample))
            assert moment.t == own[moment.step - 1].timestep + 1
    assert way.moments[-1].s == 0


@pytest.mark.parametrize("num_steps", [1, 2, 3, 59, 60, 61, 119, 120, 999, 1000])
def test_steps_are_kept_evenly(num_steps):
    steps = sorted(kept_steps(num_steps, 60))
    assert len(steps) == min(60, num_steps)
    assert (steps[0], steps[-1]) == (1, num_steps)
    gaps = np.diff(steps)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


@pytest.mark.usefixtures("served")
def test_large_images_are_kept_less_often(monkeypatch):
    monkeypatch.setattr(trajectories, "LARGEST_BYTES", 4 * 3 * 64)  # four times three images of 8×8 pixels
    assert [moment.step for moment in trajectory(**REQUEST | {"num_steps": 10}).moments] == [1, 4, 7, 10]
    monkeypatch.setattr(trajectories, "LARGEST_BYTES", 1)
    assert [moment.step for moment in trajectory(**REQUEST | {"num_steps": 10}).moments] == [1, 10]


def test_colours_and_models_without_classes_are_kept_as_they_are(tmp_path, monkeypatch):
    serve(make_pipeline(channels=3, num_class_embeds=None, size=(8, 16)), tmp_path, monkeypatch)
    moment = trajectory(class_name="any", num_steps=1, seed=7).moments[0]
    assert moment.sample.shape == moment.original.shape == moment.following.shape == (8, 16, 3)
    noise = torch.randn(1, 3, 8, 16, generator=torch.Generator().manual_seed(7))
    np.testing.assert_array_equal(moment.sample, pixels(noise))


# --- The numbers of a step ---


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_the_ddpm_steps_by_the_weights_that_are_shown(variance_type):
    # (x_s − w_0 x̂_0 − w_t x_t)/σ is the noise that the seed gives next. Each term is at most 6 and rounded to float32
    # three times, half of a last place, 2.4e-7, each; σ is at least 0.5 in steps of 200.
    scheduler = DDPMHubScheduler(variance_type=variance_type, timestep_spacing="trailing")
    generator, noise = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    sample = torch.randn(1, 1, 8, 8, generator=noise)
    for state in DDPMHubPipeline(make_unet(), scheduler).stream(1, num_inference_steps=5, generator=generator):
        t = state.timestep + 1
        facts, sigma = posterior_facts(scheduler, t, t - 200), reverse_std(scheduler, t, t - 200)
        rest = state.sample - facts.weight_x0 * state.pred_original_sample - facts.weight_xt * sample
        z = torch.randn(1, 1, 8, 8, generator=noise) if t > 200 else torch.zeros(1)
        torch.testing.assert_close(rest / (sigma or 1), z.expand_as(rest), rtol=0, atol=1e-5)
        sample = state.sample


@pytest.mark.parametrize(
    ("stored", "sampler", "draws"),
    [
        (None, "ddpm", True),
        (None, "ddim", False),
        (None, "dpm++", False),
        (None, "unipc", False),
        ({"sampler": "ddpm", "eta": 0.5}, "ddpm", False),
        ({"sampler": "ddpm", "eta": 1.0}, "ddpm", True),
        ({"sampler": "ddim", "eta": 0.5}, "ddpm", True),
        ({"sampler": "ddim", "eta": 0.5}, None, False),
    ],
)
def test_only_the_ddpm_itself_draws_from_the_posterior(tmp_path, monkeypatch, stored, sampler, draws):
    pipeline = make_pipeline()
    pipeline.register_to_config(sampling=stored)
    serve(pipeline, tmp_path, monkeypatch)
    way = trajectory(**REQUEST | {"sampler": sampler, "num_steps": 2})
    assert way.draws_from_posterior is draws
    shown = reverse.moment_at(way, 1)
    assert ("does not draw from the posterior" in shown) is not draws
    assert shown.count("<img") == (3 if draws else 2)


# --- The page ---


def drawn(**changes) -> list[tuple]:
    """Everything that the tab streams."""

    async def collect() -> list[tuple]:
        request = {"model": None, "random_seed": False} | REQUEST | changes
        return [outputs async for outputs in reverse.draw(**request)]

    return asyncio.run(collect())


@pytest.mark.usefixtures("served")
def test_the_tab_streams_and_ends_in_the_film_and_a_step():
    *_, (live, film, scrubber, moment, way, _, status) = drawn(num_steps=12)
    assert live["visible"] is False
    assert film["value"].count("<img") == 2 * 9 + 1
    assert film["value"].count('alt="x̂_0, t = 1000"') == film["value"].count('alt="x_0"') == 1
    assert (scrubber["maximum"], scrubber["value"], scrubber["visible"]) == (12, 6, True)
    assert moment["value"] == reverse.moment_at(way, 6)
    assert "Step 6 of 12" in moment["value"]
    assert "Done: 12 steps" in status


@pytest.mark.usefixtures("served")
def test_one_step_has_no_scrubber():
    *_, (_, film, scrubber, moment, way, _, _) = drawn(num_steps=1)
    assert film["value"].count("<img") == 3
    assert scrubber["visible"] is False
    assert "from t = 1000 to s = 0" in moment["value"]
    assert "the last step adds no noise" in moment["value"]
    assert len(way.moments) == 1


@pytest.mark.usefixtures("served")
def test_a_random_seed_is_told():
    seeds = {drawn(seed=0, random_seed=True, num_steps=1)[0][5] for _ in range(2)}
    assert len(seeds) == 2


@pytest.mark.usefixtures("served")
def test_a_step_that_is_not_kept_is_refused_and_a_drawing_that_is_gone_says_so():
    way = trajectory(**REQUEST)
    with pytest.raises(gr.Error, match="Step is 6; it must be a whole number from 1 to 5"):
        reverse.moment_at(way, 6)
    assert reverse.moment_at(None, 1) == reverse.DRAW_AGAIN


@pytest.mark.usefixtures("served")
def test_closing_ends_the_work_at_once():
    calls = network_calls()
    with closing(drawing.frames(trajectory_drawing(**REQUEST | {"num_steps": 1000}), preview_seconds=0)) as frames:
        assert all(frame.sample is not None for frame in itertools.islice(frames, 4))
    assert len(calls) == 4


@pytest.mark.usefixtures("served")
def test_stopping_the_tab_ends_the_work_within_a_step():
    calls = network_calls()

    async def stop_early() -> int:
        async with aclosing(
            reverse.draw(**{"model": None, "random_seed": False} | REQUEST | {"num_steps": 1000})
        ) as run:
            async for outputs in run:
                if "under-way" in str(outputs[-1]):
                    break
        return len(calls)

    made = asyncio.run(stop_early())
    assert len(calls) == made < 1000


# --- Requests that are refused ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_name": "nine"}, "Class is 'nine'"),
        ({"sampler": "euler"}, "Sampler is 'euler'"),
        ({"sampler": 3}, "Sampler is 3"),
        ({"num_steps": 0}, "Steps is 0"),
        ({"num_steps": 1001}, "Steps is 1001"),
        ({"num_steps": "5"}, "Steps is '5'"),
        ({"guidance": 11}, "Guidance is 11"),
        ({"guidance": float("nan")}, "Guidance is nan"),
        ({"seed": -1}, "Seed is -1"),
        ({"seed": None}, "Seed is empty"),
        ({"seed": True}, "Seed is True"),
        ({"model": "another"}, "Model is 'another'"),
    ],
)
@pytest.mark.usefixtures("served")
def test_values_out_of_range_are_refused_before_the_network_is_called(change, message):
    calls = network_calls()
    with pytest.raises(InvalidRequestError, match=message):
        trajectory(**REQUEST | change)
    with pytest.raises(gr.Error, match=message.replace("'", "&#x27;")):
        drawn(**change)
    assert calls == []
