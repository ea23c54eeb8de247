"""What a run says of its samples, for data that are sorted, large, or of 16 bits."""

import dataclasses

import pytest
import torch
import train_report
from accelerate import Accelerator
from class_fidelity import FEWEST_OF_A_CLASS, LARGEST_FIT_VALUES
from conftest import make_unet
from image_data import ImageData, load_images
from train_config import TrainConfig
from train_report import judge, why_not_judged, with_judgement

from ddpm_hub import DDPMHubPipeline, DDPMHubScheduler

CONFIG = dataclasses.replace(TrainConfig(), fidelity_samples=50)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_real_images_as_samples_are_given_their_class(monkeypatch, dtype):
    """Also where the data have 16 bits, which samples never have."""
    digits = load_images(TrainConfig())
    order = digits.labels.argsort(stable=True)  # sorted, like a folder with a subfolder for each class
    pixels, labels = digits.at(order)
    if dtype == torch.uint16:
        pixels = (pixels.int() * 257).to(torch.uint16)
    data = ImageData(pixels, labels, digits.class_names)

    first = {k: digits.at((digits.labels == k).nonzero()[0])[0][0] for k in range(10)}
    monkeypatch.setattr(train_report, "draw", lambda *arguments: torch.stack([first[k] for k in arguments[4]]))
    pipeline = DDPMHubPipeline(make_unet(), DDPMHubScheduler())
    (found,) = judge(CONFIG, data, pipeline, Accelerator(cpu=True))["evaluation"]
    assert found["value"] == 1
    assert found["reference"]["value"] > 0.95


def test_a_new_judgement_leaves_what_others_measured():
    old, fid = {"type": "class_fidelity", "value": 0.5}, {"type": "fid", "value": 2.0}
    new = {"evaluation": [{"type": "class_fidelity", "value": 0.9}], "speed": [{"what": "sampling"}]}
    metrics = {"training": {"steps": 3}, "evaluation": [old, fid]}
    assert with_judgement(metrics, new) == metrics | new | {"evaluation": [*new["evaluation"], fid]}
    assert with_judgement(metrics, {}) == metrics
    assert with_judgement({"training": {}}, new) == {"training": {}} | new


def test_a_few_images_stand_for_sorted_data():
    labels = torch.arange(10).repeat_interleave(7)
    data = ImageData(torch.zeros(70, 1, 2, 2, dtype=torch.uint8), labels, [str(k) for k in range(10)])
    _, some = data.some(10)
    assert some.tolist() == list(range(10))


def test_images_too_large_for_a_classifier_are_not_judged():
    """Without a look at one pixel: it would be known only after the training."""
    side = int((LARGEST_FIT_VALUES / FEWEST_OF_A_CLASS) ** 0.5)
    pixels = torch.zeros(1, dtype=torch.uint8).expand(20, 1, side, side)
    data = ImageData(pixels, torch.arange(2).repeat(10), ["a", "b"])
    assert "at most 1 classes, and there are 2" in why_not_judged(CONFIG, data)
