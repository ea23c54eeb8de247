"""Film strips and animations of real trajectories."""

import numpy as np
import pytest
import torch
from conftest import make_pipeline
from PIL import Image

from ddpm_hub import film_strip, save_animation
from ddpm_hub.trajectory_pictures import CAPTION_HEIGHT, GAP, MARGIN, chosen_states


def states(count: int = 2, steps: int = 12, **options):
    return make_pipeline(**options).stream(batch_size=count, num_inference_steps=steps, seed=0)


def test_the_first_and_the_last_step_are_shown_and_the_rest_evenly():
    assert [state.step for state in chosen_states(states(), 4)] == [0, 4, 7, 11]
    assert [state.step for state in chosen_states(states(), 1)] == [11]
    assert [state.step for state in chosen_states(states(), 99)] == list(range(12))


def test_a_stream_that_was_closed_early_ends_with_its_last_state():
    early = (state for state, _ in zip(states(), range(5), strict=False))
    assert [state.step for state in chosen_states(early, 3)][-1] == 4


def test_a_film_strip_holds_x_t_and_the_estimate_of_every_image():
    chosen = chosen_states(states(), 3)
    strip = film_strip(states(), 3)
    side = 64  # 8 pixels, 8 times enlarged
    assert strip.size == (MARGIN + 3 * (side + GAP), CAPTION_HEIGHT + 4 * (side + GAP))
    pixels = np.asarray(strip)
    for column, state in enumerate(chosen):
        for row, sample in enumerate((state.sample[0], state.pred_original_sample[0], state.sample[1])):
            top, left = CAPTION_HEIGHT + row * (side + GAP), MARGIN + column * (side + GAP)
            shown = pixels[top : top + side : 8, left : left + side : 8, 0]
            wanted = ((sample[0].clamp(-1, 1) + 1) * 127.5).round().numpy()
            assert np.abs(shown - wanted).max() <= 0.5
    assert (pixels[:, MARGIN // 2 - 8 : MARGIN // 2 + 8] < 128).any()  # the rows have titles


@pytest.mark.parametrize("ending", ["gif", "webp", "WEBP"])
@pytest.mark.parametrize(("channels", "classes"), [(1, 4), (3, 4), (2, None)])
def test_an_animation(tmp_path, ending, channels, classes):
    made = save_animation(
        states(3, channels=channels, num_class_embeds=classes), tmp_path / f"film.{ending}", 5, milliseconds=50
    )
    with Image.open(made) as film:
        assert film.format == ending.upper()
        assert film.n_frames == 5
        sizes, durations = set(), []
        for number in range(5):
            film.seek(number)
            film.load()
            sizes.add(film.size)
            durations.append(film.info["duration"])
    assert len(sizes) == 1
    assert durations[-1] >= 1500  # the end is held
    assert list(tmp_path.iterdir()) == [made]


def test_webp_loses_nothing(tmp_path):
    (last,) = chosen_states(states(1), 1)
    with Image.open(save_animation([last], tmp_path / "film.webp")) as film:
        shown = np.asarray(film.convert("RGB"))[CAPTION_HEIGHT : CAPTION_HEIGHT + 64 : 8, GAP : GAP + 64 : 8, 0]
    assert np.abs(shown - ((last.sample[0, 0].clamp(-1, 1) + 1) * 127.5).round().numpy()).max() <= 0.5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": "film.mp4"}, ValueError, r"`path` is 'film.mp4'; it must end in .gif or .webp"),
        ({"path": "no/such/folder/film.gif"}, FileNotFoundError, "there is no folder 'no/such/folder'"),
        ({"frames": 0}, ValueError, "`frames` is 0"),
        ({"milliseconds": 0}, ValueError, "`milliseconds` is 0"),
        ({"columns": 0}, ValueError, "`columns` is 0"),
        ({"states": []}, ValueError, "`states` is empty"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_anything_is_drawn(arguments, error, message, tmp_path):
    calls, pipeline = [], make_pipeline()
    pipeline.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    stream = pipeline.stream(num_inference_steps=3)
    with pytest.raises(error, match=message):
        save_animation(**{"states": stream, "path": tmp_path / "film.gif"} | arguments)
    assert calls == []


def test_states_keep_their_tensors():
    """What is shown is read, not changed."""
    (last,) = chosen_states(states(1), 1)
    before = last.sample.clone()
    film_strip([last])
    assert torch.equal(last.sample, before)
