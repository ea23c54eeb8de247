"""What the folder of a saved model holds, so that it loads with this package, by `trust_remote_code`, and in plain diffusers.

This file is copied beside every model that is published: a pipeline that was loaded by trust can be saved and pushed again.
"""

import inspect
import json
import math
import shutil
from pathlib import Path, PurePosixPath

import safetensors
import safetensors.torch
import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers import __version__ as diffusers_version

from .ddpm_argument_checks import LARGEST_SIDE, checked_names
from .ddpm_sampling_settings import checked_sampling
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
    "": (
        "pipeline_ddpm_hub.py",
        "ddpm_editing.py",
        "ddpm_fast_solvers.py",
        "ddpm_hub_layout.py",
        "ddpm_hub_loading.py",
        "ddpm_hub_upload.py",
        "ddpm_image_formats.py",
        "ddpm_interruption.py",
        "ddpm_network_calls.py",
        "ddpm_noise_sources.py",
        "ddpm_samplers.py",
        "ddpm_sampling_settings.py",
        "ddpm_trajectories.py",
        *SCHEDULER_FILES,
    ),
    "scheduler": SCHEDULER_FILES,
}
CODE_PATHS = tuple(str(PurePosixPath(folder, name)) for folder, names in CODE_FILES.items() for name in names)

# All that leaves this machine. Whatever else a folder holds (checkpoints, logs, the run's configuration with its paths)
# stays where it is.
UNET_CONFIG, SCHEDULER_CONFIG = "unet/config.json", "scheduler/scheduler_config.json"
WEIGHTS, WEIGHT_VARIANTS = "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.*.safetensors"
RECORD_PATTERNS = ("README.md", "metrics.json", "*.png", "plots/*.png", "samples/*.png")
PUBLISHED_PATTERNS = (
    MODEL_INDEX,
    UNET_CONFIG,
    SCHEDULER_CONFIG,
    WEIGHTS,
    WEIGHT_VARIANTS,
    *CODE_PATHS,
    *RECORD_PATTERNS,
)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# What is beyond all use, and would take all memory or time.
MOST_LAYERS = 1000
FLOATS = ("F64", "F32", "F16", "BF16")
_SIZES = f"the side of the images, or height and width, from 1 to {LARGEST_SIDE}"

EXPORT_REMEDY = "Run `ddpm-hub export` on the folder, which writes these files anew."
SAVE_REMEDY = "Save the model again."

# What `DDPMScheduler` is told in place of a variance that it does not know, or takes the root of a logarithm of.
STOCK_VARIANCE_TYPES = {
    None: "fixed_small",
    "analytic": "fixed_small",
    "learned": "fixed_small",
    "fixed_large_log": "fixed_large",
}


def write_model_index(folder: Path, id2label: dict | None, sampling: dict | None = None) -> None:
    """Writes the source files, and `model_index.json` last and whole: an interrupted save is never taken for a finished one.

    diffusers' own method copies no source file and names modules of this machine.
    """
    for path in CODE_PATHS:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_source(path), folder / path)
    index = INDEX | {"_diffusers_version": diffusers_version}
    if (folder / SCHEDULER_CONFIG).is_file():
        scheduler = read_json(folder / SCHEDULER_CONFIG).get("_class_name")
        if scheduler != DDPMHubScheduler.__name__:  # somebody has put another in its place: the index says so
            index["scheduler"] = ["diffusers", scheduler]
    index |= {name: value for name, value in (("id2label", id2label), ("sampling", sampling)) if value}
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
        content = json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:  # also of bytes that are no UTF-8
        raise ValueError(f"{str(path)!r} is not JSON ({error}); copy the folder anew. {SAVE_REMEDY}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} holds a {type(content).__name__}; it must be a JSON object. {SAVE_REMEDY}")
    return content


