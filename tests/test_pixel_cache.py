"""The cache of decoded images: built once, whole or not at all, noticed when it or its source is no longer the same."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from huggingface_hub.constants import HF_HOME
from image_data import ImageData, load_images
from image_decoding import ImageDecoder
from image_sets import config, picture, save_folder, save_parquet, save_set
from pixel_cache import cache_folder
from train_config import TrainConfig

COUNT = 600  # more than one chunk

# What a process of its own does: loads the images and says what it sees of them.
LOAD = """
import sys; sys.path[:0] = ["training", "tests"]
from image_data import load_images
from image_sets import config
data = load_images(config(sys.argv[1]))
print(data.fingerprint, data.pixels.sum(), flush=True)
"""
# The same, stopped for good in the middle of the file of pixels.
KILLED = "import os, signal, sys; sys.path[:0] = ['training']; import pixel_file\nwrite = pixel_file.PixelFile.write\n" """
def fail(self, pixels):
    write(self, pixels)
    self._file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
pixel_file.PixelFile.write = fail
""" + LOAD  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    images = [picture("RGB", (6, 5), seed=i) for i in range(COUNT)]
    return save_parquet(tmp_path / "data", images, [i % 2 for i in range(COUNT)])


def cache_of(folder: Path) -> Path:
    """The one cache of a data set; whatever else lies beside it is an error."""
    (path,) = folder.with_name(folder.name + ".cache").iterdir()
    return path


def loaded(data: ImageData) -> torch.Tensor:
    return data.fetch(torch.arange(len(data)))


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the images that are decoded in this process."""
    names, decode = [], ImageDecoder.decode

    def listed(self, value, name):
        names.append(name)
        return decode(self, value, name)

    monkeypatch.setattr(ImageDecoder, "decode", listed)
    return names


