"""A stand-in for the Hugging Face Hub on loopback: what `huggingface_hub` and diffusers ask of it, and faults on demand.

It is written from the client's sources and from nothing of ours, so that a test of publishing or loading runs the real
client against an independent opinion of the protocol:

    with HubServer() as hub:
        hub.add_user("ada")
        token = hub.add_token("ada")
        run_python("publish.py", **hub.environment(token, tmp_path))
        assert hub.repos["model", "ada/digits"].files()["config.json"] == b"{}"

The client reads `HF_ENDPOINT` at import, so it has to run in a process of its own. Uploads go through LFS, not Xet.
"""

import base64
import hashlib
import json
import re
import secrets
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_PATTERNS = ("*.bin", "*.ckpt", "*.h5", "*.npz", "*.onnx", "*.parquet", "*.pt", "*.pth", "*.safetensors", "*.zip")
LFS_SIZE = 10 * 2**20
LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-nc-4.0", "gpl-3.0", "openrail", "other")
PIPELINE_TAGS = ("unconditional-image-generation", "text-to-image", "image-to-image", "image-classification")
SPACE_COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
SPACE_SDKS = ("gradio", "streamlit", "docker", "static")
MODEL_INDEX_RESULT = {
    "task": {"type": {}},
    "dataset": {"name": {}, "type": {}},
    "metrics": [{"type": {}, "value": {}}],
}
MODEL_INDEX = [{"name": {}, "results": [MODEL_INDEX_RESULT]}]
ROLES = ("read", "write", "fineGrained")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@dataclass
class Reply:
    """An answer: `body` is sent as it is if it is bytes, else as JSON."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class HubError(Exception):
    """An answer that refuses: its message is in the body and in a header, for an answer to HEAD has no body."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None, **body: Any):
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | (headers or {})
        self.reply = Reply({"error": message} | body, status, headers)


class Request(NamedTuple):
    """What was asked and answered; `status` is None where the connection was closed without an answer."""

    method: str
    path: str
    status: int | None
    had_token: bool
    size: int


class Token(NamedTuple):
    user: str
    role: str
    expired: bool


@dataclass(frozen=True)
class Commit:
    """A commit with the whole tree that it leaves behind; `lfs` are the paths whose content lies in LFS."""

    id: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, bytes]
    lfs: frozenset[str]

    def etag(self, path: str) -> str:
        """What names the content: its SHA-256 in LFS, else its git blob id. The client compares it to skip a file."""
        content = self.files[path]
        return hashlib.sha256(content).hexdigest() if path in self.lfs else git_blob_id(content)

    def entry(self, path: str) -> dict:
        """A file as the tree listing gives it."""
        entry = {"type": "file", "path": path, "size": len(self.files[path]), "oid": self.etag(path)}
        if path in self.lfs:
            oid, size = entry["oid"], entry["size"]
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()
            entry |= {"oid": git_blob_id(pointer), "lfs": {"oid": oid, "size": size, "pointerSize": len(pointer)}}
        return entry

    def upload_mode(self, path: str, size: int) -> str:
        lines = self.files.get(".gitattributes", b"").decode().splitlines()
        tracked = [line.split()[0] for line in lines if "filter=lfs" in line]
        return "lfs" if size > LFS_SIZE or matches_any(path, tracked) else "regular"

    def ignores(self, path: str, gitignore: str | None) -> bool:
        """Whether the .gitignore that is being uploaded, else the one of this commit, leaves the path out."""
        text = self.files.get(".gitignore", b"").decode() if gitignore is None else gitignore
        return matches_any(path, [line for line in text.split() if not line.startswith("#")])


def matches_any(path: str, patterns: list[str]) -> bool:
    """Whether a pattern of .gitattributes or .gitignore covers the path, its name or a folder above it."""
    parts = path.split("/")
    prefixes = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return any(fnmatch(name, pattern.strip("/")) for pattern in patterns for name in parts + prefixes)


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()


