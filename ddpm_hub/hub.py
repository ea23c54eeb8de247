"""The Hub: a saved folder as a finished repository, pushed with its card, and the demo as a Space.

What a repository holds is in `ddpm_hub_layout.py`, and how it is sent in `ddpm_hub_upload.py`: both are copied beside every
published model, so that a pipeline that was loaded by trust, without this package, can be saved and pushed again.
"""

import ast
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
import yaml
from diffusers.utils.dynamic_modules_utils import get_relative_imports
from huggingface_hub.utils import HFValidationError, validate_repo_id

from .ddpm_hub_layout import (
    CODE_FILES,
    CODE_PATHS,
    EXPORT_REMEDY,
    MODEL_INDEX,
    SCHEDULER_CONFIG,
    WEIGHTS,
    check_folder,
    check_model,
    main_files,
    read_index,
    read_json,
    read_scheduler,
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

log = logging.getLogger(__name__)

SPACE_FILES = ("*.py", "*.css", "requirements.txt", "tabs/*.py", "example_images/*")


# --- A finished repository as a folder ---


def export_folder(folder: str | Path, output: str | Path | None = None, float16: bool = False) -> Path:
    """Makes a finished Hub repository of a saved model: this version's source files, `model_index.json` and a card.

    A folder that plain diffusers saved (`DDPMPipeline` with a `DDPMScheduler`) becomes one of this package.

    Args:
        folder (`str` or `Path`): the model.
        output (`str` or `Path`, *optional*): a folder that is new or empty, which receives what would be published, and the
            run's configuration without the paths of this machine, which the card is made of; by default the model's own folder is brought up to date.
        float16 (`bool`, defaults to `False`): store the weights in half as many bytes; loading them gives float32 again. Needs
            `output`: the model's own weights are never rounded.

    Returns:
        `Path`: the folder, which has been checked.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: naming the file and what is wrong with it.
    """
    folder, target = Path(folder), Path(folder if output is None else output)
    in_place = target.resolve() == folder.resolve()
    if float16 and in_place:
        raise ValueError(
            f"`float16` is True and `output` is {output if output is None else str(output)!r}: the model's own weights would "
            f"be rounded; give a new folder as `output`."
        )
    if not in_place and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"`output` is {str(target)!r}, which is not an empty folder; choose another one.")
    keep_card = _check_exportable(folder)
    # Built and checked aside: what is refused, or interrupted, changes nothing.
    home = folder if in_place else next(parent for parent in target.resolve().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=".ddpm-hub-", dir=home) as workplace:
        made = Path(workplace, target.resolve().name)
        _build_repository(folder, made, keep_card, float16)
        if in_place:
            for path in (*CODE_PATHS, SCHEDULER_CONFIG, "README.md", MODEL_INDEX):
                (made / path).replace(folder / path)
        else:
            target.resolve().parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target.resolve().rmdir()  # empty; not every system replaces it
            made.replace(target.resolve())
    return target


def _check_exportable(folder: Path) -> bool:
    """Refuses what cannot become a repository, and returns whether somebody else has written the card that is there."""
    index, names = read_index(folder), ("DDPMHubScheduler", "DDPMScheduler")
    for key, known in {"unet": ("UNet2DModel",), "scheduler": names}.items():
        value = index.get(key)
        if not isinstance(value, list) or len(value) != 2 or value[1] not in known:
            raise ValueError(
                f"{str(folder / MODEL_INDEX)!r} has {key} = {value!r}; its class must be {' or '.join(known)}. Save the model "
                f"as a DDPMHubPipeline."
            )
    check_model(folder, names)
    if "DDPMHubPipeline" in str(index.get("_class_name")):
        return _card_for(folder) is None
    return (folder / "README.md").is_file()


def _build_repository(folder: Path, made: Path, keep_card: bool, float16: bool) -> None:
    anew = {*CODE_PATHS, MODEL_INDEX} | (set() if keep_card else {"README.md"})
    copied = {path: content for path, content in main_files(folder).items() if path not in anew}
    if (folder / "config.yaml").is_file():
        copied["config.yaml"] = folder / "config.yaml"
    for path, content in copied.items():
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (made / path).write_bytes(content)
        else:
            shutil.copyfile(content, made / path)
    if float16:
        _round_weights(made / WEIGHTS)
    if read_json(folder / SCHEDULER_CONFIG)["_class_name"] != "DDPMHubScheduler":
        read_scheduler(folder, ("DDPMScheduler",)).save_config(made / "scheduler")
    index = read_index(folder)
    write_model_index(made, index.get("id2label"), index.get("sampling"))
    if config := read_model_folder(made).config:  # without the paths of this machine
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        (made / "config.yaml").write_text(text, encoding="utf-8")
    if not keep_card:
        write_card(made)
    check_folder(made)
    check_loader_rules(made)


def _round_weights(path: Path) -> None:
    """Stores weights as float16, in place."""
    weights = {name: weight.to(torch.float16) for name, weight in safetensors.torch.load_file(path).items()}
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise ValueError(f"`float16` is True, and {name!r} has weights beyond 65504; export it without `float16`.")
    mode = path.stat().st_mode  # safetensors makes files that their owner alone may read
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
    path.chmod(mode)


