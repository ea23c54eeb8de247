"""The stand-in for the Hub, seen by the real client; what a client never sends is asked of it directly."""

import hashlib
import http.client
import json
import threading

import pytest
from conftest import run_python
from hub_server import HubServer

PREAMBLE = """
import json, os, sys, time, warnings
from pathlib import Path
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, hf_hub_download

def outcome(function, *arguments, **options):
    try:
        return str(function(*arguments, **options))
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def add(content, path="a.txt"):
    return [CommitOperationAdd(path, content)]

api, home, answers = HfApi(), Path(os.environ["HF_HOME"]), {}
time.sleep = lambda seconds: None
constants.DOWNLOAD_CHUNK_SIZE = 1000
"""


@pytest.fixture
def hub():
    """A Hub with a user `ada`, who is in `lab`, and another, `bob`."""
    with HubServer() as server:
        server.add_user("ada", orgs=("lab",))
        server.add_user("bob")
        yield server


@pytest.fixture
def client(hub, tmp_path):
    """Runs lines in a fresh process with an empty cache, and returns what they leave in `answers`."""

    def run(lines: str, token: str | None, *arguments: str) -> dict:
        code = f"{PREAMBLE}\n{lines}\nprint(json.dumps(answers))"
        result = run_python("-c", code, *arguments, **hub.environment(token, tmp_path))
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    return run


def ask(hub, method: str, path: str, body: bytes = b"", token: str | None = None, **headers: str):
    """The status, the headers and the body of an answer to a request made by hand."""
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=60)
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def asked(hub, part: str) -> list[tuple[str, int | None]]:
    """The method and the status of every request whose path has the part in it."""
    return [(request.method, request.status) for request in hub.requests if part in request.path]


def test_a_folder_is_published_once_and_downloaded(hub, client, tmp_path):
    folder = tmp_path / "folder"
    weights, card = bytes(range(256)) * 20, b"---\nlicense: mit\ntags: [ddpm]\n---\nA card\n"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "model.safetensors").write_bytes(weights)
    (folder / "README.md").write_bytes(card)
    (folder / "empty.bin").touch()
    truncated = hub.fail("GET", r"resolve/.*\.safetensors", "truncate")
    token = hub.add_token("ada")
    answers = client(
        """
answers["user"] = api.whoami()["name"]
answers["role"] = api.whoami()["auth"]["accessToken"]["role"]
answers["urls"] = [api.create_repo("ada/digits", private=True, exist_ok=True) for _ in range(2)]
commits = [api.upload_folder(repo_id="ada/digits", folder_path=sys.argv[1]) for _ in range(2)]
answers["commits"] = [commit.oid for commit in commits]
answers["history"] = [commit.title for commit in api.list_repo_commits("ada/digits")]
api.create_branch("ada/digits", branch="a/b", revision=commits[0].oid)
api.create_branch("ada/digits", branch="a/b", exist_ok=True)
answers["again"] = outcome(api.create_branch, "ada/digits", branch="a/b")
answers["branches"] = {ref.name: ref.target_commit for ref in api.list_repo_refs("ada/digits").branches}
snapshot = Path(api.snapshot_download("ada/digits", revision="a/b"))
answers["files"] = {str(p.relative_to(snapshot)): p.read_bytes().hex() for p in snapshot.rglob("*") if p.is_file()}
info = api.model_info("ada/digits", files_metadata=True)
answers["info"] = [info.private, info.gated, info.card_data.license, info.sha]
answers["lfs"] = {file.rfilename: file.lfs.sha256 for file in info.siblings if file.lfs}
answers["tree"] = [entry.path for entry in api.list_repo_tree("ada/digits")]
answers["paths"] = [info.path for info in api.get_paths_info("ada/digits", ["unet", "README.md", "none"])]
answers["exists"] = [api.file_exists("ada/digits", "README.md"), api.file_exists("ada/digits", "none"),
                     api.revision_exists("ada/digits", "none"), api.repo_exists("gpt2"), api.repo_exists("ada/none")]
""",
        token,
        str(folder),
    )
    assert [answers["user"], answers["role"]] == ["ada", "write"]
    assert answers["urls"] == [f"{hub.url}/ada/digits"] * 2

    repository = hub.repos["model", "ada/digits"]
    head = repository.branches["main"]
    assert answers["commits"] == [head.id] * 2
    assert answers["history"] == [head.title, "initial commit"]
    assert [commit.id for commit in repository.commits] == [head.parent, head.id]
    assert answers["again"].startswith("HfHubHTTPError: ")
    assert answers["branches"] == {"main": head.id, "a/b": head.id}

    expected = {"unet/model.safetensors": weights, "README.md": card, "empty.bin": b""}
    attributes = repository.files()[".gitattributes"]
    assert repository.files() == expected | {".gitattributes": attributes}
    assert answers["files"] == {path: content.hex() for path, content in repository.files("a/b").items()}
    assert answers["lfs"] == {"unet/model.safetensors": hashlib.sha256(weights).hexdigest()}
    assert answers["info"] == [True, False, "mit", head.id]
    assert answers["tree"] == [".gitattributes", "README.md", "empty.bin", "unet"]
    assert answers["paths"] == ["unet", "README.md"]
    assert answers["exists"] == [True, False, False, False, False]

    assert truncated.count == 1
    assert [status for method, status in asked(hub, "model.safetensors") if method == "GET"] == [200, 206]
    assert asked(hub, "lfs-upload") == [("PUT", 200)]
    assert asked(hub, "/commit/") == [("POST", 200)]
    assert {request.had_token for request in hub.requests if "lfs-upload" not in request.path} == {True}


