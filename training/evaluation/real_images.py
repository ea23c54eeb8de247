"""The real images that a model is measured with: read as its training read them, and checked to be of its kind."""

import math
from dataclasses import dataclass

import torch
from image_data import ImageData, load_images, local_folder, spread_rows
from torch.nn import functional
from train_config import TrainConfig, UserError

from ddpm_hub.ddpm_equations import normalize


@dataclass(frozen=True)
class RealImages:
    """A split of the data.

    Attributes:
        data (`ImageData`): N images without the padding.
        name (`str`): the data set's id on the Hub, or the name of its folder.
        split (`str`)
        padding (`int`): black pixels on every side of what the network sees.
    """

    data: ImageData
    name: str
    split: str
    padding: int

    def __len__(self) -> int:
        return len(self.data)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W), without the padding: the true dimensions of the data."""
        return self.data.image_shape

    @property
    def num_bytes(self) -> int:
        """Of all images, decoded."""
        return len(self) * math.prod(self.image_shape) * self.bit_depth // 8

    @property
    def bit_depth(self) -> int:
        return 8 if self.data.dtype == torch.uint8 else 16

    def rows(self, count: int | None) -> torch.Tensor:
        """At most `count` rows, evenly spaced; all for `None`."""
        return spread_rows(len(self), len(self) if count is None else count)

    def as_network_sees(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images in [−1, 1] with the padding, float32, shape (n, C, H, W), and their classes."""
        pixels, labels = self.data.at(rows)
        return functional.pad(normalize(pixels), [self.padding] * 4, value=-1.0), labels

    def as_bytes(self, rows: torch.Tensor) -> torch.Tensor:
        """Images of 8 bits, `uint8`, shape (n, C, H, W)."""
        pixels = self.data.at(rows)[0]
        if pixels.dtype == torch.uint16:
            pixels = (pixels.int() / 257).round().to(torch.uint8)
        return pixels

    def classes_of(self, count: int) -> torch.Tensor | None:
        """The classes of so many samples, in the proportions of the data: `int64`, shape (count,)."""
        labels = self.data.labels
        return None if labels is None else labels.sort().values[torch.arange(count) * len(labels) // count]


def read_images(
    config: TrainConfig,
    padding: int,
    image_shape: tuple[int, int, int],
    class_names: list[str] | None,
    known_names: list[str] | None = None,
) -> RealImages:
    """Reads a split, and checks that it is what the model was made for.

    Args:
        config (`TrainConfig`): names the data.
        padding (`int`): black pixels on every side that the network was trained with.
        image_shape (`tuple[int, int, int]`): (C, H, W) of the network.
        class_names (`list[str]`, *optional*): of a class-conditional model, in the order of its embeddings.
        known_names (`list[str]`, *optional*): of the classes of another split, for a column of integers without names.

    Raises:
        UserError: for a split that cannot be read, is empty, or does not fit the model.
    """
    try:
        data = load_images(config, known_names)
    except UserError as error:
        raise UserError(str(error).replace("`dataset_name`", "`--dataset`")) from error
    channels, height, width = data.image_shape
    said = f"`--dataset` is {config.dataset_name!r}, whose images"
    if channels != image_shape[0]:
        modes = {1: "--image_mode L", 3: "--image_mode RGB", 4: "--image_mode RGBA"}
        remedy = f"If it was trained on converted images, add {modes[image_shape[0]]}" if image_shape[0] in modes else "Name the data it was trained on"  # fmt: skip
        raise UserError(f"{said} have {channels} channels, and the model has {image_shape[0]}. {remedy}.")
    padded = (height + 2 * padding, width + 2 * padding)
    if padded != image_shape[1:]:
        with_padding = f", with --padding {padding} {padded[0]}×{padded[1]}" if padding else ""
        missing = image_shape[1] - height, image_shape[2] - width
        padding_remedy = f", or --padding {missing[0] // 2} if it was padded" if missing[0] == missing[1] > 0 == missing[0] % 2 else ""  # fmt: skip
        raise UserError(
            f"{said} have {height}×{width} pixels{with_padding}, and the model has {image_shape[1]}×{image_shape[2]}. Add "
            f"--resolution {image_shape[1]} {image_shape[2]} if it was trained on scaled images{padding_remedy}."
        )
    if class_names is not None:
        if data.labels is None:
            columns = f" Columns of integers: {', '.join(data.unused_labels)}." if data.unused_labels else ""
            raise UserError(
                f"{said} have no classes, and the model is class-conditional: the bound and the class fidelity need them. Name "
                f"their column with --label_column.{columns}"
            )
        if len(data.class_names) != len(class_names):
            raise UserError(
                f"{said} have {len(data.class_names)} classes, and the model has {len(class_names)}. Name the data it was trained "
                f"on."
            )
        if data.class_names != class_names and sorted(data.class_names) == sorted(class_names):
            raise UserError(
                f"{said} have the model's classes in another order: {', '.join(data.class_names)}, and the model has "
                f"{', '.join(class_names)}. Name the data it was trained on."
            )
    folder = local_folder(config)
    return RealImages(data, config.dataset_name if folder is None else folder.resolve().name, config.split, padding)
