"""Reading data sets: what is found by itself, and what is refused with the name of the argument."""

import dataclasses
import io
import json
import os
import re

import datasets
import numpy as np
import pytest
import torch
from image_data import load_images, load_validation
from image_sets import config, encoded, numbered, picture, save_arrays, save_folder, save_parquet, save_set, save_shards
from PIL import Image
from sklearn.datasets import load_digits
from train_config import TrainConfig, UserError


class TestTheEmbeddedDigits:
    def test_they_are_those_of_scikit_learn(self, tmp_path):
        digits = load_digits()
        wanted = {(label, np.rint(p * 255 / 16).astype(np.uint8).tobytes()) for label, p in
                  zip(digits.target.tolist(), digits.images, strict=True)}  # fmt: skip
        found, count = set(), 0
        for split, size in (("train", 1497), ("test", 300)):
            data = load_images(dataclasses.replace(TrainConfig(), split=split, cache_dir=str(tmp_path)))
            assert data.pixels.shape == (size, 1, 8, 8)
            assert data.class_names == [str(i) for i in range(10)]
            assert data.labels.bincount().min() >= 30
            count += size
            found |= {(int(y), p.tobytes()) for y, p in zip(data.labels, data.pixels, strict=True)}
        assert count == 1797
        assert found == wanted

    def test_they_are_found_from_any_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert len(load_images(dataclasses.replace(TrainConfig(), cache_dir=str(tmp_path)))) == 1497


class TestWhatIsFound:
    @pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4)])
    def test_the_image_column_by_its_type_and_the_channels_by_the_data(self, tmp_path, mode, channels):
        images = [picture(mode, seed=i) for i in range(3)]
        data = load_images(config(save_parquet(tmp_path, images, [0, 1, 1])))
        assert data.pixels.shape == (3, channels, 8, 8)
        assert data.dtype == torch.uint8
        assert data.labels.tolist() == [0, 1, 1]
        assert data.class_names == ["a", "b"]
        for tensor, image in zip(data.fetch(torch.arange(3)), images, strict=True):
            np.testing.assert_array_equal(tensor.permute(1, 2, 0).squeeze(-1).numpy(), np.asarray(image))

    def test_images_without_labels(self, tmp_path):
        data = load_images(config(save_parquet(tmp_path, [picture()])))
        assert data.labels is None
        assert data.class_names == []

    def test_labels_can_be_left_aside(self, tmp_path):
        assert load_images(config(save_parquet(tmp_path, [picture()], [0]), class_conditional=False)).labels is None

    def test_an_image_folder(self, tmp_path):
        data = load_images(config(save_folder(tmp_path, cat__1=picture(seed=1), dog__1=picture(seed=2))))
        assert data.class_names == ["cat", "dog"]
        assert data.labels.tolist() == [0, 1]

    @pytest.mark.parametrize("with_splits", [False, True])
    def test_a_saved_data_set(self, tmp_path, with_splits):
        table = datasets.Dataset.from_dict({"x": [picture()]}, features=datasets.Features({"x": datasets.Image()}))
        saved = datasets.DatasetDict({"train": table}) if with_splits else table
        saved.save_to_disk(tmp_path / "saved")
        assert load_images(config(tmp_path / "saved")).pixels.shape == (1, 1, 8, 8)

    @pytest.mark.parametrize("with_splits", [False, True])
    @pytest.mark.parametrize(
        ("split", "rows"), [("train[:2]", [0, 1]), ("train[50%:]", [2, 3]), ("train[:1]+train[-1:]", [0, 3])]
    )
    def test_a_part_of_a_saved_data_set(self, tmp_path, with_splits, split, rows):
        table = datasets.load_from_disk(save_set(tmp_path / "all", labels=[0, 1, 2, 3]))
        (datasets.DatasetDict({"train": table}) if with_splits else table).save_to_disk(tmp_path / "saved")
        data = load_images(config(tmp_path / "saved", split=split, label_column="y"))
        assert data.labels.tolist() == rows

    def test_integers_are_named_and_not_used_by_themselves(self, tmp_path):
        folder = save_set(tmp_path, labels=[0, 1, 1])
        data = load_images(config(folder))
        assert (data.labels, data.unused_labels) == (None, ["y"])
        data = load_images(config(folder, label_column="y"))
        assert (data.labels.tolist(), data.class_names, data.unused_labels) == ([0, 1, 1], ["0", "1"], [])
        assert load_images(config(folder, class_conditional=False)).unused_labels == []

    def test_other_sizes_are_scaled_and_cropped(self, tmp_path):
        wide = Image.fromarray(np.repeat(np.array([[0] * 8 + [200] * 16 + [0] * 8], dtype=np.uint8), 16, axis=0))
        data = load_images(config(save_parquet(tmp_path, [wide, picture(size=(8, 24))]), resolution=8))
        assert data.pixels.shape == (2, 1, 8, 8)
        # 32×16 becomes 16×8, whose middle 8 columns are the bright half.
        assert data.pixels[0, 0, :, 1:7].min() >= 190

    def test_other_modes_are_converted(self, tmp_path):
        images = [picture("L"), picture("RGB"), picture("L").convert("P"), picture("RGB").convert("CMYK")]
        buffers = []
        for image in images:
            buffer = io.BytesIO()
            image.save(buffer, format="TIFF")
            buffers.append({"bytes": buffer.getvalue(), "path": None})
        data = load_images(config(save_parquet(tmp_path, buffers), image_mode="RGB"))
        assert data.pixels.shape == (4, 3, 8, 8)


