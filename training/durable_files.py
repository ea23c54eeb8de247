"""Files that are whole after a kill or a power cut: written beside their place, synced, then renamed.

Tensors are written as safetensors piece by piece, hashed on the way: `safetensors.torch.save_file` maps the file into
memory instead, tells a full disk in an error type of its own, and gives no hash without a second reading.
"""

import errno
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

PIECE = 8 * 2**20  # bytes that are written and hashed at a time: both take milliseconds, in two threads
PARTIAL = ".partial"  # the end of the names of files that are being written

# The names of the safetensors format, by those of torch.
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "complex64": "C64",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


class Written(NamedTuple):
    """What a file holds: its size in bytes and its SHA-256, in hexadecimal digits."""

    size: int
    sha256: str


def write_synced(path: Path, pieces: Iterable[bytes | memoryview]) -> Written:
    """Writes a new file and waits until the disk has it. The folder's entry of it is not synced: [`sync_folder`].

    Raises:
        OSError: if the disk is full, or refuses otherwise; the file is then incomplete.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with ThreadPoolExecutor(1) as hasher, path.open("xb", buffering=0) as file:
            for piece in pieces:
                hashed = hasher.submit(digest.update, piece)
                rest = memoryview(piece)
                while rest:  # a nearly full disk takes less than it is given, and tells so at the next call
                    rest = rest[file.write(rest) :]
                hashed.result()
                size += len(piece)
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)  # which writing leaves out
        raise
    return Written(size, digest.hexdigest())


def lock(descriptor: int, kind: int) -> bool:
    """Locks an open folder (`fcntl.LOCK_SH` or `LOCK_EX`) until it is closed; whether nobody else holds it.

    Some network file systems have no locks of folders: there, nobody can tell.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def sync_folder(folder: Path) -> None:
    """Waits until the disk has the folder's entries: a renamed or deleted file is so for good only then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Waits until the disk has a file that another library wrote."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_whole(path: Path, text: str) -> None:
    """Writes a text file whole or not at all, also where the power fails."""
    _replace(path, [text.encode("utf-8")])


def write_tensors(path: Path, tensors: dict, metadata: dict[str, str]) -> None:
    """Writes a safetensors file whole or not at all; equal tensors give equal bytes."""
    _replace(path, tensor_pieces(tensors, metadata))


def _replace(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    # One name for all writers: a killed one leaves one file, which the next replaces.
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)
    try:
        write_synced(partial, pieces)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def fresh_name(folder: Path, prefix: str) -> Path:
    """A name in the folder that nothing has; no two processes are given the same."""
    return folder / f"{prefix}{secrets.token_hex(8)}"


def tensors_size(tensors: dict) -> int:
    """The bytes that the tensors take in a file, without its header."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def tensor_pieces(tensors: dict, metadata: dict[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """The content of a safetensors file, in pieces of at most [`PIECE`] bytes after the header.

    Args:
        tensors (`dict` of `torch.Tensor`): of any device and strides; no copy of more than one of them is made.
        metadata (`dict` of `str`, *optional*): further facts in the header.

    Raises:
        TypeError: for a type of numbers that the format does not have, and for tensors that are spread over processes.
    """
    # The format asks for aligned numbers: the widest first. Then by name, so that equal tensors give equal bytes.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, start = {} if not metadata else {"__metadata__": dict(sorted(metadata.items()))}, 0
    for name in names:
        tensor, end = tensors[name], start + tensors[name].numel() * tensors[name].element_size()
        kind = _DTYPES.get(str(tensor.dtype).removeprefix("torch."))
        if kind is None or hasattr(tensor, "full_tensor"):
            raise TypeError(f"{name!r} is a {type(tensor).__name__} of {tensor.dtype}, which no file of tensors holds.")
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield from _tensor_pieces(tensors[name])


def _tensor_pieces(tensor) -> Iterator[memoryview]:
    import torch  # late: this module is also imported where nothing heavy is

    content = memoryview(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    for start in range(0, len(content), PIECE):
        yield content[start : start + PIECE]
