"""training/sample.py as its user runs it: processes of their own, alone and together, killed, stopped and misused."""

import gc
import hashlib
import json
import signal
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import make_pipeline, run_python
from PIL import Image
from train_processes import Result, TrainServer

from ddpm_hub import DDPMHubPipeline

FEW = ["--num_images", "11", "--batch_size", "3", "--num_inference_steps", "2", "--seed", "5"]

# A patch after which process `rank` does something in place of renaming its file number `count`, the first being 0.
AT_FILE = """
import os, pathlib, signal, threading
replace, files = pathlib.Path.replace, []
def act(self, target):
    if str(target).endswith(".png"):
        if len(files) == {count} and os.environ.get("RANK", "0") == "{rank}":
            {act}
        files.append(target)
    return replace(self, target)
pathlib.Path.replace = act
"""

SERVER: TrainServer


@pytest.fixture(scope="module", autouse=True)
def server(trains):
    global SERVER
    SERVER = trains


def sample(*arguments, **options) -> Result:
    return SERVER.run(*arguments, script="sample", **options)


def killed(count: int, rank: int = 0) -> str:
    return AT_FILE.format(count=count, rank=rank, act="os.kill(os.getpid(), signal.SIGKILL)")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_of(result: Result, status: int = 2) -> str:
    return result.error("sample.py", status)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Saved models: `classes` with three of them, and `two_channels` without."""
    folder = tmp_path_factory.mktemp("models")
    make_pipeline().save_pretrained(folder / "classes")
    make_pipeline(channels=2, num_class_embeds=None).save_pretrained(folder / "two_channels")
    return folder


@pytest.fixture(scope="module")
def arguments(models) -> list:
    return ["--model", models / "classes", *FEW]


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory) -> Path:
    """A run of one process that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = sample(*arguments, "--output_dir", folder)
    assert result.returncode == 0, result.stderr
    assert "images holds 11 images, 11 of them drawn now in " in result.stdout
    assert "11/11" in result.stderr
    return folder


