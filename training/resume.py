"""Whether a run begins, goes on, or is already done: decided from the output folder, which is only read.

Of an earlier run in `output_dir`, with the same configuration up to [`FREE_KEYS`]:

- it has a whole checkpoint and is not finished: this run goes on from there;
- it has none, and no figures: it begins again, in the same folder;
- it is finished, as metrics.json tells of `max_train_steps` steps: nothing is trained. What is still [`missing`] can be
  made up. With a `constant` rate and more `max_train_steps`, it goes on from its last checkpoint.

Of `init_from` the name is compared, and not what lies there: once there is a checkpoint, it is not needed any more.

With another configuration, an unfinished run with a checkpoint is refused, as hours may be in it; any other is kept beside
the new one. So is the run of another version, whose configuration has other keys, and every one with `--resume false`.
"""

import dataclasses
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml
from checkpoints import CHECKPOINTS, Checkpoint, newest_checkpoint
from durable_files import write_whole
from output_folder import check_movable, check_not_held, config_mark, is_filled, read_config
from train_config import TrainConfig, UserError

from ddpm_hub.metrics_file import SAMPLING_FORM

# Options that may change from one start of a run to the next. All others change the weights or what the log compares.
FREE_KEYS = {
    # Where things lie and how they are told: no number of the run depends on them.
    "output_dir", "cache_dir", "license", "report_to", "tracker_project", "push_to_hub", "hub_private_repo",
    "resume", "dry_run",
    # When something is written: the weights, averages, optimizer and loss log are bitwise the same.
    "checkpoint_every", "checkpoints_kept", "sample_every", "ema_snapshot_every", "validation_every",
    # How samples are drawn and judged: metrics.json tells what the last ones were drawn with.
    *SAMPLING_FORM, "fidelity_samples",
    # When the run gives up: after the first bad steps, or at the first bad image of a stream. Up to there nothing differs,
    # and that the images are the same ones is checked by itself (`check_data`).
    "max_skipped_steps", "unreadable_images",
    # How the same numbers are computed, in another order: equal up to rounding, as with another number of processes.
    "gradient_accumulation_steps", "gradient_checkpointing", "compile",
}  # fmt: skip
# Not free, for examples: `log_every` (the lines of the log are means over it), `validation_split` and `validation_images`
# (the losses in the log would be of other images), `mixed_precision` (other numbers than rounding explains),
# `ema_decays` and `ema_stds` (an average that begins late is another one), `shuffle_buffer` (the order when streaming).

DONE_FILE = "done.json"


@dataclass(frozen=True)
class Found:
    """What lies in the output folder, and so how the run starts.

    Args:
        kind: `fresh`, `resume` or `finished`.
        checkpoint: of which it goes on; only of `resume`.
        in_place: whether the folder stays where it is, for [`claim_output`]; else what lies there is moved aside.
        missing: of a `finished` run, what was asked for and not done: `judging`, `publishing`.
        mark: the [`config_mark`] of the folder, for [`claim_output`]: whether it is still what was looked at.
    """

    kind: str
    checkpoint: Checkpoint | None = None
    in_place: bool = False
    missing: tuple[str, ...] = ()
    mark: tuple[int, int] | None = None


def find_run(config: TrainConfig, folder: Path) -> Found:
    """Decides; nothing is created or changed. All processes must have decided before one claims the folder.

    Args:
        config (`TrainConfig`): of this run.
        folder (`Path`): what [`check_output`] returned.

    Raises:
        UserError: if an unfinished run has another configuration (naming every key that differs), if another process is
            training there, or if what lies there cannot be moved aside.
    """
    mark = config_mark(folder)  # before anything is read: what changes from here on is noticed
    if not is_filled(folder):
        return Found("fresh", in_place=True)
    if not config.dry_run:
        check_not_held(folder, config)
    found = dataclasses.replace(_plan(config, folder, read_config(folder) or {}), mark=mark)
    if not found.in_place:
        check_movable(folder, config)
    return found


def _plan(config: TrainConfig, folder: Path, earlier: dict) -> Found:
    if not config.resume or earlier.keys() != {field.name for field in dataclasses.fields(config)}:
        return Found("fresh")
    changed = _changed_keys(earlier, config)
    if is_finished(folder, earlier["max_train_steps"]):
        if not changed:
            return Found("finished", in_place=True, missing=missing(config, folder))
        if changed != ["max_train_steps"] or not _may_stop_at(config, earlier["max_train_steps"]):
            return Found("fresh")
    checkpoint = newest_checkpoint(folder / CHECKPOINTS)
    if checkpoint is None:
        return Found("fresh", in_place=not changed and not (folder / "metrics.json").exists())
    if _may_stop_at(config, checkpoint.step):
        changed = [key for key in changed if key != "max_train_steps"]
    if earlier["mixed_precision"] == "auto" and config.mixed_precision == checkpoint.state["mixed_precision"]:
        changed = [key for key in changed if key != "mixed_precision"]
    if changed:
        raise UserError(_disagreement(config, earlier, changed, checkpoint))
    return Found("resume", checkpoint, in_place=True)


def _may_stop_at(config: TrainConfig, step: int) -> bool:
    """Whether a run that has come to this step may be given another end: a rate that falls has fallen too far or too late."""
    return config.lr_schedule == "constant" and config.max_train_steps >= step


