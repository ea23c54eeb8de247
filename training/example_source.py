"""The examples of a stream, shard after shard and epoch after epoch, from any place on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from image_decoding import image_name, is_array
from random_batches import generator
from train_config import UserError

if TYPE_CHECKING:
    from streamed_images import StreamedImages


class Example(NamedTuple):
    """An image as it is in its file, its class, and its name."""

    value: dict | np.ndarray | None
    label: int | None
    name: str


@dataclass(frozen=True)
class Place:
    """Where a reader of examples is: JSON-able by `asdict`.

    Attributes:
        epoch (`int`): from 0.
        shard (`int`): how many shards of the epoch's order came before.
        example (`int`): how many examples of the shard came before.
        state (`dict`, *optional*): of `datasets`' own reader of the shard; `None` at its beginning.
    """

    epoch: int = 0
    shard: int = 0
    example: int = 0
    state: dict | None = None


class ExampleSource:
    """The examples of each epoch, shard after shard.

    Args:
        data (`StreamedImages`): the stream.
        seed (`int`, *optional*): of the order of the shards; by default their own.
        place (`Place`): where to begin.
    """

    def __init__(self, data: StreamedImages, seed: int | None, place: Place):
        self._data, self._seed, self._place = data, seed, place
        self._open_shard()

    def place(self) -> Place:
        """Where the next example is."""
        place = self._place
        if self._shard is None or place.example == 0:
            return Place(place.epoch, place.shard)
        return Place(place.epoch, place.shard, place.example, self._shard.state_dict())

    def take(self, count: int) -> list[Example]:
        """The next examples; fewer than `count` at the end of the epoch only."""
        found = []
        while len(found) < count and self._shard is not None:
            try:
                values = next(self._examples, None)
            except Exception as error:  # of the file system, the Hub or the format's reader
                reason = " ".join(str(error).split()) or type(error).__name__
                raise UserError(
                    f"`dataset_name` = {self._data.config.dataset_name!r} cannot be read on: {reason}"
                ) from error
            place = self._place
            if values is None:
                self._place = Place(place.epoch, place.shard + 1)
                self._open_shard()
                continue
            self._place = Place(place.epoch, place.shard, place.example + 1)
            found.append(self._example(values))
        return found

    def next_epoch(self) -> None:
        self._place = Place(self._place.epoch + 1)
        self._open_shard()

    def _open_shard(self) -> None:
        stream, place = self._data.stream, self._place
        order = torch.arange(stream.num_shards)
        if self._seed is not None:
            order = torch.randperm(stream.num_shards, generator=generator(self._seed, "shards", place.epoch))
        self._shard, self._examples = None, None
        if place.shard < len(order):
            self._number = int(order[place.shard])
            self._shard = stream.shard(num_shards=len(order), index=self._number)
            if place.state is not None:
                self._shard.load_state_dict(place.state)
            self._examples = iter(self._shard)

    def _example(self, values: dict) -> Example:
        data, value = self._data, values[self._data.image_column]
        name = f"{image_name(self._place.example - 1, value)} of shard {self._number}"
        if value is not None and is_array(data.decoder.feature):  # lists of lists take much more memory
            value = np.asarray(value, dtype=data.decoder.feature.dtype)
        label = data.check_label(values[data.label_column], name) if data.label_column else None
        return Example(value, label, name)
