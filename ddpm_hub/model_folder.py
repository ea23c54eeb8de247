"""A saved model folder as facts: its files, read and checked without loading the network.

The folder is what `DDPMHubPipeline.save_pretrained` writes. A training run adds `config.yaml` (its resolved configuration),
`metrics.json` (its figures, `metrics_file.py`), `samples/*.png` and plots; each of them may be missing.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import yaml

from .metrics_file import SAMPLING_FORM, form_fault, metrics_fault, without_nulls

_CONFIG = {
    "license": str,
    "dataset_name": str,
    "init_from": str,
    "split": str,
    "batch_size": int,
    "seed": int,
    "num_inference_steps": int,
    "learning_rate": float,
    "ema_decay": float,
}
_UNET = {"in_channels": int, "out_channels": int, "num_class_embeds": int}
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class ModelFolder:
    """Attributes:
    name (`str`): the folder's own name, without the path.
    image_shape (`tuple[int, int, int]`): channels, height and width of the samples.
    class_names (`list[str]`): the name of each class, or its number; empty for an unconditional model.
    unet (`dict`), scheduler (`dict`): the stored configurations.
    num_parameters (`int`): of the network.
    dtype (`str`): the precision of the weights, as torch names it.
    config (`dict`): the resolved configuration of the training run, without paths of the machine; may be empty.
    sampling (`dict`): how it is sampled where a call says nothing else; may be empty.
    metrics (`dict`): figures in the form of `metrics_file.py`, without those that are null; may be empty.
    sample_grid (`str`, *optional*): the last grid in `samples/`; paths are relative to the folder.
    plots (`list[str]`): all other pictures, at the root and in `plots/`.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: list[str]
    unet: dict
    scheduler: dict
    num_parameters: int
    dtype: str
    config: dict
    sampling: dict
    metrics: dict
    sample_grid: str | None
    plots: list[str]


def read_model_folder(folder: str | Path) -> ModelFolder:
    """Reads and checks what a model folder holds.

    Raises:
        FileNotFoundError: naming the file that a model cannot do without.
        ValueError: naming a file that is damaged, and what is wrong in it.
    """
    folder = Path(folder)
    index = without_nulls(_read(folder, "model_index.json"))
    if "DDPMHubPipeline" not in str(index.get("_class_name")):  # a list or, of old folders, a text
        raise _damaged(folder, "model_index.json", "`_class_name` names no DDPMHubPipeline")
    _check(index.get("id2label", {}), {}, folder, "model_index.json", "id2label")
    _check(index.get("sampling", {}), SAMPLING_FORM, folder, "model_index.json", "sampling")
    unet, scheduler = (
        without_nulls(_read(folder, file)) for file in ("unet/config.json", "scheduler/scheduler_config.json")
    )
    _check(unet, _UNET, folder, "unet/config.json")
    num_parameters, dtype = _weights(folder)
    metrics = without_nulls(_read(folder, "metrics.json")) if (folder / "metrics.json").is_file() else {}
    if fault := metrics_fault(metrics):
        raise _damaged(folder, "metrics.json", fault)
    config = _read(folder, "config.yaml") if (folder / "config.yaml").is_file() else {}
    # The nulls stay: of some keys they are not the default.
    _check(without_nulls(config), _CONFIG, folder, "config.yaml")
    grids = _pictures(folder, "samples/*.png")
    return ModelFolder(
        name=folder.resolve().name,
        image_shape=_image_shape(unet, folder),
        class_names=_class_names(unet, index.get("id2label", {})),
        unet=unet,
        scheduler=scheduler,
        num_parameters=num_parameters,
        dtype=dtype,
        config=_without_paths(config, metrics.get("training", {})),
        sampling=index.get("sampling", {}),
        metrics=metrics,
        sample_grid=grids[-1] if grids else None,
        plots=[*_pictures(folder, "*.png"), *_pictures(folder, "plots/*.png")],
    )


