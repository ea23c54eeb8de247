"""From what a data set holds for an image to its pixels: (C, H, W) of 8- or 16-bit unsigned integers."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import fsspec
import numpy as np
import psutil
import pyarrow as pa
import torch
from config_checks import image_size
from dataset_tables import is_array
from machine import available_threads
from PIL import Image, UnidentifiedImageError
from train_config import TrainConfig, UserError

# What each PIL mode is decoded to. Others (floating point, …) are refused.
MODE_OF = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "LA": "RGBA", "RGBA": "RGBA"}
# Modes of 16 bits; `I` has 32, of which such images use 16.
WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
# What a thread decodes at a time: large enough to outweigh the switch, small enough to stop at once.
CHUNK_IMAGES, CHUNK_BYTES = 256, 2**25
# Images that take at most so many seconds each are decoded by one thread. (28×28 PNGs: 0.15 ms; 1.5 times as fast as two.)
LONGEST_ALONE, TIMED_IMAGES = 5e-4, 64


class UnreadableImageError(ValueError):
    """An image that is missing or that no decoder can read; the message says why, the image is named elsewhere."""


@dataclass(frozen=True)
class ImageLayout:
    """What all images of a data set have in common once they are prepared.

    Attributes:
        mode (`str`): PIL's mode, `I;16` for 16 bits, or `array`.
        shape (`tuple[int, int, int]`): (C, h, w) with the margin for random crops.
        dtype (`np.dtype`): `uint8` or `uint16`.
        name (`str`): the image that it was taken from, for messages.
    """

    mode: str
    shape: tuple[int, int, int]
    dtype: np.dtype
    name: str


class ImageDecoder:
    """Decodes, converts, scales and crops: the same pixels from the same bytes, whoever asks.

    The first image that is decoded sets `layout`; those that follow must agree with it. (PIL reads colour images of 16 bits
    as 8; `Array3D` columns hold them as they are.)
    """

    def __init__(self, config: TrainConfig, feature):
        self.config, self.feature = config, feature
        self.size = prepared_size(config)
        self.layout: ImageLayout | None = None
        if is_array(feature) and config.image_mode is not None:
            raise UserError(
                f"`image_mode` is {config.image_mode!r}, but the images are arrays of type {type(feature).__name__}, whose "
                f"channels have no mode; leave it out."
            )

    def decode(self, value, name: str) -> np.ndarray:
        """The pixels of an image.

        Args:
            value (`dict`, `np.ndarray` or `None`): `bytes` and `path` of an encoded image, or an array (H, W) or (C, H, W).
            name (`str`): of the image, for messages.

        Returns:
            `np.ndarray` of `uint8` or `uint16`, shape (C, h, w).

        Raises:
            UnreadableImageError: if it is missing or broken.
            UserError: if it is of a kind that is not supported, or differs from the first.
        """
        if value is None:
            raise UnreadableImageError("is missing (null)")
        if is_array(self.feature):
            image, mode = self._read_array(value), "array"
        else:
            image, mode = self._read_picture(value, name)
        height, width = image.shape[1:] if isinstance(image, np.ndarray) else (image.height, image.width)
        channels = len(image) if isinstance(image, np.ndarray) else len(image.getbands())
        if self.layout is None:
            dtype = image.dtype if isinstance(image, np.ndarray) else np.dtype(np.uint8)
            self.layout = ImageLayout(mode, (channels, *(self.size or (height, width))), dtype, name)
            self._check_memory()
        self._check_alike(mode, channels, height, width, name)
        if (height, width) != self.layout.shape[1:]:
            image = _fit(image, *self.layout.shape[1:])
        return image if isinstance(image, np.ndarray) else _channels_first(image)

    def _read_array(self, value) -> np.ndarray:
        try:
            array = np.asarray(value, dtype=self.feature.dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise UnreadableImageError(f"cannot be read: {error}") from error
        return array[None] if array.ndim == 2 else array

    def _read_picture(self, value: dict, name: str) -> tuple[Image.Image | np.ndarray, str]:
        """A PIL image of 8 bits, or an array of 16, and its mode."""
        try:
            # Read here, since a broken file that PIL opened itself stays open.
            content = value["bytes"] if value.get("bytes") is not None else _read_file(value["path"])
            image = replace(self.feature, decode=True).decode_example({"bytes": content, "path": None})
        except MemoryError:  # no fault of the image
            raise
        except Exception as error:  # PIL's decoders raise errors of many types
            # PIL's message for a file that is no image names the buffer that it was read from.
            reason = f"its {len(content)} bytes are no image" if isinstance(error, UnidentifiedImageError) else error
            raise UnreadableImageError(f"cannot be read: {reason}") from error
        mode = self.config.image_mode
        if image.mode in WIDE_MODES:
            array = np.asarray(image)
            if array.min(initial=0) >= 0 and array.max(initial=0) < 2**16:
                if mode is None:
                    return array.astype(np.uint16)[None], "I;16"
                image = Image.fromarray(np.rint(array / 257).astype(np.uint8))  # 65535 becomes 255
        if image.mode not in MODE_OF:
            raise UserError(
                f"`dataset_name` is {self.config.dataset_name!r}, whose {name} has mode {image.mode}; images of 8 or 16 bits "
                f"are supported: {', '.join((*MODE_OF, 'I;16'))}."
            )
        image = image.convert(mode or ("RGBA" if image.has_transparency_data else MODE_OF[image.mode]))
        return image, image.mode

    def _check_alike(self, mode: str, channels: int, height: int, width: int, name: str) -> None:
        layout, data = self.layout, f"`dataset_name` is {self.config.dataset_name!r}, whose images"
        if mode != layout.mode:
            raise UserError(
                f"{data} differ in mode: {layout.name} is {layout.mode}, {name} is {mode}. Set --image_mode to L, RGB or RGBA."
            )
        if channels != layout.shape[0]:
            raise UserError(
                f"{data} differ in channels: {layout.name} has {layout.shape[0]}, {name} has {channels}; they must have as many."
            )
        if self.size is None and (height, width) != layout.shape[1:]:
            raise UserError(
                f"{data} differ in size: {layout.name} is {layout.shape[2]}×{layout.shape[1]}, {name} is {width}×{height}. "
                f"Set --resolution."
            )

    def _check_memory(self) -> None:
        """A batch must fit; everything else is on disk."""
        needed = self.config.batch_size * np.prod(self.layout.shape, dtype=float) * self.layout.dtype.itemsize
        free = psutil.virtual_memory().available
        if needed > free:
            height, width = self.layout.shape[1:]
            raise UserError(
                f"`batch_size` is {self.config.batch_size}: that many images of {width}×{height} take {needed / 2**30:.1f} GiB "
                f"and {free / 2**30:.1f} GiB of memory are free. Lower --resolution or --batch_size."
            )


class EncodedImages:
    """The images of a table as they are on disk, decoded by row numbers.

    Args:
        table (`datasets.Dataset`): N rows.
        column (`str`): of type `Image`, `Array2D` or `Array3D`.
        config (`TrainConfig`): how to prepare them.
    """

    def __init__(self, table: datasets.Dataset, column: str, config: TrainConfig):
        self.column, self.decoder = column, ImageDecoder(config, table.features[column])
        table = table.select_columns(column)
        if not is_array(self.decoder.feature):
            table = table.cast_column(column, datasets.Image(decode=False))
        self._table = table.with_format("arrow")

    def __len__(self) -> int:
        return len(self._table)

    def values(self, rows: range | list[int]) -> list:
        """What the rows hold: dictionaries, arrays, or `None`."""
        found = self._table[rows][self.column]
        return _arrays(found, self.decoder.feature) if is_array(self.decoder.feature) else found.to_pylist()

    def decode(
        self, rows: range | list[int], stopped: threading.Event | None = None
    ) -> list[np.ndarray | UnreadableImageError]:
        """The pixels of each row, or why there are none; fewer than rows once `stopped` is set."""
        images = []
        for row, value in zip(rows, self.values(rows), strict=True):
            if stopped is not None and stopped.is_set():
                break
            try:
                images.append(self.decoder.decode(value, image_name(row, value)))
            except UnreadableImageError as error:
                error.add_note(image_name(row, value))
                images.append(error)
        return images

    def find_layout(self) -> bool:
        """Sets the layout by the first image that can be read; `False` if none can."""
        return self.decoder.layout is not None or any(
            isinstance(self.decode([row])[0], np.ndarray) for row in range(len(self))
        )

    def best_threads(self) -> int:
        """How many threads decode fastest: one for small images, which mostly wait for each other at Python's own lock."""
        first = range(min(TIMED_IMAGES, len(self)))
        started = time.perf_counter()
        self.decode(first)
        return available_threads() if time.perf_counter() - started > LONGEST_ALONE * len(first) else 1

    def decode_in_order(self, threads: int) -> Iterator[tuple[int, list[np.ndarray | UnreadableImageError]]]:
        """All images, decoded by several threads: the first row of each chunk, and its images. Needs the layout."""
        layout, stopped = self.decoder.layout, threading.Event()
        size = int(np.prod(layout.shape)) * layout.dtype.itemsize
        step = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // size))
        starts, waiting = iter(range(0, len(self), step)), deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="decoding") as pool:
            try:
                while True:
                    while len(waiting) <= 2 * threads and (start := next(starts, None)) is not None:
                        rows = range(start, min(start + step, len(self)))
                        waiting.append((start, pool.submit(self.decode, rows, stopped)))
                    if not waiting:
                        return
                    start, future = waiting.popleft()
                    yield start, future.result()
            finally:
                stopped.set()
                pool.shutdown(cancel_futures=True)