def _finite(text: str) -> float:
    """A number of a JSON file, in which Python would take NaN and Infinity as well."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


# --- Checking ---


def check_folder(folder: Path) -> None:
    """Whether the folder loads in every way, from here and from the Hub; nothing in it is executed.

    Raises:
        FileNotFoundError, ValueError: naming the file, what is wrong with it, and what to do.
    """
    index = read_index(folder)
    path = str(folder / MODEL_INDEX)
    for key, value in INDEX.items():
        if index.get(key) != value:
            remedy = SAVE_REMEDY if key == "unet" else EXPORT_REMEDY
            raise ValueError(f"{path!r} has {key} = {index.get(key)!r}; it must be {value!r}. {remedy}")
    if unknown := sorted(set(index) - set(INDEX) - {"_diffusers_version", "id2label", "sampling"}):
        raise ValueError(f"{path!r} names {unknown[0]!r}, which a DDPMHubPipeline does not have. {EXPORT_REMEDY}")
    for path in CODE_PATHS:
        if not (folder / path).is_file():
            raise FileNotFoundError(f"{str(folder / path)!r} is missing. {EXPORT_REMEDY}")
        if (folder / path).read_bytes() != _source(path).read_bytes():
            raise ValueError(
                f"{str(folder / path)!r} is not this version's file: what others would run is not what was tested. "
                f"{EXPORT_REMEDY}"
            )
    check_model(folder)
    for path, content in main_files(folder).items():
        if path.endswith(".png"):
            with content.open("rb") as file:
                if file.read(len(PNG_SIGNATURE)) != PNG_SIGNATURE:
                    raise ValueError(f"{str(folder / path)!r} is no PNG picture, and would be published; remove it.")


def read_index(folder: Path) -> dict:
    """`model_index.json` of a folder.

    Raises:
        FileNotFoundError, ValueError: naming the folder or the file, and what is wrong with it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}; name the folder of a saved model.")
    return read_json(folder / MODEL_INDEX)


def check_model(folder: Path, scheduler_names: tuple[str, ...] = (DDPMHubScheduler.__name__,)) -> None:
    """Whether network, weights, scheduler and names of the classes are whole and belong together.

    Args:
        folder (`Path`): a saved model.
        scheduler_names (`tuple[str, ...]`): the classes that the scheduler may be of.

    Raises:
        FileNotFoundError, ValueError: naming the file, what is wrong with it, and what to do.
    """
    scheduler, unet = read_scheduler(folder, scheduler_names), read_unet(folder)
    for cls, path in ((DDPMHubScheduler, SCHEDULER_CONFIG), (UNet2DModel, UNET_CONFIG)):
        known = inspect.signature(cls.__init__).parameters
        if unknown := sorted(key for key in read_json(folder / path) if key not in known and not key.startswith("_")):
            raise ValueError(
                f"{str(folder / path)!r} has the key {unknown[0]!r}, which {cls.__name__} does not know; remove it."
            )
    check_network(folder, unet, scheduler)
    if unet.config.sample_size is None:
        raise ValueError(f"{str(folder / UNET_CONFIG)!r} has sample_size = None; it must be {_SIZES}.")
    index, embeddings = read_json(folder / MODEL_INDEX), unet.config.num_class_embeds
    num_classes = None if embeddings is None else embeddings - 1
    try:
        checked_names(index.get("id2label"), num_classes)
        checked_sampling(index.get("sampling"), scheduler, num_classes or None)
    except ValueError as error:
        raise ValueError(f"{str(folder / MODEL_INDEX)!r} does not fit the network: {error} Mend it there.") from error
    for path in weight_files(folder):
        check_weights(path, unet)


