"""Randomness is a function of seed, epoch and step: the same whatever shares a batch, and each image once an epoch."""

import dataclasses
import threading

import pytest
import torch
from image_data import ImageData
from random_batches import NOISE_BLOCK, Batch, Batches, batch_noise, cut_windows, generator
from train_config import TrainConfig

COUNT = 23
# Each pixel of image i has the value i, so a batch tells which images are in it.
DATA = ImageData(
    pixels=torch.arange(COUNT, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2),
    labels=torch.arange(COUNT) % 3,
    class_names=["a", "b", "c"],
)
# Every pixel has a value of its own, so a window tells where it was cut.
WIDE = ImageData(
    pixels=torch.arange(COUNT * 8 * 9, dtype=torch.int16).reshape(-1, 1, 8, 9).view(torch.uint16),
    labels=None,
    class_names=[],
    margin=3,
)
CONFIG = dataclasses.replace(TrainConfig(), batch_size=8)
CPU = torch.device("cpu")


def steps(
    count: int = 12, process: int = 0, processes: int = 1, data=DATA, start: int = 0, **kwargs
) -> list[list[Batch]]:
    config = dataclasses.replace(CONFIG, **kwargs)
    batches = Batches(config, data, CPU, process, processes)
    batches.start(start)
    try:
        drawn = [torch.arange(config.batch_size) + 100 * step for step in range(start, start + count)]
        return [batches.next(timesteps, timesteps / 2) for timesteps in drawn]
    finally:
        batches.close()


def joined(parts: list[Batch]) -> list[torch.Tensor]:
    tensors = [[getattr(part, field.name) for part in parts] for field in dataclasses.fields(Batch)]
    return [torch.cat(t) for t in tensors if t[0] is not None]


def same(first: list[Batch], second: list[Batch]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(joined(first), joined(second), strict=True))


def test_every_image_comes_once_in_every_epoch():
    seen = torch.cat([part.pixels[:, 0, 0, 0] for parts in steps() for part in parts]).tolist()
    assert len(seen) == 12 * 8
    epochs = [seen[start : start + COUNT] for start in range(0, len(seen) - COUNT + 1, COUNT)]
    assert len(epochs) == 4
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    assert epochs[0] != epochs[1]


def test_batches_larger_than_the_data():
    seen = torch.cat([part.pixels[:, 0, 0, 0] for parts in steps(2, batch_size=50) for part in parts])
    assert set(seen.bincount().tolist()) == {4, 5}  # 100 = 4·23 + 8


@pytest.mark.parametrize("data", [DATA, WIDE], ids=["plain", "cropped"])
@pytest.mark.parametrize(("processes", "parts"), [(1, 4), (2, 1), (2, 2), (4, 1)])
@pytest.mark.parametrize("size", [8, 40])  # less than a block of noise for each, and windows that cross blocks
def test_processes_and_accumulation_share_the_same_batch(processes, parts, size, data):
    flags = {"batch_size": size, "random_flip": True, "data": data}
    alone = steps(5, **flags)
    shared = [steps(5, p, processes, gradient_accumulation_steps=parts, **flags) for p in range(processes)]
    for step, whole in enumerate(alone):
        assert same([shared[p][step][part] for part in range(parts) for p in range(processes)], whole)


@pytest.mark.parametrize("start", range(7))
def test_to_begin_at_a_step_is_to_have_come_there(start):
    flags = {"random_flip": True, "data": WIDE}
    for resumed, whole in zip(steps(3, start=start, **flags), steps(start + 3, **flags)[start:], strict=True):
        assert same(resumed, whole)


def test_beginning_again_forgets_what_was_drawn_ahead():
    batches = Batches(CONFIG, DATA, CPU)
    whole = steps(6)
    for first in (0, 4, 2):
        batches.start(first)
        for step in (first, first + 1):
            assert same(batches.next(torch.arange(8) + 100 * step, (torch.arange(8) + 100 * step) / 2), whole[step])
    assert batches.position() == {}
    batches.close()


def test_the_seed_decides():
    flags = {"random_flip": True, "class_dropout": 0.5}
    first, again, other = steps(**flags), steps(**flags), steps(seed=1, **flags)
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    for field in ("noise", "pixels", "labels"):
        assert not any(
            torch.equal(getattr(a[0], field), getattr(b[0], field)) for a, b in zip(first, other, strict=True)
        )


