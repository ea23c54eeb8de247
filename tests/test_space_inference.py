"""What the demo computes, against the pipeline itself: a real tiny model in a folder, no browser."""

import asyncio
import itertools
import json
import shutil
import threading
from pathlib import Path

import app
import gradio as gr
import inference
import numpy as np
import pytest
from conftest import make_pipeline, run_python, seeds
from PIL import Image

REQUEST = {"class_name": "one", "count": 3, "num_steps": 5, "seed": 7, "random_seed": False}


@pytest.fixture
def served(tmp_path, monkeypatch) -> Path:
    """A tiny model's folder, which the demo serves."""
    folder = tmp_path / "model"
    make_pipeline().save_pretrained(folder)
    monkeypatch.setenv("DDPM_HUB_MODEL", str(folder))
    return folder


def count_network_calls() -> list:
    """A list that grows by one entry at each call of the served network."""
    calls = []
    inference.load_pipeline().unet.register_forward_hook(lambda *_: calls.append(None))
    return calls


# --- Frames ---


def test_there_is_a_frame_for_every_step_and_the_first_and_last_have_images(served):
    frames = list(inference.generate(**REQUEST))
    assert [(frame.step, frame.num_steps, frame.seeds) for frame in frames] == [(k, 5, [7, 8, 9]) for k in range(1, 6)]
    assert len(frames[0].images) == len(frames[-1].images) == 3


@pytest.mark.parametrize(("class_name", "label"), [("any", None), ("zero", 0), ("one", 1), ("two", 2)])
def test_image_i_is_the_pipelines_own_image_for_seed_plus_i(served, class_name, label):
    *_, last = inference.generate(**REQUEST | {"class_name": class_name})
    own = make_pipeline()(batch_size=3, class_labels=label, num_inference_steps=5, generator=seeds(7, 8, 9)).images
    for shown, image in zip(last.images, own, strict=True):
        assert shown.size == (224, 224)
        np.testing.assert_array_equal(np.asarray(shown), np.kron(np.asarray(image), np.ones((28, 28), np.uint8)))


def test_an_image_does_not_depend_on_how_many_are_drawn(served):
    *_, three = inference.generate(**REQUEST)
    *_, one = inference.generate(**REQUEST | {"count": 1, "seed": 9})
    difference = np.asarray(three.images[2]).astype(int) - np.asarray(one.images[0])
    assert np.abs(difference).max() <= 1  # the network rounds differently in another batch


def test_large_images_are_not_enlarged(tmp_path, monkeypatch):
    make_pipeline(size=256, channels=3).save_pretrained(tmp_path)
    monkeypatch.setenv("DDPM_HUB_MODEL", str(tmp_path))
    *_, last = inference.generate("two", 1, 1, 0, False)
    assert (last.images[0].size, last.images[0].mode) == ((256, 256), "RGB")


def test_a_random_seed_is_in_range_new_each_time_and_draws_the_same_images_again(served):
    *_, first = inference.generate(**REQUEST | {"seed": -1, "random_seed": True})
    *_, second = inference.generate(**REQUEST | {"random_seed": True})
    *_, again = inference.generate(**REQUEST | {"seed": first.seeds[0]})
    assert first.seeds != second.seeds
    assert all(0 <= seed <= inference.LARGEST_SEED for seed in first.seeds)
    assert first.images == again.images


def test_seeds_go_on_from_zero_after_the_largest(served):
    frame = next(inference.generate(**REQUEST | {"seed": inference.LARGEST_SEED}))
    assert frame.seeds == [inference.LARGEST_SEED, 0, 1]


def test_closing_ends_the_work_at_once(served):
    calls = count_network_calls()
    frames = inference.generate(**REQUEST | {"num_steps": 1000})
    list(itertools.islice(frames, 4))
    frames.close()
    assert len(calls) == 4
    assert list(frames) == []


