"""Reading a model from a folder or the Hub, and what to say where that fails.

This file is copied beside every model that is published: it imports its siblings, torch, diffusers and huggingface_hub.
"""

import hashlib
import math
import os
import re
from pathlib import Path

import torch
from diffusers import UNet2DModel
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .ddpm_hub_layout import (
    MODEL_INDEX,
    SAVE_REMEDY,
    SCHEDULER_CONFIG,
    UNET_CONFIG,
    check_network,
    read_json,
    read_scheduler,
    read_unet,
    weight_shapes,
)
from .ddpm_hub_upload import check_token
from .scheduling_ddpm_hub import DDPMHubScheduler

_REMEDY = "Train a model with `make train`, or pass the output folder of a training run."
_HUB_OPTIONS = {"revision", "token", "cache_dir", "local_files_only", "force_download"}
_SCHEDULERS = (DDPMHubScheduler.__name__, "DDPMScheduler")


def load_parts(
    path: str | os.PathLike,
    torch_dtype: torch.dtype | None,
    variant: str | None,
    unet: UNet2DModel | None,
    scheduler: DDPMHubScheduler | None,
    hub_options: dict,
) -> dict:
    """The arguments of [`DDPMHubPipeline`] from what is stored; arguments and errors as in its `from_pretrained`."""
    if unknown := sorted(set(hub_options) - _HUB_OPTIONS):
        raise TypeError(f"from_pretrained() got unexpected arguments: {', '.join(unknown)}.")
    folder = Path(path)
    if folder.is_dir():
        _check_folder(folder, needs_weights=unet is None)
        return _read_parts(folder, str(path), torch_dtype, variant, unet, scheduler)
    if str(path).startswith((".", "/", "~", os.sep)) or str(path).count("/") > 1:
        raise FileNotFoundError(f"`pretrained_model_name_or_path` is {str(path)!r}: there is no such folder. {_REMEDY}")
    check_token(hub_options.get("token"))
    try:
        folder = _download(str(path), variant, unet is None, scheduler is None, hub_options)
    except (OSError, HTTPError, ValueError) as error:
        raise OSError(_why_not_loaded(str(path), hub_options.get("revision"), error)) from error
    try:
        return _read_parts(folder, str(path), torch_dtype, variant, unet, scheduler)
    except ValueError as error:  # which names a file in the cache
        raise ValueError(f"`pretrained_model_name_or_path` is {str(path)!r}: {error}") from error


# --- From the Hub ---


def _download(repo_id: str, variant: str | None, needs_unet: bool, needs_scheduler: bool, options: dict) -> Path:
    """The folder of the cache in which a model's files are, all of one commit, also where somebody pushes meanwhile."""
    folder = _download_file(repo_id, MODEL_INDEX, options).parent
    options = options | {"revision": folder.name}
    if needs_scheduler:
        _download_file(repo_id, SCHEDULER_CONFIG, options)
    if not needs_unet:
        return folder
    _download_file(repo_id, UNET_CONFIG, options)
    plain, index = (f"unet/{name}" for name in _weight_names(variant))
    try:
        _download_file(repo_id, index, options)
        names = [f"unet/{name}" for name in _split_names(folder / index)]
    except EntryNotFoundError:  # as nearly always: the weights are in one file
        names = [plain]
    for name in names:
        _download_file(repo_id, name, options)
    return folder


def _download_file(repo_id: str, name: str, options: dict) -> Path:
    """A file in the cache; one that is not what its name there says is fetched anew.

    Raises:
        OSError, HTTPError: if it cannot be had.
    """
    for _ in range(2):
        path = Path(hf_hub_download(repo_id, name, **options))  # nosec B615 # its revision is among the options
        if _is_whole(path):
            return path
        # A disk, or an answer with another file's name, has spoilt it; it would be found here at each later load.
        path.resolve().unlink()
        path.unlink()
    raise OSError(f"{name} is not the file that the Hub says it is, twice; load it again later")


def _is_whole(path: Path) -> bool:
    """Whether the content has the hash that the cache names it by: SHA-256, git's id, or SHA-1; a copy has no such name."""
    named = path.resolve().name
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", named):
        return True
    starts = {40: (b"", b"blob %d\0" % path.stat().st_size), 64: (b"",)}[len(named)]
    found = [hashlib.new("sha1" if len(named) == 40 else "sha256", start) for start in starts]
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            for digest in found:
                digest.update(chunk)
    return named in [digest.hexdigest() for digest in found]


# --- From a folder ---


def _read_parts(folder: Path, named: str, torch_dtype, variant: str | None, unet, scheduler) -> dict:
    """Reads the parts that are not given. Nothing is computed or allocated before files have been seen to fit together."""
    index, chosen = read_json(folder / MODEL_INDEX), (unet, scheduler)
    if unet is None and (stored := _class_in(index, "unet")) != UNet2DModel.__name__:
        raise ValueError(f"`unet` of {named!r} is a {stored}; this pipeline samples with a UNet2DModel only.")
    if scheduler is None:
        if (stored := _class_in(index, "scheduler")) not in _SCHEDULERS:
            raise ValueError(
                f"`scheduler` of {named!r} is a {stored}, which samples in another way than this pipeline does. Pass "
                f"`scheduler` = DDPMHubScheduler.from_pretrained({named!r}, subfolder='scheduler') for the same noise "
                f"schedule, or load with DiffusionPipeline."
            )
        scheduler = read_scheduler(folder, _SCHEDULERS)
    if unet is None:
        described = read_unet(folder)
        if chosen == (None, None):
            check_network(folder, described, scheduler)
        unet = _load_unet(folder, described, torch_dtype, variant)
    return {
        "unet": unet.eval(),
        "scheduler": scheduler,
        "id2label": index.get("id2label"),
        "sampling": index.get("sampling"),
    }


