"""A folder of images that a visitor may upload by mistake or on purpose: whole ones of odd kinds, damaged ones, and no images."""

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 24
SUFFIXES = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "svg", "html", "txt", "exe", "tar.gz", "PNG")
ORIENTATION = 0x0112  # of EXIF
UPRIGHT, LAST_ORIENTATION = 1, 8
LONGEST_SIDE = {"PNG": 2**31 - 1, "GIF": 2**16 - 1, "BMP": 2**31 - 1, "JPEG": 2**16 - 1}


def broken_images(folder: Path, chance: random.Random, damaged: int) -> list[Path]:
    """Writes the folder.

    Args:
        folder (`Path`): where; it is made.
        chance (`random.Random`): what is damaged, and how, and what the files are called, follows from it.
        damaged (`int`): how many are made by damaging whole ones.

    Returns:
        `list[Path]`: the files: those that are the same each time first.
    """
    folder.mkdir(parents=True)
    whole = dict(whole_images())
    contents = whole | dict(lying_images()) | dict(no_images(whole["L.png"]))
    names = list(whole)
    for i in range(damaged):
        name = chance.choice(names)
        contents[f"{i}.{name}"] = _damaged(whole[name], whole[chance.choice(names)], chance)
    paths = []
    for i, (name, content) in enumerate(contents.items()):
        suffix = f".{chance.choice(SUFFIXES)}" if chance.random() < 0.2 else ""
        paths.append(folder / f"{i:03d}.{name}{suffix}")
        paths[-1].write_bytes(content)
    return paths


