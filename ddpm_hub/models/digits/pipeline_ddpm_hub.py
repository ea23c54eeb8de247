"""`DDPMHubPipeline`: sampling with a `UNet2DModel` and a `DDPMHubScheduler`, loading, and saving.

This file is copied beside every model that is published, so that `DiffusionPipeline.from_pretrained(...,
trust_remote_code=True)` works where this package is not installed. It imports its siblings, torch, numpy, PIL and
diffusers.
"""

import importlib
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image

# diffusers' loader copies the siblings that this file names, and not what those import in turn: so all are named here.
from .ddpm_argument_checks import (
    LARGEST_SIDE,
    check_choice,
    check_guidance,
    check_integer,
    checked_labels,
    checked_names,
)
from .ddpm_editing import DDPMEditing
from .ddpm_equations import denormalize  # noqa: F401
from .ddpm_fast_solvers import fast_solver  # noqa: F401
from .ddpm_hub_layout import write_model_index
from .ddpm_hub_loading import load_parts
from .ddpm_hub_upload import Publication, upload_folder
from .ddpm_image_formats import check_output_type, decode_images
from .ddpm_interruption import RunningCalls
from .ddpm_network_calls import CompiledNetwork, NetworkCalls, align_weights
from .ddpm_noise_schedules import log_alphas_cumprod  # noqa: F401
from .ddpm_noise_sources import DrawnNoise, NoiseSource, seeded
from .ddpm_sample_arithmetic import draw_noise  # noqa: F401
from .ddpm_samplers import SAMPLERS, DDPMSampler, SolverSampler, make_sampler
from .ddpm_sampling_settings import SETTINGS, USUAL, SamplingSettings, checked_sampling, settings_for_call
from .ddpm_trajectories import Trajectory, checked_replacement, denoise
from .scheduling_ddpm_hub import LEARNED_VARIANCE_TYPES, DDPMHubScheduler

_PUSH_OPTIONS = ("repo_id", "private", "token", "commit_message")
_CALLBACK_INPUTS = ("sample", "pred_original_sample")
_OPTIONS = ("class_labels", *SETTINGS, "generator", "seed", "timestep_spacing",
            "dynamic_thresholding_ratio", "fast")  # fmt: skip
_lock = threading.Lock()


@dataclass(frozen=True)
class _Call:
    """What one call works with; nothing of it that changes is shared with another."""

    network: NetworkCalls
    sampler: DDPMSampler | SolverSampler
    noise: NoiseSource
    device: torch.device


