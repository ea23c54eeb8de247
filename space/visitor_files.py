"""Files that go between visitors and the server: an upload is decoded only where that does no harm."""

import logging
import math
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from both_languages import Both
from gradio.utils import get_upload_folder
from gradio_client.utils import is_file_obj_with_meta, traverse
from PIL import Image, ImageOps
from request_checks import InvalidRequestError

LARGEST_BYTES = 8 * 2**20
LARGEST_PIXELS = 20_000_000
KEPT_PIXELS = 2**21  # no model draws more
IMAGE = Both("The image", "图像")
ADDRESS = "/gradio_api/file="
FILE = Both("The file", "文件")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")

# One image after another, in a thread of its own: the largest take half a GB each, of which every thread would keep a part.
_decoder = ThreadPoolExecutor(1, "decoder")


def opened_image(upload: object, name: Both = IMAGE) -> Image.Image:
    """An upload as an image of 8 bits, `L` or `RGB`: the first frame, upright, on white where it is transparent.

    One of more than [`KEPT_PIXELS`] is made smaller by a whole factor.

    Args:
        upload: what Gradio gives for an upload: the path, or a dictionary that holds it.
        name (`Both`): what the image is called.

    Raises:
        InvalidRequestError: if there is none, or if it is too large, damaged or of a format that is not in [`FORMATS`].
    """
    path = _uploaded_path(upload, name)
    try:
        return _decoder.submit(_decoded, path).result()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidRequestError(
            f"{name.en} is too large: at most {LARGEST_PIXELS // 10**6} million pixels.",
            f"{name.zh}过大：最多 {LARGEST_PIXELS // 10**4} 万像素。",
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # what Pillow raises for damaged files is whatever their decoder stumbles on
        logging.getLogger(__name__).info("an upload is no image: %s", type(error).__name__)
        raise InvalidRequestError(
            f"{name.en} cannot be read: it is damaged, or no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.",
            f"无法读取{name.zh}：文件已损坏，或不是 {'、'.join(FORMATS)} 格式。",
        ) from error


def with_uploads(values: object) -> object:
    """The values of a request, of whatever shape, with each file at its place; Gradio would fetch it from another server.

    Raises:
        InvalidRequestError: if a file is no upload, or too large.
    """
    return traverse(values, lambda file: file | {"path": str(_uploaded_path(file, FILE))}, is_file_obj_with_meta)


def result_file(name: str) -> Path:
    """Where to write a file that a visitor gets: a new place among Gradio's, which deletes it when it is old."""
    folder = Path(get_upload_folder())
    folder.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=folder)) / name


def _uploaded_path(upload: object, name: Both) -> Path:
    """Where the upload lies: inside the folder of uploads, and nowhere else on this machine.

    Callers of tools know it by its address on this server.
    """
    path = upload.get("path") if isinstance(upload, dict) else upload
    if path is None:
        raise InvalidRequestError(f"{name.en} is missing: upload one.", f"缺少{name.zh}：请上传。")
    try:
        file = Path(unquote(path.split(ADDRESS, 1)[1]) if ADDRESS in path else path).resolve()
        inside, is_there = file.is_relative_to(Path(get_upload_folder()).resolve()), file.is_file()
    except (AttributeError, OSError, TypeError, ValueError):
        inside = False
    if not inside:
        raise InvalidRequestError(
            f"{name.en} is no upload: upload it here first.", f"{name.zh}不是上传的文件：请先在此上传。"
        )
    if not is_there:
        raise InvalidRequestError(
            f"{name.en} is no longer kept: upload it again.", f"{name.zh}已不再保留：请重新上传。"
        )
    if os.path.getsize(file) > LARGEST_BYTES:
        megabytes = LARGEST_BYTES // 2**20
        raise InvalidRequestError(
            f"{name.en} is too large: at most {megabytes} MB.", f"{name.zh}过大：最多 {megabytes} MB。"
        )
    return file


def _decoded(path: Path) -> Image.Image:
    with Image.open(path, formats=FORMATS) as image:
        pixels = image.width * image.height
        if pixels > LARGEST_PIXELS:
            raise Image.DecompressionBombError
        image.load()
        return _in_8_bits(ImageOps.exif_transpose(image)).reduce(math.ceil(math.sqrt(pixels / KEPT_PIXELS)))


def _in_8_bits(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        pixels = np.asarray(image).clip(0, 65535).astype(np.int32)
        return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)
