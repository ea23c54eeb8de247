"""The class that an image shows: by the extractor itself where it is a classifier of these classes, else by a linear probe."""

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

LARGEST_FIT = 10_000


class ClassJudge:
    """Gives each image a class.

    Args:
        extractor: whose features and logits the images have.
        class_names (`list[str]`): of the data.
        features (`torch.Tensor`, shape (N, d)), labels (`torch.Tensor`, shape (N,)): of training images, for a linear probe.

    Attributes:
        name (`str`): what judges, for the reader of a figure.
    """

    def __init__(self, extractor, class_names: list[str], features: torch.Tensor, labels: torch.Tensor):
        self._probe = None
        self.name = extractor.facts.name
        if extractor.class_names != class_names:
            rows = torch.arange(min(len(labels), LARGEST_FIT)) * len(labels) // min(len(labels), LARGEST_FIT)
            self._probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            self._probe.fit(features[rows].numpy(), labels[rows].numpy())
            self.name = (
                f"logistic regression on the features of {len(rows):,} training images by {extractor.facts.name}"
            )

    def classes(self, features: torch.Tensor, logits: torch.Tensor | None) -> torch.Tensor:
        """The class of each image: `int64`, shape (B,)."""
        if self._probe is None:
            return logits.argmax(dim=1)
        return torch.from_numpy(self._probe.predict(features.numpy()))


def agreement(found: torch.Tensor, wanted: torch.Tensor, num_classes: int) -> tuple[float, list[float | None]]:
    """The share of images with the class that was wanted, over all and for each class (`None` where there is no image)."""
    right = found == wanted
    shares = [right[wanted == k].double().mean().item() if (wanted == k).any() else None for k in range(num_classes)]
    return right.double().mean().item(), shares
