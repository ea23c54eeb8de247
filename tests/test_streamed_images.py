"""Streams: the order is a function of the seed and the epoch alone, and any position can be resumed."""

import dataclasses
import json

import datasets
import numpy as np
import pytest
import torch
from image_data import load_images
from image_sets import (
    config,
    encoded,
    numbered,
    picture,
    save_arrays,
    save_folder,
    save_parquet,
    save_set,
    save_shards,
    save_tars,
)
from random_batches import Batch, Batches
from streamed_images import StreamedImages
from train_config import UserError

# Four files of unequal length, 23 images in all; windows of 6 do not end where files do.
SHARDS = [list(range(0, 7)), list(range(7, 8)), list(range(8, 18)), list(range(18, 23))]
COUNT = 23


def streaming(folder, **kwargs):
    return config(folder, **{"streaming": True, "shuffle_buffer": 6, "batch_size": 4} | kwargs)


def draw(chosen, count: int, start: int = 0, position: dict | None = None, process: int = 0, processes: int = 1):
    """The parts of each step, and the position before each and after the last, by way of JSON."""
    batches = Batches(chosen, load_images(chosen), "cpu", process, processes)
    batches.start(start, position)
    steps, positions = [], [json.dumps(batches.position())]
    for _ in range(count):
        steps.append(batches.next(torch.zeros(chosen.batch_size, dtype=torch.int64)))
        positions.append(json.dumps(batches.position()))
    batches.close()
    return steps, [json.loads(position) for position in positions]


def numbers(steps: list[list[Batch]]) -> list[int]:
    return torch.cat([part.pixels[:, 0, 0, 0] for parts in steps for part in parts]).tolist()


def joined(parts: list[Batch]) -> list[torch.Tensor]:
    return [torch.cat([getattr(part, name) for part in parts]) for name in ("pixels", "labels", "noise")]