class TestWhatIsRefused:
    def refused(self, message: str, folder, **kwargs):
        with pytest.raises(UserError, match=message):
            load_images(config(folder, **kwargs))

    def test_a_folder_that_is_not_there(self, tmp_path):
        self.refused("`dataset_name` is .*there is no such folder", tmp_path / "nowhere")

    def test_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        self.refused("`dataset_name` is .*a file; it must be a folder", tmp_path / "file")

    def test_an_empty_folder(self, tmp_path):
        self.refused("`dataset_name` = .*cannot be loaded", tmp_path)

    def test_a_data_set_without_rows(self, tmp_path):
        self.refused("`dataset_name` = .*corresponds to no data", save_parquet(tmp_path / "parquet", []))
        table = datasets.Dataset.from_dict({"x": []}, features=datasets.Features({"x": datasets.Image()}))
        table.save_to_disk(tmp_path / "saved")
        self.refused("`dataset_name` = .*is empty", tmp_path / "saved")

    def test_a_split_that_is_not_there(self, tmp_path):
        self.refused("`split` = 'tset'.*cannot be loaded.*train", save_parquet(tmp_path, [picture()]), split="tset")

    @pytest.mark.parametrize("split", ["test", "test[:1]", "train[", "train[1.5:]"])
    def test_a_split_that_a_saved_data_set_has_not(self, tmp_path, split):
        message = rf"`split` is {re.escape(repr(split))}; the data set has train, or parts"
        self.refused(message, save_set(tmp_path, labels=[0, 1]), split=split)

    def test_an_empty_part_of_a_saved_data_set(self, tmp_path):
        self.refused("is empty", save_set(tmp_path, labels=[0, 1]), split="train[2:]")

    def test_a_script(self, tmp_path):
        (tmp_path / "script").mkdir()
        (tmp_path / "script" / "script.py").write_text("import datasets")
        self.refused("`dataset_name` = .*cannot be loaded: Dataset scripts", tmp_path / "script")

    def test_a_broken_card(self, tmp_path):
        save_parquet(tmp_path, [picture()])
        (tmp_path / "README.md").write_text("---\nconfigs: [\n---\n")
        self.refused("`dataset_name` = .*cannot be loaded", tmp_path)

    def test_a_name_longer_than_any_file_system_takes(self):
        self.refused("`dataset_name` = .*cannot be loaded", "x" * 300)

    def test_no_images(self, tmp_path):
        datasets.Dataset.from_dict({"text": ["a"], "n": [1]}).to_parquet(tmp_path / "train.parquet")
        self.refused(r"no column of images; it has text \(string\), n \(int64\)", tmp_path)

    def test_two_columns_of_images(self, tmp_path):
        features = datasets.Features({"a": datasets.Image(), "b": datasets.Image()})
        table = datasets.Dataset.from_dict({"a": [picture()], "b": [picture(size=(4, 4))]}, features=features)
        table.to_parquet(tmp_path / "train.parquet")
        self.refused("`image_column` is needed: the columns a, b", tmp_path)
        assert load_images(config(tmp_path, image_column="b")).pixels.shape == (1, 1, 4, 4)

    @pytest.mark.parametrize(
        ("column", "message"), [("c", "the columns are picture, kind"), ("kind", "a column of ClassLabel")]
    )
    def test_a_wrong_image_column(self, tmp_path, column, message):
        self.refused(
            f"`image_column` is '{column}'.*{message}", save_parquet(tmp_path, [picture()], [0]), image_column=column
        )

    def test_a_label_outside_the_classes(self, tmp_path):
        datasets.Dataset.from_dict(
            {"x": [picture()], "y": [-1]},
            features=datasets.Features({"x": datasets.Image(), "y": datasets.Value("int64")}),
        ).to_parquet(tmp_path / "train.parquet")
        self.refused("`label_column` is 'y', which holds -1", tmp_path, label_column="y")

    @pytest.mark.parametrize("feature", [None, datasets.ClassLabel(names=["a", "b"])], ids=["integers", "classes"])
    def test_a_missing_label(self, tmp_path, feature):
        folder = save_set(tmp_path, labels=[0, None, 1], feature=feature)
        self.refused("`label_column` is 'y', but row 1 has no label", folder, label_column="y")

    def test_labels_that_are_no_integers(self, tmp_path):
        folder = save_set(tmp_path, labels=["a", "b"], feature=datasets.Value("string"))
        self.refused("`label_column` is 'y', which holds string values", folder, label_column="y")

    def test_a_number_of_classes_that_no_data_set_has(self, tmp_path):
        message = "`label_column` is 'y', which holds 1000000000; .*K may be 1000 here. Number the classes from 0"
        self.refused(message, save_set(tmp_path, labels=[5, 10**9, 0]), label_column="y")

    def test_an_image_of_no_bytes(self, tmp_path):
        folder = save_folder(tmp_path, cat__1=picture(), cat__empty=b"")
        self.refused("empty.png.* cannot be read: its 0 bytes are no image. Repair", folder)

    def test_an_image_whose_decoder_fails(self, tmp_path, monkeypatch):
        """PIL's decoders raise more than they document: RuntimeError, struct.error, KeyError and others."""

        def fail(self, value):
            raise RuntimeError("broken data stream")

        folder = save_parquet(tmp_path, [picture()])
        monkeypatch.setattr(datasets.Image, "decode_example", fail)
        self.refused("image 0.* cannot be read: broken data stream. Repair", folder)

    def test_an_image_that_cannot_be_read(self, tmp_path):
        whole = io.BytesIO()
        picture(size=(64, 64)).save(whole, format="PNG")
        for number, content in enumerate((b"not an image", whole.getvalue()[:200])):
            folder = save_folder(tmp_path / str(number), cat__1=picture(size=(64, 64)), cat__broken=content)
            self.refused(r"image 1 \(.*broken.png\) cannot be read", folder)

    def test_a_missing_image(self, tmp_path):
        self.refused(r"image 1 is missing \(null\)", save_parquet(tmp_path, [picture(), None]))

    def test_mixed_sizes(self, tmp_path):
        images = [picture(), picture(size=(9, 8))]
        self.refused("image 0 is 8×8, image 1 is 9×8. Set --resolution", save_parquet(tmp_path, images))

    def test_mixed_modes(self, tmp_path):
        self.refused(
            "image 0 is L, image 1 is RGB. Set --image_mode", save_parquet(tmp_path, [picture(), picture("RGB")])
        )

    def test_floating_point(self, tmp_path):
        image = {"bytes": encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), "path": None}
        self.refused("image 0 has mode F; images of 8 or 16 bits", save_parquet(tmp_path / "images", [image]))
        arrays = np.zeros((2, 3, 8, 8), np.float32)
        folder = save_arrays(tmp_path / "arrays", arrays, datasets.Array3D((3, 8, 8), "float32"))
        self.refused(r"no column of images; it has field \(Array3D of float32\)", folder)
        self.refused("`image_column` is 'field', a column of Array3D of float32", folder, image_column="field")

    def test_thirty_two_bits(self, tmp_path):
        image = {"bytes": encoded(Image.fromarray(np.full((8, 8), 70_000, np.int32)), "TIFF"), "path": None}
        self.refused("image 0 has mode I; images of 8 or 16 bits", save_parquet(tmp_path, [image]))

    def test_a_mode_for_arrays(self, tmp_path):
        arrays = np.zeros((2, 3, 8, 8), np.uint8)
        folder = save_arrays(tmp_path / "arrays", arrays, datasets.Array3D((3, 8, 8), "uint8"))
        self.refused("`image_mode` is 'RGB', but the images are arrays of type Array3D", folder, image_mode="RGB")

    def test_a_mixture_of_8_and_16_bits(self, tmp_path):
        folder = save_parquet(tmp_path / "data", [picture(), picture("I;16")])
        self.refused("image 0 is L, image 1 is I;16. Set --image_mode", folder)
        assert load_images(config(folder, image_mode="L")).dtype == torch.uint8

    def test_a_cache_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        folder = save_parquet(tmp_path / "data", [picture()])
        self.refused("`cache_dir` is .*file/cache'.*Name another", folder, cache_dir=str(tmp_path / "file" / "cache"))

    def test_more_than_the_memory_holds(self, tmp_path):
        self.refused("that many images of 1000000×1000000 take .* GiB.*Lower --resolution",
                     save_parquet(tmp_path, [picture()]), resolution=1_000_000)  # fmt: skip


