"""The table of examples that a configuration names: where it is, its split, its columns and its classes."""

import os
from pathlib import Path

import datasets
import numpy as np
import torch
from train_config import REPOSITORY, TrainConfig, UserError

# Classes that integers without names may stand for, in data sets of fewer images; in others, as many as images.
MOST_CLASSES = 1000
# Shards into which a saved data set is read when streaming: enough to shuffle, each of at least that many rows.
MOST_SHARDS, SMALLEST_SHARD = 64, 1000


def local_folder(config: TrainConfig) -> Path | None:
    """Where `dataset_name` is on this machine; `None` if it names a data set of the Hub."""
    folders = (Path(config.dataset_name), REPOSITORY / config.dataset_name)
    return next((p for p in folders if os.path.exists(p)), None)  # unlike Path.exists, no error for a long name


def load_split(config: TrainConfig) -> datasets.Dataset | datasets.IterableDataset:
    """The split that `config` names, on disk or as a stream.

    Raises:
        UserError: naming the argument, for a data set or a split that is not there, is empty or cannot be read.
    """
    name, folder = config.dataset_name, local_folder(config)
    if folder is not None and not folder.is_dir():
        raise UserError(f"`dataset_name` is {name!r}, a file; it must be a folder or a Hub data set.")
    if folder is None and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(
            f"`dataset_name` is {name!r}: there is no such folder, and Hub data sets are named `user/name`."
        )
    empty = f"`dataset_name` = {name!r}, `split` = {config.split!r} is empty."
    try:
        if is_saved_set(folder):
            loaded = datasets.load_from_disk(str(folder))
            loaded = _select_split(loaded if isinstance(loaded, dict) else {"train": loaded}, config)
        else:
            loaded = datasets.load_dataset(  # nosec B615 # whose choice it is reads pictures, and runs no code
                str(folder or name), config.dataset_config, split=config.split, streaming=config.streaming
            )
    except UserError:
        raise
    except IndexError as error:  # what load_from_disk makes of a data set without rows
        raise UserError(empty) from error
    except Exception as error:  # of many types: the file system's, the Hub's, and those of the formats' readers
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"`dataset_name` = {name!r}, `split` = {config.split!r} cannot be loaded: {reason.rstrip('.')}."
        ) from error
    if isinstance(loaded, datasets.IterableDataset):
        return loaded
    if len(loaded) == 0:
        raise UserError(empty)
    if config.streaming:
        return loaded.to_iterable_dataset(num_shards=max(1, min(MOST_SHARDS, len(loaded) // SMALLEST_SHARD)))
    return loaded


def is_saved_set(folder: Path | None) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return folder is not None and any((folder / f).exists() for f in ("dataset_info.json", "dataset_dict.json"))


def source_fingerprint(table: datasets.Dataset, config: TrainConfig) -> list:
    """What changes whenever the rows of the table may have changed.

    The fingerprint of a table that `load_dataset` made holds the names of its files and their times of change (or the
    commit on the Hub); that of a saved set is written in the set itself, so the files' sizes and times are added.
    """
    files = []
    if is_saved_set(local_folder(config)):
        stats = [os.stat(file["filename"]) for file in table.cache_files]
        files = [[s.st_size, s.st_mtime_ns] for s in stats]
    return [table._fingerprint, files]


def find_image_column(features: datasets.Features, config: TrainConfig) -> str:
    """The column of images: `Image`, or `Array2D` and `Array3D` of 8- or 16-bit unsigned integers."""
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    arrays = [name for name, feature in features.items() if is_array(feature)]
    asked = config.image_column
    if asked is not None:
        _check_column(features, asked, "image_column")
        if asked not in found + arrays:
            raise UserError(
                f"`image_column` is {asked!r}, a column of {_type_name(features[asked])}; columns of images: "
                f"{', '.join(found + arrays) or 'none'}."
            )
        return asked
    column = _only_one(found or arrays, features, "image_column")
    if column is None:
        columns = ", ".join(f"{name} ({_type_name(feature)})" for name, feature in features.items())
        raise UserError(f"`dataset_name` is {config.dataset_name!r}, which has no column of images; it has {columns}.")
    return column


def find_label_column(features: datasets.Features, config: TrainConfig) -> str | None:
    """The column of classes that is trained on, if any: `ClassLabel`, or integers that were asked for."""
    if not config.class_conditional:
        return None
    if config.label_column is None:
        found = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        return _only_one(found, features, "label_column")
    _check_column(features, config.label_column, "label_column")
    feature = features[config.label_column]
    if not isinstance(feature, datasets.ClassLabel) and not _is_integer(feature):
        raise UserError(
            f"`label_column` is {config.label_column!r}, which holds {_type_name(feature)} values; classes are integers "
            f"0…K−1."
        )
    return config.label_column


def unused_label_columns(features: datasets.Features, config: TrainConfig) -> list[str]:
    """Columns of integers that may be classes, where no class is trained on but might be."""
    if not config.class_conditional or find_label_column(features, config) is not None:
        return []
    return [name for name, feature in features.items() if _is_integer(feature)]


def read_labels(
    table: datasets.Dataset, config: TrainConfig, known_names: list[str] | None = None
) -> tuple[torch.Tensor | None, list[str]]:
    """The classes of all rows and their names.

    Args:
        table (`datasets.Dataset`): N rows.
        config (`TrainConfig`): names the column.
        known_names (`list[str]`, *optional*): of the classes, for a column of integers without names; by default as many
            as the largest number asks for.

    Returns:
        `torch.Tensor` of `int64`, shape (N,), 0…K−1, and the K names; `None` and no names where there are no classes.
    """
    column = find_label_column(table.features, config)
    if column is None:
        return None, []
    feature = table.features[column]
    values = table.select_columns(column)[:][column]
    if None in values:
        raise UserError(
            f"`label_column` is {column!r}, but row {values.index(None)} has no label (null); remove that row, or use "
            f"--class_conditional false."
        )
    values = np.asarray(values)
    if isinstance(feature, datasets.ClassLabel):
        names = feature.names
    elif known_names:
        names = known_names
    else:
        most = max(len(values), MOST_CLASSES)
        if values.max() >= most:  # each class costs a name and an embedding
            raise UserError(
                f"`label_column` is {column!r}, which holds {values.max()}; classes are integers 0…K−1, and K may be {most} "
                f"here. Number the classes from 0, or use --class_conditional false."
            )
        names = [str(k) for k in range(values.max() + 1)]
    if values.min() < 0 or values.max() >= len(names):
        raise UserError(
            f"`label_column` is {column!r}, which holds {values.min()}…{values.max()}; the classes are 0…{len(names) - 1}. "
            f"For unlabelled images use --class_conditional false."
        )
    return torch.from_numpy(values.astype(np.int64)), list(names)


def is_array(feature) -> bool:
    return isinstance(feature, (datasets.Array2D, datasets.Array3D)) and feature.dtype in ("uint8", "uint16")


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


def _check_column(features: datasets.Features, name: str, argument: str) -> None:
    if name not in features:
        raise UserError(f"`{argument}` is {name!r}; the columns are {', '.join(features)}.")


def _only_one(found: list[str], features: datasets.Features, argument: str) -> str | None:
    if len(found) > 1:
        kind = _type_name(features[found[0]]).split()[0]
        raise UserError(f"`{argument}` is needed: the columns {', '.join(found)} are all of type {kind}.")
    return found[0] if found else None


def _type_name(feature) -> str:
    if isinstance(feature, datasets.Value):
        return feature.dtype
    kind = type(feature).__name__
    return f"{kind} of {feature.dtype}" if isinstance(feature, (datasets.Array2D, datasets.Array3D)) else kind


def _is_integer(feature) -> bool:
    return isinstance(feature, datasets.Value) and "int" in feature.dtype