def _class_in(index: dict, part: str) -> str | None:
    entry = index.get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str) else None


def _load_unet(folder: Path, described: UNet2DModel, torch_dtype, variant: str | None) -> UNet2DModel:
    files = _weight_files(folder / "unet", variant)
    shapes = {name: shape for path in files for name, shape in weight_shapes(path).items()}
    stored, wanted = sum(map(math.prod, shapes.values())), sum(w.numel() for w in described.state_dict().values())
    if stored != wanted:  # their names may be those of an older diffusers
        raise ValueError(
            f"{str(files[0])!r} does not belong to {UNET_CONFIG}: there are {stored:,} weights, and the network has {wanted:,}. "
            f"Copy both from the same model. {SAVE_REMEDY}"
        )
    unet, found = UNet2DModel.from_pretrained(
        folder / "unet", torch_dtype=torch_dtype, variant=variant, use_safetensors=True, output_loading_info=True
    )
    if wrong := sorted([*found["missing_keys"], *found["unexpected_keys"]]):
        raise ValueError(
            f"{str(files[0])!r} does not belong to {UNET_CONFIG}: {wrong[0]!r} is in one of them alone. Save or push the model "
            f"again."
        )
    if broken := [name for name, weight in unet.state_dict().items() if not weight.isfinite().all()]:
        raise ValueError(
            f"{str(files[0])!r} gives weights that are no finite numbers: {broken[0]!r}. Copy it anew, or train the model again."
        )
    return unet


def _weight_names(variant: str | None) -> tuple[str, str]:
    """The file of the weights, and the one that says how they are split, where they are."""
    middle = f".{variant}" if variant else ""
    return f"diffusion_pytorch_model{middle}.safetensors", f"diffusion_pytorch_model.safetensors.index{middle}.json"


def _weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The files that diffusers will read: all are safetensors of this folder, whatever an index says."""
    plain, index = (folder / name for name in _weight_names(variant))
    names = {path: _split_names(path) for path in sorted(folder.glob("*index*.json"))}
    files = [folder / name for name in names[index]] if index in names else [plain]
    if missing := [path for path in files if not path.is_file()]:
        raise FileNotFoundError(f"{str(missing[0])!r} is missing: copy the folder whole. {SAVE_REMEDY}")
    return files


def _split_names(index: Path) -> list[str]:
    """The files that an index of split weights names."""
    content = read_json(index)
    places = content.get("weight_map")
    if not isinstance(places, dict) or not places or not isinstance(content.get("metadata"), dict):
        raise ValueError(f"{str(index)!r} does not say in weight_map where the weights are. {SAVE_REMEDY}")
    for name in places.values():
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name):
            raise ValueError(
                f"{str(index)!r} names {name!r}; weights are read from safetensors in the same folder alone. {SAVE_REMEDY}"
            )
    return sorted(set(places.values()))


def _check_folder(folder: Path, needs_weights: bool) -> None:
    """Says what a local folder lacks, before anything is loaded."""
    if not (folder / MODEL_INDEX).is_file():
        raise FileNotFoundError(
            f"`pretrained_model_name_or_path` is {str(folder)!r}, which holds no model_index.json: it is no saved "
            f"pipeline. {_REMEDY}"
        )
    if needs_weights and not list((folder / "unet").glob("*.safetensors")):
        raise FileNotFoundError(
            f"`pretrained_model_name_or_path` is {str(folder)!r}, which has no weights (unet/*.safetensors). Train the "
            f"model again, or copy the folder whole."
        )


def _why_not_loaded(path: str, revision: str | None, error: Exception) -> str:
    """Says of a model that is not here, and that the Hub did not give, why, and what to do."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:  # they may form a ring
        causes.append(cause)
    first = f"`pretrained_model_name_or_path` is {path!r}: no such folder is here, and "

    def find(*kinds: type) -> Exception | None:
        return next((cause for cause in causes if isinstance(cause, kinds)), None)

    refused = find(HfHubHTTPError)
    status = refused.response.status_code if refused else None
    if find(OfflineModeIsEnabled):
        return f"{first}HF_HUB_OFFLINE is set while the cache does not hold it whole. Load it once without. {_REMEDY}"
    if find(RepositoryNotFoundError):
        return (
            f"{first}the Hub has no repository of that name, or the token may not see it. Check the name; for a private one "
            f"run `hf auth login`, or set HF_TOKEN. {_REMEDY}"
        )
    if find(RevisionNotFoundError):
        return f"{first}the repository has no revision {revision!r}. Leave `revision` out, or take one from its page."
    if status in (401, 403):
        return (
            f"{first}the Hub does not accept the token ({status}): it is expired, revoked or mistyped, or may not read this. "
            f"Run `hf auth login`, or unset HF_TOKEN for a public repository."
        )
    if status not in (None, 404):
        return f"{first}the Hub is out of order ({status}). Try again later."
    if find(HTTPError) and status is None:
        return f"{first}the Hub cannot be reached, or breaks off ({type(find(HTTPError)).__name__}). Try again later."
    if find(EntryNotFoundError):
        return f"{first}the repository, or the cache, is no whole DDPMHubPipeline: {error}"
    return f"{first}what the Hub gave is not whole ({error}). Load it again later."
