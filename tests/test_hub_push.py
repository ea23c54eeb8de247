"""Pushing: what arrives, what a second push does, what a fault at any request does, and that no token gets out."""

import copy
import hashlib
import json
import math
import re

import pytest
import torch
from conftest import make_pipeline, run_python
from hub_client import Client
from hub_server import HubServer

from ddpm_hub.ddpm_hub_layout import CODE_PATHS

# Most of the time of a push goes into compiling the template of the card: here it is compiled once for hundreds of pushes.
PREAMBLE = """
import contextlib, functools, io
import jinja2
from pathlib import Path
from ddpm_hub import DDPMHubPipeline, command_line
from ddpm_hub.ddpm_hub_upload import HubError
from ddpm_hub.hub import push_folder

jinja2.Environment.compile = functools.cache(jinja2.Environment.compile)

def push(folder, repo, **options):
    publication = push_folder(folder, repo, **options)
    return {name: getattr(publication, name) for name in ("repo_id", "url", "private", "commits", "changed")}

def command(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = command_line.main(list(arguments))
    return status, out.getvalue(), err.getvalue()
"""
CONFIGS = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json"]
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
STOCK = {".gitattributes", "README.md", *CONFIGS, WEIGHTS}
MAIN = STOCK | set(CODE_PATHS)
REMEDY = "Make a token with write access on the Hub's settings page and run `hf auth login`, or set HF_TOKEN."


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        server.add_user("ada", orgs=("lab",))
        server.add_user("bob")
        yield server


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """A process with the package, in which the token is ada's."""
    with Client(hub, tmp_path_factory.mktemp("client"), hub.add_token("ada")) as client:
        client.run(PREAMBLE)
        yield client


def save(folder, num_class_embeds=None, factor=1):
    pipeline = make_pipeline(num_class_embeds=num_class_embeds)
    with torch.no_grad():
        pipeline.unet.conv_out.weight.mul_(factor)
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "digits")


def push(client, folder, repo, token=None, **options):
    return client.run("answer = push(folder, repo, **options)", token, folder=folder, repo=repo, options=options)


def refusal(client, folder, repo, token=None, **options) -> str:
    lines = "answer = outcome(push, folder, repo, **options)"
    answer = client.run(lines, token, folder=folder, repo=repo, options=options)
    kind, _, text = answer.partition(": ")
    assert kind == "HubError", answer
    return text


def since(hub, start: int, method: str, path: str) -> list:
    return [r for r in hub.requests[start:] if r.method == method and re.search(path, r.path)]


# --- What arrives ---


