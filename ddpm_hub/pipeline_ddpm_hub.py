"""`DDPMHubPipeline`: sampling with a `UNet2DModel` and a `DDPMHubScheduler`, loading, and saving.

This file is copied beside every model that is published, so that `DiffusionPipeline.from_pretrained(...,
trust_remote_code=True)` works where this package is not installed. It imports its siblings, torch, numpy, PIL and
diffusers.
"""

import copy
import importlib
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL import Image

# diffusers' loader copies the siblings that this file names, and not what those import in turn: so all are named here.
from .ddpm_argument_checks import check_choice, check_generators, check_integer
from .ddpm_equations import denormalize
from .ddpm_hub_layout import MODEL_INDEX, write_model_index
from .ddpm_hub_upload import Publication, check_token, upload_folder
from .ddpm_noise_schedules import log_alphas_cumprod  # noqa: F401
from .ddpm_sample_arithmetic import draw_noise
from .scheduling_ddpm_hub import DDPMHubScheduler

OUTPUT_TYPES = ("pil", "np", "pt")
_PUSH_OPTIONS = ("repo_id", "private", "token", "commit_message")
_REMEDY = "Train a model with `make train`, or pass the output folder of a training run."


@dataclass(frozen=True, slots=True)
class DDPMHubState:
    """What sampling knows after one reverse step.

    Attributes:
        step (`int`): 0…n−1, the number of the step that was just taken.
        timestep (`int`): t, the timestep (0…T−1) at which the network was called.
        sample (`torch.Tensor`, float32, shape (B, C, H, W)): x_s, the state that the step led to; after the last step
            it is the result.
        pred_original_sample (`torch.Tensor`, like `sample`): x̂_0, what the network took x_t to be a noisy version of.
    """

    step: int
    timestep: int
    sample: torch.Tensor
    pred_original_sample: torch.Tensor


