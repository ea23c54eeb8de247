"""The models that come with the package: finished repositories, which draw what they are asked for, without a network."""

import hashlib
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_python
from PIL import Image

import ddpm_hub
from ddpm_hub import DDPMHubPipeline, shipped_model
from ddpm_hub.ddpm_hub_layout import CODE_FILES, WEIGHTS, check_folder, main_files
from ddpm_hub.domain_classifier import ShippedClassifier
from ddpm_hub.model_card import render_card
from ddpm_hub.model_folder import read_model_folder
from ddpm_hub.shipped_models import SHIPPED_MODELS

PACKAGE = Path(ddpm_hub.__file__).parent
LARGEST_BYTES = 16 * 2**20


@pytest.fixture(params=SHIPPED_MODELS)
def folder(request) -> Path:
    return shipped_model(request.param)


def test_it_is_a_finished_repository_of_this_version(folder):
    """`ddpm-hub export FOLDER` brings its code up to date, `ddpm-hub card FOLDER` its card."""
    check_folder(folder)
    for place, names in CODE_FILES.items():
        for name in names:
            assert (folder / place / name).read_bytes() == (PACKAGE / name).read_bytes(), f"{place}/{name}"
    assert (folder / "README.md").read_text(encoding="utf-8").strip() == render_card(folder).content.strip()
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == main_files(folder).keys() | {"README.md", "config.yaml"}
    assert sum((folder / path).stat().st_size for path in files) < LARGEST_BYTES


def test_its_card_has_a_grid_and_figures(folder):
    model = read_model_folder(folder)
    types = {figure["type"] for figure in model.metrics["evaluation"]}
    assert {"bits_per_dim", "fid", "kid", "precision", "recall", "class_fidelity", "memorisation_pixels"} <= types
    assert model.dtype == "float16"
    assert any(folder.glob("samples/*.png"))
    assert any(folder.glob("plots/*.png"))


def test_its_figures_are_of_these_files(folder):
    found = read_model_folder(folder).metrics["model"]["sha256"]
    assert found == {path: hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in found}
    assert WEIGHTS in found


def test_its_grid_is_drawn_by_these_weights(folder):
    """The first row, from seeds 0 to 9: float16 and another processor's roundings are worth less than a grey level in the mean."""
    model = read_model_folder(folder)
    with Image.open(folder / model.metrics["samples"]["file"]) as picture:
        grid = np.asarray(picture.convert("L")).astype(int)
    pipeline = DDPMHubPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(class_labels=list(range(10)), seed=0, output_type="np").images
    drawn = (images[..., 0] * 255).round().astype(int)
    width = drawn.shape[2]
    scale = grid.shape[1] // (10 * (width + 1) - 1)  # a pixel lies between two columns
    grid = grid[::scale, ::scale]
    for number, image in enumerate(drawn):
        shown = grid[: image.shape[0], number * (width + 1) :][:, :width]
        assert abs(shown - image).mean() < 2, f"column {number}"


def test_plain_diffusers_draws_the_same_by_trust(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    script = (
        "import sys\n"
        "from diffusers import DiffusionPipeline\n"
        "pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "images = pipeline(class_labels=[3, 1], seed=[5, 6], output_type='np').images\n"
        "import numpy; numpy.save(sys.argv[2], images); assert 'ddpm_hub' not in sys.modules\n"
    )
    offline = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    result = run_python("-c", script, str(tmp_path / "model"), str(tmp_path / "images.npy"), **offline)
    assert result.returncode == 0, result.stderr
    own = DDPMHubPipeline.from_pretrained(folder)(class_labels=[3, 1], seed=[5, 6], output_type="np").images
    # The same code on the same machine; threads that share the cores decide how sums are rounded.
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), own, atol=1e-3)


def test_it_draws_what_it_is_asked_for(folder):
    pipeline = DDPMHubPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    labels = torch.arange(10).repeat(10)
    images = pipeline(class_labels=labels.tolist(), seed=0, output_type="pt").images
    figures = {figure["type"]: figure for figure in read_model_folder(folder).metrics["evaluation"]}
    share = figures["class_fidelity"]["value"]
    found = ShippedClassifier(folder.name)((images * 255).round().to(torch.uint8))[1].argmax(dim=1)
    # A hundred draws: five standard deviations below the card's figure are seen once in three million times.
    assert (found == labels).double().mean() > share - 5 * math.sqrt(share * (1 - share) / len(labels)) - 0.01


def test_another_name_is_refused():
    with pytest.raises(ValueError, match=r"`name` is 'faces'; the models that come with the package are .*digits"):
        shipped_model("faces")


def test_a_package_without_its_models_says_so(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "ddpm_hub", ignore=shutil.ignore_patterns("models", "__pycache__"))
    script = tmp_path / "script.py"  # its folder is the first that is looked into
    script.write_text("from ddpm_hub import shipped_model\nshipped_model('digits')\n")
    result = run_python(str(script))
    assert "FileNotFoundError: This copy of ddpm_hub has no models" in result.stderr
