"""Reading a model from a folder or the Hub, and what to say where that fails.

This file is copied beside every model that is published: it imports its siblings, torch, diffusers and huggingface_hub.
"""

import os
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UNet2DModel
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .ddpm_hub_layout import MODEL_INDEX
from .ddpm_hub_upload import check_token
from .scheduling_ddpm_hub import DDPMHubScheduler

_REMEDY = "Train a model with `make train`, or pass the output folder of a training run."
_HUB_OPTIONS = {"revision", "token", "cache_dir", "local_files_only", "force_download"}


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
    if Path(path).is_dir():
        _check_folder(Path(path), needs_weights=unet is None)
    elif str(path).startswith((".", "/", "~", os.sep)) or str(path).count("/") > 1:
        raise FileNotFoundError(f"`pretrained_model_name_or_path` is {str(path)!r}: there is no such folder. {_REMEDY}")
    check_token(hub_options.get("token"))
    try:
        config, commit = DiffusionPipeline.load_config(path, return_commit_hash=True, **hub_options)
        if commit is not None:  # all of one commit, also where somebody pushes meanwhile
            hub_options = hub_options | {"revision": commit}
        if unet is None:
            unet = _load_unet(path, config, torch_dtype, variant, hub_options)
        if scheduler is None:
            scheduler = _load_scheduler(path, config, hub_options)
    except (OSError, HTTPError) as error:
        if Path(path).is_dir():
            raise
        raise OSError(_why_not_loaded(str(path), hub_options.get("revision"), error)) from error
    stored = {name: config.get(name) for name in ("id2label", "sampling")}
    return {"unet": unet.eval(), "scheduler": scheduler} | stored


def _load_unet(path, config: dict, torch_dtype, variant, hub_options: dict) -> UNet2DModel:
    stored = config.get("unet", [None, None])[1]
    if stored != UNet2DModel.__name__:
        raise ValueError(f"`unet` of {str(path)!r} is a {stored}; this pipeline samples with a UNet2DModel only.")
    unet, found = UNet2DModel.from_pretrained(
        path,
        subfolder="unet",
        torch_dtype=torch_dtype,
        variant=variant,
        use_safetensors=True,
        output_loading_info=True,
        **hub_options,
    )
    if wrong := sorted([*found["missing_keys"], *found["unexpected_keys"]]):
        raise ValueError(
            f"The weights of {str(path)!r} do not belong to its network: {wrong[0]!r} is in one of them alone. Save or "
            f"push the model again."
        )
    return unet


def _load_scheduler(path, config: dict, hub_options: dict) -> DDPMHubScheduler:
    stored = config.get("scheduler", [None, None])[1]
    if stored not in (DDPMHubScheduler.__name__, "DDPMScheduler"):
        raise ValueError(
            f"`scheduler` of {str(path)!r} is a {stored}, which samples in another way than this pipeline does. Pass "
            f"`scheduler` = DDPMHubScheduler.from_pretrained({str(path)!r}, subfolder='scheduler') for the same noise "
            f"schedule, or load with DiffusionPipeline."
        )
    return DDPMHubScheduler.from_pretrained(path, subfolder="scheduler", **hub_options)


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
    while cause := causes[-1].__cause__ or causes[-1].__context__:
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
    return f"{first}what the Hub gave does not load ({type(error).__name__}: {error})."