def test_a_push_is_private_one_commit_a_revision_and_the_allow_list(hub, client, folder):
    for path in ("checkpoints/step/model.safetensors", "unet/optimizer.bin", "log.txt", "config.yaml", ".env", "x.py"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("license: mit")
    (folder / "plots").mkdir()
    (folder / "plots" / "fid.png").write_bytes(b"\x89PNG\r\n\x1a\n a plot")
    answer = push(client, folder, "ada/first", commit_message="The first")
    repository = hub.repos["model", "ada/first"]
    heads = {name: head.id for name, head in repository.branches.items()}
    assert answer == {
        "repo_id": "ada/first",
        "url": f"{hub.url}/ada/first",
        "private": True,
        "commits": heads,
        "changed": ["stock", "main"],
    }
    assert repository.private
    assert [commit.title for commit in repository.commits] == ["initial commit", "The first", "The first"]
    assert {head.parent for head in repository.branches.values()} == {repository.commits[0].id}

    extras = {"plots/fid.png"}
    main, stock = repository.files("main"), repository.files("stock")
    assert (main.keys(), stock.keys()) == (MAIN | extras, STOCK | extras)
    assert not [path for path in stock if path.endswith(".py")]
    for path in MAIN - {".gitattributes", "README.md"}:
        assert main[path] == (folder / path).read_bytes(), path
    assert 'from_pretrained("ada/first"' in main["README.md"].decode()
    assert stock["README.md"] == main["README.md"]
    assert json.loads(stock["model_index.json"])["_class_name"] == "DDPMPipeline"
    # An unconditional model's weights are the same in both revisions, and are sent and stored once.
    assert list(repository.lfs_objects) == [hashlib.sha256(main[WEIGHTS]).hexdigest()]
    assert len(since(hub, 0, "PUT", "lfs-upload")) == 1


def test_what_is_left_of_an_earlier_model_goes_and_what_others_put_there_stays(hub, client, folder):
    variant = folder / WEIGHTS.replace(".safetensors", ".fp16.safetensors")
    variant.write_bytes((folder / WEIGHTS).read_bytes())
    (folder / "samples").mkdir()
    grid = folder / "samples" / "step_000006.png"
    grid.write_bytes(b"\x89PNG\r\n\x1a\n")
    push(client, folder, "ada/renewed")
    theirs = {"notes.txt": b"1", "docs/their.png": b"2", "unet/other.safetensors": b"3"}
    hub.commit("ada/renewed", theirs)
    variant.unlink()
    grid.unlink()

    push(client, folder, "ada/renewed")  # no card of its own: as after `pipeline.push_to_hub`
    repository = hub.repos["model", "ada/renewed"]
    assert repository.files("main").keys() == MAIN | theirs.keys() | {"samples/step_000006.png"}
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMine\n", encoding="utf-8")
    push(client, folder, "ada/renewed")
    assert repository.files("main").keys() == MAIN | theirs.keys()
    assert repository.files("stock").keys() == STOCK


def test_a_card_that_is_there_stays_where_the_folder_has_none(hub, client, folder):
    push(client, folder, "ada/kept")
    hub.commit("ada/kept", {"README.md": b"---\nlicense: mit\n---\nWith figures\n", "metrics.json": b"{}"})
    assert push(client, folder, "ada/kept")["changed"] == []
    assert hub.repos["model", "ada/kept"].files("main")["README.md"].endswith(b"With figures\n")


def test_what_would_harm_is_not_sent(hub, client, folder):
    start = len(hub.requests)
    for path, content, reason in (
        ("samples.png", b"PRIVATE KEY", "is no PNG picture"),
        ("README.md", b"my token is hf_" + b"a1" * 17, "what looks like a token"),
    ):
        (folder / path).write_bytes(content)
        answer = client.run("answer = outcome(push, folder, repo)", folder=folder, repo="ada/harm")
        assert answer.startswith("ValueError: ")
        assert reason in answer
        (folder / path).unlink()
    assert len(hub.requests) == start

    push(client, folder, "ada/ignoring")
    hub.commit("ada/ignoring", {".gitignore": b"*.safetensors\n"})
    assert "has a .gitignore" in refusal(client, save(folder, factor=2), "ada/ignoring")


@pytest.mark.parametrize("fault", ["501", "401"])  # others it repeats for minutes by itself
def test_a_failure_of_the_other_protocol_for_large_files_is_told_as_well(hub, client, folder, tmp_path, fault):
    """Xet, which the Hub prefers: a process in which it is not disabled, and a server that does not have it."""
    hub.fail("GET", "xet-write-token", int(fault), math.inf)
    environment = hub.environment(client.token, tmp_path / "xet") | {"HF_HUB_DISABLE_XET": "0"}
    script = (
        "import sys, time; time.sleep = lambda seconds: None\n"
        "from ddpm_hub.command_line import main; sys.exit(main(sys.argv[1:]))"
    )
    result = run_python("-c", script, "push", str(folder), f"ada/xet-{fault}", **environment)
    assert result.returncode == 1, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ddpm-hub: error: uploading to 'ada/xet-{fault}' (stock): "), result.stderr
    assert re.search(r"run the command again later|run `hf auth login`", last)
    assert client.token not in result.stdout + result.stderr


def test_a_second_push_changes_nothing_and_a_new_card_changes_the_card(hub, client, folder):
    first = push(client, folder, "ada/twice")
    repository, start = hub.repos["model", "ada/twice"], len(hub.requests)
    second = push(client, folder, "ada/twice", private=False)
    assert second == first | {"changed": []}
    assert repository.private
    assert since(hub, start, "PUT", ".") == since(hub, start, "POST", "/commit/") == []

    (folder / "README.md").write_text("---\nlicense: mit\n---\nMine\n", encoding="utf-8")
    third = push(client, folder, "ada/twice")
    assert third["changed"] == ["stock", "main"]
    for revision in ("stock", "main"):
        old, new = repository.files(first["commits"][revision]), repository.files(revision)
        assert new == old | {"README.md": b"---\nlicense: mit\n---\nMine\n"}
    assert not since(hub, start, "PUT", ".")


def test_what_others_put_on_main_stays_and_what_is_stale_on_stock_goes(hub, client, folder):
    push(client, folder, "ada/shared")
    hub.commit("ada/shared", {"theirs.txt": b"theirs"})
    hub.commit("ada/shared", {"unet/diffusion_pytorch_model.fp16.safetensors": b"stale"}, branch="stock")
    answer = push(client, folder, "ada/shared")
    assert answer["changed"] == ["stock"]
    repository = hub.repos["model", "ada/shared"]
    assert repository.files("main").keys() == MAIN | {"theirs.txt"}
    assert repository.files("stock").keys() == STOCK


def test_whose_repository_it_is(hub, client, folder):
    assert push(client, folder, "bare")["repo_id"] == "ada/bare"
    assert push(client, folder, "lab/ours", private=False)["private"] is False
    assert not hub.repos["model", "lab/ours"].private
    hub.add_repo("ada/open")
    assert push(client, folder, "ada/open")["private"] is False
    assert push(client, folder, "ada/granular", token=hub.add_token("ada", "fineGrained"))["private"] is True


def test_every_way_to_push_is_the_same(hub, client, tmp_path):
    folder = save(tmp_path / "digits", 4)
    client.run(
        """
pipeline = DDPMHubPipeline.from_pretrained(folder)
pipeline.push_to_hub("ada/by-method", commit_message="Mine")
pipeline.save_pretrained(Path(folder).with_name("by-save"), push_to_hub=True, repo_id="ada/by-save")
pipeline.save_pretrained(Path(folder).with_name("by-name"), push_to_hub=True)
""",
        folder=folder,
    )
    status, out, err = client.run('answer = command("push", folder, "ada/by-command")', folder=folder)
    assert (status, "error" in err) == (0, False)
    by_command = hub.repos["model", "ada/by-command"]
    assert f"Published {hub.url}/ada/by-command (only its owner sees it)." in out
    assert by_command.branches["main"].id in out
    for name in ("by-method", "by-save", "by-name"):
        repository = hub.repos["model", f"ada/{name}"]
        assert repository.private
        assert len(repository.commits) == 3
        for revision in ("main", "stock"):
            expected = by_command.files(revision)
            expected["README.md"] = expected["README.md"].replace(b"by-command", name.encode())
            assert repository.files(revision) == expected
    status, out, err = client.run('answer = command("push", folder, "bob/taken")', folder=folder)
    assert (status, out) == (1, "")
    assert err.startswith("ddpm-hub: error: The token of 'ada' cannot write to 'bob'; it can to ada, lab.")
    answer = client.run(
        "answer = outcome(pipeline.save_pretrained, folder, push_to_hub=True, create_pr=True)", folder=folder
    )
    assert answer.startswith("TypeError: save_pretrained() got unexpected arguments: create_pr")


# --- What is refused ---


@pytest.mark.parametrize(
    ("role", "repo", "reason"),
    [
        ("none", "ada/new", f"No token for the Hub was found. {REMEDY}"),
        ("wrong", "ada/new", f"asking whose token it is: the Hub does not accept the token: it is expired, revoked .* {REMEDY}"),
        ("expired", "ada/new", f"asking whose token it is: the Hub does not accept the token: it is expired, .* {REMEDY}"),
        ("odd", "ada/new", f"The token is none: it holds a space, a line's end or another odd character. {REMEDY}"),
        ("read", "ada/new", f"The token of 'ada' may only read. {REMEDY}"),
        ("write", "bob/new", "The token of 'ada' cannot write to 'bob'; it can to ada, lab. Choose another account"),
        ("fineGrained", "bob/new", "making the model 'bob/new': the token may not do this: it needs write access"),
        ("fineGrained", "bob/open", "the token may not do this: it needs write access"),
        ("write", "ada/dataset", "'ada/dataset' is there already, as a dataset. Choose another name for the model."),
        ("write", "ada/space", "'ada/space' is there already, as a space. Choose another name for the model."),
        ("write", "ada/no name", "'ada/no name' is no name for a repository: "),
        ("write", "a/b/c", "'a/b/c' is no name for a repository: "),
        ("write", "", "'' is no name for a repository: "),
        ("write", "ada/x--y", "'ada/x--y' is no name for a repository: "),
    ],
)  # fmt: skip
def test_what_may_not_be_pushed_says_why_and_makes_nothing(hub, client, folder, role, repo, reason):
    tokens = {"none": "", "wrong": "hf_wrong", "odd": "hf_od\td", "expired": hub.add_token("ada", expired=True)}
    tokens |= {name: hub.add_token("ada", name) for name in ("read", "write", "fineGrained")}
    hub.add_repo("ada/dataset", "dataset")
    hub.add_repo("ada/space", "space")
    hub.add_repo("bob/open")
    before, start = set(hub.repos), len(hub.requests)
    token = tokens[role]
    if role == "odd":  # by argument: huggingface_hub itself cleans the one of the environment
        text = client.run("answer = outcome(push, folder, 'ada/x', token=t), shown['texts']", folder=folder, t=token)
        assert "od\td" not in str(text[1])
        text = text[0].removeprefix("HubError: ")
    else:
        text = refusal(client, folder, repo, token)
    assert re.match(f".*{re.escape(reason).replace(re.escape('.*'), '.*')}", text), text
    assert set(hub.repos) == before
    assert len(hub.repos["model", "bob/open"].commits) == 1
    if role in ("none", "odd"):
        assert hub.requests[start:] == []


def damage_weights(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])


