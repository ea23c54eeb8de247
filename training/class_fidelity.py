"""Does a class-conditional model draw what it is asked for? A classifier fitted on the real images judges."""

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

# A support vector machine's fitting time grows with the square of the images.
LARGEST_FIT = 5000
# The standardisation makes numbers of eight bytes of them.
LARGEST_FIT_VALUES = 2**28
# A fifth of the images of each class is held out, which must be one at least.
FEWEST_OF_A_CLASS = 5


def largest_fit(values: int) -> int:
    """How many images the classifier is fitted on and tested with at most, if each has so many values."""
    return max(1, min(LARGEST_FIT, LARGEST_FIT_VALUES // values))


def fit_rows(labels: torch.Tensor, limit: int) -> torch.Tensor:
    """At most `limit` rows, as many of each class where there are more, so that no rare one is lost: `int64`, rising."""
    y = labels.numpy()
    if len(y) <= limit:
        return torch.arange(len(y))
    shuffled, classes = np.random.default_rng(0).permutation(len(y)), np.unique(y)
    return torch.from_numpy(
        np.sort(np.concatenate([shuffled[y[shuffled] == k][: limit // len(classes)] for k in classes]))
    )


def obstacle(labels: torch.Tensor, limit: int = LARGEST_FIT) -> str | None:
    """Why no classifier can be fitted on at most `limit` images with these labels; `None` if one can."""
    classes, counts = labels.unique(return_counts=True)
    if len(classes) < 2:
        return f"all images are of class {classes.item()}, and a classifier needs two"
    if counts.min() < FEWEST_OF_A_CLASS:
        fewest = classes[counts.argmin()].item()
        return f"a classifier needs {FEWEST_OF_A_CLASS} images of each class, and class {fewest} has {counts.min()}"
    if len(classes) > limit // FEWEST_OF_A_CLASS:
        return f"a classifier needs at most {limit // FEWEST_OF_A_CLASS} classes, and there are {len(classes)}"
    return None


def class_fidelity(
    real: torch.Tensor, real_labels: torch.Tensor, samples: torch.Tensor, sample_labels: torch.Tensor
) -> dict:
    """The share of samples to which the classifier gives the class that was asked for.

    The real images must be such that [`obstacle`] sees none, and no more than [`fit_rows`] takes.

    Args:
        real (`torch.Tensor` of `uint8`, shape (N, C, H, W)): the real images, with `real_labels` of shape (N,).
        samples (`torch.Tensor` of `uint8`, shape (M, C, H, W)): the samples, with `sample_labels` of shape (M,).

    Returns:
        `dict`: an entry of `evaluation` in metrics.json, whose `value` is the share. Its `reference` is what share of
        held-out real images the classifier gets right: the ceiling of the value.
    """
    x, y = real.flatten(1).numpy(), real_labels.numpy()
    x_fit, x_held, y_fit, y_held = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    classifier = make_pipeline(StandardScaler(with_std=False), SVC(C=10.0)).fit(x_fit, y_fit)
    predicted = classifier.predict(samples.flatten(1).numpy())
    return {
        "type": "class_fidelity",
        "name": "Class fidelity",
        "description": "the share of samples to which a classifier, fitted on real images, gives the class that was asked for",
        "value": float((predicted == sample_labels.numpy()).mean()),
        "num_samples": len(samples),
        "extractor": f"scikit-learn SVC(C=10) on the pixels of {len(x_fit)} training images",
        "reference": {"name": "held-out real images", "value": float(classifier.score(x_held, y_held))},
    }