def test_timesteps_and_weights_are_divided_as_the_images_are():
    ((first, second),) = steps(1, gradient_accumulation_steps=2, batch_size=8)
    assert first.timesteps.tolist() == [0, 1, 2, 3]
    assert second.loss_weights.tolist() == [2, 2.5, 3, 3.5]
    batches = Batches(CONFIG, DATA, CPU)
    batches.start(0)
    assert batches.next(torch.arange(8))[0].loss_weights is None
    batches.close()


class TestNoise:
    def test_every_step_and_slot_has_its_own(self):
        noise = torch.cat([parts[0].noise for parts in steps(batch_size=40)]).flatten(1)
        assert len(noise.unique(dim=0)) == len(noise) == 12 * 40

    @pytest.mark.parametrize("slots", [range(0, 16), range(3, 5), range(10, 40), range(32, 33), range(15, 17)])
    def test_a_slot_has_the_same_whoever_draws_it(self, slots):
        """Against the definition: block b is drawn alone."""
        blocks = [torch.randn(NOISE_BLOCK, 3, 4, 5, generator=generator(7, "noise", 2, b)) for b in range(3)]
        assert torch.equal(batch_noise(7, 2, slots, (3, 4, 5), CPU), torch.cat(blocks)[slots.start : slots.stop])

    def test_it_is_standard_normal(self):
        noise = batch_noise(0, 0, range(1024), (1, 32, 32), CPU)
        count = noise.numel()
        # The mean of n has the standard deviation 1/√n, the variance √(2/n), the fourth moment √(96/n); five of those.
        assert noise.mean().abs() < 5 / count**0.5
        assert (noise.var() - 1).abs() < 5 * (2 / count) ** 0.5
        assert (noise.pow(4).mean() - 3).abs() < 5 * (96 / count) ** 0.5


class TestLabels:
    def test_they_are_dropped_as_often_as_asked_and_else_those_of_the_images(self):
        parts = [part for batch in steps(500, class_dropout=0.2) for part in batch]
        count = 500 * 8
        dropped = (torch.cat([part.labels for part in parts]) == 3).sum()
        # A binomial count of n·p has standard deviation √(n·p·(1−p)); five of those.
        assert abs(dropped - count * 0.2) < 5 * (count * 0.2 * 0.8) ** 0.5
        pairs = [zip(p.pixels[:, 0, 0, 0].tolist(), p.labels.tolist(), strict=True) for p in parts]
        assert all(y in (3, p % 3) for pair in pairs for p, y in pair)

    def test_none(self):
        data = dataclasses.replace(DATA, labels=None, class_names=[])
        assert steps(1, data=data)[0][0].labels is None


