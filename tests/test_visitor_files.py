"""Uploads of every kind: what is harmless becomes an image of 8 bits, and all else is refused in one sentence."""

import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import numpy as np
import pytest
import visitor_files
from PIL import Image
from request_checks import InvalidRequestError
from visitor_files import opened_image, result_file, with_uploads

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)


@pytest.fixture(autouse=True)
def uploads(tmp_path, monkeypatch):
    folder = tmp_path / "gradio"
    (folder / "abc").mkdir(parents=True)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    return folder / "abc"


def save(uploads, name: str, image: Image.Image, **options) -> str:
    path = uploads / name
    image.save(path, **options)
    return str(path)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes, depth: int = 1, rows: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# --- What is opened ---


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.webp"])
def test_pixels_come_as_they_are(uploads, name):
    options = {"lossless": True} if name == "a.webp" else {}
    path = save(uploads, name, Image.fromarray(PIXELS), **options)
    for upload in (path, {"path": path}, {"path": path, "meta": {"_type": "gradio.FileData"}}):
        found = opened_image(upload)
        assert found.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(found), PIXELS)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("1", "L"), ("L", "L"), ("LA", "L"), ("P", "RGB"), ("RGB", "RGB"), ("RGBA", "RGB"), ("I;16", "L")],
)
def test_every_mode_of_a_png(uploads, mode, expected):
    found = opened_image(save(uploads, "a.png", Image.new(mode, (5, 3))))
    assert (found.mode, found.size) == (expected, (5, 3))


def test_cmyk_and_ycbcr(uploads):
    for mode in ("CMYK", "YCbCr", "RGB", "L"):
        found = opened_image(save(uploads, "a.jpg", Image.new(mode, (5, 3))))
        assert (found.mode, found.size) == ("L" if mode == "L" else "RGB", (5, 3))


def test_16_bits_are_scaled_and_not_cut(uploads):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    found = opened_image(save(uploads, "a.png", Image.fromarray(values)))
    np.testing.assert_array_equal(np.asarray(found), [[0, 1, 128, 255]])


def test_what_is_transparent_lies_on_white(uploads):
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = (0, 128, 255)
    found = np.asarray(opened_image(save(uploads, "a.png", Image.fromarray(pixels))))
    assert found[0, :, 0].tolist() == [255, 127, 0]
    palette = Image.new("P", (1, 1))
    assert np.asarray(opened_image(save(uploads, "p.png", palette, transparency=0))).tolist() == [[[255] * 3]]


def test_of_an_animation_the_first_frame_is_taken(uploads):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    for name in ("a.gif", "a.webp", "a.png"):
        path = save(uploads, name, frames[0], save_all=True, append_images=frames[1:])
        red, _, blue = np.asarray(opened_image(path))[0, 0].tolist()
        assert red > 240
        assert blue < 15


def test_a_photo_that_lies_on_its_side_is_turned(uploads):
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = 6
    found = opened_image(save(uploads, "a.png", image, exif=exif))
    np.testing.assert_array_equal(np.asarray(found), np.rot90(PIXELS, -1))


def test_32_bits_are_cut_to_16(uploads):
    values = np.array([[-7, 0, 257, 70_000]], np.int32)
    found = opened_image(save(uploads, "a.tiff", Image.fromarray(values)))
    np.testing.assert_array_equal(np.asarray(found), [[0, 0, 1, 255]])


def test_colours_of_print(uploads):
    found = opened_image(save(uploads, "a.tiff", Image.new("CMYK", (2, 2), (0, 255, 255, 0))))
    assert found.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_large_image_is_made_smaller_by_a_whole_factor(uploads, monkeypatch, factor):
    monkeypatch.setattr(visitor_files, "KEPT_PIXELS", PIXELS.shape[0] * PIXELS.shape[1])
    enlarged = Image.fromarray(PIXELS.repeat(factor, 0).repeat(factor, 1))
    np.testing.assert_array_equal(np.asarray(opened_image(save(uploads, "a.png", enlarged))), PIXELS)


def test_images_are_decoded_one_after_another(uploads, monkeypatch):
    path, inside, most, threads = save(uploads, "a.png", Image.fromarray(PIXELS)), [], [], set()
    decoded = visitor_files._decoded

    def watched(path):
        inside.append(path)
        threads.add(threading.get_ident())
        found = decoded(path)
        most.append(len(inside))
        inside.pop()
        return found

    monkeypatch.setattr(visitor_files, "_decoded", watched)
    with ThreadPoolExecutor(8) as visitors:
        list(visitors.map(opened_image, [path] * 200))
    assert max(most) == len(threads) == 1