def test_who_may_see_and_change_what(hub, client):
    hub.add_repo("ada/open")
    hub.add_repo("ada/closed", private=True)
    tokens = {
        "none": "",
        "wrong": "hf_wrong",
        "expired": hub.add_token("ada", expired=True),
        "read": hub.add_token("ada", "read"),
        "fine": hub.add_token("ada", "fineGrained"),
        "bob": hub.add_token("bob"),
    }
    answers = client(
        """
for name, token in json.loads(sys.argv[1]).items():
    api = HfApi(token=token or False)
    answers[name] = [
        outcome(api.whoami)[:60] if token else None,
        outcome(lambda: api.model_info("ada/open").id),
        outcome(lambda: api.model_info("ada/closed").id),
        outcome(lambda: api.create_repo(f"lab/{name}").repo_id),
        outcome(lambda: api.create_commit("ada/open", add(name.encode()), commit_message=name).commit_message),
    ]
    answers[name] = [text and text.partition(":")[0] for text in answers[name]]
""",
        None,
        json.dumps(tokens),
    )
    failed, hidden, shown = "HfHubHTTPError", "RepositoryNotFoundError", "ada/open"
    assert answers["none"] == [None, shown, hidden, failed, failed]
    assert answers["wrong"] == answers["expired"] == [failed] * 5
    assert answers["read"] == ["{'type'", shown, "ada/closed", failed, failed]
    assert answers["fine"] == ["{'type'", shown, "ada/closed", "lab/fine", "fine"]
    assert answers["bob"] == ["{'type'", shown, hidden, failed, failed]
    statuses = [status for method, status in asked(hub, "/api/repos/create")]
    assert statuses == [401, 401, 401, 403, 200, 403]
    assert [status for method, status in asked(hub, "ada/closed")] == [401, 401, 401, 200, 200, 404]
    assert [commit.title for commit in hub.repos["model", "ada/open"].commits] == ["initial commit", "fine"]


def test_commits_that_meet_another(hub, client):
    repository = hub.add_repo("ada/digits")
    overtaken = hub.on("/commit/", lambda: hub.commit("ada/digits", {"b.safetensors": b"theirs"}), times=1)
    answers = client(
        """
def commit(text, operations=None):
    head = api.model_info("ada/digits").sha
    operations = operations or add(text.encode())
    commit = lambda: api.create_commit("ada/digits", operations, commit_message=text, parent_commit=head).oid
    return outcome(commit)
answers["outcomes"] = [commit("stale"), commit("fresh"), commit("gone", [CommitOperationDelete("b.safetensors")])]
answers["missing"] = commit("missing", add(b"x", "x.txt") + [CommitOperationDelete("none")])
""",
        hub.add_token("ada"),
    )
    assert overtaken.count == 1
    assert "412" in answers["outcomes"][0]
    assert [commit.title for commit in repository.commits][1:] == ["Somebody else's commit", "fresh", "gone"]
    assert repository.commits[1].lfs == {"b.safetensors"}
    assert repository.branches["main"].lfs == set()
    assert repository.files()["a.txt"] == b"fresh"
    assert answers["missing"].startswith("RemoteEntryNotFoundError")
    assert "x.txt" not in repository.files()