def is_finished(folder: Path, steps: int) -> bool:
    """The figures are written when all steps are done and the model is saved."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return metrics["training"]["steps"] == steps and (folder / "model_index.json").is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _changed_keys(earlier: dict, config: TrainConfig) -> list[str]:
    """The keys, in the configuration's order, that differ and may not. Compared as YAML reads them: lists, not tuples."""
    now = yaml.safe_load(config.to_yaml())
    # The network's drop-out is drawn pass by pass.
    free = FREE_KEYS - {"gradient_accumulation_steps"} if config.dropout else FREE_KEYS
    return [key for key in now if key not in free and _text(now[key]) != _text(earlier[key])]


def _text(value: object) -> str:
    """Equal for equal values of equal kinds: 1 and true are not, 1 and 1.0 are not, whatever the order of a mapping."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def _disagreement(config: TrainConfig, earlier: dict, changed: list[str], checkpoint: Checkpoint) -> str:
    now = yaml.safe_load(config.to_yaml())
    differences = "; ".join(f"`{key}` was {_text(earlier[key])} and is {_text(now[key])}" for key in changed)
    flags = " ".join(_flag(key, earlier[key]) for key in changed if earlier[key] is not None)
    without = ", ".join(f"`{key}`" for key in changed if earlier[key] is None)
    old_values = " ".join(filter(None, (f"give {flags}" * bool(flags), "and" * bool(flags and without),
                                        f"leave out {without}" * bool(without))))  # fmt: skip
    return (
        f"`output_dir` is {config.output_dir!r}, which holds a run that came to step {checkpoint.step:,} of "
        f"{earlier['max_train_steps']} with another configuration: {differences}. To go on with it, {old_values}; to "
        f"begin anew and keep it beside, add --resume false; or choose another output_dir."
    )


def _flag(key: str, value: object) -> str:
    return f"--{key} {shlex.quote(value if isinstance(value, str) else _text(value))}"


# --- What is done after the training -----------------------------------------------------------------------------------


def missing(config: TrainConfig, folder: Path) -> tuple[str, ...]:
    """What is to come after the training and [`note_done`] was not told: `judging`, `publishing`.

    Without samples to judge, `judging` is what remains of it: the card.
    """
    done, now, lacking = _done(folder), _settings(config), []
    judged = done.get("judging", {})
    if judged.get("max_train_steps") != config.max_train_steps or (
        config.fidelity_samples and judged != now["judging"]
    ):
        lacking.append("judging")
    if config.push_to_hub is not None and done.get("publishing") != now["publishing"]:
        lacking.append("publishing")
    return tuple(lacking)


def note_done(config: TrainConfig, folder: Path, what: str) -> None:
    """Notes that the samples are judged (also where there was nothing to judge) or that the model is published.

    Args:
        config (`TrainConfig`): of the run.
        folder (`Path`): its output folder.
        what (`str`): `judging` or `publishing`.
    """
    write_whole(folder / DONE_FILE, json.dumps(_done(folder) | {what: _settings(config)[what]}, indent=2) + "\n")


def _done(folder: Path) -> dict:
    try:
        done = json.loads((folder / DONE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return done if isinstance(done, dict) else {}


def _settings(config: TrainConfig) -> dict[str, dict]:
    """Of what the two depend, as JSON has it; with another one of these, they are to be done again."""
    judging = ("max_train_steps", "fidelity_samples", *SAMPLING_FORM)
    publishing = ("max_train_steps", "push_to_hub")
    kept = {"judging": judging, "publishing": publishing}
    return json.loads(json.dumps({what: {key: getattr(config, key) for key in keys} for what, keys in kept.items()}))


# --- The data ----------------------------------------------------------------------------------------------------------


def check_data(state: dict, data, config: TrainConfig) -> None:
    """Whether the data are those that the run began with.

    Args:
        state (`dict`): of the checkpoint; its `data` are `num_images` and `fingerprint` of what it was trained on.
        data (`ImageData` or `StreamedImages`): what was loaded now.
        config (`TrainConfig`): of this run.

    Raises:
        UserError: if images were added, lost or changed.
    """
    if state["data"] == {"num_images": data.num_images, "fingerprint": data.fingerprint}:
        return
    given = f"`dataset_name` is {config.dataset_name!r} with `split` {config.split!r}"
    before, now = state["data"]["num_images"], data.num_images
    if before != now:
        what = f"which has {_count(now)} now and had {_count(before)} when this run began"
    else:
        what = f"which has {_count(now)}, as when this run began, but not the same ones in the same order"
    raise UserError(
        f"{given}, {what}. To go on with the run, give it the data that it had; to begin anew on these and keep the run "
        f"beside, add --resume false."
    )


def check_precision(state: dict, precision: str, config: TrainConfig) -> None:
    """Whether the network is computed in what the run began with: `auto` may mean something else on another machine.

    Args:
        state (`dict`): of the checkpoint; its `mixed_precision` is the one that was used.
        precision (`str`): the one of this process: `no`, `fp16` or `bf16`.
        config (`TrainConfig`): of this run.

    Raises:
        UserError: if they differ.
    """
    if state["mixed_precision"] != precision:
        raise UserError(
            f"`mixed_precision` is {config.mixed_precision!r}, which is {precision!r} on this machine and was "
            f"{state['mixed_precision']!r} where this run began. To go on with it, add --mixed_precision "
            f"{state['mixed_precision']}; to begin anew and keep the run beside, add --resume false."
        )


def _count(number: int | None) -> str:
    return "an unknown number of images" if number is None else f"{number:,} images"
