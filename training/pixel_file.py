"""A numpy file that is written image by image, for as long as the disk has room."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from image_decoding import ImageLayout

# Left free on the disk: a tenth of what is written, and this many bytes.
SPARE_BYTES = 2**24
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class PixelFile:
    """`pixels.npy`, written image by image; given up where the disk is full.

    Written with plain writes: one through a memory map would kill the process when the disk is full.
    """

    def __init__(self, folder: Path | None, count: int, layout: ImageLayout):
        self._layout, self._file = layout, None
        size = count * int(np.prod(layout.shape)) * layout.dtype.itemsize
        if folder is not None and has_room(folder, size):
            self._file = open(folder / "pixels.npy", "wb")  # noqa: SIM115 - closed by `close`
            self._attempt(lambda: self._write_header(count))

    def write(self, pixels: np.ndarray) -> None:
        if self._file is not None:
            self._attempt(lambda: self._file.write(np.ascontiguousarray(pixels).data))

    def finish(self, count: int) -> int:
        """Writes how many images there are; returns the size of the file, 0 if there is none."""
        if self._file is None:
            return 0
        self._attempt(lambda: self._finish(count))
        return 0 if self._file is None else os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _finish(self, count: int) -> None:
        self._file.seek(0)
        self._write_header(count)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _write_header(self, count: int) -> None:
        """Of the same length for any count: numpy leaves room for the first axis to grow."""
        description = np.lib.format.dtype_to_descr(self._layout.dtype)
        header = {"descr": description, "fortran_order": False, "shape": (count, *self._layout.shape)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            path, file, self._file = self._file.name, self._file, None
            os.unlink(path)
            os.ftruncate(file.fileno(), 0)  # what is still buffered may fail again
            _close_without_room(file)


def _close_without_room(file) -> None:
    try:
        file.close()
    except OSError as error:  # the rest of the buffer has no room either
        if error.errno not in NO_ROOM:
            raise


def has_room(folder: Path, size: int) -> bool:
    return shutil.disk_usage(folder).free > size + size // 10 + SPARE_BYTES