class TestDepthAndChannels:
    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_16_bits_come_back_exactly(self, tmp_path, kind):
        wide = np.arange(2**16, dtype=np.uint16).reshape(2, 1, 128, 256)  # every value that there is
        images = [{"bytes": encoded(Image.fromarray(image[0]), kind), "path": None} for image in wide]
        data = load_images(config(save_parquet(tmp_path / "data", images)))
        assert (data.dtype, data.image_shape) == (torch.uint16, (1, 128, 256))
        np.testing.assert_array_equal(data.fetch(torch.tensor([1, 0])).numpy(), wide[::-1])

    def test_16_bits_are_scaled_to_8_where_a_mode_asks_for_them(self, tmp_path):
        ramp = Image.fromarray(np.array([[0, 200, 257, 32639, 65000, 65535]], dtype=np.uint16))
        data = load_images(config(save_parquet(tmp_path / "data", [ramp]), image_mode="L"))
        assert data.fetch(torch.tensor([0])).flatten().tolist() == [0, 1, 1, 127, 253, 255]

    @pytest.mark.parametrize("dtype", ["uint8", "uint16"])
    @pytest.mark.parametrize("channels", [None, 2, 7])
    def test_arrays_of_any_number_of_channels(self, tmp_path, dtype, channels):
        shape = (5, 9) if channels is None else (channels, 5, 9)
        arrays = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (300, *shape), endpoint=True, dtype=dtype)
        kind = datasets.Array2D if channels is None else datasets.Array3D
        data = load_images(config(save_arrays(tmp_path / "data", arrays, kind(shape, dtype))))
        assert (data.image_shape, str(data.dtype)) == ((channels or 1, 5, 9), f"torch.{dtype}")
        np.testing.assert_array_equal(data.fetch(torch.arange(300)).numpy(), arrays.reshape(300, -1, 5, 9))

    @pytest.mark.parametrize("dtype", ["uint8", "uint16"])
    def test_channels_are_scaled_each_for_itself_and_in_their_own_depth(self, tmp_path, dtype):
        """Against PIL's scaling of floating-point images, and of 8-bit images, of another implementation: within 1."""
        largest = np.iinfo(dtype).max
        smooth = np.linspace(0, largest, 16 * 16).reshape(16, 16).astype(dtype)
        arrays = np.stack([np.stack([smooth, largest - smooth, smooth.T])])
        folder = save_arrays(tmp_path / "data", arrays, datasets.Array3D((3, 16, 16), dtype))
        found = load_images(config(folder, resolution=8)).fetch(torch.tensor([0]))[0].numpy()
        assert found.dtype == dtype
        for channel, wanted in zip(found, arrays[0], strict=True):
            small = Image.fromarray(wanted.astype(np.float32)).resize((8, 8), Image.Resampling.LANCZOS)
            # Rounded to integers, and cut off where the filter overshoots.
            assert np.abs(channel - np.asarray(small).clip(0, largest)).max() <= 0.5
            if dtype == "uint8":
                pictured = Image.fromarray(wanted).resize((8, 8), Image.Resampling.LANCZOS)
                assert np.abs(channel.astype(int) - np.asarray(pictured)).max() <= 1

    def test_heights_and_widths_of_their_own_and_room_for_the_crop(self, tmp_path):
        """A 24×8 picture of three squares, scaled to cover 8×12 and 2 more of each: 30×10, whose middle 14 columns stay."""
        columns = np.repeat(np.array([0, 100, 200], dtype=np.uint8), 8)
        folder = save_parquet(tmp_path / "data", [Image.fromarray(np.tile(columns, (8, 1)))])
        data = load_images(config(folder, resolution=(8, 12), random_crop=2))
        assert data.pixels.shape == (1, 1, 10, 14)
        assert data.image_shape == (1, 8, 12)
        row = data.fetch(torch.tensor([0]))[0, 0, 4]
        # Columns 8…21 of 30; the middle third is 10…19.
        assert row[5:9].tolist() == [100] * 4
        assert row[0] < 10
        assert row[-1] > 190
        seen, _ = data.some(5)
        assert torch.equal(seen, data.fetch(torch.tensor([0]))[..., 1:9, 1:13])

    def test_the_first_image_column_wins_over_arrays(self, tmp_path):
        features = datasets.Features({"field": datasets.Array2D((4, 4), "uint8"), "x": datasets.Image()})
        table = datasets.Dataset.from_dict({"field": [np.ones((4, 4), np.uint8)], "x": [picture()]}, features=features)
        (tmp_path / "data").mkdir()
        table.to_parquet(tmp_path / "data" / "train.parquet")
        assert load_images(config(tmp_path / "data")).image_shape == (1, 8, 8)
        assert load_images(config(tmp_path / "data", image_column="field")).image_shape == (1, 4, 4)


