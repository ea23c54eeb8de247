"""The Hub: a saved folder as a finished repository, pushed with its card, and the demo as a Space.

What a repository holds is in `ddpm_hub_layout.py`, and how it is sent in `ddpm_hub_upload.py`: both are copied beside every
published model, so that a pipeline that was loaded by trust, without this package, can be saved and pushed again.
"""

import ast
import shutil
from collections.abc import Callable
from pathlib import Path

import yaml

from .ddpm_hub_layout import (
    CODE_FILES,
    CODE_PATHS,
    EXPORT_REMEDY,
    MODEL_INDEX,
    SCHEDULER_CONFIG,
    check_folder,
    main_files,
    read_json,
    stock_files,
    write_model_index,
)
from .ddpm_hub_upload import HubAccount, HubError, Publication, upload_folder
from .model_card import render_card, write_card
from .model_folder import read_model_folder
from .shared_files import shared_file

__all__ = [
    "HubError",
    "Publication",
    "check_loader_rules",
    "export_folder",
    "plan_push",
    "plan_space",
    "push_folder",
    "push_space",
]

SPACE_FILES = ("app.py", "inference.py", "requirements.txt")


# --- A finished repository as a folder ---


def export_folder(folder: str | Path, output: str | Path | None = None) -> Path:
    """Makes a finished Hub repository of a saved model: this version's source files, `model_index.json` and a card.

    A folder that plain diffusers saved (`DDPMPipeline` with a `DDPMScheduler`) becomes one of this package.

    Args:
        folder (`str` or `Path`): the model.
        output (`str` or `Path`, *optional*): a folder that is new or empty, which receives what would be published and
            nothing else; by default the model's own folder is brought up to date.

    Returns:
        `Path`: the folder, which has been checked.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: naming the file and what is wrong with it.
    """
    from .scheduling_ddpm_hub import DDPMHubScheduler

    folder = Path(folder)
    index = read_json(folder / MODEL_INDEX)
    classes = {key: value[1] for key, value in index.items() if isinstance(value, list) and len(value) == 2}
    for key, known in {"unet": ("UNet2DModel",), "scheduler": ("DDPMHubScheduler", "DDPMScheduler")}.items():
        if classes.get(key) not in known:
            raise ValueError(
                f"{str(folder / MODEL_INDEX)!r} has {key} = {index.get(key)!r}; it must be a {' or a '.join(known)}."
            )
    scheduler = DDPMHubScheduler.from_config(
        {key: value for key, value in read_json(folder / SCHEDULER_CONFIG).items() if key != "_class_name"}
    )
    target = folder if output is None else Path(output)
    if target.resolve() != folder.resolve():
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise FileExistsError(f"`output` is {str(target)!r}, which is not an empty folder; choose another one.")
        _copy_published(folder, target)
    if classes["scheduler"] != DDPMHubScheduler.__name__:
        scheduler.save_config(target / "scheduler")
    write_model_index(target, index.get("id2label"))
    if not (target / "README.md").exists():
        write_card(target)
    check_folder(target)
    check_loader_rules(target)
    return target


def _copy_published(folder: Path, target: Path) -> None:
    """Copies all that is not written anew: a card only if somebody has edited it, the run's configuration without paths."""
    anew = {*CODE_PATHS, MODEL_INDEX}
    if _card_for(folder) is not None:
        anew.add("README.md")
    for path, source in main_files(folder).items():
        if path not in anew:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / path)
    if config := read_model_folder(folder).config:
        (target / "config.yaml").write_text(
            yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )


def check_loader_rules(folder: Path) -> None:
    """Whether diffusers' loader finds every source file, as it looks for them; none is executed.

    It copies the file that `model_index.json` names and the siblings which that file names as `from .name import x`; not
    what those import in turn, not what lies elsewhere, and not what is written in another way.

    Raises:
        ValueError: naming the file, the line and the rule.
    """
    for subfolder, (first, *_) in CODE_FILES.items():
        place = folder / subfolder
        copied = {first} | {f"{name}.py" for name in _siblings(place / first)}
        for name in sorted(copied):
            if not (place / name).is_file():
                raise ValueError(f"{str(place / first)!r} imports {name}, which is not beside it. {EXPORT_REMEDY}")
            for sibling in _siblings(place / name):
                if f"{sibling}.py" not in copied:
                    raise ValueError(
                        f"{str(place / name)!r} imports .{sibling}, which {first} does not name: the loader would not copy it."
                    )