class Repository:
    """A repository in memory. It starts as on the Hub: one commit with .gitattributes, and a Space's README.md."""

    def __init__(self, repo_type: str, repo_id: str, private: bool, sdk: str | None = None):
        self.repo_type = repo_type
        self.repo_id = repo_id
        self.private = private
        self.branches: dict[str, Commit] = {}
        self.commits: list[Commit] = []
        self.variables: dict[str, str] = {}
        self.secrets: dict[str, str] = {}
        self.lfs_objects: dict[str, bytes] = {}
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)
        files = {".gitattributes": attributes.encode()}
        if repo_type == "space":
            card = {"title": repo_id.split("/")[1], "emoji": "🏃", "colorFrom": "red", "colorTo": "red", "sdk": sdk}
            files["README.md"] = f"---\n{yaml.safe_dump(card, allow_unicode=True)}---\n".encode()
        self.add_commit("main", "initial commit", "system", files, frozenset())

    @property
    def namespace(self) -> str:
        return self.repo_id.split("/")[0]

    @property
    def url_path(self) -> str:
        return self.repo_id if self.repo_type == "model" else f"{self.repo_type}s/{self.repo_id}"

    def at(self, revision: str) -> Commit:
        """The commit of a branch or of a full commit id."""
        by_id = {commit.id: commit for commit in self.commits}
        if revision not in by_id and revision not in self.branches:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.branches.get(revision) or by_id[revision]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return dict(self.at(revision).files)

    def add_commit(
        self, branch: str, title: str, author: str, files: dict[str, bytes], lfs: frozenset[str], message: str = ""
    ) -> Commit:
        parent = self.branches[branch].id if branch in self.branches else None
        commit_id = hashlib.sha1(
            f"{self.url_path} {len(self.commits)} {parent} {title}".encode(), usedforsecurity=False
        ).hexdigest()
        date = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        commit = Commit(commit_id, parent, title, message, author, date, files, lfs)
        self.commits.append(commit)
        self.branches[branch] = commit
        return commit


