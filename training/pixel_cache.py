"""Images are decoded once: their pixels are kept in a memory-mapped file beside a manifest that says they are whole.

A cache is a folder, named by all that its pixels depend on, with `pixels.npy` (N, C, h, w) and `manifest.json`. It is
written under another name and renamed when it is complete, so what has the right name was finished by whoever wrote it.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from durable_files import sync_folder
from huggingface_hub.constants import HF_HOME
from image_decoding import EncodedImages, ImageLayout
from machine import available_threads
from pixel_file import NO_ROOM, PixelFile, has_room
from tqdm.auto import tqdm
from train_config import TrainConfig, UserError

FORMAT = 1
# Whether pixels are those that were written is checked where that takes no longer than a second or two.
LARGEST_HASHED = 2**30
# A temporary folder in which nothing was written for so long was left by a process that was killed.
STALE_SECONDS = 24 * 3600


class DamagedCacheError(ValueError):
    """A cache that is not what its manifest says."""


@dataclass(frozen=True)
class Manifest:
    """What is known of the decoded images; `manifest.json` holds it.

    Attributes:
        rows (`int`): rows of the table that the images come from.
        unreadable (`list[dict]`): `row`, `name` and `reason` of those without an image, in the order of the rows.
        mode, shape, dtype: as in [`ImageLayout`], of one image.
        stored (`bool`): whether the pixels lie beside the manifest; they do not where the disk has no room for them.
        sha256 (`str`): of the pixels.
        file_bytes (`int`): size of `pixels.npy`; 0 if it is not stored.
        format (`int`): of this cache.
    """

    rows: int
    unreadable: list[dict]
    mode: str
    shape: tuple[int, int, int]
    dtype: str
    stored: bool
    sha256: str
    file_bytes: int
    format: int = FORMAT

    @property
    def count(self) -> int:
        return self.rows - len(self.unreadable)

    def readable_rows(self) -> np.ndarray:
        """The rows that have an image: `int64`, shape (N,)."""
        return np.delete(np.arange(self.rows), [image["row"] for image in self.unreadable])


class DecodedOnDemand:
    """Indexed like the array (N, C, h, w) of all images, which are decoded as they are asked for."""

    def __init__(self, images: EncodedImages, manifest: Manifest):
        self.shape, self.dtype = (manifest.count, *manifest.shape), np.dtype(manifest.dtype)
        self._images, self._rows, self._threads = images, manifest.readable_rows(), available_threads()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decoding")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        if not len(rows):
            return np.empty((0, *self.shape[1:]), self.dtype)
        shares = [share.tolist() for share in np.array_split(self._rows[rows], self._threads) if len(share)]
        found = [image for images in self._pool.map(self._images.decode, shares) for image in images]
        for image in found:
            if isinstance(image, Exception):  # it could be read before
                raise UserError(f"{image.__notes__[0]} {image}, but could be read when training began.") from image
        return np.stack(found)


def cache_folder(config: TrainConfig) -> Path:
    return Path(config.cache_dir).expanduser() if config.cache_dir else Path(HF_HOME) / "ddpm_hub"


def cache_key(**parts) -> str:
    """A name for what depends on these values (JSON-able) alone."""
    return hashlib.sha256(json.dumps({"format": FORMAT, **parts}, sort_keys=True).encode()).hexdigest()[:32]


def cached_pixels(images: EncodedImages, folder: Path, key: str) -> tuple[np.ndarray | DecodedOnDemand, Manifest]:
    """The pixels of all images that can be read, from the cache, which is built first where there is none.

    Any number of processes may do this at once: each builds in a folder of its own, and the first that ends wins.

    Args:
        images (`EncodedImages`): N rows.
        folder (`Path`): where caches are kept.
        key (`str`): the name of this one.

    Returns:
        The pixels, read-only and memory-mapped, and the manifest. Without room on the disk: an object that decodes the same
        pixels when it is indexed. With no image that can be read, `None` for the pixels.
    """
    found = _find(folder / key)
    if found is not None and _is_current(found, images, folder):
        return _open(folder / key, found, images)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        temporary = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=folder))
    except OSError as error:
        if error.errno in NO_ROOM:
            return _open(folder / key, _decode_all(images, None), images)
        raise UserError(
            f"`cache_dir` is {str(folder)!r}, where nothing can be written: {error.strerror}. Name another folder, with some "
            f"room for decoded images."
        ) from error
    try:
        manifest = _decode_all(images, temporary)
        if manifest.count:
            manifest = _install(temporary, folder / key, manifest)
        return _open(folder / key, manifest, images)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already if it was renamed


def _decode_all(images: EncodedImages, folder: Path | None) -> Manifest:
    """Decodes every image in the order of the rows, into `pixels.npy` if there is room, and writes the manifest."""
    unreadable, digest = [], hashlib.sha256()
    with tqdm(total=len(images), desc="decoding images", unit=" images", leave=False) as bar:
        if not images.find_layout():
            unreadable = [_unreadable(row, images.decode([row])[0]) for row in range(len(images))]
            return Manifest(len(images), unreadable, "", (0, 0, 0), "uint8", False, "", 0)
        file = PixelFile(folder, len(images), images.decoder.layout)
        try:
            with closing(images.decode_in_order(images.best_threads())) as chunks:
                for start, chunk in chunks:
                    unreadable += [_unreadable(start + i, e) for i, e in enumerate(chunk) if isinstance(e, Exception)]
                    pixels = [image for image in chunk if isinstance(image, np.ndarray)]
                    if pixels:
                        content = np.stack(pixels)
                        digest.update(content)
                        file.write(content)
                    bar.update(len(chunk))
            layout, rows = images.decoder.layout, len(images)
            size = file.finish(rows - len(unreadable))
        finally:
            file.close()
    manifest = Manifest(
        rows, unreadable, layout.mode, layout.shape, layout.dtype.name, size > 0, digest.hexdigest(), size
    )
    if folder is not None:
        _write_manifest(folder, manifest)
    return manifest


def _unreadable(row: int, error: Exception) -> dict:
    return {"row": row, "name": error.__notes__[0], "reason": str(error)}


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    with open(folder / "manifest.json", "w", encoding="utf-8") as file:
        json.dump(asdict(manifest), file, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def _install(temporary: Path, final: Path, manifest: Manifest) -> Manifest:
    """Renames a finished cache, unless another process was faster; returns the manifest of the one that is there."""
    while True:
        try:
            os.rename(temporary, final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        else:
            sync_folder(final.parent)
            return manifest
        found = _find(final, warn=False)
        if found is not None and found.stored >= manifest.stored and found.sha256 == manifest.sha256:
            return found
        _remove(final)


def _find(path: Path, warn: bool = True) -> Manifest | None:
    """The manifest of a cache whose files are what it says; `None`, with a warning, if it is damaged."""
    if not os.path.lexists(path):
        return None
    try:
        return _read_manifest(path)
    except (DamagedCacheError, OSError) as error:
        if not warn:
            return None
        print(f"The cache {path} is damaged ({error}); the images are decoded again.", file=sys.stderr, flush=True)
        return None


def _read_manifest(path: Path) -> Manifest:
    try:
        values = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        manifest = replace(Manifest(**values), shape=tuple(values["shape"]))
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedCacheError(f"manifest.json cannot be read: {error}") from error
    if not manifest.stored:
        return manifest
    size = (path / "pixels.npy").stat().st_size
    if size != manifest.file_bytes:
        raise DamagedCacheError(f"pixels.npy has {size} bytes and not {manifest.file_bytes}")
    pixels = _map(path, manifest)
    if size <= LARGEST_HASHED and hashlib.sha256(pixels).hexdigest() != manifest.sha256:
        raise DamagedCacheError("the hash of pixels.npy differs")
    return manifest


def _map(path: Path, manifest: Manifest) -> np.ndarray:
    try:
        pixels = np.load(path / "pixels.npy", mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise DamagedCacheError(f"pixels.npy cannot be read: {error}") from error
    if (pixels.shape, pixels.dtype.name) != ((manifest.count, *manifest.shape), manifest.dtype):
        raise DamagedCacheError(f"pixels.npy holds {pixels.shape} of {pixels.dtype}")
    return pixels


def _is_current(found: Manifest, images: EncodedImages, folder: Path) -> bool:
    """Whether nothing more can be had than a cache holds: room for its pixels, images that could not be read before."""
    if not found.stored and has_room(folder, _size(found)):
        return False
    images.decoder.layout = ImageLayout(found.mode, found.shape, np.dtype(found.dtype), "the first image")
    again = images.decode([image["row"] for image in found.unreadable]) if found.unreadable else []
    images.decoder.layout = images.decoder.layout if all(isinstance(e, Exception) for e in again) else None
    return images.decoder.layout is not None


def _open(path: Path, manifest: Manifest, images: EncodedImages):
    """The pixels and the manifest."""
    if not manifest.count:
        return None, manifest
    if manifest.stored:
        return _map(path, manifest), manifest
    size, free = _size(manifest) / 2**30, shutil.disk_usage(_existing(path)).free / 2**30
    print(
        f"The {size:.1f} GiB of decoded images have no room in {path.parent} ({free:.1f} GiB are free): they are decoded again "
        f"each time they are needed. --cache_dir names another folder.",
        file=sys.stderr,
        flush=True,
    )
    return DecodedOnDemand(images, manifest), manifest


def _size(manifest: Manifest) -> int:
    return manifest.count * int(np.prod(manifest.shape)) * np.dtype(manifest.dtype).itemsize


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def _remove_stale(folder: Path) -> None:
    """Removes what killed processes left behind."""
    for path in folder.glob(".*.*"):
        changed = [_changed(p) for p in (path, *path.glob("*"))] if path.is_dir() else []
        if changed and max(changed) < time.time() - STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process tidied up or renamed it
        return time.time()


def _remove(path: Path) -> None:
    """Takes a cache out of the way at once, whoever still reads it, and then deletes it."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        os.rename(path, aside / "damaged")
    except FileNotFoundError:  # another process was faster
        return
    finally:
        shutil.rmtree(aside, ignore_errors=True)