class TestDecodingOnce:
    def test_the_second_time_nothing_is_decoded_and_all_is_the_same(self, folder, decoded):
        first = load_images(config(folder))
        assert len(set(decoded)) == COUNT
        decoded.clear()
        second = load_images(config(folder))
        assert decoded == []
        assert torch.equal(loaded(first), loaded(second))
        assert torch.equal(first.labels, second.labels)
        assert (first.fingerprint, first.image_shape) == (second.fingerprint, second.image_shape)

    def test_it_is_a_numpy_file_and_its_manifest_says_what_it_holds(self, folder):
        data = load_images(config(folder))
        manifest = json.loads((cache_of(folder) / "manifest.json").read_text())
        pixels = np.load(cache_of(folder) / "pixels.npy")
        np.testing.assert_array_equal(pixels, loaded(data).numpy())
        assert manifest["sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()
        assert (manifest["rows"], manifest["shape"], manifest["dtype"]) == (COUNT, [3, 5, 6], "uint8")
        assert manifest["file_bytes"] == (cache_of(folder) / "pixels.npy").stat().st_size

    def test_it_takes_no_memory_and_cannot_be_changed(self, folder):
        pixels = load_images(config(folder)).pixels
        assert isinstance(pixels, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            pixels[0] = 0

    def test_the_labels_are_not_part_of_it(self, folder, decoded):
        load_images(config(folder))
        decoded.clear()
        assert load_images(config(folder, class_conditional=False)).labels is None
        assert decoded == []

    @pytest.mark.parametrize("change", [{"resolution": 4}, {"resolution": 4, "random_crop": 1}, {"image_mode": "L"},
                                        {"split": "train[:50%]"}])  # fmt: skip
    def test_other_pixels_have_another(self, folder, decoded, change):
        load_images(config(folder))
        decoded.clear()
        changed = load_images(config(folder, **change))
        assert decoded
        decoded.clear()
        assert torch.equal(loaded(changed), loaded(load_images(config(folder, **change))))
        assert decoded == []


class TestTheSourceChanges:
    """Each time one image is replaced by another that takes as many bytes."""

    @pytest.fixture
    def images(self):
        return [picture(seed=i) for i in range(3)]

    def changed(self, folder, decoded, change) -> None:
        before = loaded(load_images(config(folder)))
        change()
        decoded.clear()
        after = loaded(load_images(config(folder)))
        assert decoded
        assert torch.equal(before[0], after[0])
        assert not torch.equal(before[1], after[1])

    def test_a_parquet_file(self, tmp_path, images, decoded):
        folder = save_parquet(tmp_path / "data", images)
        size = (folder / "train-0.parquet").stat().st_size
        self.changed(folder, decoded, lambda: save_parquet(folder, [images[0], picture(seed=9), images[2]]))
        assert (folder / "train-0.parquet").stat().st_size == size

    def test_an_image_of_a_folder(self, tmp_path, images, decoded):
        folder = save_folder(tmp_path / "data", **{f"cat__{i}": image for i, image in enumerate(images)})
        path = folder / "train" / "cat" / "1.png"
        size = path.stat().st_size
        self.changed(folder, decoded, lambda: picture(seed=9).save(path))
        assert path.stat().st_size == size

    def test_a_saved_set(self, tmp_path, decoded):
        folder = Path(save_set(tmp_path / "data", labels=[0, 1, 0]))
        (file,) = folder.glob("*.arrow")
        content = file.read_bytes()

        def change() -> None:
            """In the file itself, so that the fingerprint that stands beside it remains."""
            with datasets.load_from_disk(str(folder)) as table:
                old = table.cast_column("x", datasets.Image(decode=False))[1]["x"]["bytes"]
            new = picture(seed=9)
            new.save(tmp_path / "new.png")
            new = (tmp_path / "new.png").read_bytes()
            assert len(new) == len(old)
            file.unlink()  # the file that is mapped into memory stays as it was
            file.write_bytes(content.replace(old, new))

        self.changed(folder, decoded, change)


class TestDamage:
    def rebuilt(self, folder, capsys, decoded, reason: str) -> None:
        expected = loaded(load_images(config(folder)))
        self.damage(folder)
        decoded.clear()
        capsys.readouterr()
        data = load_images(config(folder))
        assert len(set(decoded)) == COUNT
        assert torch.equal(loaded(data), expected)
        error = capsys.readouterr().err
        assert error.count("is damaged") == 1
        assert reason in error
        decoded.clear()
        load_images(config(folder))
        assert decoded == []
        cache_of(folder)  # nothing is left beside it

    @pytest.mark.parametrize("what", ["pixels", "manifest"])
    @pytest.mark.parametrize("how", ["gone", "truncated", "empty", "changed"])
    def test_it_is_noticed_and_said_and_the_images_are_decoded_again(self, folder, capsys, decoded, what, how):
        def damage(folder: Path) -> None:
            path = cache_of(folder) / ("pixels.npy" if what == "pixels" else "manifest.json")
            content = path.read_bytes()
            path.unlink()
            if how == "truncated":
                path.write_bytes(content[:-7])
            elif how == "empty":
                path.touch()
            elif how == "changed":  # one bit
                position = len(content) // 2 if what == "pixels" else content.index(b'"rows"') + 1
                path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])

        self.damage = damage
        reason = {("pixels", "changed"): "hash", ("pixels", "truncated"): "bytes and not"}.get((what, how), "")
        self.rebuilt(folder, capsys, decoded, reason)


def set_age(folder: Path, hours: float) -> None:
    """As if nothing had been written there for so long."""
    then = time.time() - 3600 * hours
    for path in (*folder.iterdir(), folder):
        os.utime(path, (then, then))