def check_network(folder: Path, unet: UNet2DModel, scheduler: DDPMHubScheduler) -> None:
    """What the pipeline asks of a network (on the device "meta") beyond that it can be made. It may not know its size."""
    config, path = unet.config, str(folder / UNET_CONFIG)
    learned = scheduler.config.variance_type in ("learned", "learned_range")
    channels = config.in_channels * (2 if learned else 1)
    if config.out_channels != channels:
        raise ValueError(
            f"{path!r} has out_channels = {config.out_channels}; with in_channels = {config.in_channels} and the variance_type "
            f"{scheduler.config.variance_type!r} of {SCHEDULER_CONFIG} it must be {channels}. {SAVE_REMEDY}"
        )
    size = config.sample_size
    sides = [1, 1] if size is None else [size, size] if isinstance(size, int) else size
    are_whole = isinstance(sides, list | tuple) and [type(side) for side in sides] == [int, int]
    if not are_whole or not 1 <= min(sides) <= max(sides) <= LARGEST_SIDE:
        raise ValueError(f"{path!r} has sample_size = {size!r}; it must be {_SIZES}.")
    if config.class_embed_type is not None:
        raise ValueError(
            f"{path!r} has class_embed_type = {config.class_embed_type!r}; a DDPMHubPipeline samples with an embedding of "
            f"each class alone (null)."
        )
    labels = None if config.num_class_embeds is None else torch.zeros(1, dtype=torch.long, device="meta")
    side = 2 ** len(config.block_out_channels)
    sample = torch.empty(1, config.in_channels, side, side, device="meta")
    try:
        with torch.no_grad(), torch.device("meta"):
            drawn = unet(sample, 0, labels).sample.shape
    except Exception as error:  # whatever torch makes of sizes that do not fit, without computing anything
        raise ValueError(
            f"{path!r} describes a network that cannot be called ({type(error).__name__}: {error}). {SAVE_REMEDY}"
        ) from error
    if drawn != (1, config.out_channels, side, side):
        raise ValueError(
            f"{path!r} describes a network that draws {tuple(drawn)} of {tuple(sample.shape)}. {SAVE_REMEDY}"
        )


def read_scheduler(folder: Path, names: tuple[str, ...] = (DDPMHubScheduler.__name__,)) -> DDPMHubScheduler:
    """The scheduler of a saved folder; `names` are the classes that it may be of.

    Raises:
        FileNotFoundError, ValueError: naming the file and what is wrong with it.
    """
    return _from_config(DDPMHubScheduler, folder / SCHEDULER_CONFIG, names)


def read_unet(folder: Path) -> UNet2DModel:
    """The network of a saved folder, without weights (on the device "meta").

    Raises:
        FileNotFoundError, ValueError: naming the file and what is wrong with it.
    """
    config, path = read_json(folder / UNET_CONFIG), folder / UNET_CONFIG
    layers, levels = config.get("layers_per_block", 1), config.get("block_out_channels", [])
    if isinstance(layers, int) and isinstance(levels, list) and layers * len(levels) > MOST_LAYERS:
        raise ValueError(
            f"{str(path)!r} has layers_per_block = {layers} for {len(levels)} block_out_channels; a network may have {MOST_LAYERS} "
            f"layers. {SAVE_REMEDY}"
        )
    with torch.device("meta"):
        return _from_config(UNet2DModel, path, (UNet2DModel.__name__,))