class TestWhatIsDrawn:
    def test_image_i_is_of_its_class_and_seed(self, whole, models):
        """The batch of the images 3 to 5, drawn by the pipeline itself."""
        pipeline = DDPMHubPipeline.from_pretrained(models / "classes")
        images = pipeline(class_labels=[0, 1, 2], seed=[8, 9, 10], num_inference_steps=2).images
        for i, image in enumerate(images, start=3):
            with Image.open(whole / "images" / f"{i:08d}.png") as drawn:
                assert np.array_equal(np.asarray(drawn), np.asarray(image))

    @pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # datasets leaves the table open
    def test_the_folder_loads_as_a_data_set(self, whole, tmp_path):
        table = datasets.load_dataset(
            "imagefolder", data_dir=str(whole / "images"), split="train", cache_dir=str(tmp_path)
        )
        gc.collect()
        assert len(table) == 11
        assert table["label"] == [i % 3 for i in range(11)]
        assert table["class_name"] == [["zero", "one", "two"][i % 3] for i in range(11)]
        assert table["seed"] == [5 + i for i in range(11)]
        with Image.open(whole / "images" / "00000010.png") as image:
            assert np.array_equal(np.asarray(table[10]["image"]), np.asarray(image))

    def test_samples_json_says_what_the_images_depend_on(self, whole, models):
        stored = json.loads((whole / "samples.json").read_text())
        weights = models / "classes" / "unet" / "diffusion_pytorch_model.safetensors"
        assert stored["sha256"][f"unet/{weights.name}"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        expected = {"sampler": "ddpm", "num_inference_steps": 2, "eta": 1.0, "guidance_scale": 1.0, "seed": 5,
                    "batch_size": 3, "class_labels": [0, 1, 2], "dtype": "float32", "format": "png"}  # fmt: skip
        assert {name: stored[name] for name in expected} == expected
        assert stored["versions"]["torch"] == torch.__version__

    def test_options_reach_the_pipeline(self, models, tmp_path):
        options = ["--sampler", "ddim", "--eta", "0.5", "--guidance_scale", "2", "--guidance_interval", "0", "500",
                   "--timestep_spacing", "linspace", "--dynamic_thresholding_ratio", "0.9"]  # fmt: skip
        result = sample("--model", models / "classes", *FEW[2:], "--num_images", "3", *options, "--class_labels", "two", "0",
                        "--mixed_precision", "bf16", "--output_dir", tmp_path / "run")  # fmt: skip
        assert result.returncode == 0, result.stderr
        pipeline = DDPMHubPipeline.from_pretrained(models / "classes", torch_dtype=torch.bfloat16)
        images = pipeline(
            class_labels=[2, 0, 2], seed=5, num_inference_steps=2, sampler="ddim", eta=0.5, guidance_scale=2.0,
            guidance_interval=(0, 500), timestep_spacing="linspace", dynamic_thresholding_ratio=0.9,
        ).images  # fmt: skip
        for i, image in enumerate(images):
            with Image.open(tmp_path / "run" / "images" / f"{i:08d}.png") as drawn:
                assert np.array_equal(np.asarray(drawn), np.asarray(image))

    def test_two_channels_are_written_as_arrays(self, models, tmp_path):
        arguments = ["--model", models / "two_channels", *FEW, "--output_dir", tmp_path / "run"]
        assert sample(*arguments).returncode == 0
        pipeline = DDPMHubPipeline.from_pretrained(models / "two_channels")
        drawn = pipeline(batch_size=3, seed=5, num_inference_steps=2, output_type="sample").images
        stored = np.load(tmp_path / "run" / "images" / "00000002.npy")
        assert stored.dtype == np.float32
        assert np.array_equal(stored, drawn[2].numpy())
        rows = (tmp_path / "run" / "images" / "metadata.csv").read_text().splitlines()
        assert rows[:2] == ["file_name,label,class_name,seed", "00000000.npy,,,5"]
        assert len(rows) == 12

    def test_any_class_is_the_null_class(self, arguments, models, tmp_path):
        assert sample(*arguments, "--class_labels", "any", "--output_dir", tmp_path / "run").returncode == 0
        pipeline = DDPMHubPipeline.from_pretrained(models / "classes")
        images = pipeline(batch_size=3, seed=5, num_inference_steps=2).images
        with Image.open(tmp_path / "run" / "images" / "00000001.png") as drawn:
            assert np.array_equal(np.asarray(drawn), np.asarray(images[1]))


class TestWhateverHappens:
    """The files are those of [`whole`] to the last byte."""

    def test_two_processes_that_share_the_batches(self, arguments, whole, tmp_path):
        patch = """
import pathlib
replace = pathlib.Path.replace
def tell(self, target):
    print(target.name)
    return replace(self, target)
pathlib.Path.replace = tell"""
        run = SERVER.start(*arguments, "--output_dir", tmp_path / "run", script="sample", processes=2, patch=patch)
        result = run.wait()
        assert result.returncode == 0, result.stderr
        assert content(tmp_path / "run") == content(whole)
        for rank, numbers in enumerate(([0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10])):
            names = (run.output(rank) / "stdout").read_text().splitlines()
            assert [name for name in names if name.endswith(".png")] == [f"{i:08d}.png" for i in numbers]

    @pytest.mark.parametrize("count", [0, 4])
    def test_killed_in_the_middle_of_a_batch_and_run_again(self, arguments, whole, tmp_path, count):
        result = sample(*arguments, "--output_dir", tmp_path, patch=killed(count))
        assert result.returncode == -signal.SIGKILL
        left = content(tmp_path)
        assert len([name for name in left if name.endswith(".png")]) == count
        assert len([name for name in left if name.endswith(".png.partial")]) == 3 - count % 3
        assert "images/metadata.csv" not in left
        result = sample(*arguments, "--output_dir", tmp_path)
        assert f"{11 - count} of them drawn now" in result.stdout
        assert content(tmp_path) == content(whole)

    def test_killed_before_the_settings_are_whole(self, arguments, whole, tmp_path):
        (tmp_path / "samples.json.partial").write_text('{"model"')
        assert sample(*arguments, "--output_dir", tmp_path).returncode == 0
        assert content(tmp_path) == content(whole)

    def test_one_of_two_is_killed_and_one_goes_on_alone(self, arguments, whole, tmp_path):
        result = sample(*arguments, "--output_dir", tmp_path, processes=2, patch=killed(1, rank=1))
        assert error_of(result, status=1) == (
            "sample.py: error: another process of this run has ended; the same command goes on."
        )
        assert sample(*arguments, "--output_dir", tmp_path).returncode == 0
        assert content(tmp_path) == content(whole)

    def test_a_lost_image_is_drawn_again_and_no_other(self, arguments, whole, tmp_path):
        assert sample(*arguments, "--output_dir", tmp_path).returncode == 0
        (tmp_path / "images" / "00000004.png").unlink()
        (tmp_path / "images" / "00000005.png").write_bytes(b"not looked at")
        result = sample(*arguments, "--output_dir", tmp_path, processes=2)
        assert "1 of them drawn now" in result.stdout
        expected = content(whole) | {"images/00000005.png": b"not looked at"}
        assert content(tmp_path) == expected
        result = sample(*arguments, "--output_dir", tmp_path)
        assert "nothing was left to draw" in result.stdout
        assert content(tmp_path) == expected

    def test_images_are_added(self, models, tmp_path):
        """From within a batch; a smaller number later takes nothing away. In float32 any other batch would show."""
        arguments = ["--model", models / "two_channels", *FEW]
        assert sample(*arguments, "--output_dir", tmp_path / "whole").returncode == 0
        for count, holds in ((4, 4), (11, 11), (2, 11)):
            result = sample(*arguments, "--num_images", count, "--output_dir", tmp_path / "added")
            assert result.returncode == 0, result.stderr
            assert len((tmp_path / "added" / "images" / "metadata.csv").read_text().splitlines()) == 1 + holds
        assert content(tmp_path / "added") == content(tmp_path / "whole")

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_stopped_at_once(self, arguments, whole, tmp_path, number, status):
        """The main thread waits for nothing that would ever come, as for a process that does not answer."""
        act = f"os.kill(os.getpid(), {int(number)}); threading.Event().wait()"
        result = sample(*arguments, "--output_dir", tmp_path, patch=AT_FILE.format(count=4, rank=0, act=act))
        assert result.returncode == status
        assert "sample.py: stopped; the images that are written stay, and the same command goes on." in result.stderr
        assert "Traceback" not in result.stderr
        assert sample(*arguments, "--output_dir", tmp_path).returncode == 0
        assert content(tmp_path) == content(whole)


class TestOtherSettings:
    @pytest.fixture
    def folder(self, arguments, tmp_path) -> Path:
        assert sample(*arguments, "--num_images", "1", "--output_dir", tmp_path / "run").returncode == 0
        return tmp_path / "run"

    @pytest.mark.parametrize("processes", [1, 2])
    def test_they_are_refused_by_name_and_nothing_is_touched(self, arguments, folder, processes):
        before = content(folder)
        others = ["--seed", "6", "--batch_size", "2", "--eta", "0.5", "--class_labels", "one"]
        line = error_of(sample(*arguments, *others, "--output_dir", folder, processes=processes))
        for change in ("`seed` is 6, there 5", "`batch_size` is 2, there 3", "`eta` is 0.5, there 1.0",
                       "`class_labels` is [1], there [0, 1, 2]"):  # fmt: skip
            assert change in line
        assert line.count(", there ") == 4
        assert content(folder) == before

    def test_another_model_is_refused_and_the_same_one_elsewhere_is_not(self, arguments, folder, tmp_path):
        pipeline = make_pipeline()
        pipeline.save_pretrained(tmp_path / "moved")
        moved = ["--model", tmp_path / "moved", *FEW, "--num_images", "1", "--output_dir", folder]
        assert sample(*moved).returncode == 0
        torch.nn.init.zeros_(pipeline.unet.conv_out.bias)
        pipeline.save_pretrained(tmp_path / "moved")
        assert "`sha256[unet/diffusion_pytorch_model.safetensors]` is '" in error_of(sample(*moved))

    def test_a_folder_of_something_else_is_refused(self, arguments, tmp_path):
        (tmp_path / "thesis.tex").write_text("precious")
        line = error_of(sample(*arguments, "--output_dir", tmp_path))
        assert "which holds files but no samples.json of this program" in line
        assert content(tmp_path) == {"thesis.tex": b"precious"}

    def test_a_folder_that_another_run_fills_is_refused(self, arguments, tmp_path):
        act = 'open(os.environ["TRAIN_OUTPUT"] + "/started", "w").close(); threading.Event().wait()'
        run = SERVER.start(
            *arguments, "--output_dir", tmp_path, script="sample", patch=AT_FILE.format(count=0, rank=0, act=act)
        )
        try:
            run.wait_for("started")
            assert "which another run is filling" in error_of(sample(*arguments, "--output_dir", tmp_path))
        finally:
            run.kill()
            run.wait()


class TestMistakes:
    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (["--num_images", "0"], "`num_images` is 0; it must be a whole number, at least 1."),
            (["--num_images", "x"], "argument --num_images: invalid int value: 'x'"),
            (["--batch_size", "-1"], "`batch_size` is -1; it must be a whole number, at least 1."),
            (["--seed", "-1"], "`seed` is -1; it must be a whole number, from 0 to"),
            (["--seed", str(2**63 - 11)], f"`seed` is {2**63}; it must be a whole number, from 0 to {2**63 - 1}"),
            (["--mixed_precision", "fp8"], "`mixed_precision` is 'fp8'; it must be one of 'no', 'bf16', 'fp16'."),
            (["--mixed_precision", "fp16"], "`mixed_precision` is 'fp16', which is for GPUs"),
            (["--format", "jpg"], "`format` is 'jpg'; it must be one of 'png', 'npy'."),
            (["--sampler", "euler"], "`sampler` is 'euler'; it must be one of 'ddpm', 'ddim', 'dpm++', 'sde-dpm++', 'unipc'."),
            (["--num_inference_steps", "1001"], "`num_inference_steps` is 1001; it must be a whole number, from 1 to 1000."),
            (["--eta", "2"], "`eta` is 2.0; it must be a number from 0 (DDIM) to 1 (DDPM)."),
            (["--sampler", "unipc", "--timestep_spacing", "leading"], "`timestep_spacing` is 'leading', but"),
            (["--guidance_interval", "9", "3"], "`guidance_interval` is [9, 3]; the smaller timestep comes first."),
            (["--class_labels", "three"], "--class_labels contains 'three'; the classes are zero, one, two, or"),
            (["--class_labels", "any", "one"], "`class_labels` is 'any one'; 'any' stands alone"),
            (["--class_labels", "any", "--guidance_scale", "2"], "`guidance_scale` is 2.0, but `class_labels` is missing"),
            (["--revision", "main"], "`revision` is 'main', but "),
            (["--model", "no/such/folder"], "is 'no/such/folder': there is no such folder."),
            (["--output_dir", "/proc/run"], "`output_dir` is '/proc/run', which cannot be used: "),
            (["--sample", "ddim"], "unrecognized arguments: --sample ddim"),
        ],
    )  # fmt: skip
    def test_one_line_status_2_and_no_folder(self, arguments, tmp_path, given, said):
        result = sample(*arguments, "--output_dir", tmp_path / "run", *given)
        assert said in error_of(result)
        assert result.stderr.count("\n") == 1
        assert not (tmp_path / "run").exists()

    def test_png_is_refused_for_two_channels(self, models, tmp_path):
        result = sample("--model", models / "two_channels", *FEW, "--format", "png", "--output_dir", tmp_path / "run")
        assert "`format` is 'png', but the model has 2 channels" in error_of(result)

    def test_another_precision_of_the_launcher_is_refused(self, arguments, tmp_path):
        result = sample(*arguments, "--output_dir", tmp_path / "run", ACCELERATE_MIXED_PRECISION="bf16")
        assert "`mixed_precision` is 'no', while accelerate is set to 'bf16'; add --mixed_precision" in error_of(result)

    def test_processes_with_different_models_are_refused(self, arguments, models, tmp_path):
        patch = "import os, sys\nif os.environ['RANK'] == '1': import sample_settings; sample_settings._sha256 = str"
        result = sample(*arguments, "--output_dir", tmp_path / "run", processes=2, patch=patch)
        assert "the processes of this run differ in sha256" in error_of(result, status=1)
        assert not (tmp_path / "run").exists()

    def test_a_batch_that_does_not_fit_is_told_with_one_that_does(self, arguments, tmp_path):
        patch = """
import diffusers, torch
forward = diffusers.UNet2DModel.forward
def narrow(self, sample, *arguments, **named):
    if len(sample) > 1:
        raise torch.OutOfMemoryError("tried to allocate")
    return forward(self, sample, *arguments, **named)
diffusers.UNet2DModel.forward = narrow"""
        line = error_of(sample(*arguments, "--output_dir", tmp_path / "run", patch=patch), status=1)
        assert "A batch of 3 images of 8×8 does not fit into the memory of cpu; a batch of 1 fits" in line

    def test_a_full_disk_is_told_and_the_same_command_goes_on(self, arguments, whole, tmp_path):
        act = 'raise OSError(28, "No space left on device", str(target))'
        result = sample(*arguments, "--output_dir", tmp_path, patch=AT_FILE.format(count=7, rank=0, act=act))
        assert "No space left on device" in error_of(result, status=1)
        assert sample(*arguments, "--output_dir", tmp_path).returncode == 0
        assert content(tmp_path) == content(whole)

    def test_debug_shows_the_traceback(self, arguments, tmp_path):
        result = sample(*arguments, "--seed", "-1", "--output_dir", tmp_path, "--debug")
        assert "Traceback" in result.stderr

    def test_help_imports_nothing_heavy(self):
        result = run_python("-X", "importtime", "training/sample.py", "--help")
        assert result.returncode == 0
        assert "--class_labels CLASS" in result.stdout
        imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
        assert "sample_options" in imported
        assert not imported & {"torch", "numpy", "accelerate", "diffusers", "ddpm_hub"}
