"""Loading from the Hub in every way the model card names, in fresh processes; then saving, pushing and loading again."""

import math
import re

import numpy as np
import pytest
import torch
from conftest import make_pipeline, seeds
from hub_client import Client
from hub_server import HubServer
from safetensors.torch import load, save

WITHOUT_TRUST = """
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler, UNet2DModel
"""
PUSH = """
from pathlib import Path
from ddpm_hub.hub import push_folder
answer = push_folder(folder, repo, private=private).commits
"""
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
KINDS = {"conditional": 4, "plain": None}
PYTHON_FILES = r"\.py$"


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        server.add_user("ada")
        server.add_user("bob")
        yield server


@pytest.fixture(scope="module")
def token(hub):
    return hub.add_token("ada")


@pytest.fixture(scope="module")
def installed(hub, token, tmp_path_factory):
    """A client with the package."""
    with Client(hub, tmp_path_factory.mktemp("installed"), token) as client:
        client.run(WITHOUT_TRUST + "from ddpm_hub import DDPMHubPipeline, DDPMHubScheduler")
        yield client


@pytest.fixture(scope="module")
def stranger(hub, token, tmp_path_factory):
    """A client without the package."""
    with Client(hub, tmp_path_factory.mktemp("stranger"), token, package=False) as client:
        client.run(WITHOUT_TRUST)
        yield client


@pytest.fixture(scope="module")
def models(installed, tmp_path_factory):
    """Repositories, private and public, with an old and a new model each: its commits, and what the model draws."""
    found = {}
    for kind, num_class_embeds in KINDS.items():
        pipeline, versions = make_pipeline(num_class_embeds=num_class_embeds), []
        for version in ("old", "new"):
            if version == "new":
                with torch.no_grad():
                    pipeline.unet.conv_out.weight.mul_(-1)
            folder = tmp_path_factory.mktemp("models") / "digits"
            pipeline.save_pretrained(folder)
            drawn = {labels: draw(pipeline, labels) for labels in ((None, (0, 2)) if num_class_embeds else (None,))}
            versions.append((folder, drawn))
        for private in (True, False):
            repo = f"ada/{kind}-{'private' if private else 'public'}"
            pushed = [(installed.run(PUSH, folder=folder, repo=repo, private=private), d) for folder, d in versions]
            found[repo] = dict(zip(("old", "new"), pushed, strict=True))
    return found


REPOS = [f"ada/{kind}-{access}" for kind in KINDS for access in ("private", "public")]


def draw(pipeline, labels):
    """What the clients' `pixels` draws; on one thread, as all tests and they do, so that no rounding differs."""
    options = {"num_inference_steps": 4, "generator": seeds(1, 2), "output_type": "np"}
    return pipeline(batch_size=2, class_labels=labels and list(labels), **options).images


def same(pixels, expected, atol=0.0):
    np.testing.assert_allclose(np.array(pixels, dtype=np.float32), expected, rtol=0, atol=atol)


def access(repo: str, token: str) -> str:
    """The token, where one is needed; public repositories are read without."""
    return token if repo.endswith("private") else ""


@pytest.mark.parametrize("repo", REPOS)
def test_by_trust_without_the_package(stranger, models, token, repo):
    for revision, (commits, drawn) in models[repo].items():
        pinned = {} if revision == "new" else {"revision": commits["main"]}
        answer = stranger.run(
            "pipeline = DiffusionPipeline.from_pretrained(repo, trust_remote_code=True, **pinned)\n"
            "answer = [pixels(pipeline, class_labels=labels) for labels in all_labels]\n"
            "answer += [type(pipeline).__name__, type(pipeline.scheduler).__name__]",
            token=access(repo, token),
            repo=repo,
            pinned=pinned,
            all_labels=list(drawn),
        )
        assert answer[-2:] == ["DDPMHubPipeline", "DDPMHubScheduler"]
        for pixels, expected in zip(answer[:-2], drawn.values(), strict=True):
            same(pixels, expected)


