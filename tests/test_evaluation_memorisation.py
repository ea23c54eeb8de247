"""A model that copies its training set is flagged, and one that does not is not."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import make_unet
from diffusers import UNet2DModel
from evaluation.memorisation import Nearness, closest, judge_copying, nearness
from image_data import load_images
from train_config import TrainConfig

from ddpm_hub import DDPMHubPipeline, DDPMHubScheduler
from ddpm_hub.ddpm_equations import denormalize, normalize


@pytest.fixture(scope="module")
def digits():
    """Training and unseen images, float32 in [0, 1], shape (N, 64)."""
    both = (load_images(dataclasses.replace(TrainConfig(), split=split)) for split in ("train", "test"))
    return [data.at(torch.arange(len(data)))[0].flatten(1).float() / 255 for data in both]


def judge(digits, samples):
    train, unseen = digits
    return judge_copying(nearness(samples, train.split(400)), nearness(unseen, train.split(400)))


class Memory(UNet2DModel):
    """The best prediction of ε if the data are these images and no others: what a network that learnt them by heart says."""

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        abar = self.alphas_cumprod[int(torch.as_tensor(timestep).flatten()[0])]
        x = sample.double().flatten(1)
        distances = torch.cdist(x, abar.sqrt() * self.images.flatten(1)).square()
        weights = torch.softmax(-distances / (2 * (1 - abar)), dim=1)
        estimate = (weights @ self.images.flatten(1)).view_as(sample)
        return (((sample.double() - abar.sqrt() * estimate) / (1 - abar).sqrt()).to(sample.dtype),)


def test_a_model_that_learnt_its_images_by_heart_is_flagged(digits):
    """Through the real sampler: its samples are training images, up to the rounding of pixels."""
    train, _ = digits
    scheduler = DDPMHubScheduler(timestep_spacing="trailing")
    unet = Memory(**{k: v for k, v in make_unet(num_class_embeds=None).config.items() if not k.startswith("_")})
    unet.images = normalize((train * 255).round().to(torch.uint8)).double().view(-1, 1, 8, 8)
    unet.alphas_cumprod = scheduler.alphas_cumprod
    pipeline = DDPMHubPipeline(unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    samples = pipeline(100, num_inference_steps=100, seed=0, output_type="sample").images
    found = judge(digits, denormalize(samples).flatten(1).float() / 255)
    assert found.is_flagged
    assert found.share > 0.99
    assert found.closeness > 0.99
    # The last step goes to x̂_0, whose weights leave 1e-2 of other images at most.
    assert found.median < 0.01


def test_unseen_images_are_not_flagged(digits):
    """Half of the unseen images stand for samples: they are as near as the other half, up to chance."""
    train, unseen = digits
    found = judge((train, unseen[::2]), unseen[1::2])
    assert not found.is_flagged
    assert found.closeness == pytest.approx(0.5, abs=4 * (1 / 12 * 2 / 150) ** 0.5)


def test_samples_of_low_variety_are_near_but_no_copies(digits):
    """Unseen images half way to the mean of 30 neighbours: nearer to the training images than others, and copies of none."""
    train, unseen = digits
    neighbors = train[torch.cdist(unseen, train).topk(30, largest=False).indices]
    found = judge(digits, (unseen + neighbors.mean(dim=1)) / 2)
    assert found.closeness > 0.7
    assert not found.is_flagged, found


def test_unseen_images_that_are_training_images_hide_no_copies(digits):
    """A few of a data set's images are in both splits; the limit is that of the others."""
    train, unseen = digits
    own = np.random.default_rng(0)
    copies = train[:500] + torch.from_numpy(own.normal(0, 0.01, (500, 64))).float()
    spoiled = unseen.clone()
    spoiled[::50] = train[::250]
    found, clean = judge((train, spoiled), copies), judge((train, unseen), copies)
    assert (found.num_duplicates, clean.num_duplicates) == (6, 0)
    assert found.is_flagged
    assert found.limit == pytest.approx(clean.limit, rel=0.2)


@pytest.mark.parametrize(("share", "is_flagged"), [(0.0, False), (0.02, False), (0.06, True), (0.3, True)])
def test_a_few_copies_among_honest_samples(digits, share, is_flagged):
    """Copies with noise of 0.03, a tenth of what lies between neighbours, in 1,000 samples like unseen images."""
    train, unseen = digits
    own = np.random.default_rng(0)
    honest = unseen[own.integers(0, len(unseen), 1000)] + torch.from_numpy(own.normal(0, 0.05, (1000, 64))).float()
    copies = train[:1000] + torch.from_numpy(own.normal(0, 0.03, (1000, 64))).float()
    is_copy = torch.arange(1000) < share * 1000
    found = judge(digits, torch.where(is_copy[:, None], copies, honest))
    assert found.is_flagged == is_flagged, found
    assert found.share >= share - 0.01
    assert found.probability < 1e-3 or not is_flagged


def test_the_closest_are_the_copies(digits):
    train, unseen = digits
    samples = unseen[:50].clone()
    samples[[7, 31]] = train[[100, 200]]
    near = nearness(samples, train.split(400))
    assert sorted(closest(near)[:2].tolist()) == [7, 31]
    assert near.rows[[7, 31]].tolist() == [100, 200]
    # Squares of differences are made from products of float64: 1e-16 of the norm's square, whose root is 1e-8 of it.
    assert near.distances[[7, 31]].max() < 1e-6


@pytest.mark.parametrize("count", [40, 65, 300])
def test_honest_samples_are_flagged_less_often_than_once_in_a_thousand(count):
    """Also with few unseen images, of which the limit itself is uncertain: 300 draws of samples and unseen images alike."""
    own, flagged, shares = np.random.default_rng(0), 0, []
    for _ in range(300):
        ratios = [torch.from_numpy(own.beta(8, 4, n)) for n in (500, count)]
        found = judge_copying(*(Nearness(each, each, torch.zeros(len(each), dtype=torch.long)) for each in ratios))
        flagged += found.is_flagged
        shares.append(found.share)
    assert flagged <= 2  # of 0.3 that are expected at most: 3 or more once in 300 times
    # The mean of 300 shares, whose distribution is beta-binomial with a standard deviation of about its mean.
    assert np.mean(shares) == pytest.approx(found.expected, rel=4 * 1.1 / 300**0.5)