def test_an_upload_is_known_by_its_address_too(uploads):
    path = save(uploads, "a b%2f.png", Image.fromarray(PIXELS))
    address = f"https://space.example/gradio_api/file={quote(path)}"
    assert opened_image({"path": address}).size == (4, 6)
    file = {"path": address, "meta": {"_type": "gradio.FileData"}}
    assert with_uploads([file]) == [file | {"path": path}]


# --- What is refused ---


def test_too_little_memory_is_no_fault_of_the_image(uploads, monkeypatch):
    path = save(uploads, "a.png", Image.fromarray(PIXELS))

    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(visitor_files, "_in_8_bits", fails)
    with pytest.raises(MemoryError):
        opened_image(path)


UNREADABLE = "The image cannot be read: it is damaged, or no PNG, JPEG, WEBP, GIF, BMP or TIFF."
ROW = b"\0" * (30_000 // 8 + 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", UNREADABLE),
        (b"no image at all", UNREADABLE),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', UNREADABLE),
        (b"%PDF-1.4", UNREADABLE),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", UNREADABLE),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, UNREADABLE),
        (png(30_000, 30_000, rows=ROW * 30_000), "The image is too large: at most 20 million pixels."),
        (png(5_000, 4_001, rows=b""), "The image is too large: at most 20 million pixels."),
        (png(2**31 - 1, 2**31 - 1), "The image is too large: at most 20 million pixels."),
        (png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 2**27)), depth=8), UNREADABLE),
    ],
    ids=["empty", "text", "svg", "pdf", "eps", "header", "bomb", "large", "huge", "chunk"],
)
def test_what_does_harm_or_is_no_image(uploads, content, message):
    (uploads / "a.png").write_bytes(content)
    with pytest.raises(InvalidRequestError) as caught:
        opened_image(str(uploads / "a.png"))
    assert str(caught.value) == message
    assert str(uploads) not in caught.value.message.zh


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tiff"])
def test_every_truncation_and_many_wrong_bytes(uploads, name):
    path = uploads / name
    save(uploads, name, Image.fromarray(PIXELS.repeat(8, 0).repeat(8, 1)))
    whole, random = path.read_bytes(), np.random.default_rng(1)
    cases = [whole[:length] for length in np.linspace(0, len(whole) - 1, 40, dtype=int)]
    for _ in range(60):
        wrong = bytearray(whole)
        wrong[random.integers(len(wrong))] = random.integers(256)
        cases.append(bytes(wrong))
    opened = 0
    for content in cases:
        path.write_bytes(content)
        try:
            opened += opened_image(str(path)).mode in ("L", "RGB")
        except InvalidRequestError as error:
            assert str(error).startswith("The image ")  # noqa: PT017
    assert opened > 0  # a wrong pixel is a pixel


def test_a_file_that_is_too_large_is_not_opened(uploads, monkeypatch):
    monkeypatch.setattr(visitor_files, "LARGEST_BYTES", 2**20)
    (uploads / "a.png").write_bytes(b"\0" * (2**20 + 1))
    with pytest.raises(InvalidRequestError, match="The image is too large: at most 1 MB"):
        opened_image(str(uploads / "a.png"))


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/proc/self/environ", "{uploads}/../../secret.png", "{uploads}/link.png", "{uploads}"]
)
@pytest.mark.parametrize("shape", [str, lambda path: {"path": path}, lambda path: {"path": path, "url": "x"}])
def test_no_other_file_of_this_machine_is_read(uploads, tmp_path, path, shape):
    Image.fromarray(PIXELS).save(tmp_path / "secret.png")
    (uploads / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(InvalidRequestError, match=r"The image is no(t| upload| longer)"):
        opened_image(shape(path.format(uploads=uploads)))


@pytest.mark.parametrize(
    "upload", [5, [], {}, {"path": 5}, {"path": None}, {"path": "a\0b"}, "http://127.0.0.1/a.png", True]
)
def test_what_is_no_upload_at_all(upload):
    with pytest.raises(InvalidRequestError, match=r"The image is (no|missing)"):
        opened_image(upload)


def test_no_image_is_asked_for():
    with pytest.raises(InvalidRequestError, match="The image is missing: upload one"):
        opened_image(None)


def test_files_in_a_request_must_be_uploads(uploads):
    meta = {"_type": "gradio.FileData"}
    path = save(uploads, "a.png", Image.fromarray(PIXELS))
    values = [1, {"deep": [{"path": path, "meta": meta}]}]
    assert with_uploads(values) == values
    for other in ("/etc/passwd", "http://169.254.169.254/latest"):
        with pytest.raises(InvalidRequestError, match="The file is no upload"):
            with_uploads([{"path": other, "meta": meta}])


def test_results_lie_where_gradio_deletes_them(uploads):
    first, second = result_file("a.png"), result_file("a.png")
    assert first != second
    assert first.is_relative_to(uploads.parent)
