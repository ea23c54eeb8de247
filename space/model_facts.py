"""What is known of a served model: its card, its figures and its plots, out of its folder or its repository."""

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path

import drawing
import served_models
from huggingface_hub import snapshot_download
from request_checks import InvalidRequestError

# Of a repository on the Hub, beside what the pipeline itself loads.
CARD_FILES = ("README.md", "metrics.json", "*.png", "plots/*.png", "samples/*.png")
LARGEST_PICTURE = 2 * 2**20

_HEADER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class ModelFacts:
    """Attributes:
    title (`str`): what visitors call it.
    classes (`list[str]`): what can be asked for.
    num_train_timesteps (`int`): T.
    height, width, channels (`int`): of its images.
    num_parameters (`int`): of the network.
    sampler (`str`), num_steps (`int`), guidance (`float`): how it is best sampled.
    guidance_interval (`list[int]`, *optional*): the smallest and the largest timestep that are guided; `None` is all.
    card (`str`): the model card as Markdown, without its header; its pictures are inside. Empty, if there is none.
    metrics (`dict`): the figures of `metrics.json`; may be empty.
    plots (`list[Path]`): the pictures that the card does not show.
    """

    title: str
    classes: list[str]
    num_train_timesteps: int
    height: int
    width: int
    channels: int
    num_parameters: int
    sampler: str
    num_steps: int
    guidance: float
    guidance_interval: list[int] | None
    card: str
    metrics: dict
    plots: list[Path]

    def as_dict(self) -> dict:
        """What the API lists: all but the card, the figures and the plots."""
        return {name: value for name, value in vars(self).items() if name not in ("card", "metrics", "plots")}


def model_facts(asked: str | None = None) -> ModelFacts:
    """The facts of a model of the allow-list, by its title.

    Raises:
        InvalidRequestError: if it is not on the list or does not load.
    """
    name = served_models.by_title(asked)
    pipeline = served_models.load(name)
    folder = _folder(name)
    text = _card_text(folder)
    sampler, num_steps, guidance = drawing.own_settings(pipeline)
    height, width = pipeline.image_size
    shown = {path.resolve() for path in _pictures(folder, text)}
    plots = [*sorted(folder.glob("plots/*.png")), *sorted(folder.glob("*.png"))]
    return ModelFacts(
        title=served_models.title(name),
        classes=drawing.classes(pipeline),
        num_train_timesteps=len(pipeline.scheduler),
        height=height,
        width=width,
        channels=pipeline.unet.config.in_channels,
        num_parameters=pipeline.unet.num_parameters(),
        sampler=sampler,
        num_steps=num_steps,
        guidance=guidance,
        guidance_interval=(pipeline.config.sampling or {}).get("guidance_interval"),
        card=_PICTURE.sub(lambda match: _with_picture_inside(folder, match), text),
        metrics=_metrics(folder),
        plots=[path for path in plots if path.resolve() not in shown],
    )


def _folder(name: str) -> Path:
    if not served_models.is_on_hub(name):
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=list(CARD_FILES)))  # nosec B615 # a card
    except OSError as error:
        raise InvalidRequestError(
            f"The card of {name} cannot be had from the Hub now.", f"目前无法从 Hub 获取 {name} 的模型卡。"
        ) from error


def _card_text(folder: Path) -> str:
    path = folder / "README.md"
    return _HEADER.sub("", path.read_text(encoding="utf-8", errors="replace")).strip() if path.is_file() else ""


def _metrics(folder: Path) -> dict:
    try:
        found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _pictures(folder: Path, text: str) -> list[Path]:
    return [path for _, place in _PICTURE.findall(text) if (path := _inside(folder, place))]


def _inside(folder: Path, place: str) -> Path | None:
    """A picture of the folder, of a size that a page can hold; nothing outside of it."""
    path = folder / place
    if "://" in place or path.suffix.lower() != ".png" or Path(place).is_absolute() or ".." in Path(place).parts:
        return None
    return path if path.is_file() and path.stat().st_size <= LARGEST_PICTURE else None


def _with_picture_inside(folder: Path, match: re.Match) -> str:
    """A picture of the card as part of the text; what lies elsewhere is named only, since the page asks no other server."""
    text, place = match.groups()
    if (path := _inside(folder, place)) is None:
        return f"*{text}*"
    return f"![{text}](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()})"