class TestUnreadableImages:
    """Rows 1, 4 and 6 of eight are a truncated file, a missing one and no image at all."""

    @pytest.fixture
    def folder(self, tmp_path):
        broken = {1: encoded(picture(size=(64, 64)))[:200], 4: None, 6: b"no image"}
        return save_shards(tmp_path / "data", [[broken.get(i, i) for i in range(8)]])

    def report(self, folder) -> list[dict]:
        (path,) = folder.with_name("data.cache").glob("unreadable-*.json")
        return json.loads(path.read_text())

    @pytest.mark.parametrize("again", [False, True])
    def test_refused_with_the_first_and_how_many_and_where_they_are_listed(self, folder, again):
        if again:  # what is known from the time before must be told as well
            with pytest.raises(UserError):
                load_images(config(folder))
        with pytest.raises(
            UserError, match=r"whose image 1 cannot be read: .*3 of 8 images.*listed in .*unreadable"
        ) as error:
            load_images(config(folder))
        assert "--unreadable_images skip" in str(error.value)
        assert [image["row"] for image in self.report(folder)] == [1, 4, 6]
        assert self.report(folder)[1]["reason"] == "is missing (null)"

    @pytest.mark.parametrize("again", [False, True])
    def test_skipped_with_their_labels(self, folder, again, capsys):
        skip = config(folder, unreadable_images="skip")
        data = load_images(skip)
        data = load_images(skip) if again else data
        assert data.fetch(torch.arange(len(data)))[:, 0, 0, 0].tolist() == [0, 2, 3, 5, 7]
        assert data.labels.tolist() == [0, 2, 0, 2, 1]
        assert len(data.unreadable) == 3
        assert data.unreadable[0].startswith("image 1 cannot be read: ")
        assert [image["row"] for image in self.report(folder)] == [1, 4, 6]
        assert "3 of 8 images cannot be read and are skipped, listed in " in capsys.readouterr().out

    def test_one_that_could_not_be_read_and_now_can_is_not_left_out(self, tmp_path):
        folder = save_folder(tmp_path / "data", cat__1=picture(), cat__2=picture(seed=1))
        path = folder / "train" / "cat" / "2.png"
        stat, content = path.stat(), path.read_bytes()
        path.write_bytes(b"x" * len(content))
        skip = config(folder, unreadable_images="skip")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as when a disk comes back: the file is the same one
        assert len(load_images(skip)) == 1
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert len(load_images(skip)) == 2

    def test_none_at_all(self, tmp_path):
        folder = save_parquet(tmp_path / "data", [None, None])
        for policy in ("refuse", "skip"):
            with pytest.raises(UserError, match=r"image 0 is missing .*name another data set.*2 of 2 images"):
                load_images(config(folder, unreadable_images=policy))

    def test_those_that_are_left_must_be_alike(self, tmp_path):
        folder = save_parquet(tmp_path / "data", [None, picture(), picture("RGB")])
        with pytest.raises(UserError, match=r"image 1 is L, image 2 is RGB\. Set --image_mode"):
            load_images(config(folder, unreadable_images="skip"))