def damage_code(folder):
    (folder / "pipeline_ddpm_hub.py").write_text("import os\n")


def damage_index(folder):
    path = folder / "model_index.json"
    path.write_text(path.read_text().replace("DDPMHubScheduler", "DDIMScheduler"))


def remove_weights(folder):
    (folder / WEIGHTS).unlink()


def damage_config(folder):
    (folder / "unet" / "config.json").write_text('{"_class_name": "NoNet"}')


def damage_sizes(folder):
    path = folder / "unet" / "config.json"
    path.write_text(path.read_text().replace('"layers_per_block": 1', '"layers_per_block": 2'))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_weights, "safetensors' is damaged"),
        (remove_weights, "diffusion_pytorch_model.safetensors' is missing"),
        (damage_code, "is not this version's file"),
        (damage_index, "has scheduler = ['scheduling_ddpm_hub', 'DDIMScheduler']"),
        (damage_config, "names the class 'NoNet'; it must be 'UNet2DModel'"),
        (damage_sizes, "does not belong to unet/config.json"),
    ],
)
def test_a_damaged_folder_is_refused_before_anything_is_sent(hub, client, folder, damage, reason):
    damage(folder)
    start = len(hub.requests)
    answer = client.run('answer = outcome(push, folder, "ada/damaged")', folder=folder)
    assert re.match("ValueError|FileNotFoundError", answer), answer
    assert reason in answer
    assert hub.requests[start:] == []


