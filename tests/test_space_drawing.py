"""What the demo draws, against the pipeline itself: a real tiny model in a folder, no page."""

import asyncio
import functools
import itertools
import threading
from pathlib import Path

import drawing
import numpy as np
import pytest
import served_models
from conftest import make_pipeline, run_python, seeds
from PIL import Image
from request_checks import LARGEST_SEED, InvalidRequestError
from tabs import results, streaming

REQUEST = {"class_name": "one", "count": 3, "sampler": "ddpm", "num_steps": 5, "guidance": 1, "seed": 7}


@pytest.fixture
def served(tmp_path, monkeypatch) -> Path:
    """A tiny model's folder, which the demo serves."""
    folder = tmp_path / "model"
    make_pipeline().save_pretrained(folder)
    monkeypatch.setenv("DDPM_HUB_MODEL", str(folder))
    return folder


def frames(preview_seconds: float = 0, **change) -> list[drawing.Frame]:
    return list(drawing.frames(drawing.image_drawing(**REQUEST | change), preview_seconds))


def count_network_calls() -> list:
    """A list that grows by one entry at each call of the served network."""
    calls = []
    served_models.pipeline().unet.register_forward_hook(lambda *_: calls.append(None))
    return calls


# --- Frames ---


def test_there_is_a_frame_for_every_step(served):
    found = frames()
    assert [(frame.step, frame.num_steps) for frame in found] == [(k, 5) for k in range(1, 6)]
    assert [frame.timestep for frame in found] == [1000, 800, 600, 400, 200]  # t = 1…T, trailing
    assert [frame.seconds for frame in found] == sorted(frame.seconds for frame in found)


def test_every_frame_is_the_pipelines_own_state(served):
    own = make_pipeline().stream(batch_size=3, class_labels=1, num_inference_steps=5, generator=seeds(7, 8, 9))
    for frame, state in zip(frames(), own, strict=True):
        for pixels, sample in ((frame.sample, state.sample), (frame.original, state.pred_original_sample)):
            assert (pixels.shape, pixels.dtype) == ((3, 8, 8, 1), np.uint8)
            expected = np.stack([np.asarray(image) for image in make_pipeline().decode(sample)])[..., None]
            np.testing.assert_array_equal(pixels, expected)


def test_between_two_previews_there_are_no_pixels_and_at_the_ends_there_are(served):
    found = frames(preview_seconds=3600)
    assert [frame.sample is not None for frame in found] == [True, False, False, False, True]
    assert [frame.original is not None for frame in found] == [True, False, False, False, True]


def test_the_page_is_told_of_previews_and_not_of_every_step(served, monkeypatch):
    """A browser that is told of a thousand steps faster than it shows them shows none until the end."""
    monkeypatch.setattr(results, "frames", functools.partial(streaming.frames, preview_seconds=3600))

    async def told() -> list[tuple]:
        return [update async for update in results.drawn_images("generate", lambda: drawing.image_drawing(**REQUEST))]

    empty, first, end = asyncio.run(told())
    assert "<img" not in empty[0]
    assert first[0].count("<img") == 2
    assert "Step 1 of 5" in first[2]
    assert "Done: 5 steps" in end[2]


@pytest.mark.parametrize(("class_name", "label"), [("any", None), ("zero", 0), ("one", 1), ("two", 2)])
def test_image_i_is_the_pipelines_own_image_for_seed_plus_i(served, class_name, label):
    own = make_pipeline()(batch_size=3, class_labels=label, num_inference_steps=5, generator=seeds(7, 8, 9)).images
    for shown, image in zip(frames(class_name=class_name)[-1].sample, own, strict=True):
        np.testing.assert_array_equal(shown[..., 0], np.asarray(image))


@pytest.mark.parametrize(("sampler", "guidance"), [("ddim", 1), ("dpm++", 2.5), ("sde-dpm++", 1), ("unipc", 0)])
def test_samplers_and_guidance_reach_the_pipeline(served, sampler, guidance):
    own = make_pipeline()(class_labels=[1], sampler=sampler, num_inference_steps=5, guidance_scale=guidance, seed=7)
    drawn = frames(count=1, sampler=sampler, guidance=guidance)[-1].sample[0, ..., 0]
    np.testing.assert_array_equal(drawn, np.asarray(own.images[0]))


def test_an_image_does_not_depend_on_how_many_are_drawn(served):
    three, one = frames()[-1], frames(count=1, seed=9)[-1]
    difference = three.sample[2].astype(int) - one.sample[0]
    assert np.abs(difference).max() <= 1  # the network rounds differently in another batch


def test_seeds_go_on_from_zero_after_the_largest(served):
    assert drawing.image_drawing(**REQUEST | {"seed": LARGEST_SEED}).seeds == [LARGEST_SEED, 0, 1]


def test_closing_ends_the_work_at_once(served):
    calls = count_network_calls()
    drawn = drawing.frames(drawing.image_drawing(**REQUEST | {"num_steps": 1000}))
    list(itertools.islice(drawn, 4))
    drawn.close()
    assert len(calls) == 4
    assert list(drawn) == []


