"""Reading data sets: what is found by itself, and what is refused with the name of the argument."""

import dataclasses
import io
import re

import datasets
import numpy as np
import pytest
import torch
from image_data import load_images
from PIL import Image
from sklearn.datasets import load_digits
from train_config import TrainConfig, UserError


def config(folder, **kwargs) -> TrainConfig:
    return dataclasses.replace(TrainConfig(), dataset_name=str(folder), **kwargs)


def picture(mode: str = "L", size: tuple[int, int] = (8, 8), seed: int = 0) -> Image.Image:
    shape = (size[1], size[0], len(mode)) if mode in ("RGB", "RGBA") else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def save_parquet(folder, images: list, labels: list[int] | None = None, name: str = "picture", names=("a", "b")):
    """A data set of Parquet files in the Hub's schema, whose image column has an unusual name."""
    features, columns = {name: datasets.Image()}, {name: images}
    if labels is not None:
        features["kind"], columns["kind"] = datasets.ClassLabel(names=list(names)), labels
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(folder / "train-0.parquet")
    return folder


def save_set(folder, labels: list, feature=None) -> str:
    """A data set saved with `save_to_disk`, whose classes are by default plain integers."""
    features = datasets.Features({"x": datasets.Image(), "y": feature or datasets.Value("int64")})
    columns = {"x": [picture(seed=i) for i in range(len(labels))], "y": labels}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder)
    return str(folder)


def save_folder(folder, **files: Image.Image | bytes):
    """An image folder with one folder per class: `class__name=image`."""
    for key, content in files.items():
        kind, name = key.split("__")
        (folder / "train" / kind).mkdir(parents=True, exist_ok=True)
        path = folder / "train" / kind / f"{name}.png"
        path.write_bytes(content) if isinstance(content, bytes) else content.save(path)
    return folder


class TestTheEmbeddedDigits:
    def test_they_are_those_of_scikit_learn(self):
        digits = load_digits()
        wanted = {(label, np.rint(p * 255 / 16).astype(np.uint8).tobytes()) for label, p in
                  zip(digits.target.tolist(), digits.images, strict=True)}  # fmt: skip
        found, count = set(), 0
        for split, size in (("train", 1497), ("test", 300)):
            data = load_images(dataclasses.replace(TrainConfig(), split=split))
            assert data.pixels.shape == (size, 1, 8, 8)
            assert data.class_names == [str(i) for i in range(10)]
            assert data.labels.bincount().min() >= 30
            count += size
            found |= {(int(y), p.numpy().tobytes()) for y, p in zip(data.labels, data.pixels, strict=True)}
        assert count == 1797
        assert found == wanted

    def test_they_are_found_from_any_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert len(load_images(TrainConfig())) == 1497


class TestWhatIsFound:
    @pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4)])
    def test_the_image_column_by_its_type_and_the_channels_by_the_data(self, tmp_path, mode, channels):
        images = [picture(mode, seed=i) for i in range(3)]
        data = load_images(config(save_parquet(tmp_path, images, [0, 1, 1])))
        assert data.pixels.shape == (3, channels, 8, 8)
        assert data.pixels.dtype == torch.uint8
        assert data.labels.tolist() == [0, 1, 1]
        assert data.class_names == ["a", "b"]
        for tensor, image in zip(data.pixels, images, strict=True):
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

    def test_sixteen_bits(self, tmp_path):
        image = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8))
        self.refused("has mode I;16; 8-bit images are supported", save_parquet(tmp_path, [image]))

    def test_more_than_the_memory_holds(self, tmp_path):
        self.refused("GiB.*Lower --resolution", save_parquet(tmp_path, [picture()]), resolution=1_000_000)
