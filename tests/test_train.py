"""training/train.py as its user runs it: in processes of their own, with real data, to the end and interrupted."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import psutil
import pytest
import torch
import yaml
from checkpoints import newest_checkpoint
from conftest import REPOSITORY, run_python
from huggingface_hub import ModelCard
from machine import available_threads
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from train_config import TrainConfig
from train_processes import Result, TrainServer

from ddpm_hub import DDPMHubPipeline

SMALL = ["--block_out_channels", "[8,16]", "--max_train_steps", "6", "--warmup_steps", "2", "--batch_size", "8",
         "--sample_every", "0", "--num_inference_steps", "2", "--fidelity_samples", "0"]  # fmt: skip


SERVER: TrainServer


@pytest.fixture(scope="module", autouse=True)
def server(trains):
    global SERVER
    SERVER = trains


def train(*arguments) -> Result:
    return SERVER.run(*arguments)


def weights(folder) -> dict[str, torch.Tensor]:
    return DDPMHubPipeline.from_pretrained(folder).unet.state_dict()


def train_with(patch: str, *arguments) -> Result:
    """train.py in a process where `patch` was executed first."""
    return SERVER.run(*arguments, patch=patch)


def save_images(folder, labels: list[int], feature) -> Path:
    """A data set of 8×8 images in one Parquet file."""
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    noise = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8), dtype=np.uint8)
    columns = {"image": [Image.fromarray(image) for image in noise], "label": labels}
    folder.mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "train.parquet")
    return folder


def train_in_two_processes(*arguments) -> Result:
    return SERVER.run(*arguments, processes=2)


def session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:  # ended in the meantime
        return None


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """A short run in one process."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    result = train(*SMALL, "--output_dir", folder)
    assert result.returncode == 0, result.stderr
    return folder


class TestTheDefaultRun:
    def test_a_classifier_agrees_with_the_requested_class(self, default_run):
        metrics = json.loads((default_run / "metrics.json").read_text())
        (fidelity,) = metrics["evaluation"]
        assert (fidelity["type"], fidelity["seed"], fidelity["num_inference_steps"]) == ("class_fidelity", 0, 20)
        assert fidelity["value"] >= 0.9
        assert fidelity["num_samples"] == 200
        assert fidelity["reference"]["value"] >= 0.95
        assert f"{fidelity['value']:.1%}" in (default_run / "stdout.txt").read_text()

    def test_another_classifier_agrees_on_other_samples(self, default_run):
        """Nearest neighbours on samples of fresh seeds: a second opinion that shares no code with the first."""
        table = datasets.load_dataset(str(REPOSITORY / "training" / "data" / "digits"), split="train")
        real = np.stack([np.asarray(image) for image in table["image"]]).reshape(len(table), -1)
        judge = KNeighborsClassifier(3).fit(real, table["label"])
        pipeline = DDPMHubPipeline.from_pretrained(default_run)
        pipeline.set_progress_bar_config(disable=True)
        labels = list(range(10)) * 10
        images = pipeline(
            class_labels=labels, num_inference_steps=100, generator=torch.Generator().manual_seed(9)
        ).images
        judged = judge.predict(np.stack([np.asarray(image) for image in images]).reshape(len(images), -1))
        assert (judged == labels).mean() >= 0.9

    def test_everything_that_it_promises_is_there(self, default_run):
        files = {str(p.relative_to(default_run)) for p in default_run.rglob("*") if p.is_file()}
        assert {"config.yaml", "metrics.json", "loss_curve.png", "model_index.json", "samples/step_000800.png"} <= files
        for path in (default_run / "loss_curve.png", *(default_run / "samples").rglob("*.png")):
            with Image.open(path) as image:
                assert min(image.size) > 200
        assert yaml.safe_load((default_run / "config.yaml").read_text())["max_train_steps"] == 800

    def test_the_model_card_is_filled_in_from_the_run(self, default_run):
        card = ModelCard.load(default_run / "README.md")
        assert card.data.library_name == "diffusers"
        assert card.data.license == "apache-2.0"
        metrics = json.loads((default_run / "metrics.json").read_text())
        assert card.data.eval_results[0].metric_value == metrics["evaluation"][0]["value"]
        assert f"{metrics['training']['seconds']:.6g} s on " in card.text
        assert f"| sampling | {metrics['speed'][0]['images_per_second']:.6g} |" in card.text
        for picture in re.findall(r"!\[.*?\]\((.*?)\)", card.text):
            assert (default_run / picture).is_file()
        assert not re.search(r"\{\{|\{%|None|undefined", card.content)

    def test_both_ways_to_load_give_the_same_pixels(self, default_run, tmp_path):
        draw = (
            "image = pipeline(class_labels=[3, 8], num_inference_steps=20, generator=torch.Generator().manual_seed(5),"
        )
        draw += " output_type='pt').images; torch.save(image, sys.argv[2])"
        ways = {
            "package": "from ddpm_hub import DDPMHubPipeline; pipeline = DDPMHubPipeline.from_pretrained(sys.argv[1])",
            "trust": "sys.modules['ddpm_hub'] = None; from diffusers import DiffusionPipeline; "
            "pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)",
        }
        for name, load in ways.items():
            script = f"import sys, torch; {load}; {draw}"
            environment = {"HF_HOME": str(tmp_path / name), "HF_HUB_OFFLINE": "1"}
            result = run_python("-c", script, str(default_run), str(tmp_path / f"{name}.pt"), **environment)
            assert result.returncode == 0, result.stderr
        assert torch.equal(torch.load(tmp_path / "package.pt"), torch.load(tmp_path / "trust.pt"))


