"""The folder a run writes to: checked before anything is computed, and never at the cost of what lies there.

What is done with an earlier run in it is decided in resume.py.
"""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml
from durable_files import PARTIAL, fresh_name, lock, sync_file, sync_folder, write_whole
from train_config import TrainConfig, UserError

CONFIG_FILE = "config.yaml"  # also the mark by which an earlier run is recognised
# What every version has written into it. Other programs have files of that name, too.
MARKS = {"dataset_name", "output_dir", "block_out_channels", "max_train_steps", "batch_size", "learning_rate", "seed"}
_SAVING = ".saving-"


def check_output(config: TrainConfig) -> Path:
    """The output folder, without symbolic links; nothing is created or changed.

    Raises:
        UserError: if it cannot be written, holds files that no training run left there, or is that of `init_from`.
    """
    given = f"`output_dir` is {config.output_dir!r}"
    try:
        folder = _resolve(config)
        if config.init_from and folder in (path := Path(config.init_from).expanduser().resolve(), *path.parents):
            raise UserError(f"{given}, where `init_from` = {config.init_from!r} lies; choose another folder.")
        existing = next(p for p in (folder, *folder.parents) if p.exists())
        for part in folder.relative_to(existing).parts:
            (existing / part).exists()  # raises OSError where a name is too long for the file system
        if not existing.is_dir():
            raise UserError(f"{given}, but {str(existing)!r} is a file; choose another folder.")
        _check_writable(existing, config)
        if is_filled(folder) and read_config(folder) is None:
            raise UserError(f"{given}, which holds files of something else than a training run; choose another folder.")
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # also of names that no file system takes
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{given}, which cannot be used: {reason.rstrip('.')}. Choose another folder.") from error
    return folder


def check_movable(folder: Path, config: TrainConfig) -> None:
    """Whether the earlier run in the folder can be moved aside; nothing is changed.

    Raises:
        UserError: if not.
    """
    if os.path.ismount(folder):
        raise UserError(
            f"`output_dir` is {config.output_dir!r}, a mount point, whose earlier run cannot be moved aside; choose a "
            f"folder in it."
        )
    _check_writable(folder.parent, config)


@contextmanager
def claim_output(
    folder: Path, config: TrainConfig, in_place: bool = False, mark: tuple[int, int] | None = None
) -> Iterator[None]:
    """Makes the folder, with the resolved configuration in it, and keeps other runs out of it inside the block.

    An earlier run there is moved to `<folder>.1`, `.2`, …

    Args:
        folder (`Path`): what [`check_output`] returned.
        config (`TrainConfig`): of this run.
        in_place (`bool`, defaults to `False`): leave the earlier run where it is, as this one goes on with it.
        mark (`tuple[int, int]`, *optional*): the [`config_mark`] of what it is to be found in place.

    Raises:
        UserError: if the operating system refuses that, if another process is training there, or has since the mark.
    """
    with ExitStack() as held:
        try:
            if folder.exists() and not in_place:
                _move_aside(folder, config)
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(hold_output(folder, config))
            if config_mark(folder) != (mark if in_place else None):
                raise UserError(
                    f"`output_dir` is {config.output_dir!r}, where another run was at work while this one loaded its data; "
                    f"run the same command again, or choose another folder."
                )
            write_whole(folder / CONFIG_FILE, config.to_yaml())
            sync_folder(folder.parent)
        except OSError as error:
            remedy = (
                "Make room on that disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Choose another folder"
            )
            raise UserError(
                f"`output_dir` is {config.output_dir!r}, which cannot be written: {error.strerror}. {remedy}."
            ) from error
        yield


def _move_aside(folder: Path, config: TrainConfig) -> None:
    # Held meanwhile: whoever looked at the folder has loaded its data since, and another run may have begun in it.
    with hold_output(folder, config):
        if is_filled(folder):
            kept = _free_name(folder)
            folder.rename(kept)
            print(f"The earlier run in {folder} was kept as {kept}.")


