"""The judge: right on the real digits, not to be fooled by noise or by labels that were mixed up."""

import dataclasses

import pytest
import torch
from class_fidelity import LARGEST_FIT, class_fidelity, fit_rows, obstacle
from image_data import load_images
from sklearn.model_selection import train_test_split
from train_config import TrainConfig


@pytest.fixture(scope="module")
def digits():
    """Pixels and classes of both splits."""
    both = (load_images(dataclasses.replace(TrainConfig(), split=split)) for split in ("train", "test"))
    return [data.at(torch.arange(len(data))) for data in both]


def share(digits, samples, labels) -> float:
    return class_fidelity(*digits[0], samples, labels)["value"]


def test_real_digits_that_it_never_saw(digits):
    assert share(digits, *digits[1]) > 0.9


def test_labels_that_are_off_by_one(digits):
    pixels, labels = digits[1]
    assert share(digits, pixels, (labels + 1) % 10) < 0.05


def test_noise_is_right_by_chance_at_most(digits):
    noise = torch.randint(256, (300, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    # Whatever it says of noise, balanced labels agree in a tenth; five standard deviations of a share of 300.
    assert share(digits, noise, torch.arange(300) % 10) < 0.1 + 5 * (0.1 * 0.9 / 300) ** 0.5


@pytest.mark.parametrize(
    ("counts", "reason"),
    [([0, 30], "all images are of class 1"), ([1], "all images are of class 0"), ([30, 4], "5 images of each class, and class 1 has 4"),
     ([5] * 1001, "at most 1000 classes, and there are 1001")],
)  # fmt: skip
def test_labels_that_no_classifier_can_learn(counts, reason):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    assert reason in obstacle(labels)


@pytest.mark.parametrize("counts", [[5, 5], [0, 5, 5], [LARGEST_FIT * 2, 5]])
def test_labels_that_it_can_learn(counts):
    """The fewest that are allowed; rare classes and absent ones are no obstacle."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    assert obstacle(labels) is None
    pixels = (labels % 256).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    rows = fit_rows(labels, LARGEST_FIT)
    assert torch.equal(labels[rows].unique(), labels.unique())
    fidelity = class_fidelity(pixels[rows], labels[rows], pixels[-2:], labels[-2:])
    assert fidelity["num_samples"] == 2
    assert int(fidelity["extractor"].split()[-3]) <= LARGEST_FIT * 0.8


def test_as_many_classes_as_can_be_learnt():
    """A thousand with the fewest images each; fitting them takes long."""
    assert obstacle(torch.arange(1000).repeat_interleave(5)) is None
    assert "at most 1000 classes, and there are 1001" in obstacle(torch.arange(1001).repeat_interleave(5))


def test_a_fifth_of_each_class_is_held_out(monkeypatch):
    held = []

    def split(*arguments, **named):
        parts = train_test_split(*arguments, **named)
        held.extend(parts[-1])
        return parts

    monkeypatch.setattr("class_fidelity.train_test_split", split)
    labels = torch.arange(20).repeat_interleave(5)
    pixels = labels.to(torch.uint8).reshape(-1, 1, 1, 1)
    class_fidelity(pixels, labels, pixels, labels)
    assert sorted(held) == list(range(20))
