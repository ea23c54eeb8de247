"""Networks whose features images are compared by, and whose logits say what an image shows.

Each extractor takes images of 8 bits, shape (B, C, H, W), on any device, and gives float32 features, shape (B, d), and
logits, shape (B, K), or `None` for those. It tells its name, the SHA-256 of its weights and what it does to the size of an
image, which stand beside every figure.
"""

import hashlib
import os
import pickle  # nosec B403 # the name of an error, nothing is unpickled
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional
from train_config import UserError

from ddpm_hub.domain_classifier import ShippedClassifier, classifier_for, shipped_classifiers

DINOV2 = "facebook/dinov2-base"
DINOV2_SIZE = 224
# Of ImageNet, with which DINOv2 was trained (Oquab et al. 2023, arXiv:2304.07193).
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Facts:
    """What stands beside every figure that an extractor gives.

    Attributes:
        name (`str`): with its accuracy where it is a classifier of ours.
        sha256 (`str`): of its weights.
        resize (`str`): what it does to the size of an image.
    """

    name: str
    sha256: str
    resize: str


class DomainExtractor:
    """The package's own classifier of images of this shape."""

    def __init__(self, image_shape: tuple[int, int, int], device: torch.device):
        name = classifier_for(image_shape)
        if name is None:
            raise UserError(
                f"`--extractor` is 'domain', but the model's images have the shape (channels, height, width) = {image_shape}, "
                f"for which no classifier ships; there are {_shipped()}. Take inception or dinov2."
            )
        self._classifier = ShippedClassifier(name).to(device)
        facts = self._classifier.facts
        self.class_names, self.num_features = self._classifier.class_names, self._classifier.num_features
        self.knows_imagenet = False
        self.facts = Facts(
            f"{name} classifier of ddpm_hub, {facts['test_accuracy']:.2%} right on {facts['num_test_images']:,} test images",
            self._classifier.sha256,
            "none",
        )

    def __call__(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self._classifier(pixels)


class InceptionExtractor:
    """Inception-v3 with the weights of 2015 that FID is defined by (Heusel et al. 2017, arXiv:1706.08500), by torchmetrics."""

    num_features, class_names, knows_imagenet = 2048, None, True

    def __init__(self, weights: str | None, device: torch.device):
        if weights is not None and not Path(weights).is_file():
            raise UserError(f"`--extractor_weights` is {weights!r}, which is no file. {_instead()}")
        try:
            from torchmetrics.image.fid import NoTrainInceptionV3

            # Without antialiasing, which is torchmetrics' default: published figures were made without.
            layers = ["2048", "logits_unbiased"]
            self._network = NoTrainInceptionV3("inception-v3-compat", layers, weights, antialias=False)
        except (ImportError, RuntimeError, OSError, KeyError, pickle.UnpicklingError) as error:
            # The package is missing or does not fit the torch that is there, or the weights cannot be downloaded.
            raise _unavailable("inception", "pip install 'torch-fidelity>=0.4'", error) from error
        self._network.to(device)
        self._device = device
        self.facts = Facts(
            "Inception-v3 (2015-12-05) of torch-fidelity",
            _hash_of(self._network),
            "299×299, bilinear as in TensorFlow 1",
        )

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        features, logits = self._network._torch_fidelity_forward(_rgb(pixels).to(self._device))
        return features, logits


class DINOv2Extractor:
    """DINOv2 (Oquab et al. 2023, arXiv:2304.07193), by transformers: its class token, after the last normalisation."""

    class_names, knows_imagenet = None, False

    def __init__(self, weights: str | None, device: torch.device):
        repo = weights or DINOV2
        try:
            from transformers import AutoModel

            self._network = AutoModel.from_pretrained(repo)  # nosec B615 # the SHA-256 of its weights is in the figures
        except (ImportError, OSError, ValueError, RuntimeError) as error:
            raise _unavailable("dinov2", "pip install 'transformers>=5'", error) from error
        self._network.to(device).eval().requires_grad_(False)
        self.num_features = self._network.config.hidden_size
        size = DINOV2_SIZE
        self.facts = Facts(
            f"DINOv2 {Path(repo).name if Path(repo).exists() else repo}", _hash_of(self._network),
            f"{size}×{size}, bicubic, antialiased",
        )  # fmt: skip
        self._scale = [torch.tensor(values, device=device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD)]

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        mean, std = self._scale
        images = _rgb(pixels).to(mean.device).float() / 255
        images = functional.interpolate(images, (DINOV2_SIZE, DINOV2_SIZE), mode="bicubic", antialias=True).clamp(0, 1)
        return self._network(pixel_values=(images - mean) / std).last_hidden_state[:, 0], None


def make_extractor(kind: str, image_shape: tuple[int, int, int], device: torch.device, weights: str | None = None):
    """The extractor that is asked for.

    Args:
        kind (`str`): `domain`, `inception`, `dinov2`, or `auto`: the first where one ships, else the second.
        image_shape (`tuple[int, int, int]`): (C, H, W) of the images.
        device (`torch.device`): where it computes.
        weights (`str`, *optional*): a file of Inception's weights, or a folder or repository of DINOv2.

    Raises:
        UserError: if it cannot be had, naming what ships.
    """
    if kind == "auto":
        kind = "domain" if classifier_for(image_shape) else "inception"
    if kind == "domain":
        if weights is not None:
            raise UserError(
                f"`--extractor_weights` is {weights!r}, but the domain classifier has its own; leave it out."
            )
        return DomainExtractor(image_shape, device)
    if image_shape[0] not in (1, 3):
        raise UserError(
            f"`--extractor` is {kind!r}, which takes grey and RGB images, but the model's have {image_shape[0]} channels. "
            f"Leave the samples out with --parts bound."
        )
    return {"inception": InceptionExtractor, "dinov2": DINOv2Extractor}[kind](weights, device)


def _rgb(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels


def _hash_of(network: torch.nn.Module) -> str:
    """SHA-256 of all weights, in the order of their names: the same for the same weights in any file."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        hashed.update(name.encode() + str(tuple(tensor.shape)).encode())
        hashed.update(tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return hashed.hexdigest()


def _shipped() -> str:
    shapes = [f"{name} {ShippedClassifier(name).image_shape}" for name in shipped_classifiers()]
    return ", ".join(shapes)


def _instead() -> str:
    return (
        f"What ships with the package needs no download: --extractor domain, for images of the shapes {_shipped()}; "
        f"--parts bound needs no extractor at all."
    )


def _unavailable(kind: str, install: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    offline = " HF_HUB_OFFLINE is set." if os.environ.get("HF_HUB_OFFLINE") else ""
    return UserError(
        f"`--extractor` is {kind!r}, which cannot be had: {reason[:300]}.{offline} It needs `{install}` and its weights, from "
        f"the network or by --extractor_weights. {_instead()}"
    )