@dataclass
class Rule:
    """Something that happens at `times` of the matching requests that follow the first `after`; `count` times so far."""

    method: str
    path: str
    how: Any
    times: float
    after: int
    retry_after: int | None = None
    error_code: str | None = None
    delay: float = 1.0
    seen: int = 0
    count: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    def is_due(self, method: str, path: str) -> bool:
        if not (re.fullmatch(self.method, method) and re.search(self.path, path)):
            return False
        self.seen += 1
        return self.seen > self.after and self.count < self.times

    def reply(self) -> Reply:
        """The Hub's own errors are JSON; 502, 503 and 504 come from the gateway in front of it, as HTML."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.how in (502, 503, 504):
            return Reply(b"<html><body>The gateway has no answer</body></html>", self.how, headers)
        return HubError(self.how, f"Fault {self.how} on demand", self.error_code, headers).reply


class HubServer:
    """The server, from `with` to the end of its block, and everything that a test wants to see or set of it."""

    def __init__(self):
        self.users: dict[str, tuple[str, ...]] = {}
        self.tokens: dict[str, Token] = {}
        self.repos: dict[tuple[str, str], Repository] = {}
        self.requests: list[Request] = []
        self.upload_tickets: dict[str, tuple[Repository, str, int]] = {}
        self.lock = threading.RLock()
        self._faults: list[Rule] = []
        self._hooks: list[Rule] = []
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        for rule in self._faults:
            rule.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add_user(self, name: str, orgs: tuple[str, ...] = ()) -> None:
        self.users[name] = tuple(orgs)

    def add_token(self, user: str, role: str = "write", expired: bool = False) -> str:
        if role not in ROLES or user not in self.users:
            raise ValueError(f"a token is for a known user and one of {ROLES}, not {user!r} and {role!r}")
        secret = f"hf_{secrets.token_hex(17)}"
        self.tokens[secret] = Token(user, role, expired)
        return secret

    def add_repo(self, repo_id: str, repo_type: str = "model", private: bool = False) -> Repository:
        sdk = "gradio" if repo_type == "space" else None
        repository = self.repos[repo_type, repo_id] = Repository(repo_type, repo_id, private, sdk)
        return repository

    def commit(self, repo_id: str, files: dict[str, bytes], branch: str = "main", repo_type: str = "model") -> Commit:
        """Adds a commit as somebody else would, with the files that .gitattributes names in LFS."""
        with self.lock:
            repository = self.repos[repo_type, repo_id]
            head = repository.branches[branch]
            lfs = {path for path, content in files.items() if head.upload_mode(path, len(content)) == "lfs"}
            repository.lfs_objects |= {hashlib.sha256(files[path]).hexdigest(): files[path] for path in lfs}
            tree, tracked = {**head.files, **files}, (head.lfs - files.keys()) | lfs
            return repository.add_commit(branch, "Somebody else's commit", repository.namespace, tree, tracked)

    def fail(
        self,
        method: str,
        path: str,
        how: int | str,
        times: float = 1,
        after: int = 0,
        *,
        retry_after: int | None = None,
        error_code: str | None = None,
        delay: float = 1.0,
    ) -> Rule:
        """Makes requests fail whose method and path match the regular expressions (the path's anywhere, unquoted).

        The rule leaves the first `after` matching requests alone, and the next `times` (`math.inf` for all) fail. Where
        several rules are due, the one that was made first goes before. `how` is one of

        - a status, with the header `Retry-After` and `X-Error-Code` where given;
        - "drop": the connection is closed before anything is done;
        - "drop-after": the work is done, and the connection closed without an answer;
        - "truncate": the connection is closed in the middle of the answer's body;
        - "slow": the answer comes after `delay` seconds, or at once when the rule is `released` or the server closes;
        - "wrong-etag": the file is not the one that its ETag names.

        The rule that is returned tells by its `count` how often it has fired.
        """
        if not isinstance(how, int) and how not in ("drop", "drop-after", "truncate", "slow", "wrong-etag"):
            raise ValueError(f"unknown fault {how!r}")
        rule = Rule(method, path, how, times, after, retry_after, error_code, delay)
        self._faults.append(rule)
        return rule

    def on(self, path: str, action: Callable[[], Any], times: float = 1, method: str = ".*") -> Rule:
        """Calls `action` just before a request is handled whose path (and method) matches, the first `times` times."""
        rule = Rule(method, path, action, times, 0)
        self._hooks.append(rule)
        return rule

    def environment(self, token: str | None, home: Path) -> dict[str, str]:
        """What a client's process needs to know this Hub alone; `home` is its cache, empty for a first visit."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": token or "",
            "HUGGING_FACE_HUB_TOKEN": "",
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_MODULES_CACHE": str(home / "modules"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "DISABLE_TELEMETRY": "1",
            **dict.fromkeys(PROXY_VARIABLES, ""),
        }

    def answer(self, call: "Call") -> Reply:
        """The undisturbed answer to a call; a mistake in this module reaches the client as a 500 with its traceback."""
        try:
            with self.lock:
                for method, pattern, endpoint in ROUTES:
                    if method == call.method and (match := pattern.fullmatch(call.raw_path)):
                        call.groups = {name: unquote(text or "") for name, text in match.groupdict().items()}
                        return endpoint(call)
            raise HubError(501, f"tests/hub_server.py has no {call.method} {call.path}")
        except HubError as error:
            return error.reply
        except Exception:
            return Reply({"error": traceback.format_exc()}, 500)

    def serve(self, call: "Call") -> tuple[Reply | None, bool]:
        """What is sent, None for a closed connection, and whether only its first half is; records the request."""
        with self.lock:
            hooks = [rule for rule in self._hooks if rule.is_due(call.method, call.path)]
            faults = [rule for rule in self._faults if rule.is_due(call.method, call.path)]
            fault = faults[0] if faults else None
            for rule in hooks + faults[:1]:
                rule.count += 1
        for hook in hooks:
            hook.how()
        how = fault.how if fault else None
        if how == "slow":
            fault.released.wait(fault.delay)
        reply = None if how == "drop" else fault.reply() if isinstance(how, int) else self.answer(call)
        if how == "drop-after":
            reply = None
        if how == "wrong-etag":
            reply.headers |= {name: f'"{"0" * 40}"' for name in ("ETag", "X-Linked-ETag") if name in reply.headers}
        status = reply.status if reply else None
        self.requests.append(Request(call.method, call.path, status, call.secret is not None, len(call.body)))
        return reply, how == "truncate"


