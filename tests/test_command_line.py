"""`ddpm-hub` as its user meets it: what it draws and prints, how it refuses, and that asking for help costs nothing."""

import json
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import make_unet, run_python
from hub_server import HubServer
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

from ddpm_hub import DDPMHubPipeline, DDPMHubScheduler, __version__
from ddpm_hub.command_line import main
from ddpm_hub.ddpm_hub_layout import main_files

COMMANDS = ("sample", "export", "push", "card", "space", "info")
NAMES = {0: "zero", 1: "one", 2: "2 or so"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model of few steps: T = 50."""
    folder = tmp_path_factory.mktemp("command_line") / "model"
    DDPMHubPipeline(make_unet(), DDPMHubScheduler(50, beta_end=0.4), id2label=NAMES).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture
def call(capsys):
    """Runs the program here: its exit status, and what it says on stdout and stderr."""

    def run(*arguments) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


# --- Help and mistakes ---


def test_help_and_mistakes_load_nothing_and_each_help_has_an_example():
    script = """
import contextlib, io, json, sys
from ddpm_hub.command_line import main
said = {}
for line in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main(line.split())
        except SystemExit as end:
            said[line] = [end.code, out.getvalue()]
print(json.dumps([said, sorted(sys.modules)]))
"""
    helps = ["--help", *(f"{command} --help" for command in COMMANDS)]
    mistakes = ["", "fly", "sample", "sample x --num_images 0", "push x", "--unknown", "space me/x"]
    result = run_python("-c", script, json.dumps([*helps, *mistakes]))
    assert result.returncode == 0, result.stderr
    said, modules = json.loads(result.stdout)
    assert not {"torch", "numpy", "diffusers", "huggingface_hub", "PIL", "yaml", "safetensors"} & set(modules)
    for line in helps:
        status, text = said[line]
        assert status == 0
        assert f"\n  ddpm-hub {line.removesuffix('--help')}".rstrip() in text.split("example:")[1]
    assert all(f"\n    {command} " in said["--help"][1] for command in COMMANDS)
    for line in mistakes:
        status, text = said[line]
        assert status == 2, line
        assert text.startswith("usage: ddpm-hub")


def test_the_program_is_installed():
    program = Path(sys.executable).with_name("ddpm-hub")
    result = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"ddpm-hub {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_is_understood(command, call):
    """What follows it is a mistake, and the only one."""
    line = call(command, "--help")[1].split("example:\n")[1].split()
    assert line[:2] == ["ddpm-hub", command]
    status, _, err = call(*line[1:], "--no_such_option")
    assert status == 2
    assert err.endswith("error: unrecognized arguments: --no_such_option\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sample x --num_images -1", "argument --num_images: '-1' is not a whole number of at least 1"),
        ("sample x --batch_size 1.5", "argument --batch_size: '1.5' is not a whole number of at least 1"),
        ("sample x --num_inference_steps 0", "argument --num_inference_steps: '0' is not a whole number"),
        ("sample x --seed -1", "argument --seed: '-1' is not a whole number from 0 to 9223372036854775807"),
        ("sample x --seed 9223372036854775808", "argument --seed"),
        ("sample x --num_img 3", "unrecognized arguments: --num_img"),
        ("sample x --num_image 3", "unrecognized arguments: --num_image"),  # no guessing
        ("sample x --class_labels", "expected at least one argument"),
        ("space me/x", "the following arguments are required: --model"),
        ("push x", "the following arguments are required: USER/NAME"),
        ("", "the following arguments are required: COMMAND"),
    ],
)
def test_a_mistake_in_the_command_line(line, message, call):
    status, out, err = call(*line.split())
    assert (status, out) == (2, "")
    assert err.startswith("usage: ddpm-hub")
    assert message in err


# --- Failures ---

MISSING = "There is no folder 'nowhere'; name the folder of a saved model."
FAILURES = {
    "sample /nowhere": "'/nowhere': there is no such folder",
    "sample model --output model/model_index.json": "--output is 'model/model_index.json', which is a file; name a folder",
    "sample model --revision main": "--revision is 'main', but 'model' is a folder; leave it out",
    "sample model --class_labels zero five": "contains 'five'; the classes are zero, one, 2 or so, or their numbers, 0 to 2",
    "sample model --class_labels 3": "--class_labels contains '3'",
    "sample model --num_inference_steps 51": "`num_inference_steps` is 51; it must be a whole number, from 1 to 50",
    "info /nowhere": "MODEL is '/nowhere': there is no such folder",
    "info model --revision main": "--revision is 'main', but 'model' is a folder; leave it out",
    "info empty": "empty/model_index.json' is missing",
    "export nowhere": MISSING,
    "export model --output full": "`output` is 'full', which is not an empty folder; choose another one",
    "card nowhere": "'nowhere' holds no model_index.json",
    "card model --repo_id a/b/c": "'a/b/c'",
    "push nowhere me/x --dry_run": MISSING,
    "push model a/b/c --dry_run": "'a/b/c' is no name for a repository",
    "push broken me/x --dry_run": "not this version's file",
    "space a/b/c --model me/x --dry_run": "'a/b/c' is no name for a repository",
    "space me/x --model ./model --dry_run": "'./model' is no name for a repository",
}


@pytest.mark.parametrize("line", FAILURES)
def test_a_failure_is_one_line(line, folder, tmp_path, call):
    (tmp_path / "empty").mkdir()
    shutil.copytree(folder, tmp_path / "full")
    shutil.copytree(folder, tmp_path / "broken")
    (tmp_path / "broken" / "pipeline_ddpm_hub.py").write_text("")
    before = sorted(tmp_path.rglob("*"))
    status, out, err = call(*line.split())
    assert (status, out) == (1, "")
    assert err.startswith("ddpm-hub: error: ")
    assert err.count("\n") == 1
    assert FAILURES[line] in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failure_that_nobody_foresaw_is_one_line_too(folder, call, monkeypatch):
    monkeypatch.setattr("os.replace", lambda source, target: 1 / 0)
    status, _, err = call("card", folder)
    assert status == 1
    assert err.count("\n") == 1
    assert "ZeroDivisionError: " in err
    assert "ddpm-hub --debug" in err


@pytest.mark.parametrize("line", ["--debug card nowhere", "card --debug nowhere", "card nowhere --debug"])
def test_debug_shows_where(line, folder):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        main(line.split())


def test_ctrl_c_stops_in_one_line(folder, tmp_path, call):
    hook = register_module_forward_pre_hook(lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        status, out, err = call("sample", folder)
    finally:
        hook.remove()
    assert (status, out) == (130, "")
    assert err.splitlines()[-1].endswith("ddpm-hub: stopped.")
    assert "Traceback" not in err
    assert not (tmp_path / "samples").exists()


def test_a_warning_is_one_line(folder, call):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"beta_end": 0.1}))
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        status, _, err = call("info", folder)
        assert warnings.showwarning.__module__ != "ddpm_hub.command_line"
    assert status == 0
    assert {line[: len("ddpm-hub: warning: ᾱ_T = ")] for line in err.splitlines()} == {"ddpm-hub: warning: ᾱ_T = "}


# --- sample ---


class TestSample:
    def test_every_image_comes_from_its_own_seed(self, folder, tmp_path, call):
        status, out, _ = call(
            "sample", "model", "--num_images", 5, "--seed", 7, "--batch_size", 3, "--class_labels", "one", 0
        )
        assert status == 0
        assert out == "samples: 5 images, seeds 7 to 11, in 50 steps each, and grid.png.\n"
        files = sorted(path.name for path in (tmp_path / "samples").iterdir())
        assert files == ["grid.png", *(f"seed_{seed:06d}.png" for seed in range(7, 12))]
        images = [pixels(tmp_path / "samples" / name) for name in files[1:]]
        for i, seed in enumerate(range(7, 12)):
            call(
                "sample",
                "model",
                "--num_images",
                1,
                "--seed",
                seed,
                "--class_labels",
                [1, 0][i % 2],
                "--output",
                f"{i}",
            )
            alone = pixels(tmp_path / f"{i}" / f"seed_{seed:06d}.png")
            # The network rounds otherwise in another batch: at most from one value of a pixel to the next.
            assert np.abs(images[i] - alone).max() <= 1
        assert len({image.tobytes() for image in images}) == 5
        grid = pixels(tmp_path / "samples" / "grid.png")
        assert grid.shape == (16, 24)
        for i, image in enumerate(images):
            row, column = i // 3 * 8, i % 3 * 8
            np.testing.assert_array_equal(grid[row : row + 8, column : column + 8], image)
        assert not grid[8:, 16:].any()

    def test_labels_by_name_and_by_number_are_the_same(self, folder, tmp_path, call):
        for output, label in (("name", "2 or so"), ("number", "2"), ("other", "1"), ("any", None)):
            labels = [] if label is None else ["--class_labels", label]
            assert call("sample", "model", "--num_images", 1, "--output", output, *labels)[0] == 0
        drawn = {
            path.name: pixels(path / "seed_000000.png").tobytes() for path in tmp_path.iterdir() if path.name != "model"
        }
        assert drawn["name"] == drawn["number"]
        assert len(set(drawn.values())) == 3

    def test_guidance_is_that_of_the_pipeline(self, folder, tmp_path, call):
        pipeline = DDPMHubPipeline.from_pretrained(folder)
        drawn = []
        for interval in (None, (0, 20), (25, 49)):
            flags = [] if interval is None else ["--guidance_interval", *interval]
            asked = ["--class_labels", 1, "--num_images", 1, "--num_inference_steps", 5, "--guidance_scale", 4, *flags]
            assert call("sample", "model", *asked, "--output", "drawn")[0] == 0
            drawn.append(pixels(tmp_path / "drawn" / "seed_000000.png"))
            options = {
                "class_labels": 1,
                "num_inference_steps": 5,
                "guidance_scale": 4.0,
                "guidance_interval": interval,
            }
            np.testing.assert_array_equal(drawn[-1], np.asarray(pipeline(seed=0, **options).images[0]))
        assert len({image.tobytes() for image in drawn}) == 3
        error = call("sample", "model", *asked[:-2], 30, 20)[2]
        assert "`guidance_interval` is [30, 20]; the smaller timestep comes first." in error

    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_images_of_every_kind(self, channels, tmp_path, call):
        pipeline = DDPMHubPipeline(make_unet(channels, None, (8, 12)), DDPMHubScheduler(50, beta_end=0.4))
        pipeline.save_pretrained(tmp_path / "model")
        status, _, err = call("sample", tmp_path / "model", "--num_images", 2, "--output", tmp_path / "out")
        assert status == 0, err
        first, grid = Image.open(tmp_path / "out" / "seed_000000.png"), Image.open(tmp_path / "out" / "grid.png")
        assert (first.size, grid.size) == ((12, 8), (24, 8))
        assert first.mode == grid.mode
        np.testing.assert_array_equal(np.asarray(grid)[:, :12], np.asarray(first))
        assert "is unconditional; leave it out" in call("sample", tmp_path / "model", "--class_labels", 1)[2]

    def test_the_steps_suit_the_model(self, folder, call):
        """100 leading steps of 199 are the first 100: x is not noise where they start."""
        for config, steps in (({}, 100), ({"num_train_timesteps": 199, "beta_end": 0.12}, 199)):
            DDPMHubScheduler(**config).save_config(folder / "scheduler")
            assert f"1 image, seed 0, in {steps} steps each" in call("sample", "model", "--num_images", 1)[1]


# --- export, card, info, and what is not sent ---


def test_export(folder, tmp_path, call):
    (folder / "pipeline_ddpm_hub.py").write_text("")
    status, out, _ = call("export", "model", "--output", "release")
    assert (status, out) == (0, "release is a finished repository: it loads here and from the Hub.\n")
    assert (folder / "pipeline_ddpm_hub.py").read_text() == ""
    assert call("export", "model")[:2] == (0, "model is a finished repository: it loads here and from the Hub.\n")


def test_card(folder, call):
    assert call("card", "model", "--repo_id", "ada/digits")[:2] == (0, "model/README.md\n")
    assert '"ada/digits"' in (folder / "README.md").read_text()


def test_info(folder, call):
    (folder / "metrics.json").write_text(json.dumps({"evaluation": [{"type": "a", "name": "Fidelity", "value": 0.5}]}))
    status, out, err = call("info", "model")
    assert (status, err) == (0, "")
    facts = dict(line.split("  ", 1) for line in out.splitlines())
    assert {key: value.strip() for key, value in facts.items()} == {
        "images": "8 × 8, 1 channel",
        "classes": "3: zero, one, 2 or so",
        "network": f"UNet2DModel, {make_unet().num_parameters():,} parameters, float32",
        "predicts": "epsilon",
        "schedule": f"linear, T = 50, ᾱ_T = {DDPMHubScheduler(50, beta_end=0.4).alphas_cumprod[-1]:.3g}",
        "variance": "fixed_small",
        "fidelity": "0.5",
        "loads": "with ddpm_hub, by trust_remote_code, and in plain diffusers once pushed",
    }


@pytest.mark.parametrize(
    ("file", "content", "message", "facts"),
    [
        ("pipeline_ddpm_hub.py", "", "not this version's file", True),
        ("model_index.json", "{", "is not JSON", False),
        ("unet/config.json", "{}", "names the class None", False),
        ("unet/diffusion_pytorch_model.safetensors", "", "is damaged", False),
        ("metrics.json", "{", "metrics.json' is damaged", False),
    ],
)
def test_info_of_a_damaged_folder_says_what_is_wrong(file, content, message, facts, folder, call):
    (folder / file).write_text(content)
    status, out, err = call("info", "model")
    assert status == 1
    assert bool(out) == facts
    assert "loads" not in out
    assert f"model/{file}'" in err
    assert message in err
    assert err.count("\n") == 1


SCRIPT = """
import sys
from ddpm_hub.command_line import main
for line in sys.argv[1:]:
    print("status", main(line.split()), flush=True)
    print("status", file=sys.stderr, flush=True)
"""


def test_a_dry_run_needs_no_token_and_sends_nothing(folder, tmp_path):
    (folder / "config.yaml").write_text("secret: 1\n")
    with HubServer() as hub:
        lines = (
            f"push {folder} me/digits --dry_run",
            f"push {folder} digits --dry_run",
            "space me/x --model me/digits --dry_run",
        )
        result = run_python("-c", SCRIPT, *lines, **hub.environment(None, tmp_path / "home"))
        assert hub.requests == []
    assert result.returncode == 0, result.stderr
    push, short, space, _ = result.stdout.split("status 0\n")
    assert push.startswith("me/digits, revision main: ")
    assert "\nme/digits, revision stock: " in push
    assert all(said.endswith("\nNothing was sent.\n") for said in (push, short, space))
    main_part = push.split("me/digits, revision stock")[0].splitlines()
    listed = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in main_part[1:]}
    assert set(listed) == {*main_files(folder), "README.md"}
    assert main_part[0].endswith(f": {len(listed)} files, {sum(listed.values()):,} bytes")
    assert listed["unet/config.json"] == (folder / "unet" / "config.json").stat().st_size
    assert space.startswith("Space me/x, with DDPM_HUB_MODEL = me/digits: ")
    assert {"app.py", "README.md", "requirements.txt", "ddpm_hub/hub.py"} <= {
        line.split()[-1] for line in space.splitlines()
    }


def test_info_of_a_repository(folder, tmp_path):
    with HubServer() as hub:
        hub.add_user("me")
        hub.add_repo("me/digits")
        hub.add_repo("me/broken")
        files = {path: content.read_bytes() for path, content in main_files(folder).items()}
        commit = hub.commit("me/digits", files | {"secret.bin": b"x" * 1000})
        hub.commit("me/digits", files | {"model_index.json": b"{"})
        hub.commit("me/broken", files | {"scheduler/ddpm_equations.py": b""})
        lines = (f"info me/digits --revision {commit.id}", "info me/digits", "info me/broken", "info me/nothing")
        result = run_python("-c", SCRIPT, *lines, **hub.environment(None, tmp_path / "home"))
        asked = [request.path for request in hub.requests]
        assert {request.method for request in hub.requests} <= {"GET", "HEAD"}
    assert result.returncode == 0, result.stderr
    said = result.stdout.split("status ")
    assert "classes   3: zero, one, 2 or so" in said[0]
    assert "loads " in said[0]
    assert [text[0] for text in said[1:]] == ["0", "1", "1", "1"]
    assert not any("secret.bin" in path for path in asked)
    errors = [text.strip().splitlines()[-1] for text in result.stderr.split("status\n")[1:4]]
    assert "model_index.json' is not JSON" in errors[0]
    assert "scheduler/ddpm_equations.py' is not this version's file" in errors[1]
    assert "MODEL is 'me/nothing': no such folder is here, and the Hub gave no such model" in errors[2]
    assert "Traceback" not in result.stderr
