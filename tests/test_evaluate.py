"""training/evaluate.py as its user runs it: processes of their own, alone and together, killed, and misused."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import datasets
import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import make_pipeline, run_python
from evaluation.samples import resolve, stored_settings
from hub_server import HubServer
from PIL import Image
from safetensors.torch import load_file
from train_processes import Result, TrainServer

from ddpm_hub import DDPMHubPipeline, DDPMHubScheduler
from ddpm_hub.domain_classifier import ShippedClassifier
from ddpm_hub.metrics_file import metrics_fault
from ddpm_hub.model_card import write_card

pytestmark = pytest.mark.usefixtures("quiet_schedule")
# A run of a few seconds; 64 features need more images than that.
FEW = ["--bound_images", "10", "--analytic_images", "4", "--num_samples", "90", "--study_samples", "80", "--batch_size", "32",
       "--num_inference_steps", "3", "--steps", "2", "4", "--guidance", "1", "2", "--seed", "5"]  # fmt: skip
# A patch after which process `rank` is killed when it is about to rename its file number `count` of a stage.
KILLED = """
import os, pathlib, signal
replace, files = pathlib.Path.replace, []
def act(self, target):
    if "evaluation" in str(target) and str(target).endswith(".safetensors"):
        if len(files) == {count} and os.environ.get("RANK", "0") == "{rank}":
            os.kill(os.getpid(), signal.SIGKILL)
        files.append(target)
    return replace(self, target)
