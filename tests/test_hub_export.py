"""`export_folder`: any saved model becomes a finished repository, whole or not at all."""

import json
import re
import shutil

import pytest
import torch
from conftest import make_pipeline, make_unet, run_python, seeds
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from ddpm_hub import DDPMHubPipeline
from ddpm_hub.ddpm_hub_layout import CODE_PATHS, check_folder, main_files
from ddpm_hub.hub import export_folder, plan_push
from ddpm_hub.model_card import render_card, write_card

CONFIG = "output_dir: /home/ada/runs/7\ndataset_name: /home/ada/petals\nlearning_rate: 0.001\nlicense: mit\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with what must go, what may, and what must stay."""
    folder = tmp_path_factory.mktemp("export") / "petals"
    make_pipeline().save_pretrained(folder)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "metrics.json").write_text(json.dumps({"training": {"steps": 20}}))
    for path in ("checkpoints/step_20/model.safetensors", "train.log", ".env", "samples/notes.txt", "helper.py"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("secret")
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "petals")


def contents(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def drawn(pipeline) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(num_inference_steps=5, output_type="pt", generator=seeds(1)).images


def card_is_unedited(folder) -> bool:
    """A push renders such a card anew, for the repository that it goes to."""
    size = plan_push(folder, "someone/with-a-long-name")["main"]["README.md"]
    return size == len(render_card(folder, "someone/with-a-long-name").content.rstrip("\n").encode()) + 1


def save_plain(folder) -> DDPMPipeline:
    pipeline = DDPMPipeline(make_unet(num_class_embeds=None), DDPMScheduler(timestep_spacing="trailing"))
    pipeline.save_pretrained(folder)
    return pipeline


class TestInPlace:
    def test_old_code_and_names_are_mended_and_all_else_is_left(self, folder):
        before = contents(folder)
        index = json.loads((folder / "model_index.json").read_text())
        index |= {"_class_name": "DDPMHubPipeline", "scheduler": ["ddpm_hub.scheduling_ddpm_hub", "DDPMHubScheduler"]}
        (folder / "model_index.json").write_text(json.dumps(index))
        (folder / "pipeline_ddpm_hub.py").write_text("# of an earlier version")
        (folder / "scheduler" / "ddpm_equations.py").unlink()
        with pytest.raises(ValueError, match="Run `ddpm-hub export`"):
            check_folder(folder)
        assert export_folder(folder) == folder
        check_folder(folder)
        after = contents(folder)
        assert after.pop("README.md")
        assert after == before
        assert card_is_unedited(folder)

    def test_twice_is_once(self, folder):
        export_folder(folder)
        before = contents(folder)
        export_folder(folder)
        assert contents(folder) == before

    def test_a_card_that_was_edited_is_kept(self, folder):
        write_card(folder)
        (folder / "README.md").write_text("My own words.\n")
        export_folder(folder)
        assert (folder / "README.md").read_text() == "My own words.\n"

    def test_the_folder_itself_under_another_name_is_in_place(self, folder, tmp_path):
        (tmp_path / "link").symlink_to(folder, target_is_directory=True)
        before = contents(folder)
        export_folder(folder, tmp_path / "link")
        export_folder(tmp_path / "link", folder)
        assert before.items() <= contents(folder).items()
        assert (tmp_path / "link").is_symlink()
        assert "petals" in (folder / "README.md").read_text()

    def test_a_folder_of_plain_diffusers_becomes_ours(self, tmp_path):
        expected = make_pipeline(num_class_embeds=None)
        save_plain(tmp_path)
        export_folder(tmp_path)
        check_folder(tmp_path)
        assert torch.equal(drawn(DDPMHubPipeline.from_pretrained(tmp_path)), drawn(expected))
        assert card_is_unedited(tmp_path)


class TestToANewFolder:
    @pytest.mark.parametrize("output", ["release", "a/b/release", "petals/release", "empty", "link"])
    def test_it_holds_what_would_be_published_and_nothing_else(self, folder, tmp_path, output):
        (tmp_path / "empty").mkdir()
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
        before, published = contents(folder), main_files(folder)
        assert export_folder(folder, tmp_path / output) == tmp_path / output
        made = contents(tmp_path / output)
        assert set(made) == set(published) | {"README.md", "config.yaml"}
        assert all(made[path] == content.read_bytes() for path, content in published.items())
        assert not any(b"/home/ada" in content or str(tmp_path).encode() in content for content in made.values())
        assert b"learning_rate: 0.001" in made["config.yaml"]
        assert b"license: mit" in made["README.md"]
        check_folder(tmp_path / output)
        assert card_is_unedited(tmp_path / output)
        left = contents(folder)
        assert before == {path: content for path, content in left.items() if not path.startswith("release/")}
        assert not list(tmp_path.rglob(".ddpm-hub-*"))

    def test_weights_of_half_the_size_load_as_float32_and_draw_nearly_the_same(self, folder, tmp_path):
        export_folder(folder, tmp_path / "release", float16=True)
        check_folder(tmp_path / "release")
        path = "unet/diffusion_pytorch_model.safetensors"
        assert (tmp_path / "release" / path).stat().st_size < 0.6 * (folder / path).stat().st_size
        whole, rounded = (DDPMHubPipeline.from_pretrained(made) for made in (folder, tmp_path / "release"))
        assert rounded.unet.dtype == torch.float32
        for name, weight in whole.unet.state_dict().items():
            # float16 has 11 bits, and below 2**-14 steps of 2**-24.
            torch.testing.assert_close(rounded.unet.state_dict()[name], weight, rtol=2**-11, atol=2**-25)
        assert "float16" in (tmp_path / "release" / "README.md").read_text()

    def test_no_weight_is_rounded_in_place_or_to_infinity(self, folder, tmp_path):
        for output in (None, folder):
            with pytest.raises(ValueError, match="give a new folder as `output`"):
                export_folder(folder, output, float16=True)
        unet = UNet2DModel.from_pretrained(folder / "unet")
        unet.conv_in.weight.data[0, 0, 0, 0] = 7e4
        unet.save_pretrained(folder / "unet")
        with pytest.raises(ValueError, match=r"'conv_in.weight' has weights beyond 65504"):
            export_folder(folder, tmp_path / "release", float16=True)
        assert not (tmp_path / "release").exists()

    def test_a_card_that_was_edited_comes_along(self, folder, tmp_path):
        (folder / "README.md").write_text("My own words.\n")
        export_folder(folder, tmp_path / "release")
        assert (tmp_path / "release" / "README.md").read_text() == "My own words.\n"
        assert not card_is_unedited(tmp_path / "release")

    def test_a_card_that_nobody_edited_is_written_for_the_new_folder(self, folder, tmp_path):
        write_card(folder)
        export_folder(folder, tmp_path / "release")
        assert '"release"' in (tmp_path / "release" / "README.md").read_text()
        assert '"petals"' not in (tmp_path / "release" / "README.md").read_text()
        assert card_is_unedited(tmp_path / "release")

    def test_a_folder_of_plain_diffusers(self, tmp_path):
        save_plain(tmp_path / "plain")
        (tmp_path / "plain" / "README.md").write_text("My own words.\n")
        before = contents(tmp_path / "plain")
        made = export_folder(tmp_path / "plain", tmp_path / "release")
        assert contents(tmp_path / "plain") == before
        check_folder(made)
        assert (made / "README.md").read_text() == "My own words.\n"


def add_output(folder, output):
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")


def index_of(**changes):
    def apply(folder, output):
        path = folder / "model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


def save_ddim(folder, output):
    shutil.rmtree(folder)
    DDIMPipeline(make_unet(num_class_embeds=None), DDIMScheduler()).save_pretrained(folder)


def hide_ddim(folder, output):
    DDIMScheduler().save_config(folder / "scheduler")


def cut_weights(folder, output):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


REFUSED = {
    "output in use": (add_output, "`output` is .*release', which is not an empty folder; choose another one"),
    "output is a file": (lambda _, output: output.write_text("x"), "`output` is .*not an empty folder"),
    "DDIM": (save_ddim, "scheduler = .*DDIMScheduler.*must be DDPMHubScheduler or DDPMScheduler"),
    "DDIM by its config": (hide_ddim, "scheduler_config.json' names the class 'DDIMScheduler'"),
    "another network": (index_of(unet=["diffusers", "UNet2DConditionModel"]), "unet = .*must be UNet2DModel"),
    "names of no classes": (index_of(id2label={"9": "nine"}), "id2label"),
    "no network": (index_of(unet=None), "unet = None"),
    "damaged weights": (cut_weights, "safetensors' is damaged"),
    "damaged figures": (lambda folder, _: (folder / "metrics.json").write_text("{"), "metrics.json' is damaged"),
    "damaged run": (lambda folder, _: (folder / "config.yaml").write_text("- a"), "config.yaml' is damaged"),
    "no model": (lambda folder, _: (folder / "model_index.json").unlink(), "model_index.json' is missing"),
    "no folder": (lambda folder, _: shutil.rmtree(folder), "There is no folder .*petals"),
}


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_changes_nothing(folder, tmp_path, case, in_place):
    damage, message = REFUSED[case]
    if in_place and case.startswith("output"):
        return
    damage(folder, tmp_path / "release")
    before = contents(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError, FileExistsError), match=message) as caught:
        export_folder(folder, None if in_place else tmp_path / "release")
    assert contents(tmp_path) == before
    assert (tmp_path / "release").exists() == case.startswith("output")
    assert not re.search(r"\.ddpm-hub-", str(caught.value))
    assert not list(tmp_path.rglob(".ddpm-hub-*"))


def test_the_result_loads_where_the_package_is_not(folder, tmp_path):
    """By trust, from both an exported run and an exported model of plain diffusers; and with the package."""
    save_plain(tmp_path / "plain")
    made = [export_folder(folder, tmp_path / "release"), export_folder(tmp_path / "plain", tmp_path / "other")]
    script = """
import sys
sys.modules["ddpm_hub"] = None  # `import ddpm_hub` now raises ImportError
import torch
from diffusers import DiffusionPipeline
for folder in sys.argv[1:]:
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    generator = [torch.Generator().manual_seed(1)]
    torch.save(pipeline(num_inference_steps=5, output_type="pt", generator=generator).images, f"{folder}.pt")
"""
    environment = {
        "HF_HOME": str(tmp_path / "cache"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    result = run_python("-c", script, *map(str, made), **environment)
    assert result.returncode == 0, result.stderr
    for release in made:
        expected = drawn(DDPMHubPipeline.from_pretrained(release))
        assert torch.equal(torch.load(f"{release}.pt"), expected)
    assert set(CODE_PATHS) <= set(contents(made[1]))