@pytest.mark.parametrize("repo", REPOS)
def test_with_the_package(installed, models, token, repo):
    for revision, (commits, drawn) in models[repo].items():
        pinned = {} if revision == "new" else {"revision": commits["main"]}
        answer = installed.run(
            "from ddpm_hub import DDPMHubPipeline, DDPMHubScheduler\n"
            "pipeline = DDPMHubPipeline.from_pretrained(repo, **pinned)\n"
            "assert type(pipeline) is DDPMHubPipeline and type(pipeline.scheduler) is DDPMHubScheduler\n"
            "answer = [pixels(pipeline, class_labels=labels) for labels in all_labels]",
            token=access(repo, token),
            repo=repo,
            pinned=pinned,
            all_labels=list(drawn),
        )
        for pixels, expected in zip(answer, drawn.values(), strict=True):
            same(pixels, expected)


@pytest.mark.parametrize("repo", REPOS)
def test_the_stock_revision_without_the_package_or_trust(stranger, models, token, repo):
    for revision, (commits, drawn) in models[repo].items():
        answer = stranger.run(
            "pipeline = DiffusionPipeline.from_pretrained(repo, revision=revision)\n"
            "assert type(pipeline) is DDPMPipeline and type(pipeline.scheduler) is DDPMScheduler\n"
            "answer = pixels(pipeline)",
            token=access(repo, token),
            repo=repo,
            revision="stock" if revision == "new" else commits["stock"],
        )
        same(answer, drawn[None], atol=1e-5)


@pytest.mark.parametrize("repo", ["ada/plain-private", "ada/plain-public"])
def test_the_parts_in_plain_diffusers(stranger, models, token, repo):
    for revision, (commits, drawn) in models[repo].items():
        stock, fast = stranger.run(
            """
where = {"pretrained_model_name_or_path": repo, **pinned}
unet = UNet2DModel.from_pretrained(**where, subfolder="unet")
pipeline = DDPMPipeline(unet=unet, scheduler=DDPMScheduler.from_pretrained(**where, subfolder="scheduler"))
fast = DPMSolverMultistepScheduler.from_pretrained(**where, subfolder="scheduler", algorithm_type="dpmsolver++")
assert (len(fast.alphas_cumprod), fast.config.timestep_spacing) == (1000, "trailing")
answer = pixels(pipeline), pixels(DDPMPipeline(unet=unet, scheduler=fast), num_inference_steps=5)
""",
            token=access(repo, token),
            repo=repo,
            pinned={} if revision == "new" else {"revision": commits["main"]},
        )
        same(stock, drawn[None], atol=1e-5)
        assert np.isfinite(fast).all()
        assert np.std(fast) > 0.01


PARTS = """DDPMPipeline(
    unet=UNet2DModel.from_pretrained("ada/plain-private", subfolder="unet"),
    scheduler=DDPMScheduler.from_pretrained("ada/plain-private", subfolder="scheduler"),
)"""
SAVE_AND_PUSH = {
    "ddpm_hub": "answer = [again.push_to_hub(target).commits, again.push_to_hub(target).changed]",
    "diffusers": "again.push_to_hub(target, private=True); answer = None",
}