def test_two_requests_that_alternate_draw_what_each_draws_alone(served):
    other = {"class_name": "two", "num_steps": 8, "seed": 100}
    both = [drawing.frames(drawing.image_drawing(**REQUEST | change), 0) for change in ({}, other)]
    pairs = list(itertools.zip_longest(*both))
    np.testing.assert_array_equal(pairs[4][0].sample, frames()[-1].sample)
    np.testing.assert_array_equal(pairs[7][1].sample, frames(**other)[-1].sample)


def test_a_step_that_is_waited_for_can_be_cancelled_and_nothing_is_computed_after_it(served):
    calls = count_network_calls()
    under_way, may_end = threading.Event(), threading.Event()

    def hold_the_third_step(*_) -> None:
        if len(calls) == 3:
            under_way.set()
            may_end.wait(60)

    served_models.pipeline().unet.register_forward_hook(hold_the_third_step)

    async def cancel_in_the_third_step() -> None:
        async with streaming.frames(drawing.image_drawing(**REQUEST | {"num_steps": 1000})) as drawn:
            await anext(drawn)
            await anext(drawn)
            waiting = asyncio.ensure_future(anext(drawn))
            await asyncio.to_thread(under_way.wait, 60)
            waiting.cancel()
            await asyncio.sleep(0)  # the page learns of it while the step is still computed
            may_end.set()
            await asyncio.wait([waiting])
            assert waiting.cancelled()

    asyncio.run(cancel_in_the_third_step())  # returns when its threads have ended
    assert len(calls) == 3


def test_the_animation_is_the_same_drawing_again(served, tmp_path):
    path = drawing.animation(drawing.image_drawing(**REQUEST), tmp_path / "way.webp")
    with Image.open(path) as animation:
        assert (animation.format, animation.n_frames) == ("WEBP", 5)
        animation.seek(4)
        last = np.asarray(animation.convert("L"))
    # Three images of 8 pixels, enlarged eightfold, with gaps of 4: x_0 of the first one is in its top left corner.
    expected = np.kron(frames()[-1].sample[0, ..., 0], np.ones((8, 8), np.uint8))
    found = [
        (row, column)
        for row in range(last.shape[0] - 63)
        for column in range(40)
        if np.array_equal(last[row : row + 64, column : column + 64], expected)
    ]
    assert len(found) == 1


def test_what_was_drawn_lately_is_not_drawn_again(served):
    calls = count_network_calls()
    first = drawing.finished(drawing.image_drawing(**REQUEST))
    assert drawing.finished(drawing.image_drawing(**REQUEST)) is first
    assert len(calls) == 5
    assert drawing.finished(drawing.image_drawing(**REQUEST | {"seed": 8})) is not first
    assert len(calls) == 10


def test_of_what_was_drawn_only_the_last_is_kept(served, monkeypatch):
    monkeypatch.setattr(drawing, "LARGEST_KEPT", 2)
    drawing._kept.clear()
    calls = count_network_calls()
    for seed in (1, 2, 3, 1):
        drawing.finished(drawing.image_drawing(**REQUEST | {"seed": seed}))
    assert len(drawing._kept) == 2
    assert len(calls) == 4 * 5


def test_the_log_tells_the_settings_and_no_image(served):
    assert drawing.image_drawing(**REQUEST).described() == {
        "model": "model", "class_labels": 1, "sampler": "ddpm", "num_inference_steps": 5, "guidance_scale": 1.0,
        "batch_size": 3, "first_seed": 7,
    }  # fmt: skip


# --- What is taken where nothing is said ---


def test_the_models_own_settings_are_the_default(tmp_path, monkeypatch):
    pipeline = make_pipeline()
    pipeline.register_to_config(sampling={"sampler": "ddim", "num_inference_steps": 7, "guidance_scale": 2.0})
    pipeline.save_pretrained(tmp_path)
    monkeypatch.setenv("DDPM_HUB_MODEL", str(tmp_path))
    own = drawing.image_drawing(class_name="one").options
    assert [own[name] for name in ("sampler", "num_inference_steps", "guidance_scale")] == ["ddim", 7, 2.0]
    other = drawing.image_drawing(class_name="one", sampler="ddpm").options
    assert [other[name] for name in ("sampler", "num_inference_steps", "guidance_scale")] == ["ddpm", 50, 2.0]
    assert drawing.image_drawing().options["guidance_scale"] == 1.0  # of no class there is nothing to be guided to


def test_an_unconditional_model_offers_any_alone(tmp_path, monkeypatch):
    make_pipeline(num_class_embeds=None).save_pretrained(tmp_path)
    monkeypatch.setenv("DDPM_HUB_MODEL", str(tmp_path))
    assert drawing.classes(served_models.pipeline()) == ["any"]
    assert drawing.finished(drawing.image_drawing(num_steps=2)).sample.shape == (8, 8, 8, 1)


# --- Requests that are refused ---

