"""What the folder of a saved model holds, so that it loads with this package, by `trust_remote_code`, and in plain diffusers.

This file is copied beside every model that is published: a pipeline that was loaded by trust can be saved and pushed again.
"""

import inspect
import json
import shutil
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers import __version__ as diffusers_version

from .scheduling_ddpm_hub import DDPMHubScheduler

MODEL_INDEX = "model_index.json"
# Lists: the loader takes a class that is named by a string for one of diffusers.
INDEX = {
    "_class_name": ["pipeline_ddpm_hub", "DDPMHubPipeline"],
    "scheduler": ["scheduling_ddpm_hub", "DDPMHubScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}
STOCK_INDEX = {
    "_class_name": "DDPMPipeline",
    "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}

# Which source files a saved folder carries, and where diffusers' loader looks for them: a component's file in the
# component's folder, the pipeline's at the root, and beside each what it imports.
SCHEDULER_FILES = (
    "scheduling_ddpm_hub.py",
    "ddpm_argument_checks.py",
    "ddpm_equations.py",
    "ddpm_noise_schedules.py",
    "ddpm_sample_arithmetic.py",
)
CODE_FILES = {
    "": ("pipeline_ddpm_hub.py", "ddpm_hub_layout.py", "ddpm_hub_upload.py", *SCHEDULER_FILES),
    "scheduler": SCHEDULER_FILES,
}
CODE_PATHS = tuple(str(Path(folder, name)) for folder, names in CODE_FILES.items() for name in names)

# All that leaves this machine. Whatever else a folder holds (checkpoints, logs, the run's configuration with its paths)
# stays where it is.
UNET_CONFIG, SCHEDULER_CONFIG = "unet/config.json", "scheduler/scheduler_config.json"
PUBLISHED_PATTERNS = (
    MODEL_INDEX,
    UNET_CONFIG,
    SCHEDULER_CONFIG,
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.*.safetensors",
    *CODE_PATHS,
    "README.md",
    "metrics.json",
    "*.png",
    "plots/*.png",
    "samples/*.png",
)

EXPORT_REMEDY = "Run `ddpm-hub export` on the folder, which writes these files anew."


def write_model_index(folder: Path, id2label: dict | None) -> None:
    """Writes the source files, and `model_index.json` last and whole: an interrupted save is never taken for a finished one.

    diffusers' own method copies no source file and names modules of this machine.
    """
    for path in CODE_PATHS:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_source(path), folder / path)
    index = INDEX | {"_diffusers_version": diffusers_version}
    if id2label:
        index["id2label"] = id2label
    partial = folder / f"{MODEL_INDEX}.partial"
    partial.write_bytes(to_json(index))
    partial.replace(folder / MODEL_INDEX)


def _source(path: str) -> Path:
    return Path(__file__).with_name(Path(path).name)


def to_json(content: dict) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def read_json(path: Path) -> dict:
    """Reads a JSON object.

    Raises:
        FileNotFoundError, ValueError: naming the file, if it is not there or holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path)!r} is missing: the folder is no saved DDPMHubPipeline, or not a whole one."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{str(path)!r} is not JSON ({error}); copy the folder anew, or save the model again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} holds a {type(content).__name__}; it must be a JSON object.")
    return content


# --- Checking ---


def check_folder(folder: Path) -> None:
    """Whether the folder loads in every way, from here and from the Hub; nothing in it is executed.

    Raises:
        FileNotFoundError, ValueError: naming the file, what is wrong with it, and what to do.
    """
    index = read_json(folder / MODEL_INDEX)
    for key, value in INDEX.items():
        if index.get(key) != value:
            raise ValueError(
                f"{str(folder / MODEL_INDEX)!r} has {key} = {index.get(key)!r}; it must be {value!r}. {EXPORT_REMEDY}"
            )
    unknown = sorted(set(index) - set(INDEX) - {"_diffusers_version", "id2label"})
    if unknown:
        raise ValueError(f"{str(folder / MODEL_INDEX)!r} names {unknown[0]!r}, which a DDPMHubPipeline does not have.")
    for path in CODE_PATHS:
        if not (folder / path).is_file():
            raise FileNotFoundError(f"{str(folder / path)!r} is missing. {EXPORT_REMEDY}")
        if (folder / path).read_bytes() != _source(path).read_bytes():
            raise ValueError(
                f"{str(folder / path)!r} is not this version's file: what others would run is not what was tested. "
                f"{EXPORT_REMEDY}"
            )
    read_scheduler(folder)
    unet = read_unet(folder)
    names = index.get("id2label")
    classes = range((unet.config.num_class_embeds or 1) - 1)
    if names is not None and (not isinstance(names, dict) or set(names) - set(map(str, classes))):
        raise ValueError(
            f"`id2label` in {str(folder / MODEL_INDEX)!r} names classes that the network does not have: {names!r}."
        )
    for path in weight_files(folder):
        check_weights(path, unet)


def read_scheduler(folder: Path) -> DDPMHubScheduler:
    """The scheduler of a saved folder.

    Raises:
        FileNotFoundError, ValueError: naming the file and what is wrong with it.
    """
    return DDPMHubScheduler.from_config(_component_config(folder / SCHEDULER_CONFIG, DDPMHubScheduler))


def read_unet(folder: Path) -> UNet2DModel:
    """The network of a saved folder, without weights (on the device "meta").

    Raises:
        FileNotFoundError, ValueError: naming the file and what is wrong with it.
    """
    config = _component_config(folder / UNET_CONFIG, UNet2DModel)
    try:
        with torch.device("meta"):
            return UNet2DModel.from_config(config)
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        # Whatever a library makes of a value that it does not check.
        raise ValueError(
            f"{str(folder / UNET_CONFIG)!r} describes no network: {type(error).__name__}: {error}"
        ) from error


def _component_config(path: Path, cls: type) -> dict:
    config = read_json(path)
    if config.get("_class_name") != cls.__name__:
        raise ValueError(f"{str(path)!r} names the class {config.get('_class_name')!r}; it must be {cls.__name__!r}.")
    known = set(inspect.signature(cls.__init__).parameters)
    if unknown := sorted(key for key in config if key not in known and not key.startswith("_")):
        raise ValueError(f"{str(path)!r} has the key {unknown[0]!r}, which {cls.__name__} does not know.")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The files of weights, the plain one first and then its variants.

    Raises:
        FileNotFoundError: if there are none in safetensors.
        ValueError: if they are split into several files.
    """
    files = sorted((folder / "unet").glob("diffusion_pytorch_model*.safetensors"), key=lambda path: len(path.name))
    if list((folder / "unet").glob("*.safetensors.index*.json")):
        raise ValueError(
            f"The weights in {str(folder / 'unet')!r} are split; save them with `max_shard_size` = '100GB'."
        )
    if not files:
        raise FileNotFoundError(
            f"{str(folder / 'unet')!r} holds no diffusion_pytorch_model.safetensors: weights of other formats are not "
            f"published. Save the pipeline with `safe_serialization` = True."
        )
    return files


def check_weights(path: Path, unet: UNet2DModel) -> None:
    """Whether a file holds exactly the weights of the network, whole; they are not read.

    Raises:
        ValueError: naming the file and the first weight that is missing, too many or of another shape.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118, no mapping
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({error}); copy it anew, or save the model again.") from error
    wanted = {name: tuple(weight.shape) for name, weight in unet.state_dict().items()}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"{str(path)!r} does not belong to {UNET_CONFIG}: {name!r} has the shape {found.get(name)}, and the network's "
                f"is {wanted.get(name)} (None: absent)."
            )


# --- What is published ---


def main_files(folder: Path) -> dict[str, Path | bytes]:
    """What the revision `main` holds: the files of the allow-list, by their path in the repository."""
    paths = {path for pattern in PUBLISHED_PATTERNS for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): path for path in sorted(paths)}


def stock_files(folder: Path) -> dict[str, Path | bytes]:
    """What the revision `stock` holds: the same model for `DDPMPipeline` and `DDPMScheduler`, and no code.

    `DDPMPipeline` knows no classes. A class-conditional network adds the embedding of its class to that of the time: here
    the null class's is added to the bias of the time embedding, and the others are left out, so it draws what
    `class_labels=None` draws. `DDPMScheduler` does not know the analytic variance, which becomes the small one, and takes
    the root of a learned one; there only the prediction is kept.
    """
    files = {path: file for path, file in main_files(folder).items() if path not in CODE_PATHS}
    version = {"_diffusers_version": read_json(folder / MODEL_INDEX).get("_diffusers_version", diffusers_version)}
    files[MODEL_INDEX] = to_json(STOCK_INDEX | version)
    scheduler, unet = read_json(folder / SCHEDULER_CONFIG), read_json(folder / UNET_CONFIG)
    only_prediction = scheduler.get("variance_type") == "learned"
    known = inspect.signature(DDPMScheduler.__init__).parameters
    stock = {key: value for key, value in scheduler.items() if key in known or key == "_diffusers_version"}
    if stock.get("variance_type") in (None, "analytic", "learned"):
        stock["variance_type"] = "fixed_small"
    files[SCHEDULER_CONFIG] = to_json({"_class_name": "DDPMScheduler"} | stock)

    conditional = unet.get("num_class_embeds") is not None
    if conditional or only_prediction:
        channels = unet["in_channels"] if only_prediction else unet["out_channels"]
        files[UNET_CONFIG] = to_json(unet | {"num_class_embeds": None, "out_channels": channels})
        for path in weight_files(folder):
            weights = _stock_weights(safetensors.torch.load_file(path), conditional, channels)
            content = safetensors.torch.save(weights, metadata={"format": "pt"})
            files[path.relative_to(folder).as_posix()] = content
    return files


def _stock_weights(weights: dict[str, torch.Tensor], conditional: bool, channels: int) -> dict[str, torch.Tensor]:
    if conditional:
        null = weights.pop("class_embedding.weight")[-1]
        bias = weights["time_embedding.linear_2.bias"]
        weights["time_embedding.linear_2.bias"] = (bias.double() + null.double()).to(bias.dtype)
    for name in ("conv_out.weight", "conv_out.bias"):
        weights[name] = weights[name][:channels].contiguous()
    return weights