class _Server(ThreadingHTTPServer):
    """Closes with every connection that clients keep open, so that no socket and no thread outlives it.

    Their reading side alone: a request that is being answered still gets its answer.
    """

    def __init__(self, hub: HubServer):
        self.hub = hub
        self.connections: dict[socket.socket, threading.Thread] = {}
        super().__init__(("127.0.0.1", 0), _Connection)

    def process_request(self, request, client_address):
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self.connections[request] = thread
        thread.start()

    def shutdown_request(self, request):
        super().shutdown_request(request)
        self.connections.pop(request, None)

    def server_close(self):
        super().server_close()
        for connection, thread in list(self.connections.items()):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
            thread.join()

    def handle_error(self, request, client_address):
        """A client that goes away is no error of the server."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    """Turns bytes into a [`Call`] and a [`Reply`] into bytes."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def serve(self):
        call = Call(self.server.hub, self.command, self.path, self.headers, self.read_body())
        reply, truncated = call.hub.serve(call)
        if reply is None or truncated:
            self.close_connection = True
        if reply is not None:
            self.send(reply, truncated)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send(self, reply: Reply, truncated: bool):
        is_json = not isinstance(reply.body, bytes)
        body = json.dumps(reply.body, default=str).encode() if is_json else reply.body
        content_type = "application/json" if is_json else "text/html" if reply.status >= 400 else "text/plain"
        headers = {"Content-Type": content_type, "Content-Length": str(len(body))} | reply.headers
        self.send_response(reply.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if truncated else body)

    def log_message(self, *arguments):
        """Tests read `HubServer.requests` instead."""


class Call:
    """A request on its way to an endpoint, and the checks that the endpoints share."""

    def __init__(self, hub: HubServer, method: str, target: str, headers: Mapping[str, str], body: bytes):
        self.hub = hub
        self.method = method
        self.raw_path, self.path = urlsplit(target).path, unquote(urlsplit(target).path)
        self.query = parse_qs(urlsplit(target).query)
        self.secret = headers["Authorization"].removeprefix("Bearer ") if "Authorization" in headers else None
        self.range = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range", ""))
        self.body = body
        self.groups: dict[str, str] = {}

    @cached_property
    def json(self) -> dict:
        return json.loads(self.body)

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("1", "true")

    def token(self) -> Token | None:
        """Who asks, None for anonymous. A token that is sent has to be good, even where none is needed."""
        if self.secret is None:
            return None
        token = self.hub.tokens.get(self.secret)
        if token is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        if token.expired:
            raise HubError(401, 'User Access Token "test" is expired')
        return token

    def is_member(self, namespace: str) -> bool:
        token = self.token()
        return token is not None and namespace in (token.user, *self.hub.users[token.user])

    def no_repository(self) -> HubError:
        """The Hub hides which repositories exist: who sends no token hears 401, others 404."""
        if self.token() is None:
            return HubError(401, "Invalid username or password.", "RepoNotFound")
        return HubError(404, "Repository not found", "RepoNotFound")

    def repo(self, write: bool = False) -> Repository:
        self.token()
        repository = self.hub.repos.get((self.groups["type"] or "model", self.groups["id"]))
        if repository is None or (repository.private and not self.is_member(repository.namespace)):
            raise self.no_repository()
        if write and self.secret is None:
            raise HubError(401, "Invalid username or password.")
        if write and not self.is_member(repository.namespace):
            raise HubError(403, "Authorization error")
        if write and self.token().role == "read":
            raise HubError(403, "You must use a write token to upload to a repository")
        return repository

    def commit(self) -> Commit:
        return self.repo().at(self.groups.get("revision") or "main")


ROUTES: list[tuple[str, re.Pattern, Callable[[Call], Reply]]] = []
API = "/api/(?P<type>model|dataset|space)s/(?P<id>[^/]+/[^/]+)"
SPACE = "/api/(?P<type>space)s/(?P<id>[^/]+/[^/]+)"
GIT = "/(?:(?P<type>dataset|space)s/)?(?P<id>[^/]+/[^/]+?)"
REVISION = "/(?P<revision>[^/]+)"


def route(methods: str, pattern: str):
    """Serves the methods at the paths that match; the pattern sees the path quoted, the endpoint its parts unquoted."""

    def register(endpoint: Callable[[Call], Reply]):
        ROUTES.extend((method, re.compile(pattern), endpoint) for method in methods.split())
        return endpoint

    return register


@route("GET", "/api/whoami-v2")
def whoami(call: Call) -> Reply:
    token = call.token()
    if token is None:
        raise HubError(401, "Invalid username or password.")
    access = {"displayName": "test", "role": token.role}
    if token.role == "fineGrained":
        scope = {"entity": {"type": "user", "name": token.user}, "permissions": ["repo.content.read", "repo.write"]}
        access["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": [scope]}
    orgs = [{"type": "org", "name": name, "roleInOrg": "write"} for name in call.hub.users[token.user]]
    user = {"type": "user", "name": token.user, "fullname": token.user, "isPro": False, "orgs": orgs}
    return Reply(user | {"auth": {"type": "access_token", "accessToken": access}})