def same(first: list[Batch], second: list[Batch]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(joined(first), joined(second), strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_shards(tmp_path_factory.mktemp("stream") / "data", SHARDS)


class TestWhatIsStreamed:
    def test_what_is_known_before_it_is_read(self, folder):
        data = load_images(streaming(folder))
        assert isinstance(data, StreamedImages)
        assert (data.image_shape, data.dtype, data.num_images) == ((1, 4, 4), torch.uint8, None)
        assert (data.class_names, data.unused_labels, data.unreadable) == (["a", "b", "c"], [], [])

    def test_the_first_images(self, folder):
        pixels, labels = load_images(streaming(folder)).some(9)
        assert pixels[:, 0, 0, 0].tolist() == list(range(9))
        assert labels.tolist() == [0, 1, 2] * 3
        assert len(load_images(streaming(folder)).some(100)[0]) == COUNT

    @pytest.mark.parametrize("kind", ["webdataset", "folder", "saved"])
    def test_other_forms_of_data_sets(self, tmp_path, kind):
        if kind == "webdataset":
            data = save_tars(tmp_path / "data", [[0, 1, 2], [3, 4], [5, 6, 7, 8]])
        elif kind == "folder":
            data = save_folder(
                tmp_path / "data", **{f"{'cat' if i < 4 else 'dog'}__{i}": numbered(i) for i in range(9)}
            )
        else:
            features = datasets.Features({"x": datasets.Image()})
            datasets.Dataset.from_dict({"x": [numbered(i) for i in range(9)]}, features=features).save_to_disk(
                tmp_path / "data"
            )
            data = tmp_path / "data"
        chosen = streaming(data, batch_size=9, shuffle_buffer=5)
        steps, _ = draw(chosen, 2)
        assert sorted(numbers(steps[:1])) == sorted(numbers(steps[1:])) == list(range(9))
        assert numbers(steps[:1]) != numbers(steps[1:])
        if kind == "folder":
            assert load_images(chosen).class_names == ["cat", "dog"]
            (((batch,),), _) = draw(dataclasses.replace(chosen, class_dropout=0.0), 1)
            assert [p >= 4 for p in batch.pixels[:, 0, 0, 0].tolist()] == [y == 1 for y in batch.labels.tolist()]

    def test_a_saved_set_is_read_in_shards(self, tmp_path):
        features = datasets.Features({"x": datasets.Image()})
        images = [numbered(i % 256, (1, 1)) for i in range(2500)]
        datasets.Dataset.from_dict({"x": images}, features=features).save_to_disk(tmp_path / "data")
        chosen = streaming(tmp_path / "data", batch_size=2500, shuffle_buffer=100)
        assert load_images(chosen).stream.num_shards == 2
        steps, _ = draw(chosen, 1)
        assert np.array_equal(np.bincount(numbers(steps)), np.bincount(np.arange(2500) % 256))

    @pytest.mark.parametrize("dtype", ["uint8", "uint16"])
    def test_arrays_and_16_bits(self, tmp_path, dtype):
        arrays = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (10, 5, 3, 4), dtype=dtype, endpoint=True)
        data = save_arrays(tmp_path / "data", arrays, datasets.Array3D((5, 3, 4), dtype))
        steps, _ = draw(streaming(data, batch_size=10), 1)
        assert steps[0][0].pixels.dtype == getattr(torch, dtype)
        found = steps[0][0].pixels.numpy()
        assert sorted(image.tobytes() for image in found) == sorted(array.tobytes() for array in arrays)

    def test_the_pixels_are_those_of_the_cache(self, tmp_path):
        folder = save_parquet(tmp_path / "data", [picture("RGB", (16, 12), seed=i) for i in range(5)])
        prepared = {"resolution": (6, 8), "random_crop": 3}
        kept, streamed = (load_images(config(folder, streaming=s, **prepared)) for s in (False, True))
        assert kept.image_shape == streamed.image_shape == (3, 6, 8)
        assert torch.equal(kept.some(5)[0], streamed.some(5)[0])
        steps, _ = draw(streaming(folder, batch_size=5, **prepared), 1)
        assert steps[0][0].pixels.shape == (5, 3, 6, 8)

    def test_the_fingerprint(self, folder, tmp_path):
        first = load_images(streaming(folder)).fingerprint
        assert load_images(streaming(folder)).fingerprint == first
        others = [streaming(folder, resolution=2), streaming(folder, class_conditional=False),
                  streaming(save_shards(tmp_path / "fewer", SHARDS[:2])),
                  streaming(save_shards(tmp_path / "other", [[1], *SHARDS[1:]]))]  # fmt: skip
        assert len({first, *(load_images(other).fingerprint for other in others)}) == 5


class TestTheOrder:
    def test_every_image_comes_once_in_every_epoch_and_batches_cross_them(self, folder):
        seen = numbers(draw(streaming(folder), 18)[0])
        epochs = [seen[start : start + COUNT] for start in (0, COUNT, 2 * COUNT)]
        for epoch in epochs:
            assert sorted(epoch) == list(range(COUNT))
        assert len({tuple(epoch) for epoch in epochs}) == 3

    def test_images_are_shuffled_within_windows_of_shuffled_shards(self, folder):
        """A buffer of one leaves the shards; with more, each window holds the same images in another order."""
        plain = numbers(draw(streaming(folder, shuffle_buffer=1), 18)[0])
        orders = set()
        for epoch in range(3):
            images = plain[epoch * COUNT : (epoch + 1) * COUNT]
            shards = sorted(SHARDS, key=lambda shard: images.index(shard[0]))
            assert images == [image for shard in shards for image in shard]
            orders.add(tuple(images))
        assert len(orders) > 1
        shuffled = numbers(draw(streaming(folder), 18)[0])
        moved = 0
        for epoch in range(3):
            for begin in range(epoch * COUNT, (epoch + 1) * COUNT, 6):
                window = slice(begin, min(begin + 6, (epoch + 1) * COUNT))
                assert sorted(shuffled[window]) == sorted(plain[window])
                moved += shuffled[window] != plain[window]
        assert moved > 6  # of 12, of which a permutation of 6 or 5 leaves one unchanged in 1 of 120 at most

    def test_every_window_of_every_epoch_is_shuffled_in_its_own_way(self, tmp_path):
        folder = save_shards(tmp_path / "data", [list(range(24))])
        seen = numbers(draw(streaming(folder), 18)[0])
        ways = {tuple(image % 6 for image in seen[begin : begin + 6]) for begin in range(0, 72, 6)}
        assert len(ways) > 9  # of twelve, which are drawn from the 720 that there are

    def test_the_seed_decides(self, folder):
        first, again, other = (numbers(draw(streaming(folder, seed=seed), 6)[0]) for seed in (0, 0, 1))
        assert first == again != other

    @pytest.mark.parametrize(("processes", "parts"), [(2, 1), (4, 1), (1, 4), (2, 2)])
    def test_processes_and_accumulation_share_the_same_batch(self, folder, processes, parts):
        flags = {"random_flip": True, "resolution": 2, "random_crop": 2}
        alone, where = draw(streaming(folder, **flags), 14)
        shared = [draw(streaming(folder, gradient_accumulation_steps=parts, **flags), 14, process=p, processes=processes)
                  for p in range(processes)]  # fmt: skip
        for step, whole in enumerate(alone):
            assert same([shared[p][0][step][part] for part in range(parts) for p in range(processes)], whole)
        assert all(positions == where for _, positions in shared)


class TestResuming:
    @pytest.mark.parametrize("buffer", [1, 6, 100])
    def test_at_every_step_it_goes_on_as_if_it_had_not_stopped(self, folder, buffer):
        chosen = streaming(folder, shuffle_buffer=buffer, random_flip=True)
        whole, positions = draw(chosen, 16)
        for step in range(13):
            resumed, again = draw(chosen, 3, step, positions[step])
            assert all(same(a, b) for a, b in zip(resumed, whole[step : step + 3], strict=True))
            assert again == positions[step : step + 4]

    @pytest.mark.parametrize("step", [1, 5, 6, 12])
    def test_without_a_position_it_is_found(self, folder, step):
        whole, positions = draw(streaming(folder), 14)
        resumed, again = draw(streaming(folder), 2, step)
        assert all(same(a, b) for a, b in zip(resumed, whole[step : step + 2], strict=True))
        assert again == positions[step : step + 3]

    def test_files_before_the_position_are_not_read(self, tmp_path):
        """Cheap however far: the files of earlier shards may even be gone."""
        folder = save_shards(tmp_path / "data", SHARDS)
        chosen = streaming(folder, shuffle_buffer=1, batch_size=1)
        whole, positions = draw(chosen, COUNT)
        batches = Batches(chosen, load_images(chosen), "cpu")
        seen = numbers(whole)
        last = next(shard for shard in SHARDS if seen[-1] in shard)
        for number, shard in enumerate(SHARDS):
            if shard != last:
                (folder / f"train-{number:05d}-of-00004.parquet").write_bytes(b"gone")
        batches.start(COUNT - 1, positions[COUNT - 1])
        assert batches.next(torch.zeros(1))[0].pixels.unique().item() == seen[-1]
        batches.close()

    def test_positions_within_large_files(self, tmp_path):
        """Rows are read in groups, of which a position may be in the middle."""
        features = datasets.Features({"image": datasets.Image()})
        images = [numbered(i % 256, (1, 1)) for i in range(700)]
        (tmp_path / "data").mkdir()
        table = datasets.Dataset.from_dict({"image": images}, features=features)
        table.to_parquet(tmp_path / "data" / "train.parquet", batch_size=100)
        chosen = streaming(tmp_path / "data", shuffle_buffer=64, batch_size=50)
        whole, positions = draw(chosen, 15)
        for step in (1, 3, 7, 13):
            resumed, _ = draw(chosen, 2, step, positions[step])
            assert numbers(resumed) == numbers(whole[step : step + 2])


class TestUnreadableImages:
    """Of nine images, three are no image at all, a missing one and a truncated file."""

    @pytest.fixture
    def folder(self, tmp_path):
        truncated = encoded(picture(size=(64, 64)))[:200]
        return save_shards(tmp_path / "data", [[0, 1, b"no image", 3], [4, 5, None, 7, truncated]])

    def test_refused_by_name(self, folder):
        with pytest.raises(
            UserError, match=r"whose image \d of shard \d (is missing|cannot be read).*--unreadable_images skip"
        ):
            draw(streaming(folder), 4)

    @pytest.mark.parametrize("processes", [1, 2, 4])
    def test_the_next_of_the_window_takes_the_place_whatever_the_process(self, folder, processes, capsys):
        chosen = streaming(folder, shuffle_buffer=9, unreadable_images="skip")
        alone, _ = draw(chosen, 9)
        shared = [draw(chosen, 9, process=p, processes=processes)[0] for p in range(processes)]
        for step, whole in enumerate(alone):
            assert same([shared[p][step][0] for p in range(processes)], whole)
        seen = numbers(alone)
        for epoch in range(4):  # nine slots, six images: three come twice or thrice, each beside itself
            images = seen[epoch * 9 : epoch * 9 + 9]
            assert set(images) == {0, 1, 3, 4, 5, 7}
        assert capsys.readouterr().err.count("Skipped: image 2 of shard 0 cannot be read") >= 1

    def test_they_are_counted_once_named_and_listed(self, folder):
        chosen = streaming(folder, shuffle_buffer=4, batch_size=9, unreadable_images="skip")
        data = load_images(chosen)
        batches = Batches(chosen, data, "cpu")
        batches.start(0)
        for _ in range(3):
            batches.next(torch.zeros(9))
        batches.close()
        assert len(data.unreadable) == 3
        assert sorted(name.split(" cannot")[0].split(" is")[0] for name in data.unreadable) == [
            "image 2 of shard 0", "image 2 of shard 1", "image 4 of shard 1"]  # fmt: skip
        (report,) = folder.with_name("data.cache").glob("unreadable-*.json")
        assert json.loads(report.read_text()) == data.unreadable

    def test_a_window_without_one_that_can_be_read(self, tmp_path):
        folder = save_shards(tmp_path / "data", [[0, b"x", b"y"]])
        with pytest.raises(UserError, match="1 images on end cannot be read"):
            draw(streaming(folder, shuffle_buffer=1, unreadable_images="skip"), 3)

    def test_none_at_all(self, tmp_path):
        folder = save_shards(tmp_path / "data", [[None, b"x"]])
        with pytest.raises(UserError, match="has no image that can be read"):
            load_images(streaming(folder, unreadable_images="skip"))
        with pytest.raises(UserError, match="image 0 of shard 0 is missing"):
            load_images(streaming(folder))


class TestWhatIsRefused:
    def refused(self, message: str, folder, **kwargs):
        with pytest.raises(UserError, match=message):
            draw(streaming(folder, **kwargs), 10)

    def test_integers_whose_number_is_not_known(self, tmp_path):
        folder = save_set(tmp_path / "data", labels=[0, 1, 1])
        self.refused(
            "`label_column` is 'y', integers without names.*--class_conditional false", folder, label_column="y"
        )
        assert load_images(streaming(folder)).unused_labels == ["y"]

    @pytest.mark.parametrize("label", [-1, None])
    def test_a_label_outside_the_classes(self, tmp_path, label):
        folder = save_parquet(tmp_path / "data", [picture()] * 5, [0, 1, 0, label, 1])
        self.refused(
            f"`label_column` is 'kind', which holds ({label}|None|-1) for image 3 of shard 0; the classes are 0…1",
            folder,
        )
        assert load_images(streaming(folder, class_conditional=False)).class_names == []

    def test_mixed_sizes_and_modes(self, tmp_path):
        folder = save_parquet(tmp_path / "sizes", [picture()] * 8 + [picture(size=(9, 8))])
        self.refused("image 0 of shard 0 is 8×8, image 8 of shard 0 is 9×8. Set --resolution", folder)
        folder = save_parquet(tmp_path / "modes", [picture()] * 8 + [picture("RGB")])
        self.refused("image 0 of shard 0 is L, image 8 of shard 0 is RGB. Set --image_mode", folder)

    def test_an_empty_set(self, tmp_path):
        self.refused("has no image that can be read", save_shards(tmp_path / "data", [[]]))

    def test_a_file_that_breaks_off(self, tmp_path):
        folder = save_shards(tmp_path / "data", SHARDS)
        path = folder / "train-00002-of-00004.parquet"
        path.write_bytes(path.read_bytes()[:100])
        self.refused("`dataset_name` = .* cannot be read on: ", folder)