def test_a_space_has_variables_and_its_name_is_taken(hub, client):
    answers = client(
        """
variables = [{"key": "MODEL_ID", "value": "ada/digits"}]
api.create_repo("ada/demo", repo_type="space", space_sdk="gradio", space_variables=variables)
api.add_space_variable("ada/demo", "STEPS", "50")
api.add_space_variable("ada/demo", "GONE", "1")
api.delete_space_variable("ada/demo", "GONE")
answers["variables"] = {key: variable.value for key, variable in api.get_space_variables("ada/demo").items()}
answers["stage"] = api.get_space_runtime("ada/demo").stage
answers["sdk"] = api.space_info("ada/demo").sdk
answers["taken"] = [outcome(api.create_repo, "ada/demo", exist_ok=exist_ok) for exist_ok in (False, True)]
""",
        hub.add_token("ada"),
    )
    assert answers["variables"] == hub.repos["space", "ada/demo"].variables == {"MODEL_ID": "ada/digits", "STEPS": "50"}
    assert [answers["stage"], answers["sdk"]] == ["NO_APP_FILE", "gradio"]
    assert "409" in answers["taken"][0]
    assert "You already created this space repo" in answers["taken"][0]
    assert answers["taken"][1] == f"{hub.url}/spaces/ada/demo"


def test_faults_fire_and_are_counted(hub, client):
    repository = hub.add_repo("ada/digits")
    commit_path = "^/api/models/ada/digits/commit/"
    faults = {
        "retried": hub.fail("POST", "/preupload/", 500, times=2),
        "limited": hub.fail("POST", "/preupload/", 429, after=2, retry_after=7),
        "lost": hub.fail("POST", "/preupload/", "drop", after=2),
        "put": hub.fail("PUT", "/lfs-upload/", 503),
        "refused": hub.fail("POST", commit_path, 500),
        "dropped": hub.fail("POST", commit_path, "drop"),
        "unheard": hub.fail("POST", commit_path, "drop-after"),
        "etag": hub.fail("HEAD", "/resolve/", "wrong-etag"),
        "hidden": hub.fail("HEAD", "/resolve/", 404, error_code="EntryNotFound"),
    }
    answers = client(
        """
def upload():
    return outcome(api.upload_file, path_or_fileobj=b"w" * 99, path_in_repo="w.safetensors", repo_id="ada/digits")
answers["uploads"] = [upload().partition(":")[0] for _ in range(4)]
answers["blob"] = Path(hf_hub_download("ada/digits", "w.safetensors")).resolve().name
answers["hidden"] = outcome(hf_hub_download, "ada/digits", "w.safetensors", force_download=True)
""",
        hub.add_token("ada"),
    )
    assert {name: fault.count for name, fault in faults.items()} == dict.fromkeys(faults, 1) | {"retried": 2}
    assert answers["uploads"] == ["HfHubHTTPError", "RemoteProtocolError", "RemoteProtocolError", "http"]
    assert [status for method, status in asked(hub, "/preupload/")] == [500, 500, 429, None, *[200] * 4]
    assert asked(hub, "/lfs-upload/") == [("PUT", 503), ("PUT", 200)]
    assert asked(hub, "/commit/") == [("POST", 500), ("POST", None), ("POST", None)]
    assert repository.files()["w.safetensors"] == b"w" * 99
    assert len(repository.commits) == 2
    assert answers["blob"] == "0" * 40
    assert answers["hidden"].startswith("RemoteEntryNotFoundError")


@pytest.mark.parametrize(
    ("repo_type", "card", "error"),
    [
        ("model", "---\nlicense: mit\npipeline_tag: image-to-image\n---\n", None),
        ("model", "---\nlicense: my-own\n---\n", '"license" must be one of'),
        ("model", "---\npipeline_tag: magic\n---\n", '"pipeline_tag" must be one of'),
        ("model", "---\na: [\n---\n", "could not be parsed"),
        ("model", "---\n- a\n---\n", "must be an object"),
        ("model", "---\nmodel-index: x\n---\n", '"model-index" must be an array'),
        ("model", "---\nmodel-index: [{name: x}]\n---\n", '"model-index[0].results" is required'),
        (
            "model",
            "---\nmodel-index: [{name: x, results: [{task: {type: t}, dataset: {name: d}, metrics: []}]}]\n---\n",
            '"model-index[0].results[0].dataset.type" is required',
        ),
        ("space", "---\nsdk: gradio\ncolorFrom: red\n---\n", None),
        ("space", "no front matter", '"sdk" is required'),
        ("space", "---\ntitle: x\n---\n", '"sdk" is required'),
        ("space", "---\nsdk: gradio\ncolorFrom: pinkish\n---\n", '"colorFrom" must be one of'),
        ("space", f"---\nsdk: gradio\nshort_description: {'x' * 61}\n---\n", '"short_description" length must be'),
    ],
)
def test_cards(hub, repo_type, card, error):
    body = json.dumps({"content": card, "repoType": repo_type}).encode()
    status, _, answer = ask(hub, "POST", "/api/validate-yaml", body)
    assert status == (400 if error else 200)
    messages = [item["message"] for item in json.loads(answer)["errors"]]
    assert any(error in message for message in messages) if error else messages == []


