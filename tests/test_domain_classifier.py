"""The classifiers that ship: as good as they say, small, and made by the script that is in the repository."""

import json

import pytest
import torch
import train_classifier
from image_data import load_images
from safetensors import safe_open
from train_config import TrainConfig

from ddpm_hub.domain_classifier import (
    FOLDER,
    DomainClassifier,
    ShippedClassifier,
    classifier_for,
    shipped_classifiers,
)


def digits(split: str):
    data = load_images(TrainConfig(split=split))
    return data.at(torch.arange(len(data)))


def test_there_is_one_for_each_domain():
    assert shipped_classifiers() == ["digits", "fashion_mnist"]
    assert classifier_for((1, 8, 8)) == "digits"
    assert classifier_for((1, 28, 28)) == "fashion_mnist"
    assert classifier_for((3, 28, 28)) is None


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_each_is_small_and_says_how_it_was_made(name):
    assert (FOLDER / f"{name}.safetensors").stat().st_size < 2e6
    classifier = ShippedClassifier(name)
    facts = classifier.facts
    assert facts["test_accuracy"] > {"digits": 0.97, "fashion_mnist": 0.935}[name]
    assert {"dataset", "num_images", "num_test_images", "epochs", "seed", "torch"} <= facts.keys()
    assert len(classifier.sha256) == 64
    assert len(classifier.class_names) == 10
    pixels = torch.randint(256, (3, *classifier.image_shape), dtype=torch.uint8)
    features, logits = classifier(pixels)
    assert features.shape == (3, classifier.num_features)
    assert logits.shape == (3, 10)
    assert not features.requires_grad


def test_the_digits_classifier_is_right_as_often_as_it_says():
    pixels, labels = digits("test")
    classifier = ShippedClassifier("digits")
    right = (classifier(pixels)[1].argmax(dim=1) == labels).double().mean().item()
    # One image of 300 may be on the edge on another processor.
    assert right == pytest.approx(classifier.facts["test_accuracy"], abs=1.01 / 300)


def test_an_image_has_the_same_features_in_any_batch():
    """The statistics of the training are used, not those of the batch: float32 sums in another order at most."""
    pixels, _ = digits("test")
    classifier = ShippedClassifier("digits")
    torch.testing.assert_close(classifier(pixels[:1])[0], classifier(pixels[:64])[0][:1], rtol=1e-5, atol=1e-6)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 1, 9, 8\); the classifier 'digits' takes images of the shape"):
        ShippedClassifier("digits")(torch.zeros(2, 1, 9, 8, dtype=torch.uint8))


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="`name` is 'cats'; the classifiers that ship are digits, fashion_mnist"):
        ShippedClassifier("cats")


def test_the_script_makes_the_same_bytes_twice_and_a_network_that_learns(tmp_path, capsys):
    options = [
        "--dataset",
        "training/data/digits",
        "--width",
        "4",
        "--epochs",
        "3",
        "--batch_size",
        "64",
        "--shift",
        "1",
    ]
    for name in ("one", "two"):
        assert train_classifier.main([*options, "--output", str(tmp_path / f"{name}.safetensors")]) == 0
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    with safe_open(tmp_path / "one.safetensors", framework="pt") as file:
        facts = {key: json.loads(value) for key, value in file.metadata().items()}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert facts["test_accuracy"] > 0.5
    assert (facts["dataset"], facts["num_images"], facts["epochs"], facts["image_shape"]) == (
        "digits",
        1497,
        3,
        [1, 8, 8],
    )
    DomainClassifier(1, 10, 4).load_state_dict(tensors)
    assert "of 300 test images" in capsys.readouterr().out


def test_data_without_classes_are_refused(tmp_path, capsys):
    from image_sets import picture, save_parquet

    folder = save_parquet(tmp_path / "data", [picture()])
    (folder / "test-0.parquet").write_bytes((folder / "train-0.parquet").read_bytes())
    assert train_classifier.main(["--dataset", str(folder), "--output", str(tmp_path / "x.safetensors")]) == 2
    assert "which has no classes to train on" in capsys.readouterr().err