@pytest.mark.parametrize(
    ("way", "load", "push"),
    [
        (1, 'DiffusionPipeline.from_pretrained("ada/conditional-private", trust_remote_code=True)', "ddpm_hub"),
        (2, 'DDPMHubPipeline.from_pretrained("ada/conditional-private")', "ddpm_hub"),
        (3, 'DiffusionPipeline.from_pretrained("ada/conditional-private", revision="stock")', "diffusers"),
        (4, PARTS, "diffusers"),
    ],
)
def test_what_was_loaded_is_saved_pushed_and_loaded_again(hub, stranger, installed, models, tmp_path, way, load, push):
    client = installed if way == 2 else stranger
    target, folder = f"ada/again-{way}", tmp_path / "saved"
    kind = "plain" if way == 4 else "conditional"
    drawn = models[f"ada/{kind}-private"]["new"][1]
    client.run(WITHOUT_TRUST + f"again = {load}\nagain.save_pretrained(folder)", folder=folder)
    pushed = client.run(SAVE_AND_PUSH[push], target=target)

    repository = hub.repos["model", target]
    assert repository.private
    reload = {
        1: ("DiffusionPipeline", {"trust_remote_code": True}),
        2: ("DDPMHubPipeline", {}),
        3: ("DiffusionPipeline", {}),
        4: ("DDPMPipeline", {}),
    }
    cls, options = reload[way]
    for place in (folder, target):
        lines = f"answer = pixels({cls}.from_pretrained(place, **options))"
        same(client.run(lines, place=str(place), options=options), drawn[None], atol=0 if way < 3 else 1e-5)
    if push == "ddpm_hub":
        commits, changed = pushed
        assert commits == {name: head.id for name, head in repository.branches.items()}
        assert changed == []
        if way == 1:  # it has no card of its own, and leaves the one that is there
            hub.commit(target, {"README.md": b"A card\n"}, branch="stock")
            assert client.run(SAVE_AND_PUSH[push], target=target)[0]["stock"] == repository.branches["stock"].id
            assert repository.files("stock")["README.md"] == b"A card\n"
        # Each way once more, in the process that did not push.
        others = {
            installed if way == 1 else stranger: {"DiffusionPipeline": {"revision": "stock"}},
            stranger: {"DiffusionPipeline": {"trust_remote_code": True}},
        }
        for other, ways in others.items():
            for name, options in ways.items():
                other.run(WITHOUT_TRUST)
                lines = f"answer = pixels({name}.from_pretrained(target, **options))"
                same(other.run(lines, target=target, options=options), drawn[None], atol=1e-5)
        lines = "answer = pixels(DDPMHubPipeline.from_pretrained(target), class_labels=[0, 2])"
        same(installed.run("from ddpm_hub import DDPMHubPipeline\n" + lines, target=target), drawn[0, 2])


def test_code_is_run_by_trust_alone(hub, stranger, installed, models, tmp_path):
    files = hub.repos["model", "ada/conditional-public"].files()
    marker = tmp_path / "executed"
    poison = f"open({str(marker)!r}, 'a').write(__name__)\n".encode()
    hub.add_repo("ada/poisoned")
    hub.commit("ada/poisoned", {p: poison + c if re.search(PYTHON_FILES, p) else c for p, c in files.items()})
    drawn = models["ada/conditional-public"]["new"][1]

    assert "trust_remote_code=True" in stranger.run(
        'answer = outcome(DiffusionPipeline.from_pretrained, "ada/poisoned")'
    )
    same(installed.run('answer = pixels(DDPMHubPipeline.from_pretrained("ada/poisoned"))'), drawn[None])
    assert not marker.exists()
    stranger.run('DiffusionPipeline.from_pretrained("ada/poisoned", trust_remote_code=True)')
    assert marker.exists()  # so the poison would have been noticed


def test_the_snippets_of_a_card_run(hub, stranger, installed, models):
    for kind in KINDS:
        shown = stranger.folder / "sample.png"
        shown.unlink(missing_ok=True)
        card = hub.repos["model", f"ada/{kind}-public"].files()["README.md"].decode()
        snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        assert len(snippets) == 4
        for snippet in snippets:
            client = installed if "ddpm_hub" in snippet else stranger
            # Fewer steps: the text is run as it stands but for their number.
            lines = re.sub(r"num_inference_steps=\d+", "num_inference_steps=2", snippet)
            drawn = client.run(f"import os; os.chdir(folder)\n{lines}\nanswer = len(images)", folder=client.folder)
            assert drawn == 4
            assert snippet.count(f'"ada/{kind}-public"') >= 1
        assert shown.is_file()


