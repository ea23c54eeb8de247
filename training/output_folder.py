"""The folder a run writes to: checked before anything is computed, and never at the cost of what lies there."""

import os
import tempfile
from pathlib import Path

from train_config import TrainConfig, UserError

CONFIG_FILE = "config.yaml"  # also the mark by which an earlier run is recognised


def check_output(config: TrainConfig) -> Path:
    """The output folder; nothing is created or changed.

    Raises:
        UserError: if it cannot be written, or holds files that no training run left there.
    """
    folder = Path(config.output_dir)
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise UserError(
            f"`output_dir` is {config.output_dir!r}, but {str(existing)!r} is a file; choose another folder."
        )
    try:
        # Asking for permission is not enough: it is granted to root on a read-only file system.
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise UserError(
            f"`output_dir` is {config.output_dir!r}, but {str(existing)!r} cannot be written: {error.strerror}. Choose "
            f"another folder."
        ) from error
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"`output_dir` is {config.output_dir!r}, which holds files of something else than a training run; choose another "
            f"folder."
        )
    return folder


def claim_output(folder: Path, config: TrainConfig) -> None:
    """Makes the folder, with the resolved configuration in it; an earlier run is moved to `<folder>.1`, `.2`, …"""
    if folder.exists() and any(folder.iterdir()):
        number = next(n for n in range(1, 10**6) if not folder.with_name(f"{folder.name}.{n}").exists())
        kept = folder.with_name(f"{folder.name}.{number}")
        folder.rename(kept)
        print(f"The earlier run in {folder} was kept as {kept}.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(config.to_yaml(), encoding="utf-8")


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
