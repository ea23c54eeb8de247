"""Publishing on the Hub: one commit for each revision, tried again where the network fails, and errors that say what to do.

This file is copied beside every model that is published: a pipeline that was loaded by trust can be pushed again.
"""

import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from .ddpm_hub_layout import PUBLISHED_PATTERNS, RECORD_PATTERNS, check_folder, main_files, stock_files

# The waits between the attempts at one request, beside those that huggingface_hub itself makes.
RETRY_SECONDS = (1, 2, 4, 8)
TEMPORARY = (408, 412, 425, 429)  # 412: somebody else has committed in between; the next attempt begins at their commit
RERUN = "No revision is half-published: run the command again later, and what has arrived is not sent twice."
HOW_TO_LOG_IN = "Make a token with write access on the Hub's settings page and run `hf auth login`, or set HF_TOKEN."

log = logging.getLogger(__name__)


class HubError(RuntimeError):
    """The Hub refused, or could not be reached; the message says what to do. It never contains the token."""


@dataclass(frozen=True, slots=True)
class Publication:
    """What was published.

    Attributes:
        repo_id (`str`): `user/name`.
        url (`str`): the repository's page.
        private (`bool`): whether only its owner sees it.
        commits (`dict[str, str]`): the commit that each revision now is.
        changed (`list[str]`): the revisions that a new commit was made in; empty if everything was there already.
    """

    repo_id: str
    url: str
    private: bool
    commits: dict[str, str]
    changed: list[str]


def upload_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    commit_message: str | None = None,
    card: Callable[[str], str] | None = None,
) -> Publication:
    """Publishes a saved model: `main` with this package's classes and code, `stock` for diffusers alone.

    `stock` comes first: once `main` says how to load it, it is there. Each is one commit, and only files of the allow-list
    go ([`main_files`]); those of an earlier model that this one has not are removed, and what others put there stays. A
    folder without a card of its own (just saved, no run's output) leaves the card, figures and pictures that are there.

    Args:
        folder (`Path`): a folder that `save_pretrained`, training or `ddpm-hub export` wrote.
        repo_id (`str`): `user/name`, or `name` in one's own account.
        private (`bool`, defaults to `True`): who sees a repository that does not exist yet; an existing one stays as it is.
        token (`str`, *optional*): by default HF_TOKEN or the one of `hf auth login`.
        commit_message (`str`, *optional*): by default "Upload the model".
        card (*optional*): gives README.md for the repository's full name, in place of the folder's.

    Raises:
        FileNotFoundError, ValueError: if the folder would not load again, or holds a token; nothing has been sent then.
        HubError: if the Hub refuses or stays out of reach.
    """
    check_folder(folder)
    revisions = {"stock": stock_files(folder), "main": main_files(folder)}
    has_card = "README.md" in revisions["main"]
    for content in (*revisions["main"].items(), ("README.md", card("user/name").encode() if card else b"")):
        _check_no_token(*content)
    account = HubAccount(token)
    repo_id, repo_private = account.prepare(repo_id, private=private)
    if private and not repo_private:
        log.warning("%s is public: everybody sees what is pushed there.", repo_id)
    if card is not None and (has_card or "README.md" not in account.list_files(repo_id)):
        for files in revisions.values():
            files["README.md"] = card(repo_id).encode()
    account.make_branch(repo_id, "stock")
    kept = () if has_card else RECORD_PATTERNS

    def is_surplus(revision: str, path: str) -> bool:
        owned = path != ".gitattributes" if revision == "stock" else _matches(path, PUBLISHED_PATTERNS)
        return owned and not _matches(path, ("README.md", *kept))

    commits, changed = {}, []
    for revision, files in revisions.items():
        message = commit_message or "Upload the model"
        commits[revision], is_new = account.commit(
            repo_id, files, message, revision=revision, is_surplus=partial(is_surplus, revision)
        )
        if is_new:
            changed.append(revision)
    return Publication(repo_id, account.url(repo_id), repo_private, commits, changed)


def _check_no_token(path: str, content: Path | bytes) -> None:
    if not path.endswith((".md", ".json")):
        return
    text = content if isinstance(content, bytes) else content.read_bytes()
    if re.search(rb"\bhf_[A-Za-z0-9]{20,}", text):
        raise ValueError(
            f"{path} holds what looks like a token of the Hub, and would be published; remove it, and revoke it."
        )


def check_token(token: str | bool | None) -> None:
    """Whether a token can be one: the libraries below would repeat another in their errors, whole.

    Raises:
        HubError: if it holds a space, a line's end or what is not ASCII.
    """
    if isinstance(token, str) and not re.fullmatch(r"[!-~]*", token):
        raise HubError(f"The token is none: it holds a space, a line's end or another odd character. {HOW_TO_LOG_IN}")