class TestOtherData:
    @pytest.mark.parametrize(("mode", "channels", "size"), [("RGB", 3, (16, 16)), ("RGBA", 4, (8, 12))])
    def test_colours_and_sizes_follow_the_data(self, tmp_path, mode, channels, size):
        generator = np.random.default_rng(0)
        shape = (size[1], size[0], channels)
        images = [Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)) for _ in range(10)]
        features = datasets.Features({"photo": datasets.Image()})
        (tmp_path / "data").mkdir()
        table = datasets.Dataset.from_dict({"photo": images}, features=features)
        table.to_parquet(tmp_path / "data" / "train.parquet")
        result = train(*SMALL, "--dataset_name", tmp_path / "data", "--output_dir", tmp_path / "run")
        assert result.returncode == 0, result.stderr
        pipeline = DDPMHubPipeline.from_pretrained(tmp_path / "run")
        assert pipeline.num_classes is None
        assert pipeline(num_inference_steps=1).images[0].mode == mode
        assert pipeline(num_inference_steps=1).images[0].size == size


class TestJudging:
    @pytest.mark.parametrize(("labels", "reason"), [([1] * 12, "all images are of class 1"), ([0], "of class 0"),
                                                    ([0] * 9 + [1], "class 1 has 1")])  # fmt: skip
    def test_what_cannot_be_judged_is_said_first_and_trained_all_the_same(self, tmp_path, labels, reason):
        data = save_images(tmp_path / "data", labels, datasets.ClassLabel(names=["a", "b"]))
        result = train(*SMALL, "--fidelity_samples", "4", "--dataset_name", data, "--output_dir", tmp_path / "run")
        assert result.returncode == 0, result.stderr
        assert "The samples will not be judged: " in result.stdout
        assert reason in result.stdout
        assert not {"evaluation", "speed"} & json.loads((tmp_path / "run" / "metrics.json").read_text()).keys()
        assert (tmp_path / "run" / "README.md").exists()

    @pytest.mark.parametrize("error", ["KeyboardInterrupt", "RuntimeError"])
    def test_a_stop_while_judging_loses_nothing(self, tmp_path, error):
        patch = f"import train_report\ndef fail(*arguments): raise {error}\ntrain_report.judge = fail"
        result = train_with(patch, *SMALL, "--output_dir", tmp_path / "run")
        assert result.returncode == (130 if error == "KeyboardInterrupt" else 1)
        assert ("holds the trained model and its figures" in result.stderr) == (error == "KeyboardInterrupt")
        assert json.loads((tmp_path / "run" / "metrics.json").read_text())["training"]["steps"] == 6
        assert (tmp_path / "run" / "README.md").exists()
        assert DDPMHubPipeline.from_pretrained(tmp_path / "run").num_classes == 10

    def test_the_judged_network_is_the_one_that_users_load(self, tmp_path):
        """Also after mixed precision and with drop-out: the same weights to the last bit, computed in the same way."""
        patch = """
import torch, train_report
from ddpm_hub import DDPMHubPipeline
def compare(config, data, pipeline, accelerator):
    judged, loaded = pipeline.unet, DDPMHubPipeline.from_pretrained(config.output_dir).unet
    ours, theirs = judged.state_dict(), loaded.state_dict()
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    modes = [[m.training for m in unet.modules()] for unet in (judged, loaded)]
    return {"same": same and judged.dtype == loaded.dtype == torch.float32 and modes[0] == modes[1]}
train_report.judge = compare"""
        precision = ["--mixed_precision", "bf16", "--dropout", "0.2"]
        result = train_with(patch, *SMALL, *precision, "--output_dir", tmp_path / "run")
        assert result.returncode == 0, result.stderr
        assert json.loads((tmp_path / "run" / "metrics.json").read_text())["same"] is True

    @pytest.mark.parametrize(("flags", "said"), [([], True), (["--class_conditional", "false"], False)])
    def test_integers_that_may_be_classes_are_named(self, tmp_path, flags, said):
        data = save_images(tmp_path / "data", [0, 1] * 6, datasets.Value("int64"))
        result = train(*SMALL, *flags, "--dataset_name", data, "--output_dir", tmp_path / "run")
        assert result.returncode == 0, result.stderr
        line = "`label` holds integers; --label_column label trains on them as classes."
        assert (line in result.stdout.splitlines()) == said

    def test_processors_that_are_left_idle_are_named(self, tmp_path):
        processors = available_threads()
        line = f"Computes with 1 of {processors} processors; OMP_NUM_THREADS={processors} before the command uses {processors}."
        result = train_with("import torch; torch.set_num_threads(1)", *SMALL, "--output_dir", tmp_path / "run")
        assert result.returncode == 0, result.stderr
        assert (line in result.stdout.splitlines()) == (processors > 1)


