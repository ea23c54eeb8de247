"""Checkpoints of a run: whole after a kill or a power cut, verified when they are read, and without pickle.

`<output_dir>/checkpoints/step_00000500/` holds one safetensors file for each group of tensors, `state.json` with everything
else, and `manifest.json`, written last, with the sizes and SHA-256 of them all. It is written under another name and
renamed when the disk has all of it; only then are older ones deleted.
"""

import hashlib
import json
import math
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from durable_files import fresh_name, sync_folder, tensor_pieces, tensors_size, write_synced

CHECKPOINTS = "checkpoints"
STATE, MANIFEST = "state.json", "manifest.json"
FORMAT = 1
# Names of what is no checkpoint yet, no longer one, or makes room for another one of the same step.
_WRITING, _DELETED, _REPLACED = ".writing-", ".deleted-", ".replaced-"
_NOT_FINITE = "__float__"  # JSON has no NaN and no infinity: they are written as {"__float__": "nan"}


class CheckpointError(OSError):
    """A checkpoint could not be written. The earlier ones are whole, and the message says which is the last."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was verified.

    Args:
        folder: where it lies.
        step: optimizer steps done.
        state: what [`save_checkpoint`] was given; tuples come back as lists.
    """

    folder: Path
    step: int
    state: dict

    def tensors(self, name: str) -> dict:
        """One group of tensors, on the CPU. They are copies: the checkpoint can be deleted while they are in use.

        Raises:
            KeyError: if the checkpoint has no group of that name.
        """
        from safetensors.torch import load_file

        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            groups = sorted(path.stem for path in self.folder.glob("*.safetensors"))
            raise KeyError(f"{self.folder} has no tensors {name!r}, only {', '.join(groups) or 'none'}.")
        # It maps the file into memory.
        return {key: tensor.clone() for key, tensor in load_file(path).items()}


# --- Writing -----------------------------------------------------------------------------------------------------------


def save_checkpoint(folder: Path, step: int, tensors: dict[str, dict], state: dict, keep: int) -> Path:
    """Writes a checkpoint, in one process; one of the same step is replaced. Then the oldest are deleted.

    Args:
        folder (`Path`): the one of all checkpoints, `<output_dir>/checkpoints`; made if it is new.
        step (`int`): optimizer steps done.
        tensors (`dict` of `dict` of `torch.Tensor`): the groups, each of which becomes a file; whole tensors, not parts.
        state (`dict`): numbers, texts, booleans, `None`, and lists and dictionaries of them. Floating point numbers come
            back to the last bit.
        keep (`int`): how many checkpoints stay, at least 1. One that has lost a part is not counted.

    Returns:
        `Path`: `<folder>/step_00000500`.

    Raises:
        CheckpointError: if the disk is full, or refuses otherwise. The earlier checkpoints are whole.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"`step` is {step} and `keep` is {keep}; they must be at least 0 and 1.")
    text = json.dumps(_encode(state, "state"), allow_nan=False, ensure_ascii=False).encode("utf-8")
    target = folder / _name(step)
    fresh = fresh_name(folder, f"{_WRITING}{target.name}-")
    try:
        folder.mkdir(exist_ok=True)
        tidy(folder)
        fresh.mkdir()
        _write_files(fresh, step, tensors, text)
        _put_in_place(fresh, target)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)  # before the free space is asked for
        needed = len(text) + sum(map(tensors_size, tensors.values()))
        raise CheckpointError(_why_not_written(folder, step, needed, error)) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    _delete_old(folder, step, keep)
    return target


def _write_files(fresh: Path, step: int, tensors: dict[str, dict], state: bytes) -> None:
    written = {}
    for name, group in tensors.items():
        file = f"{name}.safetensors"
        written[file] = write_synced(fresh / file, tensor_pieces(group))
    written[STATE] = write_synced(fresh / STATE, [state])
    sync_folder(fresh)
    files = {name: file._asdict() for name, file in written.items()}
    manifest = json.dumps({"format": FORMAT, "step": step, "files": files}, indent=2)
    write_synced(fresh / MANIFEST, [manifest.encode("utf-8")])
    sync_folder(fresh)


def _put_in_place(fresh: Path, target: Path) -> None:
    """Between the two renamings, the checkpoint that is replaced is found under its other name."""
    replaced = target.with_name(_REPLACED + target.name)
    if target.exists():
        target.rename(replaced)
    fresh.rename(target)
    sync_folder(target.parent)
    if replaced.exists():
        _delete(replaced)
    sync_folder(target.parent.parent)  # `checkpoints` itself may be new


def tidy(folder: Path) -> None:
    """Removes what killed processes left, whole checkpoints among it; nobody may be reading one of them."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith((_WRITING, _DELETED)):
            _delete(path)
        elif path.name.startswith(_REPLACED):
            place = path.with_name(path.name.removeprefix(_REPLACED))
            if place.exists():
                _delete(path)
            else:
                path.rename(place)