class TestTheFingerprint:
    def test_it_is_that_of_what_is_trained_on_wherever_it_lies(self, tmp_path):
        images = [picture(seed=i) for i in range(4)]
        first = load_images(config(save_parquet(tmp_path / "one", images, [0, 1, 0, 1])))
        moved = load_images(config(save_parquet(tmp_path / "two", images, [0, 1, 0, 1])))
        assert first.fingerprint == moved.fingerprint
        others = [
            config(save_parquet(tmp_path / "labels", images, [0, 1, 1, 1])),
            config(save_parquet(tmp_path / "names", images, [0, 1, 0, 1], names=("a", "c"))),
            config(save_parquet(tmp_path / "fewer", images[:3], [0, 1, 0])),
            config(tmp_path / "one", class_conditional=False),
            config(tmp_path / "one", resolution=(4, 8)),
        ]
        fingerprints = [load_images(other).fingerprint for other in others]
        assert len({first.fingerprint, *fingerprints}) == 6


class TestValidation:
    @pytest.fixture
    def folder(self, tmp_path):
        folder = save_shards(tmp_path / "data", [list(range(20))])
        table = datasets.load_dataset("parquet", data_files=str(folder / "train-00000-of-00001.parquet"), split="train")
        table.select(range(10, 20)).to_parquet(folder / "test-00000-of-00001.parquet")
        return folder

    @pytest.mark.parametrize("streaming", [False, True])
    def test_some_images_of_the_split(self, folder, streaming):
        chosen = config(folder, validation_split="test", validation_images=4, streaming=streaming)
        held = load_validation(chosen, load_images(chosen))
        # Evenly spaced in the ten that there are; of a stream the first ones.
        numbers = [10, 11, 12, 13] if streaming else [10, 12, 15, 17]
        assert held.fetch(torch.arange(4))[:, 0, 0, 0].tolist() == numbers
        assert (len(held), held.labels.tolist(), held.margin) == (4, [number % 3 for number in numbers], 0)
        all_of_them = dataclasses.replace(chosen, validation_images=1000)
        assert len(load_validation(all_of_them, load_images(chosen))) == 10

    def test_a_part_of_the_training_split(self, folder):
        chosen = config(folder, split="train[:15]", validation_split="train[15:]")
        held = load_validation(chosen, load_images(chosen))
        assert held.fetch(torch.arange(5))[:, 0, 0, 0].tolist() == [15, 16, 17, 18, 19]

    def test_none(self, folder):
        assert load_validation(config(folder), load_images(config(folder))) is None

    def test_the_middle_of_what_the_crop_is_cut_from(self, tmp_path):
        folder = save_parquet(tmp_path / "data", [picture(size=(9, 9), seed=i) for i in range(3)])
        chosen = config(folder, resolution=6, random_crop=3, validation_split="train")
        data = load_images(chosen)
        held = load_validation(chosen, data)
        assert held.image_shape == data.image_shape == (1, 6, 6)
        assert torch.equal(held.fetch(torch.arange(3)), data.fetch(torch.arange(3))[..., 1:7, 1:7])

    @pytest.mark.parametrize("streaming", [False, True])
    def test_another_shape_or_other_classes(self, folder, tmp_path, streaming):
        chosen = config(folder, validation_split="test", streaming=streaming)
        other = config(save_parquet(tmp_path / "wide", [picture(size=(6, 4))], [0]), streaming=streaming)
        message = (
            r"`validation_split` is 'test', whose images have the shape .*\(1, 4, 4\), .*\(1, 4, 6\).* Set --resolution"
        )
        with pytest.raises(UserError, match=message):
            load_validation(chosen, load_images(other))
        other = config(save_parquet(tmp_path / "named", [numbered(0)], [0]), streaming=streaming)
        with pytest.raises(UserError, match=r"have the classes \['a', 'b', 'c'\], and those .*\['a', 'b'\]"):
            load_validation(chosen, load_images(other))

    def test_integers_of_which_not_all_come(self, tmp_path):
        folder = save_set(tmp_path / "data", labels=[0, 1, 2, 1])
        chosen = config(folder, label_column="y", validation_split="train[:2]")
        held = load_validation(chosen, load_images(chosen))
        assert (held.class_names, held.labels.tolist()) == (["0", "1", "2"], [0, 1])
        chosen = config(folder, label_column="y", split="train[:2]", validation_split="train[2:]")
        with pytest.raises(UserError, match="`label_column` is 'y', which holds 1…2; the classes are 0…1"):
            load_validation(chosen, load_images(chosen))