class HubAccount:
    """Whoever the token belongs to.

    Args:
        token (`str`, *optional*): by default HF_TOKEN or the one of `hf auth login`.

    Raises:
        HubError: if there is none, if the Hub does not accept it, or if it may only read.
    """

    def __init__(self, token: str | None = None):
        from huggingface_hub import HfApi, get_token

        token = token or get_token()
        if not token:
            raise HubError(f"No token for the Hub was found. {HOW_TO_LOG_IN}")
        check_token(token)
        self._api = HfApi(token=token)
        identity = self._call("asking whose token it is", self._api.whoami)
        self.name = identity["name"]
        role = identity.get("auth", {}).get("accessToken", {}).get("role")
        # A fine-grained token's rights are its own; the Hub tells when they do not suffice.
        organisations = [organisation["name"] for organisation in identity.get("orgs", [])]
        self._writes_to = [self.name, *organisations] if role == "write" else None
        if role == "read":
            raise HubError(f"The token of {self.name!r} may only read. {HOW_TO_LOG_IN}")

    def url(self, repo_id: str, repo_type: str = "model") -> str:
        return "/".join(filter(None, (self._api.endpoint, "" if repo_type == "model" else f"{repo_type}s", repo_id)))

    def prepare(self, repo_id: str, repo_type: str = "model", private: bool = True, **options) -> tuple[str, bool]:
        """Makes sure that a repository is there and can be written.

        Args:
            repo_id (`str`): `user/name`, or `name` in one's own account.
            options: of a Space: `space_sdk`.

        Returns:
            `tuple[str, bool]`: `user/name`, and whether the repository is private.

        Raises:
            HubError: if it cannot be made.
        """
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        full = repo_id if "/" in repo_id else f"{self.name}/{repo_id}"
        try:
            validate_repo_id(full)
        except HFValidationError as error:
            raise HubError(f"{repo_id!r} is no name for a repository: {error}") from error
        owner = full.split("/")[0]
        if self._writes_to is not None and owner not in self._writes_to:
            raise HubError(
                f"The token of {self.name!r} cannot write to {owner!r}; it can to {', '.join(self._writes_to)}. Choose another "
                f"account for the repository, or log in with the token of one who may."
            )
        try:
            made = self._call(
                f"making the {repo_type} {full!r}",
                self._api.create_repo,
                full,
                repo_type=repo_type,
                private=private,
                exist_ok=True,
                **options,
            )
        except KeyError as error:  # huggingface_hub takes every conflict for a repository that is there
            raise HubError(
                f"making the {repo_type} {full!r}: the name is taken or reserved. Choose another one."
            ) from error
        if made.repo_type not in (None, repo_type):
            raise HubError(
                f"{full!r} is there already, as a {made.repo_type}. Choose another name for the {repo_type}."
            )
        info = self.look_up(full, repo_type)
        return full, bool(info.private)

    def look_up(self, repo_id: str, repo_type: str = "model"):
        """What the Hub knows of a repository that the token may see: `huggingface_hub.ModelInfo` and the like."""
        return self._call(f"looking up the {repo_type} {repo_id!r}", self._api.repo_info, repo_id, repo_type=repo_type)

    def make_branch(self, repo_id: str, branch: str) -> None:
        """Makes a branch that begins where the repository began; none of what others see there is taken over."""
        refs = self._call(f"listing the branches of {repo_id!r}", self._api.list_repo_refs, repo_id)
        if branch in (ref.name for ref in refs.branches):
            return
        history = self._call(f"reading the history of {repo_id!r}", self._api.list_repo_commits, repo_id)
        self._call(
            f"making the branch {branch!r} of {repo_id!r}",
            self._api.create_branch,
            repo_id,
            branch=branch,
            revision=history[-1].commit_id,
            exist_ok=True,
        )

    def commit(
        self,
        repo_id: str,
        files: dict[str, Path | bytes],
        message: str,
        *,
        revision: str = "main",
        repo_type: str = "model",
        is_surplus: Callable[[str], bool] = lambda path: False,
    ) -> tuple[str, bool]:
        """Writes files in one commit, or in none where all are there already.

        The commit is bound to the one that it was prepared on, so an answer that was lost does not make a second one.

        Args:
            files (`dict[str, Path | bytes]`): by path in the repository.
            is_surplus (*optional*): whether a file that is there, and is none of `files`, is deleted in the same commit.

        Returns:
            `tuple[str, bool]`: the commit that the revision now is, and whether it is new.

        Raises:
            HubError: if the Hub refuses, stays out of reach, or would leave files out.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        at = {"repo_type": repo_type, "revision": revision}
        before = []

        def attempt() -> str:
            head = self._api.repo_info(repo_id, **at).sha
            before.append(head)
            operations = [CommitOperationAdd(path, content) for path, content in files.items()]
            others = sorted(set(self._api.list_repo_files(repo_id, **at)) - files.keys())
            if ".gitignore" in others:  # the Hub would leave out what it names, and say nothing
                raise HubError(
                    f"{repo_id!r} ({revision}) has a .gitignore, which may keep files out; delete it there first."
                )
            operations += [CommitOperationDelete(path) for path in others if is_surplus(path)]
            return self._api.create_commit(repo_id, operations, commit_message=message, parent_commit=head, **at).oid

        commit = self._call(f"uploading to {repo_id!r} ({revision})", attempt)
        return commit, commit != before[0]

    def list_files(self, repo_id: str, **at: str) -> set[str]:
        """The paths of the files in a repository."""
        return set(self._call(f"listing the files of {repo_id!r}", self._api.list_repo_files, repo_id, **at))

    def set_variable(self, repo_id: str, key: str, value: str) -> None:
        """Sets a public variable of a Space's environment; one that is set already is left, so the Space is not restarted."""
        present = self._call(f"reading the variables of {repo_id!r}", self._api.get_space_variables, repo_id)
        if key not in present or present[key].value != value:
            self._call(f"setting {key} of {repo_id!r}", self._api.add_space_variable, repo_id, key, value)

    def _call(self, doing: str, action: Callable, *args, **kwargs) -> Any:
        """Calls, and calls again after a failure that may pass."""
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

        # huggingface_hub wraps what goes wrong with a large file and takes a gateway's error page for an answer; its other
        # protocol for large files, Xet, has errors of the system's kinds.
        failures = (HTTPError, json.JSONDecodeError, RuntimeError, ConnectionError, TimeoutError, PermissionError)
        for wait in (*RETRY_SECONDS, None):
            try:
                return action(*args, **kwargs)
            except HubError:
                raise
            except OfflineModeIsEnabled as error:
                raise HubError(f"{doing}: HF_HUB_OFFLINE is set, so nothing is sent; unset it.") from error
            except failures as error:
                wrapped = type(error) is RuntimeError and isinstance(error.__cause__, failures)
                failure = error.__cause__ if wrapped else error
                status = failure.response.status_code if isinstance(failure, HfHubHTTPError) else None
                if isinstance(failure, PermissionError):
                    if failure.errno is not None:  # of a file on this machine
                        raise
                    status = 401
                tried = isinstance(failure, ConnectionError | TimeoutError)  # Xet's, which has repeated it for minutes
                passing = status >= 500 or status in TEMPORARY if status is not None else not tried
                if wait is None or not passing:
                    raise HubError(f"{doing}: {self._explain(failure, status)}") from error
                log.warning("%s: %s; trying again in %d s.", doing, status or type(failure).__name__, wait)
            except ValueError as error:  # what huggingface_hub says of a name or of a card's metadata
                raise HubError(f"{doing}: {error}") from error
            time.sleep(wait)
        raise AssertionError("the last attempt has returned or raised")

    def _explain(self, error: Exception, status: int | None) -> str:
        """What a failure means for somebody who publishes."""
        if status is None:
            return f"the Hub at {self._api.endpoint} cannot be reached, or breaks off ({type(error).__name__}: {error}). {RERUN}"
        response = getattr(error, "response", None)
        said = response is not None and (error.server_message or response.headers.get("X-Error-Message"))
        said = f" The Hub says: {said}" if said else ""
        meaning = {
            401: f"the Hub does not accept the token: it is expired, revoked or mistyped. {HOW_TO_LOG_IN}",
            402: "the account's plan does not include this.",
            403: f"the token may not do this: it needs write access to that account or organisation. {HOW_TO_LOG_IN}",
            404: "there is no such account, repository or revision, or the token may not see it.",
            409: "the name is taken. Choose another one.",
            412: f"others keep committing to this repository. {RERUN}",
            429: f"the Hub asks for a pause. {RERUN}",
        }
        if status >= 500:
            return f"the Hub is out of order ({status}). {RERUN}{said}"
        return meaning.get(status, f"the Hub refused with status {status}.") + said


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of the patterns is of this path: as in `Path.glob`, a star does not cross a folder's end."""
    parts = path.split("/")
    return any(
        len(parts) == len(pattern.split("/")) and all(map(fnmatchcase, parts, pattern.split("/")))
        for pattern in patterns
    )
