"""The folder a run writes to: checked before anything is computed, and never at the cost of what lies there."""

import dataclasses
import os
import tempfile
from pathlib import Path

import yaml
from train_config import TrainConfig, UserError

CONFIG_FILE = "config.yaml"  # also the mark by which an earlier run is recognised


def check_output(config: TrainConfig) -> Path:
    """The output folder, without symbolic links; nothing is created or changed.

    Raises:
        UserError: if it cannot be written, or holds files that no training run left there, or an earlier run that cannot
            be moved aside.
    """
    given = f"`output_dir` is {config.output_dir!r}"
    try:
        folder = _resolve(config)
        existing = next(p for p in (folder, *folder.parents) if p.exists())
        for part in folder.relative_to(existing).parts:
            (existing / part).exists()  # raises OSError where a name is too long for the file system
        if not existing.is_dir():
            raise UserError(f"{given}, but {str(existing)!r} is a file; choose another folder.")
        _check_writable(existing, config)
        if _is_filled(folder):
            _check_earlier_run(folder, config)
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # also of names that no file system takes
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{given}, which cannot be used: {reason.rstrip('.')}. Choose another folder.") from error
    return folder


def claim_output(folder: Path, config: TrainConfig) -> None:
    """Makes the folder, with the resolved configuration in it; an earlier run is moved to `<folder>.1`, `.2`, …

    Raises:
        UserError: if the operating system refuses that.
    """
    try:
        if _is_filled(folder):
            kept = _free_name(folder)
            folder.rename(kept)
            print(f"The earlier run in {folder} was kept as {kept}.")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(config.to_yaml(), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"`output_dir` is {config.output_dir!r}, which cannot be made: {error.strerror}. Choose another folder."
        ) from error


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


def _check_earlier_run(folder: Path, config: TrainConfig) -> None:
    """Whether what lies in the folder is a training run that can be moved aside."""
    given = f"`output_dir` is {config.output_dir!r}"
    if not _is_run(folder):
        raise UserError(f"{given}, which holds files of something else than a training run; choose another folder.")
    if os.path.ismount(folder):
        raise UserError(f"{given}, a mount point, whose earlier run cannot be moved aside; choose a folder in it.")
    _check_writable(folder.parent, config)


def _is_run(folder: Path) -> bool:
    """Whether config.yaml is one that [`claim_output`] wrote: other programs have files of that name, too."""
    try:
        content = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    return isinstance(content, dict) and bool(content) and fields.issuperset(content)


def _is_filled(folder: Path) -> bool:
    return folder.exists() and any(folder.iterdir())


def _free_name(folder: Path) -> Path:
    names = (folder.with_name(f"{folder.name}.{number}") for number in range(1, 10**6))
    return next(path for path in names if not os.path.lexists(path))


def write_whole(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def save_model(pipeline, folder: Path) -> None:
    """Writes the pipeline into the folder file by file, each whole, model_index.json last.

    A run that is killed in the middle leaves the model that was there before.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as name:
        fresh = Path(name)
        pipeline.save_pretrained(fresh)
        files = sorted((p for p in fresh.rglob("*") if p.is_file()), key=lambda p: p.name == "model_index.json")
        for file in files:
            target = folder / file.relative_to(fresh)
            target.parent.mkdir(exist_ok=True)
            os.replace(file, target)
