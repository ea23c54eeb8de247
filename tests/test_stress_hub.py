"""Faults at random requests of a push and of a load: what is published is whole, what is loaded is right, and a retry succeeds.

A plan is a list of faults, each at a request that chance chooses; some pass, some last until the plan ends.
"""

import copy
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from conftest import make_pipeline
from hub_client import Client
from hub_server import HubServer, Rule

REPO = "ada/digits"
# A card is compiled from its template at each push, which would take most of the time.
PREAMBLE = """
import functools
import jinja2
from ddpm_hub import DDPMHubPipeline
from ddpm_hub.hub import push_folder

jinja2.Environment.compile = functools.cache(jinja2.Environment.compile)

def attempt(action):
    try:
        return action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""
PUSH = "answer = attempt(lambda: push_folder(folder, repo).changed)"
LOAD = "answer = attempt(lambda: pixels(DDPMHubPipeline.from_pretrained(repo, cache_dir=cache)))"
INSIDE = r"Traceback|File \"|object at 0x|\bhttpx\w*\."  # what is no message for somebody who uses the package

PUSH_FAULTS = (500, 502, 503, 504, 429, 401, "drop", "drop-after", "truncate", "slow")
LOAD_FAULTS = (500, 502, 503, 504, 429, "drop", "drop-after", "truncate", "slow", "wrong-etag")
LATE = 60  # seconds, for a client that gives up after one: the answer comes when the plan ends
LONG = 1.5  # seconds, for a push, which waits
TIMEOUTS = {"HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        server.add_user("ada")
        yield server


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    with Client(hub, tmp_path_factory.mktemp("client"), hub.add_token("ada"), **TIMEOUTS) as client:
        client.run(PREAMBLE)
        yield client


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders of an old and of a new model."""
    found = {}
    for name, factor in (("old", 1), ("new", -1)):
        pipeline = make_pipeline()
        with torch.no_grad():
            pipeline.unet.conv_out.weight.mul_(factor)
        found[name] = tmp_path_factory.mktemp(name) / "digits"
        pipeline.save_pretrained(found[name])
    return found


@pytest.fixture(scope="module")
def published(hub, client, folders):
    """The repository, as a value: before the first push, with the old model, and with the new one on top of it."""
    states, counts = {"none": None}, {}
    for name, folder in folders.items():
        start = len(hub.requests)
        assert client.run(PUSH, folder=folder, repo=REPO) == ["stock", "main"]
        counts[name] = len(hub.requests) - start
        states[name] = copy.deepcopy(hub.repos["model", REPO])
    return states, counts


def put(hub, state):
    """Puts a copy of a repository, or none, in the place of what is there."""
    hub.repos.pop(("model", REPO), None)
    if state is not None:
        hub.repos["model", REPO] = copy.deepcopy(state)


@contextmanager
def faults(hub, chance, kinds: tuple, requests: int) -> Iterator[list[Rule]]:
    """One to four faults at random requests; in the end there is none, and no answer is still to come."""
    rules = []
    for _ in range(chance.randint(1, 4)):
        how, times = chance.choice(kinds), chance.choice((1, 1, 2, 4, math.inf))
        # `huggingface_hub` waits for what it pushes as long as it takes, and for a file's head, the second time, a minute.
        slow_load = how == "slow" and "wrong-etag" in kinds
        method = "GET" if slow_load and times > 1 else ".*"
        delay = LATE if slow_load else LONG if times == 1 else 0.02
        rules.append(hub.fail(method, ".*", how, times, after=chance.randrange(requests), delay=delay))
    yield rules
    for rule in rules:
        rule.times = 0
        rule.released.set()


def told(rules: list[Rule]) -> str:
    return ", ".join(f"{rule.how} at {rule.method} {rule.after} × {rule.times}" for rule in rules)


def files_of(hub, before) -> dict[str, dict]:
    """What each revision holds; where there is none yet, what is there before a push makes it."""
    repository = hub.repos.get(("model", REPO)) or before
    nothing = {} if repository is None else repository.commits[0].files
    branches = {} if repository is None else repository.branches
    return {name: dict(branches[name].files) if name in branches else nothing for name in ("stock", "main")}


