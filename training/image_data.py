"""Images of a data set as one uint8 tensor in memory, checked and decoded once."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import psutil
import torch
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm
from train_config import REPOSITORY, TrainConfig, UserError

# What each PIL mode is decoded to. Others (16-bit, floating point, …) are refused.
MODE_OF = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "LA": "RGBA", "RGBA": "RGBA"}

# Classes that integers without names may stand for, in data sets of fewer images; in others, as many as images.
MOST_CLASSES = 1000


@dataclass(frozen=True)
class ImageData:
    """Attributes:
    pixels (`torch.Tensor` of `uint8`, shape (N, C, H, W)): the images.
    labels (`torch.Tensor` of `int64`, shape (N,), *optional*): their classes, 0…K−1.
    class_names (`list[str]`): the K names; empty where there are no labels.
    unused_labels (`list[str]`): columns of integers that may be classes; only `ClassLabel` columns are used by themselves.
    """

    pixels: torch.Tensor
    labels: torch.Tensor | None
    class_names: list[str]
    unused_labels: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pixels)


def load_images(config: TrainConfig) -> ImageData:
    """Reads the split that `config` names.

    Raises:
        UserError: naming the argument, for a data set that is missing, empty, without images, with images that cannot
            be read, of mixed sizes or modes, or too large for this machine's memory.
    """
    table = _load_split(config)
    image_column = _find_column(table, config.image_column, "image_column", datasets.Image)
    if image_column is None:
        columns = ", ".join(f"{name} ({_type_name(feature)})" for name, feature in table.features.items())
        raise UserError(f"`dataset_name` is {config.dataset_name!r}, which has no column of images; it has {columns}.")
    labels, class_names = _read_labels(table, config)
    pixels = _decode(table.select_columns(image_column), image_column, config)
    integers = [name for name, feature in table.features.items() if _is_integer(feature)]
    return ImageData(pixels, labels, class_names, integers if config.class_conditional and labels is None else [])


def local_folder(config: TrainConfig) -> Path | None:
    """Where `dataset_name` is on this machine; `None` if it names a data set of the Hub."""
    folders = (Path(config.dataset_name), REPOSITORY / config.dataset_name)
    return next((p for p in folders if os.path.exists(p)), None)  # unlike Path.exists, no error for a long name


def _load_split(config: TrainConfig) -> datasets.Dataset:
    name = config.dataset_name
    folder = local_folder(config)
    if folder is not None and not folder.is_dir():
        raise UserError(f"`dataset_name` is {name!r}, a file; it must be a folder or a Hub data set.")
    if folder is None and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(
            f"`dataset_name` is {name!r}: there is no such folder, and Hub data sets are named `user/name`."
        )
    saved = folder is not None and any((folder / f).exists() for f in ("dataset_info.json", "dataset_dict.json"))
    try:
        if saved:
            loaded = datasets.load_from_disk(str(folder))
            loaded = _select_split(loaded if isinstance(loaded, dict) else {"train": loaded}, config)
        else:
            loaded = datasets.load_dataset(str(folder or name), config.dataset_config, split=config.split)
    except UserError:
        raise
    except IndexError as error:  # what load_from_disk makes of a data set without rows
        raise UserError(f"`dataset_name` = {name!r}, `split` = {config.split!r} is empty.") from error
    except Exception as error:  # of many types: the file system's, the Hub's, and those of the formats' readers
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"`dataset_name` = {name!r}, `split` = {config.split!r} cannot be loaded: {reason.rstrip('.')}."
        ) from error
    if len(loaded) == 0:
        raise UserError(f"`dataset_name` = {name!r}, `split` = {config.split!r} is empty.")
    return loaded


def _select_split(tables: dict[str, datasets.Dataset], config: TrainConfig) -> datasets.Dataset:
    """The split of a saved data set, or the parts of splits, written as for `load_dataset`."""
    if config.split in tables:
        return tables[config.split]
    try:
        asked = datasets.ReadInstruction.from_spec(config.split)
        parts = asked.to_absolute({name: len(table) for name, table in tables.items()})
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"`split` is {config.split!r}; the data set has {', '.join(tables)}, or parts like 'train[:100]'."
        ) from error
    return datasets.concatenate_datasets([tables[p.splitname].select(range(p.from_, p.to)) for p in parts])


def _find_column(table: datasets.Dataset, asked: str | None, argument: str, feature_type: type) -> str | None:
    """The column that was asked for, or else the only one of this feature type; `None` if there is none."""
    found = [name for name, feature in table.features.items() if isinstance(feature, feature_type)]
    if asked is not None:
        if asked not in table.features:
            raise UserError(f"`{argument}` is {asked!r}; the columns are {', '.join(table.features)}.")
        if feature_type is datasets.Image and asked not in found:
            kind = _type_name(table.features[asked])
            raise UserError(
                f"`{argument}` is {asked!r}, a column of {kind}; columns of images: {', '.join(found) or 'none'}."
            )
        return asked
    if len(found) > 1:
        raise UserError(
            f"`{argument}` is needed: the columns {', '.join(found)} are all of type {feature_type.__name__}."
        )
    return found[0] if found else None


def _type_name(feature) -> str:
    return getattr(feature, "dtype", None) if isinstance(feature, datasets.Value) else type(feature).__name__


def _is_integer(feature) -> bool:
    return isinstance(feature, datasets.Value) and "int" in feature.dtype


def _read_labels(table: datasets.Dataset, config: TrainConfig) -> tuple[torch.Tensor | None, list[str]]:
    if not config.class_conditional:
        return None, []
    column = _find_column(table, config.label_column, "label_column", datasets.ClassLabel)
    if column is None:
        return None, []
    feature = table.features[column]
    named = isinstance(feature, datasets.ClassLabel)
    if not named and not _is_integer(feature):
        kind = _type_name(feature)
        raise UserError(f"`label_column` is {column!r}, which holds {kind} values; classes are integers 0…K−1.")
    values = table.select_columns(column)[:][column]
    if None in values:
        raise UserError(
            f"`label_column` is {column!r}, but row {values.index(None)} has no label (null); remove that row, or use "
            f"--class_conditional false."
        )
    values = np.asarray(values)
    if not named and values.max() >= max(len(values), MOST_CLASSES):  # each class costs a name and an embedding
        raise UserError(
            f"`label_column` is {column!r}, which holds {values.max()}; classes are integers 0…K−1, and K may be "
            f"{max(len(values), MOST_CLASSES)} here. Number the classes from 0, or use --class_conditional false."
        )
    names = feature.names if named else [str(k) for k in range(values.max() + 1)]
    if values.min() < 0 or values.max() >= len(names):
        raise UserError(
            f"`label_column` is {column!r}, which holds {values.min()}…{values.max()}; the classes are 0…{len(names) - 1}. "
            f"For unlabelled images use --class_conditional false."
        )
    return torch.from_numpy(values.astype(np.int64)), list(names)


def _decode(table: datasets.Dataset, column: str, config: TrainConfig) -> torch.Tensor:
    """All images as (N, C, H, W), each read before anything is trained."""
    encoded = table.cast_column(column, datasets.Image(decode=False))
    pixels, size, mode = None, None, None
    for row, example in enumerate(tqdm(encoded, desc="decoding images", unit=" images", leave=False)):
        image = _read_image(example[column], row, config)
        if pixels is None:
            size, mode = image.size, image.mode
            width, height = size if config.resolution is None else (config.resolution, config.resolution)
            pixels = _allocate(len(encoded), len(image.getbands()), height, width, config)
        if image.mode != mode:
            raise UserError(
                f"`dataset_name` is {config.dataset_name!r}, whose images differ in mode: image 0 is {mode}, image {row} is "
                f"{image.mode}. Set --image_mode to L, RGB or RGBA."
            )
        if config.resolution is not None:
            image = _fit(image, config.resolution)
        elif image.size != size:
            raise UserError(
                f"`dataset_name` is {config.dataset_name!r}, whose images differ in size: image 0 is {size[0]}×{size[1]}, "
                f"image {row} is {image.width}×{image.height}. Set --resolution."
            )
        pixels[row] = np.asarray(image).reshape(height, width, -1).transpose(2, 0, 1)
    return torch.from_numpy(pixels)


def _read_image(value: dict | None, row: int, config: TrainConfig) -> Image.Image:
    if value is None:
        raise UserError(
            f"`dataset_name` is {config.dataset_name!r}, whose image {row} is missing (null); remove that row."
        )
    name = f"image {row}" + (f" ({value['path']})" if value.get("path") else "")
    try:
        # Read here, since a broken file that PIL opened itself stays open.
        content = value["bytes"] if value.get("bytes") is not None else Path(value["path"]).read_bytes()
        image = datasets.Image().decode_example({"bytes": content, "path": None})
    except Exception as error:  # PIL's decoders raise errors of many types
        # PIL's message for a file that is no image names the buffer that it was read from.
        reason = f"its {len(content)} bytes are no image" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(
            f"`dataset_name` is {config.dataset_name!r}, whose {name} cannot be read: {reason}. Repair or remove it."
        ) from error
    if image.mode not in MODE_OF:
        raise UserError(
            f"`dataset_name` is {config.dataset_name!r}, whose {name} has mode {image.mode}; 8-bit images are supported: "
            f"{', '.join(MODE_OF)}."
        )
    return image.convert(config.image_mode or ("RGBA" if image.has_transparency_data else MODE_OF[image.mode]))


def _fit(image: Image.Image, size: int) -> Image.Image:
    """Scales the shorter side to `size` and crops the middle."""
    if image.size == (size, size):
        return image
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _allocate(count: int, channels: int, height: int, width: int, config: TrainConfig) -> np.ndarray:
    needed, free = count * channels * height * width, psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"`dataset_name` is {config.dataset_name!r}: {count} images of {width}×{height} take {needed / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} GiB of memory are free. Lower --resolution, or name a part of the split "
            f"(--split 'train[:10000]')."
        )
    return np.empty((count, channels, height, width), dtype=np.uint8)