def whole_images() -> Iterator[tuple[str, bytes]]:
    """Images that Pillow writes, in all formats that are taken, and of kinds that are seldom sent."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 4), np.uint8)
    colour, grey = Image.fromarray(pixels), Image.fromarray(pixels[..., 0])
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else colour.convert(mode)
        yield f"{mode}.png", _saved(image, "PNG")
    yield "palette_with_transparency.png", _saved(colour.convert("P"), "PNG", transparency=bytes(range(256)))
    for mode in ("L", "RGB", "CMYK"):
        yield f"{mode}.jpg", _saved(colour.convert(mode), "JPEG", progressive=mode == "RGB")
    for mode in ("L", "RGB", "CMYK", "F", "I;16", "LAB"):
        image = grey.convert(mode) if mode in ("F", "I;16") else colour.convert("RGB")
        image = Image.fromarray(pixels[..., :3], "LAB") if mode == "LAB" else image.convert(mode)
        yield f"{mode}.tif", _saved(image, "TIFF", compression="tiff_lzw" if mode == "RGB" else None)
    yield "colour.webp", _saved(colour, "WEBP", lossless=True)
    yield "colour.bmp", _saved(colour.convert("RGB"), "BMP")
    yield "transparent.gif", _saved(grey.convert("P"), "GIF", transparency=0)
    for form in ("GIF", "PNG", "WEBP", "TIFF"):
        others = [Image.new("RGB", (SIDE, SIDE), name) for name in ("red", "green", "blue")]
        yield f"animated.{form.lower()}", _saved(colour.convert("RGB"), form, save_all=True, append_images=others)
    for orientation in (*range(UPRIGHT, LAST_ORIENTATION + 1), 0, 99, 65535):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        yield f"orientation_{orientation}.jpg", _saved(colour.convert("RGB").resize((SIDE, 7)), "JPEG", exif=exif)
    for name, size in {"row": (100_000, 1), "column": (1, 100_000), "pixel": (1, 1)}.items():
        yield f"{name}.png", _saved(Image.new("L", size, 90), "PNG")
    yield "as_large_as_may_be.png", _saved(Image.new("L", (5000, 4000)), "PNG")


def lying_images() -> Iterator[tuple[str, bytes]]:
    """Images that claim what is not so, or would fill the memory."""
    yield "too_large.png", _saved(Image.new("1", (5000, 4001)), "PNG")
    for form, side in LONGEST_SIDE.items():
        yield f"huge.{form.lower()}", _resized(_saved(Image.new("L", (SIDE, SIDE)), form), form, side)
        yield f"empty.{form.lower()}", _resized(_saved(Image.new("L", (SIDE, SIDE)), form), form, 0)
    plain = _saved(Image.new("L", (SIDE, SIDE)), "PNG")
    bomb = zlib.compress(b"\0" * 2**26, 9)
    for name, chunk in {
        "bomb_of_text": _chunk(b"zTXt", b"name\0\0" + bomb),
        "bomb_of_colours": _chunk(b"iCCP", b"name\0\0" + bomb),
        "colours_of_nonsense": _chunk(b"iCCP", b"name\0\0" + zlib.compress(b"nonsense" * 40)),
        "exif_of_nonsense": _chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff nonsense"),
        "animation_of_nonsense": _chunk(b"acTL", b"\xff" * 8) + _chunk(b"fcTL", b"\xff" * 26),
        "transparency_of_nonsense": _chunk(b"tRNS", b"\xff" * 999),
        "chunk_of_no_end": struct.pack(">I", 2**32 - 1) + b"tEXt",
    }.items():
        yield f"{name}.png", plain[:33] + chunk + plain[33:]  # after the header
    palette = _saved(Image.new("P", (SIDE, SIDE)), "PNG")
    start = palette.index(b"PLTE") - 4
    yield "palette_that_is_missing.png", palette[:start] + palette[palette.index(b"IDAT") - 4 :]
    yield "colours_of_nonsense.jpg", _saved(Image.new("RGB", (SIDE, SIDE)), "JPEG", icc_profile=b"nonsense" * 40)
    yield (
        "exif_of_nonsense.jpg",
        _saved(Image.new("RGB", (SIDE, SIDE)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"),
    )


def no_images(png: bytes) -> Iterator[tuple[str, bytes]]:
    """Files of other kinds; among them those that some programs take for images, and run."""
    yield "nothing.png", b""
    yield "zeros.png", b"\0" * 5000
    yield "text.png", b"no image"
    yield (
        "drawing.svg",
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/><script>alert(1)</script></svg>',
    )
    yield "page.html", b"<script>alert(1)</script>"
    yield "document.pdf", b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>"
    yield "program.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\nshowpage\n%%EOF"
    yield "pickle.png", b"cos\nsystem\n(S'exit 1'\ntR."
    yield "plain.ppm", b"P5 2 2 255\n0000"
    yield "list.m3u8", b"#EXTM3U\n#EXT-X-ENDLIST\nfile:///etc/passwd"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../../image.png", png)
    yield "archive.zip", archive.getvalue()
    yield "image_and_archive.png", png + archive.getvalue()


def _saved(image: Image.Image, form: str, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _resized(content: bytes, form: str, side: int) -> bytes:
    """The same file with another width and height in its header."""
    if form == "PNG":
        header = struct.pack(">II", side, side) + content[24:29]
        return content[:8] + _chunk(b"IHDR", header) + content[33:]
    if form == "JPEG":
        size = content.index(b"\xff\xc0") + 5
        return content[:size] + struct.pack(">HH", side, side) + content[size + 4 :]
    place, pattern = {"GIF": (6, "<HH"), "BMP": (18, "<ii")}[form]
    sizes = struct.pack(pattern, side, side)
    return content[:place] + sizes + content[place + len(sizes) :]


def _damaged(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """The same file cut, with bits turned, with bytes written over, lost or doubled, or with the end of another one."""
    first, last = sorted(chance.randrange(len(content) + 1) for _ in range(2))
    last = min(last, first + 500)
    kind = chance.randrange(6)
    if kind == 0:
        return content[:last]
    if kind == 1:
        turned = bytearray(content)
        for _ in range(chance.choice([1, 3, 30])):
            turned[chance.randrange(min(len(turned), chance.choice([40, 400, 10**6])))] ^= 1 << chance.randrange(8)
        return bytes(turned)
    middle = {2: chance.randbytes(last - first), 3: b"", 4: content[first:last] * 2, 5: other[-500:]}[kind]
    return content[:first] + middle + (b"" if kind == 5 else content[last:])