@pytest.mark.parametrize("card", ["---\nlicense: my-own\n---\nMine\n", "---\na: [\n---\nMine\n"])
def test_a_card_that_the_hub_does_not_take_says_so(hub, client, folder, card):
    push(client, folder, "ada/carded")
    repository = hub.repos["model", "ada/carded"]
    heads = dict(repository.branches)
    (folder / "README.md").write_text(card)
    text = refusal(client, folder, "ada/carded")
    assert re.search(r'Invalid metadata in README\.md[^"]*("license" must be one of|YAML metadata could not)', text), (
        text
    )
    assert repository.branches == heads


def test_offline_and_without_a_network_say_so(hub, folder, tmp_path):
    for variables, reason in (
        ({"HF_HUB_OFFLINE": "1"}, "asking whose token it is: HF_HUB_OFFLINE is set, so nothing is sent; unset it."),
        (
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            "asking whose token it is: the Hub at http://127.0.0.1:9 cannot be reached, or breaks off (ConnectError",
        ),
    ):
        with Client(hub, tmp_path / min(variables), hub.add_token("ada"), **variables) as client:
            client.run(PREAMBLE)
            assert refusal(client, folder, "ada/unsent").startswith(reason)
    assert ("model", "ada/unsent") not in hub.repos


# --- Faults ---

FAULTS = (500, 503, 429, "drop", "drop-after")