class TestOtherProcesses:
    def start(self, script: str, folder: Path) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", script, str(folder)], cwd=REPOSITORY, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)  # fmt: skip

    def test_a_build_that_is_killed_leaves_nothing_that_is_taken_for_whole(self, folder, decoded):
        process = self.start(KILLED, folder)
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL
        left = cache_of(folder)
        assert left.name.startswith(".")
        assert (left / "pixels.npy").stat().st_size > 1000
        set_age(left, hours=23)
        data = load_images(config(folder))
        assert len(set(decoded)) == COUNT
        for i in (0, COUNT - 1):
            np.testing.assert_array_equal(
                data.fetch(torch.tensor([i]))[0], np.moveaxis(np.asarray(picture("RGB", (6, 5), i)), 2, 0)
            )
        assert left.exists()  # it may belong to a process that is still at work
        set_age(left, hours=25)
        load_images(config(folder, resolution=4))
        assert not left.exists()
        assert len(list(folder.with_name("data.cache").iterdir())) == 2

    def test_several_that_build_at_once_get_the_same(self, folder):
        datasets.load_dataset(str(folder))  # so that they meet where the images are decoded
        processes = [self.start(LOAD, folder) for _ in range(2)]
        said = {process.communicate(timeout=120)[0] for process in processes}
        assert [process.returncode for process in processes] == [0, 0]
        data = load_images(config(folder))
        assert said == {f"{data.fingerprint} {loaded(data).sum()}\n"}
        cache_of(folder)

    def test_one_that_reads_keeps_what_it_reads_while_another_replaces_it(self, folder):
        data = load_images(config(folder))
        expected = loaded(data)
        (cache_of(folder) / "manifest.json").write_text("{}")
        again = load_images(config(folder))
        assert torch.equal(loaded(data), expected)
        assert torch.equal(loaded(again), expected)


class TestNoRoom:
    @pytest.fixture
    def no_room(self, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0))

    def test_the_same_pixels_are_decoded_as_they_are_needed(self, folder, no_room, capsys, decoded, monkeypatch):
        data = load_images(config(folder))
        error = capsys.readouterr().err
        assert error.count("have no room in") == 1
        assert "--cache_dir" in error
        assert not (cache_of(folder) / "pixels.npy").exists()
        rows = torch.tensor([5, 5, 599, 0])
        decoded.clear()
        found = data.fetch(rows)
        assert sorted(decoded) == sorted(["image 5", "image 5", "image 599", "image 0"])
        assert len(data.fetch(torch.tensor([], dtype=torch.int64))) == 0
        decoded.clear()
        again = load_images(config(folder))  # that they can be read is known
        assert decoded == []
        monkeypatch.undo()
        cached = load_images(config(folder))
        assert isinstance(cached.pixels, np.memmap)
        assert torch.equal(cached.fetch(rows), found)
        assert torch.equal(again.fetch(rows), found)
        assert data.image_shape == cached.image_shape
        assert data.fingerprint == again.fingerprint == cached.fingerprint

    def test_rows_are_those_of_the_images_that_can_be_read(self, tmp_path, no_room):
        folder = save_parquet(tmp_path / "data", [picture(), None, picture(seed=2)], [0, 0, 1])
        data = load_images(config(folder, unreadable_images="skip"))
        np.testing.assert_array_equal(data.fetch(torch.tensor([1]))[0, 0].numpy(), np.asarray(picture(seed=2)))
        assert data.labels.tolist() == [0, 1]

    def test_a_disk_that_fills_up_in_the_meantime(self, tmp_path):
        """A limit on the size of files is met in the same way, in the middle of the pixels."""
        folder = save_parquet(tmp_path / "data", [picture(size=(64, 64), seed=i) for i in range(COUNT)])
        script = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        limited = LOAD.replace(
            "data = ", script + "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20 + 2**19, -1))\ndata = "
        )
        limited = limited.replace("data.pixels.sum()", "data.fetch(__import__('torch').arange(len(data))).sum().item()")
        datasets.load_dataset(str(folder))  # its own files are larger
        result = subprocess.run([sys.executable, "-c", limited, str(folder)], cwd=REPOSITORY, capture_output=True, text=True,
                                timeout=120, check=False)  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert "have no room in" in result.stderr
        assert [path.name for path in cache_of(folder).iterdir()] == ["manifest.json"]
        data = load_images(config(folder))
        assert result.stdout == f"{data.fingerprint} {loaded(data).sum()}\n"


def test_an_interrupted_build_leaves_nothing(folder, monkeypatch):
    def interrupt(self, value, name):
        if name == "image 300":
            raise KeyboardInterrupt
        return decode(self, value, name)

    decode = ImageDecoder.decode
    monkeypatch.setattr(ImageDecoder, "decode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_images(config(folder))
    assert list(folder.with_name("data.cache").iterdir()) == []


def test_where_it_is_kept():
    assert cache_folder(TrainConfig()) == Path(HF_HOME) / "ddpm_hub"
    assert cache_folder(dataclasses.replace(TrainConfig(), cache_dir="~/somewhere")) == Path.home() / "somewhere"
