"""What the demo tells of a model, out of its folder."""

import json
import re
from base64 import b64decode

import pytest
from conftest import make_pipeline
from model_facts import model_facts
from PIL import Image
from request_checks import InvalidRequestError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    place = tmp_path / "model"
    make_pipeline().save_pretrained(place)
    monkeypatch.setenv("DDPM_HUB_MODEL", str(place))
    return place


def png(path, size=(4, 4)) -> bytes:
    path.parent.mkdir(exist_ok=True)
    Image.new("L", size).save(path)
    return path.read_bytes()


def test_the_facts_of_a_model_without_a_card(folder):
    known = model_facts()
    assert known.as_dict() == {
        "title": "model", "classes": ["any", "zero", "one", "two"], "num_train_timesteps": 1000, "height": 8, "width": 8,
        "channels": 1, "num_parameters": make_pipeline().unet.num_parameters(), "sampler": "ddpm", "num_steps": 100,
        "guidance": 1.0, "guidance_interval": None,
    }  # fmt: skip
    assert (known.card, known.metrics, known.plots) == ("", {}, [])


def test_a_card_has_its_pictures_inside_and_the_other_plots_follow(folder):
    grid = png(folder / "samples" / "step_5.png")
    png(folder / "loss_curve.png")
    png(folder / "plots" / "bound.png")
    (folder / "metrics.json").write_text('{"evaluation": []}')
    card = "---\nlicense: mit\n---\n# Digits\n\n![a grid](samples/step_5.png)\n\n![loss](loss_curve.png)\n---\nmore\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
    known = model_facts("model")
    assert known.card.startswith("# Digits\n")
    assert known.card.endswith("---\nmore")
    assert b64decode(re.search(r"!\[a grid\]\(data:image/png;base64,([^)]+)\)", known.card)[1]) == grid
    assert known.plots == [folder / "plots" / "bound.png"]
    assert known.metrics == {"evaluation": []}


@pytest.mark.parametrize(
    "place",
    ["https://example.org/a.png", "../secret.png", "/etc/passwd", "missing.png", "unet/config.json", "huge.png"],
)
def test_a_card_shows_no_picture_from_elsewhere(folder, place):
    png(folder.parent / "secret.png")
    (folder / "huge.png").write_bytes(b"\0" * (2 * 2**20 + 1))
    (folder / "README.md").write_text(f"see ![the picture]({place})", encoding="utf-8")
    assert model_facts().card == "see *the picture*"


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_damaged_figures_are_no_figures(folder, content):
    (folder / "metrics.json").write_text(content)
    assert model_facts().metrics == {}


def test_a_card_that_is_no_text_is_shown_as_far_as_it_goes(folder):
    (folder / "README.md").write_bytes(b"# Digits \xff\xfe")
    assert model_facts().card.startswith("# Digits")


def test_what_the_api_tells_is_json(folder):
    json.dumps(model_facts().as_dict())


def test_other_models_have_no_facts(folder):
    with pytest.raises(InvalidRequestError, match="Model is '/etc'; it must be one of model"):
        model_facts("/etc")