def _delete_old(folder: Path, step: int, keep: int) -> None:
    """Deletes what is older than the `keep` newest ones with all their parts; never what is later than this step."""
    whole = 0
    for number in sorted((n for n in _steps(folder) if n <= step), reverse=True):
        if whole == keep:
            _delete(folder / _name(number))
        else:
            whole += _has_all_parts(folder / _name(number), number)


def _delete(folder: Path) -> None:
    """Renamed first: a kill in the middle leaves nothing that has a checkpoint's name."""
    try:
        doomed = fresh_name(folder.parent, _DELETED)
        folder.rename(doomed)
        shutil.rmtree(doomed)
    except OSError as error:  # costs room, but no checkpoint
        _warn(f"{folder} cannot be deleted: {error.strerror}.")


def _why_not_written(folder: Path, step: int, needed: int, error: OSError) -> str:
    free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
    last = newest_checkpoint(folder)
    kept = "There is no earlier one." if last is None else f"The last one, {last.folder}, is whole."
    return (
        f"the checkpoint of step {step} cannot be written to {folder}: {error.strerror or error}. It takes "
        f"{needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free. {kept} Make room and run the same command again."
    )


# --- Reading -----------------------------------------------------------------------------------------------------------


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint in `<output_dir>/checkpoints`, or `None`. Nothing is changed.

    Every byte is compared with the manifest. What is incomplete or damaged is passed over, with a warning on stderr that
    names the file and what is wrong.
    """
    if not folder.is_dir():
        return None
    for step in sorted(_steps(folder) | _steps(folder, _REPLACED), reverse=True):
        for path in (folder / _name(step), folder / (_REPLACED + _name(step))):
            if path.is_dir():
                try:
                    return Checkpoint(path, step, _verified_state(path, step))
                except _DamagedError as damage:
                    _warn(f"the checkpoint {path} is passed over: {damage}.")
    return None


class _DamagedError(Exception):
    """What is wrong with a checkpoint: the end of a sentence."""


def _verified_state(path: Path, step: int) -> dict:
    """The content of state.json.

    Raises:
        _DamagedError: if a file is not what the manifest says.
    """
    for name, expected in _check_sizes(path, step).items():
        try:
            with (path / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise _DamagedError(f"{name} cannot be read: {error.strerror}") from error
        if found != expected["sha256"]:
            raise _DamagedError(f"{name} has another SHA-256 than {MANIFEST} says")
    return json.loads((path / STATE).read_bytes(), object_hook=_decode)


def _check_sizes(path: Path, step: int) -> dict:
    """The manifest's list, after a look at the sizes of its files."""
    files = _read_manifest(path, step)
    for name, expected in files.items():
        try:
            size = (path / name).stat().st_size
        except FileNotFoundError:
            raise _DamagedError(f"{name} is missing") from None
        except OSError as error:
            raise _DamagedError(f"{name} cannot be read: {error.strerror}") from error
        if size != expected["size"]:
            raise _DamagedError(f"{name} has {size:,} bytes instead of {expected['size']:,}")
    return files


def _has_all_parts(path: Path, step: int) -> bool:
    try:
        _check_sizes(path, step)
    except _DamagedError:
        return False
    return True


def _read_manifest(path: Path, step: int) -> dict:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise _DamagedError(f"{MANIFEST} has the format {manifest['format']!r} instead of {FORMAT}")
        if manifest["step"] != step:
            raise _DamagedError(f"{MANIFEST} is of step {manifest['step']!r}")
        files = {name: {"size": int(f["size"]), "sha256": str(f["sha256"])} for name, f in manifest["files"].items()}
    except FileNotFoundError:
        raise _DamagedError(f"{MANIFEST}, which is written last, is missing") from None
    except OSError as error:
        raise _DamagedError(f"{MANIFEST} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _DamagedError(f"{MANIFEST} is no manifest ({' '.join(str(error).split())})") from error
    if STATE not in files:
        raise _DamagedError(f"{MANIFEST} does not list {STATE}")
    return files


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _steps(folder: Path, prefix: str = "") -> set[int]:
    """The steps of the folders that have the name of a checkpoint."""
    names = (re.fullmatch(rf"{re.escape(prefix)}step_(\d{{8,}})", path.name) for path in folder.iterdir())
    return {int(match[1]) for match in names if match and match[0] == prefix + _name(int(match[1]))}


def _warn(message: str) -> None:
    print(f"train.py: warning: {message}", file=sys.stderr, flush=True)


# --- Numbers in JSON ---------------------------------------------------------------------------------------------------


def _encode(value: Any, place: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_NOT_FINITE: str(float(value))}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_encode(item, f"{place}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value) and _NOT_FINITE not in value:
        return {key: _encode(item, f"{place}[{key!r}]") for key, item in value.items()}
    raise TypeError(f"`{place}` is {value!r}; it must be a number, text, boolean, None, or a list or dict of them.")


def _decode(content: dict) -> Any:
    return float(content[_NOT_FINITE]) if _NOT_FINITE in content else content
