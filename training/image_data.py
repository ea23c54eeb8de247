"""The images to train on: read, checked and decoded once, or streamed where there are more than the disk holds."""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import PIL
import torch
from dataset_tables import (
    find_image_column,
    load_split,
    local_folder,
    read_labels,
    source_fingerprint,
    unused_label_columns,
)
from image_decoding import EncodedImages, crop_margin, cut_middle, prepared_size
from pixel_cache import DecodedOnDemand, cache_folder, cache_key, cached_pixels
from streamed_images import StreamedImages, stream_images
from train_config import TrainConfig, UserError

__all__ = ["ImageData", "StreamedImages", "load_images", "load_validation", "local_folder"]


@dataclass(frozen=True)
class ImageData:
    """Images that have been decoded, or that can be decoded in any order.

    Attributes:
        pixels (`np.ndarray` or `torch.Tensor` of `uint8` or `uint16`, shape (N, C, h, w)): the images with the margin
            for random crops; memory-mapped and read-only, or an object that decodes what it is indexed with.
        labels (`torch.Tensor` of `int64`, shape (N,), *optional*): their classes, 0…K−1.
        class_names (`list[str]`): the K names; empty where there are no labels.
        unused_labels (`list[str]`): columns of integers that may be classes; only `ClassLabel` columns are used by themselves.
        margin (`int`): pixels that h and w are larger than what the network sees.
        unreadable (`list[str]`): images that were skipped, with the reason.
        fingerprint (`str`): of all pixels and labels; the same wherever the same images are read.
    """

    pixels: np.ndarray | torch.Tensor | DecodedOnDemand
    labels: torch.Tensor | None
    class_names: list[str]
    unused_labels: list[str] = field(default_factory=list)
    margin: int = 0
    unreadable: list[str] = field(default_factory=list)
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def num_images(self) -> int:
        return len(self.pixels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network sees."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height - self.margin, width - self.margin

    @property
    def dtype(self) -> torch.dtype:
        """`torch.uint8` or `torch.uint16`."""
        return getattr(torch, str(self.pixels.dtype).removeprefix("torch."))

    def fetch(self, rows: torch.Tensor) -> torch.Tensor:
        """Images by their numbers (`int64`, shape (n,)): (n, C, h, w), with the margin, on the CPU."""
        # With numpy, which uses one thread: this runs beside the training.
        pixels = self.pixels.numpy() if isinstance(self.pixels, torch.Tensor) else self.pixels
        return torch.from_numpy(np.asarray(pixels[rows.numpy()]))

    def at(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images as the network sees them, cut out in the middle: (n, C, H, W), and their classes (n,)."""
        return cut_middle(self.fetch(rows), self.margin), None if self.labels is None else self.labels[rows]

    def some(self, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[`at`] evenly spaced rows, at most `count`: data are often sorted by class."""
        return self.at(spread_rows(len(self), count))


def spread_rows(total: int, count: int) -> torch.Tensor:
    """At most `count` numbers from 0 to total − 1, evenly spaced: `int64`."""
    count = min(count, total)
    return torch.arange(count) * total // count


def load_images(config: TrainConfig, known_names: list[str] | None = None) -> ImageData | StreamedImages:
    """Reads the split that `config` names.

    Args:
        config (`TrainConfig`)
        known_names (`list[str]`, *optional*): of the classes, for a column of integers without names.

    Raises:
        UserError: naming the argument, for a data set that is missing, empty, without images, with images that cannot
            be read (unless they are to be skipped), of mixed sizes or modes, or too large for this machine's memory.
    """
    return stream_images(config) if config.streaming else _read_images(load_split(config), config, known_names)


def load_validation(config: TrainConfig, data: ImageData | StreamedImages) -> ImageData | None:
    """At most `validation_images` of the validation split, evenly spaced in it, as the network sees them and in memory.

    Of a stream they are the first. `None` if no split is named.

    Raises:
        UserError: as [`load_images`], and if their shape or classes are not those of the training data.
    """
    if config.validation_split is None:
        return None
    held = dataclasses.replace(config, split=config.validation_split)
    try:
        if config.streaming:
            found = stream_images(held)
        else:
            table = load_split(held)
            rows = spread_rows(len(table), config.validation_images).tolist()
            found = _read_images(table.select(rows), held, data.class_names)
    except UserError as error:
        raise UserError(str(error).replace("`split`", "`validation_split`")) from error
    said = f"`validation_split` is {config.validation_split!r}, whose images"
    for what, theirs, ours in (
        ("shape (channels, height, width)", found.image_shape, data.image_shape),
        ("type", str(found.dtype).removeprefix("torch."), str(data.dtype).removeprefix("torch.")),
        ("classes", found.class_names, data.class_names),
    ):
        if theirs != ours:
            remedy = "Set --resolution and --image_mode, or name another split." if what != "classes" else ""
            raise UserError(
                f"{said} have the {what} {theirs}, and those of `split` = {config.split!r} have {ours}. {remedy}".rstrip()
            )
    pixels, labels = found.some(config.validation_images)
    return ImageData(pixels, labels, found.class_names, unreadable=found.unreadable, fingerprint=found.fingerprint)


def _read_images(table: datasets.Dataset, config: TrainConfig, known_names: list[str] | None = None) -> ImageData:
    """Decodes the images of a table, or finds them decoded."""
    column = find_image_column(table.features, config)
    labels, class_names = read_labels(table, config, known_names)
    images = EncodedImages(table, column, config)
    folder = cache_folder(config)
    key = cache_key(
        source=source_fingerprint(table, config),
        split=config.split,
        column=column,
        feature=repr(table.features[column]),
        size=prepared_size(config),
        mode=config.image_mode,
        pil=PIL.__version__,
    )
    pixels, manifest = cached_pixels(images, folder, key)
    if manifest.unreadable:
        _handle_unreadable(manifest.unreadable, manifest.count, folder / f"unreadable-{key}.json", config)
        labels = None if labels is None else labels[torch.from_numpy(manifest.readable_rows())]
    digest = hashlib.sha256(f"{manifest.sha256} {manifest.shape} {manifest.dtype} {class_names}".encode())
    digest.update(b"" if labels is None else labels.numpy())
    return ImageData(
        pixels,
        labels,
        class_names,
        unused_label_columns(table.features, config),
        crop_margin(config),
        [f"{image['name']} {image['reason']}" for image in manifest.unreadable],
        digest.hexdigest(),
    )


def _handle_unreadable(unreadable: list[dict], readable: int, report: Path, config: TrainConfig) -> None:
    """Lists them in a report, and raises an error unless they are to be skipped."""
    temporary = report.with_name(f".{report.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(unreadable, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(report)
        listed = f"listed in {report}"
    except OSError as error:
        listed = f"but the report {report} cannot be written ({error.strerror})"
    count = f"{len(unreadable)} of {len(unreadable) + readable}"
    if config.unreadable_images == "skip" and readable:
        print(f"{count} images cannot be read and are skipped, {listed}.", flush=True)
        return
    first = f"{unreadable[0]['name']} {unreadable[0]['reason']}"
    remedy = "or use --unreadable_images skip" if readable else "or name another data set"
    raise UserError(
        f"`dataset_name` is {config.dataset_name!r}, whose {first}. Repair or remove it, {remedy}. In all, {count} images "
        f"cannot be read, {listed}."
    )