def test_offline_and_without_a_network(hub, installed, models, token, tmp_path):
    drawn = models["ada/conditional-private"]["new"][1]
    load = 'answer = pixels(DDPMHubPipeline.from_pretrained("ada/conditional-private"))'
    same(installed.run(load), drawn[None])
    home = str(installed.folder / "home" / "hub")
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": home}
    for variables, reason in (
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set while the cache does not hold it whole"),
        ({}, "the Hub cannot be reached, or breaks off (ConnectError)"),
    ):
        folder = tmp_path / ("offline" if variables else "unplugged")
        with Client(hub, folder, token, **nowhere | variables) as client:
            same(client.run("from ddpm_hub import DDPMHubPipeline\n" + load), drawn[None])
            answer = client.run('answer = outcome(DDPMHubPipeline.from_pretrained, "ada/unseen")')
            assert answer.startswith("OSError: `pretrained_model_name_or_path` is 'ada/unseen': no such folder is here")
            assert reason in answer


@pytest.mark.parametrize(
    ("repo", "user", "options", "reason"),
    [
        ("ada/missing", "ada", {}, "the Hub has no repository of that name, or the token may not see it."),
        ("ada/plain-private", None, {}, "run `hf auth login`, or set HF_TOKEN"),
        ("ada/plain-private", "bob", {}, "the Hub has no repository of that name, or the token may not see it."),
        (
            "ada/plain-public",
            "wrong",
            {},
            "the Hub does not accept the token (401): it is expired, revoked or mistyped",
        ),
        (
            "ada/plain-public",
            "expired",
            {},
            "the Hub does not accept the token (401): it is expired, revoked or mistyped",
        ),
        ("ada/plain-public", "ada", {"revision": "v9"}, "the repository has no revision 'v9'"),
        ("ada/empty", "ada", {}, "the repository, or the cache, is no whole DDPMHubPipeline"),
        ("ada/weightless", "ada", {}, "the repository, or the cache, is no whole DDPMHubPipeline"),
        ("ada/plain-public", "ada", {"variant": "fp16"}, "the repository, or the cache, is no whole DDPMHubPipeline"),
    ],
)
def test_what_cannot_be_loaded_says_why(hub, installed, models, token, repo, user, options, reason):
    tokens = {"ada": token, "bob": hub.add_token("bob"), None: "", "wrong": "hf_wrong"}
    tokens["expired"] = hub.add_token("ada", expired=True)
    hub.add_repo("ada/empty")
    files = hub.repos["model", "ada/plain-public"].files()
    hub.add_repo("ada/weightless")
    hub.commit("ada/weightless", {p: content for p, content in files.items() if not p.endswith(".safetensors")})
    answer = installed.run(
        "from ddpm_hub import DDPMHubPipeline\n"
        "answer = outcome(DDPMHubPipeline.from_pretrained, repo, cache_dir=cache, **options)",
        token=tokens[user],
        repo=repo,
        options=options,
        cache=str(installed.folder / f"cache-{repo}-{user}"),
    )
    assert answer.startswith(f"OSError: `pretrained_model_name_or_path` is {repo!r}: no such folder is here, and ")
    assert reason in answer