class TestWindows:
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
    @pytest.mark.parametrize("channels", [1, 3, 5])
    def test_against_one_image_after_the_other(self, dtype, channels):
        drawn = torch.Generator().manual_seed(0)
        pixels = torch.randint(2**8, (20, channels, 9, 11), generator=drawn).to(torch.uint8)
        pixels = pixels if dtype == torch.uint8 else (pixels.to(torch.int32) * 257).to(torch.uint16)
        corners = torch.stack(
            [torch.randint(4, (20,), generator=drawn), torch.randint(5, (20,), generator=drawn)], dim=1
        )
        mirrored = torch.rand(20, generator=drawn) < 0.5
        found = cut_windows(pixels, corners, mirrored, 6, 7)
        assert (found.dtype, found.shape) == (dtype, (20, channels, 6, 7))
        for image, whole, (top, left), flip in zip(found, pixels, corners.tolist(), mirrored.tolist(), strict=True):
            wanted = whole.numpy()[:, top : top + 6, left : left + 7]
            assert (image.numpy() == (wanted[..., ::-1] if flip else wanted)).all()

    def test_half_of_the_images_are_mirrored_each_time_others(self):
        data = dataclasses.replace(DATA, pixels=torch.tensor([[[[0, 1]]]], dtype=torch.uint8).expand(COUNT, -1, -1, -1))
        drawn = [parts[0].pixels[:, 0, 0, 0] for parts in steps(500, data=data, random_flip=True)]
        count = 500 * 8
        assert abs(torch.cat(drawn).sum() - count / 2) < 5 * (count / 4) ** 0.5  # as above
        assert len({tuple(flips.tolist()) for flips in drawn}) > 200  # of 2^8 = 256 that are possible

    def test_every_window_is_as_likely_as_the_others(self):
        corners = torch.cat([parts[0].pixels[:, 0, 0, 0].to(torch.int64) for parts in steps(1000, data=WIDE)]) % (8 * 9)
        top, left = corners // 9, corners % 9
        assert (top.unique().tolist(), left.unique().tolist()) == ([0, 1, 2, 3], [0, 1, 2, 3])
        counts = (top * 4 + left).bincount()
        # A binomial count with p = 1/16, and five standard deviations, for each of 16.
        assert (counts - 500).abs().max() < 5 * (8000 / 16 * 15 / 16) ** 0.5

    def test_they_are_whole_and_have_the_size_that_the_network_sees(self):
        ((batch,),) = steps(1, data=WIDE)
        assert (batch.pixels.shape, batch.noise.shape) == ((8, 1, 5, 6), (8, 1, 5, 6))
        values = batch.pixels.to(torch.int64)
        assert (values[..., 1:] - values[..., :-1] == 1).all()
        assert (values[..., 1:, :] - values[..., :-1, :] == 9).all()

    def test_some_images_are_cut_in_the_middle(self):
        pixels, labels = WIDE.some(2)
        assert labels is None
        assert torch.equal(pixels.to(torch.int32), WIDE.pixels[:: len(WIDE) // 2][:2].to(torch.int32)[..., 1:6, 1:7])


def threads() -> int:
    return sum(thread.name == "read ahead" for thread in threading.enumerate())


class TestTheThread:
    class Broken(ImageData):
        def fetch(self, rows: torch.Tensor) -> torch.Tensor:
            if 5 in rows.tolist():
                raise OSError("the disk is gone")
            return super().fetch(rows)

    def test_its_error_is_raised_where_the_batch_is_asked_for_and_again(self):
        data = self.Broken(DATA.pixels, DATA.labels, DATA.class_names)
        batches = Batches(dataclasses.replace(CONFIG, batch_size=1), data, CPU)
        batches.start(0)
        order = torch.randperm(COUNT, generator=generator(CONFIG.seed, "order", 0)).tolist()
        for image in order[: order.index(5)]:  # every batch before it comes
            assert batches.next(torch.zeros(1))[0].pixels.unique().item() == image
        with pytest.raises(OSError, match="the disk is gone"):
            batches.next(torch.zeros(1))
        with pytest.raises(OSError, match="the disk is gone"):
            batches.next(torch.zeros(1))
        batches.close()

    def test_it_ends(self):
        before = threads()
        batches = Batches(CONFIG, DATA, CPU)
        for step in range(3):
            batches.start(step)
            batches.next(torch.arange(8))
            assert threads() == before + 1
        batches.close()
        assert threads() == before
        batches.close()

    def test_it_ends_where_nobody_closes_it(self):
        before = threads()
        batches = Batches(CONFIG, DATA, CPU)
        batches.start(0)
        del batches
        assert threads() == before

    def test_it_stays_two_steps_ahead(self):
        """Whoever asks sees no difference, so it is asked of the source what was taken from it."""
        taken, reached = [], threading.Event()

        class Listed(ImageData):
            def fetch(self, rows: torch.Tensor) -> torch.Tensor:
                taken.append(len(rows))
                reached.set() if len(taken) >= 3 else None
                return super().fetch(rows)

        batches = Batches(CONFIG, Listed(DATA.pixels, DATA.labels, DATA.class_names), CPU)
        batches.start(0)
        batches.next(torch.arange(8))
        assert reached.wait(60)
        batches.close()
        assert len(taken) == 3  # one that was asked for and two ahead

    def test_it_must_be_started(self):
        with pytest.raises(RuntimeError, match="start comes before"):
            Batches(CONFIG, DATA, CPU).next(torch.arange(8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("data", [DATA, WIDE], ids=["plain", "cropped"])
def test_on_a_gpu_the_images_are_the_same(data):
    batches = Batches(dataclasses.replace(CONFIG, random_flip=True), data, "cuda")
    batches.start(0)
    for (cpu,) in steps(5, data=data, random_flip=True):
        (gpu,) = batches.next(cpu.timesteps.cuda())
        assert gpu.pixels.is_cuda
        assert gpu.noise.is_cuda
        assert torch.equal(gpu.pixels.cpu(), cpu.pixels)
        assert cpu.labels is None or torch.equal(gpu.labels.cpu(), cpu.labels)
    batches.close()