def test_lfs_takes_only_what_was_announced(hub):
    repository, token = hub.add_repo("ada/digits"), hub.add_token("ada")
    content = b"weights"
    oid = hashlib.sha256(content).hexdigest()
    pointer = {"path": "w.safetensors", "algo": "sha256", "oid": oid, "size": len(content)}
    file = {"path": "a.txt", "content": "YQ==", "encoding": "base64"}
    lines = [
        {"key": "header", "value": {"summary": "all or nothing"}},
        {"key": "file", "value": file},
        {"key": "lfsFile", "value": pointer},
    ]
    commit = "\n".join(map(json.dumps, lines)).encode()
    path = "/api/models/ada/digits/commit/main"
    assert ask(hub, "POST", path, commit, token)[0] == 400
    assert repository.files().keys() == {".gitattributes"}

    batch = json.dumps({"operation": "upload", "objects": [{"oid": oid, "size": len(content)}]}).encode()
    answer = json.loads(ask(hub, "POST", "/ada/digits.git/info/lfs/objects/batch", batch, token)[2])
    actions = {name: action["href"].removeprefix(hub.url) for name, action in answer["objects"][0]["actions"].items()}
    verify = json.dumps({"oid": oid, "size": len(content)}).encode()
    assert ask(hub, "POST", actions["verify"], verify, token)[0] == 400
    assert ask(hub, "PUT", actions["upload"], b"another")[0] == 400
    assert ask(hub, "PUT", actions["upload"], content)[0] == 200
    assert ask(hub, "POST", actions["verify"], verify, token)[0] == 200
    assert ask(hub, "POST", path, commit, token)[0] == 200
    assert repository.files()["w.safetensors"] == content
    assert ask(hub, "PUT", "/lfs-upload/unknown", content)[0] == 403


@pytest.mark.parametrize(
    ("asked_range", "status", "content"),
    [("bytes=2-", 206, b"2345"), ("bytes=1-2", 206, b"12"), ("bytes=4-99", 206, b"45"), ("bytes=6-", 416, None)],
)
def test_ranges(hub, asked_range, status, content):
    hub.add_repo("ada/digits")
    hub.commit("ada/digits", {"a.txt": b"012345"})
    answer = ask(hub, "GET", "/ada/digits/resolve/main/a.txt", Range=asked_range)
    assert answer[0] == status
    assert content is None or answer[2] == content


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/ada/digits/resolve/main/none", 404, "EntryNotFound"),
        ("/ada/digits/resolve/none/a.txt", 404, "RevisionNotFound"),
        ("/ada/none/resolve/main/a.txt", 401, "RepoNotFound"),
        ("/api/datasets/ada/digits", 401, "RepoNotFound"),
        ("/api/unheard-of", 501, None),
    ],
)
def test_what_is_not_there(hub, path, status, code):
    hub.add_repo("ada/digits")
    answer = ask(hub, "GET", path)
    assert (answer[0], answer[1].get("X-Error-Code")) == (status, code)
    assert json.loads(answer[2])["error"] == answer[1]["X-Error-Message"]


def test_gitignore_is_heard(hub):
    hub.add_repo("ada/digits")
    body = {"files": [{"path": path, "size": 1} for path in ("logs/a.txt", "b.txt")], "gitIgnore": "# none\nlogs/\n"}
    path = "/api/models/ada/digits/preupload/main"
    answer = json.loads(ask(hub, "POST", path, json.dumps(body).encode(), hub.add_token("ada"))[2])
    assert [file["shouldIgnore"] for file in answer["files"]] == [True, False]


def test_closing_waits_for_no_client():
    with HubServer() as hub:
        hub.fail("GET", "/slow", "slow", delay=3600)
        idle = http.client.HTTPConnection(hub.url.removeprefix("http://"))
        idle.request("GET", "/api/whoami-v2")
        assert idle.getresponse().read()
        reached = threading.Event()
        hub.on("/slow", reached.set)
        statuses = []
        waiting = threading.Thread(target=lambda: statuses.append(ask(hub, "GET", "/slow")[0]))
        waiting.start()
        assert reached.wait(60)
    waiting.join(60)
    idle.close()
    assert statuses == [501]
    assert [thread for thread in threading.enumerate() if thread.daemon and "process_request" in thread.name] == []
    with pytest.raises(ConnectionRefusedError):
        ask(hub, "GET", "/api/whoami-v2")


def test_an_unknown_fault_or_role_is_refused(hub):
    with pytest.raises(ValueError, match="unknown fault 'drip'"):
        hub.fail("GET", "/", "drip")
    with pytest.raises(ValueError, match="not 'ada' and 'admin'"):
        hub.add_token("ada", "admin")