def test_a_damaged_or_changing_repository_is_never_taken_for_a_whole_one(hub, installed, models):
    commits, files = models["ada/plain-public"]["old"][0], hub.repos["model", "ada/plain-public"].files()
    weights = load(files[WEIGHTS])
    first = weights.pop("conv_in.weight")
    damaged = {
        "truncated": files[WEIGHTS][:-100],
        "flipped": bytes(9) + files[WEIGHTS][9:],
        "incomplete": save(weights, {"format": "pt"}),
        "surplus": save(weights | {"conv_in.weight": first, "other.weight": first.clone()}, {"format": "pt"}),
        "reshaped": save(weights | {"conv_in.weight": first[:4].contiguous()}, {"format": "pt"}),
    }
    for name, content in damaged.items():
        hub.add_repo(f"ada/{name}")
        hub.commit(f"ada/{name}", files | {WEIGHTS: content})
        answer = installed.run(
            "from ddpm_hub import DDPMHubPipeline; answer = outcome(DDPMHubPipeline.from_pretrained, repo)",
            repo=f"ada/{name}",
        )
        assert re.match("(OSError|ValueError|RuntimeError): ", answer), (name, answer)
        assert f"ada/{name}" in answer or "conv_in.weight expected shape" in answer, (name, answer)

    # Somebody pushes while the old model is being loaded: what is drawn is the old one still, and then the new one.
    old = hub.repos["model", "ada/plain-public"].files(commits["main"])
    hub.add_repo("ada/moving")
    hub.commit("ada/moving", old)
    pushed = hub.on("^/api/models/ada/moving|^/ada/moving/.*/unet/", lambda: hub.commit("ada/moving", files))
    lines = 'answer = pixels(DDPMHubPipeline.from_pretrained("ada/moving"))'
    same(installed.run(lines), models["ada/plain-public"]["old"][1][None])
    assert pushed.count == 1
    same(installed.run(lines), models["ada/plain-public"]["new"][1][None])


def test_a_cache_that_was_spoilt_is_mended(hub, installed, models):
    """By a disk, or by answers that gave the name of another file: both were found there at each later load."""
    repo, cache = "ada/plain-private", installed.folder / "spoilt"
    lines = """
from ddpm_hub import DDPMHubPipeline
answer = outcome(lambda: pixels(DDPMHubPipeline.from_pretrained("ada/plain-private", cache_dir=cache)))
"""
    misnamed = hub.fail("HEAD", "/resolve/", "wrong-etag", math.inf)
    answer = installed.run(lines, cache=str(cache))
    assert re.search(r"^OSError: .* is not the file that the Hub says it is, twice; load it again later", answer)
    misnamed.times = 0
    drawn = str(models[repo]["new"][1][None].tolist())
    assert installed.run(lines, cache=str(cache)) == drawn
    for blob in cache.rglob("blobs/*"):
        blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    assert installed.run(lines, cache=str(cache)) == drawn


def test_an_odd_token_is_not_repeated(hub, installed, models):
    odd = "hf_with a\nline's end"
    answer = installed.run(
        'answer = outcome(DDPMHubPipeline.from_pretrained, "ada/plain-private", token=odd), shown["texts"]', odd=odd
    )
    assert answer[0].startswith("HubError: The token is none")
    assert "hf_with" not in str(answer)


def test_a_fault_on_the_way_gives_the_model_or_an_error(hub, installed, models):
    """At every request of a load, passing and lasting: the right pixels, or one OSError, and never another model."""
    repo = "ada/plain-private"
    drawn, runs = models[repo]["new"][1][None], iter(range(10**6))
    lines = """
from ddpm_hub import DDPMHubPipeline
def load():
    return pixels(DDPMHubPipeline.from_pretrained("ada/plain-private", cache_dir=cache))
try:
    answer = load()
except OSError as error:
    answer = str(error)
"""

    def load_once():
        return installed.run(lines, cache=str(installed.folder / f"faults-{next(runs)}"))

    before = len(hub.requests)
    same(load_once(), drawn)
    count = len(hub.requests) - before
    assert count >= 6
    outcomes = []
    for how in (500, 503, 429, "drop", "drop-after", "truncate"):
        for index in range(count):
            for times in (1, math.inf):
                rule = hub.fail(".*", ".*", how, times, after=index)
                answer = load_once()
                assert rule.count
                rule.times = 0
                outcomes.append((times, isinstance(answer, str)))
                if isinstance(answer, str):
                    assert answer.startswith(f"`pretrained_model_name_or_path` is {repo!r}: no such folder is here")
                    assert re.search(r"out of order \(5|out of order \(429|cannot be reached, or breaks off", answer), (
                        answer
                    )
                else:
                    same(answer, drawn)
    assert {(1, False), (math.inf, True)} <= set(outcomes)
