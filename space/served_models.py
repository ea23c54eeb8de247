"""The models that the demo serves: an allow-list of folders and Hub repositories, each loaded once."""

import logging
import os
import threading
from pathlib import Path

import torch
from both_languages import Both
from gpu_lease import ON_ZERO_GPU
from request_checks import InvalidRequestError, choice

from ddpm_hub import DDPMHubPipeline
from ddpm_hub.shipped_models import FOLDER, SHIPPED_MODELS

_loaded: dict[str, DDPMHubPipeline] = {}
_loading = threading.Lock()


def names() -> list[str]:
    """What may be asked for, the first one unless the visitor chooses: folders, and repositories on the Hub.

    They are those in the environment variable DDPM_HUB_MODEL, separated by commas, or else those that come with the package.
    """
    listed = [name.strip() for name in os.environ.get("DDPM_HUB_MODEL", "").split(",")]
    return list(dict.fromkeys(filter(None, listed))) or [str(FOLDER / name) for name in SHIPPED_MODELS]


def title(name: str) -> str:
    """What visitors call a model: the repository's name or the folder's, without the path of this machine."""
    titles = [_last_part(other) for other in names()]
    last = _last_part(name)
    return last if titles.count(last) < 2 else f"{last} ({names().index(name) + 1})"


def _last_part(name: str) -> str:
    return name if is_on_hub(name) else Path(name).name


def is_on_hub(name: str) -> bool:
    """Whether a name is one of a repository: `user/model`."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).is_dir()


def by_title(asked: str | None) -> str:
    """The name of a model by its title; the first one for `None`.

    Raises:
        InvalidRequestError: if it is not on the list: nothing else is looked up, on this machine or on the Hub.
    """
    titles = {title(name): name for name in names()}
    return next(iter(titles.values())) if asked is None else titles[choice(Both("Model", "模型"), asked, list(titles))]


def pipeline(asked: str | None = None) -> DDPMHubPipeline:
    """The model of a title, or the first one; see [`load`]."""
    return load(by_title(asked))


def load(name: str) -> DDPMHubPipeline:
    """A model of the list, loaded at the first call; a failure is not remembered, so the model may arrive later.

    No code from a repository is run.

    Raises:
        InvalidRequestError: if there is no model (and what to run), or if it is damaged.
    """
    if name in _loaded:  # nobody waits for a model that somebody else has asked for
        return _loaded[name]
    with _loading:
        if name not in _loaded:
            try:
                model = DDPMHubPipeline.from_pretrained(name)
            except Exception as error:  # a damaged file surfaces as whatever the library that reads it raises
                logging.getLogger(__name__).warning("%s does not load: %s", name, error)
                raise _advice(name) from error
            model.set_progress_bar_config(disable=True)
            _loaded[name] = model.to("cuda" if ON_ZERO_GPU or torch.cuda.is_available() else "cpu")
        return _loaded[name]


def _advice(name: str) -> InvalidRequestError:
    last = title(name)
    if (Path(name) / "model_index.json").is_file():
        return InvalidRequestError(
            f"The model {last} is damaged: run `make train` again, or copy its folder whole.",
            f"模型 {last} 已损坏：请重新运行 `make train`，或完整复制其文件夹。",
        )
    if is_on_hub(name):
        return InvalidRequestError(
            f"The model {last} does not load from the Hub: set the secret HF_TOKEN if it is private.",
            f"无法从 Hub 加载模型 {last}：若它是私有的，请设置密钥 HF_TOKEN。",
        )
    return InvalidRequestError(
        f"No trained model {last}: run `make train`, or set DDPM_HUB_MODEL to a model's folder.",
        f"没有已训练的模型 {last}：请运行 `make train`，或将 DDPM_HUB_MODEL 设为模型文件夹。",
    )