class DDPMHubPipeline(DDPMEditing, DiffusionPipeline):
    """Draws images from a DDPM: Ho, Jain, Abbeel (2020), arXiv:2006.11239, algorithm 2.

    A class-conditional network has one embedding more than there are classes: the last one is the null class, which
    stands for "no class given" and is what `class_labels=None` samples from.

    Several threads may call one pipeline at once; each gets what it would get alone.

    Args:
        unet (`UNet2DModel`): predicts ε, x_0 or v, as the scheduler's `prediction_type` says.
        scheduler (`DDPMHubScheduler`): the noise schedule and the reverse step. Calls work on copies.
        id2label (`dict`, *optional*): the name of each class, by its number (`{0: "zero", …}`).
        sampling (`dict`, *optional*): how this model is best sampled, where a call does not say: `sampler`,
            `num_inference_steps`, `eta`, `guidance_scale` and `guidance_interval`, or some of them.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = _CALLBACK_INPUTS

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDPMHubScheduler,
        id2label: dict | None = None,
        sampling: dict | None = None,
    ):
        super().__init__()
        _check_scheduler(scheduler)
        align_weights(unet)
        self.register_modules(unet=unet, scheduler=scheduler)
        sampling = checked_sampling(sampling, scheduler, self.num_classes)
        self.register_to_config(id2label=checked_names(id2label, self.num_classes), sampling=sampling)
        self._running = RunningCalls()
        self._compiled: CompiledNetwork | None = None

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

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the network was trained on."""
        size = self.unet.config.sample_size
        if size is None:
            raise ValueError(
                "`sample_size` of the network is None: what it was trained on is not known; give `height` and `width`."
            )
        return (size, size) if isinstance(size, int) else tuple(size)

    # --- Sampling ---

    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | list[int] | torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        eta: float | None = None,
        guidance_scale: float | None = None,
        *,
        sampler: str | None = None,
        seed: int | list[int] | None = None,
        timestep_spacing: str | None = None,
        guidance_interval: tuple[int, int] | None = None,
        dynamic_thresholding_ratio: float | None = None,
        height: int | None = None,
        width: int | None = None,
        sample: torch.Tensor | None = None,
        fast: bool = False,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] = ("sample",),
    ) -> ImagePipelineOutput | tuple:
        """Draws images.

        Where `sampler`, `num_inference_steps`, `eta`, `guidance_scale` or `guidance_interval` are not given, the model's own
        are taken (`sampling`), if it has any.

        Args:
            batch_size (`int`, *optional*): how many; by default one per class label, or 1.
            class_labels (`int`, `list[int]` or `torch.Tensor` of shape (B,), *optional*): the class of each image, from
                0 to `num_classes` − 1; one number asks for the same class throughout; `None` leaves it open.
            num_inference_steps (`int`, *optional*): n, from 1 to T; by default T for `ddpm`, 50 for `ddim`, 20 for others.
            generator (`torch.Generator` or a list of B, *optional*): the source of all noise. With a list, image i
                depends on generator i alone and not on the batch around it (up to the network's rounding).
            output_type (`str`, defaults to `"pil"`): `pil` (a list of `PIL.Image`), `np` (`numpy.ndarray` of float32 in
                [0, 1], shape (B, H, W, C)), `pt` (`torch.Tensor` of float32 in [0, 1], shape (B, C, H, W)) or `sample`
                (the same in [−1, 1], as it comes: only what the scheduler clips is bounded).
            return_dict (`bool`, defaults to `True`): an `ImagePipelineOutput`, or the tuple `(images,)`.
            eta (`float`, *optional*): η of `ddpm` (1 by default) and `ddim` (0): from 0 (x_T is the only noise) to 1.
            guidance_scale (`float`, *optional*): w ≥ 0 of classifier-free guidance (Ho & Salimans 2022,
                arXiv:2207.12598), as diffusers counts it: the prediction is u + w (c − u), c with the class and u without.
                Each step then calls the network once on twice as many images; at 1 it is called with the class alone.
            sampler (`str`, *optional*): `ddpm`; `ddim` (Song et al. 2020, arXiv:2010.02502); `dpm++` (DPM-Solver++ 2M,
                Lu et al. 2022, arXiv:2211.01095); `sde-dpm++` (SDE-DPM-Solver++ 2M, the same paper: with noise in each step);
                `unipc` (Zhao et al. 2023, arXiv:2302.04867).
            seed (`int` or `list[int]`, *optional*): in place of `generator`: one per image; of a number s, image i has
                s + i. The noise is drawn on the CPU, the same one for every device.
            timestep_spacing (`str`, *optional*): `leading`, `trailing` or `linspace`, for `ddpm` and `ddim`; by default the
                scheduler's.
            guidance_interval (`tuple[int, int]`, *optional*): the smallest and the largest timestep at which there is
                guidance (Kynkäänniemi et al. 2024, arXiv:2404.07724); by default, where the model has none, 0 and T−1.
            dynamic_thresholding_ratio (`float`, *optional*): x̂_0 is divided by this quantile of its magnitude, where that
                is above 1, in place of being clipped (Saharia et al. 2022, arXiv:2205.11487).
            height, width (`int`, *optional*): by default those that the network was trained on.
            sample (`torch.Tensor` of shape (B, C, H, W), *optional*): x_T, in place of noise that is drawn; finite.
            fast (`bool`, defaults to `False`): compile the network (torch.compile; CUDA graphs on a GPU). The first call
                for each batch size takes about a minute, the others less time than without; where nothing can be compiled,
                a warning says so. The result is the same up to rounding.
            callback_on_step_end (`Callable`, *optional*): called as `f(pipeline, step, timestep, tensors)` after each step;
                it returns a dictionary, whose `sample`, if there is one that was changed, takes the sample's place. After
                `pipeline._interrupt = True` this call ends and gives what it has.
            callback_on_step_end_tensor_inputs (`list[str]`): what `tensors` holds: `sample`, `pred_original_sample`.

        Raises:
            ValueError: for an argument outside its range, before the network is called.
            torch.OutOfMemoryError: saying which batch fits.
        """
        self._check_output_type(output_type)
        states, total = self._generate(
            batch_size, height, width, sample,
            class_labels=class_labels, num_inference_steps=num_inference_steps, generator=generator, eta=eta,
            guidance_scale=guidance_scale, sampler=sampler, seed=seed, timestep_spacing=timestep_spacing,
            guidance_interval=guidance_interval, dynamic_thresholding_ratio=dynamic_thresholding_ratio, fast=fast,
        )  # fmt: skip
        return self._drain(
            states, total, output_type, return_dict, callback_on_step_end, callback_on_step_end_tensor_inputs
        )

    def stream(
        self,
        batch_size: int | None = None,
        class_labels: int | list[int] | torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float | None = None,
        guidance_scale: float | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        sample: torch.Tensor | None = None,
        **options,
    ) -> Trajectory:
        """Draws images step by step: a generator of [`DDPMHubState`], one after each of the n reverse steps.

        The arguments are those of [`__call__`] (`options`: `sampler`, `seed`, `fast`, …) and are checked at once, not at the
        first `next`. Nothing is computed ahead: a generator that is closed has done no more work than was asked of it. A
        tensor that is sent to it takes the place of the sample. [`decode`] makes images of a state.
        """
        return self._generate(
            batch_size, height, width, sample,
            class_labels=class_labels, num_inference_steps=num_inference_steps, generator=generator, eta=eta,
            guidance_scale=guidance_scale, **options,
        )[0]  # fmt: skip

    def _generate(self, batch_size, height, width, sample, **options) -> tuple[Trajectory, int]:
        size = self._checked_size(height, width)
        if sample is not None and batch_size is None:
            batch_size = len(sample) if isinstance(sample, torch.Tensor) and sample.ndim else None
        call = self._prepare(batch_size, options)
        wanted = (call.network.batch_size, self.unet.config.in_channels, *size)
        if sample is None:
            sample = call.noise.draw(torch.empty(wanted, device=call.device))
        elif not isinstance(sample, torch.Tensor) or sample.shape != wanted or not sample.is_floating_point():
            what = tuple(sample.shape) if isinstance(sample, torch.Tensor) else type(sample).__name__
            raise ValueError(f"`sample` is {what}; x_T must be a floating-point tensor of shape {wanted}.")
        else:
            sample = sample.to(call.device, torch.float32)
            if not bool(torch.isfinite(sample).all()):
                raise ValueError("`sample` holds NaN or infinity; x_T must be finite in float32.")
        return denoise(call.network, call.sampler, call.noise, sample), len(call.sampler.timesteps)

    def _prepare(
        self,
        batch_size: int | None,
        options: dict,
        usual: SamplingSettings = USUAL,
        samplers: tuple[str, ...] = SAMPLERS,
        noise: NoiseSource | None = None,
    ) -> _Call:
        """Checks what every way of sampling is asked, by the names in [`_OPTIONS`], and makes what it works with."""
        if unknown := sorted(set(options) - set(_OPTIONS)):
            raise TypeError(f"got an unexpected option {unknown[0]!r}; there are {', '.join(_OPTIONS)}.")
        options = dict.fromkeys(_OPTIONS) | {"fast": False} | options
        class_labels, fast = options["class_labels"], options["fast"]
        timestep_spacing = options["timestep_spacing"]
        _check_scheduler(self.scheduler)  # it may have been replaced
        self._check_channels()
        labels, batch_size = checked_labels(class_labels, batch_size, self.num_classes)
        given = {name: options[name] for name in SETTINGS}
        settings = settings_for_call(self.config.sampling, given, class_labels is not None, usual, samplers)
        num_train = len(self.scheduler)
        guidance = settings.guidance_scale, settings.guidance_interval
        check_guidance(*guidance, class_labels, self.num_classes, num_train)
        check_choice("fast", fast, (True, False))
        if timestep_spacing is not None and settings.sampler not in ("ddpm", "ddim"):
            raise ValueError(
                f"`timestep_spacing` is {timestep_spacing!r}, but `sampler` = {settings.sampler!r} has its own; leave it out."
            )
        scheduler = self.scheduler.variant(
            timestep_spacing=timestep_spacing, dynamic_thresholding_ratio=options["dynamic_thresholding_ratio"]
        )
        chosen = make_sampler(scheduler, settings.sampler, settings.num_inference_steps, settings.eta)
        noise = noise or DrawnNoise(seeded(options["seed"], options["generator"], batch_size))
        compiled = self._compiled_network() if fast else None
        device = self._execution_device  # diffusers looks through all modules for it
        labels = None if labels is None else labels.to(device)
        network = NetworkCalls(self.unet, chosen.timesteps, labels, batch_size, *guidance, compiled)
        return _Call(network, chosen, noise, device)

    def _compiled_network(self) -> CompiledNetwork:
        with _lock:
            if self._compiled is None or self._compiled.unet is not self.unet:
                self._compiled = CompiledNetwork(self.unet)
            return self._compiled

    def _drain(
        self,
        states: Trajectory,
        total: int,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] = ("sample",),
    ) -> ImagePipelineOutput | tuple:
        """Takes all steps, with a progress bar, and gives the last sample as images."""
        callback = callback_on_step_end
        if callback is not None and not callable(callback):
            raise ValueError(f"`callback_on_step_end` is {callback!r}; it must be a function.")
        callback_inputs = getattr(
            callback, "tensor_inputs", callback_on_step_end_tensor_inputs
        )  # of a diffusers PipelineCallback
        if not isinstance(callback_inputs, list | tuple | None):
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` is {callback_inputs!r}; it must be a list of "
                f"{', '.join(_CALLBACK_INPUTS)}, or some of them."
            )
        for name in callback_inputs or ():
            check_choice("callback_on_step_end_tensor_inputs", name, _CALLBACK_INPUTS)
        replaced, sample = None, None
        with self.progress_bar(total=total) as progress, self._running.one_more() as call:
            while sample is None or not call.interrupted:  # one step at least, so that there is something to give
                try:
                    state = states.send(replaced)
                except StopIteration as end:
                    sample = end.value
                    break
                replaced, sample = None, state.sample
                progress.update()
                if callback is not None:
                    tensors = {name: getattr(state, name) for name in callback_inputs or ()}
                    answer = callback(self, state.step, state.timestep, tensors)
                    if not isinstance(answer, dict | None):
                        raise ValueError(
                            f"`callback_on_step_end` returned {answer!r}; it must be a dictionary, or nothing."
                        )
                    if (replaced := (answer or {}).get("sample")) is not None:
                        sample = checked_replacement(replaced, sample)
            states.close()
        images = self.decode(sample, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @property
    def interrupt(self) -> bool:
        """Whether the call that this thread makes is to end before its last step, as in diffusers' pipelines."""
        return self._running.interrupted

    @property
    def _interrupt(self) -> bool:
        return self._running.interrupted

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        """In a callback: ends that call. In a thread that makes no call: ends all that are under way."""
        self._running.interrupted = value

    def decode(self, sample: torch.Tensor, output_type: str = "pil") -> list[Image.Image] | np.ndarray | torch.Tensor:
        """Turns samples of shape (B, C, H, W) in [−1, 1] into images; `output_type` as in [`__call__`]."""
        self._check_output_type(output_type)
        channels = self.unet.config.in_channels
        if not isinstance(sample, torch.Tensor) or sample.ndim != 4 or sample.shape[1] != channels:
            what = (
                f"has shape {tuple(sample.shape)}"
                if isinstance(sample, torch.Tensor)
                else f"is a {type(sample).__name__}"
            )
            raise ValueError(f"`sample` {what}; it must be a tensor of shape (B, {channels}, H, W).")
        if not sample.is_floating_point():
            raise ValueError(f"`sample` has dtype {sample.dtype}; it must be floating point.")
        return decode_images(sample, output_type)

    def _check_channels(self) -> None:
        config, variance = self.unet.config, self.scheduler.config.variance_type
        wanted = config.in_channels * (2 if variance in LEARNED_VARIANCE_TYPES else 1)
        if config.out_channels != wanted:
            raise ValueError(
                f"`unet` has in_channels = {config.in_channels} and out_channels = {config.out_channels}; with the scheduler's "
                f"`variance_type` = {variance!r} it must have out_channels = {wanted}."
            )

    def _check_output_type(self, output_type: str) -> None:
        check_output_type(output_type, self.unet.config.in_channels)  # a learned variance doubles `out_channels`

    def _checked_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width to draw; the network halves both at every level but the last."""
        factor = 2 ** (len(self.unet.config.block_out_channels) - 1)
        size = []
        trained = (
            (height, width) if self.unet.config.sample_size is None and None not in (height, width) else self.image_size
        )
        for name, value, own in zip(("height", "width"), (height, width), trained, strict=True):
            if value is not None:
                value = check_integer(name, value, 1, LARGEST_SIDE)
                if value != own and value % factor:
                    raise ValueError(f"`{name}` is {value}; for this network it must be a multiple of {factor}.")
            size.append(own if value is None else value)
        return size[0], size[1]

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
        return cls(**load_parts(pretrained_model_name_or_path, torch_dtype, variant, unet, scheduler, hub_kwargs))

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
        write_model_index(Path(save_directory), self.config.id2label, self.config.sampling)

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
