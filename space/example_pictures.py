"""The pictures that visitors can pick; `example_images/LICENSES.txt` says where they come from."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from both_languages import Both
from PIL import Image
from request_checks import choice

FOLDER = Path(__file__).resolve().parent / "example_images"


@dataclass(frozen=True)
class ExamplePicture:
    """Attributes:
    path (`Path`): a PNG, `L` or `RGB`, at the pixels of its source.
    name (`Both`): what it shows.
    """

    path: Path
    name: Both

    @property
    def image(self) -> Image.Image:
        """The picture, read."""
        with Image.open(self.path, formats=["PNG"]) as image:
            return image.copy()

    @property
    def pixels(self) -> np.ndarray:
        """uint8, shape (H, W, C)."""
        return np.atleast_3d(np.array(self.image))


EXAMPLES = tuple(
    ExamplePicture(FOLDER / f"{name}.png", words)
    for name, words in {
        "garment_sneaker": Both("sneaker", "运动鞋"),
        "garment_shirt": Both("shirt", "上衣"),
        "garment_bag": Both("bag", "手提包"),
        "digit_0": Both("digit 0", "数字 0"),
        "digit_3": Both("digit 3", "数字 3"),
        "digit_4": Both("digit 4", "数字 4"),
        "scene": Both("lake at sunset", "落日湖景"),
    }.items()
)


def example(name: object) -> ExamplePicture:
    """The picture in the file `name`.png.

    Raises:
        InvalidRequestError: if there is none of this name.
    """
    names = [one.path.stem for one in EXAMPLES]
    return EXAMPLES[names.index(choice(Both("The example", "示例"), name, names))]
