"""What a configuration may say: single values, options that only work together, and options that would have no effect.

Everything here is known before any data is read, and nothing heavy is imported. What only torch and diffusers know (the
noise schedule, the arguments of the U-Net) is checked by `build_model`, also before the data.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train_config import TrainConfig

LARGEST_SEED = 4_000_000_000  # numpy's end at 2**32 - 1 (4,294,967,295); sample i has the seed `seed` + i

# A power-function average weighs step τ ∝ τ^γ; its relative width is √((γ+1) / ((γ+2)² (γ+3))) (arXiv:2312.02696,
# section 3.1), which is 1/√12 at γ = 0, where all steps weigh the same. Beyond it the oldest ones would weigh most.
LARGEST_EMA_STD = 12**-0.5

# [`TimestepSampler`] draws by importance once it has this many losses of every timestep (arXiv:2102.09672, section 3.3).
LOSSES_PER_TIMESTEP = 10

# The packages of each tracker; one of them is enough.
TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}

CHOICES = {
    "image_mode": (None, "L", "RGB", "RGBA"),
    "unreadable_images": ("refuse", "skip"),
    # The scheduler knows more: the analytic one is estimated once the network is trained.
    "variance_type": ("fixed_small", "fixed_large", "learned_range"),
    "sampler": ("ddpm", "ddim", "dpm++", "sde-dpm++", "unipc"),
    "objective": ("simple", "vlb", "hybrid", "simple_and_vlb"),
    "loss_weighting": ("none", "snr", "min_snr"),
    "timestep_sampling": ("uniform", "stratified", "importance"),
    "optimizer": ("adamw", "muon"),
    "lr_schedule": ("constant", "cosine", "linear"),
    "mixed_precision": ("no", "fp16", "bf16", "auto"),
}

# What `unet_options` cannot say, because another key does, or the data.
SET_BY = {
    "sample_size": "`resolution`",
    "in_channels": "the data, or `image_mode`",
    "out_channels": "the data and `variance_type`, of which learned_range takes twice the channels",
    "block_out_channels": "`block_out_channels`",
    "layers_per_block": "`layers_per_block`",
    "down_block_types": "`attention_resolutions`",
    "up_block_types": "`attention_resolutions`",
    "attention_head_dim": "`attention_head_dim`",
    "norm_num_groups": "`norm_num_groups`",
    "dropout": "`dropout`",
    "num_class_embeds": "the data and `class_conditional`",
    "class_embed_type": "`class_conditional`",
    "num_train_timesteps": "`num_train_timesteps`",
}


class UserError(ValueError):
    """Something that the user gave cannot work. Shown without a traceback; the process ends with status 2."""


def check_config(config: TrainConfig) -> None:
    """Refuses what cannot work, and what would be ignored in silence.

    Raises:
        UserError: naming the key, its value, what is allowed or why it cannot be, and what to do.
    """
    _check_nulls(config)
    _check_choices(config)
    _check_numbers(config)
    _check_texts(config)
    _check_data(config)
    _check_network(config)
    _check_objective(config)
    _check_steps(config)
    _check_averages(config)
    _check_trackers(config)
    _check_effect(config)


def _require(config: TrainConfig, name: str, holds: bool, allowed: str) -> None:
    if not holds:
        raise UserError(f"`{name}` is {_shown(getattr(config, name))}; it must be {allowed}.")


def _shown(value) -> str:
    return repr(list(value) if isinstance(value, tuple) else value)


def _check_nulls(config: TrainConfig) -> None:
    for field in dataclasses.fields(config):
        nullable = field.default is None or field.name == "attention_head_dim"
        if getattr(config, field.name) is None and not nullable:
            default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
            raise UserError(f"`{field.name}` is null; leave it out for the default, {_shown(default)}.")


def _check_choices(config: TrainConfig) -> None:
    for name, allowed in CHOICES.items():
        _require(config, name, getattr(config, name) in allowed, f"one of {', '.join(str(a) for a in allowed if a)}")


def _check_numbers(config: TrainConfig) -> None:
    for name in ("shuffle_buffer", "validation_images", "validation_every", "layers_per_block", "norm_num_groups",
                 "num_train_timesteps", "max_train_steps", "batch_size", "gradient_accumulation_steps", "max_skipped_steps",
                 "ema_snapshot_every", "checkpoints_kept", "log_every", "num_inference_steps"):  # fmt: skip
        _require(config, name, getattr(config, name) >= 1, "at least 1")
    for name in ("random_crop", "warmup_steps", "checkpoint_every", "sample_every", "fidelity_samples"):
        _require(config, name, getattr(config, name) >= 0, "at least 0")
    for name in ("learning_rate", "max_grad_norm", "vlb_weight", "min_snr_gamma"):
        _require(config, name, 0 < getattr(config, name) < math.inf, "a positive number")
    share = config.importance_uniform_share
    _require(config, "importance_uniform_share", 0 < share <= 1, "above 0 and at most 1, which is uniform")
    _require(config, "weight_decay", 0 <= config.weight_decay < math.inf, "zero or a positive number")
    for name in ("dropout", "class_dropout"):
        _require(config, name, 0 <= getattr(config, name) < 1, "from 0 to below 1")
    _require(config, "eta", config.eta is None or 0 <= config.eta <= 1, "from 0 (DDIM) to 1 (DDPM)")
    _require(
        config, "guidance_scale", 0 <= config.guidance_scale < math.inf, "zero or a positive number; 1 is no guidance"
    )
    interval = (0, 0) if config.guidance_interval is None else config.guidance_interval
    are_two = len(interval) == 2 and all(isinstance(bound, int) for bound in interval)
    _require(config, "guidance_interval", are_two and 0 <= interval[0] <= interval[1] < config.num_train_timesteps,
            f"the smallest and the largest guided timestep, from 0 to {config.num_train_timesteps - 1}")  # fmt: skip
    _require(config, "seed", 0 <= config.seed <= LARGEST_SEED,
            f"from 0 to {LARGEST_SEED}; the samples have it and the seeds that follow")  # fmt: skip


def _check_texts(config: TrainConfig) -> None:
    for name, meaning in {
        "dataset_name": "a Hub data set or a folder",
        "split": "a split of the data set",
        "output_dir": "a folder",
        "tracker_project": "a name",
    }.items():
        _require(config, name, bool(getattr(config, name).strip()), meaning)
    for name in ("dataset_config", "image_column", "label_column", "cache_dir", "validation_split", "init_from"):
        value = getattr(config, name)
        _require(config, name, value is None or bool(value.strip()), "a name, or left out")
    _require(config, "push_to_hub",
            config.push_to_hub is None or re.fullmatch(r"[\w.-]+/[\w.-]+", config.push_to_hub, re.ASCII) is not None,
            "USER/NAME of a repository on the Hub")  # fmt: skip
    _require(config, "license", re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", config.license) is not None,
            "an identifier of the Hub like apache-2.0, mit or other: small letters, digits and . + -")  # fmt: skip


def _check_data(config: TrainConfig) -> None:
    size = image_size(config)
    _require(config, "resolution", size is None or min(size) >= 1, "at least 1, or left out")
    if config.random_crop and size is None:
        raise UserError(
            f"`random_crop` is {config.random_crop} pixels more than `resolution`, which is left out; add --resolution, "
            f"the height and width of the window."
        )
    if config.label_column is not None and config.label_column == config.image_column:
        raise UserError(
            f"`label_column` is {config.label_column!r}, the same as `image_column`; leave one of them out."
        )
    for name in ("split", "validation_split"):
        value = getattr(config, name)
        if config.streaming and value is not None and "[" in value:
            raise UserError(
                f"`{name}` is {value!r}, a part of a split, which a stream does not know beforehand; take a whole split, or "
                f"leave `streaming` out."
            )


def image_size(config: TrainConfig) -> tuple[int, int] | None:
    """Height and width, where `resolution` says them."""
    if config.resolution is None:
        return None
    return tuple(config.resolution) if isinstance(config.resolution, tuple | list) else (config.resolution,) * 2


# --- The network ---


def _check_network(config: TrainConfig) -> None:
    _require(config, "block_out_channels", len(config.block_out_channels) >= 1, "a list of at least one number")
    for channels in config.block_out_channels:
        _require(config, "block_out_channels", channels >= 1 and channels % config.norm_num_groups == 0,
                f"positive multiples of norm_num_groups = {config.norm_num_groups}")  # fmt: skip
    _require(config, "attention_head_dim", config.attention_head_dim is None or config.attention_head_dim >= 1,
            "at least 1, or null for one head")  # fmt: skip
    for name in config.unet_options:
        if name in SET_BY:
            raise UserError(f"`unet_options` has {name}, which is set by {SET_BY[name]}; leave it out of unet_options.")
    if config.unet_options.get("time_embedding_type") == "fourier":
        raise UserError(
            "`unet_options` has time_embedding_type = 'fourier', which takes the logarithm of t and divides by it, and the "
            "first t is 0; use positional or learned."
        )
    size = image_size(config)
    if size is None:
        _check_heads(config, [False] * len(config.block_out_channels))
    else:
        attention_levels(config, *size)


def attention_levels(config: TrainConfig, height: int, width: int) -> list[bool]:
    """At which of the U-Net's levels there is self-attention, beside the middle.

    Raises:
        UserError: if the images cannot be halved as often as `block_out_channels` asks, if no level has a height of
            `attention_resolutions`, or if the heads do not divide the channels.
    """
    levels = len(config.block_out_channels)
    possible = 1
    while height % 2**possible == 0 and width % 2**possible == 0:
        possible += 1
    if levels > possible:
        factor = 2 ** (levels - 1)
        fitting = [max(factor, round(side / factor) * factor) for side in (height, width)]
        shown = fitting[0] if fitting[0] == fitting[1] else f"'[{fitting[0]},{fitting[1]}]'"
        raise UserError(
            f"`block_out_channels` has {levels} levels, which halve the images {levels - 1} times, but {width}×{height} "
            f"images can be halved {possible - 1} times. Use at most {possible} levels, or --resolution {shown}."
        )
    heights = [height >> level for level in range(levels)]
    for asked in config.attention_resolutions:
        if asked not in heights:
            raise UserError(
                f"`attention_resolutions` is {list(config.attention_resolutions)}, but no level of the U-Net has height "
                f"{asked}; the heights are {', '.join(map(str, heights))}."
            )
    has_attention = [height in config.attention_resolutions for height in heights]
    _check_heads(config, has_attention)
    return has_attention


def _check_heads(config: TrainConfig, has_attention: list[bool]) -> None:
    """The middle, which has the channels of the last level, has attention unless `unet_options` says otherwise."""
    if config.attention_head_dim is None:
        return
    middle = (
        config.unet_options.get("add_attention", True) and config.unet_options.get("mid_block_type", "") is not None
    )
    attends = [*has_attention[:-1], has_attention[-1] or middle]
    for channels, attending in zip(config.block_out_channels, attends, strict=True):
        if attending and channels % config.attention_head_dim:
            raise UserError(
                f"`block_out_channels` is {list(config.block_out_channels)}; the last level and those with attention must "
                f"be multiples of attention_head_dim = {config.attention_head_dim}, the width of an attention head."
            )


# --- What is trained ---


def _check_objective(config: TrainConfig) -> None:
    if config.rescale_betas_zero_snr and config.prediction_type == "epsilon":
        raise UserError(
            "`rescale_betas_zero_snr` is True and `prediction_type` is 'epsilon': at t = T the image is then pure noise, "
            "and ε says nothing about x_0. Add --prediction_type v_prediction (or sample)."
        )
    if config.rescale_betas_zero_snr and config.loss_weighting != "none":
        raise UserError(
            f"`loss_weighting` is {config.loss_weighting!r} and `rescale_betas_zero_snr` is True: with an SNR of 0 the weight "
            f"at t = T is 0 for {config.prediction_type}, so the first step of sampling would not be trained. Add "
            f"--loss_weighting none."
        )
    if config.variance_type == "learned_range" and config.objective == "simple":
        raise UserError(
            "`variance_type` is 'learned_range' and `objective` is 'simple', which trains no variance; add --objective "
            "hybrid (or vlb, or simple_and_vlb)."
        )
    if config.variance_type != "learned_range" and config.objective == "hybrid":
        raise UserError(
            f"`objective` is 'hybrid' and `variance_type` is {config.variance_type!r}: the bound in it trains the variance "
            f"alone, and there is none to train. Add --variance_type learned_range, or --objective simple."
        )
    has_own_noise = config.sampler == "sde-dpm++"
    if config.eta is not None and (has_own_noise or (config.eta and config.sampler not in ("ddpm", "ddim"))):
        does = "has its own noise" if has_own_noise else "adds no noise"
        raise UserError(
            f"`eta` is {config.eta} and `sampler` is {config.sampler!r}, which {does}; leave eta out, or add --sampler ddpm."
        )
    if config.guidance_scale != 1 and not (config.class_conditional and config.class_dropout):
        lacking = "class_conditional" if not config.class_conditional else "class_dropout"
        raise UserError(
            f"`guidance_scale` is {config.guidance_scale} and `{lacking}` is {_shown(getattr(config, lacking))}: guidance "
            f"compares what is drawn with the class and without, and both must be trained. Leave guidance_scale out, or "
            f"add --{lacking} {'true' if lacking == 'class_conditional' else '0.1'}."
        )
    if config.objective == "vlb" and config.loss_weighting != "none":
        raise UserError(
            f"`loss_weighting` is {config.loss_weighting!r} and `objective` is 'vlb', which has weights of its own; add "
            f"--loss_weighting none, or --objective simple."
        )


def _check_steps(config: TrainConfig) -> None:
    _require(config, "warmup_steps", config.warmup_steps <= config.max_train_steps,
            f"at most max_train_steps = {config.max_train_steps}; add --warmup_steps {config.max_train_steps // 10}")  # fmt: skip
    _require(config, "num_inference_steps", config.num_inference_steps <= config.num_train_timesteps,
            f"at most num_train_timesteps = {config.num_train_timesteps}")  # fmt: skip
    _require(config, "batch_size", config.batch_size % config.gradient_accumulation_steps == 0,
            f"a multiple of gradient_accumulation_steps = {config.gradient_accumulation_steps}")  # fmt: skip
    drawn, needed = config.max_train_steps * config.batch_size, LOSSES_PER_TIMESTEP * config.num_train_timesteps
    if config.timestep_sampling == "importance" and drawn < needed:
        raise UserError(
            f"`timestep_sampling` is 'importance', which needs {LOSSES_PER_TIMESTEP} losses of each of the "
            f"{config.num_train_timesteps} timesteps before it begins, but max_train_steps × batch_size = {drawn} images "
            f"are fewer than {needed}; train longer, or add --timestep_sampling uniform."
        )


def _check_averages(config: TrainConfig) -> None:
    if not config.ema_decays and not config.ema_stds:
        raise UserError(
            "`ema_decays` and `ema_stds` are both empty; the first average is the model that is saved. Leave `ema_decays` "
            "out, or give [0] for the weights as they are."
        )
    for decay in config.ema_decays:
        _require(config, "ema_decays", 0 <= decay < 1, "numbers from 0 to below 1")
    for std in config.ema_stds:
        _require(config, "ema_stds", 0 < std < LARGEST_EMA_STD,
                "numbers above 0 and below 1/√12 ≈ 0.2887, the width at which all steps weigh the same")  # fmt: skip
    for name in ("ema_decays", "ema_stds"):
        _require(config, name, len(set(getattr(config, name))) == len(getattr(config, name)), "different numbers")


def _check_trackers(config: TrainConfig) -> None:
    for tracker in config.report_to:
        _require(config, "report_to", tracker in TRACKERS, f"a list of {', '.join(TRACKERS)}")
    _require(config, "report_to", len(set(config.report_to)) == len(config.report_to), "different trackers")
    for tracker in config.report_to:
        if not any(importlib.util.find_spec(package) for package in TRACKERS[tracker]):
            package = TRACKERS[tracker][0]
            raise UserError(
                f"`report_to` has {tracker}, whose package is not installed; run `pip install {package}`, or leave it out."
            )


def _check_effect(config: TrainConfig) -> None:
    """Refuses options that were changed for nothing.

    Only where a person would think that something else is trained or measured than is. What says nothing about this run
    alone (`class_dropout` for data without classes, `hub_private_repo`) may stay in a file that serves several.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, has_effect, remedy in (
        ("shuffle_buffer", config.streaming, "streaming true"),
        ("validation_images", config.validation_split is not None, "validation_split NAME"),
        ("validation_every", config.validation_split is not None, "validation_split NAME"),
        ("vlb_weight", config.objective in ("hybrid", "simple_and_vlb"), "objective hybrid or simple_and_vlb"),
        ("min_snr_gamma", config.loss_weighting == "min_snr", "loss_weighting min_snr"),
        (
            "importance_uniform_share",
            config.timestep_sampling == "importance",
            "timestep_sampling importance",
        ),
        ("ema_snapshot_every", bool(config.ema_stds), "ema_stds '[0.05,0.1]'"),
        ("guidance_interval", config.guidance_scale != 1, "guidance_scale 2"),
        ("beta_start", config.beta_schedule != "squaredcos_cap_v2", "beta_schedule linear"),
        ("beta_end", config.beta_schedule != "squaredcos_cap_v2", "beta_schedule linear"),
    ):
        value = getattr(config, name)
        if value != defaults[name] and not has_effect:
            raise UserError(
                f"`{name}` is {_shown(value)}, which would have no effect; add --{remedy}, or leave {name} out."
            )