def test_two_requests_that_alternate_draw_what_each_draws_alone(served):
    other = REQUEST | {"class_name": "two", "num_steps": 8, "seed": 100}
    *_, alone = inference.generate(**REQUEST)
    *_, other_alone = inference.generate(**other)
    pairs = list(itertools.zip_longest(inference.generate(**REQUEST), inference.generate(**other)))
    assert pairs[4][0].images == alone.images
    assert pairs[7][1].images == other_alone.images


def test_an_unconditional_model_offers_any_alone(tmp_path, monkeypatch):
    make_pipeline(num_class_embeds=None).save_pretrained(tmp_path)
    monkeypatch.setenv("DDPM_HUB_MODEL", str(tmp_path))
    assert inference.class_choices() == ["any"]
    *_, last = inference.generate("any", 1, 2, 0, False)
    assert isinstance(last.images[0], Image.Image)


# --- Requests that are refused ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_name": "nine"}, "Class is 'nine'; it must be one of any, zero, one, two."),
        ({"class_name": None}, "Class is None; it must be one of any, zero, one, two."),
        ({"count": 0}, "Images is 0; it must be a whole number from 1 to 16."),
        ({"count": 17}, "Images is 17; it must be a whole number from 1 to 16."),
        ({"num_steps": 0}, "Steps is 0; it must be a whole number from 1 to 1000."),
        ({"num_steps": 1001}, "Steps is 1001; it must be a whole number from 1 to 1000."),
        ({"seed": -1}, "Seed is -1; it must be a whole number from 0 to 4294967295."),
        ({"seed": 2**32}, "Seed is 4294967296; it must be a whole number from 0 to 4294967295."),
        ({"seed": 1.5}, "Seed is 1.5; it must be a whole number from 0 to 4294967295."),
        ({"seed": float("nan")}, "Seed is nan; it must be a whole number from 0 to 4294967295."),
        ({"seed": float("inf")}, "Seed is inf; it must be a whole number from 0 to 4294967295."),
        ({"seed": True}, "Seed is True; it must be a whole number from 0 to 4294967295."),
        ({"seed": "7"}, "Seed is 7; it must be a whole number from 0 to 4294967295."),
        ({"seed": None}, "Seed is empty; it must be a whole number from 0 to 4294967295."),
    ],
)
def test_values_out_of_range_are_refused_before_the_network_is_called(served, change, message):
    calls = count_network_calls()
    with pytest.raises(inference.InvalidRequestError) as caught:
        next(inference.generate(**REQUEST | change))
    assert str(caught.value) == message
    assert calls == []


@pytest.mark.parametrize("change", [{"count": 16.0}, {"num_steps": 1000.0}, {"seed": float(2**32 - 1)}])
def test_the_ends_of_the_ranges_are_served_and_json_may_write_them_as_floats(served, change):
    assert next(inference.generate(**REQUEST | change)).step == 1


# --- Models that are missing or damaged ---


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_width(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": [16, 32]}))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("unet/diffusion_pytorch_model.safetensors", Path.unlink),
        ("unet/diffusion_pytorch_model.safetensors", truncate),
        ("unet/diffusion_pytorch_model.safetensors", lambda path: path.write_bytes(b"")),
        ("unet/config.json", lambda path: path.write_text("{")),
        ("unet/config.json", change_width),
        ("scheduler/scheduler_config.json", Path.unlink),
        ("scheduler/scheduler_config.json", lambda path: path.write_text("no JSON")),
        ("model_index.json", lambda path: path.write_text("{")),
        ("model_index.json", lambda path: path.write_text("[]")),
    ],
)
def test_a_damaged_model_is_one_sentence_and_loads_once_it_is_mended(served, tmp_path, file, damage):
    whole = shutil.copytree(served, tmp_path / "whole")
    damage(served / file)
    with pytest.raises(inference.InvalidRequestError) as caught:
        inference.class_choices()
    assert str(caught.value) == f"The model at {served} is damaged: run `make train` again, or copy its folder whole."
    shutil.copytree(whole, served, dirs_exist_ok=True)
    assert inference.class_choices() == ["any", "zero", "one", "two"]


