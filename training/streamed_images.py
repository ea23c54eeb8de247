"""Images that are read as they come, for data sets larger than the disk: shuffled in windows, exact to resume.

The order is a function of the seed and the epoch: the shards (files) are permuted, and of their examples, one after the
other, each window of `shuffle_buffer` is permuted. Every process reads all examples and decodes its own.
"""

from __future__ import annotations

import hashlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import datasets
import numpy as np
import torch
from dataset_tables import find_image_column, find_label_column, load_split, unused_label_columns
from example_source import Example, ExampleSource, Place
from image_decoding import (
    ImageDecoder,
    UnreadableImageError,
    crop_margin,
    cut_middle,
    prepared_size,
)
from machine import available_threads
from pixel_cache import cache_folder, cache_key
from random_batches import generator
from train_config import TrainConfig, UserError


class StreamedImages:
    """Images of a stream. `shuffle_buffer` of them, as they are in their files, must fit in memory twice.

    Attributes:
        image_shape (`tuple[int, int, int]`): (C, H, W) of what the network sees.
        dtype (`torch.dtype`): `torch.uint8` or `torch.uint16`.
        class_names (`list[str]`): the K names; empty where there are no labels.
        unused_labels (`list[str]`): columns of integers that may be classes.
        margin (`int`): pixels that the images are larger before the random crop.
        unreadable (`list[str]`): images that were skipped so far by this process, with the reason.
        fingerprint (`str`): of the settings, the number of shards and the first image.
        num_images (`None`): they are not counted.
    """

    num_images = None

    def __init__(self, stream: datasets.IterableDataset, config: TrainConfig):
        if not stream.features:
            raise UserError(
                f"`dataset_name` is {config.dataset_name!r}, whose columns are not known before all of it is read; "
                f"use --streaming false."
            )
        features, self.config = stream.features, config
        self.image_column, self.label_column = find_image_column(features, config), find_label_column(features, config)
        self.class_names = self._names(features)
        self.unused_labels = unused_label_columns(features, config)
        self.margin, self.unreadable = crop_margin(config), []
        self.decoder = ImageDecoder(config, features[self.image_column])
        columns = [self.image_column, *([self.label_column] if self.label_column else [])]
        self.stream = stream.decode(False).select_columns(columns)
        first, label = self.some(1)  # sets the layout
        channels, height, width = self.decoder.layout.shape
        self.image_shape = (channels, height - self.margin, width - self.margin)
        self.dtype = first.dtype
        self.fingerprint = cache_key(
            features=repr({column: features[column] for column in columns}),
            shards=self.stream.num_shards,
            split=config.split,
            size=prepared_size(config),
            mode=config.image_mode,
            first=hashlib.sha256(first.numpy()).hexdigest(),
            label=None if label is None else label.tolist(),
        )

    def some(self, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The first images that can be read, cut out in the middle: (n, C, H, W), and their classes (n,)."""
        source, images, labels = ExampleSource(self, None, Place()), [], []
        while len(images) < count and (found := source.take(1)):
            try:
                images.append(self.decoder.decode(found[0].value, found[0].name))
                labels.append(found[0].label)
            except UnreadableImageError as error:
                self.refuse_or_note(found[0].name, error)
        if not images:
            raise UserError(
                f"`dataset_name` = {self.config.dataset_name!r}, `split` = {self.config.split!r} has no image that can be read."
            )
        pixels = cut_middle(torch.from_numpy(np.stack(images)), self.margin)
        return pixels, torch.tensor(labels) if self.class_names else None

    def reader(self, seed: int, position: dict | None, before: int, process: int) -> StreamReader:
        """Reads in the order of `seed`, from a position or, without one, after `before` images."""
        return StreamReader(self, seed, position, before, process)

    def check_label(self, label: int | None, name: str) -> int | None:
        if not self.class_names or (label is not None and 0 <= label < len(self.class_names)):
            return label
        raise UserError(
            f"`label_column` is {self.label_column!r}, which holds {label} for {name}; the classes are "
            f"0…{len(self.class_names) - 1}. For unlabelled images use --class_conditional false."
        )

    def refuse_or_note(self, name: str, error: UnreadableImageError) -> None:
        if self.config.unreadable_images != "skip":
            raise UserError(
                f"`dataset_name` is {self.config.dataset_name!r}, whose {name} {error}. Repair or remove it, or use "
                f"--unreadable_images skip."
            ) from error
        if f"{name} {error}" not in self.unreadable:
            self.unreadable.append(f"{name} {error}")
            print(f"Skipped: {name} {error}.", file=sys.stderr, flush=True)

    def _names(self, features: datasets.Features) -> list[str]:
        if self.label_column is None:
            return []
        if isinstance(features[self.label_column], datasets.ClassLabel):
            return list(features[self.label_column].names)
        raise UserError(
            f"`label_column` is {self.label_column!r}, integers without names, whose number is not known before all of the "
            f"stream is read. Use --streaming false, or --class_conditional false to train without classes."
        )


def stream_images(config: TrainConfig) -> StreamedImages:
    """The split that `config` names, as a stream.

    Raises:
        UserError: as [`image_data.load_images`], of what can be seen in the first image; the others are checked as they come.
    """
    return StreamedImages(load_split(config), config)


@dataclass
class Window:
    """Consecutive examples that are shuffled together: `number` in the epoch, and where they begin."""

    place: Place
    number: int
    examples: list[Example] = field(default_factory=list)
    order: list[int] = field(default_factory=list)


class StreamReader:
    """The images of a stream in the order of a seed, epoch after epoch.

    An image that cannot be read is replaced by the next one of its window's order that can (which comes twice then), so
    that what a slot of a batch holds does not depend on who decodes the others.
    """

    def __init__(self, data: StreamedImages, seed: int, position: dict | None, before: int, process: int):
        self._data, self._seed, self._process = data, seed, process
        self._pool = ThreadPoolExecutor(available_threads(), thread_name_prefix="decoding")
        place = Place() if position is None else Place(**position["place"])
        self._source = ExampleSource(data, seed, place)
        self._next = Window(place, 0 if position is None else position["window"])
        self._advance()
        if position is None:
            self.take(before)
        else:
            self._offset = position["offset"]

    def take(self, count: int) -> list[tuple[Window, int]]:
        """The next images: the window of each, and its place in the window's order."""
        taken = []
        while len(taken) < count:
            if self._offset == len(self._window.examples):
                self._advance()
            step = min(count - len(taken), len(self._window.examples) - self._offset)
            taken += [(self._window, place) for place in range(self._offset, self._offset + step)]
            self._offset += step
            self._fill(step)  # so that the next window is there when this one ends
        return taken

    def load(self, taken: list[tuple[Window, int]]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Pixels with the margin (n, C, h, w), and classes (n,)."""
        found = []
        for image, label, unreadable in self._pool.map(self._decode, taken):
            for name, error in unreadable:
                self._note(name, error)
            found.append((image, label))
        pixels = torch.from_numpy(np.stack([image for image, _ in found]))
        return pixels, torch.tensor([label for _, label in found]) if self._data.class_names else None

    def position(self) -> dict:
        """Where the next image is: JSON-able."""
        return {"place": asdict(self._window.place), "window": self._window.number, "offset": self._offset}

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _fill(self, count: int) -> None:
        """Reads some more of the next window."""
        missing = self._data.config.shuffle_buffer - len(self._next.examples)
        self._next.examples += self._source.take(min(count, missing))

    def _advance(self) -> None:
        """Goes to the next window, the first of the next epoch if there is none."""
        whole = self._data.config.shuffle_buffer
        self._fill(whole)
        if not self._next.examples:
            self._source.next_epoch()
            self._next = Window(self._source.place(), 0)
            self._fill(whole)
            if not self._next.examples:
                name, split = self._data.config.dataset_name, self._data.config.split
                raise UserError(f"`dataset_name` = {name!r}, `split` = {split!r} is empty.")
        window = self._window = self._next
        drawn = generator(self._seed, "window", window.place.epoch, window.number)
        window.order = torch.randperm(len(window.examples), generator=drawn).tolist()
        self._offset = 0
        self._next = Window(self._source.place(), window.number + 1)

    def _decode(self, slot: tuple[Window, int]) -> tuple[np.ndarray, int | None, list]:
        """The image of a slot or the next that can be read, its class, and those that cannot."""
        window, place = slot
        unreadable = []
        for index in window.order[place:] + window.order[:place]:
            example = window.examples[index]
            try:
                return self._data.decoder.decode(example.value, example.name), example.label, unreadable
            except UnreadableImageError as error:
                unreadable.append((example.name, error))
                if self._data.config.unreadable_images != "skip":
                    break
        self._data.refuse_or_note(*unreadable[0])
        raise UserError(
            f"`dataset_name` is {self._data.config.dataset_name!r}, of which {len(unreadable)} images on end cannot be read; the "
            f"first: {unreadable[0][0]} {unreadable[0][1]}."
        )

    def _note(self, name: str, error: UnreadableImageError) -> None:
        """Counts an image that was skipped, and lists all of them in a report of this process."""
        known = len(self._data.unreadable)
        self._data.refuse_or_note(name, error)
        if len(self._data.unreadable) == known:
            return
        report = cache_folder(self._data.config) / f"unreadable-{self._data.fingerprint}-{self._process}.json"
        try:
            report.parent.mkdir(parents=True, exist_ok=True)
            report.write_text(json.dumps(self._data.unreadable, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as problem:
            print(f"The report {report} cannot be written: {problem.strerror}.", file=sys.stderr, flush=True)
