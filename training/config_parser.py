"""The command line and the YAML file, read into a [`TrainConfig`]."""

import dataclasses
import difflib
import itertools
from pathlib import Path

import yaml
from train_config import TrainConfig, UserError

LISTS = [field.name for field in dataclasses.fields(TrainConfig) if "tuple" in str(field.type)]
SWITCHES = [field.name for field in dataclasses.fields(TrainConfig) if field.type is bool]


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
    flags = _completed_switches(flags)
    fields = [field.name for field in dataclasses.fields(TrainConfig)]
    for flag in flags:
        if flag.startswith("--"):
            known = [f"--{name}" for name in (*fields, "debug", "help", "print_config")]
            name = flag.split("=")[0]
            _check_known("--unet_options" if name.startswith("--unet_options.") else name, known, "flag ")
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
        if any(f"--{name}" in " ".join(flags) or f'"{name}"' in reason for name in LISTS):
            reason = f"{reason.rstrip('.')}. Lists are written with brackets, like --block_out_channels '[32,64]'."
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


def _completed_switches(flags: list[str]) -> list[str]:
    """`--dry_run` alone means `--dry_run true`."""
    completed = []
    for flag, following in itertools.pairwise([*flags, "--"]):
        completed.append(flag)
        if flag.removeprefix("--") in SWITCHES and flag.startswith("--") and following.startswith("--"):
            completed.append("true")
    return completed


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
