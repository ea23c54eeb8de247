"""The networks whose features are compared: real ones of tiny size, and what is said where they cannot be had."""

import re

import pytest
import torch
import transformers
from evaluation.extractors import DINOV2_SIZE, make_extractor
from torch.nn import functional
from train_config import UserError

CPU = torch.device("cpu")
GREY = (1, 8, 8)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    """A folder with a DINOv2 of transformers, small and with random weights."""
    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=DINOV2_SIZE
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def some_pixels(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_the_domain_classifier_is_the_first_choice():
    extractor = make_extractor("auto", GREY, CPU)
    assert re.fullmatch(r"digits classifier of ddpm_hub, 97\.\d\d% right on 300 test images", extractor.facts.name)
    assert (extractor.facts.resize, extractor.num_features) == ("none", 64)
    features, logits = extractor(some_pixels(3, *GREY))
    assert (features.shape, logits.shape) == ((3, 64), (3, 10))


@pytest.mark.parametrize("channels", [1, 3])
def test_dinov2_is_what_transformers_gives(dinov2, channels):
    """The class token of the last normalised layer, of the image as a second implementation prepares it."""
    extractor = make_extractor("dinov2", (channels, 16, 12), CPU, str(dinov2))
    pixels = some_pixels(2, channels, 16, 12)
    features, logits = extractor(pixels)
    assert logits is None
    assert (features.shape, extractor.num_features) == ((2, 24), 24)
    rgb = pixels.repeat(1, 3 // channels, 1, 1).double() / 255
    big = functional.interpolate(rgb, (DINOV2_SIZE, DINOV2_SIZE), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    model = transformers.Dinov2Model.from_pretrained(dinov2).double()
    with torch.no_grad():
        wanted = model(pixel_values=(big - mean) / std).pooler_output
    # Two layers in float32 on numbers of size 1.
    torch.testing.assert_close(features.double(), wanted, rtol=1e-4, atol=1e-4)


def test_the_hash_is_of_the_weights_and_not_of_their_file(dinov2, tmp_path):
    model = transformers.Dinov2Model.from_pretrained(dinov2)
    model.save_pretrained(tmp_path / "again", max_shard_size="10KB")
    with torch.no_grad():
        model.layernorm.bias[0] += 1
    model.save_pretrained(tmp_path / "other")
    hashes = [
        make_extractor("dinov2", GREY, CPU, str(f)).facts.sha256
        for f in (dinov2, tmp_path / "again", tmp_path / "other")
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("kind", "shape", "weights", "said"),
    [
        ("inception", GREY, None, "`--extractor` is 'inception', which cannot be had: "),
        ("inception", GREY, "nowhere.pth", "`--extractor_weights` is 'nowhere.pth', which is no file."),
        ("dinov2", GREY, "no/where", "`--extractor` is 'dinov2', which cannot be had: "),
        ("auto", (3, 32, 32), None, "`--extractor` is 'inception', which cannot be had: "),
    ],
)
def test_what_cannot_be_had_is_said_with_what_ships(kind, shape, weights, said, monkeypatch):
    """No network and no torch-fidelity here; every message names the extractor that needs neither."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=re.escape(said)) as error:
        make_extractor(kind, shape, CPU, weights)
    assert "--extractor domain, for images of the shapes digits (1, 8, 8), fashion_mnist (1, 28, 28)" in str(
        error.value
    )


@pytest.mark.parametrize(
    ("kind", "shape", "weights", "said"),
    [
        ("domain", (3, 32, 32), None, "(3, 32, 32), for which no classifier ships; there are digits (1, 8, 8)"),
        ("domain", GREY, "x", "`--extractor_weights` is 'x', but the domain classifier has its own; leave it out"),
        ("dinov2", (5, 8, 8), None, "takes grey and RGB images, but the model's have 5 channels"),
    ],
)
def test_what_does_not_fit_is_refused(kind, shape, weights, said):
    with pytest.raises(UserError, match=re.escape(said)):
        make_extractor(kind, shape, CPU, weights)