def _siblings(path: Path) -> list[str]:
    """The siblings that a source file imports."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is no Python source ({error}). {EXPORT_REMEDY}") from error
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level > 1 or not node.module or "." in node.module:
                raise ValueError(
                    f"{str(path)!r}, line {node.lineno}: the loader follows `from .name import x` alone, for a file beside this one."
                )
            names.append(node.module)
    return names


# --- Publishing a model ---


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    commit_message: str | None = None,
) -> Publication:
    """Publishes a saved model with its card, as [`upload_folder`] does; arguments and errors are the same.

    A card that names the folder, as [`write_card`] left it, is rendered anew for the repository. One that was edited is
    published as it is.
    """
    folder = Path(folder)
    check_loader_rules(folder)
    return upload_folder(
        folder, repo_id, private=private, token=token, commit_message=commit_message, card=_card_for(folder)
    )


def plan_push(folder: str | Path) -> dict[str, dict[str, int]]:
    """What [`push_folder`] would publish: the size in bytes of every file of each revision. Nothing is sent or asked.

    Raises:
        FileNotFoundError, ValueError: if the folder would not load again.
    """
    folder = Path(folder)
    check_folder(folder)
    check_loader_rules(folder)
    revisions = {"main": main_files(folder), "stock": stock_files(folder)}
    card = _card_for(folder)
    return {
        revision: {path: _size(content) for path, content in sorted(files.items())}
        | ({"README.md": len(card("user/name").encode())} if card else {})
        for revision, files in revisions.items()
    }


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _card_text(folder: Path, repo_id: str | None = None) -> str:
    return render_card(folder, repo_id).content.rstrip("\n") + "\n"


def _card_for(folder: Path) -> Callable[[str], str] | None:
    """What makes the card for a repository; `None` where somebody has written one."""
    path = folder / "README.md"
    if path.is_file() and path.read_text(encoding="utf-8") != _card_text(folder):
        return None
    return lambda repo_id: _card_text(folder, repo_id)


# --- Publishing the demo ---


def push_space(
    repo_id: str, model: str, *, private: bool = True, token: str | None = None, commit_message: str | None = None
) -> Publication:
    """Creates or updates the Gradio Space that serves a model: one commit with the files of `space/` and this package.

    Args:
        repo_id (`str`): the Space, `user/name`, or `name` in one's own account.
        model (`str`): the model's repository on the Hub. The Space reads its name from the variable DDPM_HUB_MODEL, and a
            private one with a secret HF_TOKEN, which is yours to set on the Space's settings page.
        private, token, commit_message: as in [`push_folder`].

    Raises:
        HubError: if there is no such model, or if the Hub refuses or stays out of reach.
    """
    account = HubAccount(token)
    account.look_up(model)
    repo_id, is_private = account.prepare(repo_id, "space", private, space_sdk="gradio")
    # Before the files, whose arrival starts the Space.
    account.set_variable(repo_id, "DDPM_HUB_MODEL", model)
    commit, is_new = account.commit(
        repo_id, space_files(model), commit_message or "Upload the demo", repo_type="space", mirror=False
    )
    return Publication(repo_id, account.url(repo_id, "space"), is_private, {"main": commit}, ["main"] if is_new else [])


def plan_space(model: str) -> dict[str, int]:
    """What [`push_space`] would publish: the size in bytes of every file. Nothing is sent or asked."""
    return {path: _size(content) for path, content in sorted(space_files(model).items())}


def space_files(model: str) -> dict[str, Path | bytes]:
    """What a Space that serves `model` holds, by path: the demo, and the package in a folder beside it."""
    from huggingface_hub import SpaceCard

    space = shared_file("space")
    card = SpaceCard((space / "README.md").read_text(encoding="utf-8"))
    card.data.models = [model]
    package = Path(__file__).parent
    return {
        "README.md": card.content.encode(),
        **{name: space / name for name in SPACE_FILES},
        **{f"ddpm_hub/{path.name}": path for path in sorted(package.glob("*.py"))},
    }
