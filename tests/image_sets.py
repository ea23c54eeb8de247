"""Small data sets on disk in the forms that users have them: Parquet files, image folders, saved sets, WebDataset."""

import dataclasses
import io
import tarfile
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from train_config import TrainConfig


def config(folder, **kwargs) -> TrainConfig:
    """Of a data set in a folder, with the cache of decoded images beside it."""
    kwargs.setdefault("cache_dir", str(folder) + ".cache")
    return dataclasses.replace(TrainConfig(), dataset_name=str(folder), **kwargs)


def picture(mode: str = "L", size: tuple[int, int] = (8, 8), seed: int = 0) -> Image.Image:
    shape = (size[1], size[0], len(mode)) if mode in ("RGB", "RGBA") else (size[1], size[0])
    largest, dtype = (2**16, np.uint16) if mode == "I;16" else (256, np.uint8)
    return Image.fromarray(np.random.default_rng(seed).integers(0, largest, shape, dtype=dtype))


def encoded(image: Image.Image, format: str = "PNG") -> bytes:  # noqa: A002 - PIL's name for it
    buffer = io.BytesIO()
    image.save(buffer, format=format)
    return buffer.getvalue()


def numbered(number: int, size: tuple[int, int] = (4, 4)) -> Image.Image:
    """An image all of whose pixels have the value `number`, so that a batch tells which images are in it."""
    return Image.fromarray(np.full(size, number, dtype=np.uint8))


def save_parquet(folder, images: list, labels: list[int] | None = None, name: str = "picture", names=("a", "b")):
    """A data set of one Parquet file in the Hub's schema, whose image column has an unusual name."""
    features, columns = {name: datasets.Image()}, {name: images}
    if labels is not None:
        features["kind"], columns["kind"] = datasets.ClassLabel(names=list(names)), labels
    Path(folder).mkdir(exist_ok=True)
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(folder / "train-0.parquet")
    return folder


def save_shards(folder, contents: list[list], names=("a", "b", "c")) -> Path:
    """Parquet files of numbered images: of each number that many; `None` and bytes stand for themselves. Class: n mod 3."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    folder.mkdir(exist_ok=True)
    for i, values in enumerate(contents):
        images = [numbered(v) if isinstance(v, int) else v and {"bytes": v, "path": None} for v in values]
        labels = [v % 3 if isinstance(v, int) else 0 for v in values]
        table = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        table.to_parquet(folder / f"train-{i:05d}-of-{len(contents):05d}.parquet")
    return folder


def save_tars(folder, contents: list[list[int]]) -> Path:
    """WebDataset archives of numbered images."""
    folder.mkdir(exist_ok=True)
    for i, values in enumerate(contents):
        with tarfile.open(folder / f"train-{i:05d}.tar", "w") as archive:
            for value in values:
                content = encoded(numbered(value))
                member = tarfile.TarInfo(f"{value:04d}.png")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return folder


def save_set(folder, labels: list, feature=None) -> str:
    """A data set saved with `save_to_disk`, whose classes are by default plain integers."""
    features = datasets.Features({"x": datasets.Image(), "y": feature or datasets.Value("int64")})
    columns = {"x": [picture(seed=i) for i in range(len(labels))], "y": labels}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder)
    return str(folder)


def save_arrays(folder, arrays: np.ndarray, feature) -> Path:
    """A Parquet file with a column of `Array2D` or `Array3D`."""
    folder.mkdir(exist_ok=True)
    table = datasets.Dataset.from_dict({"field": list(arrays)}, features=datasets.Features({"field": feature}))
    table.to_parquet(folder / "train.parquet")
    return folder


def save_folder(folder, **files: Image.Image | bytes):
    """An image folder with one folder per class: `class__name=image`."""
    for key, content in files.items():
        kind, name = key.split("__")
        (folder / "train" / kind).mkdir(parents=True, exist_ok=True)
        path = folder / "train" / kind / f"{name}.png"
        path.write_bytes(content) if isinstance(content, bytes) else content.save(path)
    return folder
