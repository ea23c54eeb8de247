"""Small classifiers of small images that ship with the package: what samples are judged by where Inception has nothing to say.

Inception-v3 has seen photographs of 299×299 pixels. On images of 8×8 or 28×28 its features say little, so each domain has
a residual network of its own in `domain_classifiers/`, with the facts of its training in the header of its file
(`training/train_classifier.py`).
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional

from .ddpm_equations import normalize

FOLDER = Path(__file__).resolve().parent / "domain_classifiers"


class DomainClassifier(nn.Module):
    """A residual network (He et al. 2015, arXiv:1512.03385) of three levels, whose pooled activations are the features.

    Args:
        channels (`int`): of the images.
        num_classes (`int`)
        width (`int`): channels of the first level; the second has twice and the third four times as many.

    Attributes:
        num_features (`int`): 4·width.
    """

    def __init__(self, channels: int, num_classes: int, width: int):
        super().__init__()
        self.num_features = 4 * width
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.levels = nn.Sequential(
            _Block(width, width, 1), _Block(width, 2 * width, 2), _Block(2 * width, 4 * width, 2)
        )
        self.norm = nn.BatchNorm2d(4 * width)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and logits.

        Args:
            images (`torch.Tensor`, floating point, shape (B, C, H, W)): in [−1, 1].

        Returns:
            `tuple` of `torch.Tensor`, shapes (B, num_features) and (B, num_classes).
        """
        features = functional.relu(self.norm(self.levels(self.stem(images)))).mean(dim=(2, 3))
        return features, self.head(features)


class _Block(nn.Module):
    """Two convolutions beside a shortcut, normalised before each (He et al. 2016, arXiv:1603.05027)."""

    def __init__(self, channels: int, wide: int, stride: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(wide)
        self.conv1 = nn.Conv2d(channels, wide, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        same = stride == 1 and channels == wide
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, wide, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = functional.relu(self.norm1(x))
        return self.shortcut(x) + self.conv2(functional.relu(self.norm2(self.conv1(active))))


class ShippedClassifier:
    """A classifier from `domain_classifiers/`, ready to judge.

    Attributes:
        name (`str`), sha256 (`str`): of its file.
        facts (`dict`): how it was trained: `dataset`, `num_images`, `epochs`, `test_accuracy`, `num_test_images`, ….
        class_names (`list[str]`)
        image_shape (`tuple[int, int, int]`): (C, H, W) of the images that it takes.
        num_features (`int`)
    """

    def __init__(self, name: str):
        path = FOLDER / f"{name}.safetensors"
        if name not in shipped_classifiers():
            raise ValueError(f"`name` is {name!r}; the classifiers that ship are {', '.join(shipped_classifiers())}.")
        self.name, self.sha256 = name, hashlib.sha256(path.read_bytes()).hexdigest()
        with safe_open(path, framework="pt") as file:
            facts = {key: json.loads(value) for key, value in file.metadata().items()}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.class_names, self.image_shape = facts.pop("class_names"), tuple(facts.pop("image_shape"))
        self.facts = facts
        self.network = DomainClassifier(self.image_shape[0], len(self.class_names), facts["width"])
        self.network.load_state_dict(tensors)
        self.network.eval().requires_grad_(False)
        self.num_features = self.network.num_features

    def to(self, device: torch.device | str) -> "ShippedClassifier":
        self.network.to(device)
        return self

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and logits of images.

        Args:
            pixels (`torch.Tensor` of `uint8`, shape (B, C, H, W)): of [`image_shape`], on any device.

        Returns:
            `tuple` of `torch.Tensor` of `float32`, shapes (B, num_features) and (B, K), on the classifier's device.

        Raises:
            ValueError: for images of another shape.
        """
        if tuple(pixels.shape[1:]) != self.image_shape:
            raise ValueError(
                f"`pixels` has shape {tuple(pixels.shape)}; the classifier {self.name!r} takes images of the shape (channels, "
                f"height, width) = {self.image_shape}."
            )
        return self.network(normalize(pixels.to(self.network.head.weight.device)))


def shipped_classifiers() -> list[str]:
    """The names that [`ShippedClassifier`] takes."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def classifier_for(image_shape: tuple[int, int, int]) -> str | None:
    """The shipped classifier of images of this shape, if there is one."""
    for name in shipped_classifiers():
        with safe_open(FOLDER / f"{name}.safetensors", framework="np") as file:
            if json.loads(file.metadata()["image_shape"]) == list(image_shape):
                return name
    return None