SEED_RANGE = "it must be a whole number from 0 to 4294967295."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_name": "nine"}, "Class is 'nine'; it must be one of any, zero, one, two."),
        ({"class_name": 1}, "Class is 1; it must be one of any, zero, one, two."),
        ({"count": 0}, "Images is 0; it must be a whole number from 1 to 16."),
        ({"count": 17}, "Images is 17; it must be a whole number from 1 to 16."),
        ({"count": None}, "Images is empty; it must be a whole number from 1 to 16."),
        ({"num_steps": 0}, "Steps is 0; it must be a whole number from 1 to 1000."),
        ({"num_steps": 1001}, "Steps is 1001; it must be a whole number from 1 to 1000."),
        ({"guidance": -0.1}, "Guidance is -0.1; it must be a number from 0 to 10."),
        ({"guidance": float("nan")}, "Guidance is nan; it must be a number from 0 to 10."),
        ({"sampler": "euler"}, "Sampler is 'euler'; it must be one of ddpm, ddim, dpm++, sde-dpm++, unipc."),
        ({"model": "../secret"}, "Model is '../secret'; it must be one of model."),
        ({"seed": -1}, f"Seed is -1; {SEED_RANGE}"),
        ({"seed": 2**32}, f"Seed is 4294967296; {SEED_RANGE}"),
        ({"seed": 1.5}, f"Seed is 1.5; {SEED_RANGE}"),
        ({"seed": float("nan")}, f"Seed is nan; {SEED_RANGE}"),
        ({"seed": float("inf")}, f"Seed is inf; {SEED_RANGE}"),
        ({"seed": True}, f"Seed is True; {SEED_RANGE}"),
        ({"seed": "7"}, f"Seed is '7'; {SEED_RANGE}"),
        ({"seed": [7]}, f"Seed is of type list; {SEED_RANGE}"),
        ({"seed": None}, f"Seed is empty; {SEED_RANGE}"),
    ],
)
def test_values_out_of_range_are_refused_before_the_network_is_called(served, change, message):
    calls = count_network_calls()
    with pytest.raises(InvalidRequestError) as caught:
        drawing.image_drawing(**REQUEST | change)
    assert str(caught.value) == message
    assert any("一" <= character <= "鿿" for character in caught.value.message.zh)
    assert calls == []


@pytest.mark.parametrize("change", [{"count": 16.0}, {"num_steps": 1000.0, "count": 16}, {"seed": float(2**32 - 1)}])
def test_the_ends_of_the_ranges_are_served_and_json_may_write_them_as_floats(served, change):
    assert next(drawing.frames(drawing.image_drawing(**REQUEST | change))).step == 1


def test_what_the_model_itself_refuses_is_a_refusal_too(served, monkeypatch):
    # DPM-Solver++ needs T of at least 2.
    asked = drawing.image_drawing(**REQUEST)
    asked.options["eta"] = 2
    with pytest.raises(InvalidRequestError, match="`eta` is 2"):
        next(drawing.frames(asked))


# --- ZeroGPU, and imports ---


def test_a_gpu_is_lent_for_as_long_as_the_drawing_needs(served):
    few, many = (drawing.image_drawing(**REQUEST | {"num_steps": steps}) for steps in (5, 1000))
    assert drawing.lease_seconds(few, 0.25) < drawing.lease_seconds(many, 0.25) <= 300


def test_the_work_on_a_lent_gpu_is_decorated_and_elsewhere_it_is_not(tmp_path):
    (tmp_path / "spaces.py").write_text(
        "def GPU(duration):\n    return lambda function: ('lent', function.__name__, duration)\n", encoding="utf-8"
    )
    begin = "import sys; sys.path[:0] = ['space', sys.argv[1]]\n"
    alone = run_python(
        "-c", f"{begin}from gpu_lease import on_gpu; print(on_gpu(duration=9)(len) is len)", str(tmp_path)
    )
    assert alone.stdout == "True\n", alone.stderr
    script = (
        f"{begin}import drawing\n"
        "print([(what, name, duration is drawing.lease_seconds) for what, name, duration in (drawing.frames, drawing.animation)])\n"
    )
    lent = run_python("-c", script, str(tmp_path), SPACES_ZERO_GPU="true")
    assert lent.stdout == "[('lent', 'frames', True), ('lent', 'animation', True)]\n", lent.stderr


def test_a_drawing_and_its_frames_can_go_to_another_process(served):
    import pickle

    asked = pickle.loads(pickle.dumps(drawing.image_drawing(**REQUEST)))
    *_, frame = pickle.loads(pickle.dumps(list(drawing.frames(asked))))
    np.testing.assert_array_equal(frame.sample, frames()[-1].sample)


def test_the_computation_imports_no_interface():
    names = (
        "drawing, editing, served_models, pictures, schedule_facts, posterior_facts, trajectories, equations_document"
    )
    script = f"import sys; sys.path.insert(0, 'space'); import {names}; assert 'gradio' not in sys.modules"
    result = run_python("-c", script)
    assert result.returncode == 0, result.stderr
