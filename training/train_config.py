"""The configuration of a training run: one dataclass is the command line, the YAML file and the record of the run.

Imports nothing heavy, so that `train.py --help` is instant and a mistake is told at once.
"""

import dataclasses
import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
LARGEST_SEED = 4_000_000_000  # numpy's end at 2**32 - 1 (4,294,967,295); sample i has the seed `seed` + i


class UserError(ValueError):
    """Something that the user gave cannot work. Shown without a traceback; the process ends with status 2."""


@dataclass(frozen=True)
class TrainConfig:
    """The defaults train the embedded digits.

    Args:
        dataset_name: a Hub data set, a local folder (Parquet files or an image folder), or a data set saved with
            `save_to_disk`. A relative folder is looked up in the working directory, then in this repository.
        dataset_config: the configuration of a data set that has several.
        split: the split to train on.
        image_column: the column with the images; by default the one whose feature type is `Image`.
        label_column: the column with the classes; by default the one whose feature type is `ClassLabel`, if any.
        class_conditional: whether to train on the classes, where there are any.
        resolution: height and width of the images; by default the data's own. Images of another size are scaled so that
            the shorter side fits, and cropped in the middle.
        image_mode: convert every image to `L`, `RGB` or `RGBA`; by default the data's own mode (1, 3 or 4 channels).
        output_dir: where the model, its grids and its figures go. An earlier run there is kept beside it.
        license: under which the model is published, as an identifier of the Hub (`mit`, `cc-by-4.0`, …).
        block_out_channels: channels of the U-Net at each resolution; each further level halves the image.
        layers_per_block: residual blocks at each level.
        attention_resolutions: image heights at which the U-Net has self-attention, beside the middle.
        norm_num_groups: groups of the U-Net's group normalisation.
        dropout: drop-out in the U-Net.
        num_train_timesteps: T.
        beta_schedule: `linear`, `scaled_linear`, `squaredcos_cap_v2` or `sigmoid`.
        beta_start: β_1, of all schedules but `squaredcos_cap_v2`.
        beta_end: β_T, likewise.
        prediction_type: what the network predicts: `epsilon`, `sample` or `v_prediction`.
        variance_type: the variance of the reverse step: `fixed_small` or `fixed_large`.
        class_dropout: how often a class is replaced by the null class, so that the model also learns to do without.
        max_train_steps: optimizer steps.
        batch_size: images per optimizer step, over all processes and accumulation steps.
        gradient_accumulation_steps: into how many passes each process splits its part of a batch.
        learning_rate: the highest rate; it falls to zero along a cosine, counted in optimizer steps.
        warmup_steps: optimizer steps in which the rate rises from zero.
        weight_decay: of AdamW.
        max_grad_norm: gradients are scaled down to this norm.
        ema_decay: the largest decay of the averaged weights; early on it is lower, 1 − (1 + step)^(−3/4).
        mixed_precision: `no`, `fp16` or `bf16`, for the network only.
        seed: of the weights, the order of the data, the noise and the samples.
        sample_every: optimizer steps between sample grids; 0 for none but the last.
        num_inference_steps: steps with which the grids and the scored samples are drawn.
        fidelity_samples: class-conditional samples that a classifier judges at the end; 0 for none.
        push_to_hub: `USER/NAME` on the Hub, where the finished model is published; needs HF_TOKEN or `hf auth login`.
        hub_private_repo: whether only its owner sees that repository, if it is new.
    """

    dataset_name: str = "training/data/digits"
    dataset_config: str | None = None
    split: str = "train"
    image_column: str | None = None
    label_column: str | None = None
    class_conditional: bool = True
    resolution: int | None = None
    image_mode: str | None = None
    output_dir: str = "outputs/digits"
    license: str = "apache-2.0"

    block_out_channels: tuple[int, ...] = (32, 64)
    layers_per_block: int = 1
    attention_resolutions: tuple[int, ...] = ()
    norm_num_groups: int = 8
    dropout: float = 0.0

    num_train_timesteps: int = 1000
    beta_schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    prediction_type: str = "epsilon"
    variance_type: str = "fixed_small"

    class_dropout: float = 0.1
    max_train_steps: int = 1200
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    mixed_precision: str = "no"
    seed: int = 0

    sample_every: int = 500
    num_inference_steps: int = 100
    fidelity_samples: int = 200

    push_to_hub: str | None = None
    hub_private_repo: bool = True

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is None and field.default is not None:
                raise UserError(f"`{field.name}` is null; leave it out for the default, {field.default!r}.")
        for name in ("max_train_steps", "batch_size", "gradient_accumulation_steps", "layers_per_block",
                     "norm_num_groups", "num_train_timesteps", "num_inference_steps"):  # fmt: skip
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("warmup_steps", "sample_every", "fidelity_samples"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        self._check("resolution", self.resolution is None or self.resolution >= 1, "at least 1, or left out")
        self._check(
            "warmup_steps",
            self.warmup_steps <= self.max_train_steps,
            f"at most max_train_steps = {self.max_train_steps}; add --warmup_steps {self.max_train_steps // 10}",
        )
        self._check("seed", 0 <= self.seed <= LARGEST_SEED,
                    f"from 0 to {LARGEST_SEED}; the samples have it and the seeds that follow")  # fmt: skip
        self._check("num_inference_steps", self.num_inference_steps <= self.num_train_timesteps,
                    f"at most num_train_timesteps = {self.num_train_timesteps}")  # fmt: skip
        self._check("batch_size", self.batch_size % self.gradient_accumulation_steps == 0,
                    f"a multiple of gradient_accumulation_steps = {self.gradient_accumulation_steps}")  # fmt: skip
        for name in ("learning_rate", "max_grad_norm"):
            self._check(name, 0 < getattr(self, name) < float("inf"), "a positive number")
        self._check("weight_decay", 0 <= self.weight_decay < float("inf"), "zero or a positive number")
        for name in ("dropout", "class_dropout", "ema_decay"):
            self._check(name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        choices = {
            "mixed_precision": ("no", "fp16", "bf16"),
            "image_mode": (None, "L", "RGB", "RGBA"),
            # The scheduler knows more: a learned variance, which this loss does not train, and the analytic one, which is
            # estimated once the network is trained.
            "variance_type": ("fixed_small", "fixed_large"),
        }
        for name, allowed in choices.items():
            self._check(name, getattr(self, name) in allowed, f"one of {', '.join(str(a) for a in allowed if a)}")
        self._check("block_out_channels", len(self.block_out_channels) >= 1, "a list of at least one number")
        for channels in self.block_out_channels:
            self._check(
                "block_out_channels",
                channels >= 1 and channels % self.norm_num_groups == 0,
                f"positive multiples of norm_num_groups = {self.norm_num_groups}",
            )
        self._check("dataset_name", bool(self.dataset_name.strip()), "a Hub data set or a folder")
        self._check("output_dir", bool(self.output_dir.strip()), "a folder")
        self._check(
            "push_to_hub",
            self.push_to_hub is None or re.fullmatch(r"[\w.-]+/[\w.-]+", self.push_to_hub, re.ASCII) is not None,
            "USER/NAME of a repository on the Hub",
        )
        self._check(
            "license",
            re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license) is not None,
            "an identifier of the Hub like apache-2.0, mit or other: small letters, digits and . + -",
        )

    def _check(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise UserError(f"`{name}` is {getattr(self, name)!r}; it must be {allowed}.")

    def to_yaml(self) -> str:
        """The resolved configuration; [`parse_config`] reads it back to an equal one."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def parse_config(argv: list[str]) -> TrainConfig:
    """Reads the command line; `--config FILE` gives other defaults, and flags win over it wherever they stand.

    Raises:
        UserError: naming the key or flag, its value, and what is allowed; an unknown name with the nearest known one.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="train.py",
        description="Trains a DDPM on images. Lists are written [32,64].",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file with any of the keys below; flags win over it")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_class_arguments(TrainConfig)

    config_flags, flags = _split_config_flags(argv)
    fields = [field.name for field in dataclasses.fields(TrainConfig)]
    for flag in flags:
        if flag.startswith("--"):
            known = [f"--{name}" for name in (*fields, "debug", "help", "print_config")]
            _check_known(flag.split("=")[0], known, "flag ")
    for path in config_flags[1::2]:
        content = _read_mapping(path)
        for key in content:
            _check_known(str(key), fields, f"key in {path}: ")
        if content.get("mixed_precision") is False:
            raise UserError(
                f"`mixed_precision` in {path} is no, which YAML reads as false; write 'no', with the quotes."
            )
    try:
        namespace = parser.parse_args([*config_flags, *flags])
    except Exception as error:  # the parser has several error types; each message names the key
        reason = " ".join(str(error).split())
        if any(name in " ".join(flags) for name in ("block_out_channels", "attention_resolutions")):
            reason = f"{reason.rstrip('.')}. Lists are written with brackets: --block_out_channels '[32,64]'."
        raise UserError(reason) from error
    return TrainConfig(**{name: namespace[name] for name in fields})


def _split_config_flags(argv: list[str]) -> tuple[list[str], list[str]]:
    """`--config` and its value, and all other arguments."""
    config, others, rest = [], [], iter(argv)
    for argument in rest:
        if argument == "--config":
            value = next(rest, None)
            if value is None:
                raise UserError("`--config` is the last argument; it must be followed by a YAML file.")
            config += ["--config", value]
        elif argument.startswith("--config="):
            config += ["--config", argument.partition("=")[2]]
        else:
            others.append(argument)
    return config, others


def _read_mapping(path: str) -> dict:
    try:
        text = Path(path).read_text(encoding="utf-8")
        content, node = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"`--config` is {path!r}, which cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"`--config` is {path!r}, which is no valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UserError(f"`--config` is {path!r}, which holds no `key: value` lines.")
    keys = [key.value for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:  # YAML readers silently keep the last one
            raise UserError(f"`--config` is {path!r}, where {key} stands {keys.count(key)} times; leave one.")
    return content


def _check_known(name: str, known: list[str], what: str) -> None:
    if name not in known:
        # Without the dashes, which all flags have in common.
        dashes = "--" if name.startswith("--") else ""
        nearest = difflib.get_close_matches(
            name.removeprefix("--"), [k.removeprefix("--") for k in known], n=1, cutoff=0.5
        )
        guess = f"; did you mean {dashes}{nearest[0]}?" if nearest else "."
        raise UserError(f"unknown {what}{name}{guess} `train.py --help` lists them all.")
