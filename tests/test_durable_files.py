"""Files that are whole or not there, and the safetensors format against its own library."""

import hashlib
import os

import pytest
import safetensors.torch
import torch
from durable_files import PIECE, tensor_pieces, tensors_size, write_synced, write_tensors, write_whole


def test_files_of_tensors_are_those_of_the_safetensors_library():
    """Byte by byte: the widest numbers first, so that all are aligned, then by name."""
    tensors = {name: torch.randn(3, 5) for name in ("b", "a", "ü")} | {"scalar": torch.tensor(2.5)}
    for dtype in (torch.bool, torch.float64, torch.bfloat16):
        tensors[f"{dtype}"] = torch.arange(3).to(dtype)
    ours = b"".join(tensor_pieces(tensors, {"step": "5"}))
    assert ours == safetensors.torch.save(tensors, {"step": "5"})


def test_size_and_hash_are_of_what_is_in_the_file(tmp_path):
    tensors = {"a": torch.arange(PIECE // 2 + 3), "b": torch.zeros(5, dtype=torch.bool)}
    written = write_synced(tmp_path / "file", tensor_pieces(tensors))
    data = (tmp_path / "file").read_bytes()
    assert written == (len(data), hashlib.sha256(data).hexdigest())
    header = int.from_bytes(data[:8], "little")
    assert len(data) == 8 + header + tensors_size(tensors)


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(FileExistsError):
        write_synced(tmp_path / "file", [b"new"])
    assert (tmp_path / "file").read_text() == "old"


def test_a_text_is_replaced_whole(tmp_path):
    for text in ("θ", "x" * 100, ""):
        write_whole(tmp_path / "text", text)
        assert (tmp_path / "text").read_text(encoding="utf-8") == text
    assert os.listdir(tmp_path) == ["text"]


def test_a_file_of_tensors_is_replaced_whole(tmp_path):
    path = tmp_path / "x.safetensors"
    path.with_name("x.safetensors.partial").write_text("what a killed process left")
    for number in (1.0, 2.0):
        write_tensors(path, {"a": torch.tensor([number])}, {"step": "1"})
    assert os.listdir(tmp_path) == ["x.safetensors"]
    assert safetensors.torch.load_file(path)["a"].item() == 2
    with pytest.raises(TypeError, match="complex128"):
        write_tensors(path, {"a": torch.zeros(1, dtype=torch.complex128)}, {})
    assert os.listdir(tmp_path) == ["x.safetensors"]