class TestRunsThatMustAgree:
    def test_the_same_command_gives_the_same_weights(self, reference, tmp_path):
        assert train(*SMALL, "--output_dir", tmp_path / "run").returncode == 0
        again, first = weights(tmp_path / "run"), weights(reference)
        assert all(torch.equal(again[key], first[key]) for key in first)

    def test_drawing_grids_does_not_change_the_training(self, reference, tmp_path):
        assert train(*SMALL, "--sample_every", 2, "--output_dir", tmp_path / "run").returncode == 0
        assert len(list((tmp_path / "run" / "samples").rglob("*.png"))) == 6  # and the raw weights beside each
        again, first = weights(tmp_path / "run"), weights(reference)
        assert all(torch.equal(again[key], first[key]) for key in first)


def read_until(process: subprocess.Popen, words: str) -> None:
    """Waits for words on stderr; the training bar has `loss=` once an interval of steps is over."""
    seen = ""
    while words not in seen:
        character = process.stderr.read(1)
        assert character, f"ended before {words!r}: {seen}"
        seen += character


class TestInterruption:
    def test_ctrl_c_under_make_stops_all_and_leaves_a_model_that_loads(self, tmp_path):
        """The terminal's Ctrl-C goes to make, its shell, the launcher and train.py at once."""
        arguments = shlex.join([*SMALL, "--max_train_steps", "100000", "--output_dir", str(tmp_path / "run")])
        # Not to install anything: the environment of this test is that of the run.
        command = ["make", "--old-file=.venv/.installed", f"BIN={Path(sys.executable).parent}", "train"]
        process = subprocess.Popen(
            [*command, f"ARGS={arguments}"], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            read_until(process, "loss=")
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=120)
            alive = [other for other in psutil.process_iter() if session_of(other.pid) == process.pid]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert alive == []
        assert "Traceback" not in err
        assert "Stopped after" in out
        assert DDPMHubPipeline.from_pretrained(tmp_path / "run")(num_inference_steps=1).images
        assert newest_checkpoint(tmp_path / "run" / "checkpoints").step > 0

    def test_ctrl_c_while_images_are_decoded_stops_also_where_the_launcher_ignores_it(self, tmp_path):
        data = save_images(tmp_path / "data", [0] * 5000, datasets.Value("int64"))
        command = [sys.executable, "training/train.py", *SMALL, "--max_train_steps", "100000", "--dataset_name", data,
                   "--output_dir", tmp_path / "run"]  # fmt: skip
        shell = f"trap '' INT; exec {shlex.join(map(str, command))}"
        process = subprocess.Popen(["sh", "-c", shell], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        try:
            read_until(process, "decoding images")
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 130
        assert "stopped before training; nothing was written." in err
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("where", "said"),
        [("image_data.load_images", "stopped before training; nothing was written"),
         ("training_loop.train", "stopped at once; .*run holds no checkpoint yet"),
         ("training_loop.save_model", "stopped at once; the last good checkpoint is .*step_00000006, and the same command")],
    )  # fmt: skip
    def test_a_stop_at_once_says_what_there_is(self, tmp_path, where, said):
        module = where.split(".")[0]
        patch = f"import {module}\ndef fail(*arguments): raise KeyboardInterrupt\n{where} = fail"
        result = train_with(patch, *SMALL, "--output_dir", tmp_path / "run")
        assert result.returncode == 130
        assert re.search(said, result.stderr)
        assert "Traceback" not in result.stderr
        assert (tmp_path / "run").exists() == (module == "training_loop")