def _from_config(cls: type, path: Path, names: tuple[str, ...]):
    config = read_json(path)
    if config.get("_class_name") not in names:
        raise ValueError(
            f"{str(path)!r} names the class {config.get('_class_name')!r}; it must be {' or '.join(map(repr, names))}. "
            f"{SAVE_REMEDY}"
        )
    if "quantization_config" in config:
        raise ValueError(
            f"{str(path)!r} has quantization_config, by which diffusers would load another library; remove it, and save the "
            f"weights as floating-point numbers."
        )
    try:
        return cls.from_config({key: value for key, value in config.items() if key != "_class_name"})
    except Exception as error:  # whatever a library makes of a value that it does not check
        raise ValueError(
            f"{str(path)!r} describes no {cls.__name__} ({type(error).__name__}: {error}). Mend it, or save the model again."
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The files of weights, the plain one first and then its variants.

    Raises:
        FileNotFoundError: if there is no plain one in safetensors.
        ValueError: if they are split into several files.
    """
    unet = folder / "unet"
    if split := [*unet.glob("*.safetensors.index*.json"), *unet.glob("*-of-*.safetensors")]:
        raise ValueError(
            f"{str(split[0])!r} is a part of split weights, which are not published. Save the pipeline with "
            f"`max_shard_size` = '100GB'."
        )
    if not (folder / WEIGHTS).is_file():
        others = [path.name for path in sorted(unet.glob("*.safetensors")) + sorted(unet.glob("*.bin"))]
        raise FileNotFoundError(
            f"{str(folder / WEIGHTS)!r} is missing{f' (there is {others[0]})' if others else ''}. Copy the folder whole, or "
            f"save the pipeline with `safe_serialization` = True and no `variant`."
        )
    return [folder / WEIGHTS, *sorted(folder.glob(WEIGHT_VARIANTS))]


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each weight in a file, of which the header alone is read.

    Raises:
        ValueError: naming the file, if it is damaged or holds something else than floating-point numbers.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, no mapping
            kinds = {name: part.get_dtype() for name, part in parts.items()}
            shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({error}). Copy it anew, or save the model again.") from error
    if wrong := [name for name, kind in kinds.items() if kind not in FLOATS]:
        raise ValueError(
            f"{str(path)!r} has {wrong[0]!r} as {kinds[wrong[0]]}; weights are {', '.join(FLOATS)}. {SAVE_REMEDY}"
        )
    return shapes


def check_weights(path: Path, unet: UNet2DModel) -> None:
    """Whether a file holds exactly the weights of the network, whole; they are not read.

    Raises:
        ValueError: naming the file and the first weight that is missing, too many or of another shape.
    """
    found = weight_shapes(path)
    wanted = {name: tuple(weight.shape) for name, weight in unet.state_dict().items()}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            has = f"{name!r} of the shape {found[name]}" if name in found else f"no {name!r}"
            needs = f"the shape {wanted[name]}" if name in wanted else "no such weight"
            raise ValueError(
                f"{str(path)!r} does not belong to {UNET_CONFIG}: it has {has}, and the network has {needs}. Copy both from "
                f"the same model."
            )


# --- What is published ---


def main_files(folder: Path) -> dict[str, Path | bytes]:
    """What the revision `main` holds: the files of the allow-list, by their path in the repository."""
    found = {
        path.relative_to(folder) for pattern in PUBLISHED_PATTERNS for path in folder.glob(pattern) if path.is_file()
    }
    visible = sorted(path for path in found if not any(part.startswith(".") for part in path.parts))
    files: dict[str, Path | bytes] = {path.as_posix(): folder / path for path in visible}
    for path in {UNET_CONFIG, SCHEDULER_CONFIG} & files.keys():
        # Where this machine had loaded it from.
        if "_name_or_path" in (config := read_json(folder / path)):
            files[path] = to_json({key: value for key, value in config.items() if key != "_name_or_path"})
    return files


def stock_files(folder: Path) -> dict[str, Path | bytes]:
    """What the revision `stock` holds: the same model for `DDPMPipeline` and `DDPMScheduler`, and no code.

    `DDPMPipeline` knows no classes. A class-conditional network adds the embedding of its class to that of the time: here
    the null class's is added to the bias of the time embedding, and the others are left out, so it draws what
    `class_labels=None` draws. `DDPMScheduler` does not know every variance ([`STOCK_VARIANCE_TYPES`]); of a network that
    learned its logarithm only the prediction is kept.
    """
    files = {path: file for path, file in main_files(folder).items() if path not in CODE_PATHS}
    version = {"_diffusers_version": read_index(folder).get("_diffusers_version", diffusers_version)}
    files[MODEL_INDEX] = to_json(STOCK_INDEX | version)
    scheduler, unet = read_scheduler(folder).config, read_unet(folder).config
    variance = STOCK_VARIANCE_TYPES.get(scheduler.variance_type, scheduler.variance_type)
    known = [name for name in inspect.signature(DDPMScheduler.__init__).parameters if name in scheduler]
    stock = {name: scheduler[name] for name in known} | {"variance_type": variance}
    files[SCHEDULER_CONFIG] = to_json({"_class_name": "DDPMScheduler"} | version | stock)

    conditional, only_prediction = unet.num_class_embeds is not None, scheduler.variance_type == "learned"
    if conditional or only_prediction:
        channels = unet.in_channels if only_prediction else unet.out_channels
        config = {key: value for key, value in read_json(folder / UNET_CONFIG).items() if key != "_name_or_path"}
        files[UNET_CONFIG] = to_json(config | {"num_class_embeds": None, "out_channels": channels})
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