def test_a_push_is_whole_or_says_what_to_do(hub, client, folders, published, campaign):
    states, counts = published
    chance, plans = campaign.chance(), campaign.times(short=12, long=200)
    new, outcomes = {name: states["new"].files(name) for name in ("stock", "main")}, []
    fired = empty = 0
    for _ in range(plans):
        before = states[chance.choice(("none", "old"))]
        put(hub, before)
        with faults(hub, chance, PUSH_FAULTS, counts["old" if before is None else "new"]) as rules:
            plan = told(rules)
            answer = client.run(PUSH, folder=folders["new"], repo=REPO)
            fired += sum(rule.count for rule in rules)
            empty += not any(rule.count for rule in rules)

        old = {name: dict((before or states["old"]).commits[0].files) for name in new}
        if before is not None:
            old = {name: before.files(name) for name in new}
        found = files_of(hub, before)
        allowed = [old, {"stock": new["stock"], "main": old["main"]}, new]  # `stock` first, and never `main` alone
        if ("model", REPO) in hub.repos:
            assert found in allowed, plan
        succeeded = answer == ["stock", "main"]
        if succeeded:
            assert found == new, plan
        else:
            assert isinstance(answer, str), (plan, answer)
            assert re.match(r"HubError: [a-z]+ing .*: (the Hub |the token |others )", answer), (plan, answer)
            assert re.search(r"run the command again later|run `hf auth login`", answer), (plan, answer)
            assert not re.search(INSIDE, answer), (plan, answer)
        outcomes.append(succeeded)

        retried = client.run(PUSH, folder=folders["new"], repo=REPO)
        assert isinstance(retried, list), (plan, retried)
        assert files_of(hub, None) == new, plan
        # Each revision got one commit, however often it was asked for.
        assert (
            len(hub.repos["model", REPO].commits)
            == len(states["none" if before is None else "old"].commits if before else [0]) + 2
        ), plan
    assert {True, False} == set(outcomes)
    assert empty < plans / 4  # as where one fault ends it before the request of another
    campaign.held(
        "Hub",
        "plans of 1 to 4 faults at random requests of a push (5xx, 429, 401, dropped, answer lost, cut or slow), each "
        f"followed by a push without faults; {fired} faults in all, and in {empty} plans none",
        plans,
        f"`stock` and `main` are wholly old or wholly new, `main` is never new before `stock`; {sum(outcomes)} pushes "
        "succeeded, the others gave one error that says what to do; the next push succeeded; each revision got one commit",
    )


def test_a_load_is_right_or_says_what_to_do(hub, client, folders, published, campaign, tmp_path):
    states, _ = published
    chance, plans, outcomes = campaign.chance(), campaign.times(short=12, long=200), []
    fired = empty = 0
    drawn = {
        name: client.run("answer = pixels(DDPMHubPipeline.from_pretrained(folder))", folder=folders[name])
        for name in folders
    }
    put(hub, states["new"])
    start = len(hub.requests)
    assert client.run(LOAD, repo=REPO, cache=str(tmp_path / "counted")) == drawn["new"]
    requests = len(hub.requests) - start
    for number in range(plans):
        cache = str(tmp_path / str(number))
        # What an empty cache may give, and one that holds the old model: what was there is used where the Hub is not.
        right = chance.choice((["new"], ["new", "old"]))
        if "old" in right:
            put(hub, states["old"])
            assert client.run(LOAD, repo=REPO, cache=cache) == drawn["old"]
            put(hub, states["new"])
        with faults(hub, chance, LOAD_FAULTS, requests) as rules:
            plan = told(rules)
            answer = client.run(LOAD, repo=REPO, cache=cache)
            fired += sum(rule.count for rule in rules)
            empty += not any(rule.count for rule in rules)
        if isinstance(answer, str):
            assert answer.startswith(f"OSError: `pretrained_model_name_or_path` is {REPO!r}: "), (plan, answer)
            assert re.search(r"Try again later|Load it again", answer), (plan, answer)
            assert not re.search(INSIDE, answer), (plan, answer)
        else:
            assert answer in [drawn[name] for name in right], plan
        outcomes.append(isinstance(answer, str))
        assert client.run(LOAD, repo=REPO, cache=cache) == drawn["new"], plan
    assert {True, False} == set(outcomes)
    assert empty < plans / 4  # as where one fault ends it before the request of another
    campaign.held(
        "Hub",
        "plans of 1 to 4 faults at random requests of a load (5xx, 429, dropped, lost, cut, slower than the client waits, "
        f"wrong ETag), half with an older model in the cache, each followed by a load without faults; {fired} faults in all, and in "
        f"{empty} plans none",
        plans,
        f"the right pixels ({plans - sum(outcomes)} loads) or one error that says what to do, never another or half a model; "
        "the next load, from the same cache, gave the new model",
    )