class TestMistakes:
    @pytest.fixture
    def good_run(self, tmp_path) -> Path:
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "config.yaml").write_text(TrainConfig().to_yaml())
        (folder / "precious").write_text("weights")
        return folder

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--max_train_steps", "0"], "`max_train_steps` is 0"),
            (["--dataset_name", "no/such/folder"], "`dataset_name` is 'no/such/folder'"),
            (["--split", "tset"], "`split` = 'tset'"),
            (["--block_out_channels", "[8,8,8,8,8]"], "`block_out_channels` has 5 levels.*at most 4 levels"),
            (["--beta_schedule", "cosine"], "`beta_schedule` is 'cosine'"),
            (["--beta_end", "2"], "`beta_end` is 2.0"),
            (["--resolution", "7"], "`block_out_channels` has 2 levels.*--resolution 8"),
            (["--output_dir", "/proc/run"], "`output_dir` is '/proc/run'"),
            (
                ["--block_out_channels", "[3,6]", "--norm_num_groups", "3"],
                "`block_out_channels` is .*attention_head_dim = 8",
            ),
            (["--attention_resolutions", "[8,5]"], "`attention_resolutions` is .*height 5; the heights are 8, 4"),
            (["--beta_end", "2", "--dataset_name", "no/such/folder"], "`beta_end` is 2.0"),
            (["--seed", "5000000000"], "`seed` is 5000000000"),
        ],
    )
    def test_one_line_status_2_and_nothing_lost(self, good_run, arguments, message):
        result = train("--output_dir", good_run, *arguments)
        assert result.returncode == 2
        assert "Traceback" not in result.stderr
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("train.py: error: ")]
        assert re.search(message, line)
        assert {p.name for p in good_run.iterdir()} == {"config.yaml", "precious"}
        assert not good_run.with_name("run.1").exists()

    def test_whatever_the_network_cannot_compute_is_told_before_anything_is_moved(self, good_run):
        patch = "import diffusers\ndef fail(*arguments, **named): raise ZeroDivisionError('division by zero')\n"
        patch += "diffusers.UNet2DModel.forward = fail"
        result = train_with(patch, "--output_dir", good_run)
        assert result.returncode == 2
        assert re.search(
            "error: `block_out_channels` is .*cannot compute on 16×16 images: ZeroDivisionError: division by zero",
            result.stderr,
        )
        assert {p.name for p in good_run.iterdir()} == {"config.yaml", "precious"}

    def test_debug_shows_the_traceback(self):
        result = train("--max_train_steps", "0", "--debug")
        assert "Traceback" in result.stderr
        assert "UserError" in result.stderr

    def test_a_batch_that_does_not_divide_among_processes(self, tmp_path):
        result = train_in_two_processes("--batch_size", "7", "--output_dir", tmp_path / "run")
        assert result.returncode != 0
        assert "`batch_size` is 7; it must be a multiple of 2" in result.stderr
        assert not (tmp_path / "run").exists()
