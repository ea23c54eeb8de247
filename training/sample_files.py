"""The folder of samples that `sample.py` fills: claimed, written and listed so that a kill at any moment loses no whole image.

`samples.json` has what the images depend on, `images/` the images, and `images/metadata.csv` a row for each, in the form
that `datasets.load_dataset("imagefolder", data_dir=…)` reads.
"""

import csv
import fcntl
import io
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from durable_files import PARTIAL, lock, sync_folder, write_synced, write_whole
from PIL import Image
from train_config import UserError

WRITERS = 8  # threads that wait for the disk: one after another, small images take longer to write than to draw
SETTINGS_FILE = "samples.json"
IMAGES = "images"
METADATA = "metadata.csv"
WHERE_FROM = ("model", "commit")  # told in samples.json, not compared: the same model may lie elsewhere
LONGEST_VALUE = 60  # characters of a setting in a message


@contextmanager
def claimed_folder(output_dir: str, settings: dict) -> Iterator[Path]:
    """The folder of the images, for one process; `settings` stand beside it from then on. Ends with the process at the latest.

    Raises:
        UserError: if it cannot be used, holds anything else or images of other settings, or if another run fills it.
            Nothing in it is changed then.
    """
    folder = Path(output_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            if not lock(descriptor, fcntl.LOCK_EX):
                raise UserError(
                    f"`output_dir` is {output_dir!r}, which another run is filling; wait for its end, stop it, or choose "
                    f"another folder."
                )
            stored = _stored_settings(folder)
            if stored is not None:
                _check_same(output_dir, stored, settings)
            else:
                write_whole(folder / SETTINGS_FILE, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
            (folder / IMAGES).mkdir(exist_ok=True)
            for left in (folder / IMAGES).glob(f"*{PARTIAL}"):  # by killed processes
                left.unlink()
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise UserError(
            f"`output_dir` is {output_dir!r}, which cannot be used: {error.strerror}. Choose another folder, or mend that."
        ) from error
    try:
        yield images_folder(output_dir)
    finally:
        os.close(descriptor)


def _stored_settings(folder: Path) -> dict | None:
    """The settings of an earlier run; `None` where nothing is but what a run leaves that is killed at its very start."""
    if not any(path.name != SETTINGS_FILE + PARTIAL for path in folder.iterdir()):
        return None
    try:
        stored = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        stored = None
    if not isinstance(stored, dict):
        raise UserError(
            f"`output_dir` is {str(folder)!r}, which holds files but no {SETTINGS_FILE} of this program; choose another folder."
        )
    return stored


def _check_same(output_dir: str, stored: dict, settings: dict) -> None:
    stored, settings = _flat(stored), _flat(settings)
    names = [name for name in {**settings, **stored} if settings.get(name) != stored.get(name)]
    if names:
        said = "; ".join(
            f"`{name}` is {_short(settings.get(name))}, there {_short(stored.get(name))}" for name in names
        )
        raise UserError(
            f"`output_dir` is {output_dir!r}, which holds images of other settings: {said}. Choose another folder."
        )


def _flat(settings: dict) -> dict:
    """As JSON gives them back, what stands in a dictionary under a name of its own, without [`WHERE_FROM`]."""
    settings = json.loads(json.dumps(settings))
    nested = {f"{name}[{key}]": inner for name, value in settings.items() if isinstance(value, dict)
              for key, inner in value.items()}  # fmt: skip
    plain = {name: value for name, value in settings.items() if not isinstance(value, dict) and name not in WHERE_FROM}
    return plain | nested


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def images_folder(output_dir: str) -> Path:
    """Where the images are in the output folder."""
    return Path(output_dir).expanduser() / IMAGES


def file_name(number: int, ending: str) -> str:
    """The name of image `number`; `ending` is `png` or `npy`."""
    return f"{number:08d}.{ending}"


def stored_numbers(images: Path, ending: str) -> list[int]:
    """The images that are there, in order."""
    found = (re.fullmatch(rf"(\d{{8,}})\.{ending}", name) for name in os.listdir(images))
    return sorted(int(match[1]) for match in found if match and match[0] == file_name(int(match[1]), ending))


def write_images(images: Path, ending: str, drawn: dict[int, object]) -> None:
    """Writes images, each whole or not at all, also where the power fails.

    Args:
        images (`Path`): the folder.
        ending (`str`): `png` or `npy`.
        drawn (`dict`): by their numbers, images of PIL, or for `npy` a `torch.Tensor` of shape (C, H, W).
    """
    partials = {images / (file_name(n, ending) + PARTIAL): image for n, image in drawn.items()}
    with ThreadPoolExecutor(WRITERS) as writers:
        for _ in writers.map(_write, partials, partials.values()):
            pass  # raises what a writer raised
    for path in partials:
        path.replace(path.with_suffix(""))
    sync_folder(images)


def _write(path: Path, image) -> None:
    buffer = io.BytesIO()
    if isinstance(image, Image.Image):
        image.save(buffer, format="PNG")
    else:
        np.save(buffer, image.float().cpu().numpy())
    write_synced(path, [buffer.getvalue()])


def write_metadata(images: Path, ending: str, seed: int, labels: list[int] | None, names: dict[int, str]) -> None:
    """Writes `metadata.csv` for all images that are there, whole or not at all.

    Args:
        images (`Path`): the folder.
        ending (`str`): `png` or `npy`.
        seed (`int`): of image 0.
        labels (`list[int]`, *optional*): the classes that the images have in turn; without, both columns are empty.
        names (`dict[int, str]`): of the classes.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file_name", "label", "class_name", "seed"])
    for number in stored_numbers(images, ending):
        label = None if labels is None else labels[number % len(labels)]
        writer.writerow([file_name(number, ending), label, names.get(label), seed + number])
    write_whole(images / METADATA, text.getvalue())
