"""`--push_to_hub`: a run publishes what it trained, finds out beforehand whether it may, and loses nothing if it cannot."""

import pytest
from conftest import run_python
from hub_server import HubServer

from ddpm_hub import DDPMHubPipeline

SMALL = [
    "--config",
    "training/configs/smoke.yaml",
    "--max_train_steps",
    "6",
    "--warmup_steps",
    "2",
    "--fidelity_samples",
    "0",
]


@pytest.fixture
def hub():
    with HubServer() as hub:
        hub.add_user("ada")
        yield hub


def train(hub: HubServer, token: str | None, tmp_path, *arguments: str, output="run"):
    """train.py in a process that knows this server alone; its token is seen nowhere but in its requests."""
    environment = hub.environment(token, tmp_path / "home")
    flags = [*SMALL, "--output_dir", str(tmp_path / output), "--push_to_hub", "ada/digits", *arguments]
    result = run_python("training/train.py", *flags, **environment)
    if token is not None:
        assert token not in result.stdout + result.stderr
        for path in tmp_path.rglob("*"):
            assert not path.is_file() or token.encode() not in path.read_bytes(), path
    return result


def test_the_finished_run_is_published_for_its_owner_alone(hub, tmp_path):
    result = train(hub, hub.add_token("ada"), tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"Published {hub.url}/ada/digits (only its owner sees it)." in result.stdout
    repository = hub.repos["model", "ada/digits"]
    assert repository.private
    published, run = repository.files(), tmp_path / "run"
    assert (
        published["unet/diffusion_pytorch_model.safetensors"]
        == (run / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    )
    assert published["metrics.json"] == (run / "metrics.json").read_bytes()
    assert {"loss_curve.png", "samples/step_000006.png", "pipeline_ddpm_hub.py"} <= set(published)
    assert "config.yaml" not in published  # it names folders of this machine
    assert str(tmp_path) not in published["README.md"].decode()
    assert 'from_pretrained("ada/digits", revision="stock")' in published["README.md"].decode()
    assert "scheduler/scheduler_config.json" in repository.files("stock")


def test_everybody_sees_it_if_that_was_asked_for(hub, tmp_path):
    result = train(hub, hub.add_token("ada"), tmp_path, "--hub_private_repo", "false")
    assert result.returncode == 0, result.stderr
    assert not hub.repos["model", "ada/digits"].private


@pytest.mark.parametrize(
    ("role", "reason"),
    [(None, "No token for the Hub was found"), ("read", "may only read"), ("expired", "expired, revoked or mistyped")],
)
def test_a_run_that_may_not_publish_ends_before_it_computes(hub, tmp_path, role, reason):
    token = {
        None: lambda: None,
        "read": lambda: hub.add_token("ada", role="read"),
        "expired": lambda: hub.add_token("ada", expired=True),
    }[role]()
    result = train(hub, token, tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("train.py: error: `push_to_hub` is 'ada/digits': ")
    assert reason in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
    assert not hub.repos


def test_a_run_that_cannot_publish_at_its_end_keeps_the_model_and_says_how_to_go_on(hub, tmp_path):
    refusal = hub.fail("POST", "/preupload/", 403, times=float("inf"))
    result = train(hub, token := hub.add_token("ada"), tmp_path)
    assert result.returncode == 1, result.stderr
    assert "trained and saved, but not published" in result.stderr
    assert "Traceback" not in result.stderr
    assert refusal.count
    assert not any("README.md" in commit.files for commit in hub.repos["model", "ada/digits"].commits)
    assert DDPMHubPipeline.from_pretrained(tmp_path / "run").num_classes == 10

    retry = result.stderr.split("Try again: ddpm-hub ")[1].split()
    refusal.times = 0
    script = "import sys; from ddpm_hub.command_line import main; sys.exit(main(sys.argv[1:]))"
    again = run_python("-c", script, *retry, **hub.environment(token, tmp_path / "home"))
    assert again.returncode == 0, again.stderr
    assert "model_index.json" in hub.repos["model", "ada/digits"].files()


def test_a_name_that_is_none_is_told_without_asking_the_hub(hub, tmp_path):
    result = train(hub, hub.add_token("ada"), tmp_path, "--push_to_hub", "digits")
    assert result.returncode == 2
    assert "`push_to_hub` is 'digits'; it must be USER/NAME" in result.stderr
    assert hub.requests == []