pathlib.Path.replace = act
"""

SERVER: TrainServer


@pytest.fixture(scope="module", autouse=True)
def server(trains):
    global SERVER
    SERVER = trains


def evaluate(*arguments, **options) -> Result:
    return SERVER.run(*arguments, script="evaluate", **options)


def error_of(result: Result, status: int = 2) -> str:
    return result.error("evaluate.py", status)


def save_digits(folder: Path, classes: int = 3, size: int = 8, mode: str = "L", labels: bool = True) -> Path:
    """The digits of some classes, of another size or mode, in Parquet files of both splits."""
    folder.mkdir()
    for split in ("train", "test"):
        rows = datasets.load_dataset("training/data/digits", split=split).filter(lambda row: row["label"] < classes)
        features = {"image": datasets.Image()}
        columns = {
            "image": [image.convert(mode).resize((size, size), Image.Resampling.NEAREST) for image in rows["image"]]
        }
        if labels:
            features["label"] = datasets.ClassLabel(names=[f"digit {k}" for k in range(classes)])
            columns["label"] = rows["label"]
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return save_digits(tmp_path_factory.mktemp("data") / "three_digits")


def save_model(folder: Path, variance_type: str = "fixed_small", **kwargs) -> Path:
    """A real network of random weights, with three classes unless it is said, and 60 timesteps."""
    pipeline = make_pipeline(**kwargs)
    if variance_type == "learned_range":
        last = pipeline.unet.conv_out
        torch.manual_seed(1)
        pipeline.unet.conv_out = torch.nn.Conv2d(last.in_channels, 2, 3, padding=1)
        pipeline.unet.register_to_config(out_channels=2)
    scheduler = DDPMHubScheduler(
        num_train_timesteps=60, beta_end=0.25, variance_type=variance_type, timestep_spacing="trailing"
    )
    sampling = {"guidance_scale": 1.5, "guidance_interval": [10, 50]} if pipeline.num_classes else None
    DDPMHubPipeline(pipeline.unet, scheduler, pipeline.config.id2label, sampling).save_pretrained(folder)
    return folder


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def figures(folder: Path) -> tuple[bytes, bytes]:
    """All that is said, to the last digit."""
    return (folder / "metrics.json").read_bytes(), (folder / "evaluation.md").read_bytes()


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Between Gaussians with the means and covariances of two sets of features, by scipy's square root of a matrix."""
    covariances = [np.cov(each, rowvar=False) for each in (x, y)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    return np.square(x.mean(0) - y.mean(0)).sum() + np.trace(sum(covariances) - 2 * root)


@pytest.fixture(scope="module")
def judged(tmp_path_factory, data, server):
    """A model's folder after the whole evaluation, and what was said."""
    folder = save_model(tmp_path_factory.mktemp("judged") / "model")
    result = evaluate("--model", folder, "--dataset", data, *FEW)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_settings_are_complete_and_can_be_compared(tmp_path):
    pipeline = DDPMHubPipeline.from_pretrained(save_model(tmp_path))
    labels = torch.zeros(1, dtype=torch.long)
    found = {resolve(pipeline, labels, 0, guidance_scale=2.0, guidance_interval=bounds) for bounds in ([3, 9], (3, 9))}
    assert [stored_settings(each) for each in found] == [
        {"sampler": "ddpm", "num_inference_steps": 60, "eta": 1.0, "guidance_scale": 2.0, "guidance_interval": [3, 9]}
    ]


class TestAWholeEvaluation:
    def test_every_part_is_measured_and_told(self, judged):
        folder, result = judged
        metrics = metrics_of(folder)
        assert metrics_fault(metrics) is None
        assert {"model", "evaluation", "bound", "calibration", "quality", "memorisation", "classes", "colour",
                "quality_by_steps", "quality_by_guidance"} <= metrics.keys()  # fmt: skip
        assert [entry["type"] for entry in metrics["evaluation"]] == [
            "bits_per_dim", "fid", "kid", "precision", "recall", "density", "coverage", "class_fidelity",
            "memorisation_pixels", "memorisation_features",
        ]  # fmt: skip
        assert [row["variance_type"] for row in metrics["bound"]["rows"]] == ["fixed_small", "fixed_large", "analytic"]
        assert [row["num_inference_steps"] for row in metrics["quality_by_steps"]["rows"]] == [2, 4]
        guided = [
            (row["guidance_scale"], row.get("guidance_interval")) for row in metrics["quality_by_guidance"]["rows"]
        ]
        assert guided == [(1.0, None), (2.0, [10, 50])]
        assert (
            metrics["evaluation"][1]["guidance_interval"] == metrics["quality_by_steps"]["rows"][0]["guidance_interval"]
        )
        assert {path.name for path in (folder / "plots").iterdir()} == {
            "bound.png", "calibration.png", "memorisation.png", "closest_pairs_pixels.png", "closest_pairs_features.png",
            "quality_by_steps.png", "quality_by_guidance.png",
        }  # fmt: skip
        for path in (folder / "plots").iterdir():
            with Image.open(path) as picture:
                assert min(picture.size) > 200
                assert len(set(picture.convert("L").tobytes())) > 50
        assert re.search(
            r"^About \d+ s: [\d,]+ network calls on images and [\d,]+ of the extractor", result.stdout, re.M
        )
        assert re.search(r"The full run \(--full\): about [\d.]+ (s|min|h)\.", result.stdout)
        assert re.search(r"^  Bits per dimension: [\d.]+ ± [\d.]+$", result.stdout, re.M)
        assert "samples: 100%" in result.stderr  # the bars

    def test_the_card_has_the_tables_and_the_plots(self, judged):
        folder, _ = judged
        card = (folder / "README.md").read_text(encoding="utf-8")
        tables = (folder / "evaluation.md").read_text(encoding="utf-8")
        for title in ("Bits per dimension", "Samples and real images", "Copies of training images", "Class fidelity",
                      "Quality by steps", "Quality by guidance", "Calibration", "Colour"):  # fmt: skip
            assert f"### {title}" in card
            table = tables.split(f"## {title}\n\n")[1].split("\n\n")[1].strip()
            assert table in card
        assert "](plots/bound.png)" in card
        assert "](plots/closest_pairs_pixels.png)" in card

    def test_everything_stands_beside_each_figure_of_samples(self, judged):
        for entry in metrics_of(judged[0])["evaluation"][1:]:
            if entry["type"] == "memorisation_pixels":
                assert "extractor" not in entry
                continue
            assert {"extractor", "extractor_sha256", "resize", "split", "num_reference", "num_samples", "seed", "sampler",
                    "num_inference_steps", "reference"} <= entry.keys(), entry["type"]  # fmt: skip
            assert entry["seed"] == 5
        sha256 = ShippedClassifier("digits").sha256
        assert metrics_of(judged[0])["quality"]["extractor_sha256"] == sha256

    def test_the_frechet_distance_is_recomputed_from_the_images(self, judged, data):
        """From the pixels that were kept, by the classifier, numpy and scipy; features are float32: 1e-6 of the trace."""
        folder, _ = judged
        (stage,) = (folder / "evaluation").glob("samples-*")
        pixels = torch.cat([load_file(path)["pixels"] for path in sorted(stage.glob("*.safetensors"))])
        assert pixels.shape == (90, 1, 8, 8)
        real = datasets.load_dataset(str(data), split="train")["image"]
        real = torch.from_numpy(np.stack([np.asarray(image) for image in real]))[:, None]
        classifier = ShippedClassifier("digits")
        x, y = (classifier(images)[0].double().numpy() for images in (real, pixels))
        (row,) = (
            r for r in metrics_of(folder)["quality"]["rows"] if (r["images"], r["against"]) == ("samples", "train")
        )
        assert row["fid"] == pytest.approx(frechet(x, y), rel=1e-4)
        assert row["num_reference"] == len(real)

    def test_training_images_of_every_class_are_compared_with_the_others(self, judged, data):
        """As many as there are unseen ones, 90, evenly spaced among all, which are sorted by class."""
        train = datasets.load_dataset(str(data), split="train")
        chosen = np.argsort(train["label"], kind="stable")[np.arange(90) * len(train) // 90]
        images = torch.from_numpy(np.stack([np.asarray(image) for image in train["image"]]))[:, None]
        features = ShippedClassifier("digits")(images)[0].double().numpy()
        rows = metrics_of(judged[0])["quality"]["rows"]
        (row,) = (r for r in rows if (r["images"], r["against"]) == ("train", "train"))
        assert (row["num_images"], row["num_reference"]) == (90, len(train) - 90)
        # float32 features, whose distance is near zero: relative to the trace of the covariance, as above.
        others = np.delete(features, chosen, axis=0)
        assert row["fid"] == pytest.approx(frechet(others, features[chosen]), abs=1e-6 * np.trace(np.cov(others.T)))

    def test_real_images_are_better_than_random_weights_and_noise_is_no_better(self, judged):
        rows = {(r["images"], r["against"]): r for r in metrics_of(judged[0])["quality"]["rows"]}
        samples, real, trained_on, noise = (rows[name, "train"] for name in ("samples", "test", "train", "noise"))
        assert max(real["fid"], trained_on["fid"]) < 0.2 * min(samples["fid"], noise["fid"])
        assert abs(real["kid"]) < 4 * real["kid_standard_error"]
        assert samples["kid"] > 10 * samples["kid_standard_error"]
        assert real["coverage"] > 0.5
        assert noise["precision"] < 0.2
        # The digits' classifier has ten classes, so a linear probe judges three; it is right on real images.
        classes = metrics_of(judged[0])["classes"]
        assert classes["judge"].startswith("logistic regression on the features of")
        assert classes["real"] > 0.9

    def test_again_nothing_is_computed_and_the_same_is_said(self, judged, data):
        folder, _ = judged
        before = figures(folder)
        result = evaluate("--model", folder, "--dataset", data, *FEW)
        assert result.returncode == 0, result.stderr
        assert "100%" not in result.stderr
        assert figures(folder) == before


class TestProcessesAndKills:
    def test_two_processes_say_the_same(self, judged, data, tmp_path):
        folder = save_model(tmp_path / "model")
        result = evaluate("--model", folder, "--dataset", data, *FEW, processes=2)
        assert result.returncode == 0, result.stderr
        assert figures(folder) == figures(judged[0])
        assert "with 2 processes" in result.stdout

    @pytest.mark.parametrize(("count", "rank", "processes"), [(0, 0, 1), (5, 0, 1), (11, 0, 1), (3, 1, 2)])
    def test_after_kill_it_goes_on_and_says_the_same(self, judged, data, tmp_path, count, rank, processes):
        folder = save_model(tmp_path / "model")
        arguments = ("--model", folder, "--dataset", data, *FEW)
        run = SERVER.start(
            *arguments, script="evaluate", processes=processes, patch=KILLED.format(count=count, rank=rank)
        )
        status = run.wait().returncode if processes == 1 else SERVER.ask(wait=run.pids[rank])
        assert status == -signal.SIGKILL
        if processes > 1:
            run.signal(signal.SIGTERM, rank=0)
            SERVER.ask(wait=run.pids[0])
        assert not (folder / "metrics.json").exists()
        kept = {path: path.stat().st_mtime_ns for path in (folder / "evaluation").glob("*/*.safetensors")}
        assert len(kept) >= count
        result = evaluate(*arguments)
        assert result.returncode == 0, result.stderr
        assert figures(folder) == figures(judged[0])
        assert all(path.stat().st_mtime_ns == changed for path, changed in kept.items())

    def test_a_damaged_piece_is_computed_again(self, judged, data, tmp_path):
        folder = tmp_path / "model"
        shutil.copytree(judged[0], folder)
        for number, path in enumerate(sorted((folder / "evaluation").glob("*/000000.safetensors"))):
            content = bytearray(path.read_bytes())
            content[-3] ^= 1
            path.write_bytes(content if number else content[:50])
        result = evaluate("--model", folder, "--dataset", data, *FEW)
        assert result.returncode == 0, result.stderr
        assert result.stderr.count(" is damaged (its hash differs); it is computed again.") == 7
        assert result.stderr.count("is damaged (") == 8
        assert figures(folder) == figures(judged[0])

    def test_another_run_in_the_same_folder_is_refused(self, data, tmp_path):
        import fcntl

        folder = save_model(tmp_path / "model")
        (folder / "evaluation").mkdir()
        held = os.open(folder / "evaluation", os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)
        line = error_of(evaluate("--model", folder, "--dataset", data, "--parts", "bound", *FEW))
        os.close(held)
        assert "where another evaluation runs" in line


class TestOtherModels:
    def bound_of(self, folder: Path) -> dict:
        return metrics_of(folder)["bound"]

    def test_an_unconditional_model(self, data, tmp_path):
        folder = save_model(tmp_path / "model", num_class_embeds=None)
        result = evaluate("--model", folder, "--dataset", data, *FEW)
        assert result.returncode == 0, result.stderr
        metrics = metrics_of(folder)
        assert not {"classes", "quality_by_guidance"} & metrics.keys()
        assert "quality_by_steps" in metrics
        usual = ["--parts", "steps", "--sampler", "ddpm", "--batch_size", "90", "--study_samples", "90"]
        result = evaluate("--model", folder, "--dataset", data, *usual)  # those of the default that 60 timesteps have
        assert result.returncode == 0, result.stderr
        assert [row["num_inference_steps"] for row in metrics_of(folder)["quality_by_steps"]["rows"]] == [5, 10, 20, 50]
        line = error_of(evaluate("--model", folder, "--dataset", data, *FEW, "--parts", "guidance"))
        assert "`--parts` names guidance, but the model knows no classes" in line

    def test_a_learned_variance_is_judged_beside_the_fixed_ones(self, data, tmp_path):
        folder = save_model(tmp_path / "model", variance_type="learned_range")
        result = evaluate("--model", folder, "--dataset", data, "--parts", "bound", *FEW)
        assert result.returncode == 0, result.stderr
        rows = self.bound_of(folder)["rows"]
        assert [row["variance_type"] for row in rows] == ["learned_range", "fixed_small", "fixed_large", "analytic"]
        # V_t includes the network's error, so that no fixed variance is better for what it predicts; up to chance.
        by_name = {row["variance_type"]: row["value"] for row in rows}
        assert by_name["analytic"] < min(by_name["fixed_small"], by_name["fixed_large"])

    def test_a_network_that_pads(self, data, tmp_path):
        """Its 12×12 hold 8×8 of data: 64 dimensions, and samples and features of 8×8."""
        folder = save_model(tmp_path / "model", size=12)
        result = evaluate("--model", folder, "--dataset", data, "--padding", "2", "--parts", "bound", "samples", *FEW)
        assert result.returncode == 0, result.stderr
        assert self.bound_of(folder)["dimensions"] == 64
        assert metrics_of(folder)["quality"]["extractor"].startswith("digits classifier")
        line = error_of(evaluate("--model", folder, "--dataset", data, *FEW))
        assert "have 8×8 pixels, and the model has 12×12" in line
        assert "or --padding 2 if it was padded" in line

    def test_a_quick_estimate_and_float64(self, judged, data, tmp_path):
        """10 of 60 timesteps: as many standard errors away as two draws are; in float64 the same noise, rounded less."""
        folder = save_model(tmp_path / "model")
        whole = self.bound_of(judged[0])["rows"][0]
        few = [*FEW, "--parts", "bound", "--analytic_images", "0"]
        assert evaluate("--model", folder, "--dataset", data, *few, "--float64").returncode == 0
        exact = self.bound_of(folder)["rows"]
        assert [row["variance_type"] for row in exact] == ["fixed_small", "fixed_large"]
        assert exact[0]["value"] == pytest.approx(whole["value"], rel=1e-5)
        assert self.bound_of(folder)["dtype"] == "float64"
        assert evaluate("--model", folder, "--dataset", data, *few, "--timesteps_per_image", "10").returncode == 0
        quick = self.bound_of(folder)
        assert quick["timesteps_per_image"] == 10
        assert quick["rows"][0]["value"] == pytest.approx(whole["value"], abs=4 * quick["rows"][0]["standard_error"])

    def test_the_digits_are_judged_by_their_own_classifier(self, default_run, tmp_path):
        """The default run's model, by what its config.yaml says of the data; nothing but --model is needed."""
        folder = tmp_path / "digits"
        shutil.copytree(default_run, folder, ignore=shutil.ignore_patterns("checkpoints"))
        trained = metrics_of(folder)
        result = evaluate(
            "--model", folder, "--parts", "samples", "--num_samples", "300", "--num_inference_steps", "10"
        )
        assert result.returncode == 0, result.stderr
        metrics = metrics_of(folder)
        assert metrics["training"] == trained["training"]
        assert metrics["classes"]["judge"].startswith("digits classifier of ddpm_hub")
        assert metrics["classes"]["samples"] > 0.8
        assert [e["type"] for e in metrics["evaluation"]].count("class_fidelity") == 1
        assert not any(each["is_flagged"] for each in metrics["memorisation"])
        rows = {(r["images"], r["against"]): r for r in metrics["quality"]["rows"]}
        assert max(rows[images, "train"]["fid"] for images in ("test", "samples")) < 0.2 * rows["noise", "train"]["fid"]


def test_more_training_takes_the_old_figures_away(tmp_path):
    """The weights change in place; what evaluate.py wrote of the old ones goes, and nothing else."""
    arguments = [
        "--config",
        "training/configs/smoke.yaml",
        "--warmup_steps",
        "0",
        "--lr_schedule",
        "constant",
        "--output_dir",
        tmp_path / "run",
    ]
    assert SERVER.run(*arguments, "--max_train_steps", "4").returncode == 0
    plots = tmp_path / "run" / "plots"
    plots.mkdir()
    for path in (tmp_path / "run" / "evaluation.md", plots / "bound.png", plots / "mine.png"):
        path.write_text("old", encoding="utf-8")
    result = SERVER.run(*arguments, "--max_train_steps", "6")
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in plots.iterdir()) == ["mine.png"]
    assert not (tmp_path / "run" / "evaluation.md").exists()


def test_a_model_of_the_hub(judged, data, tmp_path):
    """By its name, with the weights that the folder has: the same bound; the figures go to a folder, which is no model's."""
    with HubServer() as hub:
        hub.add_user("me")
        environment = hub.environment(hub.add_token("me"), tmp_path / "home")
        push = f"from ddpm_hub.hub import push_folder; push_folder({str(judged[0])!r}, 'me/three-digits')"
        result = run_python("-c", push, **environment)
        assert result.returncode == 0, result.stderr
        arguments = ["--dataset", str(data), "--parts", "bound", *FEW, "--output_dir", str(tmp_path / "out")]
        result = run_python("training/evaluate.py", "--model", "me/three-digits", *arguments, **environment)
    assert result.returncode == 0, result.stderr
    assert metrics_of(tmp_path / "out")["bound"] == metrics_of(judged[0])["bound"]
    assert not (tmp_path / "out" / "README.md").exists()
    assert (tmp_path / "out" / "evaluation.md").exists()


class TestTheCacheOfFeatures:
    def test_a_damaged_one_is_computed_again(self, data, tmp_path):
        folder, cache = save_model(tmp_path / "model"), tmp_path / "cache"
        arguments = ("--model", folder, "--dataset", data, "--parts", "samples", *FEW, "--cache_dir", cache)
        assert evaluate(*arguments).returncode == 0
        before = figures(folder)
        features = sorted(cache.glob("features-*.safetensors"))
        assert len(features) == 2
        content = bytearray(features[0].read_bytes())
        content[-1] ^= 1
        features[0].write_bytes(content)
        result = evaluate(*arguments)
        assert f"{features[0]} is damaged (its hash differs); it is computed again." in result.stderr
        assert figures(folder) == before
        features[1].write_bytes(b"short")
        assert "is damaged (" in evaluate(*arguments).stderr
        assert figures(folder) == before
        assert "damaged" not in evaluate(*arguments).stderr


class TestMistakes:
    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (["--num_samples", "60"], "`--num_samples` has 60 images, too few for the covariance of 64 features: there must be 65"),
            (["--study_samples", "64"], "`--study_samples` has 64 images, too few for the covariance of 64 features"),
            (["--split", "test[:50]"], "`--split test[:50]` has 50 images, too few for the covariance of 64 features"),
            (["--split", "test[:30]", "--no_fid"], "`--split test[:30]` has 30 images, too few for its distances: there must be 40"),
            (["--split", "train"], "`--split` is 'train', which the model was trained on"),
            (["--split", "test[:0]"], "corresponds to no data"),
            (["--split", "validation"], "'validation' cannot be loaded"),
            (["--resolution", "16"], "have 16×16 pixels, and the model has 8×8"),
            (["--image_mode", "RGB"], "have 3 channels, and the model has 1. If it was trained on converted images, add --image_mode L"),
            (["--resolution", "8", "8", "8"], "`--resolution` is [8, 8, 8]; it must be one number, or height and width"),
            (["--extractor", "inception"], "--extractor domain, for images of the shapes digits (1, 8, 8)"),
            (["--extractor", "other"], "invalid choice: 'other'"),
            (["--num_samples", "0"], "`num_samples` is 0; it must be"),
            (["--bound_images", "1"], "`bound_images` is 1"),
            (["--seed", str(2**64 - 10)], "`seed`"),
            (["--train_split", "train", "--split", "train[:50%]"], "are among those of `--train_split` = 'train'"),
            (["--train_split", "train[:20%]", "--split", "train"], "are among those of `--train_split` = 'train[:20%]'"),
            (["--num_inference_steps", "61"], "`num_inference_steps` is 61"),
            (["--steps", "2", "600"], "`--steps` has 600 for 'ddpm': `num_inference_steps` is 600"),
            (["--guidance", "-1"], "`guidance_scale` is -1"),
            (["--guidance_interval", "9", "3"], "`guidance_interval` is [9, 3]; the smaller timestep comes first."),
            (["--sampler", "euler"], "`sampler` is 'euler'"),
            (["--float64", "--mixed_precision", "bf16"], "`float64` contradicts `mixed_precision` = 'bf16'"),
            (["--neighbors", "0"], "`neighbors` is 0"),
            (["--dataset", "nowhere/at/all"], "there is no such folder"),
            (["--nothing"], "unrecognized arguments: --nothing; `evaluate.py --help` lists all options"),
        ],
    )  # fmt: skip
    def test_one_line_and_status_2(self, data, tmp_path, given, said):
        folder = save_model(tmp_path / "model")
        line = error_of(evaluate("--model", folder, "--dataset", data, *FEW, *given))
        assert said in line
        assert not (folder / "metrics.json").exists()
        assert not list(folder.glob("evaluation/*/*"))  # nothing was computed

    def test_other_data_take_the_place_of_all_figures(self, judged, data, tmp_path):
        """What was measured with one split does not stand beside what was measured with another."""
        folder = tmp_path / "model"
        shutil.copytree(judged[0], folder, ignore=shutil.ignore_patterns("evaluation"))
        result = evaluate("--model", folder, "--dataset", data, "--parts", "bound", *FEW, "--split", "test[:70]")
        assert result.returncode == 0, result.stderr
        metrics = metrics_of(folder)
        assert [entry["type"] for entry in metrics["evaluation"]] == ["bits_per_dim"]
        assert "quality" not in metrics
        assert {path.name for path in (folder / "plots").iterdir()} == {"bound.png", "calibration.png"}

    def test_without_fid_few_images_are_enough(self, data, tmp_path):
        folder = save_model(tmp_path / "model")
        result = evaluate(
            "--model", folder, "--dataset", data, *FEW, "--parts", "samples", "--num_samples", "50", "--no_fid"
        )
        assert result.returncode == 0, result.stderr
        types = [entry["type"] for entry in metrics_of(folder)["evaluation"]]
        assert "fid" not in types
        assert "kid" in types

    def test_the_metrics_of_another_model(self, judged, data, tmp_path):
        folder = save_model(tmp_path / "model", num_class_embeds=4)
        shutil.copy(judged[0] / "metrics.json", folder)
        (folder / "unet" / "config.json").write_text(
            (folder / "unet" / "config.json").read_text() + " ", encoding="utf-8"
        )
        line = error_of(evaluate("--model", folder, "--dataset", data, *FEW))
        assert "has the evaluation of another model: unet/config.json differ" in line
        assert figures(judged[0])[0] == (folder / "metrics.json").read_bytes()

    def test_the_folder_of_another_model(self, judged, data, tmp_path):
        """Whose metrics.json is of its training and says of no model."""
        other = save_model(tmp_path / "other", variance_type="fixed_large")
        (other / "metrics.json").write_text('{"training": {"steps": 3}}', encoding="utf-8")
        line = error_of(evaluate("--model", judged[0], "--dataset", data, *FEW, "--output_dir", other))
        assert "which holds another model" in line
        assert metrics_of(other) == {"training": {"steps": 3}}

    def test_a_card_that_was_edited_stays(self, data, tmp_path):
        folder = save_model(tmp_path / "model")
        (folder / "README.md").write_text("my own words\n", encoding="utf-8")
        result = evaluate("--model", folder, "--dataset", data, "--parts", "bound", *FEW)
        assert result.returncode == 0, result.stderr
        assert "README.md was edited and is left as it is" in result.stdout
        assert (folder / "README.md").read_text(encoding="utf-8") == "my own words\n"
        assert "bound" in metrics_of(folder)

    def test_a_card_of_this_package_is_written_anew_under_another_name(self, data, tmp_path):
        """The folder is renamed, and an earlier evaluation was interrupted when its first plot was there."""
        folder = save_model(tmp_path / "digits_v2")
        write_card(folder)
        folder = folder.rename(tmp_path / "my model")
        arguments = ("--model", folder, "--dataset", data, "--parts", "bound", *FEW)
        killed = "import evaluation.plots, os; evaluation.plots.draw_calibration = lambda *_: os._exit(9)"
        assert evaluate(*arguments, patch=killed).returncode == 9
        assert (folder / "plots" / "bound.png").exists()
        result = evaluate(*arguments)
        assert "and so has the card" in result.stdout
        assert "### Bits per dimension" in (folder / "README.md").read_text(encoding="utf-8")

    def test_classes_in_another_order(self, data, tmp_path):
        folder = save_model(tmp_path / "model")
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        index["id2label"] = {"0": "digit 2", "1": "digit 1", "2": "digit 0"}
        (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
        line = error_of(evaluate("--model", folder, "--dataset", data, *FEW))
        assert "have the model's classes in another order: digit 0, digit 1, digit 2" in line

    def test_a_network_that_gives_nan(self, data, tmp_path):
        pipeline = make_pipeline()
        # Finite weights, whose products with normalised activations of both signs are ±inf, which SiLU makes NaN of.
        torch.nn.init.constant_(pipeline.unet.conv_norm_out.weight, torch.finfo(torch.float32).max)
        DDPMHubPipeline(pipeline.unet, DDPMHubScheduler(timestep_spacing="trailing")).save_pretrained(
            tmp_path / "model"
        )
        result = evaluate("--model", tmp_path / "model", "--dataset", data, "--parts", "samples", *FEW)
        assert "samples hold NaN or infinity" in error_of(result, status=1)

    def test_damaged_metrics_are_not_overwritten(self, data, tmp_path):
        folder = save_model(tmp_path / "model")
        (folder / "metrics.json").write_text('{"bound": 3}', encoding="utf-8")
        line = error_of(evaluate("--model", folder, "--dataset", data, *FEW))
        assert "metrics.json is damaged: bound is 3; it must be an object" in line
        assert (folder / "metrics.json").read_text(encoding="utf-8") == '{"bound": 3}'

    def test_labels_that_are_missing_for_a_conditional_model(self, tmp_path):
        unlabelled = save_digits(tmp_path / "data", labels=False)
        line = error_of(evaluate("--model", save_model(tmp_path / "model"), "--dataset", unlabelled, *FEW))
        assert "have no classes, and the model is class-conditional" in line
        assert "--label_column" in line

    def test_other_classes(self, tmp_path):
        other = save_digits(tmp_path / "data", classes=5)
        line = error_of(evaluate("--model", save_model(tmp_path / "model"), "--dataset", other, *FEW))
        assert "have 5 classes, and the model has 3" in line

    def test_no_data_are_named(self, tmp_path):
        line = error_of(evaluate("--model", save_model(tmp_path / "model"), *FEW))
        assert "`--dataset` is needed: the model does not say what it was trained on" in line

    def test_no_model(self, tmp_path):
        assert "model_index.json" in error_of(evaluate("--model", tmp_path, *FEW))

    def test_a_folder_that_cannot_be_written(self, data, tmp_path):
        folder = save_model(tmp_path / "model")
        (tmp_path / "file").write_text("x")
        line = error_of(evaluate("--model", folder, "--dataset", data, *FEW, "--output_dir", tmp_path / "file"))
        assert "which cannot be written" in line


def test_help_is_instant_and_names_every_option():
    result = run_python("-X", "importtime", "training/evaluate.py", "--help")
    assert result.returncode == 0
    assert "--timesteps_per_image" in result.stdout
    assert " torch\n" not in result.stderr
