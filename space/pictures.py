"""Pixels as pictures that a page shows: enlarged, side by side, and inside the page itself."""

import base64
import io
import math

import numpy as np
import torch
from both_languages import Both
from PIL import Image, ImageOps
from svg_text import html_words

from ddpm_hub.ddpm_equations import denormalize

SMALLEST_SIDE = 224
COLUMNS = 4
PREVIEW_SIDE = 512  # of a picture that is shown for a moment


def pixels_of(sample: torch.Tensor) -> np.ndarray:
    """A sample in [−1, 1], shape (B, C, H, W), as uint8 pixels, shape (B, H, W, C)."""
    return denormalize(sample).permute(0, 2, 3, 1).cpu().numpy()


def as_image(pixels: np.ndarray) -> Image.Image:
    """An image of uint8 pixels, shape (H, W, C); of channels that a PNG has no form for, the first one."""
    if pixels.shape[-1] not in (3, 4):
        pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


def enlarged(image: Image.Image, side: int = SMALLEST_SIDE) -> Image.Image:
    """Whole multiples of a pixel, so that small images are seen, and downloaded, as they are."""
    factor = max(1, math.ceil(side / min(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of an image in the size (H, W); one that was enlarged by whole numbers comes back as it was."""
    height, width = size
    whole = image.width % width == 0 and image.height % height == 0 and image.width // width == image.height // height
    method = Image.Resampling.BOX if whole else Image.Resampling.LANCZOS
    return ImageOps.fit(image, (width, height), method)


def sheet(pixels: np.ndarray) -> Image.Image:
    """All images of a batch, shape (B, H, W, C), in rows of four."""
    batch, height, width, channels = pixels.shape
    columns = min(COLUMNS, batch)
    rows = math.ceil(batch / columns)
    empty = np.full((rows * columns - batch, height, width, channels), 128, np.uint8)
    grid = np.concatenate([pixels, empty]).reshape(rows, columns, height, width, channels)
    return as_image(grid.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels))


def png_address(image: Image.Image) -> str:
    """The image itself as an address, for `<img src>`: nothing is stored and nothing is asked for."""
    if max(image.size) > PREVIEW_SIDE:
        image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def figure(pixels: np.ndarray, words: Both) -> str:
    """Pixels with what they are below, as HTML."""
    image = as_image(pixels)
    picture = f'<img class="pixels" width="{image.width}" height="{image.height}" src="{png_address(image)}" alt="">'
    return f"<figure>{picture}<figcaption>{html_words(words)}</figcaption></figure>"
