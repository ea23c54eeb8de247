"""Editing through the demo, against the pipeline's own methods."""

import drawing
import editing
import numpy as np
import pytest
from conftest import make_pipeline
from PIL import Image
from request_checks import InvalidRequestError
from tabs.mask_brush import REGIONS, mask_of_text, region

SETTINGS = {"class_name": "one", "sampler": "ddim", "num_steps": 6, "guidance": 1}
MASK = np.zeros((8, 8), bool)
MASK[2:5, 1:4] = True


@pytest.fixture(autouse=True)
def served(tmp_path, monkeypatch):
    make_pipeline().save_pretrained(tmp_path / "model")
    monkeypatch.setenv("DDPM_HUB_MODEL", str(tmp_path / "model"))


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8))


def drawn(asked: drawing.Drawing) -> np.ndarray:
    *_, frame = drawing.frames(asked)
    return frame.sample[..., 0]


def inpainting(image, **change) -> drawing.Drawing:
    settings = {"mask": MASK, "count": 2, "resamplings": 2, "seed": 3} | SETTINGS | change
    return editing.inpainting_drawing(model=None, image=image, **settings)


def img2img(image, **change) -> drawing.Drawing:
    return editing.img2img_drawing(
        model=None, image=image, **{"strength": 0.5, "count": 2, "seed": 3} | SETTINGS | change
    )


def interpolation(**change) -> drawing.Drawing:
    return editing.interpolation_drawing(None, **{"first_seed": 1, "second_seed": 2, "count": 4} | SETTINGS | change)


OWN = {"class_labels": 1, "sampler": "ddim", "num_inference_steps": 6}


def test_inpainting_is_the_pipelines_and_keeps_what_is_not_marked(image):
    found = drawn(inpainting(image))
    own = make_pipeline().inpaint(image, MASK, resamplings=2, batch_size=2, seed=3, **OWN).images
    np.testing.assert_array_equal(found, [np.asarray(one) for one in own])
    assert (found[:, ~MASK] == np.asarray(image)[~MASK]).all()
    assert (found[:, MASK] != np.asarray(image)[MASK]).any()


def test_img2img_is_the_pipelines(image):
    own = make_pipeline().img2img(image, 0.5, batch_size=2, seed=3, **OWN).images
    np.testing.assert_array_equal(drawn(img2img(image)), [np.asarray(one) for one in own])


def test_an_interpolation_is_the_pipelines_and_ends_in_what_the_seeds_draw(image):
    found = drawn(interpolation())
    own = make_pipeline().interpolate(1, 2, 4, **OWN).images
    np.testing.assert_array_equal(found, [np.asarray(one) for one in own])
    for end, seed in ((0, 1), (-1, 2)):
        alone = np.asarray(make_pipeline()(batch_size=1, seed=seed, **OWN).images[0]).astype(int)
        assert np.abs(found[end] - alone).max() <= 1  # the network rounds differently in another batch


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1", "P", "CMYK"])
@pytest.mark.parametrize("size", [(8, 8), (80, 80), (31, 17)])
def test_any_picture_is_brought_to_the_size_and_the_channels_of_the_model(mode, size):
    found = editing.model_image(make_pipeline(), Image.new(mode, size))
    assert (found.mode, found.size) == ("L", (8, 8))


def test_a_picture_that_was_enlarged_comes_back_as_it_was(image):
    large = image.resize((224, 224), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(np.asarray(editing.model_image(make_pipeline(), large)), np.asarray(image))


def test_a_colour_model_gets_colours(tmp_path, monkeypatch):
    make_pipeline(channels=3).save_pretrained(tmp_path / "colour")
    monkeypatch.setenv("DDPM_HUB_MODEL", str(tmp_path / "colour"))
    *_, frame = drawing.frames(img2img(Image.new("L", (20, 20)), count=1))
    assert frame.sample.shape == (1, 8, 8, 3)


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (inpainting, {"sampler": "dpm++"}, r"Sampler is 'dpm\+\+'; it must be one of ddpm, ddim\."),
        (inpainting, {"mask": np.zeros((8, 8), bool)}, "Nothing is marked"),
        (inpainting, {"mask": np.ones((4, 9), bool)}, "The mask is 9×4; the model's images are 8×8"),
        (inpainting, {"resamplings": 11}, "Resamplings is 11; it must be a whole number from 1 to 10"),
        (
            inpainting,
            {"num_steps": 1000, "count": 16, "resamplings": 2},
            "This asks for 32000 steps of an image; at most 16000",
        ),
        (img2img, {"strength": 0}, "Strength is 0; it must be a number from 0.01 to 1"),
        (img2img, {"strength": "much"}, "Strength is 'much'; it must be a number from 0.01 to 1"),
        (img2img, {"count": 17}, "Images is 17; it must be a whole number from 1 to 16"),
    ],
)
def test_what_cannot_be_drawn_is_refused(image, make, change, message):
    with pytest.raises(InvalidRequestError, match=message):
        make(image, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 1}, "Images is 1; it must be a whole number from 2 to 16"),
        ({"second_seed": -1}, "Second seed is -1; it must be a whole number from 0 to 4294967295"),
        ({"first_seed": 0.5}, "First seed is 0.5; it must be a whole number from 0 to 4294967295"),
    ],
)
def test_an_interpolation_that_cannot_be_drawn_is_refused(change, message):
    with pytest.raises(InvalidRequestError, match=message):
        interpolation(**change)


def test_a_model_of_two_channels_has_no_images(tmp_path, monkeypatch, image):
    make_pipeline(channels=2).save_pretrained(tmp_path / "two")
    monkeypatch.setenv("DDPM_HUB_MODEL", str(tmp_path / "two"))
    with pytest.raises(InvalidRequestError, match="This model has 2 channels; images have 1, 3 or 4"):
        img2img(image)


# --- Masks ---


def test_white_is_painted_and_black_is_kept():
    picture = Image.fromarray(np.kron(MASK, np.ones((5, 5))).astype(np.uint8) * 255).convert("RGB")
    np.testing.assert_array_equal(editing.mask_of_image(picture, (8, 8)), MASK)


def test_the_brush_tells_its_mask_in_zeros_and_ones():
    text = "".join("01"[int(on)] for on in MASK.ravel())
    np.testing.assert_array_equal(mask_of_text(text, (8, 8)), MASK)
    assert not mask_of_text("", (8, 8)).any()
    for wrong in (text[1:], text.replace("1", "2"), text * 2, 5, ["1"] * 64, "٠" * 64):
        with pytest.raises(InvalidRequestError, match="The mask is not one of this model"):
            mask_of_text(wrong, (8, 8))


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (28, 28)])
def test_halves_are_halves(size):
    found = {name: mask_of_text(region(name, size), size) for name in REGIONS}
    assert not found["nothing"].any()
    np.testing.assert_array_equal(found["left"], found["right"][:, ::-1])
    np.testing.assert_array_equal(found["top"], found["bottom"][::-1])
    assert found["left"].mean() == size[1] // 2 / size[1]
    assert 0.2 < found["middle"].mean() < 0.4
    np.testing.assert_array_equal(found["middle"], found["middle"][::-1, ::-1])