@route("POST", "/api/repos/create")
def create_repository(call: Call) -> Reply:
    token, asked = call.token(), call.json
    if token is None:
        raise HubError(401, "Invalid username or password.")
    repo_type, namespace = asked.get("type") or "model", asked.get("organization") or token.user
    repo_id = f"{namespace}/{asked['name']}"
    if token.role == "read" or not call.is_member(namespace):
        raise HubError(403, f'You don\'t have the rights to create a {repo_type} under the namespace "{namespace}"')
    if repo_type == "space" and asked.get("sdk") not in SPACE_SDKS:
        raise HubError(400, f'"sdk" must be one of [{", ".join(SPACE_SDKS)}]')
    taken = [repository for (_, other_id), repository in call.hub.repos.items() if other_id == repo_id]
    if taken:
        url = f"{call.hub.url}/{taken[0].url_path}"
        raise HubError(409, f"You already created this {taken[0].repo_type} repo", url=url)
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    repository = call.hub.repos[repo_type, repo_id] = Repository(repo_type, repo_id, private, asked.get("sdk"))
    repository.variables = {item["key"]: item["value"] for item in asked.get("variables", [])}
    repository.secrets = {item["key"]: item["value"] for item in asked.get("secrets", [])}
    return Reply({"url": f"{call.hub.url}/{repository.url_path}", "name": repo_id, "id": "0" * 24})


def read_front_matter(content: str) -> Any:
    """The metadata of a card, None without any; raises yaml.YAMLError."""
    match = re.match(r"---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", content, re.DOTALL | re.MULTILINE)
    return yaml.safe_load(match[1]) if match else None


def check_card(content: str, repo_type: str) -> tuple[list[str], list[str]]:
    """The errors and the warnings that the Hub has for a README.md."""
    try:
        card = read_front_matter(content)
    except yaml.YAMLError as error:
        return [f"YAML metadata could not be parsed: {error}"], []
    if card is None and repo_type != "space":
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(card, dict):
        return ['"sdk" is required' if card is None else "YAML metadata must be an object"], []

    choices = {"license": LICENSES, "pipeline_tag": PIPELINE_TAGS}
    if repo_type == "space":
        choices = {"license": LICENSES, "sdk": SPACE_SDKS, "colorFrom": SPACE_COLORS, "colorTo": SPACE_COLORS}
    errors = [
        f'"{key}" must be one of [{", ".join(allowed)}]'
        for key, allowed in choices.items()
        if key in card and card[key] not in allowed
    ]
    if repo_type == "space" and "sdk" not in card:
        errors.append('"sdk" is required')
    if len(str(card.get("short_description", ""))) > 60:
        errors.append('"short_description" length must be less than or equal to 60 characters long')
    return errors + missing_keys("model-index", card.get("model-index", []), MODEL_INDEX), []


def missing_keys(where: str, value: Any, required: dict | list) -> list[str]:
    """What a value lacks of the keys that are required: a dict of what its values require, or a list for each item."""
    if isinstance(required, list):
        if not isinstance(value, list):
            return [f'"{where}" must be an array']
        return [text for i, item in enumerate(value) for text in missing_keys(f"{where}[{i}]", item, required[0])]
    errors = []
    for key, below in required.items():
        found = value.get(key) if isinstance(value, dict) else None
        absent = found is None or found == ""
        errors += [f'"{where}.{key}" is required'] if absent else missing_keys(f"{where}.{key}", found, below)
    return errors


@route("POST", "/api/validate-yaml")
def validate_card(call: Call) -> Reply:
    call.token()
    errors, warnings = check_card(call.json["content"], call.json["repoType"])
    body = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return Reply(body, 400 if errors else 200)


@route("POST", f"{API}/preupload{REVISION}")
def preupload(call: Call) -> Reply:
    call.repo(write=True)
    head = call.commit()
    files = [
        {
            "path": file["path"],
            "uploadMode": head.upload_mode(file["path"], file["size"]),
            "shouldIgnore": head.ignores(file["path"], call.json.get("gitIgnore")),
            "oid": head.etag(file["path"]) if file["path"] in head.files else None,
        }
        for file in call.json["files"]
    ]
    return Reply({"files": files})


