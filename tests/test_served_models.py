"""The models that the demo serves: the allow-list, and what is said where one does not load."""

import json
import shutil
from pathlib import Path

import pytest
import served_models
from conftest import make_pipeline, run_python
from request_checks import InvalidRequestError

from ddpm_hub.shipped_models import FOLDER, SHIPPED_MODELS


@pytest.fixture
def served(tmp_path, monkeypatch) -> Path:
    """A tiny model's folder, which the demo serves."""
    folder = tmp_path / "model"
    make_pipeline().save_pretrained(folder)
    monkeypatch.setenv("DDPM_HUB_MODEL", str(folder))
    return folder


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
def test_a_damaged_model_is_one_sentence_and_loads_once_it_is_mended(served, tmp_path, caplog, file, damage):
    whole = shutil.copytree(served, tmp_path / "whole")
    damage(served / file)
    with pytest.raises(InvalidRequestError) as caught:
        served_models.pipeline()
    assert str(caught.value) == "The model model is damaged: run `make train` again, or copy its folder whole."
    assert str(served) in caplog.text  # where it lies is for the log, not for visitors
    shutil.copytree(whole, served, dirs_exist_ok=True)
    assert served_models.pipeline().num_classes == 3


@pytest.mark.parametrize("exists", [True, False])
def test_without_a_model_the_message_says_what_to_run(tmp_path, monkeypatch, exists):
    folder = tmp_path / "empty"
    if exists:
        folder.mkdir()
    monkeypatch.setenv("DDPM_HUB_MODEL", str(folder))
    with pytest.raises(InvalidRequestError) as caught:
        served_models.pipeline()
    assert str(caught.value) == "No trained model empty: run `make train`, or set DDPM_HUB_MODEL to a model's folder."


@pytest.mark.parametrize("value", [None, "", " , "])
def test_by_default_the_models_of_the_package_are_served(monkeypatch, tmp_path, value):
    monkeypatch.delenv("DDPM_HUB_MODEL", raising=False)
    if value is not None:
        monkeypatch.setenv("DDPM_HUB_MODEL", value)
    monkeypatch.chdir(tmp_path)  # it does not depend on where the demo is started
    assert served_models.names() == [str(FOLDER / name) for name in SHIPPED_MODELS]


def test_only_what_is_on_the_list_is_looked_up(served, tmp_path, monkeypatch):
    other = shutil.copytree(served, tmp_path / "other" / "model")
    monkeypatch.setenv("DDPM_HUB_MODEL", f"{served}, {other},me/digits,{served}")
    assert served_models.names() == [str(served), str(other), "me/digits"]
    assert [served_models.title(name) for name in served_models.names()] == ["model (1)", "model (2)", "me/digits"]
    assert served_models.pipeline("model (2)") is served_models.load(str(other))
    assert served_models.pipeline() is served_models.pipeline("model (1)")
    for name in (str(other), "me/other", "model", "..", "", 5):
        with pytest.raises(
            InvalidRequestError, match=r"Model is .*; it must be one of model \(1\), model \(2\), me/digits"
        ):
            served_models.pipeline(name)


def test_no_code_of_a_model_is_run(served):
    for source in served.rglob("*.py"):
        source.write_text("raise SystemExit('code of a model was run')", encoding="utf-8")
    assert served_models.pipeline().num_classes == 3


def test_importing_the_demo_loads_no_model_and_builds_no_page(tmp_path):
    script = (
        "import sys; sys.path.insert(0, 'space')\n"
        "import app, served_models\n"
        "from gradio.context import Context\n"
        "assert served_models._loaded == {} and Context.id == 0, (served_models._loaded, Context.id)\n"
    )
    result = run_python("-c", script, DDPM_HUB_MODEL=str(tmp_path / "none"))
    assert result.returncode == 0, result.stderr
