"""The Space: what is published, what a second run does, and that what was published runs as it is."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY, make_pipeline, seeds
from hub_client import Client, check_no_token
from hub_server import HubServer

PREAMBLE = """
import contextlib, io
from ddpm_hub import command_line
from ddpm_hub.hub import push_folder, push_space

def space(repo, model, **options):
    publication = push_space(repo, model, **options)
    return {name: getattr(publication, name) for name in ("repo_id", "url", "private", "commits", "changed")}

def command(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = command_line.main(list(arguments))
    return status, out.getvalue(), err.getvalue()
"""
# What a Space does not have: the package of this machine.
ALONE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in f"{finder} {type(finder).__module__}"]
sys.path[:] = [path for path in sys.path if "editable" not in path]
"""


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        server.add_user("ada")
        server.add_user("bob")
        yield server


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """A process with the package, in which the token is ada's and two models of hers are on the Hub."""
    folder = tmp_path_factory.mktemp("models") / "digits"
    make_pipeline().save_pretrained(folder)
    with Client(hub, tmp_path_factory.mktemp("client"), hub.add_token("ada")) as client:
        client.run(PREAMBLE)
        for model in ("ada/digits", "ada/letters"):
            client.run("push_folder(folder, model)", folder=folder, model=model)
        yield client


def publish(client, repo, model, **options):
    return client.run("answer = space(repo, model, **options)", repo=repo, model=model, options=options)


def header(repository) -> dict:
    return yaml.safe_load(repository.files()["README.md"].decode().split("---\n")[1])


def test_what_is_published(hub, client):
    answer = publish(client, "ada/demo", "ada/digits")
    repository = hub.repos["space", "ada/demo"]
    head = repository.branches["main"]
    assert answer == {
        "repo_id": "ada/demo",
        "url": f"{hub.url}/spaces/ada/demo",
        "private": True,
        "commits": {"main": head.id},
        "changed": ["main"],
    }
    assert repository.private
    assert repository.variables == {"DDPM_HUB_MODEL": "ada/digits"}
    assert repository.secrets == {}
    assert [commit.title for commit in repository.commits] == ["initial commit", "Upload the demo"]

    space = REPOSITORY / "space"
    ours = [path for path in space.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files = {path.relative_to(space).as_posix(): path.read_bytes() for path in ours}
    del files["README.md"]
    assert {"app.py", "page.css", "tabs/generate.py", "example_images/LICENSES.txt", "requirements.txt"} <= files.keys()
    files["docs/EQUATIONS.md"] = (REPOSITORY / "docs" / "EQUATIONS.md").read_bytes()
    files |= {f"ddpm_hub/{path.name}": path.read_bytes() for path in (REPOSITORY / "ddpm_hub").glob("*.py")}
    published = repository.files()
    assert published.keys() == files.keys() | {".gitattributes", "README.md"}
    assert {name: published[name] for name in files} == files
    own = yaml.safe_load((space / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert header(repository) == own | {"models": ["ada/digits"]}
    assert (own["sdk"], own["app_file"]) == ("gradio", "app.py")

    start = len(hub.requests)
    assert publish(client, "demo", "ada/digits", private=False) == answer | {"changed": []}
    assert repository.private
    assert not [request for request in hub.requests[start:] if "/commit/" in request.path or request.method == "PUT"]
    # Setting a variable would restart the Space.
    assert [request.method for request in hub.requests[start:] if request.path.endswith("/variables")] == ["GET"]

    hub.commit("ada/demo", {"notes.txt": b"mine"}, repo_type="space")
    before = repository.files()
    assert publish(client, "ada/demo", "ada/letters")["changed"] == ["main"]
    assert repository.variables == {"DDPM_HUB_MODEL": "ada/letters"}
    assert header(repository)["models"] == ["ada/letters"]
    assert {path for path, content in repository.files().items() if before.get(path) != content} == {"README.md"}


def test_the_command(hub, client):
    status, out, err = client.run('answer = command("space", "ada/shown", "--model", "ada/digits", "--public")')
    assert status == 0
    assert err == (
        f"ada/digits is private: for the Space to load it, set the secret HF_TOKEN on {hub.url}/spaces/ada/shown/settings.\n"
    )
    assert f"Published {hub.url}/spaces/ada/shown (everybody sees it)." in out
    assert not hub.repos["space", "ada/shown"].private
    status, out, err = client.run('answer = command("space", "ada/unmade", "--model", "ada/nothing")')
    assert (status, out) == (1, "")
    assert err.startswith("ddpm-hub: error: looking up the model 'ada/nothing': there is no such account, repository")


@pytest.mark.parametrize(
    ("repo", "model", "reason"),
    [
        (
            "ada/new",
            "ada/missing",
            "looking up the model 'ada/missing': there is no such account, repository or revision",
        ),
        (
            "ada/new",
            "bob/secret",
            "looking up the model 'bob/secret': there is no such account, repository or revision",
        ),
        ("ada/new", "no name", "looking up the model 'no name': "),
        ("ada/letters", "ada/digits", "'ada/letters' is there already, as a model. Choose another name for the space."),
        ("bob/new", "ada/digits", "The token of 'ada' cannot write to 'bob'"),
        ("ada/no name", "ada/digits", "'ada/no name' is no name for a repository: "),
    ],
)
def test_what_may_not_be_published_says_why_and_makes_nothing(hub, client, repo, model, reason):
    hub.add_repo("bob/secret", private=True)
    before = {key: len(repository.commits) for key, repository in hub.repos.items()}
    answer = client.run("answer = outcome(space, repo, model)", repo=repo, model=model)
    assert answer.startswith(f"HubError: {reason}")
    assert {key: len(repository.commits) for key, repository in hub.repos.items()} == before


@pytest.mark.parametrize("how", [503, "drop", "drop-after"])
def test_a_fault_that_passes_at_any_request(hub, client, how):
    start = len(hub.requests)
    publish(client, f"ada/clean-{how}", "ada/digits")
    count, expected = len(hub.requests) - start, hub.repos["space", f"ada/clean-{how}"].files()
    for index in range(count):
        fault = hub.fail(".*", ".*", how, after=index)
        publish(client, "ada/faulty", "ada/digits")
        assert fault.count == 1
        repository = hub.repos.pop(("space", "ada/faulty"))
        assert repository.files() == expected
        assert len(repository.commits) == 2
        assert repository.variables == {"DDPM_HUB_MODEL": "ada/digits"}


def test_what_was_published_runs_as_it_is(hub, client, tmp_path):
    publish(client, "ada/running", "ada/digits")
    folder = tmp_path / "space"
    client.run(
        "import huggingface_hub; huggingface_hub.snapshot_download(repo, repo_type='space', local_dir=folder)",
        repo="ada/running",
        folder=folder,
    )
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(ALONE, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = hub.environment(client.token, tmp_path / "home") | hub.repos["space", "ada/running"].variables
    environment |= {
        "PYTHONPATH": str(tmp_path / "site"),
        "PYTHONUNBUFFERED": "1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(tmp_path / "gradio"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    where = "import ddpm_hub; print(ddpm_hub.__file__)"
    run = {"cwd": folder, "env": os.environ | environment, "stdout": subprocess.PIPE, "text": True}
    found = subprocess.run([sys.executable, "-c", where], check=True, **run).stdout.strip()
    assert found == str(folder / "ddpm_hub" / "__init__.py")
    elsewhere = subprocess.run([sys.executable, "-c", where], check=False, stderr=subprocess.PIPE, **run | {"cwd": "/"})
    assert "No module named 'ddpm_hub'" in elsewhere.stderr  # so the app has no other

    lines = []
    with subprocess.Popen([sys.executable, "app.py"], stderr=subprocess.STDOUT, **run) as app:
        try:
            for line in app.stdout:
                lines.append(line)
                if "Running on local URL" in line:
                    break
            assert app.poll() is None, "".join(lines)
            images, settings, card = client.run(
                """
import numpy as np
from gradio_client import Client
from PIL import Image
space = Client(url, verbose=False, download_files=files)
images, settings = space.predict(class_name="one", count=2, num_steps=10, seed=7, api_name="/generate")
images = [np.asarray(Image.open(image)).tolist() for image in images]
answer = images, settings, space.predict(api_name="/model")["card"]
""",
                url=f"http://127.0.0.1:{port}/",
                files=client.folder / "gradio",
            )
        finally:
            app.terminate()
            lines.append(app.stdout.read())
    log = "".join(lines)
    assert "Traceback" not in log, log
    assert (settings["model"], settings["seeds"], settings["num_inference_steps"]) == ("ada/digits", [7, 8], 10)
    assert card.startswith("# digits")
    own = make_pipeline()(batch_size=2, class_labels=1, num_inference_steps=10, generator=seeds(7, 8)).images
    for shown, image in zip(images, own, strict=True):
        np.testing.assert_allclose(np.array(shown).astype(int), np.asarray(image).astype(int), atol=1)
    check_no_token(hub, tmp_path, log, card)