@pytest.fixture(scope="module")
def old_and_new(hub, client, tmp_path_factory):
    """A repository with an old model, as a value; the folder of the new one; and what the new one's commits hold."""
    old, new = (save(tmp_path_factory.mktemp(name) / "digits", 4, factor) for name, factor in (("old", 1), ("new", -1)))
    push(client, old, "ada/digits")
    before = copy.deepcopy(hub.repos["model", "ada/digits"])
    start = len(hub.requests)
    push(client, new, "ada/digits")
    after = {branch: hub.repos["model", "ada/digits"].files(branch) for branch in ("main", "stock")}
    return before, new, after, len(hub.requests) - start


def put_back(hub, before):
    repository = hub.repos["model", "ada/digits"] = copy.deepcopy(before)
    return repository


@pytest.mark.parametrize("how", FAULTS)
def test_a_fault_that_passes_at_any_request_of_a_first_push(hub, client, old_and_new, how):
    _, folder, after, _ = old_and_new
    del hub.repos["model", "ada/digits"]
    start = len(hub.requests)
    push(client, folder, "ada/digits")
    count = len(hub.requests) - start
    assert count >= 15
    for index in range(count):
        del hub.repos["model", "ada/digits"]
        fault = hub.fail(".*", ".*", how, after=index)
        answer = push(client, folder, "ada/digits")
        assert fault.count == 1
        repository = hub.repos["model", "ada/digits"]
        assert repository.private
        assert {branch: repository.files(branch) for branch in repository.branches} == after
        assert [commit.parent for commit in repository.commits[1:]] == [repository.commits[0].id] * 2, index
        assert answer["changed"] == ["stock", "main"]
        assert answer["commits"] == {branch: head.id for branch, head in repository.branches.items()}


@pytest.mark.parametrize("how", [503, "drop", 401])
def test_a_fault_that_lasts_leaves_the_old_or_the_new_and_the_next_push_succeeds(hub, client, old_and_new, how):
    before, folder, after, count = old_and_new
    for index in range(count):
        repository = put_back(hub, before)
        fault = hub.fail(".*", ".*", how, math.inf, after=index)
        text = refusal(client, folder, "ada/digits")
        fault.times = 0
        assert re.match(r"[a-z]+ing .*: (the Hub |the token may not )", text), text
        assert re.search(r"run the command again later|run `hf auth login`", text), text
        for branch in ("main", "stock"):
            assert repository.files(branch) in (before.files(branch), after[branch]), (index, branch)
        assert repository.files("main") == before.files("main")
        push(client, folder, "ada/digits")
        assert {branch: repository.files(branch) for branch in repository.branches} == after
        assert len(repository.commits) == len(before.commits) + 2


def test_somebody_else_commits_in_between(hub, client, old_and_new):
    before, folder, after, _ = old_and_new
    repository = put_back(hub, before)
    overtaken = hub.on("/commit/main", lambda: hub.commit("ada/digits", {"theirs.txt": b"theirs", "README.md": b"Hi"}))
    answer = push(client, folder, "ada/digits")
    assert overtaken.count == 1
    assert repository.files("main") == after["main"] | {"theirs.txt": b"theirs", "README.md": b"Hi"}
    assert answer["commits"]["main"] == repository.branches["main"].id
    assert answer["changed"] == ["stock", "main"]

    repository = put_back(hub, before)
    numbers = iter(range(1000))
    busy = hub.on("/commit/main", lambda: hub.commit("ada/digits", {f"{next(numbers)}.txt": b"theirs"}), math.inf)
    text = refusal(client, folder, "ada/digits")
    busy.times = 0
    assert text.startswith(
        "uploading to 'ada/digits' (main): others keep committing to this repository. No revision is half"
    )
    assert repository.files("main")[WEIGHTS] == before.files("main")[WEIGHTS]


def test_a_push_that_was_killed_is_run_again(hub, client, old_and_new, tmp_path):
    before, folder, after, _ = old_and_new
    repository = put_back(hub, before)
    victim = Client(hub, tmp_path / "victim", client.token)
    victim.run(PREAMBLE)
    stop = hub.on("lfs-upload", victim.process.kill)
    with victim, pytest.raises(EOFError):
        push(victim, folder, "ada/digits")
    assert stop.count == 1
    assert {branch: repository.files(branch) for branch in repository.branches} == {
        branch: before.files(branch) for branch in ("main", "stock")
    }
    push(client, folder, "ada/digits")
    assert {branch: repository.files(branch) for branch in repository.branches} == after