@pytest.mark.parametrize("exists", [True, False])
def test_without_a_model_the_message_says_what_to_run(tmp_path, monkeypatch, exists):
    folder = tmp_path if exists else tmp_path / "none"
    monkeypatch.setenv("DDPM_HUB_MODEL", str(folder))
    with pytest.raises(inference.InvalidRequestError) as caught:
        next(inference.generate(**REQUEST))
    assert str(caught.value) == (
        f"No trained model at {folder}: run `make train`, or set DDPM_HUB_MODEL to a model's folder."
    )


@pytest.mark.parametrize("value", [None, ""])
def test_the_default_model_is_the_training_runs_folder_and_no_name_on_the_hub(monkeypatch, tmp_path, value):
    monkeypatch.delenv("DDPM_HUB_MODEL", raising=False)
    if value is not None:
        monkeypatch.setenv("DDPM_HUB_MODEL", value)
    monkeypatch.chdir(tmp_path)  # it does not depend on where the demo is started
    assert inference.model_name() == str(Path(app.__file__).parents[1] / "outputs" / "digits")


# --- The page's functions ---


async def draw(**request) -> list:
    return [update async for update in app.generate(**request)]


def test_the_page_streams_images_the_seed_and_the_progress(served):
    first, *_, last = asyncio.run(draw(**REQUEST))
    *_, frame = inference.generate(**REQUEST)
    assert first[2].startswith("Step 1 of 5")
    assert last == (frame.images, 7, "Done in 5 steps, from seed 7 to 9.")


def test_a_refusal_reaches_the_visitor_as_it_is(served):
    with pytest.raises(gr.Error) as caught:
        asyncio.run(draw(**REQUEST | {"seed": -1}))
    assert caught.value.message == "Seed is -1; it must be a whole number from 0 to 4294967295."


def test_a_failure_of_the_model_is_one_sentence_for_the_visitor_and_a_traceback_in_the_log(
    tmp_path, monkeypatch, caplog
):
    make_pipeline(channels=2).save_pretrained(tmp_path)  # draws, but no image format has two channels
    monkeypatch.setenv("DDPM_HUB_MODEL", str(tmp_path))
    with pytest.raises(gr.Error) as caught:
        asyncio.run(draw(**REQUEST))
    assert caught.value.message == "The model failed to draw these images; the server's log says why."
    assert "the model has 2 channels" in caplog.text


def test_a_page_that_is_cancelled_computes_no_more_than_the_step_under_way(served):
    calls = count_network_calls()
    under_way, may_end = threading.Event(), threading.Event()

    def hold_the_third_step(*_) -> None:
        if len(calls) == 3:
            under_way.set()
            may_end.wait(60)

    inference.load_pipeline().unet.register_forward_hook(hold_the_third_step)

    async def cancel_in_the_third_step() -> None:
        updates = app.generate(**REQUEST | {"num_steps": 1000})
        await anext(updates)
        waiting = asyncio.ensure_future(anext(updates))
        await asyncio.to_thread(under_way.wait, 60)
        waiting.cancel()
        await asyncio.sleep(0)  # the page learns of it while the step is still computed
        may_end.set()
        await asyncio.wait([waiting])
        assert waiting.cancelled()

    asyncio.run(cancel_in_the_third_step())  # returns when its threads have ended
    assert len(calls) == 3


# --- Imports ---


def test_importing_the_demo_loads_no_model_and_builds_no_page(tmp_path):
    script = (
        "import sys; sys.path.insert(0, 'space')\n"
        "import gradio as gr, app, inference\n"
        "from gradio.context import Context\n"
        "assert inference._loaded == {} and Context.id == 0, (inference._loaded, Context.id)\n"
    )
    result = run_python("-c", script, DDPM_HUB_MODEL=str(tmp_path / "none"))
    assert result.returncode == 0, result.stderr


def test_the_computation_imports_no_interface():
    script = "import sys; sys.path.insert(0, 'space'); import inference; assert 'gradio' not in sys.modules"
    result = run_python("-c", script)
    assert result.returncode == 0, result.stderr