def check_loader_rules(folder: Path) -> None:
    """Whether diffusers' loader finds every source file, as it looks for them; none is executed.

    It copies the file that `model_index.json` names and the siblings which that file names as `from .name import x`; not
    what those import in turn, not what lies elsewhere, and not what is written in another way.

    Raises:
        FileNotFoundError, ValueError: naming the file, the line and the rule.
    """
    for subfolder, (first, *_) in CODE_FILES.items():
        place = folder / subfolder
        copied = {first} | {f"{name}.py" for name in _siblings(place / first)}
        for name in sorted(copied):
            for sibling in _siblings(place / name):
                if f"{sibling}.py" not in copied:
                    raise ValueError(
                        f"{str(place / name)!r} imports .{sibling}, which {first} does not name: the loader would not copy it."
                    )


def _siblings(path: Path) -> list[str]:
    """The siblings that a source file imports."""
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is missing, and the loader copies it. {EXPORT_REMEDY}")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:  # also of bytes that are no UTF-8
        raise ValueError(f"{str(path)!r} is no Python source ({error}). {EXPORT_REMEDY}") from error
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level > 1 or not node.module or "." in node.module:
                raise ValueError(
                    f"{str(path)!r}, line {node.lineno}: the loader follows `from .name import x` alone, for a file beside this one."
                )
            names.append(node.module)
    if other := set(names) ^ set(get_relative_imports(path)):
        raise ValueError(
            f"{str(path)!r}: the loader takes a text for an import of .{min(other)}, or overlooks it. Write each import on a line "
            f"of its own, and begin no line of text as one."
        )
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
    check_folder(folder)
    check_loader_rules(folder)
    return upload_folder(
        folder, repo_id, private=private, token=token, commit_message=commit_message, card=_card_for(folder)
    )


def plan_push(folder: str | Path, repo_id: str) -> dict[str, dict[str, int]]:
    """What [`push_folder`] would publish: the size in bytes of every file of each revision. Nothing is sent or asked.

    Raises:
        FileNotFoundError, ValueError: if the folder would not load again, or if the name cannot be one.
    """
    folder = Path(folder)
    _check_name(repo_id)
    check_folder(folder)
    check_loader_rules(folder)
    revisions = {"main": main_files(folder), "stock": stock_files(folder)}
    if card := _card_for(folder):
        for files in revisions.values():
            files["README.md"] = card(repo_id).encode()
    return {revision: _sizes(files) for revision, files in revisions.items()}


def _check_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name for a repository: {error}") from error


def _sizes(files: dict[str, Path | bytes]) -> dict[str, int]:
    return {
        path: len(content) if isinstance(content, bytes) else content.stat().st_size
        for path, content in sorted(files.items())
    }


def _card_text(folder: Path, repo_id: str | None = None) -> str:
    return render_card(folder, repo_id).content.rstrip("\n") + "\n"


def _card_for(folder: Path) -> Callable[[str], str] | None:
    """What makes the card for a repository; `None` where somebody has written one.

    Raises:
        FileNotFoundError, ValueError: naming a file that a card cannot be made of.
    """
    path, unedited = folder / "README.md", _card_text(folder)
    if path.is_file() and path.read_bytes() != unedited.encode():
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
    model_is_private = account.look_up(model).private
    repo_id, is_private = account.prepare(repo_id, "space", private, space_sdk="gradio")
    if model_is_private:
        settings = f"{account.url(repo_id, 'space')}/settings"
        log.warning("%s is private: for the Space to load it, set the secret HF_TOKEN on %s.", model, settings)
    # Before the files, whose arrival starts the Space.
    account.set_variable(repo_id, "DDPM_HUB_MODEL", model)
    commit, is_new = account.commit(repo_id, space_files(model), commit_message or "Upload the demo", repo_type="space")
    return Publication(repo_id, account.url(repo_id, "space"), is_private, {"main": commit}, ["main"] if is_new else [])


def plan_space(repo_id: str, model: str) -> dict[str, int]:
    """What [`push_space`] would publish: the size in bytes of every file. Nothing is sent or asked.

    Raises:
        ValueError: if one of the names cannot be one.
    """
    _check_name(repo_id)
    _check_name(model)
    return _sizes(space_files(model))


def space_files(model: str) -> dict[str, Path | bytes]:
    """What a Space that serves `model` holds, by path: the demo, and the package in a folder beside it."""
    from huggingface_hub import SpaceCard

    space = shared_file("space")
    card = SpaceCard((space / "README.md").read_text(encoding="utf-8"))
    card.data.models = [model]
    package = Path(__file__).parent
    files = sorted(path for pattern in SPACE_FILES for path in space.glob(pattern))
    return {
        "README.md": card.content.encode(),
        **{path.relative_to(space).as_posix(): path for path in files},
        "docs/EQUATIONS.md": shared_file("docs") / "EQUATIONS.md",
        **{f"ddpm_hub/{path.name}": path for path in sorted(package.glob("*.py"))},
    }