@route("POST", rf"{GIT}\.git/info/lfs/objects/batch")
def lfs_batch(call: Call) -> Reply:
    repository = call.repo(write=True)
    answers = []
    for asked in call.json["objects"]:
        known = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in repository.lfs_objects:
            ticket = secrets.token_hex(16)
            call.hub.upload_tickets[ticket] = repository, asked["oid"], asked["size"]
            upload = {"href": f"{call.hub.url}/lfs-upload/{ticket}"}
            verify = {"href": f"{call.hub.url}/{repository.url_path}.git/info/lfs/objects/verify"}
            known["actions"] = {"upload": upload, "verify": verify}
        answers.append(known)
    return Reply({"transfer": "basic", "objects": answers})


@route("PUT", "/lfs-upload/(?P<ticket>[^/]+)")
def lfs_upload(call: Call) -> Reply:
    """Needs no token: the address is the permission, as with the storage behind the Hub."""
    if call.groups["ticket"] not in call.hub.upload_tickets:
        raise HubError(403, "Request has expired")
    repository, oid, size = call.hub.upload_tickets[call.groups["ticket"]]
    if (hashlib.sha256(call.body).hexdigest(), len(call.body)) != (oid, size):
        raise HubError(400, "The content does not match the size and the SHA-256 that were announced")
    repository.lfs_objects[oid] = call.body
    return Reply()


@route("POST", rf"{GIT}\.git/info/lfs/objects/verify")
def lfs_verify(call: Call) -> Reply:
    stored = call.repo(write=True).lfs_objects.get(call.json["oid"])
    if stored is None or len(stored) != call.json["size"]:
        raise HubError(400, "The LFS object has not been uploaded")
    return Reply({})


@route("POST", f"{API}/commit{REVISION}")
def commit_files(call: Call) -> Reply:
    """One commit of all the operations, or of none if one of them is refused."""
    repository, branch = call.repo(write=True), call.groups["revision"]
    if branch not in repository.branches or call.flag("create_pr"):
        raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    head = repository.branches[branch]
    lines = [json.loads(line) for line in call.body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    if not head.id.startswith(header.get("parentCommit", "")):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")

    files, lfs = dict(head.files), set(head.lfs)
    for key, value in ((line["key"], line["value"]) for line in lines if line["key"] != "header"):
        path = value["path"]
        if key.startswith("deleted"):
            gone = [name for name in files if name == path or name.startswith(path.rstrip("/") + "/")]
            if not gone or (key == "deletedFile" and gone != [path]):
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            files = {name: content for name, content in files.items() if name not in gone}
            lfs -= set(gone)
        elif key == "lfsFile":
            if value["oid"] not in repository.lfs_objects:
                raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path} {value['oid']}")
            files[path] = repository.lfs_objects[value["oid"]]
            lfs.add(path)
        else:
            files[path] = base64.b64decode(value["content"], validate=True)
            lfs.discard(path)
            errors = check_card(files[path].decode(), repository.repo_type)[0] if path == "README.md" else []
            if errors:
                raise HubError(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
    author, message = call.token().user, header.get("description", "")
    commit = repository.add_commit(branch, header["summary"], author, files, frozenset(lfs), message)
    commit_url = f"{call.hub.url}/{repository.url_path}/commit/{commit.id}"
    return Reply({"success": True, "commitOid": commit.id, "commitUrl": commit_url, "hookOutput": ""})


@route("POST", f"{API}/branch{REVISION}")
def create_branch(call: Call) -> Reply:
    repository, branch = call.repo(write=True), call.groups["revision"]
    if branch in repository.branches:
        raise HubError(409, f"Reference already exists: refs/heads/{branch}")
    repository.branches[branch] = repository.at(call.json.get("startingPoint", "main"))
    return Reply({})


@route("GET HEAD", f"{GIT}/resolve{REVISION}/(?P<path>.+)")
def resolve(call: Call) -> Reply:
    commit, path = call.commit(), call.groups["path"]
    headers = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
    if path not in commit.files:
        raise HubError(404, "Entry not found", "EntryNotFound", headers)
    content = commit.files[path]
    headers["ETag"] = f'"{commit.etag(path)}"'
    if path in commit.lfs:
        headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(content))}
    if call.range is None:
        return Reply(content, 200, headers)
    size = len(content)
    start, end = int(call.range[1]), min(int(call.range[2] or size), size - 1)
    if start > end:
        raise HubError(416, "Range Not Satisfiable", None, headers | {"Content-Range": f"bytes */{size}"})
    return Reply(content[start : end + 1], 206, headers | {"Content-Range": f"bytes {start}-{end}/{size}"})