def _damaged(folder: Path, file: str, reason: str) -> ValueError:
    return ValueError(f"{str(folder / file)!r} is damaged: {reason}.")


def _read(folder: Path, file: str) -> dict:
    """A JSON or YAML file that holds a dictionary."""
    path = folder / file
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} holds no {file}: it is no saved model. Pass a folder that `save_pretrained` or a training run wrote."
        )
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # also of bytes that are no UTF-8
        raise _damaged(folder, file, " ".join(str(error).split()).rstrip(".")) from error
    if not isinstance(content, dict):
        raise _damaged(folder, file, "it holds no `key: value` pairs")
    if wrong := [key for key in content if not isinstance(key, str)]:
        raise _damaged(folder, file, f"its key {wrong[0]!r} is no text")
    return content


def _check(value, form, folder: Path, file: str, where: str = "") -> None:
    if fault := form_fault(value, form, where):
        raise _damaged(folder, file, fault)


def _weights(folder: Path) -> tuple[int, str]:
    """The number of parameters and their precision, from the headers of the weight files."""
    from safetensors import SafetensorError, safe_open

    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shards = sorted((folder / "unet").glob("diffusion_pytorch_model-*-of-*.safetensors"))
    files = [whole] if whole.is_file() else shards or sorted((folder / "unet").glob("*.safetensors"))[:1]
    if not files:
        raise FileNotFoundError(
            f"{str(folder)!r} holds no weights (unet/*.safetensors); copy the model's folder whole."
        )
    count, dtypes = 0, set()
    for file in files:
        try:
            with safe_open(file, framework="np") as tensors:
                for key in tensors.keys():  # noqa: SIM118
                    header = tensors.get_slice(key)
                    count += math.prod(header.get_shape())
                    dtypes.add(_DTYPES.get(header.get_dtype(), header.get_dtype()))
        except SafetensorError as error:
            raise _damaged(folder, f"unet/{file.name}", str(error)) from error
    return count, " and ".join(sorted(dtypes))


def _image_shape(unet: dict, folder: Path) -> tuple[int, int, int]:
    size = unet.get("sample_size")
    size = [size, size] if isinstance(size, int) else size
    if not isinstance(size, list) or len(size) != 2 or "in_channels" not in unet:
        raise _damaged(folder, "unet/config.json", "`sample_size` and `in_channels` do not give the size of an image")
    _check(size, [int], folder, "unet/config.json", "sample_size")
    return (unet["in_channels"], *size)


def _class_names(unet: dict, id2label: dict) -> list[str]:
    """One less than there are embeddings: the last is the null class."""
    return [str(id2label.get(str(k), k)) for k in range(unet.get("num_class_embeds", 1) - 1)]


def _without_paths(config: dict, training: dict) -> dict:
    """A configuration that may be published: of each path its last part, and not where the run was written."""
    shortened = {key: _shorten(value) for key, value in config.items() if key not in ("output_dir", "cache_dir")}
    for key, on_hub in (("dataset_name", "dataset_on_hub"), ("init_from", "init_from_on_hub")):
        if shortened.get(key) and not training.get(on_hub, False):
            shortened[key] = last_part(shortened[key])
    return shortened


def _shorten(value):
    if isinstance(value, dict):
        return {key: _shorten(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shorten(inner) for inner in value]
    is_path = isinstance(value, str) and (
        value.startswith(("/", "~", ".", "file:")) or PureWindowsPath(value).is_absolute()
    )
    return last_part(value) if is_path else value


def last_part(path: str) -> str:
    """The name at the end of a path of any system; the text itself if it has none."""
    return PureWindowsPath(path).name or path.strip("/.~\\:") or "data"


def _pictures(folder: Path, pattern: str) -> list[str]:
    """Visible files, in the order of the numbers in their names."""

    def order(path: Path) -> tuple:
        return [int(number) for number in re.findall(r"\d+", path.stem)], path.name

    found = (path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))
    return [path.relative_to(folder).as_posix() for path in sorted(found, key=order)]