class DDPMHubPipeline(DiffusionPipeline):
    """Draws images from a DDPM: Ho, Jain, Abbeel (2020), arXiv:2006.11239, algorithm 2.

    A class-conditional network has one embedding more than there are classes: the last one is the null class, which
    stands for "no class given" and is what `class_labels=None` samples from.

    Args:
        unet (`UNet2DModel`): predicts ε, x_0 or v, as the scheduler's `prediction_type` says.
        scheduler (`DDPMHubScheduler`): the noise schedule and the reverse step. Calls work on copies, so one pipeline
            can serve several threads.
        id2label (`dict`, *optional*): the name of each class, by its number (`{0: "zero", …}`).
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: UNet2DModel, scheduler: DDPMHubScheduler, id2label: dict | None = None):
        super().__init__()
        _check_scheduler(scheduler)
        self.register_modules(unet=unet, scheduler=scheduler)
        # JSON has no integer keys.
        self.register_to_config(id2label={str(k): v for k, v in id2label.items()} if id2label else None)

    @property
    def num_classes(self) -> int | None:
        """The number of classes that can be asked for; `None` for an unconditional model."""
        embeddings = self.unet.config.num_class_embeds
        return None if embeddings is None else embeddings - 1

    @property
    def id2label(self) -> dict[int, str]:
        """The name of each class; its number, where the model has no names; empty for an unconditional model."""
        names = self.config.id2label or {}
        return {k: names.get(str(k), str(k)) for k in range(self.num_classes or 0)}

    # --- Sampling ---

    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | list[int] | torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        eta: float = 1.0,
        guidance_scale: float = 1.0,
    ) -> ImagePipelineOutput | tuple:
        """Draws images.

        Args:
            batch_size (`int`, *optional*): how many; by default one per class label, or 1.
            class_labels (`int`, `list[int]` or `torch.Tensor` of shape (B,), *optional*): the class of each image, from
                0 to `num_classes` − 1; one number asks for the same class throughout; `None` leaves it open.
            num_inference_steps (`int`, *optional*): n, from 1 to T; by default T, every step that was trained.
            generator (`torch.Generator` or a list of B, *optional*): the source of all noise. With a list, image i
                depends on generator i alone and not on the batch around it (up to the network's rounding).
            output_type (`str`, defaults to `"pil"`): `pil` (a list of `PIL.Image`), `np` (`numpy.ndarray` of float32 in
                [0, 1], shape (B, H, W, C)) or `pt` (`torch.Tensor` of float32 in [0, 1], shape (B, C, H, W)).
            return_dict (`bool`, defaults to `True`): an `ImagePipelineOutput`, or the tuple `(images,)`.
            eta (`float`, defaults to `1.0`): η, from 0 (DDIM: x_T is the only noise) to 1 (DDPM).
            guidance_scale (`float`, defaults to `1.0`): w ≥ 0 of classifier-free guidance (Ho & Salimans 2022,
                arXiv:2207.12598), as diffusers counts it: the prediction is u + w (c − u), c with the class and u without.
                Each step then calls the network once on twice as many images; at 1 it is called with the class alone.

        Raises:
            ValueError: for an argument outside its range, before the network is called.
        """
        self._check_output_type(output_type)
        states = self.stream(batch_size, class_labels, num_inference_steps, generator, eta, guidance_scale)
        with self.progress_bar(total=num_inference_steps or len(self.scheduler)) as progress:
            for state in states:
                progress.update()
        images = self.decode(state.sample, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def stream(
        self,
        batch_size: int | None = None,
        class_labels: int | list[int] | torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float = 1.0,
        guidance_scale: float = 1.0,
    ) -> Iterator[DDPMHubState]:
        """Draws images step by step: a generator of [`DDPMHubState`], one after each of the n reverse steps.

        The arguments are those of [`__call__`] and are checked at once, not at the first `next`. Nothing is computed
        ahead: a generator that is closed has done no more work than was asked of it. [`decode`] makes images of a state.
        """
        labels, batch_size = self._check_labels(class_labels, batch_size)
        check_generators(generator, batch_size)
        if not isinstance(eta, int | float) or not 0 <= eta <= 1:  # the scheduler would say so after the first call
            raise ValueError(f"`eta` is {eta!r}; it must be a number from 0 (DDIM) to 1 (DDPM).")
        self._check_guidance(guidance_scale, class_labels)
        _check_scheduler(self.scheduler)  # it may have been replaced
        scheduler = copy.copy(self.scheduler)  # set_timesteps must not disturb another call on this pipeline
        scheduler.set_timesteps(len(scheduler) if num_inference_steps is None else num_inference_steps)
        return self._stream(scheduler, labels, batch_size, generator, eta, guidance_scale)

    @torch.no_grad()
    def _stream(self, scheduler, labels, batch_size, generator, eta, guidance_scale) -> Iterator[DDPMHubState]:
        device, size = self._execution_device, self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (batch_size, self.unet.config.in_channels, height, width)
        # The state stays float32 whatever the network's precision.
        sample = draw_noise(torch.empty(shape, device=device), generator)
        labels = None if labels is None else labels.to(device)
        for step, timestep in enumerate(scheduler.timesteps.tolist()):
            output = self._predict(sample.to(self.unet.dtype), timestep, labels, guidance_scale)
            sample, pred_original = scheduler.step(
                output, timestep, sample, generator=generator, return_dict=False, eta=eta
            )
            yield DDPMHubState(step, timestep, sample, pred_original)

    def _predict(self, sample, timestep: int, labels: torch.Tensor | None, guidance_scale: float) -> torch.Tensor:
        """The network's output for x_t, with guidance where that changes anything; a learned variance is not guided."""
        if guidance_scale == 1:
            return self.unet(sample, timestep, class_labels=labels, return_dict=False)[0]
        both = torch.cat([labels, torch.full_like(labels, self.num_classes)])
        output = self.unet(torch.cat([sample, sample]), timestep, class_labels=both, return_dict=False)[0]
        conditional, unconditional = output.to(torch.float32).chunk(2)
        channels = sample.shape[1]
        guided = torch.lerp(unconditional[:, :channels], conditional[:, :channels], guidance_scale)
        return torch.cat([guided, conditional[:, channels:]], dim=1)

    def _check_guidance(self, guidance_scale: float, class_labels) -> None:
        if not isinstance(guidance_scale, int | float) or not 0 <= guidance_scale < math.inf:
            raise ValueError(
                f"`guidance_scale` is {guidance_scale!r}; it must be a number of at least 0; 1 is no guidance."
            )
        if guidance_scale != 1 and class_labels is None:
            why = "this model is unconditional" if self.num_classes is None else "`class_labels` is missing"
            raise ValueError(f"`guidance_scale` is {guidance_scale!r}, but {why}; leave it out, or ask for classes.")

    def decode(self, sample: torch.Tensor, output_type: str = "pil") -> list[Image.Image] | np.ndarray | torch.Tensor:
        """Turns samples of shape (B, C, H, W) in [−1, 1] into images; `output_type` as in [`__call__`]."""
        self._check_output_type(output_type)
        if output_type == "pil":
            pixels = denormalize(sample).permute(0, 2, 3, 1).cpu().numpy()
            return [Image.fromarray(p.squeeze(-1) if p.shape[-1] == 1 else p) for p in pixels]
        images = (sample.to(torch.float32) / 2 + 0.5).clamp(0, 1)
        return images if output_type == "pt" else images.permute(0, 2, 3, 1).cpu().numpy()

    def _check_output_type(self, output_type: str) -> None:
        check_choice("output_type", output_type, OUTPUT_TYPES)
        channels = self.unet.config.in_channels  # a learned variance doubles `out_channels`
        if output_type == "pil" and channels not in (1, 3, 4):
            raise ValueError(
                f"`output_type` is 'pil', but the model has {channels} channels and PIL holds 1, 3 or 4; use 'np' or 'pt'."
            )

    def _check_labels(self, class_labels, batch_size) -> tuple[torch.Tensor | None, int]:
        """The labels as a tensor of shape (B,), or `None` for an unconditional network; and B."""
        if batch_size is not None:
            check_integer("batch_size", batch_size, 1, math.inf)
        num_classes = self.num_classes
        if class_labels is None:
            batch_size = 1 if batch_size is None else batch_size
            return (None if num_classes is None else torch.full((batch_size,), num_classes)), batch_size
        if num_classes is None:
            raise ValueError("`class_labels` was given, but this model is unconditional; leave it out.")
        try:
            labels = torch.as_tensor(class_labels)
        except (TypeError, ValueError, RuntimeError):
            labels = torch.empty(0)
        flat = labels.ndim <= 1 and labels.numel() > 0
        whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
        if isinstance(class_labels, list | tuple):
            whole = whole and not any(isinstance(label, bool) for label in class_labels)
        if not flat or not whole:
            raise ValueError(f"`class_labels` is {class_labels!r}; it must be an integer or a flat list of integers.")
        labels = labels.long()
        if labels.ndim == 0:
            labels = labels.expand(1 if batch_size is None else batch_size)
        batch_size = len(labels) if batch_size is None else batch_size
        if len(labels) != batch_size:
            raise ValueError(
                f"`class_labels` has {len(labels)} entries for `batch_size` = {batch_size}; pass one per image."
            )
        wrong = [label for label in labels.tolist() if not 0 <= label < num_classes]
        if wrong:
            raise ValueError(f"`class_labels` contains {wrong[0]}; the classes are 0 to {num_classes - 1}.")
        return labels, batch_size

    # --- Loading and saving ---

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
        unet: UNet2DModel | None = None,
        scheduler: DDPMHubScheduler | None = None,
        **hub_kwargs,
    ) -> "DDPMHubPipeline":
        """Loads a folder or a Hub repository with the classes of this module; no code from the repository is run.

        Weights are read from safetensors alone. A folder that plain diffusers saved (`DDPMPipeline`) loads as well.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): a local folder, or `user/name` on the Hub.
            torch_dtype (`torch.dtype`, *optional*): the network's precision.
            variant (`str`, *optional*): loads `diffusion_pytorch_model.<variant>.safetensors`.
            unet, scheduler (*optional*): components to take in place of the stored ones.
            hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, as in diffusers.

        Raises:
            FileNotFoundError: if a local folder holds no model or no weights.
            OSError: if the Hub has no such model, does not let one read it, or cannot be reached.
            ValueError: if the model is one for another pipeline.
        """
        path = pretrained_model_name_or_path
        allowed = {"revision", "token", "cache_dir", "local_files_only", "force_download"}
        if unknown := sorted(set(hub_kwargs) - allowed):
            raise TypeError(f"from_pretrained() got unexpected arguments: {', '.join(unknown)}.")
        if Path(path).is_dir():
            _check_folder(Path(path), needs_weights=unet is None)
        elif str(path).startswith((".", "/", "~", os.sep)) or str(path).count("/") > 1:
            raise FileNotFoundError(
                f"`pretrained_model_name_or_path` is {str(path)!r}: there is no such folder. {_REMEDY}"
            )
        check_token(hub_kwargs.get("token"))
        try:
            return cls._load(path, torch_dtype, variant, unet, scheduler, hub_kwargs)
        except (OSError, HTTPError) as error:
            if Path(path).is_dir():
                raise
            raise OSError(_why_not_loaded(str(path), hub_kwargs.get("revision"), error)) from error

    @classmethod
    def _load(cls, path, torch_dtype, variant, unet, scheduler, hub_kwargs: dict) -> "DDPMHubPipeline":
        config, commit = cls.load_config(path, return_commit_hash=True, **hub_kwargs)
        if commit is not None:  # all of one commit, also where somebody pushes meanwhile
            hub_kwargs = hub_kwargs | {"revision": commit}
        if unet is None:
            stored = config.get("unet", [None, None])[1]
            if stored != UNet2DModel.__name__:
                raise ValueError(
                    f"`unet` of {str(path)!r} is a {stored}; this pipeline samples with a UNet2DModel only."
                )
            unet, found = UNet2DModel.from_pretrained(
                path,
                subfolder="unet",
                torch_dtype=torch_dtype,
                variant=variant,
                use_safetensors=True,
                output_loading_info=True,
                **hub_kwargs,
            )
            if wrong := sorted([*found["missing_keys"], *found["unexpected_keys"]]):
                raise ValueError(
                    f"The weights of {str(path)!r} do not belong to its network: {wrong[0]!r} is in one of them alone. Save or "
                    f"push the model again."
                )
        if scheduler is None:
            stored = config.get("scheduler", [None, None])[1]
            if stored not in (DDPMHubScheduler.__name__, "DDPMScheduler"):
                raise ValueError(
                    f"`scheduler` of {str(path)!r} is a {stored}, which samples in another way than this pipeline does. Pass "
                    f"`scheduler` = DDPMHubScheduler.from_pretrained({str(path)!r}, subfolder='scheduler') for the same noise "
                    f"schedule, or load with DiffusionPipeline."
                )
            scheduler = DDPMHubScheduler.from_pretrained(path, subfolder="scheduler", **hub_kwargs)
        return cls(unet=unet.eval(), scheduler=scheduler, id2label=config.get("id2label"))

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Writes a folder that loads with this package, and without it by `trust_remote_code=True`.

        Args:
            save_directory (`str` or `os.PathLike`): the folder.
            push_to_hub (`bool`, defaults to `False`): then the folder is published, as by [`push_to_hub`] and with its
                arguments; `repo_id` is by default the folder's name.
            kwargs: `safe_serialization`, `variant` and `max_shard_size`, as in diffusers.
        """
        if unknown := sorted(set(kwargs) - {*_PUSH_OPTIONS, "safe_serialization", "variant", "max_shard_size"}):
            raise TypeError(f"save_pretrained() got unexpected arguments: {', '.join(unknown)}.")
        options = {name: kwargs.pop(name) for name in _PUSH_OPTIONS if name in kwargs}
        super().save_pretrained(save_directory, **kwargs)
        if push_to_hub:
            _push(Path(save_directory), options.pop("repo_id", Path(save_directory).resolve().name), **options)

    def save_config(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Writes `model_index.json` and the source files, the last act of [`save_pretrained`]."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        write_model_index(Path(save_directory), self.config.id2label)

    def push_to_hub(
        self, repo_id: str, *, private: bool = True, token: str | None = None, commit_message: str | None = None
    ) -> Publication:
        """Publishes the model: `main` for this package and for `trust_remote_code=True`, `stock` for diffusers alone.

        Args:
            repo_id (`str`): `user/name`, or `name` in one's own account.
            private (`bool`, defaults to `True`): who sees a repository that does not exist yet; an existing one stays as it is.
            token (`str`, *optional*): by default HF_TOKEN or the one of `hf auth login`.
            commit_message (`str`, *optional*): by default "Upload the model".

        Raises:
            HubError: if the Hub refuses or stays out of reach; each revision is then wholly old or wholly new.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return _push(Path(folder), repo_id, private=private, token=token, commit_message=commit_message)


def _push(folder: Path, repo_id: str, **options) -> Publication:
    if __package__ != "ddpm_hub":  # a copy beside a published model, which cannot write a model card
        return upload_folder(folder, repo_id, **options)
    return importlib.import_module("ddpm_hub.hub").push_folder(folder, repo_id, **options)


def _check_scheduler(scheduler) -> None:
    # By name: in modules that diffusers loads from a folder, the class is another object at each look-up.
    if type(scheduler).__name__ != DDPMHubScheduler.__name__:
        raise ValueError(
            f"`scheduler` is a {type(scheduler).__name__}; it must be a DDPMHubScheduler. "
            f"DDPMHubScheduler.from_config(scheduler.config) has the same noise schedule."
        )


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