@route("GET", f"{API}(?:/revision{REVISION})?")
def repository_info(call: Call) -> Reply:
    repository, commit = call.repo(), call.commit()
    card = read_front_matter(commit.files.get("README.md", b"").decode()) or {}
    siblings = [{"rfilename": path} for path in commit.files]
    if call.flag("blobs"):
        for sibling, entry in zip(siblings, map(commit.entry, commit.files), strict=True):
            sibling |= {"size": entry["size"], "blobId": entry["oid"]}
            if "lfs" in entry:
                sibling["lfs"] = {key: entry["lfs"][key] for key in ("size", "pointerSize")}
                sibling["lfs"]["sha256"] = entry["lfs"]["oid"]
    info = {"id": repository.repo_id, "author": repository.namespace, "sha": commit.id, "lastModified": commit.date}
    info |= {"private": repository.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0}
    info |= {"tags": card.get("tags") or [], "cardData": card, "siblings": siblings}
    info |= {key: card[key] for key in ("library_name", "pipeline_tag", "sdk") if key in card}
    return Reply(info)


def tree_entries(commit: Commit) -> dict[str, dict]:
    """Every file and folder of a commit; a folder's id is made from what lies in it."""
    entries = {path: commit.entry(path) for path in sorted(commit.files)}
    folders = {str(parent) for path in entries for parent in Path(path).parents} - {"."}
    for folder in sorted(folders):
        content = "".join(entry["oid"] for path, entry in entries.items() if path.startswith(f"{folder}/"))
        oid = hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest()
        entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": oid}
    return entries


@route("GET", f"{API}/tree{REVISION}(?:/(?P<path>.+))?")
def list_tree(call: Call) -> Reply:
    entries, top = tree_entries(call.commit()), call.groups["path"]
    if top and entries.get(top, {}).get("type") != "directory":
        raise HubError(404, f"{top} does not exist on {call.groups['revision']}", "EntryNotFound")
    prefix = f"{top}/" if top else ""
    below = {path: entry for path, entry in entries.items() if path.startswith(prefix)}
    recursive = call.flag("recursive")
    return Reply([entry for path, entry in below.items() if recursive or "/" not in path.removeprefix(prefix)])


@route("POST", f"{API}/paths-info{REVISION}")
def paths_info(call: Call) -> Reply:
    entries, form = tree_entries(call.commit()), parse_qs(call.body.decode())
    return Reply([entries[path] for path in form.get("paths", []) if path in entries])


@route("GET", f"{API}/refs")
def list_refs(call: Call) -> Reply:
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit.id}
        for name, commit in call.repo().branches.items()
    ]
    return Reply({"branches": branches, "converts": [], "tags": [], "pullRequests": []})


@route("GET", f"{API}/commits{REVISION}")
def list_commits(call: Call) -> Reply:
    repository, commits = call.repo(), [call.commit()]
    while commits[-1].parent:
        commits.append(repository.at(commits[-1].parent))
    history = [
        {"id": c.id, "title": c.title, "message": c.message, "authors": [{"user": c.author}], "date": c.date}
        for c in commits
    ]
    return Reply(history)


@route("GET POST DELETE", f"{SPACE}/variables")
def space_variables(call: Call) -> Reply:
    variables = call.repo(write=call.method != "GET").variables
    if call.method == "POST":
        variables[call.json["key"]] = call.json["value"]
    if call.method == "DELETE":
        variables.pop(call.json["key"], None)
    return Reply({key: {"key": key, "value": value} for key, value in variables.items()})


@route("GET", f"{SPACE}/runtime")
def space_runtime(call: Call) -> Reply:
    stage = "RUNNING" if "app.py" in call.repo().files() else "NO_APP_FILE"
    return Reply({"stage": stage, "hardware": {"current": "cpu-basic", "requested": "cpu-basic"}, "gcTimeout": 172800})


@route("GET HEAD POST", "/api/(?:model|dataset|space)s/[^/]+(?:/(?:revision|tree|preupload|commit|refs).*)?")
@route("GET HEAD", "/[^/]+/resolve/.+")
def repository_without_namespace(call: Call) -> Reply:
    raise call.no_repository()