def prepared_size(config: TrainConfig) -> tuple[int, int] | None:
    """Height and width of the prepared images with the margin for random crops; `None` for the data's own."""
    size = image_size(config)
    return None if size is None else (size[0] + config.random_crop, size[1] + config.random_crop)


def crop_margin(config: TrainConfig) -> int:
    """Pixels that prepared images are higher and wider than what the network sees."""
    return 0 if config.resolution is None else config.random_crop


def cut_middle(pixels: torch.Tensor, margin: int) -> torch.Tensor:
    """(n, C, h, w) without the margin: (n, C, h − margin, w − margin)."""
    start, end = margin // 2, margin - margin // 2
    return pixels[..., start : pixels.shape[-2] - end, start : pixels.shape[-1] - end].contiguous()


def image_name(row: int, value) -> str:
    path = value.get("path") if isinstance(value, dict) else None
    return f"image {row}" + (f" ({path})" if path else "")


def _read_file(path: str) -> bytes:
    """The content of a local file, or of one that `datasets` names by an address (on the Hub, in an archive)."""
    if "://" not in path:
        return Path(path).read_bytes()
    with fsspec.open(path, "rb") as file:
        return file.read()


def _arrays(column: pa.ChunkedArray, feature) -> list:
    """The rows of an `Array2D` or `Array3D` column; without a Python object for each pixel where nothing is null."""
    rows = []
    for chunk in column.chunks:
        flat = chunk.storage
        while pa.types.is_list(flat.type) or pa.types.is_large_list(flat.type):
            flat = flat.flatten()
        regular = None not in feature.shape and len(flat) == len(chunk) * np.prod(feature.shape)
        if chunk.null_count == 0 and flat.null_count == 0 and regular:
            rows += list(flat.to_numpy(zero_copy_only=False).reshape(-1, *feature.shape))
        else:
            rows += chunk.storage.to_pylist()
    return rows


def _fit(image: Image.Image | np.ndarray, height: int, width: int) -> Image.Image | np.ndarray:
    """Scales an image until it covers the size, and crops the middle; channels of 16 bits as floating point."""
    if isinstance(image, np.ndarray):
        largest = np.iinfo(image.dtype).max
        channels = [np.asarray(_fit(Image.fromarray(c.astype(np.float32)), height, width)) for c in image]
        return np.rint(np.stack(channels)).clip(0, largest).astype(image.dtype)
    scale = max(width / image.width, height / image.height)
    scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    image = image.resize(scaled, Image.Resampling.LANCZOS)
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    return image.crop((left, top, left + width, top + height))


def _channels_first(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1))