@contextmanager
def hold_output(folder: Path, config: TrainConfig) -> Iterator[None]:
    """Keeps other runs out of the folder, for one process of this run; ends with the process, however that ends.

    Raises:
        UserError: if another run is at work there.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, fcntl.LOCK_EX, config)
        if not os.path.samestat(os.fstat(descriptor), folder.stat()):  # moved aside before it was locked
            raise _held_by_another(config)
        yield
    finally:
        os.close(descriptor)


def config_mark(folder: Path) -> tuple[int, int] | None:
    """Another one whenever a run begins in the folder or goes on there: each writes its config.yaml. `None` without one."""
    try:
        found = (folder / CONFIG_FILE).stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def check_not_held(folder: Path, config: TrainConfig) -> None:
    """Whether the folder is free. Several processes may ask at once.

    Raises:
        UserError: if another run is at work there.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, fcntl.LOCK_SH, config)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int, config: TrainConfig) -> None:
    if not lock(descriptor, kind):
        raise _held_by_another(config)


def _held_by_another(config: TrainConfig) -> UserError:
    return UserError(
        f"`output_dir` is {config.output_dir!r}, where another process is training; wait for its end, stop it, or choose "
        f"another folder."
    )


def _resolve(config: TrainConfig) -> Path:
    """The absolute folder. An earlier run behind a link is moved aside where it lies, so that the link stays."""
    folder = Path(config.output_dir).expanduser().absolute()
    for path in (folder, *folder.parents):
        if path.is_symlink() and not path.exists():
            raise UserError(
                f"`output_dir` is {config.output_dir!r}, but the link {str(path)!r} leads nowhere; make the folder "
                f"{os.readlink(path)!r} first, or choose another one."
            )
    return folder.resolve()


def _check_writable(folder: Path, config: TrainConfig) -> None:
    try:
        # Asking for permission is not enough: it is granted to root on a read-only file system.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"`output_dir` is {config.output_dir!r}, but {str(folder)!r} cannot be written: {error.strerror}. Choose "
            f"another folder."
        ) from error


def read_config(folder: Path) -> dict | None:
    """The config.yaml of a run, of whatever version; `None` if there is none, or only another program's."""
    try:
        content = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) and content.keys() >= MARKS else None


def is_filled(folder: Path) -> bool:
    """Whether anything lies there, beside what a run leaves that is killed while it writes its very first file."""
    return folder.exists() and any(path.name != CONFIG_FILE + PARTIAL for path in folder.iterdir())


def _free_name(folder: Path) -> Path:
    names = (folder.with_name(f"{folder.name}.{number}") for number in range(1, 10**6))
    return next(path for path in names if not os.path.lexists(path))


def save_model(pipeline, folder: Path) -> None:
    """Writes the pipeline into the folder file by file, each whole, model_index.json last.

    A run that is killed in the middle, or a power cut, leaves the model that was there before, or files of both that load
    as one: a run's networks all have the same shape.

    Raises:
        OSError: if the disk is full, or refuses otherwise; the model that was there before stays.
    """
    from safetensors import SafetensorError

    for left in folder.glob(f"{_SAVING}*"):  # by killed processes
        shutil.rmtree(left, ignore_errors=True)
    fresh = fresh_name(folder, _SAVING)
    try:
        pipeline.save_pretrained(fresh)
        files = sorted((p for p in fresh.rglob("*") if p.is_file()), key=lambda p: p.name == "model_index.json")
        for file in files:
            sync_file(file)
        for file in files:
            target = folder / file.relative_to(fresh)
            target.parent.mkdir(exist_ok=True)
            if file == files[-1]:
                for changed in {(folder / f.relative_to(fresh)).parent for f in files}:
                    sync_folder(changed)
            os.replace(file, target)
        sync_folder(folder)
    except SafetensorError as error:  # its only word of a full disk
        raise OSError(f"the model cannot be saved in {folder}: {' '.join(str(error).split())}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
